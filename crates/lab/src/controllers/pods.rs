//! What the controllers have in common: pods of an owner, how they are, and which go first.

use std::cmp::Reverse;
use std::sync::Arc;

use serde_json::{Value, json};

use super::{Action, selects};

/// What belongs to an owner, and what is to be done so that the objects say so.
pub(super) struct Claimed {
    pub owned: Vec<Arc<Value>>,
    pub actions: Vec<Action>,
}

/// Sorts out candidates: adopts what the selector matches and nobody owns, releases what it no
/// longer matches.
pub(super) fn claim(resource: &'static str, owner: &Value, candidates: &[Arc<Value>]) -> Claimed {
    let mut claimed = Claimed { owned: Vec::new(), actions: Vec::new() };
    let deleting = is_deleting(owner);
    for object in candidates {
        let ours = controller_uid(object) == Some(uid(owner));
        let matches = selects(&owner["spec"]["selector"], &object["metadata"]["labels"]);
        let none = object["metadata"]["ownerReferences"].as_array().is_none_or(Vec::is_empty);
        let patch = match (ours, matches) {
            (true, true) => {
                claimed.owned.push(object.clone());
                continue;
            }
            (true, false) if !deleting => {
                let others = object["metadata"]["ownerReferences"].as_array().into_iter().flatten();
                let others: Vec<&Value> = others.filter(|one| one["uid"] != *uid(owner)).collect();
                json!({ "metadata": { "ownerReferences": others } })
            }
            (false, true) if none && !deleting && !is_deleting(object) => {
                json!({ "metadata": { "ownerReferences": [owner_reference(owner)] } })
            }
            _ => continue,
        };
        claimed.actions.push(Action::Merge { resource, object: object.clone(), patch });
    }
    claimed
}

pub(super) fn uid(object: &Value) -> &str {
    object["metadata"]["uid"].as_str().unwrap_or_default()
}

pub(super) fn name(object: &Value) -> &str {
    object["metadata"]["name"].as_str().unwrap_or_default()
}

pub(super) fn is_deleting(object: &Value) -> bool {
    object["metadata"]["deletionTimestamp"].is_string()
}

/// The unique id of the owner that controls the object.
fn controller_uid(object: &Value) -> Option<&str> {
    let mut owners = object["metadata"]["ownerReferences"].as_array()?.iter();
    owners.find(|owner| owner["controller"] == true)?["uid"].as_str()
}

pub(super) fn owner_reference(owner: &Value) -> Value {
    json!({ "apiVersion": owner["apiVersion"], "kind": owner["kind"], "name": owner["metadata"]["name"],
        "uid": owner["metadata"]["uid"], "controller": true, "blockOwnerDeletion": true })
}

/// A pod as the template of its owner has it.
pub(super) fn from_template(owner: &Value) -> Value {
    let template = &owner["spec"]["template"];
    let mut pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "generateName": format!("{}-", name(owner)),
            "namespace": owner["metadata"]["namespace"],
            "ownerReferences": [owner_reference(owner)] },
        "spec": template["spec"],
    });
    for field in ["labels", "annotations", "finalizers"] {
        if !template["metadata"][field].is_null() {
            pod["metadata"][field] = template["metadata"][field].clone();
        }
    }
    pod
}

pub(super) fn phase(pod: &Value) -> &str {
    pod["status"]["phase"].as_str().unwrap_or("Pending")
}

/// Neither over nor about to go.
pub(super) fn is_active(pod: &Value) -> bool {
    !["Succeeded", "Failed"].contains(&phase(pod)) && !is_deleting(pod)
}

fn ready_condition(pod: &Value) -> Option<&Value> {
    let mut conditions = pod["status"]["conditions"].as_array()?.iter();
    conditions.find(|one| one["type"] == "Ready" && one["status"] == "True")
}

pub(super) fn is_ready(pod: &Value) -> bool {
    ready_condition(pod).is_some()
}

