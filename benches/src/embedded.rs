//! What a program pays that has a node inside it: reads of random keys of a million, beside a bare RocksDB.
//!
//! ```text
//!   RocksDB          get, as many threads as there are processors
//!   podkv, local     Store::range, the node's own state
//!   podkv, linearizable, one reader: how long it waits; many: how many there are a second
//!   podkv, the leader of three, with a round to a majority and by its lease
//! ```
//!
//! Both hold the same keys and values, were compacted, and have a cache of the same size. The node is alone in its cluster,
//! so what a linearizable read costs here is podkv's own part, with no network. The three are in this process, each with its
//! volume, and speak over TCP.

use std::net::TcpListener;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Parser;
use indicatif::ProgressBar;
use podkv_api::{Consistency, KeyRange, Put, Range, Store as _};
use podkv_benches::Result;
use podkv_benches::times::Times;
use podkv_node::config::StorageConfig;
use podkv_node::discovery::{FixedDiscovery, Suggestion};
use podkv_node::{Node, NodeConfig};
use rand::RngExt as _;
use rand::rngs::SmallRng;
use tokio::task::JoinSet;

/// Writers of the fill.
const WRITERS: u64 = 256;
/// Reads between two looks at the clock.
const STRIDE: u64 = 64;
/// Readers at once, where many are measured.
const MANY: usize = 256;

/// Measures reads of an embedded node.
#[derive(Clone, Debug, Parser)]
struct Settings {
    #[arg(long, default_value_t = 1_000_000)]
    keys: u64,
    #[arg(long, default_value_t = 256)]
    value_bytes: usize,
    /// Seconds of each measurement.
    #[arg(long, default_value_t = 5)]
    seconds: u64,
    #[arg(long, default_value_t = 5)]
    repetitions: usize,
    /// Of the block cache of either, in MiB. The default holds everything.
    #[arg(long, default_value_t = 1024)]
    cache_mib: usize,
}

#[tokio::main]
async fn main() -> Result<()> {
    let settings = Settings::parse();
    let folder = tempfile::tempdir()?;
    let result = tokio::select! {
        result = run(&settings, folder.path()) => result,
        _ = tokio::signal::ctrl_c() => Err("interrupted".into()),
    };
    folder.close()?;
    result
}

async fn run(settings: &Settings, folder: &Path) -> Result<()> {
    let raw = Arc::new(fill_raw(settings, &folder.join("raw"))?);
    let node = start(settings, &folder.join("node")).await?;
    fill(settings, &node).await?;
    let threads = std::thread::available_parallelism()?.get();
    for _ in 0..settings.repetitions {
        let raw_rate = raw_reads(settings, &raw, threads).await?;
        let local = reads(settings, &node, Consistency::Local, threads).await?;
        let one = reads(settings, &node, Consistency::Linearizable, 1).await?;
        let many = reads(settings, &node, Consistency::Linearizable, MANY).await?;
        println!(
            "RocksDB {:.0}/s; local {:.0}/s, {:.2} of it; linearizable, one reader p50 {:?} p99 {:?}; {MANY} readers {:.0}/s",
            raw_rate,
            local.rate,
            local.rate / raw_rate,
            one.times.percentiles().p50,
            one.times.percentiles().p99,
            many.rate
        );
    }
    node.shutdown().await;
    for lease_reads in [false, true] {
        of_three(
            settings,
            &folder.join(format!("three-{lease_reads}")),
            lease_reads,
        )
        .await?;
    }
    Ok(())
}

/// Reads at the leader of three, a tenth of the keys.
async fn of_three(settings: &Settings, folder: &Path, lease_reads: bool) -> Result<()> {
    let settings = Settings {
        keys: (settings.keys / 10).max(1),
        cache_mib: settings.cache_mib / 4,
        ..settings.clone()
    };
    let addresses = free_addresses(3)?;
    let mut nodes = Vec::new();
    for (index, address) in addresses.iter().enumerate() {
        let name = format!("bench-{index}");
        let data_dir = folder.join(&name);
        std::fs::create_dir_all(&data_dir)?;
        let peers = addresses
            .iter()
            .enumerate()
            .map(|(index, address)| Suggestion {
                name: Some(format!("bench-{index}")),
                peer_address: address.clone(),
            });
        let config = NodeConfig {
            peer_listen: address.clone(),
            peer_address: address.clone(),
            replicas: 3,
            lease_reads,
            cache_bytes: settings.cache_mib << 20,
            ..NodeConfig::new(name, StorageConfig::Disk { data_dir })
        };
        let discovery = Arc::new(FixedDiscovery::new(peers.collect()));
        nodes.push(Node::builder(config).discovery(discovery).start().await?);
    }
    for node in &nodes {
        node.health().wait_for(|health| health.ready).await?;
    }
    let leader = nodes.iter().find(|node| node.is_leader());
    let leader = leader.ok_or("no node leads")?;
    fill(&settings, leader).await?;
    let how = if lease_reads {
        "by lease"
    } else {
        "with a round"
    };
    for _ in 0..settings.repetitions {
        let before = leader.stats().reads_by_lease_total;
        let one = reads(&settings, leader, Consistency::Linearizable, 1).await?;
        let many = reads(&settings, leader, Consistency::Linearizable, MANY).await?;
        let by_lease = leader.stats().reads_by_lease_total - before;
        let all = one.times.count() + many.times.count();
        println!(
            "leader of three, {how}: one reader p50 {:?} p99 {:?}; {MANY} readers {:.0}/s; {by_lease} of {all} by the lease",
            one.times.percentiles().p50,
            one.times.percentiles().p99,
            many.rate
        );
    }
    for node in nodes {
        node.shutdown().await;
    }
    Ok(())
}

