//! From what the cluster says to what the policy maps should hold: the state between both.
//!
//! [`policy::Repository`] computes; this says to it which endpoints are here, gives the prefixes that
//! rules name their identities, and packs the results into slots. It does no I/O but for the file of
//! [`LocalIdentities`]; [`super::controller`] carries its words out, in their order.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use abi::endpoint::{
    ENDPOINT_F_AUDIT, ENDPOINT_F_ENFORCE_EGRESS, ENDPOINT_F_ENFORCE_INGRESS, ENDPOINT_F_LOCKDOWN,
};
use abi::policy::POLICY_SLOT_NONE;
use ipnet::IpNet;
use model::{EndpointId, IdentityId, Label, Labels, NodeName, PodName};
use policy::{
    CidrGroup, Direction, EnforcementMode, NamedPort, PolicyId, Repository, Service, ServiceName,
    Subject, SubjectId, SubjectKind,
};
use statedb::Change;

use super::local_identity::{LocalIdentities, Scope};
use super::slots::{Changes, Content, Slots};
use super::tables::{Group, NodeLabels, PolicyBackends, PolicyObject, PolicyService};
use crate::identity::Identity;
use crate::ipcache::Source;
use crate::tables::{ClusterEndpoint, Endpoint, EndpointPolicy, LabelledPrefix, LocalPod, Node};

/// What is set once.
#[derive(Debug, Clone)]
pub struct Options {
    /// Of the repository.
    pub repository: policy::Config,
    /// Entries of a policy at most.
    pub entries_max: usize,
    /// Whether an endpoint whose policy does not fit is locked down; otherwise it keeps the one that
    /// it had.
    pub lockdown: bool,
    /// Whether all endpoints are audited.
    pub audit: bool,
    /// Whether nodes have identities by their labels.
    pub node_identities: bool,
    /// This node.
    pub node: NodeName,
    /// Its addresses, among which the API server may be.
    pub node_addresses: Vec<IpAddr>,
    /// Id of the endpoint that is the node itself.
    pub host_endpoint: EndpointId,
}

/// What changed since the engine was told last.
#[derive(Default)]
pub struct Inputs {
    /// Policies.
    pub policies: Vec<Change<PolicyObject>>,
    /// CIDR groups.
    pub groups: Vec<Change<Group>>,
    /// Services.
    pub services: Vec<Change<PolicyService>>,
    /// Backends of services without a selector.
    pub backends: Vec<Change<PolicyBackends>>,
    /// Labels of nodes.
    pub node_labels: Vec<Change<NodeLabels>>,
    /// Nodes and their addresses.
    pub nodes: Vec<Change<Node>>,
    /// Identities of the cluster.
    pub identities: Vec<Change<Identity>>,
    /// Pods of the cluster.
    pub cluster: Vec<Change<ClusterEndpoint>>,
    /// Pods of this node.
    pub pods: Vec<Change<LocalPod>>,
    /// Endpoints of this node.
    pub endpoints: Vec<Change<Endpoint>>,
}

/// Why an endpoint is locked down.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lockdown(pub String);

/// What a policy object came to.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct PolicyState {
    /// The generation in force.
    pub generation: i64,
    /// Why the newest version was refused.
    pub errors: Arc<[String]>,
    /// What of it is not enforced yet.
    pub not_enforced: Arc<[String]>,
}

/// An endpoint as the engine knows it.
#[derive(Debug)]
struct Attached {
    identity: Identity,
    pod: Option<PodName>,
    subject: SubjectId,
}

/// What a subject's endpoints are told.
#[derive(Debug, Clone, Default)]
struct Pointed {
    slot: u32,
    flags: u32,
    lockdown: Option<Lockdown>,
    entries: usize,
}

