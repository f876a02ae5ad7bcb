//! Services: defaults, what is refused, and which addresses and node ports they get.
//!
//! What is taken is not stored anywhere: [`Allocations`] is a view of the Services that
//! are there, so nothing can leak. Whoever allocates holds its lock until the Service
//! is stored.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde_json::{Value, json};

use super::object::{Key, Object, random};
use super::schema::object_at;
use super::status::FieldError;
use super::store::{Change, Cursor, Store};

/// Where cluster IPs come from, the default family first.
const CLUSTER_IP_RANGES: [IpNet; 2] = [
    IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(10, 96, 0, 0), 16)),
    IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::new(0xfd00, 0x10, 0x96, 0, 0, 0, 0, 0), 112)),
];
/// Where node ports come from.
const NODE_PORTS: RangeInclusive<i64> = 30_000..=32_767;
/// The first addresses of a range are for those who ask for one by name.
const RESERVED_ADDRESSES: u32 = 256;
/// How long a client stays with its backend when it is to stay.
const AFFINITY_SECONDS_DEFAULT: i64 = 10_800;
/// Events that are read at once.
const BATCH: usize = 1_024;

/// Which addresses and node ports are taken, and by whom.
#[derive(Default)]
pub(super) struct Allocations {
    cursor: Option<Cursor>,
    addresses: HashMap<IpAddr, Key>,
    /// By protocol and number.
    node_ports: HashMap<(String, i64), Key>,
}

impl Allocations {
    /// Takes in what happened to the Services since the last time.
    pub(super) fn catch_up(&mut self, store: &Store) {
        let events = self.cursor.as_mut().and_then(|cursor| {
            let mut events = Vec::new();
            loop {
                let more = store.read(cursor, BATCH)?;
                let last = more.len() < BATCH;
                events.extend(more);
                if last {
                    return Some(events);
                }
            }
        });
        let Some(events) = events else {
            let (version, services) = store.list(&"services".into());
            *self =
                Self { cursor: Some(store.watch(&"services".into(), version)), ..Self::default() };
            services.values().for_each(|service| self.add(service));
            return;
        };
        for event in events {
            let key = &event.object.key;
            self.addresses.retain(|_, owner| owner != key);
            self.node_ports.retain(|_, owner| owner != key);
            if event.change != Change::Deleted {
                self.add(&event.object);
            }
        }
    }

    fn add(&mut self, service: &Object) {
        let value = service.value();
        for address in addresses(&value) {
            self.addresses.insert(address, service.key.clone());
        }
        for port in ports(&value) {
            if let Some(number) = port["nodePort"].as_i64() {
                self.node_ports.insert((protocol(port), number), service.key.clone());
            }
        }
    }

    fn next_address(&self, range: IpNet) -> Option<IpAddr> {
        // Both ranges have 16 bits of host part.
        let start = u32::from(u16::from_be_bytes(random()));
        let upper = 65_535 - RESERVED_ADDRESSES;
        let high = (0..upper).map(|n| RESERVED_ADDRESSES + (start + n) % upper);
        let mut candidates = high.chain(1..RESERVED_ADDRESSES).map(|n| nth(range, n));
        candidates.find(|address| !self.addresses.contains_key(address))
    }

    fn next_node_port(&self, protocol: &str, also: &[(String, i64)]) -> Option<i64> {
        let len = NODE_PORTS.end() - NODE_PORTS.start() + 1;
        let start = i64::from(u16::from_be_bytes(random()));
        let mut candidates = (0..len).map(|n| NODE_PORTS.start() + (start + n) % len);
        candidates.find(|port| {
            let port = (protocol.to_owned(), *port);
            !self.node_ports.contains_key(&port) && !also.contains(&port)
        })
    }
}

fn nth(range: IpNet, n: u32) -> IpAddr {
    match range {
        IpNet::V4(range) => (u32::from(range.network()) + n).to_be_bytes().into(),
        IpNet::V6(range) => (u128::from(range.network()) + u128::from(n)).to_be_bytes().into(),
    }
}

fn family_of(address: &IpAddr) -> &'static str {
    if address.is_ipv4() { "IPv4" } else { "IPv6" }
}

