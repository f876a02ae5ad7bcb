//! The rules of each kind: defaults, what a write may change, how deletion goes.

use serde_json::{Value, json};

use super::api::{DeleteOptions, FieldValidation, Propagation, Target};
use super::object;
use super::resource::Resource;
use super::schema::object_at;
use super::status::{ApiError, FieldError};
use super::{crd, names, pod, roles, service, volume, workload};

/// Seconds that a pod has to end when it does not say.
const GRACE_PERIOD_DEFAULT: i64 = 30;

/// Checks that the body is an object of this resource that can be read at all, and drops
/// what is unknown. Gives warnings.
pub(super) fn decode(
    resource: &Resource,
    value: &mut Value,
    validation: FieldValidation,
) -> Result<Vec<String>, ApiError> {
    if !value.is_object() {
        return Err(ApiError::bad_request("the body of the request is not a JSON object"));
    }
    let (kind, version) = (&resource.kind, resource.api_version());
    for (field, expected) in [("apiVersion", version.as_str()), ("kind", kind)] {
        match value[field].as_str().unwrap_or_default() {
            "" => value[field] = json!(expected),
            got if got == expected => {}
            got => {
                let words = if field == "kind" { "kind" } else { "API version" };
                let message = format!(
                    "the {words} in the data ({got}) does not match the expected {words} ({expected})"
                );
                return Err(ApiError::bad_request(message));
            }
        }
    }
    object_at(value, "metadata");
    let unreadable = |why: String| {
        let version = &resource.version;
        ApiError::bad_request(format!(
            "{kind} in version \"{version}\" cannot be handled as a {kind}: {why}"
        ))
    };
    let schema = resource.schema();
    if resource.is_custom() {
        let meta = super::schema::core(super::schema::OBJECT_META);
        meta.normalise(&mut value["metadata"]);
        if let Some(error) = meta.validate_types(&value["metadata"]).first() {
            return Err(unreadable(format!("metadata.{}", error.detail)));
        }
    } else {
        schema.normalise(value);
        if let Some(error) = schema.validate_types(value).first() {
            return Err(unreadable(error.detail.clone()));
        }
    }
    let unknown = schema.prune(value);
    let fields: Vec<String> =
        unknown.iter().map(|path| format!("unknown field \"{path}\"")).collect();
    match validation {
        FieldValidation::Strict if !fields.is_empty() => {
            Err(unreadable(format!("strict decoding error: {}", fields.join(", "))))
        }
        FieldValidation::Warn => Ok(fields),
        _ => Ok(Vec::new()),
    }
}

/// What every new object gets.
pub(super) fn stamp_new(value: &mut Value) {
    let meta = object_at(value, "metadata");
    for name in [
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "resourceVersion",
        "selfLink",
        "generation",
    ] {
        meta.remove(name);
    }
    meta.insert("uid".into(), json!(object::new_uid()));
    meta.insert("creationTimestamp".into(), json!(object::now()));
}

/// Defaults of a new object, and what clients may not set.
pub(super) fn prepare_create(resource: &Resource, value: &mut Value) {
    if has_generation(resource) {
        value["metadata"]["generation"] = json!(1);
    }
    match &*resource.id {
        "namespaces" => {
            let name = value["metadata"]["name"].clone();
            object_at(&mut value["metadata"], "labels")
                .insert("kubernetes.io/metadata.name".into(), name);
            value["spec"] = json!({ "finalizers": ["kubernetes"] });
            value["status"] = json!({ "phase": "Active" });
        }
        "pods" => {
            value["status"] =
                json!({ "phase": "Pending", "qosClass": pod::qos_class(&value["spec"]) });
        }
        "services" => value["status"] = json!({ "loadBalancer": {} }),
        crd::DEFINITIONS => {
            value["status"] = json!({});
            let meta = object_at(value, "metadata");
            let list = meta.entry("finalizers").or_insert_with(|| json!([]));
            if let Some(list) = list.as_array_mut()
                && !list.iter().any(|one| one == crd::CLEANUP)
            {
                list.push(json!(crd::CLEANUP));
            }
        }
        // Kubelets register their node with its status.
        "nodes" => {}
        _ if resource.has_status => {
            if let Some(map) = value.as_object_mut() {
                map.remove("status");
            }
        }
        _ => {}
    }
    default(resource, value);
    if *resource.id == *"jobs.batch" {
        workload::select_job_pods(value);
    }
}

