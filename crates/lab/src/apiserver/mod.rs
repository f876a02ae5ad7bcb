//! A Kubernetes API server in a library.
//!
//! The lab runs it inside its supervisor; tests run it alone. Stock `kubectl` and
//! kube-rs speak to it as to a real one. `docs/reference/lab.md` says where it is
//! simpler.
//!
//! ```text
//!   kubectl, agents ──TLS──► http ──┐                      ┌─► gc, persistence (listeners)
//!                                   ├─► api ──► store ─────┤
//!   scheduler, pod runner ──────────┘    │                 └─► watch (cursors)
//!                                        └ strategy, ownership, patch, schema
//! ```
//!
//! `http` (with `request`) is the way in from outside, the lab's own parts call `api`, which has the verbs; `store` has the
//! objects as JSON bytes and hands out every change in order.

mod api;
mod attributes;
mod convert;
mod crd;
mod gc;
mod http;
mod jsonpath;
mod names;
mod object;
mod openapi;
mod ownership;
mod patch;
mod persistence;
mod pod;
mod proto;
mod protobuf_body;
mod rbac;
mod renderings;
mod request;
mod resource;
mod review;
mod roles;
mod scale;
mod schema;
mod selector;
mod service;
mod status;
mod store;
mod strategy;
mod table;
mod tls;
mod token;
mod user;
mod validations;
mod volume;
mod watch;
mod workload;

use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::Arc;

use ::http::Request;
use anyhow::Context as _;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::sync::watch as watch_channel;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use api::{Api, DeleteOptions, Outcome, Propagation, Target, WriteOptions};
pub use http::{Body, PodStreams, Reply, full};
pub use object::{Key, Object, now, random};
pub use patch::Patch;
pub use status::ApiError;
pub use store::{Change, Cursor, Event, Store, Written};
pub use token::{BoundObject, IssuedToken, TokenRequest};
pub use user::User;

use http::Server;
use renderings::Renderings;
use tls::Credentials;

/// How long a client may take for the TLS handshake.
const HANDSHAKE_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(10);

/// How long the tokens of programs in a lab last, which nobody renews: ten years.
const TOKEN_OF_PROGRAM_SECONDS: i64 = 10 * 365 * 24 * 60 * 60;

/// Where pods find the API server once Services are translated.
pub const KUBERNETES_SERVICE_IP: &str = "10.96.0.1";

/// How to run an API server.
#[derive(Default)]
pub struct Config {
    /// Where to listen. A socket belongs to the network namespace that it was made in.
    pub listeners: Vec<TcpListener>,
    /// DNS names and addresses that clients use, for the certificate.
    pub server_names: Vec<String>,
    /// Directory in which the cluster's state outlives the process.
    pub persistence: Option<PathBuf>,
    /// Serves logs, exec and the like.
    pub streams: Option<Arc<dyn PodStreams>>,
    /// Where pods and nodes reach this server: what is behind the Service `default/kubernetes`.
    pub advertised: Vec<SocketAddr>,
}

/// A running API server.
pub struct ApiServer {
    api: Arc<Api>,
    credentials: Credentials,
    stop: CancellationToken,
    serving: watch_channel::Sender<bool>,
    tasks: JoinSet<()>,
}

impl ApiServer {
    /// Starts serving; returns when requests are answered.
    pub async fn start(config: Config) -> anyhow::Result<Self> {
        let restoring = |directory: &PathBuf| {
            format!("restoring the cluster's state from {}", directory.display())
        };
        let credentials = match &config.persistence {
            Some(directory) => {
                persistence::credentials(directory).with_context(|| restoring(directory))?
            }
            None => Credentials::generate()?,
        };
        let api = Arc::new(Api::signing(credentials.ca_pem.clone(), credentials.signer()?));
        let stop = CancellationToken::new();
        let mut tasks = JoinSet::new();
        if let Some(directory) = &config.persistence {
            persistence::restore(directory, &api.store).with_context(|| restoring(directory))?;
            crd::serve_all(&api);
        }
        tasks.spawn(gc::run(api.clone(), api.store.listen(), stop.clone()));
        create_system_namespaces(&api)?;
        api.create_default_roles().context("making the cluster's default roles")?;
        advertise(&api, &config.advertised)?;

        let serving = watch_channel::Sender::new(true);
        let tls = Arc::new(credentials.server_config(&config.server_names)?);
        let admin_token = credentials.admin_token.clone();
        let server = Arc::new(Server {
            api: api.clone(),
            streams: config.streams,
            admin_token,
            renderings: Renderings::default(),
        });
        for listener in config.listeners {
            listener.set_nonblocking(true).context("making a listener non-blocking")?;
            let listener = tokio::net::TcpListener::from_std(listener)
                .context("listening for the API server's clients")?;
            let acceptor = Acceptor {
                listener,
                tls: tls.clone(),
                server: server.clone(),
                stop: stop.clone(),
                serving: serving.subscribe(),
            };
            tasks.spawn(acceptor.run());
        }
        Ok(Self { api, credentials, stop, serving, tasks })
    }