fn range_of(family: &str) -> IpNet {
    if family == "IPv4" { CLUSTER_IP_RANGES[0] } else { CLUSTER_IP_RANGES[1] }
}

fn other_family(family: &str) -> &'static str {
    if family == "IPv4" { "IPv6" } else { "IPv4" }
}

fn texts(value: &Value) -> Vec<String> {
    let list = value.as_array().into_iter().flatten();
    list.filter_map(|one| one.as_str().map(str::to_owned)).collect()
}

fn ports(service: &Value) -> &[Value] {
    service["spec"]["ports"].as_array().map(Vec::as_slice).unwrap_or_default()
}

fn protocol(port: &Value) -> String {
    port["protocol"].as_str().unwrap_or("TCP").to_owned()
}

fn addresses(service: &Value) -> Vec<IpAddr> {
    let texts = texts(&service["spec"]["clusterIPs"]);
    texts.iter().filter_map(|text| text.parse().ok()).collect()
}

fn kind(service: &Value) -> &str {
    service["spec"]["type"].as_str().unwrap_or("ClusterIP")
}

fn is_headless(service: &Value) -> bool {
    service["spec"]["clusterIP"] == "None" || service["spec"]["clusterIPs"][0] == "None"
}

fn has_selector(service: &Value) -> bool {
    service["spec"]["selector"].as_object().is_some_and(|map| !map.is_empty())
}

fn needs_cluster_ip(service: &Value) -> bool {
    kind(service) != "ExternalName"
}

fn needs_node_port(service: &Value) -> bool {
    match kind(service) {
        "NodePort" => true,
        "LoadBalancer" => service["spec"]["allocateLoadBalancerNodePorts"] != false,
        _ => false,
    }
}

/// Fills in what the manifest leaves open.
pub(super) fn default(service: &mut Value) {
    let spec = object_at(service, "spec");
    spec.entry("type").or_insert_with(|| json!("ClusterIP"));
    let affinity = spec.entry("sessionAffinity").or_insert_with(|| json!("None"));
    if affinity == "ClientIP" {
        spec.entry("sessionAffinityConfig").or_insert_with(
            || json!({ "clientIP": { "timeoutSeconds": AFFINITY_SECONDS_DEFAULT } }),
        );
    }
    let kind = spec["type"].as_str().unwrap_or_default().to_owned();
    if kind != "ExternalName" {
        spec.entry("internalTrafficPolicy").or_insert_with(|| json!("Cluster"));
    }
    if kind == "NodePort" || kind == "LoadBalancer" {
        spec.entry("externalTrafficPolicy").or_insert_with(|| json!("Cluster"));
    }
    if kind == "LoadBalancer" {
        spec.entry("allocateLoadBalancerNodePorts").or_insert_with(|| json!(true));
    }
    for port in spec.get_mut("ports").and_then(Value::as_array_mut).into_iter().flatten() {
        if port["protocol"].is_null() {
            port["protocol"] = json!("TCP");
        }
        if port["targetPort"].is_null() || port["targetPort"] == 0 || port["targetPort"] == "" {
            port["targetPort"] = port["port"].clone();
        }
        if port["nodePort"] == 0 {
            port.as_object_mut().map(|port| port.remove("nodePort"));
        }
    }
    normalise(service, None);
}

/// `clusterIP` and the first of `clusterIPs` are the same; a client may set either.
fn normalise(service: &mut Value, old: Option<&Value>) {
    let spec = object_at(service, "spec");
    for name in ["clusterIP", "clusterIPs"] {
        if spec.get(name).is_some_and(|value| *value == "" || *value == json!([])) {
            spec.remove(name);
        }
    }
    let old = old.map(|old| &old["spec"]);
    let unchanged =
        |name: &str, new: Option<&Value>| old.is_some_and(|old| Some(&old[name]) == new);
    match (spec.get("clusterIP").cloned(), spec.get("clusterIPs").cloned()) {
        (Some(one), None) => {
            spec.insert("clusterIPs".into(), json!([one]));
        }
        (None, Some(list)) if old.is_none() => {
            spec.insert("clusterIP".into(), list[0].clone());
        }
        (None, Some(list)) if unchanged("clusterIPs", Some(&list)) => {
            spec.remove("clusterIPs");
        }
        (Some(one), Some(list))
            if !unchanged("clusterIP", Some(&one)) && unchanged("clusterIPs", Some(&list)) =>
        {
            spec.insert("clusterIPs".into(), json!([one]));
        }
        _ => {}
    }
}

