//! A range of keys in local memory.
//!
//! One task lists the range, then watches it from the revision of the list on. It builds each new
//! state aside and publishes it whole, so a reader sees the range as it was at one revision, never
//! half of a transaction.
//!
//! The map is a persistent one: the new state shares all but a few nodes with the old one. So a
//! [`Snapshot`] costs two reference counts, whatever its size, and a reader that keeps one for an
//! hour neither blocks the writer nor makes it copy the map. A plain map behind a lock would do
//! one or the other. The price is a read of O(log n) pointers instead of an array.

use std::ops::Bound;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use rpds::RedBlackTreeMapSync;
use tokio::sync::watch;
use tokio::time::{Instant, sleep};
use tokio_util::task::AbortOnDropHandle;

use super::backoff::{Backoff, watch_backoff};
use crate::error::{Error, Reason, Result};
use crate::key::{KeyRange, RangeEnd};
use crate::kv::{KeyValue, Revision};
use crate::store::{Store, WatchStream};
use crate::watch::{EventKind, Watch, WatchMessage};

type Map = RedBlackTreeMapSync<Bytes, KeyValue>;

/// A local copy of a range that follows the store.
///
/// Reads wait for nothing and never fail. They may be stale: [`Mirror::staleness`] says how long
/// ago the store last confirmed the copy, and [`Mirror::wait_for`] waits until a given write is in
/// it. When the watch is lost, or its place compacted, the mirror goes on with what it has and
/// catches up in the background. It never goes back in time.
///
/// It holds the whole range in memory. Share it in an `Arc`. Dropping it ends its task.
///
/// ```no_run
/// use podkv_api::recipes::Mirror;
/// use podkv_api::{KeyRange, Put, Result, Store};
///
/// async fn routes<S: Store>(store: S) -> Result<()> {
///     let mirror = Mirror::open(&store, KeyRange::prefix("routes/")).await?;
///
///     // Read your own write.
///     let put = store.put(Put::new("routes/a", "10.0.0.1")).await?;
///     mirror.wait_for(put.header.revision).await?;
///     assert!(mirror.get(b"routes/a").is_some());
///
///     // Follow changes, from one whole state to the next.
///     let mut routes = mirror.snapshot();
///     loop {
///         println!("{} routes at revision {}", routes.len(), routes.revision());
///         routes = mirror.changed(routes.revision()).await?;
///     }
/// }
/// ```
#[derive(Debug)]
pub struct Mirror {
    view: watch::Receiver<View>,
    task: AbortOnDropHandle<()>,
}

/// What the task publishes.
#[derive(Debug)]
struct View {
    snapshot: Snapshot,
    confirmed_at: Instant,
    problem: Option<Error>,
}

impl Mirror {
    /// Lists `range` and starts to follow it. Returns when the list is complete.
    ///
    /// # Errors
    ///
    /// As [`Store::watch`], and whatever the watch reports before its list is complete. Nothing is
    /// retried yet: the caller knows whether to wait for a store that is not up.
    pub async fn open<S: Store>(store: &S, range: KeyRange) -> Result<Self> {
        let mut follower = Follower {
            store: store.clone(),
            range,
            contents: Contents::default(),
        };
        let mut messages = follower.watch().await?;
        while !follower.contents.accept(next(&mut messages).await?)? {}

        let (sender, view) = watch::channel(View {
            snapshot: follower.contents.snapshot.clone(),
            confirmed_at: Instant::now(),
            problem: None,
        });
        let task = AbortOnDropHandle::new(tokio::spawn(follower.run(messages, sender)));
        Ok(Self { view, task })
    }

    /// The key as the mirror knows it.
    pub fn get(&self, key: &[u8]) -> Option<KeyValue> {
        self.view.borrow().snapshot.get(key).cloned()
    }

    /// The whole range as of one revision. Cheap, and does not change any more.
    pub fn snapshot(&self) -> Snapshot {
        self.view.borrow().snapshot.clone()
    }

