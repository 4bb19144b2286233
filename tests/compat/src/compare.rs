//! Runs a program on two stores, and makes it small if they differ.

use std::fmt;
use std::time::Duration;

use prost_reflect::{DynamicMessage, Value};
use tonic::Status;

use crate::link::Link;
use crate::program::Program;
use crate::run::{Trace, run};
use crate::step::Step;

/// The first answer that differs.
#[derive(Clone, Debug)]
pub struct Difference {
    pub names: [&'static str; 2],
    pub asked: [String; 2],
    pub answers: [String; 2],
}

impl fmt::Display for Difference {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(formatter, "{}", self.asked[0])?;
        for index in 0..2 {
            if self.asked[index] != self.asked[0] {
                writeln!(
                    formatter,
                    "  ({}: {})",
                    self.names[index], self.asked[index]
                )?;
            }
            writeln!(
                formatter,
                "  {:>6}: {}",
                self.names[index], self.answers[index]
            )?;
        }
        Ok(())
    }
}

impl Difference {
    /// See `normalise::WATCH_RULES`: etcd's answer lacks the previous value alone, which it does now and then.
    fn may_be_forgotten_by_etcd(&self) -> bool {
        (0..2).any(|index| {
            let (etcd, other) = (&self.answers[index], &self.answers[1 - index]);
            self.names[index] == "etcd" && without_previous(other).as_ref() == Some(etcd)
        })
    }
}

/// An event without its previous value, if it has one.
fn without_previous(event: &str) -> Option<String> {
    let (before, previous) = event.split_once(",prev_kv{")?;
    let (_, after) = previous.split_once('}')?;
    Some(format!("{before}{after}"))
}

/// How often a program is run where etcd may have forgotten something: it does so in one of some thousand.
const RUNS: usize = 3;

/// Runs the program on both, at the same time.
///
/// # Errors
/// Where a store cannot be emptied before the program begins.
pub async fn differ(
    stores: &[Link; 2],
    program: &Program,
    patience: Duration,
) -> Result<Option<Difference>, Status> {
    let mut runs = 1;
    loop {
        let (one, other) = tokio::join!(
            run(&stores[0], program, patience),
            run(&stores[1], program, patience)
        );
        match first_difference(stores, &one?, &other?) {
            Some(difference) if runs < RUNS && difference.may_be_forgotten_by_etcd() => runs += 1,
            found => return Ok(found),
        }
    }
}

fn first_difference(stores: &[Link; 2], one: &Trace, other: &Trace) -> Option<Difference> {
    let nothing = ("the end".to_owned(), String::new());
    for index in 0..one.len().max(other.len()) {
        let [left, right] = [one, other].map(|trace| trace.get(index).unwrap_or(&nothing));
        if left != right {
            return Some(Difference {
                names: [stores[0].name, stores[1].name],
                asked: [left.0.clone(), right.0.clone()],
                answers: [left.1.clone(), right.1.clone()],
            });
        }
    }
    None
}

/// The smallest program found on which the stores differ, and how. At most `attempts` runs.
pub async fn shrink(
    stores: &[Link; 2],
    program: Program,
    patience: Duration,
    attempts: usize,
) -> (Program, Option<Difference>) {
    let mut shrinker = Shrinker {
        stores,
        patience,
        attempts,
        smallest: program,
        difference: None,
    };
    shrinker.drop_steps().await;
    shrinker.simplify_steps().await;
    (shrinker.smallest, shrinker.difference)
}

struct Shrinker<'a> {
    stores: &'a [Link; 2],
    patience: Duration,
    attempts: usize,
    smallest: Program,
    difference: Option<Difference>,
}

impl Shrinker<'_> {
    /// Whether the stores still differ; then the candidate is the smallest.
    async fn accept(&mut self, steps: Vec<Step>) -> bool {
        if self.attempts == 0 {
            return false;
        }
        self.attempts -= 1;
        let candidate = Program {
            fresh: self.smallest.fresh,
            steps,
        };
        let Ok(Some(difference)) = differ(self.stores, &candidate, self.patience).await else {
            return false;
        };
        self.difference = Some(difference);
        self.smallest = candidate;
        true
    }

    /// Halves first, single steps last, from the end: what follows the difference goes at once.
    async fn drop_steps(&mut self) {
        let mut size = self.smallest.steps.len().div_ceil(2);
        while size > 0 {
            let mut dropped = false;
            let mut end = self.smallest.steps.len();
            while end > 0 {
                let begin = end.saturating_sub(size);
                let mut steps = self.smallest.steps.clone();
                steps.drain(begin..end);
                dropped |= self.accept(steps).await;
                end = begin;
            }
            if self.attempts == 0 {
                return;
            }
            size = if size == 1 && dropped { 1 } else { size / 2 };
        }
    }

    async fn simplify_steps(&mut self) {
        for index in 0..self.smallest.steps.len() {
            let mut number = 0;
            loop {
                let step = &self.smallest.steps[index];
                let Some(message) = simpler(&step.message()).into_iter().nth(number) else {
                    break;
                };
                let mut steps = self.smallest.steps.clone();
                steps[index] = step.with_message(&message);
                // What was simplified may be simplified at the same place again.
                if !self.accept(steps).await {
                    number += 1;
                }
                if self.attempts == 0 {
                    return;
                }
            }
        }
    }
}

/// Messages with one field, one element, or one field of a field less.
fn simpler(message: &DynamicMessage) -> Vec<DynamicMessage> {
    let mut found = Vec::new();
    for (field, value) in message.fields() {
        let mut with = |value: Option<Value>| {
            let mut simpler = message.clone();
            match value {
                Some(value) => simpler.set_field(&field, value),
                None => simpler.clear_field(&field),
            }
            found.push(simpler);
        };
        with(None);
        match value {
            Value::Message(inner) => {
                for inner in simpler(inner) {
                    with(Some(Value::Message(inner)));
                }
            }
            Value::List(list) => {
                // Long lists by halves first.
                if list.len() > 3 {
                    with(Some(Value::List(list[..list.len() / 2].to_vec())));
                    with(Some(Value::List(list[list.len() / 2..].to_vec())));
                }
                for index in 0..list.len() {
                    let mut shorter = list.clone();
                    shorter.remove(index);
                    with(Some(Value::List(shorter)));
                    if let Value::Message(inner) = &list[index] {
                        for inner in simpler(inner) {
                            let mut list = list.clone();
                            list[index] = Value::Message(inner);
                            with(Some(Value::List(list)));
                        }
                    }
                }
            }
            _ => {}
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_previous_value_may_be_forgotten_and_only_by_etcd() {
        let with = "type:PUT,kv{key:\"a\"},prev_kv{key:\"a\",version:1}";
        let without = "type:PUT,kv{key:\"a\"}";
        let difference = |names, answers: [&str; 2]| Difference {
            names,
            asked: Default::default(),
            answers: answers.map(str::to_owned),
        };
        for (names, answers, forgotten) in [
            (["etcd", "podkv"], [without, with], true),
            (["etcd", "etcd"], [with, without], true),
            (["etcd", "podkv"], [with, without], false),
            (["etcd", "podkv"], ["type:DELETE", with], false),
        ] {
            assert_eq!(
                difference(names, answers).may_be_forgotten_by_etcd(),
                forgotten
            );
        }
    }
}
