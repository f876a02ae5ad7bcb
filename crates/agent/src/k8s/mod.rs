//! Kubernetes: what we read of it, and what we write.
//!
//! ```text
//!  watch.rs ····· one loop: list, watch, table; reconnects by itself
//!  convert.rs ··· objects → rows
//!  node.rs ······ our CiliumNode: addresses out, pod CIDRs in
//!  endpoint.rs ·· a CiliumEndpoint per pod of this node
//!  policy_report.rs  which policies this node enforces
//!  identity.rs ·· CiliumIdentities; a pod that the watch does not know yet
//! ```
//!
//! When the API server is away the tables stay as they are, and with them the datapath.

pub mod convert;
pub mod endpoint;
pub mod identity;
pub mod node;
pub mod policy_report;
pub mod watch;

use std::path::Path;

use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};

/// The API server cannot be addressed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The file that was named is of no use.
    #[error("failed to read the kubeconfig {path} (option k8s-kubeconfig-path)")]
    Kubeconfig {
        /// The file.
        path: String,
        /// Why.
        #[source]
        source: kube::config::KubeconfigError,
    },
    /// No file was named and we do not run in a pod.
    #[error(
        "not in a cluster and no kubeconfig: set k8s-kubeconfig-path, or run as a pod with a service account"
    )]
    InCluster(#[source] kube::config::InClusterError),
    /// The client could not be made of the configuration.
    #[error("failed to make a Kubernetes client")]
    Client(#[source] Box<kube::Error>),
}

/// A client of the API server that the kubeconfig names, else of the cluster we are in. Does not
/// connect yet.
pub async fn client(kubeconfig: Option<&Path>) -> Result<Client, ClientError> {
    let config = match kubeconfig {
        Some(path) => {
            let failed =
                |source| ClientError::Kubeconfig { path: path.display().to_string(), source };
            let kubeconfig = Kubeconfig::read_from(path).map_err(failed)?;
            Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
                .await
                .map_err(failed)?
        }
        None => Config::incluster().map_err(ClientError::InCluster)?,
    };
    Client::try_from(config).map_err(|error| ClientError::Client(Box::new(error)))
}

/// Whether the API server answered that the object exists already.
pub fn is_conflict(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 409)
}

/// Whether the API server answered that there is no such object.
pub fn is_not_found(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 404)
}
