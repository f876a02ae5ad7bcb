//! IPv4 (RFC 791).

/// Bytes of the header without options.
pub const LEN: usize = 20;
/// Offset of the four bytes TTL, protocol and checksum.
pub const TTL_OFFSET: usize = 8;
/// Protocol number of IGMP.
pub const IGMP: u8 = 2;
