//! Policies with mistakes of every kind: none breaks the reading or the engine. `fuzz/` goes on where
//! this ends.

mod any_manifest;

use proptest::prelude::*;
use proptest::sample::{Index, select};

/// Rules that are right, to begin with.
const RULES: [&str; 4] = [
    r#"{"endpointSelector":{"matchLabels":{"app":"web"}},"ingress":[{"fromEndpoints":[{}],"toPorts":[{"ports":[{"port":"80","protocol":"TCP"}]}]},{"fromCIDRSet":[{"cidr":"10.0.0.0/8","except":["10.1.0.0/16"]}]},{"fromEntities":["world"],"icmps":[{"fields":[{"type":8}]}]}],"egressDeny":[{"toEntities":["host"]}]}"#,
    r#"{"endpointSelector":{},"egress":[{"toServices":[{"k8sService":{"serviceName":"s"}}]},{"toFQDNs":[{"matchName":"a.b"}],"toPorts":[{"ports":[{"port":"53"}],"rules":{"dns":[{"matchPattern":"*"}]}}]}],"enableDefaultDeny":{"egress":false},"labels":[{"key":"a"}],"log":{"value":"x"}}"#,
    r#"{"podSelector":{"matchExpressions":[{"key":"app","operator":"In","values":["web"]}]},"policyTypes":["Ingress","Egress"],"ingress":[{"from":[{"namespaceSelector":{}},{"ipBlock":{"cidr":"10.0.0.0/8"}}],"ports":[{"port":80,"endPort":90},{"port":"web"}]}],"egress":[{}]}"#,
    r#"{"tier":"Admin","priority":5,"subject":{"namespaces":{}},"ingress":[{"action":"Pass","from":[{"pods":{"podSelector":{}}}],"protocols":[{"tcp":{"destinationPort":{"range":{"start":1,"end":9}}}}]},{"action":"Deny"}]}"#,
];

/// What takes the place of a part of a rule.
const PARTS: [&str; 18] = [
    "null",
    "{}",
    "[]",
    "[{}]",
    "\"\"",
    "0",
    "-1",
    "80",
    "65536",
    "1e9",
    "true",
    "\"all\"",
    "\"0\"",
    "\"ANY\"",
    "\"::/0\"",
    "\"10.0.0.0/0\"",
    "{\"a\":[]}",
    "[[]]",
];

#[test]
fn rules_that_are_right_are_accepted() {
    for rule in RULES {
        assert!(any_manifest::run(rule.as_bytes()) > 0, "{rule}");
    }
}

proptest! {
    /// Parts of rules are replaced, values at a time, so that most mistakes are deep inside.
    #[test]
    fn no_rule_breaks_anything(
        rule in select(&RULES[..]),
        changes in proptest::collection::vec((any::<Index>(), select(&PARTS[..])), 1..5),
    ) {
        let mut value: serde_json::Value = serde_json::from_str(rule).unwrap();
        for (index, part) in changes {
            let mut pointers = Vec::new();
            collect(&value, String::new(), &mut pointers);
            let pointer = index.get(&pointers);
            if let Some(place) = value.pointer_mut(pointer) {
                *place = serde_json::from_str(part).unwrap();
            }
        }
        any_manifest::run(value.to_string().as_bytes());
    }

    /// Bytes are replaced.
    #[test]
    fn no_bytes_break_anything(
        rule in select(&RULES[..]),
        changes in proptest::collection::vec((any::<Index>(), any::<u8>()), 0..4),
    ) {
        let mut bytes = rule.as_bytes().to_vec();
        for (index, byte) in changes {
            let at = index.index(bytes.len());
            bytes[at] = byte;
        }
        any_manifest::run(&bytes);
    }
}

/// Pointers to all values within.
fn collect(value: &serde_json::Value, at: String, pointers: &mut Vec<String>) {
    match value {
        serde_json::Value::Object(fields) => {
            fields
                .iter()
                .for_each(|(name, inner)| collect(inner, format!("{at}/{name}"), pointers));
        }
        serde_json::Value::Array(items) => {
            let items = items.iter().enumerate();
            items.for_each(|(index, inner)| collect(inner, format!("{at}/{index}"), pointers));
        }
        _ => {}
    }
    pointers.push(at);
}
