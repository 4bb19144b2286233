//! Can the checkers fail? Good histories of a small world pass; each planted slip is found, by the checker whose
//! promise it breaks, whatever the seed.

use std::collections::BTreeMap;

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use super::watch as watches;
use super::{all, data_model, durability, exactly_once, fencing, leadership, leases};
use super::{linearizability, local_reads, model, one_cluster, replicas, strict_serializability};
use crate::history::{
    Action, Answer, Call, Change, Compare, Consistency, Event, Fence, Header, History, Hold,
    KeyValue, LargeAction, LargeCall, LargeOutcome, Nanos, Outcome, Replica, Revision, Rewound,
    Setup, Sighting, Step, StepResult, WatchMessage, WatchStream,
};

const SEEDS: u64 = 40;

/// A store without faults, on which clients overlap in time.
struct World {
    rng: StdRng,
    now: Nanos,
    keys: BTreeMap<String, KeyValue>,
    revision: Revision,
    changes: Vec<Change>,
    history: History,
}

impl World {
    fn header(&self) -> Header {
        Header {
            cluster: 7,
            incarnation: 0,
            member: 1,
            term: 1 + self.now / 10_000_000,
            revision: self.revision,
        }
    }

    /// A moment at which something takes effect; a call reaches a little to both sides of it.
    fn tick(&mut self) -> (Nanos, Nanos) {
        self.now += self.rng.random_range(10_000..50_000);
        let before = self.rng.random_range(0..60_000);
        let after = self.rng.random_range(1..60_000);
        (self.now.saturating_sub(before), self.now + after)
    }

    fn commit(&mut self, events: Vec<Event>) {
        self.revision += 1;
        for event in &events {
            match event {
                Event::Put(kv) => self.keys.insert(kv.key.clone(), kv.clone()),
                Event::Delete { key } => self.keys.remove(key),
            };
        }
        let revision = self.revision;
        self.changes.push(Change { revision, events });
    }

    fn call(&mut self, action: Action, outcome: Outcome, fence: Option<Fence>, at: (Nanos, Nanos)) {
        let id = self.history.calls.len() as u64;
        self.history.calls.push(Call {
            id,
            client: 0,
            invoked: at.0,
            returned: at.1,
            action,
            outcome,
            fence,
        });
    }

    fn run(&mut self, compare: Vec<Compare>, then: Vec<Step>, or_else: Vec<Step>) {
        self.run_as(compare, then, or_else, None, Consistency::Linearizable);
    }

    fn run_as(
        &mut self,
        compare: Vec<Compare>,
        then: Vec<Step>,
        or_else: Vec<Step>,
        fence: Option<Fence>,
        consistency: Consistency,
    ) {
        let at = self.tick();
        let state: model::State<'_> = self.keys.iter().map(|(k, kv)| (k.as_str(), kv)).collect();
        let expected = model::run(&state, self.revision + 1, &compare, &then, &or_else);
        let is_unknown = self.rng.random_bool(0.1);
        let applied = !is_unknown || self.rng.random_bool(0.5);
        if applied && !expected.events.is_empty() {
            self.commit(expected.events);
        }
        let outcome = if is_unknown {
            Outcome::Unknown {
                reason: "DeadlineExceeded".into(),
            }
        } else {
            Outcome::Ok {
                header: Some(self.header()),
                answer: Answer::Ran {
                    succeeded: expected.succeeded,
                    results: expected.results,
                },
            }
        };
        let action = Action::Run {
            compare,
            then,
            or_else,
            consistency,
        };
        self.call(action, outcome, fence, at);
    }

    fn value(&self) -> String {
        format!("v{}", self.history.calls.len())
    }

    fn put(&self, key: &str, lease: Option<i64>) -> Step {
        Step::Put {
            key: key.into(),
            value: self.value(),
            lease,
            ttl_ms: None,
        }
    }

    fn key(&mut self) -> String {
        format!("a/{}", self.rng.random_range(0..5))
    }

