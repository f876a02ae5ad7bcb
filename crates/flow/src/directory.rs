//! Who is who: what the agent knows about addresses, identities, devices and services, arranged for
//! looking up a hundred thousand times a second.
//!
//! The agent writes what its tables say; whoever makes flows of events reads. What a row has looked
//! up stays true to the moment it was looked up: rows share it, they do not ask again.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

/// What stands behind an address: a pod of this node, of another, or a node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Peer {
    /// Number of the endpoint on this node; 0 where it is not on this node.
    pub endpoint_id: u16,
    /// Its identity, as the agent knows it.
    pub identity: u32,
    /// The pod's namespace; empty for what is no pod.
    pub namespace: String,
    /// The pod's name; empty for what is no pod.
    pub pod: String,
    /// What runs the pod, outermost last.
    pub workloads: Vec<Workload>,
}

/// What runs a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Workload {
    /// As in `web`.
    pub name: String,
    /// As in `Deployment`.
    pub kind: String,
}

/// What an identity stands for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IdentityLabels {
    /// `source:key=value`, in order.
    pub labels: Vec<String>,
    /// The cluster among them; empty where there is none.
    pub cluster: String,
}

/// A service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceName {
    /// Its name.
    pub name: String,
    /// Its namespace.
    pub namespace: String,
}

/// The policies whose rules decided about a flow.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Deciders {
    /// The policies, each once.
    pub policies: Vec<api::hubble::flow::Policy>,
    /// The texts that their rules ask to be logged, each once.
    pub logs: Vec<String>,
}

/// Everything that events are looked up in.
#[derive(Debug, Default)]
pub struct Directory {
    /// By address.
    pub peers: HashMap<IpAddr, Arc<Peer>>,
    /// By number.
    pub identities: HashMap<u32, Arc<IdentityLabels>>,
    /// Devices of the node, by index.
    pub interfaces: HashMap<u32, Arc<str>>,
    /// By address and port of a frontend.
    pub services: HashMap<(IpAddr, u16), Arc<ServiceName>>,
    /// DNS names that an endpoint of this node asked for, by the endpoint and the address it was told.
    pub names: HashMap<(u16, IpAddr), Arc<[String]>>,
    /// Endpoints of this node, by the control group of their processes.
    pub control_groups: HashMap<u64, (IpAddr, Arc<Peer>)>,
}

impl Directory {
    /// A directory that knows the reserved identities.
    pub fn new() -> Self {
        let mut directory = Self::default();
        for number in 0..abi::identity::CLUSTER_MIN {
            let Some(name) = abi::identity::reserved_name(number) else { continue };
            let labels = vec![format!("reserved:{name}")];
            directory
                .identities
                .insert(number, Arc::new(IdentityLabels { labels, cluster: String::new() }));
        }
        directory
    }
}
