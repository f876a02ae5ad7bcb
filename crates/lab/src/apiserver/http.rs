//! HTTP: which verb a request calls, and how the answer is written.

use std::convert::Infallible;
use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt as _;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderValue};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use serde_json::{Value, json};

use super::api::{Api, Listed, Outcome, Target};
use super::attributes::Attributes;
use super::patch::Patch;
use super::renderings::Renderings;
use super::request::{
    Format, Query, Shape, body, check_list_version, decode, delete_options, header, include,
    list_options, parse_body, watch_options, write_options,
};
use super::resource::{self, Definition};
use super::status::ApiError;
use super::table::{self, Include};
use super::user::User;
use super::watch::{self, Notice, Watch};
use super::{convert, openapi, review, scale, token};

/// What the server calls itself. The minor version is what `kubectl` compares.
const GIT_VERSION: &str = "v1.32.0+cilium-lab";

pub type Body = UnsyncBoxBody<Bytes, Infallible>;
pub type Reply = Response<Body>;

/// Streams into pods, which the nodes serve: logs, exec, attach, port forwarding.
///
/// The API server hands the whole request over, upgrades included.
pub trait PodStreams: Send + Sync {
    /// `subresource` is `log`, `exec`, `attach`, `portforward` or `proxy`; `pod` is the object.
    fn serve(
        &self,
        pod: Value,
        subresource: String,
        request: Request<Incoming>,
    ) -> futures::future::BoxFuture<'static, Result<Reply, ApiError>>;
}

/// What every connection shares.
pub(super) struct Server {
    pub api: Arc<Api>,
    pub streams: Option<Arc<dyn PodStreams>>,
    /// The administrator's bearer token.
    pub admin_token: String,
    pub renderings: Renderings,
}

/// A body that is all there.
pub fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).boxed_unsync()
}

