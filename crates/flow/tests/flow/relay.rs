//! The relay in front of nodes that come and go.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use abi::event::ObservationPoint;
use api::hubble::observer::get_flows_response::ResponseTypes;
use api::hubble::observer::observer_client::ObserverClient;
use api::hubble::observer::{
    GetFlowsRequest, GetFlowsResponse, GetNamespacesRequest, GetNodesRequest, ServerStatusRequest,
};
use api::hubble::relay::NodeState;
use flow::client::Target;
use flow::message::NodeInfo;
use flow::observer::Observer;
use flow::relay::{Pool, PoolOptions, RelayService, routes};
use flow::server::{Listener, NodeAddress, PeerInfo, PeerService, Peers, agent_routes, serve};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tonic::transport::Channel;
use tonic::{Code, Streaming};

use crate::support::*;

/// A cluster of nodes with a relay in front.
struct Cluster {
    nodes: BTreeMap<&'static str, RunningNode>,
    peers: watch::Sender<Peers>,
    relay: Channel,
    tasks: Vec<JoinHandle<()>>,
    _directory: Directory,
}

struct RunningNode {
    observer: Arc<Observer>,
    address: String,
    server: JoinHandle<()>,
}

/// Serves an observer at an address; any port where it ends in `:0`.
async fn run_node(name: &str, address: &str) -> RunningNode {
    let listener = loop {
        // The address of a node that was just stopped may still be taken.
        match TcpListener::bind(address).await {
            Ok(listener) => break listener,
            Err(_) => tokio::task::yield_now().await,
        }
    };
    let address = listener.local_addr().expect("an address").to_string();
    let info = NodeInfo { name: name.to_owned(), ..NodeInfo::default() };
    let observer = Arc::new(Observer::new(63, info, Vec::new()));
    let peers = PeerService::new(watch::channel(Peers::new()).1);
    let routes = agent_routes(observer.clone(), NodeAddress::default(), peers).await;
    let server = tokio::spawn(async move {
        serve(Listener::Tcp(listener), routes, std::future::pending()).await.expect("it serves");
    });
    RunningNode { observer, address, server }
}

