//! How flows and events are printed: Hubble's compact line, dict, table and JSON.

use std::io::{IsTerminal, Write};

use anyhow::{Context, Result};
use api::hubble::flow::layer7::Record as L7;
use api::hubble::flow::{
    self, AgentEvent, AuthType, Flow, LostEvent, Policy, Verdict, agent_event::Notification,
    layer4::Protocol,
};
use api::hubble::observer::{
    GetAgentEventsResponse, GetDebugEventsResponse, GetFlowsResponse,
    get_flows_response::ResponseTypes,
};
use api::hubble::relay::{NodeState, NodeStatusEvent};
use api::hubble::to_json;
use clap::ArgMatches;
use prost_types::Timestamp;

/// Between two records of the format `dict`.
const DICT_SEPARATOR: &str = "------------";
/// Names of nodes in one line at most, in characters.
const NODE_NAMES_LEN_MAX: usize = 50;
/// Lines that the table's columns are made to fit; who follows sees them at once after these.
const TABLE_LINES_MAX: usize = 1000;

/// A format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Output {
    Compact,
    Dict,
    Json,
    Table,
}

/// Prints what a server sends.
pub(super) struct Printer<W: Write> {
    out: W,
    output: Output,
    time_format: String,
    node_name: bool,
    policy_names: bool,
    translate: bool,
    numeric: bool,
    color: bool,
    debug: bool,
    silent: bool,
    count: usize,
    rows: Vec<Vec<String>>,
    follows: bool,
}

impl Printer<std::io::Stdout> {
    /// A printer to standard output, as the flags say.
    pub(super) fn new(matches: &ArgMatches) -> Self {
        let stdout = std::io::stdout();
        let choice = matches.get_one::<String>("color").map_or("auto", String::as_str);
        let is_colourful = stdout.is_terminal() && std::env::var_os("NO_COLOR").is_none();
        let color = choice == "always" || (choice == "auto" && is_colourful);
        Self::to(stdout, matches, color)
    }
}

impl<W: Write> Printer<W> {
    fn to(out: W, matches: &ArgMatches, color: bool) -> Self {
        let text = |name: &str| matches.get_one::<String>(name).map_or("", String::as_str);
        let output = match text("output") {
            "dict" => Output::Dict,
            "json" | "jsonpb" => Output::Json,
            "tab" | "table" => Output::Table,
            _ => Output::Compact,
        };
        let numeric = matches.get_flag("numeric");
        Self {
            out,
            output,
            time_format: text("time-format").to_owned(),
            node_name: matches.get_flag("print-node-name"),
            policy_names: matches.get_flag("print-policy-names"),
            translate: !numeric && *matches.get_one("ip-translation").unwrap_or(&true),
            numeric,
            color: color && output != Output::Table,
            debug: matches.get_flag("debug"),
            silent: matches.get_flag("silent-errors"),
            count: 0,
            rows: Vec::new(),
            follows: matches.get_flag("follow"),
        }
    }

    /// Whether whole messages are printed.
    pub(super) fn is_json(&self) -> bool {
        self.output == Output::Json
    }

    /// Prints a response of `GetFlows`.
    pub(super) fn response(&mut self, response: &GetFlowsResponse) -> Result<()> {
        match &response.response_types {
            Some(ResponseTypes::Flow(flow)) if self.output == Output::Json => {
                let _ = flow;
                self.line(&to_json(response))
            }
            Some(ResponseTypes::Flow(flow)) => self.flow(flow),
            Some(ResponseTypes::LostEvents(lost)) => self.lost(response, lost),
            Some(ResponseTypes::NodeStatus(status)) => self.node_status(response, status),
            None => Ok(()),
        }
    }

