//! The life of one container: started, probed, started again, stopped.
//!
//! ```text
//!   Waiting ──start──▶ Running ──exit──▶ policy says again? ──▶ Waiting (CrashLoopBackOff) ─▶ …
//!                        │ stop: SIGTERM, grace, SIGKILL      └ no: Terminated
//! ```

use std::fs::{File, OpenOptions};
use std::net::IpAddr;
use std::os::fd::AsFd as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use k8s_openapi::api::core::v1 as k8s;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use nix::sys::signal::Signal;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::environment;
use super::probe::{self, Prober};
use super::status::{Container, State, Terminated};
use crate::image::{self, Entrypoint};
use crate::logs::{self, log_name};
use crate::place::CgroupDir;
use crate::process::{Command, Exit, Private, Process};
use crate::streams::Consoles;

/// Pauses before a container is started again; the last one repeats.
const RESTART_BACKOFF_S: [u64; 6] = [0, 10, 20, 40, 80, 160];
const RESTART_BACKOFF_MAX_S: u64 = 300;
/// A run of this length makes earlier crashes forgotten.
const RESTART_FORGET: Duration = Duration::from_secs(600);

/// Tells a container to stop: how long it may take. `None` while it shall run.
pub type Stop = watch::Receiver<Option<Duration>>;

/// What all containers of a pod share.
#[derive(Debug)]
pub struct Sandbox {
    /// The node.
    pub place: Arc<crate::place::Place>,
    /// The pod's network; `None` for pods in the node's own.
    pub netns: Option<kernel::netns::Netns>,
    /// The pod's addresses.
    pub addresses: Vec<IpAddr>,
    /// Files of the pod that are seen in the place of the node's, source first.
    pub files: Vec<(std::path::PathBuf, std::path::PathBuf)>,
    /// The pod's cgroup.
    pub cgroup: kernel::cgroup::Cgroup,
    /// The lab's files.
    pub paths: crate::spec::Paths,
    /// Containers that can be typed into.
    pub consoles: Arc<Consoles>,
    /// The pod's namespace and name.
    pub pod: (String, String),
    /// This program, which has the built-in images.
    pub own_program: String,
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
    /// Where the environment comes from.
    pub sources: environment::Sources,
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
    loop {
        let began = Instant::now();
        match start(job) {
            Err(why) => {
                container.state =
                    State::Waiting { reason: why.reason(crashes), message: why.to_string() };
                container.ready = false;
                report(&container);
                // A container that cannot start is tried again as if it had crashed at once.
                crashes = crashes.max(1);
            }
            Ok((process, cgroup)) => {
                let started_at = Time(Timestamp::now());
                container.restarts += i32::from(container.id.is_some());
                container.id = Some(new_id());
                container.state = State::Running { started_at: started_at.clone() };
                container.ready = job.spec.readiness_probe.is_none();
                report(&container);
                let run =
                    Run { job, process: &process, cgroup: &cgroup, container: &mut container };
                let exit = run.until_end(&report, &mut stop).await;
                // Whatever the main process left behind ends with it.
                job.sandbox.consoles.close(cgroup.group.path());
                remove_cgroup(&cgroup.group).await;
                let end = Terminated {
                    code: exit.code(),
                    signal: match exit {
                        Exit::Signal(signal) => Some(signal),
                        Exit::Code(_) => None,
                    },
                    started_at,
                    finished_at: Time(Timestamp::now()),
                    id: container.id.clone().unwrap_or_default(),
                };
                let (after_success, after_failure) = job.restart;
                let again = if exit.code() == 0 { after_success } else { after_failure };
                container.ready = false;
                container.state = State::Terminated(end.clone());
                if !again || stop.borrow().is_some() {
                    container.ready = false;
                    report(&container);
                    return container;
                }
                report(&container);
                container.last = Some(end);
                if began.elapsed() > RESTART_FORGET {
                    crashes = 0;
                }
            }
        }
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
            tokio::select! {
                () = sleep(Duration::from_secs(pause)) => {}
                _ = stop.wait_for(Option::is_some) => return container,
            }
        } else if stop.borrow().is_some() {
            return container;
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

fn start(job: &Job) -> Result<(Process, CgroupDir), StartError> {
    let spec = &job.spec;
    let sandbox = &job.sandbox;
    let env = environment::environment(&job.pod, spec, &job.sources)?;
    let words = |list: &Option<Vec<String>>| -> Vec<String> {
        list.iter().flatten().map(|word| environment::expand(word, &env)).collect()
    };
    let image = spec.image.clone().unwrap_or_default();
    let entrypoint = image::entrypoint(&image, &words(&spec.command), &words(&spec.args));
    let argv = match entrypoint.ok_or(StartError::Image(image))? {
        Entrypoint::Host(argv) => argv,
        Entrypoint::BuiltIn(args) => {
            let own = [&sandbox.own_program, "lab", "image"].map(str::to_owned);
            own.into_iter().chain(args).collect()
        }
    };
    let cgroup = CgroupDir::create(&sandbox.cgroup, &spec.name)?;
    let (namespace, pod) = &sandbox.pod;
    let log = sandbox.paths.log(&log_name(namespace, pod, &spec.name));
    logs::rotate(&log);
    let log = open_log(&log)?;
    let input = (spec.stdin.unwrap_or_default(), spec.tty.unwrap_or_default());
    let console = sandbox.consoles.open(cgroup.group.path(), input, &log);
    let console = console.context("give it streams that can be attached to")?;
    let netns = sandbox.netns.as_ref().unwrap_or(&sandbox.place.netns);
    let hostname = sandbox.netns.is_some().then(|| environment::hostname(&job.pod));
    let private = Some(Private { hostname, files: sandbox.files.clone() });
    let mut command = Command {
        argv,
        env,
        cwd: spec.working_dir.clone().map(Into::into),
        netns: Some(netns.as_fd()),
        private,
        stdout: Some(log.as_fd()),
        stderr: Some(log.as_fd()),
        ..sandbox.place.command(&cgroup)
    };
    if let Some(console) = &console {
        console.connect(&mut command);
    }
    let process = command.spawn()?;
    Ok((process, cgroup))
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
            (probe::Kind::Readiness, &self.job.spec.readiness_probe),
            (probe::Kind::Liveness, &self.job.spec.liveness_probe),
        ];
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
                probers.spawn(prober.run(sender.clone()));
            }
        }
        let mut killed = false;
        loop {
            tokio::select! {
                exit = self.process.wait() => return exit.unwrap_or(Exit::Code(255)),
                _ = stop.wait_for(Option::is_some) => break,
                Some((kind, good)) = verdicts.recv() => match kind {
                    probe::Kind::Readiness if self.container.ready != good => {
                        self.container.ready = good;
                        report(self.container);
                    }
                    probe::Kind::Liveness if !good && !killed => {
                        killed = true;
                        let _ = self.process.kill(Signal::SIGTERM);
                    }
                    _ => {}
                },
            }
        }
        self.stop(stop).await
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
        let _ = self.cgroup.group.kill();
        let killed = timeout(Duration::from_secs(10), self.process.wait()).await;
        killed.ok().and_then(Result::ok).unwrap_or(Exit::Signal(9))
    }
}
