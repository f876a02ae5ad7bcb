//! Prototype of the worst program we will ever need, to learn its price from the verifier:
//! extension headers, fragments, ICMP errors with their inner packet, service lookup and DNAT,
//! conntrack, egress and ingress policy, SNAT, delivery. Realistic in shape, not complete in
//! meaning. It leaves the tree once it has been measured.
#![allow(missing_docs, clippy::missing_docs_in_private_items)]

use abi::endpoint::ENDPOINT_F_HOST;
use abi::event::{HookId, ObservationPoint};
use abi::metrics::Direction;
use abi::{DropReason, identity};

use crate::family::{Addr, Family, IpHeader, OnLink, V4, V6, address_key};
use crate::forward;
use crate::hooks::{Hook, Verdict};
use crate::identity::world;
use crate::maps::Maps;
use crate::observe::{self, Seen};
use crate::packet::Packet;
use crate::wire::checksum::Update;
use crate::wire::eth;

#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Tuple {
    pub lower: [u32; 4],
    pub upper: [u32; 4],
    pub lower_port: u16,
    pub upper_port: u16,
    pub protocol: u8,
    pub family: u8,
    pub zone: u16,
}

#[derive(Clone, Copy, Default)]
#[repr(C)]
pub struct Flow {
    pub expires: u64,
    pub packets: [u64; 2],
    pub bytes: [u64; 2],
    pub nat_addr: [u32; 4],
    pub nat_port: u16,
    pub service: u16,
    pub backend: u32,
    pub state: u8,
    pub initiator_is_lower: u8,
    pub tcp_flags: [u8; 2],
    pub verdicts: [Cached; 2],
}

#[derive(Clone, Copy, Default)]
#[repr(C)]
pub struct Cached {
    pub revision: u32,
    pub identity: u32,
    pub peer: u32,
    pub proxy_port: u16,
    pub verdict: u8,
    pub pad: u8,
}

#[derive(Clone, Copy)]
#[repr(C)]
pub struct ServiceKey {
    pub addr: [u32; 4],
    pub port: u16,
    pub slot: u16,
    pub protocol: u8,
    pub family: u8,
    pub pad: u16,
}

#[derive(Clone, Copy)]
#[repr(C)]
pub struct Service {
    pub backend: u32,
    pub count: u16,
    pub rev_nat: u16,
    pub flags: u16,
    pub affinity: u16,
}

#[derive(Clone, Copy)]
#[repr(C)]
pub struct Backend {
    pub addr: [u32; 4],
    pub port: u16,
    pub state: u16,
}

#[derive(Clone, Copy)]
#[repr(C)]
pub struct PolicyKey {
    pub prefix_len: u32,
    pub identity: u32,
    pub egress: u8,
    pub protocol: u8,
    pub port: u16,
}

#[derive(Clone, Copy)]
#[repr(C)]
pub struct PolicyEntry {
    pub proxy_port: u16,
    pub deny: u8,
    pub auth: u8,
    pub precedence: u32,
    pub cookie: u32,
}

#[derive(Clone, Copy)]
#[repr(C)]
pub struct FragmentKey {
    pub source: [u32; 4],
    pub target: [u32; 4],
    pub id: u32,
    pub protocol: u32,
}

#[repr(C)]
pub struct Scratch {
    pub flow: Flow,
    pub reply: Flow,
    pub key: Tuple,
    pub twin: Tuple,
    pub l4: L4,
}

