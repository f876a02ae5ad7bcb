//! The selectors in use and whom each means, kept up to date identity by identity.
//!
//! A selector means a set of *peer keys*: identities, and for those of which it means every one of a
//! kind the aggregate instead. An identity that comes finds the selectors that may mean it by its
//! labels, and a selector that comes finds its identities the same way, so that neither looks at
//! everybody.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use abi::policy::aggregate;
use ipnet::IpNet;
use model::label::{KEY_CLUSTER, SOURCE_K8S};
use model::{IdentityId, Label, Labels};

use crate::peers::{Who, World, anchors, label_number};
use crate::port::{NamedPort, Protocol};
use crate::repository::{CidrGroup, Config, Service, ServiceName};
use crate::rule::PeerSelector;

/// What is selected.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Spec {
    /// Peers.
    Peers(Arc<PeerSelector>),
    /// Peers that give a port this name; `None` is of everybody.
    WithPort(Option<Arc<PeerSelector>>, Option<Protocol>, Arc<str>),
}

impl Spec {
    fn peers(&self) -> Option<&PeerSelector> {
        match self {
            Self::Peers(peers) => Some(peers),
            Self::WithPort(peers, ..) => peers.as_deref(),
        }
    }
}

impl std::fmt::Display for Spec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Peers(peers) => peers.fmt(f),
            Self::WithPort(peers, _, name) => {
                match peers {
                    Some(peers) => peers.fmt(f)?,
                    None => f.write_str("all")?,
                }
                write!(f, " with port {name}")
            }
        }
    }
}

/// Stands for a selector in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct SelectorId(u32);

/// What a selector is used by: a subject, a direction, a contribution there. Its meaning is the
/// repository's.
pub(crate) type User = (u32, bool, u32);

/// A peer key came to a selector, left it, or means something else now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    Gained,
    Lost,
    Touched,
}

/// What changed: which selector, which key, how.
pub(crate) type Changes = Vec<(SelectorId, u32, Change)>;

/// An identity and what selectors look at.
#[derive(Debug)]
pub(crate) struct Identity {
    pub(crate) labels: Arc<Labels>,
    pub(crate) prefixes: Box<[IpNet]>,
    pub(crate) named_ports: BTreeSet<NamedPort>,
}

impl Identity {
    pub(crate) fn who(&self) -> Who<'_> {
        Who { labels: &self.labels, prefixes: &self.prefixes }
    }
}

#[derive(Debug)]
struct Selector {
    spec: Spec,
    users: BTreeSet<User>,
    /// Everybody it means, one by one.
    members: BTreeSet<u32>,
    /// Aggregates that it means if nobody of them is left out.
    broad: &'static [u32],
    /// Of these, those of which nobody is.
    whole: BTreeSet<u32>,
}

impl Selector {
    /// The keys that stand for its members.
    fn keys<'a>(&'a self, cluster_id: u32) -> impl Iterator<Item = u32> + 'a {
        let single = self.members.iter().copied();
        single
            .filter(move |member| !self.whole.contains(&aggregate(*member, cluster_id)))
            .chain(self.whole.iter().copied())
    }
}

/// How a selector is found for an identity.
#[derive(Debug)]
enum Finder {
    /// By labels.
    Labels(BTreeSet<u64>),
    /// By one prefix.
    Prefix(IpNet),
    /// By looking.
    Look,
}

/// The identities, and the selectors in use.
#[derive(Debug)]
pub(crate) struct Selectors {
    pub(crate) world: World,
    cluster_id: u32,
    identities: BTreeMap<u32, Identity>,
    by_label: HashMap<u64, BTreeSet<u32>>,
    by_prefix: BTreeMap<IpNet, BTreeSet<u32>>,
    /// How many identities each aggregate stands for.
    population: BTreeMap<u32, usize>,
    ids: HashMap<Spec, SelectorId>,
    selectors: BTreeMap<SelectorId, Selector>,
    next: u32,
    anchored: HashMap<u64, BTreeSet<SelectorId>>,
    prefixed: BTreeMap<IpNet, BTreeSet<SelectorId>>,
    unanchored: BTreeSet<SelectorId>,
    /// Selectors that may mean an aggregate.
    broad: BTreeSet<SelectorId>,
    /// How many uses each prefix has.
    prefixes: BTreeMap<IpNet, usize>,
    /// The prefixes that each selector uses, where it uses any.
    prefixes_of: BTreeMap<SelectorId, Vec<IpNet>>,
    prefix_revision: u64,
}

