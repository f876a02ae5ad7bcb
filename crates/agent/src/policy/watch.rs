//! The watches that policy needs beside the agent's other ones: policies of each language, CIDR groups,
//! services and the addresses behind those without a selector, labels of nodes.

use std::collections::BTreeSet;
use std::sync::Arc;

use api::config::Config;
use api::k8s as objects;
use api::policy::{
    CiliumCidrGroup, CiliumClusterwideNetworkPolicy, CiliumNetworkPolicy, ClusterNetworkPolicy,
    Context, NetworkPolicy, PolicyObject as Read,
};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::ObjectMeta;
use kube::runtime::watcher;
use kube::{Api, Client, Resource};
use model::{Label, Labels, NodeName};
use policy::{PolicyKind, ServiceName};
use serde::de::DeserializeOwned;
use statedb::job::{Group as Jobs, Job};
use statedb::{Initializer, Row, Table, Writer};

use super::tables::{
    Group, NodeLabels, PolicyBackends, PolicyIntent, PolicyObject, PolicyService, PolicyWriters,
};
use crate::k8s::is_not_found;
use crate::k8s::watch::reflect;
use crate::ready::Pending;

/// Slices that Kubernetes makes of a service's selector are no news: labels of pods say the same.
const SLICES: &str = "endpointslice.kubernetes.io/managed-by!=endpointslice-controller.k8s.io";
/// Name of the definition that makes the API server know policies of the administrator.
const CLUSTER_NETWORK_POLICIES: &str = "clusternetworkpolicies.policy.networking.k8s.io";

/// Starts the watches. `waits` gives what is to be told when a source has listed.
pub fn follow(
    jobs: &Jobs,
    client: &Client,
    config: &Config,
    waits: impl Fn(&'static str) -> Pending,
) -> PolicyIntent {
    let (intent, writers) = PolicyIntent::new();
    let watches = Watches { jobs, client, waits: &waits };
    follow_policies(&watches, config, &intent, &writers);
    let key = |group: &CiliumCidrGroup| objects::name(&group.metadata).into_owned();
    watches.start("cidr-groups", everything(), &writers.groups, group, key);
    let key = |service: &objects::Service| service_name(&service.metadata);
    let row = |service: &objects::Service| Some(self::service(service));
    watches.start("services", everything(), &writers.services, row, key);
    let only = watcher::Config::default().labels(SLICES);
    watches.start("endpoint-slices", only, &writers.backends, backends, slice_name);
    let key = |node: &objects::Node| NodeName::new(objects::name(&node.metadata));
    let row = |node: &objects::Node| Some(node_labels(node));
    watches.start("node-labels", everything(), &writers.nodes, row, key);
    intent
}

fn everything() -> watcher::Config {
    watcher::Config::default()
}

/// How reading a policy depends on the configuration.
pub fn context(config: &Config) -> Context {
    Context {
        cluster_name: config.cluster_name.clone(),
        default_local_cluster: true,
        node_selectors: config.enable_node_selector_labels,
    }
}

fn follow_policies<W: Fn(&'static str) -> Pending>(
    watches: &Watches<'_, W>,
    config: &Config,
    intent: &PolicyIntent,
    writers: &PolicyWriters,
) {
    let context = Arc::new(context(config));
    if config.enable_k8s_networkpolicy {
        let kind = PolicyKind::NetworkPolicy;
        watches.policies::<NetworkPolicy>("network-policies", kind, writers, &context);
    }
    if config.enable_cilium_network_policy {
        let kind = PolicyKind::CiliumNetworkPolicy;
        watches.policies::<CiliumNetworkPolicy>("cilium-policies", kind, writers, &context);
    }
    if config.enable_cilium_clusterwide_network_policy {
        let kind = PolicyKind::CiliumClusterwideNetworkPolicy;
        let what = "cilium-clusterwide-policies";
        watches.policies::<CiliumClusterwideNetworkPolicy>(what, kind, writers, &context);
    }
    if config.enable_k8s_cluster_network_policy {
        let kind = PolicyKind::ClusterNetworkPolicy;
        let writer = writers.of(kind).clone();
        let complete = watches.listed("cluster-policies", intent.of(kind), &writer);
        let (client, context) = (watches.client.clone(), Arc::clone(&context));
        watches.jobs.spawn("watch-cluster-policies", |job| {
            watch_cluster_policies(job, client, writer, complete, context)
        });
    }
}

/// Follows policies of a kind that a cluster need not know: where there is no definition of it there
/// are none.
async fn watch_cluster_policies(
    job: Job,
    client: Client,
    writer: Writer<PolicyObject>,
    complete: Initializer<PolicyObject>,
    context: Arc<Context>,
) -> Result<(), String> {
    let definitions: Api<CustomResourceDefinition> = Api::all(client.clone());
    let answer = definitions.get(CLUSTER_NETWORK_POLICIES).await;
    let mut complete = Some(complete);
    if answer.as_ref().is_err_and(is_not_found) {
        tracing::info!("There is no {CLUSTER_NETWORK_POLICIES}, so there are no such policies yet");
        complete.take().into_iter().for_each(Initializer::done);
    }
    let api: Api<ClusterNetworkPolicy> = Api::all(client);
    let row = move |object: &ClusterNetworkPolicy| Some(policy(object, &context));
    reflect(job, api, everything(), writer, complete, row, Read::policy_id).await
}

/// What watches have in common.
struct Watches<'a, W> {
    jobs: &'a Jobs,
    client: &'a Client,
    waits: &'a W,
}

