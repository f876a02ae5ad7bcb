//! Which slot of the policy maps holds which policy, and how one becomes another.
//!
//! A *content* is everything that the maps hold of a policy. Subjects (endpoints that policy cannot tell
//! apart) whose contents are equal share a slot, so the hundred pods of a Deployment take one. Pure:
//! contents in, slots out; [`super::realize`] carries them into the kernel.
//!
//! ```text
//!  subjects ──► content ──► slot        the same content is in a slot already: that one
//!                             │         only allows, or only denies, come or go, and all who use
//!                             │         the slot change alike: in place
//!                             │         else: a new slot, then the endpoints are pointed to it
//!                             └─► without subjects: rests until no program can be reading it, then goes
//! ```
//!
//! **Why in place is safe then.** While entries are written one by one, a packet meets some of the new
//! ones. Rules of one verdict that come make each lookup answer as before or as afterwards; when the
//! answer of the whole is the same before and after, it is the same at each moment between. That needs
//! one property of contents, which the engine keeps: of two entries for the same identity the more
//! specific one never has the lower precedence.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use abi::policy::{POLICY_SLOT_NONE, PolicyEntry, PolicyKey};

/// What a slot holds, in the order of the keys, whose `slot` is [`POLICY_SLOT_NONE`].
#[derive(Debug, Clone)]
pub struct Content {
    entries: Vec<(PolicyKey, PolicyEntry)>,
    hash: u64,
}

impl PartialEq for Content {
    fn eq(&self, other: &Self) -> bool {
        self.hash == other.hash && self.entries == other.entries
    }
}

impl Content {
    /// A content of entries in any order; their slot does not matter.
    pub fn new(entries: impl IntoIterator<Item = (PolicyKey, PolicyEntry)>) -> Self {
        let unslotted = |(key, entry)| (PolicyKey { slot: POLICY_SLOT_NONE, ..key }, entry);
        let mut entries: Vec<_> = entries.into_iter().map(unslotted).collect();
        entries.sort_unstable_by_key(|(key, _)| *key);
        entries.shrink_to_fit();
        let mut hasher = DefaultHasher::new();
        entries.hash(&mut hasher);
        let hash = hasher.finish();
        Self { entries, hash }
    }

    /// The entries in the order of their keys.
    pub fn entries(&self) -> &[(PolicyKey, PolicyEntry)] {
        &self.entries
    }

    /// What must be done to a slot that holds `self` so that it holds `new`.
    pub fn difference(&self, new: &Self) -> Difference {
        let mut difference = Difference::default();
        let mut old = self.entries.iter().peekable();
        for (key, entry) in &new.entries {
            while let Some(gone) = old.next_if(|(other, _)| other < key) {
                difference.removed.push(*gone);
            }
            match old.next_if(|(other, _)| other == key) {
                Some((_, before)) if before == entry => {}
                Some((_, before)) => difference.changed.push((*key, *before, *entry)),
                None => difference.added.push((*key, *entry)),
            }
        }
        difference.removed.extend(old);
        difference
    }
}

/// What makes one content of another.
#[derive(Debug, Default, Clone, PartialEq)]
pub struct Difference {
    /// Entries that go.
    pub removed: Vec<(PolicyKey, PolicyEntry)>,
    /// Entries that stay with another value: key, before, afterwards.
    pub changed: Vec<(PolicyKey, PolicyEntry, PolicyEntry)>,
    /// Entries that come.
    pub added: Vec<(PolicyKey, PolicyEntry)>,
}

impl Difference {
    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.removed.is_empty() && self.changed.is_empty() && self.added.is_empty()
    }

    /// Whether the entries can be written one by one while packets are judged by them: see the
    /// module's description.
    pub fn is_safe_in_place(&self) -> bool {
        let same_verdict = |(_, before, after): &(PolicyKey, PolicyEntry, PolicyEntry)| {
            PolicyEntry { cookie: after.cookie, ..*before } == *after
        };
        let one_verdict = |entries: &[(PolicyKey, PolicyEntry)]| {
            let denies = entries.iter().filter(|(_, entry)| denies(entry)).count();
            denies == 0 || denies == entries.len()
        };
        self.changed.iter().all(same_verdict)
            && match (self.removed.is_empty(), self.added.is_empty()) {
                (true, _) => one_verdict(&self.added),
                (_, true) => one_verdict(&self.removed),
                (false, false) => false,
            }
    }
}

