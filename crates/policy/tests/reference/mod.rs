//! The meaning of policies, written down a second time: a slow, naive judge of the engine.
//!
//! ```text
//!   policies as users write them (JSON), World, Packet ─► verdict() ─► Allow | Deny(why)
//! ```
//!
//! It reads the objects themselves, not what the engine makes of them, and knows no selector
//! cache, no identities and no map: for one packet it goes through all rules of all policies and
//! asks of each what the documentation of the language says. What both get wrong in the same way
//! stays hidden, so nothing here may be taken from the engine.

#![allow(dead_code, reason = "each test uses its part of the judge")]

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use serde_json::Value;

pub(crate) mod generate;
mod peer;
mod port;
mod selector;

use self::selector::Labels;

/// Everything that verdicts depend on besides policies and the packet.
#[derive(Clone, Debug, Default)]
pub(crate) struct World {
    /// The name of the local cluster.
    pub cluster: String,
    pub mode: Mode,
    /// Labels of each namespace.
    pub namespaces: BTreeMap<String, BTreeMap<String, String>>,
    pub parties: Vec<Party>,
    /// `CiliumCIDRGroup` objects.
    pub groups: Vec<Value>,
}

/// `enable-policy`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Mode {
    #[default]
    Default,
    Always,
    Never,
}

/// Somebody who sends or receives.
#[derive(Clone, Debug)]
pub(crate) struct Party {
    pub name: String,
    pub kind: Kind,
    pub address: IpAddr,
}

#[derive(Clone, Debug)]
pub(crate) enum Kind {
    Pod(Pod),
    /// A node, with its labels.
    Node {
        is_local: bool,
        labels: BTreeMap<String, String>,
    },
    /// Who has no labels but a reserved one: `health`, `ingress`, `unmanaged`, `kube-apiserver`.
    Reserved(&'static str),
    /// Nobody of the cluster: known by the address alone.
    World,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Pod {
    pub cluster: String,
    pub namespace: String,
    pub service_account: String,
    pub labels: BTreeMap<String, String>,
    pub ports: Vec<NamedPort>,
}

#[derive(Clone, Debug)]
pub(crate) struct NamedPort {
    pub name: String,
    pub number: u16,
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: &'static str,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    Ingress,
    Egress,
}

/// What is sent. Of ICMP, `port` is the type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Packet {
    pub protocol: u8,
    pub port: u16,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Allow,
    Deny(Reason),
}

/// Why not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reason {
    /// A rule says so.
    Rule,
    /// Policies select the endpoint and no rule allows the packet.
    Default,
    /// A rule allows the packet under a condition that nobody can check.
    NotEnforceable,
}

impl fmt::Display for Packet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.protocol {
            1 | 58 => write!(f, "ICMP type {} (protocol {})", self.port, self.protocol),
            protocol => write!(f, "port {} (protocol {protocol})", self.port),
        }
    }
}

impl Verdict {
    pub(crate) fn is_allowed(self) -> bool {
        self == Self::Allow
    }
}

/// Whether a packet gets from one to the other: out at the one end and in at the other.
pub(crate) fn passes(
    policies: &[Value],
    world: &World,
    source: &Party,
    target: &Party,
    packet: Packet,
) -> bool {
    let egress = verdict(policies, world, source, target, Direction::Egress, packet);
    let ingress = verdict(policies, world, target, source, Direction::Ingress, packet);
    egress.is_allowed() && ingress.is_allowed()
}

/// What policy says at one end: that of `subject`, about a packet that comes from or goes to `peer`.
pub(crate) fn verdict(
    policies: &[Value],
    world: &World,
    subject: &Party,
    peer: &Party,
    direction: Direction,
    packet: Packet,
) -> Verdict {
    if world.mode == Mode::Never || matches!(subject.kind, Kind::World) {
        return Verdict::Allow;
    }
    let case = Case { world, subject, peer, direction, packet };
    match case.cluster_tier(policies, "Admin") {
        Some(Action::Accept) => return Verdict::Allow,
        Some(Action::Deny) => return Verdict::Deny(Reason::Rule),
        Some(Action::Pass) | None => {}
    }
    if let Some(verdict) = case.normal_tier(policies) {
        return verdict;
    }
    match case.cluster_tier(policies, "Baseline") {
        Some(Action::Deny) => Verdict::Deny(Reason::Rule),
        Some(Action::Accept) => Verdict::Allow,
        Some(Action::Pass) | None => case.without_rules(),
    }
}

