//! Carries the objects of one kind into a table, and reads lists page by page.

use std::fmt::Debug;
use std::pin::pin;

use futures::StreamExt;
use kube::api::ListParams;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Resource};
use serde::de::DeserializeOwned;
use statedb::job::Job;
use statedb::{Initializer, Row, Writer};

/// Objects of a list that are in memory at once.
const PAGE_LEN_MAX: u32 = 500;

/// Keeps the table equal to the objects until told to stop. After a list it is exactly what was
/// listed.
pub async fn reflect<K, R>(
    api: Api<K>,
    config: watcher::Config,
    writer: Writer<R>,
    initializer: Initializer<R>,
    row: impl Fn(&K) -> R + Send + 'static,
    job: Job,
) -> Result<(), String>
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
    R: Row,
{
    let mut initializer = Some(initializer);
    let mut listed = Vec::new();
    let events = watcher(api, config).default_backoff();
    let mut events = pin!(events.take_until(job.stop.clone().cancelled_owned()));
    while let Some(event) = events.next().await {
        match event {
            Err(error) => job.degraded(error),
            Ok(watcher::Event::Init) => listed.clear(),
            Ok(watcher::Event::InitApply(object)) => listed.push(row(&object)),
            Ok(watcher::Event::InitDone) => {
                writer.replace(listed.drain(..));
                initializer.take().into_iter().for_each(Initializer::done);
                job.ok("");
            }
            Ok(watcher::Event::Apply(object)) => {
                writer.upsert(row(&object));
                job.ok("");
            }
            Ok(watcher::Event::Delete(object)) => {
                writer.delete(&row(&object).key());
                job.ok("");
            }
        }
    }
    Ok(())
}

/// What `keep` makes of every object that exists now. A list that takes longer than the server
/// remembers is begun anew.
pub async fn list<K, T>(api: &Api<K>, keep: impl Fn(K) -> Option<T>) -> kube::Result<Vec<T>>
where
    K: Clone + DeserializeOwned + Debug,
{
    let first = ListParams::default().limit(PAGE_LEN_MAX);
    let mut params = first.clone();
    let mut kept = Vec::new();
    loop {
        let page = match api.list(&params).await {
            Err(kube::Error::Api(status)) if status.code == 410 && params != first => {
                kept.clear();
                params = first.clone();
                continue;
            }
            page => page?,
        };
        kept.extend(page.items.into_iter().filter_map(&keep));
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => params = first.clone().continue_token(&token),
            None => return Ok(kept),
        }
    }
}
