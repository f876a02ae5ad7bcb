//! The agent of a node: it owns the node's endpoints and its datapath.
//!
//! ```text
//!  Kubernetes ──► k8s ──┐ intent tables   controllers      desired tables   reconcilers
//!  CNI plugin ──► rest ─┴─► (tables) ────► (pure) ────────► (tables) ──────► kernel maps, routes
//!                  │                                                             ▲
//!                  └─► endpoint: attach, wait until the kernel has it ───────────┘
//! ```
//!
//! [`wiring`] builds all of it in order and is the place to begin reading. What survives the agent
//! is in the kernel (programs on devices, pinned maps, routes) and in [`checkpoint`]s; a new agent
//! adopts both, and no packet notices.

pub mod base;
pub mod checkpoint;
pub mod cni_conf;
pub mod conntrack;
pub mod controllers;
pub mod delete_queue;
pub mod endpoint;
pub mod health;
pub mod hubble;
pub mod identity;
pub mod ipam;
pub mod ipcache;
pub mod k8s;
pub mod monitor;
pub mod policy;
pub mod ready;
pub mod relabel;
pub mod rest;
pub mod startup;
pub mod tables;
pub mod targets;
pub mod wiring;
