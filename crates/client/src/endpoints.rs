//! The endpoints of a cluster, and which of them to ask next.
//!
//! ```text
//!   members   learned from the cluster and found to answer under their own addresses
//!   given     what the user gave, and what a service's name resolves to
//! ```
//!
//! Members come first: they are all of the cluster, and they are names, so a pod that moved is found
//! again. What was given is asked while no member can be: before any is known, and from outside,
//! where members' own addresses may lead nowhere (a port-forward, a load balancer).
//!
//! Health is by results: an endpoint that failed rests for a backoff that grows with each failure in
//! a row. [`Endpoints::pick`] is synchronous and decides from what is known now.

use std::sync::{Arc, Mutex};

use podkv_api::LeaderHint;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::endpoint::{Endpoint, lock};

/// Whom a call would like to have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Route {
    /// The leader, if it is known: it spares a write one hop. Any other node will do.
    Leader,
    /// Whoever is next: reads are spread over all nodes.
    Any,
}

#[derive(Debug)]
pub(crate) enum Pick {
    Ask(Arc<Endpoint>),
    /// Everybody who may be asked now has been asked.
    Exhausted,
    /// Nobody may be asked before then; `None` if there is nobody at all.
    Rest(Option<Instant>),
}

#[derive(Debug, Default)]
struct State {
    /// From the builder, in its order.
    listed: Vec<Arc<Endpoint>>,
    /// `listed`, and what the services' names resolve to.
    given: Vec<Arc<Endpoint>>,
    members: Vec<Arc<Endpoint>>,
    leader: Option<LeaderHint>,
    /// The highest term that was heard of: news from lower ones are old.
    term: u64,
    /// Where the round of reads goes on.
    turn: usize,
}

#[derive(Debug, Default)]
pub(crate) struct Endpoints {
    state: Mutex<State>,
    /// Something went wrong, or is not known: look around soon.
    stale: Notify,
}

impl Endpoints {
    pub fn new(listed: Vec<Arc<Endpoint>>) -> Self {
        Self {
            state: Mutex::new(State {
                given: listed.clone(),
                listed,
                ..State::default()
            }),
            stale: Notify::new(),
        }
    }

    /// Chooses among those that are not resting and not in `asked`.
    pub fn pick(&self, route: Route, asked: &[Arc<Endpoint>], now: Instant) -> Pick {
        let mut state = lock(&self.state);
        state.turn = state.turn.wrapping_add(1);
        let mut earliest: Option<Instant> = None;
        let mut anybody_awake = false;
        for tier in [&state.members, &state.given] {
            let mut chosen = None;
            let (before, from) = tier.split_at(state.turn % tier.len().max(1));
            for endpoint in from.iter().chain(before) {
                if let Some(at) = endpoint.retry_at(now) {
                    earliest = Some(earliest.map_or(at, |early| early.min(at)));
                    continue;
                }
                anybody_awake = true;
                if asked.iter().any(|one| one.address() == endpoint.address()) {
                    continue;
                }
                if route == Route::Leader && state.leads(endpoint) {
                    return Pick::Ask(endpoint.clone());
                }
                chosen = chosen.or(Some(endpoint));
            }
            if let Some(endpoint) = chosen {
                return Pick::Ask(endpoint.clone());
            }
        }
        if anybody_awake {
            Pick::Exhausted
        } else {
            Pick::Rest(earliest)
        }
    }

    /// All of them, members first, each address once.
    pub fn all(&self) -> Vec<Arc<Endpoint>> {
        let state = lock(&self.state);
        let mut all = state.members.clone();
        for endpoint in &state.given {
            if !all.iter().any(|one| one.address() == endpoint.address()) {
                all.push(endpoint.clone());
            }
        }
        all
    }

    /// The members if they are known, else what was given: each node once, as far as can be told.
    pub fn nodes(&self) -> Vec<Arc<Endpoint>> {
        let state = lock(&self.state);
        if state.members.is_empty() {
            state.given.clone()
        } else {
            state.members.clone()
        }
    }

    pub fn find(&self, address: &str) -> Option<Arc<Endpoint>> {
        self.all()
            .into_iter()
            .find(|endpoint| endpoint.address() == address)
    }

    pub fn set_resolved(&self, resolved: Vec<Arc<Endpoint>>) {
        let mut state = lock(&self.state);
        state.given = state.listed.iter().cloned().chain(resolved).collect();
    }

    pub fn set_members(&self, members: Vec<Arc<Endpoint>>) {
        lock(&self.state).members = members;
    }

    /// Somebody in `term` says who leads.
    pub fn heard_of_leader(&self, leader: Option<LeaderHint>, term: u64) {
        let mut state = lock(&self.state);
        if term < state.term {
            return;
        }
        if leader.is_some() || term > state.term {
            state.leader = leader;
        }
        state.term = term;
    }

