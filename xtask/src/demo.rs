//! `demo`: from a fresh clone to ships that land, in one command.
//!
//! Builds everything, starts a lab of two nodes with the Star Wars demo, lets the ships ask every
//! Death Star for a landing over IPv4 and IPv6, before and after a policy keeps one of them out, and
//! says what to try next.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};
use serde_json::Value;

use crate::shell::{self, Root, output, run, say};
use crate::{build, test};

const LAB: &str = "demo";
/// Who asks for landings.
const SHIPS: [&str; 2] = ["tiefighter", "xwing"];
/// Whom the policy keeps out.
const KEPT_OUT: &str = "xwing";
/// The policy, and its name.
const POLICY: (&str, &str) = ("docs/guide/deathstar-policy.yaml", "cnp/deathstar");
/// How the pods begin that are asked.
const STATION: &str = "deathstar-";
/// Where they land.
const GUIDE: &str = "docs/guide/demo.md";

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
        say("starting a lab of two nodes with the Star Wars demo");
        run(&mut self.lab("up", &["--nodes", "2", "--demo"]))?;
        let kubeconfig = self.kubeconfig()?;
        let kubectl = |arguments: &[&str]| {
            let mut command = Command::new("kubectl");
            command.args(arguments).env("KUBECONFIG", &kubeconfig);
            command
        };
        say("kubectl get nodes,pods -o wide");
        run(&mut kubectl(&["get", "nodes,pods", "-o", "wide"]))?;
        let pods = pods(&output(&mut kubectl(&["get", "pods", "-o", "json"]))?)?;
        land(&pods, &kubectl, |_| true)?;

        let (file, name) = POLICY;
        say(format!("kubectl apply -f {file}"));
        run(kubectl(&["apply", "-f"]).arg(root.path().join(file)))?;
        run(&mut kubectl(&["wait", "--for=condition=Enforced", "--timeout=60s", name]))?;
        land(&pods, &kubectl, |ship| ship != KEPT_OUT)?;
        self.explain(&pods)
    }

    /// Lets the agent of a station's node say why the one is kept out.
    fn explain(&self, pods: &[Pod]) -> anyhow::Result<()> {
        let station =
            pods.iter().find(|pod| pod.name.starts_with(STATION)).context("no station")?;
        let (source, target) = (format!("default/{KEPT_OUT}"), format!("default/{}", station.name));
        say(format!("cilium policy trace --src-pod {source} --dst-pod {target} --dport 80/TCP"));
        let mut trace = Command::new(self.bin.join("cilium"));
        trace.args(["policy", "trace", "--lab", LAB, "--src-pod", &source, "--dst-pod", &target]);
        run(trace.args(["--dport", "80/TCP"]))
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
             hubble observe --pod default/xwing\n  \
             kubectl delete cnp deathstar\n  \
             kubectl exec tiefighter -- curl -s -XPUT ADDRESS/v1/exhaust-port\n\n\
             {GUIDE} says more; and when you are done:\n\n  \
             cilium lab down --name {LAB}\n",
            bin.display()
        );
    }
}

/// Lets every ship ask every station for a landing, which only those that `may` get.
fn land(
    pods: &[Pod],
    kubectl: &impl Fn(&[&str]) -> Command,
    may: impl Fn(&str) -> bool,
) -> anyhow::Result<()> {
    let stations: Vec<&Pod> = pods.iter().filter(|pod| pod.name.starts_with(STATION)).collect();
    let mut unexpected = 0;
    for ship in pods.iter().filter(|pod| SHIPS.contains(&pod.name.as_str())) {
        say(format!("{} on {} asks for landings", ship.name, ship.node));
        for station in &stations {
            let place = if station.node == ship.node { "same node" } else { "other node" };
            for address in &station.addresses {
                let url = format!("http://{}/v1/request-landing", SocketAddr::new(*address, 80));
                // Who is kept out hears nothing: no use in waiting long for it.
                let patience = if may(&ship.name) { "-m5" } else { "-m1" };
                let ask = ["exec", &ship.name, "--", "curl", "-sS", patience, "-XPOST", &url];
                let answer = output(&mut kubectl(&ask)).map(|text| text.trim().to_owned());
                let has_landed = matches!(&answer, Ok(text) if text == "Ship landed");
                unexpected += usize::from(has_landed != may(&ship.name));
                println!(
                    "    {:<28} {place:<12} {url:<52} {}",
                    station.name,
                    said(&answer, may(&ship.name))
                );
            }
        }
    }
    if stations.is_empty() || unexpected > 0 {
        bail!(
            "{unexpected} of these went otherwise than they should, at {} stations",
            stations.len()
        );
    }
    Ok(())
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
    })
}

/// An answer on one line.
fn said(answer: &anyhow::Result<String>, is_expected: bool) -> String {
    match answer {
        Ok(text) => text.clone(),
        Err(_) if !is_expected => "no answer: kept out".to_owned(),
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
            "spec": {"nodeName": "node-1"},
            "status": {"podIPs": [{"ip": "10.0.0.1"}, {"ip": "fd00::1"}]}
        }, {"metadata": {"name": "pending"}, "spec": {}, "status": {}}]}"#;
        let pods = pods(json).unwrap();
        assert_eq!(pods.len(), 1);
        assert_eq!((pods[0].node.as_str(), pods[0].addresses.len()), ("node-1", 2));
    }
}
