//! Connection tracking: what a flow remembers and how a packet changes it.
//!
//! ```text
//!                    first packet, allowed                proven by the initiator
//!   (nothing) ───────────────────────────► unassured ─────────────────────────────► assured
//!                                            LRU   ◄───────────────────────────────   hash
//!                                                      closed by both ends
//! ```
//!
//! Which hook updates an entry: `from_container` what a pod sends; `from_overlay`, `from_netdev` and
//! `to_container` what a pod gets from elsewhere. A packet from pod to pod of one node meets
//! `from_container` only, so nothing is counted twice. With the host firewall, the same hooks and
//! `from_host` and `to_netdev` update the host's flows, each a way on which no other does.

use abi::DatapathConfig;
use abi::address::FAMILY_V4;
use abi::config::AGGREGATION_MEDIUM;
use abi::conntrack::{
    FLOW_F_ASSURED, FLOW_F_AWAITS, FLOW_F_INITIATOR_CLOSED, FLOW_F_LOWER_BEGAN, FLOW_F_REPLIED,
    FLOW_F_RESPONDER_CLOSED, Flow,
};

use crate::family::{Addr, Family};
use crate::l4::{Kind, L4};
use crate::wire::{icmp, ipv6, tcp};

/// Both ends have closed the flow.
const CLOSED: u8 = FLOW_F_INITIATOR_CLOSED | FLOW_F_RESPONDER_CLOSED;
/// As much as an initiator may have heard before its first acknowledgement is seen: ten segments, the
/// initial window of a responder that sends with its SYN (RFC 6928, RFC 7413). Who guesses is right
/// once in 262,144 times.
const HANDSHAKE_WINDOW: u32 = 1 << 14;

/// The key of a flow of either family: [`abi::conntrack::FlowKeyV6`], and its first sixteen bytes
/// are [`abi::conntrack::FlowKeyV4`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(C)]
pub struct FlowKey {
    /// Port of the lower end, as in the packet.
    pub lower_port: u16,
    /// Port of the upper end.
    pub upper_port: u16,
    /// L4 protocol.
    pub protocol: u8,
    /// [`Family::NUMBER`].
    pub family: u8,
    /// Cluster or scope of the addresses.
    pub zone: u16,
    /// Addresses of the lower and the upper end, one behind the other; zeros behind.
    pub ends: [u32; 8],
}

impl FlowKey {
    /// Sets all but the zone, and says whether the source is the lower end. Of equal ends it is.
    pub fn set<F: Family>(
        &mut self,
        protocol: u8,
        source: (Addr, u16),
        target: (Addr, u16),
    ) -> bool {
        self.protocol = protocol;
        self.family = F::NUMBER;
        let source_is_lower = !is_lower::<F>(target, source);
        let (lower, upper) = if source_is_lower { (source, target) } else { (target, source) };
        (self.lower_port, self.upper_port) = (lower.1, upper.1);
        let (Addr([l0, l1, l2, l3]), Addr([u0, u1, u2, u3])) = (lower.0, upper.0);
        self.ends = if F::NUMBER == FAMILY_V4 {
            [l0, u0, 0, 0, 0, 0, 0, 0]
        } else {
            [l0, l1, l2, l3, u0, u1, u2, u3]
        };
        source_is_lower
    }
}

/// The order of ends: addresses, then ports, as bytes.
fn is_lower<F: Family>((a, a_port): (Addr, u16), (b, b_port): (Addr, u16)) -> bool {
    let words = if F::NUMBER == FAMILY_V4 { 1 } else { 4 };
    for (a, b) in a.0.iter().zip(&b.0).take(words) {
        if a != b {
            return u32::from_be(*a) < u32::from_be(*b);
        }
    }
    u16::from_be(a_port) < u16::from_be(b_port)
}

/// What a packet met, a set of bits.
pub type Met = u32;
/// There is such a flow, and it lives.
pub const MET_FLOW: Met = 1;
/// The packet is the responder's.
pub const MET_REPLY: Met = 2;
/// What the flow remembers of policies does not hold: decide again.
pub const MET_UNDECIDED: Met = 4;
/// The flow is proven now and moves to the assured map.
pub const MET_PROVEN: Met = 8;
/// The flow is closed now and moves to the unassured map.
pub const MET_CLOSED: Met = 16;
/// There is a flow of the same key that the packet cannot belong to, and must not change.
pub const MET_COLLISION: Met = 32;
/// The packet is one that is told even where events are aggregated.
pub const MET_NEWS: Met = 64;
/// What was met, alive or not, lies in the assured map.
pub const MET_ASSURED: Met = 128;

/// Whose packet it is: nothing if it is nobody's that is in `flow`.
pub fn side(flow: &Flow, l4: &L4, now: u32) -> Met {
    let met = if flow.state & FLOW_F_ASSURED != 0 { MET_ASSURED } else { 0 };
    let is_reply = (flow.state & FLOW_F_LOWER_BEGAN != 0) != l4.source_is_lower;
    let is_over = flow.expires < now;
    // A SYN after a FIN or an RST begins anew, whichever side sends it.
    let is_reborn = l4.opens && l4.protocol == tcp::PROTOCOL && flow.state & CLOSED != 0;
    if is_over || is_reborn {
        return met;
    }
    if l4.kind == Kind::Flow && ((l4.opens && is_reply) || (l4.answers && !is_reply)) {
        return met | MET_COLLISION;
    }
    met | MET_FLOW | if is_reply { MET_REPLY } else { 0 }
}

