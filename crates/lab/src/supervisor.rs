//! The process behind a lab: builds it, hosts the API server, and keeps everything running.
//!
//! ```text
//!   supervisor ─┬─ API server (127.0.0.1, hub)   ─ scheduler
//!               ├─ operator (child, hub)
//!               ├─ node-1: agent (child) ─ node status ─ pod runner ─ CNI plugin, containers
//!               ├─ node-2: …
//!               └─ control socket: status, locate, apply
//! ```
//!
//! It holds no state that matters: `down` works without it, and a node survives the death of any
//! of its processes. A supervisor that is started again takes over what the one before has left: the
//! cluster's objects from the disk, programs and containers from their cgroups.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::os::fd::AsFd as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use ipnet::IpNet;
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use kernel::cgroup::Cgroup;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{broadcast, mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::apiserver::{self, ApiServer};
use crate::arrival;
use crate::cluster::{CILIUM_NODES, CLAIMS, CONFIG_MAPS, Cluster, KUBE_SYSTEM, PODS};
use crate::control::{Answer, Located, NodeStatus, Request, Status};
use crate::controllers;
use crate::hubble;
use crate::logs;
use crate::network::Network;
use crate::node;
use crate::place::{CgroupDir, Place};
use crate::process::{Command, PATH};
use crate::program::{keep_running, survivor};
use crate::runner::{self, Node, PodChange, SourceChange, cni::Cni};
use crate::scheduler;
use crate::spec::{
    CGROUP, CNI_CONFLIST, HUB, INTERNET, INTERNET_PORTS, INTERNET_ZONE, NodeSpec, Paths, Spec,
};
use crate::streams::{Consoles, Streams};

/// What the agent and the operator may do.
const RIGHTS: &str = include_str!("../../../deploy/rbac.yaml");
/// Cluster DNS as a workload.
const CLUSTER_DNS: &str = include_str!("dns.yaml");
/// The label of name servers.
const DNS_LABEL: (&str, &str) = ("k8s-app", "kube-dns");
/// How long the nodes of a new lab may take to be ready.
const READY_TIMEOUT: Duration = Duration::from_secs(120);

/// How long a new lab waits for cluster DNS.
const DNS_TIMEOUT: Duration = Duration::from_secs(10);

/// Runs a lab until it is killed. Standard output is read by `cilium lab up` until the lab is
/// ready: lines of [`Answer`].
pub fn run(spec: &Spec) -> Result<()> {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let mut launcher = Launcher(match Paths::new(&spec.name).is_up().exists() {
        // Nobody waits for a lab that has been up already.
        true => None,
        false => Some(std::io::stdout()),
    });
    let result = runtime.block_on(supervise(spec, &mut launcher));
    if let Err(error) = &result {
        launcher.tell(&Answer::Failed(format!("{error:#}")));
    }
    result
}

/// The `cilium lab up` that waits for us, if one does.
struct Launcher(Option<std::io::Stdout>);

impl Launcher {
    /// Says whether everybody has heard who listens.
    fn tell(&mut self, answer: &Answer) -> bool {
        let Some(stdout) = &mut self.0 else { return true };
        let line = serde_json::to_string(answer).unwrap_or_default();
        writeln!(stdout, "{line}").and_then(|()| stdout.flush()).is_ok()
    }

    /// Ends the conversation: from now on nobody has to listen.
    fn leave(&mut self) -> Result<()> {
        let null = File::options().write(true).open("/dev/null")?;
        nix::unistd::dup2_stdout(&null).context("close standard output")?;
        self.0 = None;
        Ok(())
    }
}

/// A lab that runs.
struct Lab {
    spec: Spec,
    paths: Paths,
    api_server: ApiServer,
    cluster: Cluster,
    nodes: Vec<LabNode>,
    network: Arc<Network>,
    operator: watch::Receiver<Option<i32>>,
    /// Hubble's relay, where there is one.
    relay: Option<watch::Receiver<Option<i32>>>,
}

/// A node that runs.
struct LabNode {
    node: Arc<Node>,
    agent: watch::Receiver<Option<i32>>,
    pods: mpsc::UnboundedSender<PodChange>,
}

/// Programs and directories that the lab's children are started from.
struct Programs {
    own: PathBuf,
    dir: PathBuf,
}

impl Programs {
    fn find() -> Result<Self> {
        let own = std::env::current_exe().context("find this program")?;
        let dir = own.parent().context("this program has no directory")?.to_path_buf();
        for name in ["cilium-agent", "cilium-operator", "cilium-cni"] {
            if !dir.join(name).is_file() {
                bail!(
                    "{name} is not beside {}: build it with `cargo xtask build`, or copy all programs to one directory",
                    own.display()
                );
            }
        }
        Ok(Self { own, dir })
    }

    fn path(&self, name: &str) -> String {
        self.dir.join(name).display().to_string()
    }
}

async fn supervise(spec: &Spec, launcher: &mut Launcher) -> Result<()> {
    let paths = Paths::new(&spec.name);
    let programs = Programs::find()?;
    fs::write(paths.spec(), serde_json::to_vec_pretty(spec)?)?;

    let mut tasks = JoinSet::new();
    let began = Instant::now();
    let cgroups = Cgroup::root()?.child(CGROUP)?.child(&spec.name)?;
    // Where an earlier supervisor has been at work, its work is gone on with.
    let resumed = paths.is_up().exists();
    let names: Vec<String> = spec.node_specs().map(NodeSpec::name).collect();
    let network = Arc::new(match resumed {
        true => Network::open(&paths, names.iter().map(String::as_str))?,
        false => Network::create(&paths)?,
    });
    let consoles = Arc::new(Consoles::default());
    let (api_server, port) = start_api_server(&paths, &network, consoles.clone()).await?;
    let cluster = Cluster::new(api_server.api());
    if !resumed {
        seed(spec, &paths, &cluster)?;
    }
    write_kubeconfigs(&paths, &api_server, port)?;
    fs::write(paths.resolv_conf(), runner::etc::node_resolv_conf())?;
    told(launcher, format!("API server {}", api_url(&paths)?))?;

    let operator = start_operator(&paths, &programs, &cgroups, &network, &mut tasks)?;
    let relay = start_relay(spec, &paths, &programs, &cgroups, &network, &mut tasks)?;
    start_internet(&paths, &programs, &cgroups, &network, &mut tasks)?;
    let cluster_dns = watch::Sender::new(Vec::new());
    let parts = Parts {
        spec,
        paths: &paths,
        programs: &programs,
        cgroups: &cgroups,
        network: &network,
        cluster: &cluster,
        cluster_dns: &cluster_dns,
        consoles: &consoles,
        sources: &broadcast::Sender::new(runner::SOURCE_CHANGES_MAX),
        api_server: pods_api_server(spec, port),
        resumed,
    };
    tasks.spawn(runner::follow_sources(cluster.clone(), parts.sources.clone()));
    let mut nodes = Vec::new();
    for node_spec in spec.node_specs() {
        let node = make_node(node_spec, &parts)?;
        tasks.spawn(node.clone().follow_cluster_dns());
        nodes.push(start_node(node, node_spec, &paths, &programs, &mut tasks)?);
    }
    info!("namespaces and processes are there after {} ms", began.elapsed().as_millis());
    told(launcher, format!("{} nodes started", nodes.len()))?;

    tasks.spawn(scheduler::run(cluster.clone()));
    // As long as the process: nothing that it does needs to be finished.
    tasks.spawn(controllers::run(api_server.api(), CancellationToken::new()));
    let senders = nodes.iter().map(|n| (n.node.name.clone(), n.pods.clone())).collect();
    tasks.spawn(dispatch_pods(cluster.clone(), senders));
    tasks.spawn(remove_claims(cluster.clone(), paths.clone()));
    let log_dir = paths.log("").parent().map(Path::to_owned);
    tasks.spawn(logs::times::keep(log_dir.context("logs are in a directory")?));
    let dns_ready = cluster_dns.subscribe();
    tasks.spawn(find_cluster_dns(cluster.clone(), cluster_dns));
    tasks.spawn(route_pods(cluster.clone(), network.clone()));
    tasks.spawn(materialise_config(cluster.clone(), paths.clone()));

    let lab =
        Lab { spec: spec.clone(), paths, api_server, cluster, nodes, network, operator, relay };
    let lab = Arc::new(lab);
    tasks.spawn(serve_control(lab.clone()));

    if !resumed {
        wait_ready(&lab, launcher).await?;
        if spec.dns {
            wait_dns(dns_ready, launcher).await?;
        }
        File::create(lab.paths.is_up()).context("note that the lab is up")?;
        launcher.tell(&Answer::Done(Value::Null));
        launcher.leave()?;
    }
    // None of these ends by itself; one that does has panicked, which the log should say.
    while let Some(ended) = tasks.join_next().await {
        warn!("a task of the lab has ended: {ended:?}");
    }
    Ok(())
}

/// Progress for the launcher. When it is gone (interrupted), nobody wants the lab.
fn told(launcher: &mut Launcher, text: String) -> Result<()> {
    info!("{text}");
    match launcher.tell(&Answer::Progress(text)) {
        true => Ok(()),
        false => bail!("nobody waits for the lab any more"),
    }
}

/// Waits until names can be resolved. A lab is of use without: settings may keep its pods away.
async fn wait_dns(
    mut servers: watch::Receiver<Vec<IpAddr>>,
    launcher: &mut Launcher,
) -> Result<()> {
    let ready = servers.wait_for(|servers| !servers.is_empty());
    let text = match tokio::time::timeout(DNS_TIMEOUT, ready).await {
        Ok(_) => "cluster DNS Ready",
        Err(_) => {
            "cluster DNS is not ready: `kubectl -n kube-system describe pods -l k8s-app=kube-dns` says more"
        }
    };
    told(launcher, text.to_owned())
}

async fn wait_ready(lab: &Lab, launcher: &mut Launcher) -> Result<()> {
    let deadline = tokio::time::Instant::now() + READY_TIMEOUT;
    let mut waiting = JoinSet::new();
    for node in &lab.nodes {
        let mut ready = node.node.ready.subscribe();
        let name = node.node.name.clone();
        waiting.spawn(async move { ready.wait_for(|ready| *ready).await.map(|_| name) });
    }
    let mut ready = 0;
    while let Ok(Some(done)) = tokio::time::timeout_at(deadline, waiting.join_next()).await {
        if let Ok(Ok(name)) = done {
            ready += 1;
            told(launcher, format!("{name} Ready ({ready}/{})", lab.nodes.len()))?;
        }
        if waiting.is_empty() {
            return Ok(());
        }
    }
    let missing: Vec<&str> = lab
        .nodes
        .iter()
        .filter(|n| !*n.node.ready.borrow())
        .map(|n| n.node.name.as_str())
        .collect();
    let first = missing.first().copied().unwrap_or_default();
    bail!(
        "after {} s these nodes are not ready: {}; look at {} (the lab is left as it is, `cilium lab down --name {}` removes it)",
        READY_TIMEOUT.as_secs(),
        missing.join(", "),
        lab.paths.log(&format!("agent-{first}")).display(),
        lab.spec.name,
    )
}

// ---------------------------------------------------------------------------------------------
// API server

async fn start_api_server(
    paths: &Paths,
    network: &Network,
    consoles: Arc<Consoles>,
) -> Result<(ApiServer, u16)> {
    let known = fs::read_to_string(paths.api_port()).ok().and_then(|port| port.parse().ok());
    let local = TcpListener::bind((Ipv4Addr::LOCALHOST, known.unwrap_or(0)))
        .context("listen on 127.0.0.1")?;
    // The same port in both namespaces is not needed, but easier to read.
    let port = local.local_addr()?.port();
    fs::write(paths.api_port(), port.to_string()).context("note the API server's port")?;
    let hub_v4 = network.listen_on_hub(HUB.0.into(), port)?;
    let hub_v6 = network.listen_on_hub(HUB.1.into(), port)?;
    let names = [
        "localhost",
        "kubernetes",
        "kubernetes.default",
        "kubernetes.default.svc",
        "kubernetes.default.svc.cluster.local",
        apiserver::KUBERNETES_SERVICE_IP,
    ]
    .map(str::to_owned);
    let addresses = [IpAddr::V4(Ipv4Addr::LOCALHOST), HUB.0.into(), HUB.1.into()];
    let server = ApiServer::start(apiserver::Config {
        listeners: vec![local, hub_v4, hub_v6],
        server_names: names.into_iter().chain(addresses.map(|a| a.to_string())).collect(),
        advertised: vec![(HUB.0, port).into(), (HUB.1, port).into()],
        streams: Some(Arc::new(Streams { paths: paths.clone(), consoles })),
        persistence: Some(paths.api_state()),
    })
    .await?;
    let url = format!("https://{}", SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port));
    write_private(&paths.kubeconfig(), &server.kubeconfig(&url, &context_name(paths)))?;
    Ok((server, port))
}

