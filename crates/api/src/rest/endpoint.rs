//! `/endpoint` and `/identity`: local pods and who they are.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use model::{EndpointId, EndpointState, IdentityId, PodName};
use serde::{Deserialize, Serialize};

use super::{AddressPair, ControllerStatus, NodeAddressing};

/// The ways to name an endpoint in a path.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum EndpointRef {
    /// `<n>` or `cilium-local:<n>`.
    Local(EndpointId),
    /// `cni-attachment-id:<container>:<interface>`.
    CniAttachment {
        /// Container id.
        container: String,
        /// Interface name in the container.
        interface: String,
    },
    /// `container-id:<id>`.
    Container(String),
    /// `pod-name:<namespace>/<name>`.
    Pod(PodName),
    /// `cep-name:<namespace>/<name>`.
    CiliumEndpoint(PodName),
    /// `ipv4:<address>` or `ipv6:<address>`.
    Address(IpAddr),
}

impl fmt::Display for EndpointRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Local(id) => write!(f, "{id}"),
            Self::CniAttachment { container, interface } => {
                write!(f, "cni-attachment-id:{container}:{interface}")
            }
            Self::Container(id) => write!(f, "container-id:{id}"),
            Self::Pod(pod) => write!(f, "pod-name:{pod}"),
            Self::CiliumEndpoint(pod) => write!(f, "cep-name:{pod}"),
            Self::Address(IpAddr::V4(addr)) => write!(f, "ipv4:{addr}"),
            Self::Address(IpAddr::V6(addr)) => write!(f, "ipv6:{addr}"),
        }
    }
}

/// A text does not name an endpoint.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{text:?} does not name an endpoint; write a number, pod-name:<namespace>/<name>, \
     container-id:<id>, cni-attachment-id:<container>:<interface>, cep-name:<namespace>/<name>, \
     ipv4:<address> or ipv6:<address>"
)]
pub struct ParseEndpointRefError {
    text: String,
}

impl FromStr for EndpointRef {
    type Err = ParseEndpointRefError;

    fn from_str(text: &str) -> Result<Self, ParseEndpointRefError> {
        let parsed = match text.split_once(':') {
            None | Some(("cilium-local", _)) => {
                let number = text.strip_prefix("cilium-local:").unwrap_or(text);
                number.parse().ok().map(Self::Local)
            }
            Some(("cni-attachment-id", rest)) => rest.rsplit_once(':').map(|(id, interface)| {
                Self::CniAttachment { container: id.to_owned(), interface: interface.to_owned() }
            }),
            Some(("container-id", id)) => Some(Self::Container(id.to_owned())),
            Some(("pod-name", pod)) => pod.parse().ok().map(Self::Pod),
            Some(("cep-name", pod)) => pod.parse().ok().map(Self::CiliumEndpoint),
            Some(("ipv4", addr)) => addr.parse().ok().map(|v4| Self::Address(IpAddr::V4(v4))),
            Some(("ipv6", addr)) => addr.parse().ok().map(|v6| Self::Address(IpAddr::V6(v6))),
            Some(_) => None,
        };
        parsed.ok_or_else(|| ParseEndpointRefError { text: text.to_owned() })
    }
}

/// Body of `PUT /endpoint/{id}`: a pod's interface exists and wants to be connected.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct EndpointChangeRequest {
    /// Wanted endpoint id; 0 lets the agent choose.
    #[serde(skip_serializing_if = "is_default")]
    pub id: u16,
    /// Container id.
    pub container_id: String,
    /// Name of the interface in the container, as in `eth0`.
    pub container_interface_name: String,
    /// Name of the host-side device.
    pub interface_name: String,
    /// Index of the host-side device.
    pub interface_index: u32,
    /// MAC address of the interface in the container.
    pub mac: String,
    /// MAC address of the host-side device.
    pub host_mac: String,
    /// The pod's addresses.
    pub addressing: AddressPair,
    /// Namespace of the pod.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub k8s_namespace: String,
    /// Name of the pod.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub k8s_pod_name: String,
    /// Uid of the pod.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub k8s_uid: String,
    /// Cookie of the pod's network namespace, decimal.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub netns_cookie: String,
    /// Labels, where they do not come from Kubernetes.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub labels: Vec<String>,
    /// State the endpoint begins in; Cilium's plugin sends `waiting-for-identity`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<EndpointState>,
    /// Answer only when the endpoint can send and receive.
    pub sync_build_endpoint: bool,
}

/// Body of `DELETE /endpoint`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct EndpointBatchDeleteRequest {
    /// Every endpoint of this container is removed.
    pub container_id: String,
}

/// A local endpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Endpoint {
    /// Number on its node.
    pub id: i64,
    /// What is asked of it.
    pub spec: EndpointConfigurationSpec,
    /// How it is.
    pub status: EndpointStatus,
}

/// What is asked of an endpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct EndpointConfigurationSpec {
    /// Labels given by people.
    pub label_configuration: LabelConfigurationSpec,
    /// Names and values of options.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub options: BTreeMap<String, String>,
}

/// Labels given by people.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct LabelConfigurationSpec {
    /// The labels.
    pub user: Vec<String>,
}

/// How an endpoint is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct EndpointStatus {
    /// Where it is in its life.
    pub state: EndpointState,
    /// Names that others know it by.
    #[serde(default)]
    pub external_identifiers: EndpointIdentifiers,
    /// Who it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identity: Option<Identity>,
    /// Its labels.
    #[serde(default)]
    pub labels: LabelConfigurationStatus,
    /// Its addresses and devices.
    #[serde(default)]
    pub networking: EndpointNetworking,
    /// Its policy.
    #[serde(default)]
    pub policy: EndpointPolicyStatus,
    /// Its health.
    #[serde(default)]
    pub health: EndpointHealth,
    /// Its recent life.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub log: Vec<EndpointStatusChange>,
    /// Tasks that work for it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub controllers: Vec<ControllerStatus>,
}

