//! What is tested, as values: who sends what to whom, and what must come back.
//!
//! ```text
//!   World (pods, nodes, hosts outside) ─► Scenario::actions ─► Action { argv } ─► exec ─► verdict
//! ```
//!
//! Nothing here talks to a cluster.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result};
use api::rest::HealthStatusResponse;
use model::IpFamily;
use regex::Regex;

use super::args::Patience;

/// Where the echo pods serve HTTP.
pub(crate) const ECHO_PORT: u16 = 8080;

/// A pod of the test. Pods in the namespace of their node have the node's addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Pod {
    pub(crate) name: String,
    pub(crate) addresses: Vec<IpAddr>,
}

/// Whatever has addresses but runs no command of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Peer {
    pub(crate) name: String,
    pub(crate) addresses: Vec<IpAddr>,
}

/// Everybody who takes part.
#[derive(Clone, Debug, Default)]
pub(crate) struct World {
    pub(crate) namespace: String,
    pub(crate) clients: Vec<Pod>,
    pub(crate) echoes: Vec<Pod>,
    /// A pod in the network namespace of each node.
    pub(crate) hosts: Vec<Pod>,
    pub(crate) nodes: Vec<Peer>,
    pub(crate) outside: Vec<SocketAddr>,
    pub(crate) agents: Vec<Place>,
    pub(crate) families: Vec<IpFamily>,
}

/// Where a command runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// A pod of the test.
    Pod(String),
    /// The pod of an agent.
    AgentPod(String),
    /// The agent of this node, on this machine: it is asked without a command.
    AgentHere(String),
}

/// One way of talking. Cilium's names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scenario {
    PodToPod,
    ClientToClient,
    PodToHost,
    HostToPod,
    PodToCidr,
    PodToPodNoFrag,
    CiliumHealth,
}

/// How an action talks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Method {
    /// HTTP must succeed; the server must have seen this address, where one is given.
    Http { server: SocketAddr, seen_as: Option<IpAddr> },
    /// An echo request must be answered.
    Ping(IpAddr),
    /// So must the largest that the sender's route allows, which nobody may fragment.
    LargestPing(IpAddr),
    /// The agent must reach all nodes and health endpoints.
    Health,
}

/// One command in one pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Action {
    /// `TEST/SCENARIO/ping-ipv4-0`.
    pub(crate) name: String,
    pub(crate) place: Place,
    /// Sender and receiver for people.
    pub(crate) from: String,
    pub(crate) to: String,
    pub(crate) method: Method,
}

/// What became of a command in a pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Executed {
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    /// Why it failed, where it did.
    pub(crate) error: Option<String>,
}

impl Executed {
    pub(crate) fn failed(error: String) -> Self {
        Self { error: Some(error), ..Self::default() }
    }
}

impl Scenario {
    pub(crate) const ALL: [Self; 7] = [
        Self::PodToPod,
        Self::ClientToClient,
        Self::PodToHost,
        Self::HostToPod,
        Self::PodToCidr,
        Self::PodToPodNoFrag,
        Self::CiliumHealth,
    ];

