//! Who is behind an address anywhere in the cluster: identity and tunnel endpoint.
//!
//! Host prefixes (/32, /128) are in the hash `cilium_hosts_v1` keyed by
//! [`crate::AddressKey`]; shorter prefixes in the trie `cilium_ipcache_v2` keyed by
//! [`IpcacheKey`]. Both have [`RemoteEndpointInfo`] as value.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Bits of [`IpcacheKey`] before the address; `prefix_len` counts them too.
pub const IPCACHE_STATIC_PREFIX_BITS: u32 = 32;

/// Key of `cilium_ipcache_v2`: 24 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct IpcacheKey {
    /// [`IPCACHE_STATIC_PREFIX_BITS`] plus the length of the prefix, in bits.
    pub prefix_len: u32,
    /// Cluster the address belongs to; 0 for the own cluster.
    pub cluster_id: u16,
    /// Unused, zero.
    pub pad: u8,
    /// [`crate::address::FAMILY_V4`] or [`crate::address::FAMILY_V6`].
    pub family: u8,
    /// Address, network byte order; IPv4 fills the first four bytes.
    pub addr: [u8; 16],
}

/// Flag of [`RemoteEndpointInfo`]: route natively even in tunnel mode.
pub const IPCACHE_F_SKIP_TUNNEL: u8 = 1;
/// Flag of [`RemoteEndpointInfo`]: `tunnel_endpoint` is set.
pub const IPCACHE_F_HAS_TUNNEL_ENDPOINT: u8 = 2;
/// Flag of [`RemoteEndpointInfo`]: `tunnel_endpoint` is an IPv6 address.
pub const IPCACHE_F_IPV6_TUNNEL_ENDPOINT: u8 = 4;
/// Flag of [`RemoteEndpointInfo`]: the address belongs to another cluster of the mesh.
pub const IPCACHE_F_REMOTE_CLUSTER: u8 = 8;

/// Value of both ipcache tables: 24 bytes, Cilium's `remote_endpoint_info`.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct RemoteEndpointInfo {
    /// Security identity of the address.
    pub sec_identity: u32,
    /// Node to encapsulate to, or in native routing the node as next hop, network byte order; IPv4 fills the first four bytes.
    pub tunnel_endpoint: [u8; 16],
    /// Unused, zero.
    pub pad: u16,
    /// Encryption key index; 0 is none.
    pub key: u8,
    /// `IPCACHE_F_*`.
    pub flags: u8,
}
