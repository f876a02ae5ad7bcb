//! Who an identity is, and whether a peer selector means it: the one place that decides that.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use model::label::{KEY_CLUSTER, KEY_NAMESPACE, SOURCE_CIDR, SOURCE_K8S, SOURCE_RESERVED};
use model::{IdentityId, Label, LabelSelector, Labels, Operator};

use crate::repository::{CidrGroup, Service, ServiceName};
use crate::rule::{CidrGroups, Entity, PeerSelector, Services};

/// Source of the labels that CIDR groups give.
const SOURCE_CIDR_GROUP: &str = "cidrgroup";
/// Key of the label that names a CIDR group.
const KEY_CIDR_GROUP: &str = "io.cilium.policy.cidrgroupname";

/// Labels, and the prefixes that they stand for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Who<'a> {
    pub(crate) labels: &'a Labels,
    /// Prefixes outside the cluster: one of a CIDR identity, all of a family for the world.
    pub(crate) prefixes: &'a [IpNet],
}

/// What the cluster has beside identities that peer selectors speak of.
#[derive(Debug, Default)]
pub(crate) struct World {
    pub(crate) cluster_name: String,
    pub(crate) dual_stack: bool,
    pub(crate) services: BTreeMap<ServiceName, Service>,
    pub(crate) groups: BTreeMap<String, CidrGroup>,
}

impl World {
    /// Whether the selector means them.
    pub(crate) fn selects(&self, selector: &PeerSelector, who: Who<'_>) -> bool {
        match selector {
            PeerSelector::Labels(selector) => selector.matches(who.labels),
            PeerSelector::Entity(entity) => self.entity_selects(*entity, who.labels),
            PeerSelector::Cidr { prefix, except } => within(who.prefixes, |one| {
                prefix.contains(one) && !except.iter().any(|except| except.contains(one))
            }),
            PeerSelector::CidrGroup { groups, except } => within(who.prefixes, |one| {
                let listed = |group: &CidrGroup| group.prefixes.iter().any(|p| p.contains(one));
                !except.iter().any(|except| except.contains(one))
                    && self.groups(groups).any(|(_, group)| listed(group))
            }),
            PeerSelector::Nodes(selector) => {
                has_reserved(who.labels, &["remote-node", "host"]) && selector.matches(who.labels)
            }
            PeerSelector::Services(services) => {
                self.services(services).any(|(name, service)| service_selects(name, service, who))
            }
            PeerSelector::Name(_) | PeerSelector::CloudGroup(_) => false,
        }
    }