pub trait WorstMaps: Maps {
    #[allow(clippy::mut_from_ref)]
    fn scratch(&self) -> Option<&mut Scratch>;
    fn now(&self) -> u64;
    fn random(&self) -> u32;
    fn assured(&self, key: &Tuple) -> Option<*mut Flow>;
    fn unassured(&self, key: &Tuple) -> Option<*mut Flow>;
    fn with<R>(&self, flow: *mut Flow, f: impl FnOnce(&mut Flow) -> R) -> R;
    fn insert_assured(&self, key: &Tuple, flow: &Flow) -> bool;
    fn insert_unassured(&self, key: &Tuple, flow: &Flow) -> bool;
    fn remove_unassured(&self, key: &Tuple);
    fn service(&self, key: &ServiceKey) -> Option<&Service>;
    fn backend(&self, id: u32) -> Option<&Backend>;
    fn policy(&self, slot: u32, key: &PolicyKey) -> Option<&PolicyEntry>;
    fn revision(&self, slot: u32) -> u32;
    fn fragment(&self, key: &FragmentKey) -> Option<[u16; 2]>;
    fn remember_fragment(&self, key: &FragmentKey, ports: [u16; 2]);
}

/// L4 of a packet, or of the packet inside an ICMP error.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct L4 {
    protocol: u8,
    /// Offset in the frame.
    offset: usize,
    /// As they lie in the packet.
    source_port: u16,
    target_port: u16,
    tcp_flags: u8,
    /// 1 when no L4 header is there.
    is_later_fragment: u8,
    /// 1 when the packet is an ICMP error and the rest speaks of the inner packet, turned round.
    is_error: u8,
    source: Addr,
    target: Addr,
}

const TCP: u8 = 6;
const UDP: u8 = 17;
const SCTP: u8 = 132;
const ICMP: u8 = 1;
const ICMP6: u8 = 58;
const HEADERS_MAX: usize = 6;

/// Offset and protocol of L4 from an IP header at `l3`, and the fragment's id.
fn find_l4<F: Family, P: Packet>(
    packet: &P,
    l3: usize,
) -> Result<(u8, usize, u32, u32), DropReason> {
    if F::NUMBER == V4::NUMBER {
        let bytes: [u8; 12] = packet.load(l3).ok_or(DropReason::Invalid)?;
        let len = usize::from(bytes[0] & 0xf) * 4;
        let id = u32::from(u16::from_ne_bytes([bytes[4], bytes[5]]));
        let fragment = u16::from_be_bytes([bytes[6], bytes[7]]) & 0x3fff;
        let kind = if fragment & 0x1fff != 0 { 2 } else { u32::from(fragment != 0) };
        if len < 20 {
            return Err(DropReason::Invalid);
        }
        return Ok((bytes[9], l3 + len, kind, id));
    }
    let [next] = packet.load::<1>(l3 + 6).ok_or(DropReason::Invalid)?;
    let mut next = next;
    let mut offset = l3 + 40;
    let (mut kind, mut id) = (0, 0);
    for _ in 0..HEADERS_MAX {
        match next {
            0 | 43 | 60 | 135 => {
                let [following, len] = packet.load(offset).ok_or(DropReason::InvalidExthdr)?;
                next = following;
                offset += (usize::from(len) + 1) * 8;
            }
            51 => {
                let [following, len] = packet.load(offset).ok_or(DropReason::InvalidExthdr)?;
                next = following;
                offset += (usize::from(len) + 2) * 4;
            }
            44 => {
                let bytes: [u8; 8] = packet.load(offset).ok_or(DropReason::InvalidExthdr)?;
                let fragment = u16::from_be_bytes([bytes[2], bytes[3]]);
                id = u32::from_ne_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]);
                kind = if fragment & 0xfff8 != 0 { 2 } else { u32::from(fragment & 1 != 0) };
                next = bytes[0];
                offset += 8;
                if kind == 2 {
                    return Ok((next, offset, kind, id));
                }
            }
            59 => return Err(DropReason::InvalidExthdr),
            _ => return Ok((next, offset, kind, id)),
        }
        if offset > 1024 {
            return Err(DropReason::InvalidExthdr);
        }
    }
    Err(DropReason::InvalidExthdr)
}

