//! A stored object: its serialised form, and what lists and watches select by.
//!
//! Objects are kept as JSON bytes that go to clients as they are. Only what is
//! needed without parsing is kept beside them, so that many objects stay cheap.

use bytes::Bytes;
use serde_json::{Map, Value};

/// Where an object lives within its resource. Cluster-wide objects have no namespace.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    pub namespace: Box<str>,
    pub name: Box<str>,
}

impl Key {
    pub fn new(namespace: &str, name: &str) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

/// One version of an object. Never changed, only replaced.
#[derive(Debug)]
pub struct Object {
    pub key: Key,
    pub uid: Box<str>,
    pub resource_version: u64,
    pub labels: Box<[(Box<str>, Box<str>)]>,
    /// Fields for field selectors, beside `metadata.name` and `metadata.namespace`.
    pub fields: Box<[(&'static str, Box<str>)]>,
    /// Unique ids of the owners.
    pub owners: Box<[Box<str>]>,
    pub is_being_deleted: bool,
    /// The object as JSON, in the version that is stored.
    pub json: Bytes,
}

impl Object {
    /// Serialises `value`, which must have its final metadata, but for the resource version.
    pub fn new(value: &mut Value, resource_version: u64, indexed: &'static [&'static str]) -> Self {
        value["metadata"]["resourceVersion"] = Value::String(resource_version.to_string());
        let meta = &value["metadata"];
        let text = |name: &str| meta[name].as_str().unwrap_or_default();
        let key = Key::new(text("namespace"), text("name"));
        let labels = meta["labels"].as_object().map(string_pairs).unwrap_or_default();
        let owners = meta["ownerReferences"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|owner| owner["uid"].as_str().map(Box::from))
            .collect();
        let fields = indexed.iter().map(|path| (*path, field_text(value, path))).collect();
        let is_being_deleted = meta["deletionTimestamp"].is_string();
        let uid = text("uid").into();
        // Boxed: a vector that grew may hold twice what it needs, and there are many.
        let json = serde_json::to_vec(value).unwrap_or_default().into_boxed_slice();
        Self {
            key,
            uid,
            resource_version,
            labels,
            fields,
            owners,
            is_being_deleted,
            json: json.into(),
        }
    }

    /// The parsed object.
    pub fn value(&self) -> Value {
        // What we serialised ourselves parses.
        serde_json::from_slice(&self.json).unwrap_or_default()
    }
}

/// The value of a dotted path as field selectors see it; absent is empty.
fn field_text(value: &Value, path: &str) -> Box<str> {
    let mut at = value;
    for step in path.split('.') {
        at = &at[step];
    }
    match at {
        Value::String(text) => text.as_str().into(),
        Value::Null => "".into(),
        other => other.to_string().into(),
    }
}

fn string_pairs(map: &Map<String, Value>) -> Box<[(Box<str>, Box<str>)]> {
    map.iter().map(|(k, v)| (k.as_str().into(), v.as_str().unwrap_or_default().into())).collect()
}

/// The current time as Kubernetes writes it: seconds, UTC.
pub fn now() -> String {
    timestamp(0)
}

/// The time `seconds` from now.
pub(super) fn timestamp(seconds: i64) -> String {
    let now = k8s_openapi::jiff::Timestamp::now().as_second() + seconds;
    k8s_openapi::jiff::Timestamp::from_second(now)
        .map(|time| time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string())
        .unwrap_or_default()
}

/// A random version-4 UUID.
pub(super) fn new_uid() -> String {
    let mut bytes = random::<16>();
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let parts = [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]];
    parts.join("-")
}

/// What is appended to `generateName`: five characters that make no words.
pub(super) fn name_suffix() -> String {
    const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    random::<5>()
        .iter()
        .map(|byte| char::from(ALPHABET[usize::from(*byte) % ALPHABET.len()]))
        .collect()
}

/// Unpredictable bytes.
pub fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    let source = rustls::crypto::ring::default_provider().secure_random;
    source.fill(&mut bytes).expect("the operating system has random numbers");
    bytes
}
