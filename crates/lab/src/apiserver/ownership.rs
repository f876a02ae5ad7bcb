//! Who owns which field: `metadata.managedFields`, and server-side apply on top of it.
//!
//! A set of fields is a tree in the notation of `fieldsV1`: `f:name` a field,
//! `k:{...}` the item of a keyed list, `v:...` a member of a set. Lists and maps that
//! the schema calls atomic are leaves.
//!
//! An apply compares what its manager sent with what it sent last. Fields that it no
//! longer sends go, unless somebody else owns them too. Fields that others own and
//! that it would change are conflicts, unless it forces.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::api::{Target, WriteOptions};
use super::object;
use super::resource::Resource;
use super::schema::{ListType, Node, Schema, object_at};
use super::status::ApiError;

/// A set of fields of one object.
#[derive(Clone, Debug, Default, PartialEq)]
struct Fields {
    /// The value here is in the set itself, not only what is below.
    own: bool,
    below: BTreeMap<String, Self>,
}

/// Not owned by anybody: the server's.
const SERVER_METADATA: &[&str] = &[
    "name",
    "namespace",
    "uid",
    "creationTimestamp",
    "resourceVersion",
    "generation",
    "managedFields",
    "selfLink",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
    "generateName",
];

/// `managedFields` of an object that comes into being by an apply.
pub(super) fn first_application(applied: &Value, resource: &Resource, manager: &str) -> Value {
    let fields = fields_of_object(applied, resource.schema());
    json!([entry(manager, "Apply", &resource.api_version(), "", &fields, &object::now())])
}

/// Notes what a write other than an apply changed. `old` is absent for a new object.
pub(super) fn record(
    old: Option<&Value>,
    new: &mut Value,
    resource: &Resource,
    manager: &str,
    subresource: &str,
) {
    if manager.is_empty() {
        return;
    }
    let schema = resource.schema();
    let mut changed = match old {
        None => fields_of_object(new, schema),
        Some(old) => strip(changes(old, new, Some(schema))),
    };
    let mut removed = match old {
        None => Fields::default(),
        Some(old) => strip(removals(old, new, Some(schema))),
    };
    if resource.has_status && old.is_none() {
        changed.below.remove("f:status");
        removed.below.remove("f:status");
    }
    if old.is_some() && changed.is_empty() && removed.is_empty() {
        return;
    }
    let mut entries = parse_entries(&new["metadata"]["managedFields"]);
    let (version, now) = (resource.api_version(), object::now());
    let mut found = false;
    for one in &mut entries {
        let before = one.fields.clone();
        one.fields.subtract(&removed);
        if one.is(manager, "Update", &version, subresource) {
            found = true;
            one.fields.add(&changed);
        } else {
            one.fields.subtract(&changed);
        }
        if one.fields != before {
            one.time.clone_from(&now);
        }
    }
    if !found && !changed.is_empty() {
        entries.push(Entry {
            manager: manager.to_owned(),
            operation: "Update".into(),
            api_version: version,
            subresource: subresource.to_owned(),
            time: now,
            fields: changed,
        });
    }
    write_entries(new, entries);
}

