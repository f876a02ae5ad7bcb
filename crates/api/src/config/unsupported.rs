//! Cilium's options that we know and do not support.

/// A known option without effect.
#[derive(Clone, Copy, Debug)]
pub struct Unsupported {
    /// Its key.
    pub key: &'static str,
    /// What it belongs to, in words that fit "… is not supported yet".
    pub feature: &'static str,
    /// The values that ask for nothing that we lack; the first is the one to advise.
    harmless: Harmless,
}

#[derive(Clone, Copy, Debug)]
enum Harmless {
    /// These values: off, Cilium's default, Helm's default.
    Values(&'static [&'static str]),
    /// Every value: it only tunes a feature that is switched on elsewhere.
    All,
}

/// What a value of an unsupported option means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It asks for nothing that we lack.
    Harmless,
    /// It would turn on what we lack.
    Refused {
        /// A value that does not.
        off: &'static str,
    },
}

impl Unsupported {
    /// What `value` means.
    pub fn judge(&self, value: &str) -> Verdict {
        match self.harmless {
            Harmless::All => Verdict::Harmless,
            Harmless::Values(values) => {
                let same = |off: &&str| off.eq_ignore_ascii_case(value.trim());
                if value.trim().is_empty() || values.iter().any(|off| same(off)) {
                    Verdict::Harmless
                } else {
                    Verdict::Refused { off: values[0] }
                }
            }
        }
    }

    /// The values that are accepted, as one would write them; `None` when all are.
    pub fn accepted(&self) -> Option<&'static [&'static str]> {
        match self.harmless {
            Harmless::Values(values) => Some(values),
            Harmless::All => None,
        }
    }
}

/// The known option with this key.
pub fn find(key: &str) -> Option<&'static Unsupported> {
    ALL.iter().find(|option| option.key == key)
}

/// Every known option that we do not support.
pub const ALL: &[Unsupported] = &[];