fn context_name(paths: &Paths) -> String {
    format!("cilium-lab-{}", paths.name())
}

/// How the lab's own programs reach the API server: each as itself, with its own rights.
fn write_kubeconfigs(paths: &Paths, server: &ApiServer, port: u16) -> Result<()> {
    let url = format!("https://{}", SocketAddr::new(HUB.0.into(), port));
    for (path, account) in
        [(paths.kubeconfig_agent(), "cilium"), (paths.kubeconfig_operator(), "cilium-operator")]
    {
        let name = context_name(paths);
        let text = server.kubeconfig_of_service_account(&url, &name, KUBE_SYSTEM, account)?;
        write_private(&path, &text)?;
    }
    Ok(())
}

pub(crate) fn write_private(path: &Path, text: &str) -> Result<()> {
    let file = OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(path);
    file.and_then(|mut file| file.write_all(text.as_bytes()))
        .with_context(|| format!("write {}", path.display()))
}

/// Where pods find the API server: the hub, in a family that they have.
fn pods_api_server(spec: &Spec, port: u16) -> SocketAddr {
    let v4 = spec.cilium_config().get("enable-ipv4").is_none_or(|on| on == "true");
    let address = if v4 { IpAddr::from(HUB.0) } else { IpAddr::from(HUB.1) };
    SocketAddr::new(address, port)
}

