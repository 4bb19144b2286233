//! Watchers in line: first come, first served, and one can leave from anywhere.

use std::collections::BTreeMap;

use crate::watch::WatcherId;

/// A place in a [`Line`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Ticket(u64);

#[derive(Debug, Default)]
pub(super) struct Line {
    next: u64,
    places: BTreeMap<Ticket, WatcherId>,
}

impl Line {
    pub fn join(&mut self, id: WatcherId) -> Ticket {
        let ticket = Ticket(self.next);
        self.next += 1;
        self.places.insert(ticket, id);
        ticket
    }

    pub fn leave(&mut self, ticket: Ticket) {
        self.places.remove(&ticket);
    }

    pub fn first(&self) -> Option<WatcherId> {
        self.places.first_key_value().map(|(_, id)| *id)
    }

    pub fn next(&mut self) -> Option<WatcherId> {
        self.places.pop_first().map(|(_, id)| id)
    }

    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }
}
