//! Deletions that the CNI plugin leaves for an agent that is away.
//!
//! DEL must succeed without the agent. The plugin then writes one file per deletion, and the agent
//! catches up when it starts. The lock keeps the two from missing each other:
//!
//! ```text
//!   plugin                              agent, at start
//!   connect ── refused
//!   lock shared ───────────┐            lock exclusive
//!   connect again ── refused│           take every file, delete its endpoint
//!   write <sha256>.delete   │           open the REST socket
//!   unlock ────────────────┘            unlock
//! ```
//!
//! A plugin that gets the lock after the agent has opened its socket connects; one that gets it
//! before the agent has taken its lock is read by it. Directory, file names and contents are
//! Cilium's.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

use nix::fcntl::{Flock, FlockArg};
use sha2::{Digest, Sha256};

/// Deletions at most; a node has no more endpoints than this.
pub const ENTRIES_MAX: usize = 4_096;

/// A directory of deletions, next to the agent's socket.
#[derive(Clone, Debug)]
pub struct DeleteQueue {
    dir: PathBuf,
}

/// Holds the queue: shared by plugins, exclusive for the agent. Released when dropped.
#[derive(Debug)]
pub struct QueueLock {
    _file: Flock<File>,
}

/// Who holds the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holder {
    /// One of many plugins.
    Plugin,
    /// The agent alone.
    Agent,
}

/// What a queued deletion names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Deletion {
    /// An endpoint by its id with prefix, as in `DELETE /endpoint/{id}`.
    Endpoint(String),
    /// Every endpoint of a container.
    Container(String),
}

/// The queue could not be used.
#[derive(Debug, thiserror::Error)]
pub enum QueueError {
    /// The file system refused.
    #[error("cannot use the deletion queue {path}: {source}")]
    Io {
        /// Directory or file.
        path: PathBuf,
        /// What the file system said.
        source: io::Error,
    },
    /// The agent is starting, and has held the queue all the time.
    #[error("the agent holds the deletion queue {path} for more than {waited:?}; it is starting")]
    Busy {
        /// Directory of the queue.
        path: PathBuf,
        /// How long the plugin has waited.
        waited: Duration,
    },
    /// [`ENTRIES_MAX`] deletions are waiting.
    #[error("the deletion queue {path} is full ({ENTRIES_MAX} entries): start the agent")]
    Full {
        /// Directory of the queue.
        path: PathBuf,
    },
}

impl DeleteQueue {
    /// The queue of the agent that listens on `socket`.
    pub fn beside(socket: &Path) -> Self {
        Self { dir: socket.parent().unwrap_or(Path::new("/")).join("deleteQueue") }
    }

    /// Waits at most `patience` for the lock.
    pub fn lock(&self, holder: Holder, patience: Duration) -> Result<QueueLock, QueueError> {
        let path = self.dir.join("lockfile");
        let file = fs::create_dir_all(&self.dir)
            .and_then(|()| File::options().create(true).append(true).open(&path))
            .map_err(|source| QueueError::Io { path: path.clone(), source })?;
        let how = match holder {
            Holder::Plugin => FlockArg::LockShared,
            Holder::Agent => FlockArg::LockExclusive,
        };
        // flock knows no timeout, so a thread waits for us. If it is late it drops the lock again.
        let (sender, receiver) = mpsc::channel();
        std::thread::spawn(move || {
            let locked = Flock::lock(file, how).map_err(|(_, errno)| io::Error::from(errno));
            let _ = sender.send(locked);
        });
        match receiver.recv_timeout(patience) {
            Ok(Ok(file)) => Ok(QueueLock { _file: file }),
            Ok(Err(source)) => Err(QueueError::Io { path, source }),
            Err(_) => Err(QueueError::Busy { path: self.dir.clone(), waited: patience }),
        }
    }

