//! Tests against the running kernel. They need root and touch nothing outside namespaces of their
//! own.
//!
//! ```text
//!   cargo xtask build-bpf && cargo test -p kernel --test kernel
//! ```

mod differential;
mod events;
mod fixture;
mod flood;
mod harness;
mod loader;
mod maps;
mod netlink;
mod netns;
mod programs;
