//! The node on the host: a packet that is a vector, maps that are hash maps.
//!
//! What the kernel would do with a packet is recorded instead of done, and so is what the hooks
//! ask: [`Node::operations`] makes "one lookup" a claim that a test can check. Tests, fuzzers and
//! tools run the very code of the programs on these.

pub mod example;
pub mod harness;
pub mod judge;
pub mod packets;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap};
use std::ops::DerefMut;
use std::vec::Vec;

use abi::conntrack::{Flow, FragmentKey, FragmentPorts};
use abi::endpoint::{DeviceEndpoint, EndpointInfo};
use abi::event::{DebugMessage, DropNotify, HookId, PolicyVerdictNotify, TraceNotify};
use abi::ipcache::{IPCACHE_STATIC_PREFIX_BITS, IpcacheKey, RemoteEndpointInfo};
use abi::metrics::MetricsValue;
use abi::policy::{POLICY_STATIC_PREFIX_BITS, PolicyEntry, PolicyKey};
use abi::{AddressKey, DatapathConfig};

use crate::admit::End;
use crate::family::{Family, Transport};
use crate::flow::FlowKey;
use crate::hooks::{self, Verdict};
use crate::l4::L4;
use crate::maps::{Maps, Scratch, Way};
use crate::packet::{NetworkAddress, Packet, Route, RouteQuery};
use crate::policy::{Answer, Question};

/// Runs the hook with this number.
pub fn run(hook: HookId, packet: &mut Frame, node: &Node) -> Verdict {
    match hook {
        HookId::FromContainer => hooks::run::<hooks::FromContainer, _, _>(packet, node),
        HookId::ToContainer => hooks::run::<hooks::ToContainer, _, _>(packet, node),
        HookId::FromNetdev => hooks::run::<hooks::FromNetdev, _, _>(packet, node),
        HookId::ToNetdev => hooks::run::<hooks::ToNetdev, _, _>(packet, node),
        HookId::FromOverlay => hooks::run::<hooks::FromOverlay, _, _>(packet, node),
        HookId::ToOverlay => hooks::run::<hooks::ToOverlay, _, _>(packet, node),
        HookId::FromHost => hooks::run::<hooks::FromHost, _, _>(packet, node),
    }
}

/// Where a redirected packet was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// Out of a device.
    Device(u32),
    /// Into the namespace behind a pod's device.
    Peer(u32),
    /// Out of a device to a neighbour yet to be resolved.
    Neighbour(u32, NetworkAddress),
}

/// A packet and all that was done with it.
#[derive(Clone, Debug)]
pub struct Frame {
    /// From the Ethernet header on.
    pub bytes: Vec<u8>,
    /// Device of the hook.
    pub ifindex: u32,
    /// Mark.
    pub mark: u32,
    /// VNI that the packet came with.
    pub vni: Option<u32>,
    /// What the routing table will answer.
    pub route: Route,

    /// Orders for the tunnel device.
    pub tunnel: Option<(u32, NetworkAddress)>,
    /// Where it was sent.
    pub target: Option<Target>,
    /// Questions to the routing table.
    pub routed: RefCell<Vec<RouteQuery>>,
    /// Whether the stack shall take it as its own.
    pub is_for_host: bool,
    /// Events, with the packet as it then was.
    pub events: RefCell<Vec<Event>>,
}

/// An event that was sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A trace.
    Trace(TraceNotify, Vec<u8>),
    /// What a policy said.
    Verdict(PolicyVerdictNotify, Vec<u8>),
    /// A drop.
    Drop(DropNotify, Vec<u8>),
    /// A debug message.
    Debug(DebugMessage),
}

impl Frame {
    /// A packet at the device `ifindex`, as a hook gets it.
    pub fn new(bytes: Vec<u8>, ifindex: u32) -> Self {
        Self {
            bytes,
            ifindex,
            mark: 0,
            vni: None,
            route: Route::Stack,
            tunnel: None,
            target: None,
            routed: RefCell::default(),
            is_for_host: false,
            events: RefCell::default(),
        }
    }

    fn captured(&self, len: u16) -> Vec<u8> {
        self.bytes[..usize::from(len)].to_vec()
    }

    fn redirected(&mut self, target: Target) -> Verdict {
        self.target = Some(target);
        Verdict::Redirect
    }
}

