//! Explanations, judged by acting on them: who does what they say gets what they promise.

use std::sync::Arc;

use api::policy::{Context, read_manifest};
use expect_test::{Expect, expect};
use model::{IdentityId, Labels};
use policy::*;

/// Two pods, a prefix, the node; and policies as people write them.
struct World {
    repository: Repository,
}

const CLIENT: IdentityId = IdentityId(1000);
const SERVER: IdentityId = IdentityId(1001);
const OFFICE: IdentityId = IdentityId(1 << 24 | 1);

fn labels(texts: &[&str]) -> Arc<Labels> {
    Arc::new(texts.iter().map(|text| text.parse().unwrap()).collect())
}

fn read(yaml: &str) -> Policy {
    let manifest = serde_saphyr::from_str(yaml).unwrap();
    match read_manifest(&manifest, "default", &Context::default()) {
        Ok(accepted) => accepted.policy,
        Err(refused) => panic!("{refused}\n{yaml}"),
    }
}

impl World {
    fn new(policies: &[&str]) -> Self {
        let mut repository = Repository::new(Config::default());
        let pod = |app: &str| {
            labels(&[
                &format!("k8s:app={app}"),
                "k8s:io.cilium.k8s.namespace.labels.team=a",
                "k8s:io.kubernetes.pod.namespace=default",
                "k8s:io.cilium.k8s.policy.cluster=default",
                "k8s:io.cilium.k8s.policy.serviceaccount=robot",
            ])
        };
        repository.add_identity(CLIENT, pod("client"));
        repository.add_identity(SERVER, pod("server"));
        repository.add_identity(OFFICE, labels(&["cidr:192.0.2.0/24", "reserved:world-ipv4"]));
        for policy in policies {
            repository.upsert_policy(read(policy));
        }
        Self { repository }
    }

    fn explain(
        &self,
        direction: Direction,
        peer: IdentityId,
        protocol: Protocol,
        port: u16,
    ) -> Explanation {
        let party = |id| self.repository.party_of(id).unwrap();
        self.repository.explain(&DirectionQuery {
            subject: party(SERVER),
            peer: party(peer),
            direction,
            protocol,
            port,
        })
    }
}

fn cilium(name: &str, rule: &str) -> String {
    format!(
        "{{apiVersion: cilium.io/v2, kind: CiliumNetworkPolicy, metadata: {{name: {name}, \
         namespace: default}}, spec: {{endpointSelector: {{matchLabels: {{app: server}}}}, {rule}}}}}"
    )
}

#[track_caller]
fn check(policies: &[String], peer: IdentityId, protocol: Protocol, port: u16, expected: Expect) {
    let policies: Vec<&str> = policies.iter().map(String::as_str).collect();
    let explanation = World::new(&policies).explain(Direction::Ingress, peer, protocol, port);
    expected.assert_eq(&explanation.to_string());
}

