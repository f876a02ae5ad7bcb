//! `cilium policy …` and `cilium endpoint config`: which policies there are, whom they select, and
//! why a packet passes or does not. The agent answers; this prints.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use api::rest::{
    EndpointConfigurationSpec, EndpointConfigurationStatus, EndpointRef, Identity, Policy,
    PolicyElement, SelectorIdentities, TracePeer, TraceRequest, TraceResponse, TraceStep, path,
};
use serde_json::Value;

use crate::args::{self, Ask, Destination, Source, Trace, Whom};
use crate::list::labels;
use crate::nodes::{Node, Nodes};
use crate::output::{Outcome, Report, Style, Table, encode, explain, print};
use crate::policy_file;

/// Between two looks at an agent's revision: what an agent takes to enforce a change is less.
const WAIT_INTERVAL: Duration = Duration::from_millis(50);

pub(crate) fn run(command: &args::Policy) -> Result<Outcome> {
    match command {
        args::Policy::List(ask) => Report::new(ask)?.each(fetch, render_list),
        args::Policy::Get(ask) => Report::new(ask)?.each(fetch, render_rules),
        args::Policy::Selectors(ask) => {
            Report::new(ask)?.each(selectors, |list| render_selectors(list))
        }
        args::Policy::Validate { files, output } => policy_file::validate(files, *output),
        args::Policy::Wait { revision, max_wait_time, whom } => {
            wait(whom, *revision, *max_wait_time)
        }
        args::Policy::Trace(question) => trace(question),
    }
}

// ---------------------------------------------------------------------------------------------
// Policies

fn fetch(node: &Node) -> Result<Policy> {
    let mut policy: Policy = node.client().get(path::POLICY)?;
    let order = |element: &PolicyElement| {
        (element.kind.clone(), element.namespace.clone(), element.name.clone())
    };
    policy.policies.sort_by_key(order);
    Ok(policy)
}

fn render_list(policy: &Policy) -> String {
    let mut table = Table::new(&["KIND", "NAMESPACE", "NAME", "RULES", "ENDPOINTS", "STATUS"]);
    for element in &policy.policies {
        let endpoints: Vec<String> = element.endpoints.iter().map(i64::to_string).collect();
        table.row(vec![
            element.kind.clone(),
            element.namespace.clone(),
            element.name.clone(),
            element.rules.to_string(),
            if endpoints.is_empty() { "-".to_owned() } else { endpoints.join(",") },
            status(element),
        ]);
    }
    format!("{table}{}", render_revision(policy))
}

fn render_revision(policy: &Policy) -> String {
    let Policy { revision, realized_revision, .. } = policy;
    match realized_revision >= revision {
        true => format!("Revision: {revision}\n"),
        false => format!("Revision: {revision} (enforced so far: {realized_revision})\n"),
    }
}

/// Whether the newest version of a policy is in force, and all of it.
fn status(element: &PolicyElement) -> String {
    let refused = element.errors.iter().map(|error| format!("refused: {error}"));
    let missing = element.not_enforced.iter().map(|part| format!("not enforced: {part}"));
    let lines: Vec<String> = refused.chain(missing).collect();
    if lines.is_empty() { "valid".to_owned() } else { lines.join("\n") }
}

/// The rules as Cilium prints them, and the revision.
fn render_rules(policy: &Policy) -> String {
    let rules = match serde_json::from_str::<Value>(&policy.policy) {
        Ok(rules) => serde_json::to_string_pretty(&rules).unwrap_or_default(),
        // Whatever it is, it is what there is to see.
        Err(_) => policy.policy.clone(),
    };
    format!("{rules}\n{}", render_revision(policy))
}

fn selectors(node: &Node) -> Result<Vec<SelectorIdentities>> {
    let mut selectors: Vec<SelectorIdentities> = node.client().get(path::POLICY_SELECTORS)?;
    selectors.sort_by(|a, b| a.selector.cmp(&b.selector));
    Ok(selectors)
}

