//! The maps of the datapath, by name and type.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use abi::{
    AddressKey,
    conntrack::{Flow, FlowKeyV4, FlowKeyV6, FragmentKey, FragmentPorts},
    endpoint::{DeviceEndpoint, EndpointInfo},
    ipcache::{IpcacheKey, RemoteEndpointInfo},
    metrics::MetricsValue,
    names::{self, MapName},
    policy::{PolicyEntry, PolicyKey, PolicySlot},
};

use crate::{
    events::EventMaps,
    map::{
        BpfMap, Btf, Described, Map, MapError, MapInfo, MapLayout, Origin, PerCpuArray, PinnedMap,
        kernel, map_dir, open_or_create,
    },
    sys,
};

/// How large the maps are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapSizes {
    /// Endpoints by address.
    pub lxc: u32,
    /// Endpoints by device.
    pub lxc_devices: u32,
    /// Prefixes.
    pub ipcache: u32,
    /// Host prefixes.
    pub ipcache_hosts: u32,
    /// Entries of all policies.
    pub policy: u32,
    /// Flows that are proven, per family.
    pub ct_assured: u32,
    /// Flows that are not, per family. Their memory is taken at once.
    pub ct_unassured: u32,
    /// Bytes of each CPU's ring of events: a power of two, at least a page.
    pub events_ring_bytes: u32,
}

impl Default for MapSizes {
    fn default() -> Self {
        Self {
            lxc: names::LXC.max_entries,
            lxc_devices: names::LXC_DEVICES.max_entries,
            ipcache: names::IPCACHE.max_entries,
            ipcache_hosts: names::IPCACHE_HOSTS.max_entries,
            policy: names::POLICY.max_entries,
            ct_assured: names::CT4_ASSURED.max_entries,
            ct_unassured: names::CT4_UNASSURED.max_entries,
            events_ring_bytes: names::EVENTS_RING_BYTES,
        }
    }
}

