//! The hub on its task: real threads, real wake-ups.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use futures_util::StreamExt;
use podkv_api::{KeyRange, Reason, Watch, WatchMessage};
use podkv_core::Command;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use tokio::sync::watch;

use super::random::{History, Twin};
use super::rig::{FakeState, compact, delete, describe, header, put, tip_of, txn};
use crate::watch::{WatchHub, WatchSettings};

fn start(state: &Arc<FakeState>, settings: WatchSettings) -> WatchHub {
    WatchHub::start(state.clone(), state.tip(), header(), settings)
}

fn write(state: &FakeState, hub: &WatchHub, key: &str, value: &str) {
    let effects = state.apply([put(key, value)]);
    let tip = tip_of(&effects);
    hub.publish(effects.events, tip);
}

#[tokio::test]
async fn a_change_reaches_its_watcher() {
    let state = Arc::new(FakeState::default());
    let hub = start(&state, WatchSettings::default());
    let mut stream = hub.watch(Watch::new(KeyRange::prefix("a")), 0).unwrap();
    assert_eq!(describe(&stream.next().await.unwrap()), "created from 2");
    write(&state, &hub, "b", "1");
    write(&state, &hub, "a", "1");
    assert_eq!(describe(&stream.next().await.unwrap()), "3: put a=1");
    hub.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn bookmarks_come_by_themselves() {
    let state = Arc::new(FakeState::default());
    let hub = start(&state, WatchSettings::default());
    let watch = Watch::new(KeyRange::prefix("a")).bookmarks();
    let mut stream = hub.watch(watch, 0).unwrap();
    assert_eq!(describe(&stream.next().await.unwrap()), "created from 2");
    let asked = tokio::time::Instant::now();
    write(&state, &hub, "b", "1");
    assert_eq!(describe(&stream.next().await.unwrap()), "bookmark 2");
    let interval = WatchSettings::default().bookmark_interval;
    assert!(asked.elapsed() <= interval + Duration::from_secs(1));
    hub.shutdown().await;
}

#[tokio::test]
async fn shutting_down_ends_every_watch_and_refuses_new_ones() {
    let state = Arc::new(FakeState::default());
    let hub = start(&state, WatchSettings::default());
    let mut stream = hub.watch(Watch::new(KeyRange::all()), 0).unwrap();
    assert!(stream.next().await.unwrap().is_ok());
    hub.shutdown().await;
    let error = stream.next().await.unwrap().unwrap_err();
    assert_eq!(error.reason(), Reason::NodeNotReady);
    assert!(stream.next().await.is_none());
    let refused = hub.watch(Watch::new(KeyRange::all()), 0).err().unwrap();
    assert_eq!(refused.reason(), Reason::NodeNotReady);
    // Still publishable: the apply thread may end after the hub.
    write(&state, &hub, "a", "1");
    hub.shutdown().await;
}

#[tokio::test]
async fn the_hub_stops_with_its_last_handle() {
    let state = Arc::new(FakeState::default());
    let hub = start(&state, WatchSettings::default());
    let mut stream = hub.watch(Watch::new(KeyRange::all()), 0).unwrap();
    let other = hub.clone();
    drop(hub);
    write(&state, &other, "a", "1");
    assert_eq!(describe(&stream.next().await.unwrap()), "created from 2");
    drop(other);
    while let Some(Ok(_)) = stream.next().await {}
}

#[test]
fn a_runtime_that_ends_leaves_nobody_waiting() {
    let state = Arc::new(FakeState::default());
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let _guard = runtime.enter();
    // The task is dropped before it ever ran.
    let hub = start(&state, WatchSettings::default());
    let mut stream = hub.watch(Watch::new(KeyRange::all()), 0).unwrap();
    drop(_guard);
    drop(runtime);
    let error = futures_util::FutureExt::now_or_never(stream.next())
        .unwrap()
        .unwrap();
    assert_eq!(error.unwrap_err().reason(), Reason::NodeNotReady);
}

/// The publisher is not slowed by anything that watchers do: here nobody even drives the hub.
#[test]
fn publishing_waits_for_nobody() {
    let state = Arc::new(FakeState::default());
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let guard = runtime.enter();
    let settings = WatchSettings {
        buffer_bytes: 1 << 20,
        ..WatchSettings::default()
    };
    let hub = start(&state, settings);
    let _stalled = hub.watch(Watch::new(KeyRange::all()), 0).unwrap();
    let value = "x".repeat(1000);
    for _ in 0..2_000 {
        write(&state, &hub, "a", &value);
    }
    assert!(hub.stats().buffered_bytes <= 1 << 20);
    drop(guard);
}

/// Everything at once, on threads: the same checks as under random schedules, at full speed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_under_load() {
    let state = Arc::new(FakeState::default());
    let settings = WatchSettings {
        buffer_bytes: 32 << 10,
        queue_items: 16,
        ..WatchSettings::default()
    };
    let hub = start(&state, settings);
    let is_done = Arc::new(AtomicBool::new(false));
    let (history, known) = watch::channel(History::new());
    let (stop, stopped) = mpsc::channel::<()>();
    let writer = std::thread::spawn({
        let (state, hub, is_done) = (state.clone(), hub.clone(), is_done.clone());
        move || {
            let mut rng = SmallRng::seed_from_u64(7);
            for number in 0..3_000_u64 {
                let key = |rng: &mut SmallRng| format!("k{}", rng.random_range(0..20));
                let command = match rng.random_range(0..10) {
                    0 => delete(&key(&mut rng)),
                    1 => txn(&[("k1", "t"), ("k2", "t"), ("x", "t")]),
                    2 if number % 10 == 0 => compact((number / 2).max(1)),
                    _ => put(&key(&mut rng), &format!("{number:040}")),
                };
                write_known(&state, &hub, &history, command);
                if number % 16 == 0 {
                    std::thread::yield_now();
                }
            }
            is_done.store(true, Ordering::SeqCst);
            drop(stop);
            history
        }
    });
    let mut users = tokio::task::JoinSet::new();
    let mut rng = SmallRng::seed_from_u64(8);
    for number in 0..40_u64 {
        let mut watch = match number % 4 {
            0 => Watch::new(KeyRange::all()),
            1 => Watch::new(KeyRange::key(format!("k{}", number % 20))),
            2 => Watch::new(KeyRange::prefix("k1")),
            _ => Watch::new(KeyRange::prefix("k")).list(),
        };
        watch.prev_kv = rng.random_bool(0.5);
        watch.bookmarks = rng.random_bool(0.5);
        let now = state.tip().revision;
        let stream = hub.watch(watch.clone(), now).unwrap();
        let pause = number % 3 == 0;
        users.spawn(follow(
            Box::pin(stream),
            Twin::new(watch, now),
            known.clone(),
            is_done.clone(),
            pause,
        ));
    }
    tokio::task::spawn_blocking(move || stopped.recv().unwrap_err())
        .await
        .unwrap();
    let history = writer.join().unwrap();
    // The last word: whoever is level has seen it.
    write_known(&state, &hub, &history, last());
    while let Some(user) = users.join_next().await {
        user.unwrap();
    }
    hub.shutdown().await;
    let stats = hub.stats();
    assert_eq!((stats.watchers, stats.behind), (0, 0), "{stats:?}");
}

