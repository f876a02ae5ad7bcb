//! A node of an imaginary cluster: what tests, fuzzers and benchmarks run the hooks on.
//!
//! ```text
//!  pod A 10.0.1.10 ─┐                                        ┌─ pod C 10.0.2.20, VXLAN over IPv4
//!  fd00:10:1::10    │   node 172.18.1.1 fd00:18::1           │  (node 172.18.1.2)
//!                   ├── router 10.0.1.1 fd00:10:1::1 ── net ─┼─ pod D 10.0.3.30, VXLAN over IPv6
//!  pod B 10.0.1.11 ─┘                                        │  (node fd00:18::3)
//!  fd00:10:1::11                                             ├─ prefix 10.0.4.0/24, unknown pods
//!                                                            ├─ node 172.18.1.2, routed
//!                                                            └─ the world
//! ```

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use abi::config::{AGGREGATION_NONE, TUNNEL_VXLAN};
use abi::conntrack::ticks_of_seconds;
use abi::endpoint::{DeviceEndpoint, ENDPOINT_F_HOST, EndpointInfo};
use abi::ipcache::{
    IPCACHE_F_HAS_TUNNEL_ENDPOINT, IPCACHE_F_IPV6_TUNNEL_ENDPOINT, IPCACHE_STATIC_PREFIX_BITS,
    IpcacheKey, RemoteEndpointInfo,
};
use abi::{AddressKey, DatapathConfig, identity};

use super::Node;
use super::packets::Mac;

/// One address of each family.
#[derive(Clone, Copy, Debug)]
pub struct Both {
    /// IPv4.
    pub v4: Ipv4Addr,
    /// IPv6.
    pub v6: Ipv6Addr,
}

impl Both {
    const fn new(v4: [u8; 4], v6: [u16; 8]) -> Self {
        let ([a, b, c, d], [e, f, g, h, i, j, k, l]) = (v4, v6);
        Self { v4: Ipv4Addr::new(a, b, c, d), v6: Ipv6Addr::new(e, f, g, h, i, j, k, l) }
    }

    /// The IPv6 address, or the IPv4 address.
    pub const fn of(self, is_v6: bool) -> IpAddr {
        if is_v6 { IpAddr::V6(self.v6) } else { IpAddr::V4(self.v4) }
    }
}

/// A local pod.
#[derive(Clone, Copy, Debug)]
pub struct Pod {
    /// Its addresses.
    pub address: Both,
    /// Its device in the node.
    pub ifindex: u32,
    /// MAC address inside.
    pub mac: Mac,
    /// MAC address of its device in the node.
    pub node_mac: Mac,
    /// Endpoint id.
    pub id: u16,
    /// Identity.
    pub identity: u32,
}

