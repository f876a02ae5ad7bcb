//! A lab comes, and goes without a trace.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::world::{Lab, can_run, pod, server, text, traces};

#[test]
fn two_nodes_are_up_within_five_seconds() {
    if !can_run("two_nodes_are_up_within_five_seconds") {
        return;
    }
    let lab = Lab::up(2, &[], &[]);
    let status = lab.status();
    assert_eq!(status["nodes"].as_array().unwrap().len(), 2);
    for (index, node) in status["nodes"].as_array().unwrap().iter().enumerate() {
        assert_eq!(node["name"], format!("node-{}", index + 1));
        assert_eq!(node["ready"], true);
        assert!(node["agent_pid"].is_i64(), "{node}");
        for path in ["netns", "agent_socket", "bpffs"] {
            let path = node[path].as_str().unwrap();
            assert!(std::fs::exists(path).unwrap(), "{path}");
        }
    }
    let relay = status["hubble_relay"].as_str().expect("hubble-relay is built with the rest");
    assert!(relay.starts_with("unix:///"), "{relay}");
    assert!(status["hubble_ui"].is_null());
    let nodes = lab.kubectl(&["get", "nodes", "--no-headers"]);
    assert_eq!(nodes.lines().filter(|line| line.contains(" Ready ")).count(), 2, "{nodes}");
    // Other work on the machine, such as this test's own build, must not make the test fail.
    assert!(lab.took < Duration::from_secs(60), "took {:?}", lab.took);
    eprintln!("lab up --nodes 2 took {:?}", lab.took);
}

#[test]
fn nothing_is_left_after_down() {
    if !can_run("nothing_is_left_after_down") {
        return;
    }
    let lab = Lab::up(2, &[], &[server("a", 1), server("b", 2)]);
    let name = lab.name.clone();
    assert!(!traces(&name).is_empty());
    lab.run("down", &[]);
    assert_eq!(traces(&name), BTreeSet::new());
    // Removing what is not there is no error.
    lab.run("down", &[]);
}

#[test]
fn nothing_is_left_after_a_crash() {
    if !can_run("nothing_is_left_after_a_crash") {
        return;
    }
    let lab = Lab::up(2, &[], &[server("a", 1), server("b", 2)]);
    let name = lab.name.clone();
    // With the guardian, which would start another one.
    let cgroups = kernel::cgroup::Cgroup::root().unwrap().path().join("cilium-lab").join(&name);
    kernel::cgroup::Cgroup::at(cgroups.join("supervisor")).kill().unwrap();
    // It may take a moment to be gone.
    let mut words = String::new();
    lab.eventually("the supervisor is gone", Duration::from_secs(60), || {
        let status = lab.command("status").output().unwrap();
        words = text(&status);
        !status.status.success() && !words.contains("does not answer")
    });
    assert!(words.contains("has crashed") && words.contains("cilium lab down --name"), "{words}");
    let again = lab.command("up").output().unwrap();
    assert!(!again.status.success());
    assert!(text(&again).contains("exists already"), "{}", text(&again));
    assert!(lab.run("list", &[]).lines().any(|l| l.starts_with(&name) && l.ends_with("crashed")));
    lab.run("down", &[]);
    assert_eq!(traces(&name), BTreeSet::new());
}

#[test]
fn an_interrupted_start_leaves_nothing_that_down_cannot_remove() {
    if !can_run("an_interrupted_start_leaves_nothing_that_down_cannot_remove") {
        return;
    }
    let mut lab = Lab::up(1, &[], &[]);
    lab.run("down", &[]);
    for delay_ms in [0, 20, 60, 120, 250] {
        lab.name = format!("{}i", lab.name);
        let mut up = lab.command("up").stderr(std::process::Stdio::null()).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(delay_ms));
        up.kill().unwrap();
        up.wait().unwrap();
        lab.run("down", &[]);
        assert_eq!(traces(&lab.name), BTreeSet::new(), "after {delay_ms} ms");
    }
}

#[test]
fn labs_live_side_by_side() {
    if !can_run("labs_live_side_by_side") {
        return;
    }
    let first = Lab::up(1, &[], &[server("a", 1)]);
    let second = Lab::up(1, &[], &[server("a", 1), pod("client", Some(1))]);
    assert_eq!(first.addresses("a").len(), 2);
    // The same addresses in both; each answers in its own.
    for lab in [&first, &second] {
        let address = lab.addresses("a")[0];
        let answer = lab.on_node(
            "node-1",
            &["curl", "-sS", "-m20", &format!("http://{address}:8080/hostname")],
        );
        assert_eq!(answer, "a");
    }
    first.run("down", &[]);
    assert_eq!(traces(&first.name), BTreeSet::new());
    let address = second.addresses("a")[0].to_string();
    second.exec("client", &["ping", "-c1", "-W20", &address]);
}

#[test]
fn wrong_use_says_what_to_do() {
    if !can_run("wrong_use_says_what_to_do") {
        return;
    }
    let lab = Lab::up(1, &[], &[pod("client", None)]);
    let refused = |verb: &str, args: &[&str], words: &str| {
        let output = lab.command(verb).args(args).output().unwrap();
        assert!(!output.status.success(), "{verb} {args:?} succeeded");
        assert!(text(&output).contains(words), "{verb} {args:?}: {}", text(&output));
    };
    refused("up", &[], "choose another --name");
    refused("up", &["--nodes", "0"], "expected 1 to 254");
    refused("up", &["--set", "oops"], "expected KEY=VALUE");
    refused("up", &["-f", "/no/such/file"], "/no/such/file");
    refused("exec", &["nobody", "--", "true"], "kubectl get pods");
    refused("exec", &["client", "-c", "other", "--", "true"], "but: c");
    refused("exec", &["client", "--", "no-such-program"], "not found");
    refused("exec", &["--node", "node-7", "--", "true"], "no node");
    let exit = lab.command("exec").args(["client", "--", "sh", "-c", "exit 7"]).status().unwrap();
    assert_eq!(exit.code(), Some(7));
}
