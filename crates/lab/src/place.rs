//! The place a node is: namespaces, a `/run`, a bpffs and a cgroup of its own.
//!
//! To a program inside, the place looks like a machine: its own network, `/sys`, `/run`, host name
//! and control groups; the rest of the file system is shared. The mounts are made in the lab's
//! directory first, so that what agents leave there (sockets, pinned maps) is reachable from
//! outside as well, and does not die with the last process inside.
//!
//! A thread of the supervisor lives in each place. Work that must happen inside, but is not worth a
//! process, is sent to it: [`Place::run`].

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{PoisonError, RwLock};

use anyhow::{Context as _, Result, bail};
use kernel::cgroup::Cgroup;
use kernel::netns::Netns;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use tokio::sync::{mpsc, oneshot, watch};

use crate::process::{Command, Process, SpawnError};
use crate::runner::rootfs::View;
use crate::spec::{LABS_DIR, NETNS_DIR, Paths};

type Work = Box<dyn FnOnce() + Send>;

/// A node's namespaces and cgroup, held open.
#[derive(Debug)]
pub struct Place {
    /// The node's name.
    pub name: String,
    /// Network namespace.
    pub netns: Netns,
    /// Mount namespace.
    pub mntns: OwnedFd,
    /// Host name namespace.
    pub utsns: OwnedFd,
    /// Cgroup of everything on the node.
    pub cgroup: Cgroup,
    work: mpsc::UnboundedSender<Work>,
    paused: watch::Sender<bool>,
    /// Held while a process is started: one that is born frozen would keep us waiting for it.
    starting: RwLock<()>,
}

impl Place {
    /// Makes a place. Blocks for some milliseconds.
    pub fn create(paths: &Paths, cgroups: &Cgroup, name: &str) -> Result<Self> {
        let run = paths.node_run(name);
        let bpf = paths.node_bpf(name);
        fs::create_dir_all(&run).with_context(|| format!("create {}", run.display()))?;
        fs::create_dir_all(&bpf).with_context(|| format!("create {}", bpf.display()))?;
        mount_new("tmpfs", &run, "mode=0755")?;
        kernel::bpffs::mount(&bpf)?;

        let (work, mut inbox) = mpsc::unbounded_channel::<Work>();
        let (ready, is_ready) = std::sync::mpsc::channel();
        let paths_inside = paths.clone();
        let name_inside = name.to_owned();
        // Thread names end at 15 bytes.
        std::thread::Builder::new().name(format!("in-{name}")).spawn(move || {
            let entered = enter_new(&paths_inside, &name_inside);
            let failed = entered.is_err();
            let _ = ready.send(entered);
            while let (false, Some(work)) = (failed, inbox.blocking_recv()) {
                work();
            }
        })?;
        let inside = is_ready.recv().with_context(|| format!("the thread of {name} is gone"))??;

        bind_file(&inside.net, &paths.netns(name))?;
        bind_file(&inside.mnt, &paths.node_mntns(name))?;
        bind_file(&inside.uts, &paths.node_utsns(name))?;
        Self::of(paths, cgroups, name, work)
    }

    /// Opens a place that an earlier supervisor has made.
    pub fn open(paths: &Paths, cgroups: &Cgroup, name: &str) -> Result<Self> {
        let (work, mut inbox) = mpsc::unbounded_channel::<Work>();
        let (ready, is_ready) = std::sync::mpsc::channel();
        let paths_inside = paths.clone();
        let name_inside = name.to_owned();
        std::thread::Builder::new().name(format!("in-{name}")).spawn(move || {
            let entered = enter(&paths_inside, &name_inside);
            let failed = entered.is_err();
            let _ = ready.send(entered);
            while let (false, Some(work)) = (failed, inbox.blocking_recv()) {
                work();
            }
        })?;
        is_ready.recv().with_context(|| format!("the thread of {name} is gone"))??;
        Self::of(paths, cgroups, name, work)
    }