/// Merges an applied configuration into the object.
pub(super) fn apply(
    old: &Value,
    applied: &Value,
    target: &Target,
    options: &WriteOptions,
) -> Result<Value, ApiError> {
    let resource = &target.resource;
    let schema = resource.schema();
    let mut wanted = fields_of_object(applied, schema);
    if target.subresource.is_empty() && resource.has_status {
        wanted.below.remove("f:status");
    } else if target.subresource == "status" {
        wanted.below.retain(|name, _| name == "f:status");
    }
    let mut merged = old.clone();
    let mut sent = applied.clone();
    let meta = object_at(&mut sent, "metadata");
    meta.retain(|name, _| {
        !SERVER_METADATA.contains(&name.as_str())
            || matches!(name.as_str(), "uid" | "resourceVersion")
    });
    merge(&mut merged, &sent, Some(schema));

    let mut entries = parse_entries(&old["metadata"]["managedFields"]);
    let version = resource.api_version();
    let mine = entries
        .iter()
        .position(|one| one.is(&options.manager, "Apply", &version, &target.subresource))
        // Another version of the same manager's configuration is still its own.
        .or_else(|| {
            entries.iter().position(|one| {
                one.manager == options.manager
                    && one.operation == "Apply"
                    && one.subresource == target.subresource
            })
        });
    let last = mine.map(|at| entries.remove(at));

    let changed = changes(old, &merged, Some(schema)).common(&wanted);
    let mut conflicts = Vec::new();
    let own_earlier = client_side_fields(old, &options.manager, schema);
    for other in &mut entries {
        let overlap = other.fields.common(&changed);
        if overlap.is_empty() {
            continue;
        }
        if options.force || own_earlier.common(&overlap) == overlap {
            other.fields.subtract(&overlap);
            other.time = object::now();
        } else {
            let described = other.describe();
            conflicts.extend(overlap.paths().into_iter().map(|path| (described.clone(), path)));
        }
    }
    if !conflicts.is_empty() {
        return Err(ApiError::apply_conflict(&conflicts));
    }

    if let Some(last) = &last {
        let mut dropped = last.fields.clone();
        let mut kept = wanted.clone();
        for other in &entries {
            kept.add(&other.fields);
        }
        dropped.subtract(&kept);
        prune(&mut merged, &dropped, &kept, Some(schema));
    }
    update_last_applied(&mut merged, &sent, &options.manager);
    let unchanged =
        last.as_ref().is_some_and(|last| last.fields == wanted && last.api_version == version);
    let time = match last {
        Some(last) if unchanged => last.time,
        _ => object::now(),
    };
    entries.push(Entry {
        manager: options.manager.clone(),
        operation: "Apply".into(),
        api_version: version,
        subresource: target.subresource.clone(),
        time,
        fields: wanted,
    });
    write_entries(&mut merged, entries);
    Ok(merged)
}

/// What `kubectl` keeps of a client-side apply.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";
/// `kubectl`'s field manager under server-side apply.
const KUBECTL: &str = "kubectl";

/// What `kubectl` applied on the client's side; it may go on with server-side apply without force.
fn client_side_fields(old: &Value, manager: &str, schema: &Schema) -> Fields {
    let text = old["metadata"]["annotations"][LAST_APPLIED].as_str().unwrap_or_default();
    match serde_json::from_str::<Value>(text) {
        Ok(applied) if manager == KUBECTL => fields_of_object(&applied, schema),
        _ => Fields::default(),
    }
}

/// Keeps the annotation in step, should `kubectl` go back to client-side apply.
fn update_last_applied(merged: &mut Value, applied: &Value, manager: &str) {
    if manager == KUBECTL && merged["metadata"]["annotations"][LAST_APPLIED].is_string() {
        let text = applied.to_string();
        merged["metadata"]["annotations"][LAST_APPLIED] = json!(text + "\n");
    }
}

struct Entry {
    manager: String,
    operation: String,
    api_version: String,
    subresource: String,
    time: String,
    fields: Fields,
}

impl Entry {
    fn is(&self, manager: &str, operation: &str, api_version: &str, subresource: &str) -> bool {
        self.manager == manager
            && self.operation == operation
            && self.api_version == api_version
            && self.subresource == subresource
    }

    fn describe(&self) -> String {
        let mut text = format!("\"{}\"", self.manager);
        if !self.subresource.is_empty() {
            text += &format!(" with subresource \"{}\"", self.subresource);
        }
        if self.operation == "Update" {
            text += &format!(" using {}", self.api_version);
        }
        text
    }
}

fn parse_entries(managed: &Value) -> Vec<Entry> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    managed
        .as_array()
        .into_iter()
        .flatten()
        .filter(|one| one["manager"].is_string())
        .map(|one| Entry {
            manager: text(&one["manager"]),
            operation: text(&one["operation"]),
            api_version: text(&one["apiVersion"]),
            subresource: text(&one["subresource"]),
            time: text(&one["time"]),
            fields: Fields::parse(&one["fieldsV1"]),
        })
        .collect()
}

fn write_entries(object: &mut Value, mut entries: Vec<Entry>) {
    entries.retain(|one| !one.fields.is_empty());
    // Appliers first, then by age, as the real server shows them.
    entries.sort_by(|a, b| {
        let key = |one: &Entry| (one.operation.clone(), one.time.clone(), one.manager.clone());
        key(a).cmp(&key(b))
    });
    let list: Vec<Value> = entries
        .iter()
        .map(|one| {
            entry(
                &one.manager,
                &one.operation,
                &one.api_version,
                &one.subresource,
                &one.fields,
                &one.time,
            )
        })
        .collect();
    object["metadata"]["managedFields"] = json!(list);
}

