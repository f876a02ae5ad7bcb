//! What a packet is to its flow: ports or what stands for them, TCP's flags, and which flow an ICMP
//! error speaks of.

use abi::DropReason;
use abi::conntrack::{FragmentKey, FragmentPorts};

use crate::family::{Addr, Family, IpHeader, Part, Transport};
use crate::maps::{Maps, Scratch, forget};
use crate::packet::Packet;
use crate::wire::icmp::{self, Purpose};
use crate::wire::{eth, icmp6, tcp, udp};

/// Protocol number of SCTP, whose ports are where TCP has them.
const SCTP: u8 = 132;

/// How a packet is tracked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// It belongs to a flow, or begins one.
    Flow,
    /// It is an ICMP error about a flow; [`L4`] speaks of that flow, turned round.
    Related,
    /// It is decided by itself: other ICMP, and fragments of datagrams whose beginning was not seen.
    Stateless,
}

/// The L4 summary of a packet. Ports are as they lie in the packet.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct L4 {
    /// Port of the source; of an ICMP echo the id, on the requester's side.
    pub source_port: u16,
    /// Port of the target.
    pub target_port: u16,
    /// What policies compare with their ports when the source is the initiator.
    pub forward_port: [u8; 2],
    /// The same when the target is the initiator.
    pub reply_port: [u8; 2],
    /// The same when the packet is decided by itself.
    pub own_port: [u8; 2],
    /// Protocol of the flow.
    pub protocol: u8,
    /// Protocol of the packet itself, which is another for [`Kind::Related`].
    pub own_protocol: u8,
    /// How it is tracked.
    pub kind: Kind,
    /// TCP flags; none of a later fragment.
    pub tcp_flags: u8,
    /// ICMP type.
    pub icmp_type: u8,
    /// What an ICMP message is for.
    pub purpose: Purpose,
    /// It can only be the initiator's: a TCP SYN alone, an echo request.
    pub opens: bool,
    /// It can only be the responder's: an echo reply.
    pub answers: bool,
    /// From elsewhere it passes: neighbours on a link, and news of packets that were too big.
    pub passes: bool,
    /// The ports are known.
    pub has_ports: bool,
    /// The source is the lower end of the flow's key.
    pub source_is_lower: bool,
    /// An ICMP error of who received the packet that it speaks of.
    pub is_of_receiver: bool,
    /// TCP sequence number.
    pub sequence: u32,
    /// TCP acknowledgement number.
    pub acknowledgement: u32,
}

impl L4 {
    /// Nothing but the protocol is known.
    pub const fn of(protocol: u8) -> Self {
        Self {
            source_port: 0,
            target_port: 0,
            forward_port: [0; 2],
            reply_port: [0; 2],
            own_port: [0; 2],
            protocol,
            own_protocol: protocol,
            kind: Kind::Flow,
            tcp_flags: 0,
            icmp_type: 0,
            purpose: Purpose::Other,
            opens: false,
            answers: false,
            passes: false,
            has_ports: true,
            source_is_lower: false,
            is_of_receiver: false,
            sequence: 0,
            acknowledgement: 0,
        }
    }

    fn ports(&mut self, [s0, s1, t0, t1]: [u8; 4]) {
        self.source_port = u16::from_ne_bytes([s0, s1]);
        self.target_port = u16::from_ne_bytes([t0, t1]);
        self.forward_port = [t0, t1];
        self.reply_port = [s0, s1];
        self.own_port = [t0, t1];
    }

    /// What later fragments of the datagram do not say.
    fn ports_of_datagram(&self) -> FragmentPorts {
        FragmentPorts {
            source_port: self.source_port.to_ne_bytes(),
            target_port: self.target_port.to_ne_bytes(),
            policy_port: self.own_port,
            icmp_type: self.icmp_type,
            pad: 0,
        }
    }

    /// An ICMP message of `purpose`; `id` is that of an echo.
    fn icmp<F: Family>(&mut self, icmp_type: u8, purpose: Purpose, id: u16) {
        self.icmp_type = icmp_type;
        self.purpose = purpose;
        self.own_port = [0, icmp_type];
        let request = echo_request::<F>();
        match purpose {
            Purpose::EchoRequest => self.source_port = id,
            Purpose::EchoReply => self.target_port = id,
            _ => self.kind = Kind::Stateless,
        }
        self.passes = purpose == Purpose::TooBig;
        self.opens = purpose == Purpose::EchoRequest;
        self.answers = purpose == Purpose::EchoReply;
        self.forward_port = [0, request];
        self.reply_port = [0, request];
    }
}

/// Finds out what the packet is to its flow, and the flow's key, into `scratch`.
pub fn extract<F: Family, P: Packet, M: Maps>(
    packet: &P,
    maps: &M,
    header: &IpHeader<F>,
    scratch: &mut Scratch,
) -> Result<(), DropReason> {
    F::transport(packet, eth::LEN, &mut scratch.transport)?;
    let scratch = forget(scratch);
    let part = scratch.transport.part;
    scratch.l4 = L4::of(scratch.transport.protocol);
    scratch.key.zone = 0;
    if part != Part::Whole {
        scratch.fragment = fragment_key(header, &scratch.transport);
    }
    if part == Part::Later {
        recall::<F, M>(maps, scratch);
    } else {
        read::<F, P>(packet, &scratch.transport, &mut scratch.l4)?;
        // Nobody outside the link has a hop limit that high.
        if scratch.l4.purpose == Purpose::Neighbours && header.hop_limit() == icmp6::HOP_LIMIT {
            scratch.l4.passes = true;
        }
    }
    let scratch = forget(scratch);
    if scratch.transport.part == Part::First && scratch.l4.kind == Kind::Flow {
        maps.remember(&scratch.fragment, &scratch.l4.ports_of_datagram());
    }
    if matches!(scratch.l4.purpose, Purpose::Error | Purpose::TooBig) {
        return read_inner::<F, P>(packet, header, scratch);
    }
    scratch.lock_on::<F>(header.source, header.target);
    Ok(())
}

