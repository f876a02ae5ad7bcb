//! What packets really do is what `hubble` says, of one node and through the relay of all.

use std::collections::BTreeSet;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use crate::world::{Lab, bin_dir, can_run, curl, pod, server, text};

/// For what happens within seconds, on a machine that does other things as well.
const PATIENCE: Duration = Duration::from_secs(90);

/// What `hubble` prints when it asks the lab's relay.
fn hubble(lab: &Lab, args: &[&str]) -> Result<String, String> {
    let relay = lab.status()["hubble_relay"].as_str().unwrap_or_default().to_owned();
    let output = Command::new(bin_dir().join("hubble"))
        .args(["--server", &relay])
        .args(args)
        .output()
        .expect("hubble is built with the rest");
    if output.status.success() { Ok(text(&output)) } else { Err(text(&output)) }
}

/// The flows that `hubble observe` prints.
fn observe(lab: &Lab, args: &[&str]) -> Vec<Value> {
    let printed = hubble(lab, &[&["observe", "-o", "json"], args].concat()).unwrap_or_default();
    let responses = printed.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    responses.map(|response| response["flow"].clone()).filter(Value::is_object).collect()
}

fn seen(flows: &[Value]) -> BTreeSet<String> {
    let name = |flow: &Value| {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        format!("{} {}", text(&flow["node_name"]), text(&flow["trace_observation_point"]))
    };
    flows.iter().map(name).collect()
}

fn connected(lab: &Lab) -> bool {
    hubble(lab, &["status"]).is_ok_and(|status| status.contains("Connected Nodes: 2/2"))
}

#[test]
fn flows_are_those_of_the_packets() {
    if !can_run("flows_are_those_of_the_packets") {
        return;
    }
    let objects = [pod("client", Some(1)), server("web", 2)];
    let lab = Lab::up(2, &["monitor-aggregation=none"], &objects);
    lab.eventually("the relay is connected to both nodes", PATIENCE, || connected(&lab));
    let address = lab.addresses("web")[0];
    let request = curl(address, "/hostname");
    let request: Vec<&str> = request.iter().map(String::as_str).collect();

    // The first packet passes six places on two nodes, and nothing else is said of it. A node that
    // has not heard of a new pod yet cannot name it, so there may have to be another request.
    let expected: BTreeSet<String> = [
        "node-1 FROM_ENDPOINT",
        "node-1 TO_OVERLAY",
        "node-1 TO_NETWORK",
        "node-2 FROM_NETWORK",
        "node-2 FROM_OVERLAY",
        "node-2 TO_ENDPOINT",
    ]
    .map(str::to_owned)
    .into();
    let first =
        ["--all", "-t", "trace", "--from-pod", "client", "--to-pod", "web", "--tcp-flags", "SYN"];
    let mut flows = Vec::new();
    lab.eventually("the first packet is seen everywhere", PATIENCE, || {
        lab.exec("client", &request);
        flows = observe(&lab, &first);
        let seen = seen(&flows);
        assert!(seen.is_subset(&expected), "{seen:?}");
        seen == expected
    });
    for flow in &flows {
        assert_eq!(flow["destination"]["pod_name"], "web", "{flow}");
        assert_eq!(flow["source"]["namespace"], "default", "{flow}");
        assert_eq!(flow["IP"]["destination"], address.to_string(), "{flow}");
        assert_eq!(flow["verdict"], "FORWARDED", "{flow}");
        let labels = flow["source"]["labels"].as_array().expect("labels");
        assert!(labels.contains(&"k8s:io.kubernetes.pod.namespace=default".into()), "{flow}");
    }
    lab.eventually("the answer is seen as well", PATIENCE, || {
        !observe(&lab, &["--all", "--from-pod", "web", "--to-pod", "client"]).is_empty()
    });
    assert_eq!(
        observe(&lab, &["--all", "--from-pod", "web", "--to-pod", "nobody"]),
        [] as [Value; 0]
    );
}

