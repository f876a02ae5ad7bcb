//! What the host sends to pods: egress of `cilium_host`, where the routes to all pods lead.

use abi::endpoint::ENDPOINT_F_HOST;
use abi::event::{HookId, ObservationPoint};
use abi::metrics::Direction;
use abi::{DropReason, identity, mark};

use super::{Carries, Hook, Verdict, carries};
use crate::admit::{End, check};
use crate::family::{Family, V4, V6, address_key};
use crate::forward;
use crate::identity::from_mark;
use crate::maps::Maps;
use crate::observe::{self, Seen};
use crate::packet::Packet;

/// `cil_from_host`.
#[derive(Clone, Copy, Debug)]
pub struct FromHost;

impl Hook for FromHost {
    const ID: HookId = HookId::FromHost;
    const DIRECTION: Direction = Direction::Egress;
    const BEFORE_STACK: bool = false;

    fn run<P: Packet, M: Maps>(
        packet: &mut P,
        maps: &M,
        seen: &mut Seen,
    ) -> Result<Verdict, DropReason> {
        match carries(packet, maps)? {
            Carries::V4 => send::<V4, P, M>(packet, maps, seen),
            Carries::V6 => send::<V6, P, M>(packet, maps, seen),
            // Questions of the host's stack that only its own other end hears.
            Carries::Arp | Carries::Other => Ok(Verdict::Pass),
        }
    }
}

fn send<F: Family, P: Packet, M: Maps>(
    packet: &mut P,
    maps: &M,
    seen: &mut Seen,
) -> Result<Verdict, DropReason> {
    seen.family::<F>();
    let header = F::parse(packet)?;
    if F::is_link_scoped(header.target) {
        return Ok(Verdict::Pass);
    }
    seen.source_identity = from_mark(packet.mark()).unwrap_or(identity::HOST);
    observe::came_in(packet, maps, seen, ObservationPoint::FromHost);

    let key = address_key::<F>(header.target);
    if let Some(endpoint) = maps.endpoint(&key) {
        if endpoint.flags & ENDPOINT_F_HOST != 0 {
            return Ok(Verdict::Pass);
        }
        // `to_container` counts and traces the delivery.
        packet.set_mark(mark::with_identity(mark::IDENTITY, seen.source_identity));
        return forward::to_endpoint_device(packet, maps, seen, endpoint);
    }
    let remote = forward::whois::<F, M>(maps, &key).ok_or(DropReason::Unroutable)?;
    seen.target_identity = remote.sec_identity;
    // Without a tunnel the route that led here is wrong: pods of other nodes are routed by nodes'
    // addresses.
    let node = forward::node_of(remote).filter(|_| forward::has_tunnel(maps));
    let node = node.ok_or(DropReason::Unroutable)?;
    if maps.config().enable_host_firewall != 0 && seen.source_identity == identity::HOST {
        let (source, target) = (End::host(maps), End::elsewhere(remote.sec_identity));
        seen.endpoint = source.endpoint as u16;
        check::<F, P, M>(packet, maps, seen, &header, source, target)?;
    }
    forward::to_tunnel(packet, maps, seen, &node)
}
