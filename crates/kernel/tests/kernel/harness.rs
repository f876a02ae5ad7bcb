//! Programs under `BPF_PROG_TEST_RUN` with everything in place: the maps of the example node, the
//! routes around it, and a packet that is restored before each repetition (see
//! `crates/bpf/src/bin/harness.rs`). Used by the differential test and by `bench_datapath`.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::AsFd,
    path::Path,
};

use abi::address::FAMILY_V4;
use abi::conntrack::FlowKeyV4;
use abi::names;

use aya::{
    Ebpf, EbpfLoader,
    maps::{Array, ProgramArray},
    programs::SchedClassifier,
};
use datapath::flow::FlowKey;
use datapath::host::{Frame, Node, example};
use datapath::packet::{AF_INET, AF_INET6, NetworkAddress, Route};
use kernel::{
    datapath::{Datapath, Maps},
    map::Map as _,
    netlink::{self, Link, Mac, Netlink, RouteKind, VethSpec},
    sysctl,
    test_run::{self, SkbContext, TestRun},
};

use zerocopy::IntoBytes as _;

use crate::fixture::BPFFS;

/// Where `cargo xtask build-bpf` leaves the harness.
const OBJECT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../target/bpf/harness.bpf.o");
/// Bytes of a packet that the harness restores.
const TEMPLATE_LEN_MAX: usize = 128;

/// The struct of the same name in the harness.
#[derive(Clone, Copy)]
#[repr(C)]
struct Template {
    len: u32,
    mark: u32,
    has_tunnel_key: u32,
    vni: u32,
    counted_at: u32,
    count: u32,
    bytes: [u8; TEMPLATE_LEN_MAX],
}

// SAFETY: five kinds of integers without padding.
unsafe impl aya::Pod for Template {}

/// The harness, loaded.
pub(crate) struct Harness {
    ebpf: Ebpf,
}

impl Harness {
    /// Loads the harness; `None` when it was not built.
    pub(crate) fn load() -> Option<Self> {
        let object = std::fs::read(Path::new(OBJECT)).ok()?;
        let mut ebpf = EbpfLoader::new().load(&object).expect("the harness loads");
        for name in ["restore", "empty"] {
            let program = ebpf.program_mut(name).expect("a program of the harness");
            let program: &mut SchedClassifier = program.try_into().expect("a classifier");
            program.load().expect("the harness passes the verifier");
        }
        Some(Self { ebpf })
    }

    /// Which program runs next, by its name among the loaded ones; `None` is the empty one.
    pub(crate) fn select(&mut self, program: Option<(&Datapath, &str)>) {
        let program = match program {
            // Through its pin, since aya accepts only programs that it has opened.
            Some((datapath, name)) => {
                let generation = datapath.generation().to_string();
                let dir = Path::new(BPFFS).join(names::PROGRAMS_DIR).join(generation);
                SchedClassifier::from_pin(dir.join(name)).expect("the program's pin")
            }
            None => {
                let pin = Path::new(BPFFS).join("harness_empty");
                if !pin.exists() {
                    let empty = self.ebpf.program_mut("empty").expect("it is there");
                    empty.pin(&pin).expect("it can be pinned");
                }
                SchedClassifier::from_pin(pin).expect("the program's pin")
            }
        };
        let slots = self.ebpf.map_mut("program").expect("the slots");
        let mut slots = ProgramArray::try_from(slots).expect("a program array");
        slots.set(0, program.fd().expect("loaded"), 0).expect("the slot is set");
    }

    /// Runs the selected program on a packet.
    pub(crate) fn run(&mut self, frame: &Frame, repeat: u32) -> io::Result<TestRun> {
        self.run_counting(frame, repeat, None)
    }

