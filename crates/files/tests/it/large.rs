//! Large values as ordinary files: shown, kept, imported, and brought back.

use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use podkv_api::large::{Manifest, chunk_key, own_names};
use podkv_api::recipes::LargeValues as _;
use podkv_api::{Delete, KeyRange, Limits, Put, Range, Reason, Store as _};
use podkv_files::import::{apply, compare};
use podkv_files::rollback::rollback;
use podkv_files::source::read_directory;
use podkv_files::{Error, Input};
use podkv_node::Node;
use podkv_node::testing::{TestCluster, cluster_with};

use crate::project::{Running, put, quick};
use crate::support::{inode, shown};

/// Beyond one request: five chunks.
const BYTES: usize = (4 << 20) + 5;

/// The tests wait for commits, and not for the collector's clock.
async fn cluster() -> TestCluster {
    cluster_with(1, |config| {
        config.collect_large_every = Duration::from_millis(10)
    })
    .await
}

fn value(tag: u8) -> Bytes {
    (0..BYTES)
        .map(|at| tag.wrapping_add((at % 251) as u8))
        .collect()
}

async fn put_large(store: &Node, key: &'static str, value: &Bytes) -> u64 {
    let pieces: Vec<_> = value
        .chunks(100_000)
        .map(|part| Ok(value.slice_ref(part)))
        .collect();
    let done = store
        .put_stream(Put::new(key, ""), stream::iter(pieces))
        .await
        .unwrap();
    assert_eq!(done.chunks, 5);
    done.header.revision
}

async fn get(store: &Node, key: &'static str) -> Bytes {
    let mut stream = store.get_stream(key).await.unwrap().unwrap();
    let mut all = Vec::new();
    while let Some(piece) = stream.next().await {
        all.extend_from_slice(&piece.unwrap());
    }
    all.into()
}

#[track_caller]
fn check_file(path: &Path, expected: &Bytes) {
    // Not `assert_eq`: nobody reads megabytes of a failure.
    assert!(std::fs::read(path).unwrap() == *expected, "{path:?}");
}

