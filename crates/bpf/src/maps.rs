//! All maps, as the loader finds them. Names and sizes: [`abi::names`]; the loader pins them below
//! [`abi::names::MAPS_DIR`] and may change the sizes.

use abi::config::RUNTIME_EVENTS;
use abi::endpoint::{DeviceEndpoint, EndpointInfo};
use abi::ipcache::{IpcacheKey, RemoteEndpointInfo};
use abi::metrics::{METRICS_LEN, MetricsValue};
use abi::{AddressKey, DatapathConfig, names};
use aya_ebpf::bindings::BPF_F_NO_PREALLOC;
use aya_ebpf::btf_maps::lpm_trie::Key;
use aya_ebpf::btf_maps::{Array, ArrayOfMaps, HashMap, LpmTrie, PerCpuArray, RingBuf};
use aya_ebpf::macros::btf_map;

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
