//! The watch hub: tells everybody who watches a range what changed in it.
//!
//! A watch is ordered, without gaps or duplicates, atomic per revision, and resumable from a
//! revision. Slow watchers never slow writers, and never lose events silently: they are served from
//! history until they have caught up, or are told that their place is compacted.
//!
//! ```text
//!  apply thread ──publish──► Feed ──┐                            ┌─► Outbox ──► Watching (a stream)
//!      (never waits)                ├─► one task: Hub::handle ───┤
//!  users ──register, ask──► Mailbox ┘        ▲  │ Action::Read   └─► Outbox ──► Watching
//!                                            │  ▼
//!                                       a few blocking threads ── the state
//! ```
//!
//! Read in this order: [`feed`] (why the publisher never waits), [`outbox`] (where a watcher stands),
//! [`hub`] (the state machine and the switch from history to live), [`index`] (who wants a key).
//!
//! # What bounds the memory
//!
//! One setting, [`WatchSettings::buffer_bytes`], bounds the events of all watchers together: half of it
//! holds recent revisions, a quarter those that the hub has not taken yet, a quarter what was read
//! from the state and not yet taken by its user. Single revisions may be larger; each part keeps at
//! least one. Beyond that a watcher has at most [`WatchSettings::queue_items`] pointers.

mod driver;
mod feed;
mod history;
mod hub;
mod index;
mod mailbox;
mod outbox;
mod recent;
mod settings;
mod stats;
mod stream;
#[cfg(test)]
mod tests;

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use podkv_api::{Error, Event, Header, KeyValue, RangeEnd, Reason, Result, Revision, Watch};
use podkv_core::RevisionEvents;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use self::driver::Desk;
use self::feed::Feed;
use self::mailbox::{Mailbox, Registration};
use self::outbox::Outbox;
use self::settings::Bounds;
use self::stats::Counters;
use crate::raft::{Applied, EventSink};
use crate::storage::StateStore;

pub(crate) use self::feed::Tip;
pub(crate) use self::settings::WatchSettings;
pub(crate) use self::stats::WatchStats;
pub use self::stream::{Progress, Watching};

/// Names a watcher on this node, for as long as the node runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct WatcherId(u64);

/// Stamps messages: the node as it is now, but for the revision, which the hub fills in. Called for each
/// message, so it must be cheap.
pub(crate) type HeaderSource = Arc<dyn Fn() -> Header + Send + Sync>;

/// What the hub's task, the streams and the handles share.
struct Shared {
    feed: Feed,
    mailbox: Mailbox,
    counters: Arc<Counters>,
    header: HeaderSource,
    /// The last revision that was published.
    revision: AtomicU64,
    settings: WatchSettings,
    next_id: AtomicU64,
    /// Marked when users, roles or permissions have changed.
    auth: tokio::sync::watch::Sender<()>,
    /// Streams that were handed out and not yet dropped.
    open: AtomicUsize,
    /// What they watch, in bytes of keys.
    watched_bytes: AtomicUsize,
}

/// A handle of the hub. Cheap to clone. The hub stops with its last handle.
#[derive(Clone)]
pub(crate) struct WatchHub {
    shared: Arc<Shared>,
    task: Arc<Task>,
}

struct Task {
    stop: CancellationToken,
    handle: Mutex<Option<JoinHandle<()>>>,
}

impl Drop for Task {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl WatchHub {
    /// Starts the hub on the current tokio runtime. `tip` is the state as it is now; what is published
    /// first follows it.
    pub fn start(
        state: Arc<dyn StateStore>,
        tip: Tip,
        header: HeaderSource,
        settings: WatchSettings,
    ) -> Self {
        let shared = Arc::new(Shared::new(tip, header, settings));
        let stop = CancellationToken::new();
        let desk = Desk::new(shared.clone(), tip, tokio::time::Instant::now().into_std());
        let handle = tokio::spawn(driver::run(desk, state, stop.clone()));
        let task = Task {
            stop,
            handle: Mutex::new(Some(handle)),
        };
        Self {
            shared,
            task: Arc::new(task),
        }
    }

    /// Takes over what was applied. Called in order, once it is committed to the state, by the thread that
    /// applies; never waits for a watcher.
    pub fn publish(&self, revisions: Vec<Arc<RevisionEvents>>, tip: Tip) {
        self.shared.publish(revisions, tip);
    }

    /// The state was replaced by a snapshot, and is at `tip`. What was in between is read from it.
    pub fn reset(&self, tip: Tip) {
        self.shared.reset(tip);
    }

    /// Watches a range. The state of this node must have reached `at_least`: "from now on", and a list,
    /// are then no older than that.
    ///
    /// Refuses what makes no sense. All else comes through the stream, after `Created`:
    /// [`Reason::Compacted`] if the start is compacted, or becomes so before a slow user reads it.
    pub fn watch(&self, watch: Watch, at_least: Revision) -> Result<Watching> {
        self.shared.watch(watch, at_least)
    }

    /// Changes whenever users, roles or permissions have changed: before anything that came after it is published.
    pub fn auth_changes(&self) -> tokio::sync::watch::Receiver<()> {
        self.shared.auth.subscribe()
    }

    pub fn stats(&self) -> WatchStats {
        self.shared.counters.read(self.shared.feed.bytes())
    }

