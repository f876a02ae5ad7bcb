//! Deployments: one ReplicaSet per form of the pod template, and the way from one to the next.
//!
//! The newest ReplicaSet has the Deployment's template. A rolling update moves replicas over to it
//! in steps such that never more than `replicas + maxSurge` are asked for, and never fewer than
//! `replicas - maxUnavailable` are available because of it.

use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::pods::{self, condition, is_deleting, name, set_condition};
use super::{Action, DEPLOYMENTS, Plan, REPLICA_SETS};

const HASH_LABEL: &str = "pod-template-hash";
const REVISION: &str = "deployment.kubernetes.io/revision";
const REVISION_HISTORY: &str = "deployment.kubernetes.io/revision-history";
const DESIRED: &str = "deployment.kubernetes.io/desired-replicas";
const MAX: &str = "deployment.kubernetes.io/max-replicas";
/// Annotations of a Deployment that its ReplicaSets do not take over.
const OWN_ANNOTATIONS: [&str; 5] =
    ["kubectl.kubernetes.io/last-applied-configuration", REVISION, REVISION_HISTORY, DESIRED, MAX];

pub(super) fn plan(
    deployment: &Arc<Value>,
    sets: &[Arc<Value>],
    owned: &[Arc<Value>],
    now: i64,
) -> Plan {
    let mut plan = Plan::default();
    let mut sets: Vec<Arc<Value>> = sets.to_vec();
    sets.sort_by_key(|set| (created(set), name(set).to_owned()));
    let newest = sets.iter().find(|set| same_template(deployment, set)).cloned();
    let old: Vec<Arc<Value>> = sets
        .iter()
        .filter(|set| newest.as_ref().is_none_or(|n| !Arc::ptr_eq(n, set)))
        .cloned()
        .collect();
    if is_deleting(deployment) {
        plan.status(DEPLOYMENTS, deployment, status(deployment, newest.as_ref(), &sets, now));
        return plan;
    }
    let paused = deployment["spec"]["paused"] == true;
    let changes = Changes::new(deployment, newest.as_ref(), &old);
    let changes = if sets
        .iter()
        .any(|set| replicas(set) > 0 && annotation(set, DESIRED) != Some(wanted(deployment)))
    {
        changes.scale(&sets)
    } else if paused {
        changes
    } else if deployment["spec"]["strategy"]["type"] == "Recreate" {
        changes.recreate(owned)
    } else {
        changes.roll()
    };
    changes.into_actions(&mut plan, paused);
    let status = status(deployment, newest.as_ref(), &sets, now);
    if is_complete(deployment, &status) {
        remove_history(deployment, &old, &mut plan);
    } else if let Some(wait) = deadline(deployment, &status, now) {
        plan.again(wait);
    }
    plan.status(DEPLOYMENTS, deployment, status);
    plan
}

/// How many replicas each ReplicaSet is to have.
struct Changes<'a> {
    deployment: &'a Arc<Value>,
    newest: Option<&'a Arc<Value>>,
    old: &'a [Arc<Value>],
    new_replicas: i64,
    old_replicas: Vec<i64>,
    /// The newest ReplicaSet may be made now.
    may_create: bool,
}

impl<'a> Changes<'a> {
    /// No changes.
    fn new(
        deployment: &'a Arc<Value>,
        newest: Option<&'a Arc<Value>>,
        old: &'a [Arc<Value>],
    ) -> Self {
        let new_replicas = newest.map_or(0, |set| replicas(set));
        let old_replicas = old.iter().map(|set| replicas(set)).collect();
        Self { deployment, newest, old, new_replicas, old_replicas, may_create: true }
    }

    fn total(&self) -> i64 {
        self.new_replicas + self.old_replicas.iter().sum::<i64>()
    }