/// See the module's description.
pub struct Engine {
    options: Options,
    repository: Repository,
    identities: LocalIdentities,
    slots: Slots<SubjectId>,
    endpoints: BTreeMap<EndpointId, Attached>,
    host: Option<SubjectId>,
    pointed: BTreeMap<SubjectId, Pointed>,
    audited: BTreeMap<EndpointId, bool>,
    states: BTreeMap<PolicyId, PolicyState>,
    resource_versions: BTreeMap<policy::PolicyKind, u64>,
    /// What subjects should hold and slots do not yet.
    due: BTreeMap<SubjectId, Option<Arc<Content>>>,
    /// Subjects whose slot is read by endpoints to which what is due does not apply.
    swap: BTreeSet<SubjectId>,
    /// Whether nodes or the API server may have moved since prefixes were looked at.
    prefixes_due: bool,
    /// The repository's revision of prefixes then.
    prefix_revision: Option<u64>,
    prefixes: BTreeMap<IpNet, (IdentityId, Source)>,
    /// Prefixes that went out of the ipcache; their identities go when it has forgotten them.
    leaving: Vec<IdentityId>,
    services: BTreeMap<ServiceName, Service>,
    groups: BTreeMap<String, CidrGroup>,
    backends: BTreeMap<(String, String), (ServiceName, BTreeSet<IpAddr>)>,
    named_ports: NamedPorts,
    local_ports: BTreeMap<PodName, Vec<NamedPort>>,
    nodes: BTreeMap<NodeName, NodeState>,
    own_labels: Arc<Labels>,
}

#[derive(Debug, Default)]
struct NodeState {
    addresses: Vec<IpAddr>,
    labels: Arc<Labels>,
}

/// Names that pods give to ports, by identity: counted, for many pods have the same.
#[derive(Debug, Default)]
struct NamedPorts {
    by_pod: BTreeMap<PodName, (IdentityId, Vec<NamedPort>)>,
    by_identity: BTreeMap<IdentityId, BTreeMap<NamedPort, usize>>,
}

impl NamedPorts {
    /// Replaces what a pod says; returns the identities whose ports may have changed.
    fn set(
        &mut self,
        pod: &PodName,
        now: Option<(IdentityId, Vec<NamedPort>)>,
    ) -> BTreeSet<IdentityId> {
        let now = now.filter(|(_, ports)| !ports.is_empty());
        if self.by_pod.get(pod) == now.as_ref() {
            return BTreeSet::new();
        }
        let mut changed = BTreeSet::new();
        if let Some((identity, ports)) = self.by_pod.remove(pod) {
            changed.insert(identity);
            let counts = self.by_identity.entry(identity).or_default();
            for port in ports {
                if let Some(count) = counts.get_mut(&port) {
                    *count -= 1;
                    if *count == 0 {
                        counts.remove(&port);
                    }
                }
            }
            if counts.is_empty() {
                self.by_identity.remove(&identity);
            }
        }
        if let Some((identity, ports)) = now {
            changed.insert(identity);
            let counts = self.by_identity.entry(identity).or_default();
            for port in &ports {
                *counts.entry(port.clone()).or_default() += 1;
            }
            self.by_pod.insert(pod.clone(), (identity, ports));
        }
        changed
    }

    fn of(&self, identity: IdentityId) -> BTreeSet<NamedPort> {
        let counts = self.by_identity.get(&identity);
        counts.into_iter().flat_map(|counts| counts.keys().cloned()).collect()
    }
}

/// What is to be written now, before endpoints are pointed to it.
#[derive(Debug, Default)]
pub struct Step {
    /// Slots to write and to empty.
    pub slots: Changes,
}

impl Engine {
    /// An engine that knows nothing yet. `slots` has adopted what the maps hold.
    pub fn new(options: Options, identities: LocalIdentities, slots: Slots<SubjectId>) -> Self {
        Self {
            repository: Repository::new(options.repository.clone()),
            options,
            identities,
            slots,
            endpoints: BTreeMap::new(),
            host: None,
            pointed: BTreeMap::new(),
            audited: BTreeMap::new(),
            states: BTreeMap::new(),
            resource_versions: BTreeMap::new(),
            due: BTreeMap::new(),
            swap: BTreeSet::new(),
            prefixes_due: true,
            prefix_revision: None,
            prefixes: BTreeMap::new(),
            leaving: Vec::new(),
            services: BTreeMap::new(),
            groups: BTreeMap::new(),
            backends: BTreeMap::new(),
            named_ports: NamedPorts::default(),
            local_ports: BTreeMap::new(),
            nodes: BTreeMap::new(),
            own_labels: Arc::default(),
        }
    }

    /// The repository, for explanations.
    pub fn repository(&self) -> &Repository {
        &self.repository
    }

    /// What is set once.
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// The node's own identities.
    pub fn identities(&self) -> &LocalIdentities {
        &self.identities
    }

