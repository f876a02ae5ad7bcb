//! A flow as it is kept: the decoded event and, shared, what was looked up for it.
//!
//! A row is made once per event, at a million a second, and kept by the thousands, so it holds no
//! text of its own. Subscribers filter rows and make a message of those they want.

use std::net::IpAddr;
use std::sync::Arc;

use api::hubble::flow::{
    DropReason, FlowType, TraceObservationPoint, TraceReason, TrafficDirection, Verdict,
};

use crate::directory::{Deciders, Directory, IdentityLabels, Peer, ServiceName};
use crate::event::{Event, Trace};
use crate::packet::{Network, Packet, Transport};

/// One end of a flow.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Party {
    /// Its identity: what the datapath says, else what the agent knows.
    pub identity: u32,
    /// Who it is, where it is known.
    pub peer: Option<Arc<Peer>>,
    /// What the identity stands for.
    pub labels: Option<Arc<IdentityLabels>>,
    /// The service that address and port belong to.
    pub service: Option<Arc<ServiceName>>,
    /// The names by which the other end looked the address up.
    pub names: Option<Arc<[String]>>,
}

/// A flow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// When: nanoseconds since 1970.
    pub time_ns: u64,
    /// Counts the records of this observer.
    pub number: u64,
    /// What the datapath said; never a debug message.
    pub event: Event,
    /// Who sent the packet.
    pub source: Party,
    /// Whom it is for.
    pub destination: Party,
    /// Name of the device it was seen at.
    pub interface: Option<Arc<str>>,
    /// The policies that decided, where the event says which.
    pub deciders: Option<Arc<Deciders>>,
}

impl Row {
    /// Looks up what an event is about.
    pub fn new(time_ns: u64, number: u64, event: Event, directory: &Directory) -> Self {
        let mut row = Self {
            time_ns,
            number,
            event,
            source: Party::default(),
            destination: Party::default(),
            interface: None,
            deciders: None,
        };
        row.interface = directory.interfaces.get(&row.ifindex()).cloned();
        let (source_identity, destination_identity) = row.identities();
        let (source_port, destination_port) = row.ports().unzip();
        if let Event::Sock(sock) = &row.event
            && let Some((_, peer)) = directory.control_groups.get(&sock.cgroup_id)
        {
            row.source.resolve(peer.clone(), 0, directory);
        }
        let (source, destination) = (row.source_ip(), row.destination_ip());
        if let Some(address) = source {
            row.source.look_up(address, source_port, source_identity, directory);
        }
        if let Some(address) = destination {
            row.destination.look_up(address, destination_port, destination_identity, directory);
        }
        let asked = |by: &Party, about: Option<IpAddr>| {
            let endpoint = by.peer.as_ref().filter(|peer| peer.endpoint_id != 0)?.endpoint_id;
            directory.names.get(&(endpoint, about?)).cloned()
        };
        row.source.names = asked(&row.destination, source);
        row.destination.names = asked(&row.source, destination);
        row
    }

    /// The packet that the flow is about: of a tunnel's packet, the one inside.
    pub fn packet(&self) -> Option<&Packet> {
        let packet = self.event.packet()?;
        match (&packet.tunnel, self.is_overlay()) {
            (Some(tunnel), true) => Some(&tunnel.inner),
            _ => Some(packet),
        }
    }

    /// The tunnel's own packet, and its network identifier.
    pub fn outer(&self) -> Option<(&Packet, u32)> {
        let packet = self.event.packet().filter(|_| self.is_overlay())?;
        packet.tunnel.as_ref().map(|tunnel| (packet, tunnel.vni))
    }

    fn is_overlay(&self) -> bool {
        match &self.event {
            Event::Drop(drop) => drop.overlay,
            Event::Trace(trace) => trace.overlay,
            _ => false,
        }
    }

