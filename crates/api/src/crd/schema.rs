//! The structural schemas of the custom resources, without the prose.

pub(super) mod policy;

use serde_json::{Map, Value, json};

/// A text.
fn text() -> Value {
    json!({"type": "string"})
}

/// One of these texts.
fn one_of(words: &[&str]) -> Value {
    json!({"type": "string", "enum": words})
}

/// A text that is not empty.
fn name() -> Value {
    json!({"type": "string", "minLength": 1})
}

fn number() -> Value {
    json!({"type": "integer"})
}

/// A number that Go keeps in 64 bits.
fn long() -> Value {
    json!({"type": "integer", "format": "int64"})
}

/// A number that is not negative.
fn count() -> Value {
    json!({"type": "integer", "minimum": 0})
}

fn boolean() -> Value {
    json!({"type": "boolean"})
}

fn list(items: Value) -> Value {
    json!({"type": "array", "items": items})
}

/// Any keys, values of one shape.
fn map(values: Value) -> Value {
    json!({"type": "object", "additionalProperties": values})
}

/// Fields; a name that ends in `*` is required.
fn object<const N: usize>(fields: [(&str, Value); N]) -> Value {
    let required: Vec<&str> =
        fields.iter().filter_map(|(name, _)| name.strip_suffix('*')).collect();
    let properties: Map<String, Value> = fields
        .iter()
        .map(|(name, schema)| (name.trim_end_matches('*').to_owned(), schema.clone()))
        .collect();
    match required.is_empty() {
        true => json!({"type": "object", "properties": properties}),
        false => json!({"type": "object", "properties": properties, "required": required}),
    }
}

/// The fields that every object has, and `fields`.
fn resource<const N: usize>(description: &str, fields: [(&str, Value); N]) -> Value {
    let mut schema = object(fields);
    for (name, field) in
        [("apiVersion", text()), ("kind", text()), ("metadata", json!({"type": "object"}))]
    {
        schema["properties"][name] = field;
    }
    let mut required = vec![Value::from("metadata")];
    required.extend(schema["required"].as_array().into_iter().flatten().cloned());
    schema["required"] = Value::Array(required);
    schema["description"] = description.into();
    schema
}

fn addresses() -> Value {
    object([("ipv4", text()), ("ipv6", text())])
}

fn encryption() -> Value {
    object([("key", number())])
}

pub(super) fn cilium_identity() -> Value {
    resource(
        "A set of labels; the name of the object is the number that stands for it.",
        [("security-labels*", map(text()))],
    )
}

pub(super) fn cilium_node() -> Value {
    let spec = object([
        ("addresses", list(object([("ip", text()), ("type", text())]))),
        ("alibaba-cloud", alibaba_cloud_spec()),
        ("azure", object([("interface-name", text())])),
        ("bootid", text()),
        ("encryption", encryption()),
        ("eni", eni_spec()),
        ("health", addresses()),
        ("ingress", addresses()),
        ("instance-id", text()),
        ("ipam", ipam_spec()),
        ("nodeidentity", long()),
    ]);
    let status = object([
        ("alibaba-cloud", alibaba_cloud_status()),
        ("azure", azure_status()),
        ("eni", eni_status()),
        ("ipam", ipam_status()),
    ]);
    resource(
        "A node of the cluster: what its agent announces, and what it is given.",
        [("spec*", spec), ("status", status)],
    )
}

fn allocation() -> Value {
    object([("owner", text()), ("resource", text())])
}

fn ipam_spec() -> Value {
    let requested = object([
        ("needed", object([("ipv4-addrs", number()), ("ipv6-addrs", number())])),
        ("pool*", name()),
    ]);
    let allocated = object([
        ("allowFirstIP", boolean()),
        ("allowLastIP", boolean()),
        ("cidrs", list(json!({"type": "string", "format": "cidr"}))),
        ("pool*", name()),
    ]);
    object([
        ("ipv6-pool", map(allocation())),
        ("max-above-watermark", count()),
        ("max-allocate", count()),
        ("min-allocate", count()),
        ("podCIDRs", list(text())),
        ("pool", map(allocation())),
        ("pools", object([("allocated", list(allocated)), ("requested", list(requested))])),
        ("pre-allocate", count()),
        ("static-ip-tags", map(text())),
    ])
}

fn ipam_status() -> Value {
    let release =
        || one_of(&["marked-for-release", "ready-for-release", "do-not-release", "released"]);
    let pod_cidr = object([("status", one_of(&["released", "depleted", "in-use"]))]);
    object([
        ("assigned-static-ip", text()),
        ("ipv6-used", map(allocation())),
        ("operator-status", object([("error", text())])),
        ("pod-cidrs", map(pod_cidr)),
        ("release-ips", map(release())),
        ("release-ipv6s", map(release())),
        ("used", map(allocation())),
    ])
}

