//! The node as a store.
//!
//! Every write here goes through the node's own session, so that it applies exactly once whatever
//! leadership does meanwhile.

use std::time::Duration;

use bytes::Bytes;
use podkv_api::{
    CompactResponse, Consistency, Delete, DeleteResponse, LeaseGrantResponse, LeaseId, LeaseStatus,
    Limits, Member, NodeStatus, Put, PutResponse, Range, RangeResponse, RangeStream, Reason,
    Result, Revision, SessionId, Store, Txn, TxnResponse, Watch, WatchStream,
};
use podkv_core::{Answer, Command, Proposal, Stamp};
use tokio::time::Instant;

use super::{Node, OWN_SESSION_TTL, Written, unexpected};
use crate::watch::Watching;

impl Store for Node {
    async fn put(&self, put: Put) -> Result<PutResponse> {
        match self.write_once(Command::Put(put)).await?.answer {
            Answer::Put(response) => Ok(response),
            _ => Err(unexpected()),
        }
    }

    async fn delete(&self, delete: Delete) -> Result<DeleteResponse> {
        match self.write_once(Command::Delete(delete)).await?.answer {
            Answer::Delete(response) => Ok(response),
            _ => Err(unexpected()),
        }
    }

    async fn txn(&self, txn: Txn) -> Result<TxnResponse> {
        if txn.is_read_only() {
            return self
                .txn_with(txn, None, Consistency::Linearizable, None)
                .await;
        }
        match self.write_once(Command::Txn(txn)).await?.answer {
            Answer::Txn(response) => Ok(response),
            _ => Err(unexpected()),
        }
    }

    async fn range(&self, range: Range) -> Result<RangeResponse> {
        self.range_within(range, None).await
    }

    async fn range_stream(&self, range: Range) -> Result<RangeStream> {
        podkv_core::check_range(&range, self.limits())?;
        self.fresh(range.consistency, None).await?;
        Ok(self.0.query.range_stream(self.header(), range))
    }

    async fn watch(&self, watch: Watch) -> Result<WatchStream> {
        // "From now on" and "as it is now" must not miss what was acknowledged before the call.
        let needs_now = watch.list || watch.start_revision == 0;
        let consistency = if needs_now {
            Consistency::Linearizable
        } else {
            Consistency::Local
        };
        let at_least = self.revision(consistency, None).await?;
        Ok(Box::pin(self.watching(watch, at_least)?))
    }

    async fn compact(&self, revision: Revision) -> Result<CompactResponse> {
        match self.write_once(Command::Compact { revision }).await?.answer {
            Answer::Compact(response) => Ok(response),
            _ => Err(unexpected()),
        }
    }

    async fn lease_grant(&self, ttl: Duration, id: Option<LeaseId>) -> Result<LeaseGrantResponse> {
        let ttl_ms = u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX);
        // Ids are positive, so that an etcd client can take them.
        let id = id.unwrap_or_else(|| LeaseId(rand::random_range(1..=i64::MAX)));
        match self
            .write_once(Command::LeaseGrant { id, ttl_ms })
            .await?
            .answer
        {
            Answer::LeaseGrant(response) => Ok(response),
            _ => Err(unexpected()),
        }
    }

    async fn lease_revoke(&self, id: LeaseId) -> Result<()> {
        self.write_once(Command::LeaseRevoke { id }).await?;
        Ok(())
    }

    async fn lease_keep_alive(&self, id: LeaseId) -> Result<LeaseStatus> {
        let (term, mut status) = self.0.lease_renewals.renew(id).await?;
        status.header = podkv_api::Header {
            term,
            ..self.header_at(status.header.revision)
        };
        Ok(status)
    }

    async fn lease_status(&self, id: LeaseId, keys: bool) -> Result<LeaseStatus> {
        self.fresh(Consistency::Linearizable, None).await?;
        let now_ms = self.0.clock.borrow().map(|clock| clock.now_ms());
        self.0
            .query
            .lease_status(self.header(), id, keys, now_ms)
            .await
    }

    async fn leases(&self) -> Result<Vec<LeaseId>> {
        self.fresh(Consistency::Linearizable, None).await?;
        Ok(self.0.query.leases().await?.1)
    }

    async fn members(&self) -> Result<Vec<Member>> {
        self.fresh(Consistency::Linearizable, None).await?;
        Ok(self.members_known())
    }

    async fn status(&self) -> Result<NodeStatus> {
        self.status_now().await
    }
}

impl Node {
    /// The revision of this node's state, once it is as fresh as a read of that consistency must be.
    pub async fn revision(
        &self,
        consistency: Consistency,
        timeout: Option<Duration>,
    ) -> Result<Revision> {
        Ok(self.fresh(consistency, timeout).await?.revision)
    }

    /// Watches a range. "From now on" is after `at_least`, which this node's state has reached: from
    /// [`Node::revision`].
    pub fn watching(&self, watch: Watch, at_least: Revision) -> Result<Watching> {
        self.0.watches.watch(watch, at_least)
    }

    /// A range in one answer, within `timeout`; `None` waits as long as the configuration says.
    pub async fn range_within(
        &self,
        range: Range,
        timeout: Option<Duration>,
    ) -> Result<RangeResponse> {
        podkv_core::check_range(&range, self.limits())?;
        self.fresh(range.consistency, timeout).await?;
        self.0.query.range(self.header(), range).await
    }

    /// Writes through the node's own session.
    pub(super) async fn write_once(&self, command: Command) -> Result<Written> {
        let deadline = Instant::now() + self.0.config.request_timeout;
        podkv_core::check(&command, self.limits())?;
        loop {
            let Some(ticket) = self.0.own_session.ticket()? else {
                self.open_own_session().await?;
                continue;
            };
            let stamp = Stamp {
                session: ticket.stamp,
                identity: Bytes::new(),
            };
            let proposal = Proposal {
                stamp: Some(stamp),
                command: command.clone(),
            };
            let left = deadline.saturating_duration_since(Instant::now());
            match self.propose(proposal, Some(left)).await {
                // The session expired while the program was idle. Nothing was executed in it.
                Err(error)
                    if error.reason() == Reason::SessionNotFound && Instant::now() < deadline =>
                {
                    self.0.own_session.lost(ticket.stamp.session);
                }
                result => return result,
            }
        }
    }

    async fn open_own_session(&self) -> Result<()> {
        let _only_one = self.0.opening_session.lock().await;
        if self.0.own_session.ticket()?.is_some() {
            return Ok(());
        }
        let ttl = OWN_SESSION_TTL.max(self.0.config.request_timeout * 4);
        debug_assert!(ttl.as_millis() <= u128::from(Limits::MAX_TTL_MS));
        let id = SessionId(rand::random());
        self.session_open(id, ttl, Bytes::new())
            .await
            .map_err(|error| {
                // Nothing of the caller's was sent yet.
                podkv_api::Error::new(error.reason(), error.text())
                    .with_leader(error.leader().cloned())
            })?;
        self.0.own_session.opened(id);
        Ok(())
    }
}
