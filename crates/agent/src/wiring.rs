//! How the agent is put together: one function, in order.
//!
//! ```text
//!  1 requirements, locks      root, kernel, bpffs, cgroup2; one agent per node
//!  2 tables, watches          Kubernetes fills the intent tables from here on
//!  3 who are we               checkpoint, else the API server: addresses, pod CIDRs
//!  4 base                     sysctls, cilium_host, cilium_vxlan, programs at the node's devices
//!  5 controllers, reconcilers desired tables and the kernel follow the intent tables
//!  6 restore                  endpoints of the agent before us; queued deletions
//!  7 REST API, Hubble, health the CNI plugin can ask; the health endpoint answers
//!  8 ready                    all sources synchronised, all maps written: the CNI configuration
//! ```
//!
//! A packet notices none of it on a restart: what runs goes on until it is replaced in one step, and
//! nothing is pruned before step 8.

use std::collections::BTreeSet;
use std::fs::File;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use abi::DatapathConfig;
use abi::config as datapath_config;
use abi::conntrack::{self, ticks_of_seconds};
use abi::names;
use anyhow::{Context, bail};
use api::config::{AllowLocalhost, Config, Loaded, MonitorAggregation, RoutingMode};
use api::crd::{CiliumEndpoint, CiliumIdentity, CiliumNode};
use api::k8s as objects;
use kernel::datapath::{Datapath, LoadOptions, MapSizes};
use kernel::netlink::{Netlink, TcHook};
use kernel::{bpffs, events, requirements};
use kube::runtime::watcher;
use kube::{Api, Client};
use model::{IdentityId, Mac, NodeName};
use nix::fcntl::{Flock, FlockArg};
use statedb::job::Group;
use statedb::reconciler::{Pace, Progress, Target};
use statedb::{Initializer, Reconciler, Row, Table, Writer};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;

use crate::base;
use crate::checkpoint::{Checkpoints, NodeCheckpoint};
use crate::cni_conf::CniConf;
use crate::controllers::{self, LocalNode, Output, Sources};
use crate::delete_queue::{DeleteQueue, Deletion, Holder, QueueLock};
use crate::endpoint::{
    DeviceError, Devices, Endpoints, HOST_ENDPOINT_ID, LabelRules, MapProgress, Parts,
};
use crate::health;
use crate::hubble;
use crate::identity::{Identities, Identity};
use crate::ipam::Ipam;
use crate::k8s::{self, convert, watch::reflect};
use crate::monitor::{self, Monitor};
use crate::policy;
use crate::policy::controller::{Adopted, Computed, PolicyOutputs, PolicySources, SharedEngine};
use crate::policy::engine::Engine;
use crate::policy::local_identity::LocalIdentities;
use crate::policy::realize::{PolicyMaps, PolicyTarget, SlotRow};
use crate::policy::slots::Slots;
use crate::policy::tables::PolicyIntent;
use crate::ready::{Pending, Ready};
use crate::rest::{self, Agent, Socket};
use crate::startup;
use crate::tables::{
    ClusterEndpoint, DesiredRoute, Device, EndpointPolicy, HostAddress, IpcacheEntry,
    LabelledPrefix, LocalAddress, LocalPod, Namespace, Node,
};
use crate::targets::{IpcacheTarget, MapTarget, RouteTarget, rows_of_ipcache};

/// How long a plugin that writes to the delete queue may keep us from starting.
const QUEUE_PATIENCE: Duration = Duration::from_secs(10);
/// How often the node's own addresses are read.
const HOST_ADDRESSES_INTERVAL: Duration = Duration::from_secs(60);
/// How often endpoints are looked for whose device is gone.
const GARBAGE_INTERVAL: Duration = Duration::from_secs(30);
/// How often programs are looked for that somebody took off a device.
const ATTACH_INTERVAL: Duration = Duration::from_secs(300);
/// How often reservations are looked through for expired ones.
const EXPIRE_INTERVAL: Duration = Duration::from_secs(60);
/// How long jobs may take to end.
const SHUTDOWN_DEADLINE: Duration = Duration::from_secs(5);

