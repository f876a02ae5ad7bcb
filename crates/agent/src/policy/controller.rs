//! The tasks around [`Engine`]: what changed goes in, and what follows is carried out in an order in
//! which no packet is judged by half of it.
//!
//! ```text
//!  changes ─► compute ─► write slots, wait ─► point endpoints to them, prefixes to their identities
//!                                                       │
//!               empty what nobody uses any more ◄── a second later, rows settled
//! ```
//!
//! Before every source has listed nothing is known, neither what is allowed nor what is denied. Then
//! endpoints of the agent before us keep the slot that their row in the kernel names; a new endpoint
//! gets that of one with the same identity, else nothing passes to or from it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use abi::endpoint::{
    DeviceEndpoint, ENDPOINT_F_AUDIT, ENDPOINT_F_ENFORCE_EGRESS, ENDPOINT_F_ENFORCE_INGRESS,
    ENDPOINT_F_LOCKDOWN,
};
use abi::policy::POLICY_SLOT_NONE;
use kernel::map::{Map, MapError};
use model::IdentityId;
use statedb::job::Job;
use statedb::{Changes, Initializer, Snapshot, Table, Writer};
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep_until};

use super::engine::{Engine, Inputs};
use super::realize::{PolicyMaps, SlotRow};
use super::slots::Content;
use super::tables::{
    Group, KINDS, NodeLabels, PolicyBackends, PolicyIntent, PolicyObject, PolicyService,
};
use crate::endpoint::MapProgress;
use crate::identity::Identity;
use crate::tables::{ClusterEndpoint, Endpoint, EndpointPolicy, LabelledPrefix, LocalPod, Node};

/// How long a program that has read a row may go on reading the slot that the row named: no program
/// runs for a thousandth of it.
const GRACE: Duration = Duration::from_secs(1);
/// Wait before what failed is looked at again.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// Everything that policy depends on.
#[derive(Clone)]
pub struct PolicySources {
    /// What only policy reads.
    pub intent: PolicyIntent,
    /// Identities of the cluster.
    pub identities: Table<Identity>,
    /// Pods of the cluster.
    pub cluster: Table<ClusterEndpoint>,
    /// Nodes of the cluster.
    pub nodes: Table<Node>,
    /// Pods of this node.
    pub pods: Table<LocalPod>,
    /// Endpoints of this node.
    pub endpoints: Table<Endpoint>,
}

/// What the agent before us left in the kernel.
#[derive(Default)]
pub struct Adopted {
    /// What slots hold.
    pub contents: BTreeMap<u32, Arc<Content>>,
    /// The policy of each device: slot and flags.
    pub devices: BTreeMap<u32, (u32, u32)>,
}

/// The flags of a row that are about policy.
const POLICY_FLAGS: u32 =
    ENDPOINT_F_ENFORCE_INGRESS | ENDPOINT_F_ENFORCE_EGRESS | ENDPOINT_F_AUDIT | ENDPOINT_F_LOCKDOWN;

impl Adopted {
    /// Reads the maps.
    pub fn read(
        policy: &PolicyMaps,
        devices: &dyn Map<u32, DeviceEndpoint>,
    ) -> Result<Self, MapError> {
        let mut contents = policy.contents()?;
        let rows = devices.entries()?.into_iter();
        let devices: BTreeMap<u32, (u32, u32)> = rows
            .map(|(ifindex, row)| (ifindex, (row.policy_slot, row.flags & POLICY_FLAGS)))
            .collect();
        for (slot, _) in devices.values().filter(|(slot, _)| *slot != POLICY_SLOT_NONE) {
            // A policy that allows nothing has no entries.
            contents.entry(*slot).or_insert_with(|| Arc::new(Content::new([])));
        }
        Ok(Self { contents, devices })
    }

