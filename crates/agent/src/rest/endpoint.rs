//! `/endpoint`: the pods of this node, and the node itself, which nobody creates or deletes.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use abi::policy::POLICY_SLOT_NONE;
use api::rest::{
    AddressPair, Endpoint as ApiEndpoint, EndpointBatchDeleteRequest, EndpointChangeRequest,
    EndpointHealth, EndpointIdentifiers, EndpointNetworking, EndpointPolicy, EndpointPolicyStatus,
    EndpointRef, EndpointStatus, Identity as ApiIdentity, LabelConfigurationStatus,
};
use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use model::{EndpointId, EndpointState, IdentityId, Labels, Mac};
use policy::{Direction, EntryVerdict};
use sha2::{Digest, Sha512_256};

use super::policy::{AUDIT_OPTION, on_or_off};
use super::{Agent, Refused, Shared, host_addressing};
use crate::base::HOST_DEVICE;
use crate::controllers::LocalNode;
use crate::endpoint::{CreateError, HOST_ENDPOINT_ID, find};
use crate::identity::Identity;
use crate::k8s::watch::chain;
use crate::tables::{Endpoint, EndpointSpec, enforcement};

/// How long a plugin waits for an agent that is starting before it is sent away.
const READY_PATIENCE: Duration = Duration::from_secs(15);

/// `GET /endpoint`
pub(super) async fn list(State(agent): Shared) -> Json<Vec<ApiEndpoint>> {
    let pods = agent.endpoints.table().snapshot();
    let all = std::iter::once(&host_endpoint(&agent.node))
        .chain(pods.rows().map(|row| &**row))
        .map(|endpoint| describe(&agent, endpoint))
        .collect();
    Json(all)
}

/// `GET /endpoint/{id}`
pub(super) async fn show(
    State(agent): Shared,
    Path(id): Path<String>,
) -> Result<Json<ApiEndpoint>, Refused> {
    let endpoint = one(&agent, &id)?;
    let mut shown = describe(&agent, &endpoint);
    shown.status.policy = whole_policy_status(&agent, &endpoint);
    let audit = agent.policies.engine.lock().is_audited(endpoint.id);
    shown.spec.options = [(AUDIT_OPTION.to_owned(), on_or_off(audit))].into();
    Ok(Json(shown))
}

/// `PUT /endpoint/{id}`
pub(super) async fn create(
    State(agent): Shared,
    Path(id): Path<String>,
    Json(request): Json<EndpointChangeRequest>,
) -> Result<Response, Refused> {
    let which: EndpointRef = id.parse().map_err(Refused::bad_request)?;
    if !agent.ready.serves(READY_PATIENCE).await {
        let message = format!("the agent is not ready: {}", agent.ready.reason());
        return Err(Refused::new(StatusCode::SERVICE_UNAVAILABLE, message));
    }
    let (spec, labels) = parse(&which, request)?;
    // A task of its own: when the client goes away half-way, the creation is finished or undone.
    let creator = Arc::clone(&agent);
    let created = tokio::spawn(async move { creator.endpoints.create(spec, labels).await }).await;
    match created {
        Ok(Ok(endpoint)) => {
            Ok((StatusCode::CREATED, Json(describe(&agent, &endpoint))).into_response())
        }
        Ok(Err(error)) => Err(refused(&error)),
        Err(panic) => Err(Refused::new(StatusCode::INTERNAL_SERVER_ERROR, panic)),
    }
}

/// `PATCH /endpoint/{id}`: its labels, where Kubernetes does not know better.
pub(super) async fn patch(
    State(agent): Shared,
    Path(id): Path<String>,
    Json(request): Json<EndpointChangeRequest>,
) -> Result<StatusCode, Refused> {
    let endpoint = one(&agent, &id)?;
    if endpoint.id.number() == HOST_ENDPOINT_ID {
        return Err(Refused::bad_request(format!("endpoint {id}: the node's labels are fixed")));
    }
    let labels = parse_labels(&request.labels)?;
    let changed = agent.endpoints.change_labels(&endpoint, &labels).await;
    changed.map(|()| StatusCode::OK).map_err(|error| refused(&error))
}

/// `DELETE /endpoint/{id}`
pub(super) async fn delete(
    State(agent): Shared,
    Path(id): Path<String>,
) -> Result<StatusCode, Refused> {
    let which: EndpointRef = id.parse().map_err(Refused::bad_request)?;
    remove(agent, which).await
}

