//! Policies under real traffic: every pod asks every other, over every protocol and port, and the
//! answers are those that the judge of policies expects.
//!
//! The judge is that of the engine's own tests (`crates/policy/tests/reference`). It reads the objects
//! that were applied, and knows nothing of agents, maps and packets.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::policy_reference::generate::{self, Random};
use crate::policy_reference::{
    self as reference, Kind, Mode, NamedPort, Packet, Party, Pod, World,
};
use crate::probe::{Ground, Probe, Talk};
use crate::world::{Lab, can_run};

/// Until what was changed must be in force, on a machine that does other things as well.
const PATIENCE: Duration = Duration::from_secs(60);
/// Until an agent says that it enforces what it knows.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);

/// All that is asked of each pod. Port 443 is served by nobody, and answers by refusing.
const TALKS: [Talk; 6] =
    [Talk::Tcp(80), Talk::Tcp(443), Talk::Tcp(8080), Talk::Udp(53), Talk::Udp(9090), Talk::Ping];

/// Name, namespace, node, labels.
type Row = (&'static str, &'static str, u32, &'static [(&'static str, &'static str)]);

const PODS: [Row; 6] = [
    ("web-1", "red", 1, &[("app", "web"), ("tier", "front")]),
    ("db-1", "red", 1, &[("app", "db"), ("tier", "back")]),
    ("cache-1", "red", 2, &[("app", "cache")]),
    ("web-2", "green", 2, &[("app", "web")]),
    ("db-2", "blue", 1, &[("app", "db")]),
    ("cache-2", "blue", 2, &[("app", "cache"), ("tier", "front")]),
];

/// A lab, its pods, and what the judge knows of them.
struct Table {
    lab: Lab,
    ground: Ground,
    world: World,
    /// Both addresses of each pod, by `NAMESPACE/NAME`.
    addresses: BTreeMap<String, Vec<IpAddr>>,
}

impl Table {
    fn up(settings: &[&str]) -> Self {
        let mut namespaces = BTreeMap::new();
        for (name, team) in [("red", "x"), ("green", "y"), ("blue", "x")] {
            namespaces.insert(name.to_owned(), labels(&[("team", team)], name));
        }
        let crd = api::crd::manifest::cluster_network_policy();
        let mut objects = vec![serde_json::to_value(crd).expect("a manifest")];
        objects.extend(namespaces.iter().map(|(name, labels)| namespace(name, labels)));
        objects.extend(PODS.map(manifest));
        let lab = Lab::up(2, settings, &objects);
        lab.kubectl(&["wait", "--for=condition=Established", "--timeout=60s", "crd", "--all"]);
        for namespace in namespaces.keys() {
            lab.kubectl(&[
                "-n",
                namespace,
                "wait",
                "--for=condition=Ready",
                "--timeout=180s",
                "pod",
                "--all",
            ]);
        }
        let names: Vec<String> = PODS.map(|row| format!("{}/{}", row.1, row.0)).to_vec();
        let addresses = names.iter().map(|name| (name.clone(), addresses(&lab, name))).collect();
        let ground = Ground::of(&lab, &names);
        let mut table = Self { lab, ground, world: World::default(), addresses };
        table.world = World {
            cluster: "default".to_owned(),
            mode: Mode::Default,
            namespaces,
            parties: PODS.iter().map(|row| table.party(row)).collect(),
            groups: generate::groups(),
        };
        table.lab.apply(&table.world.groups);
        table
    }

    fn party(&self, row: &Row) -> Party {
        let (name, namespace, _, own) = row;
        let full = format!("{namespace}/{name}");
        let app = own[0].1;
        Party {
            address: self.addresses[&full][0],
            name: full,
            kind: Kind::Pod(Pod {
                cluster: "default".to_owned(),
                namespace: (*namespace).to_owned(),
                service_account: "default".to_owned(),
                labels: own.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
                ports: generate::named_ports(app),
            }),
        }
    }

    /// Every question, with the answer that the judge expects.
    fn questions(&self, policies: &[Value]) -> Vec<(Probe, bool)> {
        let mut questions = Vec::new();
        for source in &self.world.parties {
            for target in self.world.parties.iter().filter(|other| other.name != source.name) {
                for address in &self.addresses[&target.name] {
                    for talk in TALKS {
                        let packet = packet(talk, *address);
                        let passes =
                            reference::passes(policies, &self.world, source, target, packet);
                        let probe = Probe { source: source.name.clone(), target: *address, talk };
                        questions.push((probe, passes));
                    }
                }
            }
        }
        questions
    }

    /// All answers become what the judge expects, once the policies are in force.
    fn check(&self, policies: &[Value]) -> usize {
        self.wait_enforced();
        let questions = self.questions(policies);
        let began = Instant::now();
        loop {
            let answers = self.ground.answers(&questions);
            let wrong: Vec<&(Probe, bool)> = questions
                .iter()
                .zip(&answers)
                .filter(|((_, expected), answered)| expected != *answered)
                .map(|(question, _)| question)
                .collect();
            if wrong.is_empty() {
                return questions.iter().filter(|(_, passes)| *passes).count();
            }
            if began.elapsed() > PATIENCE {
                self.lab.print_world();
                for policy in policies {
                    eprintln!("{policy:#}");
                }
                panic!("{} of {} answers are wrong: {wrong:#?}", wrong.len(), questions.len());
            }
        }
    }

    /// Waits until both agents say that their endpoints enforce all that they know.
    fn wait_enforced(&self) {
        for node in 1..=2 {
            let deadline = Instant::now() + PATIENCE;
            loop {
                let policy = policy_of(&self.lab, node);
                if policy.is_some_and(|policy| policy.realized_revision >= policy.revision) {
                    break;
                }
                if Instant::now() > deadline {
                    self.lab.print_world();
                    panic!("node-{node} does not enforce its policies");
                }
                std::thread::sleep(LOOK_INTERVAL);
            }
        }
    }
}

fn packet(talk: Talk, target: IpAddr) -> Packet {
    match talk {
        Talk::Tcp(port) => Packet { protocol: 6, port },
        Talk::Udp(port) => Packet { protocol: 17, port },
        Talk::Ping if target.is_ipv4() => Packet { protocol: 1, port: 8 },
        Talk::Ping => Packet { protocol: 58, port: 128 },
    }
}

/// What the agent of a node knows of policies; `None` while it is away.
pub fn policy_of(lab: &Lab, node: usize) -> Option<api::rest::Policy> {
    let socket = lab.dir().join(format!("nodes/node-{node}/run/cilium/cilium.sock"));
    api::rest::Client::new(socket).get(api::rest::path::POLICY).ok()
}

fn labels(own: &[(&str, &str)], namespace: &str) -> BTreeMap<String, String> {
    let name = [("kubernetes.io/metadata.name", namespace)];
    own.iter().chain(&name).map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
}

fn namespace(name: &str, labels: &BTreeMap<String, String>) -> Value {
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}})
}

