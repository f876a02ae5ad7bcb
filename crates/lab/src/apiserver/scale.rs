//! The `scale` subresource: the number of replicas, seen and changed alone.

use serde_json::{Value, json};

use super::api::{Api, Outcome, Target, WriteOptions};
use super::object::Object;
use super::patch::Patch;
use super::schema::object_at;
use super::status::{ApiError, FieldError};

/// Times a change is started over when others are faster.
const ATTEMPTS_MAX: usize = 100;

/// A `Scale` of an object that has replicas.
pub(super) fn view(object: &Object) -> Value {
    let value = object.value();
    let meta = &value["metadata"];
    json!({
        "kind": "Scale", "apiVersion": "autoscaling/v1",
        "metadata": { "name": meta["name"], "namespace": meta["namespace"], "uid": meta["uid"],
            "resourceVersion": meta["resourceVersion"], "creationTimestamp": meta["creationTimestamp"] },
        "spec": { "replicas": value["spec"]["replicas"].as_i64().unwrap_or(1) },
        "status": { "replicas": value["status"]["replicas"].as_i64().unwrap_or(0),
            "selector": selector_text(&value["spec"]["selector"]) },
    })
}

/// Replaces the scale by what the client sent, or by what its patch makes of it.
pub(super) fn write(
    api: &Api,
    target: &Target,
    change: impl Fn(&Value) -> Result<Value, ApiError>,
    options: &WriteOptions,
) -> Result<Outcome, ApiError> {
    let whole = Target { subresource: String::new(), ..target.clone() };
    for _ in 0..ATTEMPTS_MAX {
        let current = api.get(&whole)?;
        let old = view(&current);
        let new = change(&old)?;
        let version = &new["metadata"]["resourceVersion"];
        if version.as_str().is_some_and(|v| !v.is_empty())
            && *version != old["metadata"]["resourceVersion"]
        {
            return Err(target.stale());
        }
        let replicas = match &new["spec"]["replicas"] {
            // Go leaves a zero out.
            Value::Null => 0,
            value => value.as_i64().ok_or_else(|| {
                ApiError::bad_request("Scale: spec.replicas is not a whole number")
            })?,
        };
        if replicas < 0 {
            let detail = "must be greater than or equal to 0";
            let error = FieldError::invalid("spec.replicas", replicas, detail);
            return Err(ApiError::invalid("Scale", "autoscaling", &target.name, &[error]));
        }
        let mut value = current.value();
        object_at(&mut value, "spec").insert("replicas".into(), json!(replicas));
        match api.update(&whole, value, options) {
            Err(error) if error.is_conflict() => {}
            result => return result,
        }
    }
    Err(target.stale())
}

/// What a patch makes of a scale.
pub(super) fn patched(old: &Value, patch: &Patch, target: &Target) -> Result<Value, ApiError> {
    match patch {
        Patch::Apply(applied) => Patch::Merge(applied.clone()).apply_to(old, &target.resource),
        patch => patch.apply_to(old, &target.resource),
    }
}

/// A label selector in the form of query strings.
pub(super) fn selector_text(selector: &Value) -> String {
    let mut parts: Vec<String> = Vec::new();
    for (key, value) in selector["matchLabels"].as_object().into_iter().flatten() {
        parts.push(format!("{key}={}", value.as_str().unwrap_or_default()));
    }
    for one in selector["matchExpressions"].as_array().into_iter().flatten() {
        let key = one["key"].as_str().unwrap_or_default();
        let values = one["values"].as_array().into_iter().flatten().filter_map(Value::as_str);
        let values = values.collect::<Vec<_>>().join(",");
        parts.push(match one["operator"].as_str().unwrap_or_default() {
            "In" => format!("{key} in ({values})"),
            "NotIn" => format!("{key} notin ({values})"),
            "DoesNotExist" => format!("!{key}"),
            _ => key.to_owned(),
        });
    }
    parts.join(",")
}
