//! What a lab is made of: its name, its paths, its addresses. Pure values; nothing is touched.
//!
//! ```text
//!   /run/cilium-lab/<name>/            private mount, gone after `down`
//!     lock                             held by the guardian as long as it lives
//!     spec.json                        what was asked for
//!     up  api-port  api-server/        what a supervisor needs that takes over: the cluster's objects and the like
//!     claims/<uid>                     persistent volumes
//!     exits/                           how processes have ended that nobody was the parent of
//!     kubeconfig                       for users: the API server, with an administrator's rights
//!     kubeconfig-agent, -operator      for the programs: seen from the nodes, with their rights
//!     control.sock                     status, exec
//!     cilium-config/                   the ConfigMap as files
//!     logs/
//!     pods/<uid>/                      files, volumes and the like that a node keeps for a pod
//!     nodes/<node>/run                 the node's /run (tmpfs)
//!     nodes/<node>/bpf                 the node's /sys/fs/bpf (bpffs)
//!     nodes/<node>/mnt, uts            the node's mounts and host name, held open
//!   /run/netns/cilium-lab-<name>-<x>   network namespaces of nodes, `hub` and `external`
//!   <cgroup2>/cilium-lab/<name>/…      all processes of the lab
//! ```

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// Below this directory each lab has its own.
pub const LABS_DIR: &str = "/run/cilium-lab";
/// Where network namespaces are bound, so that `ip netns` sees them.
pub const NETNS_DIR: &str = "/run/netns";
/// Name of the cgroup that holds the cgroups of all labs.
pub const CGROUP: &str = "cilium-lab";
/// The lab that is meant when none is named.
pub const DEFAULT_NAME: &str = "default";

/// Prefix length of the underlay, IPv4 and IPv6.
pub const UNDERLAY_PREFIX: (u8, u8) = (16, 64);
/// MTU of the underlay.
pub const UNDERLAY_MTU: u32 = 1500;
/// The hub's addresses: here the nodes find the API server.
pub const HUB: (Ipv4Addr, Ipv6Addr) =
    (Ipv4Addr::new(172, 18, 0, 1), Ipv6Addr::new(0xfd00, 0x18, 0, 0, 0, 0, 0, 1));
/// The router out of the cluster.
pub const EXTERNAL: (Ipv4Addr, Ipv6Addr) =
    (Ipv4Addr::new(172, 18, 0, 254), Ipv6Addr::new(0xfd00, 0x18, 0, 0, 0, 0, 0, 0xfe));
/// A host behind the router: "the Internet".
pub const INTERNET: (Ipv4Addr, Ipv6Addr) =
    (Ipv4Addr::new(203, 0, 113, 10), Ipv6Addr::new(0x2001, 0xdb8, 0xff, 0, 0, 0, 0, 0x10));
/// Further addresses of that host, for policies that tell them from the first.
pub const INTERNET_OTHER: (Ipv4Addr, Ipv6Addr) =
    (Ipv4Addr::new(203, 0, 113, 11), Ipv6Addr::new(0x2001, 0xdb8, 0xff, 0, 0, 0, 0, 0x11));
/// Where the Internet host serves HTTP and UDP.
pub const INTERNET_PORTS: (u16, u16) = (80, 81);

/// The domain of the cluster's names.
pub const CLUSTER_DOMAIN: &str = "cluster.local";
/// The zone that the Internet host answers for.
pub const INTERNET_ZONE: &str = "external.test";

/// Most nodes of a lab: what the addresses allow.
pub const NODES_MAX: u8 = 254;
/// Longest lab name: names of namespaces and cgroups are made of it.
pub const NAME_LEN_MAX: usize = 32;

/// What the user asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spec {
    /// The lab's name.
    pub name: String,
    /// Number of nodes.
    pub nodes: u8,
    /// Keys of `cilium-config` that differ from the lab's defaults.
    pub settings: BTreeMap<String, String>,
    /// Whether cluster DNS runs.
    #[serde(default)]
    pub dns: bool,
}

/// Why a name or setting cannot be used.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    /// The name would not do as a part of paths.
    #[error(
        "--name {0:?}: use 1 to {NAME_LEN_MAX} lower-case letters, digits and dashes, beginning and ending with a letter or digit"
    )]
    Name(String),
    /// Not KEY=VALUE.
    #[error("--set {0:?}: expected KEY=VALUE, such as routing-mode=native")]
    Setting(String),
    /// Out of range.
    #[error("--nodes {0}: expected 1 to {NODES_MAX}")]
    Nodes(u32),
}

