//! `build-bpf`: compiles `crates/bpf` for the kernel.
//!
//! The programs need a compiler that may use unstable features and has the source of `core`, and a
//! linker (`bpf-linker`) built against the same LLVM. We look for them in this order:
//!
//! 1. a rustup nightly with the component `rust-src`, and LLVM's headers of its version;
//! 2. Debian's `rustc-web`, `rust-web-src` and `llvm-N-dev`, installed with apt-get if they are not.
//!
//! `bpf-linker` is built once into `~/.cache/cilium-rs-tools` and again when LLVM's version changes.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};

use crate::shell::{self, Root, output, run, say};

/// Release of bpf-linker that is known to link our programs.
const LINKER_VERSION: &str = "0.13.0";
/// Oldest compiler that our dependencies accept: the workspace's `rust-version`.
const RUSTC_MINOR_MIN: u32 = 95;

/// A compiler that can build the programs, with its linker.
#[derive(Debug)]
pub(crate) struct Toolchain {
    rustc: PathBuf,
    linker_dir: PathBuf,
    name: String,
}

/// A compiler that has the source of `core`.
#[derive(Debug)]
struct Compiler {
    rustc: PathBuf,
    llvm_major: u32,
    name: String,
}

/// Builds the programs and returns the object's path, `target/bpf/cilium.bpf.o`.
pub(crate) fn build(root: &Root) -> anyhow::Result<PathBuf> {
    let toolchain = toolchain(root)?;
    say(format!("building the BPF programs with {}", toolchain.name));
    // Where `crates/kernel/build.rs` looks, wherever cargo builds.
    let target = root.join("target/bpf");
    let mut path = vec![toolchain.linker_dir.clone()];
    path.extend(std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()));

    let mut command = shell::cargo(root);
    command
        .current_dir(root.join("crates/bpf"))
        .args(["build", "--release", "--bins", "-Z", "build-std=core"])
        .args(["--target", "bpfel-unknown-none"])
        .arg("--message-format=json-render-diagnostics")
        .env("CARGO_TARGET_DIR", &target)
        .env("RUSTC", &toolchain.rustc)
        // Cargo and rustc accept `-Z` and `#![feature]` from a stable release under this name.
        .env("RUSTC_BOOTSTRAP", "1")
        .env("PATH", std::env::join_paths(path)?);
    // They are meant for the host's compiler.
    for name in ["RUSTFLAGS", "CARGO_ENCODED_RUSTFLAGS", "RUSTC_WRAPPER", "RUSTUP_TOOLCHAIN"] {
        command.env_remove(name);
    }
    command.stderr(std::process::Stdio::inherit());
    let messages = command.output().with_context(|| format!("cannot start {command:?}"))?;
    if !messages.status.success() {
        bail!("the BPF programs do not compile: see the messages above");
    }

    for executable in executables(&String::from_utf8_lossy(&messages.stdout)) {
        let name = executable.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        // The crate's main binary carries the crate's name.
        let name = if name == "bpf" { "cilium" } else { &name };
        let object = target.join(format!("{name}.bpf.o"));
        if copy_if_changed(&executable, &object)? {
            say(format!("wrote {}", object.display()));
        }
    }
    let object = target.join("cilium.bpf.o");
    if !object.is_file() {
        bail!("crates/bpf has no binary named `cilium` or `bpf`, so there is no {object:?}");
    }
    Ok(object)
}

/// Paths of the binaries in cargo's stream of JSON messages.
fn executables(messages: &str) -> Vec<PathBuf> {
    messages
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .filter_map(|message| Some(PathBuf::from(message.get("executable")?.as_str()?)))
        .collect()
}

/// Copies only what differs: crates that embed the object are rebuilt when its time changes.
fn copy_if_changed(source: &Path, target: &Path) -> anyhow::Result<bool> {
    let new = std::fs::read(source).with_context(|| format!("cannot read {source:?}"))?;
    if std::fs::read(target).is_ok_and(|old| old == new) {
        return Ok(false);
    }
    // By rename, so that a concurrent reader sees the old object or the new one.
    let next = target.with_extension("next");
    std::fs::write(&next, new).with_context(|| format!("cannot write {next:?}"))?;
    std::fs::rename(&next, target).with_context(|| format!("cannot write {target:?}"))?;
    Ok(true)
}

