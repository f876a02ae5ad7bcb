//! Flags → filters of the API.
//!
//! A flag without `from` or `to` is about either end: the flags make two filters, one with each such
//! flag about the source and one about the destination, and a flow must match one of the two. `--not`
//! puts the next flag into the pair of filters that must not match.

use anyhow::{Context, Result, bail};
use api::hubble::flow::{
    DropReason, EventTypeFilter, FlowFilter, HttpHeader, IpVersion, NetworkInterface, TcpFlags,
    TrafficDirection, Verdict, Workload,
};
use api::hubble::from_json;
use clap::ArgMatches;

/// A flag that filters.
pub(super) struct Flag {
    pub(super) name: &'static str,
    pub(super) short: Option<char>,
    pub(super) value: &'static str,
    /// The value of a flag that takes none.
    pub(super) when_bare: Option<&'static str>,
    pub(super) help: &'static str,
    apply: fn(&mut Pair, &str) -> Result<(), String>,
}

/// What is asked of the source, or of the destination, besides what is asked of the flow.
#[derive(Clone, Debug, Default)]
pub(super) struct Pair {
    /// Flags about either end are about the source here …
    left: Part,
    /// … and about the destination here.
    right: Part,
}

/// A filter in the making.
#[derive(Clone, Debug, Default)]
struct Part {
    filter: FlowFilter,
    source_namespaces: Vec<String>,
    destination_namespaces: Vec<String>,
}

/// Which end a flag is about.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    Either,
    From,
    To,
}

impl Pair {
    /// Changes both filters alike.
    fn both(&mut self, change: impl Fn(&mut FlowFilter)) {
        change(&mut self.left.filter);
        change(&mut self.right.filter);
    }

    /// Adds to the source's field or to the destination's.
    fn ends(&mut self, end: End, source: impl Fn(&mut Part), destination: impl Fn(&mut Part)) {
        if end != End::To {
            source(&mut self.left);
        }
        if end == End::From {
            source(&mut self.right);
        }
        if end != End::From {
            destination(&mut self.right);
        }
        if end == End::To {
            destination(&mut self.left);
        }
    }

    /// One filter where both say the same.
    fn finish(self) -> Vec<FlowFilter> {
        let (left, right) = (self.left.finish(), self.right.finish());
        let empty = FlowFilter::default();
        let mut filters = vec![left];
        if filters[0] != right {
            filters.push(right);
        }
        filters.retain(|filter| *filter != empty);
        filters
    }
}

impl Part {
    /// Namespaces are where pods and services without one are; alone they are all that is in them.
    fn finish(self) -> FlowFilter {
        let mut filter = self.filter;
        place(&mut filter.source_pod, &mut filter.source_service, &self.source_namespaces);
        place(
            &mut filter.destination_pod,
            &mut filter.destination_service,
            &self.destination_namespaces,
        );
        filter
    }
}

fn place(pods: &mut Vec<String>, services: &mut Vec<String>, namespaces: &[String]) {
    if namespaces.is_empty() {
        return;
    }
    if pods.is_empty() && services.is_empty() {
        // Any namespace is no condition.
        let named = namespaces.iter().filter(|namespace| !namespace.is_empty());
        *pods = named.map(|namespace| format!("{namespace}/")).collect();
        return;
    }
    for names in [pods, services] {
        *names = names
            .iter()
            .flat_map(|name| match name.contains('/') {
                true => vec![name.clone()],
                false => namespaces.iter().map(|n| format!("{n}/{name}")).collect(),
            })
            .collect();
    }
}

macro_rules! flags {
    ($($name:literal $($short:literal)? $(= $bare:literal)?, $value:literal, $help:literal, $apply:expr;)*) => {
        /// Every flag that filters.
        pub(super) const FLAGS: &[Flag] = &[$(Flag {
            name: $name,
            short: flags!(@short $($short)?),
            value: $value,
            when_bare: flags!(@bare $($bare)?),
            help: $help,
            apply: $apply,
        },)*];
    };
    (@short) => { None };
    (@short $short:literal) => { Some($short) };
    (@bare) => { None };
    (@bare $bare:literal) => { Some($bare) };
}

