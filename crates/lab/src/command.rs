//! `cilium lab …`: what users type.

mod faults;
mod logs;

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, IsTerminal as _};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context as _, Result, anyhow, bail};
use clap::{Args, Subcommand, ValueEnum};
use kernel::cgroup::Cgroup;
use serde_json::{Value, json};

use crate::control::{Answer, Located, Request, Status, ask};
use crate::image::Image;
use crate::place::{CgroupDir, make_private_dir};
use crate::process::{Command, PATH};
use crate::spec::{CGROUP, DEFAULT_NAME, LABS_DIR, Paths, Spec};
use crate::{guardian, supervisor, teardown};

/// A whole cluster on this machine: nodes are network namespaces, pods are processes.
#[derive(Debug, Subcommand)]
pub enum LabCommand {
    /// Start a lab and wait until its nodes, and the pods of the given files, are ready.
    Up(Up),
    /// Remove a lab with everything it has, also after a crash.
    Down(Down),
    /// List the labs of this machine.
    List(Output),
    /// Show what a lab runs and where.
    Status(StatusArgs),
    /// Print the path of the file that kubectl needs: export KUBECONFIG=$(cilium lab kubeconfig)
    Kubeconfig(Name),
    /// Run a command in a pod, or on a node with --node.
    Exec(Exec),
    /// Print what a program or container of a node has written.
    #[command(after_help = EXAMPLES_OF_LOGS)]
    Logs(logs::Logs),
    /// Let a node stand still: its agent, its pods and its heartbeat. Packets still pass through it.
    Pause(faults::Node),
    /// Let a paused node go on.
    Resume(faults::Node),
    /// Cut the wire between two nodes.
    Cut(faults::Pair),
    /// Mend a wire that was cut.
    Mend(faults::Pair),
    /// Kill a program or container of a node; programs are started again at once.
    #[command(after_help = EXAMPLES_OF_KILL)]
    Kill(faults::Kill),
    /// The process behind a lab.
    #[command(hide = true)]
    Supervise(Supervise),
    /// Programs of the built-in images.
    #[command(hide = true, subcommand)]
    Image(Image),
    /// Stop or resume the API server, to see what happens without it.
    #[command(hide = true)]
    ApiServer(ApiServerArgs),
}

const EXAMPLES_OF_LOGS: &str = "Examples:
  cilium lab logs node-1 -f               the agent of node-1
  cilium lab logs hub                     the operator
  cilium lab logs node-2 default/web/c    a container, also of a lab that has crashed
  cilium lab logs                         the lab's supervisor";
const EXAMPLES_OF_KILL: &str = "Examples:
  cilium lab kill node-1 agent
  cilium lab kill hub operator
  cilium lab kill node-2 web --signal TERM";

/// Which lab is meant.
#[derive(Clone, Debug, Args)]
pub struct Name {
    /// The lab's name; by default the only lab there is, or "default".
    #[arg(long, env = "CILIUM_LAB")]
    pub name: Option<String>,
}

#[derive(Debug, Args)]
pub struct Up {
    /// The lab's name.
    #[arg(long, env = "CILIUM_LAB", default_value = DEFAULT_NAME)]
    name: String,
    /// Number of nodes.
    #[arg(long, default_value_t = 2)]
    nodes: u32,
    /// Manifest to apply; its pods and workloads are waited for. Repeatable; "-" is standard input.
    #[arg(short, long = "filename", value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Start the Star Wars demo: deathstar, tiefighter and xwing.
    #[arg(long)]
    demo: bool,
    /// Key of cilium-config and its value, such as routing-mode=native. Repeatable.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    settings: Vec<String>,
    /// Do not run cluster DNS: pods ask the world outside for names.
    #[arg(long)]
    without_dns: bool,
    /// How long to wait for the pods, in seconds.
    #[arg(long, default_value_t = 120)]
    timeout: u64,
}

