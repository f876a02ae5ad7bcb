//! Routes.

use std::net::IpAddr;

use ipnet::IpNet;

use super::{
    Netlink, NetlinkError,
    address::{address_from, family, octets},
    wire::{self, Attrs, Request, RouteHeader},
};

/// The table that routes are in unless they say otherwise.
pub const TABLE_MAIN: u32 = libc::RT_TABLE_MAIN as u32;
/// The table of the host's own addresses.
pub const TABLE_LOCAL: u32 = libc::RT_TABLE_LOCAL as u32;

const RTAX_MTU: u16 = 2;
const RTNH_F_ONLINK: u32 = 4;

/// How far away a destination is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum RouteScope {
    /// Behind a gateway.
    #[default]
    Global = libc::RT_SCOPE_UNIVERSE,
    /// On the link.
    Link = libc::RT_SCOPE_LINK,
    /// On this host.
    Host = libc::RT_SCOPE_HOST,
}

/// What a route does with a packet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum RouteKind {
    /// Forwards it.
    #[default]
    Unicast = libc::RTN_UNICAST,
    /// Delivers it to this host.
    Local = libc::RTN_LOCAL,
    /// Drops it.
    Blackhole = libc::RTN_BLACKHOLE,
    /// Refuses it.
    Unreachable = libc::RTN_UNREACHABLE,
}

/// A route. Make one with [`Route::new`] and set what differs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// Destination prefix; its address is the network address.
    pub dst: IpNet,
    /// Next hop, of the same family.
    pub gateway: Option<IpAddr>,
    /// Device the packet leaves by.
    pub oif: Option<u32>,
    /// Preferred source address.
    pub src: Option<IpAddr>,
    /// Largest packet on this route.
    pub mtu: Option<u32>,
    /// Distance; the kernel ignores it for IPv6.
    pub scope: RouteScope,
    /// Routing table.
    pub table: u32,
    /// Who made the route (`/etc/iproute2/rt_protos`).
    pub protocol: u8,
    /// The gateway is reachable on the link even though no route says so.
    pub onlink: bool,
    /// What it does.
    pub kind: RouteKind,
    /// Preference among routes to one destination, lower first.
    pub metric: Option<u32>,
}

impl Route {
    /// The protocol number of routes that an administrator made.
    pub const PROTOCOL_STATIC: u8 = libc::RTPROT_STATIC;
    /// The protocol number of routes that the kernel made for addresses.
    pub const PROTOCOL_KERNEL: u8 = libc::RTPROT_KERNEL;

    /// A unicast route to `dst` in the main table, made by "static".
    pub fn new(dst: IpNet) -> Self {
        Self {
            dst: dst.trunc(),
            gateway: None,
            oif: None,
            src: None,
            mtu: None,
            scope: RouteScope::Global,
            table: TABLE_MAIN,
            protocol: Self::PROTOCOL_STATIC,
            onlink: false,
            kind: RouteKind::Unicast,
            metric: None,
        }
    }
}

impl Netlink {
    /// Every unicast, local, blackhole and unreachable route, both families, all tables; without
    /// the clones that the kernel caches and without multipath routes.
    pub fn routes(&self) -> Result<Vec<Route>, NetlinkError> {
        let mut rows = Vec::new();
        for family in [libc::AF_INET, libc::AF_INET6] {
            let header = RouteHeader { family: family as u8, ..RouteHeader::default() };
            let request = Request::new(libc::RTM_GETROUTE, 0, &header);
            rows.extend(self.dump(request, format_args!("list routes"), parse_route)?);
        }
        Ok(rows)
    }