/// The API server's address in the users' kubeconfig.
fn api_url(paths: &Paths) -> Result<String> {
    let text = fs::read_to_string(paths.kubeconfig())?;
    let url = text.lines().find_map(|line| line.trim().strip_prefix("server: "));
    Ok(url.context("the kubeconfig names no server")?.trim_matches('"').to_owned())
}

/// Objects that a cluster has before anything runs in it.
fn seed(spec: &Spec, paths: &Paths, cluster: &Cluster) -> Result<()> {
    let hubble = hubble::Files::of(paths);
    let mut config = hubble.config();
    config.extend(spec.cilium_config());
    hubble.make_certificates(config.get("cluster-name").map_or("default", String::as_str))?;
    write_config(&paths.config_dir(), &config)?;
    let map = json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": "cilium-config", "namespace": KUBE_SYSTEM},
        "data": config,
    });
    cluster.apply(CONFIG_MAPS, map)?;
    let mut manifests = vec![RIGHTS];
    manifests.extend(spec.dns.then_some(CLUSTER_DNS));
    for manifest in manifests {
        let objects: Vec<Value> =
            serde_saphyr::from_multiple(manifest).context("read a manifest")?;
        objects.into_iter().try_for_each(|object| cluster.apply_manifest(object).map(drop))?;
    }
    Ok(())
}