impl Selectors {
    pub(crate) fn new(config: &Config) -> Self {
        let world = World {
            cluster_name: config.cluster_name.clone(),
            dual_stack: config.dual_stack,
            ..World::default()
        };
        let mut selectors = Self {
            world,
            cluster_id: config.cluster_id,
            identities: BTreeMap::new(),
            by_label: HashMap::new(),
            by_prefix: BTreeMap::new(),
            population: BTreeMap::new(),
            ids: HashMap::new(),
            selectors: BTreeMap::new(),
            next: 0,
            anchored: HashMap::new(),
            prefixed: BTreeMap::new(),
            unanchored: BTreeSet::new(),
            broad: BTreeSet::new(),
            prefixes: BTreeMap::new(),
            prefixes_of: BTreeMap::new(),
            prefix_revision: 0,
        };
        for (id, _) in IdentityId::reserved().filter(|(id, _)| *id != IdentityId::UNKNOWN) {
            // A cluster of one family has one world, one of two has two.
            let split = [IdentityId::WORLD_IPV4, IdentityId::WORLD_IPV6].contains(&id);
            let exists = if config.dual_stack { id != IdentityId::WORLD } else { !split };
            if let Some(labels) = id.reserved_labels().filter(|_| exists) {
                selectors.add_identity(id, Arc::new(labels));
            }
        }
        selectors
    }

    pub(crate) fn aggregate(&self, key: u32) -> u32 {
        aggregate(key, self.cluster_id)
    }

    pub(crate) fn identity(&self, id: u32) -> Option<&Identity> {
        self.identities.get(&id)
    }

    pub(crate) fn keys(&self, id: SelectorId) -> impl Iterator<Item = u32> {
        self.selectors.get(&id).into_iter().flat_map(|selector| selector.keys(self.cluster_id))
    }

    pub(crate) fn users(&self, id: SelectorId) -> impl Iterator<Item = User> {
        self.selectors.get(&id).into_iter().flat_map(|selector| selector.users.iter().copied())
    }

