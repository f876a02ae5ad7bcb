//! The pod runner says about pods what a kubelet would.

use std::time::Duration;

use serde_json::{Value, json};

use crate::world::{Lab, can_run, pod};

/// For what happens within seconds, on a machine that does other things as well.
const PATIENCE: Duration = Duration::from_secs(90);

fn with_command(name: &str, policy: &str, script: &str) -> Value {
    let mut pod = pod(name, None);
    pod["spec"]["restartPolicy"] = json!(policy);
    pod["spec"]["containers"][0] =
        json!({"name": "c", "image": "anything", "command": ["sh", "-c", script]});
    pod
}

fn container(pod: &Value) -> &Value {
    &pod["status"]["containerStatuses"][0]
}

#[test]
fn pods_have_the_status_that_a_kubelet_gives() {
    if !can_run("pods_have_the_status_that_a_kubelet_gives") {
        return;
    }
    let lab = Lab::up(1, &[], &[]);
    let mut no_image = pod("no-image", None);
    no_image["spec"]["containers"][0] = json!({"name": "c", "image": "nginx"});
    let mut host = with_command("host", "Always", "sleep 1000");
    host["spec"]["hostNetwork"] = json!(true);
    let mut initialised = with_command("initialised", "Always", "sleep 1000");
    initialised["spec"]["initContainers"] =
        json!([{"name": "i", "image": "x", "command": ["sh", "-c", "sleep 0.3"]}]);
    let mut unready = with_command("unready", "Always", "sleep 1000");
    unready["spec"]["containers"][0]["readinessProbe"] = json!({"exec": {"command": ["test", "-e", format!("/tmp/{}-ready", lab.name)]}, "periodSeconds": 1});
    let mut environment = with_command("environment", "Never", "[ \"$NODE/$IP\" = \"$WANTED\" ]");
    environment["spec"]["containers"][0]["env"] = json!([
        {"name": "NODE", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}},
        {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
        {"name": "WANTED", "value": "node-1/$(IP)"},
    ]);
    lab.apply(&[
        no_image,
        host,
        initialised,
        unready,
        environment,
        with_command("success", "Never", "echo one; echo two"),
        with_command("failure", "Never", "exit 3"),
        with_command("crash", "Always", "exit 4"),
    ]);
    let phase =
        |name: &str| lab.pod(name)["status"]["phase"].as_str().unwrap_or_default().to_owned();
    let reaches = |name: &str, wanted: &str| {
        lab.eventually(&format!("{name} is {wanted}"), PATIENCE, || phase(name) == wanted);
    };
    reaches("success", "Succeeded");
    reaches("failure", "Failed");
    reaches("environment", "Succeeded");
    assert_eq!(container(&lab.pod("failure"))["state"]["terminated"]["exitCode"], 3);
    assert_eq!(container(&lab.pod("success"))["state"]["terminated"]["reason"], "Completed");
    assert_eq!(lab.kubectl(&["logs", "success"]), "one\ntwo");
    assert_eq!(lab.kubectl(&["logs", "success", "--tail=1"]), "two");
    lab.wait_ready(&["host", "initialised"]);
    assert_eq!(lab.pod("host")["status"]["podIP"], "172.18.1.1");
    lab.eventually("the crashing pod backs off", PATIENCE, || {
        let pod = lab.pod("crash");
        container(&pod)["state"]["waiting"]["reason"] == "CrashLoopBackOff"
            && container(&pod)["restartCount"].as_i64() >= Some(1)
            && container(&pod)["lastState"]["terminated"]["exitCode"] == 4
    });
    lab.eventually("the image cannot be pulled", PATIENCE, || {
        let pod = lab.pod("no-image");
        let reason =
            container(&pod)["state"]["waiting"]["reason"].as_str().unwrap_or_default().to_owned();
        pod["status"]["phase"] == "Pending"
            && ["ErrImagePull", "ImagePullBackOff"].contains(&reason.as_str())
    });
    assert!(lab.kubectl(&["describe", "pod", "no-image"]).contains("agnhost"));

    reaches("unready", "Running");
    assert_eq!(container(&lab.pod("unready"))["ready"], false);
    let file = format!("/tmp/{}-ready", lab.name);
    std::fs::write(&file, "").unwrap();
    lab.wait_ready(&["unready"]);
    std::fs::remove_file(&file).unwrap();
    lab.kubectl(&["wait", "--for=condition=Ready=false", "--timeout=90s", "pod/unready"]);
}

#[test]
fn pods_end_gracefully() {
    if !can_run("pods_end_gracefully") {
        return;
    }
    let lab = Lab::up(1, &[], &[]);
    let mut polite =
        with_command("polite", "Always", "trap 'exit 0' TERM; while :; do sleep 0.1; done");
    polite["spec"]["terminationGracePeriodSeconds"] = json!(60);
    // Ready when it does not hear any more.
    let deaf = format!("/tmp/{}-deaf", lab.name);
    let script = format!("trap '' TERM; touch {deaf}; while :; do sleep 0.1; done");
    let mut stubborn = with_command("stubborn", "Always", &script);
    stubborn["spec"]["terminationGracePeriodSeconds"] = json!(2);
    stubborn["spec"]["containers"][0]["readinessProbe"] =
        json!({"exec": {"command": ["test", "-e", deaf]}, "periodSeconds": 1});
    lab.apply(&[polite, stubborn]);
    lab.wait_ready(&[]);
    let began = std::time::Instant::now();
    lab.kubectl(&["delete", "pod", "polite"]);
    assert!(began.elapsed() < Duration::from_secs(50), "{:?}", began.elapsed());
    let began = std::time::Instant::now();
    lab.kubectl(&["delete", "pod", "stubborn"]);
    assert!(began.elapsed() >= Duration::from_secs(2), "{:?}", began.elapsed());
    std::fs::remove_file(&deaf).unwrap();
    // By force: at once, and a pod of the same name can follow at once.
    lab.apply(&[with_command("again", "Always", "trap '' TERM; while :; do sleep 0.1; done")]);
    lab.wait_ready(&[]);
    lab.kubectl(&["delete", "pod", "again", "--force", "--grace-period=0"]);
    lab.apply(&[with_command("again", "Always", "sleep 1000")]);
    lab.wait_ready(&["again"]);
}

#[test]
fn the_scheduler_spreads_and_respects_wishes() {
    if !can_run("the_scheduler_spreads_and_respects_wishes") {
        return;
    }
    let lab = Lab::up(2, &[], &[]);
    let mut chosen = pod("chosen", None);
    chosen["spec"]["nodeSelector"] = json!({"kubernetes.io/hostname": "node-2"});
    let mut impossible = pod("impossible", None);
    impossible["spec"]["nodeSelector"] = json!({"kubernetes.io/hostname": "node-9"});
    lab.apply(&[chosen, pod("a", None), pod("b", None), pod("c", None), impossible]);
    lab.wait_ready(&["chosen", "a", "b", "c"]);
    assert_eq!(lab.pod("chosen")["spec"]["nodeName"], "node-2");
    let on_first = lab.pods().iter().filter(|pod| pod["spec"]["nodeName"] == "node-1").count();
    assert_eq!(on_first, 2);
    lab.eventually("the impossible pod is told why it waits", PATIENCE, || {
        let condition = &lab.pod("impossible")["status"]["conditions"][0];
        let message = condition["message"].as_str().unwrap_or_default();
        condition["reason"] == "Unschedulable" && message.contains("0/2 nodes are available")
    });
}
