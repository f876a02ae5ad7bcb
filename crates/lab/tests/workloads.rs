//! Stock `kubectl` with workloads: what people do with Deployments and the like, against the API
//! server with its controllers. Needs no root: the test itself plays the nodes.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use lab::apiserver::{Api, ApiServer, Config, DeleteOptions, Patch, WriteOptions};
use lab::controllers;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

const NODES: [&str; 2] = ["node-1", "node-2"];

const DEPLOYMENT: &str = "
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, annotations: {kubernetes.io/change-cause: first}}
spec:
  replicas: 3
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec: {containers: [{name: web, image: 'nginx:1.25', ports: [{name: http, containerPort: 8080}]}]}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  type: NodePort
  ipFamilyPolicy: PreferDualStack
  selector: {app: web}
  ports: [{port: 80, targetPort: http}]
";

const STATEFUL_SET: &str = "
apiVersion: v1
kind: Service
metadata: {name: db}
spec: {clusterIP: None, selector: {app: db}, ports: [{port: 5432}]}
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: db}
spec:
  serviceName: db
  replicas: 2
  selector: {matchLabels: {app: db}}
  template:
    metadata: {labels: {app: db}}
    spec: {containers: [{name: db, image: 'postgres:16'}]}
";

const DAEMON_SET: &str = "
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: log}
spec:
  selector: {matchLabels: {app: log}}
  template:
    metadata: {labels: {app: log}}
    spec: {containers: [{name: log, image: 'fluent:1'}]}
";

const JOB: &str = "
apiVersion: batch/v1
kind: Job
metadata: {name: sum}
spec:
  completions: 3
  parallelism: 2
  template:
    spec: {restartPolicy: Never, containers: [{name: sum, image: 'once:1'}]}
";

struct Lab {
    runtime: tokio::runtime::Runtime,
    api: Arc<Api>,
    home: PathBuf,
    kubeconfig: PathBuf,
    stop: CancellationToken,
    server: Option<ApiServer>,
}