/// Finds a toolchain, else installs one.
pub(crate) fn toolchain(root: &Root) -> anyhow::Result<Toolchain> {
    let mut reasons = Vec::new();
    for name in nightlies() {
        match nightly(&name).and_then(|compiler| with_linker(root, compiler)) {
            Ok(toolchain) => return Ok(toolchain),
            Err(error) => reasons.push(format!("rustup's {name}: {error:#}")),
        }
    }
    match debian(root) {
        Ok(toolchain) => Ok(toolchain),
        Err(error) => {
            reasons.push(format!("Debian's rustc-web: {error:#}"));
            bail!("no compiler for BPF programs:\n  {}", reasons.join("\n  "))
        }
    }
}

/// Names of rustup's nightly toolchains.
fn nightlies() -> Vec<String> {
    let Ok(list) = output(Command::new("rustup").args(["toolchain", "list"])) else {
        return Vec::new();
    };
    list.lines()
        .filter_map(|line| line.split_whitespace().next())
        .filter(|name| name.starts_with("nightly"))
        .map(str::to_owned)
        .collect()
}

fn nightly(name: &str) -> anyhow::Result<Compiler> {
    let rustc = output(Command::new("rustup").args(["which", "--toolchain", name, "rustc"]))?;
    compiler(PathBuf::from(rustc.trim()), format!("rustup's {name}")).with_context(|| {
        format!("not usable (`rustup component add rust-src --toolchain {name}` may help)")
    })
}

/// Debian's compiler, installed if it is not.
fn debian(root: &Root) -> anyhow::Result<Toolchain> {
    let why = "to compile BPF programs";
    shell::apt_install(&["rustc-web", "rust-web-src"], why)?;
    let compiler = compiler(PathBuf::from("/usr/bin/rustc"), "Debian's rustc-web".to_owned())?;
    let llvm = format!("llvm-{}-dev", compiler.llvm_major);
    shell::apt_install(&[&llvm, "libzstd-dev", "zlib1g-dev"], "to build bpf-linker")?;
    with_linker(root, compiler)
}

/// Asks a compiler for its version, and looks for the source of `core` beside it.
fn compiler(rustc: PathBuf, name: String) -> anyhow::Result<Compiler> {
    let version = output(clean_rustc(&rustc).arg("-vV"))?;
    let (release, llvm_major) = parse_version(&version)
        .with_context(|| format!("cannot understand what {rustc:?} -vV says: {version}"))?;
    if release < RUSTC_MINOR_MIN {
        bail!("it is 1.{release}, and we need 1.{RUSTC_MINOR_MIN} or later");
    }
    let sysroot = output(clean_rustc(&rustc).args(["--print", "sysroot"]))?;
    let source = Path::new(sysroot.trim()).join("lib/rustlib/src/rust/library/core/Cargo.toml");
    if !source.is_file() {
        bail!("it has no source of core at {}", source.display());
    }
    Ok(Compiler { rustc, llvm_major, name: format!("{name} 1.{release}, LLVM {llvm_major}") })
}

/// A compiler started without the library path of the one that built us.
fn clean_rustc(rustc: &Path) -> Command {
    let mut command = Command::new(rustc);
    shell::clean(&mut command);
    command.env_remove("RUSTUP_TOOLCHAIN");
    command
}

/// Minor release and LLVM's major version, from `rustc -vV`.
fn parse_version(text: &str) -> Option<(u32, u32)> {
    let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name));
    let minor = field("release: 1.")?.split('.').next()?.parse().ok()?;
    let llvm = field("LLVM version: ")?.split('.').next()?.parse().ok()?;
    Some((minor, llvm))
}

