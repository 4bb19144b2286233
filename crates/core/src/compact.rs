//! Forgetting history: what may be read ends at once, what lies on disk goes in steps.
//!
//! See the end of `mvcc.rs`'s header for a compaction worked through.

use podkv_api::{CompactResponse, Reason, Revision};

use crate::codec;
use crate::outcome::{Answer, Rejection, header_at};
use crate::record::state::{ChangeKindV1, ChangeV1, SweepPlaceV1};
use crate::schema;
use crate::state::State;
use crate::view::{View, ViewError};

impl State<'_> {
    pub(crate) fn compact(&mut self, revision: Revision) -> Result<Answer, Rejection> {
        if revision > self.meta.revision {
            return Err(self.reject(Reason::FutureRevision));
        }
        if revision <= self.meta.compacted_revision {
            return Err(self.reject(Reason::Compacted));
        }
        self.meta.compacted_revision = revision;
        Ok(Answer::Compact(CompactResponse {
            header: header_at(self.meta.revision),
        }))
    }

    /// Frees what at most `limit` changes superseded, and the changes. A limit of 0 counts as 1: a
    /// sweep that never gets on would be proposed for ever.
    pub(crate) fn sweep(&mut self, limit: u32) -> Result<Answer, ViewError> {
        let limit = limit.max(1) as usize;
        let floor = self.meta.compacted_revision;
        // Changes below the swept revision are gone: starting there skips what they left behind
        // in the storage engine.
        let (start, end) = schema::change_bounds(self.meta.swept_revision, floor);
        let below = self
            .overlay
            .scan(&start, &end, false)
            .take(limit)
            .collect::<Result<Vec<_>, _>>()?;
        let swept = below.len();
        for (change_key, record) in below {
            let revision = schema::read_change_revision(&change_key)?;
            let (change, key): (ChangeV1, _) = codec::decode_record_with_tail("change", &record)?;
            if let Some(superseded) = change.superseded {
                self.delete_record(schema::history_key(&key, superseded));
            }
            if change.kind == ChangeKindV1::Delete {
                self.delete_record(schema::history_key(&key, revision));
            }
            self.delete_record(change_key);
            self.meta.swept_revision = revision;
        }
        if swept == limit {
            return Ok(Answer::Sweep { more: true });
        }
        let left = limit - swept;
        if self.meta.swept_revision < floor && !self.sweep_floor(left)? {
            return Ok(Answer::Sweep { more: true });
        }
        self.meta.swept_revision = floor;
        let more = self.sweep_marks(left)?;
        Ok(Answer::Sweep { more })
    }

    /// Frees what the changes of the floor's own revision superseded, at most `limit` of them: no revision that can be
    /// read shows it, and who deletes everything and compacts at once wants the room. The changes themselves stay, for
    /// whoever watches from there on; how far it came is a record. True when it came to their end.
    fn sweep_floor(&mut self, limit: usize) -> Result<bool, ViewError> {
        let floor = self.meta.compacted_revision;
        let place_key = schema::sweep_place_key();
        let place = self.overlay.get(&place_key)?;
        let place: Option<SweepPlaceV1> = place
            .map(|record| codec::decode_record("sweep place", &record))
            .transpose()?;
        let from = match &place {
            Some(place) if place.revision == floor => place.sub,
            _ => 0,
        };
        let start = schema::change_key(floor, from);
        let (_, end) = schema::change_bounds(floor, floor.saturating_add(1));
        let some = self
            .overlay
            .scan(&start, &end, false)
            .take(limit)
            .collect::<Result<Vec<_>, _>>()?;
        let mut sub = from;
        for (change_key, record) in &some {
            let (change, key): (ChangeV1, _) = codec::decode_record_with_tail("change", record)?;
            if let Some(superseded) = change.superseded {
                self.delete_record(schema::history_key(&key, superseded));
            }
            sub = schema::read_change_sub(change_key)?.saturating_add(1);
        }
        if some.len() == limit {
            let revision = floor;
            let place = SweepPlaceV1 { revision, sub };
            self.put_record(place_key, codec::encode_record(&place));
            return Ok(false);
        }
        if place.is_some() {
            self.delete_record(place_key);
        }
        Ok(true)
    }

    /// For recovery from a lost majority. No revision below the new one is readable afterwards, so whoever
    /// remembers one of the lost future is told so instead of reading something else. Sessions end: see
    /// `close_sessions`.
    pub(crate) fn raise_revision(&mut self, revision: Revision) -> Result<Answer, ViewError> {
        self.meta.revision = self.meta.revision.max(revision);
        self.meta.compacted_revision = self.meta.revision;
        self.restart_leases()?;
        self.close_sessions()?;
        self.forget_token_secret()?;
        Ok(Answer::Done)
    }
}
