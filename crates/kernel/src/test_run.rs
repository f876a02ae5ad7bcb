//! Runs a loaded program on a packet without a network: `BPF_PROG_TEST_RUN`.
//!
//! For tests and benchmarks. The packet's device is one of the calling thread's namespace, the
//! loopback unless [`SkbContext::ifindex`] says another.

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd},
};

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::sys::{Command, bpf};

/// `struct __sk_buff`, what a tc program sees beside the packet. Going in, the kernel takes
/// `mark`, `priority`, `ifindex`, `cb`, `tstamp`, `wire_len`, `gso_segs` and `gso_size` and wants
/// all else to be zero.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
#[expect(missing_docs, reason = "the names are those of the kernel's struct")]
pub struct SkbContext {
    pub len: u32,
    pub pkt_type: u32,
    pub mark: u32,
    pub queue_mapping: u32,
    pub protocol: u32,
    pub vlan_present: u32,
    pub vlan_tci: u32,
    pub vlan_proto: u32,
    pub priority: u32,
    pub ingress_ifindex: u32,
    pub ifindex: u32,
    pub tc_index: u32,
    pub cb: [u32; 5],
    pub hash: u32,
    pub tc_classid: u32,
    pub data: u32,
    pub data_end: u32,
    pub napi_id: u32,
    pub family: u32,
    pub remote_ip4: u32,
    pub local_ip4: u32,
    pub remote_ip6: [u32; 4],
    pub local_ip6: [u32; 4],
    pub remote_port: u32,
    pub local_port: u32,
    pub data_meta: u32,
    pub flow_keys: u64,
    pub tstamp: u64,
    pub wire_len: u32,
    pub gso_segs: u32,
    pub sk: u64,
    pub gso_size: u32,
    pub tstamp_type: u32,
    pub hwtstamp: u64,
}

/// What a run did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TestRun {
    /// The program's return value: a `TC_ACT_*`.
    pub verdict: u32,
    /// The packet afterwards.
    pub packet: Vec<u8>,
    /// The context afterwards.
    pub context: SkbContext,
    /// Average of all repetitions.
    pub duration_ns: u32,
}

/// The most a packet grows by in a run.
const HEADROOM: usize = 512;

/// Runs a tc program `repeat` times on one packet; edits persist from one to the next.
pub fn run(
    program: BorrowedFd<'_>,
    packet: &[u8],
    context: &SkbContext,
    repeat: u32,
) -> io::Result<TestRun> {
    #[derive(FromBytes, IntoBytes)]
    #[repr(C)]
    struct Attr {
        program: u32,
        verdict: u32,
        data_size_in: u32,
        data_size_out: u32,
        data_in: u64,
        data_out: u64,
        repeat: u32,
        duration_ns: u32,
        context_size_in: u32,
        context_size_out: u32,
        context_in: u64,
        context_out: u64,
        flags: u32,
        cpu: u32,
        batch_size: u32,
        pad: u32,
    }
    let mut out = vec![0; packet.len() + HEADROOM];
    let mut after = SkbContext::default();
    let mut attr = Attr {
        program: program.as_raw_fd() as u32,
        verdict: 0,
        data_size_in: packet.len() as u32,
        data_size_out: out.len() as u32,
        data_in: packet.as_ptr() as u64,
        data_out: out.as_mut_ptr() as u64,
        repeat,
        duration_ns: 0,
        context_size_in: size_of::<SkbContext>() as u32,
        context_size_out: size_of::<SkbContext>() as u32,
        context_in: (&raw const *context) as u64,
        context_out: (&raw mut after) as u64,
        flags: 0,
        cpu: 0,
        batch_size: 0,
        pad: 0,
    };
    // SAFETY: each address is of a buffer that lives through the call, with its length beside it.
    unsafe { bpf(Command::ProgTestRun, &mut attr) }?;
    out.truncate(attr.data_size_out as usize);
    Ok(TestRun {
        verdict: attr.verdict,
        packet: out,
        context: after,
        duration_ns: attr.duration_ns,
    })
}
