//! `observer.Observer` of one node.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;

use api::hubble::flow::{LostEvent, LostEventSource};
use api::hubble::observer::observer_server::Observer as Service;
use api::hubble::observer::{
    GetAgentEventsRequest, GetAgentEventsResponse, GetDebugEventsRequest, GetDebugEventsResponse,
    GetFlowsRequest, GetFlowsResponse, GetNamespacesRequest, GetNamespacesResponse,
    GetNodesRequest, GetNodesResponse, Namespace, Node, ServerStatusRequest, ServerStatusResponse,
    Tls, get_flows_response::ResponseTypes,
};
use api::hubble::relay::NodeState;
use futures::Stream;
use prost_types::{FieldMask, Timestamp};
use tokio::sync::watch;
use tonic::{Request, Response, Status};

use super::{NodeAddress, VERSION_HEADER};
use crate::filter::Selection;
use crate::mask::Mask;
use crate::message::{NodeInfo, debug_event, nanoseconds, timestamp};
use crate::observer::{Observer, now_ns};
use crate::ring::Record;

/// Records that are looked at before others get a turn.
const BATCH_LEN: usize = 256;

/// The responses of a call.
pub(crate) type Responses<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// Serves an [`Observer`].
#[derive(Clone)]
pub struct ObserverService {
    observer: Arc<Observer>,
    address: NodeAddress,
}

impl ObserverService {
    /// A service of the observer; `address` is how others reach it.
    pub fn new(observer: Arc<Observer>, address: NodeAddress) -> Self {
        Self { observer, address }
    }

    fn respond<T>(&self, body: T) -> Response<T> {
        respond(&self.observer.node.version, body)
    }
}

/// A response that tells the server's version.
pub(crate) fn respond<T>(version: &str, body: T) -> Response<T> {
    let mut response = Response::new(body);
    if let Ok(version) = version.parse() {
        response.metadata_mut().insert(VERSION_HEADER, version);
    }
    response
}

/// Which records of the ring a client wants, whatever their type.
#[derive(Clone, Copy, Debug)]
struct Range {
    number: u64,
    first: bool,
    follow: bool,
    since_ns: u64,
    until_ns: u64,
}

impl Range {
    fn new(
        (number, first, follow): (u64, bool, bool),
        since: Option<&Timestamp>,
        until: Option<&Timestamp>,
    ) -> Result<Self, Status> {
        if first && follow {
            return Err(Status::invalid_argument("first: cannot be combined with follow"));
        }
        let since_ns = since.map_or(0, nanoseconds);
        let until_ns = until.map_or(u64::MAX, nanoseconds);
        Ok(Self { number, first, follow, since_ns, until_ns })
    }

    fn is_in_time(&self, record: &Record) -> bool {
        (self.since_ns..=self.until_ns).contains(&record.time_ns())
    }

    /// The number of the first record for the client.
    fn start(&self, observer: &Observer, wanted: &impl Fn(&Record) -> bool) -> u64 {
        let snapshot = observer.ring.snapshot();
        let base = snapshot.next - snapshot.records.len() as u64;
        if self.follow && self.number == 0 && self.since_ns == 0 {
            return snapshot.next;
        }
        if self.first || (self.number == 0 && self.since_ns == 0) {
            return base;
        }
        let (mut start, mut found) = (snapshot.next, 0);
        for (index, record) in snapshot.records.iter().enumerate().rev() {
            if !wanted(record) || !self.is_in_time(record) {
                continue;
            }
            start = base + index as u64;
            found += 1;
            if found == self.number {
                break;
            }
        }
        start
    }
}

/// What a client wants to see of records, and how.
trait Picker: Send + 'static {
    type Response: Send + 'static;
    /// Whether the record is for the client.
    fn wants(&self, record: &Record) -> bool;
    /// The response for a record that is.
    fn respond(&self, record: &Record) -> Option<Self::Response>;
    /// The response that says that records are lost.
    fn lost(&self, event: LostEvent, time_ns: u64) -> Option<Self::Response>;
}

/// A client's place in the ring.
struct Cursor<P: Picker> {
    observer: Arc<Observer>,
    picker: P,
    range: Range,
    next: u64,
    /// Where to stop; none for those who follow.
    end: Option<u64>,
    /// Responses that are still to be made.
    left: u64,
    ready: VecDeque<P::Response>,
    head: watch::Receiver<u64>,
    is_done: bool,
}

