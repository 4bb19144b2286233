//! Watches over broken streams: no gap, no duplicate, whole revisions, one list.

use futures_util::StreamExt;
use podkv_api::{KeyRange, Reason, Store, Watch, WatchMessage, WatchStream};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use crate::fake::{Cluster, World};

async fn next(stream: &mut WatchStream) -> WatchMessage {
    stream.next().await.unwrap().unwrap()
}

/// Two to five keys, so that a revision is several fragments.
fn write_some(world: &World, random: &mut SmallRng) {
    let keys: Vec<String> = (0..random.random_range(2..=5))
        .map(|i| format!("k{i}"))
        .collect();
    let changes: Vec<_> = keys
        .iter()
        .map(|key| (key.as_str(), Some("value")))
        .collect();
    world.write(&changes);
    if random.random_bool(0.3) {
        world.write(&[("elsewhere", Some("v"))]);
    }
}

/// What a reader should have seen: the revisions with changes in the range, and how many of them.
fn expected(world: &World, from: u64) -> Vec<(u64, usize)> {
    (from..=world.revision())
        .map(|revision| (revision, world.changes(revision, "k")))
        .filter(|(_, changes)| *changes > 0)
        .collect()
}

async fn follow_over_breaks(seed: u64, list: bool) {
    let mut random = SmallRng::seed_from_u64(seed);
    let cluster = Cluster::start(3).await;
    for key in 0..12 {
        cluster.world.write(&[(&format!("k{key:02}"), Some("v"))]);
    }
    for node in &cluster.nodes {
        let breaks = (0..40).map(|_| random.random_range(0..8));
        node.faults().watch_breaks = breaks.collect();
        node.faults().range_breaks = (0..10).map(|_| random.random_range(0..3)).collect();
    }
    let client = cluster.client().await;
    let mut watch = Watch::new(KeyRange::prefix("k"));
    if list {
        watch = watch.list();
    }
    let mut stream = client.watch(watch).await.unwrap();
    let WatchMessage::Created { start_revision, .. } = next(&mut stream).await else {
        panic!("seed {seed}: created comes first");
    };
    let mut listed: Vec<Vec<u8>> = Vec::new();
    if list {
        // Written while the list is under way: not in the list, but in the events.
        write_some(&cluster.world, &mut random);
        loop {
            match next(&mut stream).await {
                WatchMessage::List { kvs, revision, .. } => {
                    assert_eq!(revision + 1, start_revision, "seed {seed}");
                    listed.extend(kvs.into_iter().map(|kv| kv.key.to_vec()));
                }
                WatchMessage::Listed { .. } => break,
                other => panic!("seed {seed}: {other:?} in a list"),
            }
        }
        let all: Vec<Vec<u8>> = (0..12)
            .map(|key| format!("k{key:02}").into_bytes())
            .collect();
        assert_eq!(listed, all, "seed {seed}");
    }
    let mut seen = Vec::new();
    for _ in 0..40 {
        write_some(&cluster.world, &mut random);
        let expected = expected(&cluster.world, start_revision);
        while seen.len() < expected.len() {
            let WatchMessage::Events {
                revision, events, ..
            } = next(&mut stream).await
            else {
                panic!("seed {seed}: only events here");
            };
            seen.push((revision, events.len()));
        }
        assert_eq!(seen, expected, "seed {seed}");
    }
    let asked = cluster.world.state().seen.watches.len();
    assert!(asked > 3, "seed {seed}: the streams did break");
}

#[tokio::test(start_paused = true)]
async fn a_watch_over_broken_streams_has_no_gap_and_no_duplicate() {
    for seed in 0..20 {
        follow_over_breaks(seed, false).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_list_over_broken_streams_is_given_once_and_followed_without_a_gap() {
    for seed in 100..120 {
        follow_over_breaks(seed, true).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_quiet_watch_resumes_after_its_last_bookmark() {
    let cluster = Cluster::start(1).await;
    let client = cluster.client().await;
    cluster.each(|faults| faults.watch_breaks = [8].into());
    let mut stream = client
        .watch(Watch::new(KeyRange::prefix("k")))
        .await
        .unwrap();
    let follow = tokio::spawn(async move {
        next(&mut stream).await;
        next(&mut stream).await
    });
    // Created, and then a bookmark for each write elsewhere, until the stream breaks.
    for _ in 0..20 {
        let revision = cluster.world.write(&[("elsewhere", Some("v"))]);
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        cluster.world.compact(revision.saturating_sub(3));
    }
    let revision = cluster.world.write(&[("k", Some("v"))]);
    let WatchMessage::Events { revision: seen, .. } = follow.await.unwrap() else {
        panic!("only events here");
    };
    assert_eq!(seen, revision);
    let state = cluster.world.state();
    assert!(
        state.seen.watches[1].start_revision > 2,
        "{:?}",
        state.seen.watches
    );
}

#[tokio::test(start_paused = true)]
async fn a_place_that_is_compacted_is_an_error() {
    let cluster = Cluster::start(1).await;
    let client = cluster.client().await;
    for _ in 0..10 {
        cluster.world.write(&[("k", Some("v"))]);
    }
    cluster.world.compact(8);
    let watch = Watch::new(KeyRange::all()).from_revision(3);
    let error = client.watch(watch).await.err().unwrap();
    assert_eq!(error.reason(), Reason::Compacted);
    assert_eq!(error.revision(), 8);
}

#[tokio::test(start_paused = true)]
async fn a_node_that_ends_every_watch_at_once_is_not_asked_in_a_busy_loop() {
    let cluster = Cluster::start(1).await;
    let client = cluster.client().await;
    let mut stream = client.watch(Watch::new(KeyRange::all())).await.unwrap();
    next(&mut stream).await;
    cluster.each(|faults| faults.watch_breaks = vec![0; 10_000].into());
    // Break the stream that stands, through the place it watches.
    let mut stream = client.watch(Watch::new(KeyRange::prefix("x"))).await;
    assert!(stream.is_err(), "no watch can be made");
    cluster.each(|faults| faults.watch_breaks = vec![1; 10_000].into());
    stream = client.watch(Watch::new(KeyRange::prefix("x"))).await;
    let mut stream = stream.unwrap();
    next(&mut stream).await;
    let before = cluster.world.state().seen.watches.len();
    let waited = std::time::Duration::from_secs(60);
    assert!(
        tokio::time::timeout(waited, next(&mut stream))
            .await
            .is_err()
    );
    let asked = cluster.world.state().seen.watches.len() - before;
    assert!((30..200).contains(&asked), "{asked} in a minute");
}

#[tokio::test(start_paused = true)]
async fn a_watch_keeps_its_client_alive_and_ends_with_it() {
    let cluster = Cluster::start(1).await;
    let client = cluster.client().await;
    let mut stream = client.watch(Watch::new(KeyRange::all())).await.unwrap();
    drop(client);
    next(&mut stream).await;
    cluster.world.write(&[("k", Some("v"))]);
    assert!(matches!(
        next(&mut stream).await,
        WatchMessage::Events { .. }
    ));
}
