//! kube-rs against the API server: what our agent, operator and every other controller does.

use std::time::Duration;

use futures::{StreamExt as _, TryStreamExt as _};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Pod};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{
    Api, DeleteParams, ListParams, Patch, PatchParams, PostParams, WatchEvent, WatchParams,
};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::runtime::watcher::{Config as WatcherConfig, Event};
use kube::runtime::{WatchStreamExt as _, reflector, watcher};
use kube::{Client, Config as ClientConfig};
use lab::apiserver::{ApiServer, Config, WriteOptions};
use serde_json::{Value, json};

/// Long enough for anything that should happen at all.
const PATIENCE: Duration = Duration::from_secs(60);

struct Cluster {
    server: ApiServer,
    client: Client,
    url: String,
}

impl Cluster {
    async fn start(config: Config) -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("https://{}", listener.local_addr().unwrap());
        let config =
            Config { listeners: vec![listener], server_names: vec!["127.0.0.1".into()], ..config };
        let server = ApiServer::start(config).await.unwrap();
        let kubeconfig = Kubeconfig::from_yaml(&server.kubeconfig(&url, "test")).unwrap();
        let config =
            ClientConfig::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await;
        Self { server, client: Client::try_from(config.unwrap()).unwrap(), url }
    }

    fn maps(&self) -> Api<ConfigMap> {
        Api::default_namespaced(self.client.clone())
    }
}

fn map(name: &str, data: Value) -> ConfigMap {
    serde_json::from_value(
        json!({ "metadata": { "name": name, "labels": { "test": "yes" } }, "data": data }),
    )
    .unwrap()
}

/// The certificate in a PEM file.
fn der(pem: &str) -> Vec<u8> {
    use rustls::pki_types::pem::PemObject as _;
    rustls::pki_types::CertificateDer::from_pem_slice(pem.as_bytes()).unwrap().to_vec()
}

fn code(error: &kube::Error) -> u16 {
    match error {
        kube::Error::Api(status) => status.code,
        other => panic!("not an API error: {other}"),
    }
}

#[tokio::test]
async fn a_watcher_sees_every_change() {
    for config in [WatcherConfig::default(), WatcherConfig::default().streaming_lists()] {
        let cluster = Cluster::start(Config::default()).await;
        let maps = cluster.maps();
        for n in 0..3 {
            maps.create(&PostParams::default(), &map(&format!("m{n}"), json!({}))).await.unwrap();
        }
        let mut events = watcher(maps.clone(), config.labels("test=yes").page_size(2)).boxed();
        let mut next = async || {
            tokio::time::timeout(PATIENCE, events.next()).await.expect("an event").unwrap().unwrap()
        };
        assert!(matches!(next().await, Event::Init));
        for n in 0..3 {
            let Event::InitApply(object) = next().await else { panic!("no initial object") };
            assert_eq!(object.metadata.name.unwrap(), format!("m{n}"));
        }
        assert!(matches!(next().await, Event::InitDone));

        maps.create(&PostParams::default(), &map("new", json!({}))).await.unwrap();
        assert!(
            matches!(next().await, Event::Apply(object) if object.metadata.name.as_deref() == Some("new"))
        );
        // An object that leaves the selection is told as deleted, and comes back as new.
        for (label, gone) in [("no", true), ("yes", false)] {
            let patch = json!({ "metadata": { "labels": { "test": label } } });
            maps.patch("new", &PatchParams::default(), &Patch::Merge(patch)).await.unwrap();
            let event = next().await;
            assert_eq!(matches!(event, Event::Delete(_)), gone, "{event:?}");
        }
        maps.delete("new", &DeleteParams::default()).await.unwrap();
        assert!(matches!(next().await, Event::Delete(_)));
        cluster.server.shutdown().await;
    }
}