    /// The test that it belongs to.
    pub(crate) fn test(self) -> &'static str {
        match self {
            Self::PodToPodNoFrag => "pod-to-pod-no-frag",
            Self::CiliumHealth => "health",
            _ => "no-policies",
        }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::PodToPod => "pod-to-pod",
            Self::ClientToClient => "client-to-client",
            Self::PodToHost => "pod-to-host",
            Self::HostToPod => "host-to-pod",
            Self::PodToCidr => "pod-to-cidr",
            Self::PodToPodNoFrag => "pod-to-pod-no-frag",
            Self::CiliumHealth => "cilium-health",
        }
    }

    /// `TEST/SCENARIO`.
    pub(crate) fn full_name(self) -> String {
        format!("{}/{}", self.test(), self.name())
    }

    pub(crate) fn description(self) -> &'static str {
        match self {
            Self::PodToPod => {
                "HTTP from every client to every echo pod, which sees the client's address"
            }
            Self::ClientToClient => "ping from every client to every other",
            Self::PodToHost => "ping from every client to every node",
            Self::HostToPod => "HTTP from every node to every echo pod",
            Self::PodToCidr => "HTTP from every client to hosts outside of the cluster",
            Self::PodToPodNoFrag => {
                "ping from every client to every echo pod, as large as the route allows"
            }
            Self::CiliumHealth => "every agent probes all nodes and their health endpoints",
        }
    }

    /// What the cluster lacks if there is nothing to do.
    pub(crate) fn lack(self) -> &'static str {
        match self {
            Self::PodToCidr => "no host outside is known; name one with --external-ip",
            Self::CiliumHealth => {
                "no agent is known, neither as a pod nor in a lab of this machine"
            }
            _ => "nobody is there to talk to",
        }
    }

    /// Everything to do, family by family.
    pub(crate) fn actions(self, world: &World) -> Vec<Action> {
        if self == Self::CiliumHealth {
            return self.probes(world);
        }
        let mut actions = Vec::new();
        for family in &world.families {
            let pairs = self.pairs(world, *family);
            for (number, (pod, sender, to, target)) in pairs.into_iter().enumerate() {
                let method = self.method(sender, target);
                let (verb, shown) = match method {
                    Method::Http { server, .. } => ("curl", server.to_string()),
                    _ => ("ping", target.ip().to_string()),
                };
                actions.push(Action {
                    name: format!("{}/{verb}-{}-{number}", self.full_name(), word(*family)),
                    place: Place::Pod(pod.name.clone()),
                    from: format!("{}/{} ({sender})", world.namespace, pod.name),
                    to: format!("{to} ({shown})"),
                    method,
                });
            }
        }
        actions
    }

    fn method(self, sender: IpAddr, target: SocketAddr) -> Method {
        let http = |seen_as| Method::Http { server: target, seen_as };
        match self {
            // Between pods nothing may be translated. A node may choose among its addresses.
            Self::PodToPod => http(Some(sender)),
            Self::HostToPod | Self::PodToCidr => http(None),
            Self::ClientToClient | Self::PodToHost => Method::Ping(target.ip()),
            Self::PodToPodNoFrag => Method::LargestPing(target.ip()),
            Self::CiliumHealth => Method::Health,
        }
    }

    /// One per agent, who knows itself whom to probe over which family.
    fn probes(self, world: &World) -> Vec<Action> {
        let probe = |(number, place): (usize, &Place)| Action {
            name: format!("{}/probe-{number}", self.full_name()),
            place: place.clone(),
            from: match place {
                Place::Pod(name) | Place::AgentPod(name) => name.clone(),
                Place::AgentHere(node) => format!("the agent of {node}"),
            },
            to: "all nodes".to_owned(),
            method: Method::Health,
        };
        world.agents.iter().enumerate().map(probe).collect()
    }

    /// Sender with its address, and receiver.
    fn pairs(self, world: &World, family: IpFamily) -> Vec<(&Pod, IpAddr, String, SocketAddr)> {
        let senders = match self {
            Self::HostToPod => &world.hosts,
            _ => &world.clients,
        };
        let pods = |pods: &[Pod]| -> Vec<(String, SocketAddr)> {
            let receiver = |pod: &Pod| {
                let address = of_family(&pod.addresses, family)?;
                let name = format!("{}/{}", world.namespace, pod.name);
                Some((name, SocketAddr::new(address, ECHO_PORT)))
            };
            pods.iter().filter_map(receiver).collect()
        };
        let receivers = match self {
            Self::PodToPod | Self::PodToPodNoFrag | Self::HostToPod => pods(&world.echoes),
            Self::ClientToClient => pods(&world.clients),
            Self::PodToHost => {
                let nodes = world.nodes.iter();
                let addresses =
                    nodes.flat_map(|node| node.addresses.iter().map(move |a| (node, a)));
                addresses
                    .filter(|(_, address)| IpFamily::of(**address) == family)
                    .map(|(node, address)| (node.name.clone(), SocketAddr::new(*address, 0)))
                    .collect()
            }
            Self::PodToCidr => {
                let outside = world.outside.iter().filter(|host| IpFamily::of(host.ip()) == family);
                outside.map(|host| ("external".to_owned(), *host)).collect()
            }
            Self::CiliumHealth => Vec::new(),
        };
        let mut pairs = Vec::new();
        for pod in senders {
            let Some(sender) = of_family(&pod.addresses, family) else { continue };
            let others = receivers.iter().filter(|(_, target)| target.ip() != sender);
            pairs.extend(others.map(|(name, target)| (pod, sender, name.clone(), *target)));
        }
        pairs
    }
}

