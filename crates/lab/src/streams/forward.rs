//! Port forwarding: connections from inside a pod to its own loopback address.
//!
//! Every forwarded connection has two streams, one for its data and one for what went wrong. In SPDY
//! the client opens both for each connection; in a plain WebSocket the query names the ports, and
//! streams `2n` and `2n + 1` belong to the `n`th.

use std::collections::HashMap;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsRawFd as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::Request;
use hyper::body::Incoming;
use kernel::netns::Netns;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::spdy::{self, Opened};
use super::upgrade::{self, Transport};
use super::{Ends, OUTPUT_LEN_MAX, PodView, Stream, Streams, query, websocket};
use crate::apiserver::{ApiError, Reply};

/// How long a connection inside of a pod may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Most ports that one WebSocket can carry: streams are numbered by a byte, and 255 is taken.
const PORTS_MAX: usize = 127;
/// Most connections that wait for the second of their two streams.
const HALVES_MAX: usize = 100;

const PROTOCOLS: &upgrade::Known = &[
    (Transport::Tunnel, "SPDY/3.1+portforward.k8s.io"),
    (Transport::WebSocket, "v5.channel.k8s.io"),
    (Transport::WebSocket, "v4.channel.k8s.io"),
    (Transport::Spdy, "portforward.k8s.io"),
];

/// Answers `pods/portforward`.
pub fn serve(
    streams: &Streams,
    pod: PodView,
    request: Request<Incoming>,
) -> Result<Reply, ApiError> {
    let ports = ports(request.uri().query().unwrap_or_default())?;
    let names = pod.containers().filter_map(|container| container["name"].as_str());
    let inside = names.filter_map(|name| streams.inside(&pod, name).ok()).next();
    let inside = inside.ok_or_else(|| {
        let phase = pod.text("/status/phase");
        ApiError::bad_request(format!("pod not found or not running: its phase is {phase}"))
    })?;
    let netns = format!("/proc/self/fd/{}", inside.netns().as_raw_fd());
    let netns =
        Netns::open(Path::new(&netns)).map_err(|error| ApiError::internal(error.to_string()))?;
    let target = Arc::new(Target {
        netns,
        pod: pod.text("/metadata/name").to_owned(),
        uid: pod.text("/metadata/uid").to_owned(),
    });
    let (reply, link) = upgrade::accept(request, PROTOCOLS)?;
    if link.transport == Transport::WebSocket && ports.is_empty() {
        return Err(ApiError::bad_request("query parameter \"ports\" is required"));
    }
    tokio::spawn(async move {
        let transport = link.transport;
        let connection = match link.connection().await {
            Ok(connection) => connection,
            Err(error) => return tracing::debug!(%error, "the connection was not upgraded"),
        };
        match transport {
            Transport::WebSocket => {
                let count = u8::try_from(ports.len() * 2).unwrap_or_default();
                let (streams, ends) = websocket::serve(connection, count).await;
                numbered(&target, &ports, streams, ends).await;
            }
            Transport::Spdy => {
                let (streams, ends) = spdy::serve(connection);
                paired(target, streams, ends).await;
            }
            Transport::Tunnel => {
                let (streams, ends) = spdy::serve(websocket::tunnel(connection));
                paired(target, streams, ends).await;
            }
        }
    });
    Ok(reply)
}

/// The ports of a query: `ports=80,443` or several of them.
fn ports(text: &str) -> Result<Vec<u16>, ApiError> {
    let mut ports = Vec::new();
    for (_, value) in query(text).iter().filter(|(name, _)| name == "ports") {
        for word in value.split(',') {
            let port = word.parse().ok().filter(|port| *port > 0);
            ports.push(port.ok_or_else(|| {
                ApiError::bad_request(format!("query parameter \"ports\": {word:?} is not a port"))
            })?);
        }
    }
    if ports.len() > PORTS_MAX {
        let count = ports.len();
        return Err(ApiError::bad_request(format!(
            "{count} ports, but at most {PORTS_MAX} are served"
        )));
    }
    Ok(ports)
}

/// One connection per port, for as long as the WebSocket lives.
async fn numbered(target: &Target, ports: &[u16], streams: Vec<Stream>, ends: Ends) {
    let mut streams = streams.into_iter();
    let mut forwards = Vec::new();
    for port in ports {
        let (Some(data), Some(error)) = (streams.next(), streams.next()) else { return };
        // So clients learn which port a stream belongs to.
        for stream in [&data, &error] {
            stream.outgoing.send(Bytes::copy_from_slice(&port.to_le_bytes())).await;
        }
        forwards.push(target.forward(*port, data, error));
    }
    futures::future::join_all(forwards).await;
    drop(ends);
}

