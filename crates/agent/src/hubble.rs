//! Hubble on this node: the observer, what it knows about addresses, and its servers.
//!
//! ```text
//!  rings ──monitor──► observer ──► hubble.sock, hubble-listen-address
//!  tables ──follow──► directory ──┘
//! ```
//!
//! The monitor's thread hands events over; here is only what the observer needs to know.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use api::config::Config;
use api::hubble::flow::{
    AgentEvent, AgentEventType, EndpointUpdateNotification, IpCacheNotification, LostEventSource,
    TimeNotification, agent_event::Notification,
};
use flow::Row;
use flow::directory::{Deciders, Directory, IdentityLabels, Peer, Workload};
use flow::export::{self, Export, Rotation};
use flow::message::{NodeInfo, node_name, timestamp};
use flow::metrics::Metrics;
use flow::observer::{Correlator, Observer, Tap, now_ns};
use flow::server::tls::{Identity as Certificate, Reloading, ServerFiles};
use flow::server::{self, Listener, NodeAddress, PeerInfo, PeerService, Peers};
use kernel::netlink::Netlink;
use model::IdentityId;
use statedb::job::{Group, Job};
use statedb::{Change, Changes, Table};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::watch;

use crate::controllers::LocalNode;
use crate::identity::Identity;
use crate::policy::controller::SharedEngine;
use crate::tables::{ClusterEndpoint, Endpoint, IpcacheEntry, LocalPod, Node};

/// How often unusable certificates are looked at again.
const CERTIFICATES_INTERVAL: Duration = Duration::from_secs(5);
/// How often the node's devices are read.
const DEVICES_INTERVAL: Duration = Duration::from_secs(30);
/// The end of the names in certificates.
const SERVER_NAME_SUFFIX: &str = "hubble-grpc.cilium.io";

/// The tables that say who is who.
pub struct Known {
    /// Pods of this node, as endpoints.
    pub endpoints: Table<Endpoint>,
    /// Pods of this node, as Kubernetes has them.
    pub pods: Table<LocalPod>,
    /// Pods of the cluster.
    pub cluster: Table<ClusterEndpoint>,
    /// Nodes of the cluster.
    pub nodes: Table<Node>,
    /// Identities of the cluster.
    pub identities: Table<Identity>,
    /// Who is behind a prefix.
    pub ipcache: Table<IpcacheEntry>,
    /// Knows the rules behind verdicts.
    pub policies: SharedEngine,
}

/// The observer, and what is counted of its flows.
#[derive(Clone)]
pub struct Hubble {
    /// Sees every event.
    pub observer: Arc<Observer>,
    metrics: Arc<Metrics>,
}

/// Counts flows for whoever has a share of the metrics.
struct Counting(Arc<Metrics>);

impl Tap for Counting {
    fn flow(&self, row: &Row) {
        self.0.flow(row);
    }

    fn lost(&self, source: LostEventSource, count: u64) {
        self.0.lost(source, count);
    }
}

/// Asks the policy engine for the rules behind a verdict.
struct Rules(SharedEngine);

impl Correlator for Rules {
    fn deciders(&self, cookie: u32) -> Option<Deciders> {
        let engine = self.0.lock();
        let rules = engine.repository().rules_of(cookie);
        let revision = engine.repository().revision();
        let mut deciders = Deciders::default();
        for rule in &rules {
            let id = &rule.policy;
            let policy = api::hubble::flow::Policy {
                name: id.name.clone(),
                namespace: id.namespace.clone(),
                labels: Vec::new(),
                revision,
                kind: id.kind.to_string(),
            };
            if !deciders.policies.contains(&policy) {
                deciders.policies.push(policy);
            }
            let log = rule.log.as_deref().map(str::to_owned);
            deciders.logs.extend(log.filter(|log| !deciders.logs.contains(log)));
        }
        (!rules.is_empty()).then_some(deciders)
    }
}

/// Makes the observer, if there shall be one.
pub fn observer(config: &Config, node: &LocalNode) -> anyhow::Result<Option<Hubble>> {
    if !config.enable_hubble {
        return Ok(None);
    }
    let metrics = Metrics::parse(config.hubble_metrics.split_whitespace());
    let metrics = Arc::new(metrics.context("option hubble-metrics")?);
    let taps: Vec<Box<dyn Tap>> = vec![Box::new(Counting(metrics.clone()))];
    let info = NodeInfo {
        name: node_name(&config.cluster_name, node.name.as_str()),
        labels: Vec::new(),
        cluster: config.cluster_name.clone(),
        version: version(),
        // Two observers of one node differ in when they began.
        instance: now_ns() ^ (u64::from(std::process::id()) << 40),
    };
    let capacity = usize::try_from(config.hubble_event_buffer_capacity).unwrap_or(usize::MAX);
    let observer = Arc::new(Observer::new(capacity, info, taps));
    Ok(Some(Hubble { observer, metrics }))
}