fn entry(
    manager: &str,
    operation: &str,
    api_version: &str,
    subresource: &str,
    fields: &Fields,
    time: &str,
) -> Value {
    let mut value = json!({ "manager": manager, "operation": operation, "apiVersion": api_version,
        "time": time, "fieldsType": "FieldsV1", "fieldsV1": fields.to_json() });
    if !subresource.is_empty() {
        value["subresource"] = json!(subresource);
    }
    value
}

impl Fields {
    fn leaf() -> Self {
        Self { own: true, below: BTreeMap::new() }
    }

    fn is_empty(&self) -> bool {
        !self.own && self.below.values().all(Self::is_empty)
    }

    fn parse(json: &Value) -> Self {
        let mut set = Self::default();
        for (name, inner) in json.as_object().into_iter().flatten() {
            if name == "." {
                set.own = true;
                continue;
            }
            let mut below = Self::parse(inner);
            below.own |= below.below.is_empty();
            set.below.insert(name.clone(), below);
        }
        set
    }

    fn to_json(&self) -> Value {
        let mut map = Map::new();
        if self.own && !self.below.is_empty() {
            map.insert(".".into(), json!({}));
        }
        for (name, below) in self.below.iter().filter(|(_, below)| !below.is_empty()) {
            map.insert(name.clone(), below.to_json());
        }
        Value::Object(map)
    }

    fn add(&mut self, other: &Self) {
        self.own |= other.own;
        for (name, theirs) in &other.below {
            self.below.entry(name.clone()).or_default().add(theirs);
        }
    }

    fn subtract(&mut self, other: &Self) {
        self.own &= !other.own;
        for (name, theirs) in &other.below {
            if let Some(mine) = self.below.get_mut(name) {
                mine.subtract(theirs);
                if mine.is_empty() {
                    self.below.remove(name);
                }
            }
        }
    }

    fn common(&self, other: &Self) -> Self {
        let mut both = Self { own: self.own && other.own, below: BTreeMap::new() };
        for (name, mine) in &self.below {
            if let Some(theirs) = other.below.get(name) {
                let below = mine.common(theirs);
                if !below.is_empty() {
                    both.below.insert(name.clone(), below);
                }
            }
        }
        both
    }

    /// Paths as people read them: `.spec.ports[port=80].name`.
    fn paths(&self) -> Vec<String> {
        let mut paths = Vec::new();
        self.collect_paths(&mut String::new(), &mut paths);
        paths
    }

    fn collect_paths(&self, path: &mut String, paths: &mut Vec<String>) {
        if self.own {
            paths.push(path.clone());
        }
        for (name, below) in &self.below {
            let len = path.len();
            match name.split_once(':') {
                Some(("f", field)) => {
                    path.push('.');
                    path.push_str(field);
                }
                Some(("k", keys)) => {
                    let keys: BTreeMap<String, Value> =
                        serde_json::from_str(keys).unwrap_or_default();
                    let keys: Vec<String> =
                        keys.iter().map(|(key, v)| format!("{key}={v}")).collect();
                    path.push_str(&format!("[{}]", keys.join(",")));
                }
                Some((_, value)) => path.push_str(&format!("[={value}]")),
                None => path.push_str(name),
            }
            below.collect_paths(path, paths);
            path.truncate(len);
        }
    }
}

fn strip(mut set: Fields) -> Fields {
    set.own = false;
    set.below.remove("f:apiVersion");
    set.below.remove("f:kind");
    if let Some(meta) = set.below.get_mut("f:metadata") {
        meta.own = false;
        for name in SERVER_METADATA {
            meta.below.remove(&format!("f:{name}"));
        }
    }
    set
}

fn fields_of_object(object: &Value, schema: &Schema) -> Fields {
    let mut set = strip(fields_of(object, Some(schema)));
    if set.below.get("f:metadata").is_some_and(Fields::is_empty) {
        set.below.remove("f:metadata");
    }
    set
}

fn child<'a>(schema: Option<&'a Schema>, name: &str) -> Option<&'a Schema> {
    schema.and_then(|schema| schema.child(name))
}

fn item(schema: Option<&Schema>) -> Option<&Schema> {
    schema.and_then(|schema| schema.items.as_ref()).map(Node::schema)
}

fn is_atomic_map(schema: Option<&Schema>) -> bool {
    schema.is_some_and(|schema| schema.atomic_map)
}

