//! `cilium monitor`: what the datapath does with packets, live from one or many agents.
//!
//! A thread per agent reads its stream; one channel brings the events together. The nodes of a lab
//! share a clock, so the events of several nodes are put in order of time, and a packet's way reads
//! from its sender to its receiver.

use std::collections::{BTreeMap, HashSet};
use std::io::{ErrorKind, IsTerminal, Write};
use std::net::IpAddr;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, SyncSender};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use api::rest::monitor::Frame;
use api::rest::{Endpoint, EndpointRef, IpListEntry, path};
use flow::{Event, Line, Network, Packet};
use model::PodName;
use serde::Serialize;

use crate::args::{self, Format};
use crate::nodes::{Node, Nodes};
use crate::output::{Outcome, Style, encode, explain};
use crate::policy_words::Words;

/// Events that may wait to be printed. Beyond, the agents wait, and count what they drop.
const QUEUE_LEN_MAX: usize = 4_096;
/// How long an event of several nodes waits for older ones: agents read their rings by turns of
/// half of it.
const REORDER: Duration = Duration::from_millis(150);

pub(crate) fn run(args: &args::Monitor) -> Result<Outcome> {
    let nodes = Nodes::select(&args.whom)?;
    let filter = Filter::new(args, &nodes)?;
    let (sender, receiver) = mpsc::sync_channel(QUEUE_LEN_MAX);
    for (index, node) in nodes.all.iter().enumerate() {
        let stream = node.client().stream(path::MONITOR).map_err(|error| explain(error.into()))?;
        let sender = sender.clone();
        std::thread::spawn(move || read(index, stream, &sender));
    }
    drop(sender);
    if std::io::stdout().is_terminal() {
        eprintln!("Listening for events on {}; press Ctrl-C to quit", of_how_many(&nodes));
    }
    let output = if args.json { Some(Format::Json) } else { args.output };
    let mut printer = Printer {
        nodes: &nodes,
        output,
        numeric: args.numeric,
        style: Style::of_stdout(),
        words: Words::new(&nodes),
    };
    printer.print_all(&receiver, &filter)
}

fn of_how_many(nodes: &Nodes) -> String {
    match nodes.all.as_slice() {
        [node] => node.label(),
        many => format!("{} nodes", many.len()),
    }
}

/// What a reader has to say of its agent.
enum Message {
    Frame(Frame),
    Ended(Option<std::io::Error>),
}

fn read(node: usize, mut stream: impl std::io::Read, sender: &SyncSender<(usize, Message)>) {
    loop {
        let (message, is_last) = match Frame::read(&mut stream) {
            Ok(Some(frame)) => (Message::Frame(frame), false),
            Ok(None) => (Message::Ended(None), true),
            Err(error) => (Message::Ended(Some(error)), true),
        };
        if sender.send((node, message)).is_err() || is_last {
            return;
        }
    }
}

struct Printer<'a> {
    nodes: &'a Nodes,
    output: Option<Format>,
    numeric: bool,
    style: Style,
    words: Words,
}

