//! The mutex when its holder loses touch: it must know before anybody else can hold the lock.

use futures_util::FutureExt;
use podkv_api::recipes::{Mutex, MutexGuard};
use podkv_api::{Delete, KeyRange, Reason, Store};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::fake::{FakeStore, Link};
use crate::{assert_reason, ms, secs};

const TTL_SECS: u64 = 9;

async fn lock(store: &FakeStore) -> MutexGuard {
    Mutex::new(store.clone(), "lock")
        .with_ttl(secs(TTL_SECS))
        .lock()
        .await
        .unwrap()
}

/// Cuts the link after `cut_after`, and returns when the guard knew and when the key was deleted.
async fn lose(link: Link, cut_after: u64) -> (Instant, Instant) {
    let store = FakeStore::new();
    let client = store.client();
    client.set_link(link);
    let guard = lock(&client).await;
    let next = tokio::spawn({
        let store = store.client();
        async move {
            let guard = lock(&store).await;
            (Instant::now(), guard)
        }
    });
    sleep(ms(cut_after)).await;
    assert!(guard.check().is_ok());
    client.cut();
    let cut = Instant::now();
    assert_eq!(guard.lost().await.reason(), Reason::LockLost);
    let knew = Instant::now();
    assert_reason(guard.check(), Reason::LockLost);
    assert!(
        knew - cut >= secs(TTL_SECS / 3),
        "it gave up too early: {:?}",
        knew - cut
    );
    assert!(
        store.contents().contains_key(guard.key()),
        "the key is there still"
    );

    let (taken, _next) = timeout(secs(60), next).await.expect("stuck").unwrap();
    let deleted = store.deleted_at(guard.key()).unwrap();
    assert!(knew < deleted && deleted <= taken);
    (knew, deleted)
}

