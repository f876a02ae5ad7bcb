//! Gives every node prefixes for its pods: `CiliumNode.spec.ipam.podCIDRs`.
//!
//! ```text
//! watch CiliumNodes ─► nodes ─► Allocator ─► assignments ─► Reconciler ─► patches of CiliumNodes
//! ```

use std::collections::BTreeMap;

use api::crd::{CiliumNode, FIELD_MANAGER_OPERATOR};
use futures::{StreamExt, stream};
use ipnet::IpNet;
use kube::api::{ListParams, Patch, PatchParams};
use kube::runtime::watcher;
use kube::{Api, ResourceExt};
use model::NodeName;
use serde_json::{Value, json};
use statedb::job::{Group, Job};
use statedb::reconciler::{Pace, TargetError};
use statedb::{Initializer, Outcome, Plan, Reconciler, Row, Table, Target, Writer};

use crate::allocator::{Allocator, Claim};
use crate::metrics::{self, Metrics};
use crate::pool::Pool;
use crate::watch::reflect;

/// Patches under way at once.
const CONCURRENT_PATCHES_MAX: usize = 16;

/// A CiliumNode as far as addresses go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeRow {
    /// The node.
    pub node: NodeName,
    /// Its prefixes.
    pub cidrs: Vec<IpNet>,
    /// Creation time, RFC 3339 in UTC, so that texts compare as times do.
    pub created: String,
}

impl Row for NodeRow {
    type Key = NodeName;
    const HEADERS: &'static [&'static str] = &["NODE", "POD CIDRS", "CREATED"];

    fn key(&self) -> NodeName {
        self.node.clone()
    }

    fn cells(&self) -> Vec<String> {
        vec![self.node.to_string(), words(&self.cidrs), self.created.clone()]
    }
}

/// What a node's object shall say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AssignmentRow {
    /// The node.
    pub node: NodeName,
    /// Its prefixes.
    pub cidrs: Vec<IpNet>,
    /// Why it lacks one; empty when it lacks none.
    pub error: String,
}

impl Row for AssignmentRow {
    type Key = NodeName;
    const HEADERS: &'static [&'static str] = &["NODE", "POD CIDRS", "ERROR"];

    fn key(&self) -> NodeName {
        self.node.clone()
    }

    fn cells(&self) -> Vec<String> {
        vec![self.node.to_string(), words(&self.cidrs), self.error.clone()]
    }
}

fn words(cidrs: &[IpNet]) -> String {
    cidrs.iter().map(IpNet::to_string).collect::<Vec<_>>().join(", ")
}

/// Starts the jobs that give prefixes out of `pools`.
///
/// Without pools there is nothing to give: the nodes' prefixes are someone else's.
pub fn start(jobs: &Group, client: &kube::Client, pools: Vec<Pool>, metrics: Metrics) {
    if pools.is_empty() {
        return;
    }
    let api: Api<CiliumNode> = Api::all(client.clone());
    let (nodes, node_writer) = Table::new("nodes");
    let (assignments, assignment_writer) = Table::new("assignments");

    let watched = node_writer.initializer("ciliumnodes");
    jobs.spawn("watch-nodes", |job| {
        reflect(api.clone(), watcher::Config::default(), node_writer, watched, row, job)
    });
    let assigned = assignment_writer.initializer("allocator");
    jobs.spawn("assign-pod-cidrs", |job| {
        assign(nodes, assignment_writer, assigned, Allocator::new(pools), metrics, job)
    });
    let target = NodeTarget { api, known: BTreeMap::new() };
    let (reconciler, _progress) = Reconciler::new(&assignments, target, Pace::default());
    jobs.spawn("write-pod-cidrs", |job| async move {
        reconciler.run(job.stop).await;
        Ok::<(), TargetError>(())
    });
}

fn row(node: &CiliumNode) -> NodeRow {
    let created = node.metadata.creation_timestamp.as_ref();
    NodeRow {
        node: NodeName::new(node.name_any()),
        cidrs: node.pod_cidrs().collect(),
        created: created.map(|time| time.0.to_string()).unwrap_or_default(),
    }
}

