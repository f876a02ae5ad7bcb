//! Conditions of policies: whether they make sense, and whether all nodes enforce them.
//!
//! ```text
//!  watch: policies ────┐
//!  watch: CiliumNodes ─┼─► Tracker ─► conditions that differ ─► patches of status
//!  watch: leases ······┘   (one per node: what it enforces, see api::policy_report)
//! ```
//!
//! A policy costs at most two writes per change, whatever the number of nodes. `Enforced` is said of one
//! generation once: a node that joins later enforces it before it takes pods.

use std::collections::{BTreeMap, BTreeSet};

use api::config::Config;
use api::crd::{CiliumNode, FIELD_MANAGER_OPERATOR};
use api::policy::{
    CiliumClusterwideNetworkPolicy, CiliumNetworkPolicy, Context, PolicyObject, PolicyStatus,
};
use api::policy_report::{LABEL, PolicyReport};
use futures::{StreamExt, stream};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams};
use kube::runtime::watcher;
use kube::{Api, Client, Resource, ResourceExt};
use policy::{PolicyId, PolicyKind};
use serde::de::DeserializeOwned;
use serde_json::json;
use statedb::job::{Group, Job};
use statedb::{Change, Row, Table};
use tokio::time::Duration;

use crate::watch::reflect;

/// The policy was accepted.
const VALID: &str = "Valid";
/// All nodes enforce it.
const ENFORCED: &str = "Enforced";
/// Some of it is not enforced yet.
const PARTIAL: &str = "PartiallySupported";
/// Nodes that a message names at most.
const NODES_NAMED_MAX: usize = 5;
/// Patches under way at once.
const CONCURRENT_PATCHES_MAX: usize = 16;
/// Wait before patches that failed are tried again.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// A policy object as far as its conditions go.
#[derive(Clone, Debug, PartialEq)]
pub struct PolicyRow {
    /// Which.
    pub id: PolicyId,
    /// `metadata.generation`.
    pub generation: i64,
    /// `metadata.resourceVersion`.
    pub version: u64,
    /// What is not enforced yet of a policy that makes sense; why it does not, of another.
    pub read: Result<Vec<String>, String>,
    /// What its status says now.
    pub conditions: Vec<Condition>,
}

impl Row for PolicyRow {
    type Key = PolicyId;
    const HEADERS: &'static [&'static str] = &["POLICY", "GENERATION", "VALID"];

    fn key(&self) -> PolicyId {
        self.id.clone()
    }

    fn cells(&self) -> Vec<String> {
        let valid = self.read.as_ref().err().cloned().unwrap_or_else(|| "true".to_owned());
        vec![self.id.to_string(), self.generation.to_string(), valid]
    }
}

/// What a node enforces.
#[derive(Clone, Debug, PartialEq)]
pub struct ReportRow(pub PolicyReport);

impl Row for ReportRow {
    type Key = String;
    const HEADERS: &'static [&'static str] = &["NODE", "VERSIONS"];

    fn key(&self) -> String {
        self.0.node.clone()
    }

    fn cells(&self) -> Vec<String> {
        let versions = self.0.versions.iter().map(|(kind, version)| format!("{kind}={version}"));
        vec![self.0.node.clone(), versions.collect::<Vec<_>>().join(",")]
    }
}

/// A node that should enforce policies.
#[derive(Clone, Debug, PartialEq)]
pub struct NodeRow(pub String);

impl Row for NodeRow {
    type Key = String;
    const HEADERS: &'static [&'static str] = &["NODE"];

    fn key(&self) -> String {
        self.0.clone()
    }

    fn cells(&self) -> Vec<String> {
        vec![self.0.clone()]
    }
}

/// What conditions depend on. Pure.
#[derive(Default)]
pub struct Tracker {
    policies: BTreeMap<PolicyId, Tracked>,
    reports: BTreeMap<String, PolicyReport>,
    nodes: BTreeSet<String>,
    /// Policies whose conditions may have to be written.
    due: BTreeSet<PolicyId>,
}

