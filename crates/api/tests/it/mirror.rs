use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use podkv_api::recipes::{Mirror, Snapshot};
use podkv_api::{Bytes, Delete, KeyRange, KeyValue, Put, Reason, Store, Txn};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::time::{Instant, sleep, timeout};

use crate::fake::FakeStore;
use crate::{assert_reason, ms, secs};

fn prefix() -> KeyRange {
    KeyRange::prefix("k/")
}

async fn open(store: &FakeStore) -> Mirror {
    Mirror::open(store, prefix()).await.unwrap()
}

async fn put(store: &FakeStore, key: &str, value: &str) -> u64 {
    store
        .put(Put::new(key.to_owned(), value.to_owned()))
        .await
        .unwrap()
        .header
        .revision
}

/// A snapshot is right if it is what the store held at exactly that revision.
#[track_caller]
fn assert_true(store: &FakeStore, snapshot: &Snapshot) {
    let mut expected = store.contents_at(snapshot.revision());
    expected.retain(|key, _| prefix().contains(key));
    let seen: BTreeMap<Bytes, KeyValue> = snapshot
        .iter()
        .map(|kv| (kv.key.clone(), kv.clone()))
        .collect();
    assert_eq!(seen, expected, "at revision {}", snapshot.revision());
    assert_eq!(snapshot.len(), expected.len());
}

/// One random step: mostly writes, now and then trouble. `reader` is the mirror's own handle.
async fn step(store: &FakeStore, reader: &FakeStore, rng: &mut StdRng) {
    let key = |rng: &mut StdRng| {
        format!(
            "{}{}",
            ["k/", "k/", "x/"][rng.random_range(0..3)],
            rng.random_range(0..9)
        )
    };
    match rng.random_range(0..22) {
        0..8 => {
            put(store, &key(rng), &rng.random::<u32>().to_string()).await;
        }
        8..11 => {
            store
                .delete(Delete::new(KeyRange::key(key(rng))))
                .await
                .unwrap();
        }
        11..14 => {
            let gone = Delete::new(KeyRange::between("k/0", "k/3"));
            let there = Put::new(format!("k/{}", rng.random_range(3..9)), "together");
            store
                .txn(Txn::new().then([gone.into(), there.into()]))
                .await
                .unwrap();
        }
        14 => store.lose_watches(),
        15 => {
            store
                .compact(store.revision() - rng.random_range(0..2))
                .await
                .unwrap();
            store.lose_watches();
        }
        16 => store.fail(|faults| faults.refused_watches = 2),
        17 => store.fail(|faults| faults.broken_lists = 1),
        18 => {
            let old = store.revision().saturating_sub(5).max(1);
            store.fail(|faults| faults.stale_lists = Some((1, old)));
        }
        19 => reader.cut(),
        20 => reader.mend(),
        _ => sleep(ms(rng.random_range(0..3000))).await,
    }
}

#[tokio::test(start_paused = true)]
async fn every_snapshot_is_the_store_at_its_revision() {
    for seed in 0..20 {
        let mut rng = StdRng::seed_from_u64(seed);
        let store = FakeStore::new();
        let reader = store.client();
        let mirror = Arc::new(open(&reader).await);
        let follower = tokio::spawn({
            let (mirror, store) = (mirror.clone(), store.clone());
            async move {
                let mut seen = 0;
                loop {
                    let snapshot = mirror.changed(seen).await.unwrap();
                    assert!(snapshot.revision() > seen, "back in time");
                    assert_true(&store, &snapshot);
                    seen = snapshot.revision();
                }
            }
        });
        let mut last = 0;
        for _ in 0..300 {
            step(&store, &reader, &mut rng).await;
            let snapshot = mirror.snapshot();
            assert!(snapshot.revision() >= last, "back in time");
            last = snapshot.revision();
            assert_true(&store, &snapshot);
        }
        reader.mend();
        let caught_up = timeout(secs(60), mirror.wait_for(store.revision())).await;
        assert_true(&store, &caught_up.expect("the mirror is stuck").unwrap());
        assert!(
            !follower.is_finished(),
            "seed {seed}: a follower saw something wrong"
        );
        follower.abort();
    }
}

#[tokio::test(start_paused = true)]
async fn no_reader_sees_half_a_revision() {
    let store = FakeStore::new();
    let mirror = Arc::new(open(&store).await);
    let done = Arc::new(AtomicBool::new(false));
    // A thread of its own can look at any instant, also between two instructions of the mirror.
    let reader = std::thread::spawn({
        let (mirror, done) = (mirror.clone(), done.clone());
        move || {
            while !done.load(Ordering::Relaxed) {
                let snapshot = mirror.snapshot();
                let mut values = snapshot.iter().map(|kv| (&kv.value, kv.mod_revision));
                let first = values.next();
                assert!(
                    values.all(|value| Some(value) == first),
                    "half: {snapshot:?}"
                );
                assert!(
                    matches!(snapshot.len(), 0 | 100),
                    "half: {} keys",
                    snapshot.len()
                );
            }
        }
    });
    for round in 0..300 {
        let write = |key| Put::new(format!("k/{key}"), round.to_string()).into();
        store
            .txn(Txn::new().then((0..100).map(write)))
            .await
            .unwrap();
        if round % 10 == 0 {
            store.compact(store.revision()).await.unwrap();
            store.lose_watches();
        }
        mirror.wait_for(store.revision()).await.unwrap();
    }
    done.store(true, Ordering::Relaxed);
    reader.join().unwrap();
}

