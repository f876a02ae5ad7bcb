//! What IPv4 and IPv6 do differently, behind one sealed trait. Everything above is written once.

use abi::address::{FAMILY_V4, FAMILY_V6};
use abi::endpoint::DeviceEndpoint;
use abi::ipcache::{IPCACHE_STATIC_PREFIX_BITS, IpcacheKey};
use abi::{AddressKey, DatapathConfig, DropReason, identity};

use crate::maps::forget;
use crate::packet::{AF_INET, AF_INET6, Packet};
use crate::wire::checksum::Update;
use crate::wire::icmp::{self, Purpose};
use crate::wire::{at, eth, icmp6, ipv4, ipv6, tcp, udp};

mod sealed {
    pub trait Sealed {}
    impl Sealed for super::V4 {}
    impl Sealed for super::V6 {}
}

/// IPv4 or IPv6.
pub trait Family: sealed::Sealed + Copy + Sized {
    /// The `family` field of map keys.
    const NUMBER: u8;
    /// `AF_INET` or `AF_INET6`.
    const ADDRESS_FAMILY: u8;
    /// The world's identity in a dual-stack cluster.
    const WORLD: u32;
    /// Offset in the IP header of the four bytes that hold hop limit and protocol.
    const HOP_OFFSET: usize;

    /// Whether the cluster has this family.
    fn enabled(config: &DatapathConfig) -> bool;
    /// Reads and checks the IP header.
    fn parse(packet: &impl Packet) -> Result<IpHeader<Self>, DropReason>;
    /// The address of the pod behind a device, zero where it has none.
    fn own_address(device: &DeviceEndpoint) -> Addr;
    /// Hop limit and protocol of the bytes at [`Self::HOP_OFFSET`].
    fn hop_limit_and_protocol(hop: [u8; 4]) -> (u8, u8);
    /// Those bytes after one more hop.
    fn one_hop_less(hop: [u8; 4]) -> [u8; 4];
    /// Whether UDP may come behind a header that names `protocol` as the next.
    fn may_carry_udp(protocol: u8) -> bool;
    /// Finds out where the transport header is of the packet whose IP header begins at `l3`, behind
    /// options and extension headers.
    fn transport<P: Packet>(packet: &P, l3: usize, found: &mut Transport)
    -> Result<(), DropReason>;
    /// Source and target of the packet whose IP header begins at `l3`.
    fn addresses<P: Packet>(packet: &P, l3: usize) -> Option<(Addr, Addr)>;
    /// Number of the family's ICMP.
    const ICMP: u8;
    /// What an ICMP message of this type and code is for.
    fn icmp_purpose(icmp_type: u8, code: u8) -> Purpose;
    /// Whether `address` names a group.
    fn is_multicast(address: Addr) -> bool;
    /// Whether `address` means something on one link only.
    fn is_link_scoped(address: Addr) -> bool;
    /// What a pod says to its link rather than to a peer.
    fn on_link<P: Packet>(
        packet: &P,
        header: &IpHeader<Self>,
        device: &DeviceEndpoint,
    ) -> Result<OnLink, DropReason>;
}

/// What [`Family::on_link`] found.
#[derive(Clone, Copy, Debug)]
pub enum OnLink {
    /// It is for a peer.
    No,
    /// It asks for the gateway's MAC address.
    Solicitation(icmp6::Solicitation),
    /// It is for the node's stack.
    ToStack,
}

/// A transport header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Transport {
    /// Its protocol.
    pub protocol: u8,
    /// Where it begins in the frame; of a later fragment, where its data does.
    pub offset: usize,
    /// Which part of its datagram the packet is.
    pub part: Part,
    /// Identification of the datagram, network byte order; of a fragment only.
    pub id: [u8; 4],
}

impl Transport {
    /// Nothing is known yet.
    pub const UNKNOWN: Self = Self { protocol: 0, offset: 0, part: Part::Whole, id: [0; 4] };
}

/// Which part of its datagram a packet is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Part {
    /// The whole.
    Whole,
    /// The first fragment, which has the transport header.
    First,
    /// A later fragment, which has not.
    Later,
}

