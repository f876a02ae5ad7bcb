//! Which resources there are: the built-in ones and those of custom resource definitions.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Value, json};

use super::schema::{self, Schema};
use super::store::ResourceId;
use super::table::Column;

/// A kind of object as served in one version.
#[derive(Debug)]
pub struct Resource {
    /// Where its objects are stored; the same for all versions.
    pub id: ResourceId,
    pub group: Box<str>,
    pub version: Box<str>,
    pub kind: Box<str>,
    pub list_kind: Box<str>,
    pub plural: Box<str>,
    pub singular: Box<str>,
    pub namespaced: bool,
    pub short_names: Vec<Box<str>>,
    pub categories: Vec<Box<str>>,
    pub has_status: bool,
    /// `apiVersion` under which objects are stored.
    pub storage_api_version: Box<str>,
    /// Paths that field selectors may name, beside name and namespace.
    pub indexed: &'static [&'static str],
    pub schema: Shape,
    pub definition: Definition,
}

/// Where the schema of a resource is.
#[derive(Debug)]
pub enum Shape {
    /// One of Kubernetes' own types.
    Core(&'static str),
    /// As a custom resource definition says.
    Custom(Arc<Schema>),
}

/// What the resource comes from.
#[derive(Debug)]
pub enum Definition {
    BuiltIn,
    Custom {
        columns: Arc<[Column]>,
        /// `openAPIV3Schema` as the definition has it.
        open_api: Arc<Value>,
        /// Shown as a warning on every use, when the version is deprecated.
        deprecation: Option<Box<str>>,
    },
}

impl Resource {
    /// `v1` or `group/version`.
    pub fn api_version(&self) -> String {
        api_version(&self.group, &self.version)
    }

    pub fn schema(&self) -> &Schema {
        match &self.schema {
            Shape::Core(name) => schema::core(name),
            Shape::Custom(schema) => schema,
        }
    }

    pub fn is_custom(&self) -> bool {
        matches!(self.definition, Definition::Custom { .. })
    }

    /// One of the core group's resources, or of whatever group is given.
    pub fn is(&self, group: &str, plural: &str) -> bool {
        *self.group == *group && *self.plural == *plural
    }

    pub fn subresources(&self) -> Vec<(&'static str, &'static str, &'static [&'static str])> {
        let mut all: Vec<(&str, &str, &[&str])> = Vec::new();
        if self.is("", "pods") {
            all.push(("attach", "PodAttachOptions", &["create", "get"]));
            all.push(("binding", "Binding", &["create"]));
            all.push(("eviction", "Eviction", &["create"]));
            all.push(("exec", "PodExecOptions", &["create", "get"]));
            all.push(("log", "Pod", &["get"]));
            all.push(("portforward", "PodPortForwardOptions", &["create", "get"]));
        }
        if self.is("", "namespaces") {
            all.push(("finalize", "Namespace", &["update"]));
        }
        if self.is("", "serviceaccounts") {
            all.push(("token", "TokenRequest", &["create"]));
        }
        if self.has_scale() {
            all.push(("scale", "Scale", &["get", "patch", "update"]));
        }
        all
    }

    /// Whether the number of replicas has a subresource of its own.
    pub fn has_scale(&self) -> bool {
        *self.group == *"apps"
            && ["deployments", "replicasets", "statefulsets"].contains(&&*self.plural)
    }

    /// Verbs of the resource itself, in the order of discovery.
    pub fn verbs(&self) -> &'static [&'static str] {
        match &*self.id {
            "bindings" => &["create"],
            _ if ["authentication.k8s.io", "authorization.k8s.io"].contains(&&*self.group) => {
                &["create"]
            }
            "namespaces" => &["create", "delete", "get", "list", "patch", "update", "watch"],
            _ => {
                &["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"]
            }
        }
    }
}

/// `v1` for the core group, else `group/version`.
pub(super) fn api_version(group: &str, version: &str) -> String {
    if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") }
}

/// The store's name of a resource.
pub(super) fn resource_id(group: &str, plural: &str) -> ResourceId {
    if group.is_empty() { plural.into() } else { format!("{plural}.{group}").into() }
}

/// Group, version and plural.
type Path = (Box<str>, Box<str>, Box<str>);

