//! The one task that sends proposals where the leader is.

use std::collections::VecDeque;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use podkv_api::{Error, MemberId, Reason};
use podkv_core::{Entry, Proposal};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::forward::ForwardStream;
use super::handover::Handover;
use super::{Decided, Origin, Pending};
use crate::clock::LeaderClock;
use crate::peer::pool::PeerPool;
use crate::raft::{Committed, Group, GroupState, Payload};

/// Entries that the leader has in flight at once. More would make entries smaller under load, fewer
/// would leave disk or network idle.
const MAX_ENTRIES_IN_FLIGHT: usize = 4;
/// The most that one entry carries.
const MAX_ENTRY_PROPOSALS: usize = 4096;
const MAX_ENTRY_BYTES: usize = 1 << 20;
/// How often parked proposals are looked at when nothing else happens. Only waiting for a leader is on
/// this timer, never a write that has one.
const PARKED_RETRY: Duration = Duration::from_millis(50);

pub(crate) struct RouterParts {
    pub group: Group,
    pub peers: PeerPool,
    pub me: MemberId,
    /// The clock while this node leads; shared with whoever else needs it.
    pub clock: tokio::sync::watch::Sender<Option<LeaderClock>>,
    /// When no majority has followed a leader for so long, writes are refused at once. Far longer than an election,
    /// which they wait for.
    pub leaderless: Duration,
    /// A leader whom no majority has followed for so long proposes nothing until one does. A majority that is there would
    /// have followed another one by then.
    pub quorum_patience: Duration,
}

type InFlight = BoxFuture<'static, (podkv_api::Result<Committed>, Vec<Pending>)>;

struct Router {
    parts: RouterParts,
    /// Taken from the inbox, not yet sent.
    queue: VecDeque<Pending>,
    in_flight: FuturesUnordered<InFlight>,
    forward: Option<ForwardStream>,
    /// Gives back what a broken forward stream held and may be sent again.
    returns: mpsc::Sender<Pending>,
    /// Do not send before this instant: the last attempt found that our view of the leader is stale.
    hold_until: Option<Instant>,
    started: Instant,
    handover: Handover,
    tasks: TaskTracker,
    stop: CancellationToken,
}

pub(crate) async fn run(
    parts: RouterParts,
    mut inbox: mpsc::Receiver<Pending>,
    handover: Handover,
    tasks: TaskTracker,
    stop: CancellationToken,
) {
    let mut state = parts.group.state();
    let mut held = handover.changes();
    let (returns, mut returned) = mpsc::channel(inbox.max_capacity());
    let mut router = Router {
        parts,
        queue: VecDeque::new(),
        in_flight: FuturesUnordered::new(),
        forward: None,
        returns,
        hold_until: None,
        started: Instant::now(),
        handover,
        tasks,
        stop: stop.clone(),
    };
    let mut batch = Vec::new();
    loop {
        held.mark_unchanged();
        router.send(&state.borrow_and_update().clone());
        if router.in_flight.is_empty() {
            router.handover.nothing_in_flight();
        }
        let room = MAX_ENTRY_PROPOSALS.saturating_sub(router.queue.len());
        tokio::select! {
            biased;
            () = stop.cancelled() => break,
            Some((result, pendings)) = router.in_flight.next() => router.complete(result, pendings),
            changed = state.changed() => if changed.is_err() { break },
            // The router holds a sender of it.
            _ = held.changed() => {}
            Some(pending) = returned.recv() => router.queue.push_back(pending),
            taken = inbox.recv_many(&mut batch, room), if room > 0 => {
                if taken == 0 {
                    break;
                }
                router.queue.extend(batch.drain(..));
            }
            () = tokio::time::sleep(PARKED_RETRY), if !router.queue.is_empty() => router.drop_abandoned(),
        }
    }
    // Everything that is still here is answered by its dropped channel: the writer tells exposed from not.
}

impl Router {
    /// Sends what is queued, if there is somewhere to send it and room there.
    fn send(&mut self, state: &GroupState) {
        self.refuse_without_majority();
        if let Some(until) = self.hold_until {
            if Instant::now() < until {
                return;
            }
            self.hold_until = None;
        }
        match state.leader {
            Some(leader) if leader == self.parts.me => {
                self.forward = None;
                self.propose(state);
            }
            Some(leader) => {
                self.lead_nothing();
                self.forward_to(leader, state);
            }
            None => {
                self.lead_nothing();
                self.forward = None;
                self.refuse_forwarded(None);
            }
        }
    }

    /// To wait would not help, and a leader that nobody follows must not take what it cannot commit: its caller
    /// would be told that the outcome is unknown, and nothing of the reason.
    fn refuse_without_majority(&mut self) {
        let age = self.majority_age();
        if self.queue.is_empty() || age <= self.parts.leaderless {
            return;
        }
        let text = format!(
            "no majority of the voters has followed a leader for {age:.0?}: writes are refused until one does. \
             Check that the other pods run and reach each other"
        );
        let error = Error::new(Reason::NoLeader, text);
        let queue = std::mem::take(&mut self.queue);
        self.queue = queue
            .into_iter()
            .filter_map(|pending| pending.refuse(error.clone()))
            .collect();
    }

    fn majority_age(&self) -> Duration {
        let age = self.parts.group.majority_age();
        age.unwrap_or(Duration::MAX).min(self.started.elapsed())
    }