/// An address: words in network byte order, IPv4 fills the first and leaves the rest zero.
#[derive(Clone, Copy, Debug)]
pub struct Addr(pub [u32; 4]);

impl Addr {
    /// No address.
    pub const UNSPECIFIED: Self = Self([0; 4]);

    /// The address with these bytes.
    pub const fn from_v4(bytes: [u8; 4]) -> Self {
        Self([u32::from_ne_bytes(bytes), 0, 0, 0])
    }

    /// The address with these bytes.
    pub fn from_v6(bytes: [u8; 16]) -> Self {
        let word = |offset| u32::from_ne_bytes(at(&bytes, offset));
        Self([word(0), word(4), word(8), word(12)])
    }

    /// All sixteen bytes.
    pub fn bytes(self) -> [u8; 16] {
        let mut bytes = [0; 16];
        for (part, word) in bytes.as_chunks_mut::<4>().0.iter_mut().zip(self.0) {
            *part = word.to_ne_bytes();
        }
        bytes
    }
}

impl PartialEq for Addr {
    /// Word by word: a comparison of arrays becomes a call of `bcmp`.
    fn eq(&self, other: &Self) -> bool {
        let ([a, b, c, d], [e, f, g, h]) = (self.0, other.0);
        (a ^ e) | (b ^ f) | (c ^ g) | (d ^ h) == 0
    }
}

impl Eq for Addr {}

/// An IP header that has been checked.
#[derive(Clone, Copy, Debug)]
pub struct IpHeader<F> {
    /// Source address.
    pub source: Addr,
    /// Target address.
    pub target: Addr,
    /// DSCP and ECN.
    pub traffic_class: u8,
    /// The bytes at [`Family::HOP_OFFSET`].
    pub hop: [u8; 4],
    family: core::marker::PhantomData<F>,
}

impl<F: Family> IpHeader<F> {
    /// L4 protocol or first extension header.
    pub fn protocol(&self) -> u8 {
        F::hop_limit_and_protocol(self.hop).1
    }

    /// TTL or hop limit.
    pub fn hop_limit(&self) -> u8 {
        F::hop_limit_and_protocol(self.hop).0
    }

    /// Counts a hop, in the packet.
    pub fn forward<P: Packet>(&self, packet: &mut P) -> Result<(), DropReason> {
        if self.hop_limit() <= 1 {
            return Err(DropReason::TtlExceeded);
        }
        packet
            .store(eth::LEN + F::HOP_OFFSET, F::one_hop_less(self.hop))
            .ok_or(DropReason::WriteError)
    }
}

/// The key of `address` in tables of single addresses.
pub fn address_key<F: Family>(address: Addr) -> AddressKey {
    AddressKey { addr: address.bytes(), family: F::NUMBER, key: 0, cluster_id: 0 }
}

/// The key of `address` in the trie of prefixes.
pub fn ipcache_key<F: Family>(key: &AddressKey) -> IpcacheKey {
    let bits = if F::NUMBER == FAMILY_V4 { 32 } else { 128 };
    IpcacheKey {
        prefix_len: IPCACHE_STATIC_PREFIX_BITS + bits,
        cluster_id: key.cluster_id,
        pad: 0,
        family: key.family,
        addr: key.addr,
    }
}

/// IPv4.
#[derive(Clone, Copy, Debug)]
pub struct V4;

impl Family for V4 {
    const NUMBER: u8 = FAMILY_V4;
    const ADDRESS_FAMILY: u8 = AF_INET;
    const WORLD: u32 = identity::WORLD_IPV4;
    const HOP_OFFSET: usize = ipv4::TTL_OFFSET;

    fn enabled(config: &DatapathConfig) -> bool {
        config.enable_ipv4 != 0
    }

