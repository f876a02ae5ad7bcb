//! A supervisor that is killed comes back, and takes over what runs.

use std::fs;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::world::{Lab, can_run, curl, pod, server};

const PATIENCE: Duration = Duration::from_secs(90);

fn with_script(name: &str, policy: &str, script: &str) -> Value {
    let mut pod = pod(name, Some(1));
    pod["spec"]["restartPolicy"] = json!(policy);
    pod["spec"]["volumes"] = json!([{"name": "v", "emptyDir": {}}]);
    pod["spec"]["containers"][0] = json!({"name": "c", "image": "x", "command": ["sh", "-c", script],
        "volumeMounts": [{"name": "v", "mountPath": "/v"}]});
    pod
}

fn container(lab: &Lab, pod: &str) -> Value {
    lab.pod(pod)["status"]["containerStatuses"][0].clone()
}

/// Kills the supervisor and waits for another one.
fn kill_supervisor(lab: &Lab, then: impl FnOnce()) {
    let before = lab.status()["supervisor_pid"].as_i64().unwrap();
    kill(Pid::from_raw(before as i32), Signal::SIGKILL).unwrap();
    then();
    lab.eventually("another supervisor answers", PATIENCE, || {
        let status = lab.command("status").args(["-o", "json"]).output().unwrap();
        let status: Value = serde_json::from_slice(&status.stdout).unwrap_or_default();
        status["supervisor_pid"].as_i64().is_some_and(|pid| pid != before)
    });
}

#[test]
fn a_killed_supervisor_comes_back_and_takes_over() {
    if !can_run("a_killed_supervisor_comes_back_and_takes_over") {
        return;
    }
    let ticking = "trap 'exit 7' TERM; i=0; while :; do i=$((i+1)); echo tick $i; sleep 0.05; done";
    let waiting = "while ! test -e /v/go; do sleep 0.05; done; exit 5";
    let mut prepared = server("prepared", 1);
    prepared["spec"]["initContainers"] =
        json!([{"name": "i", "image": "x", "command": ["sh", "-c", "echo prepared"]}]);
    let lab = Lab::up(
        2,
        &[],
        &[
            server("a", 1),
            pod("b", Some(2)),
            prepared,
            with_script("ticking", "Always", ticking),
            with_script("waiting", "Never", waiting),
        ],
    );
    lab.apply(&[with_script("finished", "Never", "echo words; exit 3")]);
    lab.eventually("one has finished", PATIENCE, || {
        lab.pod("finished")["status"]["phase"] == "Failed"
    });
    lab.kubectl(&["create", "configmap", "kept", "--from-literal=a=1"]);
    lab.run("cut", &["node-1", "external"]);
    let statuses = |lab: &Lab| {
        let names = ["a", "b", "prepared", "ticking", "finished"];
        let status = |name: &&str| {
            let pod = lab.pod(name);
            let status = &pod["status"];
            (
                pod["metadata"]["uid"].clone(),
                status["podIPs"].clone(),
                status["phase"].clone(),
                status["containerStatuses"].clone(),
                status["initContainerStatuses"].clone(),
            )
        };
        names.iter().map(status).collect::<Vec<_>>()
    };
    let (before, agents) = (statuses(&lab), [lab.agent_pid(1), lab.agent_pid(2)]);
    let go = |pod: &str| {
        let uid = lab.pod(pod)["metadata"]["uid"].as_str().unwrap().to_owned();
        lab.dir().join("pods").join(uid).join("volumes/v/go")
    };
    let go = go("waiting");
    kill_supervisor(&lab, || fs::write(go, "").unwrap());

    // The same objects, the same processes, the same addresses; the same kubeconfig is good.
    assert_eq!(statuses(&lab), before);
    assert_eq!([lab.agent_pid(1), lab.agent_pid(2)], agents);
    assert_eq!(lab.kubectl(&["get", "configmap", "kept", "-o", "jsonpath={.data.a}"]), "1");
    assert_eq!(lab.kubectl(&["logs", "finished"]), "words");
    assert_eq!(lab.kubectl(&["logs", "ticking", "--limit-bytes=6"]), "tick 1");
    let lines = || lab.run("logs", &["node-1", "ticking"]).lines().count();
    let some = lines();
    lab.eventually("it goes on ticking", PATIENCE, || lines() > some);
    // One that has ended meanwhile has ended: how, was seen or not.
    lab.eventually("the end is noticed", PATIENCE, || {
        let state = container(&lab, "waiting")["state"]["terminated"].clone();
        matches!(
            (state["exitCode"].as_i64(), state["message"].as_str()),
            (Some(5), None)
                | (Some(137), Some("The container ended while nobody looked after its node."))
        )
    });
    // What ends from now on is seen, and is started again.
    lab.run("kill", &["node-1", "ticking", "--signal=TERM"]);
    lab.eventually("it is started again", PATIENCE, || {
        let status = container(&lab, "ticking");
        status["restartCount"] == 1 && status["lastState"]["terminated"]["exitCode"] == 7
    });
    // The network is as it was, for old pods and new ones.
    lab.create(vec![pod("new", Some(2))]);
    for address in lab.addresses("a") {
        let url = curl(address, "hostname");
        let argv: Vec<&str> = url.iter().map(String::as_str).collect();
        for pod in ["b", "new"] {
            assert_eq!(lab.exec(pod, &argv), "a");
        }
    }
    assert_eq!(lab.status()["cuts"][0], json!(["external", "node-1"]));
    lab.run("mend", &["external", "node-1"]);
    lab.kubectl(&["delete", "pod", "--all"]);
    assert_eq!(lab.on_node("node-1", &["ls", "/run/netns"]), "");
}

#[test]
fn a_supervisor_comes_back_to_what_was_under_way() {
    if !can_run("a_supervisor_comes_back_to_what_was_under_way") {
        return;
    }
    let stubborn = "trap '' TERM; while :; do sleep 0.1; done";
    let mut ending = with_script("ending", "Always", stubborn);
    ending["spec"]["terminationGracePeriodSeconds"] = json!(3);
    let crashing = with_script("crashing", "Always", "exit 4");
    let lab = Lab::up(1, &[], &[ending, server("paused", 1)]);
    lab.apply(&[crashing]);
    lab.eventually("one crashes", PATIENCE, || {
        container(&lab, "crashing")["state"]["waiting"]["reason"] == "CrashLoopBackOff"
    });
    lab.kubectl(&["delete", "pod", "ending", "--wait=false"]);
    lab.run("pause", &["node-1"]);
    kill_supervisor(&lab, || ());
    assert_eq!(lab.status()["nodes"][0]["paused"], true);
    lab.run("resume", &["node-1"]);
    lab.kubectl(&["wait", "--for=delete", "--timeout=60s", "pod/ending"]);
    let restarts = container(&lab, "crashing")["restartCount"].as_i64().unwrap();
    lab.eventually("the crashing one is tried again", PATIENCE, || {
        container(&lab, "crashing")["restartCount"].as_i64() > Some(restarts)
    });
    lab.wait_ready(&["paused"]);
    // Again and again.
    for _ in 0..2 {
        kill_supervisor(&lab, || ());
    }
    lab.wait_ready(&["paused"]);
    assert_eq!(container(&lab, "paused")["restartCount"], 0);
}
