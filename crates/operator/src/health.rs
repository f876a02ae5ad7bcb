//! The operator's HTTP servers: its API, and its metrics for Prometheus.
//!
//! | Server | Path | Answer |
//! |---|---|---|
//! | API | `/v1/healthz`, `/healthz` | 200 `ok`, or 500 and the jobs that fail |
//! | API | `/v1/metrics/` | the metrics as JSON |
//! | Prometheus | `/metrics` | the metrics as text |

use std::net::SocketAddr;

use anyhow::Context;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use axum::{Json, Router};
use statedb::Table;
use statedb::job::{Health, Job, State as JobState};
use tokio::net::TcpListener;

use crate::metrics::{Metrics, Sample, exposition};

/// What the servers tell about.
#[derive(Clone, Debug)]
pub struct Sources {
    /// How the jobs are.
    pub health: Table<Health>,
    /// What was counted.
    pub metrics: Metrics,
}

/// Listens on `address`, so that a port that is taken is known at the start; `option` is where the
/// address comes from.
pub async fn listen(option: &str, address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| {
        format!("cannot listen on {address}; choose another --{option}, or leave it empty")
    })
}

/// The API.
pub fn api(sources: Sources) -> Router {
    Router::new()
        .route("/healthz", get(healthz))
        .route("/v1/healthz", get(healthz))
        .route("/v1/metrics/", get(metrics_json))
        .route("/v1/metrics", get(metrics_json))
        .with_state(sources)
}

/// The metrics for Prometheus.
pub fn prometheus(sources: Sources) -> Router {
    Router::new().route("/metrics", get(metrics_text)).with_state(sources)
}

/// Serves until the job is stopped.
pub async fn serve(listener: TcpListener, router: Router, job: Job) -> anyhow::Result<()> {
    let stopped = job.stop.clone().cancelled_owned();
    axum::serve(listener, router).with_graceful_shutdown(stopped).await?;
    Ok(())
}

async fn healthz(State(sources): State<Sources>) -> (StatusCode, String) {
    let jobs = sources.health.snapshot();
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

async fn metrics_json(State(sources): State<Sources>) -> Json<Vec<Sample>> {
    Json(sources.metrics.samples(&sources.health.snapshot()))
}

async fn metrics_text(State(sources): State<Sources>) -> impl IntoResponse {
    let text = exposition(&sources.metrics.samples(&sources.health.snapshot()));
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text)
}