    /// How many slots are in use, and how many rest.
    pub fn slots_len(&self) -> (usize, usize) {
        self.slots.len()
    }

    /// What became of each policy object.
    pub fn states(&self) -> &BTreeMap<PolicyId, PolicyState> {
        &self.states
    }

    /// The newest version of the objects of each language that the engine was told.
    pub fn resource_versions(&self) -> &BTreeMap<policy::PolicyKind, u64> {
        &self.resource_versions
    }

    /// Takes changes in.
    pub fn apply(&mut self, inputs: Inputs) {
        self.prefixes_due |= !(inputs.backends.is_empty()
            && inputs.node_labels.is_empty()
            && inputs.nodes.is_empty());
        // Who is there before what is said of them: so no rule is computed twice.
        self.apply_identities(&inputs.identities);
        self.apply_services(&inputs.services, &inputs.backends);
        for change in inputs.groups {
            match change {
                Change::Upsert(row) => {
                    self.repository.upsert_cidr_group(&row.name, row.group.clone());
                    self.groups.insert(row.name.clone(), row.group.clone());
                }
                Change::Delete(row) => {
                    self.repository.remove_cidr_group(&row.name);
                    self.groups.remove(&row.name);
                }
            }
        }
        self.apply_named_ports(&inputs.cluster, &inputs.pods);
        self.apply_policies(&inputs.policies);
        self.apply_nodes(&inputs.node_labels, &inputs.nodes);
        self.apply_endpoints(&inputs.endpoints, &inputs.pods);
    }

    /// Computes what follows from all that was applied, and packs it into slots.
    pub fn compute(&mut self) -> Result<Step, crate::checkpoint::CheckpointError> {
        let prefix_revision = Some(self.repository.prefix_revision());
        if std::mem::take(&mut self.prefixes_due) || self.prefix_revision != prefix_revision {
            self.prefix_revision = prefix_revision;
            self.follow_prefixes();
        }
        // Before any map gets to know a number.
        self.identities.save()?;
        let changed = self.repository.take_changes();
        for subject in changed.into_keys() {
            self.refresh(subject);
        }
        let due = std::mem::take(&mut self.due);
        let swap = std::mem::take(&mut self.swap);
        let (slots, result) = self.slots.assign(due, &swap);
        if let Err((error, subjects)) = result {
            for subject in subjects {
                self.refuse(subject, &error.to_string());
            }
        }
        let subjects: Vec<SubjectId> = self.pointed.keys().copied().collect();
        for subject in subjects {
            let slot = self.slots.of(&subject).unwrap_or(POLICY_SLOT_NONE);
            let pointed = self.pointed.get_mut(&subject).expect("it was just listed");
            pointed.slot = if pointed.lockdown.is_some() { POLICY_SLOT_NONE } else { slot };
        }
        Ok(Step { slots })
    }

    /// The rows of all endpoints, when what [`Engine::compute`] gave is written. `failed` says which
    /// slots are not, and why: their endpoints are locked down.
    pub fn endpoint_policies(&self, failed: &BTreeMap<u32, String>) -> Vec<EndpointPolicy> {
        let revision = self.repository.revision();
        let row = |endpoint: EndpointId, subject: &SubjectId| {
            let pointed = self.pointed.get(subject).cloned().unwrap_or_default();
            let is_failed = failed.contains_key(&pointed.slot);
            let audit = self.audited.get(&endpoint).copied().unwrap_or(self.options.audit);
            let flags = if is_failed || pointed.lockdown.is_some() {
                ENDPOINT_F_LOCKDOWN
            } else if audit && pointed.flags != 0 {
                pointed.flags | ENDPOINT_F_AUDIT
            } else {
                pointed.flags
            };
            let slot =
                if flags & ENDPOINT_F_LOCKDOWN == 0 { pointed.slot } else { POLICY_SLOT_NONE };
            EndpointPolicy { endpoint, slot, flags, revision }
        };
        let pods = self.endpoints.iter().map(|(id, attached)| row(*id, &attached.subject));
        let host = self.host.iter().map(|subject| row(self.options.host_endpoint, subject));
        pods.chain(host).collect()
    }

