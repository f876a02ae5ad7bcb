//! Packets through the hooks of the example node, each test like a packet trace: what came, where
//! it went, what it then looked like, what was counted, and how many lookups that took.

use std::net::{IpAddr, Ipv6Addr};

use abi::config::{AGGREGATION_MEDIUM, TUNNEL_OFF};
use abi::event::{EventType, HookId, ObservationPoint};
use abi::metrics::{self, Direction};
use abi::{DropReason, identity, mark};
use datapath::Verdict;
use datapath::host::example::{self, Both, POD_A, POD_B};
use datapath::host::packets::{self, is_valid, tcp, with_hop_limit};
use datapath::host::{Event, Frame, Node, Operations, Target, run};
use datapath::packet::{AF_INET, AF_INET6, NetworkAddress, Route};

const IPV6: [bool; 2] = [false, true];

/// One packet, before and after.
struct Trace {
    node: Node,
    before: Vec<u8>,
    after: Frame,
    verdict: Verdict,
}

/// Sends a frame through a hook of the example node.
fn pass(hook: HookId, node: Node, mut frame: Frame) -> Trace {
    let before = frame.bytes.clone();
    let verdict = run(hook, &mut frame, &node);
    Trace { node, before, after: frame, verdict }
}

fn from_pod(bytes: Vec<u8>) -> Trace {
    pass(HookId::FromContainer, example::node(), Frame::new(bytes, POD_A.ifindex))
}

impl Trace {
    #[track_caller]
    fn goes(&self, target: Target) -> &Self {
        assert_eq!(self.after.target, Some(target), "{}", self.world());
        assert_eq!(self.verdict, Verdict::Redirect, "{}", self.world());
        self
    }

    #[track_caller]
    fn passes(&self) -> &Self {
        assert_eq!((self.verdict, self.after.target), (Verdict::Pass, None), "{}", self.world());
        self
    }

    #[track_caller]
    fn dropped(&self, reason: DropReason, direction: Direction) -> &Self {
        assert_eq!(self.verdict, Verdict::Drop, "{}", self.world());
        self.counted(&[(reason.number(), direction)])
    }

    /// Exactly these counters went up, by this packet.
    #[track_caller]
    fn counted(&self, expected: &[(u8, Direction)]) -> &Self {
        let mut expected: Vec<u32> = expected.iter().map(|(r, d)| metrics::index(*r, *d)).collect();
        expected.sort_unstable();
        let counters = self.node.metrics.borrow();
        let slots: Vec<u32> = counters.keys().copied().collect();
        assert_eq!(slots, expected, "{}", self.world());
        let len = self.before.len() as u64;
        assert!(counters.values().all(|v| (v.count, v.bytes) == (1, len)), "{}", self.world());
        self
    }

    #[track_caller]
    fn asked(&self, device: u32, endpoint: u32, host: u32, prefix: u32) -> &Self {
        let operations = self.node.operations.get();
        let expected = Operations { device, endpoint, host, prefix, ..operations };
        assert_eq!(operations, expected, "{}", self.world());
        self
    }

    #[track_caller]
    fn addressed(&self, target: [u8; 6], source: [u8; 6]) -> &Self {
        assert_eq!(self.after.bytes[..12], [target, source].concat(), "{}", self.world());
        self
    }

    /// The IP packet is the one that came, with a hop limit this much lower.
    #[track_caller]
    fn hops(&self, hops: u8) -> &Self {
        let (at, len) = if self.before[12..14] == [0x86, 0xdd] { (21, 54) } else { (22, 34) };
        assert_eq!(self.before[at] - self.after.bytes[at], hops, "{}", self.world());
        assert_eq!(self.before[len..], self.after.bytes[len..], "{}", self.world());
        assert!(is_valid(&self.after.bytes), "{}", self.world());
        self
    }

    #[track_caller]
    fn marked(&self, expected: u32) -> &Self {
        assert_eq!(self.after.mark, expected, "{}", self.world());
        self
    }

