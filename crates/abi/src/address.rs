//! An IP address of either family as a map key.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Value of a `family` field for IPv4.
pub const FAMILY_V4: u8 = 1;
/// Value of a `family` field for IPv6.
pub const FAMILY_V6: u8 = 2;

/// Key of every table of single addresses (`cilium_lxc`, host prefixes of the ipcache): 20 bytes,
/// the layout of Cilium's `struct endpoint_key`.
///
/// The cluster id is the zone of the address: clusters of a mesh may use the same CIDRs.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    Hash,
    PartialOrd,
    Ord,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
)]
#[repr(C)]
pub struct AddressKey {
    /// The address in network byte order; IPv4 fills the first four bytes, the rest is zero.
    pub addr: [u8; 16],
    /// [`FAMILY_V4`] or [`FAMILY_V6`].
    pub family: u8,
    /// Unused, zero.
    pub key: u8,
    /// Cluster the address belongs to, host byte order; 0 for the own cluster.
    pub cluster_id: u16,
}

impl AddressKey {
    /// The key of an IPv4 address of the own cluster.
    pub const fn v4(addr: [u8; 4]) -> Self {
        let [a, b, c, d] = addr;
        let addr = [a, b, c, d, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        Self { addr, family: FAMILY_V4, key: 0, cluster_id: 0 }
    }

    /// The key of an IPv6 address of the own cluster.
    pub const fn v6(addr: [u8; 16]) -> Self {
        Self { addr, family: FAMILY_V6, key: 0, cluster_id: 0 }
    }
}

impl From<core::net::IpAddr> for AddressKey {
    fn from(addr: core::net::IpAddr) -> Self {
        match addr {
            core::net::IpAddr::V4(v4) => Self::v4(v4.octets()),
            core::net::IpAddr::V6(v6) => Self::v6(v6.octets()),
        }
    }
}