    /// How many keys there are.
    pub fn len(&self) -> usize {
        self.view.borrow().snapshot.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Every change up to this revision is in the mirror.
    pub fn revision(&self) -> Revision {
        self.view.borrow().snapshot.revision
    }

    /// How long ago the store last said that the mirror is up to date: by a change, or on a quiet
    /// range by a bookmark, which comes every few seconds.
    pub fn staleness(&self) -> Duration {
        self.view.borrow().confirmed_at.elapsed()
    }

    /// Why the mirror does not follow right now; `None` while it does. It keeps trying after every
    /// error, also after those that only a person can mend.
    pub fn problem(&self) -> Option<Error> {
        self.view.borrow().problem.clone()
    }

    /// Waits for contents that changed after `since`, and returns them; at once, if they already
    /// have. Pass the revision of the snapshot that you know. Several changes may come as one.
    ///
    /// # Errors
    ///
    /// [`Reason::Internal`] if the mirror's task has ended, which only a panic in the store does.
    pub async fn changed(&self, since: Revision) -> Result<Snapshot> {
        self.wait(|snapshot| snapshot.changed_at > since).await
    }

    /// Waits until every change up to `revision` is in the mirror: its own write, for example,
    /// when the revision is that of the answer. May take until the next bookmark if `revision`
    /// changed nothing in the range.
    ///
    /// # Errors
    ///
    /// As [`Mirror::changed`].
    pub async fn wait_for(&self, revision: Revision) -> Result<Snapshot> {
        self.wait(|snapshot| snapshot.revision >= revision).await
    }

    async fn wait(&self, mut enough: impl FnMut(&Snapshot) -> bool) -> Result<Snapshot> {
        let mut view = self.view.clone();
        let found = view.wait_for(|view| enough(&view.snapshot)).await;
        found
            .map(|view| view.snapshot.clone())
            .map_err(|_| Error::internal("the mirror's task has ended"))
    }

    /// Ends the task and waits until it has let go of the store.
    pub async fn close(self) {
        self.task.abort();
        // Cancelled, as asked. A panic was already reported by every wait on the mirror.
        let _ = self.task.await;
    }
}

/// A range as of one revision. Cheap to clone; never changes.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    map: Map,
    revision: Revision,
    /// The newest revision that may have changed `map`.
    changed_at: Revision,
}

impl Snapshot {
    pub fn get(&self, key: &[u8]) -> Option<&KeyValue> {
        self.map.get(key)
    }

    /// How many keys there are.
    pub fn len(&self) -> usize {
        self.map.size()
    }

    pub fn is_empty(&self) -> bool {
        self.map.is_empty()
    }

    /// Every change up to this revision is in the snapshot, and none after it.
    pub fn revision(&self) -> Revision {
        self.revision
    }

    /// The newest revision that may have changed what is in it. What a snapshot of this revision or a later one showed
    /// is still what there is.
    pub fn changed_at(&self) -> Revision {
        self.changed_at
    }

    /// Everything, in key order.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = &KeyValue> {
        self.map.values()
    }

    /// What begins with `prefix`, in key order.
    pub fn prefix(&self, prefix: impl Into<Bytes>) -> impl DoubleEndedIterator<Item = &KeyValue> {
        self.range(KeyRange::prefix(prefix))
    }

    /// What lies in `range`, in key order.
    pub fn range(&self, range: KeyRange) -> impl DoubleEndedIterator<Item = &KeyValue> {
        // The map panics on bounds that are the wrong way round; to us they are an empty range.
        let bounds = (!range.is_empty()).then(|| {
            let start = range.start;
            match range.end {
                RangeEnd::Single => (Bound::Included(start.clone()), Bound::Included(start)),
                RangeEnd::Before(end) => (Bound::Included(start), Bound::Excluded(end)),
                RangeEnd::Unbounded => (Bound::Included(start), Bound::Unbounded),
            }
        });
        bounds
            .into_iter()
            .flat_map(|bounds| self.map.range(bounds))
            .map(|(_, kv)| kv)
    }
}

/// The state that watch messages build. Synchronous, so that what is published is whole.
#[derive(Default)]
struct Contents {
    snapshot: Snapshot,
    /// A list under way, as of `listing_at`. It replaces the snapshot when it is complete.
    listing: Map,
    listing_at: Revision,
}

impl Contents {
    /// Takes one message. True if it made progress that readers should see.
    fn accept(&mut self, message: WatchMessage) -> Result<bool> {
        match message {
            WatchMessage::Created { .. } => Ok(false),
            WatchMessage::List { revision, kvs, .. } => {
                if revision != self.listing_at {
                    // What is left of a list that was cut off.
                    self.listing = Map::default();
                    self.listing_at = revision;
                }
                for kv in kvs {
                    self.listing.insert_mut(kv.key.clone(), kv);
                }
                Ok(false)
            }
            WatchMessage::Listed { revision, .. } => self.listed(revision).map(|()| true),
            WatchMessage::Events {
                revision, events, ..
            } => {
                if revision <= self.snapshot.revision {
                    // Applied already. To apply it again would take the map back in time.
                    return Ok(false);
                }
                for event in events {
                    match event.kind {
                        EventKind::Put => {
                            self.snapshot.map.insert_mut(event.kv.key.clone(), event.kv);
                        }
                        EventKind::Delete => {
                            self.snapshot.map.remove_mut(&event.kv.key);
                        }
                    }
                }
                self.snapshot.revision = revision;
                self.snapshot.changed_at = revision;
                Ok(true)
            }
            WatchMessage::Bookmark { revision, .. } => {
                // One from a node that is behind confirms nothing.
                let confirms = revision >= self.snapshot.revision;
                self.snapshot.revision = self.snapshot.revision.max(revision);
                Ok(confirms)
            }
        }
    }

