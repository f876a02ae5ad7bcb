//! The engine against the judge: random worlds and policies, every subject, peer and packet.
//!
//! ```text
//!   generate ─► objects ─► api::policy ─► Repository ─► MapState ─► bytes ─► looked up as packets are
//!          └──► objects ────────────────────────────────────► reference ─► must say the same
//! ```
//!
//! The engine gets there by detours: policies come in any order, are replaced and removed, pods come
//! and go. `POLICY_ROUNDS` sets how many worlds are tried, `POLICY_SEED` repeats one of them.

mod reference;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use abi::policy::{
    POLICY_EGRESS, POLICY_INGRESS, POLICY_PREFIX_BITS_MAX, POLICY_STATIC_PREFIX_BITS, PolicyEntry,
    PolicyKey, aggregate,
};
use ipnet::IpNet;
use model::{IdentityId, Label, Labels};
use policy::{
    CidrGroup, Config, DirectionQuery, EnforcementMode, NamedPort, Outcome, PolicyId, Protocol,
    Repository, RuleReference, Subject, SubjectId, SubjectKind,
};
use serde_json::{Value, json};

use reference::generate::{self, Random};
use reference::{Direction, Kind, Mode, Packet, Party, Reason, Verdict, World};

/// Worlds that are tried where nobody says otherwise.
const ROUNDS_DEFAULT: usize = 2_500;
/// Of the packets, so many are asked about between any two, in either direction.
const PACKETS_PER_PAIR: usize = 3;

#[test]
fn the_engine_says_what_the_judge_says() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse().ok());
    let (first, rounds) = match number("POLICY_SEED") {
        Some(seed) => (seed, 1),
        None => (0, number("POLICY_ROUNDS").unwrap_or(ROUNDS_DEFAULT)),
    };
    let next = AtomicUsize::new(first);
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let counts = std::thread::scope(|scope| {
        let run = || {
            let mut counts = Counts::default();
            loop {
                let seed = next.fetch_add(1, Ordering::Relaxed);
                if seed >= first + rounds {
                    return counts;
                }
                counts.add(&round(seed));
            }
        };
        let running: Vec<_> = (0..threads).map(|_| scope.spawn(run)).collect();
        let mut total = Counts::default();
        for thread in running {
            total.add(&thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        }
        total
    });
    eprintln!("{rounds} worlds: {counts:?}");
    // A generator that allows or denies nearly everything would test nearly nothing.
    if rounds >= 100 {
        for share in [counts.allowed, counts.denied, counts.by_default] {
            assert!(share * 50 > counts.verdicts, "{counts:?}");
        }
        assert!(counts.not_enforceable > 0, "{counts:?}");
    }
}

#[derive(Debug, Default)]
struct Counts {
    policies: usize,
    parties: usize,
    verdicts: usize,
    allowed: usize,
    denied: usize,
    by_default: usize,
    not_enforceable: usize,
}

impl Counts {
    fn add(&mut self, other: &Self) {
        self.policies += other.policies;
        self.parties += other.parties;
        self.verdicts += other.verdicts;
        self.allowed += other.allowed;
        self.denied += other.denied;
        self.by_default += other.by_default;
        self.not_enforceable += other.not_enforceable;
    }

    fn count(&mut self, verdict: Verdict) {
        self.verdicts += 1;
        match verdict {
            Verdict::Allow => self.allowed += 1,
            Verdict::Deny(Reason::Rule) => self.denied += 1,
            Verdict::Deny(Reason::Default) => self.by_default += 1,
            Verdict::Deny(Reason::NotEnforceable) => self.not_enforceable += 1,
        }
    }
}

fn round(seed: usize) -> Counts {
    let mut random = Random::new(seed as u64);
    let world = generate::world(&mut random);
    let policies = generate::policies(&mut random);
    match compare(&world, &policies, &random) {
        Ok(counts) => counts,
        Err(_) => {
            let (policies, mismatch) = shrunk(&world, policies, &random);
            panic!("POLICY_SEED={seed}\n{}", describe(&world, &policies, &mismatch));
        }
    }
}

