//! What flows cost user space: `cargo xtask bench flow`.
//!
//! Method: one process, no kernel. 1,000,000 raw trace events of TCP packets among 1,000 pods are
//! taken in, in batches of 512 as from the rings, by an observer that knows the pods, their 200
//! identities and 100 services, and keeps the default of 4,095 events. Then a filter that passes one
//! pod in a hundred looks at all rows of a full ring, and messages are made of them, whole and with
//! the mask of `hubble observe`. Figures are per second, on one thread. Memory is the resident set of
//! the process with the observer's ring full, less what it was before.

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Instant;

use abi::event::{CaptureHeader, EventType, ObservationPoint, TraceNotify};
use api::hubble::flow::FlowFilter;
use flow::directory::{IdentityLabels, Peer, ServiceName, Workload};
use flow::filter::{Filter, Selection};
use flow::mask::Mask;
use flow::message::NodeInfo;
use flow::observer::Observer;
use flow::ring::Record;
use prost::Message;
use zerocopy::IntoBytes;

const EVENTS: usize = 1_000_000;
const BATCH: usize = 512;
const PODS: u32 = 1_000;
const IDENTITIES: u32 = 200;
const SERVICES: u32 = 100;
const CAPACITY: usize = 4_095;

fn main() {
    let before = resident_kib();
    let observer = observer();
    let events: Vec<Vec<u8>> = (0..4096).map(event).collect();
    let started = Instant::now();
    for batch in 0..EVENTS / BATCH {
        let mut intake = observer.intake();
        for index in 0..BATCH {
            let number = batch * BATCH + index;
            intake.event(number as u64, 0, black_box(&events[number % events.len()]));
        }
    }
    let taken = (EVENTS / BATCH * BATCH) as f64;
    report(
        "events per second",
        "ring to row, all looked up",
        taken / started.elapsed().as_secs_f64(),
    );
    report("resident memory, MiB", "observer with a full ring", mib(before));

    let rows = observer.ring.snapshot().records;
    let rows: Vec<_> = rows
        .iter()
        .filter_map(|record| match &**record {
            Record::Flow(row) => Some(row),
            _ => None,
        })
        .collect();
    let flows: Vec<_> = rows.iter().map(|row| row.to_flow(&observer.node)).collect();
    let wanted = FlowFilter { source_pod: vec!["ns-1/pod-1".to_owned()], ..FlowFilter::default() };
    Filter::new(&wanted).expect("a filter");
    let selection = Selection::new(&[wanted], &[]).expect("a filter");
    rate("filter of rows, by pod", rows.len(), || {
        rows.iter().filter(|row| selection.matches_row(row, &observer.node)).count()
    });
    rate("message of a row", rows.len(), || {
        rows.iter().map(|row| row.to_flow(&observer.node).source_names.len()).sum()
    });
    rate("message encoded", rows.len(), || {
        rows.iter().map(|row| row.to_flow(&observer.node).encode_to_vec().len()).sum()
    });
    let mask = Mask::new(["time", "source.pod_name", "destination.pod_name", "verdict"]);
    let mask = mask.expect("fields").expect("a mask");
    rate("message with a mask", flows.len(), || {
        flows.iter().map(|flow| mask.apply(flow).source_names.len()).sum()
    });
}

/// Runs a pass over all rows until a second is over.
fn rate(name: &str, len: usize, mut pass: impl FnMut() -> usize) {
    let started = Instant::now();
    let mut done = 0;
    while started.elapsed().as_secs() < 1 {
        black_box(pass());
        done += len;
    }
    report("events per second", name, done as f64 / started.elapsed().as_secs_f64());
}

fn address(pod: u32) -> Ipv4Addr {
    Ipv4Addr::from(0x0a00_0000 + pod)
}

fn observer() -> Observer {
    let node = NodeInfo { name: "node-1".to_owned(), instance: 1, ..NodeInfo::default() };
    let observer = Observer::new(CAPACITY, node, Vec::new());
    {
        let mut directory = observer.directory_mut();
        for number in 0..IDENTITIES {
            let labels = (0..8).map(|label| format!("k8s:label-{label}=value-{number}")).collect();
            let labels = IdentityLabels { labels, cluster: "default".to_owned() };
            directory.identities.insert(1_000 + number, Arc::new(labels));
        }
        for pod in 0..PODS {
            let workloads =
                vec![Workload { name: format!("app-{}", pod % 50), kind: "Deployment".to_owned() }];
            let peer = Peer {
                endpoint_id: if pod < 30 { pod as u16 + 1 } else { 0 },
                identity: 1_000 + pod % IDENTITIES,
                namespace: format!("ns-{}", pod % 20),
                pod: format!("pod-{pod}"),
                workloads,
            };
            directory.peers.insert(IpAddr::from(address(pod)), Arc::new(peer));
        }
        for service in 0..SERVICES {
            let name = ServiceName { name: format!("svc-{service}"), namespace: "ns".to_owned() };
            directory.services.insert((IpAddr::from(address(service * 7)), 80), Arc::new(name));
        }
        directory.interfaces.insert(9, "lxc1234".into());
    }
    observer
}

fn event(number: usize) -> Vec<u8> {
    let (source, target) = (number as u32 % PODS, (number as u32 * 7) % PODS);
    let mut packet = Vec::new();
    packet.extend([0x0a, 0, 0, 0, 0, 2, 0x0a, 0, 0, 0, 0, 1, 0x08, 0]);
    packet.extend([0x45, 0, 0, 60, 0, 1, 0, 0, 64, 6, 0, 0]);
    packet.extend(address(source).octets());
    packet.extend(address(target).octets());
    packet.extend((40_000 + number as u16 % 20_000).to_be_bytes());
    packet.extend([0, 80, 0, 0, 0, 0, 0, 0, 0, 0, 0x50, 0x02, 0xff, 0xff, 0, 0, 0, 0]);
    packet.resize(128, 0);
    let header = CaptureHeader {
        event_type: EventType::Trace as u8,
        subtype: ObservationPoint::ToOverlay as u8,
        source: source as u16 % 30 + 1,
        hash: number as u32,
        len_orig: 1_500,
        len_cap: packet.len() as u16,
        version: 2,
        ext_version: 0,
    };
    let event = TraceNotify {
        header,
        src_label: 1_000 + source % IDENTITIES,
        dst_label: 1_000 + target % IDENTITIES,
        ifindex: 9,
        ..TraceNotify::default()
    };
    [event.as_bytes(), &packet].concat()
}

fn report(metric: &str, variant: &str, value: f64) {
    println!("BENCH {metric}|{variant}|{value}");
}

fn mib(before_kib: u64) -> f64 {
    resident_kib().saturating_sub(before_kib) as f64 / 1024.0
}

fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.trim().trim_end_matches("kB").trim().parse().ok()).unwrap_or(0)
}