/// All resources at one moment.
#[derive(Clone, Debug, Default)]
pub struct Catalog {
    /// By group, version and plural.
    by_path: BTreeMap<Path, Arc<Resource>>,
    /// Changes whenever the catalog does: what clients cache discovery by.
    pub revision: u64,
}

impl Catalog {
    /// Without custom resources.
    pub fn built_in() -> Self {
        let mut catalog = Self::default();
        for built_in in BUILT_IN {
            catalog.insert(built_in.resource());
        }
        catalog
    }

    pub fn insert(&mut self, resource: Resource) {
        let path = (resource.group.clone(), resource.version.clone(), resource.plural.clone());
        self.by_path.insert(path, resource.into());
        self.revision += 1;
    }

    /// Removes all versions of a resource.
    pub fn remove(&mut self, group: &str, plural: &str) {
        self.by_path.retain(|(g, _, p), _| **g != *group || **p != *plural);
        self.revision += 1;
    }

    pub fn find(&self, group: &str, version: &str, plural: &str) -> Option<&Arc<Resource>> {
        self.by_path.get(&(group.into(), version.into(), plural.into()))
    }

    /// Any version of the resource that is stored under `id`: the first that is served.
    pub fn by_id(&self, id: &str) -> Option<&Arc<Resource>> {
        self.by_path
            .values()
            .find(|r| *r.id == *id && r.api_version() == *r.storage_api_version)
            .or_else(|| self.by_path.values().find(|r| *r.id == *id))
    }

    pub fn all(&self) -> impl Iterator<Item = &Arc<Resource>> {
        self.by_path.values()
    }

    /// One version of each resource that is stored: what garbage collection goes through.
    pub fn stored(&self) -> Vec<Arc<Resource>> {
        let mut ids: Vec<&ResourceId> = self.by_path.values().map(|r| &r.id).collect();
        ids.sort();
        ids.dedup();
        let listable = |r: &&Arc<Resource>| r.verbs().contains(&"list");
        ids.into_iter().filter_map(|id| self.by_id(id)).filter(listable).cloned().collect()
    }

    /// Groups with their versions, the core group first, preferred versions first.
    pub fn groups(&self) -> Vec<(Box<str>, Vec<Box<str>>)> {
        let mut groups: Vec<(Box<str>, Vec<Box<str>>)> = Vec::new();
        for (group, version, _) in self.by_path.keys() {
            match groups.last_mut() {
                Some((last, versions)) if last == group => {
                    if !versions.contains(version) {
                        versions.push(version.clone());
                    }
                }
                _ => groups.push((group.clone(), vec![version.clone()])),
            }
        }
        for (_, versions) in &mut groups {
            versions.sort_by_key(|version| version_priority(version));
        }
        groups
    }

    pub fn in_version(&self, group: &str, version: &str) -> Vec<Arc<Resource>> {
        let of_version = |r: &&Arc<Resource>| *r.group == *group && *r.version == *version;
        self.by_path.values().filter(of_version).cloned().collect()
    }
}

/// Sorts as Kubernetes does: v2, v1, v1beta1, v1alpha1, then the rest by name.
pub(super) fn version_priority(version: &str) -> (u8, i64, i64, String) {
    let parsed = version.strip_prefix('v').and_then(|rest| {
        let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        let major: i64 = rest[..end].parse().ok()?;
        let (rank, minor) = match &rest[end..] {
            "" => (0, "0"),
            tail => match (tail.strip_prefix("beta"), tail.strip_prefix("alpha")) {
                (Some(minor), _) => (1, minor),
                (_, Some(minor)) => (2, minor),
                _ => return None,
            },
        };
        Some((rank, -major, -minor.parse::<i64>().ok()?, String::new()))
    });
    parsed.unwrap_or_else(|| (3, 0, 0, version.to_owned()))
}

struct BuiltIn {
    group: &'static str,
    version: &'static str,
    kind: &'static str,
    plural: &'static str,
    namespaced: bool,
    short_names: &'static [&'static str],
    has_status: bool,
    indexed: &'static [&'static str],
    schema: &'static str,
}

