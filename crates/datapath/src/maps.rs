//! What a hook knows of the node.

use core::ops::DerefMut;

use abi::conntrack::{Flow, FragmentKey, FragmentPorts};
use abi::endpoint::{DeviceEndpoint, EndpointInfo};
use abi::ipcache::{IpcacheKey, RemoteEndpointInfo};
use abi::policy::{PolicyEntry, PolicyKey};
use abi::{AddressKey, DatapathConfig, DropReason};

use crate::admit::End;
use crate::family::{Family, Transport};
use crate::flow::{FlowKey, Met};
use crate::l4::L4;
use crate::policy::{Answer, Question};

/// The node's maps and configuration.
pub trait Maps {
    /// Constant while the programs are loaded; what is off here is not even compiled to machine
    /// code.
    fn config(&self) -> &DatapathConfig;
    /// The endpoint behind the device with this index.
    fn device(&self, ifindex: u32) -> Option<&DeviceEndpoint>;
    /// The local endpoint, or the node itself, with this address.
    fn endpoint(&self, key: &AddressKey) -> Option<&EndpointInfo>;
    /// Who has exactly this address anywhere in the cluster.
    fn host(&self, key: &AddressKey) -> Option<&RemoteEndpointInfo>;
    /// Who has the longest prefix of this address.
    fn prefix(&self, key: &IpcacheKey) -> Option<&RemoteEndpointInfo>;
    /// The set of event types that somebody listens to, [`abi::config::RUNTIME_EVENTS`].
    fn listeners(&self) -> u64;
    /// Adds a packet to the counter at `index` of [`abi::metrics`].
    fn count(&self, index: u32, bytes: u64);

    /// The time in ticks, see [`abi::conntrack`].
    fn now(&self) -> u32;
    /// This CPU's room for what is too large for the stack. One packet at a time has it; what the
    /// packet before left there means nothing.
    fn scratch(&self) -> Option<impl DerefMut<Target = Scratch>>;
    /// What `f` makes of the flow, assured or else unassured, if there is one.
    fn with_flow<F: Family, R>(&self, key: &FlowKey, f: impl FnOnce(&mut Flow) -> R) -> Option<R>;
    /// Puts a flow into the assured map, where it may be already. Fails when that is full.
    fn insert_assured<F: Family>(&self, key: &FlowKey, flow: &Flow) -> bool;
    /// Puts a flow into the unassured map, in place of another of the same key or, where it is full,
    /// of one that was not used lately.
    fn insert_unassured<F: Family>(&self, key: &FlowKey, flow: &Flow) -> bool;
    /// Takes a flow from the assured map.
    fn delete_assured<F: Family>(&self, key: &FlowKey);
    /// Takes a flow from the unassured map.
    fn delete_unassured<F: Family>(&self, key: &FlowKey);
    /// What the first fragment of a datagram said.
    fn fragment(&self, key: &FragmentKey) -> Option<FragmentPorts>;
    /// Remembers it.
    fn remember(&self, key: &FragmentKey, ports: &FragmentPorts);
    /// The entry of the policy map with the longest prefix of `key`.
    fn policy(&self, key: &PolicyKey) -> Option<&PolicyEntry>;
    /// The revision of what is in a slot; 0 where there is none.
    fn revision(&self, slot: u32) -> u32;
}

/// What lives long and is large: programs have 512 bytes of stack.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Scratch {
    /// The key of the packet's flow.
    pub key: FlowKey,
    /// The flow under construction, or a copy of it.
    pub flow: Flow,
    /// The packet's datagram.
    pub fragment: FragmentKey,
    /// The packet's transport header, then that of the packet inside an ICMP error.
    pub transport: Transport,
    /// The packet.
    pub l4: L4,
    /// Where the packet comes from.
    pub source: End,
    /// Where it goes to.
    pub target: End,
    /// What is asked of a policy.
    pub question: Question,
    /// What it answers.
    pub answer: Answer,
    /// Why the packet is refused, if it is.
    pub refusal: Option<DropReason>,
    /// Who is meant.
    pub way: Way,
    /// The endpoint that is meant, with [`Way::Endpoint`] and [`Way::Host`].
    pub endpoint: EndpointInfo,
    /// What is known of who is meant elsewhere, with [`Way::Elsewhere`].
    pub remote: RemoteEndpointInfo,
    /// What the packet met.
    pub met: Met,
    /// The time.
    pub now: u32,
}

/// Who a packet is meant for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Way {
    /// An endpoint of this node.
    Endpoint,
    /// This node.
    Host,
    /// Anybody else.
    Elsewhere,
}

/// Makes the compiler read again what lies behind `value`. Where that is [`Scratch`], it is a map's
/// memory, and of numbers in a map the verifier knows nothing: so it walks what follows once, rather
/// than once for every way on which what was before can end.
pub fn forget<T>(value: &mut T) -> &mut T {
    core::hint::black_box(value)
}