#[derive(Debug, Args)]
pub struct Down {
    #[command(flatten)]
    name: Name,
    /// Remove every lab.
    #[arg(long, conflicts_with = "name")]
    all: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Format {
    Json,
    Yaml,
}

#[derive(Debug, Args)]
pub struct Output {
    /// Print data instead of text.
    #[arg(short, long, value_enum)]
    output: Option<Format>,
}

#[derive(Debug, Args)]
pub struct StatusArgs {
    #[command(flatten)]
    name: Name,
    #[command(flatten)]
    output: Output,
}

#[derive(Debug, Args)]
pub struct Exec {
    #[command(flatten)]
    name: Name,
    /// The pod's namespace.
    #[arg(short, long, default_value = "default")]
    namespace: String,
    /// The container; by default the pod's first.
    #[arg(short, long)]
    container: Option<String>,
    /// Run on this node instead of in a pod.
    #[arg(long, conflicts_with_all = ["namespace", "container"])]
    node: Option<String>,
    /// The pod, as NAME or NAMESPACE/NAME.
    #[arg(required_unless_present = "node", conflicts_with = "node")]
    pod: Option<String>,
    /// What to run.
    #[arg(last = true, required = true)]
    command: Vec<String>,
}

#[derive(Debug, Args)]
pub struct Supervise {
    /// What to build, as JSON.
    spec: String,
    /// Be the supervisor, not its guardian.
    #[arg(long)]
    guarded: bool,
}

#[derive(Debug, Args)]
pub struct ApiServerArgs {
    #[command(flatten)]
    name: Name,
    action: ApiServerAction,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum ApiServerAction {
    Stop,
    Resume,
}

/// Runs a command to its end.
pub fn run(command: LabCommand) -> ExitCode {
    let result = match command {
        LabCommand::Image(image) => return exit_code(image.run()),
        LabCommand::Supervise(args) => supervise(&args),
        LabCommand::Up(args) => up(&args),
        LabCommand::Down(args) => down(&args),
        LabCommand::List(args) => list(&args),
        LabCommand::Status(args) => status(&args),
        LabCommand::Kubeconfig(name) => kubeconfig(&name),
        LabCommand::Exec(args) => exec(args),
        LabCommand::Logs(args) => logs::logs(&args),
        LabCommand::Pause(args) => faults::pause(&args, true),
        LabCommand::Resume(args) => faults::pause(&args, false),
        LabCommand::Cut(args) => faults::cut(&args, true),
        LabCommand::Mend(args) => faults::cut(&args, false),
        LabCommand::Kill(args) => faults::kill(&args),
        LabCommand::ApiServer(args) => api_server(&args),
    };
    result.unwrap_or_else(|error| {
        eprintln!("Error: {error:#}");
        ExitCode::FAILURE
    })
}

fn exit_code(code: i32) -> ExitCode {
    ExitCode::from(u8::try_from(code).unwrap_or(255))
}

// ---------------------------------------------------------------------------------------------
// Which lab

/// The lab that is meant: the named one, the only one, or the one called "default".
pub fn current(name: Option<&str>) -> Result<Paths> {
    if let Some(name) = name {
        return Ok(Paths::new(&Spec::new(name, 1, &[])?.name));
    }
    let names = teardown::names().unwrap_or_default();
    Ok(match names.as_slice() {
        [only] => Paths::new(only),
        _ => Paths::new(DEFAULT_NAME),
    })
}

/// Asks a running lab what it is.
pub fn lab_status(name: Option<&str>) -> Result<Status> {
    let paths = running(name)?;
    Ok(serde_json::from_value(ask(&paths.control(), &Request::Status, |_| {})?)?)
}

/// The lab, which must be running.
fn running(name: Option<&str>) -> Result<Paths> {
    let paths = current(name)?;
    if teardown::supervisor_lives(&paths)? {
        return Ok(paths);
    }
    if paths.dir().exists() {
        bail!(
            "lab {0:?} has crashed; remove what is left with `cilium lab down --name {0}`",
            paths.name()
        );
    }
    let others = teardown::names()?;
    match others.as_slice() {
        [] => bail!("there is no lab {:?}; start it with `cilium lab up --name {0}`", paths.name()),
        _ => bail!(
            "there is no lab {:?}, but: {}; choose one with --name",
            paths.name(),
            others.join(", ")
        ),
    }
}

// ---------------------------------------------------------------------------------------------
// up

fn up(args: &Up) -> Result<ExitCode> {
    let spec = Spec::new(&args.name, args.nodes, &args.settings)?;
    let spec = Spec { dns: !args.without_dns, ..spec };
    let mut objects = read_manifests(&args.files)?;
    if args.demo {
        objects.extend(parse_manifest(DEMO, Path::new("demo.yaml"))?);
    }
    kernel::requirements::root()?;
    kernel::requirements::kernel()?;
    kernel::requirements::cgroup2()?;
    kernel::requirements::bpf()?;
    let paths = Paths::new(&spec.name);
    let progress = Progress::new();
    // Agents that refuse their configuration would only be seen as nodes that never get ready.
    for warning in api::config::Config::judge(&spec.cilium_config())? {
        progress.tell(&warning);
    }

    start_supervisor(&spec, &paths, &progress)?;
    if !objects.is_empty() {
        let request = Request::Apply { objects, timeout_s: args.timeout };
        ask(&paths.control(), &request, |text| progress.tell(text)).with_context(|| {
            format!(
                "lab {0:?} is up, but its pods are not (`cilium lab down --name {0}` removes it)",
                spec.name
            )
        })?;
    }
    progress.tell(&format!("lab {:?} is up", spec.name));
    progress.tell(&format!("export KUBECONFIG={}", paths.kubeconfig().display()));
    Ok(ExitCode::SUCCESS)
}

fn must_be_root(what: &str) -> Result<()> {
    if nix::unistd::geteuid().is_root() {
        return Ok(());
    }
    bail!(
        "only root can {what}: it makes network namespaces and loads BPF programs; run it with sudo"
    );
}

/// Lines with the time since the start, for people; not in the way of anything that reads output.
struct Progress {
    began: Instant,
    colour: bool,
}

impl Progress {
    fn new() -> Self {
        Self { began: Instant::now(), colour: std::io::stderr().is_terminal() }
    }

