//! Conformance of `cilium-cni` to the CNI specification, with the real binary, real network
//! namespaces and links; only the agent behind the socket is played.
//!
//! Needs root: run by `cargo test -p agent --test cni`.

mod fake_agent;
mod world;

use expect_test::expect;
use serde_json::json;

use fake_agent::Fault;
use world::{Answer, CONTAINER, World, world};

#[test]
fn add_answers_in_the_shape_of_1_1() {
    let Some(world) = world("add_answers_in_the_shape_of_1_1") else { return };
    let added = world.run("ADD");
    assert!(added.ok, "{added:?}");
    expect![[r#"
        {
          "cniVersion": "1.1.0",
          "dns": {},
          "interfaces": [
            {
              "mac": "d6:94:81:74:0c:3b",
              "mtu": 1500,
              "name": "lxc18b8fe0ca3d6"
            },
            {
              "mac": "aa:d1:03:ea:fa:82",
              "mtu": 1500,
              "name": "eth0",
              "sandbox": "<dir>/pod"
            }
          ],
          "ips": [
            {
              "address": "10.9.0.10/32",
              "gateway": "10.9.0.1",
              "interface": 1
            },
            {
              "address": "fd00:9::10/128",
              "gateway": "fd00:9::1",
              "interface": 1
            }
          ],
          "routes": [
            {
              "dst": "10.9.0.1/32",
              "scope": 253
            },
            {
              "dst": "0.0.0.0/0",
              "gw": "10.9.0.1",
              "mtu": 1450
            },
            {
              "dst": "fd00:9::1/128",
              "scope": 253
            },
            {
              "dst": "::/0",
              "gw": "fd00:9::1",
              "mtu": 1450
            }
          ]
        }"#]]
    .assert_eq(&world.stable(&added));
    world.agent.with(|state| {
        expect![[r#"
            GET /v1/config
            POST /v1/ipam?owner=default/web&expiration=true
            PUT /v1/endpoint/cni-attachment-id:c1:eth0"#]]
        .assert_eq(&state.calls.join("\n"));
        let body = &state.endpoints["c1:eth0"];
        assert_eq!(body["k8s-pod-name"], "web");
        assert_eq!(body["k8s-namespace"], "default");
        assert_eq!(body["k8s-uid"], "u");
        assert_eq!(body["sync-build-endpoint"], true);
        assert_eq!(body["netns-cookie"], world.pod.cookie().unwrap().to_string());
    });
}

#[test]
fn add_answers_in_the_shape_of_older_versions() {
    let Some(mut world) = world("add_answers_in_the_shape_of_older_versions") else { return };
    let mut shapes = String::new();
    for version in ["0.2.0", "0.3.1", "0.4.0", "1.0.0"] {
        world.version = version;
        let added = world.run("ADD");
        assert!(added.ok, "{version}: {added:?}");
        let json = &added.json;
        assert_eq!(json["cniVersion"], version);
        let keys: Vec<&str> = json.as_object().unwrap().keys().map(String::as_str).collect();
        shapes += &format!("{version} {} ip={}\n", keys.join(","), json["ips"][0]);
        assert!(world.run("DEL").ok);
    }
    expect![[r#"
        0.2.0 cniVersion,dns,ip4,ip6 ip=null
        0.3.1 cniVersion,dns,interfaces,ips,routes ip={"address":"10.9.0.11/32","gateway":"10.9.0.1","interface":1,"version":"4"}
        0.4.0 cniVersion,dns,interfaces,ips,routes ip={"address":"10.9.0.12/32","gateway":"10.9.0.1","interface":1,"version":"4"}
        1.0.0 cniVersion,dns,interfaces,ips,routes ip={"address":"10.9.0.13/32","gateway":"10.9.0.1","interface":1}
    "#]].assert_eq(&shapes);
}

/// What the result says is what the kernel has.
#[test]
fn add_wires_the_pod() {
    let Some(world) = world("add_wires_the_pod") else { return };
    let added = world.run("ADD");
    assert!(added.ok, "{added:?}");
    let pod = kernel::netlink::Netlink::in_netns(&world.pod).unwrap();
    let eth0 = pod.link_by_name("eth0").unwrap();
    assert!(eth0.up);
    assert_eq!(eth0.mtu, 1500);
    assert_eq!(eth0.mac.to_string(), added.json["interfaces"][1]["mac"].as_str().unwrap());
    let mut addresses: Vec<String> = pod
        .addresses(Some(eth0.index))
        .unwrap()
        .into_iter()
        .filter(|row| row.scope == 0)
        .inspect(|row| assert!(!row.tentative, "{row:?}"))
        .map(|row| row.net.to_string())
        .collect();
    addresses.sort();
    assert_eq!(addresses, ["10.9.0.10/32", "fd00:9::10/128"]);
    let routes = pod.routes().unwrap();
    let gateway_of = |dst: &str| {
        let route = routes.iter().find(|route| route.dst.to_string() == dst);
        route.unwrap_or_else(|| panic!("no route to {dst} in {routes:?}"))
    };
    for (dst, gateway) in [("0.0.0.0/0", "10.9.0.1"), ("::/0", "fd00:9::1")] {
        let route = gateway_of(dst);
        assert_eq!(route.gateway.unwrap().to_string(), gateway);
        assert_eq!(route.mtu, Some(1450));
    }
    for dst in ["10.9.0.1/32", "fd00:9::1/128"] {
        assert_eq!(gateway_of(dst).gateway, None, "{dst}");
    }
    let node = kernel::netlink::Netlink::in_netns(&world.node).unwrap();
    let host = node.link_by_name(added.json["interfaces"][0]["name"].as_str().unwrap()).unwrap();
    assert!(host.up);
    assert_eq!(node.addresses(Some(host.index)).unwrap(), [], "the host's end speaks for itself");
}

#[test]
fn add_twice_is_add_once() {
    let Some(world) = world("add_twice_is_add_once") else { return };
    let first = world.run("ADD");
    assert!(first.ok, "{first:?}");
    let before = world.leftovers();
    assert_eq!(world.run("ADD"), first);
    assert_eq!(world.leftovers(), before);
}

/// An ADD that was killed has left a link, and perhaps an endpoint that does not fit it.
#[test]
fn add_after_a_killed_add_begins_anew() {
    let Some(world) = world("add_after_a_killed_add_begins_anew") else { return };
    let first = world.run("ADD");
    world.agent.with(|state| {
        state.endpoints.clear();
        state.addresses.clear();
    });
    let second = world.run("ADD");
    assert!(second.ok, "{second:?}");
    assert_eq!(second.json["interfaces"], first.json["interfaces"]);
    World::ip(&world.pod, "address del 10.9.0.11/32 dev eth0");
    let third = world.run("ADD");
    assert!(third.ok, "{third:?}");
    assert_eq!(third.json["ips"][0]["address"], "10.9.0.12/32");
    assert!(world.run("DEL").ok);
    assert_eq!(world.leftovers(), [""; 0]);
}

#[test]
fn add_leaves_nothing_wherever_it_fails() {
    const PUT: &str = "PUT /v1/endpoint";
    let faults = [
        Fault::Refuse("GET /v1/config", 500, "no configuration"),
        Fault::Refuse("POST /v1/ipam", 502, "range is full"),
        Fault::DieAfter("POST /v1/ipam"),
        Fault::SmallMtu,
        Fault::Refuse(PUT, 500, "no identity"),
        Fault::Refuse(PUT, 429, "too many"),
        Fault::Refuse(PUT, 503, "starting"),
    ];
    let mut answers = String::new();
    for fault in faults {
        let Some(world) = world("add_leaves_nothing_wherever_it_fails") else { return };
        world.agent.with(|state| state.fault = Some(fault.clone()));
        let added = world.run("ADD");
        assert!(!added.ok, "{fault:?}");
        answers += &format!("{fault:?}\n    {} | {}\n", added.summary(), added.json["details"]);
        answers = answers.replace(world.socket().to_str().unwrap(), "<socket>");
        let dead = matches!(fault, Fault::DieAfter(_));
        // The addresses of an agent that has died are gone with it.
        let left: Vec<String> = world
            .leftovers()
            .into_iter()
            .filter(|left| !(dead && left.starts_with("address")))
            .collect();
        assert_eq!(left, [""; 0], "{fault:?}");
    }
    expect![[r#"
        Refuse("GET /v1/config", 500, "no configuration")
            102: cannot read the agent's configuration | "GET /v1/config: the agent answered 500: no configuration"
        Refuse("POST /v1/ipam", 502, "range is full")
            102: the agent gave no address | "POST /v1/ipam?owner=default%2Fweb&expiration=true: the agent answered 502: range is full"
        DieAfter("POST /v1/ipam")
            11: the agent gave no address | "cannot reach the agent on <socket>; is cilium-agent running on this node?: Connection refused (os error 111)"
        SmallMtu
            5: cannot configure the pod's interface | "the agent gave the pod fd00:9::10, and IPv6 is not possible on its interface: the kernel has no IPv6 (then set enable-ipv6 to false), or the MTU is below 1280"
        Refuse("PUT /v1/endpoint", 500, "no identity")
            102: the agent did not create the endpoint | "PUT /v1/endpoint/cni-attachment-id:c1:eth0: the agent answered 500: no identity"
        Refuse("PUT /v1/endpoint", 429, "too many")
            11: the agent did not create the endpoint | "PUT /v1/endpoint/cni-attachment-id:c1:eth0: the agent answered 429: too many"
        Refuse("PUT /v1/endpoint", 503, "starting")
            11: the agent did not create the endpoint | "PUT /v1/endpoint/cni-attachment-id:c1:eth0: the agent answered 503: starting"
    "#]].assert_eq(&answers);
}

/// A runtime that loses patience kills ADD, and calls DEL or ADD again.
#[test]
fn a_killed_add_is_cleaned_up() {
    let requests = ["GET /v1/config", "POST /v1/ipam", "PUT /v1/endpoint"];
    for (request, again) in requests.iter().flat_map(|request| [(request, false), (request, true)])
    {
        let Some(world) = world("a_killed_add_is_cleaned_up") else { return };
        world.agent.with(|state| state.fault = Some(Fault::Hang(request)));
        world.add_and_kill();
        world.agent.with(|state| state.fault = None);
        if again {
            let added = world.run("ADD");
            assert!(added.ok, "{request}: {added:?}");
            assert!(world.run_after("CHECK", &added).ok);
        }
        assert!(world.run("DEL").ok);
        // The agent itself forgets addresses that no endpoint has claimed.
        let left: Vec<String> =
            world.leftovers().into_iter().filter(|left| !left.starts_with("address")).collect();
        assert_eq!(left, [""; 0], "{request}, again: {again}");
    }
}

/// Whether the endpoint exists is unknown: its deletion waits for the next agent.
#[test]
fn add_to_an_agent_that_dies_queues_the_deletion() {
    let Some(world) = world("add_to_an_agent_that_dies_queues_the_deletion") else { return };
    world.agent.with(|state| state.fault = Some(Fault::DieAfter("PUT /v1/endpoint")));
    let added = world.run("ADD");
    expect!["11: the agent did not create the endpoint"].assert_eq(&added.summary());
    assert_eq!(World::links(&world.node), [""; 0]);
    assert_eq!(World::links(&world.pod), [""; 0]);
    assert_eq!(world.queued(), ["cni-attachment-id:c1:eth0"]);
}

#[test]
fn add_where_it_cannot_be() {
    let Some(world) = world("add_where_it_cannot_be") else { return };
    World::ip(&world.pod, "link add eth0 type veth peer name eth1");
    let added = world.run("ADD");
    expect!["5: interface eth0 exists in the container already"].assert_eq(&added.summary());
    assert_eq!(World::links(&world.node), [""; 0]);

    let mut answers = String::new();
    for netns in ["/nonexistent", "/proc/self/ns/net", "/etc/passwd"] {
        let answer = world.exec(
            &[
                ("CNI_COMMAND", "ADD"),
                ("CNI_CONTAINERID", CONTAINER),
                ("CNI_NETNS", netns),
                ("CNI_IFNAME", "eth0"),
            ],
            &world.conf().to_string(),
        );
        answers += &format!("{}\n", answer.summary());
        assert_eq!(World::links(&world.node), [""; 0]);
    }
    expect![[r#"
        3: CNI_NETNS /nonexistent does not exist
        4: CNI_NETNS /proc/self/ns/net is the plugin's own network namespace
        5: cannot create the pod's interface
    "#]]
    .assert_eq(&answers);
}

#[test]
fn del_removes_everything_and_may_be_repeated() {
    let Some(world) = world("del_removes_everything_and_may_be_repeated") else { return };
    let added = world.run("ADD");
    assert!(world.run_after("DEL", &added).ok);
    assert_eq!(world.leftovers(), [""; 0]);
    let again = world.run_after("DEL", &added);
    assert_eq!(again, Answer { ok: true, json: json!(null) });
}

#[test]
fn del_without_a_namespace() {
    let Some(world) = world("del_without_a_namespace") else { return };
    assert!(world.run("ADD").ok);
    let del = |netns: &str| {
        world.exec(
            &[
                ("CNI_COMMAND", "DEL"),
                ("CNI_CONTAINERID", CONTAINER),
                ("CNI_NETNS", netns),
                ("CNI_IFNAME", "eth0"),
            ],
            &world.conf().to_string(),
        )
    };
    assert!(del("").ok);
    assert_eq!(world.leftovers(), [""; 0]);
    assert!(del("/nonexistent").ok);
}

#[test]
fn del_without_an_agent_is_queued() {
    let Some(mut world) = world("del_without_an_agent_is_queued") else { return };
    let added = world.run("ADD");
    world.agent.stop();
    assert!(world.run_after("DEL", &added).ok);
    assert_eq!(World::links(&world.node), [""; 0]);
    assert_eq!(world.queued(), ["cni-attachment-id:c1:eth0"]);
    assert!(world.run_after("DEL", &added).ok);
    assert_eq!(world.queued().len(), 1);
}

#[test]
fn del_reports_an_agent_that_refuses() {
    let Some(world) = world("del_reports_an_agent_that_refuses") else { return };
    assert!(world.run("ADD").ok);
    world.agent.with(|state| {
        state.fault = Some(Fault::Refuse("DELETE /v1/endpoint", 500, "map is broken"));
    });
    let answer = world.run("DEL");
    expect![[r#"102: cannot delete endpoint cni-attachment-id:c1:eth0 | "DELETE /v1/endpoint/cni-attachment-id:c1:eth0: the agent answered 500: map is broken""#]].assert_eq(&format!("{} | {}", answer.summary(), answer.json["details"]));
    assert_eq!(World::links(&world.node), [""; 0]);
}

#[test]
fn check_sees_tampering() {
    let tampering = [
        ("", ""),
        ("pod", "link set eth0 down"),
        ("pod", "address del 10.9.0.10/32 dev eth0"),
        ("pod", "route del default"),
        ("pod", "-6 route del default"),
        ("pod", "link del eth0"),
    ];
    let mut answers = String::new();
    for (end, command) in tampering {
        let Some(world) = world("check_sees_tampering") else { return };
        let added = world.run("ADD");
        assert!(added.ok, "{added:?}");
        if end == "pod" {
            World::ip(&world.pod, command);
        }
        let checked = world.run_after("CHECK", &added);
        answers +=
            &format!("{command:?}\n    {} | {}\n", checked.summary(), checked.json["details"]);
    }
    expect![[r#"
        ""
            ok | null
        "link set eth0 down"
            101: the pod is not wired as ADD left it | "interface eth0 is down; address fd00:9::10/128 is gone; the route to 10.9.0.1/32 is gone; the route to 0.0.0.0/0 is gone; the route to fd00:9::1/128 is gone; the route to ::/0 is gone"
        "address del 10.9.0.10/32 dev eth0"
            101: the pod is not wired as ADD left it | "address 10.9.0.10/32 is gone; the route to 10.9.0.1/32 is gone; the route to 0.0.0.0/0 is gone"
        "route del default"
            101: the pod is not wired as ADD left it | "the route to 0.0.0.0/0 is gone"
        "-6 route del default"
            101: the pod is not wired as ADD left it | "the route to ::/0 is gone"
        "link del eth0"
            101: the pod is not wired as ADD left it | "interface lxc18b8fe0ca3d6 of the node is gone; interface eth0 is gone"
    "#]].assert_eq(&answers);
}

#[test]
fn check_asks_the_agent() {
    let Some(mut world) = world("check_asks_the_agent") else { return };
    let added = world.run("ADD");
    let mut answers = String::new();
    world.agent.with(|state| state.endpoint_health = Some("Failure"));
    answers += &format!("{}\n", world.run_after("CHECK", &added).summary());
    world.agent.with(|state| state.endpoints.clear());
    answers += &format!("{}\n", world.run_after("CHECK", &added).summary());
    world.agent.stop();
    answers += &format!("{}\n", world.run_after("CHECK", &added).summary());
    expect![[r#"
        101: endpoint cni-attachment-id:c1:eth0 is not healthy
        100: the agent does not know endpoint cni-attachment-id:c1:eth0
        11: cannot ask for the health of endpoint cni-attachment-id:c1:eth0
    "#]]
    .assert_eq(&answers);
}

#[test]
fn gc_removes_what_is_not_valid() {
    let Some(world) = world("gc_removes_what_is_not_valid") else { return };
    for container in ["c1", "c2"] {
        let added = world.run_with("ADD", container, &world.conf());
        assert!(added.ok, "{added:?}");
        // Both pods have an eth0, so the first moves out of the way.
        World::ip(&world.pod, &format!("link set eth0 name {container}"));
    }
    World::ip(&world.node, "link add lxc_health type veth peer name other");
    let mut conf = world.conf();
    conf["cni.dev/valid-attachments"] = json!([{"containerID": "c2", "ifname": "eth0"}]);
    let collected = world.exec(&[("CNI_COMMAND", "GC")], &conf.to_string());
    assert_eq!(collected, Answer { ok: true, json: json!(null) });
    assert_eq!(World::links(&world.pod), ["c2"]);
    let mut links = World::links(&world.node);
    links.retain(|name| !name.starts_with("lxc") || name == "lxc_health");
    links.sort();
    assert_eq!(links, ["lxc_health", "other"]);
    world.agent.with(|state| {
        assert_eq!(state.endpoints.keys().collect::<Vec<_>>(), ["c2:eth0"]);
    });
}

#[test]
fn status_tells_whether_a_pod_could_be_added() {
    let Some(mut world) = world("status_tells_whether_a_pod_could_be_added") else { return };
    let mut answers = String::new();
    let mut ask = |world: &World| {
        let answer = world.exec(&[("CNI_COMMAND", "STATUS")], &world.conf().to_string());
        answers += &format!("{} | {}\n", answer.summary(), answer.json["details"]);
    };
    ask(&world);
    world.agent.with(|state| state.health = Some(("Failure", "no datapath")));
    ask(&world);
    world.agent.with(|state| {
        state.health = None;
        state.ipam_status = Some(
            "IPv4: 254/254 allocated from 10.9.0.0/24, IPv6: 3/254 allocated from fd00:9::/120",
        );
    });
    ask(&world);
    world.agent.stop();
    let socket = world.socket().display().to_string();
    ask(&world);
    expect![[r#"
        ok | null
        50: no pod can be added now | "the agent is not healthy: no datapath"
        50: no pod can be added now | "every pod address is taken: IPv4: 254/254 allocated from 10.9.0.0/24; delete pods or enlarge the pod CIDR"
        50: the agent does not answer | "cannot reach the agent on <socket>; is cilium-agent running on this node?: No such file or directory (os error 2)"
    "#]].assert_eq(&answers.replace(&socket, "<socket>"));
}

#[test]
fn version_lists_what_we_speak() {
    let Some(world) = world("version_lists_what_we_speak") else { return };
    let answer = world.exec(&[("CNI_COMMAND", "VERSION")], r#"{"cniVersion":"1.0.0"}"#);
    expect![[r#"{"cniVersion":"1.0.0","supportedVersions":["0.1.0","0.2.0","0.3.0","0.3.1","0.4.0","1.0.0","1.1.0"]}"#]].assert_eq(&answer.json.to_string());
}

/// The refusals themselves are tested beside the parser; here, that they reach the runtime.
#[test]
fn wrong_input_is_refused_with_its_code() {
    let Some(world) = world("wrong_input_is_refused_with_its_code") else { return };
    let mut answers = String::new();
    let conf = world.conf().to_string();
    for (env, stdin) in [
        (&[][..], conf.as_str()),
        (&[("CNI_COMMAND", "ADD")], &conf),
        (&[("CNI_COMMAND", "STATUS")], "{"),
        (&[("CNI_COMMAND", "STATUS")], r#"{"cniVersion":"2.0.0","name":"n"}"#),
        (&[("CNI_COMMAND", "STATUS")], r#"{"cniVersion":"1.1.0"}"#),
        (&[("CNI_COMMAND", "STATUS")], r#"{"cniVersion":"1.1.0","name":"n","chaining-mode":"x"}"#),
    ] {
        let answer = world.exec(env, stdin);
        assert!(!answer.ok);
        assert_eq!(answer.json["cniVersion"], "1.1.0");
        answers += &format!("{}\n", answer.summary());
    }
    expect![[r#"
        4: CNI_COMMAND is not set; a container runtime sets it
        4: CNI_CONTAINERID is not set; a container runtime sets it
        6: cannot decode the network configuration on stdin
        1: incompatible CNI version
        7: name is missing
        2: chaining-mode "x" is not supported
    "#]]
    .assert_eq(&answers);
}
