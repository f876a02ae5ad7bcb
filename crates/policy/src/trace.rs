//! Explanations: what a policy says of a flow, and why.
//!
//! A question is answered with what fills the maps: the same rules ([`Repository`]), their parts and
//! the shape of a direction (`subject`), whom a selector means (`peers`), and who wins (`decide`).

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use abi::policy::AGGREGATE_CLUSTER;
use ipnet::IpNet;
use model::label::{KEY_CLUSTER, SOURCE_K8S, SOURCE_RESERVED};
use model::{IdentityId, Label, Labels};
use serde::{Deserialize, Serialize};

use crate::decide::{Item, Level, Says, decide};
use crate::map::EntryVerdict;
use crate::peers::{Who, has_reserved};
use crate::port::{NamedPort, PortMatch, PortPrefix, Protocol};
use crate::repository::{Repository, SubjectId, SubjectKind};
use crate::rule::{
    Clause, Direction, PeerSelector, Peers, Place, Policy, PolicyId, Rule, Tier, Unenforced,
    Verdict,
};
use crate::subject::{About, Part, Shape, parts, rules};
use crate::suggest::suggestion;

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

impl RuleReference {
    /// A rule as a whole.
    fn of_rule(policy: &Policy, rule: &Rule) -> Self {
        Self {
            policy: policy.id.clone(),
            spec: rule.spec,
            place: None,
            tier: rule.tier,
            log: rule.log.clone(),
        }
    }

    pub(crate) fn of_clause(policy: &Policy, rule: &Rule, clause: &Clause) -> Self {
        Self { place: Some(clause.place), ..Self::of_rule(policy, rule) }
    }
}

/// As in `CiliumNetworkPolicy default/web specs[1].ingress[0]`.
impl fmt::Display for RuleReference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.policy.fmt(f)?;
        match (self.spec, self.place) {
            (None, None) => Ok(()),
            (None, Some(place)) => write!(f, " {place}"),
            (Some(spec), None) => write!(f, " specs[{spec}]"),
            (Some(spec), Some(place)) => write!(f, " specs[{spec}].{place}"),
        }
    }
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

impl fmt::Display for Unmet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Peer { expected, found } => {
                write!(f, "the peer must be {expected}, and is {found}")
            }
            Self::Port { expected, found } => {
                write!(f, "the port must be {expected}, and is {found}")
            }
            Self::Protocol { expected, found } => {
                write!(f, "the protocol must be that of {expected}, and it is {found}")
            }
            Self::PeerAndPort { expected, found } => {
                write!(f, "peer and port must be {expected}, and are {found}")
            }
            Self::Direction => f.write_str("it speaks of the other direction"),
        }
    }
}

/// One line; with `#`, a paragraph that names everything.
impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let direction = self.direction;
        match &self.outcome {
            Outcome::NotEnforced => write!(f, "{direction} allowed: no policy is enforced"),
            Outcome::AllowLocalhost => {
                write!(f, "{direction} allowed: the node reaches its own endpoints")
            }
            Outcome::DefaultAllow => {
                write!(f, "{direction} allowed: no rule says anything, and none denies the rest")
            }
            Outcome::Decided { verdict, rules } => {
                let verdict = if *verdict == Verdict::Allow { "allowed" } else { "denied" };
                write!(f, "{direction} {verdict} by {}", List(rules))
            }
            Outcome::Unenforced { rules, asks } => {
                let asks: Vec<&str> = asks.iter().map(|asks| asks.as_str()).collect();
                write!(f, "{direction} denied: {} are not enforced yet, which ", asks.join(", "))?;
                write!(f, "{} asks for", List(rules))
            }
            Outcome::DefaultDeny { selecting, nearest, suggestion } => {
                write!(f, "{direction} denied by default: no rule allows it; ")?;
                match selecting[..] {
                    [] => f.write_str("here everything is denied that no rule allows")?,
                    _ => write!(f, "the endpoint is selected by {}", List(selecting))?,
                }
                if let Some(Nearest { rule, unmet }) = nearest {
                    let separator = if f.alternate() { "\n  nearest: " } else { "; nearest is " };
                    write!(f, "{separator}{rule}: {unmet}")?;
                }
                match suggestion {
                    Some(suggestion) if f.alternate() => {
                        write!(f, "\n  this would allow it:\n\n{suggestion}")
                    }
                    _ => Ok(()),
                }
            }
        }
    }
}

