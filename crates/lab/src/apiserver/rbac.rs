//! Role-based access control: who may do what, by the roles and bindings in the store.
//!
//! ```text
//!   Role, ClusterRole, RoleBinding, ClusterRoleBinding ──compile──► Policy ──► allowed, or not
//! ```
//!
//! What is compiled is kept until one of the four resources changes. `roles` has the rules
//! for writing these objects.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::Value;

use super::attributes::Attributes;
use super::store::{ResourceId, Store};
use super::user::{MASTERS, User, service_account_name};

const ROLES: &str = "roles.rbac.authorization.k8s.io";
pub(super) const CLUSTER_ROLES: &str = "clusterroles.rbac.authorization.k8s.io";
const ROLE_BINDINGS: &str = "rolebindings.rbac.authorization.k8s.io";
const CLUSTER_ROLE_BINDINGS: &str = "clusterrolebindings.rbac.authorization.k8s.io";

/// The answer to a question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Decision {
    /// With the binding that allows it.
    Allowed(String),
    /// With what was wrong with bindings that might have allowed it; often nothing.
    Refused(String),
}

/// One rule of a role.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Rule {
    pub verbs: Vec<String>,
    pub groups: Vec<String>,
    pub resources: Vec<String>,
    /// Empty: objects of any name.
    pub names: Vec<String>,
    pub urls: Vec<String>,
}

#[derive(Debug, PartialEq, Eq)]
enum Subject {
    User(String),
    Group(String),
}

/// A binding with the rules of its role.
#[derive(Debug)]
struct Binding {
    subjects: Vec<Subject>,
    /// `Err`: the role that is not there.
    rules: Result<Arc<[Rule]>, String>,
    /// For the reason of a decision.
    words: String,
}

/// All bindings at one moment.
#[derive(Debug, Default)]
struct Policy {
    cluster: Vec<Binding>,
    namespaced: HashMap<String, Vec<Binding>>,
}

/// Answers questions, and keeps what it has compiled to do so.
#[derive(Default)]
pub(super) struct Authorizer {
    compiled: Mutex<Option<([u64; 4], Arc<Policy>)>>,
}

impl Authorizer {
    fn policy(&self, store: &Store) -> Arc<Policy> {
        let ids = [ROLES, CLUSTER_ROLES, ROLE_BINDINGS, CLUSTER_ROLE_BINDINGS];
        let mut compiled = self.compiled.lock().unwrap_or_else(PoisonError::into_inner);
        let versions = ids.map(|id| store.changed(id));
        match &*compiled {
            Some((of, policy)) if *of == versions => policy.clone(),
            _ => {
                let policy = Arc::new(Policy::compile(store));
                *compiled = Some((versions, policy.clone()));
                policy
            }
        }
    }

    pub(super) fn decide(&self, store: &Store, user: &User, asked: &Attributes) -> Decision {
        if user.is_in(MASTERS) {
            return Decision::Allowed(String::new());
        }
        self.policy(store).decide(user, asked)
    }

    /// All that the user may do in a namespace; what is wrong with the rest as text.
    pub(super) fn rules(&self, store: &Store, user: &User, namespace: &str) -> (Vec<Rule>, String) {
        if user.is_in(MASTERS) {
            let all = || vec!["*".to_owned()];
            let resources =
                Rule { verbs: all(), groups: all(), resources: all(), ..Rule::default() };
            return (
                vec![resources, Rule { verbs: all(), urls: all(), ..Rule::default() }],
                String::new(),
            );
        }
        let policy = self.policy(store);
        let (mut rules, mut missing) = (Vec::new(), Vec::new());
        for binding in policy.of(user, namespace) {
            match &binding.rules {
                Ok(list) => rules.extend_from_slice(list),
                Err(why) => missing.push(why.as_str()),
            }
        }
        (rules, aggregate(&missing))
    }

    /// The rules of a role that a binding in `namespace` names.
    pub(super) fn rules_of_role(
        store: &Store,
        kind: &str,
        namespace: &str,
        name: &str,
    ) -> Option<Vec<Rule>> {
        let (id, namespace) = if kind == "Role" { (ROLES, namespace) } else { (CLUSTER_ROLES, "") };
        let role = store.get(id, &super::object::Key::new(namespace, name))?;
        Some(Rule::of_role(&role.value()))
    }
}

