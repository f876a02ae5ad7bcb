//! What filters see of a flow: of a row of the ring, or of a message.

use std::borrow::Cow;
use std::net::IpAddr;

use api::hubble::flow::{
    self, Dns, DropReason, Flow, Http, IpVersion, TcpFlags, TrafficDirection, Verdict,
    layer4::Protocol as L4, layer7::Record as L7,
};

use super::Protocol;
use crate::message::{self, NodeInfo};
use crate::packet::Transport;
use crate::row::{Party, Row};

/// An end of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Who sends.
    Source,
    /// Who receives.
    Destination,
}

/// A flow, to filters.
pub trait View {
    /// Its id.
    fn uuid(&self) -> String;
    /// Address of an end.
    fn ip(&self, side: Side) -> Option<IpAddr>;
    /// Address of the source after translation.
    fn source_ip_xlated(&self) -> Option<IpAddr>;
    /// Namespace and name of a pod; none where both are empty.
    fn pod(&self, side: Side) -> Option<(&str, &str)>;
    /// DNS names of an end.
    fn names(&self, side: Side) -> &[String];
    /// Labels of an end.
    fn labels(&self, side: Side) -> &[String];
    /// Namespace and name of a service; none where both are empty.
    fn service(&self, side: Side) -> Option<(&str, &str)>;
    /// Whether a workload of this end, given name and kind, is `wanted`.
    fn has_workload(&self, side: Side, wanted: &dyn Fn(&str, &str) -> bool) -> bool;
    /// Cluster of an end.
    fn cluster(&self, side: Side) -> &str;
    /// Identity of an end.
    fn identity(&self, side: Side) -> Option<u32>;
    /// Port of an end.
    fn port(&self, side: Side) -> Option<u16>;
    /// Direction of the connection.
    fn direction(&self) -> TrafficDirection;
    /// What was done.
    fn verdict(&self) -> Verdict;
    /// Why it was dropped.
    fn drop_reason(&self) -> DropReason;
    /// Index and name of the device.
    fn interface(&self) -> Option<(u32, &str)>;
    /// Type and subtype of the event.
    fn event_type(&self) -> (i32, i32);
    /// Whether the flow is of a protocol.
    fn speaks(&self, protocol: Protocol) -> bool;
    /// Whether it is on its way back.
    fn is_reply(&self) -> Option<bool>;
    /// The flags of its TCP header.
    fn tcp_flags(&self) -> Option<TcpFlags>;
    /// The node it was seen on.
    fn node_name(&self) -> &str;
    /// That node's labels.
    fn node_labels(&self) -> &[String];
    /// Version of its addresses.
    fn ip_version(&self) -> IpVersion;
    /// Id of the distributed trace it belongs to.
    fn trace_id(&self) -> Option<&str>;
    /// Id in an option of its packet.
    fn ip_trace_id(&self) -> u64;
    /// Whether its packet is encrypted.
    fn is_encrypted(&self) -> bool;
    /// What it says in DNS.
    fn dns(&self) -> Option<&Dns>;
    /// What it says in HTTP.
    fn http(&self) -> Option<&Http>;
    /// The whole message.
    fn flow(&self) -> Cow<'_, Flow>;
}

/// A row, and the node it was seen on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RowView<'a> {
    pub(crate) row: &'a Row,
    pub(crate) node: &'a NodeInfo,
}

impl RowView<'_> {
    fn party(&self, side: Side) -> &Party {
        match side {
            Side::Source => &self.row.source,
            Side::Destination => &self.row.destination,
        }
    }
}