    /// Runs the selected program on packets whose two bytes at an offset, a port, are another number
    /// in each, from this one on.
    pub(crate) fn run_counting(
        &mut self,
        frame: &Frame,
        repeat: u32,
        counted: Option<(usize, u16)>,
    ) -> io::Result<TestRun> {
        let mut template = Template {
            len: frame.bytes.len().min(TEMPLATE_LEN_MAX) as u32,
            mark: frame.mark,
            has_tunnel_key: u32::from(frame.vni.is_some()),
            vni: frame.vni.unwrap_or(0),
            counted_at: counted.map_or(0, |(at, _)| at as u32),
            count: counted.map_or(0, |(_, first)| u32::from(first)),
            bytes: [0; TEMPLATE_LEN_MAX],
        };
        let len = template.len as usize;
        template.bytes[..len].copy_from_slice(&frame.bytes[..len]);
        let map = self.ebpf.map_mut("template").expect("the template");
        let mut map: Array<_, Template> = Array::try_from(map).expect("an array");
        map.set(0, template, 0).expect("the template is set");

        let restore: &SchedClassifier =
            self.ebpf.program("restore").expect("it is there").try_into().expect("loaded");
        let context = SkbContext { ifindex: frame.ifindex, ..SkbContext::default() };
        test_run::run(restore.fd().expect("loaded").as_fd(), &frame.bytes, &context, repeat)
    }
}

/// Writes the maps of `node` into the kernel's.
pub(crate) fn fill(maps: &Maps, node: &Node) {
    for (key, value) in &node.devices {
        maps.lxc_devices.update(key, value).expect("a device");
    }
    for (key, value) in &node.endpoints {
        maps.lxc.update(key, value).expect("an endpoint");
    }
    for (key, value) in &node.hosts {
        maps.ipcache_hosts.update(key, value).expect("an address");
    }
    for (key, value) in &node.prefixes {
        maps.ipcache.update(key, value).expect("a prefix");
    }
}

/// Routes of the example node: IPv4 by a neighbour that is known, IPv6 by one that is not, and the
/// known prefix into a black hole.
pub(crate) struct Network {
    link: Link,
}

const GATEWAY_MAC: [u8; 6] = [2, 0xee, 0, 0, 0, 1];
const GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0xee, 0, 0, 0, 0, 0, 1);

impl Network {
    /// Makes the device and the routes in the namespace of the calling thread.
    pub(crate) fn new() -> Self {
        let netlink = Netlink::new().expect("a netlink socket");
        netlink
            .create_veth(&VethSpec { name: "out0", peer_name: "out1", ..VethSpec::default() })
            .expect("a veth pair");
        for name in ["out1", "out0"] {
            let index = netlink.link_by_name(name).expect("the device").index;
            netlink.set_no_link_local(index).expect("no link-local address");
            netlink.set_up(index).expect("up");
        }
        let link = netlink.link_by_name("out0").expect("the device");
        for name in ["net.ipv4.conf.all.forwarding", "net.ipv6.conf.all.forwarding"] {
            sysctl::set(name, "1").expect("forwarding");
        }
        let flags = netlink::AddressFlags { nodad: true, ..Default::default() };
        for address in ["192.0.2.2/24", "fd00:ee::2/64"] {
            let address = address.parse().expect("an address");
            netlink.add_address(link.index, address, flags).expect("address");
        }
        let gateway = IpAddr::from(Ipv4Addr::new(192, 0, 2, 1));
        netlink.set_neighbour(link.index, gateway, Mac(GATEWAY_MAC)).expect("a neighbour");
        for (dst, gateway) in [("0.0.0.0/0", gateway), ("::/0", GATEWAY_V6.into())] {
            let route = netlink::Route {
                gateway: Some(gateway),
                oif: Some(link.index),
                ..netlink::Route::new(dst.parse().expect("a prefix"))
            };
            netlink.replace_route(&route).expect("a default route");
        }
        for dst in ["203.0.113.0/24", "2001:db8:ff::/48"] {
            let route = netlink::Route {
                kind: RouteKind::Blackhole,
                ..netlink::Route::new(dst.parse().expect("a prefix"))
            };
            netlink.replace_route(&route).expect("a blackhole route");
        }
        Self { link }
    }

