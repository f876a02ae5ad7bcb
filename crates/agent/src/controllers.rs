//! What should be, computed from what is known.
//!
//! Every function here is pure: snapshots in, rows out, no I/O, no clock. The tasks around them wait
//! for a change, compute and commit; they are at the end of the file. What is small (local addresses,
//! devices, routes) is computed from scratch each time; the ipcache, which has a row per pod of the
//! cluster, follows changes, and a property test holds that this makes no difference.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use abi::endpoint::{DeviceEndpoint, ENDPOINT_F_HOST, EndpointInfo};
use abi::policy::POLICY_SLOT_NONE;
use ipnet::IpNet;
use kernel::netlink::{Route, RouteScope};
use model::{EndpointId, IdentityId, Mac, NodeName, TunnelEndpoint};
use statedb::job::Job;
use statedb::{Change, Initializer, Row, Snapshot, Table, Writer};

use crate::ipcache::{Claim, Ipcache, Owner, Source};
use crate::policy::realize::SlotRow;
use crate::tables::{
    ClusterEndpoint, DesiredRoute, Device, Endpoint, EndpointPolicy, HostAddress, IpcacheEntry,
    LabelledPrefix, LocalAddress, Node,
};

/// Routes that we made carry this protocol number, so that we know ours from an administrator's.
pub const ROUTE_PROTOCOL: u8 = 101;

/// What of this node the controllers depend on; fixed while the agent runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalNode {
    /// Name of the Kubernetes node.
    pub name: NodeName,
    /// Whether pods have IPv4 addresses.
    pub enable_ipv4: bool,
    /// Whether pods have IPv6 addresses.
    pub enable_ipv6: bool,
    /// Whether packets between nodes are encapsulated.
    pub tunnel: bool,
    /// Native routing: whether nodes of one network route to each other's pods directly.
    pub direct_routes: bool,
    /// The node's own addresses, which other nodes know.
    pub addresses: Vec<IpAddr>,
    /// Addresses of `cilium_host`, at most one per family: the pods' gateways.
    pub routers: Vec<IpAddr>,
    /// What the node's pods get their addresses from.
    pub pod_cidrs: Vec<IpNet>,
    /// Id of the endpoint that is the node itself.
    pub host_endpoint_id: u16,
    /// Index of `cilium_host`.
    pub host_ifindex: u32,
    /// MAC address of `cilium_host`.
    pub host_mac: Mac,
    /// MTU of devices.
    pub device_mtu: u32,
    /// MTU of routes to other nodes' pods: what is left inside the tunnel.
    pub route_mtu: u32,
    /// Index and prefixes of the device by which the node reaches the others.
    pub uplink: Uplink,
}

/// The device of the default route.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Uplink {
    /// Its index.
    pub ifindex: u32,
    /// Its own addresses.
    pub addresses: Vec<IpAddr>,
    /// Prefixes whose members are on the link.
    pub on_link: Vec<IpNet>,
}

impl LocalNode {
    /// Native routing: the address of a node by which it is the next hop to its pod with the address
    /// `pod`, so that the datapath need not ask the routing table.
    fn next_hop(&self, node: impl IntoIterator<Item = IpAddr>, pod: IpAddr) -> Option<IpAddr> {
        let direct = !self.tunnel && self.direct_routes;
        node.into_iter().filter(|_| direct).find(|address| {
            address.is_ipv4() == pod.is_ipv4()
                && self.uplink.on_link.iter().any(|net| net.contains(address))
        })
    }

    /// The identity of what is outside the cluster.
    fn world(&self, is_ipv4: bool) -> IdentityId {
        match (self.enable_ipv4 && self.enable_ipv6, is_ipv4) {
            (false, _) => IdentityId::WORLD,
            (true, true) => IdentityId::WORLD_IPV4,
            (true, false) => IdentityId::WORLD_IPV6,
        }
    }

    fn enables(&self, address: IpAddr) -> bool {
        if address.is_ipv4() { self.enable_ipv4 } else { self.enable_ipv6 }
    }

    fn router(&self, is_ipv4: bool) -> Option<IpAddr> {
        self.routers.iter().copied().find(|r| r.is_ipv4() == is_ipv4)
    }
}

