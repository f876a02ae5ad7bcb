//! Random worlds and policies: valid ones, dense enough that rules meet, deny and shadow each other.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde_json::{Map, Value, json};

use super::{Kind, Mode, NamedPort, Packet, Party, Pod, World};

/// A source of numbers that a seed repeats.
#[derive(Clone, Debug)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        // Seeds are small numbers; the state must not be zero.
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn next(&mut self) -> u64 {
        // Marsaglia's xorshift64*.
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub(crate) fn below(&mut self, limit: usize) -> usize {
        (self.next() >> 33) as usize % limit
    }

    /// True once in so many times.
    pub(crate) fn once_in(&mut self, times: usize) -> bool {
        self.below(times) == 0
    }

    pub(crate) fn one_of<T: Clone>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())].clone()
    }

    /// Between one and `most` of something.
    fn some<T>(&mut self, most: usize, mut make: impl FnMut(&mut Self) -> T) -> Vec<T> {
        let count = 1 + self.below(most);
        (0..count).map(|_| make(self)).collect()
    }
}

const NAMESPACES: [&str; 3] = ["red", "green", "blue"];
const APPS: [&str; 3] = ["web", "db", "cache"];
const TIERS: [&str; 2] = ["front", "back"];
const ACCOUNTS: [&str; 2] = ["default", "robot"];
const PORT_NAMES: [&str; 3] = ["http", "dns", "metrics"];
/// Prefixes that lie in each other.
const NETS: [&str; 10] = [
    "0.0.0.0/0",
    "192.0.2.0/24",
    "192.0.2.0/25",
    "192.0.2.7/32",
    "198.51.100.0/24",
    "10.0.0.0/8",
    "::/0",
    "2001:db8::/32",
    "2001:db8:1::/48",
    "2001:db8:1::7/128",
];
const OUTSIDE: [&str; 8] = [
    "192.0.2.7",
    "192.0.2.8",
    "192.0.2.200",
    "198.51.100.1",
    "10.9.9.9",
    "2001:db8:1::7",
    "2001:db8:1::8",
    "2001:db8:2::1",
];

/// A world of about a dozen pods, two nodes, and everybody else who may be a peer.
pub(crate) fn world(random: &mut Random) -> World {
    let mut namespaces = BTreeMap::new();
    for name in NAMESPACES {
        // Kubernetes labels every namespace with its name.
        let mut labels =
            BTreeMap::from([("kubernetes.io/metadata.name".to_owned(), name.to_owned())]);
        if random.once_in(2) {
            labels.insert("team".to_owned(), random.one_of(&["x", "y"]).to_owned());
        }
        namespaces.insert(name.to_owned(), labels);
    }
    let mut parties = Vec::new();
    let mut add = |name: String, kind, address: &str| {
        let address: IpAddr = address.parse().expect("a valid address");
        parties.push(Party { name, kind, address });
    };
    for index in 0..(6 + random.below(6)) {
        let cluster = if random.once_in(8) { "other" } else { "default" };
        let pod = pod(random, cluster);
        add(format!("{}/pod-{index}", pod.namespace), Kind::Pod(pod), "10.244.0.7");
    }
    for (name, is_local, address) in [("here", true, "172.18.0.1"), ("there", false, "172.18.0.2")]
    {
        let zone = random.one_of(&["a", "b"]).to_owned();
        let labels = BTreeMap::from([("zone".to_owned(), zone)]);
        add(name.to_owned(), Kind::Node { is_local, labels }, address);
    }
    for name in ["health", "unmanaged", "ingress", "kube-apiserver"] {
        add(name.to_owned(), Kind::Reserved(name), "10.244.0.8");
    }
    for address in OUTSIDE {
        add(address.to_owned(), Kind::World, address);
    }
    let mode = match random.below(10) {
        0 => Mode::Always,
        1 => Mode::Never,
        _ => Mode::Default,
    };
    World { cluster: "default".to_owned(), mode, namespaces, parties, groups: groups() }
}

/// The `CiliumCIDRGroup` objects that policies speak of, but for one that is not there.
pub(crate) fn groups() -> Vec<Value> {
    vec![
        group("offices", "inside", &["192.0.2.0/25", "2001:db8:1::/48"]),
        group("partners", "outside", &["198.51.100.0/24", "192.0.2.7/32"]),
    ]
}

