//! The same packets, in the same order, to the host build of every hook and to the kernel's: verdict,
//! bytes, mark, counters and events must be equal after each.
//!
//! A test run in the kernel does not show where a packet was redirected, so that is compared
//! through what is done to the packet (MAC addresses), and by the lab's tests on real devices. A
//! tunnel key that the program sets cannot be read back. Between packets, endpoints, addresses and
//! policies change and time passes; flows are compared now and then. The packet's device is the loopback: that
//! of pod A. The kernel refuses packets shorter than an Ethernet header.

use std::{
    collections::BTreeMap,
    path::Path,
    sync::atomic::{AtomicU32, Ordering},
};

use abi::{
    DatapathConfig,
    config::AGGREGATION_MEDIUM,
    conntrack::{Flow, ticks},
    event::{DropNotify, EventType, PolicyVerdictNotify, TraceNotify},
    metrics::METRICS_LEN,
    names,
    policy::PolicySlot,
};
use datapath::host::{
    Event, Frame, Node, example,
    harness::{Choices, HOOKS, SLOTS, change_policies, mutated, well_formed},
};
use kernel::datapath::{Datapath, LoadError, LoadOptions, MapSizes, Maps};
use kernel::events::{self, EventRings};
use kernel::map::{BpfMap, Map as _, Plain};
use zerocopy::IntoBytes as _;

use crate::fixture::{BPFFS, on_node};
use crate::harness::{self, Harness, Network, fill};

/// No revision is used twice, not even by another configuration.
static NEXT_REVISION: AtomicU32 = AtomicU32::new(1);

/// Packets per hook and configuration.
const PACKETS: u64 = 4_000;

#[test]
fn hooks_decide_alike_on_the_host_and_in_the_kernel() {
    const NAME: &str = "hooks_decide_alike_on_the_host_and_in_the_kernel";
    on_node(NAME, || {
        let Some(mut harness) = Harness::load() else {
            eprintln!("SKIPPED: {NAME}: no target/bpf/harness.bpf.o, run `cargo xtask build-bpf`");
            return;
        };
        let network = Network::new();
        for (i, change) in CONFIGURATIONS.iter().enumerate() {
            let mut config = example::config();
            change(&mut config);
            let sizes = MapSizes { ipcache: 1024, ipcache_hosts: 1024, ..MapSizes::default() };
            let options = LoadOptions { bpffs: Path::new(BPFFS), config, sizes };
            let datapath = match Datapath::load(&options) {
                Err(error @ LoadError::NotBuilt) => {
                    eprintln!("SKIPPED: {NAME}: {error}");
                    return;
                }
                loaded => loaded.unwrap_or_else(|error| panic!("{error}")),
            };
            let mut pair = Pair::new(&mut harness, &network, &datapath, config);
            for hook in HOOKS {
                let name = names::PROGRAMS[hook_index(hook)];
                if datapath.program(name).is_none() {
                    continue;
                }
                pair.harness.select(Some((&datapath, name)));
                let mut random = Random(0x9e37_79b9_7f4a_7c15 ^ (i as u64) << 32 ^ hook as u64);
                for _ in 0..PACKETS {
                    pair.step(hook, &mut random);
                }
                pair.compare_counters(hook);
                pair.compare_flows(hook);
            }
        }
    });
}

const CONFIGURATIONS: [fn(&mut DatapathConfig); 6] = [
    |_| {},
    |config| {
        config.enable_host_firewall = 1;
        config.monitor_aggregation = AGGREGATION_MEDIUM;
    },
    |config| config.tunnel = 0,
    |config| {
        config.tunnel = 0;
        config.direct_ifindex = 1;
        config.direct_mtu = 100;
    },
    |config| config.enable_ipv6 = 0,
    |config| config.enable_ipv4 = 0,
];

fn hook_index(hook: abi::event::HookId) -> usize {
    // `names::PROGRAMS` and `HookId` have the same order.
    hook as usize - 1
}

/// Both builds, with equal maps.
struct Pair<'a> {
    harness: &'a mut Harness,
    network: &'a Network,
    datapath: &'a Datapath,
    node: Node,
    counted_before: Vec<(u64, u64)>,
    rings: EventRings,
}

impl<'a> Pair<'a> {
    fn new(
        harness: &'a mut Harness,
        network: &'a Network,
        datapath: &'a Datapath,
        config: DatapathConfig,
    ) -> Self {
        let mut node = harness::node(config);
        let all = [EventType::Drop, EventType::Debug, EventType::Trace, EventType::PolicyVerdict];
        node.listeners = all.iter().map(|event| event.listener_bit()).sum();
        events::listen(&datapath.maps.runtime_config, &all).expect("events are wanted");
        let rings = EventRings::new(&datapath.maps.events).expect("rings");
        fill(&datapath.maps, &node);
        // Revisions are for ever.
        let first = NEXT_REVISION.fetch_add(100_000, Ordering::Relaxed);
        for (revision, slot) in (first..).zip(SLOTS) {
            node.revisions.insert(slot, revision);
            let row = PolicySlot { revision };
            datapath.maps.policy_revisions.update(&slot, &row).expect("a revision");
        }
        forget_flows(&datapath.maps);
        let counted_before = harness::counters(datapath);
        Self { harness, network, datapath, node, counted_before, rings }
    }

