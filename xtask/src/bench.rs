//! `bench`: figures beside their baselines, taken in the same run.
//!
//! A benchmark repeats all of its variants in turn (never one and then the other), so that what
//! else the machine does hits them alike, and reports medians, spread, and ratios of medians. The
//! table goes to the terminal and `target/bench/<name>.json`; every report names the kernel and the
//! method.

mod cluster;
mod peer;
mod plugin;
mod pods;
mod reach;
mod record;

use std::collections::BTreeMap;

use anyhow::{Context, bail};
use serde_json::{Value, json};

use crate::shell::{self, Root, output, run, say};

pub(crate) use peer::{PeerArguments, command as peer};
pub(crate) use plugin::act_as_plugin;

/// What can be measured, in the order of a full run.
const NAMES: [&str; 10] =
    ["datapath", "load", "policy", "agent-policy", "flow", "pod", "reach", "cni", "memory", "lab"];

/// Repetitions of every variant. `XTASK_BENCH_REPETITIONS` changes it for a quick look.
fn repetitions() -> usize {
    std::env::var("XTASK_BENCH_REPETITIONS").ok().and_then(|text| text.parse().ok()).unwrap_or(9)
}

/// What to measure, and how.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// One of datapath, load, policy, agent-policy, flow, pod, reach, cni, memory, lab; without a name all of them.
    name: Option<String>,
    /// Measure the release build that is there, and build nothing.
    #[arg(long)]
    as_built: bool,
    /// Write the results of this run and of earlier ones into docs/reference/performance.md.
    #[arg(long)]
    bless: bool,
}

/// Runs one benchmark, or all.
pub(crate) fn bench(root: &Root, arguments: &Arguments) -> anyhow::Result<()> {
    let name = arguments.name.as_deref();
    if let Some(name) = name
        && !NAMES.contains(&name)
    {
        bail!("no benchmark {name:?}: there are {}", NAMES.join(", "));
    }
    if !shell::is_root() {
        bail!("benchmarks load BPF programs and make network namespaces: start as root");
    }
    crate::test::lab_packages()?;
    if !arguments.as_built {
        crate::build::release(root)?;
    }
    let mut failed = Vec::new();
    for candidate in NAMES.iter().filter(|candidate| name.is_none_or(|name| name == **candidate)) {
        say(format!("bench {candidate}"));
        let result = match *candidate {
            // These need the kernel crate, so they are programs of that crate.
            "datapath" => example(root, "bench_datapath"),
            "load" => load(root),
            "policy" => policy(root),
            "agent-policy" => agent_policy(root),
            "flow" => flow(root),
            "pod" => pods::bench(root),
            "reach" => reach::bench(root),
            "cni" => plugin::bench(root),
            "memory" => cluster::memory(root),
            _ => cluster::lab(root),
        };
        if let Err(error) = result {
            eprintln!("error: bench {candidate}: {error:#}");
            failed.push(*candidate);
        }
    }
    if arguments.bless {
        record::write(root, &NAMES)?;
    }
    if !failed.is_empty() {
        bail!("these benchmarks failed: {}", failed.join(", "));
    }
    Ok(())
}

fn example(root: &Root, name: &str) -> anyhow::Result<()> {
    run(shell::cargo(root).args(["run", "--release", "--package", "kernel", "--example", name]))
}

/// `load`: verification and loading of all programs of a node, once.
fn load(root: &Root) -> anyhow::Result<()> {
    let mut report = Report::new(
        "load",
        "All maps and programs loaded and pinned, in tunnel mode with IPv4 and IPv6, default sizes of maps.",
    );
    let text = output(
        shell::cargo(root)
            .args(["run", "--release", "--package", "kernel", "--example", "bench_load", "--"])
            .arg(repetitions().to_string()),
    )?;
    report.add_lines(&text)?;
    report.limits.push(Limit {
        metric: "all programs and maps, ms",
        variant: "first start, maps are made",
        against: &[],
        at_most: Some(300.0),
        at_least: None,
    });
    report.finish(root)
}

/// `policy`: the policy engine alone in a large cluster, each time in a process of its own.
fn policy(root: &Root) -> anyhow::Result<()> {
    let mut report = Report::new(
        "policy",
        "The policy engine without agent and kernel, on one thread: 1,000 namespaces, 6,000 identities, \
         30,000 policies read from JSON; 30 local pods, each selected by 120 policies; 300 changes of \
         each kind, one at a time, from the call to the finished difference of all maps. Memory is the \
         growth of the resident set. See `crates/policy/examples/bench_policy.rs`.",
    );
    for _ in 0..repetitions().div_ceil(3) {
        let arguments = ["run", "--release", "--package", "policy", "--example", "bench_policy"];
        report.add_lines(&output(shell::cargo(root).args(arguments))?)?;
    }
    report.limits.push(Limit {
        metric: "one change, median, µs",
        variant: "policy of a namespace changed",
        against: &[],
        at_most: Some(1_000.0),
        at_least: None,
    });
    report.finish(root)
}