#[test]
fn the_reason_is_named() {
    let web = cilium(
        "web",
        "ingress: [{fromEndpoints: [{matchLabels: {app: client}}], toPorts: [{ports: [{port: '80', protocol: TCP}]}]}]",
    );
    let deny = cilium("deny", "ingressDeny: [{fromEntities: [world]}]");
    let l7 = cilium(
        "l7",
        "ingress: [{toPorts: [{ports: [{port: '443', protocol: TCP}], rules: {http: [{path: /}]}}]}]",
    );
    let tcp = Protocol::TCP;
    check(&[], CLIENT, tcp, 80, expect!["ingress allowed: no policy is enforced"]);
    check(
        std::slice::from_ref(&web),
        CLIENT,
        tcp,
        80,
        expect!["ingress allowed by CiliumNetworkPolicy default/web ingress[0]"],
    );
    check(
        std::slice::from_ref(&web),
        CLIENT,
        tcp,
        81,
        expect![
            "ingress denied by default: no rule allows it; the endpoint is selected by CiliumNetworkPolicy default/web; nearest is CiliumNetworkPolicy default/web ingress[0]: the port must be 80/TCP, and is 81/TCP"
        ],
    );
    check(
        std::slice::from_ref(&web),
        CLIENT,
        Protocol::UDP,
        80,
        expect![
            "ingress denied by default: no rule allows it; the endpoint is selected by CiliumNetworkPolicy default/web; nearest is CiliumNetworkPolicy default/web ingress[0]: the protocol must be that of 80/TCP, and it is 80/UDP"
        ],
    );
    check(
        std::slice::from_ref(&web),
        SERVER,
        tcp,
        80,
        expect![
            "ingress denied by default: no rule allows it; the endpoint is selected by CiliumNetworkPolicy default/web; nearest is CiliumNetworkPolicy default/web ingress[0]: the peer must be app=client, and is k8s:app=server"
        ],
    );
    check(
        &[web.clone(), deny.clone()],
        OFFICE,
        tcp,
        80,
        expect!["ingress denied by CiliumNetworkPolicy default/deny ingressDeny[0]"],
    );
    check(
        &[web, deny],
        IdentityId::HOST,
        tcp,
        1,
        expect!["ingress allowed: the node reaches its own endpoints"],
    );
    check(
        &[l7],
        CLIENT,
        tcp,
        443,
        expect![
            "ingress denied: L7 rules are not enforced yet, which CiliumNetworkPolicy default/l7 ingress[0] asks for"
        ],
    );
    check(
        &[
            cilium("out", "egress: [{}]"),
            cilium("none", "ingress: [{}], enableDefaultDeny: {ingress: false}"),
        ],
        CLIENT,
        tcp,
        1,
        expect!["ingress allowed: no rule says anything, and none denies the rest"],
    );
}

