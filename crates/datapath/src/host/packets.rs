//! Builds packets: whole frames with right lengths and checksums.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::vec;
use std::vec::Vec;

use crate::wire::checksum::{Update, compute};
use crate::wire::{eth, icmp, icmp6, ipv4, ipv6};

/// A MAC address.
pub type Mac = [u8; 6];

/// Protocol number of TCP.
pub const TCP: u8 = 6;
/// Protocol number of UDP.
pub const UDP: u8 = 17;

/// A TCP segment without payload.
pub fn tcp(source: (IpAddr, u16), target: (IpAddr, u16), flags: u8) -> Vec<u8> {
    let mut segment = vec![0; 20];
    segment[..2].copy_from_slice(&source.1.to_be_bytes());
    segment[2..4].copy_from_slice(&target.1.to_be_bytes());
    segment[12] = 5 << 4;
    segment[13] = flags;
    segment[14..16].copy_from_slice(&64_000_u16.to_be_bytes());
    ip(source.0, target.0, TCP, 64, segment, Some(16))
}

/// A UDP datagram.
pub fn udp(source: (IpAddr, u16), target: (IpAddr, u16), payload: &[u8]) -> Vec<u8> {
    let mut datagram = vec![0; 8];
    datagram[..2].copy_from_slice(&source.1.to_be_bytes());
    datagram[2..4].copy_from_slice(&target.1.to_be_bytes());
    datagram[4..6].copy_from_slice(&(8 + payload.len() as u16).to_be_bytes());
    datagram.extend_from_slice(payload);
    ip(source.0, target.0, UDP, 64, datagram, Some(6))
}

/// An ICMP echo request or reply.
pub fn echo(source: IpAddr, target: IpAddr, id: u16, is_request: bool) -> Vec<u8> {
    let kind = match (source.is_ipv4(), is_request) {
        (true, true) => icmp::ECHO_REQUEST,
        (true, false) => icmp::ECHO_REPLY,
        (false, true) => icmp::V6_ECHO_REQUEST,
        (false, false) => icmp::V6_ECHO_REPLY,
    };
    let [i0, i1] = id.to_be_bytes();
    icmp_message(source, target, [kind, 0, 0, 0, i0, i1, 0, 1], b"echo echo echo..")
}

/// An ICMP error of this type and code about a packet, as far as an error carries it.
pub fn icmp_error(source: IpAddr, target: IpAddr, [kind, code]: [u8; 2], about: &[u8]) -> Vec<u8> {
    let inner = &about[eth::LEN..about.len().min(eth::LEN + 60)];
    icmp_message(source, target, [kind, code, 0, 0, 0, 0, 5, 0], inner)
}

/// An ICMP message with this header, of either family.
pub fn icmp_message(source: IpAddr, target: IpAddr, header: [u8; 8], body: &[u8]) -> Vec<u8> {
    let protocol = if source.is_ipv4() { icmp::PROTOCOL } else { ipv6::ICMP6 };
    ip(source, target, protocol, 64, [&header[..], body].concat(), Some(2))
}

/// The packet in two fragments of the datagram `id`, cut after `first_len` bytes of what follows the
/// IP header, a multiple of eight. Without options and extension headers.
pub fn in_fragments(frame: &[u8], id: u16, first_len: usize) -> [Vec<u8>; 2] {
    let l4 = eth::LEN + if frame[12..14] == eth::IPV6 { ipv6::LEN } else { ipv4::LEN };
    let cut = (l4 + first_len).min(frame.len());
    [(l4..cut, 0, 1), (cut..frame.len(), first_len as u16, 0)].map(|(part, offset, more)| {
        let mut packet = [&frame[..l4], &frame[part]].concat();
        if frame[12..14] == eth::IPV6 {
            let [o0, o1] = (offset | more).to_be_bytes();
            let [i0, i1] = id.to_be_bytes();
            let header = [packet[eth::LEN + 6], 0, o0, o1, 0, 0, i0, i1];
            packet.splice(l4..l4, header);
            packet[eth::LEN + 6] = ipv6::FRAGMENT;
            let len = (packet.len() - l4) as u16;
            packet[eth::LEN + 4..eth::LEN + 6].copy_from_slice(&len.to_be_bytes());
        } else {
            let len = (packet.len() - eth::LEN) as u16;
            packet[eth::LEN + 2..eth::LEN + 4].copy_from_slice(&len.to_be_bytes());
            packet[eth::LEN + 4..eth::LEN + 6].copy_from_slice(&id.to_be_bytes());
            let word = (offset / 8) | (more << 13);
            packet[eth::LEN + 6..eth::LEN + 8].copy_from_slice(&word.to_be_bytes());
            // Writes the header's checksum.
            let ttl = packet[eth::LEN + 8];
            packet = with_hop_limit(packet, ttl);
        }
        packet
    })
}