/// The packet in question, seen from one end.
struct Case<'a> {
    world: &'a World,
    subject: &'a Party,
    peer: &'a Party,
    direction: Direction,
    packet: Packet,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Action {
    Accept,
    Deny,
    Pass,
}

/// What the rules of the normal tier say, all together.
#[derive(Debug, Default)]
struct Said {
    default_deny: bool,
    denied: bool,
    allowed: bool,
    allowed_if: bool,
}

/// How far a rule covers the packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Covers {
    No,
    Yes,
    /// Under a condition on more than addresses and ports.
    Conditionally,
}

impl Case<'_> {
    /// `NetworkPolicy`, `CiliumNetworkPolicy`, `CiliumClusterwideNetworkPolicy`; `None` is that
    /// nothing is said and the next tier is asked.
    fn normal_tier(&self, policies: &[Value]) -> Option<Verdict> {
        let mut said = Said::default();
        for policy in policies {
            let namespace = policy["metadata"]["namespace"].as_str();
            match policy["kind"].as_str() {
                Some("NetworkPolicy") => self.kubernetes(policy, &mut said),
                Some("CiliumNetworkPolicy" | "CiliumClusterwideNetworkPolicy") => {
                    for rule in rules(policy) {
                        self.cilium(rule, namespace, &mut said);
                    }
                }
                _ => {}
            }
        }
        said.allowed |= said.default_deny && self.is_from_own_node();
        match said {
            Said { denied: true, .. } => Some(Verdict::Deny(Reason::Rule)),
            Said { allowed: true, .. } => Some(Verdict::Allow),
            Said { allowed_if: true, .. } => Some(Verdict::Deny(Reason::NotEnforceable)),
            Said { default_deny: true, .. } => Some(Verdict::Deny(Reason::Default)),
            _ => None,
        }
    }

    /// Probes of the kubelet must arrive.
    fn is_from_own_node(&self) -> bool {
        self.direction == Direction::Ingress
            && self.peer.is_local_node()
            && !self.subject.is_local_node()
    }

    /// What holds where no rule says anything.
    fn without_rules(&self) -> Verdict {
        match self.world.mode {
            Mode::Always if !self.is_from_own_node() => Verdict::Deny(Reason::Default),
            _ => Verdict::Allow,
        }
    }

    /// One rule: a `spec`, or one of `specs`.
    fn cilium(&self, rule: &Value, namespace: Option<&str>, said: &mut Said) {
        if !self.is_subject(rule, namespace) {
            return;
        }
        let (allow, deny, word) = match self.direction {
            Direction::Ingress => ("ingress", "ingressDeny", "ingress"),
            Direction::Egress => ("egress", "egressDeny", "egress"),
        };
        let (allow, deny) = (list(&rule[allow]), list(&rule[deny]));
        if allow.is_empty() && deny.is_empty() {
            return;
        }
        let denies = rule["enableDefaultDeny"][word].as_bool().unwrap_or(true);
        said.default_deny |= denies;
        said.denied |= deny.iter().any(|item| self.item(item, namespace) != Covers::No);
        for item in allow {
            match self.item(item, namespace) {
                Covers::Yes => said.allowed = true,
                // Who denies nothing by default restricts no requests either.
                Covers::Conditionally if !denies => said.allowed = true,
                Covers::Conditionally => said.allowed_if = true,
                Covers::No => {}
            }
        }
    }

    /// One element of `ingress`, `egress` or their deny forms.
    fn item(&self, item: &Value, namespace: Option<&str>) -> Covers {
        let ports = port::of_cilium(item, self);
        let peer = peer::of_cilium(item, self, namespace);
        match (peer, ports) {
            (Covers::No, _) | (_, Covers::No) => Covers::No,
            (Covers::Yes, Covers::Yes) => Covers::Yes,
            _ => Covers::Conditionally,
        }
    }

    fn is_subject(&self, rule: &Value, namespace: Option<&str>) -> bool {
        let labels = self.subject.labels(self.world);
        if let Kind::Node { is_local, labels: of_node } = &self.subject.kind {
            let of_node = Labels::plain(of_node);
            return *is_local
                && !rule["nodeSelector"].is_null()
                && of_node.matches(&rule["nodeSelector"]);
        }
        let selector = &rule["endpointSelector"];
        !selector.is_null()
            && labels.matches(selector)
            && namespace.is_none_or(|namespace| labels.namespace() == Some(namespace))
    }

    fn kubernetes(&self, policy: &Value, said: &mut Said) {
        let (spec, namespace) = (&policy["spec"], policy["metadata"]["namespace"].as_str());
        let Kind::Pod(pod) = &self.subject.kind else { return };
        let is_subject = namespace == Some(pod.namespace.as_str())
            && Labels::plain(&pod.labels).matches(&spec["podSelector"]);
        let word = match self.direction {
            Direction::Ingress => "Ingress",
            Direction::Egress => "Egress",
        };
        let is_named = match spec["policyTypes"].as_array() {
            Some(types) if !types.is_empty() => types.iter().any(|name| name == word),
            _ => self.direction == Direction::Ingress || !list(&spec["egress"]).is_empty(),
        };
        if !is_subject || !is_named {
            return;
        }
        said.default_deny = true;
        let rules = match self.direction {
            Direction::Ingress => &spec["ingress"],
            Direction::Egress => &spec["egress"],
        };
        said.allowed |= list(rules).iter().any(|rule| {
            peer::of_kubernetes(rule, self, namespace) && port::of_kubernetes(rule, self)
        });
    }

    /// The first matching rule of the tier's `ClusterNetworkPolicy` objects.
    fn cluster_tier(&self, policies: &[Value], tier: &str) -> Option<Action> {
        let mut found: Vec<((u64, usize), Action)> = Vec::new();
        for policy in policies.iter().filter(|policy| policy["kind"] == "ClusterNetworkPolicy") {
            let spec = &policy["spec"];
            if spec["tier"] != tier || !peer::is_cluster_subject(&spec["subject"], self) {
                continue;
            }
            let rules = match self.direction {
                Direction::Ingress => &spec["ingress"],
                Direction::Egress => &spec["egress"],
            };
            for (index, rule) in list(rules).iter().enumerate() {
                if peer::of_cluster_policy(rule, self) && port::of_cluster_policy(rule, self) {
                    let priority = spec["priority"].as_u64().unwrap_or(0);
                    found.push(((priority, index), action(rule)));
                }
            }
        }
        let first = found.iter().map(|(order, _)| *order).min()?;
        let said = |action| found.iter().any(|(order, said)| *order == first && *said == action);
        // Of rules of the same rank, the strictest.
        [Action::Deny, Action::Accept, Action::Pass].into_iter().find(|action| said(*action))
    }
}

