//! The life of one container: started, probed, started again, stopped.
//!
//! ```text
//!   Waiting ──start──▶ Running ──exit──▶ policy says again? ──▶ Waiting (CrashLoopBackOff) ─▶ …
//!                        │ stop: SIGTERM, grace, SIGKILL      └ no: Terminated
//! ```

use std::fs::{self, File, OpenOptions};
use std::io::Read as _;
use std::net::IpAddr;
use std::os::fd::AsFd as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use k8s_openapi::api::core::v1 as k8s;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use nix::sys::signal::Signal;
use tokio::sync::{broadcast, mpsc, watch};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::probe::{self, Prober};
use super::rootfs::{Bind, View};
use super::status::{Container, State, Terminated};
use super::volumes::Volumes;
use super::{Node, SourceChange, environment, record};
use crate::image::{self, Entrypoint};
use crate::logs::{self, log_name};
use crate::place::CgroupDir;
use crate::process::{Command, Exit, Process};

/// Pauses before a container is started again; the last one repeats.
const RESTART_BACKOFF_S: [u64; 6] = [0, 10, 20, 40, 80, 160];
const RESTART_BACKOFF_MAX_S: u64 = 300;
/// A run of this length makes earlier crashes forgotten.
const RESTART_FORGET: Duration = Duration::from_secs(600);

/// Longest message about the end of a container; longer ones are cut.
const MESSAGE_LEN_MAX: u64 = 4096;
/// How much of the log stands in for one.
const MESSAGE_LOG_LEN_MAX: u64 = 2048;
const MESSAGE_LINES_MAX: u64 = 80;

/// Tells a container to stop: how long it may take. `None` while it shall run.
pub type Stop = watch::Receiver<Option<Duration>>;

/// What all containers of a pod share.
#[derive(Debug)]
pub struct Sandbox {
    /// The pod's network; `None` for pods in the node's own.
    pub netns: Option<kernel::netns::Netns>,
    /// The pod's addresses.
    pub addresses: Vec<IpAddr>,
    /// Files of the pod that are seen in the place of the node's.
    pub files: Vec<Bind>,
    /// The pod's volumes.
    pub volumes: Arc<Volumes>,
    /// The pod's cgroup.
    pub cgroup: kernel::cgroup::Cgroup,
    /// What the node keeps for the pod.
    pub dir: PathBuf,
    /// The node.
    pub node: Arc<Node>,
    /// The pod's namespace and name.
    pub pod: (String, String),
}

/// A container to run.
#[derive(Debug)]
pub struct Job {
    /// The pod as it was when the container became due.
    pub pod: k8s::Pod,
    /// The container's specification.
    pub spec: k8s::Container,
    /// Start it again after success, after failure.
    pub restart: (bool, bool),
    /// What all containers of the pod share.
    pub sandbox: Arc<Sandbox>,
}

/// Runs a container until it is told to stop or has ended for good; `report` gets every change.
/// Returns its last state.
pub async fn run(
    job: &Job,
    first: Container,
    report: impl Fn(&Container) + Send,
    mut stop: Stop,
) -> Container {
    let mut container = first;
    let mut crashes = 0_usize;
    let mut begin = match &container.state {
        State::Running { .. } => Begin::Again,
        State::Terminated(end) if !is_again(job, end.code) => return container,
        _ => Begin::New,
    };
    loop {
        let began = Instant::now();
        tokio::select! {
            () = job.sandbox.node.place.awake() => {}
            _ = stop.wait_for(Option::is_some), if begin == Begin::New => return container,
        }
        match run_once(job, &mut container, begin, &report, &mut stop).await {
            Err(why) => {
                container.state =
                    State::Waiting { reason: why.reason(crashes), message: why.to_string() };
                container.ready = false;
                report(&container);
                // A container that cannot start is tried again as if it had crashed at once.
                crashes = crashes.max(1);
            }
            Ok(end) => {
                let again = is_again(job, end.code);
                (container.ready, container.started) = (false, false);
                container.state = State::Terminated(end.clone());
                report(&container);
                if !again || stop.borrow().is_some() {
                    return container;
                }
                container.last = Some(end);
                if began.elapsed() > RESTART_FORGET {
                    crashes = 0;
                }
            }
        }
        begin = Begin::New;
        let pause = RESTART_BACKOFF_S.get(crashes).copied().unwrap_or(RESTART_BACKOFF_MAX_S);
        crashes += 1;
        if pause > 0 {
            if let (State::Terminated(_), Some(_)) = (&container.state, &container.last) {
                container.state = State::Waiting {
                    reason: "CrashLoopBackOff",
                    message: format!(
                        "back-off {pause}s restarting failed container {}",
                        job.spec.name
                    ),
                };
                report(&container);
            }
            if let State::Waiting { reason: reason @ "ErrImagePull", .. } = &mut container.state {
                let shown = sleep(Duration::from_secs(2));
                tokio::select! {
                    () = shown => {}
                    _ = stop.wait_for(Option::is_some) => return container,
                }
                *reason = "ImagePullBackOff";
                report(&container);
            }
            let mut sources = job.sandbox.node.sources.subscribe();
            let needed = environment::needed_sources(&job.spec);
            let waits_for_source = is_waiting_for(&container, "CreateContainerConfigError");
            tokio::select! {
                () = sleep(Duration::from_secs(pause)) => {}
                // What is missing may be there now.
                () = changed(&mut sources, &job.sandbox.pod.0, &needed), if waits_for_source => {}
                _ = stop.wait_for(Option::is_some) => return container,
            }
        } else if stop.borrow().is_some() {
            return container;
        }
    }
}

