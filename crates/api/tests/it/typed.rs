use futures_util::{FutureExt, StreamExt};
use podkv_api::recipes::{Change, Typed};
use podkv_api::{Put, Reason, Store};
use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;

use crate::fake::FakeStore;
use crate::{assert_reason, secs};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct User {
    name: String,
    age: u32,
}

fn user(name: &str, age: u32) -> User {
    User {
        name: name.into(),
        age,
    }
}

fn counters(store: &FakeStore) -> Typed<FakeStore, u64> {
    Typed::new(store.clone(), "n/")
}

fn add_one(old: Option<u64>) -> Option<u64> {
    Some(old.unwrap_or(0) + 1)
}

#[tokio::test(start_paused = true)]
async fn values_come_back_as_they_went_in() {
    let store = FakeStore::new();
    let users: Typed<_, User> = Typed::new(store.clone(), "users/");
    store
        .put(Put::new("users", "outside the prefix"))
        .await
        .unwrap();
    let first = users.put("bo", &user("Bo", 3)).await.unwrap();
    users.put("al", &user("Al", 4)).await.unwrap();
    users.put("cy", &user("Cy", 5)).await.unwrap();

    assert_eq!(users.get("bo").await.unwrap(), Some(user("Bo", 3)));
    assert_eq!(
        users.entry("bo").await.unwrap().unwrap().mod_revision,
        first
    );
    assert_eq!(users.get("nobody").await.unwrap(), None);
    let listed = users.list().await.unwrap();
    let names: Vec<_> = listed
        .iter()
        .map(|entry| (&entry.key[..], entry.value.age))
        .collect();
    assert_eq!(names, [(&b"al"[..], 4), (b"bo", 3), (b"cy", 5)]);

    let deleted = users.delete("bo").await.unwrap();
    assert_eq!(deleted, Some(store.revision()));
    assert_eq!(users.delete("bo").await.unwrap(), None);
    assert_eq!(users.get("bo").await.unwrap(), None);
}

#[tokio::test(start_paused = true)]
async fn a_foreign_value_is_an_error_that_names_its_key() {
    let store = FakeStore::new();
    store.put(Put::new("n/a", "not a number")).await.unwrap();
    let error = counters(&store).get("a").await.unwrap_err();
    assert_eq!(error.reason(), Reason::BadValue);
    assert!(error.to_string().contains("n/a"), "{error}");
    assert_reason(counters(&store).list().await, Reason::BadValue);
    assert_reason(
        counters(&store).update("a", add_one).await,
        Reason::BadValue,
    );
}

#[tokio::test(start_paused = true)]
async fn contended_updates_count_exactly() {
    let store = FakeStore::new();
    let before = store.revision();
    let mut writers = JoinSet::new();
    for _ in 0..8 {
        let counters = counters(&store.client());
        writers.spawn(async move {
            for _ in 0..25 {
                counters.update("hits", add_one).await.unwrap();
            }
        });
    }
    writers.join_all().await;
    assert_eq!(counters(&store).get("hits").await.unwrap(), Some(200));
    assert_eq!(store.revision(), before + 200);
    assert!(
        store.calls("txn") > 200,
        "there was no contention: {}",
        store.calls("txn")
    );
}

#[tokio::test(start_paused = true)]
async fn an_update_outlasts_some_conflicts_but_not_all() {
    let store = FakeStore::new();
    let counters = counters(&store);
    store.fail(|faults| faults.storms = 20);
    let first = counters.update("a", add_one).await.unwrap();
    assert_eq!(first, counters.entry("a").await.unwrap());

    store.fail(|faults| faults.storms = usize::MAX);
    assert_reason(counters.update("a", add_one).await, Reason::Contention);
    store.fail(|faults| faults.storms = 0);
    assert_eq!(counters.get("a").await.unwrap(), Some(1));
}

#[tokio::test(start_paused = true)]
async fn an_unknown_outcome_is_passed_up_and_not_repeated() {
    let store = FakeStore::new();
    let counters = counters(&store);
    counters.put("a", &10).await.unwrap();
    for (applied, expected) in [(true, 11), (false, 11)] {
        let sent = store.calls("txn");
        store.fail(|faults| {
            faults.unknown_after = usize::from(applied);
            faults.unknown_before = usize::from(!applied);
        });
        let error = counters.update("a", add_one).await.unwrap_err();
        assert!(error.outcome_unknown());
        assert_eq!(store.calls("txn"), sent + 1);
        assert_eq!(counters.get("a").await.unwrap(), Some(expected));
    }
}

#[tokio::test(start_paused = true)]
async fn an_update_can_delete_do_nothing_and_keeps_the_lease() {
    let store = FakeStore::new();
    let counters = counters(&store);
    let lease = store.lease_grant(secs(60), None).await.unwrap().lease;
    store.put(Put::new("n/a", "1").lease(lease)).await.unwrap();
    let updated = counters.update("a", add_one).await.unwrap();
    let entry = counters.entry("a").await.unwrap();
    assert_eq!(updated, entry);
    let entry = entry.unwrap();
    assert_eq!((entry.value, entry.lease), (2, Some(lease)));
    assert_eq!(entry.mod_revision, store.revision());

    let before = store.revision();
    let unchanged = counters.update("a", |old| old).await.unwrap();
    assert_eq!(unchanged, Some(entry));
    assert_eq!(counters.update("none", |_| None).await.unwrap(), None);
    assert_eq!(store.revision(), before);

    assert_eq!(counters.update("a", |_| None).await.unwrap(), None);
    assert_eq!(counters.get("a").await.unwrap(), None);
}

#[tokio::test(start_paused = true)]
async fn a_watch_lists_then_reports_and_outlives_a_foreign_value() {
    let store = FakeStore::new();
    let counters = counters(&store);
    counters.put("a", &1).await.unwrap();
    counters.put("b", &2).await.unwrap();
    counters.put("c", &3).await.unwrap();
    let mut changes = counters.watch().await.unwrap();
    for (key, value) in [("a", 1), ("b", 2), ("c", 3)] {
        let Change::Put(entry) = changes.next().await.unwrap().unwrap() else {
            panic!("not a put")
        };
        assert_eq!((&entry.key[..], entry.value), (key.as_bytes(), value));
    }
    let revision = store.revision();
    assert_eq!(
        changes.next().await.unwrap().unwrap(),
        Change::UpToDate { revision }
    );

    store.put(Put::new("n/a", "bad")).await.unwrap();
    counters.delete("b").await.unwrap();
    assert_reason(changes.next().await.unwrap(), Reason::BadValue);
    let deleted = Change::Delete {
        key: "b".into(),
        revision: revision + 2,
    };
    assert_eq!(changes.next().await.unwrap().unwrap(), deleted);

    store.lose_watches();
    assert_reason(changes.next().await.unwrap(), Reason::WatchLost);
    assert!(changes.next().now_or_never().flatten().is_none());
}

#[tokio::test(start_paused = true)]
async fn a_watch_resumes_from_a_revision_unless_it_is_compacted() {
    let store = FakeStore::new();
    let counters = counters(&store);
    let first = counters.put("a", &1).await.unwrap();
    counters.put("a", &2).await.unwrap();
    let mut changes = counters.watch_from(first + 1).await.unwrap();
    let Change::Put(entry) = changes.next().await.unwrap().unwrap() else {
        panic!("not a put")
    };
    assert_eq!(entry.value, 2);
    store.compact(store.revision()).await.unwrap();
    assert_reason(
        counters.watch_from(first + 1).await.map(drop),
        Reason::Compacted,
    );
}
