//! The log: openraft's storage trait over a [`LogStore`].
//!
//! ```text
//!   raft core ── append ──► cache (readable at once) ──► queue ──► writer thread ──► LogStore: one fsync
//!      ▲                      ▲        ▲                               │
//!      └── IOFlushed ─────────│────────│───────────────────────────────┤
//!   replication, apply ── read┘   else from disk       durable end ◄───┘── apply waits for it
//! ```
//!
//! What must hold:
//! - writes reach the disk in the order of the calls; vote and truncate return after the sync;
//! - an entry is readable when `append` returns, and `IOFlushed` is called after its sync;
//! - the committed position only ever rides on a batch that is written anyway, and never names an entry
//!   that the disk does not hold: openraft refuses to start on that;
//! - a failed write ends everything: see [`writer`]. So does a read of what is damaged: see [`Failure`].

mod cache;
mod counters;
mod read;
mod sizes;
mod writer;

use std::io;
use std::path::Path;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use openraft::OptionalSend;
use openraft::storage::{IOFlushed, LogState, RaftLogStorage};
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio::time::Instant;

use self::cache::Cache;
use self::counters::Counters;
use self::read::Reader;
pub(super) use self::read::read_disk;
use self::sizes::Sizes;
use self::writer::{Job, QUEUE_BYTES, QUEUE_JOBS};
use super::failure::Failure;
use super::histogram::HistogramSnapshot;
use super::record;
use super::types::{LogEntry, LogId, TypeConfig, Vote, log_id, position, weight};
use crate::membership::LogPosition;
#[cfg(feature = "planted")]
use crate::planted;
use crate::storage::{LogRecovery, LogStore, StorageError, Worker};

/// Up to where the log is on disk.
#[derive(Clone, Debug)]
struct Durable {
    /// Everything before this index is synced.
    end: u64,
    failure: Option<Arc<str>>,
}

/// What the adapter, its readers and the writer thread share.
pub(super) struct Shared {
    store: Arc<dyn LogStore>,
    state: Mutex<State>,
    counters: Counters,
    durable: watch::Sender<Durable>,
    failure: Arc<Failure>,
    /// When the write began that the disk has not answered yet.
    writing_since: Mutex<Option<Instant>>,
}

struct State {
    vote: Option<Vote>,
    purged: Option<LogPosition>,
    /// The index of the first entry, or where it will be.
    first: u64,
    last: Option<LogPosition>,
    committed: Option<LogPosition>,
    /// The committed position is not on disk yet.
    committed_changed: bool,
    cache: Cache,
    sizes: Sizes,
    /// Counts truncations: a read that saw one happen begins again.
    truncations: u64,
}

/// What the log of a stopped node says of itself.
#[derive(Clone, Debug)]
pub(super) struct Ends {
    pub vote: Option<Vote>,
    /// The index of the first entry, or where it will be.
    pub first: u64,
    /// The last entry, or the last one that was purged if none is left.
    pub last: Option<LogPosition>,
    pub committed: Option<LogPosition>,
}

impl Ends {
    /// Blocking.
    pub fn read(store: &dyn LogStore) -> Result<Self, StorageError> {
        let State {
            vote,
            first,
            last,
            committed,
            ..
        } = State::recover(store, 0)?;
        Ok(Self {
            vote,
            first,
            last,
            committed,
        })
    }
}

/// Figures about the log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct LogStats {
    /// The index of the first entry that the log holds. If it holds none, because a snapshot covers
    /// them all, where it goes on: one behind `last`.
    pub first: u64,
    /// The index of the last entry, held or covered by a snapshot; 0 before the first one.
    pub last: u64,
    /// Bytes of the entries in the log, about.
    pub bytes: u64,
    pub disk_bytes: u64,
    pub fsyncs: u64,
    pub batches: u64,
    pub entries_written: u64,
    pub bytes_written: u64,
    /// One write of a batch with its fsync.
    pub write_latency: HistogramSnapshot,
}

