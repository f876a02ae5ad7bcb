//! What must survive what: agents killed, the API server gone, nodes emptied, pools exhausted.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::world::{Background, Lab, can_run, pod, server};

/// How often agents are killed under load.
const KILLS: u32 = 100;
/// For what happens within seconds, on a machine that does other things as well.
const PATIENCE: Duration = Duration::from_secs(90);

fn v4(lab: &Lab, pod: &str) -> IpAddr {
    *lab.addresses(pod).iter().find(|ip| ip.is_ipv4()).unwrap()
}

fn v6(lab: &Lab, pod: &str) -> IpAddr {
    *lab.addresses(pod).iter().find(|ip| ip.is_ipv6()).unwrap()
}

/// Traffic on one node, across nodes and from the host, 1,000 packets a second each.
fn streams(lab: &Lab) -> Vec<(&'static str, Background)> {
    vec![
        ("on one node", lab.stream(&["client"], v4(lab, "near"))),
        ("across nodes", lab.stream(&["client"], v6(lab, "far"))),
        ("from the host", lab.stream(&["--node", "node-1"], v4(lab, "near"))),
    ]
}

fn assert_nothing_lost(lab: &Lab, streams: Vec<(&'static str, Background)>) {
    let reports: Vec<(&str, Value)> =
        streams.into_iter().map(|(name, s)| (name, s.finish())).collect();
    for (name, report) in &reports {
        eprintln!("{name}: {report}");
    }
    for (name, report) in reports {
        assert!(report["sent"].as_u64() > Some(1000), "{name}: {report}");
        if report["lost"] != 0 || report["send_errors"] != 0 {
            lab.print_world();
            panic!("{name}: {report}");
        }
    }
}

fn three_pods() -> [Value; 3] {
    [pod("client", Some(1)), server("near", 1), server("far", 2)]
}

fn wait_for_answer(lab: &Lab, sender: &str, address: IpAddr) {
    lab.eventually(&format!("{address} answers {sender}"), PATIENCE, || {
        lab.try_exec(sender, &["ping", "-c1", "-W1", &address.to_string()]).is_ok()
    });
}

fn kill_agent(lab: &Lab, node: usize) {
    if let Some(pid) = lab.agent_pid(node) {
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
    }
}

fn wait_for_agents(lab: &Lab) {
    lab.eventually("all agents are well", PATIENCE, || {
        (1..=2).all(|n| {
            let socket = lab.dir().join(format!("nodes/node-{n}/run/cilium/cilium.sock"));
            let mut agent = api::rest::client::Client::new(socket);
            agent.get_with::<Value>("/v1/healthz", &[("brief", "true")]).is_ok()
        })
    });
}

/// Not random, but as good as: spreads over the phases of an agent's start, and can be repeated.
fn pauses() -> impl Iterator<Item = Duration> {
    let mut state = 0x2545_f491_u32;
    std::iter::repeat_with(move || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        Duration::from_millis(u64::from(state % 600))
    })
}

#[test]
fn killed_agents_lose_no_packet_and_no_pod() {
    if !can_run("killed_agents_lose_no_packet_and_no_pod") {
        return;
    }
    let lab = Lab::up(2, &[], &three_pods());
    let streams = streams(&lab);
    let mut alive: Vec<String> = Vec::new();
    for (number, pause) in (0..KILLS).zip(pauses()) {
        // Pods come and go meanwhile, so that some deaths hit an ADD or a DEL.
        match number % 10 {
            3 => {
                let name = format!("late-{number}");
                lab.apply(&[server(&name, 1 + number / 10 % 2)]);
                alive.push(name);
            }
            8 if alive.len() > 2 => {
                let name = alive.remove(0);
                lab.kubectl(&["delete", "pod", &name, "--wait=false"]);
            }
            _ => {}
        }
        std::thread::sleep(pause);
        kill_agent(&lab, 1 + (number % 2) as usize);
    }
    wait_for_agents(&lab);
    assert_nothing_lost(&lab, streams);
    lab.wait_ready(&[]);
    for name in alive {
        for address in lab.addresses(&name) {
            wait_for_answer(&lab, "client", address);
        }
    }
}