    fn one(&mut self) {
        let (key, other) = (self.key(), self.key());
        let get = |key: &str| Step::Get { key: key.into() };
        let put = self.put(&key, None);
        match self.rng.random_range(0..11) {
            0..3 => self.run(vec![], vec![put], vec![]),
            3 => self.run(vec![], vec![Step::Delete { key }], vec![]),
            4 if key != other => {
                let both = vec![put, self.put(&other, None)];
                self.run(vec![], both, vec![]);
            }
            5 => {
                let equals = self
                    .keys
                    .get(&key)
                    .map_or("none".into(), |kv| kv.value.clone());
                let compare = vec![Compare::Value {
                    key: key.clone(),
                    equals,
                }];
                self.run(compare, vec![put], vec![get(&key)]);
            }
            6 => {
                let (start, end) = ("a/".into(), "a0".into());
                self.run(vec![], vec![Step::Scan { start, end }], vec![]);
            }
            7 => self.run_as(vec![], vec![get(&key)], vec![], None, Consistency::Local),
            8 => {
                let at = self.tick();
                let header = self.header();
                self.history.sightings.push(Sighting {
                    asked: at.0,
                    seen: at.1,
                    node: "podkv-0".into(),
                    header,
                    leader: Some(header.term % 3 + 1),
                });
            }
            9 if key != other => self.run(vec![], vec![put, Step::Delete { key: other }], vec![]),
            _ => self.run(vec![], vec![get(&key)], vec![]),
        }
    }

    /// A lease with two keys, renewed once, left to expire.
    fn lease(&mut self, lease: i64) {
        let at = self.tick();
        let ttl_ms = 2;
        let granted = Outcome::Ok {
            header: Some(self.header()),
            answer: Answer::Granted { ttl_ms },
        };
        self.call(Action::Grant { lease, ttl_ms }, granted, None, at);
        let keys = [format!("lease/{lease}/0"), format!("lease/{lease}/1")];
        let puts = keys.iter().map(|key| self.put(key, Some(lease))).collect();
        self.run(vec![], puts, vec![]);
        self.one();
        let at = self.tick();
        let kept = Outcome::Ok {
            header: Some(self.header()),
            answer: Answer::KeptAlive {
                ttl_ms,
                remaining_ms: ttl_ms,
            },
        };
        self.call(Action::KeepAlive { lease }, kept, None, at);
        self.now += ttl_ms * 1_000_000 + 1;
        let events: Vec<Event> = keys
            .into_iter()
            .filter(|key| self.keys.contains_key(key))
            .map(|key| Event::Delete { key })
            .collect();
        if !events.is_empty() {
            self.commit(events);
        }
        self.run(vec![], vec![Step::Get { key: "a/0".into() }], vec![]);
    }

    /// The lock's queue is written by its recipe.
    fn lock(&mut self, client: u32) {
        let asked = self.tick().0;
        let key = format!("lock/x/{client}");
        let revision = self.revision + 1;
        self.commit(vec![Event::Put(KeyValue {
            key: key.clone(),
            value: String::new(),
            created: revision,
            modified: revision,
            version: 1,
            lease: Some(99),
            has_ttl: false,
        })]);
        let acquired = self.tick().1;
        self.now = acquired;
        let fence = Fence {
            lock: "x".into(),
            token: revision,
        };
        for _ in 0..2 {
            let compare = Compare::Created {
                key: key.clone(),
                equals: revision,
            };
            let put = self.put("guarded/x", None);
            let compare = vec![compare];
            self.run_as(
                compare,
                vec![put],
                vec![],
                Some(fence.clone()),
                Consistency::Linearizable,
            );
        }
        self.history.holds.push(Hold {
            lock: "x".into(),
            client,
            asked,
            acquired,
            confirmed: self.now,
            token: revision,
        });
        self.now += 100_000;
        self.commit(vec![Event::Delete { key }]);
    }

    /// That there is none; `large_values.rs` has a world of its own.
    fn look_for_a_large_value(&mut self) {
        self.history.large.push(LargeCall {
            id: 0,
            client: 4,
            invoked: self.now,
            returned: self.now,
            key: "large/none".into(),
            action: LargeAction::Get,
            outcome: LargeOutcome::NotFound,
        });
    }

    /// What a watch of the keys `a/` saw: a list in the middle, then everything.
    fn watch(&mut self) {
        let first = self.changes[self.changes.len() / 4].revision;
        let mut messages = vec![(
            0,
            WatchMessage::Created {
                start_revision: first,
            },
        )];
        for change in self
            .changes
            .iter()
            .filter(|change| change.revision >= first)
        {
            let in_range = |event: &&Event| event.key().starts_with("a/");
            let events: Vec<Event> = change.events.iter().filter(in_range).cloned().collect();
            let revision = change.revision;
            // Nobody else knew of it earlier.
            let at = self.now + revision;
            if events.is_empty() {
                messages.push((at, WatchMessage::Bookmark { revision }));
            } else {
                messages.push((at, WatchMessage::Events { revision, events }));
            }
        }
        self.history.watches.push(WatchStream {
            client: 3,
            start: "a/".into(),
            end: "a0".into(),
            messages,
        });
    }
}

