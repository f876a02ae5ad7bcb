//! Which protocol a client wants instead of HTTP, and the answer to it.

use http::header::{
    CONNECTION, HeaderName, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL,
    UPGRADE,
};
use http::{HeaderMap, Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use crate::apiserver::{ApiError, Reply, full};

const STREAM_PROTOCOL: HeaderName = HeaderName::from_static("x-stream-protocol-version");

/// A connection that is no longer HTTP.
pub type Upgraded = TokioIo<hyper::upgrade::Upgraded>;

/// How a client talks once the connection is upgraded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// Numbered messages in a WebSocket.
    WebSocket,
    /// SPDY/3.1.
    Spdy,
    /// SPDY/3.1 in the messages of a WebSocket.
    Tunnel,
}

/// What can be agreed upon: the transport and the name of the protocol on it, best first.
pub type Known = [(Transport, &'static str)];

/// The connection to come.
#[derive(Debug)]
pub struct Link {
    /// What was agreed.
    pub transport: Transport,
    upgrade: OnUpgrade,
}

impl Link {
    /// Waits until the answer is sent and the connection is ours.
    pub async fn connection(self) -> Result<Upgraded, hyper::Error> {
        self.upgrade.await.map(TokioIo::new)
    }
}

/// Agrees with the client; the answer must be returned for the link to be established.
pub fn accept(mut request: Request<Incoming>, known: &Known) -> Result<(Reply, Link), ApiError> {
    let Agreed { transport, protocol, upgrade } = agree(request.headers(), known)?;
    let mut response = Response::builder()
        .status(StatusCode::SWITCHING_PROTOCOLS)
        .header(CONNECTION, "Upgrade")
        .header(UPGRADE, upgrade);
    if transport == Transport::Spdy {
        response = response.header(STREAM_PROTOCOL, protocol);
    } else {
        let key = request.headers().get(SEC_WEBSOCKET_KEY);
        let key = key.ok_or_else(|| ApiError::bad_request("Sec-WebSocket-Key is missing"))?;
        response = response
            .header(SEC_WEBSOCKET_ACCEPT, derive_accept_key(key.as_bytes()))
            .header(SEC_WEBSOCKET_PROTOCOL, protocol);
    }
    let reply = response.body(full("")).map_err(|error| ApiError::internal(error.to_string()))?;
    Ok((reply, Link { transport, upgrade: hyper::upgrade::on(&mut request) }))
}

#[derive(Debug)]
struct Agreed {
    transport: Transport,
    protocol: &'static str,
    upgrade: &'static str,
}

fn agree(headers: &HeaderMap, known: &Known) -> Result<Agreed, ApiError> {
    let wanted = words(headers, &UPGRADE);
    let is = |name: &str| wanted.iter().any(|word| word.eq_ignore_ascii_case(name));
    let (web_socket, upgrade, header) = match () {
        () if is("websocket") => (true, "websocket", SEC_WEBSOCKET_PROTOCOL),
        () if is("SPDY/3.1") => (false, "SPDY/3.1", STREAM_PROTOCOL),
        () => {
            return Err(ApiError::bad_request(
                "an upgrade of the connection is needed: to a WebSocket or to SPDY/3.1",
            ));
        }
    };
    let offered = words(headers, &header);
    let mut fitting =
        known.iter().filter(|(transport, _)| (*transport != Transport::Spdy) == web_socket);
    let found = fitting.clone().find(|(_, name)| offered.contains(name));
    if let Some((transport, protocol)) = found {
        return Ok(Agreed { transport: *transport, protocol, upgrade });
    }
    let names: Vec<&str> = fitting.by_ref().map(|(_, name)| *name).collect();
    Err(ApiError::bad_request(format!(
        "{header} offers none of the protocols that are served, but {offered:?}: {}",
        names.join(", ")
    )))
}

/// The values of a header, be they in one line or in several.
fn words<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Vec<&'a str> {
    let lines = headers.get_all(name).iter().filter_map(|line| line.to_str().ok());
    lines.flat_map(|line| line.split(',')).map(str::trim).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const KNOWN: &Known = &[
        (Transport::WebSocket, "v5"),
        (Transport::WebSocket, "v4"),
        (Transport::Tunnel, "SPDY/3.1+v1"),
        (Transport::Spdy, "v4"),
    ];

    fn check(lines: &[(&'static str, &'static str)], expected: Result<(Transport, &str), &str>) {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(*name, http::HeaderValue::from_static(value));
        }
        let got = agree(&headers, KNOWN).map_err(|error| error.to_string());
        match (got, expected) {
            (Ok(got), Ok(expected)) => assert_eq!((got.transport, got.protocol), expected),
            (Err(got), Err(expected)) => assert!(got.contains(expected), "{got}"),
            (got, expected) => panic!("{got:?}, not {expected:?}"),
        }
    }

    #[test]
    fn the_best_common_protocol_is_taken() {
        let web_socket = ("upgrade", "websocket");
        let name = "sec-websocket-protocol";
        check(&[web_socket, (name, "v4, v5")], Ok((Transport::WebSocket, "v5")));
        check(&[web_socket, (name, "v3"), (name, "v4")], Ok((Transport::WebSocket, "v4")));
        check(&[web_socket, (name, "SPDY/3.1+v1")], Ok((Transport::Tunnel, "SPDY/3.1+v1")));
        check(&[web_socket, (name, "v1")], Err("v5, v4, SPDY/3.1+v1"));
        check(&[web_socket], Err("offers none"));
        let spdy = ("upgrade", "SPDY/3.1");
        let name = "x-stream-protocol-version";
        check(&[spdy, (name, "v4"), (name, "v3")], Ok((Transport::Spdy, "v4")));
        check(&[spdy, (name, "v5")], Err("are served"));
        check(&[("upgrade", "h2c")], Err("SPDY/3.1"));
        check(&[], Err("an upgrade of the connection is needed"));
    }
}
