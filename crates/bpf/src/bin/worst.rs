//! Prototype, see `datapath::worst`.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch, core_intrinsics)]
#![expect(internal_features, reason = "whether an offset is a constant decides how it is checked")]

#[path = "../config.rs"]
mod config;
#[path = "../ctx.rs"]
mod ctx;
#[path = "../events.rs"]
mod events;
#[path = "../maps.rs"]
mod maps;

use abi::endpoint::*;
use abi::ipcache::*;
use abi::{AddressKey, DatapathConfig};
use aya_ebpf::bindings::{BPF_F_NO_PREALLOC, BPF_NOEXIST};
use aya_ebpf::btf_maps::lpm_trie::Key;
use aya_ebpf::btf_maps::{Array, ArrayOfMaps, HashMap, LpmTrie, LruHashMap, PerCpuArray};
use aya_ebpf::helpers::{bpf_get_prandom_u32, bpf_ktime_get_ns};
use aya_ebpf::macros::{btf_map, classifier};
use aya_ebpf::programs::TcContext;
use datapath::Maps;
use datapath::worst::*;

use crate::ctx::Skb;
use crate::maps::NodeMaps;

#[derive(Clone, Copy)]
#[repr(C)]
struct PolicyData {
    identity: u32,
    egress: u8,
    protocol: u8,
    port: u16,
}

#[btf_map(name = "w_assured")]
static ASSURED: HashMap<Tuple, Flow, 65536, { BPF_F_NO_PREALLOC as usize }> = HashMap::new();
#[btf_map(name = "w_unassured")]
static UNASSURED: LruHashMap<Tuple, Flow, 65536> = LruHashMap::new();
#[btf_map(name = "w_services")]
static SERVICES: HashMap<ServiceKey, Service, 65536, { BPF_F_NO_PREALLOC as usize }> = HashMap::new();
#[btf_map(name = "w_backends")]
static BACKENDS: HashMap<u32, Backend, 65536, { BPF_F_NO_PREALLOC as usize }> = HashMap::new();
#[btf_map(name = "w_policy")]
static POLICY: ArrayOfMaps<LpmTrie<PolicyData, PolicyEntry, 16384>, 4096> = ArrayOfMaps::new();
#[btf_map(name = "w_revisions")]
static REVISIONS: Array<u32, 4096> = Array::new();
#[btf_map(name = "w_scratch")]
static SCRATCH: PerCpuArray<Scratch, 1> = PerCpuArray::new();
#[btf_map(name = "w_fragments")]
static FRAGMENTS: LruHashMap<FragmentKey, [u16; 2], 8192> = LruHashMap::new();

struct W;

impl Maps for W {
    fn config(&self) -> &DatapathConfig {
        crate::config::config()
    }
    fn device(&self, i: u32) -> Option<&DeviceEndpoint> {
        NodeMaps.device_static(i)
    }
    fn endpoint(&self, k: &AddressKey) -> Option<&EndpointInfo> {
        NodeMaps.endpoint_static(k)
    }
    fn host(&self, k: &AddressKey) -> Option<&RemoteEndpointInfo> {
        NodeMaps.host_static(k)
    }
    fn prefix(&self, k: &IpcacheKey) -> Option<&RemoteEndpointInfo> {
        NodeMaps.prefix_static(k)
    }
    fn listeners(&self) -> u64 {
        NodeMaps.listeners()
    }
    fn count(&self, i: u32, b: u64) {
        NodeMaps.count(i, b)
    }
}

impl NodeMaps {
    fn device_static(&self, i: u32) -> Option<&'static DeviceEndpoint> {
        (&NodeMaps as &'static NodeMaps).device(i)
    }
    fn endpoint_static(&self, k: &AddressKey) -> Option<&'static EndpointInfo> {
        (&NodeMaps as &'static NodeMaps).endpoint(k)
    }
    fn host_static(&self, k: &AddressKey) -> Option<&'static RemoteEndpointInfo> {
        (&NodeMaps as &'static NodeMaps).host(k)
    }
    fn prefix_static(&self, k: &IpcacheKey) -> Option<&'static RemoteEndpointInfo> {
        (&NodeMaps as &'static NodeMaps).prefix(k)
    }
}

impl WorstMaps for W {
    fn scratch(&self) -> Option<&mut Scratch> {
        SCRATCH.get_ptr_mut(0).map(|p| unsafe { &mut *p })
    }
    fn now(&self) -> u64 {
        unsafe { bpf_ktime_get_ns() }
    }
    fn random(&self) -> u32 {
        unsafe { bpf_get_prandom_u32() }
    }
    fn assured(&self, key: &Tuple) -> Option<*mut Flow> {
        ASSURED.get_ptr_mut(key)
    }
    fn unassured(&self, key: &Tuple) -> Option<*mut Flow> {
        UNASSURED.get_ptr_mut(key)
    }
    fn with<R>(&self, flow: *mut Flow, f: impl FnOnce(&mut Flow) -> R) -> R {
        f(unsafe { &mut *flow })
    }
    fn insert_assured(&self, key: &Tuple, flow: &Flow) -> bool {
        ASSURED.insert(key, flow, u64::from(BPF_NOEXIST)).is_ok()
    }
    fn insert_unassured(&self, key: &Tuple, flow: &Flow) -> bool {
        UNASSURED.insert(key, flow, u64::from(BPF_NOEXIST)).is_ok()
    }
    fn remove_unassured(&self, key: &Tuple) {
        let _ = UNASSURED.remove(key);
    }
    fn service(&self, key: &ServiceKey) -> Option<&Service> {
        unsafe { SERVICES.get(key) }
    }
    fn backend(&self, id: u32) -> Option<&Backend> {
        unsafe { BACKENDS.get(id) }
    }
    fn policy(&self, slot: u32, key: &PolicyKey) -> Option<&PolicyEntry> {
        let data = PolicyData {
            identity: key.identity,
            egress: key.egress,
            protocol: key.protocol,
            port: key.port,
        };
        POLICY.get(slot)?.get(&Key::new(key.prefix_len, data))
    }
    fn revision(&self, slot: u32) -> u32 {
        REVISIONS.get(slot).copied().unwrap_or(0)
    }
    fn fragment(&self, key: &FragmentKey) -> Option<[u16; 2]> {
        unsafe { FRAGMENTS.get(key) }.copied()
    }
    fn remember_fragment(&self, key: &FragmentKey, ports: [u16; 2]) {
        let _ = FRAGMENTS.insert(key, ports, 0);
    }
}

#[classifier]
pub fn worst(context: TcContext) -> i32 {
    Worst::run(&mut Skb::new(&context), &W) as i32
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 4] = *b"GPL\0";

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
