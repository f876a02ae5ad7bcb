//! The cluster's state on disk: credentials, snapshots, and journals of all writes.
//!
//! ```text
//!   snapshot.7 ── journal.7 ── journal.8        after a crash: the snapshot, then the journals
//!   (all objects) (every write since, in order)
//! ```
//!
//! A write is in the journal before anybody learns of it, so whatever a client was told is there
//! again when the process was killed. When a journal has grown large the next one is begun, and
//! a thread writes the snapshot that it continues; then what is older is removed. A line that is
//! cut off, because the process died while writing it, is the last one and is ignored: nobody was
//! told of it.

use std::fs::{self, File};
use std::io::{self, BufRead as _, BufReader, BufWriter, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;

use anyhow::{Context as _, bail};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::object::{Key, Object};
use super::resource::Catalog;
use super::store::{Objects, ResourceId, Store};
use super::tls::Credentials;

/// One line of a snapshot or journal: an object as it is from then on, or that it is gone.
#[derive(Serialize, Deserialize)]
struct Line<'a> {
    resource: std::borrow::Cow<'a, str>,
    version: u64,
    #[serde(default, skip_serializing_if = "Option::is_none", borrow)]
    object: Option<&'a RawValue>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    deleted: Option<(String, String)>,
}

/// Everything at one moment: the latest version, and the objects of each resource.
pub(super) type Dump = (u64, Vec<(ResourceId, Objects)>);

/// The journal that is being written.
#[derive(Debug)]
pub(super) struct Journal {
    directory: PathBuf,
    number: u64,
    file: File,
    /// What the file holds; a line that could not be written whole is cut off again.
    bytes: u64,
    /// Size at which the next journal is begun. Set by the thread that writes snapshots.
    bytes_max: Arc<AtomicU64>,
    snapshots: Option<mpsc::Sender<(u64, Dump)>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

/// No new journal is begun for less than this.
const JOURNAL_BYTES_MIN: u64 = 32 << 20;
/// How many times larger than its snapshot a journal may become.
const JOURNAL_GROWTH_MAX: u64 = 4;

/// The cluster's certificates and keys, which are made if they are not there. So is the directory.
pub(super) fn credentials(directory: &Path) -> anyhow::Result<Credentials> {
    fs::create_dir_all(directory)?;
    let path = directory.join("credentials.json");
    match fs::read(&path) {
        Ok(bytes) => serde_json::from_slice(&bytes).with_context(|| {
            format!("{} is damaged; remove the directory to start anew", path.display())
        }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let credentials = Credentials::generate()?;
            // Written whole or not at all.
            let fresh = directory.join("credentials.new");
            private_file(&fresh)?.write_all(&serde_json::to_vec(&credentials)?)?;
            fs::rename(&fresh, &path)?;
            Ok(credentials)
        }
        Err(error) => Err(error).with_context(|| format!("reading {}", path.display())),
    }
}

/// Secrets are in it.
fn private_file(path: &Path) -> io::Result<File> {
    File::options().write(true).create(true).truncate(true).mode(0o600).open(path)
}

/// Fills the store with what the directory holds, and writes down there what happens from now on.
pub(super) fn restore(directory: &Path, store: &Store) -> anyhow::Result<()> {
    let snapshots = numbers(directory, "snapshot")?;
    let latest = snapshots.last().copied();
    let journals: Vec<u64> = numbers(directory, "journal")?
        .into_iter()
        .filter(|number| Some(*number) >= latest)
        .collect();
    let catalog = Catalog::built_in();
    if let Some(number) = latest {
        let path = file_of(directory, "snapshot", number);
        let (mut version, mut objects) = (0, Vec::new());
        read_lines(&path, false, |line| {
            version = version.max(line.version);
            if let Some((id, object)) = object_of(&catalog, &line)? {
                objects.push((id, object));
            }
            Ok(())
        })?;
        store.restore(version, objects);
    }
    for (index, number) in journals.iter().enumerate() {
        let is_last = index + 1 == journals.len();
        read_lines(&file_of(directory, "journal", *number), is_last, |line| {
            match (object_of(&catalog, &line)?, line.deleted) {
                (Some((id, object)), _) => store.replay(&id, object),
                (None, Some((namespace, name))) => {
                    let id: ResourceId = (&*line.resource).into();
                    store.replay_deletion(&id, &Key::new(&namespace, &name), line.version);
                }
                (None, None) => {}
            }
            Ok(())
        })?;
    }
    let newest = journals.last().copied().max(latest).unwrap_or(0);
    let journal = Journal::begin(directory, newest + 1, &store.dump())?;
    store.write_down_in(journal);
    Ok(())
}

fn file_of(directory: &Path, kind: &str, number: u64) -> PathBuf {
    directory.join(format!("{kind}.{number}"))
}

/// The numbers of all files of a kind, rising.
fn numbers(directory: &Path, kind: &str) -> anyhow::Result<Vec<u64>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory)? {
        let name = entry?.file_name();
        let name = name.to_str().and_then(|name| name.strip_prefix(kind)?.strip_prefix('.'));
        found.extend(name.and_then(|number| number.parse::<u64>().ok()));
    }
    found.sort_unstable();
    Ok(found)
}

