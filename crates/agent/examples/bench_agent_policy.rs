//! Policy of one agent in a large cluster: `cargo xtask bench agent-policy` runs it and makes the table.
//!
//! Method: the agent's tables, controllers and reconcilers, with the kernel's maps in a BPF file system of
//! its own, and no API server: rows are written as the watches would write them. 1,000 nodes, 30,000
//! pods of 6,000 identities in 1,000 namespaces, 30,000 policies, read from JSON as they come; 30 local
//! pods in 10 namespaces, each selected by 120 policies. *Start* is from the first row to the moment when
//! the kernel has the policy of every local pod. Then 20 changes per second: every second one changes
//! what local pods enforce, the others are elsewhere in the cluster. *Enforced* is when the pod's row
//! in `cilium_lxc_devices` names a slot in which the new entry is, or the old one is not; it is looked for
//! without a pause by a thread of its own. Memory is the process' whole resident set.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use abi::policy::{POLICY_EGRESS, POLICY_INGRESS, POLICY_STATIC_PREFIX_BITS, PolicyKey};
use agent::controllers::{LocalNode, Sources};
use agent::identity::Identity;
use agent::policy::controller::PolicySources;
use agent::policy::realize::PolicyMaps;
use agent::policy::tables::{PolicyIntent, PolicyWriters};
use agent::policy::watch;
use agent::tables::{ClusterEndpoint, Endpoint, EndpointSpec, HostAddress, LocalPod, Node};
use agent::targets::{IpcacheTarget, MapTarget};
use agent::wiring::{MapTargets, PolicyTables, follow_intent, follow_policies, policy_options};
use api::config::Config;
use api::policy::{Context, NetworkPolicy};
use kernel::bpffs;
use kernel::datapath::{Datapath, LoadOptions, MapSizes, Maps};
use kernel::map::Map;
use model::{EndpointId, EndpointState, IdentityId, Labels, Mac, PodLabels, PodName};
use serde_json::json;
use statedb::job::Group;
use statedb::{Table, Writer};

const NAMESPACES: usize = 1_000;
const NODES: usize = 1_000;
const APPS: usize = 6;
const PODS: usize = 30_000;
const POLICIES: usize = 30_000;
const LOCAL_NAMESPACES: usize = 10;
/// Policies of a namespace with local pods: each selects all its pods.
const LOCAL_POLICIES: usize = 120;
const LOCAL_PODS: usize = 30;
/// Changes of local policies that are measured; as many happen elsewhere.
const CHANGES: usize = 300;
/// Twenty changes per second.
const CHANGE_INTERVAL: Duration = Duration::from_millis(50);
/// No change takes so long.
const PATIENCE: Duration = Duration::from_secs(30);

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let dir = std::env::temp_dir().join(format!("bench-agent-policy-{}", std::process::id()));
    std::fs::create_dir_all(dir.join("state"))?;
    let bpffs = dir.join("bpffs");
    std::fs::create_dir_all(&bpffs)?;
    bpffs::mount(&bpffs)?;
    // As the agent has it.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(8)
        .enable_all()
        .build()?;
    let result = runtime.block_on(measure(&dir, &bpffs));
    drop(runtime);
    nix::mount::umount(&bpffs)?;
    std::fs::remove_dir_all(&dir)?;
    result
}

async fn measure(dir: &Path, bpffs: &Path) -> Result<(), Box<dyn std::error::Error>> {
    let options =
        LoadOptions { bpffs, config: abi::DatapathConfig::default(), sizes: MapSizes::default() };
    let datapath = Datapath::load(&options)?;
    report("resident memory, MiB", "before", resident_mib());
    let started = Instant::now();
    let world = World::start(dir, &datapath.maps)?;
    world.fill();
    let mut realised = world.policies.realised.clone();
    realised.wait_for(|computed| computed.revision > 0).await?;
    report("start to enforced, ms", "all", millis(started.elapsed()));
    report("resident memory, MiB", "30,000 policies", resident_mib());
    let slots = datapath.maps.policy.entries()?;
    report("entries of the policy map", "all slots", slots.len() as f64);
    changes(&world, &datapath.maps).await?;
    report("resident memory, MiB", "after all changes", resident_mib());
    world.jobs.shutdown(Duration::from_secs(10)).await?;
    Ok(())
}