fn free_addresses(count: usize) -> Result<Vec<String>> {
    // All at once, so that no two are the same.
    let listeners = std::iter::repeat_with(|| TcpListener::bind("127.0.0.1:0")).take(count);
    let listeners = listeners.collect::<std::io::Result<Vec<_>>>()?;
    let addresses = listeners.iter().map(TcpListener::local_addr);
    let addresses = addresses.collect::<std::io::Result<Vec<_>>>()?;
    Ok(addresses.iter().map(ToString::to_string).collect())
}

fn key(number: u64) -> String {
    format!("key-{number:016}")
}

fn value(settings: &Settings) -> Vec<u8> {
    // Random, so that compression makes neither smaller.
    let mut value = vec![0; settings.value_bytes];
    rand::rng().fill(&mut value[..]);
    value
}

/// The same options as the state of a node, where they matter to a get.
fn fill_raw(settings: &Settings, folder: &Path) -> Result<rocksdb::DB> {
    let mut options = rocksdb::Options::default();
    options.create_if_missing(true);
    let mut table = rocksdb::BlockBasedOptions::default();
    table.set_block_size(16 << 10);
    table.set_bloom_filter(10.0, false);
    table.set_block_cache(&rocksdb::Cache::new_lru_cache(settings.cache_mib << 20));
    options.set_block_based_table_factory(&table);
    let database = rocksdb::DB::open(&options, folder)?;
    for number in 0..settings.keys {
        database.put(key(number), value(settings))?;
    }
    database.flush()?;
    database.compact_range::<&[u8], &[u8]>(None, None);
    Ok(database)
}

async fn start(settings: &Settings, folder: &Path) -> Result<Node> {
    let data_dir = folder.to_path_buf();
    std::fs::create_dir_all(&data_dir)?;
    let config = NodeConfig {
        peer_listen: "127.0.0.1:0".into(),
        cache_bytes: settings.cache_mib << 20,
        ..NodeConfig::new("bench-0", StorageConfig::Disk { data_dir })
    };
    let node = Node::builder(config).start().await?;
    node.health().wait_for(|health| health.ready).await?;
    Ok(node)
}

async fn fill(settings: &Settings, node: &Node) -> Result<()> {
    let bar = ProgressBar::new(settings.keys);
    let mut writers = JoinSet::new();
    for writer in 0..WRITERS {
        let (node, bar, settings) = (node.clone(), bar.clone(), settings.clone());
        writers.spawn(async move {
            for number in (writer..settings.keys).step_by(WRITERS as usize) {
                node.put(Put::new(key(number), value(&settings))).await?;
                bar.inc(1);
            }
            Ok::<_, podkv_api::Error>(())
        });
    }
    while let Some(written) = writers.join_next().await {
        written??;
    }
    bar.finish_and_clear();
    Ok(())
}

struct Read {
    rate: f64,
    times: Times,
}

async fn raw_reads(settings: &Settings, raw: &Arc<rocksdb::DB>, threads: usize) -> Result<f64> {
    let mut readers = JoinSet::new();
    let began = Instant::now();
    for _ in 0..threads {
        let (raw, settings) = (raw.clone(), settings.clone());
        readers.spawn_blocking(move || {
            let mut random: SmallRng = rand::make_rng();
            let until = Instant::now() + Duration::from_secs(settings.seconds);
            let mut count = 0;
            while Instant::now() < until {
                for _ in 0..STRIDE {
                    let found = raw.get(key(random.random_range(0..settings.keys)))?;
                    found.ok_or("a key is missing")?;
                }
                count += STRIDE;
            }
            Result::Ok(count)
        });
    }
    let mut count = 0;
    while let Some(counted) = readers.join_next().await {
        count += counted??;
    }
    Ok(count as f64 / began.elapsed().as_secs_f64())
}

async fn reads(
    settings: &Settings,
    node: &Node,
    consistency: Consistency,
    readers: usize,
) -> Result<Read> {
    let began = Instant::now();
    let mut running = JoinSet::new();
    for _ in 0..readers {
        running.spawn(read(settings.clone(), node.clone(), consistency));
    }
    let mut times = Times::new();
    while let Some(read) = running.join_next().await {
        times.add(&read??);
    }
    let rate = times.count() as f64 / began.elapsed().as_secs_f64();
    Ok(Read { rate, times })
}

async fn read(settings: Settings, node: Node, consistency: Consistency) -> Result<Times> {
    let mut random: SmallRng = rand::make_rng();
    let mut times = Times::new();
    let end = Instant::now() + Duration::from_secs(settings.seconds);
    let mut now = Instant::now();
    while now < end {
        let mut range = Range::new(KeyRange::key(key(random.random_range(0..settings.keys))));
        range.consistency = consistency;
        let found = node.range(range).await?;
        if found.kvs.is_empty() {
            return Err("a key is missing".into());
        }
        let after = Instant::now();
        times.record(after - now);
        now = after;
    }
    Ok(times)
}
