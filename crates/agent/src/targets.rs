//! The kernel as the reconcilers see it: what a table's rows become, and how they get there.
//!
//! [`MapTarget`] is any map whose key is the row's key; the ipcache is two maps behind one table, and
//! routes are netlink messages. All calls are system calls of microseconds, made in place: a detour
//! over another thread would cost more than they do.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use abi::AddressKey;
use abi::address::{FAMILY_V4, FAMILY_V6};
use abi::endpoint::{DeviceEndpoint, EndpointInfo};
use abi::ipcache::{
    IPCACHE_F_HAS_TUNNEL_ENDPOINT, IPCACHE_F_IPV6_TUNNEL_ENDPOINT, IPCACHE_STATIC_PREFIX_BITS,
    IpcacheKey, RemoteEndpointInfo,
};
use ipnet::IpNet;
use kernel::map::{BatchError, Map, MapError, Plain};
use kernel::netlink::{Netlink, NetlinkError, Route, RouteScope, TABLE_MAIN};
use statedb::reconciler::TargetError;
use statedb::{Outcome, Plan, Row, Target};

use crate::controllers::ROUTE_PROTOCOL;
use crate::tables::{DesiredRoute, Device, IpcacheEntry, LocalAddress};

/// A row that is an entry of a map.
pub trait MapRow: Row<Key: Plain> {
    /// The value in the map.
    type Value: Plain + PartialEq + std::fmt::Debug;

    /// What the map holds for the row.
    fn value(&self) -> Self::Value;
}

impl MapRow for LocalAddress {
    type Value = EndpointInfo;

    fn value(&self) -> EndpointInfo {
        self.info
    }
}

impl MapRow for Device {
    type Value = DeviceEndpoint;

    fn value(&self) -> DeviceEndpoint {
        self.endpoint
    }
}

/// A map that holds the rows of one table.
pub struct MapTarget<R: MapRow>(pub Arc<dyn Map<R::Key, R::Value>>);

impl<R: MapRow> Target<R> for MapTarget<R> {
    type Value = R::Value;

    fn desired(&self, row: &R) -> Option<R::Value> {
        Some(row.value())
    }

    async fn dump(&mut self) -> Result<Vec<(R::Key, R::Value)>, TargetError> {
        Ok(self.0.entries()?)
    }

    async fn apply(&mut self, plan: Plan<R::Key, R::Value>) -> Outcome<R::Key> {
        apply_to_map(&*self.0, plan)
    }
}

/// Deletes one by one, writes in batches; after a refusal goes on behind the refused entry.
fn apply_to_map<K: Plain, V: Plain>(map: &dyn Map<K, V>, plan: Plan<K, V>) -> Outcome<K> {
    let mut outcome = Outcome::default();
    for key in plan.deletes {
        if let Err(error) = map.delete(&key) {
            outcome.fail(key, error);
        }
    }
    let mut rest = plan.upserts.as_slice();
    while !rest.is_empty() {
        match write(map, rest) {
            Ok(()) => break,
            Err((applied, error)) => {
                outcome.fail(rest[applied].0, error);
                rest = &rest[applied + 1..];
            }
        }
    }
    outcome
}

fn write<K: Plain, V: Plain>(
    map: &dyn Map<K, V>,
    entries: &[(K, V)],
) -> Result<(), (usize, MapError)> {
    match entries {
        [(key, value)] => map.update(key, value).map_err(|error| (0, error)),
        _ => map
            .update_batch(entries)
            .map_err(|BatchError { applied, source }| (applied.min(entries.len() - 1), source)),
    }
}

/// The two maps of the ipcache: host prefixes in a hash, shorter ones in a trie.
pub struct IpcacheTarget {
    /// `cilium_hosts_v1`.
    pub hosts: Arc<dyn Map<AddressKey, RemoteEndpointInfo>>,
    /// `cilium_ipcache`.
    pub prefixes: Arc<dyn Map<IpcacheKey, RemoteEndpointInfo>>,
}

impl Target<IpcacheEntry> for IpcacheTarget {
    type Value = RemoteEndpointInfo;

    fn desired(&self, row: &IpcacheEntry) -> Option<RemoteEndpointInfo> {
        Some(map_value(row))
    }

    async fn dump(&mut self) -> Result<Vec<(IpNet, RemoteEndpointInfo)>, TargetError> {
        Ok(rows_of_ipcache(&*self.hosts, &*self.prefixes)?)
    }

    async fn apply(&mut self, plan: Plan<IpNet, RemoteEndpointInfo>) -> Outcome<IpNet> {
        let mut hosts = Plan::default();
        let mut prefixes = Plan::default();
        for net in plan.deletes {
            match map_key(net) {
                MapKey::Host(key) => hosts.deletes.push(key),
                MapKey::Prefix(key) => prefixes.deletes.push(key),
            }
        }
        for (net, value) in plan.upserts {
            match map_key(net) {
                MapKey::Host(key) => hosts.upserts.push((key, value)),
                MapKey::Prefix(key) => prefixes.upserts.push((key, value)),
            }
        }
        let mut outcome = Outcome::default();
        for (key, error) in apply_to_map(&*self.hosts, hosts).failed {
            outcome.failed.extend(host_prefix(&key).map(|net| (net, error)));
        }
        for (key, error) in apply_to_map(&*self.prefixes, prefixes).failed {
            outcome.failed.extend(prefix(&key).map(|net| (net, error)));
        }
        outcome
    }
}

