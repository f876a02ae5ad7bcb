//! Who may do what: certificates, tokens, roles and reviews, as clients meet them.

use k8s_openapi::api::core::v1::{ConfigMap, Pod, ServiceAccount};
use std::fmt::Display;

use kube::api::{Api, ListParams, Patch, PatchParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config as ClientConfig};
use lab::apiserver::{ApiServer, Config, WriteOptions};
use serde_json::{Value, json};

struct Cluster {
    server: ApiServer,
    url: String,
}

impl Cluster {
    async fn start() -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("https://{}", listener.local_addr().unwrap());
        let server = ApiServer::start(Config {
            listeners: vec![listener],
            server_names: vec!["127.0.0.1".into()],
            ..Config::default()
        });
        Self { server: server.await.unwrap(), url }
    }

    fn create(&self, resource: &str, object: Value) {
        let api = self.server.api();
        let namespace = object["metadata"]["namespace"].as_str().unwrap_or_default().to_owned();
        let target = api.target(resource, &namespace, "").unwrap();
        api.create(&target, object, &WriteOptions::by("test")).unwrap();
    }

    /// Binds a new role with these rules to a subject, in the whole cluster.
    fn grant(&self, name: &str, rules: Value, subject: Value) {
        self.create(
            "clusterroles.rbac.authorization.k8s.io",
            json!({ "metadata": { "name": name }, "rules": rules }),
        );
        self.create(
            "clusterrolebindings.rbac.authorization.k8s.io",
            json!({ "metadata": { "name": name }, "subjects": [subject],
                "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": name } }),
        );
    }

    async fn admin(&self) -> Client {
        client(&self.server.kubeconfig(&self.url, "test")).await
    }

    async fn user(&self, name: &str, group: Option<&str>) -> Client {
        let kubeconfig = self.server.kubeconfig_of_user(&self.url, "test", name, group);
        client(&kubeconfig.unwrap()).await
    }

    /// What a request by nobody in particular is answered.
    async fn anonymously(&self, path: &str) -> kube::Result<String> {
        let mut config = ClientConfig::new(self.url.parse().unwrap());
        config.accept_invalid_certs = true;
        let client = Client::try_from(config).unwrap();
        client.request_text(http::Request::get(path).body(Vec::new()).unwrap()).await
    }
}

async fn client(kubeconfig: &str) -> Client {
    let kubeconfig = Kubeconfig::from_yaml(kubeconfig).unwrap();
    let options = KubeConfigOptions::default();
    let config = ClientConfig::from_custom_kubeconfig(kubeconfig, &options).await.unwrap();
    Client::try_from(config).unwrap()
}

/// The code and words of a refusal.
fn refusal<T>(result: kube::Result<T>) -> (u16, String) {
    match result {
        Err(kube::Error::Api(status)) => (status.code, status.message.clone()),
        Err(other) => panic!("not an API error: {other}"),
        Ok(_) => panic!("not refused"),
    }
}

async fn post(client: &Client, path: impl Display, body: Value) -> kube::Result<Value> {
    let request = http::Request::post(path.to_string()).header("content-type", "application/json");
    client.request(request.body(body.to_string().into_bytes()).unwrap()).await
}

#[tokio::test]
async fn a_certificate_is_a_user_and_a_group() {
    let cluster = Cluster::start().await;
    let rules = json!([{ "apiGroups": [""], "resources": ["pods"], "verbs": ["list"] }]);
    cluster.grant("readers", rules, json!({ "kind": "Group", "name": "dev" }));
    let jane = cluster.user("jane", Some("dev")).await;
    let joe = cluster.user("joe", None).await;
    let pods = |client: &Client| -> Api<Pod> { Api::default_namespaced(client.clone()) };
    assert!(pods(&jane).list(&ListParams::default()).await.is_ok());
    let words = r#"pods is forbidden: User "joe" cannot list resource "pods" in API group "" in the namespace "default""#;
    assert_eq!(refusal(pods(&joe).list(&ListParams::default()).await), (403, words.into()));
    let words = r#"pods "p" is forbidden: User "jane" cannot delete resource "pods" in API group "" in the namespace "default""#;
    assert_eq!(refusal(pods(&jane).delete("p", &Default::default()).await), (403, words.into()));
    let who = "/apis/authentication.k8s.io/v1/selfsubjectreviews";
    let review = post(&jane, who, json!({})).await.unwrap();
    let info = json!({ "username": "jane", "groups": ["dev", "system:authenticated"] });
    assert_eq!(review["status"]["userInfo"], info);
    cluster.server.shutdown().await;
}

