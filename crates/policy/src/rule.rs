//! Policies as they are enforced: parsed, checked, and free of Kubernetes.
//!
//! All languages meet here. A policy has rules; a rule selects subjects and has clauses, the items of
//! its lists; a clause says which peers, which ports, and what happens to them.

use std::fmt;
use std::sync::Arc;

use ipnet::IpNet;
use model::{LabelSelector, Labels};
use serde::{Deserialize, Serialize};

use crate::port::PortMatch;

/// In which language a policy is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum PolicyKind {
    /// Kubernetes' own.
    NetworkPolicy,
    /// Cilium's, of a namespace.
    CiliumNetworkPolicy,
    /// Cilium's, of the cluster.
    CiliumClusterwideNetworkPolicy,
    /// Kubernetes' policy of the cluster's administrator.
    ClusterNetworkPolicy,
}

impl PolicyKind {
    /// The kind, as in manifests.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NetworkPolicy => "NetworkPolicy",
            Self::CiliumNetworkPolicy => "CiliumNetworkPolicy",
            Self::CiliumClusterwideNetworkPolicy => "CiliumClusterwideNetworkPolicy",
            Self::ClusterNetworkPolicy => "ClusterNetworkPolicy",
        }
    }
}

impl fmt::Display for PolicyKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Which policy: what it is written in, and its name.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PolicyId {
    /// Its language.
    pub kind: PolicyKind,
    /// Its namespace; empty for a policy of the cluster.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl fmt::Display for PolicyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.namespace.as_str() {
            "" => write!(f, "{} {}", self.kind, self.name),
            namespace => write!(f, "{} {namespace}/{}", self.kind, self.name),
        }
    }
}

/// A policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Which.
    pub id: PolicyId,
    /// Tells a policy from an earlier one of the same name; empty when not known.
    pub uid: Box<str>,
    /// What it says: one rule for `spec`, then one for each of `specs`.
    pub rules: Vec<Rule>,
}

/// What a policy says of the subjects that it selects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Which of `specs` this is; `None` is `spec`.
    pub spec: Option<u16>,
    /// For whom it speaks.
    pub subject: SubjectSelector,
    /// When it is asked.
    pub tier: Tier,
    /// Whether what no clause allows is denied.
    pub default_deny: PerDirection<bool>,
    /// The items of its lists.
    pub clauses: PerDirection<Vec<Clause>>,
    /// Labels that the author gave it.
    pub labels: Labels,
    /// Text for the log of flows that it decides.
    pub log: Option<Arc<str>>,
}

/// For whom a rule speaks.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum SubjectSelector {
    /// Endpoints with these labels.
    Endpoints(Arc<LabelSelector>),
    /// Nodes with these labels: their own traffic.
    Nodes(Arc<LabelSelector>),
}

impl SubjectSelector {
    /// The selector, of whichever kind.
    pub fn selector(&self) -> &Arc<LabelSelector> {
        match self {
            Self::Endpoints(selector) | Self::Nodes(selector) => selector,
        }
    }
}

/// When rules are asked, the earliest first. The first tier that has an answer decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Tier {
    /// Before everybody: policies of the cluster's administrator.
    Admin,
    /// Policies of namespaces, and Cilium's.
    Normal,
    /// What holds for endpoints that no policy of the normal tier selects.
    Baseline,
}

/// Whether traffic comes to the subject or goes from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// To the subject.
    Ingress,
    /// From the subject.
    Egress,
}

impl Direction {
    /// Both.
    pub const BOTH: [Self; 2] = [Self::Ingress, Self::Egress];
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        })
    }
}

/// One value for each direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct PerDirection<T> {
    /// For what comes to the subject.
    pub ingress: T,
    /// For what goes from it.
    pub egress: T,
}

impl<T> std::ops::Index<Direction> for PerDirection<T> {
    type Output = T;

