//! Reads without a round to a majority: see `leader_lease`.

use tokio::time::{Instant, timeout_at};

use super::Group;
use crate::membership::LogPosition;

/// A read that goes by the leader's lease. Its view is taken after this was given out, and before it is asked for the
/// last time.
pub(crate) struct LeaseRead {
    group: Group,
    term: u64,
}

impl LeaseRead {
    /// Whether the lease holds now: then what was read before is linearizable.
    pub fn holds(&self) -> bool {
        self.group.0.lease.holds_in(self.term)
    }
}

impl Group {
    /// Begins a read by the leader's lease: when it returns, a view may be taken. `None` if this node has no lease, or
    /// cannot apply by `deadline` what is committed.
    pub async fn lease_read(&self, deadline: Instant) -> Option<LeaseRead> {
        let (term, told) = self.0.lease.holds()?;
        let mut applied = self.0.applied.clone();
        // An entry of this term lies behind everything that earlier leaders acknowledged.
        let is_reached = |at: LogPosition| at.term >= term && at.index >= told.index;
        let reached = is_reached(applied.borrow().position);
        if !reached {
            let reached = applied.wait_for(|applied| is_reached(applied.position));
            timeout_at(deadline, reached).await.ok()?.ok()?;
        }
        Some(LeaseRead {
            group: self.clone(),
            term,
        })
    }

    /// As [`Group::read_index`], without a round: `None` if this node has no lease.
    pub fn lease_index(&self) -> Option<LogPosition> {
        let (_, told) = self.0.lease.holds()?;
        // What was answered was applied before.
        let at = told.max(self.0.applied.borrow().position);
        let (term, _) = self.0.lease.holds()?;
        if at.term < term {
            return None;
        }
        self.0.lease.tell(at);
        Some(at)
    }
}
