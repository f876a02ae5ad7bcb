//! Links: veth pairs, the tunnel device, bridges.

use std::{
    fmt,
    os::fd::{AsRawFd, BorrowedFd},
    str::FromStr,
};

use super::{
    Netlink, NetlinkError,
    wire::{self, Attrs, LinkHeader, Request},
};

const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const VETH_INFO_PEER: u16 = 1;
const IFLA_VXLAN_LEARNING: u16 = 7;
const IFLA_VXLAN_PORT: u16 = 15;
const IFLA_VXLAN_UDP_ZERO_CSUM6_RX: u16 = 20;
const IFLA_VXLAN_COLLECT_METADATA: u16 = 25;
const IFLA_INET6_ADDR_GEN_MODE: u16 = 8;
const IN6_ADDR_GEN_MODE_NONE: u8 = 1;
/// Statistics are most of a link's description, and nobody here reads them.
const RTEXT_FILTER_SKIP_STATS: u32 = 1 << 3;
const UP: u32 = libc::IFF_UP as u32;

/// An Ethernet address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// The first six of eight bytes are the address: how map values hold it.
    pub const fn padded(self) -> [u8; 8] {
        let [a, b, c, d, e, f] = self.0;
        [a, b, c, d, e, f, 0, 0]
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// The text is not an Ethernet address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a MAC address: six hexadecimal bytes joined by colons are expected")]
pub struct MacError;

impl FromStr for Mac {
    type Err = MacError;

    fn from_str(text: &str) -> Result<Self, MacError> {
        let mut mac = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut mac {
            let part = parts.next().filter(|part| part.len() == 2).ok_or(MacError)?;
            *byte = u8::from_str_radix(part, 16).ok().ok_or(MacError)?;
        }
        if parts.next().is_some() { Err(MacError) } else { Ok(Self(mac)) }
    }
}

/// A network device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Link {
    /// Number in its network namespace.
    pub index: u32,
    /// Name.
    pub name: String,
    /// `veth`, `vxlan`, `bridge`, ...; empty for hardware and loopback.
    pub kind: String,
    /// Largest packet.
    pub mtu: u32,
    /// Ethernet address; zero where there is none.
    pub mac: Mac,
    /// Administratively up.
    pub up: bool,
    /// The bridge (or other master) it belongs to.
    pub master: Option<u32>,
    /// The other end of a veth pair; an index in the other end's namespace.
    pub peer_index: Option<u32>,
    /// The id of the other end's namespace, where that is another one.
    pub peer_netnsid: Option<i32>,
    /// Whether it is the loopback device.
    pub loopback: bool,
}

/// A veth pair to create.
#[derive(Clone, Copy, Debug, Default)]
pub struct VethSpec<'a> {
    /// Name of the end in the socket's namespace.
    pub name: &'a str,
    /// Name of the other end.
    pub peer_name: &'a str,
    /// Namespace of the other end; the socket's own by default. Creating it there takes a
    /// millisecond, moving it there later waits for an RCU grace period.
    pub peer_netns: Option<BorrowedFd<'a>>,
    /// Largest packet, both ends.
    pub mtu: Option<u32>,
    /// Ethernet address; random by default.
    pub mac: Option<Mac>,
    /// Ethernet address of the other end; random by default.
    pub peer_mac: Option<Mac>,
    /// Set this end up at once. The other end cannot be before the pair exists.
    pub up: bool,
}

/// A VXLAN device to create.
#[derive(Clone, Copy, Debug)]
pub struct VxlanSpec<'a> {
    /// Name.
    pub name: &'a str,
    /// UDP port.
    pub port: u16,
    /// Metadata mode: BPF programs choose remote and VNI per packet.
    pub external: bool,
    /// Largest packet inside the tunnel.
    pub mtu: Option<u32>,
    /// Ethernet address; random by default.
    pub mac: Option<Mac>,
}

impl Netlink {
    /// Every link of the namespace.
    pub fn links(&self) -> Result<Vec<Link>, NetlinkError> {
        let mut request = Request::new(libc::RTM_GETLINK, 0, &LinkHeader::default());
        request.attr_u32(libc::IFLA_EXT_MASK, RTEXT_FILTER_SKIP_STATS);
        self.dump(request, format_args!("list links"), parse_link)
    }

    /// The link with this name.
    pub fn link_by_name(&self, name: &str) -> Result<Link, NetlinkError> {
        let mut request = Request::new(libc::RTM_GETLINK, 0, &LinkHeader::default());
        request.attr_u32(libc::IFLA_EXT_MASK, RTEXT_FILTER_SKIP_STATS);
        request.attr_str(libc::IFLA_IFNAME, name);
        self.find(request, format_args!("find link {name}"), parse_link)
    }

    /// The link with this index.
    pub fn link_by_index(&self, index: u32) -> Result<Link, NetlinkError> {
        let mut request = Request::new(libc::RTM_GETLINK, 0, &link_header(index));
        request.attr_u32(libc::IFLA_EXT_MASK, RTEXT_FILTER_SKIP_STATS);
        self.find(request, format_args!("find link with index {index}"), parse_link)
    }

