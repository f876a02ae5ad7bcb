//! The lab's programs have the rights that `deploy/rbac.yaml` and the manifest of cluster DNS give
//! them: these suffice, and nothing beyond them is allowed.

use std::fs;
use std::time::Duration;

use crate::world::{Lab, can_run, pod};

/// Long enough for anything that should happen at all.
const PATIENCE: Duration = Duration::from_secs(60);

const AGENT: &str = "system:serviceaccount:kube-system:cilium";
const OPERATOR: &str = "system:serviceaccount:kube-system:cilium-operator";
const DNS: &str = "system:serviceaccount:kube-system:coredns";

#[test]
fn programs_have_the_rights_they_need_and_no_others() {
    if !can_run("programs_have_the_rights_they_need_and_no_others") {
        return;
    }
    let lab = Lab::up_with(&[], 2, &[], &[pod("a", Some(1)), pod("b", Some(2))]);
    lab.wait_ready(&[]);
    // Work for everybody: another identity, an endpoint that goes, a name that is looked up.
    lab.kubectl(&["label", "pod", "a", "tier=front"]);
    lab.eventually("the identity follows the label", PATIENCE, || {
        let identity = "jsonpath={.metadata.labels.tier}{.status.identity.labels}";
        lab.kubectl(&["get", "ciliumendpoint", "a", "-o", identity]).contains("tier=front")
    });
    lab.eventually("cluster DNS knows Services", PATIENCE, || {
        lab.try_exec("a", &["getent", "hosts", "kubernetes.default.svc.cluster.local"]).is_ok()
    });
    lab.kubectl(&["delete", "pod", "b"]);
    lab.eventually("the endpoint of the deleted pod goes", PATIENCE, || {
        !lab.kubectl(&["get", "ciliumendpoints", "-o", "name"]).contains("/b")
    });
    refused_nothing(&lab);

    for (who, kubeconfig) in [(AGENT, "kubeconfig-agent"), (OPERATOR, "kubeconfig-operator")] {
        let kubeconfig = lab.dir().join(kubeconfig);
        let run = |args: &[&str]| {
            let flag = format!("--kubeconfig={}", kubeconfig.display());
            lab.try_on_node("node-1", &[&["kubectl", &flag], args].concat())
        };
        run(&["get", "ciliumnodes"]).unwrap_or_else(|said| panic!("{who}: {said}"));
        let said = run(&["delete", "namespace", "default"]).unwrap_err();
        let words = format!(
            "Error from server (Forbidden): namespaces \"default\" is forbidden: User \"{who}\" cannot delete resource \"namespaces\" in API group \"\" in the namespace \"default\""
        );
        assert!(said.contains(&words), "{said}");
        let said = run(&["get", "secrets", "-A"]).unwrap_err();
        let words = format!(
            "secrets is forbidden: User \"{who}\" cannot list resource \"secrets\" in API group \"\" at the cluster scope"
        );
        assert!(said.contains(&words), "{said}");
    }
    let may = |who: &str, verb: &str, resource: &str| {
        let who = format!("--as={who}");
        lab.try_kubectl(&["auth", "can-i", verb, resource, "-A", &who], "").is_ok()
    };
    for (who, verb, resource, expected) in [
        (AGENT, "list", "pods", true),
        (AGENT, "create", "ciliumidentities.cilium.io", true),
        (AGENT, "delete", "pods", false),
        (AGENT, "delete", "ciliumidentities.cilium.io", false),
        (AGENT, "update", "customresourcedefinitions.apiextensions.k8s.io", false),
        (OPERATOR, "delete", "ciliumidentities.cilium.io", true),
        (OPERATOR, "patch", "nodes/status", true),
        (OPERATOR, "delete", "nodes", false),
        (OPERATOR, "create", "pods", false),
        (DNS, "watch", "services", true),
        (DNS, "watch", "endpointslices.discovery.k8s.io", true),
        (DNS, "get", "secrets", false),
        (DNS, "update", "services", false),
    ] {
        assert_eq!(may(who, verb, resource), expected, "{who} {verb} {resource}");
    }
}

/// Nobody's log tells of a refusal.
fn refused_nothing(lab: &Lab) {
    let logs = fs::read_dir(lab.dir().join("logs")).expect("the lab has logs");
    for path in logs.map(|entry| entry.unwrap().path()).filter(|path| path.is_file()) {
        let text = String::from_utf8_lossy(&fs::read(&path).unwrap()).into_owned();
        let refusal =
            text.lines().find(|line| line.contains("is forbidden") || line.contains("Forbidden"));
        assert_eq!(refusal, None, "{}", path.display());
    }
}
