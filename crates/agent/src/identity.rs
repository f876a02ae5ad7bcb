//! Which number stands for a set of labels, cluster-wide.
//!
//! The truth is one `CiliumIdentity` per set, named by its number; the `identities` table is a watch
//! of them. A set that the table knows is resolved without asking anyone, so pods of known labels
//! start while the API server is away. An unknown set takes the next free number by creating the
//! object: the name is unique, so when two nodes want the same number one of them is told who was
//! first. If that one had the same labels both agree; otherwise the loser tries the next number.
//! Since every node counts the same way, equal sets that appear on many nodes at once meet at the
//! same number.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

use futures::future::BoxFuture;
use model::{IdentityId, Label, Labels};
use statedb::{Change, Changes, Row, Table, Writer};

/// How often an allocation tries another number before it gives up; the caller retries later.
const ATTEMPTS_MAX: u32 = 64;

/// An identity of the cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Its number.
    pub id: IdentityId,
    /// What it stands for.
    pub labels: Arc<Labels>,
}

impl Row for Identity {
    type Key = IdentityId;
    const HEADERS: &'static [&'static str] = &["ID", "LABELS"];

    fn key(&self) -> IdentityId {
        self.id
    }

    fn cells(&self) -> Vec<String> {
        vec![self.id.to_string(), self.labels.to_string()]
    }
}

/// Where identities are made known to the cluster.
pub trait IdentityStore: Send + Sync + 'static {
    /// Claims `identity.id` for `identity.labels`.
    fn create<'a>(&'a self, identity: &'a Identity) -> BoxFuture<'a, Result<Created, StoreError>>;
}

/// What became of a claim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Created {
    /// The number is ours.
    New,
    /// Somebody was first, for these labels.
    Taken(Arc<Labels>),
}

/// The store could not be asked.
#[derive(Debug, thiserror::Error)]
#[error("failed to create CiliumIdentity {id}")]
pub struct StoreError {
    /// The number that was to be claimed.
    pub id: IdentityId,
    /// Why.
    #[source]
    pub source: Box<dyn std::error::Error + Send + Sync>,
}

/// Why a set of labels has no number.
#[derive(Debug, thiserror::Error)]
pub enum AllocateError {
    /// The API server did not help.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Others were faster every time.
    #[error("no free identity number found in {ATTEMPTS_MAX} attempts; will be tried again")]
    Contended,
    /// All numbers are in use.
    #[error(
        "all identity numbers {}..={} are in use; use fewer labels for identities (--labels)",
        abi::identity::CLUSTER_MIN,
        abi::identity::CLUSTER_MAX
    )]
    Exhausted,
}

/// Finds and makes identities.
pub struct Identities {
    store: Arc<dyn IdentityStore>,
    writer: Writer<Identity>,
    index: Mutex<Index>,
    /// One allocation at a time: the second of two equal ones then finds the first one's result.
    allocating: tokio::sync::Mutex<()>,
}

/// The table by labels.
struct Index {
    changes: Changes<Identity>,
    ids: BTreeMap<Arc<Labels>, BTreeSet<IdentityId>>,
    labels: BTreeMap<IdentityId, Arc<Labels>>,
}

impl Identities {
    /// Identities over the table of `writer`.
    pub fn new(store: Arc<dyn IdentityStore>, writer: Writer<Identity>) -> Self {
        let index = Index {
            changes: writer.table().changes(),
            ids: BTreeMap::new(),
            labels: BTreeMap::new(),
        };
        Self { store, writer, index: Mutex::new(index), allocating: tokio::sync::Mutex::new(()) }
    }

    /// All identities of the cluster.
    pub fn table(&self) -> &Table<Identity> {
        self.writer.table()
    }

    /// The identity of `labels`, if it is known: without labels `reserved:init`, else the lowest
    /// number of the table (two exist where two nodes raced and one did not see it).
    pub fn lookup(&self, labels: &Labels) -> Option<Identity> {
        if labels.is_empty() {
            return Some(init());
        }
        let mut index = self.index.lock().unwrap_or_else(PoisonError::into_inner);
        index.catch_up();
        let (labels, ids) = index.ids.get_key_value(labels)?;
        Some(Identity { id: *ids.first()?, labels: Arc::clone(labels) })
    }

    /// The identity of `labels`, made if need be.
    pub async fn resolve(&self, labels: &Arc<Labels>) -> Result<Identity, AllocateError> {
        if let Some(identity) = self.lookup(labels) {
            return Ok(identity);
        }
        let _one_at_a_time = self.allocating.lock().await;
        if let Some(identity) = self.lookup(labels) {
            return Ok(identity);
        }
        for _ in 0..ATTEMPTS_MAX {
            let id = next_free(&self.table().snapshot()).ok_or(AllocateError::Exhausted)?;
            let ours = Identity { id, labels: Arc::clone(labels) };
            match self.store.create(&ours).await? {
                Created::New => {
                    tracing::info!(identity = %id, labels = %labels, "Allocated an identity");
                    self.writer.upsert(ours.clone());
                    return Ok(ours);
                }
                Created::Taken(theirs) => {
                    let identity = Identity { id, labels: theirs };
                    self.writer.upsert(identity.clone());
                    if identity.labels == *labels {
                        return Ok(identity);
                    }
                }
            }
        }
        Err(AllocateError::Contended)
    }

