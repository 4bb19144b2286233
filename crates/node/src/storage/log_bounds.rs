//! Which indexes a log holds, and what each write does to that.
//!
//! Pure arithmetic, shared by both implementations, so that both refuse the same mistakes:
//!
//! ```text
//!            purged upto 4        entries 5..=8
//!   index  1  2  3  4          | 5  6  7  8 |  9 ...
//!                              first     last   the next append
//! ```

use super::{LogWrite, StorageError};

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct LogBounds {
    /// Everything up to here is purged.
    pub purged: Option<u64>,
    /// The first and last entry that is held.
    pub entries: Option<(u64, u64)>,
}

impl LogBounds {
    pub fn first(&self) -> Option<u64> {
        self.entries.map(|(first, _)| first)
    }

    pub fn last(&self) -> Option<u64> {
        self.entries.map(|(_, last)| last)
    }

    pub fn contains(&self, index: u64) -> bool {
        self.entries
            .is_some_and(|(first, last)| first <= index && index <= last)
    }

    /// The part of `[start, end)` that is held, if `start` is.
    pub fn clip(&self, start: u64, end: u64) -> Option<(u64, u64)> {
        let last = self.last()?;
        (self.contains(start) && start < end).then(|| (start, end.min(last.saturating_add(1))))
    }

    /// What both hold.
    pub fn intersection(&self, other: &Self) -> Option<(u64, u64)> {
        let (first, last) = self.entries?;
        let (other_first, other_last) = other.entries?;
        let (first, last) = (first.max(other_first), last.min(other_last));
        (first <= last).then_some((first, last))
    }

    /// The bounds after `write`. An error means that the caller has lost count, which is a defect.
    pub fn apply(&mut self, write: &LogWrite) -> Result<(), StorageError> {
        match write {
            LogWrite::Vote(_) | LogWrite::Committed(_) => {}
            LogWrite::Append { index, .. } => self.append(*index)?,
            LogWrite::TruncateFrom { from } => self.truncate_from(*from)?,
            LogWrite::Purge { upto, .. } => self.purge(*upto),
        }
        Ok(())
    }

    fn append(&mut self, index: u64) -> Result<(), StorageError> {
        // So that "the index after the last one" always exists.
        if index == u64::MAX {
            return Err(StorageError::misuse("log indexes are exhausted"));
        }
        if let Some(before) = self.last().or(self.purged)
            && before.checked_add(1) != Some(index)
        {
            return Err(StorageError::misuse(format!(
                "appending log index {index} after {before}"
            )));
        }
        let first = self.first().unwrap_or(index);
        self.entries = Some((first, index));
        Ok(())
    }

    fn truncate_from(&mut self, from: u64) -> Result<(), StorageError> {
        if self.purged.is_some_and(|purged| from <= purged) {
            return Err(StorageError::misuse(format!(
                "truncating the log from {from}, which is purged"
            )));
        }
        if let Some((first, last)) = self.entries {
            self.entries = match from.checked_sub(1) {
                Some(new_last) if new_last >= first => Some((first, last.min(new_last))),
                _ => None,
            };
        }
        Ok(())
    }

    fn purge(&mut self, upto: u64) {
        // A purge never goes back: the log cannot get entries again that it gave away.
        let upto = self.purged.map_or(upto, |purged| purged.max(upto));
        self.purged = Some(upto);
        self.entries = self
            .entries
            .filter(|(_, last)| *last > upto)
            .map(|(first, last)| (first.max(upto + 1), last));
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn after(writes: &[LogWrite]) -> LogBounds {
        let mut bounds = LogBounds::default();
        for write in writes {
            bounds.apply(write).unwrap();
        }
        bounds
    }

    fn append(index: u64) -> LogWrite {
        let record = Bytes::new();
        LogWrite::Append { index, record }
    }

    fn purge(upto: u64) -> LogWrite {
        let record = Bytes::new();
        LogWrite::Purge { upto, record }
    }

    #[test]
    fn appends_are_consecutive() {
        let mut bounds = after(&[append(0), append(1)]);
        assert_eq!(bounds.entries, Some((0, 1)));
        assert!(bounds.apply(&append(3)).is_err());
        assert!(bounds.apply(&append(1)).is_err());
    }

    #[test]
    fn truncation_keeps_what_is_before() {
        let bounds = after(&[append(1), append(2), LogWrite::TruncateFrom { from: 2 }]);
        assert_eq!(bounds.entries, Some((1, 1)));
        let bounds = after(&[append(1), LogWrite::TruncateFrom { from: 0 }]);
        assert_eq!(bounds.entries, None);
        let bounds = after(&[append(1), LogWrite::TruncateFrom { from: 9 }]);
        assert_eq!(bounds.entries, Some((1, 1)));
    }

    #[test]
    fn a_purge_beyond_the_tail_says_where_to_go_on() {
        let mut bounds = after(&[append(1), append(2), purge(9)]);
        assert_eq!(bounds.entries, None);
        assert!(bounds.apply(&append(3)).is_err());
        bounds.apply(&append(10)).unwrap();
        assert_eq!(bounds.entries, Some((10, 10)));
        assert!(
            bounds.apply(&LogWrite::TruncateFrom { from: 9 }).is_err(),
            "what is purged is committed"
        );
        bounds.apply(&purge(4)).unwrap();
        assert_eq!(bounds.purged, Some(9), "a purge never goes back");
    }

    #[test]
    fn a_range_is_clipped_only_at_its_end() {
        let bounds = after(&[append(5), append(6)]);
        assert_eq!(bounds.clip(5, 99), Some((5, 7)));
        assert_eq!(bounds.clip(4, 6), None);
        assert_eq!(bounds.clip(6, 6), None);
    }
}
