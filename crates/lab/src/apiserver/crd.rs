//! Custom resource definitions: their rules, and serving what they define.

use std::sync::Arc;

use serde_json::{Value, json};

use super::api::Api;
use super::object;
use super::resource::{Catalog, Definition, Resource, Shape, resource_id};
use super::schema::{Schema, object_at};
use super::status::FieldError;
use super::table::Column;
use super::{names, strategy, validations};

/// The store's name of definitions.
pub(super) const DEFINITIONS: &str = "customresourcedefinitions.apiextensions.k8s.io";
/// Keeps a definition until the last of its objects is gone.
pub(super) const CLEANUP: &str = "customresourcecleanup.apiextensions.k8s.io";

/// The annotation that groups of Kubernetes' own want.
const APPROVAL: &str = "api-approved.kubernetes.io";

/// Fills in what the definition leaves open.
pub(super) fn default(definition: &mut Value) {
    let spec = object_at(definition, "spec");
    spec.entry("conversion").or_insert_with(|| json!({ "strategy": "None" }));
    let Some(names) = spec.get_mut("names").and_then(Value::as_object_mut) else { return };
    let kind = names.get("kind").and_then(Value::as_str).unwrap_or_default().to_owned();
    names.entry("listKind").or_insert_with(|| json!(format!("{kind}List")));
    names.entry("singular").or_insert_with(|| json!(kind.to_lowercase()));
}

/// What is wrong with a definition.
pub(super) fn validate(definition: &Value, errors: &mut Vec<FieldError>) {
    let spec = &definition["spec"];
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let (group, plural) = (text(&spec["group"]), text(&spec["names"]["plural"]));
    let name = text(&definition["metadata"]["name"]);
    if name != format!("{plural}.{group}") {
        let detail = "must be spec.names.plural+\".\"+spec.group";
        errors.push(FieldError::invalid("metadata.name", name, detail));
    }
    for (field, value) in [("spec.group", &group), ("spec.names.plural", &plural)] {
        if value.is_empty() {
            errors.push(FieldError::required(field, ""));
        } else {
            names::check_subdomain(field, value, errors);
        }
    }
    if !group.is_empty() && !group.contains('.') {
        let detail = "should be a domain with at least one dot";
        errors.push(FieldError::invalid("spec.group", group.as_str(), detail));
    }
    let annotations = &definition["metadata"]["annotations"];
    if (group.ends_with(".k8s.io") || group.ends_with(".kubernetes.io"))
        && annotations[APPROVAL].as_str().is_none_or(str::is_empty)
    {
        let detail = "protected groups must have approval annotation \"api-approved.kubernetes.io\", see https://github.com/kubernetes/enhancements/pull/1111";
        errors.push(FieldError::required(format!("metadata.annotations[{APPROVAL}]"), detail));
    }
    if text(&spec["names"]["kind"]).is_empty() {
        errors.push(FieldError::required("spec.names.kind", ""));
    }
    match spec["scope"].as_str() {
        None | Some("") => errors.push(FieldError::required("spec.scope", "")),
        Some("Namespaced" | "Cluster") => {}
        Some(other) => {
            errors.push(FieldError::not_supported("spec.scope", other, &["Cluster", "Namespaced"]));
        }
    }
    if spec["conversion"]["strategy"] == "Webhook" {
        let detail = "the lab's API server does not call webhooks; use strategy None";
        errors.push(FieldError::invalid("spec.conversion.strategy", "Webhook", detail));
    }
    validate_versions(spec, errors);
}