impl<P: Picker> Cursor<P> {
    fn stream(observer: Arc<Observer>, picker: P, range: Range) -> Responses<P::Response> {
        let head = observer.ring.head();
        let next = range.start(&observer, &|record| picker.wants(record));
        let end = (!range.follow).then(|| *head.borrow());
        let left = if range.follow || range.number == 0 { u64::MAX } else { range.number };
        let ready = VecDeque::new();
        let cursor = Self { observer, picker, range, next, end, left, ready, head, is_done: false };
        Box::pin(futures::stream::unfold(cursor, |mut cursor| async move {
            let response = cursor.response().await?;
            Some((Ok(response), cursor))
        }))
    }

    async fn response(&mut self) -> Option<P::Response> {
        loop {
            if let Some(response) = self.ready.pop_front() {
                return Some(response);
            }
            if self.is_done || self.end.is_some_and(|end| self.next >= end) {
                return None;
            }
            self.head.borrow_and_update();
            let before = self.next;
            self.read();
            if self.next == before && self.ready.is_empty() && !self.is_done {
                // The observer lives as long as we do.
                self.head.changed().await.ok()?;
            } else if self.ready.is_empty() {
                tokio::task::yield_now().await;
            }
        }
    }

    fn read(&mut self) {
        let batch = self.observer.ring.read(self.next, BATCH_LEN);
        self.next = batch.next;
        if batch.lost > 0 {
            let time_ns = now_ns();
            let event = LostEvent {
                source: LostEventSource::HubbleRingBuffer.into(),
                num_events_lost: batch.lost,
                cpu: None,
                first: None,
                last: Some(timestamp(time_ns)),
            };
            self.ready.extend(self.picker.lost(event, time_ns));
        }
        for record in batch.records {
            if let Record::Lost { time_ns, event } = &*record
                && self.range.is_in_time(&record)
            {
                self.ready.extend(self.picker.lost(*event, *time_ns));
                continue;
            }
            if record.time_ns() < self.range.since_ns || !self.picker.wants(&record) {
                continue;
            }
            if record.time_ns() > self.range.until_ns || self.left == 0 {
                self.is_done = true;
                return;
            }
            self.left -= 1;
            self.ready.extend(self.picker.respond(&record));
            if self.left == 0 {
                self.is_done = true;
                return;
            }
        }
    }
}

/// Picks flows.
struct Flows {
    selection: Selection,
    mask: Option<Mask>,
    node: Arc<NodeInfo>,
}

impl Picker for Flows {
    type Response = GetFlowsResponse;

    fn wants(&self, record: &Record) -> bool {
        matches!(record, Record::Flow(row) if self.selection.matches_row(row, &self.node))
    }

    fn respond(&self, record: &Record) -> Option<GetFlowsResponse> {
        let Record::Flow(row) = record else { return None };
        let whole = row.to_flow(&self.node);
        let flow = match &self.mask {
            Some(mask) => mask.apply(&whole),
            None => whole,
        };
        Some(self.response(ResponseTypes::Flow(flow), row.time_ns))
    }

    fn lost(&self, event: LostEvent, time_ns: u64) -> Option<GetFlowsResponse> {
        Some(self.response(ResponseTypes::LostEvents(event), time_ns))
    }
}

impl Flows {
    fn response(&self, body: ResponseTypes, time_ns: u64) -> GetFlowsResponse {
        GetFlowsResponse {
            node_name: self.node.name.clone(),
            time: Some(timestamp(time_ns)),
            response_types: Some(body),
        }
    }
}

/// Picks what the agent did.
struct AgentEvents(Arc<NodeInfo>);

impl Picker for AgentEvents {
    type Response = GetAgentEventsResponse;

    fn wants(&self, record: &Record) -> bool {
        matches!(record, Record::Agent { .. })
    }

    fn respond(&self, record: &Record) -> Option<GetAgentEventsResponse> {
        let Record::Agent { time_ns, event } = record else { return None };
        Some(GetAgentEventsResponse {
            agent_event: Some((**event).clone()),
            node_name: self.0.name.clone(),
            time: Some(timestamp(*time_ns)),
        })
    }

    fn lost(&self, _: LostEvent, _: u64) -> Option<GetAgentEventsResponse> {
        // The message has no place for it.
        None
    }
}

/// Picks debug messages.
struct DebugEvents(Arc<NodeInfo>);

impl Picker for DebugEvents {
    type Response = GetDebugEventsResponse;

    fn wants(&self, record: &Record) -> bool {
        matches!(record, Record::Debug { .. })
    }

    fn respond(&self, record: &Record) -> Option<GetDebugEventsResponse> {
        let Record::Debug { time_ns, cpu, event, source } = record else { return None };
        Some(GetDebugEventsResponse {
            debug_event: Some(debug_event(event, *cpu, source.as_ref())),
            node_name: self.0.name.clone(),
            time: Some(timestamp(*time_ns)),
        })
    }