/// `flow`: what flows cost user space, each time in a process of its own.
fn flow(root: &Root) -> anyhow::Result<()> {
    let mut report = Report::new(
        "flow",
        "Hubble's observer without kernel, on one thread: 1,000,000 raw trace events among 1,000 pods, in \
         batches of 512, looked up and kept in a ring of 4,095; then filters and messages of its rows. See \
         `crates/flow/examples/bench_flow.rs`.",
    );
    for _ in 0..repetitions() {
        let arguments = ["run", "--release", "--package", "flow", "--example", "bench_flow"];
        report.add_lines(&output(shell::cargo(root).args(arguments))?)?;
    }
    report.limits.push(Limit {
        metric: "events per second",
        variant: "ring to row, all looked up",
        against: &[],
        at_most: None,
        at_least: Some(1_000_000.0),
    });
    report.finish(root)
}

/// `agent-policy`: one agent's policy in a large cluster, each time in a process of its own.
fn agent_policy(root: &Root) -> anyhow::Result<()> {
    let mut report = Report::new(
        "agent-policy",
        "The agent's tables, controllers and reconcilers with the kernel's maps, without an API server: \
         1,000 nodes, 30,000 pods, 6,000 identities, 30,000 policies; 30 local pods, each selected by 120 \
         policies; 20 changes per second, half of them of what local pods enforce. See \
         `crates/agent/examples/bench_agent_policy.rs`.",
    );
    for _ in 0..repetitions().div_ceil(3) {
        let arguments =
            ["run", "--release", "--package", "agent", "--example", "bench_agent_policy"];
        report.add_lines(&output(shell::cargo(root).args(arguments))?)?;
    }
    let limit = |metric, variant, at_most| Limit {
        metric,
        variant,
        against: &[],
        at_most: Some(at_most),
        at_least: None,
    };
    report.limits.push(limit("change to enforced within, ms", "half of all", 5.0));
    report.limits.push(limit("change to enforced within, ms", "99 of 100", 100.0));
    report.limits.push(limit("start to enforced, ms", "all", 10_000.0));
    report.limits.push(limit("resident memory, MiB", "after all changes", 250.0));
    report.finish(root)
}

/// Figures of one benchmark: by metric, by variant, one per repetition.
struct Report {
    name: &'static str,
    method: String,
    /// The machine's load average before: what else was going on.
    load: String,
    /// The variant that others are divided by.
    baseline: Option<&'static str>,
    metrics: BTreeMap<String, BTreeMap<String, Vec<f64>>>,
    limits: Vec<Limit>,
}

/// What a figure must reach.
struct Limit {
    metric: &'static str,
    variant: &'static str,
    /// Divides the figure, when it is a ratio that is limited: the best of these by the metric's
    /// own direction.
    against: &'static [&'static str],
    at_most: Option<f64>,
    at_least: Option<f64>,
}

impl Report {
    fn new(name: &'static str, method: impl Into<String>) -> Self {
        Self {
            name,
            method: method.into(),
            load: load_average(),
            baseline: None,
            metrics: BTreeMap::new(),
            limits: Vec::new(),
        }
    }

    fn add(&mut self, metric: &str, variant: &str, value: f64) {
        let variants = self.metrics.entry(metric.to_owned()).or_default();
        variants.entry(variant.to_owned()).or_default().push(value);
    }

    /// Adds the lines `BENCH <metric>|<variant>|<value>` of a program's output.
    fn add_lines(&mut self, text: &str) -> anyhow::Result<()> {
        for line in text.lines().filter_map(|line| line.strip_prefix("BENCH ")) {
            let words: Vec<&str> = line.split('|').collect();
            let [metric, variant, value] = words[..] else { bail!("cannot understand {line:?}") };
            self.add(metric, variant, value.parse()?);
        }
        Ok(())
    }

    fn median(&self, metric: &str, variant: &str) -> Option<f64> {
        self.metrics.get(metric)?.get(variant).map(|values| median(values))
    }