/// How many rules a line names.
const NAMED_MAX: usize = 3;

struct List<'a>(&'a [RuleReference]);

impl fmt::Display for List<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let named = if f.alternate() { self.0.len() } else { NAMED_MAX.min(self.0.len()) };
        let texts: Vec<String> = self.0[..named].iter().map(ToString::to_string).collect();
        f.write_str(&texts.join(", "))?;
        match self.0.len() - named {
            0 => Ok(()),
            more => write!(f, " and {more} more"),
        }
    }
}

/// What is said of a flow: egress on one line, ingress on the next.
impl fmt::Display for FlowExplanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = if self.allowed() { "allowed" } else { "denied" };
        match f.alternate() {
            true => write!(f, "{verdict}\n{:#}\n{:#}", self.egress, self.ingress),
            false => write!(f, "{verdict}\n{}\n{}", self.egress, self.ingress),
        }
    }
}

/// What covers a flow: a rule, or what holds by default.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Because {
    /// By its index among the covering ones.
    Rule(usize),
    Default,
    Localhost,
}

/// A query with its peer looked at once.
struct Question<'a> {
    query: &'a DirectionQuery,
    labels: Arc<Labels>,
    prefixes: Vec<IpNet>,
}

impl Question<'_> {
    fn who(&self) -> Who<'_> {
        Who { labels: &self.labels, prefixes: &self.prefixes }
    }

    /// Whether it is about these ports. A name is one that the target gives.
    fn is_about(&self, ports: &PortMatch) -> bool {
        let DirectionQuery { direction, subject, peer, protocol, port } = self.query;
        let asked = PortPrefix::port(*protocol, *port);
        match ports {
            PortMatch::Named { protocol, name } => {
                let target = if *direction == Direction::Ingress { subject } else { peer };
                let mut meant =
                    target.named_ports.iter().filter(|port| port.is_meant_by(*protocol, name));
                meant.any(|port| PortPrefix::port(port.protocol, port.port) == asked)
            }
            ports => ports.prefixes().iter().any(|prefix| prefix.covers(asked)),
        }
    }

    fn port(&self) -> String {
        PortPrefix::port(self.query.protocol, self.query.port).to_string()
    }
}

impl Repository {
    /// Why a packet may pass from one to another, or not: what is said of the sender, then of the
    /// receiver.
    pub fn explain_flow(&self, query: &FlowQuery) -> FlowExplanation {
        let side = |subject: &Party, peer: &Party, direction| {
            self.explain(&DirectionQuery {
                subject: subject.clone(),
                peer: peer.clone(),
                direction,
                protocol: query.protocol,
                port: query.port,
            })
        };
        FlowExplanation {
            egress: side(&query.source, &query.target, Direction::Egress),
            ingress: side(&query.target, &query.source, Direction::Ingress),
        }
    }

    /// What is said of one side of a flow.
    pub fn explain(&self, query: &DirectionQuery) -> Explanation {
        let direction = query.direction;
        let outcome = match query.subject.subject {
            Some(kind) => self.outcome(query, kind),
            None => Outcome::NotEnforced,
        };
        Explanation { direction, outcome }
    }

