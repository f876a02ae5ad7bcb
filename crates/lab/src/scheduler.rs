//! Chooses a node for each pod: the part of kube-scheduler that a test cluster needs.
//!
//! A node is possible if it is ready, not cordoned, matches the pod's node selector and required
//! node affinity, has no taint that the pod does not tolerate, and no pod that the pod's required
//! anti-affinity (or the other's) excludes. Of the possible ones the emptiest wins, counted first
//! by pods like this one (same namespace and labels), then by all pods.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, NodeSelectorTerm, Pod, PodAffinityTerm, Taint, Toleration};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use serde_json::json;
use tracing::warn;

use crate::apiserver::now;
use crate::cluster::{Change, Cluster, NODES, PODS};

type Labels = BTreeMap<String, String>;

/// Assigns pods to nodes for as long as the lab runs.
pub async fn run(cluster: Cluster) {
    let mut pods = cluster.watch(PODS);
    let mut nodes = cluster.watch(NODES);
    let mut state = State::default();
    loop {
        tokio::select! {
            change = pods.next() => state.pod_changed(&change),
            change = nodes.next() => state.node_changed(&change),
        }
        for (pod, choice) in state.assign() {
            tell(&cluster, &pod, choice);
        }
    }
}

/// Writes down where a pod goes, or why it goes nowhere.
fn tell(cluster: &Cluster, pod: &Pod, choice: Result<String, String>) {
    let meta = &pod.metadata;
    let (namespace, name) = (meta.namespace.as_deref(), meta.name.as_deref());
    let (namespace, name) = (namespace.unwrap_or_default(), name.unwrap_or_default());
    let written = match choice {
        Ok(node) => {
            let uid = meta.uid.as_deref().unwrap_or_default();
            let bound = cluster.bind(namespace, name, uid, &node);
            if bound.is_ok() {
                let message = format!("Successfully assigned {namespace}/{name} to {node}");
                cluster.pod_event(pod, "cilium-lab-scheduler", "Normal", "Scheduled", &message);
            }
            bound
        }
        Err(message) => {
            let conditions =
                pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
            if conditions
                .into_iter()
                .any(|c| c.type_ == "PodScheduled" && c.message.as_ref() == Some(&message))
            {
                return;
            }
            cluster.pod_event(pod, "cilium-lab-scheduler", "Warning", "FailedScheduling", &message);
            let condition = json!({
                "type": "PodScheduled", "status": "False", "reason": "Unschedulable",
                "message": message, "lastTransitionTime": now(),
            });
            cluster.merge(
                PODS,
                namespace,
                name,
                "status",
                json!({"status": {"conditions": [condition]}}),
            )
        }
    };
    if let Err(error) = written {
        warn!(pod = name, namespace, "scheduling: {error:#}");
    }
}

#[derive(Default)]
struct State {
    pods: HashMap<String, Arc<Pod>>,
    nodes: BTreeMap<String, Node>,
}

impl State {
    fn node_changed(&mut self, change: &Change) {
        match change.typed::<Node>().filter(|_| !change.gone) {
            Some(node) => self.nodes.insert(change.name().to_owned(), node),
            None => self.nodes.remove(change.name()),
        };
    }

    /// Takes in a pod. The object may be older than our own decision, which stands.
    fn pod_changed(&mut self, change: &Change) {
        let uid: &str = &change.object.uid;
        let Some(mut pod) = change.typed::<Pod>().filter(|_| !change.gone) else {
            self.pods.remove(uid);
            return;
        };
        let known = self.pods.get(uid).and_then(|old| node_of(old)).map(str::to_owned);
        if let (None, Some(node)) = (node_of(&pod), known) {
            pod.spec.get_or_insert_default().node_name = Some(node);
        }
        self.pods.insert(uid.to_owned(), Arc::new(pod));
    }

    /// Decides for every pod that has no node yet, oldest first.
    fn assign(&mut self) -> Vec<(Arc<Pod>, Result<String, String>)> {
        let waiting = self.pods.values().filter(|pod| node_of(pod).is_none() && !deleting(pod));
        let mut waiting: Vec<Arc<Pod>> = waiting.cloned().collect();
        waiting.sort_by_key(|pod| {
            (pod.metadata.creation_timestamp.clone(), pod.metadata.name.clone())
        });
        let decide = |pod: Arc<Pod>| {
            let placed: Vec<Arc<Pod>> =
                self.pods.values().filter(|p| node_of(p).is_some()).cloned().collect();
            let choice = choose(&pod, &self.nodes, &placed);
            if let (Ok(node), Some(uid)) = (&choice, &pod.metadata.uid) {
                // The next decision must see this one.
                let mut assigned = Pod::clone(&pod);
                assigned.spec.get_or_insert_default().node_name = Some(node.clone());
                self.pods.insert(uid.clone(), Arc::new(assigned));
            }
            (pod, choice)
        };
        waiting.into_iter().map(decide).collect()
    }
}

