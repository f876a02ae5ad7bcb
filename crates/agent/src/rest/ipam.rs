//! `/ipam`: addresses for pods.

use std::net::IpAddr;
use std::time::Instant;

use api::rest::{IpamAddressResponse, IpamResponse};
use axum::Json;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use serde::Deserialize;

use super::endpoint::address_pair;
use super::{Agent, Refused, Shared, host_addressing};
use crate::ipam::{Families, IpamError};

/// The query of both POST requests.
#[derive(Deserialize)]
#[serde(default)]
pub(super) struct Wanted {
    family: String,
    owner: String,
    pool: String,
}

impl Default for Wanted {
    fn default() -> Self {
        Self { family: String::new(), owner: "unknown".to_owned(), pool: String::new() }
    }
}

/// `POST /ipam`: an address per family.
pub(super) async fn allocate(
    State(agent): Shared,
    Query(wanted): Query<Wanted>,
) -> Result<(StatusCode, Json<IpamResponse>), Refused> {
    let families = match wanted.family.as_str() {
        "" => Families::All,
        "ipv4" => Families::V4,
        "ipv6" => Families::V6,
        other => {
            let message = format!("family: {other:?} is neither ipv4 nor ipv6");
            return Err(Refused::bad_request(message));
        }
    };
    if !matches!(wanted.pool.as_str(), "" | "default") {
        let message = format!("pool: there is no pool {:?}, only \"default\"", wanted.pool);
        return Err(Refused::bad_request(message));
    }
    let given = agent.endpoints.ipam().allocate(families, &wanted.owner, Instant::now());
    let addresses = given.map_err(|error| refused(&error))?;
    Ok((StatusCode::CREATED, Json(response(&agent, &addresses))))
}

/// `POST /ipam/{ip}`: this address.
pub(super) async fn reserve(
    State(agent): Shared,
    Path(address): Path<String>,
    Query(wanted): Query<Wanted>,
) -> Result<StatusCode, Refused> {
    let address = parse(&address)?;
    let reserved = agent.endpoints.ipam().reserve(address, &wanted.owner, Instant::now());
    reserved.map(|()| StatusCode::OK).map_err(|error| refused(&error))
}

/// `DELETE /ipam/{ip}`: gives back an address that was reserved. An endpoint's address goes with the
/// endpoint: a plugin that cleans up late must not take it away from whoever has it by then.
pub(super) async fn release(
    State(agent): Shared,
    Path(address): Path<String>,
) -> Result<StatusCode, Refused> {
    let address = parse(&address)?;
    let mut ipam = agent.endpoints.ipam();
    if ipam.is_confirmed(address) {
        let owner = ipam.owner(address).unwrap_or_default();
        let message = format!("address {address} is in use by {owner}; delete its endpoint");
        return Err(Refused::new(StatusCode::CONFLICT, message));
    }
    if ipam.release(address) {
        Ok(StatusCode::OK)
    } else {
        Err(Refused::not_found(format!("address {address} is not allocated")))
    }
}

fn parse(address: &str) -> Result<IpAddr, Refused> {
    address.parse().map_err(|error| Refused::bad_request(format!("{address:?}: {error}")))
}

fn refused(error: &IpamError) -> Refused {
    let status = match error {
        IpamError::InUse { .. } => StatusCode::CONFLICT,
        IpamError::Exhausted { .. } | IpamError::NoCidr { .. } | IpamError::NotInPool { .. } => {
            StatusCode::BAD_GATEWAY
        }
    };
    Refused::new(status, error)
}

fn response(agent: &Agent, addresses: &[IpAddr]) -> IpamResponse {
    let of_family = |is_ipv4: bool| {
        let ip = addresses.iter().find(|a| a.is_ipv4() == is_ipv4)?;
        let gateway = agent.node.routers.iter().find(|r| r.is_ipv4() == is_ipv4);
        let cidrs = agent.node.pod_cidrs.iter().filter(|c| c.addr().is_ipv4() == is_ipv4);
        Some(IpamAddressResponse {
            ip: ip.to_string(),
            gateway: gateway.map(ToString::to_string).unwrap_or_default(),
            cidrs: cidrs.map(ToString::to_string).collect(),
            expiration_uuid: String::new(),
        })
    };
    IpamResponse {
        address: address_pair(addresses),
        host_addressing: host_addressing(agent),
        ipv4: of_family(true),
        ipv6: of_family(false),
    }
}
