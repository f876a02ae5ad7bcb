//! `FlowFilter` of the API → conditions. What cannot be understood is refused, naming the field.

use std::net::IpAddr;

use api::hubble::flow::{EventTypeFilter, FlowFilter};
use ipnet::IpNet;
use regex::Regex;

use super::cel::Expression;
use super::pattern::{NamePattern, PodPattern};
use super::selector::Selector;
use super::{Condition, Protocol, Side};

/// The type of events of application protocols.
const EVENT_L7: i32 = 129;
/// Filters that only events of application protocols can pass.
const LAYER_7: [&str; 6] =
    ["dns_query", "http_status_code", "http_method", "http_path", "http_url", "http_header"];

/// A filter cannot be understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {value:?}: {reason}")]
pub struct FilterError {
    /// The field, after the list it is in.
    pub field: String,
    /// What it holds.
    pub value: String,
    /// What is wrong with it.
    pub reason: String,
}

impl FilterError {
    fn new(field: &str, value: impl Into<String>, reason: impl Into<String>) -> Self {
        Self { field: field.to_owned(), value: value.into(), reason: reason.into() }
    }

    /// The same error of a filter in a list.
    pub(super) fn within(self, list: &str, index: usize) -> Self {
        Self { field: format!("{list}[{index}].{}", self.field), ..self }
    }
}

/// Collects the conditions of the fields that are set.
struct Conditions(Vec<Condition>);

impl Conditions {
    /// Parses the elements of a field; an empty field is no condition.
    fn add<T, U>(
        &mut self,
        field: &str,
        values: &[T],
        parse: impl Fn(&T) -> Result<U, String>,
        condition: impl FnOnce(Vec<U>) -> Condition,
    ) -> Result<(), FilterError>
    where
        T: std::fmt::Debug,
    {
        if values.is_empty() {
            return Ok(());
        }
        let parsed = values.iter().map(|value| {
            parse(value).map_err(|reason| {
                FilterError::new(field, format!("{value:?}").trim_matches('"'), reason)
            })
        });
        self.0.push(condition(parsed.collect::<Result<_, _>>()?));
        Ok(())
    }

    fn add_names(
        &mut self,
        field: &str,
        values: &[String],
        parse: impl FnOnce(&[String]) -> Result<NamePattern, String>,
        condition: impl FnOnce(NamePattern) -> Condition,
    ) -> Result<(), FilterError> {
        if !values.is_empty() {
            let parsed = parse(values);
            let error = |reason| FilterError::new(field, values.join(","), reason);
            self.0.push(condition(parsed.map_err(error)?));
        }
        Ok(())
    }
}

/// The conditions of a filter.
pub(super) fn conditions(filter: &FlowFilter) -> Result<Vec<Condition>, FilterError> {
    let mut all = Conditions(Vec::new());
    numbers(filter, &mut all)?;
    ends(filter, Side::Source, &mut all)?;
    ends(filter, Side::Destination, &mut all)?;
    texts(filter, &mut all)?;
    layer_7(filter, &mut all)?;
    if let Some(experimental) = &filter.experimental
        && !experimental.cel_expression.is_empty()
    {
        let texts = experimental.cel_expression.iter();
        let compiled = texts.map(|text| Expression::compile(text)).collect::<Result<_, _>>()?;
        all.0.push(Condition::Expression(compiled));
    }
    Ok(all.0)
}

/// What compares numbers: cheap, so it comes first.
fn numbers(f: &FlowFilter, all: &mut Conditions) -> Result<(), FilterError> {
    all.add("event_type", &f.event_type, |t: &EventTypeFilter| Ok(*t), Condition::EventType)?;
    all.add("verdict", &f.verdict, |n| enumeration(*n), Condition::Verdict)?;
    all.add("drop_reason_desc", &f.drop_reason_desc, |n| enumeration(*n), Condition::DropReason)?;
    all.add("traffic_direction", &f.traffic_direction, |n| enumeration(*n), Condition::Direction)?;
    all.add("ip_version", &f.ip_version, |n| enumeration(*n), Condition::IpVersion)?;
    all.add("reply", &f.reply, |r| Ok(*r), Condition::Reply)?;
    all.add("encrypted", &f.encrypted, |e| Ok(*e), Condition::Encrypted)?;
    all.add("tcp_flags", &f.tcp_flags, |flags| Ok(*flags), Condition::TcpFlags)?;
    all.add("ip_trace_id", &f.ip_trace_id, |id| Ok(*id), Condition::IpTraceId)?;
    all.add("protocol", &f.protocol, |p| protocol(p), Condition::Protocol)
}

