//! Flows that are counted and flows that are written to files.

use std::sync::Arc;
use std::time::Duration;

use abi::DropReason;
use abi::event::ObservationPoint;
use expect_test::expect;
use flow::export::{Export, Rotation, filters};
use flow::metrics::Metrics;
use flow::observer::Tap;
use flow::ring::Record;

use crate::support::*;

#[test]
fn every_metric_counts() {
    let metrics = Metrics::parse([
        "drop:sourceContext=dns|pod;destinationContext=workload-name",
        "flow:labelsContext=source_namespace,traffic_direction",
        "tcp",
        "port-distribution",
        "policy:sourceContext=app",
        "icmp",
        "flows-to-world",
    ])
    .expect("metrics that there are");
    let observer = observer(100);
    {
        let mut intake = observer.intake();
        for bytes in [
            trace(ObservationPoint::ToOverlay, 0, 0, &tcp(1, 0x02)),
            trace(ObservationPoint::ToOverlay, 0, 0, &tcp(2, 0x02)),
            trace(ObservationPoint::ToEndpoint, 2, 0, &tcp_back(1)),
            dropped(DropReason::Policy, &tcp(3, 0x02)),
            verdict(-133, 2, &tcp(3, 0x02)),
        ] {
            intake.event(NOON_NS, 0, &bytes);
        }
    }
    for record in observer.ring.snapshot().records {
        if let Record::Flow(row) = &*record {
            metrics.flow(row);
        }
    }
    metrics.lost(api::hubble::flow::LostEventSource::PerfEventRingBuffer, 4);
    expect![[r##"
        # HELP hubble_drop_total Number of drops
        # TYPE hubble_drop_total counter
        hubble_drop_total{reason="Policy denied",protocol="TCP",source="default/client-1",destination="web"} 2
        # HELP hubble_flows_processed_total Total number of flows processed
        # TYPE hubble_flows_processed_total counter
        hubble_flows_processed_total{protocol="TCP",type="Drop",subtype="",verdict="DROPPED",source_namespace="default",traffic_direction="egress"} 1
        hubble_flows_processed_total{protocol="TCP",type="PolicyVerdict",subtype="",verdict="DROPPED",source_namespace="default",traffic_direction="egress"} 1
        hubble_flows_processed_total{protocol="TCP",type="Trace",subtype="to-endpoint",verdict="FORWARDED",source_namespace="prod",traffic_direction="egress"} 1
        hubble_flows_processed_total{protocol="TCP",type="Trace",subtype="to-overlay",verdict="FORWARDED",source_namespace="default",traffic_direction="egress"} 2
        # HELP hubble_tcp_flags_total TCP flag occurrences
        # TYPE hubble_tcp_flags_total counter
        hubble_tcp_flags_total{flag="SYN",family="IPv4"} 2
        hubble_tcp_flags_total{flag="SYN-ACK",family="IPv4"} 1
        # HELP hubble_port_distribution_total Numbers of packets distributed by destination port
        # TYPE hubble_port_distribution_total counter
        hubble_port_distribution_total{protocol="TCP",port="80"} 2
        # HELP hubble_policy_verdicts_total Total number of Cilium network policy verdicts
        # TYPE hubble_policy_verdicts_total counter
        hubble_policy_verdicts_total{direction="egress",match="none",action="dropped",source="client"} 1
        # HELP hubble_icmp_total Number of ICMP messages
        # TYPE hubble_icmp_total counter
        # HELP hubble_flows_to_world_total Total number of flows to reserved:world
        # TYPE hubble_flows_to_world_total counter
        # HELP hubble_lost_events_total Number of lost events
        # TYPE hubble_lost_events_total counter
        hubble_lost_events_total{source="perf_event_ring_buffer"} 4
        hubble_lost_events_total{source="observer_events_queue"} 0
        hubble_lost_events_total{source="hubble_ring_buffer"} 0
    "##]].assert_eq(&metrics.render());
}

#[tokio::test]
async fn files_are_rotated() {
    let directory = Directory::new();
    let path = directory.path().join("events.log");
    let observer = Arc::new(observer(1023));
    let rotation = Rotation { len_max: 2000, backups_max: 2 };
    let mask = ["source.pod_name".to_owned(), "l4".to_owned()];
    let deny = filters(r#"{"source_port":["1003"]} {"source_port":["1004"]}"#).expect("filters");
    let export = Export::new(&path.display().to_string(), rotation, &[], &deny, &mask);
    let export = export.expect("a file");
    let running = tokio::spawn(export.run(observer.clone()));
    let newest = async {
        // It begins with what comes once it runs.
        let mut port = 0;
        loop {
            port += 1;
            feed(&observer, port, 1);
            tokio::time::sleep(Duration::from_millis(2)).await;
            let files = std::fs::read_dir(directory.path()).expect("the directory").count();
            if files == 3 && port > 200 {
                return;
            }
        }
    };
    tokio::time::timeout(PATIENCE, newest).await.expect("files are put aside");
    running.abort();
    let mut names: Vec<_> = std::fs::read_dir(directory.path())
        .expect("the directory")
        .flatten()
        .map(|entry| entry.path())
        .collect();
    names.sort();
    assert_eq!(names.len(), 3, "{names:?}");
    let text = std::fs::read_to_string(&names[0]).expect("a file");
    for line in text.lines() {
        let event: serde_json::Value = serde_json::from_str(line).expect("JSON");
        assert_eq!(event["flow"]["source"]["pod_name"], "client-1", "{line}");
        assert!(event["flow"]["verdict"].is_null() && event["time"].is_string(), "{line}");
        let port = event["flow"]["l4"]["TCP"]["source_port"].as_u64().expect("a port");
        assert!(port != 1003 && port != 1004, "{line}");
    }
}

#[test]
fn what_cannot_be_exported_is_refused() {
    assert!(filters(r#"{"source_pot":[]}"#).unwrap_err().to_string().contains("source_pot"));
    let rotation = Rotation { len_max: 1, backups_max: 1 };
    let bad = Export::new("/proc/nowhere/x", rotation.clone(), &[], &[], &[]);
    assert!(bad.unwrap_err().to_string().contains("/proc/nowhere/x"));
    let bad = Export::new("stdout", rotation, &[], &[], &["sauce".to_owned()]);
    assert!(bad.unwrap_err().to_string().contains("sauce"));
}

/// A dashboard that asks for what nobody serves shows nothing, and nobody notices.
#[test]
fn the_dashboard_asks_for_metrics_that_there_are() {
    let every = "drop flow flows-to-world icmp policy port-distribution tcp";
    let served = Metrics::parse(every.split(' ')).expect("metrics that there are").render();
    let dashboard = include_str!("../../../../deploy/grafana/hubble.json");
    let value: serde_json::Value = serde_json::from_str(dashboard).expect("JSON");
    let panels = value["panels"].as_array().expect("panels");
    for panel in panels {
        let query = panel["targets"][0]["expr"].as_str().expect("a query");
        let start = query.find("hubble_").expect("a metric of Hubble");
        let is_name = |c: char| c.is_ascii_lowercase() || c == '_';
        let name: String = query[start..].chars().take_while(|c| is_name(*c)).collect();
        assert!(served.contains(&format!("# TYPE {name} counter")), "{name}: {}", panel["title"]);
    }
    assert!(value["description"].as_str().is_some_and(|text| text.contains(every)));
}