fn pod(random: &mut Random, cluster: &str) -> Pod {
    let mut labels = BTreeMap::new();
    let app = random.one_of(&APPS);
    labels.insert("app".to_owned(), app.to_owned());
    if random.once_in(2) {
        labels.insert("tier".to_owned(), random.one_of(&TIERS).to_owned());
    }
    Pod {
        cluster: cluster.to_owned(),
        namespace: random.one_of(&NAMESPACES).to_owned(),
        service_account: random.one_of(&ACCOUNTS).to_owned(),
        labels,
        ports: named_ports(app),
    }
}

/// The ports that pods with this label name. Pods of equal labels have equal ports, for that is as
/// far as an identity can tell.
pub(crate) fn named_ports(app: &str) -> Vec<NamedPort> {
    let port = |name: &str, number, protocol| NamedPort { name: name.to_owned(), number, protocol };
    match app {
        "web" => vec![port("http", 80, "TCP"), port("metrics", 9090, "TCP")],
        "db" => vec![port("http", 8080, "TCP"), port("dns", 53, "UDP")],
        _ => vec![port("metrics", 9090, "UDP")],
    }
}

fn group(name: &str, kind: &str, nets: &[&str]) -> Value {
    json!({
        "apiVersion": "cilium.io/v2", "kind": "CiliumCIDRGroup",
        "metadata": {"name": name, "labels": {"kind": kind}},
        "spec": {"externalCIDRs": nets},
    })
}

/// Packets worth asking about: on, beside and between the ports that policies name.
pub(crate) fn packets() -> Vec<Packet> {
    let tcp = [1, 80, 81, 443, 8050, 8080, 9090, 65535].map(|port| (6, port));
    let udp = [53, 80, 9090].map(|port| (17, port));
    let rest = [(132, 80), (1, 8), (1, 0), (1, 3), (58, 128), (58, 2), (47, 0)];
    let all = tcp.into_iter().chain(udp).chain(rest);
    all.map(|(protocol, port)| Packet { protocol, port }).collect()
}

/// A few policies of all kinds.
pub(crate) fn policies(random: &mut Random) -> Vec<Value> {
    let count = 1 + random.below(6);
    (0..count).map(|index| policy(random, index)).collect()
}

pub(crate) fn policy(random: &mut Random, index: usize) -> Value {
    match random.below(10) {
        0..=3 => cilium(random, index, true),
        4..=5 => cilium(random, index, false),
        6..=7 => kubernetes(random, index),
        _ => cluster_policy(random, index),
    }
}

// ---------------------------------------------------------------------------------------------
// Cilium's language

fn cilium(random: &mut Random, index: usize, is_namespaced: bool) -> Value {
    let kind = match is_namespaced {
        true => "CiliumNetworkPolicy",
        false => "CiliumClusterwideNetworkPolicy",
    };
    let mut metadata = json!({"name": format!("policy-{index}")});
    if is_namespaced {
        metadata["namespace"] = random.one_of(&NAMESPACES).into();
    }
    let mut object = json!({"apiVersion": "cilium.io/v2", "kind": kind, "metadata": metadata});
    if random.once_in(6) {
        object["specs"] = random.some(2, |random| rule(random, is_namespaced)).into();
    } else {
        object["spec"] = rule(random, is_namespaced);
    }
    object
}

fn rule(random: &mut Random, is_namespaced: bool) -> Value {
    let of_host = !is_namespaced && random.once_in(5);
    let mut rule = match of_host {
        true => json!({"nodeSelector": node_selector(random)}),
        false => json!({"endpointSelector": plain_selector(random)}),
    };
    let mut some = false;
    for (name, prefix, denies) in [
        ("ingress", "from", false),
        ("egress", "to", false),
        ("ingressDeny", "from", true),
        ("egressDeny", "to", true),
    ] {
        if random.once_in(if denies { 4 } else { 2 }) {
            rule[name] = random.some(3, |random| item(random, prefix, denies, of_host)).into();
            some = true;
        }
    }
    if !some {
        rule["ingress"] = vec![item(random, "from", false, of_host)].into();
    }
    if random.once_in(4) {
        let mut switch = Map::new();
        for direction in ["ingress", "egress"] {
            let has_rules =
                !rule[direction].is_null() || !rule[format!("{direction}Deny")].is_null();
            if has_rules && random.once_in(2) && !names_domains(&rule) {
                switch.insert(direction.to_owned(), random.once_in(4).into());
            }
        }
        rule["enableDefaultDeny"] = switch.into();
    }
    rule
}

