//! The BPF programs: a thin shell around the hooks of the `datapath` crate.
//!
//! Each program takes its packet, runs its hook, and tells the kernel the verdict. Names are
//! [`abi::names`]; maps are in [`maps`], the packet in [`ctx`].

#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]

mod config;
mod ctx;
mod events;
mod maps;

use aya_ebpf::bindings::{TC_ACT_OK, TC_ACT_SHOT, bpf_redir_neigh as Neighbour};
use aya_ebpf::helpers::{bpf_redirect, bpf_redirect_neigh, bpf_redirect_peer};
use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use datapath::hooks::{
    self, FromContainer, FromHost, FromNetdev, FromOverlay, Hook, ToContainer, ToNetdev, ToOverlay,
};
use datapath::packet::NextHop;
use datapath::Verdict;

use crate::ctx::Skb;
use crate::maps::NodeMaps;

/// Runs a hook and carries out its verdict.
#[inline(always)]
fn program<H: Hook>(context: &TcContext) -> i32 {
    match hooks::run::<H, _, _>(&mut Skb::new(context), &NodeMaps) {
        Verdict::ToStack => TC_ACT_OK as i32,
        Verdict::Drop => TC_ACT_SHOT as i32,
        // SAFETY: helpers that take numbers.
        Verdict::Redirect { ifindex } => unsafe { bpf_redirect(ifindex, 0) as i32 },
        // SAFETY: helpers that take numbers.
        Verdict::RedirectPeer { ifindex } => unsafe { bpf_redirect_peer(ifindex, 0) as i32 },
        Verdict::RedirectNeighbour { ifindex, next_hop } => redirect_neighbour(ifindex, next_hop),
    }
}

#[inline(always)]
fn redirect_neighbour(ifindex: u32, next_hop: NextHop) -> i32 {
    // SAFETY: all fields are integers.
    let mut neighbour: Neighbour = unsafe { core::mem::zeroed() };
    neighbour.nh_family = u32::from(next_hop.address_family);
    neighbour.__bindgen_anon_1.ipv6_nh = next_hop.address;
    let len = size_of::<Neighbour>() as i32;
    // SAFETY: the helper reads `len` bytes of `neighbour`.
    unsafe { bpf_redirect_neigh(ifindex, &raw mut neighbour, len, 0) as i32 }
}

/// What a pod sends.
#[classifier]
pub fn cil_from_container(context: TcContext) -> i32 {
    program::<FromContainer>(&context)
}

/// What the stack delivers to a pod.
#[classifier]
pub fn cil_to_container(context: TcContext) -> i32 {
    program::<ToContainer>(&context)
}

/// What comes from the network.
#[classifier]
pub fn cil_from_netdev(context: TcContext) -> i32 {
    program::<FromNetdev>(&context)
}

/// What leaves to the network.
#[classifier]
pub fn cil_to_netdev(context: TcContext) -> i32 {
    program::<ToNetdev>(&context)
}

/// What comes out of the tunnel.
#[classifier]
pub fn cil_from_overlay(context: TcContext) -> i32 {
    program::<FromOverlay>(&context)
}

/// What goes into the tunnel.
#[classifier]
pub fn cil_to_overlay(context: TcContext) -> i32 {
    program::<ToOverlay>(&context)
}

/// What the host sends to pods.
#[classifier]
pub fn cil_from_host(context: TcContext) -> i32 {
    program::<FromHost>(&context)
}

/// The kernel lends most helpers to programs under a licence it knows.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 4] = *b"GPL\0";

/// Unreachable: the linker keeps no panic, the verifier would refuse the loop.
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
