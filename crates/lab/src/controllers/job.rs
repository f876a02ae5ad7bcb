//! Jobs: pods until enough of them have succeeded, or too many have failed.

use std::collections::BTreeSet;
use std::sync::Arc;

use serde_json::{Value, json};

use super::pods::{self, is_active, is_deleting, is_ready, name, phase, set_condition};
use super::{Action, JOBS, PODS, Plan};

/// Before a failed pod is replaced: doubles with each failure, up to the maximum.
const BACKOFF_SECONDS: i64 = 10;
const BACKOFF_SECONDS_MAX: i64 = 600;
const INDEX: &str = "batch.kubernetes.io/job-completion-index";

pub(super) fn plan(job: &Arc<Value>, owned: &[Arc<Value>], now: i64) -> Plan {
    let mut plan = Plan::default();
    if is_deleting(job) {
        return plan;
    }
    if let Some(end) = finished_at(job) {
        if let Some(keep) = job["spec"]["ttlSecondsAfterFinished"].as_i64() {
            match end + keep - now {
                left if left > 0 => plan.again(left),
                _ => plan.push(Action::Delete { resource: JOBS, object: job.clone() }),
            }
        }
        return plan;
    }
    let state = State::new(job, owned, now);
    let end = state.verdict();
    let mut status = state.status();
    if let Some(end) = &end {
        let (kind, earlier) = match end.complete {
            true => ("Complete", "SuccessCriteriaMet"),
            false => ("Failed", "FailureTarget"),
        };
        for pod in state.pods.iter().filter(|pod| is_active(pod)) {
            plan.push(Action::Delete { resource: PODS, object: (*pod).clone() });
        }
        set_condition(&mut status, earlier, true, end.reason, &end.message, now);
        set_condition(&mut status, kind, true, end.reason, &end.message, now);
        status["active"] = json!(0);
        status["ready"] = json!(0);
        if end.complete {
            status["completionTime"] = json!(pods::timestamp(now));
            plan.event(job, "Completed", "Job completed".into());
        } else {
            plan.warning(job, end.reason, end.message.clone());
        }
    } else if job["spec"]["suspend"] == true {
        for pod in state.pods.iter().filter(|pod| is_active(pod)) {
            plan.push(Action::Delete { resource: PODS, object: (*pod).clone() });
        }
        if let Some(map) = status.as_object_mut() {
            map.remove("startTime");
        }
        set_condition(&mut status, "Suspended", true, "JobSuspended", "Job suspended", now);
    } else {
        if pods::condition(&status, "Suspended").is_some_and(|one| one["status"] == "True") {
            set_condition(&mut status, "Suspended", false, "JobResumed", "Job resumed", now);
        }
        state.run(&mut plan);
    }
    plan.status(JOBS, job, status);
    plan
}

/// Why a Job is over.
struct End {
    complete: bool,
    reason: &'static str,
    message: String,
}

struct State<'a> {
    job: &'a Arc<Value>,
    pods: Vec<&'a Arc<Value>>,
    active: i64,
    failed: i64,
    /// Pods, or distinct indexes of pods, that have succeeded.
    succeeded: i64,
    succeeded_indexes: BTreeSet<i64>,
    now: i64,
}

impl<'a> State<'a> {
    fn new(job: &'a Arc<Value>, owned: &'a [Arc<Value>], now: i64) -> Self {
        let pods: Vec<&Arc<Value>> = owned.iter().collect();
        let count = |test: &dyn Fn(&Value) -> bool| {
            i64::try_from(pods.iter().filter(|pod| test(pod)).count()).unwrap_or(i64::MAX)
        };
        let before = |field: &str| job["status"][field].as_i64().unwrap_or(0);
        let mut succeeded_indexes =
            parse_indexes(job["status"]["completedIndexes"].as_str().unwrap_or_default());
        let succeeded = if is_indexed(job) {
            let over = pods.iter().filter(|pod| phase(pod) == "Succeeded");
            succeeded_indexes.extend(over.filter_map(|pod| index_of(pod)));
            i64::try_from(succeeded_indexes.len()).unwrap_or(i64::MAX)
        } else {
            // What has happened stays so when somebody deletes the pod that it happened to.
            count(&|pod| phase(pod) == "Succeeded").max(before("succeeded"))
        };
        Self {
            job,
            active: count(&is_active),
            failed: count(&|pod| phase(pod) == "Failed").max(before("failed")),
            succeeded,
            succeeded_indexes,
            pods,
            now,
        }
    }