/// The agent without an API server and without devices.
struct World {
    jobs: Group,
    identities: Writer<Identity>,
    nodes: Writer<Node>,
    cluster: Writer<ClusterEndpoint>,
    pods: Writer<LocalPod>,
    endpoints: Writer<Endpoint>,
    policy: PolicyWriters,
    policies: agent::wiring::Policies,
}

impl World {
    fn start(dir: &Path, maps: &Maps) -> anyhow::Result<Self> {
        let jobs = Group::new();
        let node = Arc::new(local_node());
        let (cluster, cluster_writer) = Table::new("cilium-endpoints");
        let (nodes, node_writer) = Table::new("nodes");
        let (host, _) = Table::<HostAddress>::new("host-addresses");
        let (pods, pod_writer) = Table::new("pods");
        let (identities, identity_writer) = Table::new("identities");
        let (endpoints, endpoint_writer) = Table::new("endpoints");
        let tables = PolicyTables::new();
        let sources = Sources {
            endpoints: endpoints.clone(),
            cluster: cluster.clone(),
            nodes: nodes.clone(),
            host,
            policies: tables.policies.table().clone(),
            labelled: tables.labelled.table().clone(),
            slots: tables.slots.table().clone(),
        };
        let targets = MapTargets {
            addresses: MapTarget(maps.lxc.clone()),
            devices: MapTarget(maps.lxc_devices.clone()),
            ipcache: IpcacheTarget {
                hosts: maps.ipcache_hosts.clone(),
                prefixes: maps.ipcache.clone(),
            },
            policy: PolicyMaps {
                entries: maps.policy.clone(),
                revisions: maps.policy_revisions.clone(),
            },
        };
        let (intent, policy) = PolicyIntent::new();
        let adopted = targets.adopt(dir)?;
        let (progress, _) = follow_intent(&jobs, &node, &sources, targets);
        let policy_sources = PolicySources { intent, identities, cluster, nodes, pods, endpoints };
        let options = policy_options(&Config::default(), &node);
        let policies = follow_policies(&jobs, policy_sources, options, adopted, tables, &progress);
        Ok(Self {
            jobs,
            identities: identity_writer,
            nodes: node_writer,
            cluster: cluster_writer,
            pods: pod_writer,
            endpoints: endpoint_writer,
            policy,
            policies,
        })
    }

    /// What the watches list. Policies come last, which is the worst.
    fn fill(&self) {
        // Nothing is known before everybody has spoken.
        let complete = self.policy.policies[0].initializer("bench");
        self.identities.replace((0..NAMESPACES * APPS).map(|index| Identity {
            id: identity(index),
            labels: labels(index / APPS, index % APPS),
        }));
        self.nodes.replace((0..NODES).map(node));
        self.cluster.replace((0..PODS).map(cluster_endpoint));
        self.pods.replace((0..LOCAL_PODS).map(local_pod));
        self.endpoints.replace((0..LOCAL_PODS).map(endpoint));
        self.policy.policies[0].replace((0..POLICIES).map(|index| policy(index, 0)));
        complete.done();
    }
}

/// Changes policies of local pods, and the rest of the cluster between them.
async fn changes(world: &World, maps: &Maps) -> Result<(), Box<dyn std::error::Error>> {
    let (policies, policy_map) = (&world.policy.policies[0], maps.policy.clone());
    let mut due = tokio::time::Instant::now();
    let mut took = Vec::new();
    for round in 0..CHANGES {
        // One whose peers are of its own namespace, so that an entry names just one of them.
        let index = round % LOCAL_POLICIES * LOCAL_NAMESPACES + round % 6;
        let namespace = index % LOCAL_NAMESPACES;
        let ifindex = ifindex(namespace);
        let key = entry_of(index, 1 + round);
        due += CHANGE_INTERVAL;
        tokio::time::sleep_until(due).await;
        let started = Instant::now();
        policies.upsert(policy(index, 1 + round));
        let enforced = {
            let (devices, policy_map) = (maps.lxc_devices.clone(), policy_map.clone());
            tokio::task::spawn_blocking(move || {
                while started.elapsed() < PATIENCE {
                    let slot = devices.lookup(&ifindex).ok().flatten().map(|row| row.policy_slot);
                    let found = slot
                        .map(|slot| policy_map.lookup(&PolicyKey { slot, ..key }))
                        .and_then(Result::ok)
                        .flatten();
                    if found.is_some_and(|entry| entry.prefix_bits() == 24) {
                        return Some(started.elapsed());
                    }
                    std::thread::yield_now();
                }
                None
            })
            .await?
        };
        let Some(elapsed) = enforced else {
            return Err(format!("policy {index} was not enforced: {key:?}").into());
        };
        took.push(elapsed);
        due += CHANGE_INTERVAL;
        tokio::time::sleep_until(due).await;
        elsewhere(world, round);
    }
    took.sort();
    let percentile = |percent: usize| millis(took[(took.len() - 1) * percent / 100]);
    for (variant, percent) in [("half of all", 50), ("99 of 100", 99), ("all", 100)] {
        report("change to enforced within, ms", variant, percentile(percent));
    }
    Ok(())
}