/// Waits until nothing is kept for large values but what is there now.
async fn collected(store: &Node, kept: u64) {
    loop {
        let count = Range::new(own_names()).count_only();
        if store.range(count).await.unwrap().count == kept {
            return;
        }
        tokio::task::yield_now().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_projection_writes_it_as_a_file_and_not_twice() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = cluster().await;
    let store = &cluster.node(0);
    put_large(store, "app/models/m", &value(1)).await;
    put(store, "app/a", "1").await;
    let mut running = Running::start(store, dir.path(), quick()).await;
    running.until(|status| status.revision > 0).await;
    let file = dir.path().join("models/m");
    check_file(&file, &value(1));
    let before = inode(&file);

    let revision = put(store, "app/a", "2").await;
    running.until(|status| status.revision >= revision).await;
    assert_eq!(inode(&file), before, "linked, not fetched again");
    // The same bytes again, as another upload.
    let revision = put_large(store, "app/models/m", &value(1)).await;
    running.until(|status| status.revision >= revision).await;
    assert_eq!(inode(&file), before);

    let revision = put_large(store, "app/models/m", &value(2)).await;
    running.until(|status| status.revision >= revision).await;
    check_file(&file, &value(2));
    running.stop().await;

    // What is right on the disk is not fetched, and what is not is.
    let mut running = Running::start(store, dir.path(), quick()).await;
    let status = running.until(|status| status.revision > 0).await;
    assert_eq!((status.swaps, status.files_written), (0, 0));
    running.stop().await;
    let real = dir.path().join(shown(dir.path())).join("models/m");
    let mut damaged = value(2).to_vec();
    damaged[BYTES / 2] ^= 1;
    std::fs::write(real, damaged).unwrap();
    let mut running = Running::start(store, dir.path(), quick()).await;
    let status = running.until(|status| status.revision > 0).await;
    assert_eq!((status.swaps, status.files_written), (1, 1));
    check_file(&file, &value(2));
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_is_damaged_leaves_the_last_state() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = cluster().await;
    let store = &cluster.node(0);
    put_large(store, "app/m", &value(1)).await;
    let mut running = Running::start(store, dir.path(), quick()).await;
    running.until(|status| status.revision > 0).await;
    put_large(store, "other/m", &value(2)).await;
    // A copy of the manifest is not the value.
    let manifest = store.get("other/m").await.unwrap().unwrap().value;
    put_plain(store, "app/m", manifest).await;
    let status = running.until(|status| status.problem.is_some()).await;
    assert!(status.problem.unwrap().contains("manifest"));
    check_file(&dir.path().join("m"), &value(1));
    let revision = put_large(store, "app/m", &value(3)).await;
    running.until(|status| status.revision >= revision).await;
    check_file(&dir.path().join("m"), &value(3));
    running.stop().await;
}

async fn put_plain(store: &Node, key: &'static str, value: Bytes) {
    store.put(Put::new(key, value)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_with_large_files_is_imported_in_one_transaction() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = cluster().await;
    let store = &cluster.node(0);
    let limits = Limits::default();
    std::fs::write(dir.path().join("a"), "1").unwrap();
    std::fs::write(dir.path().join("m"), value(1)).unwrap();
    let read = || read_directory(dir.path(), 1 << 20).unwrap();
    assert!(matches!(read()["m".as_bytes()], Input::File { .. }));
    let import = async || {
        let changes = compare(store, "app", &read(), false).await.unwrap();
        let revision = apply(store, &changes, &limits, |_, _| {}).await.unwrap();
        (changes.puts().count(), changes.unchanged, revision)
    };
    let (puts, _, revision) = import().await;
    assert_eq!(puts, 2);
    for key in ["app/a", "app/m"] {
        let kv = store.get(key).await.unwrap().unwrap();
        assert_eq!(Some(kv.mod_revision), revision);
    }
    assert_eq!(get(store, "app/m").await, value(1));
    assert!(matches!(import().await, (0, 2, None)));
    std::fs::write(dir.path().join("m"), value(2)).unwrap();
    assert!(matches!(import().await, (1, 1, Some(_))));
    assert_eq!(get(store, "app/m").await, value(2));
    assert!(store.leases().await.unwrap().is_empty());

    // Into everything: what is kept for large values is not taken for keys that are not in the directory.
    let changes = compare(store, "", &read(), true).await.unwrap();
    let deletes: Vec<_> = changes.deletes().cloned().collect();
    assert_eq!(deletes, ["app/a", "app/m"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rollback_brings_back_what_was_collected() {
    let cluster = cluster().await;
    let store = &cluster.node(0);
    put(store, "app/a", "old").await;
    let then = put_large(store, "app/m", &value(1)).await;
    put(store, "app/a", "new").await;
    put_large(store, "app/m", &value(2)).await;
    collected(store, 6).await;
    let limits = Limits::default();
    let (done, revision) = rollback(store, "app", then, &limits).await.unwrap();
    assert_eq!(done.puts().count(), 2);
    assert_eq!(get(store, "app/m").await, value(1));
    let written = store.get("app/a").await.unwrap().unwrap();
    assert_eq!(Some(written.mod_revision), revision, "one transaction");
    assert_eq!(written.value, "old");
    collected(store, 6).await;
    assert!(store.leases().await.unwrap().is_empty());
    // The same is left alone: of everything, too.
    let now = store.range(Range::new(KeyRange::key("x"))).await.unwrap();
    let (_, nothing) = rollback(store, "", now.header.revision, &limits)
        .await
        .unwrap();
    assert_eq!(nothing, None);
}

/// A chunk that is gone from the present and from history is told, and not made up for.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_lost_is_told() {
    let cluster = cluster().await;
    let store = &cluster.node(0);
    put_large(store, "app/m", &value(1)).await;
    let manifest = store.get("app/m").await.unwrap().unwrap().value;
    let upload = Manifest::decode(&manifest).unwrap().unwrap().upload;
    let chunk = Delete::new(KeyRange::key(chunk_key(upload, 4, b"app/m")));
    let then = store.delete(chunk).await.unwrap().header.revision;
    put(store, "app/m", "new").await;
    let error = rollback(store, "app", then, &Limits::default())
        .await
        .unwrap_err();
    let Error::Store(error) = error else {
        panic!("{error}");
    };
    assert_eq!(error.reason(), Reason::Corrupt);
    assert_eq!(get(store, "app/m").await, "new");
}
