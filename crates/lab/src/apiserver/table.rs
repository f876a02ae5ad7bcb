//! Objects as the rows that `kubectl get` prints.

use serde_json::{Value, json};

use super::jsonpath::JsonPath;
use super::resource::{Definition, Resource};
use super::scale::selector_text;

/// A column of a table.
#[derive(Clone, Debug)]
pub struct Column {
    name: String,
    kind: String,
    format: String,
    description: String,
    /// Shown without `-o wide` only if 0.
    priority: i64,
    /// Where the value is; columns of built-in kinds are computed.
    path: Option<JsonPath>,
}

impl Column {
    /// One of `additionalPrinterColumns`.
    pub fn of_definition(json: &Value) -> Self {
        let text = |name: &str| json[name].as_str().unwrap_or_default().to_owned();
        Self {
            name: text("name"),
            kind: text("type"),
            format: text("format"),
            description: text("description"),
            priority: json["priority"].as_i64().unwrap_or(0),
            path: JsonPath::parse(&text("jsonPath")).ok(),
        }
    }

    /// What custom resources have that define no columns.
    pub fn age() -> Self {
        Self {
            name: "Age".into(),
            kind: "date".into(),
            format: String::new(),
            description: "Time since creation".into(),
            priority: 0,
            path: JsonPath::parse(".metadata.creationTimestamp").ok(),
        }
    }

    fn to_json(&self) -> Value {
        json!({ "name": self.name, "type": self.kind, "format": self.format,
            "description": self.description, "priority": self.priority })
    }

    fn cell(&self, object: &Value) -> Value {
        let Some(found) = self.path.as_ref().and_then(|path| path.find(object).first().copied())
        else {
            return Value::Null;
        };
        match (self.kind.as_str(), found) {
            ("date", value) => json!(age(value)),
            ("string", Value::String(_)) => found.clone(),
            ("string", value) => json!(value.to_string()),
            _ => found.clone(),
        }
    }
}

/// How much of the objects goes along with the rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Include {
    None,
    Metadata,
    Object,
}

/// A `Table` of `objects`. `headers`: with the description of the columns.
pub(super) fn table(
    resource: &Resource,
    objects: &[Value],
    metadata: Value,
    include: Include,
    headers: bool,
) -> Value {
    let rows: Vec<Value> = objects.iter().map(|object| row(resource, object, include)).collect();
    let mut table = json!({ "kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": metadata,
        "columnDefinitions": [], "rows": rows });
    if headers {
        table["columnDefinitions"] = json!(columns(resource));
    }
    table
}

fn columns(resource: &Resource) -> Vec<Value> {
    let name = json!({ "name": "Name", "type": "string", "format": "name", "priority": 0,
        "description": "Name must be unique within a namespace." });
    if let Definition::Custom { columns, .. } = &resource.definition {
        return std::iter::once(name).chain(columns.iter().map(Column::to_json)).collect();
    }
    built_in_columns(&resource.id)
        .iter()
        .map(|column| {
            let (column, priority) = column.strip_prefix('*').map_or((*column, 0), |rest| (rest, 1));
            if column == "Name" && priority == 0 {
                return name.clone();
            }
            let kind = if ["Data", "Secrets"].contains(&column) { "integer" } else { "string" };
            json!({ "name": column, "type": kind, "format": "", "description": "", "priority": priority })
        })
        .collect()
}

fn row(resource: &Resource, object: &Value, include: Include) -> Value {
    let cells = match &resource.definition {
        Definition::Custom { columns, .. } => std::iter::once(object["metadata"]["name"].clone())
            .chain(columns.iter().map(|column| column.cell(object)))
            .collect(),
        Definition::BuiltIn => built_in_cells(&resource.id, object),
    };
    let mut row = json!({ "cells": cells });
    match include {
        Include::None => row["object"] = Value::Null,
        Include::Metadata => row["object"] = partial(object),
        Include::Object => row["object"] = object.clone(),
    }
    row
}

