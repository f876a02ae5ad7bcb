//! Pods resolve names: the cluster's by cluster DNS, the world's through it.

use std::time::Duration;

use serde_json::{Value, json};

use crate::world::{Lab, can_run, pod};

/// For what happens within seconds, on a machine that does other things as well.
const PATIENCE: Duration = Duration::from_secs(90);

/// Names that are looked up in a pod, and what is found.
fn check(lab: &Lab, names: &[(&str, &str, &[&str])]) {
    for (database, name, expected) in names {
        let asked = format!("getent {database} {name} | awk '{{print $1}}' | sort -u");
        let mut found = String::new();
        lab.eventually(
            &format!("{database} {name} is {expected:?}, not {found:?}"),
            PATIENCE,
            || {
                found = lab.exec("client", &["sh", "-c", &asked]);
                found.split_whitespace().eq(expected.iter().copied())
            },
        );
    }
}

fn sleeper(name: &str, change: impl FnOnce(&mut Value)) -> Value {
    let mut pod = pod(name, None);
    change(&mut pod["spec"]);
    pod
}

#[test]
fn pods_resolve_names() {
    if !can_run("pods_resolve_names") {
        return;
    }
    let backend = sleeper("web-0", |spec| {
        spec["hostname"] = json!("web-0");
        spec["subdomain"] = json!("web");
    });
    let mut backend = backend;
    backend["metadata"]["labels"] = json!({"app": "web"});
    let service = |name: &str, spec: Value| json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec});
    let objects = [
        service(
            "web",
            json!({"clusterIP": "None", "selector": {"app": "web"}, "ports": [{"port": 80}],
            "ipFamilyPolicy": "PreferDualStack"}),
        ),
        service("db", json!({"clusterIP": "10.96.0.77", "ports": [{"name": "sql", "port": 5432}]})),
        service("away", json!({"type": "ExternalName", "externalName": "chain.external.test"})),
        backend,
        sleeper("client", |_| {}),
        sleeper("by-node", |spec| spec["dnsPolicy"] = json!("Default")),
        sleeper("by-itself", |spec| {
            spec["dnsPolicy"] = json!("None");
            spec["dnsConfig"] = json!({"nameservers": ["192.0.2.1"]});
        }),
    ];
    let lab = Lab::up_with(&[], 2, &[], &objects);
    let addresses: Vec<String> = lab.addresses("web-0").iter().map(ToString::to_string).collect();
    let addresses: Vec<&str> = addresses.iter().map(String::as_str).collect();
    check(
        &lab,
        &[
            ("ahosts", "web", &addresses),
            ("ahosts", "web-0.web", &addresses),
            ("ahostsv4", "web.default.svc.cluster.local", &addresses[..1]),
            ("ahosts", "db.default", &["10.96.0.77"]),
            ("ahosts", "kubernetes.default.svc", &["10.96.0.1"]),
            ("ahostsv4", "www.external.test", &["203.0.113.10"]),
            ("ahostsv6", "www.external.test", &["2001:db8:ff::10"]),
            ("ahostsv4", "away", &["203.0.113.10"]),
            ("ahosts", "nothing.default", &[]),
        ],
    );
    lab.eventually("an answer too long for UDP comes whole", PATIENCE, || {
        lab.exec("client", &["sh", "-c", "getent ahostsv4 many.external.test | wc -l"]) == "360"
    });
    let reverse = lab.exec("client", &["getent", "hosts", addresses[0]]);
    assert!(reverse.contains("web-0.web.default.svc.cluster.local"), "{reverse}");

    assert_eq!(lab.exec("client", &["cat", "/etc/hostname"]), "client");
    assert!(
        lab.exec("web-0", &["cat", "/etc/hosts"])
            .contains("\tweb-0.web.default.svc.cluster.local\tweb-0")
    );
    assert!(
        lab.exec("by-node", &["cat", "/etc/resolv.conf"]).starts_with("nameserver 203.0.113.10\n")
    );
    assert_eq!(lab.exec("by-itself", &["cat", "/etc/resolv.conf"]), "nameserver 192.0.2.1");

    // The server's successor has another address, which pods that run already learn.
    let before = lab.exec("client", &["cat", "/etc/resolv.conf"]);
    assert!(
        before.starts_with("search default.svc.cluster.local svc.cluster.local cluster.local\n")
    );
    lab.kubectl(&["-n", "kube-system", "delete", "pod", "-l", "k8s-app=kube-dns"]);
    lab.eventually("pods ask the new server", PATIENCE, || {
        lab.exec("client", &["cat", "/etc/resolv.conf"]) != before
    });
    check(&lab, &[("ahosts", "db.default", &["10.96.0.77"])]);
}
