//! The relay: asks all nodes, and answers as one.
//!
//! ```text
//!  peer service (of any agent) ──► Pool: a connection per node, kept up
//!                                    │
//!  client ──► observer.Observer ─────┴─► the same call to every node ──► merged by time
//! ```
//!
//! Nodes come and go while clients follow: each change is told in between flows.

mod merge;
mod pool;
mod service;

pub use pool::{Pool, PoolOptions};
pub use service::RelayService;

use api::hubble::observer::observer_server::ObserverServer;
use tonic::service::Routes;

/// The services of a relay.
pub async fn routes(service: RelayService) -> Routes {
    let routes = crate::server::with_health_and_reflection(["observer.Observer"]).await;
    routes.add_service(ObserverServer::new(service))
}
