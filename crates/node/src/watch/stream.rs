//! The stream that the user of a watch polls.
//!
//! Events are shared between all watchers up to here; the user's own copy is made when the user takes
//! it, on the user's task: keys and values are shared pointers even then.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};

use futures_util::Stream;
use podkv_api::{Event, EventKind, Header, Result, Revision, Watch, WatchMessage};

use super::outbox::{Outbox, Taken};
use super::{Shared, WatcherId};

/// True if the watch reports this event.
pub(super) fn wants(watch: &Watch, event: &Event) -> bool {
    wants_kind(watch, event.kind) && watch.range.contains(&event.kv.key)
}

pub(super) fn wants_kind(watch: &Watch, kind: EventKind) -> bool {
    match kind {
        EventKind::Put => !watch.no_put,
        EventKind::Delete => !watch.no_delete,
    }
}

/// A watch on this node: [`WatchStream`](podkv_api::WatchStream), and a way to ask how far it is.
pub struct Watching {
    pub(super) id: WatcherId,
    pub(super) watch: Arc<Watch>,
    pub(super) outbox: Arc<Outbox>,
    pub(super) shared: Arc<Shared>,
    /// The state's revision when the watch was asked for.
    pub(super) seen: Revision,
}

/// Asks a watch how far it is. Cheap to clone; of no effect once the watch is dropped.
#[derive(Clone)]
pub struct Progress {
    id: WatcherId,
    outbox: Arc<Outbox>,
    shared: Arc<Shared>,
}

impl Progress {
    /// Once everything up to `upto` is reported, the watch says so, by an event or a bookmark at `upto` or above. A
    /// watch whose first event is of a later revision says nothing.
    pub fn ask(&self, upto: Revision) {
        if self.outbox.want(upto) {
            self.shared.mailbox.signal(self.id);
        }
    }
}

impl std::fmt::Debug for Watching {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watching")
            .field("watch", &self.watch)
            .finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Progress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Progress").finish_non_exhaustive()
    }
}

impl Stream for Watching {
    type Item = Result<WatchMessage>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let polled = self.outbox.poll(cx, || self.shared.mailbox.signal(self.id));
        Poll::Ready(match ready!(polled) {
            None => None,
            Some(Err(error)) => Some(Err(error)),
            Some(Ok(taken)) => Some(Ok(self.message(taken))),
        })
    }
}

impl Watching {
    pub fn progress(&self) -> Progress {
        Progress {
            id: self.id,
            outbox: self.outbox.clone(),
            shared: self.shared.clone(),
        }
    }

    fn message(&self, taken: Taken) -> WatchMessage {
        match taken {
            Taken::Created { start_revision } => {
                // A start in the future says nothing about the present.
                WatchMessage::Created {
                    header: self.header(0),
                    start_revision,
                }
            }
            Taken::List { revision, kvs } => WatchMessage::List {
                header: self.header(revision),
                revision,
                kvs,
            },
            Taken::Listed { revision } => WatchMessage::Listed {
                header: self.header(revision),
                revision,
            },
            Taken::Bookmark { revision } => WatchMessage::Bookmark {
                header: self.header(revision),
                revision,
            },
            Taken::Recent(shared) => {
                let wanted = shared
                    .events
                    .iter()
                    .filter(|event| wants(&self.watch, event));
                let events = wanted.map(|event| self.copy(event)).collect();
                self.events(shared.revision, events)
            }
            Taken::Past(mut past) => {
                if !self.watch.prev_kv {
                    past.events
                        .iter_mut()
                        .for_each(|event| event.prev_kv = None);
                }
                self.events(past.revision, past.events)
            }
        }
    }

    fn copy(&self, event: &Event) -> Event {
        Event {
            kind: event.kind,
            kv: event.kv.clone(),
            prev_kv: if self.watch.prev_kv {
                event.prev_kv.clone()
            } else {
                None
            },
        }
    }

    fn events(&self, revision: Revision, events: Vec<Event>) -> WatchMessage {
        WatchMessage::Events {
            header: self.header(revision),
            revision,
            events,
        }
    }

    /// The node as it is now: while a watcher catches up, the header tells how far it has to go. It
    /// never runs backwards, nor behind what the caller has seen of this node before.
    fn header(&self, message: Revision) -> Header {
        let published = self.shared.revision.load(Ordering::Acquire);
        Header {
            revision: published.max(self.seen).max(message),
            ..(self.shared.header)()
        }
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        self.outbox.dropped();
        self.shared.forget(&self.watch);
        self.shared.mailbox.signal(self.id);
    }
}
