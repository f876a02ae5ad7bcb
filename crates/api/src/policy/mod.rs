//! The policy languages: objects as Kubernetes has them, and what is read of them.
//!
//! An object keeps its `spec` as it came, so that one that makes no sense is refused by
//! [`read`] with the field's path, and never breaks the watch that brought it.
//!
//! ```text
//!  NetworkPolicy, CiliumNetworkPolicy, CiliumClusterwideNetworkPolicy, ClusterNetworkPolicy
//!     └─► read ─► policy::Policy and notes of what is not enforced yet, or every error with its path
//! ```

mod cilium;
mod cluster;
mod field;
mod kubernetes;
mod object;
mod peer;
mod port;

use policy::{Policy, PolicyId, Unenforced};
use serde_json::Value;

pub use object::{
    CiliumCidrGroup, CiliumCidrGroupSpec, CiliumClusterwideNetworkPolicy, CiliumNetworkPolicy,
    ClusterNetworkPolicy, NetworkPolicy, PolicyStatus,
};

/// What reading depends on beside the object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Context {
    /// Name of the own cluster.
    pub cluster_name: String,
    /// Whether selectors of endpoints that name no cluster mean the own one
    /// (`policy-default-local-cluster`).
    pub default_local_cluster: bool,
    /// Whether nodes can be peers by their labels (`enable-node-selector-labels`).
    pub node_selectors: bool,
}

impl Default for Context {
    fn default() -> Self {
        Self {
            cluster_name: "default".to_owned(),
            default_local_cluster: true,
            node_selectors: true,
        }
    }
}

/// A policy that was accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Accepted {
    /// What it says.
    pub policy: Policy,
    /// What of it is not enforced yet; the ports concerned are denied.
    pub notes: Vec<Note>,
}

/// A part of a policy that is not enforced yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// The field.
    pub path: String,
    /// What it asks for.
    pub asks: Unenforced,
}

impl std::fmt::Display for Note {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {} not enforced yet", self.path, self.asks)
    }
}

/// A policy that was refused, as a whole.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", .errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
pub struct Refused {
    /// Why; at least one.
    pub errors: Vec<FieldError>,
}

/// What is wrong with a field.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{path}: {reason}")]
pub struct FieldError {
    /// The field, as in `spec.ingress[0].toPorts[0].ports[0].port`.
    pub path: String,
    /// What is wrong, and what to write.
    pub reason: String,
}

/// A policy in one of the languages.
pub trait PolicyObject {
    /// Which policy this is.
    fn policy_id(&self) -> PolicyId;

    /// Reads the policy, or says everything that is wrong with it.
    fn read(&self, context: &Context) -> Result<Accepted, Refused>;
}

/// Reads a policy of any language from a manifest, as from a file. A policy of a namespace that names
/// none is in `namespace`.
pub fn read_manifest(
    manifest: &Value,
    namespace: &str,
    context: &Context,
) -> Result<Accepted, Refused> {
    object::read_manifest(manifest, namespace, context)
}
