//! `/healthz`: whether the operator does its work.

use std::net::SocketAddr;

use anyhow::Context;
use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;
use statedb::Table;
use statedb::job::{Health, Job, State as JobState};
use tokio::net::TcpListener;

/// Listens on `address`, so that a port that is taken is known at the start.
pub async fn listen(address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| {
        format!(
            "cannot listen on {address}; choose another --operator-api-serve-addr, or leave it empty"
        )
    })
}

/// Answers on `/healthz` and `/v1/healthz` until the job is stopped: 200 `ok`, or 500 and the jobs
/// that fail.
pub async fn serve(listener: TcpListener, health: Table<Health>, job: Job) -> anyhow::Result<()> {
    let router = Router::new()
        .route("/healthz", get(healthz))
        .route("/v1/healthz", get(healthz))
        .with_state(health);
    let stopped = job.stop.clone().cancelled_owned();
    axum::serve(listener, router).with_graceful_shutdown(stopped).await?;
    Ok(())
}

async fn healthz(State(health): State<Table<Health>>) -> (StatusCode, String) {
    let jobs = health.snapshot();
    let bad =
        |job: &&std::sync::Arc<Health>| matches!(job.state, JobState::Degraded | JobState::Failed);
    let lines: Vec<String> =
        jobs.rows().filter(bad).map(|job| format!("{}: {}\n", job.name, job.message)).collect();
    if lines.is_empty() {
        (StatusCode::OK, "ok".to_owned())
    } else {
        (StatusCode::INTERNAL_SERVER_ERROR, lines.concat())
    }
}