/// Whether a packet that the entry decides about is dropped.
pub fn denies(entry: &PolicyEntry) -> bool {
    entry.is_deny() || entry.is_not_enforceable()
}

/// The slots of a node. `S` names a subject.
#[derive(Debug)]
pub struct Slots<S> {
    slots: BTreeMap<u32, Slot<S>>,
    by_hash: HashMap<u64, BTreeSet<u32>>,
    by_subject: BTreeMap<S, u32>,
    resting: BTreeSet<u32>,
    capacity: u32,
}

#[derive(Debug)]
struct Slot<S> {
    content: Arc<Content>,
    subjects: BTreeSet<S>,
}

/// What [`Slots::assign`] wants done, in this order.
#[derive(Debug, Default, PartialEq)]
pub struct Changes {
    /// Slots to be written, and with what: before any endpoint is pointed to them.
    pub written: BTreeMap<u32, Arc<Content>>,
    /// Slots that nobody uses once the endpoints are pointed elsewhere.
    pub retired: BTreeSet<u32>,
}

/// Every slot is in use.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the node has {capacity} different policies, the most that its maps have slots for")]
pub struct SlotsExhausted {
    capacity: u32,
}

impl<S: Ord + Clone> Slots<S> {
    /// No slot in use; the highest is `capacity - 1`.
    pub fn new(capacity: u32) -> Self {
        Self {
            slots: BTreeMap::new(),
            by_hash: HashMap::new(),
            by_subject: BTreeMap::new(),
            resting: BTreeSet::new(),
            capacity,
        }
    }

    /// Takes over a slot as the maps hold it, for the subjects that the agent before us pointed to it.
    pub fn adopt(&mut self, slot: u32, content: Arc<Content>) {
        self.insert(slot, content);
    }

    /// The slot of a subject.
    pub fn of(&self, subject: &S) -> Option<u32> {
        self.by_subject.get(subject).copied()
    }

    /// What a slot holds, or shall hold.
    pub fn content(&self, slot: u32) -> Option<&Arc<Content>> {
        self.slots.get(&slot).map(|slot| &slot.content)
    }

    /// How many slots are in use, and how many rest.
    pub fn len(&self) -> (usize, usize) {
        (self.slots.len(), self.resting.len())
    }

    /// Gives each of these subjects a slot with its content; `None` gives its slot back. The slots of
    /// the subjects in `swap` are not changed in place.
    ///
    /// A subject that finds no slot keeps the one that it has, and is in the error.
    pub fn assign(
        &mut self,
        wanted: impl IntoIterator<Item = (S, Option<Arc<Content>>)>,
        swap: &BTreeSet<S>,
    ) -> (Changes, Result<(), (SlotsExhausted, BTreeSet<S>)>) {
        let mut changes = Changes::default();
        let mut refused = BTreeSet::new();
        let mut left = BTreeSet::new();
        let (gone, groups) = self.group(wanted);
        for subject in gone {
            left.extend(self.leave(&subject));
        }
        for (content, subjects) in groups {
            let found = self.find(&content);
            if let Some(slot) = found
                && self.slots[&slot].subjects.is_empty()
            {
                // The maps hold it, but nobody has said yet that they shall.
                changes.written.insert(slot, Arc::clone(&content));
            }
            let slot = found.or_else(|| {
                let known = self
                    .find_adopted(&content)
                    .or_else(|| self.change_in_place(&content, &subjects, swap));
                let slot = known.or_else(|| {
                    let slot = self.free_slot()?;
                    self.insert(slot, Arc::clone(&content));
                    Some(slot)
                })?;
                changes.written.insert(slot, Arc::clone(&content));
                Some(slot)
            });
            let Some(slot) = slot else {
                refused.extend(subjects);
                continue;
            };
            for subject in subjects {
                left.extend(self.leave(&subject));
                self.enter(subject, slot);
            }
        }
        for slot in left {
            if self.slots.get(&slot).is_some_and(|slot| slot.subjects.is_empty()) {
                self.remove(slot);
                changes.written.remove(&slot);
                changes.retired.insert(slot);
            }
        }
        let result = if refused.is_empty() {
            Ok(())
        } else {
            Err((SlotsExhausted { capacity: self.capacity }, refused))
        };
        (changes, result)
    }

