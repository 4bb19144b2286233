//! The live path: each new revision to those who watch one of its keys, and to nobody else.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use podkv_api::{Error, Reason, Result, Revision};
use podkv_core::{ChangesLimits, RevisionEvents};

use super::{Action, Changes, Found, Hub, Job, Place};
use crate::watch::outbox::Pushed;
use crate::watch::{WatcherId, stream};

/// Lookups and offers in one call of the hub: some milliseconds at most, so that the task that drives
/// it lets others run, also when a hundred thousand watchers want one revision.
const WORK: usize = 4096;

/// What is read at once to close a gap.
const GAP: ChangesLimits = ChangesLimits {
    max_events: 10_000,
    max_bytes: 1024 * 1024,
    max_scanned: 10_000,
};

/// One revision on its way to all who want it. Both steps may take several calls.
pub(super) struct FanOut {
    events: Arc<RevisionEvents>,
    looked_up: usize,
    targets: Vec<WatcherId>,
    offered: usize,
}

impl Hub {
    pub(super) fn published(&mut self, revisions: Vec<Arc<RevisionEvents>>, upto: Revision) {
        debug_assert!(
            self.wants_more(),
            "what comes now would overtake what is still incoming"
        );
        self.incoming.extend(revisions);
        self.incoming_upto = upto;
        if self.incoming.is_empty() {
            self.position = upto;
            self.settled = upto;
        }
    }

    /// Fans out what is incoming.
    pub(super) fn go_on_live(&mut self) {
        let mut work = WORK;
        while work > 0 {
            if self.fan_out.is_none() && !self.next_revision() {
                return;
            }
            if self.look_up(&mut work) {
                self.offer(&mut work);
            }
        }
    }

    /// From here on the revision is in `recent`: who catches up or registers now gets it from there.
    fn next_revision(&mut self) -> bool {
        let Some(events) = self.incoming.pop_front() else {
            return false;
        };
        self.recent.push(events.clone());
        self.position = events.revision;
        let fan_out = FanOut {
            events,
            looked_up: 0,
            targets: Vec::new(),
            offered: 0,
        };
        self.fan_out = Some(fan_out);
        true
    }

    /// Finds who watches the keys of the revision. True once all are found.
    fn look_up(&mut self, work: &mut usize) -> bool {
        let Some(fan_out) = &mut self.fan_out else {
            return false;
        };
        let left = &fan_out.events.events[fan_out.looked_up..];
        if left.is_empty() {
            return true;
        }
        let portion = &left[..left.len().min(*work)];
        for event in portion {
            self.index.find(&event.kv.key, &mut fan_out.targets);
        }
        // A watcher of many of the keys is one target.
        fan_out.targets.sort_unstable();
        fan_out.targets.dedup();
        fan_out.looked_up += portion.len();
        *work -= portion.len();
        fan_out.looked_up == fan_out.events.events.len()
    }

    fn offer(&mut self, work: &mut usize) {
        let Some(fan_out) = &mut self.fan_out else {
            return;
        };
        let left = &fan_out.targets[fan_out.offered..];
        let portion = &left[..left.len().min(*work)];
        let mut fell_behind = Vec::new();
        for id in portion {
            let Some(watcher) = self.watchers.get(id) else {
                continue;
            };
            let filters = watcher.watch.no_put || watcher.watch.no_delete;
            let events = &fan_out.events;
            if filters
                && !events
                    .events
                    .iter()
                    .any(|event| stream::wants(&watcher.watch, event))
            {
                continue;
            }
            if watcher.outbox.push(events) == Pushed::FellBehind {
                fell_behind.push(*id);
            }
        }
        fan_out.offered += portion.len();
        *work = work.saturating_sub(portion.len().max(1));
        if fan_out.offered == fan_out.targets.len() {
            self.settled = fan_out.events.revision;
            self.fan_out = None;
            if self.incoming.is_empty() {
                self.position = self.position.max(self.incoming_upto);
                self.settled = self.position;
            }
        }
        for id in fell_behind {
            self.counters.fell_behind.fetch_add(1, Ordering::Relaxed);
            self.set_behind(id, true);
        }
    }

    /// The hub itself fell behind, or a snapshot was installed. It catches up as a watcher of every key
    /// would, once for all that are live.
    pub(super) fn read_gap(&mut self, floor: Revision, actions: &mut Vec<Action>) {
        debug_assert!(
            self.wants_more(),
            "what comes now would overtake what is still incoming"
        );
        self.is_reading_gap = true;
        self.counters.gaps.fetch_add(1, Ordering::Relaxed);
        let job = Job::Changes {
            from: self.position + 1,
            range: None,
            limits: GAP,
        };
        actions.push(Action::ReadGap { floor, job });
    }

    pub(super) fn gap_read(&mut self, floor: Revision, found: Result<Found>) {
        self.is_reading_gap = false;
        match found {
            Ok(Found::Changes(Changes { revisions, next })) if next > self.position + 1 => {
                self.published(revisions.into_iter().map(Arc::new).collect(), next - 1);
            }
            Err(error)
                if error.reason() == Reason::Compacted && error.revision() > self.position + 1 =>
            {
                // What follows the floor was not lost by the feed, compacted or not.
                let readable = error.revision().min(floor + 1);
                self.fail_live(&error, |next| next < readable);
                self.restart(readable - 1);
            }
            Err(error) => {
                self.fail_live(&error, |_| true);
                self.restart(floor);
            }
            Ok(_) => {
                // Published revisions are committed before: they must be in the state.
                tracing::error!(
                    position = self.position,
                    floor,
                    "published revisions are not in the state"
                );
                let error =
                    Error::internal("the node lost track of its state: watch on another one");
                self.fail_live(&error, |_| true);
                self.restart(floor);
            }
        }
    }

    /// Ends the live watchers for whose next revision `is_lost` holds.
    fn fail_live(&mut self, error: &Error, is_lost: impl Fn(Revision) -> bool) {
        let needed = self.position + 1;
        let lost = self
            .watchers
            .iter()
            .filter(|(_, watcher)| match watcher.outbox.place() {
                Place::Live { next } => is_lost(next.max(needed)),
                // They find out by themselves, where they stand.
                Place::Behind { .. } | Place::Listing(_) => false,
            });
        let lost: Vec<_> = lost.map(|(id, _)| *id).collect();
        for id in lost {
            self.fail(id, error.clone());
        }
    }

    fn restart(&mut self, position: Revision) {
        self.recent.restart(position);
        self.position = position;
        self.settled = position;
    }
}