impl BuiltIn {
    fn resource(&self) -> Resource {
        // Both APIs of events show the same objects.
        let group = if self.plural == "events" { "" } else { self.group };
        let storage = api_version(group, if group.is_empty() { "v1" } else { self.version });
        let singular = self.kind.to_lowercase();
        Resource {
            id: resource_id(group, self.plural),
            group: self.group.into(),
            version: self.version.into(),
            kind: self.kind.into(),
            list_kind: format!("{}List", self.kind).into(),
            plural: self.plural.into(),
            singular: singular.into(),
            namespaced: self.namespaced,
            short_names: self.short_names.iter().map(|&name| name.into()).collect(),
            categories: match self.plural {
                "pods" | "services" | "deployments" | "replicasets" | "daemonsets"
                | "statefulsets" | "jobs" | "cronjobs" => vec!["all".into()],
                "customresourcedefinitions" => vec!["api-extensions".into()],
                _ => Vec::new(),
            },
            has_status: self.has_status,
            storage_api_version: storage.into(),
            indexed: self.indexed,
            schema: Shape::Core(self.schema),
            definition: Definition::BuiltIn,
        }
    }
}

const PLAIN: BuiltIn = BuiltIn {
    group: "",
    version: "v1",
    kind: "",
    plural: "",
    namespaced: true,
    short_names: &[],
    has_status: false,
    indexed: &[],
    schema: "",
};

const EVENT_FIELDS: &[&str] = &[
    "involvedObject.kind",
    "involvedObject.namespace",
    "involvedObject.name",
    "involvedObject.uid",
    "involvedObject.apiVersion",
    "involvedObject.resourceVersion",
    "involvedObject.fieldPath",
    "reason",
    "reportingComponent",
    "source.component",
    "source",
    "type",
];

