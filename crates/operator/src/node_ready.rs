//! Tells Kubernetes which nodes can take pods: removes the taint `node.cilium.io/agent-not-ready` and
//! sets the condition `NetworkUnavailable=False`, reason `CiliumIsUp`.
//!
//! ```text
//! watch Nodes ────────┐
//! watch CiliumNodes ──┼─► decide (pure) ─► patches of Nodes ─► …seen by the watch
//! watch agents' pods ─┘
//! ```
//!
//! A node's agent is ready when its pod says so. Where the agent is no pod but a service of the
//! machine, it is ready when it has announced its address in the pods' network and the kubelet calls
//! the node ready, which it does once the agent has written the CNI configuration. What was given is
//! not taken back: an agent that restarts disturbs nobody.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use api::config::Config;
use api::crd::{CILIUM_INTERNAL_IP, CiliumNode, FIELD_MANAGER_OPERATOR};
use futures::{StreamExt, stream};
use k8s_openapi::api::core::v1::{Node, Pod, Taint};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams};
use kube::runtime::watcher;
use kube::{Api, ResourceExt};
use model::{NodeName, PodName};
use serde_json::json;
use statedb::job::{Group, Job};
use statedb::{Row, Snapshot, Table};

use crate::watch::reflect;

/// Patches under way at once.
const CONCURRENT_PATCHES_MAX: usize = 10;
/// Wait before patches that failed are tried again.
const RETRY: Duration = Duration::from_secs(1);
/// The condition, its reason, and what it tells people.
const CONDITION: &str = "NetworkUnavailable";
const REASON: &str = "CiliumIsUp";
const MESSAGE: &str = "Cilium is running on this node";

/// A Node as far as its readiness goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeRow {
    /// The node.
    pub node: NodeName,
    /// The keys of its taints.
    pub taints: Vec<String>,
    /// Whether the kubelet calls it ready.
    pub is_ready: bool,
    /// Whether it has the condition.
    pub is_network_up: bool,
}

impl Row for NodeRow {
    type Key = NodeName;
    const HEADERS: &'static [&'static str] = &["NODE", "TAINTS", "READY", "NETWORK"];

    fn key(&self) -> NodeName {
        self.node.clone()
    }

    fn cells(&self) -> Vec<String> {
        let Self { node, taints, is_ready, is_network_up } = self;
        vec![node.to_string(), taints.join(","), is_ready.to_string(), is_network_up.to_string()]
    }
}

/// A CiliumNode as far as readiness goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AnnouncedRow {
    /// The node.
    pub node: NodeName,
    /// Whether its agent has announced its address in the pods' network.
    pub is_announced: bool,
}

impl Row for AnnouncedRow {
    type Key = NodeName;
    const HEADERS: &'static [&'static str] = &["NODE", "ANNOUNCED"];

    fn key(&self) -> NodeName {
        self.node.clone()
    }

    fn cells(&self) -> Vec<String> {
        vec![self.node.to_string(), self.is_announced.to_string()]
    }
}

/// The pod of an agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgentRow {
    /// The pod.
    pub pod: PodName,
    /// Its node; none before it is bound.
    pub node: Option<NodeName>,
    /// Whether it is ready.
    pub is_ready: bool,
}

impl Row for AgentRow {
    type Key = PodName;
    const HEADERS: &'static [&'static str] = &["POD", "NODE", "READY"];

    fn key(&self) -> PodName {
        self.pod.clone()
    }

    fn cells(&self) -> Vec<String> {
        let node = self.node.as_ref().map(NodeName::to_string).unwrap_or_default();
        vec![self.pod.to_string(), node, self.is_ready.to_string()]
    }
}

/// What is to be told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rules {
    /// The taint to remove, if any.
    pub taint: Option<String>,
    /// Whether to set the condition.
    pub set_condition: bool,
}

/// What to write to a Node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The node.
    pub node: NodeName,
    /// Whether the taint must go.
    pub untaint: bool,
    /// Whether the condition must be set.
    pub set_condition: bool,
}

/// What to write, given all there is.
pub fn decide<'a>(
    nodes: impl Iterator<Item = &'a NodeRow>,
    announced: &BTreeSet<NodeName>,
    agents: &BTreeMap<NodeName, bool>,
    rules: &Rules,
) -> Vec<Change> {
    let change = |row: &NodeRow| {
        let by_announcement = || row.is_ready && announced.contains(&row.node);
        if !agents.get(&row.node).copied().unwrap_or_else(by_announcement) {
            return None;
        }
        let untaint = rules.taint.as_ref().is_some_and(|key| row.taints.contains(key));
        let set_condition = rules.set_condition && !row.is_network_up;
        let change = Change { node: row.node.clone(), untaint, set_condition };
        (untaint || set_condition).then_some(change)
    };
    nodes.filter_map(change).collect()
}

