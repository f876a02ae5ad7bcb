//! Cluster DNS, as CoreDNS serves it, and a name server for the world outside.
//!
//! ```text
//!   server ········ datagrams and streams
//!     ├ message ··· bytes ⇄ question, answer            pure
//!     ├ zone ······ the rules of DNS                    pure
//!     │   ├ cluster   names of Services and pods        pure
//!     │   └ fixed     a list of records                 pure
//!     └ upstream ·· others, and what they have said
//!   watch ········· the API server's objects into `cluster`
//! ```

pub mod cluster;
pub mod fixed;
pub mod message;
pub mod server;
pub mod upstream;
pub mod watch;
pub mod zone;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use axum::Router;
use axum::http::StatusCode;
use axum::routing::get;
use clap::Args;
use hickory_proto::rr::Name;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tracing::{info, warn};

use self::cluster::{Cluster, PodNames};
use self::server::Server;
use self::upstream::Upstream;
use self::zone::Zone;

/// The port of DNS.
const PORT: u16 = 53;

/// Answers for the cluster's names, and asks others for the rest.
#[derive(Debug, Args)]
pub struct Dns {
    /// The cluster's domain.
    #[arg(long, env = "CLUSTER_DOMAIN", default_value = "cluster.local", value_parser = domain)]
    cluster_domain: Name,
    /// Where to listen, UDP and TCP; by default on port 53 of every address. Repeatable.
    #[arg(long, value_name = "ADDRESS[:PORT]", value_parser = socket)]
    listen: Vec<SocketAddr>,
    /// Whom to ask for names outside of the cluster, or a resolv.conf that says so. Repeatable; without one such
    /// questions are refused.
    #[arg(long, value_name = "ADDRESS[:PORT]|FILE", env = "DNS_UPSTREAM", value_delimiter = ',', value_parser = servers)]
    upstream: Vec<Servers>,
    /// The API server; without it that of the pod's service account.
    #[arg(long, env = "KUBECONFIG")]
    kubeconfig: Option<PathBuf>,
    /// How many seconds others may keep the cluster's names.
    #[arg(long, default_value_t = 5)]
    ttl: u32,
    /// How many seconds answers of others are kept at most.
    #[arg(long, default_value_t = 30)]
    cache: u64,
    /// Which names under pod.<cluster domain> exist.
    #[arg(long, value_enum, default_value_t = PodNames::Insecure)]
    pods: PodNames,
    /// Where /health is served.
    #[arg(long, default_value_t = 8080)]
    health_port: u16,
    /// Where /ready is served.
    #[arg(long, default_value_t = 8181)]
    ready_port: u16,
}

/// Answers for a zone for tests, with names of every kind.
#[derive(Debug, Args)]
pub struct DnsAuthority {
    /// The zone's name.
    #[arg(long, default_value = "external.test", value_parser = domain)]
    origin: Name,
    /// Addresses of the hosts in it.
    #[arg(long, value_delimiter = ',', required = true)]
    hosts: Vec<IpAddr>,
    /// Where to listen, UDP and TCP; by default on port 53 of every address. Repeatable.
    #[arg(long, value_name = "ADDRESS[:PORT]", value_parser = socket)]
    listen: Vec<SocketAddr>,
}

impl Dns {
    /// Runs the server until it is told to stop; the result is the exit code.
    pub fn run(self) -> i32 {
        run(self.serve())
    }

    async fn serve(self) -> Result<()> {
        let servers: Vec<SocketAddr> =
            self.upstream.into_iter().flat_map(|servers| servers.0).collect();
        let upstream =
            (!servers.is_empty()).then(|| Upstream::new(servers, Duration::from_secs(self.cache)));
        let cluster = Cluster::new(self.cluster_domain, self.ttl, self.pods);
        let server = Arc::new(Server::new(cluster, upstream));

        let (synced, count) = tokio::sync::watch::channel(0);
        let complete = watch::resources(self.pods);
        serve_status("/health", self.health_port, || true).await?;
        serve_status("/ready", self.ready_port, move || *count.borrow() == complete).await?;
        let client = watch::client(self.kubeconfig.as_deref()).await?;
        tokio::spawn(watch::follow(client, server.clone(), self.pods, synced));
        listen(server, &self.listen).await
    }
}

impl DnsAuthority {
    /// Runs the server until it is told to stop; the result is the exit code.
    pub fn run(self) -> i32 {
        run(async {
            let zone = fixed::test_zone(&self.origin, &self.hosts);
            listen(Arc::new(Server::new(zone, None)), &self.listen).await
        })
    }
}

