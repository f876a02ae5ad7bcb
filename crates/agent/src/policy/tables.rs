//! What policies depend on, as the cluster says it: the rows of the intent tables.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use model::{Labels, NodeName};
use policy::{CidrGroup, Policy, PolicyId, PolicyKind, ServiceName};
use statedb::{Row, Table, Writer};

/// A policy object.
#[derive(Debug, Clone, PartialEq)]
pub struct PolicyObject {
    /// Language, namespace and name.
    pub id: PolicyId,
    /// `metadata.generation`.
    pub generation: i64,
    /// `metadata.resourceVersion`; 0 where it is no number.
    pub resource_version: u64,
    /// What it says; none where it was refused.
    pub policy: Option<Arc<Policy>>,
    /// Why it was refused: field and reason.
    pub errors: Arc<[String]>,
    /// Parts of it that are not enforced yet, in words.
    pub not_enforced: Arc<[String]>,
}

impl Row for PolicyObject {
    type Key = PolicyId;
    const HEADERS: &'static [&'static str] = &["POLICY", "GENERATION", "RULES", "ERRORS"];

    fn key(&self) -> PolicyId {
        self.id.clone()
    }

    fn cells(&self) -> Vec<String> {
        vec![
            self.id.to_string(),
            self.generation.to_string(),
            self.policy.as_ref().map_or(0, |policy| policy.rules.len()).to_string(),
            self.errors.join("; "),
        ]
    }
}

/// A `CiliumCIDRGroup`.
#[derive(Debug, Clone, PartialEq)]
pub struct Group {
    /// Its name.
    pub name: String,
    /// Its labels and prefixes.
    pub group: CidrGroup,
}

impl Row for Group {
    type Key = String;
    const HEADERS: &'static [&'static str] = &["GROUP", "PREFIXES"];

    fn key(&self) -> String {
        self.name.clone()
    }

    fn cells(&self) -> Vec<String> {
        vec![self.name.clone(), self.group.prefixes.len().to_string()]
    }
}

/// A service, as far as policies speak of it.
#[derive(Debug, Clone, PartialEq)]
pub struct PolicyService {
    /// Namespace and name.
    pub name: ServiceName,
    /// Its labels.
    pub labels: Arc<Labels>,
    /// Labels of its pods; empty where others say who is behind it.
    pub selector: BTreeMap<String, String>,
}

impl Row for PolicyService {
    type Key = ServiceName;
    const HEADERS: &'static [&'static str] = &["SERVICE", "LABELS"];

    fn key(&self) -> ServiceName {
        self.name.clone()
    }

    fn cells(&self) -> Vec<String> {
        let ServiceName { namespace, name } = &self.name;
        vec![format!("{namespace}/{name}"), self.labels.to_string()]
    }
}

/// Addresses behind a service without a selector.
#[derive(Debug, Clone, PartialEq)]
pub struct PolicyBackends {
    /// Namespace and name of the slice.
    pub slice: (String, String),
    /// The service.
    pub service: ServiceName,
    /// The addresses.
    pub addresses: BTreeSet<IpAddr>,
}

impl Row for PolicyBackends {
    type Key = (String, String);
    const HEADERS: &'static [&'static str] = &["SLICE", "SERVICE", "ADDRESSES"];

    fn key(&self) -> (String, String) {
        self.slice.clone()
    }

    fn cells(&self) -> Vec<String> {
        let addresses: Vec<String> = self.addresses.iter().map(ToString::to_string).collect();
        vec![self.slice.1.clone(), self.service.name.clone(), addresses.join(",")]
    }
}

/// The labels of a Kubernetes node.
#[derive(Debug, Clone, PartialEq)]
pub struct NodeLabels {
    /// The node.
    pub name: NodeName,
    /// Its labels.
    pub labels: Arc<Labels>,
}

impl Row for NodeLabels {
    type Key = NodeName;
    const HEADERS: &'static [&'static str] = &["NODE", "LABELS"];

    fn key(&self) -> NodeName {
        self.name.clone()
    }

    fn cells(&self) -> Vec<String> {
        vec![self.name.to_string(), self.labels.to_string()]
    }
}

/// The languages of policies; each is listed and followed for itself.
pub const KINDS: [PolicyKind; 4] = [
    PolicyKind::NetworkPolicy,
    PolicyKind::CiliumNetworkPolicy,
    PolicyKind::CiliumClusterwideNetworkPolicy,
    PolicyKind::ClusterNetworkPolicy,
];

fn index_of(kind: PolicyKind) -> usize {
    KINDS.iter().position(|known| *known == kind).expect("all languages are listed")
}

/// The tables that only policy reads.
#[derive(Clone)]
pub struct PolicyIntent {
    /// All policies: a table for each of [`KINDS`].
    pub policies: [Table<PolicyObject>; KINDS.len()],
    /// All CIDR groups.
    pub groups: Table<Group>,
    /// All services.
    pub services: Table<PolicyService>,
    /// Backends of services without a selector.
    pub backends: Table<PolicyBackends>,
    /// Labels of all nodes.
    pub nodes: Table<NodeLabels>,
}

/// The right to write [`PolicyIntent`].
#[derive(Clone)]
pub struct PolicyWriters {
    /// Of the policies: a table for each of [`KINDS`].
    pub policies: [Writer<PolicyObject>; KINDS.len()],
    /// Of the CIDR groups.
    pub groups: Writer<Group>,
    /// Of the services.
    pub services: Writer<PolicyService>,
    /// Of their backends.
    pub backends: Writer<PolicyBackends>,
    /// Of the nodes' labels.
    pub nodes: Writer<NodeLabels>,
}

impl PolicyWriters {
    /// The writer of the policies of one language.
    pub fn of(&self, kind: PolicyKind) -> &Writer<PolicyObject> {
        &self.policies[index_of(kind)]
    }
}

impl PolicyIntent {
    /// The policies of one language.
    pub fn of(&self, kind: PolicyKind) -> &Table<PolicyObject> {
        &self.policies[index_of(kind)]
    }

    /// Empty tables.
    pub fn new() -> (Self, PolicyWriters) {
        let policies = KINDS.map(|kind| Table::new(kind.as_str()));
        let (groups, group_writer) = Table::new("cidr-groups");
        let (services, service_writer) = Table::new("policy-services");
        let (backends, backend_writer) = Table::new("policy-backends");
        let (nodes, node_writer) = Table::new("node-labels");
        let writers = PolicyWriters {
            policies: policies.each_ref().map(|(_, writer)| writer.clone()),
            groups: group_writer,
            services: service_writer,
            backends: backend_writer,
            nodes: node_writer,
        };
        let policies = policies.map(|(table, _)| table);
        (Self { policies, groups, services, backends, nodes }, writers)
    }
}
