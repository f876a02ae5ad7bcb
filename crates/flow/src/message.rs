//! Rows → messages: what a client of Hubble gets to see.

use std::net::IpAddr;
use std::sync::Arc;

use api::hubble::flow;
use prost_types::Timestamp;

use crate::event::{Event, file_name};
use crate::packet::{Network, Packet, TcpFlags, Transport};
use crate::row::{Party, Row};

/// What is the same in all flows of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeInfo {
    /// Name of the node; before it the cluster's and `/`, unless that is `default`.
    pub name: String,
    /// The node's labels, `key=value`.
    pub labels: Vec<String>,
    /// The cluster's name.
    pub cluster: String,
    /// Version of the program.
    pub version: String,
    /// Tells the observers apart that the node had one after the other.
    pub instance: u64,
}

/// The name of a node in flows: clusters other than `default` are named.
pub fn node_name(cluster: &str, node: &str) -> String {
    match cluster {
        "" | "default" => node.to_owned(),
        cluster => format!("{cluster}/{node}"),
    }
}

/// Nanoseconds since 1970 as protobuf has them.
pub fn timestamp(time_ns: u64) -> Timestamp {
    const SECOND_NS: u64 = 1_000_000_000;
    Timestamp {
        seconds: i64::try_from(time_ns / SECOND_NS).unwrap_or(i64::MAX),
        nanos: i32::try_from(time_ns % SECOND_NS).unwrap_or(0),
    }
}

/// Nanoseconds since 1970; what is before is 0.
pub fn nanoseconds(time: &Timestamp) -> u64 {
    let seconds = u64::try_from(time.seconds).unwrap_or(0);
    seconds.saturating_mul(1_000_000_000).saturating_add(u64::try_from(time.nanos).unwrap_or(0))
}