/// Runs the agent of the node `name` until a signal or a failure ends it. The datapath goes on
/// either way.
pub async fn run(loaded: Loaded, name: NodeName) -> anyhow::Result<()> {
    let Loaded { config, set, .. } = loaded;
    // 1 Requirements, locks.
    let mut signals = Signals::new()?;
    let _lock = prepare_machine(&config)?;
    let jobs = Group::new();

    // 2 Tables, watches.
    let client = k8s::client(config.k8s_kubeconfig_path.as_deref()).await?;
    let checkpoints = Checkpoints::below(&config.state_dir);
    let restart = checkpoints.node()?.is_some();
    let (ready, maps_written) = Ready::after("the datapath's maps", restart);
    let intent = watch_kubernetes(&jobs, &client, &config, &name, &ready);

    // 3 Who are we.
    let own = k8s::node::OwnNode::new(client.clone(), name.clone());
    let netlink = Arc::new(Netlink::new()?);
    let discovered = tokio::select! {
        checkpoint = startup::discover(
            &config, &own, &intent.nodes, &name, &netlink, &checkpoints,
        ) => checkpoint?,
        result = ended(&jobs, &mut signals) => return result,
    };

    // 4 Base.
    let Base { node, datapath } = tokio::task::block_in_place(|| {
        prepare_base(&config, name, discovered, &netlink, &checkpoints)
    })?;

    // 5 Controllers, reconcilers.
    let (endpoint_table, endpoint_writer) = Table::new("endpoints");
    let restored_all = endpoint_writer.initializer("restore");
    let policy_tables = PolicyTables::new();
    let sources = Sources {
        endpoints: endpoint_table.clone(),
        cluster: intent.cluster.clone(),
        nodes: intent.nodes.clone(),
        host: follow_host_addresses(&jobs, &netlink),
        policies: policy_tables.policies.table().clone(),
        labelled: policy_tables.labelled.table().clone(),
        slots: policy_tables.slots.table().clone(),
    };
    let kernel_maps = &datapath.maps;
    let targets = MapTargets {
        addresses: MapTarget(kernel_maps.lxc.clone()),
        devices: MapTarget(kernel_maps.lxc_devices.clone()),
        ipcache: IpcacheTarget {
            hosts: kernel_maps.ipcache_hosts.clone(),
            prefixes: kernel_maps.ipcache.clone(),
        },
        policy: PolicyMaps {
            entries: kernel_maps.policy.clone(),
            revisions: kernel_maps.policy_revisions.clone(),
        },
    };
    let adopted = targets.adopt(&config.state_dir)?;
    let (maps, routes) = follow_intent(&jobs, &node, &sources, targets);
    let policy_sources = PolicySources {
        intent: intent.policy.clone(),
        identities: intent.identities.table().clone(),
        cluster: intent.cluster.clone(),
        nodes: intent.nodes.clone(),
        pods: intent.pods.clone(),
        endpoints: endpoint_table.clone(),
    };
    let options = policy_options(&config, &node);
    let policies = follow_policies(&jobs, policy_sources, options, adopted, policy_tables, &maps);
    reconcile(&jobs, &routes, RouteTarget(netlink.clone()));
    let all_identities = intent.identities.table().clone();
    let identities =
        Identities::new(Arc::new(k8s::identity::Store::new(client.clone())), intent.identities);
    let endpoints = Arc::new(Endpoints::new(Parts {
        writer: endpoint_writer,
        ipam: ipam(&config, &node)?,
        identities: Arc::new(identities),
        pods: intent.pods.clone(),
        namespaces: intent.namespaces.clone(),
        source: Arc::new(k8s::identity::Pods::new(client.clone(), node.name.clone())),
        devices: Arc::new(KernelDevices { datapath: datapath.clone(), netlink: netlink.clone() }),
        maps: maps.clone(),
        checkpoints: checkpoints.clone(),
        rules: LabelRules { cluster: config.cluster_name.clone(), filter: config.labels.clone() },
    }));

    // 6 Restore.
    let restored = tokio::task::block_in_place(|| endpoints.restore())?;
    tracing::info!(
        adopted = restored.adopted.len(),
        forgotten = restored.forgotten,
        "Restored endpoints"
    );
    restored_all.done();
    let queue_lock = catch_up_with_queue(&config, &endpoints).await?;

    // 7 REST API, Hubble.
    let hubble = hubble::observer(&config, &node)?;
    if let Some(hubble) = &hubble {
        let known = hubble::Known {
            endpoints: endpoint_table,
            pods: intent.pods.clone(),
            cluster: intent.cluster.clone(),
            nodes: intent.nodes.clone(),
            identities: all_identities,
            ipcache: maps.ipcache_table.clone(),
            policies: policies.engine.clone(),
        };
        hubble::start(&jobs, &config, &node, &netlink, hubble, known)?;
    }
    let agent = Arc::new(Agent {
        prober: health::prober(&config, &node, &intent.nodes),
        config,
        config_set: set,
        node: node.clone(),
        endpoints: endpoints.clone(),
        nodes: intent.nodes.clone(),
        cluster: intent.cluster.clone(),
        routes,
        maps: maps.clone(),
        policies,
        datapath: datapath.clone(),
        health: jobs.health().clone(),
        monitor: Arc::new(Monitor::new(hubble.map(|hubble| hubble.observer))),
        ready: ready.clone(),
    });
    let socket = Socket::open(&agent.config.socket_path)
        .with_context(|| format!("open the socket {}", agent.config.socket_path.display()))?;
    rest::spawn(&jobs, socket, &agent);
    drop(queue_lock);

    // What goes on from here, and 8 ready.
    publish_endpoints(&jobs, &client, &node, &endpoints, &intent.pods, &intent.cluster);
    look_after_endpoints(&jobs, &endpoints, restored.adopted, &intent.pods);
    jobs.spawn("relabel", {
        let (endpoints, namespaces) = (endpoints.clone(), intent.namespaces.clone());
        let pods = intent.pods.clone();
        move |job| crate::relabel::run(job, endpoints, pods, namespaces)
    });
    let (announced, health_addresses) = watch::channel(Vec::new());
    health::start(&jobs, &agent, &netlink, announced, ready.wait_for("the health endpoint"));
    jobs.spawn("announce-node", {
        let (nodes, ipam) = (intent.nodes.clone(), agent.config.ipam);
        move |job| {
            startup::keep_announced(job, own, ipam, node, nodes, health_addresses, checkpoints)
        }
    });
    jobs.spawn("monitor", {
        let (monitor, datapath) = (agent.monitor.clone(), datapath.clone());
        move |job| monitor::run(job, monitor, datapath)
    });
    jobs.spawn("conntrack-gc", {
        let (datapath, endpoints) = (datapath.clone(), endpoints.table().clone());
        let interval = agent.config.conntrack_gc_interval;
        let pace = crate::conntrack::Pace {
            interval: (!interval.is_zero()).then_some(interval),
            interval_max: agent.config.conntrack_gc_max_interval,
        };
        move |job| crate::conntrack::run(job, datapath, endpoints, pace)
    });
    jobs.spawn("policy-lockdown", {
        let (client, table) = (client.clone(), agent.policies.table.clone());
        let (endpoints, engine) = (endpoints.table().clone(), agent.policies.engine.clone());
        move |job| policy::lockdown::run(job, client, table, endpoints, engine)
    });
    jobs.spawn("policy-report", {
        let (client, namespace) = (client.clone(), agent.config.k8s_namespace.clone());
        let (name, realised) = (agent.node.name.clone(), agent.policies.realised.clone());
        move |job| k8s::policy_report::run(job, client, namespace, name, realised)
    });
    jobs.spawn("ready", {
        let agent = agent.clone();
        move |job| become_ready(job, agent, maps_written)
    });

    ended(&jobs, &mut signals).await
}