#[tokio::test]
async fn a_reflector_survives_an_outage() {
    let cluster = Cluster::start(Config::default()).await;
    let maps = cluster.maps();
    let (store, writer) = reflector::store();
    let stream =
        reflector(writer, watcher(maps.clone(), WatcherConfig::default())).default_backoff();
    let follow = tokio::spawn(stream.for_each(|_| async {}));
    tokio::time::timeout(PATIENCE, store.wait_until_ready()).await.unwrap().unwrap();
    cluster.server.set_serving(false);
    assert!(maps.get("x").await.is_err());
    cluster.server.set_serving(true);
    maps.create(&PostParams::default(), &map("after", json!({}))).await.unwrap();
    let seen = async {
        let key = reflector::ObjectRef::new("after").within("default");
        while store.get(&key).is_none() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, seen).await.expect("the reflector catches up");
    follow.abort();
    cluster.server.shutdown().await;
}

#[tokio::test]
async fn conflicts_and_preconditions() {
    let cluster = Cluster::start(Config::default()).await;
    let maps = cluster.maps();
    let created =
        maps.create(&PostParams::default(), &map("a", json!({ "k": "1" }))).await.unwrap();
    let again = maps.create(&PostParams::default(), &map("a", json!({}))).await.unwrap_err();
    assert_eq!(code(&again), 409);
    let mut first = created.clone();
    first.data.get_or_insert_default().insert("k".into(), "2".into());
    let updated = maps.replace("a", &PostParams::default(), &first).await.unwrap();
    assert_ne!(updated.metadata.resource_version, created.metadata.resource_version);
    let stale = maps.replace("a", &PostParams::default(), &first).await.unwrap_err();
    assert_eq!(code(&stale), 409);
    assert!(stale.to_string().contains("the object has been modified"), "{stale}");
    // What changes nothing gives no new version.
    let same = maps.replace("a", &PostParams::default(), &updated).await.unwrap();
    assert_eq!(same.metadata.resource_version, updated.metadata.resource_version);
    let wrong = DeleteParams::default().preconditions(kube::api::Preconditions {
        uid: Some("other".into()),
        resource_version: None,
    });
    assert_eq!(code(&maps.delete("a", &wrong).await.unwrap_err()), 409);
    let dry = PostParams { dry_run: true, field_manager: None };
    maps.create(&dry, &map("b", json!({}))).await.unwrap();
    assert!(maps.get_opt("b").await.unwrap().is_none());
    cluster.server.shutdown().await;
}

#[tokio::test]
async fn history_that_is_gone_is_410() {
    let cluster = Cluster::start(Config::default()).await;
    let leases: Api<Lease> = Api::default_namespaced(cluster.client.clone());
    let lease = json!({ "metadata": { "name": "l" }, "spec": { "holderIdentity": "0" } });
    let lease = serde_json::from_value(lease).unwrap();
    let created: Lease = leases.create(&PostParams::default(), &lease).await.unwrap();
    let start = created.metadata.resource_version.unwrap();
    let api = cluster.server.api();
    let target = api.target("leases.coordination.k8s.io", "default", "l").unwrap();
    for n in 0..10_000 {
        let patch =
            lab::apiserver::Patch::Merge(json!({ "spec": { "holderIdentity": format!("{n}") } }));
        api.patch(&target, &patch, &WriteOptions::by("test")).unwrap();
    }
    let mut events = leases.watch(&WatchParams::default(), &start).await.unwrap().boxed();
    let event = tokio::time::timeout(PATIENCE, events.try_next()).await.unwrap().unwrap();
    assert!(matches!(event, Some(WatchEvent::Error(status)) if status.code == 410));
    // A watch from the present goes on.
    let version =
        leases.list(&ListParams::default()).await.unwrap().metadata.resource_version.unwrap();
    let mut events = leases.watch(&WatchParams::default(), &version).await.unwrap().boxed();
    leases.delete("l", &DeleteParams::default()).await.unwrap();
    let event = tokio::time::timeout(PATIENCE, events.try_next()).await.unwrap().unwrap();
    assert!(matches!(event, Some(WatchEvent::Deleted(_))), "{event:?}");
    let future = leases.watch(&WatchParams::default(), "nonsense").await;
    assert!(future.is_err());
    cluster.server.shutdown().await;
}