    fn flow(&mut self, flow: &Flow) -> Result<()> {
        let (mut source, mut destination) = self.hosts(flow);
        let time = self.time(flow.time.as_ref());
        let (kind, verdict, summary) = (flow_type(flow), self.verdict(flow), self.summary(flow));
        let node = self.node_name.then(|| flow.node_name.clone());
        if self.output == Output::Compact {
            let mut identities =
                (self.identity(flow.source.as_ref()), self.identity(flow.destination.as_ref()));
            let arrow = match flow.is_reply {
                None => "<>",
                Some(false) => "->",
                Some(true) => {
                    std::mem::swap(&mut source, &mut destination);
                    identities = (identities.1, identities.0);
                    "<-"
                }
            };
            let node = node.map(|node| format!(" [{node}]")).unwrap_or_default();
            let (from, to) = identities;
            return self.line(&format!(
                "{time}{node}: {source} {from} {arrow} {destination} {to} {kind} {verdict} ({summary})"
            ));
        }
        let mut cells = vec![("TIMESTAMP", time)];
        cells.extend(node.map(|node| ("NODE", node)));
        cells.extend([
            ("SOURCE", source),
            ("DESTINATION", destination),
            ("TYPE", kind),
            ("VERDICT", verdict),
            ("SUMMARY", summary),
        ]);
        self.cells(cells)
    }

    /// Prints a response of `GetAgentEvents`.
    pub(super) fn agent_event(&mut self, response: &GetAgentEventsResponse) -> Result<()> {
        let Some(event) = &response.agent_event else { return Ok(()) };
        if self.output == Output::Json {
            return self.line(&to_json(response));
        }
        let (time, details) = (self.time(response.time.as_ref()), self.agent_details(event));
        let name = event.r#type().as_str_name().to_owned();
        if self.output == Output::Compact {
            let node =
                if self.node_name { format!(" [{}]", response.node_name) } else { String::new() };
            return self.line(&format!("{time}{node}: {name} ({details})"));
        }
        let mut cells = vec![("TIMESTAMP", time)];
        cells.extend(self.node_name.then(|| ("NODE", response.node_name.clone())));
        cells.extend([("TYPE", name), ("DETAILS", details)]);
        self.cells(cells)
    }

    /// Prints a response of `GetDebugEvents`.
    pub(super) fn debug_event(&mut self, response: &GetDebugEventsResponse) -> Result<()> {
        let Some(event) = &response.debug_event else { return Ok(()) };
        if self.output == Output::Json {
            return self.line(&to_json(response));
        }
        let time = self.time(response.time.as_ref());
        let source = event.source.as_ref().map_or_else(
            || "N/A".to_owned(),
            |source| {
                let pod = join(&source.namespace, &source.pod_name);
                let name = if pod.is_empty() { String::new() } else { format!("{pod} ") };
                format!("{name}(ID: {})", source.id)
            },
        );
        let name = event.r#type().as_str_name().to_owned();
        let mark = event.hash.map_or_else(|| "N/A".to_owned(), |hash| format!("{hash:#x}"));
        let cpu = event.cpu.map_or_else(|| "N/A".to_owned(), |cpu| format!("{cpu:02}"));
        if self.output == Output::Compact {
            let node =
                if self.node_name { format!(" [{}]", response.node_name) } else { String::new() };
            return self.line(&format!(
                "{time}{node}: {source} {name} MARK: {mark} CPU: {cpu} ({})",
                event.message
            ));
        }
        let mut cells = vec![("TIMESTAMP", time)];
        cells.extend(self.node_name.then(|| ("NODE", response.node_name.clone())));
        cells.extend([
            ("FROM", source),
            ("TYPE", name),
            ("CPU/MARK", format!("{cpu} {mark}")),
            ("MESSAGE", event.message.clone()),
        ]);
        self.cells(cells)
    }

    fn lost(&mut self, response: &GetFlowsResponse, lost: &LostEvent) -> Result<()> {
        if self.output == Output::Json {
            return self.line(&to_json(response));
        }
        let cpu = lost.cpu.map(|cpu| format!("CPU({cpu}), ")).unwrap_or_default();
        let line =
            format!("EVENTS LOST: {} {cpu}{}", lost.source().as_str_name(), lost.num_events_lost);
        if self.output == Output::Table {
            self.error(&line);
            return Ok(());
        }
        self.line(&line)
    }

