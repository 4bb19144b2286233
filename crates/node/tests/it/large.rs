//! The promise: large values are whole on every node, under the rights of their keys; and what they leave is collected by the
//! cluster itself, whoever leads.

use std::collections::BTreeSet;
use std::time::Duration;

use futures_util::{StreamExt, stream};
use podkv_api::large::{Manifest, chunk_key, own_names, record_key};
use podkv_api::recipes::LargeValues;
use podkv_api::recipes::large::{LargeOptions, Upload, put_stream};
use podkv_api::*;
use podkv_node::testing::{TestCluster, cluster_with};

/// So that a test waits for commits and not for a clock.
async fn cluster(size: usize) -> TestCluster {
    cluster_with(size, |config| {
        config.collect_large_every = Duration::from_millis(10)
    })
    .await
}

fn options() -> LargeOptions {
    LargeOptions {
        limits: Limits {
            max_request_bytes: 8 << 10,
            ..Limits::default()
        },
        chunk_bytes: 4 << 10,
        ..LargeOptions::default()
    }
}

fn value(tag: u8, length: usize) -> Bytes {
    (0..length)
        .map(|at| tag.wrapping_add((at % 251) as u8))
        .collect()
}

async fn put<S: Store>(store: &S, key: &'static str, value: &Bytes) -> Result<Revision> {
    let source = stream::iter([Ok(value.clone())]);
    let done = put_stream(store, Put::new(key, ""), source, &options()).await?;
    Ok(done.header.revision)
}

async fn get<S: Store>(store: &S, key: &'static str) -> Result<Bytes> {
    let mut stream = store.get_stream(key).await?.expect("it is there");
    let mut all = Vec::new();
    while let Some(piece) = stream.next().await {
        all.extend_from_slice(&piece?);
    }
    Ok(all.into())
}

async fn manifest<S: Store>(store: &S, key: &'static str) -> Manifest {
    let kv = store.get(key).await.unwrap().unwrap();
    Manifest::decode(&kv.value).unwrap().unwrap()
}

/// Waits until so many keys are kept for large values.
async fn until_kept<S: Store>(store: &S, count: usize) {
    let mut messages = store.watch(Watch::new(own_names()).list()).await.unwrap();
    let mut keys = BTreeSet::new();
    let mut listed = false;
    while !listed || keys.len() != count {
        match messages.next().await.unwrap().unwrap() {
            WatchMessage::List { kvs, .. } => keys.extend(kvs.into_iter().map(|kv| kv.key)),
            WatchMessage::Listed { .. } => listed = true,
            WatchMessage::Events { events, .. } => {
                for event in events {
                    match event.kind {
                        EventKind::Put => keys.insert(event.kv.key),
                        EventKind::Delete => keys.remove(&event.kv.key),
                    };
                }
            }
            _ => {}
        }
    }
}

