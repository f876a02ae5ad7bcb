//! `/endpoint`: the pods of this node.

use std::sync::Arc;
use std::time::Duration;

use api::rest::{
    AddressPair, Endpoint as ApiEndpoint, EndpointBatchDeleteRequest, EndpointChangeRequest,
    EndpointHealth, EndpointIdentifiers, EndpointNetworking, EndpointPolicy, EndpointPolicyStatus,
    EndpointRef, EndpointStatus, Identity as ApiIdentity, LabelConfigurationStatus,
};
use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use model::{EndpointState, Labels, Mac};
use sha2::{Digest, Sha512_256};

use super::{Agent, Refused, Shared, host_addressing};
use crate::endpoint::{CreateError, find};
use crate::identity::Identity;
use crate::k8s::watch::chain;
use crate::tables::{Endpoint, EndpointSpec};

/// How long a plugin waits for an agent that is starting before it is sent away.
const READY_PATIENCE: Duration = Duration::from_secs(15);

/// `GET /endpoint`
pub(super) async fn list(State(agent): Shared) -> Json<Vec<ApiEndpoint>> {
    Json(agent.endpoints.table().snapshot().rows().map(|row| describe(&agent, row)).collect())
}

/// `GET /endpoint/{id}`
pub(super) async fn show(
    State(agent): Shared,
    Path(id): Path<String>,
) -> Result<Json<ApiEndpoint>, Refused> {
    let endpoint = one(&agent, &id)?;
    Ok(Json(describe(&agent, &endpoint)))
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

fn one(agent: &Agent, id: &str) -> Result<Arc<Endpoint>, Refused> {
    let which: EndpointRef = id.parse().map_err(Refused::bad_request)?;
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

/// An endpoint as the API shows it.
fn describe(agent: &Agent, endpoint: &Endpoint) -> ApiEndpoint {
    let spec = &endpoint.spec;
    let pod = spec.pod().map(|pod| pod.to_string()).unwrap_or_default();
    let policy = EndpointPolicy { policy_enabled: "none".to_owned(), ..EndpointPolicy::default() };
    ApiEndpoint {
        id: endpoint.id.number().into(),
        status: EndpointStatus {
            state: endpoint.state,
            external_identifiers: EndpointIdentifiers {
                cni_attachment_id: spec.attachment(),
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
            policy: EndpointPolicyStatus { realized: policy.clone(), spec: policy },
            health: health(endpoint),
            ..EndpointStatus::default()
        },
        ..ApiEndpoint::default()
    }
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
