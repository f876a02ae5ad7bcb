//! The agent's REST API on its unix socket, under Cilium's paths.
//!
//! Handlers only translate: what they answer comes from the tables, what they do is done by
//! [`crate::endpoint`]. An error is a JSON string with words for people, as Cilium's clients expect.

mod endpoint;
mod ipam;
mod listing;
mod policy;
mod status;

use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use api::config::Config;
use api::rest::{NodeAddressing, NodeAddressingElement};
use axum::body::Body;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use futures::StreamExt;
use kernel::datapath::Datapath;
use model::IpFamily;
use statedb::Table;
use statedb::job::{Group, Health, Job};
use tokio::net::UnixListener;

use crate::controllers::LocalNode;
use crate::endpoint::{Endpoints, MapProgress};
use crate::health::Prober;
use crate::monitor::Monitor;
use crate::ready::Ready;
use crate::tables::{ClusterEndpoint, DesiredRoute, Node};
use crate::wiring::Policies;

/// Everything that handlers look at.
pub struct Agent {
    /// The options in force.
    pub config: Config,
    /// The options that were set, as text.
    pub config_set: BTreeMap<String, String>,
    /// This node.
    pub node: Arc<LocalNode>,
    /// The node's endpoints.
    pub endpoints: Arc<Endpoints>,
    /// Nodes of the cluster.
    pub nodes: Table<Node>,
    /// Pods of the cluster.
    pub cluster: Table<ClusterEndpoint>,
    /// Desired routes.
    pub routes: Table<DesiredRoute>,
    /// How the maps progress.
    pub maps: MapProgress,
    /// Policies, and what they come to.
    pub policies: Policies,
    /// The loaded programs and their maps.
    pub datapath: Arc<Datapath>,
    /// Health of the agent's jobs.
    pub health: Table<Health>,
    /// Events.
    pub monitor: Arc<Monitor>,
    /// Whether pods can be connected.
    pub ready: Ready,
    /// What probes the nodes, where they are probed.
    pub prober: Option<Arc<Prober>>,
}

type Shared = State<Arc<Agent>>;

/// What a handler gives when it cannot do what was asked.
struct Refused {
    status: StatusCode,
    message: String,
}

impl Refused {
    fn new(status: StatusCode, message: impl ToString) -> Self {
        Self { status, message: message.to_string() }
    }

    fn bad_request(message: impl ToString) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    fn not_found(message: impl ToString) -> Self {
        Self::new(StatusCode::NOT_FOUND, message)
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        (self.status, Json(self.message)).into_response()
    }
}

/// All paths.
fn router(agent: Arc<Agent>) -> Router {
    Router::new()
        .route("/v1/healthz", get(status::healthz))
        .route("/v1/config", get(status::config).patch(status::patch_config))
        .route("/v1/endpoint", get(endpoint::list).delete(endpoint::delete_batch))
        .route(
            "/v1/endpoint/{id}",
            get(endpoint::show)
                .put(endpoint::create)
                .patch(endpoint::patch)
                .delete(endpoint::delete),
        )
        .route("/v1/endpoint/{id}/healthz", get(endpoint::healthz))
        .route("/v1/endpoint/{id}/labels", get(endpoint::labels))
        .route(
            "/v1/endpoint/{id}/config",
            get(policy::endpoint_config).patch(policy::patch_endpoint_config),
        )
        .route("/v1/endpoint/{id}/log", get(endpoint::log))
        .route("/v1/identity", get(listing::identities))
        .route("/v1/identity/endpoints", get(listing::identity_endpoints))
        .route("/v1/identity/{id}", get(listing::identity))
        .route("/v1/ipam", post(ipam::allocate))
        .route("/v1/ipam/{ip}", post(ipam::reserve).delete(ipam::release))
        .route("/v1/ip", get(listing::ips))
        .route("/v1/map", get(listing::maps))
        .route("/v1/map/{name}", get(listing::map))
        .route("/v1/cluster/nodes", get(listing::nodes))
        .route("/v1/node/ids", get(listing::node_ids))
        .route("/v1/policy", get(policy::list))
        .route("/v1/policy/selectors", get(policy::selectors))
        .route("/v1/policy/trace", post(policy::trace))
        .route("/v1/policy/explain", get(policy::explain))
        .route("/v1/policy/cookie/{cookie}", get(policy::cookie))
        .route("/v1/monitor", get(monitor))
        .fallback(async || Refused::not_found("no such path in this API"))
        .with_state(agent)
}

