//! When the agent is ready, and what it still waits for.
//!
//! An agent that restarts while the API server is away may never be ready. What it knows from the
//! agent before it is enough to connect pods all the same, so after a while it does:
//! [`Ready::serves_without_cluster`].

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

/// How long an agent that was here before waits for the cluster before it goes on without.
pub const CLUSTER_PATIENCE: Duration = Duration::from_secs(10);

/// Whose turn it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum From {
    Node,
    Cluster,
}

/// The sum of what must have happened before pods can be connected; cheap to clone.
#[derive(Debug, Clone)]
pub struct Ready {
    pending: Arc<watch::Sender<BTreeMap<&'static str, From>>>,
    /// When an agent that knows its node from a checkpoint has waited long enough for the cluster.
    enough: Option<Instant>,
}

/// Something that must happen first.
#[derive(Debug)]
#[must_use = "the agent is not ready before `done`"]
pub struct Pending {
    ready: Ready,
    what: &'static str,
}

impl Ready {
    /// Ready once the returned is done, and whatever [`Ready::wait_for`] adds before that. `restart`
    /// says that an agent was here before.
    pub fn after(what: &'static str, restart: bool) -> (Self, Pending) {
        let pending = Arc::new(watch::Sender::new(BTreeMap::new()));
        let ready = Self { pending, enough: restart.then(|| Instant::now() + CLUSTER_PATIENCE) };
        let pending = ready.wait_for(what);
        (ready, pending)
    }

    /// One more thing to wait for, of this node.
    pub fn wait_for(&self, what: &'static str) -> Pending {
        self.add(what, From::Node)
    }

    /// One more thing to wait for, which the API server must give.
    pub fn wait_for_cluster(&self, what: &'static str) -> Pending {
        self.add(what, From::Cluster)
    }

    fn add(&self, what: &'static str, from: From) -> Pending {
        self.pending.send_modify(|pending| {
            pending.insert(what, from);
        });
        Pending { ready: self.clone(), what }
    }

    /// Whether everything has happened.
    pub fn is_ready(&self) -> bool {
        self.pending.borrow().is_empty()
    }

    /// Whether pods are connected with what the agent before us knew: the cluster has been silent for
    /// long. Without a word of the cluster the maps are not complete either, and need not be: what the
    /// agent before us wrote is still in them.
    pub fn serves_without_cluster(&self) -> bool {
        self.enough.is_some_and(|enough| Instant::now() >= enough)
            && self.pending.borrow().values().any(|from| *from == From::Cluster)
    }

    /// What it still waits for; empty when ready.
    pub fn reason(&self) -> String {
        let pending = self.pending.borrow();
        if pending.is_empty() {
            return String::new();
        }
        format!("waiting for {}", pending.keys().copied().collect::<Vec<_>>().join(", "))
    }

    /// Waits until everything has happened.
    pub async fn reached(&self) {
        let mut pending = self.pending.subscribe();
        // The sender lives as long as `self`.
        let _ = pending.wait_for(BTreeMap::is_empty).await;
    }

    /// Waits until pods can be connected; whether they can, after `patience`.
    pub async fn serves(&self, patience: Duration) -> bool {
        let served = async {
            match self.enough {
                Some(enough) => {
                    let _ = tokio::time::timeout_at(enough, self.reached()).await;
                    if !self.serves_without_cluster() {
                        self.reached().await;
                    }
                }
                None => self.reached().await,
            }
        };
        tokio::time::timeout(patience, served).await.is_ok()
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
        let (ready, maps) = Ready::after("maps", false);
        let pods = ready.wait_for("pods");
        assert_eq!(ready.reason(), "waiting for maps, pods");
        maps.done();
        assert!(!ready.is_ready());
        pods.done();
        ready.reached().await;
        assert_eq!(ready.reason(), "");
    }

    #[tokio::test(start_paused = true)]
    async fn a_restarted_agent_goes_on_without_the_cluster() {
        let long = 2 * CLUSTER_PATIENCE;
        for (restart, from_cluster) in [(false, true), (true, false), (true, true)] {
            let (ready, maps) = Ready::after("maps", restart);
            let waiting = if from_cluster { Some(ready.wait_for_cluster("pods")) } else { None };
            assert!(!ready.serves_without_cluster(), "not at once");
            // Maps that cannot be written are no matter of the cluster.
            assert_eq!(ready.serves(long).await, restart && from_cluster);
            assert_eq!(ready.serves_without_cluster(), restart && from_cluster);
            waiting.into_iter().for_each(Pending::done);
            assert!(!ready.serves_without_cluster());
            maps.done();
            assert!(ready.serves(long).await && ready.is_ready());
        }
    }
}