/// The sender. Its device is the loopback, which every namespace has: so a test run in the kernel
/// can be given it.
pub const POD_A: Pod = Pod {
    address: Both::new([10, 0, 1, 10], [0xfd00, 0x10, 1, 0, 0, 0, 0, 0x10]),
    ifindex: 1,
    mac: [2, 0xa, 0, 0, 0, 1],
    node_mac: [2, 0xa, 0, 0, 0, 0xfe],
    id: 101,
    identity: 20_001,
};
/// Its neighbour.
pub const POD_B: Pod = Pod {
    address: Both::new([10, 0, 1, 11], [0xfd00, 0x10, 1, 0, 0, 0, 0, 0x11]),
    ifindex: 42,
    mac: [2, 0xb, 0, 0, 0, 1],
    node_mac: [2, 0xb, 0, 0, 0, 0xfe],
    id: 102,
    identity: 20_002,
};
/// A pod of [`NODE_2`].
pub const POD_C: Both = Both::new([10, 0, 2, 20], [0xfd00, 0x10, 2, 0, 0, 0, 0, 0x20]);
/// Identity of pod C.
pub const POD_C_IDENTITY: u32 = 20_003;
/// A pod of a node that is reached over IPv6.
pub const POD_D: Both = Both::new([10, 0, 3, 30], [0xfd00, 0x10, 3, 0, 0, 0, 0, 0x30]);
/// Identity of pod D.
pub const POD_D_IDENTITY: u32 = 20_004;
/// An address that only its prefix is known of.
pub const POD_E: Both = Both::new([10, 0, 4, 40], [0xfd00, 0x10, 4, 0, 0, 0, 0, 0x40]);
/// An address of this node's pods that no pod has.
pub const NOBODY: Both = Both::new([10, 0, 1, 99], [0xfd00, 0x10, 1, 0, 0, 0, 0, 0x99]);
/// This node.
pub const NODE_1: Both = Both::new([172, 18, 1, 1], [0xfd00, 0x18, 0, 0, 0, 0, 0, 1]);
/// The pods' gateway on this node.
pub const ROUTER: Both = Both::new([10, 0, 1, 1], [0xfd00, 0x10, 1, 0, 0, 0, 0, 1]);
/// Another node.
pub const NODE_2: Both = Both::new([172, 18, 1, 2], [0xfd00, 0x18, 0, 0, 0, 0, 0, 2]);
/// The node of pod D.
pub const NODE_3: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x18, 0, 0, 0, 0, 0, 3);
/// Outside, known by prefix.
pub const CIDR: Both = Both::new([203, 0, 113, 7], [0x2001, 0xdb8, 0xff, 0, 0, 0, 0, 7]);
/// Identity of that prefix.
pub const CIDR_IDENTITY: u32 = identity::SCOPE_LOCAL | 5;
/// Outside, unknown.
pub const WORLD: Both = Both::new([198, 51, 100, 7], [0x2001, 0xdb8, 0xee, 0, 0, 0, 0, 7]);
/// The tunnel device.
pub const TUNNEL_IFINDEX: u32 = 77;
/// UDP port of the tunnel.
pub const TUNNEL_PORT: u16 = 8472;
/// The host endpoint.
pub const HOST_ENDPOINT: u16 = 900;

/// Both families, tunnel, all events; no host firewall.
pub fn config() -> DatapathConfig {
    DatapathConfig {
        tunnel_ifindex: TUNNEL_IFINDEX,
        host_ifindex: 78,
        trace_payload_len: 128,
        host_endpoint_id: HOST_ENDPOINT,
        cluster_id: 0,
        enable_ipv4: 1,
        enable_ipv6: 1,
        tunnel: TUNNEL_VXLAN,
        monitor_aggregation: AGGREGATION_NONE,
        drop_events: 1,
        trace_events: 1,
        debug_events: 1,
        pad: 0,
        host_mac: [2, 0xc, 0, 0, 0, 1, 0, 0],
        router_ipv4: ROUTER.v4.octets(),
        router_ipv6: ROUTER.v6.octets(),
        tunnel_port: TUNNEL_PORT.to_be_bytes(),
        pad_end: [0; 2],
        direct_ifindex: 0,
        direct_mtu: 0,
        ct_tcp_ticks: ticks_of_seconds(8_000),
        ct_any_ticks: ticks_of_seconds(60),
        ct_syn_ticks: ticks_of_seconds(60),
        ct_closed_ticks: ticks_of_seconds(10),
        aggregation_ticks: ticks_of_seconds(5),
        aggregation_flags: 7,
        policy_verdict_events: 1,
        enable_host_firewall: 0,
        pad_tail: 0,
    }
}