    /// Makes an identity known that this node used before it restarted, so that pods of the same
    /// labels start even when the API server is away. The watch has the last word.
    pub fn remember(&self, identity: Identity) {
        if identity.id.is_cluster_allocated() {
            self.writer.upsert(identity);
        }
    }
}

/// The identity of an endpoint whose labels are not known yet.
pub fn init() -> Identity {
    Identity {
        id: IdentityId::INIT,
        labels: Arc::new(Labels::from_iter([Label::reserved("init")])),
    }
}

/// The identity of the node's health endpoint, if these are its labels.
pub fn health(labels: &Labels) -> Option<Identity> {
    let own = IdentityId::HEALTH.reserved_labels().filter(|own| own == labels)?;
    Some(Identity { id: IdentityId::HEALTH, labels: Arc::new(own) })
}

impl Index {
    fn catch_up(&mut self) {
        for change in self.changes.take() {
            let (id, labels) = match &change {
                Change::Upsert(row) => (row.id, Some(Arc::clone(&row.labels))),
                Change::Delete(row) => (row.id, None),
            };
            if let Some(before) = self.labels.remove(&id)
                && let Some(ids) = self.ids.get_mut(&before)
            {
                ids.remove(&id);
                if ids.is_empty() {
                    self.ids.remove(&before);
                }
            }
            if let Some(labels) = labels {
                self.ids.entry(Arc::clone(&labels)).or_default().insert(id);
                self.labels.insert(id, labels);
            }
        }
    }
}

/// The number behind the highest one in use, so that a freed number rests as long as possible; the
/// lowest free one when the end is reached.
fn next_free(table: &statedb::Snapshot<Identity>) -> Option<IdentityId> {
    use abi::identity::{CLUSTER_MAX, CLUSTER_MIN};
    let used: BTreeSet<u32> = table
        .rows()
        .map(|i| i.id.0)
        .filter(|id| (CLUSTER_MIN..=CLUSTER_MAX).contains(id))
        .collect();
    match used.last() {
        None => Some(IdentityId(CLUSTER_MIN)),
        Some(&last) if last < CLUSTER_MAX => Some(IdentityId(last + 1)),
        Some(_) => (CLUSTER_MIN..=CLUSTER_MAX).find(|id| !used.contains(id)).map(IdentityId),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The API server's side: names are unique.
    #[derive(Clone, Default)]
    struct FakeStore(Arc<Mutex<BTreeMap<IdentityId, Arc<Labels>>>>);

    impl IdentityStore for FakeStore {
        fn create<'a>(
            &'a self,
            identity: &'a Identity,
        ) -> BoxFuture<'a, Result<Created, StoreError>> {
            let mut objects = self.0.lock().unwrap();
            let created = match objects.get(&identity.id) {
                Some(theirs) => Created::Taken(Arc::clone(theirs)),
                None => {
                    objects.insert(identity.id, Arc::clone(&identity.labels));
                    Created::New
                }
            };
            Box::pin(std::future::ready(Ok(created)))
        }
    }

    fn labels(text: &str) -> Arc<Labels> {
        Arc::new(text.split(',').map(|l| l.parse().unwrap()).collect())
    }

    fn node(store: &FakeStore) -> Identities {
        Identities::new(Arc::new(store.clone()), Table::new("identities").1)
    }

    #[tokio::test]
    async fn nodes_that_do_not_see_each_other_agree() {
        let store = FakeStore::default();
        let (one, two) = (node(&store), node(&store));
        let (a, b) = (labels("k8s:app=a"), labels("k8s:app=b"));
        assert_eq!(one.resolve(&a).await.unwrap().id, IdentityId(256));
        assert_eq!(two.resolve(&b).await.unwrap().id, IdentityId(257), "256 was taken");
        assert_eq!(two.resolve(&a).await.unwrap().id, IdentityId(256), "learned from the conflict");
        assert_eq!(one.resolve(&b).await.unwrap().id, IdentityId(257));
        assert_eq!(store.0.lock().unwrap().len(), 2);
    }

    #[tokio::test]
    async fn known_labels_need_no_store() {
        let node = node(&FakeStore::default());
        assert_eq!(node.lookup(&Labels::default()).unwrap().id, IdentityId::INIT);
        let a = labels("k8s:app=a");
        assert_eq!(node.lookup(&a), None);
        for id in [301, 300] {
            node.writer.upsert(Identity { id: IdentityId(id), labels: Arc::clone(&a) });
        }
        assert_eq!(node.lookup(&a).unwrap().id, IdentityId(300), "the lowest of duplicates");
        node.writer.delete(&IdentityId(300));
        assert_eq!(node.lookup(&a).unwrap().id, IdentityId(301));
        node.writer.delete(&IdentityId(301));
        assert_eq!(node.lookup(&a), None);
    }

    #[test]
    fn numbers_wrap_around() {
        let (table, writer) = Table::new("identities");
        let put = |id| writer.upsert(Identity { id: IdentityId(id), labels: labels("k8s:a=b") });
        assert_eq!(next_free(&table.snapshot()), Some(IdentityId(256)));
        put(256);
        put(300);
        assert_eq!(next_free(&table.snapshot()), Some(IdentityId(301)));
        put(65_535);
        assert_eq!(next_free(&table.snapshot()), Some(IdentityId(257)));
    }
}
