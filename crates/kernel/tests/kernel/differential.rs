//! The same packets, in the same order, to the host build of every hook and to the kernel's: verdict,
//! bytes, mark, counters and events must be equal after each.
//!
//! A test run in the kernel does not show where a packet was redirected, so that is compared
//! through what is done to the packet (MAC addresses), and by the lab's tests on real devices. A
//! tunnel key that the program sets cannot be read back. The packet's device is the loopback: that
//! of pod A. The kernel refuses packets shorter than an Ethernet header.

use std::{collections::BTreeMap, path::Path};

use abi::{
    DatapathConfig,
    conntrack::ticks,
    event::{DropNotify, EventType, PolicyVerdictNotify, TraceNotify},
    metrics::METRICS_LEN,
    names,
};
use datapath::host::{
    Event, Frame, Node, example,
    harness::{Choices, HOOKS, mutated, well_formed},
};
use kernel::datapath::{Datapath, LoadError, LoadOptions, MapSizes, Maps};
use kernel::events::{self, EventRings};
use kernel::map::{BpfMap, Map as _, Plain};
use zerocopy::IntoBytes as _;

use crate::fixture::{BPFFS, on_node};
use crate::harness::{Harness, Network, fill};

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
            }
        }
    });
}

const CONFIGURATIONS: [fn(&mut DatapathConfig); 5] = [
    |_| {},
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
        let mut node = crate::harness::node(config);
        let all = [EventType::Drop, EventType::Debug, EventType::Trace, EventType::PolicyVerdict];
        node.listeners = all.iter().map(|event| event.listener_bit()).sum();
        events::listen(&datapath.maps.runtime_config, &all).expect("events are wanted");
        let rings = EventRings::new(&datapath.maps.events).expect("rings");
        fill(&datapath.maps, &node);
        forget_flows(&datapath.maps);
        let counted_before = crate::harness::counters(datapath);
        Self { harness, network, datapath, node, counted_before, rings }
    }

    /// Changes the maps now and then, and compares what both builds make of a packet.
    fn step(&mut self, hook: abi::event::HookId, random: &mut Random) {
        let bytes: Vec<u8> = (0..8).flat_map(|_| random.next().to_le_bytes()).collect();
        let mut choices = Choices(&bytes);
        if choices.below(64) == 0 {
            self.change_maps(&mut choices);
        }
        let packet = mutated(well_formed(&mut choices), &mut choices);
        let mut frame = Frame::new(packet, example::POD_A.ifindex);
        frame.mark = choices.one_of(&[0, 0x4e21_0f00, 0x0c00, 0x4e21_0400, 0x0200, u32::MAX]);
        frame.vni = choices.one_of(&[Some(20_003), Some(1), Some(2), Some(6), None]);
        frame.route = self.network.route(&frame.bytes);

        self.node.now.set(ticks(monotonic_ns()));
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

    fn compare_counters(&self, hook: abi::event::HookId) {
        let after = crate::harness::counters(self.datapath);
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
    fn clear<K: Plain, V: Plain>(map: &BpfMap<K, V>) {
        for (key, _) in map.entries().expect("entries") {
            map.delete(&key).expect("it goes");
        }
    }
    clear(&maps.ct4_assured);
    clear(&maps.ct4_unassured);
    clear(&maps.ct6_assured);
    clear(&maps.ct6_unassured);
    clear(&maps.fragments);
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

/// The clock of the programs.
fn monotonic_ns() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the call writes a struct that is ours.
    let failed = unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC_COARSE, &raw mut now) };
    assert_eq!(failed, 0, "there is a clock");
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
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