/// A change that concerns no pod of the node: of each kind in turn.
fn elsewhere(world: &World, round: usize) {
    match round % 4 {
        0 => world.policy.policies[0].upsert(policy(POLICIES - 1 - round, 1 + round)),
        1 => world.cluster.upsert(ClusterEndpoint {
            identity: identity((round * 7) % (NAMESPACES * APPS)),
            ..cluster_endpoint(round)
        }),
        2 => world.identities.upsert(Identity {
            id: IdentityId(30_000 + round as u32),
            labels: labels(NAMESPACES + round, round % APPS),
        }),
        _ => world.identities.delete(&IdentityId(30_000 + round as u32 - 1)),
    };
}

/// The key of the entry that a version of a policy makes of its first port and peer.
fn entry_of(index: usize, version: usize) -> PolicyKey {
    let (namespace, app) = (index % LOCAL_NAMESPACES, index % APPS);
    PolicyKey {
        prefix_len: POLICY_STATIC_PREFIX_BITS + 24,
        slot: 0,
        identity: identity(namespace * APPS + app).0,
        direction: if index.is_multiple_of(2) { POLICY_INGRESS } else { POLICY_EGRESS },
        protocol: 6,
        dport: (port(index, version) as u16).to_be_bytes(),
    }
}

fn port(index: usize, version: usize) -> usize {
    1024 + (index * 13 + version) % 32_768
}

fn identity(index: usize) -> IdentityId {
    IdentityId((256 + index) as u32)
}

fn labels(namespace: usize, app: usize) -> Arc<Labels> {
    let texts = |pairs: &[(&str, String)]| -> BTreeMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), value.clone())).collect()
    };
    Arc::new(Labels::of_pod(&PodLabels {
        labels: &texts(&[("app", format!("app-{app}")), ("tier", format!("tier-{}", app % 3))]),
        namespace: &namespace_name(namespace),
        namespace_labels: &texts(&[
            ("kubernetes.io/metadata.name", namespace_name(namespace)),
            ("team", format!("team-{}", namespace % 50)),
        ]),
        cluster: "default",
        service_account: "default",
    }))
}

fn namespace_name(namespace: usize) -> String {
    format!("namespace-{namespace}")
}

/// The policy of this number, in one of its versions. The first ones are in namespaces with local pods.
fn policy(index: usize, version: usize) -> agent::policy::tables::PolicyObject {
    let local = LOCAL_NAMESPACES * LOCAL_POLICIES;
    let namespace = match index {
        index if index < local => index % LOCAL_NAMESPACES,
        index => LOCAL_NAMESPACES + (index - local) % (NAMESPACES - LOCAL_NAMESPACES),
    };
    let app = format!("app-{}", index % APPS);
    let selected = if index < local { json!({}) } else { json!({"matchLabels": {"app": app}}) };
    let peer = match index % 10 {
        0..6 => json!({"podSelector": {"matchLabels": {"app": app}}}),
        6 | 7 => json!({
            "podSelector": {"matchLabels": {"app": app}},
            "namespaceSelector": {"matchLabels":
                {"kubernetes.io/metadata.name": namespace_name((namespace + 1) % NAMESPACES)}},
        }),
        8 => {
            json!({"namespaceSelector": {"matchLabels": {"team": format!("team-{}", index % 50)}}})
        }
        _ => json!({"ipBlock": {"cidr": format!("10.{}.{}.0/24", index / 250 % 250, index % 250)}}),
    };
    let (list, way, direction) = if index.is_multiple_of(2) {
        ("ingress", "from", "Ingress")
    } else {
        ("egress", "to", "Egress")
    };
    let object: NetworkPolicy = serde_json::from_value(json!({
        "metadata": {
            "name": format!("policy-{index}"), "namespace": namespace_name(namespace),
            "generation": 1 + version, "resourceVersion": (1 + index + version).to_string(),
        },
        "spec": {
            "podSelector": selected,
            "policyTypes": [direction],
            list: [{way: [peer], "ports": [
                {"port": port(index, version)}, {"port": 53, "protocol": "UDP"},
            ]}],
        },
    }))
    .expect("a policy");
    watch::policy(&object, &Context::default())
}

