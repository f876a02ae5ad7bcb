//! The cluster's state on disk: credentials, and a journal of all writes.
//!
//! The journal begins with a snapshot and is appended to from then on; it is begun anew
//! when the server starts and when it has grown large. Changes that wait to be written
//! while that happens are in the snapshot already and written once more, in their
//! order, which ends in the same state. A line that is cut off, because the process died
//! while writing it, is the last one and is ignored.

use std::fs::{self, File};
use std::io::{self, BufRead as _, BufReader, BufWriter, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio_util::sync::CancellationToken;

use super::api::Api;
use super::object::{Key, Object};
use super::resource::Catalog;
use super::store::{Change, ResourceId, Store, Written};
use super::tls::Credentials;

/// One line of the journal: an object as it is from then on, or that it is gone.
#[derive(Serialize, Deserialize)]
struct Line<'a> {
    resource: std::borrow::Cow<'a, str>,
    version: u64,
    #[serde(default, skip_serializing_if = "Option::is_none", borrow)]
    object: Option<&'a RawValue>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    deleted: Option<(String, String)>,
}

/// What was on disk.
pub(super) struct Kept {
    path: PathBuf,
    version: u64,
    objects: std::collections::BTreeMap<(ResourceId, Key), Object>,
}

/// An open journal.
pub(super) struct Journal {
    path: PathBuf,
    file: BufWriter<File>,
    bytes: u64,
    /// Size at which a new journal is begun.
    bytes_max: u64,
}

/// Journals are not begun anew for less than this.
const JOURNAL_BYTES_MIN: u64 = 32 << 20;
/// How many times larger than its snapshot a journal may become.
const JOURNAL_GROWTH_MAX: u64 = 4;

/// Opens the directory, which is made if it is not there.
pub(super) fn open(directory: &Path) -> anyhow::Result<(Credentials, Option<Kept>)> {
    fs::create_dir_all(directory)?;
    let path = directory.join("credentials.json");
    let credentials = match fs::read(&path) {
        Ok(bytes) => serde_json::from_slice(&bytes).with_context(|| {
            format!("{} is damaged; remove the directory to start anew", path.display())
        })?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let credentials = Credentials::generate()?;
            let mut file = private_file(&path)?;
            file.write_all(&serde_json::to_vec(&credentials)?)?;
            credentials
        }
        Err(error) => return Err(error).with_context(|| format!("reading {}", path.display())),
    };
    Ok((credentials, Some(read(&directory.join("journal"))?)))
}

/// Secrets are in it.
fn private_file(path: &Path) -> io::Result<File> {
    File::options().write(true).create(true).truncate(true).mode(0o600).open(path)
}

fn read(path: &Path) -> anyhow::Result<Kept> {
    let mut kept = Kept { path: path.to_owned(), version: 0, objects: Default::default() };
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(kept),
        Err(error) => return Err(error).with_context(|| format!("reading {}", path.display())),
    };
    let catalog = Catalog::built_in();
    for line in BufReader::new(file).split(b'\n') {
        let line = line.with_context(|| format!("reading {}", path.display()))?;
        let Ok(line) = serde_json::from_slice::<Line<'_>>(&line) else { break };
        kept.version = kept.version.max(line.version);
        let id: ResourceId = (&*line.resource).into();
        if let Some(object) = line.object {
            let mut value = serde_json::from_str(object.get())?;
            let indexed = catalog.by_id(&id).map_or(&[][..], |resource| resource.indexed);
            let object = Object::new(&mut value, line.version, indexed);
            kept.objects.insert((id, object.key.clone()), object);
        } else if let Some((namespace, name)) = line.deleted {
            kept.objects.remove(&(id, Key::new(&namespace, &name)));
        }
    }
    Ok(kept)
}

impl Kept {
    /// Fills the store and begins a new journal.
    pub(super) fn restore(self, store: &Store) -> anyhow::Result<Journal> {
        let objects = self.objects.into_iter().map(|((id, _), object)| (id, object)).collect();
        store.restore(self.version, objects);
        Journal::begin(&self.path, store)
    }
}

