//! The node as a store: for the program that embeds it, which may do everything. See [`Access`](super::Access).

use std::time::Duration;

use bytes::Bytes;
use podkv_api::{
    CompactResponse, Consistency, Delete, DeleteResponse, LeaseGrantResponse, LeaseId, LeaseStatus,
    Limits, Member, NodeStatus, Put, PutResponse, Range, RangeResponse, RangeStream, Reason,
    Result, Revision, SessionId, Store, Txn, TxnResponse, Watch, WatchStream,
};
use podkv_core::{Command, Proposal, Stamp};
use tokio::time::Instant;

use super::{Node, OWN_SESSION_TTL, Written};

impl Store for Node {
    async fn put(&self, put: Put) -> Result<PutResponse> {
        self.trusted().put(put).await
    }

    async fn delete(&self, delete: Delete) -> Result<DeleteResponse> {
        self.trusted().delete(delete).await
    }

    async fn txn(&self, txn: Txn) -> Result<TxnResponse> {
        self.trusted().txn(txn).await
    }

    async fn range(&self, range: Range) -> Result<RangeResponse> {
        self.trusted().range(range).await
    }

    async fn range_stream(&self, range: Range) -> Result<RangeStream> {
        self.trusted().range_stream(range).await
    }

    async fn watch(&self, watch: Watch) -> Result<WatchStream> {
        self.trusted().watch(watch).await
    }

    async fn compact(&self, revision: Revision) -> Result<CompactResponse> {
        self.trusted().compact(revision).await
    }

    async fn lease_grant(&self, ttl: Duration, id: Option<LeaseId>) -> Result<LeaseGrantResponse> {
        self.trusted().lease_grant(ttl, id).await
    }

    async fn lease_revoke(&self, id: LeaseId) -> Result<()> {
        self.trusted().lease_revoke(id).await
    }

    async fn lease_keep_alive(&self, id: LeaseId) -> Result<LeaseStatus> {
        self.trusted().lease_keep_alive(id).await
    }

    async fn lease_status(&self, id: LeaseId, keys: bool) -> Result<LeaseStatus> {
        self.trusted().lease_status(id, keys).await
    }

    async fn leases(&self) -> Result<Vec<LeaseId>> {
        self.trusted().leases().await
    }

    async fn members(&self) -> Result<Vec<Member>> {
        self.trusted().members().await
    }

    async fn status(&self) -> Result<NodeStatus> {
        self.trusted().status().await
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
                // The session expired while the program was idle. Nothing was executed in it, or the outcome would be unknown.
                Err(error)
                    if error.reason() == Reason::SessionNotFound
                        && !error.outcome_unknown()
                        && Instant::now() < deadline =>
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
        let opened = self.trusted().session_open(id, ttl).await;
        opened.map_err(|error| {
            // Nothing of the caller's was sent yet.
            podkv_api::Error::new(error.reason(), error.text()).with_leader(error.leader().cloned())
        })?;
        self.0.own_session.opened(id);
        Ok(())
    }
}
