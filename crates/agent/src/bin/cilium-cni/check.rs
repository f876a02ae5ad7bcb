//! CHECK: is the pod still wired as ADD left it, and is its endpoint healthy?

use std::net::IpAddr;

use ipnet::IpNet;
use kernel::netlink::Netlink;
use kernel::netns::Netns;
use serde::Deserialize;

use crate::agent::{Agent, Paths};
use crate::error::{Code, Error};
use crate::pod::{self, Plan};
use crate::request::{Request, Sandbox};
use crate::response::PodAddress;

pub(crate) fn run(paths: &Paths, sandbox: &Sandbox, request: &Request) -> Result<(), Error> {
    let previous = previous_result(request)?;
    let mut differences = host_differences(sandbox)?;
    differences.extend(pod_differences(sandbox, &previous)?);
    if !differences.is_empty() {
        return Err(Error::new(
            Code::Unhealthy,
            "the pod is not wired as ADD left it",
            differences.join("; "),
        ));
    }
    let id = sandbox.attachment.endpoint_id();
    let mut agent = Agent::new(paths);
    let Some(health) = agent.endpoint_health(&id)? else {
        return Err(Error::new(
            Code::HealthUnknown,
            format!("the agent does not know endpoint {id}"),
            "delete the pod and create it again",
        ));
    };
    // An endpoint whose pod has no labels yet is still "Pending": wired, and waiting.
    if matches!(health.overall_health.as_str(), "Failure" | "Warning") {
        return Err(Error::new(
            Code::Unhealthy,
            format!("endpoint {id} is not healthy"),
            format_args!("bpf: {}, policy: {}", health.bpf, health.policy),
        ));
    }
    Ok(())
}

/// What we read of the result of ADD, in the shape of any version that knows CHECK.
#[derive(Debug, Deserialize)]
struct PreviousResult {
    #[serde(default)]
    ips: Vec<PreviousIp>,
}

#[derive(Debug, Deserialize)]
struct PreviousIp {
    address: IpNet,
    gateway: Option<IpAddr>,
}

fn previous_result(request: &Request) -> Result<Vec<PodAddress>, Error> {
    let value = request.conf.prev_result.clone().unwrap_or_default();
    let previous: PreviousResult = serde_json::from_value(value).map_err(|error| {
        Error::new(Code::Decode, "cannot decode prevResult of the configuration", error)
    })?;
    previous
        .ips
        .iter()
        .map(|ip| match ip.gateway {
            Some(gateway) => Ok(PodAddress { address: ip.address.addr(), gateway }),
            None => Err(Error::new(
                Code::InvalidConfig,
                format!("prevResult has no gateway for {}", ip.address),
                "it must be the result of this plugin's ADD",
            )),
        })
        .collect()
}

fn host_differences(sandbox: &Sandbox) -> Result<Vec<String>, Error> {
    let name = sandbox.attachment.host_ifname();
    let host = Netlink::new().map_err(|error| Error::io("cannot reach the kernel", error))?;
    match host.link_by_name(&name) {
        Ok(link) if link.up => Ok(Vec::new()),
        Ok(_) => Ok(vec![format!("interface {name} of the node is down")]),
        Err(error) if error.is_not_found() => {
            Ok(vec![format!("interface {name} of the node is gone")])
        }
        Err(error) => Err(Error::io(format!("cannot look at interface {name}"), error)),
    }
}

fn pod_differences(sandbox: &Sandbox, previous: &[PodAddress]) -> Result<Vec<String>, Error> {
    let netns = match Netns::open(&sandbox.netns) {
        Ok(netns) => netns,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Ok(vec![format!("network namespace {} is gone", sandbox.netns.display())]);
        }
        Err(error) => return Err(Error::io("cannot open CNI_NETNS", error)),
    };
    let plan = Plan { ifname: &sandbox.attachment.ifname, addresses: previous, route_mtu: 0 };
    pod::differences(&netns, &plan)
        .map_err(|error| Error::io("cannot look at the pod's interface", error))
}
