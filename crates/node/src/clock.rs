//! The cluster clock, as the leader measures it.
//!
//! Deadlines of leases, TTLs and sessions are on a clock that travels in log entries: each entry
//! carries the leader's reading, and the state merges it by maximum. A new leader goes on from the
//! clock in the state, and only once it has applied everything of its predecessors. So the clock
//! never jumps ahead of time that some leader really measured, and stands still without a leader:
//! nothing expires early.

use tokio::time::Instant;

#[cfg(feature = "planted")]
use crate::planted;

/// Reads the cluster clock on a leader.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LeaderClock {
    term: u64,
    base_ms: u64,
    since: Instant,
}

impl LeaderClock {
    /// Starts measuring from the state's clock, for one term of leadership.
    pub fn start(term: u64, applied_clock_ms: u64) -> Self {
        #[cfg(feature = "planted")]
        let applied_clock_ms = match planted::is(planted::Bug::ClockAcrossRestart) {
            true => applied_clock_ms + 3000,
            false => applied_clock_ms,
        };
        Self {
            term,
            base_ms: applied_clock_ms,
            since: Instant::now(),
        }
    }

    pub fn term(&self) -> u64 {
        self.term
    }

    /// Now, in milliseconds of the cluster clock.
    pub fn now_ms(&self) -> u64 {
        let elapsed = u64::try_from(self.since.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.base_ms.saturating_add(elapsed)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn goes_on_from_the_state_and_measures_elapsed_time_alone() {
        let clock = LeaderClock::start(3, 1_000);
        assert_eq!(clock.now_ms(), 1_000);
        tokio::time::advance(Duration::from_millis(250)).await;
        assert_eq!(clock.now_ms(), 1_250);
    }
}