impl Policy {
    fn compile(store: &Store) -> Self {
        let all = |id: &str| -> Vec<Value> {
            let (_, objects) = store.list(&ResourceId::from(id));
            objects.values().map(|object| object.value()).collect()
        };
        let mut roles: BTreeMap<(String, String), Arc<[Rule]>> = BTreeMap::new();
        for role in [ROLES, CLUSTER_ROLES].iter().flat_map(|id| all(id)) {
            let meta = &role["metadata"];
            let text = |name: &str| meta[name].as_str().unwrap_or_default().to_owned();
            roles.insert((text("namespace"), text("name")), Rule::of_role(&role).into());
        }
        let mut policy = Self::default();
        for binding in all(CLUSTER_ROLE_BINDINGS) {
            policy.cluster.push(Binding::compile(&binding, &roles));
        }
        for binding in all(ROLE_BINDINGS) {
            let namespace = binding["metadata"]["namespace"].as_str().unwrap_or_default();
            let list = policy.namespaced.entry(namespace.to_owned()).or_default();
            list.push(Binding::compile(&binding, &roles));
        }
        policy
    }

    /// The bindings that concern a user in a namespace, and in the whole cluster.
    fn of<'a>(&'a self, user: &'a User, namespace: &str) -> impl Iterator<Item = &'a Binding> {
        let namespaced = self.namespaced.get(namespace).into_iter().flatten();
        self.cluster.iter().chain(namespaced).filter(|binding| binding.names(user))
    }

    fn decide(&self, user: &User, asked: &Attributes) -> Decision {
        let mut missing = Vec::new();
        for binding in self.of(user, &asked.namespace) {
            match &binding.rules {
                Ok(rules) if rules.iter().any(|rule| rule.allows(asked)) => {
                    let who = binding.subjects.iter().find(|subject| subject.is(user));
                    let who = who.map(Subject::words).unwrap_or_default();
                    return Decision::Allowed(format!(
                        "RBAC: allowed by {} to {who}",
                        binding.words
                    ));
                }
                Ok(_) => {}
                Err(why) => missing.push(why.as_str()),
            }
        }
        Decision::Refused(aggregate(&missing))
    }
}

/// Several errors in one text, as Go's libraries write them.
fn aggregate(errors: &[&str]) -> String {
    match errors {
        [] => String::new(),
        [one] => format!("RBAC: {one}"),
        many => format!("RBAC: [{}]", many.join(", ")),
    }
}

impl Binding {
    fn compile(binding: &Value, roles: &BTreeMap<(String, String), Arc<[Rule]>>) -> Self {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let namespace = text(&binding["metadata"]["namespace"]);
        let subjects = binding["subjects"].as_array().into_iter().flatten();
        let reference = &binding["roleRef"];
        let (kind, role) = (text(&reference["kind"]), text(&reference["name"]));
        let of = if kind == "Role" { namespace.clone() } else { String::new() };
        let rules = roles.get(&(of, role.clone())).cloned().ok_or_else(|| {
            format!("{}.rbac.authorization.k8s.io \"{role}\" not found", kind.to_lowercase())
        });
        let name = text(&binding["metadata"]["name"]);
        let words = match namespace.as_str() {
            "" => format!("ClusterRoleBinding \"{name}\" of {kind} \"{role}\""),
            namespace => format!("RoleBinding \"{name}/{namespace}\" of {kind} \"{role}\""),
        };
        let subjects = subjects.filter_map(|subject| Subject::parse(subject, &namespace)).collect();
        Self { subjects, rules, words }
    }

    fn names(&self, user: &User) -> bool {
        self.subjects.iter().any(|subject| subject.is(user))
    }
}

impl Subject {
    fn parse(subject: &Value, of_binding: &str) -> Option<Self> {
        let name = subject["name"].as_str()?;
        match subject["kind"].as_str()? {
            "User" => Some(Self::User(name.to_owned())),
            "Group" => Some(Self::Group(name.to_owned())),
            "ServiceAccount" => {
                let own = subject["namespace"].as_str().filter(|text| !text.is_empty());
                let namespace = own.unwrap_or(of_binding);
                (!namespace.is_empty()).then(|| Self::User(service_account_name(namespace, name)))
            }
            _ => None,
        }
    }

    fn is(&self, user: &User) -> bool {
        match self {
            Self::User(name) => *name == user.name,
            Self::Group(name) => user.is_in(name),
        }
    }