fn names_domains(rule: &Value) -> bool {
    rule["egress"].as_array().into_iter().flatten().any(|item| !item["toFQDNs"].is_null())
}

/// An element of `ingress`, `egress` or their deny forms.
fn item(random: &mut Random, prefix: &str, denies: bool, of_host: bool) -> Value {
    let mut item = Map::new();
    let mut peer = |kind: &str, value: Vec<Value>| {
        item.insert(format!("{prefix}{kind}"), value.into());
    };
    match random.below(20) {
        0..=7 => peer("Endpoints", random.some(2, peer_selector)),
        8 => peer("Endpoints", Vec::new()),
        9..=10 => peer("CIDR", random.some(2, |random| random.one_of(&NETS).into())),
        11..=13 => peer("CIDRSet", random.some(2, cidr_set)),
        14..=16 => peer("Entities", random.some(2, entity)),
        17 if !denies && prefix == "to" => {
            peer("FQDNs", vec![json!({"matchName": "example.com"})]);
        }
        // Ports alone, or nothing at all.
        _ => {}
    }
    let by_name = item.contains_key("toFQDNs");
    match random.below(6) {
        0..=2 => {
            let ports = random.some(2, |random| port_rule(random, denies || of_host || by_name));
            item.insert("toPorts".to_owned(), ports.into());
        }
        3 => {
            item.insert("icmps".to_owned(), vec![icmp(random)].into());
        }
        _ => {}
    }
    item.into()
}

fn port_rule(random: &mut Random, plain: bool) -> Value {
    if !plain && random.once_in(8) {
        return json!({
            "ports": [{"port": random.one_of(&["80", "8080"]), "protocol": "TCP"}],
            "rules": {"http": [{"method": "GET", "path": "/public"}]},
        });
    }
    json!({"ports": random.some(3, port)})
}

fn port(random: &mut Random) -> Value {
    let protocol = random.one_of(&["TCP", "TCP", "UDP", "SCTP", "ANY"]);
    let mut port = match random.below(8) {
        0 if protocol != "ANY" => json!({"port": "0"}),
        1 => json!({"port": random.one_of(&PORT_NAMES)}),
        2 => json!({"port": "8000", "endPort": 8100}),
        3 => json!({"port": random.one_of(&["1", "79"]), "endPort": random.one_of(&[443, 65535])}),
        _ => json!({"port": random.one_of(&["80", "81", "443", "8080", "53"])}),
    };
    if protocol != "ANY" || random.once_in(2) {
        port["protocol"] = protocol.into();
    }
    port
}

fn icmp(random: &mut Random) -> Value {
    let field = |random: &mut Random| match random.below(5) {
        0 => json!({"type": 8}),
        1 => json!({"family": "IPv4", "type": "EchoRequest"}),
        2 => json!({"type": "DestinationUnreachable"}),
        3 => json!({"family": "IPv6", "type": 128}),
        _ => json!({"family": "IPv6", "type": "PacketTooBig"}),
    };
    json!({"fields": random.some(2, field)})
}

fn cidr_set(random: &mut Random) -> Value {
    match random.below(6) {
        0 => json!({"cidrGroupRef": random.one_of(&["offices", "partners", "nobody"])}),
        1 => {
            json!({"cidrGroupSelector": {"matchLabels": {"kind": random.one_of(&["inside", "outside"])}}})
        }
        _ => with_except(random),
    }
}

/// A prefix, and holes in it.
fn with_except(random: &mut Random) -> Value {
    let cidr = random.one_of(&NETS);
    let outer: ipnet::IpNet = cidr.parse().expect("a valid prefix");
    let inner = NETS.iter().filter(|net| {
        let net: ipnet::IpNet = net.parse().expect("a valid prefix");
        outer.contains(&net) && net != outer
    });
    let inner: Vec<&str> = inner.copied().collect();
    if inner.is_empty() || random.once_in(3) {
        return json!({"cidr": cidr});
    }
    let except = random.some(2, |random| random.one_of(&inner));
    json!({"cidr": cidr, "except": except})
}

