//! Asking others: what is neither the cluster's nor remembered.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use hickory_proto::op::{Edns, Message, Query, ResponseCode};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

use super::message::UDP_PAYLOAD_MAX;
use super::zone::Answer;

/// How long one server may take; an asker's patience is about 5 s.
const PATIENCE: Duration = Duration::from_secs(2);
/// How often every server is asked before the asker is told that it failed.
const ROUNDS: usize = 2;
/// Most answers that are remembered.
const ENTRIES_MAX: usize = 10_000;

/// Servers that know the rest of the world.
#[derive(Debug)]
pub struct Upstream {
    servers: Vec<SocketAddr>,
    cache: Mutex<Cache>,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// No answer came in time.
    #[error("{0} does not answer")]
    Timeout(SocketAddr),
    /// The network said no.
    #[error("ask {0}: {1}")]
    Network(SocketAddr, #[source] io::Error),
    /// The question cannot be written.
    #[error("write the question: {0}")]
    Question(#[from] hickory_proto::ProtoError),
    /// The server sent something else.
    #[error("{0} answers another question")]
    Other(SocketAddr),
    /// There is nobody to ask.
    #[error("no servers")]
    Nobody,
    /// The server cannot or does not want to.
    #[error("{0} says {1}")]
    Refused(SocketAddr, ResponseCode),
}

impl Upstream {
    /// Asks `servers` in this order; remembers answers for `keep` at most.
    pub fn new(servers: Vec<SocketAddr>, keep: Duration) -> Self {
        Self { servers, cache: Mutex::new(Cache::new(keep)) }
    }

    /// What is remembered.
    pub fn recall(&self, query: &Query, dnssec: [bool; 2]) -> Option<Answer> {
        let key = (query.name.clone(), query.query_type, dnssec);
        self.cache().recall(&key, Instant::now())
    }

    /// Asks one server after the other until one has an answer.
    pub async fn ask(&self, query: &Query, dnssec: [bool; 2]) -> Result<Answer, AskError> {
        let mut last = None;
        for server in self.servers.iter().cycle().take(self.servers.len() * ROUNDS) {
            match ask_server(*server, query, dnssec).await {
                Ok(answer) => {
                    let key = (query.name.clone(), query.query_type, dnssec);
                    self.cache().remember(key, &answer, Instant::now());
                    return Ok(answer);
                }
                Err(error) => last = Some(error),
            }
        }
        Err(last.unwrap_or(AskError::Nobody))
    }

    fn cache(&self) -> std::sync::MutexGuard<'_, Cache> {
        // Its operations leave nothing half done.
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn ask_server(
    server: SocketAddr,
    query: &Query,
    dnssec: [bool; 2],
) -> Result<Answer, AskError> {
    // With a random id, and from a port that nobody can guess.
    let mut message = Message::query();
    let [dnssec_ok, checking_disabled] = dnssec;
    message.metadata.recursion_desired = true;
    message.metadata.checking_disabled = checking_disabled;
    message.queries = vec![query.clone()];
    let mut edns = Edns::new();
    edns.set_max_payload(UDP_PAYLOAD_MAX).set_dnssec_ok(dnssec_ok);
    message.edns = Some(edns);
    let bytes = message.to_vec()?;

    let network = |error| AskError::Network(server, error);
    let late = |_| AskError::Timeout(server);
    let mut reply = timeout(PATIENCE, over_udp(server, &message, &bytes))
        .await
        .map_err(late)?
        .map_err(network)?;
    if reply.metadata.truncation {
        reply =
            timeout(PATIENCE, over_tcp(server, &bytes)).await.map_err(late)?.map_err(network)?;
        if !belongs(&reply, &message) {
            return Err(AskError::Other(server));
        }
    }
    let code = reply.metadata.response_code;
    if !matches!(code, ResponseCode::NoError | ResponseCode::NXDomain) {
        return Err(AskError::Refused(server, code));
    }
    let Message { answers, authorities, additionals, .. } = reply;
    Ok(Answer { code, answers, authorities, additionals })
}

async fn over_udp(server: SocketAddr, asked: &Message, bytes: &[u8]) -> io::Result<Message> {
    let any = if server.is_ipv4() { IpAddr::from([0_u8; 4]) } else { IpAddr::from([0_u8; 16]) };
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(server).await?;
    socket.send(bytes).await?;
    let mut buffer = [0_u8; 4096];
    loop {
        let length = socket.recv(&mut buffer).await?;
        // Whatever else arrives is somebody's guess: the answer may still come.
        match Message::from_vec(&buffer[..length]) {
            Ok(reply) if belongs(&reply, asked) => return Ok(reply),
            _ => {}
        }
    }
}

async fn over_tcp(server: SocketAddr, bytes: &[u8]) -> io::Result<Message> {
    let mut stream = TcpStream::connect(server).await?;
    let length = u16::try_from(bytes.len()).map_err(io::Error::other)?;
    stream.write_all(&[&length.to_be_bytes(), bytes].concat()).await?;
    let mut reply = vec![0; stream.read_u16().await?.into()];
    stream.read_exact(&mut reply).await?;
    Message::from_vec(&reply).map_err(io::Error::other)
}

fn belongs(reply: &Message, asked: &Message) -> bool {
    let to_query = reply.metadata.message_type == hickory_proto::op::MessageType::Response;
    to_query && reply.metadata.id == asked.metadata.id && reply.queries == asked.queries
}

// ---------------------------------------------------------------------------------------------
// Remembering

type Key = (Name, RecordType, [bool; 2]);

/// Answers for as long as they may be kept, the oldest making room for new ones.
#[derive(Debug)]
struct Cache {
    keep: Duration,
    entries: HashMap<Key, Entry>,
    /// Keys in the order of remembering.
    order: VecDeque<(Key, Instant)>,
}

#[derive(Debug)]
struct Entry {
    answer: Answer,
    since: Instant,
    until: Instant,
}

impl Cache {
    fn new(keep: Duration) -> Self {
        Self { keep, entries: HashMap::new(), order: VecDeque::new() }
    }

    fn recall(&self, key: &Key, now: Instant) -> Option<Answer> {
        let entry = self.entries.get(key).filter(|entry| now < entry.until)?;
        let age = u32::try_from((now - entry.since).as_secs()).unwrap_or(u32::MAX);
        let mut answer = entry.answer.clone();
        for section in [&mut answer.answers, &mut answer.authorities, &mut answer.additionals] {
            section.iter_mut().for_each(|record| record.ttl = record.ttl.saturating_sub(age));
        }
        Some(answer)
    }

    fn remember(&mut self, key: Key, answer: &Answer, now: Instant) {
        let keep = self.keep.min(Duration::from_secs(time_to_live(answer).into()));
        if keep.is_zero() {
            return;
        }
        let entry = Entry { answer: answer.clone(), since: now, until: now + keep };
        self.entries.insert(key.clone(), entry);
        self.order.push_back((key, now));
        while self.order.len() > ENTRIES_MAX {
            let Some((oldest, since)) = self.order.pop_front() else { return };
            // It may have been remembered again since.
            if self.entries.get(&oldest).is_some_and(|entry| entry.since == since) {
                self.entries.remove(&oldest);
            }
        }
    }
}

/// How many seconds an answer may be kept (RFC 2308 for absence).
fn time_to_live(answer: &Answer) -> u32 {
    let absence = answer.authorities.iter().filter_map(|record| match &record.data {
        RData::SOA(soa) => Some(record.ttl.min(soa.minimum)),
        _ => None,
    });
    let presence = answer.answers.iter().map(|record: &Record| record.ttl);
    let negative = answer.answers.is_empty() || answer.code == ResponseCode::NXDomain;
    match negative {
        true => absence.chain(presence).min().unwrap_or(0),
        false => presence.min().unwrap_or(0),
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use hickory_proto::rr::rdata::SOA;

    use super::*;

    fn key(label: &str) -> Key {
        (Name::from_ascii(format!("{label}.test.")).unwrap(), RecordType::A, [false; 2])
    }

    fn address(ttl: u32) -> Answer {
        let record = Record::from_rdata(key("a").0, ttl, RData::from(Ipv4Addr::LOCALHOST));
        Answer { answers: vec![record], ..Answer::default() }
    }

    fn absence(ttl: u32, minimum: u32) -> Answer {
        let origin = Name::from_ascii("test.").unwrap();
        let soa = SOA::new(origin.clone(), origin.clone(), 1, 1, 1, 1, minimum);
        let record = Record::from_rdata(origin, ttl, RData::SOA(soa));
        Answer { code: ResponseCode::NXDomain, authorities: vec![record], ..Answer::default() }
    }

    #[test]
    fn answers_grow_old() {
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        let mut cache = Cache::new(Duration::from_secs(30));
        cache.remember(key("a"), &address(300), start);
        cache.remember(key("short"), &address(3), start);
        cache.remember(key("never"), &address(0), start);
        cache.remember(key("gone"), &absence(20, 10), start);
        cache.remember(key("unsaid"), &Answer::default(), start);
        let ttl = |label: &str, seconds| {
            let answer = cache.recall(&key(label), after(seconds))?;
            Some(
                answer.answers.iter().chain(&answer.authorities).map(|r| r.ttl).collect::<Vec<_>>(),
            )
        };
        assert_eq!(ttl("a", 0), Some(vec![300]));
        assert_eq!(ttl("A", 29), Some(vec![271]), "names are compared without case");
        assert_eq!(ttl("a", 30), None, "no longer than the cache keeps anything");
        assert_eq!(ttl("short", 2), Some(vec![1]));
        assert_eq!(ttl("short", 3), None);
        assert_eq!(ttl("never", 0), None);
        assert_eq!(ttl("gone", 9), Some(vec![11]));
        assert_eq!(ttl("gone", 10), None);
        assert_eq!(ttl("unsaid", 0), None);
    }

    #[test]
    fn the_oldest_make_room() {
        let now = Instant::now();
        let mut cache = Cache::new(Duration::from_secs(30));
        for number in 0..ENTRIES_MAX + 10 {
            cache.remember(key(&format!("n{number}")), &address(300), now);
        }
        assert_eq!((cache.entries.len(), cache.order.len()), (ENTRIES_MAX, ENTRIES_MAX));
        assert!(cache.recall(&key("n9"), now).is_none());
        assert!(cache.recall(&key("n10"), now).is_some());
    }
}
