//! `cilium bpf policy get`: what endpoints may send and receive, read from the map's pin.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use abi::endpoint::{
    ENDPOINT_F_AUDIT, ENDPOINT_F_ENFORCE_EGRESS, ENDPOINT_F_ENFORCE_INGRESS, ENDPOINT_F_LOCKDOWN,
    EndpointInfo,
};
use abi::policy::{
    AGGREGATE_CLUSTER, AGGREGATE_CLUSTER_MESH, AGGREGATE_REMOTE_NODE, AGGREGATE_WORLD,
    POLICY_EGRESS, POLICY_PORT_BITS, POLICY_PROTOCOL_BITS, POLICY_STATIC_PREFIX_BITS,
    PRECEDENCE_PASS, PolicyEntry, PolicyKey,
};
use anyhow::{Result, bail};
use api::rest::{Identity, path};
use kernel::map::Map as _;
use serde::Serialize;

use crate::args::Ask;
use crate::bpf::maps;
use crate::conntrack::protocol_name;
use crate::list::labels;
use crate::nodes::Node;
use crate::output::{Outcome, Report, Table};

/// How the entries are shown.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Look {
    pub(crate) numeric: bool,
    pub(crate) verbose: bool,
}

/// The policy of a slot and who uses it.
#[derive(Debug, Serialize)]
struct Slot {
    slot: u32,
    revision: u32,
    endpoints: BTreeSet<u16>,
    entries: Vec<Entry>,
}

/// An endpoint and how it is enforced.
#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
struct Enforcement {
    endpoint: u16,
    slot: u32,
    ingress: bool,
    egress: bool,
    audit: bool,
    lockdown: bool,
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
struct Entry {
    direction: &'static str,
    identity: u32,
    #[serde(skip_serializing_if = "String::is_empty")]
    labels: String,
    port: String,
    policy: &'static str,
    proxy_port: u16,
    auth_type: u8,
    prefix: u8,
    precedence: u32,
    cookie: u32,
}

/// What is asked for: the list of endpoints, or slots.
#[derive(Debug, Serialize)]
#[serde(untagged)]
enum Answer {
    Endpoints(Vec<Enforcement>),
    Slots(Vec<Slot>),
}

pub(crate) fn get(ask: &Ask, endpoint: Option<u16>, all: bool, look: Look) -> Result<Outcome> {
    let fetch = |node: &Node| {
        let enforced = endpoints(node)?;
        let wanted: BTreeMap<u32, BTreeSet<u16>> = match endpoint {
            None if !all => return Ok(Answer::Endpoints(enforced)),
            None => by_slot(&enforced),
            Some(number) => match enforced.iter().find(|one| one.endpoint == number) {
                Some(found) => BTreeMap::from([(found.slot, BTreeSet::from([number]))]),
                None => bail!(
                    "no endpoint {number} is enforced; `cilium bpf policy get` lists those that are"
                ),
            },
        };
        let names = if look.numeric { BTreeMap::new() } else { names(node) };
        slots(node, &wanted, &names).map(Answer::Slots)
    };
    Report::new(ask)?.each(fetch, |answer| render(answer, look))
}

/// The endpoints that some policy is enforced of, by number.
fn endpoints(node: &Node) -> Result<Vec<Enforcement>> {
    let rows = maps(node)?.lxc.entries()?;
    let mut all: Vec<Enforcement> = rows.iter().filter_map(|(_, row)| enforcement(row)).collect();
    all.sort_by_key(|one| (one.endpoint, one.slot));
    // An endpoint has a row for each of its addresses.
    all.dedup();
    Ok(all)
}

fn enforcement(row: &EndpointInfo) -> Option<Enforcement> {
    let has = |flag| row.flags & flag != 0;
    let [ingress, egress] = [ENDPOINT_F_ENFORCE_INGRESS, ENDPOINT_F_ENFORCE_EGRESS].map(has);
    let lockdown = has(ENDPOINT_F_LOCKDOWN);
    let is_enforced = ingress || egress || lockdown;
    is_enforced.then(|| Enforcement {
        endpoint: row.lxc_id,
        slot: row.policy_slot,
        ingress,
        egress,
        audit: has(ENDPOINT_F_AUDIT),
        lockdown,
    })
}

fn by_slot(enforced: &[Enforcement]) -> BTreeMap<u32, BTreeSet<u16>> {
    let mut slots: BTreeMap<u32, BTreeSet<u16>> = BTreeMap::new();
    for one in enforced {
        slots.entry(one.slot).or_default().insert(one.endpoint);
    }
    slots
}

/// Labels of identities; of none where the agent does not answer.
fn names(node: &Node) -> BTreeMap<u32, String> {
    let known: Vec<Identity> = node.client().get(path::IDENTITY).unwrap_or_default();
    known.into_iter().map(|identity| (identity.id.0, labels(&identity.labels))).collect()
}

fn slots(
    node: &Node,
    wanted: &BTreeMap<u32, BTreeSet<u16>>,
    names: &BTreeMap<u32, String>,
) -> Result<Vec<Slot>> {
    let maps = maps(node)?;
    let content = maps.policy.entries()?;
    let mut slots = Vec::new();
    for (slot, endpoints) in wanted {
        let mine = content.iter().filter(|(key, _)| key.slot == *slot);
        let mut entries: Vec<Entry> = mine.map(|(key, value)| entry(key, value, names)).collect();
        entries.sort();
        let revision = maps.policy_revisions.lookup(slot)?.map_or(0, |slot| slot.revision);
        slots.push(Slot { slot: *slot, revision, endpoints: endpoints.clone(), entries });
    }
    Ok(slots)
}

fn entry(key: &PolicyKey, value: &PolicyEntry, names: &BTreeMap<u32, String>) -> Entry {
    let labels = match key.identity {
        0 => "any".to_owned(),
        AGGREGATE_CLUSTER => "any endpoint of the cluster".to_owned(),
        AGGREGATE_CLUSTER_MESH => "any endpoint of other clusters".to_owned(),
        AGGREGATE_WORLD => "any prefix outside".to_owned(),
        AGGREGATE_REMOTE_NODE => "any other node".to_owned(),
        identity => names.get(&identity).cloned().unwrap_or_default(),
    };
    Entry {
        direction: if key.direction == POLICY_EGRESS { "Egress" } else { "Ingress" },
        identity: key.identity,
        labels,
        port: port(key),
        policy: verdict(value),
        proxy_port: u16::from_be_bytes(value.proxy_port),
        auth_type: value.auth,
        prefix: value.prefix_bits(),
        precedence: value.precedence,
        cookie: value.cookie,
    }
}

fn verdict(value: &PolicyEntry) -> &'static str {
    if value.is_not_enforceable() {
        "Deny (needs L7 or DNS)"
    } else if value.is_deny() {
        "Deny"
    } else if value.precedence.to_le_bytes()[0] == PRECEDENCE_PASS {
        "Pass"
    } else {
        "Allow"
    }
}

