//! `cilium connectivity test`, as users run it: green in every mode, and red when a wire is cut.

use std::collections::BTreeSet;
use std::process::{Command, Output};

use serde_json::Value;

use crate::world::{Lab, bin_dir, can_run, text};

/// Limits for what must succeed, on a machine that does other things as well.
const PATIENT: [&str; 2] = ["--connect-timeout=10s", "--request-timeout=30s"];
/// Limits where something is to fail, which takes as long.
const QUICK: [&str; 2] = ["--connect-timeout=3s", "--request-timeout=6s"];

/// Runs the command against the lab's API server.
fn connectivity_test(lab: &Lab, args: &[&str]) -> Output {
    Command::new(bin_dir().join("cilium"))
        .args(["connectivity", "test"])
        .args(args)
        .env("KUBECONFIG", lab.dir().join("kubeconfig"))
        .env_remove("CILIUM_LAB")
        .output()
        .unwrap()
}

/// The results, which come with either exit code.
fn results(lab: &Lab, output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| {
        lab.print_world();
        panic!("{error}: {}", text(output))
    })
}

fn actions(results: &Value) -> Vec<&Value> {
    let tests = results["tests"].as_array().unwrap().iter();
    let scenarios = tests.flat_map(|test| test["scenarios"].as_array().unwrap());
    scenarios.flat_map(|scenario| scenario["actions"].as_array().unwrap()).collect()
}

/// The tests without policies, and those with.
const OPEN: &str = "--test=^no-policies/|^pod-to-pod-no-frag/|^health/";
const POLICIES: &str = "--test=!^no-policies/,!^pod-to-pod-no-frag/,!^health/";

/// Every scenario without policies has actions of exactly these families, and all succeed.
fn check(test: &str, settings: &[&str], families: &[&str]) {
    if !can_run(test) {
        return;
    }
    let lab = Lab::up(2, settings, &[]);
    let results = succeed(&lab, &[&PATIENT[..], &[OPEN]].concat());
    let done: BTreeSet<(String, &str)> = actions(&results)
        .into_iter()
        .filter(|action| !action["name"].as_str().unwrap().starts_with("health/"))
        .map(|action| {
            let name = action["name"].as_str().unwrap();
            let (scenario, action) = name.rsplit_once('/').unwrap();
            (scenario.to_owned(), action.split('-').nth(1).unwrap())
        })
        .collect();
    let scenarios = [
        "no-policies/pod-to-pod",
        "no-policies/client-to-client",
        "no-policies/pod-to-host",
        "no-policies/host-to-pod",
        "no-policies/pod-to-cidr",
        "pod-to-pod-no-frag/pod-to-pod-no-frag",
    ];
    let expected: BTreeSet<(String, &str)> = scenarios
        .iter()
        .flat_map(|name| families.iter().map(move |f| ((*name).to_owned(), *f)))
        .collect();
    assert_eq!(done, expected);
    let health = actions(&results).into_iter().filter(|action| {
        action["name"].as_str().unwrap().starts_with("health/cilium-health/probe-")
    });
    assert_eq!(health.count(), 2, "{results}");
}

fn succeed(lab: &Lab, args: &[&str]) -> Value {
    let output = connectivity_test(lab, &[args, &["-o", "json"]].concat());
    if !output.status.success() {
        lab.print_world();
        panic!("{}", text(&output));
    }
    let results = results(lab, &output);
    assert_eq!(results["success"], true);
    assert_eq!(results["failed"], 0);
    results
}

/// Every test with policies succeeds, over both families where there are both.
fn check_policies(test: &str, settings: &[&str]) {
    if !can_run(test) {
        return;
    }
    let lab = Lab::up(2, settings, &[]);
    let results = succeed(&lab, &[&PATIENT[..], &[POLICIES]].concat());
    let tests = results["tests"].as_array().unwrap();
    assert!(tests.len() > 40, "{} tests", tests.len());
    for test in tests {
        for scenario in test["scenarios"].as_array().unwrap() {
            assert!(scenario["skipped"].is_null(), "{scenario}");
            for family in ["-ipv4-", "-ipv6-"] {
                let actions = scenario["actions"].as_array().unwrap();
                let is_of = |action: &Value| action["name"].as_str().unwrap().contains(family);
                assert!(actions.iter().any(is_of), "{family}: {scenario}");
            }
        }
    }
    // Nothing of it stays.
    for kind in ["cnp", "ccnp", "netpol", "ciliumcidrgroups"] {
        assert_eq!(lab.kubectl(&["get", kind, "-A", "-o", "name"]), "");
    }
}

