//! Removes the objects of what is gone.
//!
//! ```text
//!  every interval:  list ─► decide (pure) ─► mark or delete, each only as it was listed
//! ```
//!
//! Agents clean up behind themselves; what is collected here was left by agents and nodes that died. One
//! file per kind: [`identity`], [`endpoint`], [`node`], and [`unmanaged`] pods. Each deletes with preconditions, so that an
//! object which was made anew, or was taken into use meanwhile, stays.

pub mod endpoint;
pub mod identity;
pub mod node;
pub mod pace;
pub mod unmanaged;

use std::future::Future;
use std::time::Duration;

use kube::api::{DeleteParams, Preconditions};
use statedb::job::Group;
use tokio::time::MissedTickBehavior;

/// What removes the stale objects of one kind.
pub trait Collector: Send + 'static {
    /// Name of its job, and of its group of runs in the metrics.
    const NAME: &'static str;

    /// One round; what it did, in words.
    fn collect(&mut self) -> impl Future<Output = kube::Result<String>> + Send;
}

/// Starts the job of a collector: a round at once and then every `interval`; zero is never.
pub fn start<C: Collector>(jobs: &Group, interval: Duration, mut collector: C) {
    if interval.is_zero() {
        return;
    }
    jobs.spawn(C::NAME, move |job| async move {
        let mut ticks = tokio::time::interval(interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let round = async {
                ticks.tick().await;
                collector.collect().await
            };
            let done = tokio::select! {
                () = job.stop.cancelled() => return Ok::<(), kube::Error>(()),
                done = round => done,
            };
            match done {
                Ok(message) => job.ok(message),
                Err(error) => {
                    tracing::warn!(job = C::NAME, %error, "cannot collect garbage, will retry");
                    job.degraded(error);
                }
            }
        }
    });
}

/// Whether a write to an object that had to be as it was listed was made. That it has changed or
/// is gone is no error: the next round sees it as it then is.
fn unless_changed<T>(result: kube::Result<T>) -> kube::Result<bool> {
    match result {
        Ok(_) => Ok(true),
        Err(kube::Error::Api(status)) if status.code == 404 || status.code == 409 => Ok(false),
        Err(error) => Err(error),
    }
}

/// Deletes this very object, and, with a version, only as it was then.
fn only(uid: Option<String>, resource_version: Option<String>) -> DeleteParams {
    let preconditions = Some(Preconditions { uid, resource_version });
    DeleteParams { preconditions, ..DeleteParams::default() }
}