fn eni_spec() -> Value {
    object([
        ("availability-zone", text()),
        ("delete-on-termination", boolean()),
        ("disable-prefix-delegation", boolean()),
        ("exclude-interface-tags", map(text())),
        ("first-interface-index", count()),
        ("instance-id", text()),
        ("instance-type", text()),
        ("max-above-watermark", count()),
        ("min-allocate", count()),
        ("node-subnet-id", text()),
        ("pre-allocate", count()),
        ("security-group-tags", map(text())),
        ("security-groups", list(text())),
        ("subnet-ids", list(text())),
        ("subnet-tags", map(text())),
        ("use-primary-address", boolean()),
        ("vpc-id", text()),
    ])
}

fn eni_status() -> Value {
    let eni = object([
        ("addresses", list(text())),
        ("availability-zone", text()),
        ("description", text()),
        ("id", text()),
        ("ip", text()),
        ("mac", text()),
        ("number", number()),
        ("prefixes", list(text())),
        ("public-ip", text()),
        ("security-groups", list(text())),
        ("subnet", object([("cidr", text()), ("id", text())])),
        ("tags", map(text())),
        ("vpc", object([("cidrs", list(text())), ("id", text()), ("primary-cidr", text())])),
    ]);
    object([("enis", map(eni))])
}

fn azure_status() -> Value {
    let address = object([("ip", text()), ("state", text()), ("subnet", text())]);
    let interface = object([
        ("GatewayIP", text()),
        ("addresses", list(address)),
        ("cidr", text()),
        ("gateway", text()),
        ("id", text()),
        ("mac", text()),
        ("name", text()),
        ("security-group", text()),
        ("state", text()),
    ]);
    object([("interfaces", list(interface))])
}

fn alibaba_cloud_spec() -> Value {
    object([
        ("availability-zone", text()),
        ("cidr-block", text()),
        ("instance-type", text()),
        ("security-group-tags", map(text())),
        ("security-groups", list(text())),
        ("vpc-id", text()),
        ("vswitch-tags", map(text())),
        ("vswitches", list(text())),
    ])
}

fn alibaba_cloud_status() -> Value {
    let vpc = object([
        ("cidr", text()),
        ("ipv6-cidr", text()),
        ("secondary-cidrs", list(text())),
        ("vpc-id", text()),
    ]);
    let eni = object([
        ("instance-id", text()),
        ("mac-address", text()),
        ("network-interface-id", text()),
        ("primary-ip-address", text()),
        ("private-ipsets", list(object([("primary", boolean()), ("private-ip-address", text())]))),
        ("security-groupids", list(text())),
        ("tags", map(text())),
        ("type", text()),
        ("vpc", vpc),
        ("vswitch", object([("cidr", text()), ("ipv6-cidr", text()), ("vswitch-id", text())])),
        ("zone-id", text()),
    ]);
    object([("enis", map(eni))])
}

pub(super) fn cilium_endpoint() -> Value {
    let networking = object([("addressing*", list(addresses())), ("node", text())]);
    let port = object([("name", text()), ("port", number()), ("protocol", text())]);
    let status = object([
        ("controllers", list(controller())),
        ("encryption", encryption()),
        ("external-identifiers", external_identifiers()),
        ("health", endpoint_health()),
        ("id", long()),
        ("identity", object([("id", long()), ("labels", list(text()))])),
        ("log", list(status_change())),
        ("named-ports", list(port)),
        ("networking", networking),
        ("policy", object([("egress", policy_direction()), ("ingress", policy_direction())])),
        ("service-account", text()),
        ("state", text()),
        ("visibility-policy-status", text()),
    ]);
    resource("A pod as its agent announces it.", [("status", status)])
}

fn controller() -> Value {
    let configuration =
        object([("error-retry", boolean()), ("error-retry-base", long()), ("interval", long())]);
    let status = object([
        ("consecutive-failure-count", long()),
        ("failure-count", long()),
        ("last-failure-msg", text()),
        ("last-failure-timestamp", text()),
        ("last-success-timestamp", text()),
        ("success-count", long()),
    ]);
    object([
        ("configuration", configuration),
        ("name", text()),
        ("status", status),
        ("uuid", text()),
    ])
}

fn external_identifiers() -> Value {
    object([
        ("cni-attachment-id", text()),
        ("container-id", text()),
        ("container-name", text()),
        ("docker-endpoint-id", text()),
        ("docker-network-id", text()),
        ("k8s-namespace", text()),
        ("k8s-pod-name", text()),
        ("pod-name", text()),
    ])
}

fn endpoint_health() -> Value {
    object([
        ("bpf", text()),
        ("connected", boolean()),
        ("overallHealth", text()),
        ("policy", text()),
    ])
}

fn status_change() -> Value {
    object([("code", text()), ("message", text()), ("state", text()), ("timestamp", text())])
}

fn policy_direction() -> Value {
    let peers = || {
        list(object([
            ("dest-port", number()),
            ("identity", long()),
            ("identity-labels", map(text())),
            ("protocol", number()),
        ]))
    };
    object([
        ("adding", peers()),
        ("allowed", peers()),
        ("denied", peers()),
        ("enforcing*", boolean()),
        ("removing", peers()),
        ("state", text()),
    ])
}