#[test]
fn connectivity_test_policies_tunnel() {
    check_policies("connectivity_test_policies_tunnel", &[]);
}

#[test]
fn connectivity_test_policies_native() {
    check_policies("connectivity_test_policies_native", &NATIVE);
}

/// Tests with policies that let everybody through who asks in them.
const ALL_ANSWERED: [&str; 2] =
    ["egress-to-specific-namespace-ccnp", "ingress-from-specific-namespace-ccnp"];

/// Where agents enforce nothing, every test fails that expects silence, by exactly those actions.
#[test]
fn connectivity_test_fails_when_policies_are_not_enforced() {
    if !can_run("connectivity_test_fails_when_policies_are_not_enforced") {
        return;
    }
    let lab = Lab::up(2, &["enable-policy=never"], &[]);
    let policies = [POLICIES, "--ip-families=ipv4", "-o", "json"];
    let output = connectivity_test(&lab, &[&PATIENT[..], &policies].concat());
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    let results = results(&lab, &output);
    for test in results["tests"].as_array().unwrap() {
        let scenarios = test["scenarios"].as_array().unwrap().iter();
        let actions: Vec<&Value> =
            scenarios.flat_map(|scenario| scenario["actions"].as_array().unwrap()).collect();
        let failed: Vec<&&Value> = actions.iter().filter(|a| a["success"] == false).collect();
        let name = test["name"].as_str().unwrap();
        let is_green = failed.is_empty();
        assert_eq!(is_green, ALL_ANSWERED.contains(&name), "{name} without enforcement");
        for action in failed {
            let error = action["error"].as_str().unwrap();
            assert!(error.starts_with("policy should drop it, but"), "{action}");
        }
    }
}

#[test]
fn connectivity_test_tunnel_dual_stack() {
    check("connectivity_test_tunnel_dual_stack", &[], &["ipv4", "ipv6"]);
}

#[test]
fn connectivity_test_tunnel_v4_only() {
    check("connectivity_test_tunnel_v4_only", &["enable-ipv6=false"], &["ipv4"]);
}

#[test]
fn connectivity_test_tunnel_v6_only() {
    check("connectivity_test_tunnel_v6_only", &["enable-ipv4=false"], &["ipv6"]);
}

const NATIVE: [&str; 2] = ["routing-mode=native", "auto-direct-node-routes=true"];

#[test]
fn connectivity_test_native_dual_stack() {
    check("connectivity_test_native_dual_stack", &NATIVE, &["ipv4", "ipv6"]);
}

#[test]
fn connectivity_test_native_v4_only() {
    let settings = [&NATIVE[..], &["enable-ipv6=false"]].concat();
    check("connectivity_test_native_v4_only", &settings, &["ipv4"]);
}

#[test]
fn connectivity_test_native_v6_only() {
    let settings = [&NATIVE[..], &["enable-ipv4=false"]].concat();
    check("connectivity_test_native_v6_only", &settings, &["ipv6"]);
}