/// Keeps the files of the ConfigMap as a kubelet does; agents read them when they start.
async fn materialise_config(cluster: Cluster, paths: Paths) {
    let mut watch = cluster.watch(CONFIG_MAPS);
    loop {
        let change = watch.next().await;
        let ours = change.namespace() == KUBE_SYSTEM && change.name() == "cilium-config";
        let map = change.typed::<ConfigMap>().filter(|_| ours && !change.gone);
        let Some(map) = map else { continue };
        if let Err(error) = write_config(&paths.config_dir(), &map.data.unwrap_or_default()) {
            warn!("{error:#}");
        }
    }
}

fn write_config(dir: &Path, config: &BTreeMap<String, String>) -> Result<()> {
    fs::create_dir_all(dir)?;
    for entry in fs::read_dir(dir)?.flatten() {
        let known = entry.file_name().to_str().is_some_and(|name| config.contains_key(name));
        if !known {
            fs::remove_file(entry.path())?;
        }
    }
    for (key, value) in config {
        // Keys of a ConfigMap have no slashes; those of `--set` have not been checked by anybody.
        if key.contains('/') || key.starts_with('.') {
            bail!("{key:?} cannot be a key of cilium-config");
        }
        let path = dir.join(key);
        if fs::read_to_string(&path).is_ok_and(|old| old == *value) {
            continue;
        }
        fs::write(&path, value).with_context(|| format!("write {}", path.display()))?;
    }
    Ok(())
}

// ---------------------------------------------------------------------------------------------
// Programs

/// What every program of the lab is started with.
fn environment(extra: &[(&str, &str)]) -> Vec<(String, String)> {
    let mut env = vec![("PATH".to_owned(), PATH.to_owned())];
    for name in ["RUST_LOG", "RUST_BACKTRACE"] {
        env.extend(std::env::var(name).ok().map(|value| (name.to_owned(), value)));
    }
    env.extend(extra.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())));
    env
}

fn open_log(paths: &Paths, name: &str) -> Result<File> {
    let path = paths.log(name);
    OpenOptions::new()
        .create(true)
        .append(true)
        .open(&path)
        .with_context(|| format!("open {}", path.display()))
}