impl Journal {
    /// Replaces the journal by a snapshot of the store.
    fn begin(path: &Path, store: &Store) -> anyhow::Result<Self> {
        let fresh = path.with_extension("new");
        let file = private_file(&fresh).with_context(|| format!("writing {}", fresh.display()))?;
        let file = BufWriter::new(file);
        let mut journal = Self { path: path.to_owned(), file, bytes: 0, bytes_max: u64::MAX };
        let (version, resources) = store.dump();
        // The version of the last deletion must not be given out again.
        journal.write("", version, None, None)?;
        for (id, objects) in &resources {
            for object in objects.values() {
                journal.write(id, object.resource_version, Some(&object.json), None)?;
            }
        }
        journal.file.flush().with_context(|| format!("writing {}", fresh.display()))?;
        fs::rename(&fresh, path).with_context(|| format!("replacing {}", path.display()))?;
        journal.bytes_max = (journal.bytes * JOURNAL_GROWTH_MAX).max(JOURNAL_BYTES_MIN);
        Ok(journal)
    }

    /// Writes down every change until told to stop.
    pub(super) async fn keep(
        mut self,
        api: Arc<Api>,
        mut changes: UnboundedReceiver<Written>,
        stop: CancellationToken,
    ) {
        loop {
            let written = tokio::select! {
                biased;
                written = changes.recv() => written,
                () = stop.cancelled() => return,
            };
            let Some(written) = written else { return };
            let mut result = self.record(&written);
            // What else is there goes along in the same system call.
            while let Ok(written) = changes.try_recv() {
                result = result.and_then(|()| self.record(&written));
            }
            result = result.and_then(|()| Ok(self.file.flush()?));
            if result.is_ok() && self.bytes > self.bytes_max {
                result = Self::begin(&self.path, &api.store).map(|journal| self = journal);
            }
            if let Err(error) = result {
                tracing::error!(%error, "the cluster's state is not written down any more; a restart would lose changes");
                return;
            }
        }
    }

    fn record(&mut self, written: &Written) -> anyhow::Result<()> {
        let (object, version) = (&written.event.object, written.event.resource_version);
        match written.event.change {
            Change::Deleted => {
                let gone = (object.key.namespace.to_string(), object.key.name.to_string());
                self.write(&written.resource, version, None, Some(gone))
            }
            _ => self.write(&written.resource, version, Some(&object.json), None),
        }
    }

    fn write(
        &mut self,
        resource: &str,
        version: u64,
        object: Option<&[u8]>,
        deleted: Option<(String, String)>,
    ) -> anyhow::Result<()> {
        let object = object.map(serde_json::from_slice).transpose()?;
        let line = Line { resource: resource.into(), version, object, deleted };
        let mut line = serde_json::to_vec(&line)?;
        line.push(b'\n');
        self.bytes += line.len() as u64;
        Ok(self.file.write_all(&line)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_journal_that_is_cut_off_keeps_what_is_whole() {
        let directory = std::env::temp_dir().join(format!("lab-journal-{}", std::process::id()));
        let (_, kept) = open(&directory).unwrap();
        let store = Store::default();
        let mut changes = store.listen();
        let mut journal = kept.unwrap().restore(&store).unwrap();
        let id: ResourceId = "configmaps".into();
        let value =
            |name: &str| json!({ "metadata": { "name": name, "namespace": "n", "uid": name } });
        store.create(&id, &mut value("a"), &[]).unwrap();
        let b = store.create(&id, &mut value("b"), &[]).unwrap();
        store.delete(&id, &b.key, b.resource_version).unwrap();
        while let Ok(written) = changes.try_recv() {
            journal.record(&written).unwrap();
        }
        journal.file.write_all(b"{\"resource\":\"configmaps\",\"vers").unwrap();
        drop(journal);

        let restored = Store::default();
        let (_, kept) = open(&directory).unwrap();
        kept.unwrap().restore(&restored).unwrap();
        assert_eq!(restored.resource_version(), 3);
        let names: Vec<String> =
            restored.list(&id).1.keys().map(|key| key.name.to_string()).collect();
        assert_eq!(names, ["a"]);
        fs::remove_dir_all(directory).unwrap();
    }
}