/// The log of this node. Clones share it.
#[derive(Clone)]
pub(super) struct Log {
    shared: Arc<Shared>,
    jobs: mpsc::Sender<Job>,
    room: Arc<Semaphore>,
}

/// Ends the writer thread.
pub(super) struct Writer {
    jobs: mpsc::Sender<Job>,
    worker: Worker,
}

impl Writer {
    /// Writes what is queued, then waits for the thread's end.
    pub async fn stop(self) {
        // An error means that the thread has ended.
        let _ = self.jobs.send(Job::Stop).await;
        if !self.worker.join().await {
            tracing::error!("the log's writer thread panicked");
        }
    }
}

impl Log {
    /// Opens the log, and starts its writer. Blocking.
    pub fn open(
        store: Arc<dyn LogStore>,
        cache_bytes: usize,
    ) -> Result<(Self, Writer), StorageError> {
        let state = State::recover(&*store, cache_bytes)?;
        let end = state.end();
        let (durable, _) = watch::channel(Durable { end, failure: None });
        let counters = Counters::default();
        let shared = Arc::new(Shared {
            store,
            state: Mutex::new(state),
            counters,
            durable,
            failure: Arc::default(),
            writing_since: Mutex::default(),
        });
        let (jobs, queue) = mpsc::channel(QUEUE_JOBS);
        let mut batches = writer::Batches::new(shared.clone());
        let writing = shared.clone();
        let taken = move || writing.set_writing(Some(Instant::now()));
        let worker = shared
            .store
            .workers()
            .start("podkv-log", queue, taken, move |job, more| {
                batches.write(job, more)
            })
            .map_err(|error| StorageError {
                what: "the log's writer thread cannot be started".into(),
                corrupt: false,
                source: Some(Box::new(error)),
            })?;
        let room = Arc::new(Semaphore::new(QUEUE_BYTES));
        Ok((
            Self {
                shared,
                jobs: jobs.clone(),
                room,
            },
            Writer { jobs, worker },
        ))
    }

    /// Waits until everything up to `index` is synced here.
    pub async fn wait_durable(&self, index: u64) -> io::Result<()> {
        let mut durable = self.shared.durable.subscribe();
        let reached = durable
            .wait_for(|durable| durable.failure.is_some() || durable.end > index)
            .await
            .map_err(io::Error::other)?;
        match &reached.failure {
            Some(failure) => Err(io::Error::other(&**failure)),
            None => Ok(()),
        }
    }

    /// Why the log, or what is applied from it, cannot be used any more.
    pub fn failure(&self) -> Arc<Failure> {
        self.shared.failure.clone()
    }

    /// The last entry that was purged.
    pub fn purged(&self) -> Option<LogPosition> {
        self.shared.state().purged
    }

    /// The end of the log: its last entry, or the last one that was purged if none is left.
    pub fn last(&self) -> Option<LogPosition> {
        self.shared.state().last
    }

    /// Up to which index may be purged so that at least `keep_bytes` stay.
    pub fn purgeable(&self, keep_bytes: u64) -> Option<u64> {
        self.shared.state().sizes.purgeable(keep_bytes)
    }

    /// For how long the disk has not answered a write; `None` if nothing is being written.
    pub fn writing_for(&self) -> Option<Duration> {
        let since = self.shared.writing_since.lock();
        let since = *since.unwrap_or_else(PoisonError::into_inner);
        since.map(|since| since.elapsed())
    }

    pub fn stats(&self) -> LogStats {
        let counters = &self.shared.counters;
        let (first, last, bytes) = {
            let state = self.shared.state();
            let last = state.last.map_or(0, |last| last.index);
            (state.first, last, state.sizes.bytes())
        };
        LogStats {
            first,
            last,
            bytes,
            disk_bytes: self.shared.store.disk_bytes(),
            fsyncs: counters.fsyncs.load(Relaxed),
            batches: counters.batches.load(Relaxed),
            entries_written: counters.entries.load(Relaxed),
            bytes_written: counters.bytes.load(Relaxed),
            write_latency: counters.write.snapshot(),
        }
    }

