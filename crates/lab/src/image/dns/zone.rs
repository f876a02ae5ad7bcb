//! From a question to an answer, for a server that is the authority. Pure.
//!
//! A [`Zone`] says what is at a name; the rules of DNS are here, once for the cluster's names and
//! for a fixed list: aliases are followed, an absent name differs from a name without such data,
//! negative answers carry the zone's authority, SRV brings the addresses of its targets along.

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::{Name, RData, Record, RecordType};

/// Most aliases that are followed for a question.
const ALIASES_MAX: usize = 8;
/// Most records that an answer brings along unasked.
const ADDITIONALS_MAX: usize = 32;

/// Names and what is at them.
pub trait Zone {
    /// What is at a name, compared without case.
    fn find(&self, name: &Name) -> Found;

    /// The start of authority of the zone that a name is in.
    fn authority(&self, name: &Name) -> Record;
}

/// What a zone knows of a name.
#[derive(Debug, PartialEq)]
pub enum Found {
    /// It is in no zone of ours.
    Outside,
    /// It is in a zone of ours, and neither it nor anything below it exists.
    Missing,
    /// It exists. Without data it is there because something below it is.
    Exists(Vec<Data>),
}

/// A record without its name.
#[derive(Clone, Debug, PartialEq)]
pub struct Data {
    /// How many seconds others may keep it.
    pub ttl: u32,
    /// Its type and value.
    pub value: RData,
}

/// The sections of a response.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Answer {
    /// Whether the name exists.
    pub code: ResponseCode,
    /// What was asked for.
    pub answers: Vec<Record>,
    /// Who says that there is nothing.
    pub authorities: Vec<Record>,
    /// What the asker will want to know next.
    pub additionals: Vec<Record>,
}

/// What can be said to a question.
#[derive(Debug, PartialEq)]
pub enum Outcome {
    /// Everything.
    Done(Answer),
    /// The name is an alias of one that others have to be asked about.
    Continues(Answer, Name),
    /// Nothing: the name is not ours.
    Outside,
}

/// Answers a question. `turn` rotates records of equal standing, so that clients that take the
/// first are spread over all.
pub fn resolve(zone: &impl Zone, name: &Name, kind: RecordType, turn: usize) -> Outcome {
    let mut answer = Answer::default();
    let mut owner = name.clone();
    for _ in 0..=ALIASES_MAX {
        let data = match zone.find(&owner) {
            Found::Exists(data) => data,
            Found::Outside if answer.answers.is_empty() => return Outcome::Outside,
            Found::Outside => return Outcome::Continues(answer, owner),
            Found::Missing => {
                answer.code = ResponseCode::NXDomain;
                answer.authorities.push(zone.authority(&owner));
                return Outcome::Done(answer);
            }
        };
        if let Some((ttl, target)) = alias(&data, kind) {
            answer.answers.push(Record::from_rdata(owner, ttl, RData::CNAME(target.clone())));
            owner = target.0;
            continue;
        }
        let wanted = |data: &Data| kind == RecordType::ANY || data.value.record_type() == kind;
        let mut data: Vec<Data> = data.into_iter().filter(wanted).collect();
        if data.is_empty() {
            answer.authorities.push(zone.authority(&owner));
            return Outcome::Done(answer);
        }
        let middle = turn % data.len();
        data.rotate_left(middle);
        answer.additionals = addresses_of_targets(zone, &data);
        let records = data.into_iter().map(|d| Record::from_rdata(owner.clone(), d.ttl, d.value));
        answer.answers.extend(records);
        return Outcome::Done(answer);
    }
    // Aliases that go round in a circle are a fault of the zone's owner.
    Outcome::Done(Answer { code: ResponseCode::ServFail, ..Answer::default() })
}

/// Where a name points that is an alias for this question.
fn alias(data: &[Data], kind: RecordType) -> Option<(u32, hickory_proto::rr::rdata::CNAME)> {
    if matches!(kind, RecordType::CNAME | RecordType::ANY) {
        return None;
    }
    data.iter().find_map(|data| match &data.value {
        RData::CNAME(target) => Some((data.ttl, target.clone())),
        _ => None,
    })
}

fn addresses_of_targets(zone: &impl Zone, data: &[Data]) -> Vec<Record> {
    let mut records: Vec<Record> = Vec::new();
    for data in data {
        let RData::SRV(service) = &data.value else { continue };
        // Several ports at one host.
        if records.iter().any(|record| record.name == service.target) {
            continue;
        }
        let Found::Exists(found) = zone.find(&service.target) else { continue };
        for data in found {
            if records.len() == ADDITIONALS_MAX {
                return records;
            }
            if matches!(data.value, RData::A(_) | RData::AAAA(_)) {
                records.push(Record::from_rdata(service.target.clone(), data.ttl, data.value));
            }
        }
    }
    records
}
