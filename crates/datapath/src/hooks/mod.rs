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
use abi::event::HookId;
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
use crate::packet::Packet;
use crate::wire::eth;

/// What becomes of a packet. Numbers are the kernel's `TC_ACT_*`.
///
/// It is a plain number, as is all that hooks return: an enum with fields has bytes that mean
/// nothing in some variants, and the verifier refuses code that moves what was never written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Verdict {
    /// Goes on where it was going: up the stack at an ingress, out of the device at an egress.
    Pass = 0,
    /// Dropped, counted, named.
    Drop = 2,
    /// Where one of the `redirect` functions of [`Packet`] said.
    Redirect = 7,
}

/// One hook.
pub trait Hook {
    /// Number of the hook in events.
    const ID: HookId;
    /// Under which direction its drops are counted.
    const DIRECTION: Direction;
    /// Whether what passes goes up the stack: it is the hook of an ingress.
    const BEFORE_STACK: bool;

    /// The path of a packet through the hook.
    fn run<P: Packet, M: Maps>(
        packet: &mut P,
        maps: &M,
        seen: &mut Seen,
    ) -> Result<Verdict, DropReason>;
}

/// Runs `H` on a packet, counts it and tells who listens.
pub fn run<H: Hook, P: Packet, M: Maps>(packet: &mut P, maps: &M) -> Verdict {
    let mut seen = Seen::NOTHING;
    match H::run(packet, maps, &mut seen) {
        Ok(verdict) => {
            observe::left(packet, maps, &seen);
            verdict
        }
        Err(reason) => {
            observe::dropped(packet, maps, &seen, H::ID, H::DIRECTION, reason);
            // The stack drops it as well, and tells the sender, as a router does.
            if reason == DropReason::TtlExceeded && H::BEFORE_STACK {
                packet.accept_as_host();
                return Verdict::Pass;
            }
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
