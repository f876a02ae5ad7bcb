//! The health API on `health.sock`, beside the agent's socket.

use std::sync::Arc;

use api::rest::{
    HEALTH_SOCKET_NAME, HealthResponse, HealthStatusResponse, LoadResponse, health_path,
};
use axum::extract::State;
use axum::routing::{get, put};
use axum::{Json, Router};
use statedb::job::Job;

use super::Prober;
use crate::rest::{Agent, Socket, status_response};

type Shared = State<(Arc<Agent>, Arc<Prober>)>;

/// Answers requests until told to stop.
pub async fn serve(job: Job, agent: Arc<Agent>, prober: Arc<Prober>) -> Result<(), String> {
    let path = agent.config.socket_path.with_file_name(HEALTH_SOCKET_NAME);
    let socket = Socket::open(&path)
        .map_err(|error| format!("cannot open the socket {}: {error}", path.display()))?;
    let router = Router::new()
        .route(health_path::HEALTHZ, get(healthz))
        .route(health_path::STATUS, get(status))
        .route(health_path::PROBE, put(probe))
        .with_state((agent, prober));
    socket.serve(job, router).await
}

async fn healthz(State((agent, _)): Shared) -> Json<HealthResponse> {
    Json(HealthResponse {
        cilium: status_response(&agent),
        system_load: load(&std::fs::read_to_string("/proc/loadavg").unwrap_or_default()),
        uptime: uptime(&std::fs::read_to_string("/proc/uptime").unwrap_or_default()),
    })
}

async fn status(State((_, prober)): Shared) -> Json<HealthStatusResponse> {
    Json(prober.last())
}

async fn probe(State((_, prober)): Shared) -> Json<HealthStatusResponse> {
    Json(prober.round().await)
}

/// From `/proc/loadavg`.
fn load(text: &str) -> LoadResponse {
    let mut words = text.split_whitespace().map(str::to_owned);
    let mut next = || words.next().unwrap_or_default();
    LoadResponse { last_1_min: next(), last_5_min: next(), last_15_min: next() }
}

/// From `/proc/uptime`, as `uptime` says it.
fn uptime(text: &str) -> String {
    let seconds = text.split(['.', ' ']).next().and_then(|word| word.parse::<u64>().ok());
    let words = |s: u64| format!("{} days, {}:{:02}", s / 86_400, s / 3600 % 24, s / 60 % 60);
    seconds.map(words).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machine_is_described() {
        let load = load("0.52 0.58 0.59 2/1045 9876\n");
        assert_eq!([load.last_1_min, load.last_15_min], ["0.52", "0.59"]);
        assert_eq!(uptime("93784.52 1.0\n"), "1 days, 2:03");
        assert_eq!(uptime(""), "");
    }
}