/// What the two do not agree about.
struct Mismatch {
    subject: Party,
    peer: Party,
    direction: Direction,
    packet: Packet,
    judge: Verdict,
    engine: Verdict,
    map: Vec<(PolicyKey, PolicyEntry)>,
}

/// Leaves out what the mismatch does not need: policies, then whatever can be left out of them.
fn shrunk(world: &World, policies: Vec<Value>, random: &Random) -> (Vec<Value>, Mismatch) {
    let still_differs = |all: &Value| {
        let all: Vec<Value> = all.as_array().cloned().unwrap_or_default();
        all.iter().all(|policy| read(policy).is_ok()) && compare(world, &all, random).is_err()
    };
    let mut all = Value::Array(policies);
    let mut path = String::new();
    while let Some(next) = next_pointer(&all, &path) {
        let mut fewer = all.clone();
        remove(&mut fewer, &next);
        match still_differs(&fewer) {
            true => all = fewer,
            false => path = next,
        }
    }
    let policies = all.as_array().cloned().unwrap_or_default();
    match compare(world, &policies, random) {
        Err(mismatch) => (policies, *mismatch),
        Ok(_) => unreachable!("only what keeps the mismatch was left out"),
    }
}

/// Fields without which a policy is still one that somebody may write.
const DISPENSABLE: [&str; 9] = [
    "ingress",
    "egress",
    "ingressDeny",
    "egressDeny",
    "enableDefaultDeny",
    "toPorts",
    "icmps",
    "protocols",
    "except",
];

/// All parts of a value that may be left out, the large before the small within them.
fn pointers(value: &Value, at: &str, found: &mut Vec<String>) {
    let mut add = |name: &str, part: &Value, is_dispensable: bool| {
        let path = format!("{at}/{}", name.replace('~', "~0").replace('/', "~1"));
        if is_dispensable {
            found.push(path.clone());
        }
        pointers(part, &path, found);
    };
    match value {
        Value::Array(list) => {
            for (index, part) in list.iter().enumerate() {
                // An empty list means something else than one with fewer elements.
                add(&index.to_string(), part, list.len() > 1);
            }
        }
        Value::Object(fields) => {
            for (name, part) in fields {
                add(name, part, DISPENSABLE.contains(&name.as_str()));
            }
        }
        _ => {}
    }
}

fn next_pointer(value: &Value, after: &str) -> Option<String> {
    let mut all = Vec::new();
    pointers(value, "", &mut all);
    let next = all.iter().position(|path| path == after).map_or(0, |index| index + 1);
    all.into_iter().nth(next)
}

fn remove(value: &mut Value, path: &str) {
    let Some((parent, name)) = path.rsplit_once('/') else { return };
    let name = name.replace("~1", "/").replace("~0", "~");
    match value.pointer_mut(parent) {
        Some(Value::Array(list)) => {
            if let Ok(index) = name.parse::<usize>() {
                list.remove(index);
            }
        }
        Some(Value::Object(fields)) => {
            fields.remove(&name);
        }
        _ => {}
    }
}

fn describe(world: &World, policies: &[Value], mismatch: &Mismatch) -> String {
    let mut text = String::new();
    for policy in policies {
        text += &serde_json::to_string_pretty(policy).expect("JSON can be written");
        text += "\n";
    }
    let Mismatch { subject, peer, direction, packet, judge, engine, map } = mismatch;
    text += &format!("mode {:?}, namespaces {:?}\n", world.mode, world.namespaces);
    text += &format!("subject {subject:?}\npeer {peer:?}\n");
    text += &format!("{direction:?} {packet}: the judge says {judge:?}, the engine {engine:?}\n");
    for (key, entry) in map.iter().filter(|(key, _)| key.direction == wire(*direction)) {
        text += &format!("  {key:?} {entry:?}\n");
    }
    text
}