    fn world(&self) -> String {
        format!("came {:02x?}\nleft {:02x?}\n{:?}", self.before, self.after, self.node.metrics)
    }
}

fn hello(from: Both, to: Both, is_v6: bool) -> Vec<u8> {
    tcp((from.of(is_v6), 40_000), (to.of(is_v6), 80), 2)
}

const fn egress(reason: u8) -> (u8, Direction) {
    (reason, Direction::Egress)
}

const fn ingress(reason: u8) -> (u8, Direction) {
    (reason, Direction::Ingress)
}

fn identity_mark(identity: u32) -> u32 {
    mark::with_identity(mark::IDENTITY, identity)
}

#[test]
fn a_pod_reaches_its_neighbour_with_two_lookups() {
    for is_v6 in IPV6 {
        from_pod(hello(POD_A.address, POD_B.address, is_v6))
            .goes(Target::Peer(POD_B.ifindex))
            .addressed(POD_B.mac, POD_B.node_mac)
            .hops(1)
            .counted(&[ingress(0)])
            .asked(1, 1, 0, 0)
            .marked(0);
    }
}

#[test]
fn a_pod_reaches_another_node_by_the_tunnel_with_three_lookups() {
    for is_v6 in IPV6 {
        let trace = from_pod(hello(POD_A.address, example::POD_C, is_v6));
        trace
            .goes(Target::Device(example::TUNNEL_IFINDEX))
            .hops(0)
            .counted(&[egress(0)])
            .asked(1, 1, 1, 0)
            .marked(identity_mark(POD_A.identity));
        let node = NetworkAddress {
            address_family: AF_INET,
            address: [u32::from_ne_bytes(example::NODE_2.v4.octets()), 0, 0, 0],
        };
        assert_eq!(trace.after.tunnel, Some((POD_A.identity, node)));

        // The other node may be reached over IPv6, whatever the pods speak.
        let trace = from_pod(hello(POD_A.address, example::POD_D, is_v6));
        let (vni, node) = trace.after.tunnel.expect("a tunnel");
        assert_eq!((vni, node.address_family), (POD_A.identity, AF_INET6));
        assert_eq!(datapath::family::Addr(node.address).bytes(), example::NODE_3.octets());

        // Only the prefix is known: the trie is asked after the hash.
        let trace = from_pod(hello(POD_A.address, example::POD_E, is_v6));
        trace.goes(Target::Device(example::TUNNEL_IFINDEX)).asked(1, 1, 1, 1);
    }
}

#[test]
fn a_pod_reaches_its_node_through_the_stack() {
    for is_v6 in IPV6 {
        for own in [example::NODE_1, example::ROUTER] {
            from_pod(hello(POD_A.address, own, is_v6))
                .passes()
                .hops(0)
                .counted(&[egress(0)])
                .asked(1, 1, 0, 0)
                .marked(identity_mark(POD_A.identity));
        }
    }
}

#[test]
fn a_pod_reaches_the_network_as_the_routing_table_says() {
    let neighbour = Route::Neighbour {
        ifindex: 9,
        target_mac: [2, 9, 9, 9, 9, 1, 0, 0],
        source_mac: [2, 9, 9, 9, 9, 2, 0, 0],
    };
    let next_hop = NetworkAddress { address_family: AF_INET, address: [7, 0, 0, 0] };
    let resolve = Route::Resolve { ifindex: 9, next_hop };
    let send = |to: Both, is_v6, route| {
        let mut frame = Frame::new(hello(POD_A.address, to, is_v6), POD_A.ifindex);
        frame.route = route;
        pass(HookId::FromContainer, example::node(), frame)
    };
    for is_v6 in IPV6 {
        for to in [example::WORLD, example::CIDR, example::NODE_2] {
            send(to, is_v6, neighbour)
                .goes(Target::Device(9))
                .addressed([2, 9, 9, 9, 9, 1], [2, 9, 9, 9, 9, 2])
                .hops(1)
                .counted(&[egress(0)])
                .marked(identity_mark(POD_A.identity));
            send(to, is_v6, resolve).goes(Target::Neighbour(9, next_hop)).hops(1);
            // The stack counts the hop itself.
            send(to, is_v6, Route::Stack).passes().hops(0).counted(&[egress(0)]);
            send(to, is_v6, Route::Blackhole).dropped(DropReason::NoFib, Direction::Egress);
        }
        let trace = send(example::WORLD, is_v6, neighbour);
        let query = trace.after.routed.borrow()[0];
        assert_eq!(query.ifindex, POD_A.ifindex);
        assert_eq!(query.protocol, packets::TCP);
        assert_eq!(query.address_family, if is_v6 { AF_INET6 } else { AF_INET });
    }
}