    fn node_status(&mut self, response: &GetFlowsResponse, status: &NodeStatusEvent) -> Result<()> {
        let state = status.state_change();
        // That all is well is no news.
        let is_trouble = matches!(state, NodeState::NodeError | NodeState::NodeUnavailable);
        if !is_trouble && !self.debug {
            return Ok(());
        }
        if self.output == Output::Json {
            self.error(&to_json(response));
            return Ok(());
        }
        let (count, names) = (status.node_names.len(), cut(&status.node_names));
        let time = self.time(response.time.as_ref());
        let what = match state {
            NodeState::NodeConnected => format!("Receiving flows from {count} nodes: {names}"),
            NodeState::NodeUnavailable => format!("{count} nodes are unavailable: {names}"),
            NodeState::NodeGone => format!("{count} nodes removed from cluster: {names}"),
            NodeState::NodeError => format!("Error {:?} on {count} nodes: {names}", status.message),
            NodeState::UnknownNodeState => format!("unknown state of {count} nodes: {names}"),
        };
        self.error(&format!("{time} [{}]: {what}", response.node_name));
        Ok(())
    }

    fn error(&self, line: &str) {
        if !self.silent {
            eprintln!("{line}");
        }
    }

    fn line(&mut self, line: &str) -> Result<()> {
        self.count += 1;
        writeln!(self.out, "{line}").context("print")
    }

    fn cells(&mut self, cells: Vec<(&str, String)>) -> Result<()> {
        if self.output == Output::Dict {
            if self.count > 0 {
                self.line(DICT_SEPARATOR)?;
            }
            let lines = cells.iter().map(|(name, value)| format!("{name:>11}: {value}"));
            return self.line(&lines.collect::<Vec<_>>().join("\n"));
        }
        if self.rows.is_empty() && self.count == 0 {
            self.rows.push(cells.iter().map(|(name, _)| (*name).to_owned()).collect());
        }
        self.rows.push(cells.into_iter().map(|(_, value)| value).collect());
        if self.follows || self.rows.len() > TABLE_LINES_MAX {
            return self.flush();
        }
        Ok(())
    }

