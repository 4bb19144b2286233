//! The promise: a backup holds what was acknowledged before it, and a restore into a new cluster
//! brings it back, over the loss of a leader, or not at all.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use podkv_api::{
    Consistency, Error, KeyRange, KeyValue, LeaseId, Put, Range, Reason, Result, Store as _, Watch,
    WatchMessage,
};
use podkv_core::{BackupEnd, BackupPart, BackupReader, BackupRecord, REVISION_RAISE};
use podkv_node::testing::{cluster, cluster_with};
use podkv_node::{Node, Restored};

/// Longer than any of these tests takes.
const TTL: Duration = Duration::from_secs(300);

async fn save(node: &Node) -> Vec<Bytes> {
    let mut reader = node.snapshot().await.unwrap();
    let mut chunks = Vec::new();
    while let Some(chunk) = reader.next_chunk().await.unwrap() {
        chunks.push(chunk);
    }
    let bytes: usize = chunks.iter().map(Bytes::len).sum();
    assert_eq!(reader.total_bytes(), bytes as u64);
    chunks
}

fn check(chunks: &[Bytes]) -> (BackupEnd, Vec<BackupRecord>) {
    let mut reader = BackupReader::new();
    let mut records = Vec::new();
    for chunk in chunks {
        reader.push(chunk);
        while let Some(part) = reader.next_part().unwrap() {
            if let BackupPart::Records(more) = part {
                records.extend(more);
            }
        }
    }
    (reader.finish().unwrap(), records)
}

async fn restore(node: &Node, chunks: &[Bytes]) -> Result<Restored> {
    let mut writer = node.restore(check(chunks).0.id);
    for chunk in chunks {
        writer.write(chunk.clone()).await?;
    }
    writer.finish().await
}

async fn all(node: &Node) -> Vec<KeyValue> {
    let mut chunks = node
        .range_stream(Range::new(KeyRange::all()))
        .await
        .unwrap();
    let mut kvs = Vec::new();
    while let Some(chunk) = chunks.next().await {
        kvs.extend(chunk.unwrap().kvs);
    }
    kvs
}

/// What a dump shows: all but deadlines, which are on another clock.
fn dumped(kvs: &[KeyValue]) -> Vec<KeyValue> {
    let without = |kv: &KeyValue| KeyValue {
        expires_at_ms: None,
        ..kv.clone()
    };
    kvs.iter().map(without).collect()
}

