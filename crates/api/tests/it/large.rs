//! Large values: whole or not at all, whatever happens to writers, readers and the collector.

use futures_util::{StreamExt as _, stream};
use podkv_api::large::{Manifest, RESERVED, UploadId, chunk_key};
use podkv_api::recipes::large::{LargeOptions, Upload, collect, open, put_stream};
use podkv_api::recipes::{LargeValues as _, ValueStream};
use podkv_api::{
    Bytes, Delete, Error, KeyRange, Limits, Put, PutResponse, Reason, Result, Revision, Store as _,
};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::fake::{FakeStore, Link};
use crate::{assert_reason, ms, secs};

/// Small, so that a test has many chunks.
fn options() -> LargeOptions {
    LargeOptions {
        limits: Limits {
            max_request_bytes: 2048,
            ..Limits::default()
        },
        chunk_bytes: 100,
        in_flight: 3,
        lease_ttl: secs(30),
        patience: secs(30),
    }
}

/// Bytes that tell where they are from.
fn value(seed: u64, length: usize) -> Bytes {
    let mut rng = StdRng::seed_from_u64(seed);
    (0..length).map(|_| rng.random::<u8>()).collect()
}

async fn put(store: &FakeStore, key: &'static str, value: &Bytes) -> Revision {
    let pieces: Vec<Result<Bytes>> = value
        .chunks(77)
        .map(|part| Ok(Bytes::copy_from_slice(part)))
        .collect();
    let put = Put::new(key, "");
    let done = put_stream(store, put, stream::iter(pieces), &options())
        .await
        .unwrap();
    assert_eq!(done.bytes, value.len() as u64);
    done.header.revision
}

async fn staged(
    store: &FakeStore,
    key: &'static str,
    value: &Bytes,
) -> Result<podkv_api::recipes::large::Staged<FakeStore>> {
    let mut upload = Upload::begin(store, key.into(), &options()).await?;
    upload.write(value.clone()).await?;
    upload.finish().await
}

async fn opened(store: &FakeStore, key: &'static str) -> Result<Option<ValueStream>> {
    let Some(kv) = store.get(key).await? else {
        return Ok(None);
    };
    open(store, kv, store.revision(), &options())
        .await
        .map(Some)
}

async fn rest(mut stream: ValueStream) -> Result<Bytes> {
    let mut all = Vec::new();
    while let Some(piece) = stream.next().await {
        all.extend_from_slice(&piece?);
    }
    Ok(all.into())
}

async fn get(store: &FakeStore, key: &'static str) -> Result<Option<Bytes>> {
    match opened(store, key).await? {
        Some(stream) => rest(stream).await.map(Some),
        None => Ok(None),
    }
}

/// How many keys there are beside those of users.
fn own_keys(store: &FakeStore) -> usize {
    let is_own = |key: &&Bytes| key.starts_with(RESERVED);
    store.contents().keys().filter(is_own).count()
}

