//! Who we are: the node's name, addresses and pod CIDRs, before anything else can begin.
//!
//! An agent that ran here before left a checkpoint, and with it nobody need be asked: a restart works
//! while the API server is away. A new node asks: it announces itself and waits until it is given its
//! pod CIDRs. Later, when the API server is there, both are compared; a node whose CIDRs changed
//! starts anew.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use api::config::{Config, IpamMode};
use ipnet::IpNet;
use kernel::netlink::Netlink;
use model::NodeName;
use statedb::Table;
use statedb::job::Job;
use tokio::sync::watch;

use crate::base::{self, HOST_DEVICE};
use crate::checkpoint::{Checkpoints, NodeCheckpoint};
use crate::controllers::LocalNode;
use crate::ipam::{Families, Ipam};
use crate::k8s::node::{Announced, OwnNode};
use crate::k8s::watch::brief;
use crate::tables::Node;

/// How long to wait before the API server is asked again, when no event says that it is worth while.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// Owner of the router's addresses.
pub const ROUTER: &str = "router";

/// What the node is, from its checkpoint or from the API server.
pub async fn discover(
    config: &Config,
    own: &OwnNode,
    nodes: &Table<Node>,
    name: &NodeName,
    netlink: &Netlink,
    checkpoints: &Checkpoints,
) -> anyhow::Result<NodeCheckpoint> {
    if let Some(checkpoint) = checkpoints.node()? {
        if covers(config, &checkpoint.pod_cidrs) {
            tracing::info!(pod_cidrs = ?checkpoint.pod_cidrs, "Took the node over from its checkpoint");
            return Ok(checkpoint);
        }
        tracing::info!("The families of pods have changed; asking for the node's pod CIDRs anew");
    }
    let uplink = base::network_devices(netlink, &config.devices, None)?.uplink;
    let mut told = String::new();
    let mut changes = nodes.watch();
    loop {
        let reason = match ask(config, own, &uplink.addresses).await {
            Ok(Ok((addresses, pod_cidrs, routers))) => {
                let present = router_of_device(netlink);
                let routers = choose_routers(config, &pod_cidrs, &[present, routers].concat())?;
                let checkpoint = NodeCheckpoint { addresses, pod_cidrs, routers, tunnel_port: 0 };
                checkpoints.save_node(&checkpoint)?;
                return Ok(checkpoint);
            }
            Ok(Err(reason)) => reason,
            Err(error) => brief(&error),
        };
        if reason != told {
            tracing::info!(node = %name, reason, "Waiting for the node's pod CIDRs");
            told = reason;
        }
        // The operator's answer comes by the watch; the rest is worth another look now and then.
        tokio::select! {
            _ = changes.changed() => {}
            () = tokio::time::sleep(RETRY_INTERVAL) => {}
        }
    }
}

type Answer = (Vec<IpAddr>, Vec<IpNet>, Vec<IpAddr>);

/// Asks once; the inner error says what is missing yet.
async fn ask(
    config: &Config,
    own: &OwnNode,
    uplink: &[IpAddr],
) -> Result<Result<Answer, String>, kube::Error> {
    let announced = own.read().await?;
    let addresses = addresses_of(&announced, uplink);
    if addresses.is_empty() {
        return Ok(
            Err("the Kubernetes node has no InternalIP and no device has an address".into()),
        );
    }
    let cidrs = match config.ipam {
        IpamMode::ClusterPool => &announced.cilium_cidrs,
        IpamMode::Kubernetes => &announced.kubernetes_cidrs,
    };
    if covers(config, cidrs) {
        return Ok(Ok((addresses, enabled(config, cidrs), announced.routers)));
    }
    if config.ipam == IpamMode::Kubernetes {
        let families = families_text(config);
        return Ok(Err(format!(
            "node.spec.podCIDRs has no {families} prefix (option ipam=kubernetes)"
        )));
    }
    own.announce(&addresses, &[], &[], None).await?;
    let error = announced.operator_error;
    let reason = if error.is_empty() { "the operator has not answered yet" } else { &error };
    Ok(Err(format!(
        "CiliumNode.spec.ipam.podCIDRs has no {} prefix: {reason}",
        families_text(config)
    )))
}

/// The addresses that other nodes should use.
fn addresses_of(announced: &Announced, uplink: &[IpAddr]) -> Vec<IpAddr> {
    if announced.addresses.is_empty() { uplink.to_vec() } else { announced.addresses.clone() }
}

/// Whether there is a prefix of every family that pods need.
fn covers(config: &Config, cidrs: &[IpNet]) -> bool {
    let has = |is_ipv4: bool| cidrs.iter().any(|c| c.addr().is_ipv4() == is_ipv4);
    (!config.enable_ipv4 || has(true)) && (!config.enable_ipv6 || has(false))
}

fn enabled(config: &Config, cidrs: &[IpNet]) -> Vec<IpNet> {
    let is_on =
        |c: &&IpNet| if c.addr().is_ipv4() { config.enable_ipv4 } else { config.enable_ipv6 };
    cidrs.iter().filter(is_on).copied().collect()
}

