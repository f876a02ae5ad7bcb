//! Any packets on any node through `cil_to_netdev`: `cargo +nightly fuzz run to_netdev`.

#![no_main]

use abi::event::HookId;
use datapath::host::harness;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| harness::run(HookId::ToNetdev, bytes));
