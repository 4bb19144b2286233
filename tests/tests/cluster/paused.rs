//! A leader that was stopped and goes on does not answer from its past: etcd issue 20418, stale linearizable reads after a
//! pause of the process.

use podkv_api::{Consistency, KeyRange, Put, Range, Store as _};
use podkv_client::Client;
use podkv_tests::process::ProcessCluster;
use rustix::process::Signal;
use tokio::task::JoinSet;

const ROUNDS: u32 = 6;
/// They are sent while the leader stands still, so it finds them before it can hear of another leader.
const READERS: usize = 48;

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_was_paused_never_serves_a_stale_read() {
    let cluster = ProcessCluster::start(3).await;
    for round in 0..ROUNDS {
        let old = cluster.wait_leader().await;
        let at_old = cluster.client_of(old);
        let others: Vec<usize> = (0..3).filter(|index| *index != old).collect();
        let elsewhere = cluster.client_of(others[0]);
        // The connections are there before the pause.
        let before = format!("{round} before");
        at_old.put(Put::new("key", before.clone())).await.unwrap();
        assert_eq!(elsewhere.get("key").await.unwrap().unwrap().value, before);

        let process = cluster.nodes[old].as_ref().expect("it runs");
        process.signal(Signal::STOP);
        let after = format!("{round} after");
        // The others elect one of them, and it is acknowledged there.
        acknowledged(&elsewhere, &after).await;

        let mut readers = JoinSet::new();
        for _ in 0..READERS {
            let client = at_old.clone();
            readers.spawn(async move { client.get("key").await });
        }
        let local = {
            let client = at_old.clone();
            let range = Range::new(KeyRange::key("key")).consistency(Consistency::Local);
            tokio::spawn(async move { client.range(range).await })
        };
        // Requests are with the kernel when each reader has waited once.
        tokio::task::yield_now().await;
        process.signal(Signal::CONT);
        let mut answered = 0;
        while let Some(read) = readers.join_next().await {
            // It may say that it cannot tell. What it tells must be new.
            if let Ok(found) = read.unwrap() {
                assert_eq!(found.unwrap().value, after, "a stale read in round {round}");
                answered += 1;
            }
        }
        assert!(answered > 0, "nobody was answered in round {round}");
        // What was asked for as local may be old, and need not be.
        let local = local.await.unwrap().unwrap().kvs.remove(0).value;
        assert!(local == before || local == after, "{local:?}");
        at_old.close().await;
        elsewhere.close().await;
    }
}

/// Until a node without its leader has another one.
async fn acknowledged(client: &Client, value: &str) {
    let written = async { while client.put(Put::new("key", value.to_owned())).await.is_err() {} };
    tokio::time::timeout(std::time::Duration::from_secs(60), written)
        .await
        .expect("two of three go on");
}
