//! The watch hub as a synchronous state machine: events in, reads of the state out.
//!
//! Nothing here waits, and no time passes but what a tick says, so a test drives it step by step. The
//! driver (`watch/mod.rs`) feeds it from a task. Each call does a bounded amount of work; what is left
//! is done in the calls after it ([`Hub::has_work`]).
//!
//! Two paths lead to a watcher, and [`Place`] says which one it is on:
//!
//! ```text
//!   feed ──► incoming ──► recent ──► fan-out by index ──► outbox        live    (hub/live.rs)
//!   (gap: read from the state)   │
//!                                └── scanned for one watcher ──► outbox   behind  (hub/catch_up.rs)
//!   state ── changes, list ───────── read for one watcher ─────► outbox
//! ```
//!
//! # The switch
//!
//! `position` is the last revision that is in `recent`. A watcher that is behind has a `next`. It goes
//! live exactly when `next > position`, in the same call that looked: from there on the fan-out offers
//! every revision, and the outbox takes those from `next` on. So nothing is missed (all before `next`
//! was delivered, all after `position` will be offered) and nothing comes twice (a view of the state
//! may have been *ahead* of `position`; the fan-out's revisions below `next` are refused).

mod catch_up;
mod line;
mod live;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use podkv_api::{Error, Range, Reason, Result, Revision, Watch};
use podkv_core::RevisionEvents;

use self::line::{Line, Ticket};
use self::live::FanOut;
use super::history::{Changes, Found, Job};
use super::index::Index;
use super::mailbox::Registration;
use super::outbox::{Item, Outbox, Place};
use super::recent::Recent;
use super::stats::Counters;
use super::{Bounds, WatcherId};
use crate::storage::StateView;

/// How often the hub is told the time. Each tick serves a portion of those who want bookmarks, so that
/// many quiet watchers do not all wake at once.
pub(super) const TICK: Duration = Duration::from_millis(250);

/// Everything that can happen to the hub.
pub(super) enum Event {
    Register(Registration),
    /// A watcher wants more, or is gone.
    Signal(WatcherId),
    /// The revisions that follow [`Hub::position`], without a gap. Everything up to `upto` is among
    /// them or never was.
    Published {
        revisions: Vec<Arc<RevisionEvents>>,
        upto: Revision,
    },
    /// The feed lost what follows [`Hub::position`], up to `floor`.
    Gap {
        floor: Revision,
    },
    /// What [`Action::ReadGap`] found.
    GapRead {
        floor: Revision,
        found: Result<Found>,
    },
    /// What [`Action::Read`] found.
    Read {
        id: WatcherId,
        from: Place,
        found: Result<Found>,
    },
    /// Go on with what is left to do.
    Continue,
    /// [`TICK`] has passed.
    Tick(Instant),
}

/// What the driver has to do, off the async threads.
pub(super) enum Action {
    /// Read for a watcher, and give the three back in [`Event::Read`].
    Read {
        id: WatcherId,
        from: Place,
        job: Job,
    },
    /// Read what the feed lost.
    ReadGap { floor: Revision, job: Job },
}

/// Who has to do something next for a watcher.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Turn {
    /// Its user (who drains the outbox and asks for more) or, if it is live, a writer.
    Idle,
    /// The hub: scan `recent`.
    Ready(Ticket),
    /// The hub, as soon as another read may start.
    Waiting(Ticket),
    /// The driver: a read is under way.
    Reading,
}

struct Watcher {
    watch: Arc<Watch>,
    outbox: Arc<Outbox>,
    /// What its first event may be of; 0 while it is not known: before the first chunk of a list.
    start: Revision,
    turn: Turn,
    /// As counted in the statistics.
    is_behind: bool,
    /// Its place among those who hold data read from the state, and since when.
    holds: Option<(Ticket, Instant)>,
    /// The view that its list is read from, and since when it is kept.
    view: Option<(Arc<dyn StateView>, Instant)>,
}

pub(super) struct Hub {
    bounds: Bounds,
    counters: Arc<Counters>,
    watchers: BTreeMap<WatcherId, Watcher>,
    index: Index,

    // The live path.
    recent: Recent,
    /// The last revision that is in `recent`.
    position: Revision,
    /// The last revision that every live watcher was offered. Trails `position` during a fan-out.
    settled: Revision,
    incoming: VecDeque<Arc<RevisionEvents>>,
    incoming_upto: Revision,
    fan_out: Option<FanOut>,
    is_reading_gap: bool,

