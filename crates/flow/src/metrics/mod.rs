//! Metrics of flows for Prometheus, with Hubble's names, labels and options.
//!
//! The option `hubble-metrics` names what is counted, each with its own labels:
//! `drop:sourceContext=pod|ip;destinationContext=pod|ip flow tcp`. Flows are counted where they are
//! taken in, so nothing is missed; each metric has a limit of series, and what is beyond is counted
//! as one.

mod context;

use std::collections::HashMap;
use std::fmt::Write as _;
use std::sync::{Mutex, PoisonError};

use api::hubble::flow::{LostEventSource, Verdict};

use crate::event::{Event, match_name, observation_point_name, reason_text};
use crate::observer::Tap;
use crate::packet::Transport;
use crate::row::Row;
use context::Context;

/// Series of one metric at most.
const SERIES_MAX: usize = 20_000;

/// What can be counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Handler {
    Drop,
    Flow,
    FlowsToWorld,
    Icmp,
    Policy,
    PortDistribution,
    Tcp,
}

impl Handler {
    const ALL: [(&'static str, Self); 7] = [
        ("drop", Self::Drop),
        ("flow", Self::Flow),
        ("flows-to-world", Self::FlowsToWorld),
        ("icmp", Self::Icmp),
        ("policy", Self::Policy),
        ("port-distribution", Self::PortDistribution),
        ("tcp", Self::Tcp),
    ];

    /// Name, help and labels of its metric.
    const fn metric(self) -> (&'static str, &'static str, &'static [&'static str]) {
        match self {
            Self::Drop => ("hubble_drop_total", "Number of drops", &["reason", "protocol"]),
            Self::Flow => (
                "hubble_flows_processed_total",
                "Total number of flows processed",
                &["protocol", "type", "subtype", "verdict"],
            ),
            Self::FlowsToWorld => (
                "hubble_flows_to_world_total",
                "Total number of flows to reserved:world",
                &["protocol", "verdict"],
            ),
            Self::Icmp => ("hubble_icmp_total", "Number of ICMP messages", &["family", "type"]),
            Self::Policy => (
                "hubble_policy_verdicts_total",
                "Total number of Cilium network policy verdicts",
                &["direction", "match", "action"],
            ),
            Self::PortDistribution => (
                "hubble_port_distribution_total",
                "Numbers of packets distributed by destination port",
                &["protocol", "port"],
            ),
            Self::Tcp => ("hubble_tcp_flags_total", "TCP flag occurrences", &["flag", "family"]),
        }
    }

    /// The values of its labels for a flow that counts; none for one that does not.
    fn labels(self, row: &Row) -> Option<Vec<String>> {
        let verdict = row.verdict();
        let forwarded = || (verdict == Verdict::Forwarded).then_some(());
        let owned = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
        Some(match self {
            Self::Drop => {
                (verdict == Verdict::Dropped).then_some(())?;
                vec![reason_text(row.drop_reason()), protocol(row).to_owned()]
            }
            Self::Flow => {
                let (kind, sub) = kind(row);
                owned(&[protocol(row), kind, sub, verdict.as_str_name()])
            }
            Self::FlowsToWorld => {
                forwarded()?;
                let is_world = row.destination.labels.as_ref()?.labels.iter();
                let mut is_world = is_world.filter(|label| label.starts_with("reserved:world"));
                (row.is_reply() != Some(true) && is_world.next().is_some()).then_some(())?;
                owned(&[protocol(row), verdict.as_str_name()])
            }
            Self::Icmp => {
                forwarded()?;
                let transport = row.transport()?;
                let family = match transport {
                    Transport::Icmpv4 { .. } => "IPv4",
                    Transport::Icmpv6 { .. } => "IPv6",
                    _ => return None,
                };
                let words = transport.to_string();
                let name = words.split_once(' ').map_or("", |(_, name)| name);
                owned(&[family, name])
            }
            Self::Policy => {
                let Event::Verdict(event) = &row.event else { return None };
                let direction = if event.ingress { "ingress" } else { "egress" };
                let action = verdict.as_str_name().to_ascii_lowercase();
                let kind = match_name(event.match_type).to_ascii_lowercase();
                vec![direction.to_owned(), kind, action]
            }
            Self::PortDistribution => {
                (verdict == Verdict::Forwarded || verdict == Verdict::Redirected).then_some(())?;
                (row.is_reply() == Some(false)).then_some(())?;
                let (_, port) = row.transport()?.ports()?;
                vec![protocol(row).to_owned(), port.to_string()]
            }
            Self::Tcp => {
                forwarded()?;
                let Transport::Tcp { flags, .. } = row.transport()? else { return None };
                let flag = match (flags.0 & 0x01, flags.0 & 0x12, flags.0 & 0x04) {
                    (1.., _, _) => "FIN",
                    (0, 0x12, _) => "SYN-ACK",
                    (0, 0x02, _) => "SYN",
                    (0, _, 1..) => "RST",
                    _ => return None,
                };
                let is_ipv4 = row.destination_ip()?.is_ipv4();
                owned(&[flag, if is_ipv4 { "IPv4" } else { "IPv6" }])
            }
        })
    }
}

fn protocol(row: &Row) -> &'static str {
    match row.transport() {
        Some(Transport::Tcp { .. }) => "TCP",
        Some(Transport::Udp { .. }) => "UDP",
        Some(Transport::Sctp { .. }) => "SCTP",
        Some(Transport::Icmpv4 { .. }) => "ICMPv4",
        Some(Transport::Icmpv6 { .. }) => "ICMPv6",
        Some(Transport::Other { .. }) | None => "Unknown",
    }
}