impl View for RowView<'_> {
    fn uuid(&self) -> String {
        message::uuid(self.node.instance, self.row.number)
    }

    fn ip(&self, side: Side) -> Option<IpAddr> {
        match side {
            Side::Source => self.row.source_ip(),
            Side::Destination => self.row.destination_ip(),
        }
    }

    fn source_ip_xlated(&self) -> Option<IpAddr> {
        self.row.source_xlated()
    }

    fn pod(&self, side: Side) -> Option<(&str, &str)> {
        let peer = self.party(side).peer.as_deref()?;
        Some((peer.namespace.as_str(), peer.pod.as_str())).filter(|pod| *pod != ("", ""))
    }

    fn names(&self, side: Side) -> &[String] {
        self.party(side).names.as_deref().unwrap_or_default()
    }

    fn labels(&self, side: Side) -> &[String] {
        self.party(side).labels.as_deref().map(|l| l.labels.as_slice()).unwrap_or_default()
    }

    fn service(&self, side: Side) -> Option<(&str, &str)> {
        let service = self.party(side).service.as_deref()?;
        Some((service.namespace.as_str(), service.name.as_str()))
    }

    fn has_workload(&self, side: Side, wanted: &dyn Fn(&str, &str) -> bool) -> bool {
        let peer = self.party(side).peer.as_deref();
        peer.is_some_and(|peer| peer.workloads.iter().any(|w| wanted(&w.name, &w.kind)))
    }

    fn cluster(&self, side: Side) -> &str {
        self.party(side).labels.as_deref().map(|l| l.cluster.as_str()).unwrap_or_default()
    }

    fn identity(&self, side: Side) -> Option<u32> {
        self.ip(side).map(|_| self.party(side).identity)
    }

    fn port(&self, side: Side) -> Option<u16> {
        let (source, destination) = self.row.transport()?.ports()?;
        Some(if side == Side::Source { source } else { destination })
    }

    fn direction(&self) -> TrafficDirection {
        self.row.direction()
    }

    fn verdict(&self) -> Verdict {
        self.row.verdict()
    }

    fn drop_reason(&self) -> DropReason {
        self.row.drop_reason_desc()
    }

    fn interface(&self) -> Option<(u32, &str)> {
        let index = self.row.ifindex();
        (index != 0).then(|| (index, self.row.interface.as_deref().unwrap_or_default()))
    }

    fn event_type(&self) -> (i32, i32) {
        self.row.event_type()
    }

    fn speaks(&self, protocol: Protocol) -> bool {
        use Protocol as P;
        use Transport as T;
        matches!(
            (self.row.transport(), protocol),
            (Some(T::Tcp { .. }), P::Tcp)
                | (Some(T::Udp { .. }), P::Udp)
                | (Some(T::Sctp { .. }), P::Sctp)
                | (Some(T::Icmpv4 { .. }), P::Icmp | P::Icmpv4)
                | (Some(T::Icmpv6 { .. }), P::Icmp | P::Icmpv6)
        )
    }

    fn is_reply(&self) -> Option<bool> {
        self.row.is_reply()
    }

    fn tcp_flags(&self) -> Option<TcpFlags> {
        match self.row.transport()? {
            Transport::Tcp { flags, .. } => Some(message::tcp_flags(flags)),
            _ => None,
        }
    }

    fn node_name(&self) -> &str {
        &self.node.name
    }

    fn node_labels(&self) -> &[String] {
        &self.node.labels
    }

    fn ip_version(&self) -> IpVersion {
        self.row.destination_ip().map_or(IpVersion::IpNotUsed, message::ip_version)
    }

    fn trace_id(&self) -> Option<&str> {
        None
    }

    fn ip_trace_id(&self) -> u64 {
        self.row.ip_trace_id()
    }

    fn is_encrypted(&self) -> bool {
        self.row.is_encrypted()
    }

    fn dns(&self) -> Option<&Dns> {
        None
    }

    fn http(&self) -> Option<&Http> {
        None
    }

    fn flow(&self) -> Cow<'_, Flow> {
        Cow::Owned(self.row.to_flow(self.node))
    }
}

fn end(flow: &Flow, side: Side) -> Option<&flow::Endpoint> {
    match side {
        Side::Source => flow.source.as_ref(),
        Side::Destination => flow.destination.as_ref(),
    }
}

fn l4(flow: &Flow) -> Option<&L4> {
    flow.l4.as_ref()?.protocol.as_ref()
}

fn l7(flow: &Flow) -> Option<&L7> {
    flow.l7.as_ref()?.record.as_ref()
}

impl View for Flow {
    fn uuid(&self) -> String {
        self.uuid.clone()
    }

    fn ip(&self, side: Side) -> Option<IpAddr> {
        let ip = self.ip.as_ref()?;
        let text = if side == Side::Source { &ip.source } else { &ip.destination };
        text.parse().ok()
    }

    fn source_ip_xlated(&self) -> Option<IpAddr> {
        self.ip.as_ref()?.source_xlated.parse().ok()
    }

    fn pod(&self, side: Side) -> Option<(&str, &str)> {
        let end = end(self, side)?;
        Some((end.namespace.as_str(), end.pod_name.as_str())).filter(|pod| *pod != ("", ""))
    }

    fn names(&self, side: Side) -> &[String] {
        if side == Side::Source { &self.source_names } else { &self.destination_names }
    }

