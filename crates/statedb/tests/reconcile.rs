//! A reconciler against a target that fails and is changed behind its back.
//!
//! Whatever happened, and in whatever order: in the end the target holds what the table says. On
//! the way, nothing that the table never knew is removed before every source has delivered.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use proptest::prelude::*;
use statedb::reconciler::{Pace, TargetError};
use statedb::{Outcome, Plan, Progress, Reconciler, Row, Status, Table, Target, Writer};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// A row; an odd value is one that the target should not hold.
#[derive(Clone, Debug, PartialEq)]
struct Entry {
    key: u8,
    value: u8,
}

impl Row for Entry {
    type Key = u8;
    const HEADERS: &'static [&'static str] = &["KEY", "VALUE"];

    fn key(&self) -> u8 {
        self.key
    }

    fn cells(&self) -> Vec<String> {
        vec![self.key.to_string(), self.value.to_string()]
    }
}

fn desired(row: &Entry) -> Option<u8> {
    row.value.is_multiple_of(2).then_some(row.value)
}

/// The kernel, so to speak.
#[derive(Debug, Default)]
struct World {
    entries: BTreeMap<u8, u8>,
    failing_keys: BTreeSet<u8>,
    dump_fails: bool,
    applied: usize,
}

#[derive(Clone, Default)]
struct FakeTarget(Arc<Mutex<World>>);

impl Target<Entry> for FakeTarget {
    type Value = u8;

    fn desired(&self, row: &Entry) -> Option<u8> {
        desired(row)
    }

    async fn dump(&mut self) -> Result<Vec<(u8, u8)>, TargetError> {
        let world = self.0.lock().unwrap();
        if world.dump_fails {
            return Err("cannot be read".into());
        }
        Ok(world.entries.iter().map(|(key, value)| (*key, *value)).collect())
    }

    async fn apply(&mut self, plan: Plan<u8, u8>) -> Outcome<u8> {
        let mut outcome = Outcome::default();
        let world = &mut *self.0.lock().unwrap();
        for key in plan.deletes {
            world.applied += 1;
            if world.failing_keys.contains(&key) {
                outcome.fail(key, "busy");
            } else {
                world.entries.remove(&key);
            }
        }
        for (key, value) in plan.upserts {
            world.applied += 1;
            if world.failing_keys.contains(&key) {
                outcome.fail(key, "full");
            } else {
                world.entries.insert(key, value);
            }
        }
        outcome
    }
}

#[derive(Clone, Debug)]
enum Step {
    Upsert(u8, u8),
    Delete(u8),
    /// Several changes at once, after which the reconciler sees only their sum.
    Squash(Vec<(u8, Option<u8>)>),
    Initialize,
    /// Someone else changes the target.
    Tamper(u8, Option<u8>),
    Break(u8),
    Mend(u8),
    BreakDump(bool),
    Wait(Duration),
    Reconcile,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let key = 0..8u8;
    let change = (key.clone(), proptest::option::of(any::<u8>()));
    let step = prop_oneof![
        6 => (key.clone(), any::<u8>()).prop_map(|(key, value)| Step::Upsert(key, value)),
        3 => key.clone().prop_map(Step::Delete),
        1 => proptest::collection::vec(change, 0..6).prop_map(Step::Squash),
        1 => Just(Step::Initialize),
        1 => (key.clone(), proptest::option::of(any::<u8>()))
            .prop_map(|(key, value)| Step::Tamper(key, value)),
        2 => key.clone().prop_map(Step::Break),
        2 => key.prop_map(Step::Mend),
        1 => any::<bool>().prop_map(Step::BreakDump),
        2 => (0..400u64).prop_map(|seconds| Step::Wait(Duration::from_secs(seconds))),
        6 => Just(Step::Reconcile),
    ];
    proptest::collection::vec(step, 0..60)
}

/// A table, its reconciler and a clock that only moves when told.
struct Fixture {
    writer: Writer<Entry>,
    initializer: Option<statedb::Initializer<Entry>>,
    world: Arc<Mutex<World>>,
    reconciler: Reconciler<Entry, FakeTarget>,
    progress: Progress<Entry>,
    now: Instant,
    /// Keys that the table ever held or that were tampered with.
    touched: BTreeSet<u8>,
}

impl Fixture {
    fn new(leftovers: BTreeMap<u8, u8>) -> Self {
        let (table, writer) = Table::new("entries");
        let initializer = Some(writer.initializer("test"));
        let world = Arc::new(Mutex::new(World { entries: leftovers, ..World::default() }));
        let target = FakeTarget(Arc::clone(&world));
        let (reconciler, progress) = Reconciler::new(&table, target, Pace::default());
        let (now, touched) = (Instant::now(), BTreeSet::new());
        Self { writer, initializer, world, reconciler, progress, now, touched }
    }

