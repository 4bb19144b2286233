//! Random programs: first etcd against etcd, or nothing else here means anything.

use std::collections::BTreeMap;
use std::time::Duration;

use podkv_compat::compare::{differ, shrink};
use podkv_compat::generate;
use podkv_compat::link::Link;
use podkv_compat::run::PATIENCE;
use podkv_compat::servers::{Etcd, Podkv};

fn seeds() -> u64 {
    let seeds = std::env::var("SEEDS").ok();
    seeds.and_then(|seeds| seeds.parse().ok()).unwrap_or(4)
}

/// Long enough for operations to meet, short enough to be shrunk soon.
const LENGTH: usize = 150;

/// What does not come within this is missing, while a failing program is made smaller.
const SHRINKING: Duration = Duration::from_secs(2);
/// Different failures that are worth reading at once.
const MAX_FAILURES: usize = 8;

async fn compare(stores: [Link; 2]) {
    let mut failures = BTreeMap::new();
    for seed in 0..seeds() {
        let program = generate::program(seed, LENGTH);
        if let Some(difference) = differ(&stores, &program, PATIENCE).await.unwrap() {
            let (program, smaller) = shrink(&stores, program, SHRINKING, 200).await;
            let smaller = smaller.unwrap_or(difference);
            failures.insert(program.to_string(), format!("seed {seed}\n{smaller}"));
        }
        if failures.len() == MAX_FAILURES {
            break;
        }
    }
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
    let (one, other) = tokio::join!(Etcd::start(), Etcd::start());
    compare([one.link().await, other.link().await]).await;
}

#[tokio::test]
async fn podkv_answers_as_etcd() {
    let (etcd, podkv) = tokio::join!(Etcd::start(), Podkv::start());
    compare([etcd.link().await, podkv.link().await]).await;
}
