//! Embeds the BPF programs.
//!
//! They are built by another compiler for another target (`cargo xtask build-bpf`), so all that
//! happens here is a copy. Without them the crate still builds, and loading says what is missing.

use std::{
    env, fs, io,
    path::{Path, PathBuf},
};

fn main() -> io::Result<()> {
    println!("cargo::rerun-if-env-changed=CILIUM_BPF_OBJECT");
    let object = match env::var_os("CILIUM_BPF_OBJECT") {
        Some(path) => PathBuf::from(path),
        None => variable("CARGO_MANIFEST_DIR")?.join("../../target/bpf/cilium.bpf.o"),
    };
    println!("cargo::rerun-if-changed={}", object.display());
    let target = variable("OUT_DIR")?.join("cilium.bpf.o");
    embed(&object, &target)
}

fn embed(object: &Path, target: &Path) -> io::Result<()> {
    match fs::read(object) {
        Ok(bytes) => fs::write(target, bytes),
        Err(error) if error.kind() == io::ErrorKind::NotFound => fs::write(target, []),
        Err(error) => Err(error),
    }
}

fn variable(name: &str) -> io::Result<PathBuf> {
    let missing = || io::Error::new(io::ErrorKind::NotFound, format!("cargo did not set {name}"));
    env::var_os(name).map(PathBuf::from).ok_or_else(missing)
}
