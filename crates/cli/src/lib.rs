//! The command line: what people type to see what an agent knows and what the datapath holds.
//!
//! ```text
//!   args ─► nodes (which agents?) ─► status, list, policy, bpf, monitor, … ─► output
//!                                        │         │
//!                                        │         └─ pinned maps (kernel)
//!                                        └─ REST on the agent's socket (api)
//!   `cilium lab …` is the crate `lab`'s own; `cilium connectivity …` asks the API server.
//! ```
//!
//! Every listing is two steps: fetch a value that serialises, render it as text. `-o json` prints
//! the value; tests check the text.
//!
//! Architecture invariant: no state and no decisions of its own; whatever it prints, an agent or
//! the kernel has said.

mod args;
mod bpf;
mod connectivity;
mod conntrack;
mod health;
mod hubble;
mod list;
mod monitor;
mod nodes;
mod output;
mod policy;
mod policy_file;
mod policy_map;
mod policy_words;
mod status;
mod version;

use std::process::ExitCode;

use clap::{CommandFactory, Parser};

use crate::args::{
    Bpf, Cli, Command, Endpoint, HealthCli, Identity, Ip, Ipam, Ipcache, List, Map, Node,
};
use crate::output::{Outcome, Report};

/// Runs the program `cilium`.
pub fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Lab(command) => return lab::command::run(command),
        Command::Completion { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "cilium", &mut script);
            output::print(&String::from_utf8_lossy(&script)).map(|()| Outcome::Complete)
        }
        command => run(command),
    };
    exit(outcome)
}

/// Runs the program `cilium-health`.
pub fn health_main() -> ExitCode {
    exit(health::run(&HealthCli::parse().command))
}

/// Runs the program `hubble`.
pub fn hubble_main() -> ExitCode {
    hubble::main()
}

fn exit(outcome: anyhow::Result<Outcome>) -> ExitCode {
    match outcome {
        Ok(Outcome::Complete) => ExitCode::SUCCESS,
        Ok(Outcome::Partial) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("Error: {}", output::one_line(&output::explain(error)));
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> anyhow::Result<Outcome> {
    match command {
        Command::Status(args) => status::run(&args),
        Command::Endpoint(Endpoint::List(ask)) => {
            Report::new(&ask)?.each(list::endpoints, list::render_endpoints)
        }
        Command::Endpoint(Endpoint::Get { id, ask }) => list::get_endpoint(&ask, &id),
        Command::Endpoint(Endpoint::Config { id, options, ask }) => {
            policy::configure(&ask, &id, &options)
        }
        Command::Policy(command) => policy::run(&command),
        Command::Identity(Identity::List { endpoints, ask }) => {
            if endpoints {
                return Report::new(&ask)?
                    .each(list::identity_endpoints, |list| list::render_identities(list));
            }
            list::identities(&ask)
        }
        Command::Identity(Identity::Get { id, ask }) => list::get_identity(&ask, id),
        Command::Ip(Ip::List { numeric, verbose, ask }) => list::ips(&ask, numeric, verbose),
        Command::Node(Node::List(List { ask })) => {
            Report::new(&ask)?.each(list::nodes, list::render_nodes)
        }
        Command::Ipam(Ipam::List(List { ask })) => {
            Report::new(&ask)?.each(list::ipam, list::render_ipam)
        }
        Command::Bpf(Bpf::Endpoint(args::BpfEndpoint::List(ask))) => {
            Report::new(&ask)?.each(bpf::endpoints, bpf::render_endpoints)
        }
        Command::Bpf(Bpf::Ipcache(Ipcache::List(ask))) => {
            Report::new(&ask)?.each(bpf::ipcache, bpf::render_ipcache)
        }
        Command::Bpf(Bpf::Ipcache(Ipcache::Get { address, ask })) => {
            bpf::get_ipcache(&ask, address)
        }
        Command::Bpf(Bpf::Metrics(args::Metrics::List(ask))) => {
            Report::new(&ask)?.each(bpf::metrics, |metrics| bpf::render_metrics(metrics))
        }
        Command::Bpf(Bpf::Policy(args::BpfPolicy::Get {
            endpoint,
            all,
            numeric,
            verbose,
            ask,
        })) => policy_map::get(&ask, endpoint, all, policy_map::Look { numeric, verbose }),
        Command::Bpf(Bpf::Ct(args::Ct::List { address, ask })) => conntrack::list(&ask, address),
        Command::Bpf(Bpf::Ct(args::Ct::Flush { address, ask })) => conntrack::flush(&ask, address),
        Command::Map(Map::List { verbose, ask }) => {
            Report::new(&ask)?.each(list::maps, |maps| list::render_maps(maps, verbose))
        }
        Command::Map(Map::Get { name, ask }) => {
            Report::new(&ask)?.each(|node| list::map(node, &name), list::render_map)
        }
        Command::Health(command) => health::run(&command),
        Command::Connectivity(command) => connectivity::run(&command),
        Command::Monitor(args) => monitor::run(&args),
        Command::Version(ask) => version::run(&ask),
        Command::Lab(_) | Command::Completion { .. } => Ok(Outcome::Complete),
    }
}
