//! A lab for a test: started by the real command, removed however the test ends.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use kernel::map::Map as _;
use lab::control::Request;
use serde_json::{Value, json};

static LABS: AtomicU32 = AtomicU32::new(0);

/// Where the programs are: `CILIUM_BIN_DIR`, or what cargo has built.
pub fn bin_dir() -> PathBuf {
    match std::env::var_os("CILIUM_BIN_DIR") {
        Some(dir) => dir.into(),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/debug"),
    }
}

/// Whether the test can run here; says so loudly if not.
pub fn can_run(test: &str) -> bool {
    let programs = ["cilium", "cilium-agent", "cilium-operator", "cilium-cni"];
    let missing: Vec<&str> =
        programs.into_iter().filter(|p| !bin_dir().join(p).is_file()).collect();
    let requirements = [
        kernel::requirements::root(),
        kernel::requirements::kernel(),
        kernel::requirements::bpf(),
        kernel::requirements::cgroup2(),
    ];
    let reason = match requirements.into_iter().find_map(Result::err) {
        Some(error) => error.to_string(),
        None if !missing.is_empty() => {
            format!(
                "{} not in {}: run `cargo xtask build`",
                missing.join(", "),
                bin_dir().display()
            )
        }
        None if Command::new("kubectl").arg("version").arg("--client").output().is_err() => {
            "kubectl is not installed".to_owned()
        }
        None => return true,
    };
    eprintln!("SKIPPED: {test}: {reason}");
    false
}

/// A running lab.
pub struct Lab {
    pub name: String,
    pub took: Duration,
}

impl Lab {
    /// Starts a lab of this many nodes with these settings and these objects, which has nothing
    /// else running in it.
    pub fn up(nodes: u32, settings: &[&str], objects: &[Value]) -> Self {
        Self::up_with(&["--without-dns"], nodes, settings, objects)
    }

    /// Starts a lab with further flags.
    pub fn up_with(flags: &[&str], nodes: u32, settings: &[&str], objects: &[Value]) -> Self {
        let number = LABS.fetch_add(1, Ordering::Relaxed);
        let mut lab =
            Self { name: format!("t{}-{number}", std::process::id()), took: Duration::ZERO };
        let mut command = lab.command("up");
        command.args(["--nodes", &nodes.to_string()]).args(flags);
        for setting in settings {
            command.args(["--set", setting]);
        }
        let manifest = manifest(objects);
        let path = std::env::temp_dir().join(format!("{}.yaml", lab.name));
        if !objects.is_empty() {
            fs::write(&path, manifest).unwrap();
            command.arg("-f").arg(&path);
        }
        let began = Instant::now();
        let output = command.output().unwrap();
        lab.took = began.elapsed();
        let _ = fs::remove_file(&path);
        if !output.status.success() {
            lab.print_world();
            panic!("lab up: {}", text(&output));
        }
        lab
    }

    pub fn command(&self, verb: &str) -> Command {
        let mut command = Command::new(bin_dir().join("cilium"));
        command.args(["lab", verb]);
        if verb != "list" {
            command.args(["--name", &self.name]);
        }
        command
    }

    pub fn dir(&self) -> PathBuf {
        Path::new(lab::spec::LABS_DIR).join(&self.name)
    }