const BUILT_IN: &[BuiltIn] = &[
    BuiltIn { kind: "Binding", plural: "bindings", schema: "io.k8s.api.core.v1.Binding", ..PLAIN },
    BuiltIn {
        kind: "ConfigMap",
        plural: "configmaps",
        short_names: &["cm"],
        schema: "io.k8s.api.core.v1.ConfigMap",
        ..PLAIN
    },
    BuiltIn {
        kind: "Endpoints",
        plural: "endpoints",
        short_names: &["ep"],
        schema: "io.k8s.api.core.v1.Endpoints",
        ..PLAIN
    },
    BuiltIn {
        kind: "Event",
        plural: "events",
        short_names: &["ev"],
        indexed: EVENT_FIELDS,
        schema: "io.k8s.api.core.v1.Event",
        ..PLAIN
    },
    BuiltIn {
        kind: "Namespace",
        plural: "namespaces",
        namespaced: false,
        short_names: &["ns"],
        has_status: true,
        indexed: &["status.phase"],
        schema: "io.k8s.api.core.v1.Namespace",
        ..PLAIN
    },
    BuiltIn {
        kind: "Node",
        plural: "nodes",
        namespaced: false,
        short_names: &["no"],
        has_status: true,
        indexed: &["spec.unschedulable"],
        schema: "io.k8s.api.core.v1.Node",
        ..PLAIN
    },
    BuiltIn {
        kind: "PersistentVolume",
        plural: "persistentvolumes",
        namespaced: false,
        short_names: &["pv"],
        has_status: true,
        schema: "io.k8s.api.core.v1.PersistentVolume",
        ..PLAIN
    },
    BuiltIn {
        kind: "PersistentVolumeClaim",
        plural: "persistentvolumeclaims",
        short_names: &["pvc"],
        has_status: true,
        schema: "io.k8s.api.core.v1.PersistentVolumeClaim",
        ..PLAIN
    },
    BuiltIn {
        kind: "Pod",
        plural: "pods",
        short_names: &["po"],
        has_status: true,
        indexed: &[
            "spec.nodeName",
            "spec.restartPolicy",
            "spec.schedulerName",
            "spec.serviceAccountName",
            "spec.hostNetwork",
            "status.phase",
            "status.podIP",
            "status.nominatedNodeName",
        ],
        schema: "io.k8s.api.core.v1.Pod",
        ..PLAIN
    },
    BuiltIn {
        kind: "Secret",
        plural: "secrets",
        indexed: &["type"],
        schema: "io.k8s.api.core.v1.Secret",
        ..PLAIN
    },
    BuiltIn {
        kind: "ServiceAccount",
        plural: "serviceaccounts",
        short_names: &["sa"],
        schema: "io.k8s.api.core.v1.ServiceAccount",
        ..PLAIN
    },
    BuiltIn {
        kind: "Service",
        plural: "services",
        short_names: &["svc"],
        has_status: true,
        indexed: &["spec.clusterIP", "spec.type"],
        schema: "io.k8s.api.core.v1.Service",
        ..PLAIN
    },
    BuiltIn {
        group: "apps",
        kind: "ControllerRevision",
        plural: "controllerrevisions",
        schema: "io.k8s.api.apps.v1.ControllerRevision",
        ..PLAIN
    },
    BuiltIn {
        group: "apps",
        kind: "DaemonSet",
        plural: "daemonsets",
        short_names: &["ds"],
        has_status: true,
        schema: "io.k8s.api.apps.v1.DaemonSet",
        ..PLAIN
    },
    BuiltIn {
        group: "apps",
        kind: "Deployment",
        plural: "deployments",
        short_names: &["deploy"],
        has_status: true,
        schema: "io.k8s.api.apps.v1.Deployment",
        ..PLAIN
    },
    BuiltIn {
        group: "apps",
        kind: "ReplicaSet",
        plural: "replicasets",
        short_names: &["rs"],
        has_status: true,
        indexed: &["status.replicas"],
        schema: "io.k8s.api.apps.v1.ReplicaSet",
        ..PLAIN
    },
    BuiltIn {
        group: "apps",
        kind: "StatefulSet",
        plural: "statefulsets",
        short_names: &["sts"],
        has_status: true,
        schema: "io.k8s.api.apps.v1.StatefulSet",
        ..PLAIN
    },
    BuiltIn {
        group: "batch",
        kind: "CronJob",
        plural: "cronjobs",
        short_names: &["cj"],
        has_status: true,
        schema: "io.k8s.api.batch.v1.CronJob",
        ..PLAIN
    },
    BuiltIn {
        group: "batch",
        kind: "Job",
        plural: "jobs",
        has_status: true,
        indexed: &["status.successful"],
        schema: "io.k8s.api.batch.v1.Job",
        ..PLAIN
    },
    BuiltIn {
        group: "events.k8s.io",
        kind: "Event",
        plural: "events",
        short_names: &["ev"],
        indexed: EVENT_FIELDS,
        schema: "io.k8s.api.events.v1.Event",
        ..PLAIN
    },
    BuiltIn {
        group: "coordination.k8s.io",
        kind: "Lease",
        plural: "leases",
        schema: "io.k8s.api.coordination.v1.Lease",
        ..PLAIN
    },
    BuiltIn {
        group: "discovery.k8s.io",
        kind: "EndpointSlice",
        plural: "endpointslices",
        schema: "io.k8s.api.discovery.v1.EndpointSlice",
        ..PLAIN
    },
    BuiltIn {
        group: "authentication.k8s.io",
        kind: "SelfSubjectReview",
        plural: "selfsubjectreviews",
        namespaced: false,
        schema: "io.k8s.api.authentication.v1.SelfSubjectReview",
        ..PLAIN
    },
    BuiltIn {
        group: "authentication.k8s.io",
        kind: "TokenReview",
        plural: "tokenreviews",
        namespaced: false,
        schema: "io.k8s.api.authentication.v1.TokenReview",
        ..PLAIN
    },
    BuiltIn {
        group: "authorization.k8s.io",
        kind: "SelfSubjectAccessReview",
        plural: "selfsubjectaccessreviews",
        namespaced: false,
        schema: "io.k8s.api.authorization.v1.SelfSubjectAccessReview",
        ..PLAIN
    },
    BuiltIn {
        group: "authorization.k8s.io",
        kind: "SelfSubjectRulesReview",
        plural: "selfsubjectrulesreviews",
        namespaced: false,
        schema: "io.k8s.api.authorization.v1.SelfSubjectRulesReview",
        ..PLAIN
    },
    BuiltIn {
        group: "authorization.k8s.io",
        kind: "SubjectAccessReview",
        plural: "subjectaccessreviews",
        namespaced: false,
        schema: "io.k8s.api.authorization.v1.SubjectAccessReview",
        ..PLAIN
    },
    BuiltIn {
        group: "authorization.k8s.io",
        kind: "LocalSubjectAccessReview",
        plural: "localsubjectaccessreviews",
        schema: "io.k8s.api.authorization.v1.LocalSubjectAccessReview",
        ..PLAIN
    },
    BuiltIn {
        group: "networking.k8s.io",
        kind: "NetworkPolicy",
        plural: "networkpolicies",
        short_names: &["netpol"],
        schema: "io.k8s.api.networking.v1.NetworkPolicy",
        ..PLAIN
    },
    BuiltIn {
        group: "rbac.authorization.k8s.io",
        kind: "Role",
        plural: "roles",
        schema: "io.k8s.api.rbac.v1.Role",
        ..PLAIN
    },
    BuiltIn {
        group: "rbac.authorization.k8s.io",
        kind: "RoleBinding",
        plural: "rolebindings",
        schema: "io.k8s.api.rbac.v1.RoleBinding",
        ..PLAIN
    },
    BuiltIn {
        group: "rbac.authorization.k8s.io",
        kind: "ClusterRole",
        plural: "clusterroles",
        namespaced: false,
        schema: "io.k8s.api.rbac.v1.ClusterRole",
        ..PLAIN
    },
    BuiltIn {
        group: "rbac.authorization.k8s.io",
        kind: "ClusterRoleBinding",
        plural: "clusterrolebindings",
        namespaced: false,
        schema: "io.k8s.api.rbac.v1.ClusterRoleBinding",
        ..PLAIN
    },
    BuiltIn {
        group: "storage.k8s.io",
        kind: "StorageClass",
        plural: "storageclasses",
        namespaced: false,
        short_names: &["sc"],
        schema: "io.k8s.api.storage.v1.StorageClass",
        ..PLAIN
    },
    BuiltIn {
        group: "apiextensions.k8s.io",
        kind: "CustomResourceDefinition",
        plural: "customresourcedefinitions",
        namespaced: false,
        short_names: &["crd", "crds"],
        has_status: true,
        schema: "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.CustomResourceDefinition",
        ..PLAIN
    },
];

