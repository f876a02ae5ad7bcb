//! Runs a program as a device would, under `BPF_PROG_TEST_RUN`: for benchmarks and the differential
//! test, never installed.
//!
//! A test run repeats a program on one packet, and what the program wrote stays: after 64 rounds
//! the TTL is used up. Nor can a test run be given a tunnel key. `restore` puts packet, mark and
//! tunnel key in order, then calls the program in slot 0 of `PROGRAM`; `empty` in that slot
//! measures what the harness itself costs.

#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]

use aya_ebpf::bindings::{TC_ACT_OK, TC_ACT_SHOT, bpf_tunnel_key as TunnelKey};
use aya_ebpf::btf_maps::{Array, ProgramArray};
use aya_ebpf::helpers::{bpf_skb_set_tunnel_key, bpf_skb_store_bytes};
use aya_ebpf::macros::{btf_map, classifier};
use aya_ebpf::programs::TcContext;

/// Bytes of a packet that are restored at most.
const TEMPLATE_LEN_MAX: u32 = 128;
/// A tunnel key without the local address, as the programs read it.
const TUNNEL_KEY_LEN: u32 = core::mem::offset_of!(TunnelKey, __bindgen_anon_2) as u32;

/// What is restored. User space writes it: `kernel`'s tests have the same struct.
#[derive(Clone, Copy)]
#[repr(C)]
struct Template {
    /// Bytes of the packet.
    len: u32,
    /// Mark.
    mark: u32,
    /// 1 when the packet has a tunnel key.
    has_tunnel_key: u32,
    /// The key's VNI.
    vni: u32,
    /// Where two bytes are counted up from packet to packet, a source port; 0 for nowhere.
    counted_at: u32,
    /// What they are next, host byte order.
    count: u32,
    bytes: [u8; TEMPLATE_LEN_MAX as usize],
}

#[btf_map(name = "template")]
static TEMPLATE: Array<Template, 1> = Array::new();

#[btf_map(name = "program")]
static PROGRAM: ProgramArray<1> = ProgramArray::new();

/// Restores the packet and calls the program in `PROGRAM`.
#[classifier]
pub fn restore(context: TcContext) -> i32 {
    let Some(template) = TEMPLATE.get_ptr_mut(0) else { return TC_ACT_SHOT as i32 };
    // SAFETY: the map's only value; one test runs at a time.
    let template = unsafe { &mut *template };
    context.set_mark(template.mark);
    // One less than the length: 6.1's verifier learns from this comparison that the length is not 0.
    let mut last = u64::from(template.len);
    // SAFETY: the statement subtracts from a number.
    unsafe { core::arch::asm!("{0} += -1", inout(reg) last, options(nomem, nostack)) };
    if last >= u64::from(TEMPLATE_LEN_MAX) {
        return TC_ACT_SHOT as i32;
    }
    let len = last as u32 + 1;
    // SAFETY: the helper reads `len` bytes, which the template has.
    unsafe {
        bpf_skb_store_bytes(context.skb.skb.cast(), 0, template.bytes.as_ptr().cast(), len, 0)
    };
    if template.counted_at != 0 {
        template.count += 1;
        let port = (template.count as u16).to_be_bytes();
        // SAFETY: the helper reads two bytes of `port`.
        unsafe {
            bpf_skb_store_bytes(
                context.skb.skb.cast(),
                template.counted_at,
                port.as_ptr().cast(),
                2,
                0,
            )
        };
    }
    if template.has_tunnel_key != 0 {
        // SAFETY: all fields are integers.
        let mut key: TunnelKey = unsafe { core::mem::zeroed() };
        key.tunnel_id = template.vni;
        // SAFETY: the helper reads `TUNNEL_KEY_LEN` bytes of `key`, which has more.
        unsafe { bpf_skb_set_tunnel_key(context.skb.skb, &raw mut key, TUNNEL_KEY_LEN, 0) };
    }
    // SAFETY: it returns only if there is no program in the slot.
    let _missed = unsafe { PROGRAM.tail_call(&context, 0) };
    TC_ACT_SHOT as i32
}

/// Does nothing.
#[classifier]
pub fn empty(_context: TcContext) -> i32 {
    TC_ACT_OK as i32
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