/// Seconds until a pod counts as available, 0 if it does now. `None`: it is not ready.
pub(super) fn available_in(pod: &Value, min_ready_seconds: i64, now: i64) -> Option<i64> {
    let since = seconds(&ready_condition(pod)?["lastTransitionTime"]).unwrap_or(now);
    Some((since + min_ready_seconds - now).max(0)).filter(|_| !is_deleting(pod))
}

/// A timestamp as seconds.
pub(super) fn seconds(timestamp: &Value) -> Option<i64> {
    let time = timestamp.as_str()?.parse::<k8s_openapi::jiff::Timestamp>().ok()?;
    Some(time.as_second())
}

/// Seconds as a timestamp.
pub(super) fn timestamp(seconds: i64) -> String {
    k8s_openapi::jiff::Timestamp::from_second(seconds)
        .map(|time| time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string())
        .unwrap_or_default()
}

/// Sorts so that those come first whose end does the least harm.
pub(super) fn least_needed_first(pods: &mut [Arc<Value>]) {
    pods.sort_by_cached_key(|pod| {
        let assigned = pod["spec"]["nodeName"].as_str().is_some_and(|node| !node.is_empty());
        let phase = ["Pending", "Unknown", "Running"].iter().position(|one| *one == phase(pod));
        let restarts = pod["status"]["containerStatuses"].as_array().into_iter().flatten();
        let restarts = restarts.filter_map(|one| one["restartCount"].as_i64()).max().unwrap_or(0);
        let cost =
            pod["metadata"]["annotations"]["controller.kubernetes.io/pod-deletion-cost"].as_str();
        let cost: i64 = cost.and_then(|text| text.parse().ok()).unwrap_or(0);
        let created = pod["metadata"]["creationTimestamp"].as_str().unwrap_or_default().to_owned();
        (
            assigned,
            phase,
            is_ready(pod),
            cost,
            Reverse(restarts),
            Reverse(created),
            name(pod).to_owned(),
        )
    });
}

/// A number, or a percentage of `total`.
pub(super) fn int_or_percent(value: &Value, total: i64, round_up: bool) -> i64 {
    match value {
        Value::String(text) => {
            let percent: i64 = text.trim_end_matches('%').parse().unwrap_or(0);
            let product = percent * total;
            if round_up { (product + 99).div_euclid(100) } else { product.div_euclid(100) }
        }
        value => value.as_i64().unwrap_or(0),
    }
}

/// A short name for a value: FNV-1a of its JSON with sorted keys, in letters that make no words.
pub(super) fn hash(value: &Value) -> String {
    const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    let mut text = String::new();
    canonical(value, &mut text);
    let fold = |hash: u32, byte: u8| (hash ^ u32::from(byte)).wrapping_mul(16_777_619);
    let hash = text.bytes().fold(2_166_136_261, fold).to_string();
    hash.bytes().map(|digit| char::from(ALPHABET[usize::from(digit) % ALPHABET.len()])).collect()
}

fn canonical(value: &Value, into: &mut String) {
    match value {
        Value::Object(map) => {
            let mut keys: Vec<&String> = map.keys().collect();
            keys.sort();
            into.push('{');
            for key in keys {
                *into += &format!("{key:?}:");
                canonical(&map[key], into);
                into.push(',');
            }
            into.push('}');
        }
        Value::Array(items) => {
            into.push('[');
            for item in items {
                canonical(item, into);
                into.push(',');
            }
            into.push(']');
        }
        plain => *into += &plain.to_string(),
    }
}

/// One of an object's conditions.
pub(super) fn condition<'a>(status: &'a Value, kind: &str) -> Option<&'a Value> {
    status["conditions"].as_array()?.iter().find(|one| one["type"] == kind)
}

