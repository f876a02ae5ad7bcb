//! Kubernetes' `ClusterNetworkPolicy` v1alpha2.

use std::sync::Arc;

use model::label::KEY_NAMESPACE;
use model::{LabelSelector, Labels, Operator, Requirement};
use policy::{
    Clause, List, PeerSelector, Peers, PerDirection, Place, Port, Rule, SubjectSelector, Tier,
    Unenforced, Verdict,
};

use super::field::{Field, read_all};
use super::peer::{Keys, in_cluster, k8s_label, namespaces, prefix, requirements};
use super::{Context, Note, port};

/// The most rules of a direction, peers of a rule, and networks of a peer.
const ITEMS_MAX: usize = 25;
/// The last priority.
const PRIORITY_MAX: i64 = 1000;
/// Rules of one policy come one after the other: this many fit between two priorities.
const RULES_PER_PRIORITY: u32 = 100;

/// Reads `spec`.
pub(super) fn rule(field: &Field<'_>, context: &Context, notes: &mut Vec<Note>) -> Option<Rule> {
    let object = field.object(&["tier", "priority", "subject", "ingress", "egress"])?;
    let tier = object.required("tier").and_then(|tier| match tier.text()? {
        "Admin" => Some(Tier::Admin),
        "Baseline" => Some(Tier::Baseline),
        _ => tier.wrong("must be Admin or Baseline"),
    });
    let priority = object.required("priority").and_then(|field| field.number(0, PRIORITY_MAX));
    let subject = object.required("subject").and_then(|field| subject(&field));
    let base = priority.unwrap_or_default() as u32 * RULES_PER_PRIORITY;
    let mut clauses = |list: List| match object.field(list.as_str()) {
        Some(items) => read_clauses(&items, list, base, context, notes),
        None => Some(Vec::new()),
    };
    let (ingress, egress) = (clauses(List::Ingress), clauses(List::Egress));
    priority?;
    Some(Rule {
        spec: None,
        subject: SubjectSelector::Endpoints(Arc::new(subject?)),
        tier: tier?,
        default_deny: PerDirection::default(),
        clauses: PerDirection { ingress: ingress?, egress: egress? },
        labels: Labels::new(),
        log: None,
    })
}

fn subject(field: &Field<'_>) -> Option<LabelSelector> {
    let object = field.object(&["namespaces", "pods"])?;
    match (object.field("namespaces"), object.field("pods")) {
        (Some(selector), None) => Some(LabelSelector::new(namespaces(&selector)?)),
        (None, Some(selector)) => Some(LabelSelector::new(pods(&selector)?)),
        _ => field.wrong("must be exactly one of namespaces, pods"),
    }
}

/// Reads `{namespaceSelector, podSelector}`.
fn pods(field: &Field<'_>) -> Option<Vec<Requirement>> {
    let object = field.object(&["namespaceSelector", "podSelector"])?;
    let mut both = match object.field("namespaceSelector") {
        Some(selector) => namespaces(&selector)?,
        None => vec![k8s_label(KEY_NAMESPACE, Operator::Exists)],
    };
    if let Some(selector) = object.field("podSelector") {
        both.extend(requirements(&selector, Keys::Pod)?);
    }
    Some(both)
}

fn read_clauses(
    field: &Field<'_>,
    list: List,
    base: u32,
    context: &Context,
    notes: &mut Vec<Note>,
) -> Option<Vec<Clause>> {
    let way = if list == List::Ingress { "from" } else { "to" };
    let mut index = 0;
    read_all(field.list_up_to(ITEMS_MAX)?, |item| {
        let place = Place { list, index };
        index += 1;
        let object = item.object(&["name", "action", way, "protocols"])?;
        if let Some(name) = object.field("name") {
            name.text()?;
        }
        let verdict = object.required("action").and_then(|action| match action.text()? {
            "Accept" => Some(Verdict::Allow),
            "Deny" => Some(Verdict::Deny),
            "Pass" => Some(Verdict::Pass),
            _ => action.wrong("must be Accept, Deny or Pass"),
        });
        let peers = match object.field(way) {
            Some(peers) if object.says(way) => {
                let peers = read_all(peers.list_up_to(ITEMS_MAX)?, |peer| {
                    peer_selectors(&peer, list, verdict, context, notes)
                });
                peers.map(|peers| Peers::Of(peers.into_iter().flatten().map(Arc::new).collect()))
            }
            _ => Some(Peers::Any),
        };
        let ports = match object.field("protocols") {
            Some(ports) if object.says("protocols") => port::cluster_protocols(&ports)
                .map(|all| all.into_iter().map(|ports| Port { ports, unenforced: None }).collect()),
            _ => Some(vec![Port::ALL]),
        };
        let priority = base + u32::from(place.index);
        Some(Clause { place, verdict: verdict?, priority, peers: peers?, ports: ports? })
    })
}

fn peer_selectors(
    field: &Field<'_>,
    list: List,
    verdict: Option<Verdict>,
    context: &Context,
    notes: &mut Vec<Note>,
) -> Option<Vec<PeerSelector>> {
    let known: &[&str] = match list {
        List::Ingress => &["namespaces", "pods"],
        _ => &["namespaces", "pods", "nodes", "networks", "domainNames"],
    };
    let object = field.object(known)?;
    let present: Vec<&str> = known.iter().copied().filter(|name| object.has(name)).collect();
    let [kind] = present[..] else {
        return field.wrong(format!("must be exactly one of {}", known.join(", ")));
    };
    let peer = object.field(kind)?;
    let labels = |read: Option<Vec<Requirement>>| {
        Some(vec![PeerSelector::Labels(in_cluster(read?, context))])
    };
    match kind {
        "namespaces" => labels(namespaces(&peer)),
        "pods" => labels(pods(&peer)),
        "nodes" if !context.node_selectors => {
            peer.wrong("needs the option enable-node-selector-labels")
        }
        "nodes" => {
            let requirements = requirements(&peer, Keys::Node)?;
            Some(vec![PeerSelector::Nodes(LabelSelector::new(requirements))])
        }
        "networks" => read_all(peer.list_up_to(ITEMS_MAX)?, |item| {
            Some(PeerSelector::Cidr { prefix: prefix(&item)?, except: Box::default() })
        }),
        _ => {
            if !matches!(verdict, None | Some(Verdict::Allow)) {
                return peer.wrong("is allowed with action Accept only");
            }
            notes.push(Note { path: peer.path().to_owned(), asks: Unenforced::Names });
            read_all(peer.list_up_to(ITEMS_MAX)?, |item| {
                let name = item.text()?;
                if name.is_empty() {
                    return item.wrong("must not be empty");
                }
                Some(PeerSelector::Name(name.to_ascii_lowercase().into()))
            })
        }
    }
}
