//! A zone that is a list of records: what the world outside of a lab knows. Pure.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};

use hickory_proto::rr::rdata::{CNAME, NS, PTR, SOA, TXT};
use hickory_proto::rr::{Name, RData, Record};

use super::zone::{Data, Found, Zone};

/// How long records may be kept unless they say otherwise.
const TTL: u32 = 300;
/// How long an absence may be kept.
const TTL_NEGATIVE: u32 = 30;
/// Addresses of `many`: more than fit into a UDP answer.
const MANY: u8 = 120;

/// Zones and all their names.
#[derive(Debug)]
pub struct Fixed {
    origins: Vec<Name>,
    names: HashMap<Name, Vec<Data>>,
}

impl Fixed {
    /// Zones that begin at `origins` and hold the records. A record outside of them is not served.
    pub fn new(origins: Vec<Name>, records: impl IntoIterator<Item = Record>) -> Self {
        let mut zone = Self { origins, names: HashMap::new() };
        for origin in zone.origins.clone() {
            let soa = Data { ttl: TTL_NEGATIVE, value: RData::SOA(start_of_authority(&origin)) };
            let ns = origin
                .prepend_label("ns")
                .map(|name| Data { ttl: TTL, value: RData::NS(NS(name)) });
            zone.names.entry(origin).or_default().extend([soa].into_iter().chain(ns));
        }
        for record in records {
            let Some(origin) = zone.origin(&record.name).cloned() else { continue };
            // Names between the origin and the record exist with it.
            let mut above = record.name.base_name();
            while origin.zone_of(&above) {
                zone.names.entry(above.clone()).or_default();
                above = above.base_name();
            }
            let data = Data { ttl: record.ttl, value: record.data };
            zone.names.entry(record.name).or_default().push(data);
        }
        zone
    }

    /// The smallest zone that a name is in.
    fn origin(&self, name: &Name) -> Option<&Name> {
        let zones = self.origins.iter().filter(|origin| origin.zone_of(name));
        zones.max_by_key(|origin| origin.num_labels())
    }
}

impl Zone for Fixed {
    fn find(&self, name: &Name) -> Found {
        if self.origin(name).is_none() {
            return Found::Outside;
        }
        self.names.get(name).map_or(Found::Missing, |data| Found::Exists(data.clone()))
    }

    fn authority(&self, name: &Name) -> Record {
        let origin = self.origin(name).unwrap_or(name);
        Record::from_rdata(origin.clone(), TTL_NEGATIVE, RData::SOA(start_of_authority(origin)))
    }
}

fn start_of_authority(origin: &Name) -> SOA {
    let below = |label: &str| origin.prepend_label(label).unwrap_or_else(|_| origin.clone());
    SOA::new(below("ns"), below("hostmaster"), 1, 7200, 1800, 86_400, TTL_NEGATIVE)
}