/// An answer that is all there.
pub(super) fn reply(code: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Reply {
    let mut response = Response::new(full(body));
    *response.status_mut() = code;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

fn json_reply(code: StatusCode, value: &Value) -> Reply {
    reply(code, "application/json", value.to_string())
}

fn error_reply(error: &ApiError) -> Reply {
    let mut response = json_reply(error.code(), &error.to_status());
    if error.code() == StatusCode::GATEWAY_TIMEOUT {
        response.headers_mut().insert("retry-after", HeaderValue::from_static("1"));
    }
    response
}

impl Server {
    /// Answers any request; what goes wrong becomes a `Status`. `certified` is whom the
    /// client's certificate names.
    pub(super) async fn answer(
        self: Arc<Self>,
        certified: Option<Arc<User>>,
        request: Request<Incoming>,
    ) -> Reply {
        let (method, path) = (request.method().clone(), request.uri().path().to_owned());
        let response = self.route(certified, request).await.unwrap_or_else(|error| {
            tracing::debug!(%method, path, code = error.code().as_u16(), %error, "request refused");
            error_reply(&error)
        });
        tracing::trace!(%method, path, code = response.status().as_u16(), "request answered");
        response
    }

    async fn route(
        self: &Arc<Self>,
        certified: Option<Arc<User>>,
        request: Request<Incoming>,
    ) -> Result<Reply, ApiError> {
        let path = request.uri().path().trim_end_matches('/').to_owned();
        if matches!(
            path.as_str(),
            "/healthz" | "/readyz" | "/livez" | "/readyz/ping" | "/livez/ping" | "/healthz/ping"
        ) {
            return Ok(reply(StatusCode::OK, "text/plain", "ok"));
        }
        let user = self.authenticate(certified, request.headers())?;
        let query = Query::parse(request.uri().query().unwrap_or_default());
        let asked = Attributes::of_request(request.method(), request.uri().path(), &query);
        self.api.authorize(&user, &asked)?;
        let segments: Vec<&str> = path.split('/').skip(1).collect();
        match segments.as_slice() {
            [] | [""] => Ok(json_reply(
                StatusCode::OK,
                &json!({ "paths": ["/api", "/api/v1", "/apis",
                "/healthz", "/livez", "/openapi/v2", "/openapi/v3", "/readyz", "/version"] }),
            )),
            ["version"] => Ok(json_reply(StatusCode::OK, &version())),
            ["openid", "v1", "jwks"] => {
                let keys = self.api.signer.key_set().to_string();
                Ok(reply(StatusCode::OK, "application/jwk-set+json", keys))
            }
            [".well-known", "openid-configuration"] => {
                Ok(json_reply(StatusCode::OK, &token::openid_configuration()))
            }
            ["openapi", ..] => openapi::answer(&self.api, &path, request.headers()),
            ["api", rest @ ..] => self.in_group("", rest, user, request).await,
            ["apis", rest @ ..] => self.in_groups(rest, user, request).await,
            _ => Err(ApiError::no_such_path()),
        }
    }

    /// Who sends the request, or whom they are allowed to be taken for.
    fn authenticate(
        &self,
        certified: Option<Arc<User>>,
        headers: &HeaderMap,
    ) -> Result<Arc<User>, ApiError> {
        let bearer = header(headers, AUTHORIZATION.as_str()).split_once(' ');
        let bearer = bearer.filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"));
        let user = match (certified, bearer) {
            (Some(user), _) => user,
            (None, None) => User::anonymous().into(),
            (None, Some((_, token))) if token.trim() == self.admin_token => {
                User::administrator().into()
            }
            (None, Some((_, token))) => {
                let found = self.api.user_of_token(token.trim(), &[token::ISSUER.to_owned()]);
                let (user, _) = found.map_err(|why| {
                    tracing::debug!(why, "bearer token refused");
                    ApiError::unauthorized()
                })?;
                user.into()
            }
        };
        let Some(other) = User::impersonated(headers) else { return Ok(user) };
        review::check_impersonation(&self.api, &user, &other)?;
        Ok(other.with_own_groups().into())
    }

    async fn in_groups(
        self: &Arc<Self>,
        segments: &[&str],
        user: Arc<User>,
        request: Request<Incoming>,
    ) -> Result<Reply, ApiError> {
        let catalog = self.api.catalog();
        match segments {
            [] if wants_aggregated(request.headers()) => {
                Ok(aggregated(&self.api, false, request.headers()))
            }
            [] => Ok(json_reply(StatusCode::OK, &resource::group_list(&catalog))),
            [group] => {
                let found = resource::group(&catalog, group).filter(|_| !group.is_empty());
                Ok(json_reply(StatusCode::OK, &found.ok_or_else(ApiError::no_such_path)?))
            }
            [group, rest @ ..] => self.in_group(group, rest, user, request).await,
        }
    }

    /// Below `/api` or `/apis/group`.
    async fn in_group(
        self: &Arc<Self>,
        group: &str,
        segments: &[&str],
        user: Arc<User>,
        request: Request<Incoming>,
    ) -> Result<Reply, ApiError> {
        let catalog = self.api.catalog();
        match segments {
            [] if wants_aggregated(request.headers()) => {
                Ok(aggregated(&self.api, true, request.headers()))
            }
            [] => Ok(json_reply(
                StatusCode::OK,
                &json!({ "kind": "APIVersions", "versions": ["v1"],
                "serverAddressByClientCIDRs": [] }),
            )),
            [version] => {
                let list = resource::resource_list(&catalog, group, version);
                Ok(json_reply(StatusCode::OK, &list.ok_or_else(ApiError::no_such_path)?))
            }
            [version, "watch", rest @ ..] => {
                let target = self.target(group, version, rest)?;
                self.in_resource(target, true, user, request).await
            }
            [version, rest @ ..] => {
                let target = self.target(group, version, rest)?;
                self.in_resource(target, false, user, request).await
            }
        }
    }

    fn target(&self, group: &str, version: &str, segments: &[&str]) -> Result<Target, ApiError> {
        let catalog = self.api.catalog();
        let find = |plural: &str| {
            catalog.find(group, version, plural).cloned().ok_or_else(ApiError::no_such_path)
        };
        let (namespace, plural, rest) = match segments {
            // A namespace itself: /api/v1/namespaces/NAME[/status|/finalize].
            ["namespaces"] => ("", "namespaces", &segments[1..]),
            ["namespaces", _] => ("", "namespaces", &segments[1..]),
            ["namespaces", _, "status" | "finalize"] => ("", "namespaces", &segments[1..]),
            ["namespaces", namespace, plural, rest @ ..] => (*namespace, *plural, rest),
            [plural, rest @ ..] => ("", *plural, rest),
            [] => return Err(ApiError::no_such_path()),
        };
        let resource = find(plural)?;
        if !namespace.is_empty() && !resource.namespaced {
            return Err(ApiError::no_such_path());
        }
        let name = rest.first().copied().unwrap_or_default();
        if resource.namespaced && namespace.is_empty() && !name.is_empty() {
            return Err(ApiError::no_such_path());
        }
        let subresource = rest.get(1..).unwrap_or_default().join("/");
        Ok(Target { resource, namespace: namespace.into(), name: decode(name), subresource })
    }

    async fn in_resource(
        self: &Arc<Self>,
        target: Target,
        watch: bool,
        user: Arc<User>,
        request: Request<Incoming>,
    ) -> Result<Reply, ApiError> {
        let query = Query::parse(request.uri().query().unwrap_or_default());
        self.check_subresource(&target)?;
        if self.is_stream(&target) {
            return self.stream(&target, request).await;
        }
        let headers = request.headers().clone();
        if review::is_review(&target) || target.subresource == "token" {
            if *request.method() != Method::POST {
                return Err(ApiError::method_not_allowed());
            }
            let value = parse_body(&headers, &body(request).await?)?;
            let answer = match target.subresource.as_str() {
                "token" => review::request_token(&self.api, &target, value)?,
                _ => review::answer(&self.api, &target, &user, value)?,
            };
            return Ok(json_reply(StatusCode::CREATED, &answer));
        }
        if target.subresource == "scale" {
            return self.scale(&target, &query, &user, request).await;
        }
        let format = Format::parse(&headers)?;
        match (request.method().clone(), target.name.is_empty()) {
            (Method::GET, true) if watch || query.flag("watch") => {
                self.watch(target, &query, format)
            }
            (Method::GET, true) => self.list(&target, &query, format),
            (Method::GET, false) if watch || query.flag("watch") => {
                let mut target = target;
                let name = std::mem::take(&mut target.name);
                let selector = format!("metadata.name={name}");
                self.watch(target, &query.with("fieldSelector", &selector), format)
            }
            (Method::GET, false) => {
                let object = self.api.get(&target)?;
                self.one(&target, StatusCode::OK, &object, format, &query, &[])
            }
            (Method::POST, _) => {
                self.post(&target, &query, &headers, &user, format, body(request).await?)
            }
            (Method::PUT, false) => {
                let options = write_options(&query, &headers, &user)?;
                let value = parse_body(&headers, &body(request).await?)?;
                let outcome = self.api.update(&target, value, &options)?;
                self.written(&target, &outcome, format, &query)
            }
            (Method::PATCH, false) => {
                let content_type = header(&headers, CONTENT_TYPE.as_str());
                let patch = Patch::parse(content_type, &body(request).await?)?;
                let options = write_options(&query, &headers, &user)?;
                if matches!(patch, Patch::Apply(_)) && query.text("fieldManager").is_empty() {
                    return Err(ApiError::bad_request(
                        "PatchOptions.meta.k8s.io \"\" is invalid: fieldManager: Required value: is required for apply patch",
                    ));
                }
                let outcome = self.api.patch(&target, &patch, &options)?;
                self.written(&target, &outcome, format, &query)
            }
            (Method::DELETE, false) => {
                let options = delete_options(&query, &body(request).await?)?;
                let outcome = self.api.delete(&target, &options)?;
                self.deleted(&target, &outcome)
            }
            (Method::DELETE, true) => {
                if !target.resource.verbs().contains(&"deletecollection") {
                    return Err(ApiError::method_not_allowed());
                }
                let options = delete_options(&query, &body(request).await?)?;
                let listed = self.api.delete_collection(
                    &target,
                    &list_options(&target, &query)?,
                    &options,
                )?;
                Ok(reply(StatusCode::OK, "application/json", list_json(&target, &listed)))
            }
            _ => Err(ApiError::method_not_allowed()),
        }
    }

    async fn scale(
        &self,
        target: &Target,
        query: &Query,
        user: &Arc<User>,
        request: Request<Incoming>,
    ) -> Result<Reply, ApiError> {
        let headers = request.headers().clone();
        let object = match *request.method() {
            Method::GET => self.api.get(target)?,
            Method::PUT => {
                let options = write_options(query, &headers, user)?;
                let new = parse_body(&headers, &body(request).await?)?;
                scale::write(&self.api, target, |_| Ok(new.clone()), &options)?.object
            }
            Method::PATCH => {
                let options = write_options(query, &headers, user)?;
                let content_type = header(&headers, CONTENT_TYPE.as_str());
                let patch = Patch::parse(content_type, &body(request).await?)?;
                let change = |old: &Value| scale::patched(old, &patch, target);
                scale::write(&self.api, target, change, &options)?.object
            }
            _ => return Err(ApiError::method_not_allowed()),
        };
        Ok(json_reply(StatusCode::OK, &scale::view(&object)))
    }

    fn check_subresource(&self, target: &Target) -> Result<(), ApiError> {
        let known = match target.subresource.as_str() {
            "" => true,
            "status" => target.resource.has_status,
            other => {
                let name = other.split('/').next().unwrap_or_default();
                target.resource.subresources().iter().any(|(one, _, _)| *one == name)
                    || (name == "proxy" && target.resource.is("", "pods"))
            }
        };
        if known { Ok(()) } else { Err(ApiError::no_such_path()) }
    }

    fn is_stream(&self, target: &Target) -> bool {
        let name = target.subresource.split('/').next().unwrap_or_default();
        ["log", "exec", "attach", "portforward", "proxy"].contains(&name)
    }

    async fn stream(&self, target: &Target, request: Request<Incoming>) -> Result<Reply, ApiError> {
        let pod = self.api.get(target)?.value();
        match &self.streams {
            Some(streams) => streams.serve(pod, target.subresource.clone(), request).await,
            None => {
                let what = &target.subresource;
                Err(ApiError::not_implemented(format!(
                    "pods/{what} is not served by this API server: it runs without nodes"
                )))
            }
        }
    }

    fn post(
        &self,
        target: &Target,
        query: &Query,
        headers: &HeaderMap,
        user: &Arc<User>,
        format: Format,
        body: Bytes,
    ) -> Result<Reply, ApiError> {
        let options = write_options(query, headers, user)?;
        let value = parse_body(headers, &body)?;
        if target.subresource == "binding" || *target.resource.id == *"bindings" {
            let mut pod = self.api.target("pods", &target.namespace, &target.name)?;
            if pod.name.is_empty() {
                pod.name = value["metadata"]["name"].as_str().unwrap_or_default().to_owned();
            }
            self.api.bind(&pod, &value, &options)?;
            return Ok(json_reply(
                StatusCode::CREATED,
                &json!({ "kind": "Status", "apiVersion": "v1",
                "metadata": {}, "status": "Success", "code": 201 }),
            ));
        }
        if target.subresource == "eviction" {
            let options = delete_options(query, value["deleteOptions"].to_string().as_bytes())?;
            self.api.delete(&Target { subresource: String::new(), ..target.clone() }, &options)?;
            return Ok(json_reply(
                StatusCode::CREATED,
                &json!({ "kind": "Status", "apiVersion": "v1",
                "metadata": {}, "status": "Success", "code": 201 }),
            ));
        }
        if !target.name.is_empty() {
            return Err(ApiError::method_not_allowed());
        }
        let outcome = self.api.create(target, value, &options)?;
        self.written(target, &outcome, format, query)
    }

    fn list(&self, target: &Target, query: &Query, format: Format) -> Result<Reply, ApiError> {
        let options = list_options(target, query)?;
        check_list_version(query, self.api.store.resource_version())?;
        let listed = self.api.list(target, &options)?;
        let body: Bytes = match format.shape {
            Shape::Plain => list_json(target, &listed),
            Shape::Table => {
                let include = include(query)?;
                let objects = values(target, &listed);
                let table =
                    table::table(&target.resource, &objects, list_metadata(&listed), include, true);
                table.to_string().into()
            }
            Shape::Partial => {
                let items: Vec<Value> =
                    values(target, &listed).iter().map(table::partial).collect();
                json!({ "kind": "PartialObjectMetadataList", "apiVersion": "meta.k8s.io/v1",
                    "metadata": list_metadata(&listed), "items": items })
                .to_string()
                .into()
            }
        };
        Ok(with_warnings(reply(StatusCode::OK, "application/json", body), target, &[]))
    }

    fn one(
        &self,
        target: &Target,
        code: StatusCode,
        object: &super::object::Object,
        format: Format,
        query: &Query,
        warnings: &[String],
    ) -> Result<Reply, ApiError> {
        let json = convert::render(&target.resource, object);
        let parse = || serde_json::from_slice::<Value>(&json).unwrap_or_default();
        let body = match format.shape {
            Shape::Plain => json,
            Shape::Table => {
                let value = parse();
                let metadata = json!({ "resourceVersion": value["metadata"]["resourceVersion"] });
                let table =
                    table::table(&target.resource, &[value], metadata, include(query)?, true);
                table.to_string().into()
            }
            Shape::Partial => table::partial(&parse()).to_string().into(),
        };
        Ok(with_warnings(reply(code, "application/json", body), target, warnings))
    }

    fn written(
        &self,
        target: &Target,
        outcome: &Outcome,
        format: Format,
        query: &Query,
    ) -> Result<Reply, ApiError> {
        let code = if outcome.created { StatusCode::CREATED } else { StatusCode::OK };
        self.one(target, code, &outcome.object, format, query, &outcome.warnings)
    }

    fn deleted(&self, target: &Target, outcome: &Outcome) -> Result<Reply, ApiError> {
        if !outcome.deleted {
            let json = convert::render(&target.resource, &outcome.object);
            return Ok(reply(StatusCode::OK, "application/json", json));
        }
        let mut details = json!({ "name": target.name, "kind": target.resource.plural, "uid": outcome.object.uid });
        if !target.resource.group.is_empty() {
            details["group"] = json!(target.resource.group);
        }
        Ok(json_reply(
            StatusCode::OK,
            &json!({ "kind": "Status", "apiVersion": "v1", "metadata": {},
            "status": "Success", "details": details }),
        ))
    }

    fn watch(
        self: &Arc<Self>,
        target: Target,
        query: &Query,
        format: Format,
    ) -> Result<Reply, ApiError> {
        let options = watch_options(&target, query)?;
        let include = include(query)?;
        let watch = Watch::open(&self.api, target.clone(), options);
        let (api, mut first) = (self.api.clone(), true);
        let stream =
            futures::stream::unfold((watch, api, target), |(mut watch, api, target)| async {
                let notices = watch.next(&api).await?;
                Some(((notices, target.clone()), (watch, api, target)))
            });
        let server = self.clone();
        let frames = stream.map(move |(notices, target)| {
            let mut bytes = Vec::new();
            for notice in notices {
                server.write_notice(&target, &notice, format, include, &mut first, &mut bytes);
            }
            Ok::<_, Infallible>(Frame::data(Bytes::from(bytes)))
        });
        let mut response = Response::new(StreamBody::new(frames).boxed_unsync());
        let content_type = HeaderValue::from_static("application/json");
        response.headers_mut().insert(CONTENT_TYPE, content_type);
        Ok(response)
    }

    fn write_notice(
        &self,
        target: &Target,
        notice: &Notice,
        format: Format,
        include: Include,
        first: &mut bool,
        into: &mut Vec<u8>,
    ) {
        let resource = &target.resource;
        match notice {
            Notice::Object(change, object) => {
                // The first event of a table describes the columns.
                let headers = format.shape == Shape::Table && std::mem::take(first);
                let form = || event_form(resource, object, format.shape, include, headers);
                let is_stored_so = format.shape == Shape::Plain
                    && resource.api_version() == *resource.storage_api_version;
                let json = match is_stored_so || headers {
                    true => form(),
                    false => self.renderings.of(resource, object, format.shape, include, form),
                };
                watch::line(*change, &json, into);
            }
            Notice::Bookmark(version, initial_end) => {
                let (api_version, kind) = match format.shape {
                    Shape::Plain => (resource.api_version(), &*resource.kind),
                    Shape::Table => ("meta.k8s.io/v1".to_owned(), "Table"),
                    Shape::Partial => ("meta.k8s.io/v1".to_owned(), "PartialObjectMetadata"),
                };
                let mut object = watch::bookmark(&api_version, kind, *version, *initial_end);
                if format.shape == Shape::Table {
                    let row = json!({ "cells": [], "object": watch::bookmark(&resource.api_version(), &resource.kind, *version, *initial_end) });
                    object["columnDefinitions"] = json!([]);
                    object["rows"] = json!([row]);
                }
                watch::special_line("BOOKMARK", &object, into);
            }
            Notice::Error(error) => watch::special_line("ERROR", &error.to_status(), into),
        }
    }
}

/// An object as a watch tells it, in the shape that was asked for.
fn event_form(
    resource: &resource::Resource,
    object: &super::object::Object,
    shape: Shape,
    include: Include,
    headers: bool,
) -> Bytes {
    let json = convert::render(resource, object);
    let value = || serde_json::from_slice::<Value>(&json).unwrap_or_default();
    match shape {
        Shape::Plain => json,
        Shape::Table => {
            let value = value();
            let metadata = json!({ "resourceVersion": value["metadata"]["resourceVersion"] });
            table::table(resource, &[value], metadata, include, headers).to_string().into()
        }
        Shape::Partial => table::partial(&value()).to_string().into(),
    }
}

fn version() -> Value {
    json!({ "major": "1", "minor": "32", "gitVersion": GIT_VERSION, "gitCommit": "", "gitTreeState": "clean",
        "buildDate": "1970-01-01T00:00:00Z", "goVersion": "none", "compiler": "rustc",
        "platform": "linux/amd64" })
}

fn wants_aggregated(headers: &HeaderMap) -> bool {
    header(headers, ACCEPT.as_str()).contains("as=APIGroupDiscoveryList")
}

fn aggregated(api: &Api, core: bool, headers: &HeaderMap) -> Reply {
    let mut list = resource::aggregated(&api.catalog(), core);
    let accept = header(headers, ACCEPT.as_str());
    // Clients older than 1.30 know the beta version only; the two are alike.
    let version =
        if accept.contains("v=v2;") || accept.contains("v=v2,") || accept.ends_with("v=v2") {
            "v2"
        } else {
            "v2beta1"
        };
    list["apiVersion"] = json!(format!("apidiscovery.k8s.io/{version}"));
    let content_type = match version {
        "v2" => "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList",
        _ => "application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList",
    };
    reply(StatusCode::OK, content_type, list.to_string())
}

fn values(target: &Target, listed: &Listed) -> Vec<Value> {
    let parse = |item: &Arc<super::object::Object>| {
        let mut value = item.value();
        convert::from_storage(&target.resource, &mut value);
        value
    };
    listed.items.iter().map(parse).collect()
}

fn list_metadata(listed: &Listed) -> Value {
    let mut metadata = json!({ "resourceVersion": listed.resource_version.to_string() });
    if let Some(token) = &listed.continue_token {
        metadata["continue"] = json!(token);
    }
    if let Some(remaining) = listed.remaining {
        metadata["remainingItemCount"] = json!(remaining);
    }
    metadata
}

/// The list, put together from what is serialised already.
fn list_json(target: &Target, listed: &Listed) -> Bytes {
    let resource = &target.resource;
    let items: Vec<Bytes> =
        listed.items.iter().map(|item| convert::render(resource, item)).collect();
    let len: usize = items.iter().map(|item| item.len() + 1).sum();
    let mut body = Vec::with_capacity(len + 256);
    let head = format!(
        "{{\"kind\":{},\"apiVersion\":{},\"metadata\":{},\"items\":[",
        json!(resource.list_kind),
        json!(resource.api_version()),
        list_metadata(listed)
    );
    body.extend_from_slice(head.as_bytes());
    for (index, item) in items.iter().enumerate() {
        if index > 0 {
            body.push(b',');
        }
        body.extend_from_slice(item);
    }
    body.extend_from_slice(b"]}\n");
    body.into()
}

fn with_warnings(mut response: Reply, target: &Target, warnings: &[String]) -> Reply {
    let deprecation = match &target.resource.definition {
        Definition::Custom { deprecation, .. } => deprecation.as_deref(),
        Definition::BuiltIn => None,
    };
    for warning in warnings.iter().map(String::as_str).chain(deprecation) {
        let quoted = warning.replace('\\', "\\\\").replace('"', "\\\"");
        if let Ok(value) = HeaderValue::from_str(&format!("299 - \"{quoted}\"")) {
            response.headers_mut().append("warning", value);
        }
    }
    response
}