    /// Writes the JSON, and prints it as a table with the limits that were reached or missed.
    fn finish(self, root: &Root) -> anyhow::Result<()> {
        let kernel = output(std::process::Command::new("uname").arg("-sr"))?;
        let kernel = kernel.trim();
        let mut rows = Vec::new();
        for (metric, variants) in &self.metrics {
            for (variant, values) in variants {
                let ratio = self
                    .baseline
                    .filter(|baseline| baseline != variant)
                    .and_then(|baseline| self.median(metric, baseline))
                    .map(|baseline| median(values) / baseline);
                rows.push(json!({
                    "metric": metric, "variant": variant, "median": median(values),
                    "min": minimum(values), "max": maximum(values), "values": values, "ratio": ratio,
                }));
            }
        }
        let limits: Vec<Value> = self
            .limits
            .iter()
            .filter_map(|limit| self.verdict(limit))
            .map(|(limit, reached)| json!({"limit": limit, "reached": reached}))
            .collect();
        let report = json!({
            "name": self.name, "kernel": kernel, "cpus": cpus(), "load": self.load, "method": self.method,
            "rows": rows, "limits": limits,
        });
        println!("\n{}", record::markdown(&report));
        let dir = root.target().join("bench");
        std::fs::create_dir_all(&dir)?;
        let path = dir.join(format!("{}.json", self.name));
        std::fs::write(&path, serde_json::to_string_pretty(&report)?)
            .with_context(|| format!("cannot write {}", path.display()))?;
        say(format!("wrote {}", path.display()));
        Ok(())
    }

    /// What a limit says about the medians, and whether it is kept.
    fn verdict(&self, limit: &Limit) -> Option<(String, bool)> {
        let own = self.median(limit.metric, limit.variant)?;
        let others = limit.against.iter().filter_map(|other| self.median(limit.metric, other));
        // A lower bound is held against the best baseline, an upper bound against the named one.
        let base = others.fold(None, |best: Option<f64>, value| {
            Some(best.map_or(value, |best| best.max(value)))
        });
        let value = base.map_or(own, |base| own / base);
        let reached = limit.at_most.is_none_or(|bound| value <= bound)
            && limit.at_least.is_none_or(|bound| value >= bound);
        let of = if limit.against.is_empty() {
            String::new()
        } else {
            format!(" of {}", limit.against.join(" or "))
        };
        let bound = match (limit.at_most, limit.at_least) {
            (Some(bound), _) => format!("at most {bound}"),
            (_, Some(bound)) => format!("at least {bound}"),
            _ => String::new(),
        };
        Some((format!("{}, {}: {value:.3}{of} ({bound})", limit.metric, limit.variant), reached))
    }
}

/// The load average of the last minute.
fn load_average() -> String {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().unwrap_or("?").to_owned()
}

fn cpus() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get)
}

fn sorted(values: &[f64]) -> Vec<f64> {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    values
}

fn median(values: &[f64]) -> f64 {
    percentile(values, 50.0)
}

fn minimum(values: &[f64]) -> f64 {
    percentile(values, 0.0)
}

fn maximum(values: &[f64]) -> f64 {
    percentile(values, 100.0)
}

/// The nearest value with this share of the values at or below it.
fn percentile(values: &[f64], percent: f64) -> f64 {
    let values = sorted(values);
    let last = values.len().saturating_sub(1);
    let index = (percent / 100.0 * last as f64).round() as usize;
    values.get(index).copied().unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_values_that_were_seen() {
        let values = [5.0, 1.0, 4.0, 2.0, 3.0];
        assert_eq!((minimum(&values), median(&values), maximum(&values)), (1.0, 3.0, 5.0));
        assert_eq!(percentile(&values, 99.0), 5.0);
        assert!(percentile(&[], 50.0).is_nan());
    }

    #[test]
    fn limits_are_held_against_medians() {
        let mut report = Report::new("x", "none");
        for value in [1.0, 9.0, 10.0] {
            report.add("rr", "ours", value);
            report.add("rr", "routed", value + 1.0);
            report.add("rr", "bridge", value - 3.0);
        }
        let limit = |against, at_most, at_least| Limit {
            metric: "rr",
            variant: "ours",
            against,
            at_most,
            at_least,
        };
        let reached = |limit: &Limit| report.verdict(limit).unwrap().1;
        assert!(reached(&limit(&["routed"], Some(0.9), None)));
        assert!(!reached(&limit(&["routed"], Some(0.89), None)));
        assert!(!reached(&limit(&["routed", "bridge"], None, Some(0.97))));
        assert!(reached(&limit(&["bridge"], None, Some(0.97))));
        assert!(reached(&limit(&[], Some(9.0), None)));
    }
}
