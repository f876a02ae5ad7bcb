//! `/ip`, `/map`, `/cluster/nodes`: what the node knows of the world.

use serde::{Deserialize, Serialize};

use super::NodeAddressingElement;

/// An address or prefix and who is behind it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct IpListEntry {
    /// The prefix.
    pub cidr: String,
    /// Number of the identity.
    pub identity: i64,
    /// Node to encapsulate to.
    #[serde(rename = "hostIP", skip_serializing_if = "String::is_empty")]
    pub host_ip: String,
    /// Encryption key index; 0 is none.
    pub encrypt_key: i64,
    /// Whence this is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metadata: Option<IpListEntryMetadata>,
}

/// Whence an [`IpListEntry`] is known.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct IpListEntryMetadata {
    /// `k8s`, `custom-resource`, `local`, `generated`, …
    pub source: String,
    /// Namespace of the pod.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub namespace: String,
    /// Name of the pod.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
}

/// Answer of `GET /map`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct BpfMapList {
    /// The maps.
    pub maps: Vec<BpfMap>,
}

/// A BPF map. Cilium sends path and cache only; the rest is ours.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct BpfMap {
    /// Path of its pin.
    pub path: String,
    /// Its name.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// Entries that it holds.
    pub num_entries: u64,
    /// Entries that it can hold.
    pub max_entries: u64,
    /// Entries that it refused and that are tried again.
    pub num_errors: u64,
    /// Kernel memory that it takes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
    /// Whether we keep a copy of what it should hold.
    pub cache_enabled: bool,
    /// That copy; only of a single map that was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cache: Option<Vec<BpfMapEntry>>,
}

/// An entry that a BPF map should hold.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct BpfMapEntry {
    /// The key in words.
    pub key: String,
    /// The value in words.
    pub value: String,
    /// `sync` when it is there, else `insert` or `delete`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub desired_action: String,
    /// Why the last attempt failed.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub last_error: String,
}

/// Answer of `GET /cluster/nodes`. With the `client-id` of an earlier answer in the header of the
/// same name it holds what changed since, without one every node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct ClusterNodeStatus {
    /// Names the asker the next time.
    #[serde(skip_serializing_if = "is_zero")]
    pub client_id: i64,
    /// Name of the own node.
    #[serde(rename = "self", skip_serializing_if = "String::is_empty")]
    pub self_name: String,
    /// Nodes that are new to the asker.
    pub nodes_added: Vec<NodeElement>,
    /// Nodes that are gone.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub nodes_removed: Vec<NodeElement>,
}

/// A node of the cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct NodeElement {
    /// `<cluster>/<node>`.
    pub name: String,
    /// The node's main addresses.
    pub primary_address: super::NodeAddressing,
    /// Its other addresses.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub secondary_addresses: Vec<NodeAddressingElement>,
    /// Whence it is known.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub source: String,
}

fn is_zero(number: &i64) -> bool {
    *number == 0
}