/// A zone for tests of whatever resolves names, with `addresses` for the hosts that exist.
///
/// | Name | What it shows |
/// |---|---|
/// | the origin, `ns`, `www` | every address |
/// | `ipv4`, `ipv6` | a name of one family: no data for the other |
/// | `alias`, `chain` | CNAME to `www`, CNAME to `alias` |
/// | `loop` | CNAME to itself |
/// | `away` | CNAME to a name outside of the zone |
/// | `short` | every address, for a second |
/// | `many`, `long` | 120 addresses, 3,000 bytes of text: need TCP |
/// | `a.b.deep` | makes `b.deep` exist without data |
/// | anything else | does not exist |
pub fn test_zone(origin: &Name, addresses: &[IpAddr]) -> Fixed {
    let mut records = Vec::new();
    let mut add = |label: &str, ttl: u32, value: RData| {
        let name = Name::from_ascii(label).and_then(|relative| relative.append_domain(origin));
        records.extend(name.map(|name| Record::from_rdata(name, ttl, value)));
    };
    for address in addresses {
        let family = if address.is_ipv4() { "ipv4" } else { "ipv6" };
        for label in ["ns", "www", "a.b.deep", family] {
            add(label, TTL, RData::from(*address));
        }
        add("short", 1, RData::from(*address));
    }
    for number in 1..=MANY {
        add("many", TTL, RData::from(IpAddr::from(Ipv4Addr::new(192, 0, 2, number))));
    }
    add("long", TTL, RData::TXT(TXT::new(vec!["0123456789".repeat(25); 12])));
    for (label, target) in [("alias", "www"), ("chain", "alias"), ("loop", "loop")] {
        let target = origin.prepend_label(target).unwrap_or_else(|_| origin.clone());
        add(label, TTL, RData::CNAME(CNAME(target)));
    }
    if let Ok(elsewhere) = Name::from_ascii("www.elsewhere.invalid.") {
        add("away", TTL, RData::CNAME(CNAME(elsewhere)));
    }
    let apex = addresses.iter().map(|a| Record::from_rdata(origin.clone(), TTL, RData::from(*a)));
    records.extend(apex);
    let mut origins = vec![origin.clone()];
    for address in addresses {
        // Each address is a zone of its own: the neighbours are others'.
        let reverse = Name::from(*address);
        if let Ok(www) = origin.prepend_label("www") {
            records.push(Record::from_rdata(reverse.clone(), TTL, RData::PTR(PTR(www))));
        }
        origins.push(reverse);
    }
    Fixed::new(origins, records)
}

#[cfg(test)]
mod tests {
    use super::super::zone::{Outcome, resolve};
    use super::*;
    use hickory_proto::op::ResponseCode;
    use hickory_proto::rr::RecordType;

    /// The number of answers, or why there are none.
    fn check(question: &str, kind: RecordType, expected: Result<usize, &str>) {
        let origin = Name::from_ascii("external.test.").unwrap();
        let zone =
            test_zone(&origin, &["203.0.113.10", "2001:db8:ff::10"].map(|ip| ip.parse().unwrap()));
        let name = Name::from_ascii(question).unwrap();
        let got = match resolve(&zone, &name, kind, 0) {
            Outcome::Outside => Err("outside".to_owned()),
            Outcome::Continues(answer, target) => {
                assert_eq!(answer.answers.len(), 1);
                Err(format!("continues {target}"))
            }
            Outcome::Done(answer) => match answer.code {
                ResponseCode::NoError => Ok(answer.answers.len()),
                code => Err(code.to_string()),
            },
        };
        assert_eq!(got, expected.map_err(str::to_owned), "{question} {kind}");
    }

    #[test]
    fn the_test_zone_has_names_of_every_kind() {
        use RecordType::{A, AAAA, CNAME, NS, PTR, SOA, TXT};
        let no_name = Err("Non-Existent Domain");
        check("www.external.test.", A, Ok(1));
        check("WWW.external.test.", AAAA, Ok(1));
        check("www.external.test.", TXT, Ok(0));
        check("external.test.", A, Ok(1));
        check("external.test.", NS, Ok(1));
        check("external.test.", SOA, Ok(1));
        check("ipv4.external.test.", AAAA, Ok(0));
        check("ipv6.external.test.", AAAA, Ok(1));
        check("chain.external.test.", A, Ok(3));
        check("chain.external.test.", CNAME, Ok(1));
        check("loop.external.test.", A, Err("Server Failure"));
        check("away.external.test.", A, Err("continues www.elsewhere.invalid."));
        check("many.external.test.", A, Ok(MANY.into()));
        check("long.external.test.", TXT, Ok(1));
        check("a.b.deep.external.test.", A, Ok(1));
        check("b.deep.external.test.", A, Ok(0));
        check("deep.external.test.", A, Ok(0));
        check("c.deep.external.test.", A, no_name);
        check("gone.external.test.", A, no_name);
        check("test.", A, Err("outside"));
        check("10.113.0.203.in-addr.arpa.", PTR, Ok(1));
        check("11.113.0.203.in-addr.arpa.", PTR, Err("outside"));
    }
}
