//! Promise 2, "acknowledged means durable", under `kill -9`.

use std::collections::BTreeMap;
use std::time::Duration;

use podkv_api::{Put, Store as _};
use podkv_tests::process::ProcessCluster;
use rand::RngExt as _;

use crate::local_state;

/// Writers that note what was acknowledged; nodes die meanwhile, the leader among them.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_acknowledged_survives_sigkill_of_any_node_at_any_moment() {
    let mut cluster = ProcessCluster::start(3).await;
    let client = cluster.client();
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..8 {
        let (client, stopped) = (client.clone(), stopped.clone());
        writers.spawn(async move {
            let mut acknowledged = BTreeMap::new();
            for number in 0_u64.. {
                if *stopped.borrow() {
                    break;
                }
                let key = format!("w{writer}/{}", number % 50);
                let response = client.put(Put::new(key.clone(), number.to_string())).await;
                let response = response.expect("one node down is no error for a user");
                acknowledged.insert(key, (number.to_string(), response.header.revision));
            }
            acknowledged
        });
    }
    for round in 0..6 {
        let leader = cluster.wait_leader().await;
        // The leader twice as often as the others.
        let victim = if round % 2 == 0 {
            leader
        } else {
            rand::rng().random_range(0..3)
        };
        tokio::time::sleep(Duration::from_millis(rand::rng().random_range(50..300))).await;
        cluster.kill(victim);
        cluster.restart(victim);
        cluster.wait_ready(victim).await;
    }
    stop.send_replace(true);
    let mut expected = BTreeMap::new();
    while let Some(acknowledged) = writers.join_next().await {
        expected.extend(acknowledged.expect("no writer fails"));
    }
    let revision = expected
        .values()
        .map(|(_, revision)| *revision)
        .max()
        .unwrap();
    for index in 0..3 {
        let state = local_state(&cluster.client_of(index), revision).await;
        assert_eq!(state.len(), expected.len());
        for kv in state {
            let key = String::from_utf8(kv.key.to_vec()).unwrap();
            let (value, revision) = &expected[&key];
            assert_eq!(
                (kv.value.as_ref(), kv.mod_revision),
                (value.as_bytes(), *revision),
                "{key} on node {index}"
            );
        }
    }
    client.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_restart_brings_everything_back() {
    let mut cluster = ProcessCluster::start(3).await;
    let client = cluster.client();
    for number in 0..200 {
        client
            .put(Put::new(format!("k{number:03}"), number.to_string()))
            .await
            .unwrap();
    }
    let before = local_state(&cluster.client_of(0), 201).await;
    for index in 0..3 {
        cluster.kill(index);
    }
    for index in 0..3 {
        cluster.restart(index);
    }
    for index in 0..3 {
        cluster.wait_ready(index).await;
        assert_eq!(local_state(&cluster.client_of(index), 201).await, before);
    }
    client.put(Put::new("after", "")).await.unwrap();
    client.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_hands_over_and_exits_cleanly() {
    let mut cluster = ProcessCluster::start(3).await;
    let client = cluster.client();
    let leader = cluster.wait_leader().await;
    let mut node = cluster.nodes[leader].take().unwrap();
    let code = tokio::task::spawn_blocking(move || node.terminate())
        .await
        .unwrap();
    assert_eq!(code, Some(0));
    client.put(Put::new("a", "1")).await.unwrap();
    client.close().await;
}
