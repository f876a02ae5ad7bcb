//! Workloads (`apps/v1`, `batch/v1`): the defaults that the API server fills in, and what it
//! refuses. What they lead to is done by [`crate::controllers`].

use serde_json::{Map, Value, json};

use super::names;
use super::pod;
use super::schema::object_at;
use super::status::FieldError;
use super::volume;

/// Labels by which the pods of a Job are found, the newer form last.
const JOB_LABELS: [(&str, &str); 2] = [
    ("controller-uid", "job-name"),
    ("batch.kubernetes.io/controller-uid", "batch.kubernetes.io/job-name"),
];

/// Whether the resource is one of those with a pod template.
pub(super) fn is_workload(id: &str) -> bool {
    matches!(
        id,
        "deployments.apps"
            | "replicasets.apps"
            | "daemonsets.apps"
            | "statefulsets.apps"
            | "jobs.batch"
            | "cronjobs.batch"
    )
}

/// Fills in what the manifest leaves open.
pub(super) fn default(id: &str, value: &mut Value) {
    if id == "cronjobs.batch" {
        default_cron_job(object_at(value, "spec"));
        return;
    }
    pod::default_template(object_at(value, "spec").entry("template").or_insert_with(|| json!({})));
    match id {
        "deployments.apps" => default_deployment(object_at(value, "spec")),
        "replicasets.apps" => drop(fill(object_at(value, "spec"), &[("replicas", json!(1))])),
        "daemonsets.apps" => {
            let spec = fill(object_at(value, "spec"), &[("revisionHistoryLimit", json!(10))]);
            let strategy = spec.entry("updateStrategy").or_insert_with(|| json!({}));
            default_strategy(strategy, &[("maxSurge", json!(0)), ("maxUnavailable", json!(1))]);
        }
        "statefulsets.apps" => {
            let retain = json!({ "whenDeleted": "Retain", "whenScaled": "Retain" });
            let defaults = [
                ("replicas", json!(1)),
                ("podManagementPolicy", json!("OrderedReady")),
                ("revisionHistoryLimit", json!(10)),
                ("persistentVolumeClaimRetentionPolicy", retain),
            ];
            let spec = fill(object_at(value, "spec"), &defaults);
            let strategy = spec.entry("updateStrategy").or_insert_with(|| json!({}));
            default_strategy(strategy, &[("partition", json!(0))]);
            let claims = spec.get_mut("volumeClaimTemplates").and_then(Value::as_array_mut);
            claims.into_iter().flatten().for_each(volume::default_claim_template);
        }
        "jobs.batch" => default_job(object_at(value, "spec")),
        _ => {}
    }
}

fn default_deployment(spec: &mut Map<String, Value>) {
    let defaults = [
        ("replicas", json!(1)),
        ("revisionHistoryLimit", json!(10)),
        ("progressDeadlineSeconds", json!(600)),
    ];
    let strategy = fill(spec, &defaults).entry("strategy").or_insert_with(|| json!({}));
    default_strategy(strategy, &[("maxSurge", json!("25%")), ("maxUnavailable", json!("25%"))]);
}

/// Rolling updates are the default, and they have parameters.
fn default_strategy(strategy: &mut Value, parameters: &[(&str, Value)]) {
    if strategy["type"].as_str().unwrap_or_default().is_empty() {
        strategy["type"] = json!("RollingUpdate");
    }
    if strategy["type"] == "RollingUpdate" {
        fill(object_at(strategy, "rollingUpdate"), parameters);
    }
}

fn default_job(spec: &mut Map<String, Value>) {
    // Neither: one run. Parallelism alone: as many runs as it takes for one to succeed.
    if !spec.contains_key("completions") && !spec.contains_key("parallelism") {
        spec.insert("completions".into(), json!(1));
    }
    let defaults = [
        ("parallelism", json!(1)),
        ("completionMode", json!("NonIndexed")),
        ("suspend", json!(false)),
        ("manualSelector", json!(false)),
        ("podReplacementPolicy", json!("TerminatingOrFailed")),
    ];
    let spec = fill(spec, &defaults);
    let limit = if spec.contains_key("backoffLimitPerIndex") { i64::from(i32::MAX) } else { 6 };
    fill(spec, &[("backoffLimit", json!(limit))]);
}

