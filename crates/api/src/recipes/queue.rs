//! A fair queue of processes: what the mutex and the election have in common.
//!
//! As in etcd's concurrency recipe: each waiter has a lease and puts one key, named after it, under
//! the queue's name. Who created its key first is at the front. Everybody else waits for the key
//! just before its own to vanish, so that one departure wakes one waiter, not the herd.
//!
//! ```text
//!   jobs/694d81f2a1b0c7d3   created at revision 17   at the front
//!   jobs/694d81f2a1b0c7a9   created at revision 21   watches …c7d3
//!   jobs/694d81f2a1b0c7f0   created at revision 30   watches …c7a9
//! ```
//!
//! The layout of the keys is that of etcd's Go client, so `etcdctl lock jobs` stands in the same
//! queue. Revisions only grow, so the creation revision of the front key is a fencing token.

use std::future::Future;
use std::time::Duration;

use bytes::Bytes;

use super::kept_lease::{KeptLease, KeyLife, wait_gone};
use crate::error::{Error, Reason, Result};
use crate::key::KeyRange;
use crate::kv::{KeyValue, Put, Range, Revision};
use crate::lease::LeaseId;
use crate::store::Store;
use crate::txn::{Compare, CompareOp, CompareTarget, OpResponse, Txn};

/// Long enough to ride out an election and a slow restart, short enough to wait for after a crash.
pub(super) const DEFAULT_TTL: Duration = Duration::from_secs(15);

#[derive(Clone, Debug)]
pub(super) struct Queue<S> {
    store: S,
    prefix: Bytes,
    ttl: Duration,
}

impl<S: Store> Queue<S> {
    pub(super) fn new(store: S, name: &str) -> Self {
        Self {
            store,
            prefix: format!("{name}/").into(),
            ttl: DEFAULT_TTL,
        }
    }

    pub(super) fn set_ttl(&mut self, ttl: Duration) {
        self.ttl = ttl;
    }

    pub(super) fn store(&self) -> &S {
        &self.store
    }

    /// The keys of the queue, and of whatever else lies under its name.
    pub(super) fn range(&self) -> KeyRange {
        KeyRange::prefix(self.prefix.clone())
    }

    /// Stands in the queue until it is at the front. Cancelling it leaves the queue.
    pub(super) async fn join(&self, value: Bytes) -> Result<Place> {
        let (mut place, mut waiters) = self.enter(value).await?;
        while let Some(before) = place.before(&waiters)? {
            tokio::select! {
                gone = wait_gone(&self.store, &before) => gone?,
                lost = place.lease.lost() => return Err(lost),
            }
            // It may have given up from the middle of the queue, so look again.
            waiters = place.lease.retry(|| self.waiters()).await?;
        }
        place.take()?;
        Ok(place)
    }

    /// Takes the front if nobody stands there, else leaves at once.
    pub(super) async fn try_join(&self, value: Bytes) -> Result<Option<Place>> {
        // A look costs no write, and mostly settles it.
        if !self.waiters().await?.is_empty() {
            return Ok(None);
        }
        let (mut place, waiters) = self.enter(value).await?;
        if place.before(&waiters)?.is_some() {
            // Somebody was faster. That our key goes is a courtesy to those behind us: its lease
            // would end it anyway.
            let _ = place.lease.release().await;
            return Ok(None);
        }
        place.take()?;
        Ok(Some(place))
    }

