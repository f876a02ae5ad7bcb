//! Raw events, an observer that knows two pods, and a server of it.

use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use abi::DropReason;
use abi::event::{
    CaptureHeader, DebugMessage, DropNotify, EventType, HookId, ObservationPoint,
    PolicyVerdictNotify, TraceNotify, TraceSockNotify,
};
use flow::directory::{IdentityLabels, Peer, ServiceName, Workload};
use flow::message::NodeInfo;
use flow::observer::Observer;
use tonic::transport::Channel;
use zerocopy::IntoBytes;

/// Everything here waits so long at most.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
pub(crate) const WEB: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 2);
/// 2023-11-14T22:13:20Z.
pub(crate) const NOON_NS: u64 = 1_700_000_000_000_000_000;

/// An observer of `node-1` that knows the pods `default/client-1`, here, and `prod/web-0`, elsewhere.
pub(crate) fn observer(capacity: usize) -> Observer {
    let node = NodeInfo {
        name: "east/node-1".to_owned(),
        labels: vec!["zone=a".to_owned()],
        cluster: "east".to_owned(),
        version: "cilium 0.1.0".to_owned(),
        instance: 0x0123_4567_89ab_cdef,
    };
    let observer = Observer::new(capacity, node, Vec::new());
    {
        let mut directory = observer.directory_mut();
        let mut peer =
            |address: Ipv4Addr, endpoint_id, identity, namespace: &str, pod: &str, app: &str| {
                let workloads =
                    vec![Workload { name: app.to_owned(), kind: "Deployment".to_owned() }];
                let (namespace, pod) = (namespace.to_owned(), pod.to_owned());
                let peer = Peer { endpoint_id, identity, namespace, pod, workloads };
                let labels = vec![format!("k8s:app={app}")];
                let labels = IdentityLabels { labels, cluster: "east".to_owned() };
                directory.identities.insert(identity, Arc::new(labels));
                directory.peers.insert(address.into(), Arc::new(peer));
            };
        peer(CLIENT, 7, 1000, "default", "client-1", "client");
        peer(WEB, 0, 2000, "prod", "web-0", "web");
        directory.interfaces.insert(9, "lxc1234".into());
        let web = ServiceName { name: "web".to_owned(), namespace: "prod".to_owned() };
        directory.services.insert((IpAddr::from(WEB), 80), Arc::new(web));
        directory.names.insert((7, WEB.into()), vec!["web.prod.svc.".to_owned()].into());
    }
    observer
}

pub(crate) fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.chars().filter_map(|c| c.to_digit(16)).map(|d| d as u8).collect();
    digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect()
}

/// A TCP packet from the client to the web server, port 80.
pub(crate) fn tcp(source_port: u16, flags: u8) -> Vec<u8> {
    hex(&format!(
        "0a0000000002 0a0000000001 0800 4500003c 0001 0000 40 06 0000 0a000001 0a000102 \
         {source_port:04x} 0050 00000000 00000000 50{flags:02x} ffff 0000 0000"
    ))
}

/// The answer to [`tcp`].
pub(crate) fn tcp_back(source_port: u16) -> Vec<u8> {
    hex(&format!(
        "0a0000000001 0a0000000002 0800 4500003c 0001 0000 40 06 0000 0a000102 0a000001 \
         0050 {source_port:04x} 00000000 00000000 5012 ffff 0000 0000"
    ))
}

fn header(event_type: EventType, subtype: u8, source: u16, packet: &[u8]) -> CaptureHeader {
    CaptureHeader {
        event_type: event_type as u8,
        subtype,
        source,
        hash: 0xabc,
        len_orig: packet.len() as u32,
        len_cap: packet.len() as u16,
        version: 2,
        ext_version: 0,
    }
}

/// A trace at `point`, with what connection tracking said.
pub(crate) fn trace(point: ObservationPoint, reason: u8, flags: u8, packet: &[u8]) -> Vec<u8> {
    let is_back = packet.get(26..30) == Some(WEB.octets().as_slice());
    let (src_label, dst_label) = if is_back { (2000, 1000) } else { (1000, 2000) };
    let event = TraceNotify {
        header: header(EventType::Trace, point as u8, 7, packet),
        src_label,
        dst_label,
        dst_id: 0,
        reason,
        flags,
        ifindex: 9,
        ..TraceNotify::default()
    };
    [event.as_bytes(), packet].concat()
}

pub(crate) fn dropped(reason: DropReason, packet: &[u8]) -> Vec<u8> {
    let event = DropNotify {
        header: header(EventType::Drop, reason as u8, 7, packet),
        src_label: 1000,
        dst_label: 2000,
        file: HookId::FromContainer as u8,
        line: 42,
        ifindex: 9,
        ..DropNotify::default()
    };
    [event.as_bytes(), packet].concat()
}

pub(crate) fn verdict(verdict: i32, flags: u8, packet: &[u8]) -> Vec<u8> {
    verdict_of(verdict, flags, 0, packet)
}

/// A verdict by the rules behind a cookie.
pub(crate) fn verdict_of(verdict: i32, flags: u8, cookie: u32, packet: &[u8]) -> Vec<u8> {
    let event = PolicyVerdictNotify {
        header: header(EventType::PolicyVerdict, 0, 7, packet),
        remote_label: 2000,
        verdict,
        dst_port: 80,
        proto: 6,
        flags,
        cookie,
        ..PolicyVerdictNotify::default()
    };
    [event.as_bytes(), packet].concat()
}

pub(crate) fn sock(point: u8) -> Vec<u8> {
    let mut event = TraceSockNotify {
        event_type: EventType::TraceSock as u8,
        xlate_point: point,
        l4_proto: 1,
        dst_port: 80,
        sock_cookie: 5,
        cgroup_id: 77,
        ..TraceSockNotify::default()
    };
    event.dst_ip[..4].copy_from_slice(&WEB.octets());
    event.as_bytes().to_vec()
}

pub(crate) fn debug() -> Vec<u8> {
    let event = DebugMessage {
        event_type: EventType::Debug as u8,
        subtype: abi::event::DEBUG_DECAP,
        source: 7,
        hash: 1,
        arg1: 2000,
        arg2: 0,
        arg3: 0,
    };
    event.as_bytes().to_vec()
}

pub(crate) fn capture(packet: &[u8]) -> Vec<u8> {
    let header = header(EventType::DebugCapture, 4, 7, packet);
    [header.as_bytes(), &[0; 8], packet].concat()
}

/// Takes `count` flows in, a second apart, from source port 1001 on.
pub(crate) fn feed(observer: &Observer, from: u16, count: u16) {
    let mut intake = observer.intake();
    for port in from..from + count {
        let time_ns = NOON_NS + u64::from(port) * 1_000_000_000;
        intake.event(
            time_ns,
            0,
            &trace(ObservationPoint::ToOverlay, 0, 0, &tcp(1000 + port, 0x02)),
        );
    }
}

/// A directory that is removed at the end.
pub(crate) struct Directory(PathBuf);

impl Directory {
    pub(crate) fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("flow-test-{}-{count}", std::process::id()));
        std::fs::create_dir_all(&path).expect("a directory for the test");
        Self(path)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Connects as soon as somebody answers.
pub(crate) async fn connect(target: &flow::client::Target) -> Channel {
    let attempts = async {
        loop {
            match target.connect(PATIENCE).await {
                Ok(channel) => return channel,
                Err(_) => tokio::task::yield_now().await,
            }
        }
    };
    tokio::time::timeout(PATIENCE, attempts).await.expect("the server answers")
}
