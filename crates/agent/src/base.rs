//! The node's own devices and settings: what must be there before the first pod.
//!
//! ```text
//!   host's stack ── cilium_host ═══ cilium_net      every pod is behind cilium_host
//!                        │ cil_from_host
//!   uplink (eth0) ── cil_from_netdev, cil_to_netdev
//!   cilium_vxlan ─── cil_from_overlay, cil_to_overlay   tunnel mode only
//! ```
//!
//! `cilium_host` has the node's router addresses and is the device of all routes to pods; its
//! program, at its egress, knows where they are. Nothing is ever received by it, so nobody is asked
//! for on it (no ARP, no neighbour discovery). All of this is idempotent: a new agent finds it as the
//! old one left it and changes nothing.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use kernel::netlink::{AddressFlags, Link, Netlink, NetlinkError, VethSpec, VxlanSpec};
use kernel::sysctl::{self, SysctlError};

use crate::controllers::Uplink;
use crate::tables::HostAddress;

/// The device through which the host reaches pods.
pub const HOST_DEVICE: &str = "cilium_host";
/// Its other end, where nothing happens.
const NET_DEVICE: &str = "cilium_net";
/// The tunnel device.
pub const VXLAN_DEVICE: &str = "cilium_vxlan";
/// Devices with these prefixes are never the node's network devices.
const EXCLUDED_PREFIXES: [&str; 5] = ["cilium_", "lo", "lxc", "cni", "docker"];
/// MTU where no device says one.
const FALLBACK_MTU: u32 = 1500;
/// What VXLAN puts around a packet: outer IP header, UDP, VXLAN, inner Ethernet header.
const VXLAN_OVERHEAD_IPV4: u32 = 50;
const VXLAN_OVERHEAD_IPV6: u32 = 70;

/// Why the node could not be prepared.
#[derive(Debug, thiserror::Error)]
pub enum BaseError {
    /// The kernel refused a device, an address or a route.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// The kernel refused a setting.
    #[error(transparent)]
    Sysctl(#[from] SysctlError),
    /// There is nothing to attach to.
    #[error(
        "no network device found: none has a default route or a global address; name one with --devices"
    )]
    NoDevice,
    /// `devices` names what is not there.
    #[error("option devices: {pattern} matches no device; there are {present}")]
    UnknownDevice {
        /// The word of the option.
        pattern: String,
        /// All devices.
        present: String,
    },
    /// Something else has our name.
    #[error("device {name} is a {actual}, not a {expected}; remove it: ip link delete {name}")]
    WrongKind {
        /// The device.
        name: String,
        /// What it is.
        actual: String,
        /// What it should be.
        expected: &'static str,
    },
}

/// The devices that connect the node to others, and how.
#[derive(Debug, Clone)]
pub struct NetworkDevices {
    /// Where the programs of the node's network are attached.
    pub devices: Vec<Link>,
    /// The device of the default route.
    pub uplink: Uplink,
    /// Largest packet that they carry.
    pub mtu: u32,
}

/// Finds the node's network devices: those that the option names (`eth+` is a prefix), else those
/// with a default route or a global address.
pub fn network_devices(
    netlink: &Netlink,
    patterns: &[String],
    mtu: Option<u32>,
) -> Result<NetworkDevices, BaseError> {
    let links = netlink.links()?;
    let default_routes: Vec<u32> = {
        let mut routes = netlink.routes()?;
        routes.retain(|route| route.dst.prefix_len() == 0 && route.table == 254);
        routes.sort_by_key(|route| route.metric.unwrap_or(0));
        routes.into_iter().filter_map(|route| route.oif).collect()
    };
    let addresses = netlink.addresses(None)?;
    let addressed: BTreeSet<u32> =
        addresses.iter().filter(|a| a.scope == SCOPE_GLOBAL).map(|a| a.index).collect();
    let devices = if patterns.is_empty() {
        detect(&links, &default_routes, &addressed)
    } else {
        select(&links, patterns)?
    };
    let first = default_routes.iter().find_map(|index| devices.iter().find(|d| d.index == *index));
    let uplink = first.or(devices.first()).ok_or(BaseError::NoDevice)?;
    let mtu = mtu.unwrap_or(if uplink.mtu == 0 { FALLBACK_MTU } else { uplink.mtu });
    let own = addresses.iter().filter(|a| a.index == uplink.index && a.scope == SCOPE_GLOBAL);
    let uplink = Uplink {
        ifindex: uplink.index,
        addresses: own.clone().map(|a| a.net.addr()).collect(),
        on_link: own.map(|a| a.net.trunc()).collect(),
    };
    Ok(NetworkDevices { devices, uplink, mtu })
}

/// Scope of an address that is valid beyond its link.
const SCOPE_GLOBAL: u8 = 0;