/// Computes what every node shall have, each time the nodes change. Nothing is given before all
/// nodes are known: what looks free may be a node's that was not listed yet.
async fn assign(
    nodes: Table<NodeRow>,
    writer: Writer<AssignmentRow>,
    initializer: Initializer<AssignmentRow>,
    mut allocator: Allocator,
    metrics: Metrics,
    job: Job,
) -> Result<(), TargetError> {
    let mut initializer = Some(initializer);
    let mut changes = nodes.changes();
    loop {
        tokio::select! {
            () = job.stop.cancelled() => return Ok(()),
            alive = changes.changed() => if !alive { return Ok(()) },
        }
        changes.take();
        if !changes.snapshot().is_initialized() {
            continue;
        }
        let mut rows: Vec<&NodeRow> = changes.snapshot().rows().map(|row| &**row).collect();
        rows.sort_by_key(|row| (&row.created, &row.node));
        let claims: Vec<Claim> = rows
            .into_iter()
            .map(|row| Claim { node: row.node.clone(), cidrs: row.cidrs.clone() })
            .collect();
        let assignments = allocator.assign(&claims);
        let failing = assignments.values().filter(|assignment| assignment.error.is_some()).count();
        writer.replace(assignments.into_iter().map(|(node, assignment)| AssignmentRow {
            node,
            cidrs: assignment.cidrs,
            error: assignment.error.map(|error| error.to_string()).unwrap_or_default(),
        }));
        initializer.take().into_iter().for_each(Initializer::done);
        for (category, count) in [("total", claims.len()), ("in-deficit", failing)] {
            metrics.set(&metrics::IPAM_NODES, &[("category", category)], count as f64);
        }
        match failing {
            0 => job.ok(format!("{} nodes", claims.len())),
            _ => job.degraded(format!("{failing} of {} nodes lack a podCIDR", claims.len())),
        }
    }
}

/// What a node's object says, as far as it is ours to write.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Written {
    cidrs: Vec<IpNet>,
    error: String,
}

/// The objects, written by patches.
struct NodeTarget {
    api: Api<CiliumNode>,
    /// What the objects said when we last saw or wrote them: spec and status are two patches, and
    /// mostly one is enough.
    known: BTreeMap<NodeName, Written>,
}

impl Target<AssignmentRow> for NodeTarget {
    type Value = Written;

    fn desired(&self, row: &AssignmentRow) -> Option<Written> {
        Some(Written { cidrs: row.cidrs.clone(), error: row.error.clone() })
    }

    async fn dump(&mut self) -> Result<Vec<(NodeName, Written)>, TargetError> {
        let nodes = self.api.list(&ListParams::default()).await?;
        self.known = nodes
            .into_iter()
            .map(|node| {
                let cidrs = node.pod_cidrs().collect();
                let error = node.status.ipam.operator_status.error.clone();
                (NodeName::new(node.name_any()), Written { cidrs, error })
            })
            .collect();
        Ok(self.known.clone().into_iter().collect())
    }

    async fn apply(&mut self, plan: Plan<NodeName, Written>) -> Outcome<NodeName> {
        let mut outcome = Outcome::default();
        for node in plan.deletes {
            // An object that is gone needs no writing; its prefixes are free in the allocator.
            self.known.remove(&node);
        }
        let patches = plan.upserts.into_iter().map(|(node, wanted)| {
            let (api, known) = (&self.api, self.known.get(&node).cloned().unwrap_or_default());
            async move {
                let result = write(api, &node, &known, &wanted).await;
                (node, wanted, result)
            }
        });
        let done: Vec<_> =
            stream::iter(patches).buffer_unordered(CONCURRENT_PATCHES_MAX).collect().await;
        for (node, wanted, result) in done {
            match result {
                Ok(()) => drop(self.known.insert(node, wanted)),
                Err(error) => {
                    // What has arrived is not known; the next attempt writes both parts.
                    self.known.remove(&node);
                    outcome.fail(node, error);
                }
            }
        }
        outcome
    }
}

/// Writes what differs. A node that is gone meanwhile is no error.
async fn write(
    api: &Api<CiliumNode>,
    node: &NodeName,
    known: &Written,
    wanted: &Written,
) -> kube::Result<()> {
    let params = PatchParams {
        field_manager: Some(FIELD_MANAGER_OPERATOR.to_owned()),
        ..PatchParams::default()
    };
    if known.cidrs != wanted.cidrs {
        let cidrs: Vec<String> = wanted.cidrs.iter().map(IpNet::to_string).collect();
        let patch = json!({"spec": {"ipam": {"podCIDRs": cidrs}}});
        absent_is_fine(api.patch(node.as_str(), &params, &Patch::Merge(patch)).await)?;
        tracing::info!(%node, pod_cidrs = words(&wanted.cidrs), "assigned pod CIDRs");
    }
    if known.error != wanted.error {
        let error = if wanted.error.is_empty() { Value::Null } else { json!(wanted.error) };
        let patch = json!({"status": {"ipam": {"operator-status": {"error": error}}}});
        absent_is_fine(api.patch_status(node.as_str(), &params, &Patch::Merge(patch)).await)?;
        if !wanted.error.is_empty() {
            tracing::error!(%node, error = wanted.error, "cannot assign pod CIDRs");
        }
    }
    Ok(())
}

fn absent_is_fine<T>(result: kube::Result<T>) -> kube::Result<()> {
    match result {
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        result => result.map(drop),
    }
}
