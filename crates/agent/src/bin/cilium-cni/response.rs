//! What the runtime reads on stdout when ADD succeeds, in the shape of the version it speaks.

use std::net::IpAddr;
use std::path::PathBuf;

use ipnet::IpNet;
use serde_json::{Value, json};

use crate::request::{VERSIONS, Version};

/// One address of the pod and the gateway it is reached by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PodAddress {
    pub(crate) address: IpAddr,
    pub(crate) gateway: IpAddr,
}

impl PodAddress {
    /// The address as the interface has it: nobody else is on the link.
    pub(crate) fn on_link(&self) -> IpNet {
        IpNet::from(self.address)
    }

    /// The route to the gateway alone.
    pub(crate) fn gateway_route(&self) -> IpNet {
        IpNet::from(self.gateway)
    }

    /// The route to everybody.
    pub(crate) fn default_route(&self) -> IpNet {
        let text = if self.address.is_ipv4() { "0.0.0.0/0" } else { "::/0" };
        #[expect(clippy::expect_used, reason = "both literals are prefixes")]
        text.parse().expect("a literal prefix")
    }
}

/// How ADD has wired a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Wiring {
    pub(crate) host_ifname: String,
    pub(crate) host_mac: String,
    pub(crate) ifname: String,
    pub(crate) mac: String,
    pub(crate) netns: PathBuf,
    pub(crate) mtu: u32,
    pub(crate) route_mtu: u32,
    /// IPv4 first.
    pub(crate) addresses: Vec<PodAddress>,
}

/// The place of the pod's interface in the list of interfaces.
const POD_INTERFACE: u32 = 1;

impl Wiring {
    pub(crate) fn to_result(&self, version: Version) -> Value {
        if version < Version::V0_3_0 {
            return self.to_result_by_family(version);
        }
        let mut host = json!({ "name": self.host_ifname, "mac": self.host_mac });
        let mut pod = json!({ "name": self.ifname, "mac": self.mac, "sandbox": self.netns });
        if version >= Version::V1_1_0 {
            host["mtu"] = self.mtu.into();
            pod["mtu"] = self.mtu.into();
        }
        json!({
            "cniVersion": version.as_str(),
            "interfaces": [host, pod],
            "ips": self.addresses.iter().map(|a| ip(a, version)).collect::<Vec<_>>(),
            "routes": self.addresses.iter().flat_map(|a| self.routes(a, version)).collect::<Vec<_>>(),
            "dns": {},
        })
    }

    fn routes(&self, address: &PodAddress, version: Version) -> [Value; 2] {
        let mut gateway = json!({ "dst": address.gateway_route().to_string() });
        let mut default = json!({
            "dst": address.default_route().to_string(),
            "gw": address.gateway.to_string(),
        });
        if version >= Version::V1_1_0 {
            // RT_SCOPE_LINK: the gateway is on the link, whatever its prefix says.
            gateway["scope"] = 253.into();
            default["mtu"] = self.route_mtu.into();
        }
        [gateway, default]
    }

    /// The shape before 0.3.0: at most one address of each family, and no interfaces.
    fn to_result_by_family(&self, version: Version) -> Value {
        let mut result = json!({ "cniVersion": version.as_str(), "dns": {} });
        for address in &self.addresses {
            let key = if address.address.is_ipv4() { "ip4" } else { "ip6" };
            result[key] = json!({
                "ip": address.on_link().to_string(),
                "gateway": address.gateway.to_string(),
                "routes": self.routes(address, version),
            });
        }
        result
    }
}

fn ip(address: &PodAddress, version: Version) -> Value {
    let mut ip = json!({
        "address": address.on_link().to_string(),
        "gateway": address.gateway.to_string(),
        "interface": POD_INTERFACE,
    });
    if version < Version::V1_0_0 {
        ip["version"] = if address.address.is_ipv4() { "4" } else { "6" }.into();
    }
    ip
}

/// The answer to VERSION.
pub(crate) fn version(version: Version) -> Value {
    json!({ "cniVersion": version.as_str(), "supportedVersions": VERSIONS })
}
