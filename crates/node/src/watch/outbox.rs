//! What waits for one watcher, between the hub and the stream that its user polls.
//!
//! The hub never waits for a watcher: it puts things here and wakes it. If the outbox is full, the
//! watcher is *behind*: it drops out of the live path, drains what it has, asks for more, and is served
//! from [`recent`](super::recent) or from the state until it has caught up.
//!
//! ```text
//!                          last chunk                     caught up
//!     Listing ──────────────────────────► Behind{next} ──────────────► Live{next}
//!        ▲                                    ▲ ▲                          │
//!        └── chunk taken back (memory) ───────┘ └── full, or what it       │
//!                                                   points to is gone ─────┘
//! ```
//!
//! The place moves under the outbox's lock, together with the queue, so that for each watcher one
//! thing always holds: *every change it asked for, from `next` on, is still to come; every one before
//! is in the queue or was taken*. Each move names the place that it starts from; a move from a place
//! that the watcher has left meanwhile does nothing.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, Waker};

use podkv_api::{Error, KeyValue, Range, Result, Revision};
use podkv_core::RevisionEvents;

/// Where a watcher stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// The rest of the list is to be read; before the first chunk, at the latest revision.
    Listing(Box<Range>),
    /// Changes from `next` on are to be read.
    Behind { next: Revision },
    /// Changes from `next` on come by the live path.
    Live { next: Revision },
}

/// One thing to report.
#[derive(Debug)]
pub(super) enum Item {
    Created {
        start_revision: Revision,
    },
    List(Box<ListChunk>),
    Listed {
        revision: Revision,
    },
    /// Owned by the ring of recent revisions; may be gone when its turn comes.
    Recent {
        revision: Revision,
        events: Weak<RevisionEvents>,
    },
    /// Read from the state, for this watcher alone.
    Past(Box<PastRevision>),
    Bookmark {
        revision: Revision,
    },
}

#[derive(Debug)]
pub(super) struct ListChunk {
    pub revision: Revision,
    pub kvs: Vec<KeyValue>,
    /// Reads this chunk and all after it again.
    pub again: Range,
    pub _held: Held,
}

#[derive(Debug)]
pub(super) struct PastRevision {
    pub events: RevisionEvents,
    pub _held: Held,
}

/// Bytes that were read from the state and are held for one watcher; counted until dropped.
#[derive(Debug)]
pub(super) struct Held {
    bytes: usize,
    total: Arc<AtomicUsize>,
}