/// Three flags: about either end, about the source, about the destination.
macro_rules! ends {
    ($function:ident, |$part:ident, $value:ident| $source:expr, $destination:expr) => {
        fn $function(pair: &mut Pair, end: End, $value: &str) -> Result<(), String> {
            pair.ends(end, |$part| $source, |$part| $destination);
            Ok(())
        }
    };
}

ends!(
    pod,
    |p, v| p.filter.source_pod.push(v.to_owned()),
    p.filter.destination_pod.push(v.to_owned())
);
ends!(ip, |p, v| p.filter.source_ip.push(v.to_owned()), p.filter.destination_ip.push(v.to_owned()));
ends!(
    fqdn,
    |p, v| p.filter.source_fqdn.push(v.to_owned()),
    p.filter.destination_fqdn.push(v.to_owned())
);
ends!(
    label,
    |p, v| p.filter.source_label.push(v.to_owned()),
    p.filter.destination_label.push(v.to_owned())
);
ends!(
    service,
    |p, v| p.filter.source_service.push(v.to_owned()),
    p.filter.destination_service.push(v.to_owned())
);
ends!(
    port,
    |p, v| p.filter.source_port.push(v.to_owned()),
    p.filter.destination_port.push(v.to_owned())
);
ends!(
    namespace,
    |p, v| p.source_namespaces.push(v.to_owned()),
    p.destination_namespaces.push(v.to_owned())
);
ends!(
    cluster,
    |p, v| p.filter.source_cluster_name.push(v.to_owned()),
    p.filter.destination_cluster_name.push(v.to_owned())
);
ends!(
    workload,
    |p, v| p.filter.source_workload.push(parse_workload(v)),
    p.filter.destination_workload.push(parse_workload(v))
);

/// Pods of any namespace; those that are named keep their names.
fn all_namespaces(pair: &mut Pair, end: End, _: &str) -> Result<(), String> {
    // An empty namespace matches any.
    namespace(pair, end, "")
}

fn identity(pair: &mut Pair, end: End, value: &str) -> Result<(), String> {
    let reserved = || {
        (0..abi::identity::CLUSTER_MIN).find(|id| {
            abi::identity::reserved_name(*id) == Some(value.trim_start_matches("reserved:"))
        })
    };
    let number = value.parse().ok().or_else(reserved);
    let number =
        number.ok_or_else(|| format!("{value:?} is neither a number nor a reserved identity"))?;
    pair.ends(
        end,
        |part| part.filter.source_identity.push(number),
        |part| part.filter.destination_identity.push(number),
    );
    Ok(())
}

/// `kind/name`, or a name.
fn parse_workload(text: &str) -> Workload {
    match text.split_once('/') {
        Some((kind, name)) => Workload { name: name.to_owned(), kind: kind.to_owned() },
        None => Workload { name: text.to_owned(), kind: String::new() },
    }
}

/// Adds a parsed value to a field of both filters.
macro_rules! add {
    ($field:ident) => {
        |pair, value| {
            pair.both(|filter| filter.$field.push(value.to_owned()));
            Ok(())
        }
    };
    ($field:ident, $parse:expr) => {
        |pair, value| {
            let parsed = $parse(value)?;
            pair.both(|filter| filter.$field.push(parsed.clone()));
            Ok(())
        }
    };
}

