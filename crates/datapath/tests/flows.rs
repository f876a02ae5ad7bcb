//! Conversations through the hooks of the example node: what is tracked, what policies of both ends
//! make of it, and how many lookups that takes.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::net::IpAddr;

use abi::conntrack::{Flow, VERDICT_ALLOWED, VERDICT_AUDITED, ticks_of_seconds};
use abi::endpoint::{
    ENDPOINT_F_AUDIT, ENDPOINT_F_ENFORCE_EGRESS, ENDPOINT_F_ENFORCE_INGRESS, ENDPOINT_F_LOCKDOWN,
};
use abi::event::{
    EventType, HookId, PolicyMatch, TRACE_REASON_ESTABLISHED, TRACE_REASON_NEW,
    TRACE_REASON_RELATED, TRACE_REASON_REPLY, VERDICT_F_AUDITED, VERDICT_F_DIRECTION,
    VERDICT_MATCH_SHIFT,
};
use abi::policy::{
    POLICY_DENY, POLICY_EGRESS, POLICY_INGRESS, POLICY_NOT_ENFORCEABLE, POLICY_PREFIX_SHIFT,
    POLICY_STATIC_PREFIX_BITS, PRECEDENCE_ALLOW, PRECEDENCE_DENY, PolicyEntry, PolicyKey,
    precedence,
};
use abi::{DropReason, metrics};
use datapath::Verdict;
use datapath::host::example::{self, Both, POD_A, POD_B, Pod};
use datapath::host::packets::{self, TCP, UDP};
use datapath::host::{Event, Frame, Node, Operations, run};

const IPV6: [bool; 2] = [false, true];
const SYN: u8 = 2;
const SYN_ACK: u8 = 18;
const ACK: u8 = 16;
const FIN: u8 = 17;
const RST: u8 = 4;
const BOTH: u32 = ENDPOINT_F_ENFORCE_INGRESS | ENDPOINT_F_ENFORCE_EGRESS;
const SLOT_A: u32 = 7;
const SLOT_B: u32 = 8;

/// A node, and what the last packet cost.
struct World {
    node: Node,
    is_v6: bool,
    asked: Cell<Operations>,
    reason: Cell<u8>,
}

impl World {
    fn new(is_v6: bool) -> Self {
        let node = Node { listeners: u64::MAX, ..example::node() };
        node.now.set(1_000);
        Self { node, is_v6, asked: Cell::default(), reason: Cell::new(u8::MAX) }
    }

    /// Both pods are enforced, each under its own policy without entries.
    fn enforced(is_v6: bool) -> Self {
        let mut world = Self::new(is_v6);
        world.select(POD_A, SLOT_A, BOTH);
        world.select(POD_B, SLOT_B, BOTH);
        world
    }

    fn select(&mut self, pod: Pod, slot: u32, flags: u32) {
        let device = self.node.devices.get_mut(&pod.ifindex).expect("a pod");
        (device.policy_slot, device.flags) = (slot, flags);
        for key in example::keys(pod.address) {
            let endpoint = self.node.endpoints.get_mut(&key).expect("a pod");
            (endpoint.policy_slot, endpoint.flags) = (slot, flags);
        }
        self.node.revisions.entry(slot).or_insert(slot * 100);
    }

    /// One more entry, and a new revision.
    fn rule(&mut self, slot: u32, direction: u8, peer: u32, port: Option<(u8, u16)>, bits: u8) {
        let prefix_bits = if port.is_some() { 24 } else { 0 };
        let (protocol, port) = port.unwrap_or_default();
        let key = PolicyKey {
            prefix_len: POLICY_STATIC_PREFIX_BITS + u32::from(prefix_bits),
            slot,
            identity: peer,
            direction,
            protocol,
            dport: port.to_be_bytes(),
        };
        let low = if bits & POLICY_DENY != 0 { PRECEDENCE_DENY } else { PRECEDENCE_ALLOW };
        let entry = PolicyEntry {
            bits: bits | prefix_bits << POLICY_PREFIX_SHIFT,
            precedence: precedence(0, low),
            cookie: 77,
            ..PolicyEntry::default()
        };
        self.node.policy.insert(key, entry);
        *self.node.revisions.get_mut(&slot).expect("a slot") += 1;
    }