/// The metadata alone.
pub(super) fn partial(object: &Value) -> Value {
    json!({ "kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": object["metadata"] })
}

/// A star marks what only `-o wide` shows.
fn built_in_columns(id: &str) -> &'static [&'static str] {
    match id {
        "pods" => &[
            "Name",
            "Ready",
            "Status",
            "Restarts",
            "Age",
            "*IP",
            "*Node",
            "*Nominated Node",
            "*Readiness Gates",
        ],
        "nodes" => &[
            "Name",
            "Status",
            "Roles",
            "Age",
            "Version",
            "*Internal-IP",
            "*External-IP",
            "*OS-Image",
            "*Kernel-Version",
            "*Container-Runtime",
        ],
        "namespaces" => &["Name", "Status", "Age"],
        "configmaps" => &["Name", "Data", "Age"],
        "secrets" => &["Name", "Type", "Data", "Age"],
        "serviceaccounts" => &["Name", "Secrets", "Age"],
        "services" => &["Name", "Type", "Cluster-IP", "External-IP", "Port(s)", "Age", "*Selector"],
        "endpoints" => &["Name", "Endpoints", "Age"],
        "endpointslices.discovery.k8s.io" => &["Name", "AddressType", "Ports", "Endpoints", "Age"],
        "events" => &[
            "Last Seen",
            "Type",
            "Reason",
            "Object",
            "*Subobject",
            "*Source",
            "Message",
            "*First Seen",
            "*Count",
            "*Name",
        ],
        "leases.coordination.k8s.io" => &["Name", "Holder", "Age"],
        "deployments.apps" => &[
            "Name",
            "Ready",
            "Up-to-date",
            "Available",
            "Age",
            "*Containers",
            "*Images",
            "*Selector",
        ],
        "replicasets.apps" => {
            &["Name", "Desired", "Current", "Ready", "Age", "*Containers", "*Images", "*Selector"]
        }
        "daemonsets.apps" => &[
            "Name",
            "Desired",
            "Current",
            "Ready",
            "Up-to-date",
            "Available",
            "Node Selector",
            "Age",
            "*Containers",
            "*Images",
            "*Selector",
        ],
        "statefulsets.apps" => &["Name", "Ready", "Age", "*Containers", "*Images"],
        "jobs.batch" => &[
            "Name",
            "Status",
            "Completions",
            "Duration",
            "Age",
            "*Containers",
            "*Images",
            "*Selector",
        ],
        "cronjobs.batch" => &[
            "Name",
            "Schedule",
            "Timezone",
            "Suspend",
            "Active",
            "Last Schedule",
            "Age",
            "*Containers",
            "*Images",
            "*Selector",
        ],
        "persistentvolumeclaims" => &[
            "Name",
            "Status",
            "Volume",
            "Capacity",
            "Access Modes",
            "StorageClass",
            "VolumeAttributesClass",
            "Age",
            "*VolumeMode",
        ],
        "persistentvolumes" => &[
            "Name",
            "Capacity",
            "Access Modes",
            "Reclaim Policy",
            "Status",
            "Claim",
            "StorageClass",
            "VolumeAttributesClass",
            "Reason",
            "Age",
            "*VolumeMode",
        ],
        "storageclasses.storage.k8s.io" => &[
            "Name",
            "Provisioner",
            "ReclaimPolicy",
            "VolumeBindingMode",
            "AllowVolumeExpansion",
            "Age",
        ],
        "controllerrevisions.apps" => &["Name", "Controller", "Revision", "Age"],
        "networkpolicies.networking.k8s.io" => &["Name", "Pod-Selector", "Age"],
        "roles.rbac.authorization.k8s.io" | "clusterroles.rbac.authorization.k8s.io" => {
            &["Name", "Created At"]
        }
        "rolebindings.rbac.authorization.k8s.io"
        | "clusterrolebindings.rbac.authorization.k8s.io" => {
            &["Name", "Role", "Age", "*Users", "*Groups", "*ServiceAccounts"]
        }
        "customresourcedefinitions.apiextensions.k8s.io" => &["Name", "Created At"],
        _ => &["Name", "Age"],
    }
}

