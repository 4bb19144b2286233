//! From the apply thread to the hub: without waiting for anybody.
//!
//! The publisher is the one thread that applies the log; whatever it waits for, every write of the
//! cluster waits for. So this is not a channel. It is a queue of shared revisions, bounded in bytes,
//! under a mutex that is only ever held for a few pointer moves:
//!
//! - *publish* appends. If the queue is then over its bound, the oldest revisions fall out. That loses
//!   nothing: they are committed, and the hub reads them back from the state;
//! - *take* hands the hub a bounded portion, or says that what it needs next has fallen out.
//!
//! Neither side frees memory while it holds the lock. A bounded channel would make the publisher
//! wait or drop the newest; an unbounded one would let a starved hub eat the memory.
//!
//! ```text
//!     floor         tip
//!       │            │
//! ······│ 8  9 10 11 │          take(after: 8) → 9 10 11, up to 11
//!  gone   in the queue          take(after: 5) → Gap: 6 and 7 must be read from the state
//! ```

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use podkv_api::Revision;
use podkv_core::RevisionEvents;

use super::weight;

/// The state that the published revisions led to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tip {
    /// The latest revision.
    pub revision: Revision,
    /// The oldest readable one.
    pub compacted_revision: Revision,
}

/// What [`Feed::take`] found.
#[derive(Debug)]
pub(super) enum Taken {
    /// The hub has everything.
    Nothing,
    /// The next revisions without a gap. Everything up to `upto` is among them or never was.
    Published {
        revisions: Vec<Arc<RevisionEvents>>,
        upto: Revision,
    },
    /// Revisions after the hub's position, up to `floor`, fell out: read them from the state.
    Gap { floor: Revision },
}

#[derive(Debug)]
pub(super) struct Feed {
    max_bytes: usize,
    queue: Mutex<Queue>,
}

#[derive(Debug, Default)]
struct Queue {
    revisions: VecDeque<(Arc<RevisionEvents>, usize)>,
    bytes: usize,
    /// Everything up to here fell out, or was never here.
    floor: Revision,
    tip: Tip,
}

impl Feed {
    pub fn new(max_bytes: usize, floor: Revision, tip: Tip) -> Self {
        let queue = Queue {
            floor,
            tip,
            ..Queue::default()
        };
        Self {
            max_bytes,
            queue: Mutex::new(queue),
        }
    }

    /// Called by the apply thread, once the revisions are committed to the state.
    pub fn publish(&self, revisions: Vec<Arc<RevisionEvents>>, tip: Tip) {
        // Weighed before the lock is taken, freed after it is given back.
        let weighed = revisions.into_iter().map(|revision| {
            let bytes = weight(&revision);
            (revision, bytes)
        });
        let mut weighed: VecDeque<_> = weighed.collect();
        let mut fallen = Vec::new();
        let mut queue = self.lock();
        queue.bytes += weighed.iter().map(|(_, bytes)| bytes).sum::<usize>();
        queue.revisions.append(&mut weighed);
        queue.tip = tip;
        while queue.bytes > self.max_bytes {
            let Some((revision, bytes)) = queue.revisions.pop_front() else {
                break;
            };
            queue.bytes -= bytes;
            queue.floor = revision.revision;
            fallen.push(revision);
        }
        drop(queue);
    }

    /// The state was replaced: what comes next follows `tip`.
    pub fn reset(&self, tip: Tip) {
        let mut queue = self.lock();
        let fallen = std::mem::take(&mut queue.revisions);
        queue.bytes = 0;
        queue.floor = tip.revision;
        queue.tip = tip;
        drop(queue);
        drop(fallen);
    }

