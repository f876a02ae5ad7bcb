//! A lab for a benchmark, and what is measured of a whole lab: what an agent costs (`memory`),
//! how long a cluster takes to start (`lab`).

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde_json::{Value, json};

use super::{Limit, Report, repetitions};
use crate::shell::{Root, output, say};

/// Pods of a full node.
const PODS: usize = 200;
/// Until a node has its pods, or has got rid of them.
const PATIENCE: Duration = Duration::from_secs(120);

/// A lab that is taken down when it is no longer needed.
pub(super) struct Lab {
    cilium: PathBuf,
    name: String,
    kubeconfig: String,
    /// From the call to Ready.
    pub(super) took: Duration,
}

impl Lab {
    /// Starts a lab and waits until it is ready; the manifests are applied by it.
    pub(super) fn up(
        root: &Root,
        name: &str,
        nodes: usize,
        manifests: &[&str],
    ) -> anyhow::Result<Self> {
        let cilium = root.target().join("release/cilium");
        Self::up_with(root, &cilium, name, nodes, manifests, &[])
    }

    /// The same with the programs that lie beside this `cilium`, and these keys of `cilium-config`.
    pub(super) fn up_with(
        root: &Root,
        cilium: &Path,
        name: &str,
        nodes: usize,
        manifests: &[&str],
        settings: &[&str],
    ) -> anyhow::Result<Self> {
        let mut lab = Self {
            cilium: cilium.to_path_buf(),
            name: format!("{name}-{}", std::process::id()),
            kubeconfig: String::new(),
            took: Duration::ZERO,
        };
        let mut command =
            lab.cilium(&["lab", "up", "--name", &lab.name, "--nodes", &nodes.to_string()]);
        command.args(settings.iter().flat_map(|setting| ["--set", setting]));
        for (index, manifest) in manifests.iter().enumerate() {
            let path = root.target().join(format!("bench/{name}-{index}.yaml"));
            std::fs::create_dir_all(root.target().join("bench"))?;
            std::fs::write(&path, manifest)?;
            command.arg("-f").arg(path);
        }
        let started = Instant::now();
        output(&mut command)?;
        lab.took = started.elapsed();
        lab.kubeconfig =
            output(&mut lab.cilium(&["lab", "kubeconfig", "--name", &lab.name]))?.trim().to_owned();
        Ok(lab)
    }

    fn cilium(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.cilium);
        command.args(arguments);
        command
    }

    pub(super) fn kubectl(&self, arguments: &[&str]) -> anyhow::Result<String> {
        output(&mut self.kubectl_command(arguments))
    }

    pub(super) fn kubectl_command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("kubectl");
        command.args(arguments).env("KUBECONFIG", &self.kubeconfig);
        command
    }

    /// Waits until exactly so many pods exist, all of them Ready. (`kubectl wait` asks for each pod
    /// by itself, and slows itself down to a few questions per second.)
    pub(super) fn wait_for_pods(&self, count: usize) -> anyhow::Result<()> {
        let query = "jsonpath={range .items[*]}{.status.conditions[?(@.type==\"Ready\")].status}{\"|\"}{end}";
        let deadline = Instant::now() + PATIENCE;
        loop {
            let text = self.kubectl(&["get", "pods", "-o", query])?;
            let (pods, ready) = (text.matches('|').count(), text.matches("True|").count());
            if pods == count && ready == count {
                return Ok(());
            }
            if Instant::now() > deadline {
                bail!("{pods} pods exist and {ready} are ready; expected {count}");
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    pub(super) fn pod_addresses(&self, pod: &str) -> anyhow::Result<Vec<IpAddr>> {
        let text = self.kubectl(&["get", "pod", pod, "-o", "jsonpath={.status.podIPs[*].ip}"])?;
        text.split_whitespace().map(|address| Ok(address.parse()?)).collect()
    }

    /// The words in front of a command that is to run in a pod.
    pub(super) fn enter(&self, pod: &str) -> anyhow::Result<Vec<String>> {
        let cilium = self.cilium.to_str().context("a path that is not UTF-8")?;
        Ok([cilium, "lab", "exec", "--name", &self.name, pod, "--"].map(str::to_owned).to_vec())
    }

    fn status(&self) -> anyhow::Result<Value> {
        let text =
            output(&mut self.cilium(&["lab", "status", "--name", &self.name, "-o", "json"]))?;
        Ok(serde_json::from_str(&text)?)
    }

    /// Process id of a node's agent.
    fn agent(&self, node: &str) -> anyhow::Result<u64> {
        let status = self.status()?;
        let nodes = status["nodes"].as_array().context("a lab without nodes")?;
        let node =
            nodes.iter().find(|candidate| candidate["name"] == node).context("no such node")?;
        node["agent_pid"].as_u64().context("no agent runs")
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let _ = output(&mut self.cilium(&["lab", "down", "--name", &self.name]));
    }
}

/// A pod that only exists, on the node that the scheduler chooses.
pub(super) fn pod(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": "bench"}},
        "spec": {
            "terminationGracePeriodSeconds": 0,
            "containers": [{"name": "pause", "image": "registry.k8s.io/pause:3.10"}],
        },
    })
}

