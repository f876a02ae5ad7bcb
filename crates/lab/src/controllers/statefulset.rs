//! StatefulSets: pods with names that stay, one after the other.
//!
//! Pods come in the order of their ordinals and go in the reverse order; an update replaces them
//! from the highest ordinal down to the partition. With `podManagementPolicy: Parallel` nobody waits
//! for others to come or go.

use std::sync::Arc;

use serde_json::{Value, json};

use super::pods::{self, is_deleting, is_ready, name};
use super::revisions::{self, HASH_LABEL};
use super::{Action, CLAIMS, PODS, Plan, STATEFUL_SETS};

/// `known` are the set's revisions, `claims` the volume claims of its namespace.
pub(super) fn plan(
    set: &Arc<Value>,
    owned: &[Arc<Value>],
    known: &[Arc<Value>],
    claims: &[Arc<Value>],
    now: i64,
) -> Plan {
    let mut plan = Plan::default();
    let update =
        if is_deleting(set) { Value::Null } else { revisions::present(set, known, &mut plan) };
    let update_name = name(&update).to_owned();
    let current_name = set["status"]["currentRevision"].as_str().filter(|one| !one.is_empty());
    let current_name = current_name.unwrap_or(&update_name).to_owned();
    let state = State::new(set, owned, now);
    state.min_ready_waits().for_each(|wait| plan.again(wait));
    let status = state.status(&current_name, &update_name);
    if !is_deleting(set) {
        // Pods below the partition are made from the old template, as long as that is known.
        let current = known.iter().find(|one| name(one) == current_name);
        state.step(claims, current.map_or(&update, |one| one), &update, &mut plan);
        let used = |one: &Value| {
            name(one) == update_name
                || name(one) == current_name
                || owned.iter().any(|pod| revision_of(pod) == name(one))
        };
        revisions::remove_old(set, known, used, &mut plan);
    }
    plan.status(STATEFUL_SETS, set, status);
    plan
}

struct State<'a> {
    set: &'a Arc<Value>,
    /// By ordinal, the wanted ones and those that are too many.
    pods: Vec<(i64, &'a Arc<Value>)>,
    start: i64,
    wanted: i64,
    min_ready: i64,
    now: i64,
}

impl<'a> State<'a> {
    fn new(set: &'a Arc<Value>, owned: &'a [Arc<Value>], now: i64) -> Self {
        let prefix = format!("{}-", name(set));
        let ordinal = |pod: &Value| name(pod).strip_prefix(&prefix)?.parse::<i64>().ok();
        let mut pods: Vec<_> = owned.iter().filter_map(|pod| Some((ordinal(pod)?, pod))).collect();
        pods.sort_by_key(|(ordinal, _)| *ordinal);
        let spec = &set["spec"];
        Self {
            set,
            pods,
            start: spec["ordinals"]["start"].as_i64().unwrap_or(0),
            wanted: spec["replicas"].as_i64().unwrap_or(1),
            min_ready: spec["minReadySeconds"].as_i64().unwrap_or(0),
            now,
        }
    }

    fn is_wanted(&self, ordinal: i64) -> bool {
        (self.start..self.start + self.wanted).contains(&ordinal)
    }

    fn is_available(&self, pod: &Value) -> bool {
        pods::available_in(pod, self.min_ready, self.now) == Some(0)
    }

    fn min_ready_waits(&self) -> impl Iterator<Item = i64> {
        let waits = self
            .pods
            .iter()
            .filter_map(|(_, pod)| pods::available_in(pod, self.min_ready, self.now));
        waits.filter(|wait| *wait > 0)
    }

    fn partition(&self) -> i64 {
        self.set["spec"]["updateStrategy"]["rollingUpdate"]["partition"].as_i64().unwrap_or(0)
    }

    /// The next step towards what is wanted.
    fn step(&self, claims: &[Arc<Value>], current: &Value, update: &Value, plan: &mut Plan) {
        let in_order = self.set["spec"]["podManagementPolicy"] != "Parallel";
        let rolling = self.set["spec"]["updateStrategy"]["type"] == "RollingUpdate";
        for ordinal in self.start..self.start + self.wanted {
            let Some((_, pod)) = self.pods.iter().find(|(one, _)| *one == ordinal) else {
                let old = rolling && ordinal < self.start + self.partition();
                self.create(ordinal, if old { current } else { update }, claims, plan);
                if in_order {
                    return;
                }
                continue;
            };
            if ["Succeeded", "Failed"].contains(&pods::phase(pod)) && !is_deleting(pod) {
                self.delete(pod, plan);
                if in_order {
                    return;
                }
            } else if in_order && !self.is_available(pod) {
                return;
            }
        }
        let surplus = self.pods.iter().rev().filter(|(ordinal, _)| !self.is_wanted(*ordinal));
        for (_, pod) in surplus {
            if !is_deleting(pod) {
                self.delete(pod, plan);
            }
            if in_order {
                return;
            }
        }
        if !rolling {
            return;
        }
        let updated =
            self.pods.iter().rev().take_while(|(one, _)| *one >= self.start + self.partition());
        for (_, pod) in updated {
            if revision_of(pod) != name(update) && !is_deleting(pod) {
                self.delete(pod, plan);
                return;
            }
            if !self.is_available(pod) {
                return;
            }
        }
    }

