//! The tests: which policies are in force, who talks, and who gets through.
//!
//! Names and meanings are those of Cilium's test; the policies are beside this file, one manifest
//! per test, for people to read.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use super::plan::{Scenario, World};

/// A test: scenarios, and the policies in force meanwhile.
#[derive(Clone, Debug)]
pub(crate) struct Test {
    pub(crate) name: String,
    pub(crate) scenarios: Vec<Scenario>,
    /// What is in force, with variables; empty where there is no policy.
    manifest: String,
    /// Whether one gets through to the other.
    passes: fn(&Talk<'_>) -> bool,
}

/// Who talks to whom.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Talk<'a> {
    pub(crate) scenario: Scenario,
    /// Name of the sender's Deployment.
    pub(crate) from: &'a str,
    /// Name of the receiver's Deployment; `node`, or one of [`OUTSIDE`].
    pub(crate) to: &'a str,
    pub(crate) same_node: bool,
}

/// Hosts outside, in the order in which they are given.
pub(crate) const OUTSIDE: [&str; 2] = ["external", "external-other"];

/// What stands where the world outside is not known: prefixes for documentation.
const NOWHERE: (Ipv4Addr, Ipv6Addr) =
    (Ipv4Addr::new(192, 0, 2, 1), Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1));

macro_rules! test {
    ($name:literal, $scenarios:expr, $passes:expr) => {
        Test {
            name: $name.to_owned(),
            scenarios: $scenarios.to_vec(),
            manifest: include_str!(concat!("policies/", $name, ".yaml")).to_owned(),
            passes: $passes,
        }
    };
}

/// All tests, in the order in which they run.
pub(crate) fn tests() -> Vec<Test> {
    let mut tests = vec![
        Test::without_policy(
            "no-policies",
            &[
                Scenario::PodToPod,
                Scenario::ClientToClient,
                Scenario::PodToHost,
                Scenario::HostToPod,
                Scenario::PodToCidr,
            ],
        ),
        Test::without_policy("pod-to-pod-no-frag", &[Scenario::PodToPodNoFrag]),
        Test::without_policy("health", &[Scenario::CiliumHealth]),
    ];
    tests.extend(allowing());
    tests.extend(denying());
    tests
}