/// The addresses of an endpoint: keys of its rows in `cilium_lxc`.
pub fn endpoint_addresses(endpoint: &Endpoint) -> impl Iterator<Item = IpAddr> {
    endpoint.spec.addresses.iter().copied()
}

/// The rows of `cilium_lxc` for an endpoint of this policy.
fn address_rows(
    endpoint: &Endpoint,
    policy: &EndpointPolicy,
) -> impl Iterator<Item = LocalAddress> {
    let info = EndpointInfo {
        ifindex: endpoint.spec.ifindex,
        lxc_id: endpoint.id.number(),
        flags: policy.flags,
        mac: padded(endpoint.spec.mac),
        node_mac: padded(endpoint.spec.host_mac),
        sec_id: endpoint.identity.id.0,
        policy_slot: policy.slot,
        ..EndpointInfo::default()
    };
    endpoint_addresses(endpoint).map(move |address| LocalAddress { address, info })
}

/// The row of `cilium_lxc_devices` for an endpoint of this policy.
fn device_row(endpoint: &Endpoint, policy: &EndpointPolicy) -> Device {
    let mut device = DeviceEndpoint {
        sec_id: endpoint.identity.id.0,
        lxc_id: endpoint.id.number(),
        flags: policy.flags,
        mac: padded(endpoint.spec.mac),
        node_mac: padded(endpoint.spec.host_mac),
        policy_slot: policy.slot,
        ..DeviceEndpoint::default()
    };
    for address in &endpoint.spec.addresses {
        match address {
            IpAddr::V4(v4) => device.ipv4 = v4.octets(),
            IpAddr::V6(v6) => device.ipv6 = v6.octets(),
        }
    }
    Device { ifindex: endpoint.spec.ifindex, endpoint: device }
}

/// The policy of the node itself, where the host firewall has one.
fn host_policy<'a>(
    node: &LocalNode,
    policies: &'a Snapshot<EndpointPolicy>,
) -> Option<&'a Arc<EndpointPolicy>> {
    policies.get(&EndpointId::new(node.host_endpoint_id).ok()?)
}

/// All of `cilium_lxc`: the addresses of pods whose policy is known, and the node's own. A pod's
/// address that a device of the node has too stays the pod's.
pub fn local_addresses(
    node: &LocalNode,
    endpoints: &Snapshot<Endpoint>,
    policies: &Snapshot<EndpointPolicy>,
    host: &Snapshot<HostAddress>,
) -> Vec<LocalAddress> {
    let policy = host_policy(node, policies);
    let info = EndpointInfo {
        ifindex: node.host_ifindex,
        lxc_id: node.host_endpoint_id,
        flags: ENDPOINT_F_HOST | policy.map_or(0, |policy| policy.flags),
        mac: padded(node.host_mac),
        node_mac: padded(node.host_mac),
        sec_id: IdentityId::HOST.0,
        policy_slot: policy.map_or(POLICY_SLOT_NONE, |policy| policy.slot),
        ..EndpointInfo::default()
    };
    let own = host.rows().filter(|h| node.enables(h.address));
    let own = own.map(|host| LocalAddress { address: host.address, info });
    let pods = endpoints.rows().filter_map(|row| Some(address_rows(row, policies.get(&row.id)?)));
    own.chain(pods.flatten()).collect()
}

/// All of `cilium_lxc_devices`: pods whose policy is known, and the node itself where it has one.
pub fn devices(
    node: &LocalNode,
    endpoints: &Snapshot<Endpoint>,
    policies: &Snapshot<EndpointPolicy>,
) -> Vec<Device> {
    let host = host_policy(node, policies).map(|policy| Device {
        ifindex: node.host_ifindex,
        endpoint: DeviceEndpoint {
            sec_id: IdentityId::HOST.0,
            lxc_id: node.host_endpoint_id,
            flags: ENDPOINT_F_HOST | policy.flags,
            mac: padded(node.host_mac),
            node_mac: padded(node.host_mac),
            policy_slot: policy.slot,
            ..DeviceEndpoint::default()
        },
    });
    let pods = endpoints.rows().filter_map(|row| Some(device_row(row, policies.get(&row.id)?)));
    host.into_iter().chain(pods).collect()
}