fn kind(row: &Row) -> (&'static str, &'static str) {
    match &row.event {
        Event::Drop(_) => ("Drop", ""),
        Event::Trace(trace) => ("Trace", observation_point_name(trace.observation_point)),
        Event::Verdict(_) => ("PolicyVerdict", ""),
        Event::Sock(_) => ("TraceSock", ""),
        Event::Capture(_) => ("Capture", ""),
        Event::Debug(_) => ("Debug", ""),
    }
}

/// The option cannot be understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("metric {metric:?}: {reason}")]
pub struct MetricsError {
    /// The part of the option.
    pub metric: String,
    /// What is wrong with it.
    pub reason: String,
}

/// One metric, counted.
#[derive(Debug)]
struct Counter {
    handler: Handler,
    context: Context,
    series: Mutex<Series>,
}

#[derive(Debug, Default)]
struct Series {
    counts: HashMap<Vec<String>, u64>,
    /// Flows that would have needed one series more than there may be.
    beyond: u64,
}

/// Everything that is counted.
#[derive(Debug)]
pub struct Metrics {
    counters: Vec<Counter>,
    lost: Mutex<HashMap<&'static str, u64>>,
}

impl Metrics {
    /// Reads the option `hubble-metrics`.
    pub fn parse<'a>(metrics: impl IntoIterator<Item = &'a str>) -> Result<Self, MetricsError> {
        let counters = metrics.into_iter().map(|metric| {
            let error = |reason| MetricsError { metric: metric.to_owned(), reason };
            let (name, options) = metric.split_once(':').unwrap_or((metric, ""));
            let found = Handler::ALL.iter().find(|(known, _)| *known == name);
            let Some((_, handler)) = found else {
                let known: Vec<&str> = Handler::ALL.iter().map(|(name, _)| *name).collect();
                return Err(error(format!("not counted; there are {}", known.join(", "))));
            };
            let context = Context::parse(options).map_err(error)?;
            Ok(Counter { handler: *handler, context, series: Mutex::default() })
        });
        Ok(Self { counters: counters.collect::<Result<_, _>>()?, lost: Mutex::default() })
    }

    /// All metrics in Prometheus' text format.
    pub fn render(&self) -> String {
        let mut text = String::new();
        for counter in &self.counters {
            counter.render(&mut text);
        }
        let lost = self.lost.lock().unwrap_or_else(PoisonError::into_inner);
        let name = "hubble_lost_events_total";
        let _ = writeln!(text, "# HELP {name} Number of lost events\n# TYPE {name} counter");
        for source in [
            LostEventSource::PerfEventRingBuffer,
            LostEventSource::ObserverEventsQueue,
            LostEventSource::HubbleRingBuffer,
        ] {
            let source = source.as_str_name();
            let count = lost.get(source).copied().unwrap_or(0);
            let label = source.to_ascii_lowercase();
            let _ = writeln!(text, "{name}{{source=\"{label}\"}} {count}");
        }
        text
    }
}

impl Tap for Metrics {
    fn flow(&self, row: &Row) {
        for counter in &self.counters {
            counter.count(row);
        }
    }

    fn lost(&self, source: LostEventSource, count: u64) {
        let mut lost = self.lost.lock().unwrap_or_else(PoisonError::into_inner);
        *lost.entry(source.as_str_name()).or_default() += count;
    }
}

impl Counter {
    fn count(&self, row: &Row) {
        let Some(mut labels) = self.handler.labels(row) else { return };
        self.context.extend(row, &mut labels);
        let mut series = self.series.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = series.counts.get_mut(&labels) {
            *count += 1;
        } else if series.counts.len() < SERIES_MAX {
            series.counts.insert(labels, 1);
        } else {
            series.beyond += 1;
        }
    }

    fn render(&self, text: &mut String) {
        let (name, help, labels) = self.handler.metric();
        let names: Vec<&str> = labels.iter().copied().chain(self.context.names()).collect();
        let series = self.series.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} counter");
        let mut all: Vec<_> = series.counts.iter().collect();
        all.sort();
        for (values, count) in all {
            let pairs = names.iter().zip(values);
            let pairs: Vec<String> =
                pairs.map(|(name, value)| format!("{name}=\"{}\"", escape(value))).collect();
            let _ = writeln!(text, "{name}{{{}}} {count}", pairs.join(","));
        }
        if series.beyond > 0 {
            let beyond = format!("{}_beyond_limit_total", name.trim_end_matches("_total"));
            let _ = writeln!(
                text,
                "# HELP {beyond} Flows without a series of their own, of which {name} has at most {SERIES_MAX}\n\
                 # TYPE {beyond} counter\n{beyond} {}",
                series.beyond
            );
        }
    }
}

fn escape(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_refused_by_name() {
        let refused = |option: &str| Metrics::parse([option]).unwrap_err().to_string();
        assert!(refused("drops").starts_with(r#"metric "drops": not counted; there are drop, "#));
        assert_eq!(
            refused("drop:sourceContext=podd"),
            r#"metric "drop:sourceContext=podd": sourceContext: "podd" is no context"#
        );
        assert_eq!(
            refused("tcp:labelsContext=source_pot"),
            r#"metric "tcp:labelsContext=source_pot": labelsContext: "source_pot" is no label"#
        );
    }
}