    fn of(
        paths: &Paths,
        cgroups: &Cgroup,
        name: &str,
        work: mpsc::UnboundedSender<Work>,
    ) -> Result<Self> {
        let open = |path: &Path| {
            File::open(path).map(OwnedFd::from).with_context(|| format!("open {}", path.display()))
        };
        let cgroup = cgroups.child(name)?;
        Ok(Self {
            name: name.to_owned(),
            netns: Netns::open(&paths.netns(name))?,
            mntns: open(&paths.node_mntns(name))?,
            utsns: open(&paths.node_utsns(name))?,
            paused: watch::Sender::new(cgroup.is_frozen()),
            cgroup,
            work,
            starting: RwLock::default(),
        })
    }

    /// Runs a closure on the thread inside and waits for its result.
    pub async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T> {
        let (sender, receiver) = oneshot::channel();
        let work = Box::new(move || {
            let _ = sender.send(work());
        });
        if self.work.send(work).is_err() {
            bail!("the thread of {} is gone", self.name);
        }
        receiver.await.with_context(|| format!("work in {} panicked", self.name))
    }

    /// Starts a program in this place.
    pub fn spawn(&self, command: &Command<'_>) -> Result<Process, SpawnError> {
        let _starting = self.starting.read().unwrap_or_else(PoisonError::into_inner);
        if *self.paused.borrow() {
            return Err(SpawnError::Paused(self.name.clone()));
        }
        command.spawn()
    }

    /// Freezes everything in this place, or lets it go on. Blocks until it is so.
    pub fn set_paused(&self, paused: bool) -> Result<()> {
        let _starting = self.starting.write().unwrap_or_else(PoisonError::into_inner);
        self.cgroup.set_frozen(paused)?;
        self.paused.send_replace(paused);
        Ok(())
    }

    /// Whether everything in this place is frozen.
    pub fn is_paused(&self) -> bool {
        *self.paused.borrow()
    }

    /// Returns when this place is not paused.
    pub async fn awake(&self) {
        // The sender is ours: it does not go before us.
        let _ = self.paused.subscribe().wait_for(|paused| !paused).await;
    }

    /// Makes a mount namespace for a container.
    pub async fn new_view(&self, view: View) -> Result<OwnedFd> {
        let home = self.mntns.try_clone()?;
        self.run(move || view.build(&home)).await?
    }

    /// Sets up a command to run in this place.
    pub fn command<'a>(&'a self, cgroup: &'a CgroupDir) -> Command<'a> {
        Command {
            netns: Some(self.netns.as_fd()),
            mntns: Some(self.mntns.as_fd()),
            utsns: Some(self.utsns.as_fd()),
            cgroup: Some(cgroup.as_fd()),
            ..Command::default()
        }
    }
}

/// A cgroup that processes can be born in.
#[derive(Debug)]
pub struct CgroupDir {
    /// The group.
    pub group: Cgroup,
    dir: OwnedFd,
}

impl CgroupDir {
    /// The child of this name, made anew unless processes are in it.
    ///
    /// Linux kills whatever is born into a group in which everything was killed before
    /// (`CLONE_INTO_CGROUP` compares the counter of kills with that of the parent's own group,
    /// seen with 6.18), so a group is not used again once it has been empty.
    pub fn fresh(parent: &Cgroup, name: &str) -> Result<Self> {
        // One that is in use stays.
        let _ = fs::remove_dir(parent.path().join(name));
        Self::create(parent, name)
    }

    /// The child of this name, made if it is missing.
    pub fn create(parent: &Cgroup, name: &str) -> Result<Self> {
        let group = parent.child(name)?;
        let dir = fs::OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_DIRECTORY)
            .open(group.path())
            .with_context(|| format!("open cgroup {}", group.path().display()))?;
        Ok(Self { group, dir: dir.into() })
    }

    /// The group's directory.
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }
}

