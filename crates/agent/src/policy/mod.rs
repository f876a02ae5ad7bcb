//! Network policy on this node: from the cluster's policies to the entries of the policy maps.
//!
//! ```text
//!  watches: policies, CIDR groups, services, nodes ─┐
//!  identities, namespaces, endpoints ───────────────┤
//!                                                   ▼
//!                           engine.rs   repository, selector cache, a policy per subject
//!                                                   │ contents
//!                           slots.rs    which slot holds which content
//!                                                   │ policy-slots table
//!                           realize.rs  trie and revisions in the kernel
//!                                                   │ settled
//!                           controller.rs ─► endpoint-policies ─► rows of cilium_lxc and its devices
//! ```
//!
//! The order is the point: a slot is written before an endpoint is pointed to it, and emptied when
//! none is any more. See `docs/design/agent.md`.

pub mod controller;
pub mod engine;
pub mod local_identity;
pub mod lockdown;
pub mod realize;
pub mod slots;
pub mod tables;
pub mod watch;

use api::config::PolicyEnforcement;
use policy::EnforcementMode;

/// The option `enable-policy` as the engine has it.
pub fn enforcement_mode(option: PolicyEnforcement) -> EnforcementMode {
    match option {
        PolicyEnforcement::Default => EnforcementMode::Default,
        PolicyEnforcement::Always => EnforcementMode::Always,
        PolicyEnforcement::Never => EnforcementMode::Never,
    }
}
