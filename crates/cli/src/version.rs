//! `cilium version`: this program's version and those of the agents.

use anyhow::Result;
use api::rest::{StatusResponse, path};
use serde_json::{Value, json};

use crate::args::Ask;
use crate::nodes::Nodes;
use crate::output::{Outcome, encode, print};

/// This program's version. The system is built as one, so an agent of the same build has the same.
pub(crate) const CLIENT: &str = env!("CARGO_PKG_VERSION");

pub(crate) fn run(ask: &Ask) -> Result<Outcome> {
    // An agent that does not answer must not keep this program from telling its own version.
    let nodes = Nodes::select(&ask.whom).map(|nodes| nodes.all).unwrap_or_default();
    let mut daemons = Vec::new();
    for node in &nodes {
        let status = node.client().get_with::<StatusResponse>(path::HEALTHZ, &[("brief", "true")]);
        let version = match status {
            Ok(status) => first_word(&status.cilium.msg),
            Err(error) => format!("unknown ({error})"),
        };
        daemons.push((node.name.clone(), version));
    }
    print(&match ask.output {
        Some(format) => encode(&as_value(&daemons), format)?,
        None => as_text(&daemons),
    })?;
    Ok(Outcome::Complete)
}

/// The agent's message begins with its version.
fn first_word(text: &str) -> String {
    let is_end = |c: char| c == ',' || c.is_whitespace();
    text.split(is_end).next().filter(|word| !word.is_empty()).unwrap_or("unknown").to_owned()
}

fn as_value(daemons: &[(Option<String>, String)]) -> Value {
    let client = json!({ "Version": CLIENT });
    match daemons {
        [] => json!({ "Client": client }),
        [(None, version)] => json!({ "Client": client, "Daemon": { "Version": version } }),
        many => {
            let by_node: serde_json::Map<String, Value> = many
                .iter()
                .map(|(name, version)| {
                    (name.clone().unwrap_or_default(), json!({ "Version": version }))
                })
                .collect();
            json!({ "Client": client, "Daemons": by_node })
        }
    }
}

fn as_text(daemons: &[(Option<String>, String)]) -> String {
    let mut text = format!("Client: {CLIENT}\n");
    for (name, version) in daemons {
        let name = name.as_ref().map(|name| format!(" ({name})")).unwrap_or_default();
        text += &format!("Daemon: {version}{name}\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_the_first_word() {
        for (text, expected) in
            [("0.1.0", "0.1.0"), ("0.1.0, in trouble: x", "0.1.0"), ("", "unknown")]
        {
            assert_eq!(first_word(text), expected);
        }
    }
}
