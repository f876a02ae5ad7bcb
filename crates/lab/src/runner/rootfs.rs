//! What a container sees of the file system: the node's, with the pod's files and volumes in their places and a
//! `/dev` of its own.
//!
//! ```text
//!   node's mounts ──unshare──▶ copy ─▶ /dev ─▶ bind, bind, … ─▶ the container's mount namespace
//! ```
//!
//! There is no image, so the place where a volume belongs mostly does not exist. It must not be made in the
//! machine's file system, where everybody would see it: the deepest directory that does exist is *shadowed*, by an
//! empty file system into which everything that the directory has is bound again, and the place is made there.
//!
//! All of this runs on the thread that lives inside the node ([`crate::place::Place::run`]).

use std::ffi::OsString;
use std::fs::{self, File};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Component, Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use nix::unistd::pivot_root;

/// Devices that every container has; those that the machine does not have are left out.
const DEVICES: [&str; 7] = ["null", "zero", "full", "random", "urandom", "tty", "ptmx"];
/// Names in `/dev` that lead elsewhere.
const DEVICE_LINKS: [(&str, &str); 4] = [
    ("/proc/self/fd", "fd"),
    ("/proc/self/fd/0", "stdin"),
    ("/proc/self/fd/1", "stdout"),
    ("/proc/self/fd/2", "stderr"),
];
/// Where a new root is prepared; in the node's own file system.
const NEW_ROOT: &str = "/run/new-root";
/// Where the old root is for a moment.
const OLD_ROOT: &str = ".old-root";

/// A container's view of the file system.
#[derive(Clone, Debug, Default)]
pub struct View {
    /// All devices of the machine, not only the harmless ones.
    pub all_devices: bool,
    /// Directory behind `/dev/shm`.
    pub shared_memory: PathBuf,
    /// Files and directories in their places; those that contain others come first.
    pub binds: Vec<Bind>,
}

/// A file or directory that is seen at another place.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bind {
    /// Where it is on the node.
    pub source: PathBuf,
    /// The part of it that is meant; a directory that is missing is made.
    pub sub_path: Option<PathBuf>,
    /// Where it is seen.
    pub target: PathBuf,
    /// Whether the container cannot change it.
    pub read_only: bool,
}

impl View {
    /// Makes a mount namespace with this view; `home` is the caller's own, to which it returns.
    pub fn build(&self, home: impl AsFd) -> Result<OwnedFd> {
        unshare(CloneFlags::CLONE_NEWNS).context("create a mount namespace")?;
        let built = self.arrange().and_then(|()| {
            // The root may have changed, and `/proc` with it: the task's own is the same everywhere.
            Ok(File::open("/proc/thread-self/ns/mnt").context("open the mount namespace")?.into())
        });
        setns(home, CloneFlags::CLONE_NEWNS).context("return to the node's mounts")?;
        built
    }

    fn arrange(&self) -> Result<()> {
        let mut root = Root::new();
        root.devices(self)?;
        for bind in &self.binds {
            root.bind(bind).with_context(|| format!("mount {}", bind.target.display()))?;
        }
        Ok(())
    }
}

/// A root directory in the making.
struct Root {
    /// Whether places can be made below a directory: no other container sees it, or it is a
    /// volume. The longest path that fits decides, and of equal ones the last.
    own: Vec<(PathBuf, bool)>,
}

impl Root {
    fn new() -> Self {
        Self { own: vec![(PathBuf::from("/"), false), (PathBuf::from("/run"), true)] }
    }

    fn owns(&self, dir: &Path) -> bool {
        let fits = self.own.iter().filter(|(tree, _)| dir.starts_with(tree));
        fits.max_by_key(|(tree, _)| tree.components().count()).is_some_and(|(_, own)| *own)
    }

    /// From now on a directory is ours, but not what is bound into it, unless it was so before.
    fn take(&mut self, dir: &Path, names: &[OsString]) {
        let bound = names.iter().map(|name| (dir.join(name), false));
        let first = [(dir.to_owned(), true)].into_iter().chain(bound);
        let before = std::mem::take(&mut self.own).into_iter().filter(|(tree, _)| tree != dir);
        self.own = first.chain(before).collect();
    }

