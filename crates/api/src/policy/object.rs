//! The objects, as the API server gives and takes them.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::api::ObjectMeta;
use policy::{CidrGroup, PolicyId, PolicyKind};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::field::{Errors, Field};
use super::{Accepted, Context, FieldError, PolicyObject, Refused, cilium, cluster, kubernetes};
use crate::k8s::resource;

resource!(
    CiliumNetworkPolicy,
    kube::core::NamespaceResourceScope,
    "cilium.io",
    "v2",
    "CiliumNetworkPolicy",
    "ciliumnetworkpolicies"
);
resource!(
    CiliumClusterwideNetworkPolicy,
    kube::core::ClusterResourceScope,
    "cilium.io",
    "v2",
    "CiliumClusterwideNetworkPolicy",
    "ciliumclusterwidenetworkpolicies"
);
resource!(
    NetworkPolicy,
    kube::core::NamespaceResourceScope,
    "networking.k8s.io",
    "v1",
    "NetworkPolicy",
    "networkpolicies"
);
resource!(
    ClusterNetworkPolicy,
    kube::core::ClusterResourceScope,
    "policy.networking.k8s.io",
    "v1alpha2",
    "ClusterNetworkPolicy",
    "clusternetworkpolicies"
);
resource!(
    CiliumCidrGroup,
    kube::core::ClusterResourceScope,
    "cilium.io",
    "v2",
    "CiliumCIDRGroup",
    "ciliumcidrgroups"
);

/// How a policy is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct PolicyStatus {
    /// `Valid`, and others.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
}

/// Cilium's policy of a namespace.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct CiliumNetworkPolicy {
    /// Name, namespace, uid.
    pub metadata: ObjectMeta,
    /// One rule, as it was written.
    #[serde(skip_serializing_if = "Value::is_null")]
    pub spec: Value,
    /// More rules, as they were written.
    #[serde(skip_serializing_if = "Value::is_null")]
    pub specs: Value,
    /// How it is.
    pub status: PolicyStatus,
}

/// Cilium's policy of the cluster.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct CiliumClusterwideNetworkPolicy {
    /// Name, uid.
    pub metadata: ObjectMeta,
    /// One rule, as it was written.
    #[serde(skip_serializing_if = "Value::is_null")]
    pub spec: Value,
    /// More rules, as they were written.
    #[serde(skip_serializing_if = "Value::is_null")]
    pub specs: Value,
    /// How it is.
    pub status: PolicyStatus,
}

/// Kubernetes' policy of a namespace.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct NetworkPolicy {
    /// Name, namespace, uid.
    pub metadata: ObjectMeta,
    /// What it says, as it was written.
    #[serde(skip_serializing_if = "Value::is_null")]
    pub spec: Value,
}

/// Kubernetes' policy of the cluster's administrator.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ClusterNetworkPolicy {
    /// Name, uid.
    pub metadata: ObjectMeta,
    /// What it says, as it was written.
    #[serde(skip_serializing_if = "Value::is_null")]
    pub spec: Value,
    /// How it is.
    pub status: PolicyStatus,
}

/// Prefixes under a name.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct CiliumCidrGroup {
    /// Name, labels.
    pub metadata: ObjectMeta,
    /// The prefixes.
    pub spec: CiliumCidrGroupSpec,
}

/// What a group of prefixes is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct CiliumCidrGroupSpec {
    /// The prefixes, as they were written.
    #[serde(rename = "externalCIDRs")]
    pub external_cidrs: Vec<String>,
}

/// Path of the one rule.
const SPEC: &str = "spec";

/// Reads with `read`, which is given a place for notes; accepted is what has no mistakes.
fn accept(
    read: impl FnOnce(&Errors, &mut Vec<super::Note>) -> Option<policy::Policy>,
) -> Result<Accepted, Refused> {
    let errors = Errors::default();
    let mut notes = Vec::new();
    let policy = read(&errors, &mut notes);
    let errors = errors.into_vec();
    match policy {
        Some(policy) if errors.is_empty() => Ok(Accepted { policy, notes }),
        _ => Err(Refused { errors }),
    }
}

