//! The four ways to patch an object.

use serde_json::{Map, Value};

use super::resource::Resource;
use super::schema::Schema;
use super::status::ApiError;

/// Content types that PATCH takes.
pub(super) const CONTENT_TYPES: &str = "application/json-patch+json, application/merge-patch+json, application/strategic-merge-patch+json, application/apply-patch+yaml";

#[derive(Clone, Debug)]
pub enum Patch {
    /// RFC 6902.
    Json(json_patch::Patch),
    /// RFC 7386.
    Merge(Value),
    /// Kubernetes' own: a merge patch that knows keyed lists.
    Strategic(Value),
    /// Server-side apply.
    Apply(Value),
}

impl Patch {
    pub fn parse(content_type: &str, body: &[u8]) -> Result<Self, ApiError> {
        let json = || {
            serde_json::from_slice(body)
                .map_err(|error| ApiError::bad_request(format!("error decoding patch: {error}")))
        };
        match content_type.split(';').next().unwrap_or_default().trim() {
            "application/json-patch+json" => serde_json::from_slice(body)
                .map(Self::Json)
                .map_err(|error| ApiError::bad_request(format!("error decoding patch: {error}"))),
            "application/merge-patch+json" => Ok(Self::Merge(json()?)),
            "application/strategic-merge-patch+json" => Ok(Self::Strategic(json()?)),
            "application/apply-patch+yaml" => Ok(Self::Apply(yaml(body)?)),
            other => Err(ApiError::unsupported_media_type(other, CONTENT_TYPES)),
        }
    }

    /// The patched object. Applying configurations is `ownership`'s.
    pub fn apply_to(&self, old: &Value, resource: &Resource) -> Result<Value, ApiError> {
        let mut new = old.clone();
        match self {
            Self::Json(patch) => {
                json_patch::patch(&mut new, patch)
                    .map_err(|error| ApiError::invalid_patch(&resource.kind, &error.to_string()))?;
            }
            Self::Merge(patch) => json_patch::merge(&mut new, patch),
            Self::Strategic(_) if resource.is_custom() => {
                let supported = "application/json-patch+json, application/merge-patch+json, application/apply-patch+yaml";
                let got = "application/strategic-merge-patch+json";
                return Err(ApiError::unsupported_media_type(got, supported));
            }
            Self::Strategic(patch) => strategic(&mut new, patch, Some(resource.schema()))?,
            Self::Apply(_) => return Err(ApiError::internal("an apply is not a plain patch")),
        }
        Ok(new)
    }
}

/// YAML, of which JSON is a part.
pub(super) fn yaml(body: &[u8]) -> Result<Value, ApiError> {
    if let Ok(value) = serde_json::from_slice(body) {
        return Ok(value);
    }
    let text = std::str::from_utf8(body)
        .map_err(|error| ApiError::bad_request(format!("error decoding YAML: {error}")))?;
    serde_saphyr::from_str(text)
        .map_err(|error| ApiError::bad_request(format!("error decoding YAML: {error}")))
}

/// Merges `patch` into `live` as the schema says.
fn strategic(live: &mut Value, patch: &Value, schema: Option<&Schema>) -> Result<(), ApiError> {
    let Value::Object(patch) = patch else {
        *live = patch.clone();
        return Ok(());
    };
    match patch.get("$patch").and_then(Value::as_str) {
        Some("replace") => {
            let kept = patch.iter().filter(|(name, _)| *name != "$patch");
            *live =
                Value::Object(kept.map(|(name, value)| (name.clone(), value.clone())).collect());
            return Ok(());
        }
        Some("delete") => {
            *live = Value::Object(Map::new());
            return Ok(());
        }
        Some("merge") | None => {}
        Some(other) => {
            return Err(ApiError::bad_request(format!("Unknown $patch directive: {other}")));
        }
    }
    if !live.is_object() {
        *live = Value::Object(Map::new());
    }
    let Some(map) = live.as_object_mut() else { return Ok(()) };
    for (name, value) in patch {
        if name.starts_with('$') {
            continue;
        }
        let schema = schema.and_then(|schema| schema.child(name));
        match value {
            Value::Null => {
                map.remove(name);
            }
            Value::Array(items) => {
                let existing = map.entry(name.clone()).or_insert_with(|| Value::Array(Vec::new()));
                merge_list(name, existing, items, schema)?;
            }
            Value::Object(directives) => {
                if directives.get("$patch").and_then(Value::as_str) == Some("delete") {
                    map.remove(name);
                    continue;
                }
                let existing = map.entry(name.clone()).or_insert(Value::Null);
                strategic(existing, value, schema)?;
            }
            scalar => {
                map.insert(name.clone(), scalar.clone());
            }
        }
    }
    apply_directives(map, patch, schema)
}

