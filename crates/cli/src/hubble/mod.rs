//! The program `hubble`: asks a Hubble server, of a node or of a relay, and prints what it says.
//!
//! ```text
//!   args ─► config (file, environment, flags) ─► connect ─► observe | status | list | watch ─► print
//!              filters (flags, in their order) ──────────────┘
//! ```
//!
//! Flags, outputs and the configuration file are those of Hubble's own program.

mod args;
mod config;
mod explain;
mod filters;
mod listing;
mod observe;
mod print;

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::ArgMatches;
use flow::client::{Target, TlsOptions, chain};
use flow::server::tls::{ClientFiles, Identity};
use tonic::transport::Channel;

use crate::output::{one_line, print};

/// Where an agent serves its own flows.
const LOCAL_SOCKET: &str = "/var/run/cilium/hubble.sock";
/// Where a relay is found otherwise.
const DEFAULT_SERVER: &str = "localhost:4245";

/// Runs the program.
pub(crate) fn main() -> ExitCode {
    let matches = args::command().get_matches();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let result = match runtime {
        Ok(runtime) => runtime.block_on(run(&matches)),
        Err(error) => Err(error.into()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("Error: {}", one_line(&error));
            ExitCode::FAILURE
        }
    }
}

async fn run(matches: &ArgMatches) -> Result<()> {
    let settings = config::Settings::load(matches)?;
    match matches.subcommand() {
        Some(("observe", matches)) => match matches.subcommand() {
            None => observe::flows(&settings, matches).await,
            Some(("flows", matches)) => observe::flows(&settings, matches).await,
            Some(("agent-events", matches)) => observe::agent_events(&settings, matches).await,
            Some((_, matches)) => observe::debug_events(&settings, matches).await,
        },
        Some(("explain", matches)) => explain::run(&settings, matches).await,
        Some(("status", matches)) => listing::status(&settings, matches).await,
        Some(("list", matches)) => match matches.subcommand() {
            Some(("namespaces", matches)) => listing::namespaces(&settings, matches).await,
            Some((_, matches)) => listing::nodes(&settings, matches).await,
            None => Ok(()),
        },
        Some(("watch", _)) => listing::watch_peers(&settings).await,
        Some(("config", matches)) => config::run(&settings, matches),
        Some(("completion", matches)) => {
            let shell = matches.get_one::<clap_complete::Shell>("shell").context("a shell")?;
            let mut script = Vec::new();
            clap_complete::generate(*shell, &mut args::command(), "hubble", &mut script);
            print(&String::from_utf8_lossy(&script))
        }
        _ => print(concat!("hubble v", env!("CARGO_PKG_VERSION"), "\n")),
    }
}

/// The server to ask: what the user names, else this node's agent, else the relay of the lab (of
/// `CILIUM_LAB`, where there are several), else the relay that a port is forwarded to.
fn server(settings: &config::Settings) -> String {
    if let Some(server) = settings.get("server").filter(|server| !server.is_empty()) {
        return server.to_owned();
    }
    if Path::new(LOCAL_SOCKET).exists() {
        return format!("unix://{LOCAL_SOCKET}");
    }
    let lab = std::env::var("CILIUM_LAB").ok();
    let relay = || lab::command::lab_status(lab.as_deref()).ok()?.hubble_relay;
    relay().unwrap_or_else(|| DEFAULT_SERVER.to_owned())
}

/// Connects to the server; gives its name too.
async fn connect(settings: &config::Settings) -> Result<(Channel, String)> {
    let server = server(settings);
    let files = |key: &str| {
        let list = settings.get(key).unwrap_or_default();
        list.split(',').filter(|path| !path.is_empty()).map(Into::into).collect::<Vec<_>>()
    };
    let mut certificates = files("tls-client-cert-file").into_iter();
    let mut keys = files("tls-client-key-file").into_iter();
    let tls = TlsOptions {
        enabled: settings.flag("tls"),
        server_name: settings.get("tls-server-name").unwrap_or_default().to_owned(),
        files: ClientFiles {
            authorities: files("tls-ca-cert-files"),
            identity: certificates
                .next()
                .zip(keys.next())
                .map(|(certificate, key)| Identity { certificate, key }),
            allow_insecure: settings.flag("tls-allow-insecure"),
        },
    };
    let target = Target::parse(&server, &tls)?;
    let timeout = settings.duration("timeout", Duration::from_secs(5))?;
    match target.connect(timeout).await {
        Ok(channel) => Ok((channel, server)),
        Err(error) => anyhow::bail!("cannot connect to {server}: {}", chain(&error)),
    }
}
