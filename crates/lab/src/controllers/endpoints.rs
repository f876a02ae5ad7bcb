//! EndpointSlices and Endpoints: which pods are behind a Service, and how they are.
//!
//! A Service without a selector gets slices from the Endpoints that somebody has written for it.

use std::collections::{BTreeMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use serde_json::{Value, json};

use super::pods::{self, is_deleting, is_ready, name, uid};
use super::{Action, ENDPOINTS, Plan, SLICES};

pub(super) const SERVICE_NAME: &str = "kubernetes.io/service-name";
const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
const OURS: &str = "endpointslice-controller.k8s.io";
const ENDPOINTS_MANAGED_BY: &str = "endpoints.kubernetes.io/managed-by";
const ENDPOINTS_OURS: &str = "endpoint-controller";
const HEADLESS: &str = "service.kubernetes.io/headless";
const MIRRORED: &str = "endpointslicemirroring-controller.k8s.io";
const SKIP_MIRROR: &str = "endpointslice.kubernetes.io/skip-mirror";
/// Most endpoints of a slice.
const SLICE_LEN_MAX: usize = 100;
/// Most addresses of an Endpoints object.
const ENDPOINTS_LEN_MAX: usize = 1_000;

pub(super) fn plan(
    service: &Arc<Value>,
    all_pods: &[Arc<Value>],
    all_slices: &[Arc<Value>],
    current: Option<&Arc<Value>>,
) -> Plan {
    let mut plan = Plan::default();
    let spec = &service["spec"];
    if is_deleting(service) || spec["type"] == "ExternalName" {
        return plan;
    }
    let selector = spec["selector"].as_object().filter(|terms| !terms.is_empty());
    let slices_by = |manager: &str| -> Vec<&Arc<Value>> {
        let theirs = all_slices.iter().filter(|slice| {
            let labels = &slice["metadata"]["labels"];
            labels[SERVICE_NAME] == service["metadata"]["name"] && labels[MANAGED_BY] == manager
        });
        theirs.collect()
    };
    let families = spec["ipFamilies"].as_array().into_iter().flatten().filter_map(Value::as_str);
    let families: Vec<&str> = families.collect();
    // Those that the Service would not get now, since it has a selector or has lost it.
    let other = if selector.is_some() { MIRRORED } else { OURS };
    for slice in slices_by(other) {
        plan.push(Action::Delete { resource: SLICES, object: slice.clone() });
    }
    let Some(selector) = selector else {
        mirror(service, current, &slices_by(MIRRORED), &mut plan);
        return plan;
    };
    let selector = json!({ "matchLabels": selector });
    let selected = all_pods.iter().filter(|pod| {
        super::selects(&selector, &pod["metadata"]["labels"])
            && !["Succeeded", "Failed"].contains(&pods::phase(pod))
    });
    let selected: Vec<&Value> = selected.map(|pod| &**pod).collect();
    for slice in slices_by(OURS) {
        if !families.contains(&slice["addressType"].as_str().unwrap_or_default()) {
            plan.push(Action::Delete { resource: SLICES, object: slice.clone() });
        }
    }
    for family in &families {
        // Pods that name a port differently have it at different numbers: slices of their own.
        let mut groups = Groups::new();
        for pod in &selected {
            if let Some(endpoint) = endpoint(service, pod, family) {
                let ports = ports(service, pod);
                groups
                    .entry(ports.to_string())
                    .or_insert_with(|| (ports, Vec::new()))
                    .1
                    .push(endpoint);
            }
        }
        if groups.is_empty() {
            // A Service without pods has one slice that says so.
            groups.insert(String::new(), (json!([]), Vec::new()));
        }
        let mut slices = slices_by(OURS);
        slices.retain(|slice| slice["addressType"] == *family);
        let form = Form { service, owner: service, manager: OURS, family };
        plan_slices(&form, groups, slices, &mut plan);
    }
    plan_endpoints(service, families.first().unwrap_or(&"IPv4"), &selected, current, &mut plan);
    plan
}

/// Endpoints by the ports that they have: under the ports' text, the ports and the endpoints.
type Groups = BTreeMap<String, (Value, Vec<Value>)>;

/// What the slices of a Service and family have in common.
struct Form<'a> {
    service: &'a Value,
    owner: &'a Value,
    manager: &'a str,
    family: &'a str,
}

