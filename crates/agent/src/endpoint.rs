//! The endpoints of this node: created, relabelled, restored and removed here and nowhere else.
//!
//! Creating one is, in order: who is it (identity), give it a number (row in the table), let the
//! kernel have it (programs at its device; the controllers and reconcilers carry its rows into the
//! maps), remember it (checkpoint). [`Endpoints::create`] answers when all of that is true, and when
//! a step fails takes the others back. There is one way into the maps, the reconcilers, so a full
//! pass that runs at the same moment cannot undo a creation.
//!
//! ```text
//!  resolve identity ─► row ─┬─► attach programs, write checkpoint ─┬─► ready
//!                           └─► wait until the maps hold its rows ─┘
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use api::rest::EndpointRef;
use futures::future::BoxFuture;
use ipnet::IpNet;
use model::{EndpointId, EndpointState, IdentityId, LabelFilter, Labels, PodLabels, PodName};
use statedb::reconciler::{Progress, SettleError};
use statedb::{Row, Snapshot, Table, Writer};

use crate::checkpoint::{CheckpointError, Checkpoints};
use crate::controllers::endpoint_addresses;
use crate::identity::{self, AllocateError, Identities, Identity};
use crate::ipam::{Ipam, IpamError, RESERVATION_AGE_MAX};
use crate::ipcache::Source;
use crate::policy::realize::SlotRow;
use crate::tables::{
    Device, Endpoint, EndpointSpec, IpcacheEntry, LocalAddress, LocalPod, Namespace,
};

/// How long the API server is asked for a pod that the watch does not know yet.
const POD_LOOKUP_TIMEOUT: Duration = Duration::from_secs(2);
/// How long the reconcilers may take to carry an endpoint into the maps.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(10);

/// The devices of the node, as endpoints need them. The kernel's side blocks and is short.
pub trait Devices: Send + Sync + 'static {
    /// The name of the device with this index, if there is one.
    fn name(&self, ifindex: u32) -> Result<Option<String>, DeviceError>;
    /// The indices and names of all devices.
    fn all(&self) -> Result<BTreeMap<u32, String>, DeviceError>;
    /// Attaches the programs to a pod's host-side device, in place of older ones.
    fn attach(&self, ifindex: u32) -> Result<(), DeviceError>;
    /// Whether the device has the programs of this agent.
    fn is_attached(&self, ifindex: u32) -> Result<bool, DeviceError>;
}

/// Id of the endpoint that is the node itself; pods have the others.
pub const HOST_ENDPOINT_ID: u16 = 1;

/// The kernel refused something about a device.
pub type DeviceError = Box<dyn std::error::Error + Send + Sync>;

/// Where a pod is looked up that the watches do not know yet.
pub trait PodSource: Send + Sync + 'static {
    /// The pod of this name, with its namespace.
    fn fetch<'a>(
        &'a self,
        pod: &'a PodName,
    ) -> BoxFuture<'a, Result<Option<(LocalPod, Namespace)>, String>>;
}