/// The signals that end the agent, from its first moment on.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        let terminate = signal(SignalKind::terminate())?;
        Ok(Self { terminate, interrupt: signal(SignalKind::interrupt())? })
    }
}

/// Waits for a signal, or for a job that failed; then joins all jobs. What is in the kernel stays.
async fn ended(jobs: &Group, signals: &mut Signals) -> anyhow::Result<()> {
    let result = tokio::select! {
        _ = signals.terminate.recv() => Ok(()),
        _ = signals.interrupt.recv() => Ok(()),
        failed = jobs.supervise() => failed,
    };
    tracing::info!("Stopping; the datapath goes on without the agent");
    if let Err(error) = jobs.shutdown(SHUTDOWN_DEADLINE).await {
        tracing::warn!(%error, "Some jobs did not end in time");
    }
    result.map_err(Into::into)
}

/// Checks that the machine can do it, and that nobody else does it already.
fn prepare_machine(config: &Config) -> anyhow::Result<Flock<File>> {
    requirements::root()?;
    requirements::kernel()?;
    requirements::bpf()?;
    requirements::cgroup2()?;
    bpffs::mount(&config.bpf_root)?;
    let path = config.state_dir.join("agent.lock");
    std::fs::create_dir_all(&config.state_dir)
        .with_context(|| format!("create {} (option state-dir)", config.state_dir.display()))?;
    let file = File::options().create(true).append(true).open(&path)?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => Ok(lock),
        Err(_) => bail!(
            "another cilium-agent runs with the state directory {}: stop it first",
            config.state_dir.display()
        ),
    }
}

/// What Kubernetes says.
struct Intent {
    pods: Table<LocalPod>,
    namespaces: Table<Namespace>,
    identities: Writer<Identity>,
    nodes: Table<Node>,
    cluster: Table<ClusterEndpoint>,
    policy: PolicyIntent,
}