/// Where the host finds pods: everything through `cilium_host`, whose program knows the rest; in
/// native mode other nodes' pods by their node, where that is on our link.
///
/// Packets of the host to remote pods get the tunnel's MTU by the route, and `cilium_host`'s address
/// as source, so that the answer finds back through the tunnel too.
pub fn routes(node: &LocalNode, nodes: &Snapshot<Node>) -> Vec<DesiredRoute> {
    let mut routes = Vec::new();
    let through_host = |cidr: &IpNet, mtu: Option<u32>| {
        let router = node.router(cidr.addr().is_ipv4())?;
        Some(Route {
            oif: Some(node.host_ifindex),
            src: Some(router),
            mtu,
            scope: if cidr.addr().is_ipv4() { RouteScope::Link } else { RouteScope::Global },
            protocol: ROUTE_PROTOCOL,
            ..Route::new(*cidr)
        })
    };
    routes.extend(node.pod_cidrs.iter().filter_map(|cidr| through_host(cidr, None)));
    for remote in nodes.rows().filter(|n| !n.local) {
        let cidrs = remote.pod_cidrs.iter().filter(|c| node.enables(c.addr()));
        if node.tunnel {
            routes.extend(cidrs.filter_map(|cidr| through_host(cidr, Some(node.route_mtu))));
        } else {
            routes.extend(cidrs.filter_map(|cidr| direct_route(node, remote, cidr)));
        }
    }
    routes.into_iter().map(|route| DesiredRoute { route }).collect()
}

/// The route to a remote node's pods by the node's own address, if that is on our link.
fn direct_route(node: &LocalNode, remote: &Node, cidr: &IpNet) -> Option<Route> {
    let gateway = node.next_hop(remote.addresses.iter().copied(), cidr.addr())?;
    Some(Route {
        gateway: Some(gateway),
        oif: Some(node.uplink.ifindex),
        protocol: ROUTE_PROTOCOL,
        ..Route::new(*cidr)
    })
}

/// Everything outside the cluster.
pub fn world_claims(node: &LocalNode) -> (Owner, Vec<(IpNet, Claim)>) {
    let owner = Owner { source: Source::Generated, name: "reserved:world".into() };
    let all = ["0.0.0.0/0", "::/0"].map(|net| net.parse::<IpNet>().expect("a valid prefix"));
    let claims = all.into_iter().filter(|net| node.enables(net.addr())).map(|net| {
        let identity = node.world(net.addr().is_ipv4());
        (net, Claim { identity, tunnel: TunnelEndpoint::Native })
    });
    (owner, claims.collect())
}

/// The addresses of a pod of this node.
fn local_claims(endpoint: &Endpoint) -> (Owner, Vec<(IpNet, Claim)>) {
    let name = format!("endpoint:{}", endpoint.id);
    let owner = Owner { source: Source::Local, name: name.into() };
    let claim = Claim { identity: endpoint.identity.id, tunnel: TunnelEndpoint::Native };
    let claims = endpoint.spec.addresses.iter().map(|a| (IpNet::from(*a), claim.clone()));
    (owner, claims.collect())
}

/// An address of this node.
fn host_claims(node: &LocalNode, host: &HostAddress) -> (Owner, Vec<(IpNet, Claim)>) {
    let owner = Owner { source: Source::Local, name: format!("host:{}", host.address).into() };
    let claim = Claim { identity: IdentityId::HOST, tunnel: TunnelEndpoint::Native };
    let claims = node.enables(host.address).then(|| (IpNet::from(host.address), claim));
    (owner, claims.into_iter().collect())
}

