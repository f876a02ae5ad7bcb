//! What the kernel holds: the datapath's maps, read from their pins. The agent is not asked, so
//! this shows what packets meet, whatever the agent believes.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use abi::AddressKey;
use abi::address::{FAMILY_V4, FAMILY_V6};
use abi::endpoint::{ENDPOINT_F_ATHOSTNS, ENDPOINT_F_HOST, EndpointInfo};
use abi::ipcache::{
    IPCACHE_F_HAS_TUNNEL_ENDPOINT, IPCACHE_F_IPV6_TUNNEL_ENDPOINT, IPCACHE_F_REMOTE_CLUSTER,
    IPCACHE_F_SKIP_TUNNEL, IPCACHE_STATIC_PREFIX_BITS, IpcacheKey, RemoteEndpointInfo,
};
use abi::metrics::MetricsValue;
use abi::{DropReason, drop_reason};
use anyhow::{Context, Result};
use ipnet::IpNet;
use kernel::datapath::{Maps, open_maps};
use kernel::map::Map;
use serde::Serialize;

use crate::args::Ask;
use crate::nodes::Node;
use crate::output::{Outcome, Report, Table};

pub(crate) fn maps(node: &Node) -> Result<Maps> {
    open_maps(&node.bpffs).with_context(|| {
        format!(
            "cannot open the maps pinned below {}: has an agent run on this node? (root is needed)",
            node.bpffs.display()
        )
    })
}

// ---------------------------------------------------------------------------------------------
// Endpoints

/// Entries by address, each with its description: the shape of Cilium's JSON.
#[derive(Debug, Serialize)]
#[serde(transparent)]
pub(crate) struct Entries(BTreeMap<Prefix, Vec<String>>);

/// A prefix, ordered by number and written without a length where it is one address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Prefix {
    net: IpNet,
    as_address: bool,
}

impl Serialize for Prefix {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl std::fmt::Display for Prefix {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.as_address { self.net.addr().fmt(f) } else { self.net.fmt(f) }
    }
}

pub(crate) fn endpoints(node: &Node) -> Result<Entries> {
    let entries = maps(node)?.lxc.entries()?;
    let describe = |(key, info): (AddressKey, EndpointInfo)| {
        let prefix = Prefix { net: address(&key)?.into(), as_address: true };
        Some((prefix, vec![describe_endpoint(&info)]))
    };
    Ok(Entries(entries.into_iter().filter_map(describe).collect()))
}

fn describe_endpoint(info: &EndpointInfo) -> String {
    if info.flags & ENDPOINT_F_HOST != 0 {
        return "(localhost)".to_owned();
    }
    let at_host =
        if info.flags & ENDPOINT_F_ATHOSTNS != 0 { " (in the host's namespace)" } else { "" };
    format!(
        "id={:<5} sec_id={:<6} flags={:#06x} ifindex={:<4} mac={} nodemac={} parent_ifindex={}{at_host}",
        info.lxc_id,
        info.sec_id,
        info.flags,
        info.ifindex,
        mac(info.mac),
        mac(info.node_mac),
        info.parent_ifindex
    )
}

pub(crate) fn render_endpoints(entries: &Entries) -> String {
    entries.render(&["IP ADDRESS", "LOCAL ENDPOINT INFO"])
}

impl Entries {
    fn render(&self, header: &[&str]) -> String {
        let mut table = Table::new(header);
        for (prefix, lines) in &self.0 {
            table.row(vec![prefix.to_string(), lines.join("\n")]);
        }
        table.to_string()
    }
}

// ---------------------------------------------------------------------------------------------
// Ipcache

pub(crate) fn ipcache(node: &Node) -> Result<Entries> {
    let maps = maps(node)?;
    let mut entries = BTreeMap::new();
    for (key, info) in maps.ipcache_hosts.entries()? {
        if let Some(address) = address(&key) {
            entries
                .insert(Prefix { net: address.into(), as_address: false }, vec![describe(&info)]);
        }
    }
    for (key, info) in maps.ipcache.entries()? {
        if let Some(net) = prefix(&key) {
            entries.insert(Prefix { net, as_address: false }, vec![describe(&info)]);
        }
    }
    Ok(Entries(entries))
}

pub(crate) fn render_ipcache(entries: &Entries) -> String {
    entries.render(&["IP PREFIX/ADDRESS", "IDENTITY"])
}

/// What the datapath makes of one address.
#[derive(Debug, Serialize)]
struct Resolved {
    address: IpAddr,
    identity: Option<u32>,
    entry: Option<String>,
}

