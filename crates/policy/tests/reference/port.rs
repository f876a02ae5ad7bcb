//! Which packets rules mean: the port clauses of the languages.

use serde_json::Value;

use super::{Case, Covers, Direction, Kind, NamedPort, list, texts};

const TCP: u8 = 6;
const UDP: u8 = 17;
const SCTP: u8 = 132;

/// `toPorts` and `icmps` of an element of `ingress` or `egress`.
pub(super) fn of_cilium(item: &Value, case: &Case<'_>) -> Covers {
    let (ports, icmps) = (list(&item["toPorts"]), list(&item["icmps"]));
    let all = if is_conditional(item) { Covers::Conditionally } else { Covers::Yes };
    if !icmps.is_empty() {
        let fields = icmps.iter().flat_map(|icmp| list(&icmp["fields"]));
        return if fields.into_iter().any(|field| is_icmp(case, field)) { all } else { Covers::No };
    }
    if ports.is_empty() {
        return all;
    }
    let mut covers = Covers::No;
    for port in ports {
        let pairs = list(&port["ports"]);
        if !pairs.is_empty() && !pairs.iter().any(|pair| is_pair(case, pair)) {
            continue;
        }
        match is_conditional(port) {
            true if covers == Covers::No => covers = Covers::Conditionally,
            true => {}
            false => covers = all,
        }
    }
    covers
}

/// Whether more than addresses and ports decides.
fn is_conditional(value: &Value) -> bool {
    let rules = value["rules"].as_object().into_iter().flatten();
    let has_rules =
        rules.into_iter().any(|(_, list)| list.as_array().is_some_and(|l| !l.is_empty()));
    has_rules
        || texts(&value["serverNames"]).next().is_some()
        || !value["listener"].is_null()
        || !value["terminatingTLS"].is_null()
        || !value["originatingTLS"].is_null()
        || value["authentication"]["mode"].as_str().is_some_and(|mode| mode != "disabled")
}

/// One element of `ports`.
fn is_pair(case: &Case<'_>, pair: &Value) -> bool {
    let protocol = pair["protocol"].as_str().unwrap_or("ANY");
    let text = match &pair["port"] {
        Value::String(text) => text.clone(),
        Value::Number(number) => number.to_string(),
        _ => "0".to_owned(),
    };
    let Ok(first) = text.parse::<u16>() else { return is_named(case, &text, protocol) };
    if !is_protocol(case, protocol) {
        return false;
    }
    let last = pair["endPort"].as_u64().unwrap_or(0).max(u64::from(first));
    first == 0 || (u64::from(first)..=last).contains(&u64::from(case.packet.port))
}

fn is_protocol(case: &Case<'_>, name: &str) -> bool {
    match name {
        "TCP" => case.packet.protocol == TCP,
        "UDP" => case.packet.protocol == UDP,
        "SCTP" => case.packet.protocol == SCTP,
        "ANY" => [TCP, UDP, SCTP].contains(&case.packet.protocol),
        other => {
            // Protocols without ports, by IANA's numbers.
            const OTHERS: [(&str, u8); 7] = [
                ("VRRP", 112),
                ("IGMP", 2),
                ("GRE", 47),
                ("IPIP", 4),
                ("IPV6", 41),
                ("ESP", 50),
                ("AH", 51),
            ];
            OTHERS.contains(&(other, case.packet.protocol))
        }
    }
}

/// Names belong to the pod that receives.
fn is_named(case: &Case<'_>, name: &str, protocol: &str) -> bool {
    let receiver = match case.direction {
        Direction::Ingress => case.subject,
        Direction::Egress => case.peer,
    };
    let Kind::Pod(pod) = &receiver.kind else { return false };
    let is_meant = |port: &NamedPort| {
        port.name == name
            && port.number == case.packet.port
            && (protocol == "ANY" || protocol == port.protocol)
            && is_protocol(case, port.protocol)
    };
    pod.ports.iter().any(is_meant)
}

fn is_icmp(case: &Case<'_>, field: &Value) -> bool {
    let (protocol, names): (u8, &[(&str, u64)]) = match field["family"].as_str() {
        Some("IPv6") => (58, &[("EchoRequest", 128), ("EchoReply", 129), ("PacketTooBig", 2)]),
        _ => (1, &[("EchoRequest", 8), ("EchoReply", 0), ("DestinationUnreachable", 3)]),
    };
    let number = match &field["type"] {
        Value::String(text) => text
            .parse()
            .ok()
            .or_else(|| names.iter().find(|(name, _)| name == text).map(|(_, number)| *number)),
        value => value.as_u64(),
    };
    case.packet.protocol == protocol && number == Some(u64::from(case.packet.port))
}

/// `ports` of a `NetworkPolicy`.
pub(super) fn of_kubernetes(rule: &Value, case: &Case<'_>) -> bool {
    let ports = list(&rule["ports"]);
    let is_meant = |port: &Value| {
        let protocol = port["protocol"].as_str().unwrap_or("TCP");
        match &port["port"] {
            Value::String(name) => is_named(case, name, protocol),
            Value::Null => is_protocol(case, protocol),
            number => {
                let first = number.as_u64().unwrap_or(0);
                let last = port["endPort"].as_u64().unwrap_or(first);
                is_protocol(case, protocol) && (first..=last).contains(&u64::from(case.packet.port))
            }
        }
    };
    ports.is_empty() || ports.iter().any(is_meant)
}

/// `protocols` of a `ClusterNetworkPolicy`.
pub(super) fn of_cluster_policy(rule: &Value, case: &Case<'_>) -> bool {
    let protocols = list(&rule["protocols"]);
    let is_meant = |protocol: &Value| {
        if let Some(name) = protocol["destinationNamedPort"].as_str() {
            return is_named(case, name, "ANY");
        }
        let Some((name, value)) = protocol.as_object().and_then(|object| object.iter().next())
        else {
            return false;
        };
        let port = &value["destinationPort"];
        let (first, last) = match (port["number"].as_u64(), &port["range"]) {
            (Some(number), _) => (number, number),
            (None, Value::Null) => (0, u64::from(u16::MAX)),
            (None, range) => {
                (range["start"].as_u64().unwrap_or(0), range["end"].as_u64().unwrap_or(0))
            }
        };
        is_protocol(case, &name.to_uppercase())
            && (first..=last).contains(&u64::from(case.packet.port))
    };
    protocols.is_empty() || protocols.iter().any(is_meant)
}
