//! All objects, their recent history, and who waits for changes.
//!
//! One lock guards the writes, so resource versions rise in the order in which
//! changes become visible, across all resources. Readers take a snapshot: the maps
//! are persistent, cloning one costs nothing.
//!
//! A watch is a cursor into the history of its resource. It cannot hold anybody
//! up: one that falls behind further than the history reaches is told `Expired`
//! and lists again, as with the real API server.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde_json::Value;
use tokio::sync::watch;

use super::object::{Key, Object};
use super::persistence::Journal;

/// Changes per resource that a watch may lag behind.
const HISTORY_LEN_MAX: usize = 8_192;
/// Bytes of old objects per resource that history may hold.
const HISTORY_BYTES_MAX: usize = 16 << 20;
/// Snapshots of chunked lists that are kept for their next chunk.
const SNAPSHOTS_LEN_MAX: usize = 64;

/// Name of a store: the plural, with its group unless that is the core group.
pub(super) type ResourceId = Arc<str>;
/// The objects of one resource at one moment.
pub(super) type Objects = imbl::OrdMap<Key, Arc<Object>>;

/// What happened to an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    Added,
    Modified,
    Deleted,
}

/// A step in the history of a resource.
#[derive(Clone, Debug)]
pub struct Event {
    pub resource_version: u64,
    pub change: Change,
    /// The new object; for a deletion the last one, under the version of its deletion.
    pub object: Arc<Object>,
    /// What it replaced. Watches with selectors need it to see objects leave.
    pub previous: Option<Arc<Object>>,
}

/// Told to those that react to every write: garbage collection and persistence.
#[derive(Clone, Debug)]
pub struct Written {
    pub resource: ResourceId,
    pub event: Event,
}

/// Why a write did not happen.
#[derive(Debug, PartialEq, Eq)]
pub enum Refused {
    Exists,
    Missing,
    /// The object is no longer the one that the write is based on.
    Changed,
    /// It could not be written down, and would be lost.
    Unwritten,
}

#[derive(Default)]
pub struct Store {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    resource_version: u64,
    /// No history reaches further back: what was stored by an earlier process.
    restored_version: u64,
    resources: HashMap<ResourceId, Resource>,
    /// Which objects name a unique id as their owner.
    dependents: HashMap<Box<str>, HashSet<(ResourceId, Key)>>,
    uids: HashMap<Box<str>, (ResourceId, Key)>,
    listeners: Vec<tokio::sync::mpsc::UnboundedSender<Written>>,
    snapshots: BTreeMap<u64, (ResourceId, u64, Objects)>,
    next_snapshot: u64,
    journal: Option<Journal>,
}

struct Resource {
    objects: Objects,
    history: VecDeque<Event>,
    history_bytes: usize,
    /// Everything after this version is in `history`.
    history_start: u64,
    latest: watch::Sender<u64>,
}

impl Store {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics half-way through a change; a poisoned lock is as good as new.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The version of the latest write.
    pub fn resource_version(&self) -> u64 {
        self.lock().resource_version
    }

    /// The version of the latest write to a resource.
    pub fn changed(&self, id: &str) -> u64 {
        self.lock().resources.get(id).map_or(0, |resource| *resource.latest.borrow())
    }

    /// A consistent view of a resource.
    pub fn list(&self, id: &ResourceId) -> (u64, Objects) {
        let state = self.lock();
        let objects = state.resources.get(id).map(|resource| resource.objects.clone());
        (state.resource_version, objects.unwrap_or_default())
    }

    pub fn get(&self, id: &str, key: &Key) -> Option<Arc<Object>> {
        self.lock().resources.get(id)?.objects.get(key).cloned()
    }