impl Spec {
    /// Checks what the command line gave.
    pub fn new(name: &str, nodes: u32, settings: &[String]) -> Result<Self, SpecError> {
        let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        let dash = |c: char| c == '-';
        let good = (1..=NAME_LEN_MAX).contains(&name.len())
            && name.chars().all(allowed)
            && !name.starts_with(dash)
            && !name.ends_with(dash);
        if !good {
            return Err(SpecError::Name(name.to_owned()));
        }
        let nodes = u8::try_from(nodes)
            .ok()
            .filter(|n| (1..=NODES_MAX).contains(n))
            .ok_or(SpecError::Nodes(nodes))?;
        let settings = settings.iter().map(|setting| match setting.split_once('=') {
            Some((key, value)) if !key.trim().is_empty() => {
                Ok((key.trim().to_owned(), value.trim().to_owned()))
            }
            _ => Err(SpecError::Setting(setting.clone())),
        });
        Ok(Self {
            name: name.to_owned(),
            nodes,
            settings: settings.collect::<Result<_, _>>()?,
            dns: true,
        })
    }

    /// The nodes of the lab, in order.
    pub fn node_specs(&self) -> impl Iterator<Item = NodeSpec> + '_ {
        (1..=self.nodes).map(NodeSpec::new)
    }

    /// The content of the ConfigMap `kube-system/cilium-config`.
    pub fn cilium_config(&self) -> BTreeMap<String, String> {
        let mut config: BTreeMap<String, String> =
            DEFAULT_CONFIG.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        config.extend(self.settings.clone());
        config
    }
}

/// Keys the lab sets: dual stack, VXLAN, and pools that leave room for many nodes.
const DEFAULT_CONFIG: [(&str, &str); 14] = [
    ("cluster-name", "default"),
    ("cluster-id", "0"),
    ("enable-ipv4", "true"),
    ("enable-ipv6", "true"),
    ("routing-mode", "tunnel"),
    ("tunnel-protocol", "vxlan"),
    ("ipam", "cluster-pool"),
    ("cluster-pool-ipv4-cidr", "10.244.0.0/16"),
    ("cluster-pool-ipv4-mask-size", "24"),
    ("cluster-pool-ipv6-cidr", "fd00:10::/104"),
    ("cluster-pool-ipv6-mask-size", "120"),
    ("identity-allocation-mode", "crd"),
    ("write-cni-conf-when-ready", CNI_CONFLIST),
    ("cni-exclusive", "true"),
];

/// Where agents put the CNI configuration, inside a node.
pub const CNI_CONFLIST: &str = "/run/cni/net.d/05-cilium.conflist";

/// One node: its name and addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeSpec {
    /// Counted from 1.
    pub number: u8,
}

impl NodeSpec {
    /// The node of this number.
    pub const fn new(number: u8) -> Self {
        Self { number }
    }

    /// `node-<n>`.
    pub fn name(self) -> String {
        format!("node-{}", self.number)
    }

    /// Address on the underlay.
    pub const fn ipv4(self) -> Ipv4Addr {
        Ipv4Addr::new(172, 18, 1, self.number)
    }

    /// Address on the underlay.
    pub const fn ipv6(self) -> Ipv6Addr {
        Ipv6Addr::new(0xfd00, 0x18, 0, 0, 0, 0, 1, self.number as u16)
    }

    /// Both addresses, IPv4 first.
    pub const fn addresses(self) -> [IpAddr; 2] {
        [IpAddr::V4(self.ipv4()), IpAddr::V6(self.ipv6())]
    }
}

/// Where a lab keeps its things.
#[derive(Clone, Debug)]
pub struct Paths {
    name: String,
    dir: PathBuf,
}

impl Paths {
    /// The paths of the lab of this name.
    pub fn new(name: &str) -> Self {
        Self { name: name.to_owned(), dir: Path::new(LABS_DIR).join(name) }
    }

    /// The lab's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The lab's directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Locked by the guardian as long as it lives.
    pub fn lock(&self) -> PathBuf {
        self.dir.join("lock")
    }

    /// The [`Spec`] as JSON.
    pub fn spec(&self) -> PathBuf {
        self.dir.join("spec.json")
    }

    /// For users: the API server on the loopback address of this machine.
    pub fn kubeconfig(&self) -> PathBuf {
        self.dir.join("kubeconfig")
    }

    /// For agents: the API server on the hub's address.
    pub fn kubeconfig_agent(&self) -> PathBuf {
        self.dir.join("kubeconfig-agent")
    }

    /// For the operator: the same.
    pub fn kubeconfig_operator(&self) -> PathBuf {
        self.dir.join("kubeconfig-operator")
    }

