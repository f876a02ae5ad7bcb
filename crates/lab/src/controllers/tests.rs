//! The controllers together, on a store of their own, one reconciliation at a time: what holds at
//! every moment, and that everything comes to rest where it should.

use proptest::prelude::*;
use tokio::sync::mpsc::UnboundedReceiver;

use super::*;
use crate::apiserver::Target;

struct Cluster {
    controllers: Controllers,
    changes: UnboundedReceiver<Written>,
    /// Pods that have been made Ready, for their addresses.
    started: u32,
}

impl Cluster {
    fn new() -> Self {
        let api = Arc::new(Api::new(String::new()));
        let changes = api.store.listen();
        let mut cluster = Self { controllers: Controllers::new(api), changes, started: 0 };
        cluster.create("namespaces", json!({ "metadata": { "name": "default" } }));
        cluster
    }

    fn target(&self, resource: &str, name: &str) -> Target {
        let namespace = if ["nodes", "namespaces"].contains(&resource) { "" } else { "default" };
        self.controllers.api.target(resource, namespace, name).unwrap()
    }

    fn create(&mut self, resource: &str, object: Value) {
        let options = WriteOptions::by("test");
        self.controllers.api.create(&self.target(resource, ""), object, &options).unwrap();
    }

    fn merge(&self, resource: &str, name: &str, patch: Value) {
        let options = WriteOptions::by("test");
        self.controllers
            .api
            .patch(&self.target(resource, name), &Patch::Merge(patch), &options)
            .unwrap();
    }

    fn get(&self, resource: &str, name: &str) -> Value {
        self.controllers.api.get(&self.target(resource, name)).unwrap().value()
    }

    fn all(&self, resource: &str) -> Vec<Value> {
        let (_, objects) = self.controllers.api.store.list(&resource.into());
        objects.values().map(|object| object.value()).collect()
    }

    /// One reconciliation. `false`: nothing is to be done.
    fn step(&mut self) -> bool {
        while let Ok(written) = self.changes.try_recv() {
            self.controllers.note(&written);
        }
        let Some(work) = self.controllers.take() else { return false };
        self.controllers.reconcile(&work);
        true
    }

    fn settle(&mut self) {
        for _ in 0..10_000 {
            if !self.step() {
                return;
            }
        }
        panic!("the controllers do not come to rest:\n{:#?}", self.controllers.queue);
    }

    /// Makes the first pod Ready that is not, as a node does.
    fn start_pod(&mut self) -> bool {
        let pods = self.all(PODS);
        let Some(pod) = pods.iter().find(|pod| !pods::is_ready(pod) && pods::is_active(pod)) else {
            return false;
        };
        self.started += 1;
        let ips = [
            json!({ "ip": format!("10.0.0.{}", self.started) }),
            json!({ "ip": format!("fd00::{}", self.started) }),
        ];
        self.set_status(pods::name(pod), json!({ "phase": "Running", "podIP": ips[0]["ip"], "podIPs": ips,
            "conditions": [{ "type": "Ready", "status": "True", "lastTransitionTime": "2020-01-01T00:00:00Z" }] }));
        true
    }

    fn set_status(&self, pod: &str, status: Value) {
        let mut target = self.target(PODS, pod);
        target.subresource = "status".into();
        let patch = Patch::Merge(json!({ "status": status }));
        self.controllers.api.patch(&target, &patch, &WriteOptions::by("kubelet")).unwrap();
    }

    /// Until there is nothing left to do for anybody.
    fn converge(&mut self) {
        self.settle();
        while self.start_pod() {
            self.settle();
        }
    }
}

fn deployment(replicas: i64, strategy: Value) -> Value {
    json!({ "metadata": { "name": "web" }, "spec": { "replicas": replicas, "strategy": strategy,
        "selector": { "matchLabels": { "app": "web" } }, "template": template("web", "image:1") } })
}

fn template(app: &str, image: &str) -> Value {
    json!({ "metadata": { "labels": { "app": app } }, "spec": { "containers": [
        { "name": "c", "image": image, "ports": [{ "name": "http", "containerPort": 8080 }] }] } })
}

fn image(pod: &Value) -> &str {
    pod["spec"]["containers"][0]["image"].as_str().unwrap()
}

fn set_image(image: &str) -> Value {
    json!({ "spec": { "template": template("web", image) } })
}

