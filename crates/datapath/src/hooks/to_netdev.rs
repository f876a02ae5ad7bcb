//! What leaves the node: egress of its network devices. Here it is counted and seen, no more.

use abi::event::{HookId, ObservationPoint};
use abi::metrics::Direction;
use abi::{DropReason, identity};

use super::{Carries, Hook, Verdict, carries};
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
            Ok(found @ (Carries::V4 | Carries::V6)) => {
                seen.is_ipv6 = u8::from(found == Carries::V6);
            }
            Ok(Carries::Arp | Carries::Other) | Err(_) => {
                return Ok(Verdict::Pass);
            }
        }
        // What bears no mark is the host's own.
        seen.source_identity = from_mark(packet.mark()).unwrap_or(identity::HOST);
        let ifindex = packet.ifindex();
        seen.leaves(ObservationPoint::ToNetwork, ifindex);
        Ok(Verdict::Pass)
    }
}
