//! Request bodies in Kubernetes' protobuf form, which newer `kubectl create` sends.
//!
//! Only the kinds that `kubectl` itself makes are known here; all other clients can
//! be asked for JSON, which every one of them speaks. Of these kinds the fields that `kubectl`
//! fills in: a body that has more is refused rather than taken without it.

use serde_json::{Map, Value, json};

use super::status::ApiError;

pub(super) const CONTENT_TYPE: &str = "application/vnd.kubernetes.protobuf";
const MAGIC: &[u8] = b"k8s\0";

/// What a field holds.
enum Field {
    Text,
    Bytes,
    Integer,
    Boolean,
    Message(&'static [(u64, &'static str, Self)]),
    /// A list of what is inside.
    List(&'static Self),
    /// A map from text.
    Map(&'static Self),
    IntOrString,
    Time,
}

type Fields = &'static [(u64, &'static str, Field)];

const OWNER: Fields = &[
    (1, "kind", Field::Text),
    (3, "name", Field::Text),
    (4, "uid", Field::Text),
    (5, "apiVersion", Field::Text),
    (6, "controller", Field::Boolean),
    (7, "blockOwnerDeletion", Field::Boolean),
];
const META: Fields = &[
    (1, "name", Field::Text),
    (2, "generateName", Field::Text),
    (3, "namespace", Field::Text),
    (5, "uid", Field::Text),
    (6, "resourceVersion", Field::Text),
    (7, "generation", Field::Integer),
    (8, "creationTimestamp", Field::Time),
    (11, "labels", Field::Map(&Field::Text)),
    (12, "annotations", Field::Map(&Field::Text)),
    (13, "ownerReferences", Field::List(&Field::Message(OWNER))),
    (14, "finalizers", Field::List(&Field::Text)),
];
const NAMESPACE: Fields = &[(1, "metadata", Field::Message(META))];
const CONFIG_MAP: Fields = &[
    (1, "metadata", Field::Message(META)),
    (2, "data", Field::Map(&Field::Text)),
    (3, "binaryData", Field::Map(&Field::Bytes)),
    (4, "immutable", Field::Boolean),
];
const SECRET: Fields = &[
    (1, "metadata", Field::Message(META)),
    (2, "data", Field::Map(&Field::Bytes)),
    (3, "type", Field::Text),
    (4, "stringData", Field::Map(&Field::Text)),
    (5, "immutable", Field::Boolean),
];
const SERVICE_ACCOUNT: Fields =
    &[(1, "metadata", Field::Message(META)), (4, "automountServiceAccountToken", Field::Boolean)];
const SERVICE_PORT: Fields = &[
    (1, "name", Field::Text),
    (2, "protocol", Field::Text),
    (3, "port", Field::Integer),
    (4, "targetPort", Field::IntOrString),
    (5, "nodePort", Field::Integer),
    (6, "appProtocol", Field::Text),
];
const SERVICE_SPEC: Fields = &[
    (1, "ports", Field::List(&Field::Message(SERVICE_PORT))),
    (2, "selector", Field::Map(&Field::Text)),
    (3, "clusterIP", Field::Text),
    (4, "type", Field::Text),
    (5, "externalIPs", Field::List(&Field::Text)),
    (7, "sessionAffinity", Field::Text),
    (10, "externalName", Field::Text),
    (11, "externalTrafficPolicy", Field::Text),
    (13, "publishNotReadyAddresses", Field::Boolean),
    (17, "ipFamilyPolicy", Field::Text),
    (18, "clusterIPs", Field::List(&Field::Text)),
    (19, "ipFamilies", Field::List(&Field::Text)),
];
const SERVICE: Fields =
    &[(1, "metadata", Field::Message(META)), (2, "spec", Field::Message(SERVICE_SPEC))];
