//! DaemonSets: one pod on each node that will have it.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Value, json};

use super::pods::{self, is_deleting, is_ready, name};
use super::revisions::{self, HASH_LABEL};
use super::{Action, DAEMON_SETS, PODS, Plan};

/// Taints that pods of DaemonSets put up with: key and effect.
const TOLERATED: [(&str, &str); 6] = [
    ("node.kubernetes.io/not-ready", "NoExecute"),
    ("node.kubernetes.io/unreachable", "NoExecute"),
    ("node.kubernetes.io/disk-pressure", "NoSchedule"),
    ("node.kubernetes.io/memory-pressure", "NoSchedule"),
    ("node.kubernetes.io/pid-pressure", "NoSchedule"),
    ("node.kubernetes.io/unschedulable", "NoSchedule"),
];

pub(super) fn plan(
    set: &Arc<Value>,
    owned: &[Arc<Value>],
    nodes: &[Arc<Value>],
    known: &[Arc<Value>],
    now: i64,
) -> Plan {
    let mut plan = Plan::default();
    if is_deleting(set) {
        return plan;
    }
    let revision = revisions::present(set, known, &mut plan);
    let hash = revisions::hash(&revision).to_owned();
    let min_ready = set["spec"]["minReadySeconds"].as_i64().unwrap_or(0);
    let available = |pod: &Value| pods::available_in(pod, min_ready, now) == Some(0);
    let waits = owned.iter().filter_map(|pod| pods::available_in(pod, min_ready, now));
    waits.filter(|wait| *wait > 0).for_each(|wait| plan.again(wait));
    let is_new = |pod: &Value| pod["metadata"]["labels"][HASH_LABEL] == *hash;

    let mut on: BTreeMap<&str, Vec<&Arc<Value>>> = BTreeMap::new();
    for pod in owned {
        on.entry(node_of(pod)).or_default().push(pod);
    }
    for list in on.values_mut() {
        list.sort_by_key(|pod| (pod["metadata"]["creationTimestamp"].as_str().map(str::to_owned), name(pod).to_owned()));
    }
    let none = Vec::new();
    let wanted: Vec<&str> = nodes.iter().filter(|node| should_run(set, node)).map(|node| name(node)).collect();
    let rolling = set["spec"]["updateStrategy"]["type"] == "RollingUpdate";
    let parameters = &set["spec"]["updateStrategy"]["rollingUpdate"];
    let total = i64::try_from(wanted.len()).unwrap_or(i64::MAX);
    let surge = if rolling { pods::int_or_percent(&parameters["maxSurge"], total, true) } else { 0 };
    let unavailable_max = pods::int_or_percent(&parameters["maxUnavailable"], total, true);

    // What is there and working as it should, node by node.
    let live = |node: &str| on.get(node).unwrap_or(&none).iter().filter(|pod| !is_deleting(pod));
    let mut unavailable = 0;
    let mut surging = 0;
    for node in &wanted {
        unavailable += i64::from(!live(node).any(|pod| available(pod)));
        surging += i64::from(live(node).count() > 1);
    }
    for node in &wanted {
        let here = on.get(node).unwrap_or(&none);
        if here.is_empty() {
            plan.push(create(set, node, &hash));
            continue;
        }
        let over: Vec<_> = live(node).filter(|pod| ["Succeeded", "Failed"].contains(&pods::phase(pod))).collect();
        for pod in &over {
            delete(set, pod, &mut plan);
        }
        if !over.is_empty() {
            continue;
        }
        let new = live(node).find(|pod| is_new(pod));
        let mut old = live(node).filter(|pod| !is_new(pod));
        let extra = live(node).filter(|pod| is_new(pod)).skip(1).chain(old.clone().skip(1));
        extra.for_each(|pod| delete(set, pod, &mut plan));
        let Some(old) = old.next().filter(|_| rolling || new.is_some()) else { continue };
        match new {
            Some(new) if available(new) || !available(old) => delete(set, old, &mut plan),
            Some(_) => {}
            None if surge > 0 => {
                if !available(old) {
                    delete(set, old, &mut plan);
                } else if surging < surge {
                    surging += 1;
                    plan.push(create(set, node, &hash));
                }
            }
            // What does not work is replaced at no cost.
            None if !available(old) => delete(set, old, &mut plan),
            None if unavailable < unavailable_max => {
                unavailable += 1;
                delete(set, old, &mut plan);
            }
            None => {}
        }
    }
    let elsewhere = owned.iter().filter(|pod| !is_deleting(pod) && !wanted.contains(&node_of(pod)));
    let gone = |pod: &&Arc<Value>| {
        let node = nodes.iter().find(|node| name(node) == node_of(pod));
        node.is_none_or(|node| !may_stay(set, node))
    };
    elsewhere.filter(gone).for_each(|pod| delete(set, pod, &mut plan));
    let used = |one: &Value| {
        let hash = revisions::hash(one);
        name(one) == name(&revision) || owned.iter().any(|pod| pod["metadata"]["labels"][HASH_LABEL] == *hash)
    };
    revisions::remove_old(set, known, used, &mut plan);

    let first = |node: &str| live(node).find(|pod| is_new(pod)).or_else(|| live(node).next()).copied();
    let running: Vec<&Arc<Value>> = wanted.iter().filter_map(|node| first(node)).collect();
    let count = |test: &dyn Fn(&Value) -> bool| running.iter().filter(|pod| test(pod)).count();
    let number_available = count(&available);
    let misscheduled = on.iter().filter(|(node, list)| {
        !wanted.contains(*node) && nodes.iter().any(|one| name(one) == **node) && !list.is_empty()
    });
    let status = json!({
        "observedGeneration": set["metadata"]["generation"],
        "currentNumberScheduled": running.len(),
        "desiredNumberScheduled": wanted.len(),
        "numberMisscheduled": misscheduled.count(),
        "numberReady": count(&is_ready),
        "updatedNumberScheduled": count(&is_new),
        "numberAvailable": number_available,
        "numberUnavailable": wanted.len() - number_available,
    });
    plan.status(DAEMON_SETS, set, status);
    plan
}

