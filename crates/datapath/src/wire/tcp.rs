//! TCP (RFC 9293).

/// Protocol number.
pub const PROTOCOL: u8 = 6;
/// Bytes of the header that hold ports, numbers and flags.
pub const LEN: usize = 14;

/// Flag: no more data from the sender.
pub const FIN: u8 = 1;
/// Flag: numbers are synchronised.
pub const SYN: u8 = 2;
/// Flag: the connection is over.
pub const RST: u8 = 4;
/// Flag: the acknowledgement counts.
pub const ACK: u8 = 16;