    /// Pod A may speak to pod B's port, by both policies.
    fn allow(&mut self, port: (u8, u16)) {
        self.rule(SLOT_A, POLICY_EGRESS, POD_B.identity, Some(port), 0);
        self.rule(SLOT_B, POLICY_INGRESS, POD_A.identity, Some(port), 0);
    }

    fn revoke(&mut self, slot: u32) {
        self.node.policy.retain(|key, _| key.slot != slot);
        *self.node.revisions.get_mut(&slot).expect("a slot") += 1;
    }

    fn at(&self, both: Both) -> IpAddr {
        both.of(self.is_v6)
    }

    /// Sends a packet by a hook; `None` when it passes, otherwise why not.
    fn send(&self, hook: HookId, frame: &mut Frame) -> Option<DropReason> {
        let before = self.node.metrics.borrow().clone();
        self.node.operations.set(Operations::default());
        let verdict = run(hook, frame, &self.node);
        self.asked.set(self.node.operations.get());
        self.reason.set(u8::MAX);
        for event in frame.events.borrow().iter() {
            if let Event::Trace(event, _) = event {
                self.reason.set(event.reason);
            }
        }
        if verdict != Verdict::Drop {
            return None;
        }
        let after = self.node.metrics.borrow();
        let count = |map: &BTreeMap<u32, metrics::MetricsValue>, slot| {
            map.get(&slot).map_or(0, |value| value.count)
        };
        let directions = [metrics::Direction::Ingress, metrics::Direction::Egress];
        let is_reason = |reason: &&DropReason| {
            let slots = directions.map(|direction| metrics::index(reason.number(), direction));
            slots.into_iter().any(|slot| count(&after, slot) > count(&before, slot))
        };
        Some(*DropReason::ALL.iter().find(is_reason).expect("a reason is counted"))
    }

    fn pod_sends(&self, pod: Pod, bytes: Vec<u8>) -> Option<DropReason> {
        self.send(HookId::FromContainer, &mut Frame::new(bytes, pod.ifindex))
    }

    fn tunnelled(&self, bytes: Vec<u8>, vni: u32) -> Option<DropReason> {
        let mut frame = Frame::new(bytes, example::TUNNEL_IFINDEX);
        frame.vni = Some(vni);
        self.send(HookId::FromOverlay, &mut frame)
    }

    fn a_says(&self, flags: u8, numbers: (u32, u32)) -> Option<DropReason> {
        let ends = ((self.at(POD_A.address), 40_000), (self.at(POD_B.address), 80));
        let segment = packets::tcp(ends.0, ends.1, flags);
        self.pod_sends(POD_A, packets::with_numbers(segment, numbers.0, numbers.1))
    }

    fn b_says(&self, flags: u8, numbers: (u32, u32)) -> Option<DropReason> {
        let ends = ((self.at(POD_B.address), 80), (self.at(POD_A.address), 40_000));
        let segment = packets::tcp(ends.0, ends.1, flags);
        self.pod_sends(POD_B, packets::with_numbers(segment, numbers.0, numbers.1))
    }

    fn shake_hands(&self) {
        assert_eq!(self.a_says(SYN, (5, 0)), None);
        assert_eq!(self.reason.get(), TRACE_REASON_NEW);
        assert_eq!(self.b_says(SYN_ACK, (900, 6)), None);
        assert_eq!(self.reason.get(), TRACE_REASON_REPLY);
        assert_eq!(self.a_says(ACK, (6, 901)), None);
        assert_eq!(self.reason.get(), TRACE_REASON_ESTABLISHED);
    }

    /// How many flows are proven, and how many are not.
    fn flows(&self) -> (usize, usize) {
        let flows = self.node.flows.borrow();
        (flows.assured.len(), flows.unassured.len())
    }

    fn only_flow(&self) -> Flow {
        let flows = self.node.flows.borrow();
        let mut all = flows.assured.values().chain(flows.unassured.values());
        let flow = *all.next().expect("a flow");
        assert!(all.next().is_none(), "one flow");
        flow
    }

    fn pass_time(&self, seconds: u32) {
        self.node.now.set(self.node.now.get() + ticks_of_seconds(seconds));
    }
}