flags! {
    "not" = "true", "", "The next filter must not match", |_, _| Ok(());
    "pod", "[NAMESPACE/]POD", "Either end is a pod whose name begins so; without namespace, in default", |p, v| pod(p, End::Either, v);
    "from-pod", "[NAMESPACE/]POD", "The source is such a pod", |p, v| pod(p, End::From, v);
    "to-pod", "[NAMESPACE/]POD", "The destination is such a pod", |p, v| pod(p, End::To, v);
    "namespace" 'n', "NAMESPACE", "Either end is in this namespace", |p, v| namespace(p, End::Either, v);
    "from-namespace", "NAMESPACE", "The source is in this namespace", |p, v| namespace(p, End::From, v);
    "to-namespace", "NAMESPACE", "The destination is in this namespace", |p, v| namespace(p, End::To, v);
    "all-namespaces" 'A' = "true", "", "Pods of any namespace", |p, v| all_namespaces(p, End::Either, v);
    "from-all-namespaces" = "true", "", "From pods of any namespace", |p, v| all_namespaces(p, End::From, v);
    "to-all-namespaces" = "true", "", "To pods of any namespace", |p, v| all_namespaces(p, End::To, v);
    "service", "[NAMESPACE/]SERVICE", "Either end is a service whose name begins so", |p, v| service(p, End::Either, v);
    "from-service", "[NAMESPACE/]SERVICE", "The source is such a service", |p, v| service(p, End::From, v);
    "to-service", "[NAMESPACE/]SERVICE", "The destination is such a service", |p, v| service(p, End::To, v);
    "workload", "[KIND/]NAME", "Either end is run by this workload", |p, v| workload(p, End::Either, v);
    "from-workload", "[KIND/]NAME", "The source is run by this workload", |p, v| workload(p, End::From, v);
    "to-workload", "[KIND/]NAME", "The destination is run by this workload", |p, v| workload(p, End::To, v);
    "label" 'l', "SELECTOR", "Either end has labels that match, as in app=web,tier", |p, v| label(p, End::Either, v);
    "from-label", "SELECTOR", "The source has such labels", |p, v| label(p, End::From, v);
    "to-label", "SELECTOR", "The destination has such labels", |p, v| label(p, End::To, v);
    "ip", "ADDRESS", "Either end has this address or is in this CIDR", |p, v| ip(p, End::Either, v);
    "from-ip", "ADDRESS", "The source has this address or is in this CIDR", |p, v| ip(p, End::From, v);
    "to-ip", "ADDRESS", "The destination has this address or is in this CIDR", |p, v| ip(p, End::To, v);
    "snat-ip", "ADDRESS", "The source was translated to this address", add!(source_ip_xlated);
    "fqdn", "NAME", "Either end has this DNS name; * stands for anything", |p, v| fqdn(p, End::Either, v);
    "from-fqdn", "NAME", "The source has this DNS name", |p, v| fqdn(p, End::From, v);
    "to-fqdn", "NAME", "The destination has this DNS name", |p, v| fqdn(p, End::To, v);
    "identity", "IDENTITY", "Either end has this identity, a number or a reserved name", |p, v| identity(p, End::Either, v);
    "from-identity", "IDENTITY", "The source has this identity", |p, v| identity(p, End::From, v);
    "to-identity", "IDENTITY", "The destination has this identity", |p, v| identity(p, End::To, v);
    "port", "PORT", "Either end has this port", |p, v| port(p, End::Either, v);
    "from-port", "PORT", "The source has this port", |p, v| port(p, End::From, v);
    "to-port", "PORT", "The destination has this port", |p, v| port(p, End::To, v);
    "cluster", "NAME", "Either end is in this cluster", |p, v| cluster(p, End::Either, v);
    "from-cluster", "NAME", "The source is in this cluster", |p, v| cluster(p, End::From, v);
    "to-cluster", "NAME", "The destination is in this cluster", |p, v| cluster(p, End::To, v);
    "protocol", "PROTOCOL", "tcp, udp, icmp, http, dns, …", add!(protocol);
    "verdict", "VERDICT", "FORWARDED, DROPPED, AUDIT, REDIRECTED, ERROR, TRACED or TRANSLATED", add!(verdict, parse_verdict);
    "drop-reason-desc", "REASON", "Why it was dropped, as in POLICY_DENIED", add!(drop_reason_desc, parse_reason);
    "type" 't', "TYPE[:SUBTYPE]", "drop, trace, l7, policy-verdict, capture, trace-sock, or trace:to-endpoint", add!(event_type, parse_type);
    "traffic-direction", "DIRECTION", "ingress or egress", add!(traffic_direction, parse_direction);
    "tcp-flags", "FLAGS", "All of these flags are set, as in SYN,ACK", add!(tcp_flags, parse_tcp_flags);
    "ip-version", "VERSION", "v4 or v6", add!(ip_version, parse_ip_version);
    "ipv4" '4' = "v4", "", "Only IPv4", add!(ip_version, parse_ip_version);
    "ipv6" '6' = "v6", "", "Only IPv6", add!(ip_version, parse_ip_version);
    "interface", "DEVICE", "Seen at this device, a name or a number", add!(interface, parse_interface);
    "reply" = "true", "", "Only what is on its way back", add!(reply, |_| Ok::<_, String>(true));
    "not-reply" = "true", "", "Only what is on its way there", add!(reply, |_| Ok::<_, String>(false));
    "encrypted" = "true", "", "Only what is encrypted", add!(encrypted, |_| Ok::<_, String>(true));
    "unencrypted" = "true", "", "Only what is not encrypted", add!(encrypted, |_| Ok::<_, String>(false));
    "http-status", "CODE", "An HTTP status such as 404, or 4+", add!(http_status_code);
    "http-method", "METHOD", "An HTTP method", add!(http_method);
    "http-path", "REGEX", "The path of an HTTP request matches", add!(http_path);
    "http-url", "REGEX", "The URL of an HTTP request matches", add!(http_url);
    "http-header", "KEY:VALUE", "An HTTP header", add!(http_header, parse_header);
    "dns-query", "REGEX", "The name that DNS is asked for matches", add!(dns_query);
    "node-name", "NAME", "Seen on this node; * stands for anything, cluster/ for a cluster", add!(node_name);
    "node-label", "SELECTOR", "Seen on a node with such labels", add!(node_labels);
    "trace-id", "ID", "Part of this distributed trace", add!(trace_id);
    "ip-trace-id", "ID", "With this trace id in an IP option", add!(ip_trace_id, |v: &str| v.parse::<u64>().map_err(|e| e.to_string()));
    "uuid", "UUID", "This flow", add!(uuid);
    "cel-expression", "EXPRESSION", "Matches this expression about _flow", |pair, value| {
        pair.both(|f| f.experimental.get_or_insert_default().cel_expression.push(value.to_owned()));
        Ok(())
    };
}

