//! What a request asks for: its query, headers and body.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, CONTENT_TYPE, USER_AGENT};
use http::{HeaderMap, Request};
use http_body_util::{BodyExt as _, Limited};
use hyper::body::Incoming;
use serde_json::Value;

use super::api::{DeleteOptions, FieldValidation, ListOptions, Propagation, Target, WriteOptions};
use super::selector::Selector;
use super::status::ApiError;
use super::table::Include;
use super::user::User;
use super::watch::{Start, WatchOptions};
use super::{patch, protobuf_body};

/// Largest request body.
const BODY_BYTES_MAX: usize = 3 << 20;
/// How long a watch lasts that does not say.
const WATCH_TIMEOUT_DEFAULT: Duration = Duration::from_secs(45 * 60);

/// How objects are to be written.
#[derive(Clone, Copy, Debug)]
pub(super) struct Format {
    pub(super) shape: Shape,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Shape {
    Plain,
    Table,
    /// The metadata alone.
    Partial,
}

impl Format {
    /// The first of the accepted types that we can produce.
    pub(super) fn parse(headers: &HeaderMap) -> Result<Self, ApiError> {
        let accept = header(headers, ACCEPT.as_str());
        if accept.trim().is_empty() {
            return Ok(Self { shape: Shape::Plain });
        }
        for one in accept.split(',') {
            let mut parts = one.split(';').map(str::trim);
            let media = parts.next().unwrap_or_default();
            if !matches!(media, "application/json" | "*/*" | "application/*") {
                continue;
            }
            let parameters: Vec<&str> = parts.collect();
            let shape = match parameters.iter().find_map(|part| part.strip_prefix("as=")) {
                None => Shape::Plain,
                Some("Table") if parameters.contains(&"v=v1") => Shape::Table,
                Some("PartialObjectMetadata" | "PartialObjectMetadataList") => Shape::Partial,
                Some(_) => continue,
            };
            return Ok(Self { shape });
        }
        Err(ApiError::not_acceptable("application/json"))
    }
}

/// The query string, decoded.
#[derive(Clone, Debug, Default)]
pub(super) struct Query(BTreeMap<String, String>);

impl Query {
    pub(super) fn parse(text: &str) -> Self {
        let pairs = text.split('&').filter(|pair| !pair.is_empty()).map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            (decode(&name.replace('+', " ")), decode(&value.replace('+', " ")))
        });
        Self(pairs.collect())
    }

    pub(super) fn text(&self, name: &str) -> &str {
        self.0.get(name).map(String::as_str).unwrap_or_default()
    }

    pub(super) fn flag(&self, name: &str) -> bool {
        self.0.get(name).is_some_and(|value| !matches!(value.as_str(), "0" | "false"))
    }

    pub(super) fn with(&self, name: &str, value: &str) -> Self {
        let mut query = self.clone();
        query.0.insert(name.to_owned(), value.to_owned());
        query
    }
}

/// Undoes percent-encoding.
pub(super) fn decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let hex = |byte: u8| char::from(byte).to_digit(16);
        let escaped = match bytes[at..] {
            [b'%', high, low, ..] => hex(high).zip(hex(low)),
            _ => None,
        };
        match escaped {
            Some((high, low)) => {
                out.push((high * 16 + low) as u8);
                at += 3;
            }
            None => {
                out.push(bytes[at]);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

pub(super) fn header<'a>(headers: &'a HeaderMap, name: &str) -> &'a str {
    headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
}

pub(super) async fn body(request: Request<Incoming>) -> Result<Bytes, ApiError> {
    let collected = Limited::new(request.into_body(), BODY_BYTES_MAX).collect().await;
    match collected {
        Ok(body) => Ok(body.to_bytes()),
        Err(error) if error.is::<http_body_util::LengthLimitError>() => {
            Err(ApiError::too_large(BODY_BYTES_MAX))
        }
        Err(error) => {
            Err(ApiError::bad_request(format!("the body of the request broke off: {error}")))
        }
    }
}

