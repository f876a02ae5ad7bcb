//! Ports, protocols and ICMP types in manifests.

use std::sync::Arc;

use policy::{PortMatch, Protocol};

use super::field::{Field, read_all};

/// The most ports of an item, and the most ICMP types.
const PORTS_MAX: usize = 40;
/// Longest name of a port.
const NAME_LEN_MAX: usize = 63;

/// A port as it is written: a number or a name.
enum Written {
    Number(u16),
    Name(Arc<str>),
}

/// Reads `ports` of an item of `toPorts`.
pub(super) fn cilium_ports(field: &Field<'_>) -> Option<Vec<PortMatch>> {
    let items = field.list_up_to(PORTS_MAX)?;
    Some(read_all(items, |item| cilium_port(&item))?.concat())
}

fn cilium_port(field: &Field<'_>) -> Option<Vec<PortMatch>> {
    let object = field.object(&["port", "endPort", "protocol"])?;
    let protocol = match object.field("protocol") {
        None => None,
        Some(written) => cilium_protocol(&written)?,
    };
    let end = match object.field("endPort") {
        None => None,
        Some(end) => Some((end.number(0, i64::from(u16::MAX))? as u16, end)),
    };
    let port = match object.field("port") {
        Some(port) => (!port.text()?.is_empty()).then_some(port),
        None => None,
    };
    if let Some(protocol) = protocol.filter(|protocol| !protocol.has_ports()) {
        let given = port.as_ref().and_then(Field::text).filter(|text| *text != "0");
        return match given {
            None => Some(vec![PortMatch::Protocol(protocol)]),
            Some(_) => field.wrong(format!("{protocol} has no ports; leave port out")),
        };
    }
    let Some(port) = port else {
        return object.required("port").and_then(|port| port.wrong("must not be empty"));
    };
    let protocols = match protocol {
        Some(one) => vec![one],
        None => Protocol::WITH_PORTS.to_vec(),
    };
    match (written_port(&port)?, end) {
        (Written::Name(_), Some((1.., end))) => {
            end.wrong("a named port has no end; write the port as a number")
        }
        (Written::Name(name), _) => Some(vec![PortMatch::Named { protocol, name }]),
        (Written::Number(0), Some((1.., end))) => {
            end.wrong("port 0 means all ports and has no end")
        }
        (Written::Number(0), _) => Some(protocols.into_iter().map(PortMatch::Protocol).collect()),
        (Written::Number(first), Some((last @ 1.., end))) if last < first => {
            end.wrong(format!("{last} is less than port {first}"))
        }
        (Written::Number(first), end) => {
            let last = end.map_or(first, |(last, _)| if last == 0 { first } else { last });
            let range = |protocol| PortMatch::Range { protocol, first, last };
            Some(protocols.into_iter().map(range).collect())
        }
    }
}

/// Reads a protocol; `ANY` and nothing are `None`.
fn cilium_protocol(field: &Field<'_>) -> Option<Option<Protocol>> {
    const NAMED: [&str; 10] =
        ["TCP", "UDP", "SCTP", "VRRP", "IGMP", "GRE", "IPIP", "IPV6", "ESP", "AH"];
    let text = field.text()?.to_ascii_uppercase();
    match text.as_str() {
        "ANY" | "" => Some(None),
        "ICMP" | "ICMPV6" => field.wrong("ICMP is selected by icmps, not by toPorts"),
        name if NAMED.contains(&name) => Some(Protocol::named(name)),
        _ => field.wrong(format!("must be ANY or one of {}", NAMED.join(", "))),
    }
}

fn written_port(field: &Field<'_>) -> Option<Written> {
    let text = field.text()?;
    if text.bytes().all(|byte| byte.is_ascii_digit()) {
        return match text.parse() {
            Ok(number) => Some(Written::Number(number)),
            Err(_) => field.wrong(format!("{text} is not in the range 0 to 65535")),
        };
    }
    port_name(field, text).map(Written::Name)
}

