//! What leaves the node: egress of its network devices. Here it is counted and seen, and what the host
//! itself sends meets the host firewall.

use abi::endpoint::ENDPOINT_F_HOST;
use abi::event::{EVENT_F_VXLAN, HookId, ObservationPoint};
use abi::metrics::Direction;
use abi::{DropReason, identity, mark};

use super::{Carries, Hook, Verdict, carries};
use crate::admit::{End, check};
use crate::family::{Family, V4, V6, address_key};
use crate::forward::identity_of;
use crate::identity::from_mark;
use crate::maps::Maps;
use crate::observe::Seen;
use crate::packet::Packet;

/// `cil_to_netdev`.
#[derive(Clone, Copy, Debug)]
pub struct ToNetdev;

impl Hook for ToNetdev {
    const ID: HookId = HookId::ToNetdev;
    const DIRECTION: Direction = Direction::Egress;
    const BEFORE_STACK: bool = false;

    fn run<P: Packet, M: Maps>(
        packet: &mut P,
        maps: &M,
        seen: &mut Seen,
    ) -> Result<Verdict, DropReason> {
        match carries(packet, maps) {
            Ok(Carries::V4) => leave::<V4, P, M>(packet, maps, seen),
            Ok(Carries::V6) => leave::<V6, P, M>(packet, maps, seen),
            Ok(Carries::Arp | Carries::Other) | Err(_) => Ok(Verdict::Pass),
        }
    }
}

fn leave<F: Family, P: Packet, M: Maps>(
    packet: &mut P,
    maps: &M,
    seen: &mut Seen,
) -> Result<Verdict, DropReason> {
    seen.family::<F>();
    if packet.mark() & mark::MASK == mark::OVERLAY {
        seen.flags |= EVENT_F_VXLAN;
    }
    // What bears no mark is the host's own, or forwarded by it.
    seen.source_identity = from_mark(packet.mark()).unwrap_or(identity::HOST);
    let ifindex = packet.ifindex();
    seen.leaves(ObservationPoint::ToNetwork, ifindex);
    if maps.config().enable_host_firewall != 0 && seen.source_identity == identity::HOST {
        check_host::<F, P, M>(packet, maps, seen)?;
    }
    Ok(Verdict::Pass)
}

/// The host firewall, for what has an address of the host.
fn check_host<F: Family, P: Packet, M: Maps>(
    packet: &P,
    maps: &M,
    seen: &mut Seen,
) -> Result<(), DropReason> {
    let header = F::parse(packet)?;
    let sender = maps.endpoint(&address_key::<F>(header.source));
    let is_own = sender.is_some_and(|sender| sender.flags & ENDPOINT_F_HOST != 0);
    if !is_own || F::is_link_scoped(header.target) {
        return Ok(());
    }
    let source = End::host(maps);
    seen.endpoint = source.endpoint as u16;
    seen.target_identity = identity_of::<F, M>(maps, &address_key::<F>(header.target));
    let target = End::elsewhere(seen.target_identity);
    check::<F, P, M>(packet, maps, seen, &header, source, target)
}