/// Adds the linker, building it when there is none for this LLVM.
fn with_linker(root: &Root, compiler: Compiler) -> anyhow::Result<Toolchain> {
    let major = compiler.llvm_major;
    let tools = tools_dir()?;
    let cargo_home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let cargo_home =
        cargo_home.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cargo")));
    let installed =
        std::iter::once(tools.clone()).chain(cargo_home).find(|dir| linker_matches(dir, major));
    let dir = match installed {
        Some(dir) => dir,
        None => {
            install_linker(root, &tools, major)?;
            tools
        }
    };
    Ok(Toolchain { rustc: compiler.rustc, linker_dir: dir.join("bin"), name: compiler.name })
}

/// Where the tools that we build for ourselves live: beside cargo's caches, not in the target
/// directory, so that a second clone does not build them again.
fn tools_dir() -> anyhow::Result<PathBuf> {
    let cache = std::env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")))
        .context("HOME is not set, so there is no place for bpf-linker")?;
    Ok(cache.join("cilium-rs-tools"))
}

/// Whether cargo installed a bpf-linker for this LLVM there, and it starts (its LLVM is a shared
/// library, which an upgrade may have taken away).
fn linker_matches(dir: &Path, llvm_major: u32) -> bool {
    let Ok(record) = std::fs::read_to_string(dir.join(".crates2.json")) else { return false };
    recorded_linker(&record, llvm_major)
        && output(Command::new(dir.join("bin/bpf-linker")).arg("--version")).is_ok()
}

/// Whether cargo's record of installed crates has our bpf-linker with this LLVM's feature.
fn recorded_linker(record: &str, llvm_major: u32) -> bool {
    let Ok(record) = serde_json::from_str::<serde_json::Value>(record) else { return false };
    let wanted = format!("bpf-linker {LINKER_VERSION} ");
    let feature = format!("llvm-{llvm_major}");
    record["installs"].as_object().is_some_and(|installs| {
        installs.iter().any(|(name, install)| {
            name.starts_with(&wanted)
                && install["features"]
                    .as_array()
                    .is_some_and(|features| features.iter().any(|f| *f == feature.as_str()))
        })
    })
}

fn install_linker(root: &Root, tools: &Path, llvm_major: u32) -> anyhow::Result<()> {
    let prefix = format!("/usr/lib/llvm-{llvm_major}");
    if !Path::new(&prefix).join("bin/llvm-config").is_file() {
        bail!("there is no LLVM {llvm_major} at {prefix} to build bpf-linker with");
    }
    say(format!(
        "building bpf-linker {LINKER_VERSION} for LLVM {llvm_major} into {} (a minute or two)",
        tools.display()
    ));
    run(shell::cargo(root)
        // Outside of the workspace, so that its configuration does not apply.
        .current_dir("/")
        .args(["install", "--quiet", "--locked", "--force", "bpf-linker"])
        .args(["--version", LINKER_VERSION, "--no-default-features"])
        .args(["--features", &format!("llvm-{llvm_major}")])
        .arg("--root")
        .arg(tools)
        .env("LLVM_PREFIX", prefix)
        .env_remove("CARGO_TARGET_DIR"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_is_read_from_what_rustc_says() {
        let text =
            "rustc 1.96.0 (ac68 2026-05-25)\nhost: x\nrelease: 1.96.0\nLLVM version: 22.1.8\n";
        assert_eq!(parse_version(text), Some((96, 22)));
        assert_eq!(parse_version("release: 1.97.0-nightly\nLLVM version: 22.1.8"), Some((97, 22)));
        assert_eq!(parse_version("something else"), None);
    }

    #[test]
    fn a_linker_counts_only_for_its_llvm() {
        let record = r#"{"installs":{"bpf-linker 0.13.0 (registry+x)":{"features":["llvm-22"]}}}"#;
        assert!(recorded_linker(record, 22));
        assert!(!recorded_linker(record, 21));
        assert!(!recorded_linker(&record.replace("0.13.0", "0.12.0"), 22));
        assert!(!recorded_linker("not JSON", 22));
    }

    #[test]
    fn binaries_are_found_among_messages() {
        let messages = "{\"reason\":\"compiler-artifact\",\"executable\":\"/t/cilium\"}\n\
                        {\"reason\":\"compiler-artifact\",\"executable\":null}\nnoise\n";
        assert_eq!(executables(messages), [PathBuf::from("/t/cilium")]);
    }
}