    /// Gives back the adopted slots that no subject has taken.
    pub fn retire_unused(&mut self) -> BTreeSet<u32> {
        let unused = self.slots.iter().filter(|(_, slot)| slot.subjects.is_empty());
        let unused: BTreeSet<u32> = unused.map(|(number, _)| *number).collect();
        unused.iter().for_each(|slot| self.remove(*slot));
        unused
    }

    /// A retired slot has been emptied: its number may be used again.
    pub fn emptied(&mut self, slot: u32) {
        self.resting.remove(&slot);
    }

    /// The subjects that want something new, those of equal wishes together; and those that leave.
    #[expect(clippy::type_complexity, reason = "it says what it is")]
    fn group(
        &self,
        wanted: impl IntoIterator<Item = (S, Option<Arc<Content>>)>,
    ) -> (Vec<S>, Vec<(Arc<Content>, BTreeSet<S>)>) {
        let mut gone = Vec::new();
        let mut groups: Vec<(Arc<Content>, BTreeSet<S>)> = Vec::new();
        let mut by_hash: HashMap<u64, Vec<usize>> = HashMap::new();
        for (subject, content) in wanted {
            let Some(content) = content else {
                gone.push(subject);
                continue;
            };
            let alike = by_hash.entry(content.hash).or_default();
            match alike.iter().find(|index| groups[**index].0 == content) {
                Some(index) => {
                    groups[*index].1.insert(subject);
                }
                None => {
                    alike.push(groups.len());
                    groups.push((content, BTreeSet::from([subject])));
                }
            }
        }
        (gone, groups)
    }

    /// The slot that holds this content.
    fn find(&self, content: &Content) -> Option<u32> {
        let alike = self.by_hash.get(&content.hash)?;
        alike.iter().copied().find(|slot| *self.slots[slot].content == *content)
    }

    /// A slot of the agent before us that says the same in the name of other cookies, which are new
    /// with every agent: it gets ours.
    fn find_adopted(&mut self, content: &Arc<Content>) -> Option<u32> {
        let differs_in_cookies = |slot: &Slot<S>| {
            let difference = slot.content.difference(content);
            difference.added.is_empty()
                && difference.removed.is_empty()
                && difference.is_safe_in_place()
        };
        let unused = self.slots.iter().filter(|(_, slot)| slot.subjects.is_empty());
        let mut alike = unused.filter(|(_, slot)| {
            slot.content.entries.len() == content.entries.len() && differs_in_cookies(slot)
        });
        let slot = *alike.next()?.0;
        self.replace_content(slot, content);
        Some(slot)
    }

    /// Changes a slot that only `subjects` use, if packets may watch that.
    fn change_in_place(
        &mut self,
        content: &Arc<Content>,
        subjects: &BTreeSet<S>,
        swap: &BTreeSet<S>,
    ) -> Option<u32> {
        let candidates: BTreeSet<u32> =
            subjects.iter().filter_map(|subject| self.by_subject.get(subject)).copied().collect();
        let slot = candidates.into_iter().find(|slot| {
            let slot = &self.slots[slot];
            slot.subjects.is_subset(subjects)
                && slot.subjects.is_disjoint(swap)
                && slot.content.difference(content).is_safe_in_place()
        })?;
        self.replace_content(slot, content);
        Some(slot)
    }

    fn replace_content(&mut self, slot: u32, content: &Arc<Content>) {
        let used = self.slots.get_mut(&slot).expect("a slot that is changed is there");
        let before = std::mem::replace(&mut used.content, Arc::clone(content));
        self.unindex(slot, before.hash);
        self.by_hash.entry(content.hash).or_default().insert(slot);
    }

    fn free_slot(&self) -> Option<u32> {
        let is_free = |slot: &u32| !self.slots.contains_key(slot) && !self.resting.contains(slot);
        (POLICY_SLOT_NONE + 1..self.capacity).find(is_free)
    }