    // Catching up.
    ready: Line,
    waiting: Line,
    reading: usize,
    /// Who was given data read from the state and may not have taken it, longest first.
    holders: Line,
    /// Bytes of that data.
    held: Arc<AtomicUsize>,

    // Time.
    now: Instant,
    bookmarks: Vec<BTreeSet<WatcherId>>,
    portion: usize,
    /// Who asked how far they are, and was not told yet.
    asking: BTreeSet<WatcherId>,
    viewing: BTreeSet<WatcherId>,
}

impl Hub {
    /// `position`: what comes by the feed follows this revision.
    pub fn new(bounds: Bounds, position: Revision, now: Instant, counters: Arc<Counters>) -> Self {
        Self {
            recent: Recent::new(bounds.recent_bytes, position),
            counters,
            watchers: BTreeMap::new(),
            index: Index::default(),
            position,
            settled: position,
            incoming: VecDeque::new(),
            incoming_upto: position,
            fan_out: None,
            is_reading_gap: false,
            ready: Line::default(),
            waiting: Line::default(),
            reading: 0,
            holders: Line::default(),
            held: Arc::default(),
            now,
            bookmarks: vec![BTreeSet::new(); bounds.bookmark_ticks],
            portion: 0,
            asking: BTreeSet::new(),
            viewing: BTreeSet::new(),
            bounds,
        }
    }

    /// The last revision that the hub took over: the next is after it.
    pub fn position(&self) -> Revision {
        self.position
    }

    /// True if the hub has done with what it was given and wants what follows its position.
    pub fn wants_more(&self) -> bool {
        !self.is_reading_gap && self.fan_out.is_none() && self.incoming.is_empty()
    }

    /// True if [`Event::Continue`] would get on with something.
    pub fn has_work(&self) -> bool {
        self.fan_out.is_some() || !self.incoming.is_empty() || !self.ready.is_empty()
    }

    /// True if nothing is left of any watcher.
    #[cfg(test)]
    pub fn is_clear(&self) -> bool {
        self.watchers.is_empty()
            && self.index.is_empty()
            && self.ready.is_empty()
            && self.waiting.is_empty()
            && self.holders.is_empty()
            && self.viewing.is_empty()
            && self.asking.is_empty()
            && self.bookmarks.iter().all(BTreeSet::is_empty)
            && self.held.load(Ordering::Relaxed) == 0
    }

    pub fn handle(&mut self, event: Event, actions: &mut Vec<Action>) {
        match event {
            Event::Register(registration) => self.register(registration),
            Event::Signal(id) => self.signal(id),
            Event::Published { revisions, upto } => self.published(revisions, upto),
            Event::Gap { floor } => self.read_gap(floor, actions),
            Event::GapRead { floor, found } => self.gap_read(floor, found),
            Event::Read { id, from, found } => self.read(id, from, found),
            Event::Continue => {
                self.go_on_live();
                self.go_on_ready();
            }
            Event::Tick(now) => self.tick(now),
        }
        self.start_reads(actions);
        self.count();
    }

    fn register(&mut self, registration: Registration) {
        let Registration {
            id,
            watch,
            outbox,
            current,
            compacted_revision,
        } = registration;
        let from = outbox.place();
        let start = match (watch.list, watch.start_revision) {
            (true, _) => 0,
            // What was published but not yet handed to the hub is in `current`.
            (false, 0) => current.max(self.position) + 1,
            (false, start) => start,
        };
        if !watch.list {
            let place = match start > self.position {
                true => Place::Live { next: start },
                false => Place::Behind { next: start },
            };
            outbox.deliver(
                &from,
                [Item::Created {
                    start_revision: start,
                }],
                place,
            );
            if start < compacted_revision {
                self.counters.compacted.fetch_add(1, Ordering::Relaxed);
                outbox.end(Error::compacted(compacted_revision));
                return;
            }
        }
        self.index.insert(&watch.range, id);
        if watch.bookmarks {
            self.bookmark_portion(id).insert(id);
        }
        let watcher = Watcher {
            watch,
            outbox,
            start,
            turn: Turn::Idle,
            is_behind: false,
            holds: None,
            view: None,
        };
        self.watchers.insert(id, watcher);
        self.advance(id);
    }