fn l4<F: Family, P: Packet, M: WorstMaps>(
    packet: &P,
    maps: &M,
    header: &IpHeader<F>,
) -> Result<L4, DropReason> {
    let (protocol, offset, kind, id) = find_l4::<F, P>(packet, eth::LEN)?;
    let mut l4 = L4 {
        protocol,
        offset,
        source_port: 0,
        target_port: 0,
        tcp_flags: 0,
        is_later_fragment: u8::from(kind == 2),
        is_error: 0,
        source: header.source,
        target: header.target,
    };
    if kind != 0 {
        let key = FragmentKey {
            source: header.source.0,
            target: header.target.0,
            id,
            protocol: u32::from(protocol),
        };
        if kind == 2 {
            let ports = maps.fragment(&key).ok_or(DropReason::FragNotFound)?;
            l4.source_port = ports[0];
            l4.target_port = ports[1];
            return Ok(l4);
        }
        let [a, b, c, d] = packet.load(offset).ok_or(DropReason::CtInvalidHdr)?;
        maps.remember_fragment(&key, [u16::from_ne_bytes([a, b]), u16::from_ne_bytes([c, d])]);
    }
    match protocol {
        TCP => {
            let bytes: [u8; 14] = packet.load(offset).ok_or(DropReason::CtInvalidHdr)?;
            l4.source_port = u16::from_ne_bytes([bytes[0], bytes[1]]);
            l4.target_port = u16::from_ne_bytes([bytes[2], bytes[3]]);
            l4.tcp_flags = bytes[13];
        }
        UDP | SCTP => {
            let [a, b, c, d] = packet.load(offset).ok_or(DropReason::CtInvalidHdr)?;
            l4.source_port = u16::from_ne_bytes([a, b]);
            l4.target_port = u16::from_ne_bytes([c, d]);
        }
        ICMP | ICMP6 => {
            let bytes: [u8; 8] = packet.load(offset).ok_or(DropReason::CtInvalidHdr)?;
            let id = u16::from_ne_bytes([bytes[4], bytes[5]]);
            match (protocol, bytes[0]) {
                (ICMP, 8) | (ICMP6, 128) => l4.source_port = id,
                (ICMP, 0) | (ICMP6, 129) => l4.target_port = id,
                (ICMP, 3 | 11 | 12) | (ICMP6, 1..=4) => inner::<F, P>(packet, &mut l4)?,
                (ICMP, _) => return Err(DropReason::UnknownIcmp4Type),
                _ => return Err(DropReason::UnknownIcmp6Type),
            }
        }
        _ => return Err(DropReason::CtUnknownProto),
    }
    Ok(l4)
}

/// The packet inside an ICMP error.
fn inner<F: Family, P: Packet>(packet: &P, l4: &mut L4) -> Result<(), DropReason> {
    let l3 = l4.offset + 8;
    if l3 > 1100 {
        return Err(DropReason::CtInvalidHdr);
    }
    let (source, target) = addresses::<F, P>(packet, l3)?;
    let (protocol, offset, kind, _) = find_l4::<F, P>(packet, l3)?;
    if kind == 2 {
        return Err(DropReason::FragNosupport);
    }
    let [a, b, c, d, e, f, _, _] = packet.load(offset).ok_or(DropReason::CtInvalidHdr)?;
    // Turned round: the error goes against the packet it speaks of.
    l4.source = target;
    l4.target = source;
    l4.is_error = 1;
    l4.protocol = protocol;
    l4.offset = offset;
    if protocol == ICMP || protocol == ICMP6 {
        l4.target_port = u16::from_ne_bytes([e, f]);
        l4.source_port = 0;
    } else {
        l4.target_port = u16::from_ne_bytes([a, b]);
        l4.source_port = u16::from_ne_bytes([c, d]);
    }
    Ok(())
}