    /// The rows of endpoints while nobody knows what they should be.
    fn endpoint_policies(&self, endpoints: &Snapshot<Endpoint>) -> Vec<EndpointPolicy> {
        let own = |row: &Endpoint| self.devices.get(&row.spec.ifindex).copied();
        let alike: BTreeMap<IdentityId, (u32, u32)> =
            endpoints.rows().filter_map(|row| Some((row.identity.id, own(row)?))).collect();
        let rows = endpoints.rows().map(|row| {
            let known = own(row).or_else(|| alike.get(&row.identity.id).copied());
            let (slot, flags) = known.unwrap_or((POLICY_SLOT_NONE, ENDPOINT_F_LOCKDOWN));
            EndpointPolicy { endpoint: row.id, slot, flags, revision: 0 }
        });
        rows.collect()
    }
}

/// What policy writes, and the promises to say when that is complete.
pub struct PolicyOutputs {
    slots: Writer<SlotRow>,
    slots_complete: Option<Initializer<SlotRow>>,
    policies: Writer<EndpointPolicy>,
    policies_complete: Option<Initializer<EndpointPolicy>>,
    labelled: Writer<LabelledPrefix>,
    labelled_complete: Option<Initializer<LabelledPrefix>>,
    computed: watch::Sender<Computed>,
}

impl PolicyOutputs {
    /// Outputs into these tables.
    pub fn new(
        slots: Writer<SlotRow>,
        policies: Writer<EndpointPolicy>,
        labelled: Writer<LabelledPrefix>,
    ) -> Self {
        Self {
            slots_complete: Some(slots.initializer("policy")),
            slots,
            policies_complete: Some(policies.initializer("policy")),
            policies,
            labelled_complete: Some(labelled.initializer("policy")),
            labelled,
            computed: watch::Sender::default(),
        }
    }

    /// What was computed last, from now on.
    pub fn computed(&self) -> watch::Receiver<Computed> {
        self.computed.subscribe()
    }
}

/// What the endpoints' rows were computed from.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Computed {
    /// Revision of the node's policies; 0 before all sources have listed.
    pub revision: u64,
    /// Newest version of the objects of each language among them.
    pub resource_versions: BTreeMap<policy::PolicyKind, u64>,
    /// Whether all slots are as they should be.
    pub is_whole: bool,
}

/// The engine as the tasks and the REST API share it.
#[derive(Clone)]
pub struct SharedEngine {
    engine: Arc<Mutex<Engine>>,
    /// Somebody changed an option.
    changed: Arc<Notify>,
}

impl SharedEngine {
    /// An engine to be shared.
    pub fn new(engine: Engine) -> Self {
        Self { engine: Arc::new(Mutex::new(engine)), changed: Arc::default() }
    }

    /// To look at it, or to change options; [`SharedEngine::recompute`] tells of the latter.
    pub fn lock(&self) -> MutexGuard<'_, Engine> {
        self.engine.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An option of the engine has changed.
    pub fn recompute(&self) {
        self.changed.notify_one();
    }
}

/// The tables, as far as the engine has read them.
struct Readers {
    policies: [Changes<PolicyObject>; KINDS.len()],
    groups: Changes<Group>,
    services: Changes<PolicyService>,
    backends: Changes<PolicyBackends>,
    node_labels: Changes<NodeLabels>,
    nodes: Changes<Node>,
    identities: Changes<Identity>,
    cluster: Changes<ClusterEndpoint>,
    pods: Changes<LocalPod>,
    endpoints: Changes<Endpoint>,
}

impl Readers {
    fn new(sources: &PolicySources) -> Self {
        Self {
            policies: sources.intent.policies.each_ref().map(Table::changes),
            groups: sources.intent.groups.changes(),
            services: sources.intent.services.changes(),
            backends: sources.intent.backends.changes(),
            node_labels: sources.intent.nodes.changes(),
            nodes: sources.nodes.changes(),
            identities: sources.identities.changes(),
            cluster: sources.cluster.changes(),
            pods: sources.pods.changes(),
            endpoints: sources.endpoints.changes(),
        }
    }

