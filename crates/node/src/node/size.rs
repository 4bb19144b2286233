//! The desired size, as the node around it sees it.

use std::time::Duration;

use podkv_api::{Consistency, DesiredSize, Result};
use tokio::sync::watch;

use super::Node;
use crate::bootstrap::founders::PodName;
use crate::discovery::Ordinals;
use crate::health::Health;
use crate::size::{self, SizeFollower};

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
        let beyond = |size: &DesiredSize| {
            let ordinals = Ordinals {
                start: size.start,
                replicas: size.replicas,
            };
            size.replicas > 0 && !ordinals.contains(mine)
        };
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
    /// this node. Returns then, as soon as this node learns of it; never, if it does not.
    pub async fn leave(&self) {
        self.0.health.send_replace(Health::leaving());
        let mut state = self.0.group.state();
        let me = self.id();
        let excluded = state.wait_for(|state| {
            state.members_committed
                && !state.members.nodes.is_empty()
                && !state.members.contains(me)
        });
        if excluded.await.is_err() {
            // The node has stopped.
            std::future::pending::<()>().await;
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