impl Held {
    pub fn new(bytes: usize, total: &Arc<AtomicUsize>) -> Self {
        total.fetch_add(bytes, Ordering::Relaxed);
        Self {
            bytes,
            total: total.clone(),
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.total.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// An [`Item`] that was taken: what it pointed to is there.
#[derive(Debug)]
pub(super) enum Taken {
    Created {
        start_revision: Revision,
    },
    List {
        revision: Revision,
        kvs: Vec<KeyValue>,
    },
    Listed {
        revision: Revision,
    },
    Recent(Arc<RevisionEvents>),
    Past(RevisionEvents),
    Bookmark {
        revision: Revision,
    },
}

/// What became of a live revision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pushed {
    Queued,
    /// The watcher does not want it, or gets it by catching up.
    NotWanted,
    /// The outbox is full; the watcher is now behind, from this revision on.
    FellBehind,
}

#[derive(Debug)]
pub(super) struct Outbox {
    max_items: usize,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    items: VecDeque<Item>,
    place: Place,
    /// The last revision that a queued event or bookmark spoke of.
    reported: Revision,
    /// The hub was asked for something and has not looked yet.
    asked: bool,
    /// The user wants to hear when everything up to this revision is reported, and has not yet.
    wanted: Option<Revision>,
    /// The user dropped the stream.
    dropped: bool,
    /// The last word, once the queue is drained. Then `ended`.
    end: Option<Error>,
    ended: bool,
    waker: Option<Waker>,
}

impl Outbox {
    pub fn new(max_items: usize, place: Place) -> Self {
        let inner = Inner {
            items: VecDeque::new(),
            place,
            reported: 0,
            asked: false,
            wanted: None,
            dropped: false,
            end: None,
            ended: false,
            waker: None,
        };
        Self {
            max_items,
            inner: Mutex::new(inner),
        }
    }

    /// No code panics while it holds the lock, and every step leaves the outbox whole.
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    // ---- The hub's side ----

    pub fn place(&self) -> Place {
        self.lock().place.clone()
    }

    pub fn is_empty(&self) -> bool {
        self.lock().items.is_empty()
    }

    /// True if anything that was read from the state for this watcher waits for its user.
    pub fn holds(&self) -> bool {
        self.lock()
            .items
            .iter()
            .any(|item| matches!(item, Item::List(_) | Item::Past(_)))
    }

    /// How many more items the watcher takes, if it is behind from exactly `next` on.
    pub fn room(&self, next: Revision) -> Option<usize> {
        let inner = self.lock();
        let room = self.max_items.saturating_sub(inner.items.len());
        (inner.place == Place::Behind { next }).then_some(room)
    }

    /// Queues items and moves on, if the watcher is still at `from`.
    pub fn deliver(&self, from: &Place, items: impl IntoIterator<Item = Item>, to: Place) -> bool {
        let mut inner = self.lock();
        if inner.place != *from {
            return false;
        }
        let before = inner.items.len();
        for item in items {
            if let Some(revision) = item.reports() {
                inner.reported = inner.reported.max(revision);
            }
            inner.items.push_back(item);
        }
        inner.place = to;
        let waker = (inner.items.len() > before)
            .then(|| inner.waker.take())
            .flatten();
        wake(inner, waker);
        true
    }

    /// Offers a revision of the live path.
    pub fn push(&self, events: &Arc<RevisionEvents>) -> Pushed {
        let revision = events.revision;
        let mut inner = self.lock();
        match inner.place {
            Place::Live { next } if next <= revision => {}
            _ => return Pushed::NotWanted,
        }
        if inner.items.len() >= self.max_items {
            inner.place = Place::Behind { next: revision };
            return Pushed::FellBehind;
        }
        inner.items.push_back(Item::Recent {
            revision,
            events: Arc::downgrade(events),
        });
        inner.place = Place::Live { next: revision + 1 };
        inner.reported = revision;
        let waker = inner.waker.take();
        wake(inner, waker);
        Pushed::Queued
    }

    /// Queues a bookmark that says all there is to say: everything before the watcher's `next` and,
    /// if it is live, everything up to `settled` was reported. Says nothing that was said before,
    /// and nothing below `start`.
    pub fn bookmark(&self, settled: Revision, start: Revision) {
        let mut inner = self.lock();
        let upto = match inner.place {
            Place::Listing(_) => return,
            Place::Behind { next } => next.saturating_sub(1),
            Place::Live { next } => settled.max(next.saturating_sub(1)),
        };
        if upto < start || upto <= inner.reported {
            return;
        }
        let is_full = inner.items.len() >= self.max_items;
        match inner.items.back_mut() {
            Some(Item::Bookmark { revision }) => *revision = upto,
            // Its user has more urgent things to read; another bookmark is not far.
            _ if is_full => return,
            _ => inner.items.push_back(Item::Bookmark { revision: upto }),
        }
        inner.reported = upto;
        let waker = inner.waker.take();
        wake(inner, waker);
    }

    /// Queues the bookmark that the user asked for, as soon as it can be said. True if nothing is left to tell.
    pub fn tell(&self, settled: Revision, start: Revision) -> bool {
        let Some(wanted) = self.lock().wanted else {
            return true;
        };
        if start > wanted {
            // Its first event is yet to come: there is nothing up to there to report.
            self.lock().wanted = None;
            return true;
        }
        self.bookmark(settled, start);
        // Told once it is taken: what is queued may be taken back.
        false
    }

    /// Takes back what was read from the state and not yet taken by the user: it is read again when
    /// the user comes back. True if there was anything.
    pub fn take_back(&self) -> bool {
        let mut inner = self.lock();
        let Some((at, place)) = inner
            .items
            .iter()
            .enumerate()
            .find_map(|(at, item)| match item {
                Item::List(chunk) => Some((at, Place::Listing(Box::new(chunk.again.clone())))),
                Item::Past(past) => Some((
                    at,
                    Place::Behind {
                        next: past.events.revision,
                    },
                )),
                _ => None,
            })
        else {
            return false;
        };
        let taken_back = inner.items.split_off(at);
        inner.reported = match place {
            Place::Behind { next } => next.saturating_sub(1),
            Place::Listing(_) | Place::Live { .. } => 0,
        };
        inner.place = place;
        // Its user may be waiting already, and has to ask for more.
        let waker = inner.waker.take();
        wake(inner, waker);
        drop(taken_back);
        true
    }

    /// Ends the watch, after what is queued. The first reason counts.
    pub fn end(&self, error: Error) {
        let mut inner = self.lock();
        if inner.end.is_none() && !inner.ended {
            inner.end = Some(error);
        }
        let waker = inner.waker.take();
        wake(inner, waker);
    }

    /// The hub looks at what the user asked for. False if the user is gone.
    pub fn acknowledge(&self) -> bool {
        let mut inner = self.lock();
        inner.asked = false;
        !inner.dropped
    }

    // ---- The user's side ----

    /// The next thing to report. `ask` is called if the hub must be asked for more.
    pub fn poll(&self, cx: &mut Context<'_>, ask: impl FnOnce()) -> Poll<Option<Result<Taken>>> {
        let mut inner = self.lock();
        if let Some(taken) = inner.take() {
            return Poll::Ready(Some(Ok(taken)));
        }
        if let Some(error) = inner.end.take() {
            inner.ended = true;
            return Poll::Ready(Some(Err(error)));
        }
        if inner.ended {
            return Poll::Ready(None);
        }
        inner.waker = Some(cx.waker().clone());
        let is_live = matches!(inner.place, Place::Live { .. });
        let must_ask = !is_live && !inner.asked;
        inner.asked |= must_ask;
        drop(inner);
        if must_ask {
            ask();
        }
        Poll::Pending
    }

    /// The user wants a bookmark as soon as everything up to `upto` is reported. True if the hub must be told.
    pub fn want(&self, upto: Revision) -> bool {
        let mut inner = self.lock();
        inner.wanted = inner.wanted.max(Some(upto));
        !std::mem::replace(&mut inner.asked, true)
    }

    /// The user is gone: frees everything.
    pub fn dropped(&self) {
        let mut inner = self.lock();
        inner.dropped = true;
        inner.waker = None;
        let items = std::mem::take(&mut inner.items);
        drop(inner);
        drop(items);
    }
}

impl Inner {
    /// The first item; `None` if there is none, or if what it points to is gone.
    fn take(&mut self) -> Option<Taken> {
        let item = self.items.pop_front()?;
        let is_gone = matches!(&item, Item::Recent { events, .. } if events.strong_count() == 0);
        if !is_gone && item.reports() >= self.wanted {
            self.wanted = None;
        }
        Some(match item {
            Item::Recent { revision, events } => match events.upgrade() {
                Some(events) => Taken::Recent(events),
                None => {
                    // Too slow: it fell out of the ring, and what follows must come after it.
                    self.fall_behind(revision);
                    return None;
                }
            },
            Item::Past(past) => Taken::Past(past.events),
            Item::List(chunk) => Taken::List {
                revision: chunk.revision,
                kvs: chunk.kvs,
            },
            Item::Created { start_revision } => Taken::Created { start_revision },
            Item::Listed { revision } => Taken::Listed { revision },
            Item::Bookmark { revision } => Taken::Bookmark { revision },
        })
    }

    fn fall_behind(&mut self, next: Revision) {
        // All weak, or read again: nothing large is freed here under the lock.
        self.items.clear();
        self.place = Place::Behind { next };
        self.reported = next.saturating_sub(1);
    }
}

impl Item {
    /// The revision up to which everything is reported once this is.
    fn reports(&self) -> Option<Revision> {
        match self {
            Item::Created { .. } | Item::List(_) => None,
            Item::Listed { revision }
            | Item::Recent { revision, .. }
            | Item::Bookmark { revision } => Some(*revision),
            Item::Past(past) => Some(past.events.revision),
        }
    }
}

/// Wakes after the lock is given back: the one who wakes up wants it.
fn wake(inner: MutexGuard<'_, Inner>, waker: Option<Waker>) {
    drop(inner);
    if let Some(waker) = waker {
        waker.wake();
    }
}