    fn signal(&mut self, id: WatcherId) {
        let Some(watcher) = self.watchers.get(&id) else {
            return;
        };
        match watcher.outbox.acknowledge() {
            true => self.advance(id),
            false => return self.remove(id),
        }
        if let Some(watcher) = self.watchers.get(&id)
            && !watcher.outbox.tell(self.settled, watcher.start)
        {
            self.asking.insert(id);
        }
    }

    fn remove(&mut self, id: WatcherId) {
        let Some(watcher) = self.watchers.remove(&id) else {
            return;
        };
        self.index.remove(&watcher.watch.range, id);
        if watcher.watch.bookmarks {
            self.bookmark_portion(id).remove(&id);
        }
        match watcher.turn {
            Turn::Ready(ticket) => self.ready.leave(ticket),
            Turn::Waiting(ticket) => self.waiting.leave(ticket),
            Turn::Idle | Turn::Reading => {}
        }
        if let Some((ticket, _)) = watcher.holds {
            self.holders.leave(ticket);
        }
        if watcher.is_behind {
            self.counters.behind.fetch_sub(1, Ordering::Relaxed);
        }
        self.viewing.remove(&id);
        self.asking.remove(&id);
    }

    fn bookmark_portion(&mut self, id: WatcherId) -> &mut BTreeSet<WatcherId> {
        let portions = self.bookmarks.len() as u64;
        &mut self.bookmarks[(id.0 % portions) as usize]
    }

    /// Ends a watch with an error, after what is queued for it.
    fn fail(&mut self, id: WatcherId, error: Error) {
        if let Some(watcher) = self.watchers.get(&id) {
            if error.reason() == Reason::Compacted {
                self.counters.compacted.fetch_add(1, Ordering::Relaxed);
            }
            watcher.outbox.end(error);
        }
        self.remove(id);
    }

    fn tick(&mut self, now: Instant) {
        self.now = now;
        self.portion = (self.portion + 1) % self.bookmarks.len();
        for id in &self.bookmarks[self.portion] {
            if let Some(watcher) = self.watchers.get(id) {
                watcher.bookmark(self.settled);
            }
        }
        let (watchers, settled) = (&self.watchers, self.settled);
        self.asking.retain(|id| {
            watchers
                .get(id)
                .is_some_and(|watcher| !watcher.outbox.tell(settled, watcher.start))
        });
        let max_age = self.bounds.list_view_age;
        let watchers = &mut self.watchers;
        self.viewing.retain(|id| {
            let Some(watcher) = watchers.get_mut(id) else {
                return false;
            };
            let is_old = |since: Instant| now.saturating_duration_since(since) >= max_age;
            watcher.view.take_if(|(_, since)| is_old(*since));
            watcher.view.is_some()
        });
    }

    fn count(&self) {
        let counters = &self.counters;
        counters
            .watchers
            .store(self.watchers.len(), Ordering::Relaxed);
        let buffered = self.recent.bytes() + self.held.load(Ordering::Relaxed);
        counters.buffered_bytes.store(buffered, Ordering::Relaxed);
    }

    fn set_behind(&mut self, id: WatcherId, is_behind: bool) {
        let Some(watcher) = self.watchers.get_mut(&id) else {
            return;
        };
        if watcher.is_behind == is_behind {
            return;
        }
        watcher.is_behind = is_behind;
        match is_behind {
            true => self.counters.behind.fetch_add(1, Ordering::Relaxed),
            false => self.counters.behind.fetch_sub(1, Ordering::Relaxed),
        };
    }
}

impl Watcher {
    fn bookmark(&self, settled: Revision) {
        if self.watch.bookmarks {
            self.outbox.bookmark(settled, self.start);
        }
    }
}

/// However the hub ends, no watcher is left waiting for ever.
impl Drop for Hub {
    fn drop(&mut self) {
        for watcher in self.watchers.values() {
            watcher.outbox.end(stopping());
        }
        self.counters.clear();
    }
}

pub(super) fn stopping() -> Error {
    Error::new(
        Reason::NodeNotReady,
        "the node is stopping: watch on another one",
    )
}

/// The place that a new watcher's outbox starts from.
pub(super) fn first_place(watch: &Watch) -> Place {
    match watch.list {
        true => Place::Listing(Box::new(Range::new(watch.range.clone()))),
        false => Place::Behind {
            next: watch.start_revision,
        },
    }
}
