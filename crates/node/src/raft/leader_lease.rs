//! The leader lease: for how long a leader may answer reads without asking a majority. Opt-in (`lease_reads`).
//!
//! ```text
//!   leader L    s ── append ──────────►           s + 0.9 P: L's lease ends
//!               │                                        │
//!   follower F  └──────────► r ── "for P" ──►            │            r + P: F may vote again
//!                            F promises ─────────────────┴─────────────────┤
//! ```
//!
//! **Promise.** With each append that it accepts, heartbeats included, a node with `lease_reads` says for how long, from
//! when it came in, it neither votes, nor says that it would (pre-vote), nor campaigns: its largest election time-out,
//! which openraft keeps to anyway while a node runs. Who has `lease_reads` off promises nothing, and is not counted. So
//! settings may differ between nodes, also in timing: a leader counts what was promised to it.
//!
//! **Lease.** L notes its clock *before* it hands a message to the connection, and counts from there: s is never later than
//! r. It counts [`KEPT_PERCENT`] of a promise, so L's clock may go slower than F's by a tenth. The lease holds until the
//! moment that a majority of the voters, L among them, has promised beyond; when joint, of both sets.
//!
//! **Why nobody else leads meanwhile.** An election needs a majority of the voters, and any two have a voter in common
//! that has promised at least as long. Is it another node, then it refuses until its promise is over. Is it L itself, then
//! L's vote passes [`LeaderLease::admit_vote`], and the lease is gone before openraft sees the request. The door for votes
//! and the note of a promise are under one lock: while a vote is being decided nothing is promised.
//!
//! **Reads.** First the place that the state must have reached, then the view, then the lease. If it holds after the view
//! was taken, then nobody else can have acknowledged anything before. However long the process is stopped in between
//! makes no difference. The place is the highest commit index that anybody outside of openraft's core may know from this
//! node: what it has applied (answers come after that), sent with an append, or told a reader. An entry of the own term must be
//! applied: what earlier leaders acknowledged lies before it.
//!
//! **Transfer.** The new leader campaigns with the old one's word and passes all promises. There is no lease from the
//! moment that a transfer begins, and none in that term any more once openraft was asked: it asks once and never takes back.
//!
//! **Membership.** None while this leader changes the membership, and then only with the one that it came to. A
//! leader counts itself, so it must be a voter; one that is the only voter needs nobody's promise.
//!
//! **Restart.** openraft forgets a promise with the process. So its length is on the disk before the first one is
//! made (`promise.rs`), and after a start a node neither votes nor campaigns for as long; a transfer it serves.
//! That is a time, not a switch: nothing has to come back and allow it. A volume that was rewound may have lost the
//! record, and its votes count nowhere. A node that has lost its volume is another node, with another id.
//!
//! **Recovery.** A node that is recovered becomes the only voter of the next incarnation and asks nobody. Whoever ran the
//! recovery has said that a majority is gone. A leader with a lease is itself one of the voters, and each has to be
//! accounted for: as stopped, or as lost for ever. Neither answers reads.
//!
//! **Out of bounds.** A machine that is suspended as a whole, or a virtual one that is paused or restored from an image,
//! stops its own clock: its leader may take an expired lease for a good one until the next message. Nodes that
//! this is done to must not have `lease_reads`. Processes that are stopped (SIGSTOP, cgroup freezer, CPU starvation)
//! are fine, since their clock goes on.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use openraft::ServerState;
use openraft::async_runtime::watch::WatchReceiver;
use podkv_api::MemberId;
use tokio::time::Instant;

use super::group::MetricsReceiver;
use super::types::position;
use crate::membership::LogPosition;
#[cfg(feature = "planted")]
use crate::planted;

/// How much of a promise a leader counts on. The rest is for clocks: a follower's may go faster than the leader's by a
/// tenth. Those of computers differ by a thousandth on a bad day.
const KEPT_PERCENT: u32 = 90;

/// What a leader counts on, of a promise.
fn kept(promise: Duration) -> Duration {
    let kept = promise * KEPT_PERCENT / 100;
    #[cfg(feature = "planted")]
    if planted::is(planted::Bug::LongLease) {
        return kept * 2;
    }
    kept
}

/// How this node stands to promises: what it makes, and what it counts on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct LeaseTerms {
    /// Promises are made, and counted on. Off, reads ask a majority.
    pub reads: bool,
    /// For how long this node promises.
    pub promise: Duration,
    /// What it may have promised before it was started: kept from now on.
    pub promised_before: Duration,
}

type Leads = Box<dyn Fn() -> Option<Led> + Send + Sync>;