    /// Every selector in use, in words, with everybody it means.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&Spec, usize, &BTreeSet<u32>)> {
        self.selectors.values().map(|one| (&one.spec, one.users.len(), &one.members))
    }

    /// The prefixes that selectors in use tell apart. All of a family need no identity of their own:
    /// they are the world.
    pub(crate) fn required_prefixes(&self) -> impl Iterator<Item = IpNet> {
        self.prefixes.keys().copied().filter(|prefix| prefix.prefix_len() > 0)
    }

    pub(crate) fn prefix_revision(&self) -> u64 {
        self.prefix_revision
    }

    /// Begins to use a selector.
    pub(crate) fn acquire(&mut self, spec: &Spec, user: User) -> SelectorId {
        let id = match self.ids.get(spec) {
            Some(id) => *id,
            None => self.insert(spec.clone()),
        };
        if let Some(selector) = self.selectors.get_mut(&id) {
            selector.users.insert(user);
        }
        id
    }

    /// Ends one use of a selector.
    pub(crate) fn release(&mut self, id: SelectorId, user: User) {
        let Some(selector) = self.selectors.get_mut(&id) else { return };
        selector.users.remove(&user);
        if selector.users.is_empty() {
            self.remove(id);
        }
    }

    fn insert(&mut self, spec: Spec) -> SelectorId {
        let id = SelectorId(self.next);
        self.next += 1;
        let members = self.members(&spec);
        let broad = match &spec {
            Spec::Peers(peers) => self.world.aggregates(peers),
            Spec::WithPort(..) => &[],
        };
        match finder(&spec) {
            Finder::Labels(labels) => labels.into_iter().for_each(|label| {
                self.anchored.entry(label).or_default().insert(id);
            }),
            Finder::Prefix(prefix) => {
                self.prefixed.entry(prefix).or_default().insert(id);
            }
            Finder::Look => {
                self.unanchored.insert(id);
            }
        }
        if !broad.is_empty() {
            self.broad.insert(id);
        }
        self.use_prefixes(id, &spec);
        self.ids.insert(spec.clone(), id);
        let mut selector =
            Selector { spec, users: BTreeSet::new(), members, broad, whole: BTreeSet::new() };
        selector.whole = whole(&selector, &self.population, self.cluster_id);
        self.selectors.insert(id, selector);
        id
    }

    fn remove(&mut self, id: SelectorId) {
        let Some(selector) = self.selectors.remove(&id) else { return };
        match finder(&selector.spec) {
            Finder::Labels(labels) => {
                labels.iter().for_each(|label| remove_from(&mut self.anchored, label, id));
            }
            Finder::Prefix(prefix) => {
                if let Some(all) = self.prefixed.get_mut(&prefix) {
                    all.remove(&id);
                    if all.is_empty() {
                        self.prefixed.remove(&prefix);
                    }
                }
            }
            Finder::Look => {
                self.unanchored.remove(&id);
            }
        }
        self.broad.remove(&id);
        self.unuse_prefixes(id);
        self.ids.remove(&selector.spec);
    }

    /// Everybody whom a selector means.
    fn members(&self, spec: &Spec) -> BTreeSet<u32> {
        let candidates: Vec<u32> = match finder(spec) {
            Finder::Labels(labels) => labels
                .iter()
                .filter_map(|label| self.by_label.get(label))
                .flatten()
                .copied()
                .collect(),
            Finder::Prefix(prefix) => self.inside(prefix),
            Finder::Look => self.identities.keys().copied().collect(),
        };
        let means = |id: &u32| self.identities.get(id).is_some_and(|one| self.means(spec, one));
        candidates.into_iter().filter(means).collect()
    }

    /// Identities of prefixes inside this one. Prefixes are ordered by address, so they follow it.
    fn inside(&self, prefix: IpNet) -> Vec<u32> {
        let last = IpNet::new_assert(prefix.broadcast(), prefix.max_prefix_len());
        self.by_prefix.range(prefix..=last).flat_map(|(_, ids)| ids.iter().copied()).collect()
    }

    fn means(&self, spec: &Spec, identity: &Identity) -> bool {
        let selects = |peers: &PeerSelector| self.world.selects(peers, identity.who());
        match spec {
            Spec::Peers(peers) => selects(peers),
            Spec::WithPort(peers, protocol, name) => {
                identity.named_ports.iter().any(|port| port.is_meant_by(*protocol, name))
                    && peers.as_deref().is_none_or(selects)
            }
        }
    }

    /// Selectors that may mean an identity.
    fn candidates(&self, identity: &Identity) -> BTreeSet<SelectorId> {
        let numbers = identity.labels.iter().map(|label| label_number(&label.key, &label.value));
        let mut found: BTreeSet<SelectorId> = self.unanchored.clone();
        found.extend(numbers.filter_map(|number| self.anchored.get(&number)).flatten());
        for prefix in &identity.prefixes {
            let mut next = Some(*prefix);
            while let Some(around) = next {
                found.extend(self.prefixed.get(&around).into_iter().flatten());
                next = around.supernet();
            }
        }
        found
    }

    /// An identity comes. One that is known keeps its labels.
    pub(crate) fn add_identity(&mut self, id: IdentityId, labels: Arc<Labels>) -> Changes {
        if self.identities.contains_key(&id.0) || id == IdentityId::UNKNOWN {
            return Changes::new();
        }
        let labels = self.with_cluster(id, labels);
        let prefixes = self.world.prefixes(&labels).into();
        let identity = Identity { labels, prefixes, named_ports: BTreeSet::new() };
        for label in identity.labels.iter() {
            let number = label_number(&label.key, &label.value);
            self.by_label.entry(number).or_default().insert(id.0);
        }
        for prefix in &identity.prefixes {
            self.by_prefix.entry(*prefix).or_default().insert(id.0);
        }
        let class = self.aggregate(id.0);
        *self.population.entry(class).or_default() += 1;
        let candidates = self.candidates(&identity);
        self.identities.insert(id.0, identity);
        self.reconsider(id.0, candidates)
    }

    /// An endpoint of the own cluster is of it even where its labels do not say so.
    fn with_cluster(&self, id: IdentityId, labels: Arc<Labels>) -> Arc<Labels> {
        let own = self.aggregate(id.0) == abi::policy::AGGREGATE_CLUSTER;
        if !own || labels.value(SOURCE_K8S, KEY_CLUSTER).is_some() {
            return labels;
        }
        let mut labels = Arc::unwrap_or_clone(labels);
        labels.insert(Label::k8s(KEY_CLUSTER, &self.world.cluster_name));
        Arc::new(labels)
    }

    /// An identity goes.
    pub(crate) fn remove_identity(&mut self, id: IdentityId) -> Changes {
        let Some(identity) = self.identities.remove(&id.0) else { return Changes::new() };
        for label in identity.labels.iter() {
            let number = label_number(&label.key, &label.value);
            if let Some(ids) = self.by_label.get_mut(&number) {
                ids.remove(&id.0);
                if ids.is_empty() {
                    self.by_label.remove(&number);
                }
            }
        }
        for prefix in &identity.prefixes {
            if let Some(ids) = self.by_prefix.get_mut(prefix) {
                ids.remove(&id.0);
                if ids.is_empty() {
                    self.by_prefix.remove(prefix);
                }
            }
        }
        let class = self.aggregate(id.0);
        if let Some(count) = self.population.get_mut(&class) {
            *count -= 1;
        }
        let candidates = self.candidates(&identity);
        self.reconsider(id.0, candidates)
    }

    /// Names of ports change.
    pub(crate) fn set_named_ports(
        &mut self,
        id: IdentityId,
        ports: BTreeSet<NamedPort>,
    ) -> Changes {
        let Some(identity) = self.identities.get_mut(&id.0) else { return Changes::new() };
        if identity.named_ports == ports {
            return Changes::new();
        }
        identity.named_ports = ports;
        let identity = &self.identities[&id.0];
        let by_port = |selector: &SelectorId| matches!(self.selectors.get(selector), Some(one) if matches!(one.spec, Spec::WithPort(..)));
        let concerned: BTreeSet<SelectorId> =
            self.candidates(identity).into_iter().filter(by_port).collect();
        let mut changes = self.reconsider(id.0, concerned.clone());
        for selector in concerned {
            let stays = self.selectors[&selector].members.contains(&id.0)
                && !changes.iter().any(|(changed, ..)| *changed == selector);
            if stays {
                changes.push((selector, id.0, Change::Touched));
            }
        }
        changes
    }

    /// Services or groups change: selectors that speak of them are looked at again.
    pub(crate) fn set_service(&mut self, name: ServiceName, service: Option<Service>) -> Changes {
        match service {
            Some(service) => {
                if self.world.services.get(&name) == Some(&service) {
                    return Changes::new();
                }
                self.world.services.insert(name, service);
            }
            None => {
                self.world.services.remove(&name);
            }
        }
        self.look_again(|peers| matches!(peers, PeerSelector::Services(_)))
    }

    /// A group changes.
    pub(crate) fn set_group(&mut self, name: &str, group: Option<CidrGroup>) -> Changes {
        match group {
            Some(group) => {
                if self.world.groups.get(name) == Some(&group) {
                    return Changes::new();
                }
                self.world.groups.insert(name.to_owned(), group);
            }
            None => {
                self.world.groups.remove(name);
            }
        }
        // Labels of prefixes name their groups.
        self.prefix_revision += 1;
        self.look_again(|peers| matches!(peers, PeerSelector::CidrGroup { .. }))
    }

    fn look_again(&mut self, concerned: impl Fn(&PeerSelector) -> bool) -> Changes {
        let mut changes = Changes::new();
        let ids: Vec<SelectorId> = self
            .unanchored
            .iter()
            .filter(|id| self.selectors[id].spec.peers().is_some_and(&concerned))
            .copied()
            .collect();
        for id in ids {
            let spec = self.selectors[&id].spec.clone();
            self.use_prefixes(id, &spec);
            let members = self.members(&spec);
            let Some(selector) = self.selectors.get_mut(&id) else { continue };
            let before: BTreeSet<u32> = selector.keys(self.cluster_id).collect();
            selector.members = members;
            selector.whole = whole(selector, &self.population, self.cluster_id);
            let after: BTreeSet<u32> = selector.keys(self.cluster_id).collect();
            changes.extend(after.difference(&before).map(|key| (id, *key, Change::Gained)));
            changes.extend(before.difference(&after).map(|key| (id, *key, Change::Lost)));
        }
        changes
    }

    /// Looks whether these selectors mean an identity, which may be gone, and what follows for those
    /// that mean whole aggregates.
    fn reconsider(&mut self, id: u32, candidates: BTreeSet<SelectorId>) -> Changes {
        let mut changes = Changes::new();
        let class = self.aggregate(id);
        let broad: Vec<SelectorId> = self.broad.difference(&candidates).copied().collect();
        for selector_id in candidates.into_iter().chain(broad) {
            let means = |spec: &Spec| {
                self.identities.get(&id).is_some_and(|identity| self.means(spec, identity))
            };
            let Some(selector) = self.selectors.get(&selector_id) else { continue };
            let means = means(&selector.spec);
            let Some(selector) = self.selectors.get_mut(&selector_id) else { continue };
            let was = match means {
                true => !selector.members.insert(id),
                false => selector.members.remove(&id),
            };
            if !selector.broad.contains(&class) {
                match (was, means) {
                    (false, true) => changes.push((selector_id, id, Change::Gained)),
                    (true, false) => changes.push((selector_id, id, Change::Lost)),
                    _ => {}
                }
                continue;
            }
            changes.extend(
                rebalance(selector, id, was, class, &self.population, self.cluster_id)
                    .into_iter()
                    .map(|(key, change)| (selector_id, key, change)),
            );
        }
        changes
    }

    fn use_prefixes(&mut self, id: SelectorId, spec: &Spec) {
        let named = spec.peers().map(|peers| self.world.prefixes_named(peers)).unwrap_or_default();
        for prefix in &named {
            let uses = self.prefixes.entry(*prefix).or_default();
            *uses += 1;
            if *uses == 1 {
                self.prefix_revision += 1;
            }
        }
        // After the new ones are counted, so that what stays does not come and go.
        self.unuse_prefixes(id);
        if !named.is_empty() {
            self.prefixes_of.insert(id, named);
        }
    }

    fn unuse_prefixes(&mut self, id: SelectorId) {
        for prefix in self.prefixes_of.remove(&id).unwrap_or_default() {
            if let Some(uses) = self.prefixes.get_mut(&prefix) {
                *uses -= 1;
                if *uses == 0 {
                    self.prefixes.remove(&prefix);
                    self.prefix_revision += 1;
                }
            }
        }
    }
}

