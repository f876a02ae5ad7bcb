//! Load-time configuration: one constant in `.rodata`, written before the programs are verified.
//!
//! The verifier sees the values, so what is switched off costs nothing and is not even loaded.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// `DatapathConfig::tunnel`: packets between nodes are routed natively.
pub const TUNNEL_OFF: u8 = 0;
/// `DatapathConfig::tunnel`: packets between nodes are encapsulated in VXLAN.
pub const TUNNEL_VXLAN: u8 = 1;

/// `DatapathConfig::monitor_aggregation`: every event.
pub const AGGREGATION_NONE: u8 = 0;
/// `DatapathConfig::monitor_aggregation`: no events at the observation points `from-*`.
pub const AGGREGATION_LOWEST: u8 = 1;
/// `DatapathConfig::monitor_aggregation`: as the lowest; the word exists.
pub const AGGREGATION_LOW: u8 = 2;
/// `DatapathConfig::monitor_aggregation`: of a flow its first packet, its first reply, the first of
/// each TCP flag, and one packet per interval.
pub const AGGREGATION_MEDIUM: u8 = 3;
/// `DatapathConfig::monitor_aggregation`: as medium; the word exists.
pub const AGGREGATION_MAXIMUM: u8 = 4;

/// Seconds after which a flow is traced again, by default (`monitor-aggregation-interval`).
pub const AGGREGATION_SECONDS: u32 = 5;
/// SYN, FIN and RST: the TCP flags that are traced when a side shows them first, by default
/// (`monitor-aggregation-flags`).
pub const AGGREGATION_FLAGS: u8 = 7;

/// Index in [`crate::names::RUNTIME_CONFIG`]: which events somebody listens to, a set of
/// `1 << EventType`. The reader of the rings sets it while it reads and clears it when nobody
/// listens any more; at 0, the default, an event costs the programs one load and one branch.
pub const RUNTIME_EVENTS: u32 = 128;

/// The configuration of all programs of a node, symbol `CONFIG` in `.rodata`.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct DatapathConfig {
    /// Index of the tunnel device; 0 without a tunnel.
    pub tunnel_ifindex: u32,
    /// Index of `cilium_host`.
    pub host_ifindex: u32,
    /// Bytes of a packet that a trace or drop event carries at most.
    pub trace_payload_len: u32,
    /// Id of the host endpoint.
    pub host_endpoint_id: u16,
    /// Own cluster id, 0 outside a mesh.
    pub cluster_id: u16,
    /// 1 when IPv4 is on.
    pub enable_ipv4: u8,
    /// 1 when IPv6 is on.
    pub enable_ipv6: u8,
    /// `TUNNEL_*`.
    pub tunnel: u8,
    /// `AGGREGATION_*`.
    pub monitor_aggregation: u8,
    /// 1 when drop events are sent.
    pub drop_events: u8,
    /// 1 when trace events are sent.
    pub trace_events: u8,
    /// 1 when debug events are sent.
    pub debug_events: u8,
    /// Unused, zero.
    pub pad: u8,
    /// MAC address of `cilium_host`, then two zero bytes.
    pub host_mac: [u8; 8],
    /// The pods' gateway, network byte order.
    pub router_ipv4: [u8; 4],
    /// The pods' gateway, network byte order.
    pub router_ipv6: [u8; 16],
    /// UDP port of the tunnel, network byte order; zero without a tunnel.
    pub tunnel_port: [u8; 2],
    /// Unused, zero.
    pub pad_end: [u8; 2],
    /// Native routing: the device on whose link the nodes are that the ipcache gives an address
    /// of; 0 when the routing table is asked for every packet.
    pub direct_ifindex: u32,
    /// MTU of that device.
    pub direct_mtu: u32,
    /// Ticks that a TCP flow lives without a packet, see [`crate::conntrack`].
    pub ct_tcp_ticks: u32,
    /// Ticks that any other flow lives without a packet.
    pub ct_any_ticks: u32,
    /// Ticks that a TCP flow lives of which only SYNs were seen.
    pub ct_syn_ticks: u32,
    /// Ticks that a TCP flow lives when both ends have closed it.
    pub ct_closed_ticks: u32,
    /// Ticks after which a flow is traced again, with [`AGGREGATION_MEDIUM`] and above.
    pub aggregation_ticks: u32,
    /// TCP flags that are traced when a side shows them first, with [`AGGREGATION_MEDIUM`] and
    /// above.
    pub aggregation_flags: u8,
    /// 1 when policy-verdict events are sent.
    pub policy_verdict_events: u8,
    /// 1 when the host endpoint's policy is enforced.
    pub enable_host_firewall: u8,
    /// Unused, zero.
    pub pad_tail: u8,
}
