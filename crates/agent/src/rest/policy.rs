//! `/policy`, and the options of endpoints: what the node enforces, and why.
//!
//! Explanations are computed by the engine that fills the maps. Beside them stands what the maps hold of
//! an endpoint of this node, so that a difference would show.

use std::net::IpAddr;
use std::sync::Arc;

use api::rest::{
    CookieRules, EndpointConfigurationSpec, EndpointConfigurationStatus, EndpointRef, ExplainQuery,
    ExplainResponse, Identity as ApiIdentity, Policy as ApiPolicy, PolicyElement,
    SelectorIdentities, TracePeer, TracePort, TraceRequest, TraceResponse, TraceStep,
};
use axum::Json;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use ipnet::IpNet;
use model::{EndpointId, IdentityId, Labels, PodName};
use policy::{
    Clause, Direction, DirectionQuery, Explanation, FlowQuery, Party, Peers, Policy, Protocol,
    Repository, Rule, SubjectKind, SubjectSelector,
};
use serde::Serialize;
use serde_json::Value;

use super::endpoint::{describe_identity, labels_digest, one};
use super::{Agent, Refused, Shared};
use crate::policy::engine::Engine;
use crate::policy::watch::context;

/// The option of an endpoint, and of the agent, that lets denied packets pass.
pub(super) const AUDIT_OPTION: &str = "PolicyAuditMode";

/// `GET /policy`
pub(super) async fn list(State(agent): Shared) -> Json<ApiPolicy> {
    let realised = agent.policies.realised.borrow().revision;
    let engine = agent.policies.engine.lock();
    let policies = engine.states().iter().map(|(id, state)| {
        let policy = engine.repository().policy(id);
        PolicyElement {
            kind: id.kind.to_string(),
            namespace: id.namespace.clone(),
            name: id.name.clone(),
            uid: policy.map(|policy| policy.uid.to_string()).unwrap_or_default(),
            generation: state.generation,
            errors: state.errors.to_vec(),
            not_enforced: state.not_enforced.to_vec(),
            endpoints: policy.map_or_else(Vec::new, |policy| selected(&engine, policy)),
            rules: policy.map_or(0, |policy| policy.rules.len() as u64),
            rule_texts: policy.into_iter().flat_map(|policy| &policy.rules).map(words).collect(),
        }
    });
    Json(ApiPolicy {
        revision: engine.repository().revision() as i64,
        policy: String::new(),
        policies: policies.collect(),
        realized_revision: realised as i64,
    })
}

/// The node's endpoints that a policy selects.
fn selected(engine: &Engine, policy: &Policy) -> Vec<i64> {
    let endpoints = engine.endpoints().filter(|(_, identity)| selects(policy, &identity.labels));
    endpoints.map(|(id, _)| id.number().into()).collect()
}

/// Whether a policy speaks for endpoints with these labels.
fn selects(policy: &Policy, labels: &Labels) -> bool {
    let same = policy.id.namespace.is_empty() || labels.namespace() == Some(&policy.id.namespace);
    same && policy.rules.iter().any(|rule| match &rule.subject {
        SubjectSelector::Endpoints(selector) => selector.matches(labels),
        SubjectSelector::Nodes(_) => false,
    })
}

/// A rule in words.
fn words(rule: &Rule) -> String {
    let subject = match &rule.subject {
        SubjectSelector::Endpoints(selector) => format!("endpoints with {selector}"),
        SubjectSelector::Nodes(selector) => format!("nodes with {selector}"),
    };
    let mut text = subject;
    for direction in Direction::BOTH {
        for clause in &rule.clauses[direction] {
            text.push_str(&format!("; {}", clause_words(clause, direction)));
        }
        if rule.default_deny[direction] {
            text.push_str(&format!("; {direction} is denied by default"));
        }
    }
    text
}

fn clause_words(clause: &Clause, direction: Direction) -> String {
    let peers = match &clause.peers {
        Peers::Any => "everybody".to_owned(),
        Peers::Of(peers) if peers.is_empty() => "nobody".to_owned(),
        Peers::Of(peers) => peers.iter().map(ToString::to_string).collect::<Vec<_>>().join(" or "),
    };
    let ports: Vec<String> = clause.ports.iter().map(|port| port.ports.to_string()).collect();
    let preposition = if direction == Direction::Ingress { "from" } else { "to" };
    format!("{} {:?} {preposition} {peers} on {}", clause.place, clause.verdict, ports.join(", "))
}

