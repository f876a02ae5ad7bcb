//! Slots in the kernel: the entries of all of them in one trie, and a revision for each.
//!
//! A change is written in the order that never lets a packet pass that neither the old nor the new
//! policy allows: denies come first, allows go before them, and the revision is given when all is
//! written, so that programs decide again about the flows they know.
//!
//! The agent may die between any two writes. So the first pass of a new agent gives every slot a new
//! revision, even one that holds what it should: nobody knows what was decided half-way.

use std::collections::BTreeMap;
use std::sync::Arc;

use abi::policy::{PolicyEntry, PolicyKey, PolicySlot};
use kernel::map::{Map, MapError};
use statedb::reconciler::TargetError;
use statedb::{Outcome, Plan, Row, Target};

use super::slots::{Content, Difference, denies};

/// A slot that should be in the maps. Written by [`super::controller`] only.
#[derive(Debug, Clone, PartialEq)]
pub struct SlotRow {
    /// Its number.
    pub slot: u32,
    /// What it holds.
    pub content: Arc<Content>,
}

impl Row for SlotRow {
    type Key = u32;
    const HEADERS: &'static [&'static str] = &["SLOT", "ENTRIES"];

    fn key(&self) -> u32 {
        self.slot
    }

    fn cells(&self) -> Vec<String> {
        vec![self.slot.to_string(), self.content.entries().len().to_string()]
    }
}

/// The map of policies and the map of their revisions.
#[derive(Clone)]
pub struct PolicyMaps {
    /// `cilium_policy_slots_v1`.
    pub entries: Arc<dyn Map<PolicyKey, PolicyEntry>>,
    /// `cilium_policy_revisions_v1`.
    pub revisions: Arc<dyn Map<u32, PolicySlot>>,
}

impl PolicyMaps {
    /// What each slot holds.
    pub fn contents(&self) -> Result<BTreeMap<u32, Arc<Content>>, MapError> {
        let mut by_slot: BTreeMap<u32, Vec<(PolicyKey, PolicyEntry)>> = BTreeMap::new();
        for (key, entry) in self.entries.entries()? {
            by_slot.entry(key.slot).or_default().push((key, entry));
        }
        let contents = by_slot.into_iter();
        Ok(contents.map(|(slot, entries)| (slot, Arc::new(Content::new(entries)))).collect())
    }
}

/// What the kernel holds of a slot.
#[derive(Debug, Clone, PartialEq)]
pub struct Held {
    content: Arc<Content>,
    /// Whether flows were told, by a revision, of all that was written.
    is_announced: bool,
}

/// The maps as the reconciler sees them.
pub struct PolicyTarget {
    maps: PolicyMaps,
    /// What the maps hold, as far as we wrote it or have read it.
    held: BTreeMap<u32, Held>,
    last_revision: u32,
}

impl PolicyTarget {
    /// A target that has not read the maps yet.
    pub fn new(maps: PolicyMaps) -> Self {
        Self { maps, held: BTreeMap::new(), last_revision: 0 }
    }

    /// Writes what is missing of a slot, then its revision.
    fn write(&mut self, slot: u32, desired: &Held) -> Result<(), TargetError> {
        let empty = Arc::new(Content::new([]));
        let before = self.held.get(&slot).map_or(&empty, |held| &held.content);
        let difference = before.difference(&desired.content);
        // Until all is written nobody can say what the slot holds.
        let unknown = Held { content: Arc::clone(before), is_announced: false };
        self.held.insert(slot, unknown);
        self.write_entries(slot, &difference)?;
        self.held.insert(slot, desired.clone());
        let revision = self.last_revision.checked_add(1).ok_or("all revisions are used up")?;
        self.maps.revisions.update(&slot, &PolicySlot { revision })?;
        self.last_revision = revision;
        Ok(())
    }

    fn write_entries(&self, slot: u32, difference: &Difference) -> Result<(), TargetError> {
        let new = difference.changed.iter().map(|(key, _, after)| (*key, *after));
        let new = difference.added.iter().copied().chain(new);
        let (deny, allow): (Vec<_>, Vec<_>) = new
            .map(|(key, entry)| (PolicyKey { slot, ..key }, entry))
            .partition(|(_, e)| denies(e));
        let (old_deny, old_allow): (Vec<_>, Vec<_>) =
            difference.removed.iter().partition(|(_, entry)| denies(entry));
        self.maps.entries.update_batch(&deny)?;
        for (key, _) in old_allow {
            self.maps.entries.delete(&PolicyKey { slot, ..key })?;
        }
        self.maps.entries.update_batch(&allow)?;
        for (key, _) in old_deny {
            self.maps.entries.delete(&PolicyKey { slot, ..key })?;
        }
        Ok(())
    }

