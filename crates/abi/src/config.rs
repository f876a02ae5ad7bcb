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
/// `DatapathConfig::monitor_aggregation`: only what connection tracking reports.
pub const AGGREGATION_MEDIUM: u8 = 3;

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
}
