//! The one helper that tests talk to: a replica in memory, without the Raft.

use std::sync::Arc;

use podkv_api::{KeyRange, Range, Reason, Revision};
use podkv_core::{
    Answer, Applier, Command, Entry, MemoryView, Meta, Outcome, PageLimits, Proposal, RangePage,
    RevisionEvents, range, read_meta,
};

#[derive(Clone, Default)]
pub struct Store {
    pub view: MemoryView,
    pub clock_ms: u64,
}

impl Store {
    pub fn new() -> Self {
        Self::default()
    }

    /// Applies one entry. What goes in and comes out takes the way over its bytes.
    pub fn apply(&mut self, proposals: Vec<Proposal>) -> (Vec<Outcome>, Vec<Arc<RevisionEvents>>) {
        let entry = Entry {
            clock_ms: self.clock_ms,
            proposals,
        };
        let decoded = Entry::decode(&entry.encode()).unwrap();
        assert_eq!(decoded, entry);
        let mut applier = Applier::new(&self.view).unwrap();
        let outcomes = applier.apply(&decoded).unwrap();
        let effects = applier.finish();
        assert!(effects.writes.is_sorted_by(|a, b| a.0 < b.0));
        self.view.commit(effects.writes);
        assert_eq!(self.meta(), effects.meta);
        for outcome in &outcomes {
            assert_eq!(&Outcome::decode(&outcome.encode()).unwrap(), outcome);
        }
        (outcomes, effects.events)
    }

    pub fn run(&mut self, proposal: impl Into<Proposal>) -> Outcome {
        let (mut outcomes, _) = self.apply(vec![proposal.into()]);
        outcomes.pop().unwrap()
    }

    /// Runs a command that must succeed.
    pub fn ok(&mut self, command: Command) -> Answer {
        self.run(command).result.unwrap()
    }

    /// Runs a command that must be rejected.
    pub fn rejected(&mut self, command: Command) -> Reason {
        self.run(command).result.unwrap_err().reason
    }

    pub fn put(&mut self, key: &str, value: &str) -> Revision {
        let put = podkv_api::Put::new(key.to_owned(), value.to_owned());
        self.run(Command::Put(put)).revision
    }

    pub fn delete(&mut self, range: KeyRange) -> Revision {
        self.run(Command::Delete(podkv_api::Delete::new(range)))
            .revision
    }

    pub fn meta(&self) -> Meta {
        read_meta(&self.view).unwrap()
    }

    pub fn range(&self, request: &Range) -> RangePage {
        range(&self.view, request, PageLimits::default())
            .unwrap()
            .unwrap()
    }
}
