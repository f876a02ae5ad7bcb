//! Golden layouts: size and offset of every field of what crosses the border.
//!
//! A difference here is a change of layout. Where the layout is Cilium's it is a mistake; where it
//! is our own, the map needs a new name (see `abi::names`) and an upgrade path.

use std::fmt::Write as _;
use std::mem::{align_of, offset_of, size_of};

use abi::AddressKey;
use abi::config::DatapathConfig;
use abi::conntrack::{Flow, FlowDecision, FlowKeyV4, FlowKeyV6, FragmentKey, FragmentPorts};
use abi::endpoint::{DeviceEndpoint, EndpointInfo};
use abi::event::{
    CaptureHeader, DebugMessage, DropNotify, PolicyVerdictNotify, RecordHeader, TraceNotify,
    TraceSockNotify,
};
use abi::ipcache::{IpcacheKey, RemoteEndpointInfo};
use abi::metrics::MetricsValue;
use abi::policy::{PolicyEntry, PolicyKey, PolicySlot};

macro_rules! layout {
    ($text:ident, $($name:ident { $($field:ident),* $(,)? })*) => {
        $(
            let _ = writeln!($text, "{} {} align {}", stringify!($name), size_of::<$name>(), align_of::<$name>());
            $(let _ = writeln!($text, "  {} {}", offset_of!($name, $field), stringify!($field));)*
            // Every field is in the table, or this does not compile.
            let _ = |value: $name| { let $name { $($field: _),* } = value; };
        )*
    };
}

#[test]
fn layouts_are_what_they_were() {
    let mut text = String::new();
    layout!(text,
        AddressKey { addr, family, key, cluster_id }
        EndpointInfo {
            ifindex, unused, lxc_id, flags, rt_info, mac, node_mac, sec_id, parent_ifindex,
            policy_slot, pad,
        }
        DeviceEndpoint {
            sec_id, lxc_id, pad, ipv6, ipv4, flags, mac, node_mac, policy_slot, pad_end,
        }
        IpcacheKey { prefix_len, cluster_id, pad, family, addr }
        RemoteEndpointInfo { sec_identity, tunnel_endpoint, pad, key, flags }
        MetricsValue { count, bytes }
        RecordHeader { timestamp_ns }
        CaptureHeader { event_type, subtype, source, hash, len_orig, len_cap, version, ext_version }
        DropNotify {
            header, src_label, dst_label, dst_id, line, file, ext_error, ifindex, flags, pad,
            ip_trace_id,
        }
        TraceNotify {
            header, src_label, dst_label, dst_id, reason, flags, ifindex, orig_ip, ip_trace_id,
        }
        TraceSockNotify {
            event_type, xlate_point, l4_proto, flags, dst_port, pad, sock_cookie, cgroup_id, dst_ip,
        }
        DebugMessage { event_type, subtype, source, hash, arg1, arg2, arg3 }
        DatapathConfig {
            tunnel_ifindex, host_ifindex, trace_payload_len, host_endpoint_id, cluster_id,
            enable_ipv4, enable_ipv6, tunnel, monitor_aggregation, drop_events, trace_events,
            debug_events, pad, host_mac, router_ipv4, router_ipv6, tunnel_port, pad_end,
            direct_ifindex, direct_mtu, ct_tcp_ticks, ct_any_ticks, ct_syn_ticks, ct_closed_ticks,
            aggregation_ticks, aggregation_flags, policy_verdict_events, enable_host_firewall,
            pad_tail,
        }
        PolicyKey { prefix_len, slot, identity, direction, protocol, dport }
        PolicyEntry { proxy_port, bits, auth, precedence, cookie }
        PolicySlot { revision }
        FlowKeyV4 { lower_port, upper_port, protocol, family, zone, lower, upper }
        FlowKeyV6 { lower_port, upper_port, protocol, family, zone, lower, upper }
        FlowDecision { revision, identity, peer, proxy_port, verdict, pad }
        Flow { decisions, expires, reported, created, awaited, tcp_flags, state, pad }
        FragmentKey { source, target, id, protocol, family, zone }
        FragmentPorts { source_port, target_port, policy_port, icmp_type, pad }
        PolicyVerdictNotify {
            header, remote_label, verdict, dst_port, proto, flags, auth_type, pad, cookie, pad2,
        }
    );
    assert!(text == GOLDEN, "{text}");
}

const GOLDEN: &str = "\
AddressKey 20 align 2
  0 addr
  16 family
  17 key
  18 cluster_id
EndpointInfo 48 align 4
  0 ifindex
  4 unused
  6 lxc_id
  8 flags
  12 rt_info
  16 mac
  24 node_mac
  32 sec_id
  36 parent_ifindex
  40 policy_slot
  44 pad
DeviceEndpoint 56 align 4
  0 sec_id
  4 lxc_id
  6 pad
  8 ipv6
  24 ipv4
  28 flags
  32 mac
  40 node_mac
  48 policy_slot
  52 pad_end
IpcacheKey 24 align 4
  0 prefix_len
  4 cluster_id
  6 pad
  7 family
  8 addr
