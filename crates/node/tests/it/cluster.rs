//! A cluster in this process: the node as a whole, on memory storage.

use std::sync::Arc;
use std::time::Duration;

use podkv_api::{
    Compare, Consistency, KeyRange, Op, Put, Range, Reason, Store as _, Txn, Watch, WatchMessage,
};
use podkv_core::{Command, Proposal};
use podkv_node::config::StorageConfig;
use podkv_node::testing::cluster;
use podkv_node::transport::memory::Hub;
use podkv_node::{Node, NodeConfig};
use tokio::sync::watch;

#[tokio::test(flavor = "multi_thread")]
async fn every_node_writes_and_reads_what_the_others_wrote() {
    let cluster = cluster(3).await;
    for index in 0..3 {
        let key = format!("key-{index}");
        cluster
            .node(index)
            .put(Put::new(key.clone(), "value"))
            .await
            .unwrap();
        for reader in 0..3 {
            let kv = cluster
                .node(reader)
                .get(key.clone())
                .await
                .unwrap()
                .unwrap();
            assert_eq!((kv.value.as_ref(), kv.version), (&b"value"[..], 1));
        }
    }
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_or_doubled_when_the_leader_is_killed() {
    let mut cluster = cluster(3).await;
    let leader = cluster.leader().await;
    let store = cluster.node((leader + 1) % 3);
    let writing = tokio::spawn({
        let store = store.clone();
        async move {
            for number in 0..500 {
                store
                    .put(Put::new(format!("k{number:04}"), number.to_string()))
                    .await
                    .unwrap();
            }
        }
    });
    while store.status().await.unwrap().keys < 100 {
        tokio::task::yield_now().await;
    }
    cluster.kill(leader).await;
    writing.await.unwrap();
    cluster.restart(leader).await.unwrap();
    let revision = store.header().revision;
    assert_eq!(revision, 501, "one revision a write");
    for index in 0..3 {
        let all = cluster
            .node(index)
            .range(Range::new(KeyRange::all()))
            .await
            .unwrap();
        assert_eq!(all.count, 500);
        assert!(all.kvs.iter().all(|kv| kv.version == 1));
    }
    cluster.shutdown().await;
}

/// Without sessions a write that is in doubt cannot be repeated, so a leader that goes in peace leaves none.
#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_drains_and_stops_leaves_no_write_in_doubt() {
    let mut cluster = cluster(3).await;
    for _ in 0..10 {
        let leader = cluster.leader().await;
        let (stop, stopped) = watch::channel(false);
        let written = watch::Sender::new(0_usize);
        let mut writers = tokio::task::JoinSet::new();
        for writer in 0..32 {
            // The leader's own callers leave while it drains; those of the others stay.
            let node = cluster.node((leader + 1 + writer % 2) % 3);
            writers.spawn(write_unstamped(node, stopped.clone(), written.clone()));
        }
        let mut progress = written.subscribe();
        progress.wait_for(|count| *count >= 200).await.unwrap();
        cluster.node(leader).drain().await;
        assert!(!cluster.node(leader).is_leader(), "it has handed over");
        cluster.kill(leader).await;
        let so_far = *progress.borrow_and_update();
        tokio::select! {
            more = progress.wait_for(|count| *count >= so_far + 100) => drop(more.unwrap()),
            // A write that failed.
            Some(writer) = writers.join_next() => writer.unwrap(),
        }
        stop.send_replace(true);
        while let Some(writer) = writers.join_next().await {
            writer.unwrap();
        }
        cluster.restart(leader).await.unwrap();
    }
    cluster.shutdown().await;
}