    /// Adds a route, or replaces the one with its destination, table and metric.
    pub fn replace_route(&self, route: &Route) -> Result<(), NetlinkError> {
        let replace = libc::NLM_F_CREATE | libc::NLM_F_REPLACE;
        let mut request = route_request(libc::RTM_NEWROUTE, replace, route);
        if let Some(src) = route.src {
            request.attr(libc::RTA_PREFSRC, &octets(src));
        }
        if let Some(mtu) = route.mtu {
            request.nest(libc::RTA_METRICS, |metrics| metrics.attr_u32(RTAX_MTU, mtu));
        }
        self.apply(request, format_args!("set route to {} in table {}", route.dst, route.table))
    }

    /// Deletes the route with the destination, table, metric, gateway and device of `route`.
    pub fn delete_route(&self, route: &Route) -> Result<(), NetlinkError> {
        let request = route_request(libc::RTM_DELROUTE, 0, route);
        self.apply(request, format_args!("delete route to {} in table {}", route.dst, route.table))
    }
}

fn route_request(kind: u16, flags: i32, route: &Route) -> Request {
    let header = RouteHeader {
        family: family(route.dst.addr()),
        dst_len: route.dst.prefix_len(),
        table: u8::try_from(route.table).unwrap_or(libc::RT_TABLE_UNSPEC),
        protocol: route.protocol,
        scope: route.scope as u8,
        kind: route.kind as u8,
        flags: if route.onlink { RTNH_F_ONLINK } else { 0 },
        ..RouteHeader::default()
    };
    let mut request = Request::new(kind, flags, &header);
    request.attr(libc::RTA_DST, &octets(route.dst.network()));
    request.attr_u32(libc::RTA_TABLE, route.table);
    if let Some(gateway) = route.gateway {
        request.attr(libc::RTA_GATEWAY, &octets(gateway));
    }
    if let Some(oif) = route.oif {
        request.attr_u32(libc::RTA_OIF, oif);
    }
    if let Some(metric) = route.metric {
        request.attr_u32(libc::RTA_PRIORITY, metric);
    }
    request
}

fn parse_route(payload: &[u8]) -> Option<Route> {
    let (header, attrs) = Attrs::after::<RouteHeader>(payload)?;
    if header.flags & libc::RTM_F_CLONED != 0 {
        return None;
    }
    let unspecified = match i32::from(header.family) {
        libc::AF_INET => IpAddr::from([0; 4]),
        libc::AF_INET6 => IpAddr::from([0; 16]),
        _ => return None,
    };
    let mut route = Route::new(IpNet::new(unspecified, header.dst_len).ok()?);
    route.table = u32::from(header.table);
    route.protocol = header.protocol;
    route.onlink = header.flags & RTNH_F_ONLINK != 0;
    route.scope = match header.scope {
        libc::RT_SCOPE_UNIVERSE => RouteScope::Global,
        libc::RT_SCOPE_LINK => RouteScope::Link,
        libc::RT_SCOPE_HOST => RouteScope::Host,
        _ => return None,
    };
    route.kind = match header.kind {
        libc::RTN_UNICAST => RouteKind::Unicast,
        libc::RTN_LOCAL => RouteKind::Local,
        libc::RTN_BLACKHOLE => RouteKind::Blackhole,
        libc::RTN_UNREACHABLE => RouteKind::Unreachable,
        _ => return None,
    };
    for (kind, bytes) in attrs {
        match kind {
            libc::RTA_DST => route.dst = IpNet::new(address_from(bytes)?, header.dst_len).ok()?,
            libc::RTA_GATEWAY => route.gateway = address_from(bytes),
            libc::RTA_OIF => route.oif = wire::value(bytes),
            libc::RTA_PREFSRC => route.src = address_from(bytes),
            libc::RTA_TABLE => route.table = wire::value(bytes)?,
            libc::RTA_PRIORITY => route.metric = wire::value(bytes),
            libc::RTA_METRICS => {
                let mtu = Attrs(bytes).find(|(kind, _)| *kind == RTAX_MTU);
                route.mtu = mtu.and_then(|(_, bytes)| wire::value(bytes));
            }
            libc::RTA_MULTIPATH => return None,
            _ => {}
        }
    }
    Some(route)
}
