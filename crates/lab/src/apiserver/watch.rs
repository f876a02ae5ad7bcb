//! A watch: the changes of a collection, from some version on, that a selector lets through.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::api::{Api, Target};
use super::object::{Key, Object};
use super::selector::Selector;
use super::status::ApiError;
use super::store::{Change, Cursor, Event};

/// Events that are read from the history at once.
const BATCH_LEN_MAX: usize = 256;
/// How often a watch that asked for bookmarks gets one.
const BOOKMARK_INTERVAL: Duration = Duration::from_secs(60);

/// Where a watch begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Start {
    /// With all objects, as if they were just added.
    Now,
    /// After this version.
    After(u64),
    /// With all objects and a bookmark behind them: a list in the form of a watch.
    StreamingList,
}

#[derive(Clone, Debug)]
pub(super) struct WatchOptions {
    pub selector: Selector,
    pub start: Start,
    pub bookmarks: bool,
    /// `None`: until the reader goes.
    pub timeout: Option<Duration>,
}

/// What a watch says. The type's name goes first, the object after it.
#[derive(Clone, Debug)]
pub(super) enum Notice {
    Object(Change, std::sync::Arc<Object>),
    /// Everything up to this version has been told; `true`: the initial list is complete.
    Bookmark(u64, bool),
    /// The watch ends here.
    Error(ApiError),
}

/// An open watch.
pub(super) struct Watch {
    target: Target,
    options: WatchOptions,
    cursor: Cursor,
    pending: VecDeque<Notice>,
    ends: Option<Instant>,
    next_bookmark: Instant,
    over: bool,
}

impl Watch {
    pub(super) fn open(api: &Api, target: Target, options: WatchOptions) -> Self {
        let id = target.resource.id.clone();
        let mut pending = VecDeque::new();
        let version = match options.start {
            Start::After(version) => version,
            Start::Now | Start::StreamingList => {
                let (version, objects) = api.snapshot(&target);
                let from = Key::new(&target.namespace, "");
                for (_, object) in objects
                    .range(from..)
                    .take_while(|(key, _)| in_namespace(&target, &key.namespace))
                {
                    if options.selector.matches(object) {
                        pending.push_back(Notice::Object(Change::Added, object.clone()));
                    }
                }
                if options.start == Start::StreamingList {
                    pending.push_back(Notice::Bookmark(version, true));
                }
                version
            }
        };
        let cursor = api.store.watch(&id, version);
        let now = Instant::now();
        let ends = options.timeout.map(|timeout| now + timeout);
        let next_bookmark = now + BOOKMARK_INTERVAL;
        Self { target, options, cursor, pending, ends, next_bookmark, over: false }
    }

    /// The next things to tell; `None` when the watch is over.
    pub(super) async fn next(&mut self, api: &Api) -> Option<Vec<Notice>> {
        loop {
            if self.over {
                return None;
            }
            let mut notices: Vec<Notice> =
                self.pending.drain(..self.pending.len().min(BATCH_LEN_MAX)).collect();
            if notices.is_empty() {
                notices = self.read(api);
            }
            if !notices.is_empty() {
                return Some(notices);
            }
            let far = Instant::now() + Duration::from_secs(86_400);
            let bookmark = if self.options.bookmarks { self.next_bookmark } else { far };
            tokio::select! {
                () = self.cursor.changed() => {}
                () = tokio::time::sleep_until(bookmark) => {
                    self.next_bookmark = Instant::now() + BOOKMARK_INTERVAL;
                    return Some(vec![Notice::Bookmark(self.cursor.version, false)]);
                }
                () = tokio::time::sleep_until(self.ends.unwrap_or(far)), if self.ends.is_some() => {
                    self.over = true;
                    if self.options.bookmarks {
                        return Some(vec![Notice::Bookmark(self.cursor.version, false)]);
                    }
                }
            }
        }
    }

    fn read(&mut self, api: &Api) -> Vec<Notice> {
        let version = self.cursor.version;
        let Some(events) = api.store.read(&mut self.cursor, BATCH_LEN_MAX) else {
            self.over = true;
            let message =
                format!("too old resource version: {version} ({})", api.store.resource_version());
            return vec![Notice::Error(ApiError::expired(message))];
        };
        events.iter().filter_map(|event| self.judge(event)).collect()
    }

    /// What an event means to this watch: objects may enter or leave its selection.
    fn judge(&self, event: &Event) -> Option<Notice> {
        if !in_namespace(&self.target, &event.object.key.namespace) {
            return None;
        }
        let selector = &self.options.selector;
        let was = event.previous.as_ref().is_some_and(|object| selector.matches(object));
        let is = event.change != Change::Deleted && selector.matches(&event.object);
        let change = match (was, is) {
            (false, true) => Change::Added,
            (true, true) => Change::Modified,
            (true, false) => Change::Deleted,
            (false, false) => return None,
        };
        Some(Notice::Object(change, event.object.clone()))
    }
}

fn in_namespace(target: &Target, namespace: &str) -> bool {
    target.namespace.is_empty() || *namespace == *target.namespace
}

