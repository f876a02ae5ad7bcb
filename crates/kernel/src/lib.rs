//! Linux seen from user space: everything the control plane asks the kernel for.
//!
//! ```text
//!   datapath ··· loads the BPF programs once per node and attaches them
//!   map ········ typed BPF maps, one and many entries per call; and a fake that fails on demand
//!   events ····· what the programs report: ring buffers per CPU, merged by time
//!   netlink ···· links, addresses, routes, neighbours, filters
//!   netns, sysctl, cgroup, bpffs ··· the namespaces and file systems around them
//!   requirements ··· what must be true of this machine, with words on what to do when it is not
//! ```
//!
//! All calls block and are short. Nothing here decides: what should be in the kernel is computed
//! elsewhere, this crate reads and writes it, and keeps errors typed.
//!
//! Architecture invariant: only this crate knows `aya`, BPF system calls and netlink; and it knows
//! of the project only `abi`.

#![deny(missing_docs)]

pub mod bpffs;
pub mod cgroup;
pub mod clock;
pub mod datapath;
pub mod events;
pub mod map;
pub mod netlink;
pub mod netns;
pub mod requirements;
mod sys;
pub mod sysctl;
pub mod test_run;