fn good(seed: u64) -> History {
    let mut world = World {
        rng: StdRng::seed_from_u64(seed),
        now: 1_000_000,
        keys: BTreeMap::new(),
        revision: 1,
        changes: Vec::new(),
        history: History {
            setup: Setup {
                seed,
                command: String::new(),
                foreign: vec!["lock/".into()],
            },
            ..History::default()
        },
    };
    for round in 0..12_u32 {
        for _ in 0..20 {
            world.one();
        }
        world.lock(round);
        if round % 3 == 0 {
            world.lease(i64::from(round) + 1);
        }
    }
    world.watch();
    world.look_for_a_large_value();
    for number in 0..3 {
        world.history.replicas.push(Replica {
            node: format!("podkv-{number}"),
            revision: world.revision,
            changes: world.changes.clone(),
            keys: world.keys.values().cloned().collect(),
            digests: vec![(world.revision, 42)],
        });
    }
    world.history
}

#[test]
fn good_histories_pass_and_every_checker_looks_at_something() {
    for seed in 0..SEEDS {
        let report = all(&good(seed));
        assert_eq!(report.violations, [], "seed {seed}");
        for (name, looked_at, _) in &report.looked_at {
            assert!(*looked_at > 0, "{name} looked at nothing, seed {seed}");
        }
    }
}

#[test]
fn a_history_comes_back_from_its_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("history.jsonl");
    let mut history = good(1);
    history.faults.push(crate::history::Fault {
        at: 5,
        what: "kill podkv-0".into(),
    });
    history.save(&path).unwrap();
    assert_eq!(History::load(&path).unwrap(), history);
}

#[test]
fn without_a_replica_nothing_is_taken_for_checked() {
    let mut history = good(1);
    history.replicas.clear();
    assert_eq!(all(&history).violations.len(), 1);
}

/// Plants a slip in good histories, and demands that these checkers find it.
fn finds(promises: &[&str], plant: impl Fn(&mut History, &mut StdRng)) {
    for seed in 0..SEEDS {
        let mut history = good(seed);
        plant(&mut history, &mut StdRng::seed_from_u64(seed));
        assert_ne!(history, good(seed), "nothing was planted with seed {seed}");
        let report = all(&history);
        for promise in promises {
            assert!(
                report
                    .violations
                    .iter()
                    .any(|found| found.promise == *promise),
                "{promise} does not find it, seed {seed}: {:?}",
                report.violations
            );
        }
    }
}

fn pick<T>(rng: &mut StdRng, all: &[T]) -> usize {
    assert!(!all.is_empty(), "there is something to choose");
    rng.random_range(0..all.len())
}

/// The places of calls that match.
fn calls(history: &History, matches: impl Fn(&Call) -> bool) -> Vec<usize> {
    let found = history.calls.iter().enumerate();
    found
        .filter(|(_, call)| matches(call))
        .map(|(at, _)| at)
        .collect()
}

fn is_put(call: &Call) -> bool {
    call.fence.is_none()
        && call.wrote()
        && matches!(&call.action, Action::Run { then, compare, .. }
            if compare.is_empty() && matches!(&then[..], [Step::Put { lease: None, .. }]))
}

fn on_all(history: &mut History, change: impl Fn(&mut Vec<Change>)) {
    for replica in &mut history.replicas {
        change(&mut replica.changes);
    }
}

/// A read of a value that was overwritten, by a write whose answer was there, before the read began.
fn stale_read(history: &mut History, rng: &mut StdRng, lies: bool) {
    let evidence = super::Evidence::of(history).unwrap();
    let mut found = Vec::new();
    for at in calls(history, |call| call.is_ok() && !call.is_local()) {
        let call = &history.calls[at];
        let Action::Run { then, .. } = &call.action else {
            continue;
        };
        let [Step::Get { key }] = &then[..] else {
            continue;
        };
        let overwritten = history.calls.iter().filter(|write| {
            is_put(write)
                && write.returned < call.invoked
                && write
                    .steps()
                    .any(|step| matches!(step, Step::Put { key: of, .. } if of == key))
        });
        for write in overwritten {
            let revision = write.header().unwrap().revision - 1;
            let Some(old) = evidence.at(key, revision) else {
                continue;
            };
            // Written by a call that was over before it was overwritten: else times alone allow both orders.
            let is_before = |first: &Call| first.is_ok() && first.returned < write.invoked;
            let mut writers = history.calls.iter().filter(|first| {
                first
                    .steps()
                    .any(|step| matches!(step, Step::Put { value, .. } if *value == old.value))
            });
            if writers.all(is_before) {
                found.push((at, revision, old.clone()));
            }
        }
    }
    let (at, revision, old) = found[pick(rng, &found)].clone();
    if let Outcome::Ok {
        header: Some(header),
        answer,
    } = &mut history.calls[at].outcome
    {
        if !lies {
            header.revision = revision;
        }
        *answer = Answer::Ran {
            succeeded: true,
            results: vec![StepResult::Read(vec![old])],
        };
    }
}

