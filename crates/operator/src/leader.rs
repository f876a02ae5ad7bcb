//! Only one operator works: the one that holds a Lease.
//!
//! The protocol of Kubernetes' own components: the leader renews the lease, the others take it when
//! it was not renewed for its duration. They measure that by their own clock from the moment they saw
//! the last change, so clocks of nodes may differ.

use std::time::Duration;

use api::config::Config;
use api::crd::FIELD_MANAGER_OPERATOR;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::Api;
use kube::api::{ObjectMeta, PostParams};
use statedb::job::Job;
use tokio::time::Instant;

/// Name of the lease, Cilium's, so that its operator and ours do not work at once.
const LEASE: &str = "cilium-operator-resource-lock";

/// The wish to be the leader.
pub struct Candidate {
    api: Api<Lease>,
    identity: String,
    pace: Pace,
    seen: Option<Seen>,
}

/// The times of the protocol.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    lease_duration: Duration,
    renew_deadline: Duration,
    retry_period: Duration,
}

/// The lease as it last changed, and when we saw that.
#[derive(Clone, Debug)]
struct Seen {
    resource_version: Option<String>,
    at: Instant,
}

/// The lease could not be renewed in time: another operator may be the leader now.
#[derive(Debug, thiserror::Error)]
#[error("lost the leadership: the lease was not renewed for {} s", deadline.as_secs_f32())]
pub struct LeadershipLost {
    deadline: Duration,
    source: Option<Box<kube::Error>>,
}

/// What to do about the lease.
#[derive(Debug, PartialEq, Eq)]
enum Decision {
    /// There is none: make it.
    Create,
    /// It is ours or no one's, or its holder is silent: write it.
    Write,
    /// It is another's.
    Wait,
}

impl Candidate {
    /// A candidate of this identity, which no other living operator has: the node's name, for
    /// there is one operator per node. A restarted operator so goes on with its own lease.
    pub fn new(client: &kube::Client, config: &Config, identity: String) -> Self {
        let pace = Pace {
            lease_duration: config.leader_election_lease_duration,
            renew_deadline: config.leader_election_renew_deadline,
            retry_period: config.leader_election_retry_period,
        };
        let api = Api::namespaced(client.clone(), &config.k8s_namespace);
        Self { api, identity, pace, seen: None }
    }

    /// Waits until this operator is the leader. False when told to stop before.
    pub async fn win(&mut self, job: &Job) -> bool {
        loop {
            match self.attempt(Instant::now()).await {
                Ok(true) => {
                    tracing::info!(identity = self.identity, "leading");
                    job.ok("leading");
                    return true;
                }
                Ok(false) => job.ok("another operator leads"),
                Err(error) => job.degraded(format!("cannot read or write the lease: {error}")),
            }
            tokio::select! {
                () = job.stop.cancelled() => return false,
                () = tokio::time::sleep(self.pace.retry_period) => {}
            }
        }
    }

    /// Stays the leader until told to stop, and then gives the lease back.
    pub async fn lead(&mut self, job: &Job) -> Result<(), LeadershipLost> {
        let mut renewed = Instant::now();
        let mut last_error = None;
        loop {
            tokio::select! {
                () = job.stop.cancelled() => {
                    self.resign().await;
                    return Ok(());
                }
                () = tokio::time::sleep(self.pace.retry_period) => {}
            }
            let deadline = renewed + self.pace.renew_deadline;
            match tokio::time::timeout_at(deadline, self.attempt(Instant::now())).await {
                Ok(Ok(true)) => {
                    renewed = Instant::now();
                    job.ok("leading");
                    continue;
                }
                Ok(Ok(false)) => return Err(self.lost(last_error)),
                Ok(Err(error)) => {
                    job.degraded(format!("cannot renew the lease: {error}"));
                    last_error = Some(error);
                }
                Err(_elapsed) => {}
            }
            if Instant::now() >= deadline {
                return Err(self.lost(last_error));
            }
        }
    }

    fn lost(&self, source: Option<kube::Error>) -> LeadershipLost {
        LeadershipLost { deadline: self.pace.renew_deadline, source: source.map(Box::new) }
    }

    /// One round: whether we hold the lease now.
    async fn attempt(&mut self, now: Instant) -> kube::Result<bool> {
        let lease = self.api.get_opt(LEASE).await?;
        let params =
            PostParams { field_manager: Some(FIELD_MANAGER_OPERATOR.to_owned()), dry_run: false };
        let written = match (self.decide(lease.as_ref(), now), lease) {
            (Decision::Wait, _) => return Ok(false),
            (Decision::Write, Some(lease)) => {
                let lease = self.renewed(lease, Timestamp::now());
                self.api.replace(LEASE, &params, &lease).await
            }
            (Decision::Create | Decision::Write, _) => {
                let metadata = ObjectMeta { name: Some(LEASE.to_owned()), ..ObjectMeta::default() };
                let lease = Lease { metadata, ..Lease::default() };
                self.api.create(&params, &self.renewed(lease, Timestamp::now())).await
            }
        };
        match written {
            Ok(_) => Ok(true),
            // Another candidate was faster; the next round sees it.
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn decide(&mut self, lease: Option<&Lease>, now: Instant) -> Decision {
        let Some(lease) = lease else { return Decision::Create };
        let spec = lease.spec.as_ref();
        let holder = spec.and_then(|spec| spec.holder_identity.as_deref()).unwrap_or_default();
        if holder.is_empty() || holder == self.identity {
            return Decision::Write;
        }
        let version = &lease.metadata.resource_version;
        let since = match &self.seen {
            Some(seen) if seen.resource_version == *version => seen.at,
            _ => {
                self.seen = Some(Seen { resource_version: version.clone(), at: now });
                now
            }
        };
        let seconds = spec.and_then(|spec| spec.lease_duration_seconds).unwrap_or_default();
        let duration = Duration::from_secs(u64::try_from(seconds).unwrap_or_default());
        if now - since > duration { Decision::Write } else { Decision::Wait }
    }

    /// The lease with us as holder.
    fn renewed(&self, mut lease: Lease, now: Timestamp) -> Lease {
        let spec = lease.spec.get_or_insert_with(LeaseSpec::default);
        if spec.holder_identity.as_deref() != Some(&self.identity) {
            spec.holder_identity = Some(self.identity.clone());
            spec.acquire_time = Some(MicroTime(now));
            spec.lease_transitions = Some(spec.lease_transitions.unwrap_or_default() + 1);
        }
        // Whole seconds is what the field can say; never less than what was asked.
        let seconds = self.pace.lease_duration.as_millis().div_ceil(1000);
        spec.lease_duration_seconds = Some(i32::try_from(seconds).unwrap_or(i32::MAX));
        spec.renew_time = Some(MicroTime(now));
        lease
    }

    /// Gives the lease back, so that another operator need not wait. Best effort.
    async fn resign(&self) {
        let Ok(Some(mut lease)) = self.api.get_opt(LEASE).await else { return };
        let Some(spec) = &mut lease.spec else { return };
        if spec.holder_identity.as_deref() == Some(&self.identity) {
            spec.holder_identity = None;
            if let Err(error) = self.api.replace(LEASE, &PostParams::default(), &lease).await {
                tracing::debug!(%error, "cannot give the lease back");
            }
        }
    }
}
