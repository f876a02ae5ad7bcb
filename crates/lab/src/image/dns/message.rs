//! From bytes to a question, and from an answer to bytes that fit. Pure.

use hickory_proto::op::{Edns, Message, MessageType, Metadata, OpCode, Query, ResponseCode};
use hickory_proto::rr::{DNSClass, RecordType};

use super::zone::Answer;

/// What goes over UDP without being fragmented anywhere (the DNS flag day of 2020).
pub const UDP_PAYLOAD_MAX: u16 = 1232;
/// What every asker takes over UDP (RFC 1035).
const UDP_PAYLOAD_MIN: u16 = 512;
/// Length of a header, the least that can be answered.
const HEADER_LEN: usize = 12;

/// How a message travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Transport {
    /// Datagrams, with little room.
    Udp,
    /// A stream of messages of up to 64 KiB.
    Tcp,
}

/// A question that can be answered.
#[derive(Clone, Debug)]
pub struct Request {
    /// What is asked.
    pub query: Query,
    header: Metadata,
    edns: Option<Edns>,
    limit: usize,
}

/// A message that is not a question to answer.
#[derive(Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Whoever sent it shall hear nothing.
    Ignore,
    /// This is what the sender is told.
    Reply(Vec<u8>),
}

impl Request {
    /// Understands a message.
    pub fn parse(bytes: &[u8], transport: Transport) -> Result<Self, Refusal> {
        let Ok(message) = Message::from_vec(bytes) else { return Err(malformed(bytes)) };
        if message.metadata.message_type == MessageType::Response {
            // Answering answers would keep two servers busy for ever.
            return Err(Refusal::Ignore);
        }
        let limit = match (transport, &message.edns) {
            (Transport::Tcp, _) => usize::from(u16::MAX),
            (Transport::Udp, None) => UDP_PAYLOAD_MIN.into(),
            (Transport::Udp, Some(edns)) => {
                edns.max_payload().clamp(UDP_PAYLOAD_MIN, UDP_PAYLOAD_MAX).into()
            }
        };
        let Message { metadata: header, mut queries, edns, .. } = message;
        let (Some(query), true) = (queries.pop(), queries.is_empty()) else {
            return Err(malformed(bytes));
        };
        let request = Self { query, header, edns, limit };
        match request.flaw() {
            Some(code) => Err(Refusal::Reply(request.refuse(code))),
            None => Ok(request),
        }
    }

    /// Why a question that can be read is not answered.
    fn flaw(&self) -> Option<ResponseCode> {
        let transfer = matches!(self.query.query_type, RecordType::AXFR | RecordType::IXFR);
        if self.edns.as_ref().is_some_and(|edns| edns.version() != 0) {
            Some(ResponseCode::BADVERS)
        } else if self.header.op_code != OpCode::Query {
            Some(ResponseCode::NotImp)
        } else if self.query.query_class != DNSClass::IN || transfer {
            Some(ResponseCode::Refused)
        } else {
            None
        }
    }

    /// Whether the asker wants signatures, and no validation on the way.
    pub fn dnssec(&self) -> [bool; 2] {
        let wanted = self.edns.as_ref().is_some_and(|edns| edns.flags().dnssec_ok);
        [wanted, self.header.checking_disabled]
    }

    /// Whether the asker wants others to be asked.
    pub fn recursion_desired(&self) -> bool {
        self.header.recursion_desired
    }

    /// The bytes of an answer. One that does not fit is cut, and says so.
    pub fn respond(&self, answer: Answer, flags: Flags) -> Vec<u8> {
        let mut metadata = Metadata::response_from_request(&self.header);
        metadata.authoritative = flags.authoritative;
        metadata.recursion_available = flags.recursion_available;
        metadata.response_code = answer.code;
        let mut message = Message::new(metadata.id, MessageType::Response, metadata.op_code);
        message.metadata = metadata;
        message.queries = vec![self.query.clone()];
        message.answers = answer.answers;
        message.authorities = answer.authorities;
        message.additionals = answer.additionals;
        message.edns = self.edns.as_ref().map(|asked| {
            let mut edns = Edns::new();
            edns.set_max_payload(UDP_PAYLOAD_MAX).set_dnssec_ok(asked.flags().dnssec_ok);
            edns
        });
        fit(message, self.limit)
    }

