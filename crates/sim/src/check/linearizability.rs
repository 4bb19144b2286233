//! Promise: linearizable, judged by values and times alone: no revision is looked at.
//!
//! This is the check that needs no word of podkv's about itself. Linearizability is local (Herlihy and Wing): a
//! history is linearizable exactly if its part for each key is, so keys are searched one by one.
//!
//! The search is Wing and Gong's with Lowe's just-in-time linearization. It goes through the invocations and returns
//! in order of time and keeps every *configuration* that is still possible: the key's value, and which pending calls
//! have taken effect. Only when a call returns must it have taken effect, so only then are pending ones tried, in
//! all orders. Equal configurations are kept once, which is the memo. If none is left, there is no order.
//!
//! What keeps it small, and why that is sound:
//!
//! - A pending read takes effect as soon as the value is its own. It changes nothing, so that never hurts.
//! - A write of unknown outcome stays pending for ever, and taking effect is never a must: it is tried only where
//!   another call sees what it left. Of two configurations that differ in that alone, the one that has used less can
//!   do all that the other can, and is kept.
//! - Values that nobody saw are one value. So unknown writes of them are alike, as unknown deletes are, and the one
//!   that was invoked first is used first; if no delete found anything, they serve nobody and are left out.
//!
//! Of a transaction over several keys each key's part is searched for itself: that is less than
//! `strict_serializability` demands, and never more. A part that does not determine what the key did is weakened to
//! what it does determine. Keys with leases, TTLs or foreign writers are left out, for the store changes those by
//! itself.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use super::{Evidence, Findings};
use crate::history::{Action, Answer, Call, Compare, KeyValue, Nanos, Outcome, Step, StepResult};

pub const NAME: &str = "linearizability";

/// More configurations than that are no search any more. A key that needs them is reported, not passed over.
const MOST_CONFIGURATIONS: usize = 200_000;

/// A value of one key; 0 is "not there".
type Value = u32;
const ABSENT: Value = 0;
/// Any value that no call saw: one is as good as another.
const UNSEEN: Value = Value::MAX;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Seen {
    Anything,
    Value(Value),
    /// Some value: a delete that found one.
    Present,
}

/// What a call did to one key.
#[derive(Clone, Debug)]
struct Operation {
    call: u64,
    invoked: Nanos,
    /// `None` if it is pending for ever.
    returned: Option<Nanos>,
    seen: Seen,
    writes: Option<Value>,
}

impl Operation {
    /// What it leaves, if it can take effect here.
    fn on(&self, value: Value) -> Option<Value> {
        let fits = match self.seen {
            Seen::Anything => true,
            Seen::Value(seen) => seen == value,
            Seen::Present => value != ABSENT,
        };
        fits.then(|| self.writes.unwrap_or(value))
    }

    fn is_read(&self) -> bool {
        self.writes.is_none()
    }
}

pub fn check(evidence: &Evidence<'_>) -> Findings {
    let mut findings = Findings::default();
    let skipped = not_searched(evidence);
    let mut keys: BTreeMap<&str, Key<'_>> = BTreeMap::new();
    for call in &evidence.history.calls {
        if call.is_local() {
            continue;
        }
        for (key, seen, writes) in parts(call) {
            if !skipped.contains(key) && !evidence.history.setup.is_foreign(key) {
                keys.entry(key).or_default().add(call, seen, writes);
            }
        }
    }
    for (key, operations) in keys {
        let operations = operations.relevant();
        findings.looked_at += operations.len() as u64;
        if let Err(why) = search(&operations) {
            findings.violation(NAME, format!("key {key:?}: {why}"));
        }
    }
    findings
}

/// Keys that the store changes by itself, and keys of which a call of unknown outcome may have written one thing or
/// another.
fn not_searched<'h>(evidence: &Evidence<'h>) -> HashSet<&'h str> {
    let mut skipped = HashSet::new();
    for call in &evidence.history.calls {
        let is_ambiguous = call.is_unknown()
            && matches!(&call.action, Action::Run { or_else, .. } if or_else
                .iter()
                .any(|step| matches!(step, Step::Put { .. } | Step::Delete { .. })));
        for step in call.steps() {
            match step {
                Step::Put {
                    key, lease, ttl_ms, ..
                } if is_ambiguous || lease.is_some() || ttl_ms.is_some() => {
                    skipped.insert(key.as_str());
                }
                Step::Delete { key } if is_ambiguous => {
                    skipped.insert(key.as_str());
                }
                _ => {}
            }
        }
    }
    skipped
}

