//! The observer of a node: takes events in, keeps the newest, and knows what it has seen.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use api::hubble::flow::{AgentEvent, LostEvent, LostEventSource};

use crate::directory::{Deciders, Directory, IdentityLabels, Peer};
use crate::event::{DecodeError, Event};
use crate::message::{NodeInfo, timestamp};
use crate::ring::{Record, Ring};
use crate::row::Row;

/// How long a namespace is remembered that no flow was seen of.
const NAMESPACE_LIFETIME: Duration = Duration::from_secs(3600);
/// Namespaces that are remembered at most; flows name those of pods, which exist.
const NAMESPACES_MAX: usize = 10_000;
/// Sets of rules that are remembered; numbers are hardly ever used again.
const DECIDERS_MAX: usize = 8_192;
/// The time that the rate of flows is measured over.
const RATE_WINDOW: Duration = Duration::from_secs(60);

/// Sees every flow as it comes, on the thread that reads the rings.
pub trait Tap: Send + Sync {
    /// A flow.
    fn flow(&self, row: &Row);
    /// Events that were lost.
    fn lost(&self, source: LostEventSource, count: u64);
}

/// Knows which rules stand behind the number that a policy verdict carries.
pub trait Correlator: Send + Sync {
    /// The policies of those rules; none where nobody knows any more.
    fn deciders(&self, cookie: u32) -> Option<Deciders>;
}

/// The observer of a node.
pub struct Observer {
    /// The newest records.
    pub ring: Ring,
    /// What is the same in all flows.
    pub node: Arc<NodeInfo>,
    directory: RwLock<Directory>,
    taps: Vec<Box<dyn Tap>>,
    started: Instant,
    /// Flows that were seen since the start.
    seen: AtomicU64,
    numbers: AtomicU64,
    namespaces: Mutex<BTreeMap<(String, String), Instant>>,
    correlator: OnceLock<Box<dyn Correlator>>,
    /// What the correlator has said, by cookie.
    deciders: Mutex<HashMap<u32, Option<Arc<Deciders>>>>,
}

/// Figures about the observer.
#[derive(Clone, Debug, PartialEq)]
pub struct Figures {
    /// Records in the ring.
    pub kept: u64,
    /// Records that fit into the ring.
    pub capacity: u64,
    /// Flows since the start.
    pub seen: u64,
    /// Time since the start.
    pub uptime: Duration,
    /// Flows per second.
    pub rate: f64,
}

/// Nanoseconds since 1970.
pub fn now_ns() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

impl Observer {
    /// An observer that has seen nothing and keeps so many records.
    pub fn new(capacity: usize, node: NodeInfo, taps: Vec<Box<dyn Tap>>) -> Self {
        Self {
            ring: Ring::new(capacity),
            node: Arc::new(node),
            directory: RwLock::new(Directory::new()),
            taps,
            started: Instant::now(),
            seen: AtomicU64::new(0),
            numbers: AtomicU64::new(0),
            namespaces: Mutex::default(),
            correlator: OnceLock::new(),
            deciders: Mutex::default(),
        }
    }

    /// From now on policy verdicts are told by whom. Only the first correlator counts.
    pub fn correlate(&self, correlator: Box<dyn Correlator>) {
        // A second one would say the same.
        let _ = self.correlator.set(correlator);
    }

    fn deciders(&self, cookie: u32) -> Option<Arc<Deciders>> {
        let correlator = self.correlator.get().filter(|_| cookie != 0)?;
        let mut known = self.deciders.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= DECIDERS_MAX {
            known.clear();
        }
        known.entry(cookie).or_insert_with(|| correlator.deciders(cookie).map(Arc::new)).clone()
    }

