//! The Internet checksum (RFC 1071) and its incremental update (RFC 1624).

/// A checksum being adapted to changes of what it covers.
///
/// Sums are in the byte order of the machine: one's complement addition does not care, as long as
/// each part begins at an even offset.
#[derive(Clone, Copy, Debug)]
pub struct Update(u64);

impl Update {
    /// Begins with the checksum that stands in the packet.
    pub const fn of(checksum: [u8; 2]) -> Self {
        Self(!u16::from_ne_bytes(checksum) as u64)
    }

    /// A word of what is covered was `old` and is now `new`.
    pub const fn replace(self, old: u32, new: u32) -> Self {
        Self(self.0 + !old as u64 + new as u64)
    }

    /// The checksum to write.
    pub const fn finish(self) -> [u8; 2] {
        let sum = (self.0 & 0xffff_ffff) + (self.0 >> 32);
        let sum = (sum & 0xffff) + (sum >> 16);
        let sum = (sum & 0xffff) + (sum >> 16);
        let sum = (sum & 0xffff) + (sum >> 16);
        (!(sum as u16)).to_ne_bytes()
    }
}

/// The checksum over `bytes`; `start` is added, for pseudo headers. For building packets, not for
/// the programs.
#[cfg(not(target_arch = "bpf"))]
pub fn compute(bytes: &[u8], start: u32) -> [u8; 2] {
    let mut sum = u64::from(start);
    for pair in bytes.chunks(2) {
        sum += u64::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    (!(sum as u16)).to_be_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_update_equals_a_new_computation() {
        let mut bytes = [0u8; 24];
        let mut state = 1u32;
        for round in 0..2_000 {
            for byte in &mut bytes {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                *byte = (state >> 24) as u8;
            }
            let before = compute(&bytes, 0);
            let old = u32::from_ne_bytes([bytes[8], bytes[9], bytes[10], bytes[11]]);
            let new = if round % 7 == 0 { 0 } else { state };
            bytes[8..12].copy_from_slice(&new.to_ne_bytes());
            let after = Update::of(before).replace(old, new).finish();
            // 0x0000 and 0xffff both say zero.
            let expected = compute(&bytes, 0);
            assert!(after == expected || (after, expected) == ([0; 2], [0xff; 2]), "{bytes:?}");
        }
    }
}
