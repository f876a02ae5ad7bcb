//! From the API server to the cluster's names.

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use futures::StreamExt as _;
use hickory_proto::rr::Name;
use k8s_openapi::api::core::v1::{Namespace, Pod, Service as K8sService, ServicePort};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client, Config, Resource, ResourceExt as _};
use serde::de::DeserializeOwned;
use tokio::sync::watch;
use tracing::{info, warn};

use super::cluster::{Cluster, Endpoint, PodNames, Port, Service, ServiceKind, Slice};
use super::server::Server;

/// The label by which a slice names its Service.
const SERVICE_LABEL: &str = "kubernetes.io/service-name";
/// A Service of this cluster IP is headless.
const HEADLESS: &str = "None";

/// A client of the API server that the kubeconfig names, else of the cluster we are in.
pub async fn client(kubeconfig: Option<&Path>) -> Result<Client> {
    let config = match kubeconfig {
        Some(path) => {
            let read = || format!("read kubeconfig {}", path.display());
            let kubeconfig = Kubeconfig::read_from(path).with_context(read)?;
            Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
                .await
                .with_context(read)?
        }
        None => Config::incluster()
            .context("not in a pod with a service account; name a file with --kubeconfig")?,
    };
    Ok(Client::try_from(config)?)
}

/// Keeps the server's names as the API server's objects are; `synced` counts the resources that
/// have been listed.
pub async fn follow(
    client: Client,
    server: Arc<Server<Cluster>>,
    pods: PodNames,
    synced: watch::Sender<usize>,
) {
    let namespaces =
        reflect(&client, &server, &synced, |cluster, key: Key<'_>, object: Option<&Namespace>| {
            cluster.set_namespace(key.name, object.is_some());
        });
    let services =
        reflect(&client, &server, &synced, |cluster, key, object: Option<&K8sService>| {
            cluster.set_service(key.namespace, key.name, object.and_then(service));
        });
    let slices =
        reflect(&client, &server, &synced, |cluster, key, object: Option<&EndpointSlice>| {
            cluster.set_slice(key.namespace, key.name, object.and_then(slice));
        });
    let pods = async {
        if pods == PodNames::Verified {
            reflect(&client, &server, &synced, |cluster, key, object: Option<&Pod>| {
                cluster.set_pod(key.namespace, key.name, object.map(addresses).unwrap_or_default());
            })
            .await;
        }
    };
    tokio::join!(namespaces, services, slices, pods);
}

/// How many resources [`follow`] lists.
pub fn resources(pods: PodNames) -> usize {
    3 + usize::from(pods == PodNames::Verified)
}

/// Where an object is.
#[derive(Clone, Copy, Debug)]
struct Key<'a> {
    namespace: &'a str,
    name: &'a str,
}

/// Follows one resource for ever.
async fn reflect<K>(
    client: &Client,
    server: &Server<Cluster>,
    synced: &watch::Sender<usize>,
    set: impl Fn(&mut Cluster, Key<'_>, Option<&K>),
) where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let kind = K::kind(&());
    let mut events = watcher(Api::<K>::all(client.clone()), watcher::Config::default())
        .default_backoff()
        .boxed();
    let mut known: BTreeSet<(String, String)> = BTreeSet::new();
    let mut listed = BTreeSet::new();
    let mut complete = false;
    let key = |object: &K| (object.namespace().unwrap_or_default(), object.name_any());
    let put = |(namespace, name): &(String, String), object: Option<&K>| {
        set(&mut server.zone(), Key { namespace, name }, object);
    };
    while let Some(event) = events.next().await {
        match event {
            Ok(Event::Init) => listed.clear(),
            Ok(Event::InitApply(object)) => {
                put(&key(&object), Some(&object));
                listed.insert(key(&object));
            }
            Ok(Event::InitDone) => {
                // What has gone while nobody watched.
                known.difference(&listed).for_each(|key| put(key, None));
                known = std::mem::take(&mut listed);
                if !complete {
                    complete = true;
                    info!("listed {} of {kind}", known.len());
                    synced.send_modify(|count| *count += 1);
                }
            }
            Ok(Event::Apply(object)) => {
                put(&key(&object), Some(&object));
                known.insert(key(&object));
            }
            Ok(Event::Delete(object)) => {
                put(&key(&object), None);
                known.remove(&key(&object));
            }
            Err(error) => warn!("follow {kind}: {error}; trying again"),
        }
    }
}

// ---------------------------------------------------------------------------------------------
// Objects

/// A Service as names see it; `None` when it has none, because it has no address yet.
fn service(object: &K8sService) -> Option<Service> {
    let spec = object.spec.as_ref()?;
    let ips = spec.cluster_ips.iter().flatten().chain(&spec.cluster_ip);
    let kind = if spec.type_.as_deref() == Some("ExternalName") {
        let target = spec.external_name.as_deref()?.trim_end_matches('.');
        ServiceKind::External(Name::from_ascii(format!("{target}.")).ok()?)
    } else if spec.cluster_ip.as_deref() == Some(HEADLESS) {
        ServiceKind::Headless
    } else {
        let mut ips: Vec<IpAddr> = ips.filter_map(|ip| ip.parse().ok()).collect();
        ips.dedup();
        if ips.is_empty() {
            return None;
        }
        ServiceKind::ClusterIp(ips)
    };
    let port = |port: &ServicePort| {
        make_port(port.name.as_deref(), port.protocol.as_deref(), Some(port.port))
    };
    Some(Service {
        kind,
        ports: spec.ports.iter().flatten().filter_map(port).collect(),
        publish_not_ready: spec.publish_not_ready_addresses.unwrap_or(false),
    })
}

fn make_port(name: Option<&str>, protocol: Option<&str>, number: Option<i32>) -> Option<Port> {
    Some(Port {
        name: name.unwrap_or_default().to_owned(),
        protocol: protocol.unwrap_or("TCP").to_ascii_lowercase(),
        number: u16::try_from(number?).ok()?,
    })
}

fn slice(object: &EndpointSlice) -> Option<Slice> {
    let ports = object.ports.iter().flatten();
    let ports = ports.filter_map(|p| make_port(p.name.as_deref(), p.protocol.as_deref(), p.port));
    let endpoints = object.endpoints.iter().map(|endpoint| Endpoint {
        addresses: endpoint.addresses.iter().filter_map(|ip| ip.parse().ok()).collect(),
        hostname: endpoint.hostname.clone(),
        // Unknown is to be taken as ready.
        ready: endpoint.conditions.as_ref().and_then(|c| c.ready).unwrap_or(true),
    });
    Some(Slice {
        service: object.labels().get(SERVICE_LABEL)?.clone(),
        endpoints: endpoints.collect(),
        ports: ports.collect(),
    })
}

fn addresses(pod: &Pod) -> Vec<IpAddr> {
    let status = pod.status.as_ref();
    let own_network = !pod.spec.as_ref().and_then(|spec| spec.host_network).unwrap_or(false);
    let ips = status.into_iter().flat_map(|s| s.pod_ips.iter().flatten());
    ips.filter(|_| own_network).filter_map(|ip| ip.ip.parse().ok()).collect()
}
