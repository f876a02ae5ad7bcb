//! An agent that keeps its REST contract and nothing else: it gives addresses, remembers
//! endpoints, writes down what it was asked, and fails where a test says so.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Read, Write};
use std::ops::ControlFlow;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use serde_json::{Value, json};

/// What goes wrong, and where.
#[derive(Clone, Debug)]
pub(crate) enum Fault {
    /// Requests that begin with this method and path are answered with a status and a message.
    Refuse(&'static str, u16, &'static str),
    /// The agent does the request and dies before it answers.
    DieAfter(&'static str),
    /// The agent does the request and never answers; it goes on when the client has gone.
    Hang(&'static str),
    /// The agent wants an MTU that IPv6 does not work with (RFC 8200 section 5).
    SmallMtu,
}

#[derive(Debug, Default)]
pub(crate) struct State {
    /// Method and path of each request, in order.
    pub(crate) calls: Vec<String>,
    pub(crate) addresses: BTreeSet<String>,
    /// By attachment id, with the body of the PUT.
    pub(crate) endpoints: BTreeMap<String, Value>,
    pub(crate) fault: Option<Fault>,
    /// What `/healthz` says of the agent: the state and the words.
    pub(crate) health: Option<(&'static str, &'static str)>,
    pub(crate) ipam_status: Option<&'static str>,
    pub(crate) endpoint_health: Option<&'static str>,
    next_host: u8,
}

pub(crate) struct FakeAgent {
    pub(crate) state: Arc<Mutex<State>>,
    socket: PathBuf,
    server: Option<JoinHandle<()>>,
    hung: Receiver<()>,
}

impl FakeAgent {
    pub(crate) fn start(socket: &Path) -> Self {
        let _ = std::fs::remove_file(socket);
        let listener = UnixListener::bind(socket).unwrap();
        let state = Arc::new(Mutex::new(State { next_host: 10, ..State::default() }));
        let shared = Arc::clone(&state);
        let (sender, hung) = mpsc::channel();
        let server = std::thread::spawn(move || serve(listener, &shared, &sender));
        Self { state, socket: socket.to_owned(), server: Some(server), hung }
    }

    /// Stops listening, as an agent that is restarted does; its state stays readable.
    pub(crate) fn stop(&mut self) {
        let Some(server) = self.server.take() else { return };
        // A request that no client makes ends the loop; a dead agent has ended it already.
        if let Ok(mut stream) = UnixStream::connect(&self.socket) {
            let _ = stream.write_all(b"STOP / HTTP/1.1\r\n\r\n");
        }
        server.join().unwrap();
        let _ = std::fs::remove_file(&self.socket);
    }

    /// Waits until a request hangs by [`Fault::Hang`].
    pub(crate) fn wait_until_hung(&self) {
        self.hung.recv_timeout(Duration::from_secs(30)).unwrap();
    }

    pub(crate) fn with<T>(&self, f: impl FnOnce(&mut State) -> T) -> T {
        f(&mut self.state.lock().unwrap())
    }
}

impl Drop for FakeAgent {
    fn drop(&mut self) {
        self.stop();
    }
}

/// One connection at a time: a plugin has one, and several plugins queue up.
fn serve(listener: UnixListener, state: &Mutex<State>, hung: &Sender<()>) {
    while let Ok((stream, _)) = listener.accept() {
        if serve_connection(&stream, state, hung).is_break() {
            // Nobody listens before the client hears of it: its next connection is refused, never
            // taken and reset.
            drop(listener);
            return;
        }
    }
}

/// Whether the agent goes on.
fn serve_connection(
    stream: &UnixStream,
    state: &Mutex<State>,
    hung: &Sender<()>,
) -> ControlFlow<()> {
    let mut writer = stream;
    let mut reader = BufReader::new(stream);
    while let Some((method, path, body)) = read_request(&mut reader) {
        if method == "STOP" {
            return ControlFlow::Break(());
        }
        let mut state = state.lock().unwrap();
        let call = format!("{method} {path}");
        state.calls.push(call.clone());
        let (status, answer) = match &state.fault {
            Some(Fault::Refuse(prefix, status, message)) if call.starts_with(prefix) => {
                (*status, json!(message))
            }
            Some(Fault::DieAfter(prefix)) if call.starts_with(prefix) => {
                state.answer(&method, &path, &body);
                return ControlFlow::Break(());
            }
            Some(Fault::Hang(prefix)) if call.starts_with(prefix) => {
                state.answer(&method, &path, &body);
                drop(state);
                let _ = hung.send(());
                let _ = reader.read(&mut [0]);
                return ControlFlow::Continue(());
            }
            _ => state.answer(&method, &path, &body),
        };
        let text = answer.to_string();
        let response = format!(
            "HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{text}",
            text.len()
        );
        if writer.write_all(response.as_bytes()).is_err() {
            break;
        }
    }
    ControlFlow::Continue(())
}

fn read_request(reader: &mut BufReader<&UnixStream>) -> Option<(String, String, Value)> {
    let mut line = String::new();
    reader.read_line(&mut line).ok()?;
    let mut words = line.split_whitespace();
    let (method, path) = (words.next()?.to_owned(), words.next()?.to_owned());
    let mut len = 0;
    loop {
        let mut header = String::new();
        reader.read_line(&mut header).ok()?;
        if header.trim().is_empty() {
            break;
        }
        if let Some(value) = header.to_ascii_lowercase().strip_prefix("content-length:") {
            len = value.trim().parse().unwrap();
        }
    }
    let mut body = vec![0; len];
    reader.read_exact(&mut body).ok()?;
    Some((method, decode(&path), serde_json::from_slice(&body).unwrap_or(Value::Null)))
}

/// Undoes percent-encoding, so that calls read as they are meant.
fn decode(path: &str) -> String {
    let mut out = String::new();
    let mut rest = path;
    while let Some((before, after)) = rest.split_once('%') {
        out.push_str(before);
        out.push(char::from(u8::from_str_radix(&after[..2], 16).unwrap()));
        rest = &after[2..];
    }
    out + rest
}

const NOT_FOUND: (u16, Value) = (404, Value::Null);

impl State {
    fn answer(&mut self, method: &str, path: &str, body: &Value) -> (u16, Value) {
        let (path, _query) = path.split_once('?').unwrap_or((path, ""));
        match (method, path.trim_start_matches("/v1")) {
            ("GET", "/config") => {
                let mtu = if matches!(self.fault, Some(Fault::SmallMtu)) { 1000 } else { 1500 };
                let status = json!({
                    "addressing": gateways(), "deviceMTU": mtu, "routeMTU": mtu - 50,
                    "datapathMode": "veth", "ipam-mode": "cluster-pool",
                });
                (200, json!({ "status": status }))
            }
            ("GET", "/healthz") => {
                let (state, msg) = self.health.unwrap_or(("Ok", ""));
                let ipam = self.ipam_status.unwrap_or("IPv4: 3/254 allocated from 10.9.0.0/24");
                (200, json!({"cilium": {"state": state, "msg": msg}, "ipam": {"status": ipam}}))
            }
            ("POST", "/ipam") => {
                let ipv4 = format!("10.9.0.{}", self.next_host);
                let ipv6 = format!("fd00:9::{}", self.next_host);
                self.next_host += 1;
                self.addresses.extend([ipv4.clone(), ipv6.clone()]);
                let address = json!({"ipv4": ipv4, "ipv6": ipv6});
                (201, json!({"address": address, "host-addressing": gateways()}))
            }
            ("GET", "/endpoint") => {
                (200, self.endpoints.iter().map(|(id, body)| endpoint(id, body)).collect())
            }
            (_, path) => match path.strip_prefix("/ipam/") {
                Some(address) if method == "DELETE" => {
                    if self.addresses.remove(address) {
                        (200, Value::Null)
                    } else {
                        NOT_FOUND
                    }
                }
                _ => match path.strip_prefix("/endpoint/cni-attachment-id:") {
                    Some(id) => self.answer_endpoint(method, id, body),
                    None => NOT_FOUND,
                },
            },
        }
    }

    fn answer_endpoint(&mut self, method: &str, id: &str, body: &Value) -> (u16, Value) {
        match (method, id.strip_suffix("/healthz").unwrap_or(id)) {
            ("PUT", id) => {
                self.endpoints.insert(id.to_owned(), body.clone());
                (201, endpoint(id, body))
            }
            ("DELETE", id) => match self.endpoints.remove(id) {
                Some(body) => {
                    for family in ["ipv4", "ipv6"] {
                        self.addresses.remove(body["addressing"][family].as_str().unwrap_or(""));
                    }
                    (200, json!(0))
                }
                None => NOT_FOUND,
            },
            ("GET", known) => match self.endpoints.get(known) {
                Some(_) if id.ends_with("/healthz") => {
                    let health = self.endpoint_health.unwrap_or("OK");
                    (
                        200,
                        json!({"bpf": health, "policy": "OK", "connected": true, "overallHealth": health}),
                    )
                }
                Some(body) => (200, endpoint(known, body)),
                None => NOT_FOUND,
            },
            _ => NOT_FOUND,
        }
    }
}

fn gateways() -> Value {
    let element = |ip: &str| json!({"enabled": true, "ip": ip});
    json!({"ipv4": element("10.9.0.1"), "ipv6": element("fd00:9::1")})
}

fn endpoint(id: &str, body: &Value) -> Value {
    json!({
        "id": 7,
        "status": {
            "state": "ready",
            "external-identifiers": {"cni-attachment-id": id, "container-id": body["container-id"]},
            "networking": {
                "addressing": [body["addressing"]],
                "interface-name": body["interface-name"],
                "interface-index": body["interface-index"],
                "mac": body["mac"],
                "host-mac": body["host-mac"],
            },
        },
    })
}