fn default_cron_job(spec: &mut Map<String, Value>) {
    let defaults = [
        ("concurrencyPolicy", json!("Allow")),
        ("suspend", json!(false)),
        ("successfulJobsHistoryLimit", json!(3)),
        ("failedJobsHistoryLimit", json!(1)),
    ];
    let template = fill(spec, &defaults).entry("jobTemplate").or_insert_with(|| json!({}));
    pod::default_template(object_at_value(object_at_value(template, "spec"), "template"));
}

fn fill<'a>(
    spec: &'a mut Map<String, Value>,
    defaults: &[(&str, Value)],
) -> &'a mut Map<String, Value> {
    for (name, value) in defaults {
        spec.entry(*name).or_insert_with(|| value.clone());
    }
    spec
}

/// A Job's pods are told apart from all others by its unique id.
pub(super) fn select_job_pods(job: &mut Value) {
    if job["spec"]["manualSelector"] == true {
        return;
    }
    let (uid, name) = (job["metadata"]["uid"].clone(), job["metadata"]["name"].clone());
    let template = &mut job["spec"]["template"];
    let labels = object_at(object_at_value(template, "metadata"), "labels");
    for (uid_label, name_label) in JOB_LABELS {
        labels.entry(uid_label).or_insert_with(|| uid.clone());
        labels.entry(name_label).or_insert_with(|| name.clone());
    }
    let selector = object_at_value(&mut job["spec"], "selector");
    object_at(selector, "matchLabels").entry(JOB_LABELS[1].0).or_insert(uid);
}

fn object_at_value<'a>(value: &'a mut Value, name: &str) -> &'a mut Value {
    object_at(value, name);
    &mut value[name]
}

/// The template of a workload, with the volumes that each pod gets of its own.
fn with_claims(spec: &Value) -> Value {
    let mut template = spec["template"].clone();
    for claim in spec["volumeClaimTemplates"].as_array().into_iter().flatten() {
        let volumes = object_at_value(&mut template, "spec").as_object_mut();
        let volumes = volumes.map(|spec| spec.entry("volumes").or_insert_with(|| json!([])));
        if let Some(volumes) = volumes.and_then(Value::as_array_mut) {
            volumes.retain(|volume| volume["name"] != claim["metadata"]["name"]);
            volumes.push(json!({ "name": claim["metadata"]["name"], "emptyDir": {} }));
        }
    }
    template
}