fn start_operator(
    paths: &Paths,
    programs: &Programs,
    cgroups: &Cgroup,
    network: &Arc<Network>,
    tasks: &mut JoinSet<()>,
) -> Result<watch::Receiver<Option<i32>>> {
    let cgroup = cgroups.child("hub")?;
    let log = open_log(paths, "operator")?;
    let argv = vec![
        programs.path("cilium-operator"),
        format!("--config-dir={}", paths.config_dir().display()),
        format!("--k8s-kubeconfig-path={}", paths.kubeconfig_operator().display()),
    ];
    let network = network.clone();
    let (pid, running) = watch::channel(None);
    let left = survivor(paths, &cgroup, "operator");
    tasks.spawn(keep_running("cilium-operator".to_owned(), pid, left, move || {
        let cgroup = CgroupDir::fresh(&cgroup, "operator")?;
        let command = Command {
            argv: argv.clone(),
            env: environment(&[("K8S_NODE_NAME", "hub"), ("CILIUM_K8S_NAMESPACE", KUBE_SYSTEM)]),
            cgroup: Some(cgroup.as_fd()),
            netns: Some(network.hub.as_fd()),
            stdout: Some(log.as_fd()),
            stderr: Some(log.as_fd()),
            ..Command::default()
        };
        Ok(command.spawn()?)
    }));
    Ok(running)
}

/// Hubble's relay, where agents have a server for it and it was built.
fn start_relay(
    spec: &Spec,
    paths: &Paths,
    programs: &Programs,
    cgroups: &Cgroup,
    network: &Arc<Network>,
    tasks: &mut JoinSet<()>,
) -> Result<Option<watch::Receiver<Option<i32>>>> {
    let program = programs.path("hubble-relay");
    let is_off = spec.cilium_config().get("enable-hubble").is_some_and(|value| value != "true");
    if is_off || !Path::new(&program).is_file() {
        info!("without hubble-relay: {}", if is_off { "Hubble is off" } else { "it is not built" });
        return Ok(None);
    }
    let cgroup = cgroups.child("hub")?;
    let log = open_log(paths, "hubble-relay")?;
    let argv = hubble::Files::of(paths).relay_argv(program, spec);
    let network = network.clone();
    let (pid, running) = watch::channel(None);
    let left = survivor(paths, &cgroup, "hubble-relay");
    tasks.spawn(keep_running("hubble-relay".to_owned(), pid, left, move || {
        let cgroup = CgroupDir::fresh(&cgroup, "hubble-relay")?;
        let command = Command {
            argv: argv.clone(),
            env: environment(&[]),
            cgroup: Some(cgroup.as_fd()),
            netns: Some(network.hub.as_fd()),
            stdout: Some(log.as_fd()),
            stderr: Some(log.as_fd()),
            ..Command::default()
        };
        Ok(command.spawn()?)
    }));
    Ok(Some(running))
}

/// The host behind the external router, so that there is something to reach.
fn start_internet(
    paths: &Paths,
    programs: &Programs,
    cgroups: &Cgroup,
    network: &Arc<Network>,
    tasks: &mut JoinSet<()>,
) -> Result<()> {
    let cgroup = cgroups.child("external")?;
    let (http, udp) = INTERNET_PORTS;
    let (v4, v6) = INTERNET;
    let web = format!(
        "agnhost netexec --http-port={http} --udp-port={udp} --udp-listen-addresses={v4},{v6}"
    );
    let dns = format!(
        "dns-authority --origin={INTERNET_ZONE} --hosts={v4},{v6} --listen={v4} --listen={v6}"
    );
    for (name, args) in [("external", web), ("external-dns", dns)] {
        let own = programs.own.display().to_string();
        let words = ["lab", "image"].into_iter().chain(args.split(' ')).map(str::to_owned);
        let argv: Vec<String> = [own].into_iter().chain(words).collect();
        let (log, cgroup, network) = (open_log(paths, name)?, cgroup.clone(), network.clone());
        let left = survivor(paths, &cgroup, name);
        tasks.spawn(keep_running(name.to_owned(), watch::Sender::new(None), left, move || {
            let cgroup = CgroupDir::fresh(&cgroup, name)?;
            let command = Command {
                argv: argv.clone(),
                env: environment(&[]),
                cgroup: Some(cgroup.as_fd()),
                netns: Some(network.external.as_fd()),
                stdout: Some(log.as_fd()),
                stderr: Some(log.as_fd()),
                ..Command::default()
            };
            Ok(command.spawn()?)
        }));
    }
    Ok(())
}

// ---------------------------------------------------------------------------------------------
// Nodes

/// What a node needs of all parts of the lab.
struct Parts<'a> {
    spec: &'a Spec,
    paths: &'a Paths,
    programs: &'a Programs,
    cgroups: &'a Cgroup,
    network: &'a Network,
    cluster: &'a Cluster,
    cluster_dns: &'a watch::Sender<Vec<IpAddr>>,
    consoles: &'a Arc<Consoles>,
    sources: &'a broadcast::Sender<SourceChange>,
    api_server: SocketAddr,
    resumed: bool,
}

