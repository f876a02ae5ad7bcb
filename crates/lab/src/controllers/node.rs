//! Nodes that are not heard of, or not well: what runs there is not sent work any more, and after a while it is made
//! anew elsewhere.

use std::sync::Arc;

use serde_json::{Value, json};

use super::pods::{self, is_active, is_deleting, is_ready, name};
use super::{Action, NODES, PODS, Plan};

/// A node that has said nothing for so many seconds may be dead.
const GRACE_SECONDS: i64 = 40;
const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
const NOT_READY: &str = "node.kubernetes.io/not-ready";
const EFFECTS: [&str; 2] = ["NoSchedule", "NoExecute"];

/// `lease` is the node's heartbeat, `pods` are those on the node.
pub(super) fn plan(
    node: &Arc<Value>,
    lease: Option<&Value>,
    pods: &[Arc<Value>],
    now: i64,
) -> Plan {
    let mut plan = Plan::default();
    let Some(ready) = pods::condition(&node["status"], "Ready").filter(|_| !is_deleting(node))
    else {
        return plan;
    };
    let heard = lease.and_then(|lease| pods::seconds(&lease["spec"]["renewTime"]));
    let heard = heard.or_else(|| pods::seconds(&node["metadata"]["creationTimestamp"]));
    let silent = heard.is_some_and(|heard| now - heard > GRACE_SECONDS);
    if let (false, Some(heard)) = (silent, heard) {
        plan.again(heard + GRACE_SECONDS + 1 - now);
    }
    let state = if silent { "Unknown" } else { ready["status"].as_str().unwrap_or("Unknown") };
    if state == "Unknown" && ready["status"] != "Unknown" {
        let status = unknown(&node["status"], now);
        plan.event(
            node,
            "NodeNotReady",
            format!("Node {} status is now: NodeNotReady", name(node)),
        );
        plan.push(Action::Status { resource: NODES, object: node.clone(), status });
    }
    let taints = taints(node, state, now);
    if json!(taints) != node["spec"]["taints"]
        && !(taints.is_empty() && node["spec"]["taints"].is_null())
    {
        // Others change taints as well: what we have not seen must not be lost.
        let version = &node["metadata"]["resourceVersion"];
        let patch =
            json!({ "metadata": { "resourceVersion": version }, "spec": { "taints": taints } });
        // Before the status, which makes a new version.
        plan.actions.insert(0, Action::Merge { resource: NODES, object: node.clone(), patch });
    }
    for pod in pods.iter().filter(|pod| is_active(pod)) {
        if state != "True" && is_ready(pod) {
            let mut status = pod["status"].clone();
            let message = "the node is not ready";
            pods::set_condition(&mut status, "Ready", false, "NodeNotReady", message, now);
            plan.push(Action::Status { resource: PODS, object: pod.clone(), status });
        }
        match leaves_in(pod, &taints, now) {
            Some(0) => {
                plan.event(
                    pod,
                    "TaintManagerEviction",
                    format!("Marking for deletion Pod {}", path(pod)),
                );
                plan.push(Action::Delete { resource: PODS, object: pod.clone() });
            }
            Some(seconds) => plan.again(seconds),
            None => {}
        }
    }
    plan
}

fn path(pod: &Value) -> String {
    let namespace = pod["metadata"]["namespace"].as_str().unwrap_or_default();
    format!("{namespace}/{}", name(pod))
}

/// Whether pods on the node may have to leave it: otherwise nobody has to look at them.
pub(super) fn concerns_pods(node: &Value, lease: Option<&Value>, now: i64) -> bool {
    let heard = lease.and_then(|lease| pods::seconds(&lease["spec"]["renewTime"]));
    let ready =
        pods::condition(&node["status"], "Ready").is_some_and(|one| one["status"] == "True");
    let mut taints = node["spec"]["taints"].as_array().into_iter().flatten();
    !ready
        || heard.is_none_or(|heard| now - heard > GRACE_SECONDS)
        || taints.any(|taint| taint["effect"] == "NoExecute")
}

/// What a node has said is not known to be true any more.
fn unknown(status: &Value, now: i64) -> Value {
    let mut status = status.clone();
    for condition in status["conditions"].as_array_mut().into_iter().flatten() {
        let kubelets = ["Ready", "MemoryPressure", "DiskPressure", "PIDPressure"];
        if kubelets.iter().any(|kind| condition["type"] == **kind) {
            condition["status"] = json!("Unknown");
            condition["reason"] = json!("NodeStatusUnknown");
            condition["message"] = json!("Kubelet stopped posting node status.");
            condition["lastTransitionTime"] = json!(pods::timestamp(now));
        }
    }
    status
}

/// The taints of a node in this state. When those that evict were added is noted.
fn taints(node: &Value, state: &str, now: i64) -> Vec<Value> {
    let wanted = match state {
        "True" => None,
        "False" => Some(NOT_READY),
        _ => Some(UNREACHABLE),
    };
    let before = node["spec"]["taints"].as_array().cloned().unwrap_or_default();
    let ours = |taint: &Value| [UNREACHABLE, NOT_READY].iter().any(|key| taint["key"] == **key);
    let stays = |taint: &Value| !ours(taint) || wanted.is_some_and(|key| taint["key"] == key);
    let mut taints: Vec<Value> = before.into_iter().filter(stays).collect();
    for effect in EFFECTS {
        let is = |taint: &Value| {
            wanted.is_some_and(|key| taint["key"] == key) && taint["effect"] == effect
        };
        if let (Some(key), false) = (wanted, taints.iter().any(is)) {
            taints.push(json!({ "key": key, "effect": effect }));
        }
    }
    for taint in taints.iter_mut().filter(|taint| taint["effect"] == "NoExecute") {
        if !taint["timeAdded"].is_string() {
            taint["timeAdded"] = json!(pods::timestamp(now));
        }
    }
    taints
}

