//! The operator's process against an API server: from an empty cluster to prefixes on every node,
//! through a restart, exhaustion and nodes that go; nodes that become ready; and what is collected.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use api::crd::manifest::{SCHEMA_VERSION_LABEL, SchemaVersion, crds};
use api::crd::{
    CILIUM_INTERNAL_IP, CiliumEndpoint, CiliumIdentity, CiliumNode, EndpointIdentity, NodeAddress,
};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::runtime::wait::await_condition;
use kube::{Api, Client};
use lab::apiserver::{ApiServer, Config};
use model::IdentityId;
use operator::gc::Collector as _;
use operator::gc::unmanaged::Unmanaged;
use operator::metrics::Metrics;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;

/// Longer than anything here takes, so that a test that hangs ends.
const PATIENCE: Duration = Duration::from_secs(90);

/// An API server, its kubeconfig in a file, and a client of it.
struct Cluster {
    server: ApiServer,
    dir: PathBuf,
    client: Client,
}

impl Cluster {
    async fn start(test: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("https://{}", listener.local_addr().unwrap());
        let server = ApiServer::start(Config {
            listeners: vec![listener],
            server_names: vec!["127.0.0.1".to_owned()],
            ..Config::default()
        })
        .await
        .unwrap();
        let text = server.kubeconfig(&url, "test");
        let dir =
            std::env::temp_dir().join(format!("cilium-operator-{test}-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join("kubeconfig"), &text).unwrap();
        let kubeconfig = Kubeconfig::from_yaml(&text).unwrap();
        let options = KubeConfigOptions::default();
        let config = kube::Config::from_custom_kubeconfig(kubeconfig, &options).await.unwrap();
        Self { server, dir, client: Client::try_from(config).unwrap() }
    }

    fn operator(&self, flags: &[&str]) -> Operator {
        self.operator_on("host", flags)
    }

    fn operator_on(&self, node: &str, flags: &[&str]) -> Operator {
        // A fixed port would be fought for by the tests; a later flag has the last word.
        let child = Command::new(env!("CARGO_BIN_EXE_cilium-operator"))
            .env("K8S_NODE_NAME", node)
            .arg("--operator-prometheus-serve-addr=")
            .arg(format!("--k8s-kubeconfig-path={}", self.dir.join("kubeconfig").display()))
            .args(flags)
            .stderr(Stdio::inherit())
            .spawn()
            .unwrap();
        Operator(child)
    }

    fn nodes(&self) -> Api<CiliumNode> {
        Api::all(self.client.clone())
    }

    async fn create_node(&self, name: &str) {
        self.nodes().create(&PostParams::default(), &CiliumNode::new(name)).await.unwrap();
    }

    /// Waits until `condition` holds for the node, and returns the node.
    async fn node(&self, name: &str, condition: impl Fn(&CiliumNode) -> bool) -> CiliumNode {
        let holds = |node: Option<&CiliumNode>| node.is_some_and(&condition);
        match tokio::time::timeout(PATIENCE, await_condition(self.nodes(), name, holds)).await {
            Ok(node) => node.unwrap().unwrap(),
            Err(_) => panic!("{name} stays {:#?}", self.nodes().get(name).await),
        }
    }

    async fn cidrs_of(&self, name: &str) -> Vec<String> {
        self.node(name, |node| !node.spec.ipam.pod_cidrs.is_empty()).await.spec.ipam.pod_cidrs
    }

    async fn wait_for_crds(&self) {
        let api: Api<CustomResourceDefinition> = Api::all(self.client.clone());
        for crd in crds() {
            let name = crd.metadata.name.unwrap();
            let established = kube::runtime::wait::conditions::is_crd_established();
            let waited = await_condition(api.clone(), &name, established);
            tokio::time::timeout(PATIENCE, waited).await.expect("established in time").unwrap();
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

/// The operator's process; killed without mercy when dropped.
struct Operator(Child);

impl Operator {
    /// Asks it to end and waits until it has.
    fn terminate(mut self) {
        let pid = self.0.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
        assert!(self.0.wait().unwrap().success());
    }
}

impl Drop for Operator {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

const NO_HEALTH: &str = "--operator-api-serve-addr=";

#[tokio::test(flavor = "multi_thread")]
async fn nodes_are_given_prefixes_and_keep_them() {
    let cluster = Cluster::start("prefixes").await;
    let flags = [
        NO_HEALTH,
        "--cluster-pool-ipv4-cidr=10.8.0.0/23",
        "--cluster-pool-ipv6-cidr=fd00:8::/104",
    ];
    let operator = cluster.operator(&flags);
    cluster.wait_for_crds().await;
    cluster.create_node("node-1").await;
    assert_eq!(cluster.cidrs_of("node-1").await, ["10.8.0.0/24", "fd00:8::/120"]);

    // Killed, it starts again from what the objects say.
    drop(operator);
    cluster.create_node("a-node").await;
    let _operator = cluster.operator(&flags);
    assert_eq!(cluster.cidrs_of("a-node").await, ["10.8.1.0/24", "fd00:8::100/120"]);
    assert_eq!(cluster.cidrs_of("node-1").await, ["10.8.0.0/24", "fd00:8::/120"]);

    // The pool is exhausted: nothing by halves, and the node says why.
    cluster.create_node("node-3").await;
    let node = cluster.node("node-3", |n| !n.status.ipam.operator_status.error.is_empty()).await;
    let error = node.status.ipam.operator_status.error;
    assert!(error.starts_with("the IPv4 pool is exhausted: every /24 of 10.8.0.0/23"), "{error}");
    assert!(node.spec.ipam.pod_cidrs.is_empty());

    // What another manager keeps in the object stays.
    let patch =
        Patch::Merge(serde_json::json!({"spec": {"bootid": "b", "ipam": {"min-allocate": 1}}}));
    cluster.nodes().patch("node-3", &PatchParams::default(), &patch).await.unwrap();

    // A node that goes makes room.
    cluster.nodes().delete("node-1", &DeleteParams::default()).await.unwrap();
    assert_eq!(cluster.cidrs_of("node-3").await, ["10.8.0.0/24", "fd00:8::/120"]);
    let node = cluster.node("node-3", |n| n.status.ipam.operator_status.error.is_empty()).await;
    assert_eq!(node.spec.bootid, "b");
}

#[tokio::test(flavor = "multi_thread")]
async fn another_operator_takes_over() {
    let cluster = Cluster::start("leader").await;
    let flags = [
        NO_HEALTH,
        "--leader-election-lease-duration=1s",
        "--leader-election-renew-deadline=800ms",
        "--leader-election-retry-period=100ms",
    ];
    let leases: Api<Lease> = Api::namespaced(cluster.client.clone(), "kube-system");
    let held_by = |holder: &'static str| {
        let holds = move |lease: Option<&Lease>| {
            let holder_now =
                lease.and_then(|lease| lease.spec.as_ref()?.holder_identity.as_deref());
            holder_now == Some(holder)
        };
        let waited = await_condition(leases.clone(), "cilium-operator-resource-lock", holds);
        async move { tokio::time::timeout(PATIENCE, waited).await.expect("held in time").unwrap() }
    };
    let first = cluster.operator_on("first", &flags);
    held_by("first").await;
    let second = cluster.operator_on("second", &flags);
    cluster.create_node("node-1").await;
    assert_eq!(cluster.cidrs_of("node-1").await, ["10.0.0.0/24", "fd00::/120"]);
    drop(first);
    held_by("second").await;
    cluster.create_node("node-2").await;
    assert_eq!(cluster.cidrs_of("node-2").await, ["10.0.1.0/24", "fd00::100/120"]);
    // An operator that ends as it should gives the lease back: no one waits.
    second.terminate();
    held_by_no_one(&leases).await;
}

async fn held_by_no_one(leases: &Api<Lease>) {
    let free = |lease: Option<&Lease>| {
        lease.is_some_and(|lease| {
            lease.spec.as_ref().is_some_and(|spec| spec.holder_identity.is_none())
        })
    };
    let waited = await_condition(leases.clone(), "cilium-operator-resource-lock", free);
    tokio::time::timeout(PATIENCE, waited).await.expect("free in time").unwrap();
}

/// The API server is away for longer than the lease: the operator stops giving, and goes on
/// afterwards from what the objects say.
#[tokio::test(flavor = "multi_thread")]
async fn an_operator_survives_its_api_server() {
    let cluster = Cluster::start("outage").await;
    let health = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let address = format!("--operator-api-serve-addr={health}");
    let flags = [
        address.as_str(),
        "--leader-election-lease-duration=300ms",
        "--leader-election-renew-deadline=200ms",
        "--leader-election-retry-period=50ms",
    ];
    let _operator = cluster.operator(&flags);
    cluster.create_when_served("node-1").await;
    assert_eq!(cluster.cidrs_of("node-1").await, ["10.0.0.0/24", "fd00::/120"]);
    cluster.server.set_serving(false);
    // These are the words of one who wants to lead, not of the leader.
    wait_for_health(health, "cannot read or write the lease").await;
    cluster.server.set_serving(true);
    cluster.create_node("a-node").await;
    assert_eq!(cluster.cidrs_of("a-node").await, ["10.0.1.0/24", "fd00::100/120"]);
    wait_for_health(health, "200 OK").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn older_custom_resources_are_replaced_and_newer_ones_left() {
    let cluster = Cluster::start("crds").await;
    let api: Api<CustomResourceDefinition> = Api::all(cluster.client.clone());
    let mut all = crds().into_iter();
    let (mut node, mut endpoint) = (all.next().unwrap(), all.next().unwrap());
    let label = |crd: &mut CustomResourceDefinition, version: &str| {
        let labels = crd.metadata.labels.as_mut().unwrap();
        labels.insert(SCHEMA_VERSION_LABEL.to_owned(), version.to_owned());
        crd.spec.versions[0].additional_printer_columns = None;
    };
    label(&mut node, "1.9.0");
    label(&mut endpoint, "9.0.0");
    for crd in [&node, &endpoint] {
        api.create(&PostParams::default(), crd).await.unwrap();
    }
    let _operator = cluster.operator(&[NO_HEALTH, "--ipam=kubernetes"]);
    let replaced = |crd: Option<&CustomResourceDefinition>| {
        crd.is_some_and(|crd| SchemaVersion::of(crd) == api::crd::manifest::SCHEMA_VERSION)
    };
    let name = "ciliumidentities.cilium.io";
    tokio::time::timeout(PATIENCE, await_condition(api.clone(), name, replaced))
        .await
        .expect("installed in time")
        .unwrap();
    let columns =
        |crd: CustomResourceDefinition| crd.spec.versions[0].additional_printer_columns.clone();
    assert!(columns(api.get("ciliumnodes.cilium.io").await.unwrap()).is_some(), "replaced");
    let endpoint = api.get("ciliumendpoints.cilium.io").await.unwrap();
    assert_eq!(SchemaVersion::of(&endpoint).to_string(), "9.0.0");
    assert!(columns(endpoint).is_none(), "left alone");
    cluster.wait_for_crds().await;
    let endpoints: Api<CiliumEndpoint> = Api::all(cluster.client.clone());
    assert!(endpoints.list(&ListParams::default()).await.unwrap().items.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_operator_waits_for_its_api_server_and_says_so() {
    let cluster = Cluster::start("health").await;
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    cluster.server.set_serving(false);
    let address = format!("--operator-api-serve-addr={port}");
    let _operator = cluster.operator(&[&address]);
    let reason = "custom-resources: cannot install the custom resource";
    let answer = wait_for_health(port, reason).await;
    assert!(answer.contains("500 Internal Server Error"), "{answer}");
    cluster.server.set_serving(true);
    cluster.create_when_served("node-1").await;
    cluster.cidrs_of("node-1").await;
    let answer = wait_for_health(port, "200 OK").await;
    assert!(answer.ends_with("\r\n\r\nok"), "{answer}");
}

impl Cluster {
    async fn create_when_served(&self, node: &str) {
        self.wait_for_crds().await;
        self.create_node(node).await;
    }
}

/// Asks for the operator's health until the answer contains `text`, and returns that answer.
async fn wait_for_health(address: SocketAddr, text: &'static str) -> String {
    let asking = tokio::task::spawn_blocking(move || {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let answer = get(address, "/healthz");
            if answer.contains(text) {
                return answer;
            }
            assert!(Instant::now() < deadline, "no {text:?}, but {answer:?}");
            // Nothing can be waited for here: asking again is how one learns of health.
            std::thread::sleep(Duration::from_millis(20));
        }
    });
    asking.await.unwrap()
}

/// The whole answer to a GET; empty while nobody listens.
fn get(address: SocketAddr, path: &str) -> String {
    let mut answer = String::new();
    if let Ok(mut stream) = TcpStream::connect(address) {
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        let _ = stream.write_all(request.as_bytes());
        let _ = stream.read_to_string(&mut answer);
    }
    answer
}

/// Waits until `condition` holds for an object, or for its absence.
async fn wait<K>(api: &Api<K>, name: &str, condition: impl Fn(Option<&K>) -> bool) -> Option<K>
where
    K: Clone + std::fmt::Debug + DeserializeOwned + kube::Resource + Send + 'static,
{
    match tokio::time::timeout(PATIENCE, await_condition(api.clone(), name, condition)).await {
        Ok(object) => object.unwrap(),
        Err(_) => panic!("{name} stays {:#?}", api.get_opt(name).await),
    }
}

async fn create<K>(api: &Api<K>, object: serde_json::Value) -> K
where
    K: Clone + std::fmt::Debug + DeserializeOwned + Serialize,
{
    let object: K = serde_json::from_value(object).unwrap();
    api.create(&PostParams::default(), &object).await.unwrap()
}

fn identity(id: u32) -> CiliumIdentity {
    let labels = [format!("k8s:app=a{id}").parse().unwrap()].into_iter().collect();
    CiliumIdentity::new(IdentityId(id), &labels)
}

#[tokio::test(flavor = "multi_thread")]
async fn identities_that_no_one_has_are_marked_and_then_deleted() {
    let cluster = Cluster::start("identities").await;
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let metrics = format!("--operator-prometheus-serve-addr={address}");
    let flags = [
        NO_HEALTH,
        metrics.as_str(),
        "--identity-gc-interval=50ms",
        "--identity-heartbeat-timeout=500ms",
        "--cilium-endpoint-gc-interval=0",
    ];
    let _operator = cluster.operator(&flags);
    cluster.wait_for_crds().await;
    let identities: Api<CiliumIdentity> = Api::all(cluster.client.clone());
    let endpoints: Api<CiliumEndpoint> = Api::namespaced(cluster.client.clone(), "default");
    let mut endpoint = CiliumEndpoint::new("default", "web");
    endpoint.status.identity = Some(EndpointIdentity { id: 256, labels: Vec::new() });
    endpoints.create(&PostParams::default(), &endpoint).await.unwrap();
    for id in [256, 257] {
        identities.create(&PostParams::default(), &identity(id)).await.unwrap();
    }
    let is_marked = |object: &CiliumIdentity| {
        let annotations = object.metadata.annotations.as_ref();
        annotations.is_some_and(|all| all.contains_key("io.cilium.heartbeat"))
    };
    wait(&identities, "257", |object| object.is_some_and(is_marked)).await;
    wait(&identities, "257", |object| object.is_none()).await;
    let used = identities.get("256").await.unwrap();
    assert!(!is_marked(&used), "the one in use is left alone");

    // Its last pod goes, it is marked; a new pod comes, and the mark goes.
    endpoints.delete("web", &DeleteParams::default()).await.unwrap();
    wait(&identities, "256", |object| object.is_some_and(is_marked)).await;
    endpoints.create(&PostParams::default(), &endpoint).await.unwrap();
    wait(&identities, "256", |object| object.is_some_and(|object| !is_marked(object))).await;

    let answer = get(address, "/metrics");
    assert!(answer.contains("text/plain; version=0.0.4"), "{answer}");
    for line in [
        "cilium_operator_identity_gc_entries{identity_type=\"crd\",status=\"alive\"} 1\n",
        "cilium_operator_identity_gc_runs{identity_type=\"crd\",outcome=\"success\"} ",
        "cilium_operator_controllers_group_runs_total{group_name=\"crd-identity-gc\",status=\"failure\"} 0\n",
        "# TYPE cilium_operator_ipam_nodes gauge\n",
    ] {
        assert!(answer.contains(line), "no {line} in {answer}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn endpoints_and_nodes_of_what_is_gone_are_deleted() {
    let cluster = Cluster::start("garbage").await;
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let health = format!("--operator-api-serve-addr={address}");
    let flags = [
        health.as_str(),
        "--cilium-endpoint-gc-interval=100ms",
        "--nodes-gc-interval=100ms",
        "--identity-gc-interval=0",
    ];
    let pods: Api<Pod> = Api::namespaced(cluster.client.clone(), "default");
    for name in ["web", "done"] {
        let spec = json!({"containers": [{"name": "c", "image": "i"}]});
        create(&pods, json!({"metadata": {"name": name}, "spec": spec})).await;
    }
    let status = Patch::Merge(json!({"status": {"phase": "Succeeded"}}));
    pods.patch_status("done", &PatchParams::default(), &status).await.unwrap();
    let nodes: Api<Node> = Api::all(cluster.client.clone());
    create(&nodes, json!({"metadata": {"name": "node-1"}})).await;

    let _operator = cluster.operator(&flags);
    cluster.wait_for_crds().await;
    let endpoints: Api<CiliumEndpoint> = Api::namespaced(cluster.client.clone(), "default");
    for name in ["web", "done", "gone"] {
        let endpoint = CiliumEndpoint::new("default", name);
        endpoints.create(&PostParams::default(), &endpoint).await.unwrap();
    }
    for name in ["node-1", "node-2"] {
        cluster.create_node(name).await;
    }
    let mut kept = CiliumNode::new("node-3");
    let keep = ("cilium.io/do-not-gc".to_owned(), "true".to_owned());
    kept.metadata.annotations = Some([keep].into_iter().collect());
    cluster.nodes().create(&PostParams::default(), &kept).await.unwrap();
    wait(&endpoints, "done", |object| object.is_none()).await;
    wait(&endpoints, "gone", |object| object.is_none()).await;
    wait(&cluster.nodes(), "node-2", |object| object.is_none()).await;
    // Their turn came in the same rounds.
    assert!(endpoints.get("web").await.is_ok());
    assert!(cluster.nodes().get("node-1").await.is_ok());
    assert!(cluster.nodes().get("node-3").await.is_ok());
    nodes.delete("node-1", &DeleteParams::default()).await.unwrap();
    wait(&cluster.nodes(), "node-1", |object| object.is_none()).await;

    let answer = get(address, "/v1/metrics/");
    let (_, body) = answer.split_once("\r\n\r\n").unwrap();
    let samples: Vec<serde_json::Value> = serde_json::from_str(body).unwrap();
    let runs = |sample: &&serde_json::Value| {
        sample["name"] == "cilium_operator_controllers_group_runs_total"
            && sample["labels"] == json!({"group_name": "cilium-node-gc", "status": "success"})
    };
    let runs = samples.iter().find(runs).unwrap_or_else(|| panic!("{body}"));
    assert!(runs["value"].as_f64().unwrap() >= 2.0, "{body}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_is_freed_when_its_agent_is_ready() {
    let cluster = Cluster::start("taint").await;
    let _operator = cluster.operator(&[NO_HEALTH]);
    cluster.wait_for_crds().await;
    let nodes: Api<Node> = Api::all(cluster.client.clone());
    let ready = json!([{"type": "Ready", "status": "True"}]);
    for name in ["node-1", "node-2", "by-pod"] {
        let taint = |key: &str| json!({"key": key, "effect": "NoSchedule"});
        let taints = [taint("theirs"), taint("node.cilium.io/agent-not-ready")];
        create(&nodes, json!({"metadata": {"name": name}, "spec": {"taints": taints}})).await;
        let status = Patch::Merge(json!({"status": {"conditions": ready}}));
        nodes.patch_status(name, &PatchParams::default(), &status).await.unwrap();
    }
    // One agent is a pod that is not ready, the others are services of their machines.
    let pods: Api<Pod> = Api::namespaced(cluster.client.clone(), "kube-system");
    let pod = json!({
        "metadata": {"name": "cilium-x", "labels": {"k8s-app": "cilium"}},
        "spec": {"nodeName": "by-pod", "containers": [{"name": "c", "image": "i"}]},
    });
    create(&pods, pod).await;
    let announced = |name: &str| {
        let mut node = CiliumNode::new(name);
        let ip = "10.0.0.1".to_owned();
        node.spec.addresses = vec![NodeAddress { kind: CILIUM_INTERNAL_IP.to_owned(), ip }];
        node
    };
    let params = PostParams::default();
    cluster.nodes().create(&params, &announced("by-pod")).await.unwrap();
    cluster.nodes().create(&params, &announced("node-1")).await.unwrap();
    cluster.create_node("node-2").await;

    let keys = |node: &Node| -> Vec<String> {
        let taints = node.spec.clone().and_then(|spec| spec.taints).unwrap_or_default();
        taints.into_iter().map(|taint| taint.key).collect()
    };
    let is_free = |node: Option<&Node>| node.is_some_and(|node| keys(node) == ["theirs"]);
    let node = wait(&nodes, "node-1", is_free).await.unwrap();
    let conditions = node.status.unwrap().conditions.unwrap();
    let network = conditions.iter().find(|c| c.type_ == "NetworkUnavailable").unwrap();
    assert_eq!(network.status, "False");
    assert_eq!(network.reason.as_deref(), Some("CiliumIsUp"));
    assert!(conditions.iter().any(|c| c.type_ == "Ready"), "what is the kubelet's stays");
    for name in ["node-2", "by-pod"] {
        assert_eq!(keys(&nodes.get(name).await.unwrap()).len(), 2, "{name} is not ready");
    }
    let status = Patch::Merge(json!({"status": {"conditions": ready}}));
    pods.patch_status("cilium-x", &PatchParams::default(), &status).await.unwrap();
    wait(&nodes, "by-pod", is_free).await;
}

#[test]
fn wrong_options_end_the_operator_with_a_reason() {
    let output = Command::new(env!("CARGO_BIN_EXE_cilium-operator"))
        .args(["--cluster-pool-ipv4-mask-size=31", "--k8s-kubeconfig-path=/no/such"])
        .output()
        .unwrap();
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success());
    assert!(error.contains("cluster-pool-ipv4-mask-size=31 does not fit 10.0.0.0/8"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_the_agent_does_not_know_is_restarted() {
    let cluster = Cluster::start("unmanaged").await;
    operator::crds::install(&cluster.client).await.unwrap();
    let pods: Api<Pod> = Api::namespaced(cluster.client.clone(), "default");
    for (name, label) in [("managed", "kube-dns"), ("unmanaged", "kube-dns"), ("other", "web")] {
        let metadata = json!({"name": name, "labels": {"k8s-app": label}});
        // On a node, so that it stays until that has ended it.
        let spec = json!({"nodeName": "n", "containers": [{"name": "c", "image": "i"}]});
        create(&pods, json!({"metadata": metadata, "spec": spec})).await;
        let status = Patch::Merge(json!({"status": {"phase": "Running"}}));
        pods.patch_status(name, &PatchParams::default(), &status).await.unwrap();
    }
    let endpoints: Api<CiliumEndpoint> = Api::namespaced(cluster.client.clone(), "default");
    let endpoint = CiliumEndpoint::new("default", "managed");
    endpoints.create(&PostParams::default(), &endpoint).await.unwrap();

    let selector = "k8s-app=kube-dns";
    let metrics = Metrics::default();
    let mut patient =
        Unmanaged::new(&cluster.client, selector, Duration::from_secs(3600), metrics.clone());
    assert_eq!(patient.collect().await.unwrap(), "1 unmanaged pods");
    let mut hasty = Unmanaged::new(&cluster.client, selector, Duration::ZERO, metrics);
    let did = hasty.collect().await.unwrap();
    assert_eq!(did, "1 unmanaged pods, default/unmanaged restarted");
    for (name, restarted) in [("managed", false), ("unmanaged", true), ("other", false)] {
        let pod = pods.get(name).await.unwrap();
        assert_eq!(pod.metadata.deletion_timestamp.is_some(), restarted, "{name}");
    }
    // It is on its way.
    assert_eq!(hasty.collect().await.unwrap(), "0 unmanaged pods");
}
