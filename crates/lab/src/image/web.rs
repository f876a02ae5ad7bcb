//! Enough of an HTTP/1.1 server for curl and test clients.
//!
//! Hundreds of these run at once, so there is no runtime: a thread with a small stack per connection.

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};

const STACK_BYTES: usize = 64 * 1024;
/// Longest line of a request's head.
const LINE_LEN_MAX: u64 = 8192;

/// What a client asks.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// Such as `GET`.
    pub method: &'a str,
    /// The target up to the question mark.
    pub path: &'a str,
    /// The target after it.
    pub query: &'a str,
    /// Who asks.
    pub peer: SocketAddr,
}

/// What it is told.
#[derive(Debug)]
pub struct Reply {
    /// Code and reason.
    pub status: &'static str,
    /// Media type of the body.
    pub media_type: &'static str,
    /// The body.
    pub body: String,
}

impl Reply {
    /// Text, in answer to a good request.
    pub fn ok(body: String) -> Self {
        Self::text("200 OK", body)
    }

    /// JSON, in answer to a good request.
    pub fn json(body: String) -> Self {
        Self { media_type: "application/json", ..Self::ok(body) }
    }

    /// There is no such path.
    pub fn not_found() -> Self {
        Self::text("404 Not Found", "404 page not found\n".to_owned())
    }

    /// Text with a status.
    pub fn text(status: &'static str, body: String) -> Self {
        Self { status, media_type: "text/plain; charset=utf-8", body }
    }
}

/// Runs on a thread of its own.
pub fn background(work: impl FnOnce() + Send + 'static) -> io::Result<()> {
    std::thread::Builder::new().stack_size(STACK_BYTES).spawn(work).map(drop)
}

/// Serves a port of all addresses, for ever.
pub fn serve(port: u16, answer: fn(&Request<'_>) -> Reply) -> io::Result<()> {
    // The v6 wildcard serves both families where the kernel has both.
    let listener = TcpListener::bind((IpAddr::from([0_u8; 16]), port))
        .or_else(|_| TcpListener::bind((IpAddr::from([0_u8; 4]), port)))?;
    loop {
        let Ok((stream, peer)) = listener.accept() else { continue };
        let _ = background(move || {
            let _ = serve_connection(&stream, peer, answer);
        });
    }
}

/// Answers requests until the client closes.
fn serve_connection(
    stream: &TcpStream,
    peer: SocketAddr,
    answer: fn(&Request<'_>) -> Reply,
) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut reader = BufReader::with_capacity(4096, stream);
    loop {
        let mut first = String::new();
        if reader.by_ref().take(LINE_LEN_MAX).read_line(&mut first)? == 0 {
            return Ok(());
        }
        let mut words = first.split_ascii_whitespace();
        let (Some(method), Some(target)) = (words.next(), words.next()) else { return Ok(()) };
        let mut close = words.next() != Some("HTTP/1.1");
        let mut body_len = 0_u64;
        loop {
            let mut header = String::new();
            if reader.by_ref().take(LINE_LEN_MAX).read_line(&mut header)? == 0 {
                return Ok(());
            }
            let Some((name, value)) = header.trim_end().split_once(':') else { break };
            match name.to_ascii_lowercase().as_str() {
                "content-length" => body_len = value.trim().parse().unwrap_or(0),
                "connection" => close = value.trim().eq_ignore_ascii_case("close"),
                _ => {}
            }
        }
        io::copy(&mut reader.by_ref().take(body_len), &mut io::sink())?;
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let Reply { status, media_type, body } = answer(&Request { method, path, query, peer });
        let head = format!(
            "HTTP/1.1 {status}\r\nContent-Type: {media_type}\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        let body = if method == "HEAD" { "" } else { &body };
        (&mut &*stream).write_all(format!("{head}{body}").as_bytes())?;
        if close {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_requests_are_answered_over_one_connection() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let answer = |request: &Request<'_>| match request.path {
            "/echo" => Reply::ok(format!("{} {}", request.method, request.query)),
            _ => Reply::not_found(),
        };
        let server = std::thread::spawn(move || {
            let (stream, peer) = listener.accept().unwrap();
            serve_connection(&stream, peer, answer).unwrap();
        });
        let mut client = TcpStream::connect(address).unwrap();
        let request = "GET /echo?msg=hi HTTP/1.1\r\nHost: x\r\n\r\n\
                       POST /nothing HTTP/1.1\r\nContent-Length: 3\r\nConnection: close\r\n\r\nabc";
        client.write_all(request.as_bytes()).unwrap();
        let mut text = String::new();
        client.read_to_string(&mut text).unwrap();
        assert!(text.contains("\r\n\r\nGET msg=hiHTTP/1.1 404"), "{text}");
        server.join().unwrap();
    }
}
