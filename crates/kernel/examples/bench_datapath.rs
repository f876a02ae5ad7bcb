//! Nanoseconds per packet, per hook and path: `cargo xtask bench datapath`.
//!
//! Method: `BPF_PROG_TEST_RUN` of a wrapper that restores packet, mark and tunnel key before each
//! iteration and tail-calls the program; what the same wrapper costs around an empty program,
//! measured in the same round, is subtracted. Hot caches, one CPU, TCP without payload, 20,000
//! addresses in the ipcache, events compiled in and nobody listening. "established" flows have
//! completed their handshake; "new" packets have another source port each, 50,000 of them against
//! empty tables; "rules" are entries of each end's policy. Every round goes through all paths;
//! median, least and most of the rounds are shown. A figure is the program's own cost: no allocation
//! of a packet, no redirect carried out, no driver.

#[path = "../tests/kernel/fixture.rs"]
#[expect(dead_code, reason = "tests use more of it")]
mod fixture;
#[path = "../tests/kernel/harness.rs"]
#[expect(dead_code, reason = "tests use more of it")]
mod harness;

use std::{fs, net::IpAddr, path::Path};

use abi::{
    AddressKey,
    address::FAMILY_V4,
    config::AGGREGATION_MEDIUM,
    conntrack::{FLOW_F_AWAITS, FLOW_F_REPLIED, Flow, FlowKeyV4, FlowKeyV6},
    endpoint::{ENDPOINT_F_ENFORCE_EGRESS, ENDPOINT_F_ENFORCE_INGRESS, ENDPOINT_F_HOST},
    event::HookId,
    ipcache::RemoteEndpointInfo,
    names,
    policy::{
        POLICY_EGRESS, POLICY_INGRESS, POLICY_PREFIX_BITS_MAX, POLICY_PREFIX_SHIFT,
        PRECEDENCE_ALLOW, PolicyEntry, PolicyKey, PolicySlot, precedence,
    },
};
use datapath::flow::FlowKey;
use datapath::host::{
    Frame,
    example::{self, Both},
    packets,
};
use kernel::{
    datapath::{Datapath, LoadOptions, MapSizes, Maps},
    map::{BpfMap, Map as _, Plain},
};
use serde_json::json;
use zerocopy::FromBytes as _;

use crate::{
    fixture::{BPFFS, on_node},
    harness::{Harness, Network, fill},
};

const ITERATIONS: u32 = 200_000;
/// Iterations with a new flow each: fewer than the table of unproven flows holds.
const NEW_FLOWS: u32 = 50_000;
const SHOT: u32 = 2;

fn main() {
    on_node("bench_datapath", || {
        let Some(mut harness) = Harness::load() else {
            eprintln!("error: no target/bpf/harness.bpf.o: run `cargo xtask build-bpf`");
            std::process::exit(1);
        };
        pin_to_one_cpu();
        let _network = Network::new();
        let tunnel = load(abi::config::TUNNEL_VXLAN);
        let native = load(abi::config::TUNNEL_OFF);
        let mut measured: Vec<(Way, Vec<f64>)> =
            paths().into_iter().map(|path| (path, Vec::new())).collect();
        for round in 0..rounds() {
            for (path, values) in &mut measured {
                let datapath = if path.is_native { &native } else { &tunnel };
                let value = measure(&mut harness, datapath, path);
                // The first round warms up.
                if round > 0 {
                    values.push(value);
                }
            }
        }
        report(&measured);
    });
}

fn rounds() -> usize {
    let asked = std::env::var("XTASK_BENCH_REPETITIONS").ok().and_then(|text| text.parse().ok());
    1 + asked.unwrap_or(9)
}

/// One way through one program.
struct Way {
    program: &'static str,
    what: &'static str,
    family: &'static str,
    frame: Frame,
    is_native: bool,
    /// What it must reach, in nanoseconds.
    at_most: Option<f64>,
    /// Entries of both ends' policies; `None` where no policy selects them.
    rules: Option<u32>,
    flow: FlowState,
}

/// What the packets of a way are to their flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum FlowState {
    Established,
    New,
    /// The policy has no entry for them.
    Denied,
}