    fn words(&self) -> String {
        match self {
            Self::User(name) => match name.strip_prefix("system:serviceaccount:") {
                Some(account) => {
                    let (namespace, name) = account.split_once(':').unwrap_or(("", account));
                    format!("ServiceAccount \"{name}/{namespace}\"")
                }
                None => format!("User \"{name}\""),
            },
            Self::Group(name) => format!("Group \"{name}\""),
        }
    }
}

impl Rule {
    pub(super) fn of_role(role: &Value) -> Vec<Self> {
        role["rules"].as_array().into_iter().flatten().map(Self::parse).collect()
    }

    pub(super) fn parse(rule: &Value) -> Self {
        let list = |name: &str| -> Vec<String> {
            let items = rule[name].as_array().into_iter().flatten();
            items.filter_map(|one| one.as_str().map(str::to_owned)).collect()
        };
        Self {
            verbs: list("verbs"),
            groups: list("apiGroups"),
            resources: list("resources"),
            names: list("resourceNames"),
            urls: list("nonResourceURLs"),
        }
    }

    fn allows(&self, asked: &Attributes) -> bool {
        if !has(&self.verbs, &asked.verb) {
            return false;
        }
        if !asked.is_about_resource() {
            return self.urls.iter().any(|url| url_covers(url, &asked.path));
        }
        has(&self.groups, &asked.group)
            && self.has_resource(&asked.resource, &asked.subresource)
            && (self.names.is_empty() || self.names.contains(&asked.name))
    }

    fn has_resource(&self, resource: &str, subresource: &str) -> bool {
        self.resources.iter().any(|one| match one.split_once('/') {
            None => one == "*" || (subresource.is_empty() && one == resource),
            Some((of, sub)) => {
                !subresource.is_empty() && sub == subresource && (of == "*" || of == resource)
            }
        })
    }

    /// The rule in the words of refusals: `{APIGroups:[""], Resources:["pods"], Verbs:["get"]}`.
    pub(super) fn words(&self) -> String {
        let lists = [
            ("NonResourceURLs", &self.urls),
            ("APIGroups", &self.groups),
            ("Resources", &self.resources),
            ("ResourceNames", &self.names),
            ("Verbs", &self.verbs),
        ];
        let parts = lists.iter().filter(|(_, list)| !list.is_empty()).map(|(name, list)| {
            let texts: Vec<String> = list.iter().map(|text| format!("{text:?}")).collect();
            format!("{name}:[{}]", texts.join(" "))
        });
        format!("{{{}}}", parts.collect::<Vec<_>>().join(", "))
    }
}

fn has(list: &[String], wanted: &str) -> bool {
    list.iter().any(|one| one == "*" || one == wanted)
}

fn url_covers(url: &str, path: &str) -> bool {
    match url.strip_suffix('*') {
        Some(prefix) => path.starts_with(prefix),
        None => url == path,
    }
}

/// Which of `wanted` somebody who has `held` does not have, as far apart as it goes.
pub(super) fn not_held(held: &[Rule], wanted: &[Rule]) -> Vec<Rule> {
    let mut missing: Vec<Rule> = Vec::new();
    for single in wanted.iter().flat_map(singles) {
        if held.iter().any(|rule| rule.covers(&single)) {
            continue;
        }
        // Verbs of the same thing are told together.
        let same = missing.iter_mut().find(|one| {
            Rule { verbs: Vec::new(), ..(*one).clone() }
                == Rule { verbs: Vec::new(), ..single.clone() }
        });
        match same {
            Some(rule) => rule.verbs.extend(single.verbs),
            None => missing.push(single),
        }
    }
    missing
}

/// A rule taken apart: one verb on one resource of one group, or on one URL.
fn singles(rule: &Rule) -> Vec<Rule> {
    let mut all = Vec::new();
    let names: Vec<Vec<String>> = match rule.names.as_slice() {
        [] => vec![Vec::new()],
        names => names.iter().map(|name| vec![name.clone()]).collect(),
    };
    for verb in &rule.verbs {
        let verbs = vec![verb.clone()];
        for group in &rule.groups {
            for resource in &rule.resources {
                for names in &names {
                    all.push(Rule {
                        verbs: verbs.clone(),
                        groups: vec![group.clone()],
                        resources: vec![resource.clone()],
                        names: names.clone(),
                        urls: Vec::new(),
                    });
                }
            }
        }
        for url in &rule.urls {
            all.push(Rule { verbs: verbs.clone(), urls: vec![url.clone()], ..Rule::default() });
        }
    }
    all
}

