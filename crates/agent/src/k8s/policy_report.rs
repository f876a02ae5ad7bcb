//! Tells the cluster which policies this node enforces: one lease, see [`api::policy_report`].

use std::time::Duration;

use api::crd::FIELD_MANAGER_AGENT;
use api::policy_report::PolicyReport;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};
use model::NodeName;
use statedb::job::Job;
use tokio::sync::watch;

use super::{is_not_found, watch::brief};
use crate::policy::controller::Computed;
use crate::policy::tables::KINDS;

/// Shortest time between two writes, however many policies change.
const WRITE_INTERVAL: Duration = Duration::from_millis(200);
/// Longest time between two: so it is seen that the node lives.
const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(60);
/// Wait before a write that failed is tried again.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// Writes whenever the kernel has something new, for ever.
pub async fn run(
    job: Job,
    client: Client,
    namespace: String,
    node: NodeName,
    mut realised: watch::Receiver<Computed>,
) -> Result<(), String> {
    let api: Api<Lease> = Api::namespaced(client, &namespace);
    loop {
        let now = realised.borrow_and_update().clone();
        let mut wait = HEARTBEAT_INTERVAL;
        // Nothing is known before all sources have listed.
        if now.revision > 0 {
            match write(&api, &report(&node, &now)).await {
                Ok(()) => job.ok(""),
                Err(error) => {
                    job.degraded(brief(&error));
                    wait = RETRY_INTERVAL;
                }
            }
            // Many changes that follow each other are one write.
            tokio::select! {
                () = job.stop.cancelled() => return Ok(()),
                () = tokio::time::sleep(WRITE_INTERVAL) => {}
            }
        }
        tokio::select! {
            () = job.stop.cancelled() => return Ok(()),
            changed = realised.changed() => if changed.is_err() { return Ok(()) },
            () = tokio::time::sleep(wait) => {}
        }
    }
}

/// A language of which no object was seen is enforced from the beginning.
fn report(node: &NodeName, realised: &Computed) -> PolicyReport {
    let version = |kind| realised.resource_versions.get(&kind).copied().unwrap_or(0);
    PolicyReport {
        node: node.to_string(),
        versions: KINDS.into_iter().map(|kind| (kind, version(kind))).collect(),
    }
}

async fn write(api: &Api<Lease>, report: &PolicyReport) -> Result<(), kube::Error> {
    let lease = report.to_lease(Timestamp::now());
    let params =
        PatchParams { field_manager: Some(FIELD_MANAGER_AGENT.into()), ..PatchParams::default() };
    let name = PolicyReport::name(&report.node);
    match api.patch(&name, &params, &Patch::Merge(&lease)).await {
        Err(error) if is_not_found(&error) => {
            api.create(&PostParams::default(), &lease).await.map(drop)
        }
        written => written.map(drop),
    }
}
