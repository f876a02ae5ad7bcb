//! Reviews: questions to the API server about users and tokens. Nothing is stored.

use serde_json::{Value, json};

use super::api::{Api, Target};
use super::attributes::Attributes;
use super::rbac::{Decision, Rule};
use super::schema::object_at;
use super::status::{ApiError, FieldError};
use super::token;
use super::token::ISSUER;
use super::user::User;

const GROUPS: [&str; 2] = ["authentication.k8s.io", "authorization.k8s.io"];

/// Whether a request to `target` is such a question.
pub(super) fn is_review(target: &Target) -> bool {
    GROUPS.contains(&&*target.resource.group)
}

/// Answers a question that `user` asks.
pub(super) fn answer(
    api: &Api,
    target: &Target,
    user: &User,
    mut value: Value,
) -> Result<Value, ApiError> {
    let resource = &target.resource;
    super::strategy::decode(resource, &mut value, super::api::FieldValidation::Ignore)?;
    object_at(&mut value, "metadata").insert("creationTimestamp".into(), Value::Null);
    let spec = value["spec"].clone();
    value["status"] = match &*resource.plural {
        "selfsubjectreviews" => json!({ "userInfo": user.to_json() }),
        "tokenreviews" => review_token(api, &spec),
        "selfsubjectaccessreviews" => {
            check_attributes(target, &spec)?;
            review_access(api, user, &spec)
        }
        "subjectaccessreviews" => {
            check_attributes(target, &spec)?;
            check_subject(target, &spec)?;
            review_access(api, &User::from_json(&spec), &spec)
        }
        "localsubjectaccessreviews" => {
            check_attributes(target, &spec)?;
            check_subject(target, &spec)?;
            let asked = spec["resourceAttributes"]["namespace"].as_str().unwrap_or_default();
            if asked != target.namespace {
                let detail = format!("must match metadata.namespace: {}", target.namespace);
                let field = "spec.resourceAttributes.namespace";
                return Err(invalid(target, FieldError::invalid(field, asked, detail)));
            }
            review_access(api, &User::from_json(&spec), &spec)
        }
        "selfsubjectrulesreviews" => {
            let namespace = spec["namespace"].as_str().unwrap_or_default();
            if namespace.is_empty() {
                return Err(ApiError::bad_request("no namespace on request"));
            }
            review_rules(api, user, namespace)
        }
        _ => return Err(ApiError::no_such_path()),
    };
    Ok(value)
}

fn invalid(target: &Target, error: FieldError) -> ApiError {
    ApiError::invalid(&target.resource.kind, &target.resource.group, "", &[error])
}

/// A question is about a resource or about a path, not both.
fn check_attributes(target: &Target, spec: &Value) -> Result<(), ApiError> {
    let given = |name: &str| spec[name].is_object();
    let detail = match (given("resourceAttributes"), given("nonResourceAttributes")) {
        (true, true) => "cannot be specified in combination with resourceAttributes",
        (false, false) => {
            "exactly one of nonResourceAttributes or resourceAttributes must be specified"
        }
        _ => return Ok(()),
    };
    let field = if given("resourceAttributes") {
        "spec.nonResourceAttributes"
    } else {
        "spec.resourceAttributes"
    };
    Err(invalid(target, FieldError::invalid(field, Value::Null, detail)))
}

fn check_subject(target: &Target, spec: &Value) -> Result<(), ApiError> {
    let user = User::from_json(spec);
    if user.name.is_empty() && user.groups.is_empty() {
        let detail = "at least one of user or group must be specified";
        return Err(invalid(target, FieldError::invalid("spec.user", "", detail)));
    }
    Ok(())
}

fn review_access(api: &Api, user: &User, spec: &Value) -> Value {
    let mut asked = Attributes::of_review(spec);
    // "All namespaces" is how clients write it.
    if asked.namespace == "*" {
        asked.namespace.clear();
    }
    let (allowed, reason) = match api.authorizer.decide(&api.store, user, &asked) {
        Decision::Allowed(reason) => (true, reason),
        Decision::Refused(reason) => (false, reason),
    };
    let mut status = json!({ "allowed": allowed });
    if !reason.is_empty() {
        status["reason"] = json!(reason);
    }
    status
}