/// What a part of a call saw of a key, in terms of the history.
enum Saw<'h> {
    Anything,
    Exactly(Option<&'h str>),
    Present,
}

type Part<'h> = (&'h str, Saw<'h>, Option<Option<&'h str>>);

/// What a call did to each key that it names.
fn parts(call: &Call) -> Vec<Part<'_>> {
    let Action::Run {
        compare,
        then,
        or_else,
        ..
    } = &call.action
    else {
        return Vec::new();
    };
    let mut parts: Vec<Part<'_>> = Vec::new();
    let mut add = |key, saw, writes: Option<Option<_>>| match parts
        .iter_mut()
        .find(|(known, ..)| *known == key)
    {
        // The first look is of the state before, the last write stays.
        Some(part) => {
            if writes.is_some() {
                part.2 = writes;
            }
        }
        None => parts.push((key, saw, writes)),
    };
    // Of unknown outcome: only if it is certain what it writes if it takes effect.
    let (branch, results) = match &call.outcome {
        Outcome::Ok {
            answer: Answer::Ran { succeeded, results },
            ..
        } => {
            if *succeeded {
                (then, Some((true, results)))
            } else {
                (or_else, Some((false, results)))
            }
        }
        Outcome::Unknown { .. } => (then, None),
        _ => return Vec::new(),
    };
    let held = results.is_none_or(|(succeeded, _)| succeeded);
    // What a compare that held saw of a key.
    let compared = |key: &str| {
        compare
            .iter()
            .filter(|_| held)
            .find_map(|compare| match compare {
                Compare::Value { key: of, equals } if of == key => Some(equals.as_str()),
                _ => None,
            })
    };
    for (at, step) in branch.iter().enumerate() {
        match (step, results.and_then(|(_, results)| results.get(at))) {
            (Step::Put { key, value, .. }, _) => {
                let saw = match compared(key) {
                    Some(equals) => Saw::Exactly(Some(equals)),
                    None => Saw::Anything,
                };
                add(key.as_str(), saw, Some(Some(value.as_str())));
            }
            (Step::Delete { key }, Some(StepResult::Deleted(0))) => {
                add(key.as_str(), Saw::Exactly(None), None);
            }
            (Step::Delete { key }, Some(_)) => add(key.as_str(), Saw::Present, Some(None)),
            (Step::Delete { key }, None) => add(key.as_str(), Saw::Anything, Some(None)),
            (Step::Get { key }, Some(StepResult::Read(kvs))) => {
                let value = kvs.first().map(|kv: &KeyValue| kv.value.as_str());
                add(key.as_str(), Saw::Exactly(value), None);
            }
            (Step::Get { .. } | Step::Scan { .. }, _) => {}
        }
    }
    if results.is_none() {
        // A read without an answer says nothing.
        parts.retain(|(_, _, writes)| writes.is_some());
    }
    parts
}

/// The operations of a key, and its values by number.
#[derive(Default)]
struct Key<'h> {
    values: HashMap<&'h str, Value>,
    operations: Vec<Operation>,
}

impl<'h> Key<'h> {
    fn value(&mut self, value: Option<&'h str>) -> Value {
        let Some(value) = value else { return ABSENT };
        let next = u32::try_from(self.values.len()).unwrap_or(u32::MAX - 1) + 1;
        *self.values.entry(value).or_insert(next)
    }

    fn add(&mut self, call: &Call, saw: Saw<'h>, writes: Option<Option<&'h str>>) {
        let seen = match saw {
            Saw::Anything => Seen::Anything,
            Saw::Present => Seen::Present,
            Saw::Exactly(value) => Seen::Value(self.value(value)),
        };
        let writes = writes.map(|value| self.value(value));
        self.operations.push(Operation {
            call: call.id,
            invoked: call.invoked,
            returned: call.is_ok().then_some(call.returned),
            seen,
            writes,
        });
    }

