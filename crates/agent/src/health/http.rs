//! The HTTP probe: `GET /hello`, and whether the answer is 200.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

/// What is asked for.
pub const PATH: &str = "/hello";
/// The beginning of the answer that is hoped for, but for the minor version.
const HOPED_FOR: &str = "HTTP/1.x 200";

/// Asks once; the time until the answer began.
pub async fn get(address: IpAddr, port: u16, patience: Duration) -> io::Result<Duration> {
    let started = Instant::now();
    let answer = timeout(patience, ask(SocketAddr::new(address, port))).await;
    let answer =
        answer.map_err(|_elapsed| io::Error::new(io::ErrorKind::TimedOut, "no answer"))??;
    if is_ok(&answer) {
        return Ok(started.elapsed());
    }
    let text = String::from_utf8_lossy(&answer).trim().to_owned();
    Err(io::Error::new(io::ErrorKind::InvalidData, format!("the answer is {text:?}, not 200")))
}

async fn ask(address: SocketAddr) -> io::Result<[u8; HOPED_FOR.len()]> {
    let mut stream = TcpStream::connect(address).await?;
    let request = format!("GET {PATH} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = [0; HOPED_FOR.len()];
    stream.read_exact(&mut answer).await?;
    Ok(answer)
}

fn is_ok(answer: &[u8]) -> bool {
    let is_same = |(theirs, ours): (&u8, u8)| *theirs == ours || ours == b'x';
    answer.iter().zip(HOPED_FOR.bytes()).all(is_same)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_200_is_well() {
        assert!(is_ok(b"HTTP/1.1 200") && is_ok(b"HTTP/1.0 200"));
        assert!(!is_ok(b"HTTP/1.1 503") && !is_ok(b"SSH-2.0-Open"));
    }

    #[tokio::test]
    async fn a_responder_answers() {
        let listener = crate::health::responder::listen(0).unwrap();
        let port = listener.local_addr().unwrap().port();
        let serving = tokio::spawn(crate::health::responder::serve(listener));
        let patience = Duration::from_secs(10);
        get(IpAddr::from([127, 0, 0, 1]), port, patience).await.unwrap();
        serving.abort();
        let _ = serving.await;
        let error = get(IpAddr::from([127, 0, 0, 1]), port, patience).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
    }
}
