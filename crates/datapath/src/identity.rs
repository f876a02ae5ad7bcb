//! How an identity travels: in the VNI between nodes, in the mark within one.

use abi::{DatapathConfig, DropReason, identity, mark};

use crate::family::Family;

/// The VNI that carries `source` to another node.
///
/// The own host is another node's remote node. The two worlds of a dual-stack cluster and what only
/// this node can tell from the world (identities of CIDRs) are one world on the wire: 24 bits hold
/// no scope.
pub const fn to_vni(source: u32) -> u32 {
    match source {
        identity::HOST => identity::REMOTE_NODE,
        identity::WORLD_IPV4 | identity::WORLD_IPV6 => identity::WORLD,
        other => match other & identity::SCOPE_MASK {
            0 => other,
            identity::SCOPE_REMOTE_NODE => identity::REMOTE_NODE,
            _ => identity::WORLD,
        },
    }
}

/// The identity that came in the VNI of a packet of family `F`.
pub fn from_vni<F: Family>(vni: u32, config: &DatapathConfig) -> Result<u32, DropReason> {
    match vni {
        // Nobody else is this host.
        identity::HOST => Err(DropReason::InvalidIdentity),
        identity::WORLD => Ok(world::<F>(config)),
        other => Ok(other),
    }
}

/// The identity of everybody who is not in the ipcache.
pub fn world<F: Family>(config: &DatapathConfig) -> u32 {
    if config.enable_ipv4 != 0 && config.enable_ipv6 != 0 { F::WORLD } else { identity::WORLD }
}

/// The source identity that `packet_mark` carries, if it carries one.
pub const fn from_mark(packet_mark: u32) -> Option<u32> {
    match packet_mark & mark::MASK {
        mark::HOST => Some(identity::HOST),
        mark::IDENTITY | mark::OVERLAY => Some(mark::identity(packet_mark)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{V4, V6};

    #[test]
    fn a_vni_says_host_and_world_in_the_other_nodes_words() {
        let dual = DatapathConfig { enable_ipv4: 1, enable_ipv6: 1, ..Default::default() };
        let single = DatapathConfig { enable_ipv4: 1, ..Default::default() };
        let check = |source, vni, dual_v4, dual_v6, single_v4| {
            assert_eq!(to_vni(source), vni, "{source}");
            assert_eq!(from_vni::<V4>(vni, &dual), Ok(dual_v4), "{source}");
            assert_eq!(from_vni::<V6>(vni, &dual), Ok(dual_v6), "{source}");
            assert_eq!(from_vni::<V4>(vni, &single), Ok(single_v4), "{source}");
        };
        check(12_345, 12_345, 12_345, 12_345, 12_345);
        check(identity::HOST, 6, 6, 6, 6);
        check(identity::WORLD, 2, 9, 10, 2);
        check(identity::WORLD_IPV4, 2, 9, 10, 2);
        check(identity::SCOPE_LOCAL | 7, 2, 9, 10, 2);
        check(identity::SCOPE_REMOTE_NODE | 7, 6, 6, 6, 6);
        assert_eq!(from_vni::<V4>(1, &dual), Err(DropReason::InvalidIdentity));
    }
}
