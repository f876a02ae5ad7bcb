//! `hubble status`, `hubble list` and `hubble watch`.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use api::hubble::observer::observer_client::ObserverClient;
use api::hubble::observer::{
    GetNamespacesRequest, GetNodesRequest, GetNodesResponse, Node, ServerStatusRequest,
    ServerStatusResponse,
};
use api::hubble::peer::{NotifyRequest, peer_client::PeerClient};
use api::hubble::relay::NodeState;
use api::hubble::to_json;
use clap::ArgMatches;

use super::config::Settings;
use super::connect;
use super::observe::{failed, request_timeout};
use crate::output::print;

fn format(matches: &ArgMatches) -> &str {
    matches.get_one::<String>("output").map_or("", String::as_str)
}

async fn in_time<T>(
    settings: &Settings,
    server: &str,
    call: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>,
) -> Result<T> {
    let timeout = request_timeout(settings)?;
    match tokio::time::timeout(timeout, call).await {
        Ok(answer) => Ok(answer.map_err(|status| failed(server, &status))?.into_inner()),
        Err(_) => bail!("{server} does not answer within {timeout:?} (--request-timeout)"),
    }
}

/// A number with a comma between thousands.
fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `hubble status`.
pub(super) async fn status(settings: &Settings, matches: &ArgMatches) -> Result<()> {
    let (channel, server) = connect(settings).await?;
    let mut client = ObserverClient::new(channel);
    let status = in_time(settings, &server, client.server_status(ServerStatusRequest {})).await?;
    match format(matches) {
        "json" => print(&format!("{}\n", to_json(&status))),
        "dict" => print(&dict(&status)),
        "tab" | "table" => print(&status_table(&status)),
        _ => print(&compact(&server, &status)),
    }
}

fn uptime(uptime_ns: u64) -> String {
    let seconds = uptime_ns / 1_000_000_000;
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    match (hours, minutes) {
        (0, 0) => format!("{seconds}s"),
        (0, minutes) => format!("{minutes}m{seconds}s"),
        (hours, minutes) => format!("{hours}h{minutes}m{seconds}s"),
    }
}

fn flows(status: &ServerStatusResponse) -> String {
    let percent = status.num_flows as f64 * 100.0 / status.max_flows.max(1) as f64;
    format!("{}/{} ({percent:.2}%)", thousands(status.num_flows), thousands(status.max_flows))
}

fn rate(status: &ServerStatusResponse) -> String {
    format!("{:.2}", status.flows_rate)
}

fn compact(server: &str, status: &ServerStatusResponse) -> String {
    let mut text = format!(
        "Healthcheck (via {server}): Ok\nCurrent/Max Flows: {}\nFlows/s: {}\n",
        flows(status),
        rate(status)
    );
    if let (Some(connected), Some(unavailable)) =
        (status.num_connected_nodes, status.num_unavailable_nodes)
    {
        text += &format!("Connected Nodes: {connected}/{}\n", connected + unavailable);
        if unavailable > 0 {
            let more = match unavailable as usize - status.unavailable_nodes.len() {
                0 => String::new(),
                more => format!(" (and {more} more)"),
            };
            text += &format!(
                "Unavailable Nodes: {unavailable}\n  - {}{more}\n",
                status.unavailable_nodes.join("\n  - ")
            );
        }
    }
    text
}

fn cells(status: &ServerStatusResponse) -> Vec<(&'static str, String)> {
    let count = |number: Option<u32>| number.map_or_else(|| "N/A".to_owned(), |n| n.to_string());
    vec![
        ("NUM FLOWS", thousands(status.num_flows)),
        ("MAX FLOWS", thousands(status.max_flows)),
        ("SEEN FLOWS", thousands(status.seen_flows)),
        ("FLOWS PER SECOND", rate(status)),
        ("UPTIME", uptime(status.uptime_ns)),
        ("NUM CONNECTED NODES", count(status.num_connected_nodes)),
        ("NUM UNAVAILABLE NODES", count(status.num_unavailable_nodes)),
        ("VERSION", status.version.clone()),
    ]
}

