//! The tour itself, on any stage.

use std::future::Future;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use podkv_api::{
    Consistency, Event, EventKind, KeyRange, KeyValue, Put, Range, Store, Watch, WatchMessage,
};

use super::input::{Input, sorted_sha256};

/// Writes under way at once.
const CONCURRENCY: usize = 64;
/// The leader is killed when this share of the input is acknowledged.
const KILL_AT_PERCENT: usize = 30;
/// What an operation may take, retries and all. An error reaches the user beyond it.
const DEADLINE: Duration = Duration::from_secs(5);

/// Three nodes that can be killed.
pub trait Stage {
    type Store: Store;

    /// What to call it on the first line.
    fn label(&self) -> String;
    /// The nodes' names.
    fn nodes(&self) -> Vec<String>;
    /// A store over all nodes.
    fn store(&self) -> impl Future<Output = Self::Store>;
    /// A store that stays on one node.
    fn store_of(&self, node: usize) -> impl Future<Output = Self::Store>;
    /// Kills the leader, found by term, without warning; says which it was and how that was known.
    fn kill_leader(&mut self) -> impl Future<Output = Result<(usize, String), String>>;
    /// Starts a dead node again and waits until it serves.
    fn revive(&mut self, node: usize) -> impl Future<Output = Result<(), String>>;
}

struct Timeline(Instant);

impl Timeline {
    fn say(&self, text: impl std::fmt::Display) {
        println!("[{:7.2} s] {text}", self.0.elapsed().as_secs_f64());
    }
}

/// Runs the tour; the error is the claim that does not hold.
pub async fn run(mut stage: impl Stage, records: usize, folder: &Path) -> Result<(), String> {
    let timeline = Timeline(Instant::now());
    timeline.say(stage.label());
    let input = Input::read(records, folder)?;
    let total = input.records.len();
    timeline.say(format_args!("input: {total} records from {}", input.source));
    timeline.say(format_args!("       sort | sha256sum: {}", input.sha256));

    let store = stage.store().await;
    let start_revision = claim(store.status().await, "a status is answered")?
        .header
        .revision;
    let watcher = start_watcher(stage.store().await, total as u64).await?;
    timeline.say("a second client watches the prefix");

    let (done, longest, errors) = load(&timeline, &mut stage, &store, &input, &watcher).await?;
    let killed = done.ok_or("the leader was not killed in time: the load was too fast")?;
    timeline.say(format_args!(
        "all {total} acknowledged; {errors} errors reached the user; longest wait {longest:.2?}"
    ));
    ensure(errors == 0, "no error reaches the user")?;
    ensure(
        longest <= DEADLINE,
        "no operation takes longer than its deadline",
    )?;

    let seen = claim(
        tokio::time::timeout(Duration::from_secs(30), watcher.finished).await,
        "the watcher sees everything within 30 s",
    )?;
    let seen = claim(seen, "the watcher lives")??;
    timeline.say(format_args!(
        "the watcher saw {seen} events: each record once, in order of revisions"
    ));

    stage.revive(killed).await?;
    timeline.say(format_args!("{} is back", stage.nodes()[killed]));
    let end_revision = start_revision + total as u64;
    prove_replicas(&timeline, &stage, &store, &input, end_revision, folder).await?;
    timeline.say("every claim holds");
    Ok(())
}

struct Watching {
    seen: Arc<AtomicU64>,
    finished: tokio::task::JoinHandle<Result<u64, String>>,
}

/// Watches everything, and ends when `total` records have come.
async fn start_watcher(store: impl Store, total: u64) -> Result<Watching, String> {
    let mut messages = claim(
        store.watch(Watch::new(KeyRange::all())).await,
        "a watch stands",
    )?;
    let created = claim(
        messages.next().await.ok_or("no first message"),
        "a watch begins with Created",
    )?;
    ensure(
        matches!(created, Ok(WatchMessage::Created { .. })),
        "a watch begins with Created",
    )?;
    let seen = Arc::new(AtomicU64::new(0));
    let counter = seen.clone();
    let finished = tokio::spawn(async move {
        let mut last = 0;
        while counter.load(Ordering::Relaxed) < total {
            let message = messages.next().await.ok_or("the watch ended")?;
            let WatchMessage::Events {
                revision, events, ..
            } = message.map_err(|error| error.to_string())?
            else {
                continue;
            };
            ensure(revision > last, "revisions come in order")?;
            last = revision;
            for event in &events {
                ensure(
                    is_first_write(event),
                    "every event is the first write of its key",
                )?;
                counter.fetch_add(1, Ordering::Relaxed);
            }
        }
        drop(store);
        Ok(counter.load(Ordering::Relaxed))
    });
    Ok(Watching { seen, finished })
}

