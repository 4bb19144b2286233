//! The newest entries of the log, in memory.
//!
//! ```text
//!            evictable            never evicted
//!        +-------------------+----------------------+
//!  disk  | written           | not yet written      |
//!        +-------------------+----------------------+
//!        first          written                   last
//! ```
//!
//! Replication and apply nearly always want what was just appended: they get the same shared pointer
//! that the proposer made, and nothing is read or decoded again. What the disk does not hold yet is
//! always here, so an entry is readable from the moment that it was appended.

use std::collections::VecDeque;

use super::super::types::{LogEntry, weight};

/// Consecutive entries, the newest of the log.
#[derive(Default)]
pub(super) struct Cache {
    entries: VecDeque<LogEntry>,
    bytes: usize,
    limit: usize,
    /// The disk holds everything before this index.
    written_end: u64,
}

impl Cache {
    /// At most `limit` bytes, beside what is not yet written. The disk holds everything before
    /// `written_end`.
    pub fn new(limit: usize, written_end: u64) -> Self {
        Self {
            limit,
            written_end,
            ..Self::default()
        }
    }

    /// The index of the first entry here, if there is any.
    pub fn first(&self) -> Option<u64> {
        self.entries.front().map(|entry| entry.log_id.index)
    }

    #[cfg(test)]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    pub fn push(&mut self, entry: LogEntry) {
        self.bytes += weight(&entry);
        self.entries.push_back(entry);
    }

    /// The entries of `start..end` that are here. They are consecutive and reach to the end of the
    /// range, or of the log.
    pub fn range(&self, start: u64, end: u64) -> impl Iterator<Item = &LogEntry> {
        let first = self.first().unwrap_or(start);
        let length = self.entries.len();
        let from = usize::try_from(start.saturating_sub(first))
            .unwrap_or(length)
            .min(length);
        let to = usize::try_from(end.saturating_sub(first))
            .unwrap_or(length)
            .min(length);
        self.entries.range(from..to.max(from))
    }

    /// The disk now holds everything before `end`.
    pub fn written(&mut self, end: u64) {
        self.written_end = end;
        self.evict();
    }

    /// Forgets the entries at `from` and beyond.
    pub fn truncate(&mut self, from: u64) {
        while self
            .entries
            .back()
            .is_some_and(|entry| entry.log_id.index >= from)
        {
            let removed = self.entries.pop_back();
            self.bytes -= removed.as_ref().map_or(0, weight);
        }
        self.written_end = self.written_end.min(from);
    }

    /// Forgets the entries up to and including `upto`.
    pub fn purge(&mut self, upto: u64) {
        while self.first().is_some_and(|first| first <= upto) {
            self.pop_front();
        }
    }

    fn evict(&mut self) {
        while self.bytes > self.limit && self.first().is_some_and(|first| first < self.written_end)
        {
            self.pop_front();
        }
    }

    fn pop_front(&mut self) {
        let removed = self.entries.pop_front();
        self.bytes -= removed.as_ref().map_or(0, weight);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::membership::LogPosition;
    use crate::raft::types::{EntryPayload, log_id};

    fn blank(index: u64) -> LogEntry {
        LogEntry {
            log_id: log_id(LogPosition { term: 1, index }),
            payload: EntryPayload::Blank,
        }
    }

    fn indexes(cache: &Cache, start: u64, end: u64) -> Vec<u64> {
        cache
            .range(start, end)
            .map(|entry| entry.log_id.index)
            .collect()
    }

    #[test]
    fn keeps_what_is_not_written_and_bounds_the_rest() {
        let one = weight(&blank(0));
        let mut cache = Cache::new(3 * one, 10);
        (10..20).for_each(|index| cache.push(blank(index)));
        assert_eq!(
            indexes(&cache, 0, 100),
            (10..20).collect::<Vec<_>>(),
            "nothing is written"
        );

        cache.written(15);
        assert_eq!(cache.first(), Some(15), "written entries go first");
        cache.written(20);
        assert_eq!(indexes(&cache, 0, 100), [17, 18, 19]);
        assert_eq!(cache.bytes(), 3 * one);
    }

    #[test]
    fn gives_the_part_of_a_range_that_it_has() {
        let mut cache = Cache::new(usize::MAX, 5);
        (5..9).for_each(|index| cache.push(blank(index)));
        assert_eq!(indexes(&cache, 6, 8), [6, 7]);
        assert_eq!(indexes(&cache, 0, 6), [5]);
        assert_eq!(indexes(&cache, 9, 12), [0; 0]);
        assert_eq!(indexes(&cache, 8, 3), [0; 0]);
    }

    #[test]
    fn truncate_and_purge_cut_the_ends() {
        let mut cache = Cache::new(usize::MAX, 0);
        (0..10).for_each(|index| cache.push(blank(index)));
        cache.written(10);
        cache.truncate(7);
        cache.purge(2);
        assert_eq!(indexes(&cache, 0, 100), [3, 4, 5, 6]);
        cache.purge(100);
        assert_eq!(cache.first(), None);
        assert_eq!(cache.bytes(), 0);
    }
}