    /// What the routing table answers for the target of `frame`.
    pub(crate) fn route(&self, frame: &[u8]) -> Route {
        let ifindex = self.link.index;
        let v4 = |at: usize| frame.get(at..at + 4).and_then(|b| <[u8; 4]>::try_from(b).ok());
        let v6 = |at: usize| frame.get(at..at + 16).and_then(|b| <[u8; 16]>::try_from(b).ok());
        match frame.get(12..14) {
            Some([0x08, 0x00]) => {
                let target = Ipv4Addr::from(v4(30).unwrap_or_default());
                match target.octets() {
                    [203, 0, 113, _] => Route::Blackhole,
                    // The device's own network: nobody answers there but the gateway.
                    [192, 0, 2, 2 | 255] | [127, ..] => Route::Stack,
                    [192, 0, 2, last] if last != 1 => resolve(ifindex, target.into()),
                    _ => self.neighbour(),
                }
            }
            _ => {
                let target = Ipv6Addr::from(v6(38).unwrap_or_default());
                match target.segments() {
                    [0x2001, 0xdb8, 0xff, ..] => Route::Blackhole,
                    [0xfd00, 0xee, 0, 0, 0, 0, 0, 2] | [0, 0, 0, 0, 0, 0, 0, 1] => Route::Stack,
                    [0xfd00, 0xee, 0, 0, ..] => resolve(ifindex, target.into()),
                    _ => resolve(ifindex, GATEWAY_V6.into()),
                }
            }
        }
    }

    fn neighbour(&self) -> Route {
        let [a, b, c, d, e, f] = GATEWAY_MAC;
        let [g, h, i, j, k, l] = self.link.mac.0;
        Route::Neighbour {
            ifindex: self.link.index,
            target_mac: [a, b, c, d, e, f, 0, 0],
            source_mac: [g, h, i, j, k, l, 0, 0],
        }
    }
}

fn resolve(ifindex: u32, next_hop: IpAddr) -> Route {
    let address_family = if next_hop.is_ipv4() { AF_INET } else { AF_INET6 };
    let address = datapath::family::Addr::from_v6(abi::AddressKey::from(next_hop).addr).0;
    Route::Resolve { ifindex, next_hop: NetworkAddress { address_family, address } }
}

/// The counters, summed over CPUs.
pub(crate) fn counters(datapath: &Datapath) -> Vec<(u64, u64)> {
    (0..abi::metrics::METRICS_LEN)
        .map(|index| {
            let values = datapath.maps.metrics.values(index).expect("a counter");
            values.iter().fold((0, 0), |sum, v| (sum.0 + v.count, sum.1 + v.bytes))
        })
        .collect()
}

/// The example node with the configuration that the programs were loaded with.
pub(crate) fn node(config: abi::DatapathConfig) -> Node {
    Node { config, ..example::node() }
}

/// The clock of the programs.
pub(crate) fn monotonic_ns() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the call writes a struct that is ours.
    let failed = unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC_COARSE, &raw mut now) };
    assert_eq!(failed, 0, "there is a clock");
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// The key as it lies in the map of its family.
pub(crate) fn bytes_of_key(key: &FlowKey) -> Vec<u8> {
    let head = FlowKeyV4 {
        lower_port: key.lower_port.to_ne_bytes(),
        upper_port: key.upper_port.to_ne_bytes(),
        protocol: key.protocol,
        family: key.family,
        zone: key.zone,
        lower: key.ends[0].to_ne_bytes(),
        upper: key.ends[1].to_ne_bytes(),
    };
    if key.family == FAMILY_V4 {
        return head.as_bytes().to_vec();
    }
    [&head.as_bytes()[..8], key.ends.as_bytes()].concat()
}
