//! All maps, as the loader finds them. Names and sizes: [`abi::names`]; the loader pins them below
//! [`abi::names::MAPS_DIR`] and may change the sizes.

use core::ops::DerefMut;

use abi::address::FAMILY_V4;
use abi::config::RUNTIME_EVENTS;
use abi::conntrack::{Flow, FlowKeyV4, FlowKeyV6, FragmentKey, FragmentPorts, ticks};
use abi::endpoint::{DeviceEndpoint, EndpointInfo};
use abi::ipcache::{IpcacheKey, RemoteEndpointInfo};
use abi::metrics::{METRICS_LEN, MetricsValue};
use abi::policy::{PolicyEntry, PolicyKey, PolicySlot};
use abi::{AddressKey, DatapathConfig, names};
use aya_ebpf::bindings::BPF_F_NO_PREALLOC;
use aya_ebpf::btf_maps::lpm_trie::Key;
use aya_ebpf::btf_maps::{Array, ArrayOfMaps, HashMap, LpmTrie, LruHashMap, PerCpuArray, RingBuf};
use aya_ebpf::helpers::bpf_ktime_get_coarse_ns;
use aya_ebpf::macros::btf_map;
use datapath::Family;
use datapath::flow::FlowKey;
use datapath::maps::Scratch;

/// Entries take memory when they are there, not before: a node has tens of pods and room for
/// thousands.
const SPARSE: usize = BPF_F_NO_PREALLOC as usize;

#[btf_map(name = "cilium_lxc")]
static LXC: HashMap<AddressKey, EndpointInfo, { names::LXC.max_entries as usize }, SPARSE> =
    HashMap::new();

#[btf_map(name = "cilium_lxc_devices_v2")]
static LXC_DEVICES: HashMap<
    u32,
    DeviceEndpoint,
    { names::LXC_DEVICES.max_entries as usize },
    SPARSE,
> = HashMap::new();

#[btf_map(name = "cilium_hosts_v1")]
static IPCACHE_HOSTS: HashMap<
    AddressKey,
    RemoteEndpointInfo,
    { names::IPCACHE_HOSTS.max_entries as usize },
    SPARSE,
> = HashMap::new();

/// [`IpcacheKey`] without its first field, which is aya's.
#[derive(Clone, Copy)]
#[repr(C)]
struct IpcachePrefix {
    cluster_id: u16,
    pad: u8,
    family: u8,
    addr: [u8; 16],
}

const _: () = assert!(size_of::<Key<IpcachePrefix>>() == size_of::<IpcacheKey>());

#[btf_map(name = "cilium_ipcache_v2")]
static IPCACHE: LpmTrie<
    IpcachePrefix,
    RemoteEndpointInfo,
    { names::IPCACHE.max_entries as usize },
> = LpmTrie::new();

#[btf_map(name = "cilium_metrics_v1")]
static METRICS: PerCpuArray<MetricsValue, { METRICS_LEN as usize }> = PerCpuArray::new();

#[btf_map(name = "cilium_runtime_config")]
static RUNTIME_CONFIG: Array<u64, { names::RUNTIME_CONFIG.max_entries as usize }> = Array::new();

/// [`PolicyKey`] without its first field, which is aya's.
#[derive(Clone, Copy)]
#[repr(C)]
struct PolicyPrefix {
    slot: u32,
    identity: u32,
    direction: u8,
    protocol: u8,
    dport: [u8; 2],
}

const _: () = assert!(size_of::<Key<PolicyPrefix>>() == size_of::<PolicyKey>());

#[btf_map(name = "cilium_policy_slots_v1")]
static POLICY: LpmTrie<PolicyPrefix, PolicyEntry, { names::POLICY.max_entries as usize }> =
    LpmTrie::new();

#[btf_map(name = "cilium_policy_revisions_v1")]
static POLICY_REVISIONS: Array<PolicySlot, { names::POLICY_REVISIONS.max_entries as usize }> =
    Array::new();

type Assured<K> = HashMap<K, Flow, { names::CT4_ASSURED.max_entries as usize }, SPARSE>;
type Unassured<K> = LruHashMap<K, Flow, { names::CT4_UNASSURED.max_entries as usize }>;

