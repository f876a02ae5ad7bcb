//! Rows by key, written in transactions, read in snapshots.
//!
//! The table is one value in a [`watch`] channel: an immutable map that shares its unchanged parts
//! with its predecessors. Taking a snapshot copies a pointer; what changed between two snapshots is
//! found by walking only what they do not share.

use std::collections::BTreeSet;
use std::fmt::{self, Debug};
use std::sync::Arc;

use imbl::ordmap::{DiffItem, OrdMap};
use tokio::sync::watch;

/// When a row or a table was last written, counted from 1; only comparable within one table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Revision(pub u64);

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// What a table can hold.
///
/// Writing a row that equals the one that is there changes nothing and wakes nobody.
pub trait Row: Clone + Debug + PartialEq + Send + Sync + 'static {
    /// The natural key, which never changes while the row lives.
    type Key: Clone + Debug + Ord + Send + Sync + 'static;

    /// Headings of the columns of [`Row::cells`].
    const HEADERS: &'static [&'static str];

    /// The key of this row.
    fn key(&self) -> Self::Key;

    /// The row as people see it, one text per column.
    fn cells(&self) -> Vec<String>;
}

/// A row and the revision that wrote it; the revision decides equality, for it is unique.
#[derive(Clone, Debug)]
struct Entry<R> {
    revision: Revision,
    row: Arc<R>,
}

impl<R> PartialEq for Entry<R> {
    fn eq(&self, other: &Self) -> bool {
        self.revision == other.revision
    }
}

/// A table as it was at one moment.
#[derive(Clone)]
pub struct Snapshot<R: Row> {
    name: &'static str,
    revision: Revision,
    rows: OrdMap<R::Key, Entry<R>>,
    /// Sources that have not delivered all they know yet.
    initializers: Arc<BTreeSet<String>>,
}

/// What became of a row between two snapshots.
#[derive(Clone, Debug, PartialEq)]
pub enum Change<R: Row> {
    /// The row is new or has a new value.
    Upsert(Arc<R>),
    /// The row is gone; this is the last value that the reader has seen.
    Delete(Arc<R>),
}

impl<R: Row> Change<R> {
    /// The row's key.
    pub fn key(&self) -> R::Key {
        match self {
            Self::Upsert(row) | Self::Delete(row) => row.key(),
        }
    }
}

impl<R: Row> Snapshot<R> {
    /// The name of the table.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// The revision of the newest change, also when it was a deletion.
    pub fn revision(&self) -> Revision {
        self.revision
    }

    /// The row with this key.
    pub fn get(&self, key: &R::Key) -> Option<&Arc<R>> {
        self.rows.get(key).map(|entry| &entry.row)
    }

    /// The revision that wrote the row with this key.
    pub fn row_revision(&self, key: &R::Key) -> Option<Revision> {
        self.rows.get(key).map(|entry| entry.revision)
    }

    /// All rows in the order of their keys.
    pub fn iter(&self) -> impl Iterator<Item = (&R::Key, &Arc<R>)> {
        self.rows.iter().map(|(key, entry)| (key, &entry.row))
    }

    /// All rows in the order of their keys, without the keys.
    pub fn rows(&self) -> impl Iterator<Item = &Arc<R>> {
        self.rows.values().map(|entry| &entry.row)
    }

    /// How many rows there are.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether there is no row.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Whether every source has delivered all it knows.
    pub fn is_initialized(&self) -> bool {
        self.initializers.is_empty()
    }

    /// The sources that the table still waits for.
    pub fn pending_initializers(&self) -> impl Iterator<Item = &str> {
        self.initializers.iter().map(String::as_str)
    }

    /// What changed since `older` was taken from the same table, in the order of the keys.
    ///
    /// The cost follows the number of changes, not the number of rows.
    pub fn changes_since<'a>(&'a self, older: &'a Self) -> impl Iterator<Item = Change<R>> + 'a {
        older.rows.diff(&self.rows).map(|item| match item {
            DiffItem::Add(_, new) | DiffItem::Update { new: (_, new), .. } => {
                Change::Upsert(Arc::clone(&new.row))
            }
            DiffItem::Remove(_, old) => Change::Delete(Arc::clone(&old.row)),
        })
    }

    /// A snapshot of the same table before its first row, to compare with.
    fn before_all(&self) -> Self {
        Self {
            name: self.name,
            revision: Revision::default(),
            rows: OrdMap::new(),
            initializers: Arc::clone(&self.initializers),
        }
    }
}

impl<R: Row> Debug for Snapshot<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Snapshot")
            .field("name", &self.name)
            .field("revision", &self.revision)
            .field("rows", &self.rows.len())
            .field("initializers", &self.initializers)
            .finish()
    }
}