/// A name as the registry of services allows: letters, digits and single dashes within, at least one
/// letter. Capitals are made small.
fn port_name(field: &Field<'_>, text: &str) -> Option<Arc<str>> {
    let valid = text.len() <= NAME_LEN_MAX
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
        && text.bytes().any(|byte| byte.is_ascii_alphabetic())
        && !text.starts_with('-')
        && !text.ends_with('-')
        && !text.contains("--");
    if !valid {
        return field
            .wrong(format!("{text:?} is neither a number from 0 to 65535 nor the name of a port"));
    }
    Some(Arc::from(text.to_ascii_lowercase()))
}

/// Reads `ports` of a Kubernetes `NetworkPolicy`.
pub(super) fn kubernetes_ports(field: &Field<'_>) -> Option<Vec<PortMatch>> {
    read_all(field.list()?, |item| kubernetes_port(&item))
}

fn kubernetes_port(field: &Field<'_>) -> Option<PortMatch> {
    let object = field.object(&["protocol", "port", "endPort"])?;
    let protocol = match object.field("protocol") {
        None => Protocol::TCP,
        Some(written) => match written.text()? {
            "TCP" => Protocol::TCP,
            "UDP" => Protocol::UDP,
            "SCTP" => Protocol::SCTP,
            _ => return written.wrong("must be TCP, UDP or SCTP"),
        },
    };
    let end = object.field("endPort");
    let Some(port) = object.field("port") else {
        return match end {
            None => Some(PortMatch::Protocol(protocol)),
            Some(end) => end.wrong("needs port"),
        };
    };
    if !port.is_number() {
        let name = port_name(&port, port.text()?)?;
        return match end {
            None => Some(PortMatch::Named { protocol: Some(protocol), name }),
            Some(end) => end.wrong("a named port has no end; write the port as a number"),
        };
    }
    let first = port.number(1, i64::from(u16::MAX))? as u16;
    let last = match end {
        None => first,
        Some(end) => match end.number(1, i64::from(u16::MAX))? as u16 {
            last if last < first => return end.wrong(format!("{last} is less than port {first}")),
            last => last,
        },
    };
    Some(PortMatch::Range { protocol, first, last })
}

/// Reads `protocols` of a `ClusterNetworkPolicy`.
pub(super) fn cluster_protocols(field: &Field<'_>) -> Option<Vec<PortMatch>> {
    const PROTOCOLS: [(&str, Protocol); 3] =
        [("tcp", Protocol::TCP), ("udp", Protocol::UDP), ("sctp", Protocol::SCTP)];
    read_all(field.list_up_to(25)?, |item| {
        let object = item.object(&["tcp", "udp", "sctp", "destinationNamedPort"])?;
        let present = object.present(&["tcp", "udp", "sctp", "destinationNamedPort"]);
        if present.len() != 1 {
            return item.wrong("must be exactly one of tcp, udp, sctp, destinationNamedPort");
        }
        if let Some(name) = object.field("destinationNamedPort") {
            let text = name.text()?;
            return Some(PortMatch::Named { protocol: None, name: port_name(&name, text)? });
        }
        let (name, protocol) = *PROTOCOLS.iter().find(|(name, _)| present.contains(name))?;
        let protocol_fields = object.field(name)?.object(&["destinationPort"])?;
        let Some(port) = protocol_fields.field("destinationPort") else {
            return Some(PortMatch::Protocol(protocol));
        };
        let (first, last) = cluster_port(&port)?;
        Some(PortMatch::Range { protocol, first, last })
    })
}

/// Reads `{number}` or `{range: {start, end}}`.
fn cluster_port(field: &Field<'_>) -> Option<(u16, u16)> {
    let object = field.object(&["number", "range"])?;
    let number = |field: &Field<'_>| Some(field.number(1, i64::from(u16::MAX))? as u16);
    match (object.field("number"), object.field("range")) {
        (Some(port), None) => number(&port).map(|port| (port, port)),
        (None, Some(range)) => {
            let object = range.object(&["start", "end"])?;
            let (start, end) = (object.required("start")?, object.required("end")?);
            let (first, last) = (number(&start)?, number(&end)?);
            if last <= first {
                return end.wrong(format!("{last} is not greater than start, {first}"));
            }
            Some((first, last))
        }
        _ => field.wrong("must be exactly one of number, range"),
    }
}