    async fn queue(&self) -> io::Result<mpsc::Permit<'_, Job>> {
        self.jobs.reserve().await.map_err(|_| stopped())
    }
}

fn stopped() -> io::Error {
    io::Error::other("the log's writer thread has ended")
}

impl State {
    fn recover(store: &dyn LogStore, cache_bytes: usize) -> Result<Self, StorageError> {
        let LogRecovery {
            vote,
            purged,
            committed,
            first_index,
            last_index,
        } = store.recover()?;
        let damaged = |detail: &dyn std::fmt::Display| damaged(store, detail);
        let vote = vote
            .map(|record| record::decode_vote(&record))
            .transpose()
            .map_err(|error| damaged(&error))?;
        let position = |record: Option<bytes::Bytes>| {
            record
                .map(|record| record::decode_log_state(&record))
                .transpose()
                .map_err(|error| damaged(&error))
        };
        let (purged, committed) = (position(purged)?, position(committed)?);
        let mut state = Self {
            vote,
            purged,
            first: first_index
                .or(purged.map(|purged| purged.index + 1))
                .unwrap_or_default(),
            last: purged,
            committed,
            committed_changed: false,
            cache: Cache::default(),
            sizes: Sizes::recovered(first_index.zip(last_index), store.disk_bytes()),
            truncations: 0,
        };
        if let (Some(first), Some(last)) = (first_index, last_index) {
            if let Some(purged) = purged.filter(|purged| purged.index + 1 != first) {
                let detail = format!("it is purged up to {purged}, and begins at {first}");
                return Err(damaged(&detail));
            }
            let found = store
                .read(last, last + 1, 0)?
                .pop()
                .map(|(_, record)| record);
            let missing = || damaged(&format!("its last entry, {last}, is missing"));
            let record = found.ok_or_else(missing)?;
            let entry = record::decode_entry(&record).map_err(|error| damaged(&error))?;
            state.last = Some(super::types::position(&entry.log_id));
        }
        state.cache = Cache::new(cache_bytes, state.end());
        Ok(state)
    }

    /// One behind the last entry.
    fn end(&self) -> u64 {
        self.last.map_or(self.first, |last| last.index + 1)
    }

    /// Takes new entries. They must follow the last one.
    fn append(&mut self, entries: &[LogEntry]) -> io::Result<()> {
        for entry in entries {
            let at = position(&entry.log_id);
            if self.last.is_some_and(|last| at.index != last.index + 1) {
                let (last, text) = (self.end(), "would leave a hole in the log that ends before");
                return Err(io::Error::other(format!("entry {at} {text} index {last}")));
            }
            if self.last.is_none() {
                self.first = at.index;
            }
            self.last = Some(at);
            self.sizes.append(at.index, weight(entry) as u64);
            self.cache.push(entry.clone());
        }
        Ok(())
    }

    /// Forgets everything behind `last`.
    fn truncate(&mut self, last: Option<LogPosition>) -> u64 {
        let from = last.map_or(0, |last| last.index + 1);
        self.last = last;
        self.truncations += 1;
        self.cache.truncate(from);
        self.sizes.truncate(from);
        from
    }

    fn purge(&mut self, upto: LogPosition) {
        self.purged = self.purged.max(Some(upto));
        self.first = self.first.max(upto.index + 1);
        // It may lie beyond the tail: the log then goes on behind it.
        if self.last.is_none_or(|last| last.index <= upto.index) {
            self.last = Some(upto);
        }
        self.cache.purge(upto.index);
        self.sizes.purge(upto.index);
    }
}

fn damaged(store: &dyn LogStore, detail: impl std::fmt::Display) -> StorageError {
    StorageError::damaged(Path::new(&store.place()), detail)
}