    /// The groups that are meant.
    pub(crate) fn groups<'a>(
        &'a self,
        groups: &'a CidrGroups,
    ) -> impl Iterator<Item = (&'a String, &'a CidrGroup)> {
        self.groups.iter().filter(move |(name, group)| match groups {
            CidrGroups::Named(wanted) => **wanted == ***name,
            CidrGroups::Labelled(selector) => selector.matches(&group.labels),
        })
    }

    /// The services that are meant.
    pub(crate) fn services<'a>(
        &'a self,
        services: &'a Services,
    ) -> impl Iterator<Item = (&'a ServiceName, &'a Service)> {
        self.services.iter().filter(move |(name, service)| match services {
            Services::Named { namespace, name: wanted } => {
                **namespace == *name.namespace && **wanted == *name.name
            }
            Services::Labelled { namespace, selector } => {
                namespace.as_ref().is_none_or(|namespace| **namespace == *name.namespace)
                    && selector.matches(&service.labels)
            }
        })
    }

    fn entity_selects(&self, entity: Entity, labels: &Labels) -> bool {
        const INSIDE: [&str; 7] =
            ["host", "remote-node", "init", "ingress", "health", "unmanaged", "kube-apiserver"];
        match entity {
            Entity::All => true,
            Entity::None => false,
            Entity::World => has_reserved(labels, &["world", "world-ipv4", "world-ipv6"]),
            Entity::Cluster => {
                has_reserved(labels, &INSIDE)
                    || labels.value(SOURCE_K8S, KEY_CLUSTER) == Some(&self.cluster_name)
            }
            Entity::ClusterMesh => {
                has_reserved(labels, &INSIDE) || labels.value(SOURCE_K8S, KEY_CLUSTER).is_some()
            }
            _ => has_reserved(labels, &[entity.as_str()]),
        }
    }

    /// The aggregates (11 to 14) all of whose identities the selector means, if each has the labels
    /// that its kind has: a cluster's endpoints a namespace and their cluster, what is outside
    /// `reserved:world`, nodes `reserved:remote-node`.
    pub(crate) fn aggregates(&self, selector: &PeerSelector) -> &'static [u32] {
        use abi::policy::{
            AGGREGATE_CLUSTER as CLUSTER, AGGREGATE_CLUSTER_MESH as MESH,
            AGGREGATE_REMOTE_NODE as NODES, AGGREGATE_WORLD as OUTSIDE,
        };
        match selector {
            PeerSelector::Labels(selector) => match self.breadth(selector) {
                Some(Breadth::Everybody) => &[CLUSTER, MESH, OUTSIDE, NODES],
                Some(Breadth::AllClusters) => &[CLUSTER, MESH],
                Some(Breadth::OwnCluster) => &[CLUSTER],
                None => &[],
            },
            PeerSelector::Entity(Entity::World) => &[OUTSIDE],
            PeerSelector::Entity(Entity::Cluster) => &[CLUSTER, NODES],
            PeerSelector::Entity(Entity::ClusterMesh) => &[CLUSTER, MESH, NODES],
            PeerSelector::Entity(Entity::RemoteNode) => &[NODES],
            PeerSelector::Nodes(selector) if selector.requirements().is_empty() => &[NODES],
            _ => &[],
        }
    }

    fn breadth(&self, selector: &LabelSelector) -> Option<Breadth> {
        let mut breadth = Breadth::Everybody;
        for requirement in selector.requirements() {
            let about = |key| requirement.is_about(SOURCE_K8S, key);
            let this = match &requirement.operator {
                Operator::Exists if about(KEY_NAMESPACE) || about(KEY_CLUSTER) => {
                    Breadth::AllClusters
                }
                Operator::In(values) if about(KEY_CLUSTER) => {
                    let own = values.iter().any(|value| **value == *self.cluster_name);
                    own.then_some(Breadth::OwnCluster)?
                }
                _ => return None,
            };
            breadth = breadth.max(this);
        }
        Some(breadth)
    }

    /// The prefixes that labels stand for.
    pub(crate) fn prefixes(&self, labels: &Labels) -> Vec<IpNet> {
        let of_labels: Vec<IpNet> = labels.iter().filter_map(prefix_of).collect();
        if !of_labels.is_empty() {
            return of_labels;
        }
        let all =
            [IpNet::new_assert(IpAddr::from([0; 4]), 0), IpNet::new_assert([0; 16].into(), 0)];
        if has_reserved(labels, &["world"]) {
            return all.to_vec();
        }
        let family = |name| has_reserved(labels, &[name]);
        match (family("world-ipv4"), family("world-ipv6")) {
            (true, _) => vec![all[0]],
            (_, true) => vec![all[1]],
            _ => Vec::new(),
        }
    }

    /// The labels of the identity of a prefix outside the cluster.
    pub(crate) fn prefix_labels(&self, prefix: IpNet) -> Labels {
        let world = match (self.dual_stack, prefix) {
            (false, _) => IdentityId::WORLD,
            (true, IpNet::V4(_)) => IdentityId::WORLD_IPV4,
            (true, IpNet::V6(_)) => IdentityId::WORLD_IPV6,
        };
        let mut labels = world.reserved_labels().unwrap_or_default();
        labels.insert(prefix_label(prefix));
        for (name, group) in &self.groups {
            if group.prefixes.iter().any(|listed| listed.contains(&prefix)) {
                group.labels.iter().for_each(|label| labels.insert(label.clone()));
                let key = format!("{KEY_CIDR_GROUP}/{name}");
                labels.insert(Label::new(SOURCE_CIDR_GROUP, key, ""));
            }
        }
        labels
    }

    /// The prefixes that a selector tells apart: its own and those it excepts.
    pub(crate) fn prefixes_named(&self, selector: &PeerSelector) -> Vec<IpNet> {
        match selector {
            PeerSelector::Cidr { prefix, except } => {
                except.iter().copied().chain([*prefix]).collect()
            }
            PeerSelector::CidrGroup { groups, except } => {
                let listed = self.groups(groups).flat_map(|(_, group)| &group.prefixes);
                except.iter().chain(listed).copied().collect()
            }
            PeerSelector::Services(services) => self
                .services(services)
                .filter(|(_, service)| service.selector.is_empty())
                .flat_map(|(_, service)| service.backends.iter().copied().map(IpNet::from))
                .collect(),
            _ => Vec::new(),
        }
    }
}

