//! The wire: datagrams and streams in, answers out.
//!
//! What the zone knows is answered at once, where the question arrives; what others have to be asked
//! for becomes a task. One thread does it all.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hickory_proto::op::{Query, ResponseCode};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::task::yield_now;
use tokio::time::timeout;
use tracing::debug;

use super::message::{Flags, Refusal, Request, Transport};
use super::upstream::Upstream;
use super::zone::{Answer, Outcome, Zone, resolve};

/// Most questions that wait for others; more are told to try again.
const WAITING_MAX: usize = 1000;
/// Most streams at a time; more have to wait for one to end.
const STREAMS_MAX: usize = 250;
/// How long a stream may be idle.
const STREAM_IDLE: Duration = Duration::from_secs(10);
/// How many datagrams are answered before others get a turn.
const BATCH: usize = 64;
/// The length of the longest datagram: a question is never longer.
const DATAGRAM_MAX: usize = 4096;

/// A server for a zone.
#[derive(Debug)]
pub struct Server<Z> {
    zone: Mutex<Z>,
    upstream: Option<Upstream>,
    waiting: Semaphore,
    turn: AtomicUsize,
}

/// How far a question can be answered at once.
enum Step {
    Nothing,
    Reply(Vec<u8>),
    Ask(Box<Pending>),
}

/// A question for others, and what is known already.
struct Pending {
    request: Request,
    known: Answer,
    query: Query,
}

impl<Z: Zone + Send + 'static> Server<Z> {
    /// A server that knows `zone`, and asks `upstream` for the rest.
    pub fn new(zone: Z, upstream: Option<Upstream>) -> Self {
        let waiting = Semaphore::new(WAITING_MAX);
        Self { zone: Mutex::new(zone), upstream, waiting, turn: AtomicUsize::new(0) }
    }

    /// The zone, to look at or to change for a moment.
    pub fn zone(&self) -> MutexGuard<'_, Z> {
        // A panic in between would be a fault of this program; the objects are still whole.
        self.zone.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn flags(&self, authoritative: bool) -> Flags {
        Flags { authoritative, recursion_available: self.upstream.is_some() }
    }

    fn begin(&self, bytes: &[u8], transport: Transport) -> Step {
        let request = match Request::parse(bytes, transport) {
            Ok(request) => request,
            Err(Refusal::Ignore) => return Step::Nothing,
            Err(Refusal::Reply(bytes)) => return Step::Reply(bytes),
        };
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let query = &request.query;
        let outcome = resolve(&*self.zone(), &query.name, query.query_type, turn);
        let (known, query) = match outcome {
            Outcome::Done(answer) => return Step::Reply(request.respond(answer, self.flags(true))),
            Outcome::Continues(answer, name) => (answer, Query::query(name, query.query_type)),
            Outcome::Outside => (Answer::default(), query.clone()),
        };
        let upstream = self.upstream.as_ref().filter(|_| request.recursion_desired());
        let Some(upstream) = upstream else {
            // An alias is an answer; the rest is for the asker to find out.
            return Step::Reply(match known.answers.is_empty() {
                true => request.refuse(ResponseCode::Refused),
                false => request.respond(known, self.flags(true)),
            });
        };
        match upstream.recall(&query, request.dnssec()) {
            Some(found) => Step::Reply(request.respond(join(known, found), self.flags(false))),
            None => Step::Ask(Box::new(Pending { request, known, query })),
        }
    }

    async fn finish(&self, pending: Box<Pending>) -> Vec<u8> {
        let Pending { request, known, query } = *pending;
        let (Some(upstream), Ok(_permit)) = (&self.upstream, self.waiting.try_acquire()) else {
            return request.refuse(ResponseCode::ServFail);
        };
        match upstream.ask(&query, request.dnssec()).await {
            Ok(found) => request.respond(join(known, found), self.flags(false)),
            Err(error) => {
                debug!("{} {}: {error}", query.name, query.query_type);
                request.refuse(ResponseCode::ServFail)
            }
        }
    }

    /// Answers datagrams for ever.
    pub async fn serve_udp(self: Arc<Self>, socket: UdpSocket) -> io::Result<()> {
        let socket = Arc::new(socket);
        let mut buffer = [0_u8; DATAGRAM_MAX];
        loop {
            socket.readable().await?;
            for _ in 0..BATCH {
                let (length, peer) = match socket.try_recv_from(&mut buffer) {
                    Ok(received) => received,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    // An ICMP error for an earlier answer.
                    Err(_) => continue,
                };
                match self.begin(&buffer[..length], Transport::Udp) {
                    Step::Nothing => {}
                    // A full buffer loses a datagram, as networks do; askers ask again.
                    Step::Reply(bytes) => drop(socket.try_send_to(&bytes, peer)),
                    Step::Ask(pending) => {
                        let (server, socket) = (self.clone(), socket.clone());
                        tokio::spawn(async move {
                            let bytes = server.finish(pending).await;
                            let _ = socket.send_to(&bytes, peer).await;
                        });
                    }
                }
            }
            yield_now().await;
        }
    }

    /// Answers streams for ever.
    pub async fn serve_tcp(self: Arc<Self>, listener: TcpListener) -> io::Result<()> {
        let streams = Arc::new(Semaphore::new(STREAMS_MAX));
        loop {
            let Ok(permit) = streams.clone().acquire_owned().await else { return Ok(()) };
            let Ok((stream, _)) = listener.accept().await else {
                // Out of descriptors, most likely: some will be free when a stream has been idle.
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            };
            let server = self.clone();
            tokio::spawn(async move {
                let _ = server.serve_stream(stream).await;
                drop(permit);
            });
        }
    }

    async fn serve_stream(&self, mut stream: TcpStream) -> io::Result<()> {
        stream.set_nodelay(true)?;
        loop {
            let mut bytes = Vec::new();
            let reading = async {
                bytes.resize(stream.read_u16().await?.into(), 0);
                stream.read_exact(&mut bytes).await
            };
            timeout(STREAM_IDLE, reading).await??;
            let reply = match self.begin(&bytes, Transport::Tcp) {
                Step::Nothing => return Ok(()),
                Step::Reply(bytes) => bytes,
                Step::Ask(pending) => self.finish(pending).await,
            };
            let length = u16::try_from(reply.len()).map_err(io::Error::other)?;
            let framed = [&length.to_be_bytes(), reply.as_slice()].concat();
            timeout(STREAM_IDLE, stream.write_all(&framed)).await??;
        }
    }
}