impl Printer<'_> {
    /// Prints until every agent has ended its stream.
    fn print_all(
        &mut self,
        events: &Receiver<(usize, Message)>,
        filter: &Filter,
    ) -> Result<Outcome> {
        let mut stdout = std::io::BufWriter::new(std::io::stdout().lock());
        let mut outcome = Outcome::Complete;
        let mut queue = Queue::new(if self.nodes.sections { REORDER } else { Duration::ZERO });
        loop {
            let received = match queue.patience() {
                None => events.recv().map_err(RecvTimeoutError::from),
                Some(patience) => events.recv_timeout(patience),
            };
            let has_ended = match received {
                Ok((node, Message::Frame(frame))) => {
                    queue.push(node, frame);
                    false
                }
                Ok((node, Message::Ended(error))) => {
                    outcome = Outcome::Partial;
                    let why = error.map(|error| format!(": {error}")).unwrap_or_default();
                    eprintln!("{}: the agent ended the stream{why}", self.nodes.all[node].label());
                    false
                }
                Err(RecvTimeoutError::Timeout) => false,
                Err(RecvTimeoutError::Disconnected) => true,
            };
            while let Some((node, frame)) = queue.pop(has_ended) {
                if let Some(text) = self.text(node, &frame, filter)?
                    && is_closed(stdout.write_all(text.as_bytes()))?
                {
                    return Ok(outcome);
                }
            }
            if queue.is_empty() && is_closed(stdout.flush())? || has_ended {
                return Ok(outcome);
            }
        }
    }

    fn text(&mut self, node: usize, frame: &Frame, filter: &Filter) -> Result<Option<String>> {
        let name = self.nodes.sections.then(|| self.nodes.all[node].label());
        let described = match frame {
            Frame::Lost { count, .. } => Described::Lost { count: *count },
            Frame::Event { payload, .. } => match Event::decode(payload) {
                Ok(event) if filter.matches(node, &event) => Described::Event(event),
                Ok(_) => return Ok(None),
                Err(error) => Described::Unknown { error: error.to_string() },
            },
        };
        let because = match &described {
            Described::Event(event) => self.words.of(node, event),
            _ => None,
        };
        if let Some(format) = self.output {
            let (Frame::Event { timestamp_ns, .. } | Frame::Lost { timestamp_ns, .. }) = frame;
            let timestamp_ns = *timestamp_ns;
            let row = Row { node: name, timestamp_ns, because, event: &described };
            return Ok(Some(match format {
                Format::Json => serde_json::to_string(&row)? + "\n",
                Format::Yaml => format!("---\n{}", encode(&row, format)?),
            }));
        }
        let prefix = name.map(|name| format!("{name}: ")).unwrap_or_default();
        Ok(Some(match &described {
            Described::Event(event) => {
                let line = Line { event, numeric: self.numeric };
                let line = match event {
                    Event::Drop(_) => format!("{prefix}{}\n", self.style.bad(line)),
                    _ => format!("{prefix}{line}\n"),
                };
                let because = because.iter().flat_map(|words| words.lines());
                because.fold(line, |text, words| text + &format!("{prefix}   {words}\n"))
            }
            Described::Lost { count } => format!("{prefix}Lost {count} events\n"),
            Described::Unknown { error } => format!("{prefix}{error}\n"),
        }))
    }
}

/// Events of several nodes that wait for older ones.
struct Queue {
    window: Duration,
    /// By time of the event, then by arrival; with the time of arrival.
    waiting: BTreeMap<(u64, u64), (Instant, usize, Frame)>,
    arrived: u64,
}

impl Queue {
    fn new(window: Duration) -> Self {
        Self { window, waiting: BTreeMap::new(), arrived: 0 }
    }

    fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    fn push(&mut self, node: usize, frame: Frame) {
        let (Frame::Event { timestamp_ns, .. } | Frame::Lost { timestamp_ns, .. }) = &frame;
        self.arrived += 1;
        self.waiting.insert((*timestamp_ns, self.arrived), (Instant::now(), node, frame));
    }

    /// How long until the oldest event has waited enough; `None` where none waits.
    fn patience(&self) -> Option<Duration> {
        let (_, (arrived, ..)) = self.waiting.first_key_value()?;
        Some(self.window.saturating_sub(arrived.elapsed()))
    }

    /// The oldest event, if it has waited enough or nothing more comes.
    fn pop(&mut self, has_ended: bool) -> Option<(usize, Frame)> {
        let is_due = self.patience()?.is_zero() || self.waiting.len() > QUEUE_LEN_MAX;
        if !is_due && !has_ended {
            return None;
        }
        self.waiting.pop_first().map(|(_, (_, node, frame))| (node, frame))
    }
}

/// Whether the reader of our output has gone, as `head` does.
fn is_closed(written: std::io::Result<()>) -> Result<bool> {
    match written {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(true),
        result => result.map(|()| false).context("cannot write to standard output"),
    }
}

/// A line of JSON.
#[derive(Serialize)]
struct Row<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    node: Option<String>,
    timestamp_ns: u64,
    /// Why policy has decided so, in words.
    #[serde(skip_serializing_if = "Option::is_none")]
    because: Option<String>,
    #[serde(flatten)]
    event: &'a Described,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Described {
    Event(Event),
    Lost {
        #[serde(rename = "lost")]
        count: u64,
    },
    Unknown {
        error: String,
    },
}

// ---------------------------------------------------------------------------------------------
// Filter

/// Which events to print. Nothing given means all.
#[derive(Debug, Default)]
struct Filter {
    kinds: Vec<flow::Kind>,
    from: Party,
    to: Party,
    related: Party,
}

