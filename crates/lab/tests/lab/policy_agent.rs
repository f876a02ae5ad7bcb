//! What an agent makes of policies beside enforcing them: conditions, options, and what lies in its maps.

use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::policy_truth_table::policy_of;
use crate::probe::{Ground, Probe, Talk};
use crate::world::{Lab, can_run, pod, server};

/// For what happens within seconds, on a machine that does other things as well.
const PATIENCE: Duration = Duration::from_secs(60);
/// Where a netexec hears UDP.
const UDP: u16 = 8081;

fn policy(name: &str, spec: Value) -> Value {
    json!({
        "apiVersion": "cilium.io/v2", "kind": "CiliumNetworkPolicy",
        "metadata": {"name": name, "namespace": "default"}, "spec": spec,
    })
}

fn labelled(mut pod: Value, app: &str) -> Value {
    pod["metadata"]["labels"] = json!({"app": app});
    pod
}

/// Status and message of a condition of a policy.
fn condition(lab: &Lab, name: &str, kind: &str) -> Option<(String, String)> {
    let object: Value =
        serde_json::from_str(&lab.kubectl(&["get", "cnp", name, "-o", "json"])).ok()?;
    let conditions = object["status"]["conditions"].as_array()?;
    let found = conditions.iter().find(|condition| condition["type"] == kind)?;
    let text = |field: &str| Some(found[field].as_str()?.to_owned());
    Some((text("status")?, text("message")?))
}

/// The agent of a node, to be asked.
fn agent(lab: &Lab, node: usize) -> api::rest::Client {
    api::rest::Client::new(lab.dir().join(format!("nodes/node-{node}/run/cilium/cilium.sock")))
}

/// The endpoint of a pod as its agent shows it.
fn endpoint(lab: &Lab, node: usize, pod: &str) -> Option<api::rest::Endpoint> {
    let which: api::rest::EndpointRef = format!("pod-name:default/{pod}").parse().ok()?;
    agent(lab, node).get(&api::rest::path::endpoint(&which)).ok()
}

fn slot(lab: &Lab, node: usize, pod: &str) -> Option<u32> {
    endpoint(lab, node, pod)?.status.policy.realized.slot
}

/// Policies say whether they are accepted, whether all nodes enforce them, and what is not enforced
/// yet; a version that is refused says why, and leaves the last one in force.
#[test]
fn policies_say_how_they_are() {
    if !can_run("policies_say_how_they_are") {
        return;
    }
    let lab = Lab::up(2, &[], &[]);
    let web = |port: &str| {
        json!({
            "endpointSelector": {"matchLabels": {"app": "web"}},
            "ingress": [{"toPorts": [{"ports": [{"port": port, "protocol": "TCP"}]}]}],
        })
    };
    lab.apply(&[policy("web", web("80"))]);
    lab.kubectl(&["wait", "--for=condition=Enforced", "cnp/web", "--timeout=60s"]);
    assert_eq!(condition(&lab, "web", "Valid").unwrap().0, "True");

    let mut l7 = web("80");
    l7["ingress"][0]["toPorts"][0]["rules"] = json!({"http": [{"method": "GET"}]});
    lab.apply(&[policy("l7", l7)]);
    lab.kubectl(&["wait", "--for=condition=Enforced", "cnp/l7", "--timeout=60s"]);
    lab.eventually("what is not enforced is told", PATIENCE, || {
        condition(&lab, "l7", "PartiallySupported")
            .is_some_and(|(status, message)| status == "True" && message.contains("L7 rules"))
    });

    let mut both = web("81");
    both["ingress"][0]["fromEndpoints"] = json!([{}]);
    both["ingress"][0]["fromCIDR"] = json!(["192.0.2.0/24"]);
    lab.apply(&[policy("web", both)]);
    lab.eventually("the version is refused", PATIENCE, || {
        condition(&lab, "web", "Valid").is_some_and(|(status, _)| status == "False")
    });
    let (_, message) = condition(&lab, "web", "Valid").unwrap();
    assert!(message.contains("spec.ingress[0]"), "{message}");
    lab.eventually("and not enforced", PATIENCE, || {
        condition(&lab, "web", "Enforced").is_some_and(|(status, _)| status == "False")
    });
    for node in [1, 2] {
        lab.eventually("agents know that it was refused", PATIENCE, || {
            policy_of(&lab, node).is_some_and(|known| {
                known.policies.iter().any(|p| p.name == "web" && !p.errors.is_empty())
            })
        });
        let known = policy_of(&lab, node).unwrap();
        let web = known.policies.iter().find(|policy| policy.name == "web").unwrap();
        assert_eq!((web.generation, web.rules), (1, 1), "what was valid is in force");
    }
}

