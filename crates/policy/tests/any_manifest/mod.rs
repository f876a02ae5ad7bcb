//! Any bytes through the policy languages and the engine; for a test and for a fuzzer.
//!
//! What is accepted is enforced for a pod among few others, and every lookup in its map is what the
//! explanation says.

use std::sync::Arc;

use api::policy::{Context, read_manifest};
use model::{IdentityId, Labels};
use policy::{
    Config, Direction, DirectionQuery, EntryVerdict, Protocol, Repository, Subject, SubjectKind,
};
use serde_json::{Value, json};

const KINDS: [(&str, &str); 4] = [
    ("cilium.io/v2", "CiliumNetworkPolicy"),
    ("cilium.io/v2", "CiliumClusterwideNetworkPolicy"),
    ("networking.k8s.io/v1", "NetworkPolicy"),
    ("policy.networking.k8s.io/v1alpha2", "ClusterNetworkPolicy"),
];

/// Runs these bytes as the `spec` of a policy of each kind. Tells how many were accepted.
///
/// # Panics
/// When a lookup in the map is not what the explanation says.
pub(crate) fn run(bytes: &[u8]) -> usize {
    let Ok(spec) = serde_json::from_slice::<Value>(bytes) else { return 0 };
    let accepted = KINDS.map(|(version, kind)| {
        let metadata = json!({"name": "p", "namespace": "default"});
        let manifest =
            json!({"apiVersion": version, "kind": kind, "metadata": metadata, "spec": spec});
        let accepted = read_manifest(&manifest, "default", &Context::default());
        accepted.map(|accepted| enforce(accepted.policy)).is_ok()
    });
    accepted.into_iter().filter(|accepted| *accepted).count()
}

fn labels(texts: &[&str]) -> Arc<Labels> {
    Arc::new(texts.iter().filter_map(|text| text.parse().ok()).collect())
}

fn enforce(policy: policy::Policy) {
    let mut repository = Repository::new(Config { host_firewall: true, ..Config::default() });
    let pod = labels(&["k8s:app=web", "k8s:io.kubernetes.pod.namespace=default"]);
    let peers = [
        (IdentityId(256), pod.clone()),
        (IdentityId(257), labels(&["k8s:app=db", "k8s:io.kubernetes.pod.namespace=other"])),
        (IdentityId(1 << 24 | 1), labels(&["cidr:10.0.0.0/8", "reserved:world-ipv4"])),
    ];
    for (id, labels) in &peers {
        repository.add_identity(*id, labels.clone());
    }
    let id = repository.attach(Subject {
        kind: SubjectKind::Endpoint,
        labels: pod,
        named_ports: Vec::new(),
    });
    repository.upsert_policy(policy);
    for (peer, _) in &peers {
        for direction in Direction::BOTH {
            for (protocol, port) in [(Protocol::TCP, 80), (Protocol::UDP, 53), (Protocol::ICMP, 8)]
            {
                check(&repository, id, *peer, direction, protocol, port);
            }
        }
    }
}

fn check(
    repository: &Repository,
    id: policy::SubjectId,
    peer: IdentityId,
    direction: Direction,
    protocol: Protocol,
    port: u16,
) {
    let (Some(map), Some(subject), Some(peer_party)) =
        (repository.map(id), repository.party_of_subject(id), repository.party_of(peer))
    else {
        panic!("what was added is there");
    };
    let found = map.lookup(direction, peer, 0, protocol, port);
    let allowed = !map.enforces(direction)
        || found.is_some_and(|(_, entry)| entry.verdict == EntryVerdict::Allow);
    let query = DirectionQuery { subject, peer: peer_party, direction, protocol, port };
    let explanation = repository.explain(&query);
    assert_eq!(explanation.allowed(), allowed, "{explanation:#} but {found:?}");
}
