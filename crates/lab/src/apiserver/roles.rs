//! Roles and bindings as objects: what they may look like, who may write them, the cluster
//! roles that are made of others, and those that every cluster has.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::api::{Api, Target, WriteOptions};
use super::attributes::Attributes;
use super::rbac::{Authorizer, CLUSTER_ROLES, Decision, Rule, not_held};
use super::scale::selector_text;
use super::selector::Selector;
use super::status::{ApiError, FieldError};
use super::user::{MASTERS, User};

pub(super) const GROUP: &str = "rbac.authorization.k8s.io";
/// The roles and bindings that Kubernetes makes in every cluster.
const DEFAULTS: &str = include_str!("default-roles.yaml");
/// Marks those that a starting server brings back into form.
const AUTO_UPDATE: &str = "rbac.authorization.kubernetes.io/autoupdate";

/// Fills in what bindings leave open.
pub(super) fn default(id: &str, value: &mut Value) {
    if !id.contains("bindings.") {
        return;
    }
    if value["roleRef"].is_object()
        && value["roleRef"]["apiGroup"].as_str().is_none_or(str::is_empty)
    {
        value["roleRef"]["apiGroup"] = json!(GROUP);
    }
    for subject in value["subjects"].as_array_mut().into_iter().flatten() {
        let group = subject["apiGroup"].as_str().unwrap_or_default();
        if group.is_empty() && matches!(subject["kind"].as_str(), Some("User" | "Group")) {
            subject["apiGroup"] = json!(GROUP);
        }
    }
}

/// What is wrong with a role or binding.
pub(super) fn validate(id: &str, value: &Value, errors: &mut Vec<FieldError>) {
    let cluster_wide = id.starts_with("cluster");
    if id.contains("bindings.") {
        validate_binding(cluster_wide, value, errors);
        return;
    }
    for (index, rule) in value["rules"].as_array().into_iter().flatten().enumerate() {
        validate_rule(&format!("rules[{index}]"), cluster_wide, &Rule::parse(rule), errors);
    }
}

fn validate_rule(field: &str, cluster_wide: bool, rule: &Rule, errors: &mut Vec<FieldError>) {
    let mut required = |name: &str, detail: &str| {
        errors.push(FieldError::required(format!("{field}.{name}"), detail));
    };
    if rule.verbs.is_empty() {
        required("verbs", "verbs must contain at least one value");
    }
    if rule.urls.is_empty() {
        if rule.groups.is_empty() {
            required("apiGroups", "resource rules must supply at least one api group");
        }
        if rule.resources.is_empty() {
            required("resources", "resource rules must supply at least one resource");
        }
        return;
    }
    let urls = || json!(rule.urls);
    let field = format!("{field}.nonResourceURLs");
    if !cluster_wide {
        let detail = "namespaced rules cannot apply to non-resource URLs";
        errors.push(FieldError::invalid(&field, urls(), detail));
    }
    if !(rule.groups.is_empty() && rule.resources.is_empty() && rule.names.is_empty()) {
        let detail = "rules cannot apply to both regular resources and non-resource URLs";
        errors.push(FieldError::invalid(&field, urls(), detail));
    }
}

fn validate_binding(cluster_wide: bool, binding: &Value, errors: &mut Vec<FieldError>) {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let reference = &binding["roleRef"];
    let (group, kind) = (text(&reference["apiGroup"]), text(&reference["kind"]));
    if group != GROUP {
        errors.push(FieldError::not_supported("roleRef.apiGroup", group, &[GROUP]));
    }
    let kinds: &[&str] = if cluster_wide { &["ClusterRole"] } else { &["Role", "ClusterRole"] };
    if !kinds.contains(&kind.as_str()) {
        errors.push(FieldError::not_supported("roleRef.kind", kind, kinds));
    }
    if text(&reference["name"]).is_empty() {
        errors.push(FieldError::required("roleRef.name", ""));
    }
    for (index, subject) in binding["subjects"].as_array().into_iter().flatten().enumerate() {
        let field = |name: &str| format!("subjects[{index}].{name}");
        let (kind, group) = (text(&subject["kind"]), text(&subject["apiGroup"]));
        if text(&subject["name"]).is_empty() {
            errors.push(FieldError::required(field("name"), ""));
        }
        let expected = match kind.as_str() {
            "ServiceAccount" => "",
            "User" | "Group" => GROUP,
            _ => {
                let kinds = ["Group", "ServiceAccount", "User"];
                errors.push(FieldError::not_supported(field("kind"), kind, &kinds));
                continue;
            }
        };
        if group != expected {
            errors.push(FieldError::not_supported(field("apiGroup"), group, &[expected]));
        }
        if kind == "ServiceAccount" && cluster_wide && text(&subject["namespace"]).is_empty() {
            errors.push(FieldError::required(field("namespace"), ""));
        }
    }
}

