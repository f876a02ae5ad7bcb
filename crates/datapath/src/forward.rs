//! Where a packet goes once it is known where it goes: each function edits the packet for one way
//! and names the way. Nothing is decided here but the way itself.

use abi::config::TUNNEL_OFF;
use abi::endpoint::EndpointInfo;
use abi::event::{DEBUG_ENCAP, DEBUG_LOCAL_DELIVERY, ObservationPoint};
use abi::ipcache::{
    IPCACHE_F_HAS_TUNNEL_ENDPOINT, IPCACHE_F_IPV6_TUNNEL_ENDPOINT, IPCACHE_F_SKIP_TUNNEL,
    RemoteEndpointInfo,
};
use abi::{AddressKey, DropReason, mark};

use crate::family::{Addr, Family, IpHeader, Part, Transport, ipcache_key};
use crate::hooks::Verdict;
use crate::identity::{to_vni, world};
use crate::maps::Maps;
use crate::observe::{self, Seen};
use crate::packet::{AF_INET, AF_INET6, NetworkAddress, Packet, Route, RouteQuery};
use crate::wire::{eth, udp};

/// To a local pod, straight into its namespace. For hooks at an ingress.
pub fn to_endpoint<F: Family, P: Packet, M: Maps>(
    packet: &mut P,
    maps: &M,
    seen: &mut Seen,
    header: &IpHeader<F>,
    endpoint: &EndpointInfo,
) -> Result<Verdict, DropReason> {
    header.forward(packet)?;
    address_to(packet, maps, seen, endpoint)?;
    seen.leaves(ObservationPoint::ToEndpoint, endpoint.ifindex);
    Ok(packet.redirect_peer(endpoint.ifindex))
}

/// To a local pod by the egress of its device, where `to_container` takes over: for hooks at an
/// egress, which cannot enter another namespace. The stack has counted the hop, if there was one.
pub fn to_endpoint_device<P: Packet, M: Maps>(
    packet: &mut P,
    maps: &M,
    seen: &mut Seen,
    endpoint: &EndpointInfo,
) -> Result<Verdict, DropReason> {
    address_to(packet, maps, seen, endpoint)?;
    Ok(packet.redirect(endpoint.ifindex))
}

fn address_to<P: Packet, M: Maps>(
    packet: &mut P,
    maps: &M,
    seen: &mut Seen,
    endpoint: &EndpointInfo,
) -> Result<(), DropReason> {
    seen.target_identity = endpoint.sec_id;
    seen.target_endpoint = endpoint.lxc_id;
    let args = [u32::from(endpoint.lxc_id), seen.source_identity];
    observe::debug(packet, maps, seen, DEBUG_LOCAL_DELIVERY, args);
    eth::set_addresses(packet, endpoint.mac, endpoint.node_mac).ok_or(DropReason::WriteError)
}

/// Whether a packet is for the tunnel port of whoever gets it.
pub fn is_for_tunnel<F: Family, P: Packet, M: Maps>(
    packet: &P,
    maps: &M,
    header: &IpHeader<F>,
) -> Result<bool, DropReason> {
    let tunnel_port = u16::from_ne_bytes(maps.config().tunnel_port);
    if tunnel_port == 0 || !F::may_carry_udp(header.protocol()) {
        return Ok(false);
    }
    let mut transport = Transport::UNKNOWN;
    F::transport(packet, eth::LEN, &mut transport)?;
    if transport.protocol != udp::PROTOCOL || transport.part == Part::Later {
        return Ok(false);
    }
    let port = udp::target_port(packet, transport.offset).ok_or(DropReason::Invalid)?;
    Ok(u16::from_ne_bytes(port) == tunnel_port)
}

/// To the host itself, through its stack, which learns who sends from the mark.
pub fn to_host<P: Packet>(packet: &mut P, seen: &mut Seen) -> Verdict {
    seen.target_identity = abi::identity::HOST;
    packet.set_mark(mark::with_identity(mark::IDENTITY, seen.source_identity));
    seen.leaves(ObservationPoint::ToHost, 0);
    Verdict::Pass
}

/// Who is behind the address of `key`, if anybody knows: a hash first, for single addresses, then
/// the trie.
pub fn whois<'m, F: Family, M: Maps>(
    maps: &'m M,
    key: &AddressKey,
) -> Option<&'m RemoteEndpointInfo> {
    match maps.host(key) {
        Some(found) => Some(found),
        None => maps.prefix(&ipcache_key::<F>(key)),
    }
}

