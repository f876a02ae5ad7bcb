//! Filters as tables: one flow, and for each filter whether it matches.

use std::slice::from_ref;

use api::hubble::flow::{Flow, FlowFilter};
use api::hubble::from_json;

use super::*;

/// A request that was dropped on its way from `default/client-1` to `prod/web-0`.
const FLOW: &str = r#"{
    "time": "2023-11-14T22:13:20Z", "uuid": "u-1", "verdict": "DROPPED",
    "drop_reason_desc": "POLICY_DENIED", "traffic_direction": "INGRESS", "is_reply": false,
    "IP": {"source": "10.0.1.7", "source_xlated": "192.168.0.9", "destination": "10.0.2.8",
           "ipVersion": "IPv4", "encrypted": true},
    "l4": {"TCP": {"source_port": 40000, "destination_port": 80, "flags": {"SYN": true, "ACK": true}}},
    "source": {"ID": 7, "identity": 1000, "namespace": "default", "pod_name": "client-1",
               "cluster_name": "east", "labels": ["k8s:app=client", "k8s:io.kubernetes.pod.namespace=default"],
               "workloads": [{"name": "client", "kind": "Deployment"}]},
    "destination": {"identity": 2000, "namespace": "prod", "pod_name": "web-0", "cluster_name": "west",
                    "labels": ["k8s:app=web", "k8s:tier=front", "reserved:special"],
                    "workloads": [{"name": "web", "kind": "StatefulSet"}]},
    "Type": "L3_L4", "node_name": "east/node-1", "node_labels": ["zone=a", "kubernetes.io/os=linux"],
    "source_names": ["Client.example.org"], "destination_names": ["web.prod.svc", "www.example.org."],
    "source_service": {"name": "clients", "namespace": "default"},
    "destination_service": {"name": "web", "namespace": "prod"},
    "event_type": {"type": 1, "sub_type": 133},
    "interface": {"index": 4, "name": "lxc1"},
    "trace_context": {"parent": {"trace_id": "4bf92f35"}}, "ip_trace_id": {"trace_id": "77"}
}"#;

const HTTP: &str = r#"{
    "verdict": "FORWARDED", "Type": "L7", "node_name": "node-2",
    "event_type": {"type": 129},
    "l4": {"TCP": {"source_port": 80, "destination_port": 40000}},
    "l7": {"type": "RESPONSE", "http": {"code": 404, "method": "GET", "protocol": "HTTP/1.1",
           "url": "http://web.prod/api/v1/items?id=3", "headers": [{"key": "X-Id", "value": "9"}]}}
}"#;

const DNS: &str = r#"{
    "Type": "L7", "event_type": {"type": 129}, "l4": {"UDP": {"source_port": 1, "destination_port": 53}},
    "l7": {"type": "REQUEST", "dns": {"query": "kube-dns.kube-system.svc.cluster.local.", "qtypes": ["A"]}}
}"#;

#[track_caller]
fn check(flow: &str, filter: &str, expected: bool) {
    let flow: Flow = from_json(flow).expect("a flow");
    let filter: FlowFilter = from_json(filter).expect("a filter");
    let compiled = Filter::new(&filter).expect("a filter that can be understood");
    assert_eq!(compiled.matches(&flow), expected, "{filter:?}");
}

#[track_caller]
fn yes(filter: &str) {
    check(FLOW, filter, true);
}

#[track_caller]
fn no(filter: &str) {
    check(FLOW, filter, false);
}

#[track_caller]
fn refused(filter: &str, expected: &str) {
    let filter: FlowFilter = from_json(filter).expect("a filter");
    let error = Filter::new(&filter).expect_err("a filter that makes no sense").to_string();
    assert!(error.contains(expected), "{error}");
}