    /// A kubeconfig with the administrator's rights, whose context is called `name`.
    pub fn kubeconfig(&self, server_url: &str, name: &str) -> String {
        self.credentials.kubeconfig(server_url, name)
    }

    /// A kubeconfig by whose certificate a client is this user, in this group.
    pub fn kubeconfig_of_user(
        &self,
        server_url: &str,
        name: &str,
        user: &str,
        group: Option<&str>,
    ) -> anyhow::Result<String> {
        let (certificate, key) = self.credentials.client(user, group)?;
        let proof = tls::certificate_proof(&certificate, &key);
        Ok(self.credentials.kubeconfig_with(server_url, name, user, &proof))
    }

    /// A kubeconfig with a token by which a program is this service account, as long as that
    /// exists. For those programs of a cluster that a lab does not run in pods.
    pub fn kubeconfig_of_service_account(
        &self,
        server_url: &str,
        name: &str,
        namespace: &str,
        service_account: &str,
    ) -> anyhow::Result<String> {
        let issued = self.api.create_token(&TokenRequest {
            namespace: namespace.to_owned(),
            service_account: service_account.to_owned(),
            expiration_seconds: TOKEN_OF_PROGRAM_SECONDS,
            ..TokenRequest::default()
        })?;
        let proof = format!("    token: {}\n", issued.token);
        Ok(self.credentials.kubeconfig_with(server_url, name, service_account, &proof))
    }

    /// The certificate of the cluster's authority, PEM.
    pub fn ca_pem(&self) -> &str {
        &self.credentials.ca_pem
    }

    /// A bearer token with the administrator's rights.
    pub fn admin_token(&self) -> &str {
        &self.credentials.admin_token
    }

    /// The verbs without HTTP, for those in the same process.
    pub fn api(&self) -> Arc<Api> {
        self.api.clone()
    }

    /// Plays dead, or comes back: connections are cut and new ones closed at once.
    pub fn set_serving(&self, serving: bool) {
        self.serving.send_replace(serving);
    }

    /// Ends all connections and returns when everything is written and done.
    pub async fn shutdown(mut self) {
        self.stop.cancel();
        while let Some(result) = self.tasks.join_next().await {
            if let Err(error) = result {
                tracing::error!(%error, "a task of the API server failed");
            }
        }
    }
}

fn create_system_namespaces(api: &Api) -> anyhow::Result<()> {
    let options = WriteOptions::by("kube-apiserver");
    for name in ["default", "kube-system", "kube-public", "kube-node-lease"] {
        let target = api.target("namespaces", "", "")?;
        let namespace = serde_json::json!({ "metadata": { "name": name } });
        match api.create(&target, namespace, &options) {
            Err(error) if !error.is_already_exists() => return Err(error.into()),
            _ => {}
        }
    }
    Ok(())
}

