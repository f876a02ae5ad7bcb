//! Headers as they lie in a packet. One shape per file: offsets and sizes, reading into values,
//! building from values; no decisions.

pub mod arp;
pub mod checksum;
pub mod eth;
pub mod icmp;
pub mod icmp6;
pub mod ipv4;
pub mod ipv6;
pub mod tcp;
pub mod udp;

/// The `N` bytes at `offset` of `bytes`, which must have them: a constant of the caller.
#[inline(always)]
pub(crate) fn at<const N: usize>(bytes: &[u8], offset: usize) -> [u8; N] {
    let mut part = [0; N];
    part.copy_from_slice(&bytes[offset..offset + N]);
    part
}
