//! One harness for all hooks: any bytes become a hook, a node and a sequence of packets, and what
//! every hook promises is checked after each.
//!
//! Fuzz targets call [`run`] with what the fuzzer invents; the tests call it with numbers.

use std::net::IpAddr;
use std::vec;
use std::vec::Vec;

use abi::endpoint::{
    ENDPOINT_F_AUDIT, ENDPOINT_F_ENFORCE_EGRESS, ENDPOINT_F_ENFORCE_INGRESS, ENDPOINT_F_HOST,
    ENDPOINT_F_LOCKDOWN,
};
use abi::event::HookId;
use abi::metrics::{self, Direction};
use abi::policy::{
    POLICY_DENY, POLICY_NOT_ENFORCEABLE, POLICY_PREFIX_SHIFT, POLICY_STATIC_PREFIX_BITS,
    PRECEDENCE_ALLOW, PRECEDENCE_DENY, PRECEDENCE_PASS, PolicyEntry, PolicyKey, precedence,
};
use abi::{DatapathConfig, DropReason};

use super::example::{self, POD_A, POD_B};
use super::judge::Judge;
use super::{Event, Frame, Node, Target, packets};
use crate::hooks::Verdict;
use crate::packet::{AF_INET, NetworkAddress, Route};

/// Every hook.
pub const HOOKS: [HookId; 7] = [
    HookId::FromContainer,
    HookId::ToContainer,
    HookId::FromNetdev,
    HookId::ToNetdev,
    HookId::FromOverlay,
    HookId::ToOverlay,
    HookId::FromHost,
];

/// Bytes of the fuzzer, consumed from the front; zeros when they are used up.
#[derive(Clone, Copy, Debug)]
pub struct Choices<'a>(pub &'a [u8]);

impl Choices<'_> {
    /// The next byte.
    pub fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    /// A number below `bound`.
    pub fn below(&mut self, bound: usize) -> usize {
        (usize::from(self.byte()) << 8 | usize::from(self.byte())) % bound
    }

    /// One of these.
    pub fn one_of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())]
    }

    /// Whether there is nothing left.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Runs the packets that `bytes` describe through `hook`.
///
/// # Panics
/// When a hook breaks its promise.
pub fn run(hook: HookId, bytes: &[u8]) {
    let mut choices = Choices(bytes);
    let mut node = example::node();
    node.config = config(&mut choices);
    node.listeners = u64::from(choices.byte());
    for _ in 0..8 {
        if choices.byte() & 3 == 0 {
            change_policies(&mut node, &mut choices);
            node.now.set(node.now.get() + choices.one_of(&[0_u32, 1, 12, 70]));
        }
        step(hook, &node, frame(&mut choices));
        if choices.is_empty() {
            return;
        }
    }
}

/// A configuration.
pub fn config(choices: &mut Choices<'_>) -> DatapathConfig {
    let bits = choices.byte();
    let aggregation = choices.one_of(&[0, 1, 3]);
    let mut config = example::config();
    for (bit, field) in [
        &mut config.enable_ipv4,
        &mut config.enable_ipv6,
        &mut config.tunnel,
        &mut config.drop_events,
        &mut config.trace_events,
        &mut config.debug_events,
    ]
    .into_iter()
    .enumerate()
    {
        *field = !bits >> bit & 1;
    }
    config.direct_ifindex = u32::from(bits >> 6 & 1) * 9;
    config.direct_mtu = 1500;
    config.monitor_aggregation = aggregation;
    config.enable_host_firewall = choices.byte() & 1;
    config.trace_payload_len = u32::from(choices.one_of(&[128_u8, 0, 255]));
    config
}

/// Slots that policies are in.
pub const SLOTS: [u32; 2] = [3, 4];

