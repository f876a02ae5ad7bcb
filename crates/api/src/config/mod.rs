//! Every option: its key, default, help, parser, and whether we do what it says.
//!
//! A value comes from a flag, else from the environment (`CILIUM_<KEY IN UPPER SNAKE CASE>`), else from
//! the file of that name in the directory `--config-dir` (the mounted ConfigMap `cilium-config`), else it
//! is the default. A key is one of
//!
//! - **supported**: listed in [`Config`];
//! - **known, not supported** ([`unsupported`]): where the value leaves the feature off, or is the
//!   default, a warning; where it would turn something on that we lack, a refusal;
//! - **unknown**: a warning in the directory, an error on the command line.
//!
//! So a ConfigMap made for Cilium starts our agent or is refused with a reason; it is never silently
//! believed where we do not do what it says.

mod load;
mod reference;
pub mod unsupported;
mod value;

pub use load::{ConfigError, Invocation, Loaded, Origin, Refusal};
pub use reference::reference;
pub use value::{
    AllowLocalhost, DatapathMode, IdentityAllocationMode, IpamMode, ListenAddress,
    MonitorAggregation, OptionValue, PolicyEnforcement, Ratio, RoutingMode, TunnelProtocol,
};

use std::path::PathBuf;
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use model::LabelFilter;

/// The programs that take options.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    /// `cilium-agent`.
    Agent,
    /// `cilium-operator`.
    Operator,
}

impl Program {
    /// The name of its binary.
    pub fn name(self) -> &'static str {
        match self {
            Self::Agent => "cilium-agent",
            Self::Operator => "cilium-operator",
        }
    }
}

/// The definition of a supported option.
#[derive(Clone, Copy, Debug)]
pub struct Definition {
    /// Its key, as in `enable-ipv4`.
    pub key: &'static str,
    /// Its default, as one would write it.
    pub default: &'static str,
    /// What it does, in a sentence.
    pub help: &'static str,
    /// What values look like.
    pub kind: &'static str,
    /// The programs that read it.
    pub programs: &'static [Program],
    /// Whether a flag without a value means `true`.
    is_switch: bool,
    /// Whether a repeated flag adds to a list.
    is_list: bool,
}

