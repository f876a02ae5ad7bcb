//! `cilium`: the command line.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Networking, security and observability for Kubernetes on eBPF.
#[derive(Parser)]
#[command(name = "cilium", version)]
struct Cilium {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// A whole cluster on this machine: nodes are network namespaces, pods are processes.
    #[command(subcommand)]
    Lab(lab::command::LabCommand),
}

fn main() -> ExitCode {
    match Cilium::parse().command {
        Command::Lab(command) => lab::command::run(command),
    }
}
