//! Persistent volumes, claims and storage classes: defaults, and what is refused.

use serde_json::{Value, json};

use super::schema::object_at;
use super::status::FieldError;

const CLAIMS: &str = "persistentvolumeclaims";
const VOLUMES: &str = "persistentvolumes";
const CLASSES: &str = "storageclasses.storage.k8s.io";

pub(super) fn is_about_storage(id: &str) -> bool {
    [CLAIMS, VOLUMES, CLASSES].contains(&id)
}

/// Fills in what the manifest leaves open.
pub(super) fn default(id: &str, value: &mut Value) {
    let fill = |map: &mut serde_json::Map<String, Value>, name: &str, text: &str| {
        map.entry(name).or_insert_with(|| json!(text));
    };
    match id {
        CLASSES => {
            if let Some(map) = value.as_object_mut() {
                fill(map, "reclaimPolicy", "Delete");
                fill(map, "volumeBindingMode", "Immediate");
            }
            return;
        }
        VOLUMES => fill(object_at(value, "spec"), "persistentVolumeReclaimPolicy", "Retain"),
        _ => {}
    }
    fill(object_at(value, "spec"), "volumeMode", "Filesystem");
    fill(object_at(value, "status"), "phase", "Pending");
}

/// Fills in the claims of a StatefulSet's pods.
pub(super) fn default_claim_template(claim: &mut Value) {
    default(CLAIMS, claim);
    claim["apiVersion"] = json!("v1");
    claim["kind"] = json!("PersistentVolumeClaim");
}

/// What is wrong with one of them.
pub(super) fn validate(id: &str, value: &Value, errors: &mut Vec<FieldError>) {
    if id == CLASSES {
        if value["provisioner"].as_str().is_none_or(str::is_empty) {
            errors.push(FieldError::required("provisioner", ""));
        }
        return;
    }
    validate_spec("spec", id, &value["spec"], errors);
}

pub(super) fn validate_claim_template(field: &str, claim: &Value, errors: &mut Vec<FieldError>) {
    validate_spec(&format!("{field}.spec"), CLAIMS, &claim["spec"], errors);
}

fn validate_spec(field: &str, id: &str, spec: &Value, errors: &mut Vec<FieldError>) {
    let modes = spec["accessModes"].as_array().map(Vec::as_slice).unwrap_or_default();
    let known = ["ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod"];
    if modes.is_empty() {
        let detail = "at least 1 access mode is required";
        errors.push(FieldError::required(format!("{field}.accessModes"), detail));
    }
    for mode in modes.iter().filter(|mode| !known.contains(&mode.as_str().unwrap_or_default())) {
        errors.push(FieldError::not_supported(
            format!("{field}.accessModes"),
            mode.clone(),
            &known,
        ));
    }
    let (name, amount) = match id {
        VOLUMES => ("capacity", &spec["capacity"]["storage"]),
        _ => ("resources[storage]", &spec["resources"]["requests"]["storage"]),
    };
    if amount.is_null() {
        errors.push(FieldError::required(format!("{field}.{name}"), ""));
    }
}

/// A claim stays the claim that it was; only the amount may grow.
pub(super) fn validate_update(id: &str, new: &Value, old: &Value, errors: &mut Vec<FieldError>) {
    if id != CLAIMS {
        return;
    }
    let fixed = |claim: &Value| {
        let mut spec = claim["spec"].as_object().cloned().unwrap_or_default();
        spec.remove("resources");
        spec
    };
    let (before, after) = (fixed(old), fixed(new));
    let bound_now = before.get("volumeName").is_none() && after.get("volumeName").is_some();
    if before != after && !bound_now {
        let detail = "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims";
        errors.push(FieldError::forbidden("spec", detail));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn claims() {
        let mut claim = json!({ "spec": { "accessModes": ["ReadWriteOnce"], "resources": { "requests": { "storage": "1Gi" } } } });
        default(CLAIMS, &mut claim);
        assert_eq!(claim["spec"]["volumeMode"], "Filesystem");
        let wrong = |claim: &Value| {
            let mut errors = Vec::new();
            validate(CLAIMS, claim, &mut errors);
            errors.iter().map(|error| error.field.clone()).collect::<Vec<_>>()
        };
        assert!(wrong(&claim).is_empty());
        assert_eq!(wrong(&json!({})), ["spec.accessModes", "spec.resources[storage]"]);
        let moved = |field: &str, value: Value| {
            let (mut new, mut errors) = (claim.clone(), Vec::new());
            new["spec"][field] = value;
            validate_update(CLAIMS, &new, &claim, &mut errors);
            errors.len()
        };
        assert_eq!(moved("volumeName", json!("v")), 0);
        assert_eq!(moved("resources", json!({ "requests": { "storage": "2Gi" } })), 0);
        assert_eq!(moved("storageClassName", json!("x")), 1);
    }
}
