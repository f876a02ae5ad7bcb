//! Labels, `source:key=value`, and sets of them: what an identity stands for.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Where labels of Kubernetes objects come from.
pub const SOURCE_K8S: &str = "k8s";
/// Where labels of reserved identities come from.
pub const SOURCE_RESERVED: &str = "reserved";
/// Where labels of prefixes come from.
pub const SOURCE_CIDR: &str = "cidr";
/// Matches labels of every source.
pub const SOURCE_ANY: &str = "any";
/// The source of a label that names none.
pub const SOURCE_UNSPEC: &str = "unspec";

/// Key of the label that names a pod's namespace.
pub const KEY_NAMESPACE: &str = "io.kubernetes.pod.namespace";
/// What stands before the keys of a namespace's own labels.
pub const KEY_NAMESPACE_LABELS: &str = "io.cilium.k8s.namespace.labels";
/// Key of the label that names a pod's cluster.
pub const KEY_CLUSTER: &str = "io.cilium.k8s.policy.cluster";
/// Key of the label that names a pod's service account.
pub const KEY_SERVICE_ACCOUNT: &str = "io.cilium.k8s.policy.serviceaccount";

/// One label. Ordered by key, then value, then source, as Cilium sorts them.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Label {
    /// Who says so: `k8s`, `reserved`, `cidr`, …
    pub source: String,
    /// Key; not empty.
    pub key: String,
    /// Value; may be empty.
    pub value: String,
}

/// A label could not be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("label {text:?} has no key; write source:key=value")]
pub struct ParseLabelError {
    text: String,
}

impl Label {
    /// A label from its parts.
    pub fn new(
        source: impl Into<String>,
        key: impl Into<String>,
        value: impl Into<String>,
    ) -> Self {
        Self { source: source.into(), key: key.into(), value: value.into() }
    }

    /// `source:key`, the key under which `CiliumIdentity` keeps the value.
    pub fn source_and_key(&self) -> String {
        format!("{}:{}", self.source, self.key)
    }
}

impl Ord for Label {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (&self.key, &self.value, &self.source).cmp(&(&other.key, &other.value, &other.source))
    }
}

impl PartialOrd for Label {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.source, self.key)?;
        if self.value.is_empty() { Ok(()) } else { write!(f, "={}", self.value) }
    }
}

impl FromStr for Label {
    type Err = ParseLabelError;

    /// Reads `source:key=value`, `key=value` (source `unspec`) or without a value; `$name` is short
    /// for `reserved:name`.
    fn from_str(text: &str) -> Result<Self, ParseLabelError> {
        let no_key = || ParseLabelError { text: text.to_owned() };
        if let Some(name) = text.strip_prefix('$') {
            return if name.is_empty() { Err(no_key()) } else { Ok(Self::reserved(name)) };
        }
        let (name, value) = text.split_once('=').unwrap_or((text, ""));
        let (source, key) = match name.split_once(':') {
            Some(("", key)) => (SOURCE_UNSPEC, key),
            Some((source, key)) => (source, key),
            None => (SOURCE_UNSPEC, name),
        };
        if key.is_empty() { Err(no_key()) } else { Ok(Self::new(source, key, value)) }
    }
}

impl Label {
    /// `reserved:<name>`.
    pub fn reserved(name: &str) -> Self {
        Self::new(SOURCE_RESERVED, name, "")
    }

    /// `k8s:<key>=<value>`.
    pub fn k8s(key: &str, value: &str) -> Self {
        Self::new(SOURCE_K8S, key, value)
    }
}

/// A set of labels, at most one per source and key.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Labels(BTreeSet<Label>);

impl Labels {
    /// The empty set.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a label; it takes the place of one of the same source and key.
    pub fn insert(&mut self, label: Label) {
        self.0.retain(|old| (&old.source, &old.key) != (&label.source, &label.key));
        self.0.insert(label);
    }

    /// The labels in order.
    pub fn iter(&self) -> impl Iterator<Item = &Label> {
        self.0.iter()
    }

    /// How many labels there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether exactly this label is in the set.
    pub fn contains(&self, label: &Label) -> bool {
        self.0.contains(label)
    }

    /// The value of the label of this source and key.
    pub fn value(&self, source: &str, key: &str) -> Option<&str> {
        let found = self.0.iter().find(|label| label.source == source && label.key == key);
        found.map(|label| label.value.as_str())
    }

    /// The namespace of the pod that has these labels.
    pub fn namespace(&self) -> Option<&str> {
        self.value(SOURCE_K8S, KEY_NAMESPACE)
    }

    /// The labels as texts `source:key=value`, in order.
    pub fn to_strings(&self) -> Vec<String> {
        self.0.iter().map(Label::to_string).collect()
    }