    fn labels(&self, side: Side) -> &[String] {
        end(self, side).map(|end| end.labels.as_slice()).unwrap_or_default()
    }

    fn service(&self, side: Side) -> Option<(&str, &str)> {
        let service = match side {
            Side::Source => self.source_service.as_ref()?,
            Side::Destination => self.destination_service.as_ref()?,
        };
        Some((service.namespace.as_str(), service.name.as_str())).filter(|name| *name != ("", ""))
    }

    fn has_workload(&self, side: Side, wanted: &dyn Fn(&str, &str) -> bool) -> bool {
        end(self, side).is_some_and(|end| end.workloads.iter().any(|w| wanted(&w.name, &w.kind)))
    }

    fn cluster(&self, side: Side) -> &str {
        end(self, side).map(|end| end.cluster_name.as_str()).unwrap_or_default()
    }

    fn identity(&self, side: Side) -> Option<u32> {
        end(self, side).map(|end| end.identity)
    }

    fn port(&self, side: Side) -> Option<u16> {
        let (source, destination) = match l4(self)? {
            L4::Tcp(tcp) => (tcp.source_port, tcp.destination_port),
            L4::Udp(udp) => (udp.source_port, udp.destination_port),
            L4::Sctp(sctp) => (sctp.source_port, sctp.destination_port),
            L4::IcmPv4(_) | L4::IcmPv6(_) | L4::Vrrp(_) | L4::Igmp(_) => return None,
        };
        u16::try_from(if side == Side::Source { source } else { destination }).ok()
    }

    fn direction(&self) -> TrafficDirection {
        self.traffic_direction()
    }

    fn verdict(&self) -> Verdict {
        self.verdict()
    }

    fn drop_reason(&self) -> DropReason {
        self.drop_reason_desc()
    }

    fn interface(&self) -> Option<(u32, &str)> {
        self.interface.as_ref().map(|interface| (interface.index, interface.name.as_str()))
    }

    fn event_type(&self) -> (i32, i32) {
        self.event_type.as_ref().map_or((0, 0), |event| (event.r#type, event.sub_type))
    }

    fn speaks(&self, protocol: Protocol) -> bool {
        use Protocol as P;
        let at_layer_4 = matches!(
            (l4(self), protocol),
            (Some(L4::Tcp(_)), P::Tcp)
                | (Some(L4::Udp(_)), P::Udp)
                | (Some(L4::Sctp(_)), P::Sctp)
                | (Some(L4::IcmPv4(_)), P::Icmp | P::Icmpv4)
                | (Some(L4::IcmPv6(_)), P::Icmp | P::Icmpv6)
                | (Some(L4::Vrrp(_)), P::Vrrp)
                | (Some(L4::Igmp(_)), P::Igmp)
        );
        let at_layer_7 = matches!(
            (l7(self), protocol),
            (Some(L7::Dns(_)), P::Dns)
                | (Some(L7::Http(_)), P::Http)
                | (Some(L7::Kafka(_)), P::Kafka)
        );
        at_layer_4 || at_layer_7
    }

    fn is_reply(&self) -> Option<bool> {
        self.is_reply
    }

    fn tcp_flags(&self) -> Option<TcpFlags> {
        match l4(self)? {
            L4::Tcp(tcp) => tcp.flags,
            _ => None,
        }
    }

    fn node_name(&self) -> &str {
        &self.node_name
    }

    fn node_labels(&self) -> &[String] {
        &self.node_labels
    }

    fn ip_version(&self) -> IpVersion {
        self.ip.as_ref().map_or(IpVersion::IpNotUsed, flow::Ip::ip_version)
    }

    fn trace_id(&self) -> Option<&str> {
        let parent = self.trace_context.as_ref()?.parent.as_ref()?;
        Some(parent.trace_id.as_str()).filter(|id| !id.is_empty())
    }

    fn ip_trace_id(&self) -> u64 {
        self.ip_trace_id.as_ref().map_or(0, |id| id.trace_id)
    }

    fn is_encrypted(&self) -> bool {
        self.ip.as_ref().is_some_and(|ip| ip.encrypted)
    }

    fn dns(&self) -> Option<&Dns> {
        match l7(self)? {
            L7::Dns(dns) => Some(dns),
            _ => None,
        }
    }

    fn http(&self) -> Option<&Http> {
        match l7(self)? {
            L7::Http(http) => Some(http),
            _ => None,
        }
    }

    fn flow(&self) -> Cow<'_, Flow> {
        Cow::Borrowed(self)
    }
}
