//! What people can type after `cilium connectivity`; names are Cilium's where the meaning is.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use model::IpFamily;

use crate::args::duration;

/// Look whether the network does what it should
#[derive(Debug, Subcommand)]
pub(crate) enum Connectivity {
    /// Let pods, nodes and the world outside talk to each other, and say what does not work
    ///
    /// Deploys a few small pods into a namespace of their own, in any cluster that kubectl
    /// reaches, and leaves them there for the next run. Exit code 1 where something failed.
    Test(Box<Test>),
}

#[derive(Debug, Args)]
pub(crate) struct Test {
    /// Run what matches this regular expression, compared with TEST/SCENARIO; with a leading !,
    /// skip it. Repeatable
    #[arg(long = "test", value_name = "REGEX", value_delimiter = ',')]
    pub(crate) tests: Vec<String>,
    /// Print the tests that would run, and run nothing
    #[arg(long)]
    pub(crate) list: bool,
    /// Print the results as data; progress goes to standard error
    #[arg(short, long, value_enum, value_name = "FORMAT")]
    pub(crate) output: Option<Format>,
    /// Where the test's pods live
    #[arg(long, value_name = "NAME", default_value = "cilium-test-1")]
    pub(crate) test_namespace: String,
    /// Only on nodes that have these labels: KEY=VALUE,…
    #[arg(long, value_name = "SELECTOR", default_value = "")]
    pub(crate) node_selector: String,
    /// Only what one node can show
    #[arg(long)]
    pub(crate) single_node: bool,
    /// Only these families of those that the cluster has
    #[arg(long, value_delimiter = ',', default_value = "ipv4,ipv6", value_parser = family)]
    pub(crate) ip_families: Vec<IpFamily>,
    #[command(flatten)]
    pub(crate) world: World,
    #[command(flatten)]
    pub(crate) patience: Patience,
    #[command(flatten)]
    pub(crate) images: Images,
    #[command(flatten)]
    pub(crate) cluster: Cluster,
}

/// Hosts outside of the cluster that answer HTTP.
#[derive(Debug, Args)]
#[command(next_help_heading = "The world outside")]
pub(crate) struct World {
    /// A host outside of the cluster; by default the lab's own, or else 1.1.1.1
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) external_ip: Option<IpAddr>,
    /// Another one; by default the lab's own, or else 1.0.0.1
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) external_other_ip: Option<IpAddr>,
    /// The same over IPv6; by default the lab's own, or else none
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) external_ipv6: Option<IpAddr>,
    /// Another one
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) external_other_ipv6: Option<IpAddr>,
    /// Where they serve HTTP
    #[arg(long, value_name = "PORT", default_value_t = 80)]
    pub(crate) external_port: u16,
    /// No packets to the world outside
    #[arg(long)]
    pub(crate) no_external: bool,
}

#[derive(Clone, Copy, Debug, Args)]
#[command(next_help_heading = "Patience")]
pub(crate) struct Patience {
    /// How long a connection may take to be made, or a ping to be answered
    #[arg(long, value_name = "DURATION", default_value = "2s", value_parser = duration)]
    pub(crate) connect_timeout: Duration,
    /// How long a request may take, or pings be repeated
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = duration)]
    pub(crate) request_timeout: Duration,
    /// How long the pods may take to be ready
    #[arg(long, value_name = "DURATION", default_value = "5m", value_parser = duration)]
    pub(crate) wait_duration: Duration,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Images")]
pub(crate) struct Images {
    /// Has sh, curl, and iputils' ping
    #[arg(long, value_name = "IMAGE", default_value = "quay.io/cilium/alpine-curl:v1.10.0")]
    pub(crate) curl_image: String,
    /// Answers HTTP on 8080: Kubernetes' agnhost
    #[arg(
        long,
        value_name = "IMAGE",
        default_value = "registry.k8s.io/e2e-test-images/agnhost:2.53"
    )]
    pub(crate) echo_image: String,
}

/// Which cluster is tested: as kubectl chooses it, or else the current lab.
#[derive(Debug, Args)]
#[command(next_help_heading = "Which cluster")]
pub(crate) struct Cluster {
    /// The file that describes the cluster; by default $KUBECONFIG, ~/.kube/config, or the lab's
    #[arg(long, value_name = "FILE", conflicts_with = "lab")]
    pub(crate) kubeconfig: Option<PathBuf>,
    /// The context of that file
    #[arg(long, value_name = "NAME")]
    pub(crate) context: Option<String>,
    /// Where the agents' pods are
    #[arg(short, long, value_name = "NAME", default_value = "kube-system")]
    pub(crate) namespace: String,
    /// The lab of this name
    #[arg(long, env = "CILIUM_LAB", value_name = "NAME")]
    pub(crate) lab: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    Json,
    Junit,
}

fn family(text: &str) -> Result<IpFamily, String> {
    match text {
        "ipv4" => Ok(IpFamily::Ipv4),
        "ipv6" => Ok(IpFamily::Ipv6),
        _ => Err("write ipv4, ipv6 or both with a comma".to_owned()),
    }
}
