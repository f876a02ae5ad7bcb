//! One pod from the moment it is assigned to its node until its object is gone.
//!
//! ```text
//!   volumes (again until all are there)
//!   sandbox: network namespace, CNI ADD (again until it works)
//!     └ init containers, one after the other
//!         └ containers, all at once
//!   deleted: SIGTERM … SIGKILL → CNI DEL → namespace and cgroup removed → object removed
//! ```
//!
//! The worker owns everything of its pod; it is told what is wanted through a watch and answers
//! by the pod's status.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use k8s_openapi::api::core::v1::{self as k8s, Pod, PodStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kernel::netns::Netns;
use serde_json::Value;
use tokio::sync::{broadcast, mpsc, watch};
use tokio::task::JoinSet;
use tracing::{info, warn};

use super::cni::{self, Attachment};
use super::container::{self, Job, Sandbox, Stop, new_id};
use super::status::{Container, Seen, State, pod_status, restore};
use super::volumes::Volumes;
use super::{Node, Running, SourceChange, record};
use crate::logs::{self, log_name};
use crate::spec::NETNS_DIR;

/// Pauses between attempts to set up a pod's network; the last one repeats.
const SANDBOX_BACKOFF_MS: [u64; 5] = [200, 500, 1_000, 2_000, 5_000];
/// Pauses between attempts to make a pod's volumes; the last one repeats.
const VOLUME_BACKOFF_MS: [u64; 6] = [500, 1_000, 2_000, 4_000, 8_000, 16_000];
/// Shortest pause between two renewals of what gets old.
const REFRESH_PAUSE: Duration = Duration::from_secs(1);
/// How long a pod may take to stop when it does not say.
const GRACE_DEFAULT_S: i64 = 30;

/// What the API server wants of a pod.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// The latest object.
    pub pod: Arc<Pod>,
    /// The object is gone already: it was deleted by force.
    pub gone: bool,
}

impl Wanted {
    /// How long the pod may take to stop; `None` while it shall run.
    fn stop(&self) -> Option<Duration> {
        if self.gone {
            return Some(Duration::ZERO);
        }
        let meta = &self.pod.metadata;
        meta.deletion_timestamp.as_ref()?;
        let seconds = meta.deletion_grace_period_seconds.unwrap_or(GRACE_DEFAULT_S);
        Some(Duration::from_secs(u64::try_from(seconds).unwrap_or_default()))
    }
}

/// Runs one pod.
pub struct Worker {
    node: Arc<Node>,
    wanted: watch::Receiver<Wanted>,
    seen: Seen,
    /// The status that the API server has.
    written: PodStatus,
    uid: String,
    namespace: String,
    name: String,
    volumes: Arc<Volumes>,
    /// An earlier runner has begun with the pod.
    restored: bool,
}

/// A network that was set up for a pod.
struct Network {
    netns: Netns,
    attachment: Attachment,
    result: Value,
}

