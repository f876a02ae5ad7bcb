//! `__sk_buff` as a [`Packet`]: all that is unsafe about packets is here.

use abi::event::{DebugMessage, DropNotify, PolicyVerdictNotify, TraceNotify};
use aya_ebpf::bindings::{
    __sk_buff, BPF_F_TUNINFO_IPV6, BPF_F_ZERO_CSUM_TX, BPF_FIB_LKUP_RET_BLACKHOLE,
    BPF_FIB_LKUP_RET_NO_NEIGH, BPF_FIB_LKUP_RET_SUCCESS, bpf_fib_lookup as FibLookup,
    bpf_redir_neigh as Neighbour, bpf_tunnel_key as TunnelKey,
};
use aya_ebpf::helpers::{
    bpf_fib_lookup, bpf_get_hash_recalc, bpf_redirect, bpf_redirect_neigh, bpf_redirect_peer,
    bpf_skb_change_type, bpf_skb_get_tunnel_key, bpf_skb_pull_data, bpf_skb_set_tunnel_key,
};
use aya_ebpf::programs::TcContext;
use datapath::packet::{AF_INET, NetworkAddress, Route, RouteQuery};
use datapath::{Packet, Verdict};

use crate::events;

/// Headers that hooks read directly: Ethernet, IPv6, a neighbour solicitation with an option. As
/// much as Ethernet, IPv6, and TCP with timestamps, which is where the stack's own headers end.
const HEADERS_LEN_V6: u32 = 86;
/// The same of all other packets: Ethernet, IPv4, UDP. More would end behind the stack's own
/// headers, and each packet with payload would be copied together for nothing.
const HEADERS_LEN: u32 = 42;
/// `ETH_P_IPV6` of `linux/if_ether.h`, in network byte order as in `__sk_buff::protocol`.
const ETH_P_IPV6: u32 = 0x86dd_u16.to_be() as u32;
/// Farther into a packet no header begins: fifteen bits are more than an IPv6 header chain may take.
const OFFSET_MAX: usize = 0x7fff;
/// Bytes of a tunnel key without the local address, which kernels before 6.0 do not know.
const TUNNEL_KEY_LEN: u32 = core::mem::offset_of!(TunnelKey, __bindgen_anon_2) as u32;
/// TTL of the packet around the packet.
const TUNNEL_TTL: u8 = 64;
/// `PACKET_HOST` of `linux/if_packet.h`.
const PACKET_HOST: u32 = 0;

/// The packet that a program was called with.
pub(crate) struct Skb {
    skb: *mut __sk_buff,
}

/// Reads a field of the context. The kernel wants the offset in the instruction; the compiler, left
/// alone, keeps `context + offset` in a register where a field is read often.
macro_rules! field {
    ($skb:expr, $field:ident) => {{
        let word: u64;
        // SAFETY: a field of the program's own context, which the kernel lets it read.
        unsafe {
            core::arch::asm!(
                "{word} = *(u32 *)({skb} + {offset})",
                word = out(reg) word,
                skb = in(reg) $skb,
                offset = const core::mem::offset_of!(__sk_buff, $field),
                options(readonly, nostack, preserves_flags, pure),
            );
        }
        word
    }};
}

impl Skb {
    /// Takes the packet, and makes sure that the headers can be read directly: the kernel may
    /// keep them in another page.
    #[inline(always)]
    pub(crate) fn new(context: &TcContext) -> Self {
        let packet = Self { skb: context.skb.skb };
        let headers_len = match field!(packet.skb, protocol) as u32 {
            ETH_P_IPV6 => HEADERS_LEN_V6,
            _ => HEADERS_LEN,
        };
        let wanted = packet.length().min(headers_len);
        if packet.data() + wanted as usize > packet.data_end() {
            // SAFETY: the context is the program's own. Where it fails, loads fail.
            unsafe { bpf_skb_pull_data(packet.skb, wanted) };
        }
        packet
    }

    #[inline(always)]
    pub(crate) fn as_ptr(&self) -> *mut __sk_buff {
        self.skb
    }

    #[inline(always)]
    fn data(&self) -> usize {
        field!(self.skb, data) as usize
    }

    #[inline(always)]
    fn data_end(&self) -> usize {
        field!(self.skb, data_end) as usize
    }

    /// The address of `len` bytes at `offset`, if the packet has them.
    #[inline(always)]
    fn bytes(&self, offset: usize, len: usize) -> Option<usize> {
        let mut start = self.data();
        if core::intrinsics::is_val_statically_known(offset) {
            start += offset;
        } else {
            // What is compared with the end must be what is read through, one register with one
            // bounded sum in it: so the verifier sees that it is in the packet. The compiler must
            // not know a better way to add or to compare, hence the statements; and the bound is
            // needed because the verifier forgets those of a number that was kept in a map.
            let mut offset = offset;
            // SAFETY: the statement copies a number.
            unsafe {
                core::arch::asm!(
                    "{offset} = {offset}",
                    offset = inout(reg) offset,
                    options(nomem, nostack, pure),
                );
            }
            if offset > OFFSET_MAX {
                return None;
            }
            // SAFETY: the statement adds two numbers.
            unsafe {
                core::arch::asm!(
                    "{start} += {offset}",
                    start = inout(reg) start,
                    offset = in(reg) offset,
                    options(nomem, nostack, pure),
                );
            }
        }
        (start + len <= self.data_end()).then_some(start)
    }
}