/// How a container gets its process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Begin {
    /// It is started.
    New,
    /// It has been started before this runner began.
    Again,
}

/// Whether a container that has ended like this is to be started again.
fn is_again(job: &Job, code: i32) -> bool {
    let (after_success, after_failure) = job.restart;
    if code == 0 { after_success } else { after_failure }
}

/// One run of a container, from its start to its end.
async fn run_once(
    job: &Job,
    container: &mut Container,
    begin: Begin,
    report: &(impl Fn(&Container) + Send),
    stop: &mut Stop,
) -> Result<Terminated, StartError> {
    let running = match (begin, &container.state) {
        (Begin::Again, State::Running { started_at }) => (adopt(job), started_at.clone()),
        _ => {
            let running = start(job).await?;
            let started_at = Time(Timestamp::now());
            container.restarts += i32::from(container.id.is_some());
            container.id = Some(new_id());
            container.state = State::Running { started_at: started_at.clone() };
            container.started = job.spec.startup_probe.is_none();
            container.ready = container.started && job.spec.readiness_probe.is_none();
            report(container);
            (Some(running), started_at)
        }
    };
    let (running, started_at) = running;
    let exit = match &running {
        Some((process, cgroup)) => {
            let run = Run { job, process, cgroup, container };
            let exit = run.until_end(report, stop).await;
            // Whatever the main process left behind ends with it.
            job.sandbox.node.consoles.close(cgroup.group.path());
            remove_cgroup(&cgroup.group).await;
            exit
        }
        None => Exit::Unknown,
    };
    Ok(Terminated {
        code: exit.code(),
        signal: match exit {
            Exit::Signal(signal) => Some(signal),
            Exit::Code(_) | Exit::Unknown => None,
        },
        started_at,
        finished_at: Time(Timestamp::now()),
        id: container.id.clone().unwrap_or_default(),
        message: last_words(job, exit),
    })
}

/// Takes over the process of a container that an earlier runner has started; `None` if it has ended.
fn adopt(job: &Job) -> Option<(Process, CgroupDir)> {
    let sandbox = &job.sandbox;
    let record::Run { pid } = record::Run::read(&sandbox.dir, &job.spec.name)?;
    let process = Process::adopt(pid, &sandbox.node.paths.exits()).ok()?;
    let cgroup = CgroupDir::create(&sandbox.cgroup, &job.spec.name).ok()?;
    // Its id may be another's by now.
    let pids = cgroup.group.processes().ok()?;
    pids.contains(&u32::try_from(pid).ok()?).then_some((process, cgroup))
}

fn is_waiting_for(container: &Container, why: &str) -> bool {
    matches!(&container.state, State::Waiting { reason, .. } if *reason == why)
}

