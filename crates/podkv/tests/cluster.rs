//! The facade as a user's unit test sees it: a recipe on a cluster in memory whose leader is killed.

use podkv::recipes::Mutex;
use podkv::{Put, Store, Txn};

#[tokio::test(flavor = "multi_thread")]
async fn a_lock_outlives_the_leader() -> podkv::Result<()> {
    let mut cluster = podkv::testing::cluster(3).await;
    let leader = cluster.leader().await;
    let follower = cluster.node((leader + 1) % 3);
    let guard = Mutex::new(follower.clone(), "job").lock().await?;
    cluster.kill_leader().await;
    let done = Put::new("done", "yes");
    let txn = Txn::new().when([guard.fence()]).then([done.into()]);
    assert!(follower.txn(txn).await?.succeeded);
    guard.unlock().await?;
    cluster.shutdown().await;
    Ok(())
}
