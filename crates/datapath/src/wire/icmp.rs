//! What ICMP (RFC 792) and ICMPv6 (RFC 4443) have in common, and what their messages are for.

/// Protocol number of ICMP; ICMPv6 has [`super::ipv6::ICMP6`].
pub const PROTOCOL: u8 = 1;
/// Bytes of the header: type, code, checksum, and four bytes that depend on the type.
pub const LEN: usize = 8;
/// ICMP: answer to an echo request.
pub const ECHO_REPLY: u8 = 0;
/// ICMP: what could not be delivered.
pub const UNREACHABLE: u8 = 3;
/// Code of [`UNREACHABLE`]: the packet is too big for a link.
pub const FRAGMENTATION_NEEDED: u8 = 4;
/// ICMP: echo request.
pub const ECHO_REQUEST: u8 = 8;
/// ICMP: the hop limit ended.
pub const TIME_EXCEEDED: u8 = 11;
/// ICMP: a header that nobody understands.
pub const PARAMETER_PROBLEM: u8 = 12;
/// ICMPv6: last of the errors, which begin at 1: unreachable, too big, time exceeded, parameter.
pub const V6_ERROR_LAST: u8 = 4;
/// ICMPv6: the packet is too big for a link.
pub const V6_TOO_BIG: u8 = 2;
/// ICMPv6: echo request.
pub const V6_ECHO_REQUEST: u8 = 128;
/// ICMPv6: answer to an echo request.
pub const V6_ECHO_REPLY: u8 = 129;

/// What a message is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Purpose {
    /// Asks for an echo.
    EchoRequest,
    /// Is the echo.
    EchoReply,
    /// Tells what became of the packet that it carries.
    Error,
    /// The same, of a packet that was too big: without it nothing bigger gets through.
    TooBig,
    /// Speaks to neighbours on the link.
    Neighbours,
    /// Anything else.
    Other,
}
