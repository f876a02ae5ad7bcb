//! Makes a part of the world equal to a table.
//!
//! ```text
//!  table ──changes──► plan ──► Target::apply ──► failures (per key, retried with back-off)
//!                      ▲
//!  Target::dump ───────┘ at the start, when the table becomes initialised, and periodically
//! ```
//!
//! What is done for a key follows from the table as it is now, never from what was tried before: a
//! retry of a row that has gone meanwhile is a deletion. Lost wake-ups, changes behind our back and
//! failures all end in the same place, the next full pass.

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::fmt::Debug;
use std::future::Future;
use std::time::Duration;

use imbl::OrdMap;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::table::{Change, Changes, Revision, Row, Snapshot, Table};

/// The part of the world that a table describes.
///
/// Both operations are idempotent: deleting what is not there succeeds, and so does writing what is
/// there already.
pub trait Target<R: Row>: Send + 'static {
    /// What the target holds under a row's key.
    type Value: Clone + Debug + PartialEq + Send + Sync;

    /// What should be under the row's key; `None` when nothing should. Pure.
    fn desired(&self, row: &R) -> Option<Self::Value>;

    /// Everything the target holds that is ours.
    #[expect(clippy::type_complexity, reason = "it says what it is: pairs, or an error")]
    fn dump(
        &mut self,
    ) -> impl Future<Output = Result<Vec<(R::Key, Self::Value)>, TargetError>> + Send;

    /// Carries out a plan as far as possible and says what failed.
    fn apply(
        &mut self,
        plan: Plan<R::Key, Self::Value>,
    ) -> impl Future<Output = Outcome<R::Key>> + Send;
}

/// Why a target refused.
pub type TargetError = Box<dyn Error + Send + Sync>;

/// What to do to a target: deletions first, they make room.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan<K, V> {
    /// Keys that must hold nothing.
    pub deletes: Vec<K>,
    /// Keys and what they must hold.
    pub upserts: Vec<(K, V)>,
}

impl<K, V> Plan<K, V> {
    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.deletes.is_empty() && self.upserts.is_empty()
    }

    /// Carries the plan out one key at a time.
    pub fn each<E: Into<TargetError>>(
        self,
        mut delete: impl FnMut(&K) -> Result<(), E>,
        mut upsert: impl FnMut(&K, &V) -> Result<(), E>,
    ) -> Outcome<K> {
        let mut outcome = Outcome::default();
        for key in self.deletes {
            if let Err(error) = delete(&key) {
                outcome.fail(key, error);
            }
        }
        for (key, value) in self.upserts {
            if let Err(error) = upsert(&key, &value) {
                outcome.fail(key, error);
            }
        }
        outcome
    }
}

impl<K, V> Default for Plan<K, V> {
    fn default() -> Self {
        Self { deletes: Vec::new(), upserts: Vec::new() }
    }
}

/// The keys of a plan that failed; all others succeeded.
#[derive(Debug)]
pub struct Outcome<K> {
    /// Key and reason.
    pub failed: Vec<(K, TargetError)>,
}

impl<K> Outcome<K> {
    /// Records that `key` failed.
    pub fn fail(&mut self, key: K, error: impl Into<TargetError>) {
        self.failed.push((key, error.into()));
    }
}

impl<K> Default for Outcome<K> {
    fn default() -> Self {
        Self { failed: Vec::new() }
    }
}

/// How often and how fast a [`Reconciler`] works.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Time between two full passes.
    pub full_interval: Duration,
    /// First wait after a failure; it doubles with each further one.
    pub retry_min: Duration,
    /// Longest wait after a failure.
    pub retry_max: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            full_interval: Duration::from_secs(300),
            retry_min: Duration::from_millis(100),
            retry_max: Duration::from_secs(60),
        }
    }
}