impl Shared {
    fn set_writing(&self, since: Option<Instant>) {
        let mut writing = self.writing_since.lock();
        **writing
            .as_mut()
            .unwrap_or_else(|poisoned| poisoned.get_mut()) = since;
    }

    /// A panic while it was held left no half-done change: each is a few assignments.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn failure(&self) -> Option<String> {
        self.durable.borrow().failure.as_deref().map(str::to_owned)
    }

    fn fail(&self, failure: String) {
        self.durable
            .send_modify(|durable| durable.failure = Some(failure.into()));
    }

    fn durable_end(&self) -> u64 {
        self.durable.borrow().end
    }

    /// The disk holds everything before `end`, and nothing behind.
    fn written(&self, end: u64) {
        self.state().cache.written(end);
        self.durable.send_if_modified(|durable| {
            let changed = durable.end != end;
            durable.end = end;
            changed
        });
    }

    /// The committed position, if it should be written and names an entry before `end`.
    fn take_committed(&self, end: u64) -> Option<LogPosition> {
        let mut state = self.state();
        let due = state.committed_changed;
        let committed = state
            .committed
            .filter(|committed| due && committed.index < end)?;
        state.committed_changed = false;
        Some(committed)
    }
}

impl RaftLogStorage<TypeConfig> for Log {
    type LogReader = Reader;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, io::Error> {
        let state = self.shared.state();
        Ok(LogState {
            last_purged_log_id: state.purged.map(log_id),
            last_log_id: state.last.map(log_id),
        })
    }

    async fn get_log_reader(&mut self) -> Reader {
        Reader(self.shared.clone())
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), io::Error> {
        let (done, written) = oneshot::channel();
        self.queue().await?.send(Job::Vote {
            record: record::encode_vote(vote),
            done,
        });
        written.await.map_err(|_| stopped())??;
        self.shared.state().vote = Some(*vote);
        Ok(())
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), io::Error> {
        let mut state = self.shared.state();
        state.committed = committed.as_ref().map(position);
        state.committed_changed = true;
        Ok(())
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, io::Error> {
        Ok(self.shared.state().committed.map(log_id))
    }

    async fn append<I>(
        &mut self,
        entries: I,
        flushed: IOFlushed<TypeConfig>,
    ) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = LogEntry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries: Vec<LogEntry> = entries.into_iter().collect();
        let bytes: usize = entries.iter().map(weight).sum();
        let wanted = u32::try_from(bytes.min(QUEUE_BYTES)).unwrap_or(u32::MAX);
        let room = self
            .room
            .clone()
            .acquire_many_owned(wanted)
            .await
            .map_err(io::Error::other)?;
        let queue = self.queue().await?;
        // Nothing is awaited from here on: the cache and the queue hold the same.
        self.shared.state().append(&entries)?;
        queue.send(Job::Append {
            entries,
            bytes,
            flushed,
            room,
        });
        Ok(())
    }

    async fn truncate_after(&mut self, last: Option<LogId>) -> Result<(), io::Error> {
        let (done, written) = oneshot::channel();
        let queue = self.queue().await?;
        let last = last.as_ref().map(position);
        let from = {
            let mut state = self.shared.state();
            if last.is_some() && last >= state.last {
                // Nothing is behind it.
                return Ok(());
            }
            state.truncate(last)
        };
        queue.send(Job::Truncate { from, done });
        written.await.map_err(|_| stopped())?
    }

    async fn purge(&mut self, upto: LogId) -> Result<(), io::Error> {
        let upto = position(&upto);
        #[cfg(feature = "planted")]
        let upto = match planted::is(planted::Bug::PurgeAheadOfSnapshot) {
            true => self.last().unwrap_or(upto),
            false => upto,
        };
        let queue = self.queue().await?;
        self.shared.state().purge(upto);
        let record = record::encode_log_state(upto);
        queue.send(Job::Purge {
            upto: upto.index,
            record,
        });
        Ok(())
    }
}

#[cfg(test)]
mod tests;
