//! The engine of one agent in a large cluster: `cargo xtask bench policy`.
//!
//! Method: one process, one thread, no kernel and no API server. 1,000 namespaces, 6,000 identities,
//! 30,000 policies, read from JSON as they come from a watch; 30 local pods in 10 namespaces, each
//! selected by 120 policies. Then changes one after the other, each followed by taking what changed of
//! the maps: policies of namespaces with local pods are replaced, removed and added, identities come
//! and go that these policies select, and a policy of the cluster that selects every pod. A figure is
//! the time of one change from the call to the finished difference. Memory is the process' resident
//! set, less what it was before anything was there.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use api::policy::{Context, read_manifest};
use model::{IdentityId, Labels, PodLabels};
use policy::{Config, Policy, Repository, Subject, SubjectId, SubjectKind};
use serde_json::{Value, json};

const NAMESPACES: usize = 1_000;
const APPS: usize = 6;
const POLICIES: usize = 30_000;
const LOCAL_NAMESPACES: usize = 10;
/// Policies of a namespace with local pods: each selects all its pods.
const LOCAL_POLICIES: usize = 120;
const LOCAL_PODS: usize = 30;
const CHANGES: usize = 300;

fn main() {
    let before = resident_kib();
    let mut repository = Repository::new(Config::default());
    let started = Instant::now();
    for namespace in 0..NAMESPACES {
        for app in 0..APPS {
            repository.add_identity(identity(namespace, app), labels(namespace, app));
        }
    }
    report("start, ms", "6,000 identities", millis(started.elapsed()));
    let started = Instant::now();
    for index in 0..POLICIES {
        repository.upsert_policy(policy(index, 0));
    }
    report("start, ms", "30,000 policies, reading included", millis(started.elapsed()));
    report("resident memory, MiB", "identities and policies", mib(before));
    let started = Instant::now();
    let pods: Vec<SubjectId> = (0..LOCAL_PODS).map(|pod| repository.attach(subject(pod))).collect();
    let prefixes = repository.required_prefixes();
    for (index, (_, labels)) in prefixes.into_iter().enumerate() {
        repository.add_identity(IdentityId(1 << 24 | (index as u32 + 1)), Arc::new(labels));
    }
    report("start, ms", "30 local pods", millis(started.elapsed()));
    repository.take_changes();
    let entries: Vec<usize> =
        pods.iter().filter_map(|pod| Some(repository.map(*pod)?.entries().len())).collect();
    report("entries of a map", "median pod", entries[entries.len() / 2] as f64);
    report("resident memory, MiB", "identities, policies and maps", mib(before));
    changes(&mut repository);
    report("resident memory, MiB", "after all changes", mib(before));
}

/// Kinds of change in turn, so that what else the machine does hits them alike.
fn changes(repository: &mut Repository) {
    let mut taken: BTreeMap<&'static str, Vec<f64>> = BTreeMap::new();
    for round in 0..CHANGES {
        let index = round * 7 % (LOCAL_NAMESPACES * LOCAL_POLICIES);
        let changed = policy(index, 1 + round);
        measure(&mut taken, repository, "policy of a namespace changed", |repository| {
            repository.upsert_policy(changed);
        });
        let far = policy(POLICIES - 1 - round, 1 + round);
        measure(&mut taken, repository, "policy elsewhere changed", |repository| {
            repository.upsert_policy(far);
        });
        let id = policy(index, 0).id;
        measure(&mut taken, repository, "policy removed", |repository| {
            repository.remove_policy(&id);
        });
        let again = policy(index, 0);
        measure(&mut taken, repository, "policy added", |repository| {
            repository.upsert_policy(again);
        });
        let newcomer = IdentityId(40_000 + round as u32);
        let labels = labels(round % LOCAL_NAMESPACES, round % APPS);
        measure(&mut taken, repository, "identity added", |repository| {
            repository.add_identity(newcomer, labels);
        });
        measure(&mut taken, repository, "identity removed", |repository| {
            repository.remove_identity(newcomer);
        });
        let everywhere = everywhere(round);
        measure(&mut taken, repository, "policy of every pod changed", |repository| {
            repository.upsert_policy(everywhere);
        });
    }
    for (variant, mut values) in taken {
        values.sort_by(f64::total_cmp);
        let at = |percent: usize| values[(values.len() - 1) * percent / 100];
        report("one change, median, µs", variant, at(50));
        report("one change, 99 %, µs", variant, at(99));
    }
}