fn built_in_cells(id: &str, o: &Value) -> Vec<Value> {
    let name = || o["metadata"]["name"].clone();
    let old = || json!(age(&o["metadata"]["creationTimestamp"]));
    let text = |value: &Value, default: &str| {
        json!(value.as_str().filter(|text| !text.is_empty()).unwrap_or(default))
    };
    let count = |value: &Value| {
        value.as_object().map(serde_json::Map::len).or(value.as_array().map(Vec::len)).unwrap_or(0)
    };
    match id {
        "pods" => pod_cells(o),
        "nodes" => node_cells(o),
        "namespaces" => vec![name(), text(&o["status"]["phase"], ""), old()],
        "configmaps" => vec![name(), json!(count(&o["data"]) + count(&o["binaryData"])), old()],
        "secrets" => vec![name(), text(&o["type"], ""), json!(count(&o["data"])), old()],
        "serviceaccounts" => vec![name(), json!(count(&o["secrets"])), old()],
        "services" => service_cells(o),
        "endpoints" => vec![name(), json!(endpoints_text(o)), old()],
        "endpointslices.discovery.k8s.io" => slice_cells(o),
        "events" => event_cells(o),
        "leases.coordination.k8s.io" => vec![name(), text(&o["spec"]["holderIdentity"], ""), old()],
        "deployments.apps" | "replicasets.apps" | "daemonsets.apps" | "statefulsets.apps"
        | "jobs.batch" => workload_cells(id, o),
        "controllerrevisions.apps" => {
            let owner = &o["metadata"]["ownerReferences"][0];
            let kind = owner["kind"].as_str().unwrap_or_default().to_lowercase();
            let controller = format!("{kind}.apps/{}", owner["name"].as_str().unwrap_or_default());
            vec![name(), json!(controller), json!(o["revision"].to_string()), old()]
        }
        "customresourcedefinitions.apiextensions.k8s.io"
        | "roles.rbac.authorization.k8s.io"
        | "clusterroles.rbac.authorization.k8s.io" => {
            vec![name(), o["metadata"]["creationTimestamp"].clone()]
        }
        "rolebindings.rbac.authorization.k8s.io"
        | "clusterrolebindings.rbac.authorization.k8s.io" => binding_cells(o),
        "cronjobs.batch" => cron_job_cells(o),
        "persistentvolumeclaims" | "persistentvolumes" => volume_cells(o),
        "storageclasses.storage.k8s.io" => vec![
            name(),
            o["provisioner"].clone(),
            o["reclaimPolicy"].clone(),
            o["volumeBindingMode"].clone(),
            json!(o["allowVolumeExpansion"] == true),
            old(),
        ],
        "networkpolicies.networking.k8s.io" => {
            let selector = selector_text(&o["spec"]["podSelector"]);
            let selector = if selector.is_empty() { "<none>".to_owned() } else { selector };
            vec![name(), json!(selector), old()]
        }
        _ => vec![name(), old()],
    }
}

fn cron_job_cells(o: &Value) -> Vec<Value> {
    let spec = &o["spec"];
    let last = &o["status"]["lastScheduleTime"];
    let containers = spec["jobTemplate"]["spec"]["template"]["spec"]["containers"].as_array();
    let of_containers = |field: &str| {
        let all = containers.into_iter().flatten().filter_map(|one| one[field].as_str());
        json!(all.collect::<Vec<_>>().join(","))
    };
    vec![
        o["metadata"]["name"].clone(),
        spec["schedule"].clone(),
        json!(spec["timeZone"].as_str().unwrap_or("<none>")),
        json!(if spec["suspend"] == true { "True" } else { "False" }),
        json!(o["status"]["active"].as_array().map_or(0, Vec::len)),
        json!(if last.is_string() { age(last) } else { "<none>".to_owned() }),
        json!(age(&o["metadata"]["creationTimestamp"])),
        of_containers("name"),
        of_containers("image"),
        json!("<none>"),
    ]
}