    /// The ConfigMap as one file per key.
    pub fn config_dir(&self) -> PathBuf {
        self.dir.join("cilium-config")
    }

    /// Certificates of Hubble, and the relay's socket.
    pub fn hubble(&self) -> PathBuf {
        self.dir.join("hubble")
    }

    /// The API server's state.
    pub fn api_state(&self) -> PathBuf {
        self.dir.join("api-server")
    }

    /// The API server's port.
    pub fn api_port(&self) -> PathBuf {
        self.dir.join("api-port")
    }

    /// Is there when the lab has been up.
    pub fn is_up(&self) -> PathBuf {
        self.dir.join("up")
    }

    /// How processes have ended whose parent is dead, by their ids.
    pub fn exits(&self) -> PathBuf {
        self.dir.join("exits")
    }

    /// Between whom the wire is cut.
    pub fn cuts(&self) -> PathBuf {
        self.dir.join("cuts.json")
    }

    /// The supervisor's socket.
    pub fn control(&self) -> PathBuf {
        self.dir.join("control.sock")
    }

    /// A log file.
    pub fn log(&self, name: &str) -> PathBuf {
        self.dir.join("logs").join(format!("{name}.log"))
    }

    /// The directory of a node.
    pub fn node(&self, node: &str) -> PathBuf {
        self.dir.join("nodes").join(node)
    }

    /// What the node keeps for a pod; at the same path inside nodes.
    pub fn pod(&self, uid: &str) -> PathBuf {
        self.dir.join("pods").join(uid)
    }

    /// The directory behind a persistent volume claim; at the same path inside nodes.
    pub fn claim(&self, uid: &str) -> PathBuf {
        self.dir.join("claims").join(uid)
    }

    /// The nodes' `resolv.conf`; at the same path inside nodes.
    pub fn resolv_conf(&self) -> PathBuf {
        self.dir.join("resolv.conf")
    }

    /// The node's `/run`, seen from here.
    pub fn node_run(&self, node: &str) -> PathBuf {
        self.node(node).join("run")
    }

    /// The node's `/sys/fs/bpf`, seen from here.
    pub fn node_bpf(&self, node: &str) -> PathBuf {
        self.node(node).join("bpf")
    }

    /// Holds the node's mount namespace.
    pub fn node_mntns(&self, node: &str) -> PathBuf {
        self.node(node).join("mnt")
    }

    /// Holds the node's host name.
    pub fn node_utsns(&self, node: &str) -> PathBuf {
        self.node(node).join("uts")
    }

    /// The agent's socket, seen from here.
    pub fn agent_socket(&self, node: &str) -> PathBuf {
        self.node_run(node).join("cilium/cilium.sock")
    }

    /// The network namespace of a node, of the `hub` or of `external`.
    pub fn netns(&self, member: &str) -> PathBuf {
        Path::new(NETNS_DIR).join(format!("{}{member}", self.netns_prefix()))
    }

    /// How the names of all network namespaces of the lab begin.
    pub fn netns_prefix(&self) -> String {
        format!("cilium-lab-{}-", self.name)
    }

    /// The lab's cgroup, relative to the cgroup2 mount.
    pub fn cgroup(&self) -> PathBuf {
        Path::new(CGROUP).join(&self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked() {
        for good in ["default", "a", "lab-2"] {
            assert!(Spec::new(good, 1, &[]).is_ok(), "{good}");
        }
        for bad in ["", "-a", "a-", "A", "a/b", "..", &"x".repeat(33)] {
            assert_eq!(Spec::new(bad, 1, &[]), Err(SpecError::Name(bad.to_owned())));
        }
        assert_eq!(Spec::new("a", 0, &[]), Err(SpecError::Nodes(0)));
        assert_eq!(Spec::new("a", 255, &[]), Err(SpecError::Nodes(255)));
    }

    #[test]
    fn settings_override_defaults() {
        let spec = Spec::new("a", 1, &["routing-mode=native".to_owned()]).unwrap();
        assert_eq!(spec.cilium_config()["routing-mode"], "native");
        assert_eq!(spec.cilium_config()["ipam"], "cluster-pool");
        assert_eq!(
            Spec::new("a", 1, &["oops".to_owned()]),
            Err(SpecError::Setting("oops".to_owned()))
        );
    }

    #[test]
    fn nodes_have_their_addresses() {
        let spec = Spec::new("a", 12, &[]).unwrap();
        let last = spec.node_specs().last().unwrap();
        assert_eq!(last.name(), "node-12");
        assert_eq!(last.addresses().map(|a| a.to_string()), ["172.18.1.12", "fd00:18::1:c"]);
    }
}
