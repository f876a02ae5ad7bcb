//! SPDY/3.1 as far as Kubernetes speaks it: many streams over one connection.
//!
//! `kubectl` before 1.30 does everything with it, and later ones still forward ports with it (inside of
//! a WebSocket). The protocol is the draft at
//! <https://www.chromium.org/spdy/spdy-protocol/spdy-protocol-draft3-1/>; flow control is left
//! out, as both Kubernetes' client and its server do.
//!
//! ```text
//!   client ── SYN_STREAM (headers) ──▶ Decoder ──▶ Opened { headers, Stream }
//!          ◀─ SYN_REPLY ──────────────  Encoder ◀── Message (data, end)
//!          ◀─ DATA … DATA+FIN ──────▶
//! ```

use std::collections::{BTreeMap, HashMap};

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{Ends, LINGER, Message, Outgoing, QUEUE_LEN, Stream};

/// Longest control frame that is taken; the clients' have some hundred bytes.
const CONTROL_LEN_MAX: usize = 64 << 10;
/// Longest block of headers once it is decompressed.
const HEADERS_LEN_MAX: usize = 64 << 10;
/// Most streams that a connection may have at a time.
const STREAMS_MAX: usize = 1_000;
/// Longest data frame that is sent.
const DATA_LEN_MAX: usize = 32 << 10;

const SYN_STREAM: u16 = 1;
const SYN_REPLY: u16 = 2;
const RST_STREAM: u16 = 3;
const PING: u16 = 6;
const GOAWAY: u16 = 7;
const HEADERS: u16 = 8;

const FLAG_FIN: u8 = 1;

/// A stream that the client has opened.
#[derive(Debug)]
pub struct Opened {
    /// Names in lower case.
    pub headers: Headers,
    /// The stream.
    pub stream: Stream,
}

/// Headers of a stream.
pub type Headers = BTreeMap<String, String>;