/// A persistent volume, or a claim to one.
fn volume_cells(o: &Value) -> Vec<Value> {
    let (spec, status) = (&o["spec"], &o["status"]);
    let text = |value: &Value| json!(value.as_str().unwrap_or_default());
    let modes = |list: &Value| {
        let all = list.as_array().into_iter().flatten().filter_map(Value::as_str);
        let short = all.map(|mode| match mode {
            "ReadOnlyMany" => "ROX",
            "ReadWriteMany" => "RWX",
            "ReadWriteOncePod" => "RWOP",
            _ => "RWO",
        });
        json!(short.collect::<Vec<_>>().join(","))
    };
    let class = match text(&spec["volumeAttributesClassName"]) {
        Value::String(class) if !class.is_empty() => json!(class),
        _ => json!("<unset>"),
    };
    let (name, old) = (&o["metadata"]["name"], json!(age(&o["metadata"]["creationTimestamp"])));
    let mode = text(&spec["volumeMode"]);
    if o["kind"] == "PersistentVolumeClaim" {
        return vec![
            name.clone(),
            text(&status["phase"]),
            text(&spec["volumeName"]),
            text(&status["capacity"]["storage"]),
            modes(&status["accessModes"]),
            text(&spec["storageClassName"]),
            class,
            old,
            mode,
        ];
    }
    let claim = &spec["claimRef"];
    let claim = match (claim["namespace"].as_str(), claim["name"].as_str()) {
        (Some(namespace), Some(name)) => format!("{namespace}/{name}"),
        _ => String::new(),
    };
    vec![
        name.clone(),
        text(&spec["capacity"]["storage"]),
        modes(&spec["accessModes"]),
        text(&spec["persistentVolumeReclaimPolicy"]),
        text(&status["phase"]),
        json!(claim),
        text(&spec["storageClassName"]),
        class,
        text(&status["reason"]),
        old,
        mode,
    ]
}

fn binding_cells(binding: &Value) -> Vec<Value> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let subjects =
        |kind: &str| {
            let all = binding["subjects"].as_array().into_iter().flatten();
            let named = all.filter(|subject| subject["kind"] == kind).map(|subject| {
                match subject["namespace"].as_str().filter(|_| kind == "ServiceAccount") {
                    Some(namespace) => format!("{namespace}/{}", text(&subject["name"])),
                    None => text(&subject["name"]),
                }
            });
            json!(named.collect::<Vec<_>>().join(", "))
        };
    let (meta, role) = (&binding["metadata"], &binding["roleRef"]);
    vec![
        meta["name"].clone(),
        json!(format!("{}/{}", text(&role["kind"]), text(&role["name"]))),
        json!(age(&meta["creationTimestamp"])),
        subjects("User"),
        subjects("Group"),
        subjects("ServiceAccount"),
    ]
}

fn pod_cells(pod: &Value) -> Vec<Value> {
    let (spec, status) = (&pod["spec"], &pod["status"]);
    let list = |value: &Value| value.as_array().map(Vec::as_slice).unwrap_or_default().to_vec();
    let statuses = list(&status["containerStatuses"]);
    let ready = statuses.iter().filter(|one| one["ready"] == true).count();
    let total = list(&spec["containers"]).len();
    let restarts: i64 = statuses.iter().filter_map(|one| one["restartCount"].as_i64()).sum();
    let last_end = statuses
        .iter()
        .filter_map(|one| one["lastState"]["terminated"]["finishedAt"].as_str())
        .max();
    let restarts = match last_end {
        Some(at) if restarts > 0 => format!("{restarts} ({} ago)", age(&json!(at))),
        _ => restarts.to_string(),
    };
    let or_none =
        |value: &Value| json!(value.as_str().filter(|t| !t.is_empty()).unwrap_or("<none>"));
    let gates = list(&spec["readinessGates"]);
    let gates_ready = gates
        .iter()
        .filter(|gate| {
            list(&status["conditions"])
                .iter()
                .any(|one| one["type"] == gate["conditionType"] && one["status"] == "True")
        })
        .count();
    let gates = match gates.len() {
        0 => "<none>".to_owned(),
        len => format!("{gates_ready}/{len}"),
    };
    vec![
        pod["metadata"]["name"].clone(),
        json!(format!("{ready}/{total}")),
        json!(pod_status(pod, &statuses)),
        json!(restarts),
        json!(age(&pod["metadata"]["creationTimestamp"])),
        or_none(&status["podIP"]),
        or_none(&spec["nodeName"]),
        or_none(&status["nominatedNodeName"]),
        json!(gates),
    ]
}

