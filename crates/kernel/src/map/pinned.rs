//! Maps that outlive the agent: opened by their pin when they are as they should be, made
//! otherwise.

use std::{
    fmt, fs, io,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::Path,
};

use zerocopy::IntoBytes;

use super::{Btf, MapError, kernel};
use crate::sys::{self, MapCreate, RawMap};

/// What a map must be like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct MapLayout {
    pub(crate) name: &'static str,
    pub(crate) map_type: u32,
    pub(crate) key_size: u32,
    pub(crate) value_size: u32,
    pub(crate) max_entries: u32,
    pub(crate) flags: u32,
    /// Of an array of ring buffers: the bytes of one.
    pub(crate) ring_bytes: Option<u32>,
}

impl fmt::Display for MapLayout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { map_type, key_size, value_size, max_entries, flags, .. } = self;
        write!(
            f,
            "type {map_type}, keys of {key_size} and values of {value_size} bytes, at most \
             {max_entries} entries, flags {flags:#x}"
        )
    }
}

/// Where a map came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// There was none.
    Created,
    /// It was pinned and is as it should be.
    Adopted,
    /// Another size was wanted: a new map has the entries of the old one.
    Resized {
        /// Entries at most, before.
        old_max_entries: u32,
        /// Entries that were carried over.
        entries: usize,
    },
    /// The pinned map could not be used; a new one took its name, without its entries.
    Replaced {
        /// Why, in words for the log.
        reason: String,
    },
}

/// A map under its pin.
#[derive(Debug)]
pub struct PinnedMap {
    pub(crate) raw: RawMap,
    pub(crate) name: &'static str,
    pub(crate) origin: Origin,
}

/// Opens the map of this layout that is pinned in `dir`, or makes it.
///
/// A map that is pinned there but different is never silently lost: its entries move to the new
/// map where only the size differs; otherwise a warning says what went. Programs that still use
/// the old map keep it until they are replaced.
pub(crate) fn open_or_create(
    dir: &Path,
    layout: &MapLayout,
    btf: Option<&Btf>,
) -> Result<PinnedMap, MapError> {
    let name = layout.name;
    let path = dir.join(name);
    let old = match sys::pinned(&path) {
        Ok(fd) => Some(RawMap::new(fd).map_err(|source| kernel(name, "describe", source))?),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(source) => return Err(kernel(name, "open", source)),
    };
    let Some(old) = old else {
        let raw = create(layout, btf)?;
        sys::pin(raw.as_fd(), &path).map_err(|source| kernel(name, "pin", source))?;
        return Ok(PinnedMap { raw, name, origin: Origin::Created });
    };
    let actual = actual_layout(&old, name).map_err(|source| kernel(name, "describe", source))?;
    if actual == *layout {
        return Ok(PinnedMap { raw: old, name, origin: Origin::Adopted });
    }
    let raw = create(layout, btf)?;
    let resizable = MapLayout { max_entries: layout.max_entries, flags: layout.flags, ..actual };
    let origin = if resizable == *layout && layout.ring_bytes.is_none() {
        let entries = copy(&old, &raw).map_err(|source| match source.raw_os_error() {
            Some(libc::E2BIG | libc::ENOSPC) => {
                MapError::Full { map: name.to_owned(), max_entries: layout.max_entries }
            }
            _ => kernel(name, "copy the entries of", source),
        })?;
        tracing::info!(map = name, old = %actual, new = %layout, entries, "map resized");
        Origin::Resized { old_max_entries: actual.max_entries, entries }
    } else {
        let reason = format!("it is {actual}; wanted is {layout}");
        tracing::warn!(map = name, reason, "pinned map cannot be used; an empty one replaces it");
        Origin::Replaced { reason }
    };
    sys::pin_over(raw.as_fd(), &path).map_err(|source| kernel(name, "pin", source))?;
    Ok(PinnedMap { raw, name, origin })
}

