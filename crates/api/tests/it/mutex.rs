//! The mutex while all goes well, and while others come and go.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use podkv_api::recipes::Mutex;
use podkv_api::{Put, Store, Txn};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::fake::{FakeStore, Link};
use crate::{ms, secs};

fn mutex(store: &FakeStore) -> Mutex<FakeStore> {
    Mutex::new(store.clone(), "lock").with_ttl(secs(9))
}

#[tokio::test(start_paused = true)]
async fn one_holder_at_a_time_with_growing_tokens() {
    for seed in 0..10 {
        let store = FakeStore::new();
        let inside = Arc::new(AtomicUsize::new(0));
        let last_token = Arc::new(AtomicUsize::new(0));
        let mut workers = JoinSet::new();
        for worker in 0..6 {
            let (inside, last_token) = (inside.clone(), last_token.clone());
            let store = store.client();
            let mut rng = StdRng::seed_from_u64(seed * 100 + worker);
            workers.spawn(async move {
                for _ in 0..5 {
                    store.set_link(Link {
                        answer_delay: ms(rng.random_range(0..50)),
                        ..Link::default()
                    });
                    let guard = mutex(&store).lock().await.unwrap();
                    assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0, "two inside");
                    let token = guard.fencing_token() as usize;
                    assert!(
                        last_token.swap(token, Ordering::SeqCst) < token,
                        "token went back"
                    );
                    let crash = rng.random_bool(0.2);
                    if crash {
                        store.cut();
                        guard.lost().await;
                    } else {
                        sleep(ms(rng.random_range(0..20_000))).await;
                    }
                    inside.fetch_sub(1, Ordering::SeqCst);
                    if rng.random_bool(0.5) {
                        drop(guard);
                        store.mend();
                    } else {
                        store.mend();
                        assert_eq!(guard.unlock().await.is_err(), crash);
                    }
                    if rng.random_bool(0.3) {
                        store.lose_watches();
                        store.compact(store.revision()).await.unwrap();
                    }
                }
            });
        }
        timeout(secs(10_000), workers.join_all())
            .await
            .expect("stuck");
    }
}