    fn take(&mut self) -> Inputs {
        Inputs {
            policies: self.policies.iter_mut().flat_map(Changes::take).collect(),
            groups: self.groups.take(),
            services: self.services.take(),
            backends: self.backends.take(),
            node_labels: self.node_labels.take(),
            nodes: self.nodes.take(),
            identities: self.identities.take(),
            cluster: self.cluster.take(),
            pods: self.pods.take(),
            endpoints: self.endpoints.take(),
        }
    }

    /// Whether every source has delivered all it knows.
    fn are_initialized(&self) -> bool {
        self.policies.iter().all(|policies| policies.snapshot().is_initialized())
            && self.groups.snapshot().is_initialized()
            && self.services.snapshot().is_initialized()
            && self.backends.snapshot().is_initialized()
            && self.node_labels.snapshot().is_initialized()
            && self.nodes.snapshot().is_initialized()
            && self.identities.snapshot().is_initialized()
            && self.cluster.snapshot().is_initialized()
            && self.pods.snapshot().is_initialized()
            && self.endpoints.snapshot().is_initialized()
    }

    async fn changed(&mut self) {
        let policies = self.policies.iter_mut().map(|policies| Box::pin(policies.changed()));
        tokio::select! {
            _ = futures::future::select_all(policies) => {}
            _ = self.groups.changed() => {}
            _ = self.services.changed() => {}
            _ = self.backends.changed() => {}
            _ = self.node_labels.changed() => {}
            _ = self.nodes.changed() => {}
            _ = self.identities.changed() => {}
            _ = self.cluster.changed() => {}
            _ = self.pods.changed() => {}
            _ = self.endpoints.changed() => {}
        }
    }
}

/// What is to be given back when no program can be reading it any more.
struct Retirement {
    at: Instant,
    slots: BTreeSet<u32>,
    identities: Vec<IdentityId>,
}

/// The state of the task.
struct Controller {
    engine: SharedEngine,
    outputs: PolicyOutputs,
    maps: MapProgress,
    retirements: Vec<Retirement>,
    failed: BTreeMap<u32, String>,
    /// Whether the kernel holds no slot of an earlier agent any more that nobody uses.
    is_pruned: bool,
}

/// Follows everything, for ever.
pub async fn run(
    job: Job,
    sources: PolicySources,
    adopted: Adopted,
    engine: SharedEngine,
    outputs: PolicyOutputs,
    maps: MapProgress,
) -> Result<(), String> {
    let mut readers = Readers::new(&sources);
    let (retirements, failed) = (Vec::new(), BTreeMap::new());
    let mut controller =
        Controller { engine, outputs, maps, retirements, failed, is_pruned: false };
    let mut retry_at = None;
    loop {
        let inputs = readers.take();
        controller.engine.lock().apply(inputs);
        if readers.are_initialized() {
            let passed = controller.pass().await;
            retry_at = (passed.is_err() || !controller.failed.is_empty())
                .then(|| Instant::now() + RETRY_INTERVAL);
            match passed {
                Ok(()) => job.ok(controller.summary()),
                Err(error) => job.degraded(error),
            }
        } else {
            let rows = adopted.endpoint_policies(readers.endpoints.snapshot());
            controller.outputs.policies.replace(rows);
        }
        let due = controller.retirements.iter().map(|retirement| retirement.at).min();
        let wake_at = [due, retry_at].into_iter().flatten().min();
        let deadline = wake_at.unwrap_or_else(|| Instant::now() + RETRY_INTERVAL);
        tokio::select! {
            () = job.stop.cancelled() => return Ok(()),
            () = readers.changed() => {}
            () = controller.engine.changed.notified() => {}
            () = sleep_until(deadline), if wake_at.is_some() => {}
        }
    }
}

