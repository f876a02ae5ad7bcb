//! What the stack or the host delivers to a pod: egress of its device on the node's side.
//!
//! Here the pod's policy is asked, and the host's for what the host sends. Packets of other pods do
//! not come by here, see [`crate::forward::to_endpoint`].

use abi::event::{HookId, ObservationPoint};
use abi::metrics::Direction;
use abi::{DropReason, identity};

use super::{Carries, Hook, Verdict, carries};
use crate::admit::{End, check};
use crate::family::{Family, V4, V6, address_key};
use crate::forward::identity_of;
use crate::identity::from_mark;
use crate::maps::Maps;
use crate::observe::Seen;
use crate::packet::Packet;

/// `cil_to_container`.
#[derive(Clone, Copy, Debug)]
pub struct ToContainer;

impl Hook for ToContainer {
    const ID: HookId = HookId::ToContainer;
    const DIRECTION: Direction = Direction::Ingress;
    const BEFORE_STACK: bool = false;

    fn run<P: Packet, M: Maps>(
        packet: &mut P,
        maps: &M,
        seen: &mut Seen,
    ) -> Result<Verdict, DropReason> {
        match carries(packet, maps)? {
            Carries::V4 => deliver::<V4, P, M>(packet, maps, seen),
            Carries::V6 => deliver::<V6, P, M>(packet, maps, seen),
            // The stack's own questions to the pod.
            Carries::Arp => Ok(Verdict::Pass),
            Carries::Other => Err(DropReason::UnknownL3),
        }
    }
}

fn deliver<F: Family, P: Packet, M: Maps>(
    packet: &mut P,
    maps: &M,
    seen: &mut Seen,
) -> Result<Verdict, DropReason> {
    seen.family::<F>();
    let header = F::parse(packet)?;
    let device = maps.device(packet.ifindex()).ok_or(DropReason::UnknownTarget)?;
    seen.target_identity = device.sec_id;
    seen.target_endpoint = device.lxc_id;
    seen.source_identity = match from_mark(packet.mark()) {
        Some(identity) => identity,
        None => identity_of::<F, M>(maps, &address_key::<F>(header.source)),
    };
    let ifindex = packet.ifindex();
    seen.leaves(ObservationPoint::ToEndpoint, ifindex);
    // What the stack says to the link, as looking for the pod's MAC address.
    if F::is_link_scoped(header.target) {
        return Ok(Verdict::Pass);
    }
    let source = if seen.source_identity == identity::HOST {
        End::host(maps)
    } else {
        End::elsewhere(seen.source_identity)
    };
    let target = End::of_device(maps, device);
    check::<F, P, M>(packet, maps, seen, &header, source, target)?;
    Ok(Verdict::Pass)
}