#[test]
fn an_established_flow_costs_one_lookup_and_no_policy() {
    for is_v6 in IPV6 {
        let mut world = World::enforced(is_v6);
        world.allow((TCP, 80));
        world.shake_hands();
        assert_eq!(world.flows(), (1, 0), "proven by its handshake");
        for speak in [World::a_says, World::b_says] {
            assert_eq!(speak(&world, ACK, (6, 901)), None);
            let Operations { flow, flow_write, policy, revision, fragment, .. } = world.asked.get();
            assert_eq!((flow, flow_write, policy, revision, fragment), (1, 0, 0, 2, 0));
        }
        let [egress, ingress] = world.only_flow().decisions;
        assert_eq!((egress.verdict, egress.identity), (VERDICT_ALLOWED, POD_A.identity));
        assert_eq!((ingress.verdict, ingress.peer), (VERDICT_ALLOWED, POD_A.identity));
    }
}

#[test]
fn a_flow_of_two_local_pods_exists_only_if_both_policies_allow_it() {
    for is_v6 in IPV6 {
        let mut world = World::enforced(is_v6);
        assert_eq!(world.a_says(SYN, (1, 0)), Some(DropReason::Policy), "neither");
        world.rule(SLOT_A, POLICY_EGRESS, POD_B.identity, Some((TCP, 80)), 0);
        assert_eq!(world.a_says(SYN, (1, 0)), Some(DropReason::Policy), "not the receiver");
        assert_eq!(world.flows(), (0, 0));
        world.rule(SLOT_B, POLICY_INGRESS, POD_A.identity, Some((TCP, 80)), 0);
        assert_eq!(world.a_says(SYN, (1, 0)), None);
        assert_eq!(world.flows(), (0, 1));
        // What the other side begins is another flow.
        let back = packets::tcp((world.at(POD_B.address), 1), (world.at(POD_A.address), 80), SYN);
        assert_eq!(world.pod_sends(POD_B, back), Some(DropReason::Policy));
    }
}

#[test]
fn a_change_of_policy_ends_a_flow_in_both_directions_at_once() {
    for is_v6 in IPV6 {
        let mut world = World::enforced(is_v6);
        world.allow((TCP, 80));
        world.shake_hands();
        world.revoke(SLOT_B);
        assert_eq!(world.b_says(ACK, (901, 6)), Some(DropReason::Policy), "no reply either");
        assert_eq!(world.a_says(ACK, (6, 901)), Some(DropReason::Policy));
        world.rule(SLOT_B, POLICY_INGRESS, POD_A.identity, None, 0);
        assert_eq!(world.b_says(ACK, (901, 6)), None, "allowed again, by another entry");
        assert!(world.asked.get().policy > 0);
        assert_eq!(world.b_says(ACK, (901, 6)), None);
        assert_eq!(world.asked.get().policy, 0, "remembered");
    }
}

#[test]
fn a_pod_with_other_labels_is_decided_again() {
    for is_v6 in IPV6 {
        let mut world = World::enforced(is_v6);
        world.allow((TCP, 80));
        world.shake_hands();
        world.node.devices.get_mut(&POD_A.ifindex).expect("pod A").sec_id = 30_000;
        for key in example::keys(POD_A.address) {
            world.node.endpoints.get_mut(&key).expect("pod A").sec_id = 30_000;
        }
        assert_eq!(world.a_says(ACK, (6, 901)), Some(DropReason::Policy));
        assert_eq!(world.b_says(ACK, (901, 6)), Some(DropReason::Policy));
    }
}

#[test]
fn refusals_have_their_own_reasons() {
    for is_v6 in IPV6 {
        let mut world = World::enforced(is_v6);
        world.allow((TCP, 80));
        world.rule(SLOT_B, POLICY_INGRESS, POD_A.identity, Some((TCP, 80)), POLICY_DENY);
        assert_eq!(world.a_says(SYN, (1, 0)), Some(DropReason::PolicyDeny));
        world.rule(SLOT_B, POLICY_INGRESS, POD_A.identity, Some((TCP, 80)), POLICY_NOT_ENFORCEABLE);
        assert_eq!(world.a_says(SYN, (1, 0)), Some(DropReason::PolicyNotEnforceable));
        world.select(POD_B, SLOT_B, BOTH | ENDPOINT_F_LOCKDOWN);
        assert_eq!(world.a_says(SYN, (1, 0)), Some(DropReason::EndpointLockdown));
        world.select(POD_B, SLOT_B, BOTH | ENDPOINT_F_AUDIT);
        assert_eq!(world.a_says(SYN, (1, 0)), None, "would be denied");
        assert_eq!(world.only_flow().decisions[1].verdict, VERDICT_AUDITED);
    }
}