async fn write_unstamped(node: Node, stop: watch::Receiver<bool>, written: watch::Sender<usize>) {
    while !*stop.borrow() {
        let proposal = Proposal {
            stamp: None,
            command: Command::Put(Put::new("key", "value")),
        };
        let answer = node.propose(proposal, None).await;
        answer.unwrap_or_else(|error| panic!("{error:?}"));
        written.send_modify(|count| *count += 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_is_purged_when_it_is_asked_for() {
    let config = NodeConfig {
        peer_listen: "127.0.0.1:0".into(),
        log_keep_bytes: 0,
        ..NodeConfig::new("podkv-0", StorageConfig::Memory)
    };
    let node = Node::builder(config).start().await.unwrap();
    for number in 0..4 {
        let value = vec![b'v'; 1 << 20];
        node.put(Put::new(format!("large-{number}"), value))
            .await
            .unwrap();
    }
    let before = node.status().await.unwrap();
    assert_eq!((before.first_log_index, before.snapshot_index), (0, 0));
    let covered = node.purge_log().await.unwrap();
    assert!(covered >= before.applied_index);
    assert!(node.status().await.unwrap().snapshot_index >= covered);
    // The snapshot is there when it returns, the purge follows.
    while node.status().await.unwrap().first_log_index == 0 {
        tokio::task::yield_now().await;
    }
    assert_eq!(node.stats().snapshots_built_total, 1);
    node.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_on_a_follower_sees_every_revision_across_a_failover() {
    use futures_util::StreamExt as _;
    let mut cluster = cluster(3).await;
    let leader = cluster.leader().await;
    let store = cluster.node((leader + 2) % 3);
    let mut messages = store
        .watch(Watch::new(KeyRange::prefix("w/")))
        .await
        .unwrap();
    assert!(matches!(
        messages.next().await,
        Some(Ok(WatchMessage::Created {
            start_revision: 2,
            ..
        }))
    ));
    for number in 0..20 {
        if number == 10 {
            cluster.kill(leader).await;
        }
        store
            .put(Put::new(format!("w/{number}"), ""))
            .await
            .unwrap();
    }
    let mut revisions = Vec::new();
    while revisions.len() < 20 {
        if let WatchMessage::Events { revision, .. } = messages.next().await.unwrap().unwrap() {
            revisions.push(revision);
        }
    }
    assert_eq!(revisions, (2..22).collect::<Vec<_>>());
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn transactions_compare_and_swap() {
    let cluster = cluster(1).await;
    let store = cluster.node(0);
    let create = Txn::new()
        .when([Compare::absent("a")])
        .then([Op::from(Put::new("a", "1"))])
        .or_else([Op::from(Range::new(KeyRange::key("a")))]);
    assert!(store.txn(create.clone()).await.unwrap().succeeded);
    assert!(!store.txn(create).await.unwrap().succeeded);
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn local_reads_go_on_without_a_majority_and_writes_say_why_not() {
    let mut cluster = podkv_node::testing::cluster_with(3, |config| {
        config.request_timeout = std::time::Duration::from_secs(1);
    })
    .await;
    cluster.node(0).put(Put::new("a", "1")).await.unwrap();
    for index in 0..3 {
        cluster.node(index).get("a").await.unwrap();
    }
    cluster.kill(0).await;
    cluster.kill(1).await;
    let survivor = cluster.node(2);
    let error = survivor.put(Put::new("b", "2")).await.unwrap_err();
    assert!(error.is_retryable(), "{error:?}");
    let local = Range::new(KeyRange::key("a")).consistency(Consistency::Local);
    assert_eq!(survivor.range(local).await.unwrap().kvs[0].value, "1");
    cluster.restart(0).await.unwrap();
    survivor.put(Put::new("b", "2")).await.unwrap();
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_without_its_majority_soon_leaves_no_write_in_doubt() {
    let mut cluster = podkv_node::testing::cluster_with(3, |config| {
        config.request_timeout = Duration::from_secs(1);
    })
    .await;
    let leader = cluster.leader().await;
    let others: Vec<_> = (0..3).filter(|index| *index != leader).collect();
    for other in &others {
        cluster.kill(*other).await;
    }
    let node = cluster.node(leader);
    let refused = async {
        loop {
            let error = node.put(Put::new("a", "1")).await.unwrap_err();
            if !error.outcome_unknown() {
                return error;
            }
        }
    };
    let refused = tokio::time::timeout(Duration::from_secs(30), refused).await;
    assert!(refused.unwrap().is_retryable());
    cluster.restart(others[0]).await.unwrap();
    node.put(Put::new("a", "2")).await.unwrap();
    cluster.shutdown().await;
}

/// It has nothing, and would answer "not found" to everything.
#[tokio::test]
async fn a_node_that_belongs_to_no_cluster_answers_no_read() {
    let mut config = NodeConfig::new("podkv-0", StorageConfig::Memory);
    config.peer_listen = "podkv-0:2380".into();
    config.peer_address = config.peer_listen.clone();
    config.replicas = 3;
    config.request_timeout = Duration::from_millis(100);
    let transport = Arc::new(Hub::new().attach("podkv-0:2380"));
    let node = Node::builder(config)
        .transport(transport)
        .start()
        .await
        .unwrap();
    for (consistency, reason) in [
        (Consistency::Linearizable, Reason::NoLeader),
        (Consistency::Local, Reason::NodeNotReady),
        (
            Consistency::Bounded(Duration::from_secs(60)),
            Reason::NodeNotReady,
        ),
    ] {
        let range = Range::new(KeyRange::key("a")).consistency(consistency);
        let error = node.range(range).await.unwrap_err();
        assert_eq!(error.reason(), reason, "{error}");
        assert!(error.is_retryable() && !error.text().is_empty());
    }
    node.shutdown().await;
}
