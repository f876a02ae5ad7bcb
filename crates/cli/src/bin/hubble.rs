//! `hubble`: flows of a node or, through the relay, of a cluster.

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::hubble_main()
}