    /// Empties a slot that no endpoint uses.
    fn empty(&mut self, slot: u32) -> Result<(), TargetError> {
        let Some(held) = self.held.get(&slot) else { return Ok(()) };
        let difference = held.content.difference(&Content::new([]));
        self.write_entries(slot, &difference)?;
        self.held.remove(&slot);
        Ok(())
    }

    /// After a failure: what the maps hold of the slots that were half-written.
    fn look_again(&mut self, slots: &[u32]) -> Result<(), MapError> {
        let mut contents = self.maps.contents()?;
        for slot in slots {
            match contents.remove(slot) {
                Some(content) => {
                    self.held.insert(*slot, Held { content, is_announced: false });
                }
                None => {
                    self.held.remove(slot);
                }
            }
        }
        Ok(())
    }
}

impl Target<SlotRow> for PolicyTarget {
    type Value = Held;

    fn desired(&self, row: &SlotRow) -> Option<Held> {
        Some(Held { content: Arc::clone(&row.content), is_announced: true })
    }

    async fn dump(&mut self) -> Result<Vec<(u32, Held)>, TargetError> {
        let revisions = self.maps.revisions.entries()?;
        let highest = revisions.iter().map(|(_, slot)| slot.revision).max().unwrap_or(0);
        self.last_revision = self.last_revision.max(highest);
        let before = std::mem::take(&mut self.held);
        for (slot, content) in self.maps.contents()? {
            let is_same = |held: &&Held| held.content == content;
            let is_announced = before.get(&slot).filter(is_same).is_some_and(|h| h.is_announced);
            self.held.insert(slot, Held { content, is_announced });
        }
        // A slot without entries denies everything: it is held by its revision alone.
        for (slot, held) in before.into_iter().filter(|(_, held)| held.content.entries().is_empty())
        {
            self.held.entry(slot).or_insert(held);
        }
        Ok(self.held.iter().map(|(slot, held)| (*slot, held.clone())).collect())
    }

