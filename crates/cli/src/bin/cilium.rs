//! `cilium`: the command line of agents, datapath and lab.

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::main()
}