    /// Takes the last place. Returns the whole queue as of then.
    async fn enter(&self, value: Bytes) -> Result<(Place, Vec<KeyLife>)> {
        let lease = KeptLease::grant(&self.store, self.ttl).await?;
        let key: Bytes = [&self.prefix[..], format!("{}", lease.id()).as_bytes()]
            .concat()
            .into();
        let list = Range::new(self.range()).keys_only();
        let put = Put::new(key.clone(), value).lease(lease.id());
        // Safe to repeat even if its outcome is unknown: the key is ours alone, it is written
        // only if absent, and not at all once the lease is revoked.
        let txn = Txn::new()
            .when([Compare::absent(key.clone())])
            .then([put.into(), list.clone().into()])
            .or_else([list.into()]);
        let answer = lease.retry(|| self.store.txn(txn.clone())).await?;
        let Some(OpResponse::Range(listed)) = answer.responses.into_iter().next_back() else {
            return Err(Error::internal(
                "a transaction did not answer its last operation",
            ));
        };
        let waiters = self.in_order(&listed.kvs);
        let Some(own) = waiters.iter().find(|life| life.key == key).cloned() else {
            return Err(Error::internal(
                "a transaction did not list the key that it put",
            ));
        };
        Ok((Place { lease, own }, waiters))
    }

    /// Everybody in the queue, the front first. Linearizable.
    async fn waiters(&self) -> Result<Vec<KeyLife>> {
        let listed = self
            .store
            .range(Range::new(self.range()).keys_only())
            .await?;
        Ok(self.in_order(&listed.kvs))
    }

    fn in_order(&self, kvs: &[KeyValue]) -> Vec<KeyLife> {
        let own = kvs.iter().filter(|kv| self.is_place(&kv.key));
        let mut waiters: Vec<_> = own
            .map(|kv| KeyLife {
                key: kv.key.clone(),
                created: kv.create_revision,
            })
            .collect();
        waiters.sort_by_key(|life| life.created);
        waiters
    }

    /// The key at the front, with its value, among those of [`Queue::range`].
    pub(super) fn front<'a>(
        &self,
        kvs: impl Iterator<Item = &'a KeyValue>,
    ) -> Option<&'a KeyValue> {
        kvs.filter(|kv| self.is_place(&kv.key))
            .min_by_key(|kv| kv.create_revision)
    }

    /// True if the key is a place in this queue: the prefix, then a lease id in hexadecimal. What
    /// else people keep under the name, such as the queue `jobs/mail` under `jobs`, is not.
    fn is_place(&self, key: &[u8]) -> bool {
        key.strip_prefix(&self.prefix[..]).is_some_and(|id| {
            (1..=16).contains(&id.len())
                && id
                    .iter()
                    .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
        })
    }
}

/// A place in a [`Queue`]. Dropping it leaves the queue, best effort, in the lease's own task.
pub(super) struct Place {
    lease: KeptLease,
    own: KeyLife,
}

impl Place {
    /// Who stands just before this place.
    fn before(&self, waiters: &[KeyLife]) -> Result<Option<KeyLife>> {
        let is_own = |life: &KeyLife| life.key == self.own.key && life.created == self.own.created;
        match waiters.iter().position(is_own) {
            Some(at) => Ok(at.checked_sub(1).and_then(|at| waiters.get(at)).cloned()),
            None => Err(Error::new(
                Reason::LockLost,
                "the place in the queue is lost: its key was deleted",
            )),
        }
    }

    /// Called at the front: from now on the place is worth guarding.
    fn take(&mut self) -> Result<()> {
        self.lease.guard_key(self.own.clone());
        self.lease.check()
    }

    pub(super) fn key(&self) -> &Bytes {
        &self.own.key
    }

    pub(super) fn lease(&self) -> LeaseId {
        self.lease.id()
    }

    pub(super) fn fencing_token(&self) -> Revision {
        self.own.created
    }

    /// Holds in a transaction exactly while this place exists.
    pub(super) fn fence(&self) -> Compare {
        let created = CompareTarget::CreateRevision(self.own.created);
        Compare::new(self.own.key.clone(), CompareOp::Equal, created)
    }

    pub(super) fn check(&self) -> Result<()> {
        self.lease.check()
    }

    pub(super) fn lost(&self) -> impl Future<Output = Error> + Send + 'static + use<> {
        self.lease.lost()
    }

    pub(super) async fn leave(self) -> Result<()> {
        self.lease.release().await
    }
}

impl std::fmt::Debug for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Place")
            .field("key", &self.own.key)
            .field("fencing_token", &self.own.created)
            .field("lease", &self.lease.id())
            .finish()
    }
}
