//! A `CiliumEndpoint` for every pod of this node: how the other nodes learn who has which address.
//!
//! The desired rows are computed from the endpoints, a reconciler makes the API server agree. What
//! the API server has is known from the watch of all of them, so nothing is listed twice.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use api::crd::{
    AddressPair, CiliumEndpoint, EndpointIdentity, EndpointNetworking, EndpointStatus,
    ExternalIdentifiers, FIELD_MANAGER_AGENT, NamedPort as ApiNamedPort,
};
use futures::StreamExt;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::{Api, Client};
use model::{EndpointState, IdentityId, Labels, PodName};
use policy::NamedPort;
use statedb::job::Job;
use statedb::reconciler::TargetError;
use statedb::{Initializer, Outcome, Plan, Row, Snapshot, Table, Target, Writer};

use super::{is_conflict, is_not_found};
use crate::controllers::LocalNode;
use crate::tables::{ClusterEndpoint, Endpoint, LocalPod, underlay_address};

/// Requests that are under way at the same time.
const REQUESTS_MAX: usize = 8;

/// A pod of this node as the cluster should see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublishedEndpoint {
    /// The pod.
    pub pod: PodName,
    /// The pod object, which owns ours; empty when it is not known.
    pub pod_uid: String,
    /// Number on this node.
    pub endpoint_id: i64,
    /// Who it is.
    pub identity: IdentityId,
    /// The labels of the identity.
    pub labels: Arc<Labels>,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Address of this node.
    pub node: IpAddr,
    /// Where it is in its life.
    pub state: EndpointState,
    /// Container and device.
    pub attachment: String,
    /// Container.
    pub container_id: String,
    /// Its service account.
    pub service_account: String,
    /// Names that it gives to ports.
    pub named_ports: Vec<NamedPort>,
}

impl Row for PublishedEndpoint {
    type Key = PodName;
    const HEADERS: &'static [&'static str] = &["POD", "ENDPOINT", "IDENTITY"];

    fn key(&self) -> PodName {
        self.pod.clone()
    }

    fn cells(&self) -> Vec<String> {
        vec![self.pod.to_string(), self.endpoint_id.to_string(), self.identity.to_string()]
    }
}

/// What should be published: every pod that has a ready endpoint. A pod that is made anew under the
/// same name has two for a moment; the one that the API server knows counts.
pub fn published(
    node: &LocalNode,
    endpoints: &Snapshot<Endpoint>,
    pods: &Snapshot<LocalPod>,
) -> Vec<PublishedEndpoint> {
    let Some(at) = underlay_address(&node.addresses) else { return Vec::new() };
    let mut rows: BTreeMap<PodName, PublishedEndpoint> = BTreeMap::new();
    for endpoint in endpoints.rows().filter(|e| e.state == EndpointState::Ready) {
        let Some(name) = endpoint.spec.pod() else { continue };
        let pod = pods.get(&name);
        let is_current = |uid: &str| pod.is_some_and(|pod| pod.uid == uid);
        if rows.get(&name).is_none_or(|other| !is_current(&other.pod_uid)) {
            rows.insert(name.clone(), publish(at, endpoint, name, pod));
        }
    }
    rows.into_values().collect()
}

fn publish(
    at: IpAddr,
    endpoint: &Endpoint,
    name: PodName,
    pod: Option<&Arc<LocalPod>>,
) -> PublishedEndpoint {
    let spec = &endpoint.spec;
    let uid = pod.map(|pod| pod.uid.clone()).filter(|_| spec.pod_uid.is_empty());
    PublishedEndpoint {
        pod: name,
        pod_uid: uid.unwrap_or_else(|| spec.pod_uid.clone()),
        endpoint_id: endpoint.id.number().into(),
        identity: endpoint.identity.id,
        labels: Arc::clone(&endpoint.identity.labels),
        addresses: spec.addresses.clone(),
        node: at,
        state: endpoint.state,
        attachment: spec.attachment(),
        container_id: spec.container_id.clone(),
        service_account: pod.map(|pod| pod.service_account.clone()).unwrap_or_default(),
        named_ports: pod.map(|pod| pod.named_ports.clone()).unwrap_or_default(),
    }
}

/// The task around [`published`].
pub async fn run(
    job: Job,
    node: Arc<LocalNode>,
    endpoints: Table<Endpoint>,
    pods: Table<LocalPod>,
    writer: Writer<PublishedEndpoint>,
    complete: Initializer<PublishedEndpoint>,
) -> Result<(), String> {
    let mut endpoints = endpoints.changes();
    let mut pods = pods.changes();
    let mut complete = Some(complete);
    loop {
        endpoints.take();
        pods.take();
        writer.replace(published(&node, endpoints.snapshot(), pods.snapshot()));
        if endpoints.snapshot().is_initialized()
            && pods.snapshot().is_initialized()
            && let Some(complete) = complete.take()
        {
            complete.done();
        }
        tokio::select! {
            () = job.stop.cancelled() => return Ok(()),
            _ = endpoints.changed() => {}
            _ = pods.changed() => {}
        }
    }
}

/// What of a `CiliumEndpoint` is compared with the API server's.
#[derive(Debug, Clone)]
pub struct Published(PublishedEndpoint);

/// What others act on; the rest of the object is for people.
impl PartialEq for Published {
    fn eq(&self, other: &Self) -> bool {
        let key = |row: &PublishedEndpoint| {
            let ports = row.named_ports.clone();
            (row.endpoint_id, row.identity, row.addresses.clone(), row.node, row.state, ports)
        };
        key(&self.0) == key(&other.0)
    }
}