/// The addresses of a pod of another node. What the API server says of our own pods is an echo. It
/// names the pod's node by one address; `nodes` knows the others.
fn cluster_claims(
    node: &LocalNode,
    nodes: &NodesByAddress,
    remote: &ClusterEndpoint,
) -> (Owner, Vec<(IpNet, Claim)>) {
    let owner =
        Owner { source: Source::CustomResource, name: format!("pod:{}", remote.pod).into() };
    let elsewhere = remote.node.filter(|at| !node.addresses.contains(at));
    let known = remote.identity != IdentityId::UNKNOWN;
    let claims = elsewhere.filter(|_| known).map_or_else(Vec::new, |at| {
        let addresses = remote.addresses.iter().filter(|a| node.enables(**a));
        let others = nodes.get(&at).map_or(&[][..], |peer| &peer.addresses);
        let through = |pod: IpAddr| {
            let all = std::iter::once(at).chain(others.iter().copied());
            if node.tunnel { Some(at) } else { node.next_hop(all, pod) }
        };
        let claim = |address: &IpAddr| Claim {
            identity: remote.identity,
            tunnel: through(*address).map_or(TunnelEndpoint::Native, TunnelEndpoint::Node),
        };
        addresses.map(|address| (IpNet::from(*address), claim(address))).collect()
    });
    (owner, claims)
}

/// The addresses of another node, and its pods' prefixes: a pod that we have not heard of yet is
/// reached through the tunnel all the same, so no first packet is lost.
fn node_claims(node: &LocalNode, remote: &Node) -> (Owner, Vec<(IpNet, Claim)>) {
    let owner =
        Owner { source: Source::CustomResource, name: format!("node:{}", remote.name).into() };
    if remote.local {
        return (owner, Vec::new());
    }
    let tunnel = match remote.tunnel_endpoint() {
        Some(at) if node.tunnel => TunnelEndpoint::Node(at),
        _ => TunnelEndpoint::Native,
    };
    let claim = |identity, tunnel| Claim { identity, tunnel };
    let mut claims = Vec::new();
    for address in &remote.addresses {
        let claim = claim(IdentityId::REMOTE_NODE, TunnelEndpoint::Native);
        claims.push((IpNet::from(*address), claim));
    }
    for router in &remote.router_addresses {
        claims.push((IpNet::from(*router), claim(IdentityId::REMOTE_NODE, tunnel)));
    }
    for health in &remote.health_addresses {
        claims.push((IpNet::from(*health), claim(IdentityId::HEALTH, tunnel)));
    }
    if node.tunnel {
        for cidr in &remote.pod_cidrs {
            claims.push((*cidr, claim(node.world(cidr.addr().is_ipv4()), tunnel)));
        }
    }
    claims.retain(|(net, _)| node.enables(net.addr()));
    (owner, claims)
}

/// A prefix that this node has an identity of its own for.
fn labelled_claims(row: &LabelledPrefix) -> (Owner, Vec<(IpNet, Claim)>) {
    let name = format!("{}:{}", row.source.as_str(), row.prefix);
    let owner = Owner { source: row.source, name: name.into() };
    // How to get there is asked of who knows it, when the row is made.
    let claim = Claim { identity: row.identity, tunnel: TunnelEndpoint::Native };
    (owner, vec![(row.prefix, claim)])
}

/// Nodes by each of their addresses.
type NodesByAddress = BTreeMap<IpAddr, Arc<Node>>;

/// The state of the ipcache controller: all claims.
pub struct IpcacheController {
    node: Arc<LocalNode>,
    ipcache: Ipcache,
    nodes: NodesByAddress,
    labelled: BTreeSet<IpNet>,
}

/// What the ipcache depends on.
#[derive(Default)]
pub struct IpcacheChanges {
    /// Pods of this node.
    pub endpoints: Vec<Change<Endpoint>>,
    /// Pods of the cluster.
    pub cluster: Vec<Change<ClusterEndpoint>>,
    /// Nodes of the cluster.
    pub nodes: Vec<Change<Node>>,
    /// Addresses of this node.
    pub host: Vec<Change<HostAddress>>,
    /// Prefixes with an identity of their own.
    pub labelled: Vec<Change<LabelledPrefix>>,
}

impl IpcacheController {
    /// A controller that knows the world and nothing else, and the prefixes to commit.
    pub fn new(node: Arc<LocalNode>) -> (Self, BTreeSet<IpNet>) {
        let mut ipcache = Ipcache::default();
        let (owner, claims) = world_claims(&node);
        let changed = ipcache.set(&owner, claims);
        (Self { node, ipcache, nodes: NodesByAddress::new(), labelled: BTreeSet::new() }, changed)
    }

