//! Writes the schemas of Kubernetes' own types to `../src/apiserver/core-schema.json`.
//!
//! Run by hand when k8s-openapi is updated: `cargo run` in this directory. The
//! result is committed, so that the project itself need not compile `schemars`
//! for every Kubernetes type.

use k8s_openapi::api::apps::v1 as apps;
use k8s_openapi::api::authentication::v1 as authn;
use k8s_openapi::api::authorization::v1 as authz;
use k8s_openapi::api::autoscaling::v1 as autoscaling;
use k8s_openapi::api::batch::v1 as batch;
use k8s_openapi::api::coordination::v1 as coordination;
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1 as discovery;
use k8s_openapi::api::events::v1 as events;
use k8s_openapi::api::networking::v1 as networking;
use k8s_openapi::api::policy::v1 as policy;
use k8s_openapi::api::rbac::v1 as rbac;
use k8s_openapi::api::storage::v1 as storage;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1 as apiextensions;
use k8s_openapi::apimachinery::pkg::apis::meta::v1 as meta;
use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};

fn main() {
    let mut generator = SchemaSettings::openapi3()
        .with(|settings| settings.definitions_path = "#/components/schemas".into())
        .into_generator();
    macro_rules! types {
        ($($t:ty),* $(,)?) => { $( let _ = generator.subschema_for::<$t>(); )* };
    }
    types!(
        core::Binding,
        core::ConfigMap,
        core::Endpoints,
        core::Event,
        core::Namespace,
        core::Node,
        core::PersistentVolume,
        core::PersistentVolumeClaim,
        core::Pod,
        core::Secret,
        core::Service,
        core::ServiceAccount,
        apps::ControllerRevision,
        apps::DaemonSet,
        apps::Deployment,
        apps::ReplicaSet,
        apps::StatefulSet,
        autoscaling::Scale,
        batch::CronJob,
        batch::Job,
        events::Event,
        coordination::Lease,
        discovery::EndpointSlice,
        authn::SelfSubjectReview,
        authn::TokenRequest,
        authn::TokenReview,
        authz::LocalSubjectAccessReview,
        authz::SelfSubjectAccessReview,
        authz::SelfSubjectRulesReview,
        authz::SubjectAccessReview,
        networking::NetworkPolicy,
        rbac::ClusterRole,
        rbac::ClusterRoleBinding,
        rbac::Role,
        rbac::RoleBinding,
        apiextensions::CustomResourceDefinition,
        policy::Eviction,
        storage::StorageClass,
        meta::ObjectMeta,
        meta::DeleteOptions,
        meta::Status,
        meta::ListMeta,
    );
    let mut definitions: Map<String, Value> =
        generator.take_definitions(false).into_iter().collect();
    for (name, definition) in &mut definitions {
        // Anything may be there, which schemars words as an object.
        if ANYTHING.contains(&name.rsplit('.').next().unwrap_or_default()) {
            *definition = json!({ "description": definition["description"],
                "x-kubernetes-preserve-unknown-fields": true });
        }
        for (kind, field, keys, patch_key) in LISTS {
            if name.rsplit('.').next() == Some(kind) {
                let Some(list) = definition.pointer_mut(&format!("/properties/{field}")) else {
                    panic!("{name} has no field {field}");
                };
                list["x-kubernetes-list-type"] = json!(if keys.is_empty() { "set" } else { "map" });
                if !keys.is_empty() {
                    list["x-kubernetes-list-map-keys"] = json!(keys);
                }
                list["x-kubernetes-patch-strategy"] = json!("merge");
                if !patch_key.is_empty() {
                    list["x-kubernetes-patch-merge-key"] = json!(patch_key);
                }
            }
        }
        for (kind, field) in ATOMIC_MAPS {
            if name.rsplit('.').next() == Some(kind)
                && let Some(map) = definition.pointer_mut(&format!("/properties/{field}"))
            {
                map["x-kubernetes-map-type"] = json!("atomic");
            }
        }
        if PORTS.contains(&name.rsplit('.').next().unwrap_or_default()) {
            definition["properties"]["protocol"]["default"] = json!("TCP");
        }
        if ATOMIC_TYPES.contains(&name.rsplit('.').next().unwrap_or_default()) {
            definition["x-kubernetes-map-type"] = json!("atomic");
        }
    }
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../src/apiserver/core-schema.json");
    let text = serde_json::to_string(&definitions).expect("schemas are JSON");
    std::fs::write(path, text + "\n").expect("the source tree is writable");
    println!("{} definitions", definitions.len());
}