fn dict(status: &ServerStatusResponse) -> String {
    let lines = cells(status).into_iter().map(|(name, value)| format!("{name:>21}: {value}\n"));
    lines.collect()
}

fn status_table(status: &ServerStatusResponse) -> String {
    let (names, values): (Vec<_>, Vec<_>) = cells(status).into_iter().unzip();
    table(&[names.into_iter().map(str::to_owned).collect(), values])
}

/// Rows in columns, three blanks apart.
fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.first().map_or(0, Vec::len);
    let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}   "));
        format!("{}\n", cells.collect::<String>().trim_end())
    };
    rows.iter().map(line).collect()
}

/// `hubble list nodes`.
pub(super) async fn nodes(settings: &Settings, matches: &ArgMatches) -> Result<()> {
    let (channel, server) = connect(settings).await?;
    let mut client = ObserverClient::new(channel);
    let response = in_time(settings, &server, client.get_nodes(GetNodesRequest {})).await?;
    match format(matches) {
        "json" => print(&format!("{}\n", list_json(&to_json(&response), "nodes")?)),
        "yaml" => print(&list_yaml(&to_json(&response), "nodes")?),
        wide => print(&nodes_table(&response, wide == "wide")),
    }
}

fn list_value(json: &str, field: &str) -> Result<serde_json::Value> {
    let mut value: serde_json::Value = serde_json::from_str(json)?;
    Ok(value.get_mut(field).map_or_else(|| serde_json::json!([]), serde_json::Value::take))
}

fn list_json(json: &str, field: &str) -> Result<String> {
    serde_json::to_string_pretty(&list_value(json, field)?).context("print JSON")
}

fn list_yaml(json: &str, field: &str) -> Result<String> {
    crate::output::encode(&list_value(json, field)?, crate::args::Format::Yaml)
}

fn nodes_table(response: &GetNodesResponse, wide: bool) -> String {
    let mut headings = vec!["NAME", "STATUS", "AGE", "FLOWS/S", "CURRENT/MAX-FLOWS"];
    if wide {
        headings.extend(["VERSION", "ADDRESS", "TLS"]);
    }
    let mut rows = vec![headings.into_iter().map(str::to_owned).collect()];
    let row = |node: &Node| {
        let state = match node.state() {
            NodeState::NodeConnected => "Connected",
            NodeState::NodeUnavailable => "Unavailable",
            NodeState::NodeGone => "Gone",
            NodeState::NodeError => "Error",
            NodeState::UnknownNodeState => "Unknown",
        };
        let seconds = Duration::from_nanos(node.uptime_ns).as_secs_f64();
        let rate = if seconds > 0.0 { node.seen_flows as f64 / seconds } else { 0.0 };
        let percent = node.num_flows as f64 * 100.0 / node.max_flows.max(1) as f64;
        let mut cells = vec![
            node.name.clone(),
            state.to_owned(),
            if node.uptime_ns == 0 { "N/A".to_owned() } else { uptime(node.uptime_ns) },
            format!("{rate:.2}"),
            format!("{}/{} ({percent:6.2}%)", node.num_flows, node.max_flows),
        ];
        if wide {
            let tls = node.tls.as_ref().is_some_and(|tls| tls.enabled);
            let tls = if tls { "Enabled" } else { "Disabled" }.to_owned();
            cells.extend([node.version.clone(), node.address.clone(), tls]);
        }
        cells
    };
    rows.extend(response.nodes.iter().map(row));
    table(&rows)
}

