//! The rows of the agent's tables: what it was told, and what it wants the kernel to hold.
//!
//! ```text
//!  intent                                   desired
//!  pods, namespaces ──► endpoints ────────► lxc, devices      (maps)
//!  cilium-endpoints ─┐      │
//!  nodes ────────────┴──────┴─► ipcache ──► ipcache           (maps)
//!     └───────────────────────────────────► routes            (kernel)
//! ```
//!
//! Identities are in [`crate::identity`]. Each table is written by one module only.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use abi::AddressKey;
use abi::endpoint::{
    DeviceEndpoint, ENDPOINT_F_AUDIT, ENDPOINT_F_ENFORCE_EGRESS, ENDPOINT_F_ENFORCE_INGRESS,
    ENDPOINT_F_LOCKDOWN, EndpointInfo,
};
use ipnet::IpNet;
use kernel::netlink::Route;
use model::{EndpointId, EndpointState, IdentityId, Mac, NodeName, PodName, TunnelEndpoint};
use policy::NamedPort;
use serde::{Deserialize, Serialize};
use statedb::Row;

use crate::identity::Identity;
use crate::ipcache::Source;

/// A pod of this node, as Kubernetes describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalPod {
    /// Namespace and name.
    pub name: PodName,
    /// Tells pods apart that had the same name one after the other.
    pub uid: String,
    /// Its own labels.
    pub labels: BTreeMap<String, String>,
    /// Its service account; empty when not known.
    pub service_account: String,
    /// Names that it gives to ports.
    pub named_ports: Vec<NamedPort>,
    /// Kind and name of what runs it: of the Deployment, not of its ReplicaSet.
    pub workload: Option<(String, String)>,
}

impl Row for LocalPod {
    type Key = PodName;
    const HEADERS: &'static [&'static str] = &["POD", "UID", "LABELS"];

    fn key(&self) -> PodName {
        self.name.clone()
    }

    fn cells(&self) -> Vec<String> {
        vec![self.name.to_string(), self.uid.clone(), pairs(&self.labels)]
    }
}

/// A Kubernetes namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Namespace {
    /// Its name.
    pub name: String,
    /// Its labels: part of the identity of every pod in it.
    pub labels: BTreeMap<String, String>,
}

impl Row for Namespace {
    type Key = String;
    const HEADERS: &'static [&'static str] = &["NAMESPACE", "LABELS"];

    fn key(&self) -> String {
        self.name.clone()
    }

    fn cells(&self) -> Vec<String> {
        vec![self.name.clone(), pairs(&self.labels)]
    }
}

/// A node of the cluster, from its `CiliumNode`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Name of the Kubernetes node.
    pub name: NodeName,
    /// Whether it is this node.
    pub local: bool,
    /// Addresses of the node itself, in the order of the object.
    pub addresses: Vec<IpAddr>,
    /// Addresses of its `cilium_host`.
    pub router_addresses: Vec<IpAddr>,
    /// Addresses of its health endpoint.
    pub health_addresses: Vec<IpAddr>,
    /// What its pods get their addresses from.
    pub pod_cidrs: Vec<IpNet>,
}

impl Node {
    /// Where packets for this node's pods are encapsulated to: the first address, IPv4 before IPv6.
    pub fn tunnel_endpoint(&self) -> Option<IpAddr> {
        underlay_address(&self.addresses)
    }
}

/// The address by which nodes speak to each other: an IPv4 address where there is one.
pub fn underlay_address(addresses: &[IpAddr]) -> Option<IpAddr> {
    addresses.iter().find(|a| a.is_ipv4()).or(addresses.first()).copied()
}

impl Row for Node {
    type Key = NodeName;
    const HEADERS: &'static [&'static str] = &["NODE", "ADDRESSES", "ROUTER", "POD-CIDRS"];

    fn key(&self) -> NodeName {
        self.name.clone()
    }

    fn cells(&self) -> Vec<String> {
        vec![
            self.name.to_string(),
            list(&self.addresses),
            list(&self.router_addresses),
            list(&self.pod_cidrs),
        ]
    }
}

/// An endpoint of the cluster, from its `CiliumEndpoint`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterEndpoint {
    /// The pod.
    pub pod: PodName,
    /// Its number on its node.
    pub endpoint_id: i64,
    /// Its identity; unknown until its node has published it.
    pub identity: IdentityId,
    /// Its state in the words of its node.
    pub state: String,
    /// The address of its node.
    pub node: Option<IpAddr>,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Names that it gives to ports.
    pub named_ports: Vec<NamedPort>,
}

impl Row for ClusterEndpoint {
    type Key = PodName;
    const HEADERS: &'static [&'static str] = &["POD", "ID", "IDENTITY", "NODE", "ADDRESSES"];

    fn key(&self) -> PodName {
        self.pod.clone()
    }

    fn cells(&self) -> Vec<String> {
        vec![
            self.pod.to_string(),
            self.endpoint_id.to_string(),
            self.identity.to_string(),
            self.node.map(|n| n.to_string()).unwrap_or_default(),
            list(&self.addresses),
        ]
    }
}

