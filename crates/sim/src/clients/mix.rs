//! Everything that the data model knows, over few keys, so that calls meet.

use std::time::Duration;

use crate::history::{Compare, Consistency, Step, StepResult};
use rand::RngExt as _;
use rand::rngs::StdRng;

use super::{Caller, Run};

/// Few enough that they are fought over, many enough that a search by key has short parts.
const KEYS: u32 = 60;
const TTL_KEYS: u32 = 5;
const TTL_MS: u64 = 1500;

pub async fn run(caller: Caller, mut rng: StdRng) {
    // What it saw last of a key: the hope of its next compare-and-swap.
    let mut seen: Option<(String, String)> = None;
    loop {
        let run = next(&caller, &mut rng, &mut seen);
        let failed = match caller.run(run).await {
            Ok(results) => {
                remember(&results, &mut seen);
                false
            }
            Err(_) => true,
        };
        // Who is refused at once would only fill the history with refusals.
        if failed {
            tokio::time::sleep(Duration::from_millis(rng.random_range(1..30))).await;
        }
        if !caller.rest.is_zero() {
            tokio::time::sleep(rng.random_range(Duration::ZERO..=caller.rest)).await;
        }
    }
}

fn remember(results: &[StepResult], seen: &mut Option<(String, String)>) {
    for result in results {
        if let StepResult::Read(kvs) = result
            && let [kv] = &kvs[..]
        {
            *seen = Some((kv.key.clone(), kv.value.clone()));
        }
    }
}

fn next(caller: &Caller, rng: &mut StdRng, seen: &mut Option<(String, String)>) -> Run {
    let id = caller.recorder.id();
    let mut number = || rng.random_range(0..KEYS);
    let key = format!("k/{:02}", number());
    let other = format!("k/{:02}", number());
    let get = |key: &str| Step::Get { key: key.into() };
    let put = |key: &str| Step::Put {
        key: key.into(),
        value: id.to_string(),
        lease: None,
        ttl_ms: None,
    };
    match rng.random_range(0..100) {
        0..30 => Run::new(id, vec![put(&key)]),
        30..55 => Run::new(id, vec![get(&key)]),
        55..65 => Run {
            consistency: Consistency::Local,
            ..Run::new(id, vec![get(&key)])
        },
        65..71 => Run::new(id, vec![Step::Delete { key }]),
        71..83 => {
            let (key, value) = seen.take().unwrap_or((key, "nothing yet".into()));
            let (then, or_else) = (vec![put(&key)], vec![get(&key)]);
            let equals = value;
            Run {
                compare: vec![Compare::Value { key, equals }],
                or_else,
                ..Run::new(id, then)
            }
        }
        83..87 => Run {
            compare: vec![Compare::Modified {
                key: key.clone(),
                equals: 0,
            }],
            or_else: vec![get(&key)],
            ..Run::new(id, vec![put(&key)])
        },
        87..93 if key != other => {
            // Reads what it overwrites, and another.
            let third = format!("k/{:02}", (rng.random_range(0..KEYS)));
            let steps = vec![get(&key), put(&key), put(&other), get(&third)];
            Run::new(id, steps)
        }
        93..96 if key != other => Run::new(id, vec![put(&key), Step::Delete { key: other }]),
        96..98 => Run::new(
            id,
            vec![Step::Scan {
                start: "k/1".into(),
                end: "k/2".into(),
            }],
        ),
        98 => Run::new(
            id,
            vec![Step::Put {
                key: format!("ttl/{}", rng.random_range(0..TTL_KEYS)),
                value: id.to_string(),
                lease: None,
                ttl_ms: Some(TTL_MS),
            }],
        ),
        // A transaction that only reads.
        _ => Run::new(id, vec![get(&key), get(&other)]),
    }
}