    /// Ends every watch with [`Reason::NodeNotReady`], and waits until the hub has stopped.
    pub async fn shutdown(&self) {
        self.task.stop.cancel();
        let handle = self
            .task
            .handle
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(handle) = handle
            && let Err(error) = handle.await
        {
            tracing::error!(%error, "the watch hub failed");
        }
    }
}

impl Shared {
    fn new(tip: Tip, header: HeaderSource, settings: WatchSettings) -> Self {
        Self {
            feed: Feed::new(settings.bounds().feed_bytes, tip.revision, tip),
            mailbox: Mailbox::default(),
            counters: Arc::default(),
            header,
            revision: AtomicU64::new(tip.revision),
            settings,
            next_id: AtomicU64::new(1),
            auth: tokio::sync::watch::Sender::new(()),
            open: AtomicUsize::new(0),
            watched_bytes: AtomicUsize::new(0),
        }
    }

    fn publish(&self, revisions: Vec<Arc<RevisionEvents>>, tip: Tip) {
        self.feed.publish(revisions, tip);
        self.revision.store(tip.revision, Ordering::Release);
        self.mailbox.bell.notify_one();
    }

    fn reset(&self, tip: Tip) {
        self.feed.reset(tip);
        self.revision.store(tip.revision, Ordering::Release);
        self.mailbox.bell.notify_one();
    }

    fn watch(self: &Arc<Self>, watch: Watch, at_least: Revision) -> Result<Watching> {
        check(&watch, &self.settings)?;
        self.admit(&watch)?;
        let id = WatcherId(self.next_id.fetch_add(1, Ordering::Relaxed));
        let tip = self.feed.tip();
        let seen = at_least.max(tip.revision);
        let watch = Arc::new(watch);
        let outbox = Arc::new(Outbox::new(
            self.settings.queue_items,
            hub::first_place(&watch),
        ));
        let registration = Registration {
            id,
            watch: watch.clone(),
            outbox: outbox.clone(),
            current: seen,
            compacted_revision: tip.compacted_revision,
        };
        // From here on its drop undoes what was done.
        let stream = Watching {
            id,
            watch,
            outbox,
            shared: self.clone(),
            seen,
        };
        match self.mailbox.register(registration) {
            Ok(()) => Ok(stream),
            Err(_) => Err(hub::stopping()),
        }
    }

    /// Counts a watch that is about to open, if there may be one more.
    fn admit(&self, watch: &Watch) -> Result<()> {
        let (max, max_bytes) = (self.settings.max_watches, self.settings.max_watched_bytes);
        let bytes = watched_bytes(watch);
        let open = self.open.fetch_add(1, Ordering::Relaxed);
        let open_bytes = self.watched_bytes.fetch_add(bytes, Ordering::Relaxed);
        if open < max && open_bytes.saturating_add(bytes) <= max_bytes {
            return Ok(());
        }
        self.forget(watch);
        let text = match open < max {
            false => format!("this node has {max} open watches, and no more are allowed"),
            true => format!(
                "the open watches of this node watch {open_bytes} bytes of keys, and at most {max_bytes} are allowed"
            ),
        };
        Err(Error::new(Reason::Overloaded, text))
    }

    /// A watch that was counted is gone.
    fn forget(&self, watch: &Watch) {
        self.open.fetch_sub(1, Ordering::Relaxed);
        let bytes = watched_bytes(watch);
        self.watched_bytes.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// The keys that a watch holds for as long as it is open.
fn watched_bytes(watch: &Watch) -> usize {
    watch.range.start.len()
        + match &watch.range.end {
            RangeEnd::Before(end) => end.len(),
            RangeEnd::Single | RangeEnd::Unbounded => 0,
        }
}

fn check(watch: &Watch, settings: &WatchSettings) -> Result<()> {
    let range = &watch.range;
    let max = settings.max_key_bytes;
    let longest = match &range.end {
        RangeEnd::Before(end) => range.start.len().max(end.len()),
        RangeEnd::Single | RangeEnd::Unbounded => range.start.len(),
    };
    let (reason, text) = if watch.list && watch.start_revision != 0 {
        let text = "list and start_revision exclude each other: a list says where it starts";
        (Reason::InvalidArgument, text.into())
    } else if range.is_single() && range.start.is_empty() {
        (
            Reason::EmptyKey,
            "the key is empty; a key has at least one byte".into(),
        )
    } else if range.is_empty() {
        (
            Reason::InvalidArgument,
            "the range is empty: its end is not after its start".into(),
        )
    } else if longest > max {
        (
            Reason::KeyTooLarge,
            format!("the key has {longest} bytes; at most {max} are allowed"),
        )
    } else {
        return Ok(());
    };
    Err(Error::new(reason, text))
}

impl EventSink for WatchHub {
    fn publish(&self, events: Vec<Arc<RevisionEvents>>, applied: Applied) {
        WatchHub::publish(self, events, Tip::from(&applied));
    }

    fn reset(&self, applied: Applied) {
        WatchHub::reset(self, Tip::from(&applied));
    }

    fn auth_changed(&self) {
        self.shared.auth.send_replace(());
    }
}

impl From<&Applied> for Tip {
    fn from(applied: &Applied) -> Self {
        Self {
            revision: applied.revision,
            compacted_revision: applied.compacted_revision,
        }
    }
}

/// What a revision costs in memory, about.
fn weight(revision: &RevisionEvents) -> usize {
    let kvs = revision
        .events
        .iter()
        .flat_map(|event| [Some(&event.kv), event.prev_kv.as_ref()]);
    let data: usize = kvs.flatten().map(|kv| kv.key.len() + kv.value.len()).sum();
    size_of::<RevisionEvents>() + revision.events.len() * size_of::<Event>() + data
}

fn kvs_weight(kvs: &[KeyValue]) -> usize {
    kvs.iter()
        .map(|kv| size_of::<KeyValue>() + kv.key.len() + kv.value.len())
        .sum()
}
