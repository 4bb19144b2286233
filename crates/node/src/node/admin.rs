//! Membership, leadership, status, backup: what operators ask of a node.
//!
//! A change of membership is made by the leader. Any node takes the call and passes it on.

use std::time::Duration;

use podkv_api::{
    Alarm, Bytes, Consistency, DesiredSize, Error, Header, Member, MemberId, NodeStatus, Reason,
    Result, Retention, Revision,
};
use podkv_core::Command;
use podkv_proto::peer as wire;
use tokio::time::Instant;

use super::Node;
use crate::bootstrap::founders::PodName;
use crate::discovery::Ordinals;
use crate::membership::{LogPosition, PeerAddress};
use crate::peer::pool::Lane;

/// Between two attempts to reach the leader.
const RETRY: Duration = Duration::from_millis(50);

/// A change that the leader makes.
#[derive(Clone, Debug)]
pub(crate) enum Change {
    AddLearner(MemberId, PeerAddress),
    Promote(MemberId),
    Remove(MemberId),
    /// The learner `new` takes the vote of `old`, which leaves, in one joint change.
    Replace {
        old: MemberId,
        new: MemberId,
    },
    /// `None` lets the leader choose the voter that is furthest.
    Transfer(Option<MemberId>),
}

/// See [`Node::data_digest`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DataDigest {
    pub header: Header,
    /// What it is of.
    pub revision: Revision,
    pub compacted_revision: Revision,
    pub sha256: [u8; 32],
}

impl Node {
    /// Adds a node as a learner. It votes after [`Node::promote_member`].
    pub async fn add_member(&self, member: Member) -> Result<(Header, Vec<Member>)> {
        let address = PeerAddress {
            name: member.name,
            peer_address: member.peer_address,
            client_address: member.client_address,
        };
        self.change(Change::AddLearner(member.id, address)).await?;
        Ok((self.header(), self.members_known()))
    }

    /// Makes a learner that has caught up a voter.
    pub async fn promote_member(&self, id: MemberId) -> Result<(Header, Vec<Member>)> {
        self.change(Change::Promote(id)).await?;
        Ok((self.header(), self.members_known()))
    }

    pub async fn remove_member(&self, id: MemberId) -> Result<(Header, Vec<Member>)> {
        self.change(Change::Remove(id)).await?;
        Ok((self.header(), self.members_known()))
    }

    /// Gives the vote of `old`, which leaves, to the learner `new`, in one joint change: the number of
    /// voters never falls in between.
    pub async fn replace_member(
        &self,
        old: MemberId,
        new: MemberId,
    ) -> Result<(Header, Vec<Member>)> {
        self.change(Change::Replace { old, new }).await?;
        Ok((self.header(), self.members_known()))
    }

    /// Hands leadership to a voter and waits until it leads.
    pub async fn transfer_leadership(&self, to: Option<MemberId>) -> Result<(Header, MemberId)> {
        let leader = self.change(Change::Transfer(to)).await?;
        Ok((self.header(), leader))
    }

    /// Sets how much history automatic compaction leaves.
    pub async fn set_retention(&self, retention: Retention) -> Result<Header> {
        let command = Command::SetRetention(retention);
        Ok(self.write_once(command).await?.header)
    }

    /// Refuses every write below `prefix` from now on, with [`Reason::Frozen`]. Leases and TTLs still expire there. Returns
    /// all frozen prefixes.
    ///
    /// # Errors
    /// [`Reason::TooManyFrozen`].
    pub async fn freeze(&self, prefix: Bytes) -> Result<(Header, Vec<Bytes>)> {
        self.write_once(Command::Freeze { prefix }).await?;
        self.frozen().await
    }

    /// Lets a prefix be written again that was frozen.
    ///
    /// # Errors
    /// [`Reason::NotFrozen`]: that very prefix is not.
    pub async fn thaw(&self, prefix: Bytes) -> Result<(Header, Vec<Bytes>)> {
        self.write_once(Command::Thaw { prefix }).await?;
        self.frozen().await
    }

    /// The frozen prefixes.
    pub async fn frozen(&self) -> Result<(Header, Vec<Bytes>)> {
        self.fresh(Consistency::Linearizable, None).await?;
        let prefixes = self.0.query.frozen().await?;
        Ok((self.header(), prefixes))
    }

    /// What is wrong with which members.
    pub async fn alarms(&self, consistency: Consistency) -> Result<(Header, Vec<Alarm>)> {
        self.fresh(consistency, None).await?;
        let alarms = self.0.query.alarms().await?;
        Ok((self.header(), alarms))
    }

    /// Takes an alarm back by hand. If what raised it still holds, it is raised again. Returns those that are left.
    pub async fn disarm(&self, alarm: Alarm) -> Result<(Header, Vec<Alarm>)> {
        self.write_once(Command::ClearAlarm(alarm)).await?;
        self.alarms(Consistency::Linearizable).await
    }

