//! Maps: typed, pinned, adopted, resized, full.

use std::{collections::BTreeMap, fs, path::Path, process::Command};

use abi::{
    AddressKey,
    endpoint::{DeviceEndpoint, EndpointInfo},
    ipcache::{IPCACHE_STATIC_PREFIX_BITS, IpcacheKey, RemoteEndpointInfo},
    names,
};
use kernel::{
    datapath::{MapSizes, Maps, open_maps},
    map::{Map, Origin},
};

use crate::fixture::{BPFFS, on_node};

fn open(sizes: MapSizes) -> Maps {
    Maps::open_or_create(Path::new(BPFFS), &sizes).unwrap()
}

fn address(number: u32) -> AddressKey {
    AddressKey::v4(number.to_be_bytes())
}

fn prefix(number: u8) -> IpcacheKey {
    let mut addr = [0; 16];
    addr[..2].copy_from_slice(&[10, number]);
    let prefix_len = IPCACHE_STATIC_PREFIX_BITS + 16;
    IpcacheKey { prefix_len, cluster_id: 0, pad: 0, family: 1, addr }
}

fn identity(sec_identity: u32) -> RemoteEndpointInfo {
    RemoteEndpointInfo { sec_identity, ..RemoteEndpointInfo::default() }
}

#[test]
fn entries_are_written_read_and_deleted() {
    on_node("entries_are_written_read_and_deleted", || {
        let maps = open(MapSizes::default());
        let hosts = &maps.ipcache_hosts;
        assert_eq!(hosts.lookup(&address(1)).unwrap(), None);
        hosts.update(&address(1), &identity(7)).unwrap();
        hosts.update(&address(1), &identity(8)).unwrap();
        assert_eq!(hosts.lookup(&address(1)).unwrap(), Some(identity(8)));
        assert!(hosts.delete(&address(1)).unwrap());
        assert!(!hosts.delete(&address(1)).unwrap());

        let many: Vec<_> = (0..20_000).map(|n| (address(n), identity(n))).collect();
        hosts.update_batch(&many).unwrap();
        let read: BTreeMap<_, _> = hosts.entries().unwrap().into_iter().collect();
        assert_eq!(read.len(), many.len());
        assert!(many.iter().all(|(key, value)| read.get(key) == Some(value)));
        assert_eq!(hosts.info().unwrap().len, many.len());

        let trie = &maps.ipcache;
        let prefixes: Vec<_> = (0..200).map(|n| (prefix(n), identity(u32::from(n)))).collect();
        trie.update_batch(&prefixes).unwrap();
        assert_eq!(trie.entries().unwrap().len(), prefixes.len());
        let mut within = prefix(9);
        within.prefix_len = IPCACHE_STATIC_PREFIX_BITS + 32;
        within.addr[3] = 1;
        assert_eq!(trie.lookup(&within).unwrap(), Some(identity(9)), "the longest prefix");
        assert!(trie.delete(&prefix(9)).unwrap());
    });
}

#[test]
fn a_full_map_says_so() {
    on_node("a_full_map_says_so", || {
        let maps = open(MapSizes { ipcache: 3, ipcache_hosts: 3, ..MapSizes::default() });
        let hosts: Vec<_> = (0..5).map(|n| (address(n), identity(n))).collect();
        let error = maps.ipcache_hosts.update_batch(&hosts).unwrap_err();
        assert_eq!(error.applied, 3);
        assert!(error.source.is_full(), "{error}");
        assert!(maps.ipcache_hosts.update(&address(9), &identity(9)).unwrap_err().is_full());
        let prefixes: Vec<_> = (0..5).map(|n| (prefix(n), identity(1))).collect();
        let error = maps.ipcache.update_batch(&prefixes).unwrap_err();
        assert_eq!(error.applied, 3);
        assert_eq!(
            error.to_string(),
            "after 3 entries: map cilium_ipcache_v2 is full: it has 3 entries; raise its size"
        );
    });
}

#[test]
fn pinned_maps_are_adopted() {
    on_node("pinned_maps_are_adopted", || {
        let sizes = MapSizes::default();
        let maps = open(sizes);
        assert!(maps.origins().iter().all(|(_, origin)| *origin == Origin::Created));
        maps.lxc.update(&address(1), &EndpointInfo::default()).unwrap();
        drop(maps);
        let maps = open(sizes);
        assert!(maps.origins().iter().all(|(_, origin)| *origin == Origin::Adopted));
        assert_eq!(maps.lxc.entries().unwrap().len(), 1);
        let seen = open_maps(Path::new(BPFFS)).unwrap();
        assert_eq!(seen.lxc.info().unwrap(), maps.lxc.info().unwrap());
        assert_eq!(seen.events.info().unwrap(), maps.events.info().unwrap());
    });
}