    fn index(&self, direction: Direction) -> &T {
        match direction {
            Direction::Ingress => &self.ingress,
            Direction::Egress => &self.egress,
        }
    }
}

impl<T> std::ops::IndexMut<Direction> for PerDirection<T> {
    fn index_mut(&mut self, direction: Direction) -> &mut T {
        match direction {
            Direction::Ingress => &mut self.ingress,
            Direction::Egress => &mut self.egress,
        }
    }
}

/// An item of one of a rule's lists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Clause {
    /// Where it stands.
    pub place: Place,
    /// What it says.
    pub verdict: Verdict,
    /// The lower is asked first within the tier, see [`Clause::PRIORITY_MAX`].
    pub priority: u32,
    /// Of whom.
    pub peers: Peers,
    /// Of which ports; empty is none.
    pub ports: Vec<Port>,
}

impl Clause {
    /// The greatest priority: that of rule 100 of a policy of priority 1,000.
    pub const PRIORITY_MAX: u32 = 100_099;
}

/// Where a clause stands in its rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Place {
    /// In which list.
    pub list: List,
    /// At which index.
    pub index: u16,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}[{}]", self.list.as_str(), self.index)
    }
}

/// The lists of a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum List {
    /// `ingress`.
    Ingress,
    /// `ingressDeny`.
    IngressDeny,
    /// `egress`.
    Egress,
    /// `egressDeny`.
    EgressDeny,
}

impl List {
    /// The field's name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ingress => "ingress",
            Self::IngressDeny => "ingressDeny",
            Self::Egress => "egress",
            Self::EgressDeny => "egressDeny",
        }
    }
}

/// What a clause says of what it covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Verdict {
    /// It may pass.
    Allow,
    /// It may not.
    Deny,
    /// This tier has no more to say.
    Pass,
}

/// Of whom a clause speaks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Peers {
    /// Everybody.
    Any,
    /// Those whom one of these selects; empty is nobody.
    Of(Vec<Arc<PeerSelector>>),
}

/// Peers of one kind.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum PeerSelector {
    /// Those with these labels.
    Labels(LabelSelector),
    /// A group that everybody knows.
    Entity(Entity),
    /// Addresses outside the cluster, by prefix.
    Cidr {
        /// Within this,
        prefix: IpNet,
        /// but not within these.
        except: Box<[IpNet]>,
    },
    /// Addresses that a `CiliumCIDRGroup` lists.
    CidrGroup {
        /// Which groups.
        groups: CidrGroups,
        /// Not within these.
        except: Box<[IpNet]>,
    },
    /// Nodes with these labels.
    Nodes(LabelSelector),
    /// Backends of services.
    Services(Services),
    /// Names, which are not enforced yet: selects nobody.
    Name(Box<str>),
    /// Groups of a cloud provider, which are not enforced yet: selects nobody.
    CloudGroup(Box<str>),
}

/// Which `CiliumCIDRGroup`s.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum CidrGroups {
    /// The one of this name.
    Named(Box<str>),
    /// Those with these labels.
    Labelled(LabelSelector),
}

/// Which services.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Services {
    /// The one of this name.
    Named {
        /// Its namespace.
        namespace: Box<str>,
        /// Its name.
        name: Box<str>,
    },
    /// Those with these labels.
    Labelled {
        /// In this namespace; `None` is every.
        namespace: Option<Box<str>>,
        /// Labels of the service.
        selector: LabelSelector,
    },
}

/// Groups that everybody knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Entity {
    /// Everybody.
    All,
    /// Everything outside.
    World,
    /// Everything outside, over IPv4.
    WorldIpv4,
    /// Everything outside, over IPv6.
    WorldIpv6,
    /// Everything inside the own cluster.
    Cluster,
    /// Everything inside all clusters of the mesh.
    ClusterMesh,
    /// The node.
    Host,
    /// Endpoints whose labels are not known yet.
    Init,
    /// Ingress load balancers.
    Ingress,
    /// Pods that are not ours to manage.
    Unmanaged,
    /// Other nodes.
    RemoteNode,
    /// Health endpoints.
    Health,
    /// Nobody.
    None,
    /// The API server.
    KubeApiserver,
}

