//! Membership changes and the transfer of leadership.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use openraft::async_runtime::watch::WatchReceiver;
use openraft::errors::RaftError;
use openraft::{ChangeMembers, Instant as _, Precondition, ServerState};
use podkv_api::{Error, MemberId, Reason, Result};
use tokio::time::{Instant, timeout_at};

use super::super::membership::{Change, Seen, Step, not_found};
use super::super::types::{LogId, TypeConfig, members, position};
use super::{Group, Metrics, stopped, voter_ids};
use crate::membership::{LogPosition, Observed, ObservedPeer, PeerAddress};

/// A change needs a majority for two entries, and each of those a sync on slow disks.
const CHANGE_TIMEOUT: Duration = Duration::from_secs(10);

type Members = ChangeMembers<u64, PeerAddress>;

/// What becomes of voters that are voters no more.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Leavers {
    /// They leave the group.
    Go,
    /// They stay, as learners.
    Stay,
}

impl Group {
    /// Adds a member that gets everything and has no vote. Does nothing if it is one already.
    pub async fn add_learner(&self, id: MemberId, address: PeerAddress) -> Result<LogPosition> {
        self.change(Change::AddLearner(id, address)).await
    }

    /// Gives a learner that has caught up a vote.
    pub async fn promote(&self, id: MemberId) -> Result<LogPosition> {
        self.change(Change::Promote(id)).await
    }

    /// Makes a voter a learner.
    pub async fn demote(&self, id: MemberId) -> Result<LogPosition> {
        self.change(Change::Demote(id)).await
    }

    /// Removes a member. Its id is never used again.
    pub async fn remove(&self, id: MemberId) -> Result<LogPosition> {
        self.change(Change::Remove(id)).await
    }

    /// Gives the vote of `old`, which leaves, to the learner `new`, in one joint change.
    pub async fn replace(&self, old: MemberId, new: MemberId) -> Result<LogPosition> {
        self.change(Change::Replace { old, new }).await
    }