    /// With all values that nobody saw as one, and without writes of unknown outcome that serve nobody.
    fn relevant(self) -> Vec<Operation> {
        let seen: HashSet<Value> = self
            .operations
            .iter()
            .filter_map(|operation| match operation.seen {
                Seen::Value(value) => Some(value),
                Seen::Anything | Seen::Present => None,
            })
            .collect();
        // A delete that found something may have found one of them.
        let any_present = self
            .operations
            .iter()
            .any(|operation| operation.seen == Seen::Present);
        let mut operations = self.operations;
        for operation in &mut operations {
            let is_unseen = |value: &Value| *value != ABSENT && !seen.contains(value);
            if operation.writes.as_ref().is_some_and(is_unseen) {
                operation.writes = Some(UNSEEN);
            }
        }
        operations.retain(|operation| {
            let serves = any_present || operation.writes != Some(UNSEEN);
            operation.returned.is_some() || serves
        });
        operations
    }
}

/// The key's value, which pending calls that will return took effect, and which that will not.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Configuration {
    value: Value,
    done: BTreeSet<u32>,
    used: BTreeSet<u32>,
}

fn search(operations: &[Operation]) -> Result<(), String> {
    // At one moment, invocations first: two calls that touch are concurrent.
    let mut moments: Vec<(Nanos, bool, u32)> = Vec::new();
    for (at, operation) in (0_u32..).zip(operations) {
        moments.push((operation.invoked, false, at));
        if let Some(returned) = operation.returned {
            moments.push((returned, true, at));
        }
    }
    moments.sort_unstable();
    let mut pending = Pending {
        operations,
        returning: BTreeSet::new(),
        forever: Vec::new(),
    };
    let mut configurations = vec![Configuration {
        value: ABSENT,
        done: BTreeSet::new(),
        used: BTreeSet::new(),
    }];
    for (_, returns, at) in moments {
        let operation = &operations[at as usize];
        if !returns {
            match operation.returned {
                Some(_) => {
                    pending.returning.insert(at);
                }
                None => pending.forever.push(at),
            }
            continue;
        }
        let before: BTreeSet<Value> = configurations.iter().map(|one| one.value).collect();
        configurations = pending.after_return(configurations, at)?;
        pending.returning.remove(&at);
        if configurations.is_empty() {
            return Err(format!(
                "call {} has no place: it saw {:?} and wrote {:?}, while the value was one of {before:?} (0 is none; values are numbered as they come)",
                operation.call, operation.seen, operation.writes
            ));
        }
    }
    Ok(())
}

struct Pending<'o> {
    operations: &'o [Operation],
    /// Invoked, and will return.
    returning: BTreeSet<u32>,
    /// Invoked, and will never, in order of invocation.
    forever: Vec<u32>,
}

impl Pending<'_> {
    /// Every configuration in which `at` has taken effect.
    fn after_return(
        &self,
        configurations: Vec<Configuration>,
        at: u32,
    ) -> Result<Vec<Configuration>, String> {
        let mut known: HashSet<Configuration> = HashSet::new();
        let mut waiting = Vec::new();
        for configuration in configurations {
            let configuration = self.with_reads(configuration);
            if known.insert(configuration.clone()) {
                waiting.push(configuration);
            }
        }
        let mut through: HashSet<Configuration> = HashSet::new();
        while let Some(mut configuration) = waiting.pop() {
            if configuration.done.remove(&at) {
                through.insert(configuration);
                continue;
            }
            for next in self.steps(&configuration) {
                if known.insert(next.clone()) {
                    waiting.push(next);
                }
            }
            if known.len() > MOST_CONFIGURATIONS {
                let call = self.operations[at as usize].call;
                return Err(format!(
                    "undecided: more than {MOST_CONFIGURATIONS} configurations when call {call} returned"
                ));
            }
        }
        Ok(least_used(through))
    }

    /// One more write takes effect.
    fn steps(&self, from: &Configuration) -> Vec<Configuration> {
        let mut next = Vec::new();
        for at in &self.returning {
            if from.done.contains(at) {
                continue;
            }
            if let Some(value) = self.operations[*at as usize].on(from.value) {
                let mut one = from.clone();
                one.value = value;
                one.done.insert(*at);
                next.push(self.with_reads(one));
            }
        }
        self.use_forever(from, false, &mut next);
        next
    }

    /// One of those that are pending for ever takes effect, if somebody sees it.
    ///
    /// If what follows does not look, it can as well be left out; if nothing follows before the next return, it can
    /// as well take effect then. So only those steps are taken after which a pending call has seen its value.
    /// `seeing`: `from` is after such a step itself, and what follows must look.
    fn use_forever(&self, from: &Configuration, seeing: bool, next: &mut Vec<Configuration>) {
        let mut tried: Vec<(Seen, Option<Value>)> = Vec::new();
        for at in &self.forever {
            let operation = &self.operations[*at as usize];
            let alike = (operation.seen, operation.writes);
            let is_blind = seeing && operation.seen == Seen::Anything;
            if is_blind || from.used.contains(at) || tried.contains(&alike) {
                continue;
            }
            tried.push(alike);
            // What changes nothing is of no use.
            let Some(value) = operation
                .on(from.value)
                .filter(|value| *value != from.value)
            else {
                continue;
            };
            let mut one = from.clone();
            one.value = value;
            one.used.insert(*at);
            let before = one.done.len();
            let one = self.with_reads(one);
            if one.done.len() > before {
                next.push(one.clone());
            }
            for at in &self.returning {
                let looks = &self.operations[*at as usize];
                if looks.seen == Seen::Anything || looks.is_read() || one.done.contains(at) {
                    continue;
                }
                if let Some(value) = looks.on(one.value) {
                    let mut two = one.clone();
                    two.value = value;
                    two.done.insert(*at);
                    next.push(self.with_reads(two));
                }
            }
            self.use_forever(&one, true, next);
        }
    }

    /// With every pending read that fits.
    fn with_reads(&self, mut configuration: Configuration) -> Configuration {
        for at in &self.returning {
            let operation = &self.operations[*at as usize];
            if operation.is_read() && operation.on(configuration.value).is_some() {
                configuration.done.insert(*at);
            }
        }
        configuration
    }
}