    /// Adds an object; `value` has all its metadata but the resource version.
    pub fn create(
        &self,
        id: &ResourceId,
        value: &mut Value,
        indexed: &'static [&'static str],
    ) -> Result<Arc<Object>, Refused> {
        let mut state = self.lock();
        let version = state.resource_version + 1;
        let object = Arc::new(Object::new(value, version, indexed));
        if state.resource(id).objects.contains_key(&object.key) {
            return Err(Refused::Exists);
        }
        state.write_down(id, Change::Added, &object)?;
        state.write(id, Change::Added, object.clone(), None);
        Ok(object)
    }

    /// Replaces an object that must still be at version `base`.
    pub fn update(
        &self,
        id: &ResourceId,
        base: u64,
        value: &mut Value,
        indexed: &'static [&'static str],
    ) -> Result<Arc<Object>, Refused> {
        let mut state = self.lock();
        let version = state.resource_version + 1;
        let object = Arc::new(Object::new(value, version, indexed));
        let previous = state.current(id, &object.key, base)?;
        state.write_down(id, Change::Modified, &object)?;
        state.write(id, Change::Modified, object.clone(), Some(previous));
        Ok(object)
    }

    /// Removes an object that must still be at version `base`.
    pub fn delete(&self, id: &ResourceId, key: &Key, base: u64) -> Result<Arc<Object>, Refused> {
        let mut state = self.lock();
        let previous = state.current(id, key, base)?;
        let version = state.resource_version + 1;
        let last = last_of(&previous, version);
        state.write_down(id, Change::Deleted, &last)?;
        state.write(id, Change::Deleted, last.clone(), Some(previous));
        Ok(last)
    }

    /// Removes a whole resource, as when its definition goes. Watches end by seeing the deletions.
    pub fn delete_resource(&self, id: &ResourceId) {
        let keys: Vec<(Key, u64)> = self
            .list(id)
            .1
            .iter()
            .map(|(key, object)| (key.clone(), object.resource_version))
            .collect();
        for (key, base) in keys {
            // An object that changed meanwhile is taken by whoever changed it.
            let _ = self.delete(id, &key, base);
        }
    }

    /// Puts back what an earlier process had stored.
    pub fn restore(&self, resource_version: u64, objects: Vec<(ResourceId, Object)>) {
        let mut state = self.lock();
        state.resource_version = state.resource_version.max(resource_version);
        for (id, object) in objects {
            state.resource_version = state.resource_version.max(object.resource_version);
            let object = Arc::new(object);
            state.index(&id, &object);
            state.resource(&id).objects.insert(object.key.clone(), object);
        }
        let version = state.resource_version;
        state.restored_version = version;
        for resource in state.resources.values_mut() {
            resource.history_start = version;
        }
    }

    /// Does again what a journal says was done.
    pub(super) fn replay(&self, id: &ResourceId, object: Object) {
        let mut state = self.lock();
        let previous = state.resource(id).objects.get(&object.key).cloned();
        let change = if previous.is_some() { Change::Modified } else { Change::Added };
        state.write(id, change, object.into(), previous);
    }

    /// Removes again what a journal says was removed.
    pub(super) fn replay_deletion(&self, id: &ResourceId, key: &Key, version: u64) {
        let mut state = self.lock();
        if let Some(previous) = state.resource(id).objects.get(key).cloned() {
            let last = last_of(&previous, version);
            state.write(id, Change::Deleted, last, Some(previous));
        }
        state.resource_version = state.resource_version.max(version);
    }

    /// From now on every write is in this journal before it is known.
    pub(super) fn write_down_in(&self, journal: Journal) {
        self.lock().journal = Some(journal);
    }

    #[cfg(test)]
    pub(super) fn with_journal(&self, change: impl FnOnce(&mut Journal)) {
        self.lock().journal.as_mut().map(change).expect("there is a journal");
    }

    /// Every write from now on.
    pub fn listen(&self) -> tokio::sync::mpsc::UnboundedReceiver<Written> {
        let (sender, receiver) = tokio::sync::mpsc::unbounded_channel();
        self.lock().listeners.push(sender);
        receiver
    }

    /// Everything in the store, resource by resource.
    pub fn dump(&self) -> (u64, Vec<(ResourceId, Objects)>) {
        self.lock().dump()
    }

    /// Objects that name `uid` as an owner.
    pub fn dependents(&self, uid: &str) -> Vec<(ResourceId, Key)> {
        let state = self.lock();
        state.dependents.get(uid).into_iter().flatten().cloned().collect()
    }

    /// Where the object with this unique id is.
    pub fn by_uid(&self, uid: &str) -> Option<(ResourceId, Key)> {
        self.lock().uids.get(uid).cloned()
    }

    pub fn uid_exists(&self, uid: &str) -> bool {
        self.lock().uids.contains_key(uid)
    }

    /// Keeps a list for its next chunk; the number finds it again.
    pub fn keep_snapshot(&self, id: &ResourceId, version: u64, objects: Objects) -> u64 {
        let mut state = self.lock();
        let number = state.next_snapshot;
        state.next_snapshot += 1;
        state.snapshots.insert(number, (id.clone(), version, objects));
        while state.snapshots.len() > SNAPSHOTS_LEN_MAX {
            state.snapshots.pop_first();
        }
        number
    }

    /// The list that was kept under `number`, if it is still that one.
    pub fn snapshot(&self, id: &ResourceId, version: u64, number: u64) -> Option<Objects> {
        let state = self.lock();
        let (of, at, objects) = state.snapshots.get(&number)?;
        (of == id && *at == version).then(|| objects.clone())
    }

    pub fn drop_snapshot(&self, number: u64) {
        self.lock().snapshots.remove(&number);
    }

    /// Follows a resource from `version` on.
    pub fn watch(&self, id: &ResourceId, version: u64) -> Cursor {
        let mut state = self.lock();
        let latest = state.resource(id).latest.subscribe();
        Cursor { id: id.clone(), version, latest }
    }

    /// What happened after the cursor, at most `len_max` events. `None`: history is gone.
    pub fn read(&self, cursor: &mut Cursor, len_max: usize) -> Option<Vec<Event>> {
        let mut state = self.lock();
        cursor.latest.mark_unchanged();
        let current = state.resource_version;
        let resource = state.resource(&cursor.id);
        if cursor.version < resource.history_start {
            return None;
        }
        let start = resource.history.partition_point(|e| e.resource_version <= cursor.version);
        let events: Vec<Event> = resource.history.range(start..).take(len_max).cloned().collect();
        cursor.version = match events.last() {
            Some(last) if events.len() == len_max => last.resource_version,
            _ => current.max(cursor.version),
        };
        Some(events)
    }
}