#[test]
fn the_long_form_has_a_policy_to_apply() {
    let policy = cilium("web", "ingress: [{fromEntities: [host]}]");
    let world = World::new(&[&policy]);
    let explanation = world.explain(Direction::Ingress, CLIENT, Protocol::TCP, 80);
    let expected = expect![[r#"
        ingress denied by default: no rule allows it; the endpoint is selected by CiliumNetworkPolicy default/web
          nearest: CiliumNetworkPolicy default/web ingress[0]: the peer must be entity host, and is k8s:app=client,k8s:io.cilium.k8s.namespace.labels.team=a,k8s:io.cilium.k8s.policy.cluster=default,k8s:io.cilium.k8s.policy.serviceaccount=robot,k8s:io.kubernetes.pod.namespace=default
          this would allow it:

        apiVersion: cilium.io/v2
        kind: CiliumNetworkPolicy
        metadata:
          name: allow-ingress-tcp-80
          namespace: "default"
        spec:
          endpointSelector:
            matchLabels:
              "k8s:app": "server"
          ingress:
          - fromEndpoints:
            - matchLabels:
                "k8s:app": "client"
                "k8s:io.kubernetes.pod.namespace": "default"
            toPorts:
            - ports:
              - port: "80"
                protocol: TCP
    "#]];
    expected.assert_eq(&format!("{explanation:#}"));
}

/// Everybody who can be at the other end.
const PEERS: [IdentityId; 7] = [
    CLIENT,
    SERVER,
    OFFICE,
    IdentityId::HOST,
    IdentityId::WORLD_IPV4,
    IdentityId::REMOTE_NODE,
    IdentityId::HEALTH,
];

const FLOWS: [(Protocol, u16); 7] = [
    (Protocol::TCP, 80),
    (Protocol::UDP, 53),
    (Protocol::SCTP, 7),
    (Protocol::ICMP, 8),
    (Protocol::ICMPV6, 128),
    (Protocol(47), 0),
    (Protocol(200), 0),
];

#[test]
fn a_suggested_policy_lets_the_flow_pass() {
    let closed = cilium("closed", "ingress: [{}], egress: [{}]");
    for direction in Direction::BOTH {
        for peer in PEERS {
            for (protocol, port) in FLOWS {
                let mut world = World::new(&[&closed]);
                let before = world.explain(direction, peer, protocol, port);
                let Outcome::DefaultDeny { suggestion: Some(suggestion), .. } = &before.outcome
                else {
                    assert!(before.allowed() && peer == IdentityId::HOST, "{before}");
                    continue;
                };
                world.repository.upsert_policy(read(suggestion));
                let after = world.explain(direction, peer, protocol, port);
                assert!(after.allowed(), "{after:#}\nafter\n{suggestion}");
            }
        }
    }
}

/// Removes the policies that a verdict names: it is not given any more, or not by rules.
#[test]
fn without_the_named_rules_the_verdict_is_another() {
    let policies = [
        cilium("a", "ingress: [{fromEndpoints: [{}], toPorts: [{ports: [{port: '80'}]}]}]"),
        cilium("b", "ingress: [{fromEndpoints: [{matchLabels: {app: client}}]}, {fromCIDR: [192.0.2.0/24]}]"),
        cilium("c", "ingressDeny: [{fromEntities: [remote-node]}, {toPorts: [{ports: [{port: '53'}]}]}]"),
        cilium("d", "ingress: [{fromEntities: [cluster, world]}]"),
        "{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: k, namespace: default},
          spec: {podSelector: {}, ingress: [{from: [{podSelector: {}}]}], policyTypes: [Ingress, Egress]}}"
            .to_owned(),
        "{apiVersion: policy.networking.k8s.io/v1alpha2, kind: ClusterNetworkPolicy, metadata: {name: x},
          spec: {tier: Admin, priority: 1, subject: {namespaces: {}}, ingress: [{action: Accept,
            from: [{pods: {podSelector: {matchLabels: {app: client}}}}], protocols: [{sctp: {}}]},
            {action: Pass}]}}"
            .to_owned(),
    ];
    let texts: Vec<&str> = policies.iter().map(String::as_str).collect();
    for peer in PEERS {
        for (protocol, port) in FLOWS {
            let mut world = World::new(&texts);
            let before = world.explain(Direction::Ingress, peer, protocol, port);
            let Outcome::Decided { verdict, rules } = &before.outcome else { continue };
            for rule in rules {
                world.repository.remove_policy(&rule.policy);
            }
            let after = world.explain(Direction::Ingress, peer, protocol, port);
            if let Outcome::Decided { verdict: now, rules: others } = &after.outcome {
                let named =
                    |other: &RuleReference| rules.iter().any(|rule| rule.policy == other.policy);
                assert!(!others.iter().any(named), "{after} after {before}");
                // Of one weight: others with the same verdict would have been named as well.
                let tier = |rules: &[RuleReference]| rules[0].tier;
                assert!(now != verdict || tier(others) != tier(rules), "{after} after {before}");
            }
        }
    }
}

#[test]
fn cookies_name_the_rules_of_an_entry() {
    let policy = cilium("web", "log: {value: audited}, ingress: [{fromEndpoints: [{}]}]");
    let mut world = World::new(&[&policy]);
    let subject = world.repository.party_of(SERVER).unwrap();
    let id = world.repository.attach(Subject {
        kind: SubjectKind::Endpoint,
        labels: subject.labels,
        named_ports: Vec::new(),
    });
    let map = world.repository.map(id).unwrap();
    let (_, entry) = map.lookup(Direction::Ingress, CLIENT, 0, Protocol::TCP, 80).unwrap();
    let rules = world.repository.rules_of(entry.cookie);
    let texts: Vec<String> = rules.iter().map(ToString::to_string).collect();
    assert_eq!(texts, ["CiliumNetworkPolicy default/web ingress[0]"]);
    assert_eq!(rules[0].log.as_deref(), Some("audited"));
    // Events that were on their way when the policy went can still be explained.
    let (id, cookie) = (rules[0].policy.clone(), entry.cookie);
    world.repository.remove_policy(&id);
    assert_eq!(world.repository.rules_of(cookie), rules);
}
