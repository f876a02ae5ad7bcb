//! What a policy map should hold for a subject, and what a lookup in it answers.

use std::collections::BTreeMap;

use abi::policy as wire;
use model::IdentityId;
use serde::{Deserialize, Serialize};

use crate::port::{PortPrefix, Protocol};
use crate::rule::{Direction, PerDirection};

/// Key of an entry: without the slot, which is the agent's to choose.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Key {
    /// Whether traffic comes or goes.
    pub direction: Direction,
    /// Identity of the peer, one of the aggregates (11 to 14), or 0 for any.
    pub peer: IdentityId,
    /// Protocol and port.
    pub ports: PortPrefix,
}

impl Key {
    /// The key as the kernel has it.
    pub fn to_wire(self, slot: u32) -> wire::PolicyKey {
        let direction = match self.direction {
            Direction::Ingress => wire::POLICY_INGRESS,
            Direction::Egress => wire::POLICY_EGRESS,
        };
        wire::PolicyKey {
            prefix_len: wire::POLICY_STATIC_PREFIX_BITS + u32::from(self.ports.length()),
            slot,
            identity: self.peer.0,
            direction,
            protocol: self.ports.known_protocol().map_or(0, |protocol| protocol.0),
            dport: self.ports.ports().0.to_be_bytes(),
        }
    }
}

/// What happens to what an entry covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EntryVerdict {
    /// It may pass.
    Allow,
    /// A rule denies it.
    Deny,
    /// A rule would let some of it pass, but asks for more than is enforced yet; so it may not.
    NotEnforced,
}

impl EntryVerdict {
    /// The lowest byte of the precedence. Among rules of one priority a deny beats an allow, and an
    /// allow beats one that is restricted: rules are a union.
    pub(crate) const fn precedence(self) -> u8 {
        match self {
            Self::Deny => wire::PRECEDENCE_DENY,
            Self::Allow => wire::PRECEDENCE_ALLOW,
            Self::NotEnforced => wire::PRECEDENCE_PASS,
        }
    }
}

/// Value of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Entry {
    /// What happens.
    pub verdict: EntryVerdict,
    /// The higher wins.
    pub precedence: u32,
    /// Names the rules that made it, see `Repository::rules_of`.
    pub cookie: u32,
}

impl Entry {
    /// The value as the kernel has it, for an entry of this key.
    pub fn to_wire(self, key: Key) -> wire::PolicyEntry {
        let verdict = match self.verdict {
            EntryVerdict::Allow => 0,
            EntryVerdict::Deny => wire::POLICY_DENY,
            EntryVerdict::NotEnforced => wire::POLICY_DENY | wire::POLICY_NOT_ENFORCEABLE,
        };
        wire::PolicyEntry {
            proxy_port: [0; 2],
            bits: verdict | key.ports.length() << wire::POLICY_PREFIX_SHIFT,
            auth: 0,
            precedence: self.precedence,
            cookie: self.cookie,
        }
    }
}

/// The content of a policy map.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MapState {
    pub(crate) enforce: PerDirection<bool>,
    pub(crate) entries: BTreeMap<Key, Entry>,
    pub(crate) digest: u128,
}

impl MapState {
    /// Whether a direction is looked up at all. Where it is not, everything passes.
    pub fn enforces(&self, direction: Direction) -> bool {
        self.enforce[direction]
    }

    /// The entries in order.
    pub fn entries(&self) -> &BTreeMap<Key, Entry> {
        &self.entries
    }

    /// A digest of the entries: equal contents have equal digests, and others practically never.
    pub fn digest(&self) -> u128 {
        self.digest
    }

    /// What the kernel finds for a packet, in the cluster of this number; `None` is denied by
    /// default.
    pub fn lookup(
        &self,
        direction: Direction,
        peer: IdentityId,
        cluster_id: u32,
        protocol: Protocol,
        port: u16,
    ) -> Option<(Key, Entry)> {
        let aggregate = IdentityId(wire::aggregate(peer.0, cluster_id));
        let exact = self.longest(direction, peer, protocol, port);
        let aggregated = self.longest(direction, aggregate, protocol, port);
        match (exact, aggregated) {
            (None, None) => self.longest(direction, IdentityId::UNKNOWN, protocol, port),
            // `max_by_key` takes the last of equals: the exact one.
            _ => aggregated
                .into_iter()
                .chain(exact)
                .max_by_key(|(key, entry)| (entry.precedence, key.ports.length())),
        }
    }

    /// The entry of the longest prefix under one peer.
    fn longest(
        &self,
        direction: Direction,
        peer: IdentityId,
        protocol: Protocol,
        port: u16,
    ) -> Option<(Key, Entry)> {
        self.covering(direction, peer, PortPrefix::port(protocol, port))
    }

    /// The entry of the longest prefix under one peer that covers all of these ports.
    pub(crate) fn covering(
        &self,
        direction: Direction,
        peer: IdentityId,
        ports: PortPrefix,
    ) -> Option<(Key, Entry)> {
        let first = Key { direction, peer, ports: PortPrefix::ALL };
        let (nearest, _) = self.entries.range(first..).next()?;
        if (nearest.direction, nearest.peer) != (direction, peer) {
            return None;
        }
        let lengths = (8..=ports.length()).rev().chain([0]);
        let mut keys =
            lengths.map(|length| Key { direction, peer, ports: ports.truncated(length) });
        keys.find_map(|key| Some((key, *self.entries.get(&key)?)))
    }
}

/// What to change so that a map holds what it should.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Delta {
    /// Whether each direction is looked up from now on.
    pub enforce: PerDirection<bool>,
    /// Entries to remove.
    pub removed: Vec<Key>,
    /// Entries to write, denials first.
    pub written: Vec<(Key, Entry)>,
}
