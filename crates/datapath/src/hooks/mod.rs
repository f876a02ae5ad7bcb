//! The programs' code, one file per hook, each with one shape: [`Hook::run`] is the packet's path
//! in order, and [`run`] is what is common to all: events, counters, and drops in one place.

mod from_container;
mod from_host;
mod from_netdev;
mod from_overlay;
mod to_container;
mod to_netdev;
mod to_overlay;

use abi::DropReason;
use abi::event::{HookId, ObservationPoint};
use abi::metrics::Direction;
pub use from_container::FromContainer;
pub use from_host::FromHost;
pub use from_netdev::FromNetdev;
pub use from_overlay::FromOverlay;
pub use to_container::ToContainer;
pub use to_netdev::ToNetdev;
pub use to_overlay::ToOverlay;

use crate::family::{Family, V4, V6};
use crate::maps::Maps;
use crate::observe::{self, Seen};
use crate::packet::{NextHop, Packet};
use crate::wire::eth;

/// What the kernel shall do with the packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Goes on where it was going: up the stack at an ingress, out of the device at an egress.
    ToStack,
    /// Out of another device, or back out of the same.
    Redirect {
        /// That device.
        ifindex: u32,
    },
    /// Into the namespace at the other end of a pod's device.
    RedirectPeer {
        /// That device's end in the node.
        ifindex: u32,
    },
    /// Out of another device, to a neighbour whose MAC address the kernel finds.
    RedirectNeighbour {
        /// That device.
        ifindex: u32,
        /// That neighbour.
        next_hop: NextHop,
    },
    /// Dropped, counted, named.
    Drop,
}

/// A way onward that is counted and traced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Forward {
    /// What to do.
    pub verdict: Verdict,
    /// Where the trace event says the packet was seen.
    pub point: ObservationPoint,
    /// The device it leaves by, 0 where the kernel chooses.
    pub ifindex: u32,
}

/// What a hook says of a packet that it does not drop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Forwarded, counted and traced.
    Forwarded(Forward),
    /// Let on its way without a word: it is none of ours, or another hook sees it next, or it is
    /// our own answer.
    Silent(Verdict),
}

/// One hook.
pub trait Hook {
    /// Number of the hook in events.
    const ID: HookId;
    /// Under which direction its drops are counted.
    const DIRECTION: Direction;

    /// The path of a packet through the hook.
    fn run<P: Packet, M: Maps>(
        packet: &mut P,
        maps: &M,
        seen: &mut Seen,
    ) -> Result<Outcome, DropReason>;
}

/// Runs `H` on a packet, counts it and tells who listens.
pub fn run<H: Hook, P: Packet, M: Maps>(packet: &mut P, maps: &M) -> Verdict {
    let mut seen = Seen::default();
    match H::run(packet, maps, &mut seen) {
        Ok(Outcome::Forwarded(Forward { verdict, point, ifindex })) => {
            observe::forwarded(packet, maps, &seen, point, ifindex);
            verdict
        }
        Ok(Outcome::Silent(verdict)) => verdict,
        Err(reason) => {
            observe::dropped(packet, maps, &seen, H::ID, H::DIRECTION, reason);
            Verdict::Drop
        }
    }
}

/// What a frame carries, as far as the hooks tell it apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Carries {
    V4,
    V6,
    Arp,
    Other,
}

/// What the frame carries; a family that is switched off is [`Carries::Other`].
fn carries<M: Maps>(packet: &impl Packet, maps: &M) -> Result<Carries, DropReason> {
    match eth::ethertype(packet).ok_or(DropReason::Invalid)? {
        eth::IPV4 if V4::enabled(maps.config()) => Ok(Carries::V4),
        eth::IPV6 if V6::enabled(maps.config()) => Ok(Carries::V6),
        eth::ARP if V4::enabled(maps.config()) => Ok(Carries::Arp),
        other if u16::from_be_bytes(other) < eth::ETHERTYPE_MIN => Err(DropReason::UnsupportedL2),
        _ => Ok(Carries::Other),
    }
}