RemoteEndpointInfo 24 align 4
  0 sec_identity
  4 tunnel_endpoint
  20 pad
  22 key
  23 flags
MetricsValue 16 align 8
  0 count
  8 bytes
RecordHeader 8 align 8
  0 timestamp_ns
CaptureHeader 16 align 4
  0 event_type
  1 subtype
  2 source
  4 hash
  8 len_orig
  12 len_cap
  14 version
  15 ext_version
DropNotify 48 align 8
  0 header
  16 src_label
  20 dst_label
  24 dst_id
  28 line
  30 file
  31 ext_error
  32 ifindex
  36 flags
  37 pad
  40 ip_trace_id
TraceNotify 56 align 8
  0 header
  16 src_label
  20 dst_label
  24 dst_id
  26 reason
  27 flags
  28 ifindex
  32 orig_ip
  48 ip_trace_id
TraceSockNotify 40 align 8
  0 event_type
  1 xlate_point
  2 l4_proto
  3 flags
  4 dst_port
  6 pad
  8 sock_cookie
  16 cgroup_id
  24 dst_ip
DebugMessage 20 align 4
  0 event_type
  1 subtype
  2 source
  4 hash
  8 arg1
  12 arg2
  16 arg3
DatapathConfig 88 align 4
  0 tunnel_ifindex
  4 host_ifindex
  8 trace_payload_len
  12 host_endpoint_id
  14 cluster_id
  16 enable_ipv4
  17 enable_ipv6
  18 tunnel
  19 monitor_aggregation
  20 drop_events
  21 trace_events
  22 debug_events
  23 pad
  24 host_mac
  32 router_ipv4
  36 router_ipv6
  52 tunnel_port
  54 pad_end
  56 direct_ifindex
  60 direct_mtu
  64 ct_tcp_ticks
  68 ct_any_ticks
  72 ct_syn_ticks
  76 ct_closed_ticks
  80 aggregation_ticks
  84 aggregation_flags
  85 policy_verdict_events
  86 enable_host_firewall
  87 pad_tail
PolicyKey 16 align 4
  0 prefix_len
  4 slot
  8 identity
  12 direction
  13 protocol
  14 dport
PolicyEntry 12 align 4
  0 proxy_port
  2 bits
  3 auth
  4 precedence
  8 cookie
PolicySlot 4 align 4
  0 revision
FlowKeyV4 16 align 2
  0 lower_port
  2 upper_port
  4 protocol
  5 family
  6 zone
  8 lower
  12 upper
FlowKeyV6 40 align 2
  0 lower_port
  2 upper_port
  4 protocol
  5 family
  6 zone
  8 lower
  24 upper
FlowDecision 16 align 4
  0 revision
  4 identity
  8 peer
  12 proxy_port
  14 verdict
  15 pad
Flow 64 align 4
  0 decisions
  32 expires
  36 reported
  44 created
  48 awaited
  52 tcp_flags
  54 state
  55 pad
FragmentKey 40 align 2
  0 source
  16 target
  32 id
  36 protocol
  37 family
  38 zone
FragmentPorts 8 align 1
  0 source_port
  2 target_port
  4 policy_port
  6 icmp_type
  7 pad
PolicyVerdictNotify 40 align 4
  0 header
  16 remote_label
  20 verdict
  24 dst_port
  26 proto
  27 flags
  28 auth_type
  29 pad
  32 cookie
  36 pad2
";

/// Numbers that tools outside read: Cilium's.
#[test]
fn numbers_are_ciliums() {
    use abi::{DropReason, event::ObservationPoint, identity, mark, metrics};

    assert_eq!(DropReason::InvalidSip.number(), 132);
    assert_eq!(DropReason::TtlExceeded.number(), 196);
    assert_eq!(ObservationPoint::ToEndpoint as u8, 0);
    assert_eq!(ObservationPoint::ToNetwork as u8, 11);
    assert_eq!((identity::HOST, identity::WORLD, identity::REMOTE_NODE), (1, 2, 6));
    assert_eq!(mark::with_identity(mark::IDENTITY, 0x0001_2345), 0x2345_0f01);
    assert_eq!(mark::identity(0x2345_0f01), 0x0001_2345);
    assert_eq!(metrics::index(132, metrics::Direction::Egress), 530);
}

/// A kernel object's name has 15 bytes: two maps must not look alike.
#[test]
fn names_differ_where_the_kernel_cuts_them() {
    use abi::names;

    let maps = [
        names::LXC,
        names::LXC_DEVICES,
        names::IPCACHE,
        names::IPCACHE_HOSTS,
        names::METRICS,
        names::EVENTS,
        names::EVENTS_LOST,
        names::RUNTIME_CONFIG,
        names::POLICY,
        names::POLICY_REVISIONS,
        names::CT4_ASSURED,
        names::CT4_UNASSURED,
        names::CT6_ASSURED,
        names::CT6_UNASSURED,
        names::FRAGMENTS,
    ];
    let cut = |map: &names::MapName| map.name[..map.name.len().min(15)].to_owned();
    let names: std::collections::BTreeSet<String> = maps.iter().map(cut).collect();
    assert_eq!(names.len(), maps.len(), "{names:?}");
}