/// The same, on this node.
pub(super) fn pod_on(name: &str, node: &str) -> Value {
    let mut pod = pod(name);
    pod["spec"]["nodeName"] = node.into();
    pod
}

/// A manifest of several objects (JSON is YAML).
pub(super) fn manifest(objects: impl Iterator<Item = Value>) -> String {
    objects.map(|object| object.to_string()).collect::<Vec<_>>().join("\n---\n")
}

/// `memory`: an agent with 200 endpoints.
pub(super) fn memory(root: &Root) -> anyhow::Result<()> {
    let mut report = Report::new(
        "memory",
        "A lab of two nodes, 200 pods on node-1; resident memory of its agent, kernel memory of the \
         maps that it pinned (bpftool: bytes_memlock), and its CPU time over 30 s in which nothing happens.",
    );
    let pods = manifest((0..PODS).map(|index| pod_on(&format!("bench-{index}"), "node-1")));
    let lab = Lab::up(root, "bench-memory", 2, &[&pods])?;
    lab.wait_for_pods(PODS)?;
    let agent = lab.agent("node-1")?;
    report.add("agent resident memory, MiB", "200 endpoints", resident_mib(agent)?);
    report.add("maps, kernel memory, MiB", "200 endpoints", maps_mib(agent)?);
    for _ in 0..3 {
        let before = cpu_seconds(agent)?;
        let started = Instant::now();
        std::thread::sleep(Duration::from_secs(10));
        let share = (cpu_seconds(agent)? - before) / started.elapsed().as_secs_f64();
        report.add("idle CPU, % of a core", "200 endpoints", share * 100.0);
    }
    report.add("agent resident memory, MiB", "200 endpoints, 30 s later", resident_mib(agent)?);
    for (metric, bound) in [
        ("agent resident memory, MiB", 30.0),
        ("maps, kernel memory, MiB", 32.0),
        ("idle CPU, % of a core", 0.5),
    ] {
        report.limits.push(at_most(metric, "200 endpoints", bound));
    }
    report.finish(root)
}

/// `lab`: from nothing to a cluster that is ready.
pub(super) fn lab(root: &Root) -> anyhow::Result<()> {
    let mut report = Report::new(
        "lab",
        "`cilium lab up --nodes N` with release builds, from exec until it returns (all nodes Ready); \
         2 nodes as often as other benchmarks repeat, 20 nodes three times. A Deployment of 100 pods with \
         readiness probes over 5 nodes, from `kubectl apply` until all are Ready, three times. Memory of all \
         processes of a lab of two nodes with the Star Wars demo (PSS: shared pages are divided among those \
         who share them), 5 s after it is up, three times.",
    );
    let count = repetitions();
    for repetition in 0..count {
        say(format!("repetition {} of {count}", repetition + 1));
        report.add("lab up, s", "2 nodes", Lab::up(root, "bench-lab", 2, &[])?.took.as_secs_f64());
        if repetition % 3 == 0 {
            let took = Lab::up(root, "bench-lab", 20, &[])?.took;
            report.add("lab up, s", "20 nodes", took.as_secs_f64());
            report.add("all pods Ready, s", "100 pods, 5 nodes", hundred_pods(root)?);
            report.add("memory, MiB PSS", "2 nodes and the demo", demo_mib(root)?);
        }
    }
    report.limits.push(at_most("all pods Ready, s", "100 pods, 5 nodes", 8.0));
    report.limits.push(at_most("memory, MiB PSS", "2 nodes and the demo", 250.0));
    report.limits.push(at_most("lab up, s", "2 nodes", 5.0));
    report.limits.push(at_most("lab up, s", "20 nodes", 60.0));
    report.finish(root)
}

