//! An event of the datapath: its decoding, its line in the monitor and its JSON.
//!
//! The line and the names of the JSON fields are those of Cilium's monitor, because people have
//! scripts that read them.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use abi::event::{
    CaptureHeader, DebugMessage, DropNotify, EVENT_F_IPV6, EVENT_F_L3_DEVICE, EVENT_F_VXLAN,
    EventType, HookId, PolicyVerdictNotify, TraceNotify, TraceSockNotify, VERDICT_F_AUDITED,
    VERDICT_F_DIRECTION, VERDICT_F_L3_DEVICE, VERDICT_F_MATCH, VERDICT_MATCH_SHIFT,
};
use abi::{DropReason, drop_reason};
use serde::{Serialize, Serializer};
use zerocopy::FromBytes;

use crate::Packet;

/// An event of the datapath.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum Event {
    /// A packet was dropped.
    Drop(Drop),
    /// A packet was seen on its way.
    Trace(Trace),
    /// A policy was asked about a new flow.
    #[serde(rename = "policy-verdict")]
    Verdict(Verdict),
    /// A socket's address was translated.
    #[serde(rename = "trace-sock")]
    Sock(Sock),
    /// A message for whoever debugs the programs.
    Debug(Debug),
    /// A packet was captured for debugging.
    Capture(Capture),
}

/// The type of an event, as `monitor -t` names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// [`Event::Drop`].
    Drop,
    /// [`Event::Trace`].
    Trace,
    /// [`Event::Debug`].
    Debug,
    /// [`Event::Capture`].
    Capture,
    /// [`Event::Verdict`].
    Verdict,
    /// [`Event::Sock`].
    Sock,
}

/// A dropped packet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Drop {
    /// Number of the [`DropReason`].
    #[serde(rename = "reason", serialize_with = "reason")]
    pub reason: u8,
    /// Further detail of the reason.
    #[serde(rename = "extError", skip_serializing_if = "is_zero")]
    pub ext_error: i8,
    /// Flow hash.
    #[serde(rename = "mark", serialize_with = "hexadecimal")]
    pub hash: u32,
    /// Device the packet was on.
    pub ifindex: u32,
    /// Endpoint id that the event is about.
    pub source: u16,
    /// Length of the packet.
    pub bytes: u32,
    /// Source identity.
    #[serde(rename = "srcLabel")]
    pub source_identity: u32,
    /// Destination identity.
    #[serde(rename = "dstLabel")]
    pub destination_identity: u32,
    /// Destination endpoint id; 0 on the way out.
    #[serde(rename = "dstID")]
    pub destination: u32,
    /// Number of the program, see [`file_name`].
    #[serde(serialize_with = "file")]
    pub file: u8,
    /// Line in the program; 0 where it is not known.
    pub line: u16,
    /// Trace id in an option of the packet; 0 is none.
    #[serde(rename = "IPTraceID", skip_serializing_if = "is_none")]
    pub ip_trace_id: u64,
    /// Whether the packet is the tunnel's, with another one inside.
    #[serde(skip)]
    pub overlay: bool,
    /// The packet.
    #[serde(rename = "summary")]
    pub packet: Packet,
}

/// A packet on its way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Trace {
    /// Number of the observation point, see [`observation_point_name`].
    #[serde(rename = "observationPoint", serialize_with = "observation_point")]
    pub observation_point: u8,
    /// `TRACE_REASON_*`, without the bit that says encrypted.
    #[serde(rename = "state", serialize_with = "state")]
    pub reason: u8,
    /// Flow hash.
    #[serde(rename = "mark", serialize_with = "hexadecimal")]
    pub hash: u32,
    /// Device the packet leaves by.
    pub ifindex: u32,
    /// Endpoint id that the event is about.
    pub source: u16,
    /// Length of the packet.
    pub bytes: u32,
    /// Source identity.
    #[serde(rename = "srcLabel")]
    pub source_identity: u32,
    /// Destination identity.
    #[serde(rename = "dstLabel")]
    pub destination_identity: u32,
    /// Destination endpoint id, or the port of the proxy.
    #[serde(rename = "dstID")]
    pub destination: u16,
    /// Source address before translation.
    #[serde(rename = "origIP")]
    pub original_source: IpAddr,
    /// Whether the packet was encrypted, or will be.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub encrypted: bool,
    /// Trace id in an option of the packet; 0 is none.
    #[serde(rename = "IPTraceID", skip_serializing_if = "is_none")]
    pub ip_trace_id: u64,
    /// Whether the packet is the tunnel's, with another one inside.
    #[serde(skip)]
    pub overlay: bool,
    /// The packet.
    #[serde(rename = "summary")]
    pub packet: Packet,
}