pub(crate) fn get_ipcache(ask: &Ask, address: IpAddr) -> Result<Outcome> {
    let fetch = |node: &Node| {
        let maps = maps(node)?;
        // The programs' order: the hash of addresses, then the trie of prefixes.
        let host = maps.ipcache_hosts.lookup(&AddressKey::from(address))?;
        let info = match host {
            Some(info) => Some(info),
            None => maps.ipcache.lookup(&full_key(address))?,
        };
        Ok(Resolved {
            address,
            identity: info.map(|info| info.sec_identity),
            entry: info.as_ref().map(describe),
        })
    };
    Report::new(ask)?.each(fetch, |resolved| match &resolved.entry {
        Some(entry) => format!("{address} maps to identity {entry}\n"),
        None => format!("{address} does not map to any identity\n"),
    })
}

fn describe(info: &RemoteEndpointInfo) -> String {
    const FLAGS: [(u8, &str); 4] = [
        (IPCACHE_F_SKIP_TUNNEL, "skiptunnel"),
        (IPCACHE_F_HAS_TUNNEL_ENDPOINT, "hastunnel"),
        (IPCACHE_F_IPV6_TUNNEL_ENDPOINT, "ipv6tunnel"),
        (IPCACHE_F_REMOTE_CLUSTER, "remotecluster"),
    ];
    let names: Vec<&str> =
        FLAGS.iter().filter(|(bit, _)| info.flags & bit != 0).map(|(_, name)| *name).collect();
    let flags = if names.is_empty() { "<none>".to_owned() } else { names.join(",") };
    let endpoint: IpAddr = if info.flags & IPCACHE_F_IPV6_TUNNEL_ENDPOINT != 0 {
        Ipv6Addr::from(info.tunnel_endpoint).into()
    } else {
        ipv4(info.tunnel_endpoint).into()
    };
    format!(
        "identity={} encryptkey={} tunnelendpoint={endpoint} flags={flags}",
        info.sec_identity, info.key
    )
}

fn address(key: &AddressKey) -> Option<IpAddr> {
    match key.family {
        FAMILY_V4 => Some(ipv4(key.addr).into()),
        FAMILY_V6 => Some(Ipv6Addr::from(key.addr).into()),
        _ => None,
    }
}

fn prefix(key: &IpcacheKey) -> Option<IpNet> {
    let len = u8::try_from(key.prefix_len.checked_sub(IPCACHE_STATIC_PREFIX_BITS)?).ok()?;
    let address: IpAddr = match key.family {
        FAMILY_V4 => ipv4(key.addr).into(),
        FAMILY_V6 => Ipv6Addr::from(key.addr).into(),
        _ => return None,
    };
    IpNet::new(address, len).ok()
}

/// The key that finds the longest prefix of an address.
fn full_key(address: IpAddr) -> IpcacheKey {
    let AddressKey { addr, family, cluster_id, .. } = AddressKey::from(address);
    let bits = if address.is_ipv4() { 32 } else { 128 };
    IpcacheKey { prefix_len: IPCACHE_STATIC_PREFIX_BITS + bits, cluster_id, pad: 0, family, addr }
}

fn ipv4(bytes: [u8; 16]) -> Ipv4Addr {
    let [a, b, c, d, ..] = bytes;
    Ipv4Addr::new(a, b, c, d)
}

fn mac(bytes: [u8; 8]) -> flow::Mac {
    let [a, b, c, d, e, f, _, _] = bytes;
    flow::Mac([a, b, c, d, e, f])
}

// ---------------------------------------------------------------------------------------------
// Metrics

/// A counter that is not zero, over all CPUs.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Counter {
    pub(crate) reason: String,
    pub(crate) direction: &'static str,
    pub(crate) packets: u64,
    bytes: u64,
    /// Whether it counts packets that were dropped, not forwarded.
    #[serde(skip)]
    pub(crate) drop: bool,
}

pub(crate) fn metrics(node: &Node) -> Result<Vec<Counter>> {
    Ok(count(&maps(node)?.metrics.all()?))
}

/// Sums up the CPUs of each slot; the slot's number is [`abi::metrics::index`].
fn count(slots: &[Vec<MetricsValue>]) -> Vec<Counter> {
    let mut counters = Vec::new();
    for (slot, values) in slots.iter().enumerate() {
        let packets: u64 = values.iter().map(|value| value.count).sum();
        let bytes: u64 = values.iter().map(|value| value.bytes).sum();
        if packets == 0 {
            continue;
        }
        let reason = u8::try_from(slot >> 2).unwrap_or(u8::MAX);
        let text = DropReason::from_number(reason)
            .map(DropReason::text)
            .or_else(|| drop_reason::forward_text(reason));
        counters.push(Counter {
            reason: text.map_or_else(|| format!("reason {reason}"), ToOwned::to_owned),
            direction: match slot & 3 {
                1 => "INGRESS",
                2 => "EGRESS",
                3 => "SERVICE",
                _ => "UNKNOWN",
            },
            packets,
            bytes,
            drop: DropReason::from_number(reason).is_some(),
        });
    }
    counters.sort_by(|a, b| (&a.reason, a.direction).cmp(&(&b.reason, b.direction)));
    counters
}