#[test]
fn another_size_keeps_the_entries() {
    on_node("another_size_keeps_the_entries", || {
        let maps = open(MapSizes { lxc: 10, ..MapSizes::default() });
        for number in 0..5 {
            maps.lxc.update(&address(number), &EndpointInfo::default()).unwrap();
        }
        drop(maps);
        let maps = open(MapSizes { lxc: 100, ..MapSizes::default() });
        let origin = &maps.origins()[0];
        assert_eq!(*origin, ("cilium_lxc", Origin::Resized { old_max_entries: 10, entries: 5 }));
        assert_eq!(maps.lxc.info().unwrap().max_entries, 100);
        assert_eq!(open_maps(Path::new(BPFFS)).unwrap().lxc.entries().unwrap().len(), 5);
        // Where they do not fit, the old map stays and the caller hears of it.
        let error =
            Maps::open_or_create(Path::new(BPFFS), &MapSizes { lxc: 2, ..MapSizes::default() })
                .unwrap_err();
        assert!(error.is_full(), "{error}");
        assert_eq!(open_maps(Path::new(BPFFS)).unwrap().lxc.entries().unwrap().len(), 5);
    });
}

#[test]
fn a_foreign_map_is_replaced_and_reported() {
    on_node("a_foreign_map_is_replaced_and_reported", || {
        drop(open(MapSizes::default()));
        let dir = Path::new(BPFFS).join(names::MAPS_DIR);
        fs::rename(dir.join(names::LXC.name), dir.join(names::METRICS.name)).unwrap();
        let opened = open_maps(Path::new(BPFFS)).map(drop);
        assert!(opened.is_err(), "the metrics are a hash of endpoints now");
        let maps = open(MapSizes::default());
        let replaced: Vec<_> = maps
            .origins()
            .iter()
            .filter(|(_, origin)| matches!(origin, Origin::Replaced { .. }))
            .map(|(name, _)| *name)
            .collect();
        assert_eq!(replaced, [names::METRICS.name]);
        assert!(!dir.join("cilium_metrics_v1_new").exists());
        open_maps(Path::new(BPFFS)).unwrap();
    });
}

#[test]
fn bpftool_prints_names() {
    on_node("bpftool_prints_names", || {
        if Command::new("bpftool").arg("version").output().is_err() {
            eprintln!("SKIPPED: bpftool_prints_names: bpftool is not installed");
            return;
        }
        let maps = open(MapSizes::default());
        let value = DeviceEndpoint { sec_id: 4711, ..DeviceEndpoint::default() };
        maps.lxc_devices.update(&7, &value).unwrap();
        maps.lxc.update(&address(1), &EndpointInfo { lxc_id: 42, ..Default::default() }).unwrap();
        maps.ipcache.update(&prefix(1), &identity(815)).unwrap();
        for (map, expected) in [
            (names::LXC_DEVICES.name, r#""sec_id": 4711"#),
            (names::LXC.name, r#""lxc_id": 42"#),
            (names::IPCACHE.name, r#""sec_identity": 815"#),
            (names::METRICS.name, r#""count": 0"#),
        ] {
            let pin = Path::new(BPFFS).join(names::MAPS_DIR).join(map);
            let output =
                Command::new("bpftool").args(["map", "dump", "pinned"]).arg(pin).output().unwrap();
            let text = String::from_utf8(output.stdout).unwrap();
            assert!(text.contains(expected), "{map}: {text}");
        }
    });
}

/// Budget: 32 MiB at the default sizes, with 200 endpoints. About ten of them are the flows
/// that are not proven: an LRU takes its memory at once.
#[test]
fn memory_stays_in_budget() {
    on_node("memory_stays_in_budget", || {
        let maps = open(MapSizes::default());
        for number in 0..200 {
            maps.lxc.update(&address(number), &EndpointInfo::default()).unwrap();
            maps.lxc_devices.update(&number, &DeviceEndpoint::default()).unwrap();
            maps.ipcache_hosts.update(&address(number), &identity(number)).unwrap();
        }
        let infos = maps.infos().unwrap();
        let total: u64 = infos.iter().map(|info| info.memory_bytes).sum();
        let empty_trie = infos.iter().find(|info| info.name == names::IPCACHE.name).unwrap();
        if empty_trie.memory_bytes > 1 << 20 {
            eprintln!("SKIPPED: memory_stays_in_budget: this kernel does not count, it estimates");
            return;
        }
        eprintln!("kernel memory of all maps with 200 endpoints: {} KiB", total / 1024);
        assert!(total <= 32 << 20, "{infos:#?}");
    });
}
