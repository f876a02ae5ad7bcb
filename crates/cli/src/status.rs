//! `cilium status`: how agents are, row by row as Cilium shows it.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use api::rest::{
    ControllerStatus, K8sStatus, MonitorStatus, Status, StatusResponse, StatusState, path,
};

use crate::args;
use crate::nodes::Node;
use crate::output::{Outcome, Report, Style, explain};

/// How often to ask an agent that is not well yet. Its API has no way to wait.
const WAIT_INTERVAL: Duration = Duration::from_millis(250);

pub(crate) fn run(args: &args::Status) -> Result<Outcome> {
    let report = Report::new(&args.ask)?;
    if args.wait {
        let deadline = Instant::now() + args.wait_duration;
        report.nodes.all.iter().try_for_each(|node| wait(node, deadline, args.wait_duration))?;
    }
    // As for `cilium-dbg status`, an agent that is not well is a failure of the command.
    let troubled = std::cell::Cell::new(false);
    let fetch = |node: &Node| {
        let status: StatusResponse = node.client().get(path::HEALTHZ)?;
        if status.cilium.state == StatusState::Failure {
            troubled.set(true);
        }
        Ok(status)
    };
    let style = Style::of_stdout();
    let outcome = report.each(fetch, |status| match args.brief {
        true => brief(status, style),
        false => render(status, args.verbose, style),
    })?;
    Ok(if troubled.get() { Outcome::Partial } else { outcome })
}

/// Waits until an agent is well, telling on stderr what it waits for.
fn wait(node: &Node, deadline: Instant, patience: Duration) -> Result<()> {
    let mut told = String::new();
    loop {
        let status = node.client().get_with::<StatusResponse>(path::HEALTHZ, &[("brief", "true")]);
        let reason = match status {
            Ok(status) if status.cilium.state == StatusState::Ok => return Ok(()),
            Ok(status) => status.cilium.msg,
            Err(error) => explain(error.into()).to_string(),
        };
        if Instant::now() >= deadline {
            bail!("{} is not well after {patience:?}: {reason}", node.label());
        }
        if reason != told {
            eprintln!("waiting for {}: {reason}", node.label());
            told = reason;
        }
        std::thread::sleep(WAIT_INTERVAL);
    }
}

fn brief(status: &StatusResponse, style: Style) -> String {
    match status.cilium.state {
        StatusState::Ok => format!("{}\n", style.good("OK")),
        _ => format!("error in cilium: {}\n", words(&status.cilium, style)),
    }
}

fn render(status: &StatusResponse, verbose: bool, style: Style) -> String {
    let mut text = String::new();
    for (name, value) in rows(status, style) {
        if let Some(value) = value {
            text += format!("{:<24}{value}", format!("{name}:")).trim_end();
            text += "\n";
        }
        if name == "IPAM" && verbose {
            text += &allocations(status);
        }
        if name == "Controller Status" {
            text += &controllers(&status.controllers, verbose, style);
        }
    }
    if verbose {
        text += &maps(status);
    }
    text
}

/// The rows in Cilium's order; a row without a value is not shown.
fn rows(status: &StatusResponse, style: Style) -> Vec<(&'static str, Option<String>)> {
    let disabled = || Some("Disabled".to_owned());
    vec![
        ("KVStore", status.kvstore.as_ref().map(|status| words(status, style))),
        ("Kubernetes", status.kubernetes.as_ref().map(|status| kubernetes(status, style))),
        (
            "Kubernetes APIs",
            status.kubernetes.as_ref().map(|status| format!("{:?}", status.k8s_api_versions)),
        ),
        (
            "KubeProxyReplacement",
            status.kube_proxy_replacement.as_ref().map(|replacement| replacement.mode.clone()),
        ),
        ("Host firewall", status.host_firewall.as_ref().map(|firewall| firewall.mode.clone())),
        ("SRv6", disabled()),
        ("CNI Chaining", status.cni_chaining.as_ref().map(|chaining| chaining.mode.clone())),
        ("CNI Config file", status.cni_file.as_ref().map(|file| words(file, style))),
        ("Cilium", Some(words(&status.cilium, style))),
        ("NodeMonitor", status.node_monitor.as_ref().map(monitor)),
        (
            "Cilium health daemon",
            health_daemon(status).map(|status| words(status, style)).or_else(disabled),
        ),
        ("IPAM", status.ipam.as_ref().map(|ipam| ipam.status.clone())),
        ("ClusterMesh", disabled()),
        ("IPv4 BIG TCP", disabled()),
        ("IPv6 BIG TCP", disabled()),
        ("BandwidthManager", disabled()),
        (
            "Routing",
            status.routing.as_ref().map(|routing| {
                let tunnel = match routing.tunnel_protocol.as_str() {
                    "" => String::new(),
                    protocol => format!(" [{protocol}]"),
                };
                format!(
                    "Network: {}{tunnel}   Host: {}",
                    routing.inter_host_routing_mode, routing.intra_host_routing_mode
                )
            }),
        ),
        ("Attach Mode", status.attach_mode.clone()),
        ("Device Mode", status.datapath_mode.clone()),
        (
            "Masquerading",
            status.masquerading.as_ref().map(|masquerading| match masquerading.enabled {
                true => format!("Enabled [{}]", masquerading.mode),
                false => "Disabled".to_owned(),
            }),
        ),
        ("Controller Status", Some(healthy(&status.controllers, style))),
        ("Proxy Status", disabled()),
        (
            "Global Identity Range",
            status
                .identity_range
                .as_ref()
                .map(|range| format!("min {}, max {}", range.min_identity, range.max_identity)),
        ),
        (
            "Hubble",
            status.hubble.as_ref().map(|hubble| {
                words(&Status { state: hubble.state, msg: hubble.msg.clone() }, style)
            }),
        ),
        (
            "Encryption",
            status.encryption.as_ref().map(|encryption| {
                format!("{} {}", encryption.mode, encryption.msg).trim_end().to_owned()
            }),
        ),
        (
            "Cluster",
            status.cluster.as_ref().map(|cluster| {
                format!(
                    "{} known, this is {}",
                    count(cluster.nodes.len(), "node"),
                    cluster.self_name
                )
            }),
        ),
    ]
}

