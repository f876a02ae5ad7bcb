//! `cilium connectivity test`: pods of a test namespace talk to each other, to nodes and to the
//! world outside, under policies or none, and whatever is not as it should be is named.
//!
//! ```text
//!   args ─► cluster: connect, choose nodes, deploy, wait ─► plan::World
//!           policies: tests ─► enforce: apply, wait until agents enforce it
//!                                                               │ plan: Scenario::actions (pure)
//!           report: text, JSON, JUnit ◄─ verdict ◄─ exec in pods, some at a time
//! ```
//!
//! Everything goes through the API server, so any cluster will do that kubectl reaches; a lab is
//! known by its nodes' container runtime, and only changes who "the world outside" is.

pub(crate) mod args;
mod cluster;
mod enforce;
mod plan;
mod policies;
mod report;

use std::collections::BTreeMap;
use std::io::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use futures::StreamExt as _;

use self::args::{Connectivity, Format};
use self::cluster::{Cluster, InPod};
use self::enforce::Policies;
use self::plan::{Action, Executed, Method, Place, Scenario, Selection, World};
use self::policies::Test;
use self::report::{ActionResult, Report, ScenarioResult, TestResult, millis};
use crate::args::Whom;
use crate::bpf;
use crate::health;
use crate::nodes::{Node, Nodes};
use crate::output::{self, Outcome, Style, Table};

/// Commands that run in pods at the same time: none changes anything, so they do not disturb each
/// other, and most of them wait.
const ACTIONS_IN_FLIGHT: usize = 16;
/// What a command may take beyond the time that it gives itself.
const EXEC_MARGIN: Duration = Duration::from_secs(10);
/// Between two rounds of probes of an agent.
const PROBE_INTERVAL: Duration = Duration::from_secs(1);
/// The world outside of a cluster that is no lab, as Cilium has it.
const INTERNET: [[u8; 4]; 2] = [[1, 1, 1, 1], [1, 0, 0, 1]];

pub(crate) fn run(command: &Connectivity) -> Result<Outcome> {
    let Connectivity::Test(test) = command;
    let selection = Selection::new(&test.tests)?;
    let mut tests = policies::tests();
    for one in &mut tests {
        let all = std::mem::take(&mut one.scenarios);
        one.scenarios =
            all.into_iter().filter(|scenario| selection.selects(one, *scenario)).collect();
    }
    tests.retain(|test| !test.scenarios.is_empty());
    if tests.is_empty() {
        bail!("--test {:?} selects nothing; look with --list", test.tests.join(","));
    }
    if test.list {
        output::print(&report::list(&tests))?;
        return Ok(Outcome::Complete);
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    runtime.block_on(run_tests(test, &tests))
}

async fn run_tests(test: &args::Test, tests: &[Test]) -> Result<Outcome> {
    let progress = Progress { to_stderr: test.output.is_some(), style: Style::of_stdout() };
    let cluster = Cluster::connect(&test.cluster, &test.test_namespace).await?;
    let nodes = cluster.nodes(&test.node_selector, test.single_node).await?;
    let say = |line: String| progress.line(&line);
    let deployed = cluster.deploy(&nodes, &test.images, &say, test.patience.wait_duration).await;
    if deployed.is_err() {
        progress.line(&cluster.describe().await);
    }
    deployed?;
    let outside = outside(&test.world, nodes.lab);
    let here = agents_here(&cluster);
    let mut agents: Vec<Place> =
        here.iter().flat_map(|nodes| &nodes.all).map(|n| Place::AgentHere(n.label())).collect();
    if agents.is_empty() {
        agents = cluster.agent_pods().await.into_iter().map(Place::AgentPod).collect();
    }
    let world = cluster.world(&nodes, &test.ip_families, outside, agents).await?;
    let drops = Drops::now(here.as_ref());
    let began = Instant::now();
    let run =
        Run { test, cluster: &cluster, world: &world, here: here.as_ref(), progress: &progress };
    let tests = run.tests(tests).await?;
    let report = Report::new(&cluster.context, &cluster.namespace, began.elapsed(), tests);
    if !report.success {
        progress.line(&format!("\n{}{}", cluster.describe().await, drops.since()));
    }
    progress.text(&report.summary(progress.style));
    match test.output {
        Some(Format::Json) => output::print(&output::encode(&report, crate::args::Format::Json)?)?,
        Some(Format::Junit) => output::print(&report.junit())?,
        None => {}
    }
    Ok(if report.success { Outcome::Complete } else { Outcome::Partial })
}

/// The hosts outside: as told, else the lab's own, else Cilium's. A lab's packets must not leave
/// the machine unless somebody says so.
fn outside(world: &args::World, lab: bool) -> Vec<SocketAddr> {
    if world.no_external {
        return Vec::new();
    }
    let [(v4, v6), (other_v4, other_v6)] = [lab::spec::INTERNET, lab::spec::INTERNET_OTHER];
    let [first, second] = INTERNET.map(IpAddr::from);
    let defaults = match lab {
        true => [v4.into(), other_v4.into(), v6.into(), other_v6.into()].map(Some),
        false => [Some(first), Some(second), None, None],
    };
    let given = [
        world.external_ip,
        world.external_other_ip,
        world.external_ipv6,
        world.external_other_ipv6,
    ];
    let hosts = given.into_iter().zip(defaults).filter_map(|(given, default)| given.or(default));
    hosts.map(|host| SocketAddr::new(host, world.external_port)).collect()
}

struct Run<'a> {
    test: &'a args::Test,
    cluster: &'a Cluster,
    world: &'a World,
    here: Option<&'a Nodes>,
    progress: &'a Progress,
}