/// Tests of what rules allow.
fn allowing() -> Vec<Test> {
    use Scenario::{ClientToClient, HostToPod, PodToCidr, PodToHost, PodToPod};
    let is_inside: fn(&Talk<'_>) -> bool = |talk| talk.scenario != PodToCidr;
    let only_client2: fn(&Talk<'_>) -> bool = |talk| talk.from == "client2";
    let to_echo: fn(&Talk<'_>) -> bool = |talk| talk.scenario == PodToPod;
    let ingress_of_client: fn(&Talk<'_>) -> bool =
        |talk| talk.to != "client" || talk.from == "client2";
    let own_node: fn(&Talk<'_>) -> bool = |talk| talk.scenario == HostToPod && talk.same_node;
    let but_one_host: fn(&Talk<'_>) -> bool = |talk| talk.to == "external";
    let mut tests = vec![
        test!(
            "allow-all-except-world",
            [PodToPod, ClientToClient, PodToHost, PodToCidr],
            is_inside
        ),
        test!("client-ingress", [ClientToClient], ingress_of_client),
        test!("client-ingress-knp", [ClientToClient], ingress_of_client),
        test!("all-ingress-deny", [PodToPod, HostToPod], own_node),
        test!("all-ingress-deny-knp", [PodToPod, HostToPod], own_node),
        test!("all-egress-deny", [PodToPod, PodToHost, PodToCidr], |_| false),
        test!("all-egress-deny-knp", [PodToPod, PodToHost, PodToCidr], |_| false),
        test!("cluster-entity", [PodToPod, PodToHost, PodToCidr], is_inside),
        test!("host-entity-egress", [PodToPod, PodToHost], |talk| {
            talk.scenario == PodToHost && talk.same_node
        }),
        test!("host-entity-ingress", [PodToPod, HostToPod], |talk| talk.scenario == HostToPod),
        test!("echo-ingress", [PodToPod], only_client2),
        test!("echo-ingress-knp", [PodToPod], only_client2),
        test!("client-ingress-icmp", [ClientToClient], only_client2),
        test!("client-egress", [PodToPod, ClientToClient], to_echo),
        test!("client-egress-knp", [PodToPod, ClientToClient], to_echo),
        test!("to-cidr-external", [PodToCidr, PodToPod], but_one_host),
        test!("to-cidr-external-knp", [PodToCidr, PodToPod], but_one_host),
        test!("egress-to-specific-namespace-ccnp", [Scenario::CcnpClientToClient], |talk| {
            talk.from != CCNP_1 || talk.to == CCNP_2
        }),
        test!("ingress-from-specific-namespace-ccnp", [Scenario::CcnpClientToClient], |talk| {
            talk.to != CCNP_2 || talk.from == CCNP_1
        }),
    ];
    for test in [
        test!("client-egress-expression", [PodToPod, ClientToClient], to_echo),
        test!("client-egress-expression-knp", [PodToPod, ClientToClient], to_echo),
        test!("client-with-service-account-egress-to-echo", [PodToPod], only_client2),
        test!("client-egress-to-echo-service-account", [PodToPod], |talk| {
            talk.to == "echo-same-node"
        }),
        test!("to-entities-world", [PodToCidr, PodToPod], |talk| talk.scenario == PodToCidr),
    ] {
        tests.extend(test.with_port_range());
    }
    tests
}

/// Tests of what denials take back.
fn denying() -> Vec<Test> {
    use Scenario::{ClientToClient, PodToCidr, PodToHost, PodToPod};
    let not_client: fn(&Talk<'_>) -> bool =
        |talk| talk.scenario != PodToPod || talk.from != "client";
    let not_client2: fn(&Talk<'_>) -> bool = |talk| talk.from != "client2";
    let only_one_host: fn(&Talk<'_>) -> bool =
        |talk| talk.scenario != PodToCidr || talk.to == "external-other";
    let mut tests = vec![
        test!("all-entities-deny", [PodToPod, PodToHost, PodToCidr], |_| false),
        test!("echo-ingress-from-other-client-deny", [PodToPod], not_client2),
        test!("client-ingress-from-other-client-icmp-deny", [ClientToClient], not_client2),
        test!("client-ingress-to-echo-named-port-deny", [PodToPod], not_client),
        test!("client-egress-to-cidr-deny", [PodToCidr, PodToPod], only_one_host),
        test!("client-egress-to-cidr-deny-default", [PodToCidr, PodToPod], only_one_host),
        test!("client-egress-to-cidrgroup-deny", [PodToCidr, PodToPod], only_one_host),
        test!("client-egress-to-cidrgroup-deny-by-label", [PodToCidr, PodToPod], only_one_host),
    ];
    for test in [
        test!("client-egress-to-echo-deny", [PodToPod, ClientToClient], not_client),
        test!("client-egress-to-echo-expression-deny", [PodToPod, ClientToClient], not_client),
        test!("client-with-service-account-egress-to-echo-deny", [PodToPod], not_client),
        test!("client-egress-to-echo-service-account-deny", [PodToPod], |talk| {
            talk.to != "echo-same-node"
        }),
    ] {
        tests.extend(test.with_port_range());
    }
    tests
}

/// Deployments, each in a namespace of its own.
pub(crate) const CCNP_1: &str = "ccnp-client-1";
pub(crate) const CCNP_2: &str = "ccnp-client-2";

impl Test {
    fn without_policy(name: &str, scenarios: &[Scenario]) -> Self {
        Self {
            name: name.to_owned(),
            scenarios: scenarios.to_vec(),
            manifest: String::new(),
            passes: |_| true,
        }
    }

    /// The test, and the same with a range in place of each port.
    fn with_port_range(self) -> [Self; 2] {
        let mut manifest = self.manifest.clone();
        for port in ["\"8080\"", "8080", "\"$(EXTERNAL_PORT)\""] {
            let (first, last) = match port {
                "\"$(EXTERNAL_PORT)\"" => ("\"1\"", "$(EXTERNAL_PORT)"),
                "8080" => ("4096", "16384"),
                _ => ("\"4096\"", "16384"),
            };
            manifest = manifest
                .replace(&format!("port: {port},"), &format!("port: {first}, endPort: {last},"));
        }
        let name = format!("{}-port-range", self.name);
        let ranged = Self { name, manifest, ..self.clone() };
        [self, ranged]
    }

    /// `TEST/SCENARIO`.
    pub(crate) fn full_name(&self, scenario: Scenario) -> String {
        format!("{}/{}", self.name, scenario.name())
    }

    /// Whether one gets through to the other.
    pub(crate) fn passes(&self, talk: &Talk<'_>) -> bool {
        (self.passes)(talk)
    }

    pub(crate) fn has_policies(&self) -> bool {
        !self.manifest.is_empty()
    }

    /// What the test is about: the comment that its manifest begins with.
    pub(crate) fn description(&self) -> Option<&str> {
        self.manifest.lines().next()?.strip_prefix("# ")
    }

    /// The policies, as they are applied.
    pub(crate) fn manifest(&self, world: &World) -> String {
        let mut text = self.manifest.clone();
        for (name, value) in variables(world) {
            text = text.replace(&format!("$({name})"), &value);
        }
        text
    }
}

fn variables(world: &World) -> [(&'static str, String); 6] {
    let hosts = |v4: bool| -> Vec<IpAddr> {
        let nowhere = if v4 { NOWHERE.0.into() } else { NOWHERE.1.into() };
        let known = world.outside.iter().map(|host| host.ip()).filter(|ip| ip.is_ipv4() == v4);
        let known: Vec<IpAddr> = known.collect();
        if known.is_empty() { vec![nowhere] } else { known }
    };
    // A host that is not there is not missed.
    let other = |hosts: &[IpAddr]| hosts.get(1).copied().unwrap_or_else(|| neighbour(hosts[0]));
    let port = world.outside.first().map_or(80, |host| host.port());
    let [v4, v6] = [hosts(true), hosts(false)];
    [
        ("NAMESPACE", world.namespace.clone()),
        ("EXTERNAL_PORT", port.to_string()),
        ("EXTERNAL_NET_V4", common_net(v4[0], other(&v4)).to_string()),
        ("EXTERNAL_NET_V6", common_net(v6[0], other(&v6)).to_string()),
        ("EXTERNAL_OTHER_V4", other(&v4).to_string()),
        ("EXTERNAL_OTHER_V6", other(&v6).to_string()),
    ]
}

/// The address beside this one.
fn neighbour(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(v4) => Ipv4Addr::from_bits(v4.to_bits() ^ 1).into(),
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() ^ 1).into(),
    }
}

/// The longest prefix, up to a usual network, that has both addresses.
fn common_net(one: IpAddr, other: IpAddr) -> IpNet {
    let usual = if one.is_ipv4() { 24 } else { 64 };
    let net = |len| IpNet::new(one, len).ok().filter(|net| net.contains(&other));
    let found = (0..=usual).rev().find_map(net);
    found.map_or_else(|| IpNet::from(one), |net| net.trunc())
}

#[cfg(test)]
mod tests {
    use super::super::plan::tests::world;
    use super::*;
    use api::policy::{Context, read_manifest};
    use model::IpFamily;
    use serde_json::Value;

    #[test]
    fn policies_are_valid() {
        let world = world(&IpFamily::ALL);
        for test in tests().iter().filter(|test| test.has_policies()) {
            let manifest = test.manifest(&world);
            assert!(!manifest.contains("$("), "{}: {manifest}", test.name);
            assert!(test.description().is_some(), "{}", test.name);
            let objects: Vec<Value> = serde_saphyr::from_multiple(&manifest).unwrap();
            for object in objects.iter().filter(|object| object["kind"] != "CiliumCIDRGroup") {
                let read = read_manifest(object, "default", &Context::default());
                assert!(read.is_ok_and(|accepted| accepted.notes.is_empty()), "{manifest}");
            }
            let is_ranged = test.name.ends_with("-port-range");
            assert_eq!(manifest.contains("endPort"), is_ranged, "{manifest}");
        }
    }

    #[test]
    fn names_are_unique() {
        let mut names: Vec<String> = tests().into_iter().map(|test| test.name).collect();
        let all = names.len();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), all);
    }

    #[test]
    fn networks_outside() {
        let check = |one: &str, other: &str, expected: &str| {
            let net = common_net(one.parse().unwrap(), other.parse().unwrap());
            assert_eq!(net.to_string(), expected);
        };
        check("203.0.113.10", "203.0.113.11", "203.0.113.0/24");
        check("1.1.1.1", "1.0.0.1", "1.0.0.0/15");
        check("2001:db8:ff::10", "2001:db8:ff::11", "2001:db8:ff::/64");
        assert_eq!(neighbour("10.0.0.4".parse().unwrap()).to_string(), "10.0.0.5");
    }
}