/// Starts a watch per kind of object. The agent is not ready before each has listed once.
fn watch_kubernetes(
    jobs: &Group,
    client: &Client,
    config: &Config,
    name: &NodeName,
    ready: &Ready,
) -> Intent {
    let everything = watcher::Config::default;
    let on_this_node = everything().fields(&format!("spec.nodeName={name}"));
    let (pods, pod_writer) = Table::new("pods");
    let complete = listed(jobs, &pods, &pod_writer, ready, "pods");
    jobs.spawn("watch-pods", {
        let api: Api<objects::Pod> = Api::all(client.clone());
        let key = |pod: &objects::Pod| convert::pod_name(&pod.metadata);
        move |job| reflect(job, api, on_this_node, pod_writer, complete, convert::local_pod, key)
    });
    let (namespaces, namespace_writer) = Table::new("namespaces");
    let complete = listed(jobs, &namespaces, &namespace_writer, ready, "namespaces");
    jobs.spawn("watch-namespaces", {
        let api: Api<objects::Namespace> = Api::all(client.clone());
        let row = |namespace: &objects::Namespace| Some(convert::namespace(namespace));
        let key = |n: &objects::Namespace| objects::name(&n.metadata).into_owned();
        move |job| reflect(job, api, everything(), namespace_writer, complete, row, key)
    });
    let (identities, identity_writer) = Table::new("identities");
    let complete = listed(jobs, &identities, &identity_writer, ready, "identities");
    jobs.spawn("watch-identities", {
        let api: Api<CiliumIdentity> = Api::all(client.clone());
        let key = |object: &CiliumIdentity| object.id().unwrap_or_default();
        let writer = identity_writer.clone();
        move |job| reflect(job, api, everything(), writer, complete, convert::identity, key)
    });
    let (nodes, node_writer) = Table::new("nodes");
    let complete = listed(jobs, &nodes, &node_writer, ready, "nodes");
    jobs.spawn("watch-nodes", {
        let api: Api<CiliumNode> = Api::all(client.clone());
        let own = name.clone();
        let row = move |node: &CiliumNode| Some(convert::node(node, &own));
        let key = |node: &CiliumNode| NodeName::new(objects::name(&node.metadata));
        move |job| reflect(job, api, everything(), node_writer, complete, row, key)
    });
    let (cluster, cluster_writer) = Table::new("cilium-endpoints");
    let complete = listed(jobs, &cluster, &cluster_writer, ready, "endpoints");
    jobs.spawn("watch-endpoints", {
        let api: Api<CiliumEndpoint> = Api::all(client.clone());
        let row = |endpoint: &CiliumEndpoint| Some(convert::cluster_endpoint(endpoint));
        let key = |endpoint: &CiliumEndpoint| convert::pod_name(&endpoint.metadata);
        move |job| reflect(job, api, everything(), cluster_writer, complete, row, key)
    });
    let policy = policy::watch::follow(jobs, client, config, |what| ready.wait_for_cluster(what));
    Intent { pods, namespaces, identities: identity_writer, nodes, cluster, policy }
}

/// The promise of a watch to say when it has listed; the agent waits for it.
fn listed<R: Row>(
    jobs: &Group,
    table: &Table<R>,
    writer: &Writer<R>,
    ready: &Ready,
    what: &'static str,
) -> Initializer<R> {
    let pending = ready.wait_for_cluster(what);
    let table = table.clone();
    jobs.spawn(format!("list-{what}"), |job| async move {
        tokio::select! {
            () = job.stop.cancelled() => {}
            _ = table.initialized() => pending.done(),
        }
        Ok::<(), String>(())
    });
    writer.initializer("kubernetes")
}

struct Base {
    node: Arc<LocalNode>,
    datapath: Arc<Datapath>,
}