/// How items of a list are named, when they are.
fn item_names(items: &[Value], schema: Option<&Schema>) -> Option<Vec<String>> {
    match &schema?.list {
        ListType::Atomic => None,
        ListType::Set => Some(items.iter().map(|value| format!("v:{value}")).collect()),
        ListType::Map(keys) => {
            let of_item = item(schema);
            let name = |value: &Value| {
                let mut map = Map::new();
                for key in keys {
                    let default = || child(of_item, key).and_then(|schema| schema.default.clone());
                    if let Some(value) = value.get(&**key).cloned().or_else(default) {
                        map.insert(String::from(&**key), value);
                    }
                }
                format!("k:{}", Value::Object(map))
            };
            Some(items.iter().map(name).collect())
        }
    }
}

/// All fields of a value.
fn fields_of(value: &Value, schema: Option<&Schema>) -> Fields {
    match value {
        Value::Object(map) if !map.is_empty() && !is_atomic_map(schema) => {
            let mut set = Fields::default();
            for (name, inner) in map {
                set.below.insert(format!("f:{name}"), fields_of(inner, child(schema, name)));
            }
            set
        }
        Value::Array(items) if !items.is_empty() => {
            let Some(names) = item_names(items, schema) else { return Fields::leaf() };
            let mut set = Fields::default();
            for (name, inner) in names.into_iter().zip(items) {
                let below = if name.starts_with("v:") {
                    Fields::leaf()
                } else {
                    Fields { own: true, ..fields_of(inner, item(schema)) }
                };
                set.below.insert(name, below);
            }
            set
        }
        _ => Fields::leaf(),
    }
}

/// Fields of `new` that are not in `old` or differ there.
fn changes(old: &Value, new: &Value, schema: Option<&Schema>) -> Fields {
    if old == new {
        return Fields::default();
    }
    match (old, new) {
        (Value::Object(before), Value::Object(after)) if !is_atomic_map(schema) => {
            let mut set = Fields::default();
            for (name, inner) in after {
                let schema = child(schema, name);
                let below = match before.get(name) {
                    Some(old) => changes(old, inner, schema),
                    None => fields_of(inner, schema),
                };
                if !below.is_empty() {
                    set.below.insert(format!("f:{name}"), below);
                }
            }
            set
        }
        (Value::Array(before), Value::Array(after)) => {
            let names = item_names(before, schema).zip(item_names(after, schema));
            let Some((old_names, new_names)) = names else { return Fields::leaf() };
            let mut set = Fields::default();
            for (name, inner) in new_names.iter().zip(after) {
                let below = match old_names.iter().position(|old| old == name) {
                    Some(at) => changes(&before[at], inner, item(schema)),
                    None if name.starts_with("v:") => Fields::leaf(),
                    None => Fields { own: true, ..fields_of(inner, item(schema)) },
                };
                if !below.is_empty() {
                    set.below.insert(name.clone(), below);
                }
            }
            set
        }
        _ => fields_of(new, schema),
    }
}

/// Fields of `old` that `new` lacks.
fn removals(old: &Value, new: &Value, schema: Option<&Schema>) -> Fields {
    let mut all = fields_of(old, schema);
    // Children of what was atomic or empty are not compared.
    all.subtract(&fields_of(new, schema));
    all
}

/// Puts `applied` over `live`.
fn merge(live: &mut Value, applied: &Value, schema: Option<&Schema>) {
    match (live, applied) {
        (Value::Object(live), Value::Object(applied)) if !is_atomic_map(schema) => {
            for (name, inner) in applied {
                match live.get_mut(name) {
                    Some(existing) => merge(existing, inner, child(schema, name)),
                    None => {
                        live.insert(name.clone(), inner.clone());
                    }
                }
            }
        }
        (Value::Array(live), Value::Array(applied)) => {
            let names = item_names(live, schema).zip(item_names(applied, schema));
            let Some((live_names, applied_names)) = names else {
                live.clone_from(applied);
                return;
            };
            for (name, inner) in applied_names.iter().zip(applied) {
                match live_names.iter().position(|other| other == name) {
                    Some(at) if name.starts_with("k:") => merge(&mut live[at], inner, item(schema)),
                    Some(_) => {}
                    None => live.push(inner.clone()),
                }
            }
        }
        (live, applied) => *live = applied.clone(),
    }
}

