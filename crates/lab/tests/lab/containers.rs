//! How containers start and what they leave behind.

use std::time::Duration;

use serde_json::{Value, json};

use crate::world::{Lab, can_run, pod};

fn with_container(name: &str, policy: &str, script: &str, more: Value) -> Value {
    let mut pod = pod(name, Some(1));
    pod["spec"]["restartPolicy"] = json!(policy);
    let container = &mut pod["spec"]["containers"][0];
    *container = json!({"name": "c", "image": "example.org/any", "command": ["sh", "-c", script]});
    for (key, value) in more.as_object().unwrap() {
        container[key] = value.clone();
    }
    pod
}

fn status(lab: &Lab, pod: &str) -> Value {
    lab.pod(pod)["status"]["containerStatuses"][0].clone()
}

#[test]
fn other_probes_wait_for_the_startup_probe() {
    if !can_run("other_probes_wait_for_the_startup_probe") {
        return;
    }
    let lab = Lab::up(1, &[], &[]);
    let probe = |command: &str, threshold: i32| json!({"exec": {"command": ["sh", "-c", command]}, "periodSeconds": 1, "timeoutSeconds": 30, "failureThreshold": threshold});
    let slow = json!({
        "startupProbe": probe("test -e /v/started", 600),
        // Would end the container at once.
        "livenessProbe": probe("test -e /v/started", 1),
        "readinessProbe": probe("true", 1),
        "volumeMounts": [{"name": "v", "mountPath": "/v"}],
    });
    let mut slow = with_container("slow", "Always", "sleep 1000", slow);
    slow["spec"]["volumes"] = json!([{"name": "v", "emptyDir": {}}]);
    let never = json!({"startupProbe": probe("false", 2)});
    let never = with_container("never", "Always", "sleep 1000", never);
    lab.apply(&[slow, never]);
    lab.eventually("the slow one runs", Duration::from_secs(90), || {
        status(&lab, "slow")["state"]["running"].is_object()
    });
    lab.eventually("one that never starts is started again", Duration::from_secs(60), || {
        status(&lab, "never")["restartCount"].as_i64() >= Some(1)
    });
    let slow = status(&lab, "slow");
    assert_eq!((&slow["started"], &slow["ready"]), (&json!(false), &json!(false)), "{slow}");
    assert_eq!(slow["restartCount"], 0, "{slow}");
    lab.exec("slow", &["touch", "/v/started"]);
    lab.wait_ready(&["slow"]);
    let slow = status(&lab, "slow");
    assert_eq!((&slow["started"], &slow["restartCount"]), (&json!(true), &json!(0)), "{slow}");
}

#[test]
fn containers_have_last_words() {
    if !can_run("containers_have_last_words") {
        return;
    }
    let lab = Lab::up(1, &[], &[]);
    let elsewhere = json!({"terminationMessagePath": "/var/run/words"});
    let from_log = json!({"terminationMessagePolicy": "FallbackToLogsOnError"});
    lab.apply(&[
        with_container("said", "Never", "printf done > /dev/termination-log", json!({})),
        with_container("elsewhere", "Never", "printf there > /var/run/words; exit 3", elsewhere),
        with_container("logged", "Never", "echo oh; echo no; exit 1", from_log.clone()),
        with_container("well", "Never", "echo fine", from_log),
    ]);
    for (pod, phase, words) in [
        ("said", "Succeeded", json!("done")),
        ("elsewhere", "Failed", json!("there")),
        ("logged", "Failed", json!("oh\nno\n")),
        ("well", "Succeeded", Value::Null),
    ] {
        lab.eventually(&format!("{pod} has ended"), Duration::from_secs(90), || {
            lab.pod(pod)["status"]["phase"] == phase
        });
        let end = status(&lab, pod)["state"]["terminated"].clone();
        assert_eq!(end["message"], words, "{pod}: {end}");
    }
    assert!(!std::fs::exists("/dev/termination-log").unwrap(), "it is on the machine");
}
