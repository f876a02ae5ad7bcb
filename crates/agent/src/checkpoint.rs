//! What a new agent must know of the old one: its endpoints and its node, as files.
//!
//! ```text
//!  <state-dir>/state/node.json                 pod CIDRs and addresses of the node
//!  <state-dir>/state/<endpoint>/ep_config.json an endpoint
//! ```
//!
//! With them an agent starts without the API server, and adopts running pods without touching their
//! traffic. They are written before the CNI plugin is told that a pod is ready, each in one step.

use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ipnet::IpNet;
use model::{EndpointId, EndpointState, IdentityId, Labels};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::cni_conf::write_atomically;
use crate::identity::Identity;
use crate::tables::{Endpoint, EndpointSpec};

/// A checkpoint could not be written, read or removed.
#[derive(Debug, thiserror::Error)]
#[error("failed to {action} the checkpoint {}", path.display())]
pub struct CheckpointError {
    action: &'static str,
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// What the node was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct NodeCheckpoint {
    /// Addresses of the node itself.
    pub addresses: Vec<IpAddr>,
    /// Where its pods get their addresses from.
    pub pod_cidrs: Vec<IpNet>,
    /// Addresses of `cilium_host`.
    pub routers: Vec<IpAddr>,
    /// UDP port of the tunnel device, which cannot be changed once it exists; 0 without one.
    #[serde(default)]
    pub tunnel_port: u16,
}

/// The directory of the checkpoints.
#[derive(Debug, Clone)]
pub struct Checkpoints {
    dir: PathBuf,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct EndpointCheckpoint {
    id: EndpointId,
    identity: IdentityId,
    labels: Labels,
    #[serde(flatten)]
    spec: EndpointSpec,
}

const ENDPOINT_FILE: &str = "ep_config.json";
const NODE_FILE: &str = "node.json";

impl Checkpoints {
    /// The checkpoints below the agent's state directory.
    pub fn below(state_dir: &Path) -> Self {
        Self { dir: state_dir.join("state") }
    }

    /// Writes the checkpoint of an endpoint.
    pub fn save(&self, endpoint: &Endpoint) -> Result<(), CheckpointError> {
        let checkpoint = EndpointCheckpoint {
            id: endpoint.id,
            identity: endpoint.identity.id,
            labels: Labels::clone(&endpoint.identity.labels),
            spec: EndpointSpec::clone(&endpoint.spec),
        };
        write(&self.endpoint_dir(endpoint.id).join(ENDPOINT_FILE), &checkpoint)
    }

    /// Removes the checkpoint of an endpoint, if there is one.
    pub fn remove(&self, id: EndpointId) -> Result<(), CheckpointError> {
        let path = self.endpoint_dir(id);
        match fs::remove_dir_all(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(CheckpointError { action: "remove", path, source })
            }
            _ => Ok(()),
        }
    }

    /// The endpoints of the agent before us, to be restored. A checkpoint that cannot be read is
    /// reported and skipped: the pod behind it is deleted and created again by its runtime.
    pub fn endpoints(&self) -> Result<Vec<Endpoint>, CheckpointError> {
        let failed = |source| CheckpointError { action: "list", path: self.dir.clone(), source };
        let entries = match fs::read_dir(&self.dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(failed)?,
        };
        let mut endpoints = Vec::new();
        for entry in entries {
            let path = entry.map_err(failed)?.path().join(ENDPOINT_FILE);
            match read::<EndpointCheckpoint>(&path) {
                Ok(Some(checkpoint)) => endpoints.push(restored(checkpoint)),
                Ok(None) => {}
                Err(error) => tracing::warn!(
                    path = %path.display(), error = %error.source,
                    "Skipped an unreadable checkpoint"
                ),
            }
        }
        endpoints.sort_by_key(|endpoint| endpoint.id);
        Ok(endpoints)
    }

    /// Writes what the node is.
    pub fn save_node(&self, node: &NodeCheckpoint) -> Result<(), CheckpointError> {
        write(&self.dir.join(NODE_FILE), node)
    }

    /// What the node was, if it is known.
    pub fn node(&self) -> Result<Option<NodeCheckpoint>, CheckpointError> {
        read(&self.dir.join(NODE_FILE))
    }

    /// Forgets what the node was.
    pub fn remove_node(&self) {
        // Not there is as good as removed; anything else shows when it is read again.
        let _ = fs::remove_file(self.dir.join(NODE_FILE));
    }

    fn endpoint_dir(&self, id: EndpointId) -> PathBuf {
        self.dir.join(id.to_string())
    }
}

fn restored(checkpoint: EndpointCheckpoint) -> Endpoint {
    Endpoint {
        id: checkpoint.id,
        state: EndpointState::Restoring,
        spec: Arc::new(checkpoint.spec),
        identity: Identity { id: checkpoint.identity, labels: Arc::new(checkpoint.labels) },
    }
}

pub(crate) fn write<T: Serialize>(path: &Path, value: &T) -> Result<(), CheckpointError> {
    let failed = |source| CheckpointError { action: "write", path: path.to_owned(), source };
    let text = serde_json::to_vec_pretty(value).map_err(|e| failed(e.into()))?;
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(failed)?;
    }
    write_atomically(path, &text).map_err(failed)
}

pub(crate) fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, CheckpointError> {
    let failed = |source| CheckpointError { action: "read", path: path.to_owned(), source };
    match fs::read(path) {
        Ok(text) => serde_json::from_slice(&text).map(Some).map_err(|e| failed(e.into())),
        // Not a directory: another file of the state directory stands where an endpoint could be.
        Err(error)
            if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) =>
        {
            Ok(None)
        }
        Err(error) => Err(failed(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_survive() {
        let dir = std::env::temp_dir().join(format!("agent-checkpoints-{}", std::process::id()));
        let checkpoints = Checkpoints::below(&dir);
        assert_eq!(checkpoints.endpoints().unwrap(), []);
        let endpoint = restored(
            serde_json::from_value(serde_json::json!({
                "id": 7, "identity": 300, "labels": ["k8s:app=web"],
                "interface": "lxc1", "ifindex": 12,
                "mac": "02:00:00:00:00:01", "host-mac": "02:00:00:00:00:02",
                "addresses": ["10.0.1.2", "fd00::2"],
                "container-id": "abc", "container-interface": "eth0",
                "pod-namespace": "default", "pod-name": "web", "pod-uid": "u",
                "netns-cookie": "9",
            }))
            .unwrap(),
        );
        checkpoints.save(&endpoint).unwrap();
        fs::create_dir_all(dir.join("state/8")).unwrap();
        fs::write(dir.join("state/8/ep_config.json"), "{").unwrap();
        assert_eq!(checkpoints.endpoints().unwrap(), std::slice::from_ref(&endpoint));
        checkpoints.remove(endpoint.id).unwrap();
        checkpoints.remove(endpoint.id).unwrap();
        assert_eq!(checkpoints.endpoints().unwrap(), []);
        fs::remove_dir_all(&dir).unwrap();
    }
}
