//! Puts loaded programs on devices, and takes them off.

use std::{
    fs, io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
};

use abi::names;

use super::Datapath;
use crate::{
    netlink::{Link, NetlinkError, TcHook},
    sys,
};

/// Why a program could not be attached or detached.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// There is no such program in this generation.
    #[error("program {0} is not loaded; the configuration may not need it")]
    NotLoaded(String),
    /// Netlink refused.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// The link could not be made, updated or pinned.
    #[error("{action} the link of {program} on {device}: {source}")]
    Link {
        /// What we were doing.
        action: &'static str,
        /// The program.
        program: String,
        /// The device.
        device: String,
        /// What the kernel said.
        source: io::Error,
    },
}

impl Datapath {
    /// Attaches a program to a device of the node, or moves the attachment that is there to this
    /// generation: atomically, no packet goes without. A link of a device that is gone, whose name
    /// the device has now, is replaced.
    pub fn attach_device(
        &self,
        device: &Link,
        hook: TcHook,
        program: &str,
    ) -> Result<(), AttachError> {
        let fd = self.loaded(program)?;
        if !self.tcx {
            self.netlink.ensure_clsact(device.index)?;
            return Ok(self.netlink.replace_bpf_filter(device.index, hook, program, fd)?);
        }
        let failed = |action| {
            move |source| AttachError::Link {
                action,
                program: program.to_owned(),
                device: device.name.clone(),
                source,
            }
        };
        let path = self.link_path(&device.name, program);
        let at = TcxHook { ifindex: device.index, attach_type: attach_type(hook) };
        if let Some(link) = open_link(&path).map_err(failed("open"))? {
            if link.at == at {
                return sys::link_update(link.fd.as_fd(), fd).map_err(failed("update"));
            }
            fs::remove_file(&path).map_err(failed("unpin"))?;
        }
        if let Some(dir) = path.parent() {
            fs::create_dir_all(dir).map_err(failed("make room for"))?;
        }
        let link = sys::link_create(fd, at.ifindex, at.attach_type).map_err(failed("create"))?;
        sys::pin(link.as_fd(), &path).map_err(failed("pin"))
    }

    /// Takes a program from a device of the node. It may be off already.
    pub fn detach_device(
        &self,
        device: &Link,
        hook: TcHook,
        program: &str,
    ) -> Result<(), AttachError> {
        if !self.tcx {
            return match self.netlink.delete_bpf_filter(device.index, hook) {
                Err(error) if !is_gone(&error) => Err(error.into()),
                _ => Ok(()),
            };
        }
        let failed = |action, source| AttachError::Link {
            action,
            program: program.to_owned(),
            device: device.name.clone(),
            source,
        };
        let path = self.link_path(&device.name, program);
        let Some(link) = open_link(&path).map_err(|source| failed("open", source))? else {
            return Ok(());
        };
        // Detaching by hand takes effect when the call returns, whoever else holds the link.
        match sys::link_detach(link.fd.as_fd()) {
            // Defunct already.
            Err(error) if error.raw_os_error() == Some(libc::ENOLINK) => {}
            result => result.map_err(|source| failed("detach", source))?,
        }
        fs::remove_file(&path).map_err(|source| failed("unpin", source))
    }

    /// Attaches both programs of a pod to its host-side device, or moves them to this generation.
    pub fn attach_endpoint(&self, ifindex: u32) -> Result<(), AttachError> {
        let from_container = self.loaded(names::FROM_CONTAINER)?;
        let to_container = self.loaded(names::TO_CONTAINER)?;
        let netlink = &self.netlink;
        netlink.ensure_clsact(ifindex)?;
        // The way to the pod first: what the pod sends may be answered at once.
        netlink.replace_bpf_filter(ifindex, TcHook::Egress, names::TO_CONTAINER, to_container)?;
        netlink.replace_bpf_filter(
            ifindex,
            TcHook::Ingress,
            names::FROM_CONTAINER,
            from_container,
        )?;
        Ok(())
    }

    /// Takes both programs from a pod's device. A device that is gone is fine.
    pub fn detach_endpoint(&self, ifindex: u32) -> Result<(), AttachError> {
        match self.netlink.delete_clsact(ifindex) {
            Err(error) if !is_gone(&error) => Err(error.into()),
            _ => Ok(()),
        }
    }

    /// Whether a pod's device has both programs of this generation.
    pub fn endpoint_attached(&self, ifindex: u32) -> Result<bool, AttachError> {
        for (hook, program) in
            [(TcHook::Ingress, names::FROM_CONTAINER), (TcHook::Egress, names::TO_CONTAINER)]
        {
            let id = self.programs.iter().find(|loaded| loaded.stats.name == program);
            let filters = self.netlink.bpf_filters(ifindex, hook)?;
            if !filters.iter().any(|filter| Some(filter.program_id) == id.map(|id| id.stats.id)) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Unpins the links of devices that are gone, and says of which.
    pub fn remove_defunct_links(&self) -> io::Result<Vec<PathBuf>> {
        let mut removed = Vec::new();
        for device in list(&self.bpffs.join(names::DEVICES_DIR))? {
            let links = device.join("links");
            for path in list(&links)? {
                if open_link(&path)?.is_some_and(|link| link.at.ifindex == 0) {
                    fs::remove_file(&path)?;
                    removed.push(path);
                }
            }
            if list(&links)?.is_empty() {
                fs::remove_dir_all(&device)?;
            }
        }
        Ok(removed)
    }

    fn loaded(&self, program: &str) -> Result<BorrowedFd<'_>, AttachError> {
        self.program(program).ok_or_else(|| AttachError::NotLoaded(program.to_owned()))
    }

    fn link_path(&self, device: &str, program: &str) -> PathBuf {
        // BPF file systems refuse dots in names; Cilium's answer is a dash as well.
        let device = device.replace('.', "-");
        self.bpffs.join(names::DEVICES_DIR).join(device).join("links").join(program)
    }
}

/// Whether this kernel has tcx.
pub(super) fn kernel_has_tcx() -> bool {
    fs::read_to_string("/proc/sys/kernel/osrelease")
        .ok()
        .and_then(|release| sys::kernel_version(&release))
        .is_some_and(|version| version >= (6, 6))
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct TcxHook {
    /// 0 once the device is gone.
    ifindex: u32,
    attach_type: u32,
}

#[derive(Debug)]
struct TcxLink {
    fd: OwnedFd,
    at: TcxHook,
}

fn open_link(path: &Path) -> io::Result<Option<TcxLink>> {
    let fd = match sys::pinned(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        fd => fd?,
    };
    let info: sys::TcxLinkInfo = sys::info(fd.as_fd())?;
    let at = TcxHook { ifindex: info.ifindex, attach_type: info.attach_type };
    Ok(Some(TcxLink { fd, at }))
}

const fn attach_type(hook: TcHook) -> u32 {
    match hook {
        TcHook::Ingress => sys::ATTACH_TCX_INGRESS,
        TcHook::Egress => sys::ATTACH_TCX_EGRESS,
    }
}

/// No such device, or no clsact on it.
fn is_gone(error: &NetlinkError) -> bool {
    let invalid = |source: &io::Error| source.raw_os_error() == Some(libc::EINVAL);
    error.is_not_found() || matches!(error, NetlinkError::Refused { source, .. } if invalid(source))
}

fn list(dir: &Path) -> io::Result<Vec<PathBuf>> {
    match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        entries => entries?.map(|entry| entry.map(|entry| entry.path())).collect(),
    }
}
