//! OpenAPI version 2 in the protobuf form that older `kubectl` reads.
//!
//! Messages and field numbers are those of gnostic's `OpenAPIv2.proto`. Only what
//! `kubectl` looks at is written.

use serde_json::Value;

/// Encodes a document of version 2.
pub(super) fn document(json: &Value) -> Vec<u8> {
    let mut info = Message::default();
    info.text(1, &json["info"]["title"]);
    info.text(2, &json["info"]["version"]);
    let mut paths = Message::default();
    for (path, item) in json["paths"].as_object().into_iter().flatten() {
        paths.message(2, &named(path, &path_item(item)));
    }
    let mut definitions = Message::default();
    for (name, definition) in json["definitions"].as_object().into_iter().flatten() {
        definitions.message(1, &named(name, &schema(definition)));
    }
    let mut document = Message::default();
    document.text(1, &json["swagger"]);
    document.message(2, &info);
    document.message(8, &paths);
    document.message(9, &definitions);
    document.0
}

/// A protobuf message that grows.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push((value as u8 & 0x7f) | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    fn bytes(&mut self, field: u64, bytes: &[u8]) {
        self.varint(field << 3 | 2);
        self.varint(bytes.len() as u64);
        self.0.extend_from_slice(bytes);
    }

    fn message(&mut self, field: u64, message: &Self) {
        self.bytes(field, &message.0);
    }

    /// A string, if the value is one.
    fn text(&mut self, field: u64, value: &Value) {
        if let Some(text) = value.as_str() {
            self.bytes(field, text.as_bytes());
        }
    }
}

/// All of gnostic's `Named…` messages look like this.
fn named(name: &str, value: &Message) -> Message {
    let mut message = Message::default();
    message.bytes(1, name.as_bytes());
    message.message(2, value);
    message
}

/// `Any`, which holds YAML; JSON is YAML.
fn any(value: &Value) -> Message {
    let mut message = Message::default();
    message.bytes(2, value.to_string().as_bytes());
    message
}

fn extensions(json: &Value, field: u64, message: &mut Message) {
    let all = json.as_object().into_iter().flatten();
    for (name, value) in all.filter(|(name, _)| name.starts_with("x-")) {
        message.message(field, &named(name, &any(value)));
    }
}

fn path_item(json: &Value) -> Message {
    let mut message = Message::default();
    for (field, verb) in [(2, "get"), (3, "put"), (4, "post"), (5, "delete"), (8, "patch")] {
        if json[verb].is_object() {
            message.message(field, &operation(&json[verb]));
        }
    }
    message
}

fn operation(json: &Value) -> Message {
    let mut message = Message::default();
    for parameter in json["parameters"].as_array().into_iter().flatten() {
        // Parameter → NonBodyParameter → QueryParameterSubSchema.
        let mut query = Message::default();
        query.text(2, &parameter["in"]);
        query.text(4, &parameter["name"]);
        query.text(6, &parameter["type"]);
        let mut message_of = query;
        for field in [3, 2, 1] {
            let mut outer = Message::default();
            outer.message(field, &message_of);
            message_of = outer;
        }
        message.message(8, &message_of);
    }
    message.message(9, &Message::default());
    extensions(json, 13, &mut message);
    message
}

fn schema(json: &Value) -> Message {
    let mut message = Message::default();
    message.text(1, &json["$ref"]);
    message.text(2, &json["format"]);
    message.text(4, &json["description"]);
    if let Some(default) = json.get("default") {
        message.message(5, &any(default));
    }
    for name in json["required"].as_array().into_iter().flatten() {
        message.text(19, name);
    }
    let additional = &json["additionalProperties"];
    if additional.is_object() {
        let mut item = Message::default();
        item.message(1, &schema(additional));
        message.message(21, &item);
    }
    if json["type"].is_string() {
        let mut item = Message::default();
        item.text(1, &json["type"]);
        message.message(22, &item);
    }
    if json["items"].is_object() {
        let mut item = Message::default();
        item.message(1, &schema(&json["items"]));
        message.message(23, &item);
    }
    if let Some(properties) = json["properties"].as_object() {
        let mut all = Message::default();
        for (name, property) in properties {
            all.message(1, &named(name, &schema(property)));
        }
        message.message(25, &all);
    }
    extensions(json, 31, &mut message);
    message
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_small_document() {
        let bytes = document(&json!({ "swagger": "2.0", "info": { "title": "t", "version": "v" },
            "paths": {}, "definitions": { "A": { "type": "string" } } }));
        // Definitions (9) → NamedSchema → Schema → TypeItem (22) → "string".
        let expected = b"\x0a\x032.0\x12\x06\x0a\x01t\x12\x01v\x42\x00\x4a\x12\x0a\x10\x0a\x01A\x12\x0b\xb2\x01\x08\x0a\x06string";
        assert_eq!(bytes, expected);
    }

    #[test]
    fn lengths_above_127_take_two_bytes() {
        let mut message = Message::default();
        message.bytes(1, &[0; 300]);
        assert_eq!(message.0[..3], [0x0a, 0xac, 0x02]);
    }
}
