//! The operator: what a cluster needs once, not on every node.
//!
//! ```text
//!  crds ──────► CustomResourceDefinitions
//!  leader ────► Lease; who holds it goes on:
//!  node_ipam:   watch ─► nodes ─► allocator ─► assignments ─► reconciler ─► CiliumNode
//! ```
//!
//! It installs the custom resources, and in the mode `cluster-pool` gives each node a prefix of every
//! family for its pods. Agents work on without it; a new node waits for it.

pub mod allocator;
pub mod client;
pub mod crds;
pub mod health;
pub mod leader;
pub mod node_ipam;
pub mod pool;