fn is_first_write(event: &Event) -> bool {
    event.kind == EventKind::Put && event.kv.version == 1
}

/// Writes everything, kills the leader on the way. Returns the dead node, the longest wait, the errors.
async fn load<T: Stage>(
    timeline: &Timeline,
    stage: &mut T,
    store: &T::Store,
    input: &Input,
    watcher: &Watching,
) -> Result<(Option<usize>, Duration, usize), String> {
    let total = input.records.len();
    let kill_at = total * KILL_AT_PERCENT / 100;
    let mut puts = futures_util::stream::iter(&input.records)
        .map(|(key, value)| async move {
            let sent = Instant::now();
            let result = store.put(Put::new(key.clone(), value.clone())).await;
            (result, sent.elapsed())
        })
        .buffer_unordered(CONCURRENCY);
    let mut killed = None;
    let (mut acknowledged, mut errors, mut longest) = (0, 0, Duration::ZERO);
    while let Some((result, waited)) = puts.next().await {
        longest = longest.max(waited);
        match result {
            Ok(_) => acknowledged += 1,
            Err(error) => {
                timeline.say(format_args!("an error reached the user: {error}"));
                errors += 1;
            }
        }
        if acknowledged % (total / 5) == 0 {
            let seen = watcher.seen.load(Ordering::Relaxed);
            timeline.say(format_args!(
                "{acknowledged} of {total} acknowledged, {seen} seen by the watcher"
            ));
        }
        if killed.is_none() && acknowledged >= kill_at {
            let (node, how) = stage.kill_leader().await?;
            killed = Some(node);
            timeline.say(format_args!(
                "killed {} ({how}) at {acknowledged} of {total}",
                stage.nodes()[node]
            ));
        }
    }
    Ok((killed, longest, errors))
}

/// Every replica, asked for its own state, holds exactly the input.
async fn prove_replicas<T: Stage>(
    timeline: &Timeline,
    stage: &T,
    store: &T::Store,
    input: &Input,
    end_revision: u64,
    folder: &Path,
) -> Result<(), String> {
    let newest = claim(
        store.range(Range::new(KeyRange::all()).count_only()).await,
        "a count is answered",
    )?;
    ensure(
        newest.count == input.records.len() as u64,
        "the count equals the input",
    )?;
    ensure(
        newest.header.revision == end_revision,
        "revisions equal transactions: nothing was applied twice",
    )?;
    for (node, name) in stage.nodes().iter().enumerate() {
        let replica = stage.store_of(node).await;
        let kvs = read_local(&replica, end_revision).await?;
        ensure(
            kvs.iter().all(|kv| kv.version == 1),
            "every key has version 1",
        )?;
        let lines = kvs.iter().map(|kv| (&kv.key[..], &kv.value[..]));
        let sha256 = sorted_sha256(&folder.join(format!("{name}.tsv")), lines)?;
        timeline.say(format_args!(
            "{name}: {} keys, all of version 1, sort | sha256sum: {sha256}",
            kvs.len()
        ));
        ensure(
            sha256 == input.sha256,
            "the replica holds exactly the input",
        )?;
    }
    timeline.say(format_args!("revision {end_revision}: one for each record"));
    Ok(())
}

/// Reads a replica's own state once it has applied everything.
async fn read_local(replica: &impl Store, revision: u64) -> Result<Vec<KeyValue>, String> {
    let caught_up = async {
        loop {
            if let Ok(status) = replica.status().await
                && status.header.revision >= revision
            {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    claim(
        tokio::time::timeout(Duration::from_secs(30), caught_up).await,
        "the replica catches up within 30 s",
    )?;
    let request = Range::new(KeyRange::all()).consistency(Consistency::Local);
    let mut chunks = claim(
        replica.range_stream(request).await,
        "a local read is answered",
    )?;
    let mut kvs = Vec::new();
    while let Some(chunk) = chunks.next().await {
        kvs.extend(claim(chunk, "a local read goes to its end")?.kvs);
    }
    Ok(kvs)
}

fn claim<T, E: std::fmt::Display>(result: Result<T, E>, what: &str) -> Result<T, String> {
    result.map_err(|error| format!("does not hold: {what}: {error}"))
}

fn ensure(holds: bool, what: &str) -> Result<(), String> {
    if holds {
        Ok(())
    } else {
        Err(format!("does not hold: {what}"))
    }
}
