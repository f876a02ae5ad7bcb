//! Pods: the defaults that the API server fills in, and what it refuses.

use serde_json::{Map, Value, json};

use super::names;
use super::schema::object_at;
use super::status::FieldError;

/// Fills in what the manifest leaves open.
pub(super) fn default(pod: &mut Value) {
    default_template(pod);
    let spec = object_at(pod, "spec");
    for (name, value) in [
        ("enableServiceLinks", json!(true)),
        ("preemptionPolicy", json!("PreemptLowerPriority")),
        ("priority", json!(0)),
    ] {
        spec.entry(name).or_insert(value);
    }
    // The older of the two names follows the newer one.
    let old_name = spec.get("serviceAccount").cloned();
    let account =
        spec.entry("serviceAccountName").or_insert_with(|| old_name.unwrap_or(json!("default")));
    let account = account.clone();
    spec.insert("serviceAccount".into(), account);
    default_tolerations(spec);
}

/// Where programs find the token of their service account.
const TOKEN_PATH: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// What the volumes with such tokens are called, before a random suffix.
const TOKEN_VOLUME: &str = "kube-api-access-";
/// How long the tokens last, as in Kubernetes: what is asked for is an hour and some seconds.
const TOKEN_SECONDS: i64 = 3_607;

/// Gives the containers of a new pod a token of its service account, unless pod or account want
/// none.
pub(super) fn mount_token(pod: &mut Value, account: &Value) {
    let wanted = |of: &Value| of["automountServiceAccountToken"].as_bool();
    if !wanted(&pod["spec"]).or(wanted(account)).unwrap_or(true) {
        return;
    }
    let spec = object_at(pod, "spec");
    let volumes = spec.get("volumes").and_then(Value::as_array).into_iter().flatten();
    let mut names = volumes.filter_map(|volume| volume["name"].as_str());
    let existing = names.find(|name| name.starts_with(TOKEN_VOLUME)).map(str::to_owned);
    let name =
        existing.clone().unwrap_or_else(|| TOKEN_VOLUME.to_owned() + &super::object::name_suffix());
    let mut used = false;
    for list in ["initContainers", "containers"] {
        for container in spec.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten() {
            if !container["volumeMounts"].is_array() {
                container["volumeMounts"] = json!([]);
            }
            let Some(mounts) = container["volumeMounts"].as_array_mut() else { continue };
            if !mounts.iter().any(|mount| mount["mountPath"] == TOKEN_PATH) {
                mounts.push(json!({ "name": name, "readOnly": true, "mountPath": TOKEN_PATH }));
                used = true;
            }
        }
    }
    if !used || existing.is_some() {
        return;
    }
    let sources = json!([
        { "serviceAccountToken": { "expirationSeconds": TOKEN_SECONDS, "path": "token" } },
        { "configMap": { "name": "kube-root-ca.crt", "items": [{ "key": "ca.crt", "path": "ca.crt" }] } },
        { "downwardAPI": { "items": [{ "path": "namespace",
            "fieldRef": { "apiVersion": "v1", "fieldPath": "metadata.namespace" } }] } },
    ]);
    let volume = json!({ "name": name, "projected": { "defaultMode": 0o644, "sources": sources } });
    let volumes = spec.entry("volumes").or_insert_with(|| json!([]));
    if let Some(volumes) = volumes.as_array_mut() {
        volumes.push(volume);
    }
}

/// What a pod template has in common with a pod: the rest is filled in when the pod is made.
pub(super) fn default_template(template: &mut Value) {
    let spec = object_at(template, "spec");
    let host_network = spec.get("hostNetwork") == Some(&json!(true));
    for (name, value) in [
        ("restartPolicy", json!("Always")),
        ("terminationGracePeriodSeconds", json!(30)),
        ("dnsPolicy", json!("ClusterFirst")),
        ("securityContext", json!({})),
        ("schedulerName", json!("default-scheduler")),
    ] {
        spec.entry(name).or_insert(value);
    }
    if let Some(account) = spec.get("serviceAccountName").cloned() {
        spec.insert("serviceAccount".into(), account);
    }
    for list in ["initContainers", "containers", "ephemeralContainers"] {
        for container in spec.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten() {
            if let Some(container) = container.as_object_mut() {
                default_container(container, host_network);
            }
        }
    }
    for volume in spec.get_mut("volumes").and_then(Value::as_array_mut).into_iter().flatten() {
        if let Some(volume) = volume.as_object_mut() {
            default_volume(volume);
        }
    }
}