/// Everything on the node that does not depend on pods: settings, devices, programs. Idempotent.
fn prepare_base(
    config: &Config,
    name: NodeName,
    mut checkpoint: NodeCheckpoint,
    netlink: &Netlink,
    checkpoints: &Checkpoints,
) -> anyhow::Result<Base> {
    let (enable_ipv4, enable_ipv6) = (config.enable_ipv4, config.enable_ipv6);
    let tunnel = config.routing_mode == RoutingMode::Tunnel;
    base::set_node_sysctls(enable_ipv4, enable_ipv6)?;
    let mtu = (config.mtu != 0).then_some(config.mtu);
    let network = base::network_devices(netlink, &config.devices, mtu)?;
    let port = if tunnel { config.effective_tunnel_port() } else { 0 };
    if checkpoint.tunnel_port != port {
        // The device is made anew, with the port that is wanted now, or not at all.
        base::remove_vxlan_device(netlink)?;
        checkpoint.tunnel_port = port;
        checkpoints.save_node(&checkpoint)?;
    }
    let NodeCheckpoint { addresses, pod_cidrs, routers, .. } = checkpoint;
    let host = base::ensure_host_device(netlink, &routers, network.mtu, enable_ipv6)?;
    let vxlan = if tunnel {
        Some(base::ensure_vxlan_device(netlink, port, network.mtu, enable_ipv6)?)
    } else {
        None
    };
    let underlay_is_ipv4 = addresses.iter().any(IpAddr::is_ipv4);
    let host_mac = Mac(host.mac.0);
    let node = LocalNode {
        name,
        enable_ipv4,
        enable_ipv6,
        tunnel,
        direct_routes: config.auto_direct_node_routes,
        addresses,
        routers,
        pod_cidrs,
        host_endpoint_id: HOST_ENDPOINT_ID,
        host_ifindex: host.index,
        host_mac,
        device_mtu: network.mtu,
        route_mtu: base::route_mtu(network.mtu, tunnel, underlay_is_ipv4),
        uplink: network.uplink,
    };
    let sizes = MapSizes {
        lxc: config.bpf_endpoint_map_max,
        ipcache: config.bpf_ipcache_map_max,
        ipcache_hosts: config.bpf_ipcache_map_max,
        ..MapSizes::default()
    };
    let constants = constants(config, &node, vxlan.as_ref().map_or(0, |link| link.index));
    let options = LoadOptions { bpffs: &config.bpf_root, config: constants, sizes };
    let datapath = Datapath::load(&options).context("load the datapath")?;
    tracing::info!(generation = datapath.generation(), duration = ?datapath.load_duration(),
        "Loaded the datapath");
    // Nobody listens yet; an agent that was killed may have left them switched on.
    events::listen(&datapath.maps.runtime_config, &[])?;
    for device in &network.devices {
        datapath.attach_device(device, TcHook::Ingress, names::FROM_NETDEV)?;
        datapath.attach_device(device, TcHook::Egress, names::TO_NETDEV)?;
    }
    datapath.attach_device(&host, TcHook::Egress, names::FROM_HOST)?;
    if let Some(vxlan) = &vxlan {
        datapath.attach_device(vxlan, TcHook::Ingress, names::FROM_OVERLAY)?;
        datapath.attach_device(vxlan, TcHook::Egress, names::TO_OVERLAY)?;
    }
    Ok(Base { node: Arc::new(node), datapath: Arc::new(datapath) })
}

/// The constants that the programs are verified with.
fn constants(config: &Config, node: &LocalNode, tunnel_ifindex: u32) -> DatapathConfig {
    let mut constants = DatapathConfig {
        tunnel_ifindex,
        host_ifindex: node.host_ifindex,
        trace_payload_len: config.trace_payloadlen,
        host_endpoint_id: node.host_endpoint_id,
        enable_ipv4: config.enable_ipv4.into(),
        enable_ipv6: config.enable_ipv6.into(),
        tunnel: if node.tunnel {
            datapath_config::TUNNEL_VXLAN
        } else {
            datapath_config::TUNNEL_OFF
        },
        monitor_aggregation: match config.monitor_aggregation {
            MonitorAggregation::None => datapath_config::AGGREGATION_NONE,
            MonitorAggregation::Low => datapath_config::AGGREGATION_LOWEST,
            MonitorAggregation::Medium | MonitorAggregation::Maximum => {
                datapath_config::AGGREGATION_MEDIUM
            }
        },
        drop_events: config.bpf_events_drop_enabled.into(),
        trace_events: config.bpf_events_trace_enabled.into(),
        debug_events: config.debug.into(),
        tunnel_port: if node.tunnel {
            config.effective_tunnel_port().to_be_bytes()
        } else {
            [0; 2]
        },
        ct_tcp_ticks: ticks_of_seconds(conntrack::TCP_SECONDS),
        ct_any_ticks: ticks_of_seconds(conntrack::ANY_SECONDS),
        ct_syn_ticks: ticks_of_seconds(conntrack::SYN_SECONDS),
        ct_closed_ticks: ticks_of_seconds(conntrack::CLOSED_SECONDS),
        aggregation_ticks: ticks_of_seconds(datapath_config::AGGREGATION_SECONDS),
        aggregation_flags: datapath_config::AGGREGATION_FLAGS,
        policy_verdict_events: 1,
        enable_host_firewall: config.enable_host_firewall.into(),
        ..DatapathConfig::default()
    };
    if !node.tunnel && node.direct_routes {
        constants.direct_ifindex = node.uplink.ifindex;
        constants.direct_mtu = node.device_mtu;
    }
    constants.host_mac[..6].copy_from_slice(&node.host_mac.0);
    for router in &node.routers {
        match router {
            IpAddr::V4(v4) => constants.router_ipv4 = v4.octets(),
            IpAddr::V6(v6) => constants.router_ipv6 = v6.octets(),
        }
    }
    constants
}

