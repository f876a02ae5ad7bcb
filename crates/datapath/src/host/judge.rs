//! A slow judge of what the hooks let pass: written from what policies mean, not from the code that
//! enforces them.
//!
//! It reads a packet byte by byte into a [`Word`], asks a policy by looking at every entry, and
//! remembers what was said with leave. A packet may pass if both ends' policies allow its word, or
//! if it answers a word that was said and that they would still allow. Nothing else may pass, and a
//! word that is allowed and new is not refused in a policy's name.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::vec::Vec;

use abi::endpoint::{
    DeviceEndpoint, ENDPOINT_F_AUDIT, ENDPOINT_F_ENFORCE_EGRESS, ENDPOINT_F_ENFORCE_INGRESS,
    ENDPOINT_F_HOST, ENDPOINT_F_LOCKDOWN,
};
use abi::event::HookId;
use abi::policy::{POLICY_EGRESS, POLICY_INGRESS, PolicyEntry, PolicyKey, aggregate};
use abi::{AddressKey, DropReason, identity, mark};

use super::{Frame, Node};
use crate::hooks::Verdict;

/// What a packet says, and to whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Word {
    source: IpAddr,
    target: IpAddr,
    protocol: u8,
    /// Ports; of an echo its id, twice; zeros where there are none.
    ports: (u16, u16),
    icmp: Option<u8>,
    /// What policies compare with their ports; `None` where it is not known.
    policy_port: Option<u16>,
}

impl Word {
    /// The word that this one answers, if it answers any.
    fn question(self) -> Self {
        let icmp = match (self.protocol, self.icmp) {
            (1, Some(0)) => Some(8),
            (58, Some(129)) => Some(128),
            (_, other) => other,
        };
        let policy_port = Some(icmp.map_or(self.ports.0, u16::from));
        let ports = (self.ports.1, self.ports.0);
        Self { source: self.target, target: self.source, ports, icmp, policy_port, ..self }
    }

    fn is_icmp(self) -> bool {
        matches!(self.protocol, 1 | 58)
    }

    fn is_echo_request(self) -> bool {
        matches!((self.protocol, self.icmp), (1, Some(8)) | (58, Some(128)))
    }
}

/// A packet as the judge reads it.
#[derive(Clone, Copy, Debug)]
struct Reading {
    word: Word,
    /// The word that an ICMP error is about.
    about: Option<Word>,
    hop_limit: u8,
}

impl Reading {
    /// Talk on a link, which no policy is about.
    fn is_between_neighbours(self) -> bool {
        let is_talk = matches!((self.word.protocol, self.word.icmp), (58, Some(133..=137)));
        is_talk && self.hop_limit == 255
    }
}

/// One end of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Party {
    identity: u32,
    flags: u32,
    slot: u32,
    /// 0 of who is elsewhere.
    endpoint: u16,
}

/// The judge and what it remembers.
#[derive(Clone, Debug, Default)]
pub struct Judge {
    /// Words that were said with leave, and by and to which identities.
    said: HashMap<Word, Vec<(u32, u32)>>,
    /// Words of first fragments.
    begun: HashMap<(IpAddr, IpAddr, u8, [u8; 4]), Word>,
}

impl Judge {
    /// Judges what became of a packet; `reason` is why it was dropped.
    ///
    /// # Panics
    /// When it passed and must not, or was refused in the name of a policy that allows it.
    pub fn check(
        &mut self,
        hook: HookId,
        node: &Node,
        before: &Frame,
        verdict: Verdict,
        reason: Option<DropReason>,
    ) {
        let Some(reading) = self.read(&before.bytes) else { return };
        if reading.is_between_neighbours() {
            return;
        }
        let Some((source, target)) = parties(hook, node, before, reading.word) else { return };
        let word = reading.word;
        let is_passed = reason.is_none() && verdict != Verdict::Drop;
        let is_locked = (source.flags | target.flags) & ENDPOINT_F_LOCKDOWN != 0;
        let is_allowed = allows(node, word, source, target);
        let world = || {
            std::format!(
                "{hook:?} {reading:?} from {source:?} to {target:?}: {reason:?}\nsaid {:?}\npolicy {:#?}",
                self.said,
                node.policy
            )
        };
        let may = !is_locked
            && (is_allowed
                || self.is_heard(node, word.question(), source, target)
                || reading.about.is_some_and(|about| self.is_known(node, about, source, target))
                || is_exempt(reading, source));
        assert!(may || !is_passed, "passed against a policy: {}", world());
        let is_refused = matches!(reason, Some(DropReason::Policy | DropReason::PolicyDeny));
        let is_new =
            !self.said.keys().any(|said| is_same_flow(*said, word)) && reading.about.is_none();
        assert!(!(is_refused && is_new && is_allowed), "refused what is allowed: {}", world());
        if is_allowed && !is_locked {
            self.said.entry(word).or_default().push((source.identity, target.identity));
        }
    }

