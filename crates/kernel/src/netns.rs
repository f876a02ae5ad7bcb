//! Network namespaces: open, create, name, enter.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd},
        unix::fs::MetadataExt,
    },
    panic,
    path::{Path, PathBuf},
    thread,
};

use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, setns, unshare},
    sys::socket::{AddressFamily, SockFlag, SockType, socket},
};

/// Why something about a network namespace failed.
#[derive(Debug, thiserror::Error)]
#[error("{action}: {source}")]
pub struct NetnsError {
    action: String,
    source: io::Error,
}

impl NetnsError {
    fn new(action: String, source: impl Into<io::Error>) -> Self {
        Self { action, source: source.into() }
    }

    /// What the kernel said.
    pub fn kind(&self) -> io::ErrorKind {
        self.source.kind()
    }
}

/// A network namespace, held open: it exists while this value does.
#[derive(Debug)]
pub struct Netns {
    file: File,
}

const OWN: &str = "/proc/thread-self/ns/net";

impl Netns {
    /// The namespace of the calling thread.
    pub fn current() -> Result<Self, NetnsError> {
        Self::open(Path::new(OWN))
    }

    /// The namespace behind a path: `/run/netns/<name>`, `/proc/<pid>/ns/net`.
    pub fn open(path: &Path) -> Result<Self, NetnsError> {
        let failed = |source: io::Error| {
            NetnsError::new(format!("open network namespace {}", path.display()), source)
        };
        Ok(Self { file: File::open(path).map_err(failed)? })
    }

    /// A new, empty namespace without a name: it goes when nobody holds it.
    pub fn anonymous() -> Result<Self, NetnsError> {
        on_new_thread(|| {
            unshare(CloneFlags::CLONE_NEWNET)
                .map_err(|errno| NetnsError::new("create a network namespace".to_owned(), errno))?;
            Self::current()
        })
    }

    /// A new, empty namespace bound to `path`, where it stays until [`Netns::delete`].
    pub fn create(path: &Path) -> Result<Self, NetnsError> {
        let failed = |source: io::Error| {
            NetnsError::new(format!("create network namespace {}", path.display()), source)
        };
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).map_err(failed)?;
        }
        OpenOptions::new().write(true).create_new(true).open(path).map_err(failed)?;
        let created = on_new_thread(|| {
            unshare(CloneFlags::CLONE_NEWNET).map_err(|errno| failed(errno.into()))?;
            mount(Some(OWN), path, None::<&str>, MsFlags::MS_BIND, None::<&str>)
                .map_err(|errno| failed(errno.into()))?;
            Self::open(path)
        });
        if created.is_err() {
            // The mount point alone is worth nothing, and would be in the way of the next try.
            let _ = fs::remove_file(path);
        }
        created
    }

    /// Removes the name of a namespace. The namespace goes when nobody is in it any more.
    /// A name that is not there is fine.
    pub fn delete(path: &Path) -> Result<(), NetnsError> {
        let failed = |source: io::Error| {
            NetnsError::new(format!("delete network namespace {}", path.display()), source)
        };
        match umount2(path, MntFlags::MNT_DETACH) {
            // EINVAL: not a mount point, so only a file remains.
            Ok(()) | Err(nix::Error::EINVAL) => {}
            Err(nix::Error::ENOENT) => return Ok(()),
            Err(errno) => return Err(failed(errno.into())),
        }
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed(error)),
            _ => Ok(()),
        }
    }

    /// The number that identifies the namespace to BPF programs, never reused.
    pub fn cookie(&self) -> Result<u64, NetnsError> {
        self.run(|| {
            let failed = |source: io::Error| {
                NetnsError::new("read the cookie of a network namespace".to_owned(), source)
            };
            let socket =
                socket(AddressFamily::Unix, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)
                    .map_err(|errno| failed(errno.into()))?;
            let mut cookie = 0_u64;
            let mut len = size_of::<u64>() as libc::socklen_t;
            // SAFETY: both pointers are to live values, and `len` is the size of the first.
            let result = unsafe {
                libc::getsockopt(
                    socket.as_raw_fd(),
                    libc::SOL_SOCKET,
                    libc::SO_NETNS_COOKIE,
                    (&raw mut cookie).cast(),
                    &raw mut len,
                )
            };
            nix::Error::result(result).map_err(|errno| failed(errno.into()))?;
            Ok(cookie)
        })?
    }

    /// The inode number: equal exactly for one and the same living namespace.
    pub fn inode(&self) -> Result<u64, NetnsError> {
        let metadata = self.file.metadata();
        let failed =
            |source| NetnsError::new("read the inode of a network namespace".to_owned(), source);
        Ok(metadata.map_err(failed)?.ino())
    }

    /// The paths of named namespaces below `dir`, usually `/run/netns`.
    pub fn list(dir: &Path) -> Result<Vec<PathBuf>, NetnsError> {
        let failed = |source: io::Error| {
            NetnsError::new(format!("list network namespaces in {}", dir.display()), source)
        };
        let entries = match fs::read_dir(dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(failed)?,
        };
        entries.map(|entry| entry.map(|entry| entry.path()).map_err(failed)).collect()
    }

    /// Runs a closure on a thread inside the namespace. Sockets it makes stay there.
    pub fn run<T: Send>(&self, run: impl FnOnce() -> T + Send) -> Result<T, NetnsError> {
        on_new_thread(|| {
            self.enter()?;
            Ok(run())
        })
    }

    /// Moves the calling thread into the namespace, for good. Where the thread goes on to do
    /// other things use [`Netns::run`].
    pub fn enter(&self) -> Result<(), NetnsError> {
        setns(&self.file, CloneFlags::CLONE_NEWNET)
            .map_err(|errno| NetnsError::new("enter a network namespace".to_owned(), errno))
    }
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Runs a closure on a thread of its own, so that its change of namespace ends with it.
fn on_new_thread<T: Send>(
    run: impl FnOnce() -> Result<T, NetnsError> + Send,
) -> Result<T, NetnsError> {
    thread::scope(|scope| {
        let thread = thread::Builder::new().spawn_scoped(scope, run).map_err(|source| {
            NetnsError::new("start a thread for a network namespace".to_owned(), source)
        })?;
        thread.join().unwrap_or_else(|cause| panic::resume_unwind(cause))
    })
}