fn families_text(config: &Config) -> &'static str {
    match (config.enable_ipv4, config.enable_ipv6) {
        (true, true) => "IPv4 and IPv6",
        (true, false) => "IPv4",
        (false, _) => "IPv6",
    }
}

/// The addresses that `cilium_host` has already.
fn router_of_device(netlink: &Netlink) -> Vec<IpAddr> {
    let addresses = netlink
        .link_by_name(HOST_DEVICE)
        .and_then(|link| netlink.addresses(Some(link.index)))
        .unwrap_or_default();
    addresses.into_iter().map(|address| address.net.addr()).collect()
}

/// The router's address of each family: the one that it had before, if that still fits, else the
/// first of the pool.
fn choose_routers(
    config: &Config,
    pod_cidrs: &[IpNet],
    before: &[IpAddr],
) -> Result<Vec<IpAddr>, crate::ipam::IpamError> {
    let mut ipam = Ipam::new(pod_cidrs, config.enable_ipv4, config.enable_ipv6);
    let first = ipam.allocate(Families::All, ROUTER, std::time::Instant::now())?;
    let fits = |address: &&IpAddr| pod_cidrs.iter().any(|cidr| cidr.contains(*address));
    let chosen = first.iter().map(|fallback| {
        let same_family = |a: &&IpAddr| a.is_ipv4() == fallback.is_ipv4();
        *before.iter().filter(fits).find(same_family).unwrap_or(fallback)
    });
    Ok(chosen.collect())
}

/// Keeps our `CiliumNode` true, and ends with an error when the node was given other pod CIDRs.
pub async fn keep_announced(
    job: Job,
    own: OwnNode,
    ipam: IpamMode,
    node: Arc<LocalNode>,
    nodes: Table<Node>,
    mut health: watch::Receiver<Vec<IpAddr>>,
    checkpoints: Checkpoints,
) -> Result<(), String> {
    let mut changes = nodes.watch();
    loop {
        let endpoint = health.borrow_and_update().clone();
        match announce_once(&own, ipam, &node, &endpoint, &checkpoints).await {
            Ok(()) => job.ok(""),
            Err(Announce::Later(reason)) => job.degraded(reason),
            Err(Announce::Never(reason)) => return Err(reason),
        }
        let own_row = |rows: &statedb::Snapshot<Node>| {
            rows.get(&node.name).is_some_and(|row| {
                row.router_addresses == node.routers
                    && row.addresses == node.addresses
                    && row.health_addresses == endpoint
            })
        };
        let is_told = own_row(&changes.borrow_and_update());
        tokio::select! {
            () = job.stop.cancelled() => return Ok(()),
            _ = changes.wait_for(|rows| own_row(rows) != is_told), if is_told => {}
            Ok(()) = health.changed() => {}
            () = tokio::time::sleep(RETRY_INTERVAL), if !is_told => {}
        }
    }
}

enum Announce {
    Later(String),
    Never(String),
}

async fn announce_once(
    own: &OwnNode,
    ipam: IpamMode,
    node: &LocalNode,
    health: &[IpAddr],
    checkpoints: &Checkpoints,
) -> Result<(), Announce> {
    let later = |error: kube::Error| Announce::Later(brief(&error));
    let announced = own.read().await.map_err(later)?;
    let given = match ipam {
        IpamMode::ClusterPool => &announced.cilium_cidrs,
        IpamMode::Kubernetes => &announced.kubernetes_cidrs,
    };
    let missing = node.pod_cidrs.iter().find(|cidr| !given.is_empty() && !given.contains(cidr));
    if let Some(cidr) = missing {
        checkpoints.remove_node();
        return Err(Announce::Never(format!(
            "the node's pod CIDR {cidr} was replaced by {given:?}; the agent must start anew"
        )));
    }
    // In mode cluster-pool an object that lost its prefixes gets back those that our pods use: the
    // operator honours what stands there.
    let cidrs = match ipam {
        IpamMode::Kubernetes => Some(node.pod_cidrs.as_slice()),
        IpamMode::ClusterPool => given.is_empty().then_some(node.pod_cidrs.as_slice()),
    };
    own.announce(&node.addresses, &node.routers, health, cidrs).await.map_err(later)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_router_keeps_its_addresses() {
        let config = Config::default();
        let cidrs: Vec<IpNet> =
            ["10.0.1.0/24", "fd00::100/120"].iter().map(|c| c.parse().unwrap()).collect();
        let check = |before: &[&str], expected: &[&str]| {
            let before: Vec<IpAddr> = before.iter().map(|a| a.parse().unwrap()).collect();
            let routers = choose_routers(&config, &cidrs, &before).unwrap();
            assert_eq!(routers.iter().map(ToString::to_string).collect::<Vec<_>>(), expected);
        };
        check(&[], &["10.0.1.1", "fd00::101"]);
        check(&["10.0.1.77"], &["10.0.1.77", "fd00::101"]);
        check(&["10.0.2.77", "fe80::1", "fd00::155"], &["10.0.1.1", "fd00::155"]);
    }
}
