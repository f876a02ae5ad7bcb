//! However a repository came to know what it knows, it computes the same: after every step of a random
//! history its maps are those of a fresh repository that is told the present only, what it reported as
//! changes adds up to them, and every lookup in them is what [`Repository::explain`] says.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use ipnet::IpNet;
use model::{IdentityId, LabelSelector, Labels, Operator, Requirement};
use policy::*;
use proptest::prelude::*;
use proptest::sample::select;

/// One thing that happens.
#[derive(Clone, Debug)]
enum Step {
    Upsert(Policy),
    Remove(usize),
    AddIdentity(usize),
    RemoveIdentity(usize),
    NamePorts(usize, BTreeSet<NamedPort>),
    SetService(usize, Service),
    RemoveService(usize),
    SetGroup(usize, CidrGroup),
    RemoveGroup(usize),
    Attach(usize),
    Detach(usize),
    SetMode(EnforcementMode),
}

/// What is so at present.
#[derive(Clone, Debug, Default)]
struct Present {
    mode: EnforcementMode,
    policies: BTreeMap<PolicyId, Policy>,
    identities: BTreeMap<usize, BTreeSet<NamedPort>>,
    services: BTreeMap<usize, Service>,
    groups: BTreeMap<usize, CidrGroup>,
    subjects: BTreeSet<usize>,
}

/// Everybody there can be, with a number that fits.
fn identities() -> Vec<(IdentityId, Arc<Labels>)> {
    let pod = |namespace: &str, app: &str| {
        vec![format!("k8s:io.kubernetes.pod.namespace={namespace}"), format!("k8s:app={app}")]
    };
    let mut all = Vec::new();
    let mut number = 256;
    for namespace in ["a", "b"] {
        for app in ["x", "y", "z"] {
            all.push((number, pod(namespace, app)));
            number += 1;
        }
    }
    // One without a namespace, one of another cluster.
    all.push((number, vec!["k8s:app=x".to_owned()]));
    let mut far = pod("a", "x");
    far.push("k8s:io.cilium.k8s.policy.cluster=far".to_owned());
    all.push((1 << 16 | 256, far));
    for (index, prefix) in ["10.0.0.0/8", "10.1.0.0/16", "10.1.2.3/32"].iter().enumerate() {
        let labels = vec![format!("cidr:{prefix}"), "reserved:world-ipv4".to_owned()];
        all.push((1 << 24 | (index as u32 + 1), labels));
    }
    all.push((1 << 24 | 9, vec!["cidr:fd00--0/8".to_owned(), "reserved:world-ipv6".to_owned()]));
    // A local identity that is not of the world, so that no selector means all of them.
    all.push((1 << 24 | 10, vec!["reserved:kube-apiserver".to_owned()]));
    all.push((2 << 24 | 1, vec!["reserved:remote-node".to_owned(), "node:zone=a".to_owned()]));
    all.into_iter()
        .map(|(number, labels)| {
            let labels = labels.iter().map(|label| label.parse().unwrap()).collect();
            (IdentityId(number), Arc::new(labels))
        })
        .collect()
}

/// Everybody whose policy there can be.
fn subjects() -> Vec<Subject> {
    let labels = |texts: &[&str]| {
        Arc::new(texts.iter().map(|text| text.parse().unwrap()).collect::<Labels>())
    };
    let pod = [
        "k8s:app=x",
        "k8s:io.kubernetes.pod.namespace=a",
        "k8s:io.cilium.k8s.policy.cluster=default",
    ];
    let endpoint =
        |labels, named_ports| Subject { kind: SubjectKind::Endpoint, labels, named_ports };
    let http = NamedPort { name: "web".into(), protocol: Protocol::TCP, port: 80 };
    vec![
        endpoint(labels(&pod), vec![]),
        endpoint(labels(&pod), vec![http]),
        endpoint(labels(&["k8s:app=y", "k8s:io.kubernetes.pod.namespace=b"]), vec![]),
        endpoint(labels(&["reserved:init"]), vec![]),
        Subject {
            kind: SubjectKind::Host,
            labels: labels(&["reserved:host", "k8s:zone=a"]),
            named_ports: vec![],
        },
    ]
}