    fn spec(&self, field: &str) -> Option<i64> {
        self.job["spec"][field].as_i64()
    }

    fn start(&self) -> i64 {
        pods::seconds(&self.job["status"]["startTime"]).unwrap_or(self.now)
    }

    fn verdict(&self) -> Option<End> {
        let end = |complete, reason, message: &str| {
            Some(End { complete, reason, message: message.into() })
        };
        let restarts = |pod: &Value| -> i64 {
            let statuses = ["initContainerStatuses", "containerStatuses"];
            let all = statuses
                .iter()
                .flat_map(|list| pod["status"][*list].as_array().into_iter().flatten());
            all.filter_map(|one| one["restartCount"].as_i64()).sum()
        };
        let limit = self.spec("backoffLimit").unwrap_or(6);
        let in_place = self.job["spec"]["template"]["spec"]["restartPolicy"] == "OnFailure";
        let live = self.pods.iter().filter(|pod| is_active(pod) && in_place);
        // Pods that restart their containers fail without ever having failed.
        let restarted = live.map(|pod| restarts(pod)).sum::<i64>();
        if self.failed > limit || restarted >= limit.max(1) {
            return end(
                false,
                "BackoffLimitExceeded",
                "Job has reached the specified backoff limit",
            );
        }
        if let Some(limit) = self.spec("activeDeadlineSeconds")
            && self.job["spec"]["suspend"] != true
            && self.now - self.start() >= limit
        {
            return end(false, "DeadlineExceeded", "Job was active longer than specified deadline");
        }
        let done = match self.spec("completions") {
            Some(completions) => self.succeeded >= completions,
            None => self.succeeded > 0 && self.active == 0,
        };
        if done {
            return end(true, "CompletionsReached", "Reached expected number of succeeded pods");
        }
        None
    }

    /// Starts the pods that are missing, ends those that are too many.
    fn run(&self, plan: &mut Plan) {
        if let Some(limit) = self.spec("activeDeadlineSeconds") {
            plan.again(self.start().saturating_add(limit) - self.now);
        }
        let parallelism = self.spec("parallelism").unwrap_or(1);
        let wanted = match self.spec("completions") {
            Some(completions) => parallelism.min(completions - self.succeeded),
            // Once one has succeeded no others are started.
            None if self.succeeded > 0 => parallelism.min(self.active),
            None => parallelism,
        };
        if self.active > wanted {
            let mut active: Vec<Arc<Value>> =
                self.pods.iter().filter(|pod| is_active(pod)).map(|pod| (*pod).clone()).collect();
            pods::least_needed_first(&mut active);
            let surplus = usize::try_from(self.active - wanted).unwrap_or(0);
            for pod in &active[..surplus.min(active.len())] {
                plan.push(Action::Delete { resource: PODS, object: pod.clone() });
                plan.event(self.job, "SuccessfulDelete", format!("Deleted pod: {}", name(pod)));
            }
            return;
        }
        // A pod that is about to end still takes its place.
        let ending =
            self.pods.iter().filter(|pod| is_deleting(pod) && phase(pod) == "Running").count();
        let missing = wanted - self.active - i64::try_from(ending).unwrap_or(0);
        if missing <= 0 {
            return;
        }
        let wait = self.backoff_left();
        if wait > 0 {
            plan.again(wait);
            return;
        }
        for index in self.next_indexes(missing) {
            plan.push(Action::Create { resource: PODS, object: self.pod(index) });
        }
    }

    /// Seconds until the next attempt after a failure.
    fn backoff_left(&self) -> i64 {
        let failed = self.pods.iter().filter(|pod| phase(pod) == "Failed");
        let Some(last) = failed.filter_map(|pod| ended_at(pod)).max() else { return 0 };
        let doublings = u32::try_from(self.failed - 1).unwrap_or(0).min(10);
        let wait = (BACKOFF_SECONDS << doublings).min(BACKOFF_SECONDS_MAX);
        (last + wait - self.now).max(0)
    }

