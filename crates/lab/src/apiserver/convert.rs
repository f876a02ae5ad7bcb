//! Between the version that is stored and the one that is asked for.
//!
//! Custom resources differ in `apiVersion` only, for there is no conversion webhook.
//! Events are served by two groups that name their fields differently.

use serde_json::{Value, json};

use super::object::Object;
use super::resource::Resource;

/// The object's JSON in the version of `resource`, copied only where it differs.
pub(super) fn render(resource: &Resource, object: &Object) -> bytes::Bytes {
    if resource.api_version() == *resource.storage_api_version {
        return object.json.clone();
    }
    let mut value = object.value();
    from_storage(resource, &mut value);
    serde_json::to_vec(&value).unwrap_or_default().into()
}

pub(super) fn from_storage(resource: &Resource, value: &mut Value) {
    if *resource.group == *"events.k8s.io" {
        rename(value, false);
    }
    value["apiVersion"] = json!(resource.api_version());
}

pub(super) fn to_storage(resource: &Resource, value: &mut Value) {
    if *resource.group == *"events.k8s.io" {
        rename(value, true);
    }
    value["apiVersion"] = json!(resource.storage_api_version);
}

/// Names in `v1` and in `events.k8s.io/v1`.
const EVENT_FIELDS: &[(&str, &str)] = &[
    ("involvedObject", "regarding"),
    ("message", "note"),
    ("reportingComponent", "reportingController"),
    ("source", "deprecatedSource"),
    ("firstTimestamp", "deprecatedFirstTimestamp"),
    ("lastTimestamp", "deprecatedLastTimestamp"),
    ("count", "deprecatedCount"),
];

fn rename(value: &mut Value, to_core: bool) {
    let Some(map) = value.as_object_mut() else { return };
    for (core, events) in EVENT_FIELDS {
        let (from, to) = if to_core { (events, core) } else { (core, events) };
        if let Some(inner) = map.remove(*from) {
            map.insert((*to).to_owned(), inner);
        }
    }
}