fn service_name(index: usize) -> ServiceName {
    ServiceName { namespace: "a".to_owned(), name: format!("s{index}") }
}

fn group_name(index: usize) -> String {
    format!("g{index}")
}

fn requirement() -> impl Strategy<Value = Requirement> {
    let values = || {
        proptest::collection::btree_set(select(vec!["x", "y", "z"]), 1..3)
            .prop_map(|values| values.into_iter().map(Arc::from).collect::<Box<[Arc<str>]>>())
    };
    let namespace = select(vec!["a", "b"]);
    prop_oneof![
        values().prop_map(|values| Requirement::new("app", Operator::In(values))),
        values().prop_map(|values| Requirement::new("k8s:app", Operator::NotIn(values))),
        Just(Requirement::new("app", Operator::Exists)),
        Just(Requirement::new("app", Operator::DoesNotExist)),
        namespace.prop_map(|name| Requirement::equals("k8s:io.kubernetes.pod.namespace", name)),
        Just(Requirement::new("k8s:io.kubernetes.pod.namespace", Operator::Exists)),
        Just(Requirement::equals("k8s:io.cilium.k8s.policy.cluster", "default")),
    ]
}

fn selector() -> impl Strategy<Value = LabelSelector> {
    proptest::collection::vec(requirement(), 0..3).prop_map(LabelSelector::new)
}

fn prefix() -> impl Strategy<Value = IpNet> {
    let texts = vec!["0.0.0.0/0", "10.0.0.0/8", "10.1.0.0/16", "10.1.2.3/32", "fd00::/8", "::/0"];
    select(texts).prop_map(|text| text.parse().unwrap())
}

fn peer() -> impl Strategy<Value = PeerSelector> {
    let except = || proptest::collection::vec(prefix(), 0..2).prop_map(Vec::into_boxed_slice);
    prop_oneof![
        5 => selector().prop_map(PeerSelector::Labels),
        3 => select(Entity::ALL.to_vec()).prop_map(PeerSelector::Entity),
        2 => (prefix(), except()).prop_map(|(prefix, except)| PeerSelector::Cidr { prefix, except }),
        1 => (0..2_usize, except()).prop_map(|(group, except)| PeerSelector::CidrGroup {
            groups: CidrGroups::Named(group_name(group).into()),
            except,
        }),
        1 => Just(PeerSelector::CidrGroup {
            groups: CidrGroups::Labelled(LabelSelector::default()),
            except: Box::default(),
        }),
        1 => Just(PeerSelector::Nodes(LabelSelector::default())),
        1 => Just(PeerSelector::Nodes(LabelSelector::new(vec![Requirement::equals("node:zone", "a")]))),
        1 => (0..2_usize).prop_map(|index| PeerSelector::Services(Services::Named {
            namespace: "a".into(),
            name: format!("s{index}").into(),
        })),
        1 => Just(PeerSelector::Name("example.org".into())),
        1 => Just(PeerSelector::CloudGroup("aws".into())),
    ]
}

fn port() -> impl Strategy<Value = Port> {
    let protocol = || select(vec![Protocol::TCP, Protocol::UDP]);
    let name = || select(vec!["web", "dns"]).prop_map(Arc::<str>::from);
    let ports = prop_oneof![
        2 => Just(PortMatch::All),
        1 => protocol().prop_map(PortMatch::Protocol),
        4 => (protocol(), 78..83_u16, 0..4_u16).prop_map(|(protocol, first, more)| {
            PortMatch::Range { protocol, first, last: first + more }
        }),
        1 => Just(PortMatch::Range { protocol: Protocol::ICMP, first: 8, last: 8 }),
        2 => (proptest::option::of(protocol()), name())
            .prop_map(|(protocol, name)| PortMatch::Named { protocol, name }),
    ];
    let unenforced = prop_oneof![6 => Just(None), 1 => Just(Some(Unenforced::L7))];
    (ports, unenforced).prop_map(|(ports, unenforced)| Port { ports, unenforced })
}

