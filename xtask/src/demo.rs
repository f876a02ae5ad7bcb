//! `demo`: from a fresh clone to pods that talk, in one command.
//!
//! Builds everything, starts a lab of two nodes with the pods of `docs/guide/pods.yaml`, lets the
//! pod `client` ping and ask every other pod over IPv4 and IPv6, and says what to try next.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};
use serde_json::Value;

use crate::shell::{self, Root, output, run, say};
use crate::{build, test};

const LAB: &str = "demo";
const MANIFEST: &str = "docs/guide/pods.yaml";
/// The pod of the manifest that asks the others.
const CLIENT: &str = "client";

/// Runs the demo. The lab is left running for the user to play with, unless `down`.
pub(crate) fn demo(root: &Root, down: bool) -> anyhow::Result<()> {
    if !shell::is_root() {
        bail!(
            "the demo makes network namespaces and loads BPF programs, so it needs root: start it as root, \
             such as with `sudo env PATH=\"$PATH\" cargo xtask demo`"
        );
    }
    test::lab_packages()?;
    build::release(root)?;
    let demo = Demo { bin: root.target().join("release") };
    // What an earlier demo left.
    if output(&mut demo.lab("status", &[])).is_ok() {
        say("an earlier demo is still running: taking it down");
        run(&mut demo.lab("down", &[]))?;
    }
    let result = demo.show(root);
    // A machine that runs the demo as a test has nobody to take it down.
    if down || std::env::var_os("CI").is_some() {
        say("taking the lab down");
        run(&mut demo.lab("down", &[]))?;
        return result;
    }
    if result.is_err() {
        say(format!("the lab is left as it is; `cilium lab down --name {LAB}` removes it"));
        return result;
    }
    demo.next_steps(root);
    Ok(())
}

struct Demo {
    bin: PathBuf,
}

/// What the demo needs to know of a pod.
#[derive(Debug)]
struct Pod {
    name: String,
    node: String,
    addresses: Vec<IpAddr>,
    port: Option<u64>,
}

impl Demo {
    fn lab(&self, verb: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(self.bin.join("cilium"));
        command.args(["lab", verb, "--name", LAB]).args(arguments);
        command
    }

    fn kubeconfig(&self) -> anyhow::Result<String> {
        Ok(output(&mut self.lab("kubeconfig", &[]))?.trim().to_owned())
    }

    fn show(&self, root: &Root) -> anyhow::Result<()> {
        say(format!("starting a lab of two nodes with the pods of {MANIFEST}"));
        let manifest = root.join(MANIFEST);
        let manifest = manifest.to_str().context("the repository's path is not UTF-8")?;
        run(&mut self.lab("up", &["--nodes", "2", "-f", manifest]))?;
        let kubeconfig = self.kubeconfig()?;
        let kubectl = |arguments: &[&str]| {
            let mut command = Command::new("kubectl");
            command.args(arguments).env("KUBECONFIG", &kubeconfig);
            command
        };
        run(&mut kubectl(&["wait", "--for=condition=Ready", "pod", "--all", "--timeout=120s"]))?;
        say("kubectl get nodes,pods -o wide");
        run(&mut kubectl(&["get", "nodes,pods", "-o", "wide"]))?;
        let pods = pods(&output(&mut kubectl(&["get", "pods", "-o", "json"]))?)?;
        self.talk(&pods)
    }