/// A veth counts with a default route only: otherwise it leads to somebody's container.
fn detect(links: &[Link], default_routes: &[u32], addressed: &BTreeSet<u32>) -> Vec<Link> {
    let excluded = |name: &str| EXCLUDED_PREFIXES.iter().any(|prefix| name.starts_with(prefix));
    let candidates = links.iter().filter(|l| l.up && !l.loopback && !excluded(&l.name));
    let candidates = candidates.filter(|l| {
        default_routes.contains(&l.index) || (l.kind != "veth" && addressed.contains(&l.index))
    });
    candidates.cloned().collect()
}

fn select(links: &[Link], patterns: &[String]) -> Result<Vec<Link>, BaseError> {
    let mut selected: Vec<Link> = Vec::new();
    for pattern in patterns {
        let matches = |name: &str| match pattern.strip_suffix('+') {
            Some(prefix) => name.starts_with(prefix),
            None => name == pattern,
        };
        let before = selected.len();
        for link in links.iter().filter(|l| matches(&l.name)) {
            if !selected.iter().any(|s| s.index == link.index) {
                selected.push(link.clone());
            }
        }
        if selected.len() == before && !links.iter().any(|l| matches(&l.name)) {
            let present: Vec<_> = links.iter().map(|l| l.name.as_str()).collect();
            let (pattern, present) = (pattern.clone(), present.join(", "));
            return Err(BaseError::UnknownDevice { pattern, present });
        }
    }
    Ok(selected)
}

/// What is left of `device_mtu` for a packet inside the tunnel.
pub fn route_mtu(device_mtu: u32, tunnel: bool, underlay_is_ipv4: bool) -> u32 {
    match (tunnel, underlay_is_ipv4) {
        (false, _) => device_mtu,
        (true, true) => device_mtu.saturating_sub(VXLAN_OVERHEAD_IPV4),
        (true, false) => device_mtu.saturating_sub(VXLAN_OVERHEAD_IPV6),
    }
}

/// Sets what the datapath depends on in the whole node.
pub fn set_node_sysctls(enable_ipv4: bool, enable_ipv6: bool) -> Result<(), BaseError> {
    // Answers to a pod leave by another device than its packets came in by; the effective value of
    // a device is the larger of its own and `all`.
    sysctl::set("net.ipv4.conf.all.rp_filter", "0")?;
    if enable_ipv4 {
        sysctl::set("net.ipv4.ip_forward", "1")?;
    }
    if enable_ipv6 {
        sysctl::set("net.ipv6.conf.all.disable_ipv6", "0")?;
        sysctl::set("net.ipv6.conf.all.forwarding", "1")?;
    }
    // Not in every namespace: the first is the machine's own, which we can live without.
    optional(sysctl::set("net.core.bpf_jit_enable", "1"))?;
    Ok(())
}

/// Sets what the datapath depends on at one of our devices.
fn set_device_sysctls(device: &str, enable_ipv6: bool) -> Result<(), BaseError> {
    let ipv4 = |key: &str, value| sysctl::set(&format!("net/ipv4/conf/{device}/{key}"), value);
    ipv4("rp_filter", "0")?;
    ipv4("accept_local", "1")?;
    ipv4("send_redirects", "0")?;
    ipv4("forwarding", "1")?;
    let ipv6 =
        |key: &str, value| optional(sysctl::set(&format!("net/ipv6/conf/{device}/{key}"), value));
    if enable_ipv6 {
        ipv6("disable_ipv6", "0")?;
        ipv6("accept_dad", "0")?;
        ipv6("accept_ra", "0")?;
        ipv6("forwarding", "1")?;
    }
    Ok(())
}

/// Where the kernel has no IPv6, or the key belongs to the machine, there is nothing to set.
fn optional(result: Result<(), SysctlError>) -> Result<(), SysctlError> {
    match result {
        Err(error) if error.is_not_found() => Ok(()),
        other => other,
    }
}

/// Makes `cilium_host` with the router's addresses, and removes other addresses from it.
pub fn ensure_host_device(
    netlink: &Netlink,
    routers: &[IpAddr],
    mtu: u32,
    enable_ipv6: bool,
) -> Result<Link, BaseError> {
    let host = match netlink.link_by_name(HOST_DEVICE) {
        Ok(link) => expect_kind(link, "veth")?,
        Err(error) if error.is_not_found() => netlink.create_veth(&VethSpec {
            name: HOST_DEVICE,
            peer_name: NET_DEVICE,
            mtu: Some(mtu),
            ..VethSpec::default()
        })?,
        Err(error) => return Err(error.into()),
    };
    let net = netlink.link_by_name(NET_DEVICE)?;
    for link in [&net, &host] {
        set_device_sysctls(&link.name, enable_ipv6)?;
        prepare(netlink, link, mtu)?;
        netlink.set_no_arp(link.index)?;
        netlink.set_up(link.index)?;
    }
    ensure_addresses(netlink, host.index, routers)?;
    Ok(netlink.link_by_index(host.index)?)
}