/// An alias and what others say about its target.
fn join(known: Answer, found: Answer) -> Answer {
    let answers = known.answers.into_iter().chain(found.answers).collect();
    Answer { answers, ..found }
}

/// Sockets of both kinds at one address.
pub async fn bind(address: SocketAddr) -> io::Result<(UdpSocket, TcpListener)> {
    let udp = UdpSocket::bind(address).await?;
    // With port 0 both kinds get the same one, whichever it is.
    let tcp = TcpListener::bind(udp.local_addr()?).await?;
    Ok((udp, tcp))
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use hickory_proto::op::{Edns, Message};
    use hickory_proto::rr::{Name, RecordType};

    use super::super::cluster::{Cluster, PodNames, Service, ServiceKind};
    use super::super::fixed::test_zone;
    use super::*;

    async fn start<Z: Zone + Send + 'static>(
        zone: Z,
        upstream: Option<Upstream>,
    ) -> (Arc<Server<Z>>, SocketAddr) {
        let (udp, tcp) = bind(([127, 0, 0, 1], 0).into()).await.unwrap();
        let address = udp.local_addr().unwrap();
        let server = Arc::new(Server::new(zone, upstream));
        tokio::spawn(server.clone().serve_udp(udp));
        tokio::spawn(server.clone().serve_tcp(tcp));
        (server, address)
    }

    /// The world outside and a cluster that asks it.
    async fn world() -> (Arc<Server<Cluster>>, SocketAddr) {
        let hosts = ["203.0.113.10", "2001:db8:ff::10"].map(|ip| ip.parse::<IpAddr>().unwrap());
        let (_, outside) = start(test_zone(&name("external.test."), &hosts), None).await;
        let mut cluster = Cluster::new(name("cluster.local."), 5, PodNames::Insecure);
        for (service, target) in [("www", "chain.external.test."), ("gone", "gone.external.test.")]
        {
            let kind = ServiceKind::External(name(target));
            let service_found = Service { kind, ports: Vec::new(), publish_not_ready: false };
            cluster.set_service("default", service, Some(service_found));
        }
        // The first does not answer: nothing listens on the discard port.
        let servers = vec![([127, 0, 0, 1], 9).into(), outside];
        start(cluster, Some(Upstream::new(servers, Duration::from_secs(30)))).await
    }

    fn name(text: &str) -> Name {
        Name::from_ascii(text).unwrap()
    }

    fn question(text: &str, kind: RecordType) -> Message {
        let mut message = Message::query();
        message.metadata.recursion_desired = true;
        message.queries = vec![Query::query(name(text), kind)];
        message.edns = Some(Edns::new());
        message
    }

    async fn ask(server: SocketAddr, text: &str, kind: RecordType) -> Message {
        let asked = question(text, kind);
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        socket.send_to(&asked.to_vec().unwrap(), server).await.unwrap();
        let mut buffer = [0; 4096];
        let length =
            timeout(Duration::from_secs(20), socket.recv(&mut buffer)).await.unwrap().unwrap();
        let reply = Message::from_vec(&buffer[..length]).unwrap();
        assert_eq!((reply.metadata.id, &reply.queries), (asked.metadata.id, &asked.queries));
        reply
    }

    #[tokio::test]
    async fn others_are_asked_for_the_rest() {
        let (_, server) = world().await;
        for text in ["www.external.test.", "www.default.svc.cluster.local."] {
            for kind in [RecordType::A, RecordType::AAAA] {
                let reply = ask(server, text, kind).await;
                assert_eq!(reply.metadata.response_code, ResponseCode::NoError);
                assert_eq!(
                    reply.answers.last().map(|record| record.record_type()),
                    Some(kind),
                    "{text}"
                );
                assert!(reply.metadata.recursion_available && !reply.metadata.authoritative);
            }
        }
        let chain = ask(server, "www.default.svc.cluster.local.", RecordType::A).await;
        assert_eq!(chain.answers.len(), 4, "three aliases and an address");
        for text in ["gone.external.test.", "gone.default.svc.cluster.local."] {
            let reply = ask(server, text, RecordType::A).await;
            assert_eq!(reply.metadata.response_code, ResponseCode::NXDomain);
            assert_eq!(reply.authorities.len(), 1, "says how long it is gone");
        }
        let ours = ask(server, "nothing.default.svc.cluster.local.", RecordType::A).await;
        assert_eq!(ours.metadata.response_code, ResponseCode::NXDomain);
        assert!(ours.metadata.authoritative);
        // The outside world refuses what is not its own; so do we, as a failure.
        let elsewhere = ask(server, "www.elsewhere.invalid.", RecordType::A).await;
        assert_eq!(elsewhere.metadata.response_code, ResponseCode::ServFail);
    }

    #[tokio::test]
    async fn what_is_too_long_for_a_datagram_comes_by_stream() {
        let (_, server) = world().await;
        let mut stream = TcpStream::connect(server).await.unwrap();
        for (text, kind, count) in [
            ("long.external.test.", RecordType::TXT, 1),
            ("many.external.test.", RecordType::A, 120),
        ] {
            let reply = ask(server, text, kind).await;
            assert!(reply.metadata.truncation && reply.answers.len() < count, "{text}");
            // Several questions over one stream.
            for _ in 0..2 {
                let bytes = question(text, kind).to_vec().unwrap();
                let length = u16::try_from(bytes.len()).unwrap().to_be_bytes();
                stream.write_all(&[&length, bytes.as_slice()].concat()).await.unwrap();
                let mut reply = vec![0; stream.read_u16().await.unwrap().into()];
                stream.read_exact(&mut reply).await.unwrap();
                let reply = Message::from_vec(&reply).unwrap();
                assert_eq!(
                    (reply.answers.len(), reply.metadata.truncation),
                    (count, false),
                    "{text}"
                );
            }
        }
    }

    #[tokio::test]
    async fn without_others_what_is_not_ours_is_refused() {
        let cluster = Cluster::new(name("cluster.local."), 5, PodNames::Insecure);
        let (server, address) = start(cluster, None).await;
        let reply = ask(address, "www.example.com.", RecordType::A).await;
        assert_eq!(reply.metadata.response_code, ResponseCode::Refused);
        assert!(!reply.metadata.recursion_available);
        // A name appears as soon as its object does.
        let text = "late.default.svc.cluster.local.";
        assert_eq!(
            ask(address, text, RecordType::A).await.metadata.response_code,
            ResponseCode::NXDomain
        );
        let kind = ServiceKind::ClusterIp(vec!["10.96.0.10".parse().unwrap()]);
        let service = Service { kind, ports: Vec::new(), publish_not_ready: false };
        server.zone().set_service("default", "late", Some(service));
        assert_eq!(ask(address, text, RecordType::A).await.answers.len(), 1);
    }

    #[tokio::test]
    async fn a_server_that_is_asked_nonsense_goes_on() {
        let (_, server) = world().await;
        let mut stream = TcpStream::connect(server).await.unwrap();
        stream.write_all(&[0, 3, 1, 2, 3]).await.unwrap();
        assert_eq!(stream.read_u8().await.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        for nonsense in [&b""[..], b"x", &[0xff; 600]] {
            socket.send_to(nonsense, server).await.unwrap();
        }
        let reply = ask(server, "www.external.test.", RecordType::A).await;
        assert_eq!(reply.answers.len(), 1);
    }
}
