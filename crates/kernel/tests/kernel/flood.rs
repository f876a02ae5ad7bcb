//! Floods through the programs in the kernel: whatever comes, what is established stays.

use std::path::Path;

use abi::{config::TUNNEL_VXLAN, names};
use datapath::host::{Frame, example, packets};
use kernel::{
    datapath::{Datapath, LoadError, LoadOptions, MapSizes},
    map::Map as _,
};

use crate::{
    fixture::{BPFFS, on_node},
    harness::{Harness, Network, fill, node},
};

/// Connections that the flood must not touch.
const ESTABLISHED: u32 = 10_000;
/// Spoofed packets of each kind.
const FLOOD: u32 = 2_000_000;
/// Packets with another port each, from one address.
const PER_ADDRESS: u32 = 60_000;
const SHOT: u32 = 2;
/// Where the source port is in a frame of IPv4; the target port is behind it.
const SOURCE_PORT: usize = 34;
const TARGET_PORT: usize = 36;
const FIRST_PORT: u16 = 1_000;

/// The pod is the server, its port is open and answers everybody, as a port does that is flooded with
/// SYNs or with datagrams.
#[test]
fn a_flood_evicts_no_established_connection() {
    const NAME: &str = "a_flood_evicts_no_established_connection";
    on_node(NAME, || {
        let Some(harness) = Harness::load() else {
            eprintln!("SKIPPED: {NAME}: no target/bpf/harness.bpf.o, run `cargo xtask build-bpf`");
            return;
        };
        let _network = Network::new();
        let config = abi::DatapathConfig { tunnel: TUNNEL_VXLAN, ..example::config() };
        let sizes = MapSizes { ct_assured: 20_000, ct_unassured: 30_000, ..MapSizes::default() };
        let options = LoadOptions { bpffs: Path::new(BPFFS), config, sizes };
        let datapath = match Datapath::load(&options) {
            Err(error @ LoadError::NotBuilt) => {
                eprintln!("SKIPPED: {NAME}: {error}");
                return;
            }
            loaded => loaded.unwrap_or_else(|error| panic!("{error}")),
        };
        fill(&datapath.maps, &node(config));
        let mut pod = Server { harness, datapath };
        pod.shake_hands();
        let before = pod.established();
        assert_eq!(before.len(), ESTABLISHED as usize, "all are proven");

        let addresses = (FLOOD / if is_emulated() { 20 } else { 1 }).div_ceil(PER_ADDRESS);
        for address in 0..addresses {
            let spoofed = [198, 18, (address >> 8) as u8, address as u8];
            pod.exchange(spoofed, PER_ADDRESS, &[Segment::syn(), Segment::syn_ack()]);
            // Who did not hear the answer acknowledges at random.
            pod.exchange(
                spoofed,
                PER_ADDRESS,
                &[Segment { numbers: (6, 0x5eed_5eed), ..Segment::ack() }],
            );
            pod.datagrams(spoofed, PER_ADDRESS);
        }
        let after = pod.established();
        let came = after.iter().find(|flow| !before.contains(flow));
        let went = before.iter().find(|flow| !after.contains(flow));
        assert_eq!((came, went), (None, None), "{} flows before, {}", before.len(), after.len());
        // And they still run, in both directions.
        let client = example::WORLD.v4.octets();
        let answer = Segment { is_answer: true, numbers: (901, 6), ..Segment::ack() };
        pod.exchange(client, ESTABLISHED, &[Segment::ack(), answer]);
        assert!(pod.established() == before);
    });
}

struct Server {
    harness: Harness,
    datapath: Datapath,
}

/// A segment between a client and the server.
#[derive(Clone, Copy)]
struct Segment {
    is_answer: bool,
    flags: u8,
    numbers: (u32, u32),
}

impl Segment {
    fn syn() -> Self {
        Self { is_answer: false, flags: 2, numbers: (5, 0) }
    }

    fn syn_ack() -> Self {
        Self { is_answer: true, flags: 18, numbers: (900, 6) }
    }

    fn ack() -> Self {
        Self { is_answer: false, flags: 16, numbers: (6, 901) }
    }
}

impl Server {
    /// A client establishes connections from as many ports.
    fn shake_hands(&mut self) {
        let client = example::WORLD.v4.octets();
        let handshake = [Segment::syn(), Segment::syn_ack(), Segment::ack()];
        self.exchange(client, ESTABLISHED, &handshake);
    }

    /// The client at an address says this, and hears that, from each of its ports.
    fn exchange(&mut self, client: [u8; 4], ports: u32, segments: &[Segment]) {
        let (client, server) = ((client.into(), 0), (example::POD_A.address.v4.into(), 80));
        for segment in segments {
            let (from, to) = if segment.is_answer { (server, client) } else { (client, server) };
            let packet = packets::tcp(from, to, segment.flags);
            let (sequence, acknowledgement) = segment.numbers;
            let packet = packets::with_numbers(packet, sequence, acknowledgement);
            self.run(packet, segment.is_answer, ports);
        }
    }

    /// A question from each port, and its answer.
    fn datagrams(&mut self, client: [u8; 4], ports: u32) {
        let (client, server) = ((client.into(), 0), (example::POD_A.address.v4.into(), 53));
        self.run(packets::udp(client, server, b"?"), false, ports);
        self.run(packets::udp(server, client, b"!"), true, ports);
    }

    fn run(&mut self, packet: Vec<u8>, is_answer: bool, ports: u32) {
        let (program, at) = if is_answer {
            (names::FROM_CONTAINER, TARGET_PORT)
        } else {
            (names::FROM_NETDEV, SOURCE_PORT)
        };
        self.harness.select(Some((&self.datapath, program)));
        let frame = Frame::new(packet, example::POD_A.ifindex);
        let run = self.harness.run_counting(&frame, ports, Some((at, FIRST_PORT))).expect("a run");
        assert_ne!(run.verdict, SHOT, "{program} lets it pass");
    }

    /// The proven flows, without their times.
    fn established(&self) -> Vec<(abi::conntrack::FlowKeyV4, u8)> {
        let entries = self.datapath.maps.ct4_assured.entries().expect("flows");
        let mut flows: Vec<_> = entries.into_iter().map(|(key, flow)| (key, flow.state)).collect();
        flows.sort();
        flows
    }
}

/// Whether the CPU is emulated, and twenty times slower.
fn is_emulated() -> bool {
    let cpu = std::fs::read_to_string("/proc/cpuinfo").expect("/proc/cpuinfo");
    cpu.contains("QEMU")
}