    /// Takes changes in; returns the prefixes whose row may have changed. `cluster` is the cluster's
    /// pods after the changes.
    pub fn apply(
        &mut self,
        changes: &IpcacheChanges,
        cluster: &Snapshot<ClusterEndpoint>,
    ) -> BTreeSet<IpNet> {
        let node = Arc::clone(&self.node);
        let moved = self.follow_nodes(&changes.nodes);
        let nodes = std::mem::take(&mut self.nodes);
        let claims_of = |row: &ClusterEndpoint| cluster_claims(&node, &nodes, row);
        let mut changed = BTreeSet::new();
        self.apply_each(&changes.endpoints, local_claims, &mut changed);
        self.apply_each(&changes.cluster, claims_of, &mut changed);
        self.apply_each(&changes.nodes, |row| node_claims(&node, row), &mut changed);
        self.apply_each(&changes.host, |row| host_claims(&node, row), &mut changed);
        self.apply_each(&changes.labelled, labelled_claims, &mut changed);
        for change in &changes.labelled {
            match change {
                Change::Upsert(row) => self.labelled.insert(row.prefix),
                Change::Delete(row) => self.labelled.remove(&row.prefix),
            };
        }
        if !changes.nodes.is_empty() {
            // The way to them may lead through a node.
            changed.extend(&self.labelled);
        }
        if !moved.is_empty() {
            let is_moved = |at: IpAddr| moved.contains(&at);
            for row in cluster.rows().filter(|row| row.node.is_some_and(is_moved)) {
                let (owner, claims) = claims_of(row);
                changed.extend(self.ipcache.set(&owner, claims));
            }
        }
        self.nodes = nodes;
        changed
    }

    /// Learns the nodes' addresses, on which pods of nodes that we route to directly depend; returns
    /// those of nodes that changed.
    fn follow_nodes(&mut self, changes: &[Change<Node>]) -> BTreeSet<IpAddr> {
        let mut moved = BTreeSet::new();
        if self.node.tunnel || !self.node.direct_routes {
            return moved;
        }
        for change in changes {
            let (Change::Upsert(row) | Change::Delete(row)) = change;
            moved
                .extend(self.nodes.extract_if(.., |_, node| node.name == row.name).map(|(a, _)| a));
            if let Change::Upsert(row) = change {
                self.nodes.extend(row.addresses.iter().map(|address| (*address, Arc::clone(row))));
                moved.extend(&row.addresses);
            }
        }
        moved
    }

    fn apply_each<R: Row>(
        &mut self,
        changes: &[Change<R>],
        claims_of: impl Fn(&R) -> (Owner, Vec<(IpNet, Claim)>),
        changed: &mut BTreeSet<IpNet>,
    ) {
        for change in changes {
            let (owner, claims) = match change {
                Change::Upsert(row) => claims_of(row),
                Change::Delete(row) => (claims_of(row).0, Vec::new()),
            };
            changed.extend(self.ipcache.set(&owner, claims));
        }
    }

    /// The row of a prefix, as the claims stand now.
    pub fn row(&self, prefix: &IpNet) -> Option<IpcacheEntry> {
        let (owner, claim) = self.ipcache.winner(prefix)?;
        let tunnel =
            if owner.source.is_label() { self.ipcache.tunnel(prefix) } else { claim.tunnel };
        Some(IpcacheEntry {
            prefix: *prefix,
            identity: claim.identity,
            tunnel,
            source: owner.source,
            owner: Arc::clone(&owner.name),
        })
    }
}

/// The tables that controllers read.
#[derive(Clone)]
pub struct Sources {
    /// Pods of this node.
    pub endpoints: Table<Endpoint>,
    /// Pods of the cluster.
    pub cluster: Table<ClusterEndpoint>,
    /// Nodes of the cluster.
    pub nodes: Table<Node>,
    /// Addresses of this node.
    pub host: Table<HostAddress>,
    /// What the datapath is told of the policies of pods of this node.
    pub policies: Table<EndpointPolicy>,
    /// Prefixes that policies name, and the like.
    pub labelled: Table<LabelledPrefix>,
    /// Slots of the policy maps.
    pub slots: Table<SlotRow>,
}