#[test]
fn a_stale_read() {
    let both = [strict_serializability::NAME, linearizability::NAME];
    finds(&both, |history, rng| stale_read(history, rng, false));
    finds(&both, |history, rng| stale_read(history, rng, true));
}

#[test]
fn a_lost_write() {
    let names = [durability::NAME, replicas::NAME];
    finds(&names, |history, rng| {
        let puts = calls(history, is_put);
        let call = &history.calls[puts[pick(rng, &puts)]];
        let revision = call.header().unwrap().revision;
        history.replicas[1]
            .changes
            .retain(|change| change.revision < revision);
        history.replicas[1].revision = revision - 1;
    });
    // On all replicas, so that they agree.
    finds(&[durability::NAME], |history, rng| {
        let puts = calls(history, is_put);
        let revision = history.calls[puts[pick(rng, &puts)]]
            .header()
            .unwrap()
            .revision;
        on_all(history, |changes| {
            changes.retain(|change| change.revision != revision)
        });
    });
}

#[test]
fn a_write_that_is_applied_twice() {
    finds(&[exactly_once::NAME], |history, rng| {
        let puts = calls(history, is_put);
        let call = &history.calls[puts[pick(rng, &puts)]];
        let revision = call.header().unwrap().revision;
        let again = |changes: &mut Vec<Change>| {
            let first = changes.iter().find(|change| change.revision == revision);
            let mut second = first.unwrap().clone();
            second.revision = changes.last().unwrap().revision + 1;
            changes.push(second);
        };
        on_all(history, again);
    });
}

#[test]
fn a_refused_write_that_is_applied() {
    for is_delete in [false, true] {
        finds(&[exactly_once::NAME], |history, rng| {
            let writes = calls(history, |call| {
                let deletes = call.steps().any(|step| matches!(step, Step::Delete { .. }));
                call.wrote() && deletes == is_delete && call.fence.is_none()
            });
            // Another delete of unknown outcome would explain it.
            if is_delete {
                history.calls.iter_mut().for_each(|call| {
                    if call.is_unknown() && matches!(call.steps().next(), Some(Step::Delete { .. }))
                    {
                        call.outcome = Outcome::Refused {
                            reason: "NoLeader".into(),
                        };
                    }
                });
            }
            history.calls[writes[pick(rng, &writes)]].outcome = Outcome::Refused {
                reason: "NoLeader".into(),
            };
        });
    }
}

#[test]
fn a_transaction_of_which_a_part_is_missing() {
    finds(&[strict_serializability::NAME], |history, rng| {
        let both = calls(history, |call| {
            call.wrote()
                && call.steps().count() == 2
                && call.fence.is_none()
                && call.steps().all(|step| matches!(step, Step::Put { .. }))
        });
        let revision = history.calls[both[pick(rng, &both)]]
            .header()
            .unwrap()
            .revision;
        on_all(history, |changes| {
            let change = changes
                .iter_mut()
                .find(|change| change.revision == revision);
            change.unwrap().events.pop();
        });
    });
}

#[test]
fn a_compare_that_was_decided_wrongly() {
    finds(&[strict_serializability::NAME], |history, rng| {
        let failed = calls(history, |call| {
            matches!(&call.outcome,
            Outcome::Ok { answer: Answer::Ran { succeeded: true, .. }, .. } if call.wrote())
                && matches!(&call.action, Action::Run { compare, .. } if !compare.is_empty())
                && call.fence.is_none()
        });
        let at = failed[pick(rng, &failed)];
        if let Action::Run { compare, .. } = &mut history.calls[at].action
            && let Some(Compare::Value { equals, .. }) = compare.first_mut()
        {
            *equals = "something else".into();
        }
    });
}