pub(super) fn parse_body(headers: &HeaderMap, body: &[u8]) -> Result<Value, ApiError> {
    let content_type = header(headers, CONTENT_TYPE.as_str());
    match content_type.split(';').next().unwrap_or_default().trim() {
        "" | "application/json" => serde_json::from_slice(body).map_err(|error| {
            ApiError::bad_request(format!("the object provided is unrecognized: {error}"))
        }),
        "application/yaml" => patch::yaml(body),
        protobuf_body::CONTENT_TYPE => protobuf_body::decode(body),
        other => Err(ApiError::unsupported_media_type(other, "application/json, application/yaml")),
    }
}

fn is_dry_run(values: &str) -> Result<bool, ApiError> {
    match values {
        "" => Ok(false),
        "All" => Ok(true),
        other => Err(ApiError::bad_request(format!(
            "invalid dry-run value: {other}; supported values: \"All\""
        ))),
    }
}

pub(super) fn write_options(
    query: &Query,
    headers: &HeaderMap,
    user: &Arc<User>,
) -> Result<WriteOptions, ApiError> {
    let manager = match query.text("fieldManager") {
        "" => {
            let agent = header(headers, USER_AGENT.as_str());
            agent.split('/').next().filter(|name| !name.is_empty()).unwrap_or("unknown")
        }
        named => named,
    };
    if manager.len() > 128 {
        return Err(ApiError::bad_request(
            "fieldManager: Too long: may not be more than 128 bytes",
        ));
    }
    let validation = match query.text("fieldValidation") {
        "" | "Warn" => FieldValidation::Warn,
        "Strict" => FieldValidation::Strict,
        "Ignore" => FieldValidation::Ignore,
        other => {
            let message = format!(
                "fieldValidation: Unsupported value: \"{other}\": supported values: \"Ignore\", \"Strict\", \"Warn\""
            );
            return Err(ApiError::bad_request(message));
        }
    };
    Ok(WriteOptions {
        dry_run: is_dry_run(query.text("dryRun"))?,
        manager: manager.to_owned(),
        validation,
        force: query.flag("force"),
        user: Some(user.clone()),
    })
}

pub(super) fn delete_options(query: &Query, body: &[u8]) -> Result<DeleteOptions, ApiError> {
    let value = if body.is_empty() { Value::Null } else { patch::yaml(body)? };
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let grace =
        value["gracePeriodSeconds"].as_i64().or(query.text("gracePeriodSeconds").parse().ok());
    if grace.is_some_and(|seconds| seconds < 0) {
        return Err(ApiError::bad_request(
            "gracePeriodSeconds: must be greater than or equal to 0",
        ));
    }
    let policy = value["propagationPolicy"].as_str().unwrap_or(query.text("propagationPolicy"));
    let orphan = value["orphanDependents"] == true || query.text("orphanDependents") == "true";
    let propagation = match policy {
        "" if orphan => Propagation::Orphan,
        "" | "Background" => Propagation::Background,
        "Foreground" => Propagation::Foreground,
        "Orphan" => Propagation::Orphan,
        other => {
            let message = format!(
                "propagationPolicy: Unsupported value: \"{other}\": supported values: \"Background\", \"Foreground\", \"Orphan\""
            );
            return Err(ApiError::bad_request(message));
        }
    };
    let dry_run = value["dryRun"].as_array().and_then(|list| list.first()).and_then(Value::as_str);
    Ok(DeleteOptions {
        grace_period_seconds: grace,
        uid: text(&value["preconditions"]["uid"]),
        resource_version: text(&value["preconditions"]["resourceVersion"]),
        propagation,
        dry_run: is_dry_run(dry_run.unwrap_or(query.text("dryRun")))?,
    })
}

fn selector(target: &Target, query: &Query) -> Result<Selector, ApiError> {
    let (labels, fields) = (query.text("labelSelector"), query.text("fieldSelector"));
    if *target.resource.group == *"events.k8s.io" {
        let fields = fields
            .replace("regarding.", "involvedObject.")
            .replace("reportingController", "reportingComponent");
        return Selector::parse(labels, &fields, target.resource.indexed);
    }
    Selector::parse(labels, fields, target.resource.indexed)
}

