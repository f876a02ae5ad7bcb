//! `kubectl attach`: the streams of a container's own process.
//!
//! ```text
//!   client ── stdin, resize ──▶ Console ──▶ pipe or pty ──▶ process
//!   client ◀── stdout ──────── log file ◀──────────────────┘
//! ```
//!
//! What a container prints goes to its log, and from there to whoever is attached: its stdout and
//! stderr cannot be told apart any more. Input needs `stdin: true`, as everywhere.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use http::Request;
use hyper::body::Incoming;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::unix::pipe;
use tokio::sync::mpsc;

use super::exec::{self, Channels, Input, Options, Terminal};
use super::{OUTPUT_LEN_MAX, PodView, Streams, upgrade};
use crate::apiserver::{ApiError, Reply};
use crate::logs::Follower;

/// Answers `pods/attach`.
pub fn serve(
    streams: &Streams,
    pod: &PodView,
    request: Request<Incoming>,
) -> Result<Reply, ApiError> {
    let options = Options::parse(request.uri().query().unwrap_or_default());
    let container = pod.container(options.container.as_deref())?;
    let name = container["name"].as_str().unwrap_or_default();
    // Only to know that it runs.
    streams.inside(pod, name)?;
    let cgroup = streams.cgroup(pod, name)?;
    let console = streams.consoles.find(&cgroup);
    let wants = |field: &str| container[field].as_bool().unwrap_or_default();
    if options.stdin && console.as_ref().is_none_or(|console| !console.takes_input) {
        return Err(ApiError::bad_request(format!(
            "container {name} takes no input: its specification does not say \"stdin: true\""
        )));
    }
    if options.tty && !wants("tty") {
        return Err(ApiError::bad_request(format!("container {name} has no terminal")));
    }
    let log = streams.log(pod, name);
    let follower = Follower::open(&log, &cgroup, true)
        .map_err(|error| ApiError::internal(format!("read {}: {error}", log.display())))?;
    let once = wants("stdinOnce");
    let (reply, link) = upgrade::accept(request, exec::PROTOCOLS)?;
    tokio::spawn(async move {
        let Some((channels, _ends)) = exec::connect(link, &options).await else { return };
        let Channels { input: Input { stdin, resize, gone }, stdout, stderr, error } = channels;
        let console = console.as_deref();
        let output = async {
            let mut follower = follower;
            // A client without stdout has nothing to look at, but waits for the end all the same.
            while let Some(data) = follower.next().await {
                if let Some(stdout) = &stdout
                    && !stdout.send(data).await
                {
                    return;
                }
            }
        };
        let inputs = async {
            let terminal = console.and_then(|console| console.terminal.as_ref());
            tokio::join!(exec::resizes(resize, terminal), async {
                if let (Some(console), Some(from)) = (console, stdin) {
                    console.feed(from, once).await;
                }
            });
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = output => {}
            () = inputs => {}
            () = gone.cancelled() => {
                if let (true, true, Some(console)) = (once, options.stdin, console) {
                    console.close_input().await;
                }
                return;
            }
        }
        for output in [stdout, stderr].into_iter().flatten() {
            output.finish().await;
        }
        error.outgoing.send(exec::succeeded().to_string().into()).await;
        error.outgoing.finish().await;
    });
    Ok(reply)
}

// ---------------------------------------------------------------------------------------------
// Containers that can be typed into

/// The consoles of a lab's containers, by cgroup.
#[derive(Debug, Default)]
pub struct Consoles(Mutex<HashMap<PathBuf, Arc<Console>>>);

impl Consoles {
    /// Makes a console for a container that is about to start, if it is to have one. What is
    /// printed to a terminal is copied to the log.
    pub fn open(
        &self,
        cgroup: &Path,
        (stdin, tty): (bool, bool),
        log: &File,
    ) -> io::Result<Option<TheirEnds>> {
        self.all().remove(cgroup);
        let (console, ends) = match (stdin, tty) {
            (false, false) => return Ok(None),
            (true, false) => {
                let (ours, theirs) = pipe::pipe()?;
                let console = Console::new(None, Some(ours));
                (console, TheirEnds { stdin: theirs.into_blocking_fd()?, terminal: false })
            }
            (stdin, true) => {
                let Terminal { ours, theirs } = Terminal::open()?;
                let input = stdin.then(|| exec::terminal_input(&ours)).transpose()?;
                tokio::spawn(copy(exec::terminal_output(&ours)?, log.try_clone()?));
                let console = Console::new(Some(ours), input);
                (console, TheirEnds { stdin: theirs, terminal: true })
            }
        };
        self.all().insert(cgroup.to_owned(), Arc::new(console));
        Ok(Some(ends))
    }

    /// Forgets the console of a container that has ended.
    pub fn close(&self, cgroup: &Path) {
        self.all().remove(cgroup);
    }

    fn find(&self, cgroup: &Path) -> Option<Arc<Console>> {
        self.all().get(cgroup).cloned()
    }

    fn all(&self) -> MutexGuard<'_, HashMap<PathBuf, Arc<Console>>> {
        // Every critical section is a single operation, so a panic leaves no half-done state.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the container's process gets.
#[derive(Debug)]
pub struct TheirEnds {
    /// Its standard input; with a terminal also its outputs.
    pub stdin: OwnedFd,
    /// Whether it is a terminal.
    pub terminal: bool,
}

/// Our ends of a container's streams.
#[derive(Debug)]
pub struct Console {
    terminal: Option<OwnedFd>,
    takes_input: bool,
    input: tokio::sync::Mutex<Option<pipe::Sender>>,
}

impl Console {
    fn new(terminal: Option<OwnedFd>, input: Option<pipe::Sender>) -> Self {
        Self { terminal, takes_input: input.is_some(), input: tokio::sync::Mutex::new(input) }
    }

    /// From a client to the container. Who comes later can go on, unless the container takes
    /// input `once`.
    async fn feed(&self, mut from: mpsc::Receiver<Bytes>, once: bool) {
        while let Some(data) = from.recv().await {
            let mut input = self.input.lock().await;
            let Some(to) = input.as_mut() else { return };
            if to.write_all(&data).await.is_err() {
                return;
            }
        }
        if once {
            self.close_input().await;
        }
    }

    async fn close_input(&self) {
        *self.input.lock().await = None;
    }
}

/// Until the last program has left the terminal.
async fn copy(mut from: pipe::Receiver, mut to: File) {
    let mut buffer = vec![0; OUTPUT_LEN_MAX];
    while let Ok(len @ 1..) = from.read(&mut buffer).await {
        if let Err(error) = to.write_all(&buffer[..len]) {
            return tracing::warn!(%error, "write a container's log");
        }
    }
}

impl TheirEnds {
    /// Puts the ends in place.
    pub fn connect<'a>(&'a self, command: &mut crate::process::Command<'a>) {
        let end = Some(self.stdin.as_fd());
        command.stdin = end;
        if self.terminal {
            (command.stdout, command.stderr) = (end, end);
            command.terminal = true;
        }
    }
}
