//! `cilium bpf ct`: the flows that the datapath follows, read from the maps' pins.

use std::net::{IpAddr, SocketAddr};

use abi::conntrack::{
    DECIDED_EGRESS, DECIDED_INGRESS, FLOW_F_ASSURED, FLOW_F_AWAITS, FLOW_F_INITIATOR_CLOSED,
    FLOW_F_LOWER_BEGAN, FLOW_F_REPLIED, FLOW_F_RESPONDER_CLOSED, Flow, FlowDecision, FlowKeyV4,
    FlowKeyV6, TICK_SHIFT, VERDICT_ALLOWED, VERDICT_AUDITED, VERDICT_NONE, ticks,
};
use anyhow::Result;
use kernel::map::{BpfMap, Map, Plain};
use serde::Serialize;

use crate::args::Ask;
use crate::bpf::maps;
use crate::nodes::Node;
use crate::output::{Outcome, Report};

/// A flow, for people and programs.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct Entry {
    protocol: String,
    /// Who began.
    source: SocketAddr,
    destination: SocketAddr,
    zone: u16,
    /// Seconds that it lives without another packet; negative when it is over and not yet collected.
    expires_s: i64,
    age_s: i64,
    flags: Vec<&'static str>,
    /// TCP flags seen, of the initiator and of the responder.
    tx_flags_seen: u8,
    rx_flags_seen: u8,
    egress: Decision,
    ingress: Decision,
}

/// What one end's policy said.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
struct Decision {
    verdict: &'static str,
    #[serde(skip_serializing_if = "is_zero")]
    identity: u32,
    #[serde(skip_serializing_if = "is_zero")]
    peer: u32,
    #[serde(skip_serializing_if = "is_zero")]
    revision: u32,
}

/// Protocols as Cilium writes them.
pub(crate) fn protocol_name(number: u8) -> String {
    match number {
        0 => "ANY".to_owned(),
        1 => "ICMP".to_owned(),
        6 => "TCP".to_owned(),
        17 => "UDP".to_owned(),
        58 => "ICMPv6".to_owned(),
        132 => "SCTP".to_owned(),
        other => other.to_string(),
    }
}

fn is_zero(number: &u32) -> bool {
    *number == 0
}

pub(crate) fn list(ask: &Ask, address: Option<IpAddr>) -> Result<Outcome> {
    let fetch = |node: &Node| {
        let now = ticks(kernel::clock::monotonic_ns());
        let maps = maps(node)?;
        let mut entries = Vec::new();
        for map in [&maps.ct4_assured, &maps.ct4_unassured] {
            entries.extend(map.entries()?.iter().map(|(key, flow)| entry(key.into(), flow, now)));
        }
        for map in [&maps.ct6_assured, &maps.ct6_unassured] {
            entries.extend(map.entries()?.iter().map(|(key, flow)| entry(key.into(), flow, now)));
        }
        entries.retain(|entry| entry.is_of(address));
        entries.sort();
        Ok(entries)
    };
    Report::new(ask)?.each(fetch, |entries| entries.iter().map(Entry::line).collect())
}

/// How many flows were forgotten.
#[derive(Debug, Serialize)]
struct Flushed {
    flushed: usize,
}

pub(crate) fn flush(ask: &Ask, address: Option<IpAddr>) -> Result<Outcome> {
    let fetch = |node: &Node| {
        let maps = maps(node)?;
        let mut flushed = 0;
        for map in [&maps.ct4_assured, &maps.ct4_unassured] {
            flushed += forget(map, |key| Ends::from(key).is_of(address))?;
        }
        for map in [&maps.ct6_assured, &maps.ct6_unassured] {
            flushed += forget(map, |key| Ends::from(key).is_of(address))?;
        }
        Ok(Flushed { flushed })
    };
    let render = |Flushed { flushed }: &Flushed| match flushed {
        1 => "1 flow forgotten\n".to_owned(),
        many => format!("{many} flows forgotten\n"),
    };
    Report::new(ask)?.each(fetch, render)
}

fn forget<K: Plain>(map: &BpfMap<K, Flow>, is_meant: impl Fn(&K) -> bool) -> Result<usize> {
    let mut count = 0;
    for (key, _) in map.entries()?.iter().filter(|(key, _)| is_meant(key)) {
        count += usize::from(map.delete(key)?);
    }
    Ok(count)
}

/// The key of a flow, without its family.
struct Ends {
    lower: SocketAddr,
    upper: SocketAddr,
    protocol: u8,
    zone: u16,
}

impl Ends {
    fn is_of(&self, address: Option<IpAddr>) -> bool {
        address.is_none_or(|address| [self.lower.ip(), self.upper.ip()].contains(&address))
    }
}

impl Ends {
    fn new<A: Into<IpAddr>>(
        (lower, lower_port): (A, [u8; 2]),
        (upper, upper_port): (A, [u8; 2]),
        protocol: u8,
        zone: u16,
    ) -> Self {
        let end = |address: A, port| SocketAddr::new(address.into(), u16::from_be_bytes(port));
        Self { lower: end(lower, lower_port), upper: end(upper, upper_port), protocol, zone }
    }
}

