//! Protocols and ports: what a rule asks for, and the prefixes that a policy map holds.
//!
//! A policy map looks up 24 bits, the protocol and then the port, by longest prefix. A rule's ports
//! become such prefixes: everything is the empty one, a protocol has 8 bits, a port 24, and a range
//! is the few blocks that cover it exactly.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// An IP protocol's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Protocol(pub u8);

impl Protocol {
    /// ICMP for IPv4; the port is the type of the message.
    pub const ICMP: Self = Self(1);
    /// TCP.
    pub const TCP: Self = Self(6);
    /// UDP.
    pub const UDP: Self = Self(17);
    /// ICMP for IPv6; the port is the type of the message.
    pub const ICMPV6: Self = Self(58);
    /// SCTP.
    pub const SCTP: Self = Self(132);
    /// The protocols that `ANY` stands for where a port is named.
    pub const WITH_PORTS: [Self; 3] = [Self::TCP, Self::UDP, Self::SCTP];

    const NAMES: [(u8, &'static str); 12] = [
        (1, "ICMP"),
        (2, "IGMP"),
        (4, "IPIP"),
        (6, "TCP"),
        (17, "UDP"),
        (41, "IPV6"),
        (47, "GRE"),
        (50, "ESP"),
        (51, "AH"),
        (58, "ICMPV6"),
        (112, "VRRP"),
        (132, "SCTP"),
    ];

    /// The protocol of this name, in capitals.
    pub fn named(name: &str) -> Option<Self> {
        Self::NAMES.iter().find(|(_, known)| *known == name).map(|(number, _)| Self(*number))
    }

    /// Its name, if it has one here.
    pub fn name(self) -> Option<&'static str> {
        Self::NAMES.iter().find(|(number, _)| *number == self.0).map(|(_, name)| *name)
    }

    /// Whether packets of it carry ports.
    pub fn has_ports(self) -> bool {
        Self::WITH_PORTS.contains(&self)
    }

    fn is_icmp(self) -> bool {
        matches!(self, Self::ICMP | Self::ICMPV6)
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "protocol {}", self.0),
        }
    }
}

/// What a rule says of protocol and port.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum PortMatch {
    /// Everything.
    All,
    /// All of a protocol.
    Protocol(Protocol),
    /// Ports of a protocol, both ends included; types of messages for ICMP.
    Range {
        /// The protocol.
        protocol: Protocol,
        /// First port.
        first: u16,
        /// Last port.
        last: u16,
    },
    /// A port that the target's pod gives a name.
    Named {
        /// The protocol; `None` is any that has ports.
        protocol: Option<Protocol>,
        /// The name, in small letters.
        name: Arc<str>,
    },
}

impl PortMatch {
    /// The prefixes that cover exactly what is meant; none for a named port, which means nothing
    /// before it is resolved.
    pub fn prefixes(&self) -> Vec<PortPrefix> {
        match *self {
            Self::All => vec![PortPrefix::ALL],
            Self::Protocol(protocol) => vec![PortPrefix::protocol(protocol)],
            Self::Range { protocol, first, last } => PortPrefix::range(protocol, first, last),
            Self::Named { .. } => Vec::new(),
        }
    }
}

impl fmt::Display for PortMatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.write_str("all ports"),
            Self::Protocol(protocol) => write!(f, "{protocol}"),
            Self::Range { protocol, first, .. } if protocol.is_icmp() => {
                write!(f, "{protocol} type {first}")
            }
            Self::Range { protocol, first, last } if first == last => {
                write!(f, "{first}/{protocol}")
            }
            Self::Range { protocol, first, last } => write!(f, "{first}-{last}/{protocol}"),
            Self::Named { protocol: Some(protocol), name } => write!(f, "{name}/{protocol}"),
            Self::Named { protocol: None, name } => write!(f, "{name}/ANY"),
        }
    }
}

/// A prefix of protocol and port: of length 0, 8, or 9 to 24. Ordered so that a prefix comes right
/// before those that it covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PortPrefix {
    /// Protocol in bits 16–23, port in bits 0–15; bits beyond the prefix are zero.
    bits: u32,
    length: u8,
}

impl PortPrefix {
    /// Everything.
    pub const ALL: Self = Self { bits: 0, length: 0 };
    /// The length of a prefix of one port.
    pub const LENGTH_MAX: u8 = 24;

    /// All of a protocol.
    pub const fn protocol(protocol: Protocol) -> Self {
        Self { bits: (protocol.0 as u32) << 16, length: 8 }
    }

    /// One port of a protocol.
    pub const fn port(protocol: Protocol, port: u16) -> Self {
        Self { bits: (protocol.0 as u32) << 16 | port as u32, length: Self::LENGTH_MAX }
    }

