//! What a node has to know of its pods when somebody else begins to look after them.
//!
//! ```text
//!   <lab>/pods/<uid>/sandbox.json              the pod's network
//!   <lab>/pods/<uid>/containers/<name>/run     the process of a container
//! ```

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::spec::Paths;

/// The network of a pod.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Sandbox {
    /// Where the pod runs.
    pub node: String,
    /// The sandbox's id, which is the name of its network namespace as well.
    pub container_id: String,
    /// What the CNI plugin said.
    pub result: Value,
}

/// A run of a container.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Run {
    /// Its process.
    pub pid: i32,
}

impl Sandbox {
    /// The network of the pod with this directory.
    pub fn read(pod: &Path) -> Option<Self> {
        read(&pod.join("sandbox.json"))
    }

    /// Keeps it in the directory of the pod.
    pub fn write(&self, pod: &Path) -> io::Result<()> {
        write(&pod.join("sandbox.json"), self)
    }

    /// All networks of a node's pods.
    pub fn of_node(paths: &Paths, node: &str) -> Vec<Self> {
        let pods = fs::read_dir(paths.pod("").as_path()).into_iter().flatten().flatten();
        let sandboxes = pods.filter_map(|entry| Self::read(&entry.path()));
        sandboxes.filter(|sandbox| sandbox.node == node).collect()
    }
}

impl Run {
    /// The run of a container of the pod with this directory.
    pub fn read(pod: &Path, container: &str) -> Option<Self> {
        read(&path_of_run(pod, container))
    }

    /// Keeps it in the directory of the pod.
    pub fn write(&self, pod: &Path, container: &str) -> io::Result<()> {
        write(&path_of_run(pod, container), self)
    }
}

fn path_of_run(pod: &Path, container: &str) -> PathBuf {
    pod.join("containers").join(container).join("run")
}

fn read<T: DeserializeOwned>(path: &Path) -> Option<T> {
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}

/// Whole or not at all.
fn write(path: &Path, value: &impl Serialize) -> io::Result<()> {
    path.parent().map_or(Ok(()), fs::create_dir_all)?;
    let fresh = path.with_extension("new");
    fs::write(&fresh, serde_json::to_vec(value)?)?;
    fs::rename(fresh, path)
}