/// What a policy said of the first packet of a flow.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Verdict {
    /// Flow hash.
    #[serde(rename = "mark", serialize_with = "hexadecimal")]
    pub hash: u32,
    /// Endpoint whose policy was asked.
    pub source: u16,
    /// Length of the packet.
    pub bytes: u32,
    /// Identity of the other end.
    #[serde(rename = "remoteLabel")]
    pub remote_identity: u32,
    /// Negative: minus the [`DropReason`]; 0: allowed; positive: port of the proxy.
    pub verdict: i32,
    /// Whether the packet is on its way into the endpoint.
    pub ingress: bool,
    /// Denied, but only audited.
    pub audited: bool,
    /// [`abi::event::PolicyMatch`].
    #[serde(rename = "match")]
    pub match_type: u8,
    /// Kind of authentication; 0 is none.
    #[serde(rename = "authType")]
    pub auth_type: u8,
    /// Protocol of the transport.
    pub proto: u8,
    /// Destination port.
    #[serde(rename = "dstPort")]
    pub destination_port: u16,
    /// Which entry of the policy decided; 0 is not known.
    pub cookie: u32,
    /// The packet.
    #[serde(rename = "summary")]
    pub packet: Packet,
}

/// A socket's address, before or after it was translated.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Sock {
    /// 1 and 2: before and after translation to a backend; 3 and 4: the same on the way back.
    #[serde(rename = "xlatePoint")]
    pub point: u8,
    /// 1 is TCP, 2 UDP.
    #[serde(rename = "l4Proto")]
    pub protocol: u8,
    /// Destination address.
    #[serde(rename = "dstIP")]
    pub destination: IpAddr,
    /// Destination port.
    #[serde(rename = "dstPort")]
    pub destination_port: u16,
    /// Cookie of the socket.
    #[serde(rename = "sockCookie")]
    pub cookie: u64,
    /// Control group of the process.
    #[serde(rename = "cgroupId")]
    pub cgroup_id: u64,
}

/// A debug message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Debug {
    /// Number of the message, one of Hubble's `DebugEventType`.
    pub message: u8,
    /// Flow hash.
    #[serde(rename = "mark", serialize_with = "hexadecimal")]
    pub hash: u32,
    /// Endpoint id that the message is about.
    pub source: u16,
    /// The three arguments.
    pub arguments: [u32; 3],
}

/// A captured packet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Capture {
    /// Number of the capture point.
    pub point: u8,
    /// Flow hash.
    #[serde(rename = "mark", serialize_with = "hexadecimal")]
    pub hash: u32,
    /// Endpoint id that the event is about.
    pub source: u16,
    /// Length of the packet.
    pub bytes: u32,
    /// The two arguments.
    pub arguments: [u32; 2],
    /// The packet.
    #[serde(rename = "summary")]
    pub packet: Packet,
}

/// The bytes are not an event that we know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DecodeError {
    /// The event ends before its fixed part does.
    Truncated {
        /// Type in the first byte; 0 where even that is missing.
        event_type: u8,
        /// Bytes there are.
        len: usize,
        /// Bytes the fixed part has.
        needed: usize,
    },
    /// The first byte is no type of ours: the datapath is of another version.
    UnknownType(u8),
}

