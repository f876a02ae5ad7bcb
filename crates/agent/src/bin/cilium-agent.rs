//! `cilium-agent`: reads its options, then hands over to [`agent::wiring::run`].

use std::io::IsTerminal;
use std::process::ExitCode;

use anyhow::Context;
use api::config::{Config, Invocation, Loaded, Program};
use model::NodeName;
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    match start() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cilium-agent: {}", agent::k8s::watch::chain(&*error));
            ExitCode::FAILURE
        }
    }
}

fn start() -> anyhow::Result<()> {
    let loaded = match Config::load(Program::Agent, std::env::args().skip(1), std::env::vars())? {
        Invocation::Run(loaded) => *loaded,
        Invocation::Print(text) => {
            print!("{text}");
            return Ok(());
        }
    };
    log_to_stderr(&loaded);
    let name = node_name()?;
    tracing::info!(node = %name, version = env!("CARGO_PKG_VERSION"), "Starting");
    for warning in &loaded.warnings {
        tracing::warn!("{warning}");
    }
    // Two workers: a call into the kernel on one of them does not hold up the others' requests.
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(8)
        .enable_all()
        .build()?
        .block_on(agent::wiring::run(loaded, name))
}

/// The name of our Kubernetes node: `K8S_NODE_NAME`, which the DaemonSet sets, else the host's.
fn node_name() -> anyhow::Result<NodeName> {
    if let Ok(name) = std::env::var("K8S_NODE_NAME")
        && !name.is_empty()
    {
        return Ok(NodeName::new(name));
    }
    let path = "/proc/sys/kernel/hostname";
    let name = std::fs::read_to_string(path).with_context(|| format!("read {path}"))?;
    Ok(NodeName::new(name.trim().to_ascii_lowercase()))
}

/// `RUST_LOG` decides, else the option `debug`. Libraries speak only when something is
/// wrong; of the API server we tell ourselves.
fn log_to_stderr(loaded: &Loaded) {
    let level = if loaded.config.debug { "debug" } else { "info" };
    let default = format!("{level},kube=off,hyper=warn,tower=warn,rustls=warn");
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(default));
    let ansi = std::io::stderr().is_terminal();
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    log.with_ansi(ansi).init();
}
