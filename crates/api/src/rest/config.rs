//! `/config`: what the CNI plugin must know, and the options in force.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::NodeAddressing;

/// Answer of `GET /config`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct DaemonConfiguration {
    /// What can be changed at run time.
    pub spec: DaemonConfigurationSpec,
    /// What is in force.
    pub status: DaemonConfigurationStatus,
}

/// Options that can be changed at run time.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct DaemonConfigurationSpec {
    /// Names and values.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub options: BTreeMap<String, String>,
    /// `default`, `always` or `never`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub policy_enforcement: String,
}

/// What is in force on the node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct DaemonConfigurationStatus {
    /// The node's addresses in the pods' network: `ip` is the pods' gateway.
    pub addressing: NodeAddressing,
    /// How pods are joined to the node: `veth`.
    #[serde(rename = "datapathMode", skip_serializing_if = "String::is_empty")]
    pub datapath_mode: String,
    /// MTU of the pods' devices.
    #[serde(rename = "deviceMTU")]
    pub device_mtu: u32,
    /// MTU of the pods' routes: the device's less what encapsulation costs.
    #[serde(rename = "routeMTU")]
    pub route_mtu: u32,
    /// Mode of address management, as in `cluster-pool`.
    #[serde(rename = "ipam-mode", skip_serializing_if = "String::is_empty")]
    pub ipam_mode: String,
    /// Every option by its key.
    #[serde(rename = "daemonConfigurationMap", skip_serializing_if = "BTreeMap::is_empty")]
    pub daemon_configuration_map: BTreeMap<String, String>,
    /// What the options that can be changed are set to.
    pub realized: DaemonConfigurationSpec,
}
