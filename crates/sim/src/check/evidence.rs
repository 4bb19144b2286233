//! What all checkers start from: the revisions in order, whose each is, and who saw which when.
//!
//! The order comes from the replica that tells the most. It is a claim, and is treated as one: `replicas` holds
//! the others against it, `strict_serializability` and `durability` hold the clients' answers against it.

use std::collections::{BTreeMap, HashMap};

use super::Violation;
use crate::history::{
    Answer, Call, Change, Event, History, KeyValue, LargeOutcome, Nanos, Outcome, Revision, Step,
    WatchMessage,
};

/// Whose a revision is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cause {
    /// The call at this place in the history.
    Call(usize),
    /// This lease ended, by itself or because it was revoked.
    Lease(i64),
    /// A key's own deadline.
    Ttl,
    /// Of a key that is not recorded as calls.
    Foreign,
    /// Nobody's, or somebody's twice: why.
    Unexplained(String),
}

/// A history with an index.
pub struct Evidence<'h> {
    pub history: &'h History,
    /// Every revision, in order.
    pub changes: &'h [Change],
    /// Whose each of `changes` is.
    pub causes: Vec<Cause>,
    /// What became of each key: the revision and what it left, `None` for nothing.
    pub keys: BTreeMap<&'h str, Vec<(Revision, Option<&'h KeyValue>)>>,
    /// When somebody knew of a revision, by time, with the greatest known until then.
    observed: Vec<(Nanos, Revision)>,
}

impl<'h> Evidence<'h> {
    /// # Errors
    /// If no replica was asked: then there is nothing to hold anything against.
    pub fn of(history: &'h History) -> Result<Self, Violation> {
        let Some(replica) = history
            .replicas
            .iter()
            .max_by_key(|replica| replica.revision)
        else {
            return Err(Violation {
                promise: "evidence",
                what: "no replica told its history: nothing can be checked".into(),
            });
        };
        let changes = &replica.changes;
        let mut keys: BTreeMap<&str, Vec<_>> = BTreeMap::new();
        for change in changes {
            for event in &change.events {
                let left = match event {
                    Event::Put(kv) => Some(kv),
                    Event::Delete { .. } => None,
                };
                keys.entry(event.key())
                    .or_default()
                    .push((change.revision, left));
            }
        }
        Ok(Self {
            history,
            changes,
            causes: Causes::new(history).of(changes),
            keys,
            observed: observations(history),
        })
    }

    /// The key as of a revision.
    pub fn at(&self, key: &str, revision: Revision) -> Option<&'h KeyValue> {
        let lives = self.keys.get(key)?;
        let after = lives.partition_point(|(at, _)| *at <= revision);
        lives[..after].last().and_then(|(_, left)| *left)
    }

    /// The keys of a range as of a revision.
    pub fn range_at(&self, start: &str, end: &str, revision: Revision) -> Vec<&'h KeyValue> {
        if start >= end {
            return Vec::new();
        }
        self.keys
            .range(start..end)
            .filter_map(|(key, _)| self.at(key, revision))
            .collect()
    }

    pub fn change(&self, revision: Revision) -> Option<&'h Change> {
        let found = self
            .changes
            .binary_search_by_key(&revision, |change| change.revision);
        found.ok().map(|at| &self.changes[at])
    }

    /// The greatest revision that anybody knew of before a moment.
    pub fn known_before(&self, moment: Nanos) -> Revision {
        let after = self.observed.partition_point(|(at, _)| *at < moment);
        self.observed[..after].last().map_or(0, |(_, known)| *known)
    }

    /// When somebody first knew of a revision, or of a later one; `None` if nobody did during the run.
    pub fn first_known(&self, revision: Revision) -> Option<Nanos> {
        let at = self
            .observed
            .partition_point(|(_, known)| *known < revision);
        self.observed.get(at).map(|(moment, _)| *moment)
    }
}

/// Every moment at which somebody had an answer that speaks of a revision, with the greatest so far.
fn observations(history: &History) -> Vec<(Nanos, Revision)> {
    let of_calls = history
        .calls
        .iter()
        .filter_map(|call| Some((call.returned, call.header()?.revision)));
    let of_watches = history.watches.iter().flat_map(|watch| {
        watch.messages.iter().filter_map(|(at, message)| {
            let revision = match message {
                WatchMessage::Created { .. } => return None,
                WatchMessage::List { revision, .. }
                | WatchMessage::Listed { revision }
                | WatchMessage::Events { revision, .. }
                | WatchMessage::Bookmark { revision } => *revision,
            };
            Some((*at, revision))
        })
    });
    let of_large = history.large.iter().filter_map(|call| match call.outcome {
        LargeOutcome::Wrote { revision } => Some((call.returned, revision)),
        LargeOutcome::Found { modified, .. } => Some((call.returned, modified)),
        _ => None,
    });
    let of_sightings = history
        .sightings
        .iter()
        .map(|sighting| (sighting.seen, sighting.header.revision));
    let mut observed: Vec<_> = of_calls
        .chain(of_watches)
        .chain(of_large)
        .chain(of_sightings)
        .collect();
    observed.sort_unstable();
    let mut greatest = 0;
    for (_, revision) in &mut observed {
        greatest = greatest.max(*revision);
        *revision = greatest;
    }
    observed
}

