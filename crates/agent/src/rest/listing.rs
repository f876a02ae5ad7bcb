//! `/identity`, `/ip`, `/map`, `/cluster/nodes`: what the node knows of the world.

use std::collections::BTreeMap;

use api::rest::{
    BpfMap, BpfMapEntry, BpfMapList, ClusterNodeStatus, Identity as ApiIdentity, IdentityEndpoints,
    IpListEntry, IpListEntryMetadata, NodeAddressing, NodeAddressingElement, NodeElement,
};
use axum::Json;
use axum::extract::{Path, Query, State};
use kernel::map::MapInfo;
use model::{IdentityId, IpFamily};
use serde::Deserialize;
use statedb::reconciler::{Progress, Status};
use statedb::{Row, Table};

use super::endpoint::{describe_identity, labels_digest};
use super::{Agent, Refused, Shared};
use crate::tables::{IpcacheEntry, Node};

/// `GET /identity`: the reserved ones and those of the cluster.
pub(super) async fn identities(State(agent): Shared) -> Json<Vec<ApiIdentity>> {
    let reserved = IdentityId::reserved().filter_map(|(id, _)| reserved_identity(id));
    let cluster = agent.endpoints.identities().table().snapshot();
    Json(reserved.chain(cluster.rows().map(|identity| describe_identity(identity))).collect())
}

/// `GET /identity/{id}`
pub(super) async fn identity(
    State(agent): Shared,
    Path(id): Path<String>,
) -> Result<Json<ApiIdentity>, Refused> {
    let id: IdentityId = id.parse().map_err(Refused::bad_request)?;
    let cluster = agent.endpoints.identities().table().get(&id);
    let found = cluster.map(|identity| describe_identity(&identity));
    let found = found.or_else(|| reserved_identity(id));
    let found = found.or_else(|| super::policy::own_identity(&agent, id));
    found.map(Json).ok_or_else(|| Refused::not_found(format!("there is no identity {id}")))
}

/// `GET /identity/endpoints`: who has endpoints here, and how many.
pub(super) async fn identity_endpoints(State(agent): Shared) -> Json<Vec<IdentityEndpoints>> {
    let mut counts: BTreeMap<IdentityId, IdentityEndpoints> = BTreeMap::new();
    for endpoint in agent.endpoints.table().snapshot().rows() {
        let entry = counts.entry(endpoint.identity.id).or_insert_with(|| IdentityEndpoints {
            identity: describe_identity(&endpoint.identity),
            ref_count: 0,
        });
        entry.ref_count += 1;
    }
    Json(counts.into_values().collect())
}

fn reserved_identity(id: IdentityId) -> Option<ApiIdentity> {
    let labels = id.reserved_labels()?;
    let labels_sha256 = labels_digest(&labels);
    Some(ApiIdentity { id, labels: labels.to_strings(), labels_sha256 })
}

/// The query of `GET /ip`.
#[derive(Deserialize)]
pub(super) struct IpQuery {
    cidr: Option<String>,
}

/// `GET /ip`: the ipcache.
pub(super) async fn ips(
    State(agent): Shared,
    Query(query): Query<IpQuery>,
) -> Result<Json<Vec<IpListEntry>>, Refused> {
    let within: Option<ipnet::IpNet> = match query.cidr.as_deref() {
        None | Some("") => None,
        Some(cidr) => {
            let wrong = |_| Refused::bad_request(format!("cidr: {cidr:?} is not a prefix"));
            Some(cidr.parse().map_err(wrong)?)
        }
    };
    let snapshot = agent.maps.ipcache_table.snapshot();
    let rows = snapshot.rows().filter(|row| within.is_none_or(|net| net.contains(&row.prefix)));
    Ok(Json(rows.map(|row| describe_ip(&agent, row)).collect()))
}

fn describe_ip(agent: &Agent, row: &IpcacheEntry) -> IpListEntry {
    // The owner of a pod's prefix is `pod:namespace/name` or `endpoint:id`.
    let pod = match row.owner.split_once(':') {
        Some(("pod", pod)) => pod.parse().ok(),
        Some(("endpoint", id)) => {
            let endpoint = id.parse().ok().and_then(|id| agent.endpoints.table().get(&id));
            endpoint.and_then(|endpoint| endpoint.spec.pod())
        }
        _ => None,
    };
    let (namespace, name) =
        pod.map(|pod: model::PodName| (pod.namespace, pod.name)).unwrap_or_default();
    IpListEntry {
        cidr: row.prefix.to_string(),
        identity: row.identity.0.into(),
        host_ip: row.tunnel.node().map(|node| node.to_string()).unwrap_or_default(),
        encrypt_key: 0,
        metadata: Some(IpListEntryMetadata {
            source: row.source.as_str().to_owned(),
            namespace,
            name,
        }),
    }
}

/// `GET /map`
pub(super) async fn maps(State(agent): Shared) -> Result<Json<BpfMapList>, Refused> {
    let maps = infos(&agent)?.into_iter().map(|info| describe_map(&agent, info, false)).collect();
    Ok(Json(BpfMapList { maps }))
}

/// `GET /map/{name}`: with what we mean it to hold.
pub(super) async fn map(
    State(agent): Shared,
    Path(name): Path<String>,
) -> Result<Json<BpfMap>, Refused> {
    let info = infos(&agent)?.into_iter().find(|info| info.name == name);
    let info = info.ok_or_else(|| Refused::not_found(format!("there is no map {name}")))?;
    Ok(Json(describe_map(&agent, info, true)))
}

