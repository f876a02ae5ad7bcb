//! Cilium's custom resources: group `cilium.io`, with its schemas.
//!
//! The types hold what we read and write; the [`manifest`]s accept everything that Cilium's do. Who
//! changes an object therefore patches the fields that are its own, and never replaces the object.

pub mod manifest;
mod schema;

use std::collections::BTreeMap;

use kube::api::ObjectMeta;
use serde::{Deserialize, Serialize, Serializer};

use crate::k8s::resource;

/// The group of all of them.
pub const GROUP: &str = "cilium.io";
/// Name under which the agent owns fields.
pub const FIELD_MANAGER_AGENT: &str = "cilium-agent";
/// Name under which the operator owns fields.
pub const FIELD_MANAGER_OPERATOR: &str = "cilium-operator";

/// The constant `apiVersion` of an object of version v2.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct V2;

impl Serialize for V2 {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str("cilium.io/v2")
    }
}

resource!(
    CiliumNode,
    kube::core::ClusterResourceScope,
    "cilium.io",
    "v2",
    "CiliumNode",
    "ciliumnodes"
);
resource!(
    CiliumEndpoint,
    kube::core::NamespaceResourceScope,
    "cilium.io",
    "v2",
    "CiliumEndpoint",
    "ciliumendpoints"
);
resource!(
    CiliumIdentity,
    kube::core::ClusterResourceScope,
    "cilium.io",
    "v2",
    "CiliumIdentity",
    "ciliumidentities"
);

/// A node as its agent announces it; named like the Kubernetes Node.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind")]
pub struct CiliumNode {
    /// Always `cilium.io/v2`.
    #[serde(rename = "apiVersion", skip_deserializing)]
    pub api_version: V2,
    /// Name, labels, annotations.
    pub metadata: ObjectMeta,
    /// What is announced, and what is given to the node.
    pub spec: NodeSpec,
    /// How it is.
    #[serde(default, skip_serializing_if = "is_default")]
    pub status: NodeStatus,
}

/// What a node announces and is given.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct NodeSpec {
    /// Its addresses.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<NodeAddress>,
    /// Address of its health endpoint.
    #[serde(skip_serializing_if = "is_default")]
    pub health: AddressPair,
    /// Address of its ingress load balancer.
    #[serde(skip_serializing_if = "is_default")]
    pub ingress: AddressPair,
    /// Its encryption.
    #[serde(skip_serializing_if = "is_default")]
    pub encryption: Encryption,
    /// Its address management.
    #[serde(skip_serializing_if = "is_default")]
    pub ipam: IpamSpec,
    /// Changes with each boot.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub bootid: String,
    /// Name of the machine for the cloud provider.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub instance_id: String,
}

/// [`NodeAddress::kind`] of an address on the underlay.
pub const INTERNAL_IP: &str = "InternalIP";
/// [`NodeAddress::kind`] of an address of the node in the pods' network.
pub const CILIUM_INTERNAL_IP: &str = "CiliumInternalIP";

/// An address of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct NodeAddress {
    /// [`INTERNAL_IP`], [`CILIUM_INTERNAL_IP`], `ExternalIP`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The address.
    pub ip: String,
}

/// An address of each family; an absent one is empty.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct AddressPair {
    /// IPv4 address.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub ipv4: String,
    /// IPv6 address.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub ipv6: String,
}

/// Encryption of a node or endpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Encryption {
    /// Index of the key; 0 is none.
    pub key: u32,
}

/// Address management of a node: what it is given.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct IpamSpec {
    /// Prefixes that the node's pods get their addresses from.
    #[serde(rename = "podCIDRs", skip_serializing_if = "Vec::is_empty")]
    pub pod_cidrs: Vec<String>,
}

/// How a node is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct NodeStatus {
    /// Its address management.
    #[serde(skip_serializing_if = "is_default")]
    pub ipam: IpamStatus,
}

/// Address management of a node: how it is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct IpamStatus {
    /// Address → owner.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub used: BTreeMap<String, AllocationIp>,
    /// What the operator has to say.
    #[serde(skip_serializing_if = "is_default")]
    pub operator_status: OperatorStatus,
    /// Prefix → `in-use`, `depleted` or `released`.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub pod_cidrs: BTreeMap<String, PodCidrStatus>,
}

