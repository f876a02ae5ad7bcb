//! The repository: what the cluster says, and what follows for the subjects of this node.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use model::label::KEY_NAMESPACE;
use model::{IdentityId, LabelSelector, Labels};
use serde::{Deserialize, Serialize};

use crate::cookie::Cookies;
use crate::map::{Delta, MapState};
use crate::port::NamedPort;
use crate::rule::{Direction, PeerSelector, Peers, Policy, PolicyId, Rule, SubjectSelector};
use crate::selectors::{Changes, Selectors};
use crate::subject::{Matching, RuleAt, SubjectState, Surroundings, selects};
use crate::trace::RuleReference;

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
    pub(crate) config: Config,
    pub(crate) selectors: Selectors,
    cookies: Cookies,
    revision: u64,
    policies: BTreeMap<PolicyId, u32>,
    by_number: BTreeMap<u32, Arc<Policy>>,
    next_policy: u32,
    /// Policies all of whose rules are for endpoints of one namespace.
    by_namespace: BTreeMap<Box<str>, BTreeSet<u32>>,
    /// The others.
    unscoped: BTreeSet<u32>,
    shared_peers: HashSet<Arc<PeerSelector>>,
    shared_subjects: HashSet<Arc<LabelSelector>>,
    subjects: BTreeMap<SubjectId, SubjectState>,
    by_subject: BTreeMap<Subject, SubjectId>,
    next_subject: u32,
    /// Subjects whose map changed since changes were last taken.
    changed: BTreeSet<SubjectId>,
}

impl Repository {
    /// A repository that knows the reserved identities and nothing else.
    pub fn new(config: Config) -> Self {
        Self {
            selectors: Selectors::new(&config),
            config,
            cookies: Cookies::default(),
            revision: 1,
            policies: BTreeMap::new(),
            by_number: BTreeMap::new(),
            next_policy: 0,
            by_namespace: BTreeMap::new(),
            unscoped: BTreeSet::new(),
            shared_peers: HashSet::new(),
            shared_subjects: HashSet::new(),
            subjects: BTreeMap::new(),
            by_subject: BTreeMap::new(),
            next_subject: 0,
            changed: BTreeSet::new(),
        }
    }

    /// Goes up with every change of the policies.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// Changes when policies are enforced.
    pub fn set_mode(&mut self, mode: EnforcementMode) {
        if self.config.mode == mode {
            return;
        }
        self.config.mode = mode;
        self.revision += 1;
        let all: Vec<SubjectId> = self.subjects.keys().copied().collect();
        for id in all {
            self.resolve(id, &BTreeSet::new());
        }
    }

    /// Adds a policy, or puts it in place of the one of the same id. Returns the revision that has it.
    pub fn upsert_policy(&mut self, mut policy: Policy) -> u64 {
        self.share(&mut policy);
        let policy = Arc::new(policy);
        let number = match self.policies.get(&policy.id) {
            Some(number) => *number,
            None => {
                self.next_policy += 1;
                self.policies.insert(policy.id.clone(), self.next_policy);
                self.next_policy
            }
        };
        let old = self.by_number.insert(number, policy.clone());
        if old.as_ref() == Some(&policy) {
            return self.revision;
        }
        if let Some(old) = &old {
            self.unindex(number, old);
        }
        match namespace_of(&policy) {
            Some(namespace) => {
                self.by_namespace.entry(namespace.into()).or_default().insert(number);
            }
            None => {
                self.unscoped.insert(number);
            }
        }
        self.revision += 1;
        let old_rules = old.as_ref().map_or(&[][..], |old| &old.rules);
        self.rules_changed(number, old_rules, &policy.rules);
        self.revision
    }

    /// Removes a policy. Returns the revision without it; `None` when there is no such policy.
    pub fn remove_policy(&mut self, id: &PolicyId) -> Option<u64> {
        let number = self.policies.remove(id)?;
        let old = self.by_number.remove(&number)?;
        self.unindex(number, &old);
        self.revision += 1;
        self.rules_changed(number, &old.rules, &[]);
        drop(old);
        self.unshare();
        Some(self.revision)
    }

    /// The policies in order.
    pub fn policies(&self) -> impl Iterator<Item = &Policy> {
        self.policies.values().filter_map(|number| self.by_number.get(number)).map(|one| &**one)
    }

    /// The policy of this id.
    pub fn policy(&self, id: &PolicyId) -> Option<&Policy> {
        self.by_number.get(self.policies.get(id)?).map(|policy| &**policy)
    }

    /// Puts selectors that are known in place of equal ones: a cluster has many of few.
    fn share(&mut self, policy: &mut Policy) {
        for rule in &mut policy.rules {
            let (SubjectSelector::Endpoints(selector) | SubjectSelector::Nodes(selector)) =
                &mut rule.subject;
            shared(&mut self.shared_subjects, selector);
            for direction in Direction::BOTH {
                for clause in &mut rule.clauses[direction] {
                    if let Peers::Of(peers) = &mut clause.peers {
                        peers.iter_mut().for_each(|peer| shared(&mut self.shared_peers, peer));
                    }
                }
            }
        }
    }