/// A line of a watch's response.
pub(super) fn line(change: Change, object: &Bytes, into: &mut Vec<u8>) {
    let kind: &[u8] = match change {
        Change::Added => b"ADDED",
        Change::Modified => b"MODIFIED",
        Change::Deleted => b"DELETED",
    };
    for part in [b"{\"type\":\"", kind, b"\",\"object\":", object, b"}\n"] {
        into.extend_from_slice(part);
    }
}

/// The line of anything that is not an object's change.
pub(super) fn special_line(kind: &str, object: &Value, into: &mut Vec<u8>) {
    into.extend_from_slice(json!({ "type": kind, "object": object }).to_string().as_bytes());
    into.push(b'\n');
}

/// The object of a bookmark.
pub(super) fn bookmark(api_version: &str, kind: &str, version: u64, initial_end: bool) -> Value {
    let mut metadata = json!({ "resourceVersion": version.to_string(), "creationTimestamp": null });
    if initial_end {
        metadata["annotations"] = json!({ "k8s.io/initial-events-end": "true" });
    }
    json!({ "kind": kind, "apiVersion": api_version, "metadata": metadata })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::apiserver::api::{DeleteOptions, WriteOptions};
    use crate::apiserver::patch::Patch;
    use serde_json::json;

    fn cluster() -> Api {
        let api = Api::new(String::new());
        for name in ["a", "b"] {
            let target = api.target("namespaces", "", "").unwrap();
            api.create(&target, json!({ "metadata": { "name": name } }), &WriteOptions::by("test"))
                .unwrap();
        }
        api
    }

    fn create(api: &Api, namespace: &str, name: &str, label: &str) {
        let target = api.target("secrets", namespace, "").unwrap();
        let value = json!({ "metadata": { "name": name, "labels": { "app": label } } });
        api.create(&target, value, &WriteOptions::by("test")).unwrap();
    }

    fn relabel(api: &Api, namespace: &str, name: &str, label: &str) {
        let target = api.target("secrets", namespace, name).unwrap();
        let patch = Patch::Merge(json!({ "metadata": { "labels": { "app": label } } }));
        api.patch(&target, &patch, &WriteOptions::by("test")).unwrap();
    }

    fn open(api: &Api, namespace: &str, labels: &str, start: Start) -> Watch {
        let target = api.target("secrets", namespace, "").unwrap();
        let selector = Selector::parse(labels, "", &[]).unwrap();
        Watch::open(
            api,
            target,
            WatchOptions {
                selector,
                start,
                bookmarks: true,
                timeout: Some(Duration::from_secs(3)),
            },
        )
    }

    /// What the watch has to say now, such as `+name ~name -name`.
    async fn told(watch: &mut Watch, api: &Api) -> String {
        let notices = watch.next(api).await.unwrap_or_default();
        let words = notices.iter().map(|notice| match notice {
            Notice::Object(Change::Added, object) => format!("+{}", object.key.name),
            Notice::Object(Change::Modified, object) => format!("~{}", object.key.name),
            Notice::Object(Change::Deleted, object) => format!("-{}", object.key.name),
            Notice::Bookmark(_, true) => "complete".into(),
            Notice::Bookmark(..) => "bookmark".into(),
            Notice::Error(error) => error.code().as_str().to_owned(),
        });
        words.collect::<Vec<_>>().join(" ")
    }

    #[tokio::test]
    async fn objects_enter_and_leave_a_selection() {
        let api = cluster();
        create(&api, "a", "one", "x");
        let mut watch = open(&api, "a", "app=x", Start::StreamingList);
        create(&api, "a", "two", "y");
        create(&api, "b", "other", "x");
        assert_eq!(told(&mut watch, &api).await, "+one complete");
        relabel(&api, "a", "two", "x");
        relabel(&api, "a", "one", "y");
        assert_eq!(told(&mut watch, &api).await, "+two -one");
        let target = api.target("secrets", "a", "two").unwrap();
        api.delete(&target, &DeleteOptions::default()).unwrap();
        assert_eq!(told(&mut watch, &api).await, "-two");
        // Nothing happens until its time is over.
        assert_eq!(told(&mut watch, &api).await, "bookmark");
        assert!(watch.next(&api).await.is_none());
    }

    #[tokio::test]
    async fn a_watch_goes_on_where_a_list_was() {
        let api = cluster();
        create(&api, "a", "before", "x");
        let version = api.store.resource_version();
        // Others' writes raise the version, and nothing of this resource is lost.
        let mut watch = open(&api, "", "", Start::After(version));
        create(&api, "b", "after", "x");
        assert_eq!(told(&mut watch, &api).await, "+after");
        let mut again = open(&api, "", "", Start::After(version));
        assert_eq!(told(&mut again, &api).await, "+after");
    }

    #[tokio::test]
    async fn a_watch_that_fell_behind_is_told_so() {
        let api = cluster();
        create(&api, "a", "one", "x");
        let mut watch = open(&api, "a", "", Start::After(api.store.resource_version()));
        for n in 0..10_000 {
            relabel(&api, "a", "one", &format!("n{n}"));
        }
        assert_eq!(told(&mut watch, &api).await, "410");
        assert!(watch.next(&api).await.is_none());
    }
}
