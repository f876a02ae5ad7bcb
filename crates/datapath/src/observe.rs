//! What others learn of a packet: counters, and events when somebody listens.

use abi::DropReason;
use abi::config::{AGGREGATION_LOWEST, AGGREGATION_MEDIUM};
use abi::conntrack::VERDICT_AUDITED;
use abi::drop_reason::{REASON_FORWARDED, REASON_INTERFACE};
use abi::event::{
    CAPTURE_LEN_MAX, CaptureHeader, DebugMessage, DropNotify, EVENT_F_IPV6, EventType, HookId,
    ObservationPoint, PolicyVerdictNotify, TRACE_REASON_UNKNOWN, TraceNotify, VERDICT_F_AUDITED,
    VERDICT_F_IPV6, VERDICT_MATCH_SHIFT,
};
use abi::metrics::{self, Direction};
use abi::policy::{POLICY_INGRESS, PolicyEntry};

use crate::family::{Family, V6};
use crate::maps::Maps;
use crate::packet::Packet;
use crate::policy::{Answer, Question};

/// What is known so far of the packet in hand; hooks fill it in on the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Identity of the source.
    pub source_identity: u32,
    /// Identity of the target.
    pub target_identity: u32,
    /// The local endpoint that the hook acts for, 0 for none.
    pub endpoint: u16,
    /// The local endpoint that the packet is for, 0 for none.
    pub target_endpoint: u16,
    /// `EVENT_F_*`.
    pub flags: u8,
    /// Where it leaves, as an [`ObservationPoint`]; [`Self::SILENT`] when nobody need know: it is
    /// none of ours, or another hook sees it next, or it is our own answer.
    pub point: u8,
    /// 1 when it was refused by the policy of its target.
    pub is_at_target: u8,
    /// 1 when it tells nothing new of its flow, and need not be traced where traces are aggregated.
    pub is_old: u8,
    /// `TRACE_REASON_*`.
    pub reason: u8,
    /// Unused, zero.
    pub pad: [u8; 3],
    /// The device it leaves by, 0 where the kernel chooses.
    pub ifindex: u32,
}

impl Seen {
    /// Value of [`Seen::point`]: neither counted nor traced.
    pub const SILENT: u8 = u8::MAX;

    /// Nothing is known yet.
    pub const NOTHING: Self = Self {
        source_identity: 0,
        target_identity: 0,
        endpoint: 0,
        target_endpoint: 0,
        flags: 0,
        point: Self::SILENT,
        is_at_target: 0,
        is_old: 0,
        reason: TRACE_REASON_UNKNOWN,
        pad: [0; 3],
        ifindex: 0,
    };

    /// The packet is of family `F`.
    pub fn family<F: Family>(&mut self) {
        self.flags |= if F::NUMBER == V6::NUMBER { EVENT_F_IPV6 } else { 0 };
    }

    /// The packet leaves at `point`, by the device `ifindex`.
    pub fn leaves(&mut self, point: ObservationPoint, ifindex: u32) {
        self.point = point as u8;
        self.ifindex = ifindex;
    }
}

/// Notes that a packet was seen on its way in at `point`.
pub fn came_in<P: Packet, M: Maps>(packet: &P, maps: &M, seen: &Seen, point: ObservationPoint) {
    if point as u8 != ObservationPoint::FromEndpoint as u8 {
        let slot = metrics::index(REASON_INTERFACE, Direction::Ingress);
        maps.count(slot, u64::from(packet.length()));
    }
    if maps.config().monitor_aggregation < AGGREGATION_LOWEST {
        trace(packet, maps, seen, point as u8, 0);
    }
}

/// Notes that a packet leaves, as `seen` says.
pub fn left<P: Packet, M: Maps>(packet: &P, maps: &M, seen: &Seen) {
    if seen.point == Seen::SILENT {
        return;
    }
    let is_delivered = seen.point == ObservationPoint::ToEndpoint as u8;
    let direction = if is_delivered { Direction::Ingress } else { Direction::Egress };
    maps.count(metrics::index(REASON_FORWARDED, direction), u64::from(packet.length()));
    if maps.config().monitor_aggregation < AGGREGATION_MEDIUM || seen.is_old == 0 {
        trace(packet, maps, seen, seen.point, seen.ifindex);
    }
}