/// Reads `icmps`.
pub(super) fn icmps(field: &Field<'_>) -> Option<Vec<PortMatch>> {
    let rules = read_all(field.list()?, |item| {
        let object = item.object(&["fields"])?;
        match object.field("fields") {
            None => Some(Vec::new()),
            Some(fields) => read_all(fields.list_up_to(PORTS_MAX)?, |item| icmp_field(&item)),
        }
    })?;
    Some(rules.concat())
}

fn icmp_field(field: &Field<'_>) -> Option<PortMatch> {
    let object = field.object(&["family", "type"])?;
    let (protocol, names) = match object.field("family") {
        None => (Protocol::ICMP, ICMPV4_TYPES),
        Some(family) => match family.text()? {
            "IPv4" | "" => (Protocol::ICMP, ICMPV4_TYPES),
            "IPv6" => (Protocol::ICMPV6, ICMPV6_TYPES),
            _ => return family.wrong("must be IPv4 or IPv6"),
        },
    };
    let written = object.required("type")?;
    let number = if written.is_number() {
        written.number(0, 255)? as u16
    } else {
        let text = written.text()?;
        let named = names.iter().find(|(name, _)| *name == text).map(|(_, number)| *number);
        match named.or_else(|| text.parse::<u8>().ok()) {
            Some(number) => u16::from(number),
            None => {
                return written.wrong(format!(
                    "{text:?} is neither a number from 0 to 255 nor the name of a type"
                ));
            }
        }
    };
    Some(PortMatch::Range { protocol, first: number, last: number })
}

const ICMPV4_TYPES: &[(&str, u8)] = &[
    ("EchoReply", 0),
    ("DestinationUnreachable", 3),
    ("Redirect", 5),
    ("Echo", 8),
    ("EchoRequest", 8),
    ("RouterAdvertisement", 9),
    ("RouterSelection", 10),
    ("TimeExceeded", 11),
    ("ParameterProblem", 12),
    ("Timestamp", 13),
    ("TimestampReply", 14),
    ("Photuris", 40),
    ("ExtendedEchoRequest", 42),
    ("ExtendedEchoReply", 43),
    // Cilium's schema has this spelling.
    ("ExtendedEcho Reply", 43),
];

const ICMPV6_TYPES: &[(&str, u8)] = &[
    ("DestinationUnreachable", 1),
    ("PacketTooBig", 2),
    ("TimeExceeded", 3),
    ("ParameterProblem", 4),
    ("EchoRequest", 128),
    ("EchoReply", 129),
    ("MulticastListenerQuery", 130),
    ("MulticastListenerReport", 131),
    ("MulticastListenerDone", 132),
    ("RouterSolicitation", 133),
    ("RouterAdvertisement", 134),
    ("NeighborSolicitation", 135),
    ("NeighborAdvertisement", 136),
    ("RedirectMessage", 137),
    ("RouterRenumbering", 138),
    ("ICMPNodeInformationQuery", 139),
    ("ICMPNodeInformationResponse", 140),
    ("InverseNeighborDiscoverySolicitation", 141),
    ("InverseNeighborDiscoveryAdvertisement", 142),
    ("HomeAgentAddressDiscoveryRequest", 144),
    ("HomeAgentAddressDiscoveryReply", 145),
    ("MobilePrefixSolicitation", 146),
    ("MobilePrefixAdvertisement", 147),
    ("DuplicateAddressRequestCodeSuffix", 157),
    ("DuplicateAddressConfirmationCodeSuffix", 158),
    ("ExtendedEchoRequest", 160),
    ("ExtendedEchoReply", 161),
];