fn infos(agent: &Agent) -> Result<Vec<MapInfo>, Refused> {
    let failed = |e| Refused::new(axum::http::StatusCode::INTERNAL_SERVER_ERROR, e);
    agent.datapath.maps.infos().map_err(failed)
}

/// The maps that we compute in whole.
const CACHED: [abi::names::MapName; 4] =
    [abi::names::LXC, abi::names::LXC_DEVICES, abi::names::IPCACHE, abi::names::IPCACHE_HOSTS];

fn describe_map(agent: &Agent, info: MapInfo, with_cache: bool) -> BpfMap {
    let maps = &agent.maps;
    let is_host = |row: &IpcacheEntry| row.prefix.prefix_len() == row.prefix.max_prefix_len();
    // Each table behind a map: how many of its rows were refused, and the rows themselves.
    let (errors, cache) = match info.name.as_str() {
        name if name == abi::names::LXC.name => {
            entries(&maps.address_table, &maps.addresses, with_cache, |_| true)
        }
        name if name == abi::names::LXC_DEVICES.name => {
            entries(&maps.device_table, &maps.devices, with_cache, |_| true)
        }
        name if name == abi::names::IPCACHE.name => {
            entries(&maps.ipcache_table, &maps.ipcache, with_cache, |row| !is_host(row))
        }
        name if name == abi::names::IPCACHE_HOSTS.name => {
            entries(&maps.ipcache_table, &maps.ipcache, with_cache, is_host)
        }
        name if name == abi::names::POLICY.name => (maps.policy.failures().len() as u64, None),
        _ => (0, None),
    };
    let path = agent.config.bpf_root.join(abi::names::MAPS_DIR).join(&info.name);
    BpfMap {
        cache_enabled: CACHED.iter().any(|map| map.name == info.name),
        path: path.display().to_string(),
        name: info.name,
        num_entries: info.len as u64,
        max_entries: info.max_entries.into(),
        num_errors: errors,
        memory_bytes: Some(info.memory_bytes),
        cache,
    }
}

fn entries<R: Row>(
    table: &Table<R>,
    progress: &Progress<R>,
    with_cache: bool,
    belongs: impl Fn(&R) -> bool,
) -> (u64, Option<Vec<BpfMapEntry>>) {
    let snapshot = table.snapshot();
    let failures: BTreeMap<R::Key, String> =
        progress.failures().into_iter().map(|(key, failure)| (key, failure.error)).collect();
    let failed = |key: &R::Key| snapshot.get(key).is_none_or(|row| belongs(row));
    let errors = failures.keys().filter(|key| failed(key)).count() as u64;
    let describe = |(key, row): (&R::Key, &std::sync::Arc<R>)| {
        let mut cells = row.cells().into_iter();
        let name = cells.next().unwrap_or_default();
        let words = R::HEADERS.iter().skip(1).zip(cells);
        let value = words.map(|(header, cell)| format!("{}={cell}", header.to_ascii_lowercase()));
        let done = progress.status(key) == Some(Status::Done);
        BpfMapEntry {
            key: name,
            value: value.collect::<Vec<_>>().join(" "),
            desired_action: if done { "sync" } else { "insert" }.to_owned(),
            last_error: failures.get(key).cloned().unwrap_or_default(),
        }
    };
    let rows = snapshot.iter().filter(|(_, row)| belongs(row));
    (errors, with_cache.then(|| rows.map(describe).collect()))
}

/// `GET /cluster/nodes`
pub(super) async fn nodes(State(agent): Shared) -> Json<ClusterNodeStatus> {
    let snapshot = agent.nodes.snapshot();
    Json(ClusterNodeStatus {
        self_name: format!("{}/{}", agent.config.cluster_name, agent.node.name),
        nodes_added: snapshot.rows().map(|node| describe_node(&agent, node)).collect(),
        ..ClusterNodeStatus::default()
    })
}

/// `GET /node/ids`: numbers of nodes, which only encryption by IPsec needs.
pub(super) async fn node_ids() -> Json<Vec<()>> {
    Json(Vec::new())
}

/// A node as the API shows it.
pub(super) fn describe_node(agent: &Agent, node: &Node) -> NodeElement {
    let primary = |family: IpFamily| {
        let address = node.addresses.iter().find(|a| IpFamily::of(**a) == family)?;
        let cidr = node.pod_cidrs.iter().find(|c| IpFamily::of_net(c) == family);
        Some(NodeAddressingElement {
            enabled: agent.config.is_enabled(family),
            ip: address.to_string(),
            alloc_range: cidr.map(ToString::to_string).unwrap_or_default(),
            address_type: "InternalIP".to_owned(),
        })
    };
    let routers = node.router_addresses.iter().map(|router| NodeAddressingElement {
        enabled: true,
        ip: router.to_string(),
        alloc_range: String::new(),
        address_type: "CiliumInternalIP".to_owned(),
    });
    NodeElement {
        name: format!("{}/{}", agent.config.cluster_name, node.name),
        primary_address: NodeAddressing {
            ipv4: primary(IpFamily::Ipv4),
            ipv6: primary(IpFamily::Ipv6),
        },
        secondary_addresses: routers.collect(),
        source: if node.local { "local" } else { "custom-resource" }.to_owned(),
    }
}
