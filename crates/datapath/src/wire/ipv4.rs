//! IPv4 (RFC 791).

/// Bytes of the header without options.
pub const LEN: usize = 20;
/// Offset of the four bytes TTL, protocol and checksum.
pub const TTL_OFFSET: usize = 8;
/// Bits of the fragment word that hold the offset.
pub const FRAGMENT_OFFSET_MASK: u16 = 0x1fff;
/// Bit of the fragment word: this is not the last one.
pub const MORE_FRAGMENTS: u16 = 0x2000;
/// Protocol number of IGMP.
pub const IGMP: u8 = 2;
