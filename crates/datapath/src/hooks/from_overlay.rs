//! What comes out of the tunnel: ingress of the tunnel device. The VNI says who sends.

use abi::DropReason;
use abi::endpoint::ENDPOINT_F_HOST;
use abi::event::{DEBUG_DECAP, HookId, ObservationPoint};
use abi::metrics::Direction;

use super::{Carries, Hook, Verdict, carries};
use crate::admit::{End, check};
use crate::family::{Family, V4, V6, address_key};
use crate::forward;
use crate::identity::from_vni;
use crate::maps::Maps;
use crate::observe::{self, Seen};
use crate::packet::Packet;

/// `cil_from_overlay`.
#[derive(Clone, Copy, Debug)]
pub struct FromOverlay;

impl Hook for FromOverlay {
    const ID: HookId = HookId::FromOverlay;
    const DIRECTION: Direction = Direction::Ingress;
    const BEFORE_STACK: bool = true;

    fn run<P: Packet, M: Maps>(
        packet: &mut P,
        maps: &M,
        seen: &mut Seen,
    ) -> Result<Verdict, DropReason> {
        match carries(packet, maps)? {
            Carries::V4 => receive::<V4, P, M>(packet, maps, seen),
            Carries::V6 => receive::<V6, P, M>(packet, maps, seen),
            // Nodes resolve each other on the underlay only.
            Carries::Arp => Ok(Verdict::Pass),
            Carries::Other => Err(DropReason::UnknownL3),
        }
    }
}

fn receive<F: Family, P: Packet, M: Maps>(
    packet: &mut P,
    maps: &M,
    seen: &mut Seen,
) -> Result<Verdict, DropReason> {
    seen.family::<F>();
    let vni = packet.tunnel_id().ok_or(DropReason::NoTunnelKey)?;
    observe::debug(packet, maps, seen, DEBUG_DECAP, [vni, 0]);
    seen.source_identity = from_vni::<F>(vni, maps.config())?;
    observe::came_in(packet, maps, seen, ObservationPoint::FromOverlay);
    let header = F::parse(packet)?;
    // Another node believes that the address is here; if it is not, nobody else would know better.
    let endpoint = maps.endpoint(&address_key::<F>(header.target)).ok_or(DropReason::Unroutable)?;
    let is_host = endpoint.flags & ENDPOINT_F_HOST != 0;
    if is_host && maps.config().enable_host_firewall == 0 {
        packet.accept_as_host();
        return Ok(forward::to_host(packet, seen));
    }
    let target = if is_host { End::host(maps) } else { End::of_endpoint(maps, endpoint) };
    let source = End::elsewhere(seen.source_identity);
    seen.target_identity = target.identity;
    seen.target_endpoint = endpoint.lxc_id;
    check::<F, P, M>(packet, maps, seen, &header, source, target)?;
    if is_host {
        packet.accept_as_host();
        return Ok(forward::to_host(packet, seen));
    }
    forward::to_endpoint(packet, maps, seen, &header, endpoint)
}
