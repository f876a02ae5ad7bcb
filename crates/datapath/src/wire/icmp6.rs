//! Neighbour discovery of ICMPv6 (RFC 4861).

use super::checksum::Update;
use super::{at, eth, ipv6};
use crate::packet::Packet;

/// Offset of the ICMPv6 header in a frame without extension headers.
pub const OFFSET: usize = eth::LEN + ipv6::LEN;
/// First of the neighbour discovery types.
pub const ROUTER_SOLICITATION: u8 = 133;
/// A router tells of itself.
pub const ROUTER_ADVERTISEMENT: u8 = 134;
/// Who has this address?
pub const NEIGHBOUR_SOLICITATION: u8 = 135;
/// I have this address.
pub const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
/// There is a better way; last of the neighbour discovery types.
pub const REDIRECT: u8 = 137;
/// First of the multicast listener discovery types (RFC 2710).
pub const LISTENER_QUERY: u8 = 130;
/// Last of them.
pub const LISTENER_DONE: u8 = 132;

/// Hop limit of every message of neighbour discovery: it cannot have come from another link.
pub const HOP_LIMIT: u8 = 255;

const SOLICITATION_LEN: usize = 24;
const OPTION_OFFSET: usize = OFFSET + SOLICITATION_LEN;
const SOURCE_LINK_ADDRESS: [u8; 2] = [1, 1];
const TARGET_LINK_ADDRESS: [u8; 2] = [2, 1];
/// From a router, solicited, overrides what is cached.
const ADVERTISEMENT_FLAGS: [u8; 4] = [0xe0, 0, 0, 0];

/// The type of the ICMPv6 message right behind the IPv6 header.
pub fn message_type(packet: &impl Packet) -> Option<u8> {
    packet.load::<1>(OFFSET).map(|[message_type]| message_type)
}

/// A neighbour solicitation.
#[derive(Clone, Copy, Debug)]
pub struct Solicitation {
    bytes: [u8; SOLICITATION_LEN],
    /// Address asked for, words in network byte order.
    pub target: [u32; 4],
}

/// The neighbour solicitation right behind the IPv6 header; `None` when it is too short or its code
/// is not 0.
pub fn solicitation(packet: &impl Packet) -> Option<Solicitation> {
    let bytes: [u8; SOLICITATION_LEN] = packet.load(OFFSET)?;
    let word = |offset| u32::from_ne_bytes(at(&bytes, offset));
    (bytes[1] == 0)
        .then_some(Solicitation { bytes, target: [word(8), word(12), word(16), word(20)] })
}

/// Turns the frame of `solicitation` into the advertisement that its target is at `mac` (first six
/// bytes).
///
/// Lengths stay: a link address option of the request becomes ours, and where there is none (as in
/// a unicast request) none is needed. The checksum is adapted, so a wrong one stays wrong.
pub fn advertise(
    packet: &mut impl Packet,
    solicitation: &Solicitation,
    mac: [u8; 8],
) -> Option<()> {
    let frame: [u8; OFFSET] = packet.load(0)?;
    let ns = solicitation.bytes;
    let word = |offset| u32::from_ne_bytes(at(&ns, offset));
    let address = |offset| u32::from_ne_bytes(at(&frame, offset));

    // Type, and four bytes that were reserved.
    let [_, code, c0, c1, ..] = ns;
    let first_old = u32::from_ne_bytes([NEIGHBOUR_SOLICITATION, code, 0, 0]);
    let first_new = u32::from_ne_bytes([NEIGHBOUR_ADVERTISEMENT, code, 0, 0]);
    let mut checksum = Update::of([c0, c1])
        .replace(first_old, first_new)
        .replace(word(4), u32::from_ne_bytes(ADVERTISEMENT_FLAGS));
    // The pseudo header loses the old target (a multicast address) and gains the new source; the
    // old source, now the target, it keeps.
    for (i, new) in solicitation.target.iter().enumerate() {
        checksum = checksum.replace(address(eth::LEN + 24 + 4 * i), *new);
    }

    if let Some(option) = packet.load::<8>(OPTION_OFFSET)
        && at::<2>(&option, 0) == SOURCE_LINK_ADDRESS
    {
        let mut new = [0; 8];
        new[..2].copy_from_slice(&TARGET_LINK_ADDRESS);
        new[2..].copy_from_slice(&mac[..6]);
        checksum = checksum
            .replace(u32::from_ne_bytes(at(&option, 0)), u32::from_ne_bytes(at(&new, 0)))
            .replace(u32::from_ne_bytes(at(&option, 4)), u32::from_ne_bytes(at(&new, 4)));
        packet.store(OPTION_OFFSET, new)?;
    }

    let [k0, k1] = checksum.finish();
    let [f0, f1, f2, f3] = ADVERTISEMENT_FLAGS;
    packet.store(OFFSET, [NEIGHBOUR_ADVERTISEMENT, code, k0, k1, f0, f1, f2, f3])?;
    let mut addresses = [0; 32];
    addresses[..16].copy_from_slice(&ns[8..24]);
    addresses[16..].copy_from_slice(&frame[eth::LEN + 8..eth::LEN + 24]);
    packet.store(eth::LEN + 8, addresses)?;
    let [.., s0, s1, s2, s3, s4, s5] = at::<12>(&frame, 0);
    eth::set_addresses(packet, [s0, s1, s2, s3, s4, s5, 0, 0], mac)
}
