//! What makes workloads and Services live: the part of kube-controller-manager that a lab needs.
//!
//! ```text
//!   store ──every write──► which objects are concerned ──► queue (each object once)
//!                                                            │
//!   api ◄── carry out ◄── plan: a pure function ◄── fetch ◄──┘
//! ```
//!
//! A wake-up carries no data: the plan is made from what the store holds at that moment, so it
//! cannot be based on a stale view and needs no memory of what is under way. Each controller is one
//! function from objects to a [`Plan`]; all of them are carried out here, one after the other.
//!
//! Deletion of what is owned by deleted objects is the API server's garbage collection.

mod claim;
mod cronjob;
mod daemonset;
mod deployment;
mod endpoints;
mod job;
mod node;
mod pods;
mod replicaset;
mod revisions;
mod schedule;
mod statefulset;
#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::apiserver::{
    Api, ApiError, Change, DeleteOptions, Key, Object, Patch, Propagation, WriteOptions, Written,
    now,
};

/// How the writes of controllers are marked.
const MANAGER: &str = "kube-controller-manager";
/// When something that could not be written is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// Nothing is left alone for longer than this when it waits for a time.
const AGAIN_SECONDS_MAX: i64 = 24 * 60 * 60;
/// Parsed objects that are kept; more are parsed again when they are needed.
const PARSED_LEN_MAX: usize = 2_048;

/// Resources by the names of their stores.
pub(crate) const PODS: &str = "pods";
const NODES: &str = "nodes";
const SERVICES: &str = "services";
const ENDPOINTS: &str = "endpoints";
const SLICES: &str = "endpointslices.discovery.k8s.io";
const REVISIONS: &str = "controllerrevisions.apps";
const DEPLOYMENTS: &str = "deployments.apps";
const REPLICA_SETS: &str = "replicasets.apps";
const DAEMON_SETS: &str = "daemonsets.apps";
const STATEFUL_SETS: &str = "statefulsets.apps";
const JOBS: &str = "jobs.batch";
const CRON_JOBS: &str = "cronjobs.batch";
const LEASES: &str = "leases.coordination.k8s.io";
/// Where nodes say that they live.
const NODE_LEASES: &str = "kube-node-lease";
const CLAIMS: &str = "persistentvolumeclaims";
const VOLUMES: &str = "persistentvolumes";

/// What has a controller.
const CONTROLLED: [&str; 10] = [
    DEPLOYMENTS,
    REPLICA_SETS,
    DAEMON_SETS,
    STATEFUL_SETS,
    JOBS,
    CRON_JOBS,
    SERVICES,
    NODES,
    CLAIMS,
    VOLUMES,
];
/// What has pods of its own.
const OWNERS_OF_PODS: [&str; 4] = [REPLICA_SETS, DAEMON_SETS, STATEFUL_SETS, JOBS];

/// What is to be done about one object.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    /// In this order.
    actions: Vec<Action>,
    /// When to look again although nothing has changed, in seconds.
    again_after: Option<i64>,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Action {
    Create {
        resource: &'static str,
        object: Value,
    },
    Delete {
        resource: &'static str,
        object: Arc<Value>,
    },
    /// Merges into metadata and spec.
    Merge {
        resource: &'static str,
        object: Arc<Value>,
        patch: Value,
    },
    /// Replaces the whole status.
    Status {
        resource: &'static str,
        object: Arc<Value>,
        status: Value,
    },
    /// Tells users what was done, or why not.
    Event {
        about: Arc<Value>,
        warning: bool,
        reason: &'static str,
        message: String,
    },
}

impl Plan {
    fn push(&mut self, action: Action) {
        self.actions.push(action);
    }

    fn event(&mut self, about: &Arc<Value>, reason: &'static str, message: String) {
        self.push(Action::Event { about: about.clone(), warning: false, reason, message });
    }