impl Event {
    /// Decodes an event and the packet bytes behind it.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let event_type =
            *bytes.first().ok_or(DecodeError::Truncated { event_type: 0, len: 0, needed: 1 })?;
        const DROP: u8 = EventType::Drop as u8;
        const TRACE: u8 = EventType::Trace as u8;
        const DEBUG: u8 = EventType::Debug as u8;
        const CAPTURE: u8 = EventType::DebugCapture as u8;
        const VERDICT: u8 = EventType::PolicyVerdict as u8;
        const SOCK: u8 = EventType::TraceSock as u8;
        match event_type {
            DROP => Drop::decode(bytes).map(Self::Drop),
            TRACE => Trace::decode(bytes).map(Self::Trace),
            DEBUG => Debug::decode(bytes).map(Self::Debug),
            CAPTURE => Capture::decode(bytes).map(Self::Capture),
            VERDICT => Verdict::decode(bytes).map(Self::Verdict),
            SOCK => Sock::decode(bytes).map(Self::Sock),
            other => Err(DecodeError::UnknownType(other)),
        }
    }

    /// The type of the event.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Drop(_) => Kind::Drop,
            Self::Trace(_) => Kind::Trace,
            Self::Debug(_) => Kind::Debug,
            Self::Capture(_) => Kind::Capture,
            Self::Verdict(_) => Kind::Verdict,
            Self::Sock(_) => Kind::Sock,
        }
    }

    /// The endpoint that the event is about; 0 is none.
    pub fn source(&self) -> u16 {
        match self {
            Self::Drop(drop) => drop.source,
            Self::Trace(trace) => trace.source,
            Self::Debug(debug) => debug.source,
            Self::Capture(capture) => capture.source,
            Self::Verdict(verdict) => verdict.source,
            Self::Sock(_) => 0,
        }
    }

    /// The endpoint that the packet goes to; 0 is none, or not on this node.
    pub fn destination(&self) -> u16 {
        match self {
            Self::Drop(drop) => u16::try_from(drop.destination).unwrap_or(0),
            // For other observation points the field is the proxy's port.
            Self::Trace(trace) if trace.observation_point == 0 => trace.destination,
            Self::Verdict(verdict) if verdict.ingress => verdict.source,
            Self::Trace(_)
            | Self::Verdict(_)
            | Self::Sock(_)
            | Self::Debug(_)
            | Self::Capture(_) => 0,
        }
    }

    /// The packet, where the event has one.
    pub fn packet(&self) -> Option<&Packet> {
        match self {
            Self::Drop(drop) => Some(&drop.packet),
            Self::Trace(trace) => Some(&trace.packet),
            Self::Verdict(verdict) => Some(&verdict.packet),
            Self::Capture(capture) => Some(&capture.packet),
            Self::Sock(_) | Self::Debug(_) => None,
        }
    }
}

impl Drop {
    fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let (event, rest) = prefix::<DropNotify>(bytes)?;
        Ok(Self {
            reason: event.header.subtype,
            ext_error: event.ext_error,
            hash: event.header.hash,
            ifindex: event.ifindex,
            source: event.header.source,
            bytes: event.header.len_orig,
            source_identity: event.src_label,
            destination_identity: event.dst_label,
            destination: event.dst_id,
            file: event.file,
            line: event.line,
            ip_trace_id: event.ip_trace_id,
            overlay: event.flags & EVENT_F_VXLAN != 0,
            packet: captured(&event.header, event.flags, rest),
        })
    }
}

impl Trace {
    fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let (event, rest) = prefix::<TraceNotify>(bytes)?;
        Ok(Self {
            observation_point: event.header.subtype,
            reason: event.reason & !TRACE_REASON_ENCRYPTED,
            hash: event.header.hash,
            ifindex: event.ifindex,
            source: event.header.source,
            bytes: event.header.len_orig,
            source_identity: event.src_label,
            destination_identity: event.dst_label,
            destination: event.dst_id,
            original_source: address(event.orig_ip, event.flags & EVENT_F_IPV6 != 0),
            encrypted: event.reason & TRACE_REASON_ENCRYPTED != 0,
            ip_trace_id: event.ip_trace_id,
            overlay: event.flags & EVENT_F_VXLAN != 0,
            packet: captured(&event.header, event.flags, rest),
        })
    }
}

