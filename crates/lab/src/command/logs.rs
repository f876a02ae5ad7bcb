//! `cilium lab logs`: what the lab's programs and containers have written.

use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};
use clap::Args;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

use super::{Name, current};
use crate::logs::{end, log_name};
use crate::spec::Paths;

#[derive(Debug, Args)]
pub struct Logs {
    #[command(flatten)]
    name: Name,
    /// The node, or "hub" (which has the operator) or "external"; by default the lab's supervisor.
    node: Option<String>,
    /// A program such as "agent" or "cni", or a container as [NAMESPACE/]POD[/CONTAINER]; by default
    /// the node's agent.
    process: Option<String>,
    /// Go on with what is written from now on.
    #[arg(short, long)]
    follow: bool,
    /// Only so many lines of the end.
    #[arg(long, value_name = "LINES")]
    tail: Option<u64>,
}

/// Prints a log, also of a lab that has crashed.
pub(super) fn logs(args: &Logs) -> Result<ExitCode> {
    let paths = current(args.name.name.as_deref())?;
    let path = find(&paths, args.node.as_deref(), args.process.as_deref())?;
    match show(&path, args.tail, args.follow) {
        // Whoever reads us has read enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(ExitCode::SUCCESS),
        shown => {
            shown.map(|()| ExitCode::SUCCESS).with_context(|| format!("read {}", path.display()))
        }
    }
}

/// The log of a program or container.
fn find(paths: &Paths, node: Option<&str>, process: Option<&str>) -> Result<PathBuf> {
    let log = |name: &str| Some(paths.log(name)).filter(|path| path.is_file());
    let Some(node) = node else {
        return log("supervisor").with_context(|| format!("there is no lab {:?}", paths.name()));
    };
    let candidates = match (node, process) {
        ("hub", None) => vec!["operator".to_owned()],
        (node, None) => vec![format!("agent-{node}"), node.to_owned()],
        (node, Some(process)) => {
            vec![format!("{process}-{node}"), format!("{node}-{process}"), process.to_owned()]
        }
    };
    if let Some(path) = candidates.iter().find_map(|name| log(name)) {
        return Ok(path);
    }
    let known = names(paths);
    if let Some(path) = process.and_then(|process| container(&known, process)) {
        return log(path).context("it has just been removed");
    }
    let what = process.map_or_else(|| node.to_owned(), |process| format!("{process} on {node}"));
    bail!("there is no log of {what}; there are: {}", known.join(", "))
}

/// The logs that there are.
fn names(paths: &Paths) -> Vec<String> {
    let log = paths.log("x");
    let entries = fs::read_dir(log.parent().unwrap_or(&log)).into_iter().flatten().flatten();
    let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    let mut names: Vec<String> =
        names.filter_map(|name| name.strip_suffix(".log").map(str::to_owned)).collect();
    names.retain(|name| !name.ends_with(".previous"));
    names.sort();
    names
}

/// The name of the log of `[NAMESPACE/]POD[/CONTAINER]`.
fn container<'a>(known: &'a [String], text: &str) -> Option<&'a str> {
    let words: Vec<&str> = text.split('/').collect();
    let fits = |name: &str| match words.as_slice() {
        [pod] => name.starts_with(&log_name("default", pod, "")),
        [first, second] => {
            name == log_name("default", first, second)
                || name.starts_with(&log_name(first, second, ""))
        }
        [namespace, pod, container] => name == log_name(namespace, pod, container),
        _ => false,
    };
    known.iter().map(String::as_str).find(|name| fits(name))
}

fn show(path: &Path, lines: Option<u64>, follow: bool) -> io::Result<()> {
    let mut file = File::open(path)?;
    let inotify = Inotify::init(InitFlags::IN_CLOEXEC)?;
    inotify.add_watch(path, AddWatchFlags::IN_MODIFY)?;
    let mut stdout = io::stdout().lock();
    if let Some(lines) = lines {
        let len = file.metadata()?.len();
        stdout.write_all(&end(path, lines, len)?)?;
        file.seek(io::SeekFrom::Start(len))?;
    }
    let mut buffer = vec![0; 64 << 10];
    loop {
        match file.read(&mut buffer)? {
            0 if follow => {
                stdout.flush()?;
                inotify.read_events()?;
            }
            0 => return stdout.flush(),
            len => stdout.write_all(&buffer[..len])?,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn containers_are_found_by_their_names() {
        let known =
            ["agent-node-1", "default_web-1_c", "default_web_c", "shop_web_c", "shop_web_d"];
        let known = known.map(str::to_owned);
        for (text, expected) in [
            ("web", Some("default_web_c")),
            ("web/c", Some("default_web_c")),
            ("shop/web", Some("shop_web_c")),
            ("shop/web/d", Some("shop_web_d")),
            ("shop/web/x", None),
            ("we", None),
        ] {
            assert_eq!(container(&known, text), expected, "{text}");
        }
    }
}
