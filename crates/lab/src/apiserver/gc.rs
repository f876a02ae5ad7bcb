//! Removes what nothing needs any more: contents of deleted namespaces, objects whose
//! owners are gone, events that are old.
//!
//! Works through the changes in the order in which they happen. An object goes
//! when none of its owners exists; `foregroundDeletion` and `orphan` are finalizers
//! that this takes off when their condition holds.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::mpsc::UnboundedReceiver;
use tokio_util::sync::CancellationToken;

use super::api::{Api, DeleteOptions, ListOptions, Target, WriteOptions};
use super::crd::{CLEANUP, DEFINITIONS};
use super::object::{Key, Object, timestamp};
use super::patch::Patch;
use super::status::ApiError;
use super::store::{Change, Written};

/// How long events are kept.
const EVENT_AGE_MAX_SECONDS: i64 = 60 * 60;
/// How often old events are looked for.
const EVENT_SWEEP_INTERVAL: Duration = Duration::from_secs(5 * 60);

/// Runs until told to stop.
pub(super) async fn run(
    api: Arc<Api>,
    mut changes: UnboundedReceiver<Written>,
    stop: CancellationToken,
) {
    resume(&api);
    let mut sweep = tokio::time::interval(EVENT_SWEEP_INTERVAL);
    loop {
        let written = tokio::select! {
            () = stop.cancelled() => return,
            written = changes.recv() => written,
            _ = sweep.tick() => {
                remove_old_events(&api);
                continue;
            }
        };
        let Some(written) = written else { return };
        handle(&api, &written);
        // Many deletions must not keep others from running.
        tokio::task::yield_now().await;
    }
}

/// What an earlier process left half done.
fn resume(api: &Api) {
    let (_, all) = api.store.dump();
    for (resource, objects) in all {
        for object in objects.values() {
            check_object(api, &resource, object);
        }
    }
}

fn handle(api: &Api, written: &Written) {
    let (resource, object) = (&written.resource, &written.event.object);
    if written.event.change == Change::Deleted {
        for (resource, key) in api.store.dependents(&object.uid) {
            if let Some(dependent) = api.store.get(&resource, &key) {
                check_object(api, &resource, &dependent);
            }
        }
        // Whoever waits for this object to go: its definition, its namespace, and its owners.
        if let Some(definition) = api.store.get(DEFINITIONS, &Key::new("", resource)) {
            check_object(api, DEFINITIONS, &definition);
        }
        if let Some(namespace) = api.store.get("namespaces", &Key::new("", &object.key.namespace)) {
            if !namespace.is_being_deleted
                && ["serviceaccounts", "configmaps"].contains(&&**resource)
            {
                api.furnish_namespace(&namespace.key.name);
            }
            check_object(api, "namespaces", &namespace);
        }
        for owner in &object.owners {
            if let Some((resource, key)) = api.store.by_uid(owner)
                && let Some(owner) = api.store.get(&resource, &key)
            {
                check_object(api, &resource, &owner);
            }
        }
        return;
    }
    check_object(api, resource, object);
}

/// Does what an object's present state asks for.
fn check_object(api: &Api, resource: &str, object: &Object) {
    let orphaned =
        !object.owners.is_empty() && !object.owners.iter().any(|owner| api.store.uid_exists(owner));
    if orphaned {
        log(resource, &object.key, delete(api, resource, &object.key));
        return;
    }
    if !object.is_being_deleted {
        return;
    }
    if resource == "namespaces" {
        log(resource, &object.key, empty_namespace(api, object));
    }
    if resource == DEFINITIONS {
        log(resource, &object.key, empty_definition(api, object));
    }
    let value = object.value();
    let has = |name: &str| {
        value["metadata"]["finalizers"]
            .as_array()
            .is_some_and(|list| list.iter().any(|one| one == name))
    };
    if has("foregroundDeletion") {
        let dependents = api.store.dependents(&object.uid);
        if dependents.is_empty() {
            log(
                resource,
                &object.key,
                remove_finalizer(api, resource, object, "foregroundDeletion"),
            );
        }
        for (resource, key) in dependents {
            log(&resource, &key, delete(api, &resource, &key));
        }
    }
    if has("orphan") {
        for (resource, key) in api.store.dependents(&object.uid) {
            log(&resource, &key, disown(api, &resource, &key, &object.uid));
        }
        log(resource, &object.key, remove_finalizer(api, resource, object, "orphan"));
    }
}