/// Sets one of the conditions; times change with what they are times of.
pub(super) fn set_condition(
    status: &mut Value,
    kind: &str,
    value: bool,
    reason: &str,
    message: &str,
    now: i64,
) {
    let value = if value { "True" } else { "False" };
    let mut new = json!({ "type": kind, "status": value, "reason": reason, "message": message,
        "lastUpdateTime": timestamp(now), "lastTransitionTime": timestamp(now) });
    let list = status["conditions"].as_array().cloned().unwrap_or_default();
    let mut found = false;
    let mut list: Vec<Value> = list
        .into_iter()
        .map(|old| {
            if old["type"] != kind {
                return old;
            }
            found = true;
            if old["status"] == value {
                new["lastTransitionTime"] = old["lastTransitionTime"].clone();
                if old["reason"] == reason && old["message"] == message {
                    return old;
                }
            }
            new.clone()
        })
        .collect();
    if !found {
        list.push(new);
    }
    status["conditions"] = json!(list);
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A running pod of an owner.
    pub(in crate::controllers) fn pod_of(owner: &Value, name: &str, ready: bool) -> Arc<Value> {
        let mut pod = from_template(owner);
        pod["metadata"]["name"] = json!(name);
        pod["metadata"]["uid"] = json!(format!("uid-{name}"));
        pod["metadata"]["creationTimestamp"] = json!(timestamp(0));
        pod["status"] = json!({ "phase": "Running", "conditions": [
            { "type": "Ready", "status": if ready { "True" } else { "False" }, "lastTransitionTime": timestamp(0) }] });
        Arc::new(pod)
    }

    #[test]
    fn percentages() {
        let check = |value: Value, total, up, expected| {
            assert_eq!(int_or_percent(&value, total, up), expected, "{value} of {total}");
        };
        check(json!(3), 10, true, 3);
        check(json!("25%"), 10, true, 3);
        check(json!("25%"), 10, false, 2);
        check(json!("25%"), 3, true, 1);
        check(json!("25%"), 3, false, 0);
        check(json!("100%"), 7, false, 7);
    }

    #[test]
    fn the_hash_does_not_depend_on_the_order_of_keys() {
        let a: Value = serde_json::from_str(r#"{"a":{"x":1,"y":2},"b":[1]}"#).unwrap();
        let b: Value = serde_json::from_str(r#"{"b":[1],"a":{"y":2,"x":1}}"#).unwrap();
        assert_eq!(hash(&a), hash(&b));
        assert_ne!(hash(&a), hash(&json!({})));
    }

    #[test]
    fn objects_are_adopted_and_released() {
        let owner = json!({ "apiVersion": "apps/v1", "kind": "ReplicaSet",
            "metadata": { "name": "o", "uid": "u" }, "spec": { "selector": { "matchLabels": { "a": "b" } } } });
        let object = |labels: Value, owners: Value| {
            Arc::new(
                json!({ "metadata": { "name": "p", "labels": labels, "ownerReferences": owners } }),
            )
        };
        let ours = json!([owner_reference(&owner)]);
        let theirs = json!([{ "uid": "other", "controller": true }]);
        let check = |labels: Value, owners: &Value, owned: usize, patch: Option<Value>| {
            let claimed = claim("pods", &owner, &[object(labels, owners.clone())]);
            assert_eq!(claimed.owned.len(), owned);
            let patches: Vec<Value> = claimed
                .actions
                .into_iter()
                .map(|action| match action {
                    Action::Merge { patch, .. } => patch["metadata"]["ownerReferences"].clone(),
                    other => panic!("{other:?}"),
                })
                .collect();
            assert_eq!(patches, patch.into_iter().collect::<Vec<_>>());
        };
        check(json!({ "a": "b" }), &ours, 1, None);
        check(json!({ "a": "c" }), &ours, 0, Some(json!([])));
        check(json!({ "a": "b" }), &json!([]), 0, Some(ours.clone()));
        check(json!({ "a": "b" }), &theirs, 0, None);
        check(json!({}), &json!([]), 0, None);
    }
}
