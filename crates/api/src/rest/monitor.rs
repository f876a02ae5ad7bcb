//! `/monitor`: the datapath's events as a stream of frames.
//!
//! ```text
//! u32 payload length | u32 kind | u64 timestamp in ns since boot | payload     (little endian)
//! ```
//!
//! The payload of an event is what the BPF program wrote, in the layouts of `abi::event`, packet
//! bytes included; clients decode it themselves, so the agent pays one copy per event.

use std::io::{self, Read};

/// Bytes before the payload.
pub const HEADER_LEN: usize = 16;
/// Longest payload that a reader accepts: an event and the largest packet of a device.
pub const PAYLOAD_LEN_MAX: usize = 128 * 1024;

const KIND_EVENT: u32 = 0;
const KIND_LOST: u32 = 1;

/// One element of the stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// An event of the datapath.
    Event {
        /// When it happened, nanoseconds since boot.
        timestamp_ns: u64,
        /// `abi` event and packet bytes.
        payload: Vec<u8>,
    },
    /// Events were lost, for a ring or this client's queue was full.
    Lost {
        /// When that was noticed, nanoseconds since boot.
        timestamp_ns: u64,
        /// How many.
        count: u64,
    },
}

impl Frame {
    /// Appends the frame to `out`.
    pub fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Event { timestamp_ns, payload } => encode_event(*timestamp_ns, payload, out),
            Self::Lost { timestamp_ns, count } => {
                encode(KIND_LOST, *timestamp_ns, &count.to_le_bytes(), out);
            }
        }
    }

    /// Reads the next frame; `None` where the stream ends between two frames.
    pub fn read(stream: &mut impl Read) -> io::Result<Option<Self>> {
        let mut header = [0; HEADER_LEN];
        if !read_header(stream, &mut header)? {
            return Ok(None);
        }
        let [a, b, c, d, e, f, g, h, time @ ..] = header;
        let len = u32::from_le_bytes([a, b, c, d]) as usize;
        let kind = u32::from_le_bytes([e, f, g, h]);
        let timestamp_ns = u64::from_le_bytes(time);
        if len > PAYLOAD_LEN_MAX {
            return Err(invalid(format!("monitor frame of {len} bytes is too long")));
        }
        let mut payload = vec![0; len];
        stream.read_exact(&mut payload)?;
        match kind {
            KIND_EVENT => Ok(Some(Self::Event { timestamp_ns, payload })),
            KIND_LOST => {
                let count = payload.try_into().map_err(|payload: Vec<u8>| {
                    invalid(format!("lost-events frame has {} bytes, not 8", payload.len()))
                })?;
                Ok(Some(Self::Lost { timestamp_ns, count: u64::from_le_bytes(count) }))
            }
            _ => Err(invalid(format!("monitor frame of unknown kind {kind}"))),
        }
    }
}

/// Appends a frame that carries an event to `out`, without a copy in between.
pub fn encode_event(timestamp_ns: u64, payload: &[u8], out: &mut Vec<u8>) {
    encode(KIND_EVENT, timestamp_ns, payload, out);
}

fn encode(kind: u32, timestamp_ns: u64, payload: &[u8], out: &mut Vec<u8>) {
    let len = u32::try_from(payload.len()).expect("events are shorter than PAYLOAD_LEN_MAX");
    out.extend_from_slice(&len.to_le_bytes());
    out.extend_from_slice(&kind.to_le_bytes());
    out.extend_from_slice(&timestamp_ns.to_le_bytes());
    out.extend_from_slice(payload);
}

/// Fills `header`; false where the stream ends before its first byte.
fn read_header(stream: &mut impl Read, header: &mut [u8; HEADER_LEN]) -> io::Result<bool> {
    let mut filled = 0;
    while filled < HEADER_LEN {
        match stream.read(&mut header[filled..]) {
            Ok(0) if filled == 0 => return Ok(false),
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(n) => filled += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(true)
}

fn invalid(message: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_read_as_they_are_written() {
        let frames = [
            Frame::Event { timestamp_ns: 7, payload: vec![1, 2, 3] },
            Frame::Lost { timestamp_ns: 8, count: 9 },
        ];
        let mut bytes = Vec::new();
        frames.iter().for_each(|frame| frame.encode(&mut bytes));
        let mut stream = bytes.as_slice();
        for frame in frames {
            assert_eq!(Frame::read(&mut stream).unwrap(), Some(frame));
        }
        assert_eq!(Frame::read(&mut stream).unwrap(), None);
        for end in 1..bytes.len() {
            let mut cut = &bytes[..end];
            while let Ok(Some(_)) = Frame::read(&mut cut) {}
        }
        assert!(Frame::read(&mut &bytes[..5]).is_err());
        assert!(Frame::read(&mut &[0xff; 32][..]).is_err());
    }
}
