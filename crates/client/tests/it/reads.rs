//! Reads: spread, retried, and whole at one revision over broken streams.

use std::time::Duration;

use futures_util::StreamExt;
use podkv_api::{Consistency, Error, KeyRange, Put, Range, Reason, Store};
use podkv_client::Client;

use crate::fake::Cluster;

async fn filled(n: usize, keys: usize) -> (Cluster, Client) {
    let cluster = Cluster::start(n).await;
    for key in 0..keys {
        cluster.world.write(&[(&format!("k{key:02}"), Some("v"))]);
    }
    let client = cluster.client().await;
    (cluster, client)
}

#[tokio::test(start_paused = true)]
async fn reads_are_spread_over_the_nodes() {
    let (cluster, client) = filled(3, 1).await;
    for _ in 0..30 {
        assert!(client.get("k00").await.unwrap().is_some());
    }
    let reads = cluster.world.state().seen.reads_at.clone();
    assert!(reads.iter().all(|count| *count >= 5), "{reads:?}");
    assert_eq!(client.get("none").await.unwrap(), None);
}

#[tokio::test(start_paused = true)]
async fn a_read_that_a_node_cannot_serve_is_served_by_another() {
    let (cluster, client) = filled(3, 1).await;
    let stale = Error::new(Reason::TooStale, "too far behind");
    for place in [0, 2] {
        cluster.nodes[place].faults().refuse = Some((stale.clone(), usize::MAX));
    }
    for _ in 0..10 {
        let range = Range::new(KeyRange::key("k00"))
            .consistency(Consistency::Bounded(Duration::from_secs(1)));
        assert_eq!(client.range(range).await.unwrap().kvs.len(), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn a_silent_node_costs_an_attempt_and_not_the_call() {
    let (cluster, client) = filled(2, 1).await;
    cluster.nodes[0].faults().silent = true;
    for _ in 0..4 {
        assert!(client.get("k00").await.unwrap().is_some());
    }
}

#[tokio::test(start_paused = true)]
async fn a_range_that_outgrows_a_message_is_streamed() {
    let (cluster, client) = filled(1, 20).await;
    cluster.each(|faults| faults.pipe_range_limit = Some(5));
    let range = client
        .range(Range::new(KeyRange::prefix("k")))
        .await
        .unwrap();
    assert_eq!((range.kvs.len(), range.count, range.more), (20, 20, false));
    assert_eq!(cluster.world.state().seen.lists.len(), 1);
    let limited = Range::new(KeyRange::prefix("k")).limit(4);
    let range = client.range(limited).await.unwrap();
    assert_eq!((range.kvs.len(), range.count, range.more), (4, 20, true));
}

async fn stream_over_breaks(breaks: &[usize], range: Range) -> (Vec<String>, u64, bool) {
    let (cluster, client) = filled(3, 20).await;
    cluster.each(|faults| faults.range_breaks = breaks.iter().copied().collect());
    let mut stream = client.range_stream(range).await.unwrap();
    let mut keys = Vec::new();
    let mut last = (0, false);
    while let Some(chunk) = stream.next().await {
        let chunk = chunk.unwrap();
        keys.extend(
            chunk
                .kvs
                .iter()
                .map(|kv| String::from_utf8_lossy(&kv.key).into_owned()),
        );
        assert_eq!((last.0, last.1), (0, false), "only the last chunk counts");
        last = (chunk.count, chunk.more);
        // What is written meanwhile is not in it.
        cluster
            .world
            .write(&[("k05x", Some("later")), ("k19", None)]);
    }
    (keys, last.0, last.1)
}

fn keys(places: impl Iterator<Item = usize>) -> Vec<String> {
    places.map(|place| format!("k{place:02}")).collect()
}

#[tokio::test(start_paused = true)]
async fn a_streamed_range_survives_broken_streams_at_one_revision() {
    let all = || Range::new(KeyRange::prefix("k"));
    let everything = (keys(0..20), 20, false);
    assert_eq!(stream_over_breaks(&[], all()).await, everything);
    assert_eq!(stream_over_breaks(&[1, 2, 0, 1], all()).await, everything);
    // Broken after the last chunk and before the end.
    assert_eq!(stream_over_breaks(&[7], all()).await, everything);
    let backwards = (keys((0..20).rev()), 20, false);
    assert_eq!(
        stream_over_breaks(&[2, 1], all().reverse()).await,
        backwards
    );
    let some = (keys(0..7), 20, true);
    assert_eq!(stream_over_breaks(&[1, 1], all().limit(7)).await, some);
    assert_eq!(stream_over_breaks(&[3], all().limit(7)).await, some);
}

#[tokio::test(start_paused = true)]
async fn what_is_wrong_with_a_range_is_told_at_once() {
    let (_cluster, client) = filled(1, 2).await;
    let future = Range::new(KeyRange::all()).at(900);
    let error = client.range_stream(future).await.err().unwrap();
    assert_eq!(error.reason(), Reason::FutureRevision);
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_is_checked() {
    let (cluster, client) = filled(1, 1).await;
    client.put(Put::new("k", "v")).await.unwrap();
    let snapshot = client.snapshot().await.unwrap();
    assert_eq!(snapshot.header.revision, 3);
    let parts: Vec<_> = snapshot.data.collect().await;
    let data: Vec<u8> = parts.into_iter().flat_map(|part| part.unwrap()).collect();
    assert_eq!(data, b"the whole state");

    cluster.each(|faults| faults.damage_snapshot = true);
    let parts: Vec<_> = client.snapshot().await.unwrap().data.collect().await;
    let error = parts.into_iter().last().unwrap().unwrap_err();
    assert_eq!(error.reason(), Reason::Corrupt);
}
