//! The lab's API server alone, without nodes: for trying it with `kubectl`.
//!
//! `cargo run -p lab --example apiserver [DIRECTORY]` prints the path of a kubeconfig and
//! serves until it is interrupted. With a directory the state is kept there.

use std::path::PathBuf;

use anyhow::Context as _;
use lab::apiserver::{ApiServer, Config};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .with_writer(std::io::stderr)
        .init();
    let directory = std::env::args().nth(1).map(PathBuf::from);
    let listener = std::net::TcpListener::bind("127.0.0.1:0").context("listening on loopback")?;
    let url = format!("https://{}", listener.local_addr()?);
    let server = ApiServer::start(Config {
        listeners: vec![listener],
        server_names: vec!["127.0.0.1".into(), "localhost".into()],
        persistence: directory.clone(),
        ..Config::default()
    })
    .await?;
    let place = directory.unwrap_or_else(|| {
        std::env::temp_dir().join(format!("cilium-lab-apiserver-{}", std::process::id()))
    });
    std::fs::create_dir_all(&place)?;
    let kubeconfig = place.join("kubeconfig");
    std::fs::write(&kubeconfig, server.kubeconfig(&url, "cilium-lab"))
        .with_context(|| format!("writing {}", kubeconfig.display()))?;
    println!("{}", kubeconfig.display());
    tokio::signal::ctrl_c().await?;
    server.shutdown().await;
    Ok(())
}