/// What may not change in a binding.
pub(super) fn validate_update(id: &str, new: &Value, old: &Value, errors: &mut Vec<FieldError>) {
    if id.contains("bindings.") && new["roleRef"] != old["roleRef"] {
        let detail = "cannot change roleRef";
        errors.push(FieldError::invalid("roleRef", new["roleRef"].clone(), detail));
    }
}

impl Api {
    /// Whether the user may do this; says why not in Kubernetes' words.
    pub(super) fn authorize(&self, user: &User, asked: &Attributes) -> Result<(), ApiError> {
        match self.authorizer.decide(&self.store, user, asked) {
            Decision::Allowed(_) => Ok(()),
            Decision::Refused(why) => {
                let mut words = asked.refusal(&user.name);
                if !why.is_empty() {
                    words += &format!(": {why}");
                }
                Err(ApiError::refused(&asked.resource, &asked.group, &asked.name, &words))
            }
        }
    }

    /// Nobody gives others rights that they do not have themselves, unless they may.
    pub(super) fn check_escalation(
        &self,
        target: &Target,
        new: &Value,
        old: Option<&Value>,
        options: &WriteOptions,
    ) -> Result<(), ApiError> {
        let resource = &target.resource;
        let Some(user) = options.user.as_deref().filter(|_| *resource.group == *GROUP) else {
            return Ok(());
        };
        let is_binding = resource.plural.ends_with("bindings");
        let granted = |value: &Value| -> [Value; 3] {
            ["rules", "aggregationRule", if is_binding { "subjects" } else { "" }]
                .map(|field| value[field].clone())
        };
        if user.is_in(MASTERS) || old.is_some_and(|old| granted(old) == granted(new)) {
            return Ok(());
        }
        let name = new["metadata"]["name"].as_str().unwrap_or_default();
        let (wanted, resource_asked, name_asked) = if is_binding {
            let reference = &new["roleRef"];
            let kind = reference["kind"].as_str().unwrap_or_default();
            let role = reference["name"].as_str().unwrap_or_default();
            let rules = Authorizer::rules_of_role(&self.store, kind, &target.namespace, role);
            let plural = if kind == "Role" { "roles" } else { "clusterroles" };
            let rules = rules.ok_or_else(|| ApiError::not_found(plural, GROUP, role))?;
            (rules, plural, role)
        } else {
            let mut rules = Rule::of_role(new);
            if new["aggregationRule"].is_object() {
                // Whatever will be there.
                let all = json!({ "apiGroups": ["*"], "resources": ["*"], "verbs": ["*"] });
                let urls = json!({ "nonResourceURLs": ["*"], "verbs": ["*"] });
                rules.extend([Rule::parse(&all), Rule::parse(&urls)]);
            }
            (rules, &*resource.plural, name)
        };
        let exempt = Attributes {
            verb: if is_binding { "bind" } else { "escalate" }.to_owned(),
            namespace: target.namespace.clone(),
            group: GROUP.to_owned(),
            version: "v1".to_owned(),
            resource: resource_asked.to_owned(),
            name: name_asked.to_owned(),
            ..Attributes::default()
        };
        if matches!(self.authorizer.decide(&self.store, user, &exempt), Decision::Allowed(_)) {
            return Ok(());
        }
        let (held, trouble) = self.authorizer.rules(&self.store, user, &target.namespace);
        let missing = not_held(&held, &wanted);
        if missing.is_empty() {
            return Ok(());
        }
        let mut words: Vec<String> = missing.iter().map(Rule::words).collect();
        words.sort();
        let groups: Vec<String> = user.groups.iter().map(|group| format!("{group:?}")).collect();
        let mut why = format!(
            "user {:?} (groups=[{}]) is attempting to grant RBAC permissions not currently held:\n{}",
            user.name,
            groups.join(" "),
            words.join("\n")
        );
        if !trouble.is_empty() {
            why += &format!("; resolution errors: {trouble}");
        }
        Err(ApiError::forbidden(&resource.plural, GROUP, name, &why))
    }

