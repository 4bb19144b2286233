//! A write is applied once, and an error never says wrongly that it was not.

use std::time::Duration;

use futures_util::future::join_all;
use podkv_api::{Delete, Error, ErrorKind, KeyRange, LeaseId, Op, Put, Reason, Store, Txn};
use tokio::time::Instant;

use crate::fake::{Cluster, dead_addresses};

fn version(cluster: &Cluster, key: &str) -> u64 {
    cluster.world.value(key).map_or(0, |kv| kv.version)
}

#[tokio::test(start_paused = true)]
async fn a_write_whose_answer_is_lost_is_sent_again_with_its_stamp_and_counted_once() {
    let cluster = Cluster::start(3).await;
    let client = cluster.client().await;
    cluster.each(|faults| faults.lose_answers = 1);
    let put = client.put(Put::new("k", "v")).await.unwrap();
    assert_eq!(put.header.revision, 2);
    assert_eq!(cluster.world.revision(), 2);
    assert_eq!(version(&cluster, "k"), 1);
    let state = cluster.world.state();
    let stamps = &state.seen.stamps;
    assert!(stamps.len() >= 2, "sent again");
    assert!(stamps.iter().all(|stamp| *stamp == stamps[0]), "{stamps:?}");
    let nodes_asked = state
        .seen
        .writes_at
        .iter()
        .filter(|count| **count > 0)
        .count();
    assert!(nodes_asked >= 2, "through another node");
}

#[tokio::test(start_paused = true)]
async fn deletes_and_transactions_are_stamped_too() {
    let cluster = Cluster::start(3).await;
    let client = cluster.client().await;
    client.put(Put::new("a", "1")).await.unwrap();
    cluster.each(|faults| faults.lose_answers = 1);
    let delete = client
        .delete(Delete::new(KeyRange::key("a")))
        .await
        .unwrap();
    assert_eq!(
        delete.deleted, 1,
        "the first answer, not that of a second delete"
    );
    cluster.each(|faults| faults.lose_answers = 1);
    let txn = Txn::new().then([Op::from(Put::new("b", "2"))]);
    assert!(client.txn(txn).await.unwrap().succeeded);
    assert_eq!(version(&cluster, "b"), 1);
    assert_eq!(cluster.world.revision(), 4);
}

#[tokio::test(start_paused = true)]
async fn a_grant_and_a_compaction_whose_answers_are_lost_keep_their_stamp() {
    let cluster = Cluster::start(3).await;
    let client = cluster.client().await;
    client.put(Put::new("a", "1")).await.unwrap();
    let before = cluster.world.state().seen.stamps.len();
    cluster.each(|faults| faults.lose_unary = 1);
    client
        .lease_grant(Duration::from_secs(9), Some(LeaseId(7)))
        .await
        .unwrap();
    cluster.each(|faults| faults.lose_unary = 0);
    let granted = cluster.world.state().seen.stamps.split_off(before);
    assert!(granted.len() >= 2 && granted.iter().all(|stamp| *stamp == granted[0]));

    cluster.each(|faults| faults.lose_unary = 1);
    client.compact(2).await.unwrap();
    let compacted = cluster.world.state().seen.stamps.split_off(before);
    assert!(compacted.len() >= 2 && compacted.iter().all(|stamp| *stamp == compacted[0]));
}

#[tokio::test(start_paused = true)]
async fn an_open_whose_answer_is_lost_opens_the_same_session() {
    let cluster = Cluster::start(3).await;
    let client = cluster.client().await;
    cluster.each(|faults| faults.lose_unary = 1);
    client.put(Put::new("k", "v")).await.unwrap();
    let state = cluster.world.state();
    assert!(state.seen.opens.len() >= 2);
    assert!(state.seen.opens.iter().all(|id| *id == state.seen.opens[0]));
}