/// Paths of the namespaces of the thread inside.
struct Inside {
    net: PathBuf,
    mnt: PathBuf,
    uts: PathBuf,
}

/// Moves the calling thread into new namespaces and arranges their mounts.
fn enter_new(paths: &Paths, name: &str) -> Result<Inside> {
    let flags = CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWUTS;
    unshare(flags).context("create namespaces")?;
    let everything = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(None::<&str>, "/", None::<&str>, everything, None::<&str>)
        .context("make all mounts private")?;

    // With everything below it: programs look for mounts by type, and hidden ones would mislead them.
    umount2("/sys", MntFlags::MNT_DETACH).context("unmount the host's /sys")?;
    mount_new("sysfs", Path::new("/sys"), "")?;
    mount_new("cgroup2", Path::new("/sys/fs/cgroup"), "")?;
    bind(&paths.node_bpf(name), Path::new("/sys/fs/bpf"))?;

    // The lab's own files stay visible at the same path, without what is mounted below it.
    let run = paths.node_run(name);
    let own_dir = run.join(paths.dir().strip_prefix("/run").context("labs live below /run")?);
    fs::create_dir_all(&own_dir)?;
    bind(paths.dir(), &own_dir)?;
    forget_other_mounts(&run)?;
    mount(Some(&run), "/run", None::<&str>, MsFlags::MS_MOVE, None::<&str>)
        .context("move the node's file system to /run")?;
    fs::create_dir_all(NETNS_DIR)?;
    bind_resolv_conf(&paths.resolv_conf())?;

    fs::write("/proc/sys/kernel/hostname", name).context("set the host name")?;
    let tid = nix::unistd::gettid();
    let file =
        |kind: &str| PathBuf::from(format!("/proc/{}/task/{tid}/ns/{kind}", std::process::id()));
    Ok(Inside { net: file("net"), mnt: file("mnt"), uts: file("uts") })
}

/// Moves the calling thread into the namespaces of a node that is there.
fn enter(paths: &Paths, name: &str) -> Result<()> {
    let spaces = [
        (paths.netns(name), CloneFlags::CLONE_NEWNET),
        (paths.node_utsns(name), CloneFlags::CLONE_NEWUTS),
        (paths.node_mntns(name), CloneFlags::CLONE_NEWNS),
    ];
    // All of them first: the last one changes what the paths mean.
    let open = |(path, kind): (PathBuf, CloneFlags)| {
        let file = File::open(&path).with_context(|| format!("open {}", path.display()));
        file.map(|file| (file, path, kind))
    };
    let files = spaces.into_iter().map(open).collect::<Result<Vec<_>>>()?;
    unshare(CloneFlags::CLONE_FS).context("leave the other threads' root directory")?;
    files.iter().try_for_each(|(file, path, kind)| {
        setns(file, *kind).with_context(|| format!("enter {}", path.display()))
    })
}

/// Lets programs of the node ask the lab's world for names, not the host's. A host without a
/// `resolv.conf` stays without.
fn bind_resolv_conf(source: &Path) -> Result<()> {
    let target = Path::new("/etc/resolv.conf");
    if let (false, Ok(link)) = (target.exists(), fs::read_link(target)) {
        // It leads into the host's `/run`, which is not here: ours gets such a file.
        let aim = Path::new("/etc").join(link);
        let mut path = PathBuf::new();
        for component in aim.components() {
            match component {
                std::path::Component::ParentDir => drop(path.pop()),
                other => path.push(other),
            }
        }
        if let (true, Some(dir)) = (path.starts_with("/run"), path.parent()) {
            fs::create_dir_all(dir)?;
            File::create(&path).with_context(|| format!("create {}", path.display()))?;
        }
    }
    if target.exists() { bind(source, target) } else { Ok(()) }
}