/// Starts the jobs.
pub fn start(jobs: &Group, client: &kube::Client, config: &Config) {
    let rules = Rules {
        taint: config.remove_cilium_node_taints.then(|| config.agent_not_ready_taint_key.clone()),
        set_condition: config.set_cilium_is_up_condition,
    };
    if rules.taint.is_none() && !rules.set_condition {
        return;
    }
    let (nodes, writer) = Table::new("kubernetes-nodes");
    let complete = writer.initializer("nodes");
    let api: Api<Node> = Api::all(client.clone());
    jobs.spawn("watch-kubernetes-nodes", |job| {
        reflect(api, watcher::Config::default(), writer, complete, node_row, job)
    });
    let (announced, writer) = Table::new("announced");
    let complete = writer.initializer("ciliumnodes");
    let api: Api<CiliumNode> = Api::all(client.clone());
    jobs.spawn("watch-announcements", |job| {
        reflect(api, watcher::Config::default(), writer, complete, announced_row, job)
    });
    let (agents, writer) = Table::new("agents");
    let complete = writer.initializer("pods");
    let api: Api<Pod> = Api::namespaced(client.clone(), &config.k8s_namespace);
    let of_agents = watcher::Config::default().labels(&config.cilium_pod_labels);
    jobs.spawn("watch-agents", |job| reflect(api, of_agents, writer, complete, agent_row, job));

    let api = Api::all(client.clone());
    jobs.spawn("sync-node-readiness", |job| {
        let tables = Tables { nodes, announced, agents };
        tables.sync(api, rules, job)
    });
}

struct Tables {
    nodes: Table<NodeRow>,
    announced: Table<AnnouncedRow>,
    agents: Table<AgentRow>,
}

impl Tables {
    /// Writes what is missing, whenever anything has changed. Nothing is decided before all have been
    /// listed: a pod that is not known yet could say that its agent is not ready.
    async fn sync(self, api: Api<Node>, rules: Rules, job: Job) -> Result<(), kube::Error> {
        let mut changes = (self.nodes.changes(), self.announced.changes(), self.agents.changes());
        let mut retry = false;
        loop {
            let alive = tokio::select! {
                () = job.stop.cancelled() => false,
                alive = changes.0.changed() => alive,
                alive = changes.1.changed() => alive,
                alive = changes.2.changed() => alive,
                () = tokio::time::sleep(RETRY), if retry => true,
            };
            if !alive {
                return Ok(());
            }
            drop((changes.0.take(), changes.1.take(), changes.2.take()));
            let Some(wanted) = self.decide(&rules) else { continue };
            if wanted.is_empty() && !retry {
                continue;
            }
            let patches = wanted.into_iter().map(|change| write(&api, change, &rules));
            let results: Vec<_> =
                stream::iter(patches).buffer_unordered(CONCURRENT_PATCHES_MAX).collect().await;
            let failed = results.into_iter().filter_map(Result::err).next();
            retry = failed.is_some();
            match failed {
                None => job.ok(""),
                Some(error) => job.degraded(format!("cannot write to a Node: {error}")),
            }
        }
    }

    /// None before everything is known.
    fn decide(&self, rules: &Rules) -> Option<Vec<Change>> {
        let (nodes, announced, agents) =
            (self.nodes.snapshot(), self.announced.snapshot(), self.agents.snapshot());
        if !(nodes.is_initialized() && announced.is_initialized() && agents.is_initialized()) {
            return None;
        }
        let ready = announced.rows().filter(|row| row.is_announced);
        let ready = ready.map(|row| row.node.clone()).collect();
        Some(decide(nodes.rows().map(|row| &**row), &ready, &by_node(&agents), rules))
    }
}

/// Whether each node's agent is ready. An old pod may linger beside its successor; one that is
/// ready is enough.
fn by_node(agents: &Snapshot<AgentRow>) -> BTreeMap<NodeName, bool> {
    let mut ready = BTreeMap::new();
    for row in agents.rows() {
        if let Some(node) = &row.node {
            *ready.entry(node.clone()).or_default() |= row.is_ready;
        }
    }
    ready
}

/// Writes what is missing. A Node that is gone meanwhile is no error.
async fn write(api: &Api<Node>, change: Change, rules: &Rules) -> kube::Result<()> {
    match write_present(api, &change, rules).await {
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        result => result,
    }
}

async fn write_present(api: &Api<Node>, change: &Change, rules: &Rules) -> kube::Result<()> {
    let name = change.node.as_str();
    let params = PatchParams {
        field_manager: Some(FIELD_MANAGER_OPERATOR.to_owned()),
        ..PatchParams::default()
    };
    // The condition first: with the taint go the last pods' reasons to wait.
    if change.set_condition {
        let now = Timestamp::now();
        let patch = json!({"status": {"conditions": [{
            "type": CONDITION, "status": "False", "reason": REASON, "message": MESSAGE,
            "lastTransitionTime": now, "lastHeartbeatTime": now,
        }]}});
        api.patch_status(name, &params, &Patch::Strategic(patch)).await?;
        tracing::info!(node = name, "set the condition NetworkUnavailable=False");
    }
    if change.untaint
        && let Some(key) = &rules.taint
    {
        // A list is replaced as a whole, so it must still be the one that was read.
        let node = api.get(name).await?;
        let taints: Vec<Taint> = node.spec.and_then(|spec| spec.taints).unwrap_or_default();
        let others: Vec<&Taint> = taints.iter().filter(|taint| taint.key != *key).collect();
        if others.len() < taints.len() {
            let version = node.metadata.resource_version;
            let patch =
                json!({"metadata": {"resourceVersion": version}, "spec": {"taints": others}});
            api.patch(name, &params, &Patch::Merge(patch)).await?;
            tracing::info!(node = name, taint = key, "removed the taint");
        }
    }
    Ok(())
}