fn node_of(pod: &Pod) -> Option<&str> {
    pod.spec.as_ref()?.node_name.as_deref().filter(|name| !name.is_empty())
}

fn deleting(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_some()
}

/// The node for a pod, or the reasons against each.
fn choose(
    pod: &Pod,
    nodes: &BTreeMap<String, Node>,
    placed: &[Arc<Pod>],
) -> Result<String, String> {
    let mut against: BTreeMap<&'static str, usize> = BTreeMap::new();
    let mut best: Option<((usize, usize), &String)> = None;
    for (name, node) in nodes {
        if let Some(reason) = objection(pod, name, node, placed) {
            *against.entry(reason).or_default() += 1;
            continue;
        }
        let here = placed.iter().filter(|other| node_of(other) == Some(name));
        let (mut alike, mut all) = (0, 0);
        for other in here {
            all += 1;
            let same = other.metadata.labels == pod.metadata.labels
                && other.metadata.namespace == pod.metadata.namespace;
            alike += usize::from(same);
        }
        if best.is_none_or(|(load, _)| (alike, all) < load) {
            best = Some(((alike, all), name));
        }
    }
    best.map(|(_, name)| name.clone()).ok_or_else(|| {
        let reasons = against.iter().map(|(reason, count)| format!("{count} {reason}"));
        let reasons: Vec<String> = reasons.collect();
        format!("0/{} nodes are available: {}.", nodes.len(), reasons.join(", "))
    })
}

/// Why a node will not do.
fn objection(pod: &Pod, name: &str, node: &Node, placed: &[Arc<Pod>]) -> Option<&'static str> {
    let spec = pod.spec.clone().unwrap_or_default();
    let node_spec = node.spec.clone().unwrap_or_default();
    let labels = node.metadata.labels.clone().unwrap_or_default();
    if node_spec.unschedulable == Some(true) {
        return Some("node(s) were unschedulable");
    }
    let conditions = node.status.iter().flat_map(|s| s.conditions.iter().flatten());
    if !conditions.into_iter().any(|c| c.type_ == "Ready" && c.status == "True") {
        return Some("node(s) were not ready");
    }
    let selector = spec.node_selector.unwrap_or_default();
    let affinity = spec.affinity.unwrap_or_default();
    let required =
        affinity.node_affinity.and_then(|a| a.required_during_scheduling_ignored_during_execution);
    let required = required.map(|r| r.node_selector_terms);
    let selected = selector.iter().all(|(key, value)| labels.get(key) == Some(value))
        && required.is_none_or(|terms| terms.iter().any(|term| term_matches(term, &labels, name)));
    if !selected {
        return Some("node(s) didn't match Pod's node affinity/selector");
    }
    let tolerations = spec.tolerations.unwrap_or_default();
    let taints = node_spec.taints.unwrap_or_default();
    if taints.iter().any(|taint| repels(taint, &tolerations)) {
        return Some("node(s) had untolerated taint(s)");
    }
    let here = || placed.iter().filter(|other| node_of(other) == Some(name));
    let own_terms = anti_affinity(pod);
    let namespace = &pod.metadata.namespace;
    let excluded =
        here().any(|other| own_terms.iter().any(|term| excludes(term, namespace, other)));
    let excluding = here().any(|other| {
        let terms = anti_affinity(other);
        terms.iter().any(|term| excludes(term, &other.metadata.namespace, pod))
    });
    (excluded || excluding).then_some("node(s) didn't satisfy anti-affinity rules")
}

fn anti_affinity(pod: &Pod) -> Vec<PodAffinityTerm> {
    let affinity = pod.spec.as_ref().and_then(|s| s.affinity.as_ref());
    let anti = affinity.and_then(|a| a.pod_anti_affinity.as_ref());
    anti.and_then(|a| a.required_during_scheduling_ignored_during_execution.clone())
        .unwrap_or_default()
}

/// Whether a term of a pod in `namespace` keeps `other` off the node. All topologies are the node.
fn excludes(term: &PodAffinityTerm, namespace: &Option<String>, other: &Pod) -> bool {
    let in_namespace = match &term.namespaces {
        Some(names) if !names.is_empty() => {
            other.metadata.namespace.as_ref().is_some_and(|own| names.contains(own))
        }
        _ => other.metadata.namespace == *namespace,
    };
    let labels = other.metadata.labels.clone().unwrap_or_default();
    in_namespace && term.label_selector.as_ref().is_some_and(|s| selector_matches(s, &labels))
}

fn selector_matches(selector: &LabelSelector, labels: &Labels) -> bool {
    let equal = selector.match_labels.iter().flatten();
    let mut expressions = selector.match_expressions.iter().flatten();
    equal.into_iter().all(|(key, value)| labels.get(key) == Some(value))
        && expressions.all(|e| expression(&e.operator, e.values.as_deref(), labels.get(&e.key)))
}