    /// Prefixes that the ipcache should have: to be carried there when slots know their identities.
    pub fn labelled_prefixes(&self) -> Vec<LabelledPrefix> {
        let rows = self.prefixes.iter();
        let row = |(prefix, (identity, source)): (&IpNet, &(IdentityId, Source))| LabelledPrefix {
            prefix: *prefix,
            identity: *identity,
            source: *source,
        };
        rows.map(row).collect()
    }

    /// Identities whose prefixes are leaving the ipcache.
    pub fn take_leaving(&mut self) -> Vec<IdentityId> {
        std::mem::take(&mut self.leaving)
    }

    /// The ipcache has forgotten these identities, which [`Engine::take_leaving`] gave.
    pub fn forget_identities(&mut self, identities: &[IdentityId]) {
        for id in identities {
            if self.identities.release(*id) {
                self.repository.remove_identity(*id);
            }
        }
    }

    /// A retired slot is empty.
    pub fn emptied(&mut self, slot: u32) {
        self.slots.emptied(slot);
    }

    /// Gives back what the agent before us had and nobody needs: when all sources have spoken and
    /// endpoints are pointed to their slots.
    pub fn release_unused(&mut self) -> BTreeSet<u32> {
        self.identities.release_unused();
        self.slots.retire_unused()
    }

    /// Changes where policy is enforced.
    pub fn set_mode(&mut self, mode: EnforcementMode) {
        self.options.repository.mode = mode;
        self.repository.set_mode(mode);
    }

    /// Changes whether all endpoints are audited that have no option of their own.
    pub fn set_audit(&mut self, audit: bool) {
        self.options.audit = audit;
    }

    /// Changes whether an endpoint is audited.
    pub fn set_endpoint_audit(&mut self, endpoint: EndpointId, audit: bool) {
        self.audited.insert(endpoint, audit);
    }

    /// Whether an endpoint is audited.
    pub fn is_audited(&self, endpoint: EndpointId) -> bool {
        self.audited.get(&endpoint).copied().unwrap_or(self.options.audit)
    }

    /// The subject of an endpoint, also of the node itself.
    pub fn subject(&self, endpoint: EndpointId) -> Option<SubjectId> {
        if endpoint == self.options.host_endpoint {
            return self.host;
        }
        self.endpoints.get(&endpoint).map(|attached| attached.subject)
    }

    /// Why an endpoint is locked down, when its policy is the reason.
    pub fn lockdown(&self, endpoint: EndpointId) -> Option<&Lockdown> {
        self.pointed.get(&self.subject(endpoint)?)?.lockdown.as_ref()
    }

    /// The endpoints that are locked down because their policy does not fit, and how many entries
    /// each would need.
    pub fn lockdowns(&self) -> impl Iterator<Item = (EndpointId, &Lockdown, usize)> {
        self.endpoints.iter().filter_map(|(id, attached)| {
            let pointed = self.pointed.get(&attached.subject)?;
            Some((*id, pointed.lockdown.as_ref()?, pointed.entries))
        })
    }

    /// The pod and the identity of an endpoint.
    pub fn endpoint(&self, endpoint: EndpointId) -> Option<(Option<&PodName>, &Identity)> {
        let attached = self.endpoints.get(&endpoint)?;
        Some((attached.pod.as_ref(), &attached.identity))
    }

    /// The endpoints and their identities.
    pub fn endpoints(&self) -> impl Iterator<Item = (EndpointId, &Identity)> {
        self.endpoints.iter().map(|(id, attached)| (*id, &attached.identity))
    }

    /// Names that the pod of an endpoint gives to ports.
    pub fn ports_of(&self, endpoint: EndpointId) -> Vec<NamedPort> {
        let pod = self.endpoints.get(&endpoint).and_then(|attached| attached.pod.as_ref());
        pod.and_then(|pod| self.local_ports.get(pod)).cloned().unwrap_or_default()
    }

    /// A repository with the same policies, to be changed for a question.
    pub fn imagine(&self) -> Repository {
        let mut repository = Repository::new(self.options.repository.clone());
        for (name, service) in &self.services {
            repository.upsert_service(name.clone(), service.clone());
        }
        for (name, group) in &self.groups {
            repository.upsert_cidr_group(name, group.clone());
        }
        for policy in self.repository.policies() {
            repository.upsert_policy(policy.clone());
        }
        repository
    }

