//! What an agent knows: endpoints, identities, addresses, nodes, maps.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};
use api::rest::{
    BpfMap, BpfMapList, ClusterNodeStatus, Endpoint, EndpointRef, Identity, IdentityEndpoints,
    IpListEntry, NodeAddressing, StatusResponse, client, path,
};
use model::IdentityId;
use serde::Serialize;
use serde_json::Value;

use crate::args::{Ask, Format};
use crate::nodes::Node;
use crate::output::{Outcome, Report, Table, encode, explain, print};

// ---------------------------------------------------------------------------------------------
// Endpoints

pub(crate) fn endpoints(node: &Node) -> Result<Vec<Endpoint>> {
    let mut endpoints: Vec<Endpoint> = node.client().get(path::ENDPOINT)?;
    endpoints.sort_by_key(|endpoint| endpoint.id);
    Ok(endpoints)
}

pub(crate) fn render_endpoints(endpoints: &Vec<Endpoint>) -> String {
    let mut table = Table::new(&[
        "ENDPOINT",
        "POLICY (ingress)\nENFORCEMENT",
        "POLICY (egress)\nENFORCEMENT",
        "IDENTITY",
        "LABELS (source:key[=value])",
        "IPv6",
        "IPv4",
        "STATUS",
    ]);
    for endpoint in endpoints {
        let status = &endpoint.status;
        let (ingress, egress) = enforcement(&status.policy.realized.policy_enabled);
        let identity = status.identity.as_ref();
        let addresses = status.networking.addressing.first();
        table.row(vec![
            endpoint.id.to_string(),
            ingress.to_owned(),
            egress.to_owned(),
            identity.map_or_else(|| "<no identity>".to_owned(), |identity| identity.id.to_string()),
            identity.map(|identity| labels(&identity.labels)).unwrap_or_default(),
            addresses.map(|pair| pair.ipv6.clone()).unwrap_or_default(),
            addresses.map(|pair| pair.ipv4.clone()).unwrap_or_default(),
            status.state.to_string(),
        ]);
    }
    table.to_string()
}

/// The words of both directions for `none`, `ingress`, `egress`, `both`, `audit-…`.
fn enforcement(enabled: &str) -> (&'static str, &'static str) {
    let (word, directions) = match enabled.strip_prefix("audit-") {
        Some(directions) => ("Disabled (Audit)", directions),
        None => ("Enabled", enabled),
    };
    match directions {
        "both" => (word, word),
        "ingress" => (word, "Disabled"),
        "egress" => ("Disabled", word),
        _ => ("Disabled", "Disabled"),
    }
}

/// One label per line; those that name the pod's place come last, as they are the same for many.
pub(crate) fn labels(labels: &[String]) -> String {
    let mut sorted: Vec<&String> = labels.iter().collect();
    sorted.sort_by_key(|label| {
        (label.contains("io.kubernetes.") || label.contains("io.cilium."), *label)
    });
    sorted.into_iter().map(String::as_str).collect::<Vec<_>>().join("\n")
}

/// Prints what is known of one endpoint, from whichever node has it.
pub(crate) fn get_endpoint(ask: &Ask, id: &EndpointRef) -> Result<Outcome> {
    let found = find(ask, &path::endpoint(id), &format!("endpoint {id}"))?;
    // Cilium prints a list of one.
    print_found(ask, found.into_iter().map(|(name, endpoint)| (name, Value::from(vec![endpoint]))))
}

// ---------------------------------------------------------------------------------------------
// Identities

/// An identity, and how many endpoints of the node have it.
#[derive(Debug)]
struct CountedIdentity {
    identity: Identity,
    ref_count: i64,
}