fn version() -> String {
    format!("cilium v{}", env!("CARGO_PKG_VERSION"))
}

/// Starts what keeps the observer informed, and its servers.
pub fn start(
    jobs: &Group,
    config: &Config,
    node: &Arc<LocalNode>,
    netlink: &Arc<Netlink>,
    hubble: &Hubble,
    known: Known,
) -> anyhow::Result<()> {
    let observer = &hubble.observer;
    observer.correlate(Box::new(Rules(known.policies.clone())));
    export(jobs, config, observer)?;
    if let Some(listen) = config.hubble_metrics_server.0 {
        let metrics = hubble.metrics.clone();
        jobs.spawn("hubble-metrics", move |job| serve_metrics(job, listen, metrics));
    }
    let (of, nodes) = (node.clone(), known.nodes.clone());
    jobs.spawn("hubble-directory", {
        let observer = observer.clone();
        move |job| follow(job, of, observer, known)
    });
    let (links, to) = (netlink.clone(), observer.clone());
    jobs.every("hubble-devices", DEVICES_INTERVAL, move || {
        let links = links.links().map(|links| {
            let names = links.into_iter().map(|link| (link.index, Arc::from(link.name)));
            to.directory_mut().interfaces.extend(names);
        });
        std::future::ready(links)
    });

    let addressing = Addressing::new(config);
    let peers = watch::Sender::new(Peers::new());
    let service = PeerService::new(peers.subscribe());
    let address = NodeAddress {
        address: addressing.address(&node.addresses).unwrap_or_default(),
        server_name: addressing.server_name(&node.name.to_string()),
    };
    if addressing.port.is_some() {
        jobs.spawn("hubble-peers", |job| follow_peers(job, addressing, nodes, peers));
    }
    let socket = unix_listener(&config.hubble_socket_path)?;
    let socket_text = config.hubble_socket_path.display().to_string();
    let (of, peers, at) = (observer.clone(), service.clone(), address.clone());
    jobs.spawn("hubble-socket", move |job| async move {
        job.ok(socket_text);
        let routes = server::agent_routes(of, at, peers).await;
        let stop = job.stop.clone();
        let served = server::serve(Listener::Unix(socket), routes, stop.cancelled_owned()).await;
        served.map_err(|error| error.to_string())
    });
    let Some(listen) = config.hubble_listen_address.0 else { return Ok(()) };
    let tls = server_files(config).map(|files| Arc::new(Reloading::new(files)));
    let of = observer.clone();
    jobs.spawn("hubble-server", move |job| async move {
        if let Some(tls) = &tls
            && !usable_certificates(&job, tls).await
        {
            return Ok(());
        }
        let bound = bind(listen).await;
        let socket = bound.map_err(|error| {
            format!("cannot listen on {listen} (option hubble-listen-address): {error}")
        })?;
        job.ok(format_args!("{listen}, {}", if tls.is_some() { "TLS" } else { "without TLS" }));
        let listener = match tls {
            Some(tls) => Listener::Tls(socket, tls),
            None => Listener::Tcp(socket),
        };
        let routes = server::agent_routes(of, address, service).await;
        let stop = job.stop.clone();
        let served = server::serve(listener, routes, stop.cancelled_owned()).await;
        served.map_err(|error| error.to_string())
    });
    Ok(())
}

/// Writes flows to a file, where one is named.
fn export(jobs: &Group, config: &Config, observer: &Arc<Observer>) -> anyhow::Result<()> {
    let path = config.hubble_export_file_path.clone();
    if path.is_empty() {
        return Ok(());
    }
    let allow = export::filters(&config.hubble_export_allowlist)
        .context("option hubble-export-allowlist")?;
    let deny =
        export::filters(&config.hubble_export_denylist).context("option hubble-export-denylist")?;
    let rotation = Rotation {
        len_max: u64::from(config.hubble_export_file_max_size_mb) << 20,
        backups_max: usize::try_from(config.hubble_export_file_max_backups).unwrap_or(usize::MAX),
    };
    let export = Export::new(&path, rotation, &allow, &deny, &config.hubble_export_fieldmask);
    let export = export.context("option hubble-export-file-path")?;
    let observer = observer.clone();
    jobs.spawn("hubble-export", move |job| async move {
        job.ok(&path);
        tokio::select! {
            () = job.stop.cancelled() => {}
            // A full disk must not end the agent.
            Err(error) = export.run(observer) => {
                tracing::warn!(%error, path, "Flows are no longer written to the file");
                job.degraded(error);
                job.stop.cancelled().await;
            }
        }
        Ok::<(), String>(())
    });
    Ok(())
}