    /// What the datapath says about the identities of both ends; 0 where it says nothing.
    fn identities(&self) -> (u32, u32) {
        if let Some((_, vni)) = self.outer() {
            // The event's own are those of the nodes.
            return (vni, 0);
        }
        match &self.event {
            Event::Drop(drop) => (drop.source_identity, drop.destination_identity),
            Event::Trace(trace) => (trace.source_identity, trace.destination_identity),
            Event::Verdict(verdict) if verdict.ingress => (verdict.remote_identity, 0),
            Event::Verdict(verdict) => (0, verdict.remote_identity),
            Event::Sock(_) | Event::Debug(_) | Event::Capture(_) => (0, 0),
        }
    }

    fn ip(&self) -> Option<(IpAddr, IpAddr)> {
        match self.packet()?.network? {
            Network::Ip { source, destination, .. } => Some((source, destination)),
            Network::Arp(_) => None,
        }
    }

    /// The address before translation, where the datapath knows one that differs.
    fn original_source(&self) -> Option<IpAddr> {
        let Event::Trace(Trace { original_source, overlay: false, .. }) = self.event else {
            return None;
        };
        let (source, _) = self.ip()?;
        (!original_source.is_unspecified() && original_source != source).then_some(original_source)
    }

    /// Address of the sender, before translation.
    pub fn source_ip(&self) -> Option<IpAddr> {
        self.original_source().or_else(|| self.ip().map(|(source, _)| source))
    }

    /// Address of the sender after translation, where it was translated.
    pub fn source_xlated(&self) -> Option<IpAddr> {
        self.original_source().and_then(|_| self.ip()).map(|(source, _)| source)
    }

    /// Address of the receiver.
    pub fn destination_ip(&self) -> Option<IpAddr> {
        match &self.event {
            Event::Sock(sock) => Some(sock.destination),
            _ => self.ip().map(|(_, destination)| destination),
        }
    }

    /// The transport's header.
    pub fn transport(&self) -> Option<Transport> {
        match &self.event {
            Event::Sock(sock) => match sock.protocol {
                1 => Some(Transport::Tcp {
                    source: 0,
                    destination: sock.destination_port,
                    flags: crate::TcpFlags(0),
                }),
                2 => Some(Transport::Udp { source: 0, destination: sock.destination_port }),
                _ => None,
            },
            _ => self.packet()?.transport,
        }
    }

    fn ports(&self) -> Option<(u16, u16)> {
        self.transport()?.ports()
    }

    /// The device; 0 is not known.
    pub fn ifindex(&self) -> u32 {
        match &self.event {
            Event::Drop(drop) => drop.ifindex,
            Event::Trace(trace) => trace.ifindex,
            _ => 0,
        }
    }

    /// Kind of the flow.
    pub fn flow_type(&self) -> FlowType {
        if matches!(self.event, Event::Sock(_)) { FlowType::Sock } else { FlowType::L3L4 }
    }

    /// What was done with the packet.
    pub fn verdict(&self) -> Verdict {
        match &self.event {
            Event::Drop(_) => Verdict::Dropped,
            Event::Trace(_) => Verdict::Forwarded,
            Event::Verdict(verdict) => match verdict.verdict {
                ..0 => Verdict::Dropped,
                0 if verdict.audited => Verdict::Audit,
                0 => Verdict::Forwarded,
                1.. => Verdict::Redirected,
            },
            Event::Sock(sock) => match sock.point {
                1 | 3 => Verdict::Traced,
                2 | 4 => Verdict::Translated,
                _ => Verdict::Unknown,
            },
            Event::Debug(_) | Event::Capture(_) => Verdict::Unknown,
        }
    }

    /// Number of the reason of a drop; 0 is none.
    pub fn drop_reason(&self) -> u8 {
        match &self.event {
            Event::Drop(drop) => drop.reason,
            Event::Verdict(verdict) => verdict.drop_reason().unwrap_or(0),
            _ => 0,
        }
    }

    /// The reason of a drop, where Hubble has a name for it.
    pub fn drop_reason_desc(&self) -> DropReason {
        DropReason::try_from(i32::from(self.drop_reason())).unwrap_or(DropReason::Unknown)
    }