fn paths() -> Vec<Way> {
    let mut paths = Vec::new();
    for is_v6 in [false, true] {
        let family = if is_v6 { "IPv6" } else { "IPv4" };
        let tcp =
            |from: Both, to: Both| packets::tcp((from.of(is_v6), 40_000), (to.of(is_v6), 80), 0x10);
        let a = example::POD_A.address;
        let mut add = |program, what, bytes: Vec<u8>, is_native, at_most: [f64; 2]| {
            let mut frame = Frame::new(bytes, example::POD_A.ifindex);
            if program == names::FROM_OVERLAY {
                frame.vni = Some(20_003);
            }
            if program == names::TO_CONTAINER || program == names::TO_NETDEV {
                frame.mark = abi::mark::with_identity(abi::mark::IDENTITY, 20_003);
            }
            let at_most = Some(at_most[usize::from(is_v6)]).filter(|limit| *limit > 0.0);
            let (rules, flow) = (None, FlowState::Established);
            paths.push(Way { program, what, family, frame, is_native, at_most, rules, flow });
        };
        let free = [0.0; 2];
        // Half of what Cilium's programs need for the same, with policy and conntrack: those must
        // still come, so these figures must be well below.
        let local = [753.0 / 2.0, 811.0 / 2.0];
        let overlay = [394.0 / 2.0, 421.0 / 2.0];
        let routed = [493.0 / 2.0, 684.0 / 2.0];
        add(names::FROM_CONTAINER, "to a local pod", tcp(a, example::POD_B.address), false, local);
        add(names::FROM_CONTAINER, "to a pod, VXLAN", tcp(a, example::POD_C), false, overlay);
        // The node of the other pod is given by an address of the same family.
        let routed_pod = if is_v6 { example::POD_D } else { example::POD_C };
        add(names::FROM_CONTAINER, "to a pod, native", tcp(a, routed_pod), true, routed);
        add(names::FROM_CONTAINER, "to the node", tcp(a, example::NODE_1), false, free);
        add(names::FROM_CONTAINER, "to the world", tcp(a, example::WORLD), false, free);
        let asks = if is_v6 {
            let (own, gateway) = (a.v6, example::ROUTER.v6);
            packets::neighbour_solicitation(example::POD_A.mac, own, gateway)
        } else {
            packets::arp_request(example::POD_A.mac, a.v4, example::ROUTER.v4)
        };
        add(names::FROM_CONTAINER, "asks for its gateway", asks, false, free);
        let foreign = tcp(example::WORLD, example::POD_B.address);
        add(names::FROM_CONTAINER, "foreign source, dropped", foreign, false, free);
        add(names::TO_CONTAINER, "from the host", tcp(example::NODE_1, a), false, free);
        let to_node = tcp(example::NODE_2, example::NODE_1);
        add(names::FROM_NETDEV, "to the node", to_node.clone(), false, free);
        let to_pod = tcp(example::POD_C, example::POD_B.address);
        add(names::FROM_NETDEV, "to a local pod", to_pod.clone(), false, free);
        add(names::TO_NETDEV, "from a pod", to_node, false, free);
        add(names::FROM_OVERLAY, "to a local pod", to_pod, false, free);
        add(names::TO_OVERLAY, "from a pod", tcp(a, example::POD_C), false, free);
        let from_host = |to| tcp(example::NODE_1, to);
        add(names::FROM_HOST, "to a local pod", from_host(example::POD_B.address), false, free);
        add(names::FROM_HOST, "to a pod, VXLAN", from_host(example::POD_C), false, free);
        policy_paths(&mut paths, is_v6);
    }
    paths
}