/// Answers `/metrics` for Prometheus.
async fn serve_metrics(job: Job, listen: SocketAddr, metrics: Arc<Metrics>) -> Result<(), String> {
    let headers = [("content-type", "text/plain; version=0.0.4; charset=utf-8")];
    let answer = move || {
        let metrics = metrics.clone();
        async move { (headers, metrics.render()) }
    };
    let router = axum::Router::new().route("/metrics", axum::routing::get(answer));
    let listener = bind(listen).await.map_err(|error| {
        format!("cannot listen on {listen} (option hubble-metrics-server): {error}")
    })?;
    job.ok(listen);
    tokio::select! {
        () = job.stop.cancelled() => Ok(()),
        served = axum::serve(listener, router).into_future() => {
            served.map_err(|error| error.to_string())
        }
    }
}

/// Waits until there are certificates; false when told to stop before.
async fn usable_certificates(
    job: &Job,
    tls: &Reloading<ServerFiles, rustls::ServerConfig>,
) -> bool {
    loop {
        let Err(error) = tls.get() else { return true };
        let text = flow::client::chain(&error);
        tracing::warn!(
            error = text,
            "Hubble does not listen on hubble-listen-address: put the certificate and the key there, \
             or set hubble-disable-tls to true"
        );
        job.degraded(text);
        tokio::select! {
            () = job.stop.cancelled() => return false,
            () = tokio::time::sleep(CERTIFICATES_INTERVAL) => {}
        }
    }
}

/// All addresses; where the machine has no IPv6, those of IPv4.
async fn bind(address: SocketAddr) -> std::io::Result<TcpListener> {
    match TcpListener::bind(address).await {
        Err(_) if address.ip() == Ipv6Addr::UNSPECIFIED => {
            TcpListener::bind((Ipv4Addr::UNSPECIFIED, address.port())).await
        }
        bound => bound,
    }
}

/// The socket in place of the one that an agent before us left. Only root may use it.
fn unix_listener(path: &Path) -> anyhow::Result<UnixListener> {
    let opened = || {
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent)?;
        }
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(path)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660))?;
        Ok(listener)
    };
    opened()
        .with_context(|| format!("open the socket {} (option hubble-socket-path)", path.display()))
}

fn server_files(config: &Config) -> Option<ServerFiles> {
    let (certificate, key) =
        (config.hubble_tls_cert_file.clone()?, config.hubble_tls_key_file.clone()?);
    (!config.hubble_disable_tls).then(|| ServerFiles {
        identity: Certificate { certificate, key },
        client_authorities: config.hubble_tls_client_ca_files.iter().map(Into::into).collect(),
    })
}

/// How the servers of nodes are reached.
#[derive(Clone, Debug)]
struct Addressing {
    cluster: String,
    /// None where nodes serve their sockets only.
    port: Option<u16>,
    tls: bool,
    prefer_ipv6: bool,
}

impl Addressing {
    fn new(config: &Config) -> Self {
        Self {
            cluster: config.cluster_name.clone(),
            port: config.hubble_listen_address.0.map(|address| address.port()),
            tls: !config.hubble_disable_tls,
            prefer_ipv6: config.hubble_prefer_ipv6,
        }
    }

    fn address(&self, addresses: &[IpAddr]) -> Option<String> {
        let preferred = addresses.iter().find(|a| a.is_ipv6() == self.prefer_ipv6);
        let address = preferred.or(addresses.first())?;
        Some(SocketAddr::new(*address, self.port?).to_string())
    }

    /// The name in the certificate of a node.
    fn server_name(&self, node: &str) -> Option<String> {
        let label = |text: &str| text.to_ascii_lowercase().replace('.', "-");
        let (node, cluster) = (label(node), label(&self.cluster));
        (self.tls && self.port.is_some()).then(|| format!("{node}.{cluster}.{SERVER_NAME_SUFFIX}"))
    }

