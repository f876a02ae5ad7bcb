//! What the plugin asks of the agent, and what the agent's refusals mean to a runtime.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use api::rest::{
    AddressPair, Client, ClientError, DEFAULT_SOCKET, DaemonConfiguration,
    DaemonConfigurationStatus, Endpoint, EndpointChangeRequest, EndpointHealth, IpamResponse,
    NodeAddressing, SOCKET_ENV, StatusResponse, StatusState, client, path,
};
use serde::de::IgnoredAny;

use crate::error::{Code, Error};
use crate::response::PodAddress;

/// How long ADD waits for an agent that is being restarted.
const CONNECT_PATIENCE: Duration = Duration::from_secs(30);
/// How long to wait between two attempts: the socket file may not exist, so there is nothing to
/// wait on.
const CONNECT_INTERVAL: Duration = Duration::from_millis(50);
/// The agent itself gives up waiting for a pod's labels earlier.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(90);

/// Where the agent is found.
#[derive(Clone, Debug)]
pub(crate) struct Paths {
    pub(crate) socket: PathBuf,
}

impl Paths {
    pub(crate) fn from_environment() -> Self {
        let socket = std::env::var_os(SOCKET_ENV).filter(|socket| !socket.is_empty());
        Self { socket: socket.map_or_else(|| PathBuf::from(DEFAULT_SOCKET), PathBuf::from) }
    }
}

/// A connection to the agent.
pub(crate) struct Agent {
    client: Client,
}

/// Addresses for a pod.
#[derive(Debug)]
pub(crate) struct Allocation {
    pub(crate) addresses: Vec<PodAddress>,
    /// The same in the agent's shape, with its proof of the reservation.
    pub(crate) pair: AddressPair,
}

impl Agent {
    /// Connects with the first request.
    pub(crate) fn new(paths: &Paths) -> Self {
        Self { client: Client::new(&paths.socket).with_timeout(REQUEST_TIMEOUT) }
    }

    /// The first request of ADD: waits for an agent that is being restarted.
    pub(crate) fn config(&mut self) -> Result<DaemonConfigurationStatus, Error> {
        let started = Instant::now();
        loop {
            match self.client.get::<DaemonConfiguration>(path::CONFIG) {
                Ok(config) => return Ok(config.status),
                Err(ClientError::Connect { .. }) if started.elapsed() < CONNECT_PATIENCE => {
                    std::thread::sleep(CONNECT_INTERVAL);
                }
                Err(error) => return Err(refused("cannot read the agent's configuration", error)),
            }
        }
    }

    /// Asks for an address of each family that is on, for `owner`.
    pub(crate) fn allocate(&mut self, owner: &str) -> Result<Allocation, Error> {
        let path = format!("{}?owner={}&expiration=true", path::IPAM, client::encode(owner));
        let response: IpamResponse =
            self.client.post(&path).map_err(|error| refused("the agent gave no address", error))?;
        let addresses = with_gateways(&response.host_addressing, &response.address)?;
        Ok(Allocation { addresses, pair: response.address })
    }

    pub(crate) fn release(&mut self, address: IpAddr) -> Result<(), Error> {
        found(self.client.delete(&path::ipam_address(address)))
            .map(drop)
            .map_err(|error| refused(&format!("cannot release {address}"), error))
    }

    pub(crate) fn create_endpoint(
        &mut self,
        id: &str,
        request: &EndpointChangeRequest,
    ) -> Result<(), Error> {
        self.client
            .put::<IgnoredAny>(&endpoint_path(id), request)
            .map(drop)
            .map_err(|error| refused("the agent did not create the endpoint", error))
    }

    /// Whether there was such an endpoint.
    pub(crate) fn delete_endpoint(&mut self, id: &str) -> Result<bool, Error> {
        found(self.client.delete(&endpoint_path(id)))
            .map(|deleted| deleted.is_some())
            .map_err(|error| refused(&format!("cannot delete endpoint {id}"), error))
    }

    pub(crate) fn endpoint(&mut self, id: &str) -> Result<Option<Endpoint>, Error> {
        found(self.client.get(&endpoint_path(id)))
            .map_err(|error| refused(&format!("cannot look at endpoint {id}"), error))
    }