impl Verdict {
    fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let (event, rest) = prefix::<PolicyVerdictNotify>(bytes)?;
        let is_l3 = event.flags & VERDICT_F_L3_DEVICE != 0;
        Ok(Self {
            hash: event.header.hash,
            source: event.header.source,
            bytes: event.header.len_orig,
            remote_identity: event.remote_label,
            verdict: event.verdict,
            ingress: event.flags & VERDICT_F_DIRECTION == 1,
            audited: event.flags & VERDICT_F_AUDITED != 0,
            match_type: (event.flags & VERDICT_F_MATCH) >> VERDICT_MATCH_SHIFT,
            auth_type: event.auth_type,
            proto: event.proto,
            destination_port: event.dst_port,
            cookie: event.cookie,
            packet: captured(&event.header, if is_l3 { EVENT_F_L3_DEVICE } else { 0 }, rest),
        })
    }

    /// Why the packet was denied; none where it was not.
    pub fn drop_reason(&self) -> Option<u8> {
        (self.verdict < 0).then(|| u8::try_from(self.verdict.unsigned_abs()).unwrap_or(0))
    }

    /// What was done, in a word.
    pub fn action(&self) -> &'static str {
        match self.verdict {
            ..0 => "deny",
            0 if self.audited => "audit",
            0 => "allow",
            1.. => "redirect",
        }
    }
}

impl Sock {
    fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let (event, _) = prefix::<TraceSockNotify>(bytes)?;
        Ok(Self {
            point: event.xlate_point,
            protocol: event.l4_proto,
            destination: address(event.dst_ip, event.flags & 1 != 0),
            destination_port: event.dst_port,
            cookie: event.sock_cookie,
            cgroup_id: event.cgroup_id,
        })
    }
}

impl Debug {
    fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let (event, _) = prefix::<DebugMessage>(bytes)?;
        Ok(Self {
            message: event.subtype,
            hash: event.hash,
            source: event.source,
            arguments: [event.arg1, event.arg2, event.arg3],
        })
    }
}

impl Capture {
    fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let (header, rest) = prefix::<CaptureHeader>(bytes)?;
        let ([arg1, arg2], rest) = <[u32; 2]>::read_from_prefix(rest).ok().ok_or_else(|| {
            let needed = size_of::<CaptureHeader>() + size_of::<[u32; 2]>();
            DecodeError::Truncated { event_type: header.event_type, len: bytes.len(), needed }
        })?;
        Ok(Self {
            point: header.subtype,
            hash: header.hash,
            source: header.source,
            bytes: header.len_orig,
            arguments: [arg1, arg2],
            packet: captured(&header, 0, rest),
        })
    }
}

/// Bit of [`TraceNotify::reason`]: the packet was encrypted.
const TRACE_REASON_ENCRYPTED: u8 = 0x80;

fn prefix<T: FromBytes>(bytes: &[u8]) -> Result<(T, &[u8]), DecodeError> {
    T::read_from_prefix(bytes).ok().ok_or_else(|| DecodeError::Truncated {
        event_type: bytes.first().copied().unwrap_or(0),
        len: bytes.len(),
        needed: size_of::<T>(),
    })
}

/// The ring rounds records up, so the header says how many bytes are the packet's.
fn captured(header: &CaptureHeader, flags: u8, rest: &[u8]) -> Packet {
    let packet = rest.get(..usize::from(header.len_cap)).unwrap_or(rest);
    if flags & EVENT_F_L3_DEVICE != 0 {
        Packet::from_ip(packet)
    } else {
        Packet::from_ethernet(packet)
    }
}

fn address(bytes: [u8; 16], is_ipv6: bool) -> IpAddr {
    if is_ipv6 {
        return Ipv6Addr::from(bytes).into();
    }
    let [a, b, c, d, ..] = bytes;
    Ipv4Addr::new(a, b, c, d).into()
}

impl Kind {
    /// Every type, in the order of their numbers.
    pub const ALL: [Self; 6] =
        [Self::Drop, Self::Debug, Self::Capture, Self::Trace, Self::Verdict, Self::Sock];