/// The `CiliumEndpoint` objects of this node.
pub struct EndpointTarget {
    /// The API server.
    pub client: Client,
    /// This node.
    pub node: Arc<LocalNode>,
    /// What the watch knows.
    pub cluster: Table<ClusterEndpoint>,
}

impl Target<PublishedEndpoint> for EndpointTarget {
    type Value = Published;

    fn desired(&self, row: &PublishedEndpoint) -> Option<Published> {
        Some(Published(row.clone()))
    }

    async fn dump(&mut self) -> Result<Vec<(PodName, Published)>, TargetError> {
        let cluster = self.cluster.snapshot();
        assert!(cluster.is_initialized(), "the reconciler begins when the watch has listed");
        let ours = cluster.rows().filter_map(|row| {
            let node = row.node.filter(|at| self.node.addresses.contains(at))?;
            Some((row.pod.clone(), Published(from_cluster(row, node))))
        });
        Ok(ours.collect())
    }

    async fn apply(&mut self, plan: Plan<PodName, Published>) -> Outcome<PodName> {
        let deletes = plan.deletes.into_iter().map(|pod| (pod, None));
        let upserts = plan.upserts.into_iter().map(|(pod, row)| (pod, Some(row.0)));
        let requests = deletes.chain(upserts).map(|(pod, row)| {
            let api: Api<CiliumEndpoint> = Api::namespaced(self.client.clone(), &pod.namespace);
            async move {
                let result = match row {
                    Some(row) => write(&api, &row).await,
                    None => delete(&api, &pod.name).await,
                };
                (pod, result)
            }
        });
        let mut outcome = Outcome::default();
        let mut results = futures::stream::iter(requests).buffer_unordered(REQUESTS_MAX);
        while let Some((pod, result)) = results.next().await {
            if let Err(error) = result {
                outcome.fail(pod, error);
            }
        }
        outcome
    }
}

/// The comparable part of what the watch says.
fn from_cluster(row: &ClusterEndpoint, node: IpAddr) -> PublishedEndpoint {
    let state = serde_json::from_value(row.state.clone().into());
    PublishedEndpoint {
        pod: row.pod.clone(),
        pod_uid: String::new(),
        endpoint_id: row.endpoint_id,
        identity: row.identity,
        labels: Arc::default(),
        addresses: row.addresses.clone(),
        node,
        state: state.unwrap_or(EndpointState::Invalid),
        attachment: String::new(),
        container_id: String::new(),
        service_account: String::new(),
        named_ports: row.named_ports.clone(),
    }
}

/// Creates the object; one that is there gets our status and owner.
async fn write(api: &Api<CiliumEndpoint>, row: &PublishedEndpoint) -> Result<(), kube::Error> {
    let object = object(row);
    match api.create(&PostParams::default(), &object).await {
        Err(error) if is_conflict(&error) => {
            let patch = serde_json::json!({
                "metadata": { "ownerReferences": object.metadata.owner_references },
                "status": object.status,
            });
            let params = PatchParams {
                field_manager: Some(FIELD_MANAGER_AGENT.into()),
                ..PatchParams::default()
            };
            api.patch(&row.pod.name, &params, &Patch::Merge(&patch)).await.map(drop)
        }
        other => other.map(drop),
    }
}

async fn delete(api: &Api<CiliumEndpoint>, name: &str) -> Result<(), kube::Error> {
    match api.delete(name, &DeleteParams::default()).await {
        Err(error) if !is_not_found(&error) => Err(error),
        _ => Ok(()),
    }
}

fn object(row: &PublishedEndpoint) -> CiliumEndpoint {
    let mut object = CiliumEndpoint::new(&row.pod.namespace, &row.pod.name);
    if !row.pod_uid.is_empty() {
        object.metadata.owner_references = Some(vec![OwnerReference {
            api_version: "v1".to_owned(),
            kind: "Pod".to_owned(),
            name: row.pod.name.clone(),
            uid: row.pod_uid.clone(),
            ..OwnerReference::default()
        }]);
    }
    let identity_labels: BTreeMap<_, _> = row
        .labels
        .iter()
        .filter(|label| label.source == model::label::SOURCE_K8S)
        .map(|label| (label.key.clone(), label.value.clone()))
        .collect();
    object.metadata.labels = Some(identity_labels).filter(|labels| !labels.is_empty());
    object.status = status(row);
    object
}

fn status(row: &PublishedEndpoint) -> EndpointStatus {
    let mut pair = AddressPair::default();
    for address in &row.addresses {
        match address {
            IpAddr::V4(v4) => pair.ipv4 = v4.to_string(),
            IpAddr::V6(v6) => pair.ipv6 = v6.to_string(),
        }
    }
    EndpointStatus {
        id: row.endpoint_id,
        state: row.state.to_string(),
        identity: Some(EndpointIdentity {
            id: row.identity.0.into(),
            labels: row.labels.to_strings(),
        }),
        networking: Some(EndpointNetworking { addressing: vec![pair], node: row.node.to_string() }),
        external_identifiers: ExternalIdentifiers {
            cni_attachment_id: row.attachment.clone(),
            container_id: row.container_id.clone(),
            k8s_namespace: row.pod.namespace.clone(),
            k8s_pod_name: row.pod.name.clone(),
            pod_name: row.pod.to_string(),
        },
        service_account: row.service_account.clone(),
        named_ports: row
            .named_ports
            .iter()
            .map(|port| ApiNamedPort {
                name: port.name.to_string(),
                port: port.port,
                protocol: port.protocol.to_string(),
            })
            .collect(),
        ..EndpointStatus::default()
    }
}