/// A pod of this node as the datapath sees it. Written by [`crate::endpoint`] only.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Its number on this node.
    pub id: EndpointId,
    /// Where it is in its life.
    pub state: EndpointState,
    /// What it was created with, and never changes.
    pub spec: Arc<EndpointSpec>,
    /// Who it is.
    pub identity: Identity,
}

/// What an endpoint was created with: the part of it that is kept in its checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct EndpointSpec {
    /// Name of the host-side device.
    pub interface: String,
    /// Index of the host-side device.
    pub ifindex: u32,
    /// MAC address inside the pod.
    pub mac: Mac,
    /// MAC address of the host-side device.
    pub host_mac: Mac,
    /// Addresses, at most one per family.
    pub addresses: Vec<IpAddr>,
    /// Id of the container (the sandbox).
    pub container_id: String,
    /// Name of the device inside the pod.
    pub container_interface: String,
    /// The pod's namespace; empty where it is no pod.
    #[serde(default)]
    pub pod_namespace: String,
    /// The pod's name; empty where it is no pod.
    #[serde(default)]
    pub pod_name: String,
    /// The pod's uid; empty when the runtime did not say.
    #[serde(default)]
    pub pod_uid: String,
    /// Cookie of the pod's network namespace.
    #[serde(default)]
    pub netns_cookie: Option<String>,
}

impl EndpointSpec {
    /// The pod behind the endpoint.
    pub fn pod(&self) -> Option<PodName> {
        (!self.pod_name.is_empty())
            .then(|| PodName::new(self.pod_namespace.clone(), self.pod_name.clone()))
    }

    /// The id of the attachment: container and device.
    pub fn attachment(&self) -> String {
        format!("{}:{}", self.container_id, self.container_interface)
    }
}

impl Row for Endpoint {
    type Key = EndpointId;
    const HEADERS: &'static [&'static str] =
        &["ENDPOINT", "STATE", "POD", "DEVICE", "ADDRESSES", "IDENTITY"];

    fn key(&self) -> EndpointId {
        self.id
    }

    fn cells(&self) -> Vec<String> {
        vec![
            self.id.to_string(),
            self.state.to_string(),
            self.spec.pod().map(|p| p.to_string()).unwrap_or_default(),
            format!("{} ({})", self.spec.interface, self.spec.ifindex),
            list(&self.spec.addresses),
            self.identity.id.to_string(),
        ]
    }
}

/// What the datapath is told of an endpoint's policy. Written by [`crate::policy`] only; an endpoint
/// without such a row is in no map yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndpointPolicy {
    /// The endpoint.
    pub endpoint: EndpointId,
    /// Where its policy is, see [`abi::policy`].
    pub slot: u32,
    /// Which directions are enforced, and how: `ENDPOINT_F_ENFORCE_*` and their like.
    pub flags: u32,
    /// Revision of the node's policies that it was made from.
    pub revision: u64,
}

impl Row for EndpointPolicy {
    type Key = EndpointId;
    const HEADERS: &'static [&'static str] = &["ENDPOINT", "SLOT", "ENFORCED", "REVISION"];

    fn key(&self) -> EndpointId {
        self.endpoint
    }

    fn cells(&self) -> Vec<String> {
        vec![
            self.endpoint.to_string(),
            self.slot.to_string(),
            enforcement(self.flags),
            self.revision.to_string(),
        ]
    }
}

/// The flags of a policy in words.
pub fn enforcement(flags: u32) -> String {
    if flags & ENDPOINT_F_LOCKDOWN != 0 {
        return "locked-down".to_owned();
    }
    let has = |flag| flags & flag != 0;
    let words = match (has(ENDPOINT_F_ENFORCE_INGRESS), has(ENDPOINT_F_ENFORCE_EGRESS)) {
        (false, false) => "none",
        (true, false) => "ingress",
        (false, true) => "egress",
        (true, true) => "both",
    };
    if has(ENDPOINT_F_AUDIT) { format!("audit-{words}") } else { words.to_owned() }
}

/// An address of this node itself: what the kernel's stack accepts packets for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostAddress {
    /// The address.
    pub address: IpAddr,
    /// The device that has it.
    pub device: String,
}

impl Row for HostAddress {
    type Key = IpAddr;
    const HEADERS: &'static [&'static str] = &["ADDRESS", "DEVICE"];

    fn key(&self) -> IpAddr {
        self.address
    }

    fn cells(&self) -> Vec<String> {
        vec![self.address.to_string(), self.device.clone()]
    }
}