#[test]
fn the_relay_survives_an_agent_and_strangers_see_nothing() {
    if !can_run("the_relay_survives_an_agent_and_strangers_see_nothing") {
        return;
    }
    let lab = Lab::up(2, &[], &[pod("client", Some(1)), server("web", 2)]);
    lab.eventually("the relay is connected to both nodes", PATIENCE, || connected(&lab));

    // Agents serve with mutual TLS: without a certificate there is nothing to see.
    let program = bin_dir().join("hubble").display().to_string();
    let server = "127.0.0.1:4244";
    for flags in [&["--server", server][..], &["--server", server, "--tls-allow-insecure", "--tls"]]
    {
        let asked = [&[program.as_str()], flags, &["observe"]].concat();
        lab.try_on_node("node-2", &asked).expect_err("a stranger sees no flow");
    }

    let before = lab.agent_pid(1).expect("an agent");
    let killed =
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(before), nix::sys::signal::SIGKILL);
    killed.expect("the agent is killed");
    lab.eventually("the agent runs again", PATIENCE, || {
        lab.agent_pid(1).is_some_and(|now| now != before)
    });
    lab.eventually("the relay is connected again", PATIENCE, || connected(&lab));
    let request = curl(lab.addresses("web")[0], "/hostname");
    let request: Vec<&str> = request.iter().map(String::as_str).collect();
    lab.eventually("flows of the new agent come", PATIENCE, || {
        lab.exec("client", &request);
        let flows = observe(&lab, &["--all", "--from-pod", "client", "--to-pod", "web"]);
        flows.iter().any(|flow| flow["node_name"] == "node-2")
    });
}

#[test]
fn verdicts_name_the_policy_and_drops_are_explained() {
    if !can_run("verdicts_name_the_policy_and_drops_are_explained") {
        return;
    }
    let labelled = |mut pod: Value| {
        let name = pod["metadata"]["name"].clone();
        pod["metadata"]["labels"] = serde_json::json!({"app": name});
        pod
    };
    let policy = serde_json::json!({
        "apiVersion": "cilium.io/v2", "kind": "CiliumNetworkPolicy",
        "metadata": {"name": "only-client", "namespace": "default"},
        "spec": {
            "endpointSelector": {"matchLabels": {"app": "web"}},
            "ingress": [{
                "fromEndpoints": [{"matchLabels": {"app": "client"}}],
                "toPorts": [{"ports": [{"port": "8080", "protocol": "TCP"}]}],
            }],
        },
    });
    let pods = [labelled(pod("client", Some(1))), labelled(pod("stranger", Some(1)))];
    let objects = [&pods[..], &[labelled(server("web", 2)), policy]].concat();
    let lab = Lab::up(2, &[], &objects);
    lab.eventually("the relay is connected to both nodes", PATIENCE, || connected(&lab));
    let request = curl(lab.addresses("web")[0], "/hostname");
    let request: Vec<&str> = request.iter().map(String::as_str).collect();
    let short: Vec<&str> =
        request.iter().map(|word| if *word == "10" { "1" } else { *word }).collect();

    let verdicts = |from: &str| {
        let args = ["--all", "-t", "policy-verdict", "--from-pod", from, "--to-pod", "web"];
        observe(&lab, &args)
    };
    lab.eventually("an allowed flow names the policy", PATIENCE, || {
        // Refused for as long as the policy's maps are not there yet, or a pod is not known yet.
        let _ = lab.try_exec("client", &short);
        verdicts("client").iter().any(|flow| {
            flow["verdict"] == "FORWARDED" && flow["ingress_allowed_by"][0]["name"] == "only-client"
        })
    });
    lab.eventually("a stranger is denied", PATIENCE, || {
        let _ = lab.try_exec("stranger", &short);
        verdicts("stranger")
            .iter()
            .any(|flow| flow["verdict"] == "DROPPED" && flow["drop_reason_desc"] == "POLICY_DENIED")
    });
    lab.eventually("the drop is explained", PATIENCE, || {
        let explained = hubble(&lab, &["explain", "--last-drop", "--from-pod", "stranger"]);
        explained.is_ok_and(|text| {
            text.contains("default/stranger") && text.contains("none of their ingress rules allows")
        })
    });
}
