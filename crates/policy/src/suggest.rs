//! A rule that would let a flow pass, as a manifest to apply.

use std::fmt::Write as _;

use model::label::{
    KEY_CLUSTER, KEY_NAMESPACE, KEY_NAMESPACE_LABELS, KEY_SERVICE_ACCOUNT, SOURCE_CIDR, SOURCE_K8S,
    SOURCE_RESERVED,
};
use model::{Label, Labels};

use crate::port::Protocol;
use crate::repository::SubjectKind;
use crate::rule::{Direction, Entity};
use crate::trace::DirectionQuery;

/// A policy that allows what is asked for; `None` where none can say it.
pub(crate) fn suggestion(query: &DirectionQuery, peer: &Labels, cluster: &str) -> Option<String> {
    let subject = &query.subject.labels;
    let namespace =
        subject.namespace().filter(|_| query.subject.subject != Some(SubjectKind::Host));
    let direction = query.direction;
    let way = if direction == Direction::Ingress { "from" } else { "to" };
    let peers = peers(peer, way, cluster)?;
    let mut yaml = String::from("apiVersion: cilium.io/v2\n");
    let (kind, scope) = match namespace {
        Some(namespace) => ("CiliumNetworkPolicy", format!("  namespace: {namespace:?}\n")),
        None => ("CiliumClusterwideNetworkPolicy", String::new()),
    };
    let name = name(query);
    // Writing to a string cannot fail.
    let _ = write!(yaml, "kind: {kind}\nmetadata:\n  name: {name}\n{scope}spec:\n");
    match query.subject.subject {
        Some(SubjectKind::Host) => yaml.push_str("  nodeSelector: {}\n"),
        _ => {
            let labels = match_labels(subject, cluster, namespace.is_some());
            let _ = write!(yaml, "  endpointSelector:{}", block(&labels, "    "));
        }
    }
    let _ = write!(yaml, "  {direction}:\n  - {peers}{}", ports(query));
    Some(yaml)
}

fn name(query: &DirectionQuery) -> String {
    let protocol = match query.protocol.name() {
        Some(name) => name.to_ascii_lowercase(),
        None => format!("protocol-{}", query.protocol.0),
    };
    format!("allow-{}-{protocol}-{}", query.direction, query.port)
}

/// The peers of an item, ending in a line break.
fn peers(peer: &Labels, way: &str, cluster: &str) -> Option<String> {
    if let Some(prefix) = peer.iter().find(|label| label.source == SOURCE_CIDR) {
        let prefix = prefix.key.replace('-', ":");
        return Some(format!("{way}CIDR:\n    - {prefix:?}\n"));
    }
    let mut reserved = peer.iter().filter(|label| label.source == SOURCE_RESERVED);
    if let Some(label) = reserved.next() {
        let entity = Entity::named(&label.key)?;
        return Some(format!("{way}Entities:\n    - {}\n", entity.as_str()));
    }
    let labels = match_labels(peer, cluster, false);
    Some(format!("{way}Endpoints:\n    - {}", inline(&labels)))
}

/// The labels that tell workloads apart. What a policy's namespace says anyway is left out, and what
/// follows from the namespace.
fn match_labels(labels: &Labels, cluster: &str, without_namespace: bool) -> Vec<Label> {
    let told = |label: &&Label| {
        let key = label.key.as_str();
        let own_cluster = key == KEY_CLUSTER && label.value == cluster;
        let implied = key == KEY_SERVICE_ACCOUNT || key.starts_with(KEY_NAMESPACE_LABELS);
        label.source != SOURCE_K8S
            || !(own_cluster || implied || without_namespace && key == KEY_NAMESPACE)
    };
    labels.iter().filter(told).cloned().collect()
}

/// Labels as a selector below a field.
fn block(labels: &[Label], indent: &str) -> String {
    if labels.is_empty() {
        return " {}\n".to_owned();
    }
    let mut yaml = format!("\n{indent}matchLabels:\n");
    for label in labels {
        let _ = writeln!(yaml, "{indent}  {:?}: {:?}", label.source_and_key(), label.value);
    }
    yaml
}

/// Labels as a selector that is an item of a list.
fn inline(labels: &[Label]) -> String {
    if labels.is_empty() {
        return "{}\n".to_owned();
    }
    let mut yaml = "matchLabels:\n".to_owned();
    for label in labels {
        let _ = writeln!(yaml, "        {:?}: {:?}", label.source_and_key(), label.value);
    }
    yaml
}

/// The ports of an item, ending in a line break; nothing where all are meant.
fn ports(query: &DirectionQuery) -> String {
    let icmp = |family| {
        format!(
            "    icmps:\n    - fields:\n      - family: {family}\n        type: {}\n",
            query.port
        )
    };
    match query.protocol {
        Protocol::ICMP => icmp("IPv4"),
        Protocol::ICMPV6 => icmp("IPv6"),
        protocol if protocol.has_ports() => format!(
            "    toPorts:\n    - ports:\n      - port: \"{}\"\n        protocol: {protocol}\n",
            query.port
        ),
        protocol => match protocol.name() {
            Some(name) => format!("    toPorts:\n    - ports:\n      - protocol: {name}\n"),
            None => String::new(),
        },
    }
}