struct Tracked {
    row: PolicyRow,
    /// The first version of this generation that we saw: who enforces it enforces the generation.
    since: u64,
}

impl Tracker {
    /// A policy is there or has changed, or is gone.
    pub fn policy(&mut self, change: &Change<PolicyRow>) {
        match change {
            Change::Upsert(row) => {
                let known = self.policies.get(&row.id);
                let same = known.filter(|known| known.row.generation == row.generation);
                let since = same.map_or(row.version, |known| known.since);
                self.policies.insert(row.id.clone(), Tracked { row: (**row).clone(), since });
                self.due.insert(row.id.clone());
            }
            Change::Delete(row) => {
                self.policies.remove(&row.id);
                self.due.remove(&row.id);
            }
        }
    }

    /// A node enforces something new, or says nothing any more.
    pub fn report(&mut self, change: &Change<ReportRow>) {
        match change {
            Change::Upsert(row) => self.reports.insert(row.0.node.clone(), row.0.clone()),
            Change::Delete(row) => self.reports.remove(&row.0.node),
        };
    }

    /// A node is there, or is gone.
    pub fn node(&mut self, change: &Change<NodeRow>) {
        match change {
            Change::Upsert(row) => self.nodes.insert(row.0.clone()),
            Change::Delete(row) => self.nodes.remove(&row.0),
        };
    }

    /// The conditions that policies should have and have not.
    pub fn differences(&mut self, now: Timestamp) -> Vec<(PolicyId, Vec<Condition>)> {
        let mut differences = Vec::new();
        let mut settled = Vec::new();
        for id in &self.due {
            let Some(tracked) = self.policies.get(id) else { continue };
            let wanted = self.conditions(tracked, now);
            let is_enforced = is_true(&wanted, ENFORCED, tracked.row.generation);
            if is_same(&wanted, &tracked.row.conditions) {
                // It is looked at again when it changes; one that waits for nodes, when they report.
                if is_enforced || tracked.row.read.is_err() {
                    settled.push(id.clone());
                }
            } else {
                differences.push((id.clone(), wanted));
            }
        }
        settled.iter().for_each(|id| {
            self.due.remove(id);
        });
        differences
    }

    fn conditions(&self, tracked: &Tracked, now: Timestamp) -> Vec<Condition> {
        let row = &tracked.row;
        let ours = |kind: &str| [VALID, ENFORCED, PARTIAL].contains(&kind);
        let mut conditions: Vec<Condition> =
            row.conditions.iter().filter(|c| !ours(&c.type_)).cloned().collect();
        let mut add = |kind: &str, status: bool, reason: &str, message: String| {
            conditions.push(condition(row, kind, status, reason, message, now));
        };
        match &row.read {
            Err(why) => {
                add(VALID, false, "Invalid", why.clone());
                let message = "a version that is not valid is not enforced; \
                    the last one that was valid stays in force";
                add(ENFORCED, false, "Invalid", message.to_owned());
            }
            Ok(notes) => {
                add(VALID, true, "Accepted", "Policy validation succeeded".to_owned());
                if !notes.is_empty() {
                    let message = format!("{}; the ports concerned are denied", notes.join("; "));
                    add(PARTIAL, true, "NotEnforcedYet", message);
                }
                let late = self.late_nodes(row.id.kind, tracked.since);
                if is_true(&row.conditions, ENFORCED, row.generation)
                    || (late.is_empty() && !self.nodes.is_empty())
                {
                    add(ENFORCED, true, "Realized", "All nodes enforce this version".to_owned());
                } else {
                    add(ENFORCED, false, "Pending", self.waiting_for(&late));
                }
            }
        }
        conditions
    }

    /// The nodes that do not enforce this version yet.
    fn late_nodes(&self, kind: PolicyKind, version: u64) -> Vec<&str> {
        let reached = |node: &String| {
            let report = self.reports.get(node).and_then(|report| report.versions.get(&kind));
            report.is_some_and(|reached| *reached >= version)
        };
        self.nodes.iter().filter(|node| !reached(node)).map(String::as_str).collect()
    }