#[tokio::test]
async fn chunked_lists_are_of_one_moment() {
    let cluster = Cluster::start(Config::default()).await;
    let maps = cluster.maps();
    for n in 0..7 {
        maps.create(&PostParams::default(), &map(&format!("m{n}"), json!({}))).await.unwrap();
    }
    let mut params = ListParams::default().labels("test=yes").limit(3);
    let mut names = Vec::new();
    loop {
        let list = maps.list(&params).await.unwrap();
        names.extend(list.items.into_iter().filter_map(|item| item.metadata.name));
        let Some(token) = list.metadata.continue_.filter(|token| !token.is_empty()) else { break };
        params.continue_token = Some(token);
        // Changes in between are not seen.
        let _ = maps.delete("m6", &DeleteParams::default()).await;
    }
    assert_eq!(names, ["m0", "m1", "m2", "m3", "m4", "m5", "m6"]);
    params.continue_token = Some("nonsense".into());
    assert_eq!(code(&maps.list(&params).await.unwrap_err()), 400);
    cluster.server.shutdown().await;
}

#[tokio::test]
async fn owners_finalizers_and_namespaces() {
    let cluster = Cluster::start(Config::default()).await;
    let maps = cluster.maps();
    let owner = maps.create(&PostParams::default(), &map("owner", json!({}))).await.unwrap();
    let mut owned = map("owned", json!({}));
    owned.metadata.owner_references =
        kube::Resource::owner_ref(&owner, &()).map(|owner| vec![owner]);
    let owned = maps.create(&PostParams::default(), &owned).await.unwrap();
    let uid = owned.metadata.uid.unwrap();
    maps.delete("owner", &DeleteParams::foreground()).await.unwrap();
    let gone = kube::runtime::wait::await_condition(
        maps.clone(),
        "owned",
        kube::runtime::wait::conditions::is_deleted(&uid),
    );
    tokio::time::timeout(PATIENCE, gone).await.expect("the owned object goes").unwrap();

    let namespaces: Api<Namespace> = Api::all(cluster.client.clone());
    let namespace = serde_json::from_value(json!({ "metadata": { "name": "team" } })).unwrap();
    let namespace: Namespace = namespaces.create(&PostParams::default(), &namespace).await.unwrap();
    let pods: Api<Pod> = Api::namespaced(cluster.client.clone(), "team");
    let pod = json!({ "metadata": { "name": "p" }, "spec": { "nodeName": "n", "containers": [{ "name": "c", "image": "i" }] } });
    pods.create(&PostParams::default(), &serde_json::from_value(pod).unwrap()).await.unwrap();
    namespaces.delete("team", &DeleteParams::default()).await.unwrap();
    let terminating = async {
        while pods.get("p").await.unwrap().metadata.deletion_timestamp.is_none() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, terminating).await.expect("the pod is told to end");
    let late = cluster.client.clone();
    let late: Api<ConfigMap> = Api::namespaced(late, "team");
    assert_eq!(
        code(&late.create(&PostParams::default(), &map("late", json!({}))).await.unwrap_err()),
        403
    );
    pods.delete("p", &DeleteParams::default().grace_period(0)).await.unwrap();
    let uid = namespace.metadata.uid.unwrap();
    let gone = kube::runtime::wait::await_condition(
        namespaces,
        "team",
        kube::runtime::wait::conditions::is_deleted(&uid),
    );
    tokio::time::timeout(PATIENCE, gone).await.expect("the namespace goes").unwrap();
    cluster.server.shutdown().await;
}