    /// Whether `question` was said by `target` to `source` and still may be.
    fn is_heard(&self, node: &Node, question: Word, source: Party, target: Party) -> bool {
        let said = self.said.get(&question).into_iter().flatten();
        said.flat_map(|then| [*then, (target.identity, source.identity)]).any(|(asker, asked)| {
            let asker = Party { identity: asker, ..target };
            let asked = Party { identity: asked, ..source };
            allows(node, question, asker, asked)
        })
    }

    /// Whether the flow that an error from `source` to `target` is about is one that may be.
    fn is_known(&self, node: &Node, about: Word, source: Party, target: Party) -> bool {
        // Who speaks for another must be somebody between.
        let is_pod = source.endpoint != 0 && source.identity != identity::HOST;
        let speaks_for_itself = !is_pod || address_of(node, source).contains(&about.target);
        speaks_for_itself
            && (self.is_heard(node, about, source, target)
                || self.is_heard(node, about.question(), target, source))
    }

    fn read(&mut self, bytes: &[u8]) -> Option<Reading> {
        let hop_limit = *bytes.get(if bytes[12] == 8 { 22 } else { 21 })?;
        let (source, target, protocol, l4, fragment) = headers(bytes, 14)?;
        let key = |id| (source, target, protocol, id);
        if let Some((offset, _, id)) = fragment
            && offset != 0
        {
            let unknown =
                Word { source, target, protocol, ports: (0, 0), icmp: None, policy_port: None };
            let word = self.begun.get(&key(id)).copied().unwrap_or(unknown);
            return Some(Reading { word, about: None, hop_limit });
        }
        let word = word(bytes, source, target, protocol, l4)?;
        let is_error = is_error(word);
        if let Some((_, true, id)) = fragment
            && (!word.is_icmp() || word.ports != (0, 0) || word.is_echo_request())
        {
            self.begun.insert(key(id), word);
        }
        let about = is_error.then(|| about(bytes, l4 + 8)).flatten();
        Some(Reading { word, about: about.filter(|about| about.source == target), hop_limit })
    }
}

/// Whether two words are of one flow, in whatever direction.
fn is_same_flow(a: Word, b: Word) -> bool {
    let ends = |word: &Word| ((word.source, word.ports.0), (word.target, word.ports.1));
    let ((a1, a2), (b1, b2)) = (ends(&a), ends(&b));
    a.protocol == b.protocol && ((a1, a2) == (b1, b2) || (a1, a2) == (b2, b1))
}

fn is_error(word: Word) -> bool {
    matches!((word.protocol, word.icmp), (1, Some(3 | 11 | 12)) | (58, Some(1..=4)))
}

/// News of packets that were too big, from anybody but a pod. (The code of an unreachable is not in
/// its word: all of them are taken for too big.)
fn is_exempt(reading: Reading, source: Party) -> bool {
    let is_pod = source.endpoint != 0 && source.identity != identity::HOST;
    !is_pod && matches!((reading.word.protocol, reading.word.icmp), (1, Some(3)) | (58, Some(2)))
}

type Headers = (IpAddr, IpAddr, u8, usize, Option<(u16, bool, [u8; 4])>);

