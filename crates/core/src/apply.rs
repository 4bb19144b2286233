//! The heart: entries in, effects and outcomes out.
//!
//! An [`Applier`] takes a range of entries on top of one view and gathers one batch of writes, so
//! that the node commits many entries at once. How entries are cut into batches changes nothing in
//! the state: each command sees the writes of those before it, through the overlay.

use std::sync::Arc;

use bytes::Bytes;
use podkv_api::{KeyRange, Reason};

use crate::auth::Caller;
use crate::changes::RevisionEvents;
use crate::check;
use crate::command::{Command, Entry, Proposal};
use crate::meta::{FEATURE_LEVEL, Meta};
use crate::outcome::{Answer, Outcome, Rejection};
use crate::restore;
use crate::session::Admission;
use crate::state::State;
use crate::view::{View, ViewError};

/// What a batch of entries comes to.
#[derive(Clone, Debug, Default)]
pub struct Effects {
    /// What to write, sorted by key; `None` deletes. To be committed in one batch, together with
    /// the applied position.
    pub writes: Vec<(Bytes, Option<Bytes>)>,
    /// What to tell watchers once the writes are committed: one for each revision, in order.
    pub events: Vec<Arc<RevisionEvents>>,
    /// A backup was restored. Its keys are there without ever having been events: who watched has
    /// missed them, and must be told so.
    pub restored: bool,
    /// Who may do what has changed: who was allowed to watch may not be any more.
    pub auth_changed: bool,
    /// The state as a whole, after the batch. It is among the writes too.
    pub meta: Meta,
}

/// Applies entries to a view, one batch of writes for all of them.
pub struct Applier<'v>(State<'v>);

impl<'v> Applier<'v> {
    pub fn new(view: &'v dyn View) -> Result<Self, ViewError> {
        State::new(view).map(Self)
    }

    /// One outcome for each proposal. After an error the applier and its effects are void.
    pub fn apply(&mut self, entry: &Entry) -> Result<Vec<Outcome>, ViewError> {
        self.0.advance_clock(entry.clock_ms);
        let proposals = entry.proposals.iter();
        proposals.map(|proposal| self.0.propose(proposal)).collect()
    }

    /// The state as a whole, as far as entries were applied.
    pub fn meta(&self) -> &Meta {
        &self.0.meta
    }

    pub fn finish(self) -> Effects {
        self.0.finish()
    }
}

