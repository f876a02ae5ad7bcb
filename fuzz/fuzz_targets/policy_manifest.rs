//! Any manifest through the policy languages and the engine: `cargo +nightly fuzz run policy_manifest`.

#![no_main]

#[path = "../../crates/policy/tests/any_manifest/mod.rs"]
mod any_manifest;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    any_manifest::run(bytes);
});