#[test]
fn in_native_mode_pods_of_other_nodes_are_routed() {
    for is_v6 in IPV6 {
        let mut node = example::node();
        node.config.tunnel = TUNNEL_OFF;
        let mut frame = Frame::new(hello(POD_A.address, example::POD_C, is_v6), POD_A.ifindex);
        frame.route = Route::Neighbour { ifindex: 9, target_mac: [6; 8], source_mac: [7; 8] };
        let trace = pass(HookId::FromContainer, node, frame);
        trace.goes(Target::Device(9)).hops(1).asked(1, 1, 1, 0);
        assert_eq!(trace.after.tunnel, None);
    }
}

#[test]
fn in_native_mode_a_node_on_our_link_is_the_next_hop() {
    let next_hop = NetworkAddress {
        address_family: AF_INET,
        address: [u32::from_ne_bytes(example::NODE_2.v4.octets()), 0, 0, 0],
    };
    let send = |to: Both, is_v6, mtu| {
        let mut node = example::node();
        node.config.tunnel = TUNNEL_OFF;
        node.config.direct_ifindex = 9;
        node.config.direct_mtu = mtu;
        let frame = Frame::new(hello(POD_A.address, to, is_v6), POD_A.ifindex);
        pass(HookId::FromContainer, node, frame)
    };
    let trace = send(example::POD_C, false, 1500);
    trace
        .goes(Target::Neighbour(9, next_hop))
        .hops(1)
        .counted(&[egress(0)])
        .asked(1, 1, 1, 0)
        .marked(identity_mark(POD_A.identity));
    assert!(trace.after.routed.borrow().is_empty());
    // IPv6 behind a node of IPv4, a packet of 40 bytes over a link of 39, and no pod at all: the
    // routing table is asked.
    for asks in [
        send(example::POD_C, true, 1500),
        send(example::POD_C, false, 39),
        send(example::NODE_2, false, 1500),
    ] {
        asks.passes();
        assert_eq!(asks.after.routed.borrow().len(), 1);
    }
    send(example::POD_D, true, 1500).goes(Target::Neighbour(
        9,
        NetworkAddress {
            address_family: AF_INET6,
            address: datapath::family::Addr::from_v6(example::NODE_3.octets()).0,
        },
    ));
}

#[test]
fn a_foreign_source_address_is_dropped_counted_and_named() {
    for is_v6 in IPV6 {
        let mut node = example::node();
        node.listeners = EventType::Drop.listener_bit();
        let frame = Frame::new(hello(POD_B.address, example::POD_C, is_v6), POD_A.ifindex);
        let trace = pass(HookId::FromContainer, node, frame);
        trace.dropped(DropReason::InvalidSip, Direction::Egress).asked(1, 0, 0, 0);
        let events = trace.after.events.borrow();
        let [Event::Drop(event, packet)] = &events[..] else { panic!("{events:?}") };
        assert_eq!(event.header.event_type, EventType::Drop as u8);
        assert_eq!(event.header.subtype, DropReason::InvalidSip.number());
        assert_eq!((event.header.source, event.src_label), (POD_A.id, POD_A.identity));
        assert_eq!(event.header.len_orig as usize, trace.before.len());
        assert_eq!(event.header.len_cap as usize, packet.len());
        assert_eq!((event.file, event.ifindex), (HookId::FromContainer as u8, POD_A.ifindex));
        assert_eq!(event.flags, u8::from(is_v6));
        assert_eq!(packet[..], trace.before[..packet.len()]);
    }
    // A pod without an address of a family cannot send in it, not even from `0.0.0.0`.
    let mut node = example::node();
    node.devices.get_mut(&POD_A.ifindex).expect("pod A").ipv4 = [0; 4];
    let nobody = IpAddr::from([0, 0, 0, 0]);
    let bytes = tcp((nobody, 1), (POD_B.address.of(false), 2), 2);
    pass(HookId::FromContainer, node, Frame::new(bytes, POD_A.ifindex))
        .dropped(DropReason::InvalidSip, Direction::Egress);
}

