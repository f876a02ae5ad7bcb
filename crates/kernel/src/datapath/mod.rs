//! Loads the BPF programs, once per node, and attaches them.
//!
//! ```text
//!   <bpffs>/tc/globals/<map>                      adopted from the agent before this one
//!   <bpffs>/cilium/programs/<generation>/<prog>   one generation per load, old ones removed last
//!   <bpffs>/cilium/devices/<dev>/links/<prog>     tcx links of the node's devices
//! ```
//!
//! A load never disturbs what runs: it makes a new generation beside the old one, then every
//! attachment is moved by an atomic replacement, so each packet meets the old program or the new
//! one. Devices of the node get pinned tcx links, which survive the agent and are updated in
//! place; devices of pods get clsact filters, which belong to the device and cost below a
//! millisecond where a tcx link waits 10 ms for RCU. Kernels before 6.6 have clsact only.

mod attach;
mod maps;
mod object;

use std::{
    error::Error,
    fs, io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use abi::{DatapathConfig, names};

pub use self::{
    attach::AttachError,
    maps::{MapSizes, Maps, open_maps},
};
use crate::{
    bpffs,
    map::MapError,
    netlink::{Netlink, NetlinkError},
    sys,
};

/// The programs this crate was built with; empty when they were not there.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/cilium.bpf.o"));

/// Why the datapath could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The binary has no programs in it.
    #[error("built without BPF programs: run `cargo xtask build-bpf`, then build again")]
    NotBuilt,
    /// There is no BPF file system.
    #[error("no BPF file system at {path}; mount one: mount -t bpf bpffs {path}", path = .0.display())]
    NoBpffs(PathBuf),
    /// A map could not be opened or made.
    #[error(transparent)]
    Map(#[from] MapError),
    /// The object file is not as it should be, or the kernel lacks what it needs.
    #[error("{action} the BPF object: {source}")]
    Object {
        /// What we were doing.
        action: &'static str,
        /// What is wrong with it.
        source: Box<dyn Error + Send + Sync>,
    },
    /// The verifier refused a program.
    #[error("load program {name}: {source}\n{log}")]
    Program {
        /// The program.
        name: String,
        /// What the kernel said.
        source: io::Error,
        /// The end of the verifier's walk, which says what it did not like.
        log: String,
    },
    /// A file operation in the BPF file system failed.
    #[error("{action} {}: {source}", path.display())]
    File {
        /// What we were doing.
        action: &'static str,
        /// With what.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// No netlink socket, or no answer.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
}

/// How to load.
#[derive(Clone, Copy, Debug)]
pub struct LoadOptions<'a> {
    /// Mount point of the BPF file system.
    pub bpffs: &'a Path,
    /// The constants the programs are verified with.
    pub config: DatapathConfig,
    /// How large the maps are.
    pub sizes: MapSizes,
}

/// What the kernel says of a loaded program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProgramStats {
    /// Name.
    pub name: String,
    /// Id in the kernel.
    pub id: u32,
    /// Hash of its instructions.
    pub tag: u64,
    /// Instructions after the verifier's rewriting, dead code removed.
    pub insns: u32,
    /// Instructions the verifier walked through; its limit is a million.
    pub verified_insns: u32,
    /// Bytes of stack: its own and those of the deepest function that is not inlined.
    pub stack_bytes: u32,
    /// Bytes of machine code.
    pub jited_len: u32,
    /// How long the kernel took to verify and compile it.
    pub load_duration: Duration,
}

/// The loaded programs of this node and their maps.
///
/// Attaching resolves devices in the network namespace of the calling thread (tcx) or of the thread
/// that loaded (clsact): both must be the node's.
#[derive(Debug)]
pub struct Datapath {
    /// The tables the programs read and write.
    pub maps: Maps,
    bpffs: PathBuf,
    generation: u64,
    programs: Vec<LoadedProgram>,
    netlink: Netlink,
    tcx: bool,
    load_duration: Duration,
}

#[derive(Debug)]
struct LoadedProgram {
    fd: OwnedFd,
    stats: ProgramStats,
}

impl Datapath {
    /// Adopts the pinned maps or makes them, and loads the programs as a new generation. Attaches
    /// nothing. Must be called in the network namespace of the node.
    pub fn load(options: &LoadOptions<'_>) -> Result<Self, LoadError> {
        if OBJECT.is_empty() {
            return Err(LoadError::NotBuilt);
        }
        Self::load_object(options, OBJECT)
    }