    /// Who is waited for. It changes while nodes come in, and is written once: names are those of the
    /// first moment.
    fn waiting_for(&self, late: &[&str]) -> String {
        if late.len() > NODES_NAMED_MAX {
            return "Waiting for the nodes to enforce this version".to_owned();
        }
        format!("Waiting for {} to enforce this version", late.join(", "))
    }
}

/// A condition; what its status was before decides since when it has been so.
fn condition(
    row: &PolicyRow,
    kind: &str,
    status: bool,
    reason: &str,
    message: String,
    now: Timestamp,
) -> Condition {
    let status = if status { "True" } else { "False" };
    let before = row.conditions.iter().find(|c| c.type_ == kind && c.status == status);
    Condition {
        type_: kind.to_owned(),
        status: status.to_owned(),
        reason: reason.to_owned(),
        message,
        observed_generation: Some(row.generation),
        last_transition_time: before.map_or(Time(now), |c| c.last_transition_time.clone()),
    }
}

fn is_true(conditions: &[Condition], kind: &str, generation: i64) -> bool {
    conditions
        .iter()
        .any(|c| c.type_ == kind && c.status == "True" && c.observed_generation == Some(generation))
}

/// Whether the conditions say the same. Whom one waits for is told once, not with each node.
fn is_same(wanted: &[Condition], present: &[Condition]) -> bool {
    let said = |c: &Condition| {
        let message = if c.reason == "Pending" { String::new() } else { c.message.clone() };
        (c.type_.clone(), c.status.clone(), c.reason.clone(), message, c.observed_generation)
    };
    let all = |conditions: &[Condition]| conditions.iter().map(said).collect::<BTreeSet<_>>();
    all(wanted) == all(present)
}

/// Starts the watches and the job that writes.
pub fn start(jobs: &Group, client: &Client, config: &Config) {
    let context = Context {
        cluster_name: config.cluster_name.clone(),
        default_local_cluster: true,
        node_selectors: config.enable_node_selector_labels,
    };
    let namespaced = watch_policies::<CiliumNetworkPolicy>(
        jobs,
        client,
        "cilium-policies",
        &context,
        |policy| &policy.status,
    );
    let clusterwide = watch_policies::<CiliumClusterwideNetworkPolicy>(
        jobs,
        client,
        "cilium-clusterwide-policies",
        &context,
        |policy| &policy.status,
    );
    let (nodes, writer) = Table::new("policy-nodes");
    let complete = writer.initializer("watch");
    let api: Api<CiliumNode> = Api::all(client.clone());
    let row = |node: &CiliumNode| NodeRow(node.name_any());
    let everything = watcher::Config::default();
    jobs.spawn("watch-policy-nodes", |job| reflect(api, everything, writer, complete, row, job));
    let (reports, writer) = Table::new("policy-reports");
    let complete = writer.initializer("watch");
    let api: Api<Lease> = Api::namespaced(client.clone(), &config.k8s_namespace);
    let row = |lease: &Lease| ReportRow(PolicyReport::of(lease));
    let ours = watcher::Config::default().labels(LABEL);
    jobs.spawn("watch-policy-reports", |job| reflect(api, ours, writer, complete, row, job));
    let client = client.clone();
    jobs.spawn("policy-status", |job| run(job, client, [namespaced, clusterwide], nodes, reports));
}

/// Follows the policies of one language.
fn watch_policies<K>(
    jobs: &Group,
    client: &Client,
    what: &'static str,
    context: &Context,
    status: fn(&K) -> &PolicyStatus,
) -> Table<PolicyRow>
where
    K: Resource<DynamicType = ()> + PolicyObject + Clone + DeserializeOwned + std::fmt::Debug,
    K: Send + 'static,
{
    let (table, writer) = Table::new(what);
    let complete = writer.initializer("watch");
    let (api, context): (Api<K>, _) = (Api::all(client.clone()), context.clone());
    let row = move |object: &K| policy_row(object, status(object), &context);
    let everything = watcher::Config::default();
    jobs.spawn(format!("watch-{what}"), |job| reflect(api, everything, writer, complete, row, job));
    table
}

