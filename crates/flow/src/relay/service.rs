//! `observer.Observer` of all nodes.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use api::hubble::observer::observer_client::ObserverClient;
use api::hubble::observer::observer_server::Observer as Service;
use api::hubble::observer::{
    GetAgentEventsRequest, GetAgentEventsResponse, GetDebugEventsRequest, GetDebugEventsResponse,
    GetFlowsRequest, GetFlowsResponse, GetNamespacesRequest, GetNamespacesResponse,
    GetNodesRequest, GetNodesResponse, Namespace, Node as NodeMessage, ServerStatusRequest,
    ServerStatusResponse, Tls, get_flows_response::ResponseTypes,
};
use api::hubble::relay::{NodeState, NodeStatusEvent};
use futures::StreamExt;
use futures::future::{BoxFuture, join_all};
use futures::stream::BoxStream;
use prost_types::Timestamp;
use tokio::sync::watch;
use tonic::transport::Channel;
use tonic::{Request, Response, Status};

use super::merge::{Merge, Merged, Timed};
use super::pool::{Node, Nodes, Pool};
use crate::message::{nanoseconds, timestamp};
use crate::observer::now_ns;
use crate::server::{Responses, respond, understand};

/// Nodes that are named as unavailable at most, as in Hubble.
const UNAVAILABLE_NAMES_MAX: usize = 10;
/// How long a node may take to answer a question.
const ANSWER_DEADLINE: Duration = Duration::from_secs(5);
/// How long a silent node holds up those who do not follow.
const HISTORY_HOLD: Duration = Duration::from_secs(5);

/// Serves all nodes of a pool.
#[derive(Clone)]
pub struct RelayService {
    pool: Arc<Pool>,
    version: String,
    /// How long a silent node holds up those who follow.
    hold: Duration,
}

impl RelayService {
    /// A service of the pool's nodes.
    pub fn new(pool: Arc<Pool>, version: String, hold: Duration) -> Self {
        Self { pool, version, hold }
    }

    /// Asks every connected node; those that do not answer are left out.
    async fn ask_all<T, F>(&self, ask: impl Fn(ObserverClient<Channel>) -> F) -> BTreeMap<String, T>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        let nodes = self.pool.nodes().borrow().clone();
        let connected =
            nodes.into_iter().filter_map(|(name, node)| Some((name, node.channel.ok()?)));
        let calls = connected.map(|(name, channel)| {
            let call = ask(ObserverClient::new(channel));
            async move {
                let answer = tokio::time::timeout(ANSWER_DEADLINE, call).await;
                (name, answer.ok().and_then(Result::ok).map(Response::into_inner))
            }
        });
        let answers = join_all(calls).await.into_iter();
        answers.filter_map(|(name, answer)| Some((name, answer?))).collect()
    }

    fn fan_out<C: Call>(&self, call: C, follow: bool) -> Responses<C::Response> {
        let fan = FanOut {
            merge: Merge::new(if follow { self.hold } else { HISTORY_HOLD }),
            nodes: self.pool.nodes(),
            opening: futures::stream::FuturesUnordered::new(),
            known: BTreeMap::new(),
            ready: VecDeque::new(),
            is_first: true,
            follow,
            call: Arc::new(call),
            _pool: self.pool.clone(),
        };
        Box::pin(futures::stream::unfold(fan, |mut fan| async move {
            let response = fan.next().await?;
            Some((Ok(response), fan))
        }))
    }
}

/// A call that is made to every node.
trait Call: Send + Sync + 'static {
    type Response: Timed;
    /// Calls one node. `is_late` means that the client has been following for a while.
    fn call(&self, client: ObserverClient<Channel>, is_late: bool) -> Opening<Self::Response>;
    /// Tells the client of nodes, where there are words for it.
    fn status(
        &self,
        state: NodeState,
        nodes: Vec<String>,
        message: String,
    ) -> Option<Self::Response>;
}

/// A call to a node on its way.
type Opening<T> = BoxFuture<'static, Result<BoxStream<'static, Result<T, Status>>, Status>>;

