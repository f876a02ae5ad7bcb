//! `cilium-cni`: the CNI plugin. A container runtime runs it for each pod that comes and goes.
//!
//! It does what must be done in the pod's network namespace and leaves every decision to the
//! agent, which it asks over the agent's unix socket. One short process per command, so no async
//! runtime, no logging framework, and nothing is read that the command does not need.
//!
//! ```text
//!   environment, stdin ─► request ─► add, del, check, gc, status ─► response or error on stdout
//!                                      │        │
//!                                      │        └─ agent (REST)
//!                                      └─ pod, netlink, netns
//! ```
//!
//! The specification is <https://www.cni.dev/docs/spec/>, version 1.1.0; older versions are
//! answered in their own shape.

mod add;
mod agent;
mod attachment;
mod check;
mod del;
mod error;
mod gc;
mod log;
mod pod;
mod request;
mod response;
mod status;

use std::io::{Read, Write};
use std::process::ExitCode;

use crate::agent::Paths;
use crate::error::Error;
use crate::request::{Command, Request};

fn main() -> ExitCode {
    let mut stdin = Vec::new();
    let read = std::io::stdin().take(STDIN_LEN_MAX).read_to_end(&mut stdin);
    let outcome = read
        .map_err(|error| Error::io("cannot read the network configuration on stdin", error))
        .and_then(|_| Request::parse(|name| std::env::var(name).ok(), &stdin));
    let (version, outcome) = match outcome {
        Ok(request) => (request.version.as_str(), log::logged(&request, run)),
        Err(error) => (request::VERSIONS[request::VERSIONS.len() - 1], Err(error)),
    };
    let (text, code) = match outcome {
        Ok(None) => return ExitCode::SUCCESS,
        Ok(Some(response)) => (response.to_string(), ExitCode::SUCCESS),
        Err(error) => (error.to_json(version), ExitCode::FAILURE),
    };
    match writeln!(std::io::stdout(), "{text}") {
        Ok(()) => code,
        Err(_) => ExitCode::FAILURE,
    }
}

/// A configuration is some hundred bytes; a list of attachments some hundred kilobytes.
const STDIN_LEN_MAX: u64 = 16 << 20;

/// Only ADD and VERSION answer anything when all is well.
fn run(request: &Request) -> Result<Option<serde_json::Value>, Error> {
    let paths = Paths::from_environment();
    match &request.command {
        Command::Add { sandbox, pod } => {
            add::run(&paths, sandbox, pod).map(|wiring| Some(wiring.to_result(request.version)))
        }
        Command::Del { attachment } => del::run(&paths, attachment).map(|()| None),
        Command::Check { sandbox } => check::run(&paths, sandbox, request).map(|()| None),
        Command::Gc => gc::run(&paths, request).map(|()| None),
        Command::Status => status::run(&paths).map(|()| None),
        Command::Version => Ok(Some(response::version(request.version))),
    }
}