    /// The Deployment has another size: each part grows or shrinks in proportion.
    fn scale(mut self, sets: &[Arc<Value>]) -> Self {
        let wanted = wanted(self.deployment);
        if self.newest.is_some_and(|set| {
            self.old_replicas.iter().all(|n| *n == 0) || is_saturated(self.deployment, set)
        }) {
            self.new_replicas = wanted;
            self.old_replicas.fill(0);
            return self;
        }
        let active: Vec<usize> =
            (0..self.old.len()).filter(|n| self.old_replicas[*n] > 0).collect();
        if self.new_replicas == 0 && active.len() == 1 {
            self.old_replicas[active[0]] = wanted;
            return self;
        }
        let allowed = if wanted > 0 { wanted + surge(self.deployment) } else { 0 };
        let max =
            sets.iter().filter_map(|set| annotation(set, MAX)).max().unwrap_or(allowed).max(1);
        // Rounded, in numbers that cannot overflow.
        let share = |replicas: i64| {
            let (allowed, max) = (i128::from(allowed), i128::from(max));
            let share = (i128::from(replicas) * allowed * 2 + max) / (max * 2);
            i64::try_from(share).unwrap_or(i64::MAX).max(0)
        };
        if self.newest.is_some() {
            self.new_replicas = share(self.new_replicas);
        }
        for index in active {
            self.old_replicas[index] = share(self.old_replicas[index]);
        }
        // Rounding must not lead over the limit, nor leave anything out.
        let mut left = allowed - self.total();
        let largest = (0..self.old.len()).max_by_key(|n| self.old_replicas[*n]);
        match (self.newest, largest) {
            (Some(_), _) => {
                let change = left.max(-self.new_replicas);
                self.new_replicas += change;
                left -= change;
            }
            (None, Some(largest)) => {
                self.old_replicas[largest] += left.max(-self.old_replicas[largest]);
                left = 0;
            }
            _ => {}
        }
        for replicas in &mut self.old_replicas {
            let change = left.min(0).max(-*replicas);
            *replicas += change;
            left -= change;
        }
        self
    }

    /// Nothing new before everything old has ended.
    fn recreate(mut self, owned: &[Arc<Value>]) -> Self {
        self.old_replicas.fill(0);
        let uid = self.newest.map(|set| pods::uid(set));
        let is_old = |pod: &Value| {
            let owners = pod["metadata"]["ownerReferences"].as_array().into_iter().flatten();
            !owners.into_iter().any(|owner| owner["uid"].as_str() == uid)
        };
        let over = |pod: &Value| ["Succeeded", "Failed"].contains(&pods::phase(pod));
        let running = owned.iter().any(|pod| is_old(pod) && !over(pod));
        let asked = self.old.iter().any(|set| replicas(set) > 0);
        self.may_create = !running && !asked;
        if self.may_create {
            self.new_replicas = wanted(self.deployment);
        }
        self
    }

    /// One step of a rolling update: up first, the next look takes down what has become superfluous.
    fn roll(mut self) -> Self {
        let wanted = wanted(self.deployment);
        let before = self.new_replicas;
        if self.new_replicas > wanted {
            self.new_replicas = wanted;
        } else {
            let room = wanted + surge(self.deployment) - self.total();
            self.new_replicas += room.clamp(0, wanted - self.new_replicas);
        }
        if self.new_replicas != before || self.newest.is_none() {
            return self;
        }
        let available = |set: &Value| set["status"]["availableReplicas"].as_i64().unwrap_or(0);
        let min_available = wanted - max_unavailable(self.deployment);
        let new_unavailable = self.new_replicas - self.newest.map_or(0, |set| available(set));
        let mut removable = self.total() - min_available - new_unavailable;
        // Those that do not work anyway go first.
        for (set, replicas) in self.old.iter().zip(&mut self.old_replicas) {
            let sick = (*replicas - available(set)).clamp(0, removable.max(0));
            *replicas -= sick;
            removable -= sick;
        }
        let all_available = self.newest.map_or(0, |set| available(set))
            + self.old.iter().map(|set| available(set)).sum::<i64>();
        let mut removable = removable.min(all_available - min_available);
        for replicas in &mut self.old_replicas {
            let fewer = removable.clamp(0, *replicas);
            *replicas -= fewer;
            removable -= fewer;
        }
        self
    }