/// What both maps hold, by prefix; without rows that are not ours.
pub fn rows_of_ipcache(
    hosts: &dyn Map<AddressKey, RemoteEndpointInfo>,
    prefixes: &dyn Map<IpcacheKey, RemoteEndpointInfo>,
) -> Result<Vec<(IpNet, RemoteEndpointInfo)>, MapError> {
    let hosts = hosts.entries()?;
    let hosts = hosts.iter().filter_map(|(key, value)| Some((host_prefix(key)?, *value)));
    let prefixes = prefixes.entries()?;
    let prefixes = prefixes.iter().filter_map(|(key, value)| Some((prefix(key)?, *value)));
    Ok(hosts.chain(prefixes).collect())
}

enum MapKey {
    Host(AddressKey),
    Prefix(IpcacheKey),
}

fn map_key(net: IpNet) -> MapKey {
    if net.prefix_len() == net.max_prefix_len() {
        return MapKey::Host(net.addr().into());
    }
    let AddressKey { addr, family, cluster_id, .. } = net.network().into();
    let prefix_len = IPCACHE_STATIC_PREFIX_BITS + u32::from(net.prefix_len());
    MapKey::Prefix(IpcacheKey { prefix_len, cluster_id, pad: 0, family, addr })
}

/// The prefix of a key of the hash; none for a key that we did not write.
fn host_prefix(key: &AddressKey) -> Option<IpNet> {
    (key.cluster_id == 0).then(|| address(key.family, key.addr)).flatten().map(IpNet::from)
}

/// The prefix of a key of the trie; none for a key that we did not write.
fn prefix(key: &IpcacheKey) -> Option<IpNet> {
    let len = u8::try_from(key.prefix_len.checked_sub(IPCACHE_STATIC_PREFIX_BITS)?).ok()?;
    let net = IpNet::new(address(key.family, key.addr)?, len).ok()?;
    (key.cluster_id == 0).then_some(net)
}

/// The address in a map key; none for an unknown family.
pub fn address(family: u8, bytes: [u8; 16]) -> Option<IpAddr> {
    let [a, b, c, d, ..] = bytes;
    match family {
        FAMILY_V4 => Some(Ipv4Addr::new(a, b, c, d).into()),
        FAMILY_V6 => Some(Ipv6Addr::from(bytes).into()),
        _ => None,
    }
}

/// The value of both ipcache maps.
pub fn map_value(row: &IpcacheEntry) -> RemoteEndpointInfo {
    let mut info =
        RemoteEndpointInfo { sec_identity: row.identity.0, ..RemoteEndpointInfo::default() };
    if let Some(node) = row.tunnel.node() {
        info.tunnel_endpoint = AddressKey::from(node).addr;
        info.flags = IPCACHE_F_HAS_TUNNEL_ENDPOINT;
        if node.is_ipv6() {
            info.flags |= IPCACHE_F_IPV6_TUNNEL_ENDPOINT;
        }
    }
    info
}

/// Our routes in the main table.
pub struct RouteTarget(pub Arc<Netlink>);

/// What of a route is compared: the kernel fills in the rest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RouteValue(Route);

impl Target<DesiredRoute> for RouteTarget {
    type Value = RouteValue;

    fn desired(&self, row: &DesiredRoute) -> Option<RouteValue> {
        Some(comparable(row.route.clone()))
    }

    async fn dump(&mut self) -> Result<Vec<(IpNet, RouteValue)>, TargetError> {
        Ok(self.ours()?.into_iter().map(|route| (route.dst, comparable(route))).collect())
    }

    async fn apply(&mut self, plan: Plan<IpNet, RouteValue>) -> Outcome<IpNet> {
        // A deletion must name the route's scope and metric, which only the kernel knows.
        let actual = match self.ours() {
            Ok(actual) => actual,
            Err(error) => return all_failed(plan, &error),
        };
        let delete = |dst: &IpNet| {
            let of_dst = actual.iter().filter(|route| route.dst == *dst);
            of_dst.map(|route| self.0.delete_route(route)).find(|r| !is_done(r)).unwrap_or(Ok(()))
        };
        plan.each(delete, |_, route| self.0.replace_route(&route.0))
    }
}

impl RouteTarget {
    fn ours(&self) -> Result<Vec<Route>, NetlinkError> {
        let ours = |route: &Route| route.protocol == ROUTE_PROTOCOL && route.table == TABLE_MAIN;
        Ok(self.0.routes()?.into_iter().filter(ours).collect())
    }
}

fn is_done(result: &Result<(), NetlinkError>) -> bool {
    result.as_ref().err().is_none_or(NetlinkError::is_not_found)
}

fn all_failed(plan: Plan<IpNet, RouteValue>, error: &NetlinkError) -> Outcome<IpNet> {
    let mut outcome = Outcome::default();
    let upserts = plan.upserts.into_iter().map(|(key, _)| key);
    for key in plan.deletes.into_iter().chain(upserts) {
        outcome.fail(key, error.to_string());
    }
    outcome
}

/// IPv6 routes have no scope, and a metric of 1024 when none is given: both are always said, so that
/// what was written equals what is read.
fn comparable(route: Route) -> RouteValue {
    let is_v6 = route.dst.addr().is_ipv6();
    RouteValue(Route {
        metric: if is_v6 { route.metric.or(Some(1024)) } else { route.metric },
        scope: if is_v6 { RouteScope::Global } else { route.scope },
        ..route
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_find_their_map_and_back() {
        for text in ["10.0.0.1/32", "fd00::1/128", "10.0.0.0/24", "fd00::/120", "0.0.0.0/0", "::/0"]
        {
            let net: IpNet = text.parse().unwrap();
            let back = match map_key(net) {
                MapKey::Host(key) => host_prefix(&key),
                MapKey::Prefix(key) => prefix(&key),
            };
            assert_eq!(back, Some(net));
        }
    }
}
