//! The services of an agent, over its Unix socket.

use std::sync::Arc;

use api::hubble::flow::{AgentEvent, AgentEventType, FlowFilter, LostEventSource};
use api::hubble::observer::observer_client::ObserverClient;
use api::hubble::observer::{
    GetAgentEventsRequest, GetDebugEventsRequest, GetFlowsRequest, GetFlowsResponse,
    GetNamespacesRequest, GetNodesRequest, ServerStatusRequest, get_flows_response::ResponseTypes,
};
use api::hubble::peer::{NotifyRequest, peer_client::PeerClient};
use flow::client::Target;
use flow::observer::Observer;
use flow::server::{Listener, NodeAddress, PeerInfo, PeerService, Peers, agent_routes, serve};
use prost_types::{FieldMask, Timestamp};
use tokio::net::UnixListener;
use tokio::sync::watch;
use tonic::transport::Channel;
use tonic::{Code, Streaming};

use crate::support::*;

/// A server on a socket of its own.
struct Served {
    observer: Arc<Observer>,
    peers: watch::Sender<Peers>,
    channel: Channel,
    server: tokio::task::JoinHandle<()>,
    _directory: Directory,
}

impl Served {
    async fn new(capacity: usize) -> Self {
        let directory = Directory::new();
        let path = directory.path().join("hubble.sock");
        let observer = Arc::new(observer(capacity));
        let peers = watch::Sender::new(Peers::new());
        let service = PeerService::new(peers.subscribe());
        let routes = agent_routes(observer.clone(), NodeAddress::default(), service).await;
        let listener = Listener::Unix(UnixListener::bind(&path).expect("a socket"));
        let server = tokio::spawn(async move {
            serve(listener, routes, std::future::pending()).await.expect("it serves");
        });
        let channel = connect(&Target::Unix(path)).await;
        Self { observer, peers, channel, server, _directory: directory }
    }

    fn client(&self) -> ObserverClient<Channel> {
        ObserverClient::new(self.channel.clone())
    }

    async fn flows(&self, request: GetFlowsRequest) -> Vec<GetFlowsResponse> {
        let mut stream = self.client().get_flows(request).await.expect("flows").into_inner();
        let mut responses = Vec::new();
        while let Some(response) = next(&mut stream).await {
            responses.push(response);
        }
        responses
    }

