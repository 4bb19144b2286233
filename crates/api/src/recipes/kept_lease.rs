//! A lease that a task keeps alive, and what its owner may believe about it.
//!
//! The owner must stop before the server may give the lock to another. So the local view of the
//! lease is the pessimistic one: it lives from the moment *before* the request that granted or
//! renewed it was sent. The server started counting later than that, so it stops later too.
//!
//! ```text
//!   owner    sent├──────────── ttl − 1 % ───────────┤ lost() fires
//!   server        └─▶ applied├───────────── ttl ─────────────┤ keys deleted
//! ```
//!
//! Both measure time with clocks of their own. The one percent covers clocks that run apart; that
//! is twenty times what the kernel lets NTP correct. No margin covers a process that is paused
//! and does not know it: for that there is the fencing token.

use std::future::Future;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, sleep_until, timeout_at};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::backoff::{Backoff, is_transient, watch_backoff};
use crate::error::{Error, Reason, Result};
use crate::key::KeyRange;
use crate::kv::Revision;
use crate::lease::{LeaseId, LeaseStatus};
use crate::store::Store;
use crate::watch::{EventKind, Watch, WatchMessage};

/// Keep-alives are sent this many times in a TTL, so that two may fail.
const BEATS_PER_TTL: u32 = 3;
/// The share of a TTL that is given up for clocks that run apart.
const DRIFT_SHARE: u32 = 100;

/// Why a lease no longer counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lost {
    MayHaveExpired,
    LeaseGone,
    KeyGone,
    Released,
    TaskEnded,
}

impl Lost {
    fn error(self) -> Error {
        let why = match self {
            Lost::MayHaveExpired => "its lease was not renewed in time and may have expired",
            Lost::LeaseGone => "its lease is gone",
            Lost::KeyGone => "its key was deleted",
            Lost::Released => "it was released",
            Lost::TaskEnded => "the task that keeps it alive has ended",
        };
        Error::new(Reason::LockLost, format!("the lock is lost: {why}"))
    }
}

/// What is known of the lease. Once lost, lost for ever.
#[derive(Clone, Copy, Debug)]
struct Hold {
    /// Until then, the lease surely lives.
    until: Instant,
    lost: Option<Lost>,
}

impl Hold {
    fn lost_at(&self, now: Instant) -> Option<Lost> {
        let expired = (now >= self.until).then_some(Lost::MayHaveExpired);
        self.lost.or(expired)
    }
}

/// A key, and the revision that created it: one life of the key.
#[derive(Clone, Debug)]
pub(super) struct KeyLife {
    pub(super) key: Bytes,
    pub(super) created: Revision,
}

/// A lease and the task that keeps it alive. Dropping it revokes the lease in that task, as well
/// as it can; [`KeptLease::release`] waits for it.
pub(super) struct KeptLease {
    id: LeaseId,
    hold: watch::Receiver<Hold>,
    key: Option<oneshot::Sender<KeyLife>>,
    task: JoinHandle<Result<()>>,
    stop: DropGuard,
}

impl KeptLease {
    /// Grants a lease of at least `ttl` and starts its task.
    ///
    /// If this is cancelled after the request was sent, a lease without keys may stay behind until
    /// it expires.
    pub(super) async fn grant<S: Store>(store: &S, ttl: Duration) -> Result<Self> {
        let sent = Instant::now();
        let granted = store.lease_grant(ttl, None).await?;
        let ttl = Duration::from_millis(granted.ttl_ms);
        let (hold_sender, hold) = watch::channel(Hold {
            until: surely_alive_until(sent, ttl),
            lost: None,
        });
        let (key_sender, key) = oneshot::channel();
        let stop = CancellationToken::new();
        let keeper = Keeper {
            store: store.clone(),
            id: granted.lease,
            ttl,
            hold: hold_sender,
        };
        let task = tokio::spawn(keeper.run(sent, key, stop.clone()));
        Ok(Self {
            id: granted.lease,
            hold,
            key: Some(key_sender),
            task,
            stop: stop.drop_guard(),
        })
    }

    pub(super) fn id(&self) -> LeaseId {
        self.id
    }

    /// From now on, the deletion of this key counts as the loss of the lease. Only the first call
    /// has an effect.
    pub(super) fn guard_key(&mut self, life: KeyLife) {
        if let Some(sender) = self.key.take() {
            // A task that has ended has already told of the loss.
            let _ = sender.send(life);
        }
    }