#[tokio::test(start_paused = true)]
async fn the_lock_goes_round_in_order_of_arrival() {
    let store = FakeStore::new();
    let order = Arc::new(std::sync::Mutex::new(Vec::new()));
    let first = mutex(&store).lock().await.unwrap();
    let mut waiters = JoinSet::new();
    for number in 0..10 {
        let (mutex, order) = (mutex(&store.client()), order.clone());
        waiters.spawn(async move {
            let guard = mutex.lock().await.unwrap();
            order.lock().unwrap().push(number);
            guard.unlock().await.unwrap();
        });
        sleep(ms(10)).await;
    }
    first.unlock().await.unwrap();
    timeout(secs(100), waiters.join_all()).await.expect("stuck");
    assert_eq!(*order.lock().unwrap(), (0..10).collect::<Vec<_>>());
    assert!(store.contents().is_empty());
    assert_eq!(store.lease_count(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_release_wakes_one_waiter() {
    let store = FakeStore::new();
    let first = mutex(&store).lock().await.unwrap();
    let mut waiters = JoinSet::new();
    for _ in 0..10 {
        let mutex = mutex(&store);
        waiters.spawn(async move {
            let _guard = mutex.lock().await.unwrap();
            std::future::pending::<()>().await;
        });
        sleep(ms(10)).await;
    }
    let before = store.calls("range") + store.calls("watch");
    first.unlock().await.unwrap();
    sleep(secs(5)).await;
    // One list by the next in line, and the watch of its own key.
    assert_eq!(store.calls("range") + store.calls("watch"), before + 2);
}

#[tokio::test(start_paused = true)]
async fn a_waiter_that_gives_up_does_not_let_the_next_one_through() {
    let store = FakeStore::new();
    let first = mutex(&store).lock().await.unwrap();
    let second = tokio::spawn({
        let mutex = mutex(&store);
        async move { mutex.lock().await.unwrap() }
    });
    sleep(ms(10)).await;
    let third = tokio::spawn({
        let mutex = mutex(&store);
        async move { mutex.lock().await.unwrap() }
    });
    sleep(ms(10)).await;
    second.abort();
    sleep(secs(60)).await;
    assert!(!third.is_finished());
    assert_eq!(store.contents().len(), 2);
    first.unlock().await.unwrap();
    let third = timeout(secs(1), third).await.expect("its turn").unwrap();
    assert!(third.check().is_ok());
}

/// Cancelled at every instant of its life, `lock` leaves nothing behind for longer than a lease.
#[tokio::test(start_paused = true)]
async fn a_cancelled_lock_leaves_nothing() {
    let store = FakeStore::new();
    let holder = store.client();
    let client = store.client();
    client.set_link(Link {
        request_delay: ms(30),
        answer_delay: ms(30),
        ..Link::default()
    });
    for contended in [false, true] {
        let held = if contended {
            Some(mutex(&holder).lock().await.unwrap())
        } else {
            None
        };
        let keys = usize::from(contended);
        for patience in (0..400).step_by(10) {
            assert!(timeout(ms(patience), mutex(&client).lock()).await.is_err() || !contended);
            // The release takes a round trip; a lease without keys may run out by itself.
            sleep(ms(200)).await;
            assert_eq!(
                store.contents().len(),
                keys,
                "cancelled after {patience} ms"
            );
        }
        sleep(secs(10)).await;
        assert_eq!(store.lease_count(), keys);
        drop(held);
        sleep(secs(1)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_lock_that_is_cancelled_without_network_is_gone_with_its_lease() {
    let store = FakeStore::new();
    let _held = mutex(&store).lock().await.unwrap();
    let client = store.client();
    let waiter = tokio::spawn({
        let mutex = mutex(&client);
        async move { mutex.lock().await.map(drop) }
    });
    sleep(secs(20)).await;
    client.cut();
    waiter.abort();
    sleep(secs(9)).await;
    assert_eq!(store.contents().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn try_lock_takes_what_is_free_and_writes_nothing_else() {
    let store = FakeStore::new();
    let guard = mutex(&store).try_lock().await.unwrap().expect("it is free");
    let (revision, leases) = (store.revision(), store.lease_count());
    assert!(mutex(&store).try_lock().await.unwrap().is_none());
    assert_eq!((store.revision(), store.lease_count()), (revision, leases));
    guard.unlock().await.unwrap();

    let (one, two) = (mutex(&store), mutex(&store));
    let (one, two) = tokio::join!(one.try_lock(), two.try_lock());
    assert_eq!([one.unwrap(), two.unwrap()].iter().flatten().count(), 1);
    sleep(secs(1)).await;
    assert_eq!((store.contents().len(), store.lease_count()), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn dropping_the_guard_frees_the_lock() {
    let store = FakeStore::new();
    drop(mutex(&store).lock().await.unwrap());
    let guard = timeout(ms(100), mutex(&store).lock())
        .await
        .expect("free")
        .unwrap();
    drop(guard);
    sleep(ms(1)).await;
    assert_eq!(store.lease_count(), 0);
}

/// The put is the one write that is repeated: a second copy of it does nothing.
#[tokio::test(start_paused = true)]
async fn an_unknown_outcome_of_entering_is_resolved() {
    for before in [true, false] {
        let store = FakeStore::new();
        store.fail(|faults| {
            faults.unknown_before = usize::from(before);
            faults.unknown_after = usize::from(!before);
        });
        let guard = mutex(&store).lock().await.unwrap();
        let contents = store.contents();
        assert_eq!(contents.len(), 1);
        let own = &contents[guard.key()];
        assert_eq!(own.create_revision, guard.fencing_token());
        assert_eq!(own.version, 1, "it was put twice");
    }
}

#[tokio::test(start_paused = true)]
async fn other_keys_under_the_name_are_no_waiters() {
    let store = FakeStore::new();
    store.put(Put::new("lock/settings", "")).await.unwrap();
    store
        .put(Put::new("lock/0123456789abcdef0", ""))
        .await
        .unwrap();
    let nested = Mutex::new(store.clone(), "lock/nested")
        .lock()
        .await
        .unwrap();
    let guard = timeout(secs(1), mutex(&store).lock())
        .await
        .expect("it is free")
        .unwrap();
    guard.unlock().await.unwrap();
    assert!(mutex(&store).try_lock().await.unwrap().is_some());
    nested.unlock().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn the_fence_holds_only_with_the_lock() {
    let store = FakeStore::new();
    let guard = mutex(&store).lock().await.unwrap();
    let fenced = Txn::new()
        .when([guard.fence()])
        .then([Put::new("a", "1").into()]);
    assert!(store.txn(fenced.clone()).await.unwrap().succeeded);
    guard.unlock().await.unwrap();
    let _next = mutex(&store).lock().await.unwrap();
    assert!(!store.txn(fenced).await.unwrap().succeeded);
}

#[tokio::test(start_paused = true)]
async fn a_waiter_outlives_lost_watches_compaction_and_elections() {
    let store = FakeStore::new();
    let held = mutex(&store).lock().await.unwrap();
    let waiter = tokio::spawn({
        let mutex = mutex(&store.client());
        async move { mutex.lock().await.unwrap() }
    });
    sleep(secs(1)).await;
    store.fail(|faults| {
        faults.refused_watches = 6;
        faults.refused_ranges = 3;
    });
    store.lose_watches();
    held.unlock().await.unwrap();
    store.put(Put::new("x", "")).await.unwrap();
    store.compact(store.revision()).await.unwrap();
    let guard = timeout(secs(9), waiter).await.expect("its turn").unwrap();
    assert!(guard.check().is_ok());
}