/// Of which term this node is the leader, with whom.
struct Led {
    term: u64,
    /// Two sets while a change is joint.
    voters: Vec<BTreeSet<MemberId>>,
    /// Where in the log this membership is.
    at: Option<LogPosition>,
}

/// Until when a lease holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Held {
    No,
    Until(Instant),
    /// Nobody else votes.
    Alone,
}

/// Until when a majority of each set has promised, `me` being part of it. `until` says how far each other one is counted.
fn held(me: MemberId, voters: &[BTreeSet<MemberId>], until: &BTreeMap<MemberId, Instant>) -> Held {
    let mut all = if voters.is_empty() {
        Held::No
    } else {
        Held::Alone
    };
    for set in voters {
        if !set.contains(&me) {
            return Held::No;
        }
        let others = set.len() / 2;
        let mut promised: Vec<Instant> = set
            .iter()
            .filter(|id| **id != me)
            .filter_map(|id| until.get(id).copied())
            .collect();
        promised.sort_unstable_by(|a, b| b.cmp(a));
        all = match (others.checked_sub(1).map(|last| promised.get(last)), all) {
            // It is a majority by itself.
            (None, all) => all,
            (Some(None), _) => return Held::No,
            (Some(Some(at)), Held::Until(other)) => Held::Until(other.min(*at)),
            (Some(Some(at)), _) => Held::Until(*at),
        };
    }
    all
}

#[derive(Default)]
struct State {
    /// Until then this node neither votes nor campaigns.
    promised_until: Option<Instant>,
    /// The highest term that a leader or a granted vote named.
    seen: u64,
    /// Votes that openraft is deciding on.
    voting: usize,

    /// The term that the following is of.
    term: u64,
    /// Until when this leader counts on each voter.
    until: BTreeMap<MemberId, Instant>,
    /// The lease, as it was last worked out: it may hold longer by now.
    held_until: Option<Instant>,
    /// No lease in terms up to here.
    ended: u64,
    /// Changes under way that go with no lease.
    suspended: usize,
    /// The membership must be at least this one.
    members_from: Option<LogPosition>,
    /// The highest commit index that somebody may know from this node, beside what it has applied.
    told: LogPosition,
}

impl State {
    fn end(&mut self, through: u64) {
        self.ended = self.ended.max(through);
        self.held_until = None;
    }

    fn enter(&mut self, term: u64) {
        if term > self.term {
            self.term = term;
            self.until.clear();
            self.held_until = None;
        }
    }

    fn is_promised(&self, now: Instant) -> bool {
        self.promised_until.is_some_and(|until| now < until)
    }
}

/// The promises of this node, and its lease while it leads. See the module.
pub(super) struct LeaderLease {
    me: MemberId,
    terms: LeaseTerms,
    state: Mutex<State>,
    /// What this node leads now, if anything. Set once, when Raft is there.
    leads: OnceLock<Leads>,
}

impl LeaderLease {
    pub fn new(me: MemberId, terms: LeaseTerms) -> Self {
        let promised_until =
            (!terms.promised_before.is_zero()).then(|| Instant::now() + terms.promised_before);
        let state = State {
            promised_until,
            ..State::default()
        };
        Self {
            me,
            terms,
            state: Mutex::new(state),
            leads: OnceLock::new(),
        }
    }

    pub fn follow(&self, metrics: MetricsReceiver) {
        // Called once.
        let _ = self.leads.set(Box::new(move || led(&metrics)));
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    // What a follower promises.

    /// An append of a leader of `term` came in; openraft has not seen it yet. Returns what is promised if it accepts it.
    pub fn heard(&self, term: u64) -> Option<Duration> {
        if !self.terms.reads {
            return None;
        }
        let mut state = self.state();
        // Of a leader of the past: it will be refused, and should hold nothing up.
        if term < state.seen || state.voting > 0 {
            return None;
        }
        state.seen = term;
        let until = Instant::now() + self.terms.promise;
        state.promised_until = state.promised_until.max(Some(until));
        Some(self.terms.promise)
    }

    /// Whether this node would vote for a candidate, or may ask whether others would.
    pub fn may_vote(&self) -> bool {
        !self.state().is_promised(Instant::now())
    }

    /// A candidate of `term` asks for this node's vote. `None`: it is promised. Else openraft is to decide, and the lease
    /// of this node is suspended until it has; it ends if the vote is given, or nobody waits for the decision.
    pub fn admit_vote(&self, term: u64, transfer: bool) -> Option<Voting<'_>> {
        let mut state = self.state();
        if !transfer && state.is_promised(Instant::now()) {
            return None;
        }
        state.voting += 1;
        Some(Voting {
            lease: self,
            term,
            granted: true,
        })
    }