    /// Slot, flags and number of entries of an endpoint's policy.
    pub fn pointed(&self, endpoint: EndpointId) -> Option<(u32, u32, usize)> {
        let pointed = self.pointed.get(&self.subject(endpoint)?)?;
        Some((pointed.slot, pointed.flags, pointed.entries))
    }

    fn apply_identities(&mut self, changes: &[Change<Identity>]) {
        for change in changes {
            match change {
                Change::Upsert(row) => {
                    self.repository.add_identity(row.id, Arc::clone(&row.labels));
                }
                Change::Delete(row) => self.repository.remove_identity(row.id),
            }
        }
    }

    fn apply_services(
        &mut self,
        services: &[Change<PolicyService>],
        backends: &[Change<PolicyBackends>],
    ) {
        let mut changed = BTreeSet::new();
        for change in services {
            match change {
                Change::Upsert(row) => {
                    let service = self.services.entry(row.name.clone()).or_default();
                    service.labels = Labels::clone(&row.labels);
                    service.selector.clone_from(&row.selector);
                }
                Change::Delete(row) => {
                    self.services.remove(&row.name);
                    self.repository.remove_service(&row.name);
                }
            }
            let (Change::Upsert(row) | Change::Delete(row)) = change;
            changed.insert(row.name.clone());
        }
        for change in backends {
            let (Change::Upsert(row) | Change::Delete(row)) = change;
            changed.insert(row.service.clone());
            let before = match change {
                Change::Upsert(row) => self
                    .backends
                    .insert(row.slice.clone(), (row.service.clone(), row.addresses.clone())),
                Change::Delete(row) => self.backends.remove(&row.slice),
            };
            changed.extend(before.map(|(service, _)| service));
        }
        for name in changed {
            let behind = self.backends.values().filter(|(service, _)| *service == name);
            let addresses = behind.flat_map(|(_, addresses)| addresses).copied().collect();
            if let Some(service) = self.services.get_mut(&name) {
                service.backends = addresses;
                self.repository.upsert_service(name, service.clone());
            }
        }
    }

    fn apply_policies(&mut self, changes: &[Change<PolicyObject>]) {
        for change in changes {
            match change {
                Change::Upsert(row) => {
                    let newest = self.resource_versions.entry(row.id.kind).or_default();
                    *newest = (*newest).max(row.resource_version);
                    let state = self.states.entry(row.id.clone()).or_default();
                    state.errors = Arc::clone(&row.errors);
                    // A version that was refused leaves in force what was.
                    let Some(policy) = &row.policy else { continue };
                    state.generation = row.generation;
                    state.not_enforced = Arc::clone(&row.not_enforced);
                    // Of an object whose status was written nothing has changed.
                    if self.repository.policy(&row.id) != Some(policy) {
                        self.repository.upsert_policy(policy::Policy::clone(policy));
                    }
                }
                Change::Delete(row) => {
                    self.states.remove(&row.id);
                    self.repository.remove_policy(&row.id);
                }
            }
        }
    }

    fn apply_named_ports(
        &mut self,
        cluster: &[Change<ClusterEndpoint>],
        pods: &[Change<LocalPod>],
    ) {
        for change in pods {
            match change {
                Change::Upsert(pod) if !pod.named_ports.is_empty() => {
                    self.local_ports.insert(pod.name.clone(), pod.named_ports.clone());
                }
                Change::Upsert(pod) | Change::Delete(pod) => {
                    self.local_ports.remove(&pod.name);
                }
            }
        }
        let mut changed = BTreeSet::new();
        for change in cluster {
            match change {
                Change::Upsert(row) => {
                    let now = (row.identity, row.named_ports.clone());
                    changed.extend(self.named_ports.set(&row.pod, Some(now)));
                }
                Change::Delete(row) => changed.extend(self.named_ports.set(&row.pod, None)),
            }
        }
        for identity in changed {
            let ports = self.named_ports.of(identity);
            self.repository.set_named_ports(identity, ports);
        }
    }

