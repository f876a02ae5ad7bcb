//! Kubernetes' own objects, cut down to what we read.
//!
//! A node's agent keeps every pod of the cluster in sight. The full types would parse and keep some
//! hundred fields of each; these keep a dozen. They are for reading: writing one back would lose
//! what it does not name.

use std::borrow::Cow;
use std::collections::BTreeMap;

use kube::api::ObjectMeta;
use serde::{Deserialize, Serialize};

/// Makes a type a Kubernetes resource: what it is called and where it lives.
macro_rules! resource {
    ($type:ty, $scope:ty, $group:literal, $version:literal, $kind:literal, $plural:literal) => {
        impl ::kube::Resource for $type {
            type DynamicType = ();
            type Scope = $scope;

            fn kind(_: &()) -> ::std::borrow::Cow<'_, str> {
                $kind.into()
            }

            fn group(_: &()) -> ::std::borrow::Cow<'_, str> {
                $group.into()
            }

            fn version(_: &()) -> ::std::borrow::Cow<'_, str> {
                $version.into()
            }

            fn plural(_: &()) -> ::std::borrow::Cow<'_, str> {
                $plural.into()
            }

            fn meta(&self) -> &::kube::api::ObjectMeta {
                &self.metadata
            }

            fn meta_mut(&mut self) -> &mut ::kube::api::ObjectMeta {
                &mut self.metadata
            }
        }
    };
}
pub(crate) use resource;

resource!(Pod, kube::core::NamespaceResourceScope, "", "v1", "Pod", "pods");
resource!(Node, kube::core::ClusterResourceScope, "", "v1", "Node", "nodes");
resource!(Namespace, kube::core::ClusterResourceScope, "", "v1", "Namespace", "namespaces");

resource!(Service, kube::core::NamespaceResourceScope, "", "v1", "Service", "services");
resource!(
    EndpointSlice,
    kube::core::NamespaceResourceScope,
    "discovery.k8s.io",
    "v1",
    "EndpointSlice",
    "endpointslices"
);

/// Drops what no one here reads and is often the largest part of an object. For use with
/// `kube::runtime::WatchStreamExt::modify`.
pub fn slim_metadata(meta: &mut ObjectMeta) {
    meta.managed_fields = None;
    meta.owner_references = None;
    if let Some(annotations) = &mut meta.annotations {
        annotations.remove("kubectl.kubernetes.io/last-applied-configuration");
    }
}

/// The empty map, for objects without labels.
static EMPTY: BTreeMap<String, String> = BTreeMap::new();

/// The labels of an object.
pub fn labels(meta: &ObjectMeta) -> &BTreeMap<String, String> {
    meta.labels.as_ref().unwrap_or(&EMPTY)
}

/// The name of an object; every object that an API server gives has one.
pub fn name(meta: &ObjectMeta) -> Cow<'_, str> {
    Cow::Borrowed(meta.name.as_deref().unwrap_or_default())
}

/// A pod.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Pod {
    /// Name, namespace, labels, uid.
    pub metadata: ObjectMeta,
    /// What is asked.
    #[serde(default)]
    pub spec: PodSpec,
    /// How it is.
    #[serde(default)]
    pub status: PodStatus,
}

/// What is asked of a pod.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodSpec {
    /// Node it is bound to; empty before.
    pub node_name: String,
    /// Its service account.
    pub service_account_name: String,
    /// Whether it shares the node's network namespace.
    pub host_network: bool,
    /// Its containers.
    pub containers: Vec<Container>,
}

/// A container of a pod.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Container {
    /// Ports that it says it listens on.
    pub ports: Vec<ContainerPort>,
}

/// A port that a container says it listens on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ContainerPort {
    /// Its name; empty where it has none.
    pub name: String,
    /// Its number.
    pub container_port: u16,
    /// `TCP`, `UDP` or `SCTP`; empty is TCP.
    pub protocol: String,
}

/// How a pod is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodStatus {
    /// `Pending`, `Running`, `Succeeded`, `Failed`, `Unknown`.
    pub phase: String,
    /// Its addresses.
    #[serde(rename = "podIPs")]
    pub pod_ips: Vec<PodIp>,
    /// Address of its node.
    #[serde(rename = "hostIP")]
    pub host_ip: String,
}