/// Slices that say what an Endpoints object of the Service's name says.
fn mirror(
    service: &Value,
    endpoints: Option<&Arc<Value>>,
    slices: &[&Arc<Value>],
    plan: &mut Plan,
) {
    let endpoints = endpoints.filter(|one| one["metadata"]["labels"][SKIP_MIRROR] != "true");
    for family in ["IPv4", "IPv6"] {
        let mut groups = Groups::new();
        let subsets = endpoints.and_then(|one| one["subsets"].as_array()).into_iter().flatten();
        for subset in subsets {
            let mut ports = subset["ports"].as_array().cloned().unwrap_or_default();
            for port in ports.iter_mut().filter_map(Value::as_object_mut) {
                port.entry("name").or_insert_with(|| json!(""));
                port.entry("protocol").or_insert_with(|| json!("TCP"));
            }
            let ports = json!(ports);
            for (field, ready) in [("addresses", true), ("notReadyAddresses", false)] {
                for address in subset[field].as_array().into_iter().flatten() {
                    let Some(Ok(ip)) = address["ip"].as_str().map(str::parse::<IpAddr>) else {
                        continue;
                    };
                    if ip.is_ipv4() != (family == "IPv4") {
                        continue;
                    }
                    let mut endpoint =
                        json!({ "addresses": [address["ip"]], "conditions": { "ready": ready } });
                    for name in ["hostname", "nodeName", "targetRef"] {
                        if !address[name].is_null() {
                            endpoint[name] = address[name].clone();
                        }
                    }
                    let group = groups
                        .entry(ports.to_string())
                        .or_insert_with(|| (ports.clone(), Vec::new()));
                    group.1.push(endpoint);
                }
            }
        }
        let of_family =
            slices.iter().filter(|slice| slice["addressType"] == family).copied().collect();
        let owner = endpoints.map_or(service, |one| one);
        plan_slices(&Form { service, owner, manager: MIRRORED, family }, groups, of_family, plan);
    }
}

/// Whether the Endpoints object was made from a Service.
pub(super) fn is_ours(endpoints: &Value) -> bool {
    endpoints["metadata"]["labels"][ENDPOINTS_MANAGED_BY] == ENDPOINTS_OURS
}

/// Spreads the endpoints of one family over slices, changing as few of them as possible.
fn plan_slices(form: &Form<'_>, groups: Groups, mut unused: Vec<&Arc<Value>>, plan: &mut Plan) {
    let none_yet = unused.is_empty();
    for (ports, mut missing) in groups.into_values() {
        let empty = missing.is_empty();
        let (mut here, others): (Vec<_>, Vec<_>) =
            unused.into_iter().partition(|slice| same_ports(&slice["ports"], &ports));
        unused = others;
        if here.is_empty() && (empty || !none_yet) {
            // Reuse keeps the name, and watchers see a change instead of a gap.
            let spare = unused.iter().position(|slice| len(slice) == 0 || empty);
            here.extend(spare.map(|index| unused.remove(index)));
        }
        let mut contents: Vec<(Option<&Arc<Value>>, Vec<Value>)> = Vec::new();
        for slice in here {
            let kept = slice["endpoints"].as_array().into_iter().flatten().filter_map(|old| {
                let same = |new: &Value| identity(new) == identity(old);
                missing.iter().position(same).map(|index| missing.remove(index))
            });
            contents.push((Some(slice), kept.collect()));
        }
        let mut missing = missing.into_iter();
        for (_, list) in &mut contents {
            let room = SLICE_LEN_MAX.saturating_sub(list.len());
            list.extend(missing.by_ref().take(room));
        }
        loop {
            let list: Vec<Value> = missing.by_ref().take(SLICE_LEN_MAX).collect();
            if list.is_empty() && !(empty && contents.is_empty()) {
                break;
            }
            contents.push((None, list));
        }
        let mut kept_one = false;
        for (slice, list) in contents {
            match slice {
                Some(slice) if list.is_empty() && (!empty || kept_one) => {
                    plan.push(Action::Delete { resource: SLICES, object: slice.clone() });
                }
                Some(slice) => update_slice(form, slice, &ports, list, plan),
                None => {
                    let object = new_slice(form, &ports, list);
                    plan.push(Action::Create { resource: SLICES, object });
                }
            }
            kept_one = true;
        }
    }
    for slice in unused {
        plan.push(Action::Delete { resource: SLICES, object: slice.clone() });
    }
}

