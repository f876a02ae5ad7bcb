//! `cargo xtask`: everything about this repository that is automated, in one place.
//!
//! Each verb is a module: it says what it is about to do, installs what it needs (and says so),
//! and ends with a status that a script can rely on. The verbs that newcomers meet are `demo` (a
//! cluster on this machine) and `test` (everything we can check here).

mod bench;
mod bpf;
mod build;
mod demo;
mod shell;
mod test;
mod tidy;
mod verifier;
mod vm;

use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};

use crate::shell::Root;

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Build, try, test and measure this repository")]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Build the BPF programs into target/bpf/cilium.bpf.o, finding or installing a compiler.
    BuildBpf,
    /// Build everything, optimised, into target/release.
    Build,
    /// Build everything, start a cluster on this machine, and show its pods talk.
    Demo {
        /// Take the cluster down at the end (so it is when the variable CI is set).
        #[arg(long)]
        down: bool,
    },
    /// Run the tests, all or the named stages.
    Test {
        stages: Vec<test::Stage>,
        /// Renew the tables that tests compare with.
        #[arg(long)]
        bless: bool,
    },
    /// Measure beside baselines: datapath, load, pod, cni, memory, lab.
    Bench(bench::Arguments),
    /// An end of a benchmark's connection.
    #[command(hide = true)]
    BenchPeer(bench::PeerArguments),
    /// Check the tree's own rules: who knows whom, how files begin, what is dead.
    Tidy,
    /// Run a command under another kernel, in a virtual machine with this machine's files.
    VmRun {
        /// Series of Debian's kernel.
        #[arg(long, default_value = vm::KERNELS[0])]
        kernel: String,
        /// Seconds until the virtual machine is stopped.
        #[arg(long, default_value_t = 600)]
        timeout: u64,
        /// The command and its arguments.
        #[arg(required = true, trailing_var_arg = true)]
        command: Vec<String>,
    },
}

fn main() -> ExitCode {
    if let Some(code) = bench::act_as_plugin() {
        return code;
    }
    let verb = Cli::parse().verb;
    let root = Root::find();
    let result = match verb {
        Verb::BuildBpf => bpf::build(&root).map(drop),
        Verb::Build => build::release(&root),
        Verb::Test { stages, bless } => {
            return if test::test(&root, &stages, bless) {
                ExitCode::SUCCESS
            } else {
                ExitCode::FAILURE
            };
        }
        Verb::Demo { down } => demo::demo(&root, down),
        Verb::Bench(arguments) => bench::bench(&root, &arguments),
        Verb::BenchPeer(arguments) => bench::peer(&arguments),
        Verb::Tidy => tidy::check(&root).map(|()| shell::say("the tree is tidy")),
        Verb::VmRun { kernel, timeout, command } => {
            vm::command(&root, &kernel, Duration::from_secs(timeout), &command)
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
