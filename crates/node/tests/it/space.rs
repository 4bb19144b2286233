//! Promise 7, of space: a member without room closes the doors of all for what adds data, and for nothing else; they
//! open again when it has room.

use std::path::Path;
use std::time::Duration;

use podkv_api::{
    Alarm, AlarmKind, Compare, CompareOp, CompareTarget, Delete, Error, KeyRange, LeaseId, Op, Put,
    Reason, Store as _, Txn,
};
use podkv_node::config::StorageConfig;
use podkv_node::testing::cluster_with;
use podkv_node::{Node, NodeConfig};

const VALUE_BYTES: usize = 1 << 20;

/// Writes under new keys until that is refused.
async fn fill(node: &Node) -> (usize, Error) {
    for number in 0..10_000 {
        let put = Put::new(format!("fill/{number:05}"), noise(number));
        match node.put(put).await {
            Ok(_) => {}
            Err(error) if error.reason() == Reason::Overloaded => {}
            Err(error) => return (number, error),
        }
    }
    panic!("nothing was refused");
}

/// Bytes that do not compress.
fn noise(seed: usize) -> Vec<u8> {
    let mut state = seed as u64 + 1;
    let mut next = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (state >> 56) as u8
    };
    (0..VALUE_BYTES).map(|_| next()).collect()
}

/// Frees everything, history too.
async fn empty(node: &Node) {
    let deleted = node.delete(Delete::new(KeyRange::prefix("fill/"))).await;
    let revision = deleted.unwrap().header.revision;
    node.compact(revision).await.unwrap();
}

async fn put_when_there_is_room(node: &Node) {
    loop {
        match node.put(Put::new("after", "1")).await {
            Ok(_) => return,
            Err(error) => assert_eq!(error.reason(), Reason::NoSpace, "{error}"),
        }
        // The members look at it from time to time: there is no event.
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_member_without_room_closes_all_doors_until_it_has_some() {
    // A standby's volume counts like a voter's, and the quota of one is enough.
    let cluster = cluster_with(3, |config| {
        if config.name == "podkv-1" {
            config.quota_bytes = 4 << 20;
        }
    })
    .await;
    let lease = cluster
        .node(0)
        .lease_grant(Duration::from_secs(600), None)
        .await
        .unwrap()
        .lease;
    let (_, error) = fill(&cluster.node(0)).await;
    assert_eq!(error.reason(), Reason::NoSpace, "{error}");
    assert!(!error.outcome_unknown());
    let alarm = Alarm {
        member: cluster.node(1).id(),
        kind: AlarmKind::NoSpace,
    };
    for index in 0..3 {
        let node = cluster.node(index);
        while node.status().await.unwrap().alarms != [alarm] {
            tokio::task::yield_now().await;
        }
        assert!(node.health().borrow().ready, "a full node serves");
        doors(&node, lease).await;
    }
    empty(&cluster.node(2)).await;
    for index in 0..3 {
        put_when_there_is_room(&cluster.node(index)).await;
    }
    let (_, alarms) = cluster
        .node(0)
        .alarms(podkv_api::Consistency::Linearizable)
        .await
        .unwrap();
    assert_eq!(alarms, []);
    cluster.shutdown().await;
}

/// What is refused, and what is not.
async fn doors(node: &Node, lease: LeaseId) {
    let put = Op::Put(Put::new("k", "v"));
    // It would not put anything, and nobody can know before.
    let never = Txn {
        compare: vec![Compare {
            range: KeyRange::key("k"),
            op: CompareOp::Greater,
            target: CompareTarget::Version(0),
        }],
        then: vec![put],
        ..Txn::default()
    };
    // The door closes when the node looks at its alarms next.
    let refused = loop {
        match node.txn(never.clone()).await {
            Ok(_) => tokio::task::yield_now().await,
            Err(error) => break error,
        }
    };
    assert_eq!(refused.reason(), Reason::NoSpace);
    let refused = node
        .lease_grant(Duration::from_secs(1), None)
        .await
        .unwrap_err();
    assert_eq!(refused.reason(), Reason::NoSpace);

    node.lease_keep_alive(lease).await.unwrap();
    node.get("fill/00000").await.unwrap().unwrap();
    let key = KeyRange::key("absent");
    node.delete(Delete::new(key.clone())).await.unwrap();
    let frees = Txn {
        then: vec![Op::Delete(Delete::new(key))],
        ..Txn::default()
    };
    node.txn(frees).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_alarm_of_a_member_that_is_gone_is_taken_back() {
    let mut cluster = cluster_with(3, |config| {
        if config.name == "podkv-2" {
            config.quota_bytes = 1 << 20;
        }
    })
    .await;
    fill(&cluster.node(0)).await;
    cluster.kill(2).await;
    let gone = cluster.node(0).status().await.unwrap().alarms[0].member;
    cluster.node(0).remove_member(gone).await.unwrap();
    put_when_there_is_room(&cluster.node(0)).await;
    cluster.shutdown().await;
}

async fn on_disk(data_dir: &Path, quota_bytes: u64) -> Node {
    let config = NodeConfig {
        peer_listen: "127.0.0.1:0".into(),
        quota_bytes,
        ..NodeConfig::new(
            "podkv-0",
            StorageConfig::Disk {
                data_dir: data_dir.into(),
            },
        )
    };
    Node::builder(config).start().await.unwrap()
}

/// Tables with nothing but tombstones go without anything being written.
#[cfg(feature = "rocksdb")]
#[tokio::test(flavor = "multi_thread")]
async fn space_on_a_disk_comes_back_after_deletes_and_a_compaction() {
    let folder = tempfile::tempdir().unwrap();
    let node = on_disk(folder.path(), 40 << 20).await;
    let (written, error) = fill(&node).await;
    assert_eq!(error.reason(), Reason::NoSpace, "{error}");
    assert!(written * VALUE_BYTES >= 40 << 20, "{written}");
    empty(&node).await;
    put_when_there_is_room(&node).await;
    node.shutdown().await;
}
