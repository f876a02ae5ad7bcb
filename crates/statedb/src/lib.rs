//! Tables with revisions, and the loop that carries them into the world.
//!
//! ```text
//! watches, API ──► Writer ─► Table ─► controller ─► Writer ─► Table ─► Reconciler ─► Target
//!                  (intent)           (pure)        (desired)          fetch, plan, apply
//! ```
//!
//! A [`Table`] holds rows by their natural key. Readers take O(1) [`Snapshot`]s and learn what
//! changed by comparing two of them, so a reader that was slow, or is new, sees the sum of all
//! changes and never a stale or a partial one; deletions need no tracking. A [`Reconciler`] makes a
//! [`Target`] (a BPF map, routes, Kubernetes objects) equal to a table: incrementally on change, fully
//! at the start and periodically, retrying what failed; it removes nothing it does not know before
//! every source of the table has said that it is complete. A [`job::Group`] names, joins and
//! watches the tasks around them.
//!
//! Architecture invariant: this crate knows nobody; wake-ups carry no data.

#![deny(missing_docs)]

pub mod job;
pub mod reconciler;
pub mod table;

pub use reconciler::{Outcome, Plan, Progress, Reconciler, Status, Target};
pub use table::{
    Change, Changes, Initializer, Revision, Row, Snapshot, Table, Transaction, Writer,
};
