//! Promise 3, "applied exactly once": the retry gets the first answer back.

use std::time::Duration;

use podkv_api::{Consistency, KeyRange, Range, Store as _};
use podkv_proto::v1;
use podkv_proto::v1::kv_client::KvClient;
use podkv_proto::v1::session_client::SessionClient;
use podkv_tests::process::ProcessCluster;
use tonic::transport::{Channel, Endpoint};

use crate::proxy::Proxy;
use crate::snapshots::{SMALL_LOG, fill, wait_purged};

async fn channel(address: &str) -> Channel {
    Endpoint::from_shared(format!("http://{address}"))
        .unwrap()
        .connect()
        .await
        .unwrap()
}

fn stamped_put(session: &[u8]) -> v1::PutRequest {
    v1::PutRequest {
        key: "once".into(),
        value: "1".into(),
        session: Some(v1::SessionStamp {
            session_id: session.to_vec().into(),
            sequence: 1,
            acknowledged_below: 1,
        }),
        ..Default::default()
    }
}

async fn put_through(address: &str, session: &[u8]) -> u64 {
    let response = KvClient::new(channel(address).await)
        .put(stamped_put(session))
        .await
        .unwrap();
    response.into_inner().header.unwrap().revision
}

/// The leader dies when the entry is on a majority and the answer is not yet out. The retry goes through
/// another node, and again after a snapshot, a purge and a full restart: always the first revision.
#[tokio::test(flavor = "multi_thread")]
async fn a_retry_through_another_node_gets_the_first_revision_back() {
    let mut cluster = ProcessCluster::start_with(3, SMALL_LOG).await;
    let leader = cluster.wait_leader().await;
    let session = rand::random::<u128>().to_be_bytes();
    let mut sessions = SessionClient::new(channel(&cluster.specs[leader].client).await);
    let open = v1::SessionOpenRequest {
        ttl_ms: 600_000,
        id: session.to_vec().into(),
    };
    sessions.open(open).await.unwrap();

    let proxy = Proxy::start(cluster.specs[leader].client.clone()).await;
    let mut writer = KvClient::new(channel(&proxy.address).await);
    proxy.hold_answers();
    let request = stamped_put(&session);
    let unanswered = tokio::spawn(async move { writer.put(request).await });
    wait_on_followers(&cluster, leader).await;
    assert!(!unanswered.is_finished(), "the answer is held back");
    cluster.kill(leader);
    drop(proxy);
    assert!(
        unanswered.await.unwrap().is_err(),
        "the writer never learns"
    );

    let other = (leader + 1) % 3;
    cluster.wait_ready(other).await;
    let client = cluster.client();
    let kv = client.get("once").await.unwrap().unwrap();
    assert_eq!(
        put_through(&cluster.specs[other].client, &session).await,
        kv.mod_revision
    );

    cluster.restart(leader);
    cluster.wait_ready(leader).await;
    let written_at = cluster.status(leader).await.unwrap().applied_index;
    fill(&client, "fill", 400, 8 << 10).await;
    wait_purged(&cluster, written_at).await;
    for index in 0..3 {
        cluster.kill(index);
    }
    for index in 0..3 {
        cluster.restart(index);
    }
    cluster.wait_ready(leader).await;
    assert_eq!(
        put_through(&cluster.specs[leader].client, &session).await,
        kv.mod_revision
    );
    let kv = client.get("once").await.unwrap().unwrap();
    assert_eq!(
        (kv.version, kv.create_revision),
        (1, kv.mod_revision),
        "applied once"
    );
    client.close().await;
}

async fn wait_on_followers(cluster: &ProcessCluster, leader: usize) {
    for follower in (0..3).filter(|index| *index != leader) {
        let client = cluster.client_of(follower);
        let range = Range::new(KeyRange::key("once")).consistency(Consistency::Local);
        let there = async {
            while client.range(range.clone()).await.unwrap().kvs.is_empty() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), there)
            .await
            .expect("followers apply it");
        client.close().await;
    }
}
