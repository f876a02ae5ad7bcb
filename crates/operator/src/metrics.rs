//! What the operator counts, with Cilium's names.
//!
//! Values are set by the jobs; what jobs' health lines already count is read from there. The text for
//! Prometheus and the JSON of the API are two renderings of the same [`Sample`]s.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::{Arc, Mutex, PoisonError};

use serde::Serialize;
use statedb::Snapshot;
use statedb::job::Health;

/// Before the name of each metric.
const PREFIX: &str = "cilium_operator_";

/// A metric: its name without the prefix, its type, and what it means.
#[derive(Debug)]
pub struct Family {
    name: &'static str,
    kind: &'static str,
    help: &'static str,
}

/// `{status,identity_type}`
pub static IDENTITY_GC_ENTRIES: Family = Family {
    name: "identity_gc_entries",
    kind: "gauge",
    help: "Identities that were alive, and that were deleted, at the end of the last run",
};
/// `{outcome,identity_type}`
pub static IDENTITY_GC_RUNS: Family = Family {
    name: "identity_gc_runs",
    kind: "gauge",
    help: "Runs of the collection of identities",
};
/// `{outcome,identity_type}`
pub static IDENTITY_GC_LATENCY: Family = Family {
    name: "identity_gc_latency",
    kind: "gauge",
    help: "Seconds that the last run of the collection of identities took",
};
/// `{category}`
pub static IPAM_NODES: Family = Family {
    name: "ipam_nodes",
    kind: "gauge",
    help: "Nodes that are given pod CIDRs: in total, and those that lack one",
};
/// Without labels.
pub static UNMANAGED_PODS: Family = Family {
    name: "unmanaged_pods",
    kind: "gauge",
    help: "Running pods of pod-restart-selector that Cilium does not manage",
};
/// `{status,group_name}`
static CONTROLLERS_GROUP_RUNS: Family = Family {
    name: "controllers_group_runs_total",
    kind: "counter",
    help: "Runs of jobs, by outcome",
};

/// All of them, in the order in which they are shown.
static FAMILIES: [&Family; 6] = [
    &CONTROLLERS_GROUP_RUNS,
    &IDENTITY_GC_ENTRIES,
    &IDENTITY_GC_LATENCY,
    &IDENTITY_GC_RUNS,
    &IPAM_NODES,
    &UNMANAGED_PODS,
];

/// Labels of a metric, by name.
pub type LabelValues = BTreeMap<String, String>;

/// The values; cheap to clone, and all clones are one.
#[derive(Clone, Debug, Default)]
pub struct Metrics(Arc<Mutex<BTreeMap<(&'static str, LabelValues), f64>>>);

/// A value with its full name, as the API shows it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Sample {
    /// With the prefix.
    pub name: String,
    /// Its labels.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: LabelValues,
    /// Its value.
    pub value: f64,
}

impl Metrics {
    /// Sets a value.
    pub fn set(&self, family: &Family, labels: &[(&str, &str)], value: f64) {
        self.change(family, labels, |_| value);
    }

    /// Adds to a value.
    pub fn add(&self, family: &Family, labels: &[(&str, &str)], value: f64) {
        self.change(family, labels, |before| before + value);
    }

    fn change(&self, family: &Family, labels: &[(&str, &str)], change: impl FnOnce(f64) -> f64) {
        let labels = labels.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
        let mut values = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let value = values.entry((family.name, labels)).or_default();
        *value = change(*value);
    }

    /// All values, those of the jobs included.
    pub fn samples(&self, jobs: &Snapshot<Health>) -> Vec<Sample> {
        let runs = Self::default();
        for job in jobs.rows() {
            for (status, count) in [("success", job.successes), ("failure", job.failures)] {
                let labels = [("status", status), ("group_name", job.name.as_str())];
                runs.set(&CONTROLLERS_GROUP_RUNS, &labels, count as f64);
            }
        }
        let mut samples = runs.stored();
        samples.extend(self.stored());
        samples
    }

    fn stored(&self) -> Vec<Sample> {
        let values = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let sample = |((name, labels), value): (&(&str, LabelValues), &f64)| Sample {
            name: format!("{PREFIX}{name}"),
            labels: labels.clone(),
            value: *value,
        };
        values.iter().map(sample).collect()
    }
}

/// The values as Prometheus reads them (text exposition format 0.0.4).
pub fn exposition(samples: &[Sample]) -> String {
    let mut text = String::new();
    for Family { name, kind, help } in FAMILIES {
        let name = format!("{PREFIX}{name}");
        let of_family: Vec<&Sample> = samples.iter().filter(|sample| sample.name == name).collect();
        if of_family.is_empty() {
            continue;
        }
        let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
        for Sample { labels, value, .. } in of_family {
            let label =
                |(name, value): (&String, &String)| format!("{name}=\"{}\"", escaped(value));
            let labels: Vec<String> = labels.iter().map(label).collect();
            let _ = match labels.is_empty() {
                true => writeln!(text, "{name} {value}"),
                false => writeln!(text, "{name}{{{}}} {value}", labels.join(",")),
            };
        }
    }
    text
}

fn escaped(value: &str) -> String {
    value.replace('\\', r"\\").replace('"', r#"\""#).replace('\n', r"\n")
}

#[cfg(test)]
mod tests {
    use statedb::job::Group;

    use super::*;

    #[test]
    fn values_have_two_renderings() {
        let metrics = Metrics::default();
        metrics.add(&IDENTITY_GC_RUNS, &[("outcome", "success"), ("identity_type", "crd")], 1.0);
        metrics.add(&IDENTITY_GC_RUNS, &[("outcome", "success"), ("identity_type", "crd")], 1.0);
        metrics.set(&IPAM_NODES, &[("category", "a\"b\\")], 0.5);
        let samples = metrics.samples(&Group::new().health().snapshot());
        assert_eq!(
            exposition(&samples),
            "# HELP cilium_operator_identity_gc_runs Runs of the collection of identities\n\
             # TYPE cilium_operator_identity_gc_runs gauge\n\
             cilium_operator_identity_gc_runs{identity_type=\"crd\",outcome=\"success\"} 2\n\
             # HELP cilium_operator_ipam_nodes \
             Nodes that are given pod CIDRs: in total, and those that lack one\n\
             # TYPE cilium_operator_ipam_nodes gauge\n\
             cilium_operator_ipam_nodes{category=\"a\\\"b\\\\\"} 0.5\n"
        );
        assert_eq!(
            serde_json::to_value(&samples[1]).unwrap(),
            serde_json::json!({
                "name": "cilium_operator_ipam_nodes",
                "labels": {"category": "a\"b\\"},
                "value": 0.5,
            })
        );
    }

    #[tokio::test]
    async fn runs_of_jobs_are_counted() {
        let jobs = Group::new();
        jobs.spawn("work", |job| async move {
            job.ok("");
            job.degraded("no luck");
            job.ok("");
            Ok::<(), String>(())
        });
        jobs.health().wait_for(|jobs| jobs.rows().any(|job| job.successes == 2)).await;
        let text = exposition(&Metrics::default().samples(&jobs.health().snapshot()));
        for (status, count) in [("success", 2), ("failure", 1)] {
            let line = format!("{{group_name=\"work\",status=\"{status}\"}} {count}\n");
            assert!(text.contains(&line), "{text}");
        }
    }
}