#[test]
fn a_flood_cannot_prove_a_flow() {
    for is_v6 in IPV6 {
        let world = World::new(is_v6);
        assert_eq!(world.a_says(SYN, (5, 0)), None);
        assert_eq!(world.b_says(SYN_ACK, (900, 6)), None);
        // Who has not heard the answer does not know its number.
        for guess in [0, 900, 901 + (1 << 14), 0x8000_0000] {
            assert_eq!(world.a_says(ACK, (6, guess)), None);
            assert_eq!(world.flows(), (0, 1), "{guess}");
        }
        assert_eq!(world.a_says(ACK, (6, 901)), None);
        assert_eq!(world.flows(), (1, 0));
    }
}

#[test]
fn udp_is_proven_by_a_packet_after_the_reply() {
    for is_v6 in IPV6 {
        let world = World::new(is_v6);
        let (a, b) = ((world.at(POD_A.address), 5_000), (world.at(POD_B.address), 53));
        for _ in 0..2 {
            assert_eq!(world.pod_sends(POD_A, packets::udp(a, b, b"?")), None);
            assert_eq!(world.flows(), (0, 1));
        }
        assert_eq!(world.pod_sends(POD_B, packets::udp(b, a, b"!")), None);
        assert_eq!(world.reason.get(), TRACE_REASON_REPLY);
        assert_eq!(world.flows(), (0, 1), "not by the responder's own packet");
        assert_eq!(world.pod_sends(POD_A, packets::udp(a, b, b"?")), None);
        assert_eq!(world.flows(), (1, 0));
    }
}

#[test]
fn a_full_table_refuses_new_flows_and_keeps_the_old() {
    let mut world = World::new(false);
    world.shake_hands();
    world.node.assured_max = Some(1);
    let (a, b) = ((world.at(POD_A.address), 5_000), (world.at(POD_B.address), 53));
    assert_eq!(world.pod_sends(POD_A, packets::udp(a, b, b"?")), None);
    assert_eq!(world.pod_sends(POD_B, packets::udp(b, a, b"!")), None);
    let refused = world.pod_sends(POD_A, packets::udp(a, b, b"?"));
    assert_eq!(refused, Some(DropReason::CtTableFull));
    assert_eq!(world.flows(), (1, 1));
    assert_eq!(world.a_says(ACK, (6, 901)), None);
    // There is room again.
    world.node.assured_max = None;
    assert_eq!(world.pod_sends(POD_A, packets::udp(a, b, b"?")), None);
    assert_eq!(world.flows(), (2, 0));
}

#[test]
fn closed_flows_leave_the_table_of_proven_ones() {
    for is_v6 in IPV6 {
        let world = World::new(is_v6);
        world.shake_hands();
        assert_eq!(world.a_says(FIN, (6, 901)), None);
        assert_eq!(world.flows(), (1, 0), "half closed");
        world.pass_time(7_000);
        assert_eq!(world.b_says(FIN, (901, 7)), None);
        assert_eq!(world.flows(), (0, 1));
        assert_eq!(world.a_says(ACK, (7, 902)), None);
        assert_eq!(world.reason.get(), TRACE_REASON_ESTABLISHED, "the last word");
        world.pass_time(11);
        assert_eq!(world.a_says(ACK, (7, 902)), None);
        assert_eq!(world.reason.get(), TRACE_REASON_NEW, "forgotten after ten seconds");
    }
}

