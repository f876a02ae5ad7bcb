//! Raw bytes of every type of event, and the message that each becomes.

use abi::DropReason;
use abi::event::{EVENT_F_VXLAN, ObservationPoint, VERDICT_F_AUDITED, VERDICT_MATCH_SHIFT};
use api::hubble::{flow::Flow, to_json};
use expect_test::{Expect, expect};
use flow::ring::Record;

use crate::support::*;

/// The message of an event. What is the same in all of them is left out.
fn message(bytes: &[u8]) -> Flow {
    let observer = observer(10);
    observer.intake().event(NOON_NS, 0, bytes);
    let batch = observer.ring.read(0, 10);
    let [record] = batch.records.as_slice() else { panic!("one record, not {batch:?}") };
    let Record::Flow(row) = &**record else { panic!("a flow, not {record:?}") };
    Flow {
        uuid: String::new(),
        emitter: None,
        time: None,
        ethernet: None,
        node_name: String::new(),
        node_labels: Vec::new(),
        ..row.to_flow(&observer.node)
    }
}

#[track_caller]
fn check(bytes: &[u8], expected: Expect) {
    let json: serde_json::Value = serde_json::from_str(&to_json(&message(bytes))).unwrap();
    expected.assert_eq(&serde_json::to_string_pretty(&json).unwrap());
}

