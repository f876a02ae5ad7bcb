//! Commands beside a container's own process, with their streams at the client.
//!
//! ```text
//!   stdin ──▶ pipe ──▶ process ──▶ pipe ──▶ stdout          with a terminal:
//!                              └─▶ pipe ──▶ stderr    stdin, resize ──▶ pty ──▶ stdout
//!   error ◀── how it ended, a Status
//! ```

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use bytes::{Bytes, BytesMut};
use http::Request;
use hyper::body::Incoming;
use nix::fcntl::OFlag;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::unix::pipe;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::inside::Inside;
use super::upgrade::{self, Link, Transport};
use super::{Ends, OUTPUT_LEN_MAX, Outgoing, PodView, Stream, Streams, query, spdy, websocket};
use crate::apiserver::{ApiError, Reply};
use crate::process::{Exit, PATH, Process, SpawnError, set_window_size};

/// How long a client may take to open its streams.
const STREAMS_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(30);

/// What is spoken.
pub const PROTOCOLS: &upgrade::Known = &[
    (Transport::WebSocket, "v5.channel.k8s.io"),
    (Transport::WebSocket, "v4.channel.k8s.io"),
    (Transport::Spdy, "v4.channel.k8s.io"),
];

/// Answers `pods/exec`.
pub fn serve(
    streams: &Streams,
    pod: &PodView,
    request: Request<Incoming>,
) -> Result<Reply, ApiError> {
    let options = Options::parse(request.uri().query().unwrap_or_default());
    if options.command.is_empty() {
        return Err(ApiError::bad_request(
            "you must specify at least one command for the container",
        ));
    }
    let container = pod.container(options.container.as_deref())?;
    let name = container["name"].as_str().unwrap_or_default();
    let inside = streams.inside(pod, name)?;
    let cwd = container["workingDir"].as_str().map(Into::into);
    let (reply, link) = upgrade::accept(request, PROTOCOLS)?;
    tokio::spawn(async move {
        let Some((channels, _ends)) = connect(link, &options).await else { return };
        let Channels { input, stdout, stderr, error } = channels;
        let status = match start(&inside, &options, cwd) {
            Ok(running) => match running.relay(input, stdout, stderr).await {
                Some(exit) => status_of(exit),
                None => return,
            },
            Err(error) => failed(&format!("error executing command in container: {error}")),
        };
        error.outgoing.send(status.to_string().into()).await;
        error.outgoing.finish().await;
    });
    Ok(reply)
}

// ---------------------------------------------------------------------------------------------
// What the client wants

/// The parameters of exec and attach.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Options {
    pub container: Option<String>,
    pub command: Vec<String>,
    pub stdin: bool,
    pub stdout: bool,
    pub stderr: bool,
    pub tty: bool,
}

impl Options {
    pub fn parse(text: &str) -> Self {
        let mut options = Self::default();
        for (name, value) in query(text) {
            let yes = matches!(value.as_str(), "true" | "1" | "");
            match name.as_str() {
                "container" => options.container = Some(value),
                "command" => options.command.push(value),
                "stdin" => options.stdin = yes,
                "stdout" => options.stdout = yes,
                "stderr" => options.stderr = yes,
                "tty" => options.tty = yes,
                _ => {}
            }
        }
        // A terminal has one output.
        options.stderr &= !options.tty;
        options
    }
}

// ---------------------------------------------------------------------------------------------
// Streams

/// The streams of exec and attach.
#[derive(Debug)]
pub struct Channels {
    pub input: Input,
    pub stdout: Option<Outgoing>,
    pub stderr: Option<Outgoing>,
    pub error: Stream,
}

/// What comes from the client.
#[derive(Debug)]
pub struct Input {
    pub stdin: Option<mpsc::Receiver<Bytes>>,
    pub resize: Option<mpsc::Receiver<Bytes>>,
    /// Cancelled when the client is gone.
    pub gone: CancellationToken,
}