/// `hubble list namespaces`.
pub(super) async fn namespaces(settings: &Settings, matches: &ArgMatches) -> Result<()> {
    let (channel, server) = connect(settings).await?;
    let mut client = ObserverClient::new(channel);
    let response =
        in_time(settings, &server, client.get_namespaces(GetNamespacesRequest {})).await?;
    match format(matches) {
        "json" => print(&format!("{}\n", list_json(&to_json(&response), "namespaces")?)),
        "yaml" => print(&list_yaml(&to_json(&response), "namespaces")?),
        _ => {
            let mut rows = vec![vec!["NAMESPACE".to_owned(), "CLUSTER".to_owned()]];
            rows.extend(response.namespaces.into_iter().map(|n| vec![n.namespace, n.cluster]));
            print(&table(&rows))
        }
    }
}

/// `hubble watch peers`.
pub(super) async fn watch_peers(settings: &Settings) -> Result<()> {
    let (channel, server) = connect(settings).await?;
    let call = PeerClient::new(channel).notify(NotifyRequest {}).await;
    let mut stream = call.map_err(|status| failed(&server, &status))?.into_inner();
    loop {
        let change = tokio::select! {
            change = stream.message() => change.map_err(|status| failed(&server, &status))?,
            _ = tokio::signal::ctrl_c() => None,
        };
        let Some(change) = change else { return Ok(()) };
        let tls = match &change.tls {
            Some(tls) => format!(" (TLS.ServerName: {})", tls.server_name),
            None => String::new(),
        };
        let kind = change.r#type().as_str_name();
        print(&format!("{kind:<12} {} {}{tls}\n", change.address, change.name))?;
    }
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;

    fn example() -> ServerStatusResponse {
        ServerStatusResponse {
            num_flows: 8190,
            max_flows: 16380,
            seen_flows: 1_234_567,
            uptime_ns: 3_725_000_000_000,
            num_connected_nodes: Some(3),
            num_unavailable_nodes: Some(1),
            unavailable_nodes: vec!["node-9".to_owned()],
            version: "hubble-relay v1".to_owned(),
            flows_rate: 30.888,
        }
    }

    #[test]
    fn statuses() {
        expect![[r#"
            Healthcheck (via localhost:4245): Ok
            Current/Max Flows: 8,190/16,380 (50.00%)
            Flows/s: 30.89
            Connected Nodes: 3/4
            Unavailable Nodes: 1
              - node-9
        "#]]
        .assert_eq(&compact("localhost:4245", &example()));
        expect![[r#"
                        NUM FLOWS: 8,190
                        MAX FLOWS: 16,380
                       SEEN FLOWS: 1,234,567
                 FLOWS PER SECOND: 30.89
                           UPTIME: 1h2m5s
              NUM CONNECTED NODES: 3
            NUM UNAVAILABLE NODES: 1
                          VERSION: hubble-relay v1
        "#]]
        .assert_eq(&dict(&example()));
        expect![[r#"
            NUM FLOWS   MAX FLOWS   SEEN FLOWS   FLOWS PER SECOND   UPTIME   NUM CONNECTED NODES   NUM UNAVAILABLE NODES   VERSION
            8,190       16,380      1,234,567    30.89              1h2m5s   3                     1                       hubble-relay v1
        "#]].assert_eq(&status_table(&example()));
    }

    #[test]
    fn nodes() {
        let node = |name: &str, state: NodeState| Node {
            name: name.to_owned(),
            state: state.into(),
            uptime_ns: 100_000_000_000,
            seen_flows: 250,
            num_flows: 63,
            max_flows: 126,
            address: "10.0.0.1:4244".to_owned(),
            ..Node::default()
        };
        let nodes =
            vec![node("a", NodeState::NodeConnected), node("b", NodeState::NodeUnavailable)];
        expect![[r#"
            NAME   STATUS        AGE     FLOWS/S   CURRENT/MAX-FLOWS   VERSION   ADDRESS         TLS
            a      Connected     1m40s   2.50      63/126 ( 50.00%)              10.0.0.1:4244   Disabled
            b      Unavailable   1m40s   2.50      63/126 ( 50.00%)              10.0.0.1:4244   Disabled
        "#]].assert_eq(&nodes_table(&GetNodesResponse { nodes }, true));
    }
}
