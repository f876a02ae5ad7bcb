//! ADD: wires a pod in, or leaves nothing behind.
//!
//! ```text
//!   config ─► veth pair, pod's end in its namespace ─► addresses ─► configure ─► endpoint
//!                └────────── any failure from here on undoes all that was done ──────┘
//! ```
//!
//! The endpoint is last: the agent answers when the identity is known, the programs are attached
//! and the maps say who the pod is, so the pod may speak as soon as ADD returns.

use std::net::IpAddr;
use std::os::fd::AsFd;

use api::rest::{DaemonConfigurationStatus, EndpointChangeRequest};
use kernel::netlink::{Link, Netlink, NetlinkError, VethSpec};
use kernel::netns::Netns;
use kernel::sysctl;

use crate::agent::{Agent, Paths, with_gateways};
use crate::del;
use crate::error::{Code, Error};
use crate::pod::{self, Plan};
use crate::request::{Attachment, Pod, Sandbox};
use crate::response::{PodAddress, Wiring};

pub(crate) fn run(paths: &Paths, sandbox: &Sandbox, pod: &Pod) -> Result<Wiring, Error> {
    let netns = open_netns(sandbox)?;
    let host = Netlink::new().map_err(|error| Error::io("cannot reach the kernel", error))?;
    let mut agent = Agent::new(paths);
    let config = agent.config()?;
    let add = Add { paths, sandbox, pod, netns: &netns, host: &host, config: &config };

    let link = match add.create_links() {
        Err(error) if error.is_exists() => match add.repeated(&mut agent)? {
            Some(wiring) => return Ok(wiring),
            None => add.create_links(),
        },
        result => result,
    }
    .map_err(|error| Error::io("cannot create the pod's interface", error))?;

    let mut done = Done { link: Some(link.index), ..Done::default() };
    add.wire(&mut agent, &link, &mut done).inspect_err(|_| add.undo(agent, done))
}

struct Add<'a> {
    paths: &'a Paths,
    sandbox: &'a Sandbox,
    pod: &'a Pod,
    netns: &'a Netns,
    host: &'a Netlink,
    config: &'a DaemonConfigurationStatus,
}

/// What ADD has done so far.
#[derive(Debug, Default)]
struct Done {
    /// The host's end of the pair.
    link: Option<u32>,
    addresses: Vec<IpAddr>,
    /// The agent was asked to create the endpoint; whether it did may be unknown.
    endpoint: bool,
}