fn finder(spec: &Spec) -> Finder {
    match spec.peers() {
        Some(PeerSelector::Cidr { prefix, .. }) => Finder::Prefix(*prefix),
        Some(peers) => anchors(peers).map_or(Finder::Look, Finder::Labels),
        None => Finder::Look,
    }
}

/// Of the aggregates that a selector means if nobody is left out, those of which nobody is.
fn whole(selector: &Selector, population: &BTreeMap<u32, usize>, cluster_id: u32) -> BTreeSet<u32> {
    let means_all = |class: &u32| {
        let members = selector.members.iter().filter(|id| aggregate(**id, cluster_id) == *class);
        members.count() == population.get(class).copied().unwrap_or_default()
    };
    selector.broad.iter().copied().filter(means_all).collect()
}

/// An identity of an aggregate that the selector may mean as a whole came or went. As long as it
/// means everybody nothing changes; else it changes between the aggregate and its members.
fn rebalance(
    selector: &mut Selector,
    id: u32,
    was: bool,
    class: u32,
    population: &BTreeMap<u32, usize>,
    cluster_id: u32,
) -> Vec<(u32, Change)> {
    let is = selector.members.contains(&id);
    let was_whole = selector.whole.contains(&class);
    let everybody = population.get(&class).copied().unwrap_or_default();
    let of_class = |selector: &Selector| -> Vec<u32> {
        let members = selector.members.iter().copied();
        members.filter(|member| aggregate(*member, cluster_id) == class).collect()
    };
    // Who was whole and gained the newcomer, or lost one that is gone, is still whole.
    let is_whole = if was_whole && is { true } else { of_class(selector).len() == everybody };
    match (was_whole, is_whole) {
        (true, true) => Vec::new(),
        (false, false) => match (was, is) {
            (false, true) => vec![(id, Change::Gained)],
            (true, false) => vec![(id, Change::Lost)],
            _ => Vec::new(),
        },
        (true, false) => {
            selector.whole.remove(&class);
            let members = of_class(selector).into_iter().map(|member| (member, Change::Gained));
            members.chain([(class, Change::Lost)]).collect()
        }
        (false, true) => {
            selector.whole.insert(class);
            let mut lost: BTreeSet<u32> = of_class(selector).into_iter().collect();
            // The members as they were before: without a newcomer, with one that is gone.
            match was {
                true => lost.insert(id),
                false => lost.remove(&id),
            };
            let lost = lost.into_iter().map(|member| (member, Change::Lost));
            lost.chain([(class, Change::Gained)]).collect()
        }
    }
}

fn remove_from(index: &mut HashMap<u64, BTreeSet<SelectorId>>, label: &u64, id: SelectorId) {
    if let Some(all) = index.get_mut(label) {
        all.remove(&id);
        if all.is_empty() {
            index.remove(label);
        }
    }
}