pub(crate) fn identities(ask: &Ask) -> Result<Outcome> {
    let report = Report::new(ask)?;
    if report.output.is_some() {
        return report.each(
            |node| Ok(node.client().get::<Vec<Identity>>(path::IDENTITY)?),
            |_| String::new(),
        );
    }
    let fetch = |node: &Node| {
        let mut client = node.client();
        let used: Vec<IdentityEndpoints> = client.get(path::IDENTITY_ENDPOINTS)?;
        let counts: BTreeMap<IdentityId, i64> =
            used.into_iter().map(|used| (used.identity.id, used.ref_count)).collect();
        let identities: Vec<Identity> = client.get(path::IDENTITY)?;
        let counted = identities.into_iter().map(|identity| IdentityEndpoints {
            ref_count: counts.get(&identity.id).copied().unwrap_or(0),
            identity,
        });
        Ok(counted.collect())
    };
    report.each(fetch, |list: &Vec<IdentityEndpoints>| render_identities(list))
}

pub(crate) fn identity_endpoints(node: &Node) -> Result<Vec<IdentityEndpoints>> {
    Ok(node.client().get(path::IDENTITY_ENDPOINTS)?)
}

pub(crate) fn render_identities(identities: &[IdentityEndpoints]) -> String {
    let mut rows: Vec<CountedIdentity> = identities
        .iter()
        .map(|used| CountedIdentity { identity: used.identity.clone(), ref_count: used.ref_count })
        .collect();
    rows.sort_by_key(|row| row.identity.id);
    let mut table = Table::new(&["ID", "LABELS", "REFCOUNT"]);
    for row in rows {
        table.row(vec![
            row.identity.id.to_string(),
            labels(&row.identity.labels),
            row.ref_count.to_string(),
        ]);
    }
    table.to_string()
}

pub(crate) fn get_identity(ask: &Ask, id: IdentityId) -> Result<Outcome> {
    let path = format!("{}/{id}", path::IDENTITY);
    let mut found = find(ask, &path, &format!("identity {id}"))?;
    // An identity is the same on every node.
    found.truncate(1);
    let found = found.into_iter().map(|(_, identity)| (None, identity));
    print_found(ask, found)
}

// ---------------------------------------------------------------------------------------------
// Addresses

pub(crate) fn ips(ask: &Ask, numeric: bool, verbose: bool) -> Result<Outcome> {
    let report = Report::new(ask)?;
    // The labels are for people, so they are no part of the answer that is printed as data.
    let known = std::cell::RefCell::new(BTreeMap::new());
    let wants_labels = !numeric && report.output.is_none();
    let fetch = |node: &Node| {
        let mut client = node.client();
        if wants_labels {
            let identities: Vec<Identity> = client.get(path::IDENTITY)?;
            known.borrow_mut().extend(
                identities
                    .into_iter()
                    .map(|identity| (i64::from(identity.id.0), labels(&identity.labels))),
            );
        }
        let mut entries: Vec<IpListEntry> = client.get(path::IP)?;
        entries.sort_by_key(|entry| order(&entry.cidr));
        Ok(entries)
    };
    report.each(fetch, |entries| render_ips(entries, &known.borrow(), verbose))
}

/// IPv4 first, by number; what is no prefix last.
fn order(cidr: &str) -> (bool, Option<ipnet::IpNet>) {
    let net: Option<ipnet::IpNet> = cidr.parse().ok();
    (net.is_none(), net)
}

fn render_ips(entries: &Vec<IpListEntry>, labels: &BTreeMap<i64, String>, verbose: bool) -> String {
    let mut header = vec!["IP", "IDENTITY", "SOURCE"];
    if verbose {
        header.extend(["HOST", "ENCRYPT_KEY"]);
    }
    let mut table = Table::new(&header);
    for entry in entries {
        let identity = labels.get(&entry.identity).cloned();
        let mut row = vec![
            entry.cidr.clone(),
            identity.unwrap_or_else(|| entry.identity.to_string()),
            entry.metadata.as_ref().map(|metadata| metadata.source.clone()).unwrap_or_default(),
        ];
        if verbose {
            row.extend([entry.host_ip.clone(), entry.encrypt_key.to_string()]);
        }
        table.row(row);
    }
    table.to_string()
}

// ---------------------------------------------------------------------------------------------
// Nodes

pub(crate) fn nodes(node: &Node) -> Result<ClusterNodeStatus> {
    let mut nodes: ClusterNodeStatus = node.client().get(path::CLUSTER_NODES)?;
    nodes.nodes_added.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(nodes)
}