fn entity(random: &mut Random) -> Value {
    const ENTITIES: [&str; 12] = [
        "all",
        "world",
        "cluster",
        "cluster-mesh",
        "host",
        "remote-node",
        "health",
        "unmanaged",
        "ingress",
        "kube-apiserver",
        "init",
        "none",
    ];
    random.one_of(&ENTITIES).into()
}

/// A selector of subjects, or of pods by their own labels.
fn plain_selector(random: &mut Random) -> Value {
    match random.below(6) {
        0..=1 => json!({}),
        2..=3 => json!({"matchLabels": {"app": random.one_of(&APPS)}}),
        4 => json!({"matchLabels": {"tier": random.one_of(&TIERS)}}),
        _ => json!({"matchExpressions": [expression(random)]}),
    }
}

fn expression(random: &mut Random) -> Value {
    match random.below(5) {
        0 => json!({"key": "app", "operator": "In", "values": ["web", "db"]}),
        1 => json!({"key": "app", "operator": "NotIn", "values": [random.one_of(&APPS)]}),
        2 => json!({"key": "tier", "operator": "Exists"}),
        3 => json!({"key": "tier", "operator": "DoesNotExist"}),
        _ => json!({"key": "tier", "operator": "NotIn", "values": ["front"]}),
    }
}

/// A selector of peers: with sources, namespaces, their labels, accounts, clusters, reserved labels.
fn peer_selector(random: &mut Random) -> Value {
    const NAMESPACE: &str = "io.kubernetes.pod.namespace";
    const TEAM: &str = "io.cilium.k8s.namespace.labels.team";
    const ACCOUNT: &str = "io.cilium.k8s.policy.serviceaccount";
    const CLUSTER: &str = "io.cilium.k8s.policy.cluster";
    let app = random.one_of(&APPS);
    match random.below(16) {
        0..=4 => plain_selector(random),
        5 => json!({"matchLabels": {"k8s:app": app}}),
        6 => json!({"matchLabels": {"any:app": app}}),
        7 => json!({"matchLabels": {(format!("k8s:{NAMESPACE}")): random.one_of(&NAMESPACES)}}),
        8 => json!({"matchLabels": {NAMESPACE: random.one_of(&NAMESPACES), "app": app}}),
        9 => json!({"matchExpressions": [
            {"key": format!("k8s:{NAMESPACE}"), "operator": "In", "values": ["red", "blue"]},
        ]}),
        10 => json!({"matchLabels": {(format!("k8s:{TEAM}")): random.one_of(&["x", "y"])}}),
        11 => json!({"matchExpressions": [
            {"key": TEAM, "operator": random.one_of(&["Exists", "DoesNotExist"])},
        ]}),
        12 => json!({"matchLabels": {ACCOUNT: random.one_of(&ACCOUNTS)}}),
        13 => {
            json!({"matchLabels": {(format!("k8s:{CLUSTER}")): random.one_of(&["default", "other"])}})
        }
        14 => {
            json!({"matchLabels": {(format!("reserved:{}", random.one_of(&["host", "remote-node", "world-ipv4", "health"]))): ""}})
        }
        _ => json!({"matchLabels": {"app": app}, "matchExpressions": [expression(random)]}),
    }
}

fn node_selector(random: &mut Random) -> Value {
    match random.below(3) {
        0 => json!({}),
        1 => json!({"matchLabels": {"zone": random.one_of(&["a", "b"])}}),
        _ => json!({"matchExpressions": [{"key": "zone", "operator": "Exists"}]}),
    }
}

// ---------------------------------------------------------------------------------------------
// Kubernetes' languages

