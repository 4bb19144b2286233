//! A follower that fell behind a purged log catches up by snapshot.

use std::time::Duration;

use futures_util::StreamExt as _;
use podkv_api::{Put, Store};
use podkv_tests::process::ProcessCluster;

use crate::local_state;

/// A log that is purged after a megabyte, so that a test can outgrow it.
pub const SMALL_LOG: &[&str] = &["--snapshot-log-bytes=1MiB", "--log-keep-bytes=64KiB"];

/// Writes `count` values of `bytes` each under a prefix.
pub async fn fill(store: &impl Store, prefix: &str, count: usize, bytes: usize) {
    let value = vec![b'v'; bytes];
    let mut puts = futures_util::stream::iter(0..count)
        .map(|number| store.put(Put::new(format!("{prefix}/{number:05}"), value.clone())))
        .buffer_unordered(32);
    while let Some(result) = puts.next().await {
        result.unwrap();
    }
}

/// Waits until the leader's log begins after `index`.
pub async fn wait_purged(cluster: &ProcessCluster, index: u64) {
    let purged = async {
        loop {
            let leader = cluster.wait_leader().await;
            if cluster
                .status(leader)
                .await
                .is_ok_and(|status| status.first_log_index > index)
            {
                return;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), purged)
        .await
        .expect("the log is purged");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_behind_a_purged_log_catches_up_by_snapshot() {
    let mut cluster = ProcessCluster::start_with(3, SMALL_LOG).await;
    let client = cluster.client();
    client.put(Put::new("before", "1")).await.unwrap();
    let follower = (cluster.wait_leader().await + 1) % 3;
    let left_at = cluster.status(follower).await.unwrap().last_log_index;
    cluster.kill(follower);

    fill(&client, "fill", 600, 8 << 10).await;
    wait_purged(&cluster, left_at + 1).await;

    cluster.restart(follower);
    cluster.wait_ready(follower).await;
    let installed = cluster
        .metric(follower, "podkv_snapshots_installed_total")
        .await;
    assert_eq!(
        installed,
        Some(1.0),
        "it has what it lacked from a snapshot"
    );
    let status = cluster.status(follower).await.unwrap();
    assert!(
        status.first_log_index > left_at + 1,
        "its log goes on behind what the snapshot covers: {status:?}"
    );
    let leader = cluster.wait_leader().await;
    let expected = local_state(&cluster.client_of(leader), 602).await;
    assert_eq!(
        local_state(&cluster.client_of(follower), 602).await,
        expected
    );
    assert_eq!(expected.len(), 601);
    client.close().await;
}