/// The one word that says most about how a pod is.
fn pod_status(pod: &Value, statuses: &[Value]) -> String {
    let status = &pod["status"];
    let mut text =
        status["reason"].as_str().or(status["phase"].as_str()).unwrap_or("Unknown").to_owned();
    let mut initialising = false;
    let init = status["initContainerStatuses"].as_array().map(Vec::as_slice).unwrap_or_default();
    for (index, container) in init.iter().enumerate() {
        let (terminated, waiting) =
            (&container["state"]["terminated"], &container["state"]["waiting"]);
        if terminated["exitCode"] == 0 {
            continue;
        }
        initialising = true;
        text = if terminated.is_object() {
            format!("Init:{}", end_text(terminated))
        } else if let Some(reason) = waiting["reason"].as_str().filter(|r| *r != "PodInitializing")
        {
            format!("Init:{reason}")
        } else {
            format!("Init:{index}/{}", init.len())
        };
        break;
    }
    if !initialising {
        let mut running = false;
        for container in statuses.iter().rev() {
            let state = &container["state"];
            if let Some(reason) = state["waiting"]["reason"].as_str() {
                text = reason.to_owned();
            } else if state["terminated"].is_object() {
                text = end_text(&state["terminated"]);
            } else if container["ready"] == true && state["running"].is_object() {
                running = true;
            }
        }
        if text == "Completed" && running {
            text = "Running".into();
        }
    }
    if pod["metadata"]["deletionTimestamp"].is_string() {
        return if status["reason"] == "NodeLost" {
            "Unknown".into()
        } else {
            "Terminating".into()
        };
    }
    text
}

fn end_text(terminated: &Value) -> String {
    match (terminated["reason"].as_str(), terminated["signal"].as_i64()) {
        (Some(reason), _) if !reason.is_empty() => reason.to_owned(),
        (_, Some(signal)) if signal != 0 => format!("Signal:{signal}"),
        _ => format!("ExitCode:{}", terminated["exitCode"].as_i64().unwrap_or(0)),
    }
}

/// Workloads: how many pods, and what is in them.
fn workload_cells(id: &str, o: &Value) -> Vec<Value> {
    let (spec, status) = (&o["spec"], &o["status"]);
    let number = |value: &Value, default: i64| value.as_i64().unwrap_or(default);
    let count = |field: &str| json!(number(&status[field], 0).to_string());
    let wanted = number(&spec["replicas"], 1);
    let ready = || json!(format!("{}/{wanted}", number(&status["readyReplicas"], 0)));
    let mut cells = vec![o["metadata"]["name"].clone()];
    cells.extend(match id {
        "deployments.apps" => vec![ready(), count("updatedReplicas"), count("availableReplicas")],
        "replicasets.apps" => {
            vec![json!(wanted.to_string()), count("replicas"), count("readyReplicas")]
        }
        "daemonsets.apps" => {
            let selector = labels_text(&spec["template"]["spec"]["nodeSelector"]);
            let selector = if selector.is_empty() { "<none>".to_owned() } else { selector };
            vec![
                count("desiredNumberScheduled"),
                count("currentNumberScheduled"),
                count("numberReady"),
                count("updatedNumberScheduled"),
                count("numberAvailable"),
                json!(selector),
            ]
        }
        "statefulsets.apps" => vec![ready()],
        _ => job_cells(o),
    });
    cells.push(json!(age(&o["metadata"]["creationTimestamp"])));
    let containers = spec["template"]["spec"]["containers"].as_array();
    for field in ["name", "image"] {
        let all = containers.into_iter().flatten().filter_map(|one| one[field].as_str());
        cells.push(json!(all.collect::<Vec<_>>().join(",")));
    }
    if id != "statefulsets.apps" {
        cells.push(json!(selector_text(&spec["selector"])));
    }
    cells
}