/// `GET /policy/selectors`
pub(super) async fn selectors(State(agent): Shared) -> Json<Vec<SelectorIdentities>> {
    let engine = agent.policies.engine.lock();
    let selectors = engine.repository().selectors();
    let rows = selectors.map(|(selector, users, identities)| SelectorIdentities {
        selector,
        labels: Vec::new(),
        identities: identities.iter().map(|id| id.0.into()).collect(),
        users: users as u64,
    });
    Json(rows.collect())
}

/// `GET /policy/cookie/{cookie}`
pub(super) async fn cookie(
    State(agent): Shared,
    Path(cookie): Path<u32>,
) -> Result<Json<CookieRules>, Refused> {
    let rules = agent.policies.engine.lock().repository().rules_of(cookie);
    if rules.is_empty() {
        return Err(Refused::not_found(format!("no rule is known by cookie {cookie}")));
    }
    Ok(Json(CookieRules { cookie, rules: rules.iter().map(ToString::to_string).collect() }))
}

/// `GET /policy/explain?…`: why an endpoint of this node lets somebody pass or not.
pub(super) async fn explain(
    State(agent): Shared,
    Query(query): Query<ExplainQuery>,
) -> Result<Json<ExplainResponse>, Refused> {
    let direction = match query.direction.as_str() {
        "ingress" => Direction::Ingress,
        "egress" => Direction::Egress,
        other => {
            return Err(field("direction", format!("{other:?} is neither ingress nor egress")));
        }
    };
    let endpoint = TracePeer { endpoint: query.endpoint, ..TracePeer::default() };
    let peer = TracePeer { identity: query.identity.to_string(), ..TracePeer::default() };
    let subject = party(&agent, "endpoint", &endpoint)?.party;
    let peer = party(&agent, "identity", &peer)?.party;
    let (protocol, port) = (Protocol(query.protocol), query.dport);
    let query = DirectionQuery { subject, peer, direction, protocol, port };
    let explanation = agent.policies.engine.lock().repository().explain(&query);
    Ok(Json(ExplainResponse {
        verdict: verdict(explanation.allowed()).to_owned(),
        words: explanation.to_string(),
        explanation: json(&explanation),
    }))
}

/// `POST /policy/trace`
pub(super) async fn trace(
    State(agent): Shared,
    Json(request): Json<TraceRequest>,
) -> Result<Json<TraceResponse>, Refused> {
    let source = party(&agent, "source", &request.source)?;
    let target = party(&agent, "destination", &request.destination)?;
    let mut dports = Vec::new();
    for text in &request.dports {
        dports.push((text.clone(), parse_port(text)?));
    }
    if dports.is_empty() {
        dports.push((String::new(), (Protocol(0), 0)));
    }
    let imagined = imagine(&agent, &request.policies)?;
    let engine = agent.policies.engine.lock();
    let repository = imagined.as_ref().unwrap_or_else(|| engine.repository());
    let ports = dports.into_iter().map(|(dport, (protocol, port))| {
        let query = FlowQuery {
            source: source.party.clone(),
            target: target.party.clone(),
            protocol,
            port,
        };
        let flow = repository.explain_flow(&query);
        let at = |explanation: &Explanation, own: &Traced, peer: &Traced| {
            let maps = imagined.is_none().then(|| {
                maps_say(&engine, own.endpoint, explanation.direction, peer, protocol, port)
            });
            step(explanation, maps.flatten())
        };
        TracePort {
            dport,
            verdict: verdict(flow.allowed()).to_owned(),
            steps: vec![at(&flow.egress, &source, &target), at(&flow.ingress, &target, &source)],
        }
    });
    let ports = ports.collect();
    Ok(Json(TraceResponse { source: source.describe(), destination: target.describe(), ports }))
}

fn step(explanation: &Explanation, maps: Option<bool>) -> TraceStep {
    TraceStep {
        direction: explanation.direction.to_string(),
        verdict: verdict(explanation.allowed()).to_owned(),
        words: explanation.to_string(),
        explanation: json(explanation),
        maps: maps.map(verdict).unwrap_or_default().to_owned(),
    }
}