    fn outcome(&self, query: &DirectionQuery, kind: SubjectKind) -> Outcome {
        let direction = query.direction;
        let matching = self.matching(kind, &query.subject.labels);
        let selecting = rules(&matching).map(|(.., rule)| rule);
        let shape = Shape::of(&self.config, kind, &query.subject.labels, direction, selecting);
        if !shape.enforced {
            return Outcome::NotEnforced;
        }
        let asked: Vec<(&Policy, &Rule)> = rules(&matching)
            .filter(|(.., rule)| shape.asks(rule))
            .map(|(_, policy, rule)| (policy, rule))
            .collect();
        let question = self.question(query);
        let mut covering: Vec<(RuleReference, Option<Unenforced>)> = Vec::new();
        let mut items = self.default_items(shape, &question);
        for (policy, rule) in &asked {
            for clause in &rule.clauses[direction] {
                for part in parts(clause, rule.default_deny[direction]) {
                    if !question.is_about(part.ports) || !self.concerns(&part, &question) {
                        continue;
                    }
                    items.push(Item {
                        ports: PortPrefix::ALL,
                        level: Level::of(part.says, rule.tier, clause.priority),
                        says: part.says,
                        rule: Because::Rule(covering.len()),
                    });
                    let reference = RuleReference::of_clause(policy, rule, clause);
                    covering.push((reference, part.unenforced));
                }
            }
        }
        let decision = decide(&items);
        let mut deciding: Vec<RuleReference> = Vec::new();
        let mut asks: Vec<Unenforced> = Vec::new();
        for because in &decision.rules {
            if let Because::Rule(index) = because {
                let (reference, unenforced) = &covering[*index];
                deciding.push(reference.clone());
                asks.extend(unenforced);
            }
        }
        deciding.sort();
        deciding.dedup();
        asks.sort();
        asks.dedup();
        match decision.verdict {
            Some(EntryVerdict::NotEnforced) => Outcome::Unenforced { rules: deciding, asks },
            Some(EntryVerdict::Deny) => {
                Outcome::Decided { verdict: Verdict::Deny, rules: deciding }
            }
            Some(EntryVerdict::Allow) if !deciding.is_empty() => {
                Outcome::Decided { verdict: Verdict::Allow, rules: deciding }
            }
            Some(EntryVerdict::Allow) if decision.rules.contains(&Because::Default) => {
                Outcome::DefaultAllow
            }
            Some(EntryVerdict::Allow) => Outcome::AllowLocalhost,
            None => Outcome::DefaultDeny {
                selecting: asked
                    .iter()
                    .filter(|(_, rule)| rule.default_deny[direction])
                    .map(|(policy, rule)| RuleReference::of_rule(policy, rule))
                    .collect(),
                nearest: self.nearest(&asked, &question),
                suggestion: suggestion(query, &question.labels, &self.config.cluster_name),
            },
        }
    }

