//! The schemas of policies.
//!
//! They describe every field, for `kubectl explain` and for types. Unknown fields are kept, where
//! Cilium's schemas drop them: without a mistyped `toPort` a rule would allow more than was meant. So
//! the agents see it and refuse the policy, with the field's path (`crate::policy`).

use serde_json::{Value, json};

use super::{boolean, count, list, map, name, object, one_of, resource, text};

/// An object of a rule: fields beyond those described are kept, to be refused.
fn fields<const N: usize>(described: [(&str, Value); N]) -> Value {
    let mut schema = object(described);
    schema["x-kubernetes-preserve-unknown-fields"] = true.into();
    schema
}

fn list_up_to(items_max: u32, items: Value) -> Value {
    let mut schema = list(items);
    schema["maxItems"] = items_max.into();
    schema
}

fn between(least: i64, greatest: i64) -> Value {
    json!({"type": "integer", "minimum": least, "maximum": greatest})
}

fn int_or_text() -> Value {
    json!({"x-kubernetes-int-or-string": true})
}

fn label_selector() -> Value {
    let expression = fields([
        ("key*", text()),
        ("operator*", one_of(&["In", "NotIn", "Exists", "DoesNotExist"])),
        ("values", list(text())),
    ]);
    fields([("matchLabels", map(text())), ("matchExpressions", list(expression))])
}

fn conditions() -> Value {
    let condition = object([
        ("type*", text()),
        ("status*", one_of(&["True", "False", "Unknown"])),
        ("observedGeneration", count()),
        ("lastTransitionTime", json!({"type": "string", "format": "date-time"})),
        ("reason", text()),
        ("message", text()),
    ]);
    let mut conditions = list(condition);
    conditions["x-kubernetes-list-type"] = "map".into();
    conditions["x-kubernetes-list-map-keys"] = json!(["type"]);
    conditions
}

/// `CiliumNetworkPolicy` and `CiliumClusterwideNetworkPolicy`.
pub(in crate::crd) fn cilium_policy() -> Value {
    let derivative = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
    let status = object([("conditions", conditions()), ("derivativePolicies", map(derivative))]);
    resource(
        "Which traffic endpoints may have: one rule, or several.",
        [("spec", rule()), ("specs", list(rule())), ("status", status)],
    )
}

fn rule() -> Value {
    let label = fields([("key*", text()), ("source", text()), ("value", text())]);
    fields([
        ("description", text()),
        ("egress", list(egress(true))),
        ("egressDeny", list(egress(false))),
        ("enableDefaultDeny", fields([("egress", boolean()), ("ingress", boolean())])),
        ("endpointSelector", label_selector()),
        ("ingress", list(ingress(true))),
        ("ingressDeny", list(ingress(false))),
        ("labels", list(label)),
        ("log", fields([("value", text())])),
        ("nodeSelector", label_selector()),
    ])
}

fn ingress(allows: bool) -> Value {
    let mut item = fields([
        ("fromCIDR", list(text())),
        ("fromCIDRSet", list(cidr_rule())),
        ("fromEndpoints", list(label_selector())),
        ("fromEntities", list(entity())),
        ("fromGroups", list(cloud_group())),
        ("fromNodes", list(label_selector())),
        ("fromRequires", list_up_to(0, label_selector())),
        ("icmps", list(icmp())),
        ("toPorts", list(if allows { port_rule() } else { deny_port_rule() })),
    ]);
    if allows {
        item["properties"]["authentication"] = authentication();
    }
    item
}

fn egress(allows: bool) -> Value {
    let mut item = fields([
        ("icmps", list(icmp())),
        ("toCIDR", list(text())),
        ("toCIDRSet", list(cidr_rule())),
        ("toEndpoints", list(label_selector())),
        ("toEntities", list(entity())),
        ("toGroups", list(cloud_group())),
        ("toNodes", list(label_selector())),
        ("toPorts", list(if allows { port_rule() } else { deny_port_rule() })),
        ("toRequires", list_up_to(0, label_selector())),
        ("toServices", list(service())),
    ]);
    if allows {
        item["properties"]["authentication"] = authentication();
        item["properties"]["toFQDNs"] = list(dns_name());
    }
    item
}

fn cidr_rule() -> Value {
    fields([
        ("cidr", text()),
        ("cidrGroupRef", text()),
        ("cidrGroupSelector", label_selector()),
        ("except", list(text())),
    ])
}

fn entity() -> Value {
    one_of(&policy::Entity::ALL.map(policy::Entity::as_str))
}

fn cloud_group() -> Value {
    let prefixes =
        fields([("ids", list(text())), ("names", list(text())), ("ownerIDs", list(text()))]);
    fields([(
        "aws",
        fields([
            ("labels", map(text())),
            ("managedPrefixList", prefixes),
            ("region", text()),
            ("securityGroupsIds", list(text())),
            ("securityGroupsNames", list(text())),
        ]),
    )])
}

