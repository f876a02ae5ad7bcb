//! Carries the objects of one kind into a table, for ever.

use std::fmt::Debug;
use std::time::Duration;

use futures::StreamExt;
use kube::runtime::utils::Backoff;
use kube::runtime::watcher::{self, Event, watcher};
use kube::runtime::WatchStreamExt;
use kube::{Api, Resource};
use serde::de::DeserializeOwned;
use statedb::job::Job;
use statedb::{Initializer, Row, Writer};

/// Wait before the first attempt to reconnect; doubles up to [`RECONNECT_MAX`].
const RECONNECT_MIN: Duration = Duration::from_millis(100);
/// Longest wait: how late a node may learn that the API server is back.
const RECONNECT_MAX: Duration = Duration::from_secs(5);

/// Follows the objects of `api` until told to stop. `convert` may refuse an object, which then is
/// as if it did not exist. After a list the table is exactly what was listed.
pub async fn reflect<K, R>(
    job: Job,
    api: Api<K>,
    config: watcher::Config,
    writer: Writer<R>,
    complete: Initializer<R>,
    convert: impl Fn(&K) -> Option<R> + Send + 'static,
    key: impl Fn(&K) -> R::Key + Send + 'static,
) -> Result<(), String>
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
    R: Row,
{
    let mut events = watcher(api, config).backoff(Reconnect::default()).boxed();
    let mut listed = Vec::new();
    let mut complete = Some(complete);
    loop {
        let event = tokio::select! {
            () = job.stop.cancelled() => return Ok(()),
            event = events.next() => event,
        };
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
                tracing::warn!(error = %chain(&error), table = writer.table().snapshot().name(),
                    "Lost the API server; will reconnect");
                job.degraded(chain(&error));
            }
            None => return Err("the watch ended, which it never should".to_owned()),
        }
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
