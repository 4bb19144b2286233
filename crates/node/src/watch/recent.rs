//! The most recent revisions, in memory, for watchers that fell a little behind.
//!
//! This ring owns the events of the live path. Queues of watchers only point into it, weakly: when a
//! revision falls out of the ring its memory is gone, however many watchers have not read it yet.
//! They notice, and read it from the state. That bounds the memory of all slow watchers together by
//! the one budget of the ring.

use std::collections::VecDeque;
use std::sync::Arc;

use podkv_api::Revision;
use podkv_core::RevisionEvents;

use super::weight;

/// Holds every revision after `floor` that changed anything.
#[derive(Debug)]
pub(super) struct Recent {
    max_bytes: usize,
    revisions: VecDeque<(Arc<RevisionEvents>, usize)>,
    bytes: usize,
    floor: Revision,
}

impl Recent {
    pub fn new(max_bytes: usize, floor: Revision) -> Self {
        Self {
            max_bytes,
            revisions: VecDeque::new(),
            bytes: 0,
            floor,
        }
    }

    /// Appends the next revision. It stays at least until the one after it, whatever its size: else
    /// nobody could ever get it from here.
    pub fn push(&mut self, revision: Arc<RevisionEvents>) {
        let bytes = weight(&revision);
        self.bytes += bytes;
        self.revisions.push_back((revision, bytes));
        while self.bytes > self.max_bytes && self.revisions.len() > 1 {
            let Some((oldest, bytes)) = self.revisions.pop_front() else {
                break;
            };
            self.bytes -= bytes;
            self.floor = oldest.revision;
        }
    }

    /// Forgets everything: what comes next follows `floor`.
    pub fn restart(&mut self, floor: Revision) {
        self.revisions.clear();
        self.bytes = 0;
        self.floor = floor;
    }

    /// True if every change from `revision` on is here.
    pub fn covers(&self, revision: Revision) -> bool {
        revision > self.floor
    }

    /// The revisions from `from` on, in order. Only meaningful if it [`Recent::covers`] `from`.
    pub fn since(&self, from: Revision) -> impl Iterator<Item = &Arc<RevisionEvents>> {
        let start = self
            .revisions
            .partition_point(|(revision, _)| revision.revision < from);
        self.revisions.range(start..).map(|(revision, _)| revision)
    }

    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn revision(revision: Revision) -> Arc<RevisionEvents> {
        Arc::new(RevisionEvents {
            revision,
            events: Vec::new(),
        })
    }

    #[test]
    fn keeps_the_newest_within_its_bytes() {
        let one = weight(&revision(0));
        let mut recent = Recent::new(3 * one, 10);
        let watched = revision(11);
        let weak = Arc::downgrade(&watched);
        recent.push(watched);
        for number in 12..=15 {
            recent.push(revision(number));
        }
        assert_eq!(recent.bytes(), 3 * one);
        assert!(!recent.covers(12) && recent.covers(13));
        let numbers: Vec<_> = recent.since(14).map(|revision| revision.revision).collect();
        assert_eq!(numbers, [14, 15]);
        assert!(weak.upgrade().is_none(), "what fell out is freed");
    }

    #[test]
    fn keeps_the_last_revision_even_if_it_is_too_large() {
        let mut recent = Recent::new(0, 1);
        recent.push(revision(2));
        recent.push(revision(3));
        assert_eq!(recent.since(3).count(), 1);
        assert!(recent.covers(3) && !recent.covers(2));
    }
}
