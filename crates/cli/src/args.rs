//! What people can type.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use api::rest::EndpointRef;
use clap::{Args, Parser, Subcommand, ValueEnum};
use model::label::{ParseLabelError, SOURCE_K8S, SOURCE_UNSPEC};
use model::{IdentityId, Label, PodName};

use crate::connectivity::args::Connectivity;

/// Networking for Kubernetes pods on eBPF: look at agents and datapath, and run a lab.
#[derive(Debug, Parser)]
#[command(name = "cilium", version, propagate_version = true)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Show how agents are
    Status(Status),
    /// Look at the pods of a node
    #[command(subcommand, alias = "endpoints")]
    Endpoint(Endpoint),
    /// Look at who the pods of the cluster are to policy
    #[command(subcommand, alias = "identities")]
    Identity(Identity),
    /// Look at which policies there are, and ask why a packet passes or does not
    #[command(subcommand)]
    Policy(Policy),
    /// Look at which addresses an agent knows
    #[command(subcommand)]
    Ip(Ip),
    /// Look at the nodes of the cluster
    #[command(subcommand, alias = "nodes")]
    Node(Node),
    /// Look at which addresses a node has given to whom
    #[command(subcommand)]
    Ipam(Ipam),
    /// Look into the datapath's maps in the kernel, also while the agent is away
    #[command(subcommand)]
    Bpf(Bpf),
    /// Look at the maps as the agent sees them
    #[command(subcommand, alias = "maps")]
    Map(Map),
    /// See whether the nodes of the cluster reach each other
    #[command(subcommand)]
    Health(Health),
    /// Look whether the network does what it should
    #[command(subcommand)]
    Connectivity(Connectivity),
    /// Watch what the datapath does with packets
    Monitor(Monitor),
    /// Print the versions of this program and of the agents
    Version(Ask),
    /// Run a cluster on this machine
    #[command(subcommand)]
    Lab(lab::command::LabCommand),
    /// Print a script that completes commands in a shell
    Completion {
        /// The shell
        shell: clap_complete::Shell,
    },
}

/// Whether the nodes of the cluster reach each other, over the network of nodes and that of pods.
#[derive(Debug, Parser)]
#[command(name = "cilium-health", version, propagate_version = true)]
pub(crate) struct HealthCli {
    #[command(subcommand)]
    pub(crate) command: Health,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Health {
    /// Show which nodes and health endpoints the node reaches
    Status {
        /// Probe now, instead of showing what the last round found
        #[arg(long)]
        probe: bool,
        /// Also the further addresses of nodes
        #[arg(short, long)]
        verbose: bool,
        #[command(flatten)]
        ask: Ask,
    },
    /// Show how the node itself is
    Get(Ask),
    /// Check whether the health API answers
    Ping(Ask),
}

/// Whom to ask, and how to print the answer.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct Ask {
    #[command(flatten)]
    pub(crate) whom: Whom,
    /// Print data instead of text; of several nodes, an object by node
    #[arg(short, long, value_enum, value_name = "FORMAT")]
    pub(crate) output: Option<Format>,
}

/// Which agents to ask: by default the one of this machine, or else all of the current lab.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct Whom {
    /// The agent's socket
    #[arg(long, env = "CILIUM_SOCK", value_name = "PATH", help_heading = "Which agent")]
    pub(crate) socket: Option<PathBuf>,
    /// The agent of this node of the lab; by default that of this machine, or else all of the lab
    #[arg(long, value_name = "NAME", conflicts_with = "socket", help_heading = "Which agent")]
    pub(crate) node: Option<String>,
    /// The lab, where there are several
    #[arg(long, env = "CILIUM_LAB", value_name = "NAME", help_heading = "Which agent")]
    pub(crate) lab: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    Json,
    Yaml,
}