    /// Sets by hand how many pods there should be, the ordinals from `start` on. Whoever is beyond it leaves
    /// after half a minute.
    pub async fn resize(&self, start: u32, replicas: u32) -> Result<(Header, DesiredSize)> {
        self.fresh(Consistency::Linearizable, None).await?;
        let by_hand = self.0.query.desired_size().await?;
        let by_hand = by_hand.filter(|size| size.source.is_empty());
        let size = DesiredSize {
            source: String::new(),
            generation: by_hand.map_or(0, |size| size.generation) + 1,
            start,
            replicas,
        };
        let command = Command::SetDesiredSize(size.clone());
        Ok((self.write_once(command).await?.header, size))
    }

    /// Builds a snapshot of this node's state now, and purges the log that it covers, but for the last
    /// [`log_keep_bytes`](crate::NodeConfig::log_keep_bytes). Returns a log index that the snapshot
    /// covers, at least as high as what was applied before the call. The log is freed in the background.
    ///
    /// A node does this by itself, by [`snapshot_log_bytes`](crate::NodeConfig::snapshot_log_bytes) and
    /// [`snapshot_interval`](crate::NodeConfig::snapshot_interval); this is for who needs the space now.
    /// Writes go on meanwhile. Concerns this node alone.
    ///
    /// # Errors
    /// [`Reason::Overloaded`] while a snapshot is on its way to a peer, which needs the log behind it;
    /// [`Reason::NodeNotReady`] if nothing is applied yet.
    pub async fn purge_log(&self) -> Result<u64> {
        let covered = self
            .0
            .group
            .snapshot_and_purge(self.0.config.log_keep_bytes)
            .await?;
        match covered {
            Some(position) => Ok(position.index),
            None if self.0.group.applied().borrow().position == LogPosition::default() => {
                let text = "there is nothing to build a snapshot of: nothing is applied here yet";
                Err(Error::new(Reason::NodeNotReady, text))
            }
            None => {
                let text = "a snapshot is on its way to a peer: try again when it has arrived";
                Err(Error::new(Reason::Overloaded, text))
            }
        }
    }

    /// The digest of all keys with their values as of a revision; 0 is the newest that is applied here. Equal on every
    /// node for the same revision.
    pub async fn data_digest(&self, revision: Revision) -> Result<DataDigest> {
        self.fresh(Consistency::Local, None).await?;
        let (meta, sha256) = self.0.query.data_digest(revision).await?;
        let revision = match revision {
            0 => meta.revision,
            _ => revision,
        };
        Ok(DataDigest {
            header: self.header_at(meta.revision),
            revision,
            compacted_revision: meta.compacted_revision,
            sha256,
        })
    }