fn policy_row<K>(object: &K, status: &PolicyStatus, context: &Context) -> PolicyRow
where
    K: Resource<DynamicType = ()> + PolicyObject,
{
    let meta = object.meta();
    let version = meta.resource_version.as_deref().and_then(|text| text.parse().ok());
    let read = object.read(context);
    PolicyRow {
        id: object.policy_id(),
        generation: meta.generation.unwrap_or_default(),
        version: version.unwrap_or_default(),
        read: read
            .map(|accepted| accepted.notes.iter().map(ToString::to_string).collect())
            .map_err(|refused| refused.to_string()),
        conditions: status.conditions.clone(),
    }
}

/// Writes conditions that differ, for ever.
async fn run(
    job: Job,
    client: Client,
    policies: [Table<PolicyRow>; 2],
    nodes: Table<NodeRow>,
    reports: Table<ReportRow>,
) -> Result<(), String> {
    let [mut namespaced, mut clusterwide] = policies.each_ref().map(Table::changes);
    let (mut nodes, mut reports) = (nodes.changes(), reports.changes());
    let mut tracker = Tracker::default();
    let mut failed = false;
    loop {
        tokio::select! {
            () = job.stop.cancelled() => return Ok(()),
            _ = namespaced.changed() => {}
            _ = clusterwide.changed() => {}
            _ = nodes.changed() => {}
            _ = reports.changed() => {}
            () = tokio::time::sleep(RETRY_INTERVAL), if failed => {}
        }
        let changed = namespaced.take().into_iter().chain(clusterwide.take());
        changed.for_each(|change| tracker.policy(&change));
        nodes.take().iter().for_each(|change| tracker.node(change));
        reports.take().iter().for_each(|change| tracker.report(change));
        let are_known = nodes.snapshot().is_initialized()
            && reports.snapshot().is_initialized()
            && namespaced.snapshot().is_initialized()
            && clusterwide.snapshot().is_initialized();
        if !are_known {
            continue;
        }
        let patches = tracker.differences(Timestamp::now());
        let results = stream::iter(patches)
            .map(|(id, conditions)| write(&client, id, conditions))
            .buffer_unordered(CONCURRENT_PATCHES_MAX)
            .collect::<Vec<_>>();
        let results = tokio::select! {
            () = job.stop.cancelled() => return Ok(()),
            results = results => results,
        };
        let errors: Vec<String> = results.into_iter().filter_map(Result::err).collect();
        failed = !errors.is_empty();
        match errors.first() {
            None => job.ok(""),
            Some(error) => job.degraded(format!("{} policies: {error}", errors.len())),
        }
    }
}