fn clause(direction: Direction, tier: Tier) -> impl Strategy<Value = Clause> {
    let peers = prop_oneof![
        1 => Just(Peers::Any),
        4 => proptest::collection::vec(peer().prop_map(Arc::new), 0..3).prop_map(Peers::Of),
    ];
    let verdicts = match tier {
        Tier::Normal => vec![Verdict::Allow, Verdict::Allow, Verdict::Deny],
        _ => vec![Verdict::Allow, Verdict::Deny, Verdict::Pass],
    };
    let priorities = if tier == Tier::Normal { 0..1_u32 } else { 0..3 };
    let ports = proptest::collection::vec(port(), 0..3);
    (peers, ports, select(verdicts), priorities, 0..3_u16).prop_map(
        move |(peers, ports, verdict, priority, index)| {
            let list = match (direction, verdict) {
                (Direction::Ingress, Verdict::Deny) => List::IngressDeny,
                (Direction::Ingress, _) => List::Ingress,
                (Direction::Egress, Verdict::Deny) => List::EgressDeny,
                (Direction::Egress, _) => List::Egress,
            };
            Clause { place: Place { list, index }, verdict, priority, peers, ports }
        },
    )
}

fn rule() -> impl Strategy<Value = Rule> {
    let tier =
        prop_oneof![4 => Just(Tier::Normal), 1 => Just(Tier::Admin), 1 => Just(Tier::Baseline)];
    let subject = prop_oneof![
        6 => selector().prop_map(|one| SubjectSelector::Endpoints(Arc::new(one))),
        1 => Just(SubjectSelector::Nodes(Arc::new(LabelSelector::default()))),
    ];
    tier.prop_flat_map(move |tier| {
        let clauses = |direction| proptest::collection::vec(clause(direction, tier), 0..4);
        let deny = move || prop_oneof![1 => Just(false), 3 => Just(tier == Tier::Normal)];
        (
            subject.clone(),
            (deny(), deny()),
            (clauses(Direction::Ingress), clauses(Direction::Egress)),
        )
            .prop_map(move |(subject, deny, clauses)| Rule {
                spec: None,
                subject,
                tier,
                default_deny: PerDirection { ingress: deny.0, egress: deny.1 },
                clauses: PerDirection { ingress: clauses.0, egress: clauses.1 },
                labels: Labels::new(),
                log: None,
            })
    })
}

fn policy() -> impl Strategy<Value = Policy> {
    (0..6_u8, proptest::collection::vec(rule(), 1..3)).prop_map(|(number, mut rules)| {
        for (index, rule) in rules.iter_mut().enumerate() {
            rule.spec = Some(index as u16);
        }
        let kind = PolicyKind::CiliumClusterwideNetworkPolicy;
        let id = PolicyId { kind, namespace: String::new(), name: format!("p{number}") };
        Policy { id, uid: "".into(), rules }
    })
}

fn step() -> impl Strategy<Value = Step> {
    let identity = || 0..identities().len();
    let named = (select(vec!["web", "dns"]), 79..82_u16).prop_map(|(name, port)| NamedPort {
        name: name.into(),
        protocol: Protocol::TCP,
        port,
    });
    let address = select(vec!["10.1.2.3", "192.0.2.1"]).prop_map(|text| text.parse().unwrap());
    let service = (any::<bool>(), proptest::collection::btree_set(address, 0..3)).prop_map(
        |(selects, backends)| Service {
            labels: Labels::new(),
            selector: selects.then(|| ("app".to_owned(), "y".to_owned())).into_iter().collect(),
            backends,
        },
    );
    let group = proptest::collection::btree_set(prefix(), 0..3)
        .prop_map(|prefixes| CidrGroup { labels: Labels::new(), prefixes });
    let mode = select(vec![
        EnforcementMode::Default,
        EnforcementMode::Default,
        EnforcementMode::Always,
        EnforcementMode::Never,
    ]);
    prop_oneof![
        8 => policy().prop_map(Step::Upsert),
        2 => (0..6_usize).prop_map(Step::Remove),
        8 => identity().prop_map(Step::AddIdentity),
        4 => identity().prop_map(Step::RemoveIdentity),
        3 => (identity(), proptest::collection::btree_set(named, 0..3))
            .prop_map(|(index, ports)| Step::NamePorts(index, ports)),
        2 => (0..2_usize, service).prop_map(|(index, service)| Step::SetService(index, service)),
        1 => (0..2_usize).prop_map(Step::RemoveService),
        2 => (0..2_usize, group).prop_map(|(index, group)| Step::SetGroup(index, group)),
        1 => (0..2_usize).prop_map(Step::RemoveGroup),
        3 => (0..subjects().len()).prop_map(Step::Attach),
        1 => (0..subjects().len()).prop_map(Step::Detach),
        1 => mode.prop_map(Step::SetMode),
    ]
}

