//! Local endpoints: what a pod is to the node it runs on.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Number of a local endpoint, 1–4095, unique on its node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "u16", into = "u16")]
pub struct EndpointId(u16);

/// A number is not an endpoint id.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not an endpoint id; it is a number from 1 to 4095")]
pub struct EndpointIdError {
    text: String,
}

impl EndpointId {
    /// The least id.
    pub const MIN: Self = Self(1);
    /// The greatest id.
    pub const MAX: Self = Self(4095);

    /// The id with this number, if it is in range.
    pub fn new(number: u16) -> Result<Self, EndpointIdError> {
        if (Self::MIN.0..=Self::MAX.0).contains(&number) {
            Ok(Self(number))
        } else {
            Err(EndpointIdError { text: number.to_string() })
        }
    }

    /// The number.
    pub fn number(self) -> u16 {
        self.0
    }
}

impl TryFrom<u16> for EndpointId {
    type Error = EndpointIdError;

    fn try_from(number: u16) -> Result<Self, EndpointIdError> {
        Self::new(number)
    }
}

impl From<EndpointId> for u16 {
    fn from(id: EndpointId) -> Self {
        id.0
    }
}

impl fmt::Display for EndpointId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl FromStr for EndpointId {
    type Err = EndpointIdError;

    fn from_str(text: &str) -> Result<Self, EndpointIdError> {
        let number =
            text.parse().map_err(|_not_a_number| EndpointIdError { text: text.to_owned() })?;
        Self::new(number)
    }
}

/// Where an endpoint is in its life, in Cilium's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EndpointState {
    /// Its labels or its identity are not known yet.
    WaitingForIdentity,
    /// It is known, its state is not in the datapath yet.
    NotReady,
    /// Its state in the datapath is out of date.
    WaitingToRegenerate,
    /// Its state in the datapath is being written.
    Regenerating,
    /// It was adopted from before a restart and not confirmed yet.
    Restoring,
    /// It can send and receive.
    Ready,
    /// It is being removed.
    Disconnecting,
    /// It is removed.
    Disconnected,
    /// It cannot be made to work.
    Invalid,
}

impl EndpointState {
    /// Cilium's word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::WaitingForIdentity => "waiting-for-identity",
            Self::NotReady => "not-ready",
            Self::WaitingToRegenerate => "waiting-to-regenerate",
            Self::Regenerating => "regenerating",
            Self::Restoring => "restoring",
            Self::Ready => "ready",
            Self::Disconnecting => "disconnecting",
            Self::Disconnected => "disconnected",
            Self::Invalid => "invalid",
        }
    }
}

impl fmt::Display for EndpointState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_in_range() {
        assert_eq!("4095".parse(), Ok(EndpointId::MAX));
        for bad in ["0", "4096", "65536", "-1", "x", ""] {
            assert!(bad.parse::<EndpointId>().is_err(), "{bad:?} is not an id");
        }
    }
}
