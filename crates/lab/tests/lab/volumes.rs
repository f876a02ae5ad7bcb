//! What containers see of volumes, objects and themselves.

use std::time::Duration;

use serde_json::{Value, json};

use crate::world::{Lab, can_run, pod};

/// A pod with these volumes, mounted below `/v`, whose container sleeps.
fn with_volumes(name: &str, volumes: Value) -> Value {
    let mounts: Vec<Value> = volumes
        .as_array()
        .unwrap()
        .iter()
        .map(|volume| {
            let name = volume["name"].as_str().unwrap();
            json!({"name": name, "mountPath": format!("/v/{name}")})
        })
        .collect();
    let mut pod = pod(name, Some(1));
    pod["spec"]["volumes"] = volumes;
    pod["spec"]["containers"][0]["volumeMounts"] = json!(mounts);
    pod
}

fn object(kind: &str, name: &str, data: Value) -> Value {
    json!({"apiVersion": "v1", "kind": kind, "metadata": {"name": name}, "stringData": data, "data": {}})
}

fn config_map(name: &str, data: Value) -> Value {
    let mut map = object("ConfigMap", name, json!({}));
    map["data"] = data;
    map.as_object_mut().unwrap().remove("stringData");
    map
}

fn events(lab: &Lab, pod: &str, reason: &str) -> String {
    let selector = format!("involvedObject.name={pod},reason={reason}");
    let path = "-o=jsonpath={.items[*].message}";
    lab.kubectl(&["get", "events", "--field-selector", &selector, path])
}