    fn lost(&self, _: LostEvent, _: u64) -> Option<GetDebugEventsResponse> {
        // The message has no place for it.
        None
    }
}

/// The mask of a request; the field that it had while it was new counts too.
pub(crate) fn field_mask(request: &GetFlowsRequest) -> Option<&FieldMask> {
    #[expect(deprecated, reason = "clients of 1.14 to 1.16 set it there")]
    let early = request.experimental.as_ref().and_then(|e| e.field_mask.as_ref());
    request.field_mask.as_ref().or(early)
}

/// Checks a request's filters and mask: what is wrong is an error that names the field.
pub(crate) fn understand(request: &GetFlowsRequest) -> Result<(Selection, Option<Mask>), Status> {
    let selection = Selection::new(&request.whitelist, &request.blacklist)
        .map_err(|error| Status::invalid_argument(error.to_string()))?;
    let paths = field_mask(request).map(|mask| mask.paths.as_slice()).unwrap_or_default();
    let mask = Mask::new(paths.iter().map(String::as_str))
        .map_err(|error| Status::invalid_argument(error.to_string()))?;
    Ok((selection, mask))
}

#[tonic::async_trait]
impl Service for ObserverService {
    type GetFlowsStream = Responses<GetFlowsResponse>;
    type GetAgentEventsStream = Responses<GetAgentEventsResponse>;
    type GetDebugEventsStream = Responses<GetDebugEventsResponse>;

    async fn get_flows(
        &self,
        request: Request<GetFlowsRequest>,
    ) -> Result<Response<Self::GetFlowsStream>, Status> {
        let request = request.into_inner();
        let which = (request.number, request.first, request.follow);
        let range = Range::new(which, request.since.as_ref(), request.until.as_ref())?;
        let (selection, mask) = understand(&request)?;
        let picker = Flows { selection, mask, node: self.observer.node.clone() };
        Ok(self.respond(Cursor::stream(self.observer.clone(), picker, range)))
    }

    async fn get_agent_events(
        &self,
        request: Request<GetAgentEventsRequest>,
    ) -> Result<Response<Self::GetAgentEventsStream>, Status> {
        let request = request.into_inner();
        let which = (request.number, request.first, request.follow);
        let range = Range::new(which, request.since.as_ref(), request.until.as_ref())?;
        let picker = AgentEvents(self.observer.node.clone());
        Ok(self.respond(Cursor::stream(self.observer.clone(), picker, range)))
    }

    async fn get_debug_events(
        &self,
        request: Request<GetDebugEventsRequest>,
    ) -> Result<Response<Self::GetDebugEventsStream>, Status> {
        let request = request.into_inner();
        let which = (request.number, request.first, request.follow);
        let range = Range::new(which, request.since.as_ref(), request.until.as_ref())?;
        let picker = DebugEvents(self.observer.node.clone());
        Ok(self.respond(Cursor::stream(self.observer.clone(), picker, range)))
    }

    async fn get_nodes(
        &self,
        _: Request<GetNodesRequest>,
    ) -> Result<Response<GetNodesResponse>, Status> {
        let (node, figures) = (&self.observer.node, self.observer.figures());
        let own = Node {
            name: node.name.clone(),
            version: node.version.clone(),
            address: self.address.address.clone(),
            state: NodeState::NodeConnected.into(),
            tls: Some(Tls {
                enabled: self.address.server_name.is_some(),
                server_name: self.address.server_name.clone().unwrap_or_default(),
            }),
            uptime_ns: u64::try_from(figures.uptime.as_nanos()).unwrap_or(u64::MAX),
            num_flows: figures.kept,
            max_flows: figures.capacity,
            seen_flows: figures.seen,
        };
        Ok(self.respond(GetNodesResponse { nodes: vec![own] }))
    }

    async fn get_namespaces(
        &self,
        _: Request<GetNamespacesRequest>,
    ) -> Result<Response<GetNamespacesResponse>, Status> {
        let seen = self.observer.namespaces().into_iter();
        let namespaces = seen.map(|(cluster, namespace)| Namespace { cluster, namespace });
        Ok(self.respond(GetNamespacesResponse { namespaces: namespaces.collect() }))
    }

    async fn server_status(
        &self,
        _: Request<ServerStatusRequest>,
    ) -> Result<Response<ServerStatusResponse>, Status> {
        let figures = self.observer.figures();
        Ok(self.respond(ServerStatusResponse {
            num_flows: figures.kept,
            max_flows: figures.capacity,
            seen_flows: figures.seen,
            uptime_ns: u64::try_from(figures.uptime.as_nanos()).unwrap_or(u64::MAX),
            version: self.observer.node.version.clone(),
            flows_rate: figures.rate,
            ..ServerStatusResponse::default()
        }))
    }
}