/// A table that a controller computes, and the promise to say when it is complete.
pub struct Output<R: Row> {
    writer: Writer<R>,
    complete: Option<Initializer<R>>,
}

impl<R: Row> Output<R> {
    /// The output of a controller into the table of `writer`.
    pub fn new(writer: Writer<R>) -> Self {
        let complete = Some(writer.initializer("controller"));
        Self { writer, complete }
    }

    /// To be told after each commit whether all inputs are initialised.
    fn inputs_initialized(&mut self, initialized: bool) {
        if initialized && let Some(complete) = self.complete.take() {
            complete.done();
        }
    }
}

/// The task around [`IpcacheController`].
pub async fn run_ipcache(
    job: Job,
    node: Arc<LocalNode>,
    sources: Sources,
    mut ipcache: Output<IpcacheEntry>,
) -> Result<(), String> {
    let (mut controller, mut prefixes) = IpcacheController::new(node);
    let mut endpoints = sources.endpoints.changes();
    let mut cluster = sources.cluster.changes();
    let mut nodes = sources.nodes.changes();
    let mut host = sources.host.changes();
    let mut labelled = sources.labelled.changes();
    loop {
        let changes = IpcacheChanges {
            endpoints: endpoints.take(),
            cluster: cluster.take(),
            nodes: nodes.take(),
            host: host.take(),
            labelled: labelled.take(),
        };
        prefixes.extend(controller.apply(&changes, cluster.snapshot()));
        commit_ipcache(&controller, &std::mem::take(&mut prefixes), &ipcache.writer);
        ipcache.inputs_initialized(
            endpoints.snapshot().is_initialized()
                && cluster.snapshot().is_initialized()
                && nodes.snapshot().is_initialized()
                && host.snapshot().is_initialized()
                && labelled.snapshot().is_initialized(),
        );
        tokio::select! {
            () = job.stop.cancelled() => return Ok(()),
            _ = endpoints.changed() => {}
            _ = cluster.changed() => {}
            _ = nodes.changed() => {}
            _ = host.changed() => {}
            _ = labelled.changed() => {}
        }
    }
}

/// Writes the rows of `prefixes` in one step.
fn commit_ipcache(
    controller: &IpcacheController,
    prefixes: &BTreeSet<IpNet>,
    writer: &Writer<IpcacheEntry>,
) {
    if prefixes.is_empty() {
        return;
    }
    writer.commit(|txn| {
        for prefix in prefixes {
            match controller.row(prefix) {
                Some(row) => txn.upsert(row),
                None => {
                    txn.delete(prefix);
                }
            }
        }
    });
}

/// The task around [`local_addresses`] and [`devices`].
pub async fn run_local(
    job: Job,
    node: Arc<LocalNode>,
    sources: Sources,
    mut addresses: Output<LocalAddress>,
    mut device_rows: Output<Device>,
) -> Result<(), String> {
    let mut endpoints = sources.endpoints.changes();
    let mut policies = sources.policies.changes();
    let mut host = sources.host.changes();
    loop {
        endpoints.take();
        policies.take();
        host.take();
        let (pods, policy) = (endpoints.snapshot(), policies.snapshot());
        // Devices first: a pod is known as a sender before it can be a receiver.
        device_rows.writer.replace(devices(&node, pods, policy));
        addresses.writer.replace(local_addresses(&node, pods, policy, host.snapshot()));
        let are_known = pods.is_initialized() && policy.is_initialized();
        device_rows.inputs_initialized(are_known);
        addresses.inputs_initialized(are_known && host.snapshot().is_initialized());
        tokio::select! {
            () = job.stop.cancelled() => return Ok(()),
            _ = endpoints.changed() => {}
            _ = policies.changed() => {}
            _ = host.changed() => {}
        }
    }
}