/// What does not cross the cut wire still works; what does is named, with a way to repeat it.
#[test]
fn connectivity_test_fails_when_a_wire_is_cut() {
    let test = "connectivity_test_fails_when_a_wire_is_cut";
    if !can_run(test) {
        return;
    }
    let lab = Lab::up(2, &[], &[]);
    let quick = [&QUICK[..], &["--ip-families=ipv4"]].concat();
    let whole =
        connectivity_test(&lab, &[&quick[..], &["--test=^no-policies/pod-to-pod$"]].concat());
    if !whole.status.success() {
        lab.print_world();
        panic!("{}", text(&whole));
    }
    // The exec streams do not cross this wire: the supervisor serves them itself.
    lab.on_node("hub", &["ip", "link", "set", "node-2", "down"]);
    let args = [&quick[..], &["--test=^no-policies/pod-to-pod$", "-o", "json"]].concat();
    let cut = connectivity_test(&lab, &args);
    assert_eq!(cut.status.code(), Some(1), "{}", text(&cut));
    let results = results(&lab, &cut);
    assert_eq!(results["success"], false);
    for action in actions(&results) {
        let near = |end: &str| {
            let end = action[end].as_str().unwrap();
            !end.contains("client3") && !end.contains("echo-other-node")
        };
        let crosses = near("from") != near("to");
        assert_eq!(action["success"], !crosses, "{action}");
        let command = action["command"].as_str().unwrap();
        assert!(command.starts_with("kubectl -n cilium-test-1 exec client"), "{command}");
        assert_eq!(action["error"].is_string(), crosses, "{action}");
    }
    let told = String::from_utf8_lossy(&cut.stderr);
    for word in ["Test Report", "again: kubectl", "Pods:", "Endpoints:", "Dropped during"] {
        assert!(told.contains(word), "{word:?} is not in {told}");
    }
}

/// A wire that is narrower than the pods' routes say lets small packets pass, and is noticed.
#[test]
fn connectivity_test_fails_when_large_packets_are_lost() {
    if !can_run("connectivity_test_fails_when_large_packets_are_lost") {
        return;
    }
    let lab = Lab::up(2, &[], &[]);
    lab.on_node("node-1", &["ip", "link", "set", "eth0", "mtu", "1400"]);
    let args =
        [&QUICK[..], &["--test=^no-policies/pod-to-pod$|^pod-to-pod-no-frag/", "-o", "json"]]
            .concat();
    let output = connectivity_test(&lab, &args);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    let results = results(&lab, &output);
    let failed: BTreeSet<&str> = actions(&results)
        .into_iter()
        .filter(|action| action["success"] == false)
        .map(|action| action["name"].as_str().unwrap().rsplit_once('/').unwrap().0)
        .collect();
    assert_eq!(failed, BTreeSet::from(["pod-to-pod-no-frag/pod-to-pod-no-frag"]), "{results}");
}

/// Selection, formats and wrong usage.
#[test]
fn connectivity_test_usage() {
    if !can_run("connectivity_test_usage") {
        return;
    }
    let lab = Lab::up(1, &[], &[]);
    let listed = connectivity_test(&lab, &["--list", "--test", "^no-policies/pod-to,!cidr"]);
    let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
    let names: Vec<&str> =
        listed.lines().skip(1).map(|line| line.split(' ').next().unwrap()).collect();
    assert_eq!(names, ["no-policies/pod-to-pod", "no-policies/pod-to-host"]);
    let wrong = connectivity_test(&lab, &["--test", "no-such-test"]);
    assert_eq!(wrong.status.code(), Some(1), "{}", text(&wrong));
    assert!(text(&wrong).contains("--list"), "{}", text(&wrong));
    // One node is enough for what one node can show.
    let args = [&PATIENT[..], &["-o", "junit", "--test", "^no-policies/pod-to-pod$"]].concat();
    let junit = connectivity_test(&lab, &args);
    assert!(junit.status.success(), "{}", text(&junit));
    let junit = String::from_utf8_lossy(&junit.stdout).into_owned();
    assert!(junit.starts_with("<?xml"), "{junit}");
    assert!(junit.contains("failures=\"0\""), "{junit}");
    assert!(!junit.contains("echo-other-node"), "{junit}");
    // A world that does not answer is a failure, not a skip.
    let lost = connectivity_test(
        &lab,
        &[
            "--test=cidr",
            "--external-ip=198.51.100.1",
            "--ip-families=ipv4",
            "--connect-timeout=1s",
            "--request-timeout=2s",
        ],
    );
    assert_eq!(lost.status.code(), Some(1), "{}", text(&lost));
    assert!(text(&lost).contains("198.51.100.1"), "{}", text(&lost));
}