impl<W: Fn(&'static str) -> Pending> Watches<'_, W> {
    /// Follows the policies of one language.
    fn policies<K>(
        &self,
        what: &'static str,
        kind: PolicyKind,
        writers: &PolicyWriters,
        context: &Arc<Context>,
    ) where
        K: Resource<DynamicType = ()> + Read + Clone + DeserializeOwned + std::fmt::Debug + Send,
        K: 'static,
    {
        let context = Arc::clone(context);
        let row = move |object: &K| Some(policy(object, &context));
        self.start(what, everything(), writers.of(kind), row, Read::policy_id);
    }

    /// Follows the objects of one kind.
    fn start<K, R>(
        &self,
        what: &'static str,
        which: watcher::Config,
        writer: &Writer<R>,
        row: impl Fn(&K) -> Option<R> + Send + 'static,
        key: impl Fn(&K) -> R::Key + Send + 'static,
    ) where
        K: Resource<DynamicType = ()> + Clone + DeserializeOwned + std::fmt::Debug + Send + 'static,
        R: Row,
    {
        let complete = self.listed(what, writer.table(), writer);
        let (api, writer): (Api<K>, _) = (Api::all(self.client.clone()), writer.clone());
        self.jobs.spawn(format!("watch-{what}"), |job| {
            reflect(job, api, which, writer, complete, row, key)
        });
    }

    /// The promise of a watch to say when it has listed; the agent waits for it.
    fn listed<R: Row>(
        &self,
        what: &'static str,
        table: &Table<R>,
        writer: &Writer<R>,
    ) -> Initializer<R> {
        let (pending, table) = ((self.waits)(what), table.clone());
        let complete = writer.initializer("kubernetes");
        self.jobs.spawn(format!("list-{what}"), |job| async move {
            tokio::select! {
                () = job.stop.cancelled() => {}
                _ = table.initialized() => pending.done(),
            }
            Ok::<(), String>(())
        });
        complete
    }
}

/// A policy object as a row.
pub fn policy<K: Resource<DynamicType = ()> + Read>(object: &K, context: &Context) -> PolicyObject {
    let meta = object.meta();
    let version = meta.resource_version.as_deref().and_then(|text| text.parse().ok());
    let (policy, errors, notes) = match object.read(context) {
        Ok(accepted) => (Some(Arc::new(accepted.policy)), Vec::new(), accepted.notes),
        Err(refused) => (None, refused.errors, Vec::new()),
    };
    PolicyObject {
        id: object.policy_id(),
        generation: meta.generation.unwrap_or_default(),
        resource_version: version.unwrap_or_default(),
        policy,
        errors: errors.iter().map(ToString::to_string).collect(),
        not_enforced: notes.iter().map(ToString::to_string).collect(),
    }
}

/// A CIDR group as a row; one that makes no sense is as if it did not exist.
pub fn group(object: &CiliumCidrGroup) -> Option<Group> {
    let name = objects::name(&object.metadata).into_owned();
    match object.read() {
        Ok(group) => Some(Group { name, group }),
        Err(error) => {
            tracing::warn!(group = name, %error, "Ignored a CIDR group");
            None
        }
    }
}

/// A service as a row.
pub fn service(object: &objects::Service) -> PolicyService {
    PolicyService {
        name: service_name(&object.metadata),
        labels: Arc::new(kubernetes_labels(&object.metadata)),
        selector: object.spec.selector.clone(),
    }
}

/// A slice as a row; none where it belongs to no service.
pub fn backends(object: &objects::EndpointSlice) -> Option<PolicyBackends> {
    let name = objects::labels(&object.metadata).get(objects::LABEL_SERVICE_NAME)?.clone();
    let namespace = object.metadata.namespace.clone().unwrap_or_default();
    let texts = object.endpoints.iter().flat_map(|endpoint| &endpoint.addresses);
    Some(PolicyBackends {
        slice: slice_name(object),
        service: ServiceName { namespace, name },
        addresses: texts.filter_map(|text| text.parse().ok()).collect::<BTreeSet<_>>(),
    })
}

/// The labels of a node as a row.
pub fn node_labels(object: &objects::Node) -> NodeLabels {
    NodeLabels {
        name: NodeName::new(objects::name(&object.metadata)),
        labels: Arc::new(kubernetes_labels(&object.metadata)),
    }
}

fn kubernetes_labels(meta: &ObjectMeta) -> Labels {
    objects::labels(meta).iter().map(|(key, value)| Label::k8s(key, value)).collect()
}

fn service_name(meta: &ObjectMeta) -> ServiceName {
    ServiceName {
        namespace: meta.namespace.clone().unwrap_or_default(),
        name: objects::name(meta).into_owned(),
    }
}

fn slice_name(object: &objects::EndpointSlice) -> (String, String) {
    let meta = &object.metadata;
    (meta.namespace.clone().unwrap_or_default(), objects::name(meta).into_owned())
}
