//! Flows: one entry for both directions, keyed by the two ends in order.
//!
//! ```text
//!   key    protocol, family, zone, the lower end and the upper end (address, then port, compared as bytes)
//!   value  who began, what both ends' policies said, until when, what TCP flags were seen
//! ```
//!
//! An ICMP echo has its id as the requester's port and 0 as the responder's, so that a request of
//! the other side is another flow. What has no ports has zeros.
//!
//! Flows begin in the *unassured* map, an LRU; those that are proven by the initiator (a TCP
//! handshake; over UDP another packet after a reply) move to the *assured* map, where nothing is
//! ever evicted. A TCP flow that both ends have closed moves back. Programs look an assured flow up
//! first and insert before they delete, so a flow is never nowhere; where a key is in both maps, the
//! assured one counts.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Nanoseconds of CLOCK_MONOTONIC are shifted right by this much: a tick is 1.07 s.
pub const TICK_SHIFT: u32 = 30;

/// The time in ticks.
pub const fn ticks(monotonic_ns: u64) -> u32 {
    (monotonic_ns >> TICK_SHIFT) as u32
}

/// As many ticks as `seconds` take, rounded up.
pub const fn ticks_of_seconds(seconds: u32) -> u32 {
    ((seconds as u64 * 1_000_000_000 + (1 << TICK_SHIFT) - 1) >> TICK_SHIFT) as u32
}

/// Seconds that a TCP flow lives without a packet, by default (`bpf-ct-timeout-regular-tcp`).
pub const TCP_SECONDS: u32 = 8_000;
/// Seconds that any other flow lives without a packet, by default (`bpf-ct-timeout-regular-any`).
pub const ANY_SECONDS: u32 = 60;
/// Seconds that a TCP flow lives of which only SYNs were seen, by default
/// (`bpf-ct-timeout-regular-tcp-syn`).
pub const SYN_SECONDS: u32 = 60;
/// Seconds that a TCP flow lives when both ends have closed it, by default
/// (`bpf-ct-timeout-regular-tcp-fin`).
pub const CLOSED_SECONDS: u32 = 10;

macro_rules! flow_keys {
    ($($(#[$doc:meta])* $name:ident, $len:literal;)*) => {$(
        $(#[$doc])*
        #[derive(
            Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, FromBytes,
            IntoBytes, Immutable, KnownLayout,
        )]
        #[repr(C)]
        pub struct $name {
            /// Port of the lower end, network byte order.
            pub lower_port: [u8; 2],
            /// Port of the upper end, network byte order.
            pub upper_port: [u8; 2],
            /// L4 protocol.
            pub protocol: u8,
            /// [`crate::address::FAMILY_V4`] or [`crate::address::FAMILY_V6`].
            pub family: u8,
            /// Cluster or scope that both addresses belong to; 0 for the own cluster.
            pub zone: u16,
            /// Address of the lower end, network byte order.
            pub lower: [u8; $len],
            /// Address of the upper end, network byte order.
            pub upper: [u8; $len],
        }
    )*};
}

flow_keys! {
    /// Key of the IPv4 flow maps: 16 bytes.
    FlowKeyV4, 4;
    /// Key of the IPv6 flow maps: 40 bytes.
    FlowKeyV6, 16;
}

/// Index in [`Flow::decisions`]: what the initiator's policy said of sending.
pub const DECIDED_EGRESS: usize = 0;
/// Index in [`Flow::decisions`]: what the responder's policy said of receiving.
pub const DECIDED_INGRESS: usize = 1;

/// Value of [`FlowDecision::verdict`]: nothing was decided, the endpoint was not enforced.
pub const VERDICT_NONE: u8 = 0;
/// Value of [`FlowDecision::verdict`]: allowed.
pub const VERDICT_ALLOWED: u8 = 1;
/// Value of [`FlowDecision::verdict`]: would be denied, and passes because the endpoint is audited.
pub const VERDICT_AUDITED: u8 = 2;

/// What one end's policy said of a flow, and about what: any difference means to decide again.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct FlowDecision {
    /// Revision of the policy, see [`crate::policy::PolicySlot`]; 0 where nothing was decided.
    pub revision: u32,
    /// Identity of the endpoint.
    pub identity: u32,
    /// Identity of its peer.
    pub peer: u32,
    /// Port of the proxy, network byte order; 0 for none.
    pub proxy_port: [u8; 2],
    /// `VERDICT_*`.
    pub verdict: u8,
    /// Unused, zero.
    pub pad: u8,
}

/// Bit of [`Flow::state`]: the lower end began.
pub const FLOW_F_LOWER_BEGAN: u8 = 1;
/// Bit of [`Flow::state`]: the responder has answered.
pub const FLOW_F_REPLIED: u8 = 2;
/// Bit of [`Flow::state`]: proven, or too late for that; in the assured map.
pub const FLOW_F_ASSURED: u8 = 4;
/// Bit of [`Flow::state`]: the initiator has closed.
pub const FLOW_F_INITIATOR_CLOSED: u8 = 8;
/// Bit of [`Flow::state`]: the responder has closed.
pub const FLOW_F_RESPONDER_CLOSED: u8 = 16;
/// Bit of [`Flow::state`]: [`Flow::awaited`] holds the number that ends the handshake.
pub const FLOW_F_AWAITS: u8 = 32;

/// Value of the flow maps: 64 bytes.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Flow {
    /// What the initiator's and the responder's policies said, see [`DECIDED_EGRESS`].
    pub decisions: [FlowDecision; 2],
    /// In ticks: the flow is over when this time is past.
    pub expires: u32,
    /// In ticks: when the last trace event was sent, of the initiator's packets and of the
    /// responder's.
    pub reported: [u32; 2],
    /// In ticks: when the flow began.
    pub created: u32,
    /// TCP acknowledgement that proves that the initiator has heard the responder.
    pub awaited: u32,
    /// TCP flags seen, of the initiator and of the responder.
    pub tcp_flags: [u8; 2],
    /// `FLOW_F_*`.
    pub state: u8,
    /// Unused, zero.
    pub pad: [u8; 9],
}

/// Key of `cilium_fragments_v1`: 40 bytes. A datagram of which fragments are under way.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct FragmentKey {
    /// Source address, network byte order; IPv4 fills the first four bytes.
    pub source: [u8; 16],
    /// Target address.
    pub target: [u8; 16],
    /// Identification, network byte order; IPv4 fills the first two bytes.
    pub id: [u8; 4],
    /// L4 protocol.
    pub protocol: u8,
    /// [`crate::address::FAMILY_V4`] or [`crate::address::FAMILY_V6`].
    pub family: u8,
    /// Cluster or scope of the addresses; 0 for the own cluster.
    pub zone: u16,
}

/// Value of `cilium_fragments_v1`: 8 bytes. What only the first fragment says.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct FragmentPorts {
    /// Source port, or what stands for it in a flow's key.
    pub source_port: [u8; 2],
    /// Target port.
    pub target_port: [u8; 2],
    /// What a policy compares with its ports.
    pub policy_port: [u8; 2],
    /// ICMP type.
    pub icmp_type: u8,
    /// Unused, zero.
    pub pad: u8,
}
