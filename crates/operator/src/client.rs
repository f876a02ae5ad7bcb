//! The connection to Kubernetes.

use anyhow::Context;
use api::config::Config;
use kube::config::{KubeConfigOptions, Kubeconfig};

/// A client of the API server that the options name; within a pod, of the pod's own.
pub async fn connect(config: &Config) -> anyhow::Result<kube::Client> {
    let kube_config = match &config.k8s_kubeconfig_path {
        Some(path) => {
            let kubeconfig = Kubeconfig::read_from(path).with_context(|| {
                format!("cannot use {}, given as --k8s-kubeconfig-path", path.display())
            })?;
            let options = KubeConfigOptions::default();
            kube::Config::from_custom_kubeconfig(kubeconfig, &options).await.with_context(|| {
                format!("cannot use {}, given as --k8s-kubeconfig-path", path.display())
            })?
        }
        None => kube::Config::incluster().context(
            "no Kubernetes to talk to: this is no pod; name a file with --k8s-kubeconfig-path",
        )?,
    };
    kube::Client::try_from(kube_config).context("cannot make a client of the API server")
}