/// Declares each option once; everything else about options follows from this list.
macro_rules! options {
    ($($programs:ident $key:literal $field:ident: $type:ty = $default:literal, $help:literal;)*) => {
        /// The options in force.
        #[derive(Clone, Debug, PartialEq)]
        pub struct Config {
            $(#[doc = $help] pub $field: $type,)*
        }

        /// The supported options in the order of the reference.
        pub const DEFINITIONS: &[Definition] = &[$(Definition {
            key: $key,
            default: $default,
            help: $help,
            kind: <$type as OptionValue>::KIND,
            programs: $programs,
            is_switch: <$type as OptionValue>::IS_SWITCH,
            is_list: <$type as OptionValue>::IS_LIST,
        },)*];

        impl Config {
            /// Parses the texts that `text` gives for keys.
            fn parse(text: &load::Values) -> Result<Self, ConfigError> {
                Ok(Self { $($field: text.parse($key, $default)?,)* })
            }
        }
    };
}

const BOTH: &[Program] = &[Program::Agent, Program::Operator];
const AGENT: &[Program] = &[Program::Agent];
const OPERATOR: &[Program] = &[Program::Operator];

options! {
    BOTH "config-dir" config_dir: Option<PathBuf> = "",
        "Directory with one file per option, the mounted ConfigMap cilium-config.";
    BOTH "cluster-name" cluster_name: String = "default",
        "Name of the cluster; a label of every pod.";
    BOTH "cluster-id" cluster_id: u32 = "0",
        "Number of the cluster in a mesh; only 0, no mesh, is supported.";
    BOTH "debug" debug: bool = "false",
        "Log decisions and send debug events.";
    BOTH "enable-ipv4" enable_ipv4: bool = "true",
        "Give pods IPv4 addresses.";
    BOTH "enable-ipv6" enable_ipv6: bool = "true",
        "Give pods IPv6 addresses.";
    BOTH "ipam" ipam: IpamMode = "cluster-pool",
        "Whence the prefixes of a node's pods come: from the operator's pool, or from the Kubernetes Node.";
    BOTH "identity-allocation-mode" identity_allocation_mode: IdentityAllocationMode = "crd",
        "Where identities are kept; only in CiliumIdentity objects.";
    BOTH "k8s-kubeconfig-path" k8s_kubeconfig_path: Option<PathBuf> = "",
        "Kubeconfig file; without one the in-cluster configuration is used.";
    BOTH "k8s-namespace" k8s_namespace: String = "kube-system",
        "Namespace that the agent and the operator run in.";

    AGENT "routing-mode" routing_mode: RoutingMode = "tunnel",
        "How packets travel between nodes.";
    AGENT "tunnel-protocol" tunnel_protocol: TunnelProtocol = "vxlan",
        "Encapsulation between nodes in tunnel mode.";
    AGENT "tunnel-port" tunnel_port: u16 = "0",
        "UDP port of the encapsulation; 0 is the protocol's default, 8472 for vxlan.";
    AGENT "auto-direct-node-routes" auto_direct_node_routes: bool = "false",
        "In native mode, install routes to the pods of nodes on the same link.";
    AGENT "ipv4-native-routing-cidr" ipv4_native_routing_cidr: Option<Ipv4Net> = "",
        "IPv4 prefix that is routed between nodes without translation.";
    AGENT "ipv6-native-routing-cidr" ipv6_native_routing_cidr: Option<Ipv6Net> = "",
        "IPv6 prefix that is routed between nodes without translation.";
    AGENT "devices" devices: Vec<String> = "",
        "The node's network devices; a trailing + matches any ending; empty finds them by the routes.";
    AGENT "mtu" mtu: u32 = "0",
        "MTU of the underlay; 0 takes it from the devices.";
    AGENT "datapath-mode" datapath_mode: DatapathMode = "veth",
        "How pods are joined to the node.";

    AGENT "socket-path" socket_path: PathBuf = "/var/run/cilium/cilium.sock",
        "Unix socket of the REST API.";
    AGENT "state-dir" state_dir: PathBuf = "/var/run/cilium",
        "Directory of what must survive a restart; endpoints are in its subdirectory state.";
    AGENT "bpf-root" bpf_root: PathBuf = "/sys/fs/bpf",
        "Mount point of the BPF file system.";
    AGENT "write-cni-conf-when-ready" write_cni_conf_when_ready: Option<PathBuf> = "",
        "File to write the CNI configuration to once pods can be connected.";
    AGENT "cni-exclusive" cni_exclusive: bool = "false",
        "Rename other CNI configurations, so that ours is the only one.";
    AGENT "cni-log-file" cni_log_file: PathBuf = "/var/run/cilium/cilium-cni.log",
        "Log file of the CNI plugin.";
    AGENT "agent-health-port" agent_health_port: u16 = "9879",
        "TCP port on localhost of /healthz; 0 switches it off.";

    AGENT "enable-health-checking" enable_health_checking: bool = "true",
        "Probe all nodes of the cluster, and answer their probes.";
    AGENT "enable-endpoint-health-checking" enable_endpoint_health_checking: bool = "true",
        "Have a health endpoint, an address in the pods' network that answers probes.";
    AGENT "cluster-health-port" cluster_health_port: u16 = "4240",
        "TCP port on which nodes and health endpoints answer probes.";
    AGENT "health-check-icmp-failure-threshold" health_check_icmp_failure_threshold: u32 = "3",
        "ICMP echo requests to an address in a round; it counts as unreachable when none is answered.";
    AGENT "connectivity-probe-frequency-ratio" connectivity_probe_frequency_ratio: Ratio = "0.5",
        "How rarely nodes are probed: from 0, every 10 s, to 1, every 110 s, times ln(1 + nodes).";

    AGENT "labels" labels: LabelFilter = "",
        "Which labels make identities: prefixes [!][source:]key, separated by blanks; one without ! makes a whitelist.";
    AGENT "monitor-aggregation" monitor_aggregation: MonitorAggregation = "none",
        "Which trace events are left out.";
    AGENT "trace-payloadlen" trace_payloadlen: u32 = "128",
        "Bytes of a packet that an event carries at most.";
    AGENT "bpf-events-drop-enabled" bpf_events_drop_enabled: bool = "true",
        "Send an event for each dropped packet.";
    AGENT "bpf-events-trace-enabled" bpf_events_trace_enabled: bool = "true",
        "Send events for packets on their way.";
    AGENT "bpf-endpoint-map-max" bpf_endpoint_map_max: u32 = "65535",
        "Entries of the map of local addresses, cilium_lxc.";
    AGENT "bpf-ipcache-map-max" bpf_ipcache_map_max: u32 = "512000",
        "Entries of each map of addresses and prefixes of the cluster, cilium_ipcache.";

    AGENT "enable-policy" enable_policy: PolicyEnforcement = "default",
        "Where policy is enforced: where policies select an endpoint, everywhere, or nowhere.";
    AGENT "policy-audit-mode" policy_audit_mode: bool = "false",
        "Let pass what policy denies, and report it as audited.";
    AGENT "enable-host-firewall" enable_host_firewall: bool = "false",
        "Enforce policies with a nodeSelector on the node itself.";
    AGENT "allow-localhost" allow_localhost: AllowLocalhost = "auto",
        "Whether the node may always reach its own pods.";
    BOTH "enable-node-selector-labels" enable_node_selector_labels: bool = "false",
        "Give nodes identities by their labels, for fromNodes and toNodes.";
    AGENT "enable-k8s-networkpolicy" enable_k8s_networkpolicy: bool = "true",
        "Enforce NetworkPolicy.";
    AGENT "enable-cilium-network-policy" enable_cilium_network_policy: bool = "true",
        "Enforce CiliumNetworkPolicy.";
    AGENT "enable-cilium-clusterwide-network-policy" enable_cilium_clusterwide_network_policy: bool = "true",
        "Enforce CiliumClusterwideNetworkPolicy.";
    AGENT "enable-k8s-cluster-network-policy" enable_k8s_cluster_network_policy: bool = "false",
        "Enforce ClusterNetworkPolicy, where its CRD is installed.";
    AGENT "bpf-policy-map-max" bpf_policy_map_max: u32 = "16384",
        "Entries of the policy of an endpoint at most; one that needs more is locked down.";
    AGENT "enable-endpoint-lockdown-on-policy-overflow" enable_endpoint_lockdown_on_policy_overflow: bool = "true",
        "Deny everything to an endpoint whose policy does not fit; otherwise it keeps the policy that it had.";
    AGENT "conntrack-gc-interval" conntrack_gc_interval: Duration = "0s",
        "How often idle connections are looked for; 0 adapts to how many there are, between 10 s and conntrack-gc-max-interval.";
    AGENT "conntrack-gc-max-interval" conntrack_gc_max_interval: Duration = "12h",
        "Longest time between two searches for idle connections.";

    AGENT "enable-hubble" enable_hubble: bool = "false",
        "Observe flows, and serve them to hubble and to the relay.";
    AGENT "hubble-event-buffer-capacity" hubble_event_buffer_capacity: u32 = "4095",
        "Events that are kept: a power of two less one, up to 65535.";
    AGENT "hubble-socket-path" hubble_socket_path: PathBuf = "/var/run/cilium/hubble.sock",
        "Unix socket of Hubble's server.";
    AGENT "hubble-listen-address" hubble_listen_address: ListenAddress = "",
        "Address of Hubble's server for the relay, such as :4244; empty switches it off.";
    AGENT "hubble-disable-tls" hubble_disable_tls: bool = "false",
        "Serve hubble-listen-address without TLS.";
    AGENT "hubble-tls-cert-file" hubble_tls_cert_file: Option<PathBuf> = "",
        "Certificate of Hubble's server; read again when it changes.";
    AGENT "hubble-tls-key-file" hubble_tls_key_file: Option<PathBuf> = "",
        "Key of Hubble's server; read again when it changes.";
    AGENT "hubble-tls-client-ca-files" hubble_tls_client_ca_files: Vec<String> = "",
        "Authorities that Hubble's clients need a certificate of; empty asks for none.";
    AGENT "hubble-metrics" hubble_metrics: String = "",
        "Metrics of flows, separated by blanks, each name:option=value;option=value, such as drop:sourceContext=pod|ip.";
    AGENT "hubble-metrics-server" hubble_metrics_server: ListenAddress = "",
        "Address of /metrics of Hubble, such as :9965; empty switches it off.";
    AGENT "hubble-export-file-path" hubble_export_file_path: String = "",
        "File that flows are written to as JSON, or stdout; empty writes none.";
    AGENT "hubble-export-file-max-size-mb" hubble_export_file_max_size_mb: u32 = "10",
        "Megabytes after which the file of flows is put aside.";
    AGENT "hubble-export-file-max-backups" hubble_export_file_max_backups: u32 = "5",
        "Files of flows put aside that are kept.";
    AGENT "hubble-export-allowlist" hubble_export_allowlist: String = "",
        "FlowFilters as JSON, one after the other: only flows that match one are written.";
    AGENT "hubble-export-denylist" hubble_export_denylist: String = "",
        "FlowFilters as JSON, one after the other: flows that match one are not written.";
    AGENT "hubble-export-fieldmask" hubble_export_fieldmask: Vec<String> = "",
        "Fields of flows that are written; empty writes all.";
    AGENT "hubble-prefer-ipv6" hubble_prefer_ipv6: bool = "false",
        "Tell relays the IPv6 addresses of nodes that have both.";

    OPERATOR "cluster-pool-ipv4-cidr" cluster_pool_ipv4_cidr: Vec<IpNet> = "10.0.0.0/8",
        "Prefixes that the nodes' IPv4 prefixes are cut from.";
    OPERATOR "cluster-pool-ipv4-mask-size" cluster_pool_ipv4_mask_size: u8 = "24",
        "Length of a node's IPv4 prefix.";
    OPERATOR "cluster-pool-ipv6-cidr" cluster_pool_ipv6_cidr: Vec<IpNet> = "fd00::/104",
        "Prefixes that the nodes' IPv6 prefixes are cut from.";
    OPERATOR "cluster-pool-ipv6-mask-size" cluster_pool_ipv6_mask_size: u8 = "120",
        "Length of a node's IPv6 prefix.";
    OPERATOR "operator-api-serve-addr" operator_api_serve_addr: ListenAddress = "localhost:9234",
        "Address of /v1/healthz and /v1/metrics/; empty switches it off.";
    OPERATOR "operator-prometheus-serve-addr" operator_prometheus_serve_addr: ListenAddress = ":9963",
        "Address of /metrics for Prometheus; empty switches it off.";
    OPERATOR "leader-election-lease-duration" leader_election_lease_duration: Duration = "15s",
        "How long the other operators wait for a leader that has gone silent.";
    OPERATOR "leader-election-renew-deadline" leader_election_renew_deadline: Duration = "10s",
        "How long a leader works on that cannot renew its lease; shorter than the lease.";
    OPERATOR "leader-election-retry-period" leader_election_retry_period: Duration = "2s",
        "Time between two attempts to renew or to take the lease.";
    OPERATOR "identity-gc-interval" identity_gc_interval: Duration = "15m",
        "How often identities without pods are looked for; 0 never.";
    OPERATOR "identity-heartbeat-timeout" identity_heartbeat_timeout: Duration = "30m",
        "How long an identity without pods stays before it is marked, and after that before it is deleted.";
    OPERATOR "identity-gc-rate-interval" identity_gc_rate_interval: Duration = "1m",
        "Time in which identity-gc-rate-limit identities may be marked or deleted.";
    OPERATOR "identity-gc-rate-limit" identity_gc_rate_limit: u32 = "2500",
        "Identities that are marked or deleted at most in identity-gc-rate-interval.";
    OPERATOR "cilium-endpoint-gc-interval" cilium_endpoint_gc_interval: Duration = "5m",
        "How often CiliumEndpoints whose pod is gone or has ended are deleted; 0 never.";
    OPERATOR "nodes-gc-interval" nodes_gc_interval: Duration = "5m",
        "How often CiliumNodes whose Node is gone are looked for; deleted when found twice. 0 never.";
    OPERATOR "unmanaged-pod-watcher-interval" unmanaged_pod_watcher_interval: Duration = "15s",
        "How often running pods that Cilium does not manage are looked for; 0 never.";
    OPERATOR "pod-restart-selector" pod_restart_selector: String = "k8s-app=kube-dns",
        "Labels of pods that are deleted when Cilium does not manage them; empty is all pods.";
    OPERATOR "remove-cilium-node-taints" remove_cilium_node_taints: bool = "true",
        "Remove the taint agent-not-ready-taint-key from nodes whose agent is ready.";
    OPERATOR "set-cilium-is-up-condition" set_cilium_is_up_condition: bool = "true",
        "Set the condition NetworkUnavailable=False, reason CiliumIsUp, on nodes whose agent is ready.";
    OPERATOR "agent-not-ready-taint-key" agent_not_ready_taint_key: String = "node.cilium.io/agent-not-ready",
        "Key of the taint that keeps pods off nodes whose agent is not ready yet.";
    OPERATOR "cilium-pod-labels" cilium_pod_labels: String = "k8s-app=cilium",
        "Labels of the agents' pods in k8s-namespace; a node without such a pod is judged by its CiliumNode.";
}

impl Default for Config {
    fn default() -> Self {
        Self::parse(&load::Values::default()).expect("the defaults are valid")
    }
}

impl Config {
    /// Whether a family is on.
    pub fn is_enabled(&self, family: model::IpFamily) -> bool {
        match family {
            model::IpFamily::Ipv4 => self.enable_ipv4,
            model::IpFamily::Ipv6 => self.enable_ipv6,
        }
    }

    /// The UDP port of the encapsulation.
    pub fn effective_tunnel_port(&self) -> u16 {
        match (self.tunnel_port, self.tunnel_protocol) {
            (0, TunnelProtocol::Vxlan) => 8472,
            (port, _) => port,
        }
    }

    /// What options of Hubble must go together.
    fn check_hubble(&self) -> Result<(), ConfigError> {
        let refuse = |key: &'static str, value: String, reason: &str| {
            Err(ConfigError::Invalid { key, value, reason: reason.to_owned() })
        };
        let capacity = self.hubble_event_buffer_capacity;
        if !(1..=65_535).contains(&capacity) || !(capacity + 1).is_power_of_two() {
            let reason = "write a power of two less one, from 1 to 65535, such as 4095";
            return refuse("hubble-event-buffer-capacity", capacity.to_string(), reason);
        }
        let files = [
            ("hubble-tls-cert-file", &self.hubble_tls_cert_file),
            ("hubble-tls-key-file", &self.hubble_tls_key_file),
        ];
        let serves_tls = self.hubble_listen_address.0.is_some() && !self.hubble_disable_tls;
        match files.into_iter().find(|(_, file)| serves_tls && file.is_none()) {
            Some((key, _)) => {
                let reason = "Hubble listens on hubble-listen-address with TLS: name the file, or set \
                              hubble-disable-tls to true";
                refuse(key, String::new(), reason)
            }
            None => Ok(()),
        }
    }

    /// What no single option can know: values that do not go together.
    fn check(&self, program: Program) -> Result<(), ConfigError> {
        let refuse = |key: &'static str, value: String, reason: &str| {
            Err(ConfigError::Invalid { key, value, reason: reason.to_owned() })
        };
        if self.cluster_id != 0 {
            let reason = "clusters cannot be joined to a mesh yet; set it to 0 or remove it";
            return refuse("cluster-id", self.cluster_id.to_string(), reason);
        }
        if program == Program::Agent && self.enable_hubble {
            self.check_hubble()?;
        }
        if !self.enable_ipv4 && !self.enable_ipv6 {
            let reason = "pods need an address; set enable-ipv4 or enable-ipv6 to true";
            return refuse("enable-ipv4", "false".to_owned(), reason);
        }
        if program == Program::Agent && self.mtu != 0 && !(1280..=65_520).contains(&self.mtu) {
            return refuse("mtu", self.mtu.to_string(), "write 0 or a number from 1280 to 65520");
        }
        let lease = self.leader_election_lease_duration;
        let [renew, retry] =
            [self.leader_election_renew_deadline, self.leader_election_retry_period];
        if program == Program::Operator && !(retry < renew && renew < lease) {
            let reason = "it must be longer than leader-election-retry-period \
                and shorter than leader-election-lease-duration";
            return refuse("leader-election-renew-deadline", format!("{renew:?}"), reason);
        }
        if program == Program::Operator && self.identity_gc_rate_limit == 0 {
            let reason = "nothing could be collected; write at least 1, \
                or identity-gc-interval=0 to collect nothing";
            return refuse("identity-gc-rate-limit", "0".to_owned(), reason);
        }
        Ok(())
    }
}
