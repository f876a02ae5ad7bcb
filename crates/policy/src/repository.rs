//! The repository: what the cluster says, and what follows for the subjects of this node.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use model::{IdentityId, LabelSelector, Labels};
use serde::{Deserialize, Serialize};

use crate::map::{Delta, MapState};
use crate::port::NamedPort;
use crate::rule::{Policy, PolicyId};
use crate::trace::{DirectionQuery, Explanation, FlowExplanation, FlowQuery, Party, RuleReference};

/// What does not change while a repository lives, but for the mode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// When policies are enforced.
    pub mode: EnforcementMode,
    /// Name of the own cluster.
    pub cluster_name: String,
    /// Number of the own cluster in the mesh; 0 without one.
    pub cluster_id: u32,
    /// Whether the node's own processes reach its pods whatever policies say by default.
    pub allow_localhost: bool,
    /// Whether policies for nodes are enforced.
    pub host_firewall: bool,
    /// Whether the outside has one identity per family.
    pub dual_stack: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            mode: EnforcementMode::Default,
            cluster_name: "default".to_owned(),
            cluster_id: 0,
            allow_localhost: true,
            host_firewall: false,
            dual_stack: true,
        }
    }
}

/// When policies are enforced.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EnforcementMode {
    /// For the subjects and directions that a rule selects.
    #[default]
    Default,
    /// For all.
    Always,
    /// For none.
    Never,
}

/// Whose policy is computed.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Subject {
    /// What it is.
    pub kind: SubjectKind,
    /// Its labels: those of its identity; for a node `reserved:host` and the node's own.
    pub labels: Arc<Labels>,
    /// Names that its pod gives to ports.
    pub named_ports: Vec<NamedPort>,
}

/// What a subject is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum SubjectKind {
    /// An endpoint.
    Endpoint,
    /// The node itself.
    Host,
}

/// Stands for a subject in a repository, and for all that are equal to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SubjectId(pub(crate) u32);

/// Which service.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServiceName {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

/// What of a service counts for policies.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Service {
    /// Its labels, `k8s:…`.
    pub labels: Labels,
    /// What selects its backends, without the namespace; empty for a service without a selector.
    pub selector: BTreeMap<String, String>,
    /// Addresses of its backends; these count where there is no selector.
    pub backends: BTreeSet<IpAddr>,
}

/// A group of prefixes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CidrGroup {
    /// Its labels, of the source `cidrgroup`.
    pub labels: Labels,
    /// Its prefixes.
    pub prefixes: BTreeSet<IpNet>,
}

/// All policies, everything that they speak of, and what follows for the subjects.
#[derive(Debug)]
pub struct Repository {
    config: Config,
}

impl Repository {
    /// A repository that knows the reserved identities and nothing else.
    pub fn new(config: Config) -> Self {
        Self { config }
    }

    /// Goes up with every change of the policies.
    pub fn revision(&self) -> u64 {
        0
    }

    /// Changes when policies are enforced.
    pub fn set_mode(&mut self, _mode: EnforcementMode) {
    }

    /// Adds a policy, or puts it in place of the one of the same id. Returns the revision that has it.
    pub fn upsert_policy(&mut self, _policy: Policy) -> u64 {
        0
    }

    /// Removes a policy. Returns the revision without it; `None` when there is no such policy.
    pub fn remove_policy(&mut self, _id: &PolicyId) -> Option<u64> {
        None
    }

    /// The policies in order.
    pub fn policies(&self) -> impl Iterator<Item = &Policy> {
        std::iter::empty()
    }

    /// An identity exists. Its labels never change; one that is added again is left as it is.
    pub fn add_identity(&mut self, _id: IdentityId, _labels: Arc<Labels>) {
    }

    /// An identity is no more.
    pub fn remove_identity(&mut self, _id: IdentityId) {
    }

    /// Names that pods of an identity give to ports: of all of them together.
    pub fn set_named_ports(&mut self, _id: IdentityId, _ports: BTreeSet<NamedPort>) {
    }

    /// A service is there, or has changed.
    pub fn upsert_service(&mut self, _name: ServiceName, _service: Service) {
    }

    /// A service is no more.
    pub fn remove_service(&mut self, _name: &ServiceName) {
    }

    /// A CIDR group is there, or has changed.
    pub fn upsert_cidr_group(&mut self, _name: &str, _group: CidrGroup) {
    }

    /// A CIDR group is no more.
    pub fn remove_cidr_group(&mut self, _name: &str) {
    }

    /// The prefixes that policies of subjects speak of, with the labels that their identities have.
    /// Each needs one of scope [`model::Scope::Local`], which the agent adds here and in the ipcache.
    pub fn required_prefixes(&self) -> BTreeMap<IpNet, Labels> {
        BTreeMap::new()
    }

    /// Computes a subject's policy from now on. Equal subjects have one id; each call counts, and is
    /// undone by one of [`Repository::detach`].
    pub fn attach(&mut self, _subject: Subject) -> SubjectId {
        SubjectId(0)
    }

    /// Undoes one [`Repository::attach`]. After the last one the id means nothing.
    pub fn detach(&mut self, _id: SubjectId) {
    }

    /// What the policy map of a subject should hold now; `None` for one that is not attached.
    pub fn map(&self, _id: SubjectId) -> Option<&MapState> {
        None
    }

    /// What changed of the subjects' maps since the last call: of a subject that is new, everything.
    pub fn take_changes(&mut self) -> BTreeMap<SubjectId, Delta> {
        BTreeMap::new()
    }

    /// The rules that an entry with this cookie stands for; empty when they are long forgotten.
    pub fn rules_of(&self, _cookie: u32) -> Vec<RuleReference> {
        Vec::new()
    }

    /// Who is at an address outside the cluster, as policies see it.
    pub fn party_at(&self, _address: IpAddr) -> Party {
        todo!()
    }

    /// Why a packet may pass from one to another, or not: what is said of the sender, then of the
    /// receiver.
    pub fn explain_flow(&self, _query: &FlowQuery) -> FlowExplanation {
        todo!()
    }

    /// What is said of one side of a flow.
    pub fn explain(&self, _query: &DirectionQuery) -> Explanation {
        todo!()
    }

    /// The selectors that subjects' policies use, and the identities that each selects.
    pub fn selectors(&self) -> Vec<(String, Vec<IdentityId>)> {
        Vec::new()
    }

    /// A selector's labels with what the configuration adds; for reference evaluators.
    pub fn matches(&self, _selector: &LabelSelector, _labels: &Labels) -> bool {
        todo!()
    }
}
