//! Reading the log: from the cache where it has the entries, else from disk, off the async threads.
//!
//! A read may run while the log is truncated or purged. Truncations are counted: a read that saw one happen
//! begins again, so parts from before and after never stand side by side.

use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};
use std::sync::Arc;

use futures_util::{Stream, stream};
use openraft::OptionalSend;
use openraft::storage::RaftLogReader;

use super::super::record;
use super::super::types::{LogEntry, TypeConfig, Vote, weight};
use super::{Shared, damaged};
use crate::storage::{LogStore, StorageError};

/// A replication request carries about this much: openraft knows no limit in bytes. One entry is
/// always sent, whatever its size.
const REPLICATION_BYTES: usize = 1 << 20;

/// Apply and recovery read the log in steps of about this much.
const READ_BYTES: usize = 4 << 20;

/// A part of a read.
enum Step {
    /// The cache has the rest, or the next part of it.
    Cached(Vec<LogEntry>),
    Disk {
        start: u64,
        end: u64,
        truncations: u64,
    },
}

impl Shared {
    fn step(&self, start: u64, end: u64, max_bytes: usize) -> Step {
        let state = self.state();
        let (start, end) = (start.max(state.first), end.min(state.end()));
        let cached_from = state.cache.first().unwrap_or(state.end());
        if start < end && start < cached_from {
            let truncations = state.truncations;
            return Step::Disk {
                start,
                end: end.min(cached_from),
                truncations,
            };
        }
        let mut bytes = 0;
        let fits = |entry: &&LogEntry| {
            let first = bytes == 0;
            bytes += weight(entry);
            first || bytes <= max_bytes
        };
        Step::Cached(
            state
                .cache
                .range(start, end)
                .take_while(fits)
                .cloned()
                .collect(),
        )
    }

    /// The first entries of `start..end` that the log holds: about `max_bytes`, at least one. Empty
    /// only if the log holds none of them.
    async fn read(
        self: &Arc<Self>,
        start: u64,
        end: u64,
        max_bytes: usize,
    ) -> io::Result<Vec<LogEntry>> {
        loop {
            let (from, to, truncations) = match self.step(start, end, max_bytes) {
                Step::Cached(entries) => return Ok(entries),
                Step::Disk {
                    start,
                    end,
                    truncations,
                } => (start, end, truncations),
            };
            let store = self.store.clone();
            let read = move || read_disk(&*store, from, to, max_bytes);
            let entries = self
                .store
                .workers()
                .spawn(read)
                .await
                .map_err(io::Error::other)?;
            // Entries that went away meanwhile are no damage: look again at what is there now.
            let moved = {
                let state = self.state();
                state.truncations != truncations || state.first > from
            };
            match entries {
                Ok(entries) if !moved => return Ok(entries),
                Err(error) if !moved => {
                    self.failure.note("the log cannot be read", &error);
                    return Err(error.into());
                }
                _ => {}
            }
        }
    }

    /// Every entry of the range that the log holds.
    async fn read_all(self: &Arc<Self>, start: u64, end: u64) -> io::Result<Vec<LogEntry>> {
        'again: loop {
            let truncations = self.state().truncations;
            let mut all: Vec<LogEntry> = Vec::new();
            let mut next = start;
            while next < end {
                let mut entries = self.read(next, end, READ_BYTES).await?;
                if self.state().truncations != truncations {
                    // Parts from before and after a truncation do not fit together.
                    continue 'again;
                }
                let Some(last) = entries.last() else { break };
                next = last.log_id.index + 1;
                all.append(&mut entries);
            }
            return Ok(all);
        }
    }
}

/// The entries from `start` to before `end`, at most about `max_bytes` but at least one; each is checked. Blocking.
pub(in crate::raft) fn read_disk(
    store: &dyn LogStore,
    start: u64,
    end: u64,
    max_bytes: usize,
) -> Result<Vec<LogEntry>, StorageError> {
    let records = store.read(start, end, max_bytes)?;
    let mut entries = Vec::with_capacity(records.len());
    for (expected, (index, record)) in (start..).zip(&records) {
        let entry = record::decode_entry(record).map_err(|error| damaged(store, error))?;
        if *index != expected || entry.log_id.index != expected {
            let found = entry.log_id.index;
            let detail = format!("index {expected} is missing, entry {found} is there");
            return Err(damaged(store, detail));
        }
        entries.push(entry);
    }
    if entries.is_empty() {
        return Err(damaged(store, format!("index {start} is missing")));
    }
    Ok(entries)
}

/// Reads the log, for replication and apply.
#[derive(Clone)]
pub(in crate::raft) struct Reader(pub(super) Arc<Shared>);

fn bounds(range: &impl RangeBounds<u64>) -> (u64, u64) {
    let start = match range.start_bound() {
        Bound::Included(start) => *start,
        Bound::Excluded(start) => start.saturating_add(1),
        Bound::Unbounded => 0,
    };
    let end = match range.end_bound() {
        Bound::Included(end) => end.saturating_add(1),
        Bound::Excluded(end) => *end,
        Bound::Unbounded => u64::MAX,
    };
    (start, end)
}

impl RaftLogReader<TypeConfig> for Reader {
    async fn try_get_log_entries<R: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: R,
    ) -> Result<Vec<LogEntry>, io::Error> {
        let (start, end) = bounds(&range);
        self.0.read_all(start, end).await
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, io::Error> {
        Ok(self.0.state().vote)
    }

    async fn limited_get_log_entries(
        &mut self,
        start: u64,
        end: u64,
    ) -> Result<Vec<LogEntry>, io::Error> {
        self.0.read(start, end, REPLICATION_BYTES).await
    }

    /// In steps: after a restart the range may be all that the log holds.
    async fn entries_stream<R>(
        &mut self,
        range: R,
    ) -> impl Stream<Item = Result<LogEntry, io::Error>> + OptionalSend
    where
        R: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let (start, end) = bounds(&range);
        let shared = self.0.clone();
        let first = (Vec::new().into_iter(), start);
        stream::try_unfold(
            first,
            move |(mut step, next): (std::vec::IntoIter<LogEntry>, u64)| {
                let shared = shared.clone();
                async move {
                    if step.len() == 0 && next < end {
                        step = shared.read(next, end, READ_BYTES).await?.into_iter();
                    }
                    Ok(step.next().map(|entry| {
                        let next = entry.log_id.index + 1;
                        (entry, (step, next))
                    }))
                }
            },
        )
    }
}