/// Makes `cilium_vxlan`.
pub fn ensure_vxlan_device(
    netlink: &Netlink,
    port: u16,
    mtu: u32,
    enable_ipv6: bool,
) -> Result<Link, BaseError> {
    let link = match netlink.link_by_name(VXLAN_DEVICE) {
        Ok(link) => expect_kind(link, "vxlan")?,
        Err(error) if error.is_not_found() => netlink.create_vxlan(&VxlanSpec {
            name: VXLAN_DEVICE,
            port,
            external: true,
            mtu: Some(mtu),
            mac: None,
        })?,
        Err(error) => return Err(error.into()),
    };
    set_device_sysctls(&link.name, enable_ipv6)?;
    prepare(netlink, &link, mtu)?;
    netlink.set_up(link.index)?;
    Ok(link)
}

/// Removes the tunnel device, which native routing does not need.
pub fn remove_vxlan_device(netlink: &Netlink) -> Result<(), BaseError> {
    match netlink.link_by_name(VXLAN_DEVICE) {
        Ok(link) => Ok(netlink.delete_link(link.index)?),
        Err(error) if error.is_not_found() => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// What can be set on a device only before it comes up, or must fit.
fn prepare(netlink: &Netlink, link: &Link, mtu: u32) -> Result<(), BaseError> {
    if link.mtu != mtu {
        netlink.set_mtu(link.index, mtu)?;
    }
    if !link.up {
        netlink.set_no_link_local(link.index)?;
    }
    Ok(())
}

/// Makes `addresses` the only global addresses of the device.
fn ensure_addresses(netlink: &Netlink, index: u32, addresses: &[IpAddr]) -> Result<(), BaseError> {
    let present = netlink.addresses(Some(index))?;
    let wanted: Vec<IpNet> = addresses.iter().map(|a| IpNet::from(*a)).collect();
    for address in &wanted {
        if present.iter().any(|p| p.net == *address) {
            continue;
        }
        // No duplicate address detection: an address that is tentative cannot answer the first pod.
        let flags = AddressFlags { nodad: true, noprefixroute: true };
        match netlink.add_address(index, *address, flags) {
            Err(error) if !error.is_exists() => return Err(error.into()),
            _ => {}
        }
    }
    for stale in present.iter().filter(|p| p.scope == SCOPE_GLOBAL && !wanted.contains(&p.net)) {
        netlink.delete_address(index, stale.net)?;
    }
    Ok(())
}

fn expect_kind(link: Link, expected: &'static str) -> Result<Link, BaseError> {
    if link.kind == expected {
        return Ok(link);
    }
    let actual = if link.kind.is_empty() { "device".to_owned() } else { link.kind };
    Err(BaseError::WrongKind { name: link.name, actual, expected })
}

/// Every address by which others reach this node: on all devices but the loopback and the pods'.
pub fn host_addresses(netlink: &Netlink) -> Result<Vec<HostAddress>, NetlinkError> {
    let links = netlink.links()?;
    let addresses = netlink.addresses(None)?;
    let rows = addresses.into_iter().filter(|a| a.scope == SCOPE_GLOBAL).filter_map(|address| {
        let link = links.iter().find(|l| l.index == address.index)?;
        let ours = !link.loopback && !link.name.starts_with("lxc");
        ours.then(|| HostAddress { address: address.net.addr(), device: link.name.clone() })
    });
    Ok(rows.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(index: u32, name: &str, kind: &str) -> Link {
        Link { index, name: name.into(), kind: kind.into(), up: true, ..Link::default() }
    }

    fn names(links: &[Link]) -> Vec<&str> {
        links.iter().map(|l| l.name.as_str()).collect()
    }

    #[test]
    fn devices_are_detected() {
        let links = [
            link(1, "eth0", "veth"),
            link(2, "ens5", ""),
            link(3, "docker0", "bridge"),
            link(4, "veth12", "veth"),
            link(5, "lxc7", "veth"),
            link(6, "ens6", ""),
        ];
        let addressed = BTreeSet::from([1, 2, 3, 4]);
        assert_eq!(names(&detect(&links, &[1], &addressed)), ["eth0", "ens5"]);
        assert_eq!(names(&select(&links, &["ens+".to_owned()]).unwrap()), ["ens5", "ens6"]);
        let error = select(&links[..2], &["wlan0".to_owned()]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "option devices: wlan0 matches no device; there are eth0, ens5"
        );
    }

    #[test]
    fn the_tunnel_costs_mtu() {
        assert_eq!(route_mtu(1500, true, true), 1450);
        assert_eq!(route_mtu(1500, true, false), 1430);
        assert_eq!(route_mtu(1500, false, true), 1500);
    }
}