async fn delete(store: &FakeStore, key: &'static str) {
    store.delete(Delete::new(KeyRange::key(key))).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn what_was_written_is_read() {
    let store = FakeStore::new();
    let most = options().plain_bytes(b"k");
    for (length, chunks) in [
        (0, 0),
        (1, 0),
        (most, 0),
        (most + 1, (most + 1).div_ceil(100)),
        (5_000, 50),
        (5_001, 51),
    ] {
        let value = value(length as u64, length);
        put(&store, "k", &value).await;
        collect(&store).await.unwrap();
        let stream = opened(&store, "k").await.unwrap().unwrap();
        let manifest = stream.manifest().copied();
        assert_eq!(
            manifest.map_or(0, |manifest| manifest.chunks() as usize),
            chunks
        );
        assert_eq!(stream.bytes(), length as u64);
        assert_eq!(rest(stream).await.unwrap(), value);
        let own = if chunks == 0 { 0 } else { chunks + 1 };
        assert_eq!(own_keys(&store), own, "{length} bytes");
    }
    assert_eq!(get(&store, "nothing").await.unwrap(), None);
    assert_eq!(store.lease_count(), 0);
}

#[tokio::test(start_paused = true)]
async fn the_trait_needs_no_options() {
    let store = FakeStore::new();
    let piece = Bytes::from(vec![7; 600_000]);
    let source = stream::iter((0..4).map(|_| Ok(piece.clone())));
    let done = store.put_stream(Put::new("k", ""), source).await.unwrap();
    assert_eq!((done.bytes, done.chunks), (2_400_000, 3));
    let stream = store.get_stream("k").await.unwrap().unwrap();
    assert_eq!(rest(stream).await.unwrap(), vec![7; 2_400_000]);
    assert!(store.get_stream("nothing").await.unwrap().is_none());
}

/// Nothing is seen before the commit, and then everything.
#[tokio::test(start_paused = true)]
async fn a_reader_sees_the_old_value_or_the_new_one() {
    let store = FakeStore::new();
    let (old, new) = (value(1, 3_000), value(2, 4_000));
    put(&store, "k", &old).await;
    let staged = staged(&store, "k", &new).await.unwrap();
    collect(&store).await.unwrap();
    assert_eq!(get(&store, "k").await.unwrap(), Some(old.clone()));
    let mut reader = opened(&store, "k").await.unwrap().unwrap();
    let mut read = reader.next().await.unwrap().unwrap().to_vec();
    staged.commit(Put::new("k", "")).await.unwrap();
    let collected = collect(&store).await.unwrap();
    assert_eq!((collected.values, collected.chunks), (1, 30));
    assert_eq!(get(&store, "k").await.unwrap(), Some(new));
    assert_eq!(own_keys(&store), 41);
    // What was collected is read from history.
    read.extend_from_slice(&rest(reader).await.unwrap());
    assert_eq!(read, old);
}

#[tokio::test(start_paused = true)]
async fn a_reader_whose_history_is_compacted_is_told() {
    let store = FakeStore::new();
    put(&store, "k", &value(1, 3_000)).await;
    let mut reader = opened(&store, "k").await.unwrap().unwrap();
    reader.next().await.unwrap().unwrap();
    // Compaction alone takes nothing away.
    store.compact(store.revision()).await.unwrap();
    reader.next().await.unwrap().unwrap();
    let new = value(2, 3_000);
    put(&store, "k", &new).await;
    collect(&store).await.unwrap();
    store.compact(store.revision()).await.unwrap();
    assert_reason(rest(reader).await, Reason::Compacted);
    assert_eq!(get(&store, "k").await.unwrap(), Some(new));
}

#[tokio::test(start_paused = true)]
async fn of_two_writers_one_is_the_value_and_the_other_garbage() {
    let store = FakeStore::new();
    let (a, b) = (value(1, 3_000), value(2, 4_000));
    let first = staged(&store, "k", &a).await.unwrap();
    let second = staged(&store.client(), "k", &b).await.unwrap();
    second.commit(Put::new("k", "")).await.unwrap();
    collect(&store).await.unwrap();
    assert_eq!(get(&store, "k").await.unwrap(), Some(b));
    first.commit(Put::new("k", "")).await.unwrap();
    assert_eq!(get(&store, "k").await.unwrap(), Some(a));
    collect(&store).await.unwrap();
    assert_eq!(own_keys(&store), 31);
}

/// With any client: the collector looks at what the key holds.
#[tokio::test(start_paused = true)]
async fn whatever_takes_its_place_makes_it_garbage() {
    let store = FakeStore::new();
    put(&store, "k", &value(1, 3_000)).await;
    store.put(Put::new("k", "short")).await.unwrap();
    collect(&store).await.unwrap();
    assert_eq!(own_keys(&store), 0);

    put(&store, "k", &value(2, 3_000)).await;
    delete(&store, "k").await;
    assert_eq!(collect(&store).await.unwrap().chunks, 30);
    assert_eq!(own_keys(&store), 0);

    // With a lease that ends.
    let lease = store.lease_grant(secs(60), None).await.unwrap().lease;
    let staged = staged(&store, "k", &value(3, 3_000)).await.unwrap();
    staged.commit(Put::new("k", "").lease(lease)).await.unwrap();
    collect(&store).await.unwrap();
    assert_eq!(own_keys(&store), 31);
    store.lease_revoke(lease).await.unwrap();
    collect(&store).await.unwrap();
    assert_eq!((own_keys(&store), store.get("k").await.unwrap()), (0, None));
}

/// The same bytes under the same key are the same value: a put that keeps them and changes the lease, or a tool that
/// brings them back while they are there.
#[tokio::test(start_paused = true)]
async fn the_same_manifest_under_the_same_key_keeps_the_value() {
    let store = FakeStore::new();
    let large = value(1, 3_000);
    put(&store, "k", &large).await;
    let kept = Put {
        ignore_value: true,
        ..Put::new("k", "")
    };
    store.put(kept).await.unwrap();
    assert_eq!(collect(&store).await.unwrap().values, 0);
    assert_eq!(get(&store, "k").await.unwrap(), Some(large));
}

#[tokio::test(start_paused = true)]
async fn bytes_that_look_like_a_manifest_are_not_taken_for_one() {
    let store = FakeStore::new();
    put(&store, "k", &value(1, 3_000)).await;
    let manifest = store.get("k").await.unwrap().unwrap().value;
    store.put(Put::new("copy", manifest.clone())).await.unwrap();
    assert_reason(get(&store, "copy").await, Reason::Corrupt);
    let other = Manifest {
        upload: UploadId(7),
        ..Manifest::decode(&manifest).unwrap().unwrap()
    };
    store.put(Put::new("k", other.encode())).await.unwrap();
    assert_reason(get(&store, "k").await, Reason::Corrupt);
    // As bytes they are what was put.
    let stored = store.get("copy").await.unwrap().unwrap();
    assert_eq!(stored.value, manifest);
}

#[tokio::test(start_paused = true)]
async fn what_is_damaged_is_found_before_the_end_is_told() {
    let store = FakeStore::new();
    let large = value(1, 3_000);
    put(&store, "k", &large).await;
    let manifest = store.get("k").await.unwrap().unwrap().value;
    let manifest = Manifest::decode(&manifest).unwrap().unwrap();
    let last = chunk_key(manifest.upload, 29, b"k");
    let right = store.get(last.clone()).await.unwrap().unwrap().value;

    let mut wrong = right.to_vec();
    wrong[50] ^= 1;
    store.put(Put::new(last.clone(), wrong)).await.unwrap();
    assert_reason(get(&store, "k").await, Reason::Corrupt);
    store
        .put(Put::new(last.clone(), right.slice(1..)))
        .await
        .unwrap();
    assert_reason(get(&store, "k").await, Reason::Corrupt);
    store
        .put(Put::new(last.clone(), right.clone()))
        .await
        .unwrap();
    assert_eq!(get(&store, "k").await.unwrap(), Some(large));
    store
        .delete(Delete::new(KeyRange::key(last)))
        .await
        .unwrap();
    // What history knows of it is older than the revision that is read.
    assert_reason(get(&store, "k").await, Reason::Corrupt);
}

#[tokio::test(start_paused = true)]
async fn an_upload_that_died_is_garbage_after_its_lease_and_not_before() {
    let store = FakeStore::new();
    put(&store, "k", &value(1, 3_000)).await;
    let dying = store.client();
    let mut upload = Upload::begin(&dying, "k".into(), &options()).await.unwrap();
    for part in 0..10 {
        upload.write(value(part, 500)).await.unwrap();
    }
    tokio::time::sleep(secs(1)).await;
    dying.cut();
    tokio::time::sleep(secs(20)).await;
    assert_eq!(collect(&store).await.unwrap().chunks, 0);
    tokio::time::sleep(secs(20)).await;
    assert_eq!(collect(&store).await.unwrap().chunks, 50);
    assert_eq!(own_keys(&store), 31);

    // It was not dead, only away: whatever it does now is refused.
    dying.mend();
    let mut outcome = Ok(());
    for part in 0..10 {
        outcome = outcome.and(upload.write(value(part, 500)).await);
    }
    let finished = upload.finish().await.map(|staged| staged.manifest().bytes);
    assert_reason(outcome.and(finished), Reason::LockLost);
    tokio::time::sleep(secs(60)).await;
    collect(&store).await.unwrap();
    assert_eq!((own_keys(&store), store.lease_count()), (31, 0));
    assert_eq!(get(&store, "k").await.unwrap(), Some(value(1, 3_000)));
}

/// All chunks are there, then the writer is away for too long: its commit does not bring back what was collected.
#[tokio::test(start_paused = true)]
async fn a_commit_that_comes_too_late_writes_nothing() {
    let store = FakeStore::new();
    let late = store.client();
    let staged = staged(&late, "k", &value(1, 3_000)).await.unwrap();
    late.set_link(Link {
        request_delay: secs(100),
        ..Link::default()
    });
    let commit = tokio::spawn(staged.commit(Put::new("k", "")));
    tokio::time::sleep(secs(60)).await;
    collect(&store).await.unwrap();
    let result: Result<PutResponse> = commit.await.unwrap();
    assert_reason(result, Reason::LockLost);
    assert_eq!((store.get("k").await.unwrap(), own_keys(&store)), (None, 0));
}

#[tokio::test(start_paused = true)]
async fn what_is_given_up_leaves_nothing() {
    let store = FakeStore::new();
    let failing: Vec<Result<Bytes>> = vec![
        Ok(value(1, 3_000)),
        Err(Error::new(Reason::InvalidArgument, "the source failed")),
    ];
    let written = put_stream(&store, Put::new("k", ""), stream::iter(failing), &options()).await;
    assert_reason(written, Reason::InvalidArgument);
    collect(&store).await.unwrap();
    assert_eq!((own_keys(&store), store.lease_count()), (0, 0));

    drop(staged(&store, "k", &value(1, 3_000)).await.unwrap());
    tokio::time::sleep(ms(1)).await;
    collect(&store).await.unwrap();
    assert_eq!((own_keys(&store), store.lease_count()), (0, 0));
    assert_eq!(store.get("k").await.unwrap(), None);
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_is_refused() {
    let store = FakeStore::new();
    let large = || stream::iter([Ok(value(1, 5_000))]);
    let prev = Put::new("k", "").prev_kv();
    let refused = put_stream(&store, prev, large(), &options()).await;
    assert_reason(refused, Reason::InvalidArgument);
    let long = Put::new("k".repeat(64 * 1024 - 10), "");
    let limits = LargeOptions::default();
    let many = || stream::iter((0..3).map(|_| Ok(Bytes::from(vec![0; 1 << 20]))));
    assert_reason(
        put_stream(&store, long, many(), &limits).await,
        Reason::KeyTooLarge,
    );
    let mut upload = Upload::begin(&store, "k".into(), &options()).await.unwrap();
    // Zeros that nobody looks at take no memory.
    let too_long = Bytes::from(vec![0; (1 << 30) + 1]);
    assert_reason(upload.write(too_long).await, Reason::RequestTooLarge);
    upload.give_up().await;
    collect(&store).await.unwrap();
    assert_eq!(own_keys(&store), 0);
}

/// Every transaction's answer is lost once, before or after it was applied: the value is written once.
#[tokio::test(start_paused = true)]
async fn a_commit_whose_answer_is_lost_is_applied_once() {
    for (before, after) in [(0, 1), (1, 0), (3, 3), (0, 10)] {
        let store = FakeStore::new();
        let large = value(1, 3_000);
        put(&store, "k", &value(2, 10)).await;
        store.fail(|faults| (faults.unknown_before, faults.unknown_after) = (before, after));
        put(&store, "k", &large).await;
        let staged = staged(&store, "k", &large).await.unwrap();
        store.fail(|faults| (faults.unknown_before, faults.unknown_after) = (before, after));
        let revision = staged
            .commit(Put::new("k", ""))
            .await
            .unwrap()
            .header
            .revision;
        let kv = store.get("k").await.unwrap().unwrap();
        assert_eq!((kv.version, kv.mod_revision), (3, revision));
        assert_eq!(get(&store, "k").await.unwrap(), Some(large));
        collect(&store).await.unwrap();
        assert_eq!((own_keys(&store), store.lease_count()), (31, 0));
    }
}

/// Writers, deleters, readers and two collectors, in every order that seeds find. Every read is one of the values that
/// were written whole, and in the end nothing is left but what keys hold.
#[tokio::test(start_paused = true)]
async fn nothing_is_torn_lost_or_left_whoever_runs_beside_whom() {
    const KEYS: [&str; 2] = ["a", "b"];
    for seed in 0..20 {
        let store = FakeStore::new();
        let mut tasks = tokio::task::JoinSet::new();
        for worker in 0..6_u64 {
            let store = store.client();
            let mut rng = StdRng::seed_from_u64(seed * 100 + worker);
            tasks.spawn(async move {
                for step in 0..10_u64 {
                    let key = KEYS[rng.random_range(0..2)];
                    store.set_link(Link {
                        request_delay: ms(rng.random_range(0..20)),
                        answer_delay: ms(rng.random_range(0..20)),
                        ..Link::default()
                    });
                    match (worker, rng.random_range(0..10)) {
                        (0 | 1, _) => drop(collect(&store).await.unwrap()),
                        (2 | 3, 0) => delete(&store, key).await,
                        (2 | 3, 1) => {
                            // Begun, and left alone.
                            drop(
                                staged(&store, key, &tagged(worker, step, 2_000))
                                    .await
                                    .unwrap(),
                            );
                        }
                        (2 | 3, n) => {
                            put(&store, key, &tagged(worker, step, 700 * n as usize)).await;
                        }
                        _ => {
                            if let Some(found) = get(&store, key).await.unwrap() {
                                check_tagged(&found);
                            }
                        }
                    }
                }
            });
        }
        while let Some(done) = tasks.join_next().await {
            done.unwrap();
        }
        tokio::time::sleep(secs(60)).await;
        collect(&store).await.unwrap();
        let mut expected = 0;
        for key in KEYS {
            if let Some(stream) = opened(&store, key).await.unwrap() {
                expected += stream
                    .manifest()
                    .map_or(0, |manifest| 1 + manifest.chunks() as usize);
                check_tagged(&rest(stream).await.unwrap());
            }
        }
        assert_eq!(own_keys(&store), expected, "seed {seed}");
        assert_eq!(store.lease_count(), 0);
    }
}

/// A value that says of itself what it has to be.
fn tagged(worker: u64, step: u64, length: usize) -> Bytes {
    let tag = worker * 1000 + step;
    let mut bytes = tag.to_be_bytes().to_vec();
    bytes.extend_from_slice(&(length as u64).to_be_bytes());
    bytes.extend_from_slice(&value(tag, length));
    bytes.into()
}

fn check_tagged(bytes: &Bytes) {
    let number = |at: usize| u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap());
    let (tag, length) = (number(0), number(8));
    assert_eq!(*bytes, tagged(tag / 1000, tag % 1000, length as usize));
}