#[derive(Debug, Args)]
pub(crate) struct Status {
    /// Wait until every agent is well
    #[arg(long)]
    pub(crate) wait: bool,
    /// How long to wait at most: 90s, 5m, 1h
    #[arg(long, default_value = "5m", value_parser = duration, value_name = "DURATION")]
    pub(crate) wait_duration: Duration,
    /// One line per agent
    #[arg(long, conflicts_with = "verbose")]
    pub(crate) brief: bool,
    /// Also addresses, tasks and maps
    #[arg(short, long)]
    pub(crate) verbose: bool,
    #[command(flatten)]
    pub(crate) ask: Ask,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Endpoint {
    /// List the endpoints of a node
    List(Ask),
    /// Print everything that is known of an endpoint
    Get {
        /// A number, pod-name:NAMESPACE/NAME, ipv4:ADDRESS, ipv6:ADDRESS, container-id:ID or
        /// cni-attachment-id:ID:INTERFACE
        id: EndpointRef,
        #[command(flatten)]
        ask: Ask,
    },
    /// Show or change options of an endpoint
    ///
    /// With PolicyAuditMode=Enabled, what policy would deny is let through and reported, until it is
    /// Disabled again: `cilium endpoint config pod-name:shop/web PolicyAuditMode=Enabled`.
    Config {
        /// The endpoint, as for `cilium endpoint get`
        id: EndpointRef,
        /// Options to change; without any, those in force are shown
        #[arg(value_name = "OPTION=VALUE", value_parser = assignment)]
        options: Vec<(String, String)>,
        #[command(flatten)]
        ask: Ask,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum Policy {
    /// List the policies that a node knows, whom they select, and what is wrong with them
    List(Ask),
    /// Print the rules of all policies, and the revision
    Get(Ask),
    /// List the selectors of rules, and the identities that each selects
    Selectors(Ask),
    /// Check policies in files before they are applied: every field, as the agent does
    ///
    /// Reads CiliumNetworkPolicy, CiliumClusterwideNetworkPolicy, NetworkPolicy,
    /// ClusterNetworkPolicy and CiliumCIDRGroup objects; no cluster is needed. Exit code 1 where one
    /// would be refused.
    Validate {
        /// YAML or JSON, with several objects if you like; - is standard input
        #[arg(required = true, value_name = "FILE")]
        files: Vec<PathBuf>,
        /// Print data instead of text
        #[arg(short, long, value_enum, value_name = "FORMAT")]
        output: Option<Format>,
    },
    /// Wait until all endpoints of the node enforce this revision of the policies, or a later one
    Wait {
        /// As `cilium policy get` prints it
        revision: i64,
        /// How long to wait at most: 90s, 5m, 1h
        #[arg(long, default_value = "6m", value_parser = duration, value_name = "DURATION")]
        max_wait_time: Duration,
        #[command(flatten)]
        whom: Whom,
    },
    /// Ask whether a packet would pass, and which rule decides
    ///
    /// The agent answers with the engine that fills the datapath's maps: an allow or a deny names
    /// policy and rule; a denial for want of a rule names the policies that select the endpoint, and
    /// the rule that came nearest.
    ///
    ///   cilium policy trace --src-pod shop/web --dst-pod shop/db --dport 5432/TCP
    ///   cilium policy trace --src-labels k8s:app=web,k8s:io.kubernetes.pod.namespace=shop
    ///       --dst-ip 203.0.113.10 --dport 443/TCP
    ///   cilium policy trace --src-pod shop/web --dst-pod shop/db --policy new.yaml
    #[command(verbatim_doc_comment)]
    Trace(Box<Trace>),
}

#[derive(Debug, Args)]
pub(crate) struct Trace {
    #[command(flatten)]
    pub(crate) source: Source,
    #[command(flatten)]
    pub(crate) destination: Destination,
    /// Destination port: PORT/PROTOCOL, as in 80/TCP, 53/UDP, or 8/ICMP, 128/ICMPv6 by type.
    /// Without a protocol TCP and UDP are asked about. Repeatable
    #[arg(long = "dport", value_name = "PORT/PROTOCOL", value_delimiter = ',', value_parser = dport)]
    pub(crate) dports: Vec<Dports>,
    /// Policies in this file as well, before they are applied; one that exists is replaced. Repeatable
    #[arg(long = "policy", value_name = "FILE")]
    pub(crate) policies: Vec<PathBuf>,
    #[command(flatten)]
    pub(crate) ask: Ask,
}

/// Who sends; one of these.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
#[command(next_help_heading = "Who sends")]
pub(crate) struct Source {
    /// A pod: NAMESPACE/NAME, or NAME in default
    #[arg(long, value_name = "POD", value_parser = pod)]
    pub(crate) src_pod: Option<PodName>,
    /// An endpoint of the node, by number
    #[arg(long, value_name = "ENDPOINT")]
    pub(crate) src_endpoint: Option<u16>,
    /// An identity: a number, or the name of a reserved one
    #[arg(long, value_name = "IDENTITY")]
    pub(crate) src_identity: Option<IdentityId>,
    /// An address
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) src_ip: Option<IpAddr>,
    /// Labels, with a comma between: k8s:app=web,k8s:io.kubernetes.pod.namespace=shop
    #[arg(long, value_name = "LABELS", value_delimiter = ',', value_parser = label)]
    pub(crate) src_labels: Option<Vec<String>>,
}

/// Who is to receive; one of these.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
#[command(next_help_heading = "Who is to receive")]
pub(crate) struct Destination {
    /// A pod: NAMESPACE/NAME, or NAME in default
    #[arg(long, value_name = "POD", value_parser = pod)]
    pub(crate) dst_pod: Option<PodName>,
    /// An endpoint of the node, by number
    #[arg(long, value_name = "ENDPOINT")]
    pub(crate) dst_endpoint: Option<u16>,
    /// An identity: a number, or the name of a reserved one
    #[arg(long, value_name = "IDENTITY")]
    pub(crate) dst_identity: Option<IdentityId>,
    /// An address
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) dst_ip: Option<IpAddr>,
    /// Labels, with a comma between
    #[arg(long, value_name = "LABELS", value_delimiter = ',', value_parser = label)]
    pub(crate) dst_labels: Option<Vec<String>>,
}

/// A port to ask about, once for each protocol that is meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Dports(pub(crate) Vec<String>);

#[derive(Debug, Subcommand)]
pub(crate) enum Identity {
    /// List the identities that an agent knows
    List {
        /// Only identities of pods of the node
        #[arg(long)]
        endpoints: bool,
        #[command(flatten)]
        ask: Ask,
    },
    /// Print an identity and its labels
    Get {
        /// Its number
        id: IdentityId,
        #[command(flatten)]
        ask: Ask,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum Ip {
    /// List addresses and prefixes and the identity behind each
    List {
        /// Identities by number instead of by labels
        #[arg(short, long)]
        numeric: bool,
        /// Also the node behind each address
        #[arg(short, long)]
        verbose: bool,
        #[command(flatten)]
        ask: Ask,
    },
}

/// Arguments of a listing that has none of its own.
#[derive(Debug, Args)]
pub(crate) struct List {
    #[command(flatten)]
    pub(crate) ask: Ask,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Node {
    /// List the nodes of the cluster
    List(List),
}

#[derive(Debug, Subcommand)]
pub(crate) enum Ipam {
    /// List the addresses that are taken
    List(List),
}

#[derive(Debug, Subcommand)]
pub(crate) enum Bpf {
    /// Local endpoints by address
    #[command(subcommand)]
    Endpoint(BpfEndpoint),
    /// Identity and node behind each address of the cluster
    #[command(subcommand)]
    Ipcache(Ipcache),
    /// Counters of forwarded and dropped packets
    #[command(subcommand)]
    Metrics(Metrics),
    /// What endpoints may send and receive
    #[command(subcommand)]
    Policy(BpfPolicy),
    /// Flows that the datapath follows
    #[command(subcommand)]
    Ct(Ct),
}

#[derive(Debug, Subcommand)]
pub(crate) enum BpfPolicy {
    /// List the entries of an endpoint's policy, or of all
    ///
    /// Endpoints of equal policy share their entries, in a slot of the map. Peers are shown with their
    /// labels while the agent answers, else by number.
    Get {
        /// The endpoint's number; without it, endpoints that are enforced are listed
        #[arg(conflicts_with = "all")]
        endpoint: Option<u16>,
        /// Entries of all endpoints
        #[arg(long)]
        all: bool,
        /// Identities by number instead of by labels
        #[arg(short, long)]
        numeric: bool,
        /// Also the precedence of each entry
        #[arg(short, long)]
        verbose: bool,
        #[command(flatten)]
        ask: Ask,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum Ct {
    /// List the flows, with what each end's policy said
    List {
        /// Only flows of this address
        address: Option<IpAddr>,
        #[command(flatten)]
        ask: Ask,
    },
    /// Forget flows: the next packet of each is decided anew
    ///
    /// A running connection goes on where policy allows its packets; answers to a flow that was
    /// forgotten need a rule of their own until its initiator sends again.
    Flush {
        /// Only flows of this address
        address: Option<IpAddr>,
        #[command(flatten)]
        ask: Ask,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum BpfEndpoint {
    /// List the entries of the map
    List(Ask),
}

#[derive(Debug, Subcommand)]
pub(crate) enum Ipcache {
    /// List the entries of the maps
    List(Ask),
    /// Print what the datapath makes of an address
    Get {
        /// The address
        address: IpAddr,
        #[command(flatten)]
        ask: Ask,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum Metrics {
    /// List the counters that are not zero
    List(Ask),
}

#[derive(Debug, Subcommand)]
pub(crate) enum Map {
    /// List the maps
    List {
        /// Also their size and memory
        #[arg(short, long)]
        verbose: bool,
        #[command(flatten)]
        ask: Ask,
    },
    /// Print what a map should hold, and which entries the kernel has refused
    Get {
        /// The map's name
        name: String,
        #[command(flatten)]
        ask: Ask,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Monitor {
    /// Only packets from this pod: NAME or NAMESPACE/NAME. Repeatable
    #[arg(long, value_name = "POD")]
    pub(crate) from_pod: Vec<String>,
    /// Only packets to this pod
    #[arg(long, value_name = "POD")]
    pub(crate) to_pod: Vec<String>,
    /// Only packets from this endpoint of the node
    #[arg(long, value_name = "ENDPOINT")]
    pub(crate) from: Vec<u16>,
    /// Only packets to this endpoint of the node
    #[arg(long, value_name = "ENDPOINT")]
    pub(crate) to: Vec<u16>,
    /// Only packets from or to this endpoint or pod
    #[arg(long, value_name = "ENDPOINT|POD")]
    pub(crate) related_to: Vec<String>,
    /// Only events of this type. Repeatable
    #[arg(short = 't', long = "type", value_name = "TYPE", value_enum)]
    pub(crate) types: Vec<EventType>,
    /// Identities by number instead of by name
    #[arg(short, long)]
    pub(crate) numeric: bool,
    /// The same as -o json
    #[arg(short, long)]
    pub(crate) json: bool,
    /// Print data instead of text; JSON is one object per line
    #[arg(short, long, value_enum, value_name = "FORMAT")]
    pub(crate) output: Option<Format>,
    #[command(flatten)]
    pub(crate) whom: Whom,
}

/// Types of events that the datapath sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum EventType {
    Drop,
    Debug,
    Capture,
    Trace,
    PolicyVerdict,
    TraceSock,
}

impl EventType {
    pub(crate) fn kind(self) -> flow::Kind {
        match self {
            Self::Drop => flow::Kind::Drop,
            Self::Debug => flow::Kind::Debug,
            Self::Capture => flow::Kind::Capture,
            Self::Trace => flow::Kind::Trace,
            Self::PolicyVerdict => flow::Kind::Verdict,
            Self::TraceSock => flow::Kind::Sock,
        }
    }
}

/// `OPTION=VALUE`.
fn assignment(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((option, value)) if !option.is_empty() && !value.is_empty() => {
            Ok((option.to_owned(), value.to_owned()))
        }
        _ => Err("write OPTION=VALUE, as in PolicyAuditMode=Enabled".to_owned()),
    }
}

/// A pod; without a namespace it is in `default`, as for kubectl.
pub(crate) fn pod(text: &str) -> Result<PodName, String> {
    let full = if text.contains('/') { text.to_owned() } else { format!("default/{text}") };
    full.parse()
        .map_err(|error| format!("{text:?} is not a pod ({error}); write NAME or NAMESPACE/NAME"))
}

/// A label; one without a source is a pod's.
fn label(text: &str) -> Result<String, String> {
    let label: Label = text.parse().map_err(|error: ParseLabelError| error.to_string())?;
    let is_bare = label.source == SOURCE_UNSPEC;
    Ok(if is_bare { Label { source: SOURCE_K8S.to_owned(), ..label } } else { label }.to_string())
}

/// `80/TCP`; without a protocol both that have ports.
fn dport(text: &str) -> Result<Dports, String> {
    const PROTOCOLS: [&str; 5] = ["TCP", "UDP", "SCTP", "ICMP", "ICMPV6"];
    let wrong = |what: &str| format!("{what}; write PORT/PROTOCOL, as in 80/TCP or 8/ICMP");
    let (port, protocol) = text.split_once('/').unwrap_or((text, "ANY"));
    let protocol = protocol.to_ascii_uppercase();
    let number: u16 = port
        .parse()
        .ok()
        .ok_or_else(|| wrong(&format!("{port:?} is not a port from 0 to 65535")))?;
    match protocol.as_str() {
        "ANY" => Ok(Dports(vec![format!("{number}/TCP"), format!("{number}/UDP")])),
        known if PROTOCOLS.contains(&known) => Ok(Dports(vec![format!("{number}/{known}")])),
        _ => Err(wrong(&format!("{protocol:?} is none of {}", PROTOCOLS.join(", ")))),
    }
}

/// A duration as Go writes it: `90s`, `5m`, `1h30m`.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is not a duration; write 90s, 5m or 1h30m");
    let mut total = Duration::ZERO;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
        let number: u64 = rest[..digits].parse().ok().ok_or_else(wrong)?;
        let unit_len = rest[digits..].find(|c: char| c.is_ascii_digit());
        let (unit, after) = rest[digits..].split_at(unit_len.unwrap_or(rest.len() - digits));
        let seconds = match unit {
            "ms" => 0,
            "s" => number,
            "m" => number.checked_mul(60).ok_or_else(wrong)?,
            "h" => number.checked_mul(3600).ok_or_else(wrong)?,
            _ => return Err(wrong()),
        };
        let millis = if unit == "ms" { number } else { 0 };
        total = total
            .checked_add(Duration::from_secs(seconds) + Duration::from_millis(millis))
            .ok_or_else(wrong)?;
        rest = after;
    }
    if text.is_empty() { Err(wrong()) } else { Ok(total) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn commands_are_consistent() {
        Cli::command().debug_assert();
        HealthCli::command().debug_assert();
    }

    #[test]
    fn ports_of_questions() {
        let check = |text: &str, expected: Result<&[&str], &str>| {
            let got = dport(text).map(|dports| dports.0);
            let expected = expected.map(|list| list.iter().map(|t| (*t).to_owned()).collect());
            assert_eq!(got, expected.map_err(str::to_owned), "{text}");
        };
        check("80/tcp", Ok(&["80/TCP"]));
        check("53", Ok(&["53/TCP", "53/UDP"]));
        check("128/ICMPv6", Ok(&["128/ICMPV6"]));
        let hint = "; write PORT/PROTOCOL, as in 80/TCP or 8/ICMP";
        for (text, what) in [
            ("", "\"\" is not a port from 0 to 65535"),
            ("65536/TCP", "\"65536\" is not a port from 0 to 65535"),
            ("80/HTTP", "\"HTTP\" is none of TCP, UDP, SCTP, ICMP, ICMPV6"),
        ] {
            check(text, Err(&format!("{what}{hint}")));
        }
    }

    #[test]
    fn labels_of_questions() {
        assert_eq!(label("app=web").unwrap(), "k8s:app=web");
        assert_eq!(label("reserved:host").unwrap(), "reserved:host");
        assert!(label("=web").is_err());
    }

    #[test]
    fn durations() {
        let check = |text: &str, seconds: Option<f64>| {
            assert_eq!(duration(text).ok().map(|d| d.as_secs_f64()), seconds, "{text}");
        };
        check("90s", Some(90.0));
        check("5m", Some(300.0));
        check("1h30m", Some(5400.0));
        check("250ms", Some(0.25));
        for wrong in ["", "5", "m", "5x", "-5s", "99999999999999999999s"] {
            check(wrong, None);
        }
    }
}
