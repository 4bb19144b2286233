//! The desired size, as the node around it sees it.

use std::time::Duration;

use podkv_api::{Consistency, DesiredSize, MemberId, Reason, Result};
use tokio::sync::watch;

use super::Node;
use super::admin::Change;
use crate::bootstrap::founders::PodName;
use crate::discovery::Ordinals;
use crate::health::Health;
use crate::peer::pool::Lane;
use crate::peer::standing::is_member;
use crate::raft::GroupState;
use crate::size::{self, SizeFollower};

/// How often a node that is to leave asks whether it is out.
const LOOK: Duration = Duration::from_millis(500);
/// For one answer. A leader confirms within the time of an election, or not at all.
const ASK_TIMEOUT: Duration = Duration::from_secs(2);

impl Node {
    /// What keeps the size source from being followed, in words; `None` if nothing does, if there is no
    /// source, or if another node asks it.
    pub fn size_waits(&self) -> Option<String> {
        self.0.size_waits.borrow().clone()
    }

    /// The desired size, if this pod is beyond it. Certain, or `None`: it is read now, from the size source,
    /// or else from what a majority agreed on. 0 replicas is suspension: nobody is beyond it.
    pub async fn beyond_size(&self, timeout: Duration) -> Option<DesiredSize> {
        match self.read_beyond(timeout).await {
            Ok(size) => size,
            Err(error) => {
                tracing::info!(%error, "the desired size is unknown: it may be a restart");
                None
            }
        }
    }

    async fn read_beyond(&self, timeout: Duration) -> Result<Option<DesiredSize>> {
        let mine = PodName::parse(&self.0.config.name)?.ordinal();
        let beyond = |size: &DesiredSize| size.replicas > 0 && !Ordinals::from(size).contains(mine);
        if let Some(source) = &self.0.size_source {
            let limit = timeout.min(self.0.config.membership.read_size_timeout);
            return Ok(Some(size::read(&**source, limit).await?).filter(beyond));
        }
        // Most stops are restarts, also of the last node of a cluster: those ask nobody else.
        if !self
            .0
            .query
            .desired_size()
            .await?
            .is_some_and(|size| beyond(&size))
        {
            return Ok(None);
        }
        self.fresh(Consistency::Linearizable, Some(timeout)).await?;
        Ok(self.0.query.desired_size().await?.filter(beyond))
    }

    /// Unready from now on, and takes no new streams, but votes: until committed membership is without
    /// this node, and then it returns. Waits for that as long as it takes.
    ///
    /// The leader takes out the pods of its own set. A read-only replica is of another, and has itself taken out.
    pub async fn leave(&self) {
        self.0.health.send_replace(Health::leaving());
        while !self.is_out().await {
            if self.0.config.read_only
                && let Err(error) = self.change(Change::Remove(self.id())).await
            {
                tracing::debug!(%error, "not taken out yet");
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// By its own log, or, as it may never hear of it there, by the leader's word.
    async fn is_out(&self) -> bool {
        let state = self.0.group.state().borrow().clone();
        if state.is_without(self.id()) {
            return true;
        }
        // Who leads may be unknown to a node that is out; the others say that they do not.
        let others = state.members.nodes.keys().filter(|id| **id != self.id());
        for id in state.leader.iter().chain(others) {
            let asked = self.ask_standing(*id, &state);
            if let Ok(Some(member)) = tokio::time::timeout(ASK_TIMEOUT, asked).await {
                return !member;
            }
        }
        false
    }

    /// Whether this node is a member. `None` if that node does not lead, or does not answer.
    async fn ask_standing(&self, id: MemberId, state: &GroupState) -> Option<bool> {
        let address = state.members.nodes.get(&id)?;
        let lane = self.0.peers.client(id, address, Lane::Control);
        let client = lane.get().await.ok()?;
        match is_member(client, lane.header()).await {
            Ok(member) => Some(member),
            Err(error) => {
                if error.reason() != Reason::NodeNotReady {
                    lane.broken();
                }
                None
            }
        }
    }

    /// The pods that are to found the cluster, as they become known.
    pub(super) fn follow_size(&self) -> watch::Receiver<Result<Ordinals, String>> {
        let inner = &self.0;
        let Some(source) = inner.size_source.clone() else {
            let replicas = inner.config.replicas;
            return watch::channel(Ok(Ordinals { start: 0, replicas })).1;
        };
        let (sender, expected) =
            watch::channel(Err("the StatefulSet has not been read yet".to_string()));
        let follower = SizeFollower {
            me: self.id(),
            source,
            identity: inner.identity.clone(),
            group: inner.group.clone(),
            state: inner.storage.state.clone(),
            writer: inner.writer.clone(),
            timing: inner.config.membership.clone(),
            request_timeout: inner.config.request_timeout,
            expected: sender,
            waiting: inner.size_waits.clone(),
        };
        inner.tasks.spawn(follower.run(inner.stop.clone()));
        expected
    }
}