pub(crate) fn render_nodes(nodes: &ClusterNodeStatus) -> String {
    let mut table = Table::new(&[
        "Name",
        "IPv4 Address",
        "Endpoint CIDR",
        "IPv6 Address",
        "Endpoint CIDR",
        "Source",
    ]);
    for node in &nodes.nodes_added {
        let own = if node.name == nodes.self_name { " (localhost)" } else { "" };
        let [ipv4, ipv6] = families(&node.primary_address);
        let mut row = vec![format!("{}{own}", node.name)];
        row.extend(ipv4);
        row.extend(ipv6);
        row.push(node.source.clone());
        table.row(row);
    }
    table.to_string()
}

/// Address and pod prefix of each family.
fn families(addressing: &NodeAddressing) -> [[String; 2]; 2] {
    [&addressing.ipv4, &addressing.ipv6].map(|element| {
        element
            .as_ref()
            .map(|element| [element.ip.clone(), element.alloc_range.clone()])
            .unwrap_or_default()
    })
}

// ---------------------------------------------------------------------------------------------
// Addresses that are taken

/// An address that is taken.
#[derive(Debug, Serialize)]
pub(crate) struct Allocation {
    address: String,
    owner: String,
}

/// What a node has given away.
#[derive(Debug, Serialize)]
pub(crate) struct Allocations {
    status: String,
    allocations: Vec<Allocation>,
}

pub(crate) fn ipam(node: &Node) -> Result<Allocations> {
    let status: StatusResponse = node.client().get(path::HEALTHZ)?;
    let ipam = status.ipam.context("the agent manages no addresses")?;
    let mut allocations: Vec<Allocation> = ipam
        .allocations
        .into_iter()
        .map(|(address, owner)| Allocation { address, owner })
        .collect();
    allocations.sort_by_key(|allocation| order(&host_prefix(&allocation.address)));
    Ok(Allocations { status: ipam.status, allocations })
}

fn host_prefix(address: &str) -> String {
    format!("{address}/{}", if address.contains(':') { 128 } else { 32 })
}

pub(crate) fn render_ipam(ipam: &Allocations) -> String {
    let mut table = Table::new(&["ADDRESS", "OWNER"]);
    for allocation in &ipam.allocations {
        table.row(vec![allocation.address.clone(), allocation.owner.clone()]);
    }
    format!("{table}{}\n", ipam.status)
}

// ---------------------------------------------------------------------------------------------
// Maps

pub(crate) fn maps(node: &Node) -> Result<BpfMapList> {
    Ok(node.client().get(path::MAP)?)
}

pub(crate) fn render_maps(maps: &BpfMapList, verbose: bool) -> String {
    let mut header = vec!["Name", "Num entries", "Num errors", "Cache enabled"];
    if verbose {
        header.extend(["Max entries", "Memory"]);
    }
    let mut table = Table::new(&header);
    for map in &maps.maps {
        let mut row = vec![
            map.name.clone(),
            map.num_entries.to_string(),
            map.num_errors.to_string(),
            map.cache_enabled.to_string(),
        ];
        if verbose {
            let memory = map.memory_bytes.map(|bytes| format!("{} KiB", bytes.div_ceil(1024)));
            row.extend([map.max_entries.to_string(), memory.unwrap_or_default()]);
        }
        table.row(row);
    }
    table.to_string()
}

pub(crate) fn map(node: &Node, name: &str) -> Result<BpfMap> {
    let path = format!("{}/{}", path::MAP, client::encode(name));
    node.client().get(&path).with_context(|| {
        format!("cannot show map {name:?}; `cilium map list` names the maps there are")
    })
}

pub(crate) fn render_map(map: &BpfMap) -> String {
    let Some(cache) = &map.cache else {
        return format!(
            "The agent keeps no copy of {}: it has {} of {} entries.\n",
            map.name, map.num_entries, map.max_entries
        );
    };
    let mut table = Table::new(&["Key", "Value", "State", "Error"]);
    for entry in cache {
        table.row(vec![
            entry.key.clone(),
            entry.value.clone(),
            entry.desired_action.clone(),
            entry.last_error.clone(),
        ]);
    }
    table.to_string()
}

