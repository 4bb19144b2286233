//! Random programs: first etcd against etcd, or nothing else here means anything.

use podkv_compat::compare::{differ, shrink};
use podkv_compat::generate;
use podkv_compat::run::PATIENCE;
use podkv_compat::servers::Etcd;

fn seeds() -> u64 {
    let seeds = std::env::var("SEEDS").ok();
    seeds.and_then(|seeds| seeds.parse().ok()).unwrap_or(4)
}

#[tokio::test]
async fn etcd_answers_as_etcd() {
    let (one, other) = tokio::join!(Etcd::start(), Etcd::start());
    let stores = [one.link().await, other.link().await];
    for seed in 0..seeds() {
        let begin = std::time::Instant::now();
        let program = generate::program(seed, 120);
        if let Some(difference) = differ(&stores, &program, PATIENCE).await.unwrap() {
            let (program, smaller) = shrink(&stores, program, PATIENCE, 200).await;
            panic!("seed {seed}:\n{difference}\nsmaller:\n{program}\n{}", smaller.unwrap());
        }
        eprintln!("seed {seed} {:?}", begin.elapsed());
    }
}