/// Applies, remembers and publishes. Whoever checks what was read meanwhile waits until it is known.
fn write_known(
    state: &FakeState,
    hub: &WatchHub,
    history: &watch::Sender<History>,
    command: Command,
) {
    let mut published = None;
    history.send_modify(|history| {
        let effects = state.apply([command]);
        history.record(&effects.events);
        history.revision = effects.meta.revision;
        history.compacted = effects.meta.compacted_revision;
        published = Some(effects);
    });
    let effects = published.unwrap();
    let tip = tip_of(&effects);
    hub.publish(effects.events, tip);
}

/// All keys that anybody watches get their last value, in one revision.
fn last() -> Command {
    let all: Vec<_> = (0..20).map(|key| (format!("k{key}"), "last")).collect();
    let all: Vec<_> = all
        .iter()
        .map(|(key, value)| (key.as_str(), *value))
        .collect();
    txn(&all)
}

async fn follow(
    mut stream: podkv_api::WatchStream,
    mut twin: Twin,
    known: watch::Receiver<History>,
    is_done: Arc<AtomicBool>,
    pause: bool,
) {
    loop {
        let message = stream.next().await;
        twin.check(&known.borrow(), &message);
        let is_last = match &message {
            None => return,
            Some(Ok(WatchMessage::Events { events, .. })) => events
                .iter()
                .any(|event| event.kv.value.as_ref() == b"last"),
            Some(_) => false,
        };
        if is_last {
            assert!(twin.is_level(&known.borrow()));
            return;
        }
        if pause && !is_done.load(Ordering::SeqCst) {
            // Slow: others, the writer among them, get far ahead.
            for _ in 0..50 {
                tokio::task::yield_now().await;
            }
        }
    }
}
