//! How long a node takes to load its programs: `cargo xtask bench load` runs it and makes the table.
//!
//! Loads everything into a BPF file system of its own, several times: first with maps to be made,
//! then once more as an agent does that starts again. Prints a line for each figure:
//! `BENCH <metric>|<variant>|<value>`.

use std::path::Path;
use std::time::Duration;

use kernel::bpffs;
use kernel::datapath::{Datapath, LoadOptions, MapSizes};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let repetitions = std::env::args().nth(1).map_or(Ok(9), |text| text.parse())?;
    for _ in 0..repetitions {
        let dir = std::env::temp_dir().join(format!("bench-load-{}", std::process::id()));
        std::fs::create_dir_all(&dir)?;
        bpffs::mount(&dir)?;
        let result = measure(&dir);
        nix::mount::umount(&dir)?;
        std::fs::remove_dir(&dir)?;
        result?;
    }
    Ok(())
}

fn measure(bpffs: &Path) -> Result<(), Box<dyn std::error::Error>> {
    let options = LoadOptions {
        bpffs,
        config: abi::DatapathConfig {
            // Any number will do: it is a constant that is not 0, so the tunnel's code stays in.
            tunnel_ifindex: 1,
            host_ifindex: 2,
            tunnel: abi::config::TUNNEL_VXLAN,
            enable_ipv4: 1,
            enable_ipv6: 1,
            drop_events: 1,
            trace_events: 1,
            ..abi::DatapathConfig::default()
        },
        sizes: MapSizes::default(),
    };
    for variant in ["first start, maps are made", "next start, maps are adopted"] {
        let datapath = Datapath::load(&options)?;
        print("all programs and maps, ms", variant, datapath.load_duration());
        if variant.starts_with("first") {
            let stats = datapath.stats();
            for program in &stats {
                print(&format!("{}, ms", program.name), "one program", program.load_duration);
            }
            print("programs, ms", "sum", stats.iter().map(|program| program.load_duration).sum());
        }
    }
    Ok(())
}

fn print(metric: &str, variant: &str, took: Duration) {
    println!("BENCH {metric}|{variant}|{:.3}", took.as_secs_f64() * 1e3);
}
