//! A packet, and what the kernel does with packets.

use abi::event::{DebugMessage, DropNotify, PolicyVerdictNotify, TraceNotify};

use crate::hooks::Verdict;

/// A packet in a hook: its bytes from the Ethernet header on, and its metadata.
///
/// Bytes are read and written a whole header at a time; an access beyond the end is `None`. No
/// reference into the packet is ever handed out, so nothing can dangle after a call that moves it.
pub trait Packet {
    /// The `N` bytes at `offset`.
    fn load<const N: usize>(&self, offset: usize) -> Option<[u8; N]>;
    /// Overwrites the bytes at `offset`.
    fn store<const N: usize>(&mut self, offset: usize, bytes: [u8; N]) -> Option<()>;
    /// Length with the Ethernet header; of an aggregate (GSO), that of the whole.
    fn length(&self) -> u32;
    /// Device that the hook belongs to.
    fn ifindex(&self) -> u32;

    /// The mark, see [`abi::mark`].
    fn mark(&self) -> u32;
    /// Sets the mark.
    fn set_mark(&mut self, mark: u32);
    /// Sends the packet out of the device `ifindex`: another, or back out of the same.
    fn redirect(&mut self, ifindex: u32) -> Verdict;
    /// Sends the packet into the namespace at the other end of the pod's device `ifindex`.
    fn redirect_peer(&mut self, ifindex: u32) -> Verdict;
    /// Sends the packet out of the device `ifindex` to a neighbour whose MAC address the kernel
    /// finds.
    fn redirect_neighbour(&mut self, ifindex: u32, next_hop: &NetworkAddress) -> Verdict;
    /// Makes the stack take the packet as sent to this host, whatever its MAC address says.
    fn accept_as_host(&mut self);

    /// The VNI that the packet was received with.
    fn tunnel_id(&self) -> Option<u32>;
    /// Gives the tunnel device its orders. Fails only when the kernel has no memory.
    fn set_tunnel(&mut self, id: u32, node: &NetworkAddress) -> Option<()>;
    /// Asks the kernel's routing table.
    fn route(&self, query: &RouteQuery) -> Route;

    /// A hash of the packet's flow, for events.
    fn flow_hash(&self) -> u32;
    /// Sends an event with the first `len` bytes of the packet. The event is made when there is room
    /// for it.
    fn send_trace(&self, len: u16, event: impl FnOnce() -> TraceNotify);
    /// Sends an event with the first `len` bytes of the packet.
    fn send_drop(&self, len: u16, event: impl FnOnce() -> DropNotify);
    /// Sends an event with the first `len` bytes of the packet.
    fn send_verdict(&self, len: u16, event: impl FnOnce() -> PolicyVerdictNotify);
    /// Sends a debug message.
    fn send_debug(&self, event: &DebugMessage);
}

/// A question to the routing table; words are in network byte order, IPv4 fills the first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RouteQuery {
    /// `AF_INET` or `AF_INET6`.
    pub address_family: u8,
    /// DSCP and ECN.
    pub traffic_class: u8,
    /// L4 protocol.
    pub protocol: u8,
    /// Device the packet came in by.
    pub ifindex: u32,
    /// Source address.
    pub source: [u32; 4],
    /// Target address.
    pub target: [u32; 4],
}

/// What the routing table says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// The neighbour's MAC address is known.
    Neighbour {
        /// Device to send by.
        ifindex: u32,
        /// New target MAC address, first six bytes.
        target_mac: [u8; 8],
        /// New source MAC address, first six bytes.
        source_mac: [u8; 8],
    },
    /// The neighbour must be resolved first.
    Resolve {
        /// Device to send by.
        ifindex: u32,
        /// Who to resolve; an IPv4 route may have an IPv6 next hop.
        next_hop: NetworkAddress,
    },
    /// The stack knows better: no route (it answers with an ICMP error), a packet too big, a
    /// local address, forwarding switched off.
    Stack,
    /// A blackhole route.
    Blackhole,
}

/// An address that says its family. All bytes mean something in both: an enum of two sizes has bytes
/// that do not, and 6.1's verifier meets them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NetworkAddress {
    /// `AF_INET` or `AF_INET6`.
    pub address_family: u8,
    /// Words in network byte order; IPv4 fills the first, the rest is zero.
    pub address: [u32; 4],
}

/// `AF_INET` as the kernel numbers it.
pub const AF_INET: u8 = 2;
/// `AF_INET6` as the kernel numbers it.
pub const AF_INET6: u8 = 10;