/// Goes through the lines of a file. `may_break_off`: the last one need not be whole.
fn read_lines(
    path: &Path,
    may_break_off: bool,
    mut take: impl FnMut(Line<'_>) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let file = File::open(path).with_context(|| format!("reading {}", path.display()))?;
    let mut reader = BufReader::new(file);
    let mut bytes = Vec::new();
    for number in 1.. {
        bytes.clear();
        let len = reader.read_until(b'\n', &mut bytes);
        if len.with_context(|| format!("reading {}", path.display()))? == 0 {
            break;
        }
        match serde_json::from_slice::<Line<'_>>(&bytes) {
            Ok(line) => take(line)?,
            Err(_) if may_break_off && !bytes.ends_with(b"\n") => break,
            Err(error) => bail!(
                "line {number} of {} is damaged ({error}); remove the directory to start anew",
                path.display()
            ),
        }
    }
    Ok(())
}

fn object_of(catalog: &Catalog, line: &Line<'_>) -> anyhow::Result<Option<(ResourceId, Object)>> {
    let Some(object) = line.object else { return Ok(None) };
    let id: ResourceId = (&*line.resource).into();
    let mut value = serde_json::from_str(object.get())?;
    let indexed = catalog.by_id(&id).map_or(&[][..], |resource| resource.indexed);
    Ok(Some((id, Object::new(&mut value, line.version, indexed))))
}

fn push_object(resource: &str, version: u64, object: &[u8], into: &mut Vec<u8>) {
    into.extend_from_slice(b"{\"resource\":\"");
    // Names of resources need no escapes: they are DNS names.
    into.extend_from_slice(resource.as_bytes());
    into.extend_from_slice(format!("\",\"version\":{version},\"object\":").as_bytes());
    into.extend_from_slice(object);
    into.extend_from_slice(b"}\n");
}

impl Journal {
    /// Writes down everything that there is, and begins a journal behind it.
    fn begin(directory: &Path, number: u64, dump: &Dump) -> anyhow::Result<Self> {
        let bytes = write_snapshot(directory, number, dump)?;
        let bytes_max = Arc::new(AtomicU64::new(growth(bytes)));
        let path = file_of(directory, "journal", number);
        let file = private_file(&path).with_context(|| format!("writing {}", path.display()))?;
        remove_older(directory, number)?;
        let (snapshots, requests) = mpsc::channel::<(u64, Dump)>();
        let (to, limit) = (directory.to_owned(), bytes_max.clone());
        let thread = std::thread::Builder::new().name("snapshots".to_owned()).spawn(move || {
            for (number, dump) in requests {
                let written = write_snapshot(&to, number, &dump)
                    .and_then(|bytes| remove_older(&to, number).map(|()| bytes));
                match written {
                    Ok(bytes) => limit.store(growth(bytes), Ordering::Relaxed),
                    Err(error) => {
                        // The journals go on; they are read from the last snapshot that is whole.
                        tracing::error!("a snapshot of the cluster's state failed: {error:#}");
                        limit.store(growth(0), Ordering::Relaxed);
                    }
                }
            }
        })?;
        Ok(Self {
            directory: directory.to_owned(),
            number,
            file,
            bytes: 0,
            bytes_max,
            snapshots: Some(snapshots),
            thread: Some(thread),
        })
    }