/// Finds out whose each revision is.
///
/// An acknowledged write says which is its own. One of unknown outcome is known by its value, which nobody else
/// writes. A delete has no value: it is given to a delete of that key whose outcome is unknown, if there is one,
/// the one that was invoked first; which of several does not matter, since they are alike but for that moment,
/// and the first leaves the others the most.
struct Causes<'h> {
    history: &'h History,
    acknowledged: HashMap<Revision, Vec<usize>>,
    by_value: HashMap<&'h str, usize>,
    unknown_deletes: HashMap<&'h str, Vec<usize>>,
    /// Where a call of unknown outcome was found applied.
    applied: HashMap<usize, Revision>,
}

impl<'h> Causes<'h> {
    fn new(history: &'h History) -> Self {
        let mut causes = Self {
            history,
            acknowledged: HashMap::new(),
            by_value: HashMap::new(),
            unknown_deletes: HashMap::new(),
            applied: HashMap::new(),
        };
        for (at, call) in history.calls.iter().enumerate() {
            if call.wrote()
                && let Some(header) = call.header()
            {
                causes
                    .acknowledged
                    .entry(header.revision)
                    .or_default()
                    .push(at);
            }
            // One that puts, too, is known by its value.
            let only_deletes = !call.steps().any(|step| matches!(step, Step::Put { .. }));
            for step in call.steps() {
                match step {
                    Step::Put { value, .. } => {
                        causes.by_value.insert(value, at);
                    }
                    Step::Delete { key } if call.is_unknown() && only_deletes => {
                        causes.unknown_deletes.entry(key).or_default().push(at);
                    }
                    Step::Delete { .. } | Step::Get { .. } | Step::Scan { .. } => {}
                }
            }
        }
        for deletes in causes.unknown_deletes.values_mut() {
            // The earliest last, to be taken first.
            deletes.sort_by_key(|at| std::cmp::Reverse(history.calls[*at].invoked));
            deletes.dedup();
        }
        causes
    }

    fn of(mut self, changes: &'h [Change]) -> Vec<Cause> {
        let mut live: HashMap<&str, &KeyValue> = HashMap::new();
        changes
            .iter()
            .map(|change| {
                let cause = self.one(change, &live);
                for event in &change.events {
                    match event {
                        Event::Put(kv) => live.insert(&kv.key, kv),
                        Event::Delete { key } => live.remove(key.as_str()),
                    };
                }
                cause
            })
            .collect()
    }

    fn one(&mut self, change: &'h Change, live: &HashMap<&str, &KeyValue>) -> Cause {
        let setup = &self.history.setup;
        if change
            .events
            .iter()
            .all(|event| setup.is_foreign(event.key()))
        {
            return Cause::Foreign;
        }
        match self.acknowledged.get(&change.revision).map(Vec::as_slice) {
            Some([one]) => return Cause::Call(*one),
            Some(several) => {
                let ids: Vec<_> = several
                    .iter()
                    .map(|at| self.history.calls[*at].id)
                    .collect();
                return Cause::Unexplained(format!("the calls {ids:?} were all told it is theirs"));
            }
            None => {}
        }
        let put = change.events.iter().find_map(|event| match event {
            Event::Put(kv) => Some(kv),
            Event::Delete { .. } => None,
        });
        match put {
            Some(kv) => self.by_value(change.revision, kv),
            None => self.delete(change, live),
        }
    }

    fn by_value(&mut self, revision: Revision, kv: &KeyValue) -> Cause {
        let Some(at) = self.by_value.get(kv.value.as_str()).copied() else {
            return Cause::Unexplained(format!("nobody wrote {:?} to {:?}", kv.value, kv.key));
        };
        let call = &self.history.calls[at];
        match &call.outcome {
            Outcome::Ok { .. } => Cause::Unexplained(format!(
                "call {} was answered with {} and is applied here too",
                call.id,
                answered_with(call)
            )),
            Outcome::Refused { reason } => Cause::Unexplained(format!(
                "call {} was refused with {reason}, for certain, and is applied",
                call.id
            )),
            Outcome::Unknown { .. } => match self.applied.insert(at, revision) {
                None => Cause::Call(at),
                Some(first) => Cause::Unexplained(format!(
                    "call {} is applied twice, at {first} and here",
                    call.id
                )),
            },
        }
    }

    fn delete(&mut self, change: &'h Change, live: &HashMap<&str, &KeyValue>) -> Cause {
        let first = change.events.first().map_or("", Event::key);
        if let Some(deletes) = self.unknown_deletes.get_mut(first) {
            while let Some(at) = deletes.pop() {
                if self.applied.insert(at, change.revision).is_none() {
                    return Cause::Call(at);
                }
            }
        }
        let before = live.get(first);
        if let Some(lease) = before.and_then(|kv| kv.lease) {
            return Cause::Lease(lease);
        }
        if before.is_some_and(|kv| kv.has_ttl) {
            return Cause::Ttl;
        }
        Cause::Unexplained(format!("nobody deleted {first:?}"))
    }
}

fn answered_with(call: &Call) -> String {
    match (&call.outcome, call.header()) {
        (
            Outcome::Ok {
                answer: Answer::Ran {
                    succeeded: false, ..
                },
                ..
            },
            Some(header),
        ) => format!("\"a compare failed\" at revision {}", header.revision),
        (_, Some(header)) => format!("revision {}", header.revision),
        (_, None) => "success".into(),
    }
}