    /// The client pings every other pod, and asks those that serve HTTP for their name.
    fn talk(&self, pods: &[Pod]) -> anyhow::Result<()> {
        let client = pods
            .iter()
            .find(|pod| pod.name == CLIENT)
            .with_context(|| format!("no pod {CLIENT:?} in {MANIFEST}"))?;
        say(format!("{CLIENT} on {} talks to the other pods", client.node));
        let mut silent = 0;
        for pod in pods.iter().filter(|pod| pod.name != CLIENT) {
            let place = if pod.node == client.node { "same node" } else { "other node" };
            for address in &pod.addresses {
                let ping = self.ask(&["ping", "-c1", "-W5", &address.to_string()]);
                let ping = ping.map(|text| round_trip(&text).to_owned());
                let http = pod.port.map(|port| {
                    let url = format!(
                        "http://{}/hostname",
                        std::net::SocketAddr::new(*address, port as u16)
                    );
                    self.ask(&["curl", "-sS", "-m5", &url])
                });
                silent += usize::from(ping.is_err()) + usize::from(matches!(http, Some(Err(_))));
                println!(
                    "    {:<16} {:<12} {:<28} ping {:<24} {}",
                    pod.name,
                    place,
                    address.to_string(),
                    said(&ping),
                    http.map_or_else(String::new, |answer| format!("http {}", said(&answer)))
                );
            }
        }
        if silent > 0 {
            bail!("{silent} of these did not answer");
        }
        Ok(())
    }

    /// Runs a command in the client.
    fn ask(&self, command: &[&str]) -> anyhow::Result<String> {
        let mut arguments = vec![CLIENT, "--"];
        arguments.extend(command);
        output(&mut self.lab("exec", &arguments)).map(|text| text.trim().to_owned())
    }

    fn next_steps(&self, root: &Root) {
        let bin = self.bin.strip_prefix(root.path()).map_or(self.bin.clone(), Path::to_path_buf);
        println!(
            "\nThe lab is running. What to try:\n\n  \
             export PATH=$PWD/{}:$PATH\n  \
             export KUBECONFIG=$(cilium lab kubeconfig --name {LAB})\n  \
             kubectl get pods -o wide\n  \
             cilium status\n  \
             cilium endpoint list\n  \
             cilium monitor --from-pod default/{CLIENT}\n  \
             cilium lab exec --name {LAB} {CLIENT} -- ping -c3 ADDRESS\n\n\
             and when you are done:\n\n  \
             cilium lab down --name {LAB}\n",
            bin.display()
        );
    }
}

/// The pods in kubectl's JSON.
fn pods(json: &str) -> anyhow::Result<Vec<Pod>> {
    let list: Value = serde_json::from_str(json)?;
    let items = list["items"].as_array().context("no pods")?;
    Ok(items.iter().filter_map(pod).collect())
}

fn pod(item: &Value) -> Option<Pod> {
    Some(Pod {
        name: item["metadata"]["name"].as_str()?.to_owned(),
        node: item["spec"]["nodeName"].as_str()?.to_owned(),
        addresses: item["status"]["podIPs"]
            .as_array()?
            .iter()
            .filter_map(|entry| entry["ip"].as_str()?.parse().ok())
            .collect(),
        port: item["spec"]["containers"][0]["ports"][0]["containerPort"].as_u64(),
    })
}

/// `… time=0.123 ms` of ping's output.
fn round_trip(text: &str) -> &str {
    text.split_once("time=").and_then(|(_, rest)| rest.lines().next()).unwrap_or("?")
}

/// An answer on one line.
fn said(answer: &anyhow::Result<String>) -> String {
    match answer {
        Ok(text) => text.clone(),
        Err(error) => format!("FAILED: {}", format!("{error:#}").replace('\n', " ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_are_read_from_what_kubectl_prints() {
        let json = r#"{"items": [{
            "metadata": {"name": "a"},
            "spec": {"nodeName": "node-1", "containers": [{"ports": [{"containerPort": 8080}]}]},
            "status": {"podIPs": [{"ip": "10.0.0.1"}, {"ip": "fd00::1"}]}
        }, {"metadata": {"name": "pending"}, "spec": {}, "status": {}}]}"#;
        let pods = pods(json).unwrap();
        assert_eq!(pods.len(), 1);
        assert_eq!((pods[0].addresses.len(), pods[0].port), (2, Some(8080)));
    }

    #[test]
    fn time_is_read_from_what_ping_prints() {
        assert_eq!(round_trip("64 bytes from x: icmp_seq=1 ttl=63 time=0.07 ms\n\n---"), "0.07 ms");
        assert_eq!(round_trip("nothing"), "?");
    }
}