fn action(rule: &Value) -> Action {
    match rule["action"].as_str() {
        Some("Accept") => Action::Accept,
        Some("Deny") => Action::Deny,
        Some("Pass") => Action::Pass,
        other => panic!("the generator makes no action {other:?}"),
    }
}

/// `spec` and all of `specs`.
fn rules(policy: &Value) -> impl Iterator<Item = &Value> {
    let spec = Some(&policy["spec"]).filter(|spec| !spec.is_null());
    spec.into_iter().chain(list(&policy["specs"]))
}

/// The elements of a list; none where there is no list.
fn list(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

fn texts(value: &Value) -> impl Iterator<Item = &str> {
    list(value).iter().filter_map(Value::as_str)
}

fn net(value: &Value) -> Option<IpNet> {
    value.as_str()?.parse().ok()
}

impl Party {
    pub(crate) fn is_local_node(&self) -> bool {
        matches!(self.kind, Kind::Node { is_local: true, .. })
    }

    /// The labels that selectors of endpoints see.
    fn labels(&self, world: &World) -> Labels {
        match &self.kind {
            Kind::Pod(pod) => Labels::of_pod(pod, world),
            Kind::Node { is_local: true, .. } => Labels::reserved(&["host"]),
            Kind::Node { .. } => Labels::reserved(&["remote-node"]),
            Kind::Reserved("kube-apiserver") => {
                Labels::reserved(&["kube-apiserver", "remote-node"])
            }
            Kind::Reserved(name) => Labels::reserved(&[name]),
            Kind::World => Labels::reserved(match self.address {
                IpAddr::V4(_) => &["world-ipv4"],
                IpAddr::V6(_) => &["world-ipv6"],
            }),
        }
    }
}
