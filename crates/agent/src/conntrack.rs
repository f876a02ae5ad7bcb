//! Flows that are over leave the connection-tracking maps.
//!
//! Programs take no notice of a flow whose time is past, and a TCP flow that both ends have closed leaves
//! the map of proven flows by itself. What is left to us are those that just fell silent. They
//! are looked for now and then: often when many are found, hardly ever when none is.
//!
//! Flows of an endpoint that is gone go soon after it. They could not be used by who gets its address
//! next: what a flow remembers holds for one identity and one revision of a policy only.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use abi::conntrack::{Flow, FlowKeyV4, FlowKeyV6, ticks};
use kernel::clock::monotonic_ns;
use kernel::datapath::Maps;
use kernel::map::{Map, MapError, Plain};
use statedb::job::Job;
use statedb::{Change, Table};
use tokio::time::Instant;

use crate::tables::Endpoint;

/// Time to the first search.
const INTERVAL_FIRST: Duration = Duration::from_secs(300);
/// Shortest time between two searches.
const INTERVAL_MIN: Duration = Duration::from_secs(10);
/// Above this part of what was looked at, expired flows make searches more frequent.
const RATIO_MANY: f64 = 0.25;
/// Below this part they make them rarer.
const RATIO_FEW: f64 = 0.05;
/// A map that is fuller than this is searched as often as may be: full, it refuses new flows.
const FILL_HIGH: f64 = 0.75;
/// How long deleted endpoints are collected before their flows are looked for.
const DELETION_DELAY: Duration = INTERVAL_MIN;

/// When flows are looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pace {
    /// A fixed time between two searches; none adapts it.
    pub interval: Option<Duration>,
    /// Longest time between two searches.
    pub interval_max: Duration,
}

impl Pace {
    fn first(self) -> Duration {
        self.interval.unwrap_or(INTERVAL_FIRST).min(self.interval_max)
    }

    /// The time to the next search, after one that found this.
    fn next(self, last: Duration, found: &Found) -> Duration {
        if let Some(interval) = self.interval {
            return interval;
        }
        let next = if found.fill > FILL_HIGH {
            INTERVAL_MIN
        } else if found.ratio() > RATIO_MANY {
            last.mul_f64(1.0 - found.ratio())
        } else if found.ratio() < RATIO_FEW {
            last.mul_f64(1.5)
        } else {
            last
        };
        next.clamp(INTERVAL_MIN.min(self.interval_max), self.interval_max)
    }
}

/// What a search found, of the map with the most to say.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Found {
    looked_at: usize,
    removed: usize,
    /// How full the fullest map is, from 0 to 1.
    fill: f64,
}

impl Found {
    #[expect(clippy::cast_precision_loss, reason = "a ratio")]
    fn ratio(&self) -> f64 {
        if self.looked_at == 0 { 0.0 } else { self.removed as f64 / self.looked_at as f64 }
    }

    fn add(&mut self, other: Self) {
        self.looked_at += other.looked_at;
        self.removed += other.removed;
        self.fill = self.fill.max(other.fill);
    }
}

/// A key of a map of flows.
pub trait FlowKey: Plain {
    /// The addresses of both ends.
    fn ends(&self) -> [IpAddr; 2];
}

impl FlowKey for FlowKeyV4 {
    fn ends(&self) -> [IpAddr; 2] {
        [self.lower, self.upper].map(|address| Ipv4Addr::from(address).into())
    }
}

impl FlowKey for FlowKeyV6 {
    fn ends(&self) -> [IpAddr; 2] {
        [self.lower, self.upper].map(|address| Ipv6Addr::from(address).into())
    }
}

/// Removes the flows of a map that are over at `now`, and those of the addresses in `gone`.
fn sweep<K: FlowKey>(
    map: &dyn Map<K, Flow>,
    max_entries: u32,
    now: u32,
    gone: &BTreeSet<IpAddr>,
) -> Result<Found, MapError> {
    let is_over = |key: &K, flow: &Flow| {
        flow.expires < now || key.ends().iter().any(|address| gone.contains(address))
    };
    let (mut over, mut looked_at) = (Vec::new(), 0);
    map.for_each(&mut |key, flow| {
        looked_at += 1;
        if is_over(key, flow) {
            over.push(*key);
        }
    })?;
    let mut removed = 0;
    for key in over {
        // A packet may have prolonged it since.
        if map.lookup(&key)?.is_some_and(|flow| is_over(&key, &flow)) && map.delete(&key)? {
            removed += 1;
        }
    }
    let fill = f64::from(u32::try_from(looked_at).unwrap_or(u32::MAX)) / f64::from(max_entries);
    Ok(Found { looked_at, removed, fill })
}

