//! `cilium-operator`: see the `operator` library. Wiring and the process's life only.

use std::io::IsTerminal;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use api::config::{Config, Invocation, IpamMode, Loaded, Program};
use model::IpFamily;
use operator::gc::pace::Pace;
use operator::gc::unmanaged::{self, Unmanaged};
use operator::gc::{self, endpoint::Endpoints, identity::Identities, node::Nodes};
use operator::health::Sources;
use operator::leader::Candidate;
use operator::metrics::Metrics;
use operator::pool::Pool;
use operator::{client, crds, health, node_ipam, node_ready, policy_status};
use statedb::job::{Group, Job, StillRunning};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

/// How long jobs may take to stop.
const SHUTDOWN_DEADLINE: Duration = Duration::from_secs(5);
/// First and longest wait for an API server that cannot be reached.
const RETRY_MIN: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(10);

fn main() -> ExitCode {
    let loaded = match Config::load(Program::Operator, std::env::args().skip(1), std::env::vars()) {
        Ok(Invocation::Print(text)) => {
            print!("{text}");
            return ExitCode::SUCCESS;
        }
        Ok(Invocation::Run(loaded)) => *loaded,
        Err(error) => {
            eprintln!("cilium-operator: {:#}", anyhow::Error::from(error));
            return ExitCode::from(2);
        }
    };
    init_log(loaded.config.debug);
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("cilium-operator: cannot start its runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(run(loaded)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Logs to stderr; `RUST_LOG` goes before the option.
fn init_log(debug: bool) {
    // Failed requests are told once, by who made them.
    let quiet = "kube_client::client::builder=off";
    let level = if debug { "info,operator=debug,statedb=debug" } else { "info" };
    let filter = EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| EnvFilter::new(format!("{level},{quiet}")));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr)
        .init();
}

/// Runs until a signal comes or a job fails.
async fn run(loaded: Loaded) -> anyhow::Result<()> {
    for warning in &loaded.warnings {
        tracing::warn!("{warning}");
    }
    let config = loaded.config;
    let pools = pools(&config)?;
    let kubernetes = client::connect(&config).await?;

    let jobs = Group::new();
    let metrics = Metrics::default();
    serve(&jobs, &config, &metrics).await?;
    let group = jobs.clone();
    jobs.spawn("custom-resources", |job| async move {
        if install_crds(&kubernetes, &job).await {
            let candidate = Candidate::new(&kubernetes, &config, identity()?);
            let start = move |jobs: &Group| {
                node_ipam::start(jobs, &kubernetes, pools.clone(), metrics.clone());
                node_ready::start(jobs, &kubernetes, &config);
                policy_status::start(jobs, &kubernetes, &config);
                collect_garbage(jobs, &kubernetes, &config, &metrics);
            };
            start_leader(&group, candidate, start);
        }
        Ok::<(), anyhow::Error>(())
    });

    let mut terminate = signal(SignalKind::terminate()).context("cannot handle SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot handle SIGINT")?;
    let ended = tokio::select! {
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
        failed = jobs.supervise() => failed,
    };
    jobs.shutdown(SHUTDOWN_DEADLINE).await?;
    Ok(ended?)
}

/// Starts the servers that are on.
async fn serve(jobs: &Group, config: &Config, metrics: &Metrics) -> anyhow::Result<()> {
    let sources = Sources { health: jobs.health().clone(), metrics: metrics.clone() };
    if let Some(address) = config.operator_api_serve_addr.0 {
        let listener = health::listen("operator-api-serve-addr", address).await?;
        let router = health::api(sources.clone());
        jobs.spawn("health", |job| health::serve(listener, router, job));
    }
    if let Some(address) = config.operator_prometheus_serve_addr.0 {
        let listener = health::listen("operator-prometheus-serve-addr", address).await?;
        let router = health::prometheus(sources);
        jobs.spawn("metrics", |job| health::serve(listener, router, job));
    }
    Ok(())
}

/// Starts the collectors that are on.
fn collect_garbage(jobs: &Group, client: &kube::Client, config: &Config, metrics: &Metrics) {
    let pace = Pace::new(config.identity_gc_rate_limit, config.identity_gc_rate_interval);
    let timeout = config.identity_heartbeat_timeout;
    let identities = Identities::new(client, timeout, pace, metrics.clone());
    gc::start(jobs, config.identity_gc_interval, identities);
    gc::start(jobs, config.cilium_endpoint_gc_interval, Endpoints::new(client));
    let interval = config.nodes_gc_interval;
    gc::start(jobs, interval, Nodes::new(client, interval));
    let unmanaged =
        Unmanaged::new(client, &config.pod_restart_selector, unmanaged::PATIENCE, metrics.clone());
    gc::start(jobs, config.unmanaged_pod_watcher_interval, unmanaged);
}

/// Does what only the leader does, whenever we are. Without a lease the work stops, so that two
/// operators never give the same prefix, and begins anew from what the objects say.
fn start_leader(
    jobs: &Group,
    mut candidate: Candidate,
    start: impl Fn(&Group) + Send + Sync + 'static,
) {
    let group = jobs.clone();
    jobs.spawn("leader-election", |job| async move {
        while candidate.win(&job).await {
            let leading = group.child();
            start(&leading);
            let led = candidate.lead(&job).await;
            leading.shutdown(SHUTDOWN_DEADLINE).await?;
            let Err(lost) = led else { break };
            let lost = format!("{:#}", anyhow::Error::from(lost));
            tracing::warn!("{lost}");
            job.degraded(lost);
        }
        Ok::<(), StillRunning>(())
    });
}

/// Who we are among the operators: the node's name.
fn identity() -> anyhow::Result<String> {
    match std::env::var("K8S_NODE_NAME") {
        Ok(name) if !name.is_empty() => Ok(name),
        _ => {
            let name = std::fs::read_to_string("/proc/sys/kernel/hostname");
            Ok(name.context("cannot read the name of this host")?.trim().to_owned())
        }
    }
}

/// The pools of the families that are on; none where the nodes' prefixes are not ours to give.
fn pools(config: &Config) -> anyhow::Result<Vec<Pool>> {
    if config.ipam != IpamMode::ClusterPool {
        return Ok(Vec::new());
    }
    let of = |family| match family {
        IpFamily::Ipv4 => (&config.cluster_pool_ipv4_cidr, config.cluster_pool_ipv4_mask_size),
        IpFamily::Ipv6 => (&config.cluster_pool_ipv6_cidr, config.cluster_pool_ipv6_mask_size),
    };
    let enabled = IpFamily::ALL.into_iter().filter(|family| config.is_enabled(*family));
    let pools = enabled.map(|family| {
        let (cidrs, mask_size) = of(family);
        Ok(Pool::new(family, cidrs, mask_size)?)
    });
    pools.collect()
}

/// Installs the custom resources, trying until it works. False when told to stop before.
async fn install_crds(kubernetes: &kube::Client, job: &Job) -> bool {
    let mut wait = RETRY_MIN;
    loop {
        let installed = tokio::select! {
            () = job.stop.cancelled() => return false,
            installed = crds::install(kubernetes) => installed,
        };
        match installed {
            Ok(()) => {
                job.ok("");
                return true;
            }
            Err(error) => {
                let error = format!("{:#}", anyhow::Error::from(error));
                tracing::warn!(error, "cannot install the custom resources, will retry");
                job.degraded(error);
            }
        }
        tokio::select! {
            () = job.stop.cancelled() => return false,
            () = tokio::time::sleep(wait) => wait = RETRY_MAX.min(wait * 2),
        }
    }
}