/// An address that is taken.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct AllocationIp {
    /// Who has it.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub owner: String,
    /// What it belongs to.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub resource: String,
}

/// What the operator has to say about a node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct OperatorStatus {
    /// Why the node cannot be given what it needs.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub error: String,
}

/// How a prefix of a node is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PodCidrStatus {
    /// `in-use`, `depleted` or `released`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub status: String,
}

impl CiliumNode {
    /// A node of this name with nothing in it.
    pub fn new(name: &str) -> Self {
        let metadata = ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() };
        Self { metadata, ..Self::default() }
    }

    /// Its addresses of one kind; what is no address is left out.
    pub fn addresses(&self, kind: &str) -> impl Iterator<Item = std::net::IpAddr> {
        let of_kind = self.spec.addresses.iter().filter(move |address| address.kind == kind);
        of_kind.filter_map(|address| address.ip.parse().ok())
    }

    /// The addresses of its health endpoint; what is no address is left out.
    pub fn health_addresses(&self) -> impl Iterator<Item = std::net::IpAddr> {
        let AddressPair { ipv4, ipv6 } = &self.spec.health;
        [ipv4, ipv6].into_iter().filter_map(|ip| ip.parse().ok())
    }

    /// The prefixes of its pods; what is no prefix is left out.
    pub fn pod_cidrs(&self) -> impl Iterator<Item = ipnet::IpNet> {
        self.spec.ipam.pod_cidrs.iter().filter_map(|cidr| cidr.parse().ok())
    }
}

/// A pod as its agent announces it; named like the pod.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind")]
pub struct CiliumEndpoint {
    /// Always `cilium.io/v2`.
    #[serde(rename = "apiVersion", skip_deserializing)]
    pub api_version: V2,
    /// Name and namespace; owned by the pod.
    pub metadata: ObjectMeta,
    /// How it is.
    #[serde(default, skip_serializing_if = "is_default")]
    pub status: EndpointStatus,
}

/// How a pod is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct EndpointStatus {
    /// Number of the endpoint on its node.
    pub id: i64,
    /// Where it is in its life.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub state: String,
    /// Who it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub identity: Option<EndpointIdentity>,
    /// Its addresses and its node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub networking: Option<EndpointNetworking>,
    /// Its encryption.
    pub encryption: Encryption,
    /// Names that others know it by.
    #[serde(skip_serializing_if = "is_default")]
    pub external_identifiers: ExternalIdentifiers,
    /// Its named ports.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub named_ports: Vec<NamedPort>,
    /// Which directions are enforced.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub policy: Option<EndpointPolicy>,
    /// Its service account.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub service_account: String,
}

/// Who an endpoint is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct EndpointIdentity {
    /// Number of the identity.
    pub id: i64,
    /// Its labels, `source:key=value`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub labels: Vec<String>,
}

/// Addresses and node of an endpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct EndpointNetworking {
    /// Its addresses.
    pub addressing: Vec<AddressPair>,
    /// Underlay address of its node.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub node: String,
}

/// Names that others know an endpoint by.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct ExternalIdentifiers {
    /// `<container>:<interface>`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub cni_attachment_id: String,
    /// Container id.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub container_id: String,
    /// Namespace of the pod.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub k8s_namespace: String,
    /// Name of the pod.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub k8s_pod_name: String,
    /// `<namespace>/<name>` of the pod.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub pod_name: String,
}

/// A port with a name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct NamedPort {
    /// Its name.
    pub name: String,
    /// Its number.
    pub port: u16,
    /// `TCP`, `UDP`, …
    pub protocol: String,
}

/// Policy of an endpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct EndpointPolicy {
    /// Into it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ingress: Option<EndpointPolicyDirection>,
    /// Out of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub egress: Option<EndpointPolicyDirection>,
}

/// Policy of an endpoint in one direction.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct EndpointPolicyDirection {
    /// Whether what no rule allows is dropped.
    pub enforcing: bool,
    /// `ok` and the like.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub state: String,
}