    /// Writes down that an object is like this from now on.
    pub(super) fn write_object(
        &mut self,
        resource: &str,
        version: u64,
        object: &[u8],
    ) -> io::Result<()> {
        let mut line = Vec::with_capacity(object.len() + 128);
        push_object(resource, version, object, &mut line);
        self.append(&line)
    }

    /// Writes down that an object is gone.
    pub(super) fn write_deletion(
        &mut self,
        resource: &str,
        version: u64,
        key: &Key,
    ) -> io::Result<()> {
        let deleted = Some((key.namespace.to_string(), key.name.to_string()));
        let line = Line { resource: resource.into(), version, object: None, deleted };
        let mut line = serde_json::to_vec(&line)?;
        line.push(b'\n');
        self.append(&line)
    }

    fn append(&mut self, line: &[u8]) -> io::Result<()> {
        if let Err(error) = self.file.write_all(line) {
            // Half a line in the middle would make the rest unreadable.
            self.file.set_len(self.bytes)?;
            io::Seek::seek(&mut self.file, io::SeekFrom::Start(self.bytes))?;
            return Err(error);
        }
        self.bytes += line.len() as u64;
        Ok(())
    }

    /// Whether the next journal should be begun.
    pub(super) fn is_full(&self) -> bool {
        self.bytes > self.bytes_max.load(Ordering::Relaxed)
    }

    /// Begins the next journal, which continues `dump`.
    pub(super) fn turn_over(&mut self, dump: Dump) {
        let path = file_of(&self.directory, "journal", self.number + 1);
        match private_file(&path) {
            Ok(file) => {
                (self.file, self.bytes) = (file, 0);
                self.number += 1;
                // Until the snapshot is there.
                self.bytes_max.store(u64::MAX, Ordering::Relaxed);
                if let Some(snapshots) = &self.snapshots {
                    // The thread ends with the journal only.
                    let _ = snapshots.send((self.number, dump));
                }
            }
            Err(error) => {
                tracing::error!(%error, path = %path.display(), "cannot begin a journal; the present one grows");
                self.bytes_max.store(growth(self.bytes), Ordering::Relaxed);
            }
        }
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        // The thread finishes what it was told, and ends.
        self.snapshots = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread that writes snapshots has panicked");
        }
    }
}

fn growth(bytes: u64) -> u64 {
    bytes.saturating_mul(JOURNAL_GROWTH_MAX).max(JOURNAL_BYTES_MIN)
}

/// A snapshot is there under its name only when it is whole. Gives its size.
fn write_snapshot(directory: &Path, number: u64, (version, all): &Dump) -> anyhow::Result<u64> {
    let fresh = directory.join("snapshot.new");
    let write = || -> anyhow::Result<u64> {
        let mut file = BufWriter::new(private_file(&fresh)?);
        // The version of the last deletion must not be given out again.
        let first = Line { resource: "".into(), version: *version, object: None, deleted: None };
        let mut line = serde_json::to_vec(&first)?;
        line.push(b'\n');
        let mut bytes = line.len();
        file.write_all(&line)?;
        for (id, objects) in all {
            for object in objects.values() {
                line.clear();
                push_object(id, object.resource_version, &object.json, &mut line);
                bytes += line.len();
                file.write_all(&line)?;
            }
        }
        file.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()?;
        fs::rename(&fresh, file_of(directory, "snapshot", number))?;
        Ok(bytes as u64)
    };
    write().with_context(|| format!("writing a snapshot to {}", directory.display()))
}

