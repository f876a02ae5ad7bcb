//! Rounds of probes: every address of every node, by ICMP and by HTTP.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use api::rest::{
    HealthStatusResponse, NodeHealth, PathHealth, ProbeHealth, SelfStatus, TargetHealth,
};
use futures::{StreamExt, stream};
use k8s_openapi::jiff::Timestamp;
use statedb::job::Job;
use statedb::{Snapshot, Table};
use tokio::sync::{Mutex, watch};

use super::{http, icmp};
use crate::controllers::LocalNode;
use crate::tables::Node;

/// How long an address may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// Addresses that are probed at the same time.
const CONCURRENT_PATHS_MAX: usize = 32;
/// Time between rounds at ratio 0 and at ratio 1, before the size of the cluster counts.
const INTERVAL_MIN: Duration = Duration::from_secs(10);
const INTERVAL_MAX: Duration = Duration::from_secs(110);

/// What the options say of probes.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Name of the cluster.
    pub cluster: String,
    /// Port of the HTTP probe.
    pub port: u16,
    /// Echo requests of which one must be answered.
    pub icmp_attempts: u32,
    /// How rarely: 0 to 1.
    pub ratio: f64,
}

/// Probes the nodes, and knows what the last round found.
pub struct Prober {
    settings: Settings,
    node: Arc<LocalNode>,
    nodes: Table<Node>,
    last: watch::Sender<HealthStatusResponse>,
    /// One round at a time.
    probing: Mutex<()>,
}

impl Prober {
    /// Has probed nothing yet.
    pub fn new(settings: Settings, node: Arc<LocalNode>, nodes: Table<Node>) -> Self {
        let local = SelfStatus { name: format!("{}/{}", settings.cluster, node.name) };
        let none = HealthStatusResponse { local, ..HealthStatusResponse::default() };
        Self { settings, node, nodes, last: watch::Sender::new(none), probing: Mutex::new(()) }
    }

    /// What the last round found.
    pub fn last(&self) -> HealthStatusResponse {
        self.last.borrow().clone()
    }

    /// Probes every interval until told to stop.
    pub async fn run(self: Arc<Self>, job: Job) -> Result<(), String> {
        let every = async {
            // Before, not even the own node is known.
            let _ = self.nodes.initialized().await;
            loop {
                let found = self.round().await;
                job.ok(found.sum().msg);
                tokio::time::sleep(self.interval()).await;
            }
        };
        tokio::select! {
            () = job.stop.cancelled() => Ok(()),
            () = every => Ok(()),
        }
    }

    /// Probes now.
    pub async fn round(&self) -> HealthStatusResponse {
        let _one_at_a_time = self.probing.lock().await;
        let plan = plan(&self.settings.cluster, &self.node, &self.nodes.snapshot());
        let paths = plan.iter().flat_map(|node| node.host.iter().chain(&node.endpoint)).copied();
        let probes: Vec<_> = paths.map(|address| self.path(address)).collect();
        let found: Vec<PathHealth> =
            stream::iter(probes).buffered(CONCURRENT_PATHS_MAX).collect().await;
        let response = HealthStatusResponse {
            local: self.last.borrow().local.clone(),
            nodes: assemble(plan, found),
            timestamp: now(),
            probe_interval: go_duration(self.interval()),
        };
        self.last.send_replace(response.clone());
        response
    }

    async fn path(&self, ip: IpAddr) -> PathHealth {
        let (icmp, http) = tokio::join!(
            icmp::ping(ip, self.settings.icmp_attempts, PATIENCE),
            http::get(ip, self.settings.port, PATIENCE),
        );
        PathHealth { ip, icmp: probe_health(icmp), http: probe_health(http) }
    }

    fn interval(&self) -> Duration {
        interval(self.settings.ratio, self.nodes.snapshot().len())
    }
}

/// A node and what of it is to be probed.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Target {
    name: String,
    host: Vec<IpAddr>,
    endpoint: Vec<IpAddr>,
}

