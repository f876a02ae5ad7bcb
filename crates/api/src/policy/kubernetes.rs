//! Kubernetes' `NetworkPolicy`.

use std::sync::Arc;

use model::label::KEY_NAMESPACE;
use model::{LabelSelector, Labels};
use policy::{
    Clause, Direction, List, PeerSelector, Peers, PerDirection, Place, Port, Rule, SubjectSelector,
    Tier, Verdict,
};

use super::field::{Field, Object, read_all};
use super::peer::{Keys, exceptions, in_cluster, k8s_equals, namespaces, prefix, requirements};
use super::{Context, port};

/// Reads `spec`.
pub(super) fn rule(field: &Field<'_>, namespace: &str, context: &Context) -> Option<Rule> {
    let object = field.object(&["podSelector", "policyTypes", "ingress", "egress"])?;
    // Kubernetes requires the selector, but takes a missing one for the empty one.
    let subject = match object.field("podSelector") {
        Some(selector) => requirements(&selector, Keys::Pod),
        None => Some(Vec::new()),
    };
    let applies = policy_types(&object);
    let mut clauses = PerDirection::<Vec<Clause>>::default();
    let mut complete = true;
    for (direction, list) in
        [(Direction::Ingress, List::Ingress), (Direction::Egress, List::Egress)]
    {
        let Some(items) = object.field(list.as_str()) else { continue };
        match read_clauses(&items, list, namespace, context) {
            Some(read) => clauses[direction] = read,
            None => complete = false,
        }
    }
    let (mut subject, default_deny) = (subject?, applies?);
    subject.push(k8s_equals(KEY_NAMESPACE, namespace));
    for direction in Direction::BOTH {
        if !default_deny[direction] {
            // The policy does not speak of this direction, whatever rules it has.
            clauses[direction].clear();
        }
    }
    complete.then(|| Rule {
        spec: None,
        subject: SubjectSelector::Endpoints(Arc::new(LabelSelector::new(subject))),
        tier: Tier::Normal,
        default_deny,
        clauses,
        labels: Labels::new(),
        log: None,
    })
}

/// The directions that the policy speaks of: those it names, or ingress, and egress if it has rules.
fn policy_types(object: &Object<'_>) -> Option<PerDirection<bool>> {
    let implied = PerDirection { ingress: true, egress: object.says("egress") };
    let Some(field) = object.field("policyTypes") else { return Some(implied) };
    let types = read_all(field.list()?, |item| match item.text()? {
        "Ingress" => Some(Direction::Ingress),
        "Egress" => Some(Direction::Egress),
        _ => item.wrong("must be Ingress or Egress"),
    })?;
    if types.is_empty() {
        return Some(implied);
    }
    Some(PerDirection {
        ingress: types.contains(&Direction::Ingress),
        egress: types.contains(&Direction::Egress),
    })
}

fn read_clauses(
    field: &Field<'_>,
    list: List,
    namespace: &str,
    context: &Context,
) -> Option<Vec<Clause>> {
    let way = if list == List::Ingress { "from" } else { "to" };
    let mut index = 0;
    read_all(field.list_up_to(usize::from(u16::MAX))?, |item| {
        let place = Place { list, index };
        index = index.saturating_add(1);
        let object = item.object(&[way, "ports"])?;
        let peers = match object.field(way) {
            Some(peers) if object.says(way) => Some(Peers::Of(read_all(peers.list()?, |peer| {
                peer_selector(&peer, namespace, context).map(Arc::new)
            })?)),
            Some(peers) => peers.list().map(|_| Peers::Any),
            None => Some(Peers::Any),
        };
        let ports = match object.field("ports") {
            Some(ports) if object.says("ports") => port::kubernetes_ports(&ports).map(|read| {
                read.into_iter().map(|ports| Port { ports, unenforced: None }).collect()
            }),
            Some(ports) => ports.list().map(|_| vec![Port::ALL]),
            None => Some(vec![Port::ALL]),
        };
        Some(Clause { place, verdict: Verdict::Allow, priority: 0, peers: peers?, ports: ports? })
    })
}

fn peer_selector(field: &Field<'_>, namespace: &str, context: &Context) -> Option<PeerSelector> {
    let object = field.object(&["podSelector", "namespaceSelector", "ipBlock"])?;
    let selectors = (object.field("podSelector"), object.field("namespaceSelector"));
    if let Some(block) = object.field("ipBlock") {
        if selectors.0.is_some() || selectors.1.is_some() {
            return field.wrong("ipBlock cannot be combined with podSelector or namespaceSelector");
        }
        return ip_block(&block);
    }
    let requirements = match selectors {
        (None, None) => {
            return field.wrong("must have podSelector, namespaceSelector or ipBlock");
        }
        (Some(pods), None) => {
            let mut pods = requirements(&pods, Keys::Pod)?;
            pods.push(k8s_equals(KEY_NAMESPACE, namespace));
            pods
        }
        (None, Some(of_namespaces)) => namespaces(&of_namespaces)?,
        (Some(pods), Some(of_namespaces)) => {
            let mut both = requirements(&pods, Keys::Pod)?;
            both.extend(namespaces(&of_namespaces)?);
            both
        }
    };
    Some(PeerSelector::Labels(in_cluster(requirements, context)))
}

fn ip_block(field: &Field<'_>) -> Option<PeerSelector> {
    let object = field.object(&["cidr", "except"])?;
    let prefix = prefix(&object.required("cidr")?)?;
    let except = match object.field("except") {
        Some(field) => exceptions(&field, Some(prefix))?,
        None => Box::default(),
    };
    Some(PeerSelector::Cidr { prefix, except })
}
