//! A captured packet: the headers that say who talks to whom, and a line that says it.
//!
//! A capture holds the first hundred-odd bytes of a packet, so any header may be cut off. The
//! decoder goes as far as the bytes go and reports what it has.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use serde::{Serialize, Serializer};

/// IPv6 extension headers at most; RFC 8200 section 4.1 knows no sensible chain that is longer.
const EXTENSION_HEADERS_MAX: usize = 8;
/// UDP port of VXLAN, as Cilium uses it.
const VXLAN_PORT: u16 = 8472;

/// A hardware address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Mac(pub [u8; 6]);

/// The headers of a packet, as far as they were captured.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Packet {
    /// Absent on devices without Ethernet.
    #[serde(rename = "l2", skip_serializing_if = "Option::is_none")]
    pub ethernet: Option<Ethernet>,
    /// Who talks to whom.
    #[serde(rename = "l3", skip_serializing_if = "Option::is_none")]
    pub network: Option<Network>,
    /// What they talk.
    #[serde(rename = "l4", skip_serializing_if = "Option::is_none")]
    pub transport: Option<Transport>,
    /// The packet inside a VXLAN packet.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tunnel: Option<Tunnel>,
}

/// An Ethernet header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Ethernet {
    /// Sender.
    #[serde(rename = "src")]
    pub source: Mac,
    /// Receiver.
    #[serde(rename = "dst")]
    pub destination: Mac,
    /// What follows.
    pub ethertype: u16,
}

/// A network header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Network {
    /// IPv4 or IPv6.
    Ip {
        /// Sender.
        #[serde(rename = "src")]
        source: IpAddr,
        /// Receiver.
        #[serde(rename = "dst")]
        destination: IpAddr,
        /// TTL or hop limit.
        #[serde(rename = "ttl")]
        hop_limit: u8,
        /// The packet is a fragment other than the first: it has no transport header.
        #[serde(rename = "fragment", skip_serializing_if = "std::ops::Not::not")]
        later_fragment: bool,
    },
    /// ARP for IPv4.
    Arp(Arp),
}

/// An ARP message for IPv4 over Ethernet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Arp {
    /// 1 asks, 2 answers.
    pub operation: u16,
    /// Hardware address of the sender.
    #[serde(rename = "sender-mac")]
    pub sender_mac: Mac,
    /// Address of the sender.
    #[serde(rename = "src")]
    pub sender: Ipv4Addr,
    /// Address that is asked for.
    #[serde(rename = "dst")]
    pub target: Ipv4Addr,
}

/// A transport header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "protocol", rename_all = "lowercase")]
pub enum Transport {
    /// TCP.
    Tcp {
        /// Port of the sender.
        #[serde(rename = "src")]
        source: u16,
        /// Port of the receiver.
        #[serde(rename = "dst")]
        destination: u16,
        /// SYN, ACK and so on.
        flags: TcpFlags,
    },
    /// UDP.
    Udp {
        /// Port of the sender.
        #[serde(rename = "src")]
        source: u16,
        /// Port of the receiver.
        #[serde(rename = "dst")]
        destination: u16,
    },
    /// SCTP.
    Sctp {
        /// Port of the sender.
        #[serde(rename = "src")]
        source: u16,
        /// Port of the receiver.
        #[serde(rename = "dst")]
        destination: u16,
    },
    /// ICMP for IPv4.
    Icmpv4 {
        /// Type.
        #[serde(rename = "type")]
        kind: u8,
        /// Code.
        code: u8,
    },
    /// ICMP for IPv6.
    Icmpv6 {
        /// Type.
        #[serde(rename = "type")]
        kind: u8,
        /// Code.
        code: u8,
    },
    /// Any other protocol, by its number.
    Other {
        /// IANA's number.
        number: u8,
    },
}

/// The flags of a TCP header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TcpFlags(pub u8);

