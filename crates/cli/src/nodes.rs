//! Which agents a command asks.
//!
//! One agent, where one is named or runs on this machine; else all agents of the current lab, and
//! then the answer has a section per node.

use std::path::{Path, PathBuf};

use anyhow::{Result, anyhow, bail};
use api::rest::{Client, DEFAULT_SOCKET};
use lab::control::NodeStatus;
use lab::spec::DEFAULT_NAME;

use crate::args::Whom;

/// Where an agent pins its maps unless told otherwise.
const DEFAULT_BPFFS: &str = "/sys/fs/bpf";

/// An agent and the datapath of its node.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    /// Its name, where it was found by name or among others.
    pub(crate) name: Option<String>,
    pub(crate) socket: PathBuf,
    pub(crate) bpffs: PathBuf,
}

/// The agents to ask.
#[derive(Clone, Debug)]
pub(crate) struct Nodes {
    pub(crate) all: Vec<Node>,
    /// Whether to say of each answer whose it is.
    pub(crate) sections: bool,
}

impl Node {
    pub(crate) fn client(&self) -> Client {
        Client::new(&self.socket)
    }

    /// The name for progress and errors.
    pub(crate) fn label(&self) -> String {
        self.name.clone().unwrap_or_else(|| self.socket.display().to_string())
    }
}

impl From<&NodeStatus> for Node {
    fn from(node: &NodeStatus) -> Self {
        Self {
            name: Some(node.name.clone()),
            socket: node.agent_socket.clone(),
            bpffs: node.bpffs.clone(),
        }
    }
}

impl Nodes {
    pub(crate) fn select(whom: &Whom) -> Result<Self> {
        if let Some(socket) = &whom.socket {
            return Ok(Self::one(at_socket(whom, socket)));
        }
        if let Some(name) = &whom.node {
            let nodes = of_lab(whom)?;
            let names: Vec<&str> = nodes.iter().map(|node| node.name.as_str()).collect();
            let found = nodes.iter().find(|node| node.name == *name).ok_or_else(|| {
                anyhow!("the lab has no node {name:?}, but: {}", names.join(", "))
            })?;
            return Ok(Self::one(found.into()));
        }
        if whom.lab.is_none() && Path::new(DEFAULT_SOCKET).exists() {
            return Ok(Self::one(Node {
                name: None,
                socket: PathBuf::from(DEFAULT_SOCKET),
                bpffs: PathBuf::from(DEFAULT_BPFFS),
            }));
        }
        let nodes = of_lab(whom)?;
        if nodes.is_empty() {
            bail!("the lab has no nodes yet");
        }
        Ok(Self { all: nodes.iter().map(Node::from).collect(), sections: true })
    }

    fn one(node: Node) -> Self {
        Self { all: vec![node], sections: false }
    }
}

/// The nodes of the lab that is meant, which must be running.
fn of_lab(whom: &Whom) -> Result<Vec<NodeStatus>> {
    let labs = lab::teardown::names()?;
    let list = labs.join(", ");
    match (&whom.lab, labs.as_slice()) {
        (None, []) => bail!(
            "no agent runs on this machine ({DEFAULT_SOCKET} does not exist), and no lab; start one \
             with `cilium lab up`, or name an agent with --socket PATH"
        ),
        (None, [_]) => {}
        (None, many) if many.iter().any(|lab| lab == DEFAULT_NAME) => {}
        (None, _) => bail!("there are several labs: {list}; choose one with --lab"),
        (Some(name), _) if labs.contains(name) => {}
        (Some(name), []) => {
            bail!("there is no lab {name:?}; start it with `cilium lab up --name {name}`")
        }
        (Some(name), _) => bail!("there is no lab {name:?}, but: {list}"),
    }
    Ok(lab::command::lab_status(whom.lab.as_deref())?.nodes)
}

/// The maps of a lab's node, of whichever lab, are not where those of this machine are.
fn at_socket(whom: &Whom, socket: &Path) -> Node {
    let labs = match &whom.lab {
        Some(lab) => vec![lab.clone()],
        None if socket == Path::new(DEFAULT_SOCKET) => Vec::new(),
        None => lab::teardown::names().unwrap_or_default(),
    };
    // One that does not answer has no agent to ask either.
    let statuses = labs.iter().filter_map(|lab| lab::command::lab_status(Some(lab)).ok());
    let found = statuses.flat_map(|lab| lab.nodes).find(|node| node.agent_socket == socket);
    match found {
        Some(node) => (&node).into(),
        None => Node { name: None, socket: socket.to_owned(), bpffs: PathBuf::from(DEFAULT_BPFFS) },
    }
}
