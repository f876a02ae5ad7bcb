//! Label selectors, over labels with a source.

use std::collections::BTreeMap;

use serde_json::Value;

use super::{Pod, World, list, texts};

const NAMESPACE: &str = "io.kubernetes.pod.namespace";
const NAMESPACE_LABELS: &str = "io.cilium.k8s.namespace.labels";
const CLUSTER: &str = "io.cilium.k8s.policy.cluster";
const SERVICE_ACCOUNT: &str = "io.cilium.k8s.policy.serviceaccount";

/// Labels as (source, key, value).
pub(super) struct Labels(Vec<(&'static str, String, String)>);

impl Labels {
    pub(super) fn of_pod(pod: &Pod, world: &World) -> Self {
        let mut labels = Self::plain(&pod.labels);
        let mut add = |key: &str, value: &str| {
            labels.0.push(("k8s", key.to_owned(), value.to_owned()));
        };
        add(NAMESPACE, &pod.namespace);
        add(CLUSTER, &pod.cluster);
        add(SERVICE_ACCOUNT, &pod.service_account);
        for (key, value) in world.namespaces.get(&pod.namespace).into_iter().flatten() {
            add(&format!("{NAMESPACE_LABELS}.{key}"), value);
        }
        labels
    }

    /// Labels of a Kubernetes object.
    pub(super) fn plain(labels: &BTreeMap<String, String>) -> Self {
        Self(labels.iter().map(|(key, value)| ("k8s", key.clone(), value.clone())).collect())
    }

    pub(super) fn reserved(names: &[&str]) -> Self {
        Self(names.iter().map(|name| ("reserved", (*name).to_owned(), String::new())).collect())
    }

    pub(super) fn namespace(&self) -> Option<&str> {
        self.value(NAMESPACE)
    }

    pub(super) fn cluster(&self) -> Option<&str> {
        self.value(CLUSTER)
    }

    pub(super) fn has_reserved(&self, name: &str) -> bool {
        self.0.iter().any(|(source, key, _)| *source == "reserved" && key == name)
    }

    fn value(&self, name: &str) -> Option<&str> {
        let (wanted, name) = split(name);
        let is_meant =
            |source: &str, key: &str| key == name && (wanted == "any" || wanted == source);
        let found = self.0.iter().find(|(source, key, _)| is_meant(source, key));
        found.map(|(_, _, value)| value.as_str())
    }

    /// Whether a selector selects these labels; an empty one selects all.
    pub(super) fn matches(&self, selector: &Value) -> bool {
        let equal = selector["matchLabels"].as_object().into_iter().flatten();
        let mut equal = equal.map(|(key, value)| self.value(key) == value.as_str());
        equal.all(|holds| holds)
            && list(&selector["matchExpressions"]).iter().all(|expression| self.holds(expression))
    }

    fn holds(&self, expression: &Value) -> bool {
        let value = expression["key"].as_str().and_then(|key| self.value(key));
        let is_listed =
            || value.is_some_and(|value| texts(&expression["values"]).any(|v| v == value));
        match expression["operator"].as_str() {
            Some("In") => is_listed(),
            Some("NotIn") => !is_listed(),
            Some("Exists") => value.is_some(),
            Some("DoesNotExist") => value.is_none(),
            other => panic!("the generator makes no operator {other:?}"),
        }
    }
}

/// Source and key of a key in a selector. Keys of Kubernetes have no colon.
fn split(name: &str) -> (&str, &str) {
    name.split_once(':').unwrap_or(("any", name))
}

fn keys(selector: &Value) -> impl Iterator<Item = &str> {
    let of_labels = selector["matchLabels"].as_object().into_iter().flatten();
    let of_expressions = list(&selector["matchExpressions"]).iter();
    of_labels
        .map(|(key, _)| key.as_str())
        .chain(of_expressions.filter_map(|expression| expression["key"].as_str()))
}

/// Whether a selector of peers, of a policy in this namespace or in none, selects an endpoint.
pub(super) fn selects_peer(
    selector: &Value,
    namespace: Option<&str>,
    world: &World,
    labels: &Labels,
) -> bool {
    if !labels.matches(selector) {
        return false;
    }
    if keys(selector).any(|key| key.starts_with("reserved:")) {
        return true;
    }
    let names_cluster = keys(selector).any(|key| split(key).1 == CLUSTER);
    if !names_cluster && labels.cluster() != Some(world.cluster.as_str()) {
        return false;
    }
    let names_namespace = |key: &str| {
        let key = split(key).1;
        key == NAMESPACE || key.starts_with(NAMESPACE_LABELS)
    };
    match namespace {
        None => labels.namespace().is_some(),
        Some(_) if keys(selector).any(names_namespace) => true,
        Some(namespace) => labels.namespace() == Some(namespace),
    }
}