fn kubernetes(random: &mut Random, index: usize) -> Value {
    let mut spec = json!({"podSelector": plain_selector(random)});
    for (name, peers) in [("ingress", "from"), ("egress", "to")] {
        if random.once_in(2) {
            spec[name] = random.some(2, |random| kubernetes_rule(random, peers)).into();
        }
    }
    match random.below(4) {
        0 => spec["policyTypes"] = json!(["Ingress"]),
        1 => spec["policyTypes"] = json!(["Ingress", "Egress"]),
        2 => spec["policyTypes"] = json!(["Egress"]),
        _ => {}
    }
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {
            "name": format!("policy-{index}"),
            "namespace": random.one_of(&NAMESPACES),
        },
        "spec": spec,
    })
}

fn kubernetes_rule(random: &mut Random, peers: &str) -> Value {
    let mut rule = Map::new();
    if !random.once_in(5) {
        rule.insert(peers.to_owned(), random.some(2, kubernetes_peer).into());
    }
    if random.once_in(2) {
        let port = |random: &mut Random| {
            let protocol = random.one_of(&["TCP", "UDP", "SCTP"]);
            match random.below(6) {
                0 => json!({"protocol": protocol}),
                1 => json!({"port": random.one_of(&PORT_NAMES), "protocol": protocol}),
                2 => json!({"port": 79, "endPort": 443, "protocol": protocol}),
                3 => json!({"port": 80}),
                _ => json!({"port": random.one_of(&[53, 80, 443, 8080]), "protocol": protocol}),
            }
        };
        rule.insert("ports".to_owned(), random.some(2, port).into());
    }
    rule.into()
}

fn kubernetes_peer(random: &mut Random) -> Value {
    match random.below(6) {
        0..=1 => json!({"podSelector": plain_selector(random)}),
        2 => json!({"namespaceSelector": namespace_selector(random)}),
        3 => json!({
            "namespaceSelector": namespace_selector(random), "podSelector": plain_selector(random),
        }),
        _ => json!({"ipBlock": with_except(random)}),
    }
}

fn namespace_selector(random: &mut Random) -> Value {
    match random.below(4) {
        0 => json!({}),
        1 => json!({"matchLabels": {"team": random.one_of(&["x", "y"])}}),
        2 => json!({"matchLabels": {"kubernetes.io/metadata.name": random.one_of(&NAMESPACES)}}),
        _ => json!({"matchExpressions": [
            {"key": "team", "operator": random.one_of(&["Exists", "DoesNotExist"])},
        ]}),
    }
}

fn cluster_policy(random: &mut Random, index: usize) -> Value {
    let mut spec = json!({
        "tier": random.one_of(&["Admin", "Baseline"]),
        "priority": random.one_of(&[0, 1, 10, 1000]),
        "subject": cluster_peer(random),
    });
    for (name, peers) in [("ingress", "from"), ("egress", "to")] {
        if random.once_in(2) || name == "ingress" {
            spec[name] = random.some(3, |random| cluster_rule(random, peers)).into();
        }
    }
    json!({
        "apiVersion": "policy.networking.k8s.io/v1alpha2", "kind": "ClusterNetworkPolicy",
        "metadata": {"name": format!("policy-{index}")},
        "spec": spec,
    })
}

fn cluster_rule(random: &mut Random, peers: &str) -> Value {
    let peer = |random: &mut Random| match random.below(5) {
        0 if peers == "to" => json!({"networks": random.some(2, |random| random.one_of(&NETS))}),
        _ => cluster_peer(random),
    };
    let mut rule = json!({
        "action": random.one_of(&["Accept", "Deny", "Pass"]),
        peers: random.some(2, peer),
    });
    if random.once_in(2) {
        let protocol = |random: &mut Random| {
            let name = random.one_of(&["tcp", "udp", "sctp"]);
            match random.below(4) {
                0 => json!({name: {"destinationPort": {"range": {"start": 79, "end": 443}}}}),
                1 => json!({"destinationNamedPort": random.one_of(&PORT_NAMES)}),
                _ => json!({name: {"destinationPort": {"number": random.one_of(&[53, 80, 8080])}}}),
            }
        };
        rule["protocols"] = random.some(2, protocol).into();
    }
    rule
}

fn cluster_peer(random: &mut Random) -> Value {
    match random.once_in(2) {
        true => json!({"namespaces": namespace_selector(random)}),
        false => json!({"pods": {
            "namespaceSelector": namespace_selector(random), "podSelector": plain_selector(random),
        }}),
    }
}