impl Worker {
    /// A worker for the pod that `wanted` holds.
    pub fn new(node: Arc<Node>, wanted: watch::Receiver<Wanted>) -> Self {
        let pod = wanted.borrow().pod.clone();
        let spec = pod.spec.clone().unwrap_or_default();
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        let before = Some(()).filter(|()| node.paths.pod(&uid).exists() || is_finished(&pod));
        let before = before.and_then(|()| restore(&pod, &node.addresses));
        let waiting = |reason: &'static str, count: usize| {
            let state = State::Waiting { reason, message: String::new() };
            vec![Container { state, ..Container::default() }; count]
        };
        let init_count = spec.init_containers.as_ref().map_or(0, Vec::len);
        let reason = if init_count == 0 { "ContainerCreating" } else { "PodInitializing" };
        Self {
            restored: before.is_some(),
            seen: before.unwrap_or_else(|| Seen {
                start_time: Time(Timestamp::now()),
                sandbox_ready: false,
                addresses: Vec::new(),
                host_addresses: node.addresses.clone(),
                init_containers: waiting("PodInitializing", init_count),
                containers: waiting(reason, spec.containers.len()),
            }),
            written: pod.status.clone().unwrap_or_default(),
            volumes: Arc::new(Volumes::new(node.clone(), &uid)),
            uid,
            namespace: pod.metadata.namespace.clone().unwrap_or_default(),
            name: pod.metadata.name.clone().unwrap_or_default(),
            node,
            wanted,
        }
    }

    /// Runs the pod to its end.
    pub async fn run(mut self) {
        let mut network = None;
        if !(self.restored && is_finished(&self.pod())) {
            if !self.restored {
                // Those of an earlier pod of the same name.
                self.remove_logs();
            }
            self.set_up_volumes().await;
            network = self.set_up().await;
            // What runs already is to be stopped as it should be.
            if self.stop().is_none() || self.restored {
                self.run_containers(network.as_ref()).await;
            }
        }
        let finished = self.wanted.borrow().stop().is_none();
        if finished {
            // The containers have ended for good. The status stays until somebody deletes the pod,
            // the address is free again.
            self.tear_down(network.take()).await;
            self.seen.sandbox_ready = false;
            self.write_status();
            let _ = self.wanted.wait_for(|wanted| wanted.stop().is_some()).await;
        }
        self.tear_down(network).await;
        self.remove_logs();
        let gone = self.wanted.borrow().gone;
        if !gone {
            self.write_status();
            self.node.cluster.delete_pod(&self.namespace, &self.name, &self.uid);
        }
        self.node.running.lock().remove(&self.uid);
    }

    fn remove_logs(&self) {
        let spec = self.pod().spec.clone().unwrap_or_default();
        for container in spec.init_containers.iter().flatten().chain(&spec.containers) {
            let name = log_name(&self.namespace, &self.name, &container.name);
            logs::remove(&self.node.paths, &name);
        }
    }

    fn pod(&self) -> Arc<Pod> {
        self.wanted.borrow().pod.clone()
    }

    fn stop(&self) -> Option<Duration> {
        self.wanted.borrow().stop()
    }

    fn host_network(&self) -> bool {
        self.pod().spec.as_ref().and_then(|spec| spec.host_network).unwrap_or(false)
    }

    fn cgroup_name(&self) -> String {
        format!("pod{}", self.uid)
    }

    // -----------------------------------------------------------------------------------------
    // Volumes

    /// Makes the pod's volumes; returns without them when the pod is deleted.
    async fn set_up_volumes(&mut self) {
        let mut changes = self.volume_changes();
        for attempt in 0.. {
            if self.stop().is_some() {
                return;
            }
            let Err(failure) = self.volumes.set_up(&self.pod()).await else { return };
            info!(pod = self.name, namespace = self.namespace, "{failure}");
            self.event("FailedMount", &failure.to_string());
            self.write_status();
            let pause = VOLUME_BACKOFF_MS.get(attempt).or(VOLUME_BACKOFF_MS.last());
            let pause = Duration::from_millis(pause.copied().unwrap_or_default());
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                // What was missing may be there now.
                () = changes.next() => {}
                _ = self.wanted.wait_for(|wanted| wanted.stop().is_some()) => return,
            }
        }
    }

    /// Brings the volumes up to date. What cannot be brought stays as it was.
    async fn refresh_volumes(&self) {
        if let Err(failure) = self.volumes.set_up(&self.pod()).await {
            self.event("FailedMount", &failure.to_string());
        }
    }

    fn volume_changes(&self) -> VolumeChanges {
        let meta = self.pod().metadata.clone();
        VolumeChanges {
            sources: self.node.sources.subscribe(),
            wanted: self.wanted.clone(),
            described: (meta.labels, meta.annotations),
            volumes: self.volumes.clone(),
        }
    }

    // -----------------------------------------------------------------------------------------
    // The sandbox

    /// Sets up the pod's network; returns without one when the pod needs none or is deleted.
    async fn set_up(&mut self) -> Option<Network> {
        if self.host_network() {
            self.seen.addresses.clone_from(&self.node.addresses);
            self.seen.sandbox_ready = true;
            return None;
        }
        if let Some(network) = self.restore_network().await {
            self.seen.addresses = cni::addresses(&network.result);
            self.seen.sandbox_ready = true;
            return Some(network);
        }
        for attempt in 0.. {
            // Also before the first attempt: the pod may have been deleted while it waited.
            if self.stop().is_some() {
                return None;
            }
            match self.try_set_up().await {
                Ok(network) => {
                    self.seen.addresses = cni::addresses(&network.result);
                    self.seen.sandbox_ready = true;
                    return Some(network);
                }
                Err(error) => {
                    let message = format!("Failed to create pod sandbox: {error:#}");
                    info!(pod = self.name, namespace = self.namespace, "{message}");
                    self.event("FailedCreatePodSandBox", &message);
                    self.write_status();
                }
            }
            let pause = SANDBOX_BACKOFF_MS.get(attempt).or(SANDBOX_BACKOFF_MS.last());
            let pause = Duration::from_millis(pause.copied().unwrap_or_default());
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                // The network may have become ready meanwhile: then there is no reason to wait.
                () = self.node.network_ready() => {}
                _ = self.wanted.wait_for(|wanted| wanted.stop().is_some()) => return None,
            }
        }
        None
    }

    /// The network that an earlier runner has set up.
    async fn restore_network(&self) -> Option<Network> {
        let record::Sandbox { container_id, result, .. } =
            record::Sandbox::read(&self.node.paths.pod(&self.uid))?;
        let attachment = self.attachment(container_id);
        let path = PathBuf::from(&attachment.netns);
        let netns = self.node.place.run(move || Netns::open(&path)).await.ok()?.ok()?;
        Some(Network { netns, attachment, result })
    }

    fn attachment(&self, container_id: String) -> Attachment {
        let path = PathBuf::from(NETNS_DIR).join(&container_id);
        Attachment {
            container_id,
            netns: path.display().to_string(),
            pod_namespace: self.namespace.clone(),
            pod_name: self.name.clone(),
            pod_uid: self.uid.clone(),
        }
    }

    async fn try_set_up(&self) -> Result<Network> {
        let attachment = self.attachment(new_id());
        let at = PathBuf::from(&attachment.netns);
        let netns = self.node.place.run(move || new_pod_netns(&at)).await??;
        // Known before ADD begins, so that a garbage collection does not take it away.
        self.node.attachments.lock().insert(attachment.container_id.clone());
        let added = self.node.cni.add(&attachment).await;
        match added {
            Ok(result) => {
                let record = record::Sandbox {
                    node: self.node.name.clone(),
                    container_id: attachment.container_id.clone(),
                    result: result.clone(),
                };
                let network = Network { netns, attachment, result };
                match record.write(&self.node.paths.pod(&self.uid)) {
                    Ok(()) => Ok(network),
                    Err(error) => {
                        self.release(network).await;
                        Err(error).context("keep the pod's network in mind")
                    }
                }
            }
            Err(error) => {
                // As the specification asks: whatever a failed ADD left is for DEL to release.
                let network = Network { netns, attachment, result: Value::Null };
                self.release(network).await;
                Err(error.into())
            }
        }
    }

    /// CNI DEL and the end of the namespace. Retried until the plugin succeeds, as runtimes do.
    async fn release(&self, network: Network) {
        let Network { netns, attachment, result } = network;
        let result = Some(&result).filter(|result| !result.is_null());
        for attempt in 0.. {
            match self.node.cni.delete(&attachment, result).await {
                Ok(()) => break,
                Err(error) => {
                    warn!(pod = self.name, "CNI DEL: {error}; trying again");
                    if attempt == 0 {
                        self.event("FailedKillPod", &format!("error killing pod: {error}"));
                    }
                }
            }
            let pause = SANDBOX_BACKOFF_MS.get(attempt).or(SANDBOX_BACKOFF_MS.last());
            tokio::time::sleep(Duration::from_millis(pause.copied().unwrap_or_default())).await;
        }
        let path = PathBuf::from(&attachment.netns);
        let removed = self.node.place.run(move || {
            drop(netns);
            Netns::delete(&path)
        });
        if let Err(error) = removed.await.and_then(|r| r.map_err(Into::into)) {
            warn!(pod = self.name, "{error:#}");
        }
        self.node.attachments.lock().remove(&attachment.container_id);
    }

    async fn tear_down(&self, network: Option<Network>) {
        self.volumes.remove(&self.pod()).await;
        if let Some(network) = network {
            self.release(network).await;
        }
        let pods =
            kernel::cgroup::Cgroup::at(self.node.pods_cgroup.path().join(self.cgroup_name()));
        container::remove_cgroup(&pods).await;
    }

    // -----------------------------------------------------------------------------------------
    // Containers

    async fn run_containers(&mut self, network: Option<&Network>) {
        let sandbox = match self.sandbox(network) {
            Ok(sandbox) => Arc::new(sandbox),
            Err(error) => {
                self.event("FailedCreatePodSandBox", &format!("{error:#}"));
                let _ = self.wanted.wait_for(|wanted| wanted.stop().is_some()).await;
                return;
            }
        };
        let pod = self.pod();
        let spec = pod.spec.clone().unwrap_or_default();
        let policy = spec.restart_policy.as_deref().unwrap_or("Always");
        let init = spec.init_containers.clone().unwrap_or_default();
        for (index, container) in init.into_iter().enumerate() {
            if self.seen.init_containers.get(index).is_some_and(ended_well) {
                // In an earlier runner's time.
                continue;
            }
            let job = self.job(container, (false, policy != "Never"), &sandbox);
            let done = self.run_jobs(vec![(Slot::Init(index), job)]).await;
            let failed = !done || !self.seen.init_containers.get(index).is_some_and(ended_well);
            if failed || self.stop().is_some() {
                return;
            }
        }
        let restart = (policy == "Always", policy != "Never");
        let containers = spec.containers.into_iter().enumerate();
        let jobs = containers.map(|(n, spec)| (Slot::Main(n), self.job(spec, restart, &sandbox)));
        let jobs = jobs.collect();
        self.run_jobs(jobs).await;
    }

    fn sandbox(&self, network: Option<&Network>) -> Result<Sandbox> {
        let cgroup = self.node.pods_cgroup.child(&self.cgroup_name())?;
        let netns = match network {
            Some(network) => {
                use std::os::fd::AsFd as _;
                let own = network.netns.as_fd().try_clone_to_owned().context("copy descriptor")?;
                let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&own));
                Some(Netns::open(std::path::Path::new(&path))?)
            }
            None => None,
        };
        let (etc, pod) = (self.node.etc(&self.uid), self.pod());
        // From now on changes of the name servers reach the pod.
        self.publish(&pod);
        etc.write(&pod, &self.seen.addresses, &self.node.cluster_dns.borrow())?;
        Ok(Sandbox {
            netns,
            files: etc.binds(&pod),
            volumes: self.volumes.clone(),
            addresses: self.seen.addresses.clone(),
            cgroup,
            dir: self.node.paths.pod(&self.uid),
            node: self.node.clone(),
            pod: (self.namespace.clone(), self.name.clone()),
        })
    }

    fn job(&self, spec: k8s::Container, restart: (bool, bool), sandbox: &Arc<Sandbox>) -> Job {
        let mut pod = Pod::clone(&self.pod());
        // What the downward API tells is what we know, which the API server may not have yet.
        pod.status = Some(pod_status(&pod, &self.seen, &self.written, &Time(Timestamp::now())));
        Job { pod, spec, restart, sandbox: sandbox.clone() }
    }

    /// Runs containers until all have ended; says whether they did so by themselves.
    async fn run_jobs(&mut self, jobs: Vec<(Slot, Job)>) -> bool {
        let (stopper, stop) = watch::channel(None::<Duration>);
        let (reports, mut inbox) = mpsc::unbounded_channel::<(Slot, Container)>();
        let mut tasks = JoinSet::new();
        for (slot, job) in jobs {
            let reports = reports.clone();
            let stop: Stop = stop.clone();
            let first = self.slot(slot).clone();
            tasks.spawn(async move {
                let report = |container: &Container| {
                    let _ = reports.send((slot, container.clone()));
                };
                let last = container::run(&job, first, report, stop).await;
                (slot, last)
            });
        }
        drop(reports);
        // What is wanted may have changed before we looked.
        self.wanted.mark_changed();
        let mut stopping = None;
        let mut volume_changes = self.volume_changes();
        loop {
            tokio::select! {
                Some((slot, container)) = inbox.recv() => {
                    self.take(slot, container);
                    while let Ok((slot, container)) = inbox.try_recv() {
                        self.take(slot, container);
                    }
                    self.write_status();
                }
                ended = tasks.join_next() => match ended {
                    Some(Ok((slot, container))) => *self.slot(slot) = container,
                    Some(Err(error)) => warn!(pod = self.name, "container task: {error}"),
                    None => break,
                },
                Ok(()) = self.wanted.changed() => {
                    let wanted = self.wanted.borrow_and_update().stop();
                    if wanted != stopping {
                        stopping = wanted;
                        stopper.send_replace(wanted);
                    }
                    self.assert_status();
                }
                () = volume_changes.next() => self.refresh_volumes().await,
            }
        }
        self.write_status();
        stopping.is_none()
    }

    /// Takes in what a container reports, and tells the user what a status does not keep.
    fn take(&mut self, slot: Slot, container: Container) {
        if let State::Waiting { reason, message } = &container.state {
            let kind = if reason.ends_with("BackOff") { "BackOff" } else { "Failed" };
            if !message.is_empty() && self.slot(slot).state != container.state {
                self.event(kind, &format!("{reason}: {message}"));
            }
        }
        *self.slot(slot) = container;
    }

    fn slot(&mut self, slot: Slot) -> &mut Container {
        match slot {
            Slot::Init(index) => &mut self.seen.init_containers[index],
            Slot::Main(index) => &mut self.seen.containers[index],
        }
    }

    // -----------------------------------------------------------------------------------------
    // Telling

    fn write_status(&mut self) {
        let wanted = self.wanted.borrow().clone();
        self.publish(&wanted.pod);
        if wanted.gone {
            return;
        }
        let status = pod_status(&wanted.pod, &self.seen, &self.written, &Time(Timestamp::now()));
        if status == self.written {
            return;
        }
        let written =
            self.node.cluster.write_pod_status(&self.namespace, &self.name, &self.uid, &status);
        match written {
            Ok(()) => self.written = status,
            Err(error) => warn!(pod = self.name, "write status: {error:#}"),
        }
    }

    /// Says again what is true where somebody else has said something different: the pod counts as not
    /// ready when its node has not been heard of for a while.
    fn assert_status(&mut self) {
        let ready = |status: &PodStatus| {
            let mut conditions = status.conditions.iter().flatten();
            conditions.find(|c| c.type_ == "Ready").map(|c| c.status.clone())
        };
        let said = self.pod().status.clone().unwrap_or_default();
        if ready(&said).is_some() && ready(&said) != ready(&self.written) {
            self.written = said;
            self.write_status();
        }
    }

    /// Lets `cilium lab exec` find the containers.
    fn publish(&self, pod: &Pod) {
        let spec = pod.spec.as_ref();
        let names = spec.iter().flat_map(|spec| spec.containers.iter()).map(|c| c.name.clone());
        let running = Running {
            namespace: self.namespace.clone(),
            name: self.name.clone(),
            containers: names.collect(),
            cgroup: self.node.pods_cgroup.path().join(self.cgroup_name()),
        };
        self.node.running.lock().insert(self.uid.clone(), running);
    }

    fn event(&self, reason: &str, message: &str) {
        self.node.cluster.pod_event(&self.pod(), &self.node.name, "Warning", reason, message);
    }
}

