//! The cluster's certificate authority, and who may speak to the API server.

use std::sync::Arc;

use anyhow::Context as _;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose,
};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use serde::{Deserialize, Serialize};

use super::token::Signer;
use super::user::MASTERS;

/// The user who may do everything.
const ADMINISTRATOR: &str = "kubernetes-admin";

/// Certificates of one cluster. Kept with its state, so that a kubeconfig stays valid.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct Credentials {
    pub ca_pem: String,
    ca_key_pem: String,
    pub admin_pem: String,
    pub admin_key_pem: String,
    /// Bearer token of the administrator, for clients without certificates.
    pub admin_token: String,
    /// The key that signs tokens of service accounts, PKCS #8 in base64.
    token_key: String,
}

impl Credentials {
    pub(super) fn generate() -> anyhow::Result<Self> {
        let ca_key = KeyPair::generate().context("making the authority's key")?;
        let params = ca_params();
        let ca = params.self_signed(&ca_key).context("making the authority's certificate")?;
        let issuer = Issuer::new(params, &ca_key);

        let (admin_pem, admin_key_pem) = client_of(&issuer, ADMINISTRATOR, Some(MASTERS))?;
        let token = super::object::random::<24>();
        Ok(Self {
            ca_pem: ca.pem(),
            ca_key_pem: ca_key.serialize_pem(),
            admin_pem,
            admin_key_pem,
            admin_token: token.iter().map(|byte| format!("{byte:02x}")).collect(),
            token_key: STANDARD.encode(Signer::generate()?),
        })
    }

    /// A certificate by which a client is this user, in this group, and its key; both PEM.
    pub(super) fn client(
        &self,
        user: &str,
        group: Option<&str>,
    ) -> anyhow::Result<(String, String)> {
        let ca_key = KeyPair::from_pem(&self.ca_key_pem).context("reading the authority's key")?;
        client_of(&Issuer::new(ca_params(), ca_key), user, group)
    }

    /// Who signs tokens of service accounts.
    pub(super) fn signer(&self) -> anyhow::Result<Signer> {
        let key = STANDARD.decode(&self.token_key).context("reading the key of tokens")?;
        Signer::new(&key)
    }

    /// TLS of a server under `server_names`, which asks for client certificates and does without.
    pub(super) fn server_config(
        &self,
        server_names: &[String],
    ) -> anyhow::Result<rustls::ServerConfig> {
        let ca_key = KeyPair::from_pem(&self.ca_key_pem).context("reading the authority's key")?;
        let issuer = Issuer::new(ca_params(), ca_key);
        let key = KeyPair::generate().context("making the server's key")?;
        let mut params = CertificateParams::new(server_names.to_vec())
            .context("names of the API server are no valid DNS names or addresses")?;
        params.distinguished_name = name("kube-apiserver", None);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let certificate =
            params.signed_by(&key, &issuer).context("making the server's certificate")?;

        let mut roots = rustls::RootCertStore::empty();
        let ca = CertificateDer::from_pem_slice(self.ca_pem.as_bytes())
            .context("reading the authority's certificate")?;
        roots.add(ca).context("trusting the authority")?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), provider.clone())
            .allow_unauthenticated()
            .build()
            .context("verifying clients")?;
        let key = PrivateKeyDer::from_pem_slice(key.serialize_pem().as_bytes())
            .context("reading the server's key")?;
        let mut config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .context("choosing TLS versions")?
            .with_client_cert_verifier(verifier)
            .with_single_cert(vec![certificate.der().clone()], key)
            .context("using the server's certificate")?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(config)
    }

    /// A kubeconfig for the administrator, whose cluster and context are called `name`.
    pub(super) fn kubeconfig(&self, server_url: &str, name: &str) -> String {
        let proof = certificate_proof(&self.admin_pem, &self.admin_key_pem);
        self.kubeconfig_with(server_url, name, ADMINISTRATOR, &proof)
    }

    /// A kubeconfig for `user`, who shows who they are by `proof`.
    pub(super) fn kubeconfig_with(
        &self,
        server_url: &str,
        name: &str,
        user: &str,
        proof: &str,
    ) -> String {
        let authority = STANDARD.encode(&self.ca_pem);
        format!(
            "apiVersion: v1\nkind: Config\nclusters:\n- name: {name}\n  cluster:\n    server: {server_url}\n    certificate-authority-data: {authority}\nusers:\n- name: {user}\n  user:\n{proof}contexts:\n- name: {name}\n  context:\n    cluster: {name}\n    user: {user}\n    namespace: default\ncurrent-context: {name}\n",
        )
    }
}

/// The lines of a kubeconfig that hold a client's certificate and key.
pub(super) fn certificate_proof(certificate_pem: &str, key_pem: &str) -> String {
    format!(
        "    client-certificate-data: {}\n    client-key-data: {}\n",
        STANDARD.encode(certificate_pem),
        STANDARD.encode(key_pem)
    )
}

fn client_of(
    issuer: &Issuer<'_, impl rcgen::SigningKey>,
    user: &str,
    group: Option<&str>,
) -> anyhow::Result<(String, String)> {
    let key = KeyPair::generate().with_context(|| format!("making the key of {user}"))?;
    let mut params = CertificateParams::default();
    params.distinguished_name = name(user, group);
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    let certificate = params
        .signed_by(&key, issuer)
        .with_context(|| format!("making the certificate of {user}"))?;
    Ok((certificate.pem(), key.serialize_pem()))
}

/// What is in the authority's certificate, beside its key and dates.
fn ca_params() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = name("cilium-lab-ca", None);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

fn name(common_name: &str, organisation: Option<&str>) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    if let Some(organisation) = organisation {
        name.push(DnType::OrganizationName, organisation);
    }
    name.push(DnType::CommonName, common_name);
    name
}
