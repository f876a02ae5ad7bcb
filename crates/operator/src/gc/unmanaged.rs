//! Pods of cluster DNS that were started before the agent was there, and are not managed by it.
//!
//! They have an address from somebody else's plugin and no CiliumEndpoint, so no policy and no
//! identity holds for them. Deleted, their workload starts them anew, and they are managed. Only pods
//! that carry the labels of `pod-restart-selector` are touched, one in a round, so that never all
//! servers are away at once.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use api::crd::CiliumEndpoint;
use api::k8s::Pod;
use kube::api::ListParams;
use kube::{Api, Client};

use super::{Collector, only, unless_changed};
use crate::metrics::{Metrics, UNMANAGED_PODS};

/// How long an agent has to make the endpoint of a running pod.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Since when pods, by their uid, have been running without an endpoint.
#[derive(Debug, Default)]
pub struct Waiting(BTreeMap<String, Instant>);

impl Waiting {
    /// Takes the unmanaged pods of a round; gives the one that has waited longest, if that is too
    /// long.
    pub fn round(
        &mut self,
        unmanaged: &[String],
        now: Instant,
        patience: Duration,
    ) -> Option<String> {
        self.0.retain(|uid, _| unmanaged.contains(uid));
        for uid in unmanaged {
            self.0.entry(uid.clone()).or_insert(now);
        }
        let (uid, since) = self.0.iter().min_by_key(|(_, since)| **since)?;
        (now.duration_since(*since) >= patience).then(|| uid.clone())
    }
}

/// Restarts unmanaged pods.
pub struct Unmanaged {
    client: Client,
    selector: String,
    metrics: Metrics,
    waiting: Waiting,
    patience: Duration,
}

impl Unmanaged {
    /// For the pods that `selector` names in the cluster behind `client`.
    pub fn new(client: &Client, selector: &str, patience: Duration, metrics: Metrics) -> Self {
        let (client, selector) = (client.clone(), selector.to_owned());
        Self { client, selector, metrics, waiting: Waiting::default(), patience }
    }

    /// The pods that run and have no endpoint, by uid.
    async fn unmanaged(&self) -> kube::Result<BTreeMap<String, Pod>> {
        let pods: Api<Pod> = Api::all(self.client.clone());
        let listed = pods.list(&ListParams::default().labels(&self.selector)).await?;
        let mut unmanaged = BTreeMap::new();
        for pod in listed.items.into_iter().filter(should_be_managed) {
            let meta = &pod.metadata;
            let (Some(name), Some(namespace)) = (&meta.name, &meta.namespace) else { continue };
            let endpoints: Api<CiliumEndpoint> = Api::namespaced(self.client.clone(), namespace);
            if endpoints.get_opt(name).await?.is_none()
                && let Some(uid) = meta.uid.clone()
            {
                unmanaged.insert(uid, pod);
            }
        }
        Ok(unmanaged)
    }
}

impl Collector for Unmanaged {
    const NAME: &'static str = "restart-unmanaged-pods";

    async fn collect(&mut self) -> kube::Result<String> {
        let unmanaged = self.unmanaged().await?;
        self.metrics.set(&UNMANAGED_PODS, &[], unmanaged.len() as f64);
        let uids: Vec<String> = unmanaged.keys().cloned().collect();
        let overdue = self.waiting.round(&uids, Instant::now(), self.patience);
        let Some(pod) = overdue.and_then(|uid| unmanaged.get(&uid)) else {
            return Ok(format!("{} unmanaged pods", unmanaged.len()));
        };
        let (name, namespace) = (pod.metadata.name.as_deref(), pod.metadata.namespace.as_deref());
        let (name, namespace) = (name.unwrap_or_default(), namespace.unwrap_or_default());
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), namespace);
        if unless_changed(pods.delete(name, &only(pod.metadata.uid.clone(), None)).await)? {
            tracing::info!(namespace, name, "restarted a pod that Cilium does not manage");
        }
        Ok(format!("{} unmanaged pods, {namespace}/{name} restarted", unmanaged.len()))
    }
}

fn should_be_managed(pod: &Pod) -> bool {
    let going = pod.metadata.deletion_timestamp.is_some();
    !pod.spec.host_network && pod.status.phase == "Running" && !going
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_is_given_time() {
        let mut waiting = Waiting::default();
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let uids = |list: &[&str]| list.iter().map(|&uid| uid.to_owned()).collect::<Vec<_>>();
        assert_eq!(waiting.round(&uids(&["a", "b"]), at(0), PATIENCE), None);
        assert_eq!(waiting.round(&uids(&["b"]), at(15), PATIENCE), None);
        // One that was managed in between begins to wait anew.
        assert_eq!(waiting.round(&uids(&["a", "b"]), at(30), PATIENCE).as_deref(), Some("b"));
        assert_eq!(waiting.round(&uids(&["a"]), at(59), PATIENCE), None);
        assert_eq!(waiting.round(&uids(&["a"]), at(60), PATIENCE).as_deref(), Some("a"));
        assert_eq!(waiting.round(&[], at(90), PATIENCE), None);
    }

    #[test]
    fn only_running_pods_of_the_pod_network() {
        let pod = |phase: &str, host_network: bool| {
            let mut pod = Pod::default();
            (pod.status.phase, pod.spec.host_network) = (phase.to_owned(), host_network);
            should_be_managed(&pod)
        };
        assert!(pod("Running", false));
        assert!(!pod("Running", true) && !pod("Pending", false) && !pod("Succeeded", false));
    }
}
