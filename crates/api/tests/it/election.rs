use futures_util::StreamExt;
use podkv_api::recipes::{Election, LeaderStream, Leadership};
use podkv_api::{Bytes, Delete, KeyRange, Put, Reason, Store, Txn};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use crate::fake::FakeStore;
use crate::{assert_reason, ms, secs};

fn election(store: &FakeStore) -> Election<FakeStore> {
    Election::new(store.clone(), "boss").with_ttl(secs(9))
}

async fn stand(store: &FakeStore, name: &'static str) -> JoinHandle<Leadership<FakeStore>> {
    let election = election(store);
    let campaign = tokio::spawn(async move { election.campaign(name).await.unwrap() });
    sleep(ms(10)).await;
    campaign
}

async fn leader(store: &FakeStore) -> Option<Bytes> {
    election(store)
        .leader()
        .await
        .unwrap()
        .map(|leader| leader.value)
}

async fn next(leaders: &mut LeaderStream) -> Option<Bytes> {
    let next = timeout(secs(20), leaders.next())
        .await
        .expect("there is news");
    next.expect("it does not end").map(|leader| leader.value)
}

#[tokio::test(start_paused = true)]
async fn leadership_goes_to_the_next_in_line() {
    let store = FakeStore::new();
    assert_eq!(leader(&store).await, None);
    let first = stand(&store, "a").await.await.unwrap();
    let second = stand(&store, "b").await;
    let third = stand(&store, "c").await;
    assert_eq!(leader(&store).await, Some("a".into()));
    assert!(!second.is_finished());

    let token = first.fencing_token();
    first.resign().await.unwrap();
    let second = timeout(secs(1), second).await.expect("its turn").unwrap();
    assert!(second.fencing_token() > token);
    let seen = election(&store).leader().await.unwrap().unwrap();
    assert_eq!(
        (seen.value, seen.fencing_token),
        ("b".into(), second.fencing_token())
    );
    assert_eq!(&seen.key, second.key());
    assert!(!third.is_finished());

    // Dropping resigns too.
    drop(second);
    let third = timeout(secs(1), third).await.expect("its turn").unwrap();
    third.resign().await.unwrap();
    assert_eq!(leader(&store).await, None);
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_is_cut_off_knows_before_its_successor_leads() {
    let store = FakeStore::new();
    let lonely = store.client();
    let first = stand(&lonely, "a").await.await.unwrap();
    let second = stand(&store, "b").await;
    sleep(secs(30)).await;
    lonely.cut();
    first.lost().await;
    assert!(!second.is_finished());
    let second = timeout(secs(9), second).await.expect("its turn").unwrap();
    assert!(first.check().is_err() && second.check().is_ok());

    lonely.mend();
    let late = Txn::new()
        .when([first.fence()])
        .then([Put::new("x", "").into()]);
    assert!(!store.txn(late).await.unwrap().succeeded);
    assert_reason(first.proclaim("still me").await, Reason::LockLost);
    assert_reason(first.resign().await, Reason::LockLost);
    assert_eq!(leader(&store).await, Some("b".into()));
}

#[tokio::test(start_paused = true)]
async fn a_proclamation_changes_the_value_and_nothing_else() {
    let store = FakeStore::new();
    let boss = stand(&store, "a").await.await.unwrap();
    let before = election(&store).leader().await.unwrap().unwrap();
    boss.proclaim("a2").await.unwrap();
    let after = election(&store).leader().await.unwrap().unwrap();
    assert_eq!(after.value, "a2");
    assert_eq!(after.fencing_token, before.fencing_token);
    assert!(after.revision > before.revision);
    sleep(secs(60)).await;
    assert!(boss.check().is_ok());
    // The key is still bound to the lease.
    drop(boss);
    sleep(secs(1)).await;
    assert!(store.contents().is_empty());

    // The key is gone, and the leader has not noticed yet.
    let boss = stand(&store, "a").await.await.unwrap();
    let gone = Delete::new(KeyRange::key(boss.key().clone()));
    store.delete(gone).await.unwrap();
    assert!(boss.check().is_ok());
    assert_reason(boss.proclaim("b").await, Reason::LockLost);
    assert!(store.contents().is_empty());
}

#[tokio::test(start_paused = true)]
async fn observers_see_each_leader_in_turn_whatever_happens_to_the_watch() {
    let store = FakeStore::new();
    store
        .put(Put::new("boss/settings", "no candidate"))
        .await
        .unwrap();
    let observer = store.client();
    let mut leaders = election(&observer).observe().await.unwrap();
    assert_eq!(next(&mut leaders).await, None);
    let first = stand(&store, "a").await.await.unwrap();
    assert_eq!(next(&mut leaders).await, Some("a".into()));

    // A candidate in the queue is no news.
    let second = stand(&store, "b").await;
    store
        .put(Put::new("boss/settings", "no candidate"))
        .await
        .unwrap();
    assert!(timeout(secs(30), leaders.next()).await.is_err());

    first.proclaim("a2").await.unwrap();
    assert_eq!(next(&mut leaders).await, Some("a2".into()));

    observer.cut();
    first.resign().await.unwrap();
    store.compact(store.revision()).await.unwrap();
    store.lose_watches();
    observer.mend();
    assert_eq!(next(&mut leaders).await, Some("b".into()));
    second.await.unwrap().resign().await.unwrap();
    assert_eq!(next(&mut leaders).await, None);
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_campaign_leaves_the_queue_and_a_dropped_observer_its_watch() {
    let store = FakeStore::new();
    let idle = store.holders();
    let boss = stand(&store, "a").await.await.unwrap();
    let candidate = stand(&store, "b").await;
    let leaders = election(&store).observe().await.unwrap();
    assert_eq!(store.contents().len(), 2);
    candidate.abort();
    drop(leaders);
    sleep(secs(1)).await;
    assert_eq!(store.contents().len(), 1);
    boss.resign().await.unwrap();
    assert_eq!(store.holders(), idle);
}