/// Establishes the link with the streams that the options ask for.
pub async fn connect(link: Link, options: &Options) -> Option<(Channels, Ends)> {
    let transport = link.transport;
    let connection = match link.connection().await {
        Ok(connection) => connection,
        Err(error) => {
            tracing::debug!(%error, "the connection was not upgraded");
            return None;
        }
    };
    let mut named: Vec<(String, Stream)> = Vec::new();
    let ends = if transport == Transport::Spdy {
        let (mut accepted, ends) = spdy::serve(connection);
        let wanted = 1 + [options.stdin, options.stdout, options.stderr, options.tty]
            .map(usize::from)
            .iter()
            .sum::<usize>();
        let collect = async {
            while named.len() < wanted {
                let mut opened = accepted.recv().await?;
                let name = opened.headers.remove("streamtype").unwrap_or_default();
                named.push((name, opened.stream));
            }
            Some(())
        };
        tokio::time::timeout(STREAMS_TIMEOUT, collect).await.ok()??;
        // Nothing more is expected; what comes all the same is not waited for.
        drop(accepted);
        ends
    } else {
        let (streams, ends) = websocket::serve(connection, 5).await;
        let names = ["stdin", "stdout", "stderr", "error", "resize"].map(str::to_owned);
        named.extend(names.into_iter().zip(streams));
        ends
    };
    let mut take = |name: &str, wanted: bool| {
        let at = named.iter().position(|(n, _)| n == name)?;
        let (_, stream) = named.swap_remove(at);
        wanted.then_some(stream)
    };
    let input = Input {
        stdin: take("stdin", options.stdin).map(|stream| stream.incoming),
        resize: take("resize", options.tty).map(|stream| stream.incoming),
        gone: ends.gone.clone(),
    };
    let stdout = take("stdout", options.stdout).map(|stream| stream.outgoing);
    let stderr = take("stderr", options.stderr).map(|stream| stream.outgoing);
    let error = take("error", true)?;
    // Clients wait for a first message before they take the connection as established.
    if transport == Transport::WebSocket {
        stdout.as_ref().unwrap_or(&error.outgoing).send(Bytes::new()).await;
    }
    Some((Channels { input, stdout, stderr, error }, ends))
}

// ---------------------------------------------------------------------------------------------
// The process

/// A started command and our ends of its streams.
struct Running {
    process: Process,
    stdin: Option<pipe::Sender>,
    stdout: Option<pipe::Receiver>,
    stderr: Option<pipe::Receiver>,
    /// The terminal, to tell it its size.
    terminal: Option<OwnedFd>,
}