#[test]
fn the_last_hop_is_not_taken() {
    for is_v6 in IPV6 {
        for hop_limit in [0, 1] {
            let packet = with_hop_limit(hello(POD_A.address, POD_B.address, is_v6), hop_limit);
            let trace = from_pod(packet);
            // The stack is shown it, drops it too, and tells the pod.
            trace.passes().counted(&[egress(DropReason::TtlExceeded.number())]);
            assert_eq!(trace.before, trace.after.bytes);
        }
        let packet = with_hop_limit(hello(POD_A.address, POD_B.address, is_v6), 2);
        from_pod(packet).goes(Target::Peer(POD_B.ifindex)).hops(1);
        // Neither the tunnel nor the way to the node is a hop of the packet's.
        from_pod(with_hop_limit(hello(POD_A.address, example::POD_C, is_v6), 1))
            .goes(Target::Device(example::TUNNEL_IFINDEX));
        from_pod(with_hop_limit(hello(POD_A.address, example::NODE_1, is_v6), 1)).passes();
    }
}

#[test]
fn broken_headers_are_dropped() {
    let good = |is_v6| hello(POD_A.address, POD_B.address, is_v6);
    let broken = |is_v6, at: usize, value: u8| {
        let mut packet = good(is_v6);
        packet[at] = value;
        packet
    };
    for (what, packet, reason) in [
        ("IPv4 version", broken(false, 14, 0x55), DropReason::Invalid),
        ("IPv4 header length", broken(false, 14, 0x44), DropReason::Invalid),
        ("IPv4 longer than the frame", broken(false, 16, 0xff), DropReason::Invalid),
        ("IPv4 shorter than its header", broken(false, 17, 19), DropReason::Invalid),
        ("IPv4 cut", good(false)[..33].to_vec(), DropReason::Invalid),
        ("IPv6 version", broken(true, 14, 0x40), DropReason::Invalid),
        ("IPv6 longer than the frame", broken(true, 18, 0xff), DropReason::Invalid),
        ("IPv6 cut", good(true)[..53].to_vec(), DropReason::Invalid),
        ("no IP", broken(false, 12, 0x81), DropReason::UnknownL3),
        ("a length for a type", broken(false, 12, 0x01), DropReason::UnsupportedL2),
    ] {
        let trace = from_pod(packet);
        assert_eq!(trace.verdict, Verdict::Drop, "{what}");
        trace.dropped(reason, Direction::Egress);
    }
}

#[test]
fn who_is_not_known_does_not_send() {
    let frame = Frame::new(hello(POD_A.address, POD_B.address, false), 7);
    pass(HookId::FromContainer, example::node(), frame)
        .dropped(DropReason::UnknownSender, Direction::Egress)
        .asked(1, 0, 0, 0);
}

#[test]
fn a_family_that_is_off_is_not_spoken() {
    for is_v6 in IPV6 {
        let mut node = example::node();
        let off = if is_v6 { &mut node.config.enable_ipv6 } else { &mut node.config.enable_ipv4 };
        *off = 0;
        let frame = Frame::new(hello(POD_A.address, POD_B.address, is_v6), POD_A.ifindex);
        pass(HookId::FromContainer, node, frame).dropped(DropReason::UnknownL3, Direction::Egress);
    }
}