/// What conntrack and policy cost, beside what Cilium's programs need: at most six tenths of it.
fn policy_paths(paths: &mut Vec<Way>, is_v6: bool) {
    let tcp = |from: Both, to: Both, flags| {
        packets::tcp((from.of(is_v6), 40_000), (to.of(is_v6), 80), flags)
    };
    let a = example::POD_A.address;
    let b = example::POD_B.address;
    let (new, deny) = if is_v6 { (2_538.0, 314.0) } else { (2_253.0, 281.0) };
    // Of 16,000 entries, by what theirs took with 15,911.
    let deny_many = if is_v6 { 360.0 } else { 344.0 };
    let established = if is_v6 { 811.0 } else { 753.0 };
    let ingress = if is_v6 { 663.0 } else { 590.0 };
    use FlowState::{Denied, Established, New};
    for (what, program, bytes, rules, flow, cilium) in [
        (
            "established, local pod, 10 rules",
            names::FROM_CONTAINER,
            tcp(a, b, 16),
            Some(10),
            Established,
            established,
        ),
        (
            "established, local pod, 1,000 rules",
            names::FROM_CONTAINER,
            tcp(a, b, 16),
            Some(1_000),
            Established,
            established,
        ),
        (
            "established, local pod, 16,000 rules",
            names::FROM_CONTAINER,
            tcp(a, b, 16),
            Some(16_000),
            Established,
            established,
        ),
        (
            "established, from the tunnel, 10 rules",
            names::FROM_OVERLAY,
            tcp(example::POD_C, b, 16),
            Some(10),
            Established,
            ingress,
        ),
        ("new, local pod", names::FROM_CONTAINER, tcp(a, b, 2), None, New, new),
        ("new, local pod, 10 rules", names::FROM_CONTAINER, tcp(a, b, 2), Some(10), New, new),
        (
            "new, local pod, 16,000 rules",
            names::FROM_CONTAINER,
            tcp(a, b, 2),
            Some(16_000),
            New,
            new,
        ),
        ("10 rules, dropped", names::FROM_CONTAINER, tcp(a, b, 2), Some(10), Denied, deny),
        (
            "16,000 rules, dropped",
            names::FROM_CONTAINER,
            tcp(a, b, 2),
            Some(16_000),
            Denied,
            deny_many,
        ),
    ] {
        let mut frame = Frame::new(bytes, example::POD_A.ifindex);
        frame.vni = (program == names::FROM_OVERLAY).then_some(example::POD_C_IDENTITY);
        let family = if is_v6 { "IPv6" } else { "IPv4" };
        let at_most = Some(0.6 * cilium);
        paths.push(Way { program, what, family, frame, is_native: false, at_most, rules, flow });
    }
}

/// Slot of the policy with this many entries.
fn slot(rules: u32) -> u32 {
    rules / 10 + 1
}

/// Entries that allow other peers and ports, and if `allows` what the packets here need.
fn policy(rules: u32, allows: bool) -> Vec<(PolicyKey, PolicyEntry)> {
    let entry = PolicyEntry {
        bits: 24 << POLICY_PREFIX_SHIFT,
        precedence: precedence(0, PRECEDENCE_ALLOW),
        ..PolicyEntry::default()
    };
    let key = |identity, direction, port: u16| PolicyKey {
        prefix_len: POLICY_PREFIX_BITS_MAX,
        slot: slot(rules) + u32::from(!allows),
        identity,
        direction,
        protocol: packets::TCP,
        dport: port.to_be_bytes(),
    };
    let peers = [example::POD_A.identity, example::POD_B.identity, example::POD_C_IDENTITY];
    let needed = peers.into_iter().flat_map(|peer| {
        [POLICY_INGRESS, POLICY_EGRESS].map(|direction| (key(peer, direction, 80), entry))
    });
    let other =
        (0..rules).map(|i| (key(1_000 + i, (i & 1) as u8, 1_000 + (i % 100) as u16), entry));
    needed.filter(|_| allows).chain(other).collect()
}

/// Both ends' rows with or without a policy, and the flows as `way` wants them.
fn prepare(datapath: &Datapath, way: &Way) {
    let maps = &datapath.maps;
    let mut node = harness::node(example::config());
    let flags = ENDPOINT_F_ENFORCE_INGRESS | ENDPOINT_F_ENFORCE_EGRESS;
    if let Some(rules) = way.rules {
        let policy_slot = slot(rules) + u32::from(way.flow == FlowState::Denied);
        node.revisions.insert(policy_slot, policy_slot);
        node.policy = policy(rules, true).into_iter().collect();
        for device in node.devices.values_mut() {
            (device.flags, device.policy_slot) = (flags, policy_slot);
        }
        for endpoint in node.endpoints.values_mut().filter(|e| e.flags & ENDPOINT_F_HOST == 0) {
            (endpoint.flags, endpoint.policy_slot) = (flags, policy_slot);
        }
        let row = PolicySlot { revision: policy_slot };
        maps.policy_revisions.update(&policy_slot, &row).expect("a revision");
    }
    for (ifindex, device) in &node.devices {
        maps.lxc_devices.update(ifindex, device).expect("a device");
    }
    for (key, endpoint) in &node.endpoints {
        maps.lxc.update(key, endpoint).expect("an endpoint");
    }
    forget(&maps.ct4_unassured);
    forget(&maps.ct6_unassured);
    forget(&maps.ct4_assured);
    forget(&maps.ct6_assured);
    if way.flow == FlowState::Established && is_between_pods(way) {
        establish(datapath, &node, way);
    }
}