/// `$deleteFromPrimitiveList/…`, `$setElementOrder/…` and `$retainKeys`, after the merge itself.
fn apply_directives(
    map: &mut Map<String, Value>,
    patch: &Map<String, Value>,
    schema: Option<&Schema>,
) -> Result<(), ApiError> {
    for (name, value) in patch {
        if let Some(field) = name.strip_prefix("$deleteFromPrimitiveList/") {
            let gone = value.as_array().map(Vec::as_slice).unwrap_or_default();
            if let Some(list) = map.get_mut(field).and_then(Value::as_array_mut) {
                list.retain(|one| !gone.contains(one));
            }
        } else if let Some(field) = name.strip_prefix("$setElementOrder/") {
            let order = value.as_array().map(Vec::as_slice).unwrap_or_default();
            let key = schema
                .and_then(|schema| schema.child(field))
                .and_then(|schema| schema.patch_merge_key.as_deref());
            if let Some(list) = map.get_mut(field).and_then(Value::as_array_mut) {
                set_order(list, order, key);
            }
        } else if name == "$retainKeys" {
            let kept = value.as_array().map(Vec::as_slice).unwrap_or_default();
            map.retain(|field, _| kept.iter().any(|one| one == field.as_str()));
        } else if name.starts_with('$') && name != "$patch" {
            return Err(ApiError::bad_request(format!(
                "Unknown strategic merge patch directive: {name}"
            )));
        }
    }
    Ok(())
}

fn merge_list(
    name: &str,
    live: &mut Value,
    patch: &[Value],
    schema: Option<&Schema>,
) -> Result<(), ApiError> {
    let merges = schema.is_some_and(|schema| schema.patch_merges);
    let replace = patch.iter().any(|item| item["$patch"] == "replace");
    let Some(items) = live.as_array_mut().filter(|_| merges && !replace) else {
        let plain = patch.iter().filter(|item| item.get("$patch").is_none());
        *live = Value::Array(plain.cloned().collect());
        return Ok(());
    };
    let Some(key) = schema.and_then(|schema| schema.patch_merge_key.as_deref()) else {
        for one in patch {
            if !items.contains(one) {
                items.push(one.clone());
            }
        }
        return Ok(());
    };
    let of_item = schema.and_then(|schema| schema.items.as_ref()).map(super::schema::Node::schema);
    for one in patch {
        let Some(identity) = one.get(key) else {
            let message =
                format!("map: {one} does not contain declared merge key: {key} (in {name})");
            return Err(ApiError::bad_request(message));
        };
        let at = items.iter().position(|item| item.get(key) == Some(identity));
        match (at, one["$patch"].as_str()) {
            (Some(at), Some("delete")) => {
                items.remove(at);
            }
            (None, Some("delete")) => {}
            (Some(at), _) => strategic(&mut items[at], one, of_item)?,
            (None, _) => {
                let mut fresh = Value::Object(Map::new());
                strategic(&mut fresh, one, of_item)?;
                items.push(fresh);
            }
        }
    }
    Ok(())
}