impl Controller {
    /// Computes and carries out what follows from everything that is known.
    async fn pass(&mut self) -> Result<(), String> {
        self.retire_due().await;
        let (step, mut identities) = {
            let mut engine = self.engine.lock();
            let step = engine.compute().map_err(|error| error.to_string())?;
            (step, engine.take_leaving())
        };
        let mut slots = step.slots.retired;
        self.write_slots(step.slots.written).await;
        let (policies, prefixes, computed) = {
            let engine = self.engine.lock();
            let computed = Computed {
                revision: engine.repository().revision(),
                resource_versions: engine.resource_versions().clone(),
                is_whole: self.failed.is_empty(),
            };
            (engine.endpoint_policies(&self.failed), engine.labelled_prefixes(), computed)
        };
        self.outputs.policies.replace(policies);
        self.outputs.labelled.replace(prefixes);
        let first = self.outputs.policies_complete.take();
        if let Some(complete) = first {
            complete.done();
            slots.extend(self.engine.lock().release_unused());
            if let Some(complete) = self.outputs.labelled_complete.take() {
                complete.done();
            }
        }
        if !slots.is_empty() || !identities.is_empty() || self.outputs.slots_complete.is_some() {
            let identities = std::mem::take(&mut identities);
            self.retirements.push(Retirement { at: Instant::now() + GRACE, slots, identities });
        }
        self.outputs.computed.send_if_modified(|last| {
            let is_new = *last != computed;
            *last = computed;
            is_new
        });
        Ok(())
    }

    /// Writes slots and waits until the kernel has them, or has refused.
    async fn write_slots(&mut self, written: BTreeMap<u32, Arc<Content>>) {
        if !written.is_empty() {
            self.outputs.slots.commit(|txn| {
                for (slot, content) in &written {
                    txn.upsert(SlotRow { slot: *slot, content: Arc::clone(content) });
                }
            });
        }
        let revision = self.outputs.slots.table().revision();
        for slot in written.keys() {
            // What failed is asked for below, with what has failed before.
            let _ = self.maps.policy.settled(slot, revision).await;
        }
        let failures = self.maps.policy.failures().into_iter();
        self.failed = failures.map(|(slot, failure)| (slot, failure.error)).collect();
    }

    /// Gives back what nobody uses any more: the rows that used it are settled for a while.
    async fn retire_due(&mut self) {
        let now = Instant::now();
        if self.retirements.iter().all(|retirement| retirement.at > now) {
            return;
        }
        // What the kernel has refused to forget may still name an old slot, or an old identity.
        let rows_are_late =
            !self.maps.addresses.failures().is_empty() || !self.maps.devices.failures().is_empty();
        let prefixes_are_late = !self.maps.ipcache.failures().is_empty();
        let (due, later): (Vec<Retirement>, _) = std::mem::take(&mut self.retirements)
            .into_iter()
            .partition(|retirement| retirement.at <= now);
        self.retirements = later;
        for Retirement { mut slots, mut identities, .. } in due {
            if !rows_are_late && self.are_emptied(&slots).await {
                let mut engine = self.engine.lock();
                std::mem::take(&mut slots).iter().for_each(|slot| engine.emptied(*slot));
            }
            if !prefixes_are_late {
                self.engine.lock().forget_identities(&std::mem::take(&mut identities));
            }
            if !slots.is_empty() || !identities.is_empty() || self.outputs.slots_complete.is_some()
            {
                self.retirements.push(Retirement { at: now + GRACE, slots, identities });
            }
        }
    }

