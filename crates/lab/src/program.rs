//! Keeping a program running: agents and the operator, as their DaemonSet and Deployment would.

use std::time::Duration;

use kernel::cgroup::Cgroup;
use tokio::sync::watch;
use tokio::time::{Instant, sleep};
use tracing::{info, warn};

use crate::process::Process;
use crate::spec::Paths;

/// Pauses before a program that ended within [`SHORT_RUN`] is started again; the last one repeats.
const BACKOFF_MS: [u64; 6] = [0, 200, 500, 1_000, 2_000, 5_000];
/// A program that ran longer than this is started again at once.
const SHORT_RUN: Duration = Duration::from_secs(1);

/// A program that an earlier supervisor has left running in this cgroup.
pub fn survivor(paths: &Paths, parent: &Cgroup, name: &str) -> Option<Process> {
    let pids = Cgroup::at(parent.path().join(name)).processes().ok()?;
    // What it has started itself is younger.
    let pid = i32::try_from(*pids.iter().min()?).ok()?;
    Process::adopt(pid, &paths.exits()).ok()
}

/// Starts a program again whenever it ends; `survivor` is one that runs already. `pid` always shows
/// the running process.
pub async fn keep_running(
    name: String,
    pid: watch::Sender<Option<i32>>,
    mut survivor: Option<Process>,
    mut start: impl FnMut() -> anyhow::Result<Process>,
) {
    let mut short_runs = 0_usize;
    loop {
        let began = Instant::now();
        let started = match survivor.take() {
            Some(process) => Ok((process, "taken over")),
            None => start().map(|process| (process, "started")),
        };
        match started {
            Ok((process, how)) => {
                info!(program = name, pid = process.pid(), "{how}");
                pid.send_replace(Some(process.pid()));
                let exit = process.wait().await;
                pid.send_replace(None);
                match exit {
                    Ok(exit) => warn!(program = name, "ended: {exit}"),
                    Err(error) => warn!(program = name, "cannot be waited for: {error}"),
                }
            }
            Err(error) => warn!(program = name, "cannot be started: {error:#}"),
        }
        short_runs = if began.elapsed() > SHORT_RUN { 0 } else { short_runs + 1 };
        let pause = BACKOFF_MS.get(short_runs.saturating_sub(1)).or(BACKOFF_MS.last());
        sleep(Duration::from_millis(pause.copied().unwrap_or_default())).await;
    }
}