#[derive(Debug, thiserror::Error)]
enum StartError {
    #[error("{0}")]
    Spawn(#[from] SpawnError),
    #[error("make its streams: {0}")]
    Streams(#[from] io::Error),
}

fn start(
    inside: &Inside,
    options: &Options,
    cwd: Option<std::path::PathBuf>,
) -> Result<Running, StartError> {
    let mut command = inside.command();
    command.argv.clone_from(&options.command);
    command.cwd = cwd;
    if !command.env.iter().any(|(name, _)| name == "PATH") {
        command.env.push(("PATH".to_owned(), PATH.to_owned()));
    }
    if options.tty {
        command.env.retain(|(name, _)| name != "TERM");
        command.env.push(("TERM".to_owned(), "xterm".to_owned()));
        let Terminal { ours, theirs } = Terminal::open()?;
        let theirs = Some(theirs.as_fd());
        (command.stdin, command.stdout, command.stderr) = (theirs, theirs, theirs);
        command.terminal = true;
        let process = command.spawn()?;
        return Ok(Running {
            process,
            stdin: options.stdin.then(|| terminal_input(&ours)).transpose()?,
            stdout: Some(terminal_output(&ours)?),
            stderr: None,
            terminal: Some(ours),
        });
    }
    let (stdin, their_stdin) = match options.stdin.then(pipe::pipe).transpose()? {
        Some((ours, theirs)) => (Some(ours), Some(theirs.into_blocking_fd()?)),
        None => (None, None),
    };
    let output = |wanted: bool| -> io::Result<(Option<pipe::Receiver>, Option<OwnedFd>)> {
        let Some((theirs, ours)) = wanted.then(pipe::pipe).transpose()? else {
            return Ok((None, None));
        };
        Ok((Some(ours), Some(theirs.into_blocking_fd()?)))
    };
    let (stdout, their_stdout) = output(options.stdout)?;
    let (stderr, their_stderr) = output(options.stderr)?;
    command.stdin = their_stdin.as_ref().map(AsFd::as_fd);
    command.stdout = their_stdout.as_ref().map(AsFd::as_fd);
    command.stderr = their_stderr.as_ref().map(AsFd::as_fd);
    let process = command.spawn()?;
    Ok(Running { process, stdin, stdout, stderr, terminal: None })
}

/// Both ends of a pseudo terminal.
#[derive(Debug)]
pub struct Terminal {
    pub ours: OwnedFd,
    pub theirs: OwnedFd,
}

impl Terminal {
    pub fn open() -> io::Result<Self> {
        let flags = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
        let ours = nix::pty::posix_openpt(flags | OFlag::O_NONBLOCK)?;
        nix::pty::grantpt(&ours)?;
        nix::pty::unlockpt(&ours)?;
        let path = nix::pty::ptsname_r(&ours)?;
        let theirs = nix::fcntl::open(path.as_str(), flags, nix::sys::stat::Mode::empty())?;
        Ok(Self { ours: ours.as_fd().try_clone_to_owned()?, theirs })
    }
}

/// A terminal reads and writes as a pipe does, and tokio waits for it in the same way.
pub fn terminal_output(terminal: &OwnedFd) -> io::Result<pipe::Receiver> {
    pipe::Receiver::from_owned_fd_unchecked(terminal.try_clone()?)
}

/// The other direction.
pub fn terminal_input(terminal: &OwnedFd) -> io::Result<pipe::Sender> {
    pipe::Sender::from_owned_fd_unchecked(terminal.try_clone()?)
}

impl Running {
    /// Carries bytes until the command has ended; `None` when the client went before.
    async fn relay(
        self,
        input: Input,
        stdout: Option<Outgoing>,
        stderr: Option<Outgoing>,
    ) -> Option<io::Result<Exit>> {
        let Self { process, stdin, stdout: reader, stderr: error_reader, terminal } = self;
        // Also when nobody is interested any more, somebody has to see its end.
        let waiting = tokio::spawn(async move { process.wait().await });
        let ended = CancellationToken::new();
        let exit = async {
            let exit = waiting.await.unwrap_or_else(|error| Err(io::Error::other(error)));
            ended.cancel();
            exit
        };
        let Input { stdin: from_client, resize, gone } = input;
        let inputs = async {
            tokio::join!(feed(from_client, stdin), resizes(resize, terminal.as_ref()));
            std::future::pending::<()>().await;
        };
        let outputs = async {
            tokio::join!(exit, drain(reader, stdout, &ended), drain(error_reader, stderr, &ended)).0
        };
        tokio::select! {
            exit = outputs => Some(exit),
            () = inputs => None,
            // The streams are closed, which commands with a terminal take as its end.
            () = gone.cancelled() => None,
        }
    }
}

/// From the client to the process; then the process sees the end of its input.
pub async fn feed(from: Option<mpsc::Receiver<Bytes>>, to: Option<pipe::Sender>) {
    let (Some(mut from), Some(mut to)) = (from, to) else { return };
    while let Some(data) = from.recv().await {
        if to.write_all(&data).await.is_err() {
            return;
        }
    }
}

/// Tells a terminal the sizes that the client tells.
pub async fn resizes(from: Option<mpsc::Receiver<Bytes>>, terminal: Option<&OwnedFd>) {
    let (Some(mut from), Some(terminal)) = (from, terminal) else { return };
    let mut text = Vec::new();
    while let Some(data) = from.recv().await {
        text.extend_from_slice(&data);
        let (size, rest) = last_size(&text);
        if let Some((columns, rows)) = size
            && let Err(error) = set_window_size(terminal.as_fd(), columns, rows)
        {
            tracing::debug!(%error, "set the size of a terminal");
        }
        text.drain(..rest);
    }
}

/// The last whole size in a text, and where the text goes on.
fn last_size(text: &[u8]) -> (Option<(u16, u16)>, usize) {
    let mut values = serde_json::Deserializer::from_slice(text).into_iter::<Value>();
    let (mut size, mut end) = (None, 0);
    loop {
        match values.next() {
            Some(Ok(value)) => {
                let number = |name: &str| value[name].as_u64().and_then(|n| u16::try_from(n).ok());
                size = number("Width").zip(number("Height")).or(size);
                end = values.byte_offset();
            }
            Some(Err(error)) if error.is_eof() => return (size, end),
            // What is not JSON will not become JSON.
            Some(Err(_)) | None => return (size, text.len()),
        }
    }
}

/// From the process to the client, until nobody can write any more, or the process has ended and
/// everything is read: what it has left in the background does not count.
async fn drain(from: Option<pipe::Receiver>, to: Option<Outgoing>, ended: &CancellationToken) {
    let (Some(mut from), Some(to)) = (from, to) else { return };
    let mut buffer = BytesMut::with_capacity(OUTPUT_LEN_MAX);
    loop {
        buffer.reserve(OUTPUT_LEN_MAX);
        let read = tokio::select! {
            biased;
            // A terminal without users fails to read: that is its end.
            read = from.read_buf(&mut buffer) => read.unwrap_or_default(),
            () = ended.cancelled() => break,
        };
        if read == 0 || !to.send(buffer.split().freeze()).await {
            to.finish().await;
            return;
        }
    }
    let mut rest = [0; 4096];
    // Not through the runtime, which may not have heard of the last bytes yet.
    while let Ok(len @ 1..) = nix::unistd::read(from.as_fd(), &mut rest) {
        if !to.send(Bytes::copy_from_slice(&rest[..len])).await {
            break;
        }
    }
    to.finish().await;
}

// ---------------------------------------------------------------------------------------------
// How it ended

/// The `Status` on the error stream after a command has ended.
fn status_of(exit: io::Result<Exit>) -> Value {
    match exit.map(Exit::code) {
        Ok(0) => succeeded(),
        Ok(code) => json!({
            "metadata": {}, "status": "Failure", "reason": "NonZeroExitCode",
            "message": format!("command terminated with non-zero exit code: exit status {code}"),
            "details": { "causes": [{ "reason": "ExitCode", "message": code.to_string() }] },
        }),
        Err(error) => failed(&format!("error executing command in container: {error}")),
    }
}

pub fn succeeded() -> Value {
    json!({ "metadata": {}, "status": "Success" })
}

fn failed(why: &str) -> Value {
    json!({
        "metadata": {}, "status": "Failure", "reason": "InternalError", "code": 500,
        "message": format!("Internal error occurred: {why}"),
        "details": { "causes": [{ "message": why }] },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_what_the_query_says() {
        let options = Options::parse(
            "command=sh&command=-c&command=a+%3B+b&container=c&stdin=true&stdout=true&stderr=true&tty=true",
        );
        let expected = Options {
            container: Some("c".to_owned()),
            command: ["sh", "-c", "a ; b"].map(str::to_owned).to_vec(),
            stdin: true,
            stdout: true,
            stderr: false,
            tty: true,
        };
        assert_eq!(options, expected);
        assert!(Options::parse("stderr=1&stdout=false").stderr);
    }

    #[test]
    fn sizes_arrive_in_any_pieces() {
        let check =
            |text: &str, expected| assert_eq!(last_size(text.as_bytes()), expected, "{text}");
        check("", (None, 0));
        check(r#"{"Width":80,"#, (None, 0));
        check(r#"{"Width":80,"Height":24}"#, (Some((80, 24)), 24));
        let two = "{\"Width\":80,\"Height\":24}\n{\"Width\":1,\"Height\":2}\n";
        assert_eq!(last_size(two.as_bytes()).0, Some((1, 2)));
        check(r#"{"Width":1,"Height":2}{"Wi"#, (Some((1, 2)), 22));
        check("nonsense", (None, 8));
        check(r#"{"Width":99999,"Height":2}"#, (None, 26));
    }

    #[test]
    fn exits_become_statuses() {
        let status = status_of(Ok(Exit::Code(3)));
        assert_eq!(status["details"]["causes"][0], json!({"reason": "ExitCode", "message": "3"}));
        assert_eq!(status_of(Ok(Exit::Signal(9)))["details"]["causes"][0]["message"], "137");
        assert_eq!(status_of(Ok(Exit::Code(0)))["status"], "Success");
    }

    #[tokio::test]
    async fn output_ends_with_the_process_not_with_its_children() {
        let (theirs, ours) = pipe::pipe().unwrap();
        let ended = CancellationToken::new();
        let (queue, mut messages) = mpsc::channel(9);
        nix::unistd::write(&theirs, b"last words").unwrap();
        ended.cancel();
        // `theirs` stays open, as with something in the background.
        drain(Some(ours), Some(Outgoing { id: 1, queue }), &ended).await;
        let mut all = Vec::new();
        while let Some(super::super::Message::Data { data, .. }) = messages.recv().await {
            all.extend_from_slice(&data);
        }
        assert_eq!(all, b"last words");
        drop(theirs);
    }
}
