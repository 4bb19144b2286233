//! A directory that follows a store: changes, compaction, a killed leader, restarts, and what holds it back.

use std::path::Path;
use std::time::Duration;

use podkv_api::{Delete, KeyRange, Op, Put, Store, Txn};
use podkv_files::{ProjectOptions, Projection, Status, TargetOptions};
use podkv_node::Node;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;

use crate::support::{check_seen, options, shown};

/// A projection that runs.
pub struct Running {
    status: watch::Receiver<Status>,
    stop: oneshot::Sender<()>,
    task: JoinHandle<podkv_files::Result<()>>,
}

impl Running {
    pub async fn start(store: &Node, dir: &Path, options: ProjectOptions) -> Self {
        let projection = opened(store, dir, options).await;
        let status = projection.status();
        let (stop, stopped) = oneshot::channel::<()>();
        let task = tokio::spawn(projection.run(async {
            // Dropped counts, too.
            let _ = stopped.await;
        }));
        Self { status, stop, task }
    }

    /// Waits until the status is as it should be.
    pub async fn until(&mut self, what: impl FnMut(&Status) -> bool) -> Status {
        let found = tokio::time::timeout(Duration::from_secs(60), self.status.wait_for(what)).await;
        found.expect("within a minute").expect("it runs").clone()
    }

    pub async fn stop(self) {
        self.stop.send(()).expect("it runs");
        self.task.await.unwrap().unwrap();
    }
}

async fn opened(store: &Node, dir: &Path, options: ProjectOptions) -> Projection {
    let target = TargetOptions {
        adopt: false,
        ..crate::support::options()
    };
    Projection::open(store, "app", dir, target, options, |_| {})
        .await
        .unwrap()
}

pub fn quick() -> ProjectOptions {
    ProjectOptions {
        debounce: Duration::ZERO,
        ..ProjectOptions::default()
    }
}

