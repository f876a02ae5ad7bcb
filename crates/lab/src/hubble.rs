//! Hubble in the lab: certificates for agents and relay, and the relay itself, which runs in the hub
//! as its Deployment would run in a cluster.
//!
//! The relay serves on the hub's address, for nodes and pods, and on a Unix socket, for people on
//! this machine: nothing of a lab's network can be reached from outside it.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
};

use crate::spec::{Paths, Spec};

/// The port of agents' servers.
const SERVER_PORT: u16 = 4244;
/// The port of the relay.
const RELAY_PORT: u16 = 4245;

/// The files of Hubble in a lab.
pub(crate) struct Files {
    dir: PathBuf,
}

impl Files {
    pub(crate) fn of(paths: &Paths) -> Self {
        Self { dir: paths.hubble() }
    }

    fn path(&self, name: &str) -> String {
        self.dir.join(name).display().to_string()
    }

    /// The relay's socket, for this machine.
    pub(crate) fn relay_socket(&self) -> PathBuf {
        self.dir.join("relay.sock")
    }

    /// What the agents' configuration says of Hubble, unless the user says otherwise.
    pub(crate) fn config(&self) -> BTreeMap<String, String> {
        let pairs = [
            ("enable-hubble", "true".to_owned()),
            ("hubble-listen-address", format!(":{SERVER_PORT}")),
            ("hubble-tls-cert-file", self.path("server.crt")),
            ("hubble-tls-key-file", self.path("server.key")),
            ("hubble-tls-client-ca-files", self.path("ca.crt")),
        ];
        pairs.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
    }

    /// Makes an authority, a certificate for all agents and one for the relay.
    pub(crate) fn make_certificates(&self, cluster: &str) -> Result<()> {
        fs::create_dir_all(&self.dir).with_context(|| format!("create {}", self.dir.display()))?;
        let cluster = cluster.to_ascii_lowercase().replace('.', "-");
        let mut authority = CertificateParams::new(Vec::new())?;
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        authority.distinguished_name.push(DnType::CommonName, "Hubble of the lab");
        let key = KeyPair::generate().context("make a key")?;
        let certificate = authority.self_signed(&key).context("make the authority of Hubble")?;
        fs::write(self.dir.join("ca.crt"), certificate.pem())?;
        let issuer = Issuer::new(authority, key);
        let server = ExtendedKeyUsagePurpose::ServerAuth;
        let client = ExtendedKeyUsagePurpose::ClientAuth;
        self.issue(&issuer, "server", &format!("*.{cluster}.hubble-grpc.cilium.io"), server)?;
        self.issue(&issuer, "relay", &format!("*.{cluster}.hubble-relay.cilium.io"), client)
    }

    fn issue(
        &self,
        issuer: &Issuer<'_, KeyPair>,
        file: &str,
        name: &str,
        usage: ExtendedKeyUsagePurpose,
    ) -> Result<()> {
        let mut params = CertificateParams::new(vec![name.to_owned()])?;
        params.distinguished_name.push(DnType::CommonName, name);
        params.extended_key_usages = vec![usage];
        let key = KeyPair::generate().context("make a key")?;
        let certificate = params.signed_by(&key, issuer).context("make a certificate of Hubble")?;
        fs::write(self.dir.join(format!("{file}.crt")), certificate.pem())?;
        crate::supervisor::write_private(
            Path::new(&self.path(&format!("{file}.key"))),
            &key.serialize_pem(),
        )
    }

    /// How the relay is started.
    pub(crate) fn relay_argv(&self, program: String, spec: &Spec) -> Vec<String> {
        let config = spec.cilium_config();
        let cluster = config.get("cluster-name").map_or("default", String::as_str);
        let nodes = spec.node_specs().map(|node| {
            let [address, ..] = node.addresses();
            std::net::SocketAddr::new(address, SERVER_PORT).to_string()
        });
        vec![
            program,
            "serve".to_owned(),
            format!("--listen-address=:{RELAY_PORT},unix://{}", self.relay_socket().display()),
            format!("--peer-service={}", nodes.collect::<Vec<_>>().join(",")),
            format!("--cluster-name={cluster}"),
            format!("--tls-hubble-client-cert-file={}", self.path("relay.crt")),
            format!("--tls-hubble-client-key-file={}", self.path("relay.key")),
            format!("--tls-hubble-server-ca-files={}", self.path("ca.crt")),
            "--disable-server-tls".to_owned(),
            // A lab's nodes come and go quickly.
            "--retry-timeout=5".to_owned(),
        ]
    }
}
