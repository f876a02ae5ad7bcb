//! The node's health endpoint: a network namespace with one veth, wired like a pod.
//!
//! ```text
//!   host namespace                      <state-dir>/netns/cilium-health
//!   lxc_health ════════════ veth ══════ eth0  10.0.1.7/32, fd00::7/128
//! ```
//!
//! It outlives the agent, as pods do: the next agent finds it in its checkpoint. Whatever is missing of
//! it, it is made anew as a whole.

use std::net::IpAddr;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use kernel::netlink::{AddressFlags, Netlink, NetlinkError, Route, RouteScope, VethSpec};
use kernel::netns::{Netns, NetnsError};
use kernel::sysctl::{self, SysctlError};
use model::{EndpointState, IdentityId, Mac};
use statedb::job::Job;

use super::{Announced, forget, responder};
use crate::controllers::LocalNode;
use crate::endpoint::{CreateError, Endpoints};
use crate::ipam::{Families, IpamError};
use crate::ready::Pending;
use crate::tables::{Endpoint, EndpointSpec};

/// Name of the namespace, and of the endpoint's container.
pub const NAME: &str = "cilium-health";
/// The host's end.
const DEVICE: &str = "lxc_health";
/// The other end.
const INNER_DEVICE: &str = "eth0";
/// Wait before it is tried again.
const RETRY: Duration = Duration::from_secs(10);

