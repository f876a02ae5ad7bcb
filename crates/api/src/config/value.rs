//! What the text of an option may look like.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use model::LabelFilter;

/// A type that options can have.
pub trait OptionValue: Sized {
    /// What values look like, for the reference and for errors.
    const KIND: &'static str;
    /// Whether a flag without a value means `true`.
    const IS_SWITCH: bool = false;
    /// Whether a repeated flag adds to a list.
    const IS_LIST: bool = false;
    /// Whether the empty text is a value; otherwise it means the default.
    const EMPTY_IS_VALUE: bool = false;

    /// Reads the text; an error says what is wrong and what to write.
    fn parse(text: &str) -> Result<Self, String>;
}

impl OptionValue for bool {
    const KIND: &'static str = "`true` or `false`";
    const IS_SWITCH: Self = true;

    /// Reads what Go's `ParseBool` reads.
    fn parse(text: &str) -> Result<Self, String> {
        match text {
            "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
            "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
            _ => Err("write true or false".to_owned()),
        }
    }
}

/// Numbers: the range is the type's.
macro_rules! number {
    ($($type:ty)*) => {$(
        impl OptionValue for $type {
            const KIND: &'static str = "number";

            fn parse(text: &str) -> Result<Self, String> {
                text.parse().map_err(|_not_in_range| format!("write a number from 0 to {}", Self::MAX))
            }
        }
    )*};
}
number!(u8 u16 u32);

impl OptionValue for String {
    const KIND: &'static str = "text";
    const EMPTY_IS_VALUE: bool = true;

    fn parse(text: &str) -> Result<Self, String> {
        Ok(text.to_owned())
    }
}

impl OptionValue for PathBuf {
    const KIND: &'static str = "path";

    fn parse(text: &str) -> Result<Self, String> {
        let path = Self::from(text);
        if path.is_absolute() { Ok(path) } else { Err("write an absolute path".to_owned()) }
    }
}

impl OptionValue for Option<PathBuf> {
    const KIND: &'static str = "path";
    const EMPTY_IS_VALUE: bool = true;

    fn parse(text: &str) -> Result<Self, String> {
        if text.is_empty() { Ok(None) } else { Ok(Some(PathBuf::from(text))) }
    }
}

impl OptionValue for Duration {
    const KIND: &'static str = "time, as in 1m30s";

    /// Reads what Go's `ParseDuration` reads, but for signs: numbers with units, one after the other.
    fn parse(text: &str) -> Result<Self, String> {
        let wrong = || "write a time, as in 15s, 1m30s or 100ms".to_owned();
        let mut total = Self::ZERO;
        let mut rest = text;
        while !rest.is_empty() && rest != "0" {
            let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(wrong)?;
            let (number, after) = rest.split_at(digits);
            let unit = after.find(|c: char| c.is_ascii_digit()).unwrap_or(after.len());
            let (unit, after) = after.split_at(unit);
            let seconds = match unit {
                "h" => 3600.0,
                "m" => 60.0,
                "s" => 1.0,
                "ms" => 1e-3,
                "us" | "µs" => 1e-6,
                "ns" => 1e-9,
                _ => return Err(wrong()),
            };
            let number: f64 = number.parse().map_err(|_not_a_number| wrong())?;
            let part = Self::try_from_secs_f64(number * seconds).map_err(|_other| wrong())?;
            total = total.checked_add(part).ok_or_else(wrong)?;
            rest = after;
        }
        Ok(total)
    }
}

/// Prefixes of one family.
macro_rules! prefix {
    ($($type:ty, $kind:literal;)*) => {$(
        impl OptionValue for Option<$type> {
            const KIND: &'static str = $kind;
            const EMPTY_IS_VALUE: bool = true;

            fn parse(text: &str) -> Result<Self, String> {
                if text.is_empty() {
                    return Ok(None);
                }
                let net: $type = text.parse().map_err(|_not_a_prefix| concat!("write an ", $kind))?;
                Ok(Some(net.trunc()))
            }
        }
    )*};
}
prefix! {
    Ipv4Net, "IPv4 prefix, as in 10.0.0.0/8";
    Ipv6Net, "IPv6 prefix, as in fd00::/48";
}

/// The parts of a list: separated by blanks or commas.
fn list(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| c == ',' || c.is_whitespace()).filter(|part| !part.is_empty())
}

impl OptionValue for Vec<String> {
    const KIND: &'static str = "list";
    const IS_LIST: bool = true;
    const EMPTY_IS_VALUE: bool = true;

    fn parse(text: &str) -> Result<Self, String> {
        Ok(list(text).map(str::to_owned).collect())
    }
}

impl OptionValue for Vec<IpNet> {
    const KIND: &'static str = "list of prefixes";
    const IS_LIST: bool = true;
    const EMPTY_IS_VALUE: bool = true;

    fn parse(text: &str) -> Result<Self, String> {
        let nets = list(text).map(|part| {
            let net: IpNet = part.parse().map_err(|_not_a_prefix| {
                format!("{part:?} is not a prefix; write prefixes as in 10.0.0.0/8")
            })?;
            Ok(net.trunc())
        });
        nets.collect()
    }
}

impl OptionValue for LabelFilter {
    const KIND: &'static str = "list of prefixes of labels";
    const IS_LIST: bool = true;
    const EMPTY_IS_VALUE: bool = true;