fn review_rules(api: &Api, user: &User, namespace: &str) -> Value {
    let (rules, trouble) = api.authorizer.rules(&api.store, user, namespace);
    let (mut of_resources, mut of_urls) = (Vec::new(), Vec::new());
    for Rule { verbs, groups, resources, names, urls } in &rules {
        if !resources.is_empty() {
            let mut rule = json!({ "verbs": verbs, "apiGroups": groups, "resources": resources });
            if !names.is_empty() {
                rule["resourceNames"] = json!(names);
            }
            of_resources.push(rule);
        }
        if !urls.is_empty() {
            of_urls.push(json!({ "verbs": verbs, "nonResourceURLs": urls }));
        }
    }
    let mut status = json!({ "resourceRules": of_resources, "nonResourceRules": of_urls,
        "incomplete": !trouble.is_empty() });
    if !trouble.is_empty() {
        status["evaluationError"] = json!(trouble);
    }
    status
}

fn review_token(api: &Api, spec: &Value) -> Value {
    let audiences = spec["audiences"].as_array().into_iter().flatten();
    let mut audiences: Vec<String> =
        audiences.filter_map(|one| one.as_str().map(str::to_owned)).collect();
    if audiences.is_empty() {
        audiences.push(ISSUER.to_owned());
    }
    match api.user_of_token(spec["token"].as_str().unwrap_or_default(), &audiences) {
        Ok((user, audiences)) => {
            json!({ "authenticated": true, "user": user.to_json(), "audiences": audiences })
        }
        Err(why) => {
            json!({ "authenticated": false, "user": {}, "error": format!("[invalid bearer token, {why}]") })
        }
    }
}

/// Answers a request for a token of the service account that `target` names.
pub(super) fn request_token(
    api: &Api,
    target: &Target,
    mut body: Value,
) -> Result<Value, ApiError> {
    if !body.is_object() {
        return Err(ApiError::bad_request("the body of the request is not a JSON object"));
    }
    let mut request = token::request_of(&target.namespace, &target.name, &body);
    if request.audiences.is_empty() {
        request.audiences.push(ISSUER.to_owned());
    }
    if request.expiration_seconds == 0 {
        request.expiration_seconds = 3_600;
    }
    let issued = api.create_token(&request)?;
    body["apiVersion"] = json!("authentication.k8s.io/v1");
    body["kind"] = json!("TokenRequest");
    body["metadata"] = json!({ "name": target.name, "namespace": target.namespace,
        "creationTimestamp": super::object::now() });
    body["spec"]["audiences"] = json!(request.audiences);
    body["spec"]["expirationSeconds"] = json!(request.expiration_seconds);
    body["status"] = json!({ "token": issued.token, "expirationTimestamp": issued.expires.strftime("%Y-%m-%dT%H:%M:%SZ").to_string() });
    Ok(body)
}

/// Whether `user` may act as `other` (`kubectl --as`).
pub(super) fn check_impersonation(api: &Api, user: &User, other: &User) -> Result<(), ApiError> {
    let ask = |group: &str, resource: &str, subresource: &str, namespace: &str, name: &str| {
        let asked = Attributes {
            verb: "impersonate".to_owned(),
            namespace: namespace.to_owned(),
            group: group.to_owned(),
            version: "v1".to_owned(),
            resource: resource.to_owned(),
            subresource: subresource.to_owned(),
            name: name.to_owned(),
            path: String::new(),
        };
        api.authorize(user, &asked)
    };
    if other.name.is_empty() {
        return Err(ApiError::internal(
            "requested groups, uid or extra without impersonating a user: set Impersonate-User",
        ));
    }
    match other.service_account() {
        Some((namespace, name)) => ask("", "serviceaccounts", "", namespace, name)?,
        None => ask("", "users", "", "", &other.name)?,
    }
    for group in &other.groups {
        ask("", "groups", "", "", group)?;
    }
    if !other.uid.is_empty() {
        ask(GROUPS[0], "uids", "", "", &other.uid)?;
    }
    for (key, values) in &other.extra {
        for value in values {
            ask(GROUPS[0], "userextras", key, "", value)?;
        }
    }
    Ok(())
}