fn job_cells(job: &Value) -> Vec<Value> {
    let (spec, status) = (&job["spec"], &job["status"]);
    let conditions = status["conditions"].as_array().map(Vec::as_slice).unwrap_or_default();
    let is =
        |kind: &str| conditions.iter().any(|one| one["type"] == kind && one["status"] == "True");
    let words =
        ["Complete", "Failed", "Suspended", "FailureTarget"].into_iter().find(|kind| is(kind));
    let words = match words {
        _ if job["metadata"]["deletionTimestamp"].is_string() => "Terminating",
        Some("FailureTarget") => "Failed",
        Some(words) => words,
        None => "Running",
    };
    let succeeded = status["succeeded"].as_i64().unwrap_or(0);
    let completions = match (spec["completions"].as_i64(), spec["parallelism"].as_i64()) {
        (Some(completions), _) => format!("{succeeded}/{completions}"),
        (None, Some(parallelism)) if parallelism > 1 => format!("{succeeded}/1 of {parallelism}"),
        _ => format!("{succeeded}/1"),
    };
    let time = |value: &Value| {
        let time = value.as_str()?.parse::<k8s_openapi::jiff::Timestamp>().ok()?;
        Some(time.as_second())
    };
    let duration = match (time(&status["startTime"]), time(&status["completionTime"])) {
        (Some(start), Some(end)) => duration_text(end - start),
        (Some(start), None) => {
            duration_text(k8s_openapi::jiff::Timestamp::now().as_second() - start)
        }
        _ => String::new(),
    };
    vec![json!(words), json!(completions), json!(duration)]
}

fn node_cells(node: &Value) -> Vec<Value> {
    let (status, info) = (&node["status"], &node["status"]["nodeInfo"]);
    let ready =
        status["conditions"].as_array().into_iter().flatten().find(|one| one["type"] == "Ready");
    let mut words = match ready.map(|condition| condition["status"] == "True") {
        Some(true) => "Ready".to_owned(),
        Some(false) => "NotReady".to_owned(),
        None => "Unknown".to_owned(),
    };
    if node["spec"]["unschedulable"] == true {
        words += ",SchedulingDisabled";
    }
    let mut roles: Vec<&str> = node["metadata"]["labels"]
        .as_object()
        .into_iter()
        .flatten()
        .filter_map(|(key, _)| key.strip_prefix("node-role.kubernetes.io/"))
        .collect();
    roles.sort_unstable();
    let roles = if roles.is_empty() { "<none>".to_owned() } else { roles.join(",") };
    let address = |kind: &str| {
        let addresses = status["addresses"].as_array().into_iter().flatten();
        let found = addresses.clone().find(|one| one["type"] == kind);
        json!(found.and_then(|one| one["address"].as_str()).unwrap_or("<none>"))
    };
    let or_unknown =
        |value: &Value| json!(value.as_str().filter(|t| !t.is_empty()).unwrap_or("<unknown>"));
    vec![
        node["metadata"]["name"].clone(),
        json!(words),
        json!(roles),
        json!(age(&node["metadata"]["creationTimestamp"])),
        json!(info["kubeletVersion"].as_str().unwrap_or_default()),
        address("InternalIP"),
        address("ExternalIP"),
        or_unknown(&info["osImage"]),
        or_unknown(&info["kernelVersion"]),
        or_unknown(&info["containerRuntimeVersion"]),
    ]
}

