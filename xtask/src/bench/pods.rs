//! `bench pod`: two pods of one node, beside the same two processes on plain Linux paths.
//!
//! ```text
//! routed   client ── veth ── router (forwards) ── veth ── server
//! bridge   client ── veth ── bridge            ── veth ── server
//! ours     pod    ── veth ── our programs      ── veth ── pod      (a lab of one node)
//! ```

use std::io::{BufRead, BufReader};
use std::net::{IpAddr, SocketAddr};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, bail};
use serde_json::Value;

use super::cluster::{Lab, manifest, pod};
use super::{Limit, Report, repetitions};
use crate::shell::{Root, output, say};

const METHOD: &str = "TCP between two processes pinned to one CPU (throughput: to two), blocking sockets; \
each repetition runs all variants in turn with 3,000 connects closed by reset, 15,000 requests of one byte after 2,000 to warm up, \
and one stream for 1 s; p50 within a repetition, then medians over repetitions. No monitor attached.";

const PORT: u16 = 5201;

/// Measures the paths.
pub(super) fn bench(root: &Root) -> anyhow::Result<()> {
    let routed = Namespaces::routed("routed")?;
    let bridged = Namespaces::bridged()?;
    let lab = Lab::up(root, "bench-pod", 1, &[&two_pods()])?;
    lab.wait_for_pods(2)?;
    let addresses = lab.pod_addresses("bench-server")?;

    let mut report = Report::new("pod", METHOD);
    report.baseline = Some("routed");
    let mut paths = Vec::new();
    for family in ["v4", "v6"] {
        let v4 = family == "v4";
        let server = if v4 { "10.77.2.2" } else { "fd77:2::2" };
        paths.push(Path::new(
            "routed",
            family,
            routed.enter("client"),
            routed.enter("server"),
            server,
        )?);
        let server = if v4 { "10.78.0.2" } else { "fd78::2" };
        paths.push(Path::new(
            "bridge",
            family,
            bridged.enter("client"),
            bridged.enter("server"),
            server,
        )?);
        let server = addresses
            .iter()
            .find(|address| address.is_ipv4() == v4)
            .with_context(|| format!("the pod has no {family} address"))?;
        let (client, service) = (lab.enter("bench-client")?, lab.enter("bench-server")?);
        paths.push(Path::new("ours", family, client, service, &server.to_string())?);
    }
    let count = repetitions();
    for repetition in 0..count {
        say(format!("repetition {} of {count}", repetition + 1));
        // The other way round every second time: what comes after what must not matter.
        let order: Vec<usize> = if repetition % 2 == 0 {
            (0..paths.len()).collect()
        } else {
            (0..paths.len()).rev().collect()
        };
        for index in order {
            let path = &paths[index];
            let result = path.measure()?;
            for (key, name) in [
                ("connect_p50_us", "connect p50, µs"),
                ("connect_p99_us", "connect p99, µs"),
                ("rr_p50_us", "request/response p50, µs"),
                ("rr_p99_us", "request/response p99, µs"),
                ("gbit_s", "one stream, Gbit/s"),
            ] {
                let value = result[key].as_f64().with_context(|| format!("no {key}"))?;
                report.add(&format!("{} {name}", path.family), path.variant, value);
            }
        }
    }
    for (metrics, bound) in [
        (["v4 request/response p50, µs", "v6 request/response p50, µs"], 0.92),
        (["v4 connect p50, µs", "v6 connect p50, µs"], 0.95),
    ] {
        report.limits.extend(metrics.map(|metric| Limit {
            metric,
            variant: "ours",
            against: &["routed"],
            at_most: Some(bound),
            at_least: None,
        }));
    }
    report.limits.extend(["v4 one stream, Gbit/s", "v6 one stream, Gbit/s"].map(|metric| Limit {
        metric,
        variant: "ours",
        against: &["routed", "bridge"],
        at_most: None,
        at_least: Some(0.97),
    }));
    report.finish(root)
}

/// Two pods without a program of their own: the benchmark enters their namespaces.
fn two_pods() -> String {
    manifest(["bench-client", "bench-server"].into_iter().map(pod))
}

/// One way from a client to a server that is already listening.
pub(super) struct Path {
    pub(super) variant: &'static str,
    family: &'static str,
    client: Vec<String>,
    address: SocketAddr,
    _server: Server,
}

impl Path {
    pub(super) fn new(
        variant: &'static str,
        family: &'static str,
        client: Vec<String>,
        server: Vec<String>,
        address: &str,
    ) -> anyhow::Result<Self> {
        let address = SocketAddr::new(address.parse::<IpAddr>()?, PORT);
        Ok(Self { variant, family, client, address, _server: Server::start(&server, address)? })
    }