fn addresses<F: Family, P: Packet>(packet: &P, l3: usize) -> Result<(Addr, Addr), DropReason> {
    if F::NUMBER == V4::NUMBER {
        let [a, b, c, d, e, f, g, h] = packet.load(l3 + 12).ok_or(DropReason::CtInvalidHdr)?;
        Ok((Addr::from_v4([a, b, c, d]), Addr::from_v4([e, f, g, h])))
    } else {
        let source: [u8; 16] = packet.load(l3 + 8).ok_or(DropReason::CtInvalidHdr)?;
        let target: [u8; 16] = packet.load(l3 + 24).ok_or(DropReason::CtInvalidHdr)?;
        Ok((Addr::from_v6(source), Addr::from_v6(target)))
    }
}

fn is_lower(a: &Addr, a_port: u16, b: &Addr, b_port: u16) -> bool {
    for i in 0..4 {
        if a.0[i] != b.0[i] {
            return a.0[i] < b.0[i];
        }
    }
    a_port < b_port
}

fn tuple<F: Family>(l4: &L4, zone: u16) -> (Tuple, bool) {
    let forward = is_lower(&l4.source, l4.source_port, &l4.target, l4.target_port);
    let (lower, lower_port, upper, upper_port) = if forward {
        (l4.source, l4.source_port, l4.target, l4.target_port)
    } else {
        (l4.target, l4.target_port, l4.source, l4.source_port)
    };
    let tuple = Tuple {
        lower: lower.0,
        upper: upper.0,
        lower_port,
        upper_port,
        protocol: l4.protocol,
        family: F::NUMBER,
        zone,
    };
    (tuple, forward)
}

/// Rewrites an end of the packet (or of the packet inside, the other end) and its checksums.
fn translate<F: Family, P: Packet>(
    packet: &mut P,
    l4: &L4,
    is_source: bool,
    new: Addr,
    new_port: u16,
) -> Result<(), DropReason> {
    let (old, old_port) = if is_source {
        (l4.source, l4.source_port)
    } else {
        (l4.target, l4.target_port)
    };
    let size = if F::NUMBER == V4::NUMBER { 4 } else { 16 };
    let first = if F::NUMBER == V4::NUMBER { 12 } else { 8 };
    write_end::<F, P>(packet, eth::LEN, first + if is_source { 0 } else { size }, old, new)?;
    if l4.is_later_fragment != 0 {
        return Ok(());
    }
    let mut delta = Update::of([0xff, 0xff]).replace(u32::from(old_port), u32::from(new_port));
    for i in 0..4 {
        delta = delta.replace(old.0[i], new.0[i]);
    }
    if l4.is_error != 0 {
        // The inner packet has the end on its other side.
        let l3 = l4.offset - if F::NUMBER == V4::NUMBER { 20 } else { 40 };
        write_end::<F, P>(packet, l3, first + if is_source { size } else { 0 }, old, new)?;
        let port = l4.offset + if is_source { 2 } else { 0 };
        packet.store(port, new_port.to_ne_bytes()).ok_or(DropReason::WriteError)?;
        // ICMPv6 covers the pseudo header, and both cover the inner change.
        let at = l3 - 8 + 2;
        return checksum(packet, at, delta);
    }
    let (port, at) = match l4.protocol {
        TCP => (if is_source { 0 } else { 2 }, 16),
        UDP => (if is_source { 0 } else { 2 }, 6),
        SCTP => return Err(DropReason::NatUnsuppProto),
        _ => (4, 2),
    };
    packet.store(l4.offset + port, new_port.to_ne_bytes()).ok_or(DropReason::WriteError)?;
    checksum(packet, l4.offset + at, delta)
}

fn checksum<P: Packet>(packet: &mut P, at: usize, delta: Update) -> Result<(), DropReason> {
    let old: [u8; 2] = packet.load(at).ok_or(DropReason::CsumL4)?;
    let change = u32::from(u16::from_ne_bytes(delta.finish()));
    let new = Update::of(old).replace(change, 0).finish();
    packet.store(at, new).ok_or(DropReason::CsumL4)
}

