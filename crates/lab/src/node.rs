//! A node as Kubernetes sees it: the Node object, its conditions and its heartbeat.

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::{Instant, sleep};
use tracing::warn;

use crate::apiserver::now;
use crate::cluster::{Cluster, LEASES, NODES};
use crate::runner::Node;
use crate::spec::{NodeSpec, Spec};

/// How often a node says that it lives.
const HEARTBEAT: Duration = Duration::from_secs(10);
/// Pause between looks at an agent that is starting.
const STARTING: Duration = Duration::from_millis(25);
/// The same for one that takes long: each pause is a quarter longer than the one before.
const STARTING_MAX: Duration = Duration::from_secs(1);
/// How long an agent may take to say that it is well.
const AGENT_PATIENCE: Duration = Duration::from_secs(5);
/// How many pods a node takes.
const PODS_MAX: &str = "500";
/// The version of Kubernetes whose behaviour the lab follows.
const KUBELET_VERSION: &str = "v1.34.0";
const LEASE_NAMESPACE: &str = "kube-node-lease";

/// Registers the node as a kubelet does.
pub fn register(cluster: &Cluster, spec: &Spec, node: NodeSpec) -> Result<()> {
    let name = node.name();
    if cluster.find(NODES, "", &name).is_some() {
        // From an earlier supervisor's time.
        return Ok(());
    }
    let addresses =
        node.addresses().map(|address| json!({"type": "InternalIP", "address": address}));
    let hostname = json!({"type": "Hostname", "address": name});
    let addresses: Vec<Value> = addresses.into_iter().chain([hostname]).collect();
    let resources = json!({
        "cpu": cpus().to_string(),
        "memory": format!("{}Ki", memory_kib()),
        "pods": PODS_MAX,
        "ephemeral-storage": "0",
    });
    let mut object = json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": name, "labels": {
            "kubernetes.io/hostname": name, "kubernetes.io/os": "linux", "kubernetes.io/arch": arch(),
        }},
        "spec": {},
        "status": {
            "addresses": addresses,
            "capacity": resources, "allocatable": resources,
            "conditions": conditions(Err("container runtime network not ready: cni plugin not initialized")),
            "nodeInfo": {
                "machineID": name, "systemUUID": name, "bootID": boot_id(),
                "kernelVersion": kernel_version(), "osImage": "cilium lab",
                "containerRuntimeVersion": concat!("cilium-lab://", env!("CARGO_PKG_VERSION")),
                "kubeletVersion": KUBELET_VERSION, "kubeProxyVersion": KUBELET_VERSION,
                "operatingSystem": "linux", "architecture": arch(),
            },
        },
    });
    let config = spec.cilium_config();
    if config.get("ipam").is_some_and(|ipam| ipam == "kubernetes") {
        let cidrs = pod_cidrs(&config, node);
        object["spec"]["podCIDR"] = json!(cidrs.first());
        object["spec"]["podCIDRs"] = json!(cidrs);
    }
    cluster.create(NODES, object.clone())?;
    // The status of a new object is not taken from its creator.
    cluster.write_status(NODES, &name, &object["status"])
}

/// The node's share of the pod addresses, which Kubernetes' controller manager would assign.
fn pod_cidrs(config: &std::collections::BTreeMap<String, String>, node: NodeSpec) -> Vec<String> {
    let on = |key: &str| config.get(key).is_some_and(|value| value == "true");
    let number = u16::from(node.number);
    let v4 = on("enable-ipv4").then(|| format!("10.244.{number}.0/24"));
    let v6 = on("enable-ipv6").then(|| format!("fd00:10::{number:x}00/120"));
    v4.into_iter().chain(v6).collect()
}