const CONTAINER_PORT: Fields = &[
    (1, "name", Field::Text),
    (2, "hostPort", Field::Integer),
    (3, "containerPort", Field::Integer),
    (4, "protocol", Field::Text),
    (5, "hostIP", Field::Text),
];
const CONTAINER: Fields = &[
    (1, "name", Field::Text),
    (2, "image", Field::Text),
    (3, "command", Field::List(&Field::Text)),
    (4, "args", Field::List(&Field::Text)),
    (5, "workingDir", Field::Text),
    (6, "ports", Field::List(&Field::Message(CONTAINER_PORT))),
    (
        7,
        "env",
        Field::List(&Field::Message(&[(1, "name", Field::Text), (2, "value", Field::Text)])),
    ),
    (13, "terminationMessagePath", Field::Text),
    (14, "imagePullPolicy", Field::Text),
    (16, "stdin", Field::Boolean),
    (17, "stdinOnce", Field::Boolean),
    (18, "tty", Field::Boolean),
    (20, "terminationMessagePolicy", Field::Text),
];
/// What `kubectl create deployment`, `create job` and `create cronjob` fill in.
const POD_TEMPLATE: Fields = &[
    (1, "metadata", Field::Message(META)),
    (
        2,
        "spec",
        Field::Message(&[
            (2, "containers", Field::List(&Field::Message(CONTAINER))),
            (3, "restartPolicy", Field::Text),
            (4, "terminationGracePeriodSeconds", Field::Integer),
            (6, "dnsPolicy", Field::Text),
            (7, "nodeSelector", Field::Map(&Field::Text)),
            (8, "serviceAccountName", Field::Text),
            (9, "serviceAccount", Field::Text),
            (19, "schedulerName", Field::Text),
        ]),
    ),
];
const SELECTOR: Fields = &[(1, "matchLabels", Field::Map(&Field::Text))];
const DEPLOYMENT: Fields = &[
    (1, "metadata", Field::Message(META)),
    (
        2,
        "spec",
        Field::Message(&[
            (1, "replicas", Field::Integer),
            (2, "selector", Field::Message(SELECTOR)),
            (3, "template", Field::Message(POD_TEMPLATE)),
        ]),
    ),
];
const JOB: Fields = &[
    (1, "metadata", Field::Message(META)),
    (
        2,
        "spec",
        Field::Message(&[
            (1, "parallelism", Field::Integer),
            (2, "completions", Field::Integer),
            (3, "activeDeadlineSeconds", Field::Integer),
            (6, "template", Field::Message(POD_TEMPLATE)),
            (7, "backoffLimit", Field::Integer),
            (8, "ttlSecondsAfterFinished", Field::Integer),
            (9, "completionMode", Field::Text),
            (10, "suspend", Field::Boolean),
        ]),
    ),
];
const CRON_JOB: Fields = &[
    (1, "metadata", Field::Message(META)),
    (
        2,
        "spec",
        Field::Message(&[
            (1, "schedule", Field::Text),
            (3, "concurrencyPolicy", Field::Text),
            (4, "suspend", Field::Boolean),
            (5, "jobTemplate", Field::Message(JOB)),
            (8, "timeZone", Field::Text),
        ]),
    ),
];
const ATTRIBUTES: Fields = &[
    (1, "namespace", Field::Text),
    (2, "verb", Field::Text),
    (3, "group", Field::Text),
    (4, "version", Field::Text),
    (5, "resource", Field::Text),
    (6, "subresource", Field::Text),
    (7, "name", Field::Text),
];
const PATH: Fields = &[(1, "path", Field::Text), (2, "verb", Field::Text)];
const SELF_ACCESS_REVIEW: Fields = &[(
    2,
    "spec",
    Field::Message(&[
        (1, "resourceAttributes", Field::Message(ATTRIBUTES)),
        (2, "nonResourceAttributes", Field::Message(PATH)),
    ]),
)];
const ACCESS_REVIEW: Fields = &[
    (1, "metadata", Field::Message(META)),
    (
        2,
        "spec",
        Field::Message(&[
            (1, "resourceAttributes", Field::Message(ATTRIBUTES)),
            (2, "nonResourceAttributes", Field::Message(PATH)),
            (3, "user", Field::Text),
            (4, "groups", Field::List(&Field::Text)),
            (6, "uid", Field::Text),
        ]),
    ),
];
const RULES_REVIEW: Fields = &[(2, "spec", Field::Message(&[(1, "namespace", Field::Text)]))];
const TOKEN_REVIEW: Fields = &[(
    2,
    "spec",
    Field::Message(&[(1, "token", Field::Text), (2, "audiences", Field::List(&Field::Text))]),
)];
const TOKEN_REQUEST: Fields = &[
    (1, "metadata", Field::Message(META)),
    (
        2,
        "spec",
        Field::Message(&[
            (1, "audiences", Field::List(&Field::Text)),
            (
                3,
                "boundObjectRef",
                Field::Message(&[
                    (1, "kind", Field::Text),
                    (2, "apiVersion", Field::Text),
                    (3, "name", Field::Text),
                    (4, "uid", Field::Text),
                ]),
            ),
            (4, "expirationSeconds", Field::Integer),
        ]),
    ),
];
const RULE: Fields = &[
    (1, "verbs", Field::List(&Field::Text)),
    (2, "apiGroups", Field::List(&Field::Text)),
    (3, "resources", Field::List(&Field::Text)),
    (4, "resourceNames", Field::List(&Field::Text)),
    (5, "nonResourceURLs", Field::List(&Field::Text)),
];
const ROLE: Fields = &[
    (1, "metadata", Field::Message(META)),
    (2, "rules", Field::List(&Field::Message(RULE))),
    (
        3,
        "aggregationRule",
        Field::Message(&[(1, "clusterRoleSelectors", Field::List(&Field::Message(SELECTOR)))]),
    ),
];
const ROLE_BINDING: Fields = &[
    (1, "metadata", Field::Message(META)),
    (
        2,
        "subjects",
        Field::List(&Field::Message(&[
            (1, "kind", Field::Text),
            (2, "apiGroup", Field::Text),
            (3, "name", Field::Text),
            (4, "namespace", Field::Text),
        ])),
    ),
    (
        3,
        "roleRef",
        Field::Message(&[
            (1, "apiGroup", Field::Text),
            (2, "kind", Field::Text),
            (3, "name", Field::Text),
        ]),
    ),
];