fn default_tolerations(spec: &mut Map<String, Value>) {
    let list = spec.entry("tolerations").or_insert_with(|| json!([]));
    let Some(list) = list.as_array_mut() else { return };
    for key in ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"] {
        let tolerated = list.iter().any(|toleration| {
            toleration["key"] == key || toleration["key"].as_str().unwrap_or_default().is_empty()
        });
        if !tolerated {
            list.push(json!({ "key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300 }));
        }
    }
}

fn default_container(container: &mut Map<String, Value>, host_network: bool) {
    let image = container.get("image").and_then(Value::as_str).unwrap_or_default();
    let tag = image.rsplit('/').next().and_then(|last| last.split_once(':')).map(|(_, tag)| tag);
    let policy = match tag {
        _ if image.contains('@') => "IfNotPresent",
        None | Some("latest") => "Always",
        Some(_) => "IfNotPresent",
    };
    for (name, value) in [
        ("imagePullPolicy", json!(policy)),
        ("resources", json!({})),
        ("terminationMessagePath", json!("/dev/termination-log")),
        ("terminationMessagePolicy", json!("File")),
    ] {
        container.entry(name).or_insert(value);
    }
    for port in container.get_mut("ports").and_then(Value::as_array_mut).into_iter().flatten() {
        let number = port["containerPort"].clone();
        let Some(port) = port.as_object_mut() else { continue };
        port.entry("protocol").or_insert_with(|| json!("TCP"));
        if host_network {
            port.entry("hostPort").or_insert(number);
        }
    }
    for name in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if let Some(probe) = container.get_mut(name).and_then(Value::as_object_mut) {
            default_probe(probe);
        }
    }
    for variable in container.get_mut("env").and_then(Value::as_array_mut).into_iter().flatten() {
        if variable["valueFrom"]["fieldRef"].is_object()
            && variable["valueFrom"]["fieldRef"]["apiVersion"].is_null()
        {
            variable["valueFrom"]["fieldRef"]["apiVersion"] = json!("v1");
        }
    }
    // Limits are requests where nothing else is requested.
    if let Some(limits) = container["resources"]["limits"].as_object().cloned() {
        let requests = object_at(&mut container["resources"], "requests");
        for (name, amount) in limits {
            requests.entry(name).or_insert(amount);
        }
    }
}

fn default_probe(probe: &mut Map<String, Value>) {
    for (name, value) in [
        ("timeoutSeconds", 1),
        ("periodSeconds", 10),
        ("successThreshold", 1),
        ("failureThreshold", 3),
    ] {
        probe.entry(name).or_insert(json!(value));
    }
    if let Some(get) = probe.get_mut("httpGet").and_then(Value::as_object_mut) {
        get.entry("scheme").or_insert_with(|| json!("HTTP"));
        get.entry("path").or_insert_with(|| json!("/"));
    }
}

fn default_volume(volume: &mut Map<String, Value>) {
    if volume.len() == 1 && volume.contains_key("name") {
        volume.insert("emptyDir".into(), json!({}));
    }
    for source in ["configMap", "secret", "projected", "downwardAPI"] {
        if let Some(source) = volume.get_mut(source).and_then(Value::as_object_mut) {
            source.entry("defaultMode").or_insert(json!(0o644));
        }
    }
    if let Some(path) = volume.get_mut("hostPath").and_then(Value::as_object_mut) {
        path.entry("type").or_insert_with(|| json!(""));
    }
}

/// How expendable the pod is, by what its containers request.
pub(super) fn qos_class(spec: &Value) -> &'static str {
    let containers: Vec<&Value> = ["containers", "initContainers"]
        .iter()
        .flat_map(|list| spec[*list].as_array().into_iter().flatten())
        .collect();
    let amounts = |container: &Value, kind: &str| -> Vec<(String, Value)> {
        let map = container["resources"][kind].as_object().into_iter().flatten();
        map.filter(|(name, _)| ["cpu", "memory"].contains(&name.as_str()))
            .map(|(name, amount)| (name.clone(), amount.clone()))
            .collect()
    };
    let asks = |container: &&Value| {
        !amounts(container, "limits").is_empty() || !amounts(container, "requests").is_empty()
    };
    let bounded = |container: &&Value| {
        let (limits, requests) = (amounts(container, "limits"), amounts(container, "requests"));
        limits.len() == 2
            && (requests.is_empty() || requests.iter().all(|one| limits.contains(one)))
    };
    if !containers.iter().any(asks) {
        "BestEffort"
    } else if containers.iter().all(bounded) {
        "Guaranteed"
    } else {
        "Burstable"
    }
}