    /// A task that goes on when whoever started it is gone. The node ends it, and waits for it.
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let stop = self.0.stop.clone();
        self.0.tasks.spawn(async move {
            stop.run_until_cancelled(task).await;
        });
    }

    /// The members as this node knows them.
    pub fn members_known(&self) -> Vec<Member> {
        self.0.group.state().borrow().members.list()
    }

    /// Makes a change here or at the leader, and returns the leader afterwards.
    pub(crate) async fn change(&self, change: Change) -> Result<MemberId> {
        let deadline = Instant::now() + self.0.config.request_timeout;
        loop {
            let result = match self.leader() {
                Some(leader) if leader == self.id() => self.change_here(change.clone()).await,
                Some(leader) => self.change_at(leader, &change, deadline).await,
                None => Err(Error::new(
                    Reason::NoLeader,
                    "no leader is known; a change of membership needs one",
                )),
            };
            match result {
                Err(error)
                    if error.is_retryable()
                        && !error.outcome_unknown()
                        && Instant::now() + RETRY < deadline =>
                {
                    tokio::time::sleep(RETRY).await;
                }
                result => return result,
            }
        }
    }

    /// Makes a change as the leader.
    pub(super) async fn change_here(&self, change: Change) -> Result<MemberId> {
        match change {
            Change::AddLearner(id, address) => {
                self.check_ordinal(&address.name).await?;
                self.0.group.add_learner(id, address).await?
            }
            Change::Promote(id) => self.0.group.promote(id).await?,
            Change::Remove(id) => self.0.group.remove(id).await?,
            Change::Replace { old, new } => self.0.group.replace(old, new).await?,
            Change::Transfer(to) => return self.hand_over(to).await,
        };
        Ok(self.id())
    }

    /// A pod beyond the size would only be removed again.
    async fn check_ordinal(&self, name: &str) -> Result<()> {
        let size = self.0.query.desired_size().await?;
        let (Some(size), Ok(name), Ok(mine)) = (
            size.filter(|size| size.replicas > 0),
            PodName::parse(name),
            PodName::parse(&self.0.config.name),
        ) else {
            return Ok(());
        };
        let ordinals = Ordinals::from(&size).range();
        if name.base() != mine.base() || ordinals.contains(&name.ordinal()) {
            return Ok(());
        }
        let text = format!(
            "{name} is beyond the desired size: ordinals {} to {}",
            ordinals.start,
            ordinals.end - 1
        );
        Err(Error::new(Reason::MembershipConflict, text))
    }

    async fn change_at(
        &self,
        leader: MemberId,
        change: &Change,
        deadline: Instant,
    ) -> Result<MemberId> {
        let unreachable = || Error::new(Reason::Unreachable, "the leader does not answer");
        let state = self.0.group.state().borrow().clone();
        let address = state.members.nodes.get(&leader).ok_or_else(unreachable)?;
        let lane = self.0.peers.client(leader, address, Lane::Control);
        let mut client = lane
            .get()
            .await
            .map_err(|error| unreachable().with_source(error))?;
        let request = wire::AdminRequest {
            header: Some(lane.header()),
            change: Some(to_wire(change)),
        };
        let answer = match tokio::time::timeout_at(deadline, client.admin(request)).await {
            Ok(Ok(answer)) => answer.into_inner(),
            Ok(Err(status)) => {
                lane.broken();
                return Err(unreachable().with_source(status).with_unknown_outcome());
            }
            Err(_) => {
                let text = "the leader did not answer in time";
                return Err(Error::new(Reason::DeadlineExceeded, text).with_unknown_outcome());
            }
        };
        match answer.refusal {
            None => Ok(MemberId(answer.leader_id)),
            Some(refusal) => {
                let reason =
                    u16::try_from(refusal.reason).map_or(Reason::Internal, Reason::from_code);
                let error = Error::new(reason, refusal.text);
                Err(if answer.outcome_unknown {
                    error.with_unknown_outcome()
                } else {
                    error
                })
            }
        }
    }

    pub(super) async fn status_now(&self) -> Result<NodeStatus> {
        let meta = self.0.query.meta().await?;
        let desired_size = self.0.query.desired_size().await?;
        let alarms = self.0.query.alarms().await?;
        let state = self.0.group.state().borrow().clone();
        let log = self.0.group.log_stats();
        let members = state.members.list();
        let me = self.id();
        Ok(NodeStatus {
            // Of the same moment as the leader: or one term's leader is told for another term.
            header: Header {
                term: state.term,
                ..self.header_at(meta.revision)
            },
            name: self.0.config.name.clone(),
            version: env!("CARGO_PKG_VERSION").into(),
            role: members
                .iter()
                .find(|member| member.id == me)
                .map(|member| member.role),
            leader: state.leader,
            committed_index: state.committed.map_or(0, |position| position.index),
            applied_index: state.applied.map_or(0, |position| position.index),
            first_log_index: log.first,
            last_log_index: log.last,
            snapshot_index: state.snapshot.map_or(0, |position| position.index),
            compacted_revision: meta.compacted_revision,
            keys: meta.keys,
            disk_bytes: self.0.storage.log.disk_bytes() + self.0.storage.state.disk_bytes(),
            lease_reads: self.0.config.lease_reads,
            durable: self.0.storage.log.is_durable(),
            clock_ms: self
                .0
                .clock
                .borrow()
                .map_or(meta.clock_ms, |clock| clock.now_ms()),
            retention: meta.retention,
            feature_level: meta.feature_level,
            desired_size,
            alarms,
        })
    }
}

fn to_wire(change: &Change) -> wire::admin_request::Change {
    use wire::admin_request::Change as Wire;
    match change {
        Change::AddLearner(id, address) => Wire::AddLearner(wire::Founder {
            name: address.name.clone(),
            node_id: id.0,
            peer_address: address.peer_address.clone(),
            client_address: address.client_address.clone(),
            voter: false,
        }),
        Change::Promote(id) => Wire::Promote(id.0),
        Change::Remove(id) => Wire::Remove(id.0),
        Change::Replace { old, new } => Wire::Replace(wire::Replacement {
            old: old.0,
            new: new.0,
        }),
        Change::Transfer(to) => Wire::TransferTo(to.map_or(0, |id| id.0)),
    }
}

pub(super) fn from_wire(change: wire::admin_request::Change) -> Change {
    use wire::admin_request::Change as Wire;
    match change {
        Wire::AddLearner(founder) => Change::AddLearner(
            MemberId(founder.node_id),
            PeerAddress {
                name: founder.name,
                peer_address: founder.peer_address,
                client_address: founder.client_address,
            },
        ),
        Wire::Promote(id) => Change::Promote(MemberId(id)),
        Wire::Remove(id) => Change::Remove(MemberId(id)),
        Wire::Replace(wire::Replacement { old, new }) => Change::Replace {
            old: MemberId(old),
            new: MemberId(new),
        },
        Wire::TransferTo(id) => Change::Transfer((id != 0).then_some(MemberId(id))),
    }
}
