//! Events into the ring of this CPU.
//!
//! The reader polls while somebody listens, so a record wakes nobody, except when a quarter of the
//! ring is unread: then the reader is late, and one wake-up serves thousands of records.

use abi::event::{CAPTURE_LEN_MAX, RecordHeader};
use abi::names::EVENTS_RING_BYTES;
use aya_ebpf::bindings::{BPF_RB_AVAIL_DATA, BPF_RB_FORCE_WAKEUP, BPF_RB_NO_WAKEUP};
use aya_ebpf::helpers::{
    bpf_get_smp_processor_id, bpf_ktime_get_ns, bpf_ringbuf_query, bpf_skb_load_bytes,
};

use crate::ctx::Skb;
use crate::maps::{EVENTS, EVENTS_LOST, Ring};

const WAKE_UP_BYTES: u64 = EVENTS_RING_BYTES as u64 / 4;

/// A record with a packet: always of one size, the event says how much of it counts.
#[repr(C)]
struct PacketRecord<E> {
    header: RecordHeader,
    event: E,
    packet: [u8; CAPTURE_LEN_MAX],
}

/// A record without a packet. Packed, so that it ends where the event does.
#[repr(C, packed(4))]
struct Record<E> {
    header: RecordHeader,
    event: E,
}

/// Sends an event with the first `packet_len` bytes of the packet. The event is made in the ring,
/// not on the stack.
#[inline(always)]
pub(crate) fn send_packet<E: Copy + 'static>(
    packet: &Skb,
    packet_len: u16,
    event: impl FnOnce() -> E,
) {
    let Some(ring) = ring() else { return };
    let Some(mut entry) = ring.reserve_untyped::<PacketRecord<E>>(0) else {
        return lost();
    };
    let record = entry.as_mut_ptr();
    let len = u32::from(packet_len).min(CAPTURE_LEN_MAX as u32);
    // SAFETY: the entry is ours until it is submitted and has room for a whole record; the helper
    // writes at most `CAPTURE_LEN_MAX` bytes to `packet`.
    unsafe {
        (&raw mut (*record).header).write(header());
        (&raw mut (*record).event).write(event());
        // One less than the length, made so that the compiler does not know what it is: 6.1's
        // verifier learns a lower bound of 1 from this comparison, but not from one with 0.
        let mut last = u64::from(len);
        core::arch::asm!("{0} += -1", inout(reg) last, options(nomem, nostack));
        if last < CAPTURE_LEN_MAX as u64 {
            let target = (&raw mut (*record).packet).cast();
            bpf_skb_load_bytes(packet.as_ptr().cast(), 0, target, last as u32 + 1);
        }
    }
    entry.submit(wake_up(ring));
}

/// Sends an event without a packet.
#[inline(always)]
pub(crate) fn send<E: Copy + 'static>(event: &E) {
    let Some(ring) = ring() else { return };
    let Some(mut entry) = ring.reserve_untyped::<Record<E>>(0) else {
        return lost();
    };
    entry.write(Record { header: header(), event: *event });
    entry.submit(wake_up(ring));
}

#[inline(always)]
fn ring() -> Option<&'static Ring> {
    // SAFETY: a helper without arguments.
    EVENTS.get(unsafe { bpf_get_smp_processor_id() })
}

#[inline(always)]
fn header() -> RecordHeader {
    // SAFETY: a helper without arguments.
    RecordHeader { timestamp_ns: unsafe { bpf_ktime_get_ns() } }
}

#[inline(always)]
fn wake_up(ring: &Ring) -> u64 {
    let map = core::ptr::from_ref(ring).cast_mut().cast();
    // SAFETY: the pointer is to a map of this type.
    let unread = unsafe { bpf_ringbuf_query(map, u64::from(BPF_RB_AVAIL_DATA)) };
    u64::from(if unread >= WAKE_UP_BYTES { BPF_RB_FORCE_WAKEUP } else { BPF_RB_NO_WAKEUP })
}

#[inline(always)]
fn lost() {
    if let Some(count) = EVENTS_LOST.get_ptr_mut(0) {
        // SAFETY: the value is this CPU's; a lost event more or less where programs nest.
        unsafe { *count += 1 };
    }
}
