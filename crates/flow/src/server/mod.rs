//! Hubble's server: the services, and how they are served.
//!
//! ```text
//!  /var/run/cilium/hubble.sock ─┐
//!  :4244, TLS ──────────────────┴─► Observer, Peer, health, reflection
//! ```

mod listen;
mod observer;
mod peer;
pub mod tls;

use std::sync::Arc;

use api::hubble::FILE_DESCRIPTOR_SET;
use api::hubble::observer::observer_server::ObserverServer;
use api::hubble::peer::peer_server::PeerServer;
use tonic::service::Routes;

pub use listen::{Listener, serve};
pub use observer::ObserverService;
pub(crate) use observer::{Responses, respond, understand};
pub use peer::{PeerInfo, PeerService, Peers};

use crate::observer::Observer;

/// Name of the header that tells a client the server's version.
pub(crate) const VERSION_HEADER: &str = "hubble-server-version";

/// The services of an agent.
pub async fn agent_routes(
    observer: Arc<Observer>,
    address: NodeAddress,
    peers: PeerService,
) -> Routes {
    let observer = ObserverServer::new(ObserverService::new(observer, address));
    let routes = with_health_and_reflection(["observer.Observer", "peer.Peer"]).await;
    routes.add_service(observer).add_service(PeerServer::new(peers))
}

/// How an agent's server is reached, for the list of nodes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeAddress {
    /// Address and port; empty where it only serves its socket.
    pub address: String,
    /// The name that its certificate is checked against; none without TLS.
    pub server_name: Option<String>,
}

/// Health and reflection, version 1 and the one before, for these services.
pub(crate) async fn with_health_and_reflection<const N: usize>(services: [&str; N]) -> Routes {
    let (reporter, health) = tonic_health::server::health_reporter();
    for service in services {
        reporter.set_service_status(service, tonic_health::ServingStatus::Serving).await;
    }
    let builder = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let mut routes = Routes::new(health);
    // Our own descriptors are valid; a test asks for them.
    if let (Ok(v1), Ok(v1alpha)) = (builder().build_v1(), builder().build_v1alpha()) {
        routes = routes.add_service(v1).add_service(v1alpha);
    }
    routes
}
