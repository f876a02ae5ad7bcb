//! ReplicaSets: as many pods as asked for.

use std::sync::Arc;

use serde_json::{Value, json};

use super::pods::{self, is_active, is_deleting, name};
use super::{Action, PODS, Plan, REPLICA_SETS};

/// Most pods that are made or deleted at once, so that others get their turn.
const BURST: usize = 100;

pub(super) fn plan(set: &Arc<Value>, owned: &[Arc<Value>], now: i64) -> Plan {
    let mut plan = Plan::default();
    let wanted = usize::try_from(set["spec"]["replicas"].as_i64().unwrap_or(1)).unwrap_or(0);
    let mut active: Vec<Arc<Value>> = owned.iter().filter(|pod| is_active(pod)).cloned().collect();
    plan.status(REPLICA_SETS, set, status(set, &active, now));
    let min_ready = set["spec"]["minReadySeconds"].as_i64().unwrap_or(0);
    let waits = active.iter().filter_map(|pod| pods::available_in(pod, min_ready, now));
    waits.filter(|wait| *wait > 0).for_each(|wait| plan.again(wait));
    if is_deleting(set) {
        return plan;
    }
    for _ in 0..wanted.saturating_sub(active.len()).min(BURST) {
        plan.push(Action::Create { resource: PODS, object: pods::from_template(set) });
    }
    let surplus = active.len().saturating_sub(wanted).min(BURST);
    pods::least_needed_first(&mut active);
    for pod in &active[..surplus] {
        plan.push(Action::Delete { resource: PODS, object: pod.clone() });
        plan.event(set, "SuccessfulDelete", format!("Deleted pod: {}", name(pod)));
    }
    plan
}

fn status(set: &Value, active: &[Arc<Value>], now: i64) -> Value {
    let min_ready = set["spec"]["minReadySeconds"].as_i64().unwrap_or(0);
    let labels = json!({ "matchLabels": set["spec"]["template"]["metadata"]["labels"] });
    let labelled = active.iter().filter(|pod| super::selects(&labels, &pod["metadata"]["labels"]));
    let available = active.iter().filter(|pod| pods::available_in(pod, min_ready, now) == Some(0));
    json!({
        "replicas": active.len(),
        "fullyLabeledReplicas": labelled.count(),
        "readyReplicas": active.iter().filter(|pod| pods::is_ready(pod)).count(),
        "availableReplicas": available.count(),
        "observedGeneration": set["metadata"]["generation"],
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::controllers::pods::tests::pod_of;

    fn set(replicas: i64) -> Arc<Value> {
        Arc::new(json!({
            "apiVersion": "apps/v1", "kind": "ReplicaSet",
            "metadata": { "name": "web", "namespace": "n", "uid": "u", "generation": 1 },
            "spec": { "replicas": replicas, "selector": { "matchLabels": { "a": "b" } },
                "template": { "metadata": { "labels": { "a": "b" } }, "spec": {} } },
        }))
    }

    fn check(replicas: i64, ready: &[bool], created: usize, deleted: &[&str]) {
        let set = set(replicas);
        let pods: Vec<_> = ready
            .iter()
            .enumerate()
            .map(|(n, ready)| pod_of(&set, &format!("p{n}"), *ready))
            .collect();
        let plan = plan(&set, &pods, 10);
        let creates = plan.actions.iter().filter(|action| matches!(action, Action::Create { .. }));
        assert_eq!(creates.count(), created);
        let deletes = plan.actions.iter().filter_map(|action| match action {
            Action::Delete { object, .. } => Some(name(object)),
            _ => None,
        });
        assert_eq!(deletes.collect::<Vec<_>>(), deleted);
    }

    #[test]
    fn as_many_pods_as_asked_for() {
        check(3, &[], 3, &[]);
        check(3, &[true, false], 1, &[]);
        check(2, &[true, true], 0, &[]);
        // The one that is not ready goes first.
        check(1, &[true, false], 0, &["p1"]);
        check(0, &[true, false], 0, &["p1", "p0"]);
    }

    #[test]
    fn the_status_counts() {
        let set = set(2);
        let pods = [pod_of(&set, "a", true), pod_of(&set, "b", false)];
        let status = status(&set, &pods, 10);
        assert_eq!(
            (&status["replicas"], &status["readyReplicas"], &status["availableReplicas"]),
            (&json!(2), &json!(1), &json!(1))
        );
    }
}
