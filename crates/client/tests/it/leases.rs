//! Keep-alives over one stream.

use std::time::Duration;

use futures_util::future::join_all;
use podkv_api::{LeaseId, Reason, Store};
use podkv_client::Client;

use crate::fake::Cluster;

async fn granted(n: usize) -> (Cluster, Client) {
    let cluster = Cluster::start(n).await;
    let client = cluster.client().await;
    client
        .lease_grant(Duration::from_secs(9), Some(LeaseId(5)))
        .await
        .unwrap();
    (cluster, client)
}

#[tokio::test(start_paused = true)]
async fn callers_for_one_lease_share_requests() {
    let (cluster, client) = granted(1).await;
    let renewals = (0..100).map(|_| client.lease_keep_alive(LeaseId(5)));
    for status in join_all(renewals).await {
        assert_eq!(status.unwrap().remaining_ms, 9_000);
    }
    let asked = cluster.world.state().seen.keep_alives.len();
    assert!(asked < 10, "{asked} requests for 100 callers");
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_is_gone_is_told_and_the_stream_goes_on() {
    let (_cluster, client) = granted(1).await;
    let gone = client.lease_keep_alive(LeaseId(6)).await.unwrap_err();
    assert_eq!(gone.reason(), Reason::LeaseNotFound);
    client.lease_keep_alive(LeaseId(5)).await.unwrap();
    client.lease_revoke(LeaseId(5)).await.unwrap();
    let gone = client.lease_keep_alive(LeaseId(5)).await.unwrap_err();
    assert_eq!(gone.reason(), Reason::LeaseNotFound);
    assert_eq!(client.leases().await.unwrap(), []);
}

#[tokio::test(start_paused = true)]
async fn a_broken_stream_is_replaced_within_the_call() {
    let (cluster, client) = granted(3).await;
    cluster.each(|faults| faults.break_keep_alive = 1);
    client.lease_keep_alive(LeaseId(5)).await.unwrap();
    let status = client.lease_status(LeaseId(5), false).await.unwrap();
    assert_eq!(status.remaining_ms, 5_000);
}