/// The node's maps.
pub fn node() -> Node {
    let mut node = Node { config: config(), ..Node::default() };
    for pod in [POD_A, POD_B] {
        node.devices.insert(pod.ifindex, device(&pod));
        for key in keys(pod.address) {
            node.endpoints.insert(key, endpoint(&pod));
        }
    }
    // The node's own policy is that of `cilium_host`.
    let host = DeviceEndpoint { sec_id: identity::HOST, lxc_id: HOST_ENDPOINT, ..device(&POD_A) };
    node.devices
        .insert(node.config.host_ifindex, DeviceEndpoint { ipv4: [0; 4], ipv6: [0; 16], ..host });
    for address in [NODE_1, ROUTER] {
        for key in keys(address) {
            node.endpoints.insert(key, host_endpoint());
        }
    }
    let over_v4 = tunnel_to(NODE_2.v4.into());
    let over_v6 = tunnel_to(NODE_3.into());
    for (address, value) in [
        (POD_A.address, RemoteEndpointInfo { sec_identity: POD_A.identity, ..local() }),
        (POD_B.address, RemoteEndpointInfo { sec_identity: POD_B.identity, ..local() }),
        (NODE_1, RemoteEndpointInfo { sec_identity: identity::HOST, ..local() }),
        (NODE_2, RemoteEndpointInfo { sec_identity: identity::REMOTE_NODE, ..local() }),
        (POD_C, RemoteEndpointInfo { sec_identity: POD_C_IDENTITY, ..over_v4 }),
        (POD_D, RemoteEndpointInfo { sec_identity: POD_D_IDENTITY, ..over_v6 }),
    ] {
        for key in keys(address) {
            node.hosts.insert(key, value);
        }
    }
    for (address, bits, value) in [
        (POD_E, (24, 64), RemoteEndpointInfo { sec_identity: identity::WORLD_IPV4, ..over_v4 }),
        (CIDR, (24, 48), RemoteEndpointInfo { sec_identity: CIDR_IDENTITY, ..local() }),
    ] {
        for (key, bits) in keys(address).into_iter().zip([bits.0, bits.1]) {
            node.prefixes.push((prefix(&key, bits), value));
        }
    }
    node
}

/// The keys of both addresses.
pub fn keys(address: Both) -> [AddressKey; 2] {
    [AddressKey::from(address.of(false)), AddressKey::from(address.of(true))]
}

/// The key of the prefix of `bits` bits around an address.
pub fn prefix(address: &AddressKey, bits: u32) -> IpcacheKey {
    let mut addr = address.addr;
    for (i, byte) in addr.iter_mut().enumerate() {
        let kept = bits.saturating_sub(8 * i as u32).min(8);
        *byte &= (0xff00_u16 >> kept) as u8;
    }
    IpcacheKey {
        prefix_len: IPCACHE_STATIC_PREFIX_BITS + bits,
        cluster_id: address.cluster_id,
        pad: 0,
        family: address.family,
        addr,
    }
}

fn device(pod: &Pod) -> DeviceEndpoint {
    DeviceEndpoint {
        sec_id: pod.identity,
        lxc_id: pod.id,
        pad: 0,
        ipv6: pod.address.v6.octets(),
        ipv4: pod.address.v4.octets(),
        flags: 0,
        mac: widen(pod.mac),
        node_mac: widen(pod.node_mac),
        policy_slot: 0,
        pad_end: 0,
    }
}

fn endpoint(pod: &Pod) -> EndpointInfo {
    EndpointInfo {
        ifindex: pod.ifindex,
        lxc_id: pod.id,
        mac: widen(pod.mac),
        node_mac: widen(pod.node_mac),
        sec_id: pod.identity,
        ..EndpointInfo::default()
    }
}

fn host_endpoint() -> EndpointInfo {
    EndpointInfo {
        lxc_id: HOST_ENDPOINT,
        flags: ENDPOINT_F_HOST,
        sec_id: identity::HOST,
        ..EndpointInfo::default()
    }
}

fn local() -> RemoteEndpointInfo {
    RemoteEndpointInfo::default()
}

fn tunnel_to(node: IpAddr) -> RemoteEndpointInfo {
    let family = if node.is_ipv6() { IPCACHE_F_IPV6_TUNNEL_ENDPOINT } else { 0 };
    RemoteEndpointInfo {
        tunnel_endpoint: AddressKey::from(node).addr,
        flags: IPCACHE_F_HAS_TUNNEL_ENDPOINT | family,
        ..RemoteEndpointInfo::default()
    }
}

fn widen([a, b, c, d, e, f]: Mac) -> [u8; 8] {
    [a, b, c, d, e, f, 0, 0]
}