/// In how many seconds a pod has to leave because of these taints; `None`: it may stay.
fn leaves_in(pod: &Value, taints: &[Value], now: i64) -> Option<i64> {
    let tolerations = || pod["spec"]["tolerations"].as_array().into_iter().flatten();
    let evicting = taints.iter().filter(|taint| taint["effect"] == "NoExecute");
    let leaves = evicting.filter_map(|taint| {
        let mut fitting = tolerations().filter(|one| tolerates(one, taint)).peekable();
        if fitting.peek().is_none() {
            return Some(0);
        }
        // The most impatient one counts; without a number it is for ever.
        let seconds = fitting.filter_map(|one| one["tolerationSeconds"].as_i64()).min()?;
        let since = pods::seconds(&taint["timeAdded"]).unwrap_or(now);
        Some((since + seconds.max(0) - now).max(0))
    });
    leaves.min()
}

fn tolerates(toleration: &Value, taint: &Value) -> bool {
    let empty = |value: &Value| value.as_str().unwrap_or_default().is_empty();
    let exists = toleration["operator"] == "Exists";
    let key = toleration["key"] == taint["key"] || (empty(&toleration["key"]) && exists);
    let effect = empty(&toleration["effect"]) || toleration["effect"] == taint["effect"];
    let value = exists
        || toleration["value"] == taint["value"]
        || (empty(&toleration["value"]) && empty(&taint["value"]));
    key && effect && value
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_000_000;

    fn node(ready: &str, taints: Value) -> Arc<Value> {
        Arc::new(json!({"kind": "Node", "metadata": {"name": "n", "resourceVersion": "7"},
            "spec": {"taints": taints},
            "status": {"conditions": [{"type": "Ready", "status": ready}, {"type": "Other", "status": "True"}]}}))
    }

    fn heard(second: i64) -> Value {
        json!({"spec": {"renewTime": pods::timestamp(second)}})
    }

    fn pod(name: &str, tolerations: Value) -> Arc<Value> {
        Arc::new(json!({"kind": "Pod", "metadata": {"name": name, "namespace": "ns"},
            "spec": {"tolerations": tolerations},
            "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}}))
    }

    fn for_seconds(seconds: Option<i64>) -> Value {
        let mut toleration =
            json!({"key": UNREACHABLE, "operator": "Exists", "effect": "NoExecute"});
        if let Some(seconds) = seconds {
            toleration["tolerationSeconds"] = json!(seconds);
        }
        json!([toleration])
    }

    #[test]
    fn a_node_that_is_heard_of_is_left_alone() {
        let done =
            plan(&node("True", Value::Null), Some(&heard(NOW - 10)), &[pod("p", json!([]))], NOW);
        assert_eq!((done.actions, done.again_after), (vec![], Some(31)));
        assert!(!concerns_pods(&node("True", Value::Null), Some(&heard(NOW - 10)), NOW));
    }

    #[test]
    fn pods_of_a_silent_node_leave_when_their_patience_ends() {
        let pods = [
            pod("now", json!([])),
            pod("later", for_seconds(Some(300))),
            pod("never", for_seconds(None)),
        ];
        let lease = heard(NOW - 41);
        assert!(concerns_pods(&node("True", Value::Null), Some(&lease), NOW));
        let done = plan(&node("True", Value::Null), Some(&lease), &pods, NOW);
        let deleted = |plan: &Plan| -> Vec<String> {
            let name_of = |action: &Action| match action {
                Action::Delete { object, .. } => Some(name(object).to_owned()),
                _ => None,
            };
            plan.actions.iter().filter_map(name_of).collect()
        };
        assert_eq!((deleted(&done), done.again_after), (vec!["now".to_owned()], Some(300)));
        let Action::Merge { patch, .. } = &done.actions[0] else { panic!("{:?}", done.actions) };
        let taints = patch["spec"]["taints"].clone();
        assert_eq!(taints[1]["timeAdded"], pods::timestamp(NOW));
        assert_eq!(patch["metadata"]["resourceVersion"], "7");
        let statuses = done.actions.iter().filter(|action| matches!(action, Action::Status { .. }));
        // The node's, and those of its three pods.
        assert_eq!(statuses.count(), 4);
        let done = plan(&node("Unknown", taints.clone()), Some(&lease), &pods[1..], NOW + 300);
        assert_eq!(deleted(&done), ["later"]);
        // It comes back.
        let done = plan(&node("True", taints), Some(&heard(NOW + 400)), &[], NOW + 400);
        let Action::Merge { patch, .. } = &done.actions[0] else { panic!("{:?}", done.actions) };
        assert_eq!(patch["spec"]["taints"], json!([]));
    }

    #[test]
    fn other_taints_stay_and_evict_too() {
        let taint = json!([{"key": "k", "value": "v", "effect": "NoExecute"}]);
        let tolerant = json!([{"key": "k", "operator": "Equal", "value": "v"}]);
        let pods = [pod("stays", tolerant), pod("goes", json!([]))];
        let done = plan(&node("True", taint), Some(&heard(NOW)), &pods, NOW);
        let names: Vec<&str> = done
            .actions
            .iter()
            .filter_map(|action| match action {
                Action::Delete { object, .. } => Some(name(object)),
                _ => None,
            })
            .collect();
        assert_eq!(names, ["goes"]);
    }
}
