//! The reference page of the options, made from their definitions.

use std::fmt::Write;

use super::unsupported::ALL;
use super::{DEFINITIONS, Definition, Program};

const HEAD: &str = "\
# Configuration

<!-- Made from the definitions in crates/api/src/config by its tests: UPDATE_EXPECT=1 cargo test -p api -->

`cilium-agent` and `cilium-operator` take their options from, in this order,

1. the command line: `--key=value`, `--key value`, and `--key` alone for what is `true` or `false`;
2. the environment: `CILIUM_` and the key in upper snake case, as in `CILIUM_ENABLE_IPV4`;
3. a file named like the key in the directory `--config-dir`: the mounted ConfigMap `cilium-config`;
4. the default.

Lists are separated by blanks or commas.

## Supported options

| Key | Program | Value | Default | Meaning |
|---|---|---|---|---|
";

const UNSUPPORTED: &str = "
## Known options that are not supported yet

A ConfigMap that was made for Cilium may hold any of these. A value that leaves the feature off, or that
Cilium or its Helm chart has as default, is accepted with a warning and has no effect. Any other value is
refused: the program ends with an error that names the key, the value and what to write instead.

| Key | Feature | Accepted |
|---|---|---|
";

const UNKNOWN: &str = "
## Unknown options

A key that is in neither table is ignored with a warning where it comes from the directory, and is an error
on the command line. Environment variables that name no known option are ignored.
";

/// The text of `docs/reference/configuration.md`.
pub fn reference() -> String {
    let mut text = HEAD.to_owned();
    for Definition { key, default, help, kind, programs, .. } in DEFINITIONS {
        let program = match programs {
            [Program::Agent] => "agent",
            [Program::Operator] => "operator",
            _ => "both",
        };
        let default = if default.is_empty() { String::new() } else { format!("`{default}`") };
        let row = writeln!(text, "| `{key}` | {program} | {kind} | {default} | {help} |");
        row.expect("a String takes all");
    }
    text.push_str(UNSUPPORTED);
    for option in ALL {
        let accepted = match option.accepted() {
            None => "any value".to_owned(),
            Some(values) => {
                let word = |value: &&str| match *value {
                    "" => "empty".to_owned(),
                    value => format!("`{value}`"),
                };
                values.iter().map(word).collect::<Vec<_>>().join(", ")
            }
        };
        let row = writeln!(text, "| `{}` | {} | {accepted} |", option.key, option.feature);
        row.expect("a String takes all");
    }
    text.push_str(UNKNOWN);
    text
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_page_is_fresh() {
        expect_test::expect_file!["../../../../docs/reference/configuration.md"]
            .assert_eq(&super::reference());
    }
}
