//! Tasks with names, an owner who joins them, and a line of health each.

use std::fmt::Display;
use std::future::Future;
use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::table::{Row, Table, Writer};

/// How a job is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// It runs and has reported nothing yet.
    Running,
    /// Its last piece of work succeeded.
    Ok,
    /// Its last piece of work failed; it goes on.
    Degraded,
    /// It ended as intended.
    Stopped,
    /// It ended by an error or a panic.
    Failed,
}

/// The health line of a job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Health {
    /// Name of the job, unique in its group.
    pub name: String,
    /// How it is.
    pub state: State,
    /// What it last said.
    pub message: String,
    /// Reports of success so far.
    pub successes: u64,
    /// Reports of failure so far.
    pub failures: u64,
    /// Failures since the last success.
    pub failures_in_a_row: u64,
}

impl Row for Health {
    type Key = String;
    const HEADERS: &'static [&'static str] = &["JOB", "STATE", "OK", "FAILED", "MESSAGE"];

    fn key(&self) -> String {
        self.name.clone()
    }

    fn cells(&self) -> Vec<String> {
        vec![
            self.name.clone(),
            format!("{:?}", self.state),
            self.successes.to_string(),
            self.failures.to_string(),
            self.message.clone(),
        ]
    }
}

/// What a job is given: the signal to stop and a way to say how it is.
#[derive(Clone, Debug)]
pub struct Job {
    /// Cancelled when the group shuts down.
    pub stop: CancellationToken,
    name: String,
    health: Writer<Health>,
}

impl Job {
    /// Reports that a piece of work succeeded.
    pub fn ok(&self, message: impl Display) {
        self.report(State::Ok, message.to_string());
    }

    /// Reports that a piece of work failed and will be tried again.
    pub fn degraded(&self, message: impl Display) {
        self.report(State::Degraded, message.to_string());
    }

    fn report(&self, state: State, message: String) {
        self.health.commit(|txn| {
            txn.modify(&self.name, |health| {
                match state {
                    State::Ok => {
                        health.successes += 1;
                        health.failures_in_a_row = 0;
                    }
                    State::Degraded | State::Failed => {
                        health.failures += 1;
                        health.failures_in_a_row += 1;
                    }
                    State::Running | State::Stopped => {}
                }
                health.state = state;
                health.message = message;
            });
        });
    }
}

/// A job has ended by an error or a panic.
#[derive(Debug, thiserror::Error)]
#[error("job {name} failed: {message}")]
pub struct JobFailed {
    /// Name of the job.
    pub name: String,
    /// Its error, or that it panicked.
    pub message: String,
}

/// The owner of jobs; cheap to clone.
#[derive(Clone, Debug)]
pub struct Group {
    stop: CancellationToken,
    tasks: TaskTracker,
    health: Writer<Health>,
}

impl Default for Group {
    fn default() -> Self {
        Self::new()
    }
}

impl Group {
    /// A group without jobs.
    pub fn new() -> Self {
        let (_, health) = Table::new("health");
        Self { stop: CancellationToken::new(), tasks: TaskTracker::new(), health }
    }

    /// A group within this one: it stops with it and shares its health lines, and can be shut down,
    /// and joined, alone.
    #[must_use]
    pub fn child(&self) -> Self {
        let (stop, tasks) = (self.stop.child_token(), TaskTracker::new());
        Self { stop, tasks, health: self.health.clone() }
    }

    /// The health lines of all jobs; those of jobs that have ended stay.
    pub fn health(&self) -> &Table<Health> {
        self.health.table()
    }

    /// Cancelled when the group shuts down.
    pub fn stop_token(&self) -> &CancellationToken {
        &self.stop
    }

    /// Starts a job. It ends when `run` does, which it should soon after `stop` is cancelled.
    ///
    /// Two jobs of the same name share a health line: let the name say which instance it is.
    pub fn spawn<F, E>(&self, name: impl Into<String>, run: impl FnOnce(Job) -> F)
    where
        F: Future<Output = Result<(), E>> + Send + 'static,
        E: Display + Send + 'static,
    {
        let name = name.into();
        self.health.upsert(Health {
            name: name.clone(),
            state: State::Running,
            message: String::new(),
            successes: 0,
            failures: 0,
            failures_in_a_row: 0,
        });
        let job = Job { stop: self.stop.clone(), name, health: self.health.clone() };
        let work = run(job.clone());
        self.tasks.spawn(async move {
            // A task of its own, so that a panic ends in the health line and not in silence.
            match tokio::spawn(work).await {
                Ok(Ok(())) => job.report(State::Stopped, String::new()),
                Ok(Err(error)) => job.report(State::Failed, error.to_string()),
                Err(panic) => job.report(State::Failed, panic.to_string()),
            }
        });
    }

    /// Starts a job that does a piece of work at once and then every `period`; a failing one goes on.
    pub fn every<F, E>(
        &self,
        name: impl Into<String>,
        period: Duration,
        mut work: impl FnMut() -> F + Send + 'static,
    ) where
        F: Future<Output = Result<(), E>> + Send + 'static,
        E: Display + Send + 'static,
    {
        self.spawn(name, |job| async move {
            let mut ticks = interval(period);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                tokio::select! {
                    () = job.stop.cancelled() => return Ok::<(), String>(()),
                    _ = ticks.tick() => {}
                }
                match work().await {
                    Ok(()) => job.ok(""),
                    Err(error) => job.degraded(error),
                }
            }
        });
    }

    /// Waits until a job fails, or until the group is told to shut down.
    pub async fn supervise(&self) -> Result<(), JobFailed> {
        let failed = |health: &Health| health.state == State::Failed;
        let any_failed = self.health().wait_for(|jobs| jobs.rows().any(|job| failed(job)));
        tokio::select! {
            () = self.stop.cancelled() => Ok(()),
            jobs = any_failed => {
                let job = jobs.rows().find(|job| failed(job)).expect("that was waited for");
                Err(JobFailed { name: job.name.clone(), message: job.message.clone() })
            }
        }
    }

    /// Tells every job to stop and joins them. On `deadline` it names the jobs that still run.
    pub async fn shutdown(&self, deadline: Duration) -> Result<(), StillRunning> {
        self.stop.cancel();
        self.tasks.close();
        if tokio::time::timeout(deadline, self.tasks.wait()).await.is_ok() {
            return Ok(());
        }
        let ended = |health: &Health| matches!(health.state, State::Stopped | State::Failed);
        let jobs = self.health().snapshot();
        let names = jobs.rows().filter(|job| !ended(job)).map(|job| job.name.clone()).collect();
        Err(StillRunning { names })
    }
}

/// Jobs that did not stop in time.
#[derive(Debug, thiserror::Error)]
#[error("jobs still running: {}", names.join(", "))]
pub struct StillRunning {
    /// Their names.
    pub names: Vec<String>,
}
