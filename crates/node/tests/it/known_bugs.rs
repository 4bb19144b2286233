//! Bugs that other stores shipped, each as a test that is named after it. What else of them is tested is in
//! `RELIABILITY.md`; a leader that is paused is a test of processes: `tests/tests/cluster/paused.rs`.

use std::time::Duration;

use futures_util::StreamExt as _;
use podkv_api::{
    Consistency, Delete, EventKind, KeyRange, Put, Range, Reason, Store as _, Watch, WatchMessage,
    WatchStream,
};
use podkv_node::testing::{TestCluster, cluster, cluster_with};

/// Only a failure waits so long.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a watch tells next, as text: `5: put a`, or why it ended.
async fn next(watch: &mut WatchStream) -> String {
    loop {
        let message = tokio::time::timeout(PATIENCE, watch.next()).await;
        return match message.expect("the watch says something") {
            Some(Ok(WatchMessage::Created { start_revision, .. })) => {
                format!("created from {start_revision}")
            }
            Some(Ok(WatchMessage::Events {
                revision, events, ..
            })) => {
                let told = events.iter().map(|event| {
                    let kind = match event.kind {
                        EventKind::Put => "put",
                        EventKind::Delete => "delete",
                    };
                    format!("{kind} {}", String::from_utf8_lossy(&event.kv.key))
                });
                format!("{revision}: {}", told.collect::<Vec<_>>().join(", "))
            }
            Some(Ok(_)) => continue,
            Some(Err(error)) => format!("{:?}", error.reason()),
            None => "end".into(),
        };
    }
}

async fn put_all(cluster: &TestCluster, node: usize, keys: impl Iterator<Item = u32>) {
    for key in keys {
        let put = Put::new(format!("k/{key}"), key.to_string());
        cluster.node(node).put(put).await.unwrap();
    }
}

/// A follower that is cut off while the log is purged behind its back, so that it gets a snapshot when it is back. Its
/// own reads and watches go on. Returns the follower, after the revisions 2 to 11.
async fn left_behind(cluster: &TestCluster) -> usize {
    let leader = cluster.leader().await;
    let (follower, third) = ((leader + 1) % 3, (leader + 2) % 3);
    put_all(cluster, leader, 0..10).await;
    cluster.wait_ready(follower).await.unwrap();
    for other in [leader, third] {
        let address = |index| format!("podkv-{index}:2380");
        cluster
            .network()
            .cut_both(&address(follower), &address(other));
    }
    follower
}