/// The messages of the watch, and the places of those that tell events.
fn messages(history: &mut History) -> (&mut Vec<(Nanos, WatchMessage)>, Vec<usize>) {
    let messages = &mut history.watches[0].messages;
    let tells = |message: &WatchMessage| matches!(message, WatchMessage::Events { .. });
    let places = messages.iter().enumerate();
    let places = places
        .filter(|(_, (_, message))| tells(message))
        .map(|(at, _)| at);
    let places = places.collect();
    (messages, places)
}

#[test]
fn a_watch_that_skips_repeats_or_reorders() {
    finds(&[watches::NAME], |history, rng| {
        let (messages, tells) = messages(history);
        // Not the last: nothing says how soon that must be told.
        messages.remove(tells[rng.random_range(0..tells.len() - 1)]);
    });
    finds(&[watches::NAME], |history, rng| {
        let (messages, tells) = messages(history);
        let at = tells[pick(rng, &tells)];
        messages.insert(at, messages[at].clone());
    });
    finds(&[watches::NAME], |history, rng| {
        let (messages, tells) = messages(history);
        let at = rng.random_range(0..tells.len() - 1);
        messages.swap(tells[at], tells[at + 1]);
    });
}

#[test]
fn a_watch_that_splits_a_revision_or_marks_what_it_has_not_told() {
    finds(&[watches::NAME], |history, _| {
        let (messages, tells) = messages(history);
        let at = tells.into_iter().find_map(|at| match &messages[at].1 {
            WatchMessage::Events { revision, events } if events.len() > 1 => {
                Some((at, *revision, events.clone()))
            }
            _ => None,
        });
        let (at, revision, events) = at.expect("a transaction over two keys");
        let part = |event: &Event| WatchMessage::Events {
            revision,
            events: vec![event.clone()],
        };
        messages[at].1 = part(&events[0]);
        messages.insert(at + 1, (messages[at].0, part(&events[1])));
    });
    finds(&[watches::NAME], |history, rng| {
        let (messages, tells) = messages(history);
        let at = tells[pick(rng, &tells)];
        let WatchMessage::Events { revision, .. } = messages[at].1 else {
            unreachable!("chosen so")
        };
        messages.insert(at, (messages[at].0, WatchMessage::Bookmark { revision }));
    });
}

#[test]
fn a_list_that_is_not_the_state() {
    finds(&[watches::NAME], |history, _| {
        let revision = history.replicas[0].revision;
        let listed = vec![
            (
                0,
                WatchMessage::Created {
                    start_revision: revision + 1,
                },
            ),
            (
                0,
                WatchMessage::List {
                    revision,
                    kvs: Vec::new(),
                },
            ),
            (0, WatchMessage::Listed { revision }),
        ];
        history.watches[0].messages = listed;
    });
}

#[test]
fn a_lease_that_ends_early() {
    let late = |history: &History| {
        let evidence = super::Evidence::of(history).unwrap();
        let ends = evidence.changes.iter().zip(&evidence.causes);
        let ends = ends.filter_map(|(change, cause)| match cause {
            super::Cause::Lease(lease) => {
                Some((*lease, evidence.first_known(change.revision).unwrap()))
            }
            _ => None,
        });
        ends.collect::<Vec<_>>()
    };
    for is_refusal in [false, true] {
        finds(&[leases::NAME], |history, rng| {
            let ends = late(history);
            let (lease, known) = ends[pick(rng, &ends)];
            // A renewal that was answered a moment before.
            let mut renewal = history
                .calls
                .iter()
                .find(|call| call.action == Action::KeepAlive { lease })
                .unwrap()
                .clone();
            renewal.invoked = known - 1_000_000;
            renewal.returned = known - 999_999;
            if is_refusal {
                renewal.invoked = known - 3_000_000;
                renewal.returned = known - 2_000_001;
                renewal.outcome = Outcome::Refused {
                    reason: "LeaseNotFound".into(),
                };
            }
            renewal.id = 1_000_000;
            history.calls.push(renewal);
        });
    }
}