#[btf_map(name = "cilium_ct4_assured_v1")]
static CT4_ASSURED: Assured<FlowKeyV4> = HashMap::new();

#[btf_map(name = "cilium_ct4_unassured_v1")]
static CT4_UNASSURED: Unassured<FlowKeyV4> = LruHashMap::new();

#[btf_map(name = "cilium_ct6_assured_v1")]
static CT6_ASSURED: Assured<FlowKeyV6> = HashMap::new();

#[btf_map(name = "cilium_ct6_unassured_v1")]
static CT6_UNASSURED: Unassured<FlowKeyV6> = LruHashMap::new();

#[btf_map(name = "cilium_fragments_v1")]
static FRAGMENTS: LruHashMap<
    FragmentKey,
    FragmentPorts,
    { names::FRAGMENTS.max_entries as usize },
> = LruHashMap::new();

/// The programs' own, not pinned.
#[btf_map(name = "cilium_scratch")]
static SCRATCH: PerCpuArray<Scratch, 1> = PerCpuArray::new();

/// A ring of records of [`crate::events`].
pub(crate) type Ring = RingBuf<(), { names::EVENTS_RING_BYTES as usize }>;

/// As many rings as the kernel may have CPUs; the loader knows how many.
#[btf_map(name = "cilium_events_v1")]
pub(crate) static EVENTS: ArrayOfMaps<Ring, 1> = ArrayOfMaps::new();

#[btf_map(name = "cilium_events_lost_v1")]
pub(crate) static EVENTS_LOST: PerCpuArray<u64, { names::EVENTS_LOST.max_entries as usize }> =
    PerCpuArray::new();

/// The maps above, as the hooks know them.
pub(crate) struct NodeMaps;

// References to values of a hash map stay valid for the run of the program: memory of a deleted
// entry is freed after an RCU grace period. Entries are replaced, not written in place, so a
// reader sees the old value or the new one.
impl datapath::Maps for NodeMaps {
    #[inline(always)]
    fn config(&self) -> &DatapathConfig {
        crate::config::config()
    }

    #[inline(always)]
    fn device(&self, ifindex: u32) -> Option<&DeviceEndpoint> {
        // SAFETY: see above.
        unsafe { LXC_DEVICES.get(ifindex) }
    }

    #[inline(always)]
    fn endpoint(&self, key: &AddressKey) -> Option<&EndpointInfo> {
        // SAFETY: see above.
        unsafe { LXC.get(key) }
    }

    #[inline(always)]
    fn host(&self, key: &AddressKey) -> Option<&RemoteEndpointInfo> {
        // SAFETY: see above.
        unsafe { IPCACHE_HOSTS.get(key) }
    }

    #[inline(always)]
    fn prefix(&self, key: &IpcacheKey) -> Option<&RemoteEndpointInfo> {
        let IpcacheKey { prefix_len, cluster_id, pad, family, addr } = *key;
        IPCACHE.get(&Key::new(prefix_len, IpcachePrefix { cluster_id, pad, family, addr }))
    }

    #[inline(always)]
    fn listeners(&self) -> u64 {
        RUNTIME_CONFIG.get(RUNTIME_EVENTS).copied().unwrap_or(0)
    }

    #[inline(always)]
    fn now(&self) -> u32 {
        // SAFETY: a helper without arguments. The coarse clock is the monotonic one, at most a tick
        // of the kernel late, for a fraction of its price.
        ticks(unsafe { bpf_ktime_get_coarse_ns() })
    }

    #[inline(always)]
    fn scratch(&self) -> Option<impl DerefMut<Target = Scratch>> {
        // SAFETY: the value is this CPU's, programs do not interrupt each other while they handle
        // packets, and each takes it once. Any bytes but those of the summary mean something, and
        // the summary is written before it is read.
        SCRATCH.get_ptr_mut(0).map(|scratch| unsafe { &mut *scratch })
    }

