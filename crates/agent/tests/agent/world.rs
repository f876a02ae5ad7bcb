//! An agent without a kernel and without an API server: the real tables, controllers, reconcilers and
//! endpoints, between rows that a test writes and maps that a test reads, and makes fail.

use std::collections::BTreeMap;
use std::future::ready;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use abi::AddressKey;
use abi::endpoint::{DeviceEndpoint, EndpointInfo};
use abi::ipcache::{IpcacheKey, RemoteEndpointInfo};
use abi::policy::{POLICY_INGRESS, PolicyEntry, PolicyKey, PolicySlot};
use agent::checkpoint::Checkpoints;
use agent::controllers::{LocalNode, Sources, Uplink};
use agent::endpoint::{CreateError, DeviceError, Devices, Endpoints, LabelRules, Parts, PodSource};
use agent::identity::{Created, Identities, Identity, IdentityStore, StoreError};
use agent::ipam::{Families, Ipam};
use agent::k8s::endpoint::{PublishedEndpoint, published};
use agent::policy::controller::PolicySources;
use agent::policy::realize::PolicyMaps;
use agent::policy::tables::{PolicyIntent, PolicyWriters};
use agent::tables::{
    ClusterEndpoint, DesiredRoute, Device, Endpoint, EndpointSpec, HostAddress, LocalAddress,
    LocalPod, Namespace, Node,
};
use agent::targets::{IpcacheTarget, MapTarget, rows_of_ipcache};
use agent::wiring::{
    MapTargets, Policies, PolicyTables, follow_intent, follow_policies, policy_options,
};
use api::config::Config;
use futures::future::BoxFuture;
use kernel::map::{FakeMap, Map};
use model::{EndpointId, IdentityId, LabelFilter, Labels, Mac, PodName};
use statedb::job::Group;
use statedb::{Initializer, Row, Table, Writer};

/// The maps, which survive an agent.
#[derive(Clone)]
pub(crate) struct Maps {
    pub(crate) lxc: Arc<FakeMap<AddressKey, EndpointInfo>>,
    pub(crate) devices: Arc<FakeMap<u32, DeviceEndpoint>>,
    pub(crate) hosts: Arc<FakeMap<AddressKey, RemoteEndpointInfo>>,
    pub(crate) prefixes: Arc<FakeMap<IpcacheKey, RemoteEndpointInfo>>,
    pub(crate) policy: Arc<FakeMap<PolicyKey, PolicyEntry>>,
    pub(crate) revisions: Arc<FakeMap<u32, PolicySlot>>,
}

impl Maps {
    pub(crate) fn new() -> Self {
        Self {
            lxc: Arc::new(FakeMap::new("lxc", 64)),
            devices: Arc::new(FakeMap::new("lxc-devices", 64)),
            hosts: Arc::new(FakeMap::new("ipcache-hosts", 64)),
            prefixes: Arc::new(FakeMap::new("ipcache", 64)),
            policy: Arc::new(FakeMap::new("policy", 64)),
            revisions: Arc::new(FakeMap::new("policy-revisions", 64)),
        }
    }

    /// Lets every `nth` operation on every map fail.
    pub(crate) fn fail_every(&self, nth: u64) {
        self.lxc.fail_every(nth);
        self.devices.fail_every(nth);
        self.hosts.fail_every(nth);
        self.prefixes.fail_every(nth);
        self.policy.fail_every(nth);
        self.revisions.fail_every(nth);
    }

    pub(crate) fn heal(&self) {
        self.lxc.heal();
        self.devices.heal();
        self.hosts.heal();
        self.prefixes.heal();
        self.policy.heal();
        self.revisions.heal();
    }

    /// What the kernel holds, as text.
    pub(crate) fn lxc_text(&self) -> String {
        let address = |key: &AddressKey| agent::targets::address(key.family, key.addr);
        let rows = self.lxc.entries().unwrap().into_iter();
        let rows = rows.map(|(key, info)| LocalAddress { address: address(&key).unwrap(), info });
        text(rows)
    }