/// What is wrong with a workload, new or changed.
pub(super) fn validate(id: &str, value: &Value, errors: &mut Vec<FieldError>) {
    let spec = &value["spec"];
    if id == "cronjobs.batch" {
        validate_cron_job(spec, errors);
        return;
    }
    for name in COUNTS {
        if spec[*name].as_i64().is_some_and(|number| number < 0) {
            let detail = "must be greater than or equal to 0";
            errors.push(FieldError::invalid(format!("spec.{name}"), spec[*name].clone(), detail));
        }
    }
    validate_selector(spec, errors);
    let mut of_template = Vec::new();
    pod::validate(&with_claims(spec), &mut of_template);
    names::check_labels(
        "metadata.labels",
        &spec["template"]["metadata"]["labels"],
        &mut of_template,
    );
    for mut error in of_template {
        error.field = format!("spec.template.{}", error.field);
        errors.push(error);
    }
    let policy = &spec["template"]["spec"]["restartPolicy"];
    let field = "spec.template.spec.restartPolicy";
    if id == "jobs.batch" {
        if policy == "Always" {
            errors.push(FieldError::required(field, "valid values: \"OnFailure\", \"Never\""));
        }
        if spec["completionMode"] == "Indexed" && spec["completions"].is_null() {
            let detail = "when completion mode is Indexed";
            errors.push(FieldError::required("spec.completions", detail));
        }
        check_type(
            "spec.completionMode",
            &spec["completionMode"],
            &["NonIndexed", "Indexed"],
            errors,
        );
    } else if policy != "Always" {
        errors.push(FieldError::not_supported(field, policy.clone(), &["Always"]));
    }
    match id {
        "deployments.apps" => {
            validate_rolling(
                "spec.strategy",
                &spec["strategy"],
                &["Recreate", "RollingUpdate"],
                errors,
            );
        }
        "daemonsets.apps" => {
            let strategy = &spec["updateStrategy"];
            validate_rolling(
                "spec.updateStrategy",
                strategy,
                &["RollingUpdate", "OnDelete"],
                errors,
            );
        }
        "statefulsets.apps" => {
            let claims = spec["volumeClaimTemplates"].as_array().into_iter().flatten();
            for (index, claim) in claims.enumerate() {
                let field = format!("spec.volumeClaimTemplates[{index}]");
                volume::validate_claim_template(&field, claim, errors);
            }
            let kinds = ["RollingUpdate", "OnDelete"];
            check_type("spec.updateStrategy.type", &spec["updateStrategy"]["type"], &kinds, errors);
            let policies = ["OrderedReady", "Parallel"];
            check_type("spec.podManagementPolicy", &spec["podManagementPolicy"], &policies, errors);
        }
        _ => {}
    }
}

fn validate_cron_job(spec: &Value, errors: &mut Vec<FieldError>) {
    let schedule = spec["schedule"].as_str().unwrap_or_default();
    let fields = schedule.split_whitespace().count();
    if schedule.is_empty() {
        errors.push(FieldError::required("spec.schedule", ""));
    } else if schedule.contains("TZ=") {
        let detail = "cannot use TZ or CRON_TZ in schedule, use timeZone field instead";
        errors.push(FieldError::invalid("spec.schedule", schedule, detail));
    } else if fields != 5 && !schedule.starts_with('@') {
        let detail = format!("expected exactly 5 fields, found {fields}: [{schedule}]");
        errors.push(FieldError::invalid("spec.schedule", schedule, detail));
    }
    let policies = ["Allow", "Forbid", "Replace"];
    check_type("spec.concurrencyPolicy", &spec["concurrencyPolicy"], &policies, errors);
    let template = &spec["jobTemplate"]["spec"]["template"];
    let mut of_template = Vec::new();
    pod::validate(template, &mut of_template);
    for mut error in of_template {
        error.field = format!("spec.jobTemplate.spec.template.{}", error.field);
        errors.push(error);
    }
    if template["spec"]["restartPolicy"] == "Always" {
        let field = "spec.jobTemplate.spec.template.spec.restartPolicy";
        let policies = ["OnFailure", "Never"];
        errors.push(FieldError::not_supported(field, "Always", &policies));
    }
}

/// Fields that count something.
const COUNTS: &[&str] = &[
    "replicas",
    "minReadySeconds",
    "revisionHistoryLimit",
    "progressDeadlineSeconds",
    "completions",
    "parallelism",
    "backoffLimit",
    "activeDeadlineSeconds",
    "ttlSecondsAfterFinished",
];

fn check_type(field: &str, value: &Value, choices: &[&str], errors: &mut Vec<FieldError>) {
    if !choices.contains(&value.as_str().unwrap_or_default()) {
        errors.push(FieldError::not_supported(field, value.clone(), choices));
    }
}

