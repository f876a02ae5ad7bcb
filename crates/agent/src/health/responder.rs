//! What answers HTTP probes: on the node, and in the health endpoint's namespace.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use axum::Router;
use axum::routing::get;
use statedb::job::Job;
use tokio::net::TcpListener;

use super::http;

/// Wait before the port is tried again that somebody else has.
const RETRY: Duration = Duration::from_secs(30);

/// Listens on all addresses of the calling thread's namespace, of both families where there are two.
/// Needs a runtime, which may be another thread's.
pub fn listen(port: u16) -> io::Result<std::net::TcpListener> {
    let any = [
        SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)),
        SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)),
    ];
    let listener = std::net::TcpListener::bind(&any[..])?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Answers for ever.
pub async fn serve(listener: std::net::TcpListener) -> io::Result<()> {
    let router: Router = Router::new().route(http::PATH, get(async || ""));
    axum::serve(TcpListener::from_std(listener)?, router).await
}

/// Answers on the node's own addresses until told to stop.
pub async fn serve_node(job: Job, port: u16) -> Result<(), String> {
    loop {
        let served = async {
            let listener = listen(port)?;
            job.ok(format_args!("port {port}"));
            serve(listener).await
        };
        let served = tokio::select! {
            () = job.stop.cancelled() => return Ok(()),
            served = served => served,
        };
        if let Err(error) = served {
            job.degraded(format_args!(
                "cannot answer on port {port} (option cluster-health-port): {error}"
            ));
        }
        tokio::select! {
            () = job.stop.cancelled() => return Ok(()),
            () = tokio::time::sleep(RETRY) => {}
        }
    }
}