/// Defaults that hold for new and for changed objects.
fn default(resource: &Resource, value: &mut Value) {
    match &*resource.id {
        "pods" => pod::default(value),
        "secrets" => default_secret(value),
        "services" => service::default(value),
        "nodes" => {
            object_at(value, "spec");
        }
        "customresourcedefinitions.apiextensions.k8s.io" => crd::default(value),
        "networkpolicies.networking.k8s.io" => default_network_policy(value),
        _ if resource.is_custom() => resource.schema().fill_defaults(value),
        id if *resource.group == *roles::GROUP => roles::default(id, value),
        id if volume::is_about_storage(id) => volume::default(id, value),
        id if workload::is_workload(id) => workload::default(id, value),
        _ => {}
    }
}

/// A policy that does not say is about what comes in, and about what goes out if it has rules for it.
fn default_network_policy(value: &mut Value) {
    let spec = object_at(value, "spec");
    let has_egress = spec.get("egress").and_then(Value::as_array).is_some_and(|l| !l.is_empty());
    let types: &[&str] = if has_egress { &["Ingress", "Egress"] } else { &["Ingress"] };
    spec.entry("policyTypes").or_insert_with(|| json!(types));
    for direction in ["ingress", "egress"] {
        let rules = spec.get_mut(direction).and_then(Value::as_array_mut).into_iter().flatten();
        for port in rules.filter_map(|rule| rule["ports"].as_array_mut()).flatten() {
            if let Some(port) = port.as_object_mut() {
                port.entry("protocol").or_insert_with(|| json!("TCP"));
            }
        }
    }
}

/// Plain text becomes data.
fn default_secret(value: &mut Value) {
    use base64::Engine as _;
    let plain = value.as_object_mut().and_then(|map| map.remove("stringData"));
    for (key, text) in plain.as_ref().and_then(Value::as_object).into_iter().flatten() {
        let bytes = text.as_str().unwrap_or_default();
        let encoded = base64::engine::general_purpose::STANDARD.encode(bytes);
        object_at(value, "data").insert(key.clone(), json!(encoded));
    }
    if value["type"].as_str().unwrap_or_default().is_empty() {
        value["type"] = json!("Opaque");
    }
}

/// What is wrong with a new object.
pub(super) fn validate(resource: &Resource, value: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let name = value["metadata"]["name"].as_str().unwrap_or_default();
    match &*resource.id {
        "namespaces" | "services" => names::check_label("metadata.name", name, &mut errors),
        _ if *resource.group == *roles::GROUP => {
            names::check_segment("metadata.name", name, &mut errors);
        }
        _ => names::check_subdomain("metadata.name", name, &mut errors),
    }
    validate_content(resource, value, None, &mut errors);
    errors
}

fn validate_content(
    resource: &Resource,
    value: &Value,
    old: Option<&Value>,
    errors: &mut Vec<FieldError>,
) {
    names::check_metadata(&value["metadata"], errors);
    match &*resource.id {
        "pods" => pod::validate(value, errors),
        "configmaps" => {
            for field in ["data", "binaryData"] {
                for key in value[field].as_object().into_iter().flatten().map(|(key, _)| key) {
                    names::check_config_key(field, key, errors);
                }
            }
        }
        "secrets" => validate_secret(value, errors),
        "services" => service::validate(value, errors),
        "customresourcedefinitions.apiextensions.k8s.io" => crd::validate(value, errors),
        _ if resource.is_custom() => {
            errors.extend(resource.schema().validate_with_rules(value, old));
        }
        id if *resource.group == *roles::GROUP => roles::validate(id, value, errors),
        id if volume::is_about_storage(id) => volume::validate(id, value, errors),
        id if workload::is_workload(id) => workload::validate(id, value, errors),
        _ => {}
    }
}