/// What is wrong with a pod.
pub(super) fn validate(pod: &Value, errors: &mut Vec<FieldError>) {
    let spec = &pod["spec"];
    let empty = Vec::new();
    let containers = spec["containers"].as_array().unwrap_or(&empty);
    if containers.is_empty() {
        errors.push(FieldError::required("spec.containers", ""));
    }
    let mut volumes = Vec::new();
    for (index, volume) in spec["volumes"].as_array().into_iter().flatten().enumerate() {
        let name = volume["name"].as_str().unwrap_or_default();
        let field = format!("spec.volumes[{index}].name");
        check_name(&field, name, &mut volumes, errors);
    }
    let mut seen = Vec::new();
    for list in ["initContainers", "containers"] {
        for (index, container) in spec[list].as_array().into_iter().flatten().enumerate() {
            let field = format!("spec.{list}[{index}]");
            let name = container["name"].as_str().unwrap_or_default();
            check_name(&format!("{field}.name"), name, &mut seen, errors);
            validate_container(&field, container, &volumes, errors);
        }
    }
    check_choice(
        "spec.restartPolicy",
        &spec["restartPolicy"],
        &["Always", "OnFailure", "Never"],
        errors,
    );
    let policies = ["ClusterFirstWithHostNet", "ClusterFirst", "Default", "None"];
    check_choice("spec.dnsPolicy", &spec["dnsPolicy"], &policies, errors);
    names::check_labels("spec.nodeSelector", &spec["nodeSelector"], errors);
    if spec["hostname"].is_string() {
        names::check_label("spec.hostname", spec["hostname"].as_str().unwrap_or_default(), errors);
    }
}

fn validate_container(
    field: &str,
    container: &Value,
    volumes: &[String],
    errors: &mut Vec<FieldError>,
) {
    if container["image"].as_str().unwrap_or_default().is_empty() {
        errors.push(FieldError::required(format!("{field}.image"), ""));
    }
    let policies = ["Always", "IfNotPresent", "Never"];
    check_choice(
        &format!("{field}.imagePullPolicy"),
        &container["imagePullPolicy"],
        &policies,
        errors,
    );
    for (index, port) in container["ports"].as_array().into_iter().flatten().enumerate() {
        let field = format!("{field}.ports[{index}]");
        for (name, required) in [("containerPort", true), ("hostPort", false)] {
            let number = &port[name];
            if (required || !number.is_null())
                && !(1..=65_535).contains(&number.as_i64().unwrap_or(0))
            {
                let detail = "must be between 1 and 65535, inclusive";
                errors.push(FieldError::invalid(format!("{field}.{name}"), number.clone(), detail));
            }
        }
        check_choice(
            &format!("{field}.protocol"),
            &port["protocol"],
            &["SCTP", "TCP", "UDP"],
            errors,
        );
    }
    for (index, variable) in container["env"].as_array().into_iter().flatten().enumerate() {
        if variable["name"].as_str().unwrap_or_default().is_empty() {
            errors.push(FieldError::required(format!("{field}.env[{index}].name"), ""));
        }
    }
    for (index, mount) in container["volumeMounts"].as_array().into_iter().flatten().enumerate() {
        let name = mount["name"].as_str().unwrap_or_default();
        if !volumes.iter().any(|volume| volume == name) {
            let field = format!("{field}.volumeMounts[{index}].name");
            errors.push(FieldError {
                field,
                fault: super::status::Fault::NotFound(json!(name)),
                detail: String::new(),
            });
        }
        if mount["mountPath"].as_str().unwrap_or_default().is_empty() {
            errors
                .push(FieldError::required(format!("{field}.volumeMounts[{index}].mountPath"), ""));
        }
    }
}

