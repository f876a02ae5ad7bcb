//! Whether the nodes of the cluster reach each other: `cilium-health`.
//!
//! ```text
//!   agent of node 1                                     node 2
//!   prober ─┬─ ICMP echo, HTTP :4240/hello ───────────► its own addresses
//!           └─ the same, as pods' traffic goes ───────► its health endpoint: lxc_health ══ eth0
//!   every interval, or at once when asked by health.sock           in the namespace cilium-health
//! ```
//!
//! The health endpoint is an endpoint like a pod's, with the reserved identity `health`; that it
//! answers shows that traffic of pods passes between the nodes. ICMP is answered by the kernel, also
//! while the agent is away; HTTP by the agent, with a socket that it opens inside the namespace.
//!
//! [`endpoint`] keeps the health endpoint, [`responder`] answers, [`probe`] asks ([`icmp`], [`http`]),
//! [`api`] tells.

pub mod api;
pub mod endpoint;
pub mod http;
pub mod icmp;
pub mod probe;
pub mod responder;

use std::net::IpAddr;
use std::sync::Arc;

use ::api::config::Config;
use kernel::netlink::Netlink;
use statedb::Table;
use statedb::job::Group;
use tokio::sync::watch;

use crate::controllers::LocalNode;
use crate::endpoint::Endpoints;
use crate::ready::Pending;
use crate::rest::Agent;
use crate::tables::Node;

pub use probe::Prober;

/// The addresses of the node's health endpoint, for its announcement; none while there is none.
pub type Announced = watch::Sender<Vec<IpAddr>>;

/// The prober, where nodes are probed at all.
pub fn prober(config: &Config, node: &Arc<LocalNode>, nodes: &Table<Node>) -> Option<Arc<Prober>> {
    let settings = probe::Settings {
        cluster: config.cluster_name.clone(),
        port: config.cluster_health_port,
        icmp_attempts: config.health_check_icmp_failure_threshold,
        ratio: config.connectivity_probe_frequency_ratio.0,
    };
    let prober = || Arc::new(Prober::new(settings, node.clone(), nodes.clone()));
    config.enable_health_checking.then(prober)
}

/// Starts what is on, and removes what an agent before us left of what is off. `first_try` is done
/// when the health endpoint is there, or was found not to be possible now.
pub fn start(
    jobs: &Group,
    agent: &Arc<Agent>,
    netlink: &Arc<Netlink>,
    announced: Announced,
    first_try: Pending,
) {
    let config = &agent.config;
    let keeper = endpoint::Keeper {
        netlink: netlink.clone(),
        node: agent.node.clone(),
        endpoints: agent.endpoints.clone(),
        netns: config.state_dir.join("netns").join(endpoint::NAME),
        port: config.cluster_health_port,
    };
    let on = config.enable_health_checking && config.enable_endpoint_health_checking;
    jobs.spawn("health-endpoint", move |job| async move {
        if on {
            keeper.keep(job, announced, first_try).await
        } else {
            keeper.remove(first_try).await
        }
    });
    let Some(prober) = &agent.prober else { return };
    let port = config.cluster_health_port;
    jobs.spawn("health-responder", move |job| responder::serve_node(job, port));
    let on_time = prober.clone();
    jobs.spawn("health-probes", move |job| on_time.run(job));
    let (agent, prober) = (agent.clone(), prober.clone());
    jobs.spawn("health-api", move |job| api::serve(job, agent, prober));
}

/// The endpoint's deletion, for [`Endpoints`].
async fn forget(endpoints: &Endpoints) {
    let which = ::api::rest::EndpointRef::Container(endpoint::NAME.to_owned());
    endpoints.delete(&which).await;
}