fn make_node(node_spec: NodeSpec, parts: &Parts<'_>) -> Result<Arc<Node>> {
    let Parts { paths, programs, .. } = *parts;
    let name = node_spec.name();
    let place = match parts.resumed {
        true => Place::open(paths, parts.cgroups, &name)?,
        false => {
            let place = Place::create(paths, parts.cgroups, &name)?;
            parts.network.add_node(node_spec, &place.netns)?;
            place
        }
    };
    let place = Arc::new(place);
    node::register(parts.cluster, parts.spec, node_spec)?;
    let conf_dir = Path::new(CNI_CONFLIST).parent().and_then(|dir| dir.strip_prefix("/run").ok());
    let conf_dir =
        paths.node_run(&name).join(conf_dir.context("the CNI configuration is below /run")?);
    fs::create_dir_all(&conf_dir)?;
    let cni = Cni::new(
        place.clone(),
        conf_dir,
        programs.dir.clone(),
        open_log(paths, &format!("cni-{name}"))?,
    );
    // Networks of pods that run: whoever cleans up must know of them.
    let sandboxes = runner::record::Sandbox::of_node(paths, &name).into_iter();
    let attachments: BTreeSet<String> = sandboxes.map(|sandbox| sandbox.container_id).collect();
    Ok(Arc::new(Node {
        addresses: node_spec.addresses().to_vec(),
        cluster: parts.cluster.clone(),
        cni,
        paths: paths.clone(),
        own_program: programs.own.display().to_string(),
        pods_cgroup: place.cgroup.child("pods")?,
        running: Default::default(),
        attachments: attachments.into(),
        ready: watch::Sender::new(false),
        cluster_dns: parts.cluster_dns.subscribe(),
        consoles: parts.consoles.clone(),
        sources: parts.sources.clone(),
        api_server: parts.api_server,
        place,
        name,
    }))
}

fn start_node(
    node: Arc<Node>,
    node_spec: NodeSpec,
    paths: &Paths,
    programs: &Programs,
    tasks: &mut JoinSet<()>,
) -> Result<LabNode> {
    let log = open_log(paths, &format!("agent-{}", node.name))?;
    let argv = vec![
        programs.path("cilium-agent"),
        format!("--config-dir={}", paths.config_dir().display()),
        format!("--k8s-kubeconfig-path={}", paths.kubeconfig_agent().display()),
    ];
    let (pid, agent) = watch::channel(None);
    let place = node.place.clone();
    let left = survivor(paths, &place.cgroup, "agent");
    tasks.spawn(keep_running(format!("agent of {}", node.name), pid, left, move || {
        let cgroup = CgroupDir::fresh(&place.cgroup, "agent")?;
        let env = environment(&[
            ("K8S_NODE_NAME", place.name.as_str()),
            ("CILIUM_K8S_NAMESPACE", KUBE_SYSTEM),
        ]);
        let command = Command {
            argv: argv.clone(),
            env,
            stdout: Some(log.as_fd()),
            stderr: Some(log.as_fd()),
            ..place.command(&cgroup)
        };
        Ok(place.spawn(&command)?)
    }));
    let (pods, inbox) = mpsc::unbounded_channel();
    tasks.spawn(runner::run(node.clone(), inbox));
    tasks.spawn(node::report(node.clone(), node_spec, agent.clone()));
    Ok(LabNode { node, agent, pods })
}

/// Keeps the list of name servers: pods ask them directly, as nothing translates Services yet.
async fn find_cluster_dns(cluster: Cluster, servers: watch::Sender<Vec<IpAddr>>) {
    let mut watch = cluster.watch(PODS);
    let mut ready: BTreeMap<String, Vec<IpAddr>> = BTreeMap::new();
    loop {
        let change = watch.next().await;
        let (key, value) = DNS_LABEL;
        let mut labels = change.object.labels.iter();
        if change.namespace() != KUBE_SYSTEM || !labels.any(|(k, v)| (&**k, &**v) == (key, value)) {
            continue;
        }
        let pod = change.object.value();
        let status = &pod["status"];
        let mut conditions = status["conditions"].as_array().into_iter().flatten();
        let is_ready = conditions.any(|c| c["type"] == "Ready" && c["status"] == "True");
        if change.gone || !is_ready || pod["metadata"]["deletionTimestamp"].is_string() {
            ready.remove(change.name());
        } else {
            let ips = status["podIPs"].as_array().into_iter().flatten();
            let ips = ips.filter_map(|ip| ip["ip"].as_str()?.parse().ok());
            ready.insert(change.name().to_owned(), ips.collect());
        }
        // A resolver asks three at most: first one address of each server, then the others.
        let firsts = ready.values().filter_map(|ips| ips.first());
        let others = ready.values().flat_map(|ips| ips.iter().skip(1));
        let found: Vec<IpAddr> = firsts.chain(others).copied().collect();
        // The last server's address stays: pods without any would ask the world outside.
        if !found.is_empty() {
            servers.send_if_modified(|old| std::mem::replace(old, found.clone()) != found);
        }
    }
}

