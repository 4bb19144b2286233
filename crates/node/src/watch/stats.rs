//! What the hub counts.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// A node's watches, at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct WatchStats {
    /// Open watches that the hub serves.
    pub watchers: usize,
    /// Of these, how many get changes as they are applied.
    pub live: usize,
    /// … and how many are catching up, or too slow to be live.
    pub behind: usize,
    /// Events in memory for watchers: recent ones, those not yet fanned out, and what was read from
    /// the state and not yet taken.
    pub buffered_bytes: usize,
    /// How often a live watcher's queue was full, since the start.
    pub fell_behind_total: u64,
    /// Watches that ended because their place was compacted.
    pub compacted_total: u64,
    /// Reads of the state for watchers.
    pub reads_total: u64,
    /// Reads of the state because the hub itself fell behind the log, or a snapshot was installed.
    pub gaps_total: u64,
}

#[derive(Debug, Default)]
pub(super) struct Counters {
    pub watchers: AtomicUsize,
    pub behind: AtomicUsize,
    pub buffered_bytes: AtomicUsize,
    pub fell_behind: AtomicU64,
    pub compacted: AtomicU64,
    pub reads: AtomicU64,
    pub gaps: AtomicU64,
}

impl Counters {
    /// Nothing is watched any more.
    pub fn clear(&self) {
        for now in [&self.watchers, &self.behind, &self.buffered_bytes] {
            now.store(0, Ordering::Relaxed);
        }
    }

    pub fn read(&self, feed_bytes: usize) -> WatchStats {
        let watchers = self.watchers.load(Ordering::Relaxed);
        let behind = self.behind.load(Ordering::Relaxed);
        WatchStats {
            watchers,
            live: watchers.saturating_sub(behind),
            behind,
            buffered_bytes: self.buffered_bytes.load(Ordering::Relaxed) + feed_bytes,
            fell_behind_total: self.fell_behind.load(Ordering::Relaxed),
            compacted_total: self.compacted.load(Ordering::Relaxed),
            reads_total: self.reads.load(Ordering::Relaxed),
            gaps_total: self.gaps.load(Ordering::Relaxed),
        }
    }
}