    /// Changes the maps now and then, and compares what both builds make of a packet.
    fn step(&mut self, hook: abi::event::HookId, random: &mut Random) {
        let bytes: Vec<u8> = (0..8).flat_map(|_| random.next().to_le_bytes()).collect();
        let mut choices = Choices(&bytes);
        match choices.below(128) {
            0 | 1 => self.change_maps(&mut choices),
            2 | 3 => self.change_policies(random),
            4 => self.age(choices.one_of(&[30, 90])),
            5 => self.compare_flows(hook),
            _ => {}
        }
        let packet = mutated(well_formed(&mut choices), &mut choices);
        let mut frame = Frame::new(packet, example::POD_A.ifindex);
        frame.mark = choices.one_of(&[0, 0x4e21_0f00, 0x0c00, 0x4e21_0400, 0x0200, u32::MAX]);
        frame.vni = choices.one_of(&[Some(20_003), Some(1), Some(2), Some(6), None]);
        frame.route = self.network.route(&frame.bytes);

        self.node.now.set(ticks(harness::monotonic_ns()));
        let before = frame.clone();
        let Ok(kernel) = self.harness.run(&frame, 1) else {
            // Too short for the kernel.
            return;
        };
        let verdict = datapath::host::run(hook, &mut frame, &self.node);
        assert_eq!(
            (kernel.verdict, &kernel.packet, kernel.context.mark),
            (verdict as u32, &frame.bytes, frame.mark),
            "{hook:?}: the kernel (left) and the host disagree on {before:02x?}\n{:?}",
            frame.target,
        );
        let mut in_kernel = Vec::new();
        self.rings.drain(usize::MAX, |event| in_kernel.push(without_hash(event.payload)));
        let on_host: Vec<_> = frame.events.borrow().iter().map(bytes_of).collect();
        assert_eq!(in_kernel, on_host, "{hook:?}: events of the kernel (left) and of the host");
    }

    /// Endpoints and addresses come and go, in both.
    fn change_maps(&mut self, choices: &mut Choices<'_>) {
        let pristine = example::node();
        let maps = &self.datapath.maps;
        let both = example::keys(choices.one_of(&[
            example::POD_B.address,
            example::POD_C,
            example::NODE_1,
        ]));
        for key in both {
            let (endpoint, host) = if choices.byte() & 1 == 0 {
                (None, None)
            } else {
                (pristine.endpoints.get(&key), pristine.hosts.get(&key))
            };
            match endpoint {
                Some(value) => {
                    maps.lxc.update(&key, value).expect("an endpoint");
                    self.node.endpoints.insert(key, *value);
                }
                None => {
                    maps.lxc.delete(&key).expect("no endpoint");
                    self.node.endpoints.remove(&key);
                }
            }
            match host {
                Some(value) => {
                    maps.ipcache_hosts.update(&key, value).expect("an address");
                    self.node.hosts.insert(key, *value);
                }
                None => {
                    maps.ipcache_hosts.delete(&key).expect("no address");
                    self.node.hosts.remove(&key);
                }
            }
        }
    }

    /// Other policies, in both.
    fn change_policies(&mut self, random: &mut Random) {
        let bytes: Vec<u8> = (0..64).flat_map(|_| random.next().to_le_bytes()).collect();
        change_policies(&mut self.node, &mut Choices(&bytes));
        let maps = &self.datapath.maps;
        clear(&maps.policy);
        for (key, entry) in &self.node.policy {
            maps.policy.update(key, entry).expect("an entry");
        }
        for (slot, revision) in &self.node.revisions {
            maps.policy_revisions
                .update(slot, &PolicySlot { revision: *revision })
                .expect("a revision");
        }
        for (ifindex, device) in &self.node.devices {
            maps.lxc_devices.update(ifindex, device).expect("a device");
        }
        for (key, endpoint) in &self.node.endpoints {
            maps.lxc.update(key, endpoint).expect("an endpoint");
        }
    }

