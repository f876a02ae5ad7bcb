//! `bench cni`: the CNI plugin, from exec to its result, while pods are created at a steady pace.
//!
//! The lab starts the plugin that lies beside its own binary. For this benchmark that is a copy of
//! this xtask, which starts the real plugin, waits for it, and notes how long it took: it is
//! measured as a container runtime sees it, in a lab that does all it always does.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use super::cluster::{Lab, at_most, pod_on};
use super::{Report, percentile};
use crate::shell::{Root, say};

/// Pods of one round, and their pace.
const PODS: usize = 200;
const INTERVAL: Duration = Duration::from_millis(20);
/// Rounds: each creates all pods, then replaces them.
const ROUNDS: usize = 5;

/// Name of the real plugin, beside the one that measures.
const REAL: &str = "cilium-cni.real";
/// What the measuring plugin writes, beside itself: `<command> <microseconds> <exit status>`.
const LOG: &str = "cilium-cni.log";

/// Runs as the plugin when called by its name.
pub(crate) fn act_as_plugin() -> Option<ExitCode> {
    let own = std::env::current_exe().ok()?;
    (own.file_name()? == "cilium-cni").then(|| match timed(&own) {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            // A runtime expects an error as JSON on standard output (CNI 1.1, section 5).
            println!(
                "{}",
                serde_json::json!({"cniVersion": "1.1.0", "code": 999, "msg": format!("{error:#}")})
            );
            ExitCode::FAILURE
        }
    })
}

fn timed(own: &Path) -> anyhow::Result<u8> {
    let dir = own.parent().context("an executable without a directory")?;
    let started = Instant::now();
    let status = Command::new(dir.join(REAL)).status()?;
    let took_us = started.elapsed().as_micros();
    let command = std::env::var("CNI_COMMAND").unwrap_or_default();
    let code = status.code().unwrap_or(-1);
    let mut log = OpenOptions::new().create(true).append(true).open(dir.join(LOG))?;
    // One write: lines of plugins that run at once do not mix.
    log.write_all(format!("{command} {took_us} {code}\n").as_bytes())?;
    Ok(u8::try_from(code).unwrap_or(1))
}

/// A directory with the release's programs, and the plugin replaced.
fn programs(root: &Root) -> anyhow::Result<PathBuf> {
    let dir = root.target().join("bench/bin");
    std::fs::create_dir_all(&dir)?;
    let release = root.target().join("release");
    for program in crate::build::PROGRAMS {
        let name = if program == "cilium-cni" { REAL } else { program };
        std::fs::copy(release.join(program), dir.join(name))?;
    }
    std::fs::copy(std::env::current_exe()?, dir.join("cilium-cni"))?;
    Ok(dir)
}

/// Measures ADD alone, then ADD while as many pods are deleted.
pub(super) fn bench(root: &Root) -> anyhow::Result<()> {
    let dir = programs(root)?;
    let log = dir.join(LOG);
    let mut report = Report::new(
        "cni",
        format!(
            "cilium-cni from exec to exit, as the lab's pod runner starts it; {PODS} pods on one node created at 50 \
             per second, then replaced (as many deleted as created); {ROUNDS} rounds, a percentile of each."
        ),
    );
    // Pools with room for those that leave and those that come.
    let settings = ["cluster-pool-ipv4-mask-size=22", "cluster-pool-ipv6-mask-size=118"];
    let lab = Lab::up_with(root, &dir.join("cilium"), "bench-cni", 1, &[], &settings)?;
    for round in 0..ROUNDS {
        say(format!("round {} of {ROUNDS}", round + 1));
        let name = |half: &str, index: usize| format!("bench-{round}-{half}-{index}");
        let first: Vec<String> = (0..PODS).map(|index| name("a", index)).collect();
        let second: Vec<String> = (0..PODS).map(|index| name("b", index)).collect();

        let _ = std::fs::remove_file(&log);
        create(&lab, &first, "a")?;
        lab.wait_for_pods(PODS)?;
        record(&mut report, &log, "ADD", "ADD alone")?;

        let _ = std::fs::remove_file(&log);
        // By label: kubectl asks for named pods one by one, a few per second.
        let delete = ["delete", "pod", "--wait=false", "-l", "half=a"];
        let mut deletion = lab.kubectl_command(&delete).stdout(Stdio::null()).spawn()?;
        let created = create(&lab, &second, "b");
        deletion.wait()?;
        created?;
        lab.wait_for_pods(PODS)?;
        record(&mut report, &log, "ADD", "ADD mixed with DEL")?;
        record(&mut report, &log, "DEL", "DEL")?;

        lab.kubectl(&["delete", "pod", "--all", "--wait=false"])?;
        lab.wait_for_pods(0)?;
    }
    report.limits.push(at_most("p50, ms", "ADD alone", 5.0));
    report.limits.push(at_most("p99, ms", "ADD alone", 20.0));
    report.limits.push(at_most("p99, ms", "ADD mixed with DEL", 80.0));
    report.finish(root)
}

/// Creates pods at a steady pace, by one kubectl that reads them as they come.
fn create(lab: &Lab, names: &[String], half: &str) -> anyhow::Result<()> {
    let mut kubectl = lab
        .kubectl_command(&["create", "--validate=false", "-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()?;
    let mut stdin = kubectl.stdin.take().context("kubectl without input")?;
    // kubectl looks at the first 4096 bytes before it decides that this is JSON.
    let mut text = "{".to_owned() + &" ".repeat(4096);
    let start = Instant::now();
    for (index, name) in names.iter().enumerate() {
        let mut pod = pod_on(name, "node-1");
        pod["metadata"]["labels"]["half"] = half.into();
        let pod = pod.to_string();
        text.push_str(if index == 0 { &pod[1..] } else { &pod });
        text.push('\n');
        let due = INTERVAL * u32::try_from(index)?;
        std::thread::sleep(due.saturating_sub(start.elapsed()));
        stdin.write_all(text.as_bytes())?;
        text.clear();
    }
    drop(stdin);
    let status = kubectl.wait()?;
    if !status.success() {
        bail!("kubectl create ended with {status}");
    }
    Ok(())
}

/// Adds one round's percentiles of one CNI command.
fn record(report: &mut Report, log: &Path, command: &str, variant: &str) -> anyhow::Result<()> {
    let (times, failures) = parse(&std::fs::read_to_string(log)?, command);
    if times.is_empty() {
        bail!("{variant}: the plugin was never called");
    }
    report.add("p50, ms", variant, percentile(&times, 50.0));
    report.add("p99, ms", variant, percentile(&times, 99.0));
    report.add("calls", variant, times.len() as f64);
    report.add("failed calls", variant, failures as f64);
    Ok(())
}

/// Milliseconds of the calls that succeeded, and how many did not.
fn parse(log: &str, command: &str) -> (Vec<f64>, usize) {
    let mut times = Vec::new();
    let mut failures = 0;
    for line in log.lines() {
        let words: Vec<&str> = line.split(' ').collect();
        if let [name, took_us, code] = words[..]
            && name == command
        {
            match (took_us.parse::<f64>(), code) {
                (Ok(took_us), "0") => times.push(took_us / 1e3),
                _ => failures += 1,
            }
        }
    }
    (times, failures)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_told_apart() {
        let log = "ADD 1500 0\nDEL 700 0\nADD 2500 0\nADD 9 1\n";
        assert_eq!(parse(log, "ADD"), (vec![1.5, 2.5], 1));
        assert_eq!(parse(log, "DEL"), (vec![0.7], 0));
    }
}