/// Follows the node's health: Ready as soon as the CNI plugin says so, then a heartbeat.
pub async fn report(node: Arc<Node>, _spec: NodeSpec, mut agent: watch::Receiver<Option<i32>>) {
    let lease = json!({
        "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
        "metadata": {"name": node.name, "namespace": LEASE_NAMESPACE},
        "spec": {"holderIdentity": node.name, "leaseDurationSeconds": 40, "renewTime": micro_now()},
    });
    if node.cluster.find(LEASES, LEASE_NAMESPACE, &node.name).is_none()
        && let Err(error) = node.cluster.create(LEASES, lease)
    {
        warn!(node = node.name, "create lease: {error:#}");
    }
    let mut written: Option<bool> = None;
    let mut cleaned = false;
    // At once: somebody else may have looked after the node before.
    let mut beat = None;
    let mut starting = STARTING;
    loop {
        if node.place.is_paused() {
            node.place.awake().await;
            // It may have been given up meanwhile.
            (written, beat) = (None, None);
        }
        let status = health(&node).await;
        let ready = status.is_ok();
        if written != Some(ready) {
            // A node whose agent is just being restarted goes on working.
            let wanted = json!({"conditions": conditions(match &status {
                Ok(()) => Ok(()),
                Err(_) => Err("container runtime network not ready: the agent or the CNI plugin is not ready"),
            })});
            match node.cluster.write_status(NODES, &node.name, &wanted) {
                Ok(()) => written = Some(ready),
                Err(error) => warn!(node = node.name, "write status: {error:#}"),
            }
        }
        node.ready.send_replace(ready);
        if ready && !cleaned {
            // What an earlier life of the node has left in the agent is not wanted any more.
            let ids: Vec<String> = node.attachments.lock().iter().cloned().collect();
            match node.cni.gc(&ids).await {
                Ok(()) => cleaned = true,
                Err(error) => warn!(node = node.name, "{error}"),
            }
        }
        if beat.is_none_or(|beat: Instant| beat.elapsed() >= HEARTBEAT) {
            beat = Some(Instant::now());
            let renew = json!({"spec": {"renewTime": micro_now()}});
            if let Err(error) = node.cluster.merge(LEASES, LEASE_NAMESPACE, &node.name, "", renew) {
                warn!(node = node.name, "heartbeat: {error:#}");
            }
        }
        starting = if ready { STARTING } else { (starting * 5 / 4).min(STARTING_MAX) };
        tokio::select! {
            () = sleep(if ready { HEARTBEAT } else { starting }) => {}
            // An agent that has just died or come back is looked at when it had a chance to start.
            Ok(()) = agent.changed(), if ready => sleep(Duration::from_secs(1)).await,
        }
    }
}

/// Whether the node can take pods: the plugin says so, and the agent is well.
async fn health(node: &Node) -> Result<()> {
    node.cni.status().await?;
    let socket = node.paths.agent_socket(&node.name);
    let asking = tokio::task::spawn_blocking(move || {
        let mut agent = api::rest::client::Client::new(socket).with_timeout(AGENT_PATIENCE);
        agent.get_with::<Value>("/v1/healthz", &[("brief", "true")]).map(drop)
    });
    Ok(asking.await??)
}

/// The conditions of a node; `network` says why pods cannot be attached.
fn conditions(network: Result<(), &str>) -> Value {
    let condition = |kind: &str, status: bool, reason: &str, message: &str| {
        json!({
            "type": kind, "status": if status { "True" } else { "False" },
            "reason": reason, "message": message,
            "lastHeartbeatTime": now(), "lastTransitionTime": now(),
        })
    };
    let ready = match network {
        Ok(()) => condition("Ready", true, "KubeletReady", "the lab's pod runner is ready"),
        Err(why) => condition("Ready", false, "KubeletNotReady", why),
    };
    let enough = |kind: &str, resource: &str| {
        let reason = format!("KubeletHas{resource}");
        condition(kind, false, &reason, "the lab does not watch this")
    };
    json!([
        enough("MemoryPressure", "SufficientMemory"),
        enough("DiskPressure", "NoDiskPressure"),
        enough("PIDPressure", "SufficientPID"),
        ready,
    ])
}

fn micro_now() -> String {
    k8s_openapi::jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%S%.6fZ").to_string()
}

fn arch() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// Memory of the machine.
pub fn memory_kib() -> u64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let total = text.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    total.and_then(|t| t.split_whitespace().next()?.parse().ok()).unwrap_or_default()
}

/// CPUs of the machine.
pub fn cpus() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

fn kernel_version() -> String {
    fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned()
}

fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}