#[test]
fn what_all_flows_have() {
    let observer = observer(10);
    observer.intake().event(NOON_NS, 0, &trace(ObservationPoint::ToOverlay, 0, 0, &tcp(1, 2)));
    let batch = observer.ring.read(0, 10);
    let Record::Flow(row) = &*batch.records[0] else { panic!("a flow") };
    let flow = row.to_flow(&observer.node);
    let part = Flow {
        time: flow.time,
        uuid: flow.uuid,
        emitter: flow.emitter,
        ethernet: flow.ethernet,
        node_name: flow.node_name,
        node_labels: flow.node_labels,
        ..Flow::default()
    };
    expect![[r#"{"time":"2023-11-14T22:13:20Z","ethernet":{"source":"0a:00:00:00:00:01","destination":"0a:00:00:00:00:02"},"node_name":"east/node-1","uuid":"01234567-89ab-8def-8000-000000000000","node_labels":["zone=a"],"emitter":{"name":"Hubble","version":"cilium 0.1.0"}}"#]].assert_eq(&to_json(&part));
}

#[test]
fn trace_of_a_new_flow() {
    check(
        &trace(ObservationPoint::ToOverlay, 0, 0, &tcp(40000, 0x02)),
        expect![[r#"
        {
          "IP": {
            "destination": "10.0.1.2",
            "ipVersion": "IPv4",
            "source": "10.0.0.1"
          },
          "Summary": "TCP Flags: SYN",
          "Type": "L3_L4",
          "destination": {
            "cluster_name": "east",
            "identity": 2000,
            "labels": [
              "k8s:app=web"
            ],
            "namespace": "prod",
            "pod_name": "web-0",
            "workloads": [
              {
                "kind": "Deployment",
                "name": "web"
              }
            ]
          },
          "destination_names": [
            "web.prod.svc."
          ],
          "destination_service": {
            "name": "web",
            "namespace": "prod"
          },
          "event_type": {
            "sub_type": 4,
            "type": 4
          },
          "interface": {
            "index": 9,
            "name": "lxc1234"
          },
          "is_reply": false,
          "l4": {
            "TCP": {
              "destination_port": 80,
              "flags": {
                "SYN": true
              },
              "source_port": 40000
            }
          },
          "source": {
            "ID": 7,
            "cluster_name": "east",
            "identity": 1000,
            "labels": [
              "k8s:app=client"
            ],
            "namespace": "default",
            "pod_name": "client-1",
            "workloads": [
              {
                "kind": "Deployment",
                "name": "client"
              }
            ]
          },
          "trace_observation_point": "TO_OVERLAY",
          "trace_reason": "NEW",
          "traffic_direction": "EGRESS",
          "verdict": "FORWARDED"
        }"#]],
    );
}

#[test]
fn trace_of_a_reply_to_an_endpoint() {
    check(
        &trace(ObservationPoint::ToEndpoint, 2, 0, &tcp_back(40000)),
        expect![[r#"
        {
          "IP": {
            "destination": "10.0.0.1",
            "ipVersion": "IPv4",
            "source": "10.0.1.2"
          },
          "Summary": "TCP Flags: SYN, ACK",
          "Type": "L3_L4",
          "destination": {
            "ID": 7,
            "cluster_name": "east",
            "identity": 1000,
            "labels": [
              "k8s:app=client"
            ],
            "namespace": "default",
            "pod_name": "client-1",
            "workloads": [
              {
                "kind": "Deployment",
                "name": "client"
              }
            ]
          },
          "event_type": {
            "type": 4
          },
          "interface": {
            "index": 9,
            "name": "lxc1234"
          },
          "is_reply": true,
          "l4": {
            "TCP": {
              "destination_port": 40000,
              "flags": {
                "ACK": true,
                "SYN": true
              },
              "source_port": 80
            }
          },
          "reply": true,
          "source": {
            "cluster_name": "east",
            "identity": 2000,
            "labels": [
              "k8s:app=web"
            ],
            "namespace": "prod",
            "pod_name": "web-0",
            "workloads": [
              {
                "kind": "Deployment",
                "name": "web"
              }
            ]
          },
          "source_names": [
            "web.prod.svc."
          ],
          "source_service": {
            "name": "web",
            "namespace": "prod"
          },
          "trace_observation_point": "TO_ENDPOINT",
          "trace_reason": "REPLY",
          "traffic_direction": "EGRESS",
          "verdict": "FORWARDED"
        }"#]],
    );
}

#[test]
fn trace_without_connection_tracking() {
    let flow = message(&trace(ObservationPoint::FromEndpoint, 5, 0, &tcp(40000, 0x02)));
    assert_eq!((flow.is_reply, flow.traffic_direction), (None, 0));
}

#[test]
fn trace_inside_a_tunnel() {
    let inner: String = tcp(40000, 0x02).iter().map(|byte| format!("{byte:02x}")).collect();
    let outer = hex(&format!(
        "0a0000000002 0a0000000001 0800 4500003c 0001 0000 40 11 0000 c0a80001 c0a80002 \
         8000 2118 0000 0000 08000000 0003e800 {inner}"
    ));
    check(
        &trace(ObservationPoint::FromNetwork, 5, EVENT_F_VXLAN, &outer),
        expect![[r#"
        {
          "IP": {
            "destination": "10.0.1.2",
            "ipVersion": "IPv4",
            "source": "10.0.0.1"
          },
          "Summary": "TCP Flags: SYN",
          "Type": "L3_L4",
          "destination": {
            "cluster_name": "east",
            "identity": 2000,
            "labels": [
              "k8s:app=web"
            ],
            "namespace": "prod",
            "pod_name": "web-0",
            "workloads": [
              {
                "kind": "Deployment",
                "name": "web"
              }
            ]
          },
          "destination_names": [
            "web.prod.svc."
          ],
          "destination_service": {
            "name": "web",
            "namespace": "prod"
          },
          "event_type": {
            "sub_type": 10,
            "type": 4
          },
          "interface": {
            "index": 9,
            "name": "lxc1234"
          },
          "l4": {
            "TCP": {
              "destination_port": 80,
              "flags": {
                "SYN": true
              },
              "source_port": 40000
            }
          },
          "source": {
            "ID": 7,
            "cluster_name": "east",
            "identity": 1000,
            "labels": [
              "k8s:app=client"
            ],
            "namespace": "default",
            "pod_name": "client-1",
            "workloads": [
              {
                "kind": "Deployment",
                "name": "client"
              }
            ]
          },
          "trace_observation_point": "FROM_NETWORK",
          "tunnel": {
            "IP": {
              "destination": "192.168.0.2",
              "ipVersion": "IPv4",
              "source": "192.168.0.1"
            },
            "l4": {
              "UDP": {
                "destination_port": 8472,
                "source_port": 32768
              }
            },
            "protocol": "VXLAN",
            "vni": 1000
          },
          "verdict": "FORWARDED"
        }"#]],
    );
}

#[test]
fn drops() {
    check(
        &dropped(DropReason::Policy, &tcp(40000, 0x02)),
        expect![[r#"
        {
          "IP": {
            "destination": "10.0.1.2",
            "ipVersion": "IPv4",
            "source": "10.0.0.1"
          },
          "Summary": "TCP Flags: SYN",
          "Type": "L3_L4",
          "destination": {
            "cluster_name": "east",
            "identity": 2000,
            "labels": [
              "k8s:app=web"
            ],
            "namespace": "prod",
            "pod_name": "web-0",
            "workloads": [
              {
                "kind": "Deployment",
                "name": "web"
              }
            ]
          },
          "destination_names": [
            "web.prod.svc."
          ],
          "destination_service": {
            "name": "web",
            "namespace": "prod"
          },
          "drop_reason": 133,
          "drop_reason_desc": "POLICY_DENIED",
          "event_type": {
            "sub_type": 133,
            "type": 1
          },
          "file": {
            "line": 42,
            "name": "cil_from_container"
          },
          "interface": {
            "index": 9,
            "name": "lxc1234"
          },
          "l4": {
            "TCP": {
              "destination_port": 80,
              "flags": {
                "SYN": true
              },
              "source_port": 40000
            }
          },
          "source": {
            "ID": 7,
            "cluster_name": "east",
            "identity": 1000,
            "labels": [
              "k8s:app=client"
            ],
            "namespace": "default",
            "pod_name": "client-1",
            "workloads": [
              {
                "kind": "Deployment",
                "name": "client"
              }
            ]
          },
          "traffic_direction": "EGRESS",
          "verdict": "DROPPED"
        }"#]],
    );
}

#[test]
fn policy_verdicts() {
    let egress = 2 | 2 << VERDICT_MATCH_SHIFT;
    check(
        &verdict(0, egress, &tcp(40000, 0x02)),
        expect![[r#"
        {
          "IP": {
            "destination": "10.0.1.2",
            "ipVersion": "IPv4",
            "source": "10.0.0.1"
          },
          "Summary": "TCP Flags: SYN",
          "Type": "L3_L4",
          "destination": {
            "cluster_name": "east",
            "identity": 2000,
            "labels": [
              "k8s:app=web"
            ],
            "namespace": "prod",
            "pod_name": "web-0",
            "workloads": [
              {
                "kind": "Deployment",
                "name": "web"
              }
            ]
          },
          "destination_names": [
            "web.prod.svc."
          ],
          "destination_service": {
            "name": "web",
            "namespace": "prod"
          },
          "event_type": {
            "type": 5
          },
          "is_reply": false,
          "l4": {
            "TCP": {
              "destination_port": 80,
              "flags": {
                "SYN": true
              },
              "source_port": 40000
            }
          },
          "policy_match_type": 2,
          "source": {
            "ID": 7,
            "cluster_name": "east",
            "identity": 1000,
            "labels": [
              "k8s:app=client"
            ],
            "namespace": "default",
            "pod_name": "client-1",
            "workloads": [
              {
                "kind": "Deployment",
                "name": "client"
              }
            ]
          },
          "traffic_direction": "EGRESS",
          "verdict": "FORWARDED"
        }"#]],
    );
    let verdicts: Vec<_> = [
        message(&verdict(-133, 2, &tcp(1, 2))),
        message(&verdict(0, 2 | VERDICT_F_AUDITED, &tcp(1, 2))),
        message(&verdict(10_001, 2, &tcp(1, 2))),
        message(&verdict(0, 1, &tcp_back(1))),
    ]
    .iter()
    .map(|flow| {
        let identities = flow.source.iter().chain(&flow.destination).map(|end| end.identity);
        let (reason, direction) = (flow.drop_reason_desc(), flow.traffic_direction());
        let verdict = flow.verdict().as_str_name();
        format!(
            "{verdict} {} {} proxy {} {:?} {:?}",
            reason.as_str_name(),
            direction.as_str_name(),
            flow.proxy_port,
            flow.is_reply,
            identities.collect::<Vec<_>>()
        )
    })
    .collect();
    expect![[r#"
        DROPPED POLICY_DENIED EGRESS proxy 0 None [1000, 2000]
        AUDIT DROP_REASON_UNKNOWN EGRESS proxy 0 Some(false) [1000, 2000]
        REDIRECTED DROP_REASON_UNKNOWN EGRESS proxy 10001 Some(false) [1000, 2000]
        FORWARDED DROP_REASON_UNKNOWN INGRESS proxy 0 Some(false) [2000, 1000]"#]]
    .assert_eq(&verdicts.join("\n"));
}

#[test]
fn sockets() {
    check(
        &sock(2),
        expect![[r#"
        {
          "IP": {
            "destination": "10.0.1.2",
            "ipVersion": "IPv4"
          },
          "Summary": "TCP Flags: ",
          "Type": "SOCK",
          "cgroup_id": "77",
          "destination": {
            "cluster_name": "east",
            "identity": 2000,
            "labels": [
              "k8s:app=web"
            ],
            "namespace": "prod",
            "pod_name": "web-0",
            "workloads": [
              {
                "kind": "Deployment",
                "name": "web"
              }
            ]
          },
          "destination_service": {
            "name": "web",
            "namespace": "prod"
          },
          "event_type": {
            "sub_type": 2,
            "type": 7
          },
          "l4": {
            "TCP": {
              "destination_port": 80,
              "flags": {}
            }
          },
          "sock_xlate_point": "SOCK_XLATE_POINT_POST_DIRECTION_FWD",
          "socket_cookie": "5",
          "verdict": "TRANSLATED"
        }"#]],
    );
}

#[test]
fn captures() {
    let flow = message(&capture(&tcp(40000, 0x02)));
    assert_eq!(flow.debug_capture_point().as_str_name(), "DBG_CAPTURE_DELIVERY");
    assert_eq!(flow.ip.unwrap().destination, WEB.to_string());
}

#[test]
fn other_protocols() {
    let v4 = |protocol: &str, rest: &str| {
        hex(&format!(
            "0a0000000002 0a0000000001 0800 4500003c 0001 0000 40 {protocol} 0000 0a000001 0a000102 {rest}"
        ))
    };
    let addresses = "fd000000000000000000000000000001 fd000000000000000000000000000002";
    let packets = [
        v4("11", "8000 0035 0008 0000"),
        v4("84", "8000 0035 00000000"),
        v4("01", "0800 0000"),
        v4("2f", "0000"),
        hex(&format!("0a0000000002 0a0000000001 86dd 60000000 0028 3a 40 {addresses} 8000 0000")),
        hex(
            "ffffffffffff 0a0000000001 0806 0001 0800 06 04 0001 0a0000000001 0a000001 000000000000 0a000002",
        ),
        hex("0a00"),
    ];
    let lines: Vec<_> = packets
        .iter()
        .map(|packet| {
            let flow = message(&trace(ObservationPoint::ToStack, 0, 0, packet));
            let part = Flow { ip: flow.ip, l4: flow.l4, summary: flow.summary, ..Flow::default() };
            to_json(&part)
        })
        .collect();
    expect![[r#"
        {"IP":{"source":"10.0.0.1","destination":"10.0.1.2","ipVersion":"IPv4"},"l4":{"UDP":{"source_port":32768,"destination_port":53}},"Summary":"UDP"}
        {"IP":{"source":"10.0.0.1","destination":"10.0.1.2","ipVersion":"IPv4"},"l4":{"SCTP":{"source_port":32768,"destination_port":53}},"Summary":"SCTP"}
        {"IP":{"source":"10.0.0.1","destination":"10.0.1.2","ipVersion":"IPv4"},"l4":{"ICMPv4":{"type":8}},"Summary":"ICMPv4 EchoRequest"}
        {"IP":{"source":"10.0.0.1","destination":"10.0.1.2","ipVersion":"IPv4"},"Summary":"protocol 47"}
        {"IP":{"source":"fd00::1","destination":"fd00::2","ipVersion":"IPv6"},"l4":{"ICMPv6":{"type":128}},"Summary":"ICMPv6 EchoRequest"}
        {}
        {}"#]].assert_eq(&lines.join("\n"));
}

/// Whatever comes out of a ring, an observer goes on.
#[test]
fn no_bytes_panic() {
    let observer = observer(100);
    let seeds = [
        trace(ObservationPoint::ToEndpoint, 2, 0, &tcp_back(1)),
        dropped(DropReason::Policy, &tcp(1, 2)),
        verdict(-133, 1, &tcp(1, 2)),
        sock(1),
        debug(),
        capture(&tcp(1, 2)),
    ];
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as usize
    };
    for round in 0..20_000 {
        let mut bytes = seeds[round % seeds.len()].clone();
        for _ in 0..random() % 8 {
            let place = random() % bytes.len();
            bytes[place] = random() as u8;
        }
        bytes.truncate(random() % (bytes.len() + 1));
        observer.intake().event(random() as u64, 0, &bytes);
    }
    for record in observer.ring.snapshot().records {
        if let Record::Flow(row) = &*record {
            to_json(&row.to_flow(&observer.node));
        }
    }
}

/// Knows one rule.
struct OneRule;

impl flow::observer::Correlator for OneRule {
    fn deciders(&self, cookie: u32) -> Option<flow::directory::Deciders> {
        let policy = api::hubble::flow::Policy {
            name: "web".to_owned(),
            namespace: "prod".to_owned(),
            kind: "CiliumNetworkPolicy".to_owned(),
            revision: 7,
            labels: Vec::new(),
        };
        let logs = vec!["web only".to_owned()];
        (cookie == 5).then(|| flow::directory::Deciders { policies: vec![policy], logs })
    }
}

#[test]
fn verdicts_name_the_policies_that_decided() {
    let observer = observer(10);
    observer.correlate(Box::new(OneRule));
    for (result, flags, cookie) in [(0, 1, 5), (-181, 2, 5), (0, 2, 6), (0, 2, 0)] {
        let bytes = verdict_of(result, flags, cookie, &tcp(1, 2));
        observer.intake().event(NOON_NS, 0, &bytes);
    }
    let name = |policies: &[api::hubble::flow::Policy]| {
        policies.iter().map(|p| p.name.clone()).collect::<String>()
    };
    let mut lines = Vec::new();
    for record in observer.ring.snapshot().records {
        let Record::Flow(row) = &*record else { panic!("a flow, not {record:?}") };
        let flow = row.to_flow(&observer.node);
        lines.push(format!(
            "{}|{}|{}|{}|{}",
            name(&flow.ingress_allowed_by),
            name(&flow.ingress_denied_by),
            name(&flow.egress_allowed_by),
            name(&flow.egress_denied_by),
            flow.policy_log.join(",")
        ));
    }
    assert_eq!(lines, ["web||||web only", "|||web|web only", "||||", "||||"]);
}