/// Numbers that are left out when they are unset, so that a zero is meant.
const ZERO_IS_SAID: &[&str] = &[
    "port",
    "replicas",
    "parallelism",
    "completions",
    "backoffLimit",
    "ttlSecondsAfterFinished",
    "terminationGracePeriodSeconds",
];

/// The object in a protobuf body.
pub(super) fn decode(body: &[u8]) -> Result<Value, ApiError> {
    let bad =
        |why: &str| ApiError::bad_request(format!("the object provided is unrecognized: {why}"));
    let envelope = body.strip_prefix(MAGIC).ok_or_else(|| bad("the protobuf magic is missing"))?;
    let broken = || bad("the protobuf message is cut off");
    let (mut api_version, mut kind, mut raw) = (String::new(), String::new(), &[][..]);
    for (number, wire) in fields(envelope).ok_or_else(broken)? {
        match (number, wire) {
            (1, Wire::Bytes(inner)) => {
                for (number, wire) in fields(inner).ok_or_else(broken)? {
                    match (number, wire) {
                        (1, Wire::Bytes(text)) => {
                            api_version = String::from_utf8_lossy(text).into_owned();
                        }
                        (2, Wire::Bytes(text)) => kind = String::from_utf8_lossy(text).into_owned(),
                        _ => {}
                    }
                }
            }
            (2, Wire::Bytes(inner)) => raw = inner,
            _ => {}
        }
    }
    let known = match (api_version.as_str(), kind.as_str()) {
        ("v1", "Namespace") => NAMESPACE,
        ("v1", "ConfigMap") => CONFIG_MAP,
        ("v1", "Secret") => SECRET,
        ("v1", "ServiceAccount") => SERVICE_ACCOUNT,
        ("v1", "Service") => SERVICE,
        ("apps/v1", "Deployment") => DEPLOYMENT,
        ("batch/v1", "Job") => JOB,
        ("batch/v1", "CronJob") => CRON_JOB,
        (_, "SelfSubjectReview") => &[],
        (_, "SelfSubjectAccessReview") => SELF_ACCESS_REVIEW,
        (_, "SubjectAccessReview" | "LocalSubjectAccessReview") => ACCESS_REVIEW,
        (_, "SelfSubjectRulesReview") => RULES_REVIEW,
        (_, "TokenReview") => TOKEN_REVIEW,
        (_, "TokenRequest") => TOKEN_REQUEST,
        ("rbac.authorization.k8s.io/v1", "Role" | "ClusterRole") => ROLE,
        ("rbac.authorization.k8s.io/v1", "RoleBinding" | "ClusterRoleBinding") => ROLE_BINDING,
        _ => {
            return Err(ApiError::unsupported_media_type(
                CONTENT_TYPE,
                &format!(
                    "application/json, application/yaml ({api_version} {kind} is not understood as protobuf here)"
                ),
            ));
        }
    };
    let mut unknown = Vec::new();
    let mut value = message(raw, known, &mut unknown).ok_or_else(broken)?;
    if let Some(field) = unknown.first() {
        return Err(ApiError::unsupported_media_type(
            CONTENT_TYPE,
            &format!(
                "application/json, application/yaml ({field} of a {kind} is not understood as protobuf here)"
            ),
        ));
    }
    value["apiVersion"] = json!(api_version);
    value["kind"] = json!(kind);
    Ok(value)
}