/// Removes what was kept for claims that are gone.
async fn remove_claims(cluster: Cluster, paths: Paths) {
    let mut watch = cluster.watch(CLAIMS);
    loop {
        let change = watch.next().await;
        if change.gone {
            // One that nobody has used has none.
            let _ = fs::remove_dir_all(paths.claim(&change.object.uid));
        }
    }
}

/// Hands every pod to the runner of its node.
async fn dispatch_pods(cluster: Cluster, nodes: HashMap<String, mpsc::UnboundedSender<PodChange>>) {
    let mut watch = cluster.watch(PODS);
    loop {
        let change = watch.next().await;
        let Some(pod) = change.typed::<Pod>() else { continue };
        let node = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref());
        if let Some(runner) = node.and_then(|node| nodes.get(node)) {
            let change = PodChange { pod: Arc::new(pod), gone: change.gone };
            if runner.send(change).is_err() {
                warn!("a pod runner has ended");
            }
        }
    }
}

/// Keeps the external router's routes to pods as the nodes' pod CIDRs are.
async fn route_pods(cluster: Cluster, network: Arc<Network>) {
    let mut watch = cluster.watch(CILIUM_NODES);
    let mut known: HashMap<String, Vec<IpNet>> = HashMap::new();
    loop {
        let change = watch.next().await;
        let name = change.name().to_owned();
        let number = name.strip_prefix("node-").and_then(|n| n.parse().ok());
        let Some(node) = number.map(NodeSpec::new) else { continue };
        let value = change.object.value();
        let cidrs = value["spec"]["ipam"]["podCIDRs"].as_array().filter(|_| !change.gone);
        let text = cidrs.into_iter().flatten().filter_map(Value::as_str);
        let wanted: Vec<IpNet> = text.filter_map(|cidr| cidr.parse().ok()).collect();
        let before = known.insert(name, wanted.clone()).unwrap_or_default();
        let removed = before.iter().filter(|cidr| !wanted.contains(cidr));
        let removed = removed.map(|cidr| network.unroute_pods(*cidr));
        let added = wanted.iter().filter(|cidr| !before.contains(cidr));
        let added = added.map(|cidr| network.route_pods(*cidr, node));
        for error in removed.chain(added).filter_map(Result::err) {
            warn!("{error:#}");
        }
    }
}

// ---------------------------------------------------------------------------------------------
// Control

async fn serve_control(lab: Arc<Lab>) {
    // That of an earlier supervisor.
    let _ = fs::remove_file(lab.paths.control());
    let listener = match UnixListener::bind(lab.paths.control()) {
        Ok(listener) => listener,
        Err(error) => return warn!("listen on {}: {error}", lab.paths.control().display()),
    };
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let lab = lab.clone();
                tokio::spawn(async move {
                    if let Err(error) = answer(&lab, stream).await {
                        warn!("control: {error:#}");
                    }
                });
            }
            Err(error) => warn!("control: {error}"),
        }
    }
}

async fn answer(lab: &Lab, stream: UnixStream) -> Result<()> {
    let (reader, mut writer) = stream.into_split();
    let mut line = String::new();
    BufReader::new(reader).read_line(&mut line).await?;
    let request: Request = serde_json::from_str(&line)?;
    let (progress, mut steps) = mpsc::unbounded_channel();
    let working = handle(lab, request, progress);
    tokio::pin!(working);
    let result = loop {
        tokio::select! {
            biased;
            Some(step) = steps.recv() => send(&mut writer, &Answer::Progress(step)).await?,
            result = &mut working => break result,
        }
    };
    while let Ok(step) = steps.try_recv() {
        send(&mut writer, &Answer::Progress(step)).await?;
    }
    let last = match result {
        Ok(value) => Answer::Done(value),
        Err(error) => Answer::Failed(format!("{error:#}")),
    };
    send(&mut writer, &last).await
}

