//! Catching up: watchers that are behind, in turn, from memory if it reaches back far enough, else from
//! the state.
//!
//! Everything starts with a user who has drained the outbox and asks for more: a watcher whose user
//! does not read costs nothing. Each turn is a small portion, and the next one is at the end of the
//! line. What was read from the state and not taken is bounded in total: when there is too much, it is
//! taken back from those who sit on it longest, and read again when they come back.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use podkv_api::{Range, Result};
use podkv_core::{ChangesLimits, RevisionEvents};

use super::{Action, Changes, Found, Hub, Job, Place, Turn, WatcherId};
use crate::watch::history::List;
use crate::watch::outbox::{Held, Item, ListChunk, PastRevision};
use crate::watch::{kvs_weight, stream, weight};

/// Events looked at for one watcher in one turn, and in one call of the hub.
const SCAN: usize = 1024;
const WORK: usize = 4096;

/// What was read for a user is left to that user at least this long: else two who do read, and much
/// that does not fit beside each other, would take it from each other for ever.
const PATIENCE: Duration = Duration::from_millis(250);

impl Hub {
    /// Decides what comes next for a watcher that is not live.
    pub(super) fn advance(&mut self, id: WatcherId) {
        let Some(watcher) = self.watchers.get_mut(&id) else {
            return;
        };
        if watcher.turn != Turn::Idle {
            return;
        }
        let is_in_memory = match watcher.outbox.place() {
            Place::Live { .. } => return self.set_behind(id, false),
            Place::Behind { next } => next > self.position || self.recent.covers(next),
            Place::Listing(_) => false,
        };
        if is_in_memory {
            watcher.turn = Turn::Ready(self.ready.join(id));
        } else if watcher.outbox.is_empty() {
            watcher.turn = Turn::Waiting(self.waiting.join(id));
        }
        // Else its user will ask, when the outbox is drained.
        self.set_behind(id, true);
    }

    /// Gives those in line for `recent` a turn each.
    pub(super) fn go_on_ready(&mut self) {
        let mut work = WORK;
        while work > 0
            && let Some(id) = self.ready.next()
        {
            work = work.saturating_sub(self.scan_recent(id).max(1));
        }
    }

    /// Serves one watcher from `recent`. Returns how many events were looked at.
    fn scan_recent(&mut self, id: WatcherId) -> usize {
        let Some(watcher) = self.watchers.get_mut(&id) else {
            return 0;
        };
        watcher.turn = Turn::Idle;
        let Place::Behind { next } = watcher.outbox.place() else {
            return 0;
        };
        if !self.recent.covers(next) && next <= self.position {
            // It fell out while the watcher stood in line.
            self.advance(id);
            return 0;
        }
        // None: it moved, and will ask again.
        let Some(room) = watcher.outbox.room(next) else {
            return 0;
        };
        let mut items = Vec::new();
        let mut looked_at = 0;
        let mut stopped_at = None;
        for revision in self.recent.since(next) {
            let is_wanted = revision
                .events
                .iter()
                .any(|event| stream::wants(&watcher.watch, event));
            if looked_at >= SCAN || (is_wanted && items.len() == room) {
                stopped_at = Some(revision.revision);
                break;
            }
            looked_at += revision.events.len();
            if is_wanted {
                let events = Arc::downgrade(revision);
                items.push(Item::Recent {
                    revision: revision.revision,
                    events,
                });
            }
        }
        let is_full = items.len() == room;
        let to = match stopped_at {
            None => Place::Live {
                next: next.max(self.position + 1),
            },
            Some(next) => Place::Behind { next },
        };
        if !watcher.outbox.deliver(&Place::Behind { next }, items, to) {
            return looked_at;
        }
        match stopped_at {
            None => {
                watcher.bookmark(self.settled);
                self.set_behind(id, false);
            }
            Some(_) if is_full => {}
            Some(_) => self.advance(id),
        }
        looked_at
    }

    /// Starts as many reads as may run, for those who wait longest.
    pub(super) fn start_reads(&mut self, actions: &mut Vec<Action>) {
        while self.reading < self.bounds.max_reads && !self.waiting.is_empty() && self.make_room() {
            let Some(id) = self.waiting.next() else {
                return;
            };
            let Some(watcher) = self.watchers.get_mut(&id) else {
                continue;
            };
            watcher.turn = Turn::Idle;
            let from = watcher.outbox.place();
            let job = match &from {
                Place::Live { .. } => continue,
                Place::Behind { next } if self.recent.covers(*next) => {
                    self.advance(id);
                    continue;
                }
                Place::Behind { next } => Job::Changes {
                    from: *next,
                    range: Some(watcher.watch.range.clone()),
                    limits: ChangesLimits {
                        max_bytes: self.bounds.step_bytes,
                        ..ChangesLimits::default()
                    },
                },
                Place::Listing(rest) => Job::List {
                    request: Range::clone(rest),
                    view: watcher.view.as_ref().map(|(view, _)| view.clone()),
                    max_bytes: self.bounds.step_bytes,
                },
            };
            watcher.turn = Turn::Reading;
            self.reading += 1;
            self.counters.reads.fetch_add(1, Ordering::Relaxed);
            actions.push(Action::Read { id, from, job });
        }
    }