#[tokio::test]
async fn strangers_may_ask_for_the_version_only() {
    let cluster = Cluster::start().await;
    for path in ["/version", "/healthz", "/readyz"] {
        assert!(cluster.anonymously(path).await.is_ok(), "{path}");
    }
    let words = r#"forbidden: User "system:anonymous" cannot get path "/apis""#;
    assert_eq!(refusal(cluster.anonymously("/apis").await), (403, words.into()));
    let words = r#"nodes is forbidden: User "system:anonymous" cannot list resource "nodes" in API group "" at the cluster scope"#;
    assert_eq!(refusal(cluster.anonymously("/api/v1/nodes").await), (403, words.into()));
    // What does not exist is nothing to tell them about either.
    assert_eq!(refusal(cluster.anonymously("/apis/x.io/v1/things").await).0, 403);
    cluster.server.shutdown().await;
}

#[tokio::test]
async fn a_service_account_works_by_its_token() {
    let cluster = Cluster::start().await;
    let account = json!({ "metadata": { "name": "robot", "namespace": "default" } });
    cluster.create("serviceaccounts", account);
    let subject = json!({ "kind": "ServiceAccount", "name": "robot", "namespace": "default" });
    let rules =
        json!([{ "apiGroups": [""], "resources": ["configmaps"], "verbs": ["get", "patch"] }]);
    cluster.grant("robots", rules, subject);
    let admin = cluster.admin().await;
    let path = "/api/v1/namespaces/default/serviceaccounts/robot/token";
    let request = json!({ "spec": { "expirationSeconds": 600 } });
    let issued = post(&admin, path, request).await.unwrap();
    assert_eq!(issued["kind"], "TokenRequest");
    assert!(issued["status"]["expirationTimestamp"].is_string());
    let token = issued["status"]["token"].as_str().unwrap().to_owned();

    let mut config = ClientConfig::new(cluster.url.parse().unwrap());
    config.accept_invalid_certs = true;
    config.auth_info.token = Some(token.clone().into());
    let robot = Client::try_from(config).unwrap();
    let maps: Api<ConfigMap> = Api::namespaced(robot.clone(), "default");
    assert!(maps.get("kube-root-ca.crt").await.is_ok());
    // Who may patch may not create by server-side apply.
    let map = json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "new" } });
    let apply = maps.patch("new", &PatchParams::apply("test"), &Patch::Apply(map)).await;
    let words = r#"configmaps "new" is forbidden: User "system:serviceaccount:default:robot" cannot create resource "configmaps" in API group "" in the namespace "default""#;
    assert_eq!(refusal(apply), (403, words.into()));

    // Others ask the API server about the token.
    let reviews = "/apis/authentication.k8s.io/v1/tokenreviews";
    let review = post(&admin, reviews, json!({ "spec": { "token": token } })).await.unwrap();
    let status = &review["status"];
    assert_eq!(status["authenticated"], true);
    assert_eq!(status["user"]["username"], "system:serviceaccount:default:robot");
    assert!(status["user"]["groups"].to_string().contains("system:serviceaccounts:default"));
    let review = post(&admin, reviews, json!({ "spec": { "token": "guess" } })).await.unwrap();
    assert_ne!(review["status"]["authenticated"], true);
    assert_eq!(refusal(post(&robot, reviews, json!({ "spec": { "token": token } })).await).0, 403);

    let accounts: Api<ServiceAccount> = Api::namespaced(admin, "default");
    accounts.delete("robot", &Default::default()).await.unwrap();
    assert_eq!(refusal(maps.get("kube-root-ca.crt").await), (401, "Unauthorized".into()));
    cluster.server.shutdown().await;
}