    /// The name that `monitor -t` takes.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Drop => "drop",
            Self::Debug => "debug",
            Self::Capture => "capture",
            Self::Trace => "trace",
            Self::Verdict => "policy-verdict",
            Self::Sock => "trace-sock",
        }
    }
}

/// The name of an observation point.
pub const fn observation_point_name(number: u8) -> &'static str {
    match number {
        0 => "to-endpoint",
        1 => "to-proxy",
        2 => "to-host",
        3 => "to-stack",
        4 => "to-overlay",
        5 => "from-endpoint",
        6 => "from-proxy",
        7 => "from-host",
        8 => "from-stack",
        9 => "from-overlay",
        10 => "from-network",
        11 => "to-network",
        12 => "from-crypto",
        13 => "to-crypto",
        _ => "unknown",
    }
}

/// The program behind the file number of a drop.
pub fn file_name(number: u8) -> &'static str {
    use abi::names;
    const HOOKS: [(HookId, &str); 7] = [
        (HookId::FromContainer, names::FROM_CONTAINER),
        (HookId::ToContainer, names::TO_CONTAINER),
        (HookId::FromNetdev, names::FROM_NETDEV),
        (HookId::ToNetdev, names::TO_NETDEV),
        (HookId::FromOverlay, names::FROM_OVERLAY),
        (HookId::ToOverlay, names::TO_OVERLAY),
        (HookId::FromHost, names::FROM_HOST),
    ];
    HOOKS.iter().find(|(hook, _)| *hook as u8 == number).map_or("unknown", |(_, name)| name)
}

/// The name of a reserved identity, or the number.
pub fn identity_name(identity: u32) -> String {
    abi::identity::reserved_name(identity).map_or_else(|| identity.to_string(), ToOwned::to_owned)
}

/// The text of a reason, of drops and of counted forwarding events.
pub fn reason_text(reason: u8) -> String {
    match DropReason::from_number(reason) {
        Some(known) => known.text().to_owned(),
        None => drop_reason::forward_text(reason)
            .map_or_else(|| format!("reason {reason}"), ToOwned::to_owned),
    }
}

/// How a policy matched.
pub const fn match_name(match_type: u8) -> &'static str {
    match match_type {
        0 => "none",
        1 => "L3-Only",
        2 => "L3-L4",
        3 => "L4-Only",
        4 => "all",
        5 => "L3-Proto",
        6 => "Proto-Only",
        _ => "unknown",
    }
}

/// Where a socket's address was seen.
pub const fn xlate_point_name(point: u8) -> &'static str {
    match point {
        1 => "pre-xlate-fwd",
        2 => "post-xlate-fwd",
        3 => "pre-xlate-rev",
        4 => "post-xlate-rev",
        _ => "unknown",
    }
}

const fn auth_name(auth_type: u8) -> &'static str {
    match auth_type {
        0 => "disabled",
        1 => "spire",
        2 => "test-always-fail",
        _ => "unknown",
    }
}

const fn state_name(reason: u8) -> &'static str {
    match reason {
        0 => "new",
        1 => "established",
        2 => "reply",
        3 => "related",
        6 => "srv6-encap",
        7 => "srv6-decap",
        _ => "unknown",
    }
}

/// An event's line in the monitor.
#[derive(Clone, Copy, Debug)]
pub struct Line<'a> {
    /// The event.
    pub event: &'a Event,
    /// Numbers instead of the names of reserved identities.
    pub numeric: bool,
}

impl Line<'_> {
    fn identity(&self, identity: u32) -> String {
        if self.numeric { identity.to_string() } else { identity_name(identity) }
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Line { event: self, numeric: false }.fmt(f)
    }
}

