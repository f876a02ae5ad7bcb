//! Sockets that services are served on: Unix, TCP, and TCP with TLS.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::service::Routes;
use tonic::transport::Server;
use tonic::transport::server::Connected;

use super::tls::{Reloading, ServerFiles};

/// Connections at most on one socket; more wait.
const CONNECTIONS_MAX: usize = 512;
/// Calls at most on one connection; more wait.
const CALLS_PER_CONNECTION_MAX: usize = 128;
/// How long a client may take to shake hands.
const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(10);
/// A connection is asked so often whether it lives, and closed when it does not answer in as long.
const KEEPALIVE: Duration = Duration::from_secs(30);

/// A socket to serve on.
#[derive(Debug)]
pub enum Listener {
    /// A Unix socket.
    Unix(UnixListener),
    /// A TCP socket.
    Tcp(TcpListener),
    /// A TCP socket for TLS.
    Tls(TcpListener, Arc<Reloading<ServerFiles, ServerConfig>>),
}

/// Serves `routes` until `stop` is ready. Connections end with it, also when it is dropped.
pub async fn serve(
    listener: Listener,
    routes: Routes,
    stop: impl Future<Output = ()> + Send,
) -> Result<(), tonic::transport::Error> {
    let end = CancellationToken::new();
    // Each connection is a task of its own to tonic.
    let _end = end.clone().drop_guard();
    let (sender, receiver) = mpsc::channel::<io::Result<Connection>>(1);
    let incoming = futures::stream::unfold(receiver, |mut receiver| async {
        Some((receiver.recv().await?, receiver))
    });
    let server = Server::builder()
        .concurrency_limit_per_connection(CALLS_PER_CONNECTION_MAX)
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE))
        .add_routes(routes)
        .serve_with_incoming(incoming);
    // Calls that follow never end by themselves, so connections are not waited for.
    tokio::select! {
        result = server => result,
        () = accept(listener, sender, &end) => Ok(()),
        () = stop => Ok(()),
    }
}

/// Hands connections over for as long as somebody takes them.
async fn accept(
    listener: Listener,
    sender: mpsc::Sender<io::Result<Connection>>,
    end: &CancellationToken,
) {
    let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(slot) = slots.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok(Accepted::Ready(io)) => {
                if sender.send(Ok(Connection::new(io, slot, end))).await.is_err() {
                    return;
                }
            }
            Ok(Accepted::ShakeHands(stream, config)) => {
                let (sender, end) = (sender.clone(), end.clone());
                // One that dawdles must not hold up the others.
                tokio::spawn(async move {
                    let handshake = TlsAcceptor::from(config).accept(stream);
                    match tokio::time::timeout(HANDSHAKE_DEADLINE, handshake).await {
                        Ok(Ok(stream)) => {
                            let io = Io::Tls(Box::new(stream));
                            // Nobody takes it once the server ends.
                            let _ = sender.send(Ok(Connection::new(io, slot, &end))).await;
                        }
                        Ok(Err(error)) => tracing::debug!(%error, "A client of Hubble was refused"),
                        Err(_) => tracing::debug!("A client of Hubble did not shake hands in time"),
                    }
                });
            }
            Err(error) => {
                tracing::warn!(%error, "Cannot accept a client of Hubble");
                // Too many open files, most likely: another attempt at once would fail as well.
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

enum Accepted {
    Ready(Io),
    ShakeHands(TcpStream, Arc<ServerConfig>),
}

impl Listener {
    async fn accept(&self) -> io::Result<Accepted> {
        match self {
            Self::Unix(listener) => Ok(Accepted::Ready(Io::Unix(listener.accept().await?.0))),
            Self::Tcp(listener) => {
                let (stream, _) = listener.accept().await?;
                stream.set_nodelay(true)?;
                Ok(Accepted::Ready(Io::Tcp(stream)))
            }
            Self::Tls(listener, tls) => {
                let (stream, _) = listener.accept().await?;
                stream.set_nodelay(true)?;
                let config = tls.get().map_err(io::Error::other)?;
                Ok(Accepted::ShakeHands(stream, config))
            }
        }
    }
}

/// A client's connection, and its slot among all of them.
struct Connection {
    io: Io,
    end: Pin<Box<WaitForCancellationFutureOwned>>,
    _slot: OwnedSemaphorePermit,
}

impl Connection {
    fn new(io: Io, slot: OwnedSemaphorePermit, end: &CancellationToken) -> Self {
        Self { io, end: Box::pin(end.clone().cancelled_owned()), _slot: slot }
    }
}

enum Io {
    Unix(UnixStream),
    Tcp(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Connected for Connection {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

macro_rules! forward {
    ($self:ident, $io:ident => $call:expr) => {
        match &mut $self.get_mut().io {
            Io::Unix(stream) => {
                let $io = Pin::new(stream);
                $call
            }
            Io::Tcp(stream) => {
                let $io = Pin::new(stream);
                $call
            }
            Io::Tls(stream) => {
                let $io = Pin::new(stream.as_mut());
                $call
            }
        }
    };
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.end.as_mut().poll(cx).is_ready() {
            // As if the client had closed it.
            return Poll::Ready(Ok(()));
        }
        forward!(self, io => io.poll_read(cx, buf))
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        forward!(self, io => io.poll_write(cx, buf))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        forward!(self, io => io.poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        forward!(self, io => io.poll_shutdown(cx))
    }
}