async fn reason_of<T>(refused: impl Future<Output = Result<T>>) -> Reason {
    match refused.await {
        Ok(_) => panic!("it was allowed"),
        Err(error) => error.reason(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_leader_collects_whoever_it_is() {
    let mut cluster = cluster(3).await;
    let (first, second) = (value(1, 50_000), value(2, 60_000));
    put(&cluster.node(0), "k", &first).await.unwrap();
    put(&cluster.node(1), "k", &second).await.unwrap();
    for node in 0..3 {
        assert_eq!(get(&cluster.node(node), "k").await.unwrap(), second);
    }
    until_kept(&cluster.node(2), 1 + 15).await;
    cluster.kill_leader().await;
    let leader = cluster.leader().await;
    let store = cluster.node(leader);
    assert_eq!(get(&store, "k").await.unwrap(), second);
    // By a client that knows nothing of large values.
    store
        .delete(Delete::new(KeyRange::prefix("k")))
        .await
        .unwrap();
    until_kept(&store, 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_goes_on_when_the_leader_is_killed() {
    let mut cluster = cluster(3).await;
    let leader = cluster.leader().await;
    let store = cluster.node((leader + 1) % 3);
    let large = value(3, 200_000);
    let mut upload = Upload::begin(&store, "k".into(), &options()).await.unwrap();
    upload.write(large.slice(..100_000)).await.unwrap();
    cluster.kill_leader().await;
    upload.write(large.slice(100_000..)).await.unwrap();
    let staged = upload.finish().await.unwrap();
    staged.commit(Put::new("k", "")).await.unwrap();
    assert_eq!(get(&store, "k").await.unwrap(), large);
}

/// Alice may read and write one key, bob may read it, carol another one.
#[tokio::test(flavor = "multi_thread")]
async fn the_rights_of_the_key_are_the_rights_of_its_chunks() {
    let cluster = cluster(1).await;
    let node = cluster.node(0);
    let root = node.trusted();
    root.user_add(ROOT, Some("pw".into())).await.unwrap();
    root.user_grant_role(ROOT, ROOT).await.unwrap();
    for (name, kind, key) in [
        ("alice", PermissionKind::ReadWrite, "a/model"),
        ("bob", PermissionKind::Read, "a/model"),
        ("carol", PermissionKind::ReadWrite, "c/model"),
    ] {
        root.user_add(name, Some("pw".into())).await.unwrap();
        root.role_add(name).await.unwrap();
        let range = KeyRange::key(key);
        root.role_grant(name, Permission { kind, range })
            .await
            .unwrap();
        root.user_grant_role(name, name).await.unwrap();
    }
    root.auth_enable().await.unwrap();
    let log_in = async |name: &str| {
        let token = node.authenticate(name, "pw".into()).await.unwrap().1;
        node.access(Some(&token)).await.unwrap()
    };
    let (alice, bob, carol) = (
        log_in("alice").await,
        log_in("bob").await,
        log_in("carol").await,
    );
    let large = value(4, 50_000);
    put(&alice, "a/model", &large).await.unwrap();
    assert_eq!(get(&alice, "a/model").await.unwrap(), large);
    assert_eq!(get(&bob, "a/model").await.unwrap(), large);
    assert_eq!(
        reason_of(put(&bob, "a/model", &large)).await,
        Reason::PermissionDenied
    );
    assert_eq!(
        reason_of(put(&carol, "a/model", &large)).await,
        Reason::PermissionDenied
    );

    let upload = manifest(&alice, "a/model").await.upload;
    for name in [
        chunk_key(upload, 0, b"a/model"),
        record_key(upload, b"a/model"),
    ] {
        bob.get(name.clone()).await.unwrap().unwrap();
        assert_eq!(
            reason_of(carol.get(name.clone())).await,
            Reason::PermissionDenied
        );
        let delete = Delete::new(KeyRange::key(name));
        assert_eq!(
            reason_of(bob.delete(delete)).await,
            Reason::PermissionDenied
        );
    }
    let all = Range::new(own_names());
    assert_eq!(reason_of(alice.range(all)).await, Reason::PermissionDenied);

    // What she gives up, she may give up: its record hangs on her lease.
    let mut upload = Upload::begin(&alice, "a/model".into(), &options())
        .await
        .unwrap();
    upload.write(value(5, 9_000)).await.unwrap();
    upload.give_up().await;
    until_kept(&node, 1 + 13).await;
    assert!(node.leases().await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn below_a_frozen_prefix_nothing_is_uploaded_or_collected() {
    let cluster = cluster(1).await;
    let store = cluster.node(0);
    let large = value(6, 50_000);
    put(&store, "app/model", &large).await.unwrap();
    let begin = async || Upload::begin(&store, "app/model".into(), &options()).await;
    let mut upload = begin().await.unwrap();
    upload.write(value(7, 9_000)).await.unwrap();
    let staged = upload.finish().await.unwrap();

    store.freeze("app/".into()).await.unwrap();
    assert_eq!(reason_of(begin()).await, Reason::Frozen);
    assert_eq!(
        reason_of(staged.commit(Put::new("app/model", ""))).await,
        Reason::Frozen
    );
    let upload = manifest(&store, "app/model").await.upload;
    let chunk = Delete::new(KeyRange::key(chunk_key(upload, 0, b"app/model")));
    assert_eq!(reason_of(store.delete(chunk)).await, Reason::Frozen);
    assert_eq!(
        reason_of(store.delete(Delete::new(own_names()))).await,
        Reason::Frozen
    );
    assert_eq!(get(&store, "app/model").await.unwrap(), large);

    store.thaw("app/".into()).await.unwrap();
    let short = Bytes::from("short");
    put(&store, "app/model", &short).await.unwrap();
    for lease in store.leases().await.unwrap() {
        store.lease_revoke(lease).await.unwrap();
    }
    until_kept(&store, 0).await;
    assert_eq!(get(&store, "app/model").await.unwrap(), short);
}