/// Pods of one policy share a slot, also behind the back of an agent that dies; one that is audited says
/// so and is reached; the flows of a deleted pod leave the maps.
#[test]
fn slots_are_shared_and_adopted() {
    if !can_run("slots_are_shared_and_adopted") {
        return;
    }
    let lab = Lab::up(1, &[], &[]);
    let mut pods = vec![labelled(pod("client", Some(1)), "client")];
    let servers = ["one", "two", "three"];
    pods.extend(servers.map(|name| labelled(server(name, 1), "server")));
    lab.create(pods);
    let spec = json!({
        "endpointSelector": {"matchLabels": {"app": "server"}},
        "ingress": [{"fromEndpoints": [{"matchLabels": {"app": "nobody"}}]}],
    });
    lab.apply(&[policy("closed", spec)]);
    lab.kubectl(&["wait", "--for=condition=Enforced", "cnp/closed", "--timeout=60s"]);
    let slots = servers.map(|name| slot(&lab, 1, name));
    assert!(slots[0].is_some() && slots.iter().all(|slot| *slot == slots[0]), "{slots:?}");

    let ground = Ground::of(&lab, &["default/client".to_owned()]);
    let asks = |name: &str| Probe {
        source: "default/client".to_owned(),
        target: lab.addresses(name)[0],
        talk: Talk::Udp(UDP),
    };
    assert!(!ground.is_answered(&asks("one")), "the policy lets nobody in");
    let pid = lab.agent_pid(1).unwrap();
    kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    lab.eventually("a new agent enforces what the old one did", PATIENCE, || {
        lab.agent_pid(1).is_some_and(|new| new != pid)
            && policy_of(&lab, 1).is_some_and(|known| known.realized_revision > 0)
    });
    assert_eq!(servers.map(|name| slot(&lab, 1, name)), slots, "slots are adopted");
    assert!(!ground.is_answered(&asks("one")), "the policy lets nobody in");

    let one = endpoint(&lab, 1, "one").unwrap().id;
    let path = format!("/v1/endpoint/{one}/config");
    let audit = json!({"options": {"PolicyAuditMode": "Enabled"}});
    let _: Value = agent(&lab, 1).patch(&path, &audit).unwrap_or_default();
    lab.eventually("the audited pod is reached", PATIENCE, || ground.is_answered(&asks("one")));
    assert!(!ground.is_answered(&asks("two")), "the others are not");

    let address = lab.addresses("one")[0];
    lab.kubectl(&["delete", "pod", "one", "--now"]);
    lab.eventually("its flows are gone", PATIENCE, || flows_with(&lab, address) == 0);
}

/// How many flows of an IPv4 address node 1 remembers.
fn flows_with(lab: &Lab, address: std::net::IpAddr) -> usize {
    use kernel::map::Map as _;
    let bytes = match address {
        std::net::IpAddr::V4(v4) => v4.octets(),
        std::net::IpAddr::V6(_) => panic!("pods have IPv4 addresses first"),
    };
    let maps = kernel::datapath::open_maps(&lab.dir().join("nodes/node-1/bpf")).unwrap();
    let flows = [&maps.ct4_assured, &maps.ct4_unassured].map(|map| map.entries().unwrap());
    flows.iter().flatten().filter(|(key, _)| [key.lower, key.upper].contains(&bytes)).count()
}
