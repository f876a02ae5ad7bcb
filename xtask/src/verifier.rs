//! What the verifier needs for each program: `docs/reference/verifier.md`, kept up to date by
//! `test vm`.
//!
//! The kernel tests load every program in every configuration and print a line for each:
//! `VERIFIER <configuration> <program> <instructions> <stack>`. Here these lines become a table
//! with a column per kernel, and a run whose figures have moved away from the table fails, so that
//! a program that becomes dear is noticed in the change that made it so.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::bail;

use crate::shell::{Root, say};

/// How far instructions may move before the table must be renewed: point releases of a kernel and
/// of the compiler move them a little.
const TOLERANCE_PERCENT: u64 = 15;

/// One program, verified.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Cost {
    pub(crate) program: String,
    pub(crate) configuration: String,
    pub(crate) kernel: String,
    pub(crate) instructions: u64,
    /// Bytes, of the deepest path.
    pub(crate) stack: u64,
}

/// The costs in a test's output.
pub(crate) fn parse(kernel: &str, output: &str) -> Vec<Cost> {
    output
        .lines()
        .filter_map(|line| {
            let mut words = line.trim().strip_prefix("VERIFIER ")?.split_whitespace();
            Some(Cost {
                configuration: words.next()?.to_owned(),
                program: words.next()?.to_owned(),
                instructions: words.next()?.parse().ok()?,
                stack: words.next()?.parse().ok()?,
                kernel: kernel.to_owned(),
            })
        })
        .collect()
}

const TABLE: &str = "docs/reference/verifier.md";

/// Whether the table in the repository has figures of this kernel.
pub(crate) fn knows(root: &Root, kernel: &str) -> bool {
    let text = std::fs::read_to_string(root.join(TABLE)).unwrap_or_default();
    parse_table(&text).iter().any(|cost| cost.kernel == kernel)
}

/// Compares with the table in the repository, or renews it.
pub(crate) fn compare(root: &Root, measured: &[Cost], bless: bool) -> anyhow::Result<()> {
    let path = root.join(TABLE);
    if measured.is_empty() {
        bail!("no program was measured (are there lines `VERIFIER …` in the tests' output?)");
    }
    if bless {
        std::fs::write(&path, table(measured))?;
        say(format!("wrote {}", path.display()));
        return Ok(());
    }
    let known = parse_table(&std::fs::read_to_string(&path).unwrap_or_default());
    let moved = differences(&known, measured);
    if !moved.is_empty() {
        bail!(
            "the verifier's cost has moved (`cargo xtask test vm --bless` renews {}):\n  {}",
            path.display(),
            moved.join("\n  ")
        );
    }
    Ok(())
}

/// What is in one of the two only, or differs by more than the tolerance.
fn differences(known: &[Cost], measured: &[Cost]) -> Vec<String> {
    type Key<'a> = (&'a str, &'a str, &'a str);
    fn index(costs: &[Cost]) -> BTreeMap<Key<'_>, &Cost> {
        costs
            .iter()
            .map(|cost| {
                ((cost.program.as_str(), cost.configuration.as_str(), cost.kernel.as_str()), cost)
            })
            .collect()
    }
    let (known, measured) = (index(known), index(measured));
    let kernels: BTreeSet<&str> = measured.keys().map(|key| key.2).collect();
    let mut moved = Vec::new();
    for (key, cost) in &measured {
        let name = format!("{}, {}, kernel {}", key.0, key.1, key.2);
        match known.get(key) {
            None => moved.push(format!("{name}: not in the table")),
            Some(old) => {
                let limit = old.instructions * TOLERANCE_PERCENT / 100;
                if cost.instructions.abs_diff(old.instructions) > limit || cost.stack != old.stack {
                    moved.push(format!(
                        "{name}: {} instructions and {} bytes of stack, were {} and {}",
                        cost.instructions, cost.stack, old.instructions, old.stack
                    ));
                }
            }
        }
    }
    // A kernel that could not be booted here has been counted as skipped already.
    for key in known.keys().filter(|key| kernels.contains(key.2) && !measured.contains_key(*key)) {
        moved.push(format!("{}, {}, kernel {}: no longer loaded", key.0, key.1, key.2));
    }
    moved
}

