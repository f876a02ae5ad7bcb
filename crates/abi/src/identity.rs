//! Numbers of the reserved identities and how an identity travels in a tunnel.

/// Nothing is known.
pub const UNKNOWN: u32 = 0;
/// The local node.
pub const HOST: u32 = 1;
/// Outside the cluster, in clusters of one family and on the wire.
pub const WORLD: u32 = 2;
/// Pods that are not ours to manage.
pub const UNMANAGED: u32 = 3;
/// Health endpoints.
pub const HEALTH: u32 = 4;
/// Endpoints whose labels are not known yet.
pub const INIT: u32 = 5;
/// Other nodes of the cluster.
pub const REMOTE_NODE: u32 = 6;
/// The API server.
pub const KUBE_APISERVER: u32 = 7;
/// Ingress and Gateway load balancers.
pub const INGRESS: u32 = 8;
/// Outside the cluster over IPv4, in dual-stack clusters.
pub const WORLD_IPV4: u32 = 9;
/// Outside the cluster over IPv6, in dual-stack clusters.
pub const WORLD_IPV6: u32 = 10;

/// First number that is allocated to a set of labels.
pub const CLUSTER_MIN: u32 = 256;
/// Last number that is allocated to a set of labels.
pub const CLUSTER_MAX: u32 = 65_535;
/// Scope of identities that only this node knows: CIDRs.
pub const SCOPE_LOCAL: u32 = 1 << 24;
/// Scope of identities of nodes by their labels.
pub const SCOPE_REMOTE_NODE: u32 = 2 << 24;
/// The bits of an identity that hold its scope.
pub const SCOPE_MASK: u32 = 0xff << 24;

/// The label name (without `reserved:`) of a reserved identity.
pub const fn reserved_name(id: u32) -> Option<&'static str> {
    Some(match id {
        UNKNOWN => "unknown",
        HOST => "host",
        WORLD => "world",
        UNMANAGED => "unmanaged",
        HEALTH => "health",
        INIT => "init",
        REMOTE_NODE => "remote-node",
        KUBE_APISERVER => "kube-apiserver",
        INGRESS => "ingress",
        WORLD_IPV4 => "world-ipv4",
        WORLD_IPV6 => "world-ipv6",
        _ => return None,
    })
}
