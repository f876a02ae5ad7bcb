//! Refusals, in the words and shape of Kubernetes' `Status` object.
//!
//! `kubectl` and client libraries decide by `reason` and `code`, people read
//! `message`; both follow the real API server so that nothing has to be learnt anew.

use http::StatusCode;
use serde_json::{Value, json};

/// Why a request was refused.
#[derive(Clone, Debug)]
pub struct ApiError(Box<Refusal>);

#[derive(Clone, Debug)]
struct Refusal {
    code: StatusCode,
    reason: &'static str,
    message: String,
    details: Value,
}

impl ApiError {
    fn new(code: StatusCode, reason: &'static str, message: impl Into<String>) -> Self {
        Self(Box::new(Refusal { code, reason, message: message.into(), details: Value::Null }))
    }

    fn about(mut self, kind: &str, group: &str, name: &str) -> Self {
        self.0.details = json!({ "kind": kind });
        if !name.is_empty() {
            self.0.details["name"] = json!(name);
        }
        if !group.is_empty() {
            self.0.details["group"] = json!(group);
        }
        self
    }

    /// The object does not exist. `resource` is plural.
    pub fn not_found(resource: &str, group: &str, name: &str) -> Self {
        let message = format!("{} \"{name}\" not found", qualified(resource, group));
        Self::new(StatusCode::NOT_FOUND, "NotFound", message).about(resource, group, name)
    }

    /// The URL leads nowhere.
    pub fn no_such_path() -> Self {
        let message = "the server could not find the requested resource";
        let mut error = Self::new(StatusCode::NOT_FOUND, "NotFound", message);
        error.0.details = json!({});
        error
    }

    /// An object of this name is there already.
    pub fn already_exists(resource: &str, group: &str, name: &str) -> Self {
        let message = format!("{} \"{name}\" already exists", qualified(resource, group));
        Self::new(StatusCode::CONFLICT, "AlreadyExists", message).about(resource, group, name)
    }

    /// Somebody else changed the object first, or another precondition fails.
    pub fn conflict(resource: &str, group: &str, name: &str, why: &str) -> Self {
        let message = format!(
            "Operation cannot be fulfilled on {} \"{name}\": {why}",
            qualified(resource, group)
        );
        Self::new(StatusCode::CONFLICT, "Conflict", message).about(resource, group, name)
    }

    /// The usual conflict: a resource version that is no longer the current one.
    pub fn stale(resource: &str, group: &str, name: &str) -> Self {
        let why = "the object has been modified; please apply your changes to the latest version and try again";
        Self::conflict(resource, group, name, why)
    }

    /// Server-side apply would overwrite fields of other managers: `(manager, field)`.
    pub fn apply_conflict(conflicts: &[(String, String)]) -> Self {
        let mut managers: Vec<&str> = conflicts.iter().map(|(manager, _)| &**manager).collect();
        managers.dedup();
        let plural = if conflicts.len() == 1 { "conflict" } else { "conflicts" };
        let message = match (managers.as_slice(), conflicts) {
            ([manager], [(_, field)]) => {
                format!("Apply failed with 1 conflict: conflict with {manager}: {field}")
            }
            _ => {
                let mut message = format!("Apply failed with {} {plural}:", conflicts.len());
                for manager in managers {
                    message += &format!(" conflicts with {manager}:");
                    for (_, field) in conflicts.iter().filter(|(of, _)| of == manager) {
                        message += &format!("\n- {field}");
                    }
                }
                message
            }
        };
        let causes: Vec<Value> = conflicts
            .iter()
            .map(|(manager, field)| {
                json!({ "reason": "FieldManagerConflict", "field": field,
                        "message": format!("conflict with {manager}") })
            })
            .collect();
        let mut error = Self::new(StatusCode::CONFLICT, "Conflict", message);
        error.0.details = json!({ "causes": causes });
        error
    }