fn validate_versions(spec: &Value, errors: &mut Vec<FieldError>) {
    let versions = spec["versions"].as_array().map(Vec::as_slice).unwrap_or_default();
    if versions.is_empty() {
        errors.push(FieldError::required("spec.versions", "must have at least one version"));
    }
    let stored = versions.iter().filter(|version| version["storage"] == true).count();
    if stored != 1 && !versions.is_empty() {
        let detail = "must have exactly one version marked as storage version";
        errors.push(FieldError::invalid("spec.versions", json!(versions.len()), detail));
    }
    let mut seen = Vec::new();
    for (index, version) in versions.iter().enumerate() {
        let field = format!("spec.versions[{index}]");
        let name = version["name"].as_str().unwrap_or_default();
        names::check_label(&format!("{field}.name"), name, errors);
        if seen.contains(&name) {
            errors.push(FieldError::duplicate(format!("{field}.name"), name));
        }
        seen.push(name);
        for flag in ["served", "storage"] {
            if !version[flag].is_boolean() {
                errors.push(FieldError::required(format!("{field}.{flag}"), ""));
            }
        }
        let schema = &version["schema"]["openAPIV3Schema"];
        let at = format!("{field}.schema.openAPIV3Schema");
        if !schema.is_object() {
            errors.push(FieldError::required(at, "schemas are required"));
            continue;
        }
        if schema["type"] != "object" {
            let got = schema["type"].clone();
            errors.push(FieldError::invalid(format!("{at}.type"), got, "must be object"));
        }
        let parsed = Schema::of_custom_resource(Some(schema));
        if let Err(fault) = parsed.and_then(|schema| validations::check_correlation(&schema)) {
            let field = format!("{at}.{}", fault.path);
            errors.push(FieldError::invalid(field, fault.value, fault.why));
        }
    }
}

/// What may not change in a definition.
pub(super) fn validate_update(new: &Value, old: &Value, errors: &mut Vec<FieldError>) {
    let paths = [
        ("spec.group", "/spec/group"),
        ("spec.scope", "/spec/scope"),
        ("spec.names.kind", "/spec/names/kind"),
        ("spec.names.plural", "/spec/names/plural"),
    ];
    for (field, pointer) in paths {
        let value = new.pointer(pointer).cloned().unwrap_or_default();
        if old.pointer(pointer) != Some(&value) {
            errors.push(FieldError::invalid(field, value, "field is immutable"));
        }
    }
    let stored = new["status"]["storedVersions"].as_array().into_iter().flatten();
    for version in stored.filter_map(Value::as_str) {
        let versions = new["spec"]["versions"].as_array();
        if !versions.is_some_and(|list| list.iter().any(|one| one["name"] == version)) {
            let detail = format!("must appear in spec.versions: {version} is stored");
            errors.push(FieldError::invalid("status.storedVersions", version, detail));
        }
    }
}

/// Accepts the names, or says who has them.
pub(super) fn set_conditions(definition: &mut Value, catalog: &Catalog) {
    let spec = definition["spec"].clone();
    let (group, plural) = (
        spec["group"].as_str().unwrap_or_default(),
        spec["names"]["plural"].as_str().unwrap_or_default(),
    );
    let kind = spec["names"]["kind"].as_str().unwrap_or_default();
    let taken = catalog
        .all()
        .find(|r| *r.group == *group && *r.plural != *plural && *r.kind == *kind)
        .map(|r| r.plural.clone());
    let built_in = catalog.all().any(|r| !r.is_custom() && r.is(group, plural));
    let status = &mut definition["status"];
    let accepted = taken.is_none() && !built_in;
    if accepted {
        strategy::set_condition(
            status,
            "NamesAccepted",
            "True",
            "NoConflicts",
            "no conflicts found",
        );
        strategy::set_condition(
            status,
            "Established",
            "True",
            "InitialNamesAccepted",
            "the initial names have been accepted",
        );
        status["acceptedNames"] = spec["names"].clone();
    } else {
        let message = format!("\"{kind}\" is already in use");
        strategy::set_condition(status, "NamesAccepted", "False", "KindConflict", &message);
        strategy::set_condition(
            status,
            "Established",
            "False",
            "NotAccepted",
            "not all names are accepted",
        );
        status["acceptedNames"] = json!({ "plural": "", "kind": "" });
    }
    let storage =
        spec["versions"].as_array().into_iter().flatten().find(|one| one["storage"] == true);
    if let Some(name) = storage.and_then(|version| version["name"].as_str()) {
        if !status["storedVersions"].is_array() {
            status["storedVersions"] = json!([]);
        }
        if let Some(list) = status["storedVersions"].as_array_mut()
            && !list.iter().any(|one| one == name)
        {
            list.push(json!(name));
        }
    }
}