    fn bind(&mut self, bind: &Bind) -> Result<()> {
        let source = match &bind.sub_path {
            None => bind.source.clone(),
            Some(sub) => sub_path(&bind.source, sub)?,
        };
        let is_dir = fs::metadata(&source).with_context(|| found(&source))?.is_dir();
        let target = self.place(&bind.target, is_dir)?;
        bind_mount(&source, &target)?;
        if bind.read_only {
            let flags = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY;
            mount(None::<&str>, &target, None::<&str>, flags, None::<&str>)
                .context("make it read-only")?;
        } else if is_dir {
            self.own.push((target, true));
        }
        Ok(())
    }

    /// The place of this path, made if it does not exist.
    fn place(&mut self, path: &Path, is_dir: bool) -> Result<PathBuf> {
        let mut existing = path;
        let mut missing = Vec::new();
        while !existing.exists() {
            let (Some(parent), Some(name)) = (existing.parent(), existing.file_name()) else {
                bail!("{} is not the path of a file", path.display());
            };
            missing.push(name);
            existing = parent;
        }
        let mut place = fs::canonicalize(existing).with_context(|| found(existing))?;
        let Some((last, between)) = missing.split_first() else { return Ok(place) };
        if !self.owns(&place) {
            self.shadow(&place)?;
        }
        for name in between.iter().rev() {
            place.push(name);
            fs::create_dir(&place).with_context(|| made(&place))?;
        }
        place.push(last);
        if place.is_symlink() {
            // It leads nowhere, or it would have been found.
            fs::remove_file(&place).with_context(|| made(&place))?;
        }
        match is_dir {
            true => fs::create_dir(&place),
            false => File::create(&place).map(drop),
        }
        .with_context(|| made(&place))?;
        Ok(place)
    }

    /// Makes a directory ours, with everything that is in it.
    fn shadow(&mut self, dir: &Path) -> Result<()> {
        if dir == Path::new("/") {
            return self.shadow_root();
        }
        let original = File::open(dir).with_context(|| found(dir))?;
        let names = names(dir)?;
        let mode = fs::metadata(dir).with_context(|| found(dir))?.mode();
        cover(dir, mode)?;
        let fd = std::os::fd::AsRawFd::as_raw_fd(&original);
        let original = PathBuf::from(format!("/proc/thread-self/fd/{fd}"));
        names.iter().try_for_each(|name| repeat(&original.join(name), &dir.join(name)))?;
        self.take(dir, &names);
        Ok(())
    }

    /// What is mounted on the root is not seen by those who are in it: they have to move.
    fn shadow_root(&mut self) -> Result<()> {
        let new = Path::new(NEW_ROOT);
        fs::create_dir_all(new).with_context(|| made(new))?;
        cover(new, 0o755)?;
        let old = new.join(OLD_ROOT);
        fs::create_dir(&old).with_context(|| made(&old))?;
        pivot_root(new, &old).context("move to a new root")?;
        let old = Path::new("/").join(OLD_ROOT);
        let root = Path::new("/");
        let names = names(&old)?;
        names.iter().try_for_each(|name| repeat(&old.join(name), &root.join(name)))?;
        umount2(&old, MntFlags::MNT_DETACH).context("leave the old root")?;
        fs::remove_dir(&old).with_context(|| made(&old))?;
        self.take(root, &names);
        Ok(())
    }

    /// A `/dev` as container runtimes make it.
    fn devices(&mut self, view: &View) -> Result<()> {
        let dev = Path::new("/dev");
        if view.all_devices {
            return self.shadow(dev);
        }
        let original = File::open(dev).with_context(|| found(dev))?;
        let fd = std::os::fd::AsRawFd::as_raw_fd(&original);
        let original = PathBuf::from(format!("/proc/thread-self/fd/{fd}"));
        let present = |name: &&str| original.join(name).exists();
        let present: Vec<&str> = DEVICES.into_iter().chain(["pts"]).filter(present).collect();
        cover(dev, 0o755)?;
        present.iter().try_for_each(|name| repeat(&original.join(name), &dev.join(name)))?;
        for (target, name) in DEVICE_LINKS {
            symlink(target, dev.join(name)).with_context(|| made(&dev.join(name)))?;
        }
        let shm = dev.join("shm");
        fs::create_dir(&shm).with_context(|| made(&shm))?;
        bind_mount(&view.shared_memory, &shm)?;
        self.own.push((dev.to_owned(), true));
        Ok(())
    }
}