    /// The indexes of the next pods; `None` where pods have no index.
    fn next_indexes(&self, count: i64) -> Vec<Option<i64>> {
        let count = usize::try_from(count).unwrap_or(0);
        if !is_indexed(self.job) {
            return vec![None; count];
        }
        let running: BTreeSet<i64> =
            self.pods.iter().filter(|pod| is_active(pod)).filter_map(|pod| index_of(pod)).collect();
        let all = 0..self.spec("completions").unwrap_or(0);
        let open = all.filter(|n| !running.contains(n) && !self.succeeded_indexes.contains(n));
        open.take(count).map(Some).collect()
    }

    fn pod(&self, index: Option<i64>) -> Value {
        let mut pod = pods::from_template(self.job);
        let Some(index) = index else { return pod };
        pod["metadata"]["generateName"] = json!(format!("{}-{index}-", name(self.job)));
        pod["metadata"]["labels"][INDEX] = json!(index.to_string());
        pod["metadata"]["annotations"][INDEX] = json!(index.to_string());
        pod["spec"]["hostname"] = json!(format!("{}-{index}", name(self.job)));
        for list in ["initContainers", "containers"] {
            for container in pod["spec"][list].as_array_mut().into_iter().flatten() {
                let path = format!("metadata.annotations['{INDEX}']");
                let variable = json!({ "name": "JOB_COMPLETION_INDEX",
                    "valueFrom": { "fieldRef": { "fieldPath": path } } });
                match container["env"].as_array_mut() {
                    Some(env) => env.push(variable),
                    None => container["env"] = json!([variable]),
                }
            }
        }
        pod
    }

    fn status(&self) -> Value {
        let ready = self.pods.iter().filter(|pod| is_active(pod) && is_ready(pod)).count();
        let terminating = self.pods.iter().filter(|pod| is_deleting(pod)).count();
        let mut status = json!({
            "active": self.active, "ready": ready, "terminating": terminating,
            "succeeded": self.succeeded, "failed": self.failed,
            "startTime": pods::timestamp(self.start()),
            "uncountedTerminatedPods": {},
        });
        if is_indexed(self.job) {
            status["completedIndexes"] = json!(indexes_text(&self.succeeded_indexes));
        }
        if !self.job["status"]["conditions"].is_null() {
            status["conditions"] = self.job["status"]["conditions"].clone();
        }
        status
    }
}

fn is_indexed(job: &Value) -> bool {
    job["spec"]["completionMode"] == "Indexed"
}

fn index_of(pod: &Value) -> Option<i64> {
    pod["metadata"]["annotations"][INDEX].as_str()?.parse().ok()
}

/// When a pod's last container ended.
fn ended_at(pod: &Value) -> Option<i64> {
    let statuses = pod["status"]["containerStatuses"].as_array().into_iter().flatten();
    let ends = statuses.filter_map(|one| pods::seconds(&one["state"]["terminated"]["finishedAt"]));
    ends.max().or_else(|| pods::seconds(&pod["metadata"]["creationTimestamp"]))
}

/// When a Job was over, if it is.
fn finished_at(job: &Value) -> Option<i64> {
    let over =
        |kind: &str| pods::condition(&job["status"], kind).filter(|one| one["status"] == "True");
    let condition = over("Complete").or_else(|| over("Failed"))?;
    pods::seconds(&condition["lastTransitionTime"])
}

/// `0-2,5` for 0, 1, 2 and 5.
fn indexes_text(indexes: &BTreeSet<i64>) -> String {
    let mut ranges: Vec<(i64, i64)> = Vec::new();
    for index in indexes {
        match ranges.last_mut() {
            Some((_, end)) if *end + 1 == *index => *end = *index,
            _ => ranges.push((*index, *index)),
        }
    }
    let text = ranges.iter().map(|(start, end)| match end - start {
        0 => start.to_string(),
        _ => format!("{start}-{end}"),
    });
    text.collect::<Vec<_>>().join(",")
}

fn parse_indexes(text: &str) -> BTreeSet<i64> {
    let ranges = text.split(',').filter_map(|range| {
        let (start, end) = range.split_once('-').unwrap_or((range, range));
        Some(start.parse::<i64>().ok()?..=end.parse::<i64>().ok()?)
    });
    ranges.flatten().collect()
}
