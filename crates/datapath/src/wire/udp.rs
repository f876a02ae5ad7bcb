//! UDP (RFC 768).

use crate::packet::Packet;

/// Protocol number.
pub const PROTOCOL: u8 = 17;

/// The target port of the header at `offset`, network byte order.
pub fn target_port(packet: &impl Packet, offset: usize) -> Option<[u8; 2]> {
    packet.load(offset + 2)
}
