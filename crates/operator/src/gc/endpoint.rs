//! CiliumEndpoints whose pod is gone or has ended.
//!
//! A pod that ended stays as an object, a Job's for long; its address is given to another pod, so its
//! endpoint must go. Agents do that themselves; a node that died with its pods does not.

use std::collections::BTreeSet;

use api::crd::CiliumEndpoint;
use api::k8s::Pod;
use kube::api::ObjectMeta;
use kube::{Api, Client};
use model::PodName;

use super::{Collector, only, unless_changed};
use crate::watch::list;

/// An endpoint as it was listed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Its pod: they have the same name.
    pub pod: PodName,
    /// Which object of that name it is.
    pub uid: Option<String>,
}

/// The endpoints of no living pod. The pods must have been listed after the endpoints: an
/// endpoint's pod is older than it.
pub fn stale(endpoints: Vec<Listed>, living: &BTreeSet<PodName>) -> Vec<Listed> {
    endpoints.into_iter().filter(|endpoint| !living.contains(&endpoint.pod)).collect()
}

/// Collects endpoints.
pub struct Endpoints {
    client: Client,
}

impl Endpoints {
    /// For the cluster behind `client`.
    pub fn new(client: &Client) -> Self {
        Self { client: client.clone() }
    }
}

impl Collector for Endpoints {
    const NAME: &'static str = "to-k8s-ciliumendpoint-gc";

    async fn collect(&mut self) -> kube::Result<String> {
        let endpoints: Api<CiliumEndpoint> = Api::all(self.client.clone());
        let pods: Api<Pod> = Api::all(self.client.clone());
        let listed = list(&endpoints, |object: CiliumEndpoint| {
            Some(Listed { pod: name(&object.metadata), uid: object.metadata.uid })
        });
        let listed = listed.await?;
        let total = listed.len();
        let living = list(&pods, |pod| is_alive(&pod).then(|| name(&pod.metadata))).await?;
        let mut deleted = 0;
        for Listed { pod, uid } in stale(listed, &living.into_iter().collect()) {
            let api: Api<CiliumEndpoint> = Api::namespaced(self.client.clone(), &pod.namespace);
            if unless_changed(api.delete(&pod.name, &only(uid, None)).await)? {
                tracing::info!(%pod, "deleted the CiliumEndpoint of a pod that is gone");
                deleted += 1;
            }
        }
        Ok(format!("{total} endpoints, {deleted} deleted"))
    }
}

fn name(metadata: &ObjectMeta) -> PodName {
    let text = |field: &Option<String>| field.clone().unwrap_or_default();
    PodName { namespace: text(&metadata.namespace), name: text(&metadata.name) }
}

/// Whether it may have an address.
fn is_alive(pod: &Pod) -> bool {
    !matches!(pod.status.phase.as_str(), "Succeeded" | "Failed")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pod(name: &str) -> PodName {
        PodName { namespace: "default".to_owned(), name: name.to_owned() }
    }

    #[test]
    fn pods_that_ended_have_no_endpoint() {
        let alive = |phase: &str| {
            let mut pod = Pod::default();
            pod.status.phase = phase.to_owned();
            is_alive(&pod)
        };
        assert!(alive("Pending") && alive("Running") && alive("Unknown") && alive(""));
        assert!(!alive("Succeeded") && !alive("Failed"));
    }

    proptest! {
        #[test]
        fn those_of_no_pod_are_stale(endpoints: BTreeSet<u8>, pods: BTreeSet<u8>) {
            let listed = |id: &u8| Listed { pod: pod(&id.to_string()), uid: None };
            let living = pods.iter().map(|id| pod(&id.to_string())).collect();
            let found = stale(endpoints.iter().map(listed).collect(), &living);
            let expected: Vec<Listed> = endpoints.difference(&pods).map(listed).collect();
            prop_assert_eq!(found, expected);
        }
    }
}