/// Connections as the client opens them.
async fn paired(target: Arc<Target>, mut accepted: mpsc::Receiver<Opened>, ends: Ends) {
    let mut halves: HashMap<(String, String), Opened> = HashMap::new();
    let mut forwards = JoinSet::new();
    loop {
        let opened = tokio::select! {
            opened = accepted.recv() => opened,
            Some(_) = forwards.join_next() => continue,
        };
        let Some(opened) = opened else { break };
        let header = |name: &str| opened.headers.get(name).cloned().unwrap_or_default();
        // Old clients do not number their requests; they make one after the other.
        let key = (header("port"), header("requestid"));
        let Some(other) = halves.remove(&key) else {
            if halves.len() < HALVES_MAX {
                halves.insert(key, opened);
            }
            continue;
        };
        let (data, error) = match header("streamtype").as_str() {
            "data" => (opened.stream, other.stream),
            _ => (other.stream, opened.stream),
        };
        let target = target.clone();
        forwards.spawn(async move {
            match key.0.parse() {
                Ok(port) => target.forward(port, data, error).await,
                Err(_) => refuse(error, &format!("{:?} is not a port", key.0)).await,
            }
        });
    }
    drop(ends);
}

async fn refuse(error: Stream, why: &str) {
    error.outgoing.send(why.to_owned().into()).await;
    error.outgoing.finish().await;
}

/// The pod that is connected to.
struct Target {
    netns: Netns,
    pod: String,
    uid: String,
}

impl Target {
    /// Carries one connection to its end.
    async fn forward(&self, port: u16, data: Stream, error: Stream) {
        let Stream { incoming, outgoing, gone } = data;
        match self.connect(port).await {
            Ok(connection) => {
                let (mut reader, mut writer) = connection.into_split();
                let inward = async {
                    inward(incoming, &mut writer).await;
                    std::future::pending::<()>().await;
                };
                // The pod decides when it is over: the client waits for our end before its own.
                tokio::select! {
                    () = outward(&mut reader, &outgoing) => {}
                    () = inward => {}
                    () = gone.cancelled() => {}
                }
                outgoing.finish().await;
                error.outgoing.finish().await;
            }
            Err(why) => {
                let text = format!(
                    "error forwarding port {port} to pod {}, uid {}: failed to connect to localhost:{port} \
                     inside the pod's network namespace: {why}",
                    self.pod, self.uid
                );
                refuse(error, &text).await;
                outgoing.finish().await;
            }
        }
    }

    /// Connects to where a program in the pod would find `localhost`.
    async fn connect(&self, port: u16) -> io::Result<TcpStream> {
        let v4 = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let v6 = SocketAddr::from((Ipv6Addr::LOCALHOST, port));
        let path = format!("/proc/self/fd/{}", std::os::fd::AsFd::as_fd(&self.netns).as_raw_fd());
        let netns = Netns::open(Path::new(&path)).map_err(io::Error::other)?;
        let connecting = tokio::task::spawn_blocking(move || {
            netns.run(|| {
                let connect =
                    |address| std::net::TcpStream::connect_timeout(&address, CONNECT_TIMEOUT);
                connect(v4).or_else(|first| connect(v6).map_err(|_second| first))
            })
        });
        let stream = connecting.await?.map_err(io::Error::other)??;
        stream.set_nonblocking(true)?;
        stream.set_nodelay(true)?;
        TcpStream::from_std(stream)
    }
}

async fn inward(mut from: mpsc::Receiver<Bytes>, to: &mut tokio::net::tcp::OwnedWriteHalf) {
    while let Some(data) = from.recv().await {
        if to.write_all(&data).await.is_err() {
            return;
        }
    }
    let _ = to.shutdown().await;
}

async fn outward(from: &mut tokio::net::tcp::OwnedReadHalf, to: &super::Outgoing) {
    let mut buffer = BytesMut::with_capacity(OUTPUT_LEN_MAX);
    loop {
        buffer.reserve(OUTPUT_LEN_MAX);
        let read = from.read_buf(&mut buffer).await.unwrap_or_default();
        if read == 0 || !to.send(buffer.split().freeze()).await {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_checked() {
        assert_eq!(ports("").unwrap(), [0_u16; 0]);
        assert_eq!(ports("ports=80,443&ports=1").unwrap(), [80, 443, 1]);
        for bad in ["ports=0", "ports=65536", "ports=http", "ports="] {
            assert!(ports(bad).is_err(), "{bad}");
        }
        let many = vec!["1"; 128].join(",");
        assert!(ports(&format!("ports={many}")).unwrap_err().to_string().contains("at most 127"));
    }
}
