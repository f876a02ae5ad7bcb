//! ARP for IPv4 over Ethernet (RFC 826).

use super::{at, eth};
use crate::packet::Packet;

/// Bytes of the header after the Ethernet header.
pub const LEN: usize = 28;

/// Ethernet, IPv4, six and four bytes, request.
const REQUEST: [u8; 8] = [0, 1, 8, 0, 6, 4, 0, 1];
/// The same, reply.
const REPLY: [u8; 8] = [0, 1, 8, 0, 6, 4, 0, 2];

/// A request: who has `target`? Tell `sender`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// MAC address of who asks.
    pub sender_mac: [u8; 6],
    /// Address of who asks, in network byte order; zero in a probe (RFC 5227).
    pub sender: [u8; 4],
    /// Address asked for.
    pub target: [u8; 4],
}

/// The request in an ARP frame; `None` when it is something else.
pub fn request(packet: &impl Packet) -> Option<Request> {
    let bytes: [u8; LEN] = packet.load(eth::LEN)?;
    if at::<8>(&bytes, 0) != REQUEST {
        return None;
    }
    Some(Request { sender_mac: at(&bytes, 8), sender: at(&bytes, 14), target: at(&bytes, 24) })
}

/// Turns the frame of `request` into the answer that its target is at `mac` (first six bytes).
pub fn answer(packet: &mut impl Packet, request: &Request, mac: [u8; 8]) -> Option<()> {
    let mut bytes = [0; LEN];
    bytes[..8].copy_from_slice(&REPLY);
    bytes[8..14].copy_from_slice(&mac[..6]);
    bytes[14..18].copy_from_slice(&request.target);
    bytes[18..24].copy_from_slice(&request.sender_mac);
    bytes[24..28].copy_from_slice(&request.sender);
    packet.store(eth::LEN, bytes)?;
    let [m0, m1, m2, m3, m4, m5] = request.sender_mac;
    eth::set_addresses(packet, [m0, m1, m2, m3, m4, m5, 0, 0], mac)
}
