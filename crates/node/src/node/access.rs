//! A node, as somebody may use it.
//!
//! Whoever comes over the network gets an [`Access`] and nothing else. What it asks to be written is wrapped in its name,
//! and checked where it is applied; what it reads is checked on the very view of the state that it is read from. So it
//! does not matter that this node may lag: a write meets the newest rules, a linearizable read the rules of the moment
//! that it speaks of, and a local read the rules that belong to what it is shown.
//!
//! A watch is checked when it is made, and again whenever users, roles or permissions change, before anything that came
//! after the change. Auth being enabled ends the watches of those who did not say who they are.

use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::unfold;
use podkv_api::{
    CompactResponse, Consistency, Delete, DeleteResponse, Error, Header, KeyRange,
    LeaseGrantResponse, LeaseId, LeaseStatus, Member, NodeStatus, Put, PutResponse, Range,
    RangeResponse, RangeStream, Result, Revision, SessionId, Store, Txn, TxnResponse, Watch,
    WatchStream,
};
use podkv_core::{Answer, Caller, Command, Proposal, Rights, Stamp};

use super::{Node, Written, unexpected};
use crate::watch::{Progress, Watching};

/// A node, as one caller may use it. Cheap to clone.
#[derive(Clone)]
pub struct Access {
    node: Node,
    /// `None` is the program that embeds the node: it may do everything.
    caller: Option<Caller>,
}

impl Node {
    /// For the program that embeds the node.
    pub fn trusted(&self) -> Access {
        Access {
            node: self.clone(),
            caller: None,
        }
    }

    pub(super) fn access_of(&self, caller: Caller) -> Access {
        Access {
            node: self.clone(),
            caller: Some(caller),
        }
    }
}

impl Access {
    pub(super) fn node(&self) -> &Node {
        &self.node
    }

    pub(super) fn caller(&self) -> Option<&Caller> {
        self.caller.as_ref()
    }

    /// What the caller's sessions are bound to.
    pub fn identity(&self) -> Bytes {
        self.caller
            .as_ref()
            .map_or_else(Bytes::new, Caller::identity)
    }

    pub(super) fn wrap(&self, command: Command) -> Command {
        match &self.caller {
            Some(caller) => command.by(caller),
            None => command,
        }
    }

    pub(super) async fn rights(&self) -> Result<Rights> {
        match &self.caller {
            Some(caller) => self.node.0.query.rights(caller.clone()).await,
            None => Ok(Rights::Everything),
        }
    }

    /// For what everybody may do whom the cluster knows. Judged by this node's state as it is; what concerns the
    /// whole cluster waits with `Linearizable` for what others have decided.
    pub async fn known(&self) -> Result<&Node> {
        self.rights().await?;
        Ok(&self.node)
    }

    /// For what concerns the cluster and no key: only who may do everything may. See [`Access::known`].
    pub async fn administrator(&self, consistency: Consistency) -> Result<&Node> {
        if self.caller.is_some() && consistency != Consistency::Local {
            self.node.fresh(consistency, None).await?;
        }
        self.rights().await?.may_administer().map_err(refused)?;
        Ok(&self.node)
    }

    /// Writes one proposal, stamped by its caller or not. See [`Node::propose`].
    pub async fn propose(
        &self,
        stamp: Option<Stamp>,
        command: Command,
        timeout: Option<Duration>,
    ) -> Result<Written> {
        let command = self.wrap(command);
        let proposal = Proposal { stamp, command };
        self.node.propose(proposal, timeout).await
    }

    /// Writes in the node's own session: once, however often it is sent.
    async fn write_once(&self, command: Command) -> Result<Answer> {
        Ok(self.node.write_once(self.wrap(command)).await?.answer)
    }

    /// A range in one answer, within `timeout`; `None` waits as long as the configuration says.
    pub async fn range_within(
        &self,
        range: Range,
        timeout: Option<Duration>,
    ) -> Result<RangeResponse> {
        let node = &self.node;
        podkv_core::check_range(&range, node.limits())?;
        let query = &node.0.query;
        let read = || query.range(node.header(), range.clone(), self.caller.clone());
        node.read_at(range.consistency, timeout, read).await
    }