    pub(super) fn measure(&self) -> anyhow::Result<Value> {
        let own = std::env::current_exe()?;
        let mut command = Command::new(&self.client[0]);
        command
            .args(&self.client[1..])
            .arg(own)
            .args(["bench-peer", "client", &self.address.to_string()])
            .args(["--cpu", "1", "--bulk-cpu", "0"]);
        let text =
            output(&mut command).with_context(|| format!("{} {}", self.variant, self.family))?;
        serde_json::from_str(text.trim()).with_context(|| format!("not JSON: {text}"))
    }
}

/// A server that is killed when it is no longer needed.
struct Server(Child);

impl Server {
    fn start(enter: &[String], address: SocketAddr) -> anyhow::Result<Self> {
        let mut command = Command::new(&enter[0]);
        command
            .args(&enter[1..])
            .arg(std::env::current_exe()?)
            .args(["bench-peer", "server", &address.to_string(), "--cpu", "1"])
            .stdout(Stdio::piped());
        let mut server = Self(command.spawn().context("cannot start the server")?);
        let stdout = server.0.stdout.take().context("a server without output")?;
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line)?;
        if !line.starts_with("listening") {
            bail!("the server at {address} did not start");
        }
        Ok(server)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Network namespaces with a name of ours, removed with all that is in them.
pub(super) struct Namespaces {
    prefix: String,
    names: Vec<&'static str>,
}

impl Namespaces {
    fn new(kind: &str, names: &[&'static str]) -> anyhow::Result<Self> {
        let mut made =
            Self { prefix: format!("bench-{kind}-{}", std::process::id()), names: Vec::new() };
        for name in names {
            ip(&["netns", "add", &made.name(name)])?;
            made.names.push(name);
            made.ip(name, "link set lo up")?;
            // Addresses are usable at once.
            made.sysctl(name, "net.ipv6.conf.default.accept_dad=0")?;
            made.sysctl(name, "net.ipv6.conf.all.accept_dad=0")?;
        }
        Ok(made)
    }

    /// Two networks and a router between them, in namespaces whose names begin with `kind`.
    pub(super) fn routed(kind: &str) -> anyhow::Result<Self> {
        let made = Self::new(kind, &["client", "router", "server"])?;
        for (name, number) in [("client", 1), ("server", 2)] {
            let router = made.name("router");
            made.ip(name, &format!("link add eth0 type veth peer name {name} netns {router}"))?;
            made.ip(name, &format!("addr add 10.77.{number}.2/24 dev eth0"))?;
            made.ip(name, &format!("addr add fd77:{number}::2/64 dev eth0 nodad"))?;
            made.ip(name, "link set eth0 up")?;
            made.ip("router", &format!("addr add 10.77.{number}.1/24 dev {name}"))?;
            made.ip("router", &format!("addr add fd77:{number}::1/64 dev {name} nodad"))?;
            made.ip("router", &format!("link set {name} up"))?;
            made.ip(name, &format!("route add default via 10.77.{number}.1"))?;
            made.ip(name, &format!("-6 route add default via fd77:{number}::1"))?;
        }
        made.sysctl("router", "net.ipv4.ip_forward=1")?;
        made.sysctl("router", "net.ipv6.conf.all.forwarding=1")?;
        Ok(made)
    }

    fn bridged() -> anyhow::Result<Self> {
        let made = Self::new("bridge", &["client", "node", "server"])?;
        made.ip("node", "link add br0 type bridge")?;
        made.ip("node", "link set br0 up")?;
        for (name, number) in [("client", 1), ("server", 2)] {
            let node = made.name("node");
            made.ip(name, &format!("link add eth0 type veth peer name {name} netns {node}"))?;
            made.ip(name, &format!("addr add 10.78.0.{number}/24 dev eth0"))?;
            made.ip(name, &format!("addr add fd78::{number}/64 dev eth0 nodad"))?;
            made.ip(name, "link set eth0 up")?;
            made.ip("node", &format!("link set {name} master br0 up"))?;
        }
        Ok(made)
    }

    fn name(&self, name: &str) -> String {
        format!("{}-{name}", self.prefix)
    }

    fn ip(&self, name: &str, arguments: &str) -> anyhow::Result<()> {
        let name = self.name(name);
        let mut all = vec!["-n", &name];
        all.extend(arguments.split(' '));
        ip(&all)
    }

    fn sysctl(&self, name: &str, setting: &str) -> anyhow::Result<()> {
        ip(&["netns", "exec", &self.name(name), "sysctl", "-qw", setting])
    }

    /// The words in front of a command that is to run inside.
    pub(super) fn enter(&self, name: &str) -> Vec<String> {
        ["ip", "netns", "exec", &self.name(name)].map(str::to_owned).to_vec()
    }
}

impl Drop for Namespaces {
    fn drop(&mut self) {
        for name in &self.names {
            let _ = ip(&["netns", "delete", &self.name(name)]);
        }
    }
}

fn ip(arguments: &[&str]) -> anyhow::Result<()> {
    output(Command::new("ip").args(arguments)).map(drop)
}
