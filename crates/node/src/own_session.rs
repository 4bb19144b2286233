//! The node's own session: what makes calls of the embedding program apply exactly once.
//!
//! It is opened at the first write and opened anew when it is found to be gone. A write that finds its
//! session gone was not executed: had it been, the session would have been alive then, and it outlives
//! every request's deadline by far.

use std::collections::BTreeSet;
use std::sync::Mutex;

use podkv_api::{Error, Reason, Result, SessionId, SessionStamp};
use podkv_core::SESSION_WINDOW;

#[derive(Debug, Default)]
pub(crate) struct OwnSession(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    id: Option<SessionId>,
    next: u64,
    /// Sequences without an answer yet.
    open: BTreeSet<u64>,
}

/// A sequence in use. Dropping it says that its answer is here, or no longer wanted.
pub(crate) struct Ticket<'a> {
    session: &'a OwnSession,
    pub stamp: SessionStamp,
}

impl OwnSession {
    /// The next sequence, or `None` if a session must be opened first.
    pub fn ticket(&self) -> Result<Option<Ticket<'_>>> {
        let mut state = self.lock();
        let Some(session) = state.id else {
            return Ok(None);
        };
        let oldest = state.open.first().copied().unwrap_or(state.next);
        if state.next - oldest >= SESSION_WINDOW {
            return Err(Error::new(
                Reason::Overloaded,
                format!(
                    "{SESSION_WINDOW} writes wait for an answer on this node: wait, then try again"
                ),
            ));
        }
        let sequence = state.next;
        state.next += 1;
        state.open.insert(sequence);
        let stamp = SessionStamp {
            session,
            sequence,
            acknowledged_below: oldest,
        };
        Ok(Some(Ticket {
            session: self,
            stamp,
        }))
    }

    pub fn opened(&self, id: SessionId) {
        let mut state = self.lock();
        *state = State {
            id: Some(id),
            next: 1,
            open: BTreeSet::new(),
        };
    }

    /// Forgets the session if it is still this one.
    pub fn lost(&self, id: SessionId) {
        let mut state = self.lock();
        if state.id == Some(id) {
            *state = State::default();
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        // Nothing below can panic half-way, so a poisoned lock still guards a sound state.
        self.0
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        let mut state = self.session.lock();
        if state.id == Some(self.stamp.session) {
            state.open.remove(&self.stamp.sequence);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn acknowledges_only_below_the_oldest_open_sequence() {
        let session = OwnSession::default();
        assert!(session.ticket().unwrap().is_none());
        session.opened(SessionId(7));
        let first = session.ticket().unwrap().unwrap();
        let second = session.ticket().unwrap().unwrap();
        assert_eq!(
            (first.stamp.sequence, first.stamp.acknowledged_below),
            (1, 1)
        );
        drop(second);
        let third = session.ticket().unwrap().unwrap();
        assert_eq!(
            third.stamp.acknowledged_below, 1,
            "the first one is still open"
        );
        drop(first);
        assert_eq!(
            session.ticket().unwrap().unwrap().stamp.acknowledged_below,
            3
        );
    }

    #[test]
    fn the_window_bounds_what_is_open() {
        let session = OwnSession::default();
        session.opened(SessionId(7));
        let open: Vec<_> = (0..SESSION_WINDOW)
            .map(|_| session.ticket().unwrap().unwrap())
            .collect();
        assert_eq!(session.ticket().err().unwrap().reason(), Reason::Overloaded);
        drop(open);
        session.ticket().unwrap().unwrap();
    }

    #[test]
    fn a_late_ticket_of_a_lost_session_touches_nothing() {
        let session = OwnSession::default();
        session.opened(SessionId(7));
        let old = session.ticket().unwrap().unwrap();
        session.lost(SessionId(7));
        session.opened(SessionId(8));
        let new = session.ticket().unwrap().unwrap();
        drop(old);
        assert_eq!(
            session.ticket().unwrap().unwrap().stamp.acknowledged_below,
            new.stamp.sequence
        );
    }
}