fn service() -> Value {
    fields([
        ("k8sService", fields([("namespace", text()), ("serviceName", text())])),
        ("k8sServiceSelector", fields([("namespace", text()), ("selector*", label_selector())])),
    ])
}

fn dns_name() -> Value {
    let pattern = |characters: &str| json!({"type": "string", "maxLength": 255, "pattern": format!("^{characters}*$")});
    fields([("matchName", pattern("[-a-zA-Z0-9_.]")), ("matchPattern", pattern("[-a-zA-Z0-9_.*]"))])
}

fn authentication() -> Value {
    fields([("mode*", one_of(&["disabled", "required", "test-always-fail"]))])
}

fn icmp() -> Value {
    let field = fields([("family", one_of(&["IPv4", "IPv6"])), ("type*", int_or_text())]);
    fields([("fields", list_up_to(40, field))])
}

fn ports() -> Value {
    const PROTOCOLS: [&str; 11] =
        ["TCP", "UDP", "SCTP", "VRRP", "IGMP", "GRE", "IPIP", "IPV6", "ESP", "AH", "ANY"];
    let port = fields([
        ("endPort", between(0, 65_535)),
        ("port", text()),
        ("protocol", one_of(&PROTOCOLS)),
    ]);
    list_up_to(40, port)
}

fn deny_port_rule() -> Value {
    fields([("ports", ports())])
}

fn port_rule() -> Value {
    let listener = fields([
        ("envoyConfig*", fields([("kind", text()), ("name*", name())])),
        ("name*", name()),
        ("priority", between(1, 100)),
    ]);
    fields([
        ("listener", listener),
        ("originatingTLS", tls()),
        ("ports", ports()),
        ("rules", l7_rules()),
        ("serverNames", list(text())),
        ("terminatingTLS", tls()),
    ])
}

fn secret() -> Value {
    fields([("name*", text()), ("namespace", text())])
}

fn tls() -> Value {
    fields([
        ("certificate", text()),
        ("privateKey", text()),
        ("secret*", secret()),
        ("trustedCA", text()),
    ])
}

fn l7_rules() -> Value {
    let header = fields([
        ("mismatch", one_of(&["LOG", "ADD", "DELETE", "REPLACE"])),
        ("name*", name()),
        ("secret", secret()),
        ("value", text()),
    ]);
    let http = fields([
        ("headerMatches", list(header)),
        ("headers", list(text())),
        ("host", text()),
        ("method", text()),
        ("path", text()),
    ]);
    let kafka = fields([
        ("apiKey", text()),
        ("apiVersion", text()),
        ("clientID", text()),
        ("role", text()),
        ("topic", text()),
    ]);
    fields([
        ("dns", list(dns_name())),
        ("http", list(http)),
        ("kafka", list(kafka)),
        ("l7", list(map(text()))),
        ("l7proto", text()),
    ])
}

/// `CiliumCIDRGroup`.
pub(in crate::crd) fn cilium_cidr_group() -> Value {
    resource("Prefixes under a name.", [("spec*", object([("externalCIDRs*", list(text()))]))])
}

/// `ClusterNetworkPolicy`.
pub(in crate::crd) fn cluster_network_policy() -> Value {
    let pods = fields([("namespaceSelector", label_selector()), ("podSelector", label_selector())]);
    let selected = || [("namespaces", label_selector()), ("pods", pods.clone())];
    let [namespaces, selected_pods] = selected();
    let outside = [
        ("domainNames", list_up_to(25, text())),
        ("networks", list_up_to(25, text())),
        ("nodes", label_selector()),
    ];
    let [names, networks, nodes] = outside;
    let target = fields([names, namespaces, networks, nodes, selected_pods]);
    let rule = |way: &str, peer: Value| {
        fields([
            ("action*", one_of(&["Accept", "Deny", "Pass"])),
            ("name", text()),
            ("protocols", list_up_to(25, cluster_protocol())),
            (way, list_up_to(25, peer)),
        ])
    };
    let spec = fields([
        ("egress", list_up_to(25, rule("to", target))),
        ("ingress", list_up_to(25, rule("from", fields(selected())))),
        ("priority*", between(0, 1000)),
        ("subject*", fields(selected())),
        ("tier*", one_of(&["Admin", "Baseline"])),
    ]);
    resource(
        "What the cluster's administrator says of traffic, before and after all others.",
        [("spec*", spec), ("status", object([("conditions", conditions())]))],
    )
}

fn cluster_protocol() -> Value {
    let range = fields([("end*", between(1, 65_535)), ("start*", between(1, 65_535))]);
    let port = fields([("number", between(1, 65_535)), ("range", range)]);
    let protocol = || fields([("destinationPort", port.clone())]);
    let mut schema = fields([
        ("destinationNamedPort", text()),
        ("sctp", protocol()),
        ("tcp", protocol()),
        ("udp", protocol()),
    ]);
    schema["description"] = "Exactly one of these.".into();
    schema
}
