//! Sessions: writes that are applied at most once, however often they arrive.
//!
//! A stamped write names its session and its number in it, the sequence. What it came to is kept
//! under (session, sequence), with a digest of the command. The same write again finds that and
//! gets the same outcome; it makes no revision and no event. Another write under the same sequence
//! is refused. A write in a session that is not there is refused and never executed: its first
//! copy might have been, and nobody would know.
//!
//! ```text
//!              forgotten     kept, or not seen yet          too far ahead
//! sequences  ──────────────┬──────────────────────────────┬───────────────►
//!                forgotten_below      acknowledged_below + SESSION_WINDOW
//! ```
//!
//! The sender says below which sequence it has all answers (`acknowledged_below`), and those are
//! forgotten, but in steps of [`FORGET_STEP`]: the session's record is not rewritten for each write.
//! For the same reason a write renews its session only when an eighth of the TTL has gone by.
//!
//! A session that was closed is remembered until its deadline, so that a late copy of the message
//! that opened it cannot bring it back, empty, for late copies of its writes.
//!
//! A recovery from a lost majority closes every session. A session promises that what was answered was
//! applied, and a recovery may have lost some of that.

use podkv_api::{Limits, Reason, SessionId};
use sha2::{Digest, Sha256};

use crate::auth::Caller;
use crate::codec::{self, Blob};
use crate::command::{Command, Stamp};
use crate::outcome::{Answer, Outcome, Rejection};
use crate::record::command::CommandV1;
use crate::record::outcome::OutcomeV1;
use crate::record::state::{SessionResultV1, SessionV1};
use crate::schema::{self, Due};
use crate::state::State;
use crate::view::{View, ViewError};

/// A sequence is accepted if it is less than this above its `acknowledged_below`.
pub const SESSION_WINDOW: u64 = 4096;

/// How many sessions may be open at once. A live one is never evicted for another.
pub(crate) const MAX_SESSIONS: u64 = 100_000;

const FORGET_STEP: u64 = 64;

/// A session is renewed by a write when this part of its TTL has gone by.
const RENEW_AFTER: u64 = 8;

/// Larger outcomes are kept as their revision alone.
const MAX_KEPT_OUTCOME_BYTES: usize = 1024;

/// What a stamp comes to.
pub(crate) enum Admission {
    /// Applied before: this was the outcome.
    Duplicate(Outcome),
    /// To be executed, and then recorded under this digest.
    Fresh([u8; 16]),
    Refused(Rejection),
}