/// The node's pools, without the router's addresses.
fn ipam(config: &Config, node: &LocalNode) -> anyhow::Result<Ipam> {
    let mut ipam = Ipam::new(&node.pod_cidrs, config.enable_ipv4, config.enable_ipv6);
    for router in &node.routers {
        ipam.take(*router, startup::ROUTER, Instant::now())?;
    }
    Ok(ipam)
}

/// The node's own addresses, read now and then: they hardly ever change.
fn follow_host_addresses(jobs: &Group, netlink: &Arc<Netlink>) -> Table<HostAddress> {
    let (table, writer) = Table::new("host-addresses");
    let mut complete = Some(writer.initializer("kernel"));
    let netlink = netlink.clone();
    jobs.every("host-addresses", HOST_ADDRESSES_INTERVAL, move || {
        let rows = base::host_addresses(&netlink);
        if let Ok(rows) = &rows {
            writer.replace(rows.iter().cloned());
            if let Some(complete) = complete.take() {
                complete.done();
            }
        }
        std::future::ready(rows.map(drop))
    });
    table
}

/// The maps that follow the tables.
pub struct MapTargets {
    /// `cilium_lxc`.
    pub addresses: MapTarget<LocalAddress>,
    /// `cilium_lxc_devices_v2`.
    pub devices: MapTarget<Device>,
    /// Both tables of the ipcache.
    pub ipcache: IpcacheTarget,
    /// Slots of policies, and their revisions.
    pub policy: PolicyMaps,
}

/// What the agent before us left of policy.
pub struct AdoptedPolicy {
    adopted: Adopted,
    identities: LocalIdentities,
}

impl MapTargets {
    /// Reads what the agent before us left in the maps and below `state_dir`.
    pub fn adopt(&self, state_dir: &Path) -> anyhow::Result<AdoptedPolicy> {
        let adopted = Adopted::read(&self.policy, &*self.devices.0)?;
        let rows = rows_of_ipcache(&*self.ipcache.hosts, &*self.ipcache.prefixes)?;
        let in_maps = rows.into_iter().map(|(_, info)| IdentityId(info.sec_identity));
        Ok(AdoptedPolicy { adopted, identities: LocalIdentities::restore(state_dir, in_maps)? })
    }
}

/// The right to write what policy computes.
pub struct PolicyTables {
    /// Slots of the policy maps.
    pub slots: Writer<SlotRow>,
    /// What the rows of endpoints say of policy.
    pub policies: Writer<EndpointPolicy>,
    /// Prefixes that have an identity of their own.
    pub labelled: Writer<LabelledPrefix>,
}

impl PolicyTables {
    /// Empty tables.
    #[expect(clippy::new_without_default, reason = "a table is somebody's, not a value")]
    pub fn new() -> Self {
        Self {
            slots: Table::new("policy-slots").1,
            policies: Table::new("endpoint-policies").1,
            labelled: Table::new("labelled-prefixes").1,
        }
    }
}

/// Policy as the rest of the agent sees it.
#[derive(Clone)]
pub struct Policies {
    /// Computes, and explains.
    pub engine: SharedEngine,
    /// What the rows of endpoints say of policy.
    pub table: Table<EndpointPolicy>,
    /// What the kernel has.
    pub realised: watch::Receiver<Computed>,
}

/// From policies, and what they speak of, to the tables that [`follow_intent`] reads.
pub fn follow_policies(
    jobs: &Group,
    sources: PolicySources,
    options: policy::engine::Options,
    adopted: AdoptedPolicy,
    tables: PolicyTables,
    maps: &MapProgress,
) -> Policies {
    let AdoptedPolicy { adopted, identities } = adopted;
    let mut slots = Slots::new(names::POLICY_REVISIONS.max_entries);
    for (slot, content) in &adopted.contents {
        slots.adopt(*slot, Arc::clone(content));
    }
    let engine = SharedEngine::new(Engine::new(options, identities, slots));
    let (realised, realised_reader) = watch::channel(Computed::default());
    let table = tables.policies.table().clone();
    let (labelled, endpoints) = (tables.labelled.table().clone(), sources.endpoints.clone());
    let outputs = PolicyOutputs::new(tables.slots, tables.policies, tables.labelled);
    let computed = outputs.computed();
    let (shared, progress, rows) = (engine.clone(), maps.clone(), table.clone());
    jobs.spawn("policy", |job| {
        policy::controller::run(job, sources, adopted, shared, outputs, progress)
    });
    let progress = maps.clone();
    jobs.spawn("policy-realised", |job| {
        policy::controller::run_realised(
            job, computed, rows, labelled, endpoints, progress, realised,
        )
    });
    Policies { engine, table, realised: realised_reader }
}

