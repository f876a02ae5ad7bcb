//! What a policy says: the same three lookups for the programs and for `policy trace`.

use abi::DropReason;
use abi::event::PolicyMatch;
use abi::policy::{
    POLICY_PREFIX_BITS_MAX, POLICY_PROTOCOL_BITS, POLICY_STATIC_PREFIX_BITS, PRECEDENCE_PASS,
    PolicyEntry, PolicyKey, aggregate,
};

use crate::maps::Maps;

/// A question to a policy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Question {
    /// Slot of the endpoint.
    pub slot: u32,
    /// Identity of its peer.
    pub peer: u32,
    /// [`abi::policy::POLICY_INGRESS`] or [`abi::policy::POLICY_EGRESS`].
    pub direction: u8,
    /// L4 protocol.
    pub protocol: u8,
    /// Port of the target, network byte order; type of an ICMP message.
    pub port: [u8; 2],
    /// Whether the port is known; otherwise only what covers all ports answers.
    pub has_port: bool,
}

/// What the policy answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    /// The entry that decides; it means nothing where there is none.
    pub entry: PolicyEntry,
    /// Whether there is an entry that covers the question.
    pub is_found: bool,
    /// Whether its key names an identity.
    pub names_identity: bool,
}

impl Answer {
    /// How specific the entry is that decides.
    pub fn matched(&self) -> PolicyMatch {
        if self.is_found {
            PolicyMatch::of(self.names_identity, self.entry.prefix_bits())
        } else {
            PolicyMatch::None
        }
    }

    /// Why a packet is dropped; `None` where it is allowed.
    pub fn refusal(&self, question: &Question) -> Option<DropReason> {
        let entry = &self.entry;
        if !self.is_found || entry.precedence as u8 == PRECEDENCE_PASS {
            let reason =
                if question.has_port { DropReason::Policy } else { DropReason::FragNosupport };
            Some(reason)
        } else if entry.is_deny() {
            Some(DropReason::PolicyDeny)
        } else if entry.is_not_enforceable() || entry.proxy_port != [0; 2] {
            Some(DropReason::PolicyNotEnforceable)
        } else if entry.auth != 0 {
            Some(DropReason::PolicyAuthRequired)
        } else {
            None
        }
    }

    /// Takes an entry that is better than what is there: higher precedence, then a longer prefix.
    fn improve(&mut self, entry: &PolicyEntry, names_identity: bool) {
        let rank =
            |entry: &PolicyEntry| u64::from(entry.precedence) << 8 | u64::from(entry.prefix_bits());
        if !self.is_found || rank(entry) > rank(&self.entry) {
            *self = Self { entry: *entry, is_found: true, names_identity };
        }
    }
}

/// Asks a policy: the peer's identity, its aggregate, and if neither is there, anybody. Of equals the
/// more exact identity decides, which is asked first.
pub fn ask<M: Maps>(maps: &M, question: &Question, answer: &mut Answer) {
    let prefix_len = if question.has_port {
        POLICY_PREFIX_BITS_MAX
    } else {
        POLICY_STATIC_PREFIX_BITS + POLICY_PROTOCOL_BITS
    };
    let mut key = PolicyKey {
        prefix_len,
        slot: question.slot,
        identity: question.peer,
        direction: question.direction,
        protocol: question.protocol,
        dport: question.port,
    };
    answer.is_found = false;
    if let Some(entry) = maps.policy(&key) {
        answer.improve(entry, key.identity != 0);
    }
    if answer.is_found && answer.entry.precedence == u32::MAX {
        return;
    }
    key.identity = aggregate(question.peer, u32::from(maps.config().cluster_id));
    if let Some(entry) = maps.policy(&key) {
        answer.improve(entry, key.identity != 0);
    }
    if answer.is_found || key.identity == 0 {
        return;
    }
    key.identity = 0;
    if let Some(entry) = maps.policy(&key) {
        answer.improve(entry, false);
    }
}
