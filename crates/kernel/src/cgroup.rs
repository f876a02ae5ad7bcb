//! Control groups, version 2: the trees that cgroup hooks and accounting follow.

use std::{
    fs, io,
    os::{fd::AsFd, unix::fs::FileExt},
    path::{Path, PathBuf},
};

use nix::poll::{PollFd, PollFlags, poll};

/// How long processes may take to freeze: one that waits for a disk freezes when the disk answers.
const FREEZE_TIMEOUT_MS: u16 = 10_000;

/// Why something about a control group failed.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// There is no cgroup2 mount.
    #[error(
        "no cgroup2 file system is mounted; mount one: mkdir -p /run/cilium/cgroupv2 && \
         mount -t cgroup2 none /run/cilium/cgroupv2"
    )]
    NotMounted,
    /// A file operation failed.
    #[error("{action} control group {}: {source}", path.display())]
    File {
        /// What we were doing.
        action: &'static str,
        /// The group.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

/// A control group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cgroup {
    path: PathBuf,
}

impl Cgroup {
    /// The root of the cgroup2 mount, be it alone or beside version 1.
    pub fn root() -> Result<Self, CgroupError> {
        let failed = |source| CgroupError::File {
            action: "find the mount point of",
            path: PathBuf::from("/proc/self/mounts"),
            source,
        };
        let mounts = fs::read_to_string("/proc/self/mounts").map_err(failed)?;
        mount_point(&mounts).map(|path| Self { path }).ok_or(CgroupError::NotMounted)
    }

    /// The group with this path in the file system.
    pub fn at(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// Where the group is in the file system.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The group below this one, made if it is not there.
    pub fn child(&self, name: &str) -> Result<Self, CgroupError> {
        let path = self.path.join(name);
        fs::create_dir_all(&path).map_err(|source| CgroupError::File {
            action: "create",
            path: path.clone(),
            source,
        })?;
        Ok(Self { path })
    }

    /// Moves a process into the group; children it starts from then on are in it too.
    pub fn add(&self, pid: u32) -> Result<(), CgroupError> {
        fs::write(self.path.join("cgroup.procs"), pid.to_string())
            .map_err(|source| self.failed("move a process into", source))
    }

    /// The processes in the group itself.
    pub fn processes(&self) -> Result<Vec<u32>, CgroupError> {
        let text = fs::read_to_string(self.path.join("cgroup.procs"))
            .map_err(|source| self.failed("list the processes of", source))?;
        Ok(text.lines().filter_map(|line| line.parse().ok()).collect())
    }

    /// Kills every process in the group and below it.
    pub fn kill(&self) -> Result<(), CgroupError> {
        fs::write(self.path.join("cgroup.kill"), "1")
            .map_err(|source| self.failed("kill the processes of", source))
    }

    /// Freezes every process in the group and below it, or lets them go on; returns when it is so.
    pub fn set_frozen(&self, frozen: bool) -> Result<(), CgroupError> {
        let failed = |source| self.failed("freeze the processes of", source);
        fs::write(self.path.join("cgroup.freeze"), if frozen { "1" } else { "0" })
            .map_err(failed)?;
        let events = fs::File::open(self.path.join("cgroup.events")).map_err(failed)?;
        loop {
            let text = read_again(&events).map_err(failed)?;
            if is_frozen(&text) == frozen {
                return Ok(());
            }
            // The file says so when its content has changed since it was read.
            let mut waiting = [PollFd::new(events.as_fd(), PollFlags::POLLPRI)];
            if poll(&mut waiting, FREEZE_TIMEOUT_MS).map_err(|errno| failed(errno.into()))? == 0 {
                return Err(failed(io::ErrorKind::TimedOut.into()));
            }
        }
    }

    /// Whether the group's processes are frozen, by themselves or with a group above.
    pub fn is_frozen(&self) -> bool {
        let events = fs::read_to_string(self.path.join("cgroup.events")).unwrap_or_default();
        is_frozen(&events)
    }

    /// Removes the group with all groups below. Fails with `ResourceBusy` while processes are
    /// in them. A group that is not there is fine.
    pub fn remove(&self) -> Result<(), CgroupError> {
        let entries = match fs::read_dir(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            entries => entries.map_err(|source| self.failed("list", source))?,
        };
        for entry in entries.flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                Self { path: entry.path() }.remove()?;
            }
        }
        match fs::remove_dir(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(self.failed("remove", error))
            }
            _ => Ok(()),
        }
    }

    fn failed(&self, action: &'static str, source: io::Error) -> CgroupError {
        CgroupError::File { action, path: self.path.clone(), source }
    }
}

fn is_frozen(events: &str) -> bool {
    events.lines().any(|line| line == "frozen 1")
}

fn read_again(file: &fs::File) -> io::Result<String> {
    let mut text = [0; 256];
    let len = file.read_at(&mut text, 0)?;
    Ok(String::from_utf8_lossy(&text[..len]).into_owned())
}

/// The first cgroup2 mount in the text of `/proc/self/mounts`.
fn mount_point(mounts: &str) -> Option<PathBuf> {
    mounts.lines().find_map(|line| {
        let mut fields = line.split(' ').skip(1);
        let path = fields.next()?;
        (fields.next()? == "cgroup2").then(|| PathBuf::from(path.replace("\\040", " ")))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mount_is_found_beside_version_1() {
        let mounts = "tmpfs /sys/fs/cgroup tmpfs rw 0 0\n\
                      cgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0\n\
                      cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n";
        assert_eq!(mount_point(mounts), Some(PathBuf::from("/sys/fs/cgroup/unified")));
        assert_eq!(mount_point("cgroup /sys/fs/cgroup/cpu cgroup rw 0 0\n"), None);
    }
}