    fn apply_nodes(&mut self, labels: &[Change<NodeLabels>], nodes: &[Change<Node>]) {
        for change in labels {
            match change {
                Change::Upsert(row) => {
                    let node = self.nodes.entry(row.name.clone()).or_default();
                    node.labels = Arc::clone(&row.labels);
                }
                Change::Delete(row) => {
                    self.nodes.entry(row.name.clone()).or_default().labels = Arc::default();
                }
            }
        }
        for change in nodes {
            match change {
                Change::Upsert(row) => {
                    let node = self.nodes.entry(row.name.clone()).or_default();
                    node.addresses =
                        row.addresses.iter().chain(&row.router_addresses).copied().collect();
                }
                Change::Delete(row) => {
                    self.nodes.remove(&row.name);
                }
            }
        }
        let own = self.nodes.get(&self.options.node);
        let own = own.map(|node| Arc::clone(&node.labels)).unwrap_or_default();
        if self.options.repository.host_firewall && (self.host.is_none() || own != self.own_labels)
        {
            let mut labels = Labels::clone(&own);
            labels.insert(Label::reserved("host"));
            let subject =
                Subject { kind: SubjectKind::Host, labels: Arc::new(labels), named_ports: vec![] };
            let before = self.host.replace(self.repository.attach(subject));
            self.detach(before);
        }
        self.own_labels = own;
    }

    fn apply_endpoints(&mut self, changes: &[Change<Endpoint>], pods: &[Change<LocalPod>]) {
        for change in changes {
            match change {
                Change::Upsert(row) => {
                    self.attach(row.id, row.identity.clone(), row.spec.pod());
                }
                Change::Delete(row) => {
                    if let Some(attached) = self.endpoints.remove(&row.id) {
                        self.detach(Some(attached.subject));
                    }
                    self.audited.remove(&row.id);
                }
            }
        }
        // A pod that tells its ports later than its endpoint came.
        let told: BTreeSet<&PodName> = pods
            .iter()
            .map(|change| {
                let (Change::Upsert(pod) | Change::Delete(pod)) = change;
                &pod.name
            })
            .collect();
        let concerned = self.endpoints.iter().filter_map(|(id, attached)| {
            let pod = attached.pod.as_ref().filter(|pod| told.contains(pod))?;
            Some((*id, attached.identity.clone(), Some(pod.clone())))
        });
        for (id, identity, pod) in concerned.collect::<Vec<_>>() {
            self.attach(id, identity, pod);
        }
    }

    /// Computes the policy of an endpoint from now on.
    fn attach(&mut self, id: EndpointId, identity: Identity, pod: Option<PodName>) {
        let ports = pod.as_ref().and_then(|pod| self.local_ports.get(pod)).cloned();
        let subject = self.repository.attach(Subject {
            kind: SubjectKind::Endpoint,
            labels: Arc::clone(&identity.labels),
            named_ports: ports.unwrap_or_default(),
        });
        let before = self.endpoints.insert(id, Attached { identity, pod, subject });
        self.detach(before.map(|before| before.subject));
    }

    fn detach(&mut self, subject: Option<SubjectId>) {
        let Some(subject) = subject else { return };
        self.repository.detach(subject);
        // The endpoint that left is still pointed to the slot.
        self.swap.insert(subject);
        if self.repository.map(subject).is_none() {
            self.pointed.remove(&subject);
            self.due.insert(subject, None);
        }
    }

    /// Takes over what the repository says of a subject.
    fn refresh(&mut self, subject: SubjectId) {
        let Some(map) = self.repository.map(subject) else { return };
        let mut flags = 0;
        if map.enforces(Direction::Ingress) {
            flags |= ENDPOINT_F_ENFORCE_INGRESS;
        }
        if map.enforces(Direction::Egress) {
            flags |= ENDPOINT_F_ENFORCE_EGRESS;
        }
        let entries = map.entries().len();
        if entries > self.options.entries_max {
            let reason = format!(
                "its policy needs {entries} entries, bpf-policy-map-max allows {}",
                self.options.entries_max
            );
            self.refuse(subject, &reason);
            return;
        }
        let content = (flags != 0).then(|| {
            let entries = map.entries().iter();
            Arc::new(Content::new(
                entries.map(|(key, entry)| (key.to_wire(POLICY_SLOT_NONE), entry.to_wire(*key))),
            ))
        });
        self.due.insert(subject, content);
        let pointed = Pointed { slot: POLICY_SLOT_NONE, flags, lockdown: None, entries };
        let before = self.pointed.insert(subject, pointed);
        if before.is_some_and(|before| before.flags & !flags != 0) {
            // The endpoint is enforced until its row says otherwise; its entries stay so long.
            self.swap.insert(subject);
        }
    }