/// The TCP segment with these numbers.
pub fn with_numbers(mut frame: Vec<u8>, sequence: u32, acknowledgement: u32) -> Vec<u8> {
    let l4 = eth::LEN + if frame[12..14] == eth::IPV6 { ipv6::LEN } else { ipv4::LEN };
    let mut sum = Update::of([frame[l4 + 16], frame[l4 + 17]]);
    for (at, number) in [(4, sequence), (8, acknowledgement)] {
        let bytes = &mut frame[l4 + at..l4 + at + 4];
        let old = u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        bytes.copy_from_slice(&number.to_be_bytes());
        sum = sum.replace(old, u32::from_ne_bytes(number.to_be_bytes()));
    }
    frame[l4 + 16..l4 + 18].copy_from_slice(&sum.finish());
    frame
}

/// An IP packet around `payload`, whose checksum with pseudo header goes to `checksum_offset`.
///
/// # Panics
/// When the addresses are of different families.
pub fn ip(
    source: IpAddr,
    target: IpAddr,
    protocol: u8,
    hop_limit: u8,
    mut payload: Vec<u8>,
    checksum_offset: Option<usize>,
) -> Vec<u8> {
    let len = payload.len() as u16;
    if let Some(offset) = checksum_offset {
        let pseudo = match (source, target) {
            (IpAddr::V4(s), IpAddr::V4(t)) => sum(&s.octets()) + sum(&t.octets()),
            (IpAddr::V6(s), IpAddr::V6(t)) => sum(&s.octets()) + sum(&t.octets()),
            _ => panic!("{source} and {target} are of different families"),
        };
        // ICMP of IPv4 covers no addresses.
        let start = pseudo + u32::from(protocol) + u32::from(len);
        let checksum = compute(&payload, if protocol == icmp::PROTOCOL { 0 } else { start });
        payload[offset..offset + 2].copy_from_slice(&checksum);
    }
    let (ethertype, header) = match (source, target) {
        (IpAddr::V4(s), IpAddr::V4(t)) => (eth::IPV4, v4_header(s, t, protocol, hop_limit, len)),
        (IpAddr::V6(s), IpAddr::V6(t)) => (eth::IPV6, v6_header(s, t, protocol, hop_limit, len)),
        _ => panic!("{source} and {target} are of different families"),
    };
    frame([2, 0, 0, 0, 0, 0xfe], [2, 0, 0, 0, 0, 1], ethertype, &[header, payload].concat())
}

/// An Ethernet frame.
pub fn frame(target: Mac, source: Mac, ethertype: [u8; 2], payload: &[u8]) -> Vec<u8> {
    [&target[..], &source, &ethertype, payload].concat()
}

/// The frame from another sender.
pub fn from_mac(mut frame: Vec<u8>, source: Mac) -> Vec<u8> {
    frame[6..12].copy_from_slice(&source);
    frame
}

/// The packet with another TTL or hop limit.
pub fn with_hop_limit(mut frame: Vec<u8>, hop_limit: u8) -> Vec<u8> {
    if frame[12..14] == eth::IPV6 {
        frame[eth::LEN + 7] = hop_limit;
    } else {
        let header = &mut frame[eth::LEN..eth::LEN + ipv4::LEN];
        header[8] = hop_limit;
        header[10..12].fill(0);
        let checksum = compute(header, 0);
        header[10..12].copy_from_slice(&checksum);
    }
    frame
}