    /// Prints the rows that were held back to know how wide columns are.
    pub(super) fn flush(&mut self) -> Result<()> {
        let rows = std::mem::take(&mut self.rows);
        let columns = rows.first().map_or(0, Vec::len);
        let widths: Vec<usize> = (0..columns)
            .map(|column| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0))
            .collect();
        for row in &rows {
            let mut line = String::new();
            for (cell, width) in row.iter().zip(&widths) {
                line += &format!("{cell:<width$}   ");
            }
            self.line(line.trim_end())?;
        }
        self.out.flush().context("print")
    }

    fn time(&self, time: Option<&Timestamp>) -> String {
        time.map_or_else(|| "N/A".to_owned(), |time| format_time(time, &self.time_format))
    }

    /// Both ends, with ports.
    fn hosts(&self, flow: &Flow) -> (String, String) {
        let Some(ip) = &flow.ip else {
            return match &flow.ethernet {
                Some(ethernet) => (ethernet.source.clone(), ethernet.destination.clone()),
                None => (String::new(), String::new()),
            };
        };
        let (from, to) = ports(flow);
        let source = self.host(
            &ip.source,
            from,
            flow.source.as_ref(),
            flow.source_service.as_ref(),
            &flow.source_names,
        );
        let destination = self.host(
            &ip.destination,
            to,
            flow.destination.as_ref(),
            flow.destination_service.as_ref(),
            &flow.destination_names,
        );
        (self.paint("36", source), self.paint("36", destination))
    }

    fn host(
        &self,
        address: &str,
        port: u32,
        end: Option<&flow::Endpoint>,
        service: Option<&flow::Service>,
        names: &[String],
    ) -> String {
        let pod = end.map(|end| join(&end.namespace, &end.pod_name));
        let pod = end.filter(|end| !end.pod_name.is_empty()).and(pod);
        let service = service.filter(|service| !service.name.is_empty());
        let name = if !self.translate {
            None
        } else if let Some(pod) = pod {
            Some(pod)
        } else if let Some(service) = service {
            Some(join(&service.namespace, &service.name))
        } else if !names.is_empty() {
            Some(names.join(","))
        } else {
            None
        };
        match (name, port) {
            (Some(name), 0) => name,
            (Some(name), port) => format!("{name}:{port}"),
            (None, 0) => address.to_owned(),
            (None, port) if address.contains(':') => format!("[{address}]:{port}"),
            (None, port) => format!("{address}:{port}"),
        }
    }

    fn identity(&self, end: Option<&flow::Endpoint>) -> String {
        let number = end.map_or(0, |end| end.identity);
        let text = match abi::identity::reserved_name(number) {
            Some(name) if !self.numeric => format!("({name})"),
            _ => format!("(ID:{number})"),
        };
        self.paint("35", text)
    }

    fn verdict(&self, flow: &Flow) -> String {
        let is_policy = flow.event_type.is_some_and(|event| event.r#type == 5);
        let verdict = flow.verdict();
        let word = match verdict {
            Verdict::Forwarded | Verdict::Redirected if is_policy => "ALLOWED",
            Verdict::Dropped | Verdict::Error if is_policy => "DENIED",
            Verdict::Audit if is_policy => "AUDITED",
            other => other.as_str_name(),
        };
        let (allowed, denied) = (
            [&flow.egress_allowed_by, &flow.ingress_allowed_by],
            [&flow.egress_denied_by, &flow.ingress_denied_by],
        );
        let deciding =
            if word == "DENIED" || verdict == Verdict::Dropped { denied } else { allowed };
        let names: Vec<String> = deciding.into_iter().flatten().map(policy_name).collect();
        let text = match names.is_empty() || !self.policy_names {
            true => word.to_owned(),
            false => format!("{word} BY {}", names.join(",")),
        };
        let colour = match verdict {
            Verdict::Forwarded | Verdict::Redirected => "32",
            Verdict::Dropped | Verdict::Error => "31",
            Verdict::Audit | Verdict::Traced | Verdict::Translated => "33",
            Verdict::Unknown => return text,
        };
        self.paint(colour, text)
    }

    fn summary(&self, flow: &Flow) -> String {
        let trace = flow.ip_trace_id.filter(|id| id.trace_id > 0);
        let trace = trace.map(|id| format!("IP Trace ID: {}; ", id.trace_id)).unwrap_or_default();
        let own = match &flow.l7 {
            Some(l7) if flow.summary.is_empty() => l7_summary(l7),
            _ => flow.summary.clone(),
        };
        let auth = match flow.auth_type() {
            AuthType::Disabled => String::new(),
            auth => format!("; Auth: {}", auth.as_str_name()),
        };
        format!("{trace}{own}{auth}")
    }

    fn agent_details(&self, event: &AgentEvent) -> String {
        match &event.notification {
            Some(Notification::AgentStart(start)) => {
                format!("start time: {}", self.time(start.time.as_ref()))
            }
            Some(Notification::PolicyUpdate(update)) => format!(
                "labels: [{}], revision: {}, count: {}",
                update.labels.join(","),
                update.revision,
                update.rule_count
            ),
            Some(Notification::EndpointUpdate(update)) => {
                let part = |name: &str, value: &str| match value {
                    "" => String::new(),
                    value => format!(", {name}: {value}"),
                };
                let namespace = part("namespace", &update.namespace);
                format!("id: {}{namespace}{}", update.id, part("pod name", &update.pod_name))
            }
            Some(Notification::EndpointRegenerate(update)) => {
                format!("id: {}, labels: [{}]", update.id, update.labels.join(","))
            }
            Some(Notification::IpcacheUpdate(update)) => {
                let host = match update.host_ip.as_str() {
                    "" => String::new(),
                    host => format!(", host ip: {host}"),
                };
                format!(
                    "cidr: {}, identity: {}{host}, encrypt key: {}",
                    update.cidr, update.identity, update.encrypt_key
                )
            }
            Some(Notification::Unknown(unknown)) => {
                format!("type: {}, notification: {}", unknown.r#type, unknown.notification)
            }
            // Services are told no more.
            _ => "UNKNOWN".to_owned(),
        }
    }

    fn paint(&self, colour: &str, text: String) -> String {
        if self.color && !text.is_empty() {
            format!("\u{1b}[{colour}m{text}\u{1b}[0m")
        } else {
            text
        }
    }
}

fn join(namespace: &str, name: &str) -> String {
    match (namespace, name) {
        ("", name) => name.to_owned(),
        (namespace, "") => namespace.to_owned(),
        (namespace, name) => format!("{namespace}/{name}"),
    }
}

/// How a policy is named in the column of verdicts.
pub(super) fn policy_name(policy: &Policy) -> String {
    join(&policy.namespace, &policy.name)
}

fn cut(names: &[String]) -> String {
    let mut len = 0;
    let fit = names.iter().enumerate().take_while(|(index, name)| {
        len += name.len() + 2;
        *index == 0 || len <= NODE_NAMES_LEN_MAX
    });
    let shown: Vec<&str> = fit.map(|(_, name)| name.as_str()).collect();
    let more = match names.len() - shown.len() {
        0 => String::new(),
        more => format!(" (and {more} more)"),
    };
    format!("{}{more}", shown.join(", "))
}

fn ports(flow: &Flow) -> (u32, u32) {
    match flow.l4.as_ref().and_then(|l4| l4.protocol.as_ref()) {
        Some(Protocol::Tcp(tcp)) => (tcp.source_port, tcp.destination_port),
        Some(Protocol::Udp(udp)) => (udp.source_port, udp.destination_port),
        Some(Protocol::Sctp(sctp)) => (sctp.source_port, sctp.destination_port),
        _ => (0, 0),
    }
}

/// The column TYPE.
fn flow_type(flow: &Flow) -> String {
    if let Some(l7) = &flow.l7 {
        let kind = l7.r#type().as_str_name().to_ascii_lowercase();
        return match &l7.record {
            Some(L7::Http(_)) => format!("http-{kind}"),
            Some(L7::Dns(dns)) => format!("dns-{kind} {}", dns.observation_source),
            Some(L7::Kafka(_)) => format!("kafka-{kind}"),
            None => format!("l7-{kind}"),
        };
    }
    let event = flow.event_type.unwrap_or_default();
    let sub_type = u8::try_from(event.sub_type).unwrap_or(u8::MAX);
    match event.r#type {
        1 => ::flow::reason_text(sub_type),
        3 => flow.debug_capture_point().as_str_name().to_owned(),
        4 => ::flow::observation_point_name(sub_type).to_owned(),
        5 => {
            let kind = u8::try_from(flow.policy_match_type).unwrap_or(u8::MAX);
            let direction = flow.traffic_direction().as_str_name();
            format!("policy-verdict:{} {direction}", ::flow::match_name(kind))
        }
        7 => {
            let point = u8::try_from(flow.sock_xlate_point).unwrap_or(0);
            ::flow::xlate_point_name(point).to_owned()
        }
        _ => "UNKNOWN".to_owned(),
    }
}