/// Keeps what was allocated, where the new form still has a use for it.
pub(super) fn keep_allocated(new: &mut Value, old: &Value) {
    normalise(new, Some(old));
    if needs_cluster_ip(old) && needs_cluster_ip(new) {
        let spec = object_at(new, "spec");
        if !spec.contains_key("clusterIP") && !spec.contains_key("clusterIPs") {
            take(spec, &old["spec"], "clusterIP");
        }
        let same = spec.get("clusterIP") == Some(&old["spec"]["clusterIP"]);
        if same
            && spec.get("clusterIPs").is_none_or(|list| list.as_array().is_some_and(Vec::is_empty))
        {
            take(spec, &old["spec"], "clusterIPs");
            if !spec.contains_key("ipFamilies") {
                take(spec, &old["spec"], "ipFamilies");
            }
        }
        if !spec.contains_key("ipFamilyPolicy") {
            take(spec, &old["spec"], "ipFamilyPolicy");
        }
    }
    if needs_cluster_ip(old) && !needs_cluster_ip(new) {
        for name in
            ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy", "internalTrafficPolicy"]
        {
            let spec = object_at(new, "spec");
            if spec.get(name) == old["spec"].get(name) {
                spec.remove(name);
            }
        }
    }
    let mut used: Vec<Value> = ports(new).iter().map(|port| port["nodePort"].clone()).collect();
    let (before, after) = (needs_node_port(old), needs_node_port(new));
    let list = object_at(new, "spec").get_mut("ports").and_then(Value::as_array_mut);
    for port in list.into_iter().flatten() {
        let same = |one: &&Value| one["port"] == port["port"] && protocol(one) == protocol(port);
        let Some(known) = ports(old).iter().find(same) else { continue };
        let number = &known["nodePort"];
        if before
            && after
            && port["nodePort"].is_null()
            && number.is_i64()
            && !used.contains(number)
        {
            port["nodePort"] = number.clone();
            used.push(number.clone());
        }
        if before && !after && port["nodePort"] == *number {
            port.as_object_mut().map(|port| port.remove("nodePort"));
        }
    }
    if before
        && !after
        && new["spec"]["externalTrafficPolicy"] == old["spec"]["externalTrafficPolicy"]
    {
        object_at(new, "spec").remove("externalTrafficPolicy");
    }
}

fn take(spec: &mut serde_json::Map<String, Value>, old: &Value, name: &str) {
    if let Some(value) = old.get(name) {
        spec.insert(name.into(), value.clone());
    }
}

