//! Explanations: what a policy says of a flow, and why.

use std::sync::Arc;

use model::{IdentityId, Labels};
use serde::{Deserialize, Serialize};

use crate::port::{NamedPort, Protocol};
use crate::repository::SubjectKind;
use crate::rule::{Direction, Place, PolicyId, Tier, Unenforced, Verdict};

/// One end of a flow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Party {
    /// Its labels.
    pub labels: Arc<Labels>,
    /// Its identity, where it has one.
    pub identity: Option<IdentityId>,
    /// What it is to policies when it is the subject; `None` for one that no policy is enforced for,
    /// as outside the cluster.
    pub subject: Option<SubjectKind>,
    /// Names that it gives to ports.
    pub named_ports: Vec<NamedPort>,
}

/// A flow: who to whom, and what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FlowQuery {
    /// Who sends the first packet.
    pub source: Party,
    /// Who receives it.
    pub target: Party,
    /// Its protocol.
    pub protocol: Protocol,
    /// Port of the target; type of an ICMP message.
    pub port: u16,
}

/// One side of a flow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirectionQuery {
    /// Whose policy is asked.
    pub subject: Party,
    /// The other end.
    pub peer: Party,
    /// Whether the flow comes to the subject or goes from it.
    pub direction: Direction,
    /// Its protocol.
    pub protocol: Protocol,
    /// Port of the target; type of an ICMP message.
    pub port: u16,
}

/// What is said of a flow at both its ends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowExplanation {
    /// At the sender.
    pub egress: Explanation,
    /// At the receiver.
    pub ingress: Explanation,
}

impl FlowExplanation {
    /// Whether the flow may pass.
    pub fn allowed(&self) -> bool {
        self.egress.allowed() && self.ingress.allowed()
    }
}

/// What is said of a flow at one end, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explanation {
    /// Whether it comes or goes.
    pub direction: Direction,
    /// What is said.
    pub outcome: Outcome,
}

/// What is said of a flow.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Outcome {
    /// No policy is enforced here, so it may pass.
    NotEnforced,
    /// Rules decide.
    Decided {
        /// What they say.
        verdict: Verdict,
        /// Those that say so with equal weight.
        rules: Vec<RuleReference>,
    },
    /// Only rules that are not enforced yet cover it, so it is denied.
    Unenforced {
        /// Those rules.
        rules: Vec<RuleReference>,
        /// What they ask for.
        asks: Vec<Unenforced>,
    },
    /// The node reaches its own pods.
    AllowLocalhost,
    /// Rules are asked, none covers it, and none makes that a denial.
    DefaultAllow,
    /// No rule allows it, and one that selects the subject makes that a denial.
    DefaultDeny {
        /// The rules that make it one; empty when the mode `always` does, or missing labels do.
        selecting: Vec<RuleReference>,
        /// The rule that came closest to allowing it.
        nearest: Option<Nearest>,
        /// A rule that would let it pass.
        suggestion: Option<String>,
    },
}

impl Explanation {
    /// Whether the flow may pass here.
    pub fn allowed(&self) -> bool {
        match &self.outcome {
            Outcome::NotEnforced | Outcome::AllowLocalhost | Outcome::DefaultAllow => true,
            Outcome::Decided { verdict, .. } => *verdict == Verdict::Allow,
            Outcome::Unenforced { .. } | Outcome::DefaultDeny { .. } => false,
        }
    }
}

/// Which rule, so that a person finds it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct RuleReference {
    /// Its policy.
    pub policy: PolicyId,
    /// Which of `specs`; `None` is `spec`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spec: Option<u16>,
    /// Which item; `None` is the rule as a whole.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub place: Option<Place>,
    /// Its tier.
    pub tier: Tier,
    /// Its text for the log.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log: Option<Arc<str>>,
}

/// The rule that came closest, and why it did not cover the flow.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Nearest {
    /// The rule.
    pub rule: RuleReference,
    /// What did not match.
    pub unmet: Unmet,
}

/// Why a clause does not cover a flow.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "what", rename_all = "kebab-case")]
pub enum Unmet {
    /// The peer is another.
    Peer {
        /// Whom the clause means, and what of it the peer does not fulfil.
        expected: String,
        /// Who the peer is.
        found: String,
    },
    /// The port is another.
    Port {
        /// Which the clause means.
        expected: String,
        /// Which it is.
        found: String,
    },
    /// The protocol is another.
    Protocol {
        /// Which the clause means.
        expected: String,
        /// Which it is.
        found: String,
    },
    /// Neither peer nor port match.
    PeerAndPort {
        /// Whom and what the clause means.
        expected: String,
        /// Who and what it is.
        found: String,
    },
    /// The clause speaks of the other direction.
    Direction,
}
