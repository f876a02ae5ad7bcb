//! What leaves the node: egress of its network devices. Here it is counted and seen, no more.

use abi::event::{EVENT_F_VXLAN, HookId, ObservationPoint};
use abi::metrics::Direction;
use abi::{DropReason, identity, mark};

use super::{Carries, Hook, Verdict, carries};
use crate::family::{V4, V6};
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
            Ok(Carries::V4) => seen.family::<V4>(),
            Ok(Carries::V6) => seen.family::<V6>(),
            Ok(Carries::Arp | Carries::Other) | Err(_) => {
                return Ok(Verdict::Pass);
            }
        }
        if packet.mark() & mark::MASK == mark::OVERLAY {
            seen.flags |= EVENT_F_VXLAN;
        }
        // What bears no mark is the host's own.
        seen.source_identity = from_mark(packet.mark()).unwrap_or(identity::HOST);
        let ifindex = packet.ifindex();
        seen.leaves(ObservationPoint::ToNetwork, ifindex);
        Ok(Verdict::Pass)
    }
}