    /// Time passes: all that is written down is `by` ticks older, in both.
    fn age(&mut self, by: u32) {
        fn earlier(flow: &mut Flow, by: u32) {
            flow.expires = flow.expires.saturating_sub(by);
            flow.created = flow.created.saturating_sub(by);
            flow.reported = flow.reported.map(|time| time.saturating_sub(by));
        }
        fn age_all<K: Plain>(map: &BpfMap<K, Flow>, by: u32) {
            for (key, mut flow) in map.entries().expect("flows") {
                earlier(&mut flow, by);
                map.update(&key, &flow).expect("a flow");
            }
        }
        let mut flows = self.node.flows.borrow_mut();
        flows.assured.values_mut().for_each(|flow| earlier(flow, by));
        flows.unassured.values_mut().for_each(|flow| earlier(flow, by));
        let maps = &self.datapath.maps;
        age_all(&maps.ct4_assured, by);
        age_all(&maps.ct4_unassured, by);
        age_all(&maps.ct6_assured, by);
        age_all(&maps.ct6_unassured, by);
    }

    /// The flows of both builds are the same, up to the tick in which they were written.
    fn compare_flows(&self, hook: abi::event::HookId) {
        fn flows<K: Plain>(map: &BpfMap<K, Flow>) -> BTreeMap<Vec<u8>, Flow> {
            let entries = map.entries().expect("flows");
            entries.into_iter().map(|(key, flow)| (key.as_bytes().to_vec(), flow)).collect()
        }
        let maps = &self.datapath.maps;
        let mut assured = flows(&maps.ct4_assured);
        assured.extend(flows(&maps.ct6_assured));
        let mut unassured = flows(&maps.ct4_unassured);
        unassured.extend(flows(&maps.ct6_unassured));
        let on_host = self.node.flows.borrow();
        for (what, in_kernel, on_host) in
            [("assured", assured, &on_host.assured), ("unassured", unassured, &on_host.unassured)]
        {
            assert_eq!(in_kernel.len(), on_host.len(), "{hook:?}: {what} flows");
            for (key, flow) in on_host {
                let found = in_kernel.get(&harness::bytes_of_key(key));
                let found = found.unwrap_or_else(|| panic!("{hook:?}: {what} {key:?} is missing"));
                let times =
                    |flow: &Flow| [flow.expires, flow.created, flow.reported[0], flow.reported[1]];
                let timeless =
                    |flow: &Flow| Flow { expires: 0, created: 0, reported: [0; 2], ..*flow };
                assert_eq!(timeless(found), timeless(flow), "{hook:?}: {what} {key:?}");
                for (left, right) in times(found).into_iter().zip(times(flow)) {
                    assert!(
                        left.abs_diff(right) <= 1,
                        "{hook:?}: {what} {key:?}: {found:?} {flow:?}"
                    );
                }
            }
        }
    }

    fn compare_counters(&self, hook: abi::event::HookId) {
        let after = harness::counters(self.datapath);
        let in_kernel: BTreeMap<u32, (u64, u64)> = (0..METRICS_LEN)
            .map(|i| {
                let (before, after) = (self.counted_before[i as usize], after[i as usize]);
                (i, (after.0 - before.0, after.1 - before.1))
            })
            .filter(|(_, counted)| *counted != (0, 0))
            .collect();
        let on_host: BTreeMap<u32, (u64, u64)> = self
            .node
            .metrics
            .borrow()
            .iter()
            .map(|(index, value)| (*index, (value.count, value.bytes)))
            .collect();
        assert_eq!(in_kernel, on_host, "{hook:?}: counters of the kernel (left) and of the host");
    }
}

/// Maps outlive the programs that an earlier configuration loaded.
fn forget_flows(maps: &Maps) {
    clear(&maps.ct4_assured);
    clear(&maps.ct4_unassured);
    clear(&maps.ct6_assured);
    clear(&maps.ct6_unassured);
    clear(&maps.fragments);
    clear(&maps.policy);
}

fn clear<K: Plain, V: Plain>(map: &BpfMap<K, V>) {
    for (key, _) in map.entries().expect("entries") {
        map.delete(&key).expect("it goes");
    }
}

/// An event as it lies in a ring, without the flow hash, which the host build does not know.
fn bytes_of(event: &Event) -> Vec<u8> {
    without_hash(&match event {
        Event::Trace(event, packet) => [event.as_bytes(), packet].concat(),
        Event::Drop(event, packet) => [event.as_bytes(), packet].concat(),
        Event::Verdict(event, packet) => [event.as_bytes(), packet].concat(),
        Event::Debug(event) => event.as_bytes().to_vec(),
    })
}

/// A record has room for a whole capture; what counts is `len_cap` bytes behind the struct.
fn without_hash(payload: &[u8]) -> Vec<u8> {
    let mut payload = payload.to_vec();
    payload[4..8].fill(0);
    let struct_len = match payload[0] {
        kind if kind == EventType::Drop as u8 => size_of::<DropNotify>(),
        kind if kind == EventType::Trace as u8 => size_of::<TraceNotify>(),
        kind if kind == EventType::PolicyVerdict as u8 => size_of::<PolicyVerdictNotify>(),
        _ => return payload,
    };
    let len_cap = usize::from(u16::from_ne_bytes([payload[12], payload[13]]));
    payload.truncate(struct_len + len_cap);
    payload
}

/// xorshift: the same packets in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}