/// Writes the revisions 12 to 31, and purges all of them from the log of everybody else.
async fn purge_behind(cluster: &TestCluster, follower: usize) {
    let leader = cluster.leader().await;
    let behind = cluster.node(follower).status().await.unwrap();
    for key in 10..30 {
        // A log is purged by the mebibyte.
        let put = Put::new(format!("k/{key}"), vec![b'v'; 256 << 10]);
        cluster.node(leader).put(put).await.unwrap();
    }
    for other in (0..3).filter(|other| *other != follower) {
        let node = cluster.node(other);
        node.purge_log().await.unwrap();
        // The snapshot is there when it returns, the purge follows.
        while node.status().await.unwrap().first_log_index <= behind.applied_index + 1 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    cluster.network().heal_all();
}

async fn small_log() -> TestCluster {
    cluster_with(3, |config| config.log_keep_bytes = 0).await
}

/// etcd issue 18089: a watch from the revision that history was compacted to was not told of the delete at that revision.
/// Issue 19179: nor was it if the node had been started again since.
#[tokio::test(flavor = "multi_thread")]
async fn etcd_18089_and_19179_a_delete_at_the_compacted_revision_is_told() {
    let mut cluster = cluster(3).await;
    let writer = cluster.node(0);
    writer.put(Put::new("a", "1")).await.unwrap();
    writer.put(Put::new("b", "1")).await.unwrap();
    let deleted = writer
        .delete(Delete::new(KeyRange::key("a")))
        .await
        .unwrap()
        .header
        .revision;
    writer.put(Put::new("c", "1")).await.unwrap();
    writer.compact(deleted).await.unwrap();
    for is_restarted in [false, true] {
        for index in 0..3 {
            if is_restarted {
                cluster.kill(index).await;
                cluster.restart(index).await.unwrap();
            }
            // It has applied the compaction, and what was freed by it.
            cluster.node(index).get("c").await.unwrap().unwrap();
            let watch = Watch::new(KeyRange::prefix("")).from_revision(deleted);
            let mut watch = cluster.node(index).watch(watch).await.unwrap();
            assert_eq!(next(&mut watch).await, format!("created from {deleted}"));
            assert_eq!(next(&mut watch).await, format!("{deleted}: delete a"));
            assert_eq!(next(&mut watch).await, format!("{}: put c", deleted + 1));
        }
    }
    cluster.shutdown().await;
}

/// etcd issue 17529: a watcher that did not read for so long that its place was compacted went on behind the gap, and
/// nobody told it.
#[tokio::test(flavor = "multi_thread")]
async fn etcd_17529_a_slow_watcher_whose_place_is_compacted_is_told() {
    // So little of the past is kept in memory that it must be read from history.
    let cluster = cluster_with(1, |config| config.watch_buffer_bytes = 1).await;
    let node = cluster.node(0);
    let mut watch = node
        .watch(Watch::new(KeyRange::prefix("k/")))
        .await
        .unwrap();
    put_all(&cluster, 0, 0..5000).await;
    node.compact(5000).await.unwrap();
    assert_eq!(next(&mut watch).await, "created from 2");
    let mut expected = 2;
    let end = loop {
        match next(&mut watch).await {
            told if told == format!("{expected}: put k/{}", expected - 2) => expected += 1,
            other => break other,
        }
        if expected == 5002 {
            break "all".into();
        }
    };
    // What had been handed out before is told; then it learns that something is missing.
    assert_eq!(end, format!("{:?}", Reason::Compacted), "after {expected}");
    cluster.shutdown().await;
}

/// etcd issue 8411 and pull request 9281: who watched at a node that then got a snapshot was never told of anything
/// again. Issue 15271: it was told of what it had been told already.
#[tokio::test(flavor = "multi_thread")]
async fn etcd_8411_and_15271_a_watch_goes_on_when_its_node_gets_a_snapshot() {
    let cluster = small_log().await;
    let follower = left_behind(&cluster).await;
    let node = cluster.node(follower);
    let all = Watch::new(KeyRange::prefix("k/")).from_revision(2);
    let mut watch = node.watch(all).await.unwrap();
    assert_eq!(next(&mut watch).await, "created from 2");
    for revision in 2..12 {
        let expected = format!("{revision}: put k/{}", revision - 2);
        assert_eq!(next(&mut watch).await, expected);
    }
    purge_behind(&cluster, follower).await;
    for revision in 12..32 {
        let expected = format!("{revision}: put k/{}", revision - 2);
        assert_eq!(next(&mut watch).await, expected);
    }
    let stats = node.stats();
    assert!(stats.snapshots_installed_total > 0, "{stats:?}");
    cluster.shutdown().await;
}

/// etcd issue 19487: a watch that was to begin in the future was told of earlier revisions, when its node got a snapshot.
#[tokio::test(flavor = "multi_thread")]
async fn etcd_19487_a_watch_of_the_future_is_told_nothing_earlier_after_a_snapshot() {
    let cluster = small_log().await;
    let follower = left_behind(&cluster).await;
    let node = cluster.node(follower);
    let future = Watch::new(KeyRange::prefix("k/")).from_revision(30);
    let mut watch = node.watch(future).await.unwrap();
    assert_eq!(next(&mut watch).await, "created from 30");
    purge_behind(&cluster, follower).await;
    assert_eq!(next(&mut watch).await, "30: put k/28");
    assert_eq!(next(&mut watch).await, "31: put k/29");
    assert!(node.stats().snapshots_installed_total > 0);
    cluster.shutdown().await;
}

/// etcd issue 14370: the only member of a cluster answered before its log was synced, and a crash took the write with it.
#[tokio::test(flavor = "multi_thread")]
async fn etcd_14370_a_single_member_answers_after_its_sync() {
    let mut cluster = cluster(1).await;
    cluster.node(0).put(Put::new("a", "1")).await.unwrap();
    cluster.stall_disk(0);
    let node = cluster.node(0);
    let mut write = Box::pin(node.put(Put::new("a", "2")));
    // Time enough for an answer that nothing stands behind.
    let early = tokio::time::timeout(Duration::from_millis(300), &mut write).await;
    assert!(
        early.is_err(),
        "acknowledged, and not on the disk: {early:?}"
    );
    drop(write);
    drop(node);
    cluster.kill(0).await;
    cluster.resume_disk(0);
    cluster.restart(0).await.unwrap();
    let kv = cluster.node(0).get("a").await.unwrap().unwrap();
    assert_eq!(kv.value, "1", "the log never had it");
    cluster.shutdown().await;
}

/// LogCabin issue 44, and figure 8 of the Raft paper: what is not on a majority counted as committed. Here: a leader that
/// nobody answers acknowledges nothing, shows nothing of it, and gives it up for what the others have written meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn logcabin_44_nothing_is_committed_without_a_majority() {
    let cluster = cluster(3).await;
    let old = cluster.leader().await;
    let (node, others) = (cluster.node(old), [(old + 1) % 3, (old + 2) % 3]);
    node.put(Put::new("a", "before")).await.unwrap();
    let address = |index| format!("podkv-{index}:2380");
    for other in others {
        cluster.network().cut_both(&address(old), &address(other));
    }
    let lonely = tokio::spawn({
        let node = node.clone();
        async move { node.put(Put::new("lonely", "1")).await }
    });
    let elsewhere = cluster.node(others[0]);
    let written = async { while elsewhere.put(Put::new("a", "after")).await.is_err() {} };
    tokio::time::timeout(PATIENCE, written).await.unwrap();
    // It still holds its entry, and nobody who asks it sees that.
    let local = Range::new(KeyRange::prefix("")).consistency(Consistency::Local);
    let seen = node.range(local).await.unwrap().kvs;
    let seen: Vec<_> = seen.iter().map(|kv| (&kv.key[..], &kv.value[..])).collect();
    assert_eq!(seen, [(&b"a"[..], &b"before"[..])]);
    cluster.network().heal_all();
    // Sent again by its session, it may be written after all: once, and after the others' write.
    let lonely = lonely.await.unwrap();
    let found = node.get("lonely").await.unwrap();
    match (lonely, found) {
        (Ok(_), Some(kv)) => {
            let after = node.get("a").await.unwrap().unwrap();
            assert!(
                kv.version == 1 && kv.mod_revision > after.mod_revision,
                "{kv:?}"
            );
        }
        (Err(error), found) => assert!(error.outcome_unknown() || found.is_none(), "{found:?}"),
        (Ok(_), None) => panic!("acknowledged, and not there"),
    }
    assert_eq!(node.get("a").await.unwrap().unwrap().value, "after");
    cluster.shutdown().await;
}

