//! Addresses of links, and neighbours.

use std::net::IpAddr;

use ipnet::IpNet;

use super::{
    Mac, Netlink, NetlinkError,
    wire::{self, AddressHeader, Attrs, NeighbourHeader, Request},
};

const IFA_FLAGS: u16 = 8;
const NDA_DST: u16 = 1;
const NDA_LLADDR: u16 = 2;
const NUD_PERMANENT: u16 = 0x80;
const NUD_NOARP: u16 = 0x40;

/// How an address is added.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AddressFlags {
    /// Without duplicate address detection: usable at once, not after a second.
    pub nodad: bool,
    /// Without the route to its prefix.
    pub noprefixroute: bool,
}

/// An address of a link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// The link.
    pub index: u32,
    /// The address with the length of its prefix.
    pub net: IpNet,
    /// Still subject to duplicate address detection, so not usable.
    pub tentative: bool,
    /// Valid on the link only (`fe80::/10`), or on the host only.
    pub scope: u8,
}

/// Who is behind an address on a link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Neighbour {
    /// The link.
    pub index: u32,
    /// The neighbour's address.
    pub address: IpAddr,
    /// Its Ethernet address, where known.
    pub mac: Option<Mac>,
    /// Set by hand: never expires.
    pub permanent: bool,
}

impl Netlink {
    /// The addresses of a link, or with `None` of all links.
    pub fn addresses(&self, index: Option<u32>) -> Result<Vec<Address>, NetlinkError> {
        let header = AddressHeader { index: index.unwrap_or(0), ..AddressHeader::default() };
        let request = Request::new(libc::RTM_GETADDR, 0, &header);
        let rows = self.dump(request, format_args!("list addresses"), parse_address)?;
        Ok(rows.into_iter().filter(|row| index.is_none_or(|index| row.index == index)).collect())
    }

    /// Adds an address to a link.
    pub fn add_address(
        &self,
        index: u32,
        net: IpNet,
        flags: AddressFlags,
    ) -> Result<(), NetlinkError> {
        let create = libc::NLM_F_CREATE | libc::NLM_F_EXCL;
        let mut request = address_request(libc::RTM_NEWADDR, create, index, net);
        let mut bits = 0;
        if flags.nodad {
            bits |= libc::IFA_F_NODAD;
        }
        if flags.noprefixroute {
            bits |= libc::IFA_F_NOPREFIXROUTE;
        }
        request.attr_u32(IFA_FLAGS, bits);
        self.apply(request, format_args!("add address {net} to link {index}"))
    }

    /// Takes an address from a link.
    pub fn delete_address(&self, index: u32, net: IpNet) -> Result<(), NetlinkError> {
        let request = address_request(libc::RTM_DELADDR, 0, index, net);
        self.apply(request, format_args!("delete address {net} of link {index}"))
    }

    /// Every neighbour of every link, both families.
    pub fn neighbours(&self) -> Result<Vec<Neighbour>, NetlinkError> {
        let request = Request::new(libc::RTM_GETNEIGH, 0, &NeighbourHeader::default());
        self.dump(request, format_args!("list neighbours"), parse_neighbour)
    }

    /// Says for good who is behind an address on a link.
    pub fn set_neighbour(&self, index: u32, address: IpAddr, mac: Mac) -> Result<(), NetlinkError> {
        let replace = libc::NLM_F_CREATE | libc::NLM_F_REPLACE;
        let header = NeighbourHeader {
            family: family(address),
            index,
            state: NUD_PERMANENT,
            ..NeighbourHeader::default()
        };
        let mut request = Request::new(libc::RTM_NEWNEIGH, replace, &header);
        request.attr(NDA_DST, &octets(address));
        request.attr(NDA_LLADDR, &mac.0);
        self.apply(request, format_args!("set neighbour {address} of link {index} to {mac}"))
    }

    /// Forgets who is behind an address on a link.
    pub fn delete_neighbour(&self, index: u32, address: IpAddr) -> Result<(), NetlinkError> {
        let header =
            NeighbourHeader { family: family(address), index, ..NeighbourHeader::default() };
        let mut request = Request::new(libc::RTM_DELNEIGH, 0, &header);
        request.attr(NDA_DST, &octets(address));
        self.apply(request, format_args!("delete neighbour {address} of link {index}"))
    }
}

pub(super) const fn family(address: IpAddr) -> u8 {
    match address {
        IpAddr::V4(_) => libc::AF_INET as u8,
        IpAddr::V6(_) => libc::AF_INET6 as u8,
    }
}

pub(super) fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

pub(super) fn address_from(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => wire::value::<[u8; 4]>(bytes).map(IpAddr::from),
        16 => wire::value::<[u8; 16]>(bytes).map(IpAddr::from),
        _ => None,
    }
}

fn address_request(kind: u16, flags: i32, index: u32, net: IpNet) -> Request {
    let header = AddressHeader {
        family: family(net.addr()),
        prefix_len: net.prefix_len(),
        index,
        ..AddressHeader::default()
    };
    let mut request = Request::new(kind, flags, &header);
    request.attr(libc::IFA_LOCAL, &octets(net.addr()));
    request.attr(libc::IFA_ADDRESS, &octets(net.addr()));
    request
}

fn parse_address(payload: &[u8]) -> Option<Address> {
    let (header, attrs) = Attrs::after::<AddressHeader>(payload)?;
    let mut local = None;
    let mut address = None;
    let mut flags = u32::from(header.flags);
    for (kind, bytes) in attrs {
        match kind {
            libc::IFA_LOCAL => local = address_from(bytes),
            libc::IFA_ADDRESS => address = address_from(bytes),
            IFA_FLAGS => flags = wire::value(bytes)?,
            _ => {}
        }
    }
    // On point-to-point links IFA_ADDRESS is the other end; IPv6 has no IFA_LOCAL otherwise.
    let net = IpNet::new(local.or(address)?, header.prefix_len).ok()?;
    let tentative = flags & libc::IFA_F_TENTATIVE != 0;
    Some(Address { index: header.index, net, tentative, scope: header.scope })
}

fn parse_neighbour(payload: &[u8]) -> Option<Neighbour> {
    let (header, attrs) = Attrs::after::<NeighbourHeader>(payload)?;
    // Not neighbours but addresses the device answers itself, such as multicast.
    if header.state & NUD_NOARP != 0 {
        return None;
    }
    let mut address = None;
    let mut mac = None;
    for (kind, bytes) in attrs {
        match kind {
            NDA_DST => address = address_from(bytes),
            NDA_LLADDR => mac = wire::value(bytes).map(Mac),
            _ => {}
        }
    }
    let permanent = header.state & NUD_PERMANENT != 0;
    Some(Neighbour { index: header.index, address: address?, mac, permanent })
}
