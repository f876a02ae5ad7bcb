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
mod request;
mod resource;
mod scale;
mod schema;
mod selector;
mod service;
mod status;
mod store;
mod strategy;
mod table;
mod tls;
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

use http::{Server, User};
use tls::Credentials;

/// How long a client may take for the TLS handshake.
const HANDSHAKE_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(10);

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
        let (credentials, kept) = match &config.persistence {
            Some(directory) => persistence::open(directory).with_context(|| {
                format!("restoring the cluster's state from {}", directory.display())
            })?,
            None => (Credentials::generate()?, None),
        };
        let api = Arc::new(Api::new(credentials.ca_pem.clone()));
        let stop = CancellationToken::new();
        let mut tasks = JoinSet::new();
        if let Some(kept) = kept {
            let journal = kept.restore(&api.store)?;
            crd::serve_all(&api);
            tasks.spawn(journal.keep(api.clone(), api.store.listen(), stop.clone()));
        }
        tasks.spawn(gc::run(api.clone(), api.store.listen(), stop.clone()));
        create_system_namespaces(&api)?;
        advertise(&api, &config.advertised)?;

        let serving = watch_channel::Sender::new(true);
        let tls = Arc::new(credentials.server_config(&config.server_names)?);
        let server = Arc::new(Server { api: api.clone(), streams: config.streams });
        for listener in config.listeners {
            listener.set_nonblocking(true).context("making a listener non-blocking")?;
            let listener = tokio::net::TcpListener::from_std(listener)
                .context("listening for the API server's clients")?;
            let acceptor = Acceptor {
                listener,
                tls: tls.clone(),
                server: server.clone(),
                credentials: credentials.clone(),
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
    credentials: Credentials,
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
        let by_certificate = self.user_of_certificate(stream.get_ref().1);
        let service = service_fn(|request: Request<Incoming>| {
            let user = by_certificate.clone().or_else(|| self.user_of_token(&request));
            let answer = self.server.clone().answer(user, request);
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

    fn user_of_certificate(&self, tls: &rustls::ServerConnection) -> Option<User> {
        use rustls::pki_types::pem::PemObject as _;
        let certificate = tls.peer_certificates()?.first()?;
        let admin = rustls::pki_types::CertificateDer::from_pem_slice(
            self.credentials.admin_pem.as_bytes(),
        );
        // The verifier has checked that our authority made it, and it has made one only.
        (admin.ok()? == *certificate).then(administrator)
    }

    fn user_of_token(&self, request: &Request<Incoming>) -> Option<User> {
        let header = request.headers().get(::http::header::AUTHORIZATION)?.to_str().ok()?;
        let token = header.strip_prefix("Bearer ")?;
        (token == self.credentials.admin_token).then(administrator)
    }
}

fn administrator() -> User {
    User {
        name: "kubernetes-admin".into(),
        groups: vec!["system:masters".into(), "system:authenticated".into()],
    }
}