/// What a VXLAN packet carries.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Tunnel {
    /// Network identifier: the source identity, on the wire.
    pub vni: u32,
    /// The packet inside.
    pub inner: Box<Packet>,
}

impl Packet {
    /// Decodes a packet that begins with an Ethernet header.
    pub fn from_ethernet(bytes: &[u8]) -> Self {
        Self::ethernet(&mut Bytes(bytes), Inner::Decode)
    }

    /// Decodes a packet that begins with an IPv4 or IPv6 header.
    pub fn from_ip(bytes: &[u8]) -> Self {
        let mut packet = Self::default();
        packet.decode_ip(&mut Bytes(bytes), Inner::Decode);
        packet
    }

    fn ethernet(bytes: &mut Bytes<'_>, inner: Inner) -> Self {
        let mut packet = Self::default();
        packet.decode_ethernet(bytes, inner);
        packet
    }

    fn decode_ethernet(&mut self, bytes: &mut Bytes<'_>, inner: Inner) -> Option<()> {
        let (destination, source) = (Mac(bytes.array()?), Mac(bytes.array()?));
        let ethertype = bytes.be16()?;
        self.ethernet = Some(Ethernet { source, destination, ethertype });
        match ethertype {
            ETHERTYPE_IPV4 | ETHERTYPE_IPV6 => self.decode_ip(bytes, inner),
            ETHERTYPE_ARP => {
                self.network = Some(Network::Arp(Arp::decode(bytes)?));
                Some(())
            }
            _ => None,
        }
    }

    /// The version nibble decides, as it does in the kernel for devices without Ethernet.
    fn decode_ip(&mut self, bytes: &mut Bytes<'_>, inner: Inner) -> Option<()> {
        let (network, protocol) = match bytes.0.first()? >> 4 {
            4 => ipv4(bytes)?,
            6 => ipv6(bytes)?,
            _ => return None,
        };
        self.network = Some(network);
        if matches!(network, Network::Ip { later_fragment: true, .. }) {
            self.transport = Some(Transport::Other { number: protocol });
            return None;
        }
        let transport = Transport::decode(protocol, bytes)?;
        self.transport = Some(transport);
        if inner == Inner::Decode
            && matches!(transport, Transport::Udp { destination: VXLAN_PORT, .. })
        {
            self.tunnel = vxlan(bytes);
        }
        Some(())
    }
}

/// Whether to look into a tunnel. A packet inside a tunnel is not looked into again, so a crafted
/// packet cannot make the decoder recurse.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Inner {
    Decode,
    Skip,
}

const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_ARP: u16 = 0x0806;
const ETHERTYPE_IPV6: u16 = 0x86dd;

const PROTOCOL_HOP_BY_HOP: u8 = 0;
const PROTOCOL_ICMPV4: u8 = 1;
const PROTOCOL_TCP: u8 = 6;
const PROTOCOL_UDP: u8 = 17;
const PROTOCOL_ROUTING: u8 = 43;
const PROTOCOL_FRAGMENT: u8 = 44;
const PROTOCOL_AUTHENTICATION: u8 = 51;
const PROTOCOL_ICMPV6: u8 = 58;
const PROTOCOL_DESTINATION_OPTIONS: u8 = 60;
const PROTOCOL_SCTP: u8 = 132;

fn ipv4(bytes: &mut Bytes<'_>) -> Option<(Network, u8)> {
    let header: [u8; 20] = bytes.array()?;
    let options_len = (usize::from(header[0] & 0xf) * 4).checked_sub(header.len())?;
    bytes.skip(options_len);
    let fragment_offset = u16::from_be_bytes([header[6], header[7]]) & 0x1fff;
    let network = Network::Ip {
        source: Ipv4Addr::new(header[12], header[13], header[14], header[15]).into(),
        destination: Ipv4Addr::new(header[16], header[17], header[18], header[19]).into(),
        hop_limit: header[8],
        later_fragment: fragment_offset != 0,
    };
    Some((network, header[9]))
}