    pub(crate) fn devices_text(&self) -> String {
        let rows = self.devices.entries().unwrap().into_iter();
        text(rows.map(|(ifindex, endpoint)| Device { ifindex, endpoint }))
    }

    /// The entries of all slots, in words.
    pub(crate) fn policy_text(&self) -> String {
        let mut entries = self.policy.entries().unwrap();
        entries.sort_by_key(|(key, _)| (key.slot, key.direction, key.identity, *key));
        let line = |(key, entry): &(PolicyKey, PolicyEntry)| {
            let direction = if key.direction == POLICY_INGRESS { "ingress" } else { "egress" };
            let verdict = match (entry.is_deny(), entry.is_not_enforceable()) {
                (false, _) => "allow",
                (true, false) => "deny",
                (true, true) => "not-enforced",
            };
            let port = u16::from_be_bytes(key.dport);
            let bits = entry.prefix_bits();
            let ports = match bits {
                0 => "any".to_owned(),
                8 => key.protocol.to_string(),
                24 => format!("{}:{port}", key.protocol),
                _ => format!("{}:{port}/{}", key.protocol, bits - 8),
            };
            format!("slot {} {direction} {} {ports} {verdict}\n", key.slot, key.identity)
        };
        entries.iter().map(line).collect()
    }

    pub(crate) fn ipcache_text(&self) -> String {
        let rows = rows_of_ipcache(&*self.hosts, &*self.prefixes).unwrap();
        let mut lines: Vec<_> = rows.into_iter().collect();
        lines.sort_by_key(|(net, _)| *net);
        let mut text = String::new();
        for (net, info) in lines {
            let tunnel = match (info.flags & 2 != 0, info.flags & 4 != 0) {
                (false, _) => "-".to_owned(),
                (true, is_v6) => {
                    let family = if is_v6 { 2 } else { 1 };
                    let node = agent::targets::address(family, info.tunnel_endpoint);
                    node.unwrap().to_string()
                }
            };
            text.push_str(&format!("{net} identity={} tunnel={tunnel}\n", info.sec_identity));
        }
        text
    }
}

/// Rows as an aligned table.
fn text<R: Row>(rows: impl IntoIterator<Item = R>) -> String {
    let (table, writer) = Table::new("text");
    writer.replace(rows);
    table.snapshot().to_string()
}

/// The devices of the node: what a test says.
#[derive(Default)]
pub(crate) struct FakeDevices {
    pub(crate) links: Mutex<BTreeMap<u32, String>>,
    pub(crate) attached: Mutex<BTreeMap<u32, u32>>,
    pub(crate) refuse: Mutex<bool>,
}

impl Devices for FakeDevices {
    fn name(&self, ifindex: u32) -> Result<Option<String>, DeviceError> {
        Ok(self.links.lock().unwrap().get(&ifindex).cloned())
    }

    fn all(&self) -> Result<BTreeMap<u32, String>, DeviceError> {
        Ok(self.links.lock().unwrap().clone())
    }

    fn attach(&self, ifindex: u32) -> Result<(), DeviceError> {
        if *self.refuse.lock().unwrap() {
            return Err("the verifier is in a bad mood".into());
        }
        *self.attached.lock().unwrap().entry(ifindex).or_default() += 1;
        Ok(())
    }

    fn is_attached(&self, ifindex: u32) -> Result<bool, DeviceError> {
        Ok(self.attached.lock().unwrap().contains_key(&ifindex))
    }
}

/// The API server's identities.
#[derive(Clone, Default)]
pub(crate) struct FakeStore {
    pub(crate) objects: Arc<Mutex<BTreeMap<IdentityId, Arc<Labels>>>>,
    pub(crate) away: Arc<Mutex<bool>>,
}