enum Wire<'a> {
    Integer(u64),
    Bytes(&'a [u8]),
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (first, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(first & 0x7f) << shift;
        if first & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

/// The fields of a message; `None` if it is malformed.
fn fields(mut bytes: &[u8]) -> Option<Vec<(u64, Wire<'_>)>> {
    let mut all = Vec::new();
    while !bytes.is_empty() {
        let tag = varint(&mut bytes)?;
        let wire = match tag & 7 {
            0 => Wire::Integer(varint(&mut bytes)?),
            kind @ (1 | 5) => {
                // Fixed width; none of the known fields is.
                bytes = bytes.get(if kind == 1 { 8 } else { 4 }..)?;
                continue;
            }
            2 => {
                let len = usize::try_from(varint(&mut bytes)?).ok()?;
                let (inner, rest) = bytes.split_at_checked(len)?;
                bytes = rest;
                Wire::Bytes(inner)
            }
            _ => return None,
        };
        all.push((tag >> 3, wire));
    }
    Some(all)
}

/// Whether a field says nothing: protobuf writes what is unset as empty.
fn is_empty(wire: &Wire<'_>) -> bool {
    match wire {
        Wire::Integer(number) => *number == 0,
        Wire::Bytes(bytes) => fields(bytes).is_some_and(|all| all.iter().all(|(_, w)| is_empty(w))),
    }
}

/// The object in a message; what it says that is not known goes to `unknown`.
fn message(bytes: &[u8], known: Fields, unknown: &mut Vec<String>) -> Option<Value> {
    let mut object = Map::new();
    for (number, wire) in fields(bytes)? {
        let Some((_, name, field)) = known.iter().find(|(one, _, _)| *one == number) else {
            if !is_empty(&wire) {
                unknown.push(format!("field {number}"));
            }
            continue;
        };
        match field {
            Field::List(inner) => {
                let list = object.entry(*name).or_insert_with(|| json!([]));
                list.as_array_mut()?.push(single(&wire, inner, unknown)?);
            }
            Field::Map(inner) => {
                let Wire::Bytes(entry) = wire else { return None };
                let (mut key, mut value) = (String::new(), json!(""));
                for (number, wire) in fields(entry)? {
                    match (number, &wire) {
                        (1, Wire::Bytes(text)) => key = String::from_utf8_lossy(text).into_owned(),
                        (2, _) => value = single(&wire, inner, unknown)?,
                        _ => {}
                    }
                }
                object
                    .entry(*name)
                    .or_insert_with(|| json!({}))
                    .as_object_mut()?
                    .insert(key, value);
            }
            field => {
                let value = single(&wire, field, unknown)?;
                // Protobuf writes what is unset as empty.
                let unset =
                    value.is_null() || value == "" || (value == 0 && !ZERO_IS_SAID.contains(name));
                if !unset {
                    object.insert((*name).to_owned(), value);
                }
            }
        }
    }
    Some(Value::Object(object))
}

fn single(wire: &Wire<'_>, field: &Field, unknown: &mut Vec<String>) -> Option<Value> {
    use base64::Engine as _;
    Some(match (field, wire) {
        (Field::Text, Wire::Bytes(text)) => json!(std::str::from_utf8(text).ok()?),
        (Field::Bytes, Wire::Bytes(bytes)) => {
            json!(base64::engine::general_purpose::STANDARD.encode(bytes))
        }
        (Field::Integer, Wire::Integer(number)) => json!(*number as i64),
        (Field::Boolean, Wire::Integer(number)) => json!(*number != 0),
        (Field::Message(known), Wire::Bytes(bytes)) => message(bytes, known, unknown)?,
        (Field::IntOrString, Wire::Bytes(bytes)) => {
            let (mut is_text, mut number, mut text) = (false, 0, "");
            for (field, wire) in fields(bytes)? {
                match (field, wire) {
                    (1, Wire::Integer(kind)) => is_text = kind == 1,
                    (2, Wire::Integer(value)) => number = value as i64,
                    (3, Wire::Bytes(value)) => text = std::str::from_utf8(value).ok()?,
                    _ => {}
                }
            }
            if is_text { json!(text) } else { json!(number) }
        }
        // Times are the server's to set.
        (Field::Time, _) => Value::Null,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
        let tag = u64::from(number) << 3 | 2;
        let mut out = match tag {
            small @ 0..=0x7f => vec![small as u8],
            large => vec![(large & 0x7f) as u8 | 0x80, (large >> 7) as u8],
        };
        out.push(bytes.len() as u8);
        out.extend_from_slice(bytes);
        out
    }

    #[test]
    fn a_config_map() {
        let meta = [field(1, b"c"), field(3, b"ns"), field(2, b"")].concat();
        let entry = [field(1, b"key"), field(2, b"value")].concat();
        let raw = [field(1, &meta), field(2, &entry), vec![4 << 3, 1]].concat();
        let kind = [field(1, b"v1"), field(2, b"ConfigMap")].concat();
        let body = [MAGIC.to_vec(), field(1, &kind), field(2, &raw)].concat();
        let expected = json!({ "apiVersion": "v1", "kind": "ConfigMap", "immutable": true,
            "metadata": { "name": "c", "namespace": "ns" }, "data": { "key": "value" } });
        assert_eq!(decode(&body).unwrap(), expected);
        // What it says beyond that is not dropped in silence: a finalizer of its metadata is known,
        // field 30 is not.
        let meta = [meta.clone(), field(30, b"more")].concat();
        let raw = [field(1, &meta), field(2, &entry)].concat();
        let more = [MAGIC.to_vec(), field(1, &kind), field(2, &raw)].concat();
        assert!(decode(&more).unwrap_err().to_string().contains("field 30 of a ConfigMap"));
        for cut in 4..body.len() {
            // Never a panic, whatever arrives.
            let _ = decode(&body[..cut]);
        }
        assert!(decode(b"json").is_err());
    }
}