/// What is wrong with a Service, new or changed.
pub(super) fn validate(service: &Value, errors: &mut Vec<FieldError>) {
    let spec = &service["spec"];
    let kind = kind(service);
    let headless = is_headless(service);
    let supported = |field: &str, value: &Value, choices: &[&str], errors: &mut Vec<FieldError>| {
        if !value.is_null() && !choices.contains(&value.as_str().unwrap_or_default()) {
            errors.push(FieldError::not_supported(field, value.clone(), choices));
        }
    };
    supported(
        "spec.type",
        &spec["type"],
        &["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"],
        errors,
    );
    supported("spec.sessionAffinity", &spec["sessionAffinity"], &["ClientIP", "None"], errors);
    let traffic = ["Cluster", "Local"];
    supported("spec.internalTrafficPolicy", &spec["internalTrafficPolicy"], &traffic, errors);
    supported("spec.externalTrafficPolicy", &spec["externalTrafficPolicy"], &traffic, errors);
    let policies = ["SingleStack", "PreferDualStack", "RequireDualStack"];
    supported("spec.ipFamilyPolicy", &spec["ipFamilyPolicy"], &policies, errors);
    if ports(service).is_empty() && !headless && kind != "ExternalName" {
        errors.push(FieldError::required("spec.ports", ""));
    }
    if kind == "ExternalName" {
        if spec["externalName"].as_str().unwrap_or_default().is_empty() {
            errors.push(FieldError::required("spec.externalName", ""));
        }
        if spec["clusterIP"].is_string() {
            let detail = "may not be set when `type` is 'ExternalName'";
            errors.push(FieldError::forbidden("spec.clusterIPs[0]", detail));
        }
    }
    if headless && ["NodePort", "LoadBalancer"].contains(&kind) {
        let detail = format!("may not be set to 'None' for {kind} services");
        errors.push(FieldError::invalid("spec.clusterIPs[0]", "None", detail));
    }
    if matches!(kind, "ClusterIP" | "ExternalName") && spec["externalTrafficPolicy"].is_string() {
        let detail = "may only be set for externally-accessible services";
        errors.push(FieldError::invalid(
            "spec.externalTrafficPolicy",
            spec["externalTrafficPolicy"].clone(),
            detail,
        ));
    }
    super::names::check_labels("spec.selector", &spec["selector"], errors);
    validate_ports(service, errors);
    validate_families(service, errors);
}

fn validate_ports(service: &Value, errors: &mut Vec<FieldError>) {
    let all = ports(service);
    let port_range = 1..=65_535;
    for (index, port) in all.iter().enumerate() {
        let field = |name: &str| format!("spec.ports[{index}].{name}");
        let before = &all[..index];
        let out_of_range = "must be between 1 and 65535, inclusive";
        if !port_range.contains(&port["port"].as_i64().unwrap_or(0)) {
            errors.push(FieldError::invalid(field("port"), port["port"].clone(), out_of_range));
        }
        if port["targetPort"].as_i64().is_some_and(|number| !port_range.contains(&number)) {
            errors.push(FieldError::invalid(
                field("targetPort"),
                port["targetPort"].clone(),
                out_of_range,
            ));
        }
        if !["SCTP", "TCP", "UDP"].contains(&protocol(port).as_str()) {
            let choices = ["SCTP", "TCP", "UDP"];
            errors.push(FieldError::not_supported(
                field("protocol"),
                port["protocol"].clone(),
                &choices,
            ));
        }
        let name = port["name"].as_str().unwrap_or_default();
        if name.is_empty() {
            if all.len() > 1 {
                errors.push(FieldError::required(field("name"), ""));
            }
        } else {
            super::names::check_label(&field("name"), name, errors);
            if before.iter().any(|other| other["name"] == name) {
                errors.push(FieldError::duplicate(field("name"), name));
            }
        }
        if port["nodePort"].is_i64() && matches!(kind(service), "ClusterIP" | "ExternalName") {
            let detail = format!("may not be used when `type` is '{}'", kind(service));
            errors.push(FieldError::forbidden(field("nodePort"), detail));
        }
        let same = |name: &str| {
            before
                .iter()
                .any(|other| other[name] == port[name] && protocol(other) == protocol(port))
        };
        if same("port") {
            let value = json!({ "port": port["port"], "protocol": port["protocol"] });
            errors.push(FieldError::duplicate(format!("spec.ports[{index}]"), value));
        }
        if port["nodePort"].is_i64() && same("nodePort") {
            errors.push(FieldError::duplicate(field("nodePort"), port["nodePort"].clone()));
        }
    }
}