/// The task around [`routes`].
pub async fn run_routes(
    job: Job,
    node: Arc<LocalNode>,
    nodes: Table<Node>,
    mut desired: Output<DesiredRoute>,
) -> Result<(), String> {
    let mut nodes = nodes.changes();
    loop {
        nodes.take();
        desired.writer.replace(routes(&node, nodes.snapshot()));
        desired.inputs_initialized(nodes.snapshot().is_initialized());
        tokio::select! {
            () = job.stop.cancelled() => return Ok(()),
            _ = nodes.changed() => {}
        }
    }
}

fn padded(mac: Mac) -> [u8; 8] {
    let [a, b, c, d, e, f] = mac.0;
    [a, b, c, d, e, f, 0, 0]
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::PodName;

    /// A node of a dual-stack cluster that routes natively, with another on its link.
    fn direct_node() -> LocalNode {
        let parse = |text: &str| text.parse().unwrap();
        LocalNode {
            name: NodeName::new("node-1"),
            enable_ipv4: true,
            enable_ipv6: true,
            tunnel: false,
            direct_routes: true,
            addresses: vec![parse("172.18.1.1"), parse("fd18::1:1")],
            routers: Vec::new(),
            pod_cidrs: Vec::new(),
            host_endpoint_id: 1,
            host_ifindex: 2,
            host_mac: Mac([2; 6]),
            device_mtu: 1500,
            route_mtu: 1500,
            uplink: Uplink {
                ifindex: 3,
                addresses: Vec::new(),
                on_link: vec!["172.18.0.0/16".parse().unwrap(), "fd18::/64".parse().unwrap()],
            },
        }
    }

    fn peer(addresses: &[&str]) -> Node {
        Node {
            name: NodeName::new("node-2"),
            local: false,
            addresses: addresses.iter().map(|a| a.parse().unwrap()).collect(),
            router_addresses: Vec::new(),
            health_addresses: Vec::new(),
            pod_cidrs: Vec::new(),
        }
    }

    /// `CiliumEndpoint` names the node by its IPv4 address; the next hop of IPv6 is known from
    /// `CiliumNode`, whichever comes first.
    #[test]
    fn both_families_of_a_pod_have_a_next_hop() {
        let (pods, pod_writer) = Table::<ClusterEndpoint>::new("pods");
        let (nodes, node_writer) = Table::<Node>::new("nodes");
        let (mut controller, _) = IpcacheController::new(Arc::new(direct_node()));
        let (mut pod_changes, mut node_changes) = (pods.changes(), nodes.changes());
        let mut check = |v4: Option<&str>, v6: Option<&str>| {
            let changes = IpcacheChanges {
                cluster: pod_changes.take(),
                nodes: node_changes.take(),
                ..IpcacheChanges::default()
            };
            controller.apply(&changes, pod_changes.snapshot());
            for (prefix, expected) in [("10.0.2.7/32", v4), ("fd00::207/128", v6)] {
                let row = controller.row(&prefix.parse().unwrap()).unwrap();
                let expected = expected.map_or(TunnelEndpoint::Native, |address| {
                    TunnelEndpoint::Node(address.parse().unwrap())
                });
                assert_eq!(row.tunnel, expected, "{prefix}");
            }
        };
        pod_writer.upsert(ClusterEndpoint {
            pod: PodName::new("default", "web"),
            endpoint_id: 7,
            identity: IdentityId(300),
            state: "ready".into(),
            node: Some("172.18.1.2".parse().unwrap()),
            addresses: vec!["10.0.2.7".parse().unwrap(), "fd00::207".parse().unwrap()],
            named_ports: Vec::new(),
        });
        check(Some("172.18.1.2"), None);
        node_writer.upsert(peer(&["172.18.1.2", "fd18::1:2"]));
        check(Some("172.18.1.2"), Some("fd18::1:2"));
        node_writer.upsert(peer(&["172.18.1.2", "2001:db8::2"]));
        check(Some("172.18.1.2"), None);
        node_writer.upsert(peer(&["172.18.1.2", "fd18::1:3"]));
        check(Some("172.18.1.2"), Some("fd18::1:3"));
        node_writer.delete(&NodeName::new("node-2"));
        check(Some("172.18.1.2"), None);
    }
}