/// Notes that a packet was dropped: the one place that does.
pub fn dropped<P: Packet, M: Maps>(
    packet: &P,
    maps: &M,
    seen: &Seen,
    hook: HookId,
    direction: Direction,
    reason: DropReason,
) {
    // What the target's policy refuses is the target's drop, wherever its policy was asked.
    let (direction, endpoint) = if seen.is_at_target != 0 {
        (Direction::Ingress, seen.target_endpoint)
    } else {
        (direction, seen.endpoint)
    };
    maps.count(metrics::index(reason.number(), direction), u64::from(packet.length()));
    if maps.config().drop_events == 0 || !is_wanted(maps, EventType::Drop) {
        return;
    }
    let len = capture_len(packet, maps);
    packet.send_drop(len, || DropNotify {
        header: capture(packet, len, EventType::Drop, reason.number(), endpoint, 3),
        src_label: seen.source_identity,
        dst_label: seen.target_identity,
        dst_id: match direction {
            Direction::Ingress => u32::from(seen.target_endpoint),
            Direction::Egress => 0,
        },
        file: hook as u8,
        ifindex: packet.ifindex(),
        flags: seen.flags,
        ..DropNotify::default()
    });
}

/// Tells what the policy of `endpoint` said; `verdict` is what the flow remembers of it, `refusal`
/// why the packet is dropped, if it is.
#[expect(clippy::too_many_arguments, reason = "each is a part of one sentence, said in one place")]
pub fn verdict<P: Packet, M: Maps>(
    packet: &P,
    maps: &M,
    seen: &Seen,
    endpoint: u16,
    question: &Question,
    answer: &Answer,
    verdict: u8,
    refusal: Option<DropReason>,
) {
    if maps.config().policy_verdict_events == 0 || !is_wanted(maps, EventType::PolicyVerdict) {
        return;
    }
    let is_ingress = question.direction == POLICY_INGRESS;
    let direction = if is_ingress { Direction::Ingress } else { Direction::Egress };
    let family = if seen.flags & EVENT_F_IPV6 != 0 { VERDICT_F_IPV6 } else { 0 };
    let audited = if verdict == VERDICT_AUDITED { VERDICT_F_AUDITED } else { 0 };
    let entry = if answer.is_found { answer.entry } else { PolicyEntry::default() };
    let len = capture_len(packet, maps);
    packet.send_verdict(len, || PolicyVerdictNotify {
        header: capture(packet, len, EventType::PolicyVerdict, 0, endpoint, 1),
        remote_label: question.peer,
        verdict: refusal.map_or(0, |reason| -i32::from(reason.number())),
        dst_port: u16::from_be_bytes(question.port),
        proto: question.protocol,
        flags: direction as u8 | family | (answer.matched() as u8) << VERDICT_MATCH_SHIFT | audited,
        auth_type: entry.auth,
        cookie: entry.cookie,
        ..PolicyVerdictNotify::default()
    });
}

/// Sends a debug message about `endpoint`.
pub fn debug<P: Packet, M: Maps>(packet: &P, maps: &M, seen: &Seen, subtype: u8, args: [u32; 2]) {
    if maps.config().debug_events == 0 || !is_wanted(maps, EventType::Debug) {
        return;
    }
    packet.send_debug(&DebugMessage {
        event_type: EventType::Debug as u8,
        subtype,
        source: seen.endpoint,
        hash: packet.flow_hash(),
        arg1: args[0],
        arg2: args[1],
        arg3: 0,
    });
}

/// Whether somebody listens to traces, so that it pays to find out what a trace should say.
pub fn is_traced<M: Maps>(maps: &M) -> bool {
    maps.config().trace_events != 0 && is_wanted(maps, EventType::Trace)
}

fn trace<P: Packet, M: Maps>(packet: &P, maps: &M, seen: &Seen, point: u8, ifindex: u32) {
    if !is_traced(maps) {
        return;
    }
    // As in Cilium, an event at an endpoint is that endpoint's.
    let is_delivered = point == ObservationPoint::ToEndpoint as u8;
    let source = if is_delivered { seen.target_endpoint } else { seen.endpoint };
    let len = capture_len(packet, maps);
    packet.send_trace(len, || TraceNotify {
        header: capture(packet, len, EventType::Trace, point, source, 2),
        src_label: seen.source_identity,
        dst_label: seen.target_identity,
        dst_id: seen.target_endpoint,
        reason: seen.reason,
        flags: seen.flags,
        ifindex,
        ..TraceNotify::default()
    });
}

fn is_wanted<M: Maps>(maps: &M, event: EventType) -> bool {
    maps.listeners() & event.listener_bit() != 0
}

/// Bytes of the packet that an event carries.
fn capture_len<P: Packet, M: Maps>(packet: &P, maps: &M) -> u16 {
    let configured = maps.config().trace_payload_len.min(CAPTURE_LEN_MAX as u32);
    packet.length().min(configured) as u16
}

fn capture<P: Packet>(
    packet: &P,
    len_cap: u16,
    event: EventType,
    subtype: u8,
    source: u16,
    version: u8,
) -> CaptureHeader {
    CaptureHeader {
        event_type: event as u8,
        subtype,
        source,
        hash: packet.flow_hash(),
        len_orig: packet.length(),
        len_cap,
        version,
        ext_version: 0,
    }
}