fn validate_selector(spec: &Value, errors: &mut Vec<FieldError>) {
    let selector = &spec["selector"];
    if selector.is_null() {
        errors.push(FieldError::required("spec.selector", ""));
        return;
    }
    let is_empty = |name: &str| {
        selector[name].as_object().is_none_or(Map::is_empty)
            && selector[name].as_array().is_none_or(Vec::is_empty)
    };
    if is_empty("matchLabels") && is_empty("matchExpressions") {
        let detail = "empty selector is invalid for workloads";
        errors.push(FieldError::invalid("spec.selector", selector.clone(), detail));
        return;
    }
    names::check_labels("spec.selector.matchLabels", &selector["matchLabels"], errors);
    let labels = &spec["template"]["metadata"]["labels"];
    if !crate::controllers::selects(selector, labels) {
        let value = if labels.is_null() { json!({}) } else { labels.clone() };
        let detail = "`selector` does not match template `labels`";
        errors.push(FieldError::invalid("spec.template.metadata.labels", value, detail));
    }
}

fn validate_rolling(field: &str, strategy: &Value, kinds: &[&str], errors: &mut Vec<FieldError>) {
    check_type(&format!("{field}.type"), &strategy["type"], kinds, errors);
    let rolling = &strategy["rollingUpdate"];
    if strategy["type"] != "RollingUpdate" {
        if rolling.is_object() {
            let kind = strategy["type"].as_str().unwrap_or_default();
            let detail = format!("may not be specified when strategy `type` is '{kind}'");
            errors.push(FieldError::forbidden(format!("{field}.rollingUpdate"), detail));
        }
        return;
    }
    let mut zero = true;
    for name in ["maxSurge", "maxUnavailable"] {
        let value = &rolling[name];
        let field = format!("{field}.rollingUpdate.{name}");
        match value {
            Value::Number(number) if number.as_i64().is_some_and(|n| n >= 0) => {
                zero &= number.as_i64() == Some(0);
            }
            Value::String(text) => match text.strip_suffix('%').and_then(|t| t.parse::<u32>().ok())
            {
                Some(percent) => zero &= percent == 0,
                None => {
                    let detail = "a valid percent string must be a numeric string followed by an ending '%' (e.g. '1%',  or '93%', regex used for validation is '[0-9]+%')";
                    errors.push(FieldError::invalid(field, text.as_str(), detail));
                    zero = false;
                }
            },
            other => {
                let detail = "must be greater than or equal to 0";
                errors.push(FieldError::invalid(field, other.clone(), detail));
                zero = false;
            }
        }
    }
    if zero {
        let detail = "may not be 0 when `maxSurge` is 0";
        let value = rolling["maxUnavailable"].clone();
        errors.push(FieldError::invalid(
            format!("{field}.rollingUpdate.maxUnavailable"),
            value,
            detail,
        ));
    }
}

/// What may not change once it is there.
pub(super) fn validate_update(id: &str, new: &Value, old: &Value, errors: &mut Vec<FieldError>) {
    if id == "cronjobs.batch" {
        return;
    }
    let (before, after) = (&old["spec"], &new["spec"]);
    if id == "statefulsets.apps" {
        let free = [
            "replicas",
            "ordinals",
            "template",
            "updateStrategy",
            "revisionHistoryLimit",
            "persistentVolumeClaimRetentionPolicy",
            "minReadySeconds",
        ];
        let fixed = |spec: &Value| {
            let mut spec = spec.as_object().cloned().unwrap_or_default();
            spec.retain(|name, _| !free.contains(&name.as_str()));
            spec
        };
        if fixed(before) != fixed(after) {
            let detail = "updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', 'updateStrategy', 'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are forbidden";
            errors.push(FieldError::forbidden("spec", detail));
        }
        return;
    }
    let mut fixed = vec!["selector"];
    if id == "jobs.batch" {
        fixed.push("completionMode");
        if before["completionMode"] != "Indexed" {
            fixed.push("completions");
        }
        let may_move = before["suspend"] == true && old["status"]["startTime"].is_null();
        if !may_move {
            fixed.push("template");
        }
    }
    for name in fixed {
        if before[name] != after[name] {
            let value = after[name].clone();
            errors.push(FieldError::invalid(format!("spec.{name}"), value, "field is immutable"));
        }
    }
}