#[test]
fn a_token_that_goes_back_and_a_lock_that_two_hold() {
    finds(&[fencing::NAME], |history, rng| {
        let at = rng.random_range(0..history.holds.len() - 1);
        let token = history.holds[at].token;
        history.holds[at].token = history.holds[at + 1].token;
        history.holds[at + 1].token = token;
    });
    finds(&[fencing::NAME], |history, rng| {
        let at = rng.random_range(0..history.holds.len() - 1);
        history.holds[at].confirmed = history.holds[at + 1].acquired + 1;
    });
    finds(&[fencing::NAME], |history, rng| {
        let fenced = calls(history, |call| call.fence.is_some() && call.wrote());
        let at = fenced[rng.random_range(2..fenced.len())];
        history.calls[at].fence.as_mut().unwrap().token = 1;
    });
}

#[test]
fn two_leaders_in_a_term_and_a_term_that_goes_back() {
    finds(&[leadership::NAME], |history, rng| {
        let mut other = history.sightings[pick(rng, &history.sightings)].clone();
        other.leader = other.leader.map(|leader| leader + 1);
        history.sightings.push(other);
    });
    finds(&[leadership::NAME], |history, _| {
        let mut back = history.sightings.last().unwrap().clone();
        back.asked = back.seen + 1;
        back.seen += 2;
        back.header.term -= 1;
        back.leader = None;
        history.sightings.push(back);
    });
    // Volumes that were rewound excuse their own node, and nothing that happened afterwards.
    for (node, early) in [("podkv-1", false), ("podkv-0", true)] {
        finds(&[leadership::NAME], |history, _| {
            let at = go_back(history);
            let at = if early { 0 } else { at };
            let node = node.into();
            history.rewound.push(Rewound { at, node });
        });
    }
    finds(&[leadership::NAME], |history, _| {
        let at = go_back(history);
        let node = "podkv-0".into();
        history.rewound.push(Rewound { at, node });
        let mut forth = history.sightings.last().unwrap().clone();
        forth.asked = forth.seen + 1;
        forth.seen += 2;
        forth.header.term += 1;
        history.sightings.push(forth);
        go_back(history);
    });
}

/// A node says a lower term than it said last. Returns a moment in between.
fn go_back(history: &mut History) -> Nanos {
    let mut back = history.sightings.last().unwrap().clone();
    let at = back.seen + 1;
    back.asked = at + 1;
    back.seen = at + 2;
    back.header.term -= 1;
    back.leader = None;
    history.sightings.push(back);
    at
}

#[test]
fn a_term_goes_back_with_a_volume_that_was_rewound() {
    for seed in 1..=SEEDS {
        let mut history = good(seed);
        let at = go_back(&mut history);
        let node = "podkv-0".into();
        history.rewound.push(Rewound { at, node });
        let found = all(&history).violations;
        assert!(found.is_empty(), "seed {seed}: {found:?}");
    }
}

#[test]
fn replicas_that_differ() {
    finds(&[replicas::NAME], |history, rng| {
        let at = rng.random_range(0..3);
        history.replicas[at].digests[0].1 += 1;
    });
    finds(&[replicas::NAME], |history, rng| {
        let at = rng.random_range(0..3);
        let key = pick(rng, &history.replicas[at].keys);
        history.replicas[at].keys.remove(key);
    });
    finds(&[replicas::NAME], |history, _| {
        for change in &mut history.replicas[1].changes {
            if let Some(Event::Put(kv)) = change.events.first_mut() {
                kv.value.push('!');
                break;
            }
        }
    });
}

#[test]
fn a_version_that_does_not_follow() {
    finds(&[data_model::NAME], |history, rng| {
        let nth = rng.random_range(0..20);
        on_all(history, |changes| {
            let mut puts = changes.iter_mut().flat_map(|change| &mut change.events);
            let mut put = puts.by_ref().filter_map(|event| match event {
                Event::Put(kv) => Some(kv),
                Event::Delete { .. } => None,
            });
            put.nth(nth).unwrap().version += 1;
        });
    });
}

#[test]
fn a_local_read_that_goes_back() {
    finds(&[local_reads::NAME], |history, _| {
        let reads = calls(history, |call| call.is_local() && call.is_ok());
        let mut back = history.calls[*reads.last().unwrap()].clone();
        back.id = 1_000_000;
        back.invoked = back.returned + 1;
        back.returned += 2;
        if let Outcome::Ok {
            header: Some(header),
            ..
        } = &mut back.outcome
        {
            header.revision -= 1;
        }
        history.calls.push(back);
    });
}

#[test]
fn another_cluster() {
    finds(&[one_cluster::NAME], |history, rng| {
        let at = pick(rng, &history.sightings);
        history.sightings[at].header.cluster = 8;
    });
}