/// A prefix that this node has an identity of its own for. Written by [`crate::policy`] only.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LabelledPrefix {
    /// The prefix.
    pub prefix: IpNet,
    /// Its identity.
    pub identity: IdentityId,
    /// Why it has one: a [`Source::is_label`].
    pub source: Source,
}

impl Row for LabelledPrefix {
    type Key = IpNet;
    const HEADERS: &'static [&'static str] = &["PREFIX", "IDENTITY", "SOURCE"];

    fn key(&self) -> IpNet {
        self.prefix
    }

    fn cells(&self) -> Vec<String> {
        vec![self.prefix.to_string(), self.identity.to_string(), self.source.as_str().to_owned()]
    }
}

/// Who is behind a prefix. Written by [`crate::controllers`] only.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IpcacheEntry {
    /// The prefix.
    pub prefix: IpNet,
    /// Security identity.
    pub identity: IdentityId,
    /// How packets get there.
    pub tunnel: TunnelEndpoint,
    /// Who says so.
    pub source: Source,
    /// The name of who says so.
    pub owner: Arc<str>,
}

impl Row for IpcacheEntry {
    type Key = IpNet;
    const HEADERS: &'static [&'static str] = &["PREFIX", "IDENTITY", "TUNNEL", "SOURCE", "OWNER"];

    fn key(&self) -> IpNet {
        self.prefix
    }

    fn cells(&self) -> Vec<String> {
        vec![
            self.prefix.to_string(),
            self.identity.to_string(),
            self.tunnel.node().map(|n| n.to_string()).unwrap_or_default(),
            self.source.as_str().to_owned(),
            self.owner.to_string(),
        ]
    }
}

/// A row of `cilium_lxc`: an address of this node or of one of its pods.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalAddress {
    /// The address.
    pub address: IpAddr,
    /// What the map holds for it.
    pub info: EndpointInfo,
}

impl Row for LocalAddress {
    type Key = AddressKey;
    const HEADERS: &'static [&'static str] =
        &["ADDRESS", "ENDPOINT", "IFINDEX", "FLAGS", "MAC", "NODE-MAC", "IDENTITY", "POLICY"];

    fn key(&self) -> AddressKey {
        self.address.into()
    }

    fn cells(&self) -> Vec<String> {
        let info = &self.info;
        vec![
            self.address.to_string(),
            info.lxc_id.to_string(),
            info.ifindex.to_string(),
            format!("{:#x}", info.flags),
            mac(&info.mac),
            mac(&info.node_mac),
            info.sec_id.to_string(),
            policy(info.policy_slot, info.flags),
        ]
    }
}

/// A row of `cilium_lxc_devices`: who sends by a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// Index of the host-side device.
    pub ifindex: u32,
    /// What the map holds for it.
    pub endpoint: DeviceEndpoint,
}

impl Row for Device {
    type Key = u32;
    const HEADERS: &'static [&'static str] =
        &["IFINDEX", "ENDPOINT", "IDENTITY", "IPV4", "IPV6", "MAC", "NODE-MAC", "POLICY"];

    fn key(&self) -> u32 {
        self.ifindex
    }

    fn cells(&self) -> Vec<String> {
        let endpoint = &self.endpoint;
        vec![
            self.ifindex.to_string(),
            endpoint.lxc_id.to_string(),
            endpoint.sec_id.to_string(),
            std::net::Ipv4Addr::from(endpoint.ipv4).to_string(),
            std::net::Ipv6Addr::from(endpoint.ipv6).to_string(),
            mac(&endpoint.mac),
            mac(&endpoint.node_mac),
            policy(endpoint.policy_slot, endpoint.flags),
        ]
    }
}

/// A route that should be in the main table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DesiredRoute {
    /// All of it.
    pub route: Route,
}

impl Row for DesiredRoute {
    type Key = IpNet;
    const HEADERS: &'static [&'static str] = &["DESTINATION", "VIA", "DEVICE", "SOURCE", "MTU"];

    fn key(&self) -> IpNet {
        self.route.dst
    }

    fn cells(&self) -> Vec<String> {
        let text = |v: Option<String>| v.unwrap_or_default();
        vec![
            self.route.dst.to_string(),
            text(self.route.gateway.map(|g| g.to_string())),
            text(self.route.oif.map(|o| o.to_string())),
            text(self.route.src.map(|s| s.to_string())),
            text(self.route.mtu.map(|m| m.to_string())),
        ]
    }
}

/// Slot and enforcement in one cell.
fn policy(slot: u32, flags: u32) -> String {
    format!("{slot} {}", enforcement(flags))
}

fn list<T: ToString>(items: &[T]) -> String {
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

fn pairs(labels: &BTreeMap<String, String>) -> String {
    labels.iter().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>().join(",")
}

fn mac(bytes: &[u8; 8]) -> String {
    let [a, b, c, d, e, f, _, _] = *bytes;
    Mac([a, b, c, d, e, f]).to_string()
}