    /// Creates a veth pair and returns the end in this namespace.
    pub fn create_veth(&self, spec: &VethSpec<'_>) -> Result<Link, NetlinkError> {
        let flags = if spec.up { UP } else { 0 };
        let header = LinkHeader { flags, change: flags, ..LinkHeader::default() };
        let mut request = Request::new(libc::RTM_NEWLINK, CREATE, &header);
        request.attr_str(libc::IFLA_IFNAME, spec.name);
        common_attrs(&mut request, spec.mtu, spec.mac);
        request.nest(libc::IFLA_LINKINFO, |info| {
            info.attr_str(IFLA_INFO_KIND, "veth");
            info.nest(IFLA_INFO_DATA, |data| {
                data.nest(VETH_INFO_PEER, |peer| {
                    peer.raw(zerocopy::IntoBytes::as_bytes(&LinkHeader::default()));
                    peer.attr_str(libc::IFLA_IFNAME, spec.peer_name);
                    common_attrs(peer, spec.mtu, spec.peer_mac);
                    if let Some(netns) = spec.peer_netns {
                        peer.attr_u32(libc::IFLA_NET_NS_FD, netns.as_raw_fd() as u32);
                    }
                });
            });
        });
        self.apply(request, format_args!("create veth {} (peer {})", spec.name, spec.peer_name))?;
        self.link_by_name(spec.name)
    }

    /// Creates a VXLAN device.
    pub fn create_vxlan(&self, spec: &VxlanSpec<'_>) -> Result<Link, NetlinkError> {
        let mut request = Request::new(libc::RTM_NEWLINK, CREATE, &LinkHeader::default());
        request.attr_str(libc::IFLA_IFNAME, spec.name);
        common_attrs(&mut request, spec.mtu, spec.mac);
        request.nest(libc::IFLA_LINKINFO, |info| {
            info.attr_str(IFLA_INFO_KIND, "vxlan");
            info.nest(IFLA_INFO_DATA, |data| {
                data.attr(IFLA_VXLAN_PORT, &spec.port.to_be_bytes());
                data.attr(IFLA_VXLAN_LEARNING, &[0]);
                // The checksum of the outer UDP header says nothing that the inner ones do not
                // say; senders leave it out over IPv4 and may over IPv6 (RFC 6935 section 5).
                data.attr(IFLA_VXLAN_UDP_ZERO_CSUM6_RX, &[1]);
                if spec.external {
                    data.attr(IFLA_VXLAN_COLLECT_METADATA, &[1]);
                }
            });
        });
        self.apply(request, format_args!("create vxlan {} on port {}", spec.name, spec.port))?;
        self.link_by_name(spec.name)
    }

    /// Creates a bridge.
    pub fn create_bridge(&self, name: &str) -> Result<Link, NetlinkError> {
        let mut request = Request::new(libc::RTM_NEWLINK, CREATE, &LinkHeader::default());
        request.attr_str(libc::IFLA_IFNAME, name);
        request.nest(libc::IFLA_LINKINFO, |info| info.attr_str(IFLA_INFO_KIND, "bridge"));
        self.apply(request, format_args!("create bridge {name}"))?;
        self.link_by_name(name)
    }

    /// Makes a link a port of the bridge `master`, or of none.
    pub fn set_master(&self, index: u32, master: Option<u32>) -> Result<(), NetlinkError> {
        let mut request = Request::new(libc::RTM_NEWLINK, 0, &link_header(index));
        request.attr_u32(libc::IFLA_MASTER, master.unwrap_or(0));
        self.apply(request, format_args!("set the master of link {index} to {master:?}"))
    }

    /// Sets a link up.
    pub fn set_up(&self, index: u32) -> Result<(), NetlinkError> {
        let header = LinkHeader { index, flags: UP, change: UP, ..LinkHeader::default() };
        let request = Request::new(libc::RTM_NEWLINK, 0, &header);
        self.apply(request, format_args!("set link {index} up"))
    }

    /// Sets a link down.
    pub fn set_down(&self, index: u32) -> Result<(), NetlinkError> {
        let header = LinkHeader { index, flags: 0, change: UP, ..LinkHeader::default() };
        let request = Request::new(libc::RTM_NEWLINK, 0, &header);
        self.apply(request, format_args!("set link {index} down"))
    }

    /// Sets the largest packet of a link.
    pub fn set_mtu(&self, index: u32, mtu: u32) -> Result<(), NetlinkError> {
        let mut request = Request::new(libc::RTM_NEWLINK, 0, &link_header(index));
        request.attr_u32(libc::IFLA_MTU, mtu);
        self.apply(request, format_args!("set the MTU of link {index} to {mtu}"))
    }

    /// Renames a link. Older kernels want it down for that.
    pub fn set_name(&self, index: u32, name: &str) -> Result<(), NetlinkError> {
        let mut request = Request::new(libc::RTM_NEWLINK, 0, &link_header(index));
        request.attr_str(libc::IFLA_IFNAME, name);
        self.apply(request, format_args!("rename link {index} to {name}"))
    }