#[test]
fn a_reset_closes_what_was_never_open_and_only_its_senders_side_of_the_rest() {
    let world = World::new(false);
    assert_eq!(world.a_says(SYN, (5, 0)), None);
    assert_eq!(world.b_says(RST | ACK, (0, 6)), None);
    world.pass_time(11);
    assert_eq!(world.a_says(SYN, (5, 0)), None);
    assert_eq!(world.reason.get(), TRACE_REASON_NEW, "over after ten seconds");
    let world = World::new(false);
    world.shake_hands();
    assert_eq!(world.b_says(RST, (901, 0)), None);
    assert_eq!(world.flows(), (1, 0), "a forged reset ends nothing");
    world.pass_time(50);
    assert_eq!(world.a_says(ACK, (6, 901)), None);
    assert_eq!(world.reason.get(), TRACE_REASON_ESTABLISHED);
    world.pass_time(3_600);
    assert_eq!(world.a_says(ACK, (6, 901)), None);
    assert_eq!(world.reason.get(), TRACE_REASON_ESTABLISHED, "as if there had been no reset");
    assert_eq!(world.b_says(RST, (901, 0)), None);
    world.pass_time(65);
    assert_eq!(world.a_says(ACK, (6, 901)), None);
    assert_eq!(world.reason.get(), TRACE_REASON_NEW, "nobody spoke: it was a real one");
    let world = World::new(false);
    world.shake_hands();
    assert_eq!(world.b_says(RST, (901, 0)), None);
    // A SYN after a reset is a new connection.
    assert_eq!(world.a_says(SYN, (50, 0)), None);
    assert_eq!(world.reason.get(), TRACE_REASON_NEW);
    assert_eq!(world.flows(), (0, 1));
}

#[test]
fn who_answers_may_not_open() {
    for is_v6 in IPV6 {
        let mut world = World::enforced(is_v6);
        world.allow((TCP, 80));
        world.shake_hands();
        let before = world.only_flow();
        assert_eq!(world.b_says(SYN, (1, 0)), Some(DropReason::Policy));
        assert_eq!(world.only_flow(), before, "and changes nothing");
        assert_eq!(world.a_says(ACK, (6, 901)), None);
    }
}

#[test]
fn echo_requests_are_not_replies() {
    for is_v6 in IPV6 {
        let mut world = World::enforced(is_v6);
        let echo = if is_v6 { (58, 128) } else { (1, 8) };
        world.allow(echo);
        let (a, b) = (world.at(POD_A.address), world.at(POD_B.address));
        for id in [7, 0] {
            assert_eq!(
                world.pod_sends(POD_B, packets::echo(b, a, id, false)),
                Some(DropReason::Policy)
            );
            assert_eq!(world.pod_sends(POD_A, packets::echo(a, b, id, true)), None);
            assert_eq!(world.pod_sends(POD_B, packets::echo(b, a, id, false)), None);
            assert_eq!(world.reason.get(), TRACE_REASON_REPLY);
            assert_eq!(
                world.pod_sends(POD_B, packets::echo(b, a, id, true)),
                Some(DropReason::Policy)
            );
        }
    }
}

#[test]
fn errors_are_of_the_flow_that_they_are_about() {
    for is_v6 in IPV6 {
        let mut world = World::enforced(is_v6);
        world.allow((UDP, 53));
        let (a, b) = (world.at(POD_A.address), world.at(POD_B.address));
        let question = packets::udp((a, 5_000), (b, 53), b"?");
        let kind = if is_v6 { [1, 4] } else { [3, 3] };
        let error = |from, to, about: &[u8]| packets::icmp_error(from, to, kind, about);
        assert_eq!(
            world.pod_sends(POD_B, error(b, a, &question)),
            Some(DropReason::Policy),
            "no flow"
        );
        assert_eq!(world.pod_sends(POD_A, question.clone()), None);
        let expires = world.only_flow().expires;
        world.pass_time(5);
        assert_eq!(world.pod_sends(POD_B, error(b, a, &question)), None);
        assert_eq!(world.reason.get(), TRACE_REASON_RELATED);
        assert_eq!(world.only_flow().expires, expires, "an error keeps no flow alive");
        // About somebody else's words, and to somebody else.
        let c = world.at(example::POD_C);
        let foreign = packets::udp((a, 5_000), (c, 53), b"?");
        assert_eq!(world.pod_sends(POD_B, error(b, a, &foreign)), Some(DropReason::Policy));
        assert_eq!(world.pod_sends(POD_B, error(b, c, &question)), Some(DropReason::Policy));
        // A router may tell.
        let router = world.at(example::NODE_2);
        assert_eq!(world.tunnelled(error(router, a, &question), 6), None);
        assert_eq!(world.reason.get(), TRACE_REASON_RELATED);
    }
}

