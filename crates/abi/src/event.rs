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
    /// [`PolicyVerdictNotify`].
    PolicyVerdict = 5,
    /// [`TraceSockNotify`].
    TraceSock = 7,
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

/// Value of [`TraceNotify::reason`]: the first packet of a flow.
pub const TRACE_REASON_NEW: u8 = 0;
/// Value of [`TraceNotify::reason`]: a later packet of who began the flow.
pub const TRACE_REASON_ESTABLISHED: u8 = 1;
/// Value of [`TraceNotify::reason`]: the other direction of a flow.
pub const TRACE_REASON_REPLY: u8 = 2;
/// Value of [`TraceNotify::reason`]: an ICMP error about a flow.
pub const TRACE_REASON_RELATED: u8 = 3;
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

/// Bits of [`PolicyVerdictNotify::flags`]: 1 is ingress, 2 egress.
pub const VERDICT_F_DIRECTION: u8 = 0b11;
/// Bit of [`PolicyVerdictNotify::flags`]: the packet is IPv6.
pub const VERDICT_F_IPV6: u8 = 1 << 2;
/// Bits of [`PolicyVerdictNotify::flags`]: how the policy matched, see [`PolicyMatch`].
pub const VERDICT_F_MATCH: u8 = 0b111 << 3;
/// Lowest bit of [`VERDICT_F_MATCH`].
pub const VERDICT_MATCH_SHIFT: u8 = 3;
/// Bit of [`PolicyVerdictNotify::flags`]: denied, but only audited.
pub const VERDICT_F_AUDITED: u8 = 1 << 6;
/// Bit of [`PolicyVerdictNotify::flags`]: the packet has no Ethernet header.
pub const VERDICT_F_L3_DEVICE: u8 = 1 << 7;

/// How specific the entry of a policy was that decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum PolicyMatch {
    /// No entry: the default decided.
    None = 0,
    /// Identity only.
    L3Only = 1,
    /// Identity, protocol and port.
    L3L4 = 2,
    /// Protocol and port, of any identity.
    L4Only = 3,
    /// Everything is allowed.
    All = 4,
    /// Identity and protocol.
    L3Proto = 5,
    /// Protocol, of any identity.
    ProtoOnly = 6,
}

impl PolicyMatch {
    /// How specific an entry is whose key names an identity or not, with this many bits of protocol
    /// and port.
    pub const fn of(names_identity: bool, prefix_bits: u8) -> Self {
        match (names_identity, prefix_bits) {
            (true, 0) => Self::L3Only,
            (true, 8) => Self::L3Proto,
            (true, _) => Self::L3L4,
            (false, 0) => Self::All,
            (false, 8) => Self::ProtoOnly,
            (false, _) => Self::L4Only,
        }
    }
}

/// What policy said of a new flow, version 1: 40 bytes.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct PolicyVerdictNotify {
    /// Common part; the subtype is 0.
    pub header: CaptureHeader,
    /// Identity of the other end.
    pub remote_label: u32,
    /// Negative: minus the [`crate::DropReason`]; 0: allowed; positive: port of the proxy.
    pub verdict: i32,
    /// Destination port, in host byte order.
    pub dst_port: u16,
    /// Protocol of the transport.
    pub proto: u8,
    /// `VERDICT_F_*`.
    pub flags: u8,
    /// Kind of authentication; 0 is none.
    pub auth_type: u8,
    /// Unused, zero.
    pub pad: [u8; 3],
    /// Which entry of the policy decided; 0 is not known.
    pub cookie: u32,
    /// Unused, zero.
    pub pad2: u32,
}

/// A socket's address was translated to a backend, or back: 40 bytes, no packet follows.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct TraceSockNotify {
    /// [`EventType::TraceSock`].
    pub event_type: u8,
    /// Before (1) or after (2) translation, and the same on the way back (3, 4).
    pub xlate_point: u8,
    /// 1 is TCP, 2 UDP.
    pub l4_proto: u8,
    /// Bit 0: the address is IPv6.
    pub flags: u8,
    /// Destination port, in host byte order.
    pub dst_port: u16,
    /// Unused, zero.
    pub pad: [u8; 2],
    /// Cookie of the socket.
    pub sock_cookie: u64,
    /// Control group of the process.
    pub cgroup_id: u64,
    /// Destination address; IPv4 in the first four bytes.
    pub dst_ip: [u8; 16],
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