fn node_row(node: &Node) -> NodeRow {
    let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_ref());
    let conditions = node.status.as_ref().and_then(|status| status.conditions.as_ref());
    let has = |kind: &str, status: &str, reason: Option<&str>| {
        conditions.into_iter().flatten().any(|condition| {
            let is_reason = reason.is_none() || condition.reason.as_deref() == reason;
            condition.type_ == kind && condition.status == status && is_reason
        })
    };
    NodeRow {
        node: NodeName::new(node.name_any()),
        taints: taints.into_iter().flatten().map(|taint| taint.key.clone()).collect(),
        is_ready: has("Ready", "True", None),
        is_network_up: has(CONDITION, "False", Some(REASON)),
    }
}

fn announced_row(node: &CiliumNode) -> AnnouncedRow {
    AnnouncedRow {
        node: NodeName::new(node.name_any()),
        is_announced: node.addresses(CILIUM_INTERNAL_IP).next().is_some(),
    }
}

fn agent_row(pod: &Pod) -> AgentRow {
    let node = pod.spec.as_ref().and_then(|spec| spec.node_name.as_ref());
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    AgentRow {
        pod: PodName {
            namespace: pod.metadata.namespace.clone().unwrap_or_default(),
            name: pod.name_any(),
        },
        node: node.map(NodeName::new),
        is_ready: conditions
            .into_iter()
            .flatten()
            .any(|condition| condition.type_ == "Ready" && condition.status == "True"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A node in words: `taint` our taint, `ready`, `up` the condition, `announced`, `pod-ready`, `pod-unready`.
    /// What is written to it, in words.
    #[track_caller]
    fn check(node: &str, expected: &str) {
        let is = |word: &str| node.split_whitespace().any(|w| w == word);
        let name = NodeName::new("n");
        let row = NodeRow {
            node: name.clone(),
            taints: ["other", "ours"][..if is("taint") { 2 } else { 1 }]
                .iter()
                .map(|key| (*key).to_owned())
                .collect(),
            is_ready: is("ready"),
            is_network_up: is("up"),
        };
        let announced = is("announced").then(|| name.clone()).into_iter().collect();
        let mut agents = BTreeMap::new();
        if is("pod-ready") || is("pod-unready") {
            agents.insert(name, is("pod-ready"));
        }
        let rules = Rules { taint: Some("ours".to_owned()), set_condition: true };
        let changes = decide([&row].into_iter(), &announced, &agents, &rules);
        let words = |change: &Change| {
            let words = [(change.untaint, "untaint"), (change.set_condition, "condition")];
            words.iter().filter(|(on, _)| *on).map(|(_, word)| *word).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(changes.iter().map(words).collect::<Vec<_>>().join(", "), expected, "{node}");
        let nothing = Rules { taint: None, set_condition: false };
        assert!(decide([&row].into_iter(), &announced, &agents, &nothing).is_empty());
    }

    #[test]
    fn a_node_is_freed_when_its_agent_is_ready() {
        check("taint", "");
        check("taint announced", "");
        check("taint ready", "");
        check("taint ready announced", "untaint condition");
        check("taint ready announced up", "untaint");
        check("ready announced", "condition");
        check("ready announced up", "");
    }

    #[test]
    fn the_agents_pod_has_the_last_word() {
        check("taint ready announced pod-unready", "");
        check("taint pod-ready", "untaint condition");
    }

    #[test]
    fn nodes_are_read() {
        let node = |status: serde_json::Value| {
            let node = json!({
                "metadata": {"name": "n"},
                "spec": {"taints": [{"key": "k", "effect": "NoSchedule"}]},
                "status": status,
            });
            node_row(&serde_json::from_value(node).unwrap())
        };
        let row = node(json!({"conditions": [
            {"type": "Ready", "status": "True"},
            {"type": "NetworkUnavailable", "status": "False", "reason": "RouteCreated"},
        ]}));
        assert_eq!(
            (row.taints, row.is_ready, row.is_network_up),
            (vec!["k".to_owned()], true, false)
        );
        let row = node(json!({"conditions": [
            {"type": "NetworkUnavailable", "status": "False", "reason": "CiliumIsUp"},
        ]}));
        assert_eq!((row.is_ready, row.is_network_up), (false, true));
    }
}