/// The maps of the datapath. Each can be handed to whoever writes it.
#[derive(Debug)]
pub struct Maps {
    /// Endpoints by address.
    pub lxc: Arc<BpfMap<AddressKey, EndpointInfo>>,
    /// Endpoints by the index of their host-side device.
    pub lxc_devices: Arc<BpfMap<u32, DeviceEndpoint>>,
    /// Identity and tunnel endpoint of prefixes.
    pub ipcache: Arc<BpfMap<IpcacheKey, RemoteEndpointInfo>>,
    /// Identity and tunnel endpoint of addresses.
    pub ipcache_hosts: Arc<BpfMap<AddressKey, RemoteEndpointInfo>>,
    /// Counters by [`abi::metrics::index`].
    pub metrics: Arc<PerCpuArray<MetricsValue>>,
    /// What running programs are told: see `abi::config::RUNTIME_*`.
    pub runtime_config: Arc<BpfMap<u32, u64>>,
    /// Policies of all slots.
    pub policy: Arc<BpfMap<PolicyKey, PolicyEntry>>,
    /// Revision of each slot.
    pub policy_revisions: Arc<BpfMap<u32, PolicySlot>>,
    /// IPv4 flows that are proven.
    pub ct4_assured: Arc<BpfMap<FlowKeyV4, Flow>>,
    /// IPv4 flows that are not.
    pub ct4_unassured: Arc<BpfMap<FlowKeyV4, Flow>>,
    /// IPv6 flows that are proven.
    pub ct6_assured: Arc<BpfMap<FlowKeyV6, Flow>>,
    /// IPv6 flows that are not.
    pub ct6_unassured: Arc<BpfMap<FlowKeyV6, Flow>>,
    /// Datagrams in fragments.
    pub fragments: Arc<BpfMap<FragmentKey, FragmentPorts>>,
    /// Rings of events.
    pub events: EventMaps,
    origins: Vec<(&'static str, Origin)>,
}

const ALL: [MapName; 15] = [
    names::LXC,
    names::LXC_DEVICES,
    names::IPCACHE,
    names::IPCACHE_HOSTS,
    names::METRICS,
    names::RUNTIME_CONFIG,
    names::POLICY,
    names::POLICY_REVISIONS,
    names::CT4_ASSURED,
    names::CT4_UNASSURED,
    names::CT6_ASSURED,
    names::CT6_UNASSURED,
    names::FRAGMENTS,
    names::EVENTS,
    names::EVENTS_LOST,
];

/// Opens the maps that an agent has pinned below `bpffs`, to look at them.
pub fn open_maps(bpffs: &Path) -> Result<Maps, MapError> {
    let dir = bpffs.join(names::MAPS_DIR);
    Ok(Maps {
        lxc: Arc::new(BpfMap::open(&dir.join(names::LXC.name))?),
        lxc_devices: Arc::new(BpfMap::open(&dir.join(names::LXC_DEVICES.name))?),
        ipcache: Arc::new(BpfMap::open(&dir.join(names::IPCACHE.name))?),
        ipcache_hosts: Arc::new(BpfMap::open(&dir.join(names::IPCACHE_HOSTS.name))?),
        metrics: Arc::new(PerCpuArray::open(&dir.join(names::METRICS.name))?),
        runtime_config: Arc::new(BpfMap::open(&dir.join(names::RUNTIME_CONFIG.name))?),
        policy: Arc::new(BpfMap::open(&dir.join(names::POLICY.name))?),
        policy_revisions: Arc::new(BpfMap::open(&dir.join(names::POLICY_REVISIONS.name))?),
        ct4_assured: Arc::new(BpfMap::open(&dir.join(names::CT4_ASSURED.name))?),
        ct4_unassured: Arc::new(BpfMap::open(&dir.join(names::CT4_UNASSURED.name))?),
        ct6_assured: Arc::new(BpfMap::open(&dir.join(names::CT6_ASSURED.name))?),
        ct6_unassured: Arc::new(BpfMap::open(&dir.join(names::CT6_UNASSURED.name))?),
        fragments: Arc::new(BpfMap::open(&dir.join(names::FRAGMENTS.name))?),
        events: EventMaps::open(&dir)?,
        origins: Vec::new(),
    })
}

impl Maps {
    /// Adopts the pinned maps, and makes those that are missing or of another layout.
    pub fn open_or_create(bpffs: &Path, sizes: &MapSizes) -> Result<Self, MapError> {
        let dir = map_dir(bpffs).map_err(|source| kernel(names::MAPS_DIR, "pin", source))?;
        let mut opener = Opener { dir: &dir, origins: Vec::new() };
        Ok(Self {
            lxc: Arc::new(opener.hash(names::LXC, sizes.lxc)?),
            lxc_devices: Arc::new(opener.hash(names::LXC_DEVICES, sizes.lxc_devices)?),
            ipcache: Arc::new(opener.trie(names::IPCACHE, sizes.ipcache)?),
            ipcache_hosts: Arc::new(opener.hash(names::IPCACHE_HOSTS, sizes.ipcache_hosts)?),
            metrics: Arc::new(opener.counters(names::METRICS)?),
            runtime_config: Arc::new(opener.array(names::RUNTIME_CONFIG)?),
            policy: Arc::new(opener.trie(names::POLICY, sizes.policy)?),
            policy_revisions: Arc::new(opener.array(names::POLICY_REVISIONS)?),
            ct4_assured: Arc::new(opener.hash(names::CT4_ASSURED, sizes.ct_assured)?),
            ct4_unassured: Arc::new(opener.lru(names::CT4_UNASSURED, sizes.ct_unassured)?),
            ct6_assured: Arc::new(opener.hash(names::CT6_ASSURED, sizes.ct_assured)?),
            ct6_unassured: Arc::new(opener.lru(names::CT6_UNASSURED, sizes.ct_unassured)?),
            fragments: Arc::new(opener.lru(names::FRAGMENTS, names::FRAGMENTS.max_entries)?),
            events: EventMaps::new(
                opener.rings(names::EVENTS, sizes.events_ring_bytes)?,
                opener.counters(names::EVENTS_LOST)?,
            ),
            origins: opener.origins,
        })
    }

