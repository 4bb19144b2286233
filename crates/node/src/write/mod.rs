//! Writes on their way to the log.
//!
//! [`Writer::write`] admits a proposal (bounded count, bytes and wait), hands it to one router task and waits
//! for its outcome. The router sends everything that queued meanwhile in one go:
//!
//! - on the **leader**, as one log entry, with a few entries in flight. While they are on their way to
//!   disk and followers, the queue grows, and the next entry carries it: group commit without a timer;
//! - on a **follower**, over the kept stream to the leader ([`forward`]);
//! - with **no leader**, it parks what it has until there is one; with no majority for longer than any election takes,
//!   it refuses what comes, and says why.
//!
//! # What a failure means
//!
//! A proposal is *exposed* once it was handed to Raft or to another node. An exposed proposal without an
//! answer may still be applied. If it is stamped, the router sends it again: the session makes that
//! safe. If not, the caller gets an error whose outcome is unknown. A proposal that was never exposed
//! has certainly not been applied, and its error says so.

mod admission;
mod forward;
mod handover;
mod router;

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use podkv_api::{Error, Limits, Reason, Result};
use podkv_core::{Outcome, Proposal};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub(crate) use self::admission::Admission;
pub(crate) use self::forward::serve_forward;
pub(crate) use self::handover::Handover;
pub(crate) use self::router::RouterParts;

use self::admission::Permit;
use crate::space::Alarms;

/// An outcome, and the term it was committed in.
#[derive(Clone, Debug)]
pub(crate) struct Decided {
    pub term: u64,
    pub outcome: Outcome,
}

/// Who sent a proposal to this node's router.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// A caller on this node. It is forwarded if the leader is elsewhere, and sent again if that is safe.
    Local,
    /// Another node. It is never sent on, so that two nodes with stale views cannot play ping-pong.
    Forwarded,
}

/// A proposal that waits for its outcome.
pub(crate) struct Pending {
    pub proposal: Proposal,
    pub bytes: usize,
    pub deadline: Instant,
    pub origin: Origin,
    reply: oneshot::Sender<Result<Decided>>,
    exposure: Arc<Exposure>,
    /// It is sent again after an attempt of unknown outcome.
    maybe_executed: bool,
    _permit: Permit,
}

impl Pending {
    /// Claims the right to hand the proposal on. False if its caller has given up.
    pub fn expose(&self) -> bool {
        !self.reply.is_closed() && self.exposure.expose()
    }

    /// Answers with this error if the proposal was never exposed; gives it back if it was.
    pub fn refuse(self, error: Error) -> Option<Self> {
        if !self.exposure.withdraw() {
            return Some(self);
        }
        self.answer(Err(error));
        None
    }

    /// To be sent again after an attempt that failed with `error`.
    pub fn again_after(mut self, error: &Error) -> Self {
        self.maybe_executed |= error.outcome_unknown();
        self
    }

    /// What was decided is certain, unless it was decided before a look into the session told what an attempt before had
    /// come to.
    /// An error speaks of the last attempt alone: it is no word on those before.
    pub fn answer(self, result: Result<Decided>) {
        let result = match result {
            Err(error) if self.maybe_executed => Err(error.with_unknown_outcome()),
            Ok(decided) if self.maybe_executed => match decided.outcome.result {
                Err(rejection) if rejection.is_before_session() => {
                    Err(Error::from(rejection).with_unknown_outcome())
                }
                _ => Ok(decided),
            },
            result => result,
        };
        // The caller may have given up meanwhile; then nobody is left to tell.
        let _ = self.reply.send(result);
    }

    pub fn is_abandoned(&self) -> bool {
        self.reply.is_closed()
    }

    /// True if sending it again cannot apply it twice.
    pub fn is_repeatable(&self) -> bool {
        self.origin == Origin::Local && self.proposal.stamp.is_some()
    }
}