fn compare(world: &World, policies: &[Value], random: &Random) -> Result<Counts, Box<Mismatch>> {
    let engine = Engine::new(world, policies, random.clone());
    let (packets, mut random) = (generate::packets(), random.clone());
    let mut counts =
        Counts { policies: policies.len(), parties: world.parties.len(), ..Counts::default() };
    for subject in world.parties.iter().filter(|party| is_subject(world, party)) {
        let map = engine.map(subject);
        for peer in &world.parties {
            let identity = engine.identity(world, peer);
            for direction in [Direction::Ingress, Direction::Egress] {
                for packet in (0..PACKETS_PER_PAIR).map(|_| random.one_of(&packets)) {
                    let judge =
                        reference::verdict(policies, world, subject, peer, direction, packet);
                    let engine = map.verdict(direction, identity, packet);
                    counts.count(judge);
                    if !is_same(judge, engine) {
                        return Err(Box::new(Mismatch {
                            subject: subject.clone(),
                            peer: peer.clone(),
                            direction,
                            packet,
                            judge,
                            engine,
                            map: map.entries.into_iter().collect(),
                        }));
                    }
                }
            }
        }
    }
    Ok(counts)
}

/// In the map a denial for want of a rule may need an entry, where an earlier tier passes on to it.
fn is_same(judge: Verdict, engine: Verdict) -> bool {
    let is_plain =
        |verdict| matches!(verdict, Verdict::Deny(Reason::Rule) | Verdict::Deny(Reason::Default));
    judge == engine || is_plain(judge) && is_plain(engine)
}

/// Whose policy the node computes: its own pods, itself, and the health endpoint.
fn is_subject(world: &World, party: &Party) -> bool {
    match &party.kind {
        Kind::Pod(pod) => pod.cluster == world.cluster,
        Kind::Node { is_local, .. } => *is_local,
        Kind::Reserved(name) => *name == "health",
        Kind::World => false,
    }
}

fn wire(direction: Direction) -> u8 {
    match direction {
        Direction::Ingress => POLICY_INGRESS,
        Direction::Egress => POLICY_EGRESS,
    }
}

// ---------------------------------------------------------------------------------------------
// The engine, brought to a state by a random way

struct Engine {
    repository: Repository,
    subjects: BTreeMap<String, SubjectId>,
    /// Numbers of sets of labels.
    pods: BTreeMap<String, IdentityId>,
    prefixes: BTreeMap<IpNet, IdentityId>,
}

impl Engine {
    fn new(world: &World, policies: &[Value], mut random: Random) -> Self {
        let mut engine = Self {
            repository: Repository::new(Config {
                mode: EnforcementMode::Default,
                cluster_name: world.cluster.clone(),
                dual_stack: true,
                host_firewall: true,
                allow_localhost: true,
                ..Config::default()
            }),
            subjects: BTreeMap::new(),
            pods: BTreeMap::new(),
            prefixes: BTreeMap::new(),
        };
        let mut steps = steps(world, policies, &mut random);
        // In any order: of equal state, equal results.
        for index in (1..steps.len()).rev() {
            steps.swap(index, random.below(index + 1));
        }
        for step in steps {
            engine.take(world, step, &mut random);
            engine.number_prefixes();
        }
        engine
    }

