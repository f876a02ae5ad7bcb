//! The pod's end: addresses, routes and kernel parameters in the pod's network namespace.
//!
//! ```text
//!   pod namespace                              host namespace
//!   eth0  10.0.1.7/32, fd00::7/128   ═veth═    lxc…
//!     10.0.1.1 dev eth0 scope link             ARP and NDP for 10.0.1.1 are answered
//!     default via 10.0.1.1 mtu 1450            by the program at lxc…'s ingress
//! ```

use kernel::netlink::{AddressFlags, Link, Netlink, NetlinkError, Route, RouteScope};
use kernel::netns::{Netns, NetnsError};
use kernel::sysctl::{self, SysctlError};

use crate::response::PodAddress;

/// What the pod's end is to look like.
#[derive(Clone, Debug)]
pub(crate) struct Plan<'a> {
    pub(crate) ifname: &'a str,
    pub(crate) addresses: &'a [PodAddress],
    pub(crate) route_mtu: u32,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum PodError {
    #[error(transparent)]
    Netns(#[from] NetnsError),
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    #[error(transparent)]
    Sysctl(#[from] SysctlError),
    #[error(
        "the agent gave the pod {address}, and IPv6 is not possible on its interface: the kernel has no \
         IPv6 (then set enable-ipv6 to false), or the MTU is below 1280"
    )]
    NoIpv6 { address: std::net::IpAddr },
}

/// Configures the pod's end so that it is usable when this returns.
pub(crate) fn configure(netns: &Netns, plan: &Plan<'_>) -> Result<(), PodError> {
    netns.run(|| {
        prepare_kernel(plan)?;
        let netlink = Netlink::new()?;
        let link = netlink.link_by_name(plan.ifname)?;
        // Nobody else can have the address on a link of two, and detection would cost a second.
        let flags = AddressFlags { nodad: true, noprefixroute: false };
        for address in plan.addresses {
            netlink.add_address(link.index, address.on_link(), flags)?;
        }
        netlink.set_up(link.index)?;
        for route in plan.addresses.iter().flat_map(|address| routes(address, link.index, plan)) {
            netlink.replace_route(&route)?;
        }
        Ok(())
    })?
}

/// What of the plan is not there; empty where the pod is wired as ADD left it.
pub(crate) fn differences(netns: &Netns, plan: &Plan<'_>) -> Result<Vec<String>, PodError> {
    netns.run(|| {
        let netlink = Netlink::new()?;
        let link = match netlink.link_by_name(plan.ifname) {
            Ok(link) => link,
            Err(error) if error.is_not_found() => {
                return Ok(vec![format!("interface {} is gone", plan.ifname)]);
            }
            Err(error) => return Err(error.into()),
        };
        let mut differences = link_differences(&link);
        let present = netlink.addresses(Some(link.index))?;
        for address in plan.addresses {
            match present.iter().find(|row| row.net == address.on_link()) {
                None => differences.push(format!("address {} is gone", address.on_link())),
                Some(row) if row.tentative => {
                    differences.push(format!("address {} is tentative", address.on_link()));
                }
                Some(_) => {}
            }
        }
        let present = netlink.routes()?;
        for route in plan.addresses.iter().flat_map(|address| routes(address, link.index, plan)) {
            let is_there = present.iter().any(|row| {
                row.dst == route.dst && row.gateway == route.gateway && row.oif == route.oif
            });
            if !is_there {
                differences.push(format!("the route to {} is gone", route.dst));
            }
        }
        Ok(differences)
    })?
}

fn link_differences(link: &Link) -> Vec<String> {
    let mut differences = Vec::new();
    if link.kind != "veth" {
        differences.push(format!("interface {} is a {:?}, not a veth", link.name, link.kind));
    }
    if !link.up {
        differences.push(format!("interface {} is down", link.name));
    }
    differences
}

/// The gateway is not in the pod's prefix, so it needs a route of its own, first.
fn routes(address: &PodAddress, index: u32, plan: &Plan<'_>) -> [Route; 2] {
    let gateway =
        Route { oif: Some(index), scope: RouteScope::Link, ..Route::new(address.gateway_route()) };
    let default = Route {
        oif: Some(index),
        gateway: Some(address.gateway),
        mtu: Some(plan.route_mtu),
        ..Route::new(address.default_route())
    };
    [gateway, default]
}

/// Runs inside the pod's namespace.
fn prepare_kernel(plan: &Plan<'_>) -> Result<(), PodError> {
    if let Some(address) = plan.addresses.iter().find(|address| address.address.is_ipv6()) {
        let conf = format!("net/ipv6/conf/{}", plan.ifname);
        // Some runtimes create namespaces with IPv6 off.
        match sysctl::set(&format!("{conf}/disable_ipv6"), "0") {
            Err(error) if error.is_not_found() => {
                return Err(PodError::NoIpv6 { address: address.address });
            }
            result => result?,
        }
        // The link-local address is alone on its link too.
        sysctl::set(&format!("{conf}/accept_dad"), "0")?;
    }
    Ok(())
}