    /// The bytes of an answer that has nothing but a code.
    pub fn refuse(&self, code: ResponseCode) -> Vec<u8> {
        self.respond(Answer { code, ..Answer::default() }, Flags::default())
    }
}

/// What a response says about the server.
#[derive(Clone, Copy, Debug, Default)]
pub struct Flags {
    /// The names are the server's own.
    pub authoritative: bool,
    /// The server asks others.
    pub recursion_available: bool,
}

/// Encodes a message within a limit: what was not asked for goes first, then answers from the end.
fn fit(mut message: Message, limit: usize) -> Vec<u8> {
    // Records are made of names and values that were checked when they came in, so this works.
    let encode = |message: &Message| message.to_vec().unwrap_or_default();
    let whole = encode(&message);
    if whole.len() <= limit {
        return whole;
    }
    message.additionals.clear();
    let brief = encode(&message);
    if brief.len() <= limit {
        return brief;
    }
    message.authorities.clear();
    message.metadata.truncation = true;
    let all = std::mem::take(&mut message.answers);
    // A question and an OPT record always fit, a name having 255 bytes at most. The length does not
    // grow evenly, as names are compressed, so the number that fits is searched by halves.
    let (mut fitting, mut excess) = (0, all.len());
    while excess - fitting > 1 {
        let middle = usize::midpoint(fitting, excess);
        message.answers = all[..middle].to_vec();
        match encode(&message).len() <= limit {
            true => fitting = middle,
            false => excess = middle,
        }
    }
    message.answers = all[..fitting].to_vec();
    encode(&message)
}

