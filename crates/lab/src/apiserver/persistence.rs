//! The cluster's state on disk: credentials, and a journal of all writes.
//!
//! The journal is read and rewritten as a snapshot when the server starts, and
//! appended to from then on. A line that is cut off, because the process died while
//! writing it, is the last one and is ignored.

use std::fs::{self, File};
use std::io::{self, BufRead as _, BufReader, BufWriter, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio_util::sync::CancellationToken;

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
pub struct Kept {
    path: PathBuf,
    version: u64,
    objects: std::collections::BTreeMap<(ResourceId, Key), Object>,
}

/// An open journal.
pub struct Journal {
    file: BufWriter<File>,
}

/// Opens the directory, which is made if it is not there.
pub fn open(directory: &Path) -> anyhow::Result<(Credentials, Option<Kept>)> {
    fs::create_dir_all(directory)?;
    let path = directory.join("credentials.json");
    let credentials = match fs::read(&path) {
        Ok(bytes) => serde_json::from_slice(&bytes)
            .with_context(|| format!("{} is damaged; remove the directory to start anew", path.display()))?,
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
    /// Fills the store and begins a new journal, with a snapshot. `None` if it cannot be written.
    pub fn restore(self, store: &Store) -> anyhow::Result<Journal> {
        let fresh = self.path.with_extension("new");
        let file = private_file(&fresh).with_context(|| format!("writing {}", fresh.display()))?;
        let mut journal = Journal { file: BufWriter::new(file) };
        // The version of the last deletion must not be given out again.
        journal.write("", self.version, None, None)?;
        let objects: Vec<(ResourceId, Object)> =
            self.objects.into_iter().map(|((id, _), object)| (id, object)).collect();
        for (id, object) in &objects {
            journal.write(id, object.resource_version, Some(&object.json), None)?;
        }
        journal.file.flush()?;
        fs::rename(&fresh, &self.path)
            .with_context(|| format!("replacing {}", self.path.display()))?;
        store.restore(self.version, objects);
        Ok(journal)
    }
}

impl Journal {
    /// Writes down every change until told to stop.
    pub async fn keep(mut self, mut changes: UnboundedReceiver<Written>, stop: CancellationToken) {
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
            if let Err(error) = result.and_then(|()| self.file.flush().map_err(Into::into)) {
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
        serde_json::to_writer(&mut self.file, &line)?;
        self.file.write_all(b"\n")?;
        Ok(())
    }
}