fn render_selectors(selectors: &[SelectorIdentities]) -> String {
    let mut table = Table::new(&["SELECTOR", "LABELS", "USERS", "IDENTITIES"]);
    for selector in selectors {
        let identities: Vec<String> = selector.identities.iter().map(i64::to_string).collect();
        table.row(vec![
            selector.selector.clone(),
            selector.labels.join("\n"),
            selector.users.to_string(),
            identities.join("\n"),
        ]);
    }
    table.to_string()
}

fn wait(whom: &Whom, revision: i64, patience: Duration) -> Result<Outcome> {
    let nodes = Nodes::select(whom)?;
    let began = Instant::now();
    for node in &nodes.all {
        loop {
            let policy = fetch(node).map_err(explain)?;
            if policy.realized_revision >= revision {
                break;
            }
            if began.elapsed() >= patience {
                bail!(
                    "{}: endpoints enforce revision {} after {} s, not {revision}; the newest is {}",
                    node.label(),
                    policy.realized_revision,
                    patience.as_secs(),
                    policy.revision
                );
            }
            std::thread::sleep(WAIT_INTERVAL);
        }
    }
    Ok(Outcome::Complete)
}

// ---------------------------------------------------------------------------------------------
// Trace

fn trace(question: &Trace) -> Result<Outcome> {
    let request = TraceRequest {
        source: peer_of_source(&question.source),
        destination: peer_of_destination(&question.destination),
        dports: question.dports.iter().flat_map(|dports| dports.0.clone()).collect(),
        policies: lab::command::read_manifests(&question.policies)?,
    };
    let report = Report::new(&question.ask)?;
    let answer = ask_all(&report.nodes, &request)?;
    match report.output {
        Some(format) => print(&encode(&answer, format)?)?,
        None => print(&render_trace(&answer, Style::of_stdout()))?,
    }
    Ok(Outcome::Complete)
}

/// Every agent knows all policies, but only the maps of its own endpoints: the first answer, with
/// what the others say of maps.
fn ask_all(nodes: &Nodes, request: &TraceRequest) -> Result<TraceResponse> {
    let mut answer: Option<TraceResponse> = None;
    let mut failed = None;
    for node in &nodes.all {
        match node.client().post_with::<TraceResponse>(path::POLICY_TRACE, request) {
            Ok(other) => match &mut answer {
                Some(answer) => add_maps(answer, &other),
                None => answer = Some(other),
            },
            Err(error) => failed = failed.or(Some(error)),
        }
    }
    match (answer, failed) {
        (Some(answer), _) => Ok(answer),
        (None, Some(error)) => Err(explain(error.into())),
        (None, None) => bail!("there is no agent to ask"),
    }
}

fn add_maps(answer: &mut TraceResponse, other: &TraceResponse) {
    let steps = answer.ports.iter_mut().flat_map(|port| &mut port.steps);
    let others = other.ports.iter().flat_map(|port| &port.steps);
    for (step, other) in steps.zip(others) {
        if step.maps.is_empty() && step.direction == other.direction {
            step.maps.clone_from(&other.maps);
        }
    }
}

fn peer_of_source(source: &Source) -> TracePeer {
    let Source { src_pod, src_endpoint, src_identity, src_ip, src_labels } = source;
    TracePeer {
        pod: src_pod.as_ref().map(ToString::to_string).unwrap_or_default(),
        endpoint: src_endpoint.unwrap_or_default(),
        identity: src_identity.map(|id| id.to_string()).unwrap_or_default(),
        address: src_ip.map(|address| address.to_string()).unwrap_or_default(),
        labels: src_labels.clone().unwrap_or_default(),
    }
}

fn peer_of_destination(destination: &Destination) -> TracePeer {
    let Destination { dst_pod, dst_endpoint, dst_identity, dst_ip, dst_labels } = destination;
    TracePeer {
        pod: dst_pod.as_ref().map(ToString::to_string).unwrap_or_default(),
        endpoint: dst_endpoint.unwrap_or_default(),
        identity: dst_identity.map(|id| id.to_string()).unwrap_or_default(),
        address: dst_ip.map(|address| address.to_string()).unwrap_or_default(),
        labels: dst_labels.clone().unwrap_or_default(),
    }
}

