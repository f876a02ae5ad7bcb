//! `/ipam`: addresses for pods.

use serde::{Deserialize, Serialize};

use super::{AddressPair, NodeAddressing};

/// Answer of `POST /ipam?family=&owner=`: addresses that are now the owner's.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct IpamResponse {
    /// The addresses.
    pub address: AddressPair,
    /// The node's addresses in the pods' network: `ip` is the gateway.
    pub host_addressing: NodeAddressing,
    /// More about the IPv4 address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ipv4: Option<IpamAddressResponse>,
    /// More about the IPv6 address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ipv6: Option<IpamAddressResponse>,
}

/// One address of an [`IpamResponse`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct IpamAddressResponse {
    /// The address.
    pub ip: String,
    /// Its gateway.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub gateway: String,
    /// Prefixes that are reached without translation.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub cidrs: Vec<String>,
    /// Proof of the reservation, to be given back before it expires.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub expiration_uuid: String,
}
