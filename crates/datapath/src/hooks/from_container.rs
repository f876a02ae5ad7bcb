//! What a pod sends: ingress of its device on the node's side.
//!
//! ARP and neighbour solicitations are answered here, the pod's gateway is nowhere else. Then: who
//! sends (one lookup by device), is the source address its own, who is meant, do both ends' policies
//! allow it, and there.

use abi::endpoint::{DeviceEndpoint, ENDPOINT_F_HOST};
use abi::event::{DEBUG_ICMP6_NS, HookId, ObservationPoint};
use abi::metrics::Direction;
use abi::{AddressKey, DropReason};

use super::{Carries, Hook, Verdict, carries};
use crate::admit::{End, admit};
use crate::family::{Family, OnLink, V4, V6, address_key};
use crate::forward;
use crate::identity::world;
use crate::l4::{self, L4};
use crate::maps::{Maps, Scratch, Way, forget};
use crate::observe::{self, Seen};
use crate::packet::Packet;
use crate::wire::{arp, icmp6, udp};

/// `cil_from_container`.
#[derive(Clone, Copy, Debug)]
pub struct FromContainer;

impl Hook for FromContainer {
    const ID: HookId = HookId::FromContainer;
    const DIRECTION: Direction = Direction::Egress;
    const BEFORE_STACK: bool = true;

    fn run<P: Packet, M: Maps>(
        packet: &mut P,
        maps: &M,
        seen: &mut Seen,
    ) -> Result<Verdict, DropReason> {
        let device = maps.device(packet.ifindex()).ok_or(DropReason::UnknownSender)?;
        seen.source_identity = device.sec_id;
        seen.endpoint = device.lxc_id;
        match carries(packet, maps)? {
            Carries::V4 => send::<V4, P, M>(packet, maps, seen, device),
            Carries::V6 => send::<V6, P, M>(packet, maps, seen, device),
            Carries::Arp => answer_arp(packet, device),
            Carries::Other => Err(DropReason::UnknownL3),
        }
    }
}

fn send<F: Family, P: Packet, M: Maps>(
    packet: &mut P,
    maps: &M,
    seen: &mut Seen,
    device: &DeviceEndpoint,
) -> Result<Verdict, DropReason> {
    seen.family::<F>();
    observe::came_in(packet, maps, seen, ObservationPoint::FromEndpoint);
    let header = F::parse(packet)?;
    match F::on_link(packet, &header, device)? {
        OnLink::No => {}
        OnLink::Solicitation(solicitation) => {
            return answer_solicitation(packet, maps, seen, device, &solicitation);
        }
        OnLink::ToStack => return Ok(Verdict::Pass),
    }

    let mut scratch = maps.scratch().ok_or(DropReason::InvalidTcBuffer)?;
    l4::extract::<F, P, M>(packet, maps, &header, &mut scratch)?;
    scratch.source = End::of_device(maps, device);
    find::<F, M>(maps, &address_key::<F>(header.target), &mut scratch);
    seen.target_identity = scratch.target.identity;
    seen.target_endpoint = scratch.endpoint.lxc_id;
    admit::<F, P, M>(packet, maps, seen, &mut scratch)?;

    let scratch = forget(&mut *scratch);
    match scratch.way {
        Way::Endpoint => forward::to_endpoint(packet, maps, seen, &header, &scratch.endpoint),
        Way::Host => {
            refuse_forged_tunnel(maps, &scratch.l4)?;
            Ok(forward::to_host(packet, seen))
        }
        Way::Elsewhere => {
            if let Some(node) = forward::node_of(&scratch.remote) {
                if forward::has_tunnel(maps) {
                    return forward::to_tunnel(packet, maps, seen, &node);
                }
                if let Some(verdict) =
                    forward::to_neighbour_node(packet, maps, seen, &header, &node)?
                {
                    return Ok(verdict);
                }
            }
            refuse_forged_tunnel(maps, &scratch.l4)?;
            forward::to_network(packet, seen, &header)
        }
    }
}

/// Finds out who is meant.
fn find<F: Family, M: Maps>(maps: &M, key: &AddressKey, scratch: &mut Scratch) {
    if let Some(endpoint) = maps.endpoint(key) {
        scratch.endpoint = *endpoint;
        if endpoint.flags & ENDPOINT_F_HOST == 0 {
            scratch.way = Way::Endpoint;
            scratch.target = End::of_endpoint(maps, endpoint);
        } else {
            scratch.way = Way::Host;
            scratch.target = End::host(maps);
        }
        return;
    }
    scratch.way = Way::Elsewhere;
    scratch.endpoint.lxc_id = 0;
    match forward::whois::<F, M>(maps, key) {
        Some(remote) => scratch.remote = *remote,
        None => {
            scratch.remote.sec_identity = world::<F>(maps.config());
            scratch.remote.flags = 0;
        }
    }
    scratch.target = End::elsewhere(scratch.remote.sec_identity);
}

/// A pod that could send to a node's tunnel port would send in anybody's name.
fn refuse_forged_tunnel<M: Maps>(maps: &M, l4: &L4) -> Result<(), DropReason> {
    let tunnel_port = u16::from_ne_bytes(maps.config().tunnel_port);
    let is_udp = l4.own_protocol == udp::PROTOCOL;
    if tunnel_port != 0 && is_udp && l4.has_ports && l4.target_port == tunnel_port {
        return Err(DropReason::EncapProhibited);
    }
    Ok(())
}

/// Everybody but the pod itself is at the gateway's MAC address.
fn answer_arp<P: Packet>(packet: &mut P, device: &DeviceEndpoint) -> Result<Verdict, DropReason> {
    let Some(request) = arp::request(packet) else {
        return Err(DropReason::UnknownL3);
    };
    let own = u32::from_ne_bytes(device.ipv4);
    let sender = u32::from_ne_bytes(request.sender);
    if sender != own && sender != 0 {
        return Err(DropReason::InvalidSip);
    }
    // A probe or an announcement of its own address: nobody else is on its link.
    if u32::from_ne_bytes(request.target) == own {
        return Err(DropReason::MulticastHandled);
    }
    arp::answer(packet, &request, device.node_mac).ok_or(DropReason::WriteError)?;
    Ok(packet.redirect(packet.ifindex()))
}

fn answer_solicitation<P: Packet, M: Maps>(
    packet: &mut P,
    maps: &M,
    seen: &Seen,
    device: &DeviceEndpoint,
    solicitation: &icmp6::Solicitation,
) -> Result<Verdict, DropReason> {
    let last_word = u32::from_be(solicitation.target[3]);
    observe::debug(packet, maps, seen, DEBUG_ICMP6_NS, [last_word, 0]);
    icmp6::advertise(packet, solicitation, device.node_mac).ok_or(DropReason::WriteError)?;
    Ok(packet.redirect(packet.ifindex()))
}