/// A pod that serves TCP on 80 and 8080, UDP on 53 and 9090, and has its ports' names.
fn manifest(row: Row) -> Value {
    let (name, namespace, node, own) = row;
    let container = |name: &str, http: u16, udp: u16, ports: Value| {
        json!({
            "name": name, "image": "registry.k8s.io/e2e-test-images/agnhost:2.53",
            "args": ["netexec", format!("--http-port={http}"), format!("--udp-port={udp}")],
            "ports": ports,
            "readinessProbe": {"httpGet": {"path": "/healthz", "port": http}},
        })
    };
    let named = |port: NamedPort| json!({"name": port.name, "containerPort": port.number, "protocol": port.protocol});
    let ports: Vec<Value> = generate::named_ports(own[0].1).into_iter().map(named).collect();
    let own: BTreeMap<&str, &str> = own.iter().copied().collect();
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace, "labels": own},
        "spec": {
            "nodeName": format!("node-{node}"),
            "terminationGracePeriodSeconds": 1,
            "containers": [
                container("one", 80, 53, ports.into()),
                container("two", 8080, 9090, json!([])),
            ],
        },
    })
}

fn addresses(lab: &Lab, pod: &str) -> Vec<IpAddr> {
    let (namespace, name) = pod.split_once('/').expect("NAMESPACE/NAME");
    let path = "jsonpath={.status.podIPs[*].ip}";
    let text = lab.kubectl(&["-n", namespace, "get", "pod", name, "-o", path]);
    text.split_whitespace().map(|address| address.parse().expect("an address")).collect()
}

