//! What people can type.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use api::rest::EndpointRef;
use clap::{Args, Parser, Subcommand, ValueEnum};
use model::IdentityId;

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
}

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
}

impl EventType {
    pub(crate) fn kind(self) -> flow::Kind {
        match self {
            Self::Drop => flow::Kind::Drop,
            Self::Debug => flow::Kind::Debug,
            Self::Capture => flow::Kind::Capture,
            Self::Trace => flow::Kind::Trace,
        }
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