    fn into_actions(self, plan: &mut Plan, paused: bool) {
        let deployment = self.deployment;
        let last = self.old.iter().filter_map(|set| annotation(set, REVISION)).max().unwrap_or(0);
        let revision = match self.newest.and_then(|set| annotation(set, REVISION)) {
            Some(own) if own > last => own,
            _ => last + 1,
        };
        for (set, replicas) in self.old.iter().zip(&self.old_replicas) {
            resize(deployment, set, *replicas, plan);
        }
        match self.newest {
            Some(set) => {
                let mut annotations = taken_over(deployment, set);
                if annotation(set, REVISION) != Some(revision) {
                    annotations.insert(REVISION.into(), json!(revision.to_string()));
                    if let Some(before) = annotation(set, REVISION) {
                        let history = set["metadata"]["annotations"][REVISION_HISTORY].as_str();
                        let history =
                            history.map_or(before.to_string(), |text| format!("{text},{before}"));
                        annotations.insert(REVISION_HISTORY.into(), json!(history));
                    }
                }
                let min_ready = &deployment["spec"]["minReadySeconds"];
                if !annotations.is_empty() || set["spec"]["minReadySeconds"] != *min_ready {
                    let patch = json!({ "metadata": { "annotations": annotations },
                        "spec": { "minReadySeconds": min_ready } });
                    plan.push(Action::Merge { resource: REPLICA_SETS, object: set.clone(), patch });
                }
                resize(deployment, set, self.new_replicas, plan);
            }
            None if self.may_create && !paused => {
                let object = new_set(deployment, revision, self.new_replicas);
                let message = format!(
                    "Scaled up replica set {} from 0 to {}",
                    name(&object),
                    self.new_replicas
                );
                plan.push(Action::Create { resource: REPLICA_SETS, object });
                if self.new_replicas > 0 {
                    plan.event(deployment, "ScalingReplicaSet", message);
                }
            }
            None => return,
        }
        if annotation(deployment, REVISION) != Some(revision) {
            let patch =
                json!({ "metadata": { "annotations": { REVISION: revision.to_string() } } });
            plan.push(Action::Merge { resource: DEPLOYMENTS, object: deployment.clone(), patch });
        }
    }
}

/// Gives a ReplicaSet another size, and notes what the size is relative to.
fn resize(deployment: &Arc<Value>, set: &Arc<Value>, to: i64, plan: &mut Plan) {
    let (wanted, from) = (wanted(deployment), replicas(set));
    let max = wanted + surge(deployment);
    let noted = annotation(set, DESIRED) == Some(wanted) && annotation(set, MAX) == Some(max);
    if from == to && (noted || to == 0) {
        return;
    }
    let patch = json!({
        "metadata": { "annotations": { DESIRED: wanted.to_string(), MAX: max.to_string() } },
        "spec": { "replicas": to },
    });
    plan.push(Action::Merge { resource: REPLICA_SETS, object: set.clone(), patch });
    if from != to {
        let direction = if to > from { "up" } else { "down" };
        let message = format!("Scaled {direction} replica set {} from {from} to {to}", name(set));
        plan.event(deployment, "ScalingReplicaSet", message);
    }
}

fn new_set(deployment: &Value, revision: i64, replicas: i64) -> Value {
    let spec = &deployment["spec"];
    let collisions = &deployment["status"]["collisionCount"];
    let hash = pods::hash(&json!([spec["template"], collisions]));
    let mut template = spec["template"].clone();
    template["metadata"]["labels"][HASH_LABEL] = json!(hash);
    let mut selector = spec["selector"].clone();
    selector["matchLabels"][HASH_LABEL] = json!(hash);
    let mut annotations = taken_over(deployment, &Value::Null);
    let wanted = wanted(deployment);
    for (name, number) in
        [(REVISION, revision), (DESIRED, wanted), (MAX, wanted + surge(deployment))]
    {
        annotations.insert(name.into(), json!(number.to_string()));
    }
    let mut set = json!({
        "apiVersion": "apps/v1", "kind": "ReplicaSet",
        "metadata": {
            "name": format!("{}-{hash}", name(deployment)),
            "namespace": deployment["metadata"]["namespace"],
            "labels": template["metadata"]["labels"],
            "annotations": annotations,
            "ownerReferences": [pods::owner_reference(deployment)],
        },
        "spec": { "replicas": replicas, "selector": selector, "template": template },
    });
    if !spec["minReadySeconds"].is_null() {
        set["spec"]["minReadySeconds"] = spec["minReadySeconds"].clone();
    }
    set
}

