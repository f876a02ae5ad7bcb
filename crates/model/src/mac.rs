//! Ethernet addresses.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// An Ethernet address, written `aa:bb:cc:dd:ee:ff`.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize,
)]
#[serde(try_from = "String", into = "String")]
pub struct Mac(pub [u8; 6]);

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// A text is not an Ethernet address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a MAC address; write six bytes as aa:bb:cc:dd:ee:ff")]
pub struct ParseMacError {
    text: String,
}

impl FromStr for Mac {
    type Err = ParseMacError;

    fn from_str(text: &str) -> Result<Self, ParseMacError> {
        let error = || ParseMacError { text: text.to_owned() };
        let byte = |part: &str| {
            let hex = part.len() == 2 && part.bytes().all(|b| b.is_ascii_hexdigit());
            if hex { u8::from_str_radix(part, 16).ok() } else { None }
        };
        let bytes: Option<Vec<u8>> = text.split(':').map(byte).collect();
        let bytes = bytes.ok_or_else(error)?.try_into().map_err(|_not_six| error())?;
        Ok(Self(bytes))
    }
}

impl TryFrom<String> for Mac {
    type Error = ParseMacError;

    fn try_from(text: String) -> Result<Self, ParseMacError> {
        text.parse()
    }
}

impl From<Mac> for String {
    fn from(mac: Mac) -> Self {
        mac.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read() {
        let mac = Mac([0x02, 0x42, 0xac, 0, 0xFF, 1]);
        assert_eq!("02:42:AC:00:ff:01".parse(), Ok(mac));
        assert_eq!(mac.to_string(), "02:42:ac:00:ff:01");
        for bad in
            ["", "02:42:ac:00:ff", "02:42:ac:00:ff:01:02", "2:42:ac:0:ff:1", "+2:42:ac:00:ff:01"]
        {
            assert!(bad.parse::<Mac>().is_err(), "{bad:?}");
        }
    }
}