/// How much of the cluster a selector without conditions on workloads means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Breadth {
    Everybody,
    AllClusters,
    OwnCluster,
}

fn within(prefixes: &[IpNet], mut is_in: impl FnMut(&IpNet) -> bool) -> bool {
    prefixes.iter().any(&mut is_in)
}

/// Backends of a service with a selector are pods of its namespace; of others, addresses.
fn service_selects(name: &ServiceName, service: &Service, who: Who<'_>) -> bool {
    if service.selector.is_empty() {
        return within(who.prefixes, |one| {
            one.prefix_len() == one.max_prefix_len() && service.backends.contains(&one.addr())
        });
    }
    who.labels.namespace() == Some(&name.namespace)
        && service
            .selector
            .iter()
            .all(|(key, value)| who.labels.value(SOURCE_K8S, key) == Some(value))
}

pub(crate) fn has_reserved(labels: &Labels, names: &[&str]) -> bool {
    let mut reserved = labels.iter().filter(|label| label.source == SOURCE_RESERVED);
    reserved.any(|label| names.contains(&label.key.as_str()))
}

/// The label of a prefix. Keys have no colons, and neither begin nor end an address with a dash.
fn prefix_label(prefix: IpNet) -> Label {
    let mut address = prefix.network().to_string().replace(':', "-");
    if address.starts_with('-') {
        address.insert(0, '0');
    }
    if address.ends_with('-') {
        address.push('0');
    }
    Label::new(SOURCE_CIDR, format!("{address}/{}", prefix.prefix_len()), "")
}

fn prefix_of(label: &Label) -> Option<IpNet> {
    if label.source != SOURCE_CIDR {
        return None;
    }
    label.key.replace('-', ":").parse::<IpNet>().ok().map(|prefix| prefix.trunc())
}

/// Labels by which identities and selectors find each other, as numbers: equal ones have equal
/// numbers, and unequal ones with equal numbers only cost a look.
pub(crate) fn label_number(key: &str, value: &str) -> u64 {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut hasher = DefaultHasher::new();
    (key, value).hash(&mut hasher);
    hasher.finish()
}

/// Labels one of which an identity must have to be meant; `None` when there is no such list.
pub(crate) fn anchors(selector: &PeerSelector) -> Option<BTreeSet<u64>> {
    let reserved = |names: &[&str]| Some(names.iter().map(|name| label_number(name, "")).collect());
    match selector {
        PeerSelector::Labels(selector) | PeerSelector::Nodes(selector) => {
            let values = selector.requirements().iter().filter_map(|requirement| {
                let Operator::In(values) = &requirement.operator else { return None };
                // The namespace says most, the cluster nothing.
                let weight = match &*requirement.key {
                    KEY_CLUSTER => return None,
                    KEY_NAMESPACE => 0,
                    _ => values.len(),
                };
                Some((weight, &requirement.key, values))
            });
            let (_, key, values) = values.min_by_key(|(weight, ..)| *weight)?;
            Some(values.iter().map(|value| label_number(key, value)).collect())
        }
        PeerSelector::Entity(Entity::World) => reserved(&["world", "world-ipv4", "world-ipv6"]),
        PeerSelector::Entity(Entity::All | Entity::Cluster | Entity::ClusterMesh) => None,
        PeerSelector::Entity(entity) => reserved(&[entity.as_str()]),
        PeerSelector::Name(_) | PeerSelector::CloudGroup(_) => Some(BTreeSet::new()),
        PeerSelector::Cidr { .. } | PeerSelector::CidrGroup { .. } | PeerSelector::Services(_) => {
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_are_labels_and_back() {
        for text in ["10.0.0.0/8", "fd00::/8", "::/0", "::1/128", "2001:db8::1:0:0/96"] {
            let prefix: IpNet = text.parse().unwrap();
            let label = prefix_label(prefix);
            assert!(!label.key.contains(':'), "{label}");
            assert_eq!(prefix_of(&label), Some(prefix), "{label}");
        }
        assert_eq!(prefix_label("fd00::/8".parse().unwrap()).to_string(), "cidr:fd00--0/8");
    }
}