/// What is said to a message that cannot be read, if it has an id to answer to.
fn malformed(bytes: &[u8]) -> Refusal {
    let is_query = bytes.len() >= HEADER_LEN && bytes[2] & 0x80 == 0;
    if !is_query {
        return Refusal::Ignore;
    }
    let mut reply = [0_u8; HEADER_LEN];
    reply[..2].copy_from_slice(&bytes[..2]);
    // A response, with the question's operation and wish for recursion.
    reply[2] = 0x80 | (bytes[2] & 0x79);
    reply[3] = ResponseCode::FormErr.low();
    Refusal::Reply(reply.to_vec())
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use hickory_proto::rr::rdata::TXT;
    use hickory_proto::rr::{Name, RData, Record};

    use super::*;

    fn name() -> Name {
        Name::from_ascii("many.external.test.").unwrap()
    }

    fn question(change: impl FnOnce(&mut Message)) -> Vec<u8> {
        let mut message = Message::query();
        message.metadata.id = 7;
        message.metadata.recursion_desired = true;
        message.queries = vec![Query::query(name(), RecordType::A)];
        change(&mut message);
        message.to_vec().unwrap()
    }

    fn with_payload(payload: u16) -> Vec<u8> {
        question(|message| {
            let mut edns = Edns::new();
            edns.set_max_payload(payload).set_dnssec_ok(true);
            message.edns = Some(edns);
        })
    }

    fn addresses(count: u8) -> Answer {
        let address = |n| Record::from_rdata(name(), 5, RData::from(Ipv4Addr::new(192, 0, 2, n)));
        Answer {
            answers: (0..count).map(address).collect(),
            additionals: vec![address(255)],
            ..Answer::default()
        }
    }

    fn respond(bytes: &[u8], transport: Transport, answer: Answer) -> (usize, Message) {
        let request = Request::parse(bytes, transport).unwrap();
        let flags = Flags { authoritative: true, recursion_available: true };
        let reply = request.respond(answer, flags);
        (reply.len(), Message::from_vec(&reply).unwrap())
    }

    #[test]
    fn answers_belong_to_their_questions() {
        let (_, reply) = respond(&question(|_| {}), Transport::Udp, addresses(2));
        assert_eq!(reply.metadata.id, 7);
        assert_eq!(reply.metadata.message_type, MessageType::Response);
        assert_eq!(reply.queries, [Query::query(name(), RecordType::A)]);
        let flags = reply.metadata;
        assert!(flags.recursion_desired && flags.recursion_available && flags.authoritative);
        assert_eq!((reply.answers.len(), reply.additionals.len()), (2, 1));
        assert!(reply.edns.is_none(), "who does not speak EDNS is not answered in it");
    }

    #[test]
    fn answers_fit_or_are_cut() {
        // (question, transport, addresses) → longest message, addresses that arrive, cut?
        let check = |bytes: &[u8], transport, count, limit, expected, cut| {
            let (length, reply) = respond(bytes, transport, addresses(count));
            assert!(length <= limit, "{length} > {limit}");
            assert_eq!((reply.answers.len(), reply.metadata.truncation), (expected, cut));
        };
        let plain = question(|_| {});
        check(&plain, Transport::Udp, 28, 512, 28, false);
        check(&plain, Transport::Tcp, 200, 65_535, 200, false);
        check(&with_payload(1232), Transport::Udp, 70, 1232, 70, false);
        // A payload below the minimum counts as the minimum, one above ours as ours.
        check(&with_payload(100), Transport::Udp, 25, 512, 25, false);
        for (payload, limit) in [(512, 512), (1232, 1232), (4096, 1232)] {
            let (length, reply) = respond(&with_payload(payload), Transport::Udp, addresses(200));
            assert!(length <= limit && reply.metadata.truncation);
            assert!(length > limit - 32, "{length}: as much as fits of {limit}");
            let edns = reply.edns.unwrap();
            assert_eq!((edns.max_payload(), edns.flags().dnssec_ok), (UDP_PAYLOAD_MAX, true));
        }
    }

    #[test]
    fn a_record_that_does_not_fit_is_left_out() {
        let text = RData::TXT(TXT::new(vec!["x".repeat(250); 12]));
        let answer =
            Answer { answers: vec![Record::from_rdata(name(), 5, text)], ..Answer::default() };
        let (_, reply) = respond(&question(|_| {}), Transport::Udp, answer.clone());
        assert_eq!((reply.answers.len(), reply.metadata.truncation), (0, true));
        let (length, reply) = respond(&question(|_| {}), Transport::Tcp, answer);
        assert_eq!((reply.answers.len(), reply.metadata.truncation), (1, false));
        assert!(length > 3000);
    }

    #[test]
    fn what_is_no_question_is_refused() {
        let code = |bytes: &[u8]| match Request::parse(bytes, Transport::Udp) {
            Err(Refusal::Reply(reply)) => Message::from_vec(&reply).unwrap().metadata.response_code,
            other => panic!("{other:?}"),
        };
        let changed = |change: fn(&mut Message)| code(&question(change));
        assert_eq!(changed(|m| m.metadata.op_code = OpCode::Notify), ResponseCode::NotImp);
        assert_eq!(changed(|m| m.queries.clear()), ResponseCode::FormErr);
        assert_eq!(changed(|m| m.queries.push(m.queries[0].clone())), ResponseCode::FormErr);
        assert_eq!(changed(|m| m.queries[0].query_class = DNSClass::CH), ResponseCode::Refused);
        assert_eq!(changed(|m| m.queries[0].query_type = RecordType::AXFR), ResponseCode::Refused);
        let version = changed(|m| {
            let mut edns = Edns::new();
            edns.set_version(1);
            m.edns = Some(edns);
        });
        // The same number means something else in a signed message.
        assert!(matches!(version, ResponseCode::BADVERS | ResponseCode::BADSIG), "{version}");
        // Cut in the middle of the name.
        assert_eq!(code(&question(|_| {})[..20]), ResponseCode::FormErr);
        for silent in [question(|m| m.metadata.message_type = MessageType::Response), vec![0; 11]] {
            assert_eq!(Request::parse(&silent, Transport::Udp).unwrap_err(), Refusal::Ignore);
        }
    }

    #[test]
    fn any_bytes_are_survived() {
        let whole = with_payload(4096);
        for at in 0..whole.len() {
            for value in [0, 1, 0x3f, 0x7f, 0x80, 0xc0, 0xff] {
                let mut bytes = whole.clone();
                bytes[at] = value;
                for transport in [Transport::Udp, Transport::Tcp] {
                    if let Ok(request) = Request::parse(&bytes, transport) {
                        assert!(!request.respond(addresses(3), Flags::default()).is_empty());
                    }
                    let _ = Request::parse(&bytes[..at], transport);
                }
            }
        }
    }
}