/// The identity behind the address of `key`.
pub fn identity_of<F: Family, M: Maps>(maps: &M, key: &AddressKey) -> u32 {
    whois::<F, M>(maps, key).map_or_else(|| world::<F>(maps.config()), |found| found.sec_identity)
}

/// The node that `remote` is behind, when it is told and to be used.
pub fn node_of(remote: &RemoteEndpointInfo) -> Option<NetworkAddress> {
    let relevant = IPCACHE_F_HAS_TUNNEL_ENDPOINT | IPCACHE_F_SKIP_TUNNEL;
    if remote.flags & relevant != IPCACHE_F_HAS_TUNNEL_ENDPOINT {
        return None;
    }
    let Addr(address) = Addr::from_v6(remote.tunnel_endpoint);
    let is_ipv6 = remote.flags & IPCACHE_F_IPV6_TUNNEL_ENDPOINT != 0;
    let address_family = if is_ipv6 { AF_INET6 } else { AF_INET };
    Some(NetworkAddress { address_family, address })
}

/// Whether packets between nodes are encapsulated.
pub fn has_tunnel<M: Maps>(maps: &M) -> bool {
    maps.config().tunnel != TUNNEL_OFF
}

/// To another node, encapsulated, with the source's identity as VNI.
pub fn to_tunnel<P: Packet, M: Maps>(
    packet: &mut P,
    maps: &M,
    seen: &mut Seen,
    node: &NetworkAddress,
) -> Result<Verdict, DropReason> {
    let args = [u32::from_be(node.address[0]), seen.source_identity];
    observe::debug(packet, maps, seen, DEBUG_ENCAP, args);
    // `to_overlay` reads the mark, the other node the VNI.
    packet.set_mark(mark::with_identity(mark::IDENTITY, seen.source_identity));
    packet.set_tunnel(to_vni(seen.source_identity), node).ok_or(DropReason::WriteError)?;
    let ifindex = maps.config().tunnel_ifindex;
    seen.leaves(ObservationPoint::ToOverlay, ifindex);
    Ok(packet.redirect(ifindex))
}

/// To another node on our own link: it is the next hop, so nobody need ask the routing table.
/// `None` when the table must be asked all the same: the node speaks another family, or the packet
/// may be too big, which the stack tells the sender.
pub fn to_neighbour_node<F: Family, P: Packet, M: Maps>(
    packet: &mut P,
    maps: &M,
    seen: &mut Seen,
    header: &IpHeader<F>,
    node: &NetworkAddress,
) -> Result<Option<Verdict>, DropReason> {
    let ifindex = maps.config().direct_ifindex;
    let fits = packet.length() <= maps.config().direct_mtu + eth::LEN as u32;
    if ifindex == 0 || node.address_family != F::ADDRESS_FAMILY || !fits {
        return Ok(None);
    }
    header.forward(packet)?;
    packet.set_mark(mark::with_identity(mark::IDENTITY, seen.source_identity));
    seen.leaves(ObservationPoint::ToStack, ifindex);
    Ok(Some(packet.redirect_neighbour(ifindex, node)))
}

/// Out of the node by its routing table, without the stack where the neighbour can be addressed
/// from here.
pub fn to_network<F: Family, P: Packet>(
    packet: &mut P,
    seen: &mut Seen,
    header: &IpHeader<F>,
) -> Result<Verdict, DropReason> {
    // From the packet again, rather than kept all the way here: stack is scarce.
    let (Addr(source), Addr(target)) = F::addresses(packet, eth::LEN).ok_or(DropReason::Invalid)?;
    let route = packet.route(&RouteQuery {
        address_family: F::ADDRESS_FAMILY,
        traffic_class: header.traffic_class,
        protocol: header.protocol(),
        ifindex: packet.ifindex(),
        source,
        target,
    });
    packet.set_mark(mark::with_identity(mark::IDENTITY, seen.source_identity));
    Ok(match route {
        Route::Neighbour { ifindex, target_mac, source_mac } => {
            header.forward(packet)?;
            eth::set_addresses(packet, target_mac, source_mac).ok_or(DropReason::WriteError)?;
            seen.leaves(ObservationPoint::ToStack, ifindex);
            packet.redirect(ifindex)
        }
        Route::Resolve { ifindex, next_hop } => {
            header.forward(packet)?;
            seen.leaves(ObservationPoint::ToStack, ifindex);
            packet.redirect_neighbour(ifindex, &next_hop)
        }
        // It counts the hop itself, and tells the sender when something is wrong.
        Route::Stack => {
            seen.leaves(ObservationPoint::ToStack, 0);
            Verdict::Pass
        }
        Route::Blackhole => return Err(DropReason::NoFib),
    })
}