/// The Deployment's annotations that a ReplicaSet does not have yet.
fn taken_over(deployment: &Value, set: &Value) -> Map<String, Value> {
    let all = deployment["metadata"]["annotations"].as_object().into_iter().flatten();
    let all = all.filter(|(name, _)| !OWN_ANNOTATIONS.contains(&name.as_str()));
    let missing =
        all.filter(|(name, value)| set["metadata"]["annotations"][name.as_str()] != **value);
    missing.map(|(name, value)| (name.clone(), value.clone())).collect()
}

fn same_template(deployment: &Value, set: &Value) -> bool {
    let mut template = set["spec"]["template"].clone();
    if let Some(labels) = template["metadata"]["labels"].as_object_mut() {
        labels.remove(HASH_LABEL);
    }
    template == deployment["spec"]["template"]
}

fn created(set: &Value) -> String {
    set["metadata"]["creationTimestamp"].as_str().unwrap_or_default().to_owned()
}

fn replicas(set: &Value) -> i64 {
    set["spec"]["replicas"].as_i64().unwrap_or(0)
}

fn wanted(deployment: &Value) -> i64 {
    deployment["spec"]["replicas"].as_i64().unwrap_or(1)
}

fn annotation(object: &Value, name: &str) -> Option<i64> {
    object["metadata"]["annotations"][name].as_str()?.parse().ok()
}

fn surge(deployment: &Value) -> i64 {
    let rolling = &deployment["spec"]["strategy"]["rollingUpdate"];
    pods::int_or_percent(&rolling["maxSurge"], wanted(deployment), true)
}

fn max_unavailable(deployment: &Value) -> i64 {
    let rolling = &deployment["spec"]["strategy"]["rollingUpdate"];
    if !rolling.is_object() {
        return 0;
    }
    let wanted = wanted(deployment);
    let number = pods::int_or_percent(&rolling["maxUnavailable"], wanted, false);
    // Both may round to nothing; then nothing would ever move.
    if number == 0 && surge(deployment) == 0 { 1 } else { number.min(wanted) }
}

fn is_saturated(deployment: &Value, set: &Value) -> bool {
    let wanted = wanted(deployment);
    replicas(set) == wanted
        && annotation(set, DESIRED) == Some(wanted)
        && set["status"]["availableReplicas"].as_i64() == Some(wanted)
}

fn status(deployment: &Value, newest: Option<&Arc<Value>>, sets: &[Arc<Value>], now: i64) -> Value {
    let sum =
        |field: &str| -> i64 { sets.iter().filter_map(|set| set["status"][field].as_i64()).sum() };
    let asked: i64 = sets.iter().map(|set| replicas(set)).sum();
    let updated = newest.map_or(0, |set| set["status"]["replicas"].as_i64().unwrap_or(0));
    let available = sum("availableReplicas");
    let mut status = json!({
        "observedGeneration": deployment["metadata"]["generation"],
        "replicas": sum("replicas"),
        "updatedReplicas": updated,
        "readyReplicas": sum("readyReplicas"),
        "availableReplicas": available,
        "unavailableReplicas": (asked - available).max(0),
    });
    for kept in ["collisionCount", "conditions"] {
        if !deployment["status"][kept].is_null() {
            status[kept] = deployment["status"][kept].clone();
        }
    }
    if available >= wanted(deployment) - max_unavailable(deployment) {
        let message = "Deployment has minimum availability.";
        set_condition(&mut status, "Available", true, "MinimumReplicasAvailable", message, now);
    } else {
        let message = "Deployment does not have minimum availability.";
        set_condition(&mut status, "Available", false, "MinimumReplicasUnavailable", message, now);
    }
    set_progress(deployment, newest, &mut status, now);
    status
}

