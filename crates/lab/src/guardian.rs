//! The process above the supervisor: starts it, and starts it again when it dies.
//!
//! ```text
//!   guardian ── supervisor ── agents, operator, containers, …
//!      └─ what a dead supervisor has left: goes on, is reaped here, is taken over by the next supervisor
//! ```
//!
//! It does nothing else, so that there is nothing that it could die of. Nobody but a parent learns how a process has
//! ended; those who have taken over a process ask here, by a file ([`ask`]).

use std::fs::{self, File, OpenOptions};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow};
use nix::sys::wait::{WaitStatus, wait};
use tracing::{info, warn};

use crate::process::{Command, Exit, PATH};
use crate::spec::{Paths, Spec};

/// Pause before a supervisor is started again that has died young.
const PAUSE: Duration = Duration::from_secs(1);
/// A supervisor that has lived longer than this is started again at once.
const YOUNG: Duration = Duration::from_secs(10);

/// Guards a lab until its supervisor cannot be started, or it is killed.
pub fn run(spec: &Spec) -> Result<()> {
    let paths = Paths::new(&spec.name);
    let lock = OpenOptions::new().create(true).truncate(false).write(true).open(paths.lock())?;
    let _lock = nix::fcntl::Flock::lock(lock, nix::fcntl::FlockArg::LockExclusiveNonblock)
        .map_err(|(_, errno)| anyhow!("lock {}: {errno}", paths.lock().display()))?;
    nix::sys::prctl::set_child_subreaper(true).context("become the parent of orphans")?;
    fs::create_dir_all(paths.exits())?;
    let mut supervisor = start(spec)?;
    let mut began = Instant::now();
    // The launcher must not wait for us when the supervisor has left it.
    let null = File::options().write(true).open("/dev/null")?;
    nix::unistd::dup2_stdout(&null).context("close standard output")?;
    loop {
        let (pid, exit) = match wait().context("wait for processes")? {
            WaitStatus::Exited(pid, code) => (pid.as_raw(), Exit::Code(code)),
            WaitStatus::Signaled(pid, signal, _) => (pid.as_raw(), Exit::Signal(signal as i32)),
            _ => continue,
        };
        if pid != supervisor {
            answer(&paths.exits(), pid, exit);
            continue;
        }
        if !paths.is_up().exists() {
            // It has never run, and has said why.
            return Err(anyhow!("the supervisor has ended before the lab was up: {exit}"));
        }
        warn!("the supervisor has ended: {exit}; starting it again");
        if began.elapsed() < YOUNG {
            std::thread::sleep(PAUSE);
        }
        began = Instant::now();
        supervisor = start(spec)?;
    }
}

fn start(spec: &Spec) -> Result<i32> {
    let own = std::env::current_exe().context("find this program")?;
    let mut env = vec![("PATH".to_owned(), PATH.to_owned())];
    for name in ["RUST_LOG", "RUST_BACKTRACE"] {
        env.extend(std::env::var(name).ok().map(|value| (name.to_owned(), value)));
    }
    let (stdout, stderr) = (std::io::stdout(), std::io::stderr());
    let words = ["lab", "supervise", "--guarded"].map(str::to_owned);
    let argv = [own.display().to_string()].into_iter().chain(words);
    let command = Command {
        argv: argv.chain([serde_json::to_string(spec)?]).collect(),
        env,
        stdout: Some(stdout.as_fd()),
        stderr: Some(stderr.as_fd()),
        ..Command::default()
    };
    let spawned = command.spawn_raw().context("start the supervisor")?;
    info!(pid = spawned.pid, "started the supervisor");
    Ok(spawned.pid)
}

/// Tells those who have asked how a process has ended.
fn answer(exits: &Path, pid: i32, exit: Exit) {
    let path = exits.join(pid.to_string());
    if path.exists() {
        let text = match exit {
            Exit::Code(code) => format!("code {code}"),
            Exit::Signal(signal) => format!("signal {signal}"),
            Exit::Unknown => return,
        };
        if let Err(error) = fs::write(&path, text) {
            warn!("write {}: {error}", path.display());
        }
    }
}

/// A question that was asked in good time: how will this process end?
#[derive(Debug)]
pub struct Question(PathBuf);

/// Asks the guardian how a process will end that the caller is not the parent of.
pub fn ask(exits: &Path, pid: i32) -> std::io::Result<Question> {
    let path = exits.join(pid.to_string());
    File::create(&path)?;
    Ok(Question(path))
}

impl Question {
    /// The answer, if it is there.
    pub fn answer(&self) -> Option<Exit> {
        let text = fs::read_to_string(&self.0).ok()?;
        let (kind, number) = text.split_once(' ')?;
        let number = number.parse().ok()?;
        match kind {
            "code" => Some(Exit::Code(number)),
            "signal" => Some(Exit::Signal(number)),
            _ => None,
        }
    }
}

impl Drop for Question {
    fn drop(&mut self) {
        // Removed with the lab at the latest.
        let _ = fs::remove_file(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_questions_are_answered() {
        let dir = std::env::temp_dir().join(format!("lab-exits-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let question = ask(&dir, 7).unwrap();
        assert_eq!(question.answer(), None);
        answer(&dir, 7, Exit::Code(3));
        answer(&dir, 8, Exit::Code(3));
        assert_eq!(question.answer(), Some(Exit::Code(3)));
        answer(&dir, 7, Exit::Signal(9));
        assert_eq!(question.answer(), Some(Exit::Signal(9)));
        drop(question);
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 0);
        fs::remove_dir_all(&dir).unwrap();
    }
}