/// Whether the way's packets are of a TCP flow that the programs track.
fn is_between_pods(way: &Way) -> bool {
    way.rules.is_some() || way.what.starts_with("to a")
}

/// Shakes hands on the host build, and carries the flow over.
fn establish(datapath: &Datapath, node: &datapath::host::Node, way: &Way) {
    let is_v6 = way.family == "IPv6";
    let l4 = if is_v6 { 54 } else { 34 };
    node.now.set(abi::conntrack::ticks(harness::monotonic_ns()));
    let flagged = |flags: u8, sequence, acknowledgement| {
        let mut frame = way.frame.clone();
        frame.bytes[l4 + 13] = flags;
        frame.bytes = packets::with_numbers(frame.bytes, sequence, acknowledgement);
        frame
    };
    let hook = if way.program == names::FROM_OVERLAY {
        HookId::FromOverlay
    } else if way.program == names::FROM_NETDEV {
        HookId::FromNetdev
    } else {
        HookId::FromContainer
    };
    datapath::host::run(hook, &mut flagged(2, 0, 0), node);
    // The answer, by whichever hook sees it: the flow is that of the first packet, turned round.
    for flow in node.flows.borrow_mut().unassured.values_mut() {
        flow.state |= FLOW_F_REPLIED | FLOW_F_AWAITS;
        flow.awaited = 8;
        flow.tcp_flags[1] = 18;
    }
    datapath::host::run(hook, &mut flagged(16, 1, 8), node);
    let flows = node.flows.borrow();
    for (key, flow) in &flows.assured {
        insert_flow(&datapath.maps, key, flow);
    }
}

/// Writes a proven flow of the host build into the kernel's table.
fn insert_flow(maps: &Maps, key: &FlowKey, flow: &Flow) {
    let bytes = harness::bytes_of_key(key);
    let length = "a key of its family";
    if key.family == FAMILY_V4 {
        let key = FlowKeyV4::read_from_bytes(&bytes).expect(length);
        maps.ct4_assured.update(&key, flow).expect("a flow");
    } else {
        let key = FlowKeyV6::read_from_bytes(&bytes).expect(length);
        maps.ct6_assured.update(&key, flow).expect("a flow");
    }
}

fn forget<K: Plain>(map: &BpfMap<K, Flow>) {
    for (key, _) in map.entries().expect("flows") {
        map.delete(&key).expect("it goes");
    }
}

fn load(tunnel: u8) -> Datapath {
    let config = abi::DatapathConfig {
        tunnel,
        monitor_aggregation: AGGREGATION_MEDIUM,
        // Another node on our link; its address is the next hop.
        direct_ifindex: if tunnel == abi::config::TUNNEL_OFF { 1 } else { 0 },
        direct_mtu: 1500,
        debug_events: 0,
        ..example::config()
    };
    let options = LoadOptions { bpffs: Path::new(BPFFS), config, sizes: MapSizes::default() };
    let datapath = match Datapath::load(&options) {
        Ok(datapath) => datapath,
        Err(error) => {
            eprintln!("error: {error}");
            std::process::exit(1);
        }
    };
    let node = harness::node(config);
    fill(&datapath.maps, &node);
    let entries: Vec<(AddressKey, RemoteEndpointInfo)> = (0..10_000_u32)
        .flat_map(|i| {
            let [_, b, c, d] = i.to_be_bytes();
            let v4 = IpAddr::from([10, 128 | b, c, d]);
            let v6 = IpAddr::from([0xfd00, 0x10, 0x99, 0, 0, 0, u16::from(b), i as u16]);
            [v4, v6].map(|address| {
                let value = RemoteEndpointInfo { sec_identity: 1_000 + i, ..Default::default() };
                (AddressKey::from(address), value)
            })
        })
        .collect();
    datapath.maps.ipcache_hosts.update_batch(&entries).expect("addresses");
    for rules in [10, 1_000, 16_000] {
        for allows in [true, false] {
            for (key, entry) in policy(rules, allows) {
                datapath.maps.policy.update(&key, &entry).expect("an entry");
            }
        }
    }
    datapath
}