    fn take(&mut self, world: &World, step: Step, random: &mut Random) {
        match step {
            Step::Mode => self.repository.set_mode(match world.mode {
                Mode::Default => EnforcementMode::Default,
                Mode::Always => EnforcementMode::Always,
                Mode::Never => EnforcementMode::Never,
            }),
            Step::Policy(object) => {
                if random.once_in(4) {
                    self.detour(&object, random);
                }
                self.repository.upsert_policy(read(&object).expect("valid policies are accepted"));
            }
            Step::Pod(party) => {
                let id = self.add_pod(world, &party);
                if random.once_in(4) {
                    self.repository.remove_identity(id);
                    self.add_pod(world, &party);
                }
            }
            Step::Subject(party) => {
                if random.once_in(4) {
                    let id = self.repository.attach(subject(world, &party));
                    self.repository.detach(id);
                }
                let id = self.repository.attach(subject(world, &party));
                self.subjects.insert(party.name.clone(), id);
            }
            Step::Group(object) => {
                let name = object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
                if random.once_in(4) {
                    self.repository.upsert_cidr_group(&name, CidrGroup::default());
                }
                self.repository.upsert_cidr_group(&name, group(&object));
            }
        }
    }

    /// Another policy is there under this name, or this one, and goes again.
    fn detour(&mut self, object: &Value, random: &mut Random) {
        let mut other = generate::policy(random, 0);
        if other["kind"] == object["kind"] {
            other["metadata"] = object["metadata"].clone();
        } else {
            other = object.clone();
        }
        let other = read(&other).expect("valid policies are accepted");
        let id: PolicyId = other.id.clone();
        self.repository.upsert_policy(other);
        self.number_prefixes();
        if random.once_in(2) {
            self.repository.remove_policy(&id).expect("it is there");
        }
    }

    fn add_pod(&mut self, world: &World, party: &Party) -> IdentityId {
        let labels = labels(world, party);
        let Kind::Pod(pod) = &party.kind else { unreachable!("a pod") };
        let cluster = if pod.cluster == world.cluster { 0 } else { 2 << 16 };
        let next = u32::try_from(self.pods.len()).expect("few pods");
        let new = IdentityId(cluster | (256 + next));
        let id = *self.pods.entry(labels.to_string()).or_insert(new);
        self.repository.add_identity(id, Arc::new(labels));
        self.repository.set_named_ports(id, named_ports(party).into_iter().collect());
        id
    }

    /// Prefixes that policies speak of get numbers, and those that none speaks of lose them.
    fn number_prefixes(&mut self) {
        let required = self.repository.required_prefixes();
        let old: BTreeSet<IpNet> = self.prefixes.keys().copied().collect();
        for net in old.iter().filter(|net| !required.contains_key(*net)) {
            if let Some(id) = self.prefixes.remove(net) {
                self.repository.remove_identity(id);
            }
        }
        for (net, labels) in required {
            if self.prefixes.contains_key(&net) {
                continue;
            }
            let taken: BTreeSet<IdentityId> = self.prefixes.values().copied().collect();
            let free = (1..).map(|n| IdentityId(abi::identity::SCOPE_LOCAL | n));
            let id = free.into_iter().find(|id| !taken.contains(id)).expect("few prefixes");
            self.prefixes.insert(net, id);
            self.repository.add_identity(id, Arc::new(labels));
        }
    }

    /// Who a packet's other end is to the datapath.
    fn identity(&self, world: &World, party: &Party) -> IdentityId {
        match &party.kind {
            Kind::Pod(_) => self.pods[&labels(world, party).to_string()],
            Kind::Node { is_local: true, .. } => IdentityId::HOST,
            Kind::Node { .. } => IdentityId::REMOTE_NODE,
            Kind::Reserved(name) => name.parse().expect("a reserved identity"),
            Kind::World => {
                let covering = self.prefixes.iter().filter(|(net, _)| net.contains(&party.address));
                let longest = covering.max_by_key(|(net, _)| net.prefix_len());
                let world = match party.address {
                    IpAddr::V4(_) => IdentityId::WORLD_IPV4,
                    IpAddr::V6(_) => IdentityId::WORLD_IPV6,
                };
                longest.map_or(world, |(_, id)| *id)
            }
        }
    }