/// A socket that clients can connect to; requests wait until [`Socket::serve`].
pub struct Socket {
    listener: UnixListener,
    path: PathBuf,
}

impl Socket {
    /// Opens the socket in place of the one that an agent before us left. Only root may use it.
    pub fn open(path: &Path) -> io::Result<Self> {
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent)?;
        }
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(path)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660))?;
        Ok(Self { listener, path: path.to_owned() })
    }

    /// Answers requests until told to stop.
    pub async fn serve(self, job: Job, router: Router) -> Result<(), String> {
        job.ok(self.path.display());
        let stop = job.stop.clone();
        let served = axum::serve(self.listener, router.into_make_service());
        tokio::select! {
            // Streams of the monitor would hold a graceful shutdown up for ever.
            () = stop.cancelled() => Ok(()),
            result = served => result.map_err(|error| error.to_string()),
        }
    }
}

/// All that `/v1/healthz` tells.
pub fn status_response(agent: &Agent) -> api::rest::StatusResponse {
    status::full(agent)
}

/// Answers `/healthz` for the kubelet on `127.0.0.1`, in the node's network namespace.
pub async fn serve_health(job: Job, port: u16, agent: Arc<Agent>) -> Result<(), String> {
    let router = Router::new().route("/healthz", get(status::health_probe)).with_state(agent);
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", port)).await.map_err(|error| {
        format!("cannot listen on 127.0.0.1:{port} (option agent-health-port): {error}")
    })?;
    job.ok(format_args!("127.0.0.1:{port}"));
    tokio::select! {
        () = job.stop.cancelled() => Ok(()),
        result = async { axum::serve(listener, router.into_make_service()).await } => {
            result.map_err(|error| error.to_string())
        }
    }
}

/// A stream of frames, from now on.
async fn monitor(State(agent): Shared) -> Response {
    let events = futures::stream::unfold(agent.monitor.subscribe(), async |mut queue| {
        Some((queue.recv().await?, queue))
    });
    let body = Body::from_stream(events.map(Ok::<_, io::Error>));
    ([(header::CONTENT_TYPE, "application/octet-stream")], body).into_response()
}

/// The node's addresses in the pods' network.
fn host_addressing(agent: &Agent) -> NodeAddressing {
    let node = &agent.node;
    let element = |family: IpFamily| {
        let router = node.routers.iter().find(|r| IpFamily::of(**r) == family)?;
        let range = node.pod_cidrs.iter().find(|c| IpFamily::of_net(c) == family);
        Some(NodeAddressingElement {
            enabled: true,
            ip: router.to_string(),
            alloc_range: range.map(ToString::to_string).unwrap_or_default(),
            address_type: String::new(),
        })
    };
    NodeAddressing { ipv4: element(IpFamily::Ipv4), ipv6: element(IpFamily::Ipv6) }
}

/// The group's jobs and their names, for those who start them.
pub fn spawn(group: &Group, socket: Socket, agent: &Arc<Agent>) {
    let api = Arc::clone(agent);
    group.spawn("rest-api", move |job| socket.serve(job, router(api)));
    let port = agent.config.agent_health_port;
    if port != 0 {
        let health = Arc::clone(agent);
        group.spawn("agent-health", move |job| serve_health(job, port, health));
    }
}