/// Reads and writes words of the packet. Packets are not aligned: the kernel allows that on
/// machines that do, the compiler would go byte by byte.
macro_rules! packet_access {
    ($load:ident, $store:ident, $word:ty, $width:literal) => {
        #[inline(always)]
        unsafe fn $load(address: usize) -> $word {
            let word: u64;
            // SAFETY: the caller has compared the address with the packet's end.
            unsafe {
                core::arch::asm!(
                    concat!("{word} = *(", $width, " *)({address} + 0)"),
                    word = out(reg) word,
                    address = in(reg) address,
                    options(readonly, nostack, preserves_flags, pure),
                );
            }
            word as $word
        }

        #[inline(always)]
        unsafe fn $store(address: usize, word: $word) {
            // SAFETY: the caller has compared the address with the packet's end.
            unsafe {
                core::arch::asm!(
                    concat!("*(", $width, " *)({address} + 0) = {word}"),
                    word = in(reg) u64::from(word),
                    address = in(reg) address,
                    options(nostack, preserves_flags),
                );
            }
        }
    };
}

packet_access!(load_u64, store_u64, u64, "u64");
packet_access!(load_u32, store_u32, u32, "u32");
packet_access!(load_u16, store_u16, u16, "u16");
packet_access!(load_u8, store_u8, u8, "u8");