/// Why an endpoint could not be created.
#[derive(Debug, thiserror::Error)]
pub enum CreateError {
    /// The request contradicts itself or the node.
    #[error("{field}: {reason}")]
    Invalid {
        /// The field of the request.
        field: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// Somebody has what the endpoint wants.
    #[error("{what} belongs to endpoint {id} already; delete that one first")]
    Exists {
        /// Which property.
        what: String,
        /// Whose.
        id: EndpointId,
    },
    /// All 4095 numbers are in use.
    #[error("the node has {} endpoints, the most there can be", EndpointId::MAX)]
    Exhausted,
    /// The address belongs to somebody else.
    #[error("failed to take the endpoint's address")]
    Address(#[from] IpamError),
    /// The labels have no number.
    #[error("failed to find the pod's identity")]
    Identity(#[from] AllocateError),
    /// The kernel refused the programs.
    #[error("failed to attach the programs to {interface}")]
    Attach {
        /// The device.
        interface: String,
        /// Why.
        #[source]
        source: DeviceError,
    },
    /// The checkpoint could not be written.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The maps did not take the rows.
    #[error("failed to write {what} of the endpoint to its map")]
    Settle {
        /// Which row.
        what: String,
        /// Why.
        #[source]
        source: SettleError,
    },
    /// Somebody deleted the endpoint before it was ready.
    #[error("the endpoint was deleted while it was being created")]
    Deleted,
    /// The maps were not written in time.
    #[error("the endpoint was not in the maps after {} s", SETTLE_TIMEOUT.as_secs())]
    Late,
}

/// How the maps progress.
#[derive(Clone)]
pub struct MapProgress {
    /// `cilium_lxc`.
    pub addresses: Progress<LocalAddress>,
    /// `cilium_lxc_devices`.
    pub devices: Progress<Device>,
    /// The ipcache maps.
    pub ipcache: Progress<IpcacheEntry>,
    /// The tables behind them.
    pub address_table: Table<LocalAddress>,
    /// The tables behind them.
    pub device_table: Table<Device>,
    /// The tables behind them.
    pub ipcache_table: Table<IpcacheEntry>,
    /// Slots of policies.
    pub policy: Progress<SlotRow>,
    /// The tables behind them.
    pub policy_table: Table<SlotRow>,
}

/// What identities are made of.
#[derive(Debug, Clone)]
pub struct LabelRules {
    /// Name of the cluster, part of every pod's labels.
    pub cluster: String,
    /// Which labels count.
    pub filter: LabelFilter,
}

/// The owner of the node's endpoints.
pub struct Endpoints {
    writer: Writer<Endpoint>,
    ipam: Mutex<Ipam>,
    identities: Arc<Identities>,
    pods: Table<LocalPod>,
    namespaces: Table<Namespace>,
    source: Arc<dyn PodSource>,
    devices: Arc<dyn Devices>,
    maps: MapProgress,
    checkpoints: Checkpoints,
    rules: LabelRules,
    last_id: Mutex<u16>,
    /// Labels of the pods that the agent before us had, by uid. A pod whose sandbox is made anew
    /// keeps them while the API server, which has the last word, is away.
    before: Mutex<BTreeMap<String, Arc<Labels>>>,
}

/// What [`Endpoints`] is made of.
pub struct Parts {
    /// The right to write the table.
    pub writer: Writer<Endpoint>,
    /// The node's addresses.
    pub ipam: Ipam,
    /// Who is who.
    pub identities: Arc<Identities>,
    /// Pods of this node.
    pub pods: Table<LocalPod>,
    /// All namespaces.
    pub namespaces: Table<Namespace>,
    /// For pods the watch has not seen.
    pub source: Arc<dyn PodSource>,
    /// The kernel's devices.
    pub devices: Arc<dyn Devices>,
    /// How the maps progress.
    pub maps: MapProgress,
    /// Where endpoints are remembered.
    pub checkpoints: Checkpoints,
    /// What identities are made of.
    pub rules: LabelRules,
}

impl Endpoints {
    /// No endpoints yet; see [`Endpoints::restore`].
    pub fn new(parts: Parts) -> Self {
        Self {
            writer: parts.writer,
            ipam: Mutex::new(parts.ipam),
            identities: parts.identities,
            pods: parts.pods,
            namespaces: parts.namespaces,
            source: parts.source,
            devices: parts.devices,
            maps: parts.maps,
            checkpoints: parts.checkpoints,
            rules: parts.rules,
            last_id: Mutex::new(0),
            before: Mutex::new(BTreeMap::new()),
        }
    }

    /// The endpoints.
    pub fn table(&self) -> &Table<Endpoint> {
        self.writer.table()
    }

    /// The identities.
    pub fn identities(&self) -> &Identities {
        &self.identities
    }

    /// The node's addresses.
    pub fn ipam(&self) -> MutexGuard<'_, Ipam> {
        self.ipam.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Creates an endpoint; it can send and receive when this returns. The same request again is
    /// answered with the endpoint that it created.
    pub async fn create(
        &self,
        spec: EndpointSpec,
        labels: Labels,
    ) -> Result<Endpoint, CreateError> {
        let is_same = |e: &&Arc<Endpoint>| *e.spec == spec && e.state == EndpointState::Ready;
        if let Some(same) = self.table().snapshot().rows().find(is_same) {
            return Ok(Endpoint::clone(same));
        }
        let begun = Instant::now();
        self.check(&spec)?;
        let identity = self.identify(&spec, &labels).await?;
        let endpoint = self.insert(Arc::new(spec), identity)?;
        match self.realize(&endpoint).await {
            Ok(()) => {
                tracing::info!(endpoint_id = %endpoint.id, identity = %endpoint.identity.id,
                    pod = %owner(&endpoint.spec), duration = ?begun.elapsed(), "Created an endpoint");
                Ok(self.set_state(endpoint.id, EndpointState::Ready).unwrap_or(endpoint))
            }
            Err(error) => {
                self.withdraw(&endpoint).await;
                // The addresses stay reserved: whoever reserved them gives them back or they expire.
                let owner = owner(&endpoint.spec);
                self.ipam().unconfirm(&endpoint.spec.addresses, &owner, Instant::now());
                Err(error)
            }
        }
    }

    /// Removes endpoints and gives their addresses back; says which there were.
    pub async fn delete(&self, which: &EndpointRef) -> Vec<EndpointId> {
        let endpoints = find(&self.table().snapshot(), which);
        for endpoint in &endpoints {
            self.remove(endpoint).await;
        }
        endpoints.iter().map(|endpoint| endpoint.id).collect()
    }

    /// Takes over the endpoints of the agent before us whose device is still there, and forgets the
    /// others. Their traffic goes on meanwhile: rows in the maps stay as they are, programs are
    /// replaced in one step.
    pub fn restore(&self) -> Result<Restored, CheckpointError> {
        let mut restored = Restored::default();
        let devices = self.devices.all().unwrap_or_else(|error| {
            tracing::warn!(%error, "Cannot list devices; restoring every endpoint unchecked");
            BTreeMap::new()
        });
        for endpoint in self.checkpoints.endpoints()? {
            let spec = &endpoint.spec;
            if !spec.pod_uid.is_empty() && endpoint.identity.id != IdentityId::INIT {
                self.identities.remember(endpoint.identity.clone());
                let mut before = self.before.lock().unwrap_or_else(PoisonError::into_inner);
                before.insert(spec.pod_uid.clone(), Arc::clone(&endpoint.identity.labels));
            }
            if !devices.is_empty() && devices.get(&spec.ifindex) != Some(&spec.interface) {
                tracing::info!(endpoint_id = %endpoint.id, interface = spec.interface,
                    "Forgot an endpoint whose device is gone");
                self.checkpoints.remove(endpoint.id)?;
                restored.forgotten += 1;
                continue;
            }
            restored.adopted.insert(endpoint.id);
            self.adopt(endpoint);
        }
        Ok(restored)
    }

    fn adopt(&self, endpoint: Endpoint) {
        let owner = owner(&endpoint.spec);
        for address in &endpoint.spec.addresses {
            if let Err(error) = self.ipam().take(*address, &owner, Instant::now()) {
                tracing::warn!(endpoint_id = %endpoint.id, %error, "Kept an address that is not ours");
            }
        }
        self.identities.remember(endpoint.identity.clone());
        if let Err(error) = self.devices.attach(endpoint.spec.ifindex) {
            // The programs of the agent before us are still there; the periodic pass tries again.
            tracing::warn!(endpoint_id = %endpoint.id, %error, "Cannot attach the programs");
        }
        self.writer.upsert(Endpoint { state: EndpointState::Ready, ..endpoint });
    }

    /// Removes those among `restored` whose pod was deleted while no agent was there. `pods` is
    /// complete.
    pub async fn forget_deleted(&self, restored: &BTreeSet<EndpointId>, pods: &Snapshot<LocalPod>) {
        let endpoints = self.table().snapshot();
        for endpoint in restored.iter().filter_map(|id| endpoints.get(id)) {
            let Some(name) = endpoint.spec.pod() else { continue };
            if !pods.get(&name).is_some_and(|pod| is_same_pod(pod, &endpoint.spec.pod_uid)) {
                tracing::info!(endpoint_id = %endpoint.id, pod = %name,
                    "Removed an endpoint whose pod was deleted while no agent was there");
                self.remove(endpoint).await;
            }
        }
    }

    /// Removes endpoints whose device is gone: their network namespace went without a DEL.
    pub async fn forget_gone(&self) -> Result<(), DeviceError> {
        // First the endpoints: a device that comes later has no endpoint among them.
        let endpoints = self.table().snapshot();
        let devices = self.devices.all()?;
        for endpoint in endpoints.rows() {
            if devices.get(&endpoint.spec.ifindex) != Some(&endpoint.spec.interface) {
                tracing::info!(endpoint_id = %endpoint.id, interface = endpoint.spec.interface,
                    "Removed an endpoint whose device is gone");
                self.remove(endpoint).await;
            }
        }
        Ok(())
    }

    /// Attaches the programs to the devices that have lost them.
    pub fn attach_missing(&self) -> Result<(), String> {
        let mut failures = Vec::new();
        for endpoint in self.table().snapshot().rows() {
            let ifindex = endpoint.spec.ifindex;
            let attached = self
                .devices
                .is_attached(ifindex)
                .and_then(|attached| if attached { Ok(()) } else { self.devices.attach(ifindex) });
            if let Err(error) = attached {
                failures.push(format!("{}: {error}", endpoint.spec.interface));
            }
        }
        if failures.is_empty() { Ok(()) } else { Err(failures.join("; ")) }
    }

    /// Gives back addresses that were reserved and never used.
    pub fn expire_reservations(&self, now: Instant) {
        for (address, owner) in self.ipam().expire(now, RESERVATION_AGE_MAX) {
            tracing::warn!(%address, owner, "Released an address whose endpoint never came");
        }
    }

    /// Finds the identity of an endpoint anew, and changes it if it differs: labels of pods and
    /// namespaces change, pods that were unknown become known, identities are deleted.
    pub async fn relabel(&self, id: EndpointId) -> Result<(), AllocateError> {
        let Some(endpoint) = self.table().get(&id) else { return Ok(()) };
        let Some(labels) = self.known_labels(&endpoint.spec) else { return Ok(()) };
        if endpoint.identity.labels == labels
            && self.identities.table().get(&endpoint.identity.id).is_some()
        {
            return Ok(());
        }
        let identity = self.identities.resolve(&labels).await?;
        if identity != endpoint.identity {
            self.set_identity(&endpoint, identity);
        }
        Ok(())
    }

    /// Gives an endpoint other labels, where they do not come from Kubernetes.
    pub async fn change_labels(
        &self,
        endpoint: &Endpoint,
        labels: &Labels,
    ) -> Result<(), CreateError> {
        let identity = self.identify(&endpoint.spec, labels).await?;
        if identity != endpoint.identity {
            self.set_identity(endpoint, identity);
        }
        Ok(())
    }

    /// Whether the request fits the node.
    fn check(&self, spec: &EndpointSpec) -> Result<(), CreateError> {
        let invalid = |field, reason: String| Err(CreateError::Invalid { field, reason });
        if spec.addresses.is_empty() {
            return invalid("addressing", "an endpoint needs an address".to_owned());
        }
        if spec.container_id.is_empty() {
            return invalid("container-id", "is missing".to_owned());
        }
        match self.devices.name(spec.ifindex) {
            Ok(Some(name)) if name == spec.interface => Ok(()),
            Ok(Some(name)) => invalid(
                "interface-index",
                format!("device {} is {name}, not {}", spec.ifindex, spec.interface),
            ),
            Ok(None) => invalid(
                "interface-index",
                format!("there is no device {} ({})", spec.ifindex, spec.interface),
            ),
            Err(error) => invalid("interface-index", error.to_string()),
        }
    }

    /// The identity of a new endpoint: of its pod's labels; `reserved:init` for a pod that nobody
    /// knows (yet).
    async fn identify(
        &self,
        spec: &EndpointSpec,
        labels: &Labels,
    ) -> Result<Identity, CreateError> {
        if let Some(health) = identity::health(labels) {
            return Ok(health);
        }
        if !labels.is_empty() {
            return Ok(self.identities.resolve(&Arc::new(self.rules.filter.apply(labels))).await?);
        }
        let labels = match self.known_labels(spec).or_else(|| self.labels_before(spec)) {
            Some(labels) => Some(labels),
            None => self.ask_for_labels(spec).await,
        };
        match labels {
            Some(labels) => Ok(self.identities.resolve(&labels).await?),
            None => Ok(identity::init()),
        }
    }

    /// The labels of the endpoint's pod, where the watches know it and its namespace.
    fn known_labels(&self, spec: &EndpointSpec) -> Option<Arc<Labels>> {
        let name = spec.pod()?;
        let pod = self.pods.get(&name).filter(|pod| is_same_pod(pod, &spec.pod_uid))?;
        let namespace = self.namespaces.get(&name.namespace)?;
        Some(self.labels_of(&pod, &namespace))
    }

    /// The labels that the endpoint's pod had before we started, as long as the watch has not listed.
    fn labels_before(&self, spec: &EndpointSpec) -> Option<Arc<Labels>> {
        if self.pods.snapshot().is_initialized() {
            return None;
        }
        let before = self.before.lock().unwrap_or_else(PoisonError::into_inner);
        before.get(&spec.pod_uid).cloned()
    }

    fn labels_of(&self, pod: &LocalPod, namespace: &Namespace) -> Arc<Labels> {
        let labels = Labels::of_pod(&PodLabels {
            labels: &pod.labels,
            namespace: &pod.name.namespace,
            namespace_labels: &namespace.labels,
            cluster: &self.rules.cluster,
            service_account: &pod.service_account,
        });
        Arc::new(self.rules.filter.apply(&labels))
    }

    /// Asks the API server, unless the watch is faster: the runtime often is faster than both.
    async fn ask_for_labels(&self, spec: &EndpointSpec) -> Option<Arc<Labels>> {
        let name = spec.pod()?;
        let watched = async {
            let mut pods = self.pods.watch();
            let mut namespaces = self.namespaces.watch();
            loop {
                if let Some(labels) = self.known_labels(spec) {
                    return labels;
                }
                tokio::select! {
                    _ = pods.changed() => {}
                    _ = namespaces.changed() => {}
                }
            }
        };
        let asked = tokio::time::timeout(POD_LOOKUP_TIMEOUT, self.source.fetch(&name));
        let answer = tokio::select! {
            labels = watched => return Some(labels),
            answer = asked => answer,
        };
        match answer {
            Ok(Ok(Some((pod, namespace)))) if is_same_pod(&pod, &spec.pod_uid) => {
                Some(self.labels_of(&pod, &namespace))
            }
            Ok(Ok(_)) => {
                tracing::info!(pod = %name, "The API server does not know the pod; it starts as init");
                None
            }
            Ok(Err(error)) => {
                tracing::warn!(pod = %name, error, "Cannot ask for the pod; it starts as init");
                None
            }
            Err(_late) => {
                tracing::warn!(pod = %name, "No answer about the pod; it starts as init");
                None
            }
        }
    }

    /// Puts the endpoint into the table under a free number, unless it clashes with another.
    fn insert(&self, spec: Arc<EndpointSpec>, identity: Identity) -> Result<Endpoint, CreateError> {
        let owner = owner(&spec);
        // Held over the commit: of two requests for one address the second must see the first's row.
        let mut ipam = self.ipam();
        let mut last_id = self.last_id.lock().unwrap_or_else(PoisonError::into_inner);
        let snapshot = self.table().snapshot();
        if let Some((what, id)) = clash(&snapshot, &spec) {
            return Err(CreateError::Exists { what, id });
        }
        let id = next_id(&snapshot, *last_id).ok_or(CreateError::Exhausted)?;
        let now = Instant::now();
        for (taken, address) in spec.addresses.iter().enumerate() {
            if let Err(error) = ipam.take(*address, &owner, now) {
                ipam.unconfirm(&spec.addresses[..taken], &owner, now);
                return Err(error.into());
            }
        }
        *last_id = id.number();
        let endpoint = Endpoint { id, state: EndpointState::Regenerating, spec, identity };
        self.writer.upsert(endpoint.clone());
        Ok(endpoint)
    }

    /// Waits until the kernel has all of the endpoint, and its checkpoint is written.
    async fn realize(&self, endpoint: &Endpoint) -> Result<(), CreateError> {
        let work = {
            let devices = Arc::clone(&self.devices);
            let checkpoints = self.checkpoints.clone();
            let endpoint = endpoint.clone();
            tokio::task::spawn_blocking(move || {
                let attached = devices.attach(endpoint.spec.ifindex);
                attached.map_err(|source| CreateError::Attach {
                    interface: endpoint.spec.interface.clone(),
                    source,
                })?;
                checkpoints.save(&endpoint).map_err(CreateError::from)
            })
        };
        let settled = async {
            tokio::select! {
                settled = self.settled(endpoint) => settled,
                () = self.deleted(endpoint.id) => Err(CreateError::Deleted),
                () = tokio::time::sleep(SETTLE_TIMEOUT) => Err(CreateError::Late),
            }
        };
        let (work, settled) = tokio::join!(work, settled);
        work.expect("attaching does not panic and is not cancelled")?;
        settled
    }

    /// Waits until the maps hold the rows of the endpoint, be its identity what it may by then.
    async fn settled(&self, endpoint: &Endpoint) -> Result<(), CreateError> {
        let maps = &self.maps;
        let id = endpoint.id.number();
        let device = endpoint.spec.ifindex;
        settled("the device", &maps.device_table, &maps.devices, &device, |row| {
            row.endpoint.lxc_id == id
        })
        .await?;
        for address in endpoint_addresses(endpoint) {
            let (key, prefix) = (address.into(), IpNet::from(address));
            settled("an address", &maps.address_table, &maps.addresses, &key, |row| {
                row.info.lxc_id == id
            })
            .await?;
            settled("the identity", &maps.ipcache_table, &maps.ipcache, &prefix, |row| {
                row.source == Source::Local
            })
            .await?;
        }
        Ok(())
    }

    /// Waits until the endpoint is deleted.
    async fn deleted(&self, id: EndpointId) {
        self.table().wait_for(|rows| rows.get(&id).is_none()).await;
    }

    async fn remove(&self, endpoint: &Endpoint) {
        self.withdraw(endpoint).await;
        let mut ipam = self.ipam();
        for address in &endpoint.spec.addresses {
            ipam.release(*address);
        }
    }

    /// Takes the endpoint out of the table and waits until the maps have forgotten it. Programs go
    /// with the device.
    async fn withdraw(&self, endpoint: &Endpoint) {
        self.writer.delete(&endpoint.id);
        if let Err(error) = self.checkpoints.remove(endpoint.id) {
            tracing::warn!(endpoint_id = %endpoint.id, %error, "Cannot remove a checkpoint");
        }
        let gone = async {
            let maps = &self.maps;
            let id = endpoint.id.number();
            let device = endpoint.spec.ifindex;
            let ours = |row: &Device| row.endpoint.lxc_id == id;
            forgotten(&maps.device_table, &maps.devices, &device, ours).await;
            for address in endpoint_addresses(endpoint) {
                let ours = |row: &LocalAddress| row.info.lxc_id == id;
                forgotten(&maps.address_table, &maps.addresses, &address.into(), ours).await;
            }
        };
        if tokio::time::timeout(SETTLE_TIMEOUT, gone).await.is_err() {
            tracing::warn!(endpoint_id = %endpoint.id,
                "The maps still hold rows of a removed endpoint; the reconcilers go on");
        }
    }

    fn set_state(&self, id: EndpointId, state: EndpointState) -> Option<Endpoint> {
        self.writer
            .commit(|txn| {
                txn.modify(&id, |endpoint| endpoint.state = state);
                txn.get(&id).map(|endpoint| Endpoint::clone(endpoint))
            })
            .0
    }

    fn set_identity(&self, endpoint: &Endpoint, identity: Identity) {
        tracing::info!(endpoint_id = %endpoint.id, from = %endpoint.identity.id,
            identity = %identity.id, labels = %identity.labels, "Changed the identity of an endpoint");
        let (changed, _) = self.writer.commit(|txn| {
            txn.modify(&endpoint.id, |endpoint| endpoint.identity = identity);
            txn.get(&endpoint.id).map(|endpoint| Endpoint::clone(endpoint))
        });
        if let Some(changed) = changed
            && let Err(error) = self.checkpoints.save(&changed)
        {
            tracing::warn!(endpoint_id = %endpoint.id, %error, "Cannot write a checkpoint");
        }
    }
}

/// What a restart found.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Restored {
    /// Endpoints that live on.
    pub adopted: BTreeSet<EndpointId>,
    /// Endpoints whose device is gone.
    pub forgotten: usize,
}

/// Waits until `table` holds the expected row and the reconciler has carried it out.
async fn settled<R: Row>(
    what: &str,
    table: &Table<R>,
    progress: &Progress<R>,
    key: &R::Key,
    expected: impl Fn(&R) -> bool,
) -> Result<(), CreateError> {
    let table = table.wait_for(|rows| rows.get(key).is_some_and(|row| expected(row))).await;
    let revision = table.row_revision(key).expect("the row was just seen");
    let failed = |source| CreateError::Settle { what: what.to_owned(), source };
    progress.settled(key, revision).await.map_err(failed)
}

/// Waits until `table` no longer holds the row and the reconciler has carried that out. A refusal is
/// not ours to handle: the reconciler tries again.
async fn forgotten<R: Row>(
    table: &Table<R>,
    progress: &Progress<R>,
    key: &R::Key,
    ours: impl Fn(&R) -> bool,
) {
    let table = table.wait_for(|rows| !rows.get(key).is_some_and(|row| ours(row))).await;
    let _ = progress.settled(key, table.revision()).await;
}

/// The endpoints that a reference of the REST API means.
pub fn find(endpoints: &Snapshot<Endpoint>, which: &EndpointRef) -> Vec<Arc<Endpoint>> {
    let matches = |endpoint: &Endpoint| {
        let spec = &endpoint.spec;
        match which {
            EndpointRef::Local(id) => endpoint.id == *id,
            EndpointRef::CniAttachment { container, interface } => {
                spec.container_id == *container && spec.container_interface == *interface
            }
            EndpointRef::Container(id) => spec.container_id == *id,
            EndpointRef::Pod(name) | EndpointRef::CiliumEndpoint(name) => {
                spec.pod_namespace == name.namespace && spec.pod_name == name.name
            }
            EndpointRef::Address(address) => spec.addresses.contains(address),
        }
    };
    if let EndpointRef::Local(id) = which {
        return endpoints.get(id).cloned().into_iter().collect();
    }
    endpoints.rows().filter(|endpoint| matches(endpoint)).cloned().collect()
}

/// The first property that a new endpoint would share with an existing one.
fn clash(endpoints: &Snapshot<Endpoint>, new: &EndpointSpec) -> Option<(String, EndpointId)> {
    endpoints.rows().find_map(|endpoint| {
        let old = &endpoint.spec;
        let address = old.addresses.iter().find(|a| new.addresses.contains(a));
        let what = if old.attachment() == new.attachment() {
            format!("attachment {}", new.attachment())
        } else if old.ifindex == new.ifindex {
            format!("device {} ({})", new.ifindex, new.interface)
        } else {
            format!("address {}", address?)
        };
        Some((what, endpoint.id))
    })
}

/// The next free number behind `last`, round the ring: a number is reused as late as possible.
fn next_id(endpoints: &Snapshot<Endpoint>, last: u16) -> Option<EndpointId> {
    let used: BTreeSet<u16> = endpoints.rows().map(|endpoint| endpoint.id.number()).collect();
    let (min, max) = (HOST_ENDPOINT_ID + 1, EndpointId::MAX.number());
    let free = |id: &u16| !used.contains(id);
    let number = (last.max(min - 1) + 1..=max).find(free).or_else(|| (min..=max).find(free))?;
    EndpointId::new(number).ok()
}

/// Whether a pod object is the one that the runtime speaks of; a runtime need not say a uid.
fn is_same_pod(pod: &LocalPod, uid: &str) -> bool {
    uid.is_empty() || pod.uid == uid
}

/// Who has the addresses of an endpoint.
fn owner(spec: &EndpointSpec) -> String {
    spec.pod().map_or_else(|| spec.container_id.clone(), |pod| pod.to_string())
}
