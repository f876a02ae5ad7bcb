//! A node for a test: network and mount namespaces of its own with a private BPF file system.
//! All of it goes with the thread that the test runs on, whatever happens.

use std::{fs, panic, path::Path, thread, time::Duration};

use abi::DatapathConfig;
use kernel::{
    bpffs,
    datapath::{Datapath, LoadError, LoadOptions, MapSizes},
    netlink::{Link, Netlink, VethSpec},
    netns::Netns,
    requirements,
};
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};

/// Where the private BPF file system of a test is.
pub(crate) const BPFFS: &str = "/sys/fs/bpf";

/// Runs a test on a node of its own, or says why it cannot run here.
#[track_caller]
pub(crate) fn on_node(test: &str, run: impl FnOnce() + Send) {
    if let Err(missing) = requirements::root().and_then(|()| requirements::bpf()) {
        eprintln!("SKIPPED: {test}: {missing}");
        return;
    }
    thread::scope(|scope| {
        let node = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET).expect("namespaces");
            let private = MsFlags::MS_PRIVATE | MsFlags::MS_REC;
            mount(None::<&str>, "/", None::<&str>, private, None::<&str>).expect("private mounts");
            // Not `bpffs::mount`: one that is there belongs to the machine.
            mount(Some("bpffs"), BPFFS, Some("bpf"), MsFlags::empty(), None::<&str>)
                .expect("a BPF file system");
            assert!(bpffs::mounted(Path::new(BPFFS)));
            let netlink = Netlink::new().expect("a netlink socket");
            netlink.set_up(1).expect("loopback up");
            run();
        });
        if let Err(cause) = node.join() {
            panic::resume_unwind(cause);
        }
    });
}

/// Loads the programs with everything on.
pub(crate) fn load(test: &str, sizes: MapSizes) -> Option<Datapath> {
    let config = DatapathConfig {
        enable_ipv4: 1,
        enable_ipv6: 1,
        tunnel: abi::config::TUNNEL_VXLAN,
        tunnel_ifindex: 1,
        host_ifindex: 1,
        trace_payload_len: 128,
        drop_events: 1,
        trace_events: 1,
        ..DatapathConfig::default()
    };
    match Datapath::load(&LoadOptions { bpffs: Path::new(BPFFS), config, sizes }) {
        Err(error @ LoadError::NotBuilt) => {
            eprintln!("SKIPPED: {test}: {error}");
            None
        }
        loaded => Some(loaded.unwrap_or_else(|error| panic!("load: {error}"))),
    }
}

/// Whether instructions are emulated, which makes them 10 to 30 times slower.
pub(crate) fn is_emulated() -> bool {
    fs::read_to_string("/proc/cpuinfo").expect("/proc/cpuinfo").contains("QEMU")
}

/// Checks a time against its budget, on any but an emulated CPU. Machines are busy with other things
/// as well, so it is the least that is checked: what waits for an RCU grace period takes 10 ms
/// every time. How long things take usually is the business of the benchmarks.
pub(crate) fn within(test: &str, mut times: Vec<Duration>, budget: Duration) {
    times.sort();
    eprintln!("{test}: median {:?}, least {:?}", times[times.len() / 2], times[0]);
    if is_emulated() {
        eprintln!("SKIPPED: {test}: the CPU is emulated");
        return;
    }
    assert!(times[0] <= budget, "{test}: {times:?} against {budget:?}");
}

/// A second namespace joined to the node by a veth pair, as a pod is. IPv4 only, addressed
/// 10.0.0.1 at the node's end and 10.0.0.2 at the other.
pub(crate) struct Peer {
    pub(crate) netns: Netns,
    pub(crate) netlink: Netlink,
    /// The node's end.
    pub(crate) link: Link,
    /// The other end.
    pub(crate) inner: Link,
}

pub(crate) fn peer(netlink: &Netlink, name: &str) -> Peer {
    use std::os::fd::AsFd;

    let netns = Netns::anonymous().expect("a namespace");
    let link = netlink
        .create_veth(&VethSpec {
            name,
            peer_name: "eth0",
            peer_netns: Some(netns.as_fd()),
            up: true,
            ..VethSpec::default()
        })
        .expect("a veth pair");
    let inside = Netlink::in_netns(&netns).expect("a netlink socket inside");
    let inner = inside.link_by_name("eth0").expect("the other end");
    inside.set_up(inner.index).expect("the other end up");
    let flags = kernel::netlink::AddressFlags { nodad: true, ..Default::default() };
    let address = |text: &str| text.parse().expect("an address");
    netlink.add_address(link.index, address("10.0.0.1/24"), flags).expect("outer address");
    inside.add_address(inner.index, address("10.0.0.2/24"), flags).expect("inner address");
    Peer { netns, netlink: inside, link, inner }
}
