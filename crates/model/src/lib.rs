//! The control plane's words: labels, identities, endpoints, nodes.
//!
//! Small types that cannot be wrong once they exist: text is parsed here, once, and the rest of the
//! control plane passes values. Nothing here does I/O, and nothing is a Kubernetes or wire type;
//! `api` converts.
//!
//! Architecture invariant: this crate knows nobody.

#![deny(missing_docs)]

pub mod endpoint;
pub mod identity;
pub mod label;
pub mod label_filter;
pub mod mac;
pub mod node;
pub mod selector;

pub use endpoint::{EndpointId, EndpointState};
pub use identity::{IdentityId, Scope};
pub use label::{Label, Labels, PodLabels};
pub use label_filter::LabelFilter;
pub use mac::Mac;
pub use node::{IpFamily, NodeName, PodName, TunnelEndpoint};
pub use selector::{LabelSelector, Operator, Requirement};