fn l7_summary(l7: &flow::Layer7) -> String {
    match &l7.record {
        Some(L7::Http(http)) if http.code != 0 => format!(
            "{} {} {} {:.1}ms ({} {})",
            http.protocol,
            http.code,
            "",
            l7.latency_ns as f64 / 1e6,
            http.method,
            http.url
        ),
        Some(L7::Http(http)) => format!("{} {} {}", http.protocol, http.method, http.url),
        Some(L7::Dns(dns)) => format!("DNS {} {}", dns.query, dns.qtypes.join(",")),
        _ => String::new(),
    }
}

/// A time in UTC, in one of the formats that have names.
pub(super) fn format_time(time: &Timestamp, format: &str) -> String {
    let fraction = |digits: usize| format!(".{:09}", time.nanos.max(0))[..=digits].to_owned();
    // `2023-11-14T22:13:20Z`, perhaps with a fraction.
    let whole = Timestamp { nanos: 0, ..*time }.to_string();
    let (date, clock) = whole.trim_end_matches('Z').split_once('T').unwrap_or((&whole, ""));
    let parts: Vec<&str> = date.split('-').collect();
    let [year, month, day] = parts[..] else { return whole };
    const MONTHS: [&str; 12] =
        ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let name =
        month.parse().ok().and_then(|m: usize| MONTHS.get(m.checked_sub(1)?)).unwrap_or(&"?");
    match format {
        "YearMonthDay" => date.to_owned(),
        "YearMonthDayHourMinuteSecond" => format!("{date} {clock}"),
        "RFC3339" => whole,
        "RFC3339Milli" => format!("{date}T{clock}{}Z", fraction(3)),
        "RFC3339Micro" => format!("{date}T{clock}{}Z", fraction(6)),
        "RFC3339Nano" => format!("{date}T{clock}{}Z", fraction(9)),
        "RFC1123Z" => {
            // 1970-01-01 was a Thursday.
            const DAYS: [&str; 7] = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"];
            let weekday =
                usize::try_from(time.seconds.div_euclid(86_400).rem_euclid(7)).unwrap_or(0);
            format!("{}, {day} {name} {year} {clock} +0000", DAYS[weekday])
        }
        _ => format!("{name} {:>2} {clock}{}", day.trim_start_matches('0'), fraction(3)),
    }
}

