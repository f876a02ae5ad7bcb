//! Many small conversations at once: who gets an answer from whom, over real packets.
//!
//! A socket belongs to the namespace that it was made in, so the test makes its sockets in the pods'
//! namespaces and then talks from where it is, without a process per question.

use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use kernel::netns::Netns;
use kernel::sysctl;
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrStorage, connect, recv,
    send, socket,
};

use crate::world::Lab;

/// How often what may be lost is said again.
const REPEAT: Duration = Duration::from_millis(200);
/// How long who must stay silent is listened to.
const SILENCE: Duration = Duration::from_millis(500);
/// How long an answer may take, on a machine that does other things as well.
const PATIENCE: Duration = Duration::from_secs(5);
/// Between two looks at all sockets.
const LOOK_INTERVAL: Duration = Duration::from_millis(5);

/// How one talks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Talk {
    Tcp(u16),
    Udp(u16),
    Ping,
}

/// Somebody asks something.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Probe {
    /// `NAMESPACE/NAME` of a pod.
    pub source: String,
    pub target: IpAddr,
    pub talk: Talk,
}

/// The namespaces of pods.
pub struct Ground(BTreeMap<String, Netns>);

impl Ground {
    /// The namespaces of these pods, `NAMESPACE/NAME`.
    pub fn of(lab: &Lab, pods: &[String]) -> Self {
        let open = |pod: &String| {
            let netns = Netns::open(&netns_path(lab, pod)).expect("open the pod's namespace");
            // Root may not ping without a raw socket, unless its group may.
            let allowed = netns.run(|| sysctl::set("net.ipv4.ping_group_range", "0 0"));
            allowed.expect("enter the pod's namespace").expect("allow pings");
            (pod.clone(), netns)
        };
        Self(pods.iter().map(open).collect())
    }

    /// Which probes are answered. Those that should not be are listened to for a shorter time.
    pub fn answers(&self, probes: &[(Probe, bool)]) -> Vec<bool> {
        let mut running: Vec<Running> = probes.iter().map(|(probe, _)| self.start(probe)).collect();
        let began = Instant::now();
        let is_due = |expected: bool| began.elapsed() > if expected { PATIENCE } else { SILENCE };
        loop {
            running.iter_mut().for_each(Running::step);
            let mut all = running.iter().zip(probes);
            if all.all(|(probe, (_, expected))| probe.answered || is_due(*expected)) {
                return running.iter().map(|probe| probe.answered).collect();
            }
            std::thread::sleep(LOOK_INTERVAL);
        }
    }

    /// Whether one probe is answered, in the time that an answer may take.
    pub fn is_answered(&self, probe: &Probe) -> bool {
        self.answers(&[(probe.clone(), true)]) == [true]
    }

    /// A socket of a pod, connected.
    pub fn socket(&self, probe: &Probe) -> OwnedFd {
        let netns = self.0.get(&probe.source).expect("a pod of the ground");
        netns.run(|| open(probe)).expect("enter the pod's namespace")
    }

    fn start(&self, probe: &Probe) -> Running {
        let socket = self.socket(probe);
        let mut running = Running { socket, probe: probe.clone(), answered: false, said: None };
        running.step();
        running
    }
}

/// Where the namespace of a pod is: with a process that is in it.
fn netns_path(lab: &Lab, pod: &str) -> PathBuf {
    let wanted = lab.exec(pod, &["readlink", "/proc/self/ns/net"]);
    let processes = fs::read_dir("/proc").expect("list processes").flatten();
    let mut paths = processes.map(|process| process.path().join("ns/net"));
    let is_it = |path: &Path| fs::read_link(path).is_ok_and(|link| link == Path::new(&wanted));
    paths.find(|path| is_it(path)).unwrap_or_else(|| panic!("no process is in {wanted} of {pod}"))
}

fn open(probe: &Probe) -> OwnedFd {
    let v4 = probe.target.is_ipv4();
    let family = if v4 { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let (kind, protocol) = match probe.talk {
        Talk::Tcp(_) => (SockType::Stream, None),
        Talk::Udp(_) => (SockType::Datagram, None),
        Talk::Ping if v4 => (SockType::Datagram, Some(SockProtocol::Icmp)),
        Talk::Ping => (SockType::Datagram, Some(SockProtocol::IcmpV6)),
    };
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    socket(family, kind, flags, protocol).expect("make a socket")
}

/// A probe on its way.
struct Running {
    socket: OwnedFd,
    probe: Probe,
    answered: bool,
    said: Option<Instant>,
}

impl Running {
    fn step(&mut self) {
        if self.answered {
            return;
        }
        self.answered = match self.probe.talk {
            Talk::Tcp(port) => self.connect(port),
            Talk::Udp(port) => self.say(port, b"echo probe"),
            // RFC 792 and RFC 4443: type, code, checksum, id (the last two are the kernel's), number.
            Talk::Ping if self.probe.target.is_ipv4() => self.say(0, &[8, 0, 0, 0, 0, 0, 0, 1]),
            Talk::Ping => self.say(0, &[128, 0, 0, 0, 0, 0, 0, 1]),
        };
    }

    /// A refusal is an answer as well: the packet has arrived.
    fn connect(&self, port: u16) -> bool {
        let address = SockaddrStorage::from(SocketAddr::new(self.probe.target, port));
        match connect(self.socket.as_raw_fd(), &address) {
            Ok(()) | Err(Errno::EISCONN | Errno::ECONNREFUSED) => true,
            Err(_not_yet) => false,
        }
    }

    fn say(&mut self, port: u16, words: &[u8]) -> bool {
        let socket = self.socket.as_raw_fd();
        if self.said.is_none() {
            let address = SockaddrStorage::from(SocketAddr::new(self.probe.target, port));
            if connect(socket, &address).is_err() {
                return false;
            }
        }
        if self.said.is_none_or(|said| said.elapsed() > REPEAT) {
            self.said = Some(Instant::now());
            if send(socket, words, MsgFlags::empty()) == Err(Errno::ECONNREFUSED) {
                return true;
            }
        }
        // "Port unreachable" comes from whom the packet has reached.
        matches!(recv(socket, &mut [0; 64], MsgFlags::empty()), Ok(1..) | Err(Errno::ECONNREFUSED))
    }
}
