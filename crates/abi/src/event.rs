//! Events from the programs, Cilium's layouts. Packet bytes follow the struct.
//!
//! Integers are in host byte order. Transport: one BPF ring buffer per CPU, see
//! [`crate::names::EVENTS`]. A record is a [`RecordHeader`], the event, the packet bytes. A record
//! that found its ring full is counted in [`crate::names::EVENTS_LOST`].

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// What every record of a ring begins with; user space merges the rings by it.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct RecordHeader {
    /// `bpf_ktime_get_ns()`: nanoseconds since boot, without the time asleep (CLOCK_MONOTONIC).
    pub timestamp_ns: u64,
}

/// First byte of every event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum EventType {
    /// [`DropNotify`].
    Drop = 1,
    /// [`DebugMessage`].
    Debug = 2,
    /// A captured packet with two arguments.
    DebugCapture = 3,
    /// [`TraceNotify`].
    Trace = 4,
}

impl EventType {
    /// The bit of this type in [`crate::config::RUNTIME_EVENTS`].
    pub const fn listener_bit(self) -> u64 {
        1 << self as u8
    }
}

/// Bytes of a packet that an event carries at most, whatever the configuration says.
pub const CAPTURE_LEN_MAX: usize = 192;

/// Subtype of [`DebugMessage`]: delivered to a local endpoint; its id, the source identity.
pub const DEBUG_LOCAL_DELIVERY: u8 = 2;
/// Subtype of [`DebugMessage`]: into the tunnel; the first four bytes of the node's address, the
/// source identity.
pub const DEBUG_ENCAP: u8 = 3;
/// Subtype of [`DebugMessage`]: answered a neighbour solicitation; last four bytes of the target.
pub const DEBUG_ICMP6_NS: u8 = 13;
/// Subtype of [`DebugMessage`]: out of the tunnel; the VNI.
pub const DEBUG_DECAP: u8 = 16;

/// Where in the datapath a packet was seen: the subtype of [`TraceNotify`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum ObservationPoint {
    /// Delivered to an endpoint.
    ToEndpoint = 0,
    /// To the L7 proxy.
    ToProxy = 1,
    /// To the host.
    ToHost = 2,
    /// To the network stack of the node.
    ToStack = 3,
    /// Into the tunnel.
    ToOverlay = 4,
    /// Sent by an endpoint.
    FromEndpoint = 5,
    /// From the L7 proxy.
    FromProxy = 6,
    /// From the host.
    FromHost = 7,
    /// From the network stack of the node.
    FromStack = 8,
    /// Out of the tunnel.
    FromOverlay = 9,
    /// From a network device.
    FromNetwork = 10,
    /// To a network device.
    ToNetwork = 11,
}

/// Value of [`TraceNotify::reason`]: the connection state is not known.
pub const TRACE_REASON_UNKNOWN: u8 = 5;

/// Flag of drop and trace events: the packet is IPv6.
pub const EVENT_F_IPV6: u8 = 1;
/// Flag of drop and trace events: the packet has no Ethernet header.
pub const EVENT_F_L3_DEVICE: u8 = 2;
/// Flag of drop and trace events: the packet carries VXLAN.
pub const EVENT_F_VXLAN: u8 = 4;

/// What every event of a packet begins with: 16 bytes.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct CaptureHeader {
    /// [`EventType`].
    pub event_type: u8,
    /// Drop reason or observation point.
    pub subtype: u8,
    /// Endpoint id that the event is about.
    pub source: u16,
    /// Flow hash of the packet.
    pub hash: u32,
    /// Length of the packet.
    pub len_orig: u32,
    /// Bytes of the packet after the struct.
    pub len_cap: u16,
    /// Version of the struct.
    pub version: u8,
    /// Version of an extension; 0 is none.
    pub ext_version: u8,
}

/// A dropped packet, version 3: 48 bytes. The subtype is the [`crate::DropReason`].
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct DropNotify {
    /// Common part.
    pub header: CaptureHeader,
    /// Source identity.
    pub src_label: u32,
    /// Destination identity.
    pub dst_label: u32,
    /// Destination endpoint id; 0 on the way out.
    pub dst_id: u32,
    /// Source line; 0 where it is not known.
    pub line: u16,
    /// [`HookId`] number.
    pub file: u8,
    /// Further detail of the reason.
    pub ext_error: i8,
    /// Device the packet was on.
    pub ifindex: u32,
    /// `EVENT_F_*`.
    pub flags: u8,
    /// Unused, zero.
    pub pad: [u8; 3],
    /// IP trace id; 0 is none.
    pub ip_trace_id: u64,
}

/// A packet seen on its way, version 2: 56 bytes. The subtype is the [`ObservationPoint`].
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct TraceNotify {
    /// Common part.
    pub header: CaptureHeader,
    /// Source identity.
    pub src_label: u32,
    /// Destination identity.
    pub dst_label: u32,
    /// Destination endpoint id or proxy port.
    pub dst_id: u16,
    /// `TRACE_REASON_*`.
    pub reason: u8,
    /// `EVENT_F_*`.
    pub flags: u8,
    /// Device the packet leaves by.
    pub ifindex: u32,
    /// Source address before translation; zero where there was none.
    pub orig_ip: [u8; 16],
    /// IP trace id; 0 is none.
    pub ip_trace_id: u64,
}

/// A debug message: 20 bytes, no packet follows. The subtype is a number of Hubble's
/// `DebugEventType`.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct DebugMessage {
    /// [`EventType::Debug`].
    pub event_type: u8,
    /// Message number.
    pub subtype: u8,
    /// Endpoint id that the event is about.
    pub source: u16,
    /// Flow hash of the packet.
    pub hash: u32,
    /// First argument.
    pub arg1: u32,
    /// Second argument.
    pub arg2: u32,
    /// Third argument.
    pub arg3: u32,
}

/// The hook that made an event or counted a packet, in `file` of [`DropNotify`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum HookId {
    /// `cil_from_container`.
    FromContainer = 1,
    /// `cil_to_container`.
    ToContainer = 2,
    /// `cil_from_netdev`.
    FromNetdev = 3,
    /// `cil_to_netdev`.
    ToNetdev = 4,
    /// `cil_from_overlay`.
    FromOverlay = 5,
    /// `cil_to_overlay`.
    ToOverlay = 6,
    /// `cil_from_host`.
    FromHost = 7,
}