fn render_trace(answer: &TraceResponse, style: Style) -> String {
    let mut text = String::new();
    for (end, identity) in [("From:", &answer.source), ("To:", &answer.destination)] {
        let _ = writeln!(text, "{end:5} {}", render_identity(identity));
    }
    for port in &answer.ports {
        let dport = if port.dport.is_empty() { "any port" } else { &port.dport };
        let verdict = painted(&port.verdict, style);
        let _ = writeln!(text, "\n{}: {verdict}", style.bold(dport));
        for step in &port.steps {
            text += &render_step(step, style);
        }
    }
    text
}

/// An identity without the labels that say which cluster and namespace this is at length.
fn render_identity(identity: &Identity) -> String {
    let labels = labels(&identity.labels);
    let labels: Vec<&str> =
        labels.lines().filter(|label| !label.contains("io.cilium.k8s.")).collect();
    format!("identity {} ({})", identity.id, labels.join(", "))
}

/// What one side's policy says, and a rule that would let the packet pass where none does.
fn render_step(step: &TraceStep, style: Style) -> String {
    let mut text = String::new();
    for line in step.words.lines() {
        let _ = writeln!(text, "  {line}");
    }
    if !step.maps.is_empty() && step.maps != step.verdict {
        let warning = format!("the datapath's maps say now: {}", step.maps);
        let _ = writeln!(text, "    {}", style.warning(warning));
    }
    if let Some(suggestion) = step.explanation["outcome"]["suggestion"].as_str() {
        text += "    this policy would allow it:\n\n";
        for line in suggestion.lines() {
            let _ = writeln!(text, "      {line}");
        }
        text += "\n";
    }
    text
}

fn painted(verdict: &str, style: Style) -> String {
    match verdict {
        "allowed" => style.good(verdict),
        _ => style.bad(verdict),
    }
}

// ---------------------------------------------------------------------------------------------
// Options of an endpoint

pub(crate) fn configure(
    ask: &Ask,
    id: &EndpointRef,
    options: &[(String, String)],
) -> Result<Outcome> {
    let report = Report::new(ask)?;
    let node = owner(&report.nodes, id)?;
    let path = path::endpoint_config(id);
    if !options.is_empty() {
        let spec = EndpointConfigurationSpec {
            options: options.iter().cloned().collect(),
            ..EndpointConfigurationSpec::default()
        };
        node.client().patch::<Value>(&path, &spec).map_err(|error| explain(error.into()))?;
    }
    let status: EndpointConfigurationStatus =
        node.client().get(&path).map_err(|error| explain(error.into()))?;
    match report.output {
        Some(format) => print(&encode(&status, format)?)?,
        None => print(&render_options(&status))?,
    }
    Ok(Outcome::Complete)
}

/// The node whose agent has this endpoint. A number may mean an endpoint of every node.
fn owner<'a>(nodes: &'a Nodes, id: &EndpointRef) -> Result<&'a Node> {
    let mut owners = Vec::new();
    let mut failed = None;
    for node in &nodes.all {
        match node.client().get::<Value>(&path::endpoint(id)) {
            Ok(_) => owners.push(node),
            Err(error) if error.status() == Some(404) => {}
            Err(error) => failed = Some(error),
        }
    }
    let list = |nodes: &[&Node]| nodes.iter().map(|n| n.label()).collect::<Vec<_>>().join(", ");
    match (owners.as_slice(), failed) {
        ([only], _) => Ok(only),
        ([], Some(error)) => Err(explain(error.into())),
        ([], None) => {
            let all: Vec<&Node> = nodes.all.iter().collect();
            bail!("there is no endpoint {id} on {}", list(&all))
        }
        (many, _) => bail!("{} each have an endpoint {id}; choose one with --node", list(many)),
    }
}