impl fmt::Display for Line<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.event {
            Event::Drop(drop) => self.drop(drop, f),
            Event::Trace(trace) => self.trace(trace, f),
            Event::Verdict(verdict) => self.verdict(verdict, f),
            Event::Sock(sock) => write!(
                f,
                "[{}] cgroup_id: {} sock_cookie: {}, dst {} {}",
                xlate_point_name(sock.point),
                sock.cgroup_id,
                sock.cookie,
                std::net::SocketAddr::new(sock.destination, sock.destination_port),
                match sock.protocol {
                    1 => "tcp",
                    2 => "udp",
                    _ => "unknown",
                }
            ),
            Event::Debug(Debug { message, hash, source, arguments: [a, b, c] }) => write!(
                f,
                "MARK {hash:#x} FROM {source} DEBUG: message {message} {a:#x} {b:#x} {c:#x}"
            ),
            Event::Capture(capture) => write!(
                f,
                "MARK {:#x} FROM {} CAPTURE: point {} {:#x} {:#x}: {}",
                capture.hash,
                capture.source,
                capture.point,
                capture.arguments[0],
                capture.arguments[1],
                capture.packet
            ),
        }
    }
}

impl Line<'_> {
    fn drop(&self, drop: &Drop, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "xx drop ({}", reason_text(drop.reason))?;
        if drop.ext_error != 0 {
            write!(f, ", {}", drop.ext_error)?;
        }
        write!(
            f,
            ") flow {:#x} to endpoint {}, ifindex {}, file {}:{}, identity {}->{}: {}",
            drop.hash,
            drop.destination,
            drop.ifindex,
            file_name(drop.file),
            drop.line,
            self.identity(drop.source_identity),
            self.identity(drop.destination_identity),
            drop.packet
        )
    }

    fn verdict(&self, verdict: &Verdict, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Policy verdict log: flow {:#x} local EP ID {}, remote ID {}, proto {}, {}, action {}, \
             auth: {}, match {}, {}",
            verdict.hash,
            verdict.source,
            self.identity(verdict.remote_identity),
            verdict.proto,
            if verdict.ingress { "ingress" } else { "egress" },
            verdict.action(),
            auth_name(verdict.auth_type),
            match_name(verdict.match_type),
            verdict.packet
        )
    }

    fn trace(&self, trace: &Trace, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match observation_point_name(trace.observation_point) {
            "to-endpoint" => write!(f, "-> endpoint {}", trace.destination)?,
            "to-proxy" => write!(f, "-> proxy port {}", trace.destination)?,
            "from-endpoint" => write!(f, "<- endpoint {}", trace.source)?,
            name => match name.split_once('-') {
                Some(("to", place)) => write!(f, "-> {place}")?,
                Some((_, place)) => write!(f, "<- {place}")?,
                None => write!(f, "?? observation point {}", trace.observation_point)?,
            },
        }
        write!(
            f,
            " flow {:#x} , identity {}->{} state {} ifindex {} orig-ip {}: {}",
            trace.hash,
            self.identity(trace.source_identity),
            self.identity(trace.destination_identity),
            state_name(trace.reason),
            trace.ifindex,
            trace.original_source,
            trace.packet
        )
    }
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Truncated { event_type, len, needed } => {
                write!(f, "event of type {event_type} has {len} bytes of at least {needed}")
            }
            Self::UnknownType(event_type) => write!(
                f,
                "event of unknown type {event_type}: is the datapath of another version than this program?"
            ),
        }
    }
}

impl std::error::Error for DecodeError {}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
fn is_zero(number: &i8) -> bool {
    *number == 0
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
fn is_none(number: &u64) -> bool {
    *number == 0
}

fn hexadecimal<S: Serializer>(number: &u32, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&format_args!("{number:#x}"))
}

fn reason<S: Serializer>(reason: &u8, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&reason_text(*reason))
}

fn file<S: Serializer>(number: &u8, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(file_name(*number))
}

fn observation_point<S: Serializer>(number: &u8, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(observation_point_name(*number))
}

