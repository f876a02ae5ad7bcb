//! ControllerRevisions: which pod templates a DaemonSet or StatefulSet has had, so that
//! `kubectl rollout undo` can go back to one.

use std::sync::Arc;

use serde_json::{Value, json};

use super::pods::{self, name};
use super::{Action, Plan, REVISIONS};

/// The label of pods that says which template they were made from.
pub(super) const HASH_LABEL: &str = "controller-revision-hash";

/// The revision that has the owner's present template; made, or brought to the front, by `plan`.
pub(super) fn present(owner: &Arc<Value>, known: &[Arc<Value>], plan: &mut Plan) -> Value {
    let mut template = owner["spec"]["template"].clone();
    template["$patch"] = json!("replace");
    let data = json!({ "spec": { "template": template } });
    let last = known.iter().filter_map(|one| one["revision"].as_i64()).max().unwrap_or(0);
    if let Some(found) =
        known.iter().filter(|one| one["data"] == data).max_by_key(|one| one["revision"].as_i64())
    {
        if found["revision"].as_i64() != Some(last) {
            let patch = json!({ "revision": last + 1 });
            plan.push(Action::Merge { resource: REVISIONS, object: found.clone(), patch });
        }
        return Value::clone(found);
    }
    let hash = pods::hash(&data);
    let mut labels = owner["spec"]["template"]["metadata"]["labels"].clone();
    labels[HASH_LABEL] = json!(hash);
    let revision = json!({
        "apiVersion": "apps/v1", "kind": "ControllerRevision",
        "metadata": {
            "name": format!("{}-{hash}", name(owner)),
            "namespace": owner["metadata"]["namespace"],
            "labels": labels,
            "annotations": owner["metadata"]["annotations"].as_object().cloned().unwrap_or_default(),
            "ownerReferences": [pods::owner_reference(owner)],
        },
        "data": data,
        "revision": last + 1,
    });
    plan.push(Action::Create { resource: REVISIONS, object: revision.clone() });
    revision
}

/// The hash in a revision's labels.
pub(super) fn hash(revision: &Value) -> &str {
    revision["metadata"]["labels"][HASH_LABEL].as_str().unwrap_or_default()
}

/// Removes the oldest revisions that nothing uses.
pub(super) fn remove_old(
    owner: &Value,
    known: &[Arc<Value>],
    used: impl Fn(&Value) -> bool,
    plan: &mut Plan,
) {
    let limit = owner["spec"]["revisionHistoryLimit"].as_i64().unwrap_or(10);
    let limit = usize::try_from(limit).unwrap_or(0);
    let mut unused: Vec<&Arc<Value>> = known.iter().filter(|one| !used(one)).collect();
    unused.sort_by_key(|one| one["revision"].as_i64());
    for one in unused.iter().take(unused.len().saturating_sub(limit)) {
        plan.push(Action::Delete { resource: REVISIONS, object: (*one).clone() });
    }
}