/// The IPv6 packet with these extension headers, each of eight bytes, in this order.
///
/// Its transport checksum stays right; [`is_valid`] does not look behind extension headers.
pub fn with_extension_headers(mut frame: Vec<u8>, headers: &[u8]) -> Vec<u8> {
    let mut next = frame[eth::LEN + 6];
    for header in headers.iter().rev() {
        // A length of 0 is eight bytes in all of them.
        let at = eth::LEN + ipv6::LEN;
        frame.splice(at..at, [next, 0, 0, 0, 0, 0, 0, 0]);
        next = *header;
    }
    frame[eth::LEN + 6] = next;
    let payload_len = (frame.len() - eth::LEN - ipv6::LEN) as u16;
    frame[eth::LEN + 4..eth::LEN + 6].copy_from_slice(&payload_len.to_be_bytes());
    frame
}

/// Who has `target`? Tell `sender`.
pub fn arp_request(sender_mac: Mac, sender: Ipv4Addr, target: Ipv4Addr) -> Vec<u8> {
    let body =
        [&[0, 1, 8, 0, 6, 4, 0, 1][..], &sender_mac, &sender.octets(), &[0; 6], &target.octets()]
            .concat();
    frame([0xff; 6], sender_mac, eth::ARP, &body)
}

/// Who has `target`? Tell `source`. To the group of the target's solicited nodes.
pub fn neighbour_solicitation(mac: Mac, source: Ipv6Addr, target: Ipv6Addr) -> Vec<u8> {
    let octets = target.octets();
    let group = Ipv6Addr::new(
        0xff02,
        0,
        0,
        0,
        0,
        1,
        0xff00 | u16::from(octets[13]),
        u16::from_be_bytes([octets[14], octets[15]]),
    );
    let mut message = vec![icmp6::NEIGHBOUR_SOLICITATION, 0, 0, 0, 0, 0, 0, 0];
    message.extend_from_slice(&octets);
    if !source.is_unspecified() {
        message.extend_from_slice(&[1, 1]);
        message.extend_from_slice(&mac);
    }
    let packet = ip(source.into(), group.into(), ipv6::ICMP6, 255, message, Some(2));
    let mut packet = from_mac(packet, mac);
    packet[..6].copy_from_slice(&[0x33, 0x33, 0xff, octets[13], octets[14], octets[15]]);
    packet
}

/// An ICMPv6 message of this type with 20 more bytes.
pub fn icmp6_message(source: Ipv6Addr, target: Ipv6Addr, message_type: u8) -> Vec<u8> {
    let mut message = vec![0; 24];
    message[0] = message_type;
    ip(source.into(), target.into(), ipv6::ICMP6, 255, message, Some(2))
}

/// Whether all checksums that `ip` writes are right.
pub fn is_valid(frame: &[u8]) -> bool {
    let l3 = &frame[eth::LEN..];
    let (protocol, pseudo, l4) = if frame[12..14] == eth::IPV4 {
        if compute(&l3[..20], 0) != [0, 0] {
            return false;
        }
        (l3[9], sum(&l3[12..20]), &l3[20..])
    } else {
        (l3[6], sum(&l3[8..40]), &l3[40..])
    };
    let start = pseudo + u32::from(protocol) + l4.len() as u32;
    compute(l4, if protocol == icmp::PROTOCOL { 0 } else { start }) == [0, 0]
}

fn sum(bytes: &[u8]) -> u32 {
    bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])).sum()
}

fn v4_header(s: Ipv4Addr, t: Ipv4Addr, protocol: u8, ttl: u8, payload_len: u16) -> Vec<u8> {
    let mut header = vec![0x45, 0];
    header.extend_from_slice(&(payload_len + ipv4::LEN as u16).to_be_bytes());
    header.extend_from_slice(&[0, 1, 0x40, 0, ttl, protocol, 0, 0]);
    header.extend_from_slice(&s.octets());
    header.extend_from_slice(&t.octets());
    let checksum = compute(&header, 0);
    header[10..12].copy_from_slice(&checksum);
    header
}

fn v6_header(s: Ipv6Addr, t: Ipv6Addr, protocol: u8, hop_limit: u8, payload_len: u16) -> Vec<u8> {
    let mut header = vec![0x60, 0, 0, 0];
    header.extend_from_slice(&payload_len.to_be_bytes());
    header.extend_from_slice(&[protocol, hop_limit]);
    header.extend_from_slice(&s.octets());
    header.extend_from_slice(&t.octets());
    header
}
