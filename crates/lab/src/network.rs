//! The lab's wires: the underlay that joins the nodes, and the world outside the cluster.
//!
//! ```text
//!    node-1        node-2            external
//!    eth0 .1.1     eth0 .1.2         eth0 .0.254   lo 203.0.113.10, .11, 2001:db8:ff::10, ::11
//!      │             │                 │           ("the Internet"; serves HTTP and UDP)
//!   ───┴─────────────┴─────────────────┴──── br0 .0.1   172.18.0.0/16, fd00:18::/64
//!                                          hub (API server listens here, operator runs here)
//! ```
//!
//! All of it is in namespaces of the lab: nothing appears among the host's own devices, and labs
//! with the same addresses live side by side.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpListener};
use std::os::fd::AsFd as _;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::{Context as _, Result, bail};
use ipnet::IpNet;
use kernel::netlink::{AddressFlags, Mac, Netlink, Route, TcHook, VethSpec};
use kernel::netns::Netns;
use kernel::sysctl;

use crate::spec::{
    EXTERNAL, HUB, INTERNET, INTERNET_OTHER, NodeSpec, Paths, UNDERLAY_MTU, UNDERLAY_PREFIX,
};

const BRIDGE: &str = "br0";
const UPLINK: &str = "eth0";
const NODAD: AddressFlags = AddressFlags { nodad: true, noprefixroute: false };

/// The parts of the network that are not nodes.
#[derive(Debug)]
pub struct Network {
    /// Namespace with the bridge.
    pub hub: Netns,
    /// Namespace of the world outside.
    pub external: Netns,
    hub_links: Netlink,
    external_links: Netlink,
    ports: Mutex<Ports>,
    cuts_file: PathBuf,
}

/// The bridge's ports and between which of them nothing gets through.
#[derive(Debug, Default)]
struct Ports {
    /// By name: the device in the hub, and the Ethernet address of the other end.
    by_name: BTreeMap<String, (u32, Mac)>,
    cuts: BTreeSet<(String, String)>,
}

impl Network {
    /// Makes the hub and the external network.
    pub fn create(paths: &Paths) -> Result<Self> {
        let hub = Netns::create(&paths.netns("hub"))?;
        let external = Netns::create(&paths.netns("external"))?;
        let hub_links = Netlink::in_netns(&hub)?;
        hub.run(without_dad)??;
        set_up(&hub_links, "lo")?;
        let bridge = hub_links.create_bridge(BRIDGE)?;
        hub_links.set_mtu(bridge.index, UNDERLAY_MTU)?;
        for address in underlay(HUB) {
            hub_links.add_address(bridge.index, address, NODAD)?;
        }
        hub_links.set_up(bridge.index)?;

        external.run(|| -> Result<()> {
            without_dad()?;
            sysctl::set("net.ipv4.ip_forward", "1")?;
            sysctl::set("net.ipv6.conf.all.forwarding", "1")?;
            Ok(())
        })??;
        let external_links = Netlink::in_netns(&external)?;
        let loopback = set_up(&external_links, "lo")?;
        for (v4, v6) in [INTERNET, INTERNET_OTHER] {
            for address in [IpAddr::V4(v4), IpAddr::V6(v6)] {
                external_links.add_address(loopback, IpNet::from(address), NODAD)?;
            }
        }
        let (ports, cuts_file) = (Mutex::default(), paths.cuts());
        let network = Self { hub, external, hub_links, external_links, ports, cuts_file };
        network.plug("external", &network.external, &network.external_links, EXTERNAL)?;
        // The router knows the way to pods, which talk to the API server.
        default_routes(&network.hub_links)?;
        Ok(network)
    }

