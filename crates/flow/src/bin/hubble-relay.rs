//! `hubble-relay`: one Hubble for all nodes of a cluster.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::{Parser, Subcommand};
use flow::client::{Target, TlsOptions};
use flow::relay::{Pool, PoolOptions, RelayService, routes};
use flow::server::tls::{ClientFiles, Identity, Reloading, ServerFiles};
use flow::server::{Listener, serve};
use tokio::net::{TcpListener, UnixListener};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

/// One Hubble for all nodes of a cluster.
#[derive(Debug, Parser)]
#[command(name = "hubble-relay", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Follow the nodes and serve
    Serve(Box<Serve>),
    /// Print the version
    Version,
}

#[derive(Debug, clap::Args)]
struct Serve {
    /// Where to serve, each host:port or unix:///path; without a host on all addresses
    #[arg(
        long,
        value_delimiter = ',',
        default_value = ":4245",
        env = "HUBBLE_RELAY_LISTEN_ADDRESS"
    )]
    listen_address: Vec<String>,
    /// Who knows the nodes, each host:port or unix:///path; tried in turn
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "hubble-peer.kube-system.svc.cluster.local.:443",
        env = "HUBBLE_RELAY_PEER_SERVICE"
    )]
    peer_service: Vec<String>,
    /// Name of the cluster, which is in the names of nodes' certificates
    #[arg(long, default_value = "default", env = "HUBBLE_RELAY_CLUSTER_NAME")]
    cluster_name: String,
    /// Seconds that connecting may take
    #[arg(long, value_name = "SECONDS", default_value_t = 5)]
    dial_timeout: u64,
    /// Longest pause, in seconds, before a node is tried again
    #[arg(long, value_name = "SECONDS", default_value_t = 30, env = "HUBBLE_RELAY_RETRY_TIMEOUT")]
    retry_timeout: u64,
    /// How long, in milliseconds, a silent node holds up the flows of others
    #[arg(long, value_name = "MILLISECONDS", default_value_t = 1000)]
    sort_buffer_drain_timeout: u64,
    /// Talk to nodes without TLS
    #[arg(long, env = "HUBBLE_RELAY_DISABLE_CLIENT_TLS")]
    disable_client_tls: bool,
    /// Certificate that nodes are shown
    #[arg(long, value_name = "FILE", env = "HUBBLE_RELAY_TLS_HUBBLE_CLIENT_CERT_FILE")]
    tls_hubble_client_cert_file: Option<PathBuf>,
    /// Key of that certificate
    #[arg(long, value_name = "FILE", env = "HUBBLE_RELAY_TLS_HUBBLE_CLIENT_KEY_FILE")]
    tls_hubble_client_key_file: Option<PathBuf>,
    /// Authorities of nodes' certificates
    #[arg(
        long,
        value_name = "FILES",
        value_delimiter = ',',
        env = "HUBBLE_RELAY_TLS_HUBBLE_SERVER_CA_FILES"
    )]
    tls_hubble_server_ca_files: Vec<PathBuf>,
    /// Serve without TLS
    #[arg(long, env = "HUBBLE_RELAY_DISABLE_SERVER_TLS")]
    disable_server_tls: bool,
    /// Certificate that clients are shown
    #[arg(long, value_name = "FILE", env = "HUBBLE_RELAY_TLS_RELAY_SERVER_CERT_FILE")]
    tls_relay_server_cert_file: Option<PathBuf>,
    /// Key of that certificate
    #[arg(long, value_name = "FILE", env = "HUBBLE_RELAY_TLS_RELAY_SERVER_KEY_FILE")]
    tls_relay_server_key_file: Option<PathBuf>,
    /// Authorities that clients need a certificate of; none asks for none
    #[arg(
        long,
        value_name = "FILES",
        value_delimiter = ',',
        env = "HUBBLE_RELAY_TLS_RELAY_CLIENT_CA_FILES"
    )]
    tls_relay_client_ca_files: Vec<PathBuf>,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    match Cli::parse().command {
        Command::Serve(options) => run(*options).await,
        Command::Version => {
            println!("{}", version());
            Ok(())
        }
    }
}

fn version() -> String {
    format!("hubble-relay v{}", env!("CARGO_PKG_VERSION"))
}