/// Removes fields that nobody owns any longer. What holds something that is `kept` stays.
fn prune(value: &mut Value, dropped: &Fields, kept: &Fields, schema: Option<&Schema>) {
    match value {
        Value::Object(map) => {
            for (name, below) in &dropped.below {
                let Some(field) = name.strip_prefix("f:") else { continue };
                let Some(inner) = map.get_mut(field) else { continue };
                let gone = match kept.below.get(name) {
                    Some(kept) => {
                        prune(inner, below, kept, child(schema, field));
                        false
                    }
                    None if below.own && below.below.is_empty() => true,
                    None => {
                        prune(inner, below, &Fields::default(), child(schema, field));
                        is_hollow(inner)
                    }
                };
                if gone {
                    map.remove(field);
                }
            }
        }
        Value::Array(items) => {
            let Some(names) = item_names(items, schema) else { return };
            let named = names.into_iter().zip(std::mem::take(items));
            *items = named
                .filter_map(|(name, mut inner)| {
                    match (dropped.below.get(&name), kept.below.get(&name)) {
                        (Some(below), Some(kept)) => prune(&mut inner, below, kept, item(schema)),
                        (Some(below), None) if below.own => return None,
                        (Some(below), None) => {
                            prune(&mut inner, below, &Fields::default(), item(schema));
                        }
                        (None, _) => {}
                    }
                    Some(inner)
                })
                .collect();
        }
        _ => {}
    }
}