/// What policy is told of the configuration and of this node.
pub fn policy_options(config: &Config, node: &LocalNode) -> policy::engine::Options {
    policy::engine::Options {
        repository: ::policy::Config {
            mode: policy::enforcement_mode(config.enable_policy),
            cluster_name: config.cluster_name.clone(),
            cluster_id: config.cluster_id,
            allow_localhost: config.allow_localhost != AllowLocalhost::Policy,
            host_firewall: config.enable_host_firewall,
            dual_stack: config.enable_ipv4 && config.enable_ipv6,
        },
        entries_max: config.bpf_policy_map_max as usize,
        lockdown: config.enable_endpoint_lockdown_on_policy_overflow,
        audit: config.policy_audit_mode,
        node_identities: config.enable_node_selector_labels,
        node: node.name.clone(),
        node_addresses: node.addresses.clone(),
        host_endpoint: model::EndpointId::new(node.host_endpoint_id)
            .expect("the node's own endpoint has a number"),
    }
}

/// Controllers, and the reconcilers of maps: from the intent tables to the datapath. Tests enter
/// here too, with maps in memory.
pub fn follow_intent(
    jobs: &Group,
    node: &Arc<LocalNode>,
    sources: &Sources,
    targets: MapTargets,
) -> (MapProgress, Table<DesiredRoute>) {
    let (address_table, writer) = Table::<LocalAddress>::new("lxc");
    let addresses = Output::new(writer);
    let (device_table, writer) = Table::<Device>::new("lxc-devices");
    let devices = Output::new(writer);
    let (ipcache_table, writer) = Table::<IpcacheEntry>::new("ipcache");
    let ipcache = Output::new(writer);
    let (route_table, writer) = Table::<DesiredRoute>::new("routes");
    let routes = Output::new(writer);

    let (of, on) = (node.clone(), sources.clone());
    jobs.spawn("local", |job| controllers::run_local(job, of, on, addresses, devices));
    let (of, on) = (node.clone(), sources.clone());
    jobs.spawn("ipcache", |job| controllers::run_ipcache(job, of, on, ipcache));
    let (of, nodes) = (node.clone(), sources.nodes.clone());
    jobs.spawn("routes", |job| controllers::run_routes(job, of, nodes, routes));

    let progress = MapProgress {
        addresses: reconcile(jobs, &address_table, targets.addresses),
        devices: reconcile(jobs, &device_table, targets.devices),
        ipcache: reconcile(jobs, &ipcache_table, targets.ipcache),
        policy: reconcile(jobs, &sources.slots, PolicyTarget::new(targets.policy)),
        policy_table: sources.slots.clone(),
        address_table,
        device_table,
        ipcache_table,
    };
    (progress, route_table)
}

/// Keeps `target` equal to `table`.
fn reconcile<R: Row, T: Target<R> + Sync>(
    jobs: &Group,
    table: &Table<R>,
    target: T,
) -> Progress<R> {
    let (reconciler, progress) = Reconciler::new(table, target, Pace::default());
    jobs.spawn(format!("reconcile-{}", table.snapshot().name()), |job| async move {
        reconciler.run(job.stop).await;
        Ok::<(), String>(())
    });
    progress
}

/// Tells the cluster of our pods.
fn publish_endpoints(
    jobs: &Group,
    client: &Client,
    node: &Arc<LocalNode>,
    endpoints: &Endpoints,
    pods: &Table<LocalPod>,
    cluster: &Table<ClusterEndpoint>,
) {
    let (table, writer) = Table::new("published-endpoints");
    let complete = writer.initializer("controller");
    let (of, on, pods) = (node.clone(), endpoints.table().clone(), pods.clone());
    jobs.spawn("publish", |job| k8s::endpoint::run(job, of, on, pods, writer, complete));
    let (client, node, cluster) = (client.clone(), node.clone(), cluster.clone());
    let target = k8s::endpoint::EndpointTarget { client, node, cluster: cluster.clone() };
    let (reconciler, _) = Reconciler::new(&table, target, Pace::default());
    jobs.spawn("reconcile-published-endpoints", |job| async move {
        // What the API server has is known from the watch: nothing to compare with before it listed.
        tokio::select! {
            () = job.stop.cancelled() => {}
            () = async { cluster.initialized().await; reconciler.run(job.stop.clone()).await } => {}
        }
        Ok::<(), String>(())
    });
}

