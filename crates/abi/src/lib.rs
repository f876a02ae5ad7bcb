//! Types that cross the border between the kernel and user space.
//!
//! Everything here is plain bytes with a fixed layout: map keys and values, events, load-time
//! configuration, and the numbers and names both sides must agree on. Where Cilium has the same
//! table, name and layout are Cilium's, so its tools read ours. A struct with padding does not
//! compile ([`zerocopy::IntoBytes`]), and `tests/layout.rs` holds the golden layouts.
//!
//! Architecture invariant: this crate knows nobody, does nothing and allocates nothing.

#![no_std]
#![deny(missing_docs)]

pub mod address;
pub mod config;
pub mod conntrack;
pub mod drop_reason;
pub mod endpoint;
pub mod event;
pub mod identity;
pub mod ipcache;
pub mod mark;
pub mod metrics;
pub mod names;
pub mod policy;

pub use address::AddressKey;
pub use config::DatapathConfig;
pub use drop_reason::DropReason;