/// Serves what an accepted definition defines.
pub(super) fn serve(api: &Api, definition: &Value) {
    let established = definition["status"]["conditions"].as_array().is_some_and(|list| {
        list.iter().any(|one| one["type"] == "Established" && one["status"] == "True")
    });
    // One that is being deleted is served until its last object is gone.
    if !established {
        return;
    }
    let spec = &definition["spec"];
    let (group, plural) = (
        spec["group"].as_str().unwrap_or_default(),
        spec["names"]["plural"].as_str().unwrap_or_default(),
    );
    let resources: Vec<Resource> = spec["versions"]
        .as_array()
        .into_iter()
        .flatten()
        .filter(|version| version["served"] == true)
        .filter_map(|version| resource(spec, version))
        .collect();
    let unchanged = resources.iter().all(|new| {
        api.catalog().find(group, &new.version, plural).is_some_and(|old| {
            format!("{:?}{:?}", old.definition, (&old.short_names, &old.categories, old.has_status))
                == format!(
                    "{:?}{:?}",
                    new.definition,
                    (&new.short_names, &new.categories, new.has_status)
                )
        })
    });
    let count = api.catalog().all().filter(|r| r.is(group, plural)).count();
    if unchanged && count == resources.len() {
        return;
    }
    api.edit_catalog(|catalog| {
        catalog.remove(group, plural);
        for resource in resources {
            catalog.insert(resource);
        }
    });
}

/// Marks a definition as going, and what keeps it: its objects.
pub(super) fn begin_deletion(definition: &mut Value) {
    let message = "CustomResource deletion is in progress";
    let status = &mut definition["status"];
    strategy::set_condition(status, "Terminating", "True", "InstanceDeletionInProgress", message);
}

/// Stops serving, and removes all objects of the kind.
pub(super) fn withdraw(api: &Api, definition: &Value) {
    let spec = &definition["spec"];
    let (group, plural) = (
        spec["group"].as_str().unwrap_or_default(),
        spec["names"]["plural"].as_str().unwrap_or_default(),
    );
    if api.catalog().all().any(|r| !r.is_custom() && r.is(group, plural)) {
        return;
    }
    api.edit_catalog(|catalog| catalog.remove(group, plural));
    api.store.delete_resource(&resource_id(group, plural));
}

/// One version of the defined resource.
fn resource(spec: &Value, version: &Value) -> Option<Resource> {
    let names = &spec["names"];
    let text = |value: &Value| -> Box<str> { value.as_str().unwrap_or_default().into() };
    let list = |value: &Value| -> Vec<Box<str>> {
        value.as_array().into_iter().flatten().filter_map(Value::as_str).map(Box::from).collect()
    };
    let group = text(&spec["group"]);
    let storage = spec["versions"].as_array()?.iter().find(|one| one["storage"] == true)?;
    let open_api = version["schema"]["openAPIV3Schema"].clone();
    let deprecated = version["deprecated"] == true;
    let deprecation = deprecated.then(|| {
        let default = format!(
            "{group}/{} {} is deprecated",
            version["name"].as_str().unwrap_or_default(),
            names["kind"].as_str().unwrap_or_default()
        );
        version["deprecationWarning"].as_str().map_or_else(|| default.into(), Box::from)
    });
    let columns: Vec<Column> = match version["additionalPrinterColumns"].as_array() {
        Some(columns) => columns.iter().map(Column::of_definition).collect(),
        None => vec![Column::age()],
    };
    Some(Resource {
        id: resource_id(&group, names["plural"].as_str()?),
        version: text(&version["name"]),
        kind: text(&names["kind"]),
        list_kind: text(&names["listKind"]),
        plural: text(&names["plural"]),
        singular: text(&names["singular"]),
        namespaced: spec["scope"] == "Namespaced",
        short_names: list(&names["shortNames"]),
        categories: list(&names["categories"]),
        has_status: version["subresources"]["status"].is_object(),
        storage_api_version: format!("{group}/{}", storage["name"].as_str()?).into(),
        indexed: &[],
        schema: Shape::Custom(Arc::new(Schema::of_custom_resource(Some(&open_api)).ok()?)),
        definition: Definition::Custom {
            columns: columns.into(),
            open_api: open_api.into(),
            deprecation,
        },
        group,
    })
}