    async fn run(&mut self, step: Step) {
        match step {
            Step::Upsert(key, value) => {
                self.touched.insert(key);
                self.writer.upsert(Entry { key, value });
            }
            Step::Delete(key) => {
                self.writer.delete(&key);
            }
            Step::Squash(changes) => {
                self.touched.extend(changes.iter().map(|(key, _)| *key));
                self.writer.commit(|txn| {
                    for (key, value) in changes {
                        match value {
                            Some(value) => txn.upsert(Entry { key, value }),
                            None => drop(txn.delete(&key)),
                        }
                    }
                });
            }
            Step::Initialize => {
                if let Some(initializer) = self.initializer.take() {
                    initializer.done();
                }
            }
            Step::Tamper(key, value) => {
                self.touched.insert(key);
                let entries = &mut self.world.lock().unwrap().entries;
                match value {
                    Some(value) => entries.insert(key, value),
                    None => entries.remove(&key),
                };
            }
            Step::Break(key) => {
                self.world.lock().unwrap().failing_keys.insert(key);
            }
            Step::Mend(key) => {
                self.world.lock().unwrap().failing_keys.remove(&key);
            }
            Step::BreakDump(fails) => self.world.lock().unwrap().dump_fails = fails,
            Step::Wait(time) => self.now += time,
            Step::Reconcile => self.reconciler.step(self.now).await,
        }
    }

    fn wanted(&self) -> BTreeMap<u8, u8> {
        let rows = self.writer.table().snapshot();
        rows.rows().filter_map(|row| Some((row.key, desired(row)?))).collect()
    }

    fn entries(&self) -> BTreeMap<u8, u8> {
        self.world.lock().unwrap().entries.clone()
    }

    /// Mends the world, lets every source deliver, and gives the reconciler time.
    async fn settle(&mut self) {
        self.run(Step::Initialize).await;
        {
            let mut world = self.world.lock().unwrap();
            world.failing_keys.clear();
            world.dump_fails = false;
        }
        for _ in 0..3 {
            self.now += Pace::default().full_interval;
            self.reconciler.step(self.now).await;
        }
    }
}

fn block_on(test: impl Future<Output = Result<(), TestCaseError>>) -> Result<(), TestCaseError> {
    tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(test)
}

/// What earlier runs left in the target: keys that tests use, and keys that they never use.
fn leftovers() -> impl Strategy<Value = BTreeMap<u8, u8>> {
    proptest::collection::btree_map(0..12u8, any::<u8>(), 0..6)
}

proptest! {
    #[test]
    fn everything_converges(steps in steps(), leftovers in leftovers()) {
        block_on(async {
            let mut fixture = Fixture::new(leftovers.clone());
            for step in steps {
                fixture.run(step).await;
                if fixture.initializer.is_some() {
                    let entries = fixture.entries();
                    for (key, value) in leftovers.iter().filter(|(k, _)| !fixture.touched.contains(k)) {
                        prop_assert_eq!(entries.get(key), Some(value), "pruned before init");
                    }
                }
            }
            fixture.settle().await;
            prop_assert_eq!(fixture.entries(), fixture.wanted());
            prop_assert!(fixture.progress.failures().is_empty());
            Ok(())
        })?;
    }

    /// With a target that works and is ours alone, each step leads to what a reconciler would make
    /// that starts from nothing.
    #[test]
    fn incremental_equals_from_scratch(steps in steps()) {
        block_on(async {
            let mut fixture = Fixture::new(BTreeMap::new());
            for step in steps {
                if matches!(step, Step::Break(_) | Step::BreakDump(_) | Step::Tamper(..)) {
                    continue;
                }
                fixture.run(step).await;
                fixture.run(Step::Reconcile).await;
                prop_assert_eq!(fixture.entries(), fixture.wanted());
                let revision = fixture.writer.table().revision();
                prop_assert!(fixture.progress.settled(&0, revision).await.is_ok());
            }
            Ok(())
        })?;
    }

    /// Adding rows and then taking them away again, in the reverse order, leaves nothing.
    #[test]
    fn what_is_reversed_is_gone(rows in proptest::collection::vec((0..8u8, any::<u8>()), 0..20)) {
        block_on(async {
            let mut fixture = Fixture::new(BTreeMap::new());
            for (key, value) in &rows {
                fixture.run(Step::Upsert(*key, *value)).await;
                fixture.run(Step::Reconcile).await;
            }
            for (key, _) in rows.iter().rev() {
                fixture.run(Step::Delete(*key)).await;
                fixture.run(Step::Delete(*key)).await;
                fixture.run(Step::Reconcile).await;
            }
            prop_assert_eq!(fixture.entries(), BTreeMap::new());
            Ok(())
        })?;
    }
}