impl Run<'_> {
    async fn tests(&self, tests: &[Test]) -> Result<Vec<TestResult>> {
        let (namespace, total) = (&self.world.namespace, tests.len());
        // What an interrupted run has left must not decide this one.
        self.cluster.remove_policies().await?;
        self.progress.line(&format!("🏃[{namespace}] Running {total} tests ..."));
        let mut results = Vec::new();
        for (index, test) in tests.iter().enumerate() {
            let (name, number) = (&test.name, index + 1);
            self.progress.line(&format!("[=] [{namespace}] Test [{name}] [{number}/{total}]"));
            results.push(self.one(test).await?);
        }
        Ok(results)
    }

    /// One test, under its policies.
    async fn one(&self, test: &Test) -> Result<TestResult> {
        let mut result = TestResult { name: test.name.clone(), scenarios: Vec::new() };
        let policies = Policies { cluster: self.cluster, here: self.here, world: self.world };
        if test.has_policies() {
            if self.world.agents.is_empty() {
                let lack = "no agent is known that would say when policies are enforced";
                result.scenarios = test
                    .scenarios
                    .iter()
                    .map(|scenario| self.skip(test, *scenario, lack))
                    .collect();
                return Ok(result);
            }
            let patience = self.test.patience.wait_duration;
            if let Err(error) = policies.apply(test, patience).await {
                self.cluster.remove_policies().await?;
                result.scenarios.push(self.not_enforced(test, &error));
                return Ok(result);
            }
        }
        for scenario in &test.scenarios {
            result.scenarios.push(self.scenario(test, *scenario).await);
        }
        if test.has_policies() {
            policies.remove(self.test.patience.wait_duration).await?;
        }
        Ok(result)
    }

    /// Policies that do not come into force are a failure of the test, which then has not run.
    fn not_enforced(&self, test: &Test, error: &anyhow::Error) -> ScenarioResult {
        let action = ActionResult {
            name: format!("{}/policies", test.name),
            from: "the API server".to_owned(),
            to: "all agents".to_owned(),
            command: "cilium policy list".to_owned(),
            success: false,
            duration_ms: 0,
            error: Some(format!("{error:#}")),
            stdout: String::new(),
            stderr: String::new(),
        };
        self.progress.text(&action.failure(self.progress.style));
        ScenarioResult { name: "policies".to_owned(), skipped: None, actions: vec![action] }
    }

    fn skip(&self, test: &Test, scenario: Scenario, lack: &str) -> ScenarioResult {
        self.progress
            .line(&format!("  [-] Scenario [{}] skipped: {lack}", test.full_name(scenario)));
        let name = scenario.name().to_owned();
        ScenarioResult { name, skipped: Some(lack.to_owned()), actions: Vec::new() }
    }

    async fn scenario(&self, test: &Test, scenario: Scenario) -> ScenarioResult {
        let actions = scenario.actions(test, self.world);
        let name = scenario.name().to_owned();
        if actions.is_empty() {
            return self.skip(test, scenario, scenario.lack());
        }
        self.progress.line(&format!("  [-] Scenario [{}]", test.full_name(scenario)));
        let total = actions.len();
        let mut running = futures::stream::iter(actions.iter().enumerate())
            .map(|(index, action)| async move { (index, self.action(action).await) })
            .buffer_unordered(ACTIONS_IN_FLIGHT);
        let mut results = Vec::with_capacity(total);
        self.progress.text("  ");
        while let Some((index, result)) = running.next().await {
            self.progress.text(if result.success { "." } else { "x" });
            results.push((index, result));
        }
        self.progress.line("");
        // As planned, not as they have ended.
        results.sort_by_key(|(index, _)| *index);
        let actions: Vec<ActionResult> = results.into_iter().map(|(_, result)| result).collect();
        for action in actions.iter().filter(|action| !action.success) {
            self.progress.text(&action.failure(self.progress.style));
        }
        ScenarioResult { name, skipped: None, actions }
    }

    async fn action(&self, action: &Action) -> ActionResult {
        let argv = action.argv(&self.test.patience);
        let began = Instant::now();
        let request = self.test.patience.request_timeout;
        let (executed, error) = loop {
            let executed = self.execute(action, &argv, request + EXEC_MARGIN).await;
            let error = action.verdict(&executed);
            // Health endpoints may still be starting, and agents do not tell when.
            let again = action.method == Method::Health && began.elapsed() < request;
            if error.is_none() || !again {
                break (executed, error);
            }
            tokio::time::sleep(PROBE_INTERVAL).await;
        };
        ActionResult {
            name: action.name.clone(),
            from: action.from.clone(),
            to: action.to.clone(),
            command: self.by_hand(&action.place, &argv),
            success: error.is_none(),
            duration_ms: millis(began.elapsed()),
            error,
            stdout: executed.stdout,
            stderr: executed.stderr,
        }
    }

    async fn execute(&self, action: &Action, argv: &[String], limit: Duration) -> Executed {
        match &action.place {
            Place::Pod(namespace, name) => {
                self.cluster.exec(&InPod::of_test(namespace, name), argv, limit).await
            }
            Place::AgentPod(name) => {
                self.cluster.exec(&self.cluster.agent_pod(name), argv, limit).await
            }
            Place::AgentHere(name) => {
                let mut nodes = self.here.iter().flat_map(|nodes| &nodes.all);
                match nodes.find(|node| node.label() == *name) {
                    Some(node) => probe(node.clone(), limit).await,
                    None => Executed::failed(format!("the lab has no node {name:?}")),
                }
            }
        }
    }

    fn by_hand(&self, place: &Place, argv: &[String]) -> String {
        match place {
            Place::Pod(namespace, name) => {
                self.cluster.by_hand(&InPod::of_test(namespace, name), argv)
            }
            Place::AgentPod(name) => self.cluster.by_hand(&self.cluster.agent_pod(name), argv),
            Place::AgentHere(node) => {
                let lab = self.cluster.lab_name().map(|lab| format!(" --lab {lab}"));
                format!("cilium health status --probe --node {node}{}", lab.unwrap_or_default())
            }
        }
    }
}