/// A place in the history of one resource.
pub struct Cursor {
    id: ResourceId,
    /// Everything up to here has been seen.
    pub version: u64,
    latest: watch::Receiver<u64>,
}

impl Cursor {
    /// Returns when there may be more to read.
    pub async fn changed(&mut self) {
        if self.latest.changed().await.is_err() {
            // The store is gone; so will be whoever waits.
            std::future::pending::<()>().await;
        }
    }
}

impl State {
    fn resource(&mut self, id: &ResourceId) -> &mut Resource {
        let version = self.restored_version;
        self.resources.entry(id.clone()).or_insert_with(|| Resource {
            objects: Objects::new(),
            history: VecDeque::new(),
            history_bytes: 0,
            history_start: version,
            latest: watch::Sender::new(version),
        })
    }

    fn current(&mut self, id: &ResourceId, key: &Key, base: u64) -> Result<Arc<Object>, Refused> {
        let current = self.resource(id).objects.get(key).cloned().ok_or(Refused::Missing)?;
        if current.resource_version == base { Ok(current) } else { Err(Refused::Changed) }
    }

    fn dump(&self) -> (u64, Vec<(ResourceId, Objects)>) {
        let mut all: Vec<_> =
            self.resources.iter().map(|(id, r)| (id.clone(), r.objects.clone())).collect();
        all.sort_by(|a, b| a.0.cmp(&b.0));
        (self.resource_version, all)
    }

    /// Puts a write into the journal, if there is one; only then it may happen.
    fn write_down(
        &mut self,
        id: &ResourceId,
        change: Change,
        object: &Object,
    ) -> Result<(), Refused> {
        if self.journal.as_ref().is_some_and(Journal::is_full) {
            let dump = self.dump();
            if let Some(journal) = &mut self.journal {
                journal.turn_over(dump);
            }
        }
        let Some(journal) = &mut self.journal else { return Ok(()) };
        let version = object.resource_version;
        let written = match change {
            Change::Deleted => journal.write_deletion(id, version, &object.key),
            _ => journal.write_object(id, version, &object.json),
        };
        written.map_err(|error| {
            tracing::error!(%error, "a write is refused: it cannot be written down");
            Refused::Unwritten
        })
    }

    fn write(
        &mut self,
        id: &ResourceId,
        change: Change,
        object: Arc<Object>,
        previous: Option<Arc<Object>>,
    ) {
        // A resource that is new must start its history before this write.
        self.resource(id);
        self.resource_version = object.resource_version;
        if let Some(previous) = &previous {
            self.unindex(id, previous);
        }
        if change != Change::Deleted {
            self.index(id, &object);
        }
        let event = Event { resource_version: object.resource_version, change, object, previous };
        let resource = self.resource(id);
        match change {
            Change::Deleted => resource.objects.remove(&event.object.key),
            _ => resource.objects.insert(event.object.key.clone(), event.object.clone()),
        };
        resource.remember(event.clone());
        self.listeners
            .retain(|to| to.send(Written { resource: id.clone(), event: event.clone() }).is_ok());
    }

    fn index(&mut self, id: &ResourceId, object: &Object) {
        self.uids.insert(object.uid.clone(), (id.clone(), object.key.clone()));
        for owner in &object.owners {
            let dependents = self.dependents.entry(owner.clone()).or_default();
            dependents.insert((id.clone(), object.key.clone()));
        }
    }

    fn unindex(&mut self, id: &ResourceId, object: &Object) {
        self.uids.remove(&object.uid);
        for owner in &object.owners {
            if let Some(dependents) = self.dependents.get_mut(owner) {
                dependents.remove(&(id.clone(), object.key.clone()));
                if dependents.is_empty() {
                    self.dependents.remove(owner);
                }
            }
        }
    }
}

/// An object as it is told when it is gone: the last one, under the version of its deletion.
fn last_of(previous: &Object, version: u64) -> Arc<Object> {
    let mut last = Object::new(&mut previous.value(), version, &[]);
    last.fields = previous.fields.clone();
    last.into()
}

impl Resource {
    fn remember(&mut self, event: Event) {
        let version = event.resource_version;
        self.history_bytes += event.object.json.len();
        self.history.push_back(event);
        while self.history.len() > HISTORY_LEN_MAX || self.history_bytes > HISTORY_BYTES_MAX {
            let Some(oldest) = self.history.pop_front() else { break };
            self.history_bytes -= oldest.object.json.len();
            self.history_start = oldest.resource_version;
        }
        self.latest.send_replace(version);
    }
}