fn validate_secret(value: &Value, errors: &mut Vec<FieldError>) {
    use base64::Engine as _;
    for (key, text) in value["data"].as_object().into_iter().flatten() {
        names::check_config_key("data", key, errors);
        let text = text.as_str().unwrap_or_default();
        if base64::engine::general_purpose::STANDARD.decode(text).is_err() {
            let field = format!("data[{key}]");
            errors.push(FieldError::invalid(field, "<secret>", "must be encoded in base64"));
        }
    }
}

/// Makes `new` a successor of `old`: what the request may not touch comes from `old`.
pub(super) fn prepare_update(target: &Target, new: &mut Value, old: &Value) {
    let resource = &target.resource;
    keep_metadata(new, old);
    match target.subresource.as_str() {
        "status" => {
            let status = new.as_object_mut().and_then(|map| map.remove("status"));
            let mut meta = std::mem::take(&mut new["metadata"]);
            if resource.is_custom() {
                let managed = meta["managedFields"].take();
                meta = old["metadata"].clone();
                if managed.is_array() {
                    meta["managedFields"] = managed;
                }
            } else {
                keep(&mut meta, &old["metadata"], &["ownerReferences", "finalizers"]);
            }
            *new = old.clone();
            new["metadata"] = meta;
            match (status, new.as_object_mut()) {
                (Some(status), Some(map)) => map.insert("status".into(), status),
                (None, Some(map)) => map.remove("status"),
                _ => None,
            };
        }
        "finalize" => {
            let finalizers = new["spec"]["finalizers"].take();
            *new = old.clone();
            new["spec"]["finalizers"] = finalizers;
        }
        "binding" => {}
        _ => {
            if resource.has_status {
                keep(new, old, &["status"]);
            }
            if *resource.id == *"namespaces" {
                keep(new, old, &["spec"]);
            }
            if *resource.id == *"pods" {
                keep_assigned(new, old);
            }
            if *resource.id == *"services" {
                service::keep_allocated(new, old);
            }
        }
    }
    default(resource, new);
}

/// Clients that replace a pod by its manifest do not name what was filled in for them.
fn keep_assigned(new: &mut Value, old: &Value) {
    for name in ["nodeName", "serviceAccountName", "serviceAccount", "tolerations"] {
        if new["spec"].get(name).is_none() {
            keep(&mut new["spec"], &old["spec"], &[name]);
        }
    }
}

/// Metadata that only the server sets.
fn keep_metadata(new: &mut Value, old: &Value) {
    let (new, old) = (&mut new["metadata"], &old["metadata"]);
    keep(
        new,
        old,
        &[
            "name",
            "namespace",
            "uid",
            "creationTimestamp",
            "deletionTimestamp",
            "deletionGracePeriodSeconds",
            "generation",
            "generateName",
            "selfLink",
        ],
    );
    if new.get("managedFields").is_none() {
        keep(new, old, &["managedFields"]);
    }
}

/// Takes fields over from `old`, also their absence.
fn keep(new: &mut Value, old: &Value, fields: &[&str]) {
    for field in fields {
        match old.get(field) {
            Some(value) => new[field] = value.clone(),
            None => {
                if let Some(map) = new.as_object_mut() {
                    map.remove(*field);
                }
            }
        }
    }
}

