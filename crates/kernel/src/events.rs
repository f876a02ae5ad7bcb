//! Events from the programs: ring buffers per CPU, read as one stream in the order of time.
//!
//! One ring shared by all CPUs has one lock that all of them fight for; a ring per CPU has none,
//! but the order among CPUs must be restored here. Each record says when it was made
//! ([`abi::event::RecordHeader`]), and the reader always takes the earliest head of all rings. What
//! a CPU is still writing at that moment may come out later than younger records of other CPUs.
//!
//! A ring has one reader: the agent, which serves all listeners.

use std::{
    fmt, io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd},
    path::Path,
};

use abi::{
    event::{EventType, RecordHeader},
    names,
};
use aya::maps::{Map as AyaMap, MapData, RingBuf};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use zerocopy::FromBytes;

use crate::{
    map::{BpfMap, Map, MapError, MapInfo, PerCpuArray, PinnedMap, info, inner_map, kernel},
    sys::{self, RawMap},
};

/// The maps that events travel in.
#[derive(Debug)]
pub struct EventMaps {
    rings: RawMap,
    lost: PerCpuArray<u64>,
}

impl EventMaps {
    pub(crate) fn new(rings: PinnedMap, lost: PerCpuArray<u64>) -> Self {
        Self { rings: rings.raw, lost }
    }

    pub(crate) fn open(dir: &Path) -> Result<Self, MapError> {
        let name = names::EVENTS.name;
        let rings = sys::pinned(&dir.join(name)).and_then(RawMap::new);
        Ok(Self {
            rings: rings.map_err(|source| kernel(name, "open", source))?,
            lost: PerCpuArray::open(&dir.join(names::EVENTS_LOST.name))?,
        })
    }

    /// Events that found their ring full, since the maps were made.
    pub fn lost(&self) -> Result<u64, MapError> {
        Ok(self.lost.values(0)?.iter().sum())
    }

    /// The same of each CPU, in the order of their numbers.
    pub fn lost_per_cpu(&self) -> Result<Vec<u64>, MapError> {
        self.lost.values(0)
    }

    /// Name and size of the array, memory with the rings.
    pub fn info(&self) -> Result<MapInfo, MapError> {
        let name = names::EVENTS.name;
        let len = self.rings.info().max_entries;
        let mut info = info(&self.rings, name, len as usize)?;
        for cpu in 0..len {
            let ring =
                inner_map(&self.rings, cpu).map_err(|source| kernel(name, "read", source))?;
            if let Some(ring) = ring {
                info.memory_bytes +=
                    ring.memory_bytes().map_err(|source| kernel(name, "describe", source))?;
            }
        }
        Ok(info)
    }

    pub(crate) fn lost_info(&self) -> Result<MapInfo, MapError> {
        self.lost.info()
    }
}

/// An event, as long as the reader looks at it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event<'a> {
    /// The CPU it happened on.
    pub cpu: u32,
    /// When, on CLOCK_MONOTONIC.
    pub timestamp_ns: u64,
    /// A struct of [`abi::event`] and the packet. Bytes that mean nothing may follow.
    pub payload: &'a [u8],
}

/// The rings of all CPUs.
pub struct EventRings {
    epoll: Epoll,
    rings: Vec<Ring>,
    merge: Merge,
}

struct Ring {
    cpu: u32,
    ring: RingBuf<MapData>,
}

