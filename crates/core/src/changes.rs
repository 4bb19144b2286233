//! What changed, for watchers that have to catch up.
//!
//! New changes reach watchers from [`crate::Effects`]; one that starts in the past, or fell behind,
//! reads them from the `changes` table until it is level.

use bytes::Bytes;
use podkv_api::{Event, EventKind, KeyRange, Reason, Revision};

use crate::codec;
use crate::meta::{Meta, read_meta};
use crate::mvcc::{deleted_key_value, version_written_at};
use crate::outcome::Rejection;
use crate::record::state::{ChangeKindV1, ChangeV1};
use crate::schema;
use crate::state::reject;
use crate::view::{View, ViewError};

/// All changes of one revision, in the order of its operations.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RevisionEvents {
    pub revision: Revision,
    /// The key before is filled in wherever it is known; who did not ask for it strips it.
    pub events: Vec<Event>,
}

/// Where [`changes`] stops. Revisions are never cut, so the last one may pass the bounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChangesLimits {
    pub max_events: usize,
    /// Of keys and values.
    pub max_bytes: usize,
    /// Changes looked at, matching or not: bounds the work on a quiet range.
    pub max_scanned: usize,
}

impl Default for ChangesLimits {
    fn default() -> Self {
        Self {
            max_events: 1_000,
            max_bytes: 1024 * 1024,
            max_scanned: 10_000,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChangesPage {
    /// Only revisions with an event in the range.
    pub revisions: Vec<RevisionEvents>,
    /// Everything up to and including this revision was looked at: go on at the one after.
    pub looked_to: Revision,
}

/// The changes of the revisions `from ..= to`, of all keys or of a range. `to` beyond the present
/// is the present. [`Reason::Compacted`] if `from` is below the compacted revision.
pub fn changes(
    view: &dyn View,
    from: Revision,
    to: Revision,
    range: Option<&KeyRange>,
    limits: ChangesLimits,
) -> Result<Result<ChangesPage, Rejection>, ViewError> {
    let meta = read_meta(view)?;
    if from < meta.compacted_revision {
        return Ok(Err(reject(&meta, Reason::Compacted)));
    }
    let to = to.min(meta.revision);
    let mut page = Page {
        view,
        meta,
        revisions: Vec::new(),
        scanned: 0,
        events: 0,
        bytes: 0,
    };
    let (start, end) = schema::change_bounds(from, to.saturating_add(1));
    let mut looked_to = to;
    let mut current = 0;
    for item in view.scan(&start, &end, false) {
        let (key, record) = item?;
        let revision = schema::read_change_revision(&key)?;
        if revision != current && page.is_full(&limits) {
            looked_to = current;
            break;
        }
        current = revision;
        page.scanned += 1;
        let (change, key) = codec::decode_record_with_tail("change", &record)?;
        if range.is_none_or(|range| range.contains(&key)) {
            page.add(revision, change, key)?;
        }
    }
    Ok(Ok(ChangesPage {
        revisions: page.revisions,
        looked_to,
    }))
}

struct Page<'a> {
    view: &'a dyn View,
    meta: Meta,
    revisions: Vec<RevisionEvents>,
    scanned: usize,
    events: usize,
    bytes: usize,
}

impl Page<'_> {
    /// At least one revision was looked at, and a bound is reached.
    fn is_full(&self, limits: &ChangesLimits) -> bool {
        self.scanned > 0
            && (self.scanned >= limits.max_scanned
                || self.events >= limits.max_events
                || self.bytes >= limits.max_bytes)
    }

    fn add(&mut self, revision: Revision, change: ChangeV1, key: Bytes) -> Result<(), ViewError> {
        let event = self.event(revision, &change, key)?;
        let prev_bytes = event.prev_kv.as_ref().map_or(0, |kv| kv.value.len());
        self.bytes += event.kv.key.len() + event.kv.value.len() + prev_bytes;
        self.events += 1;
        match self.revisions.last_mut() {
            Some(last) if last.revision == revision => last.events.push(event),
            _ => self.revisions.push(RevisionEvents {
                revision,
                events: vec![event],
            }),
        }
        Ok(())
    }

    fn event(&self, revision: Revision, change: &ChangeV1, key: Bytes) -> Result<Event, ViewError> {
        let prev_kv = match change.superseded {
            // The key before is read at the revision before, so it ends with what is readable,
            // whether or not the sweep has been there: answers must not depend on its progress.
            Some(superseded) if revision > self.meta.compacted_revision => {
                let stored = version_written_at(self.view, &key, superseded)?;
                Some(
                    stored
                        .ok_or_else(|| missing(superseded))?
                        .key_value(key.clone()),
                )
            }
            _ => None,
        };
        Ok(match change.kind {
            ChangeKindV1::Put => Event {
                kind: EventKind::Put,
                kv: version_written_at(self.view, &key, revision)?
                    .ok_or_else(|| missing(revision))?
                    .key_value(key),
                prev_kv,
            },
            ChangeKindV1::Delete => Event {
                kind: EventKind::Delete,
                kv: deleted_key_value(key, revision),
                prev_kv,
            },
        })
    }
}

fn missing(revision: Revision) -> ViewError {
    ViewError::corrupt(format!(
        "the version that was written at revision {revision} is missing"
    ))
}
