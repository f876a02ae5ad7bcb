//! `kubectl logs`: what a container has printed.
//!
//! Containers write to their log files themselves. Each run has a file of its own; that of the run before is
//! kept. When a line was written is not known.

use std::convert::Infallible;
use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use http::{Response, header};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Frame;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use serde_json::Value;
use tokio::io::AsyncReadExt as _;
use tokio::net::unix::pipe;

use crate::apiserver::{ApiError, Body, Reply, full};
use crate::spec::Paths;
use crate::streams::{PodView, Streams, query};

/// Longest piece of a log that is sent at once.
const PIECE_LEN_MAX: usize = 64 << 10;

/// Answers `pods/log`.
pub async fn serve(streams: &Streams, pod: &PodView, text: &str) -> Result<Reply, ApiError> {
    let options = Options::parse(text)?;
    let container = pod.container(options.container.as_deref())?;
    let name = container["name"].as_str().unwrap_or_default();
    let path = streams.log(pod, name);
    let path = if options.previous { previous(&path) } else { path };
    let missing = || absent(pod, name, options.previous);
    let mut file = File::open(&path).map_err(|_missing| missing())?;
    let len = file.metadata().map_or(0, |meta| meta.len());
    let internal = |error: io::Error| ApiError::internal(format!("read the log: {error}"));
    let begin = match options.tail_lines {
        Some(lines) => tail_begin(&file, len, lines).map_err(internal)?,
        None => 0,
    };
    file.seek(io::SeekFrom::Start(begin)).map_err(internal)?;
    let limit = options.limit_bytes.unwrap_or(u64::MAX);
    let body = if options.follow && !options.previous {
        let cgroup = streams.cgroup(pod, name)?;
        following(Follower::of(file, &path, &cgroup).map_err(internal)?, limit)
    } else {
        let mut content = Vec::new();
        file.take((len - begin).min(limit)).read_to_end(&mut content).map_err(internal)?;
        full(content)
    };
    let reply = Response::builder().header(header::CONTENT_TYPE, "text/plain").body(body);
    reply.map_err(|error| ApiError::internal(error.to_string()))
}

impl Streams {
    /// The log of a container's latest run.
    pub fn log(&self, pod: &PodView, container: &str) -> PathBuf {
        let (namespace, name) = (pod.text("/metadata/namespace"), pod.text("/metadata/name"));
        self.paths.log(&log_name(namespace, name, container))
    }
}

/// Why there is no log.
fn absent(pod: &PodView, container: &str, previous: bool) -> ApiError {
    let name = pod.text("/metadata/name");
    if previous {
        return ApiError::bad_request(format!(
            "previous terminated container \"{container}\" in pod \"{name}\" not found"
        ));
    }
    let lists = ["/status/containerStatuses", "/status/initContainerStatuses"];
    let lists = lists.map(|list| pod.0.pointer(list)).into_iter().flatten();
    let mut statuses = lists.filter_map(Value::as_array).flatten();
    let status = statuses.find(|status| status["name"] == container);
    let reason = status.and_then(|status| status["state"]["waiting"]["reason"].as_str());
    ApiError::bad_request(format!(
        "container \"{container}\" in pod \"{name}\" is waiting to start: {}",
        reason.unwrap_or("ContainerCreating")
    ))
}

/// The parameters of a request for a log.
#[derive(Debug, Default, PartialEq, Eq)]
struct Options {
    container: Option<String>,
    follow: bool,
    previous: bool,
    tail_lines: Option<u64>,
    limit_bytes: Option<u64>,
}

impl Options {
    fn parse(text: &str) -> Result<Self, ApiError> {
        let mut options = Self::default();
        for (name, value) in query(text) {
            let yes = matches!(value.as_str(), "true" | "1");
            let number = || {
                value.parse().map_err(|_not_a_number| {
                    ApiError::bad_request(format!("{name}: {value:?} is not a number of 0 or more"))
                })
            };
            match name.as_str() {
                "container" => options.container = Some(value),
                "follow" => options.follow = yes,
                "previous" => options.previous = yes,
                "tailLines" => options.tail_lines = Some(number()?),
                "limitBytes" => options.limit_bytes = Some(number()?),
                "sinceSeconds" | "sinceTime" => return Err(timeless("since")),
                "timestamps" if yes => return Err(timeless("timestamps")),
                _ => {}
            }
        }
        Ok(options)
    }
}