/// `/api/v1` and `/apis/group/version`: the resources of one version.
pub(super) fn resource_list(catalog: &Catalog, group: &str, version: &str) -> Option<Value> {
    let resources = catalog.in_version(group, version);
    if resources.is_empty() {
        return None;
    }
    let mut entries = Vec::new();
    for r in &resources {
        let mut entry = json!({ "name": r.plural, "singularName": r.singular, "namespaced": r.namespaced,
            "kind": r.kind, "verbs": r.verbs() });
        if !r.short_names.is_empty() {
            entry["shortNames"] = json!(r.short_names);
        }
        if !r.categories.is_empty() {
            entry["categories"] = json!(r.categories);
        }
        if r.verbs().contains(&"list") {
            // Any stable text does; clients only compare it.
            entry["storageVersionHash"] = json!(storage_hash(&r.id, &r.storage_api_version));
        }
        entries.push(entry);
        for (name, kind, verbs) in r.subresources() {
            let mut entry = json!({ "name": format!("{}/{name}", r.plural), "singularName": "",
                "namespaced": r.namespaced, "kind": kind, "verbs": verbs });
            let of_group = match kind {
                "Scale" => "autoscaling",
                "TokenRequest" => "authentication.k8s.io",
                "Eviction" => "policy",
                _ => "",
            };
            if !of_group.is_empty() {
                (entry["group"], entry["version"]) = (json!(of_group), json!("v1"));
            }
            entries.push(entry);
        }
        if r.has_status {
            entries.push(json!({ "name": format!("{}/status", r.plural), "singularName": "",
                "namespaced": r.namespaced, "kind": r.kind, "verbs": ["get", "patch", "update"] }));
        }
    }
    Some(json!({ "kind": "APIResourceList", "apiVersion": "v1",
        "groupVersion": api_version(group, version), "resources": entries }))
}

/// `/apis`: the groups.
pub(super) fn group_list(catalog: &Catalog) -> Value {
    let groups: Vec<Value> = catalog
        .groups()
        .iter()
        .filter(|(group, _)| !group.is_empty())
        .map(|(group, versions)| api_group(group, versions))
        .collect();
    json!({ "kind": "APIGroupList", "apiVersion": "v1", "groups": groups })
}

