//! How a call runs: attempts until one succeeds, the verdict on each that fails, the fence on each answer.

use std::future::Future;
use std::sync::Arc;

use podkv_api::{Error, Header, Result, SessionStamp};
use tokio::time::Instant;

use crate::endpoint::{Endpoint, Runtime};
use crate::endpoints::{Endpoints, Route};
use crate::failure::Failure;
use crate::fence::{Fence, Freshness};
use crate::retry::{Attempt, Attempts};
use crate::session::Sessions;
use crate::session::decision::{Repeat, Verdict, decide};

/// What all handles and tasks of a client share.
pub(crate) struct Core {
    pub runtime: Runtime,
    pub endpoints: Arc<Endpoints>,
    pub fence: Arc<Fence>,
    pub sessions: Sessions,
}

/// A successful attempt: the header that goes through the fence, and the answer.
pub(crate) type Answered<T> = Result<(Header, T), Failure>;

/// How a call without a stamp runs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    pub route: Route,
    pub repeat: Repeat,
    pub freshness: Freshness,
}

impl Plan {
    /// Reads, and what is the same when done twice.
    pub const READ: Self = Self {
        route: Route::Any,
        repeat: Repeat::Freely,
        freshness: Freshness::Linearizable,
    };
    /// Reads of whatever the node has.
    pub const LOCAL: Self = Self {
        freshness: Freshness::Any,
        ..Self::READ
    };
    /// Changes that are the same when done twice.
    pub const RENEW: Self = Self {
        route: Route::Leader,
        ..Self::READ
    };
    /// Changes of the membership: not twice, unless certainly not executed.
    pub const ADMIN: Self = Self {
        route: Route::Leader,
        repeat: Repeat::IfNotExecuted,
        freshness: Freshness::Any,
    };
}

impl Core {
    pub fn deadline(&self) -> Instant {
        Instant::now() + self.runtime.settings.deadline
    }

    pub fn attempts(&self, route: Route, deadline: Option<Instant>) -> Attempts {
        Attempts::new(&self.endpoints, &self.runtime, route, deadline)
    }

    /// Runs a call that carries no stamp.
    pub async fn call<T, F>(
        &self,
        plan: Plan,
        deadline: Instant,
        send: impl Fn(Arc<Endpoint>, Instant) -> F + Send,
    ) -> Result<T>
    where
        F: Future<Output = Answered<T>> + Send,
    {
        let begun = self.fence.begin();
        let mut attempts = self.attempts(plan.route, Some(deadline));
        while let Some(attempt) = attempts.next().await {
            match send(attempt.endpoint.clone(), attempt.until).await {
                Ok((header, answer)) => {
                    self.learn(&attempt, header);
                    let admitted = self.fence.admit(begun, header, plan.freshness);
                    return match plan.repeat {
                        Repeat::IfNotExecuted => admitted.map_err(Error::with_unknown_outcome),
                        Repeat::Freely | Repeat::InSession => admitted,
                    }
                    .map(|()| answer);
                }
                Err(failure) => {
                    attempts.failed(&attempt, &failure);
                    if let Verdict::Fail { outcome_unknown } = decide(plan.repeat, false, &failure)
                    {
                        let error = attempt.endpoint.explain(failure.error);
                        return Err(with_outcome(error, outcome_unknown));
                    }
                }
            }
        }
        Err(attempts.exhausted())
    }

    /// Runs a write: in a session, applied at most once however often it is sent.
    pub async fn write<T, F>(
        self: &Arc<Self>,
        send: impl Fn(Arc<Endpoint>, SessionStamp, Instant) -> F + Send,
    ) -> Result<T>
    where
        F: Future<Output = Answered<T>> + Send,
    {
        let begun = self.fence.begin();
        let deadline = self.deadline();
        let mut attempts = self.attempts(Route::Leader, Some(deadline));
        let mut ticket = Sessions::ticket(self, deadline).await?;
        let mut maybe_executed = false;
        while let Some(attempt) = attempts.next().await {
            match send(attempt.endpoint.clone(), ticket.stamp(), attempt.until).await {
                Ok((header, answer)) => {
                    self.learn(&attempt, header);
                    ticket.renewed();
                    // The write is done, but where? A refused answer is not an answer.
                    self.fence
                        .admit(begun, header, Freshness::Linearizable)
                        .map_err(Error::with_unknown_outcome)?;
                    return Ok(answer);
                }
                Err(failure) => {
                    attempts.failed(&attempt, &failure);
                    match decide(Repeat::InSession, maybe_executed, &failure) {
                        Verdict::Again {
                            maybe_executed: now,
                        } => maybe_executed = now,
                        Verdict::NewSession => {
                            ticket.session_is_lost();
                            drop(ticket);
                            ticket = Sessions::ticket(self, deadline).await?;
                        }
                        Verdict::Fail { outcome_unknown } => {
                            let error = attempt.endpoint.explain(failure.error);
                            return Err(with_outcome(error, outcome_unknown));
                        }
                    }
                }
            }
        }
        Err(with_outcome(attempts.exhausted(), maybe_executed))
    }

    fn learn(&self, attempt: &Attempt, header: Header) {
        attempt.endpoint.answered(header.member);
    }
}

/// The error, with what this client knows about the outcome: it saw all attempts, the node saw one.
pub(crate) fn with_outcome(error: Error, outcome_unknown: bool) -> Error {
    if outcome_unknown {
        error.with_unknown_outcome()
    } else if error.outcome_unknown() {
        let known = Error::new(error.reason(), error.text())
            .with_leader(error.leader().cloned())
            .with_revision(error.revision());
        known.with_source(error)
    } else {
        error
    }
}