/// Gives the node other policies: entries, flags of its endpoints, or both.
pub fn change_policies(node: &mut Node, choices: &mut Choices<'_>) {
    for slot in SLOTS {
        if choices.byte() & 1 == 0 {
            node.policy.retain(|key, _| key.slot != slot);
            for _ in 0..choices.below(7) {
                let (key, entry) = policy_entry(slot, choices);
                node.policy.insert(key, entry);
            }
            let newest = node.revisions.values().max().copied().unwrap_or(0);
            node.revisions.insert(slot, newest + 1);
        }
    }
    for ifindex in [POD_A.ifindex, POD_B.ifindex, node.config.host_ifindex] {
        let Some(device) = node.devices.get_mut(&ifindex) else { continue };
        device.policy_slot = choices.one_of(&SLOTS);
        device.flags = choices.one_of(&[
            0,
            ENDPOINT_F_ENFORCE_INGRESS,
            ENDPOINT_F_ENFORCE_EGRESS,
            ENDPOINT_F_ENFORCE_INGRESS | ENDPOINT_F_ENFORCE_EGRESS,
            ENDPOINT_F_ENFORCE_INGRESS | ENDPOINT_F_ENFORCE_EGRESS,
            ENDPOINT_F_ENFORCE_INGRESS | ENDPOINT_F_ENFORCE_EGRESS | ENDPOINT_F_AUDIT,
            ENDPOINT_F_LOCKDOWN,
        ]);
        let device = *device;
        for endpoint in node.endpoints.values_mut() {
            if endpoint.lxc_id == device.lxc_id {
                endpoint.policy_slot = device.policy_slot;
                endpoint.flags = endpoint.flags & ENDPOINT_F_HOST | device.flags;
            }
        }
    }
}

fn policy_entry(slot: u32, choices: &mut Choices<'_>) -> (PolicyKey, PolicyEntry) {
    let prefix_bits = choices.one_of(&[0, 8, 24, 24, 24, 17, 9]);
    let (protocol, port) =
        choices.one_of(&[(6, 80), (6, 40_000), (17, 53), (1, 8), (58, 128), (1, 3), (47, 0)]);
    let mask = (0xffff_0000_u32 >> u32::from(prefix_bits).saturating_sub(8)) as u16;
    let key = PolicyKey {
        prefix_len: POLICY_STATIC_PREFIX_BITS + u32::from(prefix_bits),
        slot,
        identity: choices.one_of(&[
            0,
            0,
            POD_A.identity,
            POD_B.identity,
            example::POD_C_IDENTITY,
            example::CIDR_IDENTITY,
            abi::identity::HOST,
            abi::identity::WORLD_IPV4,
            abi::identity::WORLD_IPV6,
            abi::policy::AGGREGATE_CLUSTER,
            abi::policy::AGGREGATE_WORLD,
        ]),
        direction: choices.byte() & 1,
        protocol: if prefix_bits == 0 { 0 } else { protocol },
        dport: if prefix_bits <= 8 { [0; 2] } else { (port & mask).to_be_bytes() },
    };
    let (bits, low) = choices.one_of(&[
        (0, PRECEDENCE_ALLOW),
        (0, PRECEDENCE_ALLOW),
        (0, PRECEDENCE_ALLOW),
        (POLICY_DENY, PRECEDENCE_DENY),
        (POLICY_NOT_ENFORCEABLE, PRECEDENCE_ALLOW),
        (0, PRECEDENCE_PASS),
    ]);
    let entry = PolicyEntry {
        bits: bits | prefix_bits << POLICY_PREFIX_SHIFT,
        precedence: precedence(u32::from(choices.byte() & 3), low),
        cookie: u32::from(choices.byte()),
        ..PolicyEntry::default()
    };
    (key, entry)
}

/// A packet with all that comes with it.
pub fn frame(choices: &mut Choices<'_>) -> Frame {
    let bytes = mutated(well_formed(choices), choices);
    let mut frame = Frame::new(bytes, choices.one_of(&[POD_A.ifindex, POD_B.ifindex, 7]));
    frame.mark = choices.one_of(&[0, 0x4e21_0f00, 0x0c00, 0x4e21_0400, 0x0200, u32::MAX]);
    frame.vni = choices.one_of(&[Some(20_003), Some(1), Some(2), Some(6), None]);
    frame.route = choices.one_of(&[
        Route::Stack,
        Route::Neighbour { ifindex: 9, target_mac: [6; 8], source_mac: [7; 8] },
        Route::Resolve {
            ifindex: 9,
            next_hop: NetworkAddress { address_family: AF_INET, address: [1, 0, 0, 0] },
        },
        Route::Blackhole,
    ]);
    frame
}