    /// Opens the network that an earlier supervisor has made.
    pub fn open<'a>(paths: &Paths, nodes: impl Iterator<Item = &'a str>) -> Result<Self> {
        let (hub, external) =
            (Netns::open(&paths.netns("hub"))?, Netns::open(&paths.netns("external"))?);
        let hub_links = Netlink::in_netns(&hub)?;
        let external_links = Netlink::in_netns(&external)?;
        let mut ports = Ports::default();
        for name in nodes.chain(["external"]) {
            let port = hub_links.link_by_name(name)?;
            let links = Netlink::in_netns(&Netns::open(&paths.netns(name))?)?;
            let uplink = links.link_by_name(UPLINK)?;
            ports.by_name.insert(name.to_owned(), (port.index, uplink.mac));
        }
        // Without the file nothing has been cut.
        let cuts = fs::read(paths.cuts()).ok();
        ports.cuts = cuts.and_then(|c| serde_json::from_slice(&c).ok()).unwrap_or_default();
        let (ports, cuts_file) = (Mutex::new(ports), paths.cuts());
        Ok(Self { hub, external, hub_links, external_links, ports, cuts_file })
    }

    /// Joins a node to the underlay.
    pub fn add_node(&self, node: NodeSpec, netns: &Netns) -> Result<()> {
        netns.run(without_dad)??;
        let links = Netlink::in_netns(netns)?;
        set_up(&links, "lo")?;
        self.plug(&node.name(), netns, &links, (node.ipv4(), node.ipv6()))?;
        default_routes(&links)
    }

    /// Connects a namespace to the bridge by a device `eth0`.
    fn plug(
        &self,
        name: &str,
        netns: &Netns,
        links: &Netlink,
        addresses: (Ipv4Addr, Ipv6Addr),
    ) -> Result<()> {
        let bridge = self.hub_links.link_by_name(BRIDGE)?;
        let port = self.hub_links.create_veth(&VethSpec {
            name,
            peer_name: UPLINK,
            peer_netns: Some(netns.as_fd()),
            mtu: Some(UNDERLAY_MTU),
            up: true,
            ..VethSpec::default()
        })?;
        self.hub_links.set_master(port.index, Some(bridge.index))?;
        let uplink = links.link_by_name(UPLINK)?;
        for address in underlay(addresses) {
            links.add_address(uplink.index, address, NODAD)?;
        }
        links.set_up(uplink.index)?;
        self.lock_ports().by_name.insert(name.to_owned(), (port.index, uplink.mac));
        Ok(())
    }

    /// Lets nothing through between two members of the underlay any more, or everything again.
    pub fn cut(&self, one: &str, other: &str, cut: bool) -> Result<()> {
        let mut ports = self.lock_ports();
        let Ports { by_name, cuts } = &mut *ports;
        for name in [one, other] {
            if !by_name.contains_key(name) {
                let names: Vec<&str> = by_name.keys().map(String::as_str).collect();
                bail!("{name:?} is not on the wire, but: {}", names.join(", "));
            }
        }
        if one == other {
            bail!("a wire has two ends: name two different nodes");
        }
        let pair = (one.min(other).to_owned(), one.max(other).to_owned());
        match cut {
            true => drop(cuts.insert(pair)),
            false if !cuts.remove(&pair) => bail!("nothing is cut between {one} and {other}"),
            false => {}
        }
        fs::write(&self.cuts_file, serde_json::to_vec(&cuts)?)
            .with_context(|| format!("write {}", self.cuts_file.display()))?;
        for name in [one, other] {
            let peers = cuts.iter().filter_map(|(a, b)| match () {
                () if a == name => by_name.get(b),
                () if b == name => by_name.get(a),
                () => None,
            });
            let senders: Vec<Mac> = peers.map(|(_, mac)| *mac).collect();
            let (index, _) = by_name[name];
            self.hub_links.ensure_clsact(index)?;
            self.hub_links.drop_frames_of(index, TcHook::Egress, &senders)?;
        }
        Ok(())
    }

    /// Between whom nothing gets through.
    pub fn cuts(&self) -> Vec<(String, String)> {
        self.lock_ports().cuts.iter().cloned().collect()
    }

    fn lock_ports(&self) -> MutexGuard<'_, Ports> {
        // What is half done is done again with the next cut.
        self.ports.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells the external router the way to a node's pods.
    pub fn route_pods(&self, cidr: IpNet, node: NodeSpec) -> Result<()> {
        let [v4, v6] = node.addresses();
        let gateway = if cidr.addr().is_ipv4() { v4 } else { v6 };
        let route = Route { gateway: Some(gateway), ..Route::new(cidr) };
        self.external_links
            .replace_route(&route)
            .with_context(|| format!("route {cidr} from the external network to {}", node.name()))
    }

    /// Takes back what [`Self::route_pods`] said.
    pub fn unroute_pods(&self, cidr: IpNet) -> Result<()> {
        match self.external_links.delete_route(&Route::new(cidr)) {
            Err(error) if !error.is_not_found() => Err(error.into()),
            _ => Ok(()),
        }
    }

    /// A socket that listens on the hub's address. It belongs to the hub's namespace, whoever
    /// accepts from it.
    pub fn listen_on_hub(&self, address: IpAddr, port: u16) -> Result<TcpListener> {
        let listener = self.hub.run(|| TcpListener::bind((address, port)))?;
        listener.with_context(|| format!("listen on {address} in the hub"))
    }
}

fn underlay((v4, v6): (Ipv4Addr, Ipv6Addr)) -> [IpNet; 2] {
    let (v4_len, v6_len) = UNDERLAY_PREFIX;
    let nets = [IpNet::new(v4.into(), v4_len), IpNet::new(v6.into(), v6_len)];
    nets.map(|net| net.expect("prefix lengths of the underlay are valid"))
}

/// Sends everything that is not on the underlay to the external router.
fn default_routes(links: &Netlink) -> Result<()> {
    for (any, gateway) in [("0.0.0.0/0", IpAddr::V4(EXTERNAL.0)), ("::/0", IpAddr::V6(EXTERNAL.1))]
    {
        let route = Route { gateway: Some(gateway), ..Route::new(any.parse()?) };
        links.replace_route(&route).context("set the default route")?;
    }
    Ok(())
}

fn set_up(links: &Netlink, name: &str) -> Result<u32> {
    let link = links.link_by_name(name)?;
    links.set_up(link.index)?;
    Ok(link.index)
}

/// Duplicate address detection would make every new address useless for a second.
fn without_dad() -> Result<()> {
    for name in ["net.ipv6.conf.all.accept_dad", "net.ipv6.conf.default.accept_dad"] {
        sysctl::set(name, "0")?;
    }
    Ok(())
}