#[tokio::test(start_paused = true)]
async fn the_holder_knows_before_the_lease_expires() {
    // The answers are late: who counts from their arrival counts two seconds too many.
    let late_answer = Link {
        answer_delay: secs(2),
        ..Link::default()
    };
    // The requests are late: the server starts to count two seconds after us.
    let late_request = Link {
        request_delay: secs(2),
        ..Link::default()
    };
    // Late enough to matter, early enough to be cut off before the first renewal.
    let late_grant = Link {
        answer_delay: ms(1400),
        ..Link::default()
    };
    for link in [Link::default(), late_answer, late_request, late_grant] {
        for cut_after in (0..30_000).step_by(700) {
            lose(link, cut_after).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn the_lock_is_kept_as_long_as_it_is_wanted() {
    let store = FakeStore::new();
    let link = Link {
        request_delay: secs(1),
        answer_delay: secs(1),
        ..Link::default()
    };
    store.set_link(link);
    let guard = lock(&store).await;
    assert!(timeout(secs(600), guard.lost()).await.is_err());
    // A break that is shorter than what is left does no harm.
    store.cut();
    sleep(ms(3500)).await;
    store.mend();
    assert!(timeout(secs(600), guard.lost()).await.is_err());
    // One that swallows what is sent does neither: the renewal is sent again.
    store.fail(|faults| faults.dropped_keep_alives = 1);
    assert!(timeout(secs(600), guard.lost()).await.is_err());
    guard.unlock().await.unwrap();
}

/// The network is back while the lease still lives. The holder was told that it is lost, so it is.
#[tokio::test(start_paused = true)]
async fn a_lost_lock_does_not_come_back() {
    let store = FakeStore::new();
    let client = store.client();
    let guard = lock(&client).await;
    sleep(secs(20)).await;
    client.cut();
    guard.lost().await;
    client.mend();
    assert!(
        store.contents().contains_key(guard.key()),
        "the margin is not over"
    );
    for _ in 0..100 {
        assert_reason(guard.check(), Reason::LockLost);
        assert!(guard.lost().now_or_never().is_some());
        sleep(ms(200)).await;
    }
    assert_reason(guard.unlock().await, Reason::LockLost);
}

/// A renewal whose answer comes after the deadline must not move it any more.
#[tokio::test(start_paused = true)]
async fn a_late_answer_does_not_revive_the_lock() {
    let store = FakeStore::new();
    let guard = lock(&store).await;
    let granted = Instant::now();
    // All renewals but the last hang; the answer to that one is under way at the deadline.
    store.cut();
    let deadline = granted + ms(TTL_SECS * 990);
    sleep_until(deadline - ms(20)).await;
    store.set_link(Link {
        answer_delay: ms(60),
        ..Link::default()
    });
    sleep_until(deadline).await;
    assert_reason(guard.check(), Reason::LockLost);
    sleep(secs(1)).await;
    assert_reason(guard.check(), Reason::LockLost);
}

#[tokio::test(start_paused = true)]
async fn a_key_deleted_by_hand_is_noticed() {
    let store = FakeStore::new();
    let guard = lock(&store).await;
    sleep(secs(1)).await;
    store.lose_watches();
    sleep(secs(1)).await;
    store
        .delete(Delete::new(KeyRange::key(guard.key().clone())))
        .await
        .unwrap();
    timeout(ms(100), guard.lost())
        .await
        .expect("the key is watched");
    assert_reason(guard.unlock().await, Reason::LockLost);
    assert_eq!(store.lease_count(), 0);
}

/// The key is deleted just while nobody watches it.
#[tokio::test(start_paused = true)]
async fn a_key_deleted_unseen_is_noticed_after_the_watch_is_back() {
    let store = FakeStore::new();
    let guard = lock(&store).await;
    sleep(secs(1)).await;
    store.fail(|faults| faults.refused_watches = 3);
    store.lose_watches();
    store
        .delete(Delete::new(KeyRange::key(guard.key().clone())))
        .await
        .unwrap();
    store.compact(store.revision()).await.unwrap();
    timeout(secs(2), guard.lost())
        .await
        .expect("the new list tells");
}

/// A list from a node that has not seen the key yet says nothing about the key.
#[tokio::test(start_paused = true)]
async fn a_stale_list_does_not_lose_the_lock() {
    let store = FakeStore::new();
    store.fail(|faults| faults.stale_lists = Some((3, 1)));
    let guard = lock(&store).await;
    assert!(timeout(secs(60), guard.lost()).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn a_revoked_lease_is_noticed() {
    let store = FakeStore::new();
    let guard = lock(&store).await;
    let lease = store.leases().await.unwrap()[0];
    store.lease_revoke(lease).await.unwrap();
    timeout(ms(100), guard.lost())
        .await
        .expect("its key went with it");
    assert_reason(guard.unlock().await, Reason::LockLost);
}

#[tokio::test(start_paused = true)]
async fn a_waiter_whose_key_is_deleted_fails_instead_of_entering() {
    let store = FakeStore::new();
    let held = lock(&store).await;
    let waiter = tokio::spawn({
        let mutex = Mutex::new(store.client(), "lock");
        async move { mutex.lock().await }
    });
    sleep(secs(1)).await;
    let keys: Vec<_> = store
        .contents()
        .into_keys()
        .filter(|key| key != held.key())
        .collect();
    store
        .delete(Delete::new(KeyRange::key(keys[0].clone())))
        .await
        .unwrap();
    held.unlock().await.unwrap();
    assert_reason(waiter.await.unwrap(), Reason::LockLost);
}

#[tokio::test(start_paused = true)]
async fn a_waiter_without_network_fails_when_its_lease_may_be_over() {
    let store = FakeStore::new();
    let _held = lock(&store).await;
    let client = store.client();
    let waiter = tokio::spawn({
        let mutex = Mutex::new(client.clone(), "lock").with_ttl(secs(TTL_SECS));
        async move { mutex.lock().await }
    });
    sleep(secs(1)).await;
    client.cut();
    let result = timeout(secs(TTL_SECS), waiter)
        .await
        .expect("in time")
        .unwrap();
    assert_reason(result, Reason::LockLost);
}

#[tokio::test(start_paused = true)]
async fn unlocking_without_network_ends_and_says_that_it_does_not_know() {
    let store = FakeStore::new();
    let client = store.client();
    let guard = lock(&client).await;
    let key = guard.key().clone();
    client.cut();
    let lost = guard.lost();
    let unlocked = tokio::spawn(guard.unlock());
    timeout(ms(1), lost)
        .await
        .expect("from the first step of unlocking, it is not held");
    let error = timeout(secs(TTL_SECS), unlocked)
        .await
        .expect("in time")
        .unwrap()
        .unwrap_err();
    assert!(error.outcome_unknown());
    sleep(secs(1)).await;
    assert!(!store.contents().contains_key(&key));
}

#[tokio::test(start_paused = true)]
async fn every_task_ends() {
    let store = FakeStore::new();
    let idle = store.holders();
    let guard = lock(&store).await;
    guard.unlock().await.unwrap();
    assert_eq!(store.holders(), idle, "unlock joins");

    let client = store.client();
    let guard = lock(&client).await;
    client.cut();
    drop(guard);
    drop(client);
    sleep(secs(2 * TTL_SECS)).await;
    assert_eq!(store.holders(), idle, "also when the store never answers");
}
