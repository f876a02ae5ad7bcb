//! The manifests that make the API server know the custom resources.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use serde_json::{Value, json};

use super::{GROUP, schema};

/// Label of a manifest that holds the version of its schema.
pub const SCHEMA_VERSION_LABEL: &str = "io.cilium.k8s.crd.schema.version";
/// The version of the schemas, Cilium's: an installed manifest of a lower one is replaced.
pub const SCHEMA_VERSION: SchemaVersion = SchemaVersion([1, 34, 3]);

/// `major.minor.patch` of a schema.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SchemaVersion(pub [u32; 3]);

impl SchemaVersion {
    /// Reads the value of the label; `None` when it is no version.
    pub fn parse(text: &str) -> Option<Self> {
        let parts: Option<Vec<u32>> = text.split('.').map(|part| part.parse().ok()).collect();
        parts?.try_into().ok().map(Self)
    }

    /// The version of an installed manifest; one without the label is older than all.
    pub fn of(crd: &CustomResourceDefinition) -> Self {
        let label = crd.metadata.labels.as_ref().and_then(|all| all.get(SCHEMA_VERSION_LABEL));
        label.and_then(|text| Self::parse(text)).unwrap_or(Self([0; 3]))
    }
}

impl std::fmt::Display for SchemaVersion {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [major, minor, patch] = self.0;
        write!(f, "{major}.{minor}.{patch}")
    }
}

/// The manifests of all custom resources that we use.
pub fn crds() -> Vec<CustomResourceDefinition> {
    let policies = [cilium_policy(), cilium_clusterwide_policy(), cilium_cidr_group()];
    [cilium_node(), cilium_endpoint(), cilium_identity()]
        .into_iter()
        .chain(policies)
        .map(|manifest| serde_json::from_value(manifest).expect("the manifests are valid"))
        .collect()
}

/// What the manifests differ in.
struct Names<'a> {
    kind: &'a str,
    plural: &'a str,
    short: &'a [&'a str],
    scope: &'a str,
}

fn manifest(names: &Names<'_>, columns: &[Value], schema: &Value) -> Value {
    let Names { kind, plural, short, scope } = names;
    let policies = ["CiliumNetworkPolicy", "CiliumClusterwideNetworkPolicy"];
    let categories: &[&str] =
        if policies.contains(kind) { &["cilium", "ciliumpolicy"] } else { &["cilium"] };
    // A CiliumEndpoint is nothing but its status, which Cilium writes with the object.
    let subresources = if *kind == "CiliumEndpoint" { json!({}) } else { json!({"status": {}}) };
    json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {
            "name": format!("{plural}.{GROUP}"),
            "labels": {SCHEMA_VERSION_LABEL: SCHEMA_VERSION.to_string()},
        },
        "spec": {
            "group": GROUP,
            "names": {
                "categories": categories,
                "kind": kind,
                "listKind": format!("{kind}List"),
                "plural": plural,
                "shortNames": short,
                "singular": kind.to_lowercase(),
            },
            "scope": scope,
            "versions": [{
                "name": "v2",
                "served": true,
                "storage": true,
                "additionalPrinterColumns": columns,
                "schema": {"openAPIV3Schema": schema},
                "subresources": subresources,
            }],
        },
    })
}

fn column(name: &str, kind: &str, path: &str, description: &str) -> Value {
    json!({"name": name, "type": kind, "jsonPath": path, "description": description})
}

/// A column of `kubectl get -o wide` only.
fn wide_column(name: &str, kind: &str, path: &str, description: &str) -> Value {
    let mut column = column(name, kind, path, description);
    column["priority"] = 1.into();
    column
}

fn age() -> Value {
    column("Age", "date", ".metadata.creationTimestamp", "Time since it was created")
}

fn cilium_node() -> Value {
    let address = |kind: &str| format!(".spec.addresses[?(@.type==\"{kind}\")].ip");
    manifest(
        &Names {
            kind: "CiliumNode",
            plural: "ciliumnodes",
            short: &["cn", "ciliumn"],
            scope: "Cluster",
        },
        &[
            column(
                "CiliumInternalIP",
                "string",
                &address("CiliumInternalIP"),
                "Address of the node in the pods' network",
            ),
            column("InternalIP", "string", &address("InternalIP"), "Address of the node"),
            age(),
        ],
        &schema::cilium_node(),
    )
}