    /// Has slots emptied; false when the kernel refuses for now, and their numbers must rest on.
    async fn are_emptied(&mut self, slots: &BTreeSet<u32>) -> bool {
        let ((), revision) = self.outputs.slots.commit(|txn| {
            for slot in slots {
                txn.delete(slot);
            }
        });
        if let Some(complete) = self.outputs.slots_complete.take() {
            // What the agent before us had and nobody uses goes with the first full pass after this.
            complete.done();
        }
        if !self.is_pruned {
            let pruned = tokio::time::timeout(GRACE, self.maps.policy.pruned()).await;
            self.is_pruned = matches!(pruned, Ok(Ok(())));
        }
        for slot in slots {
            if !self.is_pruned || self.maps.policy.settled(slot, revision).await.is_err() {
                return false;
            }
        }
        true
    }

    fn summary(&self) -> String {
        let engine = self.engine.lock();
        let (used, resting) = engine.slots_len();
        format!(
            "revision {}, {} policies, {used} slots, {resting} resting",
            engine.repository().revision(),
            engine.states().len()
        )
    }
}

/// Follows what was computed until the kernel has all of it: then the node enforces that revision.
pub async fn run_realised(
    job: Job,
    mut computed: watch::Receiver<Computed>,
    policies: Table<EndpointPolicy>,
    labelled: Table<LabelledPrefix>,
    endpoints: Table<Endpoint>,
    maps: MapProgress,
    realised: watch::Sender<Computed>,
) -> Result<(), String> {
    loop {
        let target = computed.borrow_and_update().clone();
        let reached = async {
            target.is_whole
                && target.revision > 0
                && are_settled(&policies, &endpoints, &maps).await
                && are_labelled(&labelled, &maps).await
        };
        let is_realised = tokio::select! {
            () = job.stop.cancelled() => return Ok(()),
            // Something newer was computed; that is what counts.
            _ = computed.changed() => { computed.mark_changed(); false }
            reached = reached => reached,
        };
        if is_realised {
            realised.send_if_modified(|last| {
                let is_new = *last != target;
                *last = target;
                is_new
            });
        }
        tokio::select! {
            () = job.stop.cancelled() => return Ok(()),
            _ = computed.changed() => {}
            () = tokio::time::sleep(RETRY_INTERVAL), if !is_realised => {}
        }
        computed.mark_changed();
    }
}

/// Waits until the kernel has the rows of all endpoints; false when it refuses one.
async fn are_settled(
    policies: &Table<EndpointPolicy>,
    endpoints: &Table<Endpoint>,
    maps: &MapProgress,
) -> bool {
    for (id, policy) in policies.snapshot().iter() {
        let Some(endpoint) = endpoints.get(id) else { continue };
        let key = endpoint.spec.ifindex;
        let has_row = |rows: &Snapshot<crate::tables::Device>| {
            rows.get(&key).is_none_or(|row| {
                row.endpoint.lxc_id != id.number()
                    || (row.endpoint.policy_slot, row.endpoint.flags & POLICY_FLAGS)
                        == (policy.slot, policy.flags)
            })
        };
        let rows = maps.device_table.wait_for(has_row).await;
        if maps.devices.settled(&key, rows.revision()).await.is_err() {
            return false;
        }
        for address in &endpoint.spec.addresses {
            let key = (*address).into();
            let has_row = |rows: &Snapshot<crate::tables::LocalAddress>| {
                rows.get(&key).is_none_or(|row| {
                    row.info.lxc_id != id.number()
                        || (row.info.policy_slot, row.info.flags & POLICY_FLAGS)
                            == (policy.slot, policy.flags)
                })
            };
            let rows = maps.address_table.wait_for(has_row).await;
            if maps.addresses.settled(&key, rows.revision()).await.is_err() {
                return false;
            }
        }
    }
    true
}

/// Waits until the ipcache has every prefix that has an identity of its own.
async fn are_labelled(labelled: &Table<LabelledPrefix>, maps: &MapProgress) -> bool {
    for row in labelled.snapshot().rows() {
        let rows = maps.ipcache_table.wait_for(|rows| rows.get(&row.prefix).is_some()).await;
        if maps.ipcache.settled(&row.prefix, rows.revision()).await.is_err() {
            return false;
        }
    }
    true
}