    #[inline(always)]
    fn with_flow<F: Family, R>(&self, key: &FlowKey, f: impl FnOnce(&mut Flow) -> R) -> Option<R> {
        let flow = if F::NUMBER == FAMILY_V4 {
            let key = v4(key);
            CT4_ASSURED.get_ptr_mut(key).or_else(|| CT4_UNASSURED.get_ptr_mut(key))
        } else {
            let key = v6(key);
            CT6_ASSURED.get_ptr_mut(key).or_else(|| CT6_UNASSURED.get_ptr_mut(key))
        };
        // SAFETY: see above; but flows are written in place, on several CPUs at once. All fields are
        // integers, each written in one store, and any combination of them is a flow: what a race
        // loses is one packet's flag or time.
        flow.map(|flow| f(unsafe { &mut *flow }))
    }

    #[inline(always)]
    fn insert_assured<F: Family>(&self, key: &FlowKey, flow: &Flow) -> bool {
        if F::NUMBER == FAMILY_V4 {
            CT4_ASSURED.insert(v4(key), flow, 0).is_ok()
        } else {
            CT6_ASSURED.insert(v6(key), flow, 0).is_ok()
        }
    }

    #[inline(always)]
    fn insert_unassured<F: Family>(&self, key: &FlowKey, flow: &Flow) -> bool {
        if F::NUMBER == FAMILY_V4 {
            CT4_UNASSURED.insert(v4(key), flow, 0).is_ok()
        } else {
            CT6_UNASSURED.insert(v6(key), flow, 0).is_ok()
        }
    }

    #[inline(always)]
    fn delete_assured<F: Family>(&self, key: &FlowKey) {
        // It is gone already: somebody else was faster.
        let _gone = if F::NUMBER == FAMILY_V4 {
            CT4_ASSURED.remove(v4(key))
        } else {
            CT6_ASSURED.remove(v6(key))
        };
    }

    #[inline(always)]
    fn delete_unassured<F: Family>(&self, key: &FlowKey) {
        let _gone = if F::NUMBER == FAMILY_V4 {
            CT4_UNASSURED.remove(v4(key))
        } else {
            CT6_UNASSURED.remove(v6(key))
        };
    }

    #[inline(always)]
    fn fragment(&self, key: &FragmentKey) -> Option<FragmentPorts> {
        // SAFETY: see above.
        unsafe { FRAGMENTS.get(key) }.copied()
    }

    #[inline(always)]
    fn remember(&self, key: &FragmentKey, ports: &FragmentPorts) {
        // Where it fails, later fragments are decided without ports.
        let _unless_full = FRAGMENTS.insert(key, ports, 0);
    }

    #[inline(always)]
    fn policy(&self, key: &PolicyKey) -> Option<&PolicyEntry> {
        let PolicyKey { prefix_len, slot, identity, direction, protocol, dport } = *key;
        let prefix = PolicyPrefix { slot, identity, direction, protocol, dport };
        POLICY.get(&Key::new(prefix_len, prefix))
    }

    #[inline(always)]
    fn revision(&self, slot: u32) -> u32 {
        POLICY_REVISIONS.get(slot).map_or(0, |slot| slot.revision)
    }

    #[inline(always)]
    fn count(&self, index: u32, bytes: u64) {
        if let Some(value) = METRICS.get_ptr_mut(index) {
            // SAFETY: the value is this CPU's, and a program is not interrupted by another of the
            // same kind; user space only reads.
            unsafe {
                (*value).count += 1;
                (*value).bytes += bytes;
            }
        }
    }
}

const _: () = assert!(size_of::<FlowKey>() == size_of::<FlowKeyV6>());

/// The key of an IPv4 flow.
#[inline(always)]
fn v4(key: &FlowKey) -> &FlowKeyV4 {
    // SAFETY: the first sixteen bytes of the one are the other, as its documentation says; it is
    // aligned less strictly.
    unsafe { &*core::ptr::from_ref(key).cast() }
}

/// The key of an IPv6 flow.
#[inline(always)]
fn v6(key: &FlowKey) -> &FlowKeyV6 {
    // SAFETY: both are the same forty bytes, as the documentation of the one says.
    unsafe { &*core::ptr::from_ref(key).cast() }
}