/// Endpoints and addresses, any of which is meant.
#[derive(Debug, Default)]
struct Party {
    is_given: bool,
    /// By node, since endpoint ids are per node.
    endpoints: HashSet<(usize, u16)>,
    addresses: HashSet<IpAddr>,
}

impl Filter {
    fn new(args: &args::Monitor, nodes: &Nodes) -> Result<Self> {
        let mut filter =
            Self { kinds: args.types.iter().map(|kind| kind.kind()).collect(), ..Self::default() };
        filter.from.add_endpoints(&args.from, nodes);
        filter.to.add_endpoints(&args.to, nodes);
        for pod in &args.from_pod {
            filter.from.add_pod(pod, nodes)?;
        }
        for pod in &args.to_pod {
            filter.to.add_pod(pod, nodes)?;
        }
        for text in &args.related_to {
            match text.parse() {
                Ok(endpoint) => filter.related.add_endpoints(&[endpoint], nodes),
                Err(_) => filter.related.add_pod(text, nodes)?,
            }
        }
        Ok(filter)
    }

    fn matches(&self, node: usize, event: &Event) -> bool {
        if !self.kinds.is_empty() && !self.kinds.contains(&event.kind()) {
            return false;
        }
        let (source, destination) = addresses(event).unzip();
        let is_from = |party: &Party| party.has(node, event.source(), source);
        let is_to = |party: &Party| party.has(node, event.destination(), destination);
        (!self.from.is_given || is_from(&self.from))
            && (!self.to.is_given || is_to(&self.to))
            && (!self.related.is_given || is_from(&self.related) || is_to(&self.related))
    }
}

impl Party {
    fn add_endpoints(&mut self, endpoints: &[u16], nodes: &Nodes) {
        self.is_given |= !endpoints.is_empty();
        for endpoint in endpoints {
            self.endpoints.extend((0..nodes.all.len()).map(|node| (node, *endpoint)));
        }
    }

    /// A pod is its addresses, wherever its packets are seen, and its endpoint on its own node.
    fn add_pod(&mut self, text: &str, nodes: &Nodes) -> Result<()> {
        self.is_given = true;
        let pod = pod_name(text)?;
        let mut is_known = false;
        for (index, node) in nodes.all.iter().enumerate() {
            let found = look_up(node, &pod)?;
            is_known |= found.endpoint.is_some() || !found.addresses.is_empty();
            self.endpoints.extend(found.endpoint.map(|endpoint| (index, endpoint)));
            self.addresses.extend(found.addresses);
        }
        if !is_known {
            bail!("no agent knows a pod {pod}; `cilium endpoint list` names those there are");
        }
        Ok(())
    }

    /// Of a packet the addresses decide. The endpoint that an event is about may be either end.
    fn has(&self, node: usize, endpoint: u16, address: Option<IpAddr>) -> bool {
        match address {
            Some(address) if !self.addresses.is_empty() => self.addresses.contains(&address),
            _ => self.endpoints.contains(&(node, endpoint)),
        }
    }
}

fn pod_name(text: &str) -> Result<PodName> {
    args::pod(text).map_err(anyhow::Error::msg)
}

/// What an agent knows of a pod.
struct Known {
    endpoint: Option<u16>,
    addresses: Vec<IpAddr>,
}

fn look_up(node: &Node, pod: &PodName) -> Result<Known> {
    let mut client = node.client();
    let endpoint: Option<Endpoint> =
        match client.get(&path::endpoint(&EndpointRef::Pod(pod.clone()))) {
            Ok(endpoint) => Some(endpoint),
            Err(error) if error.status() == Some(404) => None,
            Err(error) => return Err(explain(error.into())),
        };
    let mut addresses = Vec::new();
    if let Some(endpoint) = &endpoint {
        for pair in &endpoint.status.networking.addressing {
            addresses.extend(pair.addresses().unwrap_or_default());
        }
    } else {
        let entries: Vec<IpListEntry> = client.get(path::IP)?;
        let is_of_pod = |entry: &&IpListEntry| {
            entry.metadata.as_ref().is_some_and(|metadata| {
                metadata.namespace == pod.namespace && metadata.name == pod.name
            })
        };
        let nets = entries.iter().filter(is_of_pod).map(|entry| entry.cidr.parse::<ipnet::IpNet>());
        addresses.extend(nets.flatten().map(|net| net.addr()));
    }
    let endpoint = endpoint.and_then(|endpoint| u16::try_from(endpoint.id).ok());
    Ok(Known { endpoint, addresses })
}

