//! `cilium health`, and the program `cilium-health`: whether nodes reach each other.

use std::fmt::Write as _;

use anyhow::Result;
use api::rest::{
    Client, HEALTH_SOCKET_NAME, HealthResponse, HealthStatusResponse, PathHealth, ProbeHealth,
    TargetHealth, health_path,
};

use crate::args::{self, Ask};
use crate::nodes::Node;
use crate::output::{Outcome, Report};

pub(crate) fn run(command: &args::Health) -> Result<Outcome> {
    match command {
        args::Health::Status { probe, verbose, ask } => {
            Report::new(ask)?.each(|node| status(node, *probe), |found| render(found, *verbose))
        }
        args::Health::Get(ask) => get(ask),
        args::Health::Ping(ask) => Report::new(ask)?.each(fetch_self, |_| "OK\n".to_owned()),
    }
}

/// A client of the health API, whose socket is beside the agent's.
fn client(node: &Node) -> Client {
    Client::new(node.socket.with_file_name(HEALTH_SOCKET_NAME))
}

pub(crate) fn status(node: &Node, probe: bool) -> Result<HealthStatusResponse> {
    let mut client = client(node);
    Ok(if probe {
        client.put(health_path::PROBE, &())?
    } else {
        client.get(health_path::STATUS)?
    })
}

fn fetch_self(node: &Node) -> Result<HealthResponse> {
    Ok(client(node).get(health_path::HEALTHZ)?)
}

fn get(ask: &Ask) -> Result<Outcome> {
    Report::new(ask)?.each(fetch_self, |health| {
        let HealthResponse { cilium, system_load, uptime } = health;
        format!(
            "Daemon:\n  Cilium: {:?} {}\nUptime: {uptime}\nLoad:   {} {} {}\n",
            cilium.cilium.state,
            cilium.cilium.msg,
            system_load.last_1_min,
            system_load.last_5_min,
            system_load.last_15_min,
        )
    })
}

/// As Cilium prints it. Further addresses of a node are shown when asked for, or when they cannot
/// be reached.
fn render(found: &HealthStatusResponse, verbose: bool) -> String {
    let when = if found.timestamp.is_empty() { "not yet" } else { &found.timestamp };
    let mut text = format!("Probe time:   {when}\nNodes:\n");
    for node in &found.nodes {
        let local = if node.name == found.local.name { " (localhost)" } else { "" };
        let _ = writeln!(text, "  {}{local}:", node.name);
        render_target(&mut text, "Host", &node.host, verbose);
        if let Some(endpoint) = &node.health_endpoint {
            render_target(&mut text, "Endpoint", endpoint, verbose);
        }
    }
    text
}

fn render_target(text: &mut String, what: &str, target: &TargetHealth, verbose: bool) {
    let shown = |path: &&PathHealth| verbose || !path.is_reachable();
    let others = target.secondary_addresses.iter().filter(shown);
    for path in target.primary_address.iter().chain(others) {
        let _ = writeln!(text, "    {what} connectivity to {}:", path.ip);
        let _ = writeln!(text, "      ICMP to stack:   {}", render_probe(&path.icmp));
        let _ = writeln!(text, "      HTTP to agent:   {}", render_probe(&path.http));
    }
}

fn render_probe(probe: &ProbeHealth) -> String {
    match probe.status.as_str() {
        "" => format!("OK, RTT={}", round_trip(probe.latency)),
        error => error.to_owned(),
    }
}

/// As Go prints a duration, which people compare with what they know.
fn round_trip(nanoseconds: u64) -> String {
    let scaled = |unit: u64| nanoseconds as f64 / unit as f64;
    match nanoseconds {
        0..1_000 => format!("{nanoseconds}ns"),
        1_000..1_000_000 => format!("{}µs", scaled(1_000)),
        1_000_000..1_000_000_000 => format!("{}ms", scaled(1_000_000)),
        _ => format!("{}s", scaled(1_000_000_000)),
    }
}

#[cfg(test)]
mod tests {
    use expect_test::expect;
    use serde_json::json;

    use super::*;

    #[test]
    fn a_round_is_shown_as_cilium_shows_it() {
        let ok = json!({"latency": 306_523, "lastProbed": "2026-01-01T00:00:00Z"});
        let late = json!({"status": "no answer"});
        let found = json!({
            "local": {"name": "default/node-1"},
            "timestamp": "2026-01-01T00:00:00Z",
            "nodes": [
                {
                    "name": "default/node-1",
                    "host": {
                        "primary-address": {"ip": "172.18.1.1", "icmp": ok, "http": {"latency": 1_908_590}},
                        "secondary-addresses": [{"ip": "fd00:18::1", "icmp": ok, "http": ok}],
                    },
                    "health-endpoint": {"primary-address": {"ip": "10.0.0.5", "icmp": ok, "http": ok}},
                },
                {
                    "name": "default/node-2",
                    "host": {
                        "primary-address": {"ip": "172.18.1.2", "icmp": ok, "http": ok},
                        "secondary-addresses": [{"ip": "fd00:18::2", "icmp": late, "http": ok}],
                    },
                },
            ],
        });
        let found: HealthStatusResponse = serde_json::from_value(found).unwrap();
        expect![[r#"
            Probe time:   2026-01-01T00:00:00Z
            Nodes:
              default/node-1 (localhost):
                Host connectivity to 172.18.1.1:
                  ICMP to stack:   OK, RTT=306.523µs
                  HTTP to agent:   OK, RTT=1.90859ms
                Endpoint connectivity to 10.0.0.5:
                  ICMP to stack:   OK, RTT=306.523µs
                  HTTP to agent:   OK, RTT=306.523µs
              default/node-2:
                Host connectivity to 172.18.1.2:
                  ICMP to stack:   OK, RTT=306.523µs
                  HTTP to agent:   OK, RTT=306.523µs
                Host connectivity to fd00:18::2:
                  ICMP to stack:   no answer
                  HTTP to agent:   OK, RTT=306.523µs
        "#]]
        .assert_eq(&render(&found, false));
        assert!(render(&found, true).contains("Host connectivity to fd00:18::1:"));
    }
}
