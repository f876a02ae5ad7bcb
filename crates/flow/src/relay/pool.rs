//! The nodes that the relay knows, and a connection to each.
//!
//! Every node has a task that connects, asks the node's health service to tell when something
//! changes, and by that learns at once when the connection breaks; then it connects anew, more and
//! more rarely. One more task follows the list of nodes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use api::hubble::peer::peer_client::PeerClient;
use api::hubble::peer::{ChangeNotification, ChangeNotificationType, NotifyRequest};
use rustls::ClientConfig;
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};
use tonic::Status;
use tonic::transport::Channel;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

use crate::client::{Target, chain};
use crate::server::PeerInfo;
use crate::server::tls::{ClientFiles, Reloading};

/// Pause after the first failure; doubles up to [`PoolOptions::retry_max`].
const RETRY_MIN: Duration = Duration::from_millis(500);
/// How long a list of nodes that begins anew may take to name those that are still there.
const RELIST_GRACE: Duration = Duration::from_secs(5);

/// How the relay reaches nodes.
#[derive(Clone, Debug)]
pub struct PoolOptions {
    /// Who knows the list of nodes; tried in turn.
    pub peer_services: Vec<Target>,
    /// What we believe and show to nodes that serve with TLS; none refuses them.
    pub tls: Option<Arc<Reloading<ClientFiles, ClientConfig>>>,
    /// How long a connection may take to be made.
    pub dial_timeout: Duration,
    /// Longest pause between two attempts.
    pub retry_max: Duration,
}

/// A node, as it is now.
#[derive(Clone, Debug)]
pub(super) struct Node {
    /// Where it is.
    pub info: PeerInfo,
    /// A connection, or why there is none.
    pub channel: Result<Channel, String>,
    /// Counts connections: a node that was away has another one.
    pub connection: u64,
}

/// All nodes by name.
pub(super) type Nodes = BTreeMap<String, Node>;

/// The nodes, kept connected until this is dropped.
#[derive(Debug)]
pub struct Pool {
    nodes: watch::Receiver<Nodes>,
    tasks: Mutex<JoinSet<()>>,
}

impl Pool {
    /// Starts to follow the list of nodes.
    pub fn start(options: PoolOptions) -> Self {
        let (sender, nodes) = watch::channel(Nodes::new());
        let mut tasks = JoinSet::new();
        tasks.spawn(Follower { options, nodes: sender, dialers: BTreeMap::new() }.run());
        Self { nodes, tasks: Mutex::new(tasks) }
    }

    /// The nodes, and a way to wait for changes.
    pub(super) fn nodes(&self) -> watch::Receiver<Nodes> {
        self.nodes.clone()
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner).abort_all();
    }
}

/// Follows the list, and keeps a dialer per node.
struct Follower {
    options: PoolOptions,
    nodes: watch::Sender<Nodes>,
    dialers: BTreeMap<String, Dialer>,
}

/// A task that ends with this.
struct Dialer(AbortHandle);

impl Drop for Dialer {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Follower {
    async fn run(mut self) {
        let mut pause = RETRY_MIN;
        let services = self.options.peer_services.clone();
        for service in services.iter().cycle() {
            match self.follow(service).await {
                Ok(()) => pause = RETRY_MIN,
                Err(error) => {
                    tracing::warn!(peer_service = %service, error, "Cannot follow the list of nodes");
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(self.options.retry_max);
                }
            }
        }
    }