fn remove_old_events(api: &Api) {
    let oldest = timestamp(-EVENT_AGE_MAX_SECONDS);
    let (_, events) = api.store.list(&"events".into());
    for (key, event) in &events {
        // Times of this form sort as text.
        if event.value()["metadata"]["creationTimestamp"].as_str() < Some(&oldest) {
            log("events", key, delete(api, "events", key));
        }
    }
}

fn log(resource: &str, key: &Key, result: Result<(), ApiError>) {
    if let Err(error) = result
        && !error.is_not_found()
    {
        tracing::warn!(resource, ?key, %error, "garbage collection failed; the next change tries again");
    }
}

fn delete(api: &Api, resource: &str, key: &Key) -> Result<(), ApiError> {
    api.delete(&target(api, resource, key)?, &DeleteOptions::default()).map(drop)
}

fn target(api: &Api, resource: &str, key: &Key) -> Result<Target, ApiError> {
    api.target(resource, &key.namespace, &key.name)
}

/// Deletes all contents; when nothing is left the namespace itself may go.
fn empty_namespace(api: &Api, namespace: &Object) -> Result<(), ApiError> {
    let mut left = 0;
    for resource in api.catalog().stored().into_iter().filter(|resource| resource.namespaced) {
        let target = api.target(&resource.id, &namespace.key.name, "")?;
        for item in api.list(&target, &ListOptions::default())?.items {
            if !item.is_being_deleted {
                log(&resource.id, &item.key, delete(api, &resource.id, &item.key));
            }
            left += usize::from(api.store.get(&resource.id, &item.key).is_some());
        }
    }
    if left > 0 {
        return Ok(());
    }
    let target =
        Target { subresource: "finalize".into(), ..target(api, "namespaces", &namespace.key)? };
    let patch = Patch::Merge(json!({ "spec": { "finalizers": [] } }));
    api.patch(&target, &patch, &WriteOptions::by("kube-controller-manager")).map(drop)
}

/// Deletes all objects of a kind; when none is left its definition may go.
fn empty_definition(api: &Api, definition: &Object) -> Result<(), ApiError> {
    let id = &definition.key.name;
    if api.catalog().by_id(id).is_some_and(|resource| resource.is_custom()) {
        let mut left = 0;
        for item in api.list(&api.target(id, "", "")?, &ListOptions::default())?.items {
            if !item.is_being_deleted {
                log(id, &item.key, delete(api, id, &item.key));
            }
            left += usize::from(api.store.get(id, &item.key).is_some());
        }
        if left > 0 {
            return Ok(());
        }
    }
    remove_finalizer(api, DEFINITIONS, definition, CLEANUP)
}

fn remove_finalizer(
    api: &Api,
    resource: &str,
    object: &Object,
    name: &str,
) -> Result<(), ApiError> {
    change_metadata(api, resource, &object.key, "finalizers", &|one| one != name)
}

/// Takes the owner off the object's owners.
fn disown(api: &Api, resource: &str, key: &Key, owner: &str) -> Result<(), ApiError> {
    change_metadata(api, resource, key, "ownerReferences", &|one| one["uid"] != owner)
}

fn change_metadata(
    api: &Api,
    resource: &str,
    key: &Key,
    list: &str,
    keep: &dyn Fn(&Value) -> bool,
) -> Result<(), ApiError> {
    let target = target(api, resource, key)?;
    loop {
        let value = api.get(&target)?.value();
        let before = value["metadata"][list].as_array().cloned().unwrap_or_default();
        let after: Vec<&Value> = before.iter().filter(|one| keep(one)).collect();
        let patch = json!({ "metadata": { list: after, "resourceVersion": value["metadata"]["resourceVersion"] } });
        match api.patch(&target, &Patch::Merge(patch), &WriteOptions::by("kube-controller-manager"))
        {
            Err(error) if error.is_conflict() => {}
            result => return result.map(drop),
        }
    }
}
