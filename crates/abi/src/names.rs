//! Names, sizes and pin paths of everything we leave in the kernel.
//!
//! A name ends in a layout version where the layout is our own; Cilium's names are used exactly
//! where the layout is Cilium's. A change of layout is a new name, so an agent never reads the
//! bytes of another version.

/// Where global maps are pinned, below the bpffs.
pub const MAPS_DIR: &str = "tc/globals";
/// Where links of the node's devices are pinned, below the bpffs: `<dir>/<device>/links/<program>`.
pub const DEVICES_DIR: &str = "cilium/devices";
/// Where the loaded programs are pinned, below the bpffs: `<dir>/<generation>/<program>`.
pub const PROGRAMS_DIR: &str = "cilium/programs";

/// A global map: its pin name and its default size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapName {
    /// File name below [`MAPS_DIR`]; its first 15 bytes are the name in the kernel.
    pub name: &'static str,
    /// Entries at most, by default.
    pub max_entries: u32,
}

/// Endpoints by address: [`crate::AddressKey`] → [`crate::endpoint::EndpointInfo`].
pub const LXC: MapName = MapName { name: "cilium_lxc", max_entries: 65_535 };
/// Endpoints by device: `u32` → [`crate::endpoint::DeviceEndpoint`].
pub const LXC_DEVICES: MapName = MapName { name: "cilium_lxc_devices_v2", max_entries: 4_096 };
/// Prefixes shorter than a host: [`crate::ipcache::IpcacheKey`] →
/// [`crate::ipcache::RemoteEndpointInfo`].
pub const IPCACHE: MapName = MapName { name: "cilium_ipcache_v2", max_entries: 512_000 };
/// Host prefixes: [`crate::AddressKey`] → [`crate::ipcache::RemoteEndpointInfo`].
pub const IPCACHE_HOSTS: MapName = MapName { name: "cilium_hosts_v1", max_entries: 512_000 };
/// Counters: [`crate::metrics::index`] → [`crate::metrics::MetricsValue`] per CPU.
pub const METRICS: MapName =
    MapName { name: "cilium_metrics_v1", max_entries: crate::metrics::METRICS_LEN };
/// Array of one ring buffer per possible CPU.
pub const EVENTS: MapName = MapName { name: "cilium_events_v1", max_entries: 0 };
/// Bytes of each of those ring buffers, by default. A power of two, at least a page.
pub const EVENTS_RING_BYTES: u32 = 512 * 1024;
/// Events that found their ring full: one `u64` per CPU.
pub const EVENTS_LOST: MapName = MapName { name: "cilium_events_lost_v1", max_entries: 1 };

/// What the running programs may be told: [`crate::config::RUNTIME_EVENTS`] and the like → `u64`.
/// Cilium's map of the same name; our indices start where Cilium has none.
pub const RUNTIME_CONFIG: MapName = MapName { name: "cilium_runtime_config", max_entries: 256 };

/// Policies of all slots: [`crate::policy::PolicyKey`] → [`crate::policy::PolicyEntry`].
pub const POLICY: MapName = MapName { name: "cilium_policy_slots_v1", max_entries: 1 << 20 };
/// Revision of each slot: `u32` → [`crate::policy::PolicySlot`].
pub const POLICY_REVISIONS: MapName =
    MapName { name: "cilium_policy_revisions_v1", max_entries: 8_192 };
/// IPv4 flows that are proven: [`crate::conntrack::FlowKeyV4`] → [`crate::conntrack::Flow`].
pub const CT4_ASSURED: MapName = MapName { name: "cilium_ct4_assured_v1", max_entries: 131_072 };
/// IPv4 flows that are not: an LRU.
pub const CT4_UNASSURED: MapName = MapName { name: "cilium_ct4_unassured_v1", max_entries: 32_768 };
/// IPv6 flows that are proven: [`crate::conntrack::FlowKeyV6`] → [`crate::conntrack::Flow`].
pub const CT6_ASSURED: MapName = MapName { name: "cilium_ct6_assured_v1", max_entries: 131_072 };
/// IPv6 flows that are not: an LRU.
pub const CT6_UNASSURED: MapName = MapName { name: "cilium_ct6_unassured_v1", max_entries: 32_768 };
/// Datagrams in fragments: [`crate::conntrack::FragmentKey`] →
/// [`crate::conntrack::FragmentPorts`]. An LRU.
pub const FRAGMENTS: MapName = MapName { name: "cilium_fragments_v1", max_entries: 8_192 };

/// Program at the ingress of a pod's host-side device: what the pod sends.
pub const FROM_CONTAINER: &str = "cil_from_container";
/// Program at the egress of a pod's host-side device: what the stack delivers to the pod.
pub const TO_CONTAINER: &str = "cil_to_container";
/// Program at the ingress of the node's network devices.
pub const FROM_NETDEV: &str = "cil_from_netdev";
/// Program at the egress of the node's network devices.
pub const TO_NETDEV: &str = "cil_to_netdev";
/// Program at the ingress of the tunnel device.
pub const FROM_OVERLAY: &str = "cil_from_overlay";
/// Program at the egress of the tunnel device.
pub const TO_OVERLAY: &str = "cil_to_overlay";
/// Program at the egress of `cilium_host`: what the host sends to pods.
pub const FROM_HOST: &str = "cil_from_host";

/// Every program, in the order of a packet's way out and in.
pub const PROGRAMS: [&str; 7] =
    [FROM_CONTAINER, TO_CONTAINER, FROM_NETDEV, TO_NETDEV, FROM_OVERLAY, TO_OVERLAY, FROM_HOST];
