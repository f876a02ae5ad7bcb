//! `/policy`: the policies that the node knows, what they select, and why a verdict is what it is.
//!
//! `GET /policy` and `GET /policy/selectors` have Cilium's fields, and ours beside them; the questions
//! `POST /policy/trace` and `GET /policy/cookie/{cookie}` are ours.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::Identity;

/// Answer of `GET /policy`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Policy {
    /// Counts changes of the node's policies; it starts anew with the agent.
    pub revision: i64,
    /// The rules of all policies as JSON text: Cilium's form.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub policy: String,
    /// Every policy object that the node has seen, also those that were refused.
    pub policies: Vec<PolicyElement>,
    /// The newest revision that all endpoints of the node enforce.
    #[serde(rename = "realized-revision")]
    pub realized_revision: i64,
}

/// A policy object as the node sees it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct PolicyElement {
    /// `CiliumNetworkPolicy`, `CiliumClusterwideNetworkPolicy`, `NetworkPolicy` or
    /// `ClusterNetworkPolicy`.
    pub kind: String,
    /// Its namespace; empty for policies of the whole cluster.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its uid.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub uid: String,
    /// `metadata.generation` of the object that is in force.
    pub generation: i64,
    /// Why the newest version of the object was refused, by field and reason; empty when it is valid.
    /// An older version that was valid stays in force.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<String>,
    /// Parts of it that are not enforced yet, in words; what they are about is denied.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub not_enforced: Vec<String>,
    /// Ids of the node's endpoints that it selects.
    pub endpoints: Vec<i64>,
    /// Number of its rules.
    pub rules: u64,
    /// Its rules, one text each, in words.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub rule_texts: Vec<String>,
}

/// A selector of some rule and who it selects: an element of `GET /policy/selectors`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SelectorIdentities {
    /// The selector in words.
    pub selector: String,
    /// Names of the policies that use it.
    pub labels: Vec<String>,
    /// Numbers of the identities that it selects.
    pub identities: Vec<i64>,
    /// How many rules use it.
    pub users: u64,
}

/// One end of a flow that is asked about: the first of these that is not empty counts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct TracePeer {
    /// `<namespace>/<name>` of a pod.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub pod: String,
    /// Id of an endpoint of this node; 0 for none.
    #[serde(skip_serializing_if = "is_zero")]
    pub endpoint: u16,
    /// Number or name of an identity.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub identity: String,
    /// An address.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub address: String,
    /// Labels, `source:key=value`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub labels: Vec<String>,
}

/// Body of `POST /policy/trace`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct TraceRequest {
    /// Who sends.
    pub source: TracePeer,
    /// Who is to receive.
    pub destination: TracePeer,
    /// Ports, as in `80/TCP`, `53/UDP`, `8/ICMP`; without any, only the ends count.
    pub dports: Vec<String>,
    /// Policy objects, as in a manifest, that are taken in addition to, or in place of, those of the
    /// same kind, namespace and name.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub policies: Vec<Value>,
}

/// Answer of `POST /policy/trace`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct TraceResponse {
    /// Who sends.
    pub source: Identity,
    /// Who is to receive.
    pub destination: Identity,
    /// One answer for each port that was asked about.
    pub ports: Vec<TracePort>,
}

/// The answer for one port.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct TracePort {
    /// The port, as it was asked; empty where none was.
    pub dport: String,
    /// Whether both directions allow it: `allowed` or `denied`.
    pub verdict: String,
    /// The sender's side, then the receiver's.
    pub steps: Vec<TraceStep>,
}

/// The policy of one side.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct TraceStep {
    /// `egress` or `ingress`.
    pub direction: String,
    /// `allowed` or `denied`.
    pub verdict: String,
    /// Why, in words.
    pub words: String,
    /// Why, for programs.
    #[serde(skip_serializing_if = "Value::is_null")]
    pub explanation: Value,
    /// Where the side is an endpoint of this node: what its maps say now, `allowed` or `denied`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub maps: String,
}

/// Answer of `GET /policy/cookie/{cookie}`: the rules behind a number that an event or a map entry
/// carries.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct CookieRules {
    /// The number.
    pub cookie: u32,
    /// The rules in words, one text for each.
    pub rules: Vec<String>,
}

/// What a verdict without a rule is asked with: `GET /policy/explain?…`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct ExplainQuery {
    /// Id of the endpoint whose policy decided.
    pub endpoint: u16,
    /// `ingress` or `egress`.
    pub direction: String,
    /// Number of the other side's identity.
    pub identity: u32,
    /// Number of the protocol.
    pub protocol: u8,
    /// Destination port, or the type of an ICMP message.
    pub dport: u16,
}

/// Answer of `GET /policy/explain`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ExplainResponse {
    /// `allowed` or `denied`.
    pub verdict: String,
    /// Why, in words.
    pub words: String,
    /// Why, for programs.
    #[serde(skip_serializing_if = "Value::is_null")]
    pub explanation: Value,
}

/// Answer of `GET /endpoint/{id}/config`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct EndpointConfigurationStatus {
    /// Options that cannot be changed.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub immutable: BTreeMap<String, String>,
    /// What is in force.
    pub realized: super::EndpointConfigurationSpec,
}

fn is_zero(number: &u16) -> bool {
    *number == 0
}
