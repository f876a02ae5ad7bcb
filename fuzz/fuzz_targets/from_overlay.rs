//! Any packets on any node through `cil_from_overlay`: `cargo +nightly fuzz run from_overlay`.

#![no_main]

use abi::event::HookId;
use datapath::host::harness;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| harness::run(HookId::FromOverlay, bytes));