// ---------------------------------------------------------------------------------------------
// Changes

impl Table {
    fn apply(&self, policies: &[Value]) {
        // The judge names policies by a uid; here the API server gives it, and refuses another.
        let mut policies = policies.to_vec();
        for policy in &mut policies {
            policy["metadata"].as_object_mut().expect("metadata").remove("uid");
        }
        if !policies.is_empty() {
            self.lab.apply(&policies);
        }
    }

    fn remove(&self, policies: &[Value]) {
        for policy in policies {
            self.lab.kubectl(&words_of_deletion(policy).each_ref().map(String::as_str));
        }
    }

    /// Another label for a pod, which thereby is somebody else.
    fn relabel_pod(&mut self, index: usize, tier: &str) {
        let party = &mut self.world.parties[index];
        let Kind::Pod(pod) = &mut party.kind else { return };
        pod.labels.insert("tier".to_owned(), tier.to_owned());
        let (namespace, name) = party.name.split_once('/').expect("NAMESPACE/NAME");
        let label = format!("tier={tier}");
        self.lab.kubectl(&["-n", namespace, "label", "--overwrite", "pod", name, &label]);
    }

    /// Another label for a namespace, and so for all its pods.
    fn relabel_namespace(&mut self, name: &str, team: &str) {
        if let Some(labels) = self.world.namespaces.get_mut(name) {
            labels.insert("team".to_owned(), team.to_owned());
        }
        self.lab.kubectl(&["label", "--overwrite", "namespace", name, &format!("team={team}")]);
    }
}

fn words_of_deletion(policy: &Value) -> [String; 6] {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let group = text(&policy["apiVersion"]);
    let group = group.split('/').next().unwrap_or_default();
    let kind = format!("{}.{group}", text(&policy["kind"]).to_lowercase());
    let namespace = policy["metadata"]["namespace"].as_str().unwrap_or("default");
    [
        format!("--namespace={namespace}"),
        "delete".to_owned(),
        "--ignore-not-found".to_owned(),
        "--wait=true".to_owned(),
        kind,
        text(&policy["metadata"]["name"]),
    ]
}

// ---------------------------------------------------------------------------------------------
// Tests

/// Settings that turn everything on that policies can be written in.
const ALL_LANGUAGES: [&str; 1] = ["enable-k8s-cluster-network-policy=true"];
const NATIVE: [&str; 2] = ["routing-mode=native", "auto-direct-node-routes=true"];

/// Sets of policies that are tried where nobody says otherwise.
const ROUNDS_DEFAULT: u64 = 8;

fn rounds() -> u64 {
    let text = std::env::var("POLICY_TABLE_ROUNDS").ok();
    text.and_then(|text| text.parse().ok()).unwrap_or(ROUNDS_DEFAULT)
}

/// Sets of random policies, one after the other; labels of pods and namespaces change meanwhile.
fn check(test: &str, settings: &[&str], seed: u64) {
    if !can_run(test) {
        return;
    }
    let mut table = Table::up(&[&ALL_LANGUAGES, settings].concat());
    let all = table.check(&[]);
    assert_eq!(all, table.questions(&[]).len(), "without policies everybody is answered");
    let mut old: Vec<Value> = Vec::new();
    for round in 0..rounds() {
        let mut random = Random::new(seed + round);
        let policies = generate::policies(&mut random);
        table.apply(&policies);
        table.remove(&without(&old, &policies));
        let first = table.check(&policies);
        let pod = random.below(table.world.parties.len());
        table.relabel_pod(pod, random.one_of(&["front", "back"]));
        let second = table.check(&policies);
        let name = random.one_of(&["red", "green", "blue"]);
        table.relabel_namespace(name, random.one_of(&["x", "y"]));
        let third = table.check(&policies);
        eprintln!("round {round}: {first}, {second}, {third} of {all} pass");
        old = policies;
    }
}

/// What is in one list of policies and not, by kind and name, in the other.
fn without(old: &[Value], new: &[Value]) -> Vec<Value> {
    let is_same = |a: &Value, b: &Value| {
        ["name", "namespace"].iter().all(|field| a["metadata"][*field] == b["metadata"][*field])
            && a["kind"] == b["kind"]
    };
    old.iter().filter(|old| !new.iter().any(|new| is_same(old, new))).cloned().collect()
}