/// A packet that means something on the example node.
pub fn well_formed(choices: &mut Choices<'_>) -> Vec<u8> {
    let addresses = [
        POD_A.address,
        POD_B.address,
        example::POD_C,
        example::POD_D,
        example::POD_E,
        example::NOBODY,
        example::NODE_1,
        example::ROUTER,
        example::NODE_2,
        example::CIDR,
        example::WORLD,
    ];
    let is_v6 = choices.byte() & 1 != 0;
    let source = choices.one_of(&[&addresses[..1], &addresses].concat());
    let target = choices.one_of(&addresses);
    let hop_limit = choices.one_of(&[64, 64, 64, 2, 1, 0, 255]);
    let (from, to) = (source.of(is_v6), target.of(is_v6));
    let (from, to) = if choices.byte() & 1 == 0 { (from, to) } else { (to, from) };
    let packet = match choices.below(16) {
        0..=2 => packets::tcp((from, 40_000), (to, 80), 2),
        3 => packets::udp((from, 40_000), (to, 53), b"question"),
        4 => packets::arp_request(POD_A.mac, source.v4, target.v4),
        5 => packets::neighbour_solicitation(POD_A.mac, source.v6, target.v6),
        6 if !is_v6 => packets::icmp6_message(source.v6, target.v6, choices.byte()),
        6 if is_v6 => packets::with_extension_headers(
            packets::udp((from, 1), (to, example::TUNNEL_PORT), &[0; 30]),
            choices.one_of(&[&[0, 60][..], &[44], &[43, 51], &[0; 7]]),
        ),
        7 => {
            let port = choices.one_of(&[2, example::TUNNEL_PORT]);
            packets::udp((from, 1), (to, port), &[0; 700])
        }
        8..=12 => said((from, to), choices),
        13 => {
            // An error about what was said, to who said it, from its target or somebody between.
            let about = said((to, from), choices);
            let sender = choices.one_of(&[from, from, example::NODE_2.of(is_v6)]);
            let kinds: [[u8; 2]; 3] =
                if is_v6 { [[1, 4], [2, 0], [3, 0]] } else { [[3, 3], [3, 4], [11, 0]] };
            packets::icmp_error(sender, to, choices.one_of(&kinds), &about)
        }
        14 => {
            let whole = said((from, to), choices);
            let cut = choices.one_of(&[16, 8, 24]);
            let [first, later] = packets::in_fragments(&whole, choices.one_of(&[1, 2]), cut);
            if choices.byte() & 1 == 0 { first } else { later }
        }
        _ => packets::ip(from, to, choices.one_of(&[47, 50, 132, 112]), 64, vec![0; 12], None),
    };
    let is_ip = packet[12..14] != crate::wire::eth::ARP;
    if is_ip && hop_limit != 64 { packets::with_hop_limit(packet, hop_limit) } else { packet }
}

/// A packet of one of a few conversations, so that many packets belong to the same.
pub fn said((from, to): (IpAddr, IpAddr), choices: &mut Choices<'_>) -> Vec<u8> {
    let ports = choices.one_of(&[(40_000, 80), (80, 40_000), (53, 53)]);
    match choices.below(8) {
        0..=4 => {
            let flags = choices.one_of(&[2, 18, 16, 16, 24, 17, 4, 20, 0, 63]);
            let segment = packets::tcp((from, ports.0), (to, ports.1), flags);
            packets::with_numbers(segment, choices.one_of(&[0, 7]), choices.one_of(&[1, 0, 8]))
        }
        5 | 6 => packets::udp((from, ports.0), (to, ports.1), b"what a long question it is"),
        _ => packets::echo(from, to, choices.one_of(&[7, 0]), choices.byte() & 1 == 0),
    }
}

/// The packet, or what noise makes of it.
pub fn mutated(mut packet: Vec<u8>, choices: &mut Choices<'_>) -> Vec<u8> {
    match choices.below(4) {
        0 | 1 => {}
        2 => packet.truncate(choices.below(packet.len() + 1).max(crate::wire::eth::LEN)),
        _ => {
            for _ in 0..=choices.below(4) {
                // Most noise hits the headers.
                let at = choices.below(packet.len().min(90));
                packet[at] = choices.byte();
            }
        }
    }
    packet
}

/// Runs the packets that `bytes` describe through the hooks that ask policies, and has each judged.
///
/// # Panics
/// When a packet passes that a policy denies, or is refused in the name of one that allows it.
pub fn run_judged(bytes: &[u8]) {
    const JUDGED: [HookId; 4] =
        [HookId::FromContainer, HookId::FromOverlay, HookId::FromNetdev, HookId::ToContainer];
    let mut choices = Choices(bytes);
    let mut node = example::node();
    node.config.enable_host_firewall = choices.byte() & 1;
    let mut judge = Judge::default();
    change_policies(&mut node, &mut choices);
    while !choices.is_empty() {
        let novelty = choices.below(32);
        if novelty < 2 {
            change_policies(&mut node, &mut choices);
        } else if novelty == 2 {
            node.now.set(node.now.get() + choices.one_of(&[1_u32, 12, 70]));
        }
        let hook = choices.one_of(&JUDGED);
        let before = frame(&mut choices);
        let (verdict, reason) = step(hook, &node, before.clone());
        judge.check(hook, &node, &before, verdict, reason);
    }
}