impl Scratch {
    /// Writes the flow's key.
    fn lock_on<F: Family>(&mut self, source: Addr, target: Addr) {
        let l4 = &mut self.l4;
        let ports = (l4.source_port, l4.target_port);
        l4.source_is_lower = self.key.set::<F>(l4.protocol, (source, ports.0), (target, ports.1));
    }
}

/// Reads the transport header.
fn read<F: Family, P: Packet>(
    packet: &P,
    transport: &Transport,
    l4: &mut L4,
) -> Result<(), DropReason> {
    let offset = transport.offset;
    let cut = DropReason::CtInvalidHdr;
    match transport.protocol {
        tcp::PROTOCOL => {
            let [p0, p1, p2, p3, s0, s1, s2, s3, a0, a1, a2, a3, _, flags] =
                packet.load(offset).ok_or(cut)?;
            l4.ports([p0, p1, p2, p3]);
            l4.sequence = u32::from_be_bytes([s0, s1, s2, s3]);
            l4.acknowledgement = u32::from_be_bytes([a0, a1, a2, a3]);
            l4.tcp_flags = flags;
            l4.opens = flags & (tcp::SYN | tcp::ACK | tcp::RST) == tcp::SYN;
        }
        udp::PROTOCOL | SCTP => {
            let [p0, p1, p2, p3, ..]: [u8; 8] = packet.load(offset).ok_or(cut)?;
            l4.ports([p0, p1, p2, p3]);
        }
        protocol if protocol == F::ICMP => {
            let [icmp_type, code, _, _, i0, i1, ..]: [u8; icmp::LEN] =
                packet.load(offset).ok_or(cut)?;
            let purpose = F::icmp_purpose(icmp_type, code);
            l4.icmp::<F>(icmp_type, purpose, u16::from_ne_bytes([i0, i1]));
        }
        // No ports: the addresses and the protocol are the flow.
        _ => {}
    }
    Ok(())
}

/// Reads the packet inside an ICMP error. Where it says nothing of use, the error stays decided by
/// itself.
fn read_inner<F: Family, P: Packet>(
    packet: &P,
    header: &IpHeader<F>,
    scratch: &mut Scratch,
) -> Result<(), DropReason> {
    let l3 = scratch.transport.offset + icmp::LEN;
    let cut = DropReason::CtInvalidHdr;
    let (source, target) = F::addresses(packet, l3).ok_or(cut)?;
    F::transport(packet, l3, &mut scratch.transport)?;
    let scratch = forget(scratch);
    let inner = scratch.transport;
    // It must be about a packet of who gets the error.
    if inner.part == Part::Later || source != header.target {
        return Ok(());
    }
    let [p0, p1, p2, p3, i0, i1, ..]: [u8; 8] = packet.load(inner.offset).ok_or(cut)?;
    let l4 = &mut scratch.l4;
    l4.protocol = inner.protocol;
    if inner.protocol == F::ICMP {
        let request = [0, echo_request::<F>()];
        (l4.forward_port, l4.reply_port) = (request, request);
        // Turned round: the error goes against the packet that it speaks of.
        let id = u16::from_ne_bytes([i0, i1]);
        match F::icmp_purpose(p0, p1) {
            Purpose::EchoRequest => l4.target_port = id,
            Purpose::EchoReply => l4.source_port = id,
            _ => return Ok(()),
        }
    } else if has_ports(inner.protocol) {
        let own_port = l4.own_port;
        l4.ports([p2, p3, p0, p1]);
        l4.own_port = own_port;
    }
    l4.kind = Kind::Related;
    l4.is_of_receiver = target == header.source;
    scratch.lock_on::<F>(target, source);
    Ok(())
}

const fn has_ports(protocol: u8) -> bool {
    matches!(protocol, tcp::PROTOCOL | udp::PROTOCOL | SCTP)
}

const fn echo_request<F: Family>() -> u8 {
    if F::ICMP == icmp::PROTOCOL { icmp::ECHO_REQUEST } else { icmp::V6_ECHO_REQUEST }
}

fn fragment_key<F: Family>(header: &IpHeader<F>, transport: &Transport) -> FragmentKey {
    FragmentKey {
        source: header.source.bytes(),
        target: header.target.bytes(),
        id: transport.id,
        protocol: transport.protocol,
        family: F::NUMBER,
        zone: 0,
    }
}

/// What the first fragment of the datagram said, for a later one.
fn recall<F: Family, M: Maps>(maps: &M, scratch: &mut Scratch) {
    let l4 = &mut scratch.l4;
    let Some(ports) = maps.fragment(&scratch.fragment) else {
        l4.kind = Kind::Stateless;
        l4.has_ports = false;
        return;
    };
    let [s0, s1] = ports.source_port;
    let [t0, t1] = ports.target_port;
    if l4.protocol == F::ICMP {
        let purpose = F::icmp_purpose(ports.icmp_type, 0);
        let id = u16::from_ne_bytes([s0 | t0, s1 | t1]);
        l4.icmp::<F>(ports.icmp_type, purpose, id);
    } else {
        l4.ports([s0, s1, t0, t1]);
    }
    l4.own_port = ports.policy_port;
}