#[cfg(test)]
mod tests {
    use api::hubble::from_json;
    use expect_test::{Expect, expect};

    use super::*;
    use crate::hubble::args;

    const FORWARDED: &str = r#"{"flow": {"time": "2023-11-04T02:03:04.567890Z", "verdict": "FORWARDED",
        "IP": {"source": "10.0.0.1", "destination": "10.0.1.2"}, "node_name": "node-1",
        "l4": {"TCP": {"source_port": 40000, "destination_port": 80, "flags": {"SYN": true}}},
        "source": {"identity": 1000, "namespace": "default", "pod_name": "client"},
        "destination": {"identity": 2}, "event_type": {"type": 4, "sub_type": 3},
        "destination_service": {"name": "web", "namespace": "prod"},
        "is_reply": false, "Summary": "TCP Flags: SYN"}}"#;
    const REPLY: &str = r#"{"flow": {"verdict": "FORWARDED", "IP": {"source": "fd00::1", "destination": "fd00::2"},
        "l4": {"UDP": {"source_port": 53, "destination_port": 999}}, "source": {"identity": 2},
        "destination": {"identity": 300}, "event_type": {"type": 4}, "is_reply": true, "Summary": "UDP"}}"#;
    const DENIED: &str = r#"{"flow": {"verdict": "DROPPED", "IP": {"source": "10.0.0.1", "destination": "10.0.1.2"},
        "source": {"identity": 1000}, "destination": {"identity": 1001}, "traffic_direction": "INGRESS",
        "event_type": {"type": 5}, "policy_match_type": 2, "l4": {"ICMPv4": {"type": 8}},
        "ingress_denied_by": [{"name": "deny-all", "namespace": "prod"}], "Summary": "ICMPv4 EchoRequest"}}"#;
    const DROPPED: &str = r#"{"flow": {"verdict": "DROPPED", "ethernet": {"source": "a", "destination": "b"},
        "event_type": {"type": 1, "sub_type": 133}}}"#;
    const LOST: &str = r#"{"lost_events": {"source": "PERF_EVENT_RING_BUFFER", "num_events_lost": "9", "cpu": 1}}"#;

    #[track_caller]
    fn check(arguments: &[&str], expected: Expect) {
        let words = ["hubble", "observe"].iter().chain(arguments);
        let matches = args::command().try_get_matches_from(words).expect("flags");
        let (_, matches) = matches.subcommand().expect("observe");
        let mut printed = Vec::new();
        let mut printer = Printer::to(&mut printed, matches, false);
        for response in [FORWARDED, REPLY, DENIED, DROPPED, LOST] {
            printer.response(&from_json(response).expect("a response")).expect("printed");
        }
        printer.flush().expect("printed");
        expected.assert_eq(&String::from_utf8(printed).expect("text"));
    }

    #[test]
    fn lines() {
        check(
            &[],
            expect![[r#"
            Nov  4 02:03:04.567: default/client:40000 (ID:1000) -> prod/web:80 (world) to-stack FORWARDED (TCP Flags: SYN)
            N/A: [fd00::2]:999 (ID:300) <- [fd00::1]:53 (world) to-endpoint FORWARDED (UDP)
            N/A: 10.0.0.1 (ID:1000) <> 10.0.1.2 (ID:1001) policy-verdict:L3-L4 INGRESS DENIED (ICMPv4 EchoRequest)
            N/A: a (unknown) <> b (unknown) Policy denied DROPPED ()
            EVENTS LOST: PERF_EVENT_RING_BUFFER CPU(1), 9
        "#]],
        );
        check(
            &[
                "--print-node-name",
                "--print-policy-names",
                "--numeric",
                "--time-format",
                "RFC3339Milli",
            ],
            expect![[r#"
                2023-11-04T02:03:04.567Z [node-1]: 10.0.0.1:40000 (ID:1000) -> 10.0.1.2:80 (ID:2) to-stack FORWARDED (TCP Flags: SYN)
                N/A []: [fd00::2]:999 (ID:300) <- [fd00::1]:53 (ID:2) to-endpoint FORWARDED (UDP)
                N/A []: 10.0.0.1 (ID:1000) <> 10.0.1.2 (ID:1001) policy-verdict:L3-L4 INGRESS DENIED BY prod/deny-all (ICMPv4 EchoRequest)
                N/A []: a (ID:0) <> b (ID:0) Policy denied DROPPED ()
                EVENTS LOST: PERF_EVENT_RING_BUFFER CPU(1), 9
            "#]],
        );
    }

    #[test]
    fn dict() {
        check(
            &["-o", "dict"],
            expect![[r#"
              TIMESTAMP: Nov  4 02:03:04.567
                 SOURCE: default/client:40000
            DESTINATION: prod/web:80
                   TYPE: to-stack
                VERDICT: FORWARDED
                SUMMARY: TCP Flags: SYN
            ------------
              TIMESTAMP: N/A
                 SOURCE: [fd00::1]:53
            DESTINATION: [fd00::2]:999
                   TYPE: to-endpoint
                VERDICT: FORWARDED
                SUMMARY: UDP
            ------------
              TIMESTAMP: N/A
                 SOURCE: 10.0.0.1
            DESTINATION: 10.0.1.2
                   TYPE: policy-verdict:L3-L4 INGRESS
                VERDICT: DENIED
                SUMMARY: ICMPv4 EchoRequest
            ------------
              TIMESTAMP: N/A
                 SOURCE: a
            DESTINATION: b
                   TYPE: Policy denied
                VERDICT: DROPPED
                SUMMARY: 
            EVENTS LOST: PERF_EVENT_RING_BUFFER CPU(1), 9
        "#]],
        );
    }

    #[test]
    fn table() {
        check(
            &["-o", "tab"],
            expect![[r#"
            TIMESTAMP             SOURCE                 DESTINATION     TYPE                           VERDICT     SUMMARY
            Nov  4 02:03:04.567   default/client:40000   prod/web:80     to-stack                       FORWARDED   TCP Flags: SYN
            N/A                   [fd00::1]:53           [fd00::2]:999   to-endpoint                    FORWARDED   UDP
            N/A                   10.0.0.1               10.0.1.2        policy-verdict:L3-L4 INGRESS   DENIED      ICMPv4 EchoRequest
            N/A                   a                      b               Policy denied                  DROPPED
        "#]],
        );
    }

    #[test]
    fn times() {
        let time = Timestamp { seconds: 1_699_063_384, nanos: 5_067_890 };
        let all: Vec<String> = [
            "StampMilli",
            "YearMonthDay",
            "YearMonthDayHourMinuteSecond",
            "RFC3339",
            "RFC3339Milli",
            "RFC3339Micro",
            "RFC3339Nano",
            "RFC1123Z",
        ]
        .iter()
        .map(|format| format_time(&time, format))
        .collect();
        expect![[r#"
            Nov  4 02:03:04.005
            2023-11-04
            2023-11-04 02:03:04
            2023-11-04T02:03:04Z
            2023-11-04T02:03:04.005Z
            2023-11-04T02:03:04.005067Z
            2023-11-04T02:03:04.005067890Z
            Sat, 04 Nov 2023 02:03:04 +0000"#]]
        .assert_eq(&all.join("\n"));
    }
}