    /// Type and subtype of the event.
    pub fn event_type(&self) -> (i32, i32) {
        let (event_type, subtype) = match &self.event {
            Event::Drop(drop) => (1, drop.reason),
            Event::Debug(debug) => (2, debug.message),
            Event::Capture(capture) => (3, capture.point),
            Event::Trace(trace) => (4, trace.observation_point),
            Event::Verdict(_) => (5, 0),
            Event::Sock(sock) => (7, sock.point),
        };
        (event_type, subtype.into())
    }

    /// Where a packet on its way was seen.
    pub fn observation_point(&self) -> TraceObservationPoint {
        let Event::Trace(trace) = &self.event else { return TraceObservationPoint::UnknownPoint };
        match trace.observation_point {
            // 0 is "none" in the message.
            0 => TraceObservationPoint::ToEndpoint,
            number => TraceObservationPoint::try_from(i32::from(number))
                .unwrap_or(TraceObservationPoint::UnknownPoint),
        }
    }

    /// What connection tracking said.
    pub fn trace_reason(&self) -> TraceReason {
        let Event::Trace(trace) = &self.event else { return TraceReason::Unknown };
        match trace.reason {
            0 => TraceReason::New,
            1 => TraceReason::Established,
            2 => TraceReason::Reply,
            3 => TraceReason::Related,
            6 => TraceReason::Srv6Encap,
            7 => TraceReason::Srv6Decap,
            _ => TraceReason::Unknown,
        }
    }

    /// Whether the packet is on its way back; none where it is not known.
    pub fn is_reply(&self) -> Option<bool> {
        match &self.event {
            Event::Trace(_) => match self.trace_reason() {
                TraceReason::Unknown | TraceReason::Srv6Encap | TraceReason::Srv6Decap => None,
                reason => Some(reason == TraceReason::Reply),
            },
            // Policy is asked about the first packet.
            Event::Verdict(verdict) if verdict.verdict >= 0 => Some(false),
            _ => None,
        }
    }

    /// The direction of the connection, seen from the endpoint that the event is about.
    pub fn direction(&self) -> TrafficDirection {
        let sends = |endpoint: u16| {
            self.source.peer.as_ref().is_some_and(|peer| peer.endpoint_id == endpoint)
        };
        let is_egress = match &self.event {
            // Packets that are dropped are taken for requests.
            Event::Drop(drop) if drop.source != 0 => sends(drop.source),
            Event::Trace(trace) if self.trace_reason() != TraceReason::Unknown => {
                let is_reply = self.is_reply() == Some(true);
                sends(trace.source) != is_reply || self.source_xlated().is_some()
            }
            Event::Verdict(verdict) => !verdict.ingress,
            _ => return TrafficDirection::Unknown,
        };
        if is_egress { TrafficDirection::Egress } else { TrafficDirection::Ingress }
    }

    /// Whether the packet is encrypted.
    pub fn is_encrypted(&self) -> bool {
        matches!(&self.event, Event::Trace(trace) if trace.encrypted)
    }

    /// Trace id in an option of the packet; 0 is none.
    pub fn ip_trace_id(&self) -> u64 {
        match &self.event {
            Event::Drop(drop) => drop.ip_trace_id,
            Event::Trace(trace) => trace.ip_trace_id,
            _ => 0,
        }
    }
}

impl Party {
    fn look_up(
        &mut self,
        address: IpAddr,
        port: Option<u16>,
        identity: u32,
        directory: &Directory,
    ) {
        match directory.peers.get(&address) {
            Some(peer) => self.resolve(peer.clone(), identity, directory),
            None => {
                self.identity = identity;
                self.labels = directory.identities.get(&identity).cloned();
            }
        }
        if let Some(port) = port {
            self.service = directory.services.get(&(address, port)).cloned();
        }
    }

    /// The datapath's word counts more than the agent's, which may be of another moment.
    fn resolve(&mut self, peer: Arc<Peer>, identity: u32, directory: &Directory) {
        self.identity = if identity == 0 { peer.identity } else { identity };
        self.labels = directory.identities.get(&self.identity).cloned();
        self.peer = Some(peer);
    }
}