    fn warning(&mut self, about: &Arc<Value>, reason: &'static str, message: String) {
        self.push(Action::Event { about: about.clone(), warning: true, reason, message });
    }

    /// Writes the status if it is another one.
    fn status(&mut self, resource: &'static str, object: &Arc<Value>, status: Value) {
        if object["status"] != status {
            self.push(Action::Status { resource, object: object.clone(), status });
        }
    }

    /// Looks again after so many seconds, or before.
    fn again(&mut self, seconds: i64) {
        let seconds = seconds.clamp(1, AGAIN_SECONDS_MAX);
        self.again_after = Some(self.again_after.map_or(seconds, |other| other.min(seconds)));
    }
}

/// An object that a controller has to look at.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Work {
    resource: &'static str,
    key: Key,
}

/// Runs all controllers until told to stop.
pub async fn run(api: Arc<Api>, stop: CancellationToken) {
    let mut changes = api.store.listen();
    let mut controllers = Controllers::new(api);
    controllers.resume();
    loop {
        while let Ok(written) = changes.try_recv() {
            controllers.note(&written);
        }
        controllers.note_timers(Instant::now());
        if let Some(work) = controllers.take() {
            controllers.reconcile(&work);
            // Many objects must not keep others from running.
            tokio::task::yield_now().await;
            if !stop.is_cancelled() {
                continue;
            }
            return;
        }
        let timer = controllers.timers.first().map(|(at, _)| *at);
        let timer = async {
            match timer {
                Some(at) => tokio::time::sleep_until(at.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = stop.cancelled() => return,
            () = timer => {}
            written = changes.recv() => match written {
                Some(written) => controllers.note(&written),
                None => return,
            },
        }
    }
}

struct Controllers {
    api: Arc<Api>,
    queue: VecDeque<Work>,
    queued: HashSet<Work>,
    timers: BTreeSet<(Instant, Work)>,
    /// Objects that have been parsed, by their unique ids.
    parsed: HashMap<Box<str>, (u64, Arc<Value>)>,
}

impl Controllers {
    fn new(api: Arc<Api>) -> Self {
        Self {
            api,
            queue: VecDeque::new(),
            queued: HashSet::new(),
            timers: BTreeSet::new(),
            parsed: HashMap::new(),
        }
    }

    /// Everything that an earlier process left.
    fn resume(&mut self) {
        for resource in CONTROLLED {
            let (_, objects) = self.api.store.list(&resource.into());
            for key in objects.keys() {
                self.enqueue(resource, key);
            }
        }
    }

    fn enqueue(&mut self, resource: &'static str, key: &Key) {
        let work = Work { resource, key: key.clone() };
        if self.queued.insert(work.clone()) {
            self.queue.push_back(work);
        }
    }

    fn take(&mut self) -> Option<Work> {
        let work = self.queue.pop_front()?;
        self.queued.remove(&work);
        Some(work)
    }

    fn note_timers(&mut self, now: Instant) {
        while let Some((at, work)) = self.timers.first().cloned() {
            if at > now {
                return;
            }
            self.timers.pop_first();
            self.enqueue(work.resource, &work.key);
        }
    }

    /// Which objects a write concerns.
    fn note(&mut self, written: &Written) {
        let (object, previous) = (&written.event.object, written.event.previous.as_deref());
        if let Some(resource) = CONTROLLED.into_iter().find(|one| **one == *written.resource) {
            self.enqueue(resource, &object.key);
        }
        match &*written.resource {
            PODS => {
                self.note_owners(object, previous, &OWNERS_OF_PODS);
                self.note_services(object, previous);
            }
            REPLICA_SETS => self.note_owners(object, previous, &[DEPLOYMENTS]),
            JOBS => self.note_owners(object, previous, &[CRON_JOBS]),
            CLAIMS => self.enqueue(VOLUMES, &Key::new("", &claim::volume_name(&object.uid))),
            NODES => self.note_node(written),
            ENDPOINTS => self.enqueue(SERVICES, &object.key),
            SLICES => {
                let service =
                    object.labels.iter().find(|(key, _)| **key == *endpoints::SERVICE_NAME);
                if let Some((_, name)) = service {
                    self.enqueue(SERVICES, &Key::new(&object.key.namespace, name));
                }
            }
            _ => {}
        }
        if written.event.change == Change::Deleted {
            self.parsed.remove(&object.uid);
        }
    }

    /// Those that own the object or owned it; without owners, those that may adopt it.
    fn note_owners(&mut self, object: &Object, previous: Option<&Object>, kinds: &[&'static str]) {
        let before = previous.into_iter().flat_map(|previous| previous.owners.iter());
        for owner in object.owners.iter().chain(before) {
            let Some((resource, key)) = self.api.store.by_uid(owner) else { continue };
            if let Some(kind) = kinds.iter().find(|kind| ***kind == *resource) {
                self.enqueue(kind, &key);
            }
        }
        if !object.owners.is_empty() {
            return;
        }
        for kind in kinds {
            let (_, objects) = self.api.store.list(&(*kind).into());
            let start = Key::new(&object.key.namespace, "");
            let here =
                objects.range(start..).take_while(|(key, _)| key.namespace == object.key.namespace);
            let keys: Vec<Key> = here.map(|(key, _)| key.clone()).collect();
            keys.iter().for_each(|key| self.enqueue(kind, key));
        }
    }

    fn note_services(&mut self, pod: &Object, previous: Option<&Object>) {
        for service in self.in_namespace(SERVICES, &pod.key.namespace) {
            let selects = |pod: &Object| {
                let selector = service["spec"]["selector"].as_object();
                selector.is_some_and(|terms| {
                    terms.iter().all(|(key, value)| {
                        pod.labels.iter().any(|(k, v)| **k == **key && value == &**v)
                    })
                })
            };
            if selects(pod) || previous.is_some_and(selects) {
                self.enqueue(SERVICES, &key_of(&service));
            }
        }
    }

    /// Nodes report often; what DaemonSets go by changes rarely.
    fn note_node(&mut self, written: &Written) {
        let event = &written.event;
        let placed = |object: &Object| {
            let value = object.value();
            (value["metadata"]["labels"].clone(), value["spec"].clone())
        };
        let same = event.change == Change::Modified
            && event.previous.as_ref().is_some_and(|old| placed(old) == placed(&event.object));
        if same {
            return;
        }
        let (_, objects) = self.api.store.list(&DAEMON_SETS.into());
        for key in objects.keys() {
            self.enqueue(DAEMON_SETS, key);
        }
    }

    fn parse(&mut self, object: &Object) -> Arc<Value> {
        match self.parsed.get(&object.uid) {
            Some((version, value)) if *version == object.resource_version => value.clone(),
            _ => {
                let value = Arc::new(object.value());
                if self.parsed.len() >= PARSED_LEN_MAX {
                    self.parsed.clear();
                }
                self.parsed.insert(object.uid.clone(), (object.resource_version, value.clone()));
                value
            }
        }
    }

    fn in_namespace(&mut self, resource: &str, namespace: &str) -> Vec<Arc<Value>> {
        let (_, objects) = self.api.store.list(&resource.into());
        let all = objects.range(Key::new(namespace, "")..);
        let here = all.take_while(|(key, _)| *key.namespace == *namespace || namespace.is_empty());
        here.map(|(_, object)| self.parse(object)).collect()
    }

    /// What an object owns, and what it could adopt.
    fn candidates(&mut self, resource: &str, owner: &Value) -> Vec<Arc<Value>> {
        let namespace = owner["metadata"]["namespace"].as_str().unwrap_or_default();
        let uid = owner["metadata"]["uid"].as_str().unwrap_or_default();
        let selector = &owner["spec"]["selector"];
        let (_, objects) = self.api.store.list(&resource.into());
        let all = objects.range(Key::new(namespace, "")..);
        let here = all.take_while(|(key, _)| *key.namespace == *namespace);
        let orphan = |object: &Object| {
            let labels = object.labels.iter().map(|(k, v)| ((**k).to_owned(), json!(**v)));
            object.owners.is_empty()
                && !object.is_being_deleted
                && selects(selector, &Value::Object(labels.collect()))
        };
        here.filter(|(_, object)| object.owners.iter().any(|one| **one == *uid) || orphan(object))
            .map(|(_, object)| self.parse(object))
            .collect()
    }

    fn reconcile(&mut self, work: &Work) {
        let Some(object) = self.api.store.get(work.resource, &work.key) else {
            if work.resource == SERVICES {
                self.remove_endpoints(work);
            }
            return;
        };
        let object = self.parse(&object);
        let namespace = &work.key.namespace;
        let time = k8s_openapi::jiff::Timestamp::now().as_second();
        let plan = match work.resource {
            SERVICES => {
                let pods = self.in_namespace(PODS, namespace);
                let slices = self.in_namespace(SLICES, namespace);
                let current = self.api.store.get(ENDPOINTS, &work.key).map(|one| self.parse(&one));
                endpoints::plan(&object, &pods, &slices, current.as_ref())
            }
            NODES => self.plan_node(&object, time),
            CRON_JOBS => {
                let uid = pods::uid(&object).to_owned();
                let mut jobs = self.in_namespace(JOBS, namespace);
                jobs.retain(|job| {
                    let owners = job["metadata"]["ownerReferences"].as_array();
                    owners.into_iter().flatten().any(|owner| owner["uid"] == *uid)
                });
                cronjob::plan(&object, &jobs, cronjob::zone(&object), time)
            }
            CLAIMS => {
                let volume = Key::new("", &claim::volume_name(pods::uid(&object)));
                let volume = self.api.store.get(VOLUMES, &volume).map(|one| self.parse(&one));
                claim::plan(&object, volume.as_ref())
            }
            VOLUMES => {
                let claim = &object["spec"]["claimRef"];
                let text = |field: &str| claim[field].as_str().unwrap_or_default();
                let key = Key::new(text("namespace"), text("name"));
                let claim = self.api.store.get(CLAIMS, &key).map(|one| self.parse(&one));
                claim::plan_volume(&object, claim.as_ref())
            }
            DEPLOYMENTS => {
                let candidates = self.candidates(REPLICA_SETS, &object);
                let sets = pods::claim(REPLICA_SETS, &object, &candidates);
                let owned: Vec<_> =
                    sets.owned.iter().flat_map(|set| self.candidates(PODS, set)).collect();
                after(sets, |sets| deployment::plan(&object, sets, &owned, time))
            }
            kind => {
                let candidates = self.candidates(PODS, &object);
                let pods = pods::claim(PODS, &object, &candidates);
                let revisions = self.candidates(REVISIONS, &object);
                match kind {
                    REPLICA_SETS => after(pods, |pods| replicaset::plan(&object, pods, time)),
                    STATEFUL_SETS => {
                        let claims = self.in_namespace(CLAIMS, namespace);
                        after(pods, |pods| {
                            statefulset::plan(&object, pods, &revisions, &claims, time)
                        })
                    }
                    DAEMON_SETS => {
                        let nodes = self.in_namespace(NODES, "");
                        after(pods, |pods| daemonset::plan(&object, pods, &nodes, &revisions, time))
                    }
                    _ => after(pods, |pods| job::plan(&object, pods, time)),
                }
            }
        };
        self.carry_out(work, plan);
    }

    fn plan_node(&mut self, node: &Arc<Value>, now: i64) -> Plan {
        let lease = self.api.store.get(LEASES, &Key::new(NODE_LEASES, pods::name(node)));
        let lease = lease.map(|lease| self.parse(&lease));
        let mut pods = Vec::new();
        if node::concerns_pods(node, lease.as_deref(), now) {
            pods = self.in_namespace(PODS, "");
            pods.retain(|pod| pod["spec"]["nodeName"] == node["metadata"]["name"]);
        }
        node::plan(node, lease.as_deref(), &pods, now)
    }

    /// Endpoints have no owner: they go when their Service has gone.
    fn remove_endpoints(&mut self, work: &Work) {
        let Some(object) = self.api.store.get(ENDPOINTS, &work.key) else { return };
        let object = self.parse(&object);
        if endpoints::is_ours(&object) {
            self.carry_out(
                work,
                Plan {
                    actions: vec![Action::Delete { resource: ENDPOINTS, object }],
                    again_after: None,
                },
            );
        }
    }

    fn carry_out(&mut self, work: &Work, plan: Plan) {
        let mut again = plan.again_after.map(|seconds| Duration::from_secs(seconds.unsigned_abs()));
        for action in plan.actions {
            let created = match carry_out(&self.api, &action) {
                Ok(created) => created,
                Err(error) => {
                    self.refused(work, &action, &error);
                    again = Some(again.map_or(RETRY, |other| other.min(RETRY)));
                    break;
                }
            };
            if let (Some(name), Action::Create { resource: PODS, object }) = (created, &action)
                && object["metadata"]["generateName"].is_string()
            {
                self.tell(work, false, "SuccessfulCreate", format!("Created pod: {name}"));
            }
        }
        self.timers.retain(|(_, other)| other != work);
        if let Some(after) = again {
            self.timers.insert((Instant::now() + after, work.clone()));
        }
    }

    fn refused(&mut self, work: &Work, action: &Action, error: &ApiError) {
        if error.is_not_found() || error.is_conflict() || error.is_already_exists() {
            // Gone or changed meanwhile: the next look sees it.
            tracing::debug!(?work, %error, "overtaken");
            return;
        }
        tracing::debug!(?work, %error, "cannot be done now");
        if let Action::Create { object, .. } = action {
            let kind = object["kind"].as_str().unwrap_or("object").to_lowercase();
            self.tell(work, true, "FailedCreate", format!("Error creating: {kind}s {error}"));
        }
    }

    fn tell(&mut self, work: &Work, warning: bool, reason: &'static str, message: String) {
        let Some(about) = self.api.store.get(work.resource, &work.key) else { return };
        let about = self.parse(&about);
        if let Err(error) = record(&self.api, &about, warning, reason, &message) {
            // The namespace may be about to go, with everything in it.
            tracing::debug!(?work, %error, "event {reason}");
        }
    }
}

/// What is adopted or released counts differently from then on: the plan comes after that.
fn after(claimed: pods::Claimed, plan: impl FnOnce(&[Arc<Value>]) -> Plan) -> Plan {
    match claimed.actions {
        actions if actions.is_empty() => plan(&claimed.owned),
        actions => Plan { actions, again_after: None },
    }
}

fn key_of(object: &Value) -> Key {
    let text = |name: &str| object["metadata"][name].as_str().unwrap_or_default();
    Key::new(text("namespace"), text("name"))
}

/// Does it; gives the name of what was created.
fn carry_out(api: &Api, action: &Action) -> Result<Option<Box<str>>, ApiError> {
    let options = WriteOptions::by(MANAGER);
    match action {
        Action::Create { resource, object } => {
            let key = key_of(object);
            let target = api.target(resource, &key.namespace, "")?;
            let created = api.create(&target, object.clone(), &options)?;
            return Ok(Some(created.object.key.name.clone()));
        }
        Action::Delete { resource, object } => {
            let key = key_of(object);
            let target = api.target(resource, &key.namespace, &key.name)?;
            let options = DeleteOptions {
                uid: object["metadata"]["uid"].as_str().map(str::to_owned),
                propagation: Propagation::Background,
                ..DeleteOptions::default()
            };
            match api.delete(&target, &options) {
                Err(error) if !error.is_not_found() => return Err(error),
                _ => {}
            }
        }
        Action::Merge { resource, object, patch } => {
            let key = key_of(object);
            let target = api.target(resource, &key.namespace, &key.name)?;
            let mut patch = patch.clone();
            patch["metadata"]["uid"] = object["metadata"]["uid"].clone();
            api.patch(&target, &Patch::Merge(patch), &options)?;
        }
        Action::Status { resource, object, status } => {
            let key = key_of(object);
            let mut target = api.target(resource, &key.namespace, &key.name)?;
            loop {
                target.subresource.clear();
                let mut value = api.get(&target)?.value();
                if value["metadata"]["uid"] != object["metadata"]["uid"] {
                    break;
                }
                value["status"] = status.clone();
                "status".clone_into(&mut target.subresource);
                match api.update(&target, value, &options) {
                    // Somebody else was faster, and changed something else.
                    Err(error) if error.is_conflict() => {}
                    Err(error) => return Err(error),
                    Ok(_) => break,
                }
            }
        }
        Action::Event { about, warning, reason, message } => {
            record(api, about, *warning, reason, message)?;
        }
    }
    Ok(None)
}

/// Records an event. One that says the same as one before is counted there.
fn record(
    api: &Api,
    about: &Value,
    warning: bool,
    reason: &str,
    message: &str,
) -> Result<(), ApiError> {
    let key = key_of(about);
    let kind = about["kind"].as_str().unwrap_or_default();
    let component = match kind {
        "Service" => "endpoint-slice-controller".to_owned(),
        kind => format!("{}-controller", kind.to_lowercase()),
    };
    let time = now();
    // What has no namespace is told in the default one.
    let namespace = Some(&*key.namespace).filter(|one| !one.is_empty()).unwrap_or("default");
    // The same words about the same object have the same name.
    let hash = pods::hash(&json!([about["metadata"]["uid"], reason, message]));
    let name = format!("{}.{hash}", key.name);
    let target = api.target("events", namespace, &name)?;
    let options = WriteOptions::by(MANAGER);
    if let Ok(known) = api.get(&target) {
        let count = known.value()["count"].as_i64().unwrap_or(1) + 1;
        let patch = json!({ "count": count, "lastTimestamp": time });
        return api.patch(&target, &Patch::Merge(patch), &options).map(drop);
    }
    let event = json!({
        "metadata": { "name": name, "namespace": namespace },
        "involvedObject": { "apiVersion": about["apiVersion"], "kind": kind, "namespace": key.namespace,
            "name": key.name, "uid": about["metadata"]["uid"],
            "resourceVersion": about["metadata"]["resourceVersion"] },
        "type": if warning { "Warning" } else { "Normal" }, "reason": reason, "message": message,
        "count": 1, "firstTimestamp": time, "lastTimestamp": time,
        "source": { "component": component }, "reportingComponent": component, "reportingInstance": "",
    });
    let target = api.target("events", namespace, "")?;
    api.create(&target, event, &options).map(drop)
}

/// Whether a `LabelSelector` selects an object with these labels. One without terms selects all.
pub(crate) fn selects(selector: &Value, labels: &Value) -> bool {
    let equal = selector["matchLabels"].as_object().into_iter().flatten();
    let mut expressions = selector["matchExpressions"].as_array().into_iter().flatten();
    equal.into_iter().all(|(key, value)| labels[key.as_str()] == *value)
        && expressions.all(|term| {
            let value = &labels[term["key"].as_str().unwrap_or_default()];
            let listed = || term["values"].as_array().is_some_and(|values| values.contains(value));
            match term["operator"].as_str().unwrap_or_default() {
                "In" => listed(),
                "NotIn" => !listed(),
                "Exists" => !value.is_null(),
                "DoesNotExist" => value.is_null(),
                _ => false,
            }
        })
}