    /// `Ok` while the lease surely lives, else [`Reason::LockLost`].
    pub(super) fn check(&self) -> Result<()> {
        // The clock is read under the borrow: a renewal either came before, and is seen, or comes
        // after, and finds the deadline passed too.
        let hold = self.hold.borrow();
        match hold.lost_at(Instant::now()) {
            Some(lost) => Err(lost.error()),
            None if self.hold.has_changed().is_err() => Err(Lost::TaskEnded.error()),
            None => Ok(()),
        }
    }

    /// Resolves with [`Reason::LockLost`] once [`KeptLease::check`] would fail. It watches the
    /// deadline itself, so a task that is stuck in the store cannot delay it.
    pub(super) fn lost(&self) -> impl Future<Output = Error> + Send + 'static + use<> {
        let mut hold = self.hold.clone();
        async move {
            loop {
                let now = *hold.borrow_and_update();
                if let Some(lost) = now.lost_at(Instant::now()) {
                    return lost.error();
                }
                tokio::select! {
                    () = sleep_until(now.until) => {}
                    changed = hold.changed() => if changed.is_err() {
                        return Lost::TaskEnded.error();
                    }
                }
            }
        }
    }

    /// Revokes the lease, which deletes its keys, and joins the task.
    ///
    /// # Errors
    ///
    /// [`Reason::LockLost`] if it was lost before. Otherwise the error of the last attempt to
    /// revoke; the lease then expires by itself, within its TTL.
    pub(super) async fn release(self) -> Result<()> {
        let Self { task, stop, .. } = self;
        drop(stop);
        match task.await {
            Ok(result) => result,
            Err(error) => {
                Err(Error::internal("the keep-alive task did not finish").with_source(error))
            }
        }
    }

    /// Repeats `attempt` while it fails for a passing reason and the lease lives. `attempt` must
    /// be safe to repeat.
    pub(super) async fn retry<T, F>(&self, mut attempt: impl FnMut() -> F) -> Result<T>
    where
        F: Future<Output = Result<T>>,
    {
        let mut backoff = watch_backoff();
        let attempts = async {
            loop {
                match attempt().await {
                    Err(error) if is_transient(&error) => sleep(backoff.delay()).await,
                    result => return result,
                }
            }
        };
        tokio::select! {
            result = attempts => result,
            lost = self.lost() => Err(lost),
        }
    }
}

fn surely_alive_until(sent: Instant, ttl: Duration) -> Instant {
    sent + (ttl - ttl / DRIFT_SHARE)
}

/// The task's side of a [`KeptLease`].
struct Keeper<S> {
    store: S,
    id: LeaseId,
    ttl: Duration,
    hold: watch::Sender<Hold>,
}

impl<S: Store> Keeper<S> {
    async fn run(
        self,
        granted: Instant,
        key: oneshot::Receiver<KeyLife>,
        stop: CancellationToken,
    ) -> Result<()> {
        let lost = tokio::select! {
            () = stop.cancelled() => None,
            lost = self.keep_alive(granted) => Some(lost),
            () = self.key_gone(key) => Some(Lost::KeyGone),
        };
        if let Some(lost) = lost {
            self.mark(lost);
            // The owner was told, but may still be at work: its lease is left to run out, and is
            // revoked when the owner lets go.
            stop.cancelled().await;
        }
        let known = self.mark(Lost::Released);
        let revoked = self.revoke().await;
        match known {
            Lost::Released => revoked,
            lost => Err(lost.error()),
        }
    }

    /// Marks the lease as lost, unless it already is. Returns the reason that counts.
    fn mark(&self, lost: Lost) -> Lost {
        let mut known = lost;
        self.hold.send_modify(|hold| {
            known = hold.lost_at(Instant::now()).unwrap_or(lost);
            hold.lost = Some(known);
        });
        known
    }

    /// Renews the lease until it is lost.
    async fn keep_alive(&self, granted: Instant) -> Lost {
        let beat = self.ttl / BEATS_PER_TTL;
        let mut backoff = Backoff::new(Duration::from_millis(50), beat / 2);
        let mut next = granted + beat;
        loop {
            let until = self.hold.borrow().until;
            sleep_until(next.min(until)).await;
            let sent = Instant::now();
            if sent >= until {
                return Lost::MayHaveExpired;
            }
            let renewal = self.store.lease_keep_alive(self.id);
            match timeout_at(until.min(sent + beat), renewal).await {
                Ok(Ok(status)) => {
                    if !self.extend(sent, &status) {
                        return Lost::MayHaveExpired;
                    }
                    backoff.reset();
                    next = sent + beat;
                }
                Ok(Err(error)) if error.reason() == Reason::LeaseNotFound => {
                    return Lost::LeaseGone;
                }
                // Whatever it is, it may pass before the lease does.
                Ok(Err(_)) | Err(_) => next = Instant::now() + backoff.delay(),
            }
        }
    }

