//! Events of the datapath, for whoever listens.
//!
//! The rings have one reader, and events cost the datapath next to nothing while nobody listens. So
//! the reader exists only while there are listeners, of which Hubble's observer is one for good: the first one makes the programs send events,
//! the last one makes them stop. Events are encoded once and shared by all listeners; one that cannot
//! keep up loses events, is told how many, and never holds up the others.

use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use abi::event::EventType;
use api::hubble::flow::LostEventSource;
use api::rest::monitor::{Frame, encode_event};
use axum::body::Bytes;
use flow::observer::Observer;
use kernel::datapath::Datapath;
use kernel::events::{EventRings, listen};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, poll};
use statedb::job::Job;
use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;

/// Batches of events that a listener may be behind.
const LISTENER_QUEUE_LEN: usize = 256;
/// Events that are encoded into one batch.
const BATCH_LEN: usize = 512;
/// Programs wake the reader when a ring begins to fill; fewer events than that wait this long.
const POLL_INTERVAL_MS: u8 = 20;
/// Everything that the programs can send.
const EVENT_TYPES: [EventType; 6] = [
    EventType::Drop,
    EventType::Debug,
    EventType::DebugCapture,
    EventType::Trace,
    EventType::PolicyVerdict,
    EventType::TraceSock,
];

/// Hands out events.
#[derive(Default)]
pub struct Monitor {
    listeners: Mutex<Vec<Listener>>,
    arrived: Notify,
    /// Hubble's observer, which always listens, where there is one.
    observer: Option<Arc<Observer>>,
    /// Bits of the types of events that nobody wants, whoever listens.
    unwanted: AtomicU64,
}

struct Listener {
    queue: mpsc::Sender<Bytes>,
    /// Events that did not fit into the queue since the last one that did.
    lost: u64,
}

impl Monitor {
    /// A monitor that hands everything to `observer` too, if there is one.
    pub fn new(observer: Option<Arc<Observer>>) -> Self {
        let monitor = Self { observer, ..Self::default() };
        if monitor.observer.is_some() {
            monitor.arrived.notify_one();
        }
        monitor
    }

    /// Hubble's observer, where there is one.
    pub fn observer(&self) -> Option<&Observer> {
        self.observer.as_deref()
    }

    /// A new listener: batches of encoded frames.
    pub fn subscribe(&self) -> mpsc::Receiver<Bytes> {
        let (queue, receiver) = mpsc::channel(LISTENER_QUEUE_LEN);
        self.listeners().push(Listener { queue, lost: 0 });
        self.arrived.notify_one();
        receiver
    }

    /// How many listen.
    pub fn listeners_len(&self) -> usize {
        self.listeners().len()
    }

    /// Whether events of this type are wanted at all; changes what the programs send at once.
    pub fn set_wanted(&self, event: EventType, wanted: bool) {
        let bit = event.listener_bit();
        if wanted {
            self.unwanted.fetch_and(!bit, Ordering::Relaxed);
        } else {
            self.unwanted.fetch_or(bit, Ordering::Relaxed);
        }
    }

    /// Whether events of this type are handed out when somebody listens.
    pub fn wants(&self, event: EventType) -> bool {
        self.unwanted.load(Ordering::Relaxed) & event.listener_bit() == 0
    }

    fn listeners(&self) -> MutexGuard<'_, Vec<Listener>> {
        self.listeners.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives a batch to everyone; false when nobody is left. An empty batch only looks who is left.
    fn publish(&self, batch: &Bytes, count: u64, now_ns: u64) -> bool {
        let mut listeners = self.listeners();
        listeners.retain_mut(|listener| {
            if batch.is_empty() {
                return !listener.queue.is_closed();
            }
            if listener.lost > 0 {
                let lost = lost_frame(listener.lost, now_ns);
                if listener.queue.try_send(lost).is_ok() {
                    listener.lost = 0;
                }
            }
            match listener.queue.try_send(batch.clone()) {
                Ok(()) => true,
                Err(mpsc::error::TrySendError::Full(_)) => {
                    listener.lost += count;
                    true
                }
                Err(mpsc::error::TrySendError::Closed(_)) => false,
            }
        });
        !listeners.is_empty() || self.observer.is_some()
    }
}

fn lost_frame(count: u64, timestamp_ns: u64) -> Bytes {
    let mut bytes = Vec::new();
    Frame::Lost { timestamp_ns, count }.encode(&mut bytes);
    bytes.into()
}

