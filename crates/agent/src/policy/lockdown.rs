//! Says aloud when an endpoint is locked down: in the log, and as an event of its pod.

use std::collections::BTreeSet;

use abi::endpoint::ENDPOINT_F_LOCKDOWN;
use k8s_openapi::api::core::v1::ObjectReference;
use kube::Client;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use model::EndpointId;
use statedb::job::Job;
use statedb::{Change, Table};

use super::controller::SharedEngine;
use crate::k8s::watch::brief;
use crate::tables::{Endpoint, EndpointPolicy};

/// Reason of the events.
const REASON: &str = "PolicyLockdown";

/// Follows the endpoints' policies, for ever.
pub async fn run(
    job: Job,
    client: Client,
    policies: Table<EndpointPolicy>,
    endpoints: Table<Endpoint>,
    engine: SharedEngine,
) -> Result<(), String> {
    let recorder = Recorder::new(client, Reporter::from("cilium-agent"));
    let mut changes = policies.changes();
    let mut locked = BTreeSet::new();
    loop {
        tokio::select! {
            () = job.stop.cancelled() => return Ok(()),
            _ = changes.changed() => {}
        }
        for id in newly_locked(&mut locked, &changes.take()) {
            let Some(endpoint) = endpoints.get(&id) else { continue };
            let why = engine.lock().lockdown(id).map(|why| why.0.clone());
            let why = why.unwrap_or_else(|| "the kernel's policy map did not take it".to_owned());
            tracing::warn!(endpoint_id = %id, why, "Locked an endpoint down: nothing passes");
            let note = format!("Nothing may pass to or from this pod: {why}");
            match tell(&recorder, &endpoint, note).await {
                Ok(()) => job.ok(format_args!("{} endpoints are locked down", locked.len())),
                Err(error) => job.degraded(brief(&error)),
            }
        }
    }
}

/// The endpoints that are locked down now and were not before. While nothing is known of policies it is
/// no news.
fn newly_locked(
    locked: &mut BTreeSet<EndpointId>,
    changes: &[Change<EndpointPolicy>],
) -> Vec<EndpointId> {
    let mut new = Vec::new();
    for change in changes {
        match change {
            Change::Upsert(row) if row.flags & ENDPOINT_F_LOCKDOWN != 0 && row.revision > 0 => {
                if locked.insert(row.endpoint) {
                    new.push(row.endpoint);
                }
            }
            Change::Upsert(row) | Change::Delete(row) => {
                locked.remove(&row.endpoint);
            }
        }
    }
    new
}

async fn tell(recorder: &Recorder, endpoint: &Endpoint, note: String) -> Result<(), kube::Error> {
    let Some(pod) = endpoint.spec.pod() else { return Ok(()) };
    let reference = ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("Pod".to_owned()),
        namespace: Some(pod.namespace),
        name: Some(pod.name),
        uid: Some(endpoint.spec.pod_uid.clone()).filter(|uid| !uid.is_empty()),
        ..ObjectReference::default()
    };
    let event = Event {
        type_: EventType::Warning,
        reason: REASON.to_owned(),
        note: Some(note),
        action: "EnforcePolicy".to_owned(),
        secondary: None,
    };
    recorder.publish(&event, &reference).await
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn a_lockdown_is_told_once() {
        let id = EndpointId::new(7).unwrap();
        let row = |flags, revision| {
            let row = EndpointPolicy { endpoint: id, slot: 0, flags, revision };
            [Change::Upsert(Arc::new(row))]
        };
        let mut locked = BTreeSet::new();
        assert_eq!(newly_locked(&mut locked, &row(ENDPOINT_F_LOCKDOWN, 0)), []);
        assert_eq!(newly_locked(&mut locked, &row(ENDPOINT_F_LOCKDOWN, 1)), [id]);
        assert_eq!(newly_locked(&mut locked, &row(ENDPOINT_F_LOCKDOWN, 2)), []);
        assert_eq!(newly_locked(&mut locked, &row(0, 3)), []);
        assert_eq!(newly_locked(&mut locked, &row(ENDPOINT_F_LOCKDOWN, 4)), [id]);
    }
}
