//! Netlink messages as bytes: headers, attributes, and the kernel's answers.
//!
//! Only what rtnetlink needs of the protocol (`include/uapi/linux/netlink.h`): a message is a
//! header, a family header, and attributes padded to four bytes; attributes nest.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// `struct nlmsghdr`.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct MessageHeader {
    pub len: u32,
    pub kind: u16,
    pub flags: u16,
    pub seq: u32,
    pub pid: u32,
}

/// `struct ifinfomsg`: the family header of links.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct LinkHeader {
    pub family: u8,
    pub pad: u8,
    pub hardware_type: u16,
    pub index: u32,
    pub flags: u32,
    pub change: u32,
}

/// `struct ifaddrmsg`: the family header of addresses.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct AddressHeader {
    pub family: u8,
    pub prefix_len: u8,
    pub flags: u8,
    pub scope: u8,
    pub index: u32,
}

/// `struct rtmsg`: the family header of routes.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct RouteHeader {
    pub family: u8,
    pub dst_len: u8,
    pub src_len: u8,
    pub tos: u8,
    pub table: u8,
    pub protocol: u8,
    pub scope: u8,
    pub kind: u8,
    pub flags: u32,
}

/// `struct ndmsg`: the family header of neighbours.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct NeighbourHeader {
    pub family: u8,
    pub pad1: u8,
    pub pad2: u16,
    pub index: u32,
    pub state: u16,
    pub flags: u8,
    pub kind: u8,
}

/// `struct tcmsg`: the family header of queueing disciplines and filters.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct TrafficHeader {
    pub family: u8,
    pub pad1: u8,
    pub pad2: u16,
    pub index: u32,
    pub handle: u32,
    pub parent: u32,
    pub info: u32,
}

const HEADER_LEN: usize = size_of::<MessageHeader>();
/// Bit of an attribute's type that says that it holds attributes.
const NESTED: u16 = libc::NLA_F_NESTED as u16;
const TYPE_MASK: u16 = libc::NLA_TYPE_MASK as u16;

const fn aligned(len: usize) -> usize {
    len.next_multiple_of(4)
}

/// A request under construction.
pub(super) struct Request {
    buf: Vec<u8>,
}

impl Request {
    /// A request of message type `kind`; `flags` beside NLM_F_REQUEST.
    pub(super) fn new(kind: u16, flags: i32, header: &(impl IntoBytes + Immutable)) -> Self {
        let mut buf = Vec::with_capacity(256);
        let flags = (flags | libc::NLM_F_REQUEST) as u16;
        buf.extend_from_slice(MessageHeader { len: 0, kind, flags, seq: 0, pid: 0 }.as_bytes());
        buf.extend_from_slice(header.as_bytes());
        Self { buf }
    }

    /// Adds to the flags of the message's header.
    pub(super) fn add_flags(&mut self, flags: i32) {
        let old = u16::from_ne_bytes([self.buf[6], self.buf[7]]);
        self.buf[6..8].copy_from_slice(&(old | flags as u16).to_ne_bytes());
    }

    /// Appends bytes that are not an attribute: the family header inside a nested message.
    pub(super) fn raw(&mut self, bytes: &[u8]) {
        self.buf.extend_from_slice(bytes);
        self.pad();
    }

    pub(super) fn attr(&mut self, kind: u16, value: &[u8]) {
        let len = (4 + value.len()) as u16;
        self.buf.extend_from_slice(&len.to_ne_bytes());
        self.buf.extend_from_slice(&kind.to_ne_bytes());
        self.buf.extend_from_slice(value);
        self.pad();
    }

    pub(super) fn attr_u32(&mut self, kind: u16, value: u32) {
        self.attr(kind, &value.to_ne_bytes());
    }

    /// A string attribute, with its terminating zero.
    pub(super) fn attr_str(&mut self, kind: u16, value: &str) {
        let mut bytes = Vec::with_capacity(value.len() + 1);
        bytes.extend_from_slice(value.as_bytes());
        bytes.push(0);
        self.attr(kind, &bytes);
    }

