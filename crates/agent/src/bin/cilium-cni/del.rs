//! DEL: wires a pod out. Succeeds when the pod is not there, and when the agent is not there: then
//! the deletion is left in the agent's queue.

use std::time::Duration;

use ::agent::delete_queue::{DeleteQueue, Holder};
use kernel::netlink::Netlink;

use crate::agent::{Agent, Paths};
use crate::error::{Code, Error};
use crate::request::Attachment;

/// How long an agent may hold the queue while it starts.
const QUEUE_PATIENCE: Duration = Duration::from_secs(10);

pub(crate) fn run(paths: &Paths, attachment: &Attachment) -> Result<(), Error> {
    // Taking a link away makes the kernel wait for every CPU, so the agent works meanwhile. The
    // two do not meet: the agent forgets a device by its index, whether it is there or not.
    std::thread::scope(|scope| {
        let link = scope.spawn(|| {
            let host =
                Netlink::new().map_err(|error| Error::io("cannot reach the kernel", error))?;
            delete_link(&host, &attachment.host_ifname())
        });
        let endpoint = delete_endpoint(paths, &attachment.endpoint_id());
        let link = link.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        link.and(endpoint)
    })
}

/// Deletes the host's end of a pair and the pod's end with it. No link is fine.
pub(crate) fn delete_link(host: &Netlink, name: &str) -> Result<(), Error> {
    let deleted = host.link_by_name(name).and_then(|link| host.delete_link(link.index));
    match deleted {
        Err(error) if !error.is_not_found() => {
            Err(Error::io(format!("cannot delete interface {name}"), error))
        }
        _ => Ok(()),
    }
}

/// Has the agent delete an endpoint, now or when it is back. No endpoint is fine.
pub(crate) fn delete_endpoint(paths: &Paths, endpoint: &str) -> Result<(), Error> {
    match delete_now(paths, endpoint) {
        Err(error) if error.code == Code::TryAgainLater => {}
        result => return result,
    }
    let queue = DeleteQueue::beside(&paths.socket);
    let lock = queue
        .lock(Holder::Plugin, QUEUE_PATIENCE)
        .map_err(|error| Error::new(Code::TryAgainLater, "cannot queue the deletion", error))?;
    // The agent may have come back while we waited for it to read the queue.
    match delete_now(paths, endpoint) {
        Err(error) if error.code == Code::TryAgainLater => {}
        result => return result,
    }
    queue.push(&lock, endpoint).map_err(|error| Error::io("cannot queue the deletion", error))
}

fn delete_now(paths: &Paths, endpoint: &str) -> Result<(), Error> {
    Agent::new(paths).delete_endpoint(endpoint).map(drop)
}