/// Why there is no health endpoint.
#[derive(Debug, thiserror::Error)]
enum HealthEndpointError {
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    #[error(transparent)]
    Netns(#[from] NetnsError),
    #[error(transparent)]
    Sysctl(#[from] SysctlError),
    #[error("no address for the health endpoint")]
    Address(#[from] IpamError),
    #[error("cannot create the health endpoint")]
    Create(#[from] CreateError),
    #[error("cannot listen on port {port} of the health endpoint (option cluster-health-port)")]
    Listen { port: u16, source: std::io::Error },
}

/// Keeps the health endpoint.
pub struct Keeper {
    /// The host's namespace.
    pub netlink: Arc<Netlink>,
    /// This node.
    pub node: Arc<LocalNode>,
    /// The node's endpoints.
    pub endpoints: Arc<Endpoints>,
    /// Where the namespace is bound.
    pub netns: PathBuf,
    /// Where it answers HTTP.
    pub port: u16,
}

impl Keeper {
    /// Has it there and answering until told to stop, and says under which addresses.
    pub async fn keep(
        self,
        job: Job,
        announced: Announced,
        first_try: Pending,
    ) -> Result<(), String> {
        let mut first_try = Some(first_try);
        loop {
            let made = tokio::select! {
                () = job.stop.cancelled() => return Ok(()),
                made = self.ensure() => made,
            };
            if let Ok((endpoint, _)) = &made {
                announced.send_replace(endpoint.spec.addresses.clone());
            }
            first_try.take().into_iter().for_each(Pending::done);
            match made {
                Ok((endpoint, listener)) => {
                    job.ok(format_args!("{:?}", endpoint.spec.addresses));
                    tokio::select! {
                        () = job.stop.cancelled() => return Ok(()),
                        () = self.gone(&endpoint) => {}
                        served = responder::serve(listener) => {
                            job.degraded(format_args!("cannot answer any more: {served:?}"));
                        }
                    }
                    continue;
                }
                Err(error) => job.degraded(crate::k8s::watch::chain(&error)),
            }
            tokio::select! {
                () = job.stop.cancelled() => return Ok(()),
                () = tokio::time::sleep(RETRY) => {}
            }
        }
    }

    /// Removes what an agent left where it was wanted.
    pub async fn remove(self, first_try: Pending) -> Result<(), String> {
        first_try.done();
        self.clear().await.map_err(|error| crate::k8s::watch::chain(&error))
    }

    async fn gone(&self, endpoint: &Endpoint) {
        self.endpoints.table().wait_for(|rows| rows.get(&endpoint.id).is_none()).await;
    }

    /// The endpoint of the agent before us, or a new one, and its socket.
    async fn ensure(&self) -> Result<(Endpoint, std::net::TcpListener), HealthEndpointError> {
        if let Some(endpoint) = self.present() {
            match self.listen() {
                Ok(listener) => return Ok((endpoint, listener)),
                Err(error) => tracing::info!(%error, "Making the health endpoint anew"),
            }
        }
        self.clear().await?;
        let endpoint = self.make().await?;
        Ok((endpoint, self.listen()?))
    }

    /// The endpoint, where it is whole: known to us, of the families that are wanted now, and its
    /// other end still in the namespace.
    fn present(&self) -> Option<Endpoint> {
        let endpoints = self.endpoints.table().snapshot();
        let endpoint = endpoints.rows().find(|endpoint| endpoint.spec.container_id == NAME)?;
        let has = |is_ipv4| endpoint.spec.addresses.iter().any(|ip| ip.is_ipv4() == is_ipv4);
        let fits = endpoint.state == EndpointState::Ready
            && has(true) == self.node.enable_ipv4
            && has(false) == self.node.enable_ipv6;
        let inner = Netns::open(&self.netns)
            .ok()
            .and_then(|netns| Netlink::in_netns(&netns).ok()?.link_by_name(INNER_DEVICE).ok())?;
        (fits && inner.up && inner.mac.0 == endpoint.spec.mac.0).then(|| Endpoint::clone(endpoint))
    }

    /// Removes all that there may be.
    async fn clear(&self) -> Result<(), HealthEndpointError> {
        forget(&self.endpoints).await;
        match self.netlink.link_by_name(DEVICE) {
            Ok(link) => self.netlink.delete_link(link.index)?,
            Err(error) if error.is_not_found() => {}
            Err(error) => return Err(error.into()),
        }
        Ok(Netns::delete(&self.netns)?)
    }

    async fn make(&self) -> Result<Endpoint, HealthEndpointError> {
        let addresses = self.endpoints.ipam().allocate(Families::All, NAME, Instant::now())?;
        let made = async {
            let spec = tokio::task::block_in_place(|| self.wire(&addresses))?;
            let labels = IdentityId::HEALTH.reserved_labels().unwrap_or_default();
            Ok(self.endpoints.create(spec, labels).await?)
        };
        let made = made.await;
        if made.is_err() {
            let mut ipam = self.endpoints.ipam();
            for address in addresses {
                ipam.release(address);
            }
        }
        made
    }

    /// The namespace and the two devices.
    fn wire(&self, addresses: &[IpAddr]) -> Result<EndpointSpec, HealthEndpointError> {
        let netns = Netns::create(&self.netns)?;
        let link = self.netlink.create_veth(&VethSpec {
            name: DEVICE,
            peer_name: INNER_DEVICE,
            peer_netns: Some(netns.as_fd()),
            mtu: Some(self.node.device_mtu),
            ..VethSpec::default()
        })?;
        // The endpoint's packets come from addresses that no route leads back to by this device.
        sysctl::set(&format!("net/ipv4/conf/{DEVICE}/rp_filter"), "0")?;
        if self.node.enable_ipv6 {
            self.netlink.set_no_link_local(link.index)?;
        }
        self.netlink.set_up(link.index)?;
        let mac = netns.run(|| self.configure(addresses))??;
        Ok(EndpointSpec {
            interface: link.name,
            ifindex: link.index,
            mac,
            host_mac: Mac(link.mac.0),
            addresses: addresses.to_vec(),
            container_id: NAME.to_owned(),
            container_interface: INNER_DEVICE.to_owned(),
            pod_namespace: String::new(),
            pod_name: String::new(),
            pod_uid: String::new(),
            netns_cookie: None,
        })
    }

    /// Runs inside the namespace.
    fn configure(&self, addresses: &[IpAddr]) -> Result<Mac, HealthEndpointError> {
        if addresses.iter().any(IpAddr::is_ipv6) {
            sysctl::set(&format!("net/ipv6/conf/{INNER_DEVICE}/disable_ipv6"), "0")?;
            sysctl::set(&format!("net/ipv6/conf/{INNER_DEVICE}/accept_dad"), "0")?;
        }
        let netlink = Netlink::new()?;
        let link = netlink.link_by_name(INNER_DEVICE)?;
        // Nobody else can have the address on a link of two, and detection would cost a second.
        let flags = AddressFlags { nodad: true, noprefixroute: false };
        for address in addresses {
            netlink.add_address(link.index, IpNet::from(*address), flags)?;
        }
        netlink.set_up(link.index)?;
        for address in addresses {
            let gateway = self.node.routers.iter().find(|ip| ip.is_ipv4() == address.is_ipv4());
            for route in gateway.into_iter().flat_map(|gateway| self.routes(*gateway, link.index)) {
                netlink.replace_route(&route)?;
            }
        }
        Ok(Mac(link.mac.0))
    }

    /// The gateway is not in the endpoint's prefix, so it needs a route of its own, first.
    fn routes(&self, gateway: IpAddr, index: u32) -> [Route; 2] {
        let any = match gateway {
            IpAddr::V4(_) => IpAddr::from([0; 4]),
            IpAddr::V6(_) => IpAddr::from([0; 16]),
        };
        let everything = IpNet::new(any, 0).unwrap_or(IpNet::from(any));
        [
            Route { oif: Some(index), scope: RouteScope::Link, ..Route::new(IpNet::from(gateway)) },
            Route {
                oif: Some(index),
                gateway: Some(gateway),
                mtu: Some(self.node.route_mtu),
                ..Route::new(everything)
            },
        ]
    }

    /// A socket inside the namespace.
    fn listen(&self) -> Result<std::net::TcpListener, HealthEndpointError> {
        let port = self.port;
        let listener = Netns::open(&self.netns)?.run(|| responder::listen(port))?;
        listener.map_err(|source| HealthEndpointError::Listen { port, source })
    }
}