    fn insert(&mut self, slot: u32, content: Arc<Content>) {
        self.by_hash.entry(content.hash).or_default().insert(slot);
        self.slots.insert(slot, Slot { content, subjects: BTreeSet::new() });
    }

    /// Makes a slot rest.
    fn remove(&mut self, slot: u32) {
        if let Some(removed) = self.slots.remove(&slot) {
            self.unindex(slot, removed.content.hash);
            self.resting.insert(slot);
        }
    }

    fn unindex(&mut self, slot: u32, hash: u64) {
        if let Some(alike) = self.by_hash.get_mut(&hash) {
            alike.remove(&slot);
            if alike.is_empty() {
                self.by_hash.remove(&hash);
            }
        }
    }

    fn enter(&mut self, subject: S, slot: u32) {
        let used = self.slots.get_mut(&slot).expect("subjects enter slots that are there");
        used.subjects.insert(subject.clone());
        self.by_subject.insert(subject, slot);
    }

    /// Takes a subject out of its slot, which it returns.
    fn leave(&mut self, subject: &S) -> Option<u32> {
        let slot = self.by_subject.remove(subject)?;
        self.slots.get_mut(&slot).expect("a used slot is there").subjects.remove(subject);
        Some(slot)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn entry(identity: u32, deny: bool) -> (PolicyKey, PolicyEntry) {
        let key = PolicyKey { prefix_len: 72, identity, ..PolicyKey::default() };
        (key, PolicyEntry { bits: u8::from(deny), ..PolicyEntry::default() })
    }

    fn content(entries: &[(u32, bool)]) -> Arc<Content> {
        Arc::new(Content::new(entries.iter().map(|(identity, deny)| entry(*identity, *deny))))
    }

    fn one(slots: &mut Slots<u32>, subject: u32, wanted: &Arc<Content>) -> Changes {
        let (changes, result) =
            slots.assign([(subject, Some(Arc::clone(wanted)))], &BTreeSet::new());
        result.unwrap();
        changes
    }

    #[test]
    fn equal_contents_share_a_slot() {
        let mut slots = Slots::new(16);
        let web = content(&[(256, false)]);
        let wanted = (0..100).map(|pod| (pod, Some(content(&[(256, false)]))));
        let (changes, result) = slots.assign(wanted, &BTreeSet::new());
        assert_eq!(result, Ok(()));
        assert_eq!(changes.written, BTreeMap::from([(1, web)]));
        assert!((0..100).all(|pod| slots.of(&pod) == Some(1)));
        // All change alike: the slot changes under them.
        let more = content(&[(256, false), (257, false)]);
        let (changes, _) =
            slots.assign((0..100).map(|pod| (pod, Some(Arc::clone(&more)))), &BTreeSet::new());
        assert_eq!(changes.written, BTreeMap::from([(1, more)]));
        assert_eq!(slots.len(), (1, 0));
        // One changes alone: it gets another slot.
        let changes = one(&mut slots, 7, &content(&[]));
        assert_eq!(changes.written.keys().copied().collect::<Vec<_>>(), [2]);
        assert_eq!(changes.retired, BTreeSet::new());
    }

    #[test]
    fn what_is_not_safe_in_place_gets_a_new_slot() {
        let check = |before: &[(u32, bool)], after: &[(u32, bool)], in_place: bool| {
            let mut slots = Slots::new(16);
            one(&mut slots, 0, &content(before));
            let changes = one(&mut slots, 0, &content(after));
            assert_eq!(changes.retired.is_empty(), in_place, "{before:?} to {after:?}");
            assert_eq!(changes.written.contains_key(&1), in_place);
        };
        check(&[(1, false)], &[(1, false), (2, false)], true);
        check(&[(1, false), (2, false)], &[(1, false)], true);
        check(&[(1, false)], &[(1, false), (2, true), (3, true)], true);
        check(&[(1, false)], &[(1, false), (2, true), (3, false)], false);
        check(&[(1, false)], &[(2, false)], false);
        check(&[(1, false)], &[(1, true)], false);
    }

    #[test]
    fn a_slot_that_others_may_still_read_is_not_changed() {
        let mut slots = Slots::new(16);
        one(&mut slots, 0, &content(&[(1, false)]));
        let more = content(&[(1, false), (2, false)]);
        let (changes, _) = slots.assign([(0, Some(more))], &BTreeSet::from([0]));
        assert_eq!(changes.retired, BTreeSet::from([1]));
        assert_eq!(slots.of(&0), Some(2));
    }

    #[test]
    fn a_slot_rests_before_it_is_used_again() {
        let mut slots = Slots::new(3);
        one(&mut slots, 0, &content(&[(1, false)]));
        let changes = one(&mut slots, 0, &content(&[(1, true)]));
        assert_eq!(changes.retired, BTreeSet::from([1]));
        let (_, result) = slots.assign([(1, Some(content(&[(2, false)])))], &BTreeSet::new());
        let (error, refused) = result.unwrap_err();
        assert_eq!(refused, BTreeSet::from([1]));
        assert!(error.to_string().contains("3 different policies"), "{error}");
        slots.emptied(1);
        one(&mut slots, 1, &content(&[(2, false)]));
        assert_eq!(slots.of(&1), Some(1));
    }

    #[test]
    fn adopted_slots_are_found_by_content() {
        let mut slots = Slots::new(16);
        slots.adopt(5, content(&[(1, false)]));
        slots.adopt(6, content(&[(2, false)]));
        let changes = one(&mut slots, 0, &content(&[(1, false)]));
        assert_eq!(
            changes.written,
            BTreeMap::from([(5, content(&[(1, false)]))]),
            "it is ours now"
        );
        assert_eq!(slots.of(&0), Some(5));
        let mut named = content(&[(2, false)]).entries().to_vec();
        named[0].1.cookie = 77;
        let named = Arc::new(Content::new(named));
        let changes = one(&mut slots, 1, &named);
        assert_eq!(changes.written, BTreeMap::from([(6, named)]), "another cookie is no news");
        slots.adopt(7, content(&[(3, false)]));
        assert_eq!(slots.retire_unused(), BTreeSet::from([7]));
    }

    proptest! {
        /// After any sequence every subject's slot holds what it wants, equal wishes share a slot, no
        /// slot is used by nobody, and a slot that others use is not written.
        #[test]
        fn slots_hold_what_is_wanted(
            steps in proptest::collection::vec(
                proptest::collection::btree_map(0..6u32, proptest::option::of(
                    proptest::collection::btree_map(0..4u32, any::<bool>(), 0..4)), 1..6), 0..40)
        ) {
            let mut slots: Slots<u32> = Slots::new(64);
            let mut wishes: BTreeMap<u32, Arc<Content>> = BTreeMap::new();
            for step in steps {
                let before: BTreeMap<u32, u32> = wishes.keys().map(|s| (*s, slots.of(s).unwrap())).collect();
                let step: Vec<_> = step.into_iter().map(|(subject, entries)| {
                    let content = entries.map(|e| content(&e.into_iter().collect::<Vec<_>>()));
                    (subject, content)
                }).collect();
                let (changes, result) = slots.assign(step.clone(), &BTreeSet::new());
                prop_assert_eq!(result, Ok(()));
                for (subject, content) in &step {
                    match content {
                        Some(content) => { wishes.insert(*subject, Arc::clone(content)); }
                        None => { wishes.remove(subject); }
                    }
                }
                for (subject, slot) in &before {
                    let unchanged = step.iter().all(|(changed, _)| changed != subject);
                    prop_assert!(!unchanged || !changes.written.contains_key(slot));
                }
                for slot in &changes.retired {
                    slots.emptied(*slot);
                }
                for (subject, wish) in &wishes {
                    let slot = slots.of(subject).unwrap();
                    prop_assert_eq!(slots.content(slot).unwrap(), wish);
                }
                let distinct: BTreeSet<u32> = wishes.keys().map(|s| slots.of(s).unwrap()).collect();
                prop_assert_eq!(slots.len().0, distinct.len());
                for (a, first) in &wishes {
                    for (b, second) in &wishes {
                        prop_assert_eq!(first == second, slots.of(a) == slots.of(b));
                    }
                }
            }
        }
    }
}