fn parse_verdict(text: &str) -> Result<i32, String> {
    Verdict::from_str_name(&text.to_ascii_uppercase())
        .map(Into::into)
        .ok_or_else(|| format!("{text:?} is no verdict"))
}

fn parse_reason(text: &str) -> Result<i32, String> {
    DropReason::from_str_name(&text.to_ascii_uppercase())
        .map(Into::into)
        .ok_or_else(|| format!("{text:?} is no reason of a drop"))
}

fn parse_direction(text: &str) -> Result<i32, String> {
    match text.to_ascii_lowercase().as_str() {
        "ingress" => Ok(TrafficDirection::Ingress.into()),
        "egress" => Ok(TrafficDirection::Egress.into()),
        _ => Err(format!("{text:?} is neither ingress nor egress")),
    }
}

fn parse_ip_version(text: &str) -> Result<i32, String> {
    match text.to_ascii_lowercase().as_str() {
        "4" | "v4" | "ipv4" => Ok(IpVersion::IPv4.into()),
        "6" | "v6" | "ipv6" => Ok(IpVersion::IPv6.into()),
        _ => Err(format!("{text:?} is neither v4 nor v6")),
    }
}

fn parse_interface(text: &str) -> Result<NetworkInterface, String> {
    Ok(match text.parse() {
        Ok(index) => NetworkInterface { index, name: String::new() },
        Err(_) => NetworkInterface { index: 0, name: text.to_owned() },
    })
}

fn parse_header(text: &str) -> Result<HttpHeader, String> {
    let (key, value) = text.split_once(':').ok_or("write KEY:VALUE")?;
    Ok(HttpHeader { key: key.to_owned(), value: value.to_owned() })
}

fn parse_tcp_flags(text: &str) -> Result<TcpFlags, String> {
    let mut flags = TcpFlags::default();
    for name in text.split(',') {
        match name.trim().to_ascii_uppercase().as_str() {
            "FIN" => flags.fin = true,
            "SYN" => flags.syn = true,
            "RST" => flags.rst = true,
            "PSH" => flags.psh = true,
            "ACK" => flags.ack = true,
            "URG" => flags.urg = true,
            "ECE" => flags.ece = true,
            "CWR" => flags.cwr = true,
            "NS" => flags.ns = true,
            _ => return Err(format!("{name:?} is no flag of TCP")),
        }
    }
    Ok(flags)
}