/// Runs a packet through a hook, and checks what every hook promises.
fn step(hook: HookId, node: &Node, before: Frame) -> (Verdict, Option<DropReason>) {
    let counted = node.metrics.borrow().clone();
    let mut after = before.clone();
    let verdict = super::run(hook, &mut after, node);
    check(node, &before, &after, verdict);

    // Every packet is counted at most once as forwarded and at most once as dropped, never both.
    let increments = |slot: u32| {
        let now = node.metrics.borrow().get(&slot).map_or(0, |value| value.count);
        now - counted.get(&slot).map_or(0, |value| value.count)
    };
    let directions = [Direction::Ingress, Direction::Egress];
    let by_reason = |reason: u8| -> u64 {
        directions.map(|d| increments(metrics::index(reason, d))).iter().sum()
    };
    let reasons = DropReason::ALL.iter().filter(|reason| by_reason(reason.number()) != 0);
    let dropped: u64 = reasons.clone().map(|reason| by_reason(reason.number())).sum();
    let shown_to_stack = by_reason(DropReason::TtlExceeded.number());
    let is_dropped = verdict == Verdict::Drop || (verdict == Verdict::Pass && shown_to_stack == 1);
    assert_eq!(dropped, u64::from(is_dropped), "{before:?}");
    assert!(by_reason(0) + dropped <= 1, "{before:?}");
    (verdict, reasons.copied().next())
}

/// What every hook promises of every packet.
fn check(node: &Node, before: &Frame, after: &Frame, verdict: Verdict) {
    assert_eq!(verdict == Verdict::Redirect, after.target.is_some(), "{before:?} {verdict:?}");
    assert_eq!(before.bytes.len(), after.bytes.len(), "{before:?}");
    assert!(after.routed.borrow().len() <= 1, "{before:?}");
    if let Some(Target::Peer(ifindex)) = after.target {
        // Nothing is delivered but to the pod that has the address, under its MAC address.
        let pod = [POD_A, POD_B].into_iter().find(|pod| pod.ifindex == ifindex).expect("a pod");
        assert_eq!(after.bytes[..6], pod.mac, "{before:?}");
        assert_eq!(after.bytes[6..12], pod.node_mac, "{before:?}");
    }
    // A valid packet stays valid.
    if is_ip(&before.bytes) && packets_are_whole(before) && verdict != Verdict::Drop {
        assert!(packets::is_valid(&after.bytes), "{before:?} {after:?}");
    }
    for event in after.events.borrow().iter() {
        let (wanted, len_cap, captured) = match event {
            Event::Trace(event, packet) => (4, event.header.len_cap, packet.len()),
            Event::Verdict(event, packet) => (5, event.header.len_cap, packet.len()),
            Event::Drop(event, packet) => (1, event.header.len_cap, packet.len()),
            Event::Debug(_) => (2, 0, 0),
        };
        assert!(node.listeners >> wanted & 1 != 0, "nobody listens: {event:?}");
        assert_eq!(usize::from(len_cap), captured);
        assert!(u32::from(len_cap) <= node.config.trace_payload_len);
    }
}

fn is_ip(bytes: &[u8]) -> bool {
    let ethertype = bytes.get(12..14);
    ethertype == Some(&crate::wire::eth::IPV4) || ethertype == Some(&crate::wire::eth::IPV6)
}

/// Whether the packet is whole and all its checksums are right.
fn packets_are_whole(frame: &Frame) -> bool {
    let bytes = &frame.bytes;
    let l3_len = bytes.len() - crate::wire::eth::LEN;
    let stated = if bytes[12..14] == crate::wire::eth::IPV4 {
        (l3_len >= 20 && bytes[14] == 0x45)
            .then(|| usize::from(u16::from_be_bytes([bytes[16], bytes[17]])))
    } else {
        (l3_len >= 40 && bytes[14] >> 4 == 6)
            .then(|| usize::from(u16::from_be_bytes([bytes[18], bytes[19]])) + 40)
    };
    stated == Some(l3_len) && packets::is_valid(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hooks_keep_their_promises_on_random_packets() {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut random = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        };
        for hook in HOOKS {
            for _ in 0..1_500 {
                let bytes: Vec<u8> = (0..16).flat_map(|_| random().to_le_bytes()).collect();
                run(hook, &bytes);
            }
        }
        for _ in 0..800 {
            let bytes: Vec<u8> = (0..200).flat_map(|_| random().to_le_bytes()).collect();
            run_judged(&bytes);
        }
    }
}