#[test]
fn later_fragments_have_the_ports_of_the_first() {
    for is_v6 in IPV6 {
        let mut world = World::enforced(is_v6);
        world.allow((UDP, 53));
        let ends = ((world.at(POD_A.address), 5_000), (world.at(POD_B.address), 53));
        let [first, later] = packets::in_fragments(&packets::udp(ends.0, ends.1, &[7; 100]), 9, 24);
        assert_eq!(world.pod_sends(POD_A, later.clone()), Some(DropReason::FragNosupport));
        assert_eq!(world.pod_sends(POD_A, first), None);
        assert_eq!(world.pod_sends(POD_A, later.clone()), None);
        // Where all ports are allowed, none need be known.
        let [_, other] = packets::in_fragments(&packets::udp(ends.0, ends.1, &[7; 100]), 10, 24);
        assert_eq!(world.pod_sends(POD_A, other.clone()), Some(DropReason::FragNosupport));
        world.rule(SLOT_A, POLICY_EGRESS, POD_B.identity, None, 0);
        world.rule(SLOT_B, POLICY_INGRESS, 0, None, 0);
        assert_eq!(world.pod_sends(POD_A, other), None);
        // Too short for its own ports.
        let whole = packets::tcp(ends.0, ends.1, SYN);
        let [first, _] = packets::in_fragments(&whole, 11, 8);
        assert_eq!(world.pod_sends(POD_A, first), Some(DropReason::CtInvalidHdr));
    }
}

#[test]
fn what_comes_from_elsewhere_meets_the_receivers_policy() {
    for is_v6 in IPV6 {
        let mut world = World::enforced(is_v6);
        let ends = ((world.at(example::POD_C), 40_000), (world.at(POD_B.address), 80));
        let syn = packets::tcp(ends.0, ends.1, SYN);
        let answer = packets::tcp(ends.1, ends.0, SYN_ACK);
        assert_eq!(world.pod_sends(POD_B, answer.clone()), Some(DropReason::Policy));
        assert_eq!(world.tunnelled(syn.clone(), 20_003), Some(DropReason::Policy));
        world.rule(SLOT_B, POLICY_INGRESS, 20_003, Some((TCP, 80)), 0);
        assert_eq!(world.tunnelled(syn.clone(), 20_009), Some(DropReason::Policy), "by identity");
        assert_eq!(world.tunnelled(syn, 20_003), None);
        assert_eq!(world.pod_sends(POD_B, answer), None, "the reply is implicit");
        // From the network, the address says who it is.
        let world_end = (world.at(example::WORLD), 40_000);
        let mut frame = Frame::new(packets::tcp(world_end, ends.1, SYN), 3);
        assert_eq!(world.send(HookId::FromNetdev, &mut frame), Some(DropReason::Policy));
        let outside = if is_v6 { 10 } else { 9 };
        world.rule(SLOT_B, POLICY_INGRESS, outside, Some((TCP, 80)), 0);
        let mut frame = Frame::new(packets::tcp(world_end, ends.1, SYN), 3);
        assert_eq!(world.send(HookId::FromNetdev, &mut frame), None);
        // From the host, which is a peer like others: its leave is an entry.
        let host = (world.at(example::NODE_1), 40_000);
        let from_host = |world: &World| {
            let mut frame = Frame::new(packets::tcp(host, ends.1, SYN), POD_B.ifindex);
            frame.mark = abi::mark::HOST;
            world.send(HookId::ToContainer, &mut frame)
        };
        assert_eq!(from_host(&world), Some(DropReason::Policy));
        world.rule(SLOT_B, POLICY_INGRESS, 1, None, 0);
        assert_eq!(from_host(&world), None);
    }
}

#[test]
fn the_host_has_a_policy_with_the_host_firewall() {
    for is_v6 in IPV6 {
        let mut world = World::new(is_v6);
        let host = (world.at(example::NODE_1), 22);
        let peer = (world.at(example::NODE_2), 40_000);
        let send = |world: &World, hook, bytes| world.send(hook, &mut Frame::new(bytes, 3));
        let row = world.node.config.host_ifindex;
        let device = world.node.devices.get_mut(&row).expect("cilium_host");
        (device.policy_slot, device.flags) = (9, BOTH);
        world.node.revisions.insert(9, 1);
        let syn = packets::tcp(peer, host, SYN);
        assert_eq!(send(&world, HookId::FromNetdev, syn.clone()), None, "it is off");
        world.node.config.enable_host_firewall = 1;
        assert_eq!(send(&world, HookId::FromNetdev, syn.clone()), Some(DropReason::Policy));
        let own = packets::tcp(host, peer, SYN);
        assert_eq!(send(&world, HookId::ToNetdev, own.clone()), Some(DropReason::Policy));
        world.rule(9, POLICY_INGRESS, 6, Some((TCP, 22)), 0);
        assert_eq!(send(&world, HookId::FromNetdev, syn), None);
        assert_eq!(send(&world, HookId::ToNetdev, packets::tcp(host, peer, SYN_ACK)), None);
        assert_eq!(send(&world, HookId::ToNetdev, own), Some(DropReason::Policy));
        // A pod that speaks to the host meets both policies.
        let pod = (world.at(POD_A.address), 40_000);
        assert_eq!(world.pod_sends(POD_A, packets::tcp(pod, host, SYN)), Some(DropReason::Policy));
        world.rule(9, POLICY_INGRESS, POD_A.identity, Some((TCP, 22)), 0);
        assert_eq!(world.pod_sends(POD_A, packets::tcp(pod, host, SYN)), None);
    }
}

