//! May it pass? Connection tracking and the policies of both ends, in one place for all hooks.
//!
//! ```text
//!   the packet's flow ──► lives, and both policies still say what it remembers ──► passes
//!        │ none                     │ no
//!        └────────► egress policy of the initiator, ingress policy of the responder ──► remembered, passes
//!                                   └──► drop
//! ```
//!
//! An end that is not on this node, or that no policy selects, is not asked. A reply is the
//! initiator's flow: it passes as long as the flow would.

use abi::DropReason;
use abi::conntrack::{
    DECIDED_EGRESS, DECIDED_INGRESS, FlowDecision, VERDICT_ALLOWED, VERDICT_AUDITED, VERDICT_NONE,
};
use abi::endpoint::{
    DeviceEndpoint, ENDPOINT_F_AUDIT, ENDPOINT_F_ENFORCE_EGRESS, ENDPOINT_F_ENFORCE_INGRESS,
    ENDPOINT_F_LOCKDOWN, EndpointInfo,
};
use abi::event::{
    TRACE_REASON_ESTABLISHED, TRACE_REASON_NEW, TRACE_REASON_RELATED, TRACE_REASON_REPLY,
};
use abi::identity;
use abi::policy::{POLICY_EGRESS, POLICY_INGRESS};

use crate::family::{Family, IpHeader};
use crate::flow::{
    self, MET_ASSURED, MET_CLOSED, MET_COLLISION, MET_FLOW, MET_NEWS, MET_PROVEN, MET_REPLY,
    MET_UNDECIDED,
};
use crate::l4::{self, Kind, L4};
use crate::maps::{Maps, Scratch, forget};
use crate::observe::{self, Seen};
use crate::packet::Packet;
use crate::policy::ask;

/// One end of a packet, as far as policies know it.
#[derive(Clone, Copy, Debug)]
pub struct End {
    /// Its identity.
    pub identity: u32,
    /// `ENDPOINT_F_*` that concern policy; none of an end that is not on this node.
    pub flags: u32,
    /// Slot of its policy.
    pub slot: u32,
    /// Revision of that policy; 0 where no policy selects the end.
    pub revision: u32,
    /// Endpoint id; 0 of an end that is not on this node.
    pub endpoint: u32,
}

/// The flags that say that a policy is asked.
const ENFORCED: u32 = ENDPOINT_F_ENFORCE_INGRESS | ENDPOINT_F_ENFORCE_EGRESS;

impl End {
    /// Somebody elsewhere.
    pub const fn elsewhere(identity: u32) -> Self {
        Self { identity, flags: 0, slot: 0, revision: 0, endpoint: 0 }
    }

    /// The endpoint behind a device.
    pub fn of_device<M: Maps>(maps: &M, device: &DeviceEndpoint) -> Self {
        Self::here(maps, device.sec_id, device.flags, device.policy_slot, device.lxc_id)
    }

    /// The endpoint with an address.
    pub fn of_endpoint<M: Maps>(maps: &M, endpoint: &EndpointInfo) -> Self {
        Self::here(maps, endpoint.sec_id, endpoint.flags, endpoint.policy_slot, endpoint.lxc_id)
    }

    /// The node itself: with the host firewall, it has a policy like any endpoint.
    pub fn host<M: Maps>(maps: &M) -> Self {
        if maps.config().enable_host_firewall != 0
            && let Some(device) = maps.device(maps.config().host_ifindex)
        {
            return Self { identity: identity::HOST, ..Self::of_device(maps, device) };
        }
        Self::elsewhere(identity::HOST)
    }

    /// The revision is read before the policy, so what a flow remembers is at worst an old one.
    fn here<M: Maps>(maps: &M, identity: u32, flags: u32, slot: u32, endpoint: u16) -> Self {
        let revision = if flags & ENFORCED != 0 { maps.revision(slot) } else { 0 };
        Self { identity, flags, slot, revision, endpoint: u32::from(endpoint) }
    }