fn service_cells(service: &Value) -> Vec<Value> {
    let spec = &service["spec"];
    let ports: Vec<String> = spec["ports"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|port| {
            let node_port = match port["nodePort"].as_i64() {
                Some(number) if number != 0 => format!(":{number}"),
                _ => String::new(),
            };
            format!("{}{node_port}/{}", port["port"], port["protocol"].as_str().unwrap_or("TCP"))
        })
        .collect();
    let or_none = |text: String| if text.is_empty() { json!("<none>") } else { json!(text) };
    let ingress = service["status"]["loadBalancer"]["ingress"].as_array().into_iter().flatten();
    let ingress = ingress.filter_map(|one| one["ip"].as_str().or(one["hostname"].as_str()));
    let own = spec["externalIPs"].as_array().into_iter().flatten().filter_map(Value::as_str);
    let mut external: Vec<&str> = ingress.chain(own).collect();
    if external.is_empty() {
        external.extend(match spec["type"].as_str() {
            Some("LoadBalancer") => Some("<pending>"),
            Some("ExternalName") => spec["externalName"].as_str(),
            _ => None,
        });
    }
    vec![
        service["metadata"]["name"].clone(),
        json!(spec["type"].as_str().unwrap_or("ClusterIP")),
        or_none(spec["clusterIP"].as_str().unwrap_or_default().to_owned()),
        or_none(external.join(",")),
        or_none(ports.join(",")),
        json!(age(&service["metadata"]["creationTimestamp"])),
        or_none(labels_text(&spec["selector"])),
    ]
}

fn labels_text(labels: &Value) -> String {
    let pairs = labels.as_object().into_iter().flatten();
    let pairs: Vec<String> =
        pairs.map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default())).collect();
    pairs.join(",")
}

/// The first three, and how many more.
fn shortened(all: &[String]) -> String {
    match all.len() {
        0 => "<none>".to_owned(),
        len if len > 3 => format!("{} + {} more...", all[..3].join(","), len - 3),
        _ => all.join(","),
    }
}

fn endpoints_text(endpoints: &Value) -> String {
    let mut all = Vec::new();
    for subset in endpoints["subsets"].as_array().into_iter().flatten() {
        for address in subset["addresses"].as_array().into_iter().flatten() {
            let ip = address["ip"].as_str().unwrap_or_default();
            for port in subset["ports"].as_array().into_iter().flatten() {
                let ip = if ip.contains(':') { format!("[{ip}]") } else { ip.to_owned() };
                all.push(format!("{ip}:{}", port["port"]));
            }
        }
    }
    shortened(&all)
}

fn slice_cells(slice: &Value) -> Vec<Value> {
    let ports = slice["ports"].as_array().into_iter().flatten();
    let ports: Vec<String> = ports.map(|port| port["port"].to_string()).collect();
    let endpoints = slice["endpoints"].as_array().into_iter().flatten();
    let addresses: Vec<String> = endpoints
        .flat_map(|endpoint| endpoint["addresses"].as_array().into_iter().flatten())
        .filter_map(|address| address.as_str().map(str::to_owned))
        .collect();
    vec![
        slice["metadata"]["name"].clone(),
        slice["addressType"].clone(),
        json!(shortened(&ports)),
        json!(shortened(&addresses)),
        json!(age(&slice["metadata"]["creationTimestamp"])),
    ]
}