impl Cluster {
    async fn new(names: &[&'static str]) -> Self {
        let directory = Directory::new();
        let mut nodes = BTreeMap::new();
        for name in names {
            nodes.insert(*name, run_node(name, "127.0.0.1:0").await);
        }
        let peer =
            |node: &RunningNode| PeerInfo { address: node.address.clone(), server_name: None };
        let known: Peers =
            nodes.iter().map(|(name, node)| ((*name).to_owned(), peer(node))).collect();
        let peers = watch::Sender::new(known);
        let mut tasks = Vec::new();

        // Any agent can tell the relay who is there; here one that is no node.
        let list = directory.path().join("peers.sock");
        let service = PeerService::new(peers.subscribe());
        let routes_of_list =
            agent_routes(Arc::new(observer(7)), NodeAddress::default(), service).await;
        tasks.push(unix_server(&list, routes_of_list));

        let pool = Pool::start(PoolOptions {
            peer_services: vec![Target::Unix(list)],
            tls: None,
            dial_timeout: PATIENCE,
            retry_max: Duration::from_millis(500),
        });
        let hold = Duration::from_millis(100);
        let service = RelayService::new(Arc::new(pool), "hubble-relay test".to_owned(), hold);
        let socket = directory.path().join("relay.sock");
        tasks.push(unix_server(&socket, routes(service).await));
        let relay = connect(&Target::Unix(socket)).await;
        Self { nodes, peers, relay, tasks, _directory: directory }
    }

    fn client(&self) -> ObserverClient<Channel> {
        ObserverClient::new(self.relay.clone())
    }

    /// Waits until so many nodes answer.
    async fn connected(&self, count: u32) {
        let all = async {
            loop {
                let status = self.client().server_status(ServerStatusRequest {}).await;
                if status.expect("a status").into_inner().num_connected_nodes == Some(count) {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(PATIENCE, all).await.expect("the nodes are connected in time");
    }

    fn see(&self, node: &str, port: u16, second: u64) {
        let observer = &self.nodes[node].observer;
        let event = trace(ObservationPoint::ToStack, 0, 0, &tcp(port, 0x02));
        observer.intake().event(NOON_NS + second * 1_000_000_000, 0, &event);
    }

    async fn follow(&self) -> Streaming<GetFlowsResponse> {
        let request = GetFlowsRequest { follow: true, number: 1, ..GetFlowsRequest::default() };
        self.client().get_flows(request).await.expect("flows").into_inner()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
        self.nodes.values().for_each(|node| node.server.abort());
    }
}

fn unix_server(path: &PathBuf, routes: tonic::service::Routes) -> JoinHandle<()> {
    let listener = Listener::Unix(UnixListener::bind(path).expect("a socket"));
    tokio::spawn(async move {
        serve(listener, routes, std::future::pending()).await.expect("it serves");
    })
}

/// A line about what a relay says.
fn line(response: &GetFlowsResponse) -> String {
    match &response.response_types {
        Some(ResponseTypes::Flow(flow)) => {
            let seconds = flow.time.as_ref().map_or(0, |time| time.seconds);
            format!("{} {}", flow.node_name, seconds - NOON_NS as i64 / 1_000_000_000)
        }
        Some(ResponseTypes::NodeStatus(status)) => {
            format!("{} {}", status.state_change().as_str_name(), status.node_names.join(","))
        }
        other => format!("{other:?}"),
    }
}

async fn next(stream: &mut Streaming<GetFlowsResponse>) -> String {
    let message = tokio::time::timeout(PATIENCE, stream.message()).await.expect("in time");
    line(&message.expect("no error").expect("it goes on"))
}

/// Reads on until the line comes; gives those before it.
async fn until(stream: &mut Streaming<GetFlowsResponse>, wanted: &str) -> Vec<String> {
    let mut before = Vec::new();
    loop {
        let line = next(stream).await;
        if line == wanted {
            return before;
        }
        before.push(line);
    }
}

#[tokio::test]
async fn flows_of_all_nodes_come_in_order() {
    let cluster = Cluster::new(&["a", "b", "c"]).await;
    cluster.connected(3).await;
    for second in 0..30 {
        cluster.see(["a", "b", "c"][second as usize % 3], 1000, second);
    }
    let request = GetFlowsRequest { number: 8, ..GetFlowsRequest::default() };
    let mut stream = cluster.client().get_flows(request).await.expect("flows").into_inner();
    let mut lines = Vec::new();
    while let Some(response) =
        tokio::time::timeout(PATIENCE, stream.message()).await.expect("in time").expect("no error")
    {
        lines.push(line(&response));
    }
    // The last eight of each node.
    let mut expected = vec!["NODE_CONNECTED a,b,c".to_owned()];
    expected.extend((6..30).map(|second| format!("{} {second}", ["a", "b", "c"][second % 3])));
    assert_eq!(lines, expected);
}

#[tokio::test]
async fn nodes_come_and_go_while_others_stream() {
    let mut cluster = Cluster::new(&["a", "b"]).await;
    cluster.connected(2).await;
    cluster.see("a", 1, 1);
    cluster.see("b", 1, 2);
    let mut stream = cluster.follow().await;
    assert_eq!(next(&mut stream).await, "NODE_CONNECTED a,b");
    assert_eq!(next(&mut stream).await, "a 1");
    assert_eq!(next(&mut stream).await, "b 2");

    // A node is cut off.
    cluster.nodes["b"].server.abort();
    let before = until(&mut stream, "NODE_UNAVAILABLE b").await;
    assert!(before.iter().all(|line| line == "NODE_ERROR b"), "{before:?}");
    cluster.see("a", 1, 3);
    let before = until(&mut stream, "a 3").await;
    assert!(before.iter().all(|line| line == "NODE_ERROR b"), "{before:?}");
    let nodes = cluster.client().get_nodes(GetNodesRequest {}).await.expect("nodes").into_inner();
    let states: Vec<_> =
        nodes.nodes.iter().map(|node| (node.name.as_str(), node.state())).collect();
    assert_eq!(states, [("a", NodeState::NodeConnected), ("b", NodeState::NodeUnavailable)]);
    let status = cluster.client().server_status(ServerStatusRequest {}).await.expect("a status");
    assert_eq!(status.into_inner().unavailable_nodes, ["b"]);

    // It comes back by itself, and another one joins.
    let address = cluster.nodes["b"].address.clone();
    cluster.nodes.insert("b", run_node("b", &address).await);
    until(&mut stream, "NODE_CONNECTED b").await;
    cluster.nodes.insert("c", run_node("c", "127.0.0.1:0").await);
    let address = cluster.nodes["c"].address.clone();
    cluster.peers.send_modify(|peers| {
        peers.insert("c".to_owned(), PeerInfo { address, server_name: None });
    });
    until(&mut stream, "NODE_CONNECTED c").await;
    cluster.connected(3).await;
    // Who joins is asked for what comes from now on.
    let ahead = (flow::observer::now_ns() - NOON_NS) / 1_000_000_000 + 3600;
    let mut seen = std::collections::BTreeSet::new();
    while seen.len() < 3 {
        for node in ["a", "b", "c"] {
            cluster.see(node, 1, ahead);
        }
        let line = next(&mut stream).await;
        if line.ends_with(&ahead.to_string()) {
            seen.insert(line);
        }
    }

    // A node leaves for good.
    cluster.peers.send_modify(|peers| drop(peers.remove("a")));
    until(&mut stream, "NODE_GONE a").await;
}

#[tokio::test]
async fn status_and_namespaces_are_those_of_all() {
    let cluster = Cluster::new(&["a", "b"]).await;
    cluster.connected(2).await;
    cluster.see("a", 1, 1);
    cluster.see("b", 1, 2);
    let response = cluster.client().server_status(ServerStatusRequest {}).await.expect("a status");
    let status = response.into_inner();
    assert_eq!((status.num_flows, status.max_flows, status.seen_flows), (2, 126, 2));
    assert_eq!(status.version, "hubble-relay test");
    assert_eq!((status.num_connected_nodes, status.num_unavailable_nodes), (Some(2), Some(0)));
    cluster.client().get_namespaces(GetNamespacesRequest {}).await.expect("namespaces");
}

#[tokio::test]
async fn a_bad_filter_is_refused_by_the_relay_itself() {
    let cluster = Cluster::new(&[]).await;
    let bad = api::hubble::flow::FlowFilter {
        destination_port: vec!["http".to_owned()],
        ..Default::default()
    };
    let request = GetFlowsRequest { whitelist: vec![bad], ..GetFlowsRequest::default() };
    let status = cluster.client().get_flows(request).await.expect_err("an error");
    assert_eq!(status.code(), Code::InvalidArgument);
    assert!(status.message().contains("whitelist[0].destination_port"), "{status}");
}