fn timeless(option: &str) -> ApiError {
    ApiError::not_implemented(format!(
        "the lab does not know when a line was printed: leave out --{option}, or use --tail"
    ))
}

/// Name of a container's log file.
pub fn log_name(namespace: &str, pod: &str, container: &str) -> String {
    format!("{namespace}_{pod}_{container}")
}

/// The log of the run before.
fn previous(log: &Path) -> PathBuf {
    log.with_extension("previous.log")
}

/// Makes room for the log of a new run.
pub fn rotate(log: &Path) {
    // Before the first run there is none.
    let _ = fs::rename(log, previous(log));
}

/// Removes the logs of all runs.
pub fn remove(paths: &Paths, name: &str) {
    let log = paths.log(name);
    for path in [previous(&log), log] {
        let _ = fs::remove_file(path);
    }
}

/// The last lines of a log, but no more than these bytes.
pub fn end(log: &Path, lines: u64, bytes: u64) -> io::Result<Vec<u8>> {
    let mut file = File::open(log)?;
    let len = file.metadata()?.len();
    let begin = tail_begin(&file, len, lines)?.max(len.saturating_sub(bytes));
    file.seek(io::SeekFrom::Start(begin))?;
    let mut content = Vec::new();
    file.take(bytes).read_to_end(&mut content)?;
    Ok(content)
}

/// Where the last lines of a file begin.
fn tail_begin(file: &File, len: u64, lines: u64) -> io::Result<u64> {
    if lines == 0 {
        return Ok(len);
    }
    let mut buffer = vec![0; PIECE_LEN_MAX];
    let (mut end, mut breaks) = (len, 0);
    while end > 0 {
        let begin = end.saturating_sub(PIECE_LEN_MAX as u64);
        let piece = &mut buffer[..(end - begin) as usize];
        file.read_exact_at(piece, begin)?;
        for (at, byte) in piece.iter().enumerate().rev() {
            let position = begin + at as u64;
            // The break at the very end belongs to the last line.
            if *byte == b'\n' && position + 1 < len {
                breaks += 1;
                if breaks == lines {
                    return Ok(position + 1);
                }
            }
        }
        end = begin;
    }
    Ok(0)
}

/// A body that goes on as long as the container does.
fn following(follower: Follower, limit: u64) -> Body {
    let pieces = futures::stream::unfold((follower, limit), |(mut follower, left)| async move {
        if left == 0 {
            return None;
        }
        let mut data = follower.next().await?;
        data.truncate(usize::try_from(left).unwrap_or(usize::MAX));
        let left = left - data.len() as u64;
        Some((Ok::<_, Infallible>(Frame::data(data)), (follower, left)))
    });
    StreamBody::new(pieces).boxed_unsync()
}

/// Reads what a container prints until it has ended.
#[derive(Debug)]
pub struct Follower {
    log: File,
    /// Whether processes are in the container's cgroup. Held open: a later run of the container
    /// has another cgroup at the same path.
    events: Option<File>,
    /// Something has changed. The runtime can wait for it as for a pipe.
    changes: pipe::Receiver,
}

impl Follower {
    /// Follows a log, from its end if what is there already is not wanted.
    pub fn open(path: &Path, cgroup: &Path, from_end: bool) -> io::Result<Self> {
        let mut log = File::open(path)?;
        if from_end {
            log.seek(io::SeekFrom::End(0))?;
        }
        Self::of(log, path, cgroup)
    }