/// A type by name or number, and perhaps a subtype.
fn parse_type(text: &str) -> Result<EventTypeFilter, String> {
    const TYPES: [(&str, i32); 8] = [
        ("drop", 1),
        ("debug", 2),
        ("capture", 3),
        ("trace", 4),
        ("policy-verdict", 5),
        ("trace-sock", 7),
        ("l7", 129),
        ("agent", 130),
    ];
    let (name, sub) = match text.split_once(':') {
        Some((name, sub)) => (name, Some(sub)),
        None => (text, None),
    };
    let by_name = TYPES.iter().find(|(known, _)| *known == name).map(|(_, number)| *number);
    let event_type = by_name.or_else(|| name.parse().ok());
    let event_type = event_type.ok_or_else(|| format!("{name:?} is no type of events"))?;
    let Some(sub) = sub else {
        return Ok(EventTypeFilter { r#type: event_type, ..EventTypeFilter::default() });
    };
    let point = || (0..=13).find(|n| event_type == 4 && flow::observation_point_name(*n) == sub);
    let sub_type = sub.parse().ok().or_else(|| point().map(i32::from));
    let sub_type = sub_type.ok_or_else(|| format!("{sub:?} is no subtype of {name}"))?;
    Ok(EventTypeFilter { r#type: event_type, match_sub_type: true, sub_type })
}

/// The lists that the flags make: what must match, and what must not.
pub(super) fn lists(matches: &ArgMatches) -> Result<(Vec<FlowFilter>, Vec<FlowFilter>)> {
    refuse_conflicts(matches)?;
    let mut given: Vec<(usize, &Flag, String)> = Vec::new();
    for flag in FLAGS {
        let Some(indices) = matches.indices_of(flag.name) else { continue };
        let is_typed =
            matches.value_source(flag.name) == Some(clap::parser::ValueSource::CommandLine);
        if !is_typed {
            continue;
        }
        let values: Vec<String> = match flag.when_bare {
            Some(value) => indices.clone().map(|_| value.to_owned()).collect(),
            None => matches.get_many::<String>(flag.name).into_iter().flatten().cloned().collect(),
        };
        given.extend(indices.zip(values).map(|(index, value)| (index, flag, value)));
    }
    given.sort_by_key(|(index, _, _)| *index);
    let (mut allowed, mut denied, mut is_not) = (Pair::default(), Pair::default(), false);
    for (_, flag, value) in given {
        if flag.name == "not" {
            is_not = true;
            continue;
        }
        let pair = if std::mem::take(&mut is_not) { &mut denied } else { &mut allowed };
        (flag.apply)(pair, &value)
            .map_err(anyhow::Error::msg)
            .with_context(|| format!("--{}", flag.name))?;
    }
    if is_not {
        bail!("--not: no filter follows");
    }
    let mut lists = (allowed.finish(), denied.finish());
    lists.0.extend(raw(matches, "allowlist")?);
    lists.1.extend(raw(matches, "denylist")?);
    Ok(lists)
}

/// `--pod` already is about both ends: with `--from-pod` beside it nobody could tell what is meant.
fn refuse_conflicts(matches: &ArgMatches) -> Result<()> {
    let is_given =
        |name: &str| matches.value_source(name) == Some(clap::parser::ValueSource::CommandLine);
    for flag in FLAGS {
        let ends = [format!("from-{}", flag.name), format!("to-{}", flag.name)];
        let other = FLAGS
            .iter()
            .find(|other| ends.iter().any(|end| end == other.name) && is_given(other.name));
        if let Some(other) = other.filter(|_| is_given(flag.name)) {
            bail!(
                "--{} cannot be combined with --{}: it is about both ends",
                flag.name,
                other.name
            );
        }
    }
    Ok(())
}

/// Filters as JSON: one object, or several one after the other.
fn raw(matches: &ArgMatches, name: &str) -> Result<Vec<FlowFilter>> {
    let texts = matches.try_get_many::<String>(name).ok().flatten().into_iter().flatten();
    let mut filters = Vec::new();
    for text in texts {
        for value in serde_json::Deserializer::from_str(text).into_iter::<serde_json::Value>() {
            let value = value.with_context(|| format!("--{name}"))?;
            filters.push(from_json(&value.to_string()).with_context(|| format!("--{name}"))?);
        }
    }
    Ok(filters)
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::*;
    use crate::hubble::args;

    fn text(arguments: &[&str]) -> Result<String> {
        let words = ["hubble", "observe"].iter().chain(arguments);
        let matches = args::command().try_get_matches_from(words)?;
        let (_, matches) = matches.subcommand().expect("observe");
        let (allow, deny) = lists(matches)?;
        let allow = allow.iter().map(|filter| format!("+{}", api::hubble::to_json(filter)));
        let deny = deny.iter().map(|filter| format!("-{}", api::hubble::to_json(filter)));
        Ok(allow.chain(deny).collect::<Vec<_>>().join("\n"))
    }

    #[track_caller]
    fn check(arguments: &[&str], expected: Expect) {
        expected.assert_eq(&text(arguments).expect("flags that make sense"));
    }

    #[test]
    fn either_end_makes_two_filters() {
        check(
            &["--pod", "web", "--verdict", "dropped"],
            expect![[r#"
            +{"source_pod":["web"],"verdict":["DROPPED"]}
            +{"destination_pod":["web"],"verdict":["DROPPED"]}"#]],
        );
        check(
            &["--from-pod", "a/web", "--to-port", "80"],
            expect![[r#"+{"source_pod":["a/web"],"destination_port":["80"]}"#]],
        );
        check(
            &["-n", "prod", "--pod", "web", "--pod", "x/y"],
            expect![[r#"
            +{"source_pod":["prod/web","x/y"]}
            +{"destination_pod":["prod/web","x/y"]}"#]],
        );
        check(
            &["--namespace", "prod", "--port", "80"],
            expect![[r#"
            +{"source_pod":["prod/"],"source_port":["80"]}
            +{"destination_pod":["prod/"],"destination_port":["80"]}"#]],
        );
        check(
            &["-A", "--pod", "web"],
            expect![[r#"
            +{"source_pod":["/web"]}
            +{"destination_pod":["/web"]}"#]],
        );
    }

    #[test]
    fn not_is_about_the_next() {
        check(
            &["--not", "--pod", "web", "--port", "80"],
            expect![[r#"
            +{"source_port":["80"]}
            +{"destination_port":["80"]}
            -{"source_pod":["web"]}
            -{"destination_pod":["web"]}"#]],
        );
        check(
            &["--protocol", "tcp", "--not", "--verdict", "FORWARDED"],
            expect![[r#"
            +{"protocol":["tcp"]}
            -{"verdict":["FORWARDED"]}"#]],
        );
    }

    #[test]
    fn every_kind_of_value() {
        check(
            &[
                "-t",
                "drop",
                "-t",
                "trace:to-endpoint",
                "--tcp-flags",
                "SYN,ACK",
                "-4",
                "--identity",
                "world",
                "--interface",
                "eth0",
                "--not-reply",
                "--http-header",
                "A:b",
                "--from-workload",
                "Deployment/web",
                "--traffic-direction",
                "egress",
                "--ip-trace-id",
                "7",
                "--cel-expression",
                "true",
                "--allowlist",
                r#"{"uuid":["u"]} {"uuid":["v"]}"#,
            ],
            expect![[r#"
                +{"event_type":[{"type":1},{"type":4,"match_sub_type":true}],"reply":[false],"source_identity":[2],"tcp_flags":[{"SYN":true,"ACK":true}],"ip_version":["IPv4"],"source_workload":[{"name":"web","kind":"Deployment"}],"traffic_direction":["EGRESS"],"http_header":[{"key":"A","value":"b"}],"interface":[{"name":"eth0"}],"ip_trace_id":["7"],"experimental":{"cel_expression":["true"]}}
                +{"event_type":[{"type":1},{"type":4,"match_sub_type":true}],"reply":[false],"destination_identity":[2],"tcp_flags":[{"SYN":true,"ACK":true}],"ip_version":["IPv4"],"source_workload":[{"name":"web","kind":"Deployment"}],"traffic_direction":["EGRESS"],"http_header":[{"key":"A","value":"b"}],"interface":[{"name":"eth0"}],"ip_trace_id":["7"],"experimental":{"cel_expression":["true"]}}
                +{"uuid":["u"]}
                +{"uuid":["v"]}"#]],
        );
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let refused = |arguments: &[&str]| crate::output::one_line(&text(arguments).unwrap_err());
        assert_eq!(refused(&["--verdict", "no"]), r#"--verdict: "no" is no verdict"#);
        assert_eq!(refused(&["--pod", "a", "--not"]), "--not: no filter follows");
        assert_eq!(
            refused(&["--pod", "a", "--from-pod", "b"]),
            "--pod cannot be combined with --from-pod: it is about both ends"
        );
        assert!(refused(&["--allowlist", r#"{"source_pot":[]}"#]).contains("source_pot"));
    }
}
