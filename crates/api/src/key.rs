//! Ranges of keys.

use bytes::Bytes;

/// Where a [`KeyRange`] ends.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum RangeEnd {
    /// The range holds the start key alone.
    Single,
    /// The range ends before this key.
    Before(Bytes),
    /// The range ends with the keyspace.
    Unbounded,
}

/// A contiguous range of keys, in byte order.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct KeyRange {
    pub start: Bytes,
    pub end: RangeEnd,
}

impl KeyRange {
    /// One key.
    pub fn key(key: impl Into<Bytes>) -> Self {
        Self {
            start: key.into(),
            end: RangeEnd::Single,
        }
    }

    /// Every key.
    pub fn all() -> Self {
        Self {
            start: Bytes::new(),
            end: RangeEnd::Unbounded,
        }
    }

    /// Every key from `start` on.
    pub fn from(start: impl Into<Bytes>) -> Self {
        Self {
            start: start.into(),
            end: RangeEnd::Unbounded,
        }
    }

    /// The keys `k` with `start <= k < end`.
    pub fn between(start: impl Into<Bytes>, end: impl Into<Bytes>) -> Self {
        Self {
            start: start.into(),
            end: RangeEnd::Before(end.into()),
        }
    }

    /// Every key that begins with `prefix`. An empty prefix is every key.
    pub fn prefix(prefix: impl Into<Bytes>) -> Self {
        let start = prefix.into();
        let end = match prefix_end(&start) {
            Some(end) => RangeEnd::Before(end),
            None => RangeEnd::Unbounded,
        };
        Self { start, end }
    }

    /// True if `key` lies in the range.
    pub fn contains(&self, key: &[u8]) -> bool {
        match &self.end {
            RangeEnd::Single => key == self.start,
            RangeEnd::Before(end) => key >= self.start.as_ref() && key < end.as_ref(),
            RangeEnd::Unbounded => key >= self.start.as_ref(),
        }
    }

    /// True if no key can lie in the range. `between(b, a)` with `a <= b` is empty, not an error.
    pub fn is_empty(&self) -> bool {
        matches!(&self.end, RangeEnd::Before(end) if *end <= self.start)
    }

    /// True if the range names one key, not an interval.
    pub fn is_single(&self) -> bool {
        self.end == RangeEnd::Single
    }
}

/// The first key after all keys that begin with `prefix`; `None` if there is no such key,
/// because the prefix is empty or all 0xff.
fn prefix_end(prefix: &[u8]) -> Option<Bytes> {
    let last = prefix.iter().rposition(|byte| *byte != 0xff)?;
    let mut end = prefix[..=last].to_vec();
    end[last] += 1;
    Some(end.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefix_covers_exactly_its_keys() {
        let range = KeyRange::prefix("a\u{0}");
        assert!(range.contains(b"a\0"));
        assert!(range.contains(b"a\0z"));
        assert!(!range.contains(b"a"));
        assert!(!range.contains(b"a\x01"));
    }

    #[test]
    fn prefix_of_ff_is_unbounded() {
        assert_eq!(KeyRange::prefix(&b"\xff\xff"[..]).end, RangeEnd::Unbounded);
        assert_eq!(
            KeyRange::prefix(&b"a\xff"[..]).end,
            RangeEnd::Before(Bytes::from_static(b"b"))
        );
        assert_eq!(KeyRange::prefix("").end, RangeEnd::Unbounded);
    }

    #[test]
    fn reversed_bounds_are_empty() {
        assert!(KeyRange::between("b", "a").is_empty());
        assert!(KeyRange::between("a", "a").is_empty());
        assert!(!KeyRange::between("a", "b").is_empty());
    }
}