impl IdentityStore for FakeStore {
    fn create<'a>(&'a self, identity: &'a Identity) -> BoxFuture<'a, Result<Created, StoreError>> {
        if *self.away.lock().unwrap() {
            let source = "the API server is away".into();
            return Box::pin(ready(Err(StoreError { id: identity.id, source })));
        }
        let mut objects = self.objects.lock().unwrap();
        let created = match objects.get(&identity.id) {
            Some(theirs) => Created::Taken(Arc::clone(theirs)),
            None => {
                objects.insert(identity.id, Arc::clone(&identity.labels));
                Created::New
            }
        };
        Box::pin(ready(Ok(created)))
    }
}

/// Nobody to ask: what the watch does not know is not known.
struct NoPods;

impl PodSource for NoPods {
    fn fetch<'a>(
        &'a self,
        _: &'a PodName,
    ) -> BoxFuture<'a, Result<Option<(LocalPod, Namespace)>, String>> {
        Box::pin(ready(Ok(None)))
    }
}

/// What survives an agent.
pub(crate) struct Machine {
    pub(crate) maps: Maps,
    pub(crate) devices: Arc<FakeDevices>,
    pub(crate) store: FakeStore,
    pub(crate) state_dir: PathBuf,
    pub(crate) tunnel: bool,
    pub(crate) config: Config,
}

impl Machine {
    /// The policy options of an agent on this machine.
    fn policy_options(&self, node: &LocalNode) -> agent::policy::engine::Options {
        policy_options(&self.config, node)
    }