    /// Moves the deadline after a renewal that was sent at `sent`. False if it has passed already:
    /// the owner may have been told so, and a lock does not come back.
    fn extend(&self, sent: Instant, status: &LeaseStatus) -> bool {
        let left = Duration::from_millis(status.remaining_ms.min(status.granted_ttl_ms));
        self.hold.send_if_modified(|hold| {
            let alive = hold.lost_at(Instant::now()).is_none();
            if alive {
                hold.until = hold.until.max(surely_alive_until(sent, left));
            }
            alive
        })
    }

    /// Resolves when the key is gone; never, if there is no key or it may not be watched: the
    /// lease alone decides then.
    async fn key_gone(&self, key: oneshot::Receiver<KeyLife>) {
        if let Ok(life) = key.await
            && wait_gone(&self.store, &life).await.is_ok()
        {
            return;
        }
        std::future::pending().await
    }

    /// Revokes the lease, trying again while it may live. A second revoke does no harm: lease ids
    /// are not reused.
    async fn revoke(&self) -> Result<()> {
        let until = self.hold.borrow().until;
        // After its deadline the lease is most likely gone; one short attempt is enough.
        let until = until.max(Instant::now() + self.ttl / BEATS_PER_TTL);
        let mut backoff = Backoff::new(Duration::from_millis(50), self.ttl / BEATS_PER_TTL);
        let mut tried = false;
        loop {
            let error = match timeout_at(until, self.store.lease_revoke(self.id)).await {
                Ok(Ok(())) => return Ok(()),
                Ok(Err(error)) if error.reason() == Reason::LeaseNotFound => {
                    // Gone: by an earlier attempt of ours, or before the first one.
                    return if tried {
                        Ok(())
                    } else {
                        Err(Lost::LeaseGone.error())
                    };
                }
                Ok(Err(error)) => error,
                Err(_) => {
                    let text = "the lock was not released in time; its lease will expire";
                    return Err(Error::new(Reason::DeadlineExceeded, text).with_unknown_outcome());
                }
            };
            tried = true;
            let again = Instant::now() + backoff.delay();
            if !error.is_retryable() || again >= until {
                return Err(error);
            }
            sleep_until(again).await;
        }
    }
}

/// Resolves when this life of the key has ended. Lost watches and compactions only delay it.
///
/// # Errors
///
/// Those that waiting cannot mend, such as [`Reason::PermissionDenied`].
pub(super) async fn wait_gone<S: Store>(store: &S, life: &KeyLife) -> Result<()> {
    let mut backoff = watch_backoff();
    loop {
        match watch_until_gone(store, life, &mut backoff).await {
            Err(error) if is_transient(&error) => sleep(backoff.delay()).await,
            result => return result,
        }
    }
}

async fn watch_until_gone<S: Store>(
    store: &S,
    life: &KeyLife,
    backoff: &mut Backoff,
) -> Result<()> {
    // The list shows whether the key is there still; the watch goes on from that very revision.
    let watch = Watch::new(KeyRange::key(life.key.clone())).list();
    let mut messages = store.watch(watch).await?;
    let mut seen = false;
    while let Some(message) = messages.next().await {
        match message? {
            WatchMessage::List { kvs, .. } => {
                seen |= kvs.iter().any(|kv| kv.create_revision == life.created);
            }
            WatchMessage::Listed { revision, .. } => {
                if revision < life.created {
                    // The list may come from a node that has not seen the key being created.
                    // Absence there says nothing.
                    let text = "the list is older than the key that it was asked for";
                    return Err(Error::new(Reason::TooStale, text));
                }
                if !seen {
                    return Ok(());
                }
                backoff.reset();
            }
            WatchMessage::Events { events, .. } => {
                if events.iter().any(|event| event.kind == EventKind::Delete) {
                    return Ok(());
                }
            }
            WatchMessage::Created { .. } | WatchMessage::Bookmark { .. } => {}
        }
    }
    Err(Error::new(Reason::WatchLost, "the watch ended"))
}