/// The part of a volume that a container asked for. It cannot lead out of the volume.
fn sub_path(volume: &Path, sub: &Path) -> Result<PathBuf> {
    if sub.components().any(|part| !matches!(part, Component::Normal(_) | Component::CurDir)) {
        bail!("subPath {} must be relative, without \"..\"", sub.display());
    }
    let volume = fs::canonicalize(volume).with_context(|| found(volume))?;
    let path = volume.join(sub);
    if !path.exists() {
        fs::create_dir_all(&path).with_context(|| made(&path))?;
    }
    let path = fs::canonicalize(&path).with_context(|| found(&path))?;
    if !path.starts_with(&volume) {
        bail!("subPath {} leads out of its volume", sub.display());
    }
    Ok(path)
}

/// Names in a directory.
fn names(dir: &Path) -> Result<Vec<OsString>> {
    let entries = fs::read_dir(dir).with_context(|| found(dir))?;
    let names = entries.map(|entry| entry.map(|entry| entry.file_name()));
    names.collect::<std::io::Result<_>>().with_context(|| found(dir))
}

/// Shows what is at one place at another, which does not exist yet. What has just gone is left out.
fn repeat(source: &Path, target: &Path) -> Result<()> {
    let Ok(meta) = fs::symlink_metadata(source) else { return Ok(()) };
    if meta.is_symlink() {
        let aim = fs::read_link(source).with_context(|| found(source))?;
        return symlink(aim, target).with_context(|| made(target));
    }
    match meta.is_dir() {
        true => fs::create_dir(target),
        false => File::create(target).map(drop),
    }
    .with_context(|| made(target))?;
    bind_mount(source, target)
}

/// Mounts an empty file system.
fn cover(dir: &Path, mode: u32) -> Result<()> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_STRICTATIME;
    mount(Some("tmpfs"), dir, Some("tmpfs"), flags, Some("mode=0755"))
        .with_context(|| format!("mount a file system on {}", dir.display()))?;
    let permissions = fs::Permissions::from_mode(mode & 0o7777);
    fs::set_permissions(dir, permissions).with_context(|| made(dir))
}

fn bind_mount(source: &Path, target: &Path) -> Result<()> {
    let flags = MsFlags::MS_BIND | MsFlags::MS_REC;
    mount(Some(source), target, None::<&str>, flags, None::<&str>)
        .with_context(|| format!("bind {} on {}", source.display(), target.display()))
}

fn found(path: &Path) -> String {
    format!("look at {}", path.display())
}

fn made(path: &Path) -> String {
    format!("make {}", path.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_nobody_else_sees_is_ours() {
        let mut root = Root::new();
        let path = Path::new;
        assert!(root.owns(path("/run/x")) && !root.owns(path("/usr/share")));
        root.own.push((PathBuf::from("/etc/app"), true));
        root.take(path("/etc"), &["ssl".into(), "app".into()]);
        assert!(root.owns(path("/etc")) && root.owns(path("/etc/app/x")));
        assert!(!root.owns(path("/etc/ssl")) && !root.owns(path("/usr")));
        root.take(path("/"), &["etc".into(), "usr".into(), "run".into()]);
        assert!(root.owns(path("/")) && root.owns(path("/etc")) && root.owns(path("/run/x")));
        assert!(!root.owns(path("/usr/share")) && !root.owns(path("/etc/ssl/x")));
    }

    #[test]
    fn sub_paths_stay_inside() {
        let dir = std::env::temp_dir().join(format!("lab-sub-path-{}", std::process::id()));
        fs::create_dir_all(dir.join("in")).unwrap();
        symlink("/etc", dir.join("out")).unwrap();
        let sub = |path: &str| sub_path(&dir, Path::new(path)).map_err(|error| error.to_string());
        assert!(sub("in").unwrap().ends_with("in"));
        assert!(sub("made/below").unwrap().is_dir());
        assert!(sub("out").unwrap_err().contains("leads out of its volume"));
        assert!(sub("../x").unwrap_err().contains("without \"..\""));
        assert!(sub("/etc").unwrap_err().contains("must be relative"));
        fs::remove_dir_all(&dir).unwrap();
    }
}