    /// Makes one change, and returns where it is committed. Every change is made under the
    /// precondition that the membership is still the one it was planned for.
    ///
    /// Refused with [`Reason::MembershipConflict`] while another change is unfinished, or if no majority
    /// of the new voters answers.
    async fn change(&self, change: Change) -> Result<LogPosition> {
        let Ok(guard) = self.0.changing.clone().try_lock_owned() else {
            let text = "another membership change is under way on this leader: try again";
            return Err(Error::new(Reason::MembershipConflict, text));
        };
        // In a task of its own: given up half-way by its caller, a joint change would stay joint.
        let group = self.clone();
        let task = self.0.tasks.spawn(async move {
            let _one = guard;
            group.make_change(change).await
        });
        match timeout_at(Instant::now() + CHANGE_TIMEOUT, task).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(self.fatal().with_unknown_outcome()),
            Err(_) => {
                let text =
                    format!("the membership change was not committed within {CHANGE_TIMEOUT:?}");
                Err(Error::new(Reason::DeadlineExceeded, text).with_unknown_outcome())
            }
        }
    }

    async fn make_change(&self, change: Change) -> Result<LogPosition> {
        self.finish_joint().await?;
        let (seen, at) = self.look()?;
        let Some(step) = seen.plan(&change)? else {
            return Ok(seen.members.position.unwrap_or_default());
        };
        tracing::info!(?change, "changing the membership");
        let (changes, leavers) = match step {
            Step::AddLearner(id, address) => {
                let nodes = BTreeMap::from([(id.0, address)]);
                (ChangeMembers::AddNodes(nodes), Leavers::Go)
            }
            Step::Voters(voters) => (
                ChangeMembers::ReplaceAllVoters(voter_ids(&voters)),
                Leavers::Go,
            ),
            Step::Demote(voters) => (
                ChangeMembers::ReplaceAllVoters(voter_ids(&voters)),
                Leavers::Stay,
            ),
            Step::RemoveLearner(id) => {
                let nodes = BTreeSet::from([id.0]);
                (ChangeMembers::RemoveNodes(nodes), Leavers::Go)
            }
        };
        self.write_membership(changes, leavers, at).await
    }

    /// Finishes a joint change that an earlier leader began.
    async fn finish_joint(&self) -> Result<()> {
        let (seen, at) = self.look()?;
        if seen.committed && seen.members.voters.len() > 1 {
            tracing::info!("finishing the membership change of an earlier leader");
            // The new voters stay; who was only in the old set leaves.
            let changes = ChangeMembers::AddVoterIds(BTreeSet::new());
            self.write_membership(changes, Leavers::Go, at).await?;
        }
        Ok(())
    }

    async fn write_membership(
        &self,
        changes: Members,
        leavers: Leavers,
        at: Option<LogId>,
    ) -> Result<LogPosition> {
        let unchanged = Precondition::<TypeConfig>::LastMembershipLogId {
            last_membership_log_id: at,
        };
        // What votes from when on is not known here before it is over.
        let _no_lease = self.0.lease.suspend();
        let written = self
            .0
            .raft
            .change_membership_if(changes, leavers == Leavers::Stay, [unchanged])
            .await;
        match &written {
            Ok(response) => self.0.lease.members_from(position(&response.log_id)),
            Err(_) => self.end_lease().await,
        }
        match written {
            Ok(response) => Ok(position(&response.log_id)),
            Err(RaftError::APIError(error)) => Err(self.write_error(error)),
            Err(RaftError::Fatal(fatal)) => Err(stopped(&fatal).with_unknown_outcome()),
        }
    }

    /// What this leader sees, and the log id of the membership that it sees.
    fn look(&self) -> Result<(Seen, Option<LogId>)> {
        let metrics = self.0.raft.metrics();
        let metrics = metrics.borrow_watched();
        if metrics.state != ServerState::Leader {
            let text = "this node does not lead: a membership change is for the leader";
            let hint = self.hint(metrics.current_leader);
            return Err(Error::new(Reason::NotLeader, text).with_leader(hint));
        }
        Ok((self.seen(&metrics), *metrics.membership_config.log_id()))
    }

    /// What this leader sees of the members; `None` if it does not lead.
    pub fn observe(&self) -> Option<Observed> {
        let (seen, _) = self.look().ok()?;
        let behind = |id: &MemberId| {
            let matched = seen.matched.get(id).copied().flatten();
            seen.last_index
                .saturating_sub(matched.map_or(0, |at| at.index))
        };
        let others = seen.members.nodes.keys().filter(|id| **id != seen.me);
        Some(Observed {
            peers: others
                .map(|id| {
                    let peer = ObservedPeer {
                        answered: seen.answered.get(id).copied(),
                        behind: behind(id),
                    };
                    (*id, peer)
                })
                .collect(),
            settled: seen.committed,
            alive_within: seen.alive_within,
            members: seen.members,
        })
    }

    /// Who can lead in this leader's place if its own disk does not answer: the best successor, if a majority has synced all
    /// that this node holds. `None` if it does not lead, or if the others' disks are no better.
    pub fn relief(&self) -> Option<MemberId> {
        let (seen, _) = self.look().ok()?;
        seen.relief()
    }

    fn seen(&self, metrics: &Metrics) -> Seen {
        let matched = metrics.replication.iter().flatten();
        let answered = metrics.heartbeat.iter().flatten();
        Seen {
            me: self.0.node,
            members: members(&metrics.membership_config),
            committed: metrics.membership_config.log_id()
                == metrics.committed_membership_config.log_id(),
            last_index: metrics.last_log_index.unwrap_or_default(),
            matched: matched
                .map(|(id, at)| (MemberId(*id), at.as_ref().map(position)))
                .collect(),
            answered: answered
                .filter_map(|(id, at)| Some((MemberId(*id), (*at)?.elapsed())))
                .collect(),
            alive_within: 2 * self.0.timing.election_max,
        }
    }

    /// Hands leadership to `to`, or to the voter that is nearest to the end of the log, and returns the
    /// new leader. For the leader only, which must take no proposals meanwhile: the target must hold
    /// everything before it is asked.
    pub async fn transfer_leadership(&self, to: Option<MemberId>) -> Result<MemberId> {
        let deadline = Instant::now() + 3 * self.0.timing.election_max;
        let _no_lease = self.0.lease.suspend();
        let (seen, _) = self.look()?;
        let target = match to {
            Some(to) if to == self.0.node => return Ok(to),
            Some(to) if seen.members.is_voter(to) => to,
            Some(to) => return Err(not_found(to, "voter")),
            None => seen.successor().ok_or_else(|| {
                Error::new(
                    Reason::NoLeader,
                    "no other voter answers: nobody can take over",
                )
            })?,
        };
        self.wait_matched(target, deadline).await?;
        // openraft asks once, and refuses proposals from here on. If the target does not take over, this
        // leader falls silent and the others elect one.
        self.ask_to_lead(target).await?;
        self.wait_leader(target, deadline).await
    }

    async fn ask_to_lead(&self, target: MemberId) -> Result<()> {
        // In a task of its own: given up half-way by its caller, there could be a lease again.
        let group = self.clone();
        let task = self.0.tasks.spawn(async move {
            let _no_lease = group.0.lease.suspend();
            let asked = group.0.raft.trigger().transfer_leader(target.0).await;
            group.end_lease().await;
            asked.map_err(|fatal| stopped(&fatal))
        });
        task.await.unwrap_or_else(|_| Err(self.fatal()))
    }

    /// No lease in this term any more, nor in any that openraft was in when it did what it was asked before.
    async fn end_lease(&self) {
        let term = |state: &openraft::RaftState<TypeConfig>| state.vote_ref().leader_id.term;
        // Raft has stopped, if there is none.
        let term = self.0.raft.with_raft_state(term).await.unwrap_or(u64::MAX);
        self.0.lease.end(term);
    }

    /// Until the target's log is as long as this one.
    async fn wait_matched(&self, target: MemberId, deadline: Instant) -> Result<()> {
        let mut metrics = self.0.raft.metrics();
        loop {
            {
                let metrics = metrics.borrow_and_update();
                if metrics.state != ServerState::Leader {
                    let text = "leadership was lost before it was handed over";
                    return Err(Error::new(Reason::LeaderChanged, text));
                }
                let matched = metrics
                    .replication
                    .as_ref()
                    .and_then(|peers| peers.get(&target.0));
                let matched = matched.cloned().flatten().map(|at| at.index);
                if matched.is_some() && matched == metrics.last_log_index {
                    return Ok(());
                }
            }
            match timeout_at(deadline, metrics.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return Err(self.fatal()),
                Err(_) => {
                    let text = format!("{target} did not catch up in time; this node still leads");
                    return Err(Error::new(Reason::DeadlineExceeded, text));
                }
            }
        }
    }

    async fn wait_leader(&self, target: MemberId, deadline: Instant) -> Result<MemberId> {
        let mut state = self.0.state.clone();
        let me = self.0.node;
        let moved = state.wait_for(|state| state.leader.is_some_and(|leader| leader != me));
        match timeout_at(deadline, moved).await {
            Ok(Ok(state)) if state.leader == Some(target) => Ok(target),
            Ok(Ok(state)) => {
                let text = format!("another voter than {target} was elected");
                Err(Error::new(Reason::LeaderChanged, text)
                    .with_leader(self.hint(state.leader.map(|leader| leader.0))))
            }
            Ok(Err(_)) => Err(self.fatal()),
            Err(_) => {
                let text = format!("{target} was asked to lead and has not taken over in time");
                Err(Error::new(Reason::DeadlineExceeded, text).with_unknown_outcome())
            }
        }
    }
}
