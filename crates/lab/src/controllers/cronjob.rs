//! CronJobs: a Job whenever one is due.

use std::fs;
use std::path::{Component, Path};
use std::sync::Arc;

use k8s_openapi::jiff::tz::TimeZone;
use k8s_openapi::jiff::{Timestamp, Zoned};
use serde_json::{Value, json};

use super::pods::{self, is_deleting, name, owner_reference, uid};
use super::schedule::Schedule;
use super::{Action, CRON_JOBS, JOBS, Plan};

/// The machine's time zones.
const ZONES: &str = "/usr/share/zoneinfo";
/// Names the time for which a Job was made.
const SCHEDULED: &str = "batch.kubernetes.io/cronjob-scheduled-timestamp";

/// The time zone that a CronJob counts in, from the machine's database.
pub(super) fn zone(cron: &Value) -> Result<TimeZone, String> {
    let Some(name) = cron["spec"]["timeZone"].as_str() else { return Ok(TimeZone::UTC) };
    let unknown = || format!("unknown timeZone {name:?}");
    let path = Path::new(name);
    if name.is_empty() || !path.components().all(|part| matches!(part, Component::Normal(_))) {
        return Err(unknown());
    }
    let content = fs::read(Path::new(ZONES).join(path)).map_err(|_not_there| unknown())?;
    TimeZone::tzif(name, &content).map_err(|_not_a_zone| unknown())
}

/// `zone` is where the schedule counts.
pub(super) fn plan(
    cron: &Arc<Value>,
    jobs: &[Arc<Value>],
    zone: Result<TimeZone, String>,
    now: i64,
) -> Plan {
    let mut plan = Plan::default();
    if is_deleting(cron) {
        return plan;
    }
    let mut status = cron["status"].as_object().cloned().map_or_else(|| json!({}), Value::Object);
    let active = note_ends(cron, jobs, &mut status, &mut plan);
    clean_up(cron, jobs, &mut plan);
    let spec = &cron["spec"];
    match times(spec, zone, now) {
        Err(why) => plan.warning(cron, "UnparseableSchedule", why),
        Ok(_) if spec["suspend"] == true => {}
        Ok((schedule, now_there)) => {
            if let Some(next) = schedule.next(&now_there) {
                plan.again(next.timestamp().as_second() - now);
            }
            if let Some(due) = due(cron, &schedule, &now_there) {
                start(cron, &active, &due, &mut status, &mut plan);
            }
        }
    }
    plan.status(CRON_JOBS, cron, status);
    plan
}

/// The schedule, and the present time where it counts.
fn times(
    spec: &Value,
    zone: Result<TimeZone, String>,
    now: i64,
) -> Result<(Schedule, Zoned), String> {
    let text = spec["schedule"].as_str().unwrap_or_default();
    let schedule = Schedule::parse(text).map_err(|why| format!("unparseable schedule: {why}"))?;
    let now = Timestamp::from_second(now).map_err(|why| why.to_string())?;
    Ok((schedule, now.to_zoned(zone?)))
}

/// The time that is due, if there is one.
fn due(cron: &Value, schedule: &Schedule, now: &Zoned) -> Option<Zoned> {
    let latest = schedule.latest(now)?;
    let second = latest.timestamp().as_second();
    let last = pods::seconds(&cron["status"]["lastScheduleTime"]);
    let since = last.or_else(|| pods::seconds(&cron["metadata"]["creationTimestamp"]))?;
    let deadline = cron["spec"]["startingDeadlineSeconds"].as_i64();
    let in_time = deadline.is_none_or(|seconds| now.timestamp().as_second() - second <= seconds);
    (second > since && in_time).then_some(latest)
}

