//! The cluster's certificate authority, and who may speak to the API server.

use std::sync::Arc;

use anyhow::Context as _;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose,
};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use serde::{Deserialize, Serialize};

/// Certificates of one cluster. Kept with its state, so that a kubeconfig stays valid.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct Credentials {
    pub ca_pem: String,
    ca_key_pem: String,
    pub admin_pem: String,
    pub admin_key_pem: String,
    /// Bearer token of the administrator, for clients without certificates.
    pub admin_token: String,
}

impl Credentials {
    pub(super) fn generate() -> anyhow::Result<Self> {
        let ca_key = KeyPair::generate().context("making the authority's key")?;
        let params = ca_params();
        let ca = params.self_signed(&ca_key).context("making the authority's certificate")?;
        let issuer = Issuer::new(params, &ca_key);

        let admin_key = KeyPair::generate().context("making the administrator's key")?;
        let mut params = CertificateParams::default();
        params.distinguished_name = name("kubernetes-admin", Some("system:masters"));
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let admin = params
            .signed_by(&admin_key, &issuer)
            .context("making the administrator's certificate")?;
        let token = super::object::random::<24>();
        Ok(Self {
            ca_pem: ca.pem(),
            ca_key_pem: ca_key.serialize_pem(),
            admin_pem: admin.pem(),
            admin_key_pem: admin_key.serialize_pem(),
            admin_token: token.iter().map(|byte| format!("{byte:02x}")).collect(),
        })
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
        use base64::Engine as _;
        let base64 = |text: &str| base64::engine::general_purpose::STANDARD.encode(text);
        format!(
            "apiVersion: v1\nkind: Config\nclusters:\n- name: {name}\n  cluster:\n    server: {server_url}\n    certificate-authority-data: {}\nusers:\n- name: kubernetes-admin\n  user:\n    client-certificate-data: {}\n    client-key-data: {}\ncontexts:\n- name: {name}\n  context:\n    cluster: {name}\n    user: kubernetes-admin\n    namespace: default\ncurrent-context: {name}\n",
            base64(&self.ca_pem),
            base64(&self.admin_pem),
            base64(&self.admin_key_pem),
        )
    }
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
