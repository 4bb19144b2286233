//! What the log's writer has done, for metrics. Plain atomics: nobody waits for them.

use std::sync::atomic::AtomicU64;

use crate::raft::histogram::Histogram;

/// What was written since the start.
#[derive(Debug, Default)]
pub(super) struct Counters {
    /// Batches that were synced: one fsync each.
    pub fsyncs: AtomicU64,
    /// Batches, with those that need no sync.
    pub batches: AtomicU64,
    pub entries: AtomicU64,
    /// Of the entries' records.
    pub bytes: AtomicU64,
    /// One write of a batch, with its fsync.
    pub write: Histogram,
}