#[test]
fn volumes_hold_what_they_should() {
    if !can_run("volumes_hold_what_they_should") {
        return;
    }
    let lab = Lab::up(1, &[], &[]);
    let mut secret = object("Secret", "login", json!({"user": "leia", "password": "organa"}));
    secret.as_object_mut().unwrap().remove("data");
    let host = format!("/tmp/{}-host", lab.name);
    let mut all = with_volumes(
        "all",
        json!([
            {"name": "map", "configMap": {"name": "settings"}},
            {"name": "some", "configMap": {"name": "settings", "defaultMode": 0o400,
                "items": [{"key": "a", "path": "deep/er/a"}]}},
            {"name": "login", "secret": {"secretName": "login", "defaultMode": 0o440}},
            {"name": "none", "secret": {"secretName": "absent", "optional": true}},
            {"name": "empty", "emptyDir": {}},
            {"name": "memory", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}},
            {"name": "host", "hostPath": {"path": host, "type": "DirectoryOrCreate"}},
            {"name": "self", "downwardAPI": {"items": [
                {"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}},
                {"path": "cpu", "resourceFieldRef":
                    {"containerName": "c", "resource": "limits.cpu", "divisor": "1m"}}]}},
            {"name": "mixed", "projected": {"sources": [
                {"configMap": {"name": "settings", "items": [{"key": "a", "path": "a"}]}},
                {"secret": {"name": "login", "items": [{"key": "user", "path": "who"}]}},
                {"downwardAPI": {"items": [
                    {"path": "name", "fieldRef": {"fieldPath": "metadata.name"}}]}}]}},
        ]),
    );
    let container = &mut all["spec"]["containers"][0];
    container["resources"] = json!({"limits": {"cpu": "250m", "memory": "64Mi"}});
    let mounts = container["volumeMounts"].as_array_mut().unwrap();
    // In the middle of what is there, at the root, one file, and a part that is made for us.
    mounts.push(json!({"name": "map", "mountPath": "/etc/app.conf", "subPath": "a"}));
    mounts.push(json!({"name": "empty", "mountPath": "/usr/share/none/such", "subPath": "x/y"}));
    mounts.push(json!({"name": "empty", "mountPath": "/look", "readOnly": true}));
    container["env"] = json!([
        {"name": "CPU", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu"}}},
        {"name": "BYTES", "valueFrom": {"resourceFieldRef": {"resource": "limits.memory"}}},
        {"name": "WHO", "valueFrom": {"secretKeyRef": {"name": "login", "key": "user"}}},
    ]);
    container["envFrom"] = json!([{"prefix": "SET_", "configMapRef": {"name": "settings"}}]);
    let mut second = container.clone();
    second["name"] = json!("second");
    all["spec"]["containers"].as_array_mut().unwrap().push(second);
    lab.apply(&[config_map("settings", json!({"a": "1", "b": "two\n"})), secret, all]);
    lab.wait_ready(&["all"]);

    let sh = |script: &str| lab.exec("all", &["sh", "-c", script]);
    assert_eq!(sh("cat /v/map/a /v/map/b /v/some/deep/er/a"), "1two\n1");
    assert_eq!(sh("ls /v/some /v/none | xargs"), "/v/none: /v/some: deep");
    assert_eq!(sh("stat -L -c %a /v/some/deep/er/a /v/login/user /v/map/a | xargs"), "400 440 644");
    assert_eq!(sh("cat /v/login/user /v/login/password"), "leiaorgana");
    assert_eq!(sh("cat /v/mixed/a /v/mixed/who /v/mixed/name"), "1leiaall");
    assert_eq!(sh("cat /v/self/labels; echo; cat /v/self/cpu"), "app=\"test\"\n250");
    assert_eq!(
        sh("env | grep -E '^(CPU|BYTES|WHO|SET_a)=' | sort | xargs"),
        "BYTES=67108864 CPU=1 SET_a=1 WHO=leia"
    );
    assert_eq!(sh("cat /etc/app.conf; cat /etc/hostname"), "1all");
    assert!(sh("touch /v/map/x 2>&1 || true").contains("Read-only file system"));
    assert!(sh("touch /look/x 2>&1 || true").contains("Read-only file system"));
    // The machine itself has none of these places.
    for path in ["/v", "/look", "/etc/app.conf", "/usr/share/none"] {
        assert!(!std::fs::exists(path).unwrap(), "{path} is on the machine");
    }
    // Containers of a pod share volumes.
    sh("echo shared > /v/empty/file; echo part > /usr/share/none/such/part; echo h > /v/host/h");
    let second =
        |script: &str| lab.kubectl(&["exec", "all", "-c", "second", "--", "sh", "-c", script]);
    assert_eq!(second("cat /v/empty/file /look/x/y/part"), "shared\npart");
    assert_eq!(std::fs::read_to_string(format!("{host}/h")).unwrap(), "h\n");
    let too_much = sh("head -c 2000000 /dev/zero > /v/memory/big 2>&1; stat -c %s /v/memory/big");
    assert!(too_much.contains("1048576"), "{too_much}");
    assert_eq!(sh("df --output=fstype /v/memory | tail -1"), "tmpfs");
    assert_eq!(
        sh("ls /dev | xargs"),
        "fd full null ptmx pts random shm stderr stdin stdout termination-log tty urandom zero"
    );

    let uid = lab.pod("all")["metadata"]["uid"].as_str().unwrap().to_owned();
    lab.kubectl(&["delete", "pod", "all"]);
    assert!(!lab.dir().join("pods").join(uid).exists());
    assert_eq!(
        lab.on_node("node-1", &["sh", "-c", "grep -c /volumes/ /proc/self/mounts || true"]),
        "0"
    );
    std::fs::remove_dir_all(&host).unwrap();
}

#[test]
fn volumes_follow_their_objects() {
    if !can_run("volumes_follow_their_objects") {
        return;
    }
    let lab = Lab::up(1, &[], &[]);
    let follower = with_volumes(
        "follower",
        json!([
            {"name": "map", "configMap": {"name": "settings"}},
            {"name": "self", "downwardAPI": {"items": [
                {"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}}]}},
        ]),
    );
    let mut waits_for_key = pod("env", Some(1));
    waits_for_key["spec"]["containers"][0]["env"] = json!([
        {"name": "A", "valueFrom": {"configMapKeyRef": {"name": "settings", "key": "a"}}}]);
    lab.apply(&[follower, waits_for_key]);
    // Without its ConfigMap the pod waits, and says for what.
    let missing = "MountVolume.SetUp failed for volume \"map\" : configmap \"settings\" not found";
    lab.eventually("the missing ConfigMap is told", Duration::from_secs(90), || {
        events(&lab, "follower", "FailedMount").contains(missing)
    });
    let state = |pod: &str| lab.pod(pod)["status"]["containerStatuses"][0]["state"].clone();
    assert_eq!(state("follower")["waiting"]["reason"], "ContainerCreating");
    lab.eventually("the variable's ConfigMap is missing", Duration::from_secs(90), || {
        state("env")["waiting"]["reason"] == "CreateContainerConfigError"
    });
    lab.apply(&[config_map("settings", json!({"a": "1", "gone": "x"}))]);
    lab.wait_ready(&["follower", "env"]);
    let sh = |script: &str| lab.exec("follower", &["sh", "-c", script]);
    assert_eq!(sh("cat /v/map/a /v/map/gone"), "1x");
    assert_eq!(lab.exec("env", &["sh", "-c", "echo $A"]), "1");
    // Changes arrive as a whole: one link is exchanged.
    assert_eq!(sh("readlink /v/map/a"), "..data/a");
    lab.kubectl(&[
        "patch",
        "configmap",
        "settings",
        "--type=merge",
        "-p",
        r#"{"data":{"a":"2","gone":null}}"#,
    ]);
    lab.kubectl(&["label", "pod", "follower", "side=empire"]);
    lab.eventually("the files have changed", Duration::from_secs(90), || {
        sh("ls /v/map; cat /v/map/a") == "a\n2"
            && sh("cat /v/self/labels").contains("side=\"empire\"")
    });
}

#[test]
fn what_cannot_be_mounted_is_said() {
    if !can_run("what_cannot_be_mounted_is_said") {
        return;
    }
    let lab = Lab::up(1, &[], &[]);
    let nfs = json!([{"name": "n", "nfs": {"server": "203.0.113.9", "path": "/x"}}]);
    let socket = json!([{"name": "s", "hostPath": {"path": "/etc/passwd", "type": "Socket"}}]);
    let mut outside = with_volumes("outside", json!([{"name": "e", "emptyDir": {}}]));
    outside["spec"]["containers"][0]["volumeMounts"][0]["subPathExpr"] = json!("$(WHERE)");
    outside["spec"]["containers"][0]["env"] = json!([{"name": "WHERE", "value": "a/../../b"}]);
    lab.apply(&[with_volumes("nfs", nfs), with_volumes("socket", socket), outside]);
    let told = |pod: &str, reason: &str, words: &str| {
        lab.eventually(&format!("{pod}: {words}"), Duration::from_secs(90), || {
            events(&lab, pod, reason).contains(words)
        });
    };
    told("nfs", "FailedMount", "the lab has no volumes of this kind, but configMap, secret");
    told("socket", "FailedMount", "/etc/passwd is not a socket file");
    told("outside", "Failed", "must be relative, without");
    // None of them keeps a pod from being deleted.
    lab.kubectl(&["delete", "pod", "nfs", "socket", "outside"]);
}

#[test]
fn pods_reach_the_api_server_as_themselves() {
    if !can_run("pods_reach_the_api_server_as_themselves") {
        return;
    }
    let lab = Lab::up(1, &[], &[pod("client", Some(1))]);
    let account = "/var/run/secrets/kubernetes.io/serviceaccount";
    let ask = |path: &str| {
        let script = format!(
            "curl -sS --max-time 30 --cacert {account}/ca.crt -H \"Authorization: Bearer $(cat {account}/token)\" \
             https://$KUBERNETES_SERVICE_HOST:$KUBERNETES_SERVICE_PORT{path}"
        );
        serde_json::from_str::<Value>(&lab.exec("client", &["sh", "-c", &script])).unwrap()
    };
    assert_eq!(lab.exec("client", &["cat", &format!("{account}/namespace")]), "default");
    assert!(ask("/version")["gitVersion"].is_string());
    let refused = ask("/api/v1/namespaces/default/pods");
    assert_eq!(
        (&refused["code"], &refused["reason"]),
        (&json!(403), &json!("Forbidden")),
        "{refused}"
    );
    let who = "system:serviceaccount:default:default";
    assert!(refused["message"].as_str().unwrap().contains(who), "{refused}");
    lab.kubectl(&[
        "create",
        "rolebinding",
        "look",
        "--clusterrole=view",
        "--serviceaccount=default:default",
    ]);
    lab.eventually("the role counts", Duration::from_secs(30), || {
        ask("/api/v1/namespaces/default/pods")["kind"] == "PodList"
    });
    // One that wants no token has none.
    let mut without = pod("without", Some(1));
    without["spec"]["automountServiceAccountToken"] = json!(false);
    lab.create(vec![without]);
    assert_eq!(
        lab.exec("without", &["sh", "-c", &format!("ls {account} 2>/dev/null || true")]),
        ""
    );
}