/// Who talks to whom; in a tunnel, the pods and not the nodes.
fn addresses(event: &Event) -> Option<(IpAddr, IpAddr)> {
    let ends = |packet: &Packet| match packet.network? {
        Network::Ip { source, destination, .. } => Some((source, destination)),
        Network::Arp(arp) => Some((arp.sender.into(), arp.target.into())),
    };
    let packet = event.packet()?;
    packet.tunnel.as_ref().and_then(|tunnel| ends(&tunnel.inner)).or_else(|| ends(packet))
}

#[cfg(test)]
mod tests {
    use super::*;
    use abi::event::{CaptureHeader, EventType, ObservationPoint, TraceNotify};

    /// A trace event of endpoint 7 to endpoint 8, of a packet from 10.0.0.1 to 10.0.0.2.
    fn event() -> Event {
        let mut packet = [0_u8; 38];
        packet[12] = 0x08;
        packet[14] = 0x45;
        packet[23] = 17;
        packet[26..30].copy_from_slice(&[10, 0, 0, 1]);
        packet[30..34].copy_from_slice(&[10, 0, 0, 2]);
        let header = CaptureHeader {
            event_type: EventType::Trace as u8,
            subtype: ObservationPoint::ToEndpoint as u8,
            source: 7,
            len_cap: 38,
            ..CaptureHeader::default()
        };
        let notify = TraceNotify { header, dst_id: 8, ..TraceNotify::default() };
        let bytes = [zerocopy::IntoBytes::as_bytes(&notify), &packet].concat();
        Event::decode(&bytes).unwrap()
    }

    fn party(endpoints: &[u16], addresses: &[&str]) -> Party {
        Party {
            is_given: true,
            endpoints: endpoints.iter().map(|endpoint| (0, *endpoint)).collect(),
            addresses: addresses.iter().map(|address| address.parse().unwrap()).collect(),
        }
    }

    #[test]
    fn filters() {
        let check = |filter: Filter, expected: bool| {
            assert_eq!(filter.matches(0, &event()), expected, "{filter:?}");
        };
        check(Filter::default(), true);
        check(Filter { kinds: vec![flow::Kind::Drop], ..Filter::default() }, false);
        check(Filter { from: party(&[7], &[]), ..Filter::default() }, true);
        check(Filter { from: party(&[8], &[]), ..Filter::default() }, false);
        check(Filter { to: party(&[8], &[]), ..Filter::default() }, true);
        check(Filter { related: party(&[8], &[]), ..Filter::default() }, true);
        check(Filter { related: party(&[9], &["10.0.0.2"]), ..Filter::default() }, true);
        check(Filter { from: party(&[7], &["10.0.0.2"]), ..Filter::default() }, false);
        check(
            Filter {
                from: party(&[], &["10.0.0.1"]),
                to: party(&[], &["10.0.0.3"]),
                ..Filter::default()
            },
            false,
        );
    }

    #[test]
    fn events_of_several_nodes_are_put_in_order() {
        let mut queue = Queue::new(Duration::from_secs(3600));
        for (node, timestamp_ns) in [(0, 30), (1, 20), (0, 40), (1, 20)] {
            queue.push(node, Frame::Lost { timestamp_ns, count: 1 });
        }
        assert!(queue.pop(false).is_none(), "an older one may come");
        let order: Vec<usize> =
            std::iter::from_fn(|| queue.pop(true)).map(|(node, _)| node).collect();
        assert_eq!(order, [1, 1, 0, 0]);

        let mut at_once = Queue::new(Duration::ZERO);
        at_once.push(0, Frame::Lost { timestamp_ns: 1, count: 1 });
        assert!(at_once.pop(false).is_some());
    }

    #[test]
    fn pods_without_a_namespace_are_in_default() {
        assert_eq!(pod_name("web").unwrap().to_string(), "default/web");
        assert_eq!(pod_name("shop/web").unwrap().to_string(), "shop/web");
        assert!(pod_name("a/b/c").is_err());
    }
}