/// An event in the form of `v1` or of `events.k8s.io/v1`.
fn event_cells(event: &Value) -> Vec<Value> {
    let either = |core: &str, events: &str| {
        let value = &event[core];
        if value.is_null() { event[events].clone() } else { value.clone() }
    };
    let last_seen = event["series"]["lastObservedTime"]
        .as_str()
        .or(event["lastTimestamp"].as_str())
        .or(event["deprecatedLastTimestamp"].as_str())
        .or(event["eventTime"].as_str())
        .or(event["metadata"]["creationTimestamp"].as_str());
    let first_seen = either("firstTimestamp", "deprecatedFirstTimestamp");
    let first_seen = if first_seen.is_null() { event["eventTime"].clone() } else { first_seen };
    let object = either("involvedObject", "regarding");
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let kind = text(&object["kind"]).to_lowercase();
    let source = either("source", "deprecatedSource");
    let component = match source["component"].as_str() {
        Some(component) if !component.is_empty() => component.to_owned(),
        _ => text(&either("reportingComponent", "reportingController")),
    };
    let host = text(&source["host"]);
    let source = if host.is_empty() { component } else { format!("{component}, {host}") };
    let count = either("count", "deprecatedCount").as_i64().or(event["series"]["count"].as_i64());
    vec![
        json!(age(&json!(last_seen))),
        event["type"].clone(),
        event["reason"].clone(),
        json!(format!("{kind}/{}", text(&object["name"]))),
        json!(text(&object["fieldPath"])),
        json!(source),
        json!(text(&either("message", "note")).trim()),
        json!(age(&first_seen)),
        json!(count.unwrap_or(1)),
        event["metadata"]["name"].clone(),
    ]
}

/// Time since a timestamp, as short as people want it.
fn age(timestamp: &Value) -> String {
    let then =
        timestamp.as_str().and_then(|text| text.parse::<k8s_openapi::jiff::Timestamp>().ok());
    match then {
        Some(then) => {
            duration_text(k8s_openapi::jiff::Timestamp::now().as_second() - then.as_second())
        }
        None => "<unknown>".to_owned(),
    }
}

fn duration_text(seconds: i64) -> String {
    let seconds = if seconds < -1 { return "<invalid>".to_owned() } else { seconds.max(0) };
    let (minutes, hours, days) = (seconds / 60, seconds / 3_600, seconds / 86_400);
    let two = |large: i64, unit: &str, small: i64, small_unit: &str| {
        if small == 0 {
            format!("{large}{unit}")
        } else {
            format!("{large}{unit}{small}{small_unit}")
        }
    };
    match () {
        () if seconds < 120 => format!("{seconds}s"),
        () if minutes < 10 => two(minutes, "m", seconds % 60, "s"),
        () if minutes < 180 => format!("{minutes}m"),
        () if hours < 8 => two(hours, "h", minutes % 60, "m"),
        () if hours < 48 => format!("{hours}h"),
        () if days < 8 => two(days, "d", hours % 24, "h"),
        () if days < 730 => format!("{days}d"),
        () if days < 8 * 365 => two(days / 365, "y", days % 365, "d"),
        () => format!("{}y", days / 365),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_are_short() {
        for (seconds, expected) in [
            (0, "0s"),
            (119, "119s"),
            (120, "2m"),
            (150, "2m30s"),
            (3_600, "60m"),
            (3 * 3_600, "3h"),
            (3 * 3_600 + 61, "3h1m"),
            (47 * 3_600, "47h"),
            (3 * 86_400, "3d"),
            (400 * 86_400, "400d"),
            (800 * 86_400, "2y70d"),
            (-5, "<invalid>"),
        ] {
            assert_eq!(duration_text(seconds), expected);
        }
    }

    #[test]
    fn the_status_of_a_pod() {
        let check = |pod: Value, expected: &str| {
            assert_eq!(pod_cells(&pod)[2], expected, "{pod}");
        };
        check(json!({ "status": { "phase": "Pending" } }), "Pending");
        check(
            json!({ "status": { "phase": "Running", "containerStatuses": [
            { "state": { "waiting": { "reason": "CrashLoopBackOff" } } }] } }),
            "CrashLoopBackOff",
        );
        check(
            json!({ "status": { "phase": "Running", "containerStatuses": [
            { "state": { "terminated": { "exitCode": 3 } } }] } }),
            "ExitCode:3",
        );
        check(
            json!({ "status": { "phase": "Pending", "initContainerStatuses": [
            { "state": { "terminated": { "exitCode": 0 } } }, { "state": { "running": {} } }] } }),
            "Init:1/2",
        );
        check(
            json!({ "metadata": { "deletionTimestamp": "x" }, "status": { "phase": "Running" } }),
            "Terminating",
        );
    }
}