/// By what an endpoint is found again.
fn identity(endpoint: &Value) -> &Value {
    let uid = &endpoint["targetRef"]["uid"];
    if uid.is_null() { &endpoint["addresses"][0] } else { uid }
}

fn len(slice: &Value) -> usize {
    slice["endpoints"].as_array().map_or(0, Vec::len)
}

/// No ports may be written in two ways.
fn same_ports(a: &Value, b: &Value) -> bool {
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    list(a) == list(b)
}

fn labels(service: &Value, more: &[(&str, &str)]) -> Value {
    let mut labels = service["metadata"]["labels"].as_object().cloned().unwrap_or_default();
    for (key, value) in more {
        labels.insert((*key).into(), json!(value));
    }
    if service["spec"]["clusterIP"] == "None" {
        labels.insert(HEADLESS.into(), json!(""));
    }
    Value::Object(labels)
}

fn slice_labels(form: &Form<'_>) -> Value {
    labels(form.service, &[(SERVICE_NAME, name(form.service)), (MANAGED_BY, form.manager)])
}

fn new_slice(form: &Form<'_>, ports: &Value, endpoints: Vec<Value>) -> Value {
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {
            "generateName": format!("{}-", name(form.service)),
            "namespace": form.service["metadata"]["namespace"],
            "labels": slice_labels(form),
            "ownerReferences": [pods::owner_reference(form.owner)],
        },
        "addressType": form.family, "endpoints": endpoints, "ports": ports,
    })
}

fn update_slice(
    form: &Form<'_>,
    slice: &Arc<Value>,
    ports: &Value,
    endpoints: Vec<Value>,
    plan: &mut Plan,
) {
    let labels = slice_labels(form);
    let endpoints = json!(endpoints);
    let before = slice["endpoints"].as_array().cloned().unwrap_or_default();
    let same = json!(before) == endpoints && same_ports(&slice["ports"], ports);
    if same && slice["metadata"]["labels"] == labels {
        return;
    }
    let labels = replaced(&slice["metadata"]["labels"], labels);
    let patch = json!({ "metadata": { "labels": labels }, "endpoints": endpoints, "ports": ports });
    plan.push(Action::Merge { resource: SLICES, object: slice.clone(), patch });
}

/// A merge patch that makes one map of another.
fn replaced(old: &Value, mut new: Value) -> Value {
    for key in old.as_object().into_iter().flatten().map(|(key, _)| key) {
        if new[key].is_null() {
            new[key] = Value::Null;
        }
    }
    new
}

fn addresses(pod: &Value, family: &str) -> Vec<String> {
    let many = pod["status"]["podIPs"].as_array().into_iter().flatten().map(|one| &one["ip"]);
    let mut all: Vec<&str> = many.filter_map(Value::as_str).collect();
    if all.is_empty() {
        all.extend(pod["status"]["podIP"].as_str());
    }
    let of_family = |text: &&str| {
        text.parse::<IpAddr>().is_ok_and(|address| address.is_ipv4() == (family == "IPv4"))
    };
    all.into_iter().filter(of_family).map(str::to_owned).collect()
}

fn reference(pod: &Value) -> Value {
    json!({ "kind": "Pod", "namespace": pod["metadata"]["namespace"], "name": name(pod), "uid": uid(pod) })
}

/// The name under which the pod is found below the Service's own.
fn hostname<'a>(service: &Value, pod: &'a Value) -> Option<&'a Value> {
    let named = pod["spec"]["hostname"].as_str().is_some_and(|name| !name.is_empty());
    (named && pod["spec"]["subdomain"] == service["metadata"]["name"])
        .then(|| &pod["spec"]["hostname"])
}

fn endpoint(service: &Value, pod: &Value, family: &str) -> Option<Value> {
    let addresses = addresses(pod, family);
    if addresses.is_empty() {
        return None;
    }
    let (serving, terminating) = (is_ready(pod), is_deleting(pod));
    let ready = service["spec"]["publishNotReadyAddresses"] == true || (serving && !terminating);
    let mut endpoint = json!({
        "addresses": addresses[..1],
        "conditions": { "ready": ready, "serving": serving, "terminating": terminating },
        "targetRef": reference(pod),
    });
    if pod["spec"]["nodeName"].is_string() {
        endpoint["nodeName"] = pod["spec"]["nodeName"].clone();
    }
    if let Some(hostname) = hostname(service, pod) {
        endpoint["hostname"] = hostname.clone();
    }
    Some(endpoint)
}