#[test]
fn everybody_is_at_the_gateways_mac_address() {
    for target in [example::ROUTER.v4, POD_B.address.v4, example::WORLD.v4] {
        let ask = packets::arp_request(POD_A.mac, POD_A.address.v4, target);
        let trace = from_pod(ask);
        trace
            .goes(Target::Device(POD_A.ifindex))
            .addressed(POD_A.mac, POD_A.node_mac)
            .counted(&[])
            .asked(1, 0, 0, 0);
        let answer = &trace.after.bytes[14..];
        assert_eq!(answer[6..8], [0, 2], "a reply");
        assert_eq!((&answer[8..14], &answer[14..18]), (&POD_A.node_mac[..], &target.octets()[..]));
        let own = POD_A.address.v4.octets();
        assert_eq!((&answer[18..24], &answer[24..28]), (&POD_A.mac[..], &own[..]));
    }
    let ask = |sender, target| from_pod(packets::arp_request(POD_A.mac, sender, target));
    let own = POD_A.address.v4;
    // The pod's own address, before it uses it: nobody else has it.
    ask([0; 4].into(), own).dropped(DropReason::MulticastHandled, Direction::Egress);
    ask(own, own).dropped(DropReason::MulticastHandled, Direction::Egress);
    ask(POD_B.address.v4, example::ROUTER.v4).dropped(DropReason::InvalidSip, Direction::Egress);
    let mut reply = packets::arp_request(POD_A.mac, own, example::ROUTER.v4);
    reply[21] = 2;
    from_pod(reply).dropped(DropReason::UnknownL3, Direction::Egress);
}

const LINK_LOCAL: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0xa);

#[test]
fn neighbour_solicitations_are_answered_for_everybody_else() {
    let gateway = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0xfe);
    for source in [POD_A.address.v6, LINK_LOCAL] {
        for target in [example::ROUTER.v6, POD_B.address.v6, gateway] {
            let trace = from_pod(packets::neighbour_solicitation(POD_A.mac, source, target));
            trace
                .goes(Target::Device(POD_A.ifindex))
                .addressed(POD_A.mac, POD_A.node_mac)
                .counted(&[])
                .asked(1, 0, 0, 0);
            let bytes = &trace.after.bytes;
            assert!(is_valid(bytes), "{}", trace.world());
            assert_eq!(bytes[22..38], target.octets(), "from the target");
            assert_eq!(bytes[38..54], source.octets(), "to who asked");
            assert_eq!(bytes[54..59], [136, 0, bytes[56], bytes[57], 0xe0]);
            assert_eq!(bytes[62..78], target.octets());
            assert_eq!(bytes[78..86], [&[2, 1][..], &POD_A.node_mac].concat());
        }
    }
    // A unicast question has no option, and needs none in the answer.
    let mut ask = vec![135, 0, 0, 0, 0, 0, 0, 0];
    ask.extend_from_slice(&gateway.octets());
    let ask = packets::ip(POD_A.address.v6.into(), gateway.into(), 58, 255, ask, Some(2));
    let trace = from_pod(ask);
    trace.goes(Target::Device(POD_A.ifindex));
    assert!(is_valid(&trace.after.bytes), "{}", trace.world());
}

