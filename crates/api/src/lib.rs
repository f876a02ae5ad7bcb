//! The public surfaces: what other programs, people and files see of us, with Cilium's names.
//!
//! - [`config`]: every option, from flags, environment and the `cilium-config` directory;
//! - [`crd`]: Cilium's custom resources and the manifests that install them;
//! - [`hubble`]: Hubble's gRPC API;
//! - [`k8s`]: the few fields that we read of Kubernetes' own objects;
//! - [`policy`]: the policy languages, read into what the policy engine takes;
//! - [`policy_report`]: what each node says of the policies that it enforces;
//! - [`rest`]: the agent's REST API on its unix socket, and a blocking client of it.
//!
//! Architecture invariant: only this crate derives serialised shapes that others rely on.

#![deny(missing_docs)]

pub mod config;
pub mod crd;
pub mod hubble;
pub mod k8s;
pub mod policy;
pub mod policy_report;
pub mod rest;