impl From<&FlowKeyV4> for Ends {
    fn from(key: &FlowKeyV4) -> Self {
        let (lower, upper) = ((key.lower, key.lower_port), (key.upper, key.upper_port));
        Self::new(lower, upper, key.protocol, key.zone)
    }
}

impl From<&FlowKeyV6> for Ends {
    fn from(key: &FlowKeyV6) -> Self {
        let (lower, upper) = ((key.lower, key.lower_port), (key.upper, key.upper_port));
        Self::new(lower, upper, key.protocol, key.zone)
    }
}

fn entry(ends: Ends, flow: &Flow, now: u32) -> Entry {
    const FLAGS: [(u8, &str); 5] = [
        (FLOW_F_ASSURED, "Assured"),
        (FLOW_F_REPLIED, "Replied"),
        (FLOW_F_AWAITS, "Handshake"),
        (FLOW_F_INITIATOR_CLOSED, "TxClosing"),
        (FLOW_F_RESPONDER_CLOSED, "RxClosing"),
    ];
    let (source, destination) = match flow.state & FLOW_F_LOWER_BEGAN != 0 {
        true => (ends.lower, ends.upper),
        false => (ends.upper, ends.lower),
    };
    let set = FLAGS.iter().filter(|(bit, _)| flow.state & bit != 0);
    Entry {
        protocol: protocol_name(ends.protocol),
        source,
        destination,
        zone: ends.zone,
        expires_s: seconds(now, flow.expires),
        age_s: seconds(flow.created, now),
        flags: set.map(|(_, name)| *name).collect(),
        tx_flags_seen: flow.tcp_flags[0],
        rx_flags_seen: flow.tcp_flags[1],
        egress: decision(&flow.decisions[DECIDED_EGRESS]),
        ingress: decision(&flow.decisions[DECIDED_INGRESS]),
    }
}

/// Seconds between two times in ticks, which wrap around.
fn seconds(from: u32, to: u32) -> i64 {
    (i64::from(to.wrapping_sub(from).cast_signed()) << TICK_SHIFT) / 1_000_000_000
}

fn decision(decision: &FlowDecision) -> Decision {
    Decision {
        verdict: match decision.verdict {
            VERDICT_NONE => "not enforced",
            VERDICT_ALLOWED => "allowed",
            VERDICT_AUDITED => "audited",
            _ => "unknown",
        },
        identity: decision.identity,
        peer: decision.peer,
        revision: decision.revision,
    }
}

impl Entry {
    fn is_of(&self, address: Option<IpAddr>) -> bool {
        address.is_none_or(|address| [self.source.ip(), self.destination.ip()].contains(&address))
    }

    fn line(&self) -> String {
        format!(
            "{} {} -> {} expires={}s age={}s TxFlagsSeen={:#04x} RxFlagsSeen={:#04x} Flags=[ {}] \
             Egress=[{}] Ingress=[{}]\n",
            self.protocol,
            self.source,
            self.destination,
            self.expires_s,
            self.age_s,
            self.tx_flags_seen,
            self.rx_flags_seen,
            self.flags.iter().map(|flag| format!("{flag} ")).collect::<String>(),
            self.egress.text(),
            self.ingress.text()
        )
    }
}

impl Decision {
    fn text(&self) -> String {
        match self.revision {
            0 => self.verdict.to_owned(),
            revision => format!(
                "{} identity={} peer={} revision={revision}",
                self.verdict, self.identity, self.peer
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;

    #[test]
    fn flows_are_shown_from_who_began() {
        let key = FlowKeyV4 {
            lower: [10, 0, 0, 1],
            lower_port: 80_u16.to_be_bytes(),
            upper: [10, 0, 0, 2],
            upper_port: 40_000_u16.to_be_bytes(),
            protocol: 6,
            ..FlowKeyV4::default()
        };
        let allowed = FlowDecision {
            verdict: VERDICT_ALLOWED,
            revision: 7,
            identity: 256,
            peer: 257,
            ..FlowDecision::default()
        };
        let flow = Flow {
            decisions: [FlowDecision::default(), allowed],
            expires: 156,
            created: 90,
            tcp_flags: [0x1b, 0x12],
            state: FLOW_F_REPLIED | FLOW_F_ASSURED,
            ..Flow::default()
        };
        let shown = entry((&key).into(), &flow, 100);
        expect![[r"
            TCP 10.0.0.2:40000 -> 10.0.0.1:80 expires=60s age=10s TxFlagsSeen=0x1b RxFlagsSeen=0x12 Flags=[ Assured Replied ] Egress=[not enforced] Ingress=[allowed identity=256 peer=257 revision=7]
        "]]
        .assert_eq(&shown.line());
        let over = entry((&key).into(), &Flow { state: FLOW_F_LOWER_BEGAN, ..flow }, 160);
        assert_eq!((over.source.port(), over.expires_s), (80, -4));
        assert!(over.is_of("10.0.0.2".parse().ok()) && !over.is_of("10.0.0.3".parse().ok()));
    }
}