    /// Follows one service until it ends; an error where it did not even begin.
    async fn follow(&mut self, service: &Target) -> Result<(), String> {
        let channel = service.connect(self.options.dial_timeout).await.map_err(|e| chain(&e))?;
        let mut client = PeerClient::new(channel);
        let call = client.notify(NotifyRequest {});
        let mut changes = call.await.map_err(|status| status.to_string())?.into_inner();
        // Nodes that went while nobody told us are not named again.
        let mut unconfirmed: BTreeSet<String> = self.dialers.keys().cloned().collect();
        let grace = tokio::time::sleep(RELIST_GRACE);
        tokio::pin!(grace);
        let mut is_complete = false;
        loop {
            let change = tokio::select! {
                change = changes.message() => change,
                () = &mut grace, if !is_complete => {
                    is_complete = true;
                    std::mem::take(&mut unconfirmed).iter().for_each(|name| self.remove(name));
                    continue;
                }
            };
            match change {
                Ok(Some(change)) => {
                    unconfirmed.remove(&change.name);
                    self.apply(change);
                }
                Ok(None) => return Ok(()),
                Err(status) => {
                    tracing::info!(%status, "The list of nodes broke off; beginning anew");
                    return Ok(());
                }
            }
        }
    }

    fn apply(&mut self, change: ChangeNotification) {
        let change_type = change.r#type();
        let ChangeNotification { name, address, tls, .. } = change;
        if change_type == ChangeNotificationType::PeerDeleted {
            return self.remove(&name);
        }
        let info = PeerInfo { address, server_name: tls.map(|tls| tls.server_name) };
        if self.nodes.borrow().get(&name).is_some_and(|node| node.info == info) {
            return;
        }
        let channel = Err("not connected yet".to_owned());
        let node = Node { info: info.clone(), channel, connection: 0 };
        self.nodes.send_modify(|nodes| drop(nodes.insert(name.clone(), node)));
        let dial = dial(name.clone(), info, self.options.clone(), self.nodes.clone());
        self.dialers.insert(name, Dialer(tokio::spawn(dial).abort_handle()));
    }

    fn remove(&mut self, name: &str) {
        self.dialers.remove(name);
        self.nodes.send_modify(|nodes| drop(nodes.remove(name)));
    }
}

/// Keeps one node connected, for ever.
async fn dial(name: String, info: PeerInfo, options: PoolOptions, nodes: watch::Sender<Nodes>) {
    let set = |channel: Result<Channel, String>| {
        nodes.send_modify(|nodes| {
            // A node that was removed or moved meanwhile is another task's.
            if let Some(node) = nodes.get_mut(&name)
                && node.info == info
            {
                node.connection += u64::from(channel.is_ok());
                node.channel = channel;
            }
        });
    };
    let mut pause = RETRY_MIN;
    loop {
        let error = match connect(&info, &options).await {
            Ok(channel) => {
                tracing::info!(node = name, "Connected");
                pause = RETRY_MIN;
                set(Ok(channel.clone()));
                until_broken(channel).await
            }
            Err(error) => error,
        };
        tracing::warn!(node = name, address = info.address, error, "Not connected");
        set(Err(error));
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(options.retry_max);
    }
}

async fn connect(info: &PeerInfo, options: &PoolOptions) -> Result<Channel, String> {
    let target = match (&info.server_name, &options.tls) {
        (None, _) => Target::Tcp(info.address.clone()),
        (Some(server_name), Some(files)) => Target::Tls {
            address: info.address.clone(),
            server_name: server_name.clone(),
            files: files.clone(),
        },
        (Some(_), None) => {
            return Err("it serves with TLS: name the authorities of nodes, \
                        --tls-hubble-server-ca-files"
                .to_owned());
        }
    };
    target.connect(options.dial_timeout).await.map_err(|error| chain(&error))
}

/// Waits until the connection is gone, and says why.
async fn until_broken(channel: Channel) -> String {
    let mut client = HealthClient::new(channel);
    let request = HealthCheckRequest { service: "observer.Observer".to_owned() };
    let ended = |status: Status| format!("the connection broke: {}", status.message());
    match client.watch(request).await {
        Ok(response) => {
            let mut changes = response.into_inner();
            loop {
                match changes.message().await {
                    Ok(Some(_)) => {}
                    Ok(None) => return "the node closed the connection".to_owned(),
                    Err(status) => return ended(status),
                }
            }
        }
        Err(status) => ended(status),
    }
}