#[tokio::test(start_paused = true)]
async fn reads_are_by_key_prefix_and_range() {
    let store = FakeStore::new();
    for key in ["k/a1", "k/a2", "k/b1", "x"] {
        put(&store, key, key).await;
    }
    let mirror = open(&store).await;
    let snapshot = mirror.snapshot();
    put(&store, "k/a3", "later").await;
    mirror.wait_for(store.revision()).await.unwrap();

    fn keys<'a>(kvs: impl Iterator<Item = &'a KeyValue>) -> Vec<&'a [u8]> {
        kvs.map(|kv| &kv.key[..]).collect()
    }
    assert_eq!(keys(snapshot.prefix("k/a")), [b"k/a1", b"k/a2"]);
    assert_eq!(keys(snapshot.iter().rev()), [b"k/b1", b"k/a2", b"k/a1"]);
    assert_eq!(
        keys(snapshot.range(KeyRange::between("k/a2", "k/b1"))),
        [b"k/a2"]
    );
    assert_eq!(
        keys(snapshot.range(KeyRange::from("k/a2"))),
        [b"k/a2", b"k/b1"]
    );
    assert_eq!(keys(snapshot.range(KeyRange::key("k/b1"))), [b"k/b1"]);
    assert_eq!(snapshot.range(KeyRange::between("k/b", "k/a")).count(), 0);
    assert_eq!(snapshot.range(KeyRange::between("k/b1", "k/b1")).count(), 0);
    assert!(snapshot.get(b"k/a3").is_none() && mirror.get(b"k/a3").is_some());
    assert_eq!((snapshot.len(), mirror.len()), (3, 4));
}

#[tokio::test(start_paused = true)]
async fn changed_is_for_contents_and_wait_for_is_for_revisions() {
    let store = FakeStore::new();
    let mirror = open(&store).await;
    let start = timeout(ms(1), mirror.changed(0))
        .await
        .expect("the first list counts")
        .unwrap();

    let elsewhere = put(&store, "x", "1").await;
    let seen = timeout(secs(5), mirror.wait_for(elsewhere))
        .await
        .expect("a bookmark tells")
        .unwrap();
    assert_eq!(seen.revision(), elsewhere);
    assert!(
        timeout(secs(60), mirror.changed(start.revision()))
            .await
            .is_err()
    );

    // A new list with the same contents is no change; one with other contents is.
    store.compact(store.revision()).await.unwrap();
    store.lose_watches();
    assert!(
        timeout(secs(60), mirror.changed(start.revision()))
            .await
            .is_err()
    );
    store.cut();
    let other = store.client();
    put(&other, "k/1", "1").await;
    other.compact(store.revision()).await.unwrap();
    other.lose_watches();
    store.mend();
    let changed = timeout(secs(60), mirror.changed(start.revision()))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(changed.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn staleness_is_the_time_since_the_store_was_heard() {
    let store = FakeStore::new();
    let mirror = open(&store).await;
    sleep(secs(20)).await;
    assert!(
        mirror.staleness() <= secs(1),
        "bookmarks count: {:?}",
        mirror.staleness()
    );
    store.cut();
    let other = store.client();
    let missed = put(&other, "k/1", "1").await;
    sleep(secs(30)).await;
    assert!(mirror.staleness() >= secs(30) && mirror.get(b"k/1").is_none());
    store.mend();
    timeout(secs(10), mirror.wait_for(missed))
        .await
        .expect("it catches up")
        .unwrap();
    assert!(mirror.staleness() < secs(1));
}

#[tokio::test(start_paused = true)]
async fn trouble_is_told_and_passes() {
    let store = FakeStore::new();
    let mirror = open(&store).await;
    assert!(mirror.problem().is_none());
    store.fail(|faults| faults.refused_watches = 5);
    store.lose_watches();
    sleep(ms(200)).await;
    assert_eq!(mirror.problem().unwrap().reason(), Reason::NodeNotReady);
    sleep(secs(10)).await;
    assert!(mirror.problem().is_none());

    store.fail(|faults| faults.refused_watches = 1);
    assert_reason(Mirror::open(&store, prefix()).await, Reason::NodeNotReady);
}

#[tokio::test(start_paused = true)]
async fn a_list_from_the_past_is_refused() {
    let store = FakeStore::new();
    let writer = store.client();
    let old = put(&store, "k/1", "old").await;
    put(&store, "k/1", "new").await;
    let mirror = open(&store).await;
    store.cut();
    put(&writer, "k/2", "missed").await;
    writer.compact(store.revision()).await.unwrap();
    store.fail(|faults| faults.stale_lists = Some((3, old)));
    store.lose_watches();
    store.mend();
    let until = Instant::now() + secs(20);
    let mut refused = false;
    while Instant::now() < until {
        assert_eq!(mirror.get(b"k/1").unwrap().value, "new");
        refused |= mirror
            .problem()
            .is_some_and(|problem| problem.reason() == Reason::TooStale);
        sleep(ms(10)).await;
    }
    assert!(refused, "no list was from the past");
    assert!(mirror.get(b"k/2").is_some());
}

#[tokio::test(start_paused = true)]
async fn closing_joins_the_task_and_dropping_ends_it() {
    let store = FakeStore::new();
    let idle = store.holders();
    let mirror = open(&store).await;
    assert!(store.holders() > idle);
    mirror.close().await;
    assert_eq!(store.holders(), idle);

    // Also while a call hangs.
    let mirror = open(&store).await;
    store.cut();
    store.lose_watches();
    sleep(secs(1)).await;
    drop(mirror);
    sleep(ms(1)).await;
    assert_eq!(store.holders(), idle);
}
