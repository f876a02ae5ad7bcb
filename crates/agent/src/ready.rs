//! When the agent is ready, and what it still waits for.

use std::collections::BTreeSet;
use std::sync::Arc;

use tokio::sync::watch;

/// The sum of what must have happened before pods can be connected; cheap to clone.
#[derive(Debug, Clone)]
pub struct Ready {
    pending: Arc<watch::Sender<BTreeSet<&'static str>>>,
}

/// Something that must happen first.
#[derive(Debug)]
#[must_use = "the agent is not ready before `done`"]
pub struct Pending {
    ready: Ready,
    what: &'static str,
}

impl Ready {
    /// Ready once the returned is done, and whatever [`Ready::wait_for`] adds before that.
    pub fn after(what: &'static str) -> (Self, Pending) {
        let ready = Self { pending: Arc::new(watch::Sender::new(BTreeSet::new())) };
        let pending = ready.wait_for(what);
        (ready, pending)
    }

    /// One more thing to wait for.
    pub fn wait_for(&self, what: &'static str) -> Pending {
        self.pending.send_modify(|pending| {
            pending.insert(what);
        });
        Pending { ready: self.clone(), what }
    }

    /// Whether everything has happened.
    pub fn is_ready(&self) -> bool {
        self.pending.borrow().is_empty()
    }

    /// What it still waits for; empty when ready.
    pub fn reason(&self) -> String {
        let pending = self.pending.borrow();
        if pending.is_empty() {
            return String::new();
        }
        format!("waiting for {}", pending.iter().copied().collect::<Vec<_>>().join(", "))
    }

    /// Waits until everything has happened.
    pub async fn reached(&self) {
        let mut pending = self.pending.subscribe();
        // The sender lives as long as `self`.
        let _ = pending.wait_for(BTreeSet::is_empty).await;
    }
}

impl Pending {
    /// It has happened.
    pub fn done(self) {
        self.ready.pending.send_modify(|pending| {
            pending.remove(self.what);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn ready_when_nothing_is_pending() {
        let (ready, maps) = Ready::after("maps");
        let pods = ready.wait_for("pods");
        assert_eq!(ready.reason(), "waiting for maps, pods");
        maps.done();
        assert!(!ready.is_ready());
        pods.done();
        ready.reached().await;
        assert_eq!(ready.reason(), "");
    }
}