/// The condition `Progressing`: whether an update goes on, is done, or takes too long.
fn set_progress(deployment: &Value, newest: Option<&Arc<Value>>, status: &mut Value, now: i64) {
    let before = &deployment["status"];
    let known = condition(before, "Progressing").cloned();
    let reason =
        known.as_ref().and_then(|one| one["reason"].as_str()).unwrap_or_default().to_owned();
    let mut set = |value: bool, reason: &str, message: String| {
        set_condition(status, "Progressing", value, reason, &message, now);
    };
    if deployment["spec"]["paused"] == true {
        if reason != "DeploymentPaused" {
            let message = "Deployment is paused".to_owned();
            // Unknown: nothing is expected to happen.
            set(true, "DeploymentPaused", message);
            if let Some(list) = status["conditions"].as_array_mut() {
                let progressing = list.iter_mut().filter(|one| one["type"] == "Progressing");
                progressing.for_each(|one| one["status"] = json!("Unknown"));
            }
        }
        return;
    }
    let what = newest.map(|set| format!("ReplicaSet {:?}", name(set)));
    let Some(what) = what else {
        if known.is_none() {
            return;
        }
        set(
            true,
            "ReplicaSetUpdated",
            format!("Deployment {:?} is progressing.", name(deployment)),
        );
        return;
    };
    if is_complete(
        deployment,
        &json!({ "updatedReplicas": status["updatedReplicas"],
        "replicas": status["replicas"], "availableReplicas": status["availableReplicas"],
        "observedGeneration": status["observedGeneration"] }),
    ) {
        set_condition(
            status,
            "Progressing",
            true,
            "NewReplicaSetAvailable",
            &format!("{what} has successfully progressed."),
            now,
        );
        return;
    }
    let count = |status: &Value, field: &str| status[field].as_i64().unwrap_or(0);
    let old_count = |status: &Value| count(status, "replicas") - count(status, "updatedReplicas");
    let moved = count(status, "updatedReplicas") > count(before, "updatedReplicas")
        || old_count(status) < old_count(before)
        || count(status, "readyReplicas") > count(before, "readyReplicas")
        || count(status, "availableReplicas") > count(before, "availableReplicas");
    let restarted =
        reason == "NewReplicaSetAvailable" || reason == "DeploymentPaused" || known.is_none();
    if moved || restarted {
        let message = format!("{what} is progressing.");
        set_condition(status, "Progressing", true, "ReplicaSetUpdated", &message, now);
        // The deadline counts from the last step.
        let list = status["conditions"].as_array_mut().into_iter().flatten();
        for one in list.filter(|one| one["type"] == "Progressing") {
            one["lastUpdateTime"] = json!(pods::timestamp(now));
        }
    } else if deadline(deployment, before, now) == Some(0) {
        let message = format!("{what} has timed out progressing.");
        set_condition(status, "Progressing", false, "ProgressDeadlineExceeded", &message, now);
    }
}

fn is_complete(deployment: &Value, status: &Value) -> bool {
    let wanted = Some(wanted(deployment));
    ["updatedReplicas", "replicas", "availableReplicas"]
        .iter()
        .all(|field| status[*field].as_i64() == wanted)
        && status["observedGeneration"] == deployment["metadata"]["generation"]
}

/// Seconds until the update takes too long; 0: it does.
fn deadline(deployment: &Value, status: &Value, now: i64) -> Option<i64> {
    let limit = deployment["spec"]["progressDeadlineSeconds"].as_i64()?;
    let condition = condition(status, "Progressing")?;
    if condition["reason"] == "NewReplicaSetAvailable" || condition["status"] != "True" {
        return None;
    }
    Some((pods::seconds(&condition["lastUpdateTime"])? + limit - now).max(0))
}

/// Old ReplicaSets stay for `rollout undo`, but not for ever.
fn remove_history(deployment: &Value, old: &[Arc<Value>], plan: &mut Plan) {
    let limit = deployment["spec"]["revisionHistoryLimit"].as_i64().unwrap_or(10);
    let limit = usize::try_from(limit).unwrap_or(0);
    let idle = |set: &&Arc<Value>| {
        replicas(set) == 0
            && set["status"]["replicas"].as_i64().unwrap_or(0) == 0
            && !is_deleting(set)
    };
    let mut idle: Vec<&Arc<Value>> = old.iter().filter(idle).collect();
    idle.sort_by_key(|set| annotation(set, REVISION));
    for set in idle.iter().take(idle.len().saturating_sub(limit)) {
        plan.push(Action::Delete { resource: REPLICA_SETS, object: (*set).clone() });
    }
}