fn ipv6(bytes: &mut Bytes<'_>) -> Option<(Network, u8)> {
    let header: [u8; 8] = bytes.array()?;
    let source: [u8; 16] = bytes.array()?;
    let destination: [u8; 16] = bytes.array()?;
    let (protocol, later_fragment) = extension_headers(header[6], bytes);
    let network = Network::Ip {
        source: Ipv6Addr::from(source).into(),
        destination: Ipv6Addr::from(destination).into(),
        hop_limit: header[7],
        later_fragment,
    };
    Some((network, protocol))
}

/// Walks to the transport header: its protocol, and whether the packet is a later fragment.
fn extension_headers(first: u8, bytes: &mut Bytes<'_>) -> (u8, bool) {
    let mut protocol = first;
    for _ in 0..EXTENSION_HEADERS_MAX {
        let unit = match protocol {
            PROTOCOL_HOP_BY_HOP | PROTOCOL_ROUTING | PROTOCOL_DESTINATION_OPTIONS => 8,
            PROTOCOL_AUTHENTICATION => 4,
            PROTOCOL_FRAGMENT => 0,
            _ => return (protocol, false),
        };
        // The smallest extension header has eight bytes; a cut one ends the walk.
        let Some(header) = bytes.array::<8>() else { return (protocol, false) };
        protocol = header[0];
        if unit == 0 && u16::from_be_bytes([header[2], header[3]]) & 0xfff8 != 0 {
            return (protocol, true);
        }
        bytes.skip(usize::from(header[1]) * unit);
    }
    (protocol, false)
}

fn vxlan(bytes: &mut Bytes<'_>) -> Option<Tunnel> {
    let header: [u8; 8] = bytes.array()?;
    let vni = u32::from_be_bytes([0, header[4], header[5], header[6]]);
    Some(Tunnel { vni, inner: Box::new(Packet::ethernet(bytes, Inner::Skip)) })
}

impl Arp {
    fn decode(bytes: &mut Bytes<'_>) -> Option<Self> {
        let header: [u8; 8] = bytes.array()?;
        // Ethernet and IPv4, or the fields below have other lengths.
        if header[..6] != [0, 1, 8, 0, 6, 4] {
            return None;
        }
        let operation = u16::from_be_bytes([header[6], header[7]]);
        let sender_mac = Mac(bytes.array()?);
        let sender = Ipv4Addr::from(bytes.array::<4>()?);
        bytes.skip(6);
        Some(Self { operation, sender_mac, sender, target: Ipv4Addr::from(bytes.array::<4>()?) })
    }
}

impl Transport {
    fn decode(protocol: u8, bytes: &mut Bytes<'_>) -> Option<Self> {
        Some(match protocol {
            PROTOCOL_TCP => {
                let (source, destination) = (bytes.be16()?, bytes.be16()?);
                let rest: [u8; 10] = bytes.array()?;
                Self::Tcp { source, destination, flags: TcpFlags(rest[9]) }
            }
            PROTOCOL_UDP => {
                let (source, destination) = (bytes.be16()?, bytes.be16()?);
                bytes.array::<4>()?;
                Self::Udp { source, destination }
            }
            PROTOCOL_SCTP => Self::Sctp { source: bytes.be16()?, destination: bytes.be16()? },
            PROTOCOL_ICMPV4 => {
                let [kind, code] = bytes.array()?;
                Self::Icmpv4 { kind, code }
            }
            PROTOCOL_ICMPV6 => {
                let [kind, code] = bytes.array()?;
                Self::Icmpv6 { kind, code }
            }
            number => Self::Other { number },
        })
    }

    /// Ports of sender and receiver, where the protocol has them.
    pub fn ports(&self) -> Option<(u16, u16)> {
        match *self {
            Self::Tcp { source, destination, .. }
            | Self::Udp { source, destination }
            | Self::Sctp { source, destination } => Some((source, destination)),
            Self::Icmpv4 { .. } | Self::Icmpv6 { .. } | Self::Other { .. } => None,
        }
    }
}