/// Source, target, protocol, where the transport header begins, and of a fragment its offset,
/// whether it is the first of several, and the datagram's id.
fn headers(bytes: &[u8], l3: usize) -> Option<Headers> {
    let byte = |at: usize| bytes.get(l3 + at).copied();
    let take4 = |at: usize| <[u8; 4]>::try_from(bytes.get(l3 + at..l3 + at + 4)?).ok();
    if bytes.get(12..14)? == [8, 0] {
        let word = u16::from_be_bytes([byte(6)?, byte(7)?]);
        let (offset, more) = (word & 0x1fff, word & 0x2000 != 0);
        let fragment = (offset != 0 || more).then_some((offset, more, [byte(4)?, byte(5)?, 0, 0]));
        let (source, target) = (Ipv4Addr::from(take4(12)?), Ipv4Addr::from(take4(16)?));
        let l4 = l3 + usize::from(byte(0)? & 15) * 4;
        return Some((source.into(), target.into(), byte(9)?, l4, fragment));
    }
    if bytes.get(12..14)? != [0x86, 0xdd] {
        return None;
    }
    let take16 = |at: usize| <[u8; 16]>::try_from(bytes.get(l3 + at..l3 + at + 16)?).ok();
    let (source, target) = (Ipv6Addr::from(take16(8)?), Ipv6Addr::from(take16(24)?));
    let (mut protocol, mut at, mut fragment) = (byte(6)?, 40, None);
    while matches!(protocol, 0 | 43 | 44 | 51 | 60 | 135) {
        let (next, len) = (byte(at)?, usize::from(byte(at + 1)?));
        if protocol == 44 {
            let word = u16::from_be_bytes([byte(at + 2)?, byte(at + 3)?]);
            let (offset, more) = (word & 0xfff8, word & 1 != 0);
            if offset != 0 || more {
                fragment = Some((offset, more, take4(at + 4)?));
            }
        }
        at += match protocol {
            44 => 8,
            51 => (len + 2) * 4,
            _ => (len + 1) * 8,
        };
        protocol = next;
        if fragment.is_some_and(|(offset, ..)| offset != 0) {
            break;
        }
    }
    Some((source.into(), target.into(), protocol, l3 + at, fragment))
}

fn word(bytes: &[u8], source: IpAddr, target: IpAddr, protocol: u8, l4: usize) -> Option<Word> {
    let number =
        |at: usize| Some(u16::from_be_bytes([*bytes.get(l4 + at)?, *bytes.get(l4 + at + 1)?]));
    let icmp = source.is_ipv4() && protocol == 1 || source.is_ipv6() && protocol == 58;
    let base = Word { source, target, protocol, ports: (0, 0), icmp: None, policy_port: Some(0) };
    if icmp {
        let kind = *bytes.get(l4)?;
        let is_echo = matches!((protocol, kind), (1, 0 | 8) | (58, 128 | 129));
        let id = if is_echo { number(4)? } else { 0 };
        let policy_port = Some(kind.into());
        Some(Word { ports: (id, id), icmp: Some(kind), policy_port, ..base })
    } else if matches!(protocol, 6 | 17 | 132) {
        let ports = (number(0)?, number(2)?);
        Some(Word { ports, policy_port: Some(ports.1), ..base })
    } else {
        Some(base)
    }
}

/// The word of the packet inside an error.
fn about(bytes: &[u8], l3: usize) -> Option<Word> {
    let (source, target, protocol, l4, fragment) = headers(bytes, l3)?;
    if fragment.is_some_and(|(offset, ..)| offset != 0) {
        return None;
    }
    word(bytes, source, target, protocol, l4)
}

/// Whether the policies of both ends allow a word.
fn allows(node: &Node, word: Word, source: Party, target: Party) -> bool {
    let is_itself = source.endpoint != 0 && source.endpoint == target.endpoint;
    let may_send = source.flags & ENDPOINT_F_ENFORCE_EGRESS == 0
        || source.flags & ENDPOINT_F_AUDIT != 0
        || answer(node, source.slot, POLICY_EGRESS, target.identity, word);
    let may_get = target.flags & ENDPOINT_F_ENFORCE_INGRESS == 0
        || target.flags & ENDPOINT_F_AUDIT != 0
        || answer(node, target.slot, POLICY_INGRESS, source.identity, word);
    is_itself || (may_send && may_get)
}

/// What a policy says, by looking at every entry.
fn answer(node: &Node, slot: u32, direction: u8, peer: u32, word: Word) -> bool {
    // Of one identity, the longest prefix; then the entry with the highest precedence.
    let longest = |identity: u32| {
        let covering = node.policy.iter().filter(|(key, _)| {
            (key.slot, key.direction, key.identity) == (slot, direction, identity)
                && covers(key, word)
        });
        covering.max_by_key(|(key, _)| key.prefix_len).map(|(_, entry)| *entry)
    };
    let aggregate = aggregate(peer, u32::from(node.config.cluster_id));
    let mut best: Option<PolicyEntry> = longest(peer);
    for identity in [aggregate, 0] {
        let is_last_resort = identity == 0 && aggregate != 0;
        if is_last_resort && best.is_some() {
            break;
        }
        if let Some(other) = longest(identity) {
            let rank = |entry: &PolicyEntry| (entry.precedence, entry.bits >> 3);
            if best.is_none_or(|best| rank(&other) > rank(&best)) {
                best = Some(other);
            }
        }
    }
    best.is_some_and(|entry| {
        entry.bits & 3 == 0
            && entry.precedence & 0xff != 0
            && entry.auth == 0
            && entry.proxy_port == [0; 2]
    })
}