/// Reads the rings whenever somebody listens.
pub async fn run(job: Job, monitor: Arc<Monitor>, datapath: Arc<Datapath>) -> Result<(), String> {
    loop {
        tokio::select! {
            () = job.stop.cancelled() => return Ok(()),
            () = monitor.arrived.notified() => {}
        }
        let (stop, hub, datapath) = (job.stop.clone(), monitor.clone(), datapath.clone());
        // A thread, for it waits in poll(2): the rings' descriptor is not tokio's to own.
        let reader = tokio::task::spawn_blocking(move || read(&stop, &hub, &datapath));
        match reader.await.map_err(|panic| panic.to_string())? {
            Ok(()) => job.ok("nobody listens"),
            Err(error) => {
                tracing::warn!(error, "Cannot read events");
                job.degraded(error);
                monitor.listeners().clear();
            }
        }
    }
}

/// Reads until nobody listens any more.
fn read(stop: &CancellationToken, monitor: &Monitor, datapath: &Datapath) -> Result<(), String> {
    let text = |error: &dyn std::error::Error| error.to_string();
    let maps = &datapath.maps;
    let mut rings = EventRings::new(&maps.events).map_err(|e| text(&e))?;
    let _silence = Silence(datapath);
    let mut listened = Vec::new();
    let mut lost_before = maps.events.lost_per_cpu().map_err(|e| text(&e))?;
    let mut now_ns = 0;
    while !stop.is_cancelled() {
        let wanted: Vec<_> =
            EVENT_TYPES.into_iter().filter(|event| monitor.wants(*event)).collect();
        if wanted != listened {
            listen(&maps.runtime_config, &wanted).map_err(|e| text(&e))?;
            listened = wanted;
        }
        match poll(&mut [PollFd::new(rings.as_fd(), PollFlags::POLLIN)], POLL_INTERVAL_MS) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(text(&errno)),
        }
        loop {
            let mut batch = Vec::new();
            let is_heard = monitor.listeners_len() > 0;
            let mut intake = monitor.observer.as_deref().map(Observer::intake);
            let clock = WallClock::now();
            let count = rings.drain(BATCH_LEN, |event| {
                now_ns = event.timestamp_ns;
                if let Some(intake) = &mut intake {
                    intake.event(clock.at(event.timestamp_ns), event.cpu, event.payload);
                }
                if is_heard {
                    encode_event(event.timestamp_ns, event.payload, &mut batch);
                }
            });
            drop(intake);
            if !monitor.publish(&batch.into(), count as u64, now_ns) {
                return Ok(());
            }
            if count < BATCH_LEN {
                break;
            }
        }
        let lost = maps.events.lost_per_cpu().map_err(|e| text(&e))?;
        let mut total = 0;
        for (cpu, (now, before)) in (0..).zip(lost.iter().zip(&lost_before)) {
            let count = now.saturating_sub(*before);
            if let (Some(observer), 1..) = (&monitor.observer, count) {
                observer.lost(LostEventSource::PerfEventRingBuffer, count, Some(cpu));
            }
            total += count;
        }
        if total > 0 {
            monitor.publish(&lost_frame(total, now_ns), 0, now_ns);
            lost_before = lost;
        }
    }
    Ok(())
}

/// When something of CLOCK_MONOTONIC was, by the clock on the wall.
struct WallClock {
    monotonic_ns: u64,
    wall_ns: u64,
}

impl WallClock {
    fn now() -> Self {
        Self { monotonic_ns: kernel::clock::monotonic_ns(), wall_ns: flow::observer::now_ns() }
    }

    fn at(&self, monotonic_ns: u64) -> u64 {
        self.wall_ns.saturating_sub(self.monotonic_ns.saturating_sub(monotonic_ns))
    }
}

/// Makes the programs stop sending events when it goes.
struct Silence<'a>(&'a Datapath);

impl Drop for Silence<'_> {
    fn drop(&mut self) {
        if let Err(error) = listen(&self.0.maps.runtime_config, &[]) {
            tracing::warn!(%error, "Cannot switch events off");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slow_listener_loses_and_is_told() {
        let monitor = Monitor::default();
        let mut slow = monitor.subscribe();
        let batch = Bytes::from_static(b"batch");
        for _ in 0..LISTENER_QUEUE_LEN + 3 {
            assert!(monitor.publish(&batch, 2, 7));
        }
        for _ in 0..LISTENER_QUEUE_LEN {
            assert_eq!(slow.try_recv().unwrap(), batch);
        }
        assert!(monitor.publish(&batch, 2, 9));
        let frame = Frame::read(&mut &*slow.try_recv().unwrap()).unwrap();
        assert_eq!(frame, Some(Frame::Lost { timestamp_ns: 9, count: 6 }));
        assert_eq!(slow.try_recv().unwrap(), batch);
        drop(slow);
        assert!(!monitor.publish(&Bytes::new(), 0, 9), "nobody is left");
    }
}