#[derive(Clone, Debug)]
enum Step {
    Reconcile,
    StartPod,
    Scale(i64),
    Image(u8),
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    /// A rolling update never asks for more than `maxSurge` allows and never takes away more than
    /// `maxUnavailable` allows, whatever the order of events, and ends with the new form alone.
    #[test]
    fn rolling_updates_keep_their_bounds(
        replicas in 1_i64..8,
        (surge, unavailable) in (0_i64..4, 0_i64..4).prop_filter("one must be allowed", |(a, b)| a + b > 0),
        choices in prop::collection::vec(any::<bool>(), 0..200),
    ) {
        let rolling = json!({ "type": "RollingUpdate",
            "rollingUpdate": { "maxSurge": surge, "maxUnavailable": unavailable } });
        let mut cluster = Cluster::new();
        cluster.create(DEPLOYMENTS, deployment(replicas, rolling));
        cluster.converge();
        cluster.merge(DEPLOYMENTS, "web", set_image("image:2"));
        let mut choices = choices.into_iter();
        loop {
            let first = choices.next().unwrap_or(true);
            let moved = match first {
                true => cluster.step() || cluster.start_pod(),
                false => cluster.start_pod() || cluster.step(),
            };
            let pods = cluster.all(PODS);
            let ready = pods.iter().filter(|pod| pods::is_ready(pod)).count() as i64;
            prop_assert!(pods.len() as i64 <= replicas + surge, "{} pods", pods.len());
            prop_assert!(ready >= replicas - unavailable.min(replicas), "{ready} pods are ready");
            if !moved {
                break;
            }
        }
        let pods = cluster.all(PODS);
        prop_assert_eq!(pods.len() as i64, replicas);
        prop_assert!(pods.iter().all(|pod| image(pod) == "image:2"));
        let status = cluster.get(DEPLOYMENTS, "web")["status"].clone();
        prop_assert_eq!(status["updatedReplicas"].as_i64(), Some(replicas));
        prop_assert_eq!(&pods::condition(&status, "Progressing").unwrap()["reason"], "NewReplicaSetAvailable");
    }

    /// Whatever is asked for in between, in the end there is what was asked for last.
    #[test]
    fn any_history_ends_where_it_should(
        steps in prop::collection::vec(prop_oneof![
            6 => Just(Step::Reconcile), 3 => Just(Step::StartPod),
            1 => (0_i64..6).prop_map(Step::Scale), 1 => (1_u8..4).prop_map(Step::Image),
        ], 0..80),
        recreate in any::<bool>(),
    ) {
        let strategy = json!({ "type": if recreate { "Recreate" } else { "RollingUpdate" } });
        let mut cluster = Cluster::new();
        cluster.create(DEPLOYMENTS, deployment(3, strategy));
        let (mut replicas, mut last) = (3, 1);
        for step in steps {
            match step {
                Step::Reconcile => drop(cluster.step()),
                Step::StartPod => drop(cluster.start_pod()),
                Step::Scale(to) => {
                    replicas = to;
                    cluster.merge(DEPLOYMENTS, "web", json!({ "spec": { "replicas": to } }));
                }
                Step::Image(to) => {
                    last = to;
                    cluster.merge(DEPLOYMENTS, "web", set_image(&format!("image:{to}")));
                }
            }
            if recreate {
                let pods = cluster.all(PODS);
                let same = pods.windows(2).all(|two| image(&two[0]) == image(&two[1]));
                prop_assert!(same, "pods of two forms at once");
            }
        }
        cluster.converge();
        let pods = cluster.all(PODS);
        prop_assert_eq!(pods.len() as i64, replicas);
        let wanted = format!("image:{last}");
        prop_assert!(pods.iter().all(|pod| image(pod) == wanted));
        let deployment = cluster.get(DEPLOYMENTS, "web");
        prop_assert_eq!(&deployment["status"]["observedGeneration"], &deployment["metadata"]["generation"]);
    }

