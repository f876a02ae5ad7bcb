//! Counters of forwarded and dropped packets, `cilium_metrics_v1`.
//!
//! A per-CPU array instead of Cilium's per-CPU hash: the program that counts every packet then
//! pays an addition, not a hash. The index is [`index`].

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Direction of a counted packet, seen from the endpoint or the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Direction {
    /// Into an endpoint or into the node.
    Ingress = 1,
    /// Out of an endpoint or out of the node.
    Egress = 2,
}

/// Number of slots: 256 reasons of four directions.
pub const METRICS_LEN: u32 = 1024;

/// The slot of `reason` (a [`crate::DropReason`] number or 0 for forwarded) and `direction`.
pub const fn index(reason: u8, direction: Direction) -> u32 {
    (reason as u32) << 2 | direction as u32
}

/// One CPU's counter of one slot: 16 bytes.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct MetricsValue {
    /// Packets.
    pub count: u64,
    /// Bytes of these packets.
    pub bytes: u64,
}