/// `80/TCP`, `8000-8063/TCP`, `TCP`, `ANY`.
fn port(key: &PolicyKey) -> String {
    let bits = key.prefix_len.saturating_sub(POLICY_STATIC_PREFIX_BITS);
    if bits == 0 {
        return "ANY".to_owned();
    }
    let protocol = protocol_name(key.protocol);
    let wildcards = POLICY_PORT_BITS.saturating_sub(bits.saturating_sub(POLICY_PROTOCOL_BITS));
    let first = u16::from_be_bytes(key.dport);
    match wildcards {
        0 => format!("{first}/{protocol}"),
        POLICY_PORT_BITS.. => protocol,
        wildcards => format!("{first}-{}/{protocol}", first | ((1 << wildcards) - 1)),
    }
}

fn render(answer: &Answer, look: Look) -> String {
    match answer {
        Answer::Endpoints(list) => render_endpoints(list),
        Answer::Slots(slots) => {
            let texts: Vec<String> = slots.iter().map(|slot| render_slot(slot, look)).collect();
            texts.join("\n")
        }
    }
}

fn render_endpoints(list: &[Enforcement]) -> String {
    let mut table = Table::new(&["ENDPOINT", "SLOT", "INGRESS", "EGRESS", "REMARKS"]);
    let word = |enforced| if enforced { "Enabled" } else { "Disabled" }.to_owned();
    for one in list {
        let mut remarks = Vec::new();
        if one.audit {
            remarks.push("audited: what would be denied passes");
        }
        if one.lockdown {
            remarks.push("locked down: its policy did not fit, all is denied");
        }
        table.row(vec![
            one.endpoint.to_string(),
            one.slot.to_string(),
            word(one.ingress),
            word(one.egress),
            remarks.join("; "),
        ]);
    }
    table.to_string()
}