/// `1 node`, `2 nodes`
fn count(number: usize, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

fn health_daemon(status: &StatusResponse) -> Option<&Status> {
    status.cluster.as_ref()?.cilium_health.as_ref()
}

/// `Ok   all is well`
fn words(status: &Status, style: Style) -> String {
    let msg = if status.msg == status.state.to_string() { "" } else { &status.msg };
    let gap = if msg.is_empty() { "" } else { "   " };
    format!("{}{gap}{msg}", state(status.state, style))
}

fn state(state: StatusState, style: Style) -> String {
    match state {
        StatusState::Ok => style.good(state),
        StatusState::Warning => style.warning(state),
        StatusState::Failure => style.bad(state),
        StatusState::Disabled => state.to_string(),
    }
}

fn kubernetes(status: &K8sStatus, style: Style) -> String {
    words(&Status { state: status.state, msg: status.msg.clone() }, style)
}

fn monitor(monitor: &MonitorStatus) -> String {
    let memory = match monitor.cpus {
        0 => "Listening for events".to_owned(),
        cpus => format!(
            "Listening for events on {cpus} CPUs with {}x{} of shared memory",
            monitor.npages, monitor.pagesize
        ),
    };
    match monitor.lost {
        0 => memory,
        lost => format!("{memory}, {lost} events lost"),
    }
}

fn is_failing(controller: &ControllerStatus) -> bool {
    controller.status.consecutive_failure_count > 0
        || !controller.status.last_failure_msg.is_empty()
}

fn healthy(controllers: &[ControllerStatus], style: Style) -> String {
    let failing = controllers.iter().filter(|controller| is_failing(controller)).count();
    let text = format!("{}/{} healthy", controllers.len() - failing, controllers.len());
    if failing == 0 { text } else { style.bad(text) }
}

/// Those that fail, or all.
fn controllers(controllers: &[ControllerStatus], verbose: bool, style: Style) -> String {
    let mut text = String::new();
    for controller in controllers.iter().filter(|controller| verbose || is_failing(controller)) {
        let status = &controller.status;
        text += &format!("  {:<30} {} runs", controller.name, status.success_count);
        if status.failure_count > 0 {
            text += &format!(", {} failures", status.failure_count);
        }
        if is_failing(controller) {
            text += &format!(", failing: {}", style.bad(&status.last_failure_msg));
        }
        text += "\n";
    }
    text
}

fn allocations(status: &StatusResponse) -> String {
    let Some(ipam) = &status.ipam else { return String::new() };
    let mut text = "Allocated addresses:\n".to_owned();
    for (address, owner) in &ipam.allocations {
        text += &format!("  {address} ({owner})\n");
    }
    text
}

fn maps(status: &StatusResponse) -> String {
    let Some(maps) = &status.bpf_maps else { return String::new() };
    let mut text = "BPF Maps:\n".to_owned();
    for map in &maps.maps {
        text += &format!("  {:<30} {} entries\n", map.name, map.size);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::{Expect, expect};
    use serde_json::json;

    fn check(status: serde_json::Value, verbose: bool, expected: Expect) {
        let status: StatusResponse = serde_json::from_value(status).unwrap();
        expected.assert_eq(&render(&status, verbose, Style::PLAIN));
    }

    fn healthy_status() -> serde_json::Value {
        json!({
            "cilium": {"state": "Ok", "msg": "0.1.0"},
            "kubernetes": {"state": "Ok", "k8s-api-versions": ["pods", "ciliumnodes"]},
            "kvstore": {"state": "Disabled", "msg": "Disabled"},
            "node-monitor": {"cpus": 2, "npages": 128, "pagesize": 4096},
            "cluster": {"self": "default/node-1", "nodes": [{"name": "default/node-1"}]},
            "ipam": {"status": "IPv4: 1/254 allocated from 10.0.0.0/24", "allocations": {"10.0.0.1": "router"}},
            "controllers": [{"name": "reconcile-ipcache", "status": {"success-count": 5}}],
            "hubble": {"state": "Disabled"},
            "masquerading": {"enabled": false},
            "routing": {"intra-host-routing-mode": "BPF", "inter-host-routing-mode": "Tunnel", "tunnel-protocol": "vxlan"},
            "kube-proxy-replacement": {"mode": "False"},
            "host-firewall": {"mode": "Disabled"},
            "encryption": {"mode": "Disabled"},
            "bpf-maps": {"maps": [{"name": "cilium_lxc", "size": 65535}]},
            "cni-chaining": {"mode": "none"},
            "cni-file": {"state": "Ok", "msg": "/etc/cni/net.d/05-cilium.conflist"},
            "identity-range": {"min-identity": 256, "max-identity": 65535},
            "attach-mode": "TCX",
            "datapath-mode": "veth",
        })
    }

    #[test]
    fn a_healthy_agent() {
        check(
            healthy_status(),
            false,
            expect![[r#"
                KVStore:                Disabled
                Kubernetes:             Ok
                Kubernetes APIs:        ["pods", "ciliumnodes"]
                KubeProxyReplacement:   False
                Host firewall:          Disabled
                SRv6:                   Disabled
                CNI Chaining:           none
                CNI Config file:        Ok   /etc/cni/net.d/05-cilium.conflist
                Cilium:                 Ok   0.1.0
                NodeMonitor:            Listening for events on 2 CPUs with 128x4096 of shared memory
                Cilium health daemon:   Disabled
                IPAM:                   IPv4: 1/254 allocated from 10.0.0.0/24
                ClusterMesh:            Disabled
                IPv4 BIG TCP:           Disabled
                IPv6 BIG TCP:           Disabled
                BandwidthManager:       Disabled
                Routing:                Network: Tunnel [vxlan]   Host: BPF
                Attach Mode:            TCX
                Device Mode:            veth
                Masquerading:           Disabled
                Controller Status:      1/1 healthy
                Proxy Status:           Disabled
                Global Identity Range:  min 256, max 65535
                Hubble:                 Disabled
                Encryption:             Disabled
                Cluster:                1 node known, this is default/node-1
            "#]],
        );
    }

    #[test]
    fn everything_of_an_agent_in_trouble() {
        let mut status = healthy_status();
        status["cilium"] = json!({"state": "Warning", "msg": "0.1.0, in trouble: watch-pods"});
        status["kubernetes"] = json!({"state": "Failure", "msg": "connection refused"});
        status["node-monitor"]["lost"] = json!(12);
        status["controllers"] = json!([
            {"name": "reconcile-ipcache", "status": {"success-count": 5}},
            {"name": "watch-pods", "status": {"success-count": 1, "failure-count": 3, "consecutive-failure-count": 2, "last-failure-msg": "connection refused"}},
        ]);
        check(
            status,
            true,
            expect![[r#"
                KVStore:                Disabled
                Kubernetes:             Failure   connection refused
                Kubernetes APIs:        []
                KubeProxyReplacement:   False
                Host firewall:          Disabled
                SRv6:                   Disabled
                CNI Chaining:           none
                CNI Config file:        Ok   /etc/cni/net.d/05-cilium.conflist
                Cilium:                 Warning   0.1.0, in trouble: watch-pods
                NodeMonitor:            Listening for events on 2 CPUs with 128x4096 of shared memory, 12 events lost
                Cilium health daemon:   Disabled
                IPAM:                   IPv4: 1/254 allocated from 10.0.0.0/24
                Allocated addresses:
                  10.0.0.1 (router)
                ClusterMesh:            Disabled
                IPv4 BIG TCP:           Disabled
                IPv6 BIG TCP:           Disabled
                BandwidthManager:       Disabled
                Routing:                Network: Tunnel [vxlan]   Host: BPF
                Attach Mode:            TCX
                Device Mode:            veth
                Masquerading:           Disabled
                Controller Status:      1/2 healthy
                  reconcile-ipcache              5 runs
                  watch-pods                     1 runs, 3 failures, failing: connection refused
                Proxy Status:           Disabled
                Global Identity Range:  min 256, max 65535
                Hubble:                 Disabled
                Encryption:             Disabled
                Cluster:                1 node known, this is default/node-1
                BPF Maps:
                  cilium_lxc                     65535 entries
            "#]],
        );
    }
}