    fn peers<'a>(&self, nodes: impl Iterator<Item = &'a Arc<Node>>) -> Peers {
        let peer = |node: &'a Arc<Node>| {
            let name = node.name.to_string();
            let server_name = self.server_name(&name);
            let address = self.address(&node.addresses)?;
            Some((node_name(&self.cluster, &name), PeerInfo { address, server_name }))
        };
        nodes.filter_map(peer).collect()
    }
}

/// Tells the relay of the nodes of the cluster.
async fn follow_peers(
    job: Job,
    addressing: Addressing,
    nodes: Table<Node>,
    peers: watch::Sender<Peers>,
) -> Result<(), String> {
    let mut snapshots = nodes.watch();
    loop {
        let current = addressing.peers(snapshots.borrow_and_update().rows());
        job.ok(format_args!("{} peers", current.len()));
        peers.send_if_modified(|known| {
            let changed = *known != current;
            if changed {
                known.clone_from(&current);
            }
            changed
        });
        tokio::select! {
            () = job.stop.cancelled() => return Ok(()),
            changed = snapshots.changed() => if changed.is_err() { return Ok(()) },
        }
    }
}

/// Keeps the directory as the tables are, and tells clients what the agent did.
async fn follow(
    job: Job,
    node: Arc<LocalNode>,
    observer: Arc<Observer>,
    known: Known,
) -> Result<(), String> {
    observer.agent_event(started());
    let mut endpoints = known.endpoints.changes();
    let mut pods = known.pods.changes();
    let mut cluster = known.cluster.changes();
    let mut nodes = known.nodes.changes();
    let mut identities = known.identities.changes();
    let mut ipcache = known.ipcache.changes();
    let mut created = BTreeSet::new();
    loop {
        tokio::select! {
            () = job.stop.cancelled() => return Ok(()),
            alive = endpoints.changed() => if !alive { return Ok(()) },
            alive = pods.changed() => if !alive { return Ok(()) },
            alive = cluster.changed() => if !alive { return Ok(()) },
            alive = nodes.changed() => if !alive { return Ok(()) },
            alive = identities.changed() => if !alive { return Ok(()) },
            alive = ipcache.changed() => if !alive { return Ok(()) },
        }
        let changed_endpoints = endpoints.take();
        let changed_pods: BTreeSet<_> = pods.take().iter().map(Change::key).collect();
        let changed_ipcache = ipcache.take();
        {
            let directory = &mut *observer.directory_mut();
            apply_identities(directory, &mut identities);
            apply_nodes(directory, &node, nodes.take());
            apply_cluster(directory, &node, cluster.take());
            let workloads = |endpoint: &Endpoint| workloads(&known.pods, endpoint);
            for change in &changed_endpoints {
                apply_endpoint(directory, change, &workloads);
            }
            for endpoint in known.endpoints.snapshot().rows() {
                // What runs a pod may be known later than the pod.
                if endpoint.spec.pod().is_some_and(|pod| changed_pods.contains(&pod)) {
                    apply_endpoint(directory, &Change::Upsert(endpoint.clone()), &workloads);
                }
            }
        }
        for change in &changed_endpoints {
            let is_news = match change {
                // One that only changes is no news.
                Change::Upsert(row) => {
                    row.state == model::EndpointState::Ready && created.insert(row.id)
                }
                Change::Delete(row) => created.remove(&row.id),
            };
            if is_news {
                observer.agent_event(endpoint_event(change));
            }
        }
        changed_ipcache.iter().for_each(|change| observer.agent_event(ipcache_event(change)));
    }
}

fn apply_identities(directory: &mut Directory, changes: &mut Changes<Identity>) {
    for change in changes.take() {
        match change {
            Change::Upsert(row) => {
                let cluster = row.labels.value(model::label::SOURCE_K8S, model::label::KEY_CLUSTER);
                let cluster = cluster.unwrap_or_default().to_owned();
                let labels = IdentityLabels { labels: row.labels.to_strings(), cluster };
                directory.identities.insert(row.id.0, Arc::new(labels));
            }
            Change::Delete(row) => drop(directory.identities.remove(&row.id.0)),
        }
    }
}

fn apply_nodes(directory: &mut Directory, own: &LocalNode, changes: Vec<Change<Node>>) {
    for change in changes {
        let (row, is_here) = match &change {
            Change::Upsert(row) => (row, true),
            Change::Delete(row) => (row, false),
        };
        let identity = if row.local { IdentityId::HOST } else { IdentityId::REMOTE_NODE };
        let endpoint_id = if row.local { own.host_endpoint_id } else { 0 };
        let node = Arc::new(Peer { endpoint_id, identity: identity.0, ..Peer::default() });
        let health = Arc::new(Peer { identity: IdentityId::HEALTH.0, ..Peer::default() });
        let of_node = row.addresses.iter().chain(&row.router_addresses).map(|a| (a, &node));
        for (address, peer) in of_node.chain(row.health_addresses.iter().map(|a| (a, &health))) {
            if is_here {
                directory.peers.insert(*address, peer.clone());
            } else {
                directory.peers.remove(address);
            }
        }
    }
}