impl Pace {
    /// The wait after `attempts` failures in a row.
    fn backoff(&self, attempts: u32) -> Duration {
        let factor = 2u32.saturating_pow(attempts.saturating_sub(1));
        self.retry_min.saturating_mul(factor).min(self.retry_max)
    }
}

/// How a row stands in its target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Status {
    /// Not carried out yet.
    Pending,
    /// The target holds it.
    Done,
    /// The target refused; it is tried again.
    Failed(Failure),
}

/// Why and since how many attempts a key fails, and when it is tried next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The error and its causes.
    pub error: String,
    /// Failures in a row.
    pub attempts: u32,
    /// Earliest time of the next attempt.
    pub retry_at: Instant,
}

/// What a reconciler has reached, published after each step.
#[derive(Clone, Debug)]
struct Reached<K: Ord + Clone> {
    /// Every change of the table up to this revision was tried at least once.
    processed: Revision,
    /// Keys whose last attempt failed.
    failures: OrdMap<K, Failure>,
    /// Why the last full pass could not read the target.
    dump_error: Option<String>,
    /// Successful full passes, and those among them that were allowed to prune.
    full_passes: u64,
    pruning_passes: u64,
}

/// A view of what a reconciler has reached; cheap to clone.
#[derive(Debug)]
pub struct Progress<R: Row> {
    table: Table<R>,
    reached: watch::Receiver<Reached<R::Key>>,
}

impl<R: Row> Clone for Progress<R> {
    fn clone(&self) -> Self {
        Self { table: self.table.clone(), reached: self.reached.clone() }
    }
}

/// A row did not get into the target.
#[derive(Debug, thiserror::Error)]
pub enum SettleError {
    /// The target refused; the reconciler goes on trying.
    #[error("{error} (attempt {attempts})")]
    Failed {
        /// The target's words.
        error: String,
        /// Failures in a row.
        attempts: u32,
    },
    /// The reconciler has ended.
    #[error("the reconciler has stopped")]
    Stopped,
}

impl<R: Row> Progress<R> {
    /// How the row with this key stands; `None` for a key that the table does not hold and the
    /// target is not known to hold.
    pub fn status(&self, key: &R::Key) -> Option<Status> {
        // Order matters: a row written after `reached` was read counts as pending.
        let reached = self.reached.borrow();
        if let Some(failure) = reached.failures.get(key) {
            return Some(Status::Failed(failure.clone()));
        }
        let written = self.table.snapshot().row_revision(key)?;
        Some(if written > reached.processed { Status::Pending } else { Status::Done })
    }

    /// Waits until the change of `key` that [`crate::Writer::upsert`] or `delete` gave `revision`
    /// has been tried, and says how that went.
    pub async fn settled(&self, key: &R::Key, revision: Revision) -> Result<(), SettleError> {
        let mut reached = self.reached.clone();
        let reached = reached
            .wait_for(|reached| reached.processed >= revision)
            .await
            .map_err(|_stopped| SettleError::Stopped)?;
        match reached.failures.get(key) {
            None => Ok(()),
            Some(failure) => Err(SettleError::Failed {
                error: failure.error.clone(),
                attempts: failure.attempts,
            }),
        }
    }

    /// Waits for the first full pass over an initialised table: from then on the target holds what
    /// the table says and nothing else, but for failures.
    pub async fn pruned(&self) -> Result<(), SettleError> {
        let mut reached = self.reached.clone();
        let waited = reached.wait_for(|reached| reached.pruning_passes > 0).await;
        waited.map(drop).map_err(|_stopped| SettleError::Stopped)
    }

    /// Every key whose last attempt failed.
    pub fn failures(&self) -> Vec<(R::Key, Failure)> {
        let reached = self.reached.borrow();
        reached.failures.iter().map(|(key, failure)| (key.clone(), failure.clone())).collect()
    }

    /// Why the target could not be read, when the last full pass failed.
    pub fn dump_error(&self) -> Option<String> {
        self.reached.borrow().dump_error.clone()
    }