const HEADING: &str = "\
# What the verifier needs

Instructions that the kernel's verifier walked through to accept a program, and the bytes of stack of
its deepest path (limits: 1,000,000 and 512), in the configurations that the tests load. Each cell is
`instructions / stack`. `cargo xtask test vm` compares with this table and fails when instructions
move by more than 15 % or the stack at all; `cargo xtask test vm --bless` writes it anew.

";

fn table(costs: &[Cost]) -> String {
    // As numbers, for 6.12 comes after 6.1 and before 6.100.
    let mut kernels: Vec<&str> = costs.iter().map(|cost| cost.kernel.as_str()).collect();
    kernels.sort_by_key(|name| {
        name.split('.').map(|part| part.parse().unwrap_or(0)).collect::<Vec<u32>>()
    });
    kernels.dedup();
    let mut rows: BTreeMap<(&str, &str), BTreeMap<&str, String>> = BTreeMap::new();
    for cost in costs {
        rows.entry((&cost.program, &cost.configuration))
            .or_default()
            .insert(&cost.kernel, format!("{} / {}", cost.instructions, cost.stack));
    }
    let mut text = HEADING.to_owned();
    text += &format!("| program | configuration | {} |\n", kernels.join(" | "));
    text += &format!("|---|---|{}\n", "---:|".repeat(kernels.len()));
    for ((program, configuration), cells) in rows {
        let cells: Vec<&str> =
            kernels.iter().map(|kernel| cells.get(kernel).map_or("-", String::as_str)).collect();
        text += &format!("| `{program}` | {configuration} | {} |\n", cells.join(" | "));
    }
    text
}

fn parse_table(text: &str) -> Vec<Cost> {
    let mut rows = text
        .lines()
        .filter(|line| line.starts_with('|'))
        .map(|line| line.trim_matches('|').split('|').map(str::trim).collect::<Vec<_>>());
    let Some(head) = rows.next() else { return Vec::new() };
    let mut costs = Vec::new();
    for row in rows.skip(1) {
        for (kernel, cell) in head.iter().zip(&row).skip(2) {
            let Some((instructions, stack)) = cell.split_once(" / ") else { continue };
            let (Ok(instructions), Ok(stack)) = (instructions.parse(), stack.parse()) else {
                continue;
            };
            costs.push(Cost {
                program: row[0].trim_matches('`').to_owned(),
                configuration: row[1].to_owned(),
                kernel: (*kernel).to_owned(),
                instructions,
                stack,
            });
        }
    }
    costs
}

#[cfg(test)]
mod tests {
    use super::*;

    const OUTPUT: &str = "noise\nVERIFIER all_on cil_from_container 1000 120\n\
                          VERIFIER all_off cil_from_container 200 64\n";

    #[test]
    fn table_is_read_back_as_written() {
        let mut costs = parse("6.1", OUTPUT);
        costs.extend(parse("6.12", OUTPUT));
        costs.sort();
        let mut read = parse_table(&table(&costs));
        read.sort();
        assert_eq!(read, costs);
    }

    #[test]
    fn small_movements_pass_and_large_ones_are_named() {
        let known = parse("6.1", OUTPUT);
        let near = parse("6.1", &OUTPUT.replace("1000", "1100"));
        assert_eq!(differences(&known, &near), Vec::<String>::new());
        let far = parse("6.1", &OUTPUT.replace("1000", "1200"));
        assert_eq!(differences(&known, &far).len(), 1);
        let stack = parse("6.1", &OUTPUT.replace("120", "128"));
        assert_eq!(differences(&known, &stack).len(), 1);
    }

    #[test]
    fn programs_that_come_or_go_are_named_but_missing_kernels_are_not() {
        let known = parse("6.1", OUTPUT);
        assert_eq!(differences(&known[..1], &known).len(), 1);
        assert_eq!(differences(&known, &known[..1]).len(), 1);
        assert_eq!(differences(&known, &[]), Vec::<String>::new());
    }
}
