//! Pods talk: on one node and across nodes, with hosts and with the world outside, in every mode.

use std::io::{BufRead as _, BufReader};
use std::net::IpAddr;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use lab::spec::{INTERNET, NodeSpec};
use serde_json::{Value, json};

use crate::world::{Lab, bin_dir, can_run, curl, pod, server};

/// Starts two nodes with these settings and lets everything talk to everything else.
fn check(test: &str, settings: &[&str], families: &[&str]) {
    if !can_run(test) {
        return;
    }
    let pods = [pod("client", Some(1)), server("near", 1), server("far", 2)];
    let lab = Lab::up(2, settings, &pods);
    let own = lab.addresses("client");
    let named: Vec<&str> = own.iter().map(|ip| if ip.is_ipv4() { "v4" } else { "v6" }).collect();
    assert_eq!(named, families, "{own:?}");
    for own in own {
        for peer in ["near", "far"] {
            let all = lab.addresses(peer);
            let address = *all.iter().find(|ip| ip.is_ipv4() == own.is_ipv4()).unwrap();
            pod_to_pod(&lab, own, address);
            let words: Vec<String> = curl(address, "hostname");
            let words: Vec<&str> = words.iter().map(String::as_str).collect();
            // From both nodes, so that each pod is once the near and once the far one.
            assert_eq!(lab.on_node("node-1", &words), peer);
            assert_eq!(lab.on_node("node-2", &words), peer);
        }
        let same_family = |ip: &IpAddr| ip.is_ipv4() == own.is_ipv4();
        for number in [1, 2] {
            let host = NodeSpec::new(number).addresses().into_iter().find(same_family).unwrap();
            lab.exec("client", &["ping", "-c2", "-i0.2", "-W20", &host.to_string()]);
        }
        let internet =
            [IpAddr::V4(INTERNET.0), IpAddr::V6(INTERNET.1)].into_iter().find(same_family);
        let url = format!("http://{}/clientip", std::net::SocketAddr::new(internet.unwrap(), 80));
        let seen = lab.exec("client", &["curl", "-sS", "-m20", &url]);
        assert!(seen.contains(&own.to_string()), "the world outside sees {seen}, not {own}");
        lab.on_node("external", &["ping", "-c2", "-i0.2", "-W20", &own.to_string()]);
    }
    mtu(&lab);
}

fn pod_to_pod(lab: &Lab, own: IpAddr, address: IpAddr) {
    lab.exec("client", &["ping", "-c3", "-i0.2", "-W20", &address.to_string()]);
    let words = curl(address, "clientip");
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let seen = lab.exec("client", &words);
    assert!(seen.contains(&own.to_string()), "{address} sees {seen}, not {own}");
    let target = std::net::SocketAddr::new(address, 8081).to_string();
    let cilium = crate::world::bin_dir().join("cilium");
    let ask = [
        cilium.to_str().unwrap(),
        "lab",
        "image",
        "agnhost",
        "connect",
        "--protocol=udp",
        "--timeout=20s",
    ];
    lab.exec("client", &[&ask[..], &[&target]].concat());
}

/// The largest packet that the pod's route allows arrives, across nodes as well.
fn mtu(lab: &Lab) {
    for address in lab.addresses("far") {
        let (route, headers) = match address {
            IpAddr::V4(_) => (vec!["ip", "-4", "route", "show", "default"], 28),
            IpAddr::V6(_) => (vec!["ip", "-6", "route", "show", "default"], 48),
        };
        let text = lab.exec("client", &route);
        let mtu = text
            .split_once("mtu ")
            .map_or("1500", |(_, rest)| rest.split_whitespace().next().unwrap());
        let size = (mtu.parse::<usize>().unwrap() - headers).to_string();
        let ping =
            ["ping", "-c1", "-W20", "-Mdo", "-s", &size, &address.to_string()].map(str::to_owned);
        lab.exec("client", &ping.each_ref().map(String::as_str));
    }
}

#[test]
fn tunnel_dual_stack() {
    check("tunnel_dual_stack", &[], &["v4", "v6"]);
}

#[test]
fn tunnel_v4_only() {
    check("tunnel_v4_only", &["enable-ipv6=false"], &["v4"]);
}

#[test]
fn tunnel_v6_only() {
    check("tunnel_v6_only", &["enable-ipv4=false"], &["v6"]);
}

const NATIVE: [&str; 2] = ["routing-mode=native", "auto-direct-node-routes=true"];

#[test]
fn native_dual_stack() {
    check("native_dual_stack", &NATIVE, &["v4", "v6"]);
}

#[test]
fn native_v4_only() {
    check("native_v4_only", &[&NATIVE[..], &["enable-ipv6=false"]].concat(), &["v4"]);
}

#[test]
fn native_v6_only() {
    check("native_v6_only", &[&NATIVE[..], &["enable-ipv4=false"]].concat(), &["v6"]);
}