fn validate_families(service: &Value, errors: &mut Vec<FieldError>) {
    let spec = &service["spec"];
    let (families, list) = (texts(&spec["ipFamilies"]), texts(&spec["clusterIPs"]));
    for (index, family) in families.iter().enumerate() {
        let field = format!("spec.ipFamilies[{index}]");
        if !["IPv4", "IPv6"].contains(&family.as_str()) {
            errors.push(FieldError::not_supported(field, family.as_str(), &["IPv4", "IPv6"]));
        } else if families[..index].contains(family) {
            errors.push(FieldError::duplicate(field, family.as_str()));
        }
    }
    if list.len() > 2 {
        let detail = "may only hold up to 2 values";
        errors.push(FieldError::invalid("spec.clusterIPs", spec["clusterIPs"].clone(), detail));
    }
    if list.first().map(String::as_str) != spec["clusterIP"].as_str() {
        let detail = "first value must match `clusterIP`";
        errors.push(FieldError::invalid("spec.clusterIPs", spec["clusterIPs"].clone(), detail));
    }
    for (index, text) in list.iter().enumerate() {
        let field = format!("spec.clusterIPs[{index}]");
        if text == "None" {
            if list.len() > 1 {
                let detail = "'None' must be the first and only value";
                errors.push(FieldError::invalid(field, text.as_str(), detail));
            }
            continue;
        }
        let Ok(address) = text.parse::<IpAddr>() else {
            let detail = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)";
            errors.push(FieldError::invalid(field, text.as_str(), detail));
            continue;
        };
        if let Some(family) = families.get(index)
            && family != family_of(&address)
        {
            let detail =
                format!("expected an {family} value as indicated by `ipFamilies[{index}]`");
            errors.push(FieldError::invalid(field, text.as_str(), detail));
        }
    }
    if list.len() == 2 && list[0].contains(':') == list[1].contains(':') {
        let detail = "may specify no more than one IP for each IP family";
        errors.push(FieldError::invalid("spec.clusterIPs", spec["clusterIPs"].clone(), detail));
    }
}

/// What may not change once it is there.
pub(super) fn validate_update(new: &Value, old: &Value, errors: &mut Vec<FieldError>) {
    if !needs_cluster_ip(new) || !needs_cluster_ip(old) {
        return;
    }
    let fixed = "may not change once set";
    for name in ["clusterIPs", "ipFamilies"] {
        let (before, after) = (&old["spec"][name], &new["spec"][name]);
        let (before, after) = (texts(before), texts(after));
        if let Some(first) = before.first()
            && after.first() != Some(first)
        {
            let field = format!("spec.{name}[0]");
            let value = if name == "clusterIPs" { json!(after) } else { json!(after.first()) };
            errors.push(FieldError::invalid(field, value, fixed));
        }
        if let (Some(second), Some(other)) = (before.get(1), after.get(1))
            && second != other
        {
            let value = if name == "clusterIPs" { json!(after) } else { json!(other) };
            errors.push(FieldError::invalid(format!("spec.{name}[1]"), value, fixed));
        }
    }
}

/// Gives the Service the addresses and node ports that it needs and does not have.
pub(super) fn allocate(
    service: &mut Value,
    old: Option<&Value>,
    allocations: &Allocations,
) -> Vec<FieldError> {
    if !needs_cluster_ip(service) {
        return Vec::new();
    }
    let errors = choose_families(service, old);
    if !errors.is_empty() {
        return errors;
    }
    let mut errors = Vec::new();
    if !is_headless(service) {
        allocate_addresses(service, allocations, &mut errors);
    }
    if needs_node_port(service) {
        allocate_node_ports(service, allocations, &mut errors);
    }
    errors
}