impl Action {
    /// What to run in the pod.
    pub(crate) fn argv(&self, patience: &Patience) -> Vec<String> {
        let connect = seconds(patience.connect_timeout);
        let request = seconds(patience.request_timeout);
        let line = match self.method {
            Method::Http { server, seen_as } => {
                let path = if seen_as.is_some() { "clientip" } else { "" };
                format!(
                    "curl --silent --show-error --fail --connect-timeout {connect} --max-time \
                     {request} http://{server}/{path}"
                )
            }
            // Until one is answered, or the time is over.
            Method::Ping(address) => format!("ping -c 1 -W {connect} -w {request} {address}"),
            Method::LargestPing(address) => {
                let script = largest_ping(address, &connect, &request);
                return vec!["sh".to_owned(), "-c".to_owned(), script];
            }
            Method::Health => "cilium-health status --probe -o json".to_owned(),
        };
        line.split(' ').map(str::to_owned).collect()
    }

    /// What is wrong with the outcome, if anything.
    pub(crate) fn verdict(&self, executed: &Executed) -> Option<String> {
        if let Some(error) = &executed.error {
            return Some(error.clone());
        }
        match self.method {
            Method::Http { seen_as: Some(expected), .. } => {
                wrong_client(&executed.stdout, expected)
            }
            Method::Health => unreachable_nodes(&executed.stdout),
            _ => None,
        }
    }
}

fn wrong_client(answer: &str, expected: IpAddr) -> Option<String> {
    let seen = answer.trim();
    match seen.parse::<SocketAddr>() {
        Ok(seen) if seen.ip().to_canonical() == expected => None,
        _ => Some(format!("the server should have seen {expected}, but says: {seen:?}")),
    }
}

fn unreachable_nodes(answer: &str) -> Option<String> {
    let found: HealthStatusResponse = match serde_json::from_str(answer) {
        Ok(found) => found,
        Err(error) => return Some(format!("the agent's answer is not a health status: {error}")),
    };
    if found.nodes.is_empty() {
        return Some("the agent knows no nodes".to_owned());
    }
    let bad = found.nodes.iter().filter(|node| !node.is_reachable());
    let names: Vec<&str> = bad.map(|node| node.name.as_str()).collect();
    (!names.is_empty()).then(|| format!("cannot be reached: {}", names.join(", ")))
}

/// The route says how large a packet may be, else the device does. It is the pod's shell that
/// computes, so that the command can be repeated by hand as it is.
fn largest_ping(address: IpAddr, connect: &str, request: &str) -> String {
    // RFC 791 and RFC 8200: the fixed header; RFC 792 and RFC 4443: the echo header.
    let (version, headers) = if address.is_ipv4() { (4, 20 + 8) } else { (6, 40 + 8) };
    format!(
        "mtu=$(ip -{version} route show default | sed -n \"s/.* mtu \\([0-9]*\\).*/\\1/p\" | head -n 1); \
         ping -M do -s $((${{mtu:-$(cat /sys/class/net/eth0/mtu)}} - {headers})) -c 1 -W {connect} \
         -w {request} {address}"
    )
}

/// `ping` and `curl` count in seconds; zero would be for ever.
fn seconds(duration: Duration) -> String {
    duration.as_secs_f64().ceil().max(1.0).to_string()
}

