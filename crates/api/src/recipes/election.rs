//! One leader at a time among many candidates.

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;
use futures_core::Stream;
use futures_util::stream;

use super::mirror::Mirror;
use super::queue::{Place, Queue};
use crate::error::{Error, Reason, Result};
use crate::kv::{KeyValue, Put, Range, Revision};
use crate::store::Store;
use crate::txn::{Compare, Txn};

/// An election among all who use the same name on the same store.
///
/// Candidates lead in the order in which they came. A leader that crashes is followed by the next
/// one when its lease expires, one TTL later at most. What is said of a paused holder at
/// [`Mutex`](super::Mutex) holds for leaders too: fence what they write.
///
/// ```no_run
/// use podkv_api::recipes::Election;
/// use podkv_api::{Result, Store};
///
/// async fn lead<S: Store>(store: S, pod: String) -> Result<()> {
///     let election = Election::new(store, "scheduler");
///     loop {
///         let leadership = election.campaign(pod.clone()).await?;
///         tokio::select! {
///             () = schedule() => return leadership.resign().await,
///             lost = leadership.lost() => eprintln!("{lost}; standing again"),
///         }
///     }
/// }
/// # async fn schedule() {}
/// ```
///
/// The keys lie under `name/`, named as etcd's Go client names them.
#[derive(Clone, Debug)]
pub struct Election<S> {
    queue: Queue<S>,
}

/// A leader, as others see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leader {
    /// The leader's key in the store.
    pub key: Bytes,
    /// What it campaigned with, or proclaimed last.
    pub value: Bytes,
    /// The same as its [`Leadership::fencing_token`].
    pub fencing_token: Revision,
    /// The revision that wrote `value`.
    pub revision: Revision,
}

/// The leader now, then each change; `None` while nobody leads. A slow reader gets the newest and
/// misses what is past. It has no errors, and ends only
/// if the store panics.
pub type LeaderStream = Pin<Box<dyn Stream<Item = Option<Leader>> + Send>>;

impl<S: Store> Election<S> {
    /// Writes nothing yet.
    pub fn new(store: S, name: &str) -> Self {
        Self {
            queue: Queue::new(store, name),
        }
    }

    /// How long a leader that crashed stays without a successor; 15 s unless set. The store raises
    /// what is too short for it.
    pub fn with_ttl(mut self, ttl: Duration) -> Self {
        self.queue.set_ttl(ttl);
        self
    }

    /// Waits until it leads, however long that takes. `value` is what the others see: mostly the
    /// leader's name or address.
    ///
    /// Cancel safe, as [`Mutex::lock`](super::Mutex::lock) is.
    ///
    /// # Errors
    ///
    /// As [`Mutex::lock`](super::Mutex::lock).
    pub async fn campaign(&self, value: impl Into<Bytes>) -> Result<Leadership<S>> {
        let place = self.queue.join(value.into()).await?;
        let store = self.queue.store().clone();
        Ok(Leadership { store, place })
    }

    /// Who leads; `None` if nobody does. Linearizable.
    ///
    /// # Errors
    ///
    /// As [`Store::range`].
    pub async fn leader(&self) -> Result<Option<Leader>> {
        let listed = self
            .queue
            .store()
            .range(Range::new(self.queue.range()))
            .await?;
        Ok(self.leader_among(listed.kvs.iter()))
    }

    /// Follows who leads. Lost watches and compactions only delay it.
    ///
    /// # Errors
    ///
    /// As [`Mirror::open`].
    pub async fn observe(&self) -> Result<LeaderStream> {
        let mirror = Mirror::open(self.queue.store(), self.queue.range()).await?;
        let start = Observer {
            election: self.clone(),
            mirror,
            looked_at: 0,
            told: None,
        };
        let leaders = stream::unfold(start, async |mut observer| {
            let leader = observer.next().await?;
            Some((leader, observer))
        });
        Ok(Box::pin(leaders))
    }

    fn leader_among<'a>(&self, kvs: impl Iterator<Item = &'a KeyValue>) -> Option<Leader> {
        self.queue.front(kvs).map(|kv| Leader {
            key: kv.key.clone(),
            value: kv.value.clone(),
            fencing_token: kv.create_revision,
            revision: kv.mod_revision,
        })
    }
}

/// The state of a [`LeaderStream`].
struct Observer<S> {
    election: Election<S>,
    mirror: Mirror,
    looked_at: Revision,
    /// The last item of the stream; `None` before the first.
    told: Option<Option<Leader>>,
}

impl<S: Store> Observer<S> {
    async fn next(&mut self) -> Option<Option<Leader>> {
        loop {
            let candidates = self.mirror.changed(self.looked_at).await.ok()?;
            self.looked_at = candidates.revision();
            let leader = self.election.leader_among(candidates.iter());
            // Most changes are candidates coming and going.
            if self.told.as_ref() != Some(&leader) {
                self.told = Some(leader.clone());
                return Some(leader);
            }
        }
    }
}

/// The candidate leads while this lives and [`Leadership::lost`] has not resolved.
///
/// Dropping it resigns in a background task, as well as it can; [`Leadership::resign`] waits for
/// that and reports.
#[derive(Debug)]
#[must_use = "dropping the leadership resigns"]
pub struct Leadership<S> {
    store: S,
    place: Place,
}

impl<S: Store> Leadership<S> {
    /// The revision that created the leader's key. Each leader's is greater than that of all
    /// leaders before.
    pub fn fencing_token(&self) -> Revision {
        self.place.fencing_token()
    }

    /// A condition for transactions: it holds only while this leadership does.
    pub fn fence(&self) -> Compare {
        self.place.fence()
    }

    /// The leader's key in the store.
    pub fn key(&self) -> &Bytes {
        self.place.key()
    }

    /// `Ok` while it surely leads.
    ///
    /// # Errors
    ///
    /// [`Reason::LockLost`], for good, from when [`Leadership::lost`] resolves.
    pub fn check(&self) -> Result<()> {
        self.place.check()
    }

    /// Resolves with [`Reason::LockLost`] when it may not lead any more. See
    /// [`MutexGuard::lost`](super::MutexGuard::lost).
    pub fn lost(&self) -> impl Future<Output = Error> + Send + 'static + use<S> {
        self.place.lost()
    }

    /// Changes the value that the others see. The fencing token stays.
    ///
    /// # Errors
    ///
    /// [`Reason::LockLost`] if it does not lead any more. Others as from [`Store::txn`].
    pub async fn proclaim(&self, value: impl Into<Bytes>) -> Result<()> {
        self.place.check()?;
        let put = Put::new(self.place.key().clone(), value).lease(self.place.lease());
        let txn = Txn::new().when([self.place.fence()]).then([put.into()]);
        if self.store.txn(txn).await?.succeeded {
            Ok(())
        } else {
            Err(Error::new(
                Reason::LockLost,
                "the election is lost: its key was deleted",
            ))
        }
    }

    /// Hands over to the next candidate. Takes up to one TTL if the store is out of reach.
    ///
    /// # Errors
    ///
    /// As [`MutexGuard::unlock`](super::MutexGuard::unlock).
    pub async fn resign(self) -> Result<()> {
        self.place.leave().await
    }
}
