//! What a call means: the data model, in one naive page.
//!
//! The state is a map. It is not podkv's MVCC, on purpose: see the crate.

use std::collections::BTreeMap;

use crate::history::{Compare, Event, KeyValue, Revision, Step, StepResult};

/// The keys at some revision.
pub type State<'h> = BTreeMap<&'h str, &'h KeyValue>;

/// What a call must have come to.
#[derive(Debug, PartialEq, Eq)]
pub struct Expected {
    pub succeeded: bool,
    pub results: Vec<StepResult>,
    /// In the order of the steps.
    pub events: Vec<Event>,
}

/// Runs a transaction on a state. What it writes has `revision`.
pub fn run(
    state: &State<'_>,
    revision: Revision,
    compare: &[Compare],
    then: &[Step],
    or_else: &[Step],
) -> Expected {
    let succeeded = compare.iter().all(|compare| holds(state, compare));
    let mut view = View {
        state,
        written: BTreeMap::new(),
    };
    let mut events = Vec::new();
    let branch = if succeeded { then } else { or_else };
    let results = branch
        .iter()
        .map(|step| match step {
            Step::Put {
                key,
                value,
                lease,
                ttl_ms,
            } => {
                let before = view.get(key);
                let kv = KeyValue {
                    key: key.clone(),
                    value: value.clone(),
                    created: before.map_or(revision, |before| before.created),
                    modified: revision,
                    version: before.map_or(0, |before| before.version) + 1,
                    lease: *lease,
                    has_ttl: ttl_ms.is_some(),
                };
                events.push(Event::Put(kv.clone()));
                view.written.insert(key.clone(), Some(kv));
                StepResult::Put
            }
            Step::Delete { key } => {
                if view.get(key).is_none() {
                    return StepResult::Deleted(0);
                }
                events.push(Event::Delete { key: key.clone() });
                view.written.insert(key.clone(), None);
                StepResult::Deleted(1)
            }
            Step::Get { key } => StepResult::Read(view.get(key).cloned().into_iter().collect()),
            Step::Scan { start, end } => StepResult::Read(view.scan(start, end)),
        })
        .collect();
    Expected {
        succeeded,
        results,
        events,
    }
}

fn holds(state: &State<'_>, compare: &Compare) -> bool {
    match compare {
        Compare::Value { key, equals } => state
            .get(key.as_str())
            .is_some_and(|kv| kv.value == *equals),
        Compare::Created { key, equals } => {
            state.get(key.as_str()).map_or(0, |kv| kv.created) == *equals
        }
        Compare::Modified { key, equals } => {
            state.get(key.as_str()).map_or(0, |kv| kv.modified) == *equals
        }
    }
}

/// The state with what the transaction wrote so far over it.
struct View<'s, 'h> {
    state: &'s State<'h>,
    written: BTreeMap<String, Option<KeyValue>>,
}

impl View<'_, '_> {
    fn get(&self, key: &str) -> Option<&KeyValue> {
        match self.written.get(key) {
            Some(written) => written.as_ref(),
            None => self.state.get(key).copied(),
        }
    }

    fn scan(&self, start: &str, end: &str) -> Vec<KeyValue> {
        if start >= end {
            return Vec::new();
        }
        let mut found: BTreeMap<&str, &KeyValue> = self
            .state
            .range(start..end)
            .map(|(k, kv)| (*k, *kv))
            .collect();
        for (key, written) in &self.written {
            if key.as_str() < start || key.as_str() >= end {
                continue;
            }
            match written {
                Some(kv) => found.insert(key, kv),
                None => found.remove(key.as_str()),
            };
        }
        found.into_values().cloned().collect()
    }
}

/// Takes a change into a state.
pub fn advance<'h>(state: &mut State<'h>, events: &'h [Event]) {
    for event in events {
        match event {
            Event::Put(kv) => state.insert(&kv.key, kv),
            Event::Delete { key } => state.remove(key.as_str()),
        };
    }
}
