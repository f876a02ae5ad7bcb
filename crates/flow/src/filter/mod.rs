//! Filters of flows, with the semantics of Hubble.
//!
//! A [`Filter`] is compiled once from a `FlowFilter` of the API and asked about many flows. Fields of
//! one filter are joined by *and*, elements of a field by *or*; a [`Selection`] is one list of filters
//! of which one must match, and one of which none may.
//!
//! A flow is looked at through [`View`], so that the rows of the ring are filtered as they are, before
//! a message is made of the few that pass, and messages that came over the wire are filtered too.

mod cel;
mod compile;
mod pattern;
mod selector;
mod view;

use std::net::IpAddr;

use api::hubble::flow::{
    self, DropReason, EventTypeFilter, FlowFilter, HttpHeader, IpVersion, NetworkInterface,
    TcpFlags, TrafficDirection, Verdict,
};
use ipnet::IpNet;
use regex::Regex;

pub use compile::FilterError;
use view::RowView;
pub use view::{Side, View};

use crate::message::NodeInfo;
use crate::row::Row;
use pattern::{NamePattern, PodPattern};
use selector::Selector;

/// Which flows somebody wants.
#[derive(Clone, Debug, Default)]
pub struct Selection {
    /// One of these must match, where there are any.
    include: Vec<Filter>,
    /// None of these may match.
    exclude: Vec<Filter>,
}

impl Selection {
    /// Compiles the two lists of a request.
    pub fn new(whitelist: &[FlowFilter], blacklist: &[FlowFilter]) -> Result<Self, FilterError> {
        let compile = |list: &str, filters: &[FlowFilter]| {
            let numbered = filters.iter().enumerate();
            numbered
                .map(|(index, filter)| {
                    Filter::new(filter).map_err(|error| error.within(list, index))
                })
                .collect::<Result<Vec<_>, _>>()
        };
        Ok(Self {
            include: compile("whitelist", whitelist)?,
            exclude: compile("blacklist", blacklist)?,
        })
    }

    /// Whether the flow is wanted.
    pub fn matches(&self, flow: &impl View) -> bool {
        (self.include.is_empty() || self.include.iter().any(|filter| filter.matches(flow)))
            && !self.exclude.iter().any(|filter| filter.matches(flow))
    }

    /// Whether a flow of the ring, seen on this node, is wanted.
    pub fn matches_row(&self, row: &Row, node: &NodeInfo) -> bool {
        self.matches(&RowView { row, node })
    }
}

/// A filter: all its conditions must hold.
#[derive(Clone, Debug)]
pub struct Filter {
    conditions: Vec<Condition>,
}

/// A field of a filter. Of each list one element must match.
#[derive(Clone, Debug)]
enum Condition {
    Uuid(Vec<String>),
    Ip(Side, Vec<IpNet>),
    SourceIpXlated(Vec<IpNet>),
    Pod(Side, Vec<PodPattern>),
    Fqdn(Side, NamePattern),
    Label(Side, Vec<Selector>),
    Service(Side, Vec<PodPattern>),
    Workload(Side, Vec<flow::Workload>),
    Cluster(Side, Vec<String>),
    Identity(Side, Vec<u32>),
    Port(Side, Vec<u16>),
    Direction(Vec<TrafficDirection>),
    Verdict(Vec<Verdict>),
    DropReason(Vec<DropReason>),
    Interface(Vec<NetworkInterface>),
    EventType(Vec<EventTypeFilter>),
    Protocol(Vec<Protocol>),
    Reply(Vec<bool>),
    TcpFlags(Vec<TcpFlags>),
    NodeName(NamePattern),
    NodeLabel(Vec<Selector>),
    IpVersion(Vec<IpVersion>),
    TraceId(Vec<String>),
    IpTraceId(Vec<u64>),
    Encrypted(Vec<bool>),
    DnsQuery(Vec<Regex>),
    HttpStatus(Vec<String>),
    HttpMethod(Vec<String>),
    HttpPath(Vec<Regex>),
    HttpUrl(Vec<Regex>),
    HttpHeader(Vec<HttpHeader>),
    Expression(Vec<cel::Expression>),
}

/// A protocol that a filter can name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// ICMP of either family.
    Icmp,
    /// ICMP of IPv4.
    Icmpv4,
    /// ICMP of IPv6.
    Icmpv6,
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
    /// VRRP.
    Vrrp,
    /// IGMP.
    Igmp,
    /// DNS, at layer 7.
    Dns,
    /// HTTP, at layer 7.
    Http,
    /// Kafka, at layer 7.
    Kafka,
}

impl Filter {
    /// Compiles a filter of the API.
    pub fn new(filter: &FlowFilter) -> Result<Self, FilterError> {
        Ok(Self { conditions: compile::conditions(filter)? })
    }

    /// Whether every condition holds.
    pub fn matches(&self, flow: &impl View) -> bool {
        self.conditions.iter().all(|condition| condition.holds(flow))
    }
}