fn config(mode: EnforcementMode) -> Config {
    Config { mode, host_firewall: true, ..Config::default() }
}

/// Tells a repository one thing, and notes what is so afterwards.
fn apply(
    step: Step,
    repository: &mut Repository,
    ids: &mut BTreeMap<usize, SubjectId>,
    present: &mut Present,
) {
    match step {
        Step::Upsert(policy) => {
            present.policies.insert(policy.id.clone(), policy.clone());
            repository.upsert_policy(policy);
        }
        Step::Remove(index) => {
            let Some(id) = present.policies.keys().nth(index).cloned() else { return };
            present.policies.remove(&id);
            assert!(repository.remove_policy(&id).is_some());
        }
        Step::AddIdentity(index) => {
            let (id, labels) = identities().swap_remove(index);
            present.identities.entry(index).or_default();
            repository.add_identity(id, labels);
        }
        Step::RemoveIdentity(index) => {
            present.identities.remove(&index);
            repository.remove_identity(identities()[index].0);
        }
        Step::NamePorts(index, ports) => {
            let Some(own) = present.identities.get_mut(&index) else { return };
            own.clone_from(&ports);
            repository.set_named_ports(identities()[index].0, ports);
        }
        Step::SetService(index, service) => {
            present.services.insert(index, service.clone());
            repository.upsert_service(service_name(index), service);
        }
        Step::RemoveService(index) => {
            present.services.remove(&index);
            repository.remove_service(&service_name(index));
        }
        Step::SetGroup(index, group) => {
            present.groups.insert(index, group.clone());
            repository.upsert_cidr_group(&group_name(index), group);
        }
        Step::RemoveGroup(index) => {
            present.groups.remove(&index);
            repository.remove_cidr_group(&group_name(index));
        }
        Step::Attach(index) => {
            if present.subjects.insert(index) {
                ids.insert(index, repository.attach(subjects().swap_remove(index)));
            }
        }
        Step::Detach(index) => {
            if present.subjects.remove(&index) {
                repository.detach(ids.remove(&index).unwrap());
            }
        }
        Step::SetMode(mode) => {
            present.mode = mode;
            repository.set_mode(mode);
        }
    }
}

/// A repository that is told the present only, subjects first.
fn fresh(present: &Present) -> (Repository, BTreeMap<usize, SubjectId>) {
    let mut repository = Repository::new(config(present.mode));
    let mut ids = BTreeMap::new();
    for index in &present.subjects {
        ids.insert(*index, repository.attach(subjects().swap_remove(*index)));
    }
    for policy in present.policies.values().rev() {
        repository.upsert_policy(policy.clone());
    }
    for (index, group) in &present.groups {
        repository.upsert_cidr_group(&group_name(*index), group.clone());
    }
    for (index, service) in &present.services {
        repository.upsert_service(service_name(*index), service.clone());
    }
    for (index, ports) in present.identities.iter().rev() {
        let (id, labels) = identities().swap_remove(*index);
        repository.add_identity(id, labels);
        repository.set_named_ports(id, ports.clone());
    }
    (repository, ids)
}