    /// Runs a transaction. One that cannot write is a read and does not go through the log.
    pub async fn txn_with(
        &self,
        txn: Txn,
        stamp: Option<Stamp>,
        consistency: Consistency,
        timeout: Option<Duration>,
    ) -> Result<TxnResponse> {
        let node = &self.node;
        if txn.is_read_only() {
            podkv_core::check(&Command::Txn(txn.clone()), node.limits())?;
            let query = &node.0.query;
            let read = || query.txn(node.header(), txn.clone(), self.caller.clone());
            return node.read_at(consistency, timeout, read).await;
        }
        let written = self.propose(stamp, Command::Txn(txn), timeout).await?;
        match written.answer {
            Answer::Txn(response) => Ok(response),
            _ => Err(unexpected()),
        }
    }

    /// Watches a range. "From now on" is after `at_least`, which this node's state has reached: from
    /// [`Node::revision`].
    pub async fn watching(
        &self,
        watch: Watch,
        at_least: Revision,
    ) -> Result<(Progress, WatchStream)> {
        let range = watch.range.clone();
        // Before it is checked, so that no change is missed.
        let changes = self.node.0.watches.auth_changes();
        self.may_read(&range).await?;
        let watching = self.node.0.watches.watch(watch, at_least)?;
        let progress = watching.progress();
        Ok(match self.caller {
            None => (progress, Box::pin(watching)),
            Some(_) => (progress, self.guarded(watching, range, changes)),
        })
    }

    async fn may_read(&self, range: &KeyRange) -> Result<()> {
        self.rights().await?.may_read(range).map_err(refused)
    }

    /// Ends the watch when its caller may not read the range any more.
    fn guarded(
        &self,
        watching: Watching,
        range: KeyRange,
        changes: tokio::sync::watch::Receiver<()>,
    ) -> WatchStream {
        struct Guarded {
            access: Access,
            watching: Watching,
            range: KeyRange,
            changes: tokio::sync::watch::Receiver<()>,
        }
        // Boxed: as it is handed from one step to the next, each step would keep room for one of its own.
        let guarded = Box::new(Guarded {
            access: self.clone(),
            watching,
            range,
            changes,
        });
        let messages = unfold(Some(guarded), |guarded| async move {
            let mut guarded = guarded?;
            loop {
                // A change is announced before what comes after it, and is looked at first.
                let message = tokio::select! {
                    biased;
                    Ok(()) = guarded.changes.changed() => None,
                    message = guarded.watching.next() => Some(message?),
                };
                match message {
                    Some(message) => return Some((message, Some(guarded))),
                    None => {
                        // Boxed: each of a hundred thousand watches would keep room for what is rarely asked.
                        let allowed = Box::pin(guarded.access.may_read(&guarded.range)).await;
                        if let Err(error) = allowed {
                            return Some((Err(error), None));
                        }
                    }
                }
            }
        });
        Box::pin(messages)
    }

    /// Opens a session. Opening the same id again as the same caller renews it.
    pub async fn session_open(&self, id: SessionId, ttl: Duration) -> Result<(Header, u64)> {
        let ttl_ms = u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX);
        let command = Command::SessionOpen {
            id,
            ttl_ms,
            identity: self.identity(),
        };
        let written = self.propose(None, command, None).await?;
        match written.answer {
            Answer::SessionOpen { ttl_ms } => Ok((written.header, ttl_ms)),
            _ => Err(unexpected()),
        }
    }

    /// Sets a session back to its full TTL, and returns that in milliseconds.
    pub async fn session_keep_alive(&self, id: SessionId) -> Result<(Header, u64)> {
        let node = &self.node;
        let renewal = node.0.session_renewals.renew(id, self.caller.clone());
        let (term, ttl_ms) = renewal.await?;
        let header = node.header();
        Ok((Header { term, ..header }, ttl_ms))
    }

    pub async fn session_close(&self, id: SessionId) -> Result<Header> {
        let closed = self.propose(None, Command::SessionClose { id }, None);
        Ok(closed.await?.header)
    }

    /// A task that goes on when whoever started it is gone. The node ends it, and waits for it.
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.node.spawn(task);
    }
}

