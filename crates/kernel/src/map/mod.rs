//! Typed BPF maps.
//!
//! [`Map`] is what a reconciler writes to: [`BpfMap`] in the kernel, [`FakeMap`] in tests. Keys
//! and values are plain bytes of a fixed layout (`abi`); whether a kernel map really has that
//! layout is checked once, when it is opened.

mod btf;
mod fake;
mod pinned;

use std::{
    io,
    marker::PhantomData,
    os::fd::{AsFd, BorrowedFd},
    path::Path,
};

use zerocopy::{FromBytes, Immutable, IntoBytes};

pub(crate) use self::{
    btf::Btf,
    pinned::{MapLayout, inner_map, map_dir, open_or_create},
};
pub use self::{
    btf::Described,
    fake::FakeMap,
    pinned::{Origin, PinnedMap},
};
use crate::sys::{self, RawMap};

/// A key or a value: any bytes are one, and it is any bytes.
pub trait Plain: FromBytes + IntoBytes + Immutable + Copy + Send + Sync + 'static {}

impl<T: FromBytes + IntoBytes + Immutable + Copy + Send + Sync + 'static> Plain for T {}

/// Why a map operation failed.
#[derive(Debug, thiserror::Error)]
pub enum MapError {
    /// The map has as many entries as it may.
    #[error("map {map} is full: it has {max_entries} entries; raise its size")]
    Full {
        /// The map.
        map: String,
        /// Its size.
        max_entries: u32,
    },
    /// The map in the kernel is not the one the program expects.
    #[error("map {map} has {actual}, where {expected} is expected")]
    Layout {
        /// The map.
        map: String,
        /// What the kernel says.
        actual: String,
        /// What we know.
        expected: String,
    },
    /// Any other refusal of the kernel.
    #[error("{action} map {map}: {source}")]
    Kernel {
        /// What we were doing.
        action: &'static str,
        /// The map.
        map: String,
        /// What the kernel said.
        source: io::Error,
    },
}

impl MapError {
    /// Whether the map had no room.
    pub const fn is_full(&self) -> bool {
        matches!(self, Self::Full { .. })
    }
}

/// A batch that ended early.
#[derive(Debug, thiserror::Error)]
#[error("after {applied} entries: {source}")]
pub struct BatchError {
    /// So many entries, from the first, were written.
    pub applied: usize,
    /// Why the next one was not.
    pub source: MapError,
}

/// What is known of a map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MapInfo {
    /// Name, as it is pinned.
    pub name: String,
    /// Id in the kernel; 0 for a fake.
    pub id: u32,
    /// Bytes of a key.
    pub key_size: u32,
    /// Bytes of a value.
    pub value_size: u32,
    /// Entries at most.
    pub max_entries: u32,
    /// Entries now.
    pub len: usize,
    /// Kernel memory. Kernels before 6.4 answer what the map would take if it were full.
    pub memory_bytes: u64,
}

/// A table of the datapath.
pub trait Map<K: Plain, V: Plain>: Send + Sync {
    /// The value of a key.
    fn lookup(&self, key: &K) -> Result<Option<V>, MapError>;
    /// Sets the value of a key.
    fn update(&self, key: &K, value: &V) -> Result<(), MapError>;
    /// Removes a key; says whether it was there.
    fn delete(&self, key: &K) -> Result<bool, MapError>;
    /// Visits all entries, in no order, without holding all of them.
    fn for_each(&self, visit: &mut dyn FnMut(&K, &V)) -> Result<(), MapError>;
    /// All entries, in no order.
    fn entries(&self) -> Result<Vec<(K, V)>, MapError>;
    /// Sets many values with few system calls, in order.
    fn update_batch(&self, entries: &[(K, V)]) -> Result<(), BatchError>;
    /// Name, sizes and use.
    fn info(&self) -> Result<MapInfo, MapError>;
}

/// A hash or a trie in the kernel.
#[derive(Debug)]
pub struct BpfMap<K, V> {
    raw: RawMap,
    name: String,
    types: PhantomData<fn(K, V)>,
}

/// Entries per call of a batch.
const BATCH_LEN: usize = 4096;

impl<K: Plain, V: Plain> BpfMap<K, V> {
    /// Opens a map by its pin.
    pub fn open(path: &Path) -> Result<Self, MapError> {
        let name = pin_name(path);
        let fd = sys::pinned(path).map_err(|source| kernel(&name, "open", source))?;
        let raw = RawMap::new(fd).map_err(|source| kernel(&name, "describe", source))?;
        Self::new(raw, name)
    }

    pub(crate) fn new(raw: RawMap, name: String) -> Result<Self, MapError> {
        let info = raw.info();
        let actual = (info.key_size as usize, raw.value_len());
        let expected = (size_of::<K>(), size_of::<V>());
        if actual != expected {
            let text = |(key, value)| format!("keys of {key} and values of {value} bytes");
            return Err(MapError::Layout {
                map: name,
                actual: text(actual),
                expected: text(expected),
            });
        }
        Ok(Self { raw, name, types: PhantomData })
    }

    fn failed(&self, action: &'static str, source: io::Error) -> MapError {
        match source.raw_os_error() {
            // A hash answers E2BIG, a trie ENOSPC.
            Some(libc::E2BIG | libc::ENOSPC) => {
                MapError::Full { map: self.name.clone(), max_entries: self.raw.info().max_entries }
            }
            _ => kernel(&self.name, action, source),
        }
    }
}

impl<K: Plain, V: Plain> Map<K, V> for BpfMap<K, V> {
    fn lookup(&self, key: &K) -> Result<Option<V>, MapError> {
        let mut value = V::new_zeroed();
        let found = self
            .raw
            .lookup(key.as_bytes(), value.as_mut_bytes())
            .map_err(|source| self.failed("read", source))?;
        Ok(found.then_some(value))
    }

