//! What a node says of the policies that it enforces: one `Lease` per node, whatever their number.
//!
//! The API server numbers every change of its objects, and numbers go up. A node that enforces all that it
//! has seen of a language therefore says the highest number among it, and with that it has said of
//! each policy whether it enforces it. The operator makes conditions of the policies from it.

use std::collections::BTreeMap;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::api::ObjectMeta;
use policy::PolicyKind;

/// Label of these leases.
pub const LABEL: &str = "cilium.io/policy-report";
/// Annotation with the numbers: `<kind>=<number>`, separated by commas.
pub const ANNOTATION: &str = "policy.cilium.io/realized-versions";

/// The languages that a node may speak of.
const KINDS: [PolicyKind; 4] = [
    PolicyKind::NetworkPolicy,
    PolicyKind::CiliumNetworkPolicy,
    PolicyKind::CiliumClusterwideNetworkPolicy,
    PolicyKind::ClusterNetworkPolicy,
];

/// What a node enforces.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PolicyReport {
    /// The node.
    pub node: String,
    /// `metadata.resourceVersion` up to which it enforces the objects of each language.
    pub versions: BTreeMap<PolicyKind, u64>,
}

impl PolicyReport {
    /// The name of a node's lease.
    pub fn name(node: &str) -> String {
        format!("cilium-policy-{node}")
    }

    /// The lease that says it, at this time.
    pub fn to_lease(&self, now: Timestamp) -> Lease {
        let versions: Vec<String> =
            self.versions.iter().map(|(kind, version)| format!("{kind}={version}")).collect();
        Lease {
            metadata: ObjectMeta {
                name: Some(Self::name(&self.node)),
                labels: Some([(LABEL.to_owned(), "true".to_owned())].into()),
                annotations: Some([(ANNOTATION.to_owned(), versions.join(","))].into()),
                ..ObjectMeta::default()
            },
            spec: Some(LeaseSpec {
                holder_identity: Some(self.node.clone()),
                renew_time: Some(MicroTime(now)),
                ..LeaseSpec::default()
            }),
        }
    }

    /// What a lease says; numbers that make no sense are left out.
    pub fn of(lease: &Lease) -> Self {
        let holder = lease.spec.as_ref().and_then(|spec| spec.holder_identity.clone());
        let text = lease.metadata.annotations.as_ref().and_then(|all| all.get(ANNOTATION));
        let words = text.map(String::as_str).unwrap_or_default().split(',');
        let versions = words.filter_map(|word| {
            let (name, version) = word.split_once('=')?;
            let kind = KINDS.into_iter().find(|kind| kind.as_str() == name)?;
            Some((kind, version.parse().ok()?))
        });
        Self { node: holder.unwrap_or_default(), versions: versions.collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_says_what_was_put_in() {
        let report = PolicyReport {
            node: "node-1".to_owned(),
            versions: [
                (PolicyKind::CiliumNetworkPolicy, 17),
                (PolicyKind::NetworkPolicy, u64::MAX),
            ]
            .into(),
        };
        let mut lease = report.to_lease(Timestamp::UNIX_EPOCH);
        assert_eq!(lease.metadata.name.as_deref(), Some("cilium-policy-node-1"));
        assert_eq!(PolicyReport::of(&lease), report);
        let annotations = lease.metadata.annotations.as_mut().unwrap();
        annotations.insert(ANNOTATION.to_owned(), "NetworkPolicy=x,Other=1,=".to_owned());
        assert!(PolicyReport::of(&lease).versions.is_empty());
    }
}
