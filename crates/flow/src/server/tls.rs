//! TLS from files, for servers and clients. Files that change are read again at the next connection,
//! so certificates are renewed without a restart.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};

/// The protocol of gRPC, for ALPN.
const ALPN_H2: &[u8] = b"h2";

/// Certificates cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("cannot read {} of {}", what, path.display())]
    Read {
        /// What should be in it.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: rustls::pki_types::pem::Error,
    },
    /// The files do not go together.
    #[error("the certificate {} cannot be used", path.display())]
    Invalid {
        /// The file of the certificate.
        path: PathBuf,
        /// Why.
        #[source]
        source: rustls::Error,
    },
    /// The certificate authorities cannot be used.
    #[error("the certificate authorities cannot be used: {0}")]
    Authorities(String),
}

/// A certificate and its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// PEM: the certificate, then those that lead to an authority.
    pub certificate: PathBuf,
    /// PEM: the key.
    pub key: PathBuf,
}

/// What a server shows, and whom it asks to show something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerFiles {
    /// Its own certificate.
    pub identity: Identity,
    /// Authorities of clients; where there are none, clients need no certificate.
    pub client_authorities: Vec<PathBuf>,
}

/// What a client believes, and shows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClientFiles {
    /// Authorities of servers.
    pub authorities: Vec<PathBuf>,
    /// Its own certificate.
    pub identity: Option<Identity>,
    /// Believe any server.
    pub allow_insecure: bool,
}

/// When each file was changed that was read, and what was made of them.
type Loaded<C> = (Vec<Option<SystemTime>>, Arc<C>);

/// A configuration that follows its files.
pub struct Reloading<F, C> {
    files: F,
    current: Mutex<Option<Loaded<C>>>,
}

impl<F: std::fmt::Debug, C> std::fmt::Debug for Reloading<F, C> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // What was read has keys in it.
        f.debug_tuple("Reloading").field(&self.files).finish()
    }
}

/// A kind of files that make a kind of configuration.
pub trait Files {
    /// What they make.
    type Config;
    /// Every file.
    fn paths(&self) -> Vec<&Path>;
    /// Reads them.
    fn load(&self) -> Result<Self::Config, TlsError>;
}

impl<F: Files<Config = C>, C> Reloading<F, C> {
    /// A configuration that was not read yet.
    pub fn new(files: F) -> Self {
        Self { files, current: Mutex::new(None) }
    }

    /// The configuration of now. Files that became unusable do not replace what was read before.
    pub fn get(&self) -> Result<Arc<C>, TlsError> {
        let modified = |path: &Path| std::fs::metadata(path).and_then(|meta| meta.modified()).ok();
        let stamps: Vec<_> = self.files.paths().into_iter().map(modified).collect();
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((of, config)) = &*current
            && *of == stamps
        {
            return Ok(config.clone());
        }
        match (self.files.load(), &*current) {
            (Ok(config), _) => {
                let config = Arc::new(config);
                *current = Some((stamps, config.clone()));
                Ok(config)
            }
            (Err(error), Some((_, before))) => {
                tracing::warn!(%error, "Cannot use the new certificates; going on with the old ones");
                Ok(before.clone())
            }
            (Err(error), None) => Err(error),
        }
    }
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let read = |source| TlsError::Read { what: "the certificates", path: path.to_owned(), source };
    CertificateDer::pem_file_iter(path).map_err(read)?.collect::<Result<_, _>>().map_err(read)
}

fn authorities(paths: &[PathBuf]) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for path in paths {
        for certificate in certificates(path)? {
            roots.add(certificate).map_err(|e| TlsError::Authorities(e.to_string()))?;
        }
    }
    Ok(roots)
}

impl Identity {
    fn load(&self) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), TlsError> {
        let key = PrivateKeyDer::from_pem_file(&self.key).map_err(|source| TlsError::Read {
            what: "the key",
            path: self.key.clone(),
            source,
        })?;
        Ok((certificates(&self.certificate)?, key))
    }

    fn invalid(&self, source: rustls::Error) -> TlsError {
        TlsError::Invalid { path: self.certificate.clone(), source }
    }
}

impl Files for ServerFiles {
    type Config = ServerConfig;

    fn paths(&self) -> Vec<&Path> {
        let own = [self.identity.certificate.as_path(), self.identity.key.as_path()];
        own.into_iter().chain(self.client_authorities.iter().map(PathBuf::as_path)).collect()
    }

    fn load(&self) -> Result<ServerConfig, TlsError> {
        let (chain, key) = self.identity.load()?;
        let builder = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(|source| self.identity.invalid(source))?;
        let builder = if self.client_authorities.is_empty() {
            builder.with_no_client_auth()
        } else {
            let roots = Arc::new(authorities(&self.client_authorities)?);
            let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider()).build();
            let verifier = verifier.map_err(|e| TlsError::Authorities(e.to_string()))?;
            builder.with_client_cert_verifier(verifier)
        };
        let config = builder.with_single_cert(chain, key);
        let mut config = config.map_err(|source| self.identity.invalid(source))?;
        config.alpn_protocols = vec![ALPN_H2.to_vec()];
        Ok(config)
    }
}

impl Files for ClientFiles {
    type Config = ClientConfig;

    fn paths(&self) -> Vec<&Path> {
        let own = self.identity.iter().flat_map(|own| [&own.certificate, &own.key]);
        own.chain(&self.authorities).map(PathBuf::as_path).collect()
    }

    fn load(&self) -> Result<ClientConfig, TlsError> {
        let builder = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(|e| TlsError::Authorities(e.to_string()))?;
        let builder = if self.allow_insecure {
            builder.dangerous().with_custom_certificate_verifier(Arc::new(AnyServer(provider())))
        } else {
            builder.with_root_certificates(authorities(&self.authorities)?)
        };
        let mut config = match &self.identity {
            Some(own) => {
                let (chain, key) = own.load()?;
                builder.with_client_auth_cert(chain, key).map_err(|source| own.invalid(source))?
            }
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = vec![ALPN_H2.to_vec()];
        Ok(config)
    }
}

/// Believes any server: what a person asked for by `--tls-allow-insecure`.
#[derive(Debug)]
struct AnyServer(Arc<rustls::crypto::CryptoProvider>);

impl rustls::client::danger::ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &rustls::pki_types::ServerName<'_>,
        _: &[u8],
        _: rustls::pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