impl Default for EndpointStatus {
    fn default() -> Self {
        Self {
            state: EndpointState::NotReady,
            external_identifiers: EndpointIdentifiers::default(),
            identity: None,
            labels: LabelConfigurationStatus::default(),
            networking: EndpointNetworking::default(),
            policy: EndpointPolicyStatus::default(),
            health: EndpointHealth::default(),
            log: Vec::new(),
            controllers: Vec::new(),
        }
    }
}

/// Names that others know an endpoint by.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct EndpointIdentifiers {
    /// `<container>:<interface>`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub cni_attachment_id: String,
    /// Container id.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub container_id: String,
    /// Name of the CiliumEndpoint, `<namespace>/<name>`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub cep_name: String,
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

/// A security identity.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Identity {
    /// Its number.
    pub id: IdentityId,
    /// The labels it stands for, `source:key=value`.
    pub labels: Vec<String>,
    /// Digest of the labels, hexadecimal.
    #[serde(rename = "labelsSHA256", skip_serializing_if = "String::is_empty")]
    pub labels_sha256: String,
}

/// An identity and how many local endpoints have it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct IdentityEndpoints {
    /// The identity.
    pub identity: Identity,
    /// Number of local endpoints.
    pub ref_count: i64,
}

/// The labels of an endpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct LabelConfigurationStatus {
    /// Labels that are not part of the identity.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub derived: Vec<String>,
    /// Labels that people switched off.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub disabled: Vec<String>,
    /// Labels given by people.
    pub realized: LabelConfigurationSpec,
    /// Labels that make the identity.
    pub security_relevant: Vec<String>,
}

/// Addresses and devices of an endpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct EndpointNetworking {
    /// Its addresses.
    pub addressing: Vec<AddressPair>,
    /// The node's addresses in the pods' network.
    pub host_addressing: NodeAddressing,
    /// Name of the interface in the container.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub container_interface_name: String,
    /// Index of the host-side device.
    pub interface_index: u32,
    /// Name of the host-side device.
    pub interface_name: String,
    /// MAC address of the interface in the container.
    pub mac: String,
    /// MAC address of the host-side device.
    pub host_mac: String,
}

/// The policy of an endpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct EndpointPolicyStatus {
    /// What the datapath does.
    pub realized: EndpointPolicy,
    /// What it should do.
    pub spec: EndpointPolicy,
}

/// A policy as an endpoint sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct EndpointPolicy {
    /// Directions that are enforced: `none`, `ingress`, `egress`, `both`, with `audit-` before.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub policy_enabled: String,
    /// Revision of the rules that it was made from.
    pub policy_revision: i64,
    /// Identities that may send to it on some port.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub allowed_ingress_identities: Vec<i64>,
    /// Identities that it may send to on some port.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub allowed_egress_identities: Vec<i64>,
    /// Identities that a rule denies it to hear on some port.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub denied_ingress_identities: Vec<i64>,
    /// Identities that a rule denies it to send to on some port.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub denied_egress_identities: Vec<i64>,
    /// Policies that select it, as `Kind namespace/name`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub policies: Vec<String>,
    /// The slot of the policy maps that it uses; endpoints of equal policy share one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub slot: Option<u32>,
    /// Entries of the slot.
    pub entries: u64,
    /// Why everything is denied, when its policy could not be put into the maps.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub lockdown: String,
}

/// The health of an endpoint: each word is `OK`, `Bootstrap`, `Pending`, `Warning`, `Failure` or
/// `Disabled`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct EndpointHealth {
    /// State of its programs and map entries.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub bpf: String,
    /// State of its policy.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub policy: String,
    /// Whether it can reach others.
    pub connected: bool,
    /// The worst of them.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub overall_health: String,
}

/// One event in the life of an endpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct EndpointStatusChange {
    /// When, RFC 3339.
    pub timestamp: String,
    /// `ok` or `failed`.
    pub code: String,
    /// What happened.
    pub message: String,
    /// State it led to.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub state: String,
}

/// Whether a value need not be written.
fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoint_references_are_read_and_written() {
        for text in [
            "17",
            "cni-attachment-id:0a1b:eth0",
            "container-id:0a1b",
            "pod-name:default/web",
            "cep-name:default/web",
            "ipv4:10.0.0.1",
            "ipv6:fd00::1",
        ] {
            assert_eq!(text.parse::<EndpointRef>().unwrap().to_string(), text);
        }
        let local: EndpointRef = "cilium-local:17".parse().unwrap();
        assert_eq!(local.to_string(), "17");
        for bad in ["", "0", "x", "pod-name:web", "ipv4:fd00::1", "docker:x", "cni-attachment-id:x"]
        {
            assert!(bad.parse::<EndpointRef>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_request_has_the_names_of_cilium() {
        let request = EndpointChangeRequest {
            container_id: "0a1b".into(),
            interface_index: 7,
            state: Some(EndpointState::WaitingForIdentity),
            sync_build_endpoint: true,
            ..EndpointChangeRequest::default()
        };
        let json = serde_json::to_value(&request).unwrap();
        assert_eq!(json["container-id"], "0a1b");
        assert_eq!(json["interface-index"], 7);
        assert_eq!(json["state"], "waiting-for-identity");
        assert_eq!(json["sync-build-endpoint"], true);
        assert!(json.get("id").is_none());
        assert_eq!(serde_json::from_value::<EndpointChangeRequest>(json).unwrap(), request);
    }
}