    fn parse(packet: &impl Packet) -> Result<IpHeader<Self>, DropReason> {
        let bytes: [u8; ipv4::LEN] = packet.load(eth::LEN).ok_or(DropReason::Invalid)?;
        let [version_and_length, traffic_class, l0, l1, ..] = bytes;
        let header_len = u32::from(version_and_length & 0xf) * 4;
        let total_len = u32::from(u16::from_be_bytes([l0, l1]));
        let present = packet.length() - eth::LEN as u32;
        // A packet too long for the field (BIG TCP) says 0.
        let length_fits = (total_len >= header_len && total_len <= present)
            || (total_len == 0 && present > 0xffff);
        if version_and_length >> 4 != 4 || header_len < ipv4::LEN as u32 || !length_fits {
            return Err(DropReason::Invalid);
        }
        Ok(IpHeader {
            source: Addr::from_v4(at(&bytes, 12)),
            target: Addr::from_v4(at(&bytes, 16)),
            traffic_class,
            hop: at(&bytes, ipv4::TTL_OFFSET),
            family: core::marker::PhantomData,
        })
    }

    fn own_address(device: &DeviceEndpoint) -> Addr {
        Addr::from_v4(device.ipv4)
    }

    fn hop_limit_and_protocol([hop_limit, protocol, ..]: [u8; 4]) -> (u8, u8) {
        (hop_limit, protocol)
    }

    fn one_hop_less([ttl, protocol, c0, c1]: [u8; 4]) -> [u8; 4] {
        let old = u32::from_ne_bytes([ttl, protocol, 0, 0]);
        let new = u32::from_ne_bytes([ttl - 1, protocol, 0, 0]);
        let [c0, c1] = Update::of([c0, c1]).replace(old, new).finish();
        [ttl - 1, protocol, c0, c1]
    }

    fn may_carry_udp(protocol: u8) -> bool {
        protocol == udp::PROTOCOL
    }

    fn transport<P: Packet>(
        packet: &P,
        l3: usize,
        found: &mut Transport,
    ) -> Result<(), DropReason> {
        let [b0, _, _, _, i0, i1, f0, f1, _, protocol] =
            packet.load(l3).ok_or(DropReason::Invalid)?;
        let fragment = u16::from_be_bytes([f0, f1]);
        found.protocol = protocol;
        found.offset = l3 + usize::from(b0 & 0xf) * 4;
        found.id = [i0, i1, 0, 0];
        found.part = if fragment & ipv4::FRAGMENT_OFFSET_MASK != 0 {
            Part::Later
        } else if fragment & ipv4::MORE_FRAGMENTS != 0 {
            Part::First
        } else {
            Part::Whole
        };
        Ok(())
    }

    fn addresses<P: Packet>(packet: &P, l3: usize) -> Option<(Addr, Addr)> {
        let [a, b, c, d, e, f, g, h] = packet.load(l3 + 12)?;
        Some((Addr::from_v4([a, b, c, d]), Addr::from_v4([e, f, g, h])))
    }

    const ICMP: u8 = icmp::PROTOCOL;

    fn icmp_purpose(icmp_type: u8, code: u8) -> Purpose {
        match icmp_type {
            icmp::ECHO_REQUEST => Purpose::EchoRequest,
            icmp::ECHO_REPLY => Purpose::EchoReply,
            icmp::UNREACHABLE if code == icmp::FRAGMENTATION_NEEDED => Purpose::TooBig,
            icmp::UNREACHABLE | icmp::TIME_EXCEEDED | icmp::PARAMETER_PROBLEM => Purpose::Error,
            _ => Purpose::Other,
        }
    }

    fn is_multicast(address: Addr) -> bool {
        let [first, ..] = address.0[0].to_ne_bytes();
        first & 0xf0 == 0xe0 || address.0[0] == u32::MAX
    }

    fn is_link_scoped(address: Addr) -> bool {
        let [b0, b1, ..] = address.0[0].to_ne_bytes();
        Self::is_multicast(address) || (b0, b1) == (169, 254)
    }

    fn on_link<P: Packet>(
        _packet: &P,
        header: &IpHeader<Self>,
        device: &DeviceEndpoint,
    ) -> Result<OnLink, DropReason> {
        let own = Self::own_address(device);
        if header.source != own || own == Addr::UNSPECIFIED {
            Err(DropReason::InvalidSip)
        } else if !Self::is_multicast(header.target) {
            Ok(OnLink::No)
        } else if header.protocol() == ipv4::IGMP {
            Err(DropReason::IgmpHandled)
        } else {
            Err(DropReason::UnknownTarget)
        }
    }
}