#[test]
fn fields_are_joined_by_and_elements_by_or() {
    yes("{}");
    yes(r#"{"verdict": ["FORWARDED", "DROPPED"], "source_port": ["1", "40000"]}"#);
    no(r#"{"verdict": ["DROPPED"], "source_port": ["1"]}"#);
}

#[test]
fn addresses() {
    yes(r#"{"source_ip": ["10.0.1.7"]}"#);
    yes(r#"{"source_ip": ["10.0.0.0/16"]}"#);
    yes(r#"{"destination_ip": ["fd00::/8", "10.0.2.0/24"]}"#);
    no(r#"{"source_ip": ["10.0.2.8"]}"#);
    no(r#"{"destination_ip": ["10.0.3.0/24"]}"#);
    yes(r#"{"source_ip_xlated": ["192.168.0.0/24"]}"#);
    no(r#"{"source_ip_xlated": ["10.0.1.7"]}"#);
    check(DNS, r#"{"source_ip": ["0.0.0.0/0"]}"#, false);
    refused(
        r#"{"source_ip": ["10.0.0"]}"#,
        r#"source_ip: "10.0.0": neither an address nor a CIDR"#,
    );
    yes(r#"{"ip_version": ["IPv4"]}"#);
    no(r#"{"ip_version": ["IPv6"]}"#);
    yes(r#"{"encrypted": [true]}"#);
    no(r#"{"encrypted": [false]}"#);
}

#[test]
fn pods_and_services() {
    yes(r#"{"source_pod": ["client"]}"#);
    yes(r#"{"source_pod": ["default/client-"]}"#);
    yes(r#"{"source_pod": ["/cli"]}"#);
    yes(r#"{"destination_pod": ["prod/"]}"#);
    no(r#"{"destination_pod": ["web"]}"#); // in the namespace default
    no(r#"{"destination_pod": ["pro/"]}"#); // a namespace is no prefix
    yes(r#"{"destination_pod": ["/web"]}"#);
    check(DNS, r#"{"source_pod": ["/x"]}"#, false);
    refused(r#"{"source_pod": [""]}"#, "source_pod");
    yes(r#"{"destination_service": ["prod/web"]}"#);
    yes(r#"{"source_service": ["clients"]}"#);
    no(r#"{"destination_service": ["web"]}"#);
    yes(r#"{"source_workload": [{"name": "client"}]}"#);
    yes(r#"{"destination_workload": [{"kind": "StatefulSet"}]}"#);
    no(r#"{"destination_workload": [{"name": "web", "kind": "Deployment"}]}"#);
    yes(r#"{"source_cluster_name": ["east"], "destination_cluster_name": ["west"]}"#);
    no(r#"{"source_cluster_name": ["west"]}"#);
}

#[test]
fn names_with_placeholders() {
    yes(r#"{"destination_fqdn": ["*.example.org"]}"#);
    yes(r#"{"destination_fqdn": ["WWW.example.org."]}"#);
    yes(r#"{"source_fqdn": ["client.*"]}"#);
    no(r#"{"destination_fqdn": ["example.org"]}"#);
    no(r#"{"destination_fqdn": ["wwwxexample.org"]}"#);
    refused(r#"{"source_fqdn": ["a b"]}"#, "source_fqdn");
    yes(r#"{"node_name": ["east/node-1"]}"#);
    yes(r#"{"node_name": ["east/"]}"#);
    yes(r#"{"node_name": ["/node-*"]}"#);
    no(r#"{"node_name": ["node-1"]}"#); // in the cluster default
    check(HTTP, r#"{"node_name": ["node-*"]}"#, true);
    check(HTTP, r#"{"node_name": ["default/node-2"]}"#, true);
    refused(r#"{"node_name": ["["]}"#, "node_name");
}

#[test]
fn labels() {
    yes(r#"{"source_label": ["app=client"]}"#);
    yes(r#"{"source_label": ["k8s:app=client"]}"#);
    no(r#"{"source_label": ["reserved:app=client"]}"#);
    yes(r#"{"destination_label": ["app=x", "app in (db, web), tier"]}"#);
    no(r#"{"destination_label": ["app in (db, web), !tier"]}"#);
    yes(r#"{"destination_label": ["app notin (db), tier!=back"]}"#);
    yes(r#"{"destination_label": ["reserved:special"]}"#);
    yes(r#"{"source_label": ["io.kubernetes.pod.namespace==default"]}"#);
    yes(r#"{"node_labels": ["zone=a,kubernetes.io/os"]}"#);
    no(r#"{"node_labels": ["zone=b"]}"#);
    refused(r#"{"source_label": ["a in b"]}"#, "source_label");
    refused(r#"{"source_label": ["(a"]}"#, "source_label");
    refused(r#"{"source_label": ["a b"]}"#, "source_label");
}

#[test]
fn what_happened() {
    yes(r#"{"drop_reason_desc": ["POLICY_DENIED"]}"#);
    no(r#"{"drop_reason_desc": ["INVALID_SOURCE_IP"]}"#);
    yes(r#"{"event_type": [{"type": 4}, {"type": 1}]}"#);
    yes(r#"{"event_type": [{"type": 1, "match_sub_type": true, "sub_type": 133}]}"#);
    no(r#"{"event_type": [{"type": 1, "match_sub_type": true}]}"#);
    yes(r#"{"traffic_direction": ["INGRESS"]}"#);
    yes(r#"{"reply": [false]}"#);
    no(r#"{"reply": [true]}"#);
    check(HTTP, r#"{"reply": [true, false]}"#, false); // not known
    yes(r#"{"interface": [{"name": "lxc1"}]}"#);
    yes(r#"{"interface": [{"index": 4}]}"#);
    no(r#"{"interface": [{"index": 4, "name": "eth0"}]}"#);
    yes(r#"{"uuid": ["u-1"]}"#);
    yes(r#"{"trace_id": ["4bf92f35"]}"#);
    check(HTTP, r#"{"trace_id": [""]}"#, false);
    yes(r#"{"ip_trace_id": ["77"]}"#);
    yes(r#"{"source_identity": [1000], "destination_identity": [2000]}"#);
    no(r#"{"source_identity": [2000]}"#);
}

#[test]
fn transport() {
    yes(r#"{"protocol": ["TCP"]}"#);
    no(r#"{"protocol": ["udp", "icmp"]}"#);
    refused(r#"{"protocol": ["tcq"]}"#, r#"protocol: "tcq""#);
    yes(r#"{"destination_port": ["80"]}"#);
    refused(r#"{"destination_port": ["http"]}"#, "destination_port");
    yes(r#"{"tcp_flags": [{"SYN": true}]}"#);
    yes(r#"{"tcp_flags": [{"RST": true}, {"SYN": true, "ACK": true}]}"#);
    no(r#"{"tcp_flags": [{"SYN": true, "FIN": true}]}"#);
    check(DNS, r#"{"protocol": ["dns"]}"#, true);
    check(DNS, r#"{"protocol": ["udp"]}"#, true);
    check(HTTP, r#"{"protocol": ["http"]}"#, true);
}

#[test]
fn layer_7() {
    check(HTTP, r#"{"http_status_code": ["404"]}"#, true);
    check(HTTP, r#"{"http_status_code": ["4+"]}"#, true);
    check(HTTP, r#"{"http_status_code": ["5+", "200"]}"#, false);
    for bad in ["4", "6+", "4044", "404+", "x"] {
        refused(&format!(r#"{{"http_status_code": ["{bad}"]}}"#), "http_status_code");
    }
    check(HTTP, r#"{"http_method": ["get"]}"#, true);
    check(HTTP, r#"{"http_path": ["^/api/v[0-9]+/items$"]}"#, true);
    check(HTTP, r#"{"http_path": ["id=3"]}"#, false);
    check(HTTP, r#"{"http_url": ["id=3"]}"#, true);
    check(HTTP, r#"{"http_header": [{"key": "X-Id", "value": "9"}]}"#, true);
    check(HTTP, r#"{"http_header": [{"key": "X-Id", "value": "8"}]}"#, false);
    check(DNS, r#"{"dns_query": ["kube.*local"]}"#, true);
    check(HTTP, r#"{"dns_query": [".*"]}"#, false);
    refused(r#"{"dns_query": ["("]}"#, "dns_query");
    no(r#"{"http_method": ["GET"]}"#);
    refused(r#"{"http_method": ["GET"], "event_type": [{"type": 4}]}"#, "event_type");
    check(HTTP, r#"{"http_method": ["GET"], "event_type": [{"type": 129}]}"#, true);
}

#[test]
fn expressions() {
    let cel =
        |expression: &str| format!(r#"{{"experimental": {{"cel_expression": [{expression:?}]}}}}"#);
    yes(&cel("_flow.verdict == Verdict.DROPPED"));
    yes(&cel("_flow.verdict == flow.Verdict.DROPPED && _flow.source.identity == 1000u"));
    yes(&cel("_flow.l4.TCP.destination_port == 80"));
    yes(&cel("_flow.destination.pod_name.startsWith('web-')"));
    yes(&cel("_flow.destination.labels.exists(l, l == 'k8s:tier=front')"));
    no(&cel("_flow.l7.http.code == 404u"));
    check(HTTP, &cel("_flow.l7.http.code == 404u"), true);
    refused(&cel("_flow.sauce == 1"), "experimental.cel_expression");
    refused(&cel("_flow.node_name"), "not a bool");
    refused(&cel("1 +"), "experimental.cel_expression");
    refused(&cel("true || ".repeat(1000).as_str()), "longer than");
}

#[test]
fn selections() {
    let flow: Flow = from_json(FLOW).unwrap();
    let filter = |text: &str| from_json::<FlowFilter>(text).unwrap();
    let dropped = filter(r#"{"verdict": ["DROPPED"]}"#);
    let forwarded = filter(r#"{"verdict": ["FORWARDED"]}"#);
    let check = |include: &[FlowFilter], exclude: &[FlowFilter], expected: bool| {
        let selection = Selection::new(include, exclude).unwrap();
        assert_eq!(selection.matches(&flow), expected, "{include:?} {exclude:?}");
    };
    check(&[], &[], true);
    check(from_ref(&forwarded), &[], false);
    check(&[forwarded.clone(), dropped.clone()], &[], true);
    check(&[], from_ref(&dropped), false);
    check(from_ref(&dropped), from_ref(&forwarded), true);
    let bad = filter(r#"{"source_ip": ["x"]}"#);
    let error = Selection::new(&[dropped], &[forwarded, bad]).unwrap_err();
    assert_eq!(error.field, "blacklist[1].source_ip");
}

/// An agent must not end because of what a client sends.
#[test]
fn deep_expressions_do_not_exhaust_the_stack() {
    let around = |n: usize, open: &str, inner: &str, close: &str| {
        format!("{}{inner}{}", open.repeat(n), close.repeat(n))
    };
    for n in [19, 38, 95, 2000] {
        for text in [
            around(n, "(", "true", ")"),
            around(n, "!", "true", ""),
            around(n, "[", "1", "]") + " == [1]",
            around(n, "true?true:", "true", ""),
            around(n, "-", "1", "") + " > 0",
            around(n, "1+", "1", "") + " > 0",
            around(n, "true&&", "true", ""),
            around(n, "true==", "true", ""),
            around(n, "[1].all(x, ", "true", ")"),
            format!("_flow{} == 1", ".source".repeat(n)),
        ] {
            let experimental = flow::flow_filter::Experimental { cel_expression: vec![text] };
            let filter = FlowFilter { experimental: Some(experimental), ..FlowFilter::default() };
            if let Ok(filter) = Filter::new(&filter) {
                filter.matches(&Flow::default());
            }
        }
    }
}
