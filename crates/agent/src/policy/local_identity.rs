//! Numbers that only this node gives: to prefixes that rules name (scope 1 << 24), and to nodes by
//! their labels (scope 2 << 24).
//!
//! They stand in maps that outlive the agent, so a number must mean the same after a restart. They are
//! counted by who needs them, written to a file before any map has them, and taken from it by the
//! next agent; numbers go up and round the ring, so a freed one rests as long as possible.
//!
//! ```text
//!  <state-dir>/state/local_identities.json
//! ```

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ipnet::IpNet;
use model::{IdentityId, Label, Labels};
use serde::{Deserialize, Serialize};

use crate::checkpoint::{self, CheckpointError};

/// The bits of a number below its scope.
const NUMBER_MAX: u32 = (1 << 24) - 1;

/// Which numbers an identity gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scope {
    /// Prefixes outside the cluster.
    Local,
    /// Other nodes.
    RemoteNode,
}

impl Scope {
    const fn base(self) -> u32 {
        match self {
            Self::Local => abi::identity::SCOPE_LOCAL,
            Self::RemoteNode => abi::identity::SCOPE_REMOTE_NODE,
        }
    }
}

/// All numbers of a scope are in use.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "all {NUMBER_MAX} local identities of the node are in use; use fewer prefixes in policies, \
     or fewer labels on nodes"
)]
pub struct Exhausted;

/// The node's own identities. See the module's description.
#[derive(Debug, Default)]
pub struct LocalIdentities {
    by_labels: BTreeMap<(Scope, Arc<Labels>), Entry>,
    by_id: BTreeMap<IdentityId, Arc<Labels>>,
    last: BTreeMap<Scope, u32>,
    /// Whether the file differs from what is here.
    dirty: bool,
    path: Option<PathBuf>,
}

#[derive(Debug)]
struct Entry {
    id: IdentityId,
    users: usize,
}

#[derive(Debug, Serialize, Deserialize)]
struct Saved {
    id: IdentityId,
    labels: Labels,
}

const FILE: &str = "local_identities.json";

impl LocalIdentities {
    /// The numbers that the agent before us gave, without users yet. `in_maps` are numbers that maps
    /// hold: none of them is given to other labels before the ring is round, even if the file is lost.
    pub fn restore(
        state_dir: &Path,
        in_maps: impl IntoIterator<Item = IdentityId>,
    ) -> Result<Self, CheckpointError> {
        let path = state_dir.join("state").join(FILE);
        let saved: Vec<Saved> = checkpoint::read(&path)?.unwrap_or_default();
        let mut identities = Self { path: Some(path), ..Self::default() };
        for Saved { id, labels } in saved {
            let Some(scope) = scope_of(id) else { continue };
            let labels = Arc::new(labels);
            identities.by_id.insert(id, Arc::clone(&labels));
            identities.by_labels.insert((scope, labels), Entry { id, users: 0 });
            identities.rest(id);
        }
        in_maps.into_iter().for_each(|id| identities.rest(id));
        Ok(identities)
    }

    /// One more user of the number of these labels, which is made if need be.
    pub fn acquire(&mut self, scope: Scope, labels: &Arc<Labels>) -> Result<IdentityId, Exhausted> {
        let key = (scope, Arc::clone(labels));
        if let Some(entry) = self.by_labels.get_mut(&key) {
            entry.users += 1;
            return Ok(entry.id);
        }
        let id = self.next_free(scope).ok_or(Exhausted)?;
        self.last.insert(scope, id.0 - scope.base());
        self.by_id.insert(id, Arc::clone(labels));
        self.by_labels.insert(key, Entry { id, users: 1 });
        self.dirty = true;
        Ok(id)
    }

    /// One user less; true when it was the last, and the number is free.
    pub fn release(&mut self, id: IdentityId) -> bool {
        let Some(scope) = scope_of(id) else { return false };
        let Some(labels) = self.by_id.get(&id) else { return false };
        let key = (scope, Arc::clone(labels));
        let entry = self.by_labels.get_mut(&key).expect("both indices have the same identities");
        entry.users = entry.users.saturating_sub(1);
        if entry.users > 0 {
            return false;
        }
        self.forget(&key, id);
        true
    }

    /// Frees the numbers of the agent before us that nobody has taken: to be called when everybody
    /// who could has spoken.
    pub fn release_unused(&mut self) -> usize {
        let unused: Vec<_> = self
            .by_labels
            .iter()
            .filter(|(_, entry)| entry.users == 0)
            .map(|(key, entry)| (key.clone(), entry.id))
            .collect();
        for (key, id) in &unused {
            self.forget(key, *id);
        }
        unused.len()
    }

    /// What a number stands for.
    pub fn labels(&self, id: IdentityId) -> Option<&Arc<Labels>> {
        self.by_id.get(&id)
    }

    /// How many numbers are in use.
    pub fn len(&self) -> usize {
        self.by_id.len()
    }