#[test]
fn a_pods_word_to_its_link_does_not_leave_it() {
    let own = POD_A.address.v6;
    let all_nodes = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
    let ask = |source, target| from_pod(packets::neighbour_solicitation(POD_A.mac, source, target));
    let say = |source, kind| from_pod(packets::icmp6_message(source, all_nodes, kind));
    let handled = DropReason::MulticastHandled;
    // Duplicate address detection, of its own addresses.
    ask(Ipv6Addr::UNSPECIFIED, own).dropped(handled, Direction::Egress);
    ask(Ipv6Addr::UNSPECIFIED, LINK_LOCAL).dropped(handled, Direction::Egress);
    ask(own, own).dropped(handled, Direction::Egress);
    // Looking for routers and reporting groups.
    say(LINK_LOCAL, 133).dropped(handled, Direction::Egress);
    say(LINK_LOCAL, 143).dropped(handled, Direction::Egress);
    say(Ipv6Addr::UNSPECIFIED, 143).dropped(handled, Direction::Egress);
    // It is no router.
    say(LINK_LOCAL, 134).dropped(DropReason::ForbiddenIcmp6, Direction::Egress);
    say(LINK_LOCAL, 137).dropped(DropReason::ForbiddenIcmp6, Direction::Egress);
    // From another link, and about a group.
    let forwarded = packets::neighbour_solicitation(POD_A.mac, own, example::ROUTER.v6);
    from_pod(with_hop_limit(forwarded, 254)).dropped(DropReason::Invalid, Direction::Egress);
    ask(own, all_nodes).dropped(DropReason::Invalid, Direction::Egress);
    // A link-local address is no source for anything else.
    let packet = tcp((LINK_LOCAL.into(), 1), (POD_B.address.of(true), 2), 2);
    from_pod(packet).dropped(DropReason::InvalidSip, Direction::Egress);
    // Groups are not served.
    let group = [224, 0, 0, 251].into();
    let from = POD_A.address.of(false);
    from_pod(packets::udp((from, 5353), (group, 5353), &[]))
        .dropped(DropReason::UnknownTarget, Direction::Egress);
    from_pod(packets::ip(from, group, 2, 1, vec![0; 8], None))
        .dropped(DropReason::IgmpHandled, Direction::Egress);
}

#[test]
fn from_the_tunnel_to_a_pod_the_vni_says_who_sends() {
    for is_v6 in IPV6 {
        let world = if is_v6 { identity::WORLD_IPV6 } else { identity::WORLD_IPV4 };
        for (vni, source) in [(20_003, 20_003), (6, identity::REMOTE_NODE), (2, world)] {
            let mut node = example::node();
            node.listeners = EventType::Trace.listener_bit();
            let mut frame =
                Frame::new(hello(example::POD_C, POD_B.address, is_v6), example::TUNNEL_IFINDEX);
            frame.vni = Some(vni);
            let trace = pass(HookId::FromOverlay, node, frame);
            trace
                .goes(Target::Peer(POD_B.ifindex))
                .addressed(POD_B.mac, POD_B.node_mac)
                .hops(1)
                .counted(&[ingress(0), ingress(3)])
                .asked(0, 1, 0, 0);
            let events = trace.after.events.borrow();
            let [Event::Trace(came, _), Event::Trace(left, _)] = &events[..] else {
                panic!("{events:?}")
            };
            assert_eq!(came.header.subtype, ObservationPoint::FromOverlay as u8);
            assert_eq!(left.header.subtype, ObservationPoint::ToEndpoint as u8);
            assert_eq!((came.src_label, left.src_label), (source, source));
            assert_eq!((left.dst_label, left.dst_id), (POD_B.identity, POD_B.id));
            assert_eq!((left.header.source, left.ifindex), (POD_B.id, POD_B.ifindex));
        }
    }
}

#[test]
fn from_the_tunnel_to_the_node_and_to_nobody() {
    for is_v6 in IPV6 {
        let receive = |to, vni| {
            let mut frame = Frame::new(hello(example::POD_C, to, is_v6), example::TUNNEL_IFINDEX);
            frame.vni = vni;
            pass(HookId::FromOverlay, example::node(), frame)
        };
        let trace = receive(example::ROUTER, Some(20_003));
        trace.passes().hops(0).marked(identity_mark(20_003));
        assert!(trace.after.is_for_host);
        receive(example::NOBODY, Some(20_003)).asked(0, 1, 0, 0);
        let drops = |trace: Trace, reason: DropReason, came_in: bool| {
            assert_eq!(trace.verdict, Verdict::Drop);
            let came = came_in.then_some(ingress(3));
            let slots: Vec<_> = came.into_iter().chain([ingress(reason.number())]).collect();
            trace.counted(&slots);
        };
        drops(receive(example::NOBODY, Some(20_003)), DropReason::Unroutable, true);
        drops(receive(POD_B.address, Some(1)), DropReason::InvalidIdentity, false);
        drops(receive(POD_B.address, None), DropReason::NoTunnelKey, false);
    }
}