/// The Service by which pods find this server, and what is behind it. Kept as it should be.
fn advertise(api: &Api, addresses: &[SocketAddr]) -> anyhow::Result<()> {
    let Some(port) = addresses.first().map(SocketAddr::port) else { return Ok(()) };
    let options = WriteOptions { force: true, ..WriteOptions::by("kube-apiserver") };
    let apply = |resource: &str, name: &str, rest: serde_json::Value| -> anyhow::Result<()> {
        let mut object =
            serde_json::json!({ "metadata": { "name": name, "namespace": "default" } });
        if let (Some(object), Some(rest)) = (object.as_object_mut(), rest.as_object()) {
            object.extend(rest.clone());
        }
        let target = api.target(resource, "default", name)?;
        api.patch(&target, &Patch::Apply(object), &options)?;
        Ok(())
    };
    let https = serde_json::json!({ "name": "https", "port": port, "protocol": "TCP" });
    apply(
        "services",
        "kubernetes",
        serde_json::json!({
            "metadata": { "name": "kubernetes", "namespace": "default",
                "labels": { "component": "apiserver", "provider": "kubernetes" } },
            "spec": { "clusterIP": KUBERNETES_SERVICE_IP,
                "ports": [{ "name": "https", "port": 443, "protocol": "TCP", "targetPort": port }] },
        }),
    )?;
    let of_family = |v4: bool| -> Vec<String> {
        let addresses = addresses.iter().filter(|address| address.is_ipv4() == v4);
        addresses.map(|address| address.ip().to_string()).collect()
    };
    let primary: Vec<_> =
        of_family(true).iter().map(|ip| serde_json::json!({ "ip": ip })).collect();
    apply(
        "endpoints",
        "kubernetes",
        serde_json::json!({
            // Its slices are written below.
            "metadata": { "name": "kubernetes", "namespace": "default",
                "labels": { "endpointslice.kubernetes.io/skip-mirror": "true" } },
            "subsets": [{ "addresses": primary, "ports": [https] }],
        }),
    )?;
    for (name, family, v4) in [("kubernetes", "IPv4", true), ("kubernetes-ipv6", "IPv6", false)] {
        let endpoints: Vec<_> = of_family(v4)
            .iter()
            .map(|ip| serde_json::json!({ "addresses": [ip], "conditions": { "ready": true } }))
            .collect();
        if endpoints.is_empty() {
            continue;
        }
        apply(
            "endpointslices.discovery.k8s.io",
            name,
            serde_json::json!({
                "metadata": { "name": name, "namespace": "default",
                    "labels": { "kubernetes.io/service-name": "kubernetes" } },
                "addressType": family, "endpoints": endpoints, "ports": [https],
            }),
        )?;
    }
    Ok(())
}

/// Accepts connections on one listener.
struct Acceptor {
    listener: tokio::net::TcpListener,
    tls: Arc<rustls::ServerConfig>,
    server: Arc<Server>,
    stop: CancellationToken,
    serving: watch_channel::Receiver<bool>,
}

impl Acceptor {
    async fn run(self) {
        let acceptor = Arc::new(self);
        let connections = TaskTracker::new();
        loop {
            let accepted = tokio::select! {
                () = acceptor.stop.cancelled() => break,
                accepted = acceptor.listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, _)) if !*acceptor.serving.borrow() => drop(stream),
                Ok((stream, peer)) => {
                    let acceptor = acceptor.clone();
                    connections.spawn(async move {
                        if let Err(error) = acceptor.serve(stream).await {
                            tracing::debug!(%peer, %error, "connection ended");
                        }
                    });
                }
                Err(error) => {
                    // Out of descriptors, most likely; others' connections end in a moment.
                    tracing::warn!(%error, "cannot accept a connection to the API server");
                    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                }
            }
        }
        connections.close();
        connections.wait().await;
    }

    async fn serve(&self, stream: tokio::net::TcpStream) -> anyhow::Result<()> {
        stream.set_nodelay(true)?;
        let tls = tokio_rustls::TlsAcceptor::from(self.tls.clone());
        let stream = tokio::select! {
            () = self.stop.cancelled() => return Ok(()),
            stream = tokio::time::timeout(HANDSHAKE_TIMEOUT, tls.accept(stream)) => {
                stream.context("the client did not finish the TLS handshake")?.context("TLS handshake")?
            }
        };
        // The verifier has checked that our authority made the certificate.
        let certified = stream
            .get_ref()
            .1
            .peer_certificates()
            .and_then(|chain| User::of_certificate(chain.first()?))
            .map(Arc::new);
        let service = service_fn(|request: Request<Incoming>| {
            let answer = self.server.clone().answer(certified.clone(), request);
            async move { Ok::<_, std::convert::Infallible>(answer.await) }
        });
        let mut builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
        builder.http2().max_concurrent_streams(Some(1_000));
        let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
        let mut serving = self.serving.clone();
        tokio::select! {
            _ = serving.wait_for(|serving| !serving) => Ok(()),
            // Watches would go on for long: clients reconnect anyway.
            () = self.stop.cancelled() => Ok(()),
            result = connection => result.map_err(|error| anyhow::anyhow!(error)),
        }
    }
}