fn start(
    cron: &Arc<Value>,
    active: &[&Arc<Value>],
    due: &Zoned,
    status: &mut Value,
    plan: &mut Plan,
) {
    let second = due.timestamp().as_second();
    match cron["spec"]["concurrencyPolicy"].as_str() {
        Some("Forbid") if !active.is_empty() => {
            let message = "Not starting job because prior execution is running and concurrency policy is Forbid";
            return plan.event(cron, "JobAlreadyActive", message.to_owned());
        }
        Some("Replace") => {
            for job in active {
                plan.push(Action::Delete { resource: JOBS, object: (*job).clone() });
                plan.event(cron, "SuccessfulDelete", format!("Deleted job {}", name(job)));
            }
            status["active"] = json!([]);
        }
        _ => {}
    }
    let template = &cron["spec"]["jobTemplate"];
    let job_name = format!("{}-{}", name(cron), second / 60);
    let mut job = json!({
        "apiVersion": "batch/v1", "kind": "Job",
        "metadata": { "name": job_name, "namespace": cron["metadata"]["namespace"],
            "ownerReferences": [owner_reference(cron)],
            "annotations": template["metadata"]["annotations"] },
        "spec": template["spec"],
    });
    if !template["metadata"]["labels"].is_null() {
        job["metadata"]["labels"] = template["metadata"]["labels"].clone();
    }
    job["metadata"]["annotations"][SCHEDULED] =
        json!(due.strftime("%Y-%m-%dT%H:%M:%S%:z").to_string());
    plan.push(Action::Create { resource: JOBS, object: job });
    plan.event(cron, "SuccessfulCreate", format!("Created job {job_name}"));
    status["lastScheduleTime"] = json!(pods::timestamp(second));
}

/// Which Jobs run; what has ended is told, once.
fn note_ends<'a>(
    cron: &Arc<Value>,
    jobs: &'a [Arc<Value>],
    status: &mut Value,
    plan: &mut Plan,
) -> Vec<&'a Arc<Value>> {
    let known = |job: &Value| {
        let mut active = cron["status"]["active"].as_array().into_iter().flatten();
        active.any(|one| one["uid"] == job["metadata"]["uid"])
    };
    for job in jobs {
        let Some(end) = end(job) else { continue };
        if known(job) {
            let message = format!("Saw completed job: {}, condition: {end}", name(job));
            plan.event(cron, "SawCompletedJob", message);
        }
        let time = &job["status"]["completionTime"];
        if end == "Complete" && pods::seconds(time) > pods::seconds(&status["lastSuccessfulTime"]) {
            status["lastSuccessfulTime"] = time.clone();
        }
    }
    let active: Vec<&Arc<Value>> =
        jobs.iter().filter(|job| end(job).is_none() && !is_deleting(job)).collect();
    let reference = |job: &&Arc<Value>| {
        json!({ "apiVersion": "batch/v1", "kind": "Job", "name": name(job), "uid": uid(job),
            "namespace": job["metadata"]["namespace"],
            "resourceVersion": job["metadata"]["resourceVersion"] })
    };
    let references: Vec<Value> = active.iter().map(reference).collect();
    // Versions change all the time, and nobody goes by them.
    let uids = |list: &Value| -> Vec<Value> {
        list.as_array().into_iter().flatten().map(|one| one["uid"].clone()).collect()
    };
    let references = json!(references);
    if uids(&status["active"]) != uids(&references) {
        status["active"] = references;
    }
    active
}

/// How a Job has ended.
fn end(job: &Value) -> Option<&'static str> {
    ["Complete", "Failed"].into_iter().find(|kind| {
        pods::condition(&job["status"], kind).is_some_and(|one| one["status"] == "True")
    })
}