fn check_name(field: &str, name: &str, seen: &mut Vec<String>, errors: &mut Vec<FieldError>) {
    if name.is_empty() {
        errors.push(FieldError::required(field, ""));
        return;
    }
    names::check_label(field, name, errors);
    if seen.iter().any(|other| other == name) {
        errors.push(FieldError::duplicate(field, name));
    }
    seen.push(name.to_owned());
}

fn check_choice(field: &str, value: &Value, choices: &[&str], errors: &mut Vec<FieldError>) {
    if let Some(text) = value.as_str()
        && !choices.contains(&text)
    {
        errors.push(FieldError::not_supported(field, text, choices));
    }
}

/// A pod's specification is fixed but for a few fields.
pub(super) fn validate_update(new: &Value, old: &Value, errors: &mut Vec<FieldError>) {
    let added_only =
        old["spec"]["tolerations"].as_array().into_iter().flatten().all(|toleration| {
            new["spec"]["tolerations"].as_array().is_some_and(|l| l.contains(toleration))
        });
    let fixed = |pod: &Value| {
        let mut spec = pod["spec"].clone();
        for list in ["containers", "initContainers"] {
            for container in spec[list].as_array_mut().into_iter().flatten() {
                container["image"] = Value::Null;
            }
        }
        spec["activeDeadlineSeconds"] = Value::Null;
        if added_only {
            spec["tolerations"] = Value::Null;
        }
        for list in ["containers", "initContainers", "ephemeralContainers"] {
            if spec[list].is_null() {
                spec[list] = json!([]);
            }
        }
        spec
    };
    if fixed(new) != fixed(old) {
        let detail = "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)";
        errors.push(FieldError::forbidden("spec", detail));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_get_a_token_unless_they_want_none() {
        let pod = |spec: Value| {
            let mut pod = json!({ "spec": { "containers": [{ "name": "a" }, { "name": "b",
                "volumeMounts": [{ "name": "own", "mountPath": TOKEN_PATH }] }] } });
            for (name, value) in spec.as_object().into_iter().flatten() {
                pod["spec"][name] = value.clone();
            }
            pod
        };
        let mount = |mut pod: Value, account: Value| {
            mount_token(&mut pod, &account);
            pod["spec"].take()
        };
        let spec = mount(pod(json!({})), json!({}));
        let volume = &spec["volumes"][0];
        assert!(volume["name"].as_str().unwrap().starts_with(TOKEN_VOLUME), "{volume}");
        assert_eq!(volume["projected"]["sources"].as_array().unwrap().len(), 3);
        assert_eq!(spec["containers"][0]["volumeMounts"][0]["name"], volume["name"]);
        assert_eq!(spec["containers"][1]["volumeMounts"].as_array().unwrap().len(), 1);
        let no = json!({ "automountServiceAccountToken": false });
        assert!(mount(pod(json!({})), no.clone())["volumes"].is_null());
        assert!(mount(pod(no.clone()), json!({}))["volumes"].is_null());
        let yes = json!({ "automountServiceAccountToken": true });
        assert!(mount(pod(yes), no)["volumes"].is_array());
        // A copy of a running pod keeps the volume that it has.
        let copy = pod(json!({ "volumes": [{ "name": "kube-api-access-abcde" }] }));
        let spec = mount(copy, json!({}));
        assert_eq!(spec["volumes"].as_array().unwrap().len(), 1);
        assert_eq!(spec["containers"][0]["volumeMounts"][0]["name"], "kube-api-access-abcde");
    }
}