    /// Slices hold each pod once, are never too long, and change no more than they must.
    #[test]
    fn slices_hold_each_pod_once(
        counts in prop::collection::vec(0_usize..260, 1..4),
    ) {
        let service = Arc::new(json!({ "apiVersion": "v1", "kind": "Service",
            "metadata": { "name": "s", "namespace": "default", "uid": "u" },
            "spec": { "clusterIP": "10.96.0.5", "ipFamilies": ["IPv4"], "selector": { "app": "web" },
                "ports": [{ "port": 80, "targetPort": "http", "protocol": "TCP" }] } }));
        let pod = |n: usize| Arc::new(json!({
            "metadata": { "name": format!("p{n}"), "uid": format!("{n}"), "labels": { "app": "web" } },
            "spec": template("web", "i")["spec"],
            "status": { "phase": "Running", "podIP": format!("10.0.{}.{}", n / 250, n % 250 + 1) } }));
        let mut slices: Vec<Arc<Value>> = Vec::new();
        let mut made = 0;
        for count in counts {
            let pods: Vec<_> = (0..count).map(pod).collect();
            let plan = endpoints::plan(&service, &pods, &slices, None);
            for action in plan.actions {
                match action {
                    Action::Create { resource: SLICES, mut object } => {
                        made += 1;
                        object["metadata"]["name"] = json!(format!("s-{made}"));
                        slices.push(Arc::new(object));
                    }
                    Action::Merge { resource: SLICES, object, patch } => {
                        let at = slices.iter().position(|slice| Arc::ptr_eq(slice, &object)).unwrap();
                        let mut new = Value::clone(&slices[at]);
                        new["endpoints"] = patch["endpoints"].clone();
                        new["ports"] = patch["ports"].clone();
                        slices[at] = Arc::new(new);
                    }
                    Action::Delete { resource: SLICES, object } => slices.retain(|slice| !Arc::ptr_eq(slice, &object)),
                    _ => {}
                }
            }
            let lens: Vec<usize> = slices.iter().map(|slice| slice["endpoints"].as_array().unwrap().len()).collect();
            prop_assert!(lens.iter().all(|len| *len <= 100), "{lens:?}");
            prop_assert!(!slices.is_empty());
            prop_assert!(slices.len() == 1 || !lens.contains(&0), "{lens:?}");
            let uids: HashSet<String> = slices.iter()
                .flat_map(|slice| slice["endpoints"].as_array().unwrap())
                .map(|endpoint| endpoint["targetRef"]["uid"].to_string()).collect();
            prop_assert_eq!(uids.len(), count);
            prop_assert_eq!(lens.iter().sum::<usize>(), count);
            let again = endpoints::plan(&service, &pods, &slices, None);
            let quiet = again.actions.iter().all(|action| !matches!(action,
                Action::Create { resource: SLICES, .. } | Action::Merge { resource: SLICES, .. } | Action::Delete { .. }));
            prop_assert!(quiet, "{:?}", again.actions);
        }
    }
}

#[test]
fn a_service_follows_its_pods() {
    let mut cluster = Cluster::new();
    cluster.create(DEPLOYMENTS, deployment(2, json!({})));
    cluster.create(
        SERVICES,
        json!({ "metadata": { "name": "web" }, "spec": { "ipFamilyPolicy": "PreferDualStack",
        "selector": { "app": "web" }, "ports": [{ "port": 80, "targetPort": "http" }] } }),
    );
    cluster.settle();
    let slices = cluster.all(SLICES);
    assert_eq!(slices.len(), 2);
    assert!(slices.iter().all(|slice| slice["endpoints"] == json!([])), "{slices:#?}");
    cluster.converge();
    let slices = cluster.all(SLICES);
    assert_eq!(slices.len(), 2);
    for slice in &slices {
        let endpoints = slice["endpoints"].as_array().unwrap();
        assert_eq!(endpoints.len(), 2, "{slice:#}");
        assert_eq!(slice["ports"], json!([{ "name": "", "port": 8080, "protocol": "TCP" }]));
        let conditions = json!({ "ready": true, "serving": true, "terminating": false });
        assert!(endpoints.iter().all(|one| one["conditions"] == conditions), "{slice:#}");
    }
    assert_eq!(
        cluster.get(ENDPOINTS, "web")["subsets"][0]["addresses"].as_array().unwrap().len(),
        2
    );
    // One is no longer ready: it stays, with that said.
    let pod = cluster.all(PODS)[0].clone();
    cluster.set_status(
        pods::name(&pod),
        json!({ "conditions": [{ "type": "Ready", "status": "False" }] }),
    );
    cluster.settle();
    let ready = |slice: &Value| {
        slice["endpoints"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|e| e["conditions"]["ready"] == true)
            .count()
    };
    assert!(cluster.all(SLICES).iter().all(|slice| ready(slice) == 1));
    let subset = cluster.get(ENDPOINTS, "web")["subsets"][0].clone();
    assert_eq!(subset["notReadyAddresses"].as_array().unwrap().len(), 1, "{subset:#}");
    // One that ends says so, and still serves.
    let other = cluster.all(PODS)[1].clone();
    let name = pods::name(&other).to_owned();
    let node = json!({ "target": { "name": "node-1" } });
    cluster
        .controllers
        .api
        .bind(&cluster.target(PODS, &name), &node, &WriteOptions::by("t"))
        .unwrap();
    cluster
        .controllers
        .api
        .delete(&cluster.target(PODS, &name), &DeleteOptions::default())
        .unwrap();
    cluster.settle();
    let slice = cluster.all(SLICES)[0].clone();
    let going = slice["endpoints"]
        .as_array()
        .unwrap()
        .iter()
        .find(|e| e["targetRef"]["name"] == *name)
        .unwrap()
        .clone();
    assert_eq!(
        going["conditions"],
        json!({ "ready": false, "serving": true, "terminating": true })
    );
}

