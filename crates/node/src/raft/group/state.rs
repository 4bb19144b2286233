//! What a group looks like from outside, kept up to date from openraft's metrics.

use std::collections::BTreeSet;
use std::sync::Arc;

use openraft::async_runtime::watch::WatchReceiver;
use openraft::errors::Fatal;
use openraft::{Instant as _, ServerState};
use podkv_api::MemberId;
use tokio::sync::watch;
use tokio::time::Instant;

use super::super::freshness::{Freshness, Quorum};
use super::super::types::{LogId, members, position};
use super::{Metrics, MetricsReceiver};
use crate::membership::{LogPosition, Members};
use crate::peer::pool::PeerPool;

/// What this node does in the group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Role {
    /// Receives everything, has no vote. Also a node that belongs to nothing yet.
    #[default]
    Learner,
    Follower,
    Candidate,
    Leader,
    /// Raft has ended.
    Stopped,
}

impl From<ServerState> for Role {
    fn from(state: ServerState) -> Self {
        match state {
            ServerState::Learner => Role::Learner,
            ServerState::Follower => Role::Follower,
            ServerState::Candidate => Role::Candidate,
            ServerState::Leader => Role::Leader,
            ServerState::Shutdown => Role::Stopped,
        }
    }
}

/// One node's view of its group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct GroupState {
    /// The newest term whose vote is on the own disk: what a restart cannot take back.
    pub term: u64,
    /// The leader of this term, as far as it is known here. It may have lost its place since. `None` while the vote of
    /// a newer term is being written.
    pub leader: Option<MemberId>,
    pub role: Role,
    /// The index of the log's last entry.
    pub last_log: Option<u64>,
    /// What is known to be committed; the log here may not reach so far yet.
    pub committed: Option<LogPosition>,
    pub applied: Option<LogPosition>,
    pub snapshot: Option<LogPosition>,
    pub purged: Option<LogPosition>,
    /// The membership that counts: the last one in the log.
    pub members: Arc<Members>,
    /// It is committed, too.
    pub members_committed: bool,
    /// Raft has stopped by itself, and why.
    pub fatal: Option<String>,
}

impl GroupState {
    /// The committed membership is known here, and is without that node.
    pub fn is_without(&self, id: MemberId) -> bool {
        self.members_committed && !self.members.nodes.is_empty() && !self.members.contains(id)
    }

    /// `members` are those of the metrics.
    fn new(metrics: &Metrics, members: Arc<Members>) -> Self {
        let at = |id: &Option<LogId>| id.as_ref().map(position);
        let membership = &metrics.membership_config;
        // openraft's current term and leader are those that it holds in memory. Its vote is the one that was synced.
        let term = metrics.vote.leader_id.term;
        let leader = metrics.current_leader.map(MemberId);
        Self {
            term,
            leader: leader.filter(|_| term == metrics.current_term),
            role: metrics.state.into(),
            last_log: metrics.last_log_index,
            committed: at(&metrics.cluster_committed).max(at(&metrics.local_committed)),
            applied: at(&metrics.last_applied),
            snapshot: at(&metrics.snapshot),
            purged: at(&metrics.purged),
            members,
            members_committed: membership.log_id() == metrics.committed_membership_config.log_id(),
            fatal: match &metrics.running_state {
                Ok(()) | Err(Fatal::Stopped) => None,
                Err(fatal) => Some(fatal.to_string()),
            },
        }
    }
}

/// Follows the metrics until raft has ended.
pub(super) async fn watch(
    mut metrics: MetricsReceiver,
    state: watch::Sender<GroupState>,
    freshness: Arc<Freshness>,
    peers: PeerPool,
) {
    // Metrics change with every batch, memberships hardly ever: the same pointer is the same membership.
    let mut seen = metrics.borrow_watched().membership_config.clone();
    let mut current = Arc::new(members(&seen));
    loop {
        let (new, quorum, ended) = {
            let metrics = metrics.borrow_and_update();
            if !Arc::ptr_eq(&seen, &metrics.membership_config) {
                seen = metrics.membership_config.clone();
                current = Arc::new(members(&seen));
            }
            let leads = metrics.state == ServerState::Leader;
            let acked = metrics.last_quorum_acked;
            let acked = acked.and_then(|at| Instant::now().checked_sub(at.elapsed()));
            let alone = current.voters.iter().all(|set| set.len() <= 1);
            let quorum = match (leads, alone, acked) {
                (true, true, _) => Quorum::Always,
                (true, false, Some(at)) => Quorum::At(at),
                _ => Quorum::None,
            };
            (
                GroupState::new(&metrics, current.clone()),
                quorum,
                metrics.running_state.is_err(),
            )
        };
        freshness.quorum(quorum);
        let same = Arc::ptr_eq(&state.borrow().members, &new.members);
        if !same && !new.members.nodes.is_empty() {
            let ids: BTreeSet<MemberId> = new.members.nodes.keys().copied().collect();
            peers.retain(&ids);
        }
        state.send_if_modified(|old| {
            let changed = *old != new;
            *old = new;
            changed
        });
        if ended || metrics.changed().await.is_err() {
            return;
        }
    }
}