fn is_hollow(value: &Value) -> bool {
    value.as_object().is_some_and(Map::is_empty) || value.as_array().is_some_and(Vec::is_empty)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::apiserver::api::{Api, FieldValidation};
    use crate::apiserver::patch::Patch;
    use proptest::prelude::*;

    struct Cluster(Api);

    impl Cluster {
        fn new() -> Self {
            let cluster = Self(Api::new(String::new()));
            let target = cluster.0.target("namespaces", "", "").unwrap();
            let namespace = json!({ "metadata": { "name": "default" } });
            cluster.0.create(&target, namespace, &WriteOptions::by("test")).unwrap();
            cluster
        }

        fn apply(
            &self,
            id: &str,
            manager: &str,
            object: &Value,
            force: bool,
        ) -> Result<Value, String> {
            let name = object["metadata"]["name"].as_str().unwrap();
            let target = self.0.target(id, "default", name).unwrap();
            let options = WriteOptions {
                dry_run: false,
                manager: manager.into(),
                validation: FieldValidation::Strict,
                force,
                user: None,
            };
            let result = self.0.patch(&target, &Patch::Apply(object.clone()), &options);
            result.map(|outcome| outcome.object.value()).map_err(|error| error.to_string())
        }

        fn data(&self, manager: &str, data: &Value, force: bool) -> Result<Value, String> {
            let map = json!({ "metadata": { "name": "m" }, "data": data });
            self.apply("configmaps", manager, &map, force).map(|value| value["data"].clone())
        }

        fn update(&self, manager: &str, data: &Value) {
            let target = self.0.target("configmaps", "default", "m").unwrap();
            let patch = Patch::Merge(json!({ "data": data }));
            self.0.patch(&target, &patch, &WriteOptions::by(manager)).unwrap();
        }
    }

    #[test]
    fn owners_share_take_over_and_let_go() {
        let cluster = Cluster::new();
        assert_eq!(
            cluster.data("a", &json!({ "x": "1", "y": "1" }), false).unwrap(),
            json!({ "x": "1", "y": "1" })
        );
        // Equal values are shared, others are conflicts.
        cluster.data("b", &json!({ "x": "1" }), false).unwrap();
        let conflict = cluster.data("b", &json!({ "x": "1", "y": "2" }), false).unwrap_err();
        assert_eq!(conflict, r#"Apply failed with 1 conflict: conflict with "a": .data.y"#);
        assert_eq!(
            cluster.data("b", &json!({ "x": "1", "y": "2" }), true).unwrap(),
            json!({ "x": "1", "y": "2" })
        );
        // What is shared or taken over stays, when one lets go of it.
        assert_eq!(cluster.data("a", &json!({}), false).unwrap(), json!({ "x": "1", "y": "2" }));
        assert_eq!(cluster.data("b", &json!({ "y": "2" }), false).unwrap(), json!({ "y": "2" }));
    }

    #[test]
    fn plain_writes_own_what_they_change() {
        let cluster = Cluster::new();
        cluster.data("a", &json!({ "x": "1", "y": "1" }), false).unwrap();
        cluster.update("editor", &json!({ "x": "2" }));
        let conflict = cluster.data("a", &json!({ "x": "1", "y": "1" }), false).unwrap_err();
        assert_eq!(
            conflict,
            r#"Apply failed with 1 conflict: conflict with "editor" using v1: .data.x"#
        );
        cluster.update("editor", &json!({ "x": null }));
        assert_eq!(cluster.data("a", &json!({ "x": "1" }), false).unwrap(), json!({ "x": "1" }));
    }

    #[test]
    fn items_of_keyed_lists_have_owners_of_their_own() {
        let cluster = Cluster::new();
        let pod = |containers: Value| json!({ "metadata": { "name": "p" }, "spec": { "containers": containers } });
        let one = json!([{ "name": "one", "image": "i", "ports": [{ "containerPort": 80 }] }]);
        cluster.apply("pods", "a", &pod(one.clone()), false).unwrap();
        // The default protocol is part of the key, so this is the same port.
        let value = cluster.apply("pods", "a", &pod(one), false).unwrap();
        assert_eq!(value["spec"]["containers"][0]["ports"].as_array().unwrap().len(), 1);
        let text = value["metadata"]["managedFields"][0]["fieldsV1"].to_string();
        assert!(text.contains(r#""k:{\"containerPort\":80,\"protocol\":\"TCP\"}""#), "{text}");
        let image = pod(json!([{ "name": "one", "image": "other" }]));
        let conflict = cluster.apply("pods", "b", &image, false).unwrap_err();
        assert!(conflict.ends_with(r#".spec.containers[name="one"].image"#), "{conflict}");
    }

    #[test]
    fn labels_and_finalizers_merge() {
        let cluster = Cluster::new();
        let map = |labels: Value, finalizers: Value| json!({ "metadata": { "name": "m", "labels": labels, "finalizers": finalizers } });
        cluster
            .apply("configmaps", "a", &map(json!({ "a": "1" }), json!(["x.io/a"])), false)
            .unwrap();
        let value = cluster
            .apply("configmaps", "b", &map(json!({ "b": "1" }), json!(["x.io/b"])), false)
            .unwrap();
        assert_eq!(value["metadata"]["labels"], json!({ "a": "1", "b": "1" }));
        assert_eq!(value["metadata"]["finalizers"], json!(["x.io/a", "x.io/b"]));
        let value = cluster.apply("configmaps", "a", &map(json!({}), json!([])), false).unwrap();
        assert_eq!(value["metadata"]["labels"], json!({ "b": "1" }));
        assert_eq!(value["metadata"]["finalizers"], json!(["x.io/b"]));
    }

    #[test]
    fn an_apply_that_changes_nothing_writes_nothing() {
        let cluster = Cluster::new();
        let map = json!({ "metadata": { "name": "m" }, "data": { "a": "1" } });
        let first = cluster.apply("configmaps", "a", &map, false).unwrap();
        let second = cluster.apply("configmaps", "a", &map, false).unwrap();
        assert_eq!(first, second);
    }

    proptest! {
        /// Each key has the value that its last applier gave it, as long as any applier has it.
        #[test]
        fn forced_applies_are_like_layers(
            steps in prop::collection::vec((0_usize..3, prop::collection::btree_map("[a-d]", "[0-2]", 0..4)), 1..12)
        ) {
            let cluster = Cluster::new();
            let mut wanted: [BTreeMap<String, String>; 3] = Default::default();
            let mut values: BTreeMap<String, String> = BTreeMap::new();
            for (manager, data) in steps {
                let result = cluster.data(&format!("m{manager}"), &json!(data), true).unwrap();
                // Taking over with another value ends the others' ownership.
                for (key, value) in &data {
                    if values.get(key) != Some(value) {
                        wanted.iter_mut().for_each(|theirs| { theirs.remove(key); });
                    }
                    values.insert(key.clone(), value.clone());
                }
                wanted[manager] = data;
                values.retain(|key, _| wanted.iter().any(|theirs| theirs.contains_key(key)));
                let expected = if values.is_empty() && result.is_null() { Value::Null } else { json!(values) };
                prop_assert_eq!(result, expected);
            }
        }

        /// What is written out is read back the same.
        #[test]
        fn sets_survive_their_notation(value in json_value()) {
            let set = fields_of(&value, None);
            let mut parsed = Fields::parse(&set.to_json());
            // An object's own root is not part of the notation.
            parsed.own = set.own;
            prop_assert_eq!(parsed, set);
        }
    }

    fn json_value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![Just(json!(1)), Just(json!("x")), Just(json!([])), Just(json!({}))];
        leaf.prop_recursive(3, 12, 3, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..3).prop_map(Value::Array),
                prop::collection::btree_map("[a-c]", inner, 0..3).prop_map(|map| json!(map)),
            ]
        })
    }
}