#[test]
fn endpoints_that_users_write_become_slices() {
    let mut cluster = Cluster::new();
    cluster.create(SERVICES, json!({ "metadata": { "name": "ext" }, "spec": { "ports": [{ "name": "p", "port": 80 }] } }));
    cluster.create(ENDPOINTS, json!({ "metadata": { "name": "ext" }, "subsets": [{
        "addresses": [{ "ip": "192.0.2.1" }, { "ip": "2001:db8::1" }], "notReadyAddresses": [{ "ip": "192.0.2.2" }],
        "ports": [{ "name": "p", "port": 8080 }] }] }));
    cluster.settle();
    let slices = cluster.all(SLICES);
    let of = |family: &str| slices.iter().find(|slice| slice["addressType"] == family).unwrap();
    assert_eq!(
        of("IPv4")["endpoints"],
        json!([
        { "addresses": ["192.0.2.1"], "conditions": { "ready": true } },
        { "addresses": ["192.0.2.2"], "conditions": { "ready": false } }])
    );
    assert_eq!(of("IPv6")["endpoints"].as_array().unwrap().len(), 1);
    assert_eq!(of("IPv6")["ports"], json!([{ "name": "p", "port": 8080, "protocol": "TCP" }]));
    cluster.merge(
        ENDPOINTS,
        "ext",
        json!({ "subsets": [{ "addresses": [{ "ip": "192.0.2.1" }], "ports": [{ "port": 9 }] }] }),
    );
    cluster.settle();
    let slices = cluster.all(SLICES);
    assert_eq!(slices.len(), 1, "{slices:#?}");
    assert_eq!(slices[0]["ports"], json!([{ "name": "", "port": 9, "protocol": "TCP" }]));
    // With a selector it is the pods that count.
    cluster.merge(SERVICES, "ext", json!({ "spec": { "selector": { "a": "b" } } }));
    cluster.settle();
    let slices = cluster.all(SLICES);
    assert_eq!((slices.len(), &slices[0]["endpoints"]), (1, &json!([])), "{slices:#?}");
}