/// What the map of an endpoint of this node answers.
fn maps_say(
    engine: &Engine,
    endpoint: Option<EndpointId>,
    direction: Direction,
    peer: &Traced,
    protocol: Protocol,
    port: u16,
) -> Option<bool> {
    let map = engine.repository().map(engine.subject(endpoint?)?)?;
    if !map.enforces(direction) {
        return Some(true);
    }
    let cluster = engine.options().repository.cluster_id;
    let identity = peer.party.identity?;
    let found = map.lookup(direction, identity, cluster, protocol, port);
    Some(found.is_some_and(|(_, entry)| entry.verdict == policy::EntryVerdict::Allow))
}

/// A repository in which policies that are not applied yet are; none where there are no such.
fn imagine(agent: &Agent, manifests: &[Value]) -> Result<Option<Repository>, Refused> {
    if manifests.is_empty() {
        return Ok(None);
    }
    let context = context(&agent.config);
    let engine = agent.policies.engine.lock();
    let mut repository = engine.imagine();
    for (index, manifest) in manifests.iter().enumerate() {
        let read = api::policy::read_manifest(manifest, "default", &context);
        let accepted = read.map_err(|e| field(&format!("policies[{index}]"), e))?;
        repository.upsert_policy(accepted.policy);
    }
    Ok(Some(repository))
}

/// One end of a flow that is asked about.
struct Traced {
    party: Party,
    endpoint: Option<EndpointId>,
}

impl Traced {
    fn describe(&self) -> ApiIdentity {
        ApiIdentity {
            id: self.party.identity.unwrap_or_default(),
            labels: self.party.labels.to_strings(),
            labels_sha256: labels_digest(&self.party.labels),
        }
    }
}

/// Finds who is meant.
fn party(agent: &Agent, name: &str, peer: &TracePeer) -> Result<Traced, Refused> {
    if !peer.pod.is_empty() {
        let pod: PodName = peer.pod.parse().map_err(|e| field(&format!("{name}.pod"), e))?;
        return pod_party(agent, &pod)
            .ok_or_else(|| Refused::not_found(format!("{name}.pod: there is no pod {pod}")));
    }
    if peer.endpoint != 0 {
        return endpoint_party(agent, peer.endpoint).ok_or_else(|| {
            Refused::not_found(format!("{name}.endpoint: there is no endpoint {}", peer.endpoint))
        });
    }
    if !peer.identity.is_empty() {
        let id = peer.identity.parse().map_err(|e| field(&format!("{name}.identity"), e))?;
        return identity_party(agent, id)
            .ok_or_else(|| Refused::not_found(format!("{name}.identity: there is no {id}")));
    }
    if !peer.address.is_empty() {
        let address = peer.address.parse().map_err(|e| field(&format!("{name}.address"), e))?;
        return Ok(address_party(agent, address));
    }
    if peer.labels.is_empty() {
        let reason = "say who: pod, endpoint, identity, address or labels";
        return Err(field(name, reason));
    }
    let labels = peer.labels.iter().map(|text| text.parse()).collect::<Result<Labels, _>>();
    let labels = Arc::new(labels.map_err(|e| field(&format!("{name}.labels"), e))?);
    let identity = agent.endpoints.identities().lookup(&labels).map(|identity| identity.id);
    let subject = Some(SubjectKind::Endpoint);
    Ok(Traced { party: Party { labels, identity, subject, named_ports: vec![] }, endpoint: None })
}

fn pod_party(agent: &Agent, pod: &PodName) -> Option<Traced> {
    let which = EndpointRef::Pod(pod.clone());
    let local = crate::endpoint::find(&agent.endpoints.table().snapshot(), &which);
    if let Some(endpoint) = local.into_iter().next() {
        return endpoint_party(agent, endpoint.id.number());
    }
    let row = agent.cluster.get(pod)?;
    let mut traced = identity_party(agent, row.identity)?;
    traced.party.named_ports.clone_from(&row.named_ports);
    Some(traced)
}

fn endpoint_party(agent: &Agent, number: u16) -> Option<Traced> {
    let id = EndpointId::new(number).ok()?;
    let engine = agent.policies.engine.lock();
    if id == engine.options().host_endpoint {
        drop(engine);
        return Some(Traced { endpoint: Some(id), ..identity_party(agent, IdentityId::HOST)? });
    }
    let (_, identity) = engine.endpoint(id)?;
    let party = Party {
        labels: Arc::clone(&identity.labels),
        identity: Some(identity.id),
        subject: Some(SubjectKind::Endpoint),
        named_ports: engine.ports_of(id),
    };
    Some(Traced { party, endpoint: Some(id) })
}