/// Settles `ipFamilyPolicy` and `ipFamilies`.
fn choose_families(service: &mut Value, old: Option<&Value>) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let free = is_headless(service) && !has_selector(service);
    let spec = object_at(service, "spec");
    let policy = match spec.get("ipFamilyPolicy").and_then(Value::as_str) {
        Some(policy) => policy.to_owned(),
        None if free => "RequireDualStack".to_owned(),
        None => "SingleStack".to_owned(),
    };
    spec.insert("ipFamilyPolicy".into(), json!(policy));
    let mut families = texts(spec.get("ipFamilies").unwrap_or(&Value::Null));
    let mut list = texts(spec.get("clusterIPs").unwrap_or(&Value::Null));
    if let Some(old) = old {
        let (before, before_families) =
            (texts(&old["spec"]["clusterIPs"]), texts(&old["spec"]["ipFamilies"]));
        if policy == "SingleStack" {
            if list == before {
                list.truncate(1);
            }
            if families == before_families {
                families.truncate(1);
            }
        } else {
            for (fewer, what) in [
                (list.len() < before.len(), "secondary cluster IP"),
                (families.len() < before_families.len(), "secondary IP family"),
            ] {
                if fewer {
                    let detail = format!("must be 'SingleStack' to release the {what}");
                    errors.push(FieldError::invalid(
                        "spec.ipFamilyPolicy",
                        policy.as_str(),
                        detail,
                    ));
                }
            }
        }
    }
    if policy == "SingleStack" {
        for (len, what) in [(list.len(), "cluster IPs"), (families.len(), "IP families")] {
            if len == 2 {
                let detail = format!(
                    "must be 'RequireDualStack' or 'PreferDualStack' when multiple {what} are specified"
                );
                errors.push(FieldError::invalid("spec.ipFamilyPolicy", policy.as_str(), detail));
            }
        }
    }
    for text in list.iter().skip(families.len()) {
        if let Ok(address) = text.parse() {
            families.push(family_of(&address).to_owned());
        }
    }
    if families.is_empty() {
        families.push("IPv4".into());
    }
    if families.len() == 1 && policy != "SingleStack" {
        families.push(other_family(&families[0]).to_owned());
    }
    spec.insert("ipFamilies".into(), json!(families));
    if !list.is_empty() {
        spec.insert("clusterIPs".into(), json!(list));
    }
    errors
}

fn allocate_addresses(service: &mut Value, taken: &Allocations, errors: &mut Vec<FieldError>) {
    let own = own_key(service);
    let families = texts(&service["spec"]["ipFamilies"]);
    let mut list = texts(&service["spec"]["clusterIPs"]);
    for (index, family) in families.iter().enumerate() {
        let range = range_of(family);
        let Some(text) = list.get(index).cloned() else {
            match taken.next_address(range) {
                Some(address) => list.push(address.to_string()),
                None => errors.push(FieldError::invalid(
                    "spec.clusterIPs",
                    json!(list),
                    "failed to allocate a serviceIP: range is full",
                )),
            }
            continue;
        };
        let Ok(address) = text.parse::<IpAddr>() else { continue };
        let usable = range.contains(&address) && address != range.network();
        let detail = if !usable {
            format!(
                "the provided IP ({address}) is not in the valid range. The range of valid IPs is {range}"
            )
        } else if taken.addresses.get(&address).is_some_and(|owner| *owner != own) {
            "provided IP is already allocated".to_owned()
        } else {
            continue;
        };
        let detail = format!("failed to allocate IP {address}: {detail}");
        errors.push(FieldError::invalid("spec.clusterIPs", json!(list), detail));
    }
    let spec = object_at(service, "spec");
    spec.insert("clusterIP".into(), json!(list.first()));
    spec.insert("clusterIPs".into(), json!(list));
}

fn allocate_node_ports(service: &mut Value, taken: &Allocations, errors: &mut Vec<FieldError>) {
    let own = own_key(service);
    let list = object_at(service, "spec").get_mut("ports").and_then(Value::as_array_mut);
    let Some(list) = list else { return };
    let mut also: Vec<(String, i64)> = Vec::new();
    for (index, port) in list.iter().enumerate() {
        let Some(number) = port["nodePort"].as_i64() else { continue };
        let field = format!("spec.ports[{index}].nodePort");
        let key = (protocol(port), number);
        if !NODE_PORTS.contains(&number) {
            let detail = format!(
                "provided port is not in the valid range. The range of valid ports is {}-{}",
                NODE_PORTS.start(),
                NODE_PORTS.end()
            );
            errors.push(FieldError::invalid(field, number, detail));
        } else if taken.node_ports.get(&key).is_some_and(|owner| *owner != own) {
            errors.push(FieldError::invalid(field, number, "provided port is already allocated"));
        }
        also.push(key);
    }
    for (index, port) in list.iter_mut().enumerate() {
        if port["nodePort"].is_i64() {
            continue;
        }
        let protocol = protocol(port);
        match taken.next_node_port(&protocol, &also) {
            Some(number) => {
                port["nodePort"] = json!(number);
                also.push((protocol, number));
            }
            None => errors.push(FieldError::invalid(
                format!("spec.ports[{index}].nodePort"),
                0,
                "failed to allocate a nodePort: range is full",
            )),
        }
    }
}