/// What is wrong with a change.
pub(super) fn validate_update(target: &Target, new: &Value, old: &Value) -> Vec<FieldError> {
    let resource = &target.resource;
    let mut errors = Vec::new();
    validate_content(resource, new, Some(old), &mut errors);
    if old["metadata"]["deletionTimestamp"].is_string() {
        let none = Vec::new();
        let before = old["metadata"]["finalizers"].as_array().unwrap_or(&none);
        let added: Vec<&str> = new["metadata"]["finalizers"]
            .as_array()
            .into_iter()
            .flatten()
            .filter(|name| !before.contains(name))
            .filter_map(Value::as_str)
            .collect();
        if !added.is_empty() {
            let detail = format!(
                "no new finalizers can be added if the object is being deleted, found new finalizers []string{{{:?}}}",
                added.join(", ")
            );
            errors.push(FieldError::forbidden("metadata.finalizers", detail));
        }
    }
    match &*resource.id {
        "pods" if target.subresource.is_empty() => pod::validate_update(new, old, &mut errors),
        "configmaps" | "secrets" => validate_immutable_data(new, old, &mut errors),
        "services" => service::validate_update(new, old, &mut errors),
        id if workload::is_workload(id) => workload::validate_update(id, new, old, &mut errors),
        id if *resource.group == *roles::GROUP => roles::validate_update(id, new, old, &mut errors),
        id if volume::is_about_storage(id) => volume::validate_update(id, new, old, &mut errors),
        "nodes" => {
            let before = &old["spec"]["podCIDRs"];
            if before.as_array().is_some_and(|list| !list.is_empty())
                && new["spec"]["podCIDRs"] != *before
            {
                let detail = "node updates may not change podCIDR except from \"\" to valid";
                errors.push(FieldError::forbidden("spec.podCIDRs", detail));
            }
        }
        "customresourcedefinitions.apiextensions.k8s.io" => {
            crd::validate_update(new, old, &mut errors);
        }
        _ => {}
    }
    errors
}

fn validate_immutable_data(new: &Value, old: &Value, errors: &mut Vec<FieldError>) {
    if old["immutable"] == true {
        let detail = "field is immutable when `immutable` is set";
        if new["immutable"] != true {
            errors.push(FieldError::forbidden("immutable", detail));
        }
        for field in ["data", "binaryData"] {
            if new[field] != old[field] {
                errors.push(FieldError::forbidden(field, detail));
            }
        }
    }
    if new["type"] != old["type"] {
        errors.push(FieldError::invalid("type", new["type"].clone(), "field is immutable"));
    }
}

fn has_generation(resource: &Resource) -> bool {
    resource.is_custom()
        || resource.is("", "pods")
        || workload::is_workload(&resource.id)
        || resource.is("apiextensions.k8s.io", "customresourcedefinitions")
}

/// Counts changes of what is wanted.
pub(super) fn raise_generation(resource: &Resource, new: &mut Value, old: &Value) {
    if !has_generation(resource) {
        return;
    }
    let wanted = |value: &Value| -> Vec<(String, Value)> {
        let map = value.as_object().into_iter().flatten();
        map.filter(|(name, _)| *name != "metadata" && !(resource.has_status && *name == "status"))
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect()
    };
    let deleting = |value: &Value| value["metadata"]["deletionTimestamp"].is_string();
    if wanted(new) != wanted(old) || deleting(new) != deleting(old) {
        let generation = old["metadata"]["generation"].as_i64().unwrap_or(0) + 1;
        new["metadata"]["generation"] = json!(generation);
    }
}

/// A deleted object that nothing holds any more.
pub(super) fn is_finished(resource: &Resource, value: &Value) -> bool {
    let meta = &value["metadata"];
    let empty = |list: &Value| list.as_array().is_none_or(Vec::is_empty);
    meta["deletionTimestamp"].is_string()
        && empty(&meta["finalizers"])
        && match &*resource.id {
            "pods" => meta["deletionGracePeriodSeconds"].as_i64().unwrap_or(0) == 0,
            "namespaces" => empty(&value["spec"]["finalizers"]),
            _ => true,
        }
}

/// How a deletion goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Deletion {
    /// The object goes at once.
    Now,
    /// The object stays, marked, until somebody is done with it.
    Pending,
}