    fn question<'a>(&self, query: &'a DirectionQuery) -> Question<'a> {
        let labels = self.with_cluster(&query.peer);
        let prefixes = self.selectors.world.prefixes(&labels);
        Question { query, labels, prefixes }
    }

    /// An endpoint of the own cluster is of it even where its labels do not say so.
    fn with_cluster(&self, party: &Party) -> Arc<Labels> {
        let labels = &party.labels;
        let local = match party.identity {
            Some(id) => self.selectors.aggregate(id.0) == AGGREGATE_CLUSTER,
            None => labels.iter().all(|label| label.source != SOURCE_RESERVED),
        };
        if !local || labels.value(SOURCE_K8S, KEY_CLUSTER).is_some() {
            return labels.clone();
        }
        let mut labels = Labels::clone(labels);
        labels.insert(Label::k8s(KEY_CLUSTER, &self.config.cluster_name));
        Arc::new(labels)
    }

    fn default_items(&self, shape: Shape, question: &Question<'_>) -> Vec<Item<Because>> {
        let allow = |rule| Item {
            ports: PortPrefix::ALL,
            level: Level::DEFAULT,
            says: Says::Verdict(EntryVerdict::Allow),
            rule,
        };
        let mut items = Vec::new();
        if shape.default_allow {
            items.push(allow(Because::Default));
        }
        if shape.localhost && has_reserved(&question.labels, &["host"]) {
            items.push(allow(Because::Localhost));
        }
        items
    }

    fn concerns(&self, part: &Part<'_>, question: &Question<'_>) -> bool {
        match &part.about {
            About::Anybody => true,
            About::Peers(selector) => self.selectors.world.selects(selector, question.who()),
        }
    }

    /// The clause that comes closest to allowing it.
    fn nearest(&self, asked: &[(&Policy, &Rule)], question: &Question<'_>) -> Option<Nearest> {
        let own = question.query.direction;
        let mut best: Option<(u32, Nearest)> = None;
        for (policy, rule) in asked {
            for direction in Direction::BOTH {
                for clause in &rule.clauses[direction] {
                    if clause.verdict != Verdict::Allow {
                        continue;
                    }
                    let Some((score, unmet)) = self.unmet(clause, direction == own, question)
                    else {
                        continue;
                    };
                    if best.as_ref().is_none_or(|(most, _)| score > *most) {
                        let rule = RuleReference::of_clause(policy, rule, clause);
                        best = Some((score, Nearest { rule, unmet }));
                    }
                }
            }
        }
        best.map(|(_, nearest)| nearest)
    }

    /// How close a clause comes, and what does not match; `None` when it comes nowhere near.
    fn unmet(
        &self,
        clause: &Clause,
        same_direction: bool,
        question: &Question<'_>,
    ) -> Option<(u32, Unmet)> {
        let (closeness, peer) = self.closeness(&clause.peers, question)?;
        let port = clause.ports.iter().any(|port| question.is_about(&port.ports));
        let same_protocol = clause.ports.iter().any(|port| match &port.ports {
            PortMatch::All => true,
            PortMatch::Protocol(protocol) | PortMatch::Range { protocol, .. } => {
                *protocol == question.query.protocol
            }
            PortMatch::Named { protocol, .. } => {
                protocol.is_none_or(|protocol| protocol == question.query.protocol)
            }
        });
        let ports: Vec<String> = clause.ports.iter().map(|port| port.ports.to_string()).collect();
        let ports = if ports.is_empty() { "none".to_owned() } else { ports.join(" or ") };
        let found = question.port();
        match (peer, port) {
            (None, true) if !same_direction => Some((1, Unmet::Direction)),
            _ if !same_direction => None,
            // It covers the flow, and yet does not allow it: it asks for more than is enforced.
            (None, true) => None,
            (None, false) if same_protocol => Some((400, Unmet::Port { expected: ports, found })),
            (None, false) => Some((300, Unmet::Protocol { expected: ports, found })),
            (Some((expected, found)), true) => {
                Some((200 + closeness, Unmet::Peer { expected, found }))
            }
            (Some((expected, peer)), false) => Some((
                100 + closeness,
                Unmet::PeerAndPort {
                    expected: format!("{expected} on {ports}"),
                    found: format!("{peer} on {found}"),
                },
            )),
        }
    }

    /// How much of the best of these selectors the peer fulfils, in percent, and what not: what is
    /// expected and what is found. `None` where there is no selector.
    fn closeness(
        &self,
        peers: &Peers,
        question: &Question<'_>,
    ) -> Option<(u32, Option<(String, String)>)> {
        let Peers::Of(selectors) = peers else { return Some((100, None)) };
        if selectors.iter().any(|one| self.selectors.world.selects(one, question.who())) {
            return Some((100, None));
        }
        selectors.iter().map(|one| closeness_to(one, &question.labels)).max_by_key(|(c, _)| *c)
    }

    /// Who has an identity, as policies see it.
    pub fn party_of(&self, id: IdentityId) -> Option<Party> {
        let identity = self.selectors.identity(id.0)?;
        let endpoint = self.selectors.aggregate(id.0) == AGGREGATE_CLUSTER
            || [IdentityId::HEALTH, IdentityId::INIT, IdentityId::INGRESS].contains(&id);
        let subject = match id {
            IdentityId::HOST => Some(SubjectKind::Host),
            _ => endpoint.then_some(SubjectKind::Endpoint),
        };
        Some(Party {
            labels: identity.labels.clone(),
            identity: Some(id),
            subject,
            named_ports: identity.named_ports.iter().cloned().collect(),
        })
    }

    /// A subject as one end of a flow.
    pub fn party_of_subject(&self, id: SubjectId) -> Option<Party> {
        let subject = self.subject(id)?;
        Some(Party {
            labels: subject.labels.clone(),
            identity: None,
            subject: Some(subject.kind),
            named_ports: subject.named_ports.clone(),
        })
    }

    /// Who is at an address outside the cluster, as policies see it.
    pub fn party_at(&self, address: IpAddr) -> Party {
        Party {
            labels: Arc::new(self.selectors.world.prefix_labels(IpNet::from(address))),
            identity: None,
            subject: None,
            named_ports: Vec::new(),
        }
    }
}

/// How much of a selector labels fulfil, in percent, and what is expected and found.
fn closeness_to(selector: &PeerSelector, labels: &Labels) -> (u32, Option<(String, String)>) {
    if let PeerSelector::Labels(selector) = selector
        && let Some(unmet) = selector.first_unmet(labels)
    {
        let all = selector.requirements();
        let met = all.iter().filter(|requirement| requirement.matches(labels)).count();
        let has: Vec<String> = labels
            .iter()
            .filter(|label| unmet.is_about(&label.source, &label.key))
            .map(Label::to_string)
            .collect();
        let found = match &has[..] {
            [] => format!("{labels} without {}", unmet.key),
            has => has.join(","),
        };
        let percent = met * 99 / all.len().max(1);
        return (percent as u32, Some((unmet.to_string(), found)));
    }
    (0, Some((selector.to_string(), labels.to_string())))
}