impl Lab {
    fn start(name: &str) -> Self {
        let home =
            std::env::temp_dir().join(format!("lab-workloads-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&home).expect("temporary directory");
        let runtime = tokio::runtime::Runtime::new().expect("runtime");
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("loopback");
        let address = listener.local_addr().expect("bound");
        let config = Config {
            listeners: vec![listener],
            server_names: vec!["127.0.0.1".into()],
            advertised: vec![address],
            ..Config::default()
        };
        let server = runtime.block_on(ApiServer::start(config)).expect("the API server starts");
        let kubeconfig = home.join("kubeconfig");
        let url = format!("https://{address}");
        std::fs::write(&kubeconfig, server.kubeconfig(&url, "test")).expect("kubeconfig");
        let (api, stop) = (server.api(), CancellationToken::new());
        let nodes = api.target("nodes", "", "").expect("nodes");
        for name in NODES {
            let node = json!({ "metadata": { "name": name, "labels": { "kubernetes.io/hostname": name } },
                "status": { "conditions": [{ "type": "Ready", "status": "True" }] } });
            api.create(&nodes, node, &WriteOptions::by("test")).expect("a node");
        }
        runtime.spawn(controllers::run(api.clone(), stop.clone()));
        runtime.spawn(play_nodes(api.clone(), stop.clone()));
        Self { runtime, api, home, kubeconfig, stop, server: Some(server) }
    }

    fn run(&self, arguments: &str, input: &str) -> (bool, String) {
        let mut child = Command::new("kubectl")
            .env("KUBECONFIG", &self.kubeconfig)
            .env("HOME", &self.home)
            .args(split(arguments))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("kubectl starts");
        child.stdin.take().expect("piped").write_all(input.as_bytes()).expect("kubectl reads");
        let output = child.wait_with_output().expect("kubectl ends");
        let text = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8_lossy(&text).into_owned())
    }

    /// Succeeds, and says all of `expected`, which are separated by `|`.
    fn check(&self, arguments: &str, input: &str, expected: &str) {
        self.expect(arguments, input, expected, true);
    }

    fn refused(&self, arguments: &str, input: &str, expected: &str) {
        self.expect(arguments, input, expected, false);
    }

    fn expect(&self, arguments: &str, input: &str, expected: &str, ok: bool) {
        let (was_ok, text) = self.run(arguments, input);
        assert_eq!(was_ok, ok, "kubectl {arguments}\n{input}\n{text}");
        for part in expected.split('|') {
            assert!(text.contains(part), "kubectl {arguments}\nlacks {part:?}:\n{text}");
        }
    }

    /// Says `expected` before long.
    fn becomes(&self, arguments: &str, expected: &str) {
        let deadline = Instant::now() + Duration::from_secs(90);
        loop {
            let (_, text) = self.run(arguments, "");
            if text.trim() == expected {
                return;
            }
            if Instant::now() > deadline {
                let (_, events) = self.run("get events,all -A", "");
                panic!("kubectl {arguments}\nsays {text:?} instead of {expected:?}\n{events}");
            }
        }
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(server) = self.server.take() {
            self.runtime.block_on(server.shutdown());
        }
        let _ = std::fs::remove_dir_all(&self.home);
    }
}

/// Words; single quotes hold them together.
fn split(text: &str) -> Vec<String> {
    let pieces = text.split('\'').enumerate();
    let words = pieces.flat_map(|(n, piece)| match n % 2 {
        0 => piece.split_whitespace().map(str::to_owned).collect(),
        _ => vec![piece.to_owned()],
    });
    words.collect()
}

/// Scheduler and kubelets: pods get a node, addresses, run and become Ready; those of the image
/// `once` succeed, those of the image `broken` never become Ready; what is deleted ends at once.
async fn play_nodes(api: Arc<Api>, stop: CancellationToken) {
    let mut changes = api.store.listen();
    let mut count = 0_u32;
    while let Some(written) = tokio::select! {
        () = stop.cancelled() => None,
        written = changes.recv() => written,
    } {
        if *written.resource != *"pods" {
            continue;
        }
        let key = &written.event.object.key;
        let target = api.target("pods", &key.namespace, &key.name).expect("pods");
        let Ok(pod) = api.get(&target) else { continue };
        let pod = pod.value();
        let options = WriteOptions::by("kubelet");
        if pod["metadata"]["deletionTimestamp"].is_string() {
            let now = DeleteOptions { grace_period_seconds: Some(0), ..DeleteOptions::default() };
            let _ = api.delete(&target, &now);
        } else if pod["spec"]["nodeName"].as_str().unwrap_or_default().is_empty() {
            let affinity = &pod["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"];
            let meant = affinity["nodeSelectorTerms"][0]["matchFields"][0]["values"][0].as_str();
            let node = meant.unwrap_or(NODES[count as usize % NODES.len()]);
            let _ = api.bind(&target, &json!({ "target": { "name": node } }), &options);
        } else if pod["status"]["phase"] == "Pending" {
            count += 1;
            let status = status(&pod, count);
            let mut target = target;
            target.subresource = "status".into();
            let _ = api.patch(&target, &Patch::Merge(json!({ "status": status })), &options);
        }
    }
}

fn status(pod: &Value, number: u32) -> Value {
    let container = &pod["spec"]["containers"][0];
    let image = container["image"].as_str().unwrap_or_default();
    let once = image.starts_with("once");
    let ready = !once && !image.starts_with("broken");
    let now = lab::apiserver::now();
    let state = match once {
        true => {
            json!({ "terminated": { "exitCode": 0, "reason": "Completed", "finishedAt": now } })
        }
        false => json!({ "running": { "startedAt": now } }),
    };
    json!({
        "phase": if once { "Succeeded" } else { "Running" },
        "podIP": format!("10.0.0.{number}"),
        "podIPs": [{ "ip": format!("10.0.0.{number}") }, { "ip": format!("fd00::{number:x}") }],
        "conditions": [{ "type": "Ready", "status": if ready { "True" } else { "False" }, "lastTransitionTime": now }],
        "containerStatuses": [{ "name": container["name"], "image": image, "imageID": "", "ready": ready,
            "restartCount": 0, "state": state }],
    })
}

fn kubectl_is_here(test: &str) -> bool {
    let found = Command::new("kubectl").args(["version", "--client"]).output().is_ok();
    if !found {
        eprintln!("SKIPPED: {test}: there is no kubectl on the PATH");
    }
    found
}

#[test]
fn deployments_roll() {
    if !kubectl_is_here("deployments_roll") {
        return;
    }
    let k = Lab::start("deployments");
    k.check("apply -f -", DEPLOYMENT, "deployment.apps/web created|service/web created");
    k.check("rollout status deployment/web --timeout=20s", "", "successfully rolled out");
    k.check("wait deployment/web --for=condition=Available --timeout=20s", "", "condition met");
    k.check("apply -f -", DEPLOYMENT, "deployment.apps/web unchanged|service/web unchanged");
    k.becomes(
        "get deployment web -o jsonpath={.status.readyReplicas}/{.status.updatedReplicas}",
        "3/3",
    );
    k.check("get events", "", "SuccessfulCreate|Created pod: web-");
    k.check("get deployments", "", "READY|UP-TO-DATE|3/3");
    k.check(
        "get deploy,rs,pods,svc -o wide",
        "",
        "CONTAINERS|nginx:1.25|pod-template-hash|NodePort",
    );
    k.check(
        "get all",
        "",
        "deployment.apps/web|replicaset.apps/web-|pod/web-|service/web|service/kubernetes",
    );
    k.check(
        "describe deployment web",
        "",
        "3 desired | 3 updated | 3 total | 3 available|NewReplicaSetAvailable|ScalingReplicaSet",
    );
    k.check("describe rs -l app=web", "", "Controlled By:  Deployment/web");
    // Endpoints of both families, by the number behind the port's name.
    k.becomes("get endpointslices -l kubernetes.io/service-name=web -o jsonpath={.items[*].endpoints[*].conditions.ready}", "true true true true true true");
    k.check(
        "get endpointslices -l kubernetes.io/service-name=web",
        "",
        "IPv4|IPv6|8080|10.0.0.|fd00::",
    );
    k.check("get endpoints web", "", "10.0.0.|:8080");
    k.check("describe svc web", "", "IP Families:|IPv4,IPv6|NodePort:|http/TCP");
    k.check("scale deployment web --replicas=5", "", "deployment.apps/web scaled");
    k.check("rollout status deployment/web --timeout=20s", "", "successfully rolled out");
    k.becomes("get deployment web -o jsonpath={.status.availableReplicas}", "5");
    k.refused(
        "scale deployment web --current-replicas=1 --replicas=2",
        "",
        "Expected replicas to be 1, was 5",
    );
    k.check(
        "get --raw /apis/apps/v1/namespaces/default/deployments/web/scale",
        "",
        "autoscaling/v1|\"replicas\":5|app=web",
    );
    // A new form, and back.
    k.check("set image deployment/web web=nginx:1.26", "", "image updated");
    k.check("rollout status deployment/web --timeout=20s", "", "successfully rolled out");
    k.becomes(
        "get pods -l app=web -o jsonpath={.items[*].spec.containers[*].image}",
        &["nginx:1.26"; 5].join(" "),
    );
    k.check("rollout history deployment/web", "", "REVISION|1|2|first");
    k.check("rollout undo deployment/web", "", "rolled back");
    k.check("rollout status deployment/web --timeout=20s", "", "successfully rolled out");
    k.check(
        "get deployment web -o jsonpath={.spec.template.spec.containers[0].image}",
        "",
        "nginx:1.25",
    );
    k.check("rollout history deployment/web", "", "2|3");
    k.check("rollout restart deployment/web", "", "restarted");
    k.check("rollout status deployment/web --timeout=20s", "", "successfully rolled out");
    // A form that does not work leaves most of the old one alone.
    k.check("set image deployment/web web=broken:1", "", "image updated");
    k.refused("rollout status deployment/web --timeout=2s", "", "timed out");
    k.check("get deployment web -o jsonpath={.status.availableReplicas}", "", "4");
    k.check("rollout undo deployment/web", "", "rolled back");
    k.check("rollout status deployment/web --timeout=20s", "", "successfully rolled out");
    k.check("rollout pause deployment/web", "", "paused");
    k.check("rollout resume deployment/web", "", "resumed");
    k.check("delete deployment web --cascade=orphan", "", "deleted");
    k.becomes(
        "get pods -l app=web --no-headers -o custom-columns=S:.status.phase",
        &["Running"; 5].join("\n"),
    );
    k.check("apply -f -", DEPLOYMENT, "deployment.apps/web created");
    k.check("rollout status deployment/web --timeout=20s", "", "successfully rolled out");
    k.check("delete -f -", DEPLOYMENT, "deleted");
    k.becomes(
        "get rs,pods,endpoints,endpointslices -l app=web",
        "No resources found in default namespace.",
    );
    k.becomes("get endpoints -o name", "endpoints/kubernetes");
}

#[test]
fn stateful_sets_keep_their_names() {
    if !kubectl_is_here("stateful_sets_keep_their_names") {
        return;
    }
    let k = Lab::start("statefulsets");
    k.check("apply -f -", STATEFUL_SET, "statefulset.apps/db created");
    k.check("rollout status statefulset/db --timeout=20s", "", "complete");
    k.becomes("get pods -o name", "pod/db-0\npod/db-1");
    k.check("get statefulsets", "", "READY|2/2");
    k.check("get pod db-1 -o jsonpath={.spec.hostname}.{.spec.subdomain}", "", "db-1.db");
    k.becomes("get endpointslices -l kubernetes.io/service-name=db -o jsonpath={.items[*].endpoints[*].hostname}", "db-0 db-1");
    k.check("delete pod db-0", "", "deleted");
    k.check("rollout status statefulset/db --timeout=20s", "", "complete");
    k.becomes("get pods -o name", "pod/db-0\npod/db-1");
    k.check("scale statefulset db --replicas=3", "", "scaled");
    k.becomes("get statefulset db -o jsonpath={.status.readyReplicas}", "3");
    k.check("set image statefulset/db db=postgres:17", "", "updated");
    k.check("rollout status statefulset/db --timeout=20s", "", "complete");
    k.becomes(
        "get pods -o jsonpath={.items[*].spec.containers[*].image}",
        "postgres:17 postgres:17 postgres:17",
    );
    k.check("rollout history statefulset/db", "", "REVISION|1|2");
    k.check("rollout undo statefulset/db", "", "rolled back");
    k.check("rollout status statefulset/db --timeout=20s", "", "complete");
    k.becomes(
        "get pods -o jsonpath={.items[*].spec.containers[*].image}",
        "postgres:16 postgres:16 postgres:16",
    );
    k.check("scale statefulset db --replicas=1", "", "scaled");
    k.becomes("get pods -o name", "pod/db-0");
    k.refused(
        "patch statefulset db -p '{\"spec\":{\"serviceName\":\"x\"}}'",
        "",
        "updates to statefulset spec for fields other than",
    );
    k.check("delete statefulset db", "", "deleted");
    k.becomes("get pods,controllerrevisions", "No resources found in default namespace.");
}

#[test]
fn daemon_sets_are_on_every_node() {
    if !kubectl_is_here("daemon_sets_are_on_every_node") {
        return;
    }
    let k = Lab::start("daemonsets");
    k.check("apply -f -", DAEMON_SET, "daemonset.apps/log created");
    k.check("rollout status daemonset/log --timeout=20s", "", "successfully rolled out");
    k.becomes(
        "get daemonset log -o jsonpath={.status.numberReady}/{.status.desiredNumberScheduled}",
        "2/2",
    );
    k.check("get daemonsets", "", "DESIRED|UP-TO-DATE|NODE SELECTOR|<none>");
    k.check("set image daemonset/log log=fluent:2", "", "updated");
    k.check("rollout status daemonset/log --timeout=20s", "", "successfully rolled out");
    k.becomes("get pods -o jsonpath={.items[*].spec.containers[*].image}", "fluent:2 fluent:2");
    k.check("rollout undo daemonset/log", "", "rolled back");
    k.check("rollout status daemonset/log --timeout=20s", "", "successfully rolled out");
    k.becomes("get pods -o jsonpath={.items[*].spec.containers[*].image}", "fluent:1 fluent:1");
    k.check("taint node node-1 a=b:NoExecute", "", "tainted");
    k.becomes("get pods -o jsonpath={.items[*].spec.nodeName}", "node-2");
    k.check("taint node node-1 a-", "", "untainted");
    k.becomes("get daemonset log -o jsonpath={.status.numberReady}", "2");
    k.check("describe daemonset log", "", "Desired Number of Nodes Scheduled: 2");
    k.check("delete daemonset log", "", "deleted");
    k.becomes("get pods", "No resources found in default namespace.");
}

#[test]
fn jobs_come_to_an_end() {
    if !kubectl_is_here("jobs_come_to_an_end") {
        return;
    }
    let k = Lab::start("jobs");
    k.check("apply -f -", JOB, "job.batch/sum created");
    k.check("wait job/sum --for=condition=Complete --timeout=20s", "", "condition met");
    k.check("get jobs", "", "COMPLETIONS|Complete|3/3");
    k.check("describe job sum", "", "3 Succeeded|Completed");
    k.check("get pods -l job-name=sum", "", "Completed");
    k.check("apply -f -", JOB, "unchanged");
    k.refused("patch job sum -p '{\"spec\":{\"completions\":9}}'", "", "field is immutable");
    let indexed = JOB.replace("name: sum}\n", "name: parts}\n").replace(
        "completions: 3",
        "completions: 3\n  completionMode: Indexed\n  ttlSecondsAfterFinished: 2",
    );
    k.check("apply -f -", &indexed, "created");
    k.check("wait job/parts --for=condition=Complete --timeout=20s", "", "condition met");
    k.check("get job parts -o jsonpath={.status.completedIndexes}", "", "0-2");
    k.becomes("get jobs -o name", "job.batch/sum");
    let late = JOB
        .replace("name: sum}\n", "name: late}\n")
        .replace("once:1", "slow:1")
        .replace("completions: 3", "activeDeadlineSeconds: 1");
    k.check("apply -f -", &late, "created");
    k.check("wait job/late --for=condition=Failed --timeout=20s", "", "condition met");
    k.check("get job late -o jsonpath={.status.conditions[*].reason}", "", "DeadlineExceeded");
    k.check("create job hello --image=once:1", "", "job.batch/hello created");
    k.check("wait job/hello --for=condition=Complete --timeout=20s", "", "condition met");
    k.check("delete job sum late hello", "", "deleted");
    k.becomes("get pods", "No resources found in default namespace.");
}

#[test]
fn services_get_addresses() {
    if !kubectl_is_here("services_get_addresses") {
        return;
    }
    let k = Lab::start("services");
    k.check("get svc kubernetes", "", "ClusterIP|10.96.0.1|443/TCP");
    k.check("get endpointslices kubernetes", "", "IPv4|127.0.0.1");
    k.check("create service clusterip a --tcp=80:8080 --clusterip=10.96.0.10", "", "created");
    k.refused(
        "create service clusterip b --tcp=80:8080 --clusterip=10.96.0.10",
        "",
        "provided IP is already allocated",
    );
    k.refused(
        "create service clusterip b --tcp=80:8080 --clusterip=192.0.2.1",
        "",
        "The range of valid IPs is 10.96.0.0/16",
    );
    k.check("create service nodeport c --tcp=80 --node-port=30080", "", "created");
    k.refused(
        "create service nodeport d --tcp=80 --node-port=30080",
        "",
        "provided port is already allocated",
    );
    k.refused(
        "create service nodeport d --tcp=80 --node-port=80",
        "",
        "The range of valid ports is 30000-32767",
    );
    k.refused(
        "patch service a -p '{\"spec\":{\"clusterIP\":\"10.96.0.11\"}}'",
        "",
        "may not change once set",
    );
    k.check("delete service a", "", "deleted");
    k.check("create service clusterip b --tcp=80:8080 --clusterip=10.96.0.10", "", "created");
    k.check("create deployment web --image=nginx:1.25 --replicas=2 --port=80", "", "created");
    k.check("expose deployment web --port=80", "", "service/web exposed");
    k.becomes("get endpointslices -l kubernetes.io/service-name=web -o jsonpath={.items[*].endpoints[*].conditions.ready}", "true true");
    k.refused(
        "apply -f -",
        &DEPLOYMENT.replace("matchLabels: {app: web}", "matchLabels: {app: x}"),
        "`selector` does not match template `labels`",
    );
}

/// Not through kubectl: how long the controllers themselves take for many pods.
#[test]
fn a_hundred_pods_take_no_time() {
    let k = Lab::start("hundred");
    let began = Instant::now();
    let target = k.api.target("deployments.apps", "default", "").expect("deployments");
    let deployment = json!({ "metadata": { "name": "web" }, "spec": { "replicas": 100,
        "selector": { "matchLabels": { "app": "web" } },
        "template": { "metadata": { "labels": { "app": "web" } },
            "spec": { "containers": [{ "name": "web", "image": "nginx:1" }] } } } });
    k.api.create(&target, deployment, &WriteOptions::by("test")).expect("created");
    let done = || {
        let value = k.api.get(&target.named("web")).expect("there").value();
        value["status"]["readyReplicas"] == 100
    };
    while !done() {
        assert!(began.elapsed() < Duration::from_secs(120), "{:?}", k.run("get deploy,pods", ""));
        std::thread::sleep(Duration::from_millis(10));
    }
    println!("100 pods Ready after {} ms", began.elapsed().as_millis());
}
