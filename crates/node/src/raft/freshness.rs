//! How old the state of this node may be, without asking anybody.
//!
//! With each append, heartbeats included, a leader says how long ago a majority last followed it. What was
//! committed before that moment is behind its commit index; when this node has applied up to that, its state
//! is no older than that moment. A leader that lost its majority goes on saying so, and ages.
//!
//! Measured on one clock a message's time on the way is not counted. It is bounded by the keep-alive of the
//! connection, after which the message does not arrive at all.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::membership::LogPosition;

/// When a majority of the voters last followed this node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Quorum {
    /// It does not lead.
    #[default]
    None,
    At(Instant),
    /// It leads, and is the only voter: its own majority, whether anything happens or not.
    Always,
}

impl Quorum {
    fn at(self) -> Option<Instant> {
        match self {
            Self::None => None,
            Self::At(at) => Some(at),
            Self::Always => Some(Instant::now()),
        }
    }
}

#[derive(Default)]
pub(super) struct Freshness(Mutex<State>);

#[derive(Default)]
struct State {
    quorum: Quorum,
    /// When a majority last followed a leader, as this node knows: by its leader's word, or because it led itself.
    followed: Option<Instant>,
    /// The state holds everything that was committed before.
    as_of: Option<Instant>,
    /// It will, once it has applied this far.
    pending: Option<(LogPosition, Instant)>,
}

impl Freshness {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// When a majority followed this node.
    pub fn quorum(&self, quorum: Quorum) {
        let mut state = self.state();
        // Who steps down has not forgotten that it was followed until now.
        state.followed = state.followed.max(state.quorum.at());
        state.quorum = quorum;
    }

    /// What an append says about it.
    pub fn quorum_age_ms(&self) -> Option<u32> {
        let at = self.state().quorum.at()?;
        Some(u32::try_from(at.elapsed().as_millis()).unwrap_or(u32::MAX))
    }

    /// A leader's append was accepted: at `as_of` everything committed was within `commit`.
    pub fn heard(&self, as_of: Instant, commit: LogPosition, applied: LogPosition) {
        let mut state = self.state();
        state.followed = state.followed.max(Some(as_of));
        state.settle(applied);
        if commit.index <= applied.index {
            state.as_of = state.as_of.max(Some(as_of));
        } else if state.pending.is_none() {
            // The first one is kept: it is reached first, and then the next is taken.
            state.pending = Some((commit, as_of));
        }
    }

    /// How long ago a majority followed a leader, as far as this node knows; `None` if it never heard of that.
    pub fn majority_age(&self) -> Option<Duration> {
        let state = self.state();
        state.quorum.at().max(state.followed).map(|at| at.elapsed())
    }

    /// How old the state may be; `None` if there is no telling.
    pub fn age(&self, applied: LogPosition) -> Option<Duration> {
        let mut state = self.state();
        state.settle(applied);
        state.quorum.at().max(state.as_of).map(|at| at.elapsed())
    }
}

impl State {
    fn settle(&mut self, applied: LogPosition) {
        if let Some((commit, as_of)) = self.pending
            && commit.index <= applied.index
        {
            self.as_of = self.as_of.max(Some(as_of));
            self.pending = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(index: u64) -> LogPosition {
        LogPosition { term: 1, index }
    }

    #[tokio::test(start_paused = true)]
    async fn is_as_fresh_as_what_is_applied() {
        let freshness = Freshness::default();
        assert_eq!(freshness.age(at(5)), None);
        freshness.heard(Instant::now(), at(5), at(5));
        tokio::time::advance(Duration::from_millis(30)).await;
        assert_eq!(freshness.age(at(5)), Some(Duration::from_millis(30)));

        // Heard of more: not fresher before it is applied.
        freshness.heard(Instant::now(), at(9), at(5));
        tokio::time::advance(Duration::from_millis(10)).await;
        assert_eq!(freshness.age(at(8)), Some(Duration::from_millis(40)));
        assert_eq!(freshness.age(at(9)), Some(Duration::from_millis(10)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_majority_counts_whether_or_not_its_entries_are_applied() {
        let freshness = Freshness::default();
        assert_eq!(freshness.majority_age(), None);
        freshness.heard(Instant::now(), at(9), at(5));
        tokio::time::advance(Duration::from_millis(30)).await;
        assert_eq!(freshness.age(at(5)), None, "it is behind");
        assert_eq!(freshness.majority_age(), Some(Duration::from_millis(30)));
        // A leader that has lost its majority says for how long.
        let long_ago = Instant::now() - Duration::from_millis(30);
        freshness.heard(long_ago, at(9), at(5));
        assert_eq!(freshness.majority_age(), Some(Duration::from_millis(30)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_leader_without_its_majority_ages() {
        let freshness = Freshness::default();
        freshness.quorum(Quorum::At(Instant::now()));
        tokio::time::advance(Duration::from_millis(700)).await;
        assert_eq!(freshness.quorum_age_ms(), Some(700));
        assert_eq!(freshness.age(at(0)), Some(Duration::from_millis(700)));
        freshness.quorum(Quorum::None);
        assert_eq!(freshness.quorum_age_ms(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn who_led_until_now_does_not_count_as_without_a_leader() {
        let freshness = Freshness::default();
        freshness.quorum(Quorum::At(Instant::now()));
        tokio::time::advance(Duration::from_secs(60)).await;
        freshness.quorum(Quorum::At(Instant::now()));
        tokio::time::advance(Duration::from_millis(20)).await;
        freshness.quorum(Quorum::None);
        assert_eq!(freshness.majority_age(), Some(Duration::from_millis(20)));
        // Its state is another matter: others may have committed meanwhile.
        assert_eq!(freshness.age(at(0)), None);
    }

    #[tokio::test(start_paused = true)]
    async fn who_votes_alone_never_ages() {
        let freshness = Freshness::default();
        freshness.quorum(Quorum::Always);
        tokio::time::advance(Duration::from_secs(3600)).await;
        assert_eq!(freshness.age(at(0)), Some(Duration::ZERO));
        assert_eq!(freshness.majority_age(), Some(Duration::ZERO));
    }
}
