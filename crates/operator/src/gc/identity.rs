//! Identities that no pod has any more.
//!
//! An identity rests before it goes, since pods of the same labels often come back, and since an agent
//! that just took it has not written its CiliumEndpoint yet:
//!
//! ```text
//!  unused for the timeout ─► marked: annotation io.cilium.heartbeat ─► unused for the timeout ─► deleted
//!          ▲                                                                   │
//!          └───────────── used, or the object changed in any way ◄─────────────┘
//! ```
//!
//! The times are kept in memory: an operator that starts sees every identity for the first time, and
//! waits as long as if each had just been used. The deletion names the version that was seen, so an agent
//! that removes the mark to use the identity wins over us.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use api::crd::{CiliumEndpoint, CiliumIdentity, FIELD_MANAGER_OPERATOR};
use k8s_openapi::jiff::Timestamp;
use kube::Api;
use kube::api::{Patch, PatchParams};
use model::IdentityId;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::pace::Pace;
use super::{Collector, only, unless_changed};
use crate::metrics::{self, Metrics};
use crate::watch::list;

/// Annotation of an identity that will be deleted; its value is when it was marked.
pub const MARK: &str = "io.cilium.heartbeat";

/// An identity as it was listed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Its number.
    pub id: IdentityId,
    /// Which object of that name it is.
    pub uid: Option<String>,
    /// Changes with each write.
    pub resource_version: Option<String>,
    /// Whether it has the annotation.
    pub is_marked: bool,
}

/// What to do about an identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Nobody uses it: annotate it.
    Mark,
    /// It is used after all: remove the annotation.
    Unmark,
    /// Nobody used it for long enough, and nobody objected.
    Delete,
}

/// When each identity last gave a sign of life.
#[derive(Clone, Debug)]
pub struct Lifesigns {
    timeout: Duration,
    last: BTreeMap<IdentityId, Lifesign>,
}

#[derive(Clone, Debug)]
struct Lifesign {
    resource_version: Option<String>,
    at: Instant,
}

impl Lifesigns {
    /// Nothing seen yet; without a sign for `timeout` an identity counts as dead.
    pub fn new(timeout: Duration) -> Self {
        Self { timeout, last: BTreeMap::new() }
    }

    /// What to do about the identities that were listed at `now`, when these were `used`.
    pub fn decide(
        &mut self,
        identities: &[Listed],
        used: &BTreeSet<IdentityId>,
        now: Instant,
    ) -> Vec<(Listed, Action)> {
        let listed: BTreeSet<IdentityId> = identities.iter().map(|identity| identity.id).collect();
        self.last.retain(|id, _| listed.contains(id));
        let decide =
            |identity: &Listed| Some((identity.clone(), self.decide_one(identity, used, now)?));
        identities.iter().filter_map(decide).collect()
    }

    fn decide_one(
        &mut self,
        identity: &Listed,
        used: &BTreeSet<IdentityId>,
        now: Instant,
    ) -> Option<Action> {
        let is_used = used.contains(&identity.id);
        let unchanged = |last: &Lifesign| last.resource_version == identity.resource_version;
        let since = match self.last.get(&identity.id) {
            Some(last) if !is_used && unchanged(last) => last.at,
            _ => {
                let resource_version = identity.resource_version.clone();
                self.last.insert(identity.id, Lifesign { resource_version, at: now });
                now
            }
        };
        match (is_used, identity.is_marked) {
            (true, true) => Some(Action::Unmark),
            (true, false) => None,
            (false, _) if now - since < self.timeout => None,
            (false, false) => Some(Action::Mark),
            (false, true) => Some(Action::Delete),
        }
    }
}

/// Collects identities.
pub struct Identities {
    identities: Api<CiliumIdentity>,
    endpoints: Api<CiliumEndpoint>,
    lifesigns: Lifesigns,
    pace: Pace,
    metrics: Metrics,
}

/// What a round did.
#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    alive: usize,
    marked: usize,
    deleted: usize,
}