#[test]
fn stateful_pods_come_in_order_and_go_in_reverse() {
    let mut cluster = Cluster::new();
    cluster.create(
        STATEFUL_SETS,
        json!({ "metadata": { "name": "db" }, "spec": { "replicas": 3, "serviceName": "db",
        "selector": { "matchLabels": { "app": "db" } }, "template": template("db", "image:1") } }),
    );
    let names = |cluster: &Cluster| {
        cluster.all(PODS).iter().map(|pod| pods::name(pod).to_owned()).collect::<Vec<_>>()
    };
    for expected in [&["db-0"][..], &["db-0", "db-1"], &["db-0", "db-1", "db-2"]] {
        cluster.settle();
        assert_eq!(names(&cluster), expected);
        assert!(cluster.start_pod());
    }
    cluster.settle();
    // An update begins with the last and leaves those below the partition alone.
    cluster.merge(
        STATEFUL_SETS,
        "db",
        json!({ "spec": { "template": template("db", "image:2"),
        "updateStrategy": { "rollingUpdate": { "partition": 1 } } } }),
    );
    cluster.settle();
    assert_eq!(
        cluster.all(PODS).iter().map(image).collect::<Vec<_>>(),
        ["image:1", "image:1", "image:2"]
    );
    cluster.converge();
    assert_eq!(
        cluster.all(PODS).iter().map(image).collect::<Vec<_>>(),
        ["image:1", "image:2", "image:2"]
    );
    // A pod below the partition comes back as it was.
    cluster
        .controllers
        .api
        .delete(&cluster.target(PODS, "db-0"), &DeleteOptions::default())
        .unwrap();
    cluster.converge();
    assert_eq!(
        cluster.all(PODS).iter().map(image).collect::<Vec<_>>(),
        ["image:1", "image:2", "image:2"]
    );
    cluster.merge(
        STATEFUL_SETS,
        "db",
        json!({ "spec": { "updateStrategy": { "rollingUpdate": { "partition": 0 } } } }),
    );
    cluster.converge();
    let status = cluster.get(STATEFUL_SETS, "db")["status"].clone();
    assert_eq!(status["currentRevision"], status["updateRevision"], "{status:#}");
    assert_eq!((&status["readyReplicas"], &status["updatedReplicas"]), (&json!(3), &json!(3)));
    cluster.merge(STATEFUL_SETS, "db", json!({ "spec": { "replicas": 1 } }));
    cluster.converge();
    assert_eq!(names(&cluster), ["db-0"]);
}

#[test]
fn a_daemon_set_replaces_one_pod_after_the_other() {
    let mut cluster = Cluster::new();
    for n in 1..=4 {
        cluster.create(NODES, json!({ "metadata": { "name": format!("node-{n}"), "labels": { "even": (n % 2 == 0).to_string() } } }));
    }
    cluster.create(DAEMON_SETS, json!({ "metadata": { "name": "log" }, "spec": {
        "selector": { "matchLabels": { "app": "web" } }, "template": template("web", "image:1") } }));
    cluster.converge();
    assert_eq!(cluster.all(PODS).len(), 4);
    cluster.merge(DAEMON_SETS, "log", set_image("image:2"));
    loop {
        let moved = cluster.step() || cluster.start_pod();
        let ready = cluster.all(PODS).iter().filter(|pod| pods::is_ready(pod)).count();
        assert!(ready >= 3, "{ready} pods are ready");
        if !moved {
            break;
        }
    }
    assert!(cluster.all(PODS).iter().all(|pod| image(pod) == "image:2"));
    let mut only_even = set_image("image:2");
    only_even["spec"]["template"]["spec"]["nodeSelector"] = json!({ "even": "true" });
    cluster.merge(DAEMON_SETS, "log", only_even);
    cluster.converge();
    assert_eq!(cluster.all(PODS).len(), 2);
    let status = cluster.get(DAEMON_SETS, "log")["status"].clone();
    assert_eq!((&status["desiredNumberScheduled"], &status["numberReady"]), (&json!(2), &json!(2)));
}

#[test]
fn a_daemon_set_that_may_surge_has_a_working_pod_everywhere_at_all_times() {
    let mut cluster = Cluster::new();
    for n in 1..=3 {
        cluster.create(NODES, json!({ "metadata": { "name": format!("node-{n}") } }));
    }
    cluster.create(
        DAEMON_SETS,
        json!({ "metadata": { "name": "log" }, "spec": {
        "updateStrategy": { "rollingUpdate": { "maxSurge": 1, "maxUnavailable": 0 } },
        "selector": { "matchLabels": { "app": "web" } }, "template": template("web", "image:1") } }),
    );
    cluster.converge();
    cluster.merge(DAEMON_SETS, "log", set_image("image:2"));
    loop {
        let moved = cluster.step() || cluster.start_pod();
        let pods = cluster.all(PODS);
        let ready = pods.iter().filter(|pod| pods::is_ready(pod)).count();
        assert!(ready >= 3 && pods.len() <= 4, "{ready} of {} pods are ready", pods.len());
        if !moved {
            break;
        }
    }
    let pods = cluster.all(PODS);
    assert_eq!(pods.len(), 3);
    assert!(pods.iter().all(|pod| image(pod) == "image:2"));
}