    fn listed(&mut self, revision: Revision) -> Result<()> {
        let listed = std::mem::take(&mut self.listing);
        // An empty range has no parts: then what is there is left from another list.
        let map = if self.listing_at == revision {
            listed
        } else {
            Map::default()
        };
        self.listing_at = 0;
        if revision < self.snapshot.revision {
            let text = format!(
                "the list is from revision {revision}, the mirror is at {} already",
                self.snapshot.revision
            );
            return Err(Error::new(Reason::TooStale, text));
        }
        let version = |kv: &KeyValue| (kv.key.clone(), kv.mod_revision);
        if !self
            .snapshot
            .map
            .values()
            .map(version)
            .eq(map.values().map(version))
        {
            self.snapshot.changed_at = revision;
        }
        if self.snapshot.revision == 0 {
            // The first list is a change, also when it is empty.
            self.snapshot.changed_at = revision;
        }
        self.snapshot.map = map;
        self.snapshot.revision = revision;
        Ok(())
    }
}

/// The mirror's task.
struct Follower<S> {
    store: S,
    range: KeyRange,
    contents: Contents,
}

impl<S: Store> Follower<S> {
    /// Lists and watches the range.
    async fn watch(&self) -> Result<WatchStream> {
        self.store
            .watch(Watch::new(self.range.clone()).list().bookmarks())
            .await
    }

    /// Watches from where the contents are.
    async fn resume(&self) -> Result<WatchStream> {
        let next = self.contents.snapshot.revision.saturating_add(1);
        self.store
            .watch(
                Watch::new(self.range.clone())
                    .from_revision(next)
                    .bookmarks(),
            )
            .await
    }

    async fn run(mut self, mut messages: WatchStream, view: watch::Sender<View>) {
        let mut backoff = watch_backoff();
        loop {
            let mut error = self.follow(messages, &view, &mut backoff).await;
            messages = loop {
                // A watch that was merely cut goes on where it was, without a list. When that is
                // not possible, by compaction first of all, only a new list helps.
                let cut = error.is_retryable() && error.reason() != Reason::TooStale;
                view.send_modify(|view| view.problem = Some(error));
                sleep(backoff.delay()).await;
                let again = if cut {
                    self.resume().await
                } else {
                    self.watch().await
                };
                match again {
                    Ok(messages) => break messages,
                    Err(failed) => error = failed,
                }
            };
        }
    }

    /// Publishes what the watch reports, until it fails.
    async fn follow(
        &mut self,
        mut messages: WatchStream,
        view: &watch::Sender<View>,
        backoff: &mut Backoff,
    ) -> Error {
        loop {
            let accepted = match next(&mut messages).await {
                Ok(message) => self.contents.accept(message),
                Err(error) => return error,
            };
            match accepted {
                Ok(true) => {
                    backoff.reset();
                    view.send_modify(|view| {
                        view.snapshot = self.contents.snapshot.clone();
                        view.confirmed_at = Instant::now();
                        view.problem = None;
                    });
                }
                Ok(false) => {}
                Err(error) => return error,
            }
        }
    }
}

async fn next(messages: &mut WatchStream) -> Result<WatchMessage> {
    let ended = || Err(Error::new(Reason::WatchLost, "the watch ended"));
    messages.next().await.unwrap_or_else(ended)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::Header;
    use crate::watch::Event;

    fn put(revision: Revision, value: &'static str) -> WatchMessage {
        let kv = KeyValue {
            key: "k".into(),
            value: value.into(),
            create_revision: 1,
            mod_revision: revision,
            version: 1,
            lease: None,
            expires_at_ms: None,
        };
        let event = Event {
            kind: EventKind::Put,
            kv,
            prev_kv: None,
        };
        WatchMessage::Events {
            header: Header::default(),
            revision,
            events: vec![event],
        }
    }

    fn bookmark(revision: Revision) -> WatchMessage {
        WatchMessage::Bookmark {
            header: Header::default(),
            revision,
        }
    }

    /// A watch promises neither; a mirror that believed them would still go back in time.
    #[test]
    fn what_is_already_known_changes_and_confirms_nothing() -> Result<()> {
        let mut contents = Contents::default();
        assert!(contents.accept(put(5, "new"))?);
        assert!(!contents.accept(put(4, "old"))?);
        assert!(!contents.accept(put(5, "again"))?);
        assert!(!contents.accept(bookmark(4))?);
        assert!(contents.accept(bookmark(5))?);
        assert_eq!(contents.snapshot.revision(), 5);
        assert_eq!(
            contents.snapshot.get(b"k").map(|kv| &kv.value[..]),
            Some(&b"new"[..])
        );
        Ok(())
    }
}