/// Removes what nobody else will remove, and repairs what somebody broke.
fn look_after_endpoints(
    jobs: &Group,
    endpoints: &Arc<Endpoints>,
    adopted: BTreeSet<model::EndpointId>,
    pods: &Table<LocalPod>,
) {
    let (all, pods) = (endpoints.clone(), pods.clone());
    jobs.spawn("forget-deleted-pods", |job| async move {
        tokio::select! {
            () = job.stop.cancelled() => {}
            () = async { all.forget_deleted(&adopted, &pods.initialized().await).await } => {}
        }
        Ok::<(), String>(())
    });
    let all = endpoints.clone();
    jobs.every("forget-gone-devices", GARBAGE_INTERVAL, move || {
        let all = all.clone();
        async move { all.forget_gone().await }
    });
    let all = endpoints.clone();
    jobs.every("attach", ATTACH_INTERVAL, move || {
        let all = all.clone();
        async move { tokio::task::block_in_place(|| all.attach_missing()) }
    });
    let all = endpoints.clone();
    jobs.every("expire-reservations", EXPIRE_INTERVAL, move || {
        all.expire_reservations(Instant::now());
        std::future::ready(Ok::<(), String>(()))
    });
}

/// Carries out what plugins left for us while no agent was there. No plugin adds to it as long as
/// the lock is held.
async fn catch_up_with_queue(config: &Config, endpoints: &Endpoints) -> anyhow::Result<QueueLock> {
    let queue = DeleteQueue::beside(&config.socket_path);
    let lock = queue.lock(Holder::Agent, QUEUE_PATIENCE)?;
    for (path, deletion) in queue.entries(&lock)? {
        catch_up(endpoints, &deletion).await;
        std::fs::remove_file(&path).with_context(|| format!("remove {}", path.display()))?;
    }
    Ok(lock)
}

/// Carries out a deletion that a plugin left for us.
async fn catch_up(endpoints: &Endpoints, deletion: &Deletion) {
    let which = match deletion {
        Deletion::Container(id) => api::rest::EndpointRef::Container(id.clone()),
        Deletion::Endpoint(id) => match id.parse() {
            Ok(which) => which,
            Err(error) => {
                tracing::warn!(%error, "Skipped a queued deletion");
                return;
            }
        },
    };
    let removed = endpoints.delete(&which).await;
    tracing::info!(endpoint = %which, removed = removed.len(), "Caught up with a queued deletion");
}

/// Waits until the maps are what they should be, then lets the runtime know that pods can come.
async fn become_ready(
    job: statedb::job::Job,
    agent: Arc<Agent>,
    maps_written: Pending,
) -> Result<(), String> {
    let written = async {
        agent.maps.addresses.pruned().await?;
        agent.maps.devices.pruned().await?;
        agent.maps.ipcache.pruned().await
    };
    tokio::select! {
        () = job.stop.cancelled() => return Ok(()),
        written = written => written.map_err(|error| error.to_string())?,
    }
    maps_written.done();
    agent.ready.reached().await;
    if let Err(error) = agent.datapath.remove_old_generations() {
        tracing::warn!(%error, "Cannot remove the programs of earlier agents");
    }
    if let Some(path) = &agent.config.write_cni_conf_when_ready {
        write_cni_conf(&agent.config, path)?;
    }
    tracing::info!("Ready");
    Ok(())
}

fn write_cni_conf(config: &Config, path: &Path) -> Result<(), String> {
    let log_file = config.cni_log_file.display().to_string();
    let conf = CniConf { debug: config.debug, log_file: &log_file };
    conf.write(path).map_err(|error| k8s::watch::chain(&error))?;
    if config.cni_exclusive {
        crate::cni_conf::set_others_aside(path).map_err(|error| k8s::watch::chain(&error))?;
    }
    Ok(())
}

/// The kernel's devices for [`Endpoints`].
struct KernelDevices {
    datapath: Arc<Datapath>,
    netlink: Arc<Netlink>,
}

impl Devices for KernelDevices {
    fn name(&self, ifindex: u32) -> Result<Option<String>, DeviceError> {
        match self.netlink.link_by_index(ifindex) {
            Ok(link) => Ok(Some(link.name)),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    fn all(&self) -> Result<std::collections::BTreeMap<u32, String>, DeviceError> {
        Ok(self.netlink.links()?.into_iter().map(|link| (link.index, link.name)).collect())
    }

    fn attach(&self, ifindex: u32) -> Result<(), DeviceError> {
        Ok(self.datapath.attach_endpoint(ifindex)?)
    }

    fn is_attached(&self, ifindex: u32) -> Result<bool, DeviceError> {
        Ok(self.datapath.endpoint_attached(ifindex)?)
    }
}