    async fn apply(&mut self, plan: Plan<u32, Held>) -> Outcome<u32> {
        let mut outcome = Outcome::default();
        for slot in plan.deletes {
            if let Err(error) = self.empty(slot) {
                outcome.fail(slot, error);
            }
        }
        for (slot, desired) in plan.upserts {
            if let Err(error) = self.write(slot, &desired) {
                outcome.fail(slot, error);
            }
        }
        let failed: Vec<u32> = outcome.failed.iter().map(|(slot, _)| *slot).collect();
        if !failed.is_empty()
            && let Err(error) = self.look_again(&failed)
        {
            tracing::warn!(%error, "Cannot read the policy maps after a failure; the next pass will");
        }
        outcome
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::sync::Mutex;

    use kernel::map::FakeMap;
    use proptest::prelude::*;
    use statedb::reconciler::Pace;
    use statedb::{Reconciler, Table};
    use tokio::time::Instant;

    use super::super::slots::Slots;
    use super::*;

    fn entry(identity: u32, deny: bool) -> (PolicyKey, PolicyEntry) {
        let key = PolicyKey { prefix_len: 72, identity, ..PolicyKey::default() };
        (key, PolicyEntry { bits: u8::from(deny), ..PolicyEntry::default() })
    }

    fn content(entries: &[(u32, bool)]) -> Arc<Content> {
        Arc::new(Content::new(entries.iter().map(|(identity, deny)| entry(*identity, *deny))))
    }

    struct World {
        entries: Arc<FakeMap<PolicyKey, PolicyEntry>>,
        revisions: Arc<FakeMap<u32, PolicySlot>>,
    }

    impl World {
        fn new() -> Self {
            let entries = Arc::new(FakeMap::new("policy", 1024));
            Self { entries, revisions: Arc::new(FakeMap::new("revisions", 64)) }
        }

        fn maps(&self) -> PolicyMaps {
            PolicyMaps { entries: self.entries.clone(), revisions: self.revisions.clone() }
        }

        fn revision(&self, slot: u32) -> u32 {
            self.revisions.lookup(&slot).unwrap().unwrap_or_default().revision
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_new_agent_gives_new_revisions_and_prunes_late() {
        let world = World::new();
        let (table, writer) = Table::new("policy-slots");
        writer.upsert(SlotRow { slot: 1, content: content(&[(1, false)]) });
        writer.upsert(SlotRow { slot: 2, content: content(&[(2, true)]) });
        let target = PolicyTarget::new(world.maps());
        let (mut reconciler, _) = Reconciler::new(&table, target, Pace::default());
        reconciler.step(Instant::now()).await;
        let before = world.revision(2);
        assert!(world.revision(1) > 0 && before > world.revision(1));

        let (table, writer) = Table::new("policy-slots");
        let complete = writer.initializer("test");
        let target = PolicyTarget::new(world.maps());
        let (mut reconciler, _) = Reconciler::new(&table, target, Pace::default());
        writer.upsert(SlotRow { slot: 1, content: content(&[(1, false)]) });
        reconciler.step(Instant::now()).await;
        assert_eq!(world.entries.len(), 2, "slot 2 may still be in use");
        assert!(world.revision(1) > before, "revisions are not used twice");
        complete.done();
        reconciler.step(Instant::now()).await;
        assert_eq!(world.maps().contents().unwrap(), BTreeMap::from([(1, content(&[(1, false)]))]));
    }

    #[tokio::test(start_paused = true)]
    async fn a_slot_gets_its_revision_when_all_is_written() {
        let world = World::new();
        let (table, writer) = Table::new("policy-slots");
        let target = PolicyTarget::new(world.maps());
        let (mut reconciler, progress) = Reconciler::new(&table, target, Pace::default());
        reconciler.step(Instant::now()).await;
        for fail_at in 1..=3 {
            writer.upsert(SlotRow { slot: 1, content: content(&[(1, false), (2, true)]) });
            reconciler.step(Instant::now()).await;
            let before = world.revision(1);
            writer.upsert(SlotRow { slot: 1, content: content(&[(1, true), (3, false)]) });
            world.entries.fail_nth(fail_at);
            reconciler.step(Instant::now()).await;
            assert_eq!(progress.failures().len(), 1, "operation {fail_at} fails");
            assert_eq!(world.revision(1), before);
            tokio::time::advance(std::time::Duration::from_secs(1)).await;
            reconciler.step(Instant::now()).await;
            assert!(progress.failures().is_empty());
            assert!(world.revision(1) > before);
            let held = world.maps().contents().unwrap();
            assert_eq!(held, BTreeMap::from([(1, content(&[(1, true), (3, false)]))]));
        }
    }

    /// Records what there is after each write.
    struct Watched {
        map: FakeMap<PolicyKey, PolicyEntry>,
        moments: Mutex<Vec<Vec<(PolicyKey, PolicyEntry)>>>,
    }

    impl Watched {
        fn new() -> Arc<Self> {
            Arc::new(Self { map: FakeMap::new("policy", 256), moments: Mutex::default() })
        }

        fn look(&self) {
            self.moments.lock().unwrap().push(self.map.entries().unwrap());
        }
    }

    impl Map<PolicyKey, PolicyEntry> for Watched {
        fn lookup(&self, key: &PolicyKey) -> Result<Option<PolicyEntry>, MapError> {
            self.map.lookup(key)
        }
        fn update(&self, key: &PolicyKey, value: &PolicyEntry) -> Result<(), MapError> {
            self.map.update(key, value)?;
            self.look();
            Ok(())
        }
        fn delete(&self, key: &PolicyKey) -> Result<bool, MapError> {
            let deleted = self.map.delete(key)?;
            self.look();
            Ok(deleted)
        }
        fn for_each(
            &self,
            visit: &mut dyn FnMut(&PolicyKey, &PolicyEntry),
        ) -> Result<(), MapError> {
            self.map.for_each(visit)
        }
        fn entries(&self) -> Result<Vec<(PolicyKey, PolicyEntry)>, MapError> {
            self.map.entries()
        }
        fn update_batch(
            &self,
            entries: &[(PolicyKey, PolicyEntry)],
        ) -> Result<(), kernel::map::BatchError> {
            for (key, value) in entries {
                self.update(key, value)
                    .map_err(|source| kernel::map::BatchError { applied: 0, source })?;
            }
            Ok(())
        }
        fn info(&self) -> Result<kernel::map::MapInfo, MapError> {
            self.map.info()
        }
    }

    #[tokio::test]
    async fn a_slot_is_emptied_allows_first() {
        let map = Watched::new();
        let revisions = Arc::new(FakeMap::new("revisions", 64));
        let mut target = PolicyTarget::new(PolicyMaps { entries: map.clone(), revisions });
        let desired = Held { content: content(&[(0, false), (7, true)]), is_announced: true };
        target.write(1, &desired).unwrap();
        map.moments.lock().unwrap().clear();
        target.empty(1).unwrap();
        let allowed = |(key, entry): &(PolicyKey, PolicyEntry)| (key.identity, !denies(entry));
        let moments = map.moments.lock().unwrap().clone();
        let seen: Vec<BTreeMap<u32, bool>> =
            moments.iter().map(|moment| moment.iter().map(allowed).collect()).collect();
        // An entry for any identity would let identity 7 pass once its own is gone.
        assert_eq!(seen, [BTreeMap::from([(7, false)]), BTreeMap::new()]);
    }

    /// What the entries of a slot say of a packet of this identity, to the one port or to another.
    fn passes(
        entries: &[(PolicyKey, PolicyEntry)],
        slot: u32,
        identity: u32,
        to_port: bool,
    ) -> bool {
        let longest = |peer: u32| {
            let fits = |key: &PolicyKey| {
                key.slot == slot && key.identity == peer && (to_port || key.prefix_len == 72)
            };
            let fitting = entries.iter().filter(|(key, _)| fits(key));
            fitting.max_by_key(|(key, _)| key.prefix_len)
        };
        let candidates = [longest(0), longest(identity)].into_iter().flatten();
        let winner = candidates.max_by_key(|(key, entry)| (entry.precedence, key.prefix_len));
        winner.is_some_and(|(_, entry)| !denies(entry))
    }

    /// A policy: for each of three peers, what holds for all ports and for the one. A narrower rule that
    /// a wider denial beats is in no map.
    type Wish = Vec<(Option<bool>, Option<bool>)>;

    fn wish() -> impl Strategy<Value = Wish> {
        let verdict = || prop_oneof![Just(None), Just(Some(false)), Just(Some(true))];
        proptest::collection::vec((verdict(), verdict()), 3)
    }

    fn content_of(wish: &Wish) -> Arc<Content> {
        let entry = |identity: usize, prefix_len, deny: bool| {
            let identity = identity as u32;
            let key = PolicyKey { prefix_len, identity, ..PolicyKey::default() };
            let precedence = if deny { 255 } else { 1 };
            (key, PolicyEntry { bits: u8::from(deny), precedence, ..PolicyEntry::default() })
        };
        let entries = wish.iter().enumerate().flat_map(|(identity, (all, one))| {
            let one = one.filter(|deny| *all != Some(true) || *deny);
            let all = all.map(|deny| entry(identity, 72, deny));
            all.into_iter().chain(one.map(|deny| entry(identity, 96, deny)))
        });
        Arc::new(Content::new(entries))
    }

    proptest! {
        /// However the policies of two subjects change, and wherever the agent dies: after each single
        /// write a packet passes only if the old or the new policy lets it, and passes if both do.
        #[test]
        fn no_packet_is_judged_by_half_a_change(
            steps in proptest::collection::vec((wish(), wish()), 1..6)
        ) {
            let map = Watched::new();
            let revisions = Arc::new(FakeMap::new("revisions", 64));
            let mut target = PolicyTarget::new(PolicyMaps { entries: map.clone(), revisions });
            let mut slots: Slots<usize> = Slots::new(64);
            let empty = Arc::new(Content::new([]));
            let mut rows: [(u32, Arc<Content>); 2] = [(0, empty.clone()), (0, empty)];
            for (first, second) in steps {
                let wanted = [content_of(&first), content_of(&second)];
                let assigned = wanted.iter().cloned().map(Some).enumerate();
                let (changes, result) = slots.assign(assigned, &BTreeSet::new());
                prop_assert!(result.is_ok());
                map.moments.lock().unwrap().clear();
                for (slot, content) in &changes.written {
                    let held = Held { content: Arc::clone(content), is_announced: true };
                    target.write(*slot, &held).unwrap();
                }
                for (subject, (slot, old)) in rows.iter().enumerate() {
                    for moment in map.moments.lock().unwrap().iter() {
                        for (identity, to_port) in [(1, true), (1, false), (2, true), (2, false)] {
                            let by = |content: &Content| {
                                passes(content.entries(), 0, identity, to_port)
                            };
                            let (before, after) = (by(old), by(&wanted[subject]));
                            let now = passes(moment, *slot, identity, to_port);
                            prop_assert!(before || after || !now, "wrongly passes: {moment:?}");
                            prop_assert!(!(before && after) || now, "wrongly dropped: {moment:?}");
                        }
                    }
                }
                // Endpoints are pointed to their slots, and what they left is emptied.
                for (subject, row) in rows.iter_mut().enumerate() {
                    *row = (slots.of(&subject).unwrap(), Arc::clone(&wanted[subject]));
                }
                for slot in changes.retired {
                    target.empty(slot).unwrap();
                    slots.emptied(slot);
                }
            }
        }
    }
}
