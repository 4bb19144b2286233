//! Counts of ranges at one revision of the past, for a list that is read in pages while the store goes on.
//!
//! What a revision held never changes. So one walk over all keys of it gives marks that serve every later page:
//!
//! ```text
//! marks    (a, 0)            (m, 512)           (t, 1024)          1300 keys in all
//! keys     a ... f ... l      m ............ s     t ... w ... z
//! range          f <------------------------------------> w
//!                keys before w: 1024 + walk t-w
//!              - keys before f:    0 + walk a-f
//! ```
//!
//! They are made by a reader, kept in its memory, and no part of the state: see [`KeepPastCounts`].

use std::sync::Arc;

use bytes::Bytes;
use podkv_api::{KeyRange, RangeEnd, Revision};

use crate::range::Keys;
use crate::schema;
use crate::view::{View, ViewError};

/// Keys between two marks, as in a block of the present.
const STRIDE: u64 = 512;

/// Marks take at most about this: where there are more, every other one goes, and so on.
const MAX_BYTES: usize = 4 << 20;

/// What a mark takes beside its key.
const MARK_BYTES: usize = 48;

/// How many keys lay before some of the keys of a revision.
#[derive(Debug)]
pub struct PastCounts {
    at: Revision,
    total: u64,
    marks: Vec<Mark>,
}

#[derive(Debug)]
struct Mark {
    key: Bytes,
    /// Keys before this one.
    before: u64,
}

/// Where a reader keeps the counts of revisions that it read.
pub trait KeepPastCounts {
    /// What was kept of a revision. May be forgotten at any time.
    fn kept(&self, at: Revision) -> Option<Arc<PastCounts>>;

    /// The same, made and kept if it was not.
    fn keep(
        &self,
        at: Revision,
        make: &mut dyn FnMut() -> Result<PastCounts, ViewError>,
    ) -> Result<Arc<PastCounts>, ViewError>;
}

impl PastCounts {
    /// Walks all keys of a revision that can be read.
    pub(crate) fn walk(view: &dyn View, at: Revision) -> Result<Self, ViewError> {
        Self::walk_with(view, at, STRIDE, MAX_BYTES)
    }

    fn walk_with(
        view: &dyn View,
        at: Revision,
        mut stride: u64,
        max_bytes: usize,
    ) -> Result<Self, ViewError> {
        let mut marks: Vec<Mark> = Vec::new();
        let (mut total, mut bytes) = (0, 0);
        let mut keys = Keys::open(view, &KeyRange::all(), false, Some(at))?;
        while let Some((key, _)) = keys.next()? {
            if total % stride == 0 {
                bytes += key.len() + MARK_BYTES;
                // A copy: what was read may be part of something larger.
                let key = Bytes::copy_from_slice(&key);
                marks.push(Mark { key, before: total });
            }
            total += 1;
            while bytes > max_bytes && marks.len() > 1 {
                stride *= 2;
                marks.retain(|mark| mark.before % stride == 0);
                bytes = marks.iter().map(|mark| mark.key.len() + MARK_BYTES).sum();
            }
        }
        Ok(Self { at, total, marks })
    }

    pub fn revision(&self) -> Revision {
        self.at
    }

    /// How many keys a range held. The view may be of any later moment.
    pub(crate) fn count(&self, view: &dyn View, range: &KeyRange) -> Result<u64, ViewError> {
        if range.is_empty() {
            return Ok(0);
        }
        let to = match &range.end {
            RangeEnd::Single => self.before(view, &schema::just_after(&range.start))?,
            RangeEnd::Before(end) => self.before(view, end)?,
            RangeEnd::Unbounded => self.total,
        };
        to.checked_sub(self.before(view, &range.start)?)
            .ok_or_else(|| ViewError::corrupt("a revision of the past has changed"))
    }

    /// How many keys lay before one.
    fn before(&self, view: &dyn View, key: &Bytes) -> Result<u64, ViewError> {
        let marks_up_to = self.marks.partition_point(|mark| mark.key <= *key);
        let Some(mark) = self.marks.get(marks_up_to.wrapping_sub(1)) else {
            return Ok(0);
        };
        let rest = KeyRange::between(mark.key.clone(), key.clone());
        let mut keys = Keys::open(view, &rest, false, Some(self.at))?;
        Ok(mark.before + keys.count_up_to(u64::MAX)?)
    }
}

#[cfg(test)]
mod tests {
    use podkv_api::Put;

    use super::*;
    use crate::{Applier, Command, Entry, MemoryView};

    #[test]
    fn marks_are_thinned_out_and_stay_right() {
        let mut state = MemoryView::new();
        let name = |number: u64| Bytes::from(format!("{number:06}"));
        let put = |number| Command::Put(Put::new(name(number), "v")).into();
        let mut applier = Applier::new(&state).unwrap();
        let proposals = (0..2_000).map(put).collect();
        applier
            .apply(&Entry {
                clock_ms: 0,
                proposals,
            })
            .unwrap();
        let writes = applier.finish().writes;
        state.commit(writes);
        let at = crate::read_meta(&state).unwrap().revision;
        for (stride, max_bytes) in [(1, 200), (2, 4_000), (512, 1 << 20), (4_096, 1)] {
            let counts = PastCounts::walk_with(&state, at, stride, max_bytes).unwrap();
            let bytes: usize = counts
                .marks
                .iter()
                .map(|mark| mark.key.len() + MARK_BYTES)
                .sum();
            assert!(bytes <= max_bytes || counts.marks.len() == 1, "{bytes}");
            for (from, to) in [
                (0, 2_000),
                (1, 1_999),
                (511, 513),
                (700, 700),
                (1_999, 5_000),
            ] {
                let range = KeyRange::between(name(from), name(to));
                let expected = to.min(2_000) - from;
                assert_eq!(counts.count(&state, &range).unwrap(), expected);
            }
            let rest = KeyRange::from(name(1_234));
            assert_eq!(counts.count(&state, &rest).unwrap(), 766);
            assert_eq!(counts.count(&state, &KeyRange::key(name(7))).unwrap(), 1);
        }
    }
}