fn term_matches(term: &NodeSelectorTerm, labels: &Labels, name: &str) -> bool {
    let mut by_label = term.match_expressions.iter().flatten();
    let mut by_field = term.match_fields.iter().flatten();
    let name = name.to_owned();
    by_label.all(|e| expression(&e.operator, e.values.as_deref(), labels.get(&e.key)))
        && by_field.all(|e| {
            e.key == "metadata.name" && expression(&e.operator, e.values.as_deref(), Some(&name))
        })
}

fn expression(operator: &str, values: Option<&[String]>, value: Option<&String>) -> bool {
    let values = values.unwrap_or_default();
    let number = |text: &String| text.parse::<i64>().ok();
    let bound = values.first().and_then(number);
    match operator {
        "In" => value.is_some_and(|value| values.contains(value)),
        "NotIn" => value.is_none_or(|value| !values.contains(value)),
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => value.and_then(number).zip(bound).is_some_and(|(value, bound)| value > bound),
        "Lt" => value.and_then(number).zip(bound).is_some_and(|(value, bound)| value < bound),
        _ => false,
    }
}

fn repels(taint: &Taint, tolerations: &[Toleration]) -> bool {
    let tolerated = |toleration: &Toleration| {
        let effect = toleration.effect.as_deref().filter(|e| !e.is_empty());
        let key = toleration.key.as_deref().filter(|k| !k.is_empty());
        let exists = toleration.operator.as_deref() == Some("Exists");
        effect.is_none_or(|effect| effect == taint.effect)
            && key.map_or(exists, |key| key == taint.key)
            && (exists
                || toleration.value.as_deref().unwrap_or_default()
                    == taint.value.as_deref().unwrap_or_default())
    };
    taint.effect != "PreferNoSchedule" && !tolerations.iter().any(tolerated)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    fn nodes(specs: &[(&str, Value)]) -> BTreeMap<String, Node> {
        let node = |name: &str, spec: &Value| {
            serde_json::from_value(json!({
                "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}},
                "spec": spec,
                "status": {"conditions": [{"type": "Ready", "status": "True"}]},
            }))
            .unwrap()
        };
        specs.iter().map(|(name, spec)| ((*name).to_owned(), node(name, spec))).collect()
    }

    fn pod(name: &str, spec: &Value) -> Pod {
        let mut spec = spec.clone();
        spec["containers"] = json!([]);
        serde_json::from_value(json!({
            "metadata": {"name": name, "namespace": "ns", "uid": name, "labels": {"app": "a"}},
            "spec": spec,
        }))
        .unwrap()
    }

    fn check(spec: &Value, nodes: &BTreeMap<String, Node>, expected: Result<&str, &str>) {
        let got = choose(&pod("p", spec), nodes, &[]);
        assert_eq!(got, expected.map(str::to_owned).map_err(str::to_owned));
    }

    #[test]
    fn only_possible_nodes_are_chosen() {
        let taint = json!({"taints": [{"key": "k", "value": "v", "effect": "NoSchedule"}]});
        let two = nodes(&[("n1", taint), ("n2", json!({"unschedulable": true}))]);
        check(
            &json!({}),
            &two,
            Err(
                "0/2 nodes are available: 1 node(s) had untolerated taint(s), 1 node(s) were unschedulable.",
            ),
        );
        check(
            &json!({"tolerations": [{"key": "k", "operator": "Equal", "value": "v"}]}),
            &two,
            Ok("n1"),
        );
        check(&json!({"tolerations": [{"operator": "Exists"}]}), &two, Ok("n1"));
        let two = nodes(&[("n1", json!({})), ("n2", json!({}))]);
        check(&json!({"nodeSelector": {"kubernetes.io/hostname": "n2"}}), &two, Ok("n2"));
        let affinity = json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {
            "nodeSelectorTerms": [{"matchExpressions": [
                {"key": "kubernetes.io/hostname", "operator": "NotIn", "values": ["n1"]}]}]}}});
        check(&json!({"affinity": affinity}), &two, Ok("n2"));
    }

    #[test]
    fn pods_spread_and_keep_apart() {
        let mut state =
            State { nodes: nodes(&[("n1", json!({})), ("n2", json!({}))]), ..State::default() };
        let apart = json!({"affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [
            {"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": {"app": "a"}}}]}}});
        for name in ["p1", "p2", "p3"] {
            state.pods.insert(name.to_owned(), Arc::new(pod(name, &apart)));
        }
        let choices =
            state.assign().into_iter().map(|(_, choice)| choice.is_ok()).collect::<Vec<_>>();
        assert_eq!(choices, [true, true, false]);
    }
}
