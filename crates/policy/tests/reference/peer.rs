//! Whom rules mean: the peer clauses of the languages.

use std::net::IpAddr;

use ipnet::IpNet;
use serde_json::Value;

use super::selector::{Labels, selects_peer};
use super::{Case, Covers, Direction, Kind, Pod, list, net, texts};

/// The clauses of an element of `ingress` or `egress`; conditionally where names decide, which
/// nobody knows the addresses of.
pub(super) fn of_cilium(item: &Value, case: &Case<'_>, namespace: Option<&str>) -> Covers {
    let prefix = match case.direction {
        Direction::Ingress => "from",
        Direction::Egress => "to",
    };
    let clause = |kind: &str| &item[format!("{prefix}{kind}")];
    const KINDS: [&str; 6] = ["Endpoints", "CIDR", "CIDRSet", "Entities", "Nodes", "FQDNs"];
    if KINDS.iter().all(|kind| clause(kind).is_null()) {
        // Ports alone mean everybody; nothing at all means nobody.
        let has_ports = !list(&item["toPorts"]).is_empty() || !list(&item["icmps"]).is_empty();
        return if has_ports { Covers::Yes } else { Covers::No };
    }
    let labels = case.peer.labels(case.world);
    let selects = |selector| selects_peer(selector, namespace, case.world, &labels);
    let by_endpoints = list(clause("Endpoints")).iter().any(selects);
    let by_cidr = list(clause("CIDR")).iter().filter_map(net).any(|net| is_outside_in(case, net));
    let by_set = list(clause("CIDRSet")).iter().any(|set| in_set(case, set));
    let by_entity = texts(clause("Entities")).any(|entity| is_entity(case, &labels, entity));
    let by_node = list(clause("Nodes")).iter().any(|selector| is_node(case, selector));
    if by_endpoints || by_cidr || by_set || by_entity || by_node {
        return Covers::Yes;
    }
    // A name may stand for anybody.
    match list(clause("FQDNs")).is_empty() {
        true => Covers::No,
        false => Covers::Conditionally,
    }
}

/// Prefixes mean addresses outside of the cluster only.
fn is_outside_in(case: &Case<'_>, net: IpNet) -> bool {
    matches!(case.peer.kind, Kind::World) && net.contains(&case.peer.address)
}

fn in_set(case: &Case<'_>, set: &Value) -> bool {
    let mut nets: Vec<IpNet> = net(&set["cidr"]).into_iter().collect();
    let is_meant = |group: &Value| match (&set["cidrGroupRef"], &set["cidrGroupSelector"]) {
        (Value::String(name), _) => group["metadata"]["name"] == *name,
        (_, Value::Null) => false,
        (_, selector) => {
            let labels = group["metadata"]["labels"].as_object().into_iter().flatten();
            let labels =
                labels.filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned())));
            Labels::plain(&labels.collect()).matches(selector)
        }
    };
    for group in case.world.groups.iter().filter(|group| is_meant(group)) {
        nets.extend(list(&group["spec"]["externalCIDRs"]).iter().filter_map(net));
    }
    let mut except = list(&set["except"]).iter().filter_map(net);
    nets.iter().any(|net| is_outside_in(case, *net)) && !except.any(|net| is_outside_in(case, net))
}

fn is_entity(case: &Case<'_>, labels: &Labels, entity: &str) -> bool {
    let is_world = matches!(case.peer.kind, Kind::World);
    match entity {
        "all" => true,
        "world" => is_world,
        "world-ipv4" => is_world && matches!(case.peer.address, IpAddr::V4(_)),
        "world-ipv6" => is_world && matches!(case.peer.address, IpAddr::V6(_)),
        "cluster" => !is_world && labels.cluster().is_none_or(|c| c == case.world.cluster),
        "cluster-mesh" => !is_world,
        "none" => false,
        reserved => labels.has_reserved(reserved),
    }
}

fn is_node(case: &Case<'_>, selector: &Value) -> bool {
    match &case.peer.kind {
        Kind::Node { labels, .. } => Labels::plain(labels).matches(selector),
        _ => false,
    }
}

/// `from` or `to` of a `NetworkPolicy`.
pub(super) fn of_kubernetes(rule: &Value, case: &Case<'_>, namespace: Option<&str>) -> bool {
    let peers = match case.direction {
        Direction::Ingress => list(&rule["from"]),
        Direction::Egress => list(&rule["to"]),
    };
    let is_meant = |peer: &Value| {
        if !peer["ipBlock"].is_null() {
            return in_set(case, &peer["ipBlock"]);
        }
        let Some(pod) = local_pod(case) else { return false };
        let is_namespace = match &peer["namespaceSelector"] {
            Value::Null => namespace == Some(pod.namespace.as_str()),
            selector => is_in_namespace(case, pod, selector),
        };
        is_namespace && Labels::plain(&pod.labels).matches(&peer["podSelector"])
    };
    peers.is_empty() || peers.iter().any(is_meant)
}

/// `from` or `to` of a `ClusterNetworkPolicy`.
pub(super) fn of_cluster_policy(rule: &Value, case: &Case<'_>) -> bool {
    let peers = match case.direction {
        Direction::Ingress => &rule["from"],
        Direction::Egress => &rule["to"],
    };
    list(peers).iter().any(|peer| {
        if !peer["networks"].is_null() {
            return list(&peer["networks"])
                .iter()
                .filter_map(net)
                .any(|net| is_outside_in(case, net));
        }
        if !peer["nodes"].is_null() {
            return is_node(case, &peer["nodes"]);
        }
        local_pod(case).is_some_and(|pod| is_pod_of(case, pod, peer))
    })
}

pub(super) fn is_cluster_subject(subject: &Value, case: &Case<'_>) -> bool {
    match &case.subject.kind {
        Kind::Pod(pod) => is_pod_of(case, pod, subject),
        _ => false,
    }
}

/// `namespaces`, or `pods` with both selectors.
fn is_pod_of(case: &Case<'_>, pod: &Pod, peer: &Value) -> bool {
    if !peer["namespaces"].is_null() {
        return is_in_namespace(case, pod, &peer["namespaces"]);
    }
    is_in_namespace(case, pod, &peer["pods"]["namespaceSelector"])
        && Labels::plain(&pod.labels).matches(&peer["pods"]["podSelector"])
}

fn is_in_namespace(case: &Case<'_>, pod: &Pod, selector: &Value) -> bool {
    let labels = case.world.namespaces.get(&pod.namespace);
    labels.is_some_and(|labels| Labels::plain(labels).matches(selector))
}

/// Selectors of Kubernetes know the pods of their own cluster.
fn local_pod<'a>(case: &'a Case<'_>) -> Option<&'a Pod> {
    match &case.peer.kind {
        Kind::Pod(pod) if pod.cluster == case.world.cluster => Some(pod),
        _ => None,
    }
}