fn word(family: IpFamily) -> &'static str {
    match family {
        IpFamily::Ipv4 => "ipv4",
        IpFamily::Ipv6 => "ipv6",
    }
}

pub(crate) fn of_family(addresses: &[IpAddr], family: IpFamily) -> Option<IpAddr> {
    addresses.iter().copied().find(|address| IpFamily::of(*address) == family)
}

/// Which tests the user wants.
#[derive(Debug)]
pub(crate) struct Selection {
    run: Vec<Regex>,
    skip: Vec<Regex>,
}

impl Selection {
    pub(crate) fn new(expressions: &[String]) -> Result<Self> {
        let mut selection = Self { run: Vec::new(), skip: Vec::new() };
        for text in expressions {
            let (list, expression) = match text.strip_prefix('!') {
                Some(rest) => (&mut selection.skip, rest),
                None => (&mut selection.run, text.as_str()),
            };
            let regex = Regex::new(expression)
                .with_context(|| format!("--test {text:?} is not a regular expression"))?;
            list.push(regex);
        }
        Ok(selection)
    }

    pub(crate) fn selects(&self, scenario: Scenario) -> bool {
        let name = scenario.full_name();
        let any = |list: &[Regex]| list.iter().any(|regex| regex.is_match(&name));
        (self.run.is_empty() || any(&self.run)) && !any(&self.skip)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use expect_test::expect;

    /// Two nodes; the pods' addresses tell who they are.
    pub(crate) fn world(families: &[IpFamily]) -> World {
        let addresses = |number: u16| {
            let v4 = IpAddr::from([10, 0, 0, number.to_be_bytes()[1]]);
            let v6 = IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, number]);
            [v4, v6].into_iter().filter(|a| families.contains(&IpFamily::of(*a))).collect()
        };
        let pod = |name: &str, number| Pod { name: name.to_owned(), addresses: addresses(number) };
        World {
            namespace: "cilium-test-1".to_owned(),
            clients: vec![pod("client", 1), pod("client2", 2)],
            echoes: vec![pod("echo-same-node", 8), pod("echo-other-node", 9)],
            hosts: vec![pod("host-netns-a", 101)],
            nodes: vec![Peer { name: "node-1".to_owned(), addresses: addresses(101) }],
            outside: vec!["203.0.113.10:80".parse().unwrap()],
            agents: vec![
                Place::AgentPod("cilium-a".to_owned()),
                Place::AgentHere("node-1".to_owned()),
            ],
            families: families.to_vec(),
        }
    }

    fn patience() -> Patience {
        Patience {
            connect_timeout: Duration::from_millis(1500),
            request_timeout: Duration::from_secs(10),
            wait_duration: Duration::ZERO,
        }
    }

    #[test]
    fn who_talks_to_whom() {
        let world = world(&[IpFamily::Ipv4]);
        let actions = Scenario::ALL.iter().flat_map(|scenario| scenario.actions(&world));
        let text: String =
            actions.map(|a| format!("{}: {} -> {}\n", a.name, a.from, a.to)).collect();
        expect![[r"
            no-policies/pod-to-pod/curl-ipv4-0: cilium-test-1/client (10.0.0.1) -> cilium-test-1/echo-same-node (10.0.0.8:8080)
            no-policies/pod-to-pod/curl-ipv4-1: cilium-test-1/client (10.0.0.1) -> cilium-test-1/echo-other-node (10.0.0.9:8080)
            no-policies/pod-to-pod/curl-ipv4-2: cilium-test-1/client2 (10.0.0.2) -> cilium-test-1/echo-same-node (10.0.0.8:8080)
            no-policies/pod-to-pod/curl-ipv4-3: cilium-test-1/client2 (10.0.0.2) -> cilium-test-1/echo-other-node (10.0.0.9:8080)
            no-policies/client-to-client/ping-ipv4-0: cilium-test-1/client (10.0.0.1) -> cilium-test-1/client2 (10.0.0.2)
            no-policies/client-to-client/ping-ipv4-1: cilium-test-1/client2 (10.0.0.2) -> cilium-test-1/client (10.0.0.1)
            no-policies/pod-to-host/ping-ipv4-0: cilium-test-1/client (10.0.0.1) -> node-1 (10.0.0.101)
            no-policies/pod-to-host/ping-ipv4-1: cilium-test-1/client2 (10.0.0.2) -> node-1 (10.0.0.101)
            no-policies/host-to-pod/curl-ipv4-0: cilium-test-1/host-netns-a (10.0.0.101) -> cilium-test-1/echo-same-node (10.0.0.8:8080)
            no-policies/host-to-pod/curl-ipv4-1: cilium-test-1/host-netns-a (10.0.0.101) -> cilium-test-1/echo-other-node (10.0.0.9:8080)
            no-policies/pod-to-cidr/curl-ipv4-0: cilium-test-1/client (10.0.0.1) -> external (203.0.113.10:80)
            no-policies/pod-to-cidr/curl-ipv4-1: cilium-test-1/client2 (10.0.0.2) -> external (203.0.113.10:80)
            pod-to-pod-no-frag/pod-to-pod-no-frag/ping-ipv4-0: cilium-test-1/client (10.0.0.1) -> cilium-test-1/echo-same-node (10.0.0.8)
            pod-to-pod-no-frag/pod-to-pod-no-frag/ping-ipv4-1: cilium-test-1/client (10.0.0.1) -> cilium-test-1/echo-other-node (10.0.0.9)
            pod-to-pod-no-frag/pod-to-pod-no-frag/ping-ipv4-2: cilium-test-1/client2 (10.0.0.2) -> cilium-test-1/echo-same-node (10.0.0.8)
            pod-to-pod-no-frag/pod-to-pod-no-frag/ping-ipv4-3: cilium-test-1/client2 (10.0.0.2) -> cilium-test-1/echo-other-node (10.0.0.9)
            health/cilium-health/probe-0: cilium-a -> all nodes
            health/cilium-health/probe-1: the agent of node-1 -> all nodes
        "]]
        .assert_eq(&text);
    }

    #[test]
    fn both_families_are_tested_where_both_are() {
        let both = world(&IpFamily::ALL);
        let count = |scenario: Scenario| scenario.actions(&both).len();
        let counts: Vec<usize> = Scenario::ALL.iter().map(|s| count(*s)).collect();
        // Outside there is only a host with IPv4.
        assert_eq!(counts, [8, 4, 4, 4, 2, 8, 2]);
        let v6 = Scenario::PodToPod.actions(&world(&[IpFamily::Ipv6]));
        let is_v6 = |action: &Action| match action.method {
            Method::Http { server, .. } => server.is_ipv6(),
            _ => false,
        };
        assert!(v6.iter().all(|a| is_v6(a) && a.name.contains("/curl-ipv6-")), "{v6:?}");
        assert_eq!(Scenario::PodToCidr.actions(&world(&[IpFamily::Ipv6])), []);
    }

    #[test]
    fn commands() {
        let both = world(&IpFamily::ALL);
        let commands = Scenario::ALL.iter().flat_map(|scenario| {
            let actions = scenario.actions(&both);
            let of_each = [actions.first().cloned(), actions.last().cloned()];
            of_each.into_iter().flatten().map(|action| action.argv(&patience()).join(" ") + "\n")
        });
        let text: String = commands.collect();
        expect![[r#"
            curl --silent --show-error --fail --connect-timeout 2 --max-time 10 http://10.0.0.8:8080/clientip
            curl --silent --show-error --fail --connect-timeout 2 --max-time 10 http://[fd00::9]:8080/clientip
            ping -c 1 -W 2 -w 10 10.0.0.2
            ping -c 1 -W 2 -w 10 fd00::1
            ping -c 1 -W 2 -w 10 10.0.0.101
            ping -c 1 -W 2 -w 10 fd00::65
            curl --silent --show-error --fail --connect-timeout 2 --max-time 10 http://10.0.0.8:8080/
            curl --silent --show-error --fail --connect-timeout 2 --max-time 10 http://[fd00::9]:8080/
            curl --silent --show-error --fail --connect-timeout 2 --max-time 10 http://203.0.113.10:80/
            curl --silent --show-error --fail --connect-timeout 2 --max-time 10 http://203.0.113.10:80/
            sh -c mtu=$(ip -4 route show default | sed -n "s/.* mtu \([0-9]*\).*/\1/p" | head -n 1); ping -M do -s $((${mtu:-$(cat /sys/class/net/eth0/mtu)} - 28)) -c 1 -W 2 -w 10 10.0.0.8
            sh -c mtu=$(ip -6 route show default | sed -n "s/.* mtu \([0-9]*\).*/\1/p" | head -n 1); ping -M do -s $((${mtu:-$(cat /sys/class/net/eth0/mtu)} - 48)) -c 1 -W 2 -w 10 fd00::9
            cilium-health status --probe -o json
            cilium-health status --probe -o json
        "#]]
        .assert_eq(&text);
    }

    #[test]
    fn verdicts() {
        let check = |action: &Action, stdout: &str, error: Option<&str>, good: bool| {
            let error = error.map(str::to_owned);
            let executed = Executed { stdout: stdout.to_owned(), stderr: String::new(), error };
            let verdict = action.verdict(&executed);
            assert_eq!(verdict.is_none(), good, "{stdout:?} {verdict:?}");
        };
        let both = world(&IpFamily::ALL);
        let actions = Scenario::PodToPod.actions(&both);
        let [v4, v6] = [&actions[0], &actions[4]];
        check(v4, "10.0.0.1:52612", None, true);
        check(v4, "[::ffff:10.0.0.1]:52612", None, true);
        check(v4, "10.0.0.7:52612", None, false);
        check(v4, "", None, false);
        check(v4, "10.0.0.1:52612", Some("exit code 28"), false);
        check(v6, "[fd00::1]:1", None, true);
        check(v6, "10.0.0.1:1", None, false);
        check(&Scenario::PodToHost.actions(&both)[0], "anything", None, true);
        let health = &Scenario::CiliumHealth.actions(&both)[0];
        let round = |status: &str| {
            let probe = serde_json::json!({"status": status, "latency": 1});
            let path = serde_json::json!({"ip": "10.0.0.1", "icmp": probe, "http": probe});
            serde_json::json!({"nodes": [{"name": "n", "host": {"primary-address": path}}]})
                .to_string()
        };
        check(health, &round(""), None, true);
        check(health, &round("timed out"), None, false);
        check(health, "{}", None, false);
        check(health, "no such command", None, false);
    }

    #[test]
    fn selection() {
        let check = |expressions: &[&str], expected: &[&str]| {
            let words: Vec<String> = expressions.iter().map(|e| (*e).to_owned()).collect();
            let selection = Selection::new(&words).unwrap();
            let selected = Scenario::ALL.into_iter().filter(|s| selection.selects(*s));
            let names: Vec<&str> = selected.map(Scenario::name).collect();
            assert_eq!(names, expected, "{expressions:?}");
        };
        let all = Scenario::ALL.map(Scenario::name);
        check(&[], &all);
        check(&["no-policies"], &all[..5]);
        check(&["nothing-of-this-name"], &[]);
        check(&["/pod-to-pod$"], &["pod-to-pod"]);
        check(&["no-policies/.*host"], &["pod-to-host", "host-to-pod"]);
        check(&["^health/"], &["cilium-health"]);
        check(&["pod-to", "!pod-to-pod", "!cidr"], &["pod-to-host"]);
        check(&["!pod"], &["client-to-client", "cilium-health"]);
        assert!(
            Selection::new(&["(".to_owned()]).unwrap_err().to_string().contains("--test \"(\"")
        );
    }
}