/// The outcome of a call to a node, by its name.
type Opened<T> = (String, Result<BoxStream<'static, Result<T, Status>>, Status>);

/// One call of a client, made to all nodes.
struct FanOut<C: Call> {
    call: Arc<C>,
    merge: Merge<C::Response>,
    opening: futures::stream::FuturesUnordered<BoxFuture<'static, Opened<C::Response>>>,
    nodes: watch::Receiver<Nodes>,
    /// What the client was told: the connection of each node, or none.
    known: BTreeMap<String, Option<u64>>,
    ready: VecDeque<C::Response>,
    is_first: bool,
    follow: bool,
    _pool: Arc<Pool>,
}

impl<C: Call> FanOut<C> {
    async fn next(&mut self) -> Option<C::Response> {
        loop {
            if self.is_first {
                self.look();
                self.is_first = false;
            }
            if let Some(response) = self.ready.pop_front() {
                return Some(response);
            }
            if !self.follow && self.merge.is_empty() && self.opening.is_empty() {
                return None;
            }
            let (has_streams, is_opening) = (!self.merge.is_empty(), !self.opening.is_empty());
            // History is complete only once every node's stream is there to be merged.
            let may_merge = has_streams && (self.follow || !is_opening);
            tokio::select! {
                biased;
                changed = self.nodes.changed(), if self.follow => {
                    changed.ok()?;
                    self.look();
                }
                Some((name, stream)) = self.opening.next(), if is_opening => match stream {
                    Ok(stream) => self.merge.add(name, stream),
                    Err(status) => self.failed(name, &status),
                },
                merged = self.merge.next(), if may_merge => match merged {
                    Merged::Message(message) => return Some(message),
                    Merged::Ended(name, Some(status)) => self.failed(name, &status),
                    // Who follows is told when the node comes back.
                    Merged::Ended(_, None) => {}
                },
            }
        }
    }

    fn failed(&mut self, name: String, status: &Status) {
        let message = status.message().to_owned();
        self.ready.extend(self.call.status(NodeState::NodeError, vec![name], message));
    }

    /// Compares what the client knows with how nodes are, tells it, and calls those that are new.
    fn look(&mut self) {
        let nodes = self.nodes.borrow_and_update().clone();
        let (mut connected, mut unavailable) = (Vec::new(), Vec::new());
        for (name, node) in &nodes {
            let now = node.channel.is_ok().then_some(node.connection);
            if self.known.insert(name.clone(), now) == Some(now) {
                continue;
            }
            match &node.channel {
                Ok(channel) => {
                    connected.push(name.clone());
                    self.open(name.clone(), channel.clone());
                }
                Err(_) => unavailable.push(name.clone()),
            }
        }
        let gone: Vec<String> =
            self.known.keys().filter(|name| !nodes.contains_key(*name)).cloned().collect();
        self.known.retain(|name, _| nodes.contains_key(name));
        let states = [
            (NodeState::NodeConnected, connected),
            (NodeState::NodeUnavailable, unavailable),
            (NodeState::NodeGone, gone),
        ];
        for (state, names) in states {
            if !names.is_empty() {
                self.ready.extend(self.call.status(state, names, String::new()));
            }
        }
    }

    fn open(&mut self, name: String, channel: Channel) {
        if self.merge.has(&name) {
            // The old stream ends by itself; its error is told.
            tracing::debug!(node = name, "Connected anew before the old stream ended");
        }
        let call = self.call.call(ObserverClient::new(channel), !self.is_first);
        self.opening.push(Box::pin(async move { (name, call.await) }));
    }
}

macro_rules! timed {
    ($($type:ty),*) => {
        $(impl Timed for $type {
            fn time_ns(&self) -> u64 {
                self.time.as_ref().map_or(0, nanoseconds)
            }
        })*
    };
}

timed!(GetFlowsResponse, GetAgentEventsResponse, GetDebugEventsResponse);

macro_rules! call {
    ($request:ident => $response:ident, $method:ident, $status:expr) => {
        impl Call for $request {
            type Response = $response;

            fn call(
                &self,
                mut client: ObserverClient<Channel>,
                is_late: bool,
            ) -> Opening<$response> {
                let mut request = self.clone();
                if is_late {
                    // A node that joins has no part in "the last so many".
                    request.number = 0;
                    request.since = Some(now());
                }
                Box::pin(async move { Ok(client.$method(request).await?.into_inner().boxed()) })
            }

            fn status(
                &self,
                state: NodeState,
                nodes: Vec<String>,
                message: String,
            ) -> Option<$response> {
                let make: fn(NodeStatusEvent) -> Option<$response> = $status;
                make(NodeStatusEvent { state_change: state.into(), node_names: nodes, message })
            }
        }
    };
}

call!(GetFlowsRequest => GetFlowsResponse, get_flows, |event| {
    Some(GetFlowsResponse {
        node_name: String::new(),
        time: Some(now()),
        response_types: Some(ResponseTypes::NodeStatus(event)),
    })
});
// These messages have no place for the state of nodes.
call!(GetAgentEventsRequest => GetAgentEventsResponse, get_agent_events, |_| None);
call!(GetDebugEventsRequest => GetDebugEventsResponse, get_debug_events, |_| None);

fn now() -> Timestamp {
    timestamp(now_ns())
}

fn node_message(name: &str, node: &Node, status: Option<&ServerStatusResponse>) -> NodeMessage {
    let mut message = NodeMessage {
        name: name.to_owned(),
        address: node.info.address.clone(),
        tls: Some(Tls {
            enabled: node.info.server_name.is_some(),
            server_name: node.info.server_name.clone().unwrap_or_default(),
        }),
        state: match (&node.channel, status) {
            (Ok(_), Some(_)) => NodeState::NodeConnected,
            (Ok(_), None) => NodeState::NodeError,
            (Err(_), _) => NodeState::NodeUnavailable,
        }
        .into(),
        ..NodeMessage::default()
    };
    if let Some(status) = status {
        message.version.clone_from(&status.version);
        message.uptime_ns = status.uptime_ns;
        message.num_flows = status.num_flows;
        message.max_flows = status.max_flows;
        message.seen_flows = status.seen_flows;
    }
    message
}

#[tonic::async_trait]
impl Service for RelayService {
    type GetFlowsStream = Responses<GetFlowsResponse>;
    type GetAgentEventsStream = Responses<GetAgentEventsResponse>;
    type GetDebugEventsStream = Responses<GetDebugEventsResponse>;

    async fn get_flows(
        &self,
        request: Request<GetFlowsRequest>,
    ) -> Result<Response<Self::GetFlowsStream>, Status> {
        let request = request.into_inner();
        // What makes no sense is refused here, once, not by every node.
        understand(&request)?;
        let follow = request.follow;
        Ok(respond(&self.version, self.fan_out(request, follow)))
    }

    async fn get_agent_events(
        &self,
        request: Request<GetAgentEventsRequest>,
    ) -> Result<Response<Self::GetAgentEventsStream>, Status> {
        let request = request.into_inner();
        let follow = request.follow;
        Ok(respond(&self.version, self.fan_out(request, follow)))
    }

    async fn get_debug_events(
        &self,
        request: Request<GetDebugEventsRequest>,
    ) -> Result<Response<Self::GetDebugEventsStream>, Status> {
        let request = request.into_inner();
        let follow = request.follow;
        Ok(respond(&self.version, self.fan_out(request, follow)))
    }

    async fn get_nodes(
        &self,
        _: Request<GetNodesRequest>,
    ) -> Result<Response<GetNodesResponse>, Status> {
        let ask = |mut client: ObserverClient<Channel>| async move {
            client.server_status(ServerStatusRequest {}).await
        };
        let statuses = self.ask_all(ask).await;
        let nodes = self.pool.nodes().borrow().clone();
        let nodes = nodes.iter().map(|(name, node)| node_message(name, node, statuses.get(name)));
        Ok(respond(&self.version, GetNodesResponse { nodes: nodes.collect() }))
    }

    async fn get_namespaces(
        &self,
        _: Request<GetNamespacesRequest>,
    ) -> Result<Response<GetNamespacesResponse>, Status> {
        let ask = |mut client: ObserverClient<Channel>| async move {
            client.get_namespaces(GetNamespacesRequest {}).await
        };
        let answers = self.ask_all(ask).await.into_values();
        let all = answers.flat_map(|answer| answer.namespaces);
        let all: BTreeSet<_> = all.map(|seen| (seen.cluster, seen.namespace)).collect();
        let namespaces =
            all.into_iter().map(|(cluster, namespace)| Namespace { cluster, namespace }).collect();
        Ok(respond(&self.version, GetNamespacesResponse { namespaces }))
    }

    async fn server_status(
        &self,
        _: Request<ServerStatusRequest>,
    ) -> Result<Response<ServerStatusResponse>, Status> {
        let ask = |mut client: ObserverClient<Channel>| async move {
            client.server_status(ServerStatusRequest {}).await
        };
        let statuses = self.ask_all(ask).await;
        let nodes = self.pool.nodes().borrow().clone();
        let silent: Vec<String> =
            nodes.keys().filter(|name| !statuses.contains_key(*name)).cloned().collect();
        let count = |len: usize| Some(u32::try_from(len).unwrap_or(u32::MAX));
        let mut sum = ServerStatusResponse {
            version: self.version.clone(),
            num_connected_nodes: count(statuses.len()),
            num_unavailable_nodes: count(silent.len()),
            unavailable_nodes: silent.into_iter().take(UNAVAILABLE_NAMES_MAX).collect(),
            ..ServerStatusResponse::default()
        };
        for status in statuses.values() {
            sum.num_flows += status.num_flows;
            sum.max_flows += status.max_flows;
            sum.seen_flows += status.seen_flows;
            sum.flows_rate += status.flows_rate;
            sum.uptime_ns = sum.uptime_ns.max(status.uptime_ns);
        }
        Ok(respond(&self.version, sum))
    }
}