/// Runs a server on this thread until SIGTERM or SIGINT.
fn run(serve: impl Future<Output = Result<()>>) -> i32 {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env();
    let filter = filter.unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let _ = log.with_ansi(false).try_init();
    let served = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let served = served.map_err(Into::into).and_then(|runtime| {
        runtime.block_on(async {
            let (mut terminate, mut interrupt) =
                (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
            tokio::select! {
                served = serve => served,
                _ = terminate.recv() => Ok(()),
                _ = interrupt.recv() => Ok(()),
            }
        })
    });
    match served {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("Error: {error:#}");
            1
        }
    }
}

/// Answers on all addresses; returns when one of them fails.
async fn listen<Z: Zone + Send + 'static>(
    server: Arc<Server<Z>>,
    addresses: &[SocketAddr],
) -> Result<()> {
    let everywhere = [IpAddr::V6(Ipv6Addr::UNSPECIFIED), IpAddr::V4(Ipv4Addr::UNSPECIFIED)]
        .map(|ip| SocketAddr::new(ip, PORT));
    let mut tasks = tokio::task::JoinSet::new();
    let mut serve = |(udp, tcp): (tokio::net::UdpSocket, TcpListener)| {
        // Bursts must not be lost while the thread does something else.
        let _ = nix::sys::socket::setsockopt(&udp, nix::sys::socket::sockopt::RcvBuf, &(1 << 20));
        tasks.spawn(server.clone().serve_udp(udp));
        tasks.spawn(server.clone().serve_tcp(tcp));
    };
    if addresses.is_empty() {
        // The v6 wildcard serves both families where the kernel has both.
        let bound = match server::bind(everywhere[0]).await {
            Err(_) => server::bind(everywhere[1]).await,
            bound => bound,
        };
        serve(bound.with_context(|| format!("listen on port {PORT}"))?);
    }
    for address in addresses {
        serve(server::bind(*address).await.with_context(|| format!("listen on {address}"))?);
    }
    info!("answering");
    match tasks.join_next().await {
        Some(ended) => ended?.context("answer"),
        None => Ok(()),
    }
}

/// Serves a path that says whether something is the case.
async fn serve_status(
    path: &'static str,
    port: u16,
    good: impl Fn() -> bool + Clone + Send + Sync + 'static,
) -> Result<()> {
    let answer = move || {
        let good = good();
        async move {
            match good {
                true => (StatusCode::OK, "OK"),
                false => (StatusCode::SERVICE_UNAVAILABLE, "not yet"),
            }
        }
    };
    let router = Router::new().route(path, get(answer));
    let listener = match TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).await {
        Err(_) => TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).await,
        bound => bound,
    };
    let listener = listener.with_context(|| format!("listen on port {port} for {path}"))?;
    tokio::spawn(async move {
        if let Err(error) = axum::serve(listener, router).await {
            warn!("{path}: {error}");
        }
    });
    Ok(())
}

// ---------------------------------------------------------------------------------------------
// Arguments

fn domain(text: &str) -> Result<Name, String> {
    let text = text.trim_end_matches('.');
    Name::from_ascii(format!("{text}.")).map_err(|error| error.to_string())
}

fn socket(text: &str) -> Result<SocketAddr, String> {
    let with_port = text.parse().ok();
    let found = with_port.or_else(|| Some(SocketAddr::new(text.parse().ok()?, PORT)));
    found.ok_or_else(|| {
        format!("{text:?} is neither an address nor ADDRESS:PORT, [ADDRESS]:PORT for IPv6")
    })
}

/// Name servers that one argument stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Servers(Vec<SocketAddr>);

fn servers(text: &str) -> Result<Servers, String> {
    if !text.starts_with('/') {
        return Ok(Servers(vec![socket(text)?]));
    }
    let config = std::fs::read_to_string(text).map_err(|error| format!("read {text}: {error}"))?;
    Ok(Servers(name_servers(&config)))
}

/// The name servers of a resolv.conf.
fn name_servers(config: &str) -> Vec<SocketAddr> {
    let values = config.lines().filter_map(|line| line.trim().strip_prefix("nameserver"));
    values.filter_map(|value| socket(value.trim()).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_are_named_by_address_or_file() {
        let v4: SocketAddr = "192.0.2.1:53".parse().unwrap();
        assert_eq!(servers("192.0.2.1"), Ok(Servers(vec![v4])));
        assert_eq!(servers("[2001:db8::1]:5353").unwrap().0[0].port(), 5353);
        assert_eq!(servers("2001:db8::1").unwrap().0[0].port(), 53);
        assert!(servers("example.com").unwrap_err().contains("neither an address"));
        assert!(servers("/no/such/file").unwrap_err().contains("read /no/such/file"));
        let config =
            "# comment\nsearch a b\nnameserver 192.0.2.1\n nameserver ::1\noptions ndots:5\n";
        assert_eq!(name_servers(config), [v4, "[::1]:53".parse().unwrap()]);
    }
}
