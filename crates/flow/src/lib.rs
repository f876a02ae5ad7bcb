//! What the datapath saw, in words: decodes the events of the BPF programs and the packet bytes
//! that follow them.
//!
//! ```text
//!   ring buffer ──► agent ──► GET /v1/monitor ──► Event::decode ──► Display, JSON
//!                                                      │
//!                                              Packet::decode
//! ```
//!
//! Architecture invariant: pure. Every input is bytes from outside, so decoding never panics and
//! never trusts a length; what is cut off is left out.

#![deny(missing_docs)]

mod event;
mod packet;

pub use event::{
    Capture, Debug, DecodeError, Drop, Event, Kind, Line, Trace, file_name, identity_name,
    observation_point_name,
};
pub use packet::{Arp, Ethernet, Mac, Network, Packet, TcpFlags, Transport, Tunnel};