impl CiliumEndpoint {
    /// An endpoint of this name with nothing in it.
    pub fn new(namespace: &str, name: &str) -> Self {
        let metadata = ObjectMeta {
            namespace: Some(namespace.to_owned()),
            name: Some(name.to_owned()),
            ..ObjectMeta::default()
        };
        Self { metadata, ..Self::default() }
    }
}

/// A set of labels and, as its name, the number that stands for it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind")]
pub struct CiliumIdentity {
    /// Always `cilium.io/v2`.
    #[serde(rename = "apiVersion", skip_deserializing)]
    pub api_version: V2,
    /// The number as name; the labels of source `k8s` again, to select by.
    pub metadata: ObjectMeta,
    /// `source:key` → value.
    #[serde(rename = "security-labels", default)]
    pub security_labels: BTreeMap<String, String>,
}

impl CiliumIdentity {
    /// The object for this number and these labels.
    pub fn new(id: model::IdentityId, labels: &model::Labels) -> Self {
        let of_k8s = labels.iter().filter(|label| label.source == model::label::SOURCE_K8S);
        let selectable = of_k8s.map(|label| (label.key.clone(), label.value.clone())).collect();
        let metadata = ObjectMeta {
            name: Some(id.to_string()),
            labels: Some(selectable),
            ..ObjectMeta::default()
        };
        Self { metadata, security_labels: labels.to_map(), ..Self::default() }
    }

    /// The number; an error says that the name is none.
    pub fn id(&self) -> Result<model::IdentityId, std::num::ParseIntError> {
        self.metadata.name.as_deref().unwrap_or_default().parse().map(model::IdentityId)
    }

    /// The labels.
    pub fn labels(&self) -> Result<model::Labels, model::label::ParseLabelError> {
        model::Labels::from_map(&self.security_labels)
    }
}

/// Whether a value need not be written.
fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_identity_says_what_it_is() {
        let labels = ["k8s:app=web", "cni:x=y"].iter().map(|l| l.parse().unwrap()).collect();
        let identity = CiliumIdentity::new(model::IdentityId(1234), &labels);
        let json = serde_json::to_value(&identity).unwrap();
        let expected = json!({
            "apiVersion": "cilium.io/v2",
            "kind": "CiliumIdentity",
            "metadata": {"name": "1234", "labels": {"app": "web"}},
            "security-labels": {"k8s:app": "web", "cni:x": "y"},
        });
        assert_eq!(json, expected);
        let read: CiliumIdentity = serde_json::from_value(json).unwrap();
        assert_eq!(read.id(), Ok(model::IdentityId(1234)));
        assert_eq!(read.labels(), Ok(labels));
    }

    #[test]
    fn a_node_has_the_names_of_cilium() {
        let mut node = CiliumNode::new("node-1");
        node.spec.addresses =
            vec![NodeAddress { kind: INTERNAL_IP.into(), ip: "172.18.1.1".into() }];
        node.spec.ipam.pod_cidrs = vec!["10.0.0.0/24".into()];
        node.status.ipam.operator_status.error = "full".into();
        let json = serde_json::to_value(&node).unwrap();
        let expected = json!({
            "apiVersion": "cilium.io/v2",
            "kind": "CiliumNode",
            "metadata": {"name": "node-1"},
            "spec": {
                "addresses": [{"type": "InternalIP", "ip": "172.18.1.1"}],
                "ipam": {"podCIDRs": ["10.0.0.0/24"]},
            },
            "status": {"ipam": {"operator-status": {"error": "full"}}},
        });
        assert_eq!(json, expected);
        assert_eq!(serde_json::from_value::<CiliumNode>(json).unwrap(), node);
    }

    #[test]
    fn objects_are_read_without_their_type() {
        // The items of a list carry neither kind nor apiVersion.
        let item =
            json!({"metadata": {"name": "web", "namespace": "default"}, "status": {"id": 7}});
        let endpoint: CiliumEndpoint = serde_json::from_value(item).unwrap();
        assert_eq!(endpoint.status.id, 7);
    }
}
