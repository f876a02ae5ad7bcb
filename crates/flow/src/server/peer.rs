//! `peer.Peer`: tells relays who else serves Hubble.

use std::collections::{BTreeMap, VecDeque};

use api::hubble::peer::peer_server::Peer as Service;
use api::hubble::peer::{ChangeNotification, ChangeNotificationType, NotifyRequest, Tls};
use tokio::sync::watch;
use tonic::{Request, Response, Status};

use super::observer::Responses;

/// A node that serves Hubble.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PeerInfo {
    /// Address and port of its server.
    pub address: String,
    /// The name that its certificate is checked against; none without TLS.
    pub server_name: Option<String>,
}

/// Peers by name of their node.
pub type Peers = BTreeMap<String, PeerInfo>;

/// Serves the list of peers, and what changes in it.
#[derive(Clone, Debug)]
pub struct PeerService {
    peers: watch::Receiver<Peers>,
}

impl PeerService {
    /// A service that follows `peers`.
    pub fn new(peers: watch::Receiver<Peers>) -> Self {
        Self { peers }
    }
}

/// What a client has to be told to know `new` where it knows `old`.
fn changes(old: &Peers, new: &Peers) -> Vec<ChangeNotification> {
    use ChangeNotificationType as Type;
    let note = |name: &String, peer: &PeerInfo, change: Type| ChangeNotification {
        name: name.clone(),
        address: peer.address.clone(),
        r#type: change.into(),
        tls: peer.server_name.clone().map(|server_name| Tls { server_name }),
    };
    let gone = old.iter().filter(|(name, _)| !new.contains_key(*name));
    let gone = gone.map(|(name, peer)| note(name, peer, Type::PeerDeleted));
    let here = new.iter().filter_map(|(name, peer)| match old.get(name) {
        None => Some(note(name, peer, Type::PeerAdded)),
        Some(before) if before != peer => Some(note(name, peer, Type::PeerUpdated)),
        Some(_) => None,
    });
    gone.chain(here).collect()
}

#[tonic::async_trait]
impl Service for PeerService {
    type NotifyStream = Responses<ChangeNotification>;

    async fn notify(
        &self,
        _: Request<NotifyRequest>,
    ) -> Result<Response<Self::NotifyStream>, Status> {
        let mut peers = self.peers.clone();
        peers.mark_changed();
        let state = (peers, Peers::new(), VecDeque::new());
        let stream = futures::stream::unfold(state, |(mut peers, mut known, mut ready)| async {
            loop {
                if let Some(change) = ready.pop_front() {
                    return Some((Ok(change), (peers, known, ready)));
                }
                peers.changed().await.ok()?;
                let now = peers.borrow_and_update().clone();
                ready.extend(changes(&known, &now));
                known = now;
            }
        });
        Ok(Response::new(Box::pin(stream)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(address: &str) -> PeerInfo {
        PeerInfo { address: address.to_owned(), server_name: None }
    }

    #[test]
    fn clients_are_told_what_changed() {
        let old = Peers::from([("a".to_owned(), peer("1")), ("b".to_owned(), peer("2"))]);
        let new = Peers::from([("b".to_owned(), peer("3")), ("c".to_owned(), peer("4"))]);
        let told: Vec<_> = changes(&old, &new)
            .into_iter()
            .map(|change| (change.name.clone(), change.r#type().as_str_name(), change.address))
            .collect();
        let expected =
            [("a", "PEER_DELETED", "1"), ("b", "PEER_UPDATED", "3"), ("c", "PEER_ADDED", "4")];
        assert_eq!(told, expected.map(|(n, t, a)| (n.to_owned(), t, a.to_owned())));
        assert!(changes(&new, &new).is_empty());
    }
}
