//! OpenAPI documents, made from the schemas that the server itself uses.
//!
//! `kubectl` reads version 3 as JSON: for `explain`, and to learn which parameters PATCH
//! takes. Older ones read version 2 in protobuf and validate manifests by it. The
//! documents hold what clients look at and not more.

use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::OnceLock;

use http::{HeaderMap, StatusCode};
use serde_json::{Map, Value, json};

use super::api::Api;
use super::http::{Reply, reply};
use super::proto;
use super::resource::{Catalog, Definition, Resource, Shape};
use super::schema::{CORE_SCHEMA, OBJECT_META};
use super::status::ApiError;

/// Clients ask for `v2@v1.0`; an `@` is not allowed in an answer's type, so it is a dot there.
const V2_PROTOBUF: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";

/// Answers below `/openapi`.
pub(super) fn answer(api: &Api, path: &str, headers: &HeaderMap) -> Result<Reply, ApiError> {
    let catalog = api.catalog();
    let accept = headers.get("accept").and_then(|value| value.to_str().ok()).unwrap_or_default();
    match path.strip_prefix("/openapi/").unwrap_or_default() {
        "v2" if accept.contains("proto-openapi.spec.v2") => {
            Ok(reply(StatusCode::OK, V2_PROTOBUF, proto::document(&version_2(&catalog))))
        }
        "v2" => Ok(reply(StatusCode::OK, "application/json", version_2(&catalog).to_string())),
        "v3" => Ok(reply(StatusCode::OK, "application/json", index(&catalog).to_string())),
        rest => {
            let segments: Vec<&str> = rest.split('/').collect();
            let (group, version) = match segments.as_slice() {
                ["v3", "api", version] => ("", *version),
                ["v3", "apis", group, version] => (*group, *version),
                _ => return Err(ApiError::no_such_path()),
            };
            let resources = catalog.in_version(group, version);
            if resources.is_empty() {
                return Err(ApiError::no_such_path());
            }
            let resources: Vec<&Resource> = resources.iter().map(AsRef::as_ref).collect();
            Ok(reply(StatusCode::OK, "application/json", version_3(&resources).to_string()))
        }
    }
}

/// Where the document of each version is. The hash changes when the document may have.
fn index(catalog: &Catalog) -> Value {
    let mut paths = Map::new();
    for (group, versions) in catalog.groups() {
        for version in versions {
            let path = match &*group {
                "" => format!("api/{version}"),
                group => format!("apis/{group}/{version}"),
            };
            let mut hasher = DefaultHasher::new();
            for resource in catalog.in_version(&group, &version) {
                format!("{resource:?}").hash(&mut hasher);
            }
            let url = format!("/openapi/v3/{path}?hash={:016X}", hasher.finish());
            paths.insert(path, json!({ "serverRelativeURL": url }));
        }
    }
    json!({ "paths": paths })
}

fn core_definitions() -> &'static Map<String, Value> {
    static DEFINITIONS: OnceLock<Map<String, Value>> = OnceLock::new();
    DEFINITIONS.get_or_init(|| serde_json::from_str(CORE_SCHEMA).unwrap_or_default())
}

/// The name of a resource's schema.
fn schema_name(resource: &Resource) -> String {
    match &resource.schema {
        Shape::Core(name) => (*name).to_owned(),
        Shape::Custom(_) => {
            let mut group: Vec<&str> = resource.group.split('.').collect();
            group.reverse();
            format!("{}.{}.{}", group.join("."), resource.version, resource.kind)
        }
    }
}

fn gvk(resource: &Resource) -> Value {
    json!({ "group": resource.group, "version": resource.version, "kind": resource.kind })
}

/// The schemas of the resources, with all that they refer to.
fn schemas(resources: &[&Resource]) -> Map<String, Value> {
    let mut found = Map::new();
    let mut wanted = BTreeSet::from([OBJECT_META.to_owned()]);
    for resource in resources {
        let name = schema_name(resource);
        let mut schema = match &resource.definition {
            Definition::BuiltIn => core_definitions().get(&name).cloned().unwrap_or_default(),
            Definition::Custom { open_api, .. } => custom(open_api),
        };
        schema["x-kubernetes-group-version-kind"] = json!([gvk(resource)]);
        collect_references(&schema, &mut wanted);
        found.insert(name, schema);
    }
    while let Some(name) = wanted.pop_first() {
        if found.contains_key(&name) {
            continue;
        }
        let schema = core_definitions().get(&name).cloned().unwrap_or_else(|| json!({}));
        collect_references(&schema, &mut wanted);
        found.insert(name, schema);
    }
    found
}

/// A custom resource's schema, with what all objects have.
fn custom(open_api: &Value) -> Value {
    let mut schema = open_api.clone();
    let text = |description: &str| json!({ "type": "string", "description": description });
    if !schema["properties"].is_object() {
        schema["properties"] = json!({});
    }
    let properties = &mut schema["properties"];
    properties["apiVersion"] =
        text("APIVersion defines the versioned schema of this representation of an object.");
    properties["kind"] =
        text("Kind is a string value representing the REST resource this object represents.");
    properties["metadata"] = json!({ "$ref": format!("#/components/schemas/{OBJECT_META}"),
        "description": "Standard object's metadata." });
    schema
}