/// Marks `value` as being deleted. `None`: it is already, and this request changes nothing.
pub(super) fn begin_deletion(
    resource: &Resource,
    value: &mut Value,
    options: &DeleteOptions,
) -> Option<Deletion> {
    let going = value["metadata"]["deletionTimestamp"].is_string();
    if !going {
        let finalizer = match options.propagation {
            Propagation::Background => None,
            Propagation::Foreground => Some("foregroundDeletion"),
            Propagation::Orphan => Some("orphan"),
        };
        if let Some(finalizer) = finalizer {
            let meta = object_at(value, "metadata");
            let list = meta.entry("finalizers").or_insert_with(|| json!([]));
            list.as_array_mut()?.push(json!(finalizer));
        }
    }
    let grace = match &*resource.id {
        "pods" => grace_period(value, options),
        _ => 0,
    };
    let meta = &mut value["metadata"];
    if going {
        let before = meta["deletionGracePeriodSeconds"].as_i64().unwrap_or(0);
        if options.grace_period_seconds.is_none() || grace >= before {
            return is_finished(resource, value).then_some(Deletion::Now);
        }
    }
    meta["deletionTimestamp"] = json!(object::timestamp(grace));
    meta["deletionGracePeriodSeconds"] = json!(grace);
    if *resource.id == *"namespaces" {
        value["status"]["phase"] = json!("Terminating");
        value["metadata"].as_object_mut()?.remove("deletionGracePeriodSeconds");
    }
    if *resource.id == *crd::DEFINITIONS {
        crd::begin_deletion(value);
    }
    if !going && has_generation(resource) {
        let generation = value["metadata"]["generation"].as_i64().unwrap_or(0) + 1;
        value["metadata"]["generation"] = json!(generation);
    }
    Some(if is_finished(resource, value) { Deletion::Now } else { Deletion::Pending })
}

/// Seconds that the pod's node has to end it; none when there is nothing to end.
fn grace_period(pod: &Value, options: &DeleteOptions) -> i64 {
    let over =
        ["Succeeded", "Failed"].contains(&pod["status"]["phase"].as_str().unwrap_or_default());
    let assigned = !pod["spec"]["nodeName"].as_str().unwrap_or_default().is_empty();
    if over || !assigned {
        return 0;
    }
    let own = pod["spec"]["terminationGracePeriodSeconds"].as_i64();
    options.grace_period_seconds.or(own).unwrap_or(GRACE_PERIOD_DEFAULT).max(0)
}

/// Sets one of the conditions of a status, with the time if it changes.
pub(super) fn set_condition(
    status: &mut Value,
    kind: &str,
    value: &str,
    reason: &str,
    message: &str,
) {
    let conditions = object_at_list(status, "conditions");
    let mut condition =
        json!({ "type": kind, "status": value, "lastTransitionTime": object::now() });
    for (name, text) in [("reason", reason), ("message", message)] {
        if !text.is_empty() {
            condition[name] = json!(text);
        }
    }
    match conditions.iter_mut().find(|condition| condition["type"] == kind) {
        Some(existing) => {
            if existing["status"] == condition["status"] {
                condition["lastTransitionTime"] = existing["lastTransitionTime"].clone();
            }
            *existing = condition;
        }
        None => conditions.push(condition),
    }
}