fn render_options(status: &EndpointConfigurationStatus) -> String {
    let mut table = Table::new(&["OPTION", "VALUE"]);
    let all: BTreeMap<_, _> = status.realized.options.iter().chain(&status.immutable).collect();
    for (option, value) in all {
        table.row(vec![option.clone(), value.clone()]);
    }
    table.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use api::rest::TracePort;
    use expect_test::expect;
    use serde_json::json;

    #[test]
    fn policies_are_listed_with_what_is_wrong() {
        let policy: Policy = serde_json::from_value(json!({
            "revision": 7, "realized-revision": 6,
            "policies": [
                {"kind": "CiliumNetworkPolicy", "namespace": "shop", "name": "db", "rules": 2, "endpoints": [5, 17]},
                {"kind": "CiliumNetworkPolicy", "namespace": "shop", "name": "web", "rules": 1,
                 "errors": ["spec.ingress[0].toPorts[0].ports[0].port: 70000 is no port"],
                 "not-enforced": ["spec.egress[0].toFQDNs: names"]},
                {"kind": "NetworkPolicy", "namespace": "shop", "name": "all", "rules": 1},
            ],
        }))
        .unwrap();
        expect![[r"
            KIND                  NAMESPACE   NAME   RULES   ENDPOINTS   STATUS
            CiliumNetworkPolicy   shop        db     2       5,17        valid
            CiliumNetworkPolicy   shop        web    1       -           refused: spec.ingress[0].toPorts[0].ports[0].port: 70000 is no port
                                                                         not enforced: spec.egress[0].toFQDNs: names
            NetworkPolicy         shop        all    1       -           valid
            Revision: 7 (enforced so far: 6)
        "]]
        .assert_eq(&render_list(&policy));
    }

    #[test]
    fn rules_and_selectors() {
        let policy = Policy {
            revision: 3,
            realized_revision: 3,
            policy: "[{\"a\":1}]".to_owned(),
            ..Policy::default()
        };
        expect![[r#"
            [
              {
                "a": 1
              }
            ]
            Revision: 3
        "#]]
        .assert_eq(&render_rules(&policy));
        let selectors = [SelectorIdentities {
            selector: "k8s:app=web".to_owned(),
            labels: vec!["CiliumNetworkPolicy shop/db".to_owned()],
            identities: vec![256, 257],
            users: 1,
        }];
        expect![[r"
            SELECTOR      LABELS                        USERS   IDENTITIES
            k8s:app=web   CiliumNetworkPolicy shop/db   1       256
                                                                257
        "]]
        .assert_eq(&render_selectors(&selectors));
    }

    fn step(direction: &str, verdict: &str, words: &str, maps: &str) -> TraceStep {
        TraceStep {
            direction: direction.to_owned(),
            verdict: verdict.to_owned(),
            words: words.to_owned(),
            maps: maps.to_owned(),
            ..TraceStep::default()
        }
    }

    fn answer(steps: Vec<TraceStep>) -> TraceResponse {
        let identity = |id, label: &str| Identity {
            id: model::IdentityId(id),
            labels: vec!["k8s:io.kubernetes.pod.namespace=shop".to_owned(), label.to_owned()],
            ..Identity::default()
        };
        let verdict = "denied".to_owned();
        TraceResponse {
            source: identity(256, "k8s:app=web"),
            destination: identity(257, "k8s:app=db"),
            ports: vec![TracePort { dport: "80/TCP".to_owned(), verdict, steps }],
        }
    }

    #[test]
    fn traces() {
        let mut at_source = answer(vec![
            step("egress", "allowed", "egress allowed: no policy is enforced", "allowed"),
            step("ingress", "denied", "ingress denied by default", ""),
        ]);
        at_source.ports[0].steps[1].explanation =
            json!({"outcome": {"kind": "default-deny", "suggestion": "kind: X\nspec: {}\n"}});
        let at_target = answer(vec![
            step("egress", "allowed", "egress allowed: no policy is enforced", ""),
            step("ingress", "denied", "ingress denied by default", "allowed"),
        ]);
        add_maps(&mut at_source, &at_target);
        expect![[r"
            From: identity 256 (k8s:app=web, k8s:io.kubernetes.pod.namespace=shop)
            To:   identity 257 (k8s:app=db, k8s:io.kubernetes.pod.namespace=shop)

            80/TCP: denied
              egress allowed: no policy is enforced
              ingress denied by default
                the datapath's maps say now: allowed
                this policy would allow it:

                  kind: X
                  spec: {}

        "]]
        .assert_eq(&render_trace(&at_source, Style::PLAIN));
    }
}