    /// What follows `after`, at most `max` revisions of it.
    pub fn take(&self, after: Revision, max: usize) -> Taken {
        let mut known = Vec::new();
        let mut queue = self.lock();
        if queue.floor > after {
            return Taken::Gap { floor: queue.floor };
        }
        // The hub may have read them from the state meanwhile.
        while let Some((revision, _)) = queue.revisions.front()
            && revision.revision <= after
        {
            known.extend(queue.pop());
        }
        let mut revisions = Vec::with_capacity(queue.revisions.len().min(max));
        while revisions.len() < max
            && let Some(revision) = queue.pop()
        {
            revisions.push(revision);
        }
        let upto = match queue.revisions.is_empty() {
            true => queue.tip.revision,
            false => queue.floor,
        };
        queue.floor = queue.floor.max(upto);
        drop(queue);
        match upto <= after {
            true => Taken::Nothing,
            false => Taken::Published { revisions, upto },
        }
    }

    pub fn tip(&self) -> Tip {
        self.lock().tip
    }

    pub fn bytes(&self) -> usize {
        self.lock().bytes
    }

    /// No code panics while it holds the lock, and every step leaves the queue whole.
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Queue {
    fn pop(&mut self) -> Option<Arc<RevisionEvents>> {
        let (revision, bytes) = self.revisions.pop_front()?;
        self.bytes -= bytes;
        self.floor = revision.revision;
        Some(revision)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn revisions(numbers: impl IntoIterator<Item = Revision>) -> Vec<Arc<RevisionEvents>> {
        let empty = |revision| {
            Arc::new(RevisionEvents {
                revision,
                events: Vec::new(),
            })
        };
        numbers.into_iter().map(empty).collect()
    }

    fn tip(revision: Revision) -> Tip {
        Tip {
            revision,
            compacted_revision: 0,
        }
    }

    /// Each empty revision weighs this much.
    fn one() -> usize {
        weight(&RevisionEvents {
            revision: 0,
            events: Vec::new(),
        })
    }

    fn numbers(taken: Taken) -> (Vec<Revision>, Revision) {
        match taken {
            Taken::Published { revisions, upto } => (
                revisions.iter().map(|revision| revision.revision).collect(),
                upto,
            ),
            other => panic!("expected revisions, not {other:?}"),
        }
    }

    #[test]
    fn hands_over_in_order_and_in_portions() {
        let feed = Feed::new(100 * one(), 1, tip(1));
        feed.publish(revisions(2..=5), tip(5));
        assert_eq!(numbers(feed.take(1, 3)), (vec![2, 3, 4], 4));
        assert_eq!(numbers(feed.take(4, 3)), (vec![5], 5));
        assert!(matches!(feed.take(5, 3), Taken::Nothing));
        assert_eq!(feed.bytes(), 0);
    }

    #[test]
    fn what_falls_out_is_a_gap_until_it_was_read() {
        let feed = Feed::new(2 * one(), 1, tip(1));
        feed.publish(revisions(2..=5), tip(5));
        assert!(matches!(feed.take(1, 10), Taken::Gap { floor: 3 }));
        assert!(matches!(feed.take(2, 10), Taken::Gap { .. }));
        assert_eq!(numbers(feed.take(3, 10)), (vec![4, 5], 5));
    }

    #[test]
    fn a_revision_that_was_read_from_the_state_does_not_come_again() {
        let feed = Feed::new(100 * one(), 1, tip(1));
        feed.publish(revisions(2..=5), tip(5));
        assert_eq!(numbers(feed.take(4, 10)), (vec![5], 5));
        feed.publish(revisions(6..=7), tip(7));
        assert!(matches!(feed.take(7, 10), Taken::Nothing));
    }

    #[test]
    fn a_reset_leaves_a_gap_and_goes_on_from_there() {
        let feed = Feed::new(100 * one(), 1, tip(1));
        feed.publish(revisions(2..=5), tip(5));
        feed.reset(tip(50));
        assert!(matches!(feed.take(5, 10), Taken::Gap { floor: 50 }));
        feed.publish(revisions(51..=51), tip(51));
        assert_eq!(numbers(feed.take(50, 10)), (vec![51], 51));
    }

    #[test]
    fn a_revision_without_changes_moves_the_position() {
        let feed = Feed::new(100 * one(), 1, tip(1));
        feed.publish(Vec::new(), tip(1 << 32));
        assert_eq!(numbers(feed.take(1, 10)), (vec![], 1 << 32));
    }
}
