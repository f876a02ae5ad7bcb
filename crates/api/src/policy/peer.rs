//! Selectors and prefixes in manifests.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use model::label::{KEY_CLUSTER, KEY_NAMESPACE, KEY_NAMESPACE_LABELS, SOURCE_K8S};
use model::{LabelSelector, Operator, Requirement};

use super::Context;
use super::field::{Field, read_all};

/// Longest name of a label, and longest value.
const WORD_LEN_MAX: usize = 63;
/// Longest prefix of a label's name.
const PREFIX_LEN_MAX: usize = 253;

/// What the keys of a selector are keys of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Keys {
    /// Labels of any source, or of the one that is written before a colon.
    Cilium,
    /// Labels of pods.
    Pod,
    /// Labels of namespaces.
    Namespace,
    /// Labels of nodes.
    Node,
    /// Labels of `CiliumCIDRGroup`s.
    CidrGroup,
}

impl Keys {
    fn requirement(self, key: &str, operator: Operator) -> Requirement {
        let (source, key) = match self {
            Self::Cilium => return Requirement::new(key, operator),
            Self::Pod => (SOURCE_K8S, key.to_owned()),
            Self::Namespace => (SOURCE_K8S, format!("{KEY_NAMESPACE_LABELS}.{key}")),
            Self::Node => {
                let sources = ["node:", "any:", "k8s:"];
                let bare = sources.iter().find_map(|source| key.strip_prefix(source));
                ("node", bare.unwrap_or(key).to_owned())
            }
            Self::CidrGroup => ("cidrgroup", key.to_owned()),
        };
        Requirement { source: Some(Arc::from(source)), key: Arc::from(key), operator }
    }

    /// The part of a key whose form Kubernetes prescribes; `None` where it prescribes none.
    fn kubernetes_part(self, key: &str) -> Option<&str> {
        match (self, key.split_once(':')) {
            (Self::Cilium | Self::Node, Some(("k8s" | "any" | "node" | "", rest))) => Some(rest),
            (Self::Cilium, Some(_)) => None,
            _ => Some(key),
        }
    }
}

/// Reads the requirements of a label selector.
pub(super) fn requirements(field: &Field<'_>, keys: Keys) -> Option<Vec<Requirement>> {
    let object = field.object(&["matchLabels", "matchExpressions"])?;
    let mut requirements = Some(Vec::new());
    let mut add = |more: Option<Vec<Requirement>>| match (&mut requirements, more) {
        (Some(all), Some(more)) => all.extend(more),
        _ => requirements = None,
    };
    if let Some(labels) = object.field("matchLabels") {
        add(match_labels(&labels, keys));
    }
    if let Some(expressions) = object.field("matchExpressions") {
        add(expressions.list().and_then(|items| read_all(items, |item| expression(&item, keys))));
    }
    requirements
}

fn match_labels(field: &Field<'_>, keys: Keys) -> Option<Vec<Requirement>> {
    let labels = field.texts()?;
    let read = labels.into_iter().map(|(key, value)| {
        if let Err(reason) = check_key(key, keys).and_then(|()| check_value(value, keys, key)) {
            return field.wrong(format!("{key:?}: {reason}"));
        }
        Some(keys.requirement(key, Operator::In([Arc::from(value)].into())))
    });
    read.collect::<Vec<_>>().into_iter().collect()
}

fn expression(field: &Field<'_>, keys: Keys) -> Option<Requirement> {
    let object = field.object(&["key", "operator", "values"])?;
    let key_field = object.required("key");
    let key = key_field.as_ref().and_then(Field::text);
    let operator = object.required("operator");
    let operator_text = operator.as_ref().and_then(Field::text);
    let values = match object.field("values") {
        Some(values) => {
            let items = values.list()?;
            read_all(items, |item| Some((item.text()?, item)))?
        }
        None => Vec::new(),
    };
    let (key, operator, operator_text) = (key?, operator?, operator_text?);
    if let (Err(reason), Some(key_field)) = (check_key(key, keys), &key_field) {
        return key_field.wrong(reason);
    }
    for (value, item) in &values {
        if let Err(reason) = check_value(value, keys, key) {
            return item.wrong(reason);
        }
    }
    let texts = || values.iter().map(|(value, _)| Arc::from(*value)).collect();
    let empty = values.is_empty();
    let read = match (operator_text, empty) {
        ("In", false) => Operator::In(texts()),
        ("NotIn", false) => Operator::NotIn(texts()),
        ("Exists", true) => Operator::Exists,
        ("DoesNotExist", true) => Operator::DoesNotExist,
        ("In" | "NotIn", true) => {
            return field.wrong(format!("operator {operator_text} needs values"));
        }
        ("Exists" | "DoesNotExist", false) => {
            return field.wrong(format!("operator {operator_text} takes no values"));
        }
        _ => return operator.wrong("must be In, NotIn, Exists or DoesNotExist"),
    };
    Some(keys.requirement(key, read))
}

fn check_key(key: &str, keys: Keys) -> Result<(), String> {
    let Some(key) = keys.kubernetes_part(key) else { return Ok(()) };
    let (prefix, name) = match key.rsplit_once('/') {
        Some((prefix, name)) => (Some(prefix), name),
        None => (None, key),
    };
    if prefix.is_some_and(|prefix| prefix.is_empty() || prefix.len() > PREFIX_LEN_MAX) {
        return Err(format!(
            "the part before the slash must have 1 to {PREFIX_LEN_MAX} characters"
        ));
    }
    if name.is_empty() {
        return Err("the key of a label must not be empty".to_owned());
    }
    check_word(name, if keys == Keys::Cilium { PREFIX_LEN_MAX } else { WORD_LEN_MAX })
}