#[test]
fn verdicts_are_told_once_per_flow_and_for_every_refusal() {
    let mut world = World::enforced(false);
    world.node.listeners = EventType::PolicyVerdict.listener_bit();
    let told = |world: &World, flags| {
        let ends = ((world.at(POD_A.address), 40_000), (world.at(POD_B.address), 80));
        let mut frame = Frame::new(packets::tcp(ends.0, ends.1, flags), POD_A.ifindex);
        let _passed = world.send(HookId::FromContainer, &mut frame);
        let events = frame.events.borrow();
        let verdicts = events.iter().map(|event| match event {
            Event::Verdict(event, _) => (
                event.flags & VERDICT_F_DIRECTION,
                event.verdict,
                event.flags >> VERDICT_MATCH_SHIFT & 7,
                event.flags & VERDICT_F_AUDITED != 0,
                (event.header.source, event.remote_label, event.dst_port, event.cookie),
            ),
            other => panic!("{other:?}"),
        });
        verdicts.collect::<Vec<_>>()
    };
    let from_a = |cookie| (POD_A.id, POD_B.identity, 80, cookie);
    let to_b = |cookie| (POD_B.id, POD_A.identity, 80, cookie);
    for _ in 0..2 {
        assert_eq!(told(&world, SYN), [(2, -133, 0, false, from_a(0))]);
    }
    let l3_l4 = PolicyMatch::L3L4 as u8;
    world.rule(SLOT_A, POLICY_EGRESS, POD_B.identity, Some((TCP, 80)), 0);
    assert_eq!(told(&world, SYN), [(2, 0, l3_l4, false, from_a(77)), (1, -133, 0, false, to_b(0))]);
    world.rule(SLOT_B, POLICY_INGRESS, POD_A.identity, Some((TCP, 80)), 0);
    assert_eq!(
        told(&world, SYN),
        [(2, 0, l3_l4, false, from_a(77)), (1, 0, l3_l4, false, to_b(77))]
    );
    assert_eq!(told(&world, ACK), []);
    // Decided again, and as before.
    world.rule(SLOT_B, POLICY_INGRESS, 4711, None, 0);
    assert_eq!(told(&world, ACK), []);
    world.select(POD_B, SLOT_B, BOTH | ENDPOINT_F_AUDIT);
    world.revoke(SLOT_B);
    assert_eq!(told(&world, ACK), [(1, 0, 0, true, to_b(0))]);
    assert_eq!(told(&world, ACK), []);
}

#[test]
fn aggregated_traces_tell_what_is_new() {
    let mut world = World::new(false);
    world.node.config.monitor_aggregation = abi::config::AGGREGATION_MEDIUM;
    let is_told = |world: &World| world.reason.get() != u8::MAX;
    assert_eq!(world.a_says(SYN, (5, 0)), None);
    assert!(is_told(&world), "a flow begins");
    assert_eq!(world.b_says(SYN_ACK, (900, 6)), None);
    assert!(is_told(&world), "the first reply");
    assert_eq!(world.a_says(ACK, (6, 901)), None);
    assert!(!is_told(&world), "nothing new");
    assert_eq!(world.b_says(ACK, (901, 6)), None);
    assert!(!is_told(&world));
    world.pass_time(6);
    assert_eq!(world.a_says(ACK, (6, 901)), None);
    assert!(is_told(&world), "it still runs");
    assert_eq!(world.a_says(FIN, (6, 901)), None);
    assert!(is_told(&world), "it closes");
}
