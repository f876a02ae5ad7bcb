//! Any packets under any policies, judged by a slow reference: `cargo +nightly fuzz run policy`.

#![no_main]

use datapath::host::harness;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| harness::run_judged(bytes));