/// `/apis/group`.
pub(super) fn group(catalog: &Catalog, name: &str) -> Option<Value> {
    let groups = catalog.groups();
    let (group, versions) = groups.iter().find(|(group, _)| **group == *name)?;
    let mut value = api_group(group, versions);
    value["kind"] = json!("APIGroup");
    value["apiVersion"] = json!("v1");
    Some(value)
}

fn api_group(group: &str, versions: &[Box<str>]) -> Value {
    let version = |v: &str| json!({ "groupVersion": format!("{group}/{v}"), "version": v });
    let all: Vec<Value> = versions.iter().map(|v| version(v)).collect();
    json!({ "name": group, "preferredVersion": all[0], "versions": all })
}

/// Aggregated discovery, for `/api` (the core group) and `/apis` (all others).
pub(super) fn aggregated(catalog: &Catalog, core: bool) -> Value {
    let mut items = Vec::new();
    for (group, versions) in catalog.groups() {
        if group.is_empty() != core {
            continue;
        }
        let versions: Vec<Value> = versions
            .iter()
            .map(|version| {
                let resources: Vec<Value> =
                    catalog.in_version(&group, version).iter().map(|r| aggregated_one(r)).collect();
                json!({ "version": version, "freshness": "Current", "resources": resources })
            })
            .collect();
        let metadata = if core {
            json!({ "creationTimestamp": null })
        } else {
            json!({ "name": group, "creationTimestamp": null })
        };
        items.push(json!({ "metadata": metadata, "versions": versions }));
    }
    json!({ "kind": "APIGroupDiscoveryList", "apiVersion": "apidiscovery.k8s.io/v2", "metadata": {}, "items": items })
}

fn aggregated_one(r: &Resource) -> Value {
    let kind_of = |kind: &str| {
        let (group, version) = match kind {
            "PodAttachOptions" | "PodExecOptions" | "PodPortForwardOptions" => ("", "v1"),
            "Scale" => ("autoscaling", "v1"),
            "TokenRequest" => ("authentication.k8s.io", "v1"),
            "Eviction" => ("policy", "v1"),
            _ => (&*r.group, &*r.version),
        };
        json!({ "group": group, "version": version, "kind": kind })
    };
    let mut subresources: Vec<Value> = r
        .subresources()
        .into_iter()
        .map(|(name, kind, verbs)| {
            json!({ "subresource": name, "responseKind": kind_of(kind), "verbs": verbs })
        })
        .collect();
    if r.has_status {
        subresources.push(json!({ "subresource": "status", "responseKind": kind_of(&r.kind),
            "verbs": ["get", "patch", "update"] }));
    }
    let mut value = json!({ "resource": r.plural, "responseKind": kind_of(&r.kind),
        "scope": if r.namespaced { "Namespaced" } else { "Cluster" },
        "singularResource": r.singular, "verbs": r.verbs() });
    for (name, list) in [("shortNames", &r.short_names), ("categories", &r.categories)] {
        if !list.is_empty() {
            value[name] = json!(list);
        }
    }
    if !subresources.is_empty() {
        value["subresources"] = json!(subresources);
    }
    value
}

fn storage_hash(id: &str, api_version: &str) -> String {
    use base64::Engine as _;
    use std::hash::{DefaultHasher, Hash as _, Hasher as _};
    let mut hasher = DefaultHasher::new();
    (id, api_version).hash(&mut hasher);
    base64::engine::general_purpose::STANDARD.encode(hasher.finish().to_be_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_ordered_as_kubernetes_does() {
        let mut versions = ["v1alpha1", "foo", "v1", "v2beta1", "v10", "v1beta2", "v2"];
        versions.sort_by_key(|version| version_priority(version));
        assert_eq!(versions, ["v10", "v2", "v1", "v2beta1", "v1beta2", "v1alpha1", "foo"]);
    }

    #[test]
    fn every_built_in_schema_exists() {
        for resource in Catalog::built_in().all() {
            assert!(resource.schema().child("metadata").is_some(), "{}", resource.id);
            assert!(!resource.schema().properties.is_empty(), "{}", resource.id);
        }
    }
}