#[test]
fn a_node_killed_at_once_recovers() {
    if !can_run("a_node_killed_at_once_recovers") {
        return;
    }
    let lab = Lab::up(2, &[], &three_pods());
    let before = lab.addresses("near");
    let cgroup = kernel::cgroup::Cgroup::root().unwrap().path().join("cilium-lab").join(&lab.name);
    kernel::cgroup::Cgroup::at(cgroup.join("node-1")).kill().unwrap();
    lab.eventually("the containers run again", PATIENCE, || {
        lab.pods().iter().filter(|p| p["spec"]["nodeName"] == "node-1").all(|p| {
            let container = &p["status"]["containerStatuses"][0];
            container["restartCount"].as_i64() >= Some(1) && container["ready"] == true
        })
    });
    wait_for_agents(&lab);
    assert_eq!(lab.addresses("near"), before);
    for peer in ["near", "far"] {
        for address in lab.addresses(peer) {
            lab.exec("client", &["ping", "-c2", "-i0.2", "-W20", &address.to_string()]);
        }
    }
    lab.create(vec![server("new", 1)]);
    lab.exec("client", &["ping", "-c1", "-W20", &v6(&lab, "new").to_string()]);
}

#[test]
fn without_the_api_server_traffic_and_known_pods_go_on() {
    if !can_run("without_the_api_server_traffic_and_known_pods_go_on") {
        return;
    }
    let lab = Lab::up(2, &[], &three_pods());
    let doomed = server("doomed", 1);
    lab.create(vec![doomed.clone()]);
    let streams = streams(&lab);
    let began = Instant::now();
    lab.run("api-server", &["stop"]);
    assert!(lab.try_kubectl(&["get", "pods", "--request-timeout=5s"], "").is_err());
    // DEL works, and ADD of labels that an agent knows already.
    lab.delete(&[doomed]);
    lab.create(vec![server("known", 1)]);
    std::thread::sleep(Duration::from_secs(30).saturating_sub(began.elapsed()));
    lab.run("api-server", &["resume"]);
    assert_nothing_lost(&lab, streams);
    // Who it is, it learns as soon as somebody can be asked; until then nobody may talk to it.
    for address in lab.addresses("known") {
        wait_for_answer(&lab, "client", address);
    }
    // And everything converges: the other node learns the new pod, and a new identity is no problem.
    lab.eventually("the other node reaches the new pod", PATIENCE, || {
        lab.try_on_node("node-2", &["ping", "-c1", "-W1", &v4(&lab, "known").to_string()]).is_ok()
    });
    let mut other = server("other", 2);
    other["metadata"]["labels"]["app"] = "something-new".into();
    lab.create(vec![other]);
    lab.eventually("the endpoint object is there", PATIENCE, || {
        let known = lab.try_kubectl(
            &["get", "ciliumendpoints", "known", "-o", "jsonpath={.status.state}"],
            "",
        );
        known.as_deref() == Ok("ready")
            && lab.try_kubectl(&["get", "ciliumendpoints", "doomed"], "").is_err()
    });
}

/// The agent before it left all that is needed but the new pod's labels, which it learns when it can.
#[test]
fn an_agent_that_restarts_without_the_api_server_adds_pods() {
    if !can_run("an_agent_that_restarts_without_the_api_server_adds_pods") {
        return;
    }
    let lab = Lab::up(2, &[], &three_pods());
    let streams = streams(&lab);
    lab.run("api-server", &["stop"]);
    kill_agent(&lab, 1);
    lab.create(vec![pod("new", Some(1))]);
    lab.run("api-server", &["resume"]);
    assert_nothing_lost(&lab, streams);
    let identity = |name: &str| {
        let path = "jsonpath={.status.identity.id}";
        lab.try_kubectl(&["get", "ciliumendpoints", name, "-o", path], "")
    };
    let labelled = identity("client").unwrap();
    lab.eventually("the new pod has the identity of its labels", PATIENCE, || {
        identity("new").as_deref() == Ok(labelled.as_str())
    });
    for address in lab.addresses("new") {
        for sender in ["client", "near", "far"] {
            wait_for_answer(&lab, sender, address);
        }
    }
}

