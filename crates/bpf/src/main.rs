//! The BPF programs: a thin shell around the hooks of the `datapath` crate.
//!
//! Each program takes its packet, runs its hook and returns the verdict. Names are
//! [`abi::names`]; maps are in [`maps`], the packet in [`ctx`].

#![no_std]
#![no_main]
#![feature(asm_experimental_arch, core_intrinsics)]
#![expect(internal_features, reason = "whether an offset is a constant decides how it is checked")]

mod config;
mod ctx;
mod events;
mod maps;

use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use datapath::hooks::{
    self, FromContainer, FromHost, FromNetdev, FromOverlay, Hook, ToContainer, ToNetdev, ToOverlay,
};

use crate::ctx::Skb;
use crate::maps::NodeMaps;

/// Runs a hook.
#[inline(always)]
fn program<H: Hook>(context: &TcContext) -> i32 {
    hooks::run::<H, _, _>(&mut Skb::new(context), &NodeMaps) as i32
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