    /// Whether what a flow remembers of this end's policy in the direction of `flag` still holds.
    fn holds(&self, flag: u32, peer: u32, is_reply: bool, decision: &FlowDecision) -> bool {
        if self.flags & flag == 0 {
            return true;
        }
        // A reply comes from where the flow goes to, which may be known by another name there. Pods
        // have one name everywhere.
        let is_peer =
            decision.peer == peer || (is_reply && !(is_cluster(decision.peer) && is_cluster(peer)));
        let is_passed = decision.verdict == VERDICT_ALLOWED
            || (decision.verdict == VERDICT_AUDITED && self.flags & ENDPOINT_F_AUDIT != 0);
        decision.revision == self.revision
            && self.revision != 0
            && decision.identity == self.identity
            && is_peer
            && is_passed
    }
}

/// Whether an identity is that of labels in the cluster.
const fn is_cluster(id: u32) -> bool {
    id >= identity::CLUSTER_MIN && id & identity::SCOPE_MASK == 0
}

/// Lets the packet that `scratch` describes pass from its source to its target, or says why not.
///
/// Each step leaves what it found in `scratch`, and the next begins with what is there: see
/// [`forget`].
pub fn admit<F: Family, P: Packet, M: Maps>(
    packet: &P,
    maps: &M,
    seen: &mut Seen,
    scratch: &mut Scratch,
) -> Result<(), DropReason> {
    let scratch = forget(scratch);
    let Scratch { source, target, .. } = scratch;
    if (source.flags | target.flags) & ENDPOINT_F_LOCKDOWN != 0 {
        return Err(DropReason::EndpointLockdown);
    }
    let is_from_pod = source.endpoint != 0 && source.identity != identity::HOST;
    if scratch.l4.passes && !is_from_pod {
        return Ok(());
    }
    // Somebody here speaks for nobody else.
    if scratch.l4.kind == Kind::Related && is_from_pod && !scratch.l4.is_of_receiver {
        scratch.l4.kind = Kind::Stateless;
    }
    scratch.now = maps.now();
    meet::<F, M>(maps, scratch);
    let scratch = forget(scratch);
    if scratch.met & (MET_FLOW | MET_UNDECIDED) != MET_FLOW {
        decide::<F, P, M>(packet, maps, seen, scratch);
        if let Some(reason) = forget(scratch).refusal {
            return Err(reason);
        }
        remember::<F, M>(maps, scratch)?;
    }
    let scratch = forget(scratch);
    if scratch.met & (MET_PROVEN | MET_CLOSED) != 0 {
        file::<F, M>(maps, scratch)?;
    }
    seen.is_old = u8::from(scratch.met & (MET_FLOW | MET_NEWS) == MET_FLOW);
    seen.reason = reason(scratch);
    Ok(())
}

fn reason(scratch: &Scratch) -> u8 {
    let (is_flow, is_reply) = (scratch.met & MET_FLOW != 0, scratch.met & MET_REPLY != 0);
    match (is_flow, is_reply) {
        (false, _) => TRACE_REASON_NEW,
        _ if scratch.l4.kind == Kind::Related => TRACE_REASON_RELATED,
        (true, true) => TRACE_REASON_REPLY,
        (true, false) => TRACE_REASON_ESTABLISHED,
    }
}

/// [`admit`], for hooks that need to know nothing else of the packet's transport.
pub fn check<F: Family, P: Packet, M: Maps>(
    packet: &P,
    maps: &M,
    seen: &mut Seen,
    header: &IpHeader<F>,
    source: End,
    target: End,
) -> Result<(), DropReason> {
    let mut scratch = maps.scratch().ok_or(DropReason::InvalidTcBuffer)?;
    scratch.source = source;
    scratch.target = target;
    l4::extract::<F, P, M>(packet, maps, header, &mut scratch)?;
    admit::<F, P, M>(packet, maps, seen, &mut scratch)
}