/// What is left of the captured bytes.
struct Bytes<'a>(&'a [u8]);

impl Bytes<'_> {
    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (array, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*array)
    }

    fn be16(&mut self) -> Option<u16> {
        self.array().map(u16::from_be_bytes)
    }

    /// Leaves nothing where fewer than `len` bytes were captured.
    fn skip(&mut self, len: usize) {
        self.0 = self.0.get(len..).unwrap_or_default();
    }
}

/// `10.0.0.1:1024 -> 10.0.0.2:80 tcp SYN`
impl fmt::Display for Packet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.network, self.transport) {
            (Some(Network::Arp(arp)), _) => write!(f, "{arp}"),
            (Some(Network::Ip { source, destination, later_fragment, .. }), transport) => {
                match transport.and_then(|transport| transport.ports()) {
                    Some((from, to)) => write!(
                        f,
                        "{} -> {}",
                        SocketAddr::new(source, from),
                        SocketAddr::new(destination, to)
                    )?,
                    None => write!(f, "{source} -> {destination}")?,
                }
                match transport {
                    Some(transport) => write!(f, " {transport}")?,
                    None => f.write_str(" (cut off)")?,
                }
                if later_fragment {
                    f.write_str(" fragment")?;
                }
                match &self.tunnel {
                    Some(tunnel) => write!(f, " vxlan vni {} [{}]", tunnel.vni, tunnel.inner),
                    None => Ok(()),
                }
            }
            (None, _) => match self.ethernet {
                Some(Ethernet { source, destination, ethertype }) => {
                    write!(f, "{source} -> {destination} ethertype {ethertype:#06x}")
                }
                None => f.write_str("(cut off)"),
            },
        }
    }
}

impl fmt::Display for Arp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { operation, sender_mac, sender, target } = self;
        match operation {
            1 => write!(f, "{sender} -> {target} arp who-has {target} tell {sender}"),
            2 => write!(f, "{sender} -> {target} arp {sender} is-at {sender_mac}"),
            other => write!(f, "{sender} -> {target} arp operation {other}"),
        }
    }
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Tcp { flags, .. } => write!(f, "tcp {flags}"),
            Self::Udp { .. } => f.write_str("udp"),
            Self::Sctp { .. } => f.write_str("sctp"),
            Self::Icmpv4 { kind, code } => match icmpv4_name(kind, code) {
                Some(name) => write!(f, "icmp {name}"),
                None => write!(f, "icmp type {kind} code {code}"),
            },
            Self::Icmpv6 { kind, code } => match icmpv6_name(kind, code) {
                Some(name) => write!(f, "icmpv6 {name}"),
                None => write!(f, "icmpv6 type {kind} code {code}"),
            },
            Self::Other { number } => match number {
                PROTOCOL_ICMPV4 => f.write_str("icmp"),
                PROTOCOL_TCP => f.write_str("tcp"),
                PROTOCOL_UDP => f.write_str("udp"),
                PROTOCOL_ICMPV6 => f.write_str("icmpv6"),
                PROTOCOL_SCTP => f.write_str("sctp"),
                2 => f.write_str("igmp"),
                _ => write!(f, "protocol {number}"),
            },
        }
    }
}

fn icmpv4_name(kind: u8, code: u8) -> Option<&'static str> {
    Some(match (kind, code) {
        (0, _) => "EchoReply",
        (3, 0) => "DestinationUnreachable(Net)",
        (3, 1) => "DestinationUnreachable(Host)",
        (3, 2) => "DestinationUnreachable(Protocol)",
        (3, 3) => "DestinationUnreachable(Port)",
        (3, 4) => "DestinationUnreachable(FragmentationNeeded)",
        (3, 13) => "DestinationUnreachable(CommAdminProhibited)",
        (3, _) => "DestinationUnreachable",
        (5, _) => "Redirect",
        (8, _) => "EchoRequest",
        (11, 0) => "TimeExceeded(TTLExceeded)",
        (11, _) => "TimeExceeded(FragmentReassemblyTimeExceeded)",
        (12, _) => "ParameterProblem",
        _ => return None,
    })
}