async fn run(options: Serve) -> anyhow::Result<()> {
    let (mut terminate, mut interrupt) =
        (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let tls = server_tls(&options)?;
    let mut listeners = Vec::new();
    for address in &options.listen_address {
        let opened = listen(address, tls.clone()).await;
        listeners.push(opened.with_context(|| format!("listen on {address} (--listen-address)"))?);
    }
    let pool = Arc::new(Pool::start(pool_options(&options)?));
    let hold = Duration::from_millis(options.sort_buffer_drain_timeout);
    let service = RelayService::new(pool, version(), hold);
    let mut servers = tokio::task::JoinSet::new();
    for listener in listeners {
        servers.spawn(serve(listener, routes(service.clone()).await, std::future::pending()));
    }
    tracing::info!(addresses = ?options.listen_address, "Serving");
    tokio::select! {
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
        Some(ended) = servers.join_next() => Ok(ended??),
    }
}

async fn listen(
    address: &str,
    tls: Option<Arc<Reloading<ServerFiles, rustls::ServerConfig>>>,
) -> anyhow::Result<Listener> {
    if let Some(path) = address.strip_prefix("unix://") {
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
        return Ok(Listener::Unix(UnixListener::bind(path)?));
    }
    let socket = match address.strip_prefix(':') {
        Some(port) => {
            let port: u16 = port.parse().context("write a port after the colon")?;
            let all = SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), port);
            match TcpListener::bind(all).await {
                Ok(socket) => socket,
                // A machine without IPv6.
                Err(_) => TcpListener::bind(("0.0.0.0", port)).await?,
            }
        }
        None => TcpListener::bind(address).await?,
    };
    Ok(match tls {
        Some(tls) => Listener::Tls(socket, tls),
        None => Listener::Tcp(socket),
    })
}

fn pool_options(options: &Serve) -> anyhow::Result<PoolOptions> {
    let identity = match (&options.tls_hubble_client_cert_file, &options.tls_hubble_client_key_file)
    {
        (Some(certificate), Some(key)) => {
            Some(Identity { certificate: certificate.clone(), key: key.clone() })
        }
        (None, None) => None,
        _ => {
            bail!("--tls-hubble-client-cert-file and --tls-hubble-client-key-file belong together")
        }
    };
    let authorities = options.tls_hubble_server_ca_files.clone();
    if !options.disable_client_tls && authorities.is_empty() {
        bail!(
            "nodes serve with TLS: name their authorities, --tls-hubble-server-ca-files, or give \
             --disable-client-tls"
        );
    }
    let files = ClientFiles { authorities, identity, allow_insecure: false };
    // Any node may answer for the peer service.
    let server_name = format!(
        "any.{}.hubble-grpc.cilium.io",
        options.cluster_name.to_ascii_lowercase().replace('.', "-")
    );
    let tls =
        TlsOptions { enabled: !options.disable_client_tls, server_name, files: files.clone() };
    let services = options.peer_service.iter().map(|text| Target::parse(text, &tls));
    Ok(PoolOptions {
        peer_services: services.collect::<Result<_, _>>().context("--peer-service")?,
        tls: (!options.disable_client_tls).then(|| Arc::new(Reloading::new(files))),
        dial_timeout: Duration::from_secs(options.dial_timeout),
        retry_max: Duration::from_secs(options.retry_timeout),
    })
}

fn server_tls(
    options: &Serve,
) -> anyhow::Result<Option<Arc<Reloading<ServerFiles, rustls::ServerConfig>>>> {
    if options.disable_server_tls {
        return Ok(None);
    }
    let (Some(certificate), Some(key)) =
        (&options.tls_relay_server_cert_file, &options.tls_relay_server_key_file)
    else {
        bail!(
            "the relay serves with TLS: name --tls-relay-server-cert-file and \
             --tls-relay-server-key-file, or give --disable-server-tls"
        );
    };
    let files = Reloading::new(ServerFiles {
        identity: Identity { certificate: certificate.clone(), key: key.clone() },
        client_authorities: options.tls_relay_client_ca_files.clone(),
    });
    files.get().context("read the relay's certificates")?;
    Ok(Some(Arc::new(files)))
}
