//! Carries the objects of one kind into a table, for ever.

use std::fmt::Debug;
use std::time::Duration;

use futures::StreamExt;
use kube::runtime::WatchStreamExt;
use kube::runtime::utils::Backoff;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Resource};
use serde::de::DeserializeOwned;
use statedb::job::Job;
use statedb::{Initializer, Row, Writer};

use super::is_not_found;

/// Wait before the first attempt to reconnect; doubles up to [`RECONNECT_MAX`].
const RECONNECT_MIN: Duration = Duration::from_millis(100);
/// Longest wait: how late a node may learn that the API server is back.
const RECONNECT_MAX: Duration = Duration::from_secs(5);

/// Follows the objects of `api` until told to stop. `convert` may refuse an object, which then is
/// as if it did not exist. After a list the table is exactly what was listed. `complete` is told of the
/// first one.
pub async fn reflect<K, R>(
    job: Job,
    api: Api<K>,
    config: watcher::Config,
    writer: Writer<R>,
    complete: impl Into<Option<Initializer<R>>>,
    convert: impl Fn(&K) -> Option<R> + Send + 'static,
    key: impl Fn(&K) -> R::Key + Send + 'static,
) -> Result<(), String>
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
    R: Row,
{
    let mut events = watcher(api, config).backoff(Reconnect::default()).boxed();
    let mut listed = Vec::new();
    let mut complete = complete.into();
    let mut told: Option<String> = None;
    loop {
        let event = tokio::select! {
            () = job.stop.cancelled() => return Ok(()),
            event = events.next() => event,
        };
        if matches!(event, Some(Ok(_))) && told.take().is_some() {
            job.ok("following the API server again");
        }
        match event {
            Some(Ok(Event::Init)) => listed.clear(),
            Some(Ok(Event::InitApply(object))) => listed.extend(convert(&object)),
            Some(Ok(Event::InitDone)) => {
                job.ok(format_args!("listed {}", listed.len()));
                writer.replace(std::mem::take(&mut listed));
                if let Some(complete) = complete.take() {
                    complete.done();
                }
            }
            Some(Ok(Event::Apply(object))) => match convert(&object) {
                Some(row) => {
                    writer.upsert(row);
                }
                None => {
                    writer.delete(&key(&object));
                }
            },
            Some(Ok(Event::Delete(object))) => {
                writer.delete(&key(&object));
            }
            Some(Err(error)) => {
                let error = describe(&error);
                // Once per outage: attempts follow each other by the second.
                if told.as_ref() != Some(&error) {
                    tracing::warn!(
                        error,
                        table = writer.table().snapshot().name(),
                        "Cannot follow the API server; will go on trying"
                    );
                    job.degraded(&error);
                    told = Some(error);
                }
            }
            None => return Err("the watch ended, which it never should".to_owned()),
        }
    }
}

/// Why a watch failed, in words.
fn describe(error: &watcher::Error) -> String {
    use watcher::Error::{InitialListFailed, WatchFailed, WatchStartFailed};
    match error {
        InitialListFailed(cause) | WatchStartFailed(cause) if is_not_found(cause) => {
            "the API server does not know this kind of object yet; the operator installs it"
                .to_owned()
        }
        InitialListFailed(cause) | WatchStartFailed(cause) | WatchFailed(cause) => brief(cause),
        other => chain(other),
    }
}

/// What the API server said, or why it said nothing.
pub fn brief(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => format!("the API server answered: {}", status.message),
        other => chain(other),
    }
}

/// 100 ms, 200 ms, … 5 s; from the beginning after a success.
#[derive(Debug, Default)]
struct Reconnect {
    attempts: u32,
}

impl Iterator for Reconnect {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let wait = RECONNECT_MIN.saturating_mul(2u32.saturating_pow(self.attempts));
        self.attempts = self.attempts.saturating_add(1);
        Some(wait.min(RECONNECT_MAX))
    }
}

impl Backoff for Reconnect {
    fn reset(&mut self) {
        self.attempts = 0;
    }
}

/// An error and its causes in one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        // Libraries often repeat the cause in their own text.
        if !text.contains(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        cause = error.source();
    }
    text
}