fn icmpv6_name(kind: u8, code: u8) -> Option<&'static str> {
    Some(match (kind, code) {
        (1, 0) => "DestinationUnreachable(NoRouteToDst)",
        (1, 1) => "DestinationUnreachable(AdminProhibited)",
        (1, 3) => "DestinationUnreachable(Address)",
        (1, 4) => "DestinationUnreachable(Port)",
        (1, _) => "DestinationUnreachable",
        (2, _) => "PacketTooBig",
        (3, 0) => "TimeExceeded(HopLimitExceeded)",
        (3, _) => "TimeExceeded(FragmentReassemblyTimeExceeded)",
        (4, _) => "ParameterProblem",
        (128, _) => "EchoRequest",
        (129, _) => "EchoReply",
        (130, _) => "MLDQuery",
        (131, _) => "MLDReport",
        (133, _) => "RouterSolicitation",
        (134, _) => "RouterAdvertisement",
        (135, _) => "NeighborSolicitation",
        (136, _) => "NeighborAdvertisement",
        (137, _) => "Redirect",
        (143, _) => "MLDv2Report",
        _ => return None,
    })
}

impl fmt::Display for TcpFlags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The order of Cilium's monitor.
        const NAMES: [(u8, &str); 8] = [
            (0x02, "SYN"),
            (0x10, "ACK"),
            (0x04, "RST"),
            (0x01, "FIN"),
            (0x08, "PSH"),
            (0x20, "URG"),
            (0x40, "ECE"),
            (0x80, "CWR"),
        ];
        let mut separator = "";
        for (bit, name) in NAMES {
            if self.0 & bit != 0 {
                write!(f, "{separator}{name}")?;
                separator = ", ";
            }
        }
        Ok(())
    }
}

impl Serialize for TcpFlags {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl Serialize for Mac {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use expect_test::{Expect, expect};

    const ETHERNET_V4: &str = "0a0000000002 0a0000000001 0800";
    const ETHERNET_V6: &str = "0a0000000002 0a0000000001 86dd";
    const ADDRESSES_V6: &str = "fd000000000000000000000000000001 fd000000000000000000000000000002";

    pub(crate) fn hex(text: &str) -> Vec<u8> {
        let digits: Vec<u8> = text
            .chars()
            .filter(|c| !c.is_whitespace())
            .map(|c| u8::try_from(c.to_digit(16).unwrap()).unwrap())
            .collect();
        digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect()
    }

    /// `header` is the IPv4 header from the TTL on, without checksum.
    fn v4(protocol: &str, rest: &str) -> String {
        format!("{ETHERNET_V4} 4500003c 0001 0000 40 {protocol} 0000 0a000001 0a000002 {rest}")
    }

    fn v6(next: &str, rest: &str) -> String {
        format!("{ETHERNET_V6} 60000000 0028 {next} 40 {ADDRESSES_V6} {rest}")
    }

    fn check(packet: &str, expected: Expect) {
        expected.assert_eq(&Packet::from_ethernet(&hex(packet)).to_string());
    }

    #[test]
    fn transports() {
        check(
            &v4("06", "8000 0050 00000000 00000000 5002 ffff 0000 0000"),
            expect!["10.0.0.1:32768 -> 10.0.0.2:80 tcp SYN"],
        );
        check(
            &v4("06", "0050 8000 00000000 00000000 5012 ffff 0000 0000"),
            expect!["10.0.0.1:80 -> 10.0.0.2:32768 tcp SYN, ACK"],
        );
        check(&v4("11", "8000 0035 0008 0000"), expect!["10.0.0.1:32768 -> 10.0.0.2:53 udp"]);
        check(&v4("01", "0800 0000 0001 0001"), expect!["10.0.0.1 -> 10.0.0.2 icmp EchoRequest"]);
        check(&v4("01", "2a07"), expect!["10.0.0.1 -> 10.0.0.2 icmp type 42 code 7"]);
        check(&v4("2f", ""), expect!["10.0.0.1 -> 10.0.0.2 protocol 47"]);
        check(&v6("3a", "8700 0000"), expect!["fd00::1 -> fd00::2 icmpv6 NeighborSolicitation"]);
        check(
            &v6("06", "8000 0050 00000000 00000000 5011 ffff 0000 0000"),
            expect!["[fd00::1]:32768 -> [fd00::2]:80 tcp ACK, FIN"],
        );
    }