async fn write(client: &Client, id: PolicyId, conditions: Vec<Condition>) -> Result<(), String> {
    let patch = Patch::Merge(json!({"status": {"conditions": conditions}}));
    let params = PatchParams {
        field_manager: Some(FIELD_MANAGER_OPERATOR.to_owned()),
        ..PatchParams::default()
    };
    let written = match id.kind {
        PolicyKind::CiliumNetworkPolicy => {
            let api: Api<CiliumNetworkPolicy> = Api::namespaced(client.clone(), &id.namespace);
            api.patch_status(&id.name, &params, &patch).await.map(drop)
        }
        _ => {
            let api: Api<CiliumClusterwideNetworkPolicy> = Api::all(client.clone());
            api.patch_status(&id.name, &params, &patch).await.map(drop)
        }
    };
    match written {
        // It was deleted meanwhile.
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        Err(error) => Err(format!("{id}: {error}")),
        Ok(()) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn row(generation: i64, version: u64, read: Result<Vec<String>, String>) -> PolicyRow {
        let id = PolicyId {
            kind: PolicyKind::CiliumNetworkPolicy,
            namespace: "default".to_owned(),
            name: "web".to_owned(),
        };
        PolicyRow { id, generation, version, read, conditions: Vec::new() }
    }

    fn report(node: &str, version: u64) -> Change<ReportRow> {
        let versions = [(PolicyKind::CiliumNetworkPolicy, version)].into();
        Change::Upsert(Arc::new(ReportRow(PolicyReport { node: node.to_owned(), versions })))
    }

    struct World {
        tracker: Tracker,
        row: PolicyRow,
    }

    impl World {
        fn new(nodes: &[&str], row: PolicyRow) -> Self {
            let mut tracker = Tracker::default();
            for node in nodes {
                tracker.node(&Change::Upsert(Arc::new(NodeRow((*node).to_owned()))));
            }
            let mut world = Self { tracker, row };
            world.tell();
            world
        }

        fn tell(&mut self) {
            self.tracker.policy(&Change::Upsert(Arc::new(self.row.clone())));
        }

        /// Writes what is to be written; says it, or nothing.
        #[track_caller]
        fn check(&mut self, expected: Option<&[(&str, &str, &str)]>) {
            let differences = self.tracker.differences(Timestamp::UNIX_EPOCH);
            let said = differences.first().map(|(_, conditions)| {
                let words = |c: &Condition| (c.type_.clone(), c.status.clone(), c.reason.clone());
                conditions.iter().map(words).collect::<Vec<_>>()
            });
            let expected = expected.map(|all| {
                let own = |(a, b, c): &(&str, &str, &str)| {
                    ((*a).to_owned(), (*b).to_owned(), (*c).to_owned())
                };
                all.iter().map(own).collect::<Vec<_>>()
            });
            assert_eq!(said, expected);
            if let Some((_, conditions)) = differences.into_iter().next() {
                self.row.conditions = conditions;
                self.row.version += 1;
                self.tell();
            }
        }
    }

    const PENDING: &[(&str, &str, &str)] =
        &[(VALID, "True", "Accepted"), (ENFORCED, "False", "Pending")];
    const DONE: &[(&str, &str, &str)] =
        &[(VALID, "True", "Accepted"), (ENFORCED, "True", "Realized")];

    #[test]
    fn a_policy_is_written_twice_whatever_the_number_of_nodes() {
        let mut world = World::new(&["a", "b", "c"], row(1, 10, Ok(vec![])));
        world.check(Some(PENDING));
        for node in ["a", "b"] {
            world.tracker.report(&report(node, 10));
            world.check(None);
        }
        world.tracker.report(&report("c", 9));
        world.check(None);
        world.tracker.report(&report("c", 12));
        world.check(Some(DONE));
        world.check(None);
        // A node that joins has it before it takes pods.
        world.tracker.node(&Change::Upsert(Arc::new(NodeRow("d".to_owned()))));
        world.check(None);
        // The next version begins anew.
        world.row = PolicyRow { generation: 2, version: 20, ..world.row.clone() };
        world.tell();
        world.check(Some(PENDING));
    }

    #[test]
    fn nodes_that_are_gone_are_not_waited_for() {
        let mut world = World::new(&["a", "b"], row(1, 10, Ok(vec![])));
        world.tracker.report(&report("a", 10));
        world.check(Some(PENDING));
        world.tracker.node(&Change::Delete(Arc::new(NodeRow("b".to_owned()))));
        world.check(Some(DONE));
    }

    #[test]
    fn refusals_and_what_is_not_enforced_are_told() {
        let mut world = World::new(&["a"], row(1, 10, Err("spec.egress: no".to_owned())));
        world.check(Some(&[(VALID, "False", "Invalid"), (ENFORCED, "False", "Invalid")]));
        assert!(world.row.conditions[0].message.contains("spec.egress: no"));
        world.check(None);
        world.row = row(2, 20, Ok(vec!["spec.ingress[0].toPorts[0].rules: L7 rules".to_owned()]));
        world.tell();
        world.tracker.report(&report("a", 20));
        world.check(Some(&[
            (VALID, "True", "Accepted"),
            (PARTIAL, "True", "NotEnforcedYet"),
            (ENFORCED, "True", "Realized"),
        ]));
    }
}
