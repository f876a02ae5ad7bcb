//! Security identities: the number that stands for a set of labels.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::label::{Label, Labels};

/// A security identity. The numbers are Cilium's.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct IdentityId(pub u32);

/// How far an identity is known: its highest byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scope {
    /// In the whole cluster, and with the cluster id in bits 16–23 in the mesh.
    Global,
    /// On this node only: prefixes, names.
    Local,
    /// On this node only: other nodes by their labels.
    RemoteNode,
}

/// Numbers and names of the reserved identities.
const RESERVED: [(IdentityId, &str); 11] = [
    (IdentityId::UNKNOWN, "unknown"),
    (IdentityId::HOST, "host"),
    (IdentityId::WORLD, "world"),
    (IdentityId::UNMANAGED, "unmanaged"),
    (IdentityId::HEALTH, "health"),
    (IdentityId::INIT, "init"),
    (IdentityId::REMOTE_NODE, "remote-node"),
    (IdentityId::KUBE_APISERVER, "kube-apiserver"),
    (IdentityId::INGRESS, "ingress"),
    (IdentityId::WORLD_IPV4, "world-ipv4"),
    (IdentityId::WORLD_IPV6, "world-ipv6"),
];

impl IdentityId {
    /// Nothing is known.
    pub const UNKNOWN: Self = Self(0);
    /// The local node.
    pub const HOST: Self = Self(1);
    /// Outside the cluster, in clusters of one family.
    pub const WORLD: Self = Self(2);
    /// Pods that are not ours to manage.
    pub const UNMANAGED: Self = Self(3);
    /// Health endpoints.
    pub const HEALTH: Self = Self(4);
    /// Endpoints whose labels are not known yet.
    pub const INIT: Self = Self(5);
    /// Other nodes of the cluster.
    pub const REMOTE_NODE: Self = Self(6);
    /// The API server.
    pub const KUBE_APISERVER: Self = Self(7);
    /// Ingress and Gateway load balancers.
    pub const INGRESS: Self = Self(8);
    /// Outside the cluster over IPv4, in dual-stack clusters.
    pub const WORLD_IPV4: Self = Self(9);
    /// Outside the cluster over IPv6, in dual-stack clusters.
    pub const WORLD_IPV6: Self = Self(10);

    /// First number that is allocated to a set of labels.
    pub const CLUSTER_MIN: Self = Self(256);
    /// Last number that is allocated to a set of labels, without the cluster id.
    pub const CLUSTER_MAX: Self = Self(65_535);

    /// The reserved identities in the order of their numbers.
    pub fn reserved() -> impl Iterator<Item = (Self, &'static str)> {
        RESERVED.into_iter()
    }

    /// The name of a reserved identity.
    pub fn reserved_name(self) -> Option<&'static str> {
        RESERVED.iter().find(|(id, _)| *id == self).map(|(_, name)| *name)
    }

    /// The labels of a reserved identity. In dual-stack clusters `world` is split in two that keep
    /// its label only by selection, so each has its own name here. The API server is on a node.
    pub fn reserved_labels(self) -> Option<Labels> {
        let own = Label::reserved(self.reserved_name()?);
        let of_node = (self == Self::KUBE_APISERVER).then(|| Label::reserved("remote-node"));
        Some([own].into_iter().chain(of_node).collect())
    }

    /// How far the identity is known.
    pub fn scope(self) -> Scope {
        match self.0 >> 24 {
            0 => Scope::Global,
            1 => Scope::Local,
            _ => Scope::RemoteNode,
        }
    }

    /// Whether the number was allocated to a set of labels of this cluster.
    pub fn is_cluster_allocated(self) -> bool {
        (Self::CLUSTER_MIN..=Self::CLUSTER_MAX).contains(&self)
    }
}

impl fmt::Display for IdentityId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// A text is not an identity.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not an identity; write a number or the name of a reserved identity")]
pub struct ParseIdentityError {
    text: String,
}

impl FromStr for IdentityId {
    type Err = ParseIdentityError;

    /// Reads a number, `name` or `reserved:name`.
    fn from_str(text: &str) -> Result<Self, ParseIdentityError> {
        let name = text.strip_prefix("reserved:").unwrap_or(text);
        if let Some((id, _)) = RESERVED.iter().find(|(_, reserved)| *reserved == name) {
            return Ok(*id);
        }
        text.parse().map(Self).map_err(|_not_a_number| ParseIdentityError { text: text.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reserved_numbers_are_those_of_the_datapath() {
        for (id, name) in IdentityId::reserved() {
            assert_eq!(abi::identity::reserved_name(id.0), Some(name));
        }
        assert_eq!(IdentityId::CLUSTER_MIN.0, abi::identity::CLUSTER_MIN);
        assert_eq!(IdentityId::CLUSTER_MAX.0, abi::identity::CLUSTER_MAX);
        assert_eq!(IdentityId(abi::identity::SCOPE_LOCAL | 1).scope(), Scope::Local);
        assert_eq!(IdentityId(abi::identity::SCOPE_REMOTE_NODE | 1).scope(), Scope::RemoteNode);
    }

    #[test]
    fn identities_are_read() {
        assert_eq!("host".parse(), Ok(IdentityId::HOST));
        assert_eq!("reserved:world-ipv6".parse(), Ok(IdentityId::WORLD_IPV6));
        assert_eq!("12345".parse(), Ok(IdentityId(12345)));
        assert!("hosts".parse::<IdentityId>().is_err());
    }
}