fn check_value(value: &str, keys: Keys, key: &str) -> Result<(), String> {
    if value.is_empty() || keys.kubernetes_part(key).is_none() {
        return Ok(());
    }
    check_word(value, WORD_LEN_MAX)
}

fn check_word(word: &str, len_max: usize) -> Result<(), String> {
    let inner = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let ends = |c: char| c.is_ascii_alphanumeric();
    if word.len() > len_max {
        return Err(format!(
            "{word:?} has {} characters; at most {len_max} are allowed",
            word.len()
        ));
    }
    if !word.chars().all(inner) || !word.starts_with(ends) || !word.ends_with(ends) {
        return Err(format!(
            "{word:?} must consist of letters, digits, '-', '_' and '.', and begin and end with a \
             letter or digit"
        ));
    }
    Ok(())
}

/// How selectors of endpoints in a Cilium policy are completed.
#[derive(Clone, Copy, Debug)]
pub(super) struct PeerScope<'a> {
    /// The policy's namespace; empty for a policy of the cluster.
    pub(super) namespace: &'a str,
    /// Whether the subject is endpoints that have no labels yet, and so no namespace.
    pub(super) for_init: bool,
    pub(super) context: &'a Context,
}

impl PeerScope<'_> {
    /// Endpoints as peers: of the policy's namespace unless they say of which, of the own cluster
    /// unless they say of which. Reserved labels belong to no namespace and to no cluster.
    pub(super) fn complete(&self, mut requirements: Vec<Requirement>) -> LabelSelector {
        if requirements.iter().any(|one| one.source.as_deref() == Some("reserved")) {
            return LabelSelector::new(requirements);
        }
        let about = |key: &str| requirements.iter().any(|one| one.is_about(SOURCE_K8S, key));
        let about_namespaces = requirements.iter().any(|one| {
            one.source.as_deref().is_none_or(|source| source == SOURCE_K8S)
                && one.key.starts_with(KEY_NAMESPACE_LABELS)
        });
        let scope = match self.namespace {
            _ if about(KEY_NAMESPACE) => None,
            "" if self.for_init => None,
            "" => Some(k8s_label(KEY_NAMESPACE, Operator::Exists)),
            _ if about_namespaces => None,
            namespace => Some(k8s_equals(KEY_NAMESPACE, namespace)),
        };
        requirements.extend(scope);
        in_cluster(requirements, self.context)
    }
}

/// Adds that endpoints are of the own cluster, unless the selector says of which.
pub(super) fn in_cluster(mut requirements: Vec<Requirement>, context: &Context) -> LabelSelector {
    let says = requirements.iter().any(|one| one.is_about(SOURCE_K8S, KEY_CLUSTER));
    if context.default_local_cluster && !says {
        requirements.push(k8s_equals(KEY_CLUSTER, &context.cluster_name));
    }
    LabelSelector::new(requirements)
}

/// A requirement on a label of Kubernetes.
pub(super) fn k8s_label(key: &str, operator: Operator) -> Requirement {
    Requirement { source: Some(Arc::from(SOURCE_K8S)), key: Arc::from(key), operator }
}

/// A label of Kubernetes has this value.
pub(super) fn k8s_equals(key: &str, value: &str) -> Requirement {
    k8s_label(key, Operator::In([Arc::from(value)].into()))
}

/// Reads a selector of namespaces: it means pods, which are in one. What is in none (the outside, the
/// node) would fulfil conditions that ask for a label to be absent.
pub(super) fn namespaces(field: &Field<'_>) -> Option<Vec<Requirement>> {
    let mut requirements = requirements(field, Keys::Namespace)?;
    requirements.push(k8s_label(KEY_NAMESPACE, Operator::Exists));
    Some(requirements)
}

/// Reads a prefix, `address/length`; host bits are cut off.
pub(super) fn prefix(field: &Field<'_>) -> Option<IpNet> {
    let text = field.text()?;
    match text.parse::<IpNet>() {
        Ok(prefix) => Some(prefix.trunc()),
        Err(_) => field.wrong(format!("{text:?} is not a CIDR; write address/length")),
    }
}

/// Reads a prefix or an address.
pub(super) fn prefix_or_address(field: &Field<'_>) -> Option<IpNet> {
    let text = field.text()?;
    let address = text.parse::<IpAddr>().map(IpNet::from);
    match text.parse::<IpNet>().ok().or(address.ok()) {
        Some(prefix) => Some(prefix.trunc()),
        None => field.wrong(format!("{text:?} is not a CIDR; write address/length or an address")),
    }
}

/// Reads the exceptions from a prefix; each must be inside it. Without a prefix they stand alone.
pub(super) fn exceptions(field: &Field<'_>, within: Option<IpNet>) -> Option<Box<[IpNet]>> {
    let items = field.list()?;
    let mut prefixes = read_all(items, |item| {
        let except = prefix(&item)?;
        match within {
            Some(within) if !within.contains(&except) => {
                item.wrong(format!("{except} is not inside {within}"))
            }
            _ => Some(except),
        }
    })?;
    prefixes.sort();
    prefixes.dedup();
    Some(prefixes.into())
}