    /// The source ports of what a request gives, in order.
    async fn ports(&self, request: GetFlowsRequest) -> Vec<u32> {
        self.flows(request).await.iter().map(port).collect()
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn next<T>(stream: &mut Streaming<T>) -> Option<T> {
    let message = tokio::time::timeout(PATIENCE, stream.message());
    message.await.expect("a message or the end in time").expect("no error")
}

fn port(response: &GetFlowsResponse) -> u32 {
    use api::hubble::flow::layer4::Protocol;
    let Some(ResponseTypes::Flow(flow)) = &response.response_types else {
        panic!("a flow, not {response:?}")
    };
    match flow.l4.as_ref().and_then(|l4| l4.protocol.as_ref()) {
        Some(Protocol::Tcp(tcp)) => tcp.source_port,
        other => panic!("a TCP header, not {other:?}"),
    }
}

fn second(port: u64) -> Option<Timestamp> {
    Some(flow::message::timestamp(NOON_NS + port * 1_000_000_000))
}

#[tokio::test]
async fn flows_are_selected_by_number_and_time() {
    let served = Served::new(100).await;
    feed(&served.observer, 1, 10);
    let request = GetFlowsRequest::default;
    let all: Vec<u32> = (1001..=1010).collect();
    assert_eq!(served.ports(request()).await, all);
    assert_eq!(served.ports(GetFlowsRequest { number: 3, ..request() }).await, [1008, 1009, 1010]);
    let first = GetFlowsRequest { number: 2, first: true, ..request() };
    assert_eq!(served.ports(first).await, [1001, 1002]);
    let since = GetFlowsRequest { since: second(9), ..request() };
    assert_eq!(served.ports(since).await, [1009, 1010]);
    let until = GetFlowsRequest { until: second(2), ..request() };
    assert_eq!(served.ports(until).await, [1001, 1002]);
    let between = GetFlowsRequest { since: second(4), until: second(6), number: 2, ..request() };
    assert_eq!(served.ports(between).await, [1005, 1006]);
    // The last of those that match, not those of the last that match.
    let low =
        FlowFilter { source_port: vec!["1002".into(), "1003".into()], ..FlowFilter::default() };
    let filtered = GetFlowsRequest { number: 1, whitelist: vec![low.clone()], ..request() };
    assert_eq!(served.ports(filtered).await, [1003]);
    let rest = GetFlowsRequest { blacklist: vec![low], number: 9, first: true, ..request() };
    assert_eq!(served.ports(rest).await, [1001, 1004, 1005, 1006, 1007, 1008, 1009, 1010]);
}

#[tokio::test]
async fn following_begins_now_or_with_the_last() {
    let served = Served::new(100).await;
    feed(&served.observer, 1, 5);
    let mut now = served
        .client()
        .get_flows(GetFlowsRequest { follow: true, ..GetFlowsRequest::default() })
        .await
        .expect("flows")
        .into_inner();
    let mut last = served
        .client()
        .get_flows(GetFlowsRequest { follow: true, number: 2, ..GetFlowsRequest::default() })
        .await
        .expect("flows")
        .into_inner();
    feed(&served.observer, 6, 2);
    let mut ports = Vec::new();
    for _ in 0..2 {
        ports.push(port(&next(&mut now).await.expect("it follows")));
    }
    assert_eq!(ports, [1006, 1007]);
    ports.clear();
    for _ in 0..4 {
        ports.push(port(&next(&mut last).await.expect("it follows")));
    }
    assert_eq!(ports, [1004, 1005, 1006, 1007]);
}

#[tokio::test]
async fn masks_leave_fields_out() {
    let served = Served::new(100).await;
    feed(&served.observer, 1, 1);
    let paths = vec!["source.pod_name".to_owned(), "verdict".to_owned()];
    let field_mask = Some(FieldMask { paths });
    let responses =
        served.flows(GetFlowsRequest { field_mask, ..GetFlowsRequest::default() }).await;
    let json: Vec<String> = responses.iter().map(api::hubble::to_json).collect();
    assert_eq!(
        json,
        [
            r#"{"flow":{"verdict":"FORWARDED","source":{"pod_name":"client-1"}},"node_name":"east/node-1","time":"2023-11-14T22:13:21Z"}"#
        ]
    );
}

#[tokio::test]
async fn what_makes_no_sense_is_refused_by_name() {
    let served = Served::new(100).await;
    let refused = async |request: GetFlowsRequest, what: &str| {
        let status = served.client().get_flows(request).await.expect_err("an error");
        assert_eq!(status.code(), Code::InvalidArgument, "{status}");
        assert!(status.message().contains(what), "{status}");
    };
    let bad = FlowFilter { source_ip: vec!["x".into()], ..FlowFilter::default() };
    let request = GetFlowsRequest::default;
    refused(GetFlowsRequest { blacklist: vec![bad], ..request() }, "blacklist[0].source_ip").await;
    let field_mask = Some(FieldMask { paths: vec!["sauce".into()] });
    refused(GetFlowsRequest { field_mask, ..request() }, "sauce").await;
    refused(GetFlowsRequest { first: true, follow: true, ..request() }, "first").await;
}

#[tokio::test]
async fn losses_are_told() {
    let served = Served::new(15).await;
    let mut stream = served
        .client()
        .get_flows(GetFlowsRequest { follow: true, ..GetFlowsRequest::default() })
        .await
        .expect("flows")
        .into_inner();
    served.observer.lost(LostEventSource::PerfEventRingBuffer, 3, Some(1));
    // One batch of more than fits: no reader can keep up.
    feed(&served.observer, 1, 100);
    let (mut kernel, mut ring, mut flows) = (0, 0, 0);
    while kernel + ring + flows < 103 {
        match next(&mut stream).await.and_then(|response| response.response_types) {
            Some(ResponseTypes::LostEvents(lost)) => match lost.source() {
                LostEventSource::PerfEventRingBuffer => {
                    assert_eq!(lost.cpu, Some(1));
                    kernel += lost.num_events_lost;
                }
                // The notice above may be among what was lost.
                LostEventSource::HubbleRingBuffer => ring += lost.num_events_lost,
                other => panic!("lost at {other:?}"),
            },
            Some(ResponseTypes::Flow(_)) => flows += 1,
            other => panic!("{other:?}"),
        }
        if kernel == 0 && ring + flows == 101 {
            break;
        }
    }
    assert!(ring >= 85, "kernel {kernel} ring {ring} flows {flows}");
}

#[tokio::test]
async fn events_of_the_agent_and_of_debugging() {
    let served = Served::new(100).await;
    feed(&served.observer, 1, 2);
    let created = AgentEvent { r#type: AgentEventType::EndpointCreated.into(), notification: None };
    served.observer.agent_event(created);
    served.observer.intake().event(NOON_NS, 1, &debug());
    let mut agent = served
        .client()
        .get_agent_events(GetAgentEventsRequest::default())
        .await
        .expect("events")
        .into_inner();
    let event = next(&mut agent).await.and_then(|response| response.agent_event);
    assert_eq!(event, Some(created_event()));
    assert!(next(&mut agent).await.is_none());
    let mut messages = served
        .client()
        .get_debug_events(GetDebugEventsRequest::default())
        .await
        .expect("events")
        .into_inner();
    let event = next(&mut messages).await.and_then(|response| response.debug_event).expect("one");
    assert_eq!(
        (event.r#type().as_str_name(), event.cpu, event.arg1),
        ("DBG_DECAP", Some(1), Some(2000))
    );
    assert_eq!(event.source.map(|source| source.pod_name), Some("client-1".to_owned()));
    assert!(next(&mut messages).await.is_none());
}

fn created_event() -> AgentEvent {
    AgentEvent { r#type: AgentEventType::EndpointCreated.into(), notification: None }
}

#[tokio::test]
async fn status_nodes_and_namespaces() {
    let served = Served::new(7).await;
    feed(&served.observer, 1, 10);
    let response = served.client().server_status(ServerStatusRequest {}).await.expect("a status");
    assert_eq!(response.metadata().get("hubble-server-version").unwrap(), "cilium 0.1.0");
    let status = response.into_inner();
    assert_eq!((status.num_flows, status.max_flows, status.seen_flows), (7, 7, 10));
    assert!(status.uptime_ns > 0);
    let nodes = served.client().get_nodes(GetNodesRequest {}).await.expect("nodes").into_inner();
    assert_eq!(nodes.nodes.len(), 1);
    assert_eq!(nodes.nodes[0].name, "east/node-1");
    let response = served.client().get_namespaces(GetNamespacesRequest {}).await;
    let seen: Vec<_> = response
        .expect("namespaces")
        .into_inner()
        .namespaces
        .into_iter()
        .map(|namespace| (namespace.cluster, namespace.namespace))
        .collect();
    let east = |namespace: &str| ("east".to_owned(), namespace.to_owned());
    assert_eq!(seen, [east("default"), east("prod")]);
}

#[tokio::test]
async fn peers_are_followed() {
    let served = Served::new(7).await;
    let info = |address: &str| PeerInfo {
        address: address.to_owned(),
        server_name: Some("node-2.east.hubble-grpc.cilium.io".to_owned()),
    };
    served.peers.send_replace(Peers::from([("east/node-2".to_owned(), info("10.1.1.1:4244"))]));
    let mut client = PeerClient::new(served.channel.clone());
    let mut stream = client.notify(NotifyRequest {}).await.expect("peers").into_inner();
    let added = next(&mut stream).await.expect("a peer");
    assert_eq!((added.name.as_str(), added.r#type().as_str_name()), ("east/node-2", "PEER_ADDED"));
    assert_eq!(added.tls.expect("tls").server_name, "node-2.east.hubble-grpc.cilium.io");
    served.peers.send_replace(Peers::new());
    let deleted = next(&mut stream).await.expect("a change");
    assert_eq!(
        (deleted.name.as_str(), deleted.r#type().as_str_name()),
        ("east/node-2", "PEER_DELETED")
    );
}

#[tokio::test]
async fn health_and_reflection() {
    use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
    use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
    use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
    use tonic_reflection::pb::v1::{
        ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
    };
    let served = Served::new(7).await;
    let mut health = HealthClient::new(served.channel.clone());
    let request = HealthCheckRequest { service: "observer.Observer".to_owned() };
    let status = health.check(request).await.expect("a status").into_inner().status;
    assert_eq!(status, 1, "it serves");
    let mut reflection = ServerReflectionClient::new(served.channel.clone());
    let ask =
        |message| ServerReflectionRequest { host: String::new(), message_request: Some(message) };
    let requests = [
        ask(MessageRequest::ListServices(String::new())),
        ask(MessageRequest::FileContainingSymbol("flow.Flow".to_owned())),
    ];
    let stream = futures::stream::iter(requests);
    let mut answers =
        reflection.server_reflection_info(stream).await.expect("reflection").into_inner();
    let services = next(&mut answers).await.and_then(|answer| answer.message_response);
    let Some(MessageResponse::ListServicesResponse(list)) = services else {
        panic!("services, not {services:?}")
    };
    let names: Vec<_> = list.service.iter().map(|service| service.name.as_str()).collect();
    for name in ["observer.Observer", "peer.Peer", "grpc.health.v1.Health"] {
        assert!(names.contains(&name), "{names:?}");
    }
    let file = next(&mut answers).await.and_then(|answer| answer.message_response);
    assert!(matches!(file, Some(MessageResponse::FileDescriptorResponse(_))), "{file:?}");
}
