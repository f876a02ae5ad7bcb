//! `bench reach`: who may reach whom, by rules of ours, of nftables and of iptables.
//!
//! ```text
//! routed            client ── veth ── router             ── veth ── server
//! nft, iptables     client ── veth ── router with rules  ── veth ── server
//! ours              pod    ── veth ── our programs       ── veth ── pod      (a lab of one node)
//! ```
//!
//! All allow the same: one client, so many ports, and among them, last, the one that is used.

use std::io::Write as _;
use std::process::{Command, Stdio};

use anyhow::{Context, bail};

use super::cluster::{Lab, manifest, pod};
use super::pods::{Namespaces, Path};
use super::{Limit, Report, repetitions};
use crate::shell::{self, Root, say};

const METHOD: &str = "IPv4 TCP between two processes pinned to one CPU; each repetition runs all variants in turn with 3,000 connects \
closed by reset and 15,000 requests of one byte after 2,000 to warm up. Rules allow as many ports from the client, the used one last: nftables by one lookup in \
a verdict map, iptables (the command's default backend) by a rule per port, both behind a rule for established flows; ours by a CiliumNetworkPolicy.";

/// How many rules, and what the variants with so many are called.
const SIZES: [(u16, [&str; 3]); 3] = [
    (10, ["nft, 10 rules", "iptables, 10 rules", "ours, 10 rules"]),
    (1_000, ["nft, 1,000 rules", "iptables, 1,000 rules", "ours, 1,000 rules"]),
    (10_000, ["nft, 10,000 rules", "iptables, 10,000 rules", "ours, 10,000 rules"]),
];
/// The port that the servers of benchmarks listen on.
const USED_PORT: u16 = 5201;
/// The first of the others.
const FIRST_PORT: u16 = 20_000;
/// Ports of one item of a policy, at most.
const PORTS_PER_ITEM: usize = 40;
/// Where a router's client and server are.
const CLIENT: &str = "10.77.1.2";
const SERVER: &str = "10.77.2.2";

/// Measures the paths.
pub(super) fn bench(root: &Root) -> anyhow::Result<()> {
    shell::apt_install(&["nftables", "iptables"], "the baselines of bench reach")?;
    let plain = Namespaces::routed("reach-plain")?;
    let mut paths = vec![path("routed", &plain)?];
    let mut routers = Vec::new();
    for (size, [nft, iptables, _]) in SIZES {
        let router = Namespaces::routed(&format!("reach-nft-{size}"))?;
        feed(&router.enter("router"), &["nft", "-f", "-"], &nft_rules(size))?;
        paths.push(path(nft, &router)?);
        routers.push(router);
        let router = Namespaces::routed(&format!("reach-ipt-{size}"))?;
        feed(&router.enter("router"), &["iptables-restore"], &iptables_rules(size))?;
        paths.push(path(iptables, &router)?);
        routers.push(router);
    }
    let names = ["client", "server-10", "server-1000", "server-10000"];
    let lab = Lab::up(root, "bench-reach", 1, &[&manifest(names.into_iter().map(pod))])?;
    lab.wait_for_pods(names.len())?;
    for name in names {
        lab.kubectl(&["label", "pod", name, &format!("bench={name}")])?;
    }
    for (size, [.., ours]) in SIZES {
        let server = format!("server-{size}");
        apply(&lab, &policy(&server, size))?;
        let policy = format!("cnp/{server}");
        lab.kubectl(&["wait", "--for=condition=Enforced", "--timeout=120s", &policy])?;
        let addresses = lab.pod_addresses(&server)?;
        let address = addresses.iter().find(|ip| ip.is_ipv4()).context("no IPv4 address")?;
        let (client, service) = (lab.enter("client")?, lab.enter(&server)?);
        paths.push(Path::new(ours, "v4", client, service, &address.to_string())?);
    }
    measure(root, &paths)
}