    /// Forgets selectors that no policy has any more, when there are enough policies' worth of them.
    fn unshare(&mut self) {
        if self.shared_peers.len() > 2 * self.policies.len() + 1024 {
            self.shared_peers.retain(|peer| Arc::strong_count(peer) > 1);
            self.shared_subjects.retain(|selector| Arc::strong_count(selector) > 1);
        }
    }

    fn unindex(&mut self, number: u32, policy: &Policy) {
        self.unscoped.remove(&number);
        if let Some(namespace) = namespace_of(policy)
            && let Some(all) = self.by_namespace.get_mut(namespace)
        {
            all.remove(&number);
            if all.is_empty() {
                self.by_namespace.remove(namespace);
            }
        }
    }

    /// Computes the subjects again that old or new rules of a policy select.
    fn rules_changed(&mut self, number: u32, old: &[Rule], new: &[Rule]) {
        let differs = |index: &usize| old.get(*index) != new.get(*index);
        let changed: BTreeSet<RuleAt> = (0..old.len().max(new.len()))
            .filter(differs)
            .map(|index| (number, index as u16))
            .collect();
        let concerned: Vec<SubjectId> = self
            .subjects
            .iter()
            .filter(|(_, state)| {
                let Subject { kind, labels, .. } = &state.subject;
                changed.iter().any(|at| {
                    state.rules().contains(at)
                        || new
                            .get(usize::from(at.1))
                            .is_some_and(|rule| selects(&rule.subject, *kind, labels))
                })
            })
            .map(|(id, _)| *id)
            .collect();
        for id in concerned {
            self.resolve(id, &changed);
        }
    }

    /// The rules that select a subject.
    pub(crate) fn matching(&self, kind: SubjectKind, labels: &Labels) -> Matching {
        let scoped = labels.namespace().and_then(|namespace| self.by_namespace.get(namespace));
        let mut matching = Matching::new();
        for number in self.unscoped.iter().chain(scoped.into_iter().flatten()) {
            let Some(policy) = self.by_number.get(number) else { continue };
            for (index, rule) in policy.rules.iter().enumerate() {
                if selects(&rule.subject, kind, labels) {
                    matching.insert((*number, index as u16), policy.clone());
                }
            }
        }
        matching
    }

    /// Looks again which rules select a subject, of which `changed` are not what they were.
    fn resolve(&mut self, id: SubjectId, changed: &BTreeSet<RuleAt>) {
        let Some(state) = self.subjects.get(&id) else { return };
        let matching = self.matching(state.subject.kind, &state.subject.labels);
        let mut surroundings = Surroundings {
            config: &self.config,
            selectors: &mut self.selectors,
            cookies: &mut self.cookies,
        };
        let Some(state) = self.subjects.get_mut(&id) else { return };
        state.set_rules(&matching, changed, &mut surroundings);
        if state.has_changes() {
            self.changed.insert(id);
        }
    }

    /// An identity exists. Its labels never change; one that is added again is left as it is.
    pub fn add_identity(&mut self, id: IdentityId, labels: Arc<Labels>) {
        let changes = self.selectors.add_identity(id, labels);
        self.apply(&changes);
    }

    /// An identity is no more.
    pub fn remove_identity(&mut self, id: IdentityId) {
        let changes = self.selectors.remove_identity(id);
        self.apply(&changes);
    }

    /// Names that pods of an identity give to ports: of all of them together.
    pub fn set_named_ports(&mut self, id: IdentityId, ports: BTreeSet<NamedPort>) {
        let changes = self.selectors.set_named_ports(id, ports);
        self.apply(&changes);
    }

    /// A service is there, or has changed.
    pub fn upsert_service(&mut self, name: ServiceName, service: Service) {
        let changes = self.selectors.set_service(name, Some(service));
        self.apply(&changes);
    }

    /// A service is no more.
    pub fn remove_service(&mut self, name: &ServiceName) {
        let changes = self.selectors.set_service(name.clone(), None);
        self.apply(&changes);
    }

    /// A CIDR group is there, or has changed.
    pub fn upsert_cidr_group(&mut self, name: &str, group: CidrGroup) {
        let changes = self.selectors.set_group(name, Some(group));
        self.apply(&changes);
    }

    /// A CIDR group is no more.
    pub fn remove_cidr_group(&mut self, name: &str) {
        let changes = self.selectors.set_group(name, None);
        self.apply(&changes);
    }