    /// An attribute that holds what `fill` appends.
    pub(super) fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) {
        let start = self.buf.len();
        self.attr(kind | NESTED, &[]);
        fill(self);
        let len = (self.buf.len() - start) as u16;
        self.buf[start..start + 2].copy_from_slice(&len.to_ne_bytes());
    }

    /// The finished message, under sequence number `seq`.
    pub(super) fn finish(&mut self, seq: u32) -> &[u8] {
        let len = self.buf.len() as u32;
        self.buf[..4].copy_from_slice(&len.to_ne_bytes());
        self.buf[8..12].copy_from_slice(&seq.to_ne_bytes());
        &self.buf
    }

    fn pad(&mut self) {
        self.buf.resize(aligned(self.buf.len()), 0);
    }
}

/// The messages of one datagram.
pub(super) struct Messages<'a>(pub(super) &'a [u8]);

impl<'a> Iterator for Messages<'a> {
    type Item = (MessageHeader, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let (header, _) = MessageHeader::read_from_prefix(self.0).ok()?;
        let len = header.len as usize;
        let payload = self.0.get(HEADER_LEN..len)?;
        self.0 = self.0.get(aligned(len)..).unwrap_or_default();
        Some((header, payload))
    }
}

/// The attributes in a payload, types without their flag bits. Stops at the first broken one.
pub(super) struct Attrs<'a>(pub(super) &'a [u8]);

impl<'a> Attrs<'a> {
    /// Splits a payload in its family header and its attributes.
    pub(super) fn after<H: FromBytes>(payload: &'a [u8]) -> Option<(H, Self)> {
        let header = H::read_from_prefix(payload).ok()?.0;
        Some((header, Self(payload.get(aligned(size_of::<H>())..).unwrap_or_default())))
    }
}

impl<'a> Iterator for Attrs<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let (head, _) = <[u16; 2]>::read_from_prefix(self.0).ok()?;
        let [len, kind] = head;
        let value = self.0.get(4..usize::from(len))?;
        self.0 = self.0.get(aligned(usize::from(len))..).unwrap_or_default();
        Some((kind & TYPE_MASK, value))
    }
}

/// The value of an attribute that is a plain integer or struct.
pub(super) fn value<T: FromBytes>(bytes: &[u8]) -> Option<T> {
    Some(T::read_from_prefix(bytes).ok()?.0)
}

/// The value of an attribute that is a string, with or without terminating zero.
pub(super) fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_nest_and_pad() {
        let mut request = Request::new(16, 0, &LinkHeader::default());
        request.attr_str(3, "eth0");
        request.nest(18, |info| {
            info.attr_str(1, "veth");
            info.nest(2, |data| data.attr_u32(1, 7));
        });
        let bytes = request.finish(9).to_vec();
        let (header, payload) = Messages(&bytes).next().expect("a message");
        assert_eq!((header.kind, header.seq, header.len as usize), (16, 9, bytes.len()));
        let (_, attrs) = Attrs::after::<LinkHeader>(payload).expect("attributes");
        let attrs: Vec<_> = attrs.collect();
        assert_eq!(text(attrs[0].1), "eth0");
        assert_eq!(attrs[1].0, 18);
        let info: Vec<_> = Attrs(attrs[1].1).collect();
        assert_eq!(text(info[0].1), "veth");
        let data: Vec<_> = Attrs(info[1].1).collect();
        assert_eq!(value::<u32>(data[0].1), Some(7));
    }

    #[test]
    fn broken_lengths_end_the_walk() {
        assert_eq!(Attrs(&[3, 0, 1, 0]).count(), 0);
        assert_eq!(Attrs(&[9, 0, 1, 0, 1, 2]).count(), 0);
        assert_eq!(Messages(&[200, 0, 0, 0, 16, 0, 0, 0]).count(), 0);
    }
}
