//! A node in a network namespace of its own, a pod's namespace, and the plugin run between them
//! as a container runtime runs it.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use kernel::netlink::Netlink;
use kernel::netns::Netns;
use serde_json::{Value, json};

use crate::fake_agent::FakeAgent;

pub(crate) struct World {
    dir: PathBuf,
    pub(crate) node: Netns,
    pub(crate) pod: Netns,
    pub(crate) agent: FakeAgent,
    pub(crate) version: &'static str,
}

/// What the plugin answered.
#[derive(Debug, PartialEq)]
pub(crate) struct Answer {
    pub(crate) ok: bool,
    pub(crate) json: Value,
}

impl Answer {
    /// `code: message`, or `ok`.
    pub(crate) fn summary(&self) -> String {
        if self.ok {
            return "ok".to_owned();
        }
        format!("{}: {}", self.json["code"], self.json["msg"].as_str().unwrap_or_default())
    }
}

/// The world of a test, or `None` where this machine has none to offer.
pub(crate) fn world(test: &str) -> Option<World> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    if !nix::unistd::geteuid().is_root() {
        eprintln!("SKIPPED: {test}: needs root to make network namespaces");
        return None;
    }
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let dir = std::env::temp_dir().join(format!("cilium-cni-test-{}-{number}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let node = match Netns::create(&dir.join("node")) {
        Ok(node) => node,
        Err(error) => {
            eprintln!("SKIPPED: {test}: {error}");
            let _ = std::fs::remove_dir_all(&dir);
            return None;
        }
    };
    let pod = Netns::create(&dir.join("pod")).unwrap();
    let agent = FakeAgent::start(&dir.join("cilium.sock"));
    Some(World { dir, node, pod, agent, version: "1.1.0" })
}

/// Starts the plugin in the namespace of the calling thread.
fn spawn(socket: &Path, env: &[(&str, &str)], stdin: &str) -> Child {
    let mut child = Command::new(env!("CARGO_BIN_EXE_cilium-cni"))
        .env_clear()
        .env("CILIUM_SOCK", socket)
        .envs(env.iter().copied())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(stdin.as_bytes()).unwrap();
    child
}

impl Drop for World {
    fn drop(&mut self) {
        // It is stopped by way of its socket, so before the directory goes.
        self.agent.stop();
        for name in ["node", "pod"] {
            let _ = Netns::delete(&self.dir.join(name));
        }
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

pub(crate) const CONTAINER: &str = "c1";

impl World {
    pub(crate) fn netns_path(&self) -> PathBuf {
        self.dir.join("pod")
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.join("cilium.sock")
    }

    pub(crate) fn conf(&self) -> Value {
        json!({"cniVersion": self.version, "name": "cilium", "type": "cilium-cni"})
    }

    /// Runs a command for [`CONTAINER`] with the usual configuration.
    pub(crate) fn run(&self, command: &str) -> Answer {
        self.run_with(command, CONTAINER, &self.conf())
    }

    pub(crate) fn run_with(&self, command: &str, container: &str, conf: &Value) -> Answer {
        let netns = self.netns_path();
        self.exec(
            &[
                ("CNI_COMMAND", command),
                ("CNI_CONTAINERID", container),
                ("CNI_NETNS", netns.to_str().unwrap()),
                ("CNI_IFNAME", "eth0"),
                (
                    "CNI_ARGS",
                    "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web;K8S_POD_UID=u",
                ),
                ("CNI_PATH", "/opt/cni/bin"),
            ],
            &conf.to_string(),
        )
    }

    /// Runs the plugin with this environment and nothing else, in the node's namespace.
    pub(crate) fn exec(&self, env: &[(&str, &str)], stdin: &str) -> Answer {
        let socket = self.socket();
        let run = || spawn(&socket, env, stdin).wait_with_output().unwrap();
        // A child is born in the namespace of the thread that makes it.
        let output = self.node.run(run).unwrap();
        let stdout = String::from_utf8(output.stdout).unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(stderr, "", "the plugin wrote to stderr");
        let json = match stdout.trim() {
            "" => Value::Null,
            text => serde_json::from_str(text)
                .unwrap_or_else(|error| panic!("{error} in the answer {text}")),
        };
        Answer { ok: output.status.success(), json }
    }

    /// Starts ADD and kills it while the agent does not answer a request.
    pub(crate) fn add_and_kill(&self) {
        let netns = self.netns_path();
        let env = [
            ("CNI_COMMAND", "ADD"),
            ("CNI_CONTAINERID", CONTAINER),
            ("CNI_NETNS", netns.to_str().unwrap()),
            ("CNI_IFNAME", "eth0"),
        ];
        let (socket, conf) = (self.socket(), self.conf().to_string());
        let mut child = self.node.run(|| spawn(&socket, &env, &conf)).unwrap();
        self.agent.wait_until_hung();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// CHECK or DEL as a runtime calls them: with the result of ADD.
    pub(crate) fn run_after(&self, command: &str, added: &Answer) -> Answer {
        let mut conf = self.conf();
        conf["prevResult"] = added.json.clone();
        self.run_with(command, CONTAINER, &conf)
    }

    /// The names of all links of a namespace but the loopback.
    pub(crate) fn links(netns: &Netns) -> Vec<String> {
        let links = Netlink::in_netns(netns).unwrap().links().unwrap();
        links.into_iter().filter(|link| !link.loopback).map(|link| link.name).collect()
    }

    /// Runs `ip` in a namespace; for tampering.
    pub(crate) fn ip(netns: &Netns, arguments: &str) {
        let status = netns
            .run(|| Command::new("ip").args(arguments.split_whitespace()).status().unwrap())
            .unwrap();
        assert!(status.success(), "ip {arguments}");
    }

    /// Everything that ADD makes: links at both ends, addresses and endpoints of the agent, and
    /// deletions that wait for it.
    pub(crate) fn leftovers(&self) -> Vec<String> {
        let mut left: Vec<String> = Self::links(&self.node);
        left.extend(Self::links(&self.pod).into_iter().map(|name| format!("pod {name}")));
        self.agent.with(|state| {
            left.extend(state.addresses.iter().map(|address| format!("address {address}")));
            left.extend(state.endpoints.keys().map(|id| format!("endpoint {id}")));
        });
        left.extend(self.queued().into_iter().map(|text| format!("queued {text}")));
        left
    }

    /// What waits in the queue of deletions.
    pub(crate) fn queued(&self) -> Vec<String> {
        let Ok(files) = std::fs::read_dir(self.dir.join("deleteQueue")) else { return Vec::new() };
        files
            .map(|file| file.unwrap().path())
            .filter(|path| path.extension().is_some_and(|extension| extension == "delete"))
            .map(|path| std::fs::read_to_string(path).unwrap())
            .collect()
    }

    /// An answer as text, without what differs between runs.
    pub(crate) fn stable(&self, answer: &Answer) -> String {
        let text = serde_json::to_string_pretty(&answer.json).unwrap();
        text.replace(self.dir.to_str().unwrap(), "<dir>")
    }
}