impl EventRings {
    /// Maps the rings into memory. Events are made once [`listen`] asked for some.
    pub fn new(maps: &EventMaps) -> Result<Self, MapError> {
        let name = names::EVENTS.name;
        let failed = |source| kernel(name, "map", source);
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).map_err(|e| failed(e.into()))?;
        let mut rings = Vec::new();
        for cpu in 0..maps.rings.info().max_entries {
            let Some(inner) = inner_map(&maps.rings, cpu).map_err(failed)? else { continue };
            let ring = ring(inner.into_fd()).map_err(failed)?;
            let event = EpollEvent::new(EpollFlags::EPOLLIN, u64::from(cpu));
            epoll.add(&ring, event).map_err(|errno| failed(errno.into()))?;
            rings.push(Ring { cpu, ring });
        }
        let merge = Merge::new(rings.len());
        Ok(Self { epoll, rings, merge })
    }

    /// Hands out what is there, earliest first, at most `max` events. Returns how many there were;
    /// fewer than `max` means that the rings were empty.
    ///
    /// The programs do not wake the reader for every event but when a ring begins to fill, so a
    /// reader calls this when the descriptor is readable, and now and then in between.
    pub fn drain(&mut self, max: usize, mut each: impl FnMut(Event<'_>)) -> usize {
        let Self { rings, merge, .. } = self;
        for count in 0..max {
            let fill = |index: usize, head: &mut Vec<u8>| -> bool {
                let Some(item) = rings[index].ring.next() else { return false };
                head.extend_from_slice(&item);
                true
            };
            let Some((index, record)) = merge.next(fill) else { return count };
            let Ok((header, payload)) = RecordHeader::read_from_prefix(record) else { continue };
            let cpu = rings[index].cpu;
            each(Event { cpu, timestamp_ns: header.timestamp_ns, payload });
        }
        max
    }
}

impl AsFd for EventRings {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.0.as_fd()
    }
}

impl AsRawFd for EventRings {
    fn as_raw_fd(&self) -> RawFd {
        self.as_fd().as_raw_fd()
    }
}

impl fmt::Debug for EventRings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EventRings").field("rings", &self.rings.len()).finish_non_exhaustive()
    }
}

/// Tells the programs which events somebody listens to; none costs them nothing.
pub fn listen(runtime_config: &BpfMap<u32, u64>, types: &[EventType]) -> Result<(), MapError> {
    let bits = types.iter().fold(0, |bits, event| bits | event.listener_bit());
    runtime_config.update(&abi::config::RUNTIME_EVENTS, &bits)
}

fn ring(fd: OwnedFd) -> io::Result<RingBuf<MapData>> {
    let map = MapData::from_fd(fd).map_err(io::Error::other)?;
    RingBuf::try_from(AyaMap::RingBuf(map)).map_err(io::Error::other)
}

/// Merges sequences that are each in order of time: holds the head of each.
#[derive(Debug)]
struct Merge {
    heads: Vec<Vec<u8>>,
    /// The sequence whose head was given out, so must be filled again.
    taken: Option<usize>,
}

impl Merge {
    fn new(len: usize) -> Self {
        Self { heads: vec![Vec::new(); len], taken: None }
    }

    /// The earliest record and its sequence. `fill` appends the next record of a sequence.
    fn next(
        &mut self,
        mut fill: impl FnMut(usize, &mut Vec<u8>) -> bool,
    ) -> Option<(usize, &[u8])> {
        if let Some(taken) = self.taken.take() {
            self.heads[taken].clear();
        }
        let mut earliest: Option<(u64, usize)> = None;
        for (index, head) in self.heads.iter_mut().enumerate() {
            if head.is_empty() && !fill(index, head) {
                continue;
            }
            let timestamp =
                RecordHeader::read_from_prefix(head).map_or(0, |(header, _)| header.timestamp_ns);
            if earliest.is_none_or(|(least, _)| timestamp < least) {
                earliest = Some((timestamp, index));
            }
        }
        let (_, index) = earliest?;
        self.taken = Some(index);
        Some((index, &self.heads[index]))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use super::*;

    #[test]
    fn sequences_merge_by_time() {
        let mut rings = [VecDeque::from([1_u64, 5, 6]), VecDeque::new(), VecDeque::from([2, 3, 9])];
        let mut merge = Merge::new(3);
        let mut merged = Vec::new();
        while let Some((index, record)) = merge.next(|index, head| match rings[index].pop_front() {
            Some(time) => {
                head.extend_from_slice(&time.to_ne_bytes());
                true
            }
            None => false,
        }) {
            let time = u64::read_from_bytes(record).expect("a timestamp");
            merged.push((index, time));
        }
        assert_eq!(merged, [(0, 1), (2, 2), (2, 3), (0, 5), (0, 6), (2, 9)]);
    }
}