    /// The blocks that make up a range, both ends included; none when it is upside down.
    pub fn range(protocol: Protocol, first: u16, last: u16) -> Vec<Self> {
        let mut blocks = Vec::new();
        let (mut next, end) = (u32::from(first), u32::from(last) + 1);
        while next < end {
            // The greatest block that begins here: as aligned as `next`, not beyond the end.
            let aligned = if next == 0 { 16 } else { next.trailing_zeros().min(16) };
            let size = aligned.min((end - next).ilog2());
            let bits = u32::from(protocol.0) << 16 | next;
            blocks.push(Self { bits, length: Self::LENGTH_MAX - size as u8 });
            next += 1 << size;
        }
        blocks
    }

    /// The number of bits: 0, 8, or 9 to 24.
    pub const fn length(self) -> u8 {
        self.length
    }

    /// The protocol, unless it does not count.
    pub fn known_protocol(self) -> Option<Protocol> {
        (self.length > 0).then_some(Protocol((self.bits >> 16) as u8))
    }

    /// The first and the last port.
    pub const fn ports(self) -> (u16, u16) {
        let first = self.bits as u16;
        let free = if self.length > 8 { Self::LENGTH_MAX - self.length } else { 16 };
        (first, first | ((1_u32 << free) - 1) as u16)
    }

    /// Whether everything in `other` is also in this.
    pub const fn covers(self, other: Self) -> bool {
        self.length <= other.length && other.bits & Self::mask(self.length) == self.bits
    }

    /// The prefix of this length that covers this one.
    pub(crate) const fn truncated(self, length: u8) -> Self {
        Self { bits: self.bits & Self::mask(length), length }
    }

    const fn mask(length: u8) -> u32 {
        0xff_ffff & (0xff_ffff << (Self::LENGTH_MAX - length))
    }
}

impl fmt::Display for PortPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(protocol) = self.known_protocol() else { return f.write_str("ANY") };
        match self.ports() {
            (0, u16::MAX) => write!(f, "{protocol}"),
            (first, last) => PortMatch::Range { protocol, first, last }.fmt(f),
        }
    }
}

/// A port to which a pod gives a name.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct NamedPort {
    /// The name, in small letters.
    pub name: Arc<str>,
    /// Its protocol.
    pub protocol: Protocol,
    /// Its number.
    pub port: u16,
}

impl NamedPort {
    /// Whether a rule's named port means this one.
    pub(crate) fn is_meant_by(&self, protocol: Option<Protocol>, name: &str) -> bool {
        *self.name == *name && protocol.is_none_or(|asked| asked == self.protocol)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(blocks: &[PortPrefix]) -> Vec<String> {
        blocks.iter().map(PortPrefix::to_string).collect()
    }

    #[test]
    fn ranges_are_blocks() {
        let blocks = |first, last| texts(&PortPrefix::range(Protocol::TCP, first, last));
        assert_eq!(blocks(80, 80), ["80/TCP"]);
        assert_eq!(blocks(0, u16::MAX), ["TCP"]);
        assert_eq!(blocks(1, 6), ["1/TCP", "2-3/TCP", "4-5/TCP", "6/TCP"]);
        assert_eq!(blocks(8080, 8095), ["8080-8095/TCP"]);
        assert_eq!(blocks(2, 1), [""; 0]);
    }

    #[test]
    fn blocks_cover_a_range_and_nothing_else() {
        for (first, last) in [(0, 0), (1, u16::MAX), (1000, 2000), (32768, 60999), (65535, 65535)] {
            let blocks = PortPrefix::range(Protocol::UDP, first, last);
            for port in 0..=u16::MAX {
                let covering =
                    blocks.iter().filter(|b| b.covers(PortPrefix::port(Protocol::UDP, port)));
                assert_eq!(covering.count(), usize::from((first..=last).contains(&port)), "{port}");
            }
        }
    }

    #[test]
    fn a_prefix_comes_before_what_it_covers() {
        let tcp = PortPrefix::protocol(Protocol::TCP);
        let http = PortPrefix::port(Protocol::TCP, 80);
        assert!(PortPrefix::ALL < tcp && tcp < http);
        assert!(PortPrefix::ALL.covers(http) && tcp.covers(http) && !http.covers(tcp));
        assert!(!PortPrefix::protocol(Protocol::UDP).covers(http));
        assert_eq!(http.truncated(8), tcp);
        assert_eq!(http.truncated(0), PortPrefix::ALL);
        assert_eq!(tcp.ports(), (0, u16::MAX));
    }
}