    /// A subject's policy cannot be had.
    fn refuse(&mut self, subject: SubjectId, reason: &str) {
        let entries = self.repository.map(subject).map_or(0, |map| map.entries().len());
        let pointed = self.pointed.entry(subject).or_default();
        pointed.entries = entries;
        if self.options.lockdown || self.slots.of(&subject).is_none() {
            pointed.lockdown = Some(Lockdown(reason.to_owned()));
            self.due.insert(subject, None);
        } else {
            tracing::warn!(reason, "An endpoint keeps the policy that it had");
        }
    }

    /// Gives the prefixes that policies name their identities, and takes those back that are named no
    /// more.
    fn follow_prefixes(&mut self) {
        let mut wanted: BTreeMap<IpNet, (Scope, Labels, Source)> = BTreeMap::new();
        for (prefix, labels) in self.repository.required_prefixes() {
            wanted.insert(prefix, (Scope::Local, labels, Source::Policy));
        }
        self.want_nodes(&mut wanted);
        self.want_api_server(&mut wanted);
        let gone: Vec<IpNet> =
            self.prefixes.keys().filter(|prefix| !wanted.contains_key(prefix)).copied().collect();
        for prefix in gone {
            let (identity, _) = self.prefixes.remove(&prefix).expect("it was just listed");
            self.leaving.push(identity);
        }
        for (prefix, (scope, labels, source)) in wanted {
            self.want_prefix(prefix, scope, &Arc::new(labels), source);
        }
    }

    fn want_prefix(&mut self, prefix: IpNet, scope: Scope, labels: &Arc<Labels>, source: Source) {
        if let Some((identity, _)) = self.prefixes.get(&prefix)
            && self.identities.labels(*identity) == Some(labels)
        {
            let identity = *identity;
            self.prefixes.insert(prefix, (identity, source));
            return;
        }
        match self.identities.acquire(scope, labels) {
            Ok(identity) => {
                self.repository.add_identity(identity, Arc::clone(labels));
                let before = self.prefixes.insert(prefix, (identity, source));
                self.leaving.extend(before.map(|(identity, _)| identity));
            }
            Err(error) => tracing::error!(%prefix, %error, "A prefix has no identity of its own"),
        }
    }

    /// The other nodes, by their labels.
    fn want_nodes(&self, wanted: &mut BTreeMap<IpNet, (Scope, Labels, Source)>) {
        if !self.options.node_identities {
            return;
        }
        let others = self.nodes.iter().filter(|(name, _)| **name != self.options.node);
        for node in others.map(|(_, node)| node) {
            let mut labels: Labels = node
                .labels
                .iter()
                .map(|label| Label::new(SOURCE_NODE, label.key.clone(), label.value.clone()))
                .collect();
            labels.insert(Label::reserved("remote-node"));
            for address in &node.addresses {
                let row = (Scope::RemoteNode, labels.clone(), Source::NodeLabels);
                wanted.insert(IpNet::from(*address), row);
            }
        }
    }

    /// The API server, wherever it is but on this node.
    fn want_api_server(&self, wanted: &mut BTreeMap<IpNet, (Scope, Labels, Source)>) {
        let is_api_server =
            |service: &ServiceName| service.namespace == "default" && service.name == "kubernetes";
        let behind = self.backends.values().filter(|(service, _)| is_api_server(service));
        let addresses: BTreeSet<IpAddr> = behind.flat_map(|(_, all)| all).copied().collect();
        for address in addresses.into_iter().filter(|a| !self.options.node_addresses.contains(a)) {
            let prefix = IpNet::from(address);
            let is_node = self.nodes.values().any(|node| node.addresses.contains(&address));
            let (scope, mut labels) = match wanted.remove(&prefix) {
                Some((scope, labels, _)) => (scope, labels),
                None if is_node => {
                    (Scope::RemoteNode, Labels::from_iter([Label::reserved("remote-node")]))
                }
                None => {
                    let dual_stack = self.options.repository.dual_stack;
                    (Scope::Local, super::local_identity::prefix_labels(prefix, dual_stack, []))
                }
            };
            labels.insert(Label::reserved("kube-apiserver"));
            wanted.insert(prefix, (scope, labels, Source::KubeApiserver));
        }
    }
}

/// Where labels of nodes come from.
const SOURCE_NODE: &str = "node";