#[test]
fn from_the_network() {
    for is_v6 in IPV6 {
        let receive = |from, to| {
            let frame = Frame::new(hello(from, to, is_v6), 3);
            pass(HookId::FromNetdev, example::node(), frame)
        };
        // To the node: one lookup, whoever sends.
        receive(example::NODE_2, example::NODE_1)
            .passes()
            .hops(0)
            .counted(&[ingress(3)])
            .asked(0, 1, 0, 0)
            .marked(0);
        receive(example::WORLD, example::NOBODY).passes().asked(0, 1, 0, 0);
        receive(example::POD_C, POD_B.address)
            .goes(Target::Peer(POD_B.ifindex))
            .addressed(POD_B.mac, POD_B.node_mac)
            .hops(1)
            .counted(&[ingress(0), ingress(3)])
            .asked(0, 1, 1, 0);
        receive(example::WORLD, POD_B.address).goes(Target::Peer(POD_B.ifindex)).asked(0, 1, 1, 1);
    }
    // What is not IP is the network's own.
    let arp = packets::arp_request([2; 6], example::NODE_2.v4, example::NODE_1.v4);
    pass(HookId::FromNetdev, example::node(), Frame::new(arp, 3)).passes().counted(&[]);
}

#[test]
fn a_pod_does_not_speak_for_others_through_a_nodes_tunnel_port() {
    let send = |to: Both, is_v6, headers: &[u8]| {
        let from = (POD_A.address.of(is_v6), 40_000);
        let packet = packets::udp(from, (to.of(is_v6), example::TUNNEL_PORT), &[8; 40]);
        from_pod(if is_v6 { packets::with_extension_headers(packet, headers) } else { packet })
    };
    for is_v6 in IPV6 {
        for headers in [&[][..], &[0], &[60, 43, 44, 51, 60, 135]] {
            for node in [example::NODE_1, example::NODE_2, example::WORLD] {
                send(node, is_v6, headers).dropped(DropReason::EncapProhibited, Direction::Egress);
            }
            // Pods do not decapsulate.
            send(POD_B.address, is_v6, headers).goes(Target::Peer(POD_B.ifindex));
            send(example::POD_C, is_v6, headers).goes(Target::Device(example::TUNNEL_IFINDEX));
        }
    }
    // Longer than we follow.
    send(example::NODE_2, true, &[0; 7]).dropped(DropReason::InvalidExthdr, Direction::Egress);
    // A port like any other where there is no tunnel.
    let mut node = example::node();
    node.config.tunnel_port = [0; 2];
    let from = (POD_A.address.of(false), 40_000);
    let to = (example::NODE_2.of(false), example::TUNNEL_PORT);
    let frame = Frame::new(packets::udp(from, to, &[]), POD_A.ifindex);
    pass(HookId::FromContainer, node, frame).passes();
}

#[test]
fn from_the_host() {
    for is_v6 in IPV6 {
        let send = |to, packet_mark| {
            let mut frame = Frame::new(hello(example::NODE_1, to, is_v6), 78);
            frame.mark = packet_mark;
            pass(HookId::FromHost, example::node(), frame)
        };
        // The pod's device is next, and counts the delivery.
        send(POD_B.address, 0)
            .goes(Target::Device(POD_B.ifindex))
            .addressed(POD_B.mac, POD_B.node_mac)
            .hops(0)
            .counted(&[ingress(3)])
            .asked(0, 1, 0, 0)
            .marked(identity_mark(identity::HOST));
        send(POD_B.address, identity_mark(20_009)).marked(identity_mark(20_009));
        let trace = send(example::POD_C, mark::HOST);
        trace
            .goes(Target::Device(example::TUNNEL_IFINDEX))
            .hops(0)
            .counted(&[egress(0), ingress(3)])
            .asked(0, 1, 1, 0);
        let (vni, _) = trace.after.tunnel.expect("a tunnel");
        assert_eq!(vni, identity::REMOTE_NODE, "our host is their remote node");
        for nowhere in [example::WORLD, example::NOBODY, example::NODE_2] {
            let trace = send(nowhere, 0);
            assert_eq!(trace.verdict, Verdict::Drop);
            trace.counted(&[ingress(3), egress(DropReason::Unroutable.number())]);
        }
        send(example::ROUTER, 0).passes();
    }
}

