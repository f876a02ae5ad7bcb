//! A map without a kernel, that fails when told to.

use std::{
    collections::BTreeMap,
    io,
    sync::{Mutex, MutexGuard, PoisonError},
};

use super::{BatchError, Map, MapError, MapInfo, Plain, kernel};

/// A map in memory for tests of what writes to maps.
///
/// Failure is part of the test: [`FakeMap::fail_nth`], [`FakeMap::fail_every`], and a size beyond
/// which it is full like the kernel's.
#[derive(Debug)]
pub struct FakeMap<K, V> {
    name: String,
    max_entries: u32,
    state: Mutex<State<K, V>>,
}

#[derive(Debug)]
struct State<K, V> {
    /// By the bytes of the key, which have an order even if the type has not.
    entries: BTreeMap<Vec<u8>, (K, V)>,
    operations: u64,
    fail_at: Option<u64>,
    fail_every: Option<u64>,
}

impl<K: Plain, V: Plain> FakeMap<K, V> {
    /// An empty map of this size.
    pub fn new(name: &str, max_entries: u32) -> Self {
        let state =
            State { entries: BTreeMap::new(), operations: 0, fail_at: None, fail_every: None };
        Self { name: name.to_owned(), max_entries, state: Mutex::new(state) }
    }

    /// Lets the `nth` operation from now fail, 1 being the next one. Once.
    pub fn fail_nth(&self, nth: u64) {
        let mut state = self.state();
        state.fail_at = Some(state.operations + nth);
    }

    /// Lets every `nth` operation fail, 1 being all of them, until [`FakeMap::heal`].
    pub fn fail_every(&self, nth: u64) {
        self.state().fail_every = Some(nth.max(1));
    }

    /// No more failures.
    pub fn heal(&self) {
        let mut state = self.state();
        state.fail_at = None;
        state.fail_every = None;
    }

    /// How many operations there were, failed ones too. An entry of a batch is an operation.
    pub fn operations(&self) -> u64 {
        self.state().operations
    }

    /// How many entries there are.
    pub fn len(&self) -> usize {
        self.state().entries.len()
    }

    /// Whether there are no entries.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Counts an operation, and fails it if it is to fail.
    fn operation(&self, action: &'static str) -> Result<MutexGuard<'_, State<K, V>>, MapError> {
        let mut state = self.state();
        state.operations += 1;
        let now = state.operations;
        let planned = state.fail_at == Some(now);
        if planned || state.fail_every.is_some_and(|every| now.is_multiple_of(every)) {
            return Err(kernel(&self.name, action, io::Error::from_raw_os_error(libc::EIO)));
        }
        Ok(state)
    }

    fn state(&self) -> MutexGuard<'_, State<K, V>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K: Plain, V: Plain> Map<K, V> for FakeMap<K, V> {
    fn lookup(&self, key: &K) -> Result<Option<V>, MapError> {
        let state = self.operation("read")?;
        Ok(state.entries.get(key.as_bytes()).map(|(_, value)| *value))
    }

    fn update(&self, key: &K, value: &V) -> Result<(), MapError> {
        let mut state = self.operation("write")?;
        let full = state.entries.len() >= self.max_entries as usize;
        if full && !state.entries.contains_key(key.as_bytes()) {
            return Err(MapError::Full { map: self.name.clone(), max_entries: self.max_entries });
        }
        state.entries.insert(key.as_bytes().to_vec(), (*key, *value));
        Ok(())
    }

    fn delete(&self, key: &K) -> Result<bool, MapError> {
        Ok(self.operation("delete from")?.entries.remove(key.as_bytes()).is_some())
    }

    fn for_each(&self, visit: &mut dyn FnMut(&K, &V)) -> Result<(), MapError> {
        self.entries()?.iter().for_each(|(key, value)| visit(key, value));
        Ok(())
    }

    fn entries(&self) -> Result<Vec<(K, V)>, MapError> {
        Ok(self.operation("read")?.entries.values().copied().collect())
    }

    fn update_batch(&self, entries: &[(K, V)]) -> Result<(), BatchError> {
        for (applied, (key, value)) in entries.iter().enumerate() {
            self.update(key, value).map_err(|source| BatchError { applied, source })?;
        }
        Ok(())
    }

    fn info(&self) -> Result<MapInfo, MapError> {
        Ok(MapInfo {
            name: self.name.clone(),
            id: 0,
            key_size: size_of::<K>() as u32,
            value_size: size_of::<V>() as u32,
            max_entries: self.max_entries,
            len: self.len(),
            memory_bytes: 0,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map() -> FakeMap<u32, u64> {
        FakeMap::new("fake", 2)
    }

    #[test]
    fn full_is_full_but_takes_known_keys() {
        let map = map();
        map.update_batch(&[(1, 1), (2, 2)]).expect("room for two");
        let error = map.update_batch(&[(2, 3), (3, 3)]).expect_err("no room for three");
        assert_eq!(error.applied, 1);
        assert!(error.source.is_full(), "{error}");
        assert_eq!(map.lookup(&2).expect("a lookup"), Some(3));
    }

    #[test]
    fn failures_come_when_told() {
        let map = map();
        map.fail_nth(2);
        map.update(&1, &1).expect("the first operation");
        map.update(&1, &2).expect_err("the second operation");
        map.update(&1, &3).expect("the third operation");
        map.fail_every(1);
        map.lookup(&1).expect_err("every operation");
        map.heal();
        assert_eq!(map.lookup(&1).expect("a lookup"), Some(3));
        assert_eq!(map.operations(), 5);
    }
}