/// Serves all definitions that are stored: after a restart.
pub(super) fn serve_all(api: &Api) {
    let id = resource_id("apiextensions.k8s.io", "customresourcedefinitions");
    let (_, definitions) = api.store.list(&id);
    for definition in definitions.values() {
        serve(api, &definition.value());
    }
    tracing::debug!(
        count = definitions.len(),
        at = object::now(),
        "custom resource definitions restored"
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::apiserver::api::WriteOptions;

    fn cluster() -> Api {
        let api = Api::new(String::new());
        let options = WriteOptions::by("test");
        let namespaces = api.target("namespaces", "", "").unwrap();
        api.create(&namespaces, json!({ "metadata": { "name": "n" } }), &options).unwrap();
        let definitions = api.target(DEFINITIONS, "", "").unwrap();
        let crds = api::crd::manifest::crds()
            .into_iter()
            .chain([api::crd::manifest::cluster_network_policy()]);
        for crd in crds {
            api.create(&definitions, serde_json::to_value(crd).unwrap(), &options).unwrap();
        }
        api
    }

    /// The field that is wrong with a policy's specification; empty when nothing is.
    fn fault(api: &Api, spec: Value) -> String {
        let target = api.target("ciliumnetworkpolicies.cilium.io", "n", "").unwrap();
        let policy = json!({ "metadata": { "generateName": "p-" }, "spec": spec });
        match api.create(&target, policy, &WriteOptions::by("test")) {
            Ok(_) => String::new(),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn schemas_of_policies_are_understood() {
        let api = cluster();
        let good = [
            json!({ "endpointSelector": {} }),
            json!({ "endpointSelector": { "matchLabels": { "app": "a" } },
                "ingress": [{ "fromEndpoints": [{ "matchLabels": { "app": "b" } }],
                    "toPorts": [{ "ports": [{ "port": "80", "protocol": "TCP" }] }] }] }),
            json!({ "endpointSelector": {}, "egress": [
                { "toCIDRSet": [{ "cidr": "10.0.0.0/8", "except": ["10.1.0.0/16"] }] },
                { "toEntities": ["world"] }, {}] }),
            json!({ "endpointSelector": { "matchExpressions": [{ "key": "a", "operator": "In", "values": ["b"] }] } }),
        ];
        for spec in good {
            assert_eq!(fault(&api, spec.clone()), "", "{spec}");
        }
        let bad = [
            (json!({ "endpointSelector": [] }), "spec.endpointSelector"),
            (
                json!({ "endpointSelector": {}, "ingress": [{ "fromEntities": ["nobody"] }] }),
                "spec.ingress[0].fromEntities[0]: Unsupported value",
            ),
            (
                json!({ "endpointSelector": {}, "ingress": [{ "toPorts": [{ "ports": [{ "port": "80", "protocol": "XYZ" }] }] }] }),
                "protocol: Unsupported value",
            ),
            (
                json!({ "endpointSelector": {}, "egress": [{ "toCIDRSet": [{ "cidr": 5 }] }] }),
                "spec.egress[0].toCIDRSet[0].cidr",
            ),
        ];
        for (spec, words) in bad {
            let told = fault(&api, spec.clone());
            assert!(told.contains(words), "{spec}: {told:?}");
        }
    }

    #[test]
    fn protected_groups_want_an_approval() {
        let mut definition =
            serde_json::to_value(api::crd::manifest::cluster_network_policy()).unwrap();
        definition["metadata"]["annotations"] = json!({});
        let mut errors = Vec::new();
        validate(&definition, &mut errors);
        let fields: Vec<&str> = errors.iter().map(|error| error.field.as_str()).collect();
        assert_eq!(fields, ["metadata.annotations[api-approved.kubernetes.io]"]);
    }
}