fn covers(key: &PolicyKey, word: Word) -> bool {
    let bits = key.prefix_len - 72;
    let is_protocol = bits == 0 || key.protocol == word.protocol;
    let is_port = bits <= 8
        || word.policy_port.is_some_and(|port| {
            u32::from(port ^ u16::from_be_bytes(key.dport)) >> (24 - bits) == 0
        });
    is_protocol && is_port
}

/// Both ends of a packet, where the hook asks policies.
fn parties(hook: HookId, node: &Node, frame: &Frame, word: Word) -> Option<(Party, Party)> {
    let host = || {
        let row = node.devices.get(&node.config.host_ifindex);
        match row.filter(|_| node.config.enable_host_firewall != 0) {
            Some(row) => Party { identity: identity::HOST, ..of(row) },
            None => elsewhere(identity::HOST),
        }
    };
    let target = |may_be_host: bool| match node.endpoints.get(&AddressKey::from(word.target)) {
        Some(row) if row.flags & ENDPOINT_F_HOST != 0 => may_be_host.then(host),
        Some(row) => Some(Party {
            identity: row.sec_id,
            flags: row.flags,
            slot: row.policy_slot,
            endpoint: row.lxc_id,
        }),
        None => None,
    };
    let is_guarded = node.config.enable_host_firewall != 0;
    match hook {
        HookId::FromContainer => {
            let source = of(node.devices.get(&frame.ifindex)?);
            let there = || elsewhere(ipcache(node, word.target));
            Some((source, target(true).unwrap_or_else(there)))
        }
        HookId::FromOverlay => {
            let source = match frame.vni? {
                identity::HOST => return None,
                identity::WORLD => world(node, word.source),
                other => other,
            };
            Some((elsewhere(source), target(is_guarded)?))
        }
        HookId::FromNetdev => Some((elsewhere(ipcache(node, word.source)), target(is_guarded)?)),
        HookId::ToContainer => {
            // The stack's words to the link of the pod.
            let is_link_scoped = match word.target {
                IpAddr::V4(target) => {
                    target.is_multicast() || target.is_broadcast() || target.is_link_local()
                }
                IpAddr::V6(target) => target.is_multicast() || target.is_unicast_link_local(),
            };
            if is_link_scoped {
                return None;
            }
            let source = match frame.mark & mark::MASK {
                mark::HOST => identity::HOST,
                mark::IDENTITY | mark::OVERLAY => mark::identity(frame.mark),
                _ => ipcache(node, word.source),
            };
            let source = if source == identity::HOST { host() } else { elsewhere(source) };
            Some((source, of(node.devices.get(&frame.ifindex)?)))
        }
        HookId::ToNetdev | HookId::ToOverlay | HookId::FromHost => None,
    }
}

const fn elsewhere(identity: u32) -> Party {
    Party { identity, flags: 0, slot: 0, endpoint: 0 }
}

const fn of(row: &DeviceEndpoint) -> Party {
    Party { identity: row.sec_id, flags: row.flags, slot: row.policy_slot, endpoint: row.lxc_id }
}

fn address_of(node: &Node, party: Party) -> Vec<IpAddr> {
    let rows = node.devices.values().filter(|row| row.lxc_id == party.endpoint);
    rows.flat_map(|row| [IpAddr::from(row.ipv4), IpAddr::from(row.ipv6)]).collect()
}

fn world(node: &Node, address: IpAddr) -> u32 {
    match (node.config.enable_ipv4 != 0 && node.config.enable_ipv6 != 0, address.is_ipv4()) {
        (false, _) => identity::WORLD,
        (true, true) => identity::WORLD_IPV4,
        (true, false) => identity::WORLD_IPV6,
    }
}

/// Who has an address, as the table of addresses and then the longest prefix know.
fn ipcache(node: &Node, address: IpAddr) -> u32 {
    let key = AddressKey::from(address);
    let bits = |entry: &abi::ipcache::IpcacheKey| (entry.prefix_len - 32) as usize;
    let covers = |entry: &abi::ipcache::IpcacheKey| {
        let same = |i: usize| (entry.addr[i / 8] ^ key.addr[i / 8]) & 0x80 >> (i % 8) == 0;
        entry.family == key.family && (0..bits(entry)).all(same)
    };
    let prefix =
        || node.prefixes.iter().filter(|(entry, _)| covers(entry)).max_by_key(|e| bits(&e.0));
    let host = node.hosts.get(&key).map(|row| row.sec_identity);
    host.or_else(|| prefix().map(|(_, row)| row.sec_identity))
        .unwrap_or_else(|| world(node, address))
}
