//! The supervisor's socket: what `cilium lab` asks a running lab.
//!
//! One connection is one question: a line of JSON, answered by lines of JSON, of which the last
//! one is the result. Only root can connect, since only root can enter the lab's directory.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// A question to the supervisor.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Request {
    /// What runs? Answered by a [`Status`].
    Status,
    /// Where does a container run? Answered by a [`Located`].
    Locate {
        /// The pod's namespace.
        namespace: String,
        /// The pod's name.
        pod: String,
        /// The container; the first one by default.
        container: Option<String>,
    },
    /// Apply objects, then wait until their pods are Ready, telling about progress.
    Apply {
        /// The objects, in order.
        objects: Vec<Value>,
        /// How long to wait for the pods.
        timeout_s: u64,
    },
    /// Delete pods and wait until they are gone; works while the API server does not serve.
    DeletePods {
        /// The pods' namespace.
        namespace: String,
        /// Their names.
        names: Vec<String>,
    },
    /// Freeze everything on a node, or let it go on.
    Pause {
        /// The node.
        node: String,
        /// Whether it shall stand still.
        paused: bool,
    },
    /// Cut the wire between two members of the underlay, or mend it.
    Cut {
        /// Nodes, or `external`.
        nodes: (String, String),
        /// Whether nothing shall get through.
        cut: bool,
    },
    /// Stop or resume the API server, for tests of what happens without it.
    ApiServer {
        /// Whether it shall run.
        running: bool,
    },
}

/// A line of an answer.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Answer {
    /// There is more to come.
    Progress(String),
    /// The result.
    Done(Value),
    /// Why there is no result.
    Failed(String),
}

/// What a lab is and does.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Status {
    /// The lab's name.
    pub name: String,
    /// File for `kubectl`.
    pub kubeconfig: PathBuf,
    /// URL of the API server.
    pub api_server: String,
    /// Address of Hubble Relay, once there is one.
    pub hubble_relay: Option<String>,
    /// URL of the Hubble UI, once there is one.
    pub hubble_ui: Option<String>,
    /// The process that keeps the lab running.
    pub supervisor_pid: u32,
    /// The operator's process.
    pub operator_pid: Option<i32>,
    /// The nodes.
    pub nodes: Vec<NodeStatus>,
    /// Members of the underlay between which nothing gets through.
    #[serde(default)]
    pub cuts: Vec<(String, String)>,
}

/// What a node is and does.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct NodeStatus {
    /// Its name.
    pub name: String,
    /// Whether it takes pods.
    pub ready: bool,
    /// Whether everything on it is frozen.
    #[serde(default)]
    pub paused: bool,
    /// Its addresses on the underlay.
    pub addresses: Vec<std::net::IpAddr>,
    /// Its network namespace.
    pub netns: PathBuf,
    /// Its agent's process; none between two runs.
    pub agent_pid: Option<i32>,
    /// Its agent's socket, seen from here.
    pub agent_socket: PathBuf,
    /// Its BPF file system, seen from here.
    pub bpffs: PathBuf,
    /// How many pods it runs.
    pub pods: usize,
}

/// Where a container runs.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Located {
    /// A process of the container.
    pub pid: i32,
    /// Its cgroup.
    pub cgroup: PathBuf,
}

/// Asks a lab and waits for the answer.
pub fn ask(socket: &Path, request: &Request, mut progress: impl FnMut(&str)) -> Result<Value> {
    let gone = || format!("the supervisor of the lab does not answer at {}", socket.display());
    let mut stream = UnixStream::connect(socket).with_context(gone)?;
    stream.set_write_timeout(Some(Duration::from_secs(10)))?;
    let mut line = serde_json::to_vec(request)?;
    line.push(b'\n');
    stream.write_all(&line).with_context(gone)?;
    for line in BufReader::new(stream).lines() {
        match serde_json::from_str(&line.with_context(gone)?)? {
            Answer::Progress(text) => progress(&text),
            Answer::Done(value) => return Ok(value),
            Answer::Failed(reason) => return Err(anyhow!(reason)),
        }
    }
    Err(anyhow!("the supervisor of the lab ended before it answered"))
}
