//! The commands that make things go wrong: pause, cut, kill; and logs, which tell of it.

use std::time::Duration;

use serde_json::json;

use crate::world::{Lab, can_run, curl, pod, server, text};

const PATIENCE: Duration = Duration::from_secs(60);

#[test]
fn wires_are_cut_and_mended() {
    if !can_run("wires_are_cut_and_mended") {
        return;
    }
    let lab = Lab::up(3, &[], &[server("a", 1), pod("b", Some(2)), pod("c", Some(3))]);
    for address in lab.addresses("a") {
        let url = curl(address, "hostname");
        let argv: Vec<&str> = url.iter().map(String::as_str).collect();
        let reaches = |from: &str| lab.try_exec(from, &argv).is_ok();
        lab.eventually("everybody reaches a", PATIENCE, || reaches("b") && reaches("c"));
        lab.run("cut", &["node-1", "node-2"]);
        assert!(!reaches("b"), "through a wire that is cut");
        assert!(reaches("c"), "over a wire that is whole");
        let cut = &lab.status()["cuts"][0];
        assert_eq!(*cut, json!(["node-1", "node-2"]));
        lab.run("mend", &["node-2", "node-1"]);
        lab.eventually("b reaches a again", PATIENCE, || reaches("b"));
    }
    let refused = |verb: &str, args: &[&str], words: &str| {
        let output = lab.command(verb).args(args).output().unwrap();
        assert!(!output.status.success() && text(&output).contains(words), "{}", text(&output));
    };
    refused("mend", &["node-1", "node-2"], "nothing is cut between");
    refused("cut", &["node-1", "node-9"], "is not on the wire, but: external, node-1");
    refused("cut", &["node-1", "node-1"], "two different nodes");
    refused("pause", &["node-9"], "but: node-1, node-2, node-3");
    refused("kill", &["node-9", "agent"], "has no node \"node-9\", but: external, hub, node-1");
    refused("kill", &["node-1", "nobody"], "has no program \"nobody\", but: agent");
    refused("kill", &["node-1", "b"], "does not run on node-1, but on node-2");
    refused(
        "logs",
        &["node-1", "nobody"],
        "there is no log of nobody on node-1; there are: agent-node-1",
    );
}

#[test]
fn nodes_stand_still_and_programs_are_killed() {
    if !can_run("nodes_stand_still_and_programs_are_killed") {
        return;
    }
    let mut ticking = pod("ticking", Some(1));
    ticking["spec"]["containers"][0] = json!({"name": "c", "image": "x",
        "command": ["sh", "-c", "while :; do echo tick; sleep 0.05; done"]});
    let lab = Lab::up(1, &[], &[ticking]);
    let ticks = || lab.run("logs", &["node-1", "ticking"]).lines().count();
    lab.eventually("it ticks", PATIENCE, || ticks() > 3);
    lab.run("pause", &["node-1"]);
    assert_eq!(lab.status()["nodes"][0]["paused"], true);
    let before = ticks();
    let refused = lab.try_exec("ticking", &["true"]).unwrap_err();
    assert!(refused.contains("is paused"), "{refused}");
    let refused = lab.try_kubectl(&["exec", "ticking", "--", "true"], "").unwrap_err();
    assert!(refused.contains("node-1 is paused"), "{refused}");
    // Nothing is done on a node that stands still, but it is not forgotten either.
    lab.kubectl(&["delete", "pod", "ticking", "--wait=false"]);
    assert_eq!(ticks(), before);
    lab.run("resume", &["node-1"]);
    lab.kubectl(&["wait", "--for=delete", "--timeout=60s", "pod/ticking"]);

    let before = lab.agent_pid(1).unwrap();
    lab.run("kill", &["node-1", "agent"]);
    lab.eventually("another agent runs", PATIENCE, || {
        lab.agent_pid(1).is_some_and(|pid| pid != before)
    });
    lab.run("kill", &["hub", "operator", "--signal", "TERM"]);
    lab.eventually("the supervisor has seen it", PATIENCE, || {
        lab.run("logs", &["--tail", "20"]).contains("ended: ")
    });
    assert!(!lab.run("logs", &["hub", "--tail=1"]).is_empty());
}
