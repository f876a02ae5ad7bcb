//! Ethernet II.

use crate::packet::Packet;

/// Bytes of the header.
pub const LEN: usize = 14;
/// EtherType of IPv4.
pub const IPV4: [u8; 2] = [0x08, 0x00];
/// EtherType of ARP.
pub const ARP: [u8; 2] = [0x08, 0x06];
/// EtherType of IPv6.
pub const IPV6: [u8; 2] = [0x86, 0xdd];
/// The smallest EtherType; below are lengths of IEEE 802.3 frames.
pub const ETHERTYPE_MIN: u16 = 0x600;

/// The EtherType of the frame.
pub fn ethertype(packet: &impl Packet) -> Option<[u8; 2]> {
    packet.load(12)
}

/// Target and source address in one store; each in the first six bytes of its argument.
pub fn set_addresses(packet: &mut impl Packet, target: [u8; 8], source: [u8; 8]) -> Option<()> {
    let [t0, t1, t2, t3, t4, t5, ..] = target;
    let [s0, s1, s2, s3, s4, s5, ..] = source;
    packet.store(0, [t0, t1, t2, t3, t4, t5, s0, s1, s2, s3, s4, s5])
}
