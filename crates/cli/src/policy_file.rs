//! `cilium policy validate`: policies in files, checked as the agent checks them.

use std::fmt::Write as _;
use std::path::PathBuf;

use anyhow::{Result, bail};
use api::policy::{Context, read_manifest};
use ipnet::IpNet;
use serde::Serialize;
use serde_json::Value;

use crate::args::Format;
use crate::output::{Outcome, Style, encode, print};

/// Where a policy of a namespace is that names none, as for kubectl.
const NAMESPACE_DEFAULT: &str = "default";
/// Kinds that are policies.
const KINDS: [&str; 4] = [
    "CiliumNetworkPolicy",
    "CiliumClusterwideNetworkPolicy",
    "NetworkPolicy",
    "ClusterNetworkPolicy",
];

/// What is to be said of one object.
#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
struct Checked {
    file: String,
    kind: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    namespace: String,
    name: String,
    valid: bool,
    errors: Vec<String>,
    not_enforced: Vec<String>,
}

pub(crate) fn validate(files: &[PathBuf], output: Option<Format>) -> Result<Outcome> {
    let mut all = Vec::new();
    for file in files {
        let objects = lab::command::read_manifests(std::slice::from_ref(file))?;
        let name = file.display().to_string();
        all.extend(objects.iter().filter_map(|object| check(&name, object)));
    }
    if all.is_empty() {
        bail!("no policy is in these files; policies are {}", KINDS.join(", "));
    }
    match output {
        Some(format) => print(&encode(&all, format)?)?,
        None => print(&render(&all, Style::of_stdout()))?,
    }
    let is_good = all.iter().all(|checked| checked.valid);
    Ok(if is_good { Outcome::Complete } else { Outcome::Partial })
}

/// Checks an object; `None` is one that is no policy.
fn check(file: &str, object: &Value) -> Option<Checked> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let kind = text(&object["kind"]);
    let (errors, not_enforced) = match kind.as_str() {
        "CiliumCIDRGroup" => (check_group(object), Vec::new()),
        known if KINDS.contains(&known) => {
            match read_manifest(object, NAMESPACE_DEFAULT, &Context::default()) {
                Ok(accepted) => {
                    (Vec::new(), accepted.notes.iter().map(ToString::to_string).collect())
                }
                Err(refused) => {
                    (refused.errors.iter().map(ToString::to_string).collect(), Vec::new())
                }
            }
        }
        _ => return None,
    };
    Some(Checked {
        file: file.to_owned(),
        kind,
        namespace: text(&object["metadata"]["namespace"]),
        name: text(&object["metadata"]["name"]),
        valid: errors.is_empty(),
        errors,
        not_enforced,
    })
}

fn check_group(object: &Value) -> Vec<String> {
    let Some(nets) = object["spec"]["externalCIDRs"].as_array() else {
        return vec!["spec.externalCIDRs: must be a list of prefixes".to_owned()];
    };
    let is_bad = |(index, net): (usize, &Value)| {
        let parsed = net.as_str().and_then(|net| net.parse::<IpNet>().ok());
        parsed.is_none().then(|| {
            format!("spec.externalCIDRs[{index}]: {net} is no prefix; write it as 10.0.0.0/8")
        })
    };
    nets.iter().enumerate().filter_map(is_bad).collect()
}

fn render(all: &[Checked], style: Style) -> String {
    let mut text = String::new();
    for checked in all {
        let Checked { file, kind, namespace, name, .. } = checked;
        let place = if namespace.is_empty() { name.clone() } else { format!("{namespace}/{name}") };
        let word = if checked.valid { style.good("valid") } else { style.bad("refused") };
        let _ = writeln!(text, "{file}: {kind} {place}: {word}");
        for line in checked.errors.iter().chain(&checked.not_enforced) {
            let _ = writeln!(text, "  {line}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;
    use serde_json::json;

    #[test]
    fn objects_are_checked() {
        let policy = |kind: &str, port: Value| {
            json!({
                "apiVersion": "cilium.io/v2", "kind": kind, "metadata": {"name": "db"},
                "spec": {"endpointSelector": {}, "ingress": [{"toPorts": [{"ports": [
                    {"port": port, "protocol": "TCP"},
                ]}]}]},
            })
        };
        let group = json!({
            "apiVersion": "cilium.io/v2", "kind": "CiliumCIDRGroup", "metadata": {"name": "all"},
            "spec": {"externalCIDRs": ["10.0.0.0/8", "10.0.0"]},
        });
        let objects = [
            policy("CiliumNetworkPolicy", "80".into()),
            policy("CiliumClusterwideNetworkPolicy", "70000".into()),
            group,
            json!({"kind": "Pod"}),
        ];
        let checked: Vec<Checked> =
            objects.iter().filter_map(|object| check("p.yaml", object)).collect();
        expect![[r#"
            p.yaml: CiliumNetworkPolicy db: valid
            p.yaml: CiliumClusterwideNetworkPolicy db: refused
              spec.ingress[0].toPorts[0].ports[0].port: 70000 is not in the range 0 to 65535
            p.yaml: CiliumCIDRGroup all: refused
              spec.externalCIDRs[1]: "10.0.0" is no prefix; write it as 10.0.0.0/8
        "#]]
        .assert_eq(&render(&checked, Style::PLAIN));
    }
}
