//! Follows the labels of pods and namespaces: an endpoint's identity is what its labels are now.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use model::EndpointId;
use statedb::job::Job;
use statedb::{Change, Snapshot, Table};

use crate::endpoint::Endpoints;
use crate::identity::Identity;
use crate::tables::{Endpoint, LocalPod, Namespace};

/// Wait before endpoints whose identity could not be made are tried again.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// Relabels whatever a change may concern, and again what failed.
pub async fn run(
    job: Job,
    endpoints: Arc<Endpoints>,
    pods: Table<LocalPod>,
    namespaces: Table<Namespace>,
) -> Result<(), String> {
    let mut rows = endpoints.table().changes();
    let mut pods = pods.changes();
    let mut namespaces = namespaces.changes();
    let mut identities = endpoints.identities().table().changes();
    let mut due: BTreeSet<EndpointId> = BTreeSet::new();
    loop {
        due.extend(rows.take().iter().filter_map(|change| match change {
            Change::Upsert(endpoint) => Some(endpoint.id),
            Change::Delete(_) => None,
        }));
        let changed =
            concerned(rows.snapshot(), &pods.take(), &namespaces.take(), &identities.take());
        due.extend(changed);
        let mut failed = BTreeSet::new();
        for id in std::mem::take(&mut due) {
            match endpoints.relabel(id).await {
                Ok(()) => {}
                Err(error) => {
                    job.degraded(format_args!("endpoint {id}: {error}"));
                    failed.insert(id);
                }
            }
        }
        if failed.is_empty() {
            job.ok("");
        }
        due = failed;
        tokio::select! {
            () = job.stop.cancelled() => return Ok(()),
            _ = rows.changed() => {}
            _ = pods.changed() => {}
            _ = namespaces.changed() => {}
            _ = identities.changed() => {}
            () = tokio::time::sleep(RETRY_INTERVAL), if !due.is_empty() => {}
        }
    }
}

/// The endpoints whose labels a change may concern.
fn concerned(
    endpoints: &Snapshot<Endpoint>,
    pods: &[Change<LocalPod>],
    namespaces: &[Change<Namespace>],
    identities: &[Change<Identity>],
) -> BTreeSet<EndpointId> {
    let pods: BTreeSet<_> = pods
        .iter()
        .map(|change| match change {
            Change::Upsert(pod) | Change::Delete(pod) => pod.name.clone(),
        })
        .collect();
    let namespaces: BTreeSet<_> = namespaces
        .iter()
        .map(|change| match change {
            Change::Upsert(namespace) | Change::Delete(namespace) => namespace.name.clone(),
        })
        .collect();
    let identities: BTreeSet<_> = identities
        .iter()
        .map(|change| match change {
            Change::Upsert(identity) | Change::Delete(identity) => identity.id,
        })
        .collect();
    if pods.is_empty() && namespaces.is_empty() && identities.is_empty() {
        return BTreeSet::new();
    }
    let is_concerned = |endpoint: &Endpoint| {
        endpoint
            .spec
            .pod()
            .is_some_and(|pod| namespaces.contains(&pod.namespace) || pods.contains(&pod))
            || identities.contains(&endpoint.identity.id)
    };
    endpoints.rows().filter(|row| is_concerned(row)).map(|row| row.id).collect()
}
