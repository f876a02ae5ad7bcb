//! IPv6 (RFC 8200).

/// Bytes of the header.
pub const LEN: usize = 40;
/// Offset of the four bytes payload length, next header and hop limit.
pub const HOP_LIMIT_OFFSET: usize = 4;
/// Next header: hop-by-hop options.
pub const HOP_BY_HOP: u8 = 0;
/// Next header: routing.
pub const ROUTING: u8 = 43;
/// Next header: fragment.
pub const FRAGMENT: u8 = 44;
/// Next header: authentication (RFC 4302), whose length counts in words.
pub const AUTHENTICATION: u8 = 51;
/// Next header: options for the target.
pub const TARGET_OPTIONS: u8 = 60;
/// Next header: mobility (RFC 6275).
pub const MOBILITY: u8 = 135;
/// Extension headers that we follow; a longer chain is refused.
pub const EXTENSION_HEADERS_MAX: usize = 6;
/// Bytes of headers behind which we follow no chain.
pub const CHAIN_LEN_MAX: usize = 1010;
/// Bits of the fragment header's word that hold the offset.
pub const FRAGMENT_OFFSET_MASK: u16 = 0xfff8;
/// Bit of the fragment header's word: this is not the last one.
pub const MORE_FRAGMENTS: u16 = 1;
/// Next header: ICMPv6.
pub const ICMP6: u8 = 58;
