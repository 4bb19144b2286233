//! The one task that drives the hub.
//!
//! [`Desk`] is all of it that waits for nothing: it takes from the feed and the mailbox, in portions,
//! and hands it to the hub. [`run`] adds what needs a runtime: to sleep until the bell rings, the tick,
//! and the blocking threads for the hub's reads, all of which it joins before it ends.

use std::sync::Arc;
use std::time::Instant;

use podkv_api::Revision;
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use super::feed::{Taken, Tip};
use super::hub::{self, Action, Event, Hub, TICK};
use super::{Shared, WatchSettings};
use crate::storage::StateStore;

/// Revisions, registrations and signals that the hub takes over at once: the locks are held for
/// microseconds, and the hub gets round to everything.
const PORTION: usize = 512;

/// The hub, and what it shares with everybody else.
pub(super) struct Desk {
    pub hub: Hub,
    pub shared: Arc<Shared>,
    /// What the hub wants read.
    pub actions: Vec<Action>,
}

impl Desk {
    pub fn new(shared: Arc<Shared>, tip: Tip, now: Instant) -> Self {
        let position = warm_position(&shared.settings, tip);
        let bounds = shared.settings.bounds();
        let hub = Hub::new(bounds, position, now, shared.counters.clone());
        Self {
            hub,
            shared,
            actions: Vec::new(),
        }
    }

    /// Hands the hub a portion of everything that waits for it. True if more may be waiting.
    pub fn take_over(&mut self) -> bool {
        let (registrations, signals) = self.shared.mailbox.take(PORTION);
        let mut is_busy = registrations.len() == PORTION || signals.len() == PORTION;
        for registration in registrations {
            self.handle(Event::Register(registration));
        }
        for id in signals {
            self.handle(Event::Signal(id));
        }
        if self.hub.wants_more() {
            match self.shared.feed.take(self.hub.position(), PORTION) {
                Taken::Nothing => {}
                Taken::Gap { floor } => self.handle(Event::Gap { floor }),
                Taken::Published { revisions, upto } => {
                    is_busy = true;
                    self.handle(Event::Published { revisions, upto });
                }
            }
        }
        if self.hub.has_work() {
            is_busy = true;
            self.handle(Event::Continue);
        }
        is_busy
    }

    pub fn handle(&mut self, event: Event) {
        self.hub.handle(event, &mut self.actions);
    }
}

/// However the task ends, nobody is left waiting: the hub ends the watches that it knows, this those
/// that it does not know yet, and later ones are refused.
impl Drop for Desk {
    fn drop(&mut self) {
        for registration in self.shared.mailbox.close() {
            registration.outbox.end(hub::stopping());
        }
    }
}

/// Where the hub begins: a little in the past, so that it reads recent revisions back into memory as
/// if it had missed them.
fn warm_position(settings: &WatchSettings, tip: Tip) -> Revision {
    let warm = tip.revision.saturating_sub(settings.warm_revisions);
    // An empty store is at 1, and nothing changed there.
    warm.max(tip.compacted_revision.saturating_sub(1)).max(1)
}

impl Action {
    /// Blocking: reads the state.
    pub fn run(self, state: &dyn StateStore) -> Event {
        match self {
            Action::Read { id, from, job } => Event::Read {
                id,
                from,
                found: job.run(state),
            },
            Action::ReadGap { floor, job } => Event::GapRead {
                floor,
                found: job.run(state),
            },
        }
    }
}

/// Runs the hub until it is stopped.
pub(super) async fn run(mut desk: Desk, state: Arc<dyn StateStore>, stop: CancellationToken) {
    let shared = desk.shared.clone();
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut reads: JoinSet<Event> = JoinSet::new();
    loop {
        let is_busy = desk.take_over();
        for action in desk.actions.drain(..) {
            let state = state.clone();
            let workers = state.workers();
            workers.spawn_on(&mut reads, move || action.run(&*state));
        }
        tokio::select! {
            biased;
            () = stop.cancelled() => break,
            Some(read) = reads.join_next() => match read {
                Ok(event) => desk.handle(event),
                Err(error) => {
                    // A read panicked. Its watcher would wait for ever: end them all, loudly.
                    tracing::error!(%error, "a read for a watcher failed; the watch hub stops");
                    break;
                }
            },
            now = tick.tick() => desk.handle(Event::Tick(now.into_std())),
            () = tokio::task::yield_now(), if is_busy => {}
            () = shared.mailbox.bell.notified(), if !is_busy => {}
        }
    }
    reads.shutdown().await;
}
