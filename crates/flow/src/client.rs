//! Connections to servers of Hubble: of agents, and of relays.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint, Uri};

use crate::server::tls::{ClientFiles, Reloading};

/// The server is asked so often whether it lives, and left when it does not answer in as long.
const KEEPALIVE: Duration = Duration::from_secs(20);

/// A server.
#[derive(Clone, Debug)]
pub enum Target {
    /// Behind a Unix socket.
    Unix(PathBuf),
    /// At `host:port`.
    Tcp(String),
    /// At `host:port`, by TLS.
    Tls {
        /// As in `10.0.0.1:4244`.
        address: String,
        /// The name that its certificate must have.
        server_name: String,
        /// What we believe and show.
        files: Arc<Reloading<ClientFiles, ClientConfig>>,
    },
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
            Self::Tcp(address) => f.write_str(address),
            Self::Tls { address, .. } => write!(f, "tls://{address}"),
        }
    }
}

/// The text names no server.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no server; write host:port, tls://host:port or unix:///path")]
pub struct TargetError(pub String);

/// TLS as a client may want it.
#[derive(Clone, Debug, Default)]
pub struct TlsOptions {
    /// Use it, whatever the server's text says.
    pub enabled: bool,
    /// The name that the certificate must have; empty is the host.
    pub server_name: String,
    /// What we believe and show.
    pub files: ClientFiles,
}

impl Target {
    /// Reads `host:port`, `tls://host:port` or `unix:///path`.
    pub fn parse(text: &str, tls: &TlsOptions) -> Result<Self, TargetError> {
        let error = || TargetError(text.to_owned());
        if let Some(path) = text.strip_prefix("unix:") {
            let path = path.strip_prefix("//").unwrap_or(path);
            return if path.is_empty() { Err(error()) } else { Ok(Self::Unix(path.into())) };
        }
        let (secure, address) = match text.strip_prefix("tls://") {
            Some(rest) => (true, rest),
            None => (tls.enabled, text),
        };
        let (host, port) = address.rsplit_once(':').ok_or_else(error)?;
        let host = host.trim_start_matches('[').trim_end_matches(']');
        if host.is_empty() || port.parse::<u16>().is_err() {
            return Err(error());
        }
        if !secure {
            return Ok(Self::Tcp(address.to_owned()));
        }
        let server_name = if tls.server_name.is_empty() { host } else { &tls.server_name };
        Ok(Self::Tls {
            address: address.to_owned(),
            server_name: server_name.to_owned(),
            files: Arc::new(Reloading::new(tls.files.clone())),
        })
    }

    fn endpoint(timeout: Duration) -> Endpoint {
        // The connector knows the address; this names the authority of requests only.
        Endpoint::from_static("http://hubble")
            .connect_timeout(timeout)
            .http2_keep_alive_interval(KEEPALIVE)
            .keep_alive_timeout(KEEPALIVE)
            .keep_alive_while_idle(true)
    }

    /// Connects, waiting so long at most.
    pub async fn connect(&self, timeout: Duration) -> Result<Channel, tonic::transport::Error> {
        let target = self.clone();
        let connector = tower::service_fn(move |_: Uri| target.clone().open());
        Self::endpoint(timeout).connect_with_connector(connector).await
    }

    async fn open(self) -> io::Result<TokioIo<Io>> {
        Ok(TokioIo::new(match self {
            Self::Unix(path) => Box::new(UnixStream::connect(path).await?) as Io,
            Self::Tcp(address) => Box::new(tcp(&address).await?),
            Self::Tls { address, server_name, files } => {
                let config = files.get().map_err(io::Error::other)?;
                let name = ServerName::try_from(server_name).map_err(io::Error::other)?;
                let stream = tcp(&address).await?;
                Box::new(TlsConnector::from(config).connect(name, stream).await?)
            }
        }))
    }
}

async fn tcp(address: &str) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// A connection of any kind.
type Io = Box<dyn Stream>;

trait Stream: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin {}
impl<T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin> Stream for T {}

/// An error of a connection with what caused it, in one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_are_read() {
        let describe = |text: &str, enabled: bool| {
            let tls = TlsOptions { enabled, ..TlsOptions::default() };
            Target::parse(text, &tls).map(|target| match target {
                Target::Unix(path) => format!("unix {}", path.display()),
                Target::Tcp(address) => format!("tcp {address}"),
                Target::Tls { address, server_name, .. } => format!("tls {address} {server_name}"),
            })
        };
        assert_eq!(describe("localhost:4245", false).unwrap(), "tcp localhost:4245");
        assert_eq!(describe("localhost:4245", true).unwrap(), "tls localhost:4245 localhost");
        assert_eq!(describe("tls://[fd00::1]:4244", false).unwrap(), "tls [fd00::1]:4244 fd00::1");
        assert_eq!(describe("unix:///run/h.sock", true).unwrap(), "unix /run/h.sock");
        for bad in ["", "localhost", ":4245", "localhost:http", "unix://", "tls://x"] {
            assert!(describe(bad, false).is_err(), "{bad}");
        }
    }
}