impl Identities {
    /// For the cluster behind `client`; writes at most at this pace.
    pub fn new(client: &kube::Client, timeout: Duration, pace: Pace, metrics: Metrics) -> Self {
        Self {
            identities: Api::all(client.clone()),
            endpoints: Api::all(client.clone()),
            lifesigns: Lifesigns::new(timeout),
            pace,
            metrics,
        }
    }

    async fn round(&mut self) -> kube::Result<Counts> {
        // In this order, so that whoever uses an identity of the list is in the other one, unless
        // it began just now; the timeout covers that.
        let identities = list(&self.identities, |object| listed(&object)).await?;
        let used = list(&self.endpoints, |object| used_by(&object)).await?;
        let used = used.into_iter().collect();
        let mut counts = Counts { alive: identities.len(), ..Counts::default() };
        for (identity, action) in self.lifesigns.decide(&identities, &used, Instant::now()) {
            self.pace.ready().await;
            if !self.act(&identity, action).await? {
                continue;
            }
            match action {
                Action::Mark => counts.marked += 1,
                Action::Unmark => {}
                Action::Delete => {
                    counts.deleted += 1;
                    counts.alive -= 1;
                }
            }
        }
        Ok(counts)
    }

    async fn act(&self, identity: &Listed, action: Action) -> kube::Result<bool> {
        let name = identity.id.to_string();
        let done = match action {
            Action::Mark => self.annotate(identity, json!(Timestamp::now().to_string())).await,
            Action::Unmark => self.annotate(identity, Value::Null).await,
            Action::Delete => {
                let params = only(identity.uid.clone(), identity.resource_version.clone());
                self.identities.delete(&name, &params).await.map(drop)
            }
        };
        let done = unless_changed(done)?;
        if done {
            tracing::info!(identity = name, ?action, "collecting identities");
        }
        Ok(done)
    }

    async fn annotate(&self, identity: &Listed, mark: Value) -> kube::Result<()> {
        let patch = json!({"metadata": {
            "resourceVersion": identity.resource_version,
            "annotations": {MARK: mark},
        }});
        let params = PatchParams {
            field_manager: Some(FIELD_MANAGER_OPERATOR.to_owned()),
            ..PatchParams::default()
        };
        let name = identity.id.to_string();
        self.identities.patch(&name, &params, &Patch::Merge(patch)).await.map(drop)
    }
}

impl Collector for Identities {
    const NAME: &'static str = "crd-identity-gc";

    async fn collect(&mut self) -> kube::Result<String> {
        let started = Instant::now();
        let done = self.round().await;
        let outcome = if done.is_ok() { "success" } else { "fail" };
        let labels = [("outcome", outcome), ("identity_type", "crd")];
        self.metrics.add(&metrics::IDENTITY_GC_RUNS, &labels, 1.0);
        let latency = started.elapsed().as_secs_f64();
        self.metrics.set(&metrics::IDENTITY_GC_LATENCY, &labels, latency);
        let Counts { alive, marked, deleted } = done?;
        for (status, count) in [("alive", alive), ("deleted", deleted)] {
            let labels = [("status", status), ("identity_type", "crd")];
            self.metrics.set(&metrics::IDENTITY_GC_ENTRIES, &labels, count as f64);
        }
        Ok(format!("{alive} identities, {marked} newly marked, {deleted} deleted"))
    }
}

/// What is needed of an identity. Objects whose name is no number are not ours to touch.
fn listed(object: &CiliumIdentity) -> Option<Listed> {
    let annotations = object.metadata.annotations.as_ref();
    Some(Listed {
        id: object.id().ok()?,
        uid: object.metadata.uid.clone(),
        resource_version: object.metadata.resource_version.clone(),
        is_marked: annotations.is_some_and(|annotations| annotations.contains_key(MARK)),
    })
}

