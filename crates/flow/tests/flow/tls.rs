//! TLS of the server: who is let in, and certificates that change while it runs.

use std::path::Path;
use std::sync::Arc;

use api::hubble::observer::ServerStatusRequest;
use api::hubble::observer::observer_client::ObserverClient;
use flow::client::{Target, TlsOptions};
use flow::server::tls::{ClientFiles, Identity, Reloading, ServerFiles, TlsError};
use flow::server::{Listener, NodeAddress, PeerService, Peers, agent_routes, serve};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::support::*;

const NAME: &str = "node-1.east.hubble-grpc.cilium.io";

/// An authority whose certificate is in a file.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new(directory: &Path, name: &str) -> Self {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        let certificate = params.self_signed(&key).expect("a certificate");
        std::fs::write(directory.join(format!("{name}.crt")), certificate.pem()).expect("written");
        Self { issuer: Issuer::new(params, key) }
    }

    /// Writes a certificate for `NAME` and its key as `file`.
    fn issue(&self, directory: &Path, file: &str) -> Identity {
        let key = KeyPair::generate().expect("a key");
        let params = CertificateParams::new(vec![NAME.to_owned()]).expect("a name");
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate");
        let path = |ending: &str| directory.join(format!("{file}.{ending}"));
        std::fs::write(path("crt"), certificate.pem()).expect("written");
        std::fs::write(path("key"), key.serialize_pem()).expect("written");
        Identity { certificate: path("crt"), key: path("key") }
    }
}

/// Serves with these files; gives the address.
async fn server(files: ServerFiles) -> String {
    let tls = Arc::new(Reloading::new(files));
    tls.get().expect("the files are there");
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a socket");
    let address = listener.local_addr().expect("an address").to_string();
    let peers = PeerService::new(watch::channel(Peers::new()).1);
    let routes = agent_routes(Arc::new(observer(7)), NodeAddress::default(), peers).await;
    tokio::spawn(serve(Listener::Tls(listener, tls), routes, std::future::pending()));
    address
}

/// Whether a client with these files gets an answer.
async fn asks(address: &str, files: ClientFiles) -> Result<(), String> {
    let tls = TlsOptions { enabled: true, server_name: NAME.to_owned(), files };
    let target = Target::parse(address, &tls).expect("an address");
    let channel = target.connect(PATIENCE).await.map_err(|e| flow::client::chain(&e))?;
    let mut client = ObserverClient::new(channel);
    client
        .server_status(ServerStatusRequest {})
        .await
        .map(drop)
        .map_err(|status| status.to_string())
}

#[tokio::test]
async fn mutual_tls_lets_nobody_in_without_a_certificate() {
    let directory = Directory::new();
    let path = directory.path();
    let (ours, theirs) = (Authority::new(path, "ours"), Authority::new(path, "theirs"));
    let own = ours.issue(path, "server");
    let client_authorities = vec![path.join("ours.crt")];
    let address = server(ServerFiles { identity: own, client_authorities }).await;
    let authorities = vec![path.join("ours.crt")];
    let with = |identity| ClientFiles {
        authorities: authorities.clone(),
        identity,
        allow_insecure: false,
    };
    asks(&address, with(Some(ours.issue(path, "client")))).await.expect("a client of ours");
    asks(&address, with(None)).await.expect_err("no certificate");
    asks(&address, with(Some(theirs.issue(path, "stranger")))).await.expect_err("a stranger");
    let mistrusting = ClientFiles {
        authorities: vec![path.join("theirs.crt")],
        identity: Some(ours.issue(path, "client")),
        allow_insecure: false,
    };
    asks(&address, mistrusting.clone()).await.expect_err("a server of others");
    let careless = ClientFiles { allow_insecure: true, ..mistrusting };
    asks(&address, careless).await.expect("a client that asks no questions");
    // Who does not speak TLS at all gets nothing either.
    let plain = Target::Tcp(address).connect(PATIENCE).await;
    if let Ok(channel) = plain {
        let mut client = ObserverClient::new(channel);
        client.server_status(ServerStatusRequest {}).await.expect_err("no TLS");
    }
}

#[tokio::test]
async fn certificates_are_renewed_without_a_restart() {
    let directory = Directory::new();
    let path = directory.path();
    let (old, new) = (Authority::new(path, "old"), Authority::new(path, "new"));
    let identity = old.issue(path, "server");
    let address = server(ServerFiles { identity, client_authorities: Vec::new() }).await;
    let believing = |name: &str| ClientFiles {
        authorities: vec![path.join(name)],
        identity: None,
        allow_insecure: false,
    };
    asks(&address, believing("old.crt")).await.expect("the old certificate");
    new.issue(path, "server");
    asks(&address, believing("new.crt")).await.expect("the new certificate");
    asks(&address, believing("old.crt")).await.expect_err("the old one is gone");
    // A broken file changes nothing.
    std::fs::write(path.join("server.crt"), "no certificate").expect("written");
    asks(&address, believing("new.crt")).await.expect("still the new certificate");
}

#[test]
fn missing_files_are_named() {
    let identity =
        Identity { certificate: "/nowhere/tls.crt".into(), key: "/nowhere/tls.key".into() };
    let files = Reloading::new(ServerFiles { identity, client_authorities: Vec::new() });
    let error = files.get().expect_err("no files");
    assert!(matches!(error, TlsError::Read { .. }));
    assert!(error.to_string().contains("/nowhere/tls.key"), "{error}");
}
