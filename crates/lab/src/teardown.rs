//! Taking a lab apart, whatever state it is in: the one way that `down` works, also after a crash.
//!
//! Nothing here asks the supervisor. Everything a lab has can be found from its name: processes by
//! cgroup, mounts by path, namespaces by name. Devices, routes, BPF programs and maps go with the
//! namespaces and file systems that hold them.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use kernel::cgroup::{Cgroup, CgroupError};
use kernel::netns::Netns;

use crate::place::{remove_tree, unmount_all};
use crate::spec::{CGROUP, LABS_DIR, NETNS_DIR, Paths};

/// How long killed processes may take to be gone.
const KILL_TIMEOUT: Duration = Duration::from_secs(20);

/// Removes a lab; says whether there was one.
pub fn remove(paths: &Paths) -> Result<bool> {
    let existed = paths.dir().exists() || !leftovers(paths)?.is_empty();
    let labs = Cgroup::at(Cgroup::root()?.path().join(CGROUP));
    kill_all(&Cgroup::at(labs.path().join(paths.name())))?;
    for netns in network_namespaces(paths)? {
        Netns::delete(&netns)?;
    }
    unmount_all(paths.dir())?;
    remove_tree(paths.dir())?;
    // The parents stay while there are other labs.
    let _ = fs::remove_dir(labs.path());
    let _ = fs::remove_dir(LABS_DIR);
    Ok(existed)
}

/// What there is of a lab beside its directory: namespaces and cgroup. Empty after `down`.
pub fn leftovers(paths: &Paths) -> Result<Vec<PathBuf>> {
    let mut found = network_namespaces(paths)?;
    let cgroup = Cgroup::root()?.path().join(paths.cgroup());
    if cgroup.exists() {
        found.push(cgroup);
    }
    Ok(found)
}

/// The names of all labs of which anything is there.
pub fn names() -> Result<Vec<String>> {
    let below = |dir: &Path| {
        let entries = fs::read_dir(dir).into_iter().flatten().flatten();
        let dirs = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
        dirs.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect::<Vec<_>>()
    };
    let mut names = below(Path::new(LABS_DIR));
    names.extend(below(&Cgroup::root()?.path().join(CGROUP)));
    for path in Netns::list(Path::new(NETNS_DIR))? {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        names.extend(
            name.strip_prefix("cilium-lab-").and_then(split_member).map(|(lab, _)| lab.to_owned()),
        );
    }
    names.sort();
    names.dedup();
    Ok(names)
}

/// The named network namespaces of a lab.
fn network_namespaces(paths: &Paths) -> Result<Vec<PathBuf>> {
    let mut all = Netns::list(Path::new(NETNS_DIR))?;
    all.retain(|path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let own = name.strip_prefix("cilium-lab-").and_then(split_member);
        own.is_some_and(|(lab, _)| lab == paths.name())
    });
    Ok(all)
}

/// Splits `<lab>-<member>`: the member is `hub`, `external` or `node-<number>`. The name of one lab
/// may begin like another's, so a prefix does not tell.
fn split_member(name: &str) -> Option<(&str, &str)> {
    let (rest, last) = name.rsplit_once('-')?;
    if last == "hub" || last == "external" {
        return Some((rest, last));
    }
    let lab = rest.strip_suffix("-node")?;
    let number = !last.is_empty() && last.bytes().all(|byte| byte.is_ascii_digit());
    number.then(|| (lab, &name[lab.len() + 1..]))
}

/// Kills everything in a cgroup and removes it.
fn kill_all(cgroup: &Cgroup) -> Result<()> {
    let deadline = Instant::now() + KILL_TIMEOUT;
    let mut pause = Duration::from_millis(2);
    while cgroup.path().exists() {
        match cgroup.kill() {
            Err(CgroupError::File { source, .. })
                if source.kind() == std::io::ErrorKind::NotFound => {}
            other => other?,
        }
        // There is no event for "the last process has been taken apart" that survives the group.
        if cgroup.remove().is_ok() {
            return Ok(());
        }
        if Instant::now() > deadline {
            let pids = survivors(cgroup.path());
            bail!(
                "processes of the lab do not end: {pids:?}; look at them, then run the command again"
            );
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(50));
    }
    Ok(())
}

fn survivors(cgroup: &Path) -> Vec<String> {
    let own = fs::read_to_string(cgroup.join("cgroup.procs")).unwrap_or_default();
    let mut pids: Vec<String> = own.lines().map(str::to_owned).collect();
    for entry in fs::read_dir(cgroup).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            pids.extend(survivors(&entry.path()));
        }
    }
    pids
}

/// Whether the supervisor of a lab lives: it holds a lock.
pub fn supervisor_lives(paths: &Paths) -> Result<bool> {
    let path = paths.lock();
    let Ok(file) = fs::File::open(&path) else { return Ok(false) };
    match nix::fcntl::Flock::lock(file, nix::fcntl::FlockArg::LockExclusiveNonblock) {
        Ok(_) => Ok(false),
        Err((_, nix::Error::EWOULDBLOCK)) => Ok(true),
        Err((_, errno)) => Err(errno).with_context(|| format!("lock {}", path.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_are_told_apart_from_longer_lab_names() {
        for (name, expected) in [
            ("a-hub", Some(("a", "hub"))),
            ("a-b-external", Some(("a-b", "external"))),
            ("a-node-12", Some(("a", "node-12"))),
            ("a-node-1-hub", Some(("a-node-1", "hub"))),
            ("a-node-1-node-2", Some(("a-node-1", "node-2"))),
            ("a-12", None),
            ("a", None),
        ] {
            assert_eq!(split_member(name), expected, "{name}");
        }
    }
}