type Labels = Option<std::collections::BTreeMap<String, String>>;

/// Tells when a pod's volumes may have to be written anew.
struct VolumeChanges {
    sources: broadcast::Receiver<SourceChange>,
    wanted: watch::Receiver<Wanted>,
    /// Labels and annotations, which files may show.
    described: (Labels, Labels),
    volumes: Arc<Volumes>,
}

impl VolumeChanges {
    /// Returns when an object behind a volume or the pod itself has changed, or a token gets old.
    async fn next(&mut self) {
        loop {
            let aged = async {
                match self.volumes.rest() {
                    Some(rest) => tokio::time::sleep(rest.max(REFRESH_PAUSE)).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = aged => return,
                change = self.sources.recv() => match change {
                    Ok(change) => {
                        let pod = self.wanted.borrow().pod.clone();
                        let ours = pod.metadata.namespace.as_ref() == Some(&change.namespace);
                        if ours && Volumes::refer_to(&pod, change.kind, &change.name) {
                            return;
                        }
                    }
                    Err(broadcast::error::RecvError::Lagged(_)) => return,
                    // The lab ends.
                    Err(broadcast::error::RecvError::Closed) => std::future::pending().await,
                },
                Ok(()) = self.wanted.changed() => {
                    let meta = self.wanted.borrow_and_update().pod.metadata.clone();
                    let described = (meta.labels, meta.annotations);
                    if std::mem::replace(&mut self.described, described.clone()) != described {
                        return;
                    }
                }
            }
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum Slot {
    Init(usize),
    Main(usize),
}

fn is_finished(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
}

fn ended_well(container: &Container) -> bool {
    matches!(&container.state, State::Terminated(end) if end.code == 0)
}

/// A namespace as a runtime hands it to a CNI plugin: with loopback up. Runs inside the node.
fn new_pod_netns(path: &std::path::Path) -> Result<Netns> {
    let netns = Netns::create(path)?;
    let links = kernel::netlink::Netlink::in_netns(&netns)?;
    let loopback = links.link_by_name("lo")?;
    links.set_up(loopback.index)?;
    Ok(netns)
}
