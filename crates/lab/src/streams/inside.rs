//! The way into a running container: its namespaces and cgroup, as one of its processes has them.

use std::fs::{self, File, OpenOptions};
use std::os::fd::AsFd as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use kernel::cgroup::Cgroup;

use crate::process::Command;

/// A container's namespaces and cgroup, held open.
#[derive(Debug)]
pub struct Inside {
    netns: File,
    mntns: File,
    utsns: File,
    cgroup: File,
    /// The environment that the container was started with.
    pub env: Vec<(String, String)>,
}

impl Inside {
    /// The container with this cgroup; `None` when nothing runs in it.
    pub fn of(cgroup: &Path) -> Option<Self> {
        let pids = Cgroup::at(cgroup).processes().ok()?;
        // What exec has started is younger than the container's own process, and for a moment still in
        // the namespaces of the lab. Numbers do not tell: they begin anew when they are used up.
        let procs = pids.iter().map(|pid| Path::new("/proc").join(pid.to_string()));
        let proc = procs.filter_map(|proc| Some((started(&proc)?, proc))).min()?.1;
        let open = |kind: &str| File::open(proc.join("ns").join(kind)).ok();
        let environ = fs::read(proc.join("environ")).ok()?;
        Some(Self {
            netns: open("net")?,
            mntns: open("mnt")?,
            utsns: open("uts")?,
            cgroup: OpenOptions::new()
                .read(true)
                .custom_flags(libc::O_DIRECTORY)
                .open(cgroup)
                .ok()?,
            env: variables(&environ),
        })
    }

    /// The pod's network namespace.
    pub fn netns(&self) -> &File {
        &self.netns
    }

    /// Sets up a command to run beside the container's processes.
    pub fn command(&self) -> Command<'_> {
        Command {
            env: self.env.clone(),
            cgroup: Some(self.cgroup.as_fd()),
            netns: Some(self.netns.as_fd()),
            mntns: Some(self.mntns.as_fd()),
            utsns: Some(self.utsns.as_fd()),
            ..Command::default()
        }
    }
}

/// When a process was started, in ticks since boot; `None` when it is gone.
fn started(proc: &Path) -> Option<u64> {
    let stat = fs::read_to_string(proc.join("stat")).ok()?;
    // proc_pid_stat(5): the name, which may contain anything, is in parentheses; the time is field 22.
    let (_, fields) = stat.rsplit_once(')')?;
    fields.split_whitespace().nth(19)?.parse().ok()
}

/// Takes the content of an `environ` file apart.
fn variables(environ: &[u8]) -> Vec<(String, String)> {
    let pairs = environ.split(|byte| *byte == 0).map(String::from_utf8_lossy);
    pairs.filter_map(|p| p.split_once('=').map(|(k, v)| (k.to_owned(), v.to_owned()))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_of_start_is_read() {
        let own = Path::new("/proc/self");
        assert!(started(own) >= started(Path::new("/proc/1")), "{:?}", started(own));
        assert_eq!(started(Path::new("/proc/0")), None);
    }

    #[test]
    fn an_environment_is_taken_apart() {
        let pairs = variables(b"PATH=/bin\0EMPTY=\0A=b=c\0");
        let pairs: Vec<(&str, &str)> = pairs.iter().map(|(k, v)| (&**k, &**v)).collect();
        assert_eq!(pairs, [("PATH", "/bin"), ("EMPTY", ""), ("A", "b=c")]);
    }
}