    /// An error named the leader. It has no term; being wrong costs one more attempt.
    pub fn hinted(&self, leader: &LeaderHint) {
        lock(&self.state).leader = Some(leader.clone());
    }

    pub fn leader(&self) -> Option<LeaderHint> {
        lock(&self.state).leader.clone()
    }

    /// The endpoint failed or says that it does not lead.
    pub fn not_leading(&self, endpoint: &Endpoint) {
        let mut state = lock(&self.state);
        if state.leads(endpoint) {
            state.leader = None;
        }
    }

    /// Asks for a look around.
    pub fn mark_stale(&self) {
        self.stale.notify_one();
    }

    pub async fn stale(&self) {
        self.stale.notified().await;
    }

    /// Lets go of every connection.
    pub fn clear(&self) {
        *lock(&self.state) = State::default();
    }
}

impl State {
    fn leads(&self, endpoint: &Endpoint) -> bool {
        self.leader.as_ref().is_some_and(|leader| {
            endpoint.member() == Some(leader.member)
                || (endpoint.member().is_none() && endpoint.address() == leader.client_address)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::endpoint::Runtime;
    use podkv_api::MemberId;
    use std::time::Duration;

    fn leader_is(id: u64) -> Option<LeaderHint> {
        Some(LeaderHint {
            member: MemberId(id),
            client_address: String::new(),
        })
    }

    fn endpoint(address: &str) -> Arc<Endpoint> {
        let runtime = Runtime {
            settings: Arc::default(),
            dialer: Arc::new(crate::dial::Tcp),
            tls: None,
            credentials: None,
            tasks: Default::default(),
            stop: Default::default(),
        };
        Arc::new(Endpoint::new(address, &runtime).unwrap())
    }

    fn pick(endpoints: &Endpoints, route: Route, asked: &[Arc<Endpoint>]) -> Option<String> {
        match endpoints.pick(route, asked, Instant::now()) {
            Pick::Ask(endpoint) => Some(endpoint.address().to_owned()),
            _ => None,
        }
    }

    #[tokio::test]
    async fn reads_go_round_and_writes_go_to_the_leader() {
        let [a, b, c] = ["a:1", "b:1", "c:1"].map(endpoint);
        let endpoints = Endpoints::new(vec![a, b.clone(), c]);
        let mut reads: Vec<_> = (0..3)
            .map(|_| pick(&endpoints, Route::Any, &[]).unwrap())
            .collect();
        reads.sort();
        assert_eq!(reads, ["a:1", "b:1", "c:1"]);

        b.answered(MemberId(7));
        endpoints.heard_of_leader(leader_is(7), 3);
        for _ in 0..3 {
            assert_eq!(pick(&endpoints, Route::Leader, &[]).as_deref(), Some("b:1"));
        }
        // News from an older term are not news.
        endpoints.heard_of_leader(leader_is(8), 2);
        assert_eq!(endpoints.leader(), leader_is(7));
        // Asked once already: another one then.
        assert_ne!(
            pick(&endpoints, Route::Leader, &[b]).as_deref(),
            Some("b:1")
        );
    }

    #[tokio::test(start_paused = true)]
    async fn the_failed_rest_and_what_was_given_steps_in_for_members() {
        let [member, given] = ["member:1", "given:1"].map(endpoint);
        let endpoints = Endpoints::new(vec![given.clone()]);
        endpoints.set_members(vec![member.clone()]);
        assert_eq!(
            pick(&endpoints, Route::Any, &[]).as_deref(),
            Some("member:1")
        );
        member.failed(Instant::now());
        assert_eq!(
            pick(&endpoints, Route::Any, &[]).as_deref(),
            Some("given:1")
        );
        assert!(matches!(
            endpoints.pick(Route::Any, std::slice::from_ref(&given), Instant::now()),
            Pick::Exhausted
        ));
        given.failed(Instant::now());
        let Pick::Rest(Some(until)) = endpoints.pick(Route::Any, &[], Instant::now()) else {
            panic!("somebody is awake");
        };
        tokio::time::sleep_until(until + Duration::from_millis(30)).await;
        assert!(pick(&endpoints, Route::Any, &[]).is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn failures_of_one_burst_count_once() {
        let endpoint = endpoint("a:1");
        for _ in 0..1000 {
            endpoint.failed(Instant::now());
        }
        let retry_at = endpoint.retry_at(Instant::now()).unwrap();
        assert!(retry_at - Instant::now() <= Duration::from_millis(25));
    }

    #[test]
    fn nobody_at_all_is_told_apart() {
        let endpoints = Endpoints::default();
        assert!(matches!(
            endpoints.pick(Route::Any, &[], Instant::now()),
            Pick::Rest(None)
        ));
    }
}
