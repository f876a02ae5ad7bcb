//! The BPF file system, where maps, programs and links are pinned.

use std::{fs, io, path::Path};

use nix::{
    mount::{MsFlags, mount as mount_call},
    sys::statfs::{BPF_FS_MAGIC, statfs},
};

/// Why the BPF file system is not to be had.
#[derive(Debug, thiserror::Error)]
#[error("{action} BPF file system at {path}: {source}")]
pub struct BpffsError {
    action: &'static str,
    path: String,
    source: io::Error,
}

/// Whether a BPF file system is mounted at `path`.
pub fn mounted(path: &Path) -> bool {
    statfs(path).is_ok_and(|stat| stat.filesystem_type() == BPF_FS_MAGIC)
}

/// Mounts a BPF file system at `path` unless one is there.
pub fn mount(path: &Path) -> Result<(), BpffsError> {
    if mounted(path) {
        return Ok(());
    }
    let failed = |source: io::Error| BpffsError {
        action: "mount",
        path: path.display().to_string(),
        source,
    };
    fs::create_dir_all(path).map_err(failed)?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount_call(Some("bpffs"), path, Some("bpf"), flags, Some("mode=0700"))
        .map_err(|errno| failed(errno.into()))
}