/// Keys with history, with leases, with TTLs; more than one block of them.
async fn fill(node: &Node) {
    let lease = node.lease_grant(TTL, Some(LeaseId(7))).await.unwrap();
    node.lease_grant(TTL * 2, Some(LeaseId(8))).await.unwrap();
    let value = Bytes::from(vec![b'x'; 3000]);
    for number in 0..300 {
        let put = Put::new(format!("key/{number:04}"), value.clone());
        node.put(match number % 10 {
            3 => put.lease(lease.lease),
            5 => Put {
                ttl_ms: Some(TTL.as_millis() as u64),
                ..put
            },
            _ => put,
        })
        .await
        .unwrap();
    }
    for number in (0..300).step_by(7) {
        node.put(Put::new(format!("key/{number:04}"), "again"))
            .await
            .unwrap();
    }
    node.delete(podkv_api::Delete::new(KeyRange::prefix("key/00")))
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restored_cluster_is_the_old_one_at_a_new_revision() {
    let old = cluster(3).await;
    fill(&old.node(0)).await;
    let chunks = save(&old.node(2)).await;
    let was = all(&old.node(0)).await;
    let old_header = old.node(0).header();
    old.shutdown().await;

    let new = cluster(3).await;
    let restored = restore(&new.node(1), &chunks).await.unwrap();
    assert_ne!(restored.header.cluster, old_header.cluster);
    assert_eq!(
        restored.header.revision,
        old_header.revision + REVISION_RAISE
    );
    assert_eq!(restored.records, was.len() as u64 + 2);
    for index in 0..3 {
        let node = new.node(index);
        let is = all(&node).await;
        assert_eq!(dumped(&is), dumped(&was));
        let has_ttl = |kvs: &[KeyValue]| kvs.iter().filter(|kv| kv.expires_at_ms.is_some()).count();
        assert!(has_ttl(&is) > 0 && has_ttl(&is) == has_ttl(&was));
        assert_eq!(node.leases().await.unwrap(), [LeaseId(7), LeaseId(8)]);
        let lease = node.lease_status(LeaseId(7), true).await.unwrap();
        assert_eq!(
            lease.keys.len(),
            is.iter().filter(|kv| kv.lease == Some(LeaseId(7))).count()
        );
        assert!(lease.remaining_ms > (TTL / 2).as_millis() as u64);
        let past = Range::new(KeyRange::all()).at(old_header.revision);
        assert_eq!(
            node.range(past).await.unwrap_err().reason(),
            Reason::Compacted
        );
    }
    // It is a cluster like any other.
    let revision = new
        .node(2)
        .put(Put::new("new", ""))
        .await
        .unwrap()
        .header
        .revision;
    assert_eq!(revision, restored.header.revision + 1);
    new.node(0).lease_revoke(LeaseId(7)).await.unwrap();
    assert!(all(&new.node(1)).await.iter().all(|kv| kv.lease.is_none()));
    let error = restore(&new.node(0), &chunks).await.unwrap_err();
    assert_eq!(error.reason(), Reason::NotEmpty);

    // A backup of the restored cluster is one like any other, too.
    let again = save(&new.node(0)).await;
    let other = cluster(1).await;
    restore(&other.node(0), &again).await.unwrap();
    assert_eq!(
        dumped(&all(&other.node(0)).await),
        dumped(&all(&new.node(0)).await)
    );
    other.shutdown().await;
    new.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restore_goes_on_when_the_leader_dies() {
    let old = cluster(1).await;
    fill(&old.node(0)).await;
    let chunks = save(&old.node(0)).await;
    let was = all(&old.node(0)).await;
    old.shutdown().await;
    assert!(chunks.len() >= 5, "a header, three blocks, an end");

    let mut new = cluster(3).await;
    let leader = new.leader().await;
    let node = new.node((leader + 1) % 3);
    let (end, _) = check(&chunks);
    let mut writer = node.restore(end.id);
    let (first, rest) = chunks.split_at(2);
    for chunk in first {
        writer.write(chunk.clone()).await.unwrap();
    }
    new.kill(leader).await;
    for chunk in rest {
        writer.write(chunk.clone()).await.unwrap();
    }
    let restored = writer.finish().await.unwrap();
    assert_eq!(restored.records, end.records);
    new.restart(leader).await.unwrap();
    for index in 0..3 {
        assert_eq!(dumped(&all(&new.node(index)).await), dumped(&was));
    }
    new.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restore_that_lost_its_node_goes_on_elsewhere() {
    let old = cluster(1).await;
    fill(&old.node(0)).await;
    let chunks = save(&old.node(0)).await;
    let was = all(&old.node(0)).await;
    let other = cluster(1).await;
    other.node(0).put(Put::new("other", "")).await.unwrap();
    let other_chunks = save(&other.node(0)).await;

    let mut new = cluster(3).await;
    let (end, _) = check(&chunks);
    let mut writer = new.node(0).restore(end.id);
    for chunk in &chunks[..3] {
        writer.write(chunk.clone()).await.unwrap();
    }
    drop(writer);
    new.kill(0).await;

    // Nobody sees half of it, on any node, by any read; and nothing is written beside it.
    for index in 1..3 {
        let node = new.node(index);
        let refused = |error: Error| assert_eq!(error.reason(), Reason::Restoring, "{error}");
        for consistency in [Consistency::Linearizable, Consistency::Local] {
            let read = Range::new(KeyRange::all()).consistency(consistency);
            refused(node.range(read).await.unwrap_err());
        }
        refused(node.leases().await.unwrap_err());
        refused(node.lease_status(LeaseId(7), true).await.unwrap_err());
        refused(node.put(Put::new("a", "1")).await.unwrap_err());
        refused(node.snapshot().await.err().unwrap());
        let error = restore(&node, &other_chunks).await.unwrap_err();
        refused(error);
    }
    let restored = restore(&new.node(2), &chunks).await.unwrap();
    assert_eq!(restored.records, end.records);
    new.restart(0).await.unwrap();
    assert_eq!(dumped(&all(&new.node(0)).await), dumped(&was));
    // Its answer might have been lost: asked again, it is the same.
    assert_eq!(
        restore(&new.node(1), &chunks).await.unwrap().records,
        restored.records
    );

    other.shutdown().await;
    old.shutdown().await;
    new.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_backup_leaves_nothing_that_can_be_read() {
    let old = cluster(1).await;
    fill(&old.node(0)).await;
    let chunks = save(&old.node(0)).await;
    let (end, _) = check(&chunks);
    let new = cluster(1).await;
    let node = new.node(0);

    let cut = &chunks[..chunks.len() - 1];
    let mut writer = node.restore(end.id);
    for chunk in cut {
        writer.write(chunk.clone()).await.unwrap();
    }
    assert_eq!(writer.finish().await.unwrap_err().reason(), Reason::Corrupt);
    assert_eq!(
        node.get("key/0200").await.unwrap_err().reason(),
        Reason::Restoring
    );
    node.discard_restore().await.unwrap();
    assert_eq!(all(&node).await, []);

    let mut writer = node.restore(end.id);
    writer.write(chunks[..2].concat().into()).await.unwrap();
    let mut damaged = chunks[2].to_vec();
    damaged[1000] ^= 1;
    let error = writer.write(damaged.into()).await.unwrap_err();
    assert_eq!(error.reason(), Reason::Corrupt);
    node.discard_restore().await.unwrap();

    let mut writer = node.restore(podkv_core::BackupId(1));
    for chunk in &chunks {
        writer.write(chunk.clone()).await.unwrap();
    }
    assert_eq!(
        writer.finish().await.unwrap_err().reason(),
        Reason::InvalidArgument
    );
    node.discard_restore().await.unwrap();

    let mut writer = node.restore(end.id);
    let foreign = Bytes::from_static(b"this is a file, but not one of ours");
    assert_eq!(
        writer.write(foreign).await.unwrap_err().reason(),
        Reason::InvalidArgument
    );
    node.put(Put::new("a", "1")).await.unwrap();
    assert_eq!(
        restore(&node, &chunks).await.unwrap_err().reason(),
        Reason::NotEmpty
    );
    old.shutdown().await;
    new.shutdown().await;
}

/// Restored keys come without events, so a watch that began before must end and say why.
#[tokio::test(flavor = "multi_thread")]
async fn a_watch_from_before_a_restore_is_told() {
    let old = cluster(1).await;
    old.node(0).put(Put::new("a", "1")).await.unwrap();
    let chunks = save(&old.node(0)).await;
    let new = cluster(3).await;
    let mut watches = Vec::new();
    for index in 0..3 {
        let mut messages = new
            .node(index)
            .watch(Watch::new(KeyRange::all()))
            .await
            .unwrap();
        assert!(matches!(
            messages.next().await,
            Some(Ok(WatchMessage::Created { .. }))
        ));
        watches.push(messages);
    }
    let restored = restore(&new.node(0), &chunks).await.unwrap();
    for messages in &mut watches {
        let error = messages.next().await.unwrap().unwrap_err();
        assert_eq!(
            (error.reason(), error.revision()),
            (Reason::Compacted, restored.header.revision)
        );
    }
    let from = restored.header.revision;
    let mut messages = new
        .node(1)
        .watch(Watch::new(KeyRange::all()).from_revision(from))
        .await
        .unwrap();
    assert!(matches!(
        messages.next().await,
        Some(Ok(WatchMessage::Created { .. }))
    ));
    new.node(2).put(Put::new("b", "1")).await.unwrap();
    match messages.next().await.unwrap().unwrap() {
        WatchMessage::Events {
            revision, events, ..
        } => {
            assert_eq!((revision, events.len()), (from + 1, 1));
        }
        other => panic!("{other:?}"),
    }
    old.shutdown().await;
    new.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_holds_what_was_acknowledged_anywhere_and_nothing_later() {
    let cluster = cluster(3).await;
    let mut expected = BTreeMap::new();
    for round in 0..10 {
        let key = format!("k{round}");
        cluster
            .node(round % 3)
            .put(Put::new(key.clone(), "v"))
            .await
            .unwrap();
        expected.insert(Bytes::from(key), round);
        let mut reader = cluster.node((round + 1) % 3).snapshot().await.unwrap();
        let busy = cluster
            .node((round + 1) % 3)
            .snapshot()
            .await
            .err()
            .unwrap();
        assert_eq!(busy.reason(), Reason::Overloaded);
        cluster.node(0).put(Put::new("later", "x")).await.unwrap();
        cluster
            .node(0)
            .delete(podkv_api::Delete::new(KeyRange::key("later")))
            .await
            .unwrap();
        let mut chunks = Vec::new();
        while let Some(chunk) = reader.next_chunk().await.unwrap() {
            chunks.push(chunk);
        }
        let keys = check(&chunks)
            .1
            .into_iter()
            .filter_map(|record| match record {
                BackupRecord::Key(kv) => Some(kv.key),
                BackupRecord::Lease { .. } | BackupRecord::Frozen { .. } => None,
            });
        assert!(keys.eq(expected.keys().cloned()));
    }
    cluster.shutdown().await;
}

/// A node with other limits takes what it may, and says which setting is in the way.
#[tokio::test(flavor = "multi_thread")]
async fn records_above_the_limit_of_a_request_are_refused() {
    let old = cluster(1).await;
    old.node(0)
        .put(Put::new("large", vec![0; 20_000]))
        .await
        .unwrap();
    let chunks = save(&old.node(0)).await;
    let new = cluster_with(1, |config| config.limits.max_request_bytes = 10_000).await;
    let error = restore(&new.node(0), &chunks).await.unwrap_err();
    assert_eq!(error.reason(), Reason::RequestTooLarge);
    new.node(0).discard_restore().await.unwrap();
    let enough = cluster_with(1, |config| config.limits.max_request_bytes = 20_100).await;
    restore(&enough.node(0), &chunks).await.unwrap();
    enough.shutdown().await;
    old.shutdown().await;
    new.shutdown().await;
}