    fn tell(&self, text: &str) {
        let seconds = self.began.elapsed().as_secs_f64();
        match self.colour {
            true => eprintln!("\x1b[2m{seconds:6.2}s\x1b[0m  {text}"),
            false => eprintln!("{seconds:6.2}s  {text}"),
        }
    }
}

/// Starts the background process and waits until it says that the lab is ready.
fn start_supervisor(spec: &Spec, paths: &Paths, progress: &Progress) -> Result<()> {
    fs::create_dir_all(LABS_DIR)?;
    if !teardown::leftovers(paths)?.is_empty() && !paths.dir().exists() {
        bail!(
            "parts of an earlier lab {0:?} are still there; remove them with `cilium lab down --name {0}`",
            spec.name
        );
    }
    // Creating the directory is what decides between two that start at the same time.
    if let Err(error) = fs::create_dir(paths.dir()) {
        let taken = error.kind() == std::io::ErrorKind::AlreadyExists;
        match taken {
            true => bail!(
                "lab {0:?} exists already; remove it with `cilium lab down --name {0}`, or choose another --name",
                spec.name
            ),
            false => return Err(error).context(format!("create {}", paths.dir().display())),
        }
    }
    make_private_dir(paths.dir())?;
    fs::create_dir_all(paths.log("x").with_file_name(""))?;
    let cgroups = Cgroup::root()?.child(CGROUP)?.child(&spec.name)?;
    let cgroup = CgroupDir::create(&cgroups, "supervisor")?;
    let log = File::create(paths.log("supervisor"))?;
    let (reader, writer) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
    let own = std::env::current_exe().context("find this program")?;
    let mut env = vec![("PATH".to_owned(), PATH.to_owned())];
    for name in ["RUST_LOG", "RUST_BACKTRACE"] {
        env.extend(std::env::var(name).ok().map(|value| (name.to_owned(), value)));
    }
    let command = Command {
        argv: vec![
            own.display().to_string(),
            "lab".to_owned(),
            "supervise".to_owned(),
            serde_json::to_string(spec)?,
        ],
        env,
        cgroup: Some(cgroup.as_fd()),
        stdout: Some(writer.as_fd()),
        stderr: Some(log.as_fd()),
        ..Command::default()
    };
    command.spawn_raw().context("start the lab's background process")?;
    drop(writer);
    for line in BufReader::new(File::from(reader)).lines() {
        match serde_json::from_str(&line?)? {
            Answer::Progress(text) => progress.tell(&text),
            Answer::Done(_) => return Ok(()),
            Answer::Failed(reason) => bail!(reason),
        }
    }
    Err(anyhow!(
        "the lab's background process died; its last words are in {}; `cilium lab down --name {}` removes the rest",
        paths.log("supervisor").display(),
        spec.name
    ))
}

/// The Star Wars demo.
const DEMO: &str = include_str!("demo.yaml");

/// The objects of manifests, in order; the file `-` is standard input.
pub fn read_manifests(files: &[PathBuf]) -> Result<Vec<Value>> {
    let mut objects = Vec::new();
    for file in files {
        let text = match file.to_str() {
            Some("-") => {
                std::io::read_to_string(std::io::stdin()).context("read standard input")?
            }
            _ => fs::read_to_string(file).with_context(|| format!("read {}", file.display()))?,
        };
        objects.extend(parse_manifest(&text, file)?);
    }
    Ok(objects)
}

/// The objects of a manifest, in order.
fn parse_manifest(text: &str, file: &Path) -> Result<Vec<Value>> {
    let documents: Vec<Value> = serde_saphyr::from_multiple(text)
        .map_err(|error| anyhow!("{}: {error}", file.display()))?;
    let mut objects = Vec::new();
    for document in documents.into_iter().filter(|document| !document.is_null()) {
        flatten(document, file, &mut objects)?;
    }
    Ok(objects)
}

/// Takes lists apart.
fn flatten(object: Value, file: &Path, objects: &mut Vec<Value>) -> Result<()> {
    let missing = |field: &str| anyhow!("{}: an object has no {field}", file.display());
    let kind = object["kind"].as_str().ok_or_else(|| missing("kind"))?;
    if !object["apiVersion"].is_string() {
        return Err(missing("apiVersion"));
    }
    if let (true, Some(items)) = (kind.ends_with("List"), object["items"].as_array()) {
        return items.iter().try_for_each(|item| flatten(item.clone(), file, objects));
    }
    if !object["metadata"]["name"].is_string() {
        return Err(missing("metadata.name"));
    }
    objects.push(object);
    Ok(())
}

// ---------------------------------------------------------------------------------------------
// down, list, status, kubeconfig

fn down(args: &Down) -> Result<ExitCode> {
    must_be_root("remove a lab")?;
    let names = match (args.all, &args.name.name) {
        (true, _) => teardown::names()?,
        // Not "the only one there is": what is removed is gone.
        (false, name) => vec![name.clone().unwrap_or_else(|| DEFAULT_NAME.to_owned())],
    };
    for name in &names {
        Spec::new(name, 1, &[])?;
        let existed = teardown::remove(&Paths::new(name))?;
        match existed {
            true => eprintln!("lab {name:?} is removed"),
            false => {
                let others = teardown::names()?;
                let hint = if others.is_empty() {
                    String::new()
                } else {
                    format!(", but: {}", others.join(", "))
                };
                eprintln!("there is no lab {name:?}{hint}");
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn list(args: &Output) -> Result<ExitCode> {
    let mut rows = Vec::new();
    for name in teardown::names()? {
        let paths = Paths::new(&name);
        let spec = fs::read(paths.spec()).ok();
        let spec: Option<Spec> = spec.and_then(|text| serde_json::from_slice(&text).ok());
        let state = if teardown::supervisor_lives(&paths)? { "running" } else { "crashed" };
        rows.push(json!({"name": name, "nodes": spec.map(|s| s.nodes), "state": state}));
    }
    if let Some(format) = args.output {
        return print(&Value::from(rows), format);
    }
    println!("{:<24} {:<6} STATE", "NAME", "NODES");
    for row in rows {
        let nodes = row["nodes"].as_u64().map_or_else(|| "?".to_owned(), |n| n.to_string());
        let text = |key: &str| row[key].as_str().unwrap_or_default().to_owned();
        println!("{:<24} {nodes:<6} {}", text("name"), text("state"));
    }
    Ok(ExitCode::SUCCESS)
}

fn print(value: &Value, format: Format) -> Result<ExitCode> {
    match format {
        Format::Json => println!("{}", serde_json::to_string_pretty(value)?),
        Format::Yaml => print!("{}", serde_saphyr::to_string(value)?),
    }
    Ok(ExitCode::SUCCESS)
}

fn status(args: &StatusArgs) -> Result<ExitCode> {
    let status = lab_status(args.name.name.as_deref())?;
    if let Some(format) = args.output.output {
        return print(&serde_json::to_value(&status)?, format);
    }
    println!("Lab:         {}", status.name);
    println!("Kubeconfig:  {}", status.kubeconfig.display());
    println!("API server:  {}", status.api_server);
    println!("Supervisor:  pid {}", status.supervisor_pid);
    let pid = |pid: Option<i32>| pid.map_or_else(|| "-".to_owned(), |pid| pid.to_string());
    println!("Operator:    pid {}", pid(status.operator_pid));
    println!("Relay:       {}", status.hubble_relay.as_deref().unwrap_or("-"));
    println!(
        "\n{:<10} {:<10} {:<8} {:<6} {:<28} AGENT SOCKET",
        "NODE", "STATE", "AGENT", "PODS", "ADDRESSES"
    );
    for node in status.nodes {
        let addresses: Vec<String> = node.addresses.iter().map(ToString::to_string).collect();
        println!(
            "{:<10} {:<10} {:<8} {:<6} {:<28} {}",
            node.name,
            match (node.paused, node.ready) {
                (true, _) => "Paused",
                (false, true) => "Ready",
                (false, false) => "NotReady",
            },
            pid(node.agent_pid),
            node.pods,
            addresses.join(","),
            node.agent_socket.display()
        );
    }
    for (one, other) in status.cuts {
        println!("\nCut:         {one} and {other} do not reach each other");
    }
    Ok(ExitCode::SUCCESS)
}

fn kubeconfig(name: &Name) -> Result<ExitCode> {
    println!("{}", running(name.name.as_deref())?.kubeconfig().display());
    Ok(ExitCode::SUCCESS)
}

fn api_server(args: &ApiServerArgs) -> Result<ExitCode> {
    let paths = running(args.name.name.as_deref())?;
    let running = matches!(args.action, ApiServerAction::Resume);
    ask(&paths.control(), &Request::ApiServer { running }, |_| {})?;
    Ok(ExitCode::SUCCESS)
}

// ---------------------------------------------------------------------------------------------
// exec

fn exec(args: Exec) -> Result<ExitCode> {
    must_be_root("enter a pod")?;
    let paths = running(args.name.name.as_deref())?;
    let place = match (&args.node, args.pod) {
        (Some(node), _) => Target::node(&paths, node)?,
        (None, pod) => {
            let pod = pod.unwrap_or_default();
            // kubectl's way to name an object is understood as well.
            let pod = pod.strip_prefix("pod/").unwrap_or(&pod).to_owned();
            let (namespace, pod) = match pod.split_once('/') {
                Some((namespace, pod)) => (namespace.to_owned(), pod.to_owned()),
                None => (args.namespace, pod),
            };
            let request = Request::Locate { namespace, pod, container: args.container };
            let found = ask(&paths.control(), &request, |_| {})?;
            Target::container(&serde_json::from_value(found)?)?
        }
    };
    place.run(args.command)
}

/// The container that `[NAMESPACE/]POD[/CONTAINER]` means.
fn locate(paths: &Paths, text: &str) -> Result<Located> {
    let words: Vec<&str> = text.split('/').collect();
    let readings: Vec<(&str, &str, Option<&str>)> = match words.as_slice() {
        [pod] => vec![("default", pod, None)],
        // Either part may have been left out.
        [one, two] => vec![("default", one, Some(two)), (one, two, None)],
        [namespace, pod, container] => vec![(namespace, pod, Some(container))],
        _ => bail!("{text:?} is not [NAMESPACE/]POD[/CONTAINER]"),
    };
    let mut result = Err(anyhow!("{text:?} names no pod"));
    for (namespace, pod, container) in readings {
        let request = Request::Locate {
            namespace: namespace.to_owned(),
            pod: pod.to_owned(),
            container: container.map(str::to_owned),
        };
        result = ask(&paths.control(), &request, |_| {});
        if result.is_ok() {
            break;
        }
    }
    Ok(serde_json::from_value(result?)?)
}

/// Where a command is to run.
struct Target {
    netns: File,
    mntns: File,
    utsns: Option<File>,
    cgroup: CgroupDir,
    /// The cgroup is this command's own, and goes with it.
    temporary: bool,
    env: HashMap<String, String>,
    cwd: Option<PathBuf>,
}

impl Target {
    fn node(paths: &Paths, node: &str) -> Result<Self> {
        let netns = File::open(paths.netns(node));
        let netns =
            netns.with_context(|| format!("lab {:?} has no node {node:?}", paths.name()))?;
        let cgroup = Cgroup::at(Cgroup::root()?.path().join(paths.cgroup()).join(node));
        if cgroup.is_frozen() {
            bail!("{node} is paused: `cilium lab resume {node}` lets it go on");
        }
        // `hub` and `external` have a network of their own, but no mounts.
        let mntns = File::open(paths.node_mntns(node)).or_else(|_| File::open("/proc/self/ns/mnt"));
        Ok(Self {
            netns,
            mntns: mntns?,
            utsns: None,
            cgroup: CgroupDir::create(&cgroup, &format!("exec-{}", std::process::id()))?,
            temporary: true,
            env: HashMap::from([("PATH".to_owned(), PATH.to_owned())]),
            cwd: None,
        })
    }

    fn container(located: &Located) -> Result<Self> {
        let proc = PathBuf::from(format!("/proc/{}", located.pid));
        let open = |kind: &str| {
            File::open(proc.join("ns").join(kind)).context("the container has just ended")
        };
        let environ = fs::read(proc.join("environ")).unwrap_or_default();
        let pairs = environ.split(|byte| *byte == 0).filter_map(|pair| {
            let text = String::from_utf8_lossy(pair);
            text.split_once('=').map(|(key, value)| (key.to_owned(), value.to_owned()))
        });
        if Cgroup::at(&located.cgroup).is_frozen() {
            bail!("the node of this pod is paused: `cilium lab resume NODE` lets it go on");
        }
        let parent = located.cgroup.parent().context("a container's cgroup has a parent")?;
        let name =
            located.cgroup.file_name().and_then(|n| n.to_str()).unwrap_or_default().to_owned();
        Ok(Self {
            netns: open("net")?,
            mntns: open("mnt")?,
            utsns: Some(open("uts")?),
            cgroup: CgroupDir::create(&Cgroup::at(parent), &name)?,
            temporary: false,
            env: pairs.collect(),
            cwd: fs::read_link(proc.join("cwd")).ok(),
        })
    }

    /// Runs a command with our own standard streams; its exit code becomes ours.
    fn run(self, argv: Vec<String>) -> Result<ExitCode> {
        let (stdin, stdout, stderr) = (std::io::stdin(), std::io::stdout(), std::io::stderr());
        let mut env: Vec<(String, String)> = self.env.into_iter().collect();
        if let Ok(term) = std::env::var("TERM") {
            env.push(("TERM".to_owned(), term));
        }
        let command = Command {
            argv,
            env,
            cwd: self.cwd,
            cgroup: Some(self.cgroup.as_fd()),
            netns: Some(self.netns.as_fd()),
            mntns: Some(self.mntns.as_fd()),
            utsns: self.utsns.as_ref().map(|fd| fd.as_fd()),
            stdin: Some(stdin.as_fd()),
            stdout: Some(stdout.as_fd()),
            stderr: Some(stderr.as_fd()),
            same_session: true,
            ..Command::default()
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let exit = runtime.block_on(async {
            let process = command.spawn()?;
            // What the terminal sends to us it sends to the command as well; we wait for its answer.
            let mut interrupts =
                tokio::signal::unix::signal(tokio::signal::unix::SignalKind::interrupt())?;
            let mut terminations =
                tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
            loop {
                tokio::select! {
                    exit = process.wait() => return Ok::<_, anyhow::Error>(exit?),
                    _ = interrupts.recv() => {}
                    _ = terminations.recv() => process.kill(nix::sys::signal::Signal::SIGTERM)?,
                }
            }
        })?;
        if self.temporary {
            // What the command has left running in the background keeps its group.
            let _ = self.cgroup.group.remove();
        }
        Ok(exit_code(exit.code()))
    }
}

fn supervise(args: &Supervise) -> Result<ExitCode> {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .init();
    let spec: Spec = serde_json::from_str(&args.spec).context("the lab's description")?;
    match args.guarded {
        true => supervisor::run(&spec)?,
        false => guardian::run(&spec)?,
    }
    Ok(ExitCode::SUCCESS)
}