/// How long a Deployment of 100 pods takes over 5 nodes.
fn hundred_pods(root: &Root) -> anyhow::Result<f64> {
    let lab = Lab::up(root, "bench-deployment", 5, &[])?;
    let manifest = root.target().join("bench/deployment.yaml");
    std::fs::write(&manifest, deployment(100).to_string())?;
    let manifest = manifest.to_str().context("the target directory's path is not UTF-8")?;
    let started = Instant::now();
    lab.kubectl(&["apply", "-f", manifest])?;
    lab.kubectl(&["rollout", "status", "deployment/bench", "--timeout=120s"])?;
    Ok(started.elapsed().as_secs_f64())
}

fn deployment(replicas: usize) -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "bench"},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": "bench"}},
            "template": {
                "metadata": {"labels": {"app": "bench"}},
                "spec": {"containers": [{
                    "name": "c", "image": "registry.k8s.io/e2e-test-images/agnhost:2.53", "args": ["netexec"],
                    "readinessProbe": {"httpGet": {"path": "/healthz", "port": 8080}, "periodSeconds": 1},
                }]},
            },
        },
    })
}

/// What all processes of a lab with the demo take.
fn demo_mib(root: &Root) -> anyhow::Result<f64> {
    let lab = Lab::up(root, "bench-demo", 2, &[include_str!("../../../crates/lab/src/demo.yaml")])?;
    // Agents settle.
    std::thread::sleep(Duration::from_secs(5));
    let mounts = std::fs::read_to_string("/proc/self/mounts")?;
    let cgroups = mounts.lines().find_map(|line| {
        let mut fields = line.split(' ').skip(1);
        let path = fields.next()?;
        (fields.next()? == "cgroup2").then(|| Path::new(path).join("cilium-lab").join(&lab.name))
    });
    let pids = processes(&cgroups.context("no cgroup2 is mounted")?)?;
    let kib: u64 = pids.iter().filter_map(|pid| pss_kib(pid)).sum();
    Ok(kib as f64 / 1024.0)
}

/// The processes in a control group and below.
fn processes(cgroup: &Path) -> anyhow::Result<Vec<String>> {
    let own = std::fs::read_to_string(cgroup.join("cgroup.procs"))?;
    let mut pids: Vec<String> = own.lines().map(str::to_owned).collect();
    for entry in std::fs::read_dir(cgroup)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            pids.extend(processes(&entry.path())?);
        }
    }
    Ok(pids)
}

/// A process's share of the memory. One that has just ended has none.
fn pss_kib(pid: &str) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:"))?;
    line.trim().trim_end_matches(" kB").parse().ok()
}

pub(super) fn at_most(metric: &'static str, variant: &'static str, bound: f64) -> Limit {
    Limit { metric, variant, against: &[], at_most: Some(bound), at_least: None }
}

fn resident_mib(pid: u64) -> anyhow::Result<f64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    let kib: f64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kib / 1024.0)
}

/// User and system time of a process.
fn cpu_seconds(pid: u64) -> anyhow::Result<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The command's name may have spaces: count from its closing bracket.
    let rest = stat.rsplit(')').next().context("no stat")?;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let ticks = |index: usize| fields.get(index).and_then(|field| field.parse::<f64>().ok());
    // utime and stime are fields 14 and 15; the kernel gives hundredths of a second.
    let (user, system) = (ticks(11).context("no utime")?, ticks(12).context("no stime")?);
    Ok((user + system) / 100.0)
}

/// Kernel memory of the maps that are pinned in the agent's bpffs.
fn maps_mib(agent: u64) -> anyhow::Result<f64> {
    let script =
        "for map in /sys/fs/bpf/tc/globals/*; do bpftool -j map show pinned $map; echo; done";
    let text = output(Command::new("nsenter").args([
        "--mount",
        "--target",
        &agent.to_string(),
        "sh",
        "-c",
        script,
    ]))?;
    let mut bytes = 0.0;
    for line in text.lines().filter(|line| !line.trim().is_empty()) {
        let map: Value = serde_json::from_str(line)?;
        bytes += map["bytes_memlock"].as_f64().unwrap_or(0.0);
    }
    if bytes == 0.0 {
        bail!("no maps are pinned in the agent's bpffs");
    }
    Ok(bytes / f64::from(1 << 20))
}