#[test]
fn to_a_pod_from_the_stack() {
    for is_v6 in IPV6 {
        let deliver = |listeners, packet_mark| {
            let mut node = example::node();
            node.listeners = listeners;
            let mut frame = Frame::new(hello(example::NODE_2, POD_B.address, is_v6), POD_B.ifindex);
            frame.mark = packet_mark;
            pass(HookId::ToContainer, node, frame)
        };
        // Who it was is in the mark, or only known by address.
        deliver(0, 0).passes().hops(0).counted(&[ingress(0)]).asked(1, 0, 1, 0);
        deliver(0, identity_mark(1)).passes().counted(&[ingress(0)]).asked(1, 0, 0, 0);
        let traces = EventType::Trace.listener_bit();
        for (packet_mark, source) in
            [(0, identity::REMOTE_NODE), (identity_mark(1), 1), (identity_mark(20_009), 20_009)]
        {
            let trace = deliver(traces, packet_mark);
            let events = trace.after.events.borrow();
            let [Event::Trace(event, _)] = &events[..] else { panic!("{events:?}") };
            assert_eq!((event.src_label, event.dst_label), (source, POD_B.identity));
            assert_eq!((event.header.source, event.dst_id), (POD_B.id, POD_B.id));
        }
    }
}

#[test]
fn the_mark_follows_a_packet_into_the_tunnel_and_out_of_the_node() {
    let packet = || hello(POD_A.address, example::POD_C, false);
    let pass_marked = |hook, packet_mark| {
        let mut node = example::node();
        node.listeners = EventType::Trace.listener_bit();
        let mut frame = Frame::new(packet(), 3);
        frame.mark = packet_mark;
        pass(hook, node, frame)
    };
    let inner = pass_marked(HookId::ToOverlay, identity_mark(20_001));
    inner.passes().counted(&[]).marked(mark::with_identity(mark::OVERLAY, 20_001));
    let outer = pass_marked(HookId::ToNetdev, inner.after.mark);
    outer.passes().counted(&[egress(0)]).asked(0, 0, 0, 0);
    let events = outer.after.events.borrow();
    let [Event::Trace(event, _)] = &events[..] else { panic!("{events:?}") };
    assert_eq!(event.header.subtype, ObservationPoint::ToNetwork as u8);
    assert_eq!(event.src_label, 20_001);
}

#[test]
fn events_are_sent_only_where_somebody_listens_and_aggregated() {
    let points = |listeners, aggregation| {
        let mut node = example::node();
        node.listeners = listeners;
        node.config.monitor_aggregation = aggregation;
        let frame = Frame::new(hello(POD_A.address, POD_B.address, false), POD_A.ifindex);
        let trace = pass(HookId::FromContainer, node, frame);
        let events = trace.after.events.borrow();
        let point = |event: &Event| match event {
            Event::Trace(event, _) => (4, event.header.subtype),
            Event::Drop(event, _) => (1, event.header.subtype),
            Event::Verdict(event, _) => (5, event.header.subtype),
            Event::Debug(event) => (2, event.subtype),
        };
        events.iter().map(point).collect::<Vec<_>>()
    };
    let (traces, debugs) = (EventType::Trace.listener_bit(), EventType::Debug.listener_bit());
    assert_eq!(points(0, 0), []);
    assert_eq!(points(traces, 0), [(4, 5), (4, 0)]);
    assert_eq!(points(traces, AGGREGATION_MEDIUM), [(4, 0)]);
    assert_eq!(points(debugs, 0), [(2, 2)]);
}
