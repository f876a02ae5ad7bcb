//! Any packets on any node through `cil_from_netdev`: `cargo +nightly fuzz run from_netdev`.

#![no_main]

use abi::event::HookId;
use datapath::host::harness;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| harness::run(HookId::FromNetdev, bytes));
