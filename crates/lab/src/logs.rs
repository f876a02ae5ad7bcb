//! `kubectl logs`: what a container has printed.
//!
//! Containers write to their log files themselves. Each run has a file of its own; that of the run before is
//! kept. When a line was printed is noted [`times`] beside.

pub mod times;

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
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use serde_json::Value;
use tokio::io::AsyncReadExt as _;
use tokio::net::unix::pipe;

use self::times::Times;
use crate::apiserver::{ApiError, Body, Reply, full};
use crate::spec::Paths;
use crate::streams::{PodView, Streams, query};

/// Longest piece of a log that is sent at once.
const PIECE_LEN_MAX: usize = 64 << 10;
/// Longest time that somebody can look back, in seconds: a century.
const AGES_S: u64 = 100 * 365 * 86_400;

/// Answers `pods/log`.
pub async fn serve(streams: &Streams, pod: &PodView, text: &str) -> Result<Reply, ApiError> {
    let options = Options::parse(text, Timestamp::now())?;
    let container = pod.container(options.container.as_deref())?;
    let name = container["name"].as_str().unwrap_or_default();
    let path = streams.log(pod, name);
    let path = if options.previous { previous(&path) } else { path };
    let missing = || absent(pod, name, options.previous);
    let mut file = File::open(&path).map_err(|_missing| missing())?;
    let len = file.metadata().map_or(0, |meta| meta.len());
    let internal = |error: io::Error| ApiError::internal(format!("read the log: {error}"));
    let mut begin = match options.tail_lines {
        Some(lines) => tail_begin(&file, len, lines).map_err(internal)?,
        None => 0,
    };
    if let Some(since) = options.since {
        begin = begin.max(since_begin(&file, len, &path, since).map_err(internal)?);
    }
    file.seek(io::SeekFrom::Start(begin)).map_err(internal)?;
    let limit = options.limit_bytes.unwrap_or(u64::MAX);
    let mut stamps = options.timestamps.then(|| Stamps::new(&path, begin));
    let body = if options.follow && !options.previous {
        let cgroup = streams.cgroup(pod, name)?;
        following(Follower::of(file, &path, &cgroup).map_err(internal)?, stamps, limit)
    } else {
        let mut content = Vec::new();
        file.take(len - begin).read_to_end(&mut content).map_err(internal)?;
        let mut content = stamps.as_mut().map_or(content.clone(), |stamps| stamps.put(&content));
        content.truncate(usize::try_from(limit).unwrap_or(usize::MAX));
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
    since: Option<Timestamp>,
    timestamps: bool,
}

impl Options {
    fn parse(text: &str, now: Timestamp) -> Result<Self, ApiError> {
        let mut options = Self::default();
        for (name, value) in query(text) {
            let yes = matches!(value.as_str(), "true" | "1");
            let number = || {
                value.parse::<u64>().map_err(|_not_a_number| {
                    ApiError::bad_request(format!("{name}: {value:?} is not a number of 0 or more"))
                })
            };
            match name.as_str() {
                "container" => options.container = Some(value),
                "follow" => options.follow = yes,
                "previous" => options.previous = yes,
                "tailLines" => options.tail_lines = Some(number()?),
                "limitBytes" => options.limit_bytes = Some(number()?),
                "sinceSeconds" | "sinceTime" if options.since.is_some() => {
                    return Err(ApiError::bad_request(
                        "at most one of `sinceTime` or `sinceSeconds` may be specified",
                    ));
                }
                "sinceSeconds" => {
                    let ago = SignedDuration::from_secs(number()?.min(AGES_S) as i64);
                    options.since = Some(now - ago);
                }
                "sinceTime" => {
                    options.since = Some(value.parse().map_err(|error| {
                        ApiError::bad_request(format!("sinceTime: {value:?}: {error}"))
                    })?);
                }
                "timestamps" => options.timestamps = yes,
                _ => {}
            }
        }
        Ok(options)
    }
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
    let _ = fs::rename(times::beside(log), times::beside(&previous(log)));
}

/// Removes the logs of all runs.
pub fn remove(paths: &Paths, name: &str) {
    let log = paths.log(name);
    for path in [previous(&log), log] {
        let _ = fs::remove_file(times::beside(&path));
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

/// Where the lines begin that were printed since.
fn since_begin(file: &File, len: u64, log: &Path, since: Timestamp) -> io::Result<u64> {
    let place = Times::of(log).place(since).min(len);
    let mut buffer = vec![0; PIECE_LEN_MAX];
    // A line belongs to the time at which it began.
    let mut at = place.saturating_sub(1);
    while place > 0 && at < len {
        let piece = &mut buffer[..(len - at).min(PIECE_LEN_MAX as u64) as usize];
        file.read_exact_at(piece, at)?;
        if let Some(end) = piece.iter().position(|byte| *byte == b'\n') {
            return Ok(at + end as u64 + 1);
        }
        at += piece.len() as u64;
    }
    Ok(if place == 0 { 0 } else { len })
}

/// Puts the time at which it began before each line.
#[derive(Debug)]
struct Stamps {
    log: PathBuf,
    place: u64,
    in_line: bool,
}

impl Stamps {
    /// The first byte will be that at `place` of the log, where a line begins.
    fn new(log: &Path, place: u64) -> Self {
        Self { log: log.to_owned(), place, in_line: false }
    }

    fn put(&mut self, content: &[u8]) -> Vec<u8> {
        let times = Times::of(&self.log);
        let mut stamped = Vec::with_capacity(content.len() * 2);
        for line in content.split_inclusive(|byte| *byte == b'\n') {
            if !self.in_line {
                // What has just been printed is not noted yet.
                let time = times.at(self.place).unwrap_or_else(Timestamp::now);
                stamped.extend(time.strftime("%Y-%m-%dT%H:%M:%S%.9fZ ").to_string().as_bytes());
            }
            stamped.extend(line);
            self.in_line = !line.ends_with(b"\n");
            self.place += line.len() as u64;
        }
        stamped
    }
}

/// A body that goes on as long as the container does.
fn following(follower: Follower, stamps: Option<Stamps>, limit: u64) -> Body {
    let start = (follower, stamps, limit);
    let pieces = futures::stream::unfold(start, |(mut follower, mut stamps, left)| async move {
        if left == 0 {
            return None;
        }
        let mut data = follower.next().await?;
        if let Some(stamps) = &mut stamps {
            data = stamps.put(&data).into();
        }
        data.truncate(usize::try_from(left).unwrap_or(usize::MAX));
        let left = left - data.len() as u64;
        Some((Ok::<_, Infallible>(Frame::data(data)), (follower, stamps, left)))
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
    fn options_are_read() {
        let now = Timestamp::from_second(1_000).unwrap();
        let parse = |text: &str| Options::parse(text, now);
        let check = |text: &str, why: &str| {
            assert!(parse(text).unwrap_err().to_string().contains(why), "{text}");
        };
        check("tailLines=-1", "tailLines: \"-1\" is not a number");
        check("sinceTime=yesterday", "sinceTime: \"yesterday\"");
        check("sinceTime=1970-01-01T00:00:00Z&sinceSeconds=1", "at most one of");
        let options = parse("follow=true&tailLines=3&timestamps=false").unwrap();
        assert_eq!((options.follow, options.tail_lines), (true, Some(3)));
        let options = parse("sinceSeconds=60&timestamps=true").unwrap();
        assert_eq!((options.since, options.timestamps), (Timestamp::from_second(940).ok(), true));
        let options = parse("sinceTime=1970-01-01T00:01:00Z").unwrap();
        assert_eq!(options.since, Timestamp::from_second(60).ok());
        assert!(parse("sinceSeconds=99999999999999999").is_ok());
    }

    #[test]
    fn lines_belong_to_the_time_at_which_they_began() {
        let dir = std::env::temp_dir().join(format!("lab-since-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let log = dir.join("ns_pod_c.log");
        let text = "one\ntwo\nthree\n";
        fs::write(&log, text).unwrap();
        // In the second look "two" was not finished.
        let notes: Vec<u8> = [(4_u64, 10_i64), (6, 20), (14, 30)]
            .into_iter()
            .flat_map(|(len, second)| {
                [len.to_le_bytes(), (second * 1_000_000).to_le_bytes()].concat()
            })
            .collect();
        fs::write(times::beside(&log), notes).unwrap();
        let file = File::open(&log).unwrap();
        for (second, expected) in [
            (5, text),
            (10, text),
            (11, "two\nthree\n"),
            (20, "two\nthree\n"),
            (21, "three\n"),
            (31, ""),
        ] {
            let since = Timestamp::from_second(second).unwrap();
            let begin = since_begin(&file, text.len() as u64, &log, since).unwrap();
            assert_eq!(&text[begin as usize..], expected, "{second}");
        }
        let mut stamps = Stamps::new(&log, 4);
        let stamped = [stamps.put(b"tw"), stamps.put(b"o\nthree\n")].concat();
        assert_eq!(
            String::from_utf8(stamped).unwrap(),
            "1970-01-01T00:00:20.000000000Z two\n1970-01-01T00:00:30.000000000Z three\n"
        );
        fs::remove_dir_all(&dir).unwrap();
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
