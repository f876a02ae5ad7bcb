//! Waiting until what a manifest asks for is there: pods Ready, workloads with all their pods.

use std::collections::HashMap;
use std::time::Duration;

use anyhow::{Result, bail};
use k8s_openapi::api::core::v1::Pod;
use serde_json::Value;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};

use crate::cluster::{Applied, Change, Cluster, PODS};

/// Kinds that are waited for, by the names of their stores.
const WAITED_FOR: [(&str, &str); 4] = [
    ("Pod", PODS),
    ("Deployment", "deployments.apps"),
    ("StatefulSet", "statefulsets.apps"),
    ("DaemonSet", "daemonsets.apps"),
];

/// Waits until pods are Ready or have succeeded, and workloads have the pods they want.
pub async fn wait(
    cluster: &Cluster,
    applied: Vec<Applied>,
    timeout: Duration,
    progress: &mpsc::UnboundedSender<String>,
) -> Result<()> {
    let deadline = Instant::now() + timeout;
    let known = |kind: &str| WAITED_FOR.iter().any(|(waited, _)| *waited == kind);
    let mut waiting: Vec<Applied> = applied.into_iter().filter(|a| known(&a.kind)).collect();
    let count = waiting.len();
    // In order of the table: when pods are Ready, workloads mostly are as well.
    for (kind, resource) in WAITED_FOR {
        let mut watch = cluster.watch(resource);
        let mut last: HashMap<String, String> = HashMap::new();
        while waiting.iter().any(|object| object.kind == kind) {
            let Ok(change) = timeout_at(deadline, watch.next()).await else {
                bail!(
                    "after {} s these are not Ready: {}; `kubectl describe` says more",
                    timeout.as_secs(),
                    states(&waiting, &last).join(", ")
                );
            };
            let of = |object: &Applied| {
                object.kind == kind
                    && object.namespace == change.namespace()
                    && object.name == change.name()
            };
            let Some(index) = waiting.iter().position(of) else { continue };
            match judge(kind, &change) {
                Progress::Ready(place) => {
                    waiting.swap_remove(index);
                    let kind = kind.to_lowercase();
                    let done = count - waiting.len();
                    // Nobody has to listen.
                    let _ = progress
                        .send(format!("{kind} {} Ready{place} ({done}/{count})", change.name()));
                }
                Progress::Hopeless(why) => {
                    bail!("pod {}/{} cannot start: {why}", change.namespace(), change.name())
                }
                Progress::Waiting(why) => drop(last.insert(change.name().to_owned(), why)),
            }
        }
    }
    Ok(())
}

fn states(waiting: &[Applied], last: &HashMap<String, String>) -> Vec<String> {
    let state = |object: &Applied| {
        let (kind, state) = (object.kind.to_lowercase(), last.get(&object.name));
        let state = state.map_or("Pending", String::as_str);
        format!("{kind} {}/{} ({state})", object.namespace, object.name)
    };
    waiting.iter().map(state).collect()
}

enum Progress {
    /// It is there, at this place.
    Ready(String),
    Waiting(String),
    Hopeless(String),
}

fn judge(kind: &str, change: &Change) -> Progress {
    match kind {
        "Pod" => match change.typed::<Pod>() {
            Some(pod) => judge_pod(&pod),
            None => Progress::Waiting("Pending".to_owned()),
        },
        _ => judge_workload(kind, &change.object.value()),
    }
}

fn judge_workload(kind: &str, object: &Value) -> Progress {
    let status = &object["status"];
    let number = |value: &Value| value.as_i64().unwrap_or_default();
    let (wanted, ready) = match kind {
        "DaemonSet" => (number(&status["desiredNumberScheduled"]), number(&status["numberReady"])),
        _ => (object["spec"]["replicas"].as_i64().unwrap_or(1), number(&status["readyReplicas"])),
    };
    let seen = number(&status["observedGeneration"]) >= number(&object["metadata"]["generation"]);
    match seen && ready >= wanted {
        true => Progress::Ready(format!(" with {ready} pods")),
        false => Progress::Waiting(format!("{ready} of {wanted} pods Ready")),
    }
}

fn judge_pod(pod: &Pod) -> Progress {
    let status = pod.status.clone().unwrap_or_default();
    let ready =
        status.conditions.iter().flatten().any(|c| c.type_ == "Ready" && c.status == "True");
    if ready || status.phase.as_deref() == Some("Succeeded") {
        let node = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref());
        return Progress::Ready(format!(" on {}", node.unwrap_or_default()));
    }
    let containers = status.container_statuses.unwrap_or_default();
    let waiting = containers.iter().find_map(|c| c.state.as_ref()?.waiting.as_ref());
    let reason = waiting.and_then(|w| w.reason.clone()).unwrap_or_else(|| "Pending".to_owned());
    if matches!(reason.as_str(), "ErrImagePull" | "ImagePullBackOff") {
        let message = waiting.and_then(|w| w.message.clone()).unwrap_or(reason);
        return Progress::Hopeless(message);
    }
    Progress::Waiting(reason)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_workload_is_there_when_all_its_pods_are() {
        let check = |kind: &str, object: Value, expected: bool| {
            let ready = matches!(judge_workload(kind, &object), Progress::Ready(_));
            assert_eq!(ready, expected, "{kind} {object}");
        };
        let deployment = |generation: i64, ready: i64| {
            json!({"metadata": {"generation": 2}, "spec": {"replicas": 2},
                "status": {"observedGeneration": generation, "readyReplicas": ready}})
        };
        check("Deployment", deployment(2, 2), true);
        check("Deployment", deployment(2, 1), false);
        check("Deployment", deployment(1, 2), false);
        let set = json!({"status": {"desiredNumberScheduled": 2, "numberReady": 2}});
        check("DaemonSet", set, true);
    }
}
