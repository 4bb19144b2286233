//! The store: one trait, implemented by the embedded node and by the remote client.

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;
use futures_core::Stream;

use crate::cluster::{Member, NodeStatus};
use crate::error::Result;
use crate::key::KeyRange;
use crate::kv::{
    CompactResponse, Delete, DeleteResponse, KeyValue, Put, PutResponse, Range, RangeResponse,
    Revision,
};
use crate::lease::{LeaseGrantResponse, LeaseId, LeaseStatus};
use crate::txn::{Txn, TxnResponse};
use crate::watch::{Watch, WatchMessage};

/// A range in chunks, all at one revision. `count` and `more` stand in the last one.
pub type RangeStream = Pin<Box<dyn Stream<Item = Result<RangeResponse>> + Send>>;

/// Ends after an error. Dropping it ends the watch.
pub type WatchStream = Pin<Box<dyn Stream<Item = Result<WatchMessage>> + Send>>;

/// A podkv store.
///
/// Writes are durable on a majority when they return, and applied exactly once: the implementation
/// retries inside a session. An error for which [`Error::outcome_unknown`] is true means that the
/// write may have been applied; it never means that it was not.
///
/// A handle is cheap to clone and to share between tasks.
///
/// [`Error::outcome_unknown`]: crate::Error::outcome_unknown
pub trait Store: Clone + Send + Sync + 'static {
    /// Writes one key.
    fn put(&self, put: Put) -> impl Future<Output = Result<PutResponse>> + Send;

    /// Deletes the keys of a range.
    fn delete(&self, delete: Delete) -> impl Future<Output = Result<DeleteResponse>> + Send;

    /// Runs a transaction.
    fn txn(&self, txn: Txn) -> impl Future<Output = Result<TxnResponse>> + Send;

    /// Reads a range in one answer. For large ranges use [`Store::range_stream`].
    fn range(&self, range: Range) -> impl Future<Output = Result<RangeResponse>> + Send;

    /// Reads a range in chunks of bounded size, all at one revision.
    fn range_stream(&self, range: Range) -> impl Future<Output = Result<RangeStream>> + Send;

    /// Watches a range.
    fn watch(&self, watch: Watch) -> impl Future<Output = Result<WatchStream>> + Send;

    /// Forgets the history below `revision`; `revision` itself stays readable.
    fn compact(&self, revision: Revision) -> impl Future<Output = Result<CompactResponse>> + Send;

    /// Grants a lease. `id` is chosen if `None`.
    fn lease_grant(
        &self,
        ttl: Duration,
        id: Option<LeaseId>,
    ) -> impl Future<Output = Result<LeaseGrantResponse>> + Send;

    /// Ends a lease and deletes its keys, all in one revision.
    fn lease_revoke(&self, id: LeaseId) -> impl Future<Output = Result<()>> + Send;

    /// Sets a lease back to its full TTL, and says how it is then.
    fn lease_keep_alive(&self, id: LeaseId) -> impl Future<Output = Result<LeaseStatus>> + Send;

    /// How a lease is, with its keys if `keys`.
    fn lease_status(
        &self,
        id: LeaseId,
        keys: bool,
    ) -> impl Future<Output = Result<LeaseStatus>> + Send;

    /// Every lease.
    fn leases(&self) -> impl Future<Output = Result<Vec<LeaseId>>> + Send;

    /// The members of the cluster, as committed.
    fn members(&self) -> impl Future<Output = Result<Vec<Member>>> + Send;

    /// How the node that answers is.
    fn status(&self) -> impl Future<Output = Result<NodeStatus>> + Send;

    /// The key, or `None`. Linearizable.
    fn get(&self, key: impl Into<Bytes>) -> impl Future<Output = Result<Option<KeyValue>>> + Send {
        let range = Range::new(KeyRange::key(key));
        async move { Ok(self.range(range).await?.kvs.pop()) }
    }
}