fn render_slot(slot: &Slot, look: Look) -> String {
    let peers = if look.numeric { "IDENTITY" } else { "LABELS" };
    let mut header = vec![
        "POLICY",
        "DIRECTION",
        peers,
        "PORT/PROTO",
        "PROXY PORT",
        "AUTH TYPE",
        "PREFIX",
        "COOKIE",
    ];
    if look.verbose {
        header.push("PRECEDENCE");
    }
    let mut table = Table::new(&header);
    for entry in &slot.entries {
        let peer = match (look.numeric, entry.labels.as_str()) {
            (false, labels) if !labels.is_empty() => labels.to_owned(),
            _ => entry.identity.to_string(),
        };
        let auth =
            if entry.auth_type == 0 { "disabled".to_owned() } else { entry.auth_type.to_string() };
        let proxy =
            if entry.proxy_port == 0 { "NONE".to_owned() } else { entry.proxy_port.to_string() };
        let mut row = vec![
            entry.policy.to_owned(),
            entry.direction.to_owned(),
            peer,
            entry.port.clone(),
            proxy,
            auth,
            entry.prefix.to_string(),
            entry.cookie.to_string(),
        ];
        if look.verbose {
            row.push(format!("{:#010x}", entry.precedence));
        }
        table.row(row);
    }
    let endpoints: Vec<String> = slot.endpoints.iter().map(u16::to_string).collect();
    let mut text = String::new();
    let _ = writeln!(
        text,
        "Endpoint {}: slot {}, revision {}",
        endpoints.join(", "),
        slot.slot,
        slot.revision
    );
    text + &table.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use abi::endpoint::ENDPOINT_F_HOST;
    use abi::policy::{
        POLICY_DENY, POLICY_INGRESS, POLICY_NOT_ENFORCEABLE, PRECEDENCE_ALLOW, PRECEDENCE_DENY,
        precedence,
    };
    use expect_test::expect;

    fn key(identity: u32, direction: u8, bits: u32, protocol: u8, dport: u16) -> PolicyKey {
        PolicyKey {
            prefix_len: POLICY_STATIC_PREFIX_BITS + bits,
            slot: 3,
            identity,
            direction,
            protocol,
            dport: dport.to_be_bytes(),
        }
    }

    #[test]
    fn entries_are_shown_in_words() {
        let value = |bits, low| PolicyEntry {
            bits,
            precedence: precedence(0, low),
            cookie: 9,
            ..PolicyEntry::default()
        };
        let content = [
            (key(256, POLICY_INGRESS, 24, 6, 80), value(24 << 3, PRECEDENCE_ALLOW)),
            (key(0, POLICY_INGRESS, 0, 0, 0), value(POLICY_DENY, PRECEDENCE_DENY)),
            (key(11, POLICY_EGRESS, 8, 17, 0), value(8 << 3, PRECEDENCE_PASS)),
            (
                key(300, POLICY_EGRESS, 18, 6, 8000),
                value(POLICY_NOT_ENFORCEABLE | 18 << 3, PRECEDENCE_ALLOW),
            ),
        ];
        let names = BTreeMap::from([(256, "k8s:app=web".to_owned())]);
        let mut entries: Vec<Entry> =
            content.iter().map(|(key, value)| entry(key, value, &names)).collect();
        entries.sort();
        let slot = Slot { slot: 3, revision: 41, endpoints: BTreeSet::from([5, 17]), entries };
        expect![[r#"
            Endpoint 5, 17: slot 3, revision 41
            POLICY                   DIRECTION   LABELS                        PORT/PROTO      PROXY PORT   AUTH TYPE   PREFIX   COOKIE
            Pass                     Egress      any endpoint of the cluster   UDP             NONE         disabled    8        9
            Deny (needs L7 or DNS)   Egress      300                           8000-8063/TCP   NONE         disabled    18       9
            Deny                     Ingress     any                           ANY             NONE         disabled    0        9
            Allow                    Ingress     k8s:app=web                   80/TCP          NONE         disabled    24       9
        "#]].assert_eq(&render_slot(&slot, Look { numeric: false, verbose: false }));
        expect![[r#"
            Endpoint 5, 17: slot 3, revision 41
            POLICY                   DIRECTION   IDENTITY   PORT/PROTO      PROXY PORT   AUTH TYPE   PREFIX   COOKIE   PRECEDENCE
            Pass                     Egress      11         UDP             NONE         disabled    8        9        0xffffff00
            Deny (needs L7 or DNS)   Egress      300        8000-8063/TCP   NONE         disabled    18       9        0xffffff01
            Deny                     Ingress     0          ANY             NONE         disabled    0        9        0xffffffff
            Allow                    Ingress     256        80/TCP          NONE         disabled    24       9        0xffffff01
        "#]].assert_eq(&render_slot(&slot, Look { numeric: true, verbose: true }));
    }

    #[test]
    fn endpoints_that_are_enforced_are_listed_once() {
        let row = |flags, slot| EndpointInfo {
            lxc_id: 5,
            flags,
            policy_slot: slot,
            ..EndpointInfo::default()
        };
        assert_eq!(enforcement(&row(ENDPOINT_F_HOST, 0)), None);
        let audited = enforcement(&row(ENDPOINT_F_ENFORCE_INGRESS | ENDPOINT_F_AUDIT, 3)).unwrap();
        expect![[r#"
            ENDPOINT   SLOT   INGRESS   EGRESS     REMARKS
            5          3      Enabled   Disabled   audited: what would be denied passes
        "#]]
        .assert_eq(&render_endpoints(&[audited]));
    }
}