/// Prints the rows as an aligned table with headings.
impl<R: Row> fmt::Display for Snapshot<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rows: Vec<Vec<String>> = self.rows().map(|row| row.cells()).collect();
        let mut widths: Vec<usize> = R::HEADERS.iter().map(|h| h.chars().count()).collect();
        for cells in &rows {
            debug_assert_eq!(cells.len(), widths.len(), "a row has one cell per heading");
            for (width, cell) in widths.iter_mut().zip(cells) {
                *width = (*width).max(cell.chars().count());
            }
        }
        print_line(f, &widths, R::HEADERS.iter().copied())?;
        rows.iter().try_for_each(|cells| print_line(f, &widths, cells.iter().map(String::as_str)))
    }
}

/// One line of aligned cells, two spaces apart, without blanks at the end.
fn print_line<'a>(
    f: &mut fmt::Formatter<'_>,
    widths: &[usize],
    cells: impl Iterator<Item = &'a str>,
) -> fmt::Result {
    let mut line = String::new();
    for (width, cell) in widths.iter().zip(cells) {
        line.push_str(&format!("{cell:<width$}  "));
    }
    writeln!(f, "{}", line.trim_end())
}

/// The reader's side of a table; cheap to clone.
pub struct Table<R: Row> {
    state: Arc<watch::Sender<Snapshot<R>>>,
}

impl<R: Row> Clone for Table<R> {
    fn clone(&self) -> Self {
        Self { state: Arc::clone(&self.state) }
    }
}

impl<R: Row> Debug for Table<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Debug::fmt(&*self.state.borrow(), f)
    }
}

impl<R: Row> Table<R> {
    /// A new, empty table and the right to write it, which belongs to the table's owner.
    ///
    /// `name` is a plural noun in kebab case, as in `local-endpoints`.
    pub fn new(name: &'static str) -> (Self, Writer<R>) {
        let (state, _) = watch::channel(Snapshot {
            name,
            revision: Revision::default(),
            rows: OrdMap::new(),
            initializers: Arc::default(),
        });
        let table = Self { state: Arc::new(state) };
        (table.clone(), Writer { table })
    }

    /// The table as it is now.
    pub fn snapshot(&self) -> Snapshot<R> {
        self.state.borrow().clone()
    }

    /// The row with this key, as it is now.
    pub fn get(&self, key: &R::Key) -> Option<Arc<R>> {
        self.state.borrow().get(key).map(Arc::clone)
    }

    /// The revision of the newest change.
    pub fn revision(&self) -> Revision {
        self.state.borrow().revision
    }

    /// Follows the table: the first batch is every row, later ones what changed since.
    pub fn changes(&self) -> Changes<R> {
        let mut wake = self.state.subscribe();
        wake.mark_changed();
        let seen = self.state.borrow().before_all();
        Changes { wake, seen }
    }

    /// A receiver that is woken by every commit; its value is the newest snapshot.
    pub fn watch(&self) -> watch::Receiver<Snapshot<R>> {
        self.state.subscribe()
    }

    /// Waits until every source has delivered all it knows.
    pub async fn initialized(&self) -> Snapshot<R> {
        self.wait_for(Snapshot::is_initialized).await
    }

    /// Waits until `condition` holds for the whole table.
    pub async fn wait_for(&self, condition: impl FnMut(&Snapshot<R>) -> bool) -> Snapshot<R> {
        let mut wake = self.state.subscribe();
        let snapshot = wake.wait_for(condition).await.expect("the table owns the sender");
        snapshot.clone()
    }
}

/// What changed in a table since one reader last looked. See [`Table::changes`].
pub struct Changes<R: Row> {
    wake: watch::Receiver<Snapshot<R>>,
    seen: Snapshot<R>,
}

impl<R: Row> Changes<R> {
    /// Waits for a commit, then gives everything that changed since the last call; the batch may be
    /// empty, when changes undid each other or only the initialisation went on. `None` when the
    /// table and its writers are gone.
    pub async fn next(&mut self) -> Option<Vec<Change<R>>> {
        if self.changed().await { Some(self.take()) } else { None }
    }

    /// Waits for a commit that was not taken yet. False when the table and its writers are gone.
    pub async fn changed(&mut self) -> bool {
        self.wake.changed().await.is_ok()
    }

    /// Gives what changed since the last call, without waiting.
    pub fn take(&mut self) -> Vec<Change<R>> {
        let newer = self.wake.borrow_and_update().clone();
        let changes = newer.changes_since(&self.seen).collect();
        self.seen = newer;
        changes
    }

    /// The snapshot that the last batch led to.
    pub fn snapshot(&self) -> &Snapshot<R> {
        &self.seen
    }
}

/// The right to write a table. It stays in the module that owns the table.
#[derive(Clone, Debug)]
pub struct Writer<R: Row> {
    table: Table<R>,
}