fn measure(
    taken: &mut BTreeMap<&'static str, Vec<f64>>,
    repository: &mut Repository,
    variant: &'static str,
    change: impl FnOnce(&mut Repository),
) {
    let started = Instant::now();
    change(repository);
    let deltas = repository.take_changes();
    let elapsed = started.elapsed();
    drop(deltas);
    taken.entry(variant).or_default().push(elapsed.as_secs_f64() * 1e6);
}

fn report(metric: &str, variant: &str, value: f64) {
    println!("BENCH {metric}|{variant}|{value}");
}

fn millis(elapsed: Duration) -> f64 {
    elapsed.as_secs_f64() * 1e3
}

fn mib(before_kib: u64) -> f64 {
    resident_kib().saturating_sub(before_kib) as f64 / 1024.0
}

fn resident_kib() -> u64 {
    let text = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok()).unwrap_or_default()
}

fn identity(namespace: usize, app: usize) -> IdentityId {
    IdentityId((256 + namespace * APPS + app) as u32)
}

fn labels(namespace: usize, app: usize) -> Arc<Labels> {
    let texts = |pairs: &[(&str, String)]| -> BTreeMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), value.clone())).collect()
    };
    Arc::new(Labels::of_pod(&PodLabels {
        labels: &texts(&[("app", format!("app-{app}")), ("tier", format!("tier-{}", app % 3))]),
        namespace: &namespace_name(namespace),
        namespace_labels: &texts(&[
            ("kubernetes.io/metadata.name", namespace_name(namespace)),
            ("team", format!("team-{}", namespace % 50)),
        ]),
        cluster: "default",
        service_account: "default",
    }))
}

fn namespace_name(namespace: usize) -> String {
    format!("namespace-{namespace}")
}

fn subject(pod: usize) -> Subject {
    let labels = labels(pod % LOCAL_NAMESPACES, pod / LOCAL_NAMESPACES % APPS);
    Subject { kind: SubjectKind::Endpoint, labels, named_ports: Vec::new() }
}

/// The policy of this number, in one of its versions. The first ones are in namespaces with local pods.
fn policy(index: usize, version: usize) -> Policy {
    let local = LOCAL_NAMESPACES * LOCAL_POLICIES;
    let namespace = match index {
        index if index < local => index % LOCAL_NAMESPACES,
        index => LOCAL_NAMESPACES + (index - local) % (NAMESPACES - LOCAL_NAMESPACES),
    };
    let app = format!("app-{}", index % APPS);
    let port = 1024 + (index * 13 + version) % 4096;
    let selected = if index < local { json!({}) } else { json!({"matchLabels": {"app": app}}) };
    let peer = match index % 10 {
        0..6 => json!({"podSelector": {"matchLabels": {"app": app}}}),
        6 | 7 => json!({
            "podSelector": {"matchLabels": {"app": app}},
            "namespaceSelector": {"matchLabels":
                {"kubernetes.io/metadata.name": namespace_name((namespace + 1) % NAMESPACES)}},
        }),
        8 => {
            json!({"namespaceSelector": {"matchLabels": {"team": format!("team-{}", index % 50)}}})
        }
        _ => json!({"ipBlock": {"cidr": format!("10.{}.{}.0/24", index / 250 % 250, index % 250)}}),
    };
    let (list, way, direction) = if index.is_multiple_of(2) {
        ("ingress", "from", "Ingress")
    } else {
        ("egress", "to", "Egress")
    };
    read(json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"name": format!("policy-{index}"), "namespace": namespace_name(namespace)},
        "spec": {
            "podSelector": selected,
            "policyTypes": [direction],
            list: [{way: [peer], "ports": [{"port": port}, {"port": 53, "protocol": "UDP"}]}],
        },
    }))
}

/// A policy of the cluster that selects every pod.
fn everywhere(version: usize) -> Policy {
    read(json!({
        "apiVersion": "cilium.io/v2", "kind": "CiliumClusterwideNetworkPolicy",
        "metadata": {"name": "everywhere"},
        "spec": {
            "endpointSelector": {},
            "ingress": [{"fromEntities": ["cluster"],
                "toPorts": [{"ports": [{"port": (9000 + version % 100).to_string()}]}]}],
        },
    }))
}

fn read(manifest: Value) -> Policy {
    read_manifest(&manifest, "default", &Context::default())
        .unwrap_or_else(|refused| panic!("{refused}"))
        .policy
}
