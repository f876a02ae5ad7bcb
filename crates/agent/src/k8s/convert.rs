//! Objects of the API server → rows of the tables. Pure; what an object does not say, or says wrongly,
//! is left out.

use std::net::IpAddr;

use api::crd::{CILIUM_INTERNAL_IP, CiliumEndpoint, CiliumIdentity, CiliumNode, INTERNAL_IP};
use api::k8s::{self, labels, name};
use ipnet::IpNet;
use kube::ResourceExt;
use kube::api::ObjectMeta;
use model::{IdentityId, NodeName, PodName};
use policy::{NamedPort, Protocol};

use crate::identity::Identity;
use crate::tables::{ClusterEndpoint, LocalPod, Namespace, Node};

/// The name of a namespaced object.
pub fn pod_name(meta: &ObjectMeta) -> PodName {
    PodName::new(meta.namespace.clone().unwrap_or_default(), name(meta))
}

/// A pod of this node. One that shares the node's network is no endpoint of ours, and one that has
/// ended holds no address.
pub fn local_pod(pod: &k8s::Pod) -> Option<LocalPod> {
    let ended = matches!(pod.status.phase.as_str(), "Succeeded" | "Failed");
    (!pod.spec.host_network && !ended).then(|| LocalPod {
        name: pod_name(&pod.metadata),
        uid: pod.uid().unwrap_or_default(),
        labels: labels(&pod.metadata).clone(),
        service_account: pod.spec.service_account_name.clone(),
        named_ports: container_ports(pod),
        workload: workload(pod),
    })
}

/// Kind and name of what runs a pod, as people made it: a Deployment rather than its ReplicaSet, a
/// CronJob rather than one of its Jobs. Both put their mark after the name.
fn workload(pod: &k8s::Pod) -> Option<(String, String)> {
    let owners = pod.metadata.owner_references.as_deref().unwrap_or_default();
    let owner = owners.iter().find(|owner| owner.controller == Some(true))?;
    let (kind, name) = (owner.kind.as_str(), owner.name.as_str());
    let before_mark = match kind {
        "ReplicaSet" => labels(&pod.metadata).get("pod-template-hash").and_then(|hash| {
            Some(("Deployment", name.strip_suffix(hash.as_str())?.strip_suffix('-')?))
        }),
        "Job" => name.rsplit_once('-').and_then(|(name, mark)| {
            // Minutes since 1970 of when the job was due.
            let is_time = mark.len() >= 8 && mark.bytes().all(|byte| byte.is_ascii_digit());
            is_time.then_some(("CronJob", name))
        }),
        _ => None,
    };
    let (kind, name) = before_mark.unwrap_or((kind, name));
    Some((kind.to_owned(), name.to_owned()))
}

/// The ports of a pod's containers that have names.
fn container_ports(pod: &k8s::Pod) -> Vec<NamedPort> {
    let ports = pod.spec.containers.iter().flat_map(|container| &container.ports);
    let mut named: Vec<NamedPort> = ports
        .filter_map(|port| named_port(&port.name, &port.protocol, port.container_port))
        .collect();
    named.sort();
    named.dedup();
    named
}

/// A port that has a name and a protocol that we know; without a word it is TCP.
fn named_port(name: &str, protocol: &str, port: u16) -> Option<NamedPort> {
    let protocol = if protocol.is_empty() { "TCP" } else { protocol };
    let protocol = Protocol::named(&protocol.to_ascii_uppercase())?;
    (!name.is_empty()).then(|| NamedPort { name: name.to_ascii_lowercase().into(), protocol, port })
}

/// A namespace.
pub fn namespace(namespace: &k8s::Namespace) -> Namespace {
    Namespace {
        name: name(&namespace.metadata).into_owned(),
        labels: labels(&namespace.metadata).clone(),
    }
}

/// A node; `own` is the name of this one.
pub fn node(node: &CiliumNode, own: &NodeName) -> Node {
    let node_name = NodeName::new(name(&node.metadata));
    let internal = node.addresses(INTERNAL_IP);
    let external = node.addresses("ExternalIP");
    Node {
        local: node_name == *own,
        name: node_name,
        addresses: internal.chain(external).collect(),
        router_addresses: node.addresses(CILIUM_INTERNAL_IP).collect(),
        health_addresses: node.health_addresses().collect(),
        pod_cidrs: node.pod_cidrs().map(|cidr| cidr.trunc()).collect(),
    }
}

/// An endpoint of the cluster.
pub fn cluster_endpoint(endpoint: &CiliumEndpoint) -> ClusterEndpoint {
    let status = &endpoint.status;
    let identity = status.identity.as_ref().and_then(|i| u32::try_from(i.id).ok()).unwrap_or(0);
    let networking = status.networking.as_ref();
    let pairs = networking.map(|n| n.addressing.as_slice()).unwrap_or_default();
    let texts = pairs.iter().flat_map(|pair| [&pair.ipv4, &pair.ipv6]);
    ClusterEndpoint {
        pod: pod_name(&endpoint.metadata),
        endpoint_id: status.id,
        identity: IdentityId(identity),
        state: status.state.clone(),
        node: networking.and_then(|n| n.node.parse().ok()),
        addresses: texts.filter_map(|text| text.parse().ok()).collect(),
        named_ports: status
            .named_ports
            .iter()
            .filter_map(|port| named_port(&port.name, &port.protocol, port.port))
            .collect(),
    }
}

/// An identity; none where the object's name is no number or its labels are none.
pub fn identity(object: &CiliumIdentity) -> Option<Identity> {
    let id = object.id().ok()?;
    let labels = object.labels().ok()?;
    Some(Identity { id, labels: labels.into() })
}

/// What a Kubernetes node says of itself: its addresses and, in mode `kubernetes`, its prefixes.
pub fn node_addresses(node: &k8s::Node) -> (Vec<IpAddr>, Vec<IpNet>) {
    let addresses = node.addresses(INTERNAL_IP).collect();
    let cidrs = node.pod_cidrs().into_iter().filter_map(|cidr| cidr.parse::<IpNet>().ok());
    (addresses, cidrs.map(|cidr| cidr.trunc()).collect())
}