    /// Gives the cluster roles that are made of others the rules of these.
    pub(super) fn aggregate_cluster_roles(&self) {
        let (_, roles) = self.store.list(&CLUSTER_ROLES.into());
        let roles: Vec<_> = roles.values().map(|object| (object.clone(), object.value())).collect();
        for (_, role) in &roles {
            let Some(rules) = aggregated_rules(role, &roles) else { continue };
            if role["rules"] == rules {
                continue;
            }
            let name = role["metadata"]["name"].as_str().unwrap_or_default();
            let Ok(target) = self.target(CLUSTER_ROLES, "", name) else { return };
            let mut new = role.clone();
            new["rules"] = rules;
            // The write comes back here, for roles made of this one. Somebody who was faster
            // has this done again after their own write.
            let _ = self.update(&target, new, &WriteOptions::by("kube-controller-manager"));
        }
    }

    /// Makes the roles and bindings of every cluster, or brings them back into form.
    pub(super) fn create_default_roles(&self) -> anyhow::Result<()> {
        let options = WriteOptions::by("kube-apiserver");
        let documents: Vec<Value> = serde_saphyr::from_multiple(DEFAULTS)?;
        for mut object in documents {
            let id = match object["kind"].as_str().unwrap_or_default() {
                "ClusterRole" => CLUSTER_ROLES,
                _ => "clusterrolebindings.rbac.authorization.k8s.io",
            };
            let meta = &mut object["metadata"];
            meta["labels"]["kubernetes.io/bootstrapping"] = json!("rbac-defaults");
            meta["annotations"] = json!({ AUTO_UPDATE: "true" });
            let name = meta["name"].as_str().unwrap_or_default().to_owned();
            let target = self.target(id, "", &name)?;
            let Ok(current) = self.get(&target) else {
                let collection = self.target(id, "", "")?;
                self.create(&collection, object, &options)?;
                continue;
            };
            let current = current.value();
            let kept = current["metadata"]["annotations"][AUTO_UPDATE] == "true";
            if kept && object["aggregationRule"].is_null() {
                self.update(&target, object, &options)?;
            }
        }
        Ok(())
    }
}

