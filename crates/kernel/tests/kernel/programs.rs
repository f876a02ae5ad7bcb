//! Every program, in every configuration, before the running kernel's verifier.
//!
//! "Every configuration" is: all switches off, all on, each alone on, each alone off, and, but for
//! emulated CPUs, where it would take many minutes, every pair on. For the first of these a line `VERIFIER <configuration> <program> <instructions>
//! <stack>` goes to standard output; `cargo xtask test` keeps the table of them.

use std::path::Path;

use abi::{DatapathConfig, names};
use kernel::datapath::{Datapath, LoadError, LoadOptions, MapSizes};

use crate::fixture::{BPFFS, is_emulated, on_node};

/// What a node can switch on and off.
const SWITCHES: [(&str, fn(&mut DatapathConfig)); 10] = [
    ("ipv4", |config| config.enable_ipv4 = 1),
    ("ipv6", |config| config.enable_ipv6 = 1),
    ("tunnel", |config| {
        config.tunnel = abi::config::TUNNEL_VXLAN;
        config.tunnel_ifindex = 1;
        config.tunnel_port = 8472_u16.to_be_bytes();
    }),
    ("direct", |config| {
        config.direct_ifindex = 1;
        config.direct_mtu = 1500;
    }),
    ("aggregation", |config| config.monitor_aggregation = abi::config::AGGREGATION_MEDIUM),
    ("drop-events", |config| config.drop_events = 1),
    ("trace-events", |config| config.trace_events = 1),
    ("debug-events", |config| config.debug_events = 1),
    ("verdict-events", |config| config.policy_verdict_events = 1),
    ("host-firewall", |config| {
        config.enable_host_firewall = 1;
        config.host_ifindex = 1;
    }),
];
const ALL: u32 = (1 << SWITCHES.len()) - 1;
/// Bytes of stack that the kernel gives a program.
const STACK_MAX: u32 = 512;
/// Half of what the kernel allows, so that what is to come has room; 6.1 needs the most.
const INSTRUCTIONS_MAX: u32 = 500_000;

#[test]
fn every_program_loads_in_every_configuration() {
    const NAME: &str = "every_program_loads_in_every_configuration";
    on_node(NAME, || {
        for set in configurations() {
            let is_shown = set == 0 || set == ALL || set.count_ones() == 1;
            let datapath = match load(set) {
                Err(error @ LoadError::NotBuilt) => {
                    eprintln!("SKIPPED: {NAME}: {error}");
                    return;
                }
                loaded => loaded.unwrap_or_else(|error| panic!("{}: {error}", name(set))),
            };
            let stats = datapath.stats();
            // Without a tunnel there is no tunnel device to attach to.
            let unneeded = if set >> 2 & 1 == 0 { 2 } else { 0 };
            assert_eq!(stats.len(), names::PROGRAMS.len() - unneeded);
            for program in stats {
                let stack = program.stack_bytes;
                let shown = format!("{} {}", name(set), program.name);
                assert!(program.verified_insns < INSTRUCTIONS_MAX, "{shown}");
                assert!(stack <= STACK_MAX, "{shown}: {stack}");
                if is_shown {
                    println!("VERIFIER {shown} {} {stack}", program.verified_insns);
                }
            }
            datapath.remove_old_generations().expect("old generations go");
        }
    });
}

/// What is switched off costs nothing: the kernel drops its code.
#[test]
fn what_is_off_is_not_there() {
    const NAME: &str = "what_is_off_is_not_there";
    on_node(NAME, || {
        let size = |set| {
            let datapath = match load(set) {
                Err(LoadError::NotBuilt) => return None,
                loaded => loaded.expect("loads"),
            };
            let stats = datapath.stats();
            let program = stats.iter().find(|program| program.name == names::FROM_CONTAINER);
            Some(program.expect("from-container").insns)
        };
        let (Some(off), Some(v4), Some(v6), Some(all)) = (size(0), size(1), size(2), size(ALL))
        else {
            eprintln!("SKIPPED: {NAME}: {}", LoadError::NotBuilt);
            return;
        };
        // Both families off leaves the lookup of the device and a drop.
        assert!(off < 200, "{off}");
        assert!(off < v4 && v4 < all && v6 < all, "{off} {v4} {v6} {all}");
    });
}

fn configurations() -> Vec<u32> {
    let mut sets = vec![0, ALL];
    for a in 0..SWITCHES.len() {
        sets.push(1 << a);
        sets.push(ALL & !(1 << a));
        if !is_emulated() {
            sets.extend((0..a).map(|b| 1 << a | 1 << b));
        }
    }
    sets.sort_unstable();
    sets.dedup();
    sets
}

fn name(set: u32) -> String {
    let on = |(i, (name, _)): (usize, &(&'static str, _))| (set >> i & 1 != 0).then_some(*name);
    match set {
        0 => "all-off".to_owned(),
        ALL => "all-on".to_owned(),
        _ => SWITCHES.iter().enumerate().filter_map(on).collect::<Vec<_>>().join("+"),
    }
}

fn load(set: u32) -> Result<Datapath, LoadError> {
    let mut config = DatapathConfig { trace_payload_len: 128, ..DatapathConfig::default() };
    for (i, (_, switch_on)) in SWITCHES.iter().enumerate() {
        if set >> i & 1 != 0 {
            switch_on(&mut config);
        }
    }
    let sizes = MapSizes { ipcache: 1024, ipcache_hosts: 1024, ..MapSizes::default() };
    Datapath::load(&LoadOptions { bpffs: Path::new(BPFFS), config, sizes })
}
