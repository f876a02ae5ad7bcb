//! Calling CNI plugins as a container runtime does (CNI specification 1.1, sections 3 and 4).
//!
//! The configuration is read for every call, so whatever the agent has written last is used. The
//! plugins of a list run in order for ADD and CHECK, in reverse for DEL and GC.

use std::fs::{self, File};
use std::io::{Read as _, Seek as _};
use std::net::IpAddr;
use std::os::fd::AsFd as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde::Deserialize;
use serde_json::{Value, json};
use tracing::debug;

use super::container::remove_cgroup;
use crate::place::{CgroupDir, Place, memory_file};
use crate::process::PATH;

/// A plugin that takes longer than this is killed, as kubelets do.
const TIMEOUT: Duration = Duration::from_secs(120);
/// The interface inside a pod.
pub const IFNAME: &str = "eth0";

/// What a plugin is called for: one interface of one pod.
#[derive(Clone, Debug)]
pub struct Attachment {
    /// The sandbox's id.
    pub container_id: String,
    /// Path of the pod's network namespace inside the node.
    pub netns: String,
    /// The pod's namespace.
    pub pod_namespace: String,
    /// The pod's name.
    pub pod_name: String,
    /// The pod's unique id.
    pub pod_uid: String,
}

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum CniError {
    /// There is no network configuration (yet).
    #[error("network is not ready: no CNI configuration in {0}: the agent has not started yet")]
    NoConfiguration(String),
    /// The configuration cannot be used.
    #[error("CNI configuration {path}: {reason}")]
    Configuration {
        /// The file.
        path: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The plugin answered with an error.
    #[error("plugin type={plugin:?} failed ({verb}): {message} (code {code})")]
    Plugin {
        /// The plugin's type.
        plugin: String,
        /// What it was asked for.
        verb: &'static str,
        /// The specification's error code.
        code: u64,
        /// Message and details.
        message: String,
    },
    /// The plugin could not be run to its end.
    #[error("plugin type={plugin:?} ({verb}): {reason}")]
    Run {
        /// The plugin's type.
        plugin: String,
        /// What it was asked for.
        verb: &'static str,
        /// What went wrong.
        reason: String,
    },
}

/// Runs plugins on one node.
#[derive(Debug)]
pub struct Cni {
    place: Arc<Place>,
    conf_dir: PathBuf,
    bin_dir: PathBuf,
    log: File,
    calls: AtomicU64,
}

/// A network configuration list.
#[derive(Deserialize)]
struct List {
    #[serde(rename = "cniVersion", default)]
    cni_version: String,
    name: String,
    plugins: Vec<Value>,
}

impl Cni {
    /// `conf_dir` is seen from outside the node; plugins are found in `bin_dir`.
    pub fn new(place: Arc<Place>, conf_dir: PathBuf, bin_dir: PathBuf, log: File) -> Self {
        Self { place, conf_dir, bin_dir, log, calls: AtomicU64::new(0) }
    }

    /// Attaches a pod; the result is what the last plugin said.
    pub async fn add(&self, attachment: &Attachment) -> Result<Value, CniError> {
        let list = self.list()?;
        let mut result = Value::Null;
        for plugin in &list.plugins {
            let mut conf = list.conf(plugin);
            if !result.is_null() {
                conf["prevResult"] = result;
            }
            result = self.call("ADD", &conf, Some(attachment)).await?;
        }
        Ok(result)
    }

    /// Detaches a pod. `result` is the cached result of ADD, if there was one.
    pub async fn delete(
        &self,
        attachment: &Attachment,
        result: Option<&Value>,
    ) -> Result<(), CniError> {
        let list = self.list()?;
        for plugin in list.plugins.iter().rev() {
            let mut conf = list.conf(plugin);
            if let Some(result) = result {
                conf["prevResult"] = result.clone();
            }
            self.call("DEL", &conf, Some(attachment)).await?;
        }
        Ok(())
    }

    /// Asks whether a pod's network is as ADD left it.
    pub async fn check(&self, attachment: &Attachment, result: &Value) -> Result<(), CniError> {
        let list = self.list()?;
        for plugin in &list.plugins {
            let mut conf = list.conf(plugin);
            conf["prevResult"] = result.clone();
            self.call("CHECK", &conf, Some(attachment)).await?;
        }
        Ok(())
    }

    /// Asks whether the network is ready to attach pods.
    pub async fn status(&self) -> Result<(), CniError> {
        let list = self.list()?;
        if !list.has_status_and_gc() {
            return Ok(());
        }
        for plugin in &list.plugins {
            self.call("STATUS", &list.conf(plugin), None).await?;
        }
        Ok(())
    }

    /// Tells the plugins which attachments are still wanted, so that they clean up all others.
    pub async fn gc(&self, container_ids: &[String]) -> Result<(), CniError> {
        let list = self.list()?;
        if !list.has_status_and_gc() {
            return Ok(());
        }
        let valid = container_ids.iter().map(|id| json!({"containerID": id, "ifname": IFNAME}));
        let valid: Value = valid.collect();
        for plugin in list.plugins.iter().rev() {
            let mut conf = list.conf(plugin);
            conf["cni.dev/valid-attachments"] = valid.clone();
            self.call("GC", &conf, None).await?;
        }
        Ok(())
    }

    /// The first configuration list by name, as runtimes choose.
    fn list(&self) -> Result<List, CniError> {
        let entries = fs::read_dir(&self.conf_dir).into_iter().flatten().flatten();
        let mut files: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
        files.retain(|path| path.extension().is_some_and(|e| e == "conflist"));
        files.sort();
        let Some(path) = files.first() else {
            return Err(CniError::NoConfiguration(self.conf_dir.display().to_string()));
        };
        let wrong =
            |reason: String| CniError::Configuration { path: path.display().to_string(), reason };
        let text = fs::read(path).map_err(|e| wrong(e.to_string()))?;
        let list: List = serde_json::from_slice(&text).map_err(|e| wrong(e.to_string()))?;
        match list.plugins.is_empty() {
            true => Err(wrong("no plugins in the list".to_owned())),
            false => Ok(list),
        }
    }

    async fn call(
        &self,
        verb: &'static str,
        conf: &Value,
        attachment: Option<&Attachment>,
    ) -> Result<Value, CniError> {
        let plugin = conf["type"].as_str().unwrap_or_default().to_owned();
        let failed = |reason: String| CniError::Run { plugin: plugin.clone(), verb, reason };
        // A group of its own, so that plugins that run at the same time do not take it from each other.
        let name = format!("cni-{}", self.calls.fetch_add(1, Ordering::Relaxed));
        let cgroup =
            CgroupDir::create(&self.place.cgroup, &name).map_err(|e| failed(e.to_string()))?;
        let began = Instant::now();
        let result = self.call_in(&cgroup, verb, conf, attachment).await;
        debug!(node = self.place.name, verb, took_us = began.elapsed().as_micros() as u64);
        remove_cgroup(&cgroup.group).await;
        result
    }

    async fn call_in(
        &self,
        cgroup: &CgroupDir,
        verb: &'static str,
        conf: &Value,
        attachment: Option<&Attachment>,
    ) -> Result<Value, CniError> {
        let plugin = conf["type"].as_str().unwrap_or_default().to_owned();
        let failed = |reason: String| CniError::Run { plugin: plugin.clone(), verb, reason };
        let stdin = memory_file("cni-conf", conf.to_string().as_bytes())
            .map_err(|e| failed(e.to_string()))?;
        let mut stdout = memory_file("cni-result", b"").map_err(|e| failed(e.to_string()))?;
        let mut command = self.place.command(cgroup);
        command.argv = vec![self.bin_dir.join(&plugin).display().to_string()];
        command.env = environment(verb, &self.bin_dir.display().to_string(), attachment);
        command.stdin = Some(stdin.as_fd());
        command.stdout = Some(stdout.as_fd());
        command.stderr = Some(self.log.as_fd());
        let process = self.place.spawn(&command).map_err(|e| failed(e.to_string()))?;
        let exit = match tokio::time::timeout(TIMEOUT, process.wait()).await {
            Ok(exit) => exit.map_err(|e| failed(e.to_string()))?,
            Err(_) => {
                let _ = process.kill(Signal::SIGKILL);
                let _ = process.wait().await;
                return Err(failed(format!("no answer within {} s", TIMEOUT.as_secs())));
            }
        };
        let mut output = Vec::new();
        stdout
            .rewind()
            .and_then(|()| stdout.read_to_end(&mut output))
            .map_err(|e| failed(e.to_string()))?;
        let answer: Value = serde_json::from_slice(&output).unwrap_or(Value::Null);
        if exit.code() == 0 {
            return Ok(answer);
        }
        let Some(code) = answer["code"].as_u64() else {
            return Err(failed(format!("{exit}, without an error in JSON; see its log")));
        };
        let words = [&answer["msg"], &answer["details"]].map(|v| v.as_str().unwrap_or_default());
        let message =
            words.iter().filter(|w| !w.is_empty()).copied().collect::<Vec<_>>().join(": ");
        Err(CniError::Plugin { plugin, verb, code, message })
    }
}

impl List {
    /// Both verbs came with version 1.1; for older configurations runtimes do not use them.
    fn has_status_and_gc(&self) -> bool {
        let mut numbers =
            self.cni_version.split('.').map(|number| number.parse::<u32>().unwrap_or(0));
        (numbers.next(), numbers.next()) >= (Some(1), Some(1))
    }

    /// What one plugin of the list reads from its standard input.
    fn conf(&self, plugin: &Value) -> Value {
        let mut conf = plugin.clone();
        conf["cniVersion"] = json!(self.cni_version);
        conf["name"] = json!(self.name);
        conf
    }
}

fn environment(
    verb: &str,
    bin_dir: &str,
    attachment: Option<&Attachment>,
) -> Vec<(String, String)> {
    let mut env = vec![("CNI_COMMAND", verb.to_owned()), ("CNI_PATH", bin_dir.to_owned())];
    env.push(("PATH", PATH.to_owned()));
    if let Some(attachment) = attachment {
        env.push(("CNI_CONTAINERID", attachment.container_id.clone()));
        env.push(("CNI_NETNS", attachment.netns.clone()));
        env.push(("CNI_IFNAME", IFNAME.to_owned()));
        let args = [
            ("IgnoreUnknown", "1"),
            ("K8S_POD_NAMESPACE", &attachment.pod_namespace),
            ("K8S_POD_NAME", &attachment.pod_name),
            ("K8S_POD_INFRA_CONTAINER_ID", &attachment.container_id),
            ("K8S_POD_UID", &attachment.pod_uid),
        ];
        let args = args.map(|(key, value)| format!("{key}={value}")).join(";");
        env.push(("CNI_ARGS", args));
    }
    env.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
}

/// The addresses in a result of ADD, in the plugin's order.
pub fn addresses(result: &Value) -> Vec<IpAddr> {
    let ips = result["ips"].as_array().into_iter().flatten();
    let text = ips.filter_map(|ip| ip["address"].as_str());
    text.filter_map(|net| net.split('/').next()?.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plugins_get_their_part_of_the_list() {
        let list: List = serde_json::from_value(json!({
            "cniVersion": "1.0.0", "name": "cilium",
            "plugins": [{"type": "cilium-cni", "enable-debug": false}],
        }))
        .unwrap();
        let conf = list.conf(&list.plugins[0]);
        assert_eq!(
            conf,
            json!({"cniVersion": "1.0.0", "name": "cilium", "type": "cilium-cni", "enable-debug": false})
        );
    }

    #[test]
    fn verbs_by_version() {
        for (version, expected) in
            [("0.4.0", false), ("1.0.0", false), ("1.1.0", true), ("2.0.0", true)]
        {
            let list =
                List { cni_version: version.to_owned(), name: String::new(), plugins: vec![] };
            assert_eq!(list.has_status_and_gc(), expected, "{version}");
        }
    }

    #[test]
    fn addresses_of_a_result() {
        let result =
            json!({"ips": [{"address": "10.244.1.7/32"}, {"address": "fd00:10::107/128"}]});
        let addresses: Vec<String> = addresses(&result).iter().map(IpAddr::to_string).collect();
        assert_eq!(addresses, ["10.244.1.7", "fd00:10::107"]);
    }
}