fn id(kind: PolicyKind, meta: &ObjectMeta) -> PolicyId {
    PolicyId {
        kind,
        namespace: meta.namespace.clone().unwrap_or_default(),
        name: meta.name.clone().unwrap_or_default(),
    }
}

fn uid(meta: &ObjectMeta) -> Box<str> {
    meta.uid.as_deref().unwrap_or_default().into()
}

/// Reads `spec` and `specs` of a Cilium policy.
fn read_cilium(
    id: PolicyId,
    meta: &ObjectMeta,
    spec: &Value,
    specs: &Value,
    context: &Context,
) -> Result<Accepted, Refused> {
    accept(|errors, notes| {
        let mut rules = Vec::new();
        let namespace = id.namespace.clone();
        if let Some(field) = Field::new(SPEC, spec, errors) {
            rules.push(cilium::rule(&field, None, &namespace, context, notes));
        }
        if let Some(field) = Field::new("specs", specs, errors) {
            for (index, item) in field.list_up_to(usize::from(u16::MAX))?.iter().enumerate() {
                rules.push(cilium::rule(item, Some(index as u16), &namespace, context, notes));
            }
        }
        if rules.is_empty() {
            errors.add(SPEC, "is required, or specs");
        }
        let rules = rules.into_iter().collect::<Option<Vec<_>>>()?;
        Some(policy::Policy { id, uid: uid(meta), rules })
    })
}