fn identity_party(agent: &Agent, id: IdentityId) -> Option<Traced> {
    let party = agent.policies.engine.lock().repository().party_of(id)?;
    Some(Traced { party, endpoint: None })
}

/// Who is at an address: as the ipcache says where it knows the host, else as policies see the prefix.
fn address_party(agent: &Agent, address: IpAddr) -> Traced {
    let ipcache = agent.maps.ipcache_table.get(&IpNet::from(address));
    let known = ipcache.and_then(|row| identity_party(agent, row.identity));
    known.unwrap_or_else(|| Traced {
        party: agent.policies.engine.lock().repository().party_at(address),
        endpoint: None,
    })
}

/// `80/TCP`, `53/UDP`, `8/ICMP`, `TCP`.
fn parse_port(text: &str) -> Result<(Protocol, u16), Refused> {
    let wrong = || field("dports", format!("{text:?} is not a port; write it as in 80/TCP"));
    let (port, protocol) = text.split_once('/').unwrap_or((text, "TCP"));
    let protocol = Protocol::named(&protocol.to_ascii_uppercase()).ok_or_else(wrong)?;
    Ok((protocol, port.parse().map_err(|_not_a_number| wrong())?))
}

fn field(name: &str, reason: impl std::fmt::Display) -> Refused {
    Refused::bad_request(format!("{name}: {reason}"))
}

const fn verdict(allowed: bool) -> &'static str {
    if allowed { "allowed" } else { "denied" }
}

fn json(value: &impl Serialize) -> Value {
    serde_json::to_value(value).unwrap_or_default()
}

/// `GET /endpoint/{id}/config`
pub(super) async fn endpoint_config(
    State(agent): Shared,
    Path(id): Path<String>,
) -> Result<Json<EndpointConfigurationStatus>, Refused> {
    let endpoint = one(&agent, &id)?;
    let audit = agent.policies.engine.lock().is_audited(endpoint.id);
    let realized = EndpointConfigurationSpec {
        options: [(AUDIT_OPTION.to_owned(), on_or_off(audit))].into(),
        ..EndpointConfigurationSpec::default()
    };
    Ok(Json(EndpointConfigurationStatus { realized, ..EndpointConfigurationStatus::default() }))
}

/// `PATCH /endpoint/{id}/config`
pub(super) async fn patch_endpoint_config(
    State(agent): Shared,
    Path(id): Path<String>,
    Json(wanted): Json<EndpointConfigurationSpec>,
) -> Result<StatusCode, Refused> {
    let endpoint = one(&agent, &id)?;
    let mut audit = None;
    for (option, value) in &wanted.options {
        if option != AUDIT_OPTION {
            let reason = format!("cannot be changed of an endpoint; {AUDIT_OPTION} can");
            return Err(field(&format!("options.{option}"), reason));
        }
        audit = Some(parse_switch(option, value)?);
    }
    if let Some(audit) = audit {
        agent.policies.engine.lock().set_endpoint_audit(endpoint.id, audit);
        agent.policies.engine.recompute();
    }
    Ok(StatusCode::OK)
}

/// `Enabled` or `Disabled`, and what Cilium takes for them.
pub(super) fn parse_switch(option: &str, value: &str) -> Result<bool, Refused> {
    match value.to_ascii_lowercase().as_str() {
        "enabled" | "true" | "on" | "1" => Ok(true),
        "disabled" | "false" | "off" | "0" => Ok(false),
        _ => Err(field(&format!("options.{option}"), "write Enabled or Disabled")),
    }
}

/// A switch in Cilium's words.
pub(super) fn on_or_off(on: bool) -> String {
    if on { "Enabled" } else { "Disabled" }.to_owned()
}

/// `GET /identity/{id}` of the node's own identities.
pub(super) fn own_identity(agent: &Agent, id: IdentityId) -> Option<ApiIdentity> {
    let labels = agent.policies.engine.lock().identities().labels(id).cloned()?;
    Some(describe_identity(&crate::identity::Identity { id, labels }))
}

/// The policies that select an endpoint, by name.
pub(super) fn policies_of(engine: &Engine, endpoint: EndpointId) -> Vec<String> {
    let Some((_, identity)) = engine.endpoint(endpoint) else { return Vec::new() };
    let policies = engine.repository().policies();
    let speaking = policies.filter(|policy| selects(policy, &identity.labels));
    speaking.map(|policy| policy.id.to_string()).collect()
}