    /// Runs `cilium lab …` and returns what it printed; fails the test when it fails.
    pub fn run(&self, verb: &str, args: &[&str]) -> String {
        let output = self.command(verb).args(args).output().unwrap();
        if !output.status.success() {
            self.print_world();
            panic!("cilium lab {verb} {args:?}: {}", text(&output));
        }
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    pub fn status(&self) -> Value {
        serde_json::from_str(&self.run("status", &["-o", "json"])).unwrap()
    }

    pub fn agent_pid(&self, node: usize) -> Option<i32> {
        let status = self.status();
        status["nodes"][node - 1]["agent_pid"].as_i64().map(|pid| pid as i32)
    }

    /// Runs a command in a pod.
    pub fn try_exec(&self, pod: &str, argv: &[&str]) -> Result<String, String> {
        let output = self.command("exec").arg(pod).arg("--").args(argv).output().unwrap();
        outcome(&output)
    }

    pub fn exec(&self, pod: &str, argv: &[&str]) -> String {
        self.expect(self.try_exec(pod, argv), &format!("exec {pod} {argv:?}"))
    }

    /// Runs a command on a node.
    pub fn try_on_node(&self, node: &str, argv: &[&str]) -> Result<String, String> {
        let output = self.command("exec").args(["--node", node, "--"]).args(argv).output().unwrap();
        outcome(&output)
    }

    pub fn on_node(&self, node: &str, argv: &[&str]) -> String {
        self.expect(self.try_on_node(node, argv), &format!("on {node} {argv:?}"))
    }

    /// A command that goes on; killed when dropped.
    pub fn background(&self, place: &[&str], argv: &[&str]) -> Background {
        let mut command = self.command("exec");
        command.args(place).arg("--").args(argv).stdout(Stdio::piped()).stderr(Stdio::inherit());
        Background(Some(command.spawn().unwrap()))
    }

    pub fn kubectl(&self, args: &[&str]) -> String {
        self.expect(self.try_kubectl(args, ""), &format!("kubectl {args:?}"))
    }

    pub fn try_kubectl(&self, args: &[&str], stdin: &str) -> Result<String, String> {
        let mut child = Command::new("kubectl")
            .args(args)
            .env("KUBECONFIG", self.dir().join("kubeconfig"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(stdin.as_bytes()).unwrap();
        outcome(&child.wait_with_output().unwrap())
    }

    pub fn apply(&self, objects: &[Value]) {
        let applied = self.try_kubectl(&["apply", "-f", "-"], &manifest(objects));
        self.expect(applied, "kubectl apply");
    }

    /// Asks the supervisor directly: fast, and it works without the API server.
    pub fn ask(&self, request: &Request) -> Value {
        let socket = self.dir().join("control.sock");
        lab::control::ask(&socket, request, |_| {}).unwrap_or_else(|error| {
            self.print_world();
            panic!("{request:?}: {error:#}")
        })
    }

    /// Creates pods in process and waits until they are Ready.
    pub fn create(&self, pods: Vec<Value>) {
        self.ask(&Request::Apply { objects: pods, timeout_s: 180 });
    }

    /// Deletes pods in process and waits until they are gone.
    pub fn delete(&self, pods: &[Value]) {
        let name = |pod: &Value| pod["metadata"]["name"].as_str().unwrap().to_owned();
        let names = pods.iter().map(name).collect();
        self.ask(&Request::DeletePods { namespace: "default".to_owned(), names });
    }

    /// Starts a stream of 1,000 numbered packets per second to a netexec; `finish` says how many
    /// were lost.
    pub fn stream(&self, place: &[&str], target: IpAddr) -> Background {
        let cilium = bin_dir().join("cilium");
        let target = SocketAddr::new(target, 8081).to_string();
        self.background(
            place,
            &[cilium.to_str().unwrap(), "lab", "image", "agnhost", "loss", &target],
        )
    }

    /// Everything that pods leave on a node while they are there.
    pub fn inventory(&self, node: usize) -> BTreeMap<&'static str, usize> {
        let name = format!("node-{node}");
        let lines = |argv: &[&str]| self.on_node(&name, argv).lines().count();
        let maps =
            kernel::datapath::open_maps(&self.dir().join("nodes").join(&name).join("bpf")).unwrap();
        let descriptors = |pid: i64| fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
        let status = self.status();
        let cgroups =
            kernel::cgroup::Cgroup::root().unwrap().path().join("cilium-lab").join(&self.name);
        let agent = self.agent_pid(node).map_or(0, |pid| descriptors(pid.into()));
        BTreeMap::from([
            ("namespaces", lines(&["ls", "/run/netns"])),
            ("links", lines(&["ip", "-o", "link"])),
            ("addresses", lines(&["ip", "-o", "address"])),
            ("v4 routes", lines(&["ip", "-4", "route", "show", "table", "all"])),
            ("v6 routes", lines(&["ip", "-6", "route", "show", "table", "all"])),
            ("cilium_lxc", maps.lxc.entries().unwrap().len()),
            ("cilium_lxc_devices", maps.lxc_devices.entries().unwrap().len()),
            ("cilium_ipcache", maps.ipcache.entries().unwrap().len()),
            ("cilium_ipcache_hosts", maps.ipcache_hosts.entries().unwrap().len()),
            (
                "cgroups",
                fs::read_dir(cgroups.join(&name).join("pods"))
                    .unwrap()
                    .flatten()
                    .filter(|e| e.path().is_dir())
                    .count(),
            ),
            ("agent's descriptors", agent),
            ("supervisor's descriptors", descriptors(status["supervisor_pid"].as_i64().unwrap())),
        ])
    }

    pub fn pod(&self, name: &str) -> Value {
        serde_json::from_str(&self.kubectl(&["get", "pod", name, "-o", "json"])).unwrap()
    }

    pub fn pods(&self) -> Vec<Value> {
        let list: Value =
            serde_json::from_str(&self.kubectl(&["get", "pods", "-o", "json"])).unwrap();
        list["items"].as_array().unwrap().clone()
    }

    pub fn addresses(&self, pod: &str) -> Vec<IpAddr> {
        let pod = self.pod(pod);
        let ips = pod["status"]["podIPs"].as_array().cloned().unwrap_or_default();
        ips.iter().map(|ip| ip["ip"].as_str().unwrap().parse().unwrap()).collect()
    }

    pub fn wait_ready(&self, pods: &[&str]) {
        let mut args = vec!["wait", "--for=condition=Ready", "--timeout=180s", "pod"];
        args.extend(if pods.is_empty() { &["--all"] } else { pods });
        self.kubectl(&args);
    }

    /// Asks until the answer is yes.
    pub fn eventually(&self, what: &str, patience: Duration, mut question: impl FnMut() -> bool) {
        let deadline = Instant::now() + patience;
        while !question() {
            if Instant::now() > deadline {
                self.print_world();
                panic!("after {} s still not: {what}", patience.as_secs());
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    fn expect(&self, result: Result<String, String>, what: &str) -> String {
        result.unwrap_or_else(|error| {
            self.print_world();
            panic!("{what}: {error}")
        })
    }

    /// Everything that helps to see why a test failed.
    pub fn print_world(&self) {
        let show = |title: &str, output: Result<String, String>| {
            eprintln!("--- {title}\n{}", output.unwrap_or_else(|error| error));
        };
        show("status", outcome(&self.command("status").output().unwrap()));
        show("pods", self.try_kubectl(&["get", "pods", "-A", "-o", "wide"], ""));
        show("events", self.try_kubectl(&["get", "events", "-A"], ""));
        let logs = fs::read_dir(self.dir().join("logs")).into_iter().flatten().flatten();
        for log in logs {
            let content = fs::read_to_string(log.path()).unwrap_or_default();
            let lines: Vec<&str> = content.lines().collect();
            let tail = lines[lines.len().saturating_sub(25)..].join("\n");
            eprintln!("--- {}\n{tail}", log.path().display());
        }
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let output = self.command("down").output().unwrap();
        if !output.status.success() {
            eprintln!("lab down: {}", text(&output));
        }
    }
}

/// A command that goes on in the background.
pub struct Background(Option<Child>);

impl Background {
    /// Asks it to end and returns its last line, as JSON.
    pub fn finish(mut self) -> Value {
        let child = self.0.take().unwrap();
        nix::sys::signal::kill(
            nix::unistd::Pid::from_raw(child.id() as i32),
            nix::sys::signal::Signal::SIGTERM,
        )
        .unwrap();
        let output = child.wait_with_output().unwrap();
        let stdout = String::from_utf8_lossy(&output.stdout);
        serde_json::from_str(stdout.lines().last().unwrap_or_default())
            .unwrap_or_else(|error| panic!("{error}: {stdout:?}"))
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn outcome(output: &Output) -> Result<String, String> {
    match output.status.success() {
        true => Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned()),
        false => Err(text(output)),
    }
}

pub fn text(output: &Output) -> String {
    let both = [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes));
    format!("{}: {}", output.status, both.join("\n"))
}

fn manifest(objects: &[Value]) -> String {
    objects.iter().map(|object| format!("---\n{object}\n")).collect()
}

/// A pod that only exists.
pub fn pod(name: &str, node: Option<u32>) -> Value {
    let mut pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": "default", "labels": {"app": "test"}},
        "spec": {
            "terminationGracePeriodSeconds": 1,
            "containers": [{"name": "c", "image": "registry.k8s.io/pause:3.10"}],
        },
    });
    if let Some(node) = node {
        pod["spec"]["nodeName"] = json!(format!("node-{node}"));
    }
    pod
}

/// A pod that serves HTTP on 8080 and UDP on 8081.
pub fn server(name: &str, node: u32) -> Value {
    let mut pod = pod(name, Some(node));
    pod["spec"]["containers"][0] = json!({
        "name": "c", "image": "registry.k8s.io/e2e-test-images/agnhost:2.53", "args": ["netexec"],
        "readinessProbe": {"httpGet": {"path": "/healthz", "port": 8080}},
    });
    pod
}

/// Asks a netexec for something over HTTP.
pub fn curl(address: IpAddr, path: &str) -> Vec<String> {
    let url = format!("http://{}/{path}", SocketAddr::new(address, 8080));
    ["curl", "-sS", "--max-time", "10", &url].map(str::to_owned).to_vec()
}

/// The traces that labs of this name leave on the machine.
pub fn traces(name: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    found.extend(mounts.lines().filter(|line| line.contains(name)).map(str::to_owned));
    let list = |dir: &str| {
        fs::read_dir(dir).into_iter().flatten().flatten().map(|e| e.path()).collect::<Vec<_>>()
    };
    let cgroups = kernel::cgroup::Cgroup::root().unwrap().path().join("cilium-lab");
    for dir in ["/run/netns", "/run/cilium-lab", cgroups.to_str().unwrap(), "/sys/class/net"] {
        let entries = list(dir).into_iter().map(|path| path.display().to_string());
        found.extend(entries.filter(|path| path.contains(name)));
    }
    for process in list("/proc") {
        let words = fs::read(process.join("cmdline")).unwrap_or_default();
        let words = String::from_utf8_lossy(&words).replace('\0', " ");
        // The test itself and what it starts may name the lab.
        if words.contains(&format!("/{name}/")) || words.contains(&format!("\"{name}\"")) {
            found.insert(format!("{} {words}", process.display()));
        }
    }
    found
}