    /// Like [`Datapath::load`], with programs from elsewhere.
    pub fn load_object(options: &LoadOptions<'_>, object: &[u8]) -> Result<Self, LoadError> {
        let started = Instant::now();
        if !bpffs::mounted(options.bpffs) {
            return Err(LoadError::NoBpffs(options.bpffs.to_owned()));
        }
        let maps = Maps::open_or_create(options.bpffs, &options.sizes)?;
        let pins = maps::pins(options.bpffs).collect();
        let programs =
            object::load(object, &options.config, &pins, |name| needed(name, &options.config))?;
        let mut datapath = Self {
            maps,
            bpffs: options.bpffs.to_owned(),
            generation: next_generation(options.bpffs)?,
            programs,
            netlink: Netlink::new()?,
            tcx: attach::kernel_has_tcx(),
            load_duration: Duration::ZERO,
        };
        datapath.pin_programs()?;
        datapath.load_duration = started.elapsed();
        Ok(datapath)
    }

    /// How long it took to load everything.
    pub const fn load_duration(&self) -> Duration {
        self.load_duration
    }

    /// What the kernel says of each program.
    pub fn stats(&self) -> Vec<ProgramStats> {
        self.programs.iter().map(|program| program.stats.clone()).collect()
    }

    /// Whether the node's devices have tcx links; otherwise they have clsact filters.
    pub const fn uses_tcx(&self) -> bool {
        self.tcx
    }

    /// The number of this load; the programs are pinned under it.
    pub const fn generation(&self) -> u64 {
        self.generation
    }

    /// A loaded program.
    pub fn program(&self, name: &str) -> Option<BorrowedFd<'_>> {
        let program = self.programs.iter().find(|program| program.stats.name == name)?;
        Some(program.fd.as_fd())
    }

    /// Unpins the programs of earlier loads, and the links of devices that are gone. Call it when
    /// every attachment was moved to this load; a program that is still attached somewhere lives
    /// on without its pin.
    pub fn remove_old_generations(&self) -> Result<(), LoadError> {
        let defunct = self.remove_defunct_links().map_err(|source| LoadError::File {
            action: "remove the links of devices that are gone in",
            path: self.bpffs.join(names::DEVICES_DIR),
            source,
        })?;
        for path in defunct {
            tracing::info!(path = %path.display(), "unpinned the link of a device that is gone");
        }
        let dir = self.bpffs.join(names::PROGRAMS_DIR);
        for (generation, path) in generations(&dir)? {
            if generation < self.generation {
                fs::remove_dir_all(&path).map_err(|source| LoadError::File {
                    action: "remove the programs in",
                    path,
                    source,
                })?;
            }
        }
        Ok(())
    }

    fn pin_programs(&self) -> Result<(), LoadError> {
        let dir = self.bpffs.join(names::PROGRAMS_DIR).join(self.generation.to_string());
        fs::create_dir_all(&dir).map_err(|source| LoadError::File {
            action: "create",
            path: dir.clone(),
            source,
        })?;
        for program in &self.programs {
            let path = dir.join(&program.stats.name);
            sys::pin(program.fd.as_fd(), &path).map_err(|source| LoadError::File {
                action: "pin a program at",
                path,
                source,
            })?;
        }
        Ok(())
    }
}

/// What is switched off is not even loaded.
fn needed(program: &str, config: &DatapathConfig) -> bool {
    let overlay = program == names::FROM_OVERLAY || program == names::TO_OVERLAY;
    !overlay || config.tunnel != abi::config::TUNNEL_OFF
}

/// The directories of generations, lowest first.
fn generations(dir: &Path) -> Result<Vec<(u64, PathBuf)>, LoadError> {
    let failed = |source| LoadError::File { action: "list", path: dir.to_owned(), source };
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(failed)?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.map_err(failed)?.path();
        let number = path.file_name().and_then(|name| name.to_str()?.parse().ok());
        found.extend(number.map(|number| (number, path)));
    }
    found.sort();
    Ok(found)
}

fn next_generation(bpffs: &Path) -> Result<u64, LoadError> {
    let generations = generations(&bpffs.join(names::PROGRAMS_DIR))?;
    Ok(generations.last().map_or(1, |(number, _)| number + 1))
}
