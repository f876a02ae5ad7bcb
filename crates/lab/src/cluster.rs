//! The cluster's objects as the lab's own parts see them: the embedded API server without the wire.
//!
//! Kubelets and schedulers talk to the API server over the network; the lab's runner and scheduler
//! live in the same process and call the same functions that requests end in.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result, anyhow};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use k8s_openapi::api::core::v1::{Pod, PodStatus, Service};
use k8s_openapi::jiff::Timestamp;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tracing::warn;

use crate::apiserver::{
    Api, ApiError, BoundObject, Cursor, DeleteOptions, Event, Key, Object, Patch, TokenRequest,
    WriteOptions, now,
};

/// Resources by the names of their stores.
pub const PODS: &str = "pods";
pub const NODES: &str = "nodes";
pub const EVENTS: &str = "events";
pub const CONFIG_MAPS: &str = "configmaps";
pub const SECRETS: &str = "secrets";
pub const SERVICES: &str = "services";
pub const CLAIMS: &str = "persistentvolumeclaims";
pub const LEASES: &str = "leases.coordination.k8s.io";
pub const CILIUM_NODES: &str = "ciliumnodes.cilium.io";

/// The namespace of the system's own objects.
pub const KUBE_SYSTEM: &str = "kube-system";
/// How writes of the lab are marked.
const MANAGER: &str = "cilium-lab";
/// Most events that a watch takes at once.
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
    pub fn find(&self, resource: &str, namespace: &str, name: &str) -> Option<Value> {
        self.api.store.get(resource, &Key::new(namespace, name)).map(|object| object.value())
    }

    /// Creates an object where its metadata says.
    pub fn create(&self, resource: &str, object: Value) -> Result<()> {
        let namespace = object["metadata"]["namespace"].as_str().unwrap_or_default().to_owned();
        let target = self.api.target(resource, &namespace, "").map_err(said)?;
        self.api.create(&target, object, &WriteOptions::by(MANAGER)).map(drop).map_err(said)
    }

    /// Creates an object or takes over the one that is there, as `kubectl apply --server-side`.
    pub fn apply(&self, resource: &str, object: Value) -> Result<()> {
        let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default();
        let target = self.api.target(resource, text("namespace"), text("name")).map_err(said)?;
        let options = WriteOptions { force: true, ..WriteOptions::by(MANAGER) };
        self.api.patch(&target, &Patch::Apply(object), &options).map(drop).map_err(said)
    }

    /// Merges `patch` into an object or a subresource of it (RFC 7386).
    pub fn merge(
        &self,
        resource: &str,
        namespace: &str,
        name: &str,
        subresource: &str,
        patch: Value,
    ) -> Result<()> {
        let mut target = self.api.target(resource, namespace, name).map_err(said)?;
        subresource.clone_into(&mut target.subresource);
        self.api
            .patch(&target, &Patch::Merge(patch), &WriteOptions::by(MANAGER))
            .map(drop)
            .map_err(said)
    }

    /// Sets fields of a cluster-wide object's status. Conditions of other types stay.
    pub fn write_status(&self, resource: &str, name: &str, status: &Value) -> Result<()> {
        let mut target = self.api.target(resource, "", name).map_err(said)?;
        loop {
            target.subresource.clear();
            let mut object = self.api.get(&target).map_err(said)?.value();
            let types: Vec<Value> = conditions(status).map(|c| c["type"].clone()).collect();
            let others = conditions(&object["status"]).filter(|c| !types.contains(&c["type"]));
            let all: Vec<Value> = others.chain(conditions(status)).cloned().collect();
            for (key, value) in status.as_object().into_iter().flatten() {
                object["status"][key] = value.clone();
            }
            object["status"]["conditions"] = json!(all);
            "status".clone_into(&mut target.subresource);
            match self.api.update(&target, object, &WriteOptions::by(MANAGER)) {
                // Somebody else was faster: their change is to be kept.
                Err(error) if error.is_conflict() => {}
                result => return result.map(drop).map_err(said),
            }
        }
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
        match self.merge(PODS, namespace, name, "status", patch) {
            Err(error) if self.is_pod(namespace, name, uid) => Err(error),
            _ => Ok(()),
        }
    }

    /// Assigns a pod to a node, unless it has one or is gone.
    pub fn bind(&self, namespace: &str, name: &str, uid: &str, node: &str) -> Result<()> {
        let target = self.api.target(PODS, namespace, name).map_err(said)?;
        let binding = json!({"target": {"kind": "Node", "name": node}});
        match self.api.bind(&target, &binding, &WriteOptions::by("cilium-lab-scheduler")) {
            Err(error) if self.is_pod(namespace, name, uid) && !error.is_conflict() => {
                Err(said(error))
            }
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
            anyhow!(
                "no matches for kind {kind:?} in version {api_version:?}: the lab does not serve it"
            )
        })?;
        let meta = &mut object["metadata"];
        let name = meta["name"].as_str().unwrap_or_default().to_owned();
        let mut namespace = String::new();
        if resource.namespaced {
            namespace = meta["namespace"].as_str().unwrap_or("default").to_owned();
            meta["namespace"] = json!(namespace);
        }
        self.apply(&resource.id, object).with_context(|| format!("apply {kind} {name}"))?;
        Ok(Applied { kind, namespace, name })
    }

    /// Whether this very pod still exists.
    fn is_pod(&self, namespace: &str, name: &str, uid: &str) -> bool {
        self.api.store.get(PODS, &Key::new(namespace, name)).is_some_and(|pod| *pod.uid == *uid)
    }

    /// Asks for the end of a pod, as `kubectl delete --wait=false` does.
    pub fn begin_pod_deletion(&self, namespace: &str, name: &str) -> Result<()> {
        let target = self.api.target(PODS, namespace, name).map_err(said)?;
        self.api.delete(&target, &DeleteOptions::default()).map(drop).map_err(said)
    }

    /// Removes the object of a pod that has ended.
    pub fn delete_pod(&self, namespace: &str, name: &str, uid: &str) {
        let options = DeleteOptions {
            grace_period_seconds: Some(0),
            uid: Some(uid.to_owned()),
            ..DeleteOptions::default()
        };
        let deleted =
            self.api.target(PODS, namespace, name).and_then(|t| self.api.delete(&t, &options));
        if let (Err(error), true) = (deleted, self.is_pod(namespace, name, uid)) {
            warn!(pod = name, namespace, "remove the pod's object: {}", said(error));
        }
    }

    /// The values of a ConfigMap or a Secret.
    pub fn data(
        &self,
        kind: &str,
        namespace: &str,
        name: &str,
    ) -> Option<BTreeMap<String, Vec<u8>>> {
        let resource = if kind == "secret" { SECRETS } else { CONFIG_MAPS };
        let object = self.find(resource, namespace, name)?;
        let field = |field: &str, encoded: bool| -> Vec<(String, Vec<u8>)> {
            let bytes = |text: &str| match encoded {
                true => BASE64.decode(text).ok(),
                false => Some(text.as_bytes().to_vec()),
            };
            let pairs = object[field].as_object().into_iter().flatten();
            pairs.filter_map(|(k, v)| Some((k.clone(), bytes(v.as_str()?)?))).collect()
        };
        let data = field("data", kind == "secret");
        Some(data.into_iter().chain(field("binaryData", true)).collect())
    }

    /// The text values of a ConfigMap or a Secret.
    pub fn text_data(
        &self,
        kind: &str,
        namespace: &str,
        name: &str,
    ) -> Option<BTreeMap<String, String>> {
        let data = self.data(kind, namespace, name)?.into_iter();
        Some(data.filter_map(|(key, value)| Some((key, String::from_utf8(value).ok()?))).collect())
    }

    /// The Services of a namespace that have an address.
    pub fn services(&self, namespace: &str) -> Vec<Service> {
        let (_, objects) = self.api.store.list(&SERVICES.into());
        let ours = objects.values().filter(|object| *object.key.namespace == *namespace);
        let services = ours.filter_map(|object| serde_json::from_slice(&object.json).ok());
        services.filter(|service: &Service| cluster_ip(service).is_some()).collect()
    }

    /// A token of a pod's service account, bound to the pod.
    pub fn service_account_token(&self, pod: &Pod, audience: &str, seconds: i64) -> Result<Token> {
        let meta = &pod.metadata;
        let account = pod.spec.as_ref().and_then(|spec| spec.service_account_name.clone());
        let request = TokenRequest {
            namespace: meta.namespace.clone().unwrap_or_default(),
            service_account: account.unwrap_or_else(|| "default".to_owned()),
            audiences: Some(audience.to_owned()).filter(|a| !a.is_empty()).into_iter().collect(),
            expiration_seconds: seconds,
            bound: Some(BoundObject {
                kind: "Pod".to_owned(),
                name: meta.name.clone().unwrap_or_default(),
                uid: meta.uid.clone().unwrap_or_default(),
            }),
        };
        let issued = self.api.create_token(&request).map_err(said)?;
        let left = issued.expires.duration_since(Timestamp::now());
        let left = Duration::try_from(left).unwrap_or_default();
        // As kubelets do: with a fifth of its time left.
        Ok(Token { text: issued.token, renew_at: SystemTime::now() + left * 4 / 5 })
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
        if let Err(error) = self.create(EVENTS, event) {
            // The pod's namespace may be about to go, with everything in it.
            tracing::debug!(pod = name, "event {reason}: {error:#}");
        }
    }

    /// All objects of a resource now and every change from then on. A custom resource need not be
    /// defined yet.
    pub fn watch(&self, resource: &str) -> Watch {
        let mut watch = Watch {
            api: self.api.clone(),
            resource: resource.into(),
            cursor: self.api.store.watch(&resource.into(), 0),
            next: VecDeque::new(),
            known: HashMap::new(),
        };
        watch.list();
        watch
    }
}