/// A map with rules in place of cookies, which are numbered in the order of history.
fn content(
    repository: &Repository,
    map: &MapState,
) -> BTreeMap<Key, (EntryVerdict, u32, Vec<RuleReference>)> {
    let rules = |entry: &Entry| repository.rules_of(entry.cookie);
    let entries = map.entries().iter();
    entries.map(|(key, entry)| (*key, (entry.verdict, entry.precedence, rules(entry)))).collect()
}

/// Every lookup in the map is what is explained.
fn check_lookups(repository: &Repository, index: usize, id: SubjectId, present: &Present) {
    let subject = repository.party_of_subject(id).unwrap();
    let map = repository.map(id).unwrap();
    let mut peers: Vec<IdentityId> =
        present.identities.keys().map(|index| identities()[*index].0).collect();
    let reserved = [IdentityId::HOST, IdentityId::WORLD_IPV4, IdentityId::WORLD_IPV6];
    peers.extend(reserved);
    peers.extend([IdentityId::HEALTH, IdentityId::REMOTE_NODE]);
    let ports = [(Protocol::TCP, 79), (Protocol::TCP, 80), (Protocol::TCP, 443)];
    let more = [(Protocol::UDP, 81), (Protocol::ICMP, 8), (Protocol::SCTP, 80)];
    for peer in peers {
        let party = repository.party_of(peer).unwrap();
        for direction in Direction::BOTH {
            for (protocol, port) in ports.into_iter().chain(more) {
                let explanation = repository.explain(&DirectionQuery {
                    subject: subject.clone(),
                    peer: party.clone(),
                    direction,
                    protocol,
                    port,
                });
                let found = map.lookup(direction, peer, 0, protocol, port);
                let allowed = match found {
                    _ if !map.enforces(direction) => true,
                    Some((_, entry)) => entry.verdict == EntryVerdict::Allow,
                    None => false,
                };
                assert_eq!(
                    explanation.allowed(),
                    allowed,
                    "subject {index}, {direction} {peer} {protocol} {port}: {explanation:#} but \
                     {found:?} in {:#?}",
                    content(repository, map),
                );
                let unenforced = matches!(explanation.outcome, Outcome::Unenforced { .. });
                let flagged =
                    found.is_some_and(|(_, entry)| entry.verdict == EntryVerdict::NotEnforced);
                assert_eq!(unenforced, map.enforces(direction) && flagged, "{explanation:#}");
            }
        }
    }
}

proptest! {
    #[test]
    fn history_does_not_matter(steps in proptest::collection::vec(step(), 1..40)) {
        let mut repository = Repository::new(config(EnforcementMode::Default));
        let mut ids = BTreeMap::new();
        let mut present = Present::default();
        let mut reported: BTreeMap<SubjectId, (PerDirection<bool>, BTreeMap<Key, Entry>)> =
            BTreeMap::new();
        let last = steps.len() - 1;
        for (number, step) in steps.into_iter().enumerate() {
            apply(step, &mut repository, &mut ids, &mut present);
            for (id, delta) in repository.take_changes() {
                let (enforce, entries) = reported.entry(id).or_default();
                *enforce = delta.enforce;
                for key in delta.removed {
                    prop_assert!(entries.remove(&key).is_some(), "{:?} was not there", key);
                }
                entries.extend(delta.written);
            }
            let (other, other_ids) = fresh(&present);
            for (index, id) in &ids {
                let map = repository.map(*id).unwrap();
                let expected = other.map(other_ids[index]).unwrap();
                prop_assert_eq!(content(&repository, map), content(&other, expected));
                for direction in Direction::BOTH {
                    prop_assert_eq!(map.enforces(direction), expected.enforces(direction));
                    prop_assert_eq!(map.enforces(direction), reported[id].0[direction]);
                }
                prop_assert_eq!(map.entries(), &reported[id].1);
                if number == last {
                    check_lookups(&repository, *index, *id, &present);
                }
            }
            prop_assert_eq!(repository.required_prefixes(), other.required_prefixes());
        }
    }
}
