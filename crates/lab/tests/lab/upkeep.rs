//! What controllers do for workloads beside counting pods: volumes that stay, schedules, taints that evict.

use std::time::Duration;

use serde_json::{Value, json};

use crate::world::{Lab, can_run, pod};

const PATIENCE: Duration = Duration::from_secs(60);

fn template(app: &str, script: &str) -> Value {
    json!({"metadata": {"labels": {"app": app}}, "spec": {
        "terminationGracePeriodSeconds": 1,
        "containers": [{"name": "c", "image": "x", "command": ["sh", "-c", script],
            "volumeMounts": []}]}})
}

#[test]
fn stateful_pods_keep_their_volumes() {
    if !can_run("stateful_pods_keep_their_volumes") {
        return;
    }
    let lab = Lab::up(2, &[], &[]);
    let mut template = template("db", "sleep 1000");
    template["spec"]["containers"][0]["volumeMounts"] =
        json!([{"name": "data", "mountPath": "/data"}]);
    lab.apply(&[json!({
        "apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"name": "db"},
        "spec": {"replicas": 2, "serviceName": "db", "selector": {"matchLabels": {"app": "db"}},
            "template": template, "volumeClaimTemplates": [{"metadata": {"name": "data"},
                "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}}]},
    })]);
    lab.kubectl(&["rollout", "status", "statefulset/db", "--timeout=60s"]);
    lab.exec("db-0", &["sh", "-c", "echo zero > /data/who"]);
    lab.exec("db-1", &["sh", "-c", "echo one > /data/who"]);
    let uid = |pod: &str| lab.pod(pod)["metadata"]["uid"].as_str().unwrap().to_owned();
    let before = ["db-0", "db-1"].map(uid);
    // Others of the same names follow at once, which kubectl need not notice.
    lab.kubectl(&["delete", "pod", "db-0", "db-1", "--wait=false"]);
    lab.eventually("new pods run", PATIENCE, || {
        let path = "-o=jsonpath={.metadata.uid} {.status.containerStatuses[0].ready}";
        let new = ["db-0", "db-1"].into_iter().zip(&before).map(|(name, before)| {
            let pod = lab.try_kubectl(&["get", "pod", name, path], "").unwrap_or_default();
            pod.ends_with(" true") && !pod.starts_with(before.as_str())
        });
        new.filter(|new| *new).count() == 2
    });
    assert_eq!(lab.exec("db-0", &["cat", "/data/who"]), "zero");
    assert_eq!(lab.exec("db-1", &["cat", "/data/who"]), "one");
    let claims = lab.kubectl(&["get", "pvc", "--no-headers"]);
    assert_eq!(claims.lines().filter(|line| line.contains("Bound")).count(), 2, "{claims}");
    lab.kubectl(&["delete", "statefulset", "db"]);
    lab.kubectl(&["delete", "pvc", "data-db-0", "data-db-1"]);
    lab.eventually("the volumes go with their claims", PATIENCE, || {
        let left = std::fs::read_dir(lab.dir().join("claims")).unwrap().count();
        left == 0 && lab.kubectl(&["get", "pv", "-o", "name"]).is_empty()
    });
    // A claim that is not there is waited for.
    let mut waits = pod("waits", None);
    waits["spec"]["volumes"] =
        json!([{"name": "v", "persistentVolumeClaim": {"claimName": "late"}}]);
    lab.apply(&[waits]);
    lab.eventually("the missing claim is told", PATIENCE, || {
        lab.kubectl(&["get", "events"]).contains("persistentvolumeclaim \"late\" not found")
    });
    lab.apply(&[
        json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "late"},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Mi"}}}}),
    ]);
    lab.wait_ready(&["waits"]);
}

#[test]
fn jobs_are_made_on_schedule() {
    if !can_run("jobs_are_made_on_schedule") {
        return;
    }
    let lab = Lab::up(1, &[], &[]);
    let mut template = template("tick", "echo tock");
    template["spec"]["restartPolicy"] = json!("Never");
    lab.apply(&[json!({
        "apiVersion": "batch/v1", "kind": "CronJob", "metadata": {"name": "tick"},
        "spec": {"schedule": "0 0 1 1 *", "jobTemplate": {"spec": {"template": template}}},
    })]);
    // Nobody wants to wait for the new year: the last time was long ago.
    let mut cron: Value =
        serde_json::from_str(&lab.kubectl(&["get", "cronjob", "tick", "-o", "json"])).unwrap();
    cron["status"] = json!({"lastScheduleTime": "2020-01-01T00:00:00Z"});
    let path = "/apis/batch/v1/namespaces/default/cronjobs/tick/status";
    let replaced = lab.try_kubectl(&["replace", "--raw", path, "-f", "-"], &cron.to_string());
    assert!(replaced.is_ok(), "{replaced:?}");
    lab.eventually("a job has run", PATIENCE, || {
        let jobs = lab.kubectl(&["get", "jobs", "-o=jsonpath={.items[*].status.succeeded}"]);
        jobs == "1"
    });
    let cron: Value =
        serde_json::from_str(&lab.kubectl(&["get", "cronjob", "tick", "-o", "json"])).unwrap();
    assert_ne!(cron["status"]["lastScheduleTime"], "2020-01-01T00:00:00Z");
    lab.eventually("the cron job has seen its end", PATIENCE, || {
        lab.kubectl(&["get", "events"]).contains("Saw completed job: tick-")
    });
    lab.kubectl(&["delete", "cronjob", "tick"]);
    lab.eventually("its jobs go with it", PATIENCE, || {
        lab.kubectl(&["get", "jobs,pods", "-o", "name"]).is_empty()
    });
}

#[test]
fn taints_evict_pods() {
    if !can_run("taints_evict_pods") {
        return;
    }
    let lab = Lab::up(2, &[], &[]);
    let mut tolerant = pod("tolerant", Some(1));
    tolerant["spec"]["tolerations"] = json!([{"key": "storm", "operator": "Exists"}]);
    let deployment = json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"},
        "spec": {"replicas": 2, "selector": {"matchLabels": {"app": "web"}},
            "template": template("web", "sleep 1000")},
    });
    lab.apply(&[tolerant, deployment]);
    lab.kubectl(&["rollout", "status", "deployment/web", "--timeout=60s"]);
    lab.wait_ready(&["tolerant"]);
    lab.kubectl(&["taint", "nodes", "node-1", "storm=near:NoExecute"]);
    lab.eventually("all of the deployment is on the other node", PATIENCE, || {
        let pods = lab.pods();
        let web = pods.iter().filter(|pod| pod["metadata"]["labels"]["app"] == "web");
        let there = web.clone().filter(|pod| {
            pod["spec"]["nodeName"] == "node-2" && pod["status"]["phase"] == "Running"
        });
        web.count() == 2 && there.count() == 2
    });
    assert_eq!(lab.pod("tolerant")["status"]["phase"], "Running");
    lab.eventually("the eviction is told", PATIENCE, || {
        lab.kubectl(&["get", "events"]).contains("TaintManagerEviction")
    });
    lab.kubectl(&["taint", "nodes", "node-1", "storm-"]);
}
