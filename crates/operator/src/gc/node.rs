//! CiliumNodes whose Kubernetes Node is gone.
//!
//! An agent creates its CiliumNode with the Node as owner, and Kubernetes removes it with the Node. One
//! without an owner stays, and keeps its pod CIDRs, until it is collected here: when its Node was missing
//! in two rounds, at least an interval apart, since an agent may announce itself before its Node is
//! registered.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use api::crd::CiliumNode;
use api::k8s::Node;
use kube::{Api, ResourceExt};
use model::NodeName;
use tokio::time::Instant;

use super::{Collector, only, unless_changed};
use crate::watch::list;

/// Annotation of a CiliumNode that is to be kept, with the value `true`.
pub const KEEP: &str = "cilium.io/do-not-gc";

/// A CiliumNode that may be collected, as it was listed.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Listed {
    /// The node.
    pub node: NodeName,
    /// Which object of that name it is.
    pub uid: Option<String>,
}

/// CiliumNodes whose Node was missing, and since when.
#[derive(Clone, Debug)]
pub struct Candidates {
    patience: Duration,
    since: BTreeMap<Listed, Instant>,
}

impl Candidates {
    /// None yet; a Node must be missing for `patience`.
    pub fn new(patience: Duration) -> Self {
        Self { patience, since: BTreeMap::new() }
    }

    /// Those of `listed` whose Node is missing for long enough at `now`.
    pub fn decide(
        &mut self,
        listed: Vec<Listed>,
        nodes: &BTreeSet<NodeName>,
        now: Instant,
    ) -> Vec<Listed> {
        let missing = listed.into_iter().filter(|listed| !nodes.contains(&listed.node));
        let since = |one: Listed| (self.since.get(&one).copied().unwrap_or(now), one);
        self.since = missing.map(since).map(|(since, one)| (one, since)).collect();
        let stale = self.since.iter().filter(|(_, since)| now - **since >= self.patience);
        stale.map(|(one, _)| one.clone()).collect()
    }
}

/// Collects CiliumNodes.
pub struct Nodes {
    cilium_nodes: Api<CiliumNode>,
    nodes: Api<Node>,
    candidates: Candidates,
}

impl Nodes {
    /// For the cluster behind `client`.
    pub fn new(client: &kube::Client, interval: Duration) -> Self {
        Self {
            cilium_nodes: Api::all(client.clone()),
            nodes: Api::all(client.clone()),
            candidates: Candidates::new(interval),
        }
    }
}

impl Collector for Nodes {
    const NAME: &'static str = "cilium-node-gc";

    async fn collect(&mut self) -> kube::Result<String> {
        let listed = list(&self.cilium_nodes, |object| listed(&object)).await?;
        let total = listed.len();
        let nodes = list(&self.nodes, |node| Some(NodeName::new(node.name_any()))).await?;
        let nodes = nodes.into_iter().collect();
        let mut deleted = 0;
        for Listed { node, uid } in self.candidates.decide(listed, &nodes, Instant::now()) {
            let params = only(uid, None);
            if unless_changed(self.cilium_nodes.delete(node.as_str(), &params).await)? {
                tracing::info!(%node, "deleted the CiliumNode of a node that is gone");
                deleted += 1;
            }
        }
        Ok(format!("{total} nodes, {deleted} deleted"))
    }
}

fn listed(object: &CiliumNode) -> Option<Listed> {
    let keep = object.annotations().get(KEEP);
    if keep.is_some_and(|keep| keep.eq_ignore_ascii_case("true")) {
        return None;
    }
    Some(Listed { node: NodeName::new(object.name_any()), uid: object.metadata.uid.clone() })
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROUND: Duration = Duration::from_secs(300);

    /// Rounds of (CiliumNodes, Nodes); what each round deletes.
    #[track_caller]
    fn check(rounds: &[(&str, &str)], expected: &[&str]) {
        let start = Instant::now();
        let mut candidates = Candidates::new(ROUND);
        let rounds = (0u32..).zip(rounds).map(|(round, (cilium_nodes, nodes))| {
            let one = |name: &str| Listed { node: NodeName::new(name), uid: None };
            let listed = cilium_nodes.split_whitespace().map(one).collect();
            let nodes = nodes.split_whitespace().map(NodeName::new).collect();
            let stale = candidates.decide(listed, &nodes, start + round * ROUND);
            stale.iter().map(|listed| listed.node.to_string()).collect::<Vec<_>>().join(" ")
        });
        assert_eq!(rounds.collect::<Vec<_>>(), expected);
    }

    #[test]
    fn a_node_is_deleted_at_the_second_look() {
        check(&[("a b", "a b"), ("a b", "a"), ("a b", "a"), ("a", "a")], &["", "", "b", ""]);
        check(&[("a", ""), ("a", "a"), ("a", ""), ("a", "")], &["", "", "", "a"]);
    }

    #[test]
    fn one_that_was_made_anew_is_another() {
        let mut candidates = Candidates::new(ROUND);
        let one = |uid: &str| Listed { node: NodeName::new("a"), uid: Some(uid.to_owned()) };
        let now = Instant::now();
        assert!(candidates.decide(vec![one("1")], &BTreeSet::new(), now).is_empty());
        assert!(candidates.decide(vec![one("2")], &BTreeSet::new(), now + ROUND).is_empty());
        let stale = candidates.decide(vec![one("2")], &BTreeSet::new(), now + 2 * ROUND);
        assert_eq!(stale, [one("2")]);
    }

    #[test]
    fn an_annotation_keeps_a_node() {
        let mut node = CiliumNode::new("a");
        assert!(listed(&node).is_some());
        node.annotations_mut().insert(KEEP.to_owned(), "True".to_owned());
        assert_eq!(listed(&node), None);
    }
}