/// Of those that differ only in what is used for ever, the ones that have used the least.
fn least_used(configurations: HashSet<Configuration>) -> Vec<Configuration> {
    let mut groups: HashMap<(Value, BTreeSet<u32>), Vec<BTreeSet<u32>>> = HashMap::new();
    for one in configurations {
        groups
            .entry((one.value, one.done))
            .or_default()
            .push(one.used);
    }
    let mut kept = Vec::new();
    for ((value, done), mut uses) in groups {
        uses.sort_by_key(BTreeSet::len);
        let mut least: Vec<BTreeSet<u32>> = Vec::new();
        for used in uses {
            if !least.iter().any(|smaller| smaller.is_subset(&used)) {
                least.push(used);
            }
        }
        kept.extend(least.into_iter().map(|used| Configuration {
            value,
            done: done.clone(),
            used,
        }));
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    fn operation(
        invoked: Nanos,
        returned: Option<Nanos>,
        seen: Seen,
        writes: Option<Value>,
    ) -> Operation {
        Operation {
            call: invoked,
            invoked,
            returned,
            seen,
            writes,
        }
    }

    fn put(invoked: Nanos, returned: Option<Nanos>, value: Value) -> Operation {
        operation(invoked, returned, Seen::Anything, Some(value))
    }

    fn read(invoked: Nanos, returned: Nanos, value: Value) -> Operation {
        operation(invoked, Some(returned), Seen::Value(value), None)
    }

    #[test]
    fn concurrent_writes_may_be_seen_in_either_order_and_not_in_both() {
        let writes = [put(1, Some(10), 1), put(2, Some(11), 2)];
        let seen = |first, second| {
            let reads = [read(12, 13, first), read(14, 15, second)];
            search(&[&writes[..], &reads[..]].concat())
        };
        seen(1, 1).unwrap();
        seen(2, 2).unwrap();
        seen(1, 2).unwrap_err();
        seen(ABSENT, 1).unwrap_err();
    }

    #[test]
    fn a_read_of_the_past_has_no_place() {
        search(&[put(1, Some(2), 1), put(3, Some(4), 2), read(5, 6, 1)]).unwrap_err();
        // Concurrent with the second write it has.
        search(&[put(1, Some(2), 1), put(3, Some(6), 2), read(4, 5, 1)]).unwrap();
    }

    #[test]
    fn once_seen_a_pending_write_is_not_unseen() {
        let write = put(2, None, 2);
        let first = put(0, Some(1), 1);
        search(&[first.clone(), write.clone(), read(3, 4, 1), read(5, 6, 2)]).unwrap();
        search(&[first.clone(), write.clone(), read(3, 4, 2), read(5, 6, 1)]).unwrap_err();
        // And not before it was invoked.
        search(&[first, put(7, None, 2), read(3, 4, 2)]).unwrap_err();
    }

    #[test]
    fn a_delete_of_unknown_outcome_serves_once() {
        let deleted = operation(2, None, Seen::Anything, Some(ABSENT));
        let one = [put(0, Some(1), 1), deleted.clone(), read(3, 4, ABSENT)];
        search(&one).unwrap();
        let again = [&one[..], &[put(5, Some(6), 2), read(7, 8, ABSENT)][..]].concat();
        search(&again).unwrap_err();
        search(
            &[
                &again[..],
                &[operation(2, None, Seen::Anything, Some(ABSENT))][..],
            ]
            .concat(),
        )
        .unwrap();
    }

    #[test]
    fn a_compare_that_held_saw_the_value() {
        let swap = operation(3, Some(4), Seen::Value(1), Some(2));
        search(&[put(0, Some(1), 1), swap.clone()]).unwrap();
        search(&[put(0, Some(1), 3), swap]).unwrap_err();
    }

    /// All orders, tried one by one: what the search must agree with.
    fn by_brute_force(operations: &[Operation], done: &mut Vec<usize>, value: Value) -> bool {
        let is_over = operations
            .iter()
            .enumerate()
            .all(|(at, operation)| operation.returned.is_none() || done.contains(&at));
        if is_over {
            return true;
        }
        for at in 0..operations.len() {
            if done.contains(&at) {
                continue;
            }
            let operation = &operations[at];
            let is_late = operations.iter().enumerate().any(|(other, before)| {
                !done.contains(&other)
                    && before
                        .returned
                        .is_some_and(|returned| returned < operation.invoked)
            });
            if is_late {
                continue;
            }
            if let Some(next) = operation.on(value) {
                done.push(at);
                let found = by_brute_force(operations, done, next);
                done.pop();
                if found {
                    return true;
                }
            }
        }
        false
    }

    #[test]
    fn many_calls_of_unknown_outcome_are_no_explosion() {
        let mut operations: Vec<_> = (1..200).map(|at| put(at, None, at as Value)).collect();
        let gone = operation(0, None, Seen::Anything, Some(ABSENT));
        operations.extend(std::iter::repeat_n(gone, 50));
        for at in 1..100 {
            let seen = at * 2;
            operations.push(read(
                1000 + u64::from(at) * 10,
                1005 + u64::from(at) * 10,
                seen,
            ));
        }
        search(&operations).unwrap();
        operations.push(read(9000, 9001, 2));
        search(&operations).unwrap_err();
    }

    #[test]
    fn it_agrees_with_trying_every_order() {
        use rand::{RngExt as _, SeedableRng as _};
        let mut verdicts = [0, 0];
        for seed in 0..20_000 {
            let mut rng = rand::rngs::StdRng::seed_from_u64(seed);
            let mut next = 0;
            let operations: Vec<_> = (0..rng.random_range(2..8))
                .map(|_| {
                    let invoked = rng.random_range(0..30);
                    let returned = invoked + rng.random_range(1..12);
                    let returned = rng.random_bool(0.75).then_some(returned);
                    match rng.random_range(0..10) {
                        0..4 => {
                            next += 1;
                            put(invoked, returned, next)
                        }
                        4 => operation(invoked, returned, Seen::Anything, Some(ABSENT)),
                        5 => operation(invoked, returned, Seen::Present, Some(ABSENT)),
                        6 => {
                            next += 1;
                            let seen = Seen::Value(rng.random_range(0..4));
                            operation(invoked, returned, seen, Some(next))
                        }
                        _ => read(invoked, invoked + 5, rng.random_range(0..4)),
                    }
                })
                .collect();
            let expected = by_brute_force(&operations, &mut Vec::new(), ABSENT);
            assert_eq!(
                search(&operations).is_ok(),
                expected,
                "seed {seed}: {operations:?}"
            );
            let key = Key {
                values: HashMap::new(),
                operations: operations.clone(),
            };
            assert_eq!(search(&key.relevant()).is_ok(), expected, "seed {seed}");
            verdicts[usize::from(expected)] += 1;
        }
        assert!(
            verdicts.iter().all(|count| *count > 2000),
            "both verdicts are tried: {verdicts:?}"
        );
    }
}