    /// The bytes that the datapath would have of a subject.
    fn map(&self, party: &Party) -> WireMap {
        let id = self.subjects[&party.name];
        let state = self.repository.map(id).expect("the subject is attached");
        let entries = state.entries().iter();
        WireMap {
            enforced: [policy::Direction::Ingress, policy::Direction::Egress]
                .map(|direction| state.enforces(direction)),
            entries: entries.map(|(key, entry)| (key.to_wire(SLOT), entry.to_wire(*key))).collect(),
        }
    }
}

/// One thing that the engine is told.
enum Step {
    Mode,
    Policy(Value),
    Pod(Party),
    Subject(Party),
    Group(Value),
}

fn steps(world: &World, policies: &[Value], random: &mut Random) -> Vec<Step> {
    let mut steps = vec![Step::Mode];
    steps.extend(policies.iter().cloned().map(Step::Policy));
    steps.extend(world.groups.iter().cloned().map(Step::Group));
    for party in &world.parties {
        if matches!(party.kind, Kind::Pod(_)) {
            steps.push(Step::Pod(party.clone()));
        }
        if is_subject(world, party) {
            steps.push(Step::Subject(party.clone()));
        }
    }
    // Now and then a policy comes twice.
    if let Some(again) = policies.first()
        && random.once_in(4)
    {
        steps.push(Step::Policy(again.clone()));
    }
    steps
}

fn read(object: &Value) -> Result<policy::Policy, String> {
    let accepted = api::policy::read_manifest(object, "", &api::policy::Context::default());
    accepted.map(|accepted| accepted.policy).map_err(|refused| format!("{refused}\n{object:#}"))
}

fn group(object: &Value) -> CidrGroup {
    let labels = object["metadata"]["labels"].as_object().into_iter().flatten();
    let name = object["metadata"]["name"].as_str().unwrap_or_default();
    let own = Label::new("cidrgroup", format!("io.cilium.policy.cidrgroupname/{name}"), "");
    let labels = labels.map(|(key, value)| {
        Label::new("cidrgroup", key.as_str(), value.as_str().unwrap_or_default())
    });
    let prefixes = object["spec"]["externalCIDRs"].as_array().into_iter().flatten();
    CidrGroup {
        labels: labels.chain([own]).collect(),
        prefixes: prefixes.filter_map(|net| net.as_str()?.parse().ok()).collect(),
    }
}

fn subject(world: &World, party: &Party) -> Subject {
    Subject {
        kind: match party.kind {
            Kind::Node { .. } => SubjectKind::Host,
            _ => SubjectKind::Endpoint,
        },
        labels: Arc::new(labels(world, party)),
        named_ports: named_ports(party),
    }
}

fn labels(world: &World, party: &Party) -> Labels {
    match &party.kind {
        Kind::Pod(pod) => Labels::of_pod(&model::PodLabels {
            labels: &pod.labels,
            namespace: &pod.namespace,
            namespace_labels: &world.namespaces[&pod.namespace],
            cluster: &pod.cluster,
            service_account: &pod.service_account,
        }),
        Kind::Node { is_local: true, labels } => {
            let own = labels.iter().map(|(key, value)| Label::k8s(key, value));
            own.chain([Label::reserved("host")]).collect()
        }
        Kind::Node { .. } => Labels::from_iter([Label::reserved("remote-node")]),
        Kind::Reserved(name) => Labels::from_iter([Label::reserved(name)]),
        Kind::World => Labels::from_iter([Label::reserved("world")]),
    }
}

fn named_ports(party: &Party) -> Vec<NamedPort> {
    let Kind::Pod(pod) = &party.kind else { return Vec::new() };
    let port = |port: &reference::NamedPort| NamedPort {
        name: port.name.as_str().into(),
        protocol: Protocol::named(port.protocol).expect("a known protocol"),
        port: port.number,
    };
    pod.ports.iter().map(port).collect()
}

// ---------------------------------------------------------------------------------------------
// The map, as packets meet it

/// Any slot.
const SLOT: u32 = 7;

