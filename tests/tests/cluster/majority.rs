//! What a lost minority and a lost majority mean.

use std::time::Duration;

use podkv_api::{Consistency, KeyRange, Put, Range, Store as _};
use podkv_client::Client;
use podkv_tests::process::ProcessCluster;

#[tokio::test(flavor = "multi_thread")]
async fn without_a_minority_all_goes_on_without_a_majority_nothing_is_guessed() {
    let mut cluster = ProcessCluster::start(3).await;
    let client = cluster.client();
    client.put(Put::new("a", "1")).await.unwrap();

    cluster.kill(0);
    client.put(Put::new("a", "2")).await.unwrap();
    assert_eq!(client.get("a").await.unwrap().unwrap().value, "2");

    cluster.kill(1);
    let survivor = Client::builder()
        .endpoints([cluster.specs[2].client.clone()])
        .fixed(true)
        .deadline(Duration::from_secs(2))
        .connect()
        .await
        .unwrap();
    let error = survivor.put(Put::new("a", "3")).await.unwrap_err();
    assert!(error.is_retryable(), "{error:?}");
    assert!(!error.text().is_empty());
    let error = survivor.get("a").await.unwrap_err();
    assert!(error.is_retryable(), "{error:?}");
    let local = Range::new(KeyRange::key("a")).consistency(Consistency::Local);
    assert_eq!(survivor.range(local).await.unwrap().kvs[0].value, "2");

    cluster.restart(0);
    cluster.wait_ready(2).await;
    // The refused write may have been applied now, or not; never something else.
    let value = survivor.get("a").await.unwrap().unwrap().value;
    assert!(value == "2" || value == "3", "{value:?}");
    survivor.put(Put::new("a", "4")).await.unwrap();
    assert_eq!(survivor.get("a").await.unwrap().unwrap().value, "4");
    survivor.close().await;
    client.close().await;
}
