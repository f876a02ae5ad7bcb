//! Nodes probe each other: over their own network, and as pods' traffic goes.

use std::process::Command;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::world::{Lab, bin_dir, can_run, text};

/// For what happens within seconds, on a machine that does other things as well.
const PATIENCE: Duration = Duration::from_secs(90);

/// What node-1 finds when it probes now.
fn probe(lab: &Lab) -> Value {
    let args =
        ["health", "status", "--probe", "-o", "json", "--node", "node-1", "--lab", &lab.name];
    let output = Command::new(bin_dir().join("cilium")).args(args).output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// The statuses of one protocol over all paths to a node; the empty one is success.
fn statuses(found: &Value, node: &str, target: &str, protocol: &str) -> Vec<String> {
    let nodes = found["nodes"].as_array().unwrap();
    let Some(node) = nodes.iter().find(|n| n["name"] == format!("default/{node}")) else {
        return Vec::new();
    };
    let target = &node[target];
    let others = target["secondary-addresses"].as_array().into_iter().flatten();
    let paths = target.get("primary-address").into_iter().chain(others);
    paths.map(|path| path[protocol]["status"].as_str().unwrap_or_default().to_owned()).collect()
}

const TARGETS: [&str; 2] = ["host", "health-endpoint"];
const PROTOCOLS: [&str; 2] = ["icmp", "http"];

/// Whether node-1 reaches both nodes and both health endpoints by both families and protocols.
fn all_is_well(lab: &Lab) -> bool {
    let found = probe(lab);
    ["node-1", "node-2"].iter().all(|node| {
        TARGETS.iter().all(|target| {
            PROTOCOLS.iter().all(|protocol| statuses(&found, node, target, protocol) == ["", ""])
        })
    })
}

fn check(test: &str, settings: &[&str]) {
    if !can_run(test) {
        return;
    }
    let lab = Lab::up(2, settings, &[]);
    lab.eventually("everybody reaches everybody", PATIENCE, || all_is_well(&lab));
    let announced = lab.kubectl(&["get", "ciliumnode", "node-2", "-o", "jsonpath={.spec.health}"]);
    assert!(announced.contains("10.244.") && announced.contains("fd00:10::"), "{announced}");

    // An agent that hangs: the kernel answers for it, HTTP does not.
    let agent = Pid::from_raw(lab.agent_pid(2).unwrap());
    kill(agent, Signal::SIGSTOP).unwrap();
    let found = probe(&lab);
    kill(agent, Signal::SIGCONT).unwrap();
    for target in TARGETS {
        assert_eq!(statuses(&found, "node-2", target, "icmp"), ["", ""], "{target}");
        assert_eq!(statuses(&found, "node-2", target, "http"), ["no answer", "no answer"]);
        assert_eq!(statuses(&found, "node-1", target, "http"), ["", ""], "{target}");
    }
    lab.eventually("the agent has gone on", PATIENCE, || all_is_well(&lab));

    // An agent that was killed leaves its health endpoint to its successor.
    kill(agent, Signal::SIGKILL).unwrap();
    lab.eventually("the new agent answers", PATIENCE, || all_is_well(&lab));
    let after = lab.kubectl(&["get", "ciliumnode", "node-2", "-o", "jsonpath={.spec.health}"]);
    assert_eq!(after, announced, "the addresses stay");
}

#[test]
fn nodes_reach_each_other_through_the_tunnel() {
    check("nodes_reach_each_other_through_the_tunnel", &[]);
}

#[test]
fn nodes_reach_each_other_by_native_routing() {
    let settings = ["routing-mode=native", "auto-direct-node-routes=true"];
    check("nodes_reach_each_other_by_native_routing", &settings);
}
