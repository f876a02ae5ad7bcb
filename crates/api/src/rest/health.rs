//! Whether nodes reach each other: the API of `cilium-health`, `/v1beta` on `health.sock`.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::Status;

/// Where the health API listens unless told otherwise.
pub const DEFAULT_HEALTH_SOCKET: &str = "/var/run/cilium/health.sock";
/// Name of that socket, beside the agent's.
pub const HEALTH_SOCKET_NAME: &str = "health.sock";

/// Paths of the health API.
pub mod health_path {
    /// `GET`: [`super::HealthResponse`].
    pub const HEALTHZ: &str = "/v1beta/healthz";
    /// `GET`: [`super::HealthStatusResponse`] of the last round.
    pub const STATUS: &str = "/v1beta/status";
    /// `PUT`: a round now, and its [`super::HealthStatusResponse`].
    pub const PROBE: &str = "/v1beta/status/probe";
}

/// How the node itself is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct HealthResponse {
    /// The agent.
    pub cilium: super::StatusResponse,
    /// How much the machine has to do.
    pub system_load: LoadResponse,
    /// How long the machine has run.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub uptime: String,
}

/// Load of the machine, as texts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct LoadResponse {
    /// Over the last minute.
    #[serde(rename = "last1min")]
    pub last_1_min: String,
    /// Over the last five minutes.
    #[serde(rename = "last5min")]
    pub last_5_min: String,
    /// Over the last fifteen minutes.
    #[serde(rename = "last15min")]
    pub last_15_min: String,
}

/// What a round of probes found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct HealthStatusResponse {
    /// The node that probed.
    pub local: SelfStatus,
    /// All nodes, the own one among them.
    pub nodes: Vec<NodeHealth>,
    /// When the round ended, RFC 3339; empty before the first.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub timestamp: String,
    /// Time between rounds, as Go writes it.
    #[serde(rename = "probeInterval", skip_serializing_if = "String::is_empty")]
    pub probe_interval: String,
}

/// The node that probed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SelfStatus {
    /// `<cluster>/<node>`.
    pub name: String,
}

/// How a node can be reached.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct NodeHealth {
    /// `<cluster>/<node>`.
    pub name: String,
    /// The node itself.
    pub host: TargetHealth,
    /// Its health endpoint; none where it has announced none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub health_endpoint: Option<TargetHealth>,
}

/// How a node, or a health endpoint, can be reached.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct TargetHealth {
    /// By its first address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub primary_address: Option<PathHealth>,
    /// By the others.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub secondary_addresses: Vec<PathHealth>,
}

impl TargetHealth {
    /// All paths, the first address before the others.
    pub fn paths(&self) -> impl Iterator<Item = &PathHealth> {
        self.primary_address.iter().chain(&self.secondary_addresses)
    }

    /// Whether every path works.
    pub fn is_reachable(&self) -> bool {
        self.paths().all(PathHealth::is_reachable)
    }
}

impl NodeHealth {
    /// Whether everything of the node can be reached.
    pub fn is_reachable(&self) -> bool {
        self.host.is_reachable()
            && self.health_endpoint.as_ref().is_none_or(TargetHealth::is_reachable)
    }
}

/// How an address can be reached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PathHealth {
    /// The address.
    pub ip: IpAddr,
    /// By ICMP echo.
    pub icmp: ProbeHealth,
    /// By HTTP.
    pub http: ProbeHealth,
}

impl PathHealth {
    /// Whether both protocols work.
    pub fn is_reachable(&self) -> bool {
        self.icmp.status.is_empty() && self.http.status.is_empty()
    }
}

/// What a probe found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ProbeHealth {
    /// Nanoseconds until the answer; of the last answer, while there is none.
    pub latency: u64,
    /// Empty when it works, else why it does not.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub status: String,
    /// When it was probed, RFC 3339.
    #[serde(rename = "lastProbed", skip_serializing_if = "String::is_empty")]
    pub last_probed: String,
}

impl HealthStatusResponse {
    /// The sum, as `cilium status` shows it.
    pub fn sum(&self) -> Status {
        use super::StatusState;
        if self.timestamp.is_empty() {
            return Status::new(StatusState::Ok, "Probing");
        }
        let reachable = self.nodes.iter().filter(|node| node.is_reachable()).count();
        let message = format!("{reachable}/{} reachable", self.nodes.len());
        let is_all = reachable == self.nodes.len();
        Status::new(if is_all { StatusState::Ok } else { StatusState::Warning }, message)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_round_has_the_names_of_cilium() {
        let probe = |status: &str| ProbeHealth {
            latency: 223_100,
            status: status.to_owned(),
            last_probed: "2026-01-01T00:00:00Z".to_owned(),
        };
        let path = |ip: &str, status: &str| PathHealth {
            ip: ip.parse().unwrap(),
            icmp: probe(""),
            http: probe(status),
        };
        let mut round = HealthStatusResponse {
            local: SelfStatus { name: "default/node-1".to_owned() },
            nodes: vec![NodeHealth {
                name: "default/node-1".to_owned(),
                host: TargetHealth {
                    primary_address: Some(path("172.18.1.1", "")),
                    secondary_addresses: vec![path("fd00:18::1", "timed out")],
                },
                health_endpoint: None,
            }],
            timestamp: "2026-01-01T00:00:00Z".to_owned(),
            probe_interval: "1m0s".to_owned(),
        };
        let json = serde_json::to_value(&round).unwrap();
        let host = &json["nodes"][0]["host"];
        assert_eq!(
            host["primary-address"]["icmp"],
            json!({"latency": 223_100, "lastProbed": "2026-01-01T00:00:00Z"})
        );
        assert_eq!(host["secondary-addresses"][0]["http"]["status"], "timed out");
        assert_eq!(json["probeInterval"], "1m0s");
        assert_eq!(serde_json::from_value::<HealthStatusResponse>(json).unwrap(), round);
        assert_eq!(round.sum().msg, "0/1 reachable");
        round.nodes[0].host.secondary_addresses.clear();
        assert_eq!(round.sum(), Status::new(super::super::StatusState::Ok, "1/1 reachable"));
    }
}