    /// Whether no number is in use.
    pub fn is_empty(&self) -> bool {
        self.by_id.is_empty()
    }

    /// Writes the file, if anything changed since: before any map gets to know a number.
    pub fn save(&mut self) -> Result<(), CheckpointError> {
        if !self.dirty {
            return Ok(());
        }
        if let Some(path) = &self.path {
            let saved: Vec<Saved> = self
                .by_id
                .iter()
                .map(|(id, labels)| Saved { id: *id, labels: Labels::clone(labels) })
                .collect();
            checkpoint::write(path, &saved)?;
        }
        self.dirty = false;
        Ok(())
    }

    fn forget(&mut self, key: &(Scope, Arc<Labels>), id: IdentityId) {
        self.by_labels.remove(key);
        self.by_id.remove(&id);
        self.dirty = true;
    }

    /// Keeps `id` from being given soon.
    fn rest(&mut self, id: IdentityId) {
        if let Some(scope) = scope_of(id) {
            let last = self.last.entry(scope).or_default();
            *last = (*last).max(id.0 - scope.base());
        }
    }

    fn next_free(&self, scope: Scope) -> Option<IdentityId> {
        let last = self.last.get(&scope).copied().unwrap_or(0);
        let id = |number: u32| IdentityId(scope.base() + number);
        let mut numbers = (last + 1..=NUMBER_MAX).chain(1..=last);
        numbers.find(|number| !self.by_id.contains_key(&id(*number))).map(id)
    }
}

fn scope_of(id: IdentityId) -> Option<Scope> {
    match id.0 & abi::identity::SCOPE_MASK {
        abi::identity::SCOPE_LOCAL => Some(Scope::Local),
        abi::identity::SCOPE_REMOTE_NODE => Some(Scope::RemoteNode),
        _ => None,
    }
}

/// The labels of a prefix: `cidr:<prefix>`, the world that it is a part of, and what the groups that
/// name it say of it.
pub fn prefix_labels(
    prefix: IpNet,
    dual_stack: bool,
    more: impl IntoIterator<Item = Label>,
) -> Labels {
    let world = match (dual_stack, prefix) {
        (false, _) => "world",
        (true, IpNet::V4(_)) => "world-ipv4",
        (true, IpNet::V6(_)) => "world-ipv6",
    };
    // Colons would end the label's source, so Cilium writes hyphens.
    let text = prefix.trunc().to_string().replace(':', "-");
    let own = [Label::new(model::label::SOURCE_CIDR, text, ""), Label::reserved(world)];
    own.into_iter().chain(more).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(prefix: &str) -> Arc<Labels> {
        Arc::new(prefix_labels(prefix.parse().unwrap(), true, []))
    }

    #[test]
    fn numbers_are_counted_and_rest() {
        let mut identities = LocalIdentities::default();
        let (a, b) = (labels("10.0.0.0/8"), labels("fd00::/8"));
        assert_eq!(a.to_string(), "cidr:10.0.0.0/8,reserved:world-ipv4");
        assert_eq!(b.to_string(), "cidr:fd00--/8,reserved:world-ipv6");
        let first = identities.acquire(Scope::Local, &a).unwrap();
        assert_eq!(first, IdentityId(1 << 24 | 1));
        assert_eq!(identities.acquire(Scope::Local, &a), Ok(first), "equal labels share a number");
        assert!(!identities.release(first));
        assert!(identities.release(first));
        assert!(!identities.release(first), "it is not there any more");
        let second = identities.acquire(Scope::Local, &b).unwrap();
        assert_eq!(second, IdentityId(1 << 24 | 2), "the freed number rests");
        let node = identities.acquire(Scope::RemoteNode, &b).unwrap();
        assert_eq!(node, IdentityId(2 << 24 | 1), "scopes have numbers of their own");
        assert_eq!(identities.labels(second), Some(&b));
    }

    #[test]
    fn a_restart_keeps_the_numbers() {
        let dir = std::env::temp_dir().join(format!("local-identities-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        let mut before = LocalIdentities::restore(&dir, []).unwrap();
        let (a, b) = (labels("10.0.0.0/8"), labels("10.1.0.0/16"));
        let ids = [&a, &b].map(|labels| before.acquire(Scope::Local, labels).unwrap());
        before.save().unwrap();
        let in_maps = IdentityId(1 << 24 | 77);
        let mut after = LocalIdentities::restore(&dir, [in_maps]).unwrap();
        assert_eq!(after.acquire(Scope::Local, &b), Ok(ids[1]));
        let new = after.acquire(Scope::Local, &labels("10.2.0.0/16")).unwrap();
        assert_eq!(new, IdentityId(1 << 24 | 78), "maps may know higher numbers than the file");
        assert_eq!(after.release_unused(), 1, "nobody wants the first one any more");
        assert_eq!(after.labels(ids[0]), None);
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