impl Condition {
    fn holds(&self, flow: &impl View) -> bool {
        match self {
            Self::Uuid(ids) => ids.contains(&flow.uuid()),
            Self::Ip(side, nets) => is_within(flow.ip(*side), nets),
            Self::SourceIpXlated(nets) => is_within(flow.source_ip_xlated(), nets),
            Self::Pod(side, pods) => {
                flow.pod(*side).is_some_and(|pod| pods.iter().any(|pattern| pattern.matches(pod)))
            }
            Self::Fqdn(side, pattern) => {
                flow.names(*side).iter().any(|name| pattern.matches_fqdn(name))
            }
            Self::Label(side, selectors) => {
                let labels = flow.labels(*side);
                selectors.iter().any(|selector| selector.matches(labels))
            }
            Self::Service(side, services) => flow
                .service(*side)
                .is_some_and(|service| services.iter().any(|pattern| pattern.matches(service))),
            Self::Workload(side, wanted) => flow.has_workload(*side, &|name, kind| {
                wanted.iter().any(|w| {
                    (w.name.is_empty() || w.name == name) && (w.kind.is_empty() || w.kind == kind)
                })
            }),
            Self::Cluster(side, names) => {
                let cluster = flow.cluster(*side);
                names.iter().any(|name| name == cluster)
            }
            Self::Identity(side, numbers) => {
                flow.identity(*side).is_some_and(|identity| numbers.contains(&identity))
            }
            Self::Port(side, ports) => flow.port(*side).is_some_and(|port| ports.contains(&port)),
            Self::Direction(directions) => directions.contains(&flow.direction()),
            Self::Verdict(verdicts) => verdicts.contains(&flow.verdict()),
            Self::DropReason(reasons) => reasons.contains(&flow.drop_reason()),
            Self::Interface(interfaces) => flow.interface().is_some_and(|(index, name)| {
                interfaces.iter().any(|wanted| {
                    (wanted.index == 0 || wanted.index == index)
                        && (wanted.name.is_empty() || wanted.name == name)
                })
            }),
            Self::EventType(types) => {
                let (event_type, sub_type) = flow.event_type();
                types.iter().any(|wanted| {
                    (wanted.r#type == 0 || wanted.r#type == event_type)
                        && (!wanted.match_sub_type || wanted.sub_type == sub_type)
                })
            }
            Self::Protocol(protocols) => protocols.iter().any(|protocol| flow.speaks(*protocol)),
            Self::Reply(values) => flow.is_reply().is_some_and(|reply| values.contains(&reply)),
            Self::TcpFlags(wanted) => {
                flow.tcp_flags().is_some_and(|flags| wanted.iter().any(|w| has_flags(&flags, w)))
            }
            Self::NodeName(pattern) => pattern.matches_node(flow.node_name()),
            Self::NodeLabel(selectors) => {
                let labels = flow.node_labels();
                selectors.iter().any(|selector| selector.matches(labels))
            }
            Self::IpVersion(versions) => versions.contains(&flow.ip_version()),
            Self::TraceId(ids) => flow.trace_id().is_some_and(|id| ids.iter().any(|i| i == id)),
            Self::IpTraceId(ids) => ids.contains(&flow.ip_trace_id()),
            Self::Encrypted(values) => values.contains(&flow.is_encrypted()),
            Self::Expression(expressions) => {
                let flow = flow.flow();
                expressions.iter().any(|expression| expression.matches(&flow))
            }
            _ => self.holds_at_layer_7(flow),
        }
    }

    fn holds_at_layer_7(&self, flow: &impl View) -> bool {
        if let Self::DnsQuery(patterns) = self {
            return flow.dns().is_some_and(|dns| patterns.iter().any(|p| p.is_match(&dns.query)));
        }
        let Some(http) = flow.http() else { return false };
        match self {
            Self::HttpStatus(prefixes) => {
                let code = http.code.to_string();
                http.code != 0
                    && prefixes.iter().any(|prefix| match prefix.strip_suffix('+') {
                        Some(prefix) => code.starts_with(prefix),
                        None => code == *prefix,
                    })
            }
            Self::HttpMethod(methods) => {
                methods.iter().any(|method| method.eq_ignore_ascii_case(&http.method))
            }
            Self::HttpPath(patterns) => {
                patterns.iter().any(|pattern| pattern.is_match(path(&http.url)))
            }
            Self::HttpUrl(patterns) => patterns.iter().any(|pattern| pattern.is_match(&http.url)),
            Self::HttpHeader(headers) => headers.iter().any(|wanted| http.headers.contains(wanted)),
            _ => false,
        }
    }
}

fn is_within(address: Option<IpAddr>, nets: &[IpNet]) -> bool {
    address.is_some_and(|address| nets.iter().any(|net| net.contains(&address)))
}

fn has_flags(flags: &TcpFlags, wanted: &TcpFlags) -> bool {
    let pairs = [
        (wanted.fin, flags.fin),
        (wanted.syn, flags.syn),
        (wanted.rst, flags.rst),
        (wanted.psh, flags.psh),
        (wanted.ack, flags.ack),
        (wanted.urg, flags.urg),
        (wanted.ece, flags.ece),
        (wanted.cwr, flags.cwr),
        (wanted.ns, flags.ns),
    ];
    pairs.iter().all(|(wanted, set)| !wanted || *set)
}

/// The path of a URL: what follows the authority, up to query and fragment.
fn path(url: &str) -> &str {
    let rest = match url.split_once("://") {
        Some((_, rest)) => rest.find('/').map_or("", |slash| &rest[slash..]),
        None => url,
    };
    rest.split(['?', '#']).next().unwrap_or_default()
}

#[cfg(test)]
mod tests;