/// Returns when one of these ConfigMaps and Secrets has changed.
async fn changed(
    changes: &mut broadcast::Receiver<SourceChange>,
    namespace: &str,
    needed: &[(&'static str, String)],
) {
    loop {
        match changes.recv().await {
            Ok(change) => {
                let object = (change.kind, change.name);
                if change.namespace == namespace && needed.contains(&object) {
                    return;
                }
            }
            Err(broadcast::error::RecvError::Lagged(_)) => return,
            Err(broadcast::error::RecvError::Closed) => std::future::pending().await,
        }
    }
}

/// Why a container did not start.
#[derive(Debug, thiserror::Error)]
enum StartError {
    #[error(
        "Back-off pulling image \"{0}\": ErrImagePull: the lab pulls no images: give the container a command, \
         which runs from the host's file system, or use registry.k8s.io/e2e-test-images/agnhost"
    )]
    Image(String),
    #[error("{0}")]
    Environment(#[from] environment::EnvironmentError),
    #[error("failed to start container: {0}")]
    Spawn(#[from] crate::process::SpawnError),
    #[error("failed to prepare container: {0:#}")]
    Prepare(#[from] anyhow::Error),
}

impl StartError {
    fn reason(&self, crashes: usize) -> &'static str {
        match self {
            Self::Image(_) if crashes == 0 => "ErrImagePull",
            Self::Image(_) => "ImagePullBackOff",
            Self::Environment(_) => "CreateContainerConfigError",
            Self::Spawn(_) => "RunContainerError",
            Self::Prepare(_) => "CreateContainerError",
        }
    }
}

async fn start(job: &Job) -> Result<(Process, CgroupDir), StartError> {
    let spec = &job.spec;
    let sandbox = &job.sandbox;
    let node = &sandbox.node;
    let (namespace, pod) = &sandbox.pod;
    let needed = environment::needed_sources(spec).into_iter();
    let sources: environment::Sources = needed
        .map(|(kind, name)| {
            let data = node.cluster.text_data(kind, namespace, &name);
            ((kind, name), data)
        })
        .collect();
    let services = environment::services(&job.pod, &node.cluster, node.api_server);
    let env = environment::environment(&job.pod, spec, &sources, services)?;
    let words = |list: &Option<Vec<String>>| -> Vec<String> {
        list.iter().flatten().map(|word| environment::expand(word, &env)).collect()
    };
    let image = spec.image.clone().unwrap_or_default();
    let entrypoint = image::entrypoint(&image, &words(&spec.command), &words(&spec.args));
    let argv = match entrypoint.ok_or(StartError::Image(image))? {
        Entrypoint::Host(argv) => argv,
        Entrypoint::BuiltIn(args) => {
            let own = [&node.own_program, "lab", "image"].map(str::to_owned);
            own.into_iter().chain(args).collect()
        }
    };
    let cgroup = CgroupDir::create(&sandbox.cgroup, &spec.name)?;
    let log = node.paths.log(&log_name(namespace, pod, &spec.name));
    logs::rotate(&log);
    let log = open_log(&log)?;
    let input = (spec.stdin.unwrap_or_default(), spec.tty.unwrap_or_default());
    let console = node.consoles.open(cgroup.group.path(), input, &log);
    let console = console.context("give it streams that can be attached to")?;
    let netns = sandbox.netns.as_ref().unwrap_or(&node.place.netns);
    let mntns = node.place.new_view(view(job, &env)?).await?;
    let mut command = Command {
        argv,
        env,
        cwd: spec.working_dir.clone().map(Into::into),
        netns: Some(netns.as_fd()),
        mntns: Some(mntns.as_fd()),
        hostname: sandbox.netns.is_some().then(|| environment::hostname(&job.pod)),
        stdout: Some(log.as_fd()),
        stderr: Some(log.as_fd()),
        ..node.place.command(&cgroup)
    };
    if let Some(console) = &console {
        console.connect(&mut command);
    }
    let process = node.place.spawn(&command)?;
    record::Run { pid: process.pid() }
        .write(&sandbox.dir, &spec.name)
        .context("keep the container's process in mind")?;
    Ok((process, cgroup))
}

/// What the container sees of the file system.
fn view(job: &Job, env: &[(String, String)]) -> anyhow::Result<View> {
    let (sandbox, spec) = (&job.sandbox, &job.spec);
    let mut binds = sandbox.files.clone();
    let message = message_file(job);
    message
        .parent()
        .map_or(Ok(()), fs::create_dir_all)
        .context("make the container's directory")?;
    // That of the run before is told already.
    File::create(&message).with_context(|| format!("create {}", message.display()))?;
    if let Some(target) = spec.termination_message_path.as_deref().filter(|path| !path.is_empty()) {
        binds.push(Bind { source: message, target: target.into(), ..Bind::default() });
    }
    binds.extend(sandbox.volumes.binds(&job.pod, spec, env)?);
    let shared_memory = sandbox.dir.join("shm");
    fs::create_dir_all(&shared_memory).context("make the pod's shared memory")?;
    fs::set_permissions(&shared_memory, fs::Permissions::from_mode(0o1777))?;
    let privileged = spec.security_context.as_ref().and_then(|context| context.privileged);
    Ok(View { all_devices: privileged.unwrap_or_default(), shared_memory, binds })
}

/// Where a container may leave a message about its end.
fn message_file(job: &Job) -> PathBuf {
    job.sandbox.dir.join("containers").join(&job.spec.name).join("termination-log")
}

/// What the container has said about its end.
fn last_words(job: &Job, exit: Exit) -> String {
    if exit == Exit::Unknown {
        return "The container ended while nobody looked after its node.".to_owned();
    }
    let mut message = Vec::new();
    // One that cannot be read has not been written.
    let _ = File::open(message_file(job))
        .and_then(|file| file.take(MESSAGE_LEN_MAX).read_to_end(&mut message));
    let policy = job.spec.termination_message_policy.as_deref();
    if message.is_empty() && policy == Some("FallbackToLogsOnError") && exit.code() != 0 {
        let (namespace, pod) = &job.sandbox.pod;
        let log = job.sandbox.node.paths.log(&log_name(namespace, pod, &job.spec.name));
        message = logs::end(&log, MESSAGE_LINES_MAX, MESSAGE_LOG_LEN_MAX).unwrap_or_default();
    }
    String::from_utf8_lossy(&message).into_owned()
}

/// Kills what is left in a cgroup and removes it. A killed process leaves its cgroup only when it
/// has been taken apart, which nothing announces.
pub async fn remove_cgroup(group: &kernel::cgroup::Cgroup) {
    for pause_ms in [0, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000] {
        sleep(Duration::from_millis(pause_ms)).await;
        if group.remove().is_ok() {
            return;
        }
        let _ = group.kill();
    }
    tracing::warn!("cgroup {} is still busy", group.path().display());
}

fn open_log(path: &Path) -> anyhow::Result<File> {
    let opened = OpenOptions::new().create(true).append(true).open(path);
    opened.with_context(|| format!("open log {}", path.display()))
}

/// Identifies one run of a container: 64 hexadecimal digits, as runtimes have it.
pub fn new_id() -> String {
    crate::apiserver::random::<32>().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// One run of a container.
struct Run<'a> {
    job: &'a Job,
    process: &'a Process,
    cgroup: &'a CgroupDir,
    container: &'a mut Container,
}

impl Run<'_> {
    /// Probes the container until its process ends, by itself or because it is told to.
    async fn until_end(self, report: &(impl Fn(&Container) + Send), stop: &mut Stop) -> Exit {
        let (sender, mut verdicts) = mpsc::channel(4);
        let mut probers = tokio::task::JoinSet::new();
        let probes = [
            (probe::Kind::Startup, &self.job.spec.startup_probe),
            (probe::Kind::Readiness, &self.job.spec.readiness_probe),
            (probe::Kind::Liveness, &self.job.spec.liveness_probe),
        ];
        // The others wait until the container has started.
        let (started, is_started) = watch::channel(self.container.started);
        for (kind, probe) in probes {
            if let Some(probe) = probe.clone() {
                let prober = Prober {
                    kind,
                    probe,
                    ports: self.job.spec.ports.clone().unwrap_or_default(),
                    sandbox: self.job.sandbox.clone(),
                    container: self.job.spec.name.clone(),
                    pid: self.process.pid(),
                };
                probers.spawn(prober.run(is_started.clone(), sender.clone()));
            }
        }
        let failed = loop {
            tokio::select! {
                exit = self.process.wait() => return exit.unwrap_or(Exit::Code(255)),
                _ = stop.wait_for(Option::is_some) => break false,
                Some((kind, good)) = verdicts.recv() => match kind {
                    probe::Kind::Readiness if self.container.ready != good => {
                        self.container.ready = good;
                        report(self.container);
                    }
                    probe::Kind::Startup if good && !self.container.started => {
                        self.container.started = true;
                        self.container.ready = self.job.spec.readiness_probe.is_none();
                        started.send_replace(true);
                        report(self.container);
                    }
                    probe::Kind::Startup | probe::Kind::Liveness if !good => break true,
                    _ => {}
                },
            }
        };
        match failed {
            true => self.end(stop).await,
            false => self.stop(stop).await,
        }
    }

    /// Ends a container that has failed its probe; being told to stop may shorten its time.
    async fn end(&self, stop: &mut Stop) -> Exit {
        let pod = self.job.pod.spec.as_ref();
        let grace = pod.and_then(|spec| spec.termination_grace_period_seconds);
        let grace = Duration::from_secs(grace.and_then(|s| u64::try_from(s).ok()).unwrap_or(30));
        let _ = self.process.kill(Signal::SIGTERM);
        let told = tokio::select! {
            exit = self.process.wait() => return exit.unwrap_or(Exit::Code(255)),
            () = sleep(grace) => false,
            _ = stop.wait_for(Option::is_some) => true,
        };
        if told { self.stop(stop).await } else { self.kill().await }
    }

    /// Asks the process to end, and ends it when its time is up.
    async fn stop(&self, stop: &mut Stop) -> Exit {
        let began = Instant::now();
        let _ = self.process.kill(Signal::SIGTERM);
        loop {
            // The time may be shortened while we wait.
            let grace = stop.borrow_and_update().unwrap_or_default();
            tokio::select! {
                exit = self.process.wait() => return exit.unwrap_or(Exit::Code(255)),
                () = sleep_until(began + grace) => break,
                Ok(()) = stop.changed() => {}
            }
        }
        self.kill().await
    }

    async fn kill(&self) -> Exit {
        let _ = self.cgroup.group.kill();
        let killed = timeout(Duration::from_secs(10), self.process.wait()).await;
        killed.ok().and_then(Result::ok).unwrap_or(Exit::Signal(9))
    }
}