fn cilium_endpoint() -> Value {
    manifest(
        &Names {
            kind: "CiliumEndpoint",
            plural: "ciliumendpoints",
            short: &["cep", "ciliumep"],
            scope: "Namespaced",
        },
        &[
            column("Security Identity", "integer", ".status.identity.id", "Security identity"),
            wide_column(
                "Ingress Enforcement",
                "boolean",
                ".status.policy.ingress.enforcing",
                "Whether policy is enforced into the pod",
            ),
            wide_column(
                "Egress Enforcement",
                "boolean",
                ".status.policy.egress.enforcing",
                "Whether policy is enforced out of the pod",
            ),
            column("Endpoint State", "string", ".status.state", "State of the endpoint"),
            column("IPv4", "string", ".status.networking.addressing[0].ipv4", "IPv4 address"),
            column("IPv6", "string", ".status.networking.addressing[0].ipv6", "IPv6 address"),
        ],
        &schema::cilium_endpoint(),
    )
}

fn cilium_identity() -> Value {
    manifest(
        &Names {
            kind: "CiliumIdentity",
            plural: "ciliumidentities",
            short: &["ciliumid"],
            scope: "Cluster",
        },
        &[
            column(
                "Namespace",
                "string",
                r".metadata.labels.io\.kubernetes\.pod\.namespace",
                "Namespace of the pods",
            ),
            age(),
        ],
        &schema::cilium_identity(),
    )
}

/// Columns of both policies.
fn policy_columns() -> [Value; 2] {
    let valid = ".status.conditions[?(@.type==\"Valid\")].status";
    [age(), column("Valid", "string", valid, "Whether it was accepted")]
}

fn cilium_policy() -> Value {
    manifest(
        &Names {
            kind: "CiliumNetworkPolicy",
            plural: "ciliumnetworkpolicies",
            short: &["cnp", "ciliumnp"],
            scope: "Namespaced",
        },
        &policy_columns(),
        &schema::policy::cilium_policy(),
    )
}

fn cilium_clusterwide_policy() -> Value {
    manifest(
        &Names {
            kind: "CiliumClusterwideNetworkPolicy",
            plural: "ciliumclusterwidenetworkpolicies",
            short: &["ccnp"],
            scope: "Cluster",
        },
        &policy_columns(),
        &schema::policy::cilium_policy(),
    )
}

fn cilium_cidr_group() -> Value {
    manifest(
        &Names {
            kind: "CiliumCIDRGroup",
            plural: "ciliumcidrgroups",
            short: &["ccg"],
            scope: "Cluster",
        },
        &[age()],
        &schema::policy::cilium_cidr_group(),
    )
}