#[test]
fn policies_are_what_they_say_in_tunnels() {
    check("policies_are_what_they_say_in_tunnels", &[], 1_000);
}

#[test]
fn policies_are_what_they_say_without_tunnels() {
    check("policies_are_what_they_say_without_tunnels", &NATIVE, 2_000);
}

/// Changes of each writer.
const CHANGES: usize = 15;
const WRITERS: usize = 3;

/// Several writers apply, replace and delete policies at once. What then holds is what the policies
/// say that are there in the end, and what an agent makes of them that knows nothing else.
#[test]
fn many_writers_leave_what_from_scratch_gives() {
    if !can_run("many_writers_leave_what_from_scratch_gives") {
        return;
    }
    let table = Table::up(&ALL_LANGUAGES);
    let left: Vec<Vec<Value>> = std::thread::scope(|scope| {
        let table = &table;
        let write = |writer: usize| move || write(table, writer);
        let writers: Vec<_> = (0..WRITERS).map(|writer| scope.spawn(write(writer))).collect();
        writers.into_iter().map(|writer| writer.join().expect("a writer")).collect()
    });
    let policies: Vec<Value> = left.into_iter().flatten().collect();
    let passing = table.check(&policies);
    let before: Vec<BTreeSet<String>> = (1..=2).map(|node| map_content(&table.lab, node)).collect();
    for node in 1..=2 {
        let pid = table.lab.agent_pid(node).expect("the agent runs");
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL)
            .expect("kill the agent");
        table.lab.eventually("a new agent runs", PATIENCE, || {
            table.lab.agent_pid(node).is_some_and(|new| new != pid)
                && policy_of(&table.lab, node).is_some()
        });
    }
    assert_eq!(table.check(&policies), passing);
    for (node, before) in (1..=2).zip(&before) {
        // What the agent before it had is removed when all is known again.
        let mut differ = Vec::new();
        table.lab.eventually(&format!("the maps of node-{node} are as before"), PATIENCE, || {
            let now = map_content(&table.lab, node);
            let different: Vec<String> = now.symmetric_difference(before).cloned().collect();
            if std::mem::replace(&mut differ, different) != differ {
                eprintln!("node-{node} differs from before: {differ:#?}");
            }
            differ.is_empty()
        });
    }
}

/// One writer: its own names, any order. Returns what it leaves.
fn write(table: &Table, writer: usize) -> Vec<Value> {
    const NAMES: usize = 3;
    let mut random = Random::new(3_000 + writer as u64);
    let mut mine: BTreeMap<usize, Value> = BTreeMap::new();
    for _ in 0..CHANGES {
        let index = writer * NAMES + random.below(NAMES);
        let old = mine.remove(&index);
        if let Some(old) = &old
            && random.once_in(3)
        {
            table.remove(std::slice::from_ref(old));
            continue;
        }
        let new = generate::policy(&mut random, index);
        table.apply(std::slice::from_ref(&new));
        if let Some(old) = &old {
            table.remove(&without(std::slice::from_ref(old), std::slice::from_ref(&new)));
        }
        mine.insert(index, new);
    }
    mine.into_values().collect()
}

/// What a node's policy map says of each endpoint, line by line, without the numbers that are
/// chosen freely. Identities of prefixes are left out: one that a rule has named is kept for a while,
/// and wider rules have entries for it meanwhile.
fn map_content(lab: &Lab, node: usize) -> BTreeSet<String> {
    let node = format!("node-{node}");
    let cilium = crate::world::bin_dir().join("cilium");
    let output = std::process::Command::new(cilium)
        .args(["bpf", "policy", "get", "--all", "-n", "-o", "json"])
        .args(["--lab", &lab.name, "--node", &node])
        .output()
        .expect("run cilium");
    let text = crate::world::text(&output);
    assert!(output.status.success(), "{text}");
    let slots: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let mut lines = BTreeSet::new();
    for slot in slots.as_array().into_iter().flatten() {
        for entry in slot["entries"].as_array().into_iter().flatten() {
            let mut entry = entry.clone();
            entry["cookie"] = Value::Null;
            if entry["identity"].as_u64() >= Some(1 << 24) {
                continue;
            }
            lines.insert(format!("{}: {entry}", slot["endpoints"]));
        }
    }
    lines
}
