//! Events: in the order of time over all CPUs, none lost uncounted.

use std::{os::fd::AsFd, thread};

use abi::{
    event::{DropNotify, EventType},
    names,
};
use kernel::{
    datapath::{Datapath, MapSizes},
    events::{EventRings, listen},
    test_run::{self, SkbContext},
};
use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sched::{CpuSet, sched_getaffinity, sched_setaffinity},
    unistd::Pid,
};
use zerocopy::FromBytes;

use crate::fixture::{load, on_node};

/// A packet that every program drops: an Ethernet header of no protocol we know, then zeros.
fn nonsense() -> [u8; 64] {
    let mut packet = [0; 64];
    packet[12..14].copy_from_slice(&[0x12, 0x34]);
    packet
}

/// The CPUs that we may use.
fn cpus() -> Vec<usize> {
    let allowed = sched_getaffinity(Pid::from_raw(0)).unwrap();
    (0..CpuSet::count()).filter(|cpu| allowed.is_set(*cpu).unwrap_or(false)).collect()
}

/// Makes `count` drop events on each CPU, on all at once. Returns how many that were.
fn make_events(datapath: &Datapath, count: u64) -> u64 {
    let cpus = cpus();
    let program = datapath.program(names::FROM_CONTAINER).unwrap();
    thread::scope(|scope| {
        for cpu in &cpus {
            scope.spawn(move || {
                let mut set = CpuSet::new();
                set.set(*cpu).unwrap();
                sched_setaffinity(Pid::from_raw(0), &set).unwrap();
                for _ in 0..count {
                    test_run::run(program, &nonsense(), &SkbContext::default(), 1).unwrap();
                }
            });
        }
    });
    cpus.len() as u64 * count
}

#[test]
fn events_come_in_the_order_of_time() {
    on_node("events_come_in_the_order_of_time", || {
        let sizes = MapSizes::default();
        let Some(datapath) = load("events_come_in_the_order_of_time", sizes) else { return };
        let mut rings = EventRings::new(&datapath.maps.events).unwrap();
        make_events(&datapath, 10);
        assert_eq!(rings.drain(usize::MAX, |_| {}), 0, "nobody listens");

        listen(&datapath.maps.runtime_config, &[EventType::Drop]).unwrap();
        let expected = make_events(&datapath, 300) + make_events(&datapath, 600);
        let readable = |rings: &EventRings, patience: PollTimeout| {
            let mut fds = [PollFd::new(rings.as_fd(), PollFlags::POLLIN)];
            poll(&mut fds, patience).unwrap() == 1
        };
        // The kernel wakes the reader from an interrupt that it sends to itself.
        let patience = PollTimeout::from(10_000_u16);
        assert!(readable(&rings, patience), "more than a quarter of each ring is full");
        let mut times = Vec::new();
        let mut seen = Vec::new();
        while rings.drain(64, |event| {
            let (notify, _) = DropNotify::read_from_prefix(event.payload).unwrap();
            assert_eq!(notify.header.event_type, EventType::Drop as u8);
            times.push(event.timestamp_ns);
            seen.push(event.cpu);
        }) == 64
        {}
        assert_eq!(times.len() as u64, expected);
        assert!(times.is_sorted(), "{times:?}");
        // Each CPU made events twice, so that one CPU's after another's is not the order of time.
        seen.dedup();
        assert!(seen.len() > cpus().len() || cpus().len() == 1, "{seen:?}");
        assert_eq!(datapath.maps.events.lost().unwrap(), 0);
        assert!(!readable(&rings, PollTimeout::ZERO));
    });
}

#[test]
fn what_finds_no_room_is_counted() {
    on_node("what_finds_no_room_is_counted", || {
        let sizes = MapSizes { events_ring_bytes: 16 * 1024, ..MapSizes::default() };
        let Some(datapath) = load("what_finds_no_room_is_counted", sizes) else { return };
        listen(&datapath.maps.runtime_config, &[EventType::Drop]).unwrap();
        let made = make_events(&datapath, 500);
        let mut rings = EventRings::new(&datapath.maps.events).unwrap();
        let read = rings.drain(usize::MAX, |_| {}) as u64;
        let lost = datapath.maps.events.lost().unwrap();
        assert!(read > 0 && lost > 0, "{read} read, {lost} lost");
        assert_eq!(read + lost, made);
        // There is room again.
        make_events(&datapath, 1);
        assert!(rings.drain(usize::MAX, |_| {}) > 0);
    });
}