/// Reads the one rule of a policy.
fn read_spec(
    id: PolicyId,
    meta: &ObjectMeta,
    spec: &Value,
    read: impl FnOnce(&Field<'_>, &mut Vec<super::Note>) -> Option<policy::Rule>,
) -> Result<Accepted, Refused> {
    accept(|errors, notes| {
        let Some(field) = Field::new(SPEC, spec, errors) else {
            errors.add(SPEC, "is required");
            return None;
        };
        Some(policy::Policy { id, uid: uid(meta), rules: vec![read(&field, notes)?] })
    })
}

impl PolicyObject for CiliumNetworkPolicy {
    fn policy_id(&self) -> PolicyId {
        id(PolicyKind::CiliumNetworkPolicy, &self.metadata)
    }

    fn read(&self, context: &Context) -> Result<Accepted, Refused> {
        read_cilium(self.policy_id(), &self.metadata, &self.spec, &self.specs, context)
    }
}

impl PolicyObject for CiliumClusterwideNetworkPolicy {
    fn policy_id(&self) -> PolicyId {
        PolicyId {
            namespace: String::new(),
            ..id(PolicyKind::CiliumClusterwideNetworkPolicy, &self.metadata)
        }
    }

    fn read(&self, context: &Context) -> Result<Accepted, Refused> {
        read_cilium(self.policy_id(), &self.metadata, &self.spec, &self.specs, context)
    }
}

impl PolicyObject for NetworkPolicy {
    fn policy_id(&self) -> PolicyId {
        id(PolicyKind::NetworkPolicy, &self.metadata)
    }

    fn read(&self, context: &Context) -> Result<Accepted, Refused> {
        let id = self.policy_id();
        let namespace = id.namespace.clone();
        read_spec(id, &self.metadata, &self.spec, |field, _notes| {
            kubernetes::rule(field, &namespace, context)
        })
    }
}

impl PolicyObject for ClusterNetworkPolicy {
    fn policy_id(&self) -> PolicyId {
        PolicyId {
            namespace: String::new(),
            ..id(PolicyKind::ClusterNetworkPolicy, &self.metadata)
        }
    }

    fn read(&self, context: &Context) -> Result<Accepted, Refused> {
        read_spec(self.policy_id(), &self.metadata, &self.spec, |field, notes| {
            cluster::rule(field, context, notes)
        })
    }
}

/// Source of the labels that groups give to their prefixes.
const SOURCE_CIDR_GROUP: &str = "cidrgroup";

impl CiliumCidrGroup {
    /// The group, or what is wrong with its prefixes.
    pub fn read(&self) -> Result<CidrGroup, Refused> {
        let mut errors = Vec::new();
        let mut prefixes = std::collections::BTreeSet::new();
        for (index, text) in self.spec.external_cidrs.iter().enumerate() {
            let address = text.parse::<std::net::IpAddr>().map(ipnet::IpNet::from);
            match text.parse::<ipnet::IpNet>().ok().or(address.ok()) {
                Some(prefix) => {
                    prefixes.insert(prefix.trunc());
                }
                None => errors.push(FieldError {
                    path: format!("spec.externalCIDRs[{index}]"),
                    reason: format!("{text:?} is not a CIDR; write address/length or an address"),
                }),
            }
        }
        if !errors.is_empty() {
            return Err(Refused { errors });
        }
        let labels = crate::k8s::labels(&self.metadata);
        let labels =
            labels.iter().map(|(key, value)| model::Label::new(SOURCE_CIDR_GROUP, key, value));
        Ok(CidrGroup { labels: labels.collect(), prefixes })
    }
}

pub(super) fn read_manifest(
    manifest: &Value,
    namespace: &str,
    context: &Context,
) -> Result<Accepted, Refused> {
    let refuse = |path: &str, reason: String| {
        Err(Refused { errors: vec![FieldError { path: path.to_owned(), reason }] })
    };
    let text = |name: &str| manifest.get(name).and_then(Value::as_str).unwrap_or_default();
    let version = text("apiVersion");
    let expected = match text("kind") {
        "CiliumNetworkPolicy" | "CiliumClusterwideNetworkPolicy" => "cilium.io/v2",
        "NetworkPolicy" => "networking.k8s.io/v1",
        "ClusterNetworkPolicy" => "policy.networking.k8s.io/v1alpha2",
        kind => return refuse("kind", format!("{kind:?} is not a kind of policy")),
    };
    if version != expected {
        return refuse("apiVersion", format!("{version:?} is not known; write {expected}"));
    }
    let known = ["apiVersion", "kind", "metadata", "spec", "specs", "status"];
    let fields = manifest.as_object().into_iter().flat_map(|fields| fields.keys());
    let mut unknown = fields.filter(|name| !known.contains(&name.as_str()));
    if let Some(unknown) = unknown.next() {
        return refuse(unknown, format!("unknown field; known are {}", known.join(", ")));
    }
    let read_meta = manifest.get("metadata").cloned().map(serde_json::from_value::<ObjectMeta>);
    let mut metadata = match read_meta {
        Some(Ok(metadata)) => metadata,
        Some(Err(error)) => return refuse("metadata", error.to_string()),
        None => return refuse("metadata", "is required".to_owned()),
    };
    if metadata.name.as_deref().unwrap_or_default().is_empty() {
        return refuse("metadata.name", "is required".to_owned());
    }
    if metadata.namespace.is_none() {
        metadata.namespace = Some(namespace.to_owned());
    }
    let part = |name: &str| manifest.get(name).cloned().unwrap_or_default();
    let (spec, specs, status) = (part("spec"), part("specs"), PolicyStatus::default());
    match text("kind") {
        "CiliumNetworkPolicy" => {
            CiliumNetworkPolicy { metadata, spec, specs, status }.read(context)
        }
        "CiliumClusterwideNetworkPolicy" => {
            CiliumClusterwideNetworkPolicy { metadata, spec, specs, status }.read(context)
        }
        "NetworkPolicy" => NetworkPolicy { metadata, spec }.read(context),
        _ => ClusterNetworkPolicy { metadata, spec, status }.read(context),
    }
}