/// The identity that an endpoint has.
fn used_by(object: &CiliumEndpoint) -> Option<IdentityId> {
    let identity = object.status.identity.as_ref()?;
    u32::try_from(identity.id).ok().map(IdentityId)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);
    const ID: IdentityId = IdentityId(256);

    /// The cluster's one identity as the API server has it.
    #[derive(Clone, Debug)]
    struct Server {
        version: u32,
        object: Option<bool>,
    }

    impl Server {
        fn write(&mut self, is_marked: bool) {
            self.version += 1;
            self.object = Some(is_marked);
        }

        fn list(&self) -> Vec<Listed> {
            let listed = |is_marked| Listed {
                id: ID,
                uid: None,
                resource_version: Some(self.version.to_string()),
                is_marked,
            };
            self.object.map(listed).into_iter().collect()
        }

        fn apply(&mut self, actions: &[(Listed, Action)]) {
            for (_, action) in actions {
                match action {
                    Action::Mark => self.write(true),
                    Action::Unmark => self.write(false),
                    Action::Delete => self.object = None,
                }
            }
        }
    }

    /// One letter per minute and round: `u` used, `.` unused, `t` unused and touched by another, `r` unused after
    /// a restart of the operator. One word per round that did something.
    #[track_caller]
    fn check(rounds: &str, expected: &str) {
        let start = Instant::now();
        let mut server = Server { version: 1, object: Some(false) };
        let mut lifesigns = Lifesigns::new(3 * MINUTE);
        let mut done = Vec::new();
        for (minute, letter) in (0u32..).zip(rounds.chars()) {
            match letter {
                't' => server.write(false),
                'r' => lifesigns = Lifesigns::new(3 * MINUTE),
                _ => {}
            }
            let used = BTreeSet::from_iter((letter == 'u').then_some(ID));
            let actions = lifesigns.decide(&server.list(), &used, start + minute * MINUTE);
            done.extend(actions.iter().map(|(_, action)| format!("{minute}:{action:?}")));
            server.apply(&actions);
        }
        assert_eq!(done.join(" "), expected, "{rounds}");
    }

    #[test]
    fn an_identity_rests_is_marked_rests_and_goes() {
        check("...", "");
        check(".........", "3:Mark 7:Delete");
        check("uuuuuuuu", "");
        check("uu.........", "4:Mark 8:Delete");
        // Used again: the mark goes, and all begins anew.
        check("....u........", "3:Mark 4:Unmark 8:Mark 12:Delete");
        // An agent that takes it removes the mark itself.
        check("......t.......", "3:Mark 9:Mark 13:Delete");
        // A new operator knows nothing and is patient.
        check("..r......", "5:Mark");
        check("......r...", "3:Mark 9:Delete");
    }

    proptest! {
        /// None is deleted that was used, or changed by another, within the timeout.
        #[test]
        fn one_in_use_is_never_deleted(steps in prop::collection::vec((0u8..4, 0u32..3), 1..80)) {
            let timeout = 3 * MINUTE;
            let mut now = Instant::now();
            let mut server = Server { version: 1, object: Some(false) };
            let mut lifesigns = Lifesigns::new(timeout);
            let mut sign = now;
            for (kind, minutes) in steps {
                now += minutes * MINUTE;
                match kind {
                    0 => sign = now,
                    1 if server.object.is_some() => {
                        server.write(false);
                        sign = now;
                    }
                    _ => {}
                }
                let used = BTreeSet::from_iter((kind == 0).then_some(ID));
                let actions = lifesigns.decide(&server.list(), &used, now);
                for (_, action) in &actions {
                    prop_assert!(*action == Action::Unmark || now - sign >= timeout);
                    prop_assert!(*action != Action::Delete || now - sign >= 2 * timeout);
                }
                server.apply(&actions);
                if server.object.is_none() {
                    server.write(false);
                    sign = now;
                }
            }
        }
    }

    #[test]
    fn what_is_no_number_is_not_listed() {
        let mut object = CiliumIdentity::default();
        object.metadata.name = Some("kept".to_owned());
        assert_eq!(listed(&object), None);
        object.metadata.name = Some("300".to_owned());
        object.metadata.annotations = Some(BTreeMap::from([(MARK.to_owned(), String::new())]));
        assert!(listed(&object).unwrap().is_marked);
    }
}
