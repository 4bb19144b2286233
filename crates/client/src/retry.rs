//! The attempts of one call: whom to ask, how long to wait in between, when to stop.
//!
//! The first round asks every endpoint at once, one after the other. Each further round waits for a
//! backoff that grows, so that an outage is met by a few attempts a second and not by a busy loop.

use std::sync::Arc;
use std::time::Duration;

use podkv_api::{Error, ErrorKind, Reason};
use tokio::time::{Instant, sleep_until};

use crate::endpoint::{Endpoint, Runtime};
use crate::endpoints::{Endpoints, Pick, Route};
use crate::failure::{Failure, Fate, closed};

/// One attempt: ask this endpoint, until then.
#[derive(Debug)]
pub(crate) struct Attempt {
    pub endpoint: Arc<Endpoint>,
    pub until: Instant,
    /// Of the credentials that it begins with.
    pub generation: u64,
}

pub(crate) struct Attempts {
    endpoints: Arc<Endpoints>,
    runtime: Runtime,
    route: Route,
    /// `None`: for as long as somebody waits.
    deadline: Option<Instant>,
    /// In this round.
    asked: Vec<Arc<Endpoint>>,
    rounds: u32,
    count: u32,
    /// The longest time that a node advised to wait, in this round.
    advised: Duration,
    last: Option<Error>,
    /// Attempts that ended with a token that was refused. One is an accident.
    tokens_refused: u32,
}

impl Attempts {
    pub fn new(
        endpoints: &Arc<Endpoints>,
        runtime: &Runtime,
        route: Route,
        deadline: Option<Instant>,
    ) -> Self {
        Self {
            endpoints: endpoints.clone(),
            runtime: runtime.clone(),
            route,
            deadline,
            asked: Vec::new(),
            rounds: 0,
            count: 0,
            advised: Duration::ZERO,
            last: None,
            tokens_refused: 0,
        }
    }

    /// The next attempt. `None` when the deadline has passed or the client is closed.
    pub async fn next(&mut self) -> Option<Attempt> {
        loop {
            let now = Instant::now();
            if self.runtime.stop.is_cancelled()
                || self.tokens_refused > 1
                || self.deadline.is_some_and(|at| now >= at)
            {
                return None;
            }
            let pick = self.endpoints.pick(self.route, &self.asked, now);
            let awake_at = match pick {
                Pick::Ask(endpoint) => {
                    self.count += 1;
                    self.asked.push(endpoint.clone());
                    let until = now + self.runtime.settings.attempt_timeout;
                    let until = self.deadline.map_or(until, |deadline| until.min(deadline));
                    let generation = endpoint.generation();
                    return Some(Attempt {
                        endpoint,
                        until,
                        generation,
                    });
                }
                Pick::Exhausted | Pick::Rest(None) => now,
                Pick::Rest(Some(at)) => at,
            };
            self.asked.clear();
            self.endpoints.mark_stale();
            // Of this call's own, beside the endpoints' rest: one that answers and then fails, again and
            // again, is woken by each answer.
            self.rounds += 1;
            let advised = std::mem::take(&mut self.advised);
            let until = awake_at.max(now + advised + self.runtime.settings.backoff(self.rounds));
            let until = self.deadline.map_or(until, |at| until.min(at));
            tokio::select! {
                () = self.runtime.stop.cancelled() => return None,
                () = sleep_until(until) => {}
            }
        }
    }

    /// From now on it goes on for as long as somebody waits.
    pub fn forget_deadline(&mut self) {
        self.deadline = None;
    }

    pub fn succeeded(&self, attempt: &Attempt) {
        attempt.endpoint.healthy();
    }

    /// Learns from a failure: about the endpoint's health, and about who leads.
    pub fn failed(&mut self, attempt: &Attempt, failure: &Failure) {
        let endpoint = &attempt.endpoint;
        let error = &failure.error;
        self.tokens_refused += u32::from(failure.again);
        // The node answers and is no use now, as when it is cut off from the others. Elsewhere, rather.
        let is_about_node = matches!(
            error.reason(),
            Reason::NodeNotReady | Reason::NoLeader | Reason::DeadlineExceeded
        );
        match failure.fate {
            Fate::Refused if !is_about_node => endpoint.healthy(),
            Fate::NotSent | Fate::Lost | Fate::Refused => {
                endpoint.failed(Instant::now());
                self.endpoints.not_leading(endpoint);
                self.endpoints.mark_stale();
            }
        }
        if matches!(error.reason(), Reason::NotLeader | Reason::NoLeader) {
            self.endpoints.not_leading(endpoint);
            self.endpoints.mark_stale();
        }
        if let Some(leader) = error.leader() {
            self.endpoints.hinted(leader);
        }
        self.advised = self.advised.max(error.retry_after().unwrap_or_default());
        self.last = Some(endpoint.explain(failure.error.clone()));
    }

    /// What to say when [`Attempts::next`] gave `None`.
    pub fn exhausted(&self) -> Error {
        if self.runtime.stop.is_cancelled() {
            return closed();
        }
        let after = self.runtime.settings.deadline;
        let count = self.count;
        match &self.last {
            // What the nodes say about themselves tells more than "too late".
            Some(last) if last.kind() == ErrorKind::Exhausted => last.clone(),
            // Another token was refused, too.
            Some(last) if self.tokens_refused > 1 => last.clone(),
            Some(last) => Error::new(
                Reason::DeadlineExceeded,
                format!(
                    "no success within {after:?} and {count} attempts; the last one: {}",
                    last.text()
                ),
            )
            .with_leader(last.leader().cloned())
            .with_source(last.clone()),
            None => Error::new(
                Reason::Unreachable,
                format!("no endpoint is known after {after:?}: does the service's name resolve?"),
            ),
        }
    }
}
