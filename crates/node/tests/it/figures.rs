//! A node's figures may be asked for at any moment, by anybody.

use std::sync::mpsc;
use std::time::Duration;

use podkv_api::{Put, Store as _};
use podkv_node::testing::cluster;

/// Far more than it takes. Who waits for ever cannot be ended by a panic, since a runtime waits for its threads.
const PATIENCE: Duration = Duration::from_secs(60);

/// Once `stats` looked at the group's state twice, and held on to it in between. A change that came between the two looks
/// waited for the first, and the second waited for the change: the whole node stood still.
#[tokio::test(flavor = "multi_thread")]
async fn figures_are_told_while_leadership_changes() {
    let cluster = cluster(3).await;
    let (stop, stopped) = mpsc::channel::<()>();
    let nodes: Vec<_> = (0..3).map(|index| cluster.node(index)).collect();
    let asking = std::thread::spawn(move || {
        let mut asked = 0_u64;
        while stopped.try_recv() == Err(mpsc::TryRecvError::Empty) {
            for node in &nodes {
                assert!(!node.stats().role.is_empty());
            }
            asked += 1;
        }
        asked
    });
    let (done, ended) = mpsc::channel::<()>();
    let watchdog = std::thread::spawn(move || {
        if ended.recv_timeout(PATIENCE) == Err(mpsc::RecvTimeoutError::Timeout) {
            eprintln!("figures_are_told_while_leadership_changes: stands still");
            std::process::abort();
        }
    });
    for round in 0..20_u32 {
        let leader = cluster.leader().await;
        let node = cluster.node(leader);
        node.put(Put::new("round", round.to_string()))
            .await
            .unwrap();
        // It may lose its place by itself, on a busy machine.
        let _ = node.transfer_leadership(None).await;
    }
    drop(stop);
    assert!(asking.join().unwrap() > 0);
    cluster.shutdown().await;
    drop(done);
    watchdog.join().unwrap();
}
