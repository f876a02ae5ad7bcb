//! The cluster's objects as the lab's own parts see them: the embedded API server without the wire.
//!
//! Kubelets and schedulers talk to the API server over the network; the lab's runner and scheduler
//! live in the same process and call the same functions that requests end in.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use anyhow::{Result, anyhow};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tracing::warn;

use crate::apiserver::{
    Api, ApiError, Change, Cursor, DeleteOptions, Key, Object, Patch, WriteOptions, now,
};

/// Resources by the names of their stores.
pub const PODS: &str = "pods";
pub const NODES: &str = "nodes";
pub const EVENTS: &str = "events";
pub const NAMESPACES: &str = "namespaces";
pub const CONFIG_MAPS: &str = "configmaps";
pub const LEASES: &str = "leases.coordination.k8s.io";
pub const CILIUM_NODES: &str = "ciliumnodes.cilium.io";

/// The namespace of the system's own objects.
pub const KUBE_SYSTEM: &str = "kube-system";
/// Most events a watch takes at once.
const BATCH: usize = 512;

/// The objects of a lab.
#[derive(Clone)]
pub struct Cluster {
    api: Arc<Api>,
}

impl Cluster {
    /// Works on the objects of this API server.
    pub fn new(api: Arc<Api>) -> Self {
        Self { api }
    }

    /// An object, if it is there.
    pub fn find<T: DeserializeOwned>(
        &self,
        resource: &str,
        namespace: &str,
        name: &str,
    ) -> Result<Option<T>> {
        let Some(object) = self.api.store.get(resource, &Key::new(namespace, name)) else {
            return Ok(None);
        };
        Ok(Some(serde_json::from_slice(&object.json)?))
    }

    /// All objects of a resource; those that do not parse are left out with a warning.
    pub fn list<T: DeserializeOwned>(&self, resource: &str) -> Vec<T> {
        let (_, objects) = self.api.store.list(&resource.into());
        objects.values().filter_map(|object| parse(object)).collect()
    }

    /// Creates an object.
    pub fn create(&self, resource: &str, namespace: &str, value: Value) -> Result<()> {
        let target = self.api.target(resource, namespace, "").map_err(said)?;
        self.api.create(&target, value, &WriteOptions::by("cilium-lab")).map_err(said)?;
        Ok(())
    }

    /// Creates an object, or merges `value` into the one that is there.
    pub fn apply(&self, resource: &str, namespace: &str, value: &Value) -> Result<()> {
        let name = value["metadata"]["name"].as_str().unwrap_or_default();
        if self.api.store.get(resource, &Key::new(namespace, name)).is_some() {
            return self.merge(resource, namespace, name, "", value);
        }
        self.create(resource, namespace, value.clone())
    }

    /// Merges `patch` into an object or a subresource of it (RFC 7386).
    pub fn merge(
        &self,
        resource: &str,
        namespace: &str,
        name: &str,
        subresource: &str,
        patch: &Value,
    ) -> Result<()> {
        let mut target = self.api.target(resource, namespace, name).map_err(said)?;
        subresource.clone_into(&mut target.subresource);
        let patch = Patch::Merge(patch.clone());
        self.api.patch(&target, &patch, &WriteOptions::by("cilium-lab")).map_err(said)?;
        Ok(())
    }

    /// Changes a status by a strategic merge: lists keep the entries of others.
    pub fn merge_status(&self, resource: &str, name: &str, patch: &Value) -> Result<()> {
        let mut target = self.api.target(resource, "", name).map_err(said)?;
        "status".clone_into(&mut target.subresource);
        let patch = Patch::Strategic(patch.clone());
        self.api.patch(&target, &patch, &WriteOptions::by("cilium-lab")).map_err(said)?;
        Ok(())
    }

    /// Writes a pod's status; a pod that has been replaced by another of its name is left alone.
    pub fn write_pod_status(
        &self,
        namespace: &str,
        name: &str,
        uid: &str,
        status: &PodStatus,
    ) -> Result<()> {
        let patch = json!({"metadata": {"uid": uid}, "status": status});
        match self.merge(PODS, namespace, name, "status", &patch) {
            Err(error) if self.is_pod(namespace, name, uid) => Err(error),
            _ => Ok(()),
        }
    }

    /// Assigns a pod to a node, unless it has one or is gone.
    pub fn bind(&self, namespace: &str, name: &str, uid: &str, node: &str) -> Result<()> {
        let target = self.api.target(PODS, namespace, name).map_err(said)?;
        let binding = json!({"target": {"kind": "Node", "name": node}});
        match self.api.bind(&target, &binding, &WriteOptions::by("cilium-lab-scheduler")) {
            Err(error) if self.is_pod(namespace, name, uid) && !error.is_conflict() => Err(said(error)),
            _ => Ok(()),
        }
    }

    /// Applies an object as `kubectl apply --server-side` does. Says where it is.
    pub fn apply_manifest(&self, mut object: Value) -> Result<Applied> {
        let api_version = object["apiVersion"].as_str().unwrap_or_default().to_owned();
        let kind = object["kind"].as_str().unwrap_or_default().to_owned();
        let catalog = self.api.catalog();
        let resource = catalog.all().find(|r| r.api_version() == api_version && *r.kind == *kind);
        let resource = resource.ok_or_else(|| {
            anyhow!("no matches for kind {kind:?} in version {api_version:?}: the lab does not serve it")
        })?;
        let meta = &mut object["metadata"];
        let name = meta["name"].as_str().unwrap_or_default().to_owned();
        let mut namespace = String::new();
        if resource.namespaced {
            namespace = meta["namespace"].as_str().unwrap_or("default").to_owned();
            meta["namespace"] = json!(namespace);
        }
        let target = self.api.target(&resource.id, &namespace, &name).map_err(said)?;
        let mut options = WriteOptions::by("cilium-lab");
        options.force = true;
        self.api.patch(&target, &Patch::Apply(object), &options).map_err(said)?;
        Ok(Applied { kind, namespace, name })
    }