#[tokio::test]
async fn strangers_are_turned_away() {
    let cluster = Cluster::start(Config::default()).await;
    let with = |change: fn(&mut Value)| {
        let text = cluster.server.kubeconfig(&cluster.url, "test");
        let mut kubeconfig: Value = serde_saphyr::from_str(&text).unwrap();
        change(&mut kubeconfig["users"][0]["user"]);
        let kubeconfig: Kubeconfig = serde_json::from_value(kubeconfig).unwrap();
        async {
            let options = KubeConfigOptions::default();
            let config = ClientConfig::from_custom_kubeconfig(kubeconfig, &options).await.unwrap();
            let maps: Api<ConfigMap> = Api::default_namespaced(Client::try_from(config).unwrap());
            maps.list(&ListParams::default()).await
        }
    };
    assert_eq!(code(&with(|user| *user = json!({})).await.unwrap_err()), 403);
    assert_eq!(code(&with(|user| *user = json!({ "token": "guess" })).await.unwrap_err()), 401);
    assert!(with(|_| {}).await.is_ok());
    let token = cluster.server.admin_token().to_owned();
    let mut config = ClientConfig::new(cluster.url.parse().unwrap());
    let pem = cluster.server.ca_pem().to_owned();
    config.root_cert = Some(vec![der(&pem)]);
    config.auth_info.token = Some(token.into());
    let maps: Api<ConfigMap> = Api::default_namespaced(Client::try_from(config).unwrap());
    assert!(maps.list(&ListParams::default()).await.is_ok());
    cluster.server.shutdown().await;
}