#[tokio::test(start_paused = true)]
async fn concurrent_first_writes_share_one_session() {
    let cluster = Cluster::start(3).await;
    let client = cluster.client().await;
    let puts = (0..50).map(|i| client.put(Put::new(format!("k{i}"), "v")));
    for put in join_all(puts).await {
        put.unwrap();
    }
    assert_eq!(cluster.world.state().seen.opens.len(), 1);
    assert_eq!(cluster.world.revision(), 51);
}

#[tokio::test(start_paused = true)]
async fn a_write_in_a_session_that_is_gone_goes_through_in_a_new_one() {
    let cluster = Cluster::start(3).await;
    let client = cluster.client().await;
    client.put(Put::new("k", "1")).await.unwrap();
    cluster.world.expire_sessions();
    client.put(Put::new("k", "2")).await.unwrap();
    assert_eq!(version(&cluster, "k"), 2);
    assert_eq!(cluster.world.state().seen.opens.len(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_write_that_may_have_been_applied_in_a_lost_session_has_an_unknown_outcome() {
    let cluster = Cluster::start(1).await;
    let client = cluster.client().await;
    client.put(Put::new("k", "1")).await.unwrap();
    cluster.each(|faults| {
        faults.lose_answers = 1;
        faults.forget_sessions = true;
    });
    let error = client.put(Put::new("k", "2")).await.unwrap_err();
    assert_eq!(error.reason(), Reason::SessionNotFound);
    assert!(error.outcome_unknown());
    assert_eq!(version(&cluster, "k"), 2, "and it was not applied twice");
}

#[tokio::test(start_paused = true)]
async fn a_request_that_was_lost_counts_as_maybe_applied() {
    let cluster = Cluster::start(1).await;
    let client = cluster.client().await;
    client.put(Put::new("k", "1")).await.unwrap();
    cluster.each(|faults| faults.lose_requests = usize::MAX);
    let started = Instant::now();
    let error = client.put(Put::new("k", "2")).await.unwrap_err();
    assert!(error.outcome_unknown());
    assert_eq!(error.reason(), Reason::DeadlineExceeded);
    assert_eq!(started.elapsed().as_secs(), 5);
}

#[tokio::test(start_paused = true)]
async fn a_write_that_was_refused_until_its_deadline_was_certainly_not_applied() {
    let cluster = Cluster::start(3).await;
    let client = cluster.client().await;
    client.put(Put::new("k", "1")).await.unwrap();
    let before = cluster.world.state().seen.operations;
    let no_leader = Error::new(Reason::NoLeader, "no leader is known here");
    cluster.each(|faults| faults.refuse = Some((no_leader.clone(), usize::MAX)));
    let started = Instant::now();
    let error = client.put(Put::new("k", "2")).await.unwrap_err();
    assert!(!error.outcome_unknown(), "{error}");
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.text().contains("no leader is known here"), "{error}");
    assert_eq!(started.elapsed().as_secs(), 5);
    let attempts = cluster.world.state().seen.operations - before;
    assert!((5..60).contains(&attempts), "{attempts} attempts");
}

#[tokio::test(start_paused = true)]
async fn an_outcome_of_the_command_is_certain_even_after_a_lost_attempt() {
    let cluster = Cluster::start(2).await;
    let client = cluster.client().await;
    client.put(Put::new("k", "1")).await.unwrap();
    cluster.each(|faults| faults.lose_requests = 1);
    let error = client
        .put(Put::new("k", "2").lease(LeaseId(99)))
        .await
        .unwrap_err();
    assert_eq!(error.reason(), Reason::LeaseNotFound);
    assert!(!error.outcome_unknown());
}

#[tokio::test(start_paused = true)]
async fn a_refusal_at_the_door_says_nothing_about_a_lost_attempt() {
    let cluster = Cluster::start(2).await;
    let client = cluster.client().await;
    client.put(Put::new("k", "1")).await.unwrap();
    let leader = cluster.world.state().leader;
    for node in &cluster.nodes {
        let mut faults = node.faults();
        if node.place == leader {
            faults.lose_answers = 1;
        } else {
            faults.refuse = Some((Error::new(Reason::NoSpace, "full"), 1));
        }
    }
    let error = client.put(Put::new("k", "2")).await.unwrap_err();
    assert_eq!(error.reason(), Reason::NoSpace);
    assert!(error.outcome_unknown());
    assert_eq!(version(&cluster, "k"), 2, "it was applied indeed");
}

#[tokio::test(start_paused = true)]
async fn a_client_comes_back_when_an_overloaded_node_says() {
    let cluster = Cluster::start(3).await;
    let client = cluster.client().await;
    client.put(Put::new("before", "")).await.unwrap();
    let advice = Duration::from_secs(3);
    let full = Error::new(Reason::Overloaded, "full").with_retry_after(Some(advice));
    cluster.each(|faults| faults.refuse = Some((full.clone(), 1)));
    let begun = Instant::now();
    client.put(Put::new("k", "v")).await.unwrap();
    let waited = begun.elapsed();
    assert!(waited >= advice && waited < 2 * advice, "{waited:?}");
}

#[tokio::test(start_paused = true)]
async fn a_large_write_goes_alone_and_one_that_is_too_large_is_refused_alone() {
    let cluster = Cluster::start(2).await;
    let client = cluster.client().await;
    let large = |bytes: usize| Put::new("large", vec![0; bytes]);
    cluster.each(|faults| faults.lose_answers = 1);
    client.put(large(600 << 10)).await.unwrap();
    assert_eq!(version(&cluster, "large"), 1, "once, as on the stream");
    assert_eq!(cluster.world.state().seen.pipes, 0);
    let error = client.put(large(2 << 20)).await.unwrap_err();
    assert_eq!(error.reason(), Reason::RequestTooLarge);
    assert!(!error.outcome_unknown());
    // Many that are not large are never too much for one message.
    let puts = (0..30).map(|_| client.put(large(100 << 10)));
    for put in join_all(puts).await {
        put.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn credits_are_respected_and_what_waits_is_sent_together() {
    let cluster = Cluster::start(1).await;
    cluster.each(|faults| faults.credits = 8);
    let client = cluster.client().await;
    let puts = (0..200).map(|i| client.put(Put::new(format!("k{i}"), "v")));
    for put in join_all(puts).await {
        put.unwrap();
    }
    let state = cluster.world.state();
    assert!(
        state.seen.most_unanswered <= 8,
        "{}",
        state.seen.most_unanswered
    );
    assert!(state.seen.most_in_a_message > 1, "nothing was batched");
    assert_eq!(state.seen.pipes, 1);
}

#[tokio::test(start_paused = true)]
async fn a_duplicate_answer_is_nobody_elses() {
    let cluster = Cluster::start(1).await;
    cluster.each(|faults| faults.duplicate = true);
    let client = cluster.client().await;
    for i in 0..20 {
        let put = client.put(Put::new("k", format!("{i}"))).await.unwrap();
        assert_eq!(put.header.revision, i + 2);
    }
}

#[tokio::test(start_paused = true)]
async fn the_session_window_is_respected() {
    let cluster = Cluster::start(1).await;
    cluster.world.state().window = 4;
    let client = cluster.client().await;
    let puts = (0..100).map(|i| client.put(Put::new(format!("k{i}"), "v")));
    for put in join_all(puts).await {
        put.unwrap();
    }
    let state = cluster.world.state();
    let in_window = |stamp: &podkv_proto::v1::SessionStamp| {
        stamp.sequence >= stamp.acknowledged_below && stamp.sequence - stamp.acknowledged_below < 4
    };
    assert!(state.seen.stamps.iter().all(in_window));
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_write_gives_its_place_back() {
    let cluster = Cluster::start(1).await;
    cluster.world.state().window = 2;
    let client = cluster.client().await;
    client.put(Put::new("k", "0")).await.unwrap();
    cluster.each(|faults| faults.silent = true);
    for _ in 0..10 {
        let put = client.put(Put::new("k", "1"));
        assert!(
            tokio::time::timeout(Duration::from_millis(100), put)
                .await
                .is_err()
        );
    }
    cluster.each(|faults| faults.silent = false);
    client.put(Put::new("k", "2")).await.unwrap();
    assert_eq!(cluster.world.value("k").unwrap().value, "2");
}

#[tokio::test(start_paused = true)]
async fn the_session_is_kept_alive_and_closed_when_idle() {
    let cluster = Cluster::start(1).await;
    let client = cluster.client().await;
    client.put(Put::new("k", "0")).await.unwrap();
    tokio::time::sleep(Duration::from_secs(300)).await;
    let kept = cluster.world.state().seen.session_keep_alives;
    assert!((12..=16).contains(&kept), "{kept} in 300 s at 20 s each");
    assert_eq!(cluster.world.state().seen.closes, 0);
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert_eq!(cluster.world.state().seen.closes, 1);
    client.put(Put::new("k", "1")).await.unwrap();
    assert_eq!(cluster.world.state().seen.opens.len(), 2);
}

#[tokio::test(start_paused = true)]
async fn writes_renew_the_session() {
    let cluster = Cluster::start(1).await;
    let client = cluster.client().await;
    for _ in 0..60 {
        client.put(Put::new("k", "0")).await.unwrap();
        tokio::time::sleep(Duration::from_secs(5)).await;
    }
    assert_eq!(cluster.world.state().seen.session_keep_alives, 0);
}

#[tokio::test(start_paused = true)]
async fn with_everybody_dead_a_write_fails_at_its_deadline_and_was_not_applied() {
    let cluster = Cluster::start(0).await;
    let client = cluster
        .builder(dead_addresses(3))
        .deadline(Duration::from_secs(3))
        .build()
        .unwrap();
    let started = Instant::now();
    let error = client.put(Put::new("k", "v")).await.unwrap_err();
    assert_eq!(error.reason(), Reason::DeadlineExceeded);
    assert!(!error.outcome_unknown());
    assert_eq!(started.elapsed().as_secs(), 3);
    client.close().await;
}

#[tokio::test(start_paused = true)]
async fn zeros_that_the_wire_cannot_carry_are_refused_here() {
    let cluster = Cluster::start(1).await;
    let client = cluster.client().await;
    let zero_ttl = client.put(Put::new("k", "v").ttl(Duration::ZERO)).await;
    assert_eq!(zero_ttl.unwrap_err().reason(), Reason::InvalidTtl);
    let zero_lease = Txn::new().then([Op::from(Put::new("k", "v").lease(LeaseId(0)))]);
    let error = client.txn(zero_lease).await.unwrap_err();
    assert_eq!(error.reason(), Reason::InvalidArgument);
    assert_eq!(cluster.world.state().seen.operations, 0);
}

#[tokio::test(start_paused = true)]
async fn after_close_nothing_is_left_and_calls_fail() {
    let cluster = Cluster::start(3).await;
    let client = cluster.client().await;
    client.put(Put::new("k", "v")).await.unwrap();
    let mut watch = client
        .watch(podkv_api::Watch::new(KeyRange::all()))
        .await
        .unwrap();
    client.close().await;
    assert_eq!(cluster.world.state().seen.closes, 1);
    let error = client.put(Put::new("k", "v")).await.unwrap_err();
    assert_eq!(error.reason(), Reason::NodeNotReady);
    assert!(!error.outcome_unknown());
    use futures_util::StreamExt;
    assert!(watch.next().await.unwrap().is_ok(), "created");
    assert!(watch.next().await.unwrap().is_err());
    assert!(watch.next().await.is_none());
}
