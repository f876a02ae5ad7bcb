//! Persistent volumes: every claim gets one of its own, a directory of the lab that all nodes see.

use std::sync::Arc;

use serde_json::{Value, json};

use super::pods::{is_deleting, name, uid};
use super::{Action, CLAIMS, Plan, VOLUMES};

/// Who provides the volumes.
const DRIVER: &str = "lab.cilium.io";

/// The name of a claim's volume.
pub(super) fn volume_name(claim_uid: &str) -> String {
    format!("pvc-{claim_uid}")
}

/// `volume` is the claim's, if it is there.
pub(super) fn plan(claim: &Arc<Value>, volume: Option<&Arc<Value>>) -> Plan {
    let mut plan = Plan::default();
    let spec = &claim["spec"];
    // The empty class asks for a volume that somebody else has made.
    let by_hand = spec["storageClassName"] == "";
    if is_deleting(claim) || by_hand || claim["status"]["phase"] == "Bound" {
        return plan;
    }
    let size = &spec["resources"]["requests"]["storage"];
    let volume_name = volume_name(uid(claim));
    if volume.is_none() {
        plan.push(Action::Create {
            resource: VOLUMES,
            object: json!({
                "apiVersion": "v1", "kind": "PersistentVolume",
                "metadata": { "name": volume_name },
                "spec": {
                    "capacity": { "storage": size }, "accessModes": spec["accessModes"],
                    "persistentVolumeReclaimPolicy": "Delete",
                    "storageClassName": spec["storageClassName"].as_str().unwrap_or_default(),
                    "volumeMode": "Filesystem",
                    "claimRef": { "apiVersion": "v1", "kind": "PersistentVolumeClaim",
                        "namespace": claim["metadata"]["namespace"], "name": name(claim), "uid": uid(claim) },
                    "csi": { "driver": DRIVER, "volumeHandle": uid(claim) },
                },
                "status": { "phase": "Bound" },
            }),
        });
    }
    let patch = json!({ "spec": { "volumeName": volume_name } });
    plan.push(Action::Merge { resource: CLAIMS, object: claim.clone(), patch });
    let status = json!({ "phase": "Bound", "accessModes": spec["accessModes"],
        "capacity": { "storage": size } });
    plan.push(Action::Status { resource: CLAIMS, object: claim.clone(), status });
    plan
}

/// A volume is bound as long as its claim is there, and goes with it.
pub(super) fn plan_volume(volume: &Arc<Value>, claim: Option<&Arc<Value>>) -> Plan {
    let mut plan = Plan::default();
    let reference = &volume["spec"]["claimRef"];
    if volume["spec"]["csi"]["driver"] != DRIVER || is_deleting(volume) {
        return plan;
    }
    match claim.is_some_and(|claim| claim["metadata"]["uid"] == reference["uid"]) {
        true => plan.status(VOLUMES, volume, json!({ "phase": "Bound" })),
        false => plan.push(Action::Delete { resource: VOLUMES, object: volume.clone() }),
    }
    plan
}
