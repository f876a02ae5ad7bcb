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
use super::policies::{OUTSIDE, Talk, Test};

/// Where the echo pods serve HTTP.
pub(crate) const ECHO_PORT: u16 = 8080;
/// How long to wait for an answer that must not come.
const SILENCE: Duration = Duration::from_secs(1);

/// A pod of the test. Pods in the namespace of their node have the node's addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Pod {
    pub(crate) namespace: String,
    pub(crate) name: String,
    /// Its Deployment or DaemonSet.
    pub(crate) app: String,
    pub(crate) node: String,
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
    /// Clients in namespaces of their own.
    pub(crate) elsewhere: Vec<Pod>,
    pub(crate) nodes: Vec<Peer>,
    pub(crate) outside: Vec<SocketAddr>,
    pub(crate) agents: Vec<Place>,
    pub(crate) families: Vec<IpFamily>,
}

/// Where a command runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// A pod of the test, by namespace and name.
    Pod(String, String),
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
    CcnpClientToClient,
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
    pub(crate) expected: Expected,
}

/// What policy makes of an action.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Expected {
    Answer,
    /// Nothing comes back at all; a refusal would.
    Silence,
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
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::PodToPod => "pod-to-pod",
            Self::ClientToClient => "client-to-client",
            Self::PodToHost => "pod-to-host",
            Self::HostToPod => "host-to-pod",
            Self::PodToCidr => "pod-to-cidr",
            Self::PodToPodNoFrag => "pod-to-pod-no-frag",
            Self::CiliumHealth => "cilium-health",
            Self::CcnpClientToClient => "ccnp-client-to-client",
        }
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
            Self::CcnpClientToClient => "ping between clients of several namespaces",
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
    pub(crate) fn actions(self, test: &Test, world: &World) -> Vec<Action> {
        if self == Self::CiliumHealth {
            return self.probes(test, world);
        }
        let mut actions = Vec::new();
        for family in &world.families {
            let pairs = self.pairs(world, *family);
            for (number, (pod, sender, receiver)) in pairs.into_iter().enumerate() {
                let target = receiver.target;
                let method = self.method(sender, target);
                let talk = Talk {
                    scenario: self,
                    from: &pod.app,
                    to: &receiver.app,
                    same_node: receiver.node.as_ref() == Some(&pod.node),
                };
                let (verb, shown) = match method {
                    Method::Http { server, .. } => ("curl", server.to_string()),
                    _ => ("ping", target.ip().to_string()),
                };
                actions.push(Action {
                    name: format!("{}/{verb}-{}-{number}", test.full_name(self), word(*family)),
                    place: Place::Pod(pod.namespace.clone(), pod.name.clone()),
                    from: format!("{}/{} ({sender})", pod.namespace, pod.name),
                    to: format!("{} ({shown})", receiver.name),
                    method,
                    expected: match test.passes(&talk) {
                        true => Expected::Answer,
                        false => Expected::Silence,
                    },
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
            Self::ClientToClient | Self::CcnpClientToClient | Self::PodToHost => {
                Method::Ping(target.ip())
            }
            Self::PodToPodNoFrag => Method::LargestPing(target.ip()),
            Self::CiliumHealth => Method::Health,
        }
    }

    /// One per agent, who knows itself whom to probe over which family.
    fn probes(self, test: &Test, world: &World) -> Vec<Action> {
        let probe = |(number, place): (usize, &Place)| Action {
            name: format!("{}/probe-{number}", test.full_name(self)),
            place: place.clone(),
            from: match place {
                Place::Pod(_, name) | Place::AgentPod(name) => name.clone(),
                Place::AgentHere(node) => format!("the agent of {node}"),
            },
            to: "all nodes".to_owned(),
            method: Method::Health,
            expected: Expected::Answer,
        };
        world.agents.iter().enumerate().map(probe).collect()
    }

    /// Sender with its address, and receiver.
    fn pairs(self, world: &World, family: IpFamily) -> Vec<(&Pod, IpAddr, Receiver)> {
        let senders = match self {
            Self::HostToPod => &world.hosts,
            Self::CcnpClientToClient => &world.elsewhere,
            _ => &world.clients,
        };
        let receivers = self.receivers(world, family);
        let mut pairs = Vec::new();
        for pod in senders {
            let Some(sender) = of_family(&pod.addresses, family) else { continue };
            let others = receivers.iter().filter(|receiver| receiver.target.ip() != sender);
            pairs.extend(others.map(|receiver| (pod, sender, receiver.clone())));
        }
        pairs
    }

    fn receivers(self, world: &World, family: IpFamily) -> Vec<Receiver> {
        let of_pods =
            |pods: &[Pod]| pods.iter().filter_map(|pod| Receiver::of_pod(pod, family)).collect();
        match self {
            Self::PodToPod | Self::PodToPodNoFrag | Self::HostToPod => of_pods(&world.echoes),
            Self::ClientToClient => of_pods(&world.clients),
            Self::CcnpClientToClient => of_pods(&world.elsewhere),
            Self::PodToHost => {
                let nodes = world.nodes.iter();
                let addresses =
                    nodes.flat_map(|node| node.addresses.iter().map(move |a| (node, a)));
                let mine = addresses.filter(|(_, address)| IpFamily::of(**address) == family);
                mine.map(|(node, address)| Receiver::of_node(node, *address)).collect()
            }
            Self::PodToCidr => {
                let outside = world.outside.iter().filter(|host| IpFamily::of(host.ip()) == family);
                outside.zip(OUTSIDE).map(|(host, name)| Receiver::outside(name, *host)).collect()
            }
            Self::CiliumHealth => Vec::new(),
        }
    }
}

/// Who is talked to.
#[derive(Clone, Debug)]
struct Receiver {
    /// For people.
    name: String,
    /// For the test, see [`Talk::to`].
    app: String,
    node: Option<String>,
    target: SocketAddr,
}

impl Receiver {
    fn of_pod(pod: &Pod, family: IpFamily) -> Option<Self> {
        Some(Self {
            name: format!("{}/{}", pod.namespace, pod.name),
            app: pod.app.clone(),
            node: Some(pod.node.clone()),
            target: SocketAddr::new(of_family(&pod.addresses, family)?, ECHO_PORT),
        })
    }

    fn of_node(node: &Peer, address: IpAddr) -> Self {
        Self {
            name: node.name.clone(),
            app: "node".to_owned(),
            node: Some(node.name.clone()),
            target: SocketAddr::new(address, 0),
        }
    }

    fn outside(name: &str, host: SocketAddr) -> Self {
        Self { name: name.to_owned(), app: name.to_owned(), node: None, target: host }
    }
}

impl Action {
    /// What to run in the pod.
    pub(crate) fn argv(&self, patience: &Patience) -> Vec<String> {
        let [connect, request] = match self.expected {
            Expected::Answer => [patience.connect_timeout, patience.request_timeout].map(seconds),
            // What is not dropped is answered at once.
            Expected::Silence => [SILENCE, SILENCE].map(seconds),
        };
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
        if self.expected == Expected::Silence {
            return self.not_silent(executed);
        }
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

    /// A packet that policy drops is not answered; an answer of any kind, or a command that did not
    /// even run, is not that.
    fn not_silent(&self, executed: &Executed) -> Option<String> {
        // curl: 28 is a timeout. ping: 1 is no answer.
        let (silence, answer) = match self.method {
            Method::Http { .. } => ("exit code 28", "HTTP was answered"),
            _ => ("exit code 1", "the ping was answered"),
        };
        match executed.error.as_deref() {
            Some(error) if error == silence => None,
            Some(error) => Some(format!("policy should drop it in silence, but: {error}")),
            None => Some(format!("policy should drop it, but {answer}")),
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

    pub(crate) fn selects(&self, test: &Test, scenario: Scenario) -> bool {
        let name = test.full_name(scenario);
        let any = |list: &[Regex]| list.iter().any(|regex| regex.is_match(&name));
        (self.run.is_empty() || any(&self.run)) && !any(&self.skip)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::super::policies;
    use super::*;
    use expect_test::expect;

    /// Two nodes; the pods' addresses tell who they are.
    pub(crate) fn world(families: &[IpFamily]) -> World {
        let addresses = |number: u16| {
            let v4 = IpAddr::from([10, 0, 0, number.to_be_bytes()[1]]);
            let v6 = IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, number]);
            [v4, v6].into_iter().filter(|a| families.contains(&IpFamily::of(*a))).collect()
        };
        let pod_on = |node: &str, name: &str, number| Pod {
            namespace: "cilium-test-1".to_owned(),
            name: name.to_owned(),
            app: name.to_owned(),
            node: node.to_owned(),
            addresses: addresses(number),
        };
        let pod = |name: &str, number| pod_on("node-1", name, number);
        World {
            namespace: "cilium-test-1".to_owned(),
            clients: vec![pod("client", 1), pod("client2", 2)],
            echoes: vec![pod("echo-same-node", 8), pod_on("node-2", "echo-other-node", 9)],
            hosts: vec![pod("host-netns-a", 101)],
            elsewhere: vec![pod("ccnp-client-1", 21), pod("ccnp-client-2", 22)],
            nodes: vec![Peer { name: "node-1".to_owned(), addresses: addresses(101) }],
            outside: vec!["203.0.113.10:80".parse().unwrap()],
            agents: vec![
                Place::AgentPod("cilium-a".to_owned()),
                Place::AgentHere("node-1".to_owned()),
            ],
            families: families.to_vec(),
        }
    }

    /// The scenarios of the tests without policies.
    fn all() -> Vec<(Test, Scenario)> {
        let tests = policies::tests().into_iter().filter(|test| !test.has_policies());
        tests
            .flat_map(|test| test.scenarios.clone().into_iter().map(move |s| (test.clone(), s)))
            .collect()
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
        let actions =
            all().into_iter().flat_map(|(test, scenario)| scenario.actions(&test, &world));
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
        let count = |(test, scenario): (Test, Scenario)| scenario.actions(&test, &both).len();
        let counts: Vec<usize> = all().into_iter().map(count).collect();
        // Outside there is only a host with IPv4.
        assert_eq!(counts, [8, 4, 4, 4, 2, 8, 2]);
        let open = &policies::tests()[0];
        let v6 = Scenario::PodToPod.actions(open, &world(&[IpFamily::Ipv6]));
        let is_v6 = |action: &Action| match action.method {
            Method::Http { server, .. } => server.is_ipv6(),
            _ => false,
        };
        assert!(v6.iter().all(|a| is_v6(a) && a.name.contains("/curl-ipv6-")), "{v6:?}");
        assert_eq!(Scenario::PodToCidr.actions(open, &world(&[IpFamily::Ipv6])), []);
    }

    #[test]
    fn commands() {
        let both = world(&IpFamily::ALL);
        let commands = all().into_iter().flat_map(|(test, scenario)| {
            let actions = scenario.actions(&test, &both);
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
        let open = &policies::tests()[0];
        let actions = Scenario::PodToPod.actions(open, &both);
        let [v4, v6] = [&actions[0], &actions[4]];
        check(v4, "10.0.0.1:52612", None, true);
        check(v4, "[::ffff:10.0.0.1]:52612", None, true);
        check(v4, "10.0.0.7:52612", None, false);
        check(v4, "", None, false);
        check(v4, "10.0.0.1:52612", Some("exit code 28"), false);
        check(v6, "[fd00::1]:1", None, true);
        check(v6, "10.0.0.1:1", None, false);
        check(&Scenario::PodToHost.actions(open, &both)[0], "anything", None, true);
        let health = &Scenario::CiliumHealth.actions(open, &both)[0];
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
    fn silence_is_what_policy_makes() {
        let both = world(&IpFamily::ALL);
        let named = |name: &str| policies::tests().into_iter().find(|test| test.name == name);
        let denied = named("all-ingress-deny").unwrap();
        let actions = Scenario::HostToPod.actions(&denied, &both);
        let expected: Vec<Expected> = actions.iter().map(|action| action.expected).collect();
        // The node reaches its own pods, whatever policies say.
        assert_eq!(expected[..2], [Expected::Answer, Expected::Silence]);
        let curl = &actions[1];
        assert!(curl.argv(&patience()).join(" ").contains("--connect-timeout 1 "));
        let ping = &Scenario::PodToHost.actions(&named("all-egress-deny").unwrap(), &both)[0];
        let check = |action: &Action, error: Option<&str>, good: bool| {
            let error = error.map(str::to_owned);
            let verdict = action.verdict(&Executed { error, ..Executed::default() });
            assert_eq!(verdict.is_none(), good, "{verdict:?}");
        };
        for (action, silence, refusal) in
            [(curl, "exit code 28", "exit code 7"), (ping, "exit code 1", "exit code 2")]
        {
            check(action, Some(silence), true);
            check(action, Some(refusal), false);
            check(action, None, false);
        }
    }

    #[test]
    fn selection() {
        let check = |expressions: &[&str], expected: &[&str]| {
            let words: Vec<String> = expressions.iter().map(|e| (*e).to_owned()).collect();
            let selection = Selection::new(&words).unwrap();
            let selected = all().into_iter().filter(|(test, s)| selection.selects(test, *s));
            let names: Vec<&str> = selected.map(|(_, scenario)| scenario.name()).collect();
            assert_eq!(names, expected, "{expressions:?}");
        };
        let names: Vec<&str> = all().iter().map(|(_, scenario)| scenario.name()).collect();
        check(&[], &names);
        check(&["no-policies"], &names[..5]);
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