/// The Service's ports as numbers of this pod; those that it does not have are left out.
fn ports(service: &Value, pod: &Value) -> Value {
    let all = service["spec"]["ports"].as_array().into_iter().flatten();
    let ports = all.filter_map(|port| {
        let protocol = port["protocol"].as_str().unwrap_or("TCP");
        let number = match &port["targetPort"] {
            Value::String(wanted) => named_port(pod, wanted, protocol)?,
            Value::Null => port["port"].clone(),
            number => number.clone(),
        };
        let name = port["name"].as_str().unwrap_or_default();
        let mut value = json!({ "name": name, "port": number, "protocol": protocol });
        if port["appProtocol"].is_string() {
            value["appProtocol"] = port["appProtocol"].clone();
        }
        Some(value)
    });
    ports.collect()
}

fn named_port(pod: &Value, wanted: &str, protocol: &str) -> Option<Value> {
    let sidecars = pod["spec"]["initContainers"].as_array().into_iter().flatten();
    let sidecars = sidecars.filter(|one| one["restartPolicy"] == "Always");
    let containers = pod["spec"]["containers"].as_array().into_iter().flatten().chain(sidecars);
    let mut ports = containers.flat_map(|one| one["ports"].as_array().into_iter().flatten());
    let named = |port: &&Value| {
        port["name"] == wanted && port["protocol"].as_str().unwrap_or("TCP") == protocol
    };
    ports.find(named).map(|port| port["containerPort"].clone())
}

/// Addresses with the same ports, as Endpoints have them.
#[derive(Default)]
struct Subset {
    ports: Value,
    ready: BTreeMap<IpAddr, Value>,
    unready: BTreeMap<IpAddr, Value>,
}

impl Subset {
    fn into_value(self) -> Value {
        let mut subset = json!({ "ports": self.ports });
        for (field, list) in [("addresses", self.ready), ("notReadyAddresses", self.unready)] {
            if !list.is_empty() {
                subset[field] = list.into_values().collect();
            }
        }
        subset
    }
}

/// The older form: one object per Service, one family, pods that end are left out.
fn plan_endpoints(
    service: &Arc<Value>,
    family: &str,
    selected: &[&Value],
    current: Option<&Arc<Value>>,
    plan: &mut Plan,
) {
    let unready_too = service["spec"]["publishNotReadyAddresses"] == true;
    let mut groups: BTreeMap<String, Subset> = BTreeMap::new();
    let mut seen = HashSet::new();
    for pod in selected.iter().filter(|pod| unready_too || !is_deleting(pod)) {
        let Some(text) = addresses(pod, family).into_iter().next() else { continue };
        let Ok(address) = text.parse::<IpAddr>() else { continue };
        if seen.len() == ENDPOINTS_LEN_MAX || !seen.insert(address) {
            continue;
        }
        let mut value = json!({ "ip": text, "targetRef": reference(pod) });
        if pod["spec"]["nodeName"].is_string() {
            value["nodeName"] = pod["spec"]["nodeName"].clone();
        }
        if let Some(hostname) = hostname(service, pod) {
            value["hostname"] = hostname.clone();
        }
        let mut ports = ports(service, pod);
        for port in ports.as_array_mut().into_iter().flatten().filter(|port| port["name"] == "") {
            port.as_object_mut().map(|port| port.remove("name"));
        }
        let subset = groups.entry(ports.to_string()).or_default();
        subset.ports = ports;
        let ready = unready_too || is_ready(pod);
        let list = if ready { &mut subset.ready } else { &mut subset.unready };
        list.insert(address, value);
    }
    let subsets: Vec<Value> = groups.into_values().map(Subset::into_value).collect();
    let labels = labels(service, &[(ENDPOINTS_MANAGED_BY, ENDPOINTS_OURS)]);
    let Some(current) = current else {
        let object = json!({
            "apiVersion": "v1", "kind": "Endpoints",
            "metadata": { "name": name(service), "namespace": service["metadata"]["namespace"], "labels": labels },
            "subsets": subsets,
        });
        plan.push(Action::Create { resource: ENDPOINTS, object });
        return;
    };
    let before = current["subsets"].as_array().cloned().unwrap_or_default();
    if before != subsets || current["metadata"]["labels"] != labels {
        let labels = replaced(&current["metadata"]["labels"], labels);
        let patch = json!({ "metadata": { "labels": labels }, "subsets": subsets });
        plan.push(Action::Merge { resource: ENDPOINTS, object: current.clone(), patch });
    }
}
