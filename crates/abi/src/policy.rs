//! What an endpoint may send and receive: the node's policy map, its revisions, and how a key of it
//! is looked up.
//!
//! One trie holds the policies of all endpoints of a node. An endpoint's row names a *slot*, and the
//! slot is the first part of every key; endpoints whose policies resolve to the same content share
//! a slot. Behind the slot, key and value are Cilium's `policy_key` and `policy_entry`.
//!
//! A packet is decided by at most three lookups: the peer's identity, the aggregate of that
//! identity ([`aggregate`]), and any identity. The winner has the higher `precedence`, then the
//! longer prefix of protocol and port, then the exact identity.
//!
//! To change a policy: write the trie, then give the slot a new revision ([`PolicySlot`]). Programs
//! read the revision before the trie, so what a flow remembers is at worst an old revision.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::identity;

/// `PolicyKey::direction`: what an endpoint receives.
pub const POLICY_INGRESS: u8 = 0;
/// `PolicyKey::direction`: what an endpoint sends.
pub const POLICY_EGRESS: u8 = 1;

/// Bits of [`PolicyKey`] before the protocol: slot, identity, direction.
pub const POLICY_STATIC_PREFIX_BITS: u32 = 72;
/// Bits of the protocol, all or none.
pub const POLICY_PROTOCOL_BITS: u32 = 8;
/// Bits of the port; fewer are a range.
pub const POLICY_PORT_BITS: u32 = 16;
/// `PolicyKey::prefix_len` of a lookup: everything is known.
pub const POLICY_PREFIX_BITS_MAX: u32 =
    POLICY_STATIC_PREFIX_BITS + POLICY_PROTOCOL_BITS + POLICY_PORT_BITS;

/// Slot that no policy is in: the row of an endpoint that is not enforced.
pub const POLICY_SLOT_NONE: u32 = 0;

/// Key of `cilium_policy_slots_v1`: 16 bytes, the slot and Cilium's `policy_key`.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    Hash,
    PartialOrd,
    Ord,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
)]
#[repr(C)]
pub struct PolicyKey {
    /// [`POLICY_STATIC_PREFIX_BITS`], plus 8 where the protocol counts, plus the port's bits.
    pub prefix_len: u32,
    /// Slot of the endpoint.
    pub slot: u32,
    /// Identity of the peer; 0 is any.
    pub identity: u32,
    /// [`POLICY_INGRESS`] or [`POLICY_EGRESS`].
    pub direction: u8,
    /// L4 protocol.
    pub protocol: u8,
    /// Port of the target, network byte order; type of an ICMP message.
    pub dport: [u8; 2],
}

/// Bit of [`PolicyEntry::bits`]: denied.
pub const POLICY_DENY: u8 = 1;
/// Bit of [`PolicyEntry::bits`], reserved in Cilium: the rule asks for more than we enforce yet (L7,
/// names), so what it covers is denied, and said to be.
pub const POLICY_NOT_ENFORCEABLE: u8 = 2;
/// How far the length of the prefix, 0 to 24, is shifted in [`PolicyEntry::bits`].
pub const POLICY_PREFIX_SHIFT: u8 = 3;

/// Lowest byte of [`PolicyEntry::precedence`]: denied.
pub const PRECEDENCE_DENY: u8 = 255;
/// Lowest byte of [`PolicyEntry::precedence`]: allowed.
pub const PRECEDENCE_ALLOW: u8 = 1;
/// Lowest byte of [`PolicyEntry::precedence`]: left to the next tier.
pub const PRECEDENCE_PASS: u8 = 0;

/// The precedence of an entry of a rule with `priority` (0 counts most) and this lowest byte.
pub const fn precedence(priority: u32, low: u8) -> u32 {
    (0xff_ffff - priority) << 8 | low as u32
}

/// Value of `cilium_policy_slots_v1`: 12 bytes, Cilium's `policy_entry`.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    Hash,
    PartialOrd,
    Ord,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
)]
#[repr(C)]
pub struct PolicyEntry {
    /// Port of the proxy, network byte order; 0 for none.
    pub proxy_port: [u8; 2],
    /// [`POLICY_DENY`], [`POLICY_NOT_ENFORCEABLE`], and the length of the prefix.
    pub bits: u8,
    /// Type of authentication; 0 for none.
    pub auth: u8,
    /// The higher wins, see [`precedence`].
    pub precedence: u32,
    /// Names what made the entry, for events; the agent knows what it stands for.
    pub cookie: u32,
}

impl PolicyEntry {
    /// Bits of protocol and port that the key of this entry has: 0, 8, or 9 to 24.
    pub const fn prefix_bits(&self) -> u8 {
        self.bits >> POLICY_PREFIX_SHIFT
    }

    /// Whether what the entry covers is denied by a rule.
    pub const fn is_deny(&self) -> bool {
        self.bits & POLICY_DENY != 0
    }

    /// Whether the entry stands for rules that are not enforced yet.
    pub const fn is_not_enforceable(&self) -> bool {
        self.bits & POLICY_NOT_ENFORCEABLE != 0
    }
}

/// Value of `cilium_policy_revisions_v1`, indexed by slot.
///
/// A revision names one content of one slot: it is never used again, not for another slot either,
/// and is never 0. So who compares revisions need not compare slots.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct PolicySlot {
    /// Revision of what is in the trie under this slot; 0 for a slot that is not in use.
    pub revision: u32,
}

/// Identity that stands for all endpoints of the own cluster, in policy maps.
pub const AGGREGATE_CLUSTER: u32 = 11;
/// Identity that stands for all endpoints of other clusters of the mesh.
pub const AGGREGATE_CLUSTER_MESH: u32 = 12;
/// Identity that stands for everything outside the clusters that has an identity of its own.
pub const AGGREGATE_WORLD: u32 = 13;
/// Identity that stands for all nodes that have an identity of their own.
pub const AGGREGATE_REMOTE_NODE: u32 = 14;

/// Reserved identities are below: no aggregate stands for them.
const RESERVED_END: u32 = 100;

/// The aggregate that stands for `peer` in a policy map, in the cluster `cluster_id`; 0 where there
/// is none.
pub const fn aggregate(peer: u32, cluster_id: u32) -> u32 {
    match peer & identity::SCOPE_MASK {
        0 if peer < RESERVED_END => 0,
        0 if peer >> 16 == cluster_id => AGGREGATE_CLUSTER,
        0 => AGGREGATE_CLUSTER_MESH,
        identity::SCOPE_LOCAL => AGGREGATE_WORLD,
        identity::SCOPE_REMOTE_NODE => AGGREGATE_REMOTE_NODE,
        _ => 0,
    }
}