/// `DELETE /endpoint`: all of a container.
pub(super) async fn delete_batch(
    State(agent): Shared,
    Json(request): Json<EndpointBatchDeleteRequest>,
) -> Result<StatusCode, Refused> {
    if request.container_id.is_empty() {
        return Err(Refused::bad_request("container-id: is missing"));
    }
    remove(agent, EndpointRef::Container(request.container_id)).await
}

async fn remove(agent: Arc<Agent>, which: EndpointRef) -> Result<StatusCode, Refused> {
    let text = which.to_string();
    let removed = tokio::spawn(async move { agent.endpoints.delete(&which).await }).await;
    match removed {
        Ok(removed) if removed.is_empty() => {
            Err(Refused::not_found(format!("there is no endpoint {text}")))
        }
        Ok(_) => Ok(StatusCode::OK),
        Err(panic) => Err(Refused::new(StatusCode::INTERNAL_SERVER_ERROR, panic)),
    }
}

/// `GET /endpoint/{id}/healthz`
pub(super) async fn healthz(
    State(agent): Shared,
    Path(id): Path<String>,
) -> Result<Json<EndpointHealth>, Refused> {
    Ok(Json(health(&*one(&agent, &id)?)))
}

/// `GET /endpoint/{id}/labels`
pub(super) async fn labels(
    State(agent): Shared,
    Path(id): Path<String>,
) -> Result<Json<LabelConfigurationStatus>, Refused> {
    Ok(Json(label_status(&one(&agent, &id)?.identity)))
}

/// `GET /endpoint/{id}/log`
pub(super) async fn log(
    State(agent): Shared,
    Path(id): Path<String>,
) -> Result<Json<Vec<api::rest::EndpointStatusChange>>, Refused> {
    one(&agent, &id).map(|_| Json(Vec::new()))
}

pub(super) fn one(agent: &Agent, id: &str) -> Result<Arc<Endpoint>, Refused> {
    let which: EndpointRef = id.parse().map_err(Refused::bad_request)?;
    if matches!(which, EndpointRef::Local(id) if id.number() == HOST_ENDPOINT_ID) {
        return Ok(Arc::new(host_endpoint(&agent.node)));
    }
    let found = find(&agent.endpoints.table().snapshot(), &which).into_iter().next();
    found.ok_or_else(|| Refused::not_found(format!("there is no endpoint {which}")))
}

fn refused(error: &CreateError) -> Refused {
    let status = match error {
        CreateError::Invalid { .. } => StatusCode::BAD_REQUEST,
        CreateError::Exists { .. } | CreateError::Address(_) | CreateError::Deleted => {
            StatusCode::CONFLICT
        }
        CreateError::Exhausted => StatusCode::TOO_MANY_REQUESTS,
        CreateError::Identity(_) | CreateError::Late => StatusCode::SERVICE_UNAVAILABLE,
        CreateError::Attach { .. } | CreateError::Checkpoint(_) | CreateError::Settle { .. } => {
            StatusCode::INTERNAL_SERVER_ERROR
        }
    };
    Refused::new(status, chain(error))
}

/// The request as something that cannot be wrong in itself.
fn parse(
    which: &EndpointRef,
    request: EndpointChangeRequest,
) -> Result<(EndpointSpec, Labels), Refused> {
    let field = |name: &str, error: &dyn std::fmt::Display| {
        Refused::bad_request(format!("{name}: {error}"))
    };
    let addresses = request.addressing.addresses().map_err(|e| field("addressing", &e))?;
    let mac: Mac = request.mac.parse().map_err(|e| field("mac", &e))?;
    let host_mac: Mac = request.host_mac.parse().map_err(|e| field("host-mac", &e))?;
    let labels = parse_labels(&request.labels)?;
    let (container, interface) = match which {
        EndpointRef::CniAttachment { container, interface } => {
            (container.clone(), interface.clone())
        }
        EndpointRef::Container(container) => (container.clone(), request.container_interface_name),
        _ => (request.container_id, request.container_interface_name),
    };
    let spec = EndpointSpec {
        interface: request.interface_name,
        ifindex: request.interface_index,
        mac,
        host_mac,
        addresses,
        container_id: container,
        container_interface: interface,
        pod_namespace: request.k8s_namespace,
        pod_name: request.k8s_pod_name,
        pod_uid: request.k8s_uid,
        netns_cookie: Some(request.netns_cookie).filter(|cookie| !cookie.is_empty()),
    };
    Ok((spec, labels))
}

fn parse_labels(texts: &[String]) -> Result<Labels, Refused> {
    let labels = texts.iter().map(|text| text.parse()).collect::<Result<Labels, _>>();
    labels.map_err(|error| Refused::bad_request(format!("labels: {error}")))
}