/// The node that a pod is on or meant for.
fn node_of(pod: &Value) -> &str {
    let assigned = pod["spec"]["nodeName"].as_str().filter(|name| !name.is_empty());
    let required = &pod["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"];
    let meant = required["nodeSelectorTerms"][0]["matchFields"][0]["values"][0].as_str();
    assigned.or(meant).unwrap_or_default()
}

fn create(set: &Arc<Value>, node: &str, hash: &str) -> Action {
    let mut pod = pods::from_template(set);
    pod["metadata"]["labels"][HASH_LABEL] = json!(hash);
    let field = json!({ "key": "metadata.name", "operator": "In", "values": [node] });
    let required =
        &mut pod["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"];
    match required["nodeSelectorTerms"].as_array_mut() {
        Some(terms) if !terms.is_empty() => {
            terms.iter_mut().for_each(|term| term["matchFields"] = json!([field]));
        }
        _ => *required = json!({ "nodeSelectorTerms": [{ "matchFields": [field] }] }),
    }
    pod["spec"]["tolerations"] = json!(tolerations(set));
    Action::Create { resource: PODS, object: pod }
}

fn delete(set: &Arc<Value>, pod: &Arc<Value>, plan: &mut Plan) {
    plan.push(Action::Delete { resource: PODS, object: pod.clone() });
    plan.event(set, "SuccessfulDelete", format!("Deleted pod: {}", name(pod)));
}

fn tolerations(set: &Value) -> Vec<Value> {
    let spec = &set["spec"]["template"]["spec"];
    let mut all = spec["tolerations"].as_array().cloned().unwrap_or_default();
    let mut tolerated = TOLERATED.to_vec();
    if spec["hostNetwork"] == true {
        tolerated.push(("node.kubernetes.io/network-unavailable", "NoSchedule"));
    }
    for (key, effect) in tolerated {
        let toleration = json!({ "key": key, "operator": "Exists", "effect": effect });
        if !all.contains(&toleration) {
            all.push(toleration);
        }
    }
    all
}

/// Whether a node gets a pod.
fn should_run(set: &Value, node: &Value) -> bool {
    fits(set, node) && !taints(node).any(|taint| repels(set, taint, &["NoSchedule", "NoExecute"]))
}

/// Whether a pod that is on a node already may stay there.
fn may_stay(set: &Value, node: &Value) -> bool {
    fits(set, node) && !taints(node).any(|taint| repels(set, taint, &["NoExecute"]))
}

fn taints(node: &Value) -> impl Iterator<Item = &Value> {
    node["spec"]["taints"].as_array().into_iter().flatten()
}

fn repels(set: &Value, taint: &Value, effects: &[&str]) -> bool {
    let empty = |value: &Value| value.as_str().unwrap_or_default().is_empty();
    let tolerates = |one: &Value| {
        let exists = one["operator"] == "Exists";
        (empty(&one["effect"]) || one["effect"] == taint["effect"])
            && (one["key"] == taint["key"] || (empty(&one["key"]) && exists))
            && (exists || one["value"] == taint["value"] || (empty(&one["value"]) && empty(&taint["value"])))
    };
    effects.contains(&taint["effect"].as_str().unwrap_or_default()) && !tolerations(set).iter().any(tolerates)
}

/// Whether node selector and required affinity of the template let a pod go there.
fn fits(set: &Value, node: &Value) -> bool {
    let spec = &set["spec"]["template"]["spec"];
    let labels = &node["metadata"]["labels"];
    let named = spec["nodeName"].as_str().is_none_or(|wanted| wanted.is_empty() || wanted == name(node));
    let selector = json!({ "matchLabels": spec["nodeSelector"] });
    let required = &spec["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"];
    let field = |term: &Value| {
        let mut fields = term["matchFields"].as_array().into_iter().flatten();
        fields.all(|one| {
            let listed = one["values"].as_array().is_some_and(|list| list.contains(&node["metadata"]["name"]));
            listed == (one["operator"] == "In")
        })
    };
    let mut terms = required["nodeSelectorTerms"].as_array().into_iter().flatten();
    let affine = required.is_null() || terms.any(|term| super::selects(term, labels) && field(term));
    named && super::selects(&selector, labels) && affine
}
