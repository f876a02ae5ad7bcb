//! The observer's memory: the newest records, and any number of readers at their own pace.
//!
//! Records are numbered from 0 on. A reader says which number it wants next; what it did not read in
//! time is gone, and it is told how much that was. Nobody waits for a reader.

use std::collections::VecDeque;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use api::hubble::flow::{AgentEvent, LostEvent};
use tokio::sync::watch;

use crate::directory::Peer;
use crate::event::Debug;
use crate::row::Row;

/// Something that happened, as it is kept.
#[derive(Clone, Debug, PartialEq)]
pub enum Record {
    /// A flow.
    Flow(Row),
    /// A message for whoever debugs the datapath.
    Debug {
        /// Nanoseconds since 1970.
        time_ns: u64,
        /// The CPU it was made on.
        cpu: u32,
        /// The message.
        event: Debug,
        /// The endpoint it is about.
        source: Option<Arc<Peer>>,
    },
    /// Something that the agent did.
    Agent {
        /// Nanoseconds since 1970.
        time_ns: u64,
        /// What.
        event: Box<AgentEvent>,
    },
    /// Events that never got here.
    Lost {
        /// Nanoseconds since 1970.
        time_ns: u64,
        /// Where, and how many.
        event: LostEvent,
    },
}

impl Record {
    /// When: nanoseconds since 1970.
    pub fn time_ns(&self) -> u64 {
        match self {
            Self::Flow(row) => row.time_ns,
            Self::Debug { time_ns, .. }
            | Self::Agent { time_ns, .. }
            | Self::Lost { time_ns, .. } => *time_ns,
        }
    }
}

/// The newest records.
#[derive(Debug)]
pub struct Ring {
    records: RwLock<Kept>,
    capacity: usize,
    /// The number of the next record.
    head: watch::Sender<u64>,
}

#[derive(Debug)]
struct Kept {
    /// Number of the oldest record.
    first: u64,
    records: VecDeque<Arc<Record>>,
}

impl Kept {
    fn next(&self) -> u64 {
        self.first + self.records.len() as u64
    }
}

/// What a reader got.
#[derive(Clone, Debug, PartialEq)]
pub struct Batch {
    /// Records that are gone since.
    pub lost: u64,
    /// The records, oldest first.
    pub records: Vec<Arc<Record>>,
    /// What to read from next.
    pub next: u64,
}

impl Ring {
    /// An empty ring for so many records.
    pub fn new(capacity: usize) -> Self {
        let kept = Kept { first: 0, records: VecDeque::new() };
        Self { records: RwLock::new(kept), capacity: capacity.max(1), head: watch::Sender::new(0) }
    }

    fn kept(&self) -> RwLockReadGuard<'_, Kept> {
        self.records.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds records, and wakes readers once.
    pub fn push(&self, records: impl IntoIterator<Item = Record>) {
        let next = {
            let mut kept = self.records.write().unwrap_or_else(PoisonError::into_inner);
            for record in records {
                if kept.records.len() == self.capacity {
                    kept.records.pop_front();
                    kept.first += 1;
                }
                kept.records.push_back(Arc::new(record));
            }
            kept.next()
        };
        self.head.send_replace(next);
    }

    /// How many records there are.
    pub fn len(&self) -> usize {
        self.kept().records.len()
    }

    /// Whether nothing happened yet.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many records there can be.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// The number of the next record, and a way to wait for it.
    pub fn head(&self) -> watch::Receiver<u64> {
        self.head.subscribe()
    }

    /// All records, oldest first.
    pub fn snapshot(&self) -> Batch {
        let kept = self.kept();
        Batch { lost: 0, records: kept.records.iter().cloned().collect(), next: kept.next() }
    }

    /// At most `max` records from number `from` on.
    pub fn read(&self, from: u64, max: usize) -> Batch {
        let kept = self.kept();
        let start = from.max(kept.first).min(kept.next());
        let skip = usize::try_from(start - kept.first).unwrap_or(usize::MAX);
        let records: Vec<_> = kept.records.iter().skip(skip).take(max).cloned().collect();
        Batch { lost: kept.first.saturating_sub(from), next: start + records.len() as u64, records }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lost(time_ns: u64) -> Record {
        Record::Lost { time_ns, event: LostEvent::default() }
    }

    fn times(batch: &Batch) -> Vec<u64> {
        batch.records.iter().map(|record| record.time_ns()).collect()
    }

    #[test]
    fn a_reader_that_keeps_up_gets_everything() {
        let ring = Ring::new(3);
        let mut next = 0;
        for time in 0..10 {
            ring.push([lost(time)]);
            let batch = ring.read(next, 8);
            assert_eq!((batch.lost, times(&batch)), (0, vec![time]));
            next = batch.next;
        }
        assert_eq!(ring.read(next, 8), Batch { lost: 0, records: vec![], next: 10 });
    }

    #[test]
    fn a_slow_reader_is_told_what_it_lost() {
        let ring = Ring::new(3);
        ring.push((0..10).map(lost));
        let batch = ring.read(2, 2);
        assert_eq!((batch.lost, times(&batch), batch.next), (5, vec![7, 8], 9));
        assert_eq!(times(&ring.read(9, 2)), [9]);
        assert_eq!((ring.len(), ring.capacity()), (3, 3));
    }

    #[tokio::test]
    async fn readers_are_woken() {
        let ring = Ring::new(3);
        let mut head = ring.head();
        head.mark_unchanged();
        ring.push([lost(1), lost(2)]);
        head.changed().await.expect("the ring is there");
        assert_eq!(*head.borrow_and_update(), 2);
    }
}