/// Nanoseconds that the program takes for one packet.
fn measure(harness: &mut Harness, datapath: &Datapath, path: &Way) -> f64 {
    prepare(datapath, path);
    let l4 = if path.family == "IPv6" { 54 } else { 34 };
    let mut run = |program| {
        harness.select(program);
        match path.flow {
            FlowState::New => harness.run_counting(&path.frame, NEW_FLOWS, Some((l4, 1_000))),
            FlowState::Established | FlowState::Denied => harness.run(&path.frame, ITERATIONS),
        }
        .expect("a test run")
    };
    let before = f64::from(run(None).duration_ns);
    let with = run(Some((datapath, path.program)));
    let after = f64::from(run(None).duration_ns);
    let is_dropped = with.verdict == SHOT;
    let name = format!("{} {} {}", path.program, path.what, path.family);
    assert_eq!(is_dropped, path.what.ends_with("dropped"), "{name}: verdict {}", with.verdict);
    if path.what.ends_with("to a local pod") {
        assert_eq!(with.packet[..6], example::POD_B.mac, "{name}");
    }
    f64::from(with.duration_ns) - before.midpoint(after)
}

fn pin_to_one_cpu() {
    let mut cpus = nix::sched::CpuSet::new();
    let own = nix::unistd::Pid::from_raw(0);
    let pinned = cpus.set(0).and_then(|()| nix::sched::sched_setaffinity(own, &cpus));
    if let Err(error) = pinned {
        eprintln!("not pinned to one CPU: {error}");
    }
}

/// An established flow costs at most a twentieth more with a policy than with conntrack alone.
fn policy_limits(measured: &[(Way, Vec<f64>)]) -> Vec<(String, bool)> {
    let median = |what: &str, family: &str| {
        let is_meant = |(way, _): &&(Way, Vec<f64>)| {
            (way.program, way.what, way.family) == (names::FROM_CONTAINER, what, family)
        };
        let (_, values) = measured.iter().find(is_meant)?;
        let mut values = values.clone();
        values.sort_by(f64::total_cmp);
        Some(values[values.len() / 2])
    };
    let mut limits = Vec::new();
    for family in ["IPv4", "IPv6"] {
        for rules in ["10", "1,000", "16,000"] {
            let with = median(&format!("established, local pod, {rules} rules"), family);
            let (Some(with), Some(without)) = (with, median("to a local pod", family)) else {
                continue;
            };
            let ratio = with / without;
            let text = format!(
                "established, local pod, {rules} rules, {family}: {ratio:.3} of conntrack alone (at most 1.05)"
            );
            limits.push((text, ratio <= 1.05));
        }
    }
    limits
}

fn report(measured: &[(Way, Vec<f64>)]) {
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let kernel = format!("Linux {}", kernel.trim());
    println!("\ndatapath, {kernel}\n");
    println!("| program | path | family | median ns | min | max | at most |");
    println!("|---|---|---|---:|---:|---:|---:|");
    let (mut rows, mut limits) = (Vec::new(), Vec::new());
    for (path, values) in measured {
        let mut sorted = values.clone();
        sorted.sort_by(f64::total_cmp);
        let (median, min) = (sorted[sorted.len() / 2], sorted[0]);
        let max = sorted[sorted.len() - 1];
        let limit = path.at_most.map_or_else(String::new, |limit| format!("{limit:.0}"));
        println!(
            "| {} | {} | {} | {median:.0} | {min:.0} | {max:.0} | {limit} |",
            path.program, path.what, path.family
        );
        let metric = format!("{}, {}, ns", path.program, path.what);
        if let Some(at_most) = path.at_most {
            let text = format!("{metric}, {}: {median:.0} (at most {at_most:.0})", path.family);
            limits.push((text, median <= at_most));
        }
        rows.push(json!({
            "metric": metric, "variant": path.family, "median": median, "min": min, "max": max,
            "values": values, "ratio": null,
        }));
    }
    limits.extend(policy_limits(measured));
    println!();
    for (text, reached) in &limits {
        println!("{} {text}", if *reached { "reached:" } else { "MISSED: " });
    }
    let limit = |(text, reached): &(String, bool)| json!({ "limit": text, "reached": reached });
    let report = json!({
        "name": "datapath", "kernel": kernel, "rows": rows,
        "limits": limits.iter().map(limit).collect::<Vec<_>>(),
        "cpus": std::thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get),
        "method": "BPF_PROG_TEST_RUN, packet restored each iteration, empty program subtracted",
    });
    let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/../../target/bench");
    let file = format!("{dir}/datapath.json");
    let text = format!("{report:#}\n");
    match fs::create_dir_all(dir).and_then(|()| fs::write(&file, text)) {
        Ok(()) => println!("\nwrote target/bench/datapath.json"),
        Err(error) => eprintln!("error: cannot write {file}: {error}"),
    }
}