impl Packet for Frame {
    fn load<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        self.bytes.get(offset..offset.checked_add(N)?)?.try_into().ok()
    }

    fn store<const N: usize>(&mut self, offset: usize, bytes: [u8; N]) -> Option<()> {
        self.bytes.get_mut(offset..offset.checked_add(N)?)?.copy_from_slice(&bytes);
        Some(())
    }

    fn length(&self) -> u32 {
        self.bytes.len() as u32
    }

    fn ifindex(&self) -> u32 {
        self.ifindex
    }

    fn mark(&self) -> u32 {
        self.mark
    }

    fn set_mark(&mut self, mark: u32) {
        self.mark = mark;
    }

    fn redirect(&mut self, ifindex: u32) -> Verdict {
        self.redirected(Target::Device(ifindex))
    }

    fn redirect_peer(&mut self, ifindex: u32) -> Verdict {
        self.redirected(Target::Peer(ifindex))
    }

    fn redirect_neighbour(&mut self, ifindex: u32, next_hop: &NetworkAddress) -> Verdict {
        self.redirected(Target::Neighbour(ifindex, *next_hop))
    }

    fn accept_as_host(&mut self) {
        self.is_for_host = true;
    }

    fn tunnel_id(&self) -> Option<u32> {
        self.vni
    }

    fn set_tunnel(&mut self, id: u32, node: &NetworkAddress) -> Option<()> {
        self.tunnel = Some((id, *node));
        Some(())
    }

    fn route(&self, query: &RouteQuery) -> Route {
        self.routed.borrow_mut().push(*query);
        self.route
    }

    fn flow_hash(&self) -> u32 {
        0
    }

    fn send_trace(&self, len: u16, event: impl FnOnce() -> TraceNotify) {
        let packet = self.captured(len);
        self.events.borrow_mut().push(Event::Trace(event(), packet));
    }

    fn send_drop(&self, len: u16, event: impl FnOnce() -> DropNotify) {
        let packet = self.captured(len);
        self.events.borrow_mut().push(Event::Drop(event(), packet));
    }

    fn send_verdict(&self, len: u16, event: impl FnOnce() -> PolicyVerdictNotify) {
        let packet = self.captured(len);
        self.events.borrow_mut().push(Event::Verdict(event(), packet));
    }

    fn send_debug(&self, event: &DebugMessage) {
        self.events.borrow_mut().push(Event::Debug(*event));
    }
}

/// How often the hooks asked the maps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Operations {
    /// Lookups of `cilium_lxc_devices`.
    pub device: u32,
    /// Lookups of `cilium_lxc`.
    pub endpoint: u32,
    /// Lookups of the ipcache's hash.
    pub host: u32,
    /// Lookups of the ipcache's trie.
    pub prefix: u32,
    /// Additions to counters.
    pub count: u32,
    /// Lookups of the flow maps, assured and unassured.
    pub flow: u32,
    /// Entries written to or taken from the flow maps.
    pub flow_write: u32,
    /// Lookups of the policy trie.
    pub policy: u32,
    /// Lookups of revisions.
    pub revision: u32,
    /// Lookups of datagrams in fragments, and entries written.
    pub fragment: u32,
}

/// A node's flows.
#[derive(Clone, Debug, Default)]
pub struct Flows {
    /// Those that are proven.
    pub assured: HashMap<FlowKey, Flow>,
    /// Those that are not.
    pub unassured: HashMap<FlowKey, Flow>,
}

/// The maps of a node.
#[derive(Clone, Debug, Default)]
pub struct Node {
    /// Load-time configuration.
    pub config: DatapathConfig,
    /// Event types that somebody listens to.
    pub listeners: u64,
    /// `cilium_lxc_devices`.
    pub devices: HashMap<u32, DeviceEndpoint>,
    /// `cilium_lxc`.
    pub endpoints: HashMap<AddressKey, EndpointInfo>,
    /// The ipcache's hash.
    pub hosts: HashMap<AddressKey, RemoteEndpointInfo>,
    /// The ipcache's trie.
    pub prefixes: Vec<(IpcacheKey, RemoteEndpointInfo)>,
    /// The time in ticks.
    pub now: Cell<u32>,
    /// `cilium_ct*`.
    pub flows: RefCell<Flows>,
    /// How many flows may be proven; `None` is any number.
    pub assured_max: Option<usize>,
    /// `cilium_fragments_v1`.
    pub fragments: RefCell<HashMap<FragmentKey, FragmentPorts>>,
    /// `cilium_policy_slots_v1`.
    pub policy: HashMap<PolicyKey, PolicyEntry>,
    /// `cilium_policy_revisions_v1`, by slot.
    pub revisions: HashMap<u32, u32>,
    /// Room for the packet in hand.
    pub scratch: RefCell<Scratch>,
    /// Counters by index.
    pub metrics: RefCell<BTreeMap<u32, MetricsValue>>,
    /// What was asked.
    pub operations: Cell<Operations>,
}

impl Default for Scratch {
    fn default() -> Self {
        Self {
            key: FlowKey::default(),
            flow: Flow::default(),
            fragment: FragmentKey::default(),
            transport: Transport::UNKNOWN,
            l4: L4::of(0),
            source: End::elsewhere(0),
            target: End::elsewhere(0),
            question: Question::default(),
            answer: Answer::default(),
            refusal: None,
            way: Way::Elsewhere,
            endpoint: EndpointInfo::default(),
            remote: RemoteEndpointInfo::default(),
            met: 0,
            now: 0,
        }
    }
}

impl Node {
    fn note(&self, note: impl FnOnce(&mut Operations)) {
        let mut operations = self.operations.get();
        note(&mut operations);
        self.operations.set(operations);
    }
}