/// The rules that a cluster role made of others should have.
fn aggregated_rules(
    role: &Value,
    roles: &[(std::sync::Arc<super::object::Object>, Value)],
) -> Option<Value> {
    let selectors = role["aggregationRule"]["clusterRoleSelectors"].as_array()?;
    let selectors: Vec<Selector> = selectors
        .iter()
        .filter_map(|one| Selector::parse(&selector_text(one), "", &[]).ok())
        .filter(|selector| !selector.is_empty())
        .collect();
    // In the order of names, each rule once.
    let mut rules: BTreeMap<String, Value> = BTreeMap::new();
    let mut order = Vec::new();
    for (object, other) in roles {
        let own = other["metadata"]["name"] == role["metadata"]["name"];
        if own || !selectors.iter().any(|selector| selector.matches(object)) {
            continue;
        }
        for rule in other["rules"].as_array().into_iter().flatten() {
            let text = rule.to_string();
            if rules.insert(text.clone(), rule.clone()).is_none() {
                order.push(text);
            }
        }
    }
    Some(order.iter().filter_map(|text| rules.get(text)).cloned().collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    fn cluster() -> Api {
        let api = Api::new(String::new());
        api.create_default_roles().unwrap();
        let target = api.target("namespaces", "", "").unwrap();
        let namespace = json!({ "metadata": { "name": "n" } });
        api.create(&target, namespace, &WriteOptions::by("test")).unwrap();
        api
    }

    fn bind(api: &Api, role: &str, user: &str) {
        let target = api.target("clusterrolebindings.rbac.authorization.k8s.io", "", "").unwrap();
        let binding = json!({ "metadata": { "generateName": "b-" }, "subjects": [{ "kind": "User", "name": user }],
            "roleRef": { "kind": "ClusterRole", "name": role } });
        api.create(&target, binding, &WriteOptions::by("test")).unwrap();
    }

    fn may(api: &Api, user: &str, verb: &str, group: &str, resource: &str) -> bool {
        let asked = Attributes {
            verb: verb.to_owned(),
            namespace: "n".to_owned(),
            group: group.to_owned(),
            resource: resource.to_owned(),
            ..Attributes::default()
        };
        api.authorize(&User::new(user, &[]), &asked).is_ok()
    }

    #[test]
    fn the_well_known_roles() {
        let api = cluster();
        for role in ["view", "edit", "admin", "cluster-admin"] {
            bind(&api, role, role);
        }
        let check = |verb: &str, group: &str, resource: &str, expected: [bool; 4]| {
            let got = ["view", "edit", "admin", "cluster-admin"]
                .map(|user| may(&api, user, verb, group, resource));
            assert_eq!(got, expected, "{verb} {resource}");
        };
        check("get", "", "pods", [true; 4]);
        check("get", "", "secrets", [false, true, true, true]);
        check("create", "apps", "deployments", [false, true, true, true]);
        check("create", GROUP, "roles", [false, false, true, true]);
        check("get", "", "nodes", [false, false, false, true]);
        // A role that is labelled so adds to them.
        let target = api.target(CLUSTER_ROLES, "", "").unwrap();
        let more = json!({ "metadata": { "name": "widgets", "labels": { "rbac.authorization.k8s.io/aggregate-to-view": "true" } },
            "rules": [{ "apiGroups": ["example.com"], "resources": ["widgets"], "verbs": ["get"] }] });
        check("get", "example.com", "widgets", [false, false, false, true]);
        api.create(&target, more, &WriteOptions::by("test")).unwrap();
        check("get", "example.com", "widgets", [true; 4]);
        // Starting again changes nothing.
        let version = api.store.resource_version();
        api.create_default_roles().unwrap();
        assert_eq!(api.store.resource_version(), version);
    }

    #[test]
    fn rights_are_not_made_from_nothing() {
        let api = cluster();
        bind(&api, "admin", "jane");
        let jane = WriteOptions {
            user: Some(Arc::new(User::new("jane", &[]))),
            ..WriteOptions::by("test")
        };
        let role = |resource: &str| json!({ "metadata": { "name": "r" }, "rules": [{ "apiGroups": [""], "resources": [resource], "verbs": ["get"] }] });
        let roles = api.target("roles.rbac.authorization.k8s.io", "n", "").unwrap();
        let error = api.create(&roles, role("nodes"), &jane).unwrap_err();
        assert_eq!(error.code(), 403);
        assert_eq!(
            error.to_string(),
            "roles.rbac.authorization.k8s.io \"r\" is forbidden: user \"jane\" (groups=[\"system:authenticated\"]) is attempting to grant RBAC permissions not currently held:\n{APIGroups:[\"\"], Resources:[\"nodes\"], Verbs:[\"get\"]}"
        );
        api.create(&roles, role("pods"), &jane).unwrap();
        let bindings = api.target("rolebindings.rbac.authorization.k8s.io", "n", "").unwrap();
        let binding = |role: &str| {
            json!({ "metadata": { "generateName": "b-" }, "subjects": [{ "kind": "User", "name": "joe" }],
                "roleRef": { "kind": "ClusterRole", "name": role } })
        };
        assert_eq!(api.create(&bindings, binding("cluster-admin"), &jane).unwrap_err().code(), 403);
        assert!(api.create(&bindings, binding("nothing"), &jane).unwrap_err().is_not_found());
        api.create(&bindings, binding("view"), &jane).unwrap();
    }

    #[test]
    fn odd_roles_are_refused() {
        let check = |id: &str, value: Value, expected: &[&str]| {
            let mut errors = Vec::new();
            validate(id, &value, &mut errors);
            let fields: Vec<&str> = errors.iter().map(|error| error.field.as_str()).collect();
            assert_eq!(fields, expected, "{value}");
        };
        let (roles, cluster_roles) = ("roles.rbac.authorization.k8s.io", CLUSTER_ROLES);
        check(
            roles,
            json!({ "rules": [{}] }),
            &["rules[0].verbs", "rules[0].apiGroups", "rules[0].resources"],
        );
        let urls = json!({ "rules": [{ "verbs": ["get"], "nonResourceURLs": ["/x"] }] });
        check(roles, urls.clone(), &["rules[0].nonResourceURLs"]);
        check(cluster_roles, urls, &[]);
        let bindings = "clusterrolebindings.rbac.authorization.k8s.io";
        check(
            bindings,
            json!({ "roleRef": { "apiGroup": GROUP, "kind": "Role", "name": "r" },
                "subjects": [{ "kind": "ServiceAccount", "name": "a" }, { "kind": "Robot", "name": "r" }] }),
            &["roleRef.kind", "subjects[0].namespace", "subjects[1].kind"],
        );
    }
}