/// IPv6.
#[derive(Clone, Copy, Debug)]
pub struct V6;

impl Family for V6 {
    const NUMBER: u8 = FAMILY_V6;
    const ADDRESS_FAMILY: u8 = AF_INET6;
    const WORLD: u32 = identity::WORLD_IPV6;
    const HOP_OFFSET: usize = ipv6::HOP_LIMIT_OFFSET;

    fn enabled(config: &DatapathConfig) -> bool {
        config.enable_ipv6 != 0
    }

    fn parse(packet: &impl Packet) -> Result<IpHeader<Self>, DropReason> {
        let bytes: [u8; ipv6::LEN] = packet.load(eth::LEN).ok_or(DropReason::Invalid)?;
        let [b0, b1, _, _, l0, l1, ..] = bytes;
        // 0 also stands for a jumbogram.
        let payload_len = u32::from(u16::from_be_bytes([l0, l1]));
        let present = packet.length() - (eth::LEN + ipv6::LEN) as u32;
        if b0 >> 4 != 6 || payload_len > present {
            return Err(DropReason::Invalid);
        }
        Ok(IpHeader {
            source: Addr::from_v6(at(&bytes, 8)),
            target: Addr::from_v6(at(&bytes, 24)),
            traffic_class: b0 << 4 | b1 >> 4,
            hop: at(&bytes, ipv6::HOP_LIMIT_OFFSET),
            family: core::marker::PhantomData,
        })
    }

    fn own_address(device: &DeviceEndpoint) -> Addr {
        Addr::from_v6(device.ipv6)
    }

    fn hop_limit_and_protocol([_, _, protocol, hop_limit]: [u8; 4]) -> (u8, u8) {
        (hop_limit, protocol)
    }

    fn one_hop_less([l0, l1, protocol, hop_limit]: [u8; 4]) -> [u8; 4] {
        [l0, l1, protocol, hop_limit - 1]
    }

    fn may_carry_udp(protocol: u8) -> bool {
        !matches!(protocol, tcp::PROTOCOL | ipv6::ICMP6)
    }

    fn transport<P: Packet>(
        packet: &P,
        l3: usize,
        found: &mut Transport,
    ) -> Result<(), DropReason> {
        let [protocol] = packet.load(l3 + 6).ok_or(DropReason::Invalid)?;
        *found = Transport { protocol, offset: l3 + ipv6::LEN, part: Part::Whole, id: [0; 4] };
        let mut found = found;
        for _ in 0..=ipv6::EXTENSION_HEADERS_MAX {
            let cut = DropReason::InvalidExthdr;
            match found.protocol {
                ipv6::HOP_BY_HOP | ipv6::ROUTING | ipv6::TARGET_OPTIONS | ipv6::MOBILITY => {
                    let [next, len] = packet.load(found.offset).ok_or(cut)?;
                    found.protocol = next;
                    found.offset += (usize::from(len) + 1) * 8;
                }
                ipv6::AUTHENTICATION => {
                    let [next, len] = packet.load(found.offset).ok_or(cut)?;
                    found.protocol = next;
                    found.offset += (usize::from(len) + 2) * 4;
                }
                ipv6::FRAGMENT => {
                    let [next, _, f0, f1, i0, i1, i2, i3] = packet.load(found.offset).ok_or(cut)?;
                    let fragment = u16::from_be_bytes([f0, f1]);
                    found.protocol = next;
                    found.offset += 8;
                    found.id = [i0, i1, i2, i3];
                    if fragment & ipv6::FRAGMENT_OFFSET_MASK != 0 {
                        found.part = Part::Later;
                        return Ok(());
                    }
                    if fragment & ipv6::MORE_FRAGMENTS != 0 {
                        found.part = Part::First;
                    }
                }
                _ => return Ok(()),
            }
            // The verifier walks one header like the other, see `crate::maps::forget`.
            found = forget(found);
            if found.offset > l3 + ipv6::CHAIN_LEN_MAX {
                return Err(cut);
            }
        }
        Err(DropReason::InvalidExthdr)
    }

