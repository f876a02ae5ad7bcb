//! Policies that change while somebody talks, and agents that die meanwhile.

use std::os::fd::AsRawFd as _;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{MsgFlags, SockaddrStorage, connect, recv, send};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::policy_truth_table::policy_of;
use crate::probe::{Ground, Probe, Talk};
use crate::world::{Lab, can_run, pod, server};

/// For what happens within seconds, on a machine that does other things as well.
const PATIENCE: Duration = Duration::from_secs(60);
/// Who says nothing for so long has stopped.
const SILENCE: Duration = Duration::from_millis(500);
/// Where a netexec hears UDP.
const UDP: u16 = 8081;

/// A policy of the namespace `default`.
fn policy(name: &str, spec: Value) -> Value {
    json!({
        "apiVersion": "cilium.io/v2", "kind": "CiliumNetworkPolicy",
        "metadata": {"name": name, "namespace": "default"}, "spec": spec,
    })
}

/// Pods whose label `app` is their name.
fn named(mut pod: Value) -> Value {
    pod["metadata"]["labels"] = json!({"app": pod["metadata"]["name"]});
    pod
}

fn probe(lab: &Lab, source: &str, target: &str, talk: Talk) -> Probe {
    Probe { source: format!("default/{source}"), target: lab.addresses(target)[0], talk }
}

/// Waits until every agent knows exactly so many policies, and endpoints enforce them.
fn wait_enforced(lab: &Lab, nodes: usize, count: usize) {
    lab.eventually("policies are enforced", PATIENCE, || {
        (1..=nodes).all(|node| {
            policy_of(lab, node).is_some_and(|policy| {
                policy.policies.len() == count && policy.realized_revision >= policy.revision
            })
        })
    });
}

/// Says something every millisecond, from a socket that is kept; counts answers.
struct Chatter<'a> {
    stop: &'a AtomicBool,
    /// Milliseconds from the start to the newest answer, and how many there were.
    last_ms: AtomicU64,
    answers: AtomicU64,
}

impl<'a> Chatter<'a> {
    fn new(stop: &'a AtomicBool) -> Self {
        Self { stop, last_ms: AtomicU64::new(0), answers: AtomicU64::new(0) }
    }