impl State<'_> {
    pub(crate) fn session(&mut self, id: SessionId) -> Result<Option<SessionV1>, ViewError> {
        if let Some(cached) = self.session_cache.get(&id) {
            return Ok(cached.clone());
        }
        let session = match self.overlay.get(&schema::session_key(id))? {
            None => None,
            Some(record) => Some(codec::decode_record("session", &record)?),
        };
        self.session_cache.insert(id, session.clone());
        Ok(session)
    }

    fn put_session(&mut self, id: SessionId, session: SessionV1) {
        self.put_record(schema::session_key(id), codec::encode_record(&session));
        self.session_cache.insert(id, Some(session));
    }

    /// Decides whether a stamped command is executed.
    pub(crate) fn admit(
        &mut self,
        stamp: &Stamp,
        command: &Command,
    ) -> Result<Admission, ViewError> {
        let (id, sequence) = (stamp.session.session, stamp.session.sequence);
        let session = match self.session(id)? {
            Some(session) if !session.closed => session,
            _ => return Ok(self.refuse(Reason::SessionNotFound)),
        };
        if session.identity.0 != stamp.identity {
            return Ok(self.refuse(Reason::SessionIdentity));
        }
        let digest = digest(command);
        if let Some(record) = self
            .overlay
            .get(&schema::session_result_key(id, sequence))?
        {
            let (kept, outcome): (SessionResultV1, _) =
                codec::decode_record_with_tail("session result", &record)?;
            if kept.digest != digest {
                return Ok(self.refuse(Reason::SessionPayloadMismatch));
            }
            let outcome: OutcomeV1 = codec::decode("session result", &outcome)?;
            let mut outcome = Outcome::try_from(outcome)?;
            outcome.duplicate = true;
            self.touch(stamp, session)?;
            return Ok(Admission::Duplicate(outcome));
        }
        let acknowledged_below = stamp.session.acknowledged_below;
        let lowest = session.forgotten_below.max(acknowledged_below).max(1);
        if sequence < lowest || sequence - acknowledged_below >= SESSION_WINDOW {
            return Ok(self.refuse(Reason::SessionSequence));
        }
        self.touch(stamp, session)?;
        Ok(Admission::Fresh(digest))
    }

    fn refuse(&self, reason: Reason) -> Admission {
        Admission::Refused(self.reject(reason))
    }

    /// Renews the session and forgets what was acknowledged, if it is time for either.
    fn touch(&mut self, stamp: &Stamp, mut session: SessionV1) -> Result<(), ViewError> {
        let id = stamp.session.session;
        let mut changed = false;
        let renewed = self.meta.clock_ms.saturating_add(session.ttl_ms);
        if renewed - session.expires_at_ms.min(renewed) >= session.ttl_ms / RENEW_AFTER {
            self.move_session_deadline(id, &mut session, renewed);
            changed = true;
        }
        let acknowledged_below = stamp.session.acknowledged_below;
        if acknowledged_below >= session.forgotten_below.saturating_add(FORGET_STEP) {
            self.forget_results(id, Some(acknowledged_below))?;
            session.forgotten_below = acknowledged_below;
            changed = true;
        }
        if changed {
            self.put_session(id, session);
        }
        Ok(())
    }

    fn move_session_deadline(&mut self, id: SessionId, session: &mut SessionV1, to_ms: u64) {
        self.drop_deadline(session.expires_at_ms, &Due::Session(id));
        self.set_deadline(to_ms, &Due::Session(id));
        session.expires_at_ms = to_ms;
    }

    fn forget_results(&mut self, id: SessionId, below: Option<u64>) -> Result<(), ViewError> {
        let (start, end) = schema::session_result_bounds(id, below);
        let results = self
            .overlay
            .scan(&start, &end, false)
            .map(|item| item.map(|(key, _)| key))
            .collect::<Result<Vec<_>, _>>()?;
        for key in results {
            self.delete_record(key);
        }
        Ok(())
    }

    /// Keeps what a stamped command came to.
    pub(crate) fn keep_result(
        &mut self,
        stamp: &Stamp,
        digest: [u8; 16],
        outcome: &Outcome,
    ) -> Result<(), ViewError> {
        let id = stamp.session.session;
        // The command may have closed its own session.
        if self.session(id)?.is_none_or(|session| session.closed) {
            return Ok(());
        }
        let mut bytes = codec::encode(&OutcomeV1::from(outcome));
        if bytes.len() > MAX_KEPT_OUTCOME_BYTES {
            bytes = codec::encode(&OutcomeV1::from(&Outcome {
                result: Ok(Answer::RevisionOnly),
                ..*outcome
            }));
        }
        self.put_record(
            schema::session_result_key(id, stamp.session.sequence),
            codec::encode_record_with_tail(&SessionResultV1 { digest }, &bytes),
        );
        Ok(())
    }

    pub(crate) fn session_open(
        &mut self,
        id: SessionId,
        ttl_ms: u64,
        identity: &podkv_api::Bytes,
    ) -> Result<Result<Answer, Rejection>, ViewError> {
        let ttl_ms = ttl_ms.max(Limits::MIN_LEASE_TTL_MS);
        let expires_at_ms = self.meta.clock_ms.saturating_add(ttl_ms);
        let session = match self.session(id)? {
            // The answer to the first copy was lost: the same sender opens it again.
            Some(mut session) if !session.closed && session.identity.0 == *identity => {
                self.move_session_deadline(id, &mut session, expires_at_ms);
                session.ttl_ms = ttl_ms;
                session
            }
            Some(_) => return Ok(Err(self.reject(Reason::SessionExists))),
            None if self.meta.sessions >= MAX_SESSIONS => {
                return Ok(Err(self.reject(Reason::Overloaded)));
            }
            None => {
                self.meta.sessions += 1;
                self.set_deadline(expires_at_ms, &Due::Session(id));
                SessionV1 {
                    identity: identity.into(),
                    ttl_ms,
                    expires_at_ms,
                    forgotten_below: 0,
                    closed: false,
                }
            }
        };
        self.put_session(id, session);
        Ok(Ok(Answer::SessionOpen { ttl_ms }))
    }

    /// Another caller's session is none. `None` is the cluster itself.
    pub(crate) fn session_keep_alive(
        &mut self,
        ids: &[SessionId],
        caller: Option<&Caller>,
    ) -> Result<Answer, ViewError> {
        let mut ttls = Vec::with_capacity(ids.len());
        for &id in ids {
            let open = self.session(id)?;
            let open = open.filter(|session| !session.closed && session.is_of(caller));
            ttls.push(open.as_ref().map(|session| session.ttl_ms));
            if let Some(session) = open {
                self.restart_session(id, session);
            }
        }
        Ok(Answer::SessionKeepAlive(ttls))
    }

    fn restart_session(&mut self, id: SessionId, mut session: SessionV1) {
        let renewed = self.meta.clock_ms.saturating_add(session.ttl_ms);
        self.move_session_deadline(id, &mut session, renewed);
        self.put_session(id, session);
    }

    pub(crate) fn session_close(
        &mut self,
        id: SessionId,
        caller: Option<&Caller>,
    ) -> Result<Result<Answer, Rejection>, ViewError> {
        match self.session(id)? {
            Some(session) if !session.closed && !session.is_of(caller) => {
                Ok(Err(self.reject(Reason::SessionIdentity)))
            }
            Some(session) if !session.closed => {
                self.forget_results(id, None)?;
                self.meta.sessions = self.meta.sessions.saturating_sub(1);
                let closed = SessionV1 {
                    identity: Blob::default(),
                    closed: true,
                    ..session
                };
                self.put_session(id, closed);
                Ok(Ok(Answer::SessionClose))
            }
            _ => Ok(Err(self.reject(Reason::SessionNotFound))),
        }
    }

    /// Removes a session that is past its deadline. Says how much that was.
    pub(crate) fn end_session(
        &mut self,
        id: SessionId,
        session: &SessionV1,
    ) -> Result<u64, ViewError> {
        self.forget_results(id, None)?;
        if !session.closed {
            self.meta.sessions = self.meta.sessions.saturating_sub(1);
        }
        self.drop_deadline(session.expires_at_ms, &Due::Session(id));
        self.delete_record(schema::session_key(id));
        self.session_cache.insert(id, None);
        Ok(1)
    }

    /// Closes every session: what was answered in it may be lost, and a session promises that it is not.
    ///
    /// Nothing that was stamped before is executed or answered afterwards. A sender whose write was under
    /// way is told that its session is gone, and cannot know the outcome, which is the truth. The closed
    /// sessions are remembered for a full TTL, for late copies of the messages that opened them.
    pub(crate) fn close_sessions(&mut self) -> Result<(), ViewError> {
        let (start, end) = schema::session_bounds();
        let ids = self
            .overlay
            .scan(&start, &end, false)
            .map(|item| schema::read_session_key(&item?.0))
            .collect::<Result<Vec<_>, _>>()?;
        for id in ids {
            // It may be closed already.
            let _ = self.session_close(id, None)?;
            if let Some(session) = self.session(id)? {
                self.restart_session(id, session);
            }
        }
        Ok(())
    }
}

impl SessionV1 {
    fn is_of(&self, caller: Option<&Caller>) -> bool {
        caller.is_none_or(|caller| self.identity.0 == caller.identity())
    }
}

/// Names the payload of a command: the same command, the same digest.
fn digest(command: &Command) -> [u8; 16] {
    let mut hash = Sha256::new();
    codec::hash_into(&mut hash, &CommandV1::from(command));
    let mut digest = [0; 16];
    for (target, source) in digest.iter_mut().zip(hash.finalize()) {
        *target = source;
    }
    digest
}
