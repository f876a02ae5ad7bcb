//! A Kubernetes cluster on one machine, without containers: `cilium lab`.
//!
//! Nodes are network namespaces, pods are processes in network namespaces, the API server is
//! embedded; agent, operator and CNI plugin are the real ones and do not know the difference.
//!
//! ```text
//!   command ····· what users type; starts the supervisor
//!   guardian ···· starts the supervisor, again if it dies
//!   supervisor ·· the process behind a lab
//!     ├ apiserver ·· Kubernetes' API over TLS;  cluster: the same, in process
//!     ├ network ···· underlay and the world outside;  place: a node's namespaces and cgroup
//!     ├ node ······· Node objects;  program: keeps agents running
//!     ├ controllers  Deployments and their like to pods, Services to EndpointSlices
//!     ├ scheduler ·· pods to nodes
//!     ├ runner ····· pods to processes, by way of the CNI plugin
//!     └ streams ···· kubectl exec, attach, port-forward;  logs: what pods print
//!   teardown ···· removes a lab, also one that crashed
//! ```
//!
//! Architecture invariant: nothing outside of this crate knows that there are labs, apart from the
//! command line and the tests.

pub mod apiserver;
pub mod arrival;
pub mod cluster;
pub mod command;
pub mod control;
pub mod controllers;
pub mod guardian;
mod hubble;
pub mod image;
pub mod logs;
pub mod network;
pub mod node;
pub mod place;
pub mod process;
pub mod program;
pub mod runner;
pub mod scheduler;
pub mod spec;
pub mod streams;
pub mod supervisor;
pub mod teardown;
