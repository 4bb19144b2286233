//! How much history to keep, and what automatic compaction should do about it.
//!
//! To compact by age, the core must know which revision the store was at an hour ago. So it notes
//! the revision now and then: a *clock mark*. One mark in [`MARK_EVERY_MS`] makes the answer exact
//! enough and costs nothing.

use podkv_api::Revision;

use crate::codec;
use crate::meta::read_meta;
use crate::record::state::ClockMarkV1;
use crate::schema;
use crate::state::State;
use crate::view::{View, ViewError};

const MARK_EVERY_MS: u64 = 10_000;

/// What automatic compaction should compact to now; `None` if there is nothing to do.
pub fn retention_target(view: &dyn View) -> Result<Option<Revision>, ViewError> {
    let meta = read_meta(view)?;
    let by_age = match meta.retention.keep_ms {
        Some(keep_ms) => match meta.clock_ms.checked_sub(keep_ms) {
            Some(then_ms) => revision_at(view, then_ms)?,
            None => None,
        },
        None => None,
    };
    let by_number = meta
        .retention
        .max_revisions
        .and_then(|kept| meta.revision.checked_sub(kept));
    Ok(by_age
        .max(by_number)
        .filter(|target| *target > meta.compacted_revision))
}

/// A revision that the store was at no later than `clock_ms`, as new as the marks know.
fn revision_at(view: &dyn View, clock_ms: u64) -> Result<Option<Revision>, ViewError> {
    let (start, end) = schema::clock_mark_bounds(clock_ms);
    match view.scan(&start, &end, true).next().transpose()? {
        None => Ok(None),
        Some((_, record)) => Ok(Some(decode_mark(&record)?.revision)),
    }
}

fn decode_mark(record: &[u8]) -> Result<ClockMarkV1, ViewError> {
    Ok(codec::decode_record("clock mark", record)?)
}

impl State<'_> {
    /// Merges an entry's clock, and notes the revision if it is time.
    pub(crate) fn advance_clock(&mut self, clock_ms: u64) {
        let meta = &mut self.meta;
        meta.clock_ms = meta.clock_ms.max(clock_ms);
        let due = meta.clock_ms.saturating_sub(meta.mark_clock_ms) >= MARK_EVERY_MS
            && meta.revision != meta.mark_revision
            && meta.retention.keep_ms.is_some();
        if !due {
            return;
        }
        meta.mark_clock_ms = meta.clock_ms;
        meta.mark_revision = meta.revision;
        let key = schema::clock_mark_key(meta.clock_ms);
        let mark = ClockMarkV1 {
            revision: meta.revision,
        };
        self.put_record(key, codec::encode_record(&mark));
    }

    /// Drops marks that no compaction will ask for again. True if `limit` cut it short.
    pub(crate) fn sweep_marks(&mut self, limit: usize) -> Result<bool, ViewError> {
        let (start, end) = schema::clock_mark_bounds(u64::MAX);
        let mut stale = Vec::new();
        for item in self.overlay.scan(&start, &end, false).take(limit) {
            let (key, record) = item?;
            if decode_mark(&record)?.revision >= self.meta.compacted_revision {
                break;
            }
            stale.push(key);
        }
        let more = stale.len() == limit;
        for key in stale {
            self.delete_record(key);
        }
        Ok(more)
    }
}