    /// Sets the Ethernet address of a link.
    pub fn set_mac(&self, index: u32, mac: Mac) -> Result<(), NetlinkError> {
        let mut request = Request::new(libc::RTM_NEWLINK, 0, &link_header(index));
        request.attr(libc::IFLA_ADDRESS, &mac.0);
        self.apply(request, format_args!("set the MAC address of link {index} to {mac}"))
    }

    /// Keeps the kernel from giving a link an IPv6 link-local address when it comes up: a device
    /// that never speaks for itself then sends no neighbour discovery of its own.
    pub fn set_no_link_local(&self, index: u32) -> Result<(), NetlinkError> {
        let mut request = Request::new(libc::RTM_NEWLINK, 0, &link_header(index));
        request.nest(libc::IFLA_AF_SPEC, |families| {
            families.nest(libc::AF_INET6 as u16, |inet6| {
                inet6.attr(IFLA_INET6_ADDR_GEN_MODE, &[IN6_ADDR_GEN_MODE_NONE]);
            });
        });
        self.apply(request, format_args!("switch link-local addresses of link {index} off"))
    }

    /// Makes a link one on which nobody is asked for: the kernel sends no ARP request and no
    /// neighbour solicitation by it, and takes its own Ethernet address as everyone's.
    pub fn set_no_arp(&self, index: u32) -> Result<(), NetlinkError> {
        const NO_ARP: u32 = libc::IFF_NOARP as u32;
        let header = LinkHeader { index, flags: NO_ARP, change: NO_ARP, ..LinkHeader::default() };
        let request = Request::new(libc::RTM_NEWLINK, 0, &header);
        self.apply(request, format_args!("switch neighbour discovery of link {index} off"))
    }

    /// Deletes a link; of a veth pair both ends.
    pub fn delete_link(&self, index: u32) -> Result<(), NetlinkError> {
        let request = Request::new(libc::RTM_DELLINK, 0, &link_header(index));
        self.apply(request, format_args!("delete link {index}"))
    }

    /// Moves a link to another namespace. It may get another index there.
    pub fn move_to_netns(&self, index: u32, netns: BorrowedFd<'_>) -> Result<(), NetlinkError> {
        let mut request = Request::new(libc::RTM_NEWLINK, 0, &link_header(index));
        request.attr_u32(libc::IFLA_NET_NS_FD, netns.as_raw_fd() as u32);
        self.apply(request, format_args!("move link {index} to another network namespace"))
    }
}

const CREATE: i32 = libc::NLM_F_CREATE | libc::NLM_F_EXCL;

fn link_header(index: u32) -> LinkHeader {
    LinkHeader { index, ..LinkHeader::default() }
}

fn common_attrs(request: &mut Request, mtu: Option<u32>, mac: Option<Mac>) {
    if let Some(mtu) = mtu {
        request.attr_u32(libc::IFLA_MTU, mtu);
    }
    if let Some(mac) = mac {
        request.attr(libc::IFLA_ADDRESS, &mac.0);
    }
}

fn parse_link(payload: &[u8]) -> Option<Link> {
    let (header, attrs) = Attrs::after::<LinkHeader>(payload)?;
    let mut link = Link {
        index: header.index,
        up: header.flags & UP != 0,
        loopback: header.flags & libc::IFF_LOOPBACK as u32 != 0,
        ..Link::default()
    };
    for (kind, bytes) in attrs {
        match kind {
            libc::IFLA_IFNAME => link.name = wire::text(bytes),
            libc::IFLA_MTU => link.mtu = wire::value(bytes)?,
            libc::IFLA_ADDRESS => link.mac = wire::value(bytes).map(Mac).unwrap_or_default(),
            libc::IFLA_MASTER => link.master = wire::value(bytes),
            libc::IFLA_LINK => link.peer_index = wire::value(bytes),
            libc::IFLA_LINK_NETNSID => link.peer_netnsid = wire::value(bytes),
            libc::IFLA_LINKINFO => {
                let mut info = Attrs(bytes);
                let kind = info.find(|(kind, _)| *kind == IFLA_INFO_KIND);
                link.kind = kind.map(|(_, text)| wire::text(text)).unwrap_or_default();
            }
            _ => {}
        }
    }
    Some(link)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mac_addresses_are_read_and_written() {
        let mac: Mac = "02:00:5e:10:aB:ff".parse().expect("a MAC address");
        assert_eq!(mac.to_string(), "02:00:5e:10:ab:ff");
        assert_eq!(mac.padded(), [2, 0, 0x5e, 0x10, 0xab, 0xff, 0, 0]);
        for wrong in ["", "02:00:5e:10:ab", "02:00:5e:10:ab:ff:00", "2:0:5e:10:ab:ff", "zz:0"] {
            assert_eq!(wrong.parse::<Mac>(), Err(MacError), "{wrong}");
        }
    }
}