fn number(query: &Query, name: &str) -> Result<Option<u64>, ApiError> {
    match query.text(name) {
        "" => Ok(None),
        text => text.parse().map(Some).map_err(|error| {
            ApiError::bad_request(format!(
                "invalid value for {name}: \"{text}\" is not a number: {error}"
            ))
        }),
    }
}

pub(super) fn list_options(target: &Target, query: &Query) -> Result<ListOptions, ApiError> {
    Ok(ListOptions {
        selector: selector(target, query)?,
        limit: number(query, "limit")?.and_then(|limit| usize::try_from(limit).ok()).unwrap_or(0),
        continue_token: query.text("continue").to_owned(),
    })
}

/// A list is always of the present; that satisfies all but exact versions of the past.
pub(super) fn check_list_version(query: &Query, current: u64) -> Result<(), ApiError> {
    let Some(asked) = number(query, "resourceVersion")? else { return Ok(()) };
    if asked > current {
        return Err(ApiError::too_large_resource_version(asked, current));
    }
    if query.text("resourceVersionMatch") == "Exact" && asked != current {
        return Err(ApiError::expired(format!(
            "The resourceVersion for the provided list is too old: {asked}"
        )));
    }
    Ok(())
}

pub(super) fn watch_options(target: &Target, query: &Query) -> Result<WatchOptions, ApiError> {
    let version = number(query, "resourceVersion")?;
    let start = match version {
        _ if query.flag("sendInitialEvents") => {
            if query.text("resourceVersionMatch") != "NotOlderThan" {
                return Err(ApiError::bad_request(
                    "resourceVersionMatch: Invalid value: must be NotOlderThan when sendInitialEvents is set",
                ));
            }
            Start::StreamingList
        }
        None | Some(0) => Start::Now,
        Some(version) => Start::After(version),
    };
    let timeout = number(query, "timeoutSeconds")?.filter(|seconds| *seconds > 0);
    Ok(WatchOptions {
        selector: selector(target, query)?,
        start,
        bookmarks: query.flag("allowWatchBookmarks"),
        timeout: Some(timeout.map_or(WATCH_TIMEOUT_DEFAULT, Duration::from_secs)),
    })
}

pub(super) fn include(query: &Query) -> Result<Include, ApiError> {
    match query.text("includeObject") {
        "" | "Metadata" => Ok(Include::Metadata),
        "Object" => Ok(Include::Object),
        "None" => Ok(Include::None),
        other => {
            Err(ApiError::bad_request(format!("unrecognized includeObject value: \"{other}\"")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries() {
        let query = Query::parse("labelSelector=a%3Db%2Cc&watch=true&x=1+2&flag&bad=%zz&n=0");
        assert_eq!(query.text("labelSelector"), "a=b,c");
        assert_eq!(query.text("x"), "1 2");
        assert_eq!(query.text("bad"), "%zz");
        assert!(query.flag("watch") && query.flag("flag"));
        assert!(!query.flag("n") && !query.flag("missing"));
    }

    #[test]
    fn formats() {
        let check = |accept: &'static str, expected: Option<Shape>| {
            let mut headers = HeaderMap::new();
            headers.insert(ACCEPT, accept.parse().unwrap());
            assert_eq!(
                Format::parse(&headers).ok().map(|format| format.shape),
                expected,
                "{accept}"
            );
        };
        check("application/json", Some(Shape::Plain));
        check("*/*", Some(Shape::Plain));
        check("application/vnd.kubernetes.protobuf,application/json", Some(Shape::Plain));
        check("application/json;as=Table;v=v1;g=meta.k8s.io,application/json", Some(Shape::Table));
        check(
            "application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json",
            Some(Shape::Plain),
        );
        check(
            "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1",
            Some(Shape::Partial),
        );
        check("application/vnd.kubernetes.protobuf", None);
        check("text/html", None);
    }
}
