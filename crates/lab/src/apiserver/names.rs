//! What names, labels and annotations may look like, in the words of the real API server.

use serde_json::{Value, json};

use super::status::{Fault, FieldError};

const SUBDOMAIN: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
const LABEL: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')";
const QUALIFIED: &str = "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";
const LABEL_VALUE: &str = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')";
const CONFIG_KEY: &str = "a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or 'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')";

/// All annotations of an object together.
const ANNOTATIONS_BYTES_MAX: usize = 256 << 10;

pub(super) fn is_label(text: &str) -> bool {
    let alphanumeric = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    !text.is_empty()
        && text.chars().all(|c| alphanumeric(c) || c == '-')
        && text.starts_with(alphanumeric)
        && text.ends_with(alphanumeric)
}

fn is_subdomain(text: &str) -> bool {
    text.split('.').all(is_label)
}

/// Starts and ends alphanumeric; `-`, `_` and `.` between.
fn is_qualified_part(text: &str) -> bool {
    let alphanumeric = |c: char| c.is_ascii_alphanumeric();
    text.chars().all(|c| alphanumeric(c) || "-_.".contains(c))
        && text.starts_with(alphanumeric)
        && text.ends_with(alphanumeric)
}

fn too_long(field: &str, bytes_max: usize) -> FieldError {
    let detail = format!("may not be more than {bytes_max} bytes");
    FieldError { field: field.to_owned(), fault: Fault::TooLong, detail }
}

pub(super) fn check_label(field: &str, text: &str, errors: &mut Vec<FieldError>) {
    if text.len() > 63 {
        errors.push(FieldError::invalid(field, text, "must be no more than 63 characters"));
    }
    if !is_label(text) {
        errors.push(FieldError::invalid(field, text, LABEL));
    }
}

pub(super) fn check_subdomain(field: &str, text: &str, errors: &mut Vec<FieldError>) {
    if text.len() > 253 {
        errors.push(FieldError::invalid(field, text, "must be no more than 253 characters"));
    }
    if !is_subdomain(text) {
        errors.push(FieldError::invalid(field, text, SUBDOMAIN));
    }
}

/// Names that need only fit into a URL, such as `system:node`.
pub(super) fn check_segment(field: &str, text: &str, errors: &mut Vec<FieldError>) {
    if text == "." || text == ".." {
        errors.push(FieldError::invalid(field, text, format!("may not be '{text}'")));
    }
    for odd in ["/", "%"].into_iter().filter(|odd| text.contains(odd)) {
        errors.push(FieldError::invalid(field, text, format!("may not contain '{odd}'")));
    }
}

/// Keys of config maps and secrets.
pub(super) fn check_config_key(field: &str, key: &str, errors: &mut Vec<FieldError>) {
    let field = format!("{field}[{key}]");
    if key.len() > 253 {
        errors.push(too_long(&field, 253));
    }
    let fits =
        !key.is_empty() && key.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c));
    if !fits || key == "." || key == ".." {
        errors.push(FieldError::invalid(field, key, CONFIG_KEY));
    }
}

fn check_qualified(field: &str, key: &str, errors: &mut Vec<FieldError>) {
    let (prefix, name) = match key.split_once('/') {
        Some((prefix, name)) => (Some(prefix), name),
        None => (None, key),
    };
    if let Some(prefix) = prefix
        && (!is_subdomain(prefix) || prefix.len() > 253)
    {
        errors.push(FieldError::invalid(field, key, format!("prefix part {SUBDOMAIN}")));
    }
    if name.is_empty() {
        errors.push(FieldError::invalid(field, key, "name part must be non-empty"));
    }
    if name.len() > 63 {
        let detail = "name part must be no more than 63 characters";
        errors.push(FieldError::invalid(field, key, detail));
    }
    if !is_qualified_part(name) {
        errors.push(FieldError::invalid(field, key, QUALIFIED));
    }
}

pub(super) fn check_labels(field: &str, labels: &Value, errors: &mut Vec<FieldError>) {
    for (key, value) in labels.as_object().into_iter().flatten() {
        check_qualified(field, key, errors);
        let Some(text) = value.as_str() else { continue };
        if text.len() > 63 {
            errors.push(FieldError::invalid(field, text, "must be no more than 63 characters"));
        }
        if !text.is_empty() && !is_qualified_part(text) {
            errors.push(FieldError::invalid(field, text, LABEL_VALUE));
        }
    }
}

/// What holds for the metadata of every object, but for its name.
pub(super) fn check_metadata(meta: &Value, errors: &mut Vec<FieldError>) {
    check_labels("metadata.labels", &meta["labels"], errors);
    let mut bytes = 0;
    for (key, value) in meta["annotations"].as_object().into_iter().flatten() {
        check_qualified("metadata.annotations", &key.to_ascii_lowercase(), errors);
        bytes += key.len() + value.as_str().unwrap_or_default().len();
    }
    if bytes > ANNOTATIONS_BYTES_MAX {
        errors.push(too_long("metadata.annotations", ANNOTATIONS_BYTES_MAX));
    }
    for finalizer in meta["finalizers"].as_array().into_iter().flatten() {
        let name = finalizer.as_str().unwrap_or_default();
        check_qualified("metadata.finalizers", name, errors);
        let standard = ["orphan", "foregroundDeletion", "kubernetes"].contains(&name);
        if !standard && !name.contains('/') && !name.contains('.') {
            let detail = "name is neither a standard finalizer name nor is it fully qualified";
            errors.push(FieldError::invalid("metadata.finalizers", name, detail));
        }
    }
    for (index, owner) in meta["ownerReferences"].as_array().into_iter().flatten().enumerate() {
        for name in ["apiVersion", "kind", "name", "uid"] {
            if owner[name].as_str().unwrap_or_default().is_empty() {
                let field = format!("metadata.ownerReferences[{index}].{name}");
                errors.push(FieldError::invalid(field, json!(""), "must not be empty"));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(meta: &Value, expected: &[&str]) {
        let mut errors = Vec::new();
        check_metadata(meta, &mut errors);
        let fields: Vec<&str> = errors.iter().map(|error| error.field.as_str()).collect();
        assert_eq!(fields, expected, "{meta}");
    }

    #[test]
    fn metadata() {
        check(&json!({ "labels": { "a": "b", "x.y/z": "", "A_b": "C.d" } }), &[]);
        check(&json!({ "labels": { "a b": "c" } }), &["metadata.labels"]);
        check(&json!({ "labels": { "a": "-c" } }), &["metadata.labels"]);
        check(&json!({ "labels": { "X/y": "c" } }), &["metadata.labels"]);
        check(&json!({ "annotations": { "a": "any thing" } }), &[]);
        check(&json!({ "finalizers": ["plain"] }), &["metadata.finalizers"]);
        check(&json!({ "finalizers": ["cilium.io/x", "orphan"] }), &[]);
    }

    #[test]
    fn labels_of_names() {
        for (text, expected) in
            [("a", true), ("a-b", true), ("", false), ("-a", false), ("A", false), ("a.b", false)]
        {
            assert_eq!(is_label(text), expected, "{text}");
        }
        assert!(is_subdomain("a.b-c.d"));
        assert!(!is_subdomain("a..b"));
    }
}