    fn lead_nothing(&self) {
        self.parts
            .clock
            .send_if_modified(|clock| clock.take().is_some());
    }

    fn propose(&mut self, state: &GroupState) {
        // Until the first entry of our term is applied the state's clock may lack what predecessors
        // measured.
        let applied = self.parts.group.applied().borrow().clone();
        if applied.position.term < state.term {
            return;
        }
        if self.handover.is_held() {
            return;
        }
        let clock = self.leader_clock(state.term, applied.clock_ms);
        // Proposed without a majority, nobody could tell what became of it. Queued, it ends with a known outcome.
        if !self.queue.is_empty() && self.majority_age() > self.parts.quorum_patience {
            self.refuse_forwarded(None);
            return;
        }
        while self.in_flight.len() < MAX_ENTRIES_IN_FLIGHT {
            let pendings = self.take_entry();
            if pendings.is_empty() {
                return;
            }
            let entry = Entry {
                clock_ms: clock.now_ms(),
                proposals: pendings
                    .iter()
                    .map(|pending| pending.proposal.clone())
                    .collect::<Vec<Proposal>>(),
            };
            let group = self.parts.group.clone();
            self.in_flight.push(Box::pin(async move {
                (group.submit(Payload::new(entry)).await, pendings)
            }));
        }
    }

    /// The clock of this term of leadership, started when it is first needed.
    fn leader_clock(&self, term: u64, applied_clock_ms: u64) -> LeaderClock {
        if let Some(clock) = *self.parts.clock.borrow()
            && clock.term() == term
        {
            return clock;
        }
        let clock = LeaderClock::start(term, applied_clock_ms);
        self.parts.clock.send_replace(Some(clock));
        clock
    }

    /// Takes what fits into one entry. Proposals whose callers have given up fall out here.
    fn take_entry(&mut self) -> Vec<Pending> {
        let mut taken = Vec::new();
        let mut bytes = 0;
        while let Some(next) = self.queue.front() {
            if !taken.is_empty()
                && (bytes + next.bytes > MAX_ENTRY_BYTES || taken.len() == MAX_ENTRY_PROPOSALS)
            {
                break;
            }
            bytes += next.bytes;
            if let Some(pending) = self.queue.pop_front()
                && pending.expose()
            {
                taken.push(pending);
            }
        }
        taken
    }

    fn complete(&mut self, result: podkv_api::Result<Committed>, pendings: Vec<Pending>) {
        match result {
            Ok(committed) => {
                let term = committed.position.term;
                for (pending, outcome) in pendings.into_iter().zip(committed.outcomes) {
                    pending.answer(Ok(Decided { term, outcome }));
                }
            }
            Err(error) => {
                // Sent again at once it would be refused again at once, and the router and Raft would keep a core
                // busy with that: while leadership is handed over, and while no majority answers the leader.
                if matches!(error.reason(), Reason::NotLeader | Reason::NoLeader) {
                    self.hold_until = Some(Instant::now() + PARKED_RETRY);
                }
                for pending in pendings {
                    let retry = pending.origin == Origin::Local && !error.outcome_unknown()
                        || pending.is_repeatable();
                    if retry && error.is_retryable() {
                        self.queue.push_back(pending.again_after(&error));
                    } else {
                        pending.answer(Err(error.clone()));
                    }
                }
            }
        }
    }

    fn forward_to(&mut self, leader: MemberId, state: &GroupState) {
        self.refuse_forwarded(Some(leader));
        // A stream to another one ends when all in it is answered. It is let go of now and not when there is
        // something to send: a leader that has handed over waits for that.
        if self
            .forward
            .as_ref()
            .is_some_and(|stream| stream.leader() != leader)
        {
            self.forward = None;
        }
        if self.queue.is_empty() {
            return;
        }
        if self.forward.as_ref().is_none_or(ForwardStream::is_closed) {
            let Some(address) = state.members.nodes.get(&leader) else {
                return;
            };
            self.forward = Some(ForwardStream::open(
                leader,
                self.parts
                    .peers
                    .client(leader, address, crate::peer::pool::Lane::Forward),
                self.returns.clone(),
                &self.tasks,
                self.stop.clone(),
            ));
        }
        let Some(stream) = &self.forward else { return };
        while let Some(pending) = self.queue.pop_front() {
            if pending.is_abandoned() {
                continue;
            }
            if let Some(refused) = stream.send(pending) {
                self.queue.push_front(refused);
                return;
            }
        }
    }

    /// What another node sent us is refused when we do not lead: that node knows better where to go.
    fn refuse_forwarded(&mut self, leader: Option<MemberId>) {
        if !self
            .queue
            .iter()
            .any(|pending| pending.origin == Origin::Forwarded)
        {
            return;
        }
        for pending in std::mem::take(&mut self.queue) {
            if pending.origin == Origin::Forwarded {
                pending.answer(Err(not_leader(leader)));
            } else {
                self.queue.push_back(pending);
            }
        }
    }

    fn drop_abandoned(&mut self) {
        self.queue.retain(|pending| !pending.is_abandoned());
    }
}

fn not_leader(leader: Option<MemberId>) -> Error {
    let hint = leader.map(|member| podkv_api::LeaderHint {
        member,
        client_address: String::new(),
    });
    Error::new(Reason::NotLeader, "this node does not lead").with_leader(hint)
}