#[test]
fn addresses_of_the_node_object() {
    check("addresses_of_the_node_object", &["ipam=kubernetes"], &["v4", "v6"]);
}

/// How many pods come at once, on two nodes.
const BURST: u32 = 60;

/// A pod that sends one UDP packet to each address the moment it runs, and succeeds when each is
/// answered. UDP sends nothing twice.
fn asks_once(name: &str, node: u32, servers: &[IpAddr]) -> Value {
    let mut script = String::from(
        "ask() { exec 3<>/dev/udp/$1/8081; printf 'echo hi' >&3; read -t 30 -N 2 answer <&3; [ \"$answer\" = hi ]; }; true",
    );
    for server in servers {
        script.push_str(&format!(" && ask {server}"));
    }
    let mut pod = pod(name, Some(node));
    pod["metadata"]["labels"] = json!({"app": "asks-once"});
    pod["spec"]["restartPolicy"] = json!("Never");
    pod["spec"]["containers"][0] =
        json!({"name": "c", "image": "any", "command": ["bash", "-c", script]});
    pod
}

#[test]
fn first_packets_of_a_burst_arrive_with_the_right_identity() {
    if !can_run("first_packets_of_a_burst_arrive_with_the_right_identity") {
        return;
    }
    let lab = Lab::up(2, &[], &[server("near", 1), server("far", 2)]);
    let servers: Vec<IpAddr> = ["near", "far"].iter().flat_map(|s| lab.addresses(s)).collect();
    let seen = Arc::new(Mutex::new(Vec::<Value>::new()));
    let mut monitor = Command::new(bin_dir().join("cilium"));
    monitor.args(["monitor", "--lab", &lab.name, "-t", "trace", "-n", "-o", "json"]);
    let mut monitor = monitor.stdout(Stdio::piped()).spawn().unwrap();
    let lines = BufReader::new(monitor.stdout.take().unwrap()).lines();
    let reader = std::thread::spawn({
        let seen = seen.clone();
        move || {
            for event in lines.map_while(Result::ok) {
                let event: Value = serde_json::from_str(&event).unwrap();
                if event["observationPoint"] == "to-endpoint" {
                    seen.lock().unwrap().push(event);
                }
            }
        }
    });
    // Both nodes' events are read from here on.
    for server in ["near", "far"] {
        let address = lab.addresses(server)[0];
        lab.eventually("the monitor sees events", Duration::from_secs(60), || {
            lab.on_node("node-1", &["ping", "-c1", "-W20", &address.to_string()]);
            let events = seen.lock().unwrap();
            events.iter().any(|event| event["summary"]["l3"]["dst"] == address.to_string())
        });
    }

    let pods: Vec<Value> =
        (0..BURST).map(|n| asks_once(&format!("asks-{n}"), 1 + n % 2, &servers)).collect();
    lab.apply(&pods);
    lab.eventually("every first packet is answered", Duration::from_secs(180), || {
        let pods = lab.pods();
        let phases = pods.iter().filter(|pod| pod["metadata"]["labels"]["app"] == "asks-once");
        let phases: Vec<_> = phases.map(|pod| pod["status"]["phase"].clone()).collect();
        assert!(!phases.contains(&json!("Failed")), "a first packet was lost: {phases:?}");
        phases.iter().filter(|phase| **phase == "Succeeded").count() == BURST as usize
    });

    let identities: Value =
        serde_json::from_str(&lab.kubectl(&["get", "ciliumid", "-o", "json"])).unwrap();
    let mut identities = identities["items"].as_array().unwrap().iter();
    let identity = identities.find(|id| id["security-labels"]["k8s:app"] == "asks-once").unwrap();
    let identity: u64 = identity["metadata"]["name"].as_str().unwrap().parse().unwrap();
    let senders: Vec<IpAddr> =
        (0..BURST).flat_map(|n| lab.addresses(&format!("asks-{n}"))).collect();
    let is_to_server = |event: &Value| event["summary"]["l4"]["dst"] == 8081;
    let of = |events: &[Value], sender: &IpAddr| {
        let from = |event: &&Value| event["summary"]["l3"]["src"] == sender.to_string();
        events.iter().filter(|e| is_to_server(e)).filter(from).cloned().collect::<Vec<_>>()
    };
    lab.eventually("the monitor has told all", Duration::from_secs(60), || {
        let events = seen.lock().unwrap();
        senders.iter().all(|sender| of(&events, sender).len() >= 2)
    });
    monitor.kill().unwrap();
    monitor.wait().unwrap();
    reader.join().unwrap();
    let events = seen.lock().unwrap();
    for sender in &senders {
        for event in of(&events, sender) {
            assert_eq!(event["srcLabel"], identity, "{sender}: {event}");
        }
    }
}