/// Asks an agent of this machine; its socket blocks.
async fn probe(node: Node, limit: Duration) -> Executed {
    let asked = tokio::task::spawn_blocking(move || -> Result<String> {
        Ok(serde_json::to_string(&health::status(&node, true)?)?)
    });
    match tokio::time::timeout(limit, asked).await {
        Ok(Ok(Ok(stdout))) => Executed { stdout, ..Executed::default() },
        Ok(Ok(Err(error))) => Executed::failed(format!("cannot ask the agent: {error:#}")),
        Ok(Err(error)) => Executed::failed(format!("cannot ask the agent: {error}")),
        Err(_elapsed) => {
            Executed::failed(format!("the agent has not answered after {} s", limit.as_secs()))
        }
    }
}

/// The cluster's agents, if it is a lab of this machine.
fn agents_here(cluster: &Cluster) -> Option<Nodes> {
    let whom = Whom { lab: Some(cluster.lab_name()?), ..Whom::default() };
    Nodes::select(&whom).ok()
}

/// Where the steps are told; a data format has standard output for itself.
struct Progress {
    to_stderr: bool,
    style: Style,
}

impl Progress {
    fn line(&self, text: &str) {
        self.text(&format!("{text}\n"));
    }

    /// Nobody may be listening any more; the exit code still counts.
    fn text(&self, text: &str) {
        if self.to_stderr {
            let _ = std::io::stderr().write_all(text.as_bytes());
        } else {
            let _ = output::print(text);
        }
    }
}

