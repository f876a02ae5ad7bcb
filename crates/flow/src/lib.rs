//! What the datapath saw, in words: events of the BPF programs become lines of the monitor, and
//! flows of Hubble.
//!
//! ```text
//!   rings ──► agent ──► GET /v1/monitor ──► Event::decode ──► Display, JSON
//!               │
//!               └─► Event::decode ──► Row ──► Ring ──► filter ──► message ──► GetFlows, files
//!                        Directory ────┘       └─────► metrics
//! ```
//!
//! Architecture invariant: decoding is pure. Its input is bytes from outside, so it never panics and
//! never trusts a length; what is cut off is left out.

#![deny(missing_docs)]

pub mod client;
pub mod directory;
mod event;
pub mod export;
pub mod filter;
pub mod mask;
pub mod message;
pub mod metrics;
pub mod observer;
mod packet;
pub mod relay;
pub mod ring;
mod row;
pub mod server;

pub use directory::{Directory, Peer};
pub use event::{
    Capture, Debug, DecodeError, Drop, Event, Kind, Line, Sock, Trace, Verdict, file_name,
    identity_name, match_name, observation_point_name, reason_text, xlate_point_name,
};
pub use packet::{Arp, Ethernet, Mac, Network, Packet, TcpFlags, Transport, Tunnel};
pub use row::{Party, Row};