fn write_end<F: Family, P: Packet>(
    packet: &mut P,
    l3: usize,
    at: usize,
    old: Addr,
    new: Addr,
) -> Result<(), DropReason> {
    if F::NUMBER == V4::NUMBER {
        let csum: [u8; 2] = packet.load(l3 + 10).ok_or(DropReason::CsumL3)?;
        let csum = Update::of(csum).replace(old.0[0], new.0[0]).finish();
        packet.store(l3 + 10, csum).ok_or(DropReason::CsumL3)?;
        packet.store(l3 + at, new.0[0].to_ne_bytes()).ok_or(DropReason::WriteError)
    } else {
        packet.store(l3 + at, new.bytes()).ok_or(DropReason::WriteError)
    }
}

/// Policy of one end: exact identity, aggregate identity, wildcard.
fn policy<M: WorstMaps>(
    maps: &M,
    slot: u32,
    peer: u32,
    egress: u8,
    l4: &L4,
) -> Result<u16, DropReason> {
    let mut key = PolicyKey {
        prefix_len: 64,
        identity: peer,
        egress,
        protocol: l4.protocol,
        port: l4.target_port,
    };
    let exact = maps.policy(slot, &key);
    let mut best = exact.map_or(0, |e| e.precedence);
    let mut found = exact;
    if best != u32::MAX {
        key.identity = match peer {
            0..=99 => 0,
            100..0x0100_0000 => 11,
            0x0100_0000..0x0200_0000 => 13,
            _ => 14,
        };
        if let Some(other) = maps.policy(slot, &key)
            && (found.is_none() || other.precedence > best)
        {
            best = other.precedence;
            found = Some(other);
        }
        if found.is_none() && key.identity != 0 {
            key.identity = 0;
            found = maps.policy(slot, &key);
            best = found.map_or(0, |e| e.precedence);
        }
    }
    let _ = best;
    match found {
        None => Err(DropReason::Policy),
        Some(e) if e.deny != 0 => Err(DropReason::PolicyDeny),
        Some(e) if e.auth != 0 => Err(DropReason::PolicyAuthRequired),
        Some(e) => Ok(e.proxy_port),
    }
}

fn update(flow: &mut Flow, now: u64, l4: &L4, side: usize, len: u32) -> bool {
    flow.packets[side & 1] += 1;
    flow.bytes[side & 1] += u64::from(len);
    if l4.is_error != 0 {
        return false;
    }
    flow.tcp_flags[side & 1] |= l4.tcp_flags;
    let timeout = match l4.protocol {
        TCP if (flow.tcp_flags[0] | flow.tcp_flags[1]) & 5 != 0 => 10,
        TCP if flow.state != 0 => 8_000,
        _ => 60,
    };
    flow.expires = now + timeout;
    let assured = match l4.protocol {
        TCP => side == 0 && flow.tcp_flags[1] & 2 != 0 && l4.tcp_flags & 0x10 != 0,
        _ => side == 0 && flow.packets[1] > 0,
    };
    let becomes = assured && flow.state == 0;
    if becomes {
        flow.state = 1;
    }
    becomes
}

#[derive(Clone, Copy)]
pub struct Worst;

impl Worst {
    pub fn run<P: Packet, M: WorstMaps>(packet: &mut P, maps: &M) -> Verdict {
        let mut seen = Seen::new();
        match Self::path(packet, maps, &mut seen) {
            Ok(verdict) => {
                observe::left(packet, maps, &seen);
                verdict
            }
            Err(reason) => {
                observe::dropped(
                    packet,
                    maps,
                    &seen,
                    HookId::FromContainer,
                    Direction::Egress,
                    reason,
                );
                Verdict::Drop
            }
        }
    }

    fn path<P: Packet, M: WorstMaps>(
        packet: &mut P,
        maps: &M,
        seen: &mut Seen,
    ) -> Result<Verdict, DropReason> {
        match eth::ethertype(packet).ok_or(DropReason::Invalid)? {
            eth::IPV4 if V4::enabled(maps.config()) => worst::<V4, P, M>(packet, maps, seen),
            eth::IPV6 if V6::enabled(maps.config()) => worst::<V6, P, M>(packet, maps, seen),
            _ => crate::hooks::FromContainer::run(packet, maps, seen),
        }
    }
}