    /// This node asks for votes in `term`; false if it must not.
    pub fn campaign(&self, term: u64, transfer: bool) -> bool {
        let mut state = self.state();
        if !transfer && state.is_promised(Instant::now()) {
            return false;
        }
        state.seen = state.seen.max(term);
        state.end(term.saturating_sub(1));
        true
    }

    // What a leader counts on.

    /// A message goes to a peer now, and tells it that this much is committed. Returns from when its answer counts.
    pub fn sending(&self, committed: Option<LogPosition>) -> Instant {
        if self.terms.reads {
            self.tell(committed.unwrap_or_default());
        }
        Instant::now()
    }

    /// Somebody learns from this node that this much is committed.
    pub fn tell(&self, committed: LogPosition) {
        let mut state = self.state();
        if state.told.index < committed.index {
            state.told = committed;
        }
    }

    /// A voter has accepted what a leader of `term`, this node, sent at `sent`, and promised.
    pub fn answered(&self, voter: MemberId, term: u64, sent: Instant, promise: Duration) {
        if !self.terms.reads {
            return;
        }
        let mut state = self.state();
        state.enter(term);
        if term == state.term {
            let until = sent + kept(promise);
            let known = state.until.entry(voter).or_insert(until);
            *known = until.max(*known);
        }
    }

    /// No lease while this is kept.
    pub fn suspend(&self) -> Suspended<'_> {
        let mut state = self.state();
        state.suspended += 1;
        state.held_until = None;
        Suspended(self)
    }

    /// No lease in terms up to this one any more.
    pub fn end(&self, through: u64) {
        self.state().end(through);
    }

    /// This leader has changed the membership: an earlier one does not count any more.
    pub fn members_from(&self, at: LogPosition) {
        let mut state = self.state();
        state.members_from = state.members_from.max(Some(at));
        state.held_until = None;
    }

    /// The term of the lease, if it holds now, and the highest commit index that was told.
    pub fn holds(&self) -> Option<(u64, LogPosition)> {
        if !self.terms.reads {
            return None;
        }
        let mut state = self.state();
        let term = self.term_held(&mut state)?;
        Some((term, state.told))
    }

    /// Whether the lease of that term holds now.
    pub fn holds_in(&self, term: u64) -> bool {
        self.term_held(&mut self.state()) == Some(term)
    }

    fn term_held(&self, state: &mut State) -> Option<u64> {
        if state.suspended > 0 || state.voting > 0 {
            return None;
        }
        let now = Instant::now();
        if state.held_until.is_none_or(|until| until <= now) {
            self.work_out(state, now)?;
        }
        (state.ended < state.term).then_some(state.term)
    }

    /// Looks at who votes now. `None` if the lease does not hold.
    fn work_out(&self, state: &mut State, now: Instant) -> Option<()> {
        let led = self.leads.get()?()?;
        state.enter(led.term);
        // The metrics lag behind: they may be of an earlier term, or of a membership that was changed since.
        if led.term < state.term || led.at < state.members_from {
            return None;
        }
        match held(self.me, &led.voters, &state.until) {
            Held::Alone => Some(()),
            Held::Until(until) if now < until => {
                state.held_until = Some(until);
                Some(())
            }
            Held::Until(_) | Held::No => None,
        }
    }
}

fn led(metrics: &MetricsReceiver) -> Option<Led> {
    let metrics = metrics.borrow_watched();
    if metrics.state != ServerState::Leader || metrics.running_state.is_err() {
        return None;
    }
    let membership = &metrics.membership_config;
    let sets = membership.get_joint_config().iter();
    Some(Led {
        term: metrics.current_term,
        voters: sets
            .map(|set| set.iter().copied().map(MemberId).collect())
            .collect(),
        at: membership.log_id().as_ref().map(position),
    })
}

/// A vote that openraft decides on.
pub(super) struct Voting<'a> {
    lease: &'a LeaderLease,
    term: u64,
    granted: bool,
}

impl Voting<'_> {
    /// openraft has decided.
    pub fn decided(mut self, granted: bool) {
        self.granted = granted;
    }
}

impl Drop for Voting<'_> {
    fn drop(&mut self) {
        let mut state = self.lease.state();
        state.voting -= 1;
        if self.granted {
            state.seen = state.seen.max(self.term);
            state.end(self.term.saturating_sub(1));
        }
    }
}

/// Something is under way that goes with no lease.
pub(super) struct Suspended<'a>(&'a LeaderLease);

impl Drop for Suspended<'_> {
    fn drop(&mut self) {
        self.0.state().suspended -= 1;
    }
}

#[cfg(test)]
mod tests;