impl Entity {
    /// All of them.
    pub const ALL: [Self; 14] = [
        Self::All,
        Self::World,
        Self::WorldIpv4,
        Self::WorldIpv6,
        Self::Cluster,
        Self::ClusterMesh,
        Self::Host,
        Self::Init,
        Self::Ingress,
        Self::Unmanaged,
        Self::RemoteNode,
        Self::Health,
        Self::None,
        Self::KubeApiserver,
    ];

    /// The name, as in policies.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::All => "all",
            Self::World => "world",
            Self::WorldIpv4 => "world-ipv4",
            Self::WorldIpv6 => "world-ipv6",
            Self::Cluster => "cluster",
            Self::ClusterMesh => "cluster-mesh",
            Self::Host => "host",
            Self::Init => "init",
            Self::Ingress => "ingress",
            Self::Unmanaged => "unmanaged",
            Self::RemoteNode => "remote-node",
            Self::Health => "health",
            Self::None => "none",
            Self::KubeApiserver => "kube-apiserver",
        }
    }

    /// The entity of this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|entity| entity.as_str() == name)
    }
}

impl fmt::Display for PeerSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Labels(selector) => selector.fmt(f),
            Self::Entity(entity) => write!(f, "entity {}", entity.as_str()),
            Self::Cidr { prefix, except } => write!(f, "{prefix}{}", Except(except)),
            Self::CidrGroup { groups: CidrGroups::Named(name), except } => {
                write!(f, "CIDR group {name}{}", Except(except))
            }
            Self::CidrGroup { groups: CidrGroups::Labelled(selector), except } => {
                write!(f, "CIDR groups with {selector}{}", Except(except))
            }
            Self::Nodes(selector) => write!(f, "nodes with {selector}"),
            Self::Services(Services::Named { namespace, name }) => {
                write!(f, "service {namespace}/{name}")
            }
            Self::Services(Services::Labelled { namespace, selector }) => {
                write!(f, "services with {selector}")?;
                namespace.iter().try_for_each(|namespace| write!(f, " in {namespace}"))
            }
            Self::Name(name) => write!(f, "name {name}"),
            Self::CloudGroup(group) => write!(f, "group {group}"),
        }
    }
}

struct Except<'a>(&'a [IpNet]);

impl fmt::Display for Except<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|prefix| write!(f, " except {prefix}"))
    }
}

/// Of which port a clause speaks.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Port {
    /// Which.
    pub ports: PortMatch,
    /// What more is asked of its traffic that is not enforced yet. What only such clauses cover is
    /// denied, with a reason that says so.
    pub unenforced: Option<Unenforced>,
}

impl Port {
    /// All ports, and no more is asked.
    pub const ALL: Self = Self { ports: PortMatch::All, unenforced: None };
}

/// What a policy asks that is not enforced yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Unenforced {
    /// Rules about requests: HTTP, Kafka and others.
    L7,
    /// Rules about the names that are asked for.
    Dns,
    /// Peers by name.
    Names,
    /// Groups of a cloud provider.
    CloudGroups,
    /// Termination or origination of TLS, and names of servers.
    Tls,
    /// A listener of the proxy.
    Listener,
    /// Mutual authentication.
    Authentication,
}

impl Unenforced {
    /// What it is, in words.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::L7 => "L7 rules",
            Self::Dns => "DNS rules",
            Self::Names => "toFQDNs",
            Self::CloudGroups => "groups of a cloud provider",
            Self::Tls => "TLS interception and server names",
            Self::Listener => "listeners",
            Self::Authentication => "authentication",
        }
    }
}

impl fmt::Display for Unenforced {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