impl Add<'_> {
    fn attachment(&self) -> &Attachment {
        &self.sandbox.attachment
    }

    fn create_links(&self) -> Result<Link, NetlinkError> {
        self.host.create_veth(&VethSpec {
            name: &self.attachment().host_ifname(),
            peer_name: &self.attachment().ifname,
            peer_netns: Some(self.netns.as_fd()),
            mtu: Some(self.config.device_mtu),
            mac: Some(self.attachment().host_mac()),
            peer_mac: Some(self.attachment().pod_mac()),
            up: false,
        })
    }

    fn wire(&self, agent: &mut Agent, link: &Link, done: &mut Done) -> Result<Wiring, Error> {
        let owner = self.owner();
        let ipam = agent.allocate(&owner)?;
        done.addresses = ipam.addresses.iter().map(|address| address.address).collect();
        let plan = self.plan(&ipam.addresses);
        self.configure_host_end(link)?;
        pod::configure(self.netns, &plan)
            .map_err(|error| Error::io("cannot configure the pod's interface", error))?;
        let cookie = self
            .netns
            .cookie()
            .map_err(|error| Error::io("cannot identify the pod's namespace", error))?;
        let request = EndpointChangeRequest {
            container_id: self.attachment().container_id.clone(),
            container_interface_name: self.attachment().ifname.clone(),
            interface_name: link.name.clone(),
            interface_index: link.index,
            mac: self.attachment().pod_mac().to_string(),
            host_mac: self.attachment().host_mac().to_string(),
            addressing: ipam.pair,
            netns_cookie: cookie.to_string(),
            k8s_namespace: self.pod.namespace.clone(),
            k8s_pod_name: self.pod.name.clone(),
            k8s_uid: self.pod.uid.clone(),
            sync_build_endpoint: true,
            ..EndpointChangeRequest::default()
        };
        done.endpoint = true;
        agent.create_endpoint(&self.attachment().endpoint_id(), &request)?;
        Ok(self.wiring(ipam.addresses))
    }

    /// The host's end carries only what the programs let through.
    fn configure_host_end(&self, link: &Link) -> Result<(), Error> {
        let failed = |error: &dyn std::fmt::Display| {
            Error::io(format!("cannot configure {}", link.name), error)
        };
        // The pod's packets come from addresses that no route leads back to by this device.
        sysctl::set(&format!("net/ipv4/conf/{}/rp_filter", link.name), "0")
            .map_err(|error| failed(&error))?;
        // No link-local address: the device never speaks for itself. Without IPv6 it has none.
        match sysctl::set(&format!("net/ipv6/conf/{}/addr_gen_mode", link.name), "1") {
            Err(error) if !error.is_not_found() => return Err(failed(&error)),
            _ => {}
        }
        self.host.set_up(link.index).map_err(|error| failed(&error))
    }

    /// The pair is there already: either ADD was called again, which changes nothing, or an ADD
    /// was killed half-way, and what it left is removed.
    fn repeated(&self, agent: &mut Agent) -> Result<Option<Wiring>, Error> {
        let name = self.attachment().host_ifname();
        if self.host.link_by_name(&name).is_err_and(|error| error.is_not_found()) {
            return Err(Error::new(
                Code::Io,
                format!("interface {} exists in the container already", self.attachment().ifname),
                "it was not made by this plugin for this container; \
                 remove it, or give this network another interface name",
            ));
        }
        if let Some(endpoint) = agent.endpoint(&self.attachment().endpoint_id())? {
            let pair = endpoint.status.networking.addressing.first().cloned().unwrap_or_default();
            if let Ok(addresses) = with_gateways(&self.config.addressing, &pair) {
                let differences = pod::differences(self.netns, &self.plan(&addresses))
                    .map_err(|error| Error::io("cannot look at the pod's interface", error))?;
                if differences.is_empty() {
                    return Ok(Some(self.wiring(addresses)));
                }
            }
            agent.delete_endpoint(&self.attachment().endpoint_id())?;
        }
        del::delete_link(self.host, &name)?;
        Ok(None)
    }

    /// Takes back what was done, the newest first. What cannot be taken back now is left to the
    /// agent, which forgets addresses that no endpoint claims.
    fn undo(&self, mut agent: Agent, done: Done) {
        let id = self.attachment().endpoint_id();
        let mut addresses_are_ours = true;
        if done.endpoint {
            // A deleted endpoint has released its addresses, and others may have them by now.
            match agent.delete_endpoint(&id) {
                Ok(existed) => addresses_are_ours = !existed,
                Err(_) => {
                    addresses_are_ours = false;
                    let _ = del::delete_endpoint(self.paths, &id);
                }
            }
        }
        if addresses_are_ours {
            for address in done.addresses {
                let _ = agent.release(address);
            }
        }
        if let Some(index) = done.link {
            let _ = self.host.delete_link(index);
        }
    }

    fn plan<'a>(&'a self, addresses: &'a [PodAddress]) -> Plan<'a> {
        Plan { ifname: &self.attachment().ifname, addresses, route_mtu: self.config.route_mtu }
    }

    fn wiring(&self, addresses: Vec<PodAddress>) -> Wiring {
        Wiring {
            host_ifname: self.attachment().host_ifname(),
            host_mac: self.attachment().host_mac().to_string(),
            ifname: self.attachment().ifname.clone(),
            mac: self.attachment().pod_mac().to_string(),
            netns: self.sandbox.netns.clone(),
            mtu: self.config.device_mtu,
            route_mtu: self.config.route_mtu,
            addresses,
        }
    }

    /// Who the addresses are for, in the agent's words.
    fn owner(&self) -> String {
        if self.pod.name.is_empty() {
            return self.attachment().id();
        }
        format!("{}/{}", self.pod.namespace, self.pod.name)
    }
}

/// Opens the pod's namespace, which must not be the plugin's own: that would wire the node itself.
fn open_netns(sandbox: &Sandbox) -> Result<Netns, Error> {
    let path = sandbox.netns.display();
    let netns = Netns::open(&sandbox.netns).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => Error::new(
            Code::UnknownContainer,
            format!("CNI_NETNS {path} does not exist"),
            "the container is gone",
        ),
        _ => Error::io(format!("cannot open CNI_NETNS {path}"), error),
    })?;
    let inode = |netns: &Netns| {
        netns.inode().map_err(|error| Error::io(format!("cannot look at CNI_NETNS {path}"), error))
    };
    let own = Netns::current().map_err(|error| Error::io("cannot open own namespace", error))?;
    if inode(&netns)? == inode(&own)? {
        return Err(Error::new(
            Code::InvalidEnvironment,
            format!("CNI_NETNS {path} is the plugin's own network namespace"),
            "a pod needs a network namespace of its own; pods of the host network need no CNI",
        ));
    }
    Ok(netns)
}