// ---------------------------------------------------------------------------------------------
// One thing, wherever it is

/// Asks every node for a thing and keeps what was found.
fn find(ask: &Ask, path: &str, what: &str) -> Result<Vec<(Option<String>, Value)>> {
    let nodes = Report::new(ask)?.nodes;
    let mut found = Vec::new();
    let mut failed = None;
    for node in &nodes.all {
        match node.client().get::<Value>(path) {
            Ok(value) => found.push((nodes.sections.then(|| node.label()), value)),
            Err(error) if error.status() == Some(404) => {}
            Err(error) => failed = Some(explain(anyhow::Error::new(error))),
        }
    }
    if found.is_empty() {
        if let Some(error) = failed {
            return Err(error);
        }
        let labels: Vec<String> = nodes.all.iter().map(Node::label).collect();
        bail!("there is no {what} on {}", labels.join(", "));
    }
    Ok(found)
}

fn print_found(ask: &Ask, found: impl Iterator<Item = (Option<String>, Value)>) -> Result<Outcome> {
    let found: Vec<_> = found.collect();
    let format = ask.output.unwrap_or(Format::Json);
    if let [(_, value)] = found.as_slice() {
        print(&encode(value, format)?)?;
        return Ok(Outcome::Complete);
    }
    let by_node: serde_json::Map<String, Value> =
        found.into_iter().map(|(name, value)| (name.unwrap_or_default(), value)).collect();
    print(&encode(&by_node, format)?)?;
    Ok(Outcome::Complete)
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::{Expect, expect};
    use serde_json::json;

    fn check<T: serde::de::DeserializeOwned>(
        json: Value,
        render: impl Fn(&T) -> String,
        expected: Expect,
    ) {
        expected.assert_eq(&render(&serde_json::from_value(json).unwrap()));
    }

    #[test]
    fn endpoint_list() {
        check(
            json!([{
                "id": 77,
                "status": {
                    "state": "ready",
                    "identity": {"id": 20001, "labels": [
                        "k8s:io.kubernetes.pod.namespace=default", "k8s:app=web",
                    ]},
                    "networking": {"addressing": [{"ipv4": "10.0.0.7", "ipv6": "fd00::7"}]},
                    "policy": {"realized": {"policy-enabled": "ingress"}},
                },
            }, {"id": 4000, "status": {"state": "waiting-for-identity"}}]),
            render_endpoints,
            expect![[r#"
                ENDPOINT   POLICY (ingress)   POLICY (egress)   IDENTITY        LABELS (source:key[=value])               IPv6      IPv4       STATUS
                           ENFORCEMENT        ENFORCEMENT
                77         Enabled            Disabled          20001           k8s:app=web                               fd00::7   10.0.0.7   ready
                                                                                k8s:io.kubernetes.pod.namespace=default
                4000       Disabled           Disabled          <no identity>                                                                  waiting-for-identity
            "#]],
        );
    }

    #[test]
    fn identity_list() {
        check(
            json!([
                {"identity": {"id": 20001, "labels": ["k8s:app=web", "k8s:tier=front"]}, "refCount": 3},
                {"identity": {"id": 1, "labels": ["reserved:host"]}, "refCount": 0},
            ]),
            |list: &Vec<IdentityEndpoints>| render_identities(list),
            expect![[r#"
                ID      LABELS           REFCOUNT
                1       reserved:host    0
                20001   k8s:app=web      3
                        k8s:tier=front
            "#]],
        );
    }

    #[test]
    fn ip_list() {
        let labels = BTreeMap::from([(1, "reserved:host".to_owned())]);
        let entries = json!([
            {"cidr": "10.0.0.1/32", "identity": 1, "metadata": {"source": "local"}},
            {"cidr": "10.0.1.7/32", "identity": 20001, "hostIP": "172.18.1.2", "metadata": {"source": "custom-resource"}},
        ]);
        check(
            entries.clone(),
            |e| render_ips(e, &labels, false),
            expect![[r#"
            IP            IDENTITY        SOURCE
            10.0.0.1/32   reserved:host   local
            10.0.1.7/32   20001           custom-resource
        "#]],
        );
        check(
            entries,
            |e| render_ips(e, &BTreeMap::new(), true),
            expect![[r#"
            IP            IDENTITY   SOURCE            HOST         ENCRYPT_KEY
            10.0.0.1/32   1          local                          0
            10.0.1.7/32   20001      custom-resource   172.18.1.2   0
        "#]],
        );
    }

    #[test]
    fn addresses_are_in_order() {
        let mut cidrs = ["fd00::1/128", "10.0.0.10/32", "10.0.0.9/32", "::/0", "0.0.0.0/0", "x"];
        cidrs.sort_by_key(|cidr| order(cidr));
        assert_eq!(cidrs, ["0.0.0.0/0", "10.0.0.9/32", "10.0.0.10/32", "::/0", "fd00::1/128", "x"]);
    }

    #[test]
    fn node_list() {
        check(
            json!({"self": "default/node-1", "nodes-added": [
                {"name": "default/node-1", "source": "local", "primary-address": {
                    "ipv4": {"enabled": true, "ip": "172.18.1.1", "alloc-range": "10.0.0.0/24"},
                    "ipv6": {"enabled": true, "ip": "fd00:18::1:1", "alloc-range": "fd00::/120"},
                }},
                {"name": "default/node-2", "source": "custom-resource", "primary-address": {
                    "ipv4": {"enabled": true, "ip": "172.18.1.2", "alloc-range": "10.0.1.0/24"},
                }},
            ]}),
            render_nodes,
            expect![[r#"
                Name                         IPv4 Address   Endpoint CIDR   IPv6 Address   Endpoint CIDR   Source
                default/node-1 (localhost)   172.18.1.1     10.0.0.0/24     fd00:18::1:1   fd00::/120      local
                default/node-2               172.18.1.2     10.0.1.0/24                                    custom-resource
            "#]],
        );
    }

    #[test]
    fn map_list_and_get() {
        check(
            json!({"maps": [
                {"path": "/sys/fs/bpf/tc/globals/cilium_lxc", "name": "cilium_lxc", "num-entries": 4, "max-entries": 65535, "num-errors": 0, "cache-enabled": true, "memory-bytes": 1048576},
                {"path": "/sys/fs/bpf/tc/globals/cilium_metrics_v1", "name": "cilium_metrics_v1", "num-entries": 1024, "max-entries": 1024, "num-errors": 0},
            ]}),
            |maps| render_maps(maps, true),
            expect![[r#"
                Name                Num entries   Num errors   Cache enabled   Max entries   Memory
                cilium_lxc          4             0            true            65535         1024 KiB
                cilium_metrics_v1   1024          0            false           1024
            "#]],
        );
        check(
            json!({"name": "cilium_lxc", "cache": [
                {"key": "10.0.0.7", "value": "endpoint=77", "desired-action": "sync"},
                {"key": "10.0.0.8", "value": "endpoint=78", "desired-action": "insert", "last-error": "the map is full"},
            ]}),
            render_map,
            expect![[r#"
                Key        Value         State    Error
                10.0.0.7   endpoint=77   sync
                10.0.0.8   endpoint=78   insert   the map is full
            "#]],
        );
        check(
            json!({"name": "cilium_events", "num-entries": 2, "max-entries": 2}),
            render_map,
            expect![[r#"
                The agent keeps no copy of cilium_events: it has 2 of 2 entries.
            "#]],
        );
    }

    #[test]
    fn ipam_list() {
        let ipam = Allocations {
            status: "IPv4: 1/254 allocated from 10.0.0.0/24".into(),
            allocations: vec![Allocation { address: "10.0.0.1".into(), owner: "router".into() }],
        };
        expect![[r#"
            ADDRESS    OWNER
            10.0.0.1   router
            IPv4: 1/254 allocated from 10.0.0.0/24
        "#]]
        .assert_eq(&render_ipam(&ipam));
    }
}