    /// Takes what changed of selectors to the subjects that use them.
    fn apply(&mut self, changes: &Changes) {
        let mut concerned = BTreeSet::new();
        for (selector, key, change) in changes {
            for user in self.selectors.users(*selector) {
                let id = SubjectId(user.0);
                if let Some(state) = self.subjects.get_mut(&id) {
                    state.key_changed(user, *key, *change, &self.selectors);
                    concerned.insert(id);
                }
            }
        }
        let mut surroundings = Surroundings {
            config: &self.config,
            selectors: &mut self.selectors,
            cookies: &mut self.cookies,
        };
        for id in concerned {
            let Some(state) = self.subjects.get_mut(&id) else { continue };
            state.flush(&mut surroundings);
            if state.has_changes() {
                self.changed.insert(id);
            }
        }
    }

    /// The prefixes that policies of subjects speak of, with the labels that their identities have.
    /// Each needs one of scope [`model::Scope::Local`], which the agent adds here and in the ipcache.
    pub fn required_prefixes(&self) -> BTreeMap<IpNet, Labels> {
        let world = &self.selectors.world;
        self.selectors
            .required_prefixes()
            .map(|prefix| (prefix, world.prefix_labels(prefix)))
            .collect()
    }

    /// Goes up whenever [`Repository::required_prefixes`] may have changed.
    pub fn prefix_revision(&self) -> u64 {
        self.selectors.prefix_revision()
    }

    /// Computes a subject's policy from now on. Equal subjects have one id; each call counts, and is
    /// undone by one of [`Repository::detach`].
    pub fn attach(&mut self, mut subject: Subject) -> SubjectId {
        subject.named_ports.sort();
        subject.named_ports.dedup();
        let id = match self.by_subject.get(&subject) {
            Some(id) => *id,
            None => {
                self.next_subject += 1;
                let id = SubjectId(self.next_subject);
                self.by_subject.insert(subject.clone(), id);
                self.subjects.insert(id, SubjectState::new(id.0, subject));
                self.resolve(id, &BTreeSet::new());
                id
            }
        };
        if let Some(state) = self.subjects.get_mut(&id) {
            state.uses += 1;
        }
        id
    }

    /// Undoes one [`Repository::attach`]. After the last one the id means nothing.
    pub fn detach(&mut self, id: SubjectId) {
        let Some(state) = self.subjects.get_mut(&id) else { return };
        state.uses -= 1;
        if state.uses > 0 {
            return;
        }
        self.changed.remove(&id);
        if let Some(state) = self.subjects.remove(&id) {
            self.by_subject.remove(&state.subject);
            state.dismantle(&mut Surroundings {
                config: &self.config,
                selectors: &mut self.selectors,
                cookies: &mut self.cookies,
            });
        }
    }

    /// The subject that an id stands for.
    pub fn subject(&self, id: SubjectId) -> Option<&Subject> {
        self.subjects.get(&id).map(|state| &state.subject)
    }

    /// What the policy map of a subject should hold now; `None` for one that is not attached.
    pub fn map(&self, id: SubjectId) -> Option<&MapState> {
        self.subjects.get(&id).map(|state| &state.map)
    }

    /// What changed of the subjects' maps since the last call: of a subject that is new, everything.
    pub fn take_changes(&mut self) -> BTreeMap<SubjectId, Delta> {
        let changed = std::mem::take(&mut self.changed);
        let subjects = &mut self.subjects;
        let delta = |id| Some((id, subjects.get_mut(&id)?.take_changes()?));
        changed.into_iter().filter_map(delta).collect()
    }

    /// The rules that an entry with this cookie stands for; empty when they are long forgotten.
    pub fn rules_of(&self, cookie: u32) -> Vec<RuleReference> {
        self.cookies.rules(cookie).iter().map(|rule| RuleReference::clone(rule)).collect()
    }

    /// The selectors that subjects' policies use, in words, how many uses each has, and the identities
    /// that each selects.
    pub fn selectors(&self) -> impl Iterator<Item = (String, usize, Vec<IdentityId>)> {
        self.selectors.iter().map(|(spec, uses, members)| {
            (spec.to_string(), uses, members.iter().copied().map(IdentityId).collect())
        })
    }
}

/// The namespace of all subjects of a policy, if there is one.
fn namespace_of(policy: &Policy) -> Option<&str> {
    let mut namespaces = policy.rules.iter().map(|rule| match &rule.subject {
        SubjectSelector::Endpoints(selector) => match selector.k8s_values(KEY_NAMESPACE)? {
            [one] => Some(&**one),
            _ => None,
        },
        SubjectSelector::Nodes(_) => None,
    });
    let first = namespaces.next()??;
    namespaces.all(|other| other == Some(first)).then_some(first)
}

fn shared<T: Eq + std::hash::Hash>(known: &mut HashSet<Arc<T>>, value: &mut Arc<T>) {
    match known.get(value) {
        Some(same) => *value = same.clone(),
        None => {
            known.insert(value.clone());
        }
    }
}
