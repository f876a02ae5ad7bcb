//! What comes from the network: ingress of the node's devices.
//!
//! Most of it is for the node, encapsulated packets included, and goes up the stack after one
//! lookup. What is for a pod is delivered from here.

use abi::DropReason;
use abi::endpoint::ENDPOINT_F_HOST;
use abi::event::{EVENT_F_VXLAN, HookId, ObservationPoint};
use abi::metrics::Direction;

use super::{Carries, Hook, Verdict, carries};
use crate::admit::{End, check};
use crate::family::{Family, V4, V6, address_key};
use crate::forward::{self, identity_of};
use crate::maps::Maps;
use crate::observe::{self, Seen};
use crate::packet::Packet;

/// `cil_from_netdev`.
#[derive(Clone, Copy, Debug)]
pub struct FromNetdev;

impl Hook for FromNetdev {
    const ID: HookId = HookId::FromNetdev;
    const DIRECTION: Direction = Direction::Ingress;
    const BEFORE_STACK: bool = true;

    fn run<P: Packet, M: Maps>(
        packet: &mut P,
        maps: &M,
        seen: &mut Seen,
    ) -> Result<Verdict, DropReason> {
        match carries(packet, maps) {
            Ok(Carries::V4) => receive::<V4, P, M>(packet, maps, seen),
            Ok(Carries::V6) => receive::<V6, P, M>(packet, maps, seen),
            // Bridges, LLDP, ARP: the network's own business.
            Ok(Carries::Arp | Carries::Other) | Err(_) => Ok(Verdict::Pass),
        }
    }
}

fn receive<F: Family, P: Packet, M: Maps>(
    packet: &mut P,
    maps: &M,
    seen: &mut Seen,
) -> Result<Verdict, DropReason> {
    seen.family::<F>();
    let header = F::parse(packet)?;
    let endpoint = maps.endpoint(&address_key::<F>(header.target));
    let is_host = endpoint.is_some_and(|endpoint| endpoint.flags & ENDPOINT_F_HOST != 0);
    // Without the host firewall, what is for the node is the stack's.
    let endpoint = endpoint.filter(|_| !is_host || maps.config().enable_host_firewall != 0);
    if endpoint.is_some() || observe::is_traced(maps) {
        seen.source_identity = identity_of::<F, M>(maps, &address_key::<F>(header.source));
    }
    if observe::is_traced(maps) && forward::is_for_tunnel(packet, maps, &header) == Ok(true) {
        seen.flags |= EVENT_F_VXLAN;
    }
    observe::came_in(packet, maps, seen, ObservationPoint::FromNetwork);
    let Some(endpoint) = endpoint else { return Ok(Verdict::Pass) };
    let target = if is_host { End::host(maps) } else { End::of_endpoint(maps, endpoint) };
    let source = End::elsewhere(seen.source_identity);
    seen.target_identity = target.identity;
    seen.target_endpoint = endpoint.lxc_id;
    check::<F, P, M>(packet, maps, seen, &header, source, target)?;
    if is_host {
        return Ok(Verdict::Pass);
    }
    forward::to_endpoint(packet, maps, seen, &header, endpoint)
}
