//! Results as text: on the terminal after a run, and in `docs/reference/performance.md`.

use std::fmt::Write as _;

use anyhow::Context;
use serde_json::Value;

use crate::shell::{Root, say};

const RECORD: &str = "docs/reference/performance.md";

const HEADING: &str = "\
# What we reached

Results of `cargo xtask bench --bless`, misses too. Each figure is the median of the repetitions with the least and the
greatest; a ratio is one of medians, to the baseline of the same run. What a limit is held against is in the same
run as well. Figures of another machine differ; ratios differ less.
";

/// Writes the last results of all benchmarks into the record.
pub(super) fn write(root: &Root, names: &[&str]) -> anyhow::Result<()> {
    let mut text = HEADING.to_owned();
    for name in names {
        let path = root.target().join(format!("bench/{name}.json"));
        let Ok(json) = std::fs::read_to_string(&path) else {
            say(format!("no result of {name}: {RECORD} will lack it"));
            continue;
        };
        let report = serde_json::from_str(&json)
            .with_context(|| format!("cannot understand {}", path.display()))?;
        text.push('\n');
        text.push_str(&markdown(&report));
    }
    std::fs::write(root.join(RECORD), text).with_context(|| format!("cannot write {RECORD}"))?;
    say(format!("wrote {RECORD}"));
    Ok(())
}

/// One benchmark's report.
pub(super) fn markdown(report: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let mut out = format!("## {}\n\n", text(&report["name"]));
    let _ = writeln!(
        out,
        "{}, {} CPUs, load average {} before the run. {}\n",
        text(&report["kernel"]),
        report["cpus"],
        report["load"].as_str().unwrap_or("not noted"),
        text(&report["method"])
    );
    for limit in list(&report["limits"]) {
        let verdict = if limit["reached"] == true { "reached" } else { "**missed**" };
        let _ = writeln!(out, "- {verdict}: {}", text(&limit["limit"]));
    }
    out.push_str("\n| metric | variant | median | min | max | n | ratio |\n|---|---|---:|---:|---:|---:|---:|\n");
    for row in list(&report["rows"]) {
        let number = |value: &Value| value.as_f64().map_or_else(String::new, |v| format!("{v:.2}"));
        let ratio = row["ratio"].as_f64().map_or_else(String::new, |ratio| format!("{ratio:.3}"));
        let _ = writeln!(
            out,
            "| {} | {} | {} | {} | {} | {} | {ratio} |",
            text(&row["metric"]),
            text(&row["variant"]),
            number(&row["median"]),
            number(&row["min"]),
            number(&row["max"]),
            list(&row["values"]).len(),
        );
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn report_is_a_table_with_its_limits() {
        let report = serde_json::json!({
            "name": "x", "kernel": "Linux 6.18", "cpus": 2, "method": "By hand.",
            "limits": [{"limit": "rr: 0.9 (at most 0.92)", "reached": true}, {"limit": "y", "reached": false}],
            "rows": [{"metric": "rr", "variant": "ours", "median": 1.0, "min": 0.5, "max": 2.25,
                "values": [1.0, 0.5, 2.25], "ratio": 0.9}],
        });
        let text = markdown(&report);
        assert!(text.contains("- reached: rr: 0.9 (at most 0.92)\n- **missed**: y\n"), "{text}");
        assert!(text.contains("| rr | ours | 1.00 | 0.50 | 2.25 | 3 | 0.900 |"), "{text}");
    }
}