    /// The object breaks rules of its kind.
    pub fn invalid(kind: &str, group: &str, name: &str, errors: &[FieldError]) -> Self {
        let texts: Vec<String> = errors.iter().map(ToString::to_string).collect();
        let text = match texts.as_slice() {
            [one] => one.clone(),
            many => format!("[{}]", many.join(", ")),
        };
        let kind_text = if group.is_empty() { kind.to_owned() } else { format!("{kind}.{group}") };
        let message = format!("{kind_text} \"{name}\" is invalid: {text}");
        let mut error = Self::new(StatusCode::UNPROCESSABLE_ENTITY, "Invalid", message)
            .about(kind, group, name);
        error.0.details["causes"] = errors.iter().map(FieldError::cause).collect();
        error
    }

    /// The request makes no sense as sent.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "BadRequest", message)
    }

    /// A JSON patch that does not fit the object.
    pub fn invalid_patch(kind: &str, why: &str) -> Self {
        let message = format!("the patch cannot be applied to this {kind}: {why}");
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, "Invalid", message)
    }

    /// Understood, and not allowed in the present state.
    pub fn forbidden(resource: &str, group: &str, name: &str, why: &str) -> Self {
        let message = format!("{} \"{name}\" is forbidden: {why}", qualified(resource, group));
        Self::new(StatusCode::FORBIDDEN, "Forbidden", message).about(resource, group, name)
    }

    /// Whoever asks has not the right to. `words` say who may not do what.
    pub fn refused(resource: &str, group: &str, name: &str, words: &str) -> Self {
        let message = match (resource, name) {
            ("", _) => format!("forbidden: {words}"),
            (_, "") => format!("{} is forbidden: {words}", qualified(resource, group)),
            _ => return Self::forbidden(resource, group, name, words),
        };
        Self::new(StatusCode::FORBIDDEN, "Forbidden", message).about(resource, group, name)
    }

    /// Nobody we know.
    pub fn unauthorized() -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "Unauthorized", "Unauthorized")
    }

    /// The history that was asked for is no longer kept.
    pub fn expired(message: impl Into<String>) -> Self {
        Self::new(StatusCode::GONE, "Expired", message)
    }

    /// A resource version of the future.
    pub fn too_large_resource_version(asked: u64, current: u64) -> Self {
        let message = format!("Too large resource version: {asked}, current: {current}");
        let mut error = Self::new(StatusCode::GATEWAY_TIMEOUT, "Timeout", message);
        error.0.details = json!({ "retryAfterSeconds": 1,
            "causes": [{ "reason": "ResourceVersionTooLarge", "message": "Too large resource version" }] });
        error
    }

    /// The resource exists and does not offer this verb.
    pub fn method_not_allowed() -> Self {
        let message = "the server does not allow this method on the requested resource";
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed", message)
    }

    /// The resource offers this verb, but not in its present state.
    pub fn not_allowed_now(message: &str) -> Self {
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed", message)
    }

    /// None of the accepted formats can be produced.
    pub fn not_acceptable(accepted: &str) -> Self {
        let message = format!("only the following media types are accepted: {accepted}");
        Self::new(StatusCode::NOT_ACCEPTABLE, "NotAcceptable", message)
    }

    /// The body is of a type that is not understood here.
    pub fn unsupported_media_type(got: &str, supported: &str) -> Self {
        let message = format!(
            "the body of the request was in an unknown format \"{got}\" - accepted media types include: {supported}"
        );
        Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "UnsupportedMediaType", message)
    }

    /// The lab does not do this.
    pub fn not_implemented(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_IMPLEMENTED, "NotImplemented", message)
    }

    /// Body larger than the limit.
    pub fn too_large(limit: usize) -> Self {
        let message = format!("Request entity too large: limit is {limit}");
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "RequestEntityTooLarge", message)
    }

    /// A fault of ours.
    pub fn internal(message: impl Into<String>) -> Self {
        let message = format!("Internal error occurred: {}", message.into());
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "InternalError", message)
    }

    /// The node that runs the pod cannot be asked.
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "ServiceUnavailable", message)
    }

    /// HTTP status.
    pub fn code(&self) -> StatusCode {
        self.0.code
    }

    /// Machine-readable reason: `NotFound`, `Conflict`, …
    pub fn reason(&self) -> &'static str {
        self.0.reason
    }

    /// The object is not there.
    pub fn is_not_found(&self) -> bool {
        self.0.code == StatusCode::NOT_FOUND
    }

    /// Somebody else was faster (`Conflict`, not `AlreadyExists`).
    pub fn is_conflict(&self) -> bool {
        self.0.reason == "Conflict"
    }

    /// The object is there already.
    pub fn is_already_exists(&self) -> bool {
        self.0.reason == "AlreadyExists"
    }

    /// The `Status` object.
    pub fn to_status(&self) -> Value {
        let mut status = json!({
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": self.0.message,
            "reason": self.0.reason,
            "code": self.0.code.as_u16(),
        });
        if !self.0.details.is_null() {
            status["details"] = self.0.details.clone();
        }
        status
    }
}