/// etcd issue 13766, the postmortem of 3.5: the applied index was not saved together with what it stands for, so a node that
/// was killed applied entries again, or not at all. Here: the same key is put all the time; whatever a node has lost of
/// its state, each put is one version on every node afterwards.
#[tokio::test(flavor = "multi_thread")]
async fn etcd_13766_a_node_that_is_killed_applies_each_entry_once() {
    let small = |config: &mut podkv_node::config::NodeConfig| {
        // Snapshots are what flushes the state: where it falls back to is never the end of the log.
        config.snapshot_log_bytes = 4 << 10;
        config.log_keep_bytes = 16 << 10;
    };
    let mut cluster = cluster_with(3, small).await;
    let mut puts = 0;
    for round in 0..9 {
        let victim = round % 3;
        let writer = cluster.node((victim + 1) % 3);
        for _ in 0..40 {
            writer.put(Put::new("key", vec![b'v'; 200])).await.unwrap();
            puts += 1;
        }
        cluster.kill(victim).await;
        cluster.restart(victim).await.unwrap();
    }
    let mut digests = Vec::new();
    for index in 0..3 {
        let kv = cluster.node(index).get("key").await.unwrap().unwrap();
        assert_eq!((kv.version, kv.mod_revision), (puts, puts + 1), "{index}");
        let digest = cluster.node(index).data_digest(puts + 1).await.unwrap();
        digests.push(digest.sha256);
    }
    digests.dedup();
    assert_eq!(digests.len(), 1, "the replicas differ");
    cluster.shutdown().await;
}

/// A pod with an empty volume that goes on under its old id votes a second time, and what a majority had is gone: members by
/// ordinal, as charts make them (bitnami/charts issue 15783). Here it is another node, and the old one's vote goes with it.
#[tokio::test(flavor = "multi_thread")]
async fn bitnami_15783_a_lost_volume_never_comes_back_under_its_id() {
    let mut cluster = cluster(3).await;
    let victim = (cluster.leader().await + 1) % 3;
    let node = cluster.node(victim);
    node.put(Put::new("a", "1")).await.unwrap();
    let old = node.id();
    drop(node);
    cluster.lose_volume(victim).await.unwrap();
    assert_ne!(cluster.node(victim).id(), old);
    let replaced = async {
        loop {
            let leader = cluster.leader().await;
            let members = cluster.node(leader).members_known();
            if members.len() == 3 && members.iter().all(|member| member.id != old) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, replaced).await.unwrap();
    cluster.wait_ready(victim).await.unwrap();
    assert_eq!(
        cluster.node(victim).get("a").await.unwrap().unwrap().value,
        "1"
    );
    cluster.shutdown().await;
}