impl Rule {
    /// Whether all of a rule that was taken apart is in this one.
    fn covers(&self, single: &Self) -> bool {
        let covers = |own: &[String], wanted: &[String]| wanted.iter().all(|one| has(own, one));
        if !covers(&self.verbs, &single.verbs) {
            return false;
        }
        if let Some(wanted) = single.urls.first() {
            return self.urls.iter().any(|url| url == wanted || url_covers(url, wanted));
        }
        let resource = |wanted: &String| {
            let sub = wanted.split_once('/').map(|(_, sub)| format!("*/{sub}"));
            has(&self.resources, wanted) || sub.is_some_and(|sub| self.resources.contains(&sub))
        };
        covers(&self.groups, &single.groups)
            && single.resources.iter().all(resource)
            && (self.names.is_empty()
                || (!single.names.is_empty()
                    && single.names.iter().all(|name| self.names.contains(name))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::apiserver::api::{Api, WriteOptions};
    use serde_json::json;

    fn rule(json: Value) -> Rule {
        Rule::parse(&json)
    }

    /// `verb resource[/subresource] [name]` in the group.
    fn asked(group: &str, words: &str) -> Attributes {
        let mut words = words.split(' ');
        let verb = words.next().unwrap_or_default().to_owned();
        let combined = words.next().unwrap_or_default();
        let (resource, subresource) = combined.split_once('/').unwrap_or((combined, ""));
        Attributes {
            verb,
            group: group.to_owned(),
            resource: resource.to_owned(),
            subresource: subresource.to_owned(),
            name: words.next().unwrap_or_default().to_owned(),
            ..Attributes::default()
        }
    }

    #[test]
    fn rules_allow_what_they_name() {
        let check = |rule: &Rule, group: &str, words: &str, expected: bool| {
            assert_eq!(rule.allows(&asked(group, words)), expected, "{words} by {}", rule.words());
        };
        let pods = rule(
            json!({ "apiGroups": [""], "resources": ["pods", "pods/log"], "verbs": ["get", "list"] }),
        );
        check(&pods, "", "get pods a", true);
        check(&pods, "", "get pods/log a", true);
        check(&pods, "", "get pods/exec a", false);
        check(&pods, "", "delete pods a", false);
        check(&pods, "apps", "get pods a", false);
        let named = rule(
            json!({ "apiGroups": ["*"], "resources": ["*"], "verbs": ["*"], "resourceNames": ["a"] }),
        );
        check(&named, "x", "get things a", true);
        check(&named, "x", "get things/status a", true);
        check(&named, "x", "get things b", false);
        // A list has no name.
        check(&named, "x", "list things", false);
        let scales =
            rule(json!({ "apiGroups": ["apps"], "resources": ["*/scale"], "verbs": ["update"] }));
        check(&scales, "apps", "update deployments/scale d", true);
        check(&scales, "apps", "update deployments d", false);
        let urls = rule(json!({ "nonResourceURLs": ["/healthz", "/logs/*"], "verbs": ["get"] }));
        for (path, expected) in
            [("/healthz", true), ("/healthz/x", false), ("/logs/a", true), ("/logs", false)]
        {
            let asked =
                Attributes { verb: "get".into(), path: path.into(), ..Attributes::default() };
            assert_eq!(urls.allows(&asked), expected, "{path}");
        }
    }

    #[test]
    fn nobody_can_give_what_they_do_not_have() {
        let all = rule(json!({ "apiGroups": ["*"], "resources": ["*"], "verbs": ["*"] }));
        let get =
            rule(json!({ "apiGroups": [""], "resources": ["pods", "pods/log"], "verbs": ["get"] }));
        let one = rule(
            json!({ "apiGroups": [""], "resources": ["pods"], "resourceNames": ["a"], "verbs": ["get"] }),
        );
        let more = rule(
            json!({ "apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list", "watch"] }),
        );
        let held = |held: &Rule, wanted: &Rule| {
            let missing = not_held(std::slice::from_ref(held), std::slice::from_ref(wanted));
            missing.iter().map(Rule::words).collect::<Vec<_>>().join("\n")
        };
        assert_eq!(held(&all, &get), "");
        assert_eq!(held(&get, &one), "");
        assert_eq!(
            held(&get, &more),
            r#"{APIGroups:[""], Resources:["pods"], Verbs:["list" "watch"]}"#
        );
        assert_eq!(
            held(
                &one,
                &rule(json!({ "apiGroups": [""], "resources": ["pods"], "verbs": ["get"] }))
            ),
            r#"{APIGroups:[""], Resources:["pods"], Verbs:["get"]}"#
        );
        assert_eq!(held(&get, &all), r#"{APIGroups:["*"], Resources:["*"], Verbs:["*"]}"#);
    }

    #[test]
    fn bindings_reach_their_subjects() {
        let api = Api::new(String::new());
        let create = |id: &str, namespace: &str, value: Value| {
            let target = api.target(id, namespace, "").unwrap();
            api.create(&target, value, &WriteOptions::by("test")).unwrap();
        };
        for name in ["a", "b"] {
            create("namespaces", "", json!({ "metadata": { "name": name } }));
        }
        let rules = json!([{ "apiGroups": [""], "resources": ["pods"], "verbs": ["get"] }]);
        create(CLUSTER_ROLES, "", json!({ "metadata": { "name": "reader" }, "rules": rules }));
        create(ROLES, "a", json!({ "metadata": { "name": "local" }, "rules": rules }));
        let bind = |kind: &str, role: &str, subject: Value| {
            json!({ "metadata": { "generateName": "b-" }, "subjects": [subject],
                "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": role } })
        };
        create(
            CLUSTER_ROLE_BINDINGS,
            "",
            bind("ClusterRole", "reader", json!({ "kind": "Group", "name": "dev" })),
        );
        create(
            ROLE_BINDINGS,
            "a",
            bind("Role", "local", json!({ "kind": "User", "name": "jane" })),
        );
        create(
            ROLE_BINDINGS,
            "a",
            bind(
                "ClusterRole",
                "reader",
                json!({ "kind": "ServiceAccount", "name": "robot", "namespace": "b" }),
            ),
        );
        create(
            ROLE_BINDINGS,
            "b",
            bind("ClusterRole", "gone", json!({ "kind": "User", "name": "jane" })),
        );
        let decide = |user: &User, namespace: &str| {
            let asked = Attributes { namespace: namespace.to_owned(), ..asked("", "get pods p") };
            Authorizer::default().decide(&api.store, user, &asked)
        };
        let allowed =
            |user: &User, namespace: &str| matches!(decide(user, namespace), Decision::Allowed(_));
        let (jane, dev) = (User::new("jane", &[]), User::new("joe", &["dev"]));
        let robot = User::of_service_account("b", "robot", "");
        assert!(allowed(&dev, "a") && allowed(&dev, "b") && allowed(&dev, ""));
        assert!(allowed(&jane, "a") && !allowed(&jane, "b") && !allowed(&jane, ""));
        assert!(allowed(&robot, "a") && !allowed(&robot, "b"));
        assert!(allowed(&User::administrator(), "b") && !allowed(&User::anonymous(), "a"));
        let why = r#"RBAC: clusterrole.rbac.authorization.k8s.io "gone" not found"#;
        assert_eq!(decide(&jane, "b"), Decision::Refused(why.into()));
    }

    #[test]
    fn a_change_of_a_role_holds_at_once() {
        let api = Api::new(String::new());
        let options = WriteOptions::by("test");
        let target = |id: &str, name: &str| api.target(id, "", name).unwrap();
        let role = |verb: &str| json!({ "metadata": { "name": "r" }, "rules": [{ "apiGroups": [""], "resources": ["pods"], "verbs": [verb] }] });
        let binding = json!({ "metadata": { "name": "b" }, "subjects": [{ "kind": "User", "name": "jane" }],
            "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "r" } });
        api.create(&target(CLUSTER_ROLE_BINDINGS, ""), binding, &options).unwrap();
        let authorizer = Authorizer::default();
        let may = || {
            let decision =
                authorizer.decide(&api.store, &User::new("jane", &[]), &asked("", "get pods p"));
            matches!(decision, Decision::Allowed(_))
        };
        assert!(!may());
        api.create(&target(CLUSTER_ROLES, ""), role("get"), &options).unwrap();
        assert!(may());
        api.update(&target(CLUSTER_ROLES, "r"), role("list"), &options).unwrap();
        assert!(!may());
    }
}