/// A flow that begins with this packet.
pub fn begin(flow: &mut Flow, l4: &L4, now: u32, config: &DatapathConfig) {
    flow.state = if l4.source_is_lower { FLOW_F_LOWER_BEGAN } else { 0 };
    flow.created = now;
    flow.reported = [0; 2];
    flow.tcp_flags = [0; 2];
    flow.awaited = 0;
    flow.expires = 0;
    flow.pad = [0; 9];
    update(flow, l4, &mut 0, now, config);
}

/// Counts a packet that passes, and adds what that changes to `met`.
pub fn update(flow: &mut Flow, l4: &L4, met: &mut Met, now: u32, config: &DatapathConfig) {
    let is_reply = *met & MET_REPLY != 0;
    let side = usize::from(is_reply);
    let news = l4.tcp_flags & !flow.tcp_flags[side];
    if config.monitor_aggregation >= AGGREGATION_MEDIUM {
        let is_due = flow.reported[side] + config.aggregation_ticks <= now;
        if is_due || news & config.aggregation_flags != 0 {
            flow.reported[side] = now;
            *met |= MET_NEWS;
        }
    }
    // An error is not the flow's own packet.
    if l4.kind == Kind::Related {
        return;
    }
    if is_reply && flow.state & FLOW_F_REPLIED == 0 {
        flow.state |= FLOW_F_REPLIED;
    }
    if l4.protocol == tcp::PROTOCOL {
        update_tcp(flow, l4, met, now, config);
    } else {
        if !is_reply && flow.state & (FLOW_F_ASSURED | FLOW_F_REPLIED) == FLOW_F_REPLIED {
            prove_unless_icmp(l4, met);
        }
        prolong(flow, now + config.ct_any_ticks);
    }
}

fn update_tcp(flow: &mut Flow, l4: &L4, met: &mut Met, now: u32, config: &DatapathConfig) {
    let is_reply = *met & MET_REPLY != 0;
    let news = l4.tcp_flags & !flow.tcp_flags[usize::from(is_reply)];
    if news != 0 {
        flow.tcp_flags[usize::from(is_reply)] |= news;
    }
    // Only a flow's beginning and its end change its state.
    let is_end = l4.tcp_flags & (tcp::FIN | tcp::RST) != 0;
    if is_end {
        flow.state |= closing(flow, l4, is_reply);
    }
    let is_assured = flow.state & FLOW_F_ASSURED != 0;
    if flow.state & CLOSED == CLOSED {
        // Prolonged by nothing but another end.
        if is_end {
            flow.expires = now + config.ct_closed_ticks;
        }
        if is_assured {
            *met |= MET_CLOSED;
        }
        return;
    }
    if is_assured {
        // A reset may be forged, so it ends nothing yet. If nobody speaks after it, it was real, and a
        // table full of such flows would refuse new ones.
        let is_reset = l4.tcp_flags & tcp::RST != 0;
        let ticks = if is_reset { config.ct_syn_ticks } else { config.ct_tcp_ticks };
        return prolong(flow, now + ticks);
    }
    if is_reply {
        await_acknowledgement(flow, l4);
    } else if is_proof(flow, l4) {
        *met |= MET_PROVEN;
    }
    prolong(flow, now + config.ct_syn_ticks);
}

/// Written once in a tick at most, so that two CPUs need not fight for the memory.
fn prolong(flow: &mut Flow, expires: u32) {
    if flow.expires != expires {
        flow.expires = expires;
    }
}

fn prove_unless_icmp(l4: &L4, met: &mut Met) {
    if !matches!(l4.protocol, icmp::PROTOCOL | ipv6::ICMP6) {
        *met |= MET_PROVEN;
    }
}

/// Makes a copy of a flow the one for the assured map.
pub fn prove(flow: &mut Flow, l4: &L4, now: u32, config: &DatapathConfig) {
    flow.state |= FLOW_F_ASSURED;
    if l4.protocol == tcp::PROTOCOL {
        flow.expires = now + config.ct_tcp_ticks;
    }
}

/// Makes a copy of a flow the one for the unassured map.
pub fn retire(flow: &mut Flow) {
    flow.state &= !FLOW_F_ASSURED;
}

/// Remembers what the initiator must acknowledge: only who hears the responder knows it.
fn await_acknowledgement(flow: &mut Flow, l4: &L4) {
    const ANSWER: u8 = tcp::SYN | tcp::ACK;
    if l4.tcp_flags & (ANSWER | tcp::RST) == ANSWER {
        flow.awaited = l4.sequence.wrapping_add(1);
        flow.state |= FLOW_F_AWAITS;
    }
}

/// Which ends are closed by this segment. A reset before both have synchronised closes both; after
/// that each end speaks for itself, so that a forged reset ends nothing.
fn closing(flow: &Flow, l4: &L4, is_reply: bool) -> u8 {
    if l4.tcp_flags & (tcp::FIN | tcp::RST) == 0 {
        return 0;
    }
    let [initiator, responder] = flow.tcp_flags;
    if l4.tcp_flags & tcp::RST != 0 && initiator & responder & tcp::SYN == 0 {
        return CLOSED;
    }
    if is_reply { FLOW_F_RESPONDER_CLOSED } else { FLOW_F_INITIATOR_CLOSED }
}

/// Whether the initiator's segment proves that it hears the responder.
fn is_proof(flow: &Flow, l4: &L4) -> bool {
    if l4.tcp_flags & (tcp::ACK | tcp::SYN | tcp::RST) != tcp::ACK {
        return false;
    }
    if flow.tcp_flags[0] & tcp::SYN == 0 {
        // Found in the middle.
        return flow.state & FLOW_F_REPLIED != 0;
    }
    flow.state & FLOW_F_AWAITS != 0
        && l4.acknowledgement.wrapping_sub(flow.awaited) < HANDSHAKE_WINDOW
}
