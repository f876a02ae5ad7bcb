//! The operator: what a cluster needs once, not on every node.
//!
//! ```text
//!  crds ──────► CustomResourceDefinitions
//!  leader ────► Lease; who holds it goes on:
//!  node_ipam:   watch ─► nodes ─► allocator ─► assignments ─► reconciler ─► CiliumNode
//!  node_ready:  watch ─► nodes, agents ─► patches of Node: taint, condition
//!  policy_status: watch ─► policies, nodes, what each enforces ─► conditions of policies
//!  gc:          list ─► identities, endpoints, nodes that nobody has any more ─► delete
//! ```
//!
//! It installs the custom resources, in the mode `cluster-pool` gives each node a prefix of every
//! family for its pods, tells Kubernetes which nodes can take pods, and removes what dead nodes left.
//! Agents work on without it; a new node waits for it.

pub mod allocator;
pub mod client;
pub mod crds;
pub mod gc;
pub mod health;
pub mod leader;
pub mod metrics;
pub mod node_ipam;
pub mod node_ready;
pub mod policy_status;
pub mod pool;
pub mod watch;
