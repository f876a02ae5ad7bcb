//! `cilium lab pause`, `resume`, `cut`, `mend`, `kill`: what goes wrong in clusters, on demand.

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result, anyhow, bail};
use clap::Args;
use kernel::cgroup::Cgroup;
use nix::sys::signal::{Signal, kill as send};
use nix::unistd::Pid;

use super::{Name, locate, must_be_root, running};
use crate::control::{Request, ask};
use crate::spec::Paths;

/// Cgroups of a node that are not programs.
const NOT_PROGRAMS: [&str; 3] = ["pods", "exec-", "cni-"];

#[derive(Debug, Args)]
pub struct Node {
    #[command(flatten)]
    name: Name,
    /// The node.
    node: String,
}

#[derive(Debug, Args)]
pub struct Pair {
    #[command(flatten)]
    name: Name,
    /// One end of the wire: a node, or "external".
    one: String,
    /// The other end.
    other: String,
}

#[derive(Debug, Args)]
pub struct Kill {
    #[command(flatten)]
    name: Name,
    /// The node, or "hub" (which has the operator) or "external".
    node: String,
    /// A program such as "agent", or a container as [NAMESPACE/]POD[/CONTAINER].
    process: String,
    /// The signal, by name or number.
    #[arg(short, long, default_value = "KILL", value_parser = signal)]
    signal: Signal,
}

fn signal(text: &str) -> Result<Signal, String> {
    let name = text.to_uppercase();
    let name = name.strip_prefix("SIG").unwrap_or(&name);
    let number = name.parse::<i32>().ok().and_then(|number| Signal::try_from(number).ok());
    number.or_else(|| format!("SIG{name}").parse().ok()).ok_or_else(|| {
        format!("{text:?} is not a signal: use a name such as TERM or a number such as 15")
    })
}

pub(super) fn pause(args: &Node, paused: bool) -> Result<ExitCode> {
    let paths = running(args.name.name.as_deref())?;
    let request = Request::Pause { node: args.node.clone(), paused };
    ask(&paths.control(), &request, |_| {})?;
    match paused {
        true => eprintln!(
            "{0} stands still: its agent, its pods and its heartbeat; `cilium lab resume {0}` lets it go on",
            args.node
        ),
        false => eprintln!("{} goes on", args.node),
    }
    Ok(ExitCode::SUCCESS)
}

pub(super) fn cut(args: &Pair, cut: bool) -> Result<ExitCode> {
    let paths = running(args.name.name.as_deref())?;
    let (one, other) = (&args.one, &args.other);
    let request = Request::Cut { nodes: (one.clone(), other.clone()), cut };
    ask(&paths.control(), &request, |_| {})?;
    match cut {
        true => eprintln!(
            "nothing gets through between {one} and {other}; `cilium lab mend {one} {other}` mends the wire"
        ),
        false => eprintln!("{one} and {other} reach each other again"),
    }
    Ok(ExitCode::SUCCESS)
}

pub(super) fn kill(args: &Kill) -> Result<ExitCode> {
    must_be_root("kill a lab's processes")?;
    let paths = running(args.name.name.as_deref())?;
    let group = Cgroup::at(process(&paths, &args.node, &args.process)?);
    let what = format!("{} of {}", args.process, args.node);
    let pids = group.processes().with_context(|| format!("find {what}"))?;
    if pids.is_empty() {
        bail!("{what} does not run now");
    }
    for pid in &pids {
        match send(Pid::from_raw(i32::try_from(*pid)?), args.signal) {
            // It has just ended by itself.
            Ok(()) | Err(nix::Error::ESRCH) => {}
            Err(errno) => return Err(errno).context(format!("send {} to {pid}", args.signal)),
        }
    }
    let pids: Vec<String> = pids.iter().map(u32::to_string).collect();
    eprintln!("sent {} to {what} (pid {})", args.signal, pids.join(", "));
    Ok(ExitCode::SUCCESS)
}

/// The cgroup of a program or container of a node.
fn process(paths: &Paths, node: &str, process: &str) -> Result<PathBuf> {
    let place = Cgroup::root()?.path().join(paths.cgroup()).join(node);
    let programs = programs(paths, node)?;
    if programs.iter().any(|program| program == process) {
        return Ok(place.join(process));
    }
    let found = locate(paths, process).map_err(|error| {
        anyhow!(
            "{node} has no program {process:?}, but: {}; nor is it a pod: {error:#}",
            programs.join(", ")
        )
    })?;
    if !found.cgroup.starts_with(&place) {
        let other = found.cgroup.strip_prefix(place.parent().unwrap_or(&place));
        let other = other.ok().and_then(|path| path.iter().next()).unwrap_or_default();
        bail!("{process} does not run on {node}, but on {}", other.display());
    }
    Ok(found.cgroup)
}

/// The programs that run on a node beside its pods.
fn programs(paths: &Paths, node: &str) -> Result<Vec<String>> {
    let lab = Cgroup::root()?.path().join(paths.cgroup());
    let below = |dir: PathBuf| -> Vec<String> {
        let entries = fs::read_dir(dir).into_iter().flatten().flatten();
        let dirs = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
        let mut names: Vec<String> =
            dirs.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    };
    let nodes: Vec<String> = below(lab.clone()).into_iter().filter(|n| n != "supervisor").collect();
    if !nodes.iter().any(|known| known == node) {
        bail!("lab {:?} has no node {node:?}, but: {}", paths.name(), nodes.join(", "));
    }
    let mut names = below(lab.join(node));
    names.retain(|name| !NOT_PROGRAMS.iter().any(|other| name.starts_with(other)));
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_have_names_and_numbers() {
        for text in ["TERM", "sigterm", "SIGTERM", "15"] {
            assert_eq!(signal(text), Ok(Signal::SIGTERM), "{text}");
        }
        assert!(signal("LOUD").unwrap_err().contains("such as TERM"));
        assert!(signal("99").is_err());
    }
}