/// Removes what the snapshot of this number makes superfluous.
fn remove_older(directory: &Path, number: u64) -> anyhow::Result<()> {
    for kind in ["snapshot", "journal"] {
        for older in numbers(directory, kind)?.into_iter().filter(|older| *older < number) {
            fs::remove_file(file_of(directory, kind, older))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    struct Scratch(PathBuf);

    impl Scratch {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("lab-{name}-{}", std::process::id()));
            fs::create_dir_all(&path).unwrap();
            Self(path)
        }

        fn store(&self) -> Store {
            let store = Store::default();
            restore(&self.0, &store).unwrap();
            store
        }

        fn files(&self) -> Vec<String> {
            let mut all: Vec<String> = fs::read_dir(&self.0)
                .unwrap()
                .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                .collect();
            all.sort();
            all
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            fs::remove_dir_all(&self.0).unwrap();
        }
    }

    fn id() -> ResourceId {
        "configmaps".into()
    }

    fn create(store: &Store, name: &str) -> Arc<Object> {
        let mut value = json!({ "metadata": { "name": name, "namespace": "n", "uid": name } });
        store.create(&id(), &mut value, &[]).unwrap()
    }

    fn names(store: &Store) -> Vec<String> {
        store.list(&id()).1.keys().map(|key| key.name.to_string()).collect()
    }

    #[test]
    fn what_was_told_is_there_again() {
        let scratch = Scratch::new("journal");
        let store = scratch.store();
        create(&store, "a");
        let b = create(&store, "b");
        store.delete(&id(), &b.key, b.resource_version).unwrap();
        // Killed in the middle of a line.
        let path = file_of(&scratch.0, "journal", 1);
        let mut journal = File::options().append(true).open(&path).unwrap();
        journal.write_all(b"{\"resource\":\"configmaps\",\"vers").unwrap();

        let restored = scratch.store();
        assert_eq!((restored.resource_version(), names(&restored)), (3, vec!["a".to_owned()]));
        // A watch goes on from a version of the time before.
        let mut cursor = restored.watch(&id(), 1);
        let told = restored.read(&mut cursor, 10).unwrap();
        let versions: Vec<u64> = told.iter().map(|event| event.resource_version).collect();
        assert_eq!(versions, [2, 3]);
        assert_eq!(create(&restored, "c").resource_version, 4);
        assert_eq!(scratch.files(), ["journal.2", "snapshot.2"]);
        // What is before the snapshot is not known any more.
        let again = scratch.store();
        assert_eq!(names(&again), ["a", "c"]);
        assert!(again.read(&mut again.watch(&id(), 1), 10).is_none());
    }

    #[test]
    fn a_journal_is_turned_over() {
        let scratch = Scratch::new("turn-over");
        let store = scratch.store();
        store.with_journal(|journal| journal.bytes_max.store(0, Ordering::Relaxed));
        create(&store, "a");
        create(&store, "b");
        // Dropping it waits for the snapshot.
        drop(store);
        assert_eq!(scratch.files(), ["journal.2", "snapshot.2"]);
        let restored = scratch.store();
        assert_eq!(
            (restored.resource_version(), names(&restored)),
            (2, vec!["a".into(), "b".into()])
        );
        drop(restored);
        // Killed before the snapshot was whole: the older one and both journals are there.
        let scratch = Scratch::new("turn-over-killed");
        let store = scratch.store();
        create(&store, "a");
        fs::copy(file_of(&scratch.0, "snapshot", 1), scratch.0.join("kept")).unwrap();
        fs::copy(file_of(&scratch.0, "journal", 1), scratch.0.join("kept-too")).unwrap();
        store.with_journal(|journal| journal.bytes_max.store(0, Ordering::Relaxed));
        create(&store, "b");
        create(&store, "c");
        drop(store);
        fs::remove_file(file_of(&scratch.0, "snapshot", 2)).unwrap();
        fs::rename(scratch.0.join("kept"), file_of(&scratch.0, "snapshot", 1)).unwrap();
        fs::rename(scratch.0.join("kept-too"), file_of(&scratch.0, "journal", 1)).unwrap();
        assert_eq!(names(&scratch.store()), ["a", "b", "c"]);
    }

    #[test]
    fn damage_is_told() {
        let scratch = Scratch::new("damage");
        let store = scratch.store();
        create(&store, "a");
        drop(store);
        let path = file_of(&scratch.0, "journal", 1);
        let whole = fs::read(&path).unwrap();
        fs::write(&path, [b"{\"resource\"\n", whole.as_slice()].concat()).unwrap();
        let error = restore(&scratch.0, &Store::default()).unwrap_err().to_string();
        assert!(error.contains("line 1 of") && error.contains("is damaged"), "{error}");
    }
}