/// Sweeps all maps.
fn sweep_all(maps: &Maps, gone: &BTreeSet<IpAddr>) -> Result<Found, MapError> {
    use abi::names::{CT4_ASSURED, CT4_UNASSURED, CT6_ASSURED, CT6_UNASSURED};
    let now = ticks(monotonic_ns());
    let mut found = sweep(&*maps.ct4_assured, CT4_ASSURED.max_entries, now, gone)?;
    found.add(sweep(&*maps.ct6_assured, CT6_ASSURED.max_entries, now, gone)?);
    // These forget by themselves; they are swept for who reads them.
    let unassured = [
        sweep(&*maps.ct4_unassured, CT4_UNASSURED.max_entries, now, gone)?,
        sweep(&*maps.ct6_unassured, CT6_UNASSURED.max_entries, now, gone)?,
    ];
    found.removed += unassured.iter().map(|found| found.removed).sum::<usize>();
    found.looked_at += unassured.iter().map(|found| found.looked_at).sum::<usize>();
    Ok(found)
}

/// Sweeps for ever.
pub async fn run(
    job: Job,
    maps: Arc<kernel::datapath::Datapath>,
    endpoints: Table<Endpoint>,
    pace: Pace,
) -> Result<(), String> {
    let mut endpoints = endpoints.changes();
    let mut interval = pace.first();
    let mut due = Instant::now() + interval;
    let mut gone = BTreeSet::new();
    loop {
        tokio::select! {
            () = job.stop.cancelled() => return Ok(()),
            _ = endpoints.changed() => {
                let deleted = endpoints.take().into_iter();
                let before = gone.len();
                gone.extend(deleted.flat_map(|change| match change {
                    Change::Delete(row) => row.spec.addresses.clone(),
                    Change::Upsert(_) => Vec::new(),
                }));
                if gone.len() > before {
                    due = due.min(Instant::now() + DELETION_DELAY);
                }
                continue;
            }
            () = tokio::time::sleep_until(due) => {}
        }
        let (maps, addresses) = (Arc::clone(&maps), std::mem::take(&mut gone));
        let begun = Instant::now();
        let swept = tokio::task::spawn_blocking(move || sweep_all(&maps.maps, &addresses)).await;
        match swept.map_err(|panic| panic.to_string())? {
            Ok(found) => {
                interval = pace.next(interval, &found);
                job.ok(format_args!(
                    "removed {} of {} flows in {:?}; next in {interval:?}",
                    found.removed,
                    found.looked_at,
                    begun.elapsed()
                ));
            }
            Err(error) => job.degraded(error),
        }
        due = Instant::now() + interval;
    }
}

#[cfg(test)]
mod tests {
    use kernel::map::FakeMap;

    use super::*;

    fn key(last: u8) -> FlowKeyV4 {
        FlowKeyV4 { lower: [10, 0, 0, 1], upper: [10, 0, 0, last], ..FlowKeyV4::default() }
    }

    #[test]
    fn flows_that_are_over_go() {
        let map = FakeMap::new("ct", 8);
        for (last, expires) in [(2, 10), (3, 11), (4, 100)] {
            map.update(&key(last), &Flow { expires, ..Flow::default() }).unwrap();
        }
        let found = sweep(&map, 8, 11, &BTreeSet::new()).unwrap();
        assert_eq!((found.looked_at, found.removed), (3, 1), "the last tick still counts");
        let gone = BTreeSet::from(["10.0.0.4".parse().unwrap()]);
        let found = sweep(&map, 8, 11, &gone).unwrap();
        assert_eq!((found.looked_at, found.removed), (2, 1));
        assert!(map.lookup(&key(3)).unwrap().is_some());
    }

    #[test]
    fn searches_are_as_frequent_as_they_are_worth() {
        let pace = Pace { interval: None, interval_max: Duration::from_secs(43_200) };
        let found = |removed, fill| Found { looked_at: 100, removed, fill };
        let check = |last: u64, found: &Found, expected: u64| {
            let next = pace.next(Duration::from_secs(last), found);
            assert_eq!(next, Duration::from_secs(expected), "after {last} s, {found:?}");
        };
        check(300, &found(10, 0.1), 300);
        check(300, &found(1, 0.1), 450);
        check(300, &found(50, 0.1), 150);
        check(300, &found(100, 0.1), 10);
        check(40_000, &found(0, 0.1), 43_200);
        check(300, &found(0, 0.9), 10);
        let fixed = Pace { interval: Some(Duration::from_secs(7)), ..pace };
        assert_eq!(fixed.next(Duration::from_secs(300), &found(0, 0.0)), Duration::from_secs(7));
    }
}