/// Removes the oldest Jobs that have ended, but for those that are to be kept.
fn clean_up(cron: &Arc<Value>, jobs: &[Arc<Value>], plan: &mut Plan) {
    for (kind, field) in
        [("Complete", "successfulJobsHistoryLimit"), ("Failed", "failedJobsHistoryLimit")]
    {
        let Some(keep) = cron["spec"][field].as_u64() else { continue };
        let mut ended: Vec<_> =
            jobs.iter().filter(|job| end(job) == Some(kind) && !is_deleting(job)).collect();
        ended.sort_by_key(|job| (pods::seconds(&job["status"]["startTime"]), name(job).to_owned()));
        let surplus = ended.len().saturating_sub(usize::try_from(keep).unwrap_or(usize::MAX));
        for job in &ended[..surplus] {
            plan.push(Action::Delete { resource: JOBS, object: (*job).clone() });
            plan.event(cron, "SuccessfulDelete", format!("Deleted job {}", name(job)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Noon of a Friday.
    const NOON: i64 = 1_795_176_000;

    fn cron(more: Value) -> Arc<Value> {
        let mut cron = json!({
            "apiVersion": "batch/v1", "kind": "CronJob",
            "metadata": {"name": "tick", "namespace": "default", "uid": "u",
                "creationTimestamp": pods::timestamp(NOON - 90)},
            "spec": {"schedule": "*/5 * * * *", "jobTemplate": {"spec": {}},
                "successfulJobsHistoryLimit": 1, "failedJobsHistoryLimit": 1},
        });
        for (key, value) in more.as_object().unwrap() {
            cron["spec"][key] = value.clone();
        }
        Arc::new(cron)
    }

    fn job(name: &str, end: Option<&str>, second: i64) -> Arc<Value> {
        let conditions: Vec<Value> =
            end.iter().map(|end| json!({"type": end, "status": "True"})).collect();
        Arc::new(json!({"metadata": {"name": name, "uid": name, "namespace": "default"},
            "status": {"startTime": pods::timestamp(second), "conditions": conditions,
                "completionTime": pods::timestamp(second + 1)}}))
    }

    fn done(plan: &Plan) -> Vec<String> {
        let say = |action: &Action| match action {
            Action::Create { object, .. } => Some(format!("create {}", name(object))),
            Action::Delete { object, .. } => Some(format!("delete {}", name(object))),
            Action::Event { reason, warning: true, .. } => Some(format!("warn {reason}")),
            _ => None,
        };
        plan.actions.iter().filter_map(say).collect()
    }

    #[test]
    fn jobs_are_made_when_they_are_due() {
        let due = format!("create tick-{}", NOON / 60);
        let check = |cron: Arc<Value>, jobs: &[Arc<Value>], now: i64, expected: &[&str]| {
            let plan = plan(&cron, jobs, Ok(TimeZone::UTC), now);
            assert_eq!(done(&plan), expected, "{cron}");
        };
        check(cron(json!({})), &[], NOON + 1, &[&due]);
        check(cron(json!({})), &[], NOON - 1, &[]);
        check(cron(json!({"suspend": true})), &[], NOON + 1, &[]);
        check(cron(json!({"startingDeadlineSeconds": 10})), &[], NOON + 11, &[]);
        check(cron(json!({"schedule": "x"})), &[], NOON + 1, &["warn UnparseableSchedule"]);
        let running = [job("old", None, NOON - 300)];
        check(cron(json!({"concurrencyPolicy": "Forbid"})), &running, NOON + 1, &[]);
        let replaced = ["delete old", due.as_str()];
        check(cron(json!({"concurrencyPolicy": "Replace"})), &running, NOON + 1, &replaced);
        check(cron(json!({})), &running, NOON + 1, &[&due]);
    }

    #[test]
    fn what_was_made_is_noted_and_the_old_goes() {
        let mut first = Value::clone(&cron(json!({})));
        let made = plan(&Arc::new(first.clone()), &[], Ok(TimeZone::UTC), NOON + 1);
        let status = made.actions.iter().find_map(|action| match action {
            Action::Status { status, .. } => Some(status.clone()),
            _ => None,
        });
        first["status"] = status.unwrap();
        assert_eq!(first["status"]["lastScheduleTime"], pods::timestamp(NOON));
        let jobs = [
            job("a", Some("Complete"), NOON - 20),
            job("b", Some("Complete"), NOON - 10),
            job("c", Some("Failed"), NOON - 5),
            job("d", None, NOON),
        ];
        let next = plan(&Arc::new(first), &jobs, Ok(TimeZone::UTC), NOON + 2);
        assert_eq!(done(&next), ["delete a"]);
        assert_eq!(next.again_after, Some(298));
        let status = next.actions.iter().find_map(|action| match action {
            Action::Status { status, .. } => Some(status.clone()),
            _ => None,
        });
        let status = status.unwrap();
        assert_eq!(status["lastSuccessfulTime"], pods::timestamp(NOON - 9));
        assert_eq!(status["active"][0]["name"], "d");
    }
}