    /// Who is who, to read.
    pub fn directory(&self) -> RwLockReadGuard<'_, Directory> {
        self.directory.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Who is who, to write. No event is taken in meanwhile.
    pub fn directory_mut(&self) -> RwLockWriteGuard<'_, Directory> {
        self.directory.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins a batch of events; they are kept when it is dropped.
    pub fn intake(&self) -> Intake<'_> {
        Intake { observer: self, directory: self.directory(), records: Vec::new(), undecoded: 0 }
    }

    /// Notes events that were lost.
    pub fn lost(&self, source: LostEventSource, count: u64, cpu: Option<u32>) {
        let time_ns = now_ns();
        let event = LostEvent {
            source: source.into(),
            num_events_lost: count,
            cpu: cpu.and_then(|cpu| i32::try_from(cpu).ok()),
            first: None,
            last: Some(timestamp(time_ns)),
        };
        for tap in &self.taps {
            tap.lost(source, count);
        }
        self.ring.push([Record::Lost { time_ns, event }]);
    }

    /// Notes something that the agent did.
    pub fn agent_event(&self, event: AgentEvent) {
        self.ring.push([Record::Agent { time_ns: now_ns(), event: Box::new(event) }]);
    }

    /// Figures about the observer.
    pub fn figures(&self) -> Figures {
        let snapshot = self.ring.snapshot();
        let uptime = self.started.elapsed();
        let window_ns = u64::try_from(RATE_WINDOW.as_nanos()).unwrap_or(u64::MAX);
        let (now, mut since) = (now_ns(), None);
        let mut flows = 0_u32;
        for record in snapshot.records.iter().rev() {
            if record.time_ns().saturating_add(window_ns) < now {
                break;
            }
            since = Some(record.time_ns());
            flows += u32::from(matches!(**record, Record::Flow(_)));
        }
        // A ring that turned over within a minute knows only the time it covers.
        let is_full = snapshot.records.len() == self.ring.capacity();
        let covered = match since {
            Some(since) if is_full => Duration::from_nanos(now.saturating_sub(since)),
            _ => RATE_WINDOW.min(uptime),
        };
        Figures {
            kept: snapshot.records.len() as u64,
            capacity: self.ring.capacity() as u64,
            seen: self.seen.load(Ordering::Relaxed),
            uptime,
            rate: f64::from(flows) / covered.as_secs_f64().max(0.001),
        }
    }

    /// The clusters and namespaces that flows were seen of lately.
    pub fn namespaces(&self) -> Vec<(String, String)> {
        let mut namespaces = self.namespaces.lock().unwrap_or_else(PoisonError::into_inner);
        namespaces.retain(|_, seen| seen.elapsed() < NAMESPACE_LIFETIME);
        namespaces.keys().cloned().collect()
    }

    fn note_namespaces(&self, records: &[Record]) {
        let mut known: HashSet<*const Peer> = HashSet::new();
        let mut found: Vec<(&Peer, Option<&IdentityLabels>)> = Vec::new();
        for record in records {
            let Record::Flow(row) = record else { continue };
            for party in [&row.source, &row.destination] {
                let Some(peer) = &party.peer else { continue };
                if !peer.namespace.is_empty() && known.insert(Arc::as_ptr(peer)) {
                    found.push((peer, party.labels.as_deref()));
                }
            }
        }
        if found.is_empty() {
            return;
        }
        let now = Instant::now();
        let mut namespaces = self.namespaces.lock().unwrap_or_else(PoisonError::into_inner);
        for (peer, labels) in found {
            let cluster = labels.map_or(&self.node.cluster, |labels| &labels.cluster);
            let key = (cluster.clone(), peer.namespace.clone());
            if namespaces.len() < NAMESPACES_MAX || namespaces.contains_key(&key) {
                namespaces.insert(key, now);
            }
        }
    }
}

/// A batch of events on its way into the ring.
pub struct Intake<'a> {
    observer: &'a Observer,
    directory: RwLockReadGuard<'a, Directory>,
    records: Vec<Record>,
    undecoded: u64,
}

impl Intake<'_> {
    /// Takes an event in: bytes of a ring, and when it was, in nanoseconds since 1970.
    pub fn event(&mut self, time_ns: u64, cpu: u32, bytes: &[u8]) {
        match Event::decode(bytes) {
            Ok(Event::Debug(event)) => {
                let about =
                    |peer: &&Arc<Peer>| event.source != 0 && peer.endpoint_id == event.source;
                let source = self.directory.peers.values().find(about).cloned();
                self.records.push(Record::Debug { time_ns, cpu, event, source });
            }
            Ok(event) => {
                let number = self.observer.numbers.fetch_add(1, Ordering::Relaxed);
                let mut row = Row::new(time_ns, number, event, &self.directory);
                if let Event::Verdict(verdict) = &row.event {
                    row.deciders = self.observer.deciders(verdict.cookie);
                }
                for tap in &self.observer.taps {
                    tap.flow(&row);
                }
                self.records.push(Record::Flow(row));
            }
            Err(DecodeError::Truncated { .. } | DecodeError::UnknownType(_)) => self.undecoded += 1,
        }
    }
}

impl Drop for Intake<'_> {
    fn drop(&mut self) {
        let flows = self.records.iter().filter(|record| matches!(record, Record::Flow(_))).count();
        self.observer.seen.fetch_add(flows as u64, Ordering::Relaxed);
        self.observer.note_namespaces(&self.records);
        if !self.records.is_empty() {
            self.observer.ring.push(self.records.drain(..));
        }
        if self.undecoded > 0 {
            // The datapath is of another version than we are.
            let source = LostEventSource::UnknownLostEventSource;
            self.observer.lost(source, self.undecoded, None);
        }
    }
}