/// What is said of one end.
fn ends(f: &FlowFilter, side: Side, all: &mut Conditions) -> Result<(), FilterError> {
    macro_rules! of {
        ($source:ident, $destination:ident) => {
            match side {
                Side::Source => (stringify!($source), &f.$source),
                Side::Destination => (stringify!($destination), &f.$destination),
            }
        };
    }
    let (field, values) = of!(source_identity, destination_identity);
    all.add(field, values, |n| Ok(*n), |v| Condition::Identity(side, v))?;
    let (field, values) = of!(source_port, destination_port);
    all.add(field, values, |p| port(p), |v| Condition::Port(side, v))?;
    let (field, values) = of!(source_ip, destination_ip);
    all.add(field, values, |ip| net(ip), |v| Condition::Ip(side, v))?;
    let (field, values) = of!(source_pod, destination_pod);
    all.add(field, values, |pod| PodPattern::parse(pod), |v| Condition::Pod(side, v))?;
    let (field, values) = of!(source_service, destination_service);
    all.add(field, values, |name| PodPattern::parse(name), |v| Condition::Service(side, v))?;
    let (field, values) = of!(source_workload, destination_workload);
    all.add(field, values, |w| Ok(w.clone()), |v| Condition::Workload(side, v))?;
    let (field, values) = of!(source_cluster_name, destination_cluster_name);
    all.add(field, values, |name| Ok(name.clone()), |v| Condition::Cluster(side, v))?;
    let (field, values) = of!(source_label, destination_label);
    all.add(field, values, |text| Selector::parse(text), |v| Condition::Label(side, v))?;
    let (field, values) = of!(source_fqdn, destination_fqdn);
    all.add_names(field, values, NamePattern::fqdns, |v| Condition::Fqdn(side, v))
}

/// What compares texts and belongs to neither end.
fn texts(f: &FlowFilter, all: &mut Conditions) -> Result<(), FilterError> {
    all.add("source_ip_xlated", &f.source_ip_xlated, |ip| net(ip), Condition::SourceIpXlated)?;
    all.add("uuid", &f.uuid, |id| Ok(id.clone()), Condition::Uuid)?;
    all.add("interface", &f.interface, |i| Ok(i.clone()), Condition::Interface)?;
    all.add_names("node_name", &f.node_name, NamePattern::nodes, Condition::NodeName)?;
    all.add("node_labels", &f.node_labels, |t| Selector::parse(t), Condition::NodeLabel)?;
    all.add("trace_id", &f.trace_id, |id| Ok(id.clone()), Condition::TraceId)
}

/// What is said of DNS and HTTP.
fn layer_7(f: &FlowFilter, all: &mut Conditions) -> Result<(), FilterError> {
    all.add("dns_query", &f.dns_query, |p| regex(p), Condition::DnsQuery)?;
    all.add("http_status_code", &f.http_status_code, |c| status(c), Condition::HttpStatus)?;
    all.add("http_method", &f.http_method, |m| Ok(m.clone()), Condition::HttpMethod)?;
    all.add("http_path", &f.http_path, |p| regex(p), Condition::HttpPath)?;
    all.add("http_url", &f.http_url, |p| regex(p), Condition::HttpUrl)?;
    all.add("http_header", &f.http_header, |h| Ok(h.clone()), Condition::HttpHeader)?;
    let set = [
        !f.dns_query.is_empty(),
        !f.http_status_code.is_empty(),
        !f.http_method.is_empty(),
        !f.http_path.is_empty(),
        !f.http_url.is_empty(),
        !f.http_header.is_empty(),
    ];
    let used = LAYER_7.iter().zip(set).find(|(_, set)| *set);
    let Some((field, _)) = used else { return Ok(()) };
    match f.event_type.iter().find(|wanted| wanted.r#type != EVENT_L7) {
        Some(other) => Err(FilterError::new(
            "event_type",
            other.r#type.to_string(),
            format!("with {field} only events of type {EVENT_L7} (l7) can match"),
        )),
        None => Ok(()),
    }
}

fn enumeration<E: TryFrom<i32>>(number: i32) -> Result<E, String> {
    E::try_from(number).ok().ok_or_else(|| "no such value".to_owned())
}

fn port(text: &str) -> Result<u16, String> {
    text.parse().ok().ok_or_else(|| "a port is a number up to 65535".to_owned())
}

fn net(text: &str) -> Result<IpNet, String> {
    let wrong = || "neither an address nor a CIDR".to_owned();
    match text.contains('/') {
        true => text.parse::<IpNet>().ok().ok_or_else(wrong),
        false => text.parse::<IpAddr>().map(IpNet::from).ok().ok_or_else(wrong),
    }
}

fn regex(text: &str) -> Result<Regex, String> {
    Regex::new(text).map_err(|error| error.to_string())
}

fn protocol(text: &str) -> Result<Protocol, String> {
    Ok(match text.to_ascii_lowercase().as_str() {
        "icmp" => Protocol::Icmp,
        "icmpv4" => Protocol::Icmpv4,
        "icmpv6" => Protocol::Icmpv6,
        "tcp" => Protocol::Tcp,
        "udp" => Protocol::Udp,
        "sctp" => Protocol::Sctp,
        "vrrp" => Protocol::Vrrp,
        "igmp" => Protocol::Igmp,
        "dns" => Protocol::Dns,
        "http" => Protocol::Http,
        "kafka" => Protocol::Kafka,
        _ => return Err("no protocol that flows are told apart by".to_owned()),
    })
}

/// A code, or its first digits and `+`.
fn status(text: &str) -> Result<String, String> {
    let digits = text.strip_suffix('+').unwrap_or(text);
    let first = digits.as_bytes().first().is_some_and(|digit| (b'1'..=b'5').contains(digit));
    let is_prefix = text.ends_with('+');
    let right_len = if is_prefix { (1..=2).contains(&digits.len()) } else { digits.len() == 3 };
    let valid = first && right_len && digits.bytes().all(|digit| digit.is_ascii_digit());
    valid.then(|| text.to_owned()).ok_or_else(|| "write a code such as 404, or 4+".to_owned())
}
