//! The policy engine: rules in, policy maps out, and the reason for every verdict.
//!
//! ```text
//!  policies ──┐
//!  identities ┼──► Repository ──► per subject: MapState, and what changed of it
//!  services,  │        │
//!  CIDR groups┘        ├────────► prefixes that need an identity
//!                      └────────► Explanation of a flow, rules of a cookie
//! ```
//!
//! The [`Repository`] is told what changes and computes what follows from it, in time that depends on
//! the change and not on the size of the cluster; the result is always what computing from scratch
//! gives. The same rules, selectors and precedences answer [`Repository::explain`], so an
//! explanation and the kernel cannot disagree.
//!
//! The languages are read by the crate `api` (`api::policy`), which makes [`Policy`]s of them.
//!
//! Architecture invariant: no I/O, no clock, no randomness, no Kubernetes.

#![deny(missing_docs)]

mod cookie;
mod decide;
mod map;
mod peers;
mod port;
mod repository;
mod rule;
mod selectors;
mod subject;
mod suggest;
mod trace;

pub use map::{Delta, Entry, EntryVerdict, Key, MapState};
pub use port::{NamedPort, PortMatch, PortPrefix, Protocol};
pub use repository::{
    CidrGroup, Config, EnforcementMode, Repository, Service, ServiceName, Subject, SubjectId,
    SubjectKind,
};
pub use rule::{
    CidrGroups, Clause, Direction, Entity, List, PeerSelector, Peers, PerDirection, Place, Policy,
    PolicyId, PolicyKind, Port, Rule, Services, SubjectSelector, Tier, Unenforced, Verdict,
};
pub use trace::{
    DirectionQuery, Explanation, FlowExplanation, FlowQuery, Nearest, Outcome, Party,
    RuleReference, Unmet,
};