#[test]
fn an_update_that_gets_nowhere_is_said_so() {
    let mut cluster = Cluster::new();
    let mut slow = deployment(2, json!({}));
    slow["spec"]["progressDeadlineSeconds"] = json!(60);
    cluster.create(DEPLOYMENTS, slow);
    cluster.settle();
    let reason = |plan: &Plan| {
        let mut statuses = plan.actions.iter().filter_map(|action| match action {
            Action::Status { status, .. } => pods::condition(status, "Progressing"),
            _ => None,
        });
        statuses.next_back().map(|one| one["reason"].as_str().unwrap().to_owned())
    };
    let deployment = Arc::new(cluster.get(DEPLOYMENTS, "web"));
    let sets: Vec<_> = cluster.all(REPLICA_SETS).into_iter().map(Arc::new).collect();
    let now = k8s_openapi::jiff::Timestamp::now().as_second();
    let soon = deployment::plan(&deployment, &sets, &[], now + 5);
    assert!(
        soon.again_after.is_some_and(|wait| (50..=60).contains(&wait)),
        "{:?}",
        soon.again_after
    );
    let late = deployment::plan(&deployment, &sets, &[], now + 61);
    assert_eq!(reason(&late).as_deref(), Some("ProgressDeadlineExceeded"));
}

#[test]
fn extreme_numbers_do_no_harm() {
    let mut cluster = Cluster::new();
    let job = json!({ "parallelism": 1, "activeDeadlineSeconds": i64::MAX, "template": { "spec": {
        "restartPolicy": "Never", "containers": [{ "name": "c", "image": "i" }] } } });
    cluster.create(JOBS, json!({ "metadata": { "name": "long" }, "spec": job }));
    let mut large = deployment(3, json!({}));
    large["spec"]["progressDeadlineSeconds"] = json!(i32::MAX);
    large["spec"]["minReadySeconds"] = json!(i32::MAX - 1);
    cluster.create(DEPLOYMENTS, large);
    cluster.converge();
    cluster.merge(DEPLOYMENTS, "web", set_image("image:2"));
    cluster.settle();
    cluster.merge(DEPLOYMENTS, "web", json!({ "spec": { "replicas": 0 } }));
    cluster.converge();
    let pods = cluster.all(PODS);
    assert!(pods.iter().all(|pod| pods::name(pod).starts_with("long-")), "{pods:#?}");
}

#[test]
fn a_process_that_starts_again_goes_on() {
    let mut before = Cluster::new();
    before.create(DEPLOYMENTS, deployment(3, json!({})));
    before.step();
    let api = before.controllers.api.clone();
    let changes = api.store.listen();
    let mut after = Cluster { controllers: Controllers::new(api), changes, started: 0 };
    after.controllers.resume();
    after.converge();
    assert_eq!(after.get(DEPLOYMENTS, "web")["status"]["availableReplicas"], 3);
    assert_eq!(after.all(PODS).len(), 3);
}

#[test]
fn a_job_ends_well_or_badly() {
    let job = |limit: i64| {
        json!({ "metadata": { "name": "sum" }, "spec": { "completions": 3, "parallelism": 2, "backoffLimit": limit,
        "template": { "spec": { "restartPolicy": "Never", "containers": [{ "name": "c", "image": "i" }] } } } })
    };
    let finish = |cluster: &mut Cluster, phase: &str| {
        let pods = cluster.all(PODS);
        let pod = pods.iter().find(|pod| pods::is_active(pod)).unwrap();
        cluster.set_status(pods::name(pod), json!({ "phase": phase }));
        cluster.settle();
    };
    let mut cluster = Cluster::new();
    cluster.create(JOBS, job(6));
    cluster.settle();
    assert_eq!(cluster.all(PODS).len(), 2);
    for _ in 0..3 {
        finish(&mut cluster, "Succeeded");
    }
    let status = cluster.get(JOBS, "sum")["status"].clone();
    assert_eq!((&status["succeeded"], &status["active"]), (&json!(3), &json!(0)));
    assert_eq!(pods::condition(&status, "Complete").unwrap()["status"], "True");

    let mut cluster = Cluster::new();
    cluster.create(JOBS, job(0));
    cluster.settle();
    finish(&mut cluster, "Failed");
    let status = cluster.get(JOBS, "sum")["status"].clone();
    assert_eq!(pods::condition(&status, "Failed").unwrap()["reason"], "BackoffLimitExceeded");
    assert!(cluster.all(PODS).iter().all(|pod| !pods::is_active(pod)));
}
