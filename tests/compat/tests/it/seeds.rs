//! Random programs: podkv against etcd, and etcd against etcd, or the first would mean nothing.

use std::collections::BTreeMap;
use std::time::Duration;

use podkv_compat::compare::{differ, shrink};
use podkv_compat::generate;
use podkv_compat::link::Link;
use podkv_compat::run::PATIENCE;
use podkv_compat::servers::{Etcd, Podkv};
use tokio::task::JoinSet;

/// Long enough for operations to meet, short enough to be shrunk soon.
const LENGTH: usize = 200;
/// Programs of one seed: some thousand calls, with those that read all of history at each end.
const PROGRAMS: u64 = 8;
/// Much of the time is waiting, so several pairs of stores are at work.
const PAIRS: u64 = 4;
/// What does not come within this is missing, while a failing program is made smaller.
const SHRINKING: Duration = Duration::from_secs(2);
/// Runs of a program that is made smaller.
const ATTEMPTS: usize = 200;
/// Different failures that are worth reading at once.
const MAX_FAILURES: usize = 3;

/// How many seeds: `make compat SEEDS=300`. In `make test` a few.
fn seeds(few: u64) -> u64 {
    let seeds = std::env::var("SEEDS").ok();
    seeds.and_then(|seeds| seeds.parse().ok()).unwrap_or(few)
}

/// Runs every `PAIRS`-th program from `first` on, and returns the failing ones as scripts with their difference.
async fn compare(stores: [Link; 2], first: u64, end: u64) -> BTreeMap<String, String> {
    let mut failures = BTreeMap::new();
    for number in (first..end).step_by(PAIRS as usize) {
        let program = generate::program(number, LENGTH);
        if let Some(difference) = differ(&stores, &program, PATIENCE).await.unwrap() {
            let (program, smaller) = shrink(&stores, program, SHRINKING, ATTEMPTS).await;
            let smaller = smaller.unwrap_or(difference);
            let origin = format!("seed {}, program {number}", number / PROGRAMS);
            failures.insert(program.to_string(), format!("{origin}\n{smaller}"));
        }
        if failures.len() == MAX_FAILURES {
            break;
        }
    }
    failures
}

async fn no_failures(workers: JoinSet<BTreeMap<String, String>>) {
    let failures: BTreeMap<_, _> = workers.join_all().await.into_iter().flatten().collect();
    for (program, difference) in &failures {
        eprintln!("{program}{difference}");
    }
    assert!(
        failures.is_empty(),
        "{} programs are answered differently",
        failures.len()
    );
}

#[tokio::test]
async fn etcd_answers_as_etcd() {
    let mut workers = JoinSet::new();
    for first in 0..PAIRS {
        workers.spawn(async move {
            let (one, other) = tokio::join!(Etcd::start(), Etcd::start());
            let stores = [one.link().await, other.link().await];
            compare(stores, first, seeds(2) * PROGRAMS).await
        });
    }
    no_failures(workers).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn podkv_answers_as_etcd() {
    let mut workers = JoinSet::new();
    for first in 0..PAIRS {
        workers.spawn(async move {
            let (etcd, podkv) = tokio::join!(Etcd::start(), Podkv::start());
            let stores = [etcd.link().await, podkv.link().await];
            compare(stores, first, seeds(8) * PROGRAMS).await
        });
    }
    no_failures(workers).await;
}