/// Types that hold JSON of any type.
const ANYTHING: &[&str] = &[
    "JSON",
    "JSONSchemaPropsOrArray",
    "JSONSchemaPropsOrBool",
    "JSONSchemaPropsOrStringArray",
    "RawExtension",
];

/// Where `protocol` is part of a key and usually left out.
const PORTS: &[&str] = &["ContainerPort", "ServicePort"];

/// Lists that merge: type, field, keys under server-side apply (none: a set),
/// key of the strategic merge patch (none: a set of plain values).
const LISTS: &[(&str, &str, &[&str], &str)] = &[
    ("Container", "env", &["name"], "name"),
    ("Container", "ports", &["containerPort", "protocol"], "containerPort"),
    ("Container", "volumeDevices", &["devicePath"], "devicePath"),
    ("Container", "volumeMounts", &["mountPath"], "mountPath"),
    ("DaemonSetStatus", "conditions", &["type"], "type"),
    ("DeploymentStatus", "conditions", &["type"], "type"),
    ("EphemeralContainer", "env", &["name"], "name"),
    ("EphemeralContainer", "ports", &["containerPort", "protocol"], "containerPort"),
    ("EphemeralContainer", "volumeDevices", &["devicePath"], "devicePath"),
    ("EphemeralContainer", "volumeMounts", &["mountPath"], "mountPath"),
    ("JobStatus", "conditions", &["type"], "type"),
    ("NamespaceStatus", "conditions", &["type"], "type"),
    ("NodeStatus", "conditions", &["type"], "type"),
    ("NodeSpec", "podCIDRs", &[], ""),
    ("ObjectMeta", "finalizers", &[], ""),
    ("ObjectMeta", "ownerReferences", &["uid"], "uid"),
    ("PodSpec", "containers", &["name"], "name"),
    ("PodSpec", "ephemeralContainers", &["name"], "name"),
    ("PodSpec", "hostAliases", &["ip"], "ip"),
    ("PodSpec", "imagePullSecrets", &["name"], "name"),
    ("PodSpec", "initContainers", &["name"], "name"),
    ("PodSpec", "resourceClaims", &["name"], "name"),
    ("PodSpec", "schedulingGates", &["name"], "name"),
    ("PodSpec", "topologySpreadConstraints", &["topologyKey", "whenUnsatisfiable"], "topologyKey"),
    ("PodSpec", "volumes", &["name"], "name"),
    ("PodStatus", "conditions", &["type"], "type"),
    ("PodStatus", "hostIPs", &["ip"], "ip"),
    ("PodStatus", "podIPs", &["ip"], "ip"),
    ("PodStatus", "resourceClaimStatuses", &["name"], "name"),
    ("ReplicaSetStatus", "conditions", &["type"], "type"),
    ("ResourceRequirements", "claims", &["name"], ""),
    ("ServiceAccount", "imagePullSecrets", &["name"], "name"),
    ("ServiceAccount", "secrets", &["name"], "name"),
    ("ServiceSpec", "ports", &["port", "protocol"], "port"),
    ("ServiceStatus", "conditions", &["type"], "type"),
    ("StatefulSetStatus", "conditions", &["type"], "type"),
    ("EndpointSlice", "ports", &["name"], ""),
    ("CustomResourceDefinitionStatus", "conditions", &["type"], ""),
];

/// Maps that are owned as a whole under server-side apply.
const ATOMIC_MAPS: &[(&str, &str)] = &[("ServiceSpec", "selector"), ("PodSpec", "nodeSelector")];

/// Objects that are owned as a whole under server-side apply.
const ATOMIC_TYPES: &[&str] = &[
    "ConfigMapKeySelector",
    "FieldsV1",
    "LabelSelector",
    "LocalObjectReference",
    "NodeSelector",
    "NodeSelectorTerm",
    "ObjectFieldSelector",
    "ObjectReference",
    "OwnerReference",
    "ResourceFieldSelector",
    "ScopedResourceSelectorRequirement",
    "SecretKeySelector",
    "SecretReference",
    "TopologySelectorTerm",
    "TypedLocalObjectReference",
];