/// Pods of other nodes. What the API server says of our own is an echo.
fn apply_cluster(
    directory: &mut Directory,
    own: &LocalNode,
    changes: Vec<Change<ClusterEndpoint>>,
) {
    for change in changes {
        let (row, is_here) = match &change {
            Change::Upsert(row) => (row, true),
            Change::Delete(row) => (row, false),
        };
        if row.node.is_none_or(|node| own.addresses.contains(&node)) {
            continue;
        }
        let peer = Arc::new(Peer {
            endpoint_id: 0,
            identity: row.identity.0,
            namespace: row.pod.namespace.clone(),
            pod: row.pod.name.clone(),
            workloads: Vec::new(),
        });
        for address in &row.addresses {
            if is_here {
                directory.peers.insert(*address, peer.clone());
            } else {
                remove(directory, *address, &peer);
            }
        }
    }
}

fn apply_endpoint(
    directory: &mut Directory,
    change: &Change<Endpoint>,
    workloads: &dyn Fn(&Endpoint) -> Vec<Workload>,
) {
    let (row, is_here) = match change {
        Change::Upsert(row) => (row, true),
        Change::Delete(row) => (row, false),
    };
    let peer = Arc::new(Peer {
        endpoint_id: row.id.number(),
        identity: row.identity.id.0,
        namespace: row.spec.pod_namespace.clone(),
        pod: row.spec.pod_name.clone(),
        workloads: workloads(row),
    });
    for address in &row.spec.addresses {
        if is_here {
            directory.peers.insert(*address, peer.clone());
        } else {
            remove(directory, *address, &peer);
        }
    }
    if is_here {
        directory.interfaces.insert(row.spec.ifindex, row.spec.interface.as_str().into());
    }
}

/// Forgets an address, unless another pod has got it meanwhile.
fn remove(directory: &mut Directory, address: IpAddr, peer: &Peer) {
    let pod = |peer: &Peer| (peer.endpoint_id, peer.namespace.clone(), peer.pod.clone());
    if directory.peers.get(&address).is_some_and(|found| pod(found) == pod(peer)) {
        directory.peers.remove(&address);
    }
}

fn workloads(pods: &Table<LocalPod>, endpoint: &Endpoint) -> Vec<Workload> {
    let pod = endpoint.spec.pod().and_then(|pod| pods.get(&pod));
    let workload = pod.and_then(|pod| pod.workload.clone());
    workload.into_iter().map(|(kind, name)| Workload { name, kind }).collect()
}

fn started() -> AgentEvent {
    let time = Some(timestamp(now_ns()));
    AgentEvent {
        r#type: AgentEventType::AgentStarted.into(),
        notification: Some(Notification::AgentStart(TimeNotification { time })),
    }
}

/// What a change of an endpoint is to clients.
fn endpoint_event(change: &Change<Endpoint>) -> AgentEvent {
    let (row, event_type) = match change {
        Change::Upsert(row) => (row, AgentEventType::EndpointCreated),
        Change::Delete(row) => (row, AgentEventType::EndpointDeleted),
    };
    let update = EndpointUpdateNotification {
        id: row.id.number().into(),
        labels: row.identity.labels.to_strings(),
        error: String::new(),
        pod_name: row.spec.pod_name.clone(),
        namespace: row.spec.pod_namespace.clone(),
    };
    let notification = Some(Notification::EndpointUpdate(update));
    AgentEvent { r#type: event_type.into(), notification }
}

fn ipcache_event(change: &Change<IpcacheEntry>) -> AgentEvent {
    let (row, event_type) = match change {
        Change::Upsert(row) => (row, AgentEventType::IpcacheUpserted),
        Change::Delete(row) => (row, AgentEventType::IpcacheDeleted),
    };
    let update = IpCacheNotification {
        cidr: row.prefix.to_string(),
        identity: row.identity.0,
        host_ip: row.tunnel.node().map(|node| node.to_string()).unwrap_or_default(),
        ..IpCacheNotification::default()
    };
    AgentEvent {
        r#type: event_type.into(),
        notification: Some(Notification::IpcacheUpdate(update)),
    }
}