/// The manifest of Kubernetes' `ClusterNetworkPolicy`, for clusters that bring none: it is not ours,
/// so it is not among [`crds`] and no label tells its version.
pub fn cluster_network_policy() -> CustomResourceDefinition {
    let columns = [
        column("Tier", "string", ".spec.tier", "When it is asked"),
        column("Priority", "integer", ".spec.priority", "Place within the tier, the lowest first"),
        age(),
    ];
    let names = Names {
        kind: "ClusterNetworkPolicy",
        plural: "clusternetworkpolicies",
        // Its usual short name, cnp, is that of Cilium's policy.
        short: &[],
        scope: "Cluster",
    };
    let mut manifest = manifest(&names, &columns, &schema::policy::cluster_network_policy());
    let group = "policy.networking.k8s.io";
    manifest["metadata"] = json!({
        "name": format!("{}.{group}", names.plural),
        // The API server wants to know who approved of a name under k8s.io.
        "annotations": {"api-approved.kubernetes.io": "unapproved, experimental-only"},
    });
    manifest["spec"]["group"] = group.into();
    manifest["spec"]["names"]["categories"] = json!([]);
    manifest["spec"]["versions"][0]["name"] = "v1alpha2".into();
    serde_json::from_value(manifest).expect("the manifest is valid")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn manifests_are_complete() {
        let crds = crds();
        let names: Vec<_> = crds.iter().map(|crd| crd.metadata.name.as_deref().unwrap()).collect();
        assert_eq!(
            names,
            [
                "ciliumnodes.cilium.io",
                "ciliumendpoints.cilium.io",
                "ciliumidentities.cilium.io",
                "ciliumnetworkpolicies.cilium.io",
                "ciliumclusterwidenetworkpolicies.cilium.io",
                "ciliumcidrgroups.cilium.io",
            ]
        );
        for crd in &crds {
            assert_eq!(SchemaVersion::of(crd), SCHEMA_VERSION);
            assert!(crd.spec.versions[0].subresources.is_some());
        }
    }

    #[test]
    fn the_administrators_policy_has_its_own_group() {
        let crd = cluster_network_policy();
        let name = crd.metadata.name.as_deref();
        assert_eq!(name, Some("clusternetworkpolicies.policy.networking.k8s.io"));
        assert_eq!(crd.spec.versions[0].name, "v1alpha2");
    }

    /// Every field that the types write is one that the schema lets pass.
    #[test]
    fn schemas_know_what_the_types_write() {
        use super::super::*;
        let mut node = CiliumNode::new("n");
        node.spec = NodeSpec {
            addresses: vec![NodeAddress::default()],
            health: AddressPair { ipv4: "1".into(), ipv6: "2".into() },
            ingress: AddressPair { ipv4: "1".into(), ipv6: "2".into() },
            encryption: Encryption { key: 1 },
            ipam: IpamSpec { pod_cidrs: vec!["x".into()] },
            bootid: "b".into(),
            instance_id: "i".into(),
        };
        let used = AllocationIp { owner: "o".into(), resource: "r".into() };
        node.status.ipam.used.insert("10.0.0.1".into(), used);
        node.status.ipam.operator_status.error = "e".into();
        node.status.ipam.pod_cidrs.insert("x".into(), PodCidrStatus { status: "in-use".into() });
        check_known(&serde_json::to_value(&node).unwrap(), &schema::cilium_node());

        let direction = Some(EndpointPolicyDirection { enforcing: true, state: "ok".into() });
        let mut endpoint = CiliumEndpoint::new("ns", "n");
        endpoint.status = EndpointStatus {
            id: 1,
            state: "ready".into(),
            identity: Some(EndpointIdentity { id: 1, labels: vec!["k8s:a=b".into()] }),
            networking: Some(EndpointNetworking {
                addressing: vec![AddressPair { ipv4: "1".into(), ipv6: "2".into() }],
                node: "3".into(),
            }),
            encryption: Encryption { key: 1 },
            external_identifiers: ExternalIdentifiers {
                cni_attachment_id: "a".into(),
                container_id: "b".into(),
                k8s_namespace: "c".into(),
                k8s_pod_name: "d".into(),
                pod_name: "e".into(),
            },
            named_ports: vec![NamedPort::default()],
            policy: Some(EndpointPolicy { ingress: direction.clone(), egress: direction }),
            service_account: "s".into(),
        };
        check_known(&serde_json::to_value(&endpoint).unwrap(), &schema::cilium_endpoint());
    }

    #[track_caller]
    fn check_known(value: &Value, schema: &Value) {
        match value {
            Value::Object(fields) => {
                for (name, field) in fields {
                    if name == "metadata" {
                        continue;
                    }
                    let known = schema["properties"].get(name);
                    let known = known.or_else(|| schema.get("additionalProperties"));
                    let known = known.unwrap_or_else(|| panic!("{name} is not in {schema}"));
                    check_known(field, known);
                }
            }
            Value::Array(items) => {
                items.iter().for_each(|item| check_known(item, &schema["items"]));
            }
            _ => {}
        }
    }

    #[test]
    fn versions_compare_as_numbers() {
        let version = |text| SchemaVersion::parse(text).unwrap();
        assert!(version("1.9.0") < version("1.34.3"));
        assert_eq!(SchemaVersion::parse("1.34"), None);
        assert_eq!(SchemaVersion::parse("x"), None);
    }
}