impl State<'_> {
    fn propose(&mut self, proposal: &Proposal) -> Result<Outcome, ViewError> {
        // Only what is inside counts for the session: sent again by a caller that had to
        // authenticate again, it is the same write.
        let (caller, command) = match &proposal.command {
            Command::As { caller, command } => (Some(caller), &**command),
            command => (None, command),
        };
        // Before its session notes anything: sent again later, it is still fresh.
        if self.restoring && !restore::may_run_meanwhile(command) {
            return Ok(self.outcome(Err(self.reject(Reason::Restoring))));
        }
        if let Some(caller) = caller
            && let Err(reason) = self.rights(caller)?
        {
            return Ok(self.outcome(Err(self.reject(reason))));
        }
        let Some(stamp) = &proposal.stamp else {
            return self.execute(caller, command);
        };
        match self.admit(stamp, command)? {
            Admission::Duplicate(outcome) => Ok(outcome),
            Admission::Refused(rejection) => Ok(self.outcome(Err(rejection))),
            Admission::Fresh(digest) => {
                let outcome = self.execute(caller, command)?;
                self.keep_result(stamp, digest, &outcome)?;
                Ok(outcome)
            }
        }
    }

    /// `caller` is `None` for the cluster itself.
    fn execute(
        &mut self,
        caller: Option<&Caller>,
        command: &Command,
    ) -> Result<Outcome, ViewError> {
        // Not a rejection: the others go on at that level, and this replica cannot.
        if let Command::SetFeatureLevel(level) = command
            && *level > FEATURE_LEVEL
        {
            return Err(ViewError::newer(*level, FEATURE_LEVEL));
        }
        // A peer of another release may have checked less than apply relies on.
        let result = match check::well_formed(command) {
            Ok(()) => match caller {
                Some(caller) => self.run_as(caller, command)?,
                None => self.run(command)?,
            },
            Err(error) => Err(self.reject(error.reason())),
        };
        Ok(self.outcome(result))
    }

    fn outcome(&self, result: Result<Answer, Rejection>) -> Outcome {
        Outcome {
            revision: self.meta.revision,
            duplicate: false,
            result,
        }
    }

    fn run_as(
        &mut self,
        caller: &Caller,
        command: &Command,
    ) -> Result<Result<Answer, Rejection>, ViewError> {
        if let Err(reason) = self.permit(caller, command)? {
            return Ok(Err(self.reject(reason)));
        }
        match command {
            // A session is its opener's alone.
            Command::SessionKeepAlive { ids } => {
                Ok(Ok(self.session_keep_alive(ids, Some(caller))?))
            }
            Command::SessionClose { id } => self.session_close(*id, Some(caller)),
            command => self.run(command),
        }
    }

    fn run(&mut self, command: &Command) -> Result<Result<Answer, Rejection>, ViewError> {
        Ok(match command {
            Command::Put(put) => {
                if let Err(reason) = self.check_frozen(&KeyRange::key(put.key.clone()))? {
                    return Ok(Err(self.reject(reason)));
                }
                if let Err(reason) = self.check_put(put)? {
                    return Ok(Err(self.reject(reason)));
                }
                let mut changes = self.next_revision();
                let response = self.put_key(&mut changes, put)?;
                self.commit(changes);
                Ok(Answer::Put(response))
            }
            Command::Delete(delete) => {
                if let Err(reason) = self.check_frozen(&delete.range)? {
                    return Ok(Err(self.reject(reason)));
                }
                let mut changes = self.next_revision();
                let mut response = self.delete_range(&mut changes, delete)?;
                self.commit(changes);
                response.header.revision = self.meta.revision;
                Ok(Answer::Delete(response))
            }
            Command::Txn(txn) => self.txn(txn)?.map(Answer::Txn),
            Command::Compact { revision } => self.compact(*revision),
            Command::LeaseGrant { id, ttl_ms } => self.lease_grant(*id, *ttl_ms)?,
            Command::LeaseRevoke { id } => self.lease_revoke(*id)?,
            Command::LeaseKeepAlive { ids } => Ok(self.lease_keep_alive(ids)?),
            Command::SessionOpen {
                id,
                ttl_ms,
                identity,
            } => self.session_open(*id, *ttl_ms, identity)?,
            Command::SessionKeepAlive { ids } => Ok(self.session_keep_alive(ids, None)?),
            Command::SessionClose { id } => self.session_close(*id, None)?,
            Command::Expire { limit } => Ok(self.expire(*limit)?),
            Command::Sweep { limit } => Ok(self.sweep(*limit)?),
            Command::SetRetention(retention) => {
                self.meta.retention = *retention;
                Ok(Answer::Done)
            }
            Command::SetFeatureLevel(level) if *level < self.meta.feature_level => {
                Err(self.reject(Reason::InvalidArgument))
            }
            Command::SetFeatureLevel(level) => {
                self.meta.feature_level = *level;
                Ok(Answer::Done)
            }
            // Nobody could read anything yet, and the end of the restore raises it.
            Command::RaiseRevision { .. } if self.restoring => Ok(Answer::Done),
            Command::RaiseRevision { revision } => Ok(self.raise_revision(*revision)?),
            Command::RestoreBegin {
                backup,
                revision,
                clock_ms,
                retention,
            } => self.restore_begin(*backup, *revision, *clock_ms, *retention)?,
            Command::RestoreRecords {
                backup,
                first,
                records,
            } => self.restore_records(*backup, *first, records)?,
            Command::RestoreEnd { backup, records } => self.restore_end(*backup, *records)?,
            Command::RestoreDiscard { limit } => Ok(self.restore_discard(*limit)?),
            Command::SetDesiredSize(size) => self.set_desired_size(size)?,
            Command::Freeze { prefix } => self.freeze(prefix)?,
            Command::Thaw { prefix } => self.thaw(prefix)?,
            Command::RaiseAlarm(alarm) => self.raise_alarm(*alarm)?,
            Command::ClearAlarm(alarm) => Ok(self.clear_alarm(*alarm)),
            Command::Auth(change) => self.change_auth(change)?,
            // Unwrapped before; one inside another is malformed.
            Command::As { .. } => Err(self.reject(Reason::InvalidArgument)),
        })
    }
}