    fn create(&self, ordinal: i64, revision: &Value, claims: &[Arc<Value>], plan: &mut Plan) {
        let mut owner = Value::clone(self.set);
        let mut template = revision["data"]["spec"]["template"].clone();
        if let Some(template) = template.as_object_mut() {
            template.remove("$patch");
        }
        owner["spec"]["template"] = template;
        let mut pod = pods::from_template(&owner);
        let pod_name = format!("{}-{ordinal}", name(self.set));
        if let Some(meta) = pod["metadata"].as_object_mut() {
            meta.remove("generateName");
        }
        pod["metadata"]["name"] = json!(pod_name);
        let labels = &mut pod["metadata"]["labels"];
        labels[HASH_LABEL] = json!(name(revision));
        labels["statefulset.kubernetes.io/pod-name"] = json!(pod_name);
        labels["apps.kubernetes.io/pod-index"] = json!(ordinal.to_string());
        pod["spec"]["hostname"] = json!(pod_name);
        if let Some(service) =
            self.set["spec"]["serviceName"].as_str().filter(|one| !one.is_empty())
        {
            pod["spec"]["subdomain"] = json!(service);
        }
        self.claim(&pod_name, &mut pod, claims, plan);
        plan.push(Action::Create { resource: PODS, object: pod });
        let message = format!("create Pod {pod_name} in StatefulSet {} successful", name(self.set));
        plan.event(self.set, "SuccessfulCreate", message);
    }

    /// Gives a pod volumes of its own, which stay when it goes and are its successor's.
    fn claim(&self, pod_name: &str, pod: &mut Value, claims: &[Arc<Value>], plan: &mut Plan) {
        let templates = self.set["spec"]["volumeClaimTemplates"].as_array();
        for template in templates.into_iter().flatten() {
            let volume = name(template);
            let claim_name = format!("{volume}-{pod_name}");
            let mut volumes = pod["spec"]["volumes"].as_array().cloned().unwrap_or_default();
            volumes.retain(|one| one["name"] != *volume);
            let source = json!({ "claimName": claim_name });
            volumes.push(json!({ "name": volume, "persistentVolumeClaim": source }));
            pod["spec"]["volumes"] = json!(volumes);
            if claims.iter().any(|claim| name(claim) == claim_name) {
                continue;
            }
            let labels = &self.set["spec"]["selector"]["matchLabels"];
            let object = json!({
                "apiVersion": "v1", "kind": "PersistentVolumeClaim",
                "metadata": { "name": claim_name, "labels": labels,
                    "namespace": self.set["metadata"]["namespace"] },
                "spec": template["spec"],
            });
            plan.push(Action::Create { resource: CLAIMS, object });
            let message = format!(
                "create Claim {claim_name} Pod {pod_name} in StatefulSet {} success",
                name(self.set)
            );
            plan.event(self.set, "SuccessfulCreate", message);
        }
    }

    fn delete(&self, pod: &Arc<Value>, plan: &mut Plan) {
        plan.push(Action::Delete { resource: PODS, object: pod.clone() });
        let message =
            format!("delete Pod {} in StatefulSet {} successful", name(pod), name(self.set));
        plan.event(self.set, "SuccessfulDelete", message);
    }

    fn status(&self, current: &str, update: &str) -> Value {
        let of = |revision: &str| {
            let live = self.pods.iter().filter(|(_, pod)| !is_deleting(pod));
            live.filter(|(_, pod)| revision_of(pod) == revision).count()
        };
        let ready = self.pods.iter().filter(|(_, pod)| is_ready(pod) && !is_deleting(pod)).count();
        let available = self.pods.iter().filter(|(_, pod)| self.is_available(pod)).count();
        let updated = of(update);
        // Everything has the new template: it is the current one from now on.
        let wanted = usize::try_from(self.wanted).unwrap_or(0);
        let done =
            updated == wanted && ready == wanted && self.pods.len() == wanted && !update.is_empty();
        let current = if done { update } else { current };
        let mut status = json!({
            "observedGeneration": self.set["metadata"]["generation"],
            "replicas": self.pods.len(),
            "readyReplicas": ready,
            "availableReplicas": available,
            "currentReplicas": of(current),
            "updatedReplicas": updated,
            "collisionCount": 0,
        });
        for (field, name) in [("currentRevision", current), ("updateRevision", update)] {
            if !name.is_empty() {
                status[field] = json!(name);
            }
        }
        status
    }
}

fn revision_of(pod: &Value) -> &str {
    pod["metadata"]["labels"][HASH_LABEL].as_str().unwrap_or_default()
}