#[tokio::test]
async fn nothing_is_done_twice() {
    let mut fixture = Fixture::new(BTreeMap::from([(1, 2), (9, 9)]));
    fixture.run(Step::Upsert(1, 2)).await;
    fixture.run(Step::Upsert(2, 4)).await;
    fixture.run(Step::Initialize).await;
    for _ in 0..5 {
        fixture.now += Pace::default().full_interval;
        fixture.run(Step::Reconcile).await;
    }
    // One row was there, one was added, one entry was pruned.
    assert_eq!(fixture.world.lock().unwrap().applied, 2);
    assert_eq!(fixture.progress.full_passes(), 5);
}

#[tokio::test]
async fn leftovers_go_as_soon_as_every_source_has_delivered() {
    let mut fixture = Fixture::new(BTreeMap::from([(9, 9)]));
    fixture.run(Step::Reconcile).await;
    assert_eq!(fixture.entries(), BTreeMap::from([(9, 9)]));
    fixture.run(Step::Initialize).await;
    fixture.run(Step::Reconcile).await;
    assert_eq!(fixture.entries(), BTreeMap::new());
    fixture.progress.pruned().await.unwrap();
}

#[tokio::test]
async fn a_row_that_is_removed_need_not_wait_for_other_sources() {
    let mut fixture = Fixture::new(BTreeMap::from([(9, 9)]));
    fixture.run(Step::Upsert(1, 2)).await;
    fixture.run(Step::Reconcile).await;
    fixture.run(Step::Delete(1)).await;
    // The next pass is a full one, which may not prune; this removal is no guess.
    fixture.now += Pace::default().full_interval;
    fixture.run(Step::Reconcile).await;
    assert_eq!(fixture.entries(), BTreeMap::from([(9, 9)]));
}

#[tokio::test]
async fn a_failing_key_backs_off_and_says_so() {
    let mut fixture = Fixture::new(BTreeMap::new());
    fixture.run(Step::Reconcile).await;
    fixture.run(Step::Break(1)).await;
    let revision = fixture.writer.upsert(Entry { key: 1, value: 2 });
    assert_eq!(fixture.progress.status(&1), Some(Status::Pending));
    fixture.run(Step::Reconcile).await;
    let error = fixture.progress.settled(&1, revision).await.unwrap_err();
    assert_eq!(error.to_string(), "full (attempt 1)");

    let mut waits = Vec::new();
    for _ in 0..12 {
        let Some(Status::Failed(failure)) = fixture.progress.status(&1) else {
            panic!("the key fails");
        };
        waits.push((failure.retry_at - fixture.now).as_millis());
        let applied = fixture.world.lock().unwrap().applied;
        fixture.run(Step::Reconcile).await;
        assert_eq!(fixture.world.lock().unwrap().applied, applied, "too early");
        fixture.now = failure.retry_at;
        fixture.run(Step::Reconcile).await;
    }
    assert_eq!(waits[..4], [100, 200, 400, 800]);
    assert_eq!(*waits.last().unwrap(), 60_000);

    fixture.run(Step::Mend(1)).await;
    fixture.now += Duration::from_secs(60);
    fixture.run(Step::Reconcile).await;
    assert_eq!(fixture.progress.status(&1), Some(Status::Done));
}

#[tokio::test]
async fn changes_are_applied_while_the_target_cannot_be_read() {
    let mut fixture = Fixture::new(BTreeMap::new());
    fixture.run(Step::BreakDump(true)).await;
    fixture.run(Step::Upsert(1, 2)).await;
    fixture.run(Step::Reconcile).await;
    assert_eq!(fixture.entries(), fixture.wanted());
    assert_eq!(fixture.progress.dump_error().as_deref(), Some("cannot be read"));
}

#[tokio::test(start_paused = true)]
async fn the_loop_wakes_for_changes_retries_and_full_passes() {
    let (table, writer) = Table::new("entries");
    let world = Arc::new(Mutex::new(World::default()));
    let target = FakeTarget(Arc::clone(&world));
    let (reconciler, progress) = Reconciler::new(&table, target, Pace::default());
    let stop = CancellationToken::new();
    let running = tokio::spawn(reconciler.run(stop.clone()));

    world.lock().unwrap().failing_keys.insert(1);
    let revision = writer.upsert(Entry { key: 1, value: 2 });
    assert!(progress.settled(&1, revision).await.is_err());
    world.lock().unwrap().failing_keys.clear();
    while progress.status(&1) != Some(Status::Done) {
        tokio::time::advance(Duration::from_millis(50)).await;
    }
    world.lock().unwrap().entries.clear();
    let passes = progress.full_passes();
    while progress.full_passes() == passes {
        tokio::time::advance(Duration::from_secs(1)).await;
    }
    assert_eq!(world.lock().unwrap().entries, BTreeMap::from([(1, 2)]));
    let revision = writer.delete(&1);
    progress.settled(&1, revision).await.unwrap();
    assert!(world.lock().unwrap().entries.is_empty());
    stop.cancel();
    running.await.unwrap();
    assert!(progress.settled(&1, statedb::Revision(99)).await.is_err(), "it has stopped");
}