/// Whether a proposal has left this node's hands. Decides what a timeout may claim.
#[derive(Debug, Default)]
struct Exposure(AtomicU8);

impl Exposure {
    const HELD: u8 = 0;
    const EXPOSED: u8 = 1;
    const WITHDRAWN: u8 = 2;

    fn expose(&self) -> bool {
        match self.0.compare_exchange(
            Self::HELD,
            Self::EXPOSED,
            Ordering::AcqRel,
            Ordering::Acquire,
        ) {
            Ok(_) => true,
            Err(state) => state == Self::EXPOSED,
        }
    }

    /// True if the proposal was never exposed, and now never will be.
    fn withdraw(&self) -> bool {
        self.0
            .compare_exchange(
                Self::HELD,
                Self::WITHDRAWN,
                Ordering::AcqRel,
                Ordering::Acquire,
            )
            .is_ok()
    }
}

/// The way to write, on every node. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Writer {
    inbox: mpsc::Sender<Pending>,
    admission: Admission,
    limits: Arc<Limits>,
    state: tokio::sync::watch::Receiver<crate::raft::GroupState>,
    handover: Handover,
    alarms: Alarms,
}

impl Writer {
    /// Starts the router. It ends when `stop` is cancelled.
    pub fn start(
        parts: RouterParts,
        admission: Admission,
        limits: Arc<Limits>,
        alarms: Alarms,
        tasks: &TaskTracker,
        stop: CancellationToken,
    ) -> Self {
        let (inbox, receiver) = mpsc::channel(admission.max_proposals());
        let state = parts.group.state();
        let handover = Handover::default();
        tasks.spawn(router::run(
            parts,
            receiver,
            handover.clone(),
            tasks.clone(),
            stop,
        ));
        Self {
            inbox,
            admission,
            limits,
            state,
            handover,
            alarms,
        }
    }

    /// How leadership is let go of.
    pub fn handover(&self) -> &Handover {
        &self.handover
    }

    /// Writes that were admitted and have no answer yet.
    pub fn in_flight(&self) -> usize {
        self.admission.in_flight()
    }

    /// Writes, and waits for the outcome for at most `timeout`.
    pub async fn write(
        &self,
        proposal: Proposal,
        origin: Origin,
        timeout: Duration,
    ) -> Result<Decided> {
        podkv_core::check(&proposal.command, &self.limits)?;
        // Not of what others hand on: they may have handed it to an earlier leader as well, so that to refuse it would
        // not mean that it was not applied.
        if origin == Origin::Local && podkv_core::grows(&proposal.command) {
            self.alarms.check_space()?;
        }
        let bytes = proposal.size();
        let now = Instant::now();
        let permit = self.admission.admit(bytes, now)?;
        let deadline = now + timeout;
        let (reply, answer) = oneshot::channel();
        let exposure = Arc::new(Exposure::default());
        let pending = Pending {
            proposal,
            bytes,
            deadline,
            origin,
            reply,
            exposure: exposure.clone(),
            maybe_executed: false,
            _permit: permit,
        };
        // The channel has room for everything that admission lets in.
        if self.inbox.try_send(pending).is_err() {
            return Err(stopping());
        }
        match tokio::time::timeout_at(deadline, answer).await {
            Ok(Ok(result)) => {
                if result.is_ok() {
                    self.admission.decided(bytes);
                }
                result
            }
            Ok(Err(_dropped)) => Err(given_up(&exposure, stopping())),
            Err(_elapsed) => Err(given_up(&exposure, self.timed_out(timeout))),
        }
    }

    /// Why there was no answer in time, as far as this node can tell.
    fn timed_out(&self, timeout: Duration) -> Error {
        let state = self.state.borrow();
        match state.leader {
            Some(_) => Error::new(
                Reason::DeadlineExceeded,
                format!(
                    "no answer within {timeout:?}: the leader could not reach a majority in time"
                ),
            ),
            None => Error::new(
                Reason::NoLeader,
                format!(
                    "no leader within {timeout:?}: {} voters are known here, and no majority of them \
                     agrees on one. Check that the other pods run and reach each other",
                    state
                        .members
                        .voters
                        .iter()
                        .flatten()
                        .collect::<std::collections::BTreeSet<_>>()
                        .len()
                ),
            ),
        }
    }
}

