//! IPv6 (RFC 8200).

/// Bytes of the header.
pub const LEN: usize = 40;
/// Offset of the four bytes payload length, next header and hop limit.
pub const HOP_LIMIT_OFFSET: usize = 4;
/// Next header: hop-by-hop options.
pub const HOP_BY_HOP: u8 = 0;
/// Next header: ICMPv6.
pub const ICMP6: u8 = 58;
