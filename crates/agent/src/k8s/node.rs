//! Our `CiliumNode`: it tells the others our addresses, and us our pod CIDRs.

use std::net::IpAddr;

use api::crd::{CILIUM_INTERNAL_IP, CiliumNode, FIELD_MANAGER_AGENT, INTERNAL_IP, NodeAddress};
use api::k8s::Node;
use ipnet::IpNet;
use kube::api::{ObjectMeta, Patch, PatchParams, PostParams};
use kube::{Api, Client};
use model::NodeName;
use serde_json::json;

use super::{convert, is_conflict, is_not_found};

/// What the API server knows of this node.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Announced {
    /// Addresses of the Kubernetes node.
    pub addresses: Vec<IpAddr>,
    /// Prefixes in the Kubernetes node.
    pub kubernetes_cidrs: Vec<IpNet>,
    /// Prefixes that the operator gave us.
    pub cilium_cidrs: Vec<IpNet>,
    /// The router's addresses, as they were before.
    pub routers: Vec<IpAddr>,
    /// Why the operator could not give us prefixes; empty when it has nothing to say.
    pub operator_error: String,
}

/// The two objects of this node.
pub struct OwnNode {
    nodes: Api<Node>,
    cilium_nodes: Api<CiliumNode>,
    name: NodeName,
}

impl OwnNode {
    /// The node of this name.
    pub fn new(client: Client, name: NodeName) -> Self {
        Self { nodes: Api::all(client.clone()), cilium_nodes: Api::all(client), name }
    }

    /// Reads both; a `CiliumNode` that is not there yet counts as empty.
    pub async fn read(&self) -> Result<Announced, kube::Error> {
        let name = self.name.as_str();
        let (node, cilium_node) =
            tokio::try_join!(self.nodes.get(name), self.cilium_nodes.get_opt(name))?;
        let (addresses, kubernetes_cidrs) = convert::node_addresses(&node);
        let mut announced = Announced { addresses, kubernetes_cidrs, ..Announced::default() };
        if let Some(cilium_node) = cilium_node {
            announced.cilium_cidrs = cilium_node.pod_cidrs().map(|cidr| cidr.trunc()).collect();
            announced.routers = cilium_node.addresses(CILIUM_INTERNAL_IP).collect();
            announced.operator_error = cilium_node.status.ipam.operator_status.error;
        }
        Ok(announced)
    }

    /// Makes the `CiliumNode` say these addresses, and in mode `kubernetes` these prefixes. What
    /// belongs to the operator stays as it is.
    pub async fn announce(
        &self,
        addresses: &[IpAddr],
        routers: &[IpAddr],
        health: &[IpAddr],
        pod_cidrs: Option<&[IpNet]>,
    ) -> Result<(), kube::Error> {
        let of_kind = |kind: &str, addresses: &[IpAddr]| -> Vec<NodeAddress> {
            let address = |ip: &IpAddr| NodeAddress { kind: kind.to_owned(), ip: ip.to_string() };
            addresses.iter().map(address).collect()
        };
        let mut all = of_kind(INTERNAL_IP, addresses);
        all.extend(of_kind(CILIUM_INTERNAL_IP, routers));
        let health_of = |is_ipv4| health.iter().find(|ip| ip.is_ipv4() == is_ipv4);
        // What is null is removed by the patch.
        let pair = json!({ "ipv4": health_of(true), "ipv6": health_of(false) });
        let pair = if health.is_empty() { serde_json::Value::Null } else { pair };
        let mut spec = json!({ "addresses": all, "health": pair });
        if let Some(cidrs) = pod_cidrs {
            spec["ipam"] = json!({ "podCIDRs": cidrs });
        }
        let patch = json!({ "spec": spec });
        let params = PatchParams {
            field_manager: Some(FIELD_MANAGER_AGENT.into()),
            ..PatchParams::default()
        };
        match self.cilium_nodes.patch(self.name.as_str(), &params, &Patch::Merge(&patch)).await {
            Ok(_) => Ok(()),
            Err(error) if is_not_found(&error) => self.create(all, pod_cidrs).await,
            Err(error) => Err(error),
        }
    }

    /// Creates the `CiliumNode`, owned by the Kubernetes node so that it goes with it.
    async fn create(
        &self,
        addresses: Vec<NodeAddress>,
        pod_cidrs: Option<&[IpNet]>,
    ) -> Result<(), kube::Error> {
        let node = self.nodes.get(self.name.as_str()).await?;
        let mut object = CiliumNode::new(self.name.as_str());
        object.metadata = ObjectMeta {
            labels: node.metadata.labels.clone(),
            owner_references: kube::Resource::owner_ref(&node, &()).map(|owner| vec![owner]),
            ..object.metadata
        };
        object.spec.addresses = addresses;
        object.spec.ipam.pod_cidrs =
            pod_cidrs.unwrap_or_default().iter().map(ToString::to_string).collect();
        match self.cilium_nodes.create(&PostParams::default(), &object).await {
            // Somebody was faster; the next announcement patches it.
            Err(error) if !is_conflict(&error) => Err(error),
            _ => Ok(()),
        }
    }
}