    fn parse(text: &str) -> Result<Self, String> {
        Self::parse(text).map_err(|error| error.to_string())
    }
}

/// Where to listen, if at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListenAddress(pub Option<SocketAddr>);

impl OptionValue for ListenAddress {
    const KIND: &'static str = "address and port";
    const EMPTY_IS_VALUE: bool = true;

    fn parse(text: &str) -> Result<Self, String> {
        if text.is_empty() {
            return Ok(Self(None));
        }
        let wrong = || "write an address and a port, as in localhost:9234, or nothing".to_owned();
        let (host, port) = text.rsplit_once(':').ok_or_else(wrong)?;
        let host = match host {
            "" => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
            "localhost" => IpAddr::V4(Ipv4Addr::LOCALHOST),
            _ => host.trim_matches(['[', ']']).parse().map_err(|_not_an_address| wrong())?,
        };
        let port = port.parse().map_err(|_other| wrong())?;
        Ok(Self(Some(SocketAddr::new(host, port))))
    }
}

/// A number from 0 to 1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ratio(pub f64);

impl OptionValue for Ratio {
    const KIND: &'static str = "number from 0 to 1";

    fn parse(text: &str) -> Result<Self, String> {
        match text.parse() {
            Ok(ratio) if (0.0..=1.0).contains(&ratio) => Ok(Self(ratio)),
            _ => Err("write a number from 0 to 1, as in 0.5".to_owned()),
        }
    }
}

/// Enumerations: the words that are understood, and Cilium's words that are not yet.
macro_rules! words {
    ($(#[$doc:meta])* $type:ident $kind:literal {
        $($(#[$variant_doc:meta])* $variant:ident = $word:literal $(| $alias:literal)*,)*
    } else [$($missing:literal),*]) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $type {
            $($(#[$variant_doc])* $variant,)*
        }

        impl $type {
            /// The word that stands for it in options.
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $word,)*
                }
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl OptionValue for $type {
            const KIND: &'static str = $kind;

            fn parse(text: &str) -> Result<Self, String> {
                let missing: &[&str] = &[$($missing),*];
                match text.to_ascii_lowercase().as_str() {
                    $($word $(| $alias)* => Ok(Self::$variant),)*
                    text if missing.contains(&text) => {
                        Err(format!("this mode is not supported yet; write {}", $kind))
                    }
                    _ => Err(format!("write {}", $kind)),
                }
            }
        }
    };
}

words! {
    /// Whence the prefixes of a node's pods come.
    IpamMode "`cluster-pool` or `kubernetes`" {
        /// The operator cuts them from its pool.
        ClusterPool = "cluster-pool",
        /// They stand in the Kubernetes Node.
        Kubernetes = "kubernetes",
    } else ["multi-pool", "crd", "eni", "azure", "alibabacloud", "delegated-plugin"]
}

words! {
    /// How packets travel between nodes.
    RoutingMode "`tunnel` or `native`" {
        /// Encapsulated.
        Tunnel = "tunnel",
        /// Routed.
        Native = "native",
    } else []
}

words! {
    /// Encapsulation between nodes.
    TunnelProtocol "`vxlan`" {
        /// VXLAN (RFC 7348) with the source identity as VNI.
        Vxlan = "vxlan",
    } else ["geneve"]
}

words! {
    /// How pods are joined to the node.
    DatapathMode "`veth`" {
        /// By a veth pair.
        Veth = "veth" | "auto",
    } else ["netkit", "netkit-l2"]
}

words! {
    /// Where identities are kept.
    IdentityAllocationMode "`crd`" {
        /// In CiliumIdentity objects.
        Crd = "crd",
    } else ["kvstore", "doublewrite-readkvstore", "doublewrite-readcrd"]
}

words! {
    /// Which trace events are left out.
    MonitorAggregation "`none`, `low`, `medium` or `maximum`" {
        /// None.
        None = "none" | "disabled" | "0",
        /// Those of received packets.
        Low = "low" | "lowest" | "1" | "2",
        /// All but what connection tracking reports.
        Medium = "medium" | "3",
        /// As medium.
        Maximum = "maximum" | "max" | "4",
    } else []
}

words! {
    /// Where policy is enforced.
    PolicyEnforcement "`default`, `always` or `never`" {
        /// In each direction in which a policy selects the endpoint.
        Default = "default",
        /// Everywhere: what no policy allows is denied.
        Always = "always",
        /// Nowhere.
        Never = "never",
    } else []
}

words! {
    /// Whether a node may always reach its pods.
    AllowLocalhost "`auto`, `always` or `policy`" {
        /// As always: the kubelet's probes must pass.
        Auto = "auto",
        /// It may.
        Always = "always",
        /// Policies decide.
        Policy = "policy",
    } else []
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_as_go_writes_them() {
        let parse = <Duration as OptionValue>::parse;
        assert_eq!(parse("15s"), Ok(Duration::from_secs(15)));
        assert_eq!(parse("2h13m20s"), Ok(Duration::from_secs(8000)));
        assert_eq!(parse("1.5s"), Ok(Duration::from_millis(1500)));
        assert_eq!(parse("100ms"), Ok(Duration::from_millis(100)));
        assert_eq!(parse("0"), Ok(Duration::ZERO));
        for bad in ["15", "s", "-1s", "1x", "1..5s", "99999999999999999999999h"] {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
    }
}