    /// Whether this very pod still exists.
    fn is_pod(&self, namespace: &str, name: &str, uid: &str) -> bool {
        self.api.store.get(PODS, &Key::new(namespace, name)).is_some_and(|pod| *pod.uid == *uid)
    }

    /// Removes the object of a pod that has ended.
    pub fn delete_pod(&self, namespace: &str, name: &str, uid: &str) {
        let options = DeleteOptions {
            grace_period_seconds: Some(0),
            uid: Some(uid.to_owned()),
            ..DeleteOptions::default()
        };
        let deleted = self.api.target(PODS, namespace, name).and_then(|t| self.api.delete(&t, &options));
        if let (Err(error), true) = (deleted, self.is_pod(namespace, name, uid)) {
            warn!(pod = name, namespace, "remove the pod's object: {}", said(error));
        }
    }

    /// The text values of a ConfigMap or a Secret.
    pub fn text_data(&self, kind: &str, namespace: &str, name: &str) -> Option<BTreeMap<String, String>> {
        let resource = if kind == "secret" { "secrets" } else { CONFIG_MAPS };
        let object = self.find::<Value>(resource, namespace, name).ok()??;
        let data = object["data"].as_object().cloned().unwrap_or_default();
        let text = |value: &Value| {
            let text = value.as_str()?;
            match kind {
                "secret" => String::from_utf8(BASE64.decode(text).ok()?).ok(),
                _ => Some(text.to_owned()),
            }
        };
        Some(data.iter().filter_map(|(key, value)| Some((key.clone(), text(value)?))).collect())
    }

    /// Records something about a pod that its user should know.
    pub fn pod_event(&self, pod: &Pod, source: &str, kind: &str, reason: &str, message: &str) {
        let meta = &pod.metadata;
        let namespace = meta.namespace.as_deref().unwrap_or("default");
        let name = meta.name.as_deref().unwrap_or_default();
        let time = now();
        let event = json!({
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"generateName": format!("{name}."), "namespace": namespace},
            "involvedObject": {
                "apiVersion": "v1", "kind": "Pod", "namespace": namespace, "name": name,
                "uid": meta.uid, "resourceVersion": meta.resource_version,
            },
            "type": kind, "reason": reason, "message": message, "count": 1,
            "firstTimestamp": time, "lastTimestamp": time,
            "source": {"component": "cilium-lab", "host": source},
            "reportingComponent": "cilium-lab", "reportingInstance": source,
        });
        if let Err(error) = self.create(EVENTS, namespace, event) {
            // The pod's namespace may be about to go, with everything in it.
            tracing::debug!(pod = name, "event {reason}: {error:#}");
        }
    }

    /// All objects of a resource now and every change from then on.
    pub fn watch(&self, resource: &str) -> Watch {
        let (version, objects) = self.api.store.list(&resource.into());
        let cursor = self.api.store.watch(&resource.into(), version);
        let first = objects.values().map(|object| (Change::Added, object.clone())).collect();
        Watch { api: self.api.clone(), resource: resource.to_owned(), cursor, next: first, known: HashMap::new() }
    }
}

/// An object of a manifest that the API server has taken.
#[derive(Clone, Debug)]
pub struct Applied {
    /// Its kind.
    pub kind: String,
    /// Its namespace, empty for cluster-wide objects.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

fn parse<T: DeserializeOwned>(object: &Object) -> Option<T> {
    match serde_json::from_slice(&object.json) {
        Ok(value) => Some(value),
        Err(error) => {
            warn!(name = %object.key.name, "an object does not have the form of its kind: {error}");
            None
        }
    }
}

fn said(error: ApiError) -> anyhow::Error {
    anyhow!("{error}")
}

/// Follows a resource. Changes may be merged when the follower is slow, but the last one of an
/// object is always told.
pub struct Watch {
    api: Arc<Api>,
    resource: String,
    cursor: Cursor,
    next: Vec<(Change, Arc<Object>)>,
    known: HashMap<Key, Arc<Object>>,
}

impl Watch {
    /// The next changes; at first every object that is there already.
    pub async fn changes(&mut self) -> Vec<(Change, Arc<Object>)> {
        loop {
            if !self.next.is_empty() {
                let changes = std::mem::take(&mut self.next);
                for (change, object) in &changes {
                    match change {
                        Change::Deleted => self.known.remove(&object.key),
                        _ => self.known.insert(object.key.clone(), object.clone()),
                    };
                }
                return changes;
            }
            match self.api.store.read(&mut self.cursor, BATCH) {
                Some(events) if events.is_empty() => self.cursor.changed().await,
                Some(events) => self.next = events.into_iter().map(|e| (e.change, e.object)).collect(),
                None => self.list_again(),
            }
        }
    }

    /// Too far behind: compare with what is there now.
    fn list_again(&mut self) {
        let (version, objects) = self.api.store.list(&self.resource.as_str().into());
        self.cursor = self.api.store.watch(&self.resource.as_str().into(), version);
        let gone = self.known.values().filter(|old| {
            objects.get(&old.key).is_none_or(|new| new.uid != old.uid)
        });
        let gone = gone.map(|old| (Change::Deleted, old.clone()));
        let there = objects.values().map(|object| (Change::Modified, object.clone()));
        self.next = gone.chain(there).collect();
    }
}

/// Parses the object of a change.
pub fn typed<T: DeserializeOwned>(object: &Object) -> Option<T> {
    parse(object)
}
