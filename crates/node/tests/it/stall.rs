//! Promise 7, of a disk that does not answer: the leader hands over, and nothing that was acknowledged is lost.

use std::time::Duration;

use podkv_api::{Put, Store as _};
use podkv_node::testing::{TestCluster, cluster_with};

/// Short, so that the test is; still far more than a write in memory takes on a busy machine.
const STALL: Duration = Duration::from_millis(500);

async fn cluster() -> TestCluster {
    cluster_with(3, |config| config.stall_timeout = STALL).await
}

/// Waits until another node than `old` says that it leads.
async fn other_leader(cluster: &TestCluster, old: usize) -> usize {
    loop {
        for index in (0..cluster.size()).filter(|index| *index != old) {
            if cluster.node(index).is_leader() {
                return index;
            }
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_whose_disk_hangs_hands_over_and_comes_back_as_a_follower() {
    let cluster = cluster().await;
    let old = cluster.leader().await;
    // Also opens each node's session, so that what follows can be sent again.
    for index in 0..3 {
        let put = Put::new("before", index.to_string());
        cluster.node(index).put(put).await.unwrap();
    }
    cluster.stall_disk(old);
    // Nobody writes, nothing hangs. This is the write that the disk does not answer.
    let elsewhere = cluster.node((old + 1) % 3);
    let pending = tokio::spawn(async move { elsewhere.put(Put::new("during", "1")).await });
    let new = other_leader(&cluster, old).await;
    // In a session: the write is sent again, and is applied once.
    pending.await.unwrap().unwrap();
    let kv = cluster.node(new).get("during").await.unwrap().unwrap();
    assert_eq!(kv.version, 1);
    assert!(cluster.node(new).get("before").await.unwrap().is_some());
    assert_eq!(cluster.node(old).stats().log_stalls_total, 1);
    let mut health = cluster.node(old).health();
    health.wait_for(|health| !health.ready).await.unwrap();

    cluster.resume_disk(old);
    cluster.wait_ready(old).await.unwrap();
    let kv = cluster.node(old).get("during").await.unwrap().unwrap();
    assert_eq!(kv.version, 1);
    assert!(!cluster.node(old).is_leader(), "it does not take it back");
    cluster.shutdown().await;
}

/// Who could be handed to then is a test of its own, beside `relief` in `raft/membership.rs`.
#[tokio::test(flavor = "multi_thread")]
async fn disks_that_all_hang_for_a_while_cost_only_that_while() {
    let cluster = cluster().await;
    let leader = cluster.leader().await;
    for index in 0..3 {
        cluster.stall_disk(index);
    }
    let node = cluster.node(leader);
    let pending = tokio::spawn(async move { node.put(Put::new("k", "v")).await });
    // On a busy machine the leader may lose its place before it writes: then its caller is told.
    while cluster.node(leader).stats().log_stalls_total == 0 && !pending.is_finished() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    for index in 0..3 {
        cluster.resume_disk(index);
    }
    // Answered, or of unknown outcome if it took too long for its caller.
    let _ = pending.await.unwrap();
    cluster.leader().await;
    cluster.node(leader).put(Put::new("k", "v")).await.unwrap();
    cluster.shutdown().await;
}