fn measure(root: &Root, paths: &[Path]) -> anyhow::Result<()> {
    let mut report = Report::new("reach", METHOD);
    report.baseline = Some("routed");
    let count = repetitions();
    for repetition in 0..count {
        say(format!("repetition {} of {count}", repetition + 1));
        // The other way round every second time: what comes after what must not matter.
        let mut order: Vec<&Path> = paths.iter().collect();
        if repetition % 2 == 1 {
            order.reverse();
        }
        for path in order {
            let result = path.measure()?;
            for (key, metric) in [
                ("connect_p50_us", "connect p50, µs"),
                ("connect_p99_us", "connect p99, µs"),
                ("connects_s", "connections per second"),
                ("rr_p50_us", "request/response p50, µs"),
            ] {
                let value = result[key].as_f64().with_context(|| format!("no {key}"))?;
                report.add(metric, path.variant, value);
            }
        }
    }
    let flat = |metric, variant| Limit {
        metric,
        variant,
        against: &["ours, 10 rules"],
        at_most: Some(1.05),
        at_least: None,
    };
    for variant in ["ours, 1,000 rules", "ours, 10,000 rules"] {
        report.limits.extend(
            ["connect p50, µs", "request/response p50, µs"].map(|metric| flat(metric, variant)),
        );
    }
    report.limits.push(Limit {
        metric: "request/response p50, µs",
        variant: "ours, 10 rules",
        against: &["routed"],
        at_most: Some(0.93),
        at_least: None,
    });
    report.finish(root)
}

fn path(variant: &'static str, router: &Namespaces) -> anyhow::Result<Path> {
    Path::new(variant, "v4", router.enter("client"), router.enter("server"), SERVER)
}

/// The ports that are allowed, the used one last.
fn ports(size: u16) -> impl Iterator<Item = u16> {
    (FIRST_PORT..FIRST_PORT + size - 1).chain([USED_PORT])
}

fn nft_rules(size: u16) -> String {
    let elements: Vec<String> =
        ports(size).map(|port| format!("{CLIENT} . {port} : accept")).collect();
    format!(
        "table inet reach {{\n  map allowed {{ type ipv4_addr . inet_service : verdict; elements = {{ {} }} }}\n  \
         chain forward {{\n    type filter hook forward priority 0; policy drop;\n    \
         ct state established,related accept\n    ip saddr . tcp dport vmap @allowed\n  }}\n}}\n",
        elements.join(", ")
    )
}

fn iptables_rules(size: u16) -> String {
    let mut text = String::from(
        "*filter\n:FORWARD DROP [0:0]\n-A FORWARD -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT\n",
    );
    for port in ports(size) {
        text += &format!("-A FORWARD -s {CLIENT} -p tcp --dport {port} -j ACCEPT\n");
    }
    text + "COMMIT\n"
}

fn policy(server: &str, size: u16) -> String {
    let all: Vec<u16> = ports(size).collect();
    let items: Vec<serde_json::Value> = all
        .chunks(PORTS_PER_ITEM)
        .map(|ports| {
            let ports: Vec<_> = ports
                .iter()
                .map(|port| serde_json::json!({"port": port.to_string(), "protocol": "TCP"}))
                .collect();
            serde_json::json!({
                "fromEndpoints": [{"matchLabels": {"bench": "client"}}],
                "toPorts": [{"ports": ports}],
            })
        })
        .collect();
    serde_json::json!({
        "apiVersion": "cilium.io/v2", "kind": "CiliumNetworkPolicy",
        "metadata": {"name": server},
        "spec": {"endpointSelector": {"matchLabels": {"bench": server}}, "ingress": items},
    })
    .to_string()
}

fn apply(lab: &Lab, manifest: &str) -> anyhow::Result<()> {
    // Not "kubectl apply", which writes the whole object into an annotation that has a limit.
    run_with_input(&mut lab.kubectl_command(&["create", "-f", "-"]), manifest)
}

fn feed(enter: &[String], program: &[&str], input: &str) -> anyhow::Result<()> {
    let mut command = Command::new(&enter[0]);
    command.args(&enter[1..]).args(program);
    run_with_input(&mut command, input)
}

fn run_with_input(command: &mut Command, input: &str) -> anyhow::Result<()> {
    let mut child = command.stdin(Stdio::piped()).spawn().context("cannot start a program")?;
    child.stdin.take().context("no standard input")?.write_all(input.as_bytes())?;
    let status = child.wait()?;
    if !status.success() {
        bail!("{command:?} failed: {status}");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_allow_the_same_ports() {
        let last = ports(10).last();
        assert_eq!((ports(10).count(), last), (10, Some(USED_PORT)));
        assert_eq!(nft_rules(10).matches(": accept").count(), 10);
        assert_eq!(iptables_rules(10).matches("--dport").count(), 10);
        assert_eq!(policy("server-10", 1_000).matches("\"port\"").count(), 1_000);
    }
}