    fn run(&self, ground: &Ground, probe: &Probe, began: Instant) {
        let Talk::Udp(port) = probe.talk else { panic!("chatter is UDP") };
        let socket = ground.socket(probe);
        let address = SockaddrStorage::from(std::net::SocketAddr::new(probe.target, port));
        connect(socket.as_raw_fd(), &address).expect("connect");
        while !self.stop.load(Ordering::Relaxed) {
            // What policy drops is lost without a word; other errors show as silence.
            let _ = send(socket.as_raw_fd(), b"echo still here", MsgFlags::empty());
            std::thread::sleep(Duration::from_millis(1));
            while matches!(recv(socket.as_raw_fd(), &mut [0; 64], MsgFlags::empty()), Ok(1..)) {
                let now = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
                self.last_ms.store(now, Ordering::Relaxed);
                self.answers.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

/// Ends chatter also when the test fails, which would wait for it otherwise.
struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A client that loses the label which a policy allows is not heard any more, though its connection
/// was there before; with the label it is heard again.
#[test]
fn a_label_change_ends_a_running_conversation() {
    if !can_run("a_label_change_ends_a_running_conversation") {
        return;
    }
    let lab = Lab::up(2, &[], &[]);
    lab.create(vec![named(pod("client", Some(1))), named(server("server", 2))]);
    let friends = json!({
        "endpointSelector": {"matchLabels": {"app": "server"}},
        "ingress": [{"fromEndpoints": [{"matchLabels": {"friend": "yes"}}]}],
    });
    lab.apply(&[policy("friends", friends)]);
    lab.kubectl(&["label", "pod", "client", "friend=yes"]);
    wait_enforced(&lab, 2, 1);
    let ground = Ground::of(&lab, &["default/client".to_owned()]);
    let probe = probe(&lab, "client", "server", Talk::Udp(UDP));
    lab.eventually("the friend is heard", PATIENCE, || ground.is_answered(&probe));

    let (stop, began) = (AtomicBool::new(false), Instant::now());
    let chatter = Chatter::new(&stop);
    std::thread::scope(|scope| {
        let _stop = StopOnDrop(&stop);
        scope.spawn(|| chatter.run(&ground, &probe, began));
        let answers = || chatter.answers.load(Ordering::Relaxed);
        lab.eventually("the conversation runs", PATIENCE, || answers() > 100);
        let changed_ms = began.elapsed().as_millis();
        lab.kubectl(&["label", "pod", "client", "friend-"]);
        let changed = changed_ms..=began.elapsed().as_millis();
        lab.eventually("the conversation ends", PATIENCE, || {
            let before = answers();
            std::thread::sleep(SILENCE);
            before == answers()
        });
        let last = u128::from(chatter.last_ms.load(Ordering::Relaxed));
        eprintln!(
            "label removed between {} and {} ms, last answer at {last} ms: enforced within {} ms",
            changed.start(),
            changed.end(),
            last.saturating_sub(*changed.start())
        );
        lab.kubectl(&["label", "pod", "client", "friend=yes"]);
        let silent = answers();
        lab.eventually("the friend is heard again", PATIENCE, || answers() > silent);
    });
}

/// How often the agent is killed while policies change.
const KILLS: usize = 12;

/// Policies of an endpoint change all the time, and its agent is killed in between. What they deny
/// all the time never gets through, and what they allow all the time does.
#[test]
fn an_agent_killed_while_policies_change_lets_nothing_wrong_through() {
    if !can_run("an_agent_killed_while_policies_change_lets_nothing_wrong_through") {
        return;
    }
    let lab = Lab::up(1, &[], &[]);
    let pods = ["friend", "stranger", "enemy"].map(|name| named(pod(name, Some(1))));
    lab.create([&pods[..], &[named(server("server", 1))]].concat());
    let subject = json!({"matchLabels": {"app": "server"}});
    let from = |app: &str| json!([{"fromEndpoints": [{"matchLabels": {"app": app}}]}]);
    lab.apply(&[
        policy("always", json!({"endpointSelector": subject, "ingress": from("friend")})),
        policy(
            "never",
            json!({
                "endpointSelector": subject,
                "ingress": [{"fromEntities": ["all"], "toPorts": [{"ports": [{"port": "9"}]}]}],
                "ingressDeny": from("enemy"),
            }),
        ),
    ]);
    wait_enforced(&lab, 1, 2);
    let names = ["friend", "stranger", "enemy"].map(|name| format!("default/{name}"));
    let ground = Ground::of(&lab, &names);
    let asks = |name: &str| probe(&lab, name, "server", Talk::Udp(UDP));
    let [friend, stranger, enemy] = ["friend", "stranger", "enemy"].map(asks);
    assert!(ground.is_answered(&friend), "the friend is heard");

    let (stop, began) = (AtomicBool::new(false), Instant::now());
    let [of_friend, of_stranger, of_enemy] = [(); 3].map(|()| Chatter::new(&stop));
    std::thread::scope(|scope| {
        let _stop = StopOnDrop(&stop);
        for (chatter, probe) in
            [(&of_friend, &friend), (&of_stranger, &stranger), (&of_enemy, &enemy)]
        {
            let ground = &ground;
            scope.spawn(move || chatter.run(ground, probe, began));
        }
        change_and_kill(&lab, &subject);
    });
    let heard = |chatter: &Chatter<'_>| chatter.answers.load(Ordering::Relaxed);
    eprintln!("{} answers for the friend", heard(&of_friend));
    assert!(heard(&of_friend) > 1_000, "the friend was heard all the time");
    assert_eq!(heard(&of_stranger), 0, "the stranger was never heard");
    assert_eq!(heard(&of_enemy), 0, "the enemy was never heard");
    lab.kubectl(&["delete", "cnp", "--all"]);
    wait_enforced(&lab, 1, 0);
    for probe in [&friend, &stranger, &enemy] {
        assert!(ground.is_answered(probe), "{probe:?} is heard without policies");
    }
}

/// Other policies of the endpoint come and go: allows for other ports, denials that were there
/// already, allows that a denial beats. None of them changes what the conversations may do.
fn change_and_kill(lab: &Lab, subject: &Value) {
    for round in 0..KILLS {
        let ports: Vec<Value> = (0..40)
            .map(|port| json!({"port": (1_000 + 40 * round + port).to_string(), "protocol": "TCP"}))
            .collect();
        let some_ports = json!({
            "endpointSelector": subject,
            "ingress": [{"fromEntities": ["all"], "toPorts": [{"ports": ports}]}],
        });
        let beaten = json!({
            "endpointSelector": subject,
            "ingress": [{"fromEndpoints": [{"matchLabels": {"app": "enemy"}}]}],
        });
        lab.apply(&[policy("ports", some_ports), policy("beaten", beaten)]);
        // Sooner or later after the change: some deaths hit its middle.
        std::thread::sleep(Duration::from_millis(17 * (round as u64 % 5)));
        let Some(pid) = lab.agent_pid(1) else { continue };
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        if round % 2 == 0 {
            lab.kubectl(&["delete", "cnp", "ports", "beaten"]);
        }
        lab.eventually("a new agent runs", PATIENCE, || {
            lab.agent_pid(1).is_some_and(|new| new != pid) && policy_of(lab, 1).is_some()
        });
    }
}