    /// Leaves a deletion of the endpoint with this id (with prefix) for the agent.
    pub fn push(&self, _lock: &QueueLock, endpoint: &str) -> Result<(), QueueError> {
        if self.files()?.len() >= ENTRIES_MAX {
            return Err(QueueError::Full { path: self.dir.clone() });
        }
        let path = self.dir.join(file_name(endpoint));
        fs::write(&path, endpoint).map_err(|source| QueueError::Io { path, source })
    }

    /// Every deletion that waits, with the file to remove once it is done.
    pub fn entries(&self, _lock: &QueueLock) -> Result<Vec<(PathBuf, Deletion)>, QueueError> {
        let read = |path: PathBuf| match fs::read_to_string(&path) {
            Ok(text) => Ok((path, parse(&text))),
            Err(source) => Err(QueueError::Io { path, source }),
        };
        self.files()?.into_iter().map(read).collect()
    }

    fn files(&self) -> Result<Vec<PathBuf>, QueueError> {
        let list = || -> io::Result<Vec<PathBuf>> {
            let mut files = Vec::new();
            for entry in fs::read_dir(&self.dir)? {
                let path = entry?.path();
                if path.extension().is_some_and(|extension| extension == "delete") {
                    files.push(path);
                }
            }
            files.sort();
            Ok(files)
        };
        list().map_err(|source| QueueError::Io { path: self.dir.clone(), source })
    }
}

/// The same deletion twice is one file.
fn file_name(endpoint: &str) -> String {
    let mut name = String::with_capacity(71);
    for byte in Sha256::digest(endpoint.as_bytes()) {
        name.push_str(&format!("{byte:02x}"));
    }
    name + ".delete"
}

/// An endpoint id, or the JSON object that Cilium's plugin writes.
fn parse(text: &str) -> Deletion {
    #[derive(serde::Deserialize)]
    #[serde(rename_all = "kebab-case")]
    struct BatchDelete {
        container_id: String,
    }
    match serde_json::from_str::<BatchDelete>(text) {
        Ok(batch) => Deletion::Container(batch.container_id),
        Err(_) => Deletion::Endpoint(text.trim().to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Dir(PathBuf);

    impl Drop for Dir {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn queue(name: &str) -> (Dir, DeleteQueue) {
        let dir = std::env::temp_dir().join(format!("delete-queue-{name}-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let queue = DeleteQueue::beside(&dir.join("cilium.sock"));
        (Dir(dir), queue)
    }

    #[test]
    fn a_deletion_is_queued_once_and_read_back() {
        let (dir, queue) = queue("push");
        let lock = queue.lock(Holder::Plugin, Duration::from_secs(5)).unwrap();
        queue.push(&lock, "cni-attachment-id:c1:eth0").unwrap();
        queue.push(&lock, "cni-attachment-id:c1:eth0").unwrap();
        fs::write(dir.0.join("deleteQueue/cilium.delete"), r#"{"container-id":"c2"}"#).unwrap();
        let mut deletions: Vec<_> =
            queue.entries(&lock).unwrap().into_iter().map(|(_, deletion)| deletion).collect();
        deletions.sort_by_key(|deletion| format!("{deletion:?}"));
        assert_eq!(
            deletions,
            [
                Deletion::Container("c2".into()),
                Deletion::Endpoint("cni-attachment-id:c1:eth0".into())
            ]
        );
    }

    #[test]
    fn plugins_share_the_queue_and_the_agent_has_it_alone() {
        let (_dir, queue) = queue("lock");
        let patience = Duration::from_millis(20);
        let first = queue.lock(Holder::Plugin, patience).unwrap();
        let second = queue.lock(Holder::Plugin, patience).unwrap();
        assert!(matches!(queue.lock(Holder::Agent, patience), Err(QueueError::Busy { .. })));
        drop((first, second));
        let agent = queue.lock(Holder::Agent, Duration::from_secs(5)).unwrap();
        assert!(matches!(queue.lock(Holder::Plugin, patience), Err(QueueError::Busy { .. })));
        drop(agent);
        queue.lock(Holder::Plugin, Duration::from_secs(5)).unwrap();
    }
}