impl Packet for Skb {
    #[inline(always)]
    fn load<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        let start = self.bytes(offset, N)?;
        let mut bytes = [0; N];
        let mut at = 0;
        // SAFETY: `N` bytes are there from `start`; each read ends at `N` at the latest.
        unsafe {
            while N - at >= 8 {
                bytes[at..at + 8].copy_from_slice(&load_u64(start + at).to_ne_bytes());
                at += 8;
            }
            if N - at >= 4 {
                bytes[at..at + 4].copy_from_slice(&load_u32(start + at).to_ne_bytes());
                at += 4;
            }
            if N - at >= 2 {
                bytes[at..at + 2].copy_from_slice(&load_u16(start + at).to_ne_bytes());
                at += 2;
            }
            if N - at >= 1 {
                bytes[at] = load_u8(start + at);
            }
        }
        Some(bytes)
    }

    #[inline(always)]
    fn store<const N: usize>(&mut self, offset: usize, bytes: [u8; N]) -> Option<()> {
        let start = self.bytes(offset, N)?;
        let mut at = 0;
        // SAFETY: `N` bytes are there from `start`; each write ends at `N` at the latest.
        unsafe {
            while N - at >= 8 {
                store_u64(start + at, u64::from_ne_bytes(part(&bytes, at)));
                at += 8;
            }
            if N - at >= 4 {
                store_u32(start + at, u32::from_ne_bytes(part(&bytes, at)));
                at += 4;
            }
            if N - at >= 2 {
                store_u16(start + at, u16::from_ne_bytes(part(&bytes, at)));
                at += 2;
            }
            if N - at >= 1 {
                store_u8(start + at, bytes[at]);
            }
        }
        Some(())
    }

    #[inline(always)]
    fn length(&self) -> u32 {
        field!(self.skb, len) as u32
    }

    #[inline(always)]
    fn ifindex(&self) -> u32 {
        field!(self.skb, ifindex) as u32
    }

    #[inline(always)]
    fn mark(&self) -> u32 {
        field!(self.skb, mark) as u32
    }

    #[inline(always)]
    fn set_mark(&mut self, mark: u32) {
        // SAFETY: a field of the program's own context that programs may write.
        unsafe { (*self.skb).mark = mark };
    }

    #[inline(always)]
    fn redirect(&mut self, ifindex: u32) -> Verdict {
        // SAFETY: a helper that takes numbers. It fails for no flags but 0 and 1.
        unsafe { bpf_redirect(ifindex, 0) };
        Verdict::Redirect
    }

    #[inline(always)]
    fn redirect_peer(&mut self, ifindex: u32) -> Verdict {
        // SAFETY: a helper that takes numbers. It fails for no flags but 0.
        unsafe { bpf_redirect_peer(ifindex, 0) };
        Verdict::Redirect
    }

    #[inline(always)]
    fn redirect_neighbour(&mut self, ifindex: u32, next_hop: &NetworkAddress) -> Verdict {
        // SAFETY: all fields are integers.
        let mut neighbour: Neighbour = unsafe { core::mem::zeroed() };
        neighbour.nh_family = u32::from(next_hop.address_family);
        neighbour.__bindgen_anon_1.ipv6_nh = next_hop.address;
        let len = size_of::<Neighbour>() as i32;
        // SAFETY: the helper reads `len` bytes of `neighbour`; with them it does not fail.
        unsafe { bpf_redirect_neigh(ifindex, &raw mut neighbour, len, 0) };
        Verdict::Redirect
    }

    #[inline(always)]
    fn accept_as_host(&mut self) {
        // SAFETY: the context is the program's own. It fails for no type that a packet can have
        // here.
        unsafe { bpf_skb_change_type(self.skb, PACKET_HOST) };
    }

    #[inline(always)]
    fn tunnel_id(&self) -> Option<u32> {
        // SAFETY: all fields are integers.
        let mut key: TunnelKey = unsafe { core::mem::zeroed() };
        for flags in [0, u64::from(BPF_F_TUNINFO_IPV6)] {
            // SAFETY: the helper writes `TUNNEL_KEY_LEN` bytes to `key`, which has more.
            let failed =
                unsafe { bpf_skb_get_tunnel_key(self.skb, &raw mut key, TUNNEL_KEY_LEN, flags) };
            if failed == 0 {
                return Some(key.tunnel_id);
            }
        }
        None
    }

    #[inline(always)]
    fn set_tunnel(&mut self, id: u32, node: &NetworkAddress) -> Option<()> {
        // SAFETY: all fields are integers.
        let mut key: TunnelKey = unsafe { core::mem::zeroed() };
        key.tunnel_id = id;
        key.tunnel_ttl = TUNNEL_TTL;
        key.__bindgen_anon_1.remote_ipv6 = node.address;
        let mut flags = BPF_F_TUNINFO_IPV6;
        if node.address_family == AF_INET {
            // The helper wants the machine's byte order for this family only.
            key.__bindgen_anon_1.remote_ipv4 = u32::from_be(node.address[0]);
            flags = BPF_F_ZERO_CSUM_TX;
        }
        // SAFETY: the helper reads `TUNNEL_KEY_LEN` bytes of `key`, which has more.
        let failed = unsafe {
            bpf_skb_set_tunnel_key(self.skb, &raw mut key, TUNNEL_KEY_LEN, u64::from(flags))
        };
        (failed == 0).then_some(())
    }

    #[inline(always)]
    fn route(&self, query: &RouteQuery) -> Route {
        // SAFETY: all fields are integers.
        let mut fib: FibLookup = unsafe { core::mem::zeroed() };
        fib.family = query.address_family;
        fib.l4_protocol = query.protocol;
        fib.ifindex = query.ifindex;
        // A length of 0 lets the helper compare the packet, or its segments, with the device's MTU.
        if query.address_family == AF_INET {
            fib.__bindgen_anon_2.tos = query.traffic_class;
            fib.__bindgen_anon_3.ipv4_src = query.source[0];
            fib.__bindgen_anon_4.ipv4_dst = query.target[0];
        } else {
            fib.__bindgen_anon_2.flowinfo = (u32::from(query.traffic_class) << 20).to_be();
            fib.__bindgen_anon_3.ipv6_src = query.source;
            fib.__bindgen_anon_4.ipv6_dst = query.target;
        }
        // SAFETY: the helper reads and writes `fib` only.
        let found = unsafe {
            bpf_fib_lookup(self.skb.cast(), &raw mut fib, size_of::<FibLookup>() as i32, 0)
        };
        match u32::try_from(found) {
            Ok(BPF_FIB_LKUP_RET_SUCCESS) => Route::Neighbour {
                ifindex: fib.ifindex,
                target_mac: widen(fib.dmac),
                source_mac: widen(fib.smac),
            },
            Ok(BPF_FIB_LKUP_RET_NO_NEIGH) => Route::Resolve {
                ifindex: fib.ifindex,
                next_hop: NetworkAddress {
                    address_family: fib.family,
                    // SAFETY: all bytes of the union are set, and all are integers.
                    address: unsafe { fib.__bindgen_anon_4.ipv6_dst },
                },
            },
            Ok(BPF_FIB_LKUP_RET_BLACKHOLE) => Route::Blackhole,
            _ => Route::Stack,
        }
    }

    #[inline(always)]
    fn flow_hash(&self) -> u32 {
        // SAFETY: the context is the program's own.
        unsafe { bpf_get_hash_recalc(self.skb) }
    }

    #[inline(always)]
    fn send_trace(&self, len: u16, event: impl FnOnce() -> TraceNotify) {
        events::send_packet(self, len, event);
    }

    #[inline(always)]
    fn send_drop(&self, len: u16, event: impl FnOnce() -> DropNotify) {
        events::send_packet(self, len, event);
    }

    #[inline(always)]
    fn send_verdict(&self, len: u16, event: impl FnOnce() -> PolicyVerdictNotify) {
        events::send_packet(self, len, event);
    }

    #[inline(always)]
    fn send_debug(&self, event: &DebugMessage) {
        events::send(event);
    }
}

#[inline(always)]
fn part<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut part = [0; N];
    part.copy_from_slice(&bytes[at..at + N]);
    part
}

#[inline(always)]
fn widen([a, b, c, d, e, f]: [u8; 6]) -> [u8; 8] {
    [a, b, c, d, e, f, 0, 0]
}