fn own_key(service: &Value) -> Key {
    let text = |name: &str| service["metadata"][name].as_str().unwrap_or_default();
    Key::new(text("namespace"), text("name"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::apiserver::api::{Api, Target, WriteOptions};
    use crate::apiserver::patch::Patch;

    fn cluster() -> (Api, Target) {
        let api = Api::new(String::new());
        let namespaces = api.target("namespaces", "", "").unwrap();
        api.create(&namespaces, json!({ "metadata": { "name": "n" } }), &options()).unwrap();
        let target = api.target("services", "n", "").unwrap();
        (api, target)
    }

    fn options() -> WriteOptions {
        WriteOptions::by("test")
    }

    fn create(name: &str, spec: Value) -> Result<Value, String> {
        let (api, target) = cluster();
        create_in(&api, &target, name, spec)
    }

    fn create_in(api: &Api, target: &Target, name: &str, mut spec: Value) -> Result<Value, String> {
        if spec["ports"].is_null() {
            spec["ports"] = json!([{ "port": 80 }]);
        }
        let value = json!({ "metadata": { "name": name }, "spec": spec });
        let created = api.create(target, value, &options()).map_err(|error| error.to_string())?;
        Ok(created.object.value()["spec"].clone())
    }

    fn patch(api: &Api, target: &Target, name: &str, patch: Value) -> Result<Value, String> {
        let changed = api.patch(&target.named(name), &Patch::Merge(patch), &options());
        Ok(changed.map_err(|error| error.to_string())?.object.value()["spec"].clone())
    }

    #[test]
    fn families_follow_the_policy() {
        let check = |spec: Value, families: &[&str], policy: &str, len: usize| {
            let got = create("s", spec.clone()).unwrap();
            assert_eq!(got["ipFamilies"], json!(families), "{spec}");
            assert_eq!(got["ipFamilyPolicy"], policy, "{spec}");
            assert_eq!(addresses(&json!({ "spec": got })).len(), len, "{spec}");
            let list = texts(&got["clusterIPs"]);
            assert_eq!(got["clusterIP"].as_str(), list.first().map(String::as_str), "{spec}");
            for (address, family) in addresses(&json!({ "spec": got })).iter().zip(families) {
                assert!(range_of(family).contains(address), "{got}");
            }
        };
        check(json!({ "selector": { "a": "b" } }), &["IPv4"], "SingleStack", 1);
        check(json!({ "ipFamilies": ["IPv6"] }), &["IPv6"], "SingleStack", 1);
        check(
            json!({ "ipFamilyPolicy": "PreferDualStack" }),
            &["IPv4", "IPv6"],
            "PreferDualStack",
            2,
        );
        check(
            json!({ "ipFamilyPolicy": "RequireDualStack", "ipFamilies": ["IPv6"] }),
            &["IPv6", "IPv4"],
            "RequireDualStack",
            2,
        );
        check(json!({ "clusterIP": "fd00:10:96::a" }), &["IPv6"], "SingleStack", 1);
        check(
            json!({ "clusterIP": "None", "selector": { "a": "b" } }),
            &["IPv4"],
            "SingleStack",
            0,
        );
        check(json!({ "clusterIP": "None" }), &["IPv4", "IPv6"], "RequireDualStack", 0);
    }

    #[test]
    fn what_is_wrong_is_said_in_the_words_of_kubernetes() {
        let check = |spec: Value, expected: &str| {
            let error = create("s", spec.clone()).unwrap_err();
            assert!(error.contains(expected), "{spec}\n{error}");
        };
        check(
            json!({ "clusterIP": "192.0.2.1" }),
            "failed to allocate IP 192.0.2.1: the provided IP (192.0.2.1) is not in the valid range. The range of valid IPs is 10.96.0.0/16",
        );
        check(json!({ "clusterIP": "x" }), "must be a valid IP address");
        check(
            json!({ "ipFamilies": ["IPv4", "IPv6"] }),
            "must be 'RequireDualStack' or 'PreferDualStack' when multiple IP families",
        );
        check(
            json!({ "type": "NodePort", "ports": [{ "port": 80, "nodePort": 80 }] }),
            "spec.ports[0].nodePort: Invalid value: 80: provided port is not in the valid range. The range of valid ports is 30000-32767",
        );
        check(
            json!({ "ports": [{ "port": 80, "nodePort": 30_000 }] }),
            "may not be used when `type` is 'ClusterIP'",
        );
        check(json!({ "type": "ExternalName" }), "spec.externalName: Required value");
        check(
            json!({ "type": "NodePort", "clusterIP": "None" }),
            "may not be set to 'None' for NodePort services",
        );
        check(
            json!({ "type": "Nonsense" }),
            "spec.type: Unsupported value: \"Nonsense\": supported values: \"ClusterIP\", \"ExternalName\"",
        );
        check(
            json!({ "ports": [{ "port": 80, "name": "a" }, { "port": 80, "name": "b" }] }),
            "Duplicate value",
        );
    }

    #[test]
    fn what_is_taken_is_refused_and_free_again_after() {
        let (api, target) = cluster();
        create_in(&api, &target, "a", json!({ "clusterIP": "10.96.0.10" })).unwrap();
        let error =
            create_in(&api, &target, "b", json!({ "clusterIP": "10.96.0.10" })).unwrap_err();
        assert!(error.contains("provided IP is already allocated"), "{error}");
        api.delete(&target.named("a"), &Default::default()).unwrap();
        create_in(&api, &target, "b", json!({ "clusterIP": "10.96.0.10" })).unwrap();
        let node_port =
            json!({ "type": "NodePort", "ports": [{ "port": 80, "nodePort": 30_080 }] });
        create_in(&api, &target, "c", node_port.clone()).unwrap();
        let error = create_in(&api, &target, "d", node_port).unwrap_err();
        assert!(error.contains("provided port is already allocated"), "{error}");
    }

    #[test]
    fn changes_keep_what_was_allocated() {
        let (api, target) = cluster();
        let before = create_in(&api, &target, "s", json!({ "type": "NodePort" })).unwrap();
        let replaced = json!({ "metadata": { "name": "s" }, "spec": { "type": "NodePort", "ports": [{ "port": 80 }] } });
        let after = api.update(&target.named("s"), replaced, &options()).unwrap().object.value();
        assert_eq!(after["spec"], before);
        let error =
            patch(&api, &target, "s", json!({ "spec": { "clusterIP": "10.96.0.9" } })).unwrap_err();
        assert!(error.contains("may not change once set"), "{error}");
        let dual =
            patch(&api, &target, "s", json!({ "spec": { "ipFamilyPolicy": "PreferDualStack" } }))
                .unwrap();
        assert_eq!(texts(&dual["clusterIPs"]).len(), 2);
        assert_eq!(dual["clusterIP"], before["clusterIP"]);
        let single =
            patch(&api, &target, "s", json!({ "spec": { "ipFamilyPolicy": "SingleStack" } }))
                .unwrap();
        assert_eq!(single["clusterIPs"], before["clusterIPs"]);
        let plain = patch(&api, &target, "s", json!({ "spec": { "type": "ClusterIP" } })).unwrap();
        assert!(plain["ports"][0]["nodePort"].is_null(), "{plain}");
        let external = patch(
            &api,
            &target,
            "s",
            json!({ "spec": { "type": "ExternalName", "externalName": "example.com" } }),
        )
        .unwrap();
        assert!(external["clusterIP"].is_null(), "{external}");
    }

    #[test]
    fn no_two_services_share_an_address() {
        let (api, target) = cluster();
        let mut seen = std::collections::HashSet::new();
        for n in 0..300 {
            let spec = create_in(
                &api,
                &target,
                &format!("s{n}"),
                json!({ "type": "NodePort", "ipFamilyPolicy": "PreferDualStack" }),
            )
            .unwrap();
            for address in addresses(&json!({ "spec": spec })) {
                assert!(seen.insert(address.to_string()), "{address}");
            }
            assert!(seen.insert(spec["ports"][0]["nodePort"].to_string()));
        }
    }
}
