//! Events of the datapath, for whoever listens.
//!
//! The rings have one reader, and events cost the datapath next to nothing while nobody listens. So
//! the reader exists only while there are listeners: the first one makes the programs send events,
//! the last one makes them stop. Events are encoded once and shared by all listeners; one that cannot
//! keep up loses events, is told how many, and never holds up the others.

use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use abi::event::EventType;
use api::rest::monitor::{Frame, encode_event};
use axum::body::Bytes;
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
const EVENT_TYPES: [EventType; 4] =
    [EventType::Drop, EventType::Debug, EventType::DebugCapture, EventType::Trace];

/// Hands out events.
#[derive(Default)]
pub struct Monitor {
    listeners: Mutex<Vec<Listener>>,
    arrived: Notify,
}

struct Listener {
    queue: mpsc::Sender<Bytes>,
    /// Events that did not fit into the queue since the last one that did.
    lost: u64,
}

impl Monitor {
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
        !listeners.is_empty()
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
    listen(&maps.runtime_config, &EVENT_TYPES).map_err(|e| text(&e))?;
    let _silence = Silence(datapath);
    let mut lost_before = maps.events.lost().map_err(|e| text(&e))?;
    let mut now_ns = 0;
    while !stop.is_cancelled() {
        match poll(&mut [PollFd::new(rings.as_fd(), PollFlags::POLLIN)], POLL_INTERVAL_MS) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(text(&errno)),
        }
        loop {
            let mut batch = Vec::new();
            let count = rings.drain(BATCH_LEN, |event| {
                now_ns = event.timestamp_ns;
                encode_event(event.timestamp_ns, event.payload, &mut batch);
            });
            if !monitor.publish(&batch.into(), count as u64, now_ns) {
                return Ok(());
            }
            if count < BATCH_LEN {
                break;
            }
        }
        let lost = maps.events.lost().map_err(|e| text(&e))?;
        if lost > lost_before {
            monitor.publish(&lost_frame(lost - lost_before, now_ns), 0, now_ns);
            lost_before = lost;
        }
    }
    Ok(())
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