#[tokio::test]
async fn reviews_answer_as_requests_would() {
    let cluster = Cluster::start().await;
    let rules = json!([{ "apiGroups": ["apps"], "resources": ["deployments", "deployments/scale"], "verbs": ["get", "patch"] }]);
    cluster.grant("scalers", rules, json!({ "kind": "User", "name": "jane" }));
    let (admin, jane) = (cluster.admin().await, cluster.user("jane", None).await);
    let asked = |verb: &str, subresource: &str| json!({ "namespace": "default", "verb": verb, "group": "apps", "resource": "deployments", "subresource": subresource });
    let group = "/apis/authorization.k8s.io/v1";
    for (verb, subresource, expected) in [
        ("patch", "scale", true),
        ("patch", "", true),
        ("patch", "status", false),
        ("delete", "", false),
    ] {
        let spec = json!({ "resourceAttributes": asked(verb, subresource) });
        let own = post(&jane, format!("{group}/selfsubjectaccessreviews"), json!({ "spec": spec }));
        assert_eq!(own.await.unwrap()["status"]["allowed"], expected, "{verb} {subresource}");
        let spec = json!({ "resourceAttributes": asked(verb, subresource), "user": "jane" });
        let of_other =
            post(&admin, format!("{group}/subjectaccessreviews"), json!({ "spec": spec }));
        let status = of_other.await.unwrap()["status"].take();
        assert_eq!(status["allowed"], expected);
        let why = status["reason"].as_str().unwrap_or_default().to_owned();
        assert_eq!(why.contains("ClusterRoleBinding \"scalers\""), expected, "{why}");
    }
    let spec = json!({ "namespace": "default" });
    let rules = post(&jane, format!("{group}/selfsubjectrulesreviews"), json!({ "spec": spec }));
    let status = rules.await.unwrap()["status"].take();
    assert!(status["resourceRules"].to_string().contains("deployments/scale"), "{status}");
    let both = json!({ "spec": { "resourceAttributes": asked("get", ""), "nonResourceAttributes": { "path": "/", "verb": "get" } } });
    assert_eq!(
        refusal(post(&jane, format!("{group}/selfsubjectaccessreviews"), both).await).0,
        422
    );
    cluster.server.shutdown().await;
}

#[tokio::test]
async fn acting_as_somebody_else_needs_a_right() {
    let cluster = Cluster::start().await;
    let rules = json!([{ "apiGroups": [""], "resources": ["users"], "verbs": ["impersonate"], "resourceNames": ["joe"] }]);
    cluster.grant("actors", rules, json!({ "kind": "User", "name": "jane" }));
    let jane = cluster.user("jane", None).await;
    let as_whom = |name: &str| {
        let request = http::Request::post("/apis/authentication.k8s.io/v1/selfsubjectreviews")
            .header("impersonate-user", name);
        jane.request::<Value>(request.body(b"{}".to_vec()).unwrap())
    };
    let review = as_whom("joe").await.unwrap();
    assert_eq!(review["status"]["userInfo"]["username"], "joe");
    let words = r#"users "root" is forbidden: User "jane" cannot impersonate resource "users" in API group "" at the cluster scope"#;
    assert_eq!(refusal(as_whom("root").await), (403, words.into()));
    cluster.server.shutdown().await;
}

#[tokio::test]
async fn rights_are_not_escalated_over_the_wire() {
    let cluster = Cluster::start().await;
    let rules = json!([{ "apiGroups": ["rbac.authorization.k8s.io"], "resources": ["clusterroles"], "verbs": ["create", "get", "patch"] }]);
    cluster.grant("role-writers", rules, json!({ "kind": "User", "name": "jane" }));
    let jane = cluster.user("jane", None).await;
    let roles: Api<k8s_openapi::api::rbac::v1::ClusterRole> = Api::all(jane);
    let role = |verb: &str| {
        serde_json::from_value(json!({ "metadata": { "name": "mine" },
            "rules": [{ "apiGroups": ["rbac.authorization.k8s.io"], "resources": ["clusterroles"], "verbs": [verb] }] }))
        .unwrap()
    };
    let (code, words) = refusal(roles.create(&PostParams::default(), &role("delete")).await);
    assert_eq!(code, 403);
    assert!(words.contains("attempting to grant RBAC permissions not currently held"), "{words}");
    roles.create(&PostParams::default(), &role("get")).await.unwrap();
    let more = json!({ "rules": [{ "apiGroups": ["*"], "resources": ["*"], "verbs": ["*"] }] });
    let patched = roles.patch("mine", &PatchParams::default(), &Patch::Merge(more)).await;
    assert_eq!(refusal(patched).0, 403);
    cluster.server.shutdown().await;
}