pub(super) fn refused(reason: podkv_api::Reason) -> Error {
    crate::query::refused(reason).into()
}

/// Every write goes through the node's own session, so that it applies exactly once whatever leadership does meanwhile.
impl Store for Access {
    async fn put(&self, put: Put) -> Result<PutResponse> {
        match self.write_once(Command::Put(put)).await? {
            Answer::Put(response) => Ok(response),
            _ => Err(unexpected()),
        }
    }

    async fn delete(&self, delete: Delete) -> Result<DeleteResponse> {
        match self.write_once(Command::Delete(delete)).await? {
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
        match self.write_once(Command::Txn(txn)).await? {
            Answer::Txn(response) => Ok(response),
            _ => Err(unexpected()),
        }
    }

    async fn range(&self, range: Range) -> Result<RangeResponse> {
        self.range_within(range, None).await
    }

    async fn range_stream(&self, range: Range) -> Result<RangeStream> {
        let node = &self.node;
        podkv_core::check_range(&range, node.limits())?;
        let query = &node.0.query;
        // Its view is taken with it; chunks are read later.
        let read =
            || async { Ok(query.range_stream(node.header(), range.clone(), self.caller.clone())) };
        node.read_at(range.consistency, None, read).await
    }

    async fn watch(&self, watch: Watch) -> Result<WatchStream> {
        // "From now on" and "as it is now" must not miss what was acknowledged before the call.
        let needs_now = watch.list || watch.start_revision == 0;
        let consistency = if needs_now {
            Consistency::Linearizable
        } else {
            Consistency::Local
        };
        let at_least = self.node.revision(consistency, None).await?;
        Ok(self.watching(watch, at_least).await?.1)
    }

    async fn compact(&self, revision: Revision) -> Result<CompactResponse> {
        match self.write_once(Command::Compact { revision }).await? {
            Answer::Compact(response) => Ok(response),
            _ => Err(unexpected()),
        }
    }

    async fn lease_grant(&self, ttl: Duration, id: Option<LeaseId>) -> Result<LeaseGrantResponse> {
        let ttl_ms = u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX);
        // Ids are positive, so that an etcd client can take them.
        let id = id.unwrap_or_else(|| LeaseId(rand::random_range(1..=i64::MAX)));
        match self.write_once(Command::LeaseGrant { id, ttl_ms }).await? {
            Answer::LeaseGrant(response) => Ok(response),
            _ => Err(unexpected()),
        }
    }

    async fn lease_revoke(&self, id: LeaseId) -> Result<()> {
        self.write_once(Command::LeaseRevoke { id }).await?;
        Ok(())
    }

    async fn lease_keep_alive(&self, id: LeaseId) -> Result<LeaseStatus> {
        let node = &self.node;
        let renewal = node.0.lease_renewals.renew(id, self.caller.clone());
        let (term, mut status) = renewal.await?;
        status.header = Header {
            term,
            ..node.header_at(status.header.revision)
        };
        Ok(status)
    }

    async fn lease_status(&self, id: LeaseId, keys: bool) -> Result<LeaseStatus> {
        let node = &self.node;
        node.fresh(Consistency::Linearizable, None).await?;
        let now_ms = node.0.clock.borrow().map(|clock| clock.now_ms());
        let query = &node.0.query;
        query
            .lease_status(node.header(), id, keys, now_ms, self.caller.clone())
            .await
    }

    async fn leases(&self) -> Result<Vec<LeaseId>> {
        self.node.fresh(Consistency::Linearizable, None).await?;
        Ok(self.node.0.query.leases(self.caller.clone()).await?.1)
    }

    async fn members(&self) -> Result<Vec<Member>> {
        self.node.fresh(Consistency::Linearizable, None).await?;
        Ok(self.known().await?.members_known())
    }

    async fn status(&self) -> Result<NodeStatus> {
        self.known().await?.status_now().await
    }
}