/// Looks the flow up, and counts the packet where all is as it was.
fn meet<F: Family, M: Maps>(maps: &M, scratch: &mut Scratch) {
    let Scratch { l4, key, flow: copy, source, target, met, now, .. } = scratch;
    let (l4, source, target, now): (&L4, &End, &End, u32) = (l4, source, target, *now);
    *met = 0;
    if l4.kind == Kind::Stateless {
        return;
    }
    maps.with_flow::<F, ()>(key, |flow| {
        *met = flow::side(flow, l4, now);
        if *met & MET_FLOW == 0 {
            return;
        }
        let is_reply = *met & MET_REPLY != 0;
        let (initiator, responder) = if is_reply { (target, source) } else { (source, target) };
        let [egress, ingress] = &flow.decisions;
        let is_decided = is_same(source, target)
            || (initiator.holds(ENDPOINT_F_ENFORCE_EGRESS, responder.identity, is_reply, egress)
                && responder.holds(
                    ENDPOINT_F_ENFORCE_INGRESS,
                    initiator.identity,
                    is_reply,
                    ingress,
                ));
        if is_decided {
            flow::update(flow, l4, met, now, maps.config());
        } else {
            *met |= MET_UNDECIDED;
        }
        if *met & (MET_UNDECIDED | MET_PROVEN | MET_CLOSED) != 0 {
            *copy = *flow;
        }
    });
}

/// An endpoint that speaks to itself asks nobody.
const fn is_same(source: &End, target: &End) -> bool {
    source.endpoint != 0 && source.endpoint == target.endpoint
}

/// Asks the policies of both ends, and leaves what they say in the scratch flow.
fn decide<F: Family, P: Packet, M: Maps>(
    packet: &P,
    maps: &M,
    seen: &mut Seen,
    scratch: &mut Scratch,
) {
    let is_flow = scratch.met & MET_FLOW != 0;
    let is_reply = scratch.met & MET_REPLY != 0;
    if is_same(&scratch.source, &scratch.target) {
        scratch.source.flags = 0;
        scratch.target.flags = 0;
    }
    let l4 = &scratch.l4;
    let question = &mut scratch.question;
    (question.protocol, question.port) = match (is_flow, is_reply) {
        (true, true) => (l4.protocol, l4.reply_port),
        (true, false) => (l4.protocol, l4.forward_port),
        _ => (l4.own_protocol, l4.own_port),
    };
    question.has_port = l4.has_ports;
    let scratch = forget(scratch);
    if is_reply {
        core::mem::swap(&mut scratch.source, &mut scratch.target);
    }
    let scratch = forget(scratch);
    scratch.refusal = None;
    ask_end::<P, M, DECIDED_EGRESS>(packet, maps, seen, scratch);
    let scratch = forget(scratch);
    if scratch.refusal.is_some() {
        seen.is_at_target = u8::from(scratch.met & MET_REPLY != 0);
    } else {
        ask_end::<P, M, DECIDED_INGRESS>(packet, maps, seen, scratch);
        let is_refused = forget(scratch).refusal.is_some();
        seen.is_at_target = u8::from(is_refused && scratch.met & MET_REPLY == 0);
    }
    let scratch = forget(scratch);
    if scratch.refusal.is_some() && scratch.met & MET_FLOW != 0 {
        // So that replies do not pass by what was allowed before.
        let Scratch { key, flow, .. } = scratch;
        maps.with_flow::<F, ()>(key, |kept| kept.decisions = flow.decisions);
    }
}