/// The node as an endpoint. Its addresses are not those of an endpoint: Cilium shows none.
fn host_endpoint(node: &LocalNode) -> Endpoint {
    let labels = IdentityId::HOST.reserved_labels().expect("the host's identity is reserved");
    let spec = EndpointSpec {
        interface: HOST_DEVICE.to_owned(),
        ifindex: node.host_ifindex,
        mac: node.host_mac,
        host_mac: node.host_mac,
        addresses: Vec::new(),
        container_id: String::new(),
        container_interface: String::new(),
        pod_namespace: String::new(),
        pod_name: String::new(),
        pod_uid: String::new(),
        netns_cookie: None,
    };
    Endpoint {
        id: EndpointId::new(HOST_ENDPOINT_ID).expect("in range"),
        state: EndpointState::Ready,
        spec: Arc::new(spec),
        identity: Identity { id: IdentityId::HOST, labels: Arc::new(labels) },
    }
}

/// An endpoint as the API shows it.
fn describe(agent: &Agent, endpoint: &Endpoint) -> ApiEndpoint {
    let spec = &endpoint.spec;
    // What the agent made for itself has no attachment that a runtime could collect.
    let is_own = [IdentityId::HOST, IdentityId::HEALTH].contains(&endpoint.identity.id);
    let pod = spec.pod().map(|pod| pod.to_string()).unwrap_or_default();
    ApiEndpoint {
        id: endpoint.id.number().into(),
        status: EndpointStatus {
            state: endpoint.state,
            external_identifiers: EndpointIdentifiers {
                cni_attachment_id: if is_own { String::new() } else { spec.attachment() },
                container_id: spec.container_id.clone(),
                cep_name: pod.clone(),
                k8s_namespace: spec.pod_namespace.clone(),
                k8s_pod_name: spec.pod_name.clone(),
                pod_name: pod,
            },
            identity: Some(describe_identity(&endpoint.identity)),
            labels: label_status(&endpoint.identity),
            networking: EndpointNetworking {
                addressing: vec![address_pair(&spec.addresses)],
                host_addressing: host_addressing(agent),
                container_interface_name: spec.container_interface.clone(),
                interface_index: spec.ifindex,
                interface_name: spec.interface.clone(),
                mac: spec.mac.to_string(),
                host_mac: spec.host_mac.to_string(),
            },
            policy: policy_status(agent, endpoint),
            health: health(endpoint),
            ..EndpointStatus::default()
        },
        ..ApiEndpoint::default()
    }
}

/// The policy of an endpoint: as its row says, and as the engine has it. Who may pass is in the answer
/// for one endpoint only.
fn policy_status(agent: &Agent, endpoint: &Endpoint) -> EndpointPolicyStatus {
    let in_use = |slot| (slot != POLICY_SLOT_NONE).then_some(slot);
    let row = agent.policies.table.get(&endpoint.id);
    let realized = row.map(|row| EndpointPolicy {
        policy_enabled: enforcement(row.flags),
        policy_revision: row.revision as i64,
        slot: in_use(row.slot),
        ..EndpointPolicy::default()
    });
    let engine = agent.policies.engine.lock();
    let (slot, flags, entries) = engine.pointed(endpoint.id).unwrap_or_default();
    let spec = EndpointPolicy {
        policy_enabled: enforcement(flags),
        policy_revision: engine.repository().revision() as i64,
        slot: in_use(slot),
        entries: entries as u64,
        lockdown: engine.lockdown(endpoint.id).map(|why| why.0.clone()).unwrap_or_default(),
        ..EndpointPolicy::default()
    };
    EndpointPolicyStatus { realized: realized.unwrap_or_else(|| spec.clone()), spec }
}

/// The same, with who may pass.
fn whole_policy_status(agent: &Agent, endpoint: &Endpoint) -> EndpointPolicyStatus {
    let mut status = policy_status(agent, endpoint);
    let engine = agent.policies.engine.lock();
    let map = engine.subject(endpoint.id).and_then(|subject| engine.repository().map(subject));
    let Some(map) = map else { return status };
    let of = |direction, denied| {
        let entries = map.entries().iter();
        let wanted = entries.filter(|(key, entry)| {
            key.direction == direction && (entry.verdict == EntryVerdict::Deny) == denied
        });
        let identities: BTreeSet<i64> = wanted.map(|(key, _)| key.peer.0.into()).collect();
        identities.into_iter().collect::<Vec<_>>()
    };
    status.spec.allowed_ingress_identities = of(Direction::Ingress, false);
    status.spec.allowed_egress_identities = of(Direction::Egress, false);
    status.spec.denied_ingress_identities = of(Direction::Ingress, true);
    status.spec.denied_egress_identities = of(Direction::Egress, true);
    status.spec.policies = super::policy::policies_of(&engine, endpoint.id);
    if status.realized.slot == status.spec.slot {
        status.realized = EndpointPolicy {
            policy_revision: status.realized.policy_revision,
            policy_enabled: status.realized.policy_enabled,
            ..status.spec.clone()
        };
    }
    status
}