    fn update(&self, key: &K, value: &V) -> Result<(), MapError> {
        self.raw
            .update(key.as_bytes(), value.as_bytes())
            .map_err(|source| self.failed("write", source))
    }

    fn delete(&self, key: &K) -> Result<bool, MapError> {
        self.raw.delete(key.as_bytes()).map_err(|source| self.failed("delete from", source))
    }

    fn for_each(&self, visit: &mut dyn FnMut(&K, &V)) -> Result<(), MapError> {
        self.raw
            .for_each(|key, value| {
                // Both are as long as their types: checked when the map was opened.
                if let (Ok(key), Ok(value)) = (K::read_from_bytes(key), V::read_from_bytes(value)) {
                    visit(&key, &value);
                }
            })
            .map_err(|source| self.failed("read", source))
    }

    fn entries(&self) -> Result<Vec<(K, V)>, MapError> {
        let mut entries = Vec::new();
        self.for_each(&mut |key, value| entries.push((*key, *value)))?;
        Ok(entries)
    }

    fn update_batch(&self, entries: &[(K, V)]) -> Result<(), BatchError> {
        let mut applied = 0;
        for chunk in entries.chunks(BATCH_LEN) {
            let (keys, values): (Vec<K>, Vec<V>) = chunk.iter().copied().unzip();
            self.raw
                .update_batch(keys.as_slice().as_bytes(), values.as_slice().as_bytes(), chunk.len())
                .map_err(|(done, source)| BatchError {
                    applied: applied + done,
                    source: self.failed("write", source),
                })?;
            applied += chunk.len();
        }
        Ok(())
    }

    fn info(&self) -> Result<MapInfo, MapError> {
        let mut len = 0;
        self.raw.for_each(|_, _| len += 1).map_err(|source| self.failed("read", source))?;
        info(&self.raw, &self.name, len)
    }
}

impl<K, V> AsFd for BpfMap<K, V> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.raw.as_fd()
    }
}

/// An array with a value per CPU, for counters.
#[derive(Debug)]
pub struct PerCpuArray<V> {
    raw: RawMap,
    name: String,
    types: PhantomData<fn(V)>,
}

impl<V: Plain> PerCpuArray<V> {
    /// Opens an array by its pin.
    pub fn open(path: &Path) -> Result<Self, MapError> {
        let name = pin_name(path);
        let fd = sys::pinned(path).map_err(|source| kernel(&name, "open", source))?;
        let raw = RawMap::new(fd).map_err(|source| kernel(&name, "describe", source))?;
        Self::new(raw, name)
    }

    pub(crate) fn new(raw: RawMap, name: String) -> Result<Self, MapError> {
        let actual = *raw.info();
        let expected = (sys::MAP_TYPE_PERCPU_ARRAY, 4, size_of::<V>() as u32);
        if (actual.map_type, actual.key_size, actual.value_size) != expected {
            return Err(MapError::Layout {
                map: name,
                actual: format!(
                    "type {}, keys of {} and values of {} bytes",
                    actual.map_type, actual.key_size, actual.value_size
                ),
                expected: format!(
                    "a per-CPU array (type {}) with values of {} bytes",
                    expected.0, expected.2
                ),
            });
        }
        Ok(Self { raw, name, types: PhantomData })
    }

    /// How many values there are per CPU.
    pub fn len(&self) -> u32 {
        self.raw.info().max_entries
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The values at an index, one per possible CPU.
    pub fn values(&self, index: u32) -> Result<Vec<V>, MapError> {
        let mut bytes = vec![0; self.raw.value_len()];
        self.raw
            .lookup(index.as_bytes(), &mut bytes)
            .map_err(|source| kernel(&self.name, "read", source))?;
        Ok(self.split(&bytes))
    }

    /// All values: for each index one per possible CPU.
    pub fn all(&self) -> Result<Vec<Vec<V>>, MapError> {
        let mut rows = vec![Vec::new(); self.len() as usize];
        self.raw
            .for_each(|key, bytes| {
                let index = u32::read_from_bytes(key).ok().map(|index| index as usize);
                if let Some(row) = index.and_then(|index| rows.get_mut(index)) {
                    *row = self.split(bytes);
                }
            })
            .map_err(|source| kernel(&self.name, "read", source))?;
        Ok(rows)
    }

    /// Name, sizes and use.
    pub fn info(&self) -> Result<MapInfo, MapError> {
        info(&self.raw, &self.name, self.len() as usize)
    }

    fn split(&self, bytes: &[u8]) -> Vec<V> {
        bytes
            .chunks_exact(sys::per_cpu_stride(size_of::<V>()))
            .filter_map(|bytes| V::read_from_prefix(bytes).ok())
            .map(|(value, _)| value)
            .collect()
    }
}

impl<V> AsFd for PerCpuArray<V> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.raw.as_fd()
    }
}

pub(crate) fn kernel(map: &str, action: &'static str, source: io::Error) -> MapError {
    MapError::Kernel { action, map: map.to_owned(), source }
}

pub(crate) fn info(raw: &RawMap, name: &str, len: usize) -> Result<MapInfo, MapError> {
    let info = raw.info();
    Ok(MapInfo {
        name: name.to_owned(),
        id: info.id,
        key_size: info.key_size,
        value_size: info.value_size,
        max_entries: info.max_entries,
        len,
        memory_bytes: raw.memory_bytes().map_err(|source| kernel(name, "describe", source))?,
    })
}

fn pin_name(path: &Path) -> String {
    path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}