fn worst<F: Family, P: Packet, M: WorstMaps>(
    packet: &mut P,
    maps: &M,
    seen: &mut Seen,
) -> Result<Verdict, DropReason> {
    seen.family::<F>();
    let device = maps.device(packet.ifindex()).ok_or(DropReason::UnknownSender)?;
    seen.source_identity = device.sec_id;
    seen.endpoint = device.lxc_id;
    observe::came_in(packet, maps, seen, ObservationPoint::FromEndpoint);
    let header = F::parse(packet)?;
    match F::on_link(packet, &header, device)? {
        OnLink::No => {}
        _ => return crate::hooks::FromContainer::run(packet, maps, seen),
    }
    let scratch = maps.scratch().ok_or(DropReason::InvalidTcBuffer)?;
    scratch.l4 = l4::<F, P, M>(packet, maps, &header)?;
    let now = maps.now();
    let length = packet.length();

    // Service: DNAT.
    let mut service_id = 0;
    let mut backend_id = 0;
    if scratch.l4.is_error == 0 && scratch.l4.protocol != ICMP && scratch.l4.protocol != ICMP6 {
        let mut key = ServiceKey {
            addr: scratch.l4.target.0,
            port: scratch.l4.target_port,
            slot: 0,
            protocol: scratch.l4.protocol,
            family: F::NUMBER,
            pad: 0,
        };
        if let Some(service) = maps.service(&key) {
            if service.count == 0 {
                return Err(DropReason::NoService);
            }
            service_id = service.rev_nat;
            key.slot = (packet.flow_hash() % u32::from(service.count)) as u16 + 1;
            let slot = maps.service(&key).ok_or(DropReason::NoService)?;
            let backend = maps.backend(slot.backend).ok_or(DropReason::NoService)?;
            if backend.state != 0 {
                return Err(DropReason::NoService);
            }
            backend_id = slot.backend;
            let (addr, port) = (Addr(backend.addr), backend.port);
            translate::<F, P>(packet, &scratch.l4, false, addr, port)?;
            scratch.l4.target = addr;
            scratch.l4.target_port = port;
        }
    }

    // Who is there.
    let target_key = address_key::<F>(scratch.l4.target);
    let endpoint = maps.endpoint(&target_key);
    let remote = if endpoint.is_some() { None } else { forward::whois::<F, M>(maps, &target_key) };
    seen.target_identity = match (endpoint, remote) {
        (Some(endpoint), _) => endpoint.sec_id,
        (None, Some(remote)) => remote.sec_identity,
        (None, None) => world::<F>(maps.config()),
    };

    // Conntrack.
    let (key, source_is_lower) = tuple::<F>(&scratch.l4, maps.config().cluster_id);
    scratch.key = key;
    let slot = u32::from(device.lxc_id);
    let peer_slot = endpoint.map_or(0, |endpoint| u32::from(endpoint.lxc_id));
    let found = match maps.assured(&scratch.key) {
        Some(flow) => Some(flow),
        None => maps.unassured(&scratch.key),
    };
    let revision = maps.revision(slot);
    if let Some(flow) = found {
        let (becomes, decided, nat, nat_port, is_reply) = maps.with(flow, |flow| {
            let is_reply = (flow.initiator_is_lower != 0) != source_is_lower;
            let becomes = update(flow, now, &scratch.l4, usize::from(is_reply), length);
            let cached = &flow.verdicts[0];
            let decided = cached.revision == revision
                && cached.identity == device.sec_id
                && cached.peer == seen.target_identity
                && cached.verdict == 1;
            if becomes {
                scratch.flow = *flow;
            }
            (becomes, decided, Addr(flow.nat_addr), flow.nat_port, is_reply)
        });
        if becomes {
            if !maps.insert_assured(&scratch.key, &scratch.flow) {
                return Err(DropReason::CtCreateFailed);
            }
            maps.remove_unassured(&scratch.key);
        }
        if !decided && !is_reply {
            policy(maps, slot, seen.target_identity, 1, &scratch.l4)?;
            if peer_slot != 0 {
                policy(maps, peer_slot, seen.source_identity, 0, &scratch.l4)?;
            }
            maps.with(flow, |flow| {
                flow.verdicts[0] = Cached {
                    revision,
                    identity: device.sec_id,
                    peer: seen.target_identity,
                    proxy_port: 0,
                    verdict: 1,
                    pad: 0,
                };
            });
        }
        if nat_port != 0 {
            // The reply of a service, or the reply to a masqueraded source.
            translate::<F, P>(packet, &scratch.l4, is_reply, nat, nat_port)?;
        }
    } else {
        if scratch.l4.is_error != 0 {
            return Err(DropReason::UnknownCt);
        }
        let proxy_port = policy(maps, slot, seen.target_identity, 1, &scratch.l4)?;
        if peer_slot != 0 {
            policy(maps, peer_slot, seen.source_identity, 0, &scratch.l4)?;
        }
        let flow = &mut scratch.flow;
        *flow = Flow {
            expires: now + 60,
            service: service_id,
            backend: backend_id,
            initiator_is_lower: u8::from(source_is_lower),
            ..Flow::default()
        };
        flow.verdicts[0] = Cached {
            revision,
            identity: device.sec_id,
            peer: seen.target_identity,
            proxy_port,
            verdict: 1,
            pad: 0,
        };
        update(flow, now, &scratch.l4, 0, length);
        // SNAT to the world.
        if endpoint.is_none()
            && (seen.target_identity == identity::WORLD_IPV4
                || seen.target_identity == identity::WORLD_IPV6)
        {
            let new = if F::NUMBER == V4::NUMBER {
                Addr::from_v4(maps.config().router_ipv4)
            } else {
                Addr::from_v6(maps.config().router_ipv6)
            };
            let mut port = scratch.l4.source_port;
            let mut free = false;
            scratch.reply = *flow;
            let reply = &mut scratch.reply;
            for _ in 0..16 {
                let mut twin = scratch.l4;
                twin.source = new;
                twin.source_port = port;
                let (twin_key, lower) = tuple::<F>(&twin, maps.config().cluster_id);
                reply.initiator_is_lower = u8::from(lower);
                reply.nat_addr = scratch.l4.source.0;
                reply.nat_port = scratch.l4.source_port;
                scratch.twin = twin_key;
                if maps.insert_unassured(&scratch.twin, reply) {
                    free = true;
                    break;
                }
                port = (maps.random() as u16) | 0x8000;
            }
            if !free {
                return Err(DropReason::NatNoMapping);
            }
            flow.nat_addr = new.0;
            flow.nat_port = port;
            translate::<F, P>(packet, &scratch.l4, true, new, port)?;
        }
        if !maps.insert_unassured(&scratch.key, flow) {
            return Err(DropReason::CtCreateFailed);
        }
        if proxy_port != 0 {
            packet.set_mark(0x200 | u32::from(proxy_port) << 16);
            seen.leaves(ObservationPoint::ToProxy, 0);
            return Ok(Verdict::Pass);
        }
    }

    // Forward.
    if let Some(endpoint) = endpoint {
        return if endpoint.flags & ENDPOINT_F_HOST == 0 {
            forward::to_endpoint(packet, maps, seen, &header, endpoint)
        } else {
            Ok(forward::to_host(packet, seen))
        };
    }
    if let Some(remote) = remote
        && let Some(node) = forward::tunnel_to(maps, remote)
    {
        return forward::to_tunnel(packet, maps, seen, &node);
    }
    forward::to_network(packet, seen, &header)
}