pub async fn put(store: &Node, key: &str, value: &str) -> u64 {
    let put = Put::new(key.to_owned(), value.to_owned());
    store.put(put).await.unwrap().header.revision
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_follows_and_its_restart_writes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = podkv_node::testing::cluster(1).await;
    let store = &cluster.node(0);
    put(store, "app/a", "1").await;
    put(store, "apple", "not below it").await;
    put(store, "app/../x", "refused").await;
    let mut running = Running::start(store, dir.path(), quick()).await;
    let status = running.until(|status| status.revision > 0).await;
    check_seen(dir.path(), &[("a", "1")]);
    assert_eq!(status.refused.len(), 1);
    assert_eq!(status.shown.as_ref().unwrap().prefix, "app/");

    let txn = Txn::new().then([
        Op::from(Put::new("app/b/c", "2")),
        Op::from(Delete::new(KeyRange::key("app/a"))),
    ]);
    let revision = store.txn(txn).await.unwrap().header.revision;
    let status = running.until(|status| status.revision >= revision).await;
    check_seen(dir.path(), &[("b/c", "2")]);
    assert_eq!(
        (status.swaps, status.shown.unwrap().revision),
        (2, revision)
    );

    // A change elsewhere swaps nothing, and is shown all the same: it changes nothing here.
    let elsewhere = put(store, "other", "1").await;
    let status = running.until(|status| status.revision >= elsewhere).await;
    assert_eq!(status.swaps, 2);
    running.stop().await;

    let folder = shown(dir.path());
    let mut running = Running::start(store, dir.path(), quick()).await;
    let status = running.until(|status| status.revision > 0).await;
    assert_eq!((status.swaps, status.files_written), (0, 0));
    assert_eq!(shown(dir.path()), folder);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn it_survives_compaction_and_a_killed_leader() {
    let dir = tempfile::tempdir().unwrap();
    let mut cluster = podkv_node::testing::cluster(3).await;
    let leader = cluster.leader().await;
    let follower = (leader + 1) % 3;
    let store = cluster.node(follower);
    put(&store, "app/a", "1").await;
    let mut running = Running::start(&store, dir.path(), quick()).await;
    running.until(|status| status.revision > 0).await;
    cluster.kill_leader().await;
    cluster.leader().await;
    let mut revision = 0;
    for n in 0..20 {
        revision = put(&store, "app/a", &n.to_string()).await;
    }
    store.compact(revision).await.unwrap();
    let revision = put(&store, "app/b", "after").await;
    running.until(|status| status.revision >= revision).await;
    check_seen(dir.path(), &[("a", "19"), ("b", "after")]);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prefix_that_disappears_leaves_its_files() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = podkv_node::testing::cluster(1).await;
    let store = &cluster.node(0);
    put(store, "app/a", "1").await;
    let mut running = Running::start(store, dir.path(), quick()).await;
    running.until(|status| status.revision > 0).await;
    store
        .delete(Delete::new(KeyRange::prefix("app/")))
        .await
        .unwrap();
    let status = running.until(|status| status.problem.is_some()).await;
    assert!(status.problem.unwrap().contains("--allow-empty"));
    check_seen(dir.path(), &[("a", "1")]);
    let revision = put(store, "app/a", "2").await;
    let status = running.until(|status| status.revision >= revision).await;
    assert_eq!(status.problem, None);
    check_seen(dir.path(), &[("a", "2")]);
    running.stop().await;

    let options = ProjectOptions {
        allow_empty: true,
        ..quick()
    };
    let mut running = Running::start(store, dir.path(), options).await;
    let gone = store
        .delete(Delete::new(KeyRange::prefix("app/")))
        .await
        .unwrap();
    running
        .until(|status| status.revision >= gone.header.revision)
        .await;
    check_seen(dir.path(), &[]);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn half_an_import_is_not_shown() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = podkv_node::testing::cluster(1).await;
    let store = &cluster.node(0);
    put(store, "app/a", "1").await;
    put(store, "app/..import", "").await;
    let mut running = Running::start(store, dir.path(), quick()).await;
    running.until(|status| status.problem.is_some()).await;
    put(store, "app/a", "half").await;
    assert!(!dir.path().join("a").exists());
    let last = Txn::new().then([
        Op::from(Put::new("app/b", "2")),
        Op::from(Delete::new(KeyRange::key("app/..import"))),
    ]);
    let revision = store.txn(last).await.unwrap().header.revision;
    let status = running.until(|status| status.revision >= revision).await;
    assert_eq!(status.problem, None);
    check_seen(dir.path(), &[("a", "half"), ("b", "2")]);
    assert_eq!(status.swaps, 1);
    running.stop().await;
}

/// What was replaced goes also while changes never end: else a busy day fills the disk. The writers are many and the store is
/// in memory, so the next change is there long before the last one is on the disk.
#[tokio::test(flavor = "multi_thread")]
async fn old_folders_go_while_changes_never_end() {
    const SWAPS: u64 = 50;
    // So many files that a swap takes longer than the next change: there is always one waiting.
    const FILES: usize = 100;
    let dir = tempfile::tempdir().unwrap();
    let cluster = podkv_node::testing::cluster(1).await;
    let store = &cluster.node(0);
    put(store, "app/0", "1").await;
    let mut running = Running::start(store, dir.path(), quick()).await;
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..4 {
        let store = store.clone();
        writers.spawn(async move {
            for number in 0_u64.. {
                let text = format!("{writer} {number}");
                let change = |file: usize| Op::from(Put::new(format!("app/{file}"), text.clone()));
                let all = Txn::new().then((0..FILES).map(change));
                store.txn(all).await.unwrap();
            }
        });
    }
    running.until(|status| status.swaps >= SWAPS).await;
    let names = crate::support::own_names(dir.path());
    writers.shutdown().await;
    let folders = names.iter().filter(|name| name.starts_with("..2")).count();
    assert!(folders < 10, "{folders} folders after {SWAPS} swaps");
    running.stop().await;
}

/// The marker lies above what is projected, and is no change of it.
#[tokio::test(flavor = "multi_thread")]
async fn an_import_into_a_folder_around_it_holds_it_back() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = podkv_node::testing::cluster(1).await;
    let store = &cluster.node(0);
    put(store, "app/conf/a", "1").await;
    let target = crate::support::options();
    let options = ProjectOptions {
        retry: Duration::from_millis(10),
        ..quick()
    };
    let projection = Projection::open(store, "app/conf", dir.path(), target, options, |_| {})
        .await
        .unwrap();
    let mut status = projection.status();
    let (stop, stopped) = oneshot::channel::<()>();
    let task = tokio::spawn(projection.run(async {
        let _ = stopped.await;
    }));
    for marker in ["app/..import", "..import"] {
        status
            .wait_for(|status| status.revision > 0 && status.problem.is_none())
            .await
            .unwrap();
        let before = std::fs::read_to_string(dir.path().join("a")).unwrap();
        put(store, marker, "").await;
        put(store, "app/conf/a", marker).await;
        let held = status
            .wait_for(|status| status.problem.is_some())
            .await
            .unwrap();
        assert!(held.problem.as_ref().unwrap().contains(marker));
        drop(held);
        check_seen(dir.path(), &[("a", &before)]);
        let delete = Delete::new(KeyRange::key(marker));
        let end = store.delete(delete).await.unwrap().header.revision;
        status
            .wait_for(|status| status.revision >= end && status.problem.is_none())
            .await
            .unwrap();
        check_seen(dir.path(), &[("a", marker)]);
    }
    stop.send(()).unwrap();
    task.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn once_waits_for_the_first_keys_and_ends() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = podkv_node::testing::cluster(1).await;
    let store = &cluster.node(0);
    let projection = opened(store, dir.path(), quick()).await;
    let mut status = projection.status();
    let once = tokio::spawn(projection.once());
    status
        .wait_for(|status| status.problem.is_some())
        .await
        .unwrap();
    put(store, "app/a", "1").await;
    once.await.unwrap().unwrap();
    check_seen(dir.path(), &[("a", "1")]);
    // The lock is free again.
    drop(crate::support::open(dir.path()).unwrap());
    let _ = options();
}

/// The first failure that only a person can mend ends it; a later one does not.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_in_the_way_ends_the_start_alone() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = podkv_node::testing::cluster(1).await;
    let store = &cluster.node(0);
    put(store, "app/a", "1").await;
    let projection = opened(store, dir.path(), quick()).await;
    std::fs::write(dir.path().join("a"), "somebody's").unwrap();
    let error = projection.once().await.unwrap_err();
    assert!(
        matches!(error, podkv_files::Error::NotOurs { .. }),
        "{error}"
    );
    std::fs::remove_file(dir.path().join("a")).unwrap();

    let mut running = Running::start(store, dir.path(), quick()).await;
    running.until(|status| status.revision > 0).await;
    std::fs::write(dir.path().join("b"), "somebody's").unwrap();
    put(store, "app/b", "2").await;
    running.until(|status| status.problem.is_some()).await;
    check_seen(dir.path(), &[("a", "1"), ("b", "somebody's")]);
    std::fs::remove_file(dir.path().join("b")).unwrap();
    running.until(|status| status.problem.is_none()).await;
    check_seen(dir.path(), &[("a", "1"), ("b", "2")]);
    running.stop().await;
}