impl std::fmt::Display for ApiError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0.message)
    }
}

impl std::error::Error for ApiError {}

/// One broken rule.
#[derive(Clone, Debug, PartialEq)]
pub struct FieldError {
    pub field: String,
    pub fault: Fault,
    pub detail: String,
}

/// What is wrong with a field.
#[derive(Clone, Debug, PartialEq)]
pub enum Fault {
    Required,
    Invalid(Value),
    /// Of the wrong JSON type; the value's text.
    Type(Value),
    NotSupported(Value),
    /// Names something that does not exist.
    NotFound(Value),
    Forbidden,
    Duplicate(Value),
    TooLong,
    TooMany,
}

impl FieldError {
    pub fn required(field: impl Into<String>, detail: impl Into<String>) -> Self {
        Self { field: field.into(), fault: Fault::Required, detail: detail.into() }
    }

    pub fn invalid(
        field: impl Into<String>,
        value: impl Into<Value>,
        detail: impl Into<String>,
    ) -> Self {
        let (field, detail) = (field.into(), detail.into());
        Self { field, fault: Fault::Invalid(value.into()), detail }
    }

    pub fn forbidden(field: impl Into<String>, detail: impl Into<String>) -> Self {
        Self { field: field.into(), fault: Fault::Forbidden, detail: detail.into() }
    }

    pub fn not_supported(
        field: impl Into<String>,
        value: impl Into<Value>,
        supported: &[&str],
    ) -> Self {
        let list: Vec<String> = supported.iter().map(|one| format!("\"{one}\"")).collect();
        let detail = format!("supported values: {}", list.join(", "));
        Self { field: field.into(), fault: Fault::NotSupported(value.into()), detail }
    }

    pub fn duplicate(field: impl Into<String>, value: impl Into<Value>) -> Self {
        Self { field: field.into(), fault: Fault::Duplicate(value.into()), detail: String::new() }
    }

    fn words(&self) -> (&'static str, &'static str, Option<&Value>) {
        match &self.fault {
            Fault::Required => ("FieldValueRequired", "Required value", None),
            Fault::Invalid(value) => ("FieldValueInvalid", "Invalid value", Some(value)),
            Fault::Type(value) => ("FieldValueTypeInvalid", "Invalid value", Some(value)),
            Fault::NotSupported(value) => {
                ("FieldValueNotSupported", "Unsupported value", Some(value))
            }
            Fault::NotFound(value) => ("FieldValueNotFound", "Not found", Some(value)),
            Fault::Forbidden => ("FieldValueForbidden", "Forbidden", None),
            Fault::Duplicate(value) => ("FieldValueDuplicate", "Duplicate value", Some(value)),
            Fault::TooLong => ("FieldValueTooLong", "Too long", None),
            Fault::TooMany => ("FieldValueTooMany", "Too many", None),
        }
    }

    /// The text without the field's name.
    fn body(&self) -> String {
        let (_, words, value) = self.words();
        let mut text = words.to_owned();
        if let Some(value) = value {
            text += &format!(": {value}");
        }
        if !self.detail.is_empty() {
            text += &format!(": {}", self.detail);
        }
        text
    }

    fn cause(&self) -> Value {
        json!({ "reason": self.words().0, "message": self.body(), "field": self.field })
    }
}

impl std::fmt::Display for FieldError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let field = if self.field.is_empty() { "<nil>" } else { &self.field };
        write!(f, "{field}: {}", self.body())
    }
}

fn qualified(resource: &str, group: &str) -> String {
    if group.is_empty() { resource.to_owned() } else { format!("{resource}.{group}") }
}