fn node(index: usize) -> Node {
    let [high, low] = (index as u16).to_be_bytes();
    let address = IpAddr::from(Ipv4Addr::new(172, 16, high, low));
    Node {
        name: format!("node-{index}").as_str().into(),
        local: index == 0,
        addresses: vec![address],
        router_addresses: vec![Ipv4Addr::new(10, high, low, 1).into()],
        health_addresses: vec![Ipv4Addr::new(10, high, low, 2).into()],
        pod_cidrs: vec![format!("10.{high}.{low}.0/24").parse().expect("a prefix")],
    }
}

fn cluster_endpoint(index: usize) -> ClusterEndpoint {
    let [high, low] = ((index % NODES) as u16).to_be_bytes();
    let [_, host] = (3 + (index / NODES) as u16).to_be_bytes();
    let namespace = index / APPS % NAMESPACES;
    ClusterEndpoint {
        pod: PodName::new(namespace_name(namespace), format!("pod-{index}")),
        endpoint_id: 3,
        identity: identity(namespace * APPS + index % APPS),
        state: "ready".to_owned(),
        node: Some(Ipv4Addr::new(172, 16, high, low).into()),
        addresses: vec![Ipv4Addr::new(10, high, low, host).into()],
        named_ports: Vec::new(),
    }
}

fn local_pod(pod: usize) -> LocalPod {
    LocalPod {
        name: PodName::new(namespace_name(pod % LOCAL_NAMESPACES), format!("local-{pod}")),
        uid: format!("uid-{pod}"),
        labels: BTreeMap::new(),
        service_account: "default".to_owned(),
        named_ports: Vec::new(),
        workload: None,
    }
}

fn ifindex(pod: usize) -> u32 {
    1_000 + pod as u32
}

fn endpoint(pod: usize) -> Endpoint {
    let name = local_pod(pod).name;
    let (namespace, app) = (pod % LOCAL_NAMESPACES, pod / LOCAL_NAMESPACES % APPS);
    let last = 10 + pod as u8;
    let spec = EndpointSpec {
        interface: format!("lxc{pod}"),
        ifindex: ifindex(pod),
        mac: Mac([2, 0, 0, 0, 1, last]),
        host_mac: Mac([2, 0, 0, 0, 2, last]),
        addresses: vec![Ipv4Addr::new(10, 250, 0, last).into()],
        container_id: format!("container-{pod}"),
        container_interface: "eth0".to_owned(),
        pod_namespace: name.namespace,
        pod_name: name.name,
        pod_uid: format!("uid-{pod}"),
        netns_cookie: None,
    };
    Endpoint {
        id: EndpointId::new(2 + pod as u16).expect("a number in range"),
        state: EndpointState::Ready,
        spec: Arc::new(spec),
        identity: Identity { id: identity(namespace * APPS + app), labels: labels(namespace, app) },
    }
}

fn local_node() -> LocalNode {
    LocalNode {
        name: "node-0".into(),
        enable_ipv4: true,
        enable_ipv6: true,
        tunnel: true,
        direct_routes: false,
        addresses: vec![Ipv4Addr::new(172, 16, 0, 0).into()],
        routers: vec![Ipv4Addr::new(10, 250, 0, 1).into()],
        pod_cidrs: vec!["10.250.0.0/24".parse().expect("a prefix")],
        host_endpoint_id: agent::endpoint::HOST_ENDPOINT_ID,
        host_ifindex: 4,
        host_mac: Mac([2, 0, 0, 0, 0, 4]),
        device_mtu: 1500,
        route_mtu: 1450,
        uplink: agent::controllers::Uplink::default(),
    }
}

fn report(metric: &str, variant: &str, value: f64) {
    println!("BENCH {metric}|{variant}|{value:.3}");
}

fn millis(elapsed: Duration) -> f64 {
    elapsed.as_secs_f64() * 1e3
}

fn resident_mib() -> f64 {
    let text = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib: f64 =
        line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok()).unwrap_or_default();
    kib / 1024.0
}
