//! GC: removes everything of pods that the runtime no longer knows.

use std::collections::HashSet;

use kernel::netlink::Netlink;

use crate::agent::{Agent, Paths};
use crate::attachment::is_host_ifname;
use crate::del;
use crate::error::Error;
use crate::request::{Attachment, Request};

/// Removes what it can and reports the first thing that it could not.
pub(crate) fn run(paths: &Paths, request: &Request) -> Result<(), Error> {
    let valid: Vec<Attachment> =
        request.conf.valid_attachments.iter().flatten().map(Attachment::from).collect();
    let mut agent = Agent::new(paths);
    let valid_ids: HashSet<String> = valid.iter().map(Attachment::id).collect();
    let mut outcome = Ok(());
    for id in agent.attachment_ids()?.iter().filter(|id| !valid_ids.contains(*id)) {
        let deleted = agent.delete_endpoint(&format!("cni-attachment-id:{id}")).map(drop);
        outcome = outcome.and(deleted);
    }
    let valid_links: HashSet<String> = valid.iter().map(Attachment::host_ifname).collect();
    let host = Netlink::new().map_err(|error| Error::io("cannot reach the kernel", error))?;
    let links = host.links().map_err(|error| Error::io("cannot list interfaces", error))?;
    for link in links.iter().filter(|link| link.kind == "veth" && is_host_ifname(&link.name)) {
        if !valid_links.contains(&link.name) {
            outcome = outcome.and(del::delete_link(&host, &link.name));
        }
    }
    outcome
}
