//! What runs a node's pods: the part of a kubelet and of a container runtime that networking needs.
//!
//! It creates a network namespace per pod, calls the CNI plugin as a runtime does, runs the
//! containers' processes, and reports as a kubelet does. Containers are processes of the host's
//! file system with a network, a host name, mounts and a cgroup of their own.

pub mod cni;
pub mod container;
pub mod environment;
pub mod etc;
pub mod payload;
pub mod pod;
pub mod probe;
pub mod record;
pub mod resources;
pub mod rootfs;
pub mod status;
pub mod volumes;

use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use k8s_openapi::api::core::v1::Pod;
use kernel::cgroup::Cgroup;
use tokio::sync::{broadcast, mpsc, watch};
use tokio::task::JoinSet;
use tracing::warn;

use crate::cluster::{CONFIG_MAPS, Cluster, PODS, SECRETS};
use crate::place::Place;
use crate::spec::Paths;
use crate::streams::Consoles;

/// A node with everything its pods need.
pub struct Node {
    /// Name of the Node object.
    pub name: String,
    /// Addresses on the underlay, IPv4 first.
    pub addresses: Vec<IpAddr>,
    /// Namespaces and cgroup.
    pub place: Arc<Place>,
    /// The objects.
    pub cluster: Cluster,
    /// The CNI plugins.
    pub cni: cni::Cni,
    /// The lab's files.
    pub paths: Paths,
    /// This program, which has the built-in images.
    pub own_program: String,
    /// Parent of the pods' cgroups.
    pub pods_cgroup: Cgroup,
    /// Pods that have a worker, by unique id.
    pub running: Shared<HashMap<String, Running>>,
    /// Sandboxes that exist, by container id.
    pub attachments: Shared<BTreeSet<String>>,
    /// Whether the network can take pods.
    pub ready: watch::Sender<bool>,
    /// Whom pods ask for names: the cluster's name servers that are ready.
    pub cluster_dns: watch::Receiver<Vec<IpAddr>>,
    /// Containers that can be typed into.
    pub consoles: Arc<Consoles>,
    /// Tells of every change of a ConfigMap or Secret.
    pub sources: broadcast::Sender<SourceChange>,
    /// Where pods find the API server, host and port.
    pub api_server: SocketAddr,
}

/// A ConfigMap or Secret has changed.
#[derive(Clone, Debug)]
pub struct SourceChange {
    /// `configmap` or `secret`.
    pub kind: &'static str,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

/// Changes that wait for a pod to look at them; one that is slower looks at everything again.
pub const SOURCE_CHANGES_MAX: usize = 256;

/// Tells of every change of ConfigMaps and Secrets.
pub async fn follow_sources(cluster: Cluster, changes: broadcast::Sender<SourceChange>) {
    let mut config_maps = cluster.watch(CONFIG_MAPS);
    let mut secrets = cluster.watch(SECRETS);
    loop {
        let (kind, change) = tokio::select! {
            change = config_maps.next() => ("configmap", change),
            change = secrets.next() => ("secret", change),
        };
        let (namespace, name) = (change.namespace().to_owned(), change.name().to_owned());
        // Without pods nobody listens.
        let _ = changes.send(SourceChange { kind, namespace, name });
    }
}

impl std::fmt::Debug for Node {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Node").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Node {
    /// Returns when the network becomes ready; never, if it is ready already.
    pub async fn network_ready(&self) {
        let mut ready = self.ready.subscribe();
        if *ready.borrow() || ready.wait_for(|ready| *ready).await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

impl Node {
    /// The files below `/etc` of a pod.
    pub fn etc(&self, uid: &str) -> etc::Etc {
        etc::Etc::at(self.paths.pod(uid).join("etc"))
    }

    /// Tells pods that run whom to ask for names, whenever that changes.
    pub async fn follow_cluster_dns(self: Arc<Self>) {
        let mut servers = self.cluster_dns.clone();
        while servers.changed().await.is_ok() {
            let addresses = servers.borrow_and_update().clone();
            let running: Vec<(String, Running)> =
                self.running.lock().iter().map(|(uid, pod)| (uid.clone(), pod.clone())).collect();
            for (uid, Running { namespace, name, .. }) in running {
                let pod = self.cluster.find(PODS, &namespace, &name);
                let Some(pod) = pod.and_then(|pod| serde_json::from_value::<Pod>(pod).ok()) else {
                    continue;
                };
                // A successor of this name has files of its own.
                let etc = self.etc(&uid);
                if pod.metadata.uid.as_deref() != Some(&uid) || !etc.exists() {
                    continue;
                }
                if let Err(error) = etc.write_resolv_conf(&pod, &addresses) {
                    warn!(pod = name, "{error:#}");
                }
            }
        }
    }
}

/// A value that several tasks look at for a moment.
#[derive(Debug, Default)]
pub struct Shared<T>(Mutex<T>);

impl<T> From<T> for Shared<T> {
    fn from(value: T) -> Self {
        Self(Mutex::new(value))
    }
}

impl<T> Shared<T> {
    /// Exclusive access; never held across an await.
    pub fn lock(&self) -> MutexGuard<'_, T> {
        // Every critical section is a single operation, so a panic leaves no half-done state.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where the containers of a pod are.
#[derive(Clone, Debug)]
pub struct Running {
    /// The pod's namespace.
    pub namespace: String,
    /// The pod's name.
    pub name: String,
    /// Its containers, in the order of the specification.
    pub containers: Vec<String>,
    /// The pod's cgroup; each container has one below.
    pub cgroup: PathBuf,
}

/// Something happened to a pod of this node.
#[derive(Debug)]
pub struct PodChange {
    /// The latest object.
    pub pod: Arc<Pod>,
    /// The object is gone.
    pub gone: bool,
}

/// Runs the node's pods for as long as changes come.
pub async fn run(node: Arc<Node>, mut changes: mpsc::UnboundedReceiver<PodChange>) {
    let mut pods: HashMap<String, watch::Sender<pod::Wanted>> = HashMap::new();
    let mut workers = JoinSet::new();
    loop {
        tokio::select! {
            change = changes.recv() => {
                let Some(PodChange { pod, gone }) = change else { return };
                // A machine that stands still learns of nothing.
                node.place.awake().await;
                let uid = pod.metadata.uid.clone().unwrap_or_default();
                let wanted = pod::Wanted { pod, gone };
                if let Some(sender) = pods.get(&uid) {
                    sender.send_replace(wanted);
                } else if !gone {
                    let (sender, receiver) = watch::channel(wanted);
                    let worker = pod::Worker::new(node.clone(), receiver);
                    workers.spawn(async move {
                        worker.run().await;
                        uid
                    });
                    let uid = sender.borrow().pod.metadata.uid.clone().unwrap_or_default();
                    pods.insert(uid, sender);
                }
            }
            Some(ended) = workers.join_next() => match ended {
                Ok(uid) => drop(pods.remove(&uid)),
                Err(error) => warn!(node = node.name, "pod worker: {error}"),
            },
        }
    }
}