    pub(crate) fn new(name: &str) -> Self {
        let state_dir = std::env::temp_dir().join(format!("agent-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&state_dir);
        Self {
            maps: Maps::new(),
            devices: Arc::default(),
            store: FakeStore::default(),
            state_dir,
            tunnel: true,
            config: Config { cluster_name: "test".to_owned(), ..Config::default() },
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.state_dir);
    }
}

/// A running agent.
pub(crate) struct World {
    pub(crate) jobs: Group,
    pub(crate) node: Arc<LocalNode>,
    pub(crate) pods: Writer<LocalPod>,
    pub(crate) namespaces: Writer<Namespace>,
    pub(crate) nodes: Writer<Node>,
    pub(crate) cluster: Writer<ClusterEndpoint>,
    pub(crate) identities: Writer<Identity>,
    pub(crate) host: Writer<HostAddress>,
    pub(crate) policy: PolicyWriters,
    pub(crate) policies: Policies,
    pub(crate) endpoints: Arc<Endpoints>,
    pub(crate) routes: Table<DesiredRoute>,
    unsynchronised: Option<Unsynchronised>,
}

/// The promises of the watches.
struct Unsynchronised {
    pods: Initializer<LocalPod>,
    namespaces: Initializer<Namespace>,
    nodes: Initializer<Node>,
    cluster: Initializer<ClusterEndpoint>,
    identities: Initializer<Identity>,
}

fn local_node(tunnel: bool) -> LocalNode {
    let net = |text: &str| text.parse().unwrap();
    let address = |text: &str| text.parse::<IpAddr>().unwrap();
    LocalNode {
        name: "node-1".into(),
        enable_ipv4: true,
        enable_ipv6: true,
        tunnel,
        direct_routes: true,
        addresses: vec![address("172.18.1.1"), address("fd00:18::1")],
        routers: vec![address("10.0.1.1"), address("fd00:10::101")],
        pod_cidrs: vec![net("10.0.1.0/24"), net("fd00:10::100/120")],
        host_endpoint_id: agent::endpoint::HOST_ENDPOINT_ID,
        host_ifindex: 4,
        host_mac: Mac([2, 0, 0, 0, 0, 4]),
        device_mtu: 1500,
        route_mtu: if tunnel { 1450 } else { 1500 },
        uplink: Uplink {
            ifindex: 2,
            addresses: vec![address("172.18.1.1"), address("fd00:18::1")],
            on_link: vec![net("172.18.0.0/16"), net("fd00:18::/64")],
        },
    }
}

impl World {
    /// Starts an agent on the machine and restores what the one before it left.
    pub(crate) fn start(machine: &Machine) -> Self {
        let jobs = Group::new();
        let node = Arc::new(local_node(machine.tunnel));
        let (pods, pod_writer) = Table::new("pods");
        let (namespaces, namespace_writer) = Table::new("namespaces");
        let (nodes, node_writer) = Table::new("nodes");
        let (cluster, cluster_writer) = Table::new("cilium-endpoints");
        let (_, identity_writer) = Table::new("identities");
        let (host, host_writer) = Table::new("host-addresses");
        let unsynchronised = Some(Unsynchronised {
            pods: pod_writer.initializer("test"),
            namespaces: namespace_writer.initializer("test"),
            nodes: node_writer.initializer("test"),
            cluster: cluster_writer.initializer("test"),
            identities: identity_writer.initializer("test"),
        });
        for address in node.addresses.iter().chain(&node.routers) {
            host_writer.upsert(HostAddress { address: *address, device: "test".to_owned() });
        }
        let (endpoint_table, endpoint_writer) = Table::new("endpoints");
        let restored = endpoint_writer.initializer("restore");
        let policy_tables = PolicyTables::new();
        let sources = Sources {
            endpoints: endpoint_table.clone(),
            cluster: cluster.clone(),
            nodes: nodes.clone(),
            host,
            policies: policy_tables.policies.table().clone(),
            labelled: policy_tables.labelled.table().clone(),
            slots: policy_tables.slots.table().clone(),
        };
        let targets = MapTargets {
            addresses: MapTarget(machine.maps.lxc.clone()),
            devices: MapTarget(machine.maps.devices.clone()),
            ipcache: IpcacheTarget {
                hosts: machine.maps.hosts.clone(),
                prefixes: machine.maps.prefixes.clone(),
            },
            policy: PolicyMaps {
                entries: machine.maps.policy.clone(),
                revisions: machine.maps.revisions.clone(),
            },
        };
        // An agent that cannot read what was left ends, and is started again until it can.
        let adopted = targets.adopt(&machine.state_dir).or_else(|_| {
            machine.maps.heal();
            targets.adopt(&machine.state_dir)
        });
        let adopted = adopted.unwrap();
        let (maps, routes) = follow_intent(&jobs, &node, &sources, targets);
        let (intent, policy) = PolicyIntent::new();
        let policy_sources = PolicySources {
            intent,
            identities: identity_writer.table().clone(),
            cluster,
            nodes: nodes.clone(),
            pods: pods.clone(),
            endpoints: endpoint_table,
        };
        let options = machine.policy_options(&node);
        let policies =
            follow_policies(&jobs, policy_sources, options, adopted, policy_tables, &maps);
        let mut ipam = Ipam::new(&node.pod_cidrs, true, true);
        for router in &node.routers {
            ipam.take(*router, "router", Instant::now()).unwrap();
        }
        let identities = Identities::new(Arc::new(machine.store.clone()), identity_writer.clone());
        let endpoints = Arc::new(Endpoints::new(Parts {
            writer: endpoint_writer,
            ipam,
            identities: Arc::new(identities),
            pods: pods.clone(),
            namespaces: namespaces.clone(),
            source: Arc::new(NoPods),
            devices: machine.devices.clone(),
            maps,
            checkpoints: Checkpoints::below(&machine.state_dir),
            rules: LabelRules { cluster: "test".to_owned(), filter: LabelFilter::default() },
        }));
        let adopted = endpoints.restore().unwrap().adopted;
        restored.done();
        let all = endpoints.clone();
        jobs.spawn("relabel", {
            let (pods, namespaces) = (pods.clone(), namespaces);
            move |job| agent::relabel::run(job, all, pods, namespaces)
        });
        let all = endpoints.clone();
        jobs.spawn("forget", |job| async move {
            tokio::select! {
                () = job.stop.cancelled() => {}
                () = async { all.forget_deleted(&adopted, &pods.initialized().await).await } => {}
            }
            Ok::<(), String>(())
        });
        Self {
            jobs,
            node,
            pods: pod_writer,
            namespaces: namespace_writer,
            nodes: node_writer,
            cluster: cluster_writer,
            identities: identity_writer,
            host: host_writer,
            policy,
            policies,
            endpoints,
            routes,
            unsynchronised,
        }
    }

    /// Every watch has listed once. Identities of the API server come with it.
    pub(crate) fn synchronise(&mut self, machine: &Machine) {
        let Some(promises) = self.unsynchronised.take() else { return };
        for (id, labels) in machine.store.objects.lock().unwrap().iter() {
            self.identities.upsert(Identity { id: *id, labels: Arc::clone(labels) });
        }
        promises.identities.done();
        promises.pods.done();
        promises.namespaces.done();
        promises.nodes.done();
        promises.cluster.done();
    }

    /// Lets everything that can happen now happen. Time is paused, so it goes on only when nobody
    /// has anything left to do.
    pub(crate) async fn settle(&self) {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }

    /// Lets retries and the periodic passes happen too.
    pub(crate) async fn wait_long(&self) {
        tokio::time::sleep(Duration::from_secs(1200)).await;
    }

    /// What the CNI plugin does: reserves addresses, makes a device, asks for the endpoint. What it
    /// reserved it gives back when that fails.
    pub(crate) async fn create(
        &self,
        machine: &Machine,
        pod: &PodName,
        uid: &str,
        ifindex: u32,
    ) -> Result<Arc<Endpoint>, String> {
        let addresses = self
            .endpoints
            .ipam()
            .allocate(Families::All, &pod.to_string(), Instant::now())
            .map_err(|error| error.to_string())?;
        machine.devices.links.lock().unwrap().insert(ifindex, format!("lxc{ifindex}"));
        let [low, high] = u16::try_from(ifindex).unwrap().to_le_bytes();
        let spec = EndpointSpec {
            interface: format!("lxc{ifindex}"),
            ifindex,
            mac: Mac([2, 0, 0, 1, high, low]),
            host_mac: Mac([2, 0, 0, 2, high, low]),
            addresses: addresses.clone(),
            container_id: format!("container-{ifindex}"),
            container_interface: "eth0".to_owned(),
            pod_namespace: pod.namespace.clone(),
            pod_name: pod.name.clone(),
            pod_uid: uid.to_owned(),
            netns_cookie: None,
        };
        match self.endpoints.create(spec, Labels::default()).await {
            Ok(endpoint) => Ok(Arc::new(endpoint)),
            Err(error) => {
                for address in addresses {
                    self.endpoints.ipam().release(address);
                }
                machine.devices.links.lock().unwrap().remove(&ifindex);
                machine.devices.attached.lock().unwrap().remove(&ifindex);
                Err(chain(&error))
            }
        }
    }

    /// What DEL does: the endpoint, then its device.
    pub(crate) async fn remove(&self, machine: &Machine, id: EndpointId) -> bool {
        let Some(endpoint) = self.endpoints.table().get(&id) else { return false };
        let removed = self.endpoints.delete(&api::rest::EndpointRef::Local(id)).await;
        machine.devices.links.lock().unwrap().remove(&endpoint.spec.ifindex);
        machine.devices.attached.lock().unwrap().remove(&endpoint.spec.ifindex);
        !removed.is_empty()
    }

    /// What we would tell the API server.
    pub(crate) fn published(&self) -> Vec<PublishedEndpoint> {
        let pods = self.pods.table().snapshot();
        published(&self.node, &self.endpoints.table().snapshot(), &pods)
    }

    /// The agent dies: nothing is undone.
    pub(crate) async fn stop(self) {
        self.jobs.shutdown(Duration::from_secs(10)).await.unwrap();
    }
}

fn chain(error: &CreateError) -> String {
    agent::k8s::watch::chain(error)
}