fn object_at_list<'a>(value: &'a mut Value, name: &str) -> &'a mut Vec<Value> {
    if !value[name].is_array() {
        value[name] = json!([]);
    }
    value[name].as_array_mut().expect("just made")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::apiserver::api::{Api, WriteOptions};
    use crate::apiserver::patch::Patch;

    fn cluster() -> Api {
        let api = Api::new(String::new());
        let target = api.target("namespaces", "", "").unwrap();
        let namespace = json!({ "metadata": { "name": "n" } });
        api.create(&target, namespace, &WriteOptions::by("test")).unwrap();
        api
    }

    fn create_pod(api: &Api, node: &str) -> Target {
        let target = api.target("pods", "n", "").unwrap();
        let pod = json!({ "metadata": { "generateName": "p-" }, "spec": { "nodeName": node, "containers": [{ "name": "c", "image": "i" }] } });
        let name =
            api.create(&target, pod, &WriteOptions::by("test")).unwrap().object.key.name.clone();
        api.target("pods", "n", &name).unwrap()
    }

    fn delete(api: &Api, target: &Target, grace: Option<i64>) {
        let options = DeleteOptions { grace_period_seconds: grace, ..DeleteOptions::default() };
        api.delete(target, &options).unwrap();
    }

    #[test]
    fn a_pod_on_a_node_ends_gracefully() {
        let api = cluster();
        let pod = create_pod(&api, "node-1");
        delete(&api, &pod, None);
        let grace = |api: &Api| {
            api.get(&pod).map(|pod| pod.value()["metadata"]["deletionGracePeriodSeconds"].clone())
        };
        assert_eq!(grace(&api).unwrap(), 30);
        // Asked again it ends no later, only sooner.
        delete(&api, &pod, Some(60));
        assert_eq!(grace(&api).unwrap(), 30);
        delete(&api, &pod, Some(5));
        assert_eq!(grace(&api).unwrap(), 5);
        delete(&api, &pod, Some(0));
        assert!(grace(&api).unwrap_err().is_not_found());
        // Nobody runs it: nothing to wait for.
        let pod = create_pod(&api, "");
        delete(&api, &pod, None);
        assert!(api.get(&pod).unwrap_err().is_not_found());
    }

    #[test]
    fn finalizers_hold_an_object() {
        let api = cluster();
        let pod = create_pod(&api, "node-1");
        let options = WriteOptions::by("test");
        let finalizers = |list: Value| Patch::Merge(json!({ "metadata": { "finalizers": list } }));
        api.patch(&pod, &finalizers(json!(["x.io/hold"])), &options).unwrap();
        delete(&api, &pod, Some(0));
        assert!(api.get(&pod).unwrap().is_being_deleted);
        let error =
            api.patch(&pod, &finalizers(json!(["x.io/hold", "x.io/more"])), &options).unwrap_err();
        assert!(error.to_string().contains("no new finalizers can be added"), "{error}");
        api.patch(&pod, &finalizers(json!([])), &options).unwrap();
        assert!(api.get(&pod).unwrap_err().is_not_found());
    }

    #[test]
    fn status_and_the_rest_are_apart() {
        let api = cluster();
        let pod = create_pod(&api, "node-1");
        let options = WriteOptions::by("test");
        let both = Patch::Merge(
            json!({ "status": { "phase": "Running" }, "spec": { "activeDeadlineSeconds": 9 } }),
        );
        let plain = api.patch(&pod, &both, &options).unwrap().object.value();
        assert_eq!(
            (&plain["status"]["phase"], &plain["spec"]["activeDeadlineSeconds"]),
            (&json!("Pending"), &json!(9))
        );
        assert_eq!(plain["metadata"]["generation"], 2);
        let status = Target { subresource: "status".into(), ..pod.clone() };
        let both = Patch::Merge(
            json!({ "status": { "phase": "Running" }, "spec": { "activeDeadlineSeconds": 8 } }),
        );
        let after = api.patch(&status, &both, &options).unwrap().object.value();
        assert_eq!(
            (&after["status"]["phase"], &after["spec"]["activeDeadlineSeconds"]),
            (&json!("Running"), &json!(9))
        );
        assert_eq!(after["metadata"]["generation"], 2);
        let managers: Vec<&str> = after["metadata"]["managedFields"]
            .as_array()
            .unwrap()
            .iter()
            .map(|one| one["subresource"].as_str().unwrap_or(""))
            .collect();
        assert_eq!(managers, ["", "status"]);
    }

    #[test]
    fn a_pod_is_bound_once() {
        let api = cluster();
        let pod = create_pod(&api, "");
        let options = WriteOptions::by("scheduler");
        api.bind(&pod, &json!({ "target": { "name": "node-1" } }), &options).unwrap();
        let error =
            api.bind(&pod, &json!({ "target": { "name": "node-2" } }), &options).unwrap_err();
        assert!(
            error.is_conflict()
                && error.to_string().contains("already assigned to node \"node-1\""),
            "{error}"
        );
        let value = api.get(&pod).unwrap().value();
        assert_eq!(value["status"]["conditions"][0]["type"], "PodScheduled");
    }
}