#[test]
fn an_exhausted_pool_says_so_and_leaks_nothing() {
    if !can_run("an_exhausted_pool_says_so_and_leaks_nothing") {
        return;
    }
    let lab = Lab::up(1, &["cluster-pool-ipv4-mask-size=29"], &[]);
    let before = lab.inventory(1);
    let pods: Vec<Value> = (0..10).map(|n| pod(&format!("p{n}"), Some(1))).collect();
    lab.apply(&pods);
    let running = || lab.pods().iter().filter(|p| p["status"]["phase"] == "Running").count();
    lab.eventually("somebody is told that there are no addresses", PATIENCE, || {
        let events =
            lab.kubectl(&["get", "events", "--field-selector=reason=FailedCreatePodSandBox"]);
        events.contains("10.244.0.0/29")
    });
    // Eight addresses less the network's first and last, the router's and the health endpoint's.
    const FOR_PODS: usize = 4;
    lab.eventually("the pool is used up", PATIENCE, || running() == FOR_PODS);
    let first = lab.pods().into_iter().find(|p| p["status"]["phase"] == "Running").unwrap();
    lab.delete(&[first]);
    lab.eventually("a waiting pod gets the free address", PATIENCE, || running() == FOR_PODS);
    lab.delete(&lab.pods());
    assert_nothing_left(&lab, &[(1, &before)]);
}

type Inventory = std::collections::BTreeMap<&'static str, usize>;

fn assert_nothing_left(lab: &Lab, before: &[(usize, &Inventory)]) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let after: Vec<Inventory> = before.iter().map(|(node, _)| lab.inventory(*node)).collect();
        if before.iter().zip(&after).all(|((_, before), after)| same_but_descriptors(before, after))
        {
            return;
        }
        if Instant::now() > deadline {
            lab.print_world();
            panic!("something is left: before {before:?}, after {after:?}");
        }
        std::thread::sleep(Duration::from_secs(1));
    }
}

/// Connections to the API server that a pool may keep for its next burst of requests.
const POOLED_CONNECTIONS_MAX: usize = 64;

/// Compares two inventories. A pooled connection is no leak; one descriptor per pod would be.
fn same_but_descriptors(before: &Inventory, after: &Inventory) -> bool {
    let same = before.iter().all(|(what, count)| match what.ends_with("descriptors") {
        true => after[what] <= count + POOLED_CONNECTIONS_MAX,
        false => after[what] == *count,
    });
    same
}

#[test]
fn pods_that_come_and_go_leave_nothing() {
    if !can_run("pods_that_come_and_go_leave_nothing") {
        return;
    }
    let lab = Lab::up(2, &[], &[]);
    let pods: Vec<Value> = (0..100).map(|n| pod(&format!("p{n}"), None)).collect();
    // Once to warm up: pools of threads and connections have their size then.
    lab.create(pods[..10].to_vec());
    lab.delete(&pods[..10]);
    let before = [lab.inventory(1), lab.inventory(2)];
    let began = Instant::now();
    for _ in 0..10 {
        lab.create(pods.clone());
        lab.delete(&pods);
    }
    eprintln!("100 pods came and went 10 times in {:?}", began.elapsed());
    assert_nothing_left(&lab, &[(1, &before[0]), (2, &before[1])]);
}

#[test]
fn adds_that_fail_half_way_leave_nothing() {
    if !can_run("adds_that_fail_half_way_leave_nothing") {
        return;
    }
    let lab = Lab::up(2, &[], &[]);
    let pods: Vec<Value> = (0..30).map(|n| pod(&format!("p{n}"), Some(1 + n % 2))).collect();
    let before = [lab.inventory(1), lab.inventory(2)];
    for _ in 0..3 {
        std::thread::scope(|scope| {
            let creating = scope.spawn(|| lab.create(pods.clone()));
            for (number, pause) in (0..8).zip(pauses()) {
                kill_agent(&lab, 1 + number % 2);
                std::thread::sleep(pause);
            }
            creating.join().unwrap();
        });
        std::thread::scope(|scope| {
            let deleting = scope.spawn(|| lab.delete(&pods));
            kill_agent(&lab, 1);
            deleting.join().unwrap();
        });
    }
    wait_for_agents(&lab);
    assert_nothing_left(&lab, &[(1, &before[0]), (2, &before[1])]);
}