    /// Makes room for what one more read may bring. One may always run.
    fn make_room(&mut self) -> bool {
        let expected = (self.reading + 1) * self.bounds.step_bytes;
        while self.held.load(Ordering::Relaxed) + expected > self.bounds.held_bytes {
            let Some(id) = self.holders.first() else {
                return self.reading == 0;
            };
            let Some(watcher) = self.watchers.get_mut(&id) else {
                return false;
            };
            let is_fresh = watcher
                .holds
                .as_ref()
                .is_some_and(|(_, since)| self.now.saturating_duration_since(*since) < PATIENCE);
            if is_fresh && watcher.outbox.holds() {
                return false;
            }
            self.holders.next();
            watcher.holds = None;
            if watcher.outbox.take_back() {
                // Its user has to come back first. Else two who do not read would take turns for ever.
                if let Turn::Ready(ticket) = watcher.turn {
                    self.ready.leave(ticket);
                    watcher.turn = Turn::Idle;
                }
                self.set_behind(id, true);
            }
        }
        true
    }

    pub(super) fn read(&mut self, id: WatcherId, from: Place, found: Result<Found>) {
        self.reading -= 1;
        let Some(watcher) = self.watchers.get_mut(&id) else {
            return;
        };
        watcher.turn = Turn::Idle;
        match found {
            Ok(Found::Changes(changes)) => self.changes_read(id, &from, changes),
            Ok(Found::List(list)) => self.list_read(id, &from, *list),
            Err(error) => return self.fail(id, error),
        }
        self.advance(id);
    }

    fn changes_read(&mut self, id: WatcherId, from: &Place, changes: Changes) {
        let Some(watcher) = self.watchers.get_mut(&id) else {
            return;
        };
        let watch = &watcher.watch;
        let wanted = changes
            .revisions
            .into_iter()
            .filter_map(|mut revision: RevisionEvents| {
                revision
                    .events
                    .retain(|event| stream::wants_kind(watch, event.kind));
                (!revision.events.is_empty()).then_some(revision)
            });
        let items: Vec<_> = wanted
            .map(|events| {
                let held = Held::new(weight(&events), &self.held);
                Item::Past(Box::new(PastRevision {
                    events,
                    _held: held,
                }))
            })
            .collect();
        let holds = !items.is_empty();
        watcher
            .outbox
            .deliver(from, items, Place::Behind { next: changes.next });
        if holds {
            self.hold(id);
        }
    }

    fn list_read(&mut self, id: WatcherId, from: &Place, list: List) {
        let Some(watcher) = self.watchers.get_mut(&id) else {
            return;
        };
        let revision = list.revision;
        let is_first = matches!(from, Place::Listing(request) if request.revision == 0);
        let holds = !list.kvs.is_empty();
        let created = is_first.then_some(Item::Created {
            start_revision: revision + 1,
        });
        let chunk = holds.then(|| {
            let held = Held::new(kvs_weight(&list.kvs), &self.held);
            Item::List(Box::new(ListChunk {
                revision,
                kvs: list.kvs,
                again: list.again,
                _held: held,
            }))
        });
        let listed = list.rest.is_none().then_some(Item::Listed { revision });
        watcher.start = revision + 1;
        match list.rest {
            Some(rest) => {
                let since = watcher.view.take().map_or(self.now, |(_, since)| since);
                watcher.view = Some((list.view, since));
                self.viewing.insert(id);
                let items = [created, chunk, listed].into_iter().flatten();
                watcher
                    .outbox
                    .deliver(from, items, Place::Listing(Box::new(rest)));
            }
            None => {
                watcher.view = None;
                self.viewing.remove(&id);
                let items = [created, chunk, listed].into_iter().flatten();
                watcher
                    .outbox
                    .deliver(from, items, Place::Behind { next: revision + 1 });
            }
        }
        if holds {
            self.hold(id);
        }
    }

    /// Remembers who got data last: it is asked to give back last.
    fn hold(&mut self, id: WatcherId) {
        let Some(watcher) = self.watchers.get_mut(&id) else {
            return;
        };
        if let Some((ticket, _)) = watcher.holds.take() {
            self.holders.leave(ticket);
        }
        watcher.holds = Some((self.holders.join(id), self.now));
    }
}