struct WireMap {
    /// Ingress, egress.
    enforced: [bool; 2],
    entries: HashMap<PolicyKey, PolicyEntry>,
}

impl WireMap {
    fn verdict(&self, direction: Direction, peer: IdentityId, packet: Packet) -> Verdict {
        if !self.enforced[usize::from(wire(direction))] {
            return Verdict::Allow;
        }
        let find = |identity| self.longest(direction, identity, packet);
        let (exact, wider) = (find(peer.0), find(aggregate(peer.0, 0)));
        let found = match (exact, wider) {
            (None, None) => find(0),
            (Some(exact), Some(wider)) => {
                let rank = |entry: &PolicyEntry| (entry.precedence, entry.prefix_bits());
                Some(if rank(&wider) > rank(&exact) { wider } else { exact })
            }
            (one, other) => one.or(other),
        };
        match found {
            None => Verdict::Deny(Reason::Default),
            Some(entry) if entry.is_not_enforceable() => Verdict::Deny(Reason::NotEnforceable),
            Some(entry) if entry.is_deny() => Verdict::Deny(Reason::Rule),
            Some(_) => Verdict::Allow,
        }
    }

    /// What a trie finds: the longest prefix of protocol and port.
    fn longest(&self, direction: Direction, identity: u32, packet: Packet) -> Option<PolicyEntry> {
        let with_port = (POLICY_STATIC_PREFIX_BITS + 8..=POLICY_PREFIX_BITS_MAX).rev();
        let mut lengths = with_port.chain([POLICY_STATIC_PREFIX_BITS]);
        lengths.find_map(|prefix_len| {
            let port_bits = prefix_len.saturating_sub(POLICY_STATIC_PREFIX_BITS + 8);
            let mask = u16::MAX.checked_shl(16 - port_bits).unwrap_or(0);
            let has_protocol = prefix_len > POLICY_STATIC_PREFIX_BITS;
            let key = PolicyKey {
                prefix_len,
                slot: SLOT,
                identity,
                direction: wire(direction),
                protocol: if has_protocol { packet.protocol } else { 0 },
                dport: (packet.port & mask).to_be_bytes(),
            };
            self.entries.get(&key).copied()
        })
    }
}

// ---------------------------------------------------------------------------------------------
// Explanations

/// Worlds in which explanations are acted upon.
const EXPLAINED_WORLDS: u64 = 150;

/// What is suggested lets the packet pass, and what is named is what has let it pass: the judge says so
/// when it is added, and taken away.
#[test]
fn explanations_hold_when_they_are_acted_upon() {
    let (mut added, mut taken) = (0, 0);
    for seed in 0..EXPLAINED_WORLDS {
        let mut random = Random::new(1_000_000 + seed);
        let world = generate::world(&mut random);
        let policies = generate::policies(&mut random);
        let engine = Engine::new(&world, &policies, random.clone());
        for subject in world.parties.iter().filter(|party| is_subject(&world, party)) {
            let question = Question {
                subject,
                peer: &random.one_of(&world.parties),
                direction: random.one_of(&[Direction::Ingress, Direction::Egress]),
                packet: random.one_of(&generate::packets()),
            };
            match question.explain(&engine, &world, &policies) {
                Outcome::DefaultDeny { suggestion: Some(suggestion), .. } => {
                    question.add(&world, &policies, &suggestion);
                    added += 1;
                }
                Outcome::Decided { verdict: policy::Verdict::Allow, rules } => {
                    question.take_away(&world, &policies, &rules, &random);
                    taken += 1;
                }
                _ => {}
            }
        }
    }
    assert!(added > 50 && taken > 50, "{added} suggestions, {taken} rules taken away");
}

/// Why may, or may not, this packet pass here?
#[derive(Debug)]
struct Question<'a> {
    subject: &'a Party,
    peer: &'a Party,
    direction: Direction,
    packet: Packet,
}