    fn addresses<P: Packet>(packet: &P, l3: usize) -> Option<(Addr, Addr)> {
        let source: [u8; 16] = packet.load(l3 + 8)?;
        let target: [u8; 16] = packet.load(l3 + 24)?;
        Some((Addr::from_v6(source), Addr::from_v6(target)))
    }

    const ICMP: u8 = ipv6::ICMP6;

    fn icmp_purpose(icmp_type: u8, _code: u8) -> Purpose {
        match icmp_type {
            icmp::V6_ECHO_REQUEST => Purpose::EchoRequest,
            icmp::V6_ECHO_REPLY => Purpose::EchoReply,
            icmp::V6_TOO_BIG => Purpose::TooBig,
            1..=icmp::V6_ERROR_LAST => Purpose::Error,
            icmp6::ROUTER_SOLICITATION..=icmp6::REDIRECT => Purpose::Neighbours,
            _ => Purpose::Other,
        }
    }

    fn is_multicast(address: Addr) -> bool {
        address.0[0].to_ne_bytes()[0] == 0xff
    }

    fn is_link_scoped(address: Addr) -> bool {
        Self::is_multicast(address) || is_link_local(address)
    }

    fn on_link<P: Packet>(
        packet: &P,
        header: &IpHeader<Self>,
        device: &DeviceEndpoint,
    ) -> Result<OnLink, DropReason> {
        let own = Self::own_address(device);
        let is_own = header.source == own && own != Addr::UNSPECIFIED;
        let is_link_scoped = header.source == Addr::UNSPECIFIED || is_link_local(header.source);
        if !is_own && !is_link_scoped {
            return Err(DropReason::InvalidSip);
        }
        let protocol = header.protocol();
        if protocol == ipv6::ICMP6 {
            let message = icmp6::message_type(packet).ok_or(DropReason::Invalid)?;
            if let Some(found) = neighbour_discovery(packet, header, own, message)? {
                return Ok(found);
            }
        }
        if !Self::is_multicast(header.target) {
            return if is_own { Ok(OnLink::No) } else { Err(DropReason::InvalidSip) };
        }
        // Listener reports have a router alert in hop-by-hop options.
        if protocol == ipv6::ICMP6 || protocol == ipv6::HOP_BY_HOP {
            return Err(DropReason::MulticastHandled);
        }
        Err(if is_own { DropReason::UnknownTarget } else { DropReason::InvalidSip })
    }
}

/// `fe80::/10`.
fn is_link_local(address: Addr) -> bool {
    let [b0, b1, ..] = address.0[0].to_ne_bytes();
    b0 == 0xfe && b1 & 0xc0 == 0x80
}

/// A pod's word to its neighbours: `None` when `message` is not neighbour discovery.
fn neighbour_discovery<P: Packet>(
    packet: &P,
    header: &IpHeader<V6>,
    own: Addr,
    message: u8,
) -> Result<Option<OnLink>, DropReason> {
    match message {
        icmp6::NEIGHBOUR_SOLICITATION => {
            let solicitation = icmp6::solicitation(packet).ok_or(DropReason::Invalid)?;
            let is_for_group = V6::is_multicast(Addr(solicitation.target));
            if header.hop_limit() != icmp6::HOP_LIMIT || is_for_group {
                return Err(DropReason::Invalid);
            }
            // A probe for an address that the pod is about to use; nobody else is on its link.
            if header.source == Addr::UNSPECIFIED || Addr(solicitation.target) == own {
                return Err(DropReason::MulticastHandled);
            }
            Ok(Some(OnLink::Solicitation(solicitation)))
        }
        icmp6::NEIGHBOUR_ADVERTISEMENT => Ok(Some(OnLink::ToStack)),
        // There is no router on the link that the pod could find: its routes are configured.
        icmp6::ROUTER_SOLICITATION => Err(DropReason::MulticastHandled),
        // Advertising a router or redirecting is not a pod's to do.
        icmp6::ROUTER_ADVERTISEMENT | icmp6::REDIRECT => Err(DropReason::ForbiddenIcmp6),
        _ => Ok(None),
    }
}