impl Maps for Node {
    fn config(&self) -> &DatapathConfig {
        &self.config
    }

    fn device(&self, ifindex: u32) -> Option<&DeviceEndpoint> {
        self.note(|operations| operations.device += 1);
        self.devices.get(&ifindex)
    }

    fn endpoint(&self, key: &AddressKey) -> Option<&EndpointInfo> {
        self.note(|operations| operations.endpoint += 1);
        self.endpoints.get(key)
    }

    fn host(&self, key: &AddressKey) -> Option<&RemoteEndpointInfo> {
        self.note(|operations| operations.host += 1);
        self.hosts.get(key)
    }

    fn prefix(&self, key: &IpcacheKey) -> Option<&RemoteEndpointInfo> {
        self.note(|operations| operations.prefix += 1);
        let covers = |entry: &IpcacheKey| {
            let bits = entry.prefix_len - IPCACHE_STATIC_PREFIX_BITS;
            let same_bits = |i: u32| {
                let (byte, shift) = ((i / 8) as usize, 7 - i % 8);
                entry.addr[byte] >> shift & 1 == key.addr[byte] >> shift & 1
            };
            entry.cluster_id == key.cluster_id
                && entry.family == key.family
                && entry.prefix_len <= key.prefix_len
                && (0..bits).all(same_bits)
        };
        self.prefixes
            .iter()
            .filter(|(entry, _)| covers(entry))
            .max_by_key(|(entry, _)| entry.prefix_len)
            .map(|(_, value)| value)
    }

    fn listeners(&self) -> u64 {
        self.listeners
    }

    fn now(&self) -> u32 {
        self.now.get()
    }

    fn scratch(&self) -> Option<impl DerefMut<Target = Scratch>> {
        Some(self.scratch.borrow_mut())
    }

    fn with_flow<F: Family, R>(&self, key: &FlowKey, f: impl FnOnce(&mut Flow) -> R) -> Option<R> {
        self.note(|operations| operations.flow += 1);
        let mut flows = self.flows.borrow_mut();
        let Flows { assured, unassured } = &mut *flows;
        if let Some(flow) = assured.get_mut(key) {
            return Some(f(flow));
        }
        self.note(|operations| operations.flow += 1);
        unassured.get_mut(key).map(f)
    }

    fn insert_assured<F: Family>(&self, key: &FlowKey, flow: &Flow) -> bool {
        self.note(|operations| operations.flow_write += 1);
        let assured = &mut self.flows.borrow_mut().assured;
        let is_full = self.assured_max.is_some_and(|max| assured.len() >= max);
        if is_full && !assured.contains_key(key) {
            return false;
        }
        assured.insert(*key, *flow);
        true
    }

    fn insert_unassured<F: Family>(&self, key: &FlowKey, flow: &Flow) -> bool {
        self.note(|operations| operations.flow_write += 1);
        self.flows.borrow_mut().unassured.insert(*key, *flow);
        true
    }

    fn delete_assured<F: Family>(&self, key: &FlowKey) {
        self.note(|operations| operations.flow_write += 1);
        self.flows.borrow_mut().assured.remove(key);
    }

    fn delete_unassured<F: Family>(&self, key: &FlowKey) {
        self.note(|operations| operations.flow_write += 1);
        self.flows.borrow_mut().unassured.remove(key);
    }

    fn fragment(&self, key: &FragmentKey) -> Option<FragmentPorts> {
        self.note(|operations| operations.fragment += 1);
        self.fragments.borrow().get(key).copied()
    }

    fn remember(&self, key: &FragmentKey, ports: &FragmentPorts) {
        self.note(|operations| operations.fragment += 1);
        self.fragments.borrow_mut().insert(*key, *ports);
    }

    fn policy(&self, key: &PolicyKey) -> Option<&PolicyEntry> {
        self.note(|operations| operations.policy += 1);
        // The port, less and less of it, the protocol, nothing.
        let lengths = (80..=key.prefix_len).rev().chain([POLICY_STATIC_PREFIX_BITS]);
        lengths.into_iter().find_map(|prefix_len| {
            let port_bits = prefix_len.saturating_sub(80).min(16);
            let mask = (0xffff_0000_u32 >> port_bits) as u16;
            let dport = (u16::from_be_bytes(key.dport) & mask).to_be_bytes();
            let protocol = if prefix_len < 80 { 0 } else { key.protocol };
            self.policy.get(&PolicyKey { prefix_len, protocol, dport, ..*key })
        })
    }

    fn revision(&self, slot: u32) -> u32 {
        self.note(|operations| operations.revision += 1);
        self.revisions.get(&slot).copied().unwrap_or(0)
    }

    fn count(&self, index: u32, bytes: u64) {
        self.note(|operations| operations.count += 1);
        let mut metrics = self.metrics.borrow_mut();
        let value = metrics.entry(index).or_default();
        value.count += 1;
        value.bytes += bytes;
    }
}
