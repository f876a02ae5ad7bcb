//! Field masks: which fields of a flow a client wants to see.
//!
//! A mask is a tree of field numbers, and it is applied to the encoded message: fields that are not
//! in the tree are cut out. So it works for every field that there is, without a line for each.

use std::collections::BTreeMap;

use api::hubble::{Named, flow::Flow};
use prost::Message as _;
use prost::encoding::{
    DecodeContext, WireType, decode_key, decode_varint, encode_key, encode_varint, skip_field,
};
use prost_reflect::{Kind, MessageDescriptor};

/// The wanted fields of a message.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mask {
    /// By number; none below means the whole field.
    fields: BTreeMap<u32, Option<Self>>,
}

/// A path of a mask names no field.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("field mask {path:?}: {message} has no field {field:?}")]
pub struct MaskError {
    /// The path as it was given.
    pub path: String,
    /// The message that was looked at.
    pub message: String,
    /// The name that it does not have.
    pub field: String,
}

impl Mask {
    /// The mask of a flow that these paths make, such as `time` and `source.pod_name`; none where
    /// there is no path, for then everything is wanted.
    pub fn new<'a>(paths: impl IntoIterator<Item = &'a str>) -> Result<Option<Self>, MaskError> {
        let mut mask = Self::default();
        for path in paths {
            mask.insert(path, &Flow::descriptor())?;
        }
        Ok((!mask.fields.is_empty()).then_some(mask))
    }

    fn insert(&mut self, path: &str, message: &MessageDescriptor) -> Result<(), MaskError> {
        let mut below = Some(message.clone());
        let mut names = path.split('.').peekable();
        let mut mask = self;
        while let Some(name) = names.next() {
            let unknown = |message: String| MaskError {
                path: path.to_owned(),
                message,
                field: name.to_owned(),
            };
            let Some(message) = below else { return Err(unknown("a single value".to_owned())) };
            let Some(field) = message.get_field_by_name(name) else {
                return Err(unknown(message.full_name().to_owned()));
            };
            let is_last = names.peek().is_none();
            let wanted = mask.fields.entry(field.number()).or_insert_with(|| Some(Self::default()));
            if is_last {
                *wanted = None;
            }
            below = match field.kind() {
                Kind::Message(message) => Some(message),
                _ => None,
            };
            match wanted {
                Some(part) => mask = part,
                // A path before this one wants the whole field; this one must still be right.
                None if is_last => return Ok(()),
                None => return Self::default().insert_rest(path, names, below),
            }
        }
        Ok(())
    }

    /// Checks the rest of a path whose beginning is wanted whole.
    fn insert_rest<'a>(
        mut self,
        path: &str,
        names: impl Iterator<Item = &'a str>,
        below: Option<MessageDescriptor>,
    ) -> Result<(), MaskError> {
        let rest = names.collect::<Vec<_>>().join(".");
        let error = |mut error: MaskError| {
            path.clone_into(&mut error.path);
            error
        };
        match below {
            Some(message) => self.insert(&rest, &message).map_err(error),
            None => Err(MaskError {
                path: path.to_owned(),
                message: "a single value".to_owned(),
                field: rest,
            }),
        }
    }

    /// What is left of a flow.
    pub fn apply(&self, flow: &Flow) -> Flow {
        let bytes = self.cut(&flow.encode_to_vec()).unwrap_or_default();
        Flow::decode(bytes.as_slice()).unwrap_or_default()
    }

    /// The wanted fields of an encoded message; none where the bytes are no message.
    fn cut(&self, mut bytes: &[u8]) -> Option<Vec<u8>> {
        let mut kept = Vec::new();
        while !bytes.is_empty() {
            let whole = bytes;
            let (number, wire_type) = decode_key(&mut bytes).ok()?;
            let part = self.fields.get(&number);
            if let (Some(Some(mask)), WireType::LengthDelimited) = (part, wire_type) {
                let len = usize::try_from(decode_varint(&mut bytes).ok()?).ok()?;
                let (inner, rest) = bytes.split_at_checked(len)?;
                let inner = mask.cut(inner)?;
                encode_key(number, wire_type, &mut kept);
                encode_varint(inner.len() as u64, &mut kept);
                kept.extend_from_slice(&inner);
                bytes = rest;
                continue;
            }
            skip_field(wire_type, number, &mut bytes, DecodeContext::default()).ok()?;
            if part.is_some() {
                kept.extend_from_slice(&whole[..whole.len() - bytes.len()]);
            }
        }
        Some(kept)
    }
}

#[cfg(test)]
mod tests {
    use api::hubble::{from_json, to_json};

    use super::*;

    const FLOW: &str = r#"{"time":"2023-11-14T22:13:20Z","verdict":"DROPPED","IP":{"source":"10.0.0.1","destination":"10.0.0.2"},"l4":{"TCP":{"source_port":1,"destination_port":2,"flags":{"SYN":true}}},"source":{"ID":7,"labels":["a","b"],"pod_name":"x"},"destination_names":["one","two"],"socket_cookie":"9"}"#;

    #[track_caller]
    fn check(paths: &[&str], expected: &str) {
        let flow = from_json::<Flow>(FLOW).unwrap();
        let mask = Mask::new(paths.iter().copied()).unwrap().unwrap();
        assert_eq!(to_json(&mask.apply(&flow)), expected, "{paths:?}");
    }

    #[test]
    fn what_is_not_wanted_is_left_out() {
        check(&["verdict"], r#"{"verdict":"DROPPED"}"#);
        check(
            &["source.pod_name", "IP.source"],
            r#"{"IP":{"source":"10.0.0.1"},"source":{"pod_name":"x"}}"#,
        );
        check(
            &["source.labels", "destination_names"],
            r#"{"source":{"labels":["a","b"]},"destination_names":["one","two"]}"#,
        );
        check(&["l4.TCP.destination_port"], r#"{"l4":{"TCP":{"destination_port":2}}}"#);
        check(
            &["l4", "l4.TCP.flags"],
            r#"{"l4":{"TCP":{"source_port":1,"destination_port":2,"flags":{"SYN":true}}}}"#,
        );
        check(
            &["l4.TCP.flags", "l4"],
            r#"{"l4":{"TCP":{"source_port":1,"destination_port":2,"flags":{"SYN":true}}}}"#,
        );
        check(&["socket_cookie", "time"], r#"{"time":"2023-11-14T22:13:20Z","socket_cookie":"9"}"#);
        check(&["l7"], "{}");
        assert_eq!(Mask::new([]), Ok(None));
    }

    #[test]
    fn what_is_no_field_is_refused_by_name() {
        let refused = |paths: &[&str]| Mask::new(paths.iter().copied()).unwrap_err().to_string();
        assert_eq!(
            refused(&["source.pot"]),
            r#"field mask "source.pot": flow.Endpoint has no field "pot""#
        );
        assert_eq!(refused(&["tyme"]), r#"field mask "tyme": flow.Flow has no field "tyme""#);
        assert_eq!(
            refused(&["verdict.x"]),
            r#"field mask "verdict.x": a single value has no field "x""#
        );
        assert_eq!(
            refused(&["source", "source.pot"]),
            r#"field mask "source.pot": flow.Endpoint has no field "pot""#
        );
        assert_eq!(
            refused(&["verdict", "verdict.x"]),
            r#"field mask "verdict.x": a single value has no field "x""#
        );
        assert_eq!(refused(&[""]), r#"field mask "": flow.Flow has no field """#);
    }
}