/// The id of a record: unique as long as no two observers drew the same instance number.
pub fn uuid(instance: u64, number: u64) -> String {
    // Version 8 of RFC 9562: but for version and variant the bits are ours to choose.
    let bits = (u128::from(instance) << 64) | u128::from(number);
    let fixed = (0xf << 76) | (0b11 << 62);
    let hex = format!("{:032x}", (bits & !fixed) | (0x8 << 76) | (0b10 << 62));
    [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-")
}

impl Row {
    /// The message of this row.
    pub fn to_flow(&self, node: &NodeInfo) -> flow::Flow {
        let (event_type, sub_type) = self.event_type();
        let packet = self.packet();
        let transport = self.transport();
        let is_reply = self.is_reply();
        flow::Flow {
            time: Some(timestamp(self.time_ns)),
            uuid: uuid(node.instance, self.number),
            emitter: Some(flow::Emitter {
                name: "Hubble".to_owned(),
                version: node.version.clone(),
            }),
            verdict: self.verdict().into(),
            drop_reason: self.drop_reason().into(),
            drop_reason_desc: self.drop_reason_desc().into(),
            ethernet: packet.and_then(|packet| packet.ethernet).map(|header| flow::Ethernet {
                source: header.source.to_string(),
                destination: header.destination.to_string(),
            }),
            ip: self.ip_message(),
            l4: transport.and_then(layer4),
            tunnel: self.outer().map(|(packet, vni)| tunnel(packet, vni)),
            source: self.party(&self.source, self.source_ip()),
            destination: self.party(&self.destination, self.destination_ip()),
            source_names: names(&self.source),
            destination_names: names(&self.destination),
            source_service: service(&self.source),
            destination_service: service(&self.destination),
            r#type: self.flow_type().into(),
            node_name: node.name.clone(),
            node_labels: node.labels.clone(),
            reply: is_reply == Some(true),
            is_reply,
            event_type: Some(flow::CiliumEventType { r#type: event_type, sub_type }),
            traffic_direction: self.direction().into(),
            trace_observation_point: self.observation_point().into(),
            trace_reason: self.trace_reason().into(),
            interface: self.interface_message(),
            summary: transport.map(summary).unwrap_or_default(),
            ..self.of_this_event()
        }
    }

    /// The fields that only one type of event has.
    fn of_this_event(&self) -> flow::Flow {
        let mut flow = flow::Flow::default();
        match &self.event {
            Event::Drop(drop) => {
                let name = file_name(drop.file).to_owned();
                flow.file = Some(flow::FileInfo { name, line: drop.line.into() });
            }
            // The observation point is to-proxy.
            Event::Trace(trace) if trace.observation_point == 1 => {
                flow.proxy_port = trace.destination.into();
            }
            Event::Verdict(verdict) => {
                flow.policy_match_type = verdict.match_type.into();
                flow.auth_type = verdict.auth_type.into();
                flow.proxy_port = u32::try_from(verdict.verdict).unwrap_or(0);
                if let Some(deciders) = &self.deciders {
                    let decided = match (verdict.ingress, verdict.verdict < 0) {
                        (true, true) => &mut flow.ingress_denied_by,
                        (true, false) => &mut flow.ingress_allowed_by,
                        (false, true) => &mut flow.egress_denied_by,
                        (false, false) => &mut flow.egress_allowed_by,
                    };
                    decided.clone_from(&deciders.policies);
                    flow.policy_log.clone_from(&deciders.logs);
                }
            }
            Event::Sock(sock) => {
                flow.sock_xlate_point = sock.point.into();
                flow.socket_cookie = sock.cookie;
                flow.cgroup_id = sock.cgroup_id;
            }
            Event::Capture(capture) => flow.debug_capture_point = capture.point.into(),
            Event::Trace(_) | Event::Debug(_) => {}
        }
        if self.ip_trace_id() != 0 {
            flow.ip_trace_id =
                Some(flow::IpTraceId { trace_id: self.ip_trace_id(), ip_option_type: 0 });
        }
        flow
    }

    fn ip_message(&self) -> Option<flow::Ip> {
        let destination = self.destination_ip()?;
        let text = |address: Option<IpAddr>| address.map(|a| a.to_string()).unwrap_or_default();
        Some(flow::Ip {
            source: text(self.source_ip()),
            source_xlated: text(self.source_xlated()),
            destination: destination.to_string(),
            ip_version: ip_version(destination).into(),
            encrypted: self.is_encrypted(),
        })
    }

    fn interface_message(&self) -> Option<flow::NetworkInterface> {
        (self.ifindex() != 0).then(|| flow::NetworkInterface {
            index: self.ifindex(),
            name: self.interface.as_deref().unwrap_or_default().to_owned(),
        })
    }

    fn party(&self, party: &Party, address: Option<IpAddr>) -> Option<flow::Endpoint> {
        address.is_some().then(|| endpoint(party))
    }
}

fn endpoint(party: &Party) -> flow::Endpoint {
    let mut endpoint = flow::Endpoint { identity: party.identity, ..flow::Endpoint::default() };
    if let Some(labels) = &party.labels {
        endpoint.labels.clone_from(&labels.labels);
        endpoint.cluster_name.clone_from(&labels.cluster);
    }
    if let Some(peer) = &party.peer {
        endpoint.id = peer.endpoint_id.into();
        endpoint.namespace.clone_from(&peer.namespace);
        endpoint.pod_name.clone_from(&peer.pod);
        let workload = |workload: &crate::directory::Workload| flow::Workload {
            name: workload.name.clone(),
            kind: workload.kind.clone(),
        };
        endpoint.workloads = peer.workloads.iter().map(workload).collect();
    }
    endpoint
}

fn names(party: &Party) -> Vec<String> {
    party.names.as_deref().map(<[String]>::to_vec).unwrap_or_default()
}

fn service(party: &Party) -> Option<flow::Service> {
    party.service.as_ref().map(|service| flow::Service {
        name: service.name.clone(),
        namespace: service.namespace.clone(),
    })
}

/// The version of an address.
pub(crate) fn ip_version(address: IpAddr) -> flow::IpVersion {
    if address.is_ipv4() { flow::IpVersion::IPv4 } else { flow::IpVersion::IPv6 }
}

fn layer4(transport: Transport) -> Option<flow::Layer4> {
    use flow::layer4::Protocol;
    let protocol = match transport {
        Transport::Tcp { source, destination, flags } => Protocol::Tcp(flow::Tcp {
            source_port: source.into(),
            destination_port: destination.into(),
            flags: Some(tcp_flags(flags)),
        }),
        Transport::Udp { source, destination } => Protocol::Udp(flow::Udp {
            source_port: source.into(),
            destination_port: destination.into(),
        }),
        Transport::Sctp { source, destination } => Protocol::Sctp(flow::Sctp {
            source_port: source.into(),
            destination_port: destination.into(),
            ..flow::Sctp::default()
        }),
        Transport::Icmpv4 { kind, code } => {
            Protocol::IcmPv4(flow::IcmPv4 { r#type: kind.into(), code: code.into() })
        }
        Transport::Icmpv6 { kind, code } => {
            Protocol::IcmPv6(flow::IcmPv6 { r#type: kind.into(), code: code.into() })
        }
        Transport::Other { .. } => return None,
    };
    Some(flow::Layer4 { protocol: Some(protocol) })
}

/// The flags of a TCP header, one by one.
pub(crate) fn tcp_flags(flags: TcpFlags) -> flow::TcpFlags {
    let has = |bit: u8| flags.0 & bit != 0;
    flow::TcpFlags {
        fin: has(0x01),
        syn: has(0x02),
        rst: has(0x04),
        psh: has(0x08),
        ack: has(0x10),
        urg: has(0x20),
        ece: has(0x40),
        cwr: has(0x80),
        ns: false,
    }
}

fn tunnel(outer: &Packet, vni: u32) -> flow::Tunnel {
    let ip = match outer.network {
        Some(Network::Ip { source, destination, .. }) => Some(flow::Ip {
            source: source.to_string(),
            destination: destination.to_string(),
            ip_version: ip_version(destination).into(),
            ..flow::Ip::default()
        }),
        _ => None,
    };
    flow::Tunnel {
        protocol: flow::tunnel::Protocol::Vxlan.into(),
        ip,
        l4: outer.transport.and_then(layer4),
        vni,
    }
}

fn summary(transport: Transport) -> String {
    match transport {
        Transport::Tcp { flags, .. } => format!("TCP Flags: {flags}"),
        Transport::Udp { .. } => "UDP".to_owned(),
        Transport::Sctp { .. } => "SCTP".to_owned(),
        Transport::Icmpv4 { .. } | Transport::Icmpv6 { .. } | Transport::Other { .. } => {
            // `icmp EchoRequest` → `ICMPv4 EchoRequest`, the words of Hubble.
            let line = transport.to_string();
            match line.split_once(' ') {
                Some(("icmp", rest)) => format!("ICMPv4 {rest}"),
                Some(("icmpv6", rest)) => format!("ICMPv6 {rest}"),
                _ => line,
            }
        }
    }
}

/// The message of a debug event.
pub fn debug_event(
    event: &crate::Debug,
    cpu: u32,
    source: Option<&Arc<crate::Peer>>,
) -> flow::DebugEvent {
    let source = (event.source != 0).then(|| match source {
        Some(peer) => flow::Endpoint {
            id: peer.endpoint_id.into(),
            identity: peer.identity,
            namespace: peer.namespace.clone(),
            pod_name: peer.pod.clone(),
            ..flow::Endpoint::default()
        },
        None => flow::Endpoint { id: event.source.into(), ..flow::Endpoint::default() },
    });
    let [arg1, arg2, arg3] = event.arguments;
    flow::DebugEvent {
        r#type: event.message.into(),
        source,
        hash: Some(event.hash),
        arg1: Some(arg1),
        arg2: Some(arg2),
        arg3: Some(arg3),
        message: event.to_string_message(),
        cpu: i32::try_from(cpu).ok(),
    }
}

impl crate::Debug {
    /// What the message says, for people.
    fn to_string_message(&self) -> String {
        let [a, b, _] = self.arguments;
        match self.message {
            abi::event::DEBUG_LOCAL_DELIVERY => {
                format!("Attempting local delivery for container id {a} from seclabel {b}")
            }
            abi::event::DEBUG_ENCAP => format!(
                "Encapsulating to node {} ({a:#x}) from seclabel {b}",
                std::net::Ipv4Addr::from(a.to_be_bytes())
            ),
            abi::event::DEBUG_ICMP6_NS => {
                format!("ICMPv6 neighbour solicitation for address ..:{a:x}")
            }
            abi::event::DEBUG_DECAP => format!("Decapsulated, VNI {a}"),
            message => format!("message {message} {:#x} {:#x} {:#x}", a, b, self.arguments[2]),
        }
    }
}
