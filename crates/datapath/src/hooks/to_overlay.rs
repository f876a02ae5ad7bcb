//! What goes into the tunnel: egress of the tunnel device. The mark goes on with the packet around
//! it and tells `to_netdev` who sends.

use abi::event::HookId;
use abi::metrics::Direction;
use abi::{DropReason, identity, mark};

use super::{Hook, Verdict};
use crate::identity::from_mark;
use crate::maps::Maps;
use crate::observe::Seen;
use crate::packet::Packet;

/// `cil_to_overlay`.
#[derive(Clone, Copy, Debug)]
pub struct ToOverlay;

impl Hook for ToOverlay {
    const ID: HookId = HookId::ToOverlay;
    const DIRECTION: Direction = Direction::Egress;
    const BEFORE_STACK: bool = false;

    fn run<P: Packet, M: Maps>(
        packet: &mut P,
        _maps: &M,
        seen: &mut Seen,
    ) -> Result<Verdict, DropReason> {
        seen.source_identity = from_mark(packet.mark()).unwrap_or(identity::HOST);
        packet.set_mark(mark::with_identity(mark::OVERLAY, seen.source_identity));
        Ok(Verdict::Pass)
    }
}