fn collect_references(schema: &Value, into: &mut BTreeSet<String>) {
    match schema {
        Value::Object(map) => {
            if let Some(reference) = map.get("$ref").and_then(Value::as_str) {
                into.insert(reference.rsplit('/').next().unwrap_or_default().to_owned());
            }
            map.values().for_each(|inner| collect_references(inner, into));
        }
        Value::Array(items) => items.iter().for_each(|inner| collect_references(inner, into)),
        _ => {}
    }
}

fn version_3(resources: &[&Resource]) -> Value {
    let mut schemas = schemas(resources);
    for schema in schemas.values_mut() {
        separate_references(schema);
    }
    json!({ "openapi": "3.0.0", "info": { "title": "Kubernetes", "version": "v1.32.0" },
        "paths": paths(resources, false), "components": { "schemas": schemas } })
}

/// In version 3 nothing may stand beside a reference: `description` moves up, the reference down.
fn separate_references(schema: &mut Value) {
    match schema {
        Value::Object(map) => {
            if map.len() > 1 && map.get("$ref").is_some_and(Value::is_string) {
                let reference = map.remove("$ref");
                map.insert("allOf".into(), json!([{ "$ref": reference }]));
            }
            map.values_mut().for_each(separate_references);
        }
        Value::Array(items) => items.iter_mut().for_each(separate_references),
        _ => {}
    }
}

fn version_2(catalog: &Catalog) -> Value {
    let resources: Vec<&Resource> = catalog.all().map(AsRef::as_ref).collect();
    let mut definitions = schemas(&resources);
    for schema in definitions.values_mut() {
        to_version_2(schema);
    }
    json!({ "swagger": "2.0", "info": { "title": "Kubernetes", "version": "v1.32.0" },
        "paths": paths(&resources, true), "definitions": definitions })
}

/// What version 2 does not know goes; it then stands for "anything".
fn to_version_2(schema: &mut Value) {
    let Value::Object(map) = schema else { return };
    if let Some(Value::String(reference)) = map.get_mut("$ref") {
        *reference = reference.replace("#/components/schemas/", "#/definitions/");
    }
    for name in ["anyOf", "oneOf", "not", "nullable", "allOf", "x-kubernetes-validations"] {
        map.remove(name);
    }
    let open = map.get("x-kubernetes-preserve-unknown-fields") == Some(&json!(true));
    if open {
        map.remove("properties");
        map.remove("type");
    }
    if let Some(Value::Object(properties)) = map.get_mut("properties") {
        properties.values_mut().for_each(to_version_2);
    }
    for name in ["items", "additionalProperties"] {
        if let Some(inner) = map.get_mut(name) {
            to_version_2(inner);
        }
    }
}

/// The operations that clients look for: which kind a path is about, and what PATCH takes.
fn paths(resources: &[&Resource], with_parameter_types: bool) -> Value {
    let mut paths = Map::new();
    for resource in resources {
        let prefix = match &*resource.group {
            "" => format!("/api/{}", resource.version),
            group => format!("/apis/{group}/{}", resource.version),
        };
        let place = if resource.namespaced { "/namespaces/{namespace}" } else { "" };
        let collection = format!("{prefix}{place}/{}", resource.plural);
        let operation = |action: &str, parameters: &[&str]| {
            let parameters: Vec<Value> = parameters
                .iter()
                .map(|name| {
                    let mut parameter = json!({ "name": name, "in": "query" });
                    let schema = json!({ "type": "string", "uniqueItems": true });
                    if with_parameter_types {
                        parameter["type"] = json!("string");
                    } else {
                        parameter["schema"] = schema;
                    }
                    parameter
                })
                .collect();
            json!({ "parameters": parameters, "responses": { "200": { "description": "OK" } },
                "x-kubernetes-action": action, "x-kubernetes-group-version-kind": gvk(resource) })
        };
        let write = ["dryRun", "fieldManager", "fieldValidation"];
        let patch = ["dryRun", "fieldManager", "fieldValidation", "force"];
        let mut whole = json!({ "post": operation("post", &write) });
        if resource.verbs().contains(&"list") {
            whole["get"] =
                operation("list", &["labelSelector", "fieldSelector", "limit", "continue"]);
            paths.insert(
                format!("{collection}/{{name}}"),
                json!({ "get": operation("get", &[]), "put": operation("put", &write),
                    "patch": operation("patch", &patch), "delete": operation("delete", &["dryRun"]) }),
            );
        }
        paths.insert(collection, whole);
    }
    Value::Object(paths)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reference_leads_somewhere() {
        let catalog = Catalog::built_in();
        let document = version_2(&catalog);
        let mut references = BTreeSet::new();
        collect_references(&document["definitions"], &mut references);
        for name in references {
            assert!(document["definitions"][&name].is_object(), "{name}");
        }
    }
}
