//! `/healthz`: how the agent and everything it depends on is.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

/// How a part is, in one word.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum StatusState {
    /// It works.
    Ok,
    /// It works, someone should look.
    Warning,
    /// It does not work.
    Failure,
    /// It is switched off.
    #[default]
    Disabled,
}

impl fmt::Display for StatusState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// How a part is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Status {
    /// In one word.
    pub state: StatusState,
    /// In words.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub msg: String,
}

impl Status {
    /// A status of these parts.
    pub fn new(state: StatusState, msg: impl Into<String>) -> Self {
        Self { state, msg: msg.into() }
    }
}

/// Answer of `GET /healthz`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct StatusResponse {
    /// The agent itself: the sum.
    pub cilium: Status,
    /// The API server.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kubernetes: Option<K8sStatus>,
    /// The key-value store.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kvstore: Option<Status>,
    /// The stream of events from the datapath.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node_monitor: Option<MonitorStatus>,
    /// The cluster.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cluster: Option<ClusterStatus>,
    /// Addresses of pods.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ipam: Option<IpamStatus>,
    /// Tasks that run in the agent.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub controllers: Vec<ControllerStatus>,
    /// Flow observation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hubble: Option<HubbleStatus>,
    /// Translation of source addresses.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub masquerading: Option<Masquerading>,
    /// How packets travel between nodes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub routing: Option<Routing>,
    /// Services.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kube_proxy_replacement: Option<KubeProxyReplacement>,
    /// Policy for the node itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host_firewall: Option<HostFirewall>,
    /// Encryption between nodes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub encryption: Option<EncryptionStatus>,
    /// Sizes of BPF maps.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bpf_maps: Option<BpfMapStatus>,
    /// Other plugins in the chain.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cni_chaining: Option<CniChainingStatus>,
    /// The CNI configuration file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cni_file: Option<Status>,
    /// Numbers that identities are allocated from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub identity_range: Option<IdentityRange>,
    /// How programs are attached to devices: `TCX` or `Legacy TC`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attach_mode: Option<String>,
    /// How pods are joined to the node: `veth`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub datapath_mode: Option<String>,
    /// Parts whose own status is out of date, and since when.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub stale: BTreeMap<String, String>,
}

/// The API server.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct K8sStatus {
    /// In one word.
    pub state: StatusState,
    /// Version of the server, and what is wrong.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub msg: String,
    /// Resources that are watched.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub k8s_api_versions: Vec<String>,
}

/// The stream of events from the datapath.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct MonitorStatus {
    /// CPUs whose ring is read.
    pub cpus: i64,
    /// Pages of each ring.
    pub npages: i64,
    /// Bytes of a page.
    pub pagesize: i64,
    /// Events lost because a ring was full.
    pub lost: i64,
    /// Events that were not understood.
    pub unknown: i64,
}

/// The cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ClusterStatus {
    /// Whether the nodes reach each other.
    #[serde(rename = "ciliumHealth", skip_serializing_if = "Option::is_none")]
    pub cilium_health: Option<Status>,
    /// Name of the own node, `<cluster>/<node>`.
    #[serde(rename = "self")]
    pub self_name: String,
    /// The nodes.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub nodes: Vec<super::NodeElement>,
}

/// Addresses of pods.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct IpamStatus {
    /// In words: `IPv4: 3/254 allocated from 10.0.0.0/24, IPv6: …`.
    pub status: String,
    /// IPv4 addresses that are taken.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ipv4: Vec<String>,
    /// IPv6 addresses that are taken.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ipv6: Vec<String>,
    /// Address → owner: `<namespace>/<pod>`, `router`, …
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub allocations: BTreeMap<String, String>,
}

/// A task that runs in the agent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ControllerStatus {
    /// Its name.
    pub name: String,
    /// How it is.
    pub status: ControllerStatusValue,
}

/// How a task is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct ControllerStatusValue {
    /// Successes.
    pub success_count: i64,
    /// Failures.
    pub failure_count: i64,
    /// Failures since the last success.
    pub consecutive_failure_count: i64,
    /// The last failure in words.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub last_failure_msg: String,
}

/// Flow observation.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct HubbleStatus {
    /// In one word.
    pub state: StatusState,
    /// In words.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub msg: String,
    /// What the observer has; none where it is off.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observer: Option<HubbleObserver>,
}

/// What Hubble's observer has.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct HubbleObserver {
    /// Events in its buffer.
    pub current_flows: u64,
    /// Events that fit.
    pub max_flows: u64,
    /// Flows since the start.
    pub seen_flows: u64,
    /// Time since the start, as in `1h30m0s`.
    pub uptime: String,
}

/// Translation of source addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct Masquerading {
    /// Whether it is on.
    pub enabled: bool,
    /// `BPF` or `iptables`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub mode: String,
}

/// How packets travel.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct Routing {
    /// On the node: `BPF` or `Legacy`.
    pub intra_host_routing_mode: String,
    /// Between nodes: `Tunnel` or `Native`.
    pub inter_host_routing_mode: String,
    /// `vxlan` or `geneve`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub tunnel_protocol: String,
}

/// Services.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct KubeProxyReplacement {
    /// `True` or `False`.
    pub mode: String,
}

/// Policy for the node itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct HostFirewall {
    /// `Enabled` or `Disabled`.
    pub mode: String,
}

/// Encryption between nodes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct EncryptionStatus {
    /// `Disabled`, `IPsec` or `Wireguard`.
    pub mode: String,
    /// In words.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub msg: String,
}

/// Sizes of BPF maps.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct BpfMapStatus {
    /// The maps.
    pub maps: Vec<BpfMapProperties>,
}

/// The size of a BPF map.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct BpfMapProperties {
    /// What it is for, in words.
    pub name: String,
    /// Entries that it can hold.
    pub size: i64,
}

/// Other plugins in the chain.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CniChainingStatus {
    /// `none`, …
    pub mode: String,
}

/// Numbers that identities are allocated from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct IdentityRange {
    /// The least.
    pub min_identity: i64,
    /// The greatest.
    pub max_identity: i64,
}