/// Puts the items that the patch names in its order; those that only the server has keep
/// their place among them.
fn set_order(list: &mut Vec<Value>, order: &[Value], key: Option<&str>) {
    let identity = |value: &Value| match key {
        Some(key) => value.get(key).cloned().unwrap_or_default(),
        None => value.clone(),
    };
    let rank = |value: &Value| {
        let identity_of_value = identity(value);
        order.iter().position(|one| identity(one) == identity_of_value)
    };
    type Placed = Vec<(usize, Value)>;
    let (mut named, others): (Placed, Placed) =
        std::mem::take(list).into_iter().enumerate().partition(|(_, value)| rank(value).is_some());
    named.sort_by_key(|(_, value)| rank(value));
    let mut others = others.into_iter().peekable();
    for (place, value) in named {
        while let Some((_, other)) = others.next_if(|(other_place, _)| *other_place < place) {
            list.push(other);
        }
        list.push(value);
    }
    list.extend(others.map(|(_, value)| value));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::apiserver::schema;
    use proptest::prelude::*;
    use serde_json::json;

    fn check(live: Value, patch: Value, expected: Value) {
        let mut merged = live;
        strategic(&mut merged, &patch, Some(schema::core("io.k8s.api.core.v1.Pod"))).unwrap();
        assert_eq!(merged, expected, "{patch}");
    }

    fn containers(list: Value) -> Value {
        json!({ "spec": { "containers": list } })
    }

    #[test]
    fn items_merge_by_their_key() {
        let live = containers(
            json!([{ "name": "a", "image": "1", "args": ["x"] }, { "name": "b", "image": "1" }]),
        );
        check(
            live.clone(),
            containers(json!([{ "name": "b", "image": "2" }, { "name": "c", "image": "3" }])),
            containers(
                json!([{ "name": "a", "image": "1", "args": ["x"] }, { "name": "b", "image": "2" }, { "name": "c", "image": "3" }]),
            ),
        );
        check(
            live.clone(),
            containers(json!([{ "name": "a", "$patch": "delete" }])),
            containers(json!([{ "name": "b", "image": "1" }])),
        );
        check(
            live.clone(),
            containers(json!([{ "$patch": "replace" }, { "name": "z", "image": "9" }])),
            containers(json!([{ "name": "z", "image": "9" }])),
        );
        // Lists without a key are replaced.
        check(
            live,
            containers(json!([{ "name": "a", "args": ["y"], "image": null }])),
            containers(json!([{ "name": "a", "args": ["y"] }, { "name": "b", "image": "1" }])),
        );
    }

    #[test]
    fn directives() {
        check(
            json!({ "metadata": { "finalizers": ["a", "b"], "labels": { "x": "1", "y": "2" } } }),
            json!({ "metadata": { "$deleteFromPrimitiveList/finalizers": ["a"], "finalizers": ["c"], "labels": { "x": null } } }),
            json!({ "metadata": { "finalizers": ["b", "c"], "labels": { "y": "2" } } }),
        );
        check(
            containers(json!([{ "name": "server-only" }, { "name": "a" }, { "name": "b" }])),
            json!({ "spec": { "$setElementOrder/containers": [{ "name": "b" }, { "name": "a" }] } }),
            containers(json!([{ "name": "server-only" }, { "name": "b" }, { "name": "a" }])),
        );
        check(
            json!({ "metadata": { "labels": { "x": "1", "y": "2" } } }),
            json!({ "metadata": { "labels": { "$patch": "replace", "z": "3" } } }),
            json!({ "metadata": { "labels": { "z": "3" } } }),
        );
        check(
            json!({ "spec": { "volumes": [{ "name": "v", "emptyDir": {} }] } }),
            json!({ "spec": { "volumes": [{ "name": "v", "$retainKeys": ["name", "hostPath"], "hostPath": { "path": "/x" } }] } }),
            json!({ "spec": { "volumes": [{ "name": "v", "hostPath": { "path": "/x" } }] } }),
        );
    }

    #[test]
    fn nonsense_is_refused() {
        let schema = schema::core("io.k8s.api.core.v1.Pod");
        for patch in [
            containers(json!([{ "image": "without a name" }])),
            json!({ "metadata": { "$patch": "explode" } }),
            json!({ "metadata": { "$bogus/x": [] } }),
        ] {
            assert!(strategic(&mut json!({}), &patch, Some(schema)).is_err(), "{patch}");
        }
        assert!(Patch::parse("application/json", b"{}").is_err());
        assert!(Patch::parse("application/merge-patch+json", b"{").is_err());
        assert!(Patch::parse("application/apply-patch+yaml", b"a: [").is_err());
    }

    proptest! {
        /// Without keyed lists a strategic merge patch is a plain one.
        #[test]
        fn maps_merge_as_rfc_7386_says(
            live in prop::collection::btree_map("[a-d]", "[0-3]", 0..4),
            patch in prop::collection::btree_map("[a-d]", prop::option::of("[0-3]"), 0..4),
        ) {
            let (live, patch) = (json!({ "data": live }), json!({ "data": patch }));
            let schema = schema::core("io.k8s.api.core.v1.ConfigMap");
            let (mut strategically, mut plainly) = (live.clone(), live);
            strategic(&mut strategically, &patch, Some(schema)).unwrap();
            json_patch::merge(&mut plainly, &patch);
            prop_assert_eq!(strategically, plainly);
        }
    }
}