    #[test]
    fn arp() {
        let tail = "0001 0800 06 04";
        let body = "0a0000000001 0a000001 000000000000 0a000002";
        check(
            &format!("ffffffffffff 0a0000000001 0806 {tail} 0001 {body}"),
            expect!["10.0.0.1 -> 10.0.0.2 arp who-has 10.0.0.2 tell 10.0.0.1"],
        );
        check(
            &format!("ffffffffffff 0a0000000001 0806 {tail} 0002 {body}"),
            expect!["10.0.0.1 -> 10.0.0.2 arp 10.0.0.1 is-at 0a:00:00:00:00:01"],
        );
    }

    #[test]
    fn extension_headers_and_fragments() {
        let udp = "8000 0035 0008 0000";
        check(
            &v6("00", &format!("3c00000000000000 1100000000000000 {udp}")),
            expect!["[fd00::1]:32768 -> [fd00::2]:53 udp"],
        );
        check(
            &v6("2c", &format!("1100 0001 00000001 {udp}")),
            expect!["[fd00::1]:32768 -> [fd00::2]:53 udp"],
        );
        check(
            &v6("2c", &format!("1100 0009 00000001 {udp}")),
            expect!["fd00::1 -> fd00::2 udp fragment"],
        );
        check(
            &format!("{ETHERNET_V4} 4500003c 0001 0001 40 11 0000 0a000001 0a000002 {udp}"),
            expect!["10.0.0.1 -> 10.0.0.2 udp fragment"],
        );
        // A chain longer than anybody sends is not walked to its end.
        check(&v6("3c", &"3c00000000000000 ".repeat(9)), expect!["fd00::1 -> fd00::2 protocol 60"]);
    }

    #[test]
    fn vxlan_is_looked_into_once() {
        let inner = v4("01", "0000 0000");
        let outer = v4("11", &format!("8000 2118 0000 0000 08000000 00abcd00 {inner}"));
        check(
            &outer,
            expect![
                "10.0.0.1:32768 -> 10.0.0.2:8472 udp vxlan vni 43981 [10.0.0.1 -> 10.0.0.2 icmp EchoReply]"
            ],
        );
        let outermost = v4("11", &format!("8000 2118 0000 0000 08000000 00000100 {outer}"));
        let packet = Packet::from_ethernet(&hex(&outermost));
        assert_eq!(packet.tunnel.unwrap().inner.tunnel, None);
    }

    #[test]
    fn what_is_cut_off_is_left_out() {
        check("0a00", expect!["(cut off)"]);
        check(
            &format!("{ETHERNET_V4} 4500"),
            expect!["0a:00:00:00:00:01 -> 0a:00:00:00:00:02 ethertype 0x0800"],
        );
        check(&v4("06", "8000 0050"), expect!["10.0.0.1 -> 10.0.0.2 (cut off)"]);
        check(
            "0a0000000002 0a0000000001 88cc 0102",
            expect!["0a:00:00:00:00:01 -> 0a:00:00:00:00:02 ethertype 0x88cc"],
        );
        let bytes = hex(&v4("01", "0800 0000"))[14..].to_vec();
        assert_eq!(Packet::from_ip(&bytes).to_string(), "10.0.0.1 -> 10.0.0.2 icmp EchoRequest");
    }
}