    fn of(log: File, path: &Path, cgroup: &Path) -> io::Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
        let flags = AddWatchFlags::IN_MODIFY | AddWatchFlags::IN_DELETE_SELF;
        inotify.add_watch(path, flags)?;
        let path = cgroup.join("cgroup.events");
        // One that is gone has ended.
        let events = File::open(&path).ok().filter(|_| inotify.add_watch(&path, flags).is_ok());
        let changes = pipe::Receiver::from_owned_fd_unchecked(OwnedFd::from(inotify))?;
        Ok(Self { log, events, changes })
    }

    /// What has been printed since; `None` when the container has ended and everything is read.
    pub async fn next(&mut self) -> Option<Bytes> {
        let mut buffer = vec![0; PIECE_LEN_MAX];
        loop {
            // Asked before reading: what is printed last is there when the answer is yes.
            let ended = self.ended();
            match self.log.read(&mut buffer) {
                Ok(0) if ended => return None,
                Ok(0) => {}
                Ok(len) => {
                    buffer.truncate(len);
                    return Some(buffer.into());
                }
                Err(error) => {
                    tracing::warn!(%error, "read a log");
                    return None;
                }
            }
            // Which of the two has changed does not matter, both are looked at.
            if self.changes.read(&mut buffer).await.ok()? == 0 {
                return None;
            }
        }
    }

    fn ended(&self) -> bool {
        let mut text = [0; 256];
        let Some(events) = &self.events else { return true };
        // The file of a removed cgroup cannot be read.
        events.read_at(&mut text, 0).map_or(true, |len| !is_populated(&text[..len]))
    }
}

fn is_populated(events: &[u8]) -> bool {
    events.split(|byte| *byte == b'\n').any(|line| line == b"populated 1")
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn file(content: &[u8]) -> File {
        let mut file = crate::place::memory_file("log", content).unwrap();
        file.flush().unwrap();
        file
    }

    #[test]
    fn the_last_lines() {
        let check = |text: &str, lines, expected: &str| {
            let begin = tail_begin(&file(text.as_bytes()), text.len() as u64, lines).unwrap();
            assert_eq!(&text[begin as usize..], expected, "{lines} of {text:?}");
        };
        for (lines, expected) in
            [(0, ""), (1, "c\n"), (2, "b\nc\n"), (3, "a\nb\nc\n"), (9, "a\nb\nc\n")]
        {
            check("a\nb\nc\n", lines, expected);
        }
        check("a\nb", 1, "b");
        check("", 1, "");
        let long = "x".repeat(PIECE_LEN_MAX);
        check(&format!("a\n{long}\nb\n"), 2, &format!("{long}\nb\n"));
    }

    #[test]
    fn what_cannot_be_told_is_refused() {
        let check = |text: &str, why: &str| {
            assert!(Options::parse(text).unwrap_err().to_string().contains(why), "{text}");
        };
        check("sinceSeconds=5", "does not know when a line was printed");
        check("timestamps=true", "--timestamps");
        check("tailLines=-1", "tailLines: \"-1\" is not a number");
        let options = Options::parse("follow=true&tailLines=3&timestamps=false").unwrap();
        assert_eq!((options.follow, options.tail_lines), (true, Some(3)));
    }

    #[tokio::test]
    async fn a_log_is_followed_to_the_end_of_its_container() {
        let dir = std::env::temp_dir().join(format!("lab-follow-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let (path, events) = (dir.join("log"), dir.join("cgroup.events"));
        fs::write(&events, "populated 1\nfrozen 0\n").unwrap();
        fs::write(&path, "before").unwrap();
        let mut log = File::options().append(true).open(&path).unwrap();
        let mut follower = Follower::open(&path, &dir, false).unwrap();
        let mut attached = Follower::open(&path, &dir, true).unwrap();
        assert_eq!(follower.next().await.unwrap(), "before");
        let writer = tokio::spawn(async move { log.write_all(b"after").map(|()| log) });
        assert_eq!(follower.next().await.unwrap(), "after");
        assert_eq!(attached.next().await.unwrap(), "after");
        writer.await.unwrap().unwrap().write_all(b"last").unwrap();
        fs::write(&events, "populated 0\nfrozen 0\n").unwrap();
        assert_eq!(follower.next().await.unwrap(), "last");
        assert_eq!(follower.next().await, None);
        fs::remove_dir_all(&dir).unwrap();
    }
}
