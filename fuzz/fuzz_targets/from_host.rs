//! Any packets on any node through `cil_from_host`: `cargo +nightly fuzz run from_host`.

#![no_main]

use abi::event::HookId;
use datapath::host::harness;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| harness::run(HookId::FromHost, bytes));
