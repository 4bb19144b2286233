//! Expiry: what is past its deadline goes.
//!
//! The leader looks at [`next_deadline`] and proposes `Expire`; which things are due, apply decides
//! by the deadline table and the replicated clock. The table has exactly one entry for each lease,
//! each session and each key with a TTL of its own, and a renewal moves it. So an `Expire` that was
//! proposed a moment before a keep-alive, and applied after it, finds nothing.

use podkv_api::Bytes;

use crate::codec;
use crate::mvcc::latest;
use crate::outcome::Answer;
use crate::schema::{self, Due};
use crate::state::State;
use crate::view::{View, ViewError};

/// The earliest deadline of a lease, session or key, on the cluster clock. Once the clock is
/// there, the leader proposes [`crate::Command::Expire`].
pub fn next_deadline(view: &dyn View) -> Result<Option<u64>, ViewError> {
    let (start, end) = schema::deadline_bounds(u64::MAX);
    match view.scan(&start, &end, false).next().transpose()? {
        None => Ok(None),
        Some((key, _)) => Ok(Some(schema::read_deadline_key(&key)?.0)),
    }
}

impl State<'_> {
    pub(crate) fn set_deadline(&mut self, at_ms: u64, due: &Due) {
        self.put_record(schema::deadline_key(at_ms, due), codec::encode_record(&()));
    }

    pub(crate) fn drop_deadline(&mut self, at_ms: u64, due: &Due) {
        self.delete_record(schema::deadline_key(at_ms, due));
    }

    /// Each lease is one revision, and so is each key that expires by itself. A limit of 0 counts
    /// as 1: an expiry that never gets on would be proposed for ever.
    pub(crate) fn expire(&mut self, limit: u32) -> Result<Answer, ViewError> {
        let limit = limit.max(1);
        let (start, end) = schema::deadline_bounds(self.meta.clock_ms);
        let due = self
            .overlay
            .scan(&start, &end, false)
            .take(limit as usize)
            .map(|item| schema::read_deadline_key(&item?.0))
            .collect::<Result<Vec<_>, _>>()?;
        let mut removed = 0;
        for (at_ms, due) in due {
            if removed >= u64::from(limit) {
                break;
            }
            removed += self.expire_one(at_ms, due)?;
        }
        let more = self.overlay.scan(&start, &end, false).next().transpose()?;
        Ok(Answer::Expire {
            removed,
            more: more.is_some(),
        })
    }

    fn expire_one(&mut self, at_ms: u64, due: Due) -> Result<u64, ViewError> {
        let gone = match &due {
            Due::Lease(id) => match self.lease(*id)? {
                Some(lease) if lease.expires_at_ms == at_ms => {
                    Some(1 + self.end_lease(*id, &lease)?)
                }
                _ => None,
            },
            Due::Session(id) => match self.session(*id)? {
                Some(session) if session.expires_at_ms == at_ms => {
                    Some(self.end_session(*id, &session)?)
                }
                _ => None,
            },
            Due::Key(key) => match latest(&self.overlay, key)? {
                Some(stored) if stored.meta.expires_at_ms == Some(at_ms) => {
                    self.expire_key(key)?;
                    Some(1)
                }
                _ => None,
            },
        };
        gone.ok_or_else(|| {
            ViewError::corrupt(format!("the deadline at {at_ms} ms of {due:?} is orphaned"))
        })
    }

    fn expire_key(&mut self, key: &Bytes) -> Result<(), ViewError> {
        let mut changes = self.next_revision();
        self.delete_key(&mut changes, key)?;
        self.commit(changes);
        Ok(())
    }
}