/// Where maps are pinned, made if it is not there.
pub(crate) fn map_dir(bpffs: &Path) -> io::Result<std::path::PathBuf> {
    let dir = bpffs.join(abi::names::MAPS_DIR);
    fs::create_dir_all(&dir)?;
    Ok(dir)
}

fn create(layout: &MapLayout, btf: Option<&Btf>) -> Result<RawMap, MapError> {
    let failed = |source| kernel(layout.name, "create", source);
    let ring = layout.ring_bytes.map(ring_buffer).transpose().map_err(failed)?;
    let fd = sys::map_create(MapCreate {
        map_type: layout.map_type,
        key_size: layout.key_size,
        value_size: layout.value_size,
        max_entries: layout.max_entries,
        flags: layout.flags,
        inner_map_fd: ring.as_ref().map_or(0, |ring| ring.as_raw_fd() as u32),
        numa_node: 0,
        name: sys::object_name(layout.name),
        ifindex: 0,
        btf_fd: btf.map_or(0, |btf| btf.as_fd().as_raw_fd() as u32),
        btf_key_type_id: btf.map_or(0, |btf| btf.key),
        btf_value_type_id: btf.map_or(0, |btf| btf.value),
    })
    .map_err(failed)?;
    let raw = RawMap::new(fd).map_err(failed)?;
    if let Some(bytes) = layout.ring_bytes {
        // Once, before any program runs: writing an outer map waits for RCU, hence one batch.
        let rings: Vec<OwnedFd> = (0..layout.max_entries)
            .map(|_| ring_buffer(bytes))
            .collect::<io::Result<_>>()
            .map_err(failed)?;
        let keys: Vec<u32> = (0..layout.max_entries).collect();
        let fds: Vec<u32> = rings.iter().map(|ring| ring.as_raw_fd() as u32).collect();
        raw.update_batch(keys.as_slice().as_bytes(), fds.as_slice().as_bytes(), keys.len())
            .map_err(|(_, source)| failed(source))?;
    }
    Ok(raw)
}

fn ring_buffer(bytes: u32) -> io::Result<OwnedFd> {
    sys::map_create(MapCreate {
        map_type: sys::MAP_TYPE_RINGBUF,
        key_size: 0,
        value_size: 0,
        max_entries: bytes,
        flags: 0,
        inner_map_fd: 0,
        numa_node: 0,
        name: sys::object_name("cilium_events"),
        ifindex: 0,
        btf_fd: 0,
        btf_key_type_id: 0,
        btf_value_type_id: 0,
    })
}

fn actual_layout(raw: &RawMap, name: &'static str) -> io::Result<MapLayout> {
    let info = raw.info();
    let ring_bytes = if info.map_type == sys::MAP_TYPE_ARRAY_OF_MAPS {
        Some(inner_map(raw, 0)?.map_or(0, |inner| inner.info().max_entries))
    } else {
        None
    };
    Ok(MapLayout {
        name,
        map_type: info.map_type,
        key_size: info.key_size,
        value_size: info.value_size,
        max_entries: info.max_entries,
        flags: info.flags,
        ring_bytes,
    })
}

/// The map at an index of an array of maps.
pub(crate) fn inner_map(outer: &RawMap, index: u32) -> io::Result<Option<RawMap>> {
    let mut id = 0_u32;
    if !outer.lookup(index.as_bytes(), id.as_mut_bytes())? {
        return Ok(None);
    }
    RawMap::new(sys::map_by_id(id)?).map(Some)
}

fn copy(old: &RawMap, new: &RawMap) -> io::Result<usize> {
    let mut keys = Vec::new();
    let mut values = Vec::new();
    let mut count = 0;
    old.for_each(|key, value| {
        keys.extend_from_slice(key);
        values.extend_from_slice(value);
        count += 1;
    })?;
    new.update_batch(&keys, &values, count).map_err(|(_, source)| source)?;
    Ok(count)
}
