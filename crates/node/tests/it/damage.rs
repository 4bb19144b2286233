//! Promise 7, of a log that was damaged on the disk: whoever reads it ends, and says that it is damage and what to do. What
//! Raft makes of it is a text.

use std::time::Duration;

use podkv_api::{Put, Reason, Store as _};
use podkv_node::testing::cluster_with;

/// Far more than anything takes; only a failure waits so long.
const PATIENCE: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread")]
async fn damage_that_replication_meets_is_told_as_damage() {
    // The log is read from the disk, not from memory.
    let mut cluster = cluster_with(3, |config| config.log_cache_bytes = 0).await;
    let leader = cluster.leader().await;
    let (behind, third) = ((leader + 1) % 3, (leader + 2) % 3);
    cluster.kill(behind).await;
    let put = Put::new("k", "the needle");
    cluster.node(leader).put(put).await.unwrap();
    // Whoever leads by now has to send it.
    for node in [leader, third] {
        assert!(cluster.rot_log(node, b"the needle") > 0);
    }
    cluster.boot(behind).await.unwrap();
    let (one, other) = (cluster.node(leader), cluster.node(third));
    let ended = async {
        tokio::select! {
            error = one.failed() => (one.clone(), error),
            error = other.failed() => (other.clone(), error),
        }
    };
    let (node, error) = tokio::time::timeout(PATIENCE, ended)
        .await
        .expect("it ends");
    assert_eq!(error.reason(), Reason::Corrupt, "{error}");
    let tells = |text| assert!(error.text().contains(text), "{error}");
    tells("the log of the memory disk is damaged");
    tells("`podkv resync` on its data folder");
    let mut health = node.health();
    let told = health.wait_for(|health| !health.ready && health.reason.contains(error.text()));
    let told = tokio::time::timeout(PATIENCE, told).await;
    told.expect("it says so").unwrap();
    cluster.shutdown().await;
}
