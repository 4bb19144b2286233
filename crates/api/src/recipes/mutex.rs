//! A lock that one process holds at a time, wherever it runs.

use std::future::Future;
use std::time::Duration;

use bytes::Bytes;

use super::queue::{Place, Queue};
use crate::error::{Error, Result};
use crate::kv::Revision;
use crate::store::Store;
use crate::txn::Compare;

/// A lock shared by all who use the same name on the same store.
///
/// Waiters get it in the order in which they came. A holder that crashes frees it when its lease
/// expires, one TTL later at most.
///
/// No lock over a network can stop a holder that was paused and does not know that it lost the
/// lock. So guard what the lock protects:
///
/// - writes to the same store by [`MutexGuard::fence`] in their transaction;
/// - other resources by [`MutexGuard::fencing_token`], which they must check;
/// - long work by giving up when [`MutexGuard::lost`] resolves.
///
/// ```no_run
/// use podkv_api::recipes::Mutex;
/// use podkv_api::{Put, Result, Store, Txn};
///
/// async fn run_nightly<S: Store>(store: S) -> Result<()> {
///     let guard = Mutex::new(store.clone(), "jobs/nightly").lock().await?;
///     tokio::select! {
///         result = work(&store) => result?,
///         lost = guard.lost() => return Err(lost),
///     }
///     // Written only if the lock is still ours at that very revision.
///     let done = Put::new("jobs/nightly-done", "yes");
///     store.txn(Txn::new().when([guard.fence()]).then([done.into()])).await?;
///     guard.unlock().await
/// }
/// # async fn work<S: Store>(_: &S) -> Result<()> { Ok(()) }
/// ```
///
/// The keys lie under `name/`, named as etcd's Go client names them: `etcdctl lock` and this lock
/// exclude each other. Do not use one name for a mutex and for an [`Election`](super::Election).
#[derive(Clone, Debug)]
pub struct Mutex<S> {
    queue: Queue<S>,
}

impl<S: Store> Mutex<S> {
    /// Writes nothing yet.
    pub fn new(store: S, name: &str) -> Self {
        Self {
            queue: Queue::new(store, name),
        }
    }

    /// How long a holder that crashed keeps the others waiting; 15 s unless set. The store raises
    /// what is too short for it.
    pub fn with_ttl(mut self, ttl: Duration) -> Self {
        self.queue.set_ttl(ttl);
        self
    }

    /// Waits for its turn, however long that takes.
    ///
    /// Cancel safe: dropping the future leaves the queue in the background. If the store cannot be
    /// reached then, the place is gone one TTL later.
    ///
    /// # Errors
    ///
    /// [`Reason::LockLost`](crate::Reason::LockLost) if the place in the queue was lost: the store
    /// was out of reach for a whole TTL, or somebody deleted the key. Other errors as from
    /// [`Store::lease_grant`] and [`Store::txn`]. After any error the lock is not held.
    pub async fn lock(&self) -> Result<MutexGuard> {
        let place = self.queue.join(Bytes::new()).await?;
        Ok(MutexGuard { place })
    }

    /// Takes the lock if it is free. `None` means that somebody holds it, waits for it, or is just
    /// trying too.
    ///
    /// # Errors
    ///
    /// As [`Mutex::lock`].
    pub async fn try_lock(&self) -> Result<Option<MutexGuard>> {
        let place = self.queue.try_join(Bytes::new()).await?;
        Ok(place.map(|place| MutexGuard { place }))
    }
}

/// The lock is held while this lives and [`MutexGuard::lost`] has not resolved.
///
/// Dropping it frees the lock in a background task, as well as it can;
/// [`MutexGuard::unlock`] waits for that and reports.
#[derive(Debug)]
#[must_use = "the lock is freed when the guard is dropped"]
pub struct MutexGuard {
    place: Place,
}

impl MutexGuard {
    /// The revision that created the lock's key. Each holder's is greater than that of all holders
    /// before, so a resource that remembers the greatest one can refuse a holder of the past.
    pub fn fencing_token(&self) -> Revision {
        self.place.fencing_token()
    }

    /// A condition for transactions: it holds only while this guard's lock does. Unlike
    /// [`MutexGuard::check`] it cannot be outrun, since it is decided where the write is.
    pub fn fence(&self) -> Compare {
        self.place.fence()
    }

    /// The lock's key in the store.
    pub fn key(&self) -> &Bytes {
        self.place.key()
    }

    /// `Ok` while the lock is surely held.
    ///
    /// # Errors
    ///
    /// [`Reason::LockLost`](crate::Reason::LockLost), for good, from when [`MutexGuard::lost`]
    /// resolves.
    pub fn check(&self) -> Result<()> {
        self.place.check()
    }

    /// Resolves when the lock may be lost: its lease was not renewed in time, or its key is gone.
    /// The error is [`Reason::LockLost`](crate::Reason::LockLost).
    ///
    /// It resolves before the store gives the lock to another, as long as this process runs and
    /// its clock is not more than one percent slow. The future borrows nothing, so that it can
    /// move into the task that does the work. It resolves too when the lock is freed.
    pub fn lost(&self) -> impl Future<Output = Error> + Send + 'static + use<> {
        self.place.lost()
    }

    /// Frees the lock and waits until the next in line may have it. Takes up to one TTL if the
    /// store is out of reach.
    ///
    /// # Errors
    ///
    /// [`Reason::LockLost`](crate::Reason::LockLost) if it was lost before: another may have held
    /// it meanwhile. With any other error the lock is freed at the latest by its lease, within one
    /// TTL.
    pub async fn unlock(self) -> Result<()> {
        self.place.leave().await
    }
}
