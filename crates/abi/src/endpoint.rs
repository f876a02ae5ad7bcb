//! Local endpoints, found by address (`cilium_lxc`) and by device (`cilium_lxc_devices`).

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Flag of [`EndpointInfo`]: the address is one of the node's own.
pub const ENDPOINT_F_HOST: u32 = 1;
/// Flag of [`EndpointInfo`]: the endpoint lives in the host's network namespace.
pub const ENDPOINT_F_ATHOSTNS: u32 = 2;

/// Flag of both rows, ours: the endpoint's policy says what it may receive. Without the flag it may
/// receive everything.
pub const ENDPOINT_F_ENFORCE_INGRESS: u32 = 1 << 16;
/// Flag of both rows, ours: the endpoint's policy says what it may send.
pub const ENDPOINT_F_ENFORCE_EGRESS: u32 = 1 << 17;
/// Flag of both rows, ours: what the policy denies passes and is told.
pub const ENDPOINT_F_AUDIT: u32 = 1 << 18;
/// Flag of both rows, ours: its policy does not fit into the map, so nothing passes.
pub const ENDPOINT_F_LOCKDOWN: u32 = 1 << 19;

/// Value of `cilium_lxc`, keyed by [`crate::AddressKey`]: 48 bytes, Cilium's `endpoint_info`.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct EndpointInfo {
    /// Host-side device of the endpoint.
    pub ifindex: u32,
    /// Unused, zero.
    pub unused: u16,
    /// Endpoint id, 1–4095; the host endpoint for addresses of the node.
    pub lxc_id: u16,
    /// `ENDPOINT_F_*`.
    pub flags: u32,
    /// Unused, zero.
    pub rt_info: u32,
    /// MAC address inside the pod, first six bytes.
    pub mac: [u8; 8],
    /// MAC address of the host-side device, first six bytes.
    pub node_mac: [u8; 8],
    /// Security identity.
    pub sec_id: u32,
    /// Unused, zero.
    pub parent_ifindex: u32,
    /// Slot of its policy, see [`crate::policy`]. Unused by Cilium.
    pub policy_slot: u32,
    /// Unused, zero.
    pub pad: u32,
}

/// Value of `cilium_lxc_devices_v2`, keyed by the ifindex (`u32`) of the host-side device: 56 bytes.
///
/// It is what the program at a pod's device must know of the pod: one lookup answers who sends,
/// and whether the source address is the pod's own. The row of `cilium_host` is the host endpoint's:
/// with the host firewall on, it has the node's own policy.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct DeviceEndpoint {
    /// Security identity.
    pub sec_id: u32,
    /// Endpoint id.
    pub lxc_id: u16,
    /// Unused, zero.
    pub pad: u16,
    /// IPv6 address, network byte order; all zero where the pod has none.
    pub ipv6: [u8; 16],
    /// IPv4 address, network byte order; all zero where the pod has none.
    pub ipv4: [u8; 4],
    /// `ENDPOINT_F_*`.
    pub flags: u32,
    /// MAC address inside the pod, first six bytes.
    pub mac: [u8; 8],
    /// MAC address of the host-side device, first six bytes: the pod's gateway.
    pub node_mac: [u8; 8],
    /// Slot of its policy, see [`crate::policy`].
    pub policy_slot: u32,
    /// Unused, zero.
    pub pad_end: u32,
}