fn given_up(exposure: &Exposure, error: Error) -> Error {
    if exposure.withdraw() {
        error
    } else {
        error.with_unknown_outcome()
    }
}

fn stopping() -> Error {
    Error::new(
        Reason::NodeNotReady,
        "the node is stopping: ask another one",
    )
}

#[cfg(test)]
mod tests {
    use podkv_core::Rejection;

    use super::*;

    #[test]
    fn a_withdrawn_proposal_can_never_be_exposed() {
        let exposure = Exposure::default();
        assert!(exposure.withdraw());
        assert!(!exposure.expose());
    }

    #[test]
    fn an_exposed_proposal_cannot_be_withdrawn_and_may_be_sent_again() {
        let exposure = Exposure::default();
        assert!(exposure.expose());
        assert!(exposure.expose());
        assert!(!exposure.withdraw());
    }

    fn pending() -> (Pending, oneshot::Receiver<Result<Decided>>) {
        let (reply, answer) = oneshot::channel();
        let pending = Pending {
            proposal: podkv_core::Command::Compact { revision: 1 }.into(),
            bytes: 0,
            deadline: Instant::now(),
            origin: Origin::Local,
            reply,
            exposure: Arc::default(),
            maybe_executed: false,
            _permit: Admission::new(1, 1).admit(0, Instant::now()).unwrap(),
        };
        (pending, answer)
    }

    #[test]
    fn an_attempt_of_unknown_outcome_is_not_forgotten_when_the_next_is_refused() {
        let unknown = Error::new(Reason::LeaderChanged, "").with_unknown_outcome();
        let refused = Error::internal("raft has stopped");
        for (before, is_unknown) in [(&unknown, true), (&Error::new(Reason::NoLeader, ""), false)] {
            let (pending, mut answer) = pending();
            pending.again_after(before).answer(Err(refused.clone()));
            let told = answer.try_recv().unwrap().unwrap_err();
            assert_eq!(told.outcome_unknown(), is_unknown, "after {before}");
        }
    }

    /// Authentication was enabled between two attempts (seed 60845 of the simulation): the caller was asked who it is, opened
    /// another session, and wrote a second time.
    #[test]
    fn what_is_decided_before_the_session_is_no_word_on_an_attempt_before() {
        let unknown = Error::new(Reason::LeaderChanged, "").with_unknown_outcome();
        let decided = |reason| Decided {
            term: 2,
            outcome: Outcome {
                revision: 14,
                duplicate: false,
                result: Err(Rejection {
                    reason,
                    revision: 14,
                }),
            },
        };
        for reason in [
            Reason::CredentialsMissing,
            Reason::Unauthenticated,
            Reason::Restoring,
            Reason::SessionNotFound,
            Reason::SessionIdentity,
        ] {
            let (first, mut answer) = pending();
            first.answer(Ok(decided(reason)));
            let certain = answer.try_recv().unwrap().unwrap();
            assert_eq!(certain.outcome.result.unwrap_err().reason, reason);

            let (second, mut answer) = pending();
            second.again_after(&unknown).answer(Ok(decided(reason)));
            let told = answer.try_recv().unwrap().unwrap_err();
            assert!(
                told.outcome_unknown() && told.reason() == reason,
                "{told:?}"
            );
        }
        // All else is decided behind the look into the session.
        let (second, mut answer) = pending();
        second
            .again_after(&unknown)
            .answer(Ok(decided(Reason::LeaseNotFound)));
        assert!(answer.try_recv().unwrap().is_ok());
    }
}
