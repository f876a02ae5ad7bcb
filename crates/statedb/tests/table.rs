//! Tables: snapshots, changes, initialisation, printing; and job groups, whose health is a table.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use expect_test::expect;
use proptest::prelude::*;
use statedb::job::{Group, State};
use statedb::{Change, Revision, Row, Table};

#[derive(Clone, Debug, PartialEq)]
struct Pod {
    name: String,
    node: String,
}

impl Row for Pod {
    type Key = String;
    const HEADERS: &'static [&'static str] = &["NAME", "NODE"];

    fn key(&self) -> String {
        self.name.clone()
    }

    fn cells(&self) -> Vec<String> {
        vec![self.name.clone(), self.node.clone()]
    }
}

fn pod(name: &str, node: &str) -> Pod {
    Pod { name: name.to_owned(), node: node.to_owned() }
}

#[test]
fn a_snapshot_does_not_change() {
    let (table, writer) = Table::new("pods");
    writer.upsert(pod("a", "1"));
    let before = table.snapshot();
    writer.commit(|txn| {
        txn.upsert(pod("b", "1"));
        txn.modify(&"a".to_owned(), |pod| pod.node = "2".to_owned());
    });
    let after = table.snapshot();
    assert_eq!(before.len(), 1);
    assert_eq!(before.get(&"a".to_owned()).unwrap().node, "1");
    let changes: Vec<_> = after.changes_since(&before).collect();
    assert_eq!(
        changes,
        [Change::Upsert(Arc::new(pod("a", "2"))), Change::Upsert(Arc::new(pod("b", "1")))]
    );
    assert_eq!(after.row_revision(&"b".to_owned()), Some(Revision(2)));
    assert_eq!(after.revision(), Revision(3));
}

#[test]
fn writing_the_same_row_is_no_change() {
    let (table, writer) = Table::new("pods");
    let mut changes = table.changes();
    writer.upsert(pod("a", "1"));
    assert_eq!(changes.take().len(), 1);
    assert_eq!(writer.upsert(pod("a", "1")), Revision(1));
    assert_eq!(writer.delete(&"b".to_owned()), Revision(1));
    assert!(changes.take().is_empty());
    writer.upsert(pod("b", "1"));
    writer.delete(&"b".to_owned());
    assert!(changes.take().is_empty(), "what came and went between two looks is not seen");
}

#[test]
fn a_relist_replaces_what_is_gone() {
    let (table, writer) = Table::new("pods");
    writer.replace([pod("a", "1"), pod("b", "1")]);
    let mut changes = table.changes();
    changes.take();
    writer.replace([pod("b", "1"), pod("c", "1")]);
    assert_eq!(
        changes.take(),
        [Change::Delete(Arc::new(pod("a", "1"))), Change::Upsert(Arc::new(pod("c", "1")))]
    );
}

#[test]
fn a_table_prints_itself() {
    let (table, writer) = Table::new("pods");
    writer.replace([pod("a-long-name", "1"), pod("b", "")]);
    expect![[r#"
        NAME         NODE
        a-long-name  1
        b
    "#]]
    .assert_eq(&table.snapshot().to_string());
}

#[tokio::test]
async fn a_table_waits_for_all_its_sources() {
    let (table, writer) = Table::<Pod>::new("pods");
    assert!(table.snapshot().is_initialized());
    let api = writer.initializer("api");
    let state = writer.initializer("state");
    api.done();
    let snapshot = table.snapshot();
    assert_eq!(snapshot.pending_initializers().collect::<Vec<_>>(), ["state"]);
    let waiting = tokio::spawn({
        let table = table.clone();
        async move { table.initialized().await.len() }
    });
    writer.upsert(pod("a", "1"));
    state.done();
    assert_eq!(waiting.await.unwrap(), 1);
}

#[tokio::test]
async fn changes_end_with_the_table() {
    let (table, writer) = Table::new("pods");
    let mut changes = table.changes();
    assert_eq!(changes.next().await, Some(vec![]), "the first batch comes at once");
    writer.upsert(pod("a", "1"));
    assert_eq!(changes.next().await.unwrap().len(), 1);
    drop((table, writer));
    assert_eq!(changes.next().await, None);
}

proptest! {
    /// A reader that applies the changes it sees, whenever it looks, has the table.
    #[test]
    fn changes_add_up(
        ops in proptest::collection::vec((0..20u8, proptest::option::of(0..4u8), any::<bool>()), 0..200),
    ) {
        let (table, writer) = Table::new("pods");
        let mut changes = table.changes();
        let mut copy = BTreeMap::new();
        let mut last = Revision(0);
        for (key, value, look) in ops {
            let revision = match value {
                Some(node) => writer.upsert(pod(&key.to_string(), &node.to_string())),
                None => writer.delete(&key.to_string()),
            };
            prop_assert!(revision >= last);
            last = revision;
            if look {
                for change in changes.take() {
                    match change {
                        Change::Upsert(row) => drop(copy.insert(row.key(), row)),
                        Change::Delete(row) => prop_assert!(copy.remove(&row.key()).is_some()),
                    }
                }
                let now: BTreeMap<_, _> =
                    table.snapshot().iter().map(|(key, row)| (key.clone(), Arc::clone(row))).collect();
                prop_assert_eq!(&copy, &now);
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn jobs_report_and_are_joined() {
    let group = Group::new();
    let mut runs = 0;
    group.every("every-second", Duration::from_secs(1), move || {
        runs += 1;
        let result = if runs == 2 { Err("no luck") } else { Ok(()) };
        async move { result }
    });
    group.spawn("until-stopped", |job| async move {
        job.stop.cancelled().await;
        Ok::<(), String>(())
    });
    let name = "every-second".to_owned();
    group
        .health()
        .wait_for(|jobs| jobs.get(&name).is_some_and(|job| job.failures_in_a_row == 1))
        .await;
    group.health().wait_for(|jobs| jobs.get(&name).is_some_and(|job| job.successes == 2)).await;
    group.shutdown(Duration::from_secs(1)).await.unwrap();
    assert!(group.supervise().await.is_ok());
    expect![[r#"
        JOB            STATE    OK  FAILED  MESSAGE
        every-second   Stopped  2   1
        until-stopped  Stopped  0   0
    "#]]
    .assert_eq(&group.health().snapshot().to_string());
}

#[tokio::test(start_paused = true)]
async fn a_failed_or_stuck_job_is_named() {
    let group = Group::new();
    group.spawn("stuck", |_job| std::future::pending::<Result<(), String>>());
    group.spawn("panics", |_job| async {
        assert_eq!(1, 2, "on purpose");
        Ok::<(), String>(())
    });
    let failed = group.supervise().await.unwrap_err();
    assert_eq!(failed.name, "panics");
    assert!(failed.message.contains("on purpose"), "{failed}");
    let state = group.health().get(&"panics".to_owned()).unwrap().state.clone();
    assert_eq!(state, State::Failed);
    let running = group.shutdown(Duration::from_secs(5)).await.unwrap_err();
    assert_eq!(running.names, ["stuck"]);
}