impl<R: Row> Writer<R> {
    /// The reader's side.
    pub fn table(&self) -> &Table<R> {
        &self.table
    }

    /// Changes several rows at once; readers see all of it or nothing.
    ///
    /// Returns what `change` returns, and the table's revision afterwards. `change` must not use
    /// the table itself, which is locked meanwhile.
    pub fn commit<T>(&self, change: impl FnOnce(&mut Transaction<'_, R>) -> T) -> (T, Revision) {
        let mut result = None;
        let mut revision = Revision::default();
        self.table.state.send_if_modified(|snapshot| {
            let before = snapshot.revision;
            result = Some(change(&mut Transaction { snapshot }));
            revision = snapshot.revision;
            revision != before
        });
        (result.expect("the closure ran"), revision)
    }

    /// Writes one row. Returns the table's revision afterwards.
    pub fn upsert(&self, row: R) -> Revision {
        self.commit(|txn| txn.upsert(row)).1
    }

    /// Removes one row, if it is there. Returns the table's revision afterwards.
    pub fn delete(&self, key: &R::Key) -> Revision {
        self.commit(|txn| {
            txn.delete(key);
        })
        .1
    }

    /// Makes `rows` the whole content of the table: what a watch does after a relist.
    pub fn replace(&self, rows: impl IntoIterator<Item = R>) -> Revision {
        self.commit(|txn| txn.replace(rows)).1
    }

    /// Registers a source. The table is not initialised before [`Initializer::done`] of all of
    /// them; a table without sources is initialised from the start.
    pub fn initializer(&self, source: impl Into<String>) -> Initializer<R> {
        let source = source.into();
        self.table.state.send_modify(|snapshot| {
            let fresh = Arc::make_mut(&mut snapshot.initializers).insert(source.clone());
            assert!(fresh, "source {source} of table {} registers once", snapshot.name);
        });
        Initializer { table: self.table.clone(), source }
    }
}

/// The open end of [`Writer::commit`].
pub struct Transaction<'a, R: Row> {
    snapshot: &'a mut Snapshot<R>,
}

impl<R: Row> Transaction<'_, R> {
    /// The rows as they are, with what this transaction has changed.
    pub fn snapshot(&self) -> &Snapshot<R> {
        self.snapshot
    }

    /// The row with this key.
    pub fn get(&self, key: &R::Key) -> Option<&Arc<R>> {
        self.snapshot.get(key)
    }

    /// Writes a row.
    pub fn upsert(&mut self, row: R) {
        let key = row.key();
        if self.snapshot.get(&key).is_some_and(|old| **old == row) {
            return;
        }
        let revision = self.next_revision();
        self.snapshot.rows.insert(key, Entry { revision, row: Arc::new(row) });
    }

    /// Changes the row with this key in place; does nothing when there is none.
    pub fn modify(&mut self, key: &R::Key, change: impl FnOnce(&mut R)) {
        if let Some(old) = self.snapshot.get(key) {
            let mut row = R::clone(old);
            change(&mut row);
            assert!(row.key() == *key, "the key {key:?} of a row never changes");
            self.upsert(row);
        }
    }

    /// Removes the row with this key and returns it.
    pub fn delete(&mut self, key: &R::Key) -> Option<Arc<R>> {
        let old = self.snapshot.rows.remove(key)?;
        self.next_revision();
        Some(old.row)
    }

    /// Removes the rows for which `keep` is false.
    pub fn retain(&mut self, mut keep: impl FnMut(&R) -> bool) {
        let gone: Vec<R::Key> = self
            .snapshot
            .iter()
            .filter(|(_, row)| !keep(row))
            .map(|(key, _)| key.clone())
            .collect();
        for key in gone {
            self.delete(&key);
        }
    }

    /// Makes `rows` the whole content of the table.
    pub fn replace(&mut self, rows: impl IntoIterator<Item = R>) {
        let mut kept = BTreeSet::new();
        for row in rows {
            kept.insert(row.key());
            self.upsert(row);
        }
        self.retain(|row| kept.contains(&row.key()));
    }

    fn next_revision(&mut self) -> Revision {
        self.snapshot.revision.0 += 1;
        self.snapshot.revision
    }
}

/// A source's promise to say when it has delivered all it knows.
///
/// Dropped without [`Initializer::done`], the table stays uninitialised, and so nothing is ever
/// pruned because a source gave up.
#[derive(Debug)]
#[must_use = "the table is not initialised before `done`"]
pub struct Initializer<R: Row> {
    table: Table<R>,
    source: String,
}

impl<R: Row> Initializer<R> {
    /// Says that the source has delivered all it knows.
    pub fn done(self) {
        self.table.state.send_modify(|snapshot| {
            Arc::make_mut(&mut snapshot.initializers).remove(&self.source);
        });
    }
}