    /// Number of successful full passes.
    pub fn full_passes(&self) -> u64 {
        self.reached.borrow().full_passes
    }
}

/// Keeps a [`Target`] equal to a [`Table`]. Made by [`Reconciler::new`], driven by
/// [`Reconciler::run`] in a job.
pub struct Reconciler<R: Row, T: Target<R>> {
    target: T,
    changes: Changes<R>,
    pace: Pace,
    full_at: Instant,
    full_failures: u32,
    /// Whether a full pass was allowed to prune.
    pruned: bool,
    reached: watch::Sender<Reached<R::Key>>,
}

impl<R: Row, T: Target<R>> Reconciler<R, T> {
    /// A reconciler that has not started, and the view of its progress.
    pub fn new(table: &Table<R>, target: T, pace: Pace) -> (Self, Progress<R>) {
        let (reached, progress) = watch::channel(Reached {
            processed: Revision::default(),
            failures: OrdMap::new(),
            dump_error: None,
            full_passes: 0,
            pruning_passes: 0,
        });
        let reconciler = Self {
            target,
            changes: table.changes(),
            pace,
            full_at: Instant::now(),
            full_failures: 0,
            pruned: false,
            reached,
        };
        (reconciler, Progress { table: table.clone(), reached: progress })
    }

    /// Reconciles until `stop` is cancelled or the table is gone.
    pub async fn run(mut self, stop: CancellationToken) {
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.step(Instant::now()) => {}
            }
            let wake_at = self.next_deadline();
            tokio::select! {
                () = stop.cancelled() => return,
                alive = self.changes.changed() => if !alive { return },
                () = sleep_until(wake_at) => {}
            }
        }
    }

    /// Does everything that is due at `now`.
    pub async fn step(&mut self, now: Instant) {
        let changed = self.changes.take();
        let changed: BTreeSet<R::Key> = changed.iter().map(Change::key).collect();
        let initialized = self.changes.snapshot().is_initialized();
        let may_prune_now = initialized && !self.pruned && self.full_failures == 0;
        let full_due = now >= self.full_at || may_prune_now;
        if full_due && self.full_pass(now, &changed).await {
            return;
        }
        self.incremental_pass(now, changed).await;
    }

    /// When [`Reconciler::step`] has something to do without a change of the table.
    fn next_deadline(&self) -> Instant {
        let reached = self.reached.borrow();
        let retry = reached.failures.values().map(|failure| failure.retry_at).min();
        retry.map_or(self.full_at, |retry| retry.min(self.full_at))
    }

    /// Reads the target and makes it equal to the table. False when the target cannot be read.
    async fn full_pass(&mut self, now: Instant, changed: &BTreeSet<R::Key>) -> bool {
        let actual = match self.target.dump().await {
            Ok(actual) => actual,
            Err(error) => {
                self.dump_failed(now, &*error);
                return false;
            }
        };
        let snapshot = self.changes.snapshot().clone();
        let prune = snapshot.is_initialized();
        let failing: BTreeSet<R::Key> = self.reached.borrow().failures.keys().cloned().collect();
        let may_delete = |key: &R::Key| prune || changed.contains(key) || failing.contains(key);
        let plan = plan_full(&self.target, &snapshot, actual, may_delete);
        tracing::debug!(
            table = snapshot.name(),
            prune,
            deletes = plan.deletes.len(),
            upserts = plan.upserts.len(),
            "full reconciliation"
        );
        let outcome = self.apply(plan).await;
        self.full_at = now + self.pace.full_interval;
        self.full_failures = 0;
        self.pruned |= prune;
        self.publish(now, outcome, |reached| {
            reached.failures.clear();
            reached.dump_error = None;
            reached.full_passes += 1;
            reached.pruning_passes += u64::from(prune);
        });
        true
    }

    /// Applies what changed, and the retries that are due.
    async fn incremental_pass(&mut self, now: Instant, mut keys: BTreeSet<R::Key>) {
        for (key, failure) in &self.reached.borrow().failures {
            if failure.retry_at <= now {
                keys.insert(key.clone());
            }
        }
        let plan = plan_keys(&self.target, self.changes.snapshot(), &keys);
        let outcome = self.apply(plan).await;
        self.publish(now, outcome, |reached| {
            for key in &keys {
                reached.failures.remove(key);
            }
        });
    }

    async fn apply(&mut self, plan: Plan<R::Key, T::Value>) -> Outcome<R::Key> {
        if plan.is_empty() { Outcome::default() } else { self.target.apply(plan).await }
    }

    /// Publishes what a pass reached: `tried` takes the keys it was about out of the failures, then
    /// those that failed again come back.
    fn publish(
        &self,
        now: Instant,
        outcome: Outcome<R::Key>,
        tried: impl FnOnce(&mut Reached<R::Key>),
    ) {
        let table = self.changes.snapshot();
        let errors: Vec<(R::Key, String)> =
            outcome.failed.into_iter().map(|(key, error)| (key, chain(&*error))).collect();
        for (key, error) in &errors {
            tracing::warn!(table = table.name(), ?key, error, "reconciliation failed, will retry");
        }
        self.reached.send_modify(|reached| {
            let before = reached.failures.clone();
            tried(reached);
            for (key, error) in errors {
                let attempts = before.get(&key).map_or(0, |failure| failure.attempts) + 1;
                let retry_at = now + self.pace.backoff(attempts);
                reached.failures.insert(key, Failure { error, attempts, retry_at });
            }
            reached.processed = table.revision();
        });
    }

    /// The target could not be read: try again later; changes go on being applied meanwhile.
    fn dump_failed(&mut self, now: Instant, error: &(dyn Error + 'static)) {
        self.full_failures += 1;
        self.full_at = now + self.pace.backoff(self.full_failures);
        let error = chain(error);
        let table = self.changes.snapshot().name();
        tracing::warn!(table, error, "cannot read the target, will retry");
        self.reached.send_modify(|reached| reached.dump_error = Some(error));
    }
}