    pub(crate) fn endpoint_health(&mut self, id: &str) -> Result<Option<EndpointHealth>, Error> {
        found(self.client.get(&format!("{}/healthz", endpoint_path(id))))
            .map_err(|error| refused(&format!("cannot ask for the health of endpoint {id}"), error))
    }

    /// The attachment ids of all endpoints that a plugin has made.
    pub(crate) fn attachment_ids(&mut self) -> Result<Vec<String>, Error> {
        let endpoints: Vec<Endpoint> = self
            .client
            .get(path::ENDPOINT)
            .map_err(|error| refused("cannot list the agent's endpoints", error))?;
        let ids = endpoints
            .into_iter()
            .map(|endpoint| endpoint.status.external_identifiers.cni_attachment_id);
        Ok(ids.filter(|id| !id.is_empty()).collect())
    }

    /// Why no pod can be added now; `None` where one can.
    pub(crate) fn unavailable(&mut self) -> Result<Option<String>, Error> {
        let status: StatusResponse = self
            .client
            .get(path::HEALTHZ)
            .map_err(|error| refused("cannot ask for the agent's health", error))?;
        if status.cilium.state == StatusState::Failure {
            return Ok(Some(format!("the agent is not healthy: {}", status.cilium.msg)));
        }
        Ok(status.ipam.and_then(|ipam| exhausted(&ipam.status)))
    }
}

/// The family in `IPv4: 3/254 allocated from 10.0.0.0/24, IPv6: …` that has no address left.
fn exhausted(status: &str) -> Option<String> {
    let is_full = |family: &&str| {
        let count = family.split_whitespace().find_map(|word| word.split_once('/'));
        count.is_some_and(|(taken, size)| !taken.is_empty() && taken == size)
    };
    status.split(", ").find(is_full).map(|family| {
        format!("every pod address is taken: {family}; delete pods or enlarge the pod CIDR")
    })
}

/// Pairs each address of a pod with the node's address of its family.
pub(crate) fn with_gateways(
    gateways: &NodeAddressing,
    pair: &AddressPair,
) -> Result<Vec<PodAddress>, Error> {
    let malformed = |what: &str| {
        Error::new(Code::AgentRefused, format!("the agent gave {what}"), "look at its log")
    };
    let addresses = pair
        .addresses()
        .map_err(|error| malformed(&format!("a malformed pod address ({error})")))?;
    if addresses.is_empty() {
        return Err(malformed("no address: neither enable-ipv4 nor enable-ipv6 is set"));
    }
    let with_gateway = |address: IpAddr| {
        let element = if address.is_ipv4() { &gateways.ipv4 } else { &gateways.ipv6 };
        let text = element.as_ref().map(|element| element.ip.as_str()).unwrap_or_default();
        match text.parse::<IpAddr>() {
            Ok(gateway) if gateway.is_ipv4() == address.is_ipv4() => {
                Ok(PodAddress { address, gateway })
            }
            _ => Err(malformed(&format!("{text:?} as the gateway of {address}"))),
        }
    };
    addresses.into_iter().map(with_gateway).collect()
}

/// 404 is an answer where the question is whether something exists.
fn found<T>(result: Result<T, ClientError>) -> Result<Option<T>, ClientError> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.status() == Some(404) => Ok(None),
        Err(error) => Err(error),
    }
}

fn refused(doing: &str, error: ClientError) -> Error {
    let code = match error.status() {
        Some(429 | 503) => Code::TryAgainLater,
        None if error.is_unreachable() => Code::TryAgainLater,
        _ => Code::AgentRefused,
    };
    let cause = std::error::Error::source(&error).map(|source| format!(": {source}"));
    Error::new(code, doing, format!("{error}{}", cause.unwrap_or_default()))
}

fn endpoint_path(id: &str) -> String {
    format!("{}/{}", path::ENDPOINT, client::encode(id))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_family_is_found() {
        let check =
            |status: &str, full: bool| assert_eq!(exhausted(status).is_some(), full, "{status}");
        check(
            "IPv4: 3/254 allocated from 10.0.0.0/24, IPv6: 254/254 allocated from fd00::/120",
            true,
        );
        check(
            "IPv4: 3/254 allocated from 10.0.0.0/24, IPv6: 25/254 allocated from fd00::/120",
            false,
        );
        check("IPv4: 254/254 allocated from 10.0.0.0/24", true);
        check("", false);
        check("disabled", false);
    }
}