/// Asks the policy of the initiator (`scratch.source` by now) or of the responder.
fn ask_end<P: Packet, M: Maps, const SIDE: usize>(
    packet: &P,
    maps: &M,
    seen: &Seen,
    scratch: &mut Scratch,
) {
    let Scratch { flow, source, target, question, answer, l4, met, refusal, .. } = scratch;
    let (end, other, flag, direction) = if SIDE == DECIDED_EGRESS {
        (source, target, ENDPOINT_F_ENFORCE_EGRESS, POLICY_EGRESS)
    } else {
        (target, source, ENDPOINT_F_ENFORCE_INGRESS, POLICY_INGRESS)
    };
    let decision = &mut flow.decisions[SIDE];
    let before = decision.verdict;
    // As the flow's own direction knows its peer, unless a reply knows better.
    let known = decision.peer;
    let is_kept = *met & MET_REPLY != 0 && !(is_cluster(other.identity) && is_cluster(known));
    decision.peer = if is_kept { known } else { other.identity };
    decision.identity = end.identity;
    decision.revision = 0;
    decision.verdict = VERDICT_NONE;
    decision.proxy_port = [0; 2];
    decision.pad = 0;
    if end.flags & flag == 0 {
        return;
    }
    decision.revision = end.revision;
    question.slot = end.slot;
    question.peer = decision.peer;
    question.direction = direction;
    ask(maps, question, answer);
    let answer = forget(answer);
    *refusal = answer.refusal(question);
    let refusal = forget(refusal);
    let is_audited = end.flags & ENDPOINT_F_AUDIT != 0;
    decision.verdict = match (refusal.is_some(), is_audited) {
        (false, _) => VERDICT_ALLOWED,
        (true, true) => VERDICT_AUDITED,
        (true, false) => VERDICT_NONE,
    };
    if is_audited {
        *refusal = None;
    }
    // Told are new flows, what is denied, and what is no longer as it was.
    let decision = forget(decision);
    let usual = if *met & MET_FLOW != 0 { before } else { VERDICT_ALLOWED };
    let is_new = *met & MET_FLOW == 0 && l4.kind == Kind::Flow;
    if is_new || decision.verdict == VERDICT_NONE || decision.verdict != usual {
        let endpoint = end.endpoint as u16;
        observe::verdict(
            packet,
            maps,
            seen,
            endpoint,
            question,
            answer,
            decision.verdict,
            *refusal,
        );
    }
}

/// Writes down what was decided: into the flow that is there, or as a new one.
fn remember<F: Family, M: Maps>(maps: &M, scratch: &mut Scratch) -> Result<(), DropReason> {
    let Scratch { l4, key, flow: copy, met, now, .. } = forget(scratch);
    let (l4, now): (&L4, u32) = (l4, *now);
    if *met & MET_FLOW != 0 {
        maps.with_flow::<F, ()>(key, |flow| {
            flow.decisions = copy.decisions;
            flow::update(flow, l4, met, now, maps.config());
            *copy = *flow;
        });
        return Ok(());
    }
    if l4.kind != Kind::Flow || l4.answers || *met & MET_COLLISION != 0 {
        return Ok(());
    }
    flow::begin(copy, l4, now, maps.config());
    if !maps.insert_unassured::<F>(key, copy) {
        return Err(DropReason::CtCreateFailed);
    }
    if *met & MET_ASSURED != 0 {
        maps.delete_assured::<F>(key);
    }
    Ok(())
}

/// Moves a flow to the map where it belongs now: inserts, then deletes.
fn file<F: Family, M: Maps>(maps: &M, scratch: &mut Scratch) -> Result<(), DropReason> {
    let Scratch { l4, key, flow, met, now, .. } = scratch;
    if *met & MET_PROVEN != 0 {
        flow::prove(flow, l4, *now, maps.config());
        if !maps.insert_assured::<F>(key, flow) {
            return Err(DropReason::CtTableFull);
        }
        maps.delete_unassured::<F>(key);
    } else {
        flow::retire(flow);
        if !maps.insert_unassured::<F>(key, flow) {
            return Err(DropReason::CtCreateFailed);
        }
        maps.delete_assured::<F>(key);
    }
    Ok(())
}