    /// Where each map came from: whether it was adopted, made, or replaced with a loss.
    pub fn origins(&self) -> &[(&'static str, Origin)] {
        &self.origins
    }

    /// Name, size, use and memory of every map.
    pub fn infos(&self) -> Result<Vec<MapInfo>, MapError> {
        Ok(vec![
            self.lxc.info()?,
            self.lxc_devices.info()?,
            self.ipcache.info()?,
            self.ipcache_hosts.info()?,
            self.metrics.info()?,
            self.runtime_config.info()?,
            self.policy.info()?,
            self.policy_revisions.info()?,
            self.ct4_assured.info()?,
            self.ct4_unassured.info()?,
            self.ct6_assured.info()?,
            self.ct6_unassured.info()?,
            self.fragments.info()?,
            self.events.info()?,
            self.events.lost_info()?,
        ])
    }
}

/// Name and pin of every map: where the programs find theirs.
pub(super) fn pins(bpffs: &Path) -> impl Iterator<Item = (&'static str, PathBuf)> {
    let dir = bpffs.join(names::MAPS_DIR);
    ALL.into_iter().map(move |map| (map.name, dir.join(map.name)))
}

/// Opens maps in a directory of pins, remembering where each came from.
struct Opener<'a> {
    dir: &'a Path,
    origins: Vec<(&'static str, Origin)>,
}

impl Opener<'_> {
    fn hash<K, V>(&mut self, map: MapName, max_entries: u32) -> Result<BpfMap<K, V>, MapError>
    where
        K: crate::map::Plain + Described,
        V: crate::map::Plain + Described,
    {
        // Filled to a small part as a rule: entries are allocated when they come.
        let kind = (sys::MAP_TYPE_HASH, sys::F_NO_PREALLOC);
        let map = self.typed::<K, V>(map.name, kind, max_entries)?;
        BpfMap::new(map.raw, map.name.to_owned())
    }

    fn trie<K, V>(&mut self, map: MapName, max_entries: u32) -> Result<BpfMap<K, V>, MapError>
    where
        K: crate::map::Plain + Described,
        V: crate::map::Plain + Described,
    {
        let kind = (sys::MAP_TYPE_LPM_TRIE, sys::F_NO_PREALLOC);
        let map = self.typed::<K, V>(map.name, kind, max_entries)?;
        BpfMap::new(map.raw, map.name.to_owned())
    }

    fn lru<K, V>(&mut self, map: MapName, max_entries: u32) -> Result<BpfMap<K, V>, MapError>
    where
        K: crate::map::Plain + Described,
        V: crate::map::Plain + Described,
    {
        let kind = (sys::MAP_TYPE_LRU_HASH, 0);
        let map = self.typed::<K, V>(map.name, kind, max_entries)?;
        BpfMap::new(map.raw, map.name.to_owned())
    }

    fn array<V>(&mut self, map: MapName) -> Result<BpfMap<u32, V>, MapError>
    where
        V: crate::map::Plain + Described,
    {
        let kind = (sys::MAP_TYPE_ARRAY, 0);
        let map = self.typed::<u32, V>(map.name, kind, map.max_entries)?;
        BpfMap::new(map.raw, map.name.to_owned())
    }

    fn counters<V>(&mut self, map: MapName) -> Result<PerCpuArray<V>, MapError>
    where
        V: crate::map::Plain + Described,
    {
        let kind = (sys::MAP_TYPE_PERCPU_ARRAY, 0);
        let map = self.typed::<u32, V>(map.name, kind, map.max_entries)?;
        PerCpuArray::new(map.raw, map.name.to_owned())
    }

    fn rings(&mut self, map: MapName, bytes: u32) -> Result<PinnedMap, MapError> {
        let cpus = sys::possible_cpus().map_err(|source| kernel(map.name, "size", source))?;
        let layout = MapLayout {
            name: map.name,
            map_type: sys::MAP_TYPE_ARRAY_OF_MAPS,
            key_size: 4,
            value_size: 4,
            max_entries: cpus as u32,
            flags: 0,
            ring_bytes: Some(bytes),
        };
        self.open(&layout, None)
    }

    fn typed<K: Described, V: Described>(
        &mut self,
        name: &'static str,
        (map_type, flags): (u32, u32),
        max_entries: u32,
    ) -> Result<PinnedMap, MapError> {
        let layout = MapLayout {
            name,
            map_type,
            key_size: size_of::<K>() as u32,
            value_size: size_of::<V>() as u32,
            max_entries,
            flags,
            ring_bytes: None,
        };
        let btf = Btf::load::<K, V>().map_err(|source| kernel(name, "describe", source))?;
        self.open(&layout, Some(&btf))
    }

    fn open(&mut self, layout: &MapLayout, btf: Option<&Btf>) -> Result<PinnedMap, MapError> {
        let map = open_or_create(self.dir, layout, btf)?;
        self.origins.push((map.name, map.origin.clone()));
        Ok(map)
    }
}