#[test]
fn foreign_sources_and_broken_headers_are_dropped_counted_and_named() {
    if !can_run("foreign_sources_and_broken_headers_are_dropped_counted_and_named") {
        return;
    }
    let lab = Lab::up(2, &[], &three_pods());
    let counted = |name: &str| {
        let cilium = crate::world::bin_dir().join("cilium");
        let mut command = std::process::Command::new(cilium);
        command.args(["bpf", "metrics", "list", "--node", "node-1"]).env("CILIUM_LAB", &lab.name);
        let output = command.output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{}", crate::world::text(&output));
        let rows =
            text.lines().filter(|line| line.to_lowercase().starts_with(&name.to_lowercase()));
        let packets = |row: &str| {
            row[name.len()..].split_whitespace().nth(1).unwrap().parse::<u64>().unwrap()
        };
        rows.map(packets).sum::<u64>()
    };
    // The gateway is known before, so that packets leave and not only questions for the gateway.
    for address in [v4(&lab, "far"), v6(&lab, "near")] {
        lab.exec("client", &["ping", "-c1", "-W20", &address.to_string()]);
    }
    lab.exec("client", &["ip", "address", "add", "10.99.99.99/32", "dev", "lo"]);
    lab.exec("client", &["ip", "address", "add", "2001:db8:bad::1/128", "dev", "lo", "nodad"]);
    for (source, target) in
        [("10.99.99.99", v4(&lab, "far")), ("2001:db8:bad::1", v6(&lab, "near"))]
    {
        let before = counted("Invalid source ip");
        let ping =
            ["ping", "-c3", "-i0.2", "-W1", "-I", source, &target.to_string()].map(str::to_owned);
        let answered = lab.try_exec("client", &ping.each_ref().map(String::as_str));
        assert!(answered.is_err(), "{answered:?}");
        assert!(counted("Invalid source ip") > before, "{source} is not counted");
    }
    for (what, frame) in broken_frames() {
        let before = counted("Invalid packet");
        lab.exec("client", &["perl", "-e", SEND_FRAME, &frame]);
        // Sent is not received: the other end of the link has a queue.
        lab.eventually(&format!("{what} is counted"), PATIENCE, || {
            counted("Invalid packet") > before
        });
    }
    // The pod itself is still welcome.
    lab.exec("client", &["ping", "-c1", "-W20", &v4(&lab, "far").to_string()]);
}

/// Sends a frame, given as hexadecimal digits, out of eth0: `AF_PACKET`, `SOCK_RAW`.
const SEND_FRAME: &str = r#"
    my $frame = pack("H*", shift);
    my $ifindex = qx(ip -o link show eth0) =~ /^(\d+)/ ? $1 : die;
    my $to = pack("S S l S C C a8", 17, 0, $ifindex, 0, 0, 6, "");
    socket(my $socket, 17, 3, 0) or die "socket: $!";
    send($socket, $frame, 0, $to) or die "send: $!";
"#;

/// Frames whose IP header says what cannot be.
fn broken_frames() -> [(&'static str, String); 4] {
    let frame = |ethertype: &str, ip: &str| format!("020000000001020000000002{ethertype}{ip}");
    let addresses = "0af400020af40102";
    [
        (
            "a version that IPv4 is not",
            frame("0800", &format!("550000140000000040110000{addresses}")),
        ),
        (
            "a header shorter than IPv4's",
            frame("0800", &format!("440000140000000040110000{addresses}")),
        ),
        (
            "more bytes than there are",
            frame("0800", &format!("450005dc0000000040110000{addresses}")),
        ),
        (
            "half of an IPv6 header",
            frame("86dd", "6000000000001140fd000010000000000000000000000000"),
        ),
    ]
}