async fn send(writer: &mut (impl tokio::io::AsyncWrite + Unpin), answer: &Answer) -> Result<()> {
    let mut line = serde_json::to_vec(answer)?;
    line.push(b'\n');
    Ok(writer.write_all(&line).await?)
}

async fn handle(
    lab: &Lab,
    request: Request,
    progress: mpsc::UnboundedSender<String>,
) -> Result<Value> {
    match request {
        Request::Status => Ok(serde_json::to_value(status(lab)?)?),
        Request::Locate { namespace, pod, container } => {
            Ok(serde_json::to_value(locate(lab, &namespace, &pod, container.as_deref())?)?)
        }
        Request::Apply { objects, timeout_s } => {
            let applied = objects.into_iter().map(|object| lab.cluster.apply_manifest(object));
            let applied = applied.collect::<Result<Vec<_>>>()?;
            arrival::wait(&lab.cluster, applied, Duration::from_secs(timeout_s), &progress).await?;
            Ok(Value::Null)
        }
        Request::DeletePods { namespace, names } => {
            let mut watch = lab.cluster.watch(PODS);
            for name in &names {
                lab.cluster.begin_pod_deletion(&namespace, name)?;
            }
            let mut left: HashSet<&str> = names.iter().map(String::as_str).collect();
            while !left.is_empty() {
                let change = watch.next().await;
                if change.gone && change.namespace() == namespace {
                    left.remove(change.name());
                }
            }
            Ok(Value::Null)
        }
        Request::Pause { node, paused } => {
            let place = find_node(lab, &node)?.node.place.clone();
            tokio::task::spawn_blocking(move || place.set_paused(paused)).await??;
            Ok(Value::Null)
        }
        Request::Cut { nodes: (one, other), cut } => {
            lab.network.cut(&one, &other, cut)?;
            Ok(Value::Null)
        }
        Request::ApiServer { running } => {
            lab.api_server.set_serving(running);
            Ok(Value::Null)
        }
    }
}

fn find_node<'a>(lab: &'a Lab, name: &str) -> Result<&'a LabNode> {
    lab.nodes.iter().find(|node| node.node.name == name).with_context(|| {
        let names: Vec<&str> = lab.nodes.iter().map(|node| node.node.name.as_str()).collect();
        format!("lab {:?} has no node {name:?}, but: {}", lab.spec.name, names.join(", "))
    })
}

fn status(lab: &Lab) -> Result<Status> {
    let node = |n: &LabNode| NodeStatus {
        name: n.node.name.clone(),
        ready: *n.node.ready.borrow(),
        paused: n.node.place.is_paused(),
        addresses: n.node.addresses.clone(),
        netns: lab.paths.netns(&n.node.name),
        agent_pid: *n.agent.borrow(),
        agent_socket: lab.paths.agent_socket(&n.node.name),
        bpffs: lab.paths.node_bpf(&n.node.name),
        pods: n.node.running.lock().len(),
    };
    Ok(Status {
        name: lab.spec.name.clone(),
        kubeconfig: lab.paths.kubeconfig(),
        api_server: api_url(&lab.paths)?,
        hubble_relay: lab
            .relay
            .as_ref()
            .filter(|pid| pid.borrow().is_some())
            .map(|_| format!("unix://{}", hubble::Files::of(&lab.paths).relay_socket().display())),
        hubble_ui: None,
        supervisor_pid: std::process::id(),
        operator_pid: *lab.operator.borrow(),
        nodes: lab.nodes.iter().map(node).collect(),
        cuts: lab.network.cuts(),
    })
}

fn locate(lab: &Lab, namespace: &str, pod: &str, container: Option<&str>) -> Result<Located> {
    let all =
        lab.nodes.iter().flat_map(|n| n.node.running.lock().values().cloned().collect::<Vec<_>>());
    let mut found = all.filter(|running| running.namespace == namespace && running.name == pod);
    let Some(running) = found.next() else {
        bail!(
            "pod {namespace}/{pod} does not run in lab {:?}; see `kubectl get pods -A`",
            lab.spec.name
        );
    };
    let container = match container {
        None => running.containers.first().context("the pod has no containers")?,
        Some(name) => running.containers.iter().find(|c| *c == name).with_context(|| {
            format!("pod {pod} has no container {name:?}, but: {}", running.containers.join(", "))
        })?,
    };
    let cgroup = running.cgroup.join(container);
    let pids = Cgroup::at(&cgroup).processes().unwrap_or_default();
    let pid = pids
        .first()
        .with_context(|| format!("container {container} of pod {pod} does not run now"))?;
    Ok(Located { pid: i32::try_from(*pid)?, cgroup })
}
