//! A blocking client of the agent's socket: HTTP/1.1 as the agent speaks it, and no more.
//!
//! The CNI plugin starts, asks three things and ends within milliseconds; it has no use for an async
//! runtime. One connection is kept for all requests of a [`Client`].

use std::fmt;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

/// How long a request may wait for the agent's next byte unless told otherwise.
const TIMEOUT_DEFAULT: Duration = Duration::from_secs(30);
/// Longest head of an answer.
const HEAD_LEN_MAX: usize = 16 * 1024;
/// Longest body that is read into memory.
const BODY_LEN_MAX: u64 = 256 * 1024 * 1024;

/// A connection to an agent.
#[derive(Debug)]
pub struct Client {
    socket: PathBuf,
    timeout: Duration,
    connection: Option<BufReader<UnixStream>>,
}

/// A request failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens on the socket.
    #[error("cannot reach the agent on {}; is cilium-agent running on this node?", socket.display())]
    Connect {
        /// The socket.
        socket: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The connection broke, or the agent was too slow.
    #[error("{request}: connection to the agent on {} failed", socket.display())]
    Io {
        /// Method and path.
        request: String,
        /// The socket.
        socket: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The agent refused.
    #[error("{request}: the agent answered {status}: {message}")]
    Status {
        /// Method and path.
        request: String,
        /// HTTP status code.
        status: u16,
        /// The agent's words.
        message: String,
    },
    /// The answer is not what it should be.
    #[error("{request}: cannot understand the agent's answer")]
    Decode {
        /// Method and path.
        request: String,
        /// Why.
        source: serde_json::Error,
    },
}

impl ClientError {
    /// The HTTP status code with which the agent refused.
    pub fn status(&self) -> Option<u16> {
        match self {
            Self::Status { status, .. } => Some(*status),
            Self::Connect { .. } | Self::Io { .. } | Self::Decode { .. } => None,
        }
    }

    /// Whether the agent is away, so that the request may be tried again later.
    pub fn is_unreachable(&self) -> bool {
        matches!(self, Self::Connect { .. } | Self::Io { .. })
    }
}

impl Client {
    /// A client of the agent on `socket`. Connects with the first request.
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self { socket: socket.into(), timeout: TIMEOUT_DEFAULT, connection: None }
    }

    /// The same client with another limit for the agent's silence.
    #[must_use]
    pub fn with_timeout(self, timeout: Duration) -> Self {
        Self { timeout, ..self }
    }

    /// The socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// `GET`.
    pub fn get<T: DeserializeOwned>(&mut self, path: &str) -> Result<T, ClientError> {
        self.request("GET", path, &[], &[])?.json()
    }

    /// `GET` with headers, as in `brief: true`.
    pub fn get_with<T: DeserializeOwned>(
        &mut self,
        path: &str,
        headers: &[(&str, &str)],
    ) -> Result<T, ClientError> {
        self.request("GET", path, headers, &[])?.json()
    }

    /// `PUT` of a JSON body.
    pub fn put<T: DeserializeOwned>(
        &mut self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, ClientError> {
        self.send_json("PUT", path, body)?.json()
    }

    /// `PATCH` with a JSON body.
    pub fn patch<T: DeserializeOwned>(
        &mut self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, ClientError> {
        self.send_json("PATCH", path, body)?.json()
    }

    /// `POST` without a body.
    pub fn post<T: DeserializeOwned>(&mut self, path: &str) -> Result<T, ClientError> {
        self.request("POST", path, &[], &[])?.json()
    }

    /// `POST` of a JSON body.
    pub fn post_with<T: DeserializeOwned>(
        &mut self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, ClientError> {
        self.send_json("POST", path, body)?.json()
    }

    /// `DELETE` without a body. The answer's own body is ignored.
    pub fn delete(&mut self, path: &str) -> Result<(), ClientError> {
        self.request("DELETE", path, &[], &[]).map(drop)
    }

    /// `DELETE` with a JSON body. The answer's own body is ignored.
    pub fn delete_with(&mut self, path: &str, body: &impl Serialize) -> Result<(), ClientError> {
        self.send_json("DELETE", path, body).map(drop)
    }

    /// `GET` of an endless body, on a connection of its own. `timeout` limits the wait for the head
    /// only.
    pub fn stream(&self, path: &str) -> Result<Body, ClientError> {
        let request = format!("GET {path}");
        let io_error = |source| self.io_error(&request, source);
        let mut connection = self.connect()?;
        write_request(connection.get_mut(), "GET", path, &[], &[]).map_err(io_error)?;
        let head = read_head(&mut connection).map_err(io_error)?;
        let stream = connection.get_ref();
        if head.is_success() {
            stream.set_read_timeout(None).map_err(io_error)?;
        }
        let mut body = Body { connection, rest: head.body };
        if head.is_success() {
            return Ok(body);
        }
        let mut bytes = Vec::new();
        body.read_to_end(&mut bytes).map_err(io_error)?;
        Err(refusal(request, head.status, &bytes))
    }

    fn send_json(
        &mut self,
        method: &str,
        path: &str,
        body: &impl Serialize,
    ) -> Result<Answer, ClientError> {
        let body = serde_json::to_vec(body).map_err(|source| ClientError::Decode {
            request: format!("{method} {path}"),
            source,
        })?;
        self.request(method, path, &[("Content-Type", "application/json")], &body)
    }

    /// One request and its whole answer.
    ///
    /// The agent may have closed a kept connection, or restarted, since the last answer; then the
    /// request goes out again on a new one, which is safe as the old one never answered a byte.
    fn request(
        &mut self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Result<Answer, ClientError> {
        let request = format!("{method} {path}");
        if let Some(kept) = self.connection.take() {
            match self.exchange(kept, method, path, headers, body) {
                Ok(answer) => return answer_or_refusal(request, answer),
                Err(error) if is_closed(&error) => {}
                Err(error) => return Err(self.io_error(&request, error)),
            }
        }
        let connection = self.connect()?;
        let answer = self
            .exchange(connection, method, path, headers, body)
            .map_err(|source| self.io_error(&request, source))?;
        answer_or_refusal(request, answer)
    }

    /// Sends a request and reads the whole answer; keeps the connection where the agent does.
    fn exchange(
        &mut self,
        mut connection: BufReader<UnixStream>,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> io::Result<(u16, Vec<u8>)> {
        write_request(connection.get_mut(), method, path, headers, body)?;
        let head = read_head(&mut connection)?;
        let mut body = Body { connection, rest: head.body };
        let mut bytes = Vec::new();
        // The answer has begun: its end is an error, not a reason to ask again.
        (&mut body).take(BODY_LEN_MAX).read_to_end(&mut bytes).map_err(|error| {
            if is_closed(&error) { io::ErrorKind::UnexpectedEof.into() } else { error }
        })?;
        if head.keep_alive && body.is_finished() {
            self.connection = Some(body.connection);
        }
        Ok((head.status, bytes))
    }

    fn connect(&self) -> Result<BufReader<UnixStream>, ClientError> {
        let connect_error = |source| ClientError::Connect { socket: self.socket.clone(), source };
        let stream = UnixStream::connect(&self.socket).map_err(connect_error)?;
        stream.set_read_timeout(Some(self.timeout)).map_err(connect_error)?;
        stream.set_write_timeout(Some(self.timeout)).map_err(connect_error)?;
        Ok(BufReader::new(stream))
    }

    fn io_error(&self, request: &str, source: io::Error) -> ClientError {
        // A read that reached its time limit says "resource temporarily unavailable".
        let source = match source.kind() {
            io::ErrorKind::WouldBlock => io::Error::new(
                io::ErrorKind::TimedOut,
                format!("no answer within {} s", self.timeout.as_secs_f32()),
            ),
            _ => source,
        };
        ClientError::Io { request: request.to_owned(), socket: self.socket.clone(), source }
    }
}

/// A successful answer.
struct Answer {
    request: String,
    body: Vec<u8>,
}

impl Answer {
    /// The body as a value; an empty one is `null`.
    fn json<T: DeserializeOwned>(self) -> Result<T, ClientError> {
        let body = if self.body.is_empty() { b"null".as_slice() } else { &self.body };
        let request = self.request;
        serde_json::from_slice(body).map_err(|source| ClientError::Decode { request, source })
    }
}

fn answer_or_refusal(
    request: String,
    (status, body): (u16, Vec<u8>),
) -> Result<Answer, ClientError> {
    if (200..300).contains(&status) {
        Ok(Answer { request, body })
    } else {
        Err(refusal(request, status, &body))
    }
}

/// The agent's words are a JSON string; what else may have answered is shown as it is.
fn refusal(request: String, status: u16, body: &[u8]) -> ClientError {
    let message = match serde_json::from_slice::<super::Error>(body) {
        Ok(error) => error.message,
        Err(_) => String::from_utf8_lossy(body).trim().to_owned(),
    };
    ClientError::Status { request, status, message }
}

/// Whether the other end had closed the connection before it answered.
fn is_closed(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::BrokenPipe
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::NotConnected
    )
}

/// Writes head and body in one go.
fn write_request(
    stream: &mut UnixStream,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> io::Result<()> {
    let mut bytes = format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\n").into_bytes();
    for (name, value) in headers {
        write!(bytes, "{name}: {value}\r\n")?;
    }
    write!(bytes, "Content-Length: {}\r\n\r\n", body.len())?;
    bytes.extend_from_slice(body);
    stream.write_all(&bytes)
}

/// What the head of an answer says.
struct Head {
    status: u16,
    keep_alive: bool,
    body: Rest,
}

impl Head {
    fn is_success(&self) -> bool {
        (200..300).contains(&self.status)
    }
}

/// Reads an answer up to the empty line. A connection that ends before the first byte is
/// [`io::ErrorKind::ConnectionAborted`].
fn read_head(connection: &mut BufReader<UnixStream>) -> io::Result<Head> {
    let mut bytes = Vec::new();
    while !bytes.ends_with(b"\r\n\r\n") {
        let read = connection.take(HEAD_LEN_MAX as u64).read_until(b'\n', &mut bytes)?;
        if read == 0 {
            return Err(match bytes.is_empty() {
                true => io::ErrorKind::ConnectionAborted.into(),
                false => io::ErrorKind::UnexpectedEof.into(),
            });
        }
        if bytes.len() > HEAD_LEN_MAX {
            return Err(invalid("the head of the answer is too long"));
        }
    }
    parse_head(&bytes)
}

fn parse_head(bytes: &[u8]) -> io::Result<Head> {
    let mut headers = [httparse::EMPTY_HEADER; 64];
    let mut response = httparse::Response::new(&mut headers);
    response.parse(bytes).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
    let status = response.code.ok_or_else(|| invalid("the answer has no status"))?;
    let mut keep_alive = response.version == Some(1);
    let mut body = Rest::UntilClose;
    for header in response.headers.iter() {
        let value = String::from_utf8_lossy(header.value);
        if header.name.eq_ignore_ascii_case("content-length") {
            let len = value
                .trim()
                .parse()
                .map_err(|_not_a_number| invalid("content-length is no number"))?;
            // A chunked body's length is in its chunks (RFC 9112, section 6.3).
            if !matches!(body, Rest::Chunked { .. }) {
                body = Rest::Bytes(len);
            }
        } else if header.name.eq_ignore_ascii_case("transfer-encoding") {
            if !value.trim().eq_ignore_ascii_case("chunked") {
                return Err(invalid("the answer's transfer-encoding is not chunked"));
            }
            body = Rest::Chunked { left: 0, first: true };
        } else if header.name.eq_ignore_ascii_case("connection") {
            keep_alive &= !value.trim().eq_ignore_ascii_case("close");
        }
    }
    if status == 204 || status == 304 {
        body = Rest::Bytes(0);
    }
    keep_alive &= !matches!(body, Rest::UntilClose);
    Ok(Head { status, keep_alive, body })
}

/// How much of a body is to come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rest {
    /// So many bytes; 0 is the end.
    Bytes(u64),
    /// `left` bytes of the current chunk, then its line end and the next chunk.
    Chunked { left: u64, first: bool },
    /// All until the other end closes.
    UntilClose,
}

/// The body of an answer.
pub struct Body {
    connection: BufReader<UnixStream>,
    rest: Rest,
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Body").field("rest", &self.rest).finish_non_exhaustive()
    }
}

impl Body {
    /// The connection, to poll it or to shut it down from another thread.
    pub fn connection(&self) -> &UnixStream {
        self.connection.get_ref()
    }

    /// Whether bytes were received that [`Read::read`] has not given out yet, so that polling the
    /// connection would miss them.
    pub fn has_buffered(&self) -> bool {
        !self.connection.buffer().is_empty()
    }

    fn is_finished(&self) -> bool {
        self.rest == Rest::Bytes(0)
    }

    /// Reads the line before a chunk; the last chunk is empty and ends the body.
    fn next_chunk(&mut self, first: bool) -> io::Result<()> {
        if !first && !self.line()?.is_empty() {
            return Err(invalid("a chunk is longer than it says"));
        }
        let line = self.line()?;
        let size = line.split(';').next().unwrap_or_default().trim();
        let left = u64::from_str_radix(size, 16)
            .map_err(|_not_a_number| invalid("a chunk has no size"))?;
        if left > 0 {
            self.rest = Rest::Chunked { left, first: false };
            return Ok(());
        }
        while !self.line()?.is_empty() {}
        self.rest = Rest::Bytes(0);
        Ok(())
    }

    fn line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        let limited = &mut self.connection;
        if limited.take(HEAD_LEN_MAX as u64).read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        match line.strip_suffix('\n') {
            Some(text) => Ok(text.trim_end_matches('\r').to_owned()),
            None => Err(invalid("a line of the body does not end")),
        }
    }
}

impl Read for Body {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if out.is_empty() {
            return Ok(0);
        }
        if let Rest::Chunked { left: 0, first } = self.rest {
            self.next_chunk(first)?;
        }
        let left = match &mut self.rest {
            Rest::UntilClose => return self.connection.read(out),
            Rest::Bytes(0) => return Ok(0),
            Rest::Bytes(left) | Rest::Chunked { left, .. } => left,
        };
        let len = out.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
        let read = self.connection.read(&mut out[..len])?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        *left -= read as u64;
        Ok(read)
    }
}

/// A text as one segment of a path or one value of a query (RFC 3986, section 2.1).
pub fn encode(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b':' => {
                encoded.push(char::from(byte));
            }
            _ => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    encoded
}

fn invalid(message: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, message)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;
    use std::thread;

    use super::*;

    /// A server that gives `answers` in order, `per_connection` on each connection, and returns
    /// what it was asked.
    fn serve(
        name: &str,
        answers: &'static [&'static str],
        per_connection: usize,
    ) -> (PathBuf, thread::JoinHandle<Vec<String>>) {
        let dir = std::env::temp_dir().join(format!("cilium-client-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let socket = dir.join(name);
        let _ = std::fs::remove_file(&socket);
        let listener = UnixListener::bind(&socket).unwrap();
        let server = thread::spawn(move || {
            let mut asked = Vec::new();
            for answers in answers.chunks(per_connection) {
                let mut stream = BufReader::new(listener.accept().unwrap().0);
                for answer in answers {
                    asked.push(read_request(&mut stream));
                    stream.get_mut().write_all(answer.as_bytes()).unwrap();
                }
            }
            asked
        });
        (socket, server)
    }

    fn read_request(stream: &mut BufReader<UnixStream>) -> String {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            assert!(stream.read_line(&mut head).unwrap() > 0);
        }
        let len = head.lines().find_map(|l| l.strip_prefix("Content-Length: ")).unwrap();
        let mut body = vec![0; len.parse().unwrap()];
        stream.read_exact(&mut body).unwrap();
        format!("{} {}", head.lines().next().unwrap(), String::from_utf8(body).unwrap())
    }

    #[test]
    fn requests_share_a_connection_and_survive_its_end() {
        let (socket, server) = serve(
            "keep",
            &[
                "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n17",
                "HTTP/1.1 201 Created\r\ntransfer-encoding: chunked\r\n\r\n3\r\n\"ab\r\n2;x\r\nc\"\r\n0\r\n\r\n",
                "HTTP/1.1 409 Conflict\r\ncontent-length: 13\r\n\r\n\"taken by me\"",
                "HTTP/1.1 204 No Content\r\n\r\n",
                "HTTP/1.1 503 No\r\nconnection: close\r\n\r\nplain words\n",
            ],
            2,
        );
        let mut client = Client::new(&socket);
        assert_eq!(client.get::<u32>("/a").unwrap(), 17);
        assert_eq!(client.put::<String>("/b", &[1, 2]).unwrap(), "abc");
        let error = client.post::<()>("/c").unwrap_err();
        assert_eq!(error.status(), Some(409));
        assert!(error.to_string().ends_with("answered 409: taken by me"), "{error}");
        client.delete("/d").unwrap();
        let error = client.get::<()>("/e").unwrap_err();
        assert!(error.to_string().ends_with("503: plain words"), "{error}");
        assert_eq!(
            server.join().unwrap(),
            [
                "GET /a HTTP/1.1 ",
                "PUT /b HTTP/1.1 [1,2]",
                "POST /c HTTP/1.1 ",
                "DELETE /d HTTP/1.1 ",
                "GET /e HTTP/1.1 "
            ]
        );
        let error = client.get::<()>("/f").unwrap_err();
        assert!(error.is_unreachable());
    }

    #[test]
    fn an_endless_body_is_read_as_it_comes() {
        let (socket, server) =
            serve("stream", &["HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nab"], 1);
        let mut body = Client::new(&socket).stream("/v1/monitor").unwrap();
        let mut bytes = [0; 2];
        body.read_exact(&mut bytes).unwrap();
        assert_eq!(&bytes, b"ab");
        server.join().unwrap();
        assert!(body.read(&mut bytes).is_err(), "the body ended within a chunk");
    }

    #[test]
    fn segments_are_encoded() {
        assert_eq!(encode("pod-name:a/b c"), "pod-name:a%2Fb%20c");
        assert_eq!(encode("ipv6:fd00::1"), "ipv6:fd00::1");
    }
}
