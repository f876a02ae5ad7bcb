//! `cilium-health`: whether the nodes of the cluster reach each other.

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::health_main()
}
