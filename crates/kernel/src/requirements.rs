//! What must be true of this machine, checked before anything is changed.

use std::{fs, io, path::Path};

use crate::{bpffs, cgroup::Cgroup, sys};

/// Something this machine lacks, with what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum Missing {
    /// Not root.
    #[error("this needs root: run it with sudo")]
    Root,
    /// No BPF system call, or not allowed.
    #[error(
        "this kernel refuses bpf(2): {0}; it needs CONFIG_BPF_SYSCALL and, in a container, the \
         capabilities CAP_BPF, CAP_NET_ADMIN and CAP_SYS_ADMIN"
    )]
    Bpf(io::Error),
    /// No cgroup2.
    #[error(transparent)]
    Cgroup(#[from] crate::cgroup::CgroupError),
    /// No BPF file system.
    #[error("no BPF file system at {0}; mount one: mount -t bpf bpffs {0}")]
    Bpffs(String),
    /// An old kernel.
    #[error("Linux {0} is too old: 6.1 or later is needed")]
    Kernel(String),
}

/// Checks for root.
pub fn root() -> Result<(), Missing> {
    if nix::unistd::geteuid().is_root() { Ok(()) } else { Err(Missing::Root) }
}

/// Checks that maps can be made.
pub fn bpf() -> Result<(), Missing> {
    let array = sys::MapCreate {
        map_type: sys::MAP_TYPE_ARRAY,
        key_size: 4,
        value_size: 8,
        max_entries: 1,
        flags: 0,
        inner_map_fd: 0,
        numa_node: 0,
        name: sys::object_name("probe"),
        ifindex: 0,
        btf_fd: 0,
        btf_key_type_id: 0,
        btf_value_type_id: 0,
    };
    sys::map_create(array).map(drop).map_err(Missing::Bpf)
}

/// Checks for a cgroup2 mount.
pub fn cgroup2() -> Result<(), Missing> {
    Ok(Cgroup::root().map(drop)?)
}

/// Checks for a BPF file system.
pub fn bpf_file_system(path: &Path) -> Result<(), Missing> {
    if bpffs::mounted(path) { Ok(()) } else { Err(Missing::Bpffs(path.display().to_string())) }
}

/// Checks the version of the kernel.
pub fn kernel() -> Result<(), Missing> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    match sys::kernel_version(&release) {
        Some(version) if version < (6, 1) => Err(Missing::Kernel(release.trim().to_owned())),
        _ => Ok(()),
    }
}

/// All that a node needs; the first thing that is missing.
pub fn node(bpffs: &Path) -> Result<(), Missing> {
    root()?;
    kernel()?;
    bpf()?;
    cgroup2()?;
    bpf_file_system(bpffs)
}
