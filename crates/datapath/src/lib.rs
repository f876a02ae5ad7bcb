//! What the BPF programs decide, as pure code.
//!
//! A hook of [`hooks`] takes a packet and the node's maps, edits the packet and says what shall
//! become of it. It knows two small traits, [`Packet`] and [`Maps`], and nothing of BPF; so the
//! same code runs in the kernel (`crates/bpf` implements the traits over `__sk_buff` and BPF maps)
//! and on the host ([`host`] implements them over vectors and hash maps), where it is tested,
//! fuzzed, and used by tools.
//!
//! ```text
//!            crates/bpf: programs                 tests, fuzzers, tools
//!                     \                              /
//!   hooks/*   one packet's path through one hook, ten lines each
//!      │
//!   admit     may it pass: flow (conntrack), policy                     observe   events, counters
//!   forward   where a packet goes: endpoint, tunnel, network, host
//!      │
//!   l4        what a packet is to its flow
//!   family    what IPv4 and IPv6 do differently      identity   what travels in VNI and mark
//!      │
//!   wire/*    headers
//! ```
//!
//! Architecture invariants: no I/O, no clock, no allocation, no `unsafe`. IPv4 and IPv6 are one
//! code, generic in [`Family`]. Every packet ends in one [`Verdict`] or one drop reason.

#![no_std]
#![forbid(unsafe_code)]
#![deny(missing_docs)]

#[cfg(not(target_arch = "bpf"))]
extern crate std;

pub mod admit;
pub mod family;
pub mod flow;
pub mod forward;
pub mod hooks;
#[cfg(not(target_arch = "bpf"))]
pub mod host;
pub mod identity;
pub mod l4;
pub mod maps;
pub mod observe;
pub mod packet;
pub mod policy;
pub mod wire;

pub use family::{Family, V4, V6};
pub use hooks::{Hook, Verdict};
pub use maps::Maps;
pub use packet::Packet;
