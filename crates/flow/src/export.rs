//! Flows into files: one JSON object per line, as `hubble observe -o jsonpb` prints them.
//!
//! A file that has become too large is put aside (`events.log` → `events-<time>.log`), and the
//! oldest of those put aside are removed.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use api::hubble::flow::{Flow, FlowFilter, LostEvent, LostEventSource};
use api::hubble::observer::{ExportEvent, export_event::ResponseTypes};
use api::hubble::{from_json, to_json};

use crate::filter::Selection;
use crate::mask::Mask;
use crate::message::{NodeInfo, timestamp};
use crate::observer::{Observer, now_ns};
use crate::ring::Record;

/// Records that are written before others get a turn.
const BATCH_LEN: usize = 512;
/// Where flows go to standard output.
const STDOUT: &str = "stdout";

/// What is written where.
#[derive(Debug)]
pub struct Export {
    sink: Sink,
    selection: Selection,
    mask: Option<Mask>,
}

/// How a file grows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rotation {
    /// Size after which it is put aside.
    pub len_max: u64,
    /// Files put aside that are kept.
    pub backups_max: usize,
}

#[derive(Debug)]
enum Sink {
    Stdout,
    File { path: PathBuf, file: File, len: u64, rotation: Rotation },
}

/// An export cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// Of a filter.
    #[error("filter {text:?}: {reason}")]
    Filter {
        /// The filter as it was given.
        text: String,
        /// What is wrong.
        reason: String,
    },
    /// Of the mask.
    #[error(transparent)]
    Mask(#[from] crate::mask::MaskError),
    /// Of the file.
    #[error("cannot write to {}", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Filters as JSON, one object after the other.
pub fn filters(text: &str) -> Result<Vec<FlowFilter>, ExportError> {
    let error = |reason: String| ExportError::Filter { text: text.to_owned(), reason };
    serde_json::Deserializer::from_str(text)
        .into_iter::<serde_json::Value>()
        .map(|value| {
            let value = value.map_err(|e| error(e.to_string()))?;
            from_json(&value.to_string()).map_err(|e| error(e.source.to_string()))
        })
        .collect()
}

impl Export {
    /// Writes what matches to `path`, which may be `stdout`.
    pub fn new(
        path: &str,
        rotation: Rotation,
        allow: &[FlowFilter],
        deny: &[FlowFilter],
        mask: &[String],
    ) -> Result<Self, ExportError> {
        let selection = Selection::new(allow, deny).map_err(|error| ExportError::Filter {
            text: error.value.clone(),
            reason: error.to_string(),
        })?;
        let mask = Mask::new(mask.iter().map(String::as_str))?;
        let sink = match path {
            STDOUT => Sink::Stdout,
            path => {
                let path = PathBuf::from(path);
                let open = || ExportError::Open {
                    path: path.clone(),
                    source: io::Error::other("the file has no directory"),
                };
                std::fs::create_dir_all(path.parent().ok_or_else(open)?)
                    .and_then(|()| append(&path))
                    .and_then(|file| Ok((file.metadata()?.len(), file)))
                    .map(|(len, file)| Sink::File { path: path.clone(), file, len, rotation })
                    .map_err(|source| ExportError::Open { path: path.clone(), source })?
            }
        };
        Ok(Self { sink, selection, mask })
    }

    /// Writes what comes from now on, for as long as it is awaited. An error of the file ends it.
    pub async fn run(mut self, observer: Arc<Observer>) -> io::Result<()> {
        let mut head = observer.ring.head();
        let mut next = *head.borrow();
        loop {
            head.borrow_and_update();
            let batch = observer.ring.read(next, BATCH_LEN);
            next = batch.next;
            let mut lines = String::new();
            if batch.lost > 0 {
                lines += &line(&observer.node, lost(batch.lost), now_ns());
            }
            for record in &batch.records {
                if let Some((body, time_ns)) = self.body(record, &observer.node) {
                    lines += &line(&observer.node, body, time_ns);
                }
            }
            if !lines.is_empty() {
                self.sink.write(&lines)?;
            }
            if batch.records.is_empty() {
                // The observer lives as long as we do.
                let _ = head.changed().await;
            } else {
                tokio::task::yield_now().await;
            }
        }
    }

    fn body(&self, record: &Record, node: &NodeInfo) -> Option<(ResponseTypes, u64)> {
        match record {
            Record::Flow(row) => {
                self.selection.matches_row(row, node).then_some(())?;
                let whole = row.to_flow(node);
                let flow: Flow = match &self.mask {
                    Some(mask) => mask.apply(&whole),
                    None => whole,
                };
                Some((ResponseTypes::Flow(flow), row.time_ns))
            }
            Record::Lost { time_ns, event } => Some((ResponseTypes::LostEvents(*event), *time_ns)),
            Record::Agent { .. } | Record::Debug { .. } => None,
        }
    }
}

fn lost(count: u64) -> ResponseTypes {
    ResponseTypes::LostEvents(LostEvent {
        source: LostEventSource::HubbleRingBuffer.into(),
        num_events_lost: count,
        ..LostEvent::default()
    })
}

fn line(node: &NodeInfo, body: ResponseTypes, time_ns: u64) -> String {
    let event = ExportEvent {
        response_types: Some(body),
        node_name: node.name.clone(),
        time: Some(timestamp(time_ns)),
    };
    to_json(&event) + "\n"
}

fn append(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).open(path)
}

impl Sink {
    fn write(&mut self, lines: &str) -> io::Result<()> {
        match self {
            Self::Stdout => io::stdout().lock().write_all(lines.as_bytes()),
            Self::File { path, file, len, rotation } => {
                if *len > 0 && *len + lines.len() as u64 > rotation.len_max {
                    std::fs::rename(&*path, aside(path))?;
                    remove_oldest(path, rotation.backups_max)?;
                    *file = append(path)?;
                    *len = 0;
                }
                *len += lines.len() as u64;
                file.write_all(lines.as_bytes())
            }
        }
    }
}

fn parts(path: &Path) -> (String, String) {
    let text = |part: Option<&std::ffi::OsStr>| {
        part.map(|part| part.to_string_lossy().into_owned()).unwrap_or_default()
    };
    let ending = path.extension().map(|ending| format!(".{}", ending.to_string_lossy()));
    (text(path.file_stem()), ending.unwrap_or_default())
}

/// The name of a file put aside now. Nanoseconds, all of one length, sort as text.
fn aside(path: &Path) -> PathBuf {
    let (stem, ending) = parts(path);
    path.with_file_name(format!("{stem}-{:020}{ending}", now_ns()))
}

fn remove_oldest(path: &Path, keep: usize) -> io::Result<()> {
    let (stem, ending) = parts(path);
    let is_ours = |name: &str| {
        let middle = name.strip_prefix(&stem).and_then(|rest| rest.strip_suffix(&ending));
        let digits = middle.and_then(|middle| middle.strip_prefix('-'));
        digits.is_some_and(|d| d.len() == 20 && d.bytes().all(|byte| byte.is_ascii_digit()))
    };
    let directory = path.parent().unwrap_or(Path::new("."));
    let mut aside: Vec<PathBuf> = std::fs::read_dir(directory)?
        .flatten()
        .filter(|entry| entry.file_name().to_str().is_some_and(is_ours))
        .map(|entry| entry.path())
        .collect();
    aside.sort();
    let surplus = aside.len().saturating_sub(keep);
    aside.iter().take(surplus).try_for_each(std::fs::remove_file)
}