/// An address of a pod.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PodIp {
    /// The address.
    pub ip: String,
}

/// A node.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Node {
    /// Name, labels, annotations.
    pub metadata: ObjectMeta,
    /// What is asked.
    #[serde(default)]
    pub spec: NodeSpec,
    /// How it is.
    #[serde(default)]
    pub status: NodeStatus,
}

/// What is asked of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NodeSpec {
    /// First prefix of its pods, for servers that know no more than one.
    #[serde(rename = "podCIDR")]
    pub pod_cidr: String,
    /// Prefixes of its pods.
    #[serde(rename = "podCIDRs")]
    pub pod_cidrs: Vec<String>,
}

/// How a node is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NodeStatus {
    /// Its addresses.
    pub addresses: Vec<NodeAddress>,
}

/// An address of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct NodeAddress {
    /// `InternalIP`, `ExternalIP`, `Hostname`, …
    #[serde(rename = "type")]
    pub kind: String,
    /// The address.
    pub address: String,
}

impl Node {
    /// Its addresses of one kind, as in `InternalIP`; what is no address is left out.
    pub fn addresses(&self, kind: &str) -> impl Iterator<Item = std::net::IpAddr> {
        let of_kind = self.status.addresses.iter().filter(move |address| address.kind == kind);
        of_kind.filter_map(|address| address.address.parse().ok())
    }

    /// The prefixes of its pods.
    pub fn pod_cidrs(&self) -> Vec<&str> {
        if self.spec.pod_cidrs.is_empty() && !self.spec.pod_cidr.is_empty() {
            return vec![&self.spec.pod_cidr];
        }
        self.spec.pod_cidrs.iter().map(String::as_str).collect()
    }
}

/// A namespace.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Namespace {
    /// Name and labels.
    pub metadata: ObjectMeta,
}

/// A service.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Service {
    /// Name, namespace, labels.
    pub metadata: ObjectMeta,
    /// What is asked.
    #[serde(default)]
    pub spec: ServiceSpec,
}

/// What is asked of a service.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ServiceSpec {
    /// Labels of the pods behind it; without any, somebody else says who is behind it.
    #[serde(deserialize_with = "null_is_empty")]
    pub selector: BTreeMap<String, String>,
}

/// Some of the addresses behind a service.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct EndpointSlice {
    /// Name, namespace, labels.
    pub metadata: ObjectMeta,
    /// The addresses.
    #[serde(default, deserialize_with = "null_is_empty")]
    pub endpoints: Vec<SliceEndpoint>,
}

/// Label of an [`EndpointSlice`]: the name of its service.
pub const LABEL_SERVICE_NAME: &str = "kubernetes.io/service-name";

/// An element of an [`EndpointSlice`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SliceEndpoint {
    /// Its addresses.
    #[serde(deserialize_with = "null_is_empty")]
    pub addresses: Vec<String>,
}

/// Some servers write `null` for what is empty.
fn null_is_empty<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Option::<T>::deserialize(deserializer).map(Option::unwrap_or_default)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_is_read_without_what_is_not_needed() {
        let pod: Pod = serde_json::from_value(serde_json::json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": "web", "namespace": "default", "managedFields": [{"manager": "x"}]},
            "spec": {"nodeName": "node-1", "containers": [{"name": "c", "image": "i"}]},
            "status": {"phase": "Running", "podIPs": [{"ip": "10.0.0.1"}], "hostIP": "172.18.1.1"}
        }))
        .unwrap();
        assert_eq!(pod.spec.node_name, "node-1");
        assert_eq!(pod.status.pod_ips, [PodIp { ip: "10.0.0.1".into() }]);
        assert_eq!(
            <Pod as kube::Resource>::url_path(&(), Some("default")),
            "/api/v1/namespaces/default/pods"
        );
    }

    #[test]
    fn a_node_has_prefixes_in_either_form() {
        let mut node = Node::default();
        assert!(node.pod_cidrs().is_empty());
        node.spec.pod_cidr = "10.0.0.0/24".into();
        assert_eq!(node.pod_cidrs(), ["10.0.0.0/24"]);
        node.spec.pod_cidrs = vec!["10.0.0.0/24".into(), "fd00::/120".into()];
        assert_eq!(node.pod_cidrs(), ["10.0.0.0/24", "fd00::/120"]);
    }
}
