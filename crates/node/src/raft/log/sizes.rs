//! How many bytes of log lie behind an index, for purging by bytes instead of by entries.
//!
//! A mark about every MiB is exact enough to keep "the newest 64 MiB", and costs nothing. What was
//! there when the log was opened is not read again for this: its bytes are spread evenly.

use std::collections::VecDeque;

/// A mark is set when this much was appended since the last one.
const MARK_BYTES: u64 = 1 << 20;

/// At most this many marks are made up for what was there at the start.
const RECOVERED_MARKS: u64 = 1024;

#[derive(Debug, Default)]
pub(super) struct Sizes {
    /// (index, bytes of the log up to and including it), ascending in both.
    marks: VecDeque<(u64, u64)>,
    /// Bytes ever counted; only differences mean anything.
    total: u64,
    /// `total` where the log begins.
    purged: u64,
}

impl Sizes {
    /// Of a log that was opened with the entries `first..=last` in `bytes`.
    pub fn recovered(range: Option<(u64, u64)>, bytes: u64) -> Self {
        let mut sizes = Self::default();
        if let Some((first, last)) = range {
            let count = last - first + 1;
            let marks = count.min(RECOVERED_MARKS);
            for mark in 1..=marks {
                let share = |whole: u64| {
                    let part = u128::from(whole) * u128::from(mark) / u128::from(marks);
                    u64::try_from(part).unwrap_or(u64::MAX)
                };
                sizes
                    .marks
                    .push_back((first + share(count) - 1, share(bytes)));
            }
            sizes.total = bytes;
        }
        sizes
    }

    /// Bytes in the log, about.
    pub fn bytes(&self) -> u64 {
        self.total - self.purged
    }

    pub fn append(&mut self, index: u64, bytes: u64) {
        self.total += bytes;
        let marked = self.marks.back().map_or(self.purged, |(_, bytes)| *bytes);
        if self.total - marked >= MARK_BYTES {
            self.marks.push_back((index, self.total));
        }
    }

    pub fn truncate(&mut self, from: u64) {
        while self.marks.back().is_some_and(|(index, _)| *index >= from) {
            self.marks.pop_back();
            self.total = self.marks.back().map_or(self.purged, |(_, bytes)| *bytes);
        }
    }

    pub fn purge(&mut self, upto: u64) {
        while self.marks.front().is_some_and(|(index, _)| *index <= upto) {
            self.purged = self
                .marks
                .pop_front()
                .map_or(self.purged, |(_, bytes)| bytes);
        }
    }

    /// Up to which index may be purged so that at least `keep` bytes stay.
    pub fn purgeable(&self, keep: u64) -> Option<u64> {
        let limit = self.total.checked_sub(keep)?;
        self.marks
            .iter()
            .take_while(|(_, bytes)| *bytes <= limit)
            .last()
            .map(|(index, _)| *index)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_at_least_what_was_asked_for() {
        let mut sizes = Sizes::default();
        (0..100).for_each(|index| sizes.append(index, MARK_BYTES / 2));
        assert_eq!(sizes.bytes(), 50 * MARK_BYTES);
        // 50 entries are 25 MiB.
        assert_eq!(sizes.purgeable(25 * MARK_BYTES), Some(49));
        assert_eq!(sizes.purgeable(1000 * MARK_BYTES), None);
        sizes.purge(49);
        assert_eq!(sizes.bytes(), 25 * MARK_BYTES);
        assert_eq!(sizes.purgeable(25 * MARK_BYTES), None);
        sizes.truncate(90);
        assert_eq!(sizes.bytes(), 20 * MARK_BYTES);
    }

    #[test]
    fn spreads_what_was_there_at_the_start() {
        let sizes = Sizes::recovered(Some((1000, 2999)), 20 * MARK_BYTES);
        assert_eq!(sizes.bytes(), 20 * MARK_BYTES);
        let upto = sizes.purgeable(10 * MARK_BYTES).unwrap();
        assert!((1980..2000).contains(&upto), "{upto}");
        assert_eq!(Sizes::recovered(None, 123).bytes(), 0);
        assert_eq!(Sizes::recovered(Some((0, 0)), 5).purgeable(0), Some(0));
    }
}
