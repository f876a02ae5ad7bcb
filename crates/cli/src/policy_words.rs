//! Why policy has decided as an event tells, in the words of the agent whose datapath sent it.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use abi::DropReason;
use api::rest::{Client, ClientError, CookieRules, ExplainQuery, ExplainResponse, path};
use flow::{Event, Packet, Transport};

use crate::nodes::Nodes;

/// Answers that are remembered. Beyond, all are forgotten.
const KNOWN_LEN_MAX: usize = 4_096;
/// How long an answer is good that depends on the policies of the moment.
const FRESH: Duration = Duration::from_secs(1);
/// How long an agent may think: events must not wait for one that hangs.
const PATIENCE: Duration = Duration::from_secs(2);

/// What agents have said.
pub(crate) struct Words {
    clients: Vec<Client>,
    known: HashMap<(usize, Question), (Instant, String)>,
}

/// What an agent is asked.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Question {
    /// Which rules made an entry.
    Cookie(u32),
    /// Why a packet is allowed or denied.
    Explain { endpoint: u16, ingress: bool, identity: u32, protocol: u8, dport: u16 },
}

impl Words {
    pub(crate) fn new(nodes: &Nodes) -> Self {
        let clients = nodes.all.iter().map(|node| node.client().with_timeout(PATIENCE));
        Self { clients: clients.collect(), known: HashMap::new() }
    }

    /// Why, where the event is about a decision of policy and the agent of `node` can tell.
    pub(crate) fn of(&mut self, node: usize, event: &Event) -> Option<String> {
        let question = question(event)?;
        let key = (node, question.clone());
        if let Some((since, words)) = self.known.get(&key)
            && (matches!(question, Question::Cookie(_)) || since.elapsed() < FRESH)
        {
            return (!words.is_empty()).then(|| words.clone());
        }
        // An agent that cannot tell is not asked for every packet.
        let words = ask(self.clients.get_mut(node)?, &question).unwrap_or_default();
        if self.known.len() >= KNOWN_LEN_MAX {
            self.known.clear();
        }
        self.known.insert(key, (Instant::now(), words.clone()));
        (!words.is_empty()).then_some(words)
    }
}

fn ask(client: &mut Client, question: &Question) -> Result<String, ClientError> {
    match question {
        Question::Cookie(cookie) => {
            let answer: CookieRules = client.get(&path::policy_cookie(*cookie))?;
            Ok(answer.rules.join("\n"))
        }
        Question::Explain { endpoint, ingress, identity, protocol, dport } => {
            let query = ExplainQuery {
                endpoint: *endpoint,
                direction: if *ingress { "ingress" } else { "egress" }.to_owned(),
                identity: *identity,
                protocol: *protocol,
                dport: *dport,
            };
            let answer: ExplainResponse = client.get(&path_of(&query))?;
            Ok(answer.words)
        }
    }
}

fn path_of(query: &ExplainQuery) -> String {
    let ExplainQuery { endpoint, direction, identity, protocol, dport } = query;
    format!(
        "{}?endpoint={endpoint}&direction={direction}&identity={identity}&protocol={protocol}&dport={dport}",
        path::POLICY_EXPLAIN
    )
}

fn question(event: &Event) -> Option<Question> {
    match event {
        Event::Verdict(verdict) if verdict.cookie != 0 => Some(Question::Cookie(verdict.cookie)),
        Event::Verdict(verdict) => Some(Question::Explain {
            endpoint: verdict.source,
            ingress: verdict.ingress,
            identity: verdict.remote_identity,
            protocol: verdict.proto,
            dport: verdict.destination_port,
        }),
        Event::Drop(drop) if is_of_policy(drop.reason) => {
            let (protocol, dport) = target(&drop.packet)?;
            // The receiver is known only where its policy was asked.
            let receiver = u16::try_from(drop.destination).unwrap_or(0);
            let ingress = receiver != 0;
            let (endpoint, identity) = match ingress {
                true => (receiver, drop.source_identity),
                false => (drop.source, drop.destination_identity),
            };
            Some(Question::Explain { endpoint, ingress, identity, protocol, dport })
        }
        _ => None,
    }
}

fn is_of_policy(reason: u8) -> bool {
    [DropReason::Policy, DropReason::PolicyDeny, DropReason::PolicyNotEnforceable]
        .iter()
        .any(|known| *known as u8 == reason)
}

/// Protocol and target's port of a packet, as policy sees them: of ICMP, the type.
fn target(packet: &Packet) -> Option<(u8, u16)> {
    let packet = packet.tunnel.as_ref().map_or(packet, |tunnel| &tunnel.inner);
    Some(match packet.transport? {
        Transport::Tcp { destination, .. } => (6, destination),
        Transport::Udp { destination, .. } => (17, destination),
        Transport::Sctp { destination, .. } => (132, destination),
        Transport::Icmpv4 { kind, .. } => (1, u16::from(kind)),
        Transport::Icmpv6 { kind, .. } => (58, u16::from(kind)),
        Transport::Other { number } => (number, 0),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use abi::event::{CaptureHeader, DropNotify, EventType};

    /// An echo request that was dropped.
    fn dropped(reason: DropReason, dst_id: u32) -> Event {
        let mut packet = [0_u8; 42];
        packet[12] = 0x08;
        packet[14] = 0x45;
        packet[23] = 1;
        packet[34] = 8;
        let header = CaptureHeader {
            event_type: EventType::Drop as u8,
            subtype: reason as u8,
            source: 5,
            len_cap: 42,
            ..CaptureHeader::default()
        };
        let notify =
            DropNotify { header, src_label: 256, dst_label: 257, dst_id, ..DropNotify::default() };
        let bytes = [zerocopy::IntoBytes::as_bytes(&notify), &packet].concat();
        Event::decode(&bytes).unwrap()
    }

    #[test]
    fn who_is_asked_what() {
        let of = |endpoint, ingress, identity| Question::Explain {
            endpoint,
            ingress,
            identity,
            protocol: 1,
            dport: 8,
        };
        assert_eq!(question(&dropped(DropReason::Policy, 17)), Some(of(17, true, 256)));
        assert_eq!(question(&dropped(DropReason::PolicyDeny, 0)), Some(of(5, false, 257)));
        assert_eq!(question(&dropped(DropReason::InvalidSip, 0)), None);
        let query = ExplainQuery {
            endpoint: 17,
            direction: "ingress".to_owned(),
            identity: 256,
            protocol: 6,
            dport: 80,
        };
        assert_eq!(
            path_of(&query),
            "/v1/policy/explain?endpoint=17&direction=ingress&identity=256&protocol=6&dport=80"
        );
    }
}