impl Question<'_> {
    /// The engine's answer, which must be the judge's.
    fn explain(&self, engine: &Engine, world: &World, policies: &[Value]) -> Outcome {
        let explanation = engine.repository.explain(&DirectionQuery {
            subject: engine.party(world, self.subject),
            peer: engine.party(world, self.peer),
            direction: match self.direction {
                Direction::Ingress => policy::Direction::Ingress,
                Direction::Egress => policy::Direction::Egress,
            },
            protocol: Protocol(self.packet.protocol),
            port: self.packet.port,
        });
        let judge = self.judge(world, policies);
        assert_eq!(
            explanation.allowed(),
            judge.is_allowed(),
            "{explanation}\n{self:?}\n{policies:#?}"
        );
        explanation.outcome
    }

    fn judge(&self, world: &World, policies: &[Value]) -> Verdict {
        let Self { subject, peer, direction, packet } = *self;
        reference::verdict(policies, world, subject, peer, direction, packet)
    }

    fn add(&self, world: &World, policies: &[Value], suggestion: &str) {
        let suggested: Value = serde_saphyr::from_str(suggestion).expect("a suggestion is YAML");
        read(&suggested).expect("a suggestion is a valid policy");
        let more = [policies, &[suggested]].concat();
        let verdict = self.judge(world, &more);
        assert!(verdict.is_allowed(), "{verdict:?} with\n{suggestion}\n{self:?}\n{policies:#?}");
    }

    /// Without the rules that were named, others may allow it, but these cannot be named again.
    fn take_away(
        &self,
        world: &World,
        policies: &[Value],
        rules: &[RuleReference],
        random: &Random,
    ) {
        let mut fewer = policies.to_vec();
        rules.iter().for_each(|rule| empty(&mut fewer, rule));
        let engine = Engine::new(world, &fewer, random.clone());
        if let Outcome::Decided { rules: others, .. } = self.explain(&engine, world, &fewer) {
            let again = others.iter().find(|other| rules.contains(other));
            assert_eq!(again, None, "{self:?}\n{policies:#?}");
        }
    }
}

/// Makes a rule one that means nobody, and leaves its policy to select whom it selects.
fn empty(policies: &mut [Value], rule: &RuleReference) {
    let is_it = |policy: &&mut Value| {
        let metadata = &policy["metadata"];
        policy["kind"] == rule.policy.kind.as_str()
            && metadata["name"] == rule.policy.name.as_str()
            && metadata["namespace"].as_str().unwrap_or_default() == &*rule.policy.namespace
    };
    let policy = policies.iter_mut().find(is_it).expect("the named policy is there");
    let is_cilium = policy["kind"].as_str().is_some_and(|kind| kind.starts_with("Cilium"));
    let spec = match rule.spec {
        None => &mut policy["spec"],
        Some(index) => &mut policy["specs"][usize::from(index)],
    };
    let place = rule.place.expect("an allow names the item");
    let item = &mut spec[place.list.as_str()][usize::from(place.index)];
    let way = if place.list.as_str().starts_with("ingress") { "from" } else { "to" };
    let nobody = json!({"matchLabels": {"nobody": "here"}});
    *item = match (is_cilium, item["action"].take()) {
        (true, _) => json!({format!("{way}Endpoints"): []}),
        (false, Value::Null) => json!({way: [{"podSelector": nobody}]}),
        (false, action) => json!({"action": action, way: [{"namespaces": nobody}]}),
    };
}

impl Engine {
    fn party(&self, world: &World, party: &Party) -> policy::Party {
        if let Kind::World = party.kind {
            return self.repository.party_at(party.address);
        }
        policy::Party {
            labels: Arc::new(match party.kind {
                Kind::Reserved(_) => {
                    self.identity(world, party).reserved_labels().expect("a reserved identity")
                }
                _ => labels(world, party),
            }),
            identity: Some(self.identity(world, party)),
            subject: Some(subject(world, party).kind),
            named_ports: named_ports(party),
        }
    }
}