/// Addresses as the API writes them.
pub(super) fn address_pair(addresses: &[std::net::IpAddr]) -> AddressPair {
    let v4 = addresses.iter().find_map(|a| match a {
        std::net::IpAddr::V4(v4) => Some(*v4),
        std::net::IpAddr::V6(_) => None,
    });
    let v6 = addresses.iter().find_map(|a| match a {
        std::net::IpAddr::V6(v6) => Some(*v6),
        std::net::IpAddr::V4(_) => None,
    });
    AddressPair::new(v4, v6)
}

/// An identity as the API shows it.
pub(super) fn describe_identity(identity: &Identity) -> ApiIdentity {
    ApiIdentity {
        id: identity.id,
        labels: identity.labels.to_strings(),
        labels_sha256: labels_digest(&identity.labels),
    }
}

/// Cilium's digest of a set of labels: SHA-512/256 over each label and a semicolon.
pub(super) fn labels_digest(labels: &Labels) -> String {
    let mut digest = Sha512_256::new();
    for label in labels.iter() {
        digest.update(format!("{}:{}={};", label.source, label.key, label.value));
    }
    digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

fn label_status(identity: &Identity) -> LabelConfigurationStatus {
    LabelConfigurationStatus {
        security_relevant: identity.labels.to_strings(),
        ..LabelConfigurationStatus::default()
    }
}

fn health(endpoint: &Endpoint) -> EndpointHealth {
    let word = match endpoint.state {
        EndpointState::Ready => "OK",
        EndpointState::Invalid => "Failure",
        EndpointState::Disconnecting | EndpointState::Disconnected => "Disabled",
        _ => "Bootstrap",
    };
    EndpointHealth {
        bpf: word.to_owned(),
        policy: word.to_owned(),
        connected: endpoint.state == EndpointState::Ready,
        overall_health: word.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request() -> EndpointChangeRequest {
        serde_json::from_value(serde_json::json!({
            "addressing": {"ipv4": "10.0.1.7", "ipv6": "fd00::7"},
            "mac": "02:00:00:00:00:01", "host-mac": "02:00:00:00:00:02",
            "interface-name": "lxc1", "interface-index": 9,
            "container-id": "in-the-body", "container-interface-name": "eth1",
            "k8s-namespace": "default", "k8s-pod-name": "web", "k8s-uid": "u",
            "labels": ["k8s:app=web"],
        }))
        .unwrap()
    }

    #[test]
    fn the_path_says_which_container() {
        for (which, container, interface) in [
            ("cni-attachment-id:c1:eth0", "c1", "eth0"),
            ("container-id:c2", "c2", "eth1"),
            ("7", "in-the-body", "eth1"),
        ] {
            let Ok((spec, labels)) = parse(&which.parse().unwrap(), request()) else {
                panic!("{which} is refused")
            };
            assert_eq!((&*spec.container_id, &*spec.container_interface), (container, interface));
            assert_eq!(spec.addresses.len(), 2);
            assert_eq!(labels.to_strings(), ["k8s:app=web"]);
        }
    }

    #[test]
    fn refusals_name_the_field() {
        type Spoil = fn(&mut EndpointChangeRequest);
        let spoilt: [(&str, Spoil); 4] = [
            ("addressing", |request| request.addressing.ipv4 = "10.0.1".into()),
            ("mac", |request| request.mac = "02:00".into()),
            ("host-mac", |request| request.host_mac = String::new()),
            ("labels", |request| request.labels = vec![String::new()]),
        ];
        for (field, spoil) in spoilt {
            let mut request = request();
            spoil(&mut request);
            let Err(refused) = parse(&EndpointRef::Container("c".into()), request) else {
                panic!("{field} is taken")
            };
            assert_eq!(refused.status, StatusCode::BAD_REQUEST);
            assert!(refused.message.starts_with(&format!("{field}: ")), "{}", refused.message);
        }
    }

    #[test]
    fn errors_have_their_status() {
        for (error, status) in [
            (CreateError::Exhausted, StatusCode::TOO_MANY_REQUESTS),
            (CreateError::Late, StatusCode::SERVICE_UNAVAILABLE),
            (CreateError::Deleted, StatusCode::CONFLICT),
        ] {
            assert_eq!(refused(&error).status, status, "{error}");
        }
    }
}