/// The datapath's counters of drops, node by node, where they are on this machine: in a lab.
struct Drops<'a> {
    nodes: Option<&'a Nodes>,
    before: Counters,
}

/// Packets by node, reason and direction.
type Counters = BTreeMap<(String, String, &'static str), u64>;

impl<'a> Drops<'a> {
    fn now(nodes: Option<&'a Nodes>) -> Self {
        let before = nodes.map(drops).unwrap_or_default();
        Self { nodes, before }
    }

    /// What was dropped meanwhile, as text.
    fn since(&self) -> String {
        let Some(nodes) = self.nodes else { return String::new() };
        let mut table = Table::new(&["NODE", "REASON", "DIRECTION", "PACKETS"]);
        let mut some = false;
        for (key, packets) in drops(nodes) {
            let more = packets.saturating_sub(self.before.get(&key).copied().unwrap_or(0));
            if more > 0 {
                let (node, reason, direction) = key;
                table.row(vec![node, reason, direction.to_owned(), more.to_string()]);
                some = true;
            }
        }
        match some {
            true => format!("Dropped during the test:\n{table}\n"),
            false => "Dropped during the test: nothing\n\n".to_owned(),
        }
    }
}

/// A node whose maps cannot be read has none.
fn drops(nodes: &Nodes) -> Counters {
    let mut counters = Counters::new();
    for node in &nodes.all {
        for counter in bpf::metrics(node).unwrap_or_default() {
            if counter.drop {
                let key = (node.label(), counter.reason, counter.direction);
                counters.insert(key, counter.packets);
            }
        }
    }
    counters
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_world_outside_of_a_lab_is_the_lab_s() {
        let given = |list: [Option<&str>; 4], no_external| {
            let [external_ip, external_other_ip, external_ipv6, external_other_ipv6] =
                list.map(|address| address.map(|address| address.parse().unwrap()));
            args::World {
                external_ip,
                external_other_ip,
                external_ipv6,
                external_other_ipv6,
                external_port: 80,
                no_external,
            }
        };
        let check = |list, no_external, lab, expected: &[&str]| {
            let hosts = outside(&given(list, no_external), lab);
            let hosts: Vec<String> = hosts.iter().map(SocketAddr::to_string).collect();
            assert_eq!(hosts, expected);
        };
        let of_lab =
            ["203.0.113.10:80", "203.0.113.11:80", "[2001:db8:ff::10]:80", "[2001:db8:ff::11]:80"];
        check([None; 4], false, true, &of_lab);
        check([None; 4], false, false, &["1.1.1.1:80", "1.0.0.1:80"]);
        check([None; 4], true, false, &[]);
        let own = [Some("192.0.2.1"), Some("192.0.2.2"), Some("2001:db8::1"), None];
        check(own, false, false, &["192.0.2.1:80", "192.0.2.2:80", "[2001:db8::1]:80"]);
        check([None, None, Some("2001:db8::1"), None], true, true, &[]);
    }
}
