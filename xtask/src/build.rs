//! `build`: everything, optimised, into `target/release`.

use anyhow::{Context, bail};

use crate::bpf;
use crate::shell::{self, Root, run, say};

/// The programs that a node or a user runs.
pub(crate) const PROGRAMS: [&str; 4] = ["cilium-agent", "cilium-cni", "cilium-operator", "cilium"];
/// Largest CNI plugin: a runtime starts it for every pod, so it is read from disk all the time.
const CNI_BYTES_MAX: u64 = 5 << 20;

/// Builds the BPF programs, then every binary with them inside.
pub(crate) fn release(root: &Root) -> anyhow::Result<()> {
    bpf::build(root)?;
    say("building the programs (cargo build --release)");
    run(shell::cargo(root).args(["build", "--release", "--workspace", "--bins"]))?;
    check(root)
}

/// The programs exist, and the plugin is as small as promised.
fn check(root: &Root) -> anyhow::Result<()> {
    for program in PROGRAMS {
        let path = root.target().join("release").join(program);
        let bytes =
            std::fs::metadata(&path).with_context(|| format!("no {}", path.display()))?.len();
        say(format!("{} ({:.1} MiB)", path.display(), bytes as f64 / f64::from(1 << 20)));
        if program == "cilium-cni" && bytes > CNI_BYTES_MAX {
            bail!("cilium-cni has {bytes} bytes, more than the {CNI_BYTES_MAX} it may have");
        }
    }
    Ok(())
}
