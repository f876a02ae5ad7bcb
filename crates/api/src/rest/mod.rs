//! The agent's REST API, `/v1` over HTTP on a unix socket.
//!
//! The shapes are those of Cilium's OpenAPI document, so that its `cilium-dbg` and scripts around
//! `-o json` find what they look for. Fields that we have nothing to say in are left out, and
//! unknown ones are ignored when reading.

pub mod client;
mod config;
mod endpoint;
mod health;
mod ipam;
mod listing;
pub mod monitor;
mod policy;
mod status;

pub use client::{Client, ClientError};
pub use config::*;
pub use endpoint::*;
pub use health::*;
pub use ipam::*;
pub use listing::*;
pub use policy::*;
pub use status::*;

use serde::{Deserialize, Serialize};

/// Where the agent listens unless told otherwise.
pub const DEFAULT_SOCKET: &str = "/var/run/cilium/cilium.sock";
/// Environment variable that names the agent's socket to clients.
pub const SOCKET_ENV: &str = "CILIUM_SOCK";

/// Paths of the API.
pub mod path {
    /// `GET`: [`super::StatusResponse`].
    pub const HEALTHZ: &str = "/v1/healthz";
    /// `GET`, `PATCH`: [`super::DaemonConfiguration`].
    pub const CONFIG: &str = "/v1/config";
    /// `GET`: list of [`super::Endpoint`]. `DELETE` with [`super::EndpointBatchDeleteRequest`].
    pub const ENDPOINT: &str = "/v1/endpoint";
    /// `GET`: list of [`super::Identity`].
    pub const IDENTITY: &str = "/v1/identity";
    /// `GET`: list of [`super::IdentityEndpoints`].
    pub const IDENTITY_ENDPOINTS: &str = "/v1/identity/endpoints";
    /// `POST`: [`super::IpamResponse`].
    pub const IPAM: &str = "/v1/ipam";
    /// `GET`: list of [`super::IpListEntry`].
    pub const IP: &str = "/v1/ip";
    /// `GET`: [`super::BpfMapList`].
    pub const MAP: &str = "/v1/map";
    /// `GET`: [`super::ClusterNodeStatus`].
    pub const CLUSTER_NODES: &str = "/v1/cluster/nodes";
    /// `GET`: [`super::Policy`].
    pub const POLICY: &str = "/v1/policy";
    /// `GET`: list of [`super::SelectorIdentities`].
    pub const POLICY_SELECTORS: &str = "/v1/policy/selectors";
    /// `POST` with [`super::TraceRequest`]: [`super::TraceResponse`].
    pub const POLICY_TRACE: &str = "/v1/policy/trace";
    /// `GET` with [`super::ExplainQuery`]: [`super::ExplainResponse`].
    pub const POLICY_EXPLAIN: &str = "/v1/policy/explain";
    /// `GET`: a stream of [`super::monitor::Frame`].
    pub const MONITOR: &str = "/v1/monitor";

    /// `GET`, `PUT`, `PATCH`, `DELETE` of one endpoint.
    pub fn endpoint(id: &super::EndpointRef) -> String {
        format!("{ENDPOINT}/{}", super::client::encode(&id.to_string()))
    }

    /// `GET`: [`super::EndpointConfigurationStatus`]. `PATCH` with
    /// [`super::EndpointConfigurationSpec`].
    pub fn endpoint_config(id: &super::EndpointRef) -> String {
        format!("{}/config", endpoint(id))
    }

    /// `GET`: [`super::CookieRules`].
    pub fn policy_cookie(cookie: u32) -> String {
        format!("{POLICY}/cookie/{cookie}")
    }

    /// `POST`, `DELETE` of one address.
    pub fn ipam_address(address: std::net::IpAddr) -> String {
        format!("{IPAM}/{}", super::client::encode(&address.to_string()))
    }
}

/// The body of an answer that is not a success: a JSON string.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Error {
    /// What went wrong, for people.
    pub message: String,
}

/// An IPv4 and an IPv6 address that belong together; an absent one is the empty text.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct AddressPair {
    /// IPv4 address.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub ipv4: String,
    /// Proof that the IPv4 address was reserved, to be given back before it expires.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub ipv4_expiration_uuid: String,
    /// Pool of the IPv4 address.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub ipv4_pool_name: String,
    /// IPv6 address.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub ipv6: String,
    /// Proof that the IPv6 address was reserved, to be given back before it expires.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub ipv6_expiration_uuid: String,
    /// Pool of the IPv6 address.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub ipv6_pool_name: String,
}

impl AddressPair {
    /// The pair of these addresses.
    pub fn new(ipv4: Option<std::net::Ipv4Addr>, ipv6: Option<std::net::Ipv6Addr>) -> Self {
        Self {
            ipv4: ipv4.map(|addr| addr.to_string()).unwrap_or_default(),
            ipv6: ipv6.map(|addr| addr.to_string()).unwrap_or_default(),
            ..Self::default()
        }
    }

    /// The addresses that are present, IPv4 first; an error names the one that is malformed.
    pub fn addresses(&self) -> Result<Vec<std::net::IpAddr>, std::net::AddrParseError> {
        let present = [&self.ipv4, &self.ipv6].into_iter().filter(|text| !text.is_empty());
        present.map(|text| text.parse()).collect()
    }
}

/// The node's own addresses in the pods' network, per family.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct NodeAddressing {
    /// IPv4.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ipv4: Option<NodeAddressingElement>,
    /// IPv6.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ipv6: Option<NodeAddressingElement>,
}

/// One family of [`NodeAddressing`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct NodeAddressingElement {
    /// Whether the family is on.
    pub enabled: bool,
    /// The node's address; for `host-addressing` the router address, the pods' gateway.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub ip: String,
    /// Prefix that pods of the node get their addresses from.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub alloc_range: String,
    /// Kind of address, as in `InternalIP`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub address_type: String,
}
