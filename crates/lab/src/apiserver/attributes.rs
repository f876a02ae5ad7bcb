//! What a request is about, in the words in which roles speak of requests.
//!
//! Read from method and URL alone, as Kubernetes does it: whether the resource exists is
//! looked up only for those who may know.

use http::Method;
use serde_json::Value;

use super::request::{Query, decode};

/// The question that authorization answers, the asker apart.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Attributes {
    pub verb: String,
    pub namespace: String,
    pub group: String,
    pub version: String,
    /// Plural; empty for requests that are about no resource.
    pub resource: String,
    pub subresource: String,
    pub name: String,
    /// The path, for requests that are about no resource.
    pub path: String,
}

/// Subresources of namespaces; what else follows a namespace is a resource in it.
const OF_NAMESPACES: &[&str] = &["status", "finalize"];

impl Attributes {
    pub(super) fn of_request(method: &Method, path: &str, query: &Query) -> Self {
        let other = || Self {
            verb: method.as_str().to_lowercase(),
            path: path.to_owned(),
            ..Self::default()
        };
        let segments: Vec<&str> = path.split('/').filter(|one| !one.is_empty()).collect();
        let (group, version, mut rest) = match segments.as_slice() {
            ["api", version, rest @ ..] if !rest.is_empty() => ("", *version, rest),
            ["apis", group, version, rest @ ..] if !rest.is_empty() => (*group, *version, rest),
            _ => return other(),
        };
        let mut verb = verb(method, query);
        if let ["watch", after @ ..] = rest
            && !after.is_empty()
        {
            (verb, rest) = ("watch", after);
        }
        let mut namespace = "";
        if let ["namespaces", name, after @ ..] = rest {
            namespace = name;
            if after.first().is_some_and(|next| !OF_NAMESPACES.contains(next)) {
                rest = after;
            }
        }
        let part = |index: usize| rest.get(index).map(|text| decode(text)).unwrap_or_default();
        let mut attributes = Self {
            verb: String::new(),
            namespace: decode(namespace),
            group: group.to_owned(),
            version: version.to_owned(),
            resource: part(0),
            name: part(1),
            subresource: part(2),
            path: String::new(),
        };
        if attributes.name.is_empty() {
            if let Some(name) = single_name(query) {
                attributes.name = name;
            }
            verb = match verb {
                "get" => "list",
                "delete" => "deletecollection",
                verb => verb,
            };
        }
        verb.clone_into(&mut attributes.verb);
        attributes
    }

    /// The specification of an access review.
    pub(super) fn of_review(spec: &Value) -> Self {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let (of, other) = (&spec["resourceAttributes"], &spec["nonResourceAttributes"]);
        if of.is_object() {
            return Self {
                verb: text(&of["verb"]),
                namespace: text(&of["namespace"]),
                group: text(&of["group"]),
                version: text(&of["version"]),
                resource: text(&of["resource"]),
                subresource: text(&of["subresource"]),
                name: text(&of["name"]),
                path: String::new(),
            };
        }
        Self { verb: text(&other["verb"]), path: text(&other["path"]), ..Self::default() }
    }

    pub(super) fn is_about_resource(&self) -> bool {
        self.path.is_empty()
    }

    /// The resource with its subresource, as rules name it.
    pub(super) fn combined(&self) -> String {
        match self.subresource.as_str() {
            "" => self.resource.clone(),
            subresource => format!("{}/{subresource}", self.resource),
        }
    }

    /// What somebody called `user` is told who may not.
    pub(super) fn refusal(&self, user: &str) -> String {
        let verb = &self.verb;
        if !self.is_about_resource() {
            return format!("User \"{user}\" cannot {verb} path \"{}\"", self.path);
        }
        let place = match self.namespace.as_str() {
            "" => "at the cluster scope".to_owned(),
            namespace => format!("in the namespace \"{namespace}\""),
        };
        let (resource, group) = (self.combined(), &self.group);
        format!(
            "User \"{user}\" cannot {verb} resource \"{resource}\" in API group \"{group}\" {place}"
        )
    }
}

fn verb(method: &Method, query: &Query) -> &'static str {
    match *method {
        Method::POST => "create",
        Method::PUT => "update",
        Method::PATCH => "patch",
        Method::DELETE => "delete",
        _ if query.flag("watch") => "watch",
        _ => "get",
    }
}

/// The one object that a list or watch is restricted to.
fn single_name(query: &Query) -> Option<String> {
    query.text("fieldSelector").split(',').find_map(|term| {
        let (field, name) = term.split_once('=')?;
        let name = name.strip_prefix('=').unwrap_or(name);
        (field == "metadata.name" && !name.is_empty()).then(|| name.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `verb group/resource/subresource namespace name`, or `verb path`.
    fn check(request: &str, expected: &str) {
        let (method, url) = request.split_once(' ').unwrap();
        let (path, query) = url.split_once('?').unwrap_or((url, ""));
        let method = method.parse().unwrap();
        let a = Attributes::of_request(&method, path, &Query::parse(query));
        let told = match a.is_about_resource() {
            true => {
                format!("{} {}:{} {} {}", a.verb, a.group, a.combined(), a.namespace, a.name)
            }
            false => format!("{} {}", a.verb, a.path),
        };
        assert_eq!(told.trim(), expected, "{request}");
    }

    #[test]
    fn requests() {
        check("GET /version", "get /version");
        check("GET /api/v1", "get /api/v1");
        check("GET /apis/apps/v1", "get /apis/apps/v1");
        check("GET /api/v1/pods", "list :pods");
        check("GET /api/v1/namespaces/n/pods?watch=true", "watch :pods n");
        check("GET /api/v1/watch/namespaces/n/pods", "watch :pods n");
        check("GET /api/v1/namespaces/n/pods/p", "get :pods n p");
        check("POST /api/v1/namespaces/n/pods/p/exec?command=x", "create :pods/exec n p");
        check("GET /api/v1/namespaces", "list :namespaces");
        check("GET /api/v1/namespaces/n", "get :namespaces n n");
        check("PUT /api/v1/namespaces/n/finalize", "update :namespaces/finalize n n");
        check("PATCH /apis/apps/v1/namespaces/n/deployments/d", "patch apps:deployments n d");
        check("DELETE /apis/cilium.io/v2/ciliumnodes", "deletecollection cilium.io:ciliumnodes");
        check("DELETE /api/v1/nodes/a", "delete :nodes  a");
        check("GET /api/v1/nodes?fieldSelector=metadata.name%3Da", "list :nodes  a");
    }

    #[test]
    fn words_of_refusals() {
        let attributes = |url: &str| Attributes::of_request(&Method::GET, url, &Query::default());
        assert_eq!(
            attributes("/api/v1/namespaces/n/pods/p/log").refusal("jane"),
            r#"User "jane" cannot get resource "pods/log" in API group "" in the namespace "n""#
        );
        assert_eq!(
            attributes("/apis/apps/v1/deployments").refusal("jane"),
            r#"User "jane" cannot list resource "deployments" in API group "apps" at the cluster scope"#
        );
        assert_eq!(attributes("/metrics").refusal("a"), r#"User "a" cannot get path "/metrics""#);
    }
}