/// What is wrong with what a client sends.
#[derive(Debug, thiserror::Error)]
pub enum SpdyError {
    /// Not the version that was agreed.
    #[error("frame of SPDY version {0}, but 3 was agreed")]
    Version(u16),
    /// A frame is shorter than its fields.
    #[error("frame of type {0} is too short")]
    Short(u16),
    /// A limit is exceeded.
    #[error("{what} is longer than {limit} bytes")]
    Long {
        /// What is too long.
        what: &'static str,
        /// The limit.
        limit: usize,
    },
    /// Headers that cannot be decompressed or taken apart.
    #[error("malformed headers: {0}")]
    Headers(&'static str),
    /// The connection failed.
    #[error(transparent)]
    Io(#[from] std::io::Error),
}

/// Serves a connection. The client's streams arrive at the receiver, which ends with the
/// connection; the connection ends when all that was made of it is dropped.
pub fn serve<T>(io: T) -> (mpsc::Receiver<Opened>, Ends)
where
    T: AsyncRead + AsyncWrite + Send + 'static,
{
    let (reader, writer) = tokio::io::split(io);
    let (queue, messages) = mpsc::channel(QUEUE_LEN);
    let (accepted, streams) = mpsc::channel(QUEUE_LEN);
    let gone = CancellationToken::new();
    let written = CancellationToken::new();
    let ends = Ends { _queue: queue.clone(), gone: gone.clone() };
    tokio::spawn(write(writer, messages, written.clone()));
    let connection = Connection {
        decoder: Decoder::default(),
        encoder: Encoder::default(),
        // Weak, or the connection would keep itself alive.
        queue: queue.downgrade(),
        accepted,
        streams: HashMap::new(),
        gone: gone.clone(),
    };
    tokio::spawn(async move {
        let until = async {
            written.cancelled().await;
            // The client closes after it has read everything.
            tokio::time::sleep(LINGER).await;
        };
        tokio::select! {
            result = connection.read(reader) => {
                if let Err(error) = result {
                    tracing::debug!(%error, "SPDY connection ended");
                }
            }
            () = until => {}
        }
        gone.cancel();
    });
    (streams, ends)
}

async fn write(
    mut writer: impl AsyncWrite + Unpin,
    mut messages: mpsc::Receiver<Message>,
    written: CancellationToken,
) {
    while let Some(message) = messages.recv().await {
        let result = match message {
            Message::Data { stream, data, last } => {
                write_data(&mut writer, stream, &data, last).await
            }
            Message::Raw(frame) => writer.write_all(&frame).await,
        };
        // TLS keeps what is written until it is flushed.
        let flushed = async { if messages.is_empty() { writer.flush().await } else { Ok(()) } };
        if result.is_err() || flushed.await.is_err() {
            break;
        }
    }
    let _ = writer.shutdown().await;
    written.cancel();
}

async fn write_data(
    writer: &mut (impl AsyncWrite + Unpin),
    stream: u32,
    data: &[u8],
    last: bool,
) -> std::io::Result<()> {
    for part in data.chunks(DATA_LEN_MAX) {
        writer.write_all(&data_header(stream, part.len(), false)).await?;
        writer.write_all(part).await?;
    }
    if last {
        writer.write_all(&data_header(stream, 0, true)).await?;
    }
    Ok(())
}

/// The reading side.
struct Connection {
    decoder: Decoder,
    encoder: Encoder,
    queue: mpsc::WeakSender<Message>,
    accepted: mpsc::Sender<Opened>,
    streams: HashMap<u32, Incoming>,
    gone: CancellationToken,
}

struct Incoming {
    data: mpsc::Sender<Bytes>,
    reset: CancellationToken,
}

impl Connection {
    async fn read(mut self, mut reader: impl AsyncRead + Unpin) -> Result<(), SpdyError> {
        loop {
            while let Some(frame) = self.decoder.next()? {
                self.take(frame).await?;
            }
            if reader.read_buf(&mut self.decoder.buffer).await? == 0 {
                return Ok(());
            }
        }
    }

    async fn take(&mut self, frame: Frame) -> Result<(), SpdyError> {
        match frame {
            Frame::Open { stream: id, headers, last } => {
                self.streams.retain(|_, stream| !stream.data.is_closed());
                let Some(queue) = self.queue.upgrade() else { return Ok(()) };
                if self.streams.len() >= STREAMS_MAX {
                    let _ = queue.send(Message::Raw(refuse(id))).await;
                    return Ok(());
                }
                let (data, incoming) = mpsc::channel(QUEUE_LEN);
                let reset = self.gone.child_token();
                let _ = queue.send(Message::Raw(self.encoder.reply(id))).await;
                let outgoing = Outgoing { id, queue };
                let stream = Stream { incoming, outgoing, gone: reset.clone() };
                if !last {
                    self.streams.insert(id, Incoming { data, reset });
                }
                let _ = self.accepted.send(Opened { headers, stream }).await;
            }
            Frame::Data { stream, data, last } => {
                if let (Some(incoming), false) = (self.streams.get(&stream), data.is_empty()) {
                    // Nobody reads any more: that is for the stream's owner to tell.
                    let _ = incoming.data.send(data).await;
                }
                if last {
                    self.streams.remove(&stream);
                }
            }
            Frame::Reset { stream } => {
                if let Some(incoming) = self.streams.remove(&stream) {
                    incoming.reset.cancel();
                }
            }
            Frame::Ping { id } => {
                if let Some(queue) = self.queue.upgrade() {
                    let _ = queue.send(Message::Raw(ping(id))).await;
                }
            }
            Frame::Other => {}
        }
        Ok(())
    }
}

// ---------------------------------------------------------------------------------------------
// Frames

/// What a client sends.
#[derive(Debug, PartialEq, Eq)]
enum Frame {
    Open {
        stream: u32,
        headers: Headers,
        last: bool,
    },
    /// A part of what was sent: frames are handed on as they arrive.
    Data {
        stream: u32,
        data: Bytes,
        last: bool,
    },
    Reset {
        stream: u32,
    },
    Ping {
        id: u32,
    },
    /// Nothing that we have to act on.
    Other,
}

/// Takes frames out of bytes.
#[derive(Default)]
struct Decoder {
    /// What has arrived and is not decoded.
    buffer: BytesMut,
    headers: Inflate,
    /// The rest of a data frame.
    body: Option<Body>,
}

struct Body {
    stream: u32,
    left: usize,
    last: bool,
}

impl Decoder {
    fn next(&mut self) -> Result<Option<Frame>, SpdyError> {
        if let Some(body) = &mut self.body {
            let part = self.buffer.split_to(body.left.min(self.buffer.len())).freeze();
            body.left -= part.len();
            let (stream, last) = (body.stream, body.left == 0 && body.last);
            if body.left == 0 {
                self.body = None;
            } else if part.is_empty() {
                return Ok(None);
            }
            return Ok(Some(Frame::Data { stream, data: part, last }));
        }
        let Some(header) = self.buffer.first_chunk::<8>() else { return Ok(None) };
        let [a, b, c, d, flags, x, y, z] = *header;
        let len = u32::from_be_bytes([0, x, y, z]) as usize;
        let last = flags & FLAG_FIN != 0;
        if a & 0x80 == 0 {
            self.buffer.advance(8);
            let stream = u32::from_be_bytes([a, b, c, d]);
            self.body = Some(Body { stream, left: len, last });
            return self.next();
        }
        let version = u16::from_be_bytes([a & 0x7f, b]);
        if version != 3 {
            return Err(SpdyError::Version(version));
        }
        if len > CONTROL_LEN_MAX {
            return Err(SpdyError::Long { what: "control frame", limit: CONTROL_LEN_MAX });
        }
        if self.buffer.len() < 8 + len {
            return Ok(None);
        }
        self.buffer.advance(8);
        let payload = self.buffer.split_to(len).freeze();
        self.control(u16::from_be_bytes([c, d]), payload, last).map(Some)
    }

    fn control(&mut self, kind: u16, mut payload: Bytes, last: bool) -> Result<Frame, SpdyError> {
        let short = |_| SpdyError::Short(kind);
        match kind {
            SYN_STREAM => {
                let stream = payload.try_get_u32().map_err(short)? & 0x7fff_ffff;
                // The stream it belongs to and its priority.
                payload.try_get_u32().map_err(short)?;
                payload.try_get_u16().map_err(short)?;
                let headers = self.headers.block(&payload)?;
                Ok(Frame::Open { stream, headers, last })
            }
            SYN_REPLY | HEADERS => {
                payload.try_get_u32().map_err(short)?;
                // All headers share one compression, so that those we do not need count as well.
                self.headers.block(&payload)?;
                Ok(Frame::Other)
            }
            RST_STREAM => {
                let stream = payload.try_get_u32().map_err(short)? & 0x7fff_ffff;
                Ok(Frame::Reset { stream })
            }
            PING => Ok(Frame::Ping { id: payload.try_get_u32().map_err(short)? }),
            // GOAWAY is followed by the end of the connection; settings and windows say nothing to
            // somebody without flow control; the draft asks to ignore what is unknown.
            _ => Ok(Frame::Other),
        }
    }
}

fn control(kind: u16, payload: &[u8]) -> Bytes {
    let mut frame = BytesMut::with_capacity(8 + payload.len());
    frame.put_u16(0x8003);
    frame.put_u16(kind);
    frame.put_u32(payload.len() as u32);
    frame.put_slice(payload);
    frame.freeze()
}

fn ping(id: u32) -> Bytes {
    control(PING, &id.to_be_bytes())
}

fn refuse(stream: u32) -> Bytes {
    const REFUSED_STREAM: u32 = 3;
    control(RST_STREAM, &[stream.to_be_bytes(), REFUSED_STREAM.to_be_bytes()].concat())
}

/// Says that no further streams are taken.
pub fn go_away() -> Bytes {
    control(GOAWAY, &[0; 8])
}

fn data_header(stream: u32, len: usize, last: bool) -> [u8; 8] {
    let mut header = [0; 8];
    header[..4].copy_from_slice(&stream.to_be_bytes());
    header[4..].copy_from_slice(&(len as u32).to_be_bytes());
    header[4] = u8::from(last);
    header
}

// ---------------------------------------------------------------------------------------------
// Headers

/// Decompresses headers; what came before counts.
struct Inflate(Decompress);

impl Default for Inflate {
    fn default() -> Self {
        Self(Decompress::new(true))
    }
}

impl Inflate {
    fn block(&mut self, mut compressed: &[u8]) -> Result<Headers, SpdyError> {
        let mut text = Vec::with_capacity(1 << 10);
        let malformed = SpdyError::Headers("they cannot be decompressed");
        loop {
            let before = (self.0.total_in(), text.len());
            let result = self.0.decompress_vec(compressed, &mut text, FlushDecompress::Sync);
            let taken = usize::try_from(self.0.total_in() - before.0).unwrap_or(usize::MAX);
            compressed = compressed.get(taken..).unwrap_or_default();
            match result {
                Ok(Status::StreamEnd) => return Err(malformed),
                Ok(_) => {}
                Err(error) if error.needs_dictionary().is_some() => {
                    self.0.set_dictionary(&dictionary()).map_err(|_e| malformed_dictionary())?;
                    continue;
                }
                Err(_) => return Err(malformed),
            }
            let full = text.len() == text.capacity();
            if compressed.is_empty() && !full {
                return parse(&text);
            }
            if text.len() > HEADERS_LEN_MAX {
                return Err(SpdyError::Long { what: "block of headers", limit: HEADERS_LEN_MAX });
            }
            if !full && (taken, text.len()) == (0, before.1) {
                return Err(malformed);
            }
            text.reserve(text.len());
        }
    }
}

fn malformed_dictionary() -> SpdyError {
    SpdyError::Headers("they are compressed with another dictionary")
}

/// Takes name and value pairs apart.
fn parse(mut text: &[u8]) -> Result<Headers, SpdyError> {
    let mut number = || -> Result<usize, SpdyError> {
        text.try_get_u32().map(|n| n as usize).map_err(|_e| SpdyError::Headers("they are cut off"))
    };
    let count = number()?;
    let mut headers = Headers::new();
    for _ in 0..count {
        let mut word = || {
            let len = text.try_get_u32().map_err(|_e| SpdyError::Headers("they are cut off"))?;
            let word = text.split_off(..len as usize);
            let word = word.ok_or(SpdyError::Headers("they are cut off"))?;
            Ok::<_, SpdyError>(String::from_utf8_lossy(word).into_owned())
        };
        let name = word()?;
        headers.insert(name, word()?);
    }
    Ok(headers)
}

/// Makes the frames that need state.
struct Encoder(Compress);

impl Default for Encoder {
    fn default() -> Self {
        let mut compress = Compress::new(Compression::fast(), true);
        // Fails only on a stream that has begun.
        let _ = compress.set_dictionary(&dictionary());
        Self(compress)
    }
}

impl Encoder {
    /// Accepts a stream; the reply has no headers.
    fn reply(&mut self, stream: u32) -> Bytes {
        control(
            SYN_REPLY,
            &[&stream.to_be_bytes(), self.block(&Headers::new()).as_slice()].concat(),
        )
    }

    fn block(&mut self, headers: &Headers) -> Vec<u8> {
        let mut text = Vec::new();
        text.put_u32(headers.len() as u32);
        for word in headers.iter().flat_map(|(name, value)| [name, value]) {
            text.put_u32(word.len() as u32);
            text.put_slice(word.as_bytes());
        }
        // More than zlib ever adds, so that one call does all.
        let mut compressed = Vec::with_capacity(text.len() * 2 + 128);
        let _ = self.0.compress_vec(&text, &mut compressed, FlushCompress::Sync);
        compressed
    }
}

/// What both sides' compression knows from the start (section 2.6.10.1 of the draft).
fn dictionary() -> Vec<u8> {
    const WORDS: &str = "options head post put delete trace accept accept-charset accept-encoding \
        accept-language accept-ranges age allow authorization cache-control connection content-base \
        content-encoding content-language content-length content-location content-md5 content-range \
        content-type date etag expect expires from host if-match if-modified-since if-none-match \
        if-range if-unmodified-since last-modified location max-forwards pragma proxy-authenticate \
        proxy-authorization range referer retry-after server te trailer transfer-encoding upgrade \
        user-agent vary via warning www-authenticate method get status 200_OK version HTTP/1.1 url \
        public set-cookie keep-alive origin";
    const REST: &str = "100101201202205206300302303304305306307402405406407408409410411412413414\
        415416417502504505203 Non-Authoritative Information204 No Content301 Moved Permanently400 Bad \
        Request401 Unauthorized403 Forbidden404 Not Found500 Internal Server Error501 Not \
        Implemented503 Service UnavailableJan Feb Mar Apr May Jun Jul Aug Sept Oct Nov Dec 00:00:00 \
        Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMTchunked,text/html,image/png,image/jpg,image/gif,\
        application/xml,application/xhtml+xml,text/plain,text/javascript,publicprivatemax-age=gzip,\
        deflate,sdchcharset=utf-8charset=iso-8859-1,utf-,*,enq=0.";
    let mut bytes = Vec::with_capacity(1_423);
    for word in WORDS.split_ascii_whitespace() {
        bytes.put_u32(word.len() as u32);
        bytes.put_slice(word.replace('_', " ").as_bytes());
    }
    bytes.put_slice(REST.as_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&str, &str)]) -> Headers {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    fn open(encoder: &mut Encoder, stream: u32, pairs: &[(&str, &str)]) -> Bytes {
        let block = encoder.block(&headers(pairs));
        control(SYN_STREAM, &[&stream.to_be_bytes()[..], &[0; 6], &block].concat())
    }

    /// Feeds bytes in pieces of this size.
    fn decode(bytes: &[u8], piece: usize) -> Result<Vec<Frame>, SpdyError> {
        let mut decoder = Decoder::default();
        let mut frames = Vec::new();
        for part in bytes.chunks(piece) {
            decoder.buffer.extend_from_slice(part);
            while let Some(frame) = decoder.next()? {
                frames.push(frame);
            }
        }
        Ok(frames)
    }

    #[test]
    fn the_dictionary_is_the_drafts() {
        assert_eq!(dictionary().len(), 1_423);
        // Every SPDY/3 connection begins so: zlib with the dictionary of this checksum.
        let block = Encoder::default().block(&Headers::new());
        assert_eq!(block[2..6], [0xe3, 0xc6, 0xa7, 0xc2]);
    }

    #[test]
    fn streams_are_opened_however_the_bytes_arrive() {
        let mut encoder = Encoder::default();
        let first = [("streamtype", "error"), ("port", "8080"), ("requestid", "0")];
        let second = [("streamtype", "data"), ("port", "8080"), ("requestid", "0")];
        let bytes = [
            open(&mut encoder, 1, &first),
            open(&mut encoder, 3, &second),
            ping(7),
            control(RST_STREAM, &[0, 0, 0, 3, 0, 0, 0, 5]),
            control(9, &[0; 8]),
        ]
        .concat();
        let expected = [
            Frame::Open { stream: 1, headers: headers(&first), last: false },
            Frame::Open { stream: 3, headers: headers(&second), last: false },
            Frame::Ping { id: 7 },
            Frame::Reset { stream: 3 },
            Frame::Other,
        ];
        for piece in [1, 7, 8, 9, bytes.len()] {
            assert_eq!(decode(&bytes, piece).unwrap(), expected, "{piece}");
        }
    }

    #[test]
    fn data_is_handed_on_as_it_arrives() {
        let bytes = [&data_header(5, 4, true)[..], b"abcd", &data_header(5, 0, false)].concat();
        let data = |data: &'static str, last| Frame::Data { stream: 5, data: data.into(), last };
        assert_eq!(decode(&bytes, 99).unwrap(), [data("abcd", true), data("", false)]);
        assert_eq!(
            decode(&bytes, 10).unwrap(),
            [data("ab", false), data("cd", true), data("", false)]
        );
    }

    #[test]
    fn long_headers_are_decompressed_and_limited() {
        let value = "x".repeat(20_000);
        let bytes = open(&mut Encoder::default(), 1, &[("a", &value)]);
        let [Frame::Open { headers, .. }] = &decode(&bytes, 99).unwrap()[..] else { panic!() };
        assert_eq!(headers["a"], value);
        let bytes = open(&mut Encoder::default(), 1, &[("a", &"x".repeat(1 << 20))]);
        assert!(matches!(decode(&bytes, 99), Err(SpdyError::Long { .. })));
    }

    #[test]
    fn nonsense_is_refused() {
        let check = |bytes: &[u8], expected: &str| {
            assert_eq!(decode(bytes, 99).unwrap_err().to_string(), expected);
        };
        check(&[0x80, 2, 0, 1, 0, 0, 0, 0], "frame of SPDY version 2, but 3 was agreed");
        check(&[0x80, 3, 0, 6, 0, 0, 0, 0], "frame of type 6 is too short");
        check(&[0x80, 3, 0, 1, 0, 2, 0, 0], "control frame is longer than 65536 bytes");
        let headers = [&[0_u8; 10][..], &[1, 2, 3]].concat();
        check(&control(SYN_STREAM, &headers), "malformed headers: they cannot be decompressed");
    }

    #[tokio::test]
    async fn a_connection_carries_streams_both_ways() {
        let (mut client, server) = tokio::io::duplex(1 << 10);
        let (mut streams, ends) = serve(server);
        let mut encoder = Encoder::default();
        client.write_all(&open(&mut encoder, 1, &[("streamtype", "data")])).await.unwrap();
        client.write_all(&[&data_header(1, 2, true)[..], b"hi"].concat()).await.unwrap();
        let mut opened = streams.recv().await.unwrap();
        assert_eq!(opened.headers["streamtype"], "data");
        assert_eq!(opened.stream.incoming.recv().await.unwrap(), "hi");
        assert_eq!(opened.stream.incoming.recv().await, None);
        opened.stream.outgoing.send("ho".into()).await;
        opened.stream.outgoing.finish().await;
        drop((opened.stream.gone, ends));
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).await.unwrap();
        let data = [&data_header(1, 2, false)[..], b"ho", &data_header(1, 0, true)].concat();
        assert!(answer.ends_with(&data), "{answer:?}");
        assert_eq!(answer[..4], [0x80, 3, 0, 2]);
    }
}