#[tokio::test]
async fn the_state_outlives_the_process() {
    let directory = std::env::temp_dir().join(format!("lab-apiserver-{}", std::process::id()));
    let config = || Config { persistence: Some(directory.clone()), ..Config::default() };
    let cluster = Cluster::start(config()).await;
    let definitions: Api<kube::core::DynamicObject> = Api::all_with(
        cluster.client.clone(),
        &kube::core::ApiResource::erase::<CustomResourceDefinition>(&()),
    );
    let definition = json!({ "metadata": { "name": "things.example.com" }, "spec": {
        "group": "example.com", "scope": "Cluster", "names": { "plural": "things", "kind": "Thing" },
        "versions": [{ "name": "v1", "served": true, "storage": true,
            "schema": { "openAPIV3Schema": { "type": "object", "x-kubernetes-preserve-unknown-fields": true } } }] } });
    definitions
        .create(&PostParams::default(), &serde_json::from_value(definition).unwrap())
        .await
        .unwrap();
    let before = cluster
        .maps()
        .create(&PostParams::default(), &map("kept", json!({ "a": "b" })))
        .await
        .unwrap();
    cluster.maps().create(&PostParams::default(), &map("gone", json!({}))).await.unwrap();
    cluster.maps().delete("gone", &DeleteParams::default()).await.unwrap();
    let old_client = cluster.server.kubeconfig("https://x", "test");
    cluster.server.shutdown().await;

    let cluster = Cluster::start(config()).await;
    assert_eq!(cluster.server.kubeconfig("https://x", "test"), old_client);
    let after = cluster.maps().get("kept").await.unwrap();
    assert_eq!(after, before);
    assert!(cluster.maps().get_opt("gone").await.unwrap().is_none());
    // The definition is served again.
    let things: Value = cluster
        .client
        .request(http::Request::get("/apis/example.com/v1/things").body(Vec::new()).unwrap())
        .await
        .unwrap();
    assert_eq!(things["kind"], "ThingList");
    // Watches go on where they were.
    let version = before.metadata.resource_version.unwrap();
    let params = WatchParams::default().fields("metadata.name=gone");
    let mut events = cluster.maps().watch(&params, &version).await.unwrap().boxed();
    let mut next = async || {
        tokio::time::timeout(PATIENCE, events.try_next()).await.expect("an event").unwrap()
    };
    assert!(matches!(next().await, Some(WatchEvent::Added(_))));
    assert!(matches!(next().await, Some(WatchEvent::Deleted(_))));
    cluster.server.shutdown().await;

    // What is older than the last start but one is not known any more: they must list again.
    let cluster = Cluster::start(config()).await;
    let mut events = cluster.maps().watch(&params, &version).await.unwrap().boxed();
    let event = tokio::time::timeout(PATIENCE, events.try_next()).await.unwrap().unwrap();
    assert!(matches!(event, Some(WatchEvent::Error(status)) if status.code == 410));
    cluster.server.shutdown().await;
    std::fs::remove_dir_all(directory).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reflector_whose_version_has_expired_lists_again() {
    let cluster = Cluster::start(Config::default()).await;
    let maps = cluster.maps();
    maps.create(&PostParams::default(), &map("busy", json!({ "n": "first" }))).await.unwrap();
    maps.create(&PostParams::default(), &map("gone", json!({}))).await.unwrap();
    let (store, writer) = reflector::store();
    let config = WatcherConfig::default().labels("test=yes");
    let stream = reflector(writer, watcher(maps.clone(), config)).default_backoff();
    let follow = tokio::spawn(stream.for_each(|_| async {}));
    tokio::time::timeout(PATIENCE, store.wait_until_ready()).await.unwrap().unwrap();
    // While it is cut off more happens than the server remembers.
    cluster.server.set_serving(false);
    let api = cluster.server.api();
    let options = WriteOptions::by("test");
    let target = |name: &str| api.target("configmaps", "default", name).unwrap();
    api.delete(&target("gone"), &Default::default()).unwrap();
    for n in 0..9_000 {
        let patch = lab::apiserver::Patch::Merge(json!({ "data": { "n": n.to_string() } }));
        api.patch(&target("busy"), &patch, &options).unwrap();
    }
    cluster.server.set_serving(true);
    let seen = async {
        loop {
            let all = store.state();
            if let [only] = all.as_slice()
                && only.data.as_ref().is_some_and(|data| data["n"] == "8999")
            {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(6 * PATIENCE, seen).await.expect("the reflector catches up");
    follow.abort();
    cluster.server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_watches_see_every_write_in_order() {
    const WATCHES: usize = 50;
    const WRITES: usize = 500;
    let cluster = Cluster::start(Config::default()).await;
    let version = cluster.server.api().store.resource_version().to_string();
    let mut watches = tokio::task::JoinSet::new();
    for _ in 0..WATCHES {
        let maps = cluster.maps();
        let version = version.clone();
        watches.spawn(async move {
            let params = WatchParams::default().labels("test=yes");
            let mut events = maps.watch(&params, &version).await.unwrap().boxed();
            let mut seen = Vec::new();
            while seen.len() < WRITES {
                match events.try_next().await.unwrap().expect("the watch goes on") {
                    WatchEvent::Added(object) => seen.push(object.metadata.name.unwrap()),
                    WatchEvent::Bookmark(_) => {}
                    other => panic!("{other:?}"),
                }
            }
            seen
        });
    }
    let start = std::time::Instant::now();
    let writers = (0..10).map(|writer| {
        let maps = cluster.maps();
        async move {
            for n in 0..WRITES / 10 {
                let name = format!("m{writer}-{n}");
                maps.create(&PostParams::default(), &map(&name, json!({}))).await.unwrap();
            }
        }
    });
    futures::future::join_all(writers).await;
    let rate = WRITES as f64 / start.elapsed().as_secs_f64();
    let told = tokio::time::timeout(6 * PATIENCE, watches.join_all()).await.expect("all is told");
    println!("{rate:.0} writes/s with {WATCHES} watches");
    assert!(told.iter().all(|one| one == &told[0]), "all watches see the same order");
    cluster.server.shutdown().await;
}

/// A definition of `things.example.com` whose objects have this specification.
fn definition_of_things(spec: Value) -> Value {
    json!({ "metadata": { "name": "things.example.com" }, "spec": {
        "group": "example.com", "scope": "Cluster", "names": { "plural": "things", "kind": "Thing" },
        "versions": [{ "name": "v1", "served": true, "storage": true,
            "schema": { "openAPIV3Schema": { "type": "object", "properties": { "spec": spec } } } }] } })
}

fn things(client: &Client) -> Api<kube::core::DynamicObject> {
    let gvk = kube::core::GroupVersionKind::gvk("example.com", "v1", "Thing");
    Api::all_with(client.clone(), &kube::core::ApiResource::from_gvk_with_plural(&gvk, "things"))
}

fn thing(value: Value) -> kube::core::DynamicObject {
    serde_json::from_value(value).unwrap()
}

#[tokio::test]
async fn a_definition_waits_for_its_last_object() {
    let cluster = Cluster::start(Config::default()).await;
    let definitions: Api<CustomResourceDefinition> = Api::all(cluster.client.clone());
    let definition = definition_of_things(json!({ "type": "object" }));
    let definition = serde_json::from_value(definition).unwrap();
    definitions.create(&PostParams::default(), &definition).await.unwrap();
    let things = things(&cluster.client);
    let held = json!({ "apiVersion": "example.com/v1", "kind": "Thing",
        "metadata": { "name": "held", "finalizers": ["example.com/hold"] } });
    things.create(&PostParams::default(), &thing(held)).await.unwrap();
    definitions.delete("things.example.com", &DeleteParams::default()).await.unwrap();
    // The object is told to go, and is still there for whoever holds it.
    let going = async {
        while things.get("held").await.unwrap().metadata.deletion_timestamp.is_none() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, going).await.expect("the object is deleted");
    let left = definitions.get("things.example.com").await.unwrap();
    let conditions = left.status.unwrap().conditions.unwrap();
    assert!(conditions.iter().any(|one| one.type_ == "Terminating" && one.status == "True"));
    let more =
        json!({ "apiVersion": "example.com/v1", "kind": "Thing", "metadata": { "name": "more" } });
    let refused = things.create(&PostParams::default(), &thing(more)).await.unwrap_err();
    assert_eq!(code(&refused), 405);
    let release = json!({ "metadata": { "finalizers": null } });
    things.patch("held", &PatchParams::default(), &Patch::Merge(release)).await.unwrap();
    let gone = async {
        while definitions.get_opt("things.example.com").await.unwrap().is_some() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, gone).await.expect("the definition goes");
    assert_eq!(code(&things.list(&ListParams::default()).await.unwrap_err()), 404);
    cluster.server.shutdown().await;
}

#[tokio::test]
async fn rules_of_definitions_are_asked() {
    let cluster = Cluster::start(Config::default()).await;
    let definitions: Api<CustomResourceDefinition> = Api::all(cluster.client.clone());
    let with = |rule: &str| {
        let spec = json!({ "type": "object", "properties": { "name": { "type": "string" }, "cidr": { "type": "string" } },
            "x-kubernetes-validations": [
                { "rule": rule, "message": "name is immutable" },
                { "rule": "!has(self.cidr) || isCIDR(self.cidr)", "fieldPath": ".cidr", "messageExpression": "self.cidr + ' is no prefix'" }] });
        serde_json::from_value::<CustomResourceDefinition>(definition_of_things(spec)).unwrap()
    };
    let broken = definitions.create(&PostParams::default(), &with("self.nothing == 1")).await;
    let Err(kube::Error::Api(status)) = broken else { panic!("a broken rule is accepted") };
    assert_eq!(status.code, 422);
    assert!(status.message.contains("spec.versions[0].schema.openAPIV3Schema.properties[spec].x-kubernetes-validations[0].rule: Invalid value"), "{}", status.message);
    assert!(status.message.contains("undefined field 'nothing'"), "{}", status.message);
    definitions.create(&PostParams::default(), &with("self.name == oldSelf.name")).await.unwrap();

    let things = things(&cluster.client);
    let named = |name: &str, cidr: &str| {
        thing(
            json!({ "apiVersion": "example.com/v1", "kind": "Thing", "metadata": { "name": "t" }, "spec": { "name": name, "cidr": cidr } }),
        )
    };
    let refused = things.create(&PostParams::default(), &named("a", "10.0.0.0")).await.unwrap_err();
    let words = r#"Thing.example.com "t" is invalid: spec.cidr: Invalid value: "object": 10.0.0.0 is no prefix"#;
    assert!(matches!(&refused, kube::Error::Api(status) if status.message == words), "{refused}");
    things.create(&PostParams::default(), &named("a", "10.0.0.0/8")).await.unwrap();
    let patch = |name: &str| Patch::Merge(json!({ "spec": { "name": name } }));
    things.patch("t", &PatchParams::default(), &patch("a")).await.unwrap();
    let refused = things.patch("t", &PatchParams::default(), &patch("b")).await.unwrap_err();
    assert!(refused.to_string().contains("name is immutable"), "{refused}");
    cluster.server.shutdown().await;
}