/// The conditions in a status.
fn conditions(status: &Value) -> impl Iterator<Item = &Value> {
    status["conditions"].as_array().into_iter().flatten()
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

/// A token of a service account.
#[derive(Clone, Debug)]
pub struct Token {
    /// What is shown to the API server.
    pub text: String,
    /// When another one should be taken.
    pub renew_at: SystemTime,
}

/// The address of a Service that has one.
pub fn cluster_ip(service: &Service) -> Option<&str> {
    let address = service.spec.as_ref()?.cluster_ip.as_deref()?;
    Some(address).filter(|address| !address.is_empty() && *address != "None")
}

fn said(error: ApiError) -> anyhow::Error {
    anyhow!("{error}")
}

/// A change of an object.
#[derive(Clone, Debug)]
pub struct Change {
    /// The latest object.
    pub object: Arc<Object>,
    /// Whether it is gone.
    pub gone: bool,
}

impl Change {
    /// The object's name.
    pub fn name(&self) -> &str {
        &self.object.key.name
    }

    /// The object's namespace.
    pub fn namespace(&self) -> &str {
        &self.object.key.namespace
    }

    /// The object in the form of its kind; one that does not have it is left out with a warning.
    pub fn typed<T: DeserializeOwned>(&self) -> Option<T> {
        match serde_json::from_slice(&self.object.json) {
            Ok(value) => Some(value),
            Err(error) => {
                warn!(name = self.name(), "an object does not have the form of its kind: {error}");
                None
            }
        }
    }
}

/// Follows a resource. A follower that is too slow for the history sees the latest state of
/// everything instead, and what has gone.
pub struct Watch {
    api: Arc<Api>,
    resource: Arc<str>,
    cursor: Cursor,
    next: VecDeque<Change>,
    known: HashMap<Key, Arc<Object>>,
}

impl Watch {
    /// The next change; at first every object that is there already.
    pub async fn next(&mut self) -> Change {
        loop {
            if let Some(change) = self.next.pop_front() {
                return change;
            }
            match self.api.store.read(&mut self.cursor, BATCH) {
                Some(events) if events.is_empty() => self.cursor.changed().await,
                Some(events) => events.into_iter().for_each(|event| self.tell(event)),
                None => self.list(),
            }
        }
    }

    fn tell(&mut self, Event { change, object, .. }: Event) {
        let gone = change == crate::apiserver::Change::Deleted;
        self.next.push_back(Change { object: object.clone(), gone });
        match gone {
            true => self.known.remove(&object.key),
            false => self.known.insert(object.key.clone(), object),
        };
    }

    /// Begins, or begins again: compares with what is there now.
    fn list(&mut self) {
        let (version, objects) = self.api.store.list(&self.resource);
        self.cursor = self.api.store.watch(&self.resource, version);
        let same = |old: &Object| objects.get(&old.key).is_some_and(|new| new.uid == old.uid);
        let gone = self.known.values().filter(|old| !same(old));
        self.next.extend(gone.map(|old| Change { object: old.clone(), gone: true }));
        self.next.extend(objects.values().map(|new| Change { object: new.clone(), gone: false }));
        self.known = objects.iter().map(|(key, object)| (key.clone(), object.clone())).collect();
    }
}