/// Unmounts here what belongs to other nodes and labs: copies of their mounts would keep them
/// alive after they are gone.
fn forget_other_mounts(own: &Path) -> Result<()> {
    let table = fs::read_to_string("/proc/thread-self/mountinfo").context("list mounts")?;
    for target in mount_targets(&table).into_iter().rev() {
        let foreign = target.starts_with(LABS_DIR) || target.starts_with(NETNS_DIR);
        // Unmounting a mount above our own would take that along.
        if foreign && !target.starts_with(own) && !own.starts_with(&target) {
            match umount2(&target, MntFlags::MNT_DETACH) {
                // Gone with a mount above it, or by its own lab's end.
                Ok(()) | Err(nix::Error::EINVAL | nix::Error::ENOENT) => {}
                Err(errno) => return Err(errno).context(format!("unmount {}", target.display())),
            }
        }
    }
    Ok(())
}

/// The mount points in the text of a `mountinfo` file, in order of mounting.
pub fn mount_targets(mountinfo: &str) -> Vec<PathBuf> {
    let field = mountinfo.lines().filter_map(|line| line.split(' ').nth(4));
    field.map(|path| PathBuf::from(path.replace("\\040", " "))).collect()
}

fn mount_new(kind: &str, target: &Path, options: &str) -> Result<()> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(Some(kind), target, Some(kind), flags, Some(options))
        .with_context(|| format!("mount {kind} on {}", target.display()))
}

fn bind(source: &Path, target: &Path) -> Result<()> {
    mount(Some(source), target, None::<&str>, MsFlags::MS_BIND, None::<&str>)
        .with_context(|| format!("bind {} on {}", source.display(), target.display()))
}

/// Keeps a namespace alive by binding its file to a path.
pub fn bind_file(source: &Path, target: &Path) -> Result<()> {
    if let Some(parent) = target.parent() {
        fs::create_dir_all(parent)?;
    }
    File::create(target).with_context(|| format!("create {}", target.display()))?;
    bind(source, target)
}

/// Makes a directory a private mount of its own: namespace files can be bound below it, and
/// nothing that is mounted there shows up elsewhere.
pub fn make_private_dir(dir: &Path) -> Result<()> {
    fs::create_dir_all(dir).with_context(|| format!("create {}", dir.display()))?;
    bind(dir, dir)?;
    mount(None::<&str>, dir, None::<&str>, MsFlags::MS_PRIVATE, None::<&str>)
        .with_context(|| format!("make {} private", dir.display()))
}

/// Unmounts everything at and below a directory.
pub fn unmount_all(dir: &Path) -> Result<()> {
    let table = fs::read_to_string("/proc/thread-self/mountinfo").context("list mounts")?;
    for target in mount_targets(&table).into_iter().rev().filter(|t| t.starts_with(dir)) {
        match umount2(&target, MntFlags::MNT_DETACH) {
            Ok(()) | Err(nix::Error::EINVAL | nix::Error::ENOENT) => {}
            Err(errno) => return Err(errno).context(format!("unmount {}", target.display())),
        }
    }
    Ok(())
}

/// Removes a directory tree; one that is not there is fine.
pub fn remove_tree(dir: &Path) -> Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("remove {}", dir.display()))
        }
        _ => Ok(()),
    }
}

/// A file in memory, for the input and output of short-lived programs.
pub fn memory_file(name: &str, content: &[u8]) -> io::Result<File> {
    use std::io::{Seek as _, Write as _};
    let flags = nix::sys::memfd::MFdFlags::MFD_CLOEXEC;
    let name = std::ffi::CString::new(OsStr::new(name).as_encoded_bytes())?;
    let mut file = File::from(nix::sys::memfd::memfd_create(name.as_c_str(), flags)?);
    file.write_all(content)?;
    file.rewind()?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_points_are_read_in_order() {
        let table = "22 27 0:21 / /proc rw,relatime - proc proc rw\n\
                     41 31 0:38 / /run/with\\040space rw - tmpfs tmpfs rw\n";
        assert_eq!(
            mount_targets(table),
            [PathBuf::from("/proc"), PathBuf::from("/run/with space")]
        );
    }
}