/// The plan that makes the keys `keys` of the target what `snapshot` says.
fn plan_keys<R: Row, T: Target<R>>(
    target: &T,
    snapshot: &Snapshot<R>,
    keys: &BTreeSet<R::Key>,
) -> Plan<R::Key, T::Value> {
    let mut plan = Plan::default();
    for key in keys {
        match snapshot.get(key).and_then(|row| target.desired(row)) {
            Some(value) => plan.upserts.push((key.clone(), value)),
            None => plan.deletes.push(key.clone()),
        }
    }
    plan
}

/// The plan that makes the whole target, which holds `actual`, what `snapshot` says. Keys that no
/// row of the table has are left alone unless `may_delete`.
fn plan_full<R: Row, T: Target<R>>(
    target: &T,
    snapshot: &Snapshot<R>,
    actual: Vec<(R::Key, T::Value)>,
    may_delete: impl Fn(&R::Key) -> bool,
) -> Plan<R::Key, T::Value> {
    let mut actual: BTreeMap<R::Key, T::Value> = actual.into_iter().collect();
    let mut plan = Plan::default();
    for (key, row) in snapshot.iter() {
        match (target.desired(row), actual.remove(key)) {
            (Some(desired), Some(present)) if desired == present => {}
            (Some(desired), _) => plan.upserts.push((key.clone(), desired)),
            (None, Some(_)) => plan.deletes.push(key.clone()),
            (None, None) => {}
        }
    }
    plan.deletes.extend(actual.into_keys().filter(|key| may_delete(key)));
    plan
}

/// An error and its causes in one line.
fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        // Some errors repeat their cause in their own words.
        let more = error.to_string();
        if !text.ends_with(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        cause = error.source();
    }
    text
}