fn state<S: Serializer>(reason: &u8, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(state_name(*reason))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::tests::hex;
    use abi::event::ObservationPoint;
    use expect_test::expect;
    use zerocopy::IntoBytes;

    const SYN: &str = "0a0000000002 0a0000000001 0800 4500003c 0001 0000 40 06 0000 0a000001 0a000002 \
                       8000 0050 00000000 00000000 5002 ffff 0000 0000";

    fn header(event_type: EventType, subtype: u8, packet: &[u8]) -> CaptureHeader {
        CaptureHeader {
            event_type: event_type as u8,
            subtype,
            source: 7,
            hash: 0xabc,
            len_orig: 74,
            len_cap: u16::try_from(packet.len()).unwrap(),
            version: 2,
            ext_version: 0,
        }
    }

    fn drop_event(packet: &[u8]) -> Vec<u8> {
        let event = DropNotify {
            header: header(EventType::Drop, DropReason::InvalidSip as u8, packet),
            src_label: 1234,
            dst_label: abi::identity::WORLD,
            file: HookId::FromContainer as u8,
            ifindex: 9,
            ..DropNotify::default()
        };
        [event.as_bytes(), packet].concat()
    }

    fn trace_event(point: ObservationPoint, packet: &[u8]) -> Vec<u8> {
        let event = TraceNotify {
            header: header(EventType::Trace, point as u8, packet),
            src_label: 1234,
            dst_label: 4321,
            dst_id: 12,
            reason: abi::event::TRACE_REASON_UNKNOWN,
            ifindex: 9,
            ..TraceNotify::default()
        };
        [event.as_bytes(), packet].concat()
    }

    fn verdict_event(verdict: i32, flags: u8, packet: &[u8]) -> Vec<u8> {
        let event = PolicyVerdictNotify {
            header: header(EventType::PolicyVerdict, 0, packet),
            remote_label: 4321,
            verdict,
            dst_port: 80,
            proto: 6,
            flags,
            ..PolicyVerdictNotify::default()
        };
        [event.as_bytes(), packet].concat()
    }

    fn sock_event() -> Vec<u8> {
        let mut event = TraceSockNotify {
            event_type: EventType::TraceSock as u8,
            xlate_point: 2,
            l4_proto: 1,
            dst_port: 8080,
            sock_cookie: 5,
            cgroup_id: 77,
            ..TraceSockNotify::default()
        };
        event.dst_ip[..4].copy_from_slice(&[10, 0, 0, 2]);
        event.as_bytes().to_vec()
    }

    #[test]
    fn lines_of_the_monitor() {
        let packet = hex(SYN);
        let mut lines: Vec<String> = [
            trace_event(ObservationPoint::ToEndpoint, &packet),
            trace_event(ObservationPoint::FromEndpoint, &packet),
            trace_event(ObservationPoint::ToOverlay, &packet),
            trace_event(ObservationPoint::FromNetwork, &packet[..20]),
            drop_event(&packet),
            verdict_event(0, 1 | 2 << VERDICT_MATCH_SHIFT, &packet),
            verdict_event(-133, 2, &packet),
            verdict_event(0, 1 | VERDICT_F_AUDITED, &packet),
            verdict_event(10001, 2 | 4 << VERDICT_MATCH_SHIFT, &packet),
            sock_event(),
        ]
        .iter()
        .map(|bytes| Event::decode(bytes).unwrap().to_string())
        .collect();
        let drop = Event::decode(&drop_event(&packet)).unwrap();
        lines.push(Line { event: &drop, numeric: true }.to_string());
        expect![[r#"
            -> endpoint 12 flow 0xabc , identity 1234->4321 state unknown ifindex 9 orig-ip 0.0.0.0: 10.0.0.1:32768 -> 10.0.0.2:80 tcp SYN
            <- endpoint 7 flow 0xabc , identity 1234->4321 state unknown ifindex 9 orig-ip 0.0.0.0: 10.0.0.1:32768 -> 10.0.0.2:80 tcp SYN
            -> overlay flow 0xabc , identity 1234->4321 state unknown ifindex 9 orig-ip 0.0.0.0: 10.0.0.1:32768 -> 10.0.0.2:80 tcp SYN
            <- network flow 0xabc , identity 1234->4321 state unknown ifindex 9 orig-ip 0.0.0.0: 0a:00:00:00:00:01 -> 0a:00:00:00:00:02 ethertype 0x0800
            xx drop (Invalid source ip) flow 0xabc to endpoint 0, ifindex 9, file cil_from_container:0, identity 1234->world: 10.0.0.1:32768 -> 10.0.0.2:80 tcp SYN
            Policy verdict log: flow 0xabc local EP ID 7, remote ID 4321, proto 6, ingress, action allow, auth: disabled, match L3-L4, 10.0.0.1:32768 -> 10.0.0.2:80 tcp SYN
            Policy verdict log: flow 0xabc local EP ID 7, remote ID 4321, proto 6, egress, action deny, auth: disabled, match none, 10.0.0.1:32768 -> 10.0.0.2:80 tcp SYN
            Policy verdict log: flow 0xabc local EP ID 7, remote ID 4321, proto 6, ingress, action audit, auth: disabled, match none, 10.0.0.1:32768 -> 10.0.0.2:80 tcp SYN
            Policy verdict log: flow 0xabc local EP ID 7, remote ID 4321, proto 6, egress, action redirect, auth: disabled, match all, 10.0.0.1:32768 -> 10.0.0.2:80 tcp SYN
            [post-xlate-fwd] cgroup_id: 77 sock_cookie: 5, dst 10.0.0.2:8080 tcp
            xx drop (Invalid source ip) flow 0xabc to endpoint 0, ifindex 9, file cil_from_container:0, identity 1234->2: 10.0.0.1:32768 -> 10.0.0.2:80 tcp SYN"#]]
        .assert_eq(&lines.join("\n"));
    }

    #[test]
    fn json_of_the_monitor() {
        let event = Event::decode(&drop_event(&hex(SYN))).unwrap();
        expect![[r#"
            {
              "type": "drop",
              "reason": "Invalid source ip",
              "mark": "0xabc",
              "ifindex": 9,
              "source": 7,
              "bytes": 74,
              "srcLabel": 1234,
              "dstLabel": 2,
              "dstID": 0,
              "file": "cil_from_container",
              "line": 0,
              "summary": {
                "l2": {
                  "src": "0a:00:00:00:00:01",
                  "dst": "0a:00:00:00:00:02",
                  "ethertype": 2048
                },
                "l3": {
                  "src": "10.0.0.1",
                  "dst": "10.0.0.2",
                  "ttl": 64
                },
                "l4": {
                  "protocol": "tcp",
                  "src": 32768,
                  "dst": 80,
                  "flags": "SYN"
                }
              }
            }"#]]
        .assert_eq(&serde_json::to_string_pretty(&event).unwrap());
    }

    #[test]
    fn what_is_no_event_is_refused() {
        assert_eq!(
            Event::decode(&[]),
            Err(DecodeError::Truncated { event_type: 0, len: 0, needed: 1 })
        );
        assert_eq!(Event::decode(&[99, 0]), Err(DecodeError::UnknownType(99)));
        assert_eq!(
            Event::decode(&[4, 0, 0]),
            Err(DecodeError::Truncated { event_type: 4, len: 3, needed: 56 })
        );
    }

    /// Anything may come out of a ring of another version: no input panics, and what decodes also
    /// prints.
    #[test]
    fn no_bytes_panic() {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut random = move || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        };
        let packet = hex(SYN);
        let seeds = [
            drop_event(&packet),
            trace_event(ObservationPoint::ToEndpoint, &packet),
            [header(EventType::DebugCapture, 4, &packet).as_bytes(), &[0; 8], &packet].concat(),
            verdict_event(-133, 1, &packet),
            sock_event(),
        ];
        for round in 0..100_000_usize {
            let mut bytes = seeds[round % seeds.len()].clone();
            for _ in 0..random() % 8 {
                let place = usize::try_from(random()).unwrap() % bytes.len();
                bytes[place] = random().to_le_bytes()[0];
            }
            bytes.truncate(usize::try_from(random()).unwrap() % (bytes.len() + 1));
            if let Ok(event) = Event::decode(&bytes) {
                let _ = (event.to_string(), serde_json::to_string(&event).unwrap());
            }
        }
    }
}