/// All nodes in the order of their names, the own one first. Families that are off are left out: with
/// them, nobody could be reached.
fn plan(cluster: &str, own: &LocalNode, nodes: &Snapshot<Node>) -> Vec<Target> {
    let enabled = |addresses: &[IpAddr]| -> Vec<IpAddr> {
        let is_on = |ip: &&IpAddr| if ip.is_ipv4() { own.enable_ipv4 } else { own.enable_ipv6 };
        addresses.iter().filter(is_on).copied().collect()
    };
    let mut rows: Vec<_> = nodes.rows().collect();
    rows.sort_by_key(|row| (!row.local, &row.name));
    let target = |row: &Arc<Node>| Target {
        name: format!("{cluster}/{}", row.name),
        host: enabled(&row.addresses),
        endpoint: enabled(&row.health_addresses),
    };
    rows.into_iter().map(target).collect()
}

/// Sorts what was found by node; `found` is in the order of the plan.
fn assemble(plan: Vec<Target>, found: Vec<PathHealth>) -> Vec<NodeHealth> {
    let mut found = found.into_iter();
    let mut target = |addresses: &[IpAddr]| {
        let mut paths = found.by_ref().take(addresses.len());
        TargetHealth { primary_address: paths.next(), secondary_addresses: paths.collect() }
    };
    let node = |planned: Target| NodeHealth {
        name: planned.name,
        host: target(&planned.host),
        health_endpoint: (!planned.endpoint.is_empty()).then(|| target(&planned.endpoint)),
    };
    plan.into_iter().map(node).collect()
}

fn probe_health(found: std::io::Result<Duration>) -> ProbeHealth {
    let last_probed = now();
    match found {
        Ok(latency) => ProbeHealth {
            latency: u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX),
            status: String::new(),
            last_probed,
        },
        Err(error) => ProbeHealth { latency: 0, status: error.to_string(), last_probed },
    }
}

fn now() -> String {
    Timestamp::now().to_string()
}

/// Each node probes all others: in a cluster twice as large a node is probed by twice as many, so
/// the time between rounds grows with the logarithm of the size.
fn interval(ratio: f64, nodes: usize) -> Duration {
    let base = INTERVAL_MIN + (INTERVAL_MAX - INTERVAL_MIN).mul_f64(ratio);
    base.mul_f64((nodes.max(1) as f64).ln_1p())
}

/// Whole seconds as Go writes them: `1m6s`.
fn go_duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
        (0, 0, s) => format!("{s}s"),
        (0, m, s) => format!("{m}m{s}s"),
        (h, m, s) => format!("{h}h{m}m{s}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(name: &str, host: &[&str], endpoint: &[&str]) -> Target {
        let parse = |all: &[&str]| all.iter().map(|ip| ip.parse().unwrap()).collect();
        Target { name: name.to_owned(), host: parse(host), endpoint: parse(endpoint) }
    }

    #[test]
    fn what_is_found_is_sorted_by_node() {
        let plan = vec![
            target("a", &["172.18.1.1", "fd00:18::1"], &["10.0.0.2"]),
            target("b", &["172.18.1.2"], &[]),
            target("c", &[], &["10.0.2.2", "fd00::202"]),
        ];
        let paths = plan.iter().flat_map(|node| node.host.iter().chain(&node.endpoint));
        let found = paths.map(|ip| PathHealth {
            ip: *ip,
            icmp: ProbeHealth::default(),
            http: ProbeHealth::default(),
        });
        let found = found.collect();
        for (planned, node) in plan.clone().iter().zip(assemble(plan, found)) {
            let ips = |target: &TargetHealth| -> Vec<IpAddr> {
                target.paths().map(|path| path.ip).collect()
            };
            assert_eq!(node.name, planned.name);
            assert_eq!(ips(&node.host), planned.host);
            let endpoint = node.health_endpoint.as_ref().map(ips).unwrap_or_default();
            assert_eq!(endpoint, planned.endpoint);
        }
    }

    #[test]
    fn larger_clusters_probe_more_rarely() {
        assert_eq!(interval(0.0, 0).as_secs(), 6);
        assert_eq!(interval(0.5, 2).as_secs(), 65);
        assert!(interval(0.5, 100) > 4 * interval(0.5, 2));
        assert_eq!(go_duration(interval(0.5, 2)), "1m5s");
        assert_eq!(go_duration(Duration::from_secs(3723)), "1h2m3s");
    }
}