pub(crate) fn render_metrics(counters: &[Counter]) -> String {
    // The counters are per reason, so there is no line to show; Cilium's scripts want the columns.
    let mut table = Table::new(&["REASON", "DIRECTION", "PACKETS", "BYTES", "LINE", "FILE"]);
    for counter in counters {
        table.row(vec![
            counter.reason.clone(),
            counter.direction.to_owned(),
            counter.packets.to_string(),
            counter.bytes.to_string(),
            "-".to_owned(),
            "-".to_owned(),
        ]);
    }
    table.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;

    fn prefix_of(text: &str, as_address: bool) -> Prefix {
        Prefix { net: text.parse().unwrap(), as_address }
    }

    #[test]
    fn endpoint_list() {
        let pod = EndpointInfo {
            ifindex: 12,
            lxc_id: 77,
            sec_id: 20001,
            mac: [2, 0, 0, 0, 0, 1, 0, 0],
            node_mac: [2, 0, 0, 0, 0, 2, 0, 0],
            ..EndpointInfo::default()
        };
        let host = EndpointInfo { flags: ENDPOINT_F_HOST, ..EndpointInfo::default() };
        let entries = Entries(BTreeMap::from([
            (prefix_of("10.0.0.7/32", true), vec![describe_endpoint(&pod)]),
            (prefix_of("fd00::1/128", true), vec![describe_endpoint(&host)]),
        ]));
        expect![[r#"
            IP ADDRESS   LOCAL ENDPOINT INFO
            10.0.0.7     id=77    sec_id=20001  flags=0x0000 ifindex=12   mac=02:00:00:00:00:01 nodemac=02:00:00:00:00:02 parent_ifindex=0
            fd00::1      (localhost)
        "#]].assert_eq(&render_endpoints(&entries));
        expect![[r#"{"10.0.0.7":["id=77    sec_id=20001  flags=0x0000 ifindex=12   mac=02:00:00:00:00:01 nodemac=02:00:00:00:00:02 parent_ifindex=0"],"fd00::1":["(localhost)"]}"#]].assert_eq(&serde_json::to_string(&entries).unwrap());
    }

    #[test]
    fn ipcache_list() {
        let remote = RemoteEndpointInfo {
            sec_identity: 20001,
            tunnel_endpoint: [172, 18, 1, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            flags: IPCACHE_F_HAS_TUNNEL_ENDPOINT,
            ..RemoteEndpointInfo::default()
        };
        let world = RemoteEndpointInfo { sec_identity: 9, ..RemoteEndpointInfo::default() };
        let entries = Entries(BTreeMap::from([
            (prefix_of("10.0.1.7/32", false), vec![describe(&remote)]),
            (prefix_of("0.0.0.0/0", false), vec![describe(&world)]),
        ]));
        expect![[r#"
            IP PREFIX/ADDRESS   IDENTITY
            0.0.0.0/0           identity=9 encryptkey=0 tunnelendpoint=0.0.0.0 flags=<none>
            10.0.1.7/32         identity=20001 encryptkey=0 tunnelendpoint=172.18.1.2 flags=hastunnel
        "#]].assert_eq(&render_ipcache(&entries));
    }

    #[test]
    fn keys_are_read_as_they_are_written() {
        for text in ["10.0.0.7", "fd00::7"] {
            let expected: IpAddr = text.parse().unwrap();
            assert_eq!(address(&AddressKey::from(expected)), Some(expected));
            assert_eq!(prefix(&full_key(expected)), Some(IpNet::from(expected)));
        }
        let cut = IpcacheKey { prefix_len: 31, ..full_key(Ipv4Addr::LOCALHOST.into()) };
        assert_eq!(prefix(&cut), None);
    }

    #[test]
    fn metrics_list() {
        let mut slots = vec![vec![MetricsValue::default(); 2]; 1024];
        let value = |count, bytes| MetricsValue { count, bytes };
        let egress = abi::metrics::index(0, abi::metrics::Direction::Egress) as usize;
        slots[egress] = vec![value(3, 300), value(1, 60)];
        let dropped = DropReason::InvalidSip as u8;
        let ingress = abi::metrics::index(dropped, abi::metrics::Direction::Ingress) as usize;
        slots[ingress] = vec![value(0, 0), value(2, 120)];
        expect![[r#"
            REASON              DIRECTION   PACKETS   BYTES   LINE   FILE
            Invalid source ip   INGRESS     2         120     -      -
            Success             EGRESS      4         360     -      -
        "#]]
        .assert_eq(&render_metrics(&count(&slots)));
    }
}
