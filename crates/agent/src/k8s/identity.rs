//! Identities as objects, and pods that the watch does not know yet.

use std::sync::Arc;

use api::crd::CiliumIdentity;
use api::k8s::{Namespace as ApiNamespace, Pod};
use futures::future::BoxFuture;
use kube::api::PostParams;
use kube::{Api, Client};
use model::{NodeName, PodName};

use super::{convert, is_conflict, watch::brief};
use crate::endpoint::PodSource;
use crate::identity::{Created, Identity, IdentityStore, StoreError};
use crate::tables::{LocalPod, Namespace};

/// `CiliumIdentity` objects.
pub struct Store {
    api: Api<CiliumIdentity>,
}

impl Store {
    /// The store of the cluster behind `client`.
    pub fn new(client: Client) -> Self {
        Self { api: Api::all(client) }
    }

    async fn claim(&self, identity: &Identity) -> Result<Created, kube::Error> {
        let object = CiliumIdentity::new(identity.id, &identity.labels);
        match self.api.create(&PostParams::default(), &object).await {
            Ok(_) => Ok(Created::New),
            Err(error) if is_conflict(&error) => {
                let theirs = self.api.get(&identity.id.to_string()).await?;
                // An object that we cannot read has the number all the same.
                Ok(Created::Taken(Arc::new(theirs.labels().unwrap_or_default())))
            }
            Err(error) => Err(error),
        }
    }
}

impl IdentityStore for Store {
    fn create<'a>(&'a self, identity: &'a Identity) -> BoxFuture<'a, Result<Created, StoreError>> {
        Box::pin(async {
            let failed =
                |source: kube::Error| StoreError { id: identity.id, source: source.into() };
            self.claim(identity).await.map_err(failed)
        })
    }
}

/// Pods and namespaces, asked for one by one.
pub struct Pods {
    client: Client,
    node: NodeName,
}

impl Pods {
    /// Pods of the cluster behind `client`, as far as they run on `node`.
    pub fn new(client: Client, node: NodeName) -> Self {
        Self { client, node }
    }

    async fn get(&self, name: &PodName) -> Result<Option<(LocalPod, Namespace)>, kube::Error> {
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), &name.namespace);
        let namespaces: Api<ApiNamespace> = Api::all(self.client.clone());
        let (pod, namespace) =
            tokio::try_join!(pods.get_opt(&name.name), namespaces.get_opt(&name.namespace))?;
        let pod = pod.filter(|pod| pod.spec.node_name == self.node.as_str());
        let pod = pod.as_ref().and_then(convert::local_pod);
        Ok(pod.zip(namespace.as_ref().map(convert::namespace)))
    }
}

impl PodSource for Pods {
    fn fetch<'a>(
        &'a self,
        pod: &'a PodName,
    ) -> BoxFuture<'a, Result<Option<(LocalPod, Namespace)>, String>> {
        Box::pin(async { self.get(pod).await.map_err(|error| brief(&error)) })
    }
}
