//! When what a container has printed was printed.
//!
//! Containers write to their log files themselves, so that they need nobody to go on. Somebody who watches the files
//! notes how long each was when: lines before that length were printed before that time.
//!
//! ```text
//!   web.log     "one\ntwo\nthree\n"        web.times   (8, 12:00:01.5) (14, 12:00:03.2)
//! ```

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio::io::AsyncReadExt as _;
use tokio::net::unix::pipe;
use tracing::warn;

/// How long changes are collected: a log that grows all the time is noted as often as this.
const PAUSE: Duration = Duration::from_millis(2);
/// Length of an entry: two numbers.
const ENTRY_LEN: usize = 16;
/// Length of the fixed part of what inotify tells.
const EVENT_LEN: usize = 16;

/// When a log had which length, in order.
#[derive(Debug, Default)]
pub(super) struct Times(Vec<(u64, Timestamp)>);

impl Times {
    /// What is noted about a log; nothing, if nobody has watched it.
    pub(super) fn of(log: &Path) -> Self {
        let content = fs::read(beside(log)).unwrap_or_default();
        Self(content.chunks_exact(ENTRY_LEN).filter_map(entry).collect())
    }

    /// When the byte at this place was there; `None` for what is not noted yet.
    pub(super) fn at(&self, place: u64) -> Option<Timestamp> {
        let index = self.0.partition_point(|(len, _)| *len <= place);
        self.0.get(index).map(|(_, time)| *time)
    }

    /// The place before which everything is older than this.
    pub(super) fn place(&self, since: Timestamp) -> u64 {
        let index = self.0.partition_point(|(_, time)| *time < since);
        index.checked_sub(1).map_or(0, |before| self.0[before].0)
    }
}

fn entry(bytes: &[u8]) -> Option<(u64, Timestamp)> {
    let (len, time) = bytes.split_at(ENTRY_LEN / 2);
    let time = i64::from_le_bytes(time.try_into().ok()?);
    Some((u64::from_le_bytes(len.try_into().ok()?), Timestamp::from_microsecond(time).ok()?))
}

/// The notes about a log.
pub(super) fn beside(log: &Path) -> PathBuf {
    log.with_extension("times")
}

/// Notes when the logs of containers in a directory grow, for ever.
pub async fn keep(dir: PathBuf) {
    if let Err(error) = try_keep(&dir).await {
        warn!("nobody notes when containers print: watch {}: {error}", dir.display());
    }
}

async fn try_keep(dir: &Path) -> io::Result<()> {
    let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
    inotify.add_watch(dir, AddWatchFlags::IN_MODIFY)?;
    let mut changes = pipe::Receiver::from_owned_fd_unchecked(OwnedFd::from(inotify))?;
    // What was printed while nobody watched was there at the latest when the file was last written.
    for entry in fs::read_dir(dir)?.flatten() {
        let log = entry.path();
        let written = fs::metadata(&log).and_then(|meta| meta.modified()).ok();
        let written = written.and_then(|time| Timestamp::try_from(time).ok());
        if let (Some(written), true) = (written, is_container_log(&log)) {
            note(&log, written);
        }
    }
    let mut buffer = vec![0; 64 << 10];
    loop {
        let len = changes.read(&mut buffer).await?;
        if len == 0 {
            return Ok(());
        }
        let now = Timestamp::now();
        let mut names = names(&buffer[..len]);
        names.sort_unstable();
        names.dedup();
        for log in names.into_iter().map(|name| dir.join(name)).filter(|log| is_container_log(log))
        {
            note(&log, now);
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Logs of containers are named by namespace, pod and container; those of the lab's own programs say
/// the time in each line.
fn is_container_log(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    name.contains('_') && name.ends_with(".log") && !name.ends_with(".previous.log")
}

/// Notes the length of a log. One that is gone needs no notes.
fn note(log: &Path, now: Timestamp) {
    let Ok(len) = fs::metadata(log).map(|meta| meta.len()) else { return };
    let notes = OpenOptions::new().create(true).read(true).append(true).open(beside(log));
    let noted = notes.and_then(|file| append(&file, len, now));
    if let Err(error) = noted {
        warn!("note when {} grew: {error}", log.display());
    }
}

fn append(mut file: &File, len: u64, now: Timestamp) -> io::Result<()> {
    let mut last = [0; ENTRY_LEN];
    if let Some(at) = file.metadata()?.len().checked_sub(ENTRY_LEN as u64) {
        file.read_exact_at(&mut last, at)?;
    }
    // Nothing has been printed since.
    if entry(&last).is_some_and(|(known, _)| known == len) {
        return Ok(());
    }
    let mut bytes = len.to_le_bytes().to_vec();
    bytes.extend(now.as_microsecond().to_le_bytes());
    file.write_all(&bytes)
}

/// Names of files in what inotify tells.
fn names(mut events: &[u8]) -> Vec<&str> {
    let mut names = Vec::new();
    while let Some((head, rest)) = events.split_at_checked(EVENT_LEN) {
        let len = head.last_chunk().map_or(0, |len| u32::from_ne_bytes(*len)) as usize;
        let Some((name, rest)) = rest.split_at_checked(len) else { break };
        let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
        names.extend(std::str::from_utf8(name).ok().filter(|name| !name.is_empty()));
        events = rest;
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    fn time(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn lengths_and_times_are_looked_up_both_ways() {
        let times = Times(vec![(4, time(10)), (9, time(20)), (12, time(30))]);
        for (place, expected) in
            [(0, Some(10)), (3, Some(10)), (4, Some(20)), (11, Some(30)), (12, None)]
        {
            assert_eq!(times.at(place), expected.map(time), "{place}");
        }
        for (since, expected) in [(5, 0), (10, 0), (11, 4), (30, 9), (31, 12)] {
            assert_eq!(times.place(time(since)), expected, "{since}");
        }
        assert_eq!((Times::default().at(0), Times::default().place(time(0))), (None, 0));
    }

    #[tokio::test]
    async fn what_is_printed_is_noted() {
        let dir = std::env::temp_dir().join(format!("lab-times-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let log = dir.join("ns_pod_c.log");
        fs::write(&log, "before\n").unwrap();
        fs::write(dir.join("agent.log"), "x").unwrap();
        let keeping = tokio::spawn(keep(dir.clone()));
        let noted = |place| {
            let log = log.clone();
            async move {
                for _ in 0..2000 {
                    if let Some(time) = Times::of(&log).at(place) {
                        return time;
                    }
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
                panic!("nothing is noted about {place}");
            }
        };
        let first = noted(6).await;
        let began = Timestamp::now();
        let mut file = OpenOptions::new().append(true).open(&log).unwrap();
        file.write_all(b"after\n").unwrap();
        let second = noted(7).await;
        // The file's own time is that of the kernel's last tick.
        assert!(second >= began && first <= second, "{first} {began} {second}");
        assert!(!beside(&dir.join("agent.log")).exists());
        keeping.abort();
        fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn names_are_read_from_events() {
        let mut bytes = Vec::new();
        for (name, len) in [("a.log", 16_u32), ("", 0), ("bb", 4)] {
            bytes.extend([0; 12]);
            bytes.extend(len.to_ne_bytes());
            let mut field = name.as_bytes().to_vec();
            field.resize(len as usize, 0);
            bytes.extend(field);
        }
        assert_eq!(names(&bytes), ["a.log", "bb"]);
        assert_eq!(names(&bytes[..20]), Vec::<&str>::new());
    }
}