    /// The map `source:key` → value that `CiliumIdentity` has as `security-labels`.
    pub fn to_map(&self) -> BTreeMap<String, String> {
        self.0.iter().map(|label| (label.source_and_key(), label.value.clone())).collect()
    }

    /// Reads the map that [`Labels::to_map`] writes.
    pub fn from_map<'a>(
        map: impl IntoIterator<Item = (&'a String, &'a String)>,
    ) -> Result<Self, ParseLabelError> {
        map.into_iter()
            .map(|(name, value)| {
                let label: Label = name.parse()?;
                Ok(Label { value: value.clone(), ..label })
            })
            .collect()
    }

    /// The labels of a pod, before any filter.
    pub fn of_pod(pod: &PodLabels<'_>) -> Self {
        let mut labels = Self::new();
        for (key, value) in pod.labels {
            labels.insert(Label::k8s(key, value));
        }
        for (key, value) in pod.namespace_labels {
            labels.insert(Label::k8s(&format!("{KEY_NAMESPACE_LABELS}.{key}"), value));
        }
        // Last, so that a pod cannot claim another namespace, cluster or account.
        labels.insert(Label::k8s(KEY_NAMESPACE, pod.namespace));
        labels.insert(Label::k8s(KEY_CLUSTER, pod.cluster));
        if !pod.service_account.is_empty() {
            labels.insert(Label::k8s(KEY_SERVICE_ACCOUNT, pod.service_account));
        }
        labels
    }
}

/// What a pod's labels are made of.
#[derive(Clone, Copy, Debug)]
pub struct PodLabels<'a> {
    /// Labels of the pod itself.
    pub labels: &'a BTreeMap<String, String>,
    /// Name of its namespace.
    pub namespace: &'a str,
    /// Labels of its namespace.
    pub namespace_labels: &'a BTreeMap<String, String>,
    /// Name of its cluster.
    pub cluster: &'a str,
    /// Name of its service account; empty when not known.
    pub service_account: &'a str,
}

impl FromIterator<Label> for Labels {
    fn from_iter<I: IntoIterator<Item = Label>>(labels: I) -> Self {
        let mut set = Self::new();
        labels.into_iter().for_each(|label| set.insert(label));
        set
    }
}

impl fmt::Display for Labels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.to_strings().join(","))
    }
}

/// A list of texts, as in Cilium's APIs.
impl Serialize for Labels {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.to_strings())
    }
}

impl<'de> Deserialize<'de> for Labels {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let texts = Vec::<String>::deserialize(deserializer)?;
        let labels = texts.iter().map(|text| text.parse()).collect::<Result<Self, _>>();
        labels.map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expected: (&str, &str, &str)) {
        let (source, key, value) = expected;
        assert_eq!(text.parse(), Ok(Label::new(source, key, value)));
    }

    #[test]
    fn labels_are_read() {
        check("k8s:app=web", ("k8s", "app", "web"));
        check("app=web", ("unspec", "app", "web"));
        check("app", ("unspec", "app", ""));
        check("reserved:host", ("reserved", "host", ""));
        check("$host", ("reserved", "host", ""));
        check("k8s:url=http://x:1/?a=b", ("k8s", "url", "http://x:1/?a=b"));
        check(":app", ("unspec", "app", ""));
        for bad in ["", "=web", "k8s:", "k8s:=web", "$"] {
            assert!(bad.parse::<Label>().is_err(), "{bad:?} has no key");
        }
    }

    #[test]
    fn labels_are_printed_as_they_are_read() {
        for text in ["k8s:app=web", "reserved:host", "cidr:10.0.0.0/8", "unspec:a=b"] {
            assert_eq!(text.parse::<Label>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn a_set_has_one_label_per_source_and_key() {
        let labels: Labels =
            ["k8s:a=1", "k8s:a=2", "cni:a=3"].iter().map(|l| l.parse().unwrap()).collect();
        assert_eq!(labels.to_string(), "k8s:a=2,cni:a=3");
        assert_eq!(Labels::from_map(&labels.to_map()), Ok(labels));
    }

    #[test]
    fn a_pod_cannot_claim_another_namespace() {
        let own = BTreeMap::from([
            ("app".to_owned(), "web".to_owned()),
            (KEY_NAMESPACE.to_owned(), "kube-system".to_owned()),
        ]);
        let labels = Labels::of_pod(&PodLabels {
            labels: &own,
            namespace: "default",
            namespace_labels: &BTreeMap::from([("team".to_owned(), "a".to_owned())]),
            cluster: "lab",
            service_account: "web",
        });
        assert_eq!(
            labels.to_strings(),
            [
                "k8s:app=web",
                "k8s:io.cilium.k8s.namespace.labels.team=a",
                "k8s:io.cilium.k8s.policy.cluster=lab",
                "k8s:io.cilium.k8s.policy.serviceaccount=web",
                "k8s:io.kubernetes.pod.namespace=default",
            ]
        );
    }
}
